//! How much memory training takes at its peak, counted at the allocator: no more than is promised, and not so much
//! less that the promise means nothing.
#![allow(unsafe_code, reason = "an allocator is unsafe")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use hydra::model::memory::Need;
use hydra::model::{BurnEngine, DeviceChoice, Preset, Recipe};
use hydra::protocol::{InnerOptimizer, Seed};
use hydra::training::{Batch, Engine, Params};

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is handed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller promises what `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes at the peak of two steps.
fn peak(device: DeviceChoice, recipe: &Recipe, optimizer: &InnerOptimizer) -> u64 {
    let context = recipe.model.context as usize;
    let tokens = (0..recipe.batch as usize * (context + 1)).map(|at| (at * at % 251) as u16).collect();
    let batch = Batch { context, tokens };
    PEAK.store(0, Ordering::Relaxed);
    let base = Params::initial(&recipe.model, &Seed::from_number(1));
    let mut session = BurnEngine::new(device).train(&recipe.model, &base, optimizer).unwrap();
    for _ in 0..2 {
        session.step(&batch, 1e-3).unwrap();
    }
    session.finish().unwrap();
    PEAK.load(Ordering::Relaxed) as u64
}

/// Names the case that a process is to measure.
const CASE: &str = "HYDRA_TEST_MEMORY_CASE";

/// Each case in a process of its own, because buffers are kept in a process and the counter counts all of it.
#[test]
fn training_takes_what_is_promised_and_no_more() {
    // libtorch allocates where the counter does not see it.
    let counted = |device: &DeviceChoice| !device.to_string().contains("tch") && !device.to_string().contains("cuda");
    let mini = Recipe { batch: 1, ..Preset::Mini.recipe() };
    let sizes = [Preset::Nano.recipe(), Recipe { batch: 6, ..Preset::Micro.recipe() }, mini];
    let optimizers = [InnerOptimizer::adamw(), InnerOptimizer::muon()];
    let devices = DeviceChoice::present().into_iter().filter(counted);
    let cases = devices.flat_map(|device| {
        sizes.into_iter().flat_map(move |size| optimizers.into_iter().map(move |optimizer| (device, size, optimizer)))
    });
    let wanted = std::env::var(CASE).ok().and_then(|number| number.parse::<usize>().ok());
    for (number, (device, recipe, optimizer)) in cases.enumerate() {
        if let Some(wanted) = wanted {
            if number == wanted {
                check(device, &recipe, &optimizer);
            }
            continue;
        }
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        let output = again.args(["--nocapture", "training_takes"]).env(CASE, number.to_string()).output().unwrap();
        println!("{}", String::from_utf8_lossy(&output.stdout));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

fn check(device: DeviceChoice, recipe: &Recipe, optimizer: &InnerOptimizer) {
    let need = Need::of(&recipe.model, optimizer, device);
    let (promised, taken) = (need.bytes(recipe.batch.into()), peak(device, recipe, optimizer));
    let parameters = recipe.model.parameters();
    println!(
        "{device}, {parameters} parameters, {} × {} tokens: {} MiB taken, {} promised; {} bytes a parameter, {} of them \
         whatever the batch",
        recipe.batch,
        recipe.model.context,
        taken >> 20,
        promised >> 20,
        taken / parameters,
        need.state / parameters,
    );
    assert!(taken <= promised, "{device}, {parameters} parameters: {taken} over {promised}");
    assert!(taken > promised / 2, "{device}, {parameters} parameters: {taken} of {promised}");
}
