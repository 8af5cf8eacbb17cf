//! Claim: with 1 000 in flight the ledger's actor makes over twenty times as many signed transfers durable as one commit a
//! transfer allows, and ten times as many as PostgreSQL with as many in flight: more than 50 000 a second on two cores with
//! little else to do, and 1.2 times fewer with five million behind them. (Signatures are checked where orders come in, which
//! is not counted.)
//!
//! `cargo bench --profile dev --bench ledger [-- rows N]`: with `rows`, the ledger is filled to N transfers and measured
//! again. PostgreSQL takes
//! part where its programs are installed (Debian: `postgresql`): a new cluster with default settings but for the number of
//! connections, one prepared call a transfer through pgbench, which does what the ledger does in SQL: two balances, the
//! check of the one, a row under a unique id.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a bench keeps time, and stops where it fails"
)]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use actix::{Actor, Addr, AsyncContext, Context, Handler, Message, System};
use hydra::ledger::{
    Action, Answer, Ask, CheckedOrder, Desk, EconomyConfig, JournalStore, Ledger, LedgerActor, LedgerConfig, Order,
    Request, TransferId,
};
use hydra::protocol::{
    Amount, Digest, Emission, Keypair, Layer, Outcome, PublicKey, Round, RunId, Signed, TaskId, Verdict,
};
use hydra::runtime::{Clock, SystemClock};
use hydra::store::{Database, GroupCommit, LedgerStore};
use rayon::prelude::*;

/// Wallets that send to each other.
const WALLETS: usize = 1_000;
/// Transfers in one measurement.
const TRANSFERS: usize = 100_000;

fn key(n: usize) -> Keypair {
    Keypair::from_secret(Digest::of(&n.to_le_bytes()).as_bytes())
}

fn verifier() -> Keypair {
    key(1 << 40)
}

fn config() -> LedgerConfig {
    let emission = Emission {
        initial: Amount::from_hyd(1_000_000),
        halving_rounds: 1_000_000,
        cap: Amount::from_hyd(100_000_000),
    };
    let mut economy = EconomyConfig { vesting_rewards: 1, ..EconomyConfig::emitting(emission) };
    economy.audit.floor = hydra::protocol::Ppm::ONE;
    LedgerConfig { economy: economy.check().unwrap(), verifiers: [verifier().public()].into() }
}

/// Rounds in which every wallet earns, so that something has vested.
fn rounds() -> impl Iterator<Item = Request> {
    let run = RunId(Digest::of(b"run"));
    (0..2).map(move |round: u32| {
        let verdict = |worker: usize| {
            let task = TaskId(Digest::of(&[round.to_le_bytes(), (worker as u32).to_le_bytes()].concat()));
            let outcome = Outcome::Accepted { layer: Layer::Statistics, tokens: 1, norm: 1.0 };
            Signed::seal(
                &verifier(),
                &Verdict {
                    task,
                    worker: key(worker).public(),
                    payload: Digest::of(b""),
                    work: 0,
                    by: None,
                    turn: 0,
                    outcome,
                },
            )
        };
        Request::PayRound { run, round: Round(round), verdicts: (0..WALLETS).map(verdict).collect() }
    })
}

/// `count` orders, each from one wallet to another, signed and checked; and how long checking one took, in µs.
fn orders(count: usize) -> (Vec<Request>, f64) {
    let keys: Vec<Keypair> = (0..WALLETS).map(key).collect();
    let publics: Vec<PublicKey> = keys.iter().map(Keypair::public).collect();
    let (now, first) = (SystemClock.now(), numbers(count));
    let sign = |n: usize| {
        let (from, to) = (n * 7 % WALLETS, (n * 13 + 1) % WALLETS);
        let to = if from == to { (to + 1) % WALLETS } else { to };
        let action = Action::Send { to: publics[to], amount: Amount::from_micro(1 + n as i64 % 100).unwrap() };
        let valid_until = now + std::time::Duration::from_hours(1);
        Signed::seal(&keys[from], &Order { id: TransferId::request(now, first + n as u64), valid_until, action })
    };
    let signed: Vec<Signed> = (0..count).into_par_iter().map(sign).collect();
    let start = Instant::now();
    let _ = signed[..1_000].iter().map(CheckedOrder::check).collect::<Vec<_>>();
    let each = start.elapsed().as_secs_f64() * 1e3;
    (signed.par_iter().map(|signed| Request::Order(CheckedOrder::check(signed).unwrap())).collect(), each)
}

/// The first of `count` numbers that never come twice in a run; they rise, as the ids of requests do.
fn numbers(count: usize) -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(count as u64, Ordering::Relaxed)
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let rows = arguments.windows(2).find(|pair| pair[0] == "rows").map_or(0, |pair| pair[1].parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    println!("{:<46} {:>9} {:>9} {:>9}", "durable transfers", "a second", "p50 ms", "p99 ms");
    let row = |name: &str, (rate, p50, p99): (f64, f64, f64)| println!("{name:<46} {rate:>9.0} {p50:>9.2} {p99:>9.2}");

    let ledger = folder.path().join("hydra.db");
    let system = System::new();
    let actor = system.block_on(async { open(&ledger) });
    system.block_on(drive(&actor, rounds().collect(), 1));
    let mut check = 0.0;
    for in_flight in [64, 1_000, 10_000] {
        let (orders, each) = orders(TRANSFERS);
        check = each;
        row(&format!("Hydra, {in_flight} in flight"), system.block_on(drive(&actor, orders, in_flight)));
    }
    row("SQLite, one commit a transfer", one_by_one(&folder.path().join("single.db")));
    match postgres_programs() {
        Some(programs) => {
            for clients in [64, 1_000] {
                row(&format!("PostgreSQL, {clients} in flight"), postgres(&programs, clients));
            }
        }
        None => println!("PostgreSQL is not installed: not compared"),
    }
    println!("(checking a signature takes {check:.0} µs of one core, before the ledger)");
    if rows > 0 {
        system.block_on(fill(&actor, rows));
        let (orders, _) = orders(TRANSFERS);
        row(&format!("Hydra, 1000 in flight, {rows} rows before"), system.block_on(drive(&actor, orders, 1_000)));
    }
}

fn open(path: &Path) -> Addr<LedgerActor> {
    let store = LedgerStore::new(Database::open(path).unwrap()).unwrap();
    let reader = LedgerStore::read_only(path).unwrap();
    let writer = GroupCommit::start(store, reader, key(1 << 41)).unwrap();
    LedgerActor::new(Desk::open(config(), Box::new(writer)).unwrap(), Arc::new(SystemClock)).start()
}

/// Asks for one thing after the other, so many at a time.
struct Client {
    ledger: Addr<LedgerActor>,
    left: std::vec::IntoIter<Request>,
    sent: VecDeque<Instant>,
    times: Rc<RefCell<Vec<f64>>>,
    done: Option<tokio::sync::oneshot::Sender<()>>,
}

struct Go(usize);
impl Message for Go {
    type Result = ();
}

impl Client {
    fn next(&mut self, ctx: &mut Context<Self>) {
        if let Some(request) = self.left.next() {
            self.sent.push_back(Instant::now());
            self.ledger.do_send(Ask { request, reply: ctx.address().recipient() });
        } else if self.sent.is_empty()
            && let Some(done) = self.done.take()
        {
            done.send(()).unwrap();
        }
    }
}

impl Actor for Client {
    type Context = Context<Self>;
    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(1 << 20);
    }
}

impl Handler<Go> for Client {
    type Result = ();
    fn handle(&mut self, Go(in_flight): Go, ctx: &mut Self::Context) {
        (0..in_flight).for_each(|_| self.next(ctx));
    }
}

impl Handler<Answer> for Client {
    type Result = ();
    fn handle(&mut self, answer: Answer, ctx: &mut Self::Context) {
        assert!(!matches!(answer, Answer::Refused { .. }), "{answer:?}");
        // Answers come in the order of the requests.
        self.times.borrow_mut().extend(self.sent.pop_front().map(|sent| sent.elapsed().as_secs_f64() * 1e3));
        self.next(ctx);
    }
}

async fn drive(ledger: &Addr<LedgerActor>, requests: Vec<Request>, in_flight: usize) -> (f64, f64, f64) {
    let count = requests.len();
    let times = Rc::new(RefCell::new(Vec::with_capacity(count)));
    let (done, wait) = tokio::sync::oneshot::channel();
    let client = Client {
        ledger: ledger.clone(),
        left: requests.into_iter(),
        sent: VecDeque::new(),
        times: Rc::clone(&times),
        done: Some(done),
    };
    let start = Instant::now();
    client.start().do_send(Go(in_flight));
    wait.await.unwrap();
    let seconds = start.elapsed().as_secs_f64();
    summary(&mut times.borrow_mut(), seconds)
}

fn summary(times: &mut [f64], seconds: f64) -> (f64, f64, f64) {
    times.sort_by(f64::total_cmp);
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    (times.len() as f64 / seconds, at(0.5), at(0.99))
}

/// Queries, each held and settled (four transfers), until there are so many rows. How fast that goes is shown on the way.
async fn fill(ledger: &Addr<LedgerActor>, rows: usize) {
    let part = 500_000;
    let wallets: Vec<PublicKey> = (0..WALLETS).map(|n| key(n).public()).collect();
    for _ in 0..rows.div_ceil(part) {
        let (now, first) = (SystemClock.now(), numbers(part));
        let mut requests = Vec::new();
        for n in 0..part / 4 {
            let (query, wallet) = (TransferId::request(now, first + n as u64), wallets[n % WALLETS]);
            let [held, cost] = [100, 40].map(|micro| Amount::from_micro(micro).unwrap());
            let expires = now + std::time::Duration::from_mins(50);
            requests.push(Request::Hold { id: query, wallet, amount: held, expires });
            requests.push(Request::Settle { query, wallet, cost, contributors: Vec::new() });
        }
        let (rate, ..) = drive(ledger, requests, 1_000).await;
        println!("  filling: {:.0} transfers a second", rate * 2.0);
    }
}

fn one_by_one(path: &Path) -> (f64, f64, f64) {
    let mut store = LedgerStore::new(Database::open(path).unwrap()).unwrap();
    let mut ledger = Ledger::open(config(), &mut store).unwrap();
    let signer = key(1 << 41);
    let mut write = |request: &Request| {
        let (answer, mut batch) = ledger.apply(ledger.decide(SystemClock.now(), request).unwrap());
        assert!(!matches!(answer, Answer::Refused { .. }), "{answer:?}");
        batch.seal(&signer);
        store.append(&batch).unwrap();
    };
    rounds().for_each(|round| write(&round));
    let (orders, _) = orders(1_000);
    let start = Instant::now();
    let mut times = Vec::new();
    for order in &orders {
        let start = Instant::now();
        write(order);
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    summary(&mut times, start.elapsed().as_secs_f64())
}

/// The folder of `initdb`, `pg_ctl` and `pgbench`.
fn postgres_programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    versions.flatten().map(|version| version.path().join("bin")).find(|bin| bin.join("initdb").exists())
}

/// pgbench on a new cluster. PostgreSQL does not run as root: then its own user runs it.
fn postgres(programs: &Path, clients: usize) -> (f64, f64, f64) {
    let folder = tempfile::tempdir().unwrap();
    let script = r#"
set -eu
cd "$FOLDER"
export PATH="$BIN:$PATH" PGHOST="$FOLDER" PGDATABASE=postgres
initdb -D data -A trust >initdb.log
pg_ctl -D data -w -l log -o "-k $FOLDER -c listen_addresses='' -c max_connections=1100" start >start.log
trap 'pg_ctl -D data -m immediate stop >stop.log' EXIT
psql -q <<'SQL'
CREATE TABLE accounts (account bigint PRIMARY KEY, debits bigint NOT NULL, credits bigint NOT NULL);
CREATE TABLE journal (sequence bigserial PRIMARY KEY, id bytea NOT NULL UNIQUE, debit bigint NOT NULL, credit bigint NOT NULL,
    amount bigint NOT NULL, body bytea NOT NULL, chain bytea NOT NULL);
INSERT INTO accounts SELECT n, 0, 1000000000 FROM generate_series(0, 999) n;
CREATE SEQUENCE ids;
CREATE FUNCTION transfer(source bigint, target bigint, sum bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    -- The lower account first, so that two transfers never wait for each other.
    PERFORM 1 FROM accounts WHERE account IN (source, target) ORDER BY account FOR UPDATE;
    UPDATE accounts SET debits = debits + sum WHERE account = source AND credits - debits >= sum;
    IF NOT FOUND THEN RAISE 'insufficient'; END IF;
    UPDATE accounts SET credits = credits + sum WHERE account = target;
    INSERT INTO journal (id, debit, credit, amount, body, chain) VALUES (
        decode(lpad(to_hex(nextval('ids')), 32, '0'), 'hex'), source, target, sum, decode(repeat('ab', 120), 'hex'),
        decode(repeat('cd', 32), 'hex'));
END $$;
SQL
cat >transfer.sql <<'SQL'
\set source random(0, 999)
\set step random(1, 999)
SELECT transfer(:source::bigint, (:source::bigint + :step::bigint) % 1000, 1);
SQL
pgbench -n -M prepared -f transfer.sql -c "$CLIENTS" -j 2 -T 10 -l --log-prefix=times >result
sed -n 's/^tps = \([0-9.]*\).*/\1/p' result
cat times* | awk '{print $3}' | sort -n | awk '{a[NR]=$1} END {print a[int(NR*0.5)]; print a[int(NR*0.99)]}'
"#;
    let as_root = Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout == b"0\n");
    let mut command = if as_root {
        assert!(Command::new("chown").arg("postgres").arg(folder.path()).status().unwrap().success());
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "bash", "-c", script]);
        command
    } else {
        let mut command = Command::new("bash");
        command.args(["-c", script]);
        command
    };
    let output =
        command.env("BIN", programs).env("FOLDER", folder.path()).env("CLIENTS", clients.to_string()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let numbers: Vec<f64> = text.lines().map(|line| line.parse().unwrap()).collect();
    let &[rate, p50, p99] = numbers.as_slice() else { panic!("{text}") };
    (rate, p50 / 1e3, p99 / 1e3)
}
