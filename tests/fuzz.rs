//! Every decoder of what comes from outside, fed with what nobody would send: with valid values that were altered a
//! little, so that what lies behind the first check is reached too, and with any bytes.
//!
//! `cargo test --test fuzz` tries some thousand inputs for each; `cargo bolero test --package hydra TARGET` (from
//! `cargo install cargo-bolero`) goes on from there, guided by coverage.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where it fails")]

use std::convert::Infallible;
use std::time::Duration;

use hydra::coordinator::Record;
use hydra::http::api;
use hydra::ledger::{Account, Action, Kind, Order, Purpose, Transfer, TransferId};
use hydra::model::checkpoint;
use hydra::protocol::{
    Aggregation, Amount, Call, Codec, Commitment, DeviceKind, Digest, Emission, InnerOptimizer, Keypair, Lateness,
    Lease, Message, ModelSpec, OuterOptimizer, RefusalReason, Round, RunSpec, Schedule, Seed, SessionId, Signed,
    Submission, Task, Time, Timing, Trail, Verdict, WorkerReply, WorkerRequest, limits, wire,
};
use hydra::training::{Corpus, CorpusError, Layout, Manifest, Params};
use hydra::verifier::{AdmissionJob, Candidate, Job, ReplayJob, StatisticsJob};
use hydra::worker::Finished;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Inputs for each target: a second or two for the slowest.
const INPUTS: usize = 20_000;

const MODEL: ModelSpec = ModelSpec { layers: 1, width: 8, heads: 2, hidden: 12, context: 8 };

fn key() -> Keypair {
    Keypair::from_secret(&[7; 32])
}

fn spec() -> RunSpec {
    RunSpec {
        seed: Seed::from_number(1),
        model: MODEL,
        dataset: Digest::of(b"dataset"),
        tasks_per_round: 2,
        inner_steps: 4,
        batch: 2,
        optimizer: InnerOptimizer::muon(),
        schedule: Schedule::new(3e-3, None),
        codec: Codec::Ternary,
        aggregation: Aggregation::default(),
        outer: OuterOptimizer { rate: 1.0, momentum: 0.0 },
        validation_windows: 8,
        emission: Emission::default(),
        timing: Timing {
            lease: Duration::from_mins(1),
            round: Duration::from_mins(5),
            appeal: Duration::from_mins(10),
        },
        audits: None,
        short: None,
    }
}

fn task() -> Task {
    Task::of_round(&spec(), Round(3), 1, Digest::of(b"base"))
}

fn submission() -> Submission {
    let states = task().segments().map(|segment| Digest::of(&segment.end.to_le_bytes())).collect();
    let trail = Trail { device: DeviceKind::Ndarray, states };
    Submission::new(task().id(), Digest::of(b"payload"), vec![4.0, 3.0, 2.5, 2.0], trail, task().tokens())
}

/// What a script makes of `valid`: its first byte says which of them, four bytes each say what to alter; or it is the
/// input itself.
fn near(valid: &[Vec<u8>], script: &[u8]) -> Vec<u8> {
    let Some((&first, rest)) = script.split_first() else { return Vec::new() };
    if first < 32 {
        return rest.to_vec();
    }
    let mut bytes = valid[usize::from(first) % valid.len()].clone();
    for change in rest.chunks_exact(4).take(8) {
        let at = usize::from(u16::from_be_bytes([change[1], change[2]])) % (bytes.len() + 1);
        match change[0] % 5 {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, change[3]),
            2 => drop(bytes.drain(at..(at + 1).min(bytes.len()))),
            3 => bytes.get_mut(at).into_iter().for_each(|byte| *byte ^= change[3] | 1),
            _ => {
                bytes.get_mut(at).into_iter().for_each(|byte| *byte = [0, 1, 0x7f, 0x80, 0xff][change[3] as usize % 5])
            }
        }
    }
    bytes
}

/// Tries a target on `valid` values and on what is near them. A macro, because a target is named by the function that it
/// stands in.
macro_rules! fuzz {
    ($valid:expr, $target:expr) => {{
        let (valid, target): (Vec<Vec<u8>>, _) = ($valid, $target);
        valid.iter().for_each(|bytes| target(bytes.as_slice()));
        bolero::check!().with_iterations(INPUTS).for_each(|script: &[u8]| target(&near(&valid, script)));
    }};
}

/// Whatever decodes is encoded to the same bytes, and so has one name only.
fn canonical<T: Serialize + DeserializeOwned>(bytes: &[u8], limit: usize) -> Option<T> {
    let value: T = wire::decode(bytes, limit).ok()?;
    assert_eq!(wire::encode(&value), bytes);
    Some(value)
}

/// Whatever is read from JSON can be written and read again.
fn json<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let value: T = serde_json::from_slice(bytes).ok()?;
    let again = serde_json::to_vec(&value).unwrap();
    serde_json::from_slice::<T>(&again).unwrap();
    Some(value)
}

fn requests() -> Vec<WorkerRequest> {
    vec![
        WorkerRequest::Lease { tokens_per_second: 300 },
        WorkerRequest::Commit(submission().commitment),
        WorkerRequest::Submit(submission()),
        WorkerRequest::GiveBack(task().id()),
    ]
}

fn replies() -> Vec<WorkerReply> {
    vec![
        WorkerReply::Leased(Box::new(Lease { task: task(), deadline: Time(9) })),
        WorkerReply::Wait,
        WorkerReply::Committed(task().id()),
        WorkerReply::Refused { task: Some(task().id()), reason: RefusalReason::TaskNotOpen },
        WorkerReply::Finished,
    ]
}

fn call() -> Call {
    let (method, path) = ("POST".to_owned(), "/hydra/v1/lease".to_owned());
    Call { session: SessionId(Digest::of(b"s")), method, path, body: Digest::of(b""), time: Time(5), nonce: [3; 16] }
}

fn order() -> Order {
    let amount = Amount::from_micro(5).unwrap();
    Order {
        id: TransferId::pay(spec().id(), Round(1), 2),
        valid_until: Time(9),
        action: Action::Send { to: key().public(), amount },
    }
}

#[test]
fn signed_messages() {
    fn open<M: Message + std::fmt::Debug>(signed: &Signed) {
        // Forged or not, claims are read to see where they belong.
        let _ = signed.claimed_message::<M>();
        if let Ok((signer, _)) = signed.open::<M>() {
            assert_eq!(signer, signed.claimed_signer());
        }
    }
    let mut signed: Vec<Signed> = requests().iter().map(|request| Signed::seal(&key(), request)).collect();
    signed.extend([Signed::seal(&key(), &call()), Signed::seal(&key(), &order())]);
    let valid = signed.iter().map(wire::encode).chain(signed.iter().map(|signed| serde_json::to_vec(signed).unwrap()));
    fuzz!(valid.collect(), |bytes: &[u8]| {
        let from_wire = canonical::<Signed>(bytes, limits::MESSAGE_BYTES_MAX);
        for signed in from_wire.into_iter().chain(json::<Signed>(bytes)) {
            open::<WorkerRequest>(&signed);
            open::<Call>(&signed);
            open::<Order>(&signed);
            open::<Verdict>(&signed);
        }
    });
}

#[test]
fn worker_requests() {
    fuzz!(requests().iter().map(wire::encode).collect(), |bytes: &[u8]| {
        canonical::<WorkerRequest>(bytes, limits::MESSAGE_BYTES_MAX);
        canonical::<Commitment>(bytes, limits::MESSAGE_BYTES_MAX);
    });
}

#[test]
fn worker_replies() {
    let valid = replies().iter().map(|reply| serde_json::to_vec(reply).unwrap()).collect();
    fuzz!(valid, |bytes: &[u8]| {
        if let Some(WorkerReply::Leased(lease)) = json::<WorkerReply>(bytes) {
            let _ = (lease.task.id(), lease.task.model.validate());
        }
    });
}

#[test]
fn calls_in_headers() {
    fuzz!(vec![wire::encode(&call())], |bytes: &[u8]| {
        canonical::<Call>(bytes, limits::HTTP_CALL_BYTES_MAX);
    });
}

#[test]
fn lent_jobs_and_other_bodies() {
    let candidate = Candidate {
        task: task(),
        lateness: Lateness::NONE,
        worker: key().public(),
        payload: Digest::of(b"p"),
        norm: 1.5,
        established: true,
    };
    let statistics = StatisticsJob {
        candidates: vec![candidate],
        accepted: vec![],
        recent_norms: vec![1.0, 2.0],
        places: Seed::from_number(1),
    };
    let admission =
        AdmissionJob { task: task(), worker: key().public(), submission: submission(), base_loss: Some(3.0) };
    let (worker, payload, trail) = (key().public(), Digest::of(b"payload"), submission().trail());
    let replay = ReplayJob { task: task(), worker, payload, trail, not: vec![key().public()], turn: 1 };
    let jobs =
        [Job::Admission(Box::new(admission)), Job::Statistics(Box::new(statistics)), Job::Replay(Box::new(replay))];
    let id = Digest::of(b"job");
    let mut valid: Vec<_> =
        jobs.into_iter().map(|job| serde_json::to_vec(&api::LentJob { id, job }).unwrap()).collect();
    let verdicts = api::Verdicts { id, verdicts: vec![Signed::seal(&key(), &call())] };
    valid.extend([serde_json::to_vec(&verdicts).unwrap(), br#"{"key":"00","admitted":true}"#.to_vec()]);
    fuzz!(valid, |bytes: &[u8]| {
        json::<api::LentJob>(bytes);
        json::<api::Verdicts>(bytes);
        json::<api::Register>(bytes);
        json::<api::NewInvite>(bytes);
        json::<api::KeyChange>(bytes);
    });
}

#[test]
fn payloads_of_every_codec() {
    let layout = Layout::of(&MODEL);
    let update = Params::initial(&MODEL, &Seed::from_number(1));
    for codec in [Codec::Fp32, Codec::Bf16, Codec::Int8, Codec::Int4, Codec::Ternary] {
        let valid = codec.encode(&update, &Seed::from_number(2)).unwrap();
        let reference = valid.clone();
        fuzz!(vec![valid], |bytes: &[u8]| {
            if let Ok(decoded) = codec.decode(&layout, bytes) {
                assert!(decoded.is_finite());
                codec.check(&layout, bytes).unwrap();
            }
            let _ = codec.difference(&layout, bytes, &reference);
        });
    }
}

#[test]
fn checkpoints() {
    let params = Params::initial(&MODEL, &Seed::from_number(1));
    fuzz!(vec![checkpoint::encode(&params).unwrap()], |bytes: &[u8]| {
        if let Ok(params) = checkpoint::decode(bytes, &MODEL) {
            assert_eq!(params.layout(), &Layout::of(&MODEL));
        }
    });
}

#[test]
fn datasets() {
    let mut corpus = Corpus::default();
    for document in 0..40 {
        corpus.push(format!("document {document}: some text to train on").as_bytes()).unwrap();
    }
    let mut shards = Vec::new();
    let stored = corpus.store(|shard| {
        shards.push(shard.to_vec());
        Ok::<_, Infallible>(())
    });
    let manifest = stored.unwrap();
    let valid = [vec![manifest.encode()], shards.clone()].concat();
    fuzz!(valid, |bytes: &[u8]| {
        if let Ok(manifest) = Manifest::decode(bytes) {
            assert_eq!(manifest.encode(), bytes);
            let _ = Corpus::load(&manifest, |_| Ok::<_, CorpusError>(shards[0].clone()));
        }
        let _ = Corpus::load(&manifest, |_| Ok::<_, CorpusError>(bytes.to_vec()));
    });
}

#[test]
fn journals_and_records() {
    let transfer = Transfer {
        id: TransferId::pay(spec().id(), Round(1), 2),
        debit: Account::Emission,
        credit: Account::Wallet(key().public()),
        amount: Amount::from_micro(7).unwrap(),
        kind: Kind::Single,
        purpose: Purpose::Sent { order: Digest::of(b"order") },
    };
    let opened = Record::RoundOpened { round: Round(0), base: Digest::of(b"base"), momentum: None, at: Time(3) };
    let finished = Finished { submission: submission(), payload: b"payload".to_vec() };
    let valid = vec![
        transfer.encode(),
        wire::encode(&order()),
        wire::encode(&opened),
        wire::encode(&spec()),
        wire::encode(&finished),
    ];
    fuzz!(valid, |bytes: &[u8]| {
        if let Some(transfer) = canonical::<Transfer>(bytes, limits::TRANSFER_BYTES_MAX) {
            let _ = transfer.content();
        }
        canonical::<Order>(bytes, limits::MESSAGE_BYTES_MAX);
        canonical::<Record>(bytes, limits::RECORD_BYTES_MAX);
        if let Some(spec) = canonical::<RunSpec>(bytes, limits::MESSAGE_BYTES_MAX) {
            let _ = (spec.validate(), spec.id());
        }
        canonical::<Finished>(bytes, limits::RECORD_BYTES_MAX);
    });
}
