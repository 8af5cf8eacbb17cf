//! Has each new base model answer queries.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio::sync::{Semaphore, mpsc};

use super::QuerySite;
use super::ask::{Kind, Query};
use crate::http::api::queries::{MODEL, Newest};
use crate::http::api::watch::Sample;
use crate::inference::{Event, Model};
use crate::model::{CheckpointError, Decoder, checkpoint};
use crate::protocol::{Digest, Round, SpecError, limits};
use crate::store::BlobError;
use crate::training::EngineError;

/// How often to look for a newer model.
const LOOK: Duration = Duration::from_secs(1);

/// The longest pause before a model that could not be taken up is tried again, in looks: a minute.
const PAUSE_MAX: u32 = 60;

/// Why a model cannot answer.
#[derive(Debug, thiserror::Error)]
enum Unfit {
    #[error("its sizes cannot be: {0}")]
    Sizes(#[from] SpecError),
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error("its weights cannot be read: {0}")]
    Weights(#[from] CheckpointError),
    #[error(transparent)]
    Decoder(#[from] EngineError),
    #[error("reading it was broken off: {0}")]
    BrokenOff(#[from] tokio::task::JoinError),
}

/// A model that could not be taken up. It is tried again after longer and longer pauses, another one at once.
#[derive(Debug)]
struct Setback {
    digest: Digest,
    problem: String,
    /// The present pause, and what is left of it, in looks.
    pause: u32,
    left: u32,
}

impl Setback {
    /// The setback that follows on `before`, and whether it is another.
    fn after(before: Option<Self>, digest: Digest, problem: String) -> (Self, bool) {
        let before = before.filter(|before| before.digest == digest);
        let is_news = before.as_ref().is_none_or(|before| before.problem != problem);
        let pause = before.map_or(1, |before| (before.pause * 2).min(PAUSE_MAX));
        (Self { digest, problem, pause, left: pause }, is_news)
    }

    /// Whether this model is not to be tried now.
    fn holds_back(&self, digest: Digest) -> bool {
        self.digest == digest && self.left > 0
    }
}

/// Has each new base model answer queries, until the server stops.
pub(in crate::http::server) async fn follow(queries: Arc<QuerySite>) {
    let (mut setback, writing) = (None, Arc::new(Semaphore::new(1)));
    if let Some(last) = queries.run.last() {
        // What answered before, until something newer is there.
        queries.take_up(last, &mut setback).await;
    }
    loop {
        let known = queries.engine.newest().map(|model| model.digest);
        if let Ok(Some(newest)) = queries.run.newer(known).await
            && Some(newest.digest) != known
            && !setback.as_ref().is_some_and(|setback: &Setback| setback.holds_back(newest.digest))
        {
            let round = newest.round;
            if queries.take_up(newest, &mut setback).await {
                // Behind whatever else is being written, so nobody waits for it. While the last one is, it is left out.
                if let Ok(turn) = Arc::clone(&writing).try_acquire_owned() {
                    let queries = Arc::clone(&queries);
                    tokio::spawn(async move {
                        sample(&queries, round).await;
                        drop(turn);
                    });
                }
                continue;
            }
        }
        tokio::time::sleep(LOOK).await;
        if let Some(setback) = &mut setback {
            setback.left = setback.left.saturating_sub(1);
        }
    }
}

impl QuerySite {
    /// Has a model answer, or notes and tells why it cannot: whether it does.
    async fn take_up(&self, newest: Newest, setback: &mut Option<Setback>) -> bool {
        match self.serve(newest.clone()).await {
            Ok(()) => {
                *setback = None;
                true
            }
            Err(unfit) => {
                let (next, is_news) = Setback::after(setback.take(), newest.digest, unfit.to_string());
                if is_news {
                    self.run.cannot_answer(&newest, &next.problem);
                }
                *setback = Some(next);
                false
            }
        }
    }

    /// Has a model answer what is asked from now on.
    async fn serve(&self, newest: Newest) -> Result<(), Unfit> {
        let (blobs, run) = (Arc::clone(&self.blobs), Arc::clone(&self.run));
        let loaded = tokio::task::spawn_blocking(move || {
            newest.model.validate()?;
            let params = checkpoint::decode(&blobs.get(&newest.digest)?, &newest.model)?;
            let decoder = Decoder::new(&newest.model, params)?;
            run.answers(&newest);
            Ok::<_, Unfit>((newest, decoder))
        });
        let (newest, decoder) = loaded.await??;
        let digest = newest.digest;
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(newest);
        self.engine.swap(Model { digest, decoder });
        Ok(())
    }
}

/// Has the newest model write what is shown of it. Where there is no room, it is left out.
async fn sample(queries: &QuerySite, round: Round) {
    let Ok(mut place) = queries.engine.reserve(1) else { return };
    let model = place.model().digest;
    let context = u32::try_from(place.model().decoder.context()).unwrap_or(u32::MAX);
    let most = limits::SAMPLE_TOKENS.min(context.saturating_sub(1));
    // As if somebody had asked for it: the same seed each time, so that only the models differ.
    let query = json!({ "model": MODEL, "prompt": "", "max_tokens": most, "temperature": 0.8, "seed": 0 });
    let query = Query::read(Kind::Completion, query.to_string().as_bytes(), context as usize);
    let Some(job) = query.ok().and_then(|query| query.jobs(0).pop()) else { return };
    let (events, mut heard) = mpsc::unbounded_channel();
    if place.begin(job, Box::new(move |event| events.send(event).is_ok())).is_err() {
        return;
    }
    let mut bytes = Vec::new();
    while let Some(event) = heard.recv().await {
        match event {
            Event::Token(written) => bytes.extend(written.iter().map(|written| written.byte)),
            Event::Ended(_) => break,
            Event::Failed(_) => return,
        }
    }
    let mut samples = queries.samples.lock().unwrap_or_else(PoisonError::into_inner);
    samples.push_back(Sample { round, model, text: String::from_utf8_lossy(&bytes).into_owned() });
    while samples.len() > limits::SAMPLES_KEPT {
        samples.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_util::future::BoxFuture;

    use super::*;
    use crate::http::hub::Hub;
    use crate::http::server::queries::{LedgerTrouble, QueryLedger, QueryParts, QueryPorts, RunPort};
    use crate::inference::{Engine, Job, Sampler, Sampling};
    use crate::ledger::Request;
    use crate::model::Preset;
    use crate::protocol::{Amount, ModelSpec, RunId, Seed, VOCABULARY_END};
    use crate::runtime::SystemClock;
    use crate::store::{Blobs, Database, MemoryBlobs, QueryStore};
    use crate::training::Params;

    /// A run that says what its newest model is, and what it was told.
    #[derive(Default)]
    struct Run {
        newest: Mutex<Option<Newest>>,
        told: Mutex<Vec<(Digest, String)>>,
    }

    impl RunPort for Run {
        fn newer(&self, known: Option<Digest>) -> BoxFuture<'_, Result<Option<Newest>, String>> {
            let newest = self.newest.lock().unwrap().clone();
            Box::pin(async move { Ok(newest.filter(|newest| Some(newest.digest) != known)) })
        }

        fn cannot_answer(&self, newest: &Newest, problem: &str) {
            self.told.lock().unwrap().push((newest.digest, problem.to_owned()));
        }
    }

    /// A store that counts what it is asked for.
    #[derive(Default)]
    struct Counting {
        blobs: MemoryBlobs,
        asked: Mutex<Vec<Digest>>,
    }

    impl Blobs for Counting {
        fn put(&self, bytes: &[u8]) -> Result<Digest, BlobError> {
            self.blobs.put(bytes)
        }

        fn get(&self, digest: &Digest) -> Result<Vec<u8>, BlobError> {
            self.asked.lock().unwrap().push(*digest);
            self.blobs.get(digest)
        }

        fn remove(&self, digest: &Digest) -> Result<(), BlobError> {
            self.blobs.remove(digest)
        }
    }

    struct NoLedger;

    impl QueryLedger for NoLedger {
        fn ask(&self, _: Request) -> BoxFuture<'_, Result<(), LedgerTrouble>> {
            Box::pin(async { Err(LedgerTrouble::Away("there is none".to_owned())) })
        }
    }

    struct World {
        run: Arc<Run>,
        blobs: Arc<Counting>,
        site: Arc<QuerySite>,
        _folder: tempfile::TempDir,
    }

    fn spec() -> ModelSpec {
        ModelSpec { context: 1024, ..Preset::Nano.recipe().model }
    }

    impl World {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let (run, blobs) = (Arc::new(Run::default()), Arc::new(Counting::default()));
            let store = QueryStore::new(Database::open(folder.path().join("hydra.db")).unwrap());
            let engine = Engine::start(1, 0).unwrap();
            let parts = QueryParts { engine, store, price: Amount::ZERO, free_tokens: 0, operator: None, log: None };
            let ports =
                QueryPorts { run: Arc::clone(&run) as _, blobs: Arc::clone(&blobs) as _, ledger: Arc::new(NoLedger) };
            let site = QuerySite::new(parts, ports, Arc::new(SystemClock), Arc::new(Hub::default()));
            Self { run, blobs, site: Arc::new(site), _folder: folder }
        }

        /// Has the run name this blob as its newest model.
        fn publish(&self, digest: Digest) {
            let (run, round) = (RunId(Digest::of(b"run")), Round(0));
            let newest = Newest { run, round, digest, model: spec(), contributors: Vec::new() };
            *self.run.newest.lock().unwrap() = Some(newest);
        }

        fn model(&self, seed: u64) -> Digest {
            let params = Params::initial(&spec(), &Seed::from_number(seed));
            self.blobs.put(&checkpoint::encode(&params).unwrap()).unwrap()
        }

        fn answers(&self) -> Option<Digest> {
            self.site.engine.newest().map(|model| model.digest)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_model_that_cannot_answer_is_told_of_once_and_tried_less_and_less_and_another_at_once() {
        let world = World::new();
        let (missing, garbage) = (Digest::of(b"nowhere"), world.blobs.put(b"no model").unwrap());
        world.publish(missing);
        let following = tokio::spawn(follow(Arc::clone(&world.site)));
        tokio::time::sleep(Duration::from_mins(10)).await;
        // After 1, 2, 4, 8, 16 and 32 seconds, then every minute.
        let tries = world.blobs.asked.lock().unwrap().len();
        assert!((14..=17).contains(&tries), "{tries}");
        world.publish(garbage);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(world.blobs.asked.lock().unwrap().contains(&garbage), "another one waits for nothing");
        let told = world.run.told.lock().unwrap().clone();
        assert_eq!(told.iter().map(|(digest, _)| *digest).collect::<Vec<_>>(), [missing, garbage]);
        assert!(told[0].1.contains("there is no blob") && told[1].1.contains("cannot be read"), "{told:?}");
        assert_eq!(world.answers(), None);
        let good = world.model(1);
        world.publish(good);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(world.answers(), Some(good));
        following.abort();
    }

    #[tokio::test]
    async fn a_newer_model_is_taken_up_while_others_keep_the_engine_busy() {
        let world = World::new();
        let [first, second] = [1, 2].map(|seed| world.model(seed));
        world.publish(first);
        let following = tokio::spawn(follow(Arc::clone(&world.site)));
        let until = async |what: &(dyn Fn() -> bool + Sync)| {
            let waiting = async {
                while !what() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_mins(1), waiting).await.unwrap();
        };
        until(&|| world.answers() == Some(first)).await;
        until(&|| world.site.engine.load() == (0, 0)).await;
        // Many long texts, behind which what a new model writes for the page waits.
        let all = limits::QUERIES_RUNNING_MAX + limits::QUERIES_WAITING_MAX - 1;
        let mut place = world.site.engine.reserve(all).unwrap();
        for seed in 0..all as u64 {
            let sampler = Sampler::new(Sampling::default(), &Seed::from_number(seed), &[]).unwrap();
            let prompt = vec![VOCABULARY_END as u16];
            let job = Job { prompt, most: 1000, sampler, stop: Vec::new(), likeliest: None };
            place.begin(job, Box::new(|_| true)).unwrap();
        }
        world.publish(second);
        until(&|| world.answers() == Some(second)).await;
        world.publish(first);
        until(&|| world.answers() == Some(first)).await;
        assert_eq!(world.site.samples.lock().unwrap().len(), 1, "what the second writes is still to come");
        drop(place);
        following.abort();
    }
}
