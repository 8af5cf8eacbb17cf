//! Claim: sharing steps pays (sixteen streams together write at least twice as many tokens a second as one alone, at
//! `nano`), a prompt whose beginning is known is read at least four times as fast; and in one stream text comes at least
//! five times as fast as from `transformers` at `nano`, and from `llama.cpp` twice as fast at `nano` and as fast at `small`.
//! What was measured is in `docs/src/inference.md`.
//!
//! `[PEERS="$(tests/formats/make)"] cargo bench --profile dev --bench decode [-- preset … streams …]`
//!
//! With `PEERS`, `llama.cpp` and `transformers` write with the same model, in F32, on as many threads. All take turns, so
//! that a machine that slows down slows all of them; medians are shown, and the best of all.

#![allow(clippy::disallowed_methods, reason = "a bench keeps time")]

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::Instant;

use hydra::inference::{Engine, Event, Job, Model, Sampler, Sampling};
use hydra::model::formats::{Format, export};
use hydra::model::{Decoder, Preset};
use hydra::protocol::{Digest, ModelSpec, Seed, VOCABULARY_BYTES, limits};
use hydra::training::Params;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Streams that share steps.
const STREAMS: [usize; 4] = [1, 4, 16, 64];

/// Tokens of a prompt, and tokens that are added.
const PROMPT: usize = 32;
const TOKENS: usize = 96;

/// Tokens of the longer prompt whose beginning is known.
const LONG: usize = 200;

/// Tokens that a text may have.
const CONTEXT: u32 = 256;

/// How often each has its turn.
const TURNS: usize = 5;

/// Somebody who writes: seconds until the first token of one stream, and tokens a second of all.
trait Writer {
    fn turn(&mut self, streams: usize) -> Result<[f64; 2]>;
}

/// Hydra's engine, as a server of queries has it.
struct Ours(Engine);

impl Ours {
    /// Begins so many texts: the first event of each.
    fn write(&self, streams: usize, prompt: &[u16], most: usize) -> Result<[f64; 2]> {
        let began = Instant::now();
        let (events, heard) = mpsc::channel();
        let mut places = Vec::new();
        for _ in 0..streams {
            let sampler =
                Sampler::new(Sampling { temperature: 0.0, ..Sampling::default() }, &Seed::from_number(1), &[])?;
            let job = Job { prompt: prompt.to_vec(), most: most as u32, sampler, stop: vec![], likeliest: None };
            let events = events.clone();
            let mut place = self.0.reserve(1)?;
            place.begin(job, Box::new(move |event| events.send(event).is_ok()))?;
            places.push(place);
        }
        drop(events);
        let (mut first, mut tokens, mut open) = (0.0, 0, streams);
        while open > 0 {
            match heard.recv()? {
                Event::Token(_) => {
                    if tokens == 0 {
                        first = began.elapsed().as_secs_f64();
                    }
                    tokens += 1;
                }
                Event::Ended(_) => open -= 1,
                Event::Failed(error) => return Err(error.into()),
            }
        }
        Ok([first, f64::from(tokens) / began.elapsed().as_secs_f64()])
    }
}

fn prompt(length: usize, last: u16) -> Vec<u16> {
    let mut prompt = vec![97; length];
    prompt[0] = 256;
    prompt[length - 1] = last;
    prompt
}

impl Writer for Ours {
    fn turn(&mut self, streams: usize) -> Result<[f64; 2]> {
        let [first, _] = self.write(1, &prompt(PROMPT, 97), 1)?;
        Ok([first, self.write(streams, &prompt(PROMPT, 97), TOKENS)?[1]])
    }
}

/// A program of others.
struct Peer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    fn start(python: &str, kind: &str, model: &Path, threads: usize) -> Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/decode.py");
        let mut child = Command::new(python)
            .arg(script)
            .arg(kind)
            .arg(model)
            .args([threads.to_string(), TOKENS.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let pipes = child.stdin.take().zip(child.stdout.take()).ok_or("no pipes")?;
        let mut peer = Self { child, input: pipes.0, output: BufReader::new(pipes.1) };
        match peer.line()?.trim() {
            "ready" => Ok(peer),
            other => Err(format!("{kind} says {other:?}").into()),
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line)
    }
}

impl Writer for Peer {
    fn turn(&mut self, streams: usize) -> Result<[f64; 2]> {
        writeln!(self.input, "{streams}")?;
        let line = self.line()?;
        let mut numbers = line.split_whitespace().map(str::parse);
        let mut next = || numbers.next().ok_or("the peer is gone");
        Ok([next()??, next()??])
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It ends by itself, or has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn median(all: impl Iterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = all.collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// A model that never ends a document by itself.
fn params(model: &ModelSpec) -> Params {
    let mut params = Params::initial(model, &Seed::from_number(1));
    let reserved = (VOCABULARY_BYTES * model.width) as usize..params.layout().tensors()[0].range().end;
    params.values_mut()[reserved].fill(0.0);
    params
}

fn engine(model: &ModelSpec, threads: usize, kept_bytes: usize) -> Result<Ours> {
    let engine = Engine::start(threads, kept_bytes)?;
    engine.swap(Model { digest: Digest::of(&[]), decoder: Decoder::new(model, params(model))? });
    Ok(Ours(engine))
}

fn main() -> Result<()> {
    let named: Vec<Preset> = std::env::args().filter_map(|name| name.parse().ok()).collect();
    let presets = if named.is_empty() { vec![Preset::Nano] } else { named };
    let named: Vec<usize> = std::env::args().filter_map(|number| number.parse().ok()).collect();
    let streams = if named.is_empty() { STREAMS.to_vec() } else { named };
    let threads = std::thread::available_parallelism()?.get();
    println!(
        "{threads} threads; medians of {TURNS} turns, the best in brackets; prompts of {PROMPT} tokens, {TOKENS} added"
    );
    for preset in presets {
        let model = ModelSpec { context: CONTEXT, ..preset.recipe().model };
        let folder = tempfile::tempdir()?;
        let mut writers: Vec<(&str, Box<dyn Writer>)> = vec![("hydra", Box::new(engine(&model, threads, 0)?))];
        if let Ok(python) = std::env::var("PEERS") {
            for format in [Format::Hf, Format::Gguf] {
                for file in export(format, &model, &params(&model))? {
                    std::fs::write(folder.path().join(file.name), file.bytes)?;
                }
            }
            let gguf = folder.path().join("model.gguf");
            writers.push(("llama.cpp", Box::new(Peer::start(&python, "llama.cpp", &gguf, threads)?)));
            writers.push(("transformers", Box::new(Peer::start(&python, "transformers", folder.path(), threads)?)));
        }
        for &streams in &streams {
            let mut times: Vec<Vec<[f64; 2]>> = writers.iter().map(|_| Vec::new()).collect();
            for turn in 0..=TURNS {
                for ((_, writer), times) in writers.iter_mut().zip(&mut times) {
                    let time = writer.turn(streams)?;
                    // The first warms up.
                    if turn > 0 {
                        times.push(time);
                    }
                }
            }
            let ours = median(times[0].iter().map(|time| time[1]));
            for ((name, _), times) in writers.iter().zip(&times) {
                let rate = median(times.iter().map(|time| time[1]));
                let best = times.iter().map(|time| time[1]).fold(0.0, f64::max);
                let first = median(times.iter().map(|time| time[0])) * 1e3;
                println!(
                    "{preset:>6}  {streams:>3} streams  {name:<12} {rate:>8.0} tokens/s ({best:.0})  first token {first:.2} ms  \
                     hydra is {:.2} times as fast",
                    ours / rate
                );
            }
        }
        let [with, without] = [limits::PREFIX_BYTES, 0].map(|bytes| engine(&model, threads, bytes));
        let (with, without) = (with?, without?);
        let mut times = [const { Vec::new() }; 2];
        for turn in 0..=TURNS as u16 {
            for (ours, times) in [&with, &without].into_iter().zip(&mut times) {
                times.push(ours.write(1, &prompt(LONG, turn), 1)?[0]);
            }
        }
        let [with, without] = times.map(|times| median(times.into_iter().skip(1)) * 1e3);
        println!(
            "{preset:>6}  first token after {LONG}: {without:.2} ms, {with:.2} ms where all but the last is known"
        );
    }
    Ok(())
}
