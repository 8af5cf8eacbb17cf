use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::query_metrics::QueryMetrics;
use crate::coordinator::{Report, State};
use crate::ledger::Totals;
use crate::protocol::{Balance, PublicKey, Time, limits};
use crate::runtime::Note;

/// How long after its last call a worker still counts as being there.
const SEEN_FOR: Duration = Duration::from_mins(1);

/// What goes on in a server: events for whoever watches, numbers for whoever measures.
#[derive(Debug)]
pub struct Hub {
    events: broadcast::Sender<String>,
    registry: Registry,
    requests: Family<RouteLabels, Counter>,
    latency: Family<PathLabels, Histogram, fn() -> Histogram>,
    pub(super) received: Counter,
    pub(super) sent: Counter,
    pub(super) connections: Gauge,
    round: Gauge,
    tokens: Gauge,
    loss: Gauge<f64, AtomicU64>,
    accepted: Counter,
    rejected: Counter,
    audited: Counter,
    convicted: Counter,
    workers: Gauge<i64, AtomicI64>,
    transfers: Gauge,
    supply: Gauge,
    unvested: Gauge,
    burned: Gauge,
    signed: Gauge,
    refused: Family<CodeLabels, Counter>,
    pub(super) queries: QueryMetrics,
    seen: Mutex<BTreeMap<PublicKey, Seen>>,
    open: Mutex<BTreeMap<IpAddr, usize>>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    at: Time,
    /// Whether it knows that the run is over.
    told: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    path: &'static str,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabels {
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PathLabels {
    path: &'static str,
}

impl Default for Hub {
    fn default() -> Self {
        // From 0.1 ms to 26 s: an answer from memory, and a long poll.
        let latency: Family<PathLabels, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(exponential_buckets(1e-4, 4.0, 10)));
        let mut hub = Self {
            events: broadcast::Sender::new(limits::HTTP_EVENTS_KEPT),
            registry: Registry::with_prefix("hydra"),
            requests: Family::default(),
            latency,
            received: Counter::default(),
            sent: Counter::default(),
            connections: Gauge::default(),
            round: Gauge::default(),
            tokens: Gauge::default(),
            loss: Gauge::default(),
            accepted: Counter::default(),
            rejected: Counter::default(),
            audited: Counter::default(),
            convicted: Counter::default(),
            workers: Gauge::default(),
            transfers: Gauge::default(),
            supply: Gauge::default(),
            unvested: Gauge::default(),
            burned: Gauge::default(),
            signed: Gauge::default(),
            refused: Family::default(),
            queries: QueryMetrics::default(),
            seen: Mutex::default(),
            open: Mutex::default(),
        };
        let registry = &mut hub.registry;
        registry.register("http_requests", "Requests by path and status", hub.requests.clone());
        registry.register("http_seconds", "Time to the head of the answer, seconds", hub.latency.clone());
        registry.register("http_received_bytes", "Bytes of request bodies", hub.received.clone());
        registry.register("blob_sent_bytes", "Bytes of blobs sent", hub.sent.clone());
        registry.register("http_connections", "Open connections", hub.connections.clone());
        registry.register("round", "Rounds done", hub.round.clone());
        registry.register("tokens", "Accepted tokens", hub.tokens.clone());
        registry.register("validation_loss", "Newest validation loss, nats a token", hub.loss.clone());
        registry.register("tasks_accepted", "Tasks accepted by this process", hub.accepted.clone());
        registry.register("tasks_rejected", "Submissions rejected by this process", hub.rejected.clone());
        registry.register("audits_ended", "Audits that ended in this process", hub.audited.clone());
        registry.register("results_false", "Results found false by this process", hub.convicted.clone());
        registry.register("ledger_transfers", "Transfers in the ledger", hub.transfers.clone());
        registry.register("ledger_head_size", "Transfers under the newest signed head", hub.signed.clone());
        registry.register("ledger_supply_micro", "µHYD that exist, unvested ones included", hub.supply.clone());
        registry.register("ledger_unvested_micro", "µHYD that have not vested", hub.unvested.clone());
        registry.register("ledger_burned_micro", "µHYD that were burned", hub.burned.clone());
        registry.register("ledger_refused", "Requests over HTTP that the ledger refused, by code", hub.refused.clone());
        registry.register("workers", "Workers heard from in the last minute", hub.workers.clone());
        hub.queries.register(&mut hub.registry);
        hub
    }
}

impl Hub {
    /// Takes up the numbers of a run where it stands: what is told from now on changes them.
    pub fn begin(&self, state: &State) {
        let measured = state.lineage().iter().enumerate().rev().find_map(|(round, model)| Some((round, model.loss?)));
        if let Some((round, loss)) = measured {
            self.round.set(i64::try_from(round).unwrap_or(i64::MAX));
            self.loss.set(loss);
        }
        self.tokens.set(i64::try_from(state.tokens()).unwrap_or(i64::MAX));
    }

    /// Passes on what happens.
    pub fn see(&self, note: &Note) {
        let Some(event) = event(note) else { return };
        if let Note::Coordinator(report) = note {
            match report {
                Report::Rejected { .. } => drop(self.rejected.inc()),
                Report::RoundClosed { accepted, .. } => drop(self.accepted.inc_by(u64::from(*accepted))),
                Report::Evaluated { round, loss, tokens } => {
                    self.round.set(i64::from(round.0));
                    self.tokens.set(i64::try_from(*tokens).unwrap_or(i64::MAX));
                    self.loss.set(*loss);
                }
                Report::Audited { .. } => drop(self.audited.inc()),
                Report::Convicted { .. } => drop(self.convicted.inc()),
                Report::Stuck { .. }
                | Report::LeftOut { .. }
                | Report::Forfeited { .. }
                | Report::StruckOff { .. }
                | Report::Finished => {}
            }
        }
        // Nobody may be watching.
        let _ = self.events.send(event.to_string());
    }

    /// Where events are heard, or nothing when too many listen.
    pub(super) fn watch(&self) -> Option<broadcast::Receiver<String>> {
        (self.events.receiver_count() < limits::HTTP_WATCHERS_MAX).then(|| self.events.subscribe())
    }

    pub(super) fn answered(&self, path: &'static str, status: u16, took: Duration) {
        self.requests.get_or_create(&RouteLabels { path, status }).inc();
        self.latency.get_or_create(&PathLabels { path }).observe(took.as_secs_f64());
    }

    /// The ledger has refused something.
    pub(super) fn refused(&self, code: &'static str) {
        self.refused.get_or_create(&CodeLabels { code }).inc();
    }

    /// How the ledger stands: its sums, its transfers, and how many of them are under a signed head.
    pub(super) fn ledger(&self, totals: &Totals, transfers: u64, signed: u64) {
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let micro = |balance: Balance| i64::try_from(balance.0).unwrap_or(i64::MAX);
        self.transfers.set(number(transfers));
        self.signed.set(number(signed));
        self.supply.set(micro(totals.supply));
        self.unvested.set(micro(totals.unvested));
        self.burned.set(micro(totals.burned));
    }

    /// A worker has called. `told` says that it has just been told that the run is over.
    pub(super) fn heard(&self, worker: PublicKey, at: Time, told: bool) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() < limits::WORKERS_MAX || seen.contains_key(&worker) {
            seen.insert(worker, Seen { at, told });
        }
    }

    /// Workers heard from lately.
    pub(super) fn present(&self, now: Time) -> u64 {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|_, seen| now.since(seen.at) < SEEN_FOR);
        seen.len() as u64
    }

    /// When each of these workers last called, if lately.
    pub(super) fn seen(&self, now: Time, workers: impl Iterator<Item = PublicKey>) -> Vec<Option<Time>> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        workers.map(|key| seen.get(&key).map(|seen| seen.at).filter(|at| now.since(*at) < SEEN_FOR)).collect()
    }

    /// Whether every worker that was heard from lately knows that the run is over.
    #[must_use]
    pub fn all_told(&self, now: Time) -> bool {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.values().all(|seen| seen.told || now.since(seen.at) >= SEEN_FOR)
    }

    /// Counts a new connection from `address`, unless there are `most` already.
    pub(super) fn connect(&self, address: IpAddr, most: usize) -> bool {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(address).or_default();
        if *count >= most {
            return false;
        }
        *count += 1;
        self.connections.inc();
        true
    }

    pub(super) fn disconnect(&self, address: IpAddr) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&address);
            }
        }
        self.connections.dec();
    }

    /// All numbers in Prometheus' text format.
    pub(super) fn metrics(&self, now: Time) -> String {
        self.workers.set(i64::try_from(self.present(now)).unwrap_or(i64::MAX));
        let mut text = String::new();
        if prometheus_client::encoding::text::encode(&mut text, &self.registry).is_err() {
            // Writing to a string cannot fail.
            let _ = write!(text, "# EOF");
        }
        text
    }
}

/// What watchers are told of a note.
fn event(note: &Note) -> Option<Value> {
    match note {
        Note::Coordinator(Report::Rejected { round, worker, layer, reason }) => Some(
            json!({ "event": "rejected", "round": round, "worker": worker, "layer": layer, "reason": reason.to_string() }),
        ),
        Note::Coordinator(Report::RoundClosed { round, accepted, late, tokens }) => Some(
            json!({ "event": "round_closed", "round": round, "accepted": accepted, "late": late, "tokens": tokens }),
        ),
        Note::Coordinator(Report::LeftOut { round, payload }) => {
            Some(json!({ "event": "left_out", "round": round, "payload": payload }))
        }
        Note::Coordinator(Report::Evaluated { round, loss, tokens }) => {
            Some(json!({ "event": "evaluated", "round": round, "loss": loss, "tokens": tokens }))
        }
        Note::Coordinator(Report::Audited { round, worker, ending }) => {
            Some(json!({ "event": "audited", "round": round, "worker": worker, "ending": ending }))
        }
        Note::Coordinator(Report::Convicted { round, worker, task }) => {
            Some(json!({ "event": "convicted", "round": round, "worker": worker, "task": task }))
        }
        Note::Coordinator(Report::Forfeited { worker, lost }) => {
            Some(json!({ "event": "forfeited", "worker": worker, "lost": lost }))
        }
        Note::Coordinator(Report::StruckOff { verifier }) => {
            Some(json!({ "event": "struck_off", "verifier": verifier }))
        }
        Note::Coordinator(Report::Stuck { round, tasks, reason }) => {
            let reason = reason.as_ref().map(ToString::to_string);
            Some(json!({ "event": "stuck", "round": round, "tasks": tasks, "reason": reason }))
        }
        Note::Coordinator(Report::Finished) => Some(json!({ "event": "finished" })),
        Note::CheckFailed { error } => Some(json!({ "event": "check_failed", "error": error })),
        Note::Step { .. } | Note::TaskFailed { .. } | Note::Ledger { .. } | Note::Fatal(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::coordinator::Record;
    use crate::protocol::{Digest, Round};

    /// Every name that `/metrics` can have.
    fn names() -> BTreeSet<String> {
        let hub = Hub::default();
        // What has labels is there from when it is first counted.
        hub.answered("/", 200, Duration::ZERO);
        hub.refused("zero_amount");
        hub.queries.ended("stop");
        let text = hub.metrics(Time(0));
        let mut names = BTreeSet::new();
        for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, kind) = line.split_once(' ').unwrap();
            let endings: &[&str] = match kind {
                "counter" => &["_total"],
                "histogram" => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            names.extend(endings.iter().map(|ending| format!("{name}{ending}")));
        }
        assert!(names.len() > 20, "{text}");
        names
    }

    #[test]
    fn a_restarted_server_has_the_numbers_of_the_run_at_once() {
        let spec = crate::testing::spec(1);
        let opened = |round| Record::RoundOpened {
            round: Round(round),
            base: Digest::of(b"model"),
            momentum: None,
            at: Time(0),
        };
        let records = [opened(0), Record::Evaluated { round: Round(0), loss: 5.5 }, opened(1), opened(2)];
        let measured = Record::Evaluated { round: Round(1), loss: 4.5 };
        let state = State::replay(spec, records.into_iter().chain([measured]));
        let hub = Hub::default();
        hub.begin(&state);
        let text = hub.metrics(Time(0));
        for line in ["hydra_round 1\n", "hydra_validation_loss 4.5\n", "hydra_tokens 0\n"] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }

    #[test]
    fn the_dashboard_and_the_book_ask_for_numbers_that_there_are() {
        let names = names();
        for file in ["docs/deploy/grafana.json", "docs/src/operations.md"] {
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
            let text = std::fs::read_to_string(path).unwrap();
            let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
            let asked: BTreeSet<&str> = words.filter(|word| word.starts_with("hydra_")).collect();
            assert!(asked.len() > 4, "{file} asks for nothing");
            for name in asked {
                assert!(names.contains(name), "{file} asks for {name}");
            }
        }
        let dashboard =
            std::fs::read(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/deploy/grafana.json"));
        let dashboard: Value = serde_json::from_slice(&dashboard.unwrap()).unwrap();
        assert!(dashboard["panels"].as_array().unwrap().len() > 10);
    }
}
