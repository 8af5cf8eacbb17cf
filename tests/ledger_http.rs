//! `hydra wallet` and `hydra ledger` over the network: what they do on a state directory, they do for a ledger on another
//! computer.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops where it fails")]
#![cfg(unix)]

mod common;

use std::net::{TcpListener, TcpStream};
use std::process::Child;
use std::sync::Arc;

use common::Hydra;
use hydra::http::Client;
use hydra::protocol::Keypair;
use hydra::runtime::SystemClock;

/// A ledger that is served, in a state directory in which two workers have earned something.
struct Served {
    books: Hydra,
    child: Child,
    url: String,
    /// Where those who use it from afar keep their keys.
    wallets: Hydra,
}

impl Served {
    fn new(rounds: &str) -> Self {
        let books = Hydra::new();
        books.up_json(&["--rounds", rounds, "--inner-steps", "1"]);
        let wallets = Hydra::new();
        std::fs::create_dir_all(wallets.state().join("keys")).unwrap();
        for name in ["worker-1.key", "worker-2.key"] {
            std::fs::copy(books.state().join("keys").join(name), wallets.state().join("keys").join(name)).unwrap();
        }
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let child = books.spawn(&["ledger", "serve", "--listen", &address.to_string()]);
        common::wait_for(|| TcpStream::connect(address).is_ok());
        Self { books, child, url: format!("http://{address}"), wallets }
    }

    /// A command for the ledger over the network.
    fn ok(&self, arguments: &[&str]) -> String {
        self.wallets.ok(&[arguments, &["--coordinator", &self.url]].concat())
    }

    fn fails(&self, arguments: &[&str], code: i32) -> String {
        self.wallets.fails(&[arguments, &["--coordinator", &self.url]].concat(), code)
    }

    fn balance(&self, wallet: &str, field: &str) -> i64 {
        let balance = json(&self.ok(&["wallet", "balance", "--wallet", wallet, "--json"]));
        balance[field].as_str().unwrap().parse().unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn wallets_far_away_spend_trade_and_prove_as_they_would_beside_the_ledger() {
    let mut served = Served::new("34");
    let of = |wallet: &str, what: &str| served.balance(wallet, what);
    assert_eq!((of("worker-1", "spendable"), of("worker-1", "unvested")), (100_000_000, 1_600_000_000));
    let me = served.wallets.ok(&["wallet", "new"]).trim().to_owned();
    let done = json(&served.ok(&["wallet", "send", &me, "70.25", "--wallet", "worker-1", "--json"]));
    assert_eq!((of("worker-1", "spendable"), of("wallet", "spendable")), (29_750_000, 70_250_000));
    let error = served.fails(&["wallet", "send", &me, "29.750001", "--wallet", "worker-1"], 1);
    assert!(error.contains("insufficient_funds") && error.contains("can spend 29.75 HYD"), "{error}");

    let made = json(&served.ok(&["wallet", "offer", "make", "20", "--terms", "a bicycle", "--json"]));
    let offer = made["id"].as_str().unwrap();
    assert_eq!((of("wallet", "spendable"), of("wallet", "held")), (50_250_000, 20_000_000));
    served.ok(&["wallet", "offer", "accept", offer, "--wallet", "worker-2"]);
    assert!(served.fails(&["wallet", "offer", "cancel", offer], 1).contains("offer_not_yours"));
    assert!(served.ok(&["wallet", "offer", "list"]).contains("accepted by"));
    served.ok(&["wallet", "offer", "release", offer]);
    assert_eq!((of("wallet", "held"), of("worker-2", "spendable")), (0, 120_000_000));
    assert_eq!(served.ok(&["wallet", "offer", "list"]), "");
    served.ok(&["wallet", "stake", "10"]);
    served.ok(&["wallet", "unstake", "4"]);
    assert_eq!((of("wallet", "stake"), of("wallet", "unvested")), (10_000_000, 4_000_000));

    // Proofs are checked against the ledger's signature before they are shown, and by whoever they are given to.
    let sound = served.ok(&["ledger", "verify"]);
    assert!(sound.starts_with("sound: 79 transfers, "), "{sound}");
    let ledger_key = sound.split(" by ").nth(1).unwrap().split(';').next().unwrap().to_owned();
    let head = served.ok(&["ledger", "head"]);
    assert!(head.contains(&ledger_key) && head.contains("transfers   79"), "{head}");
    let id = done["id"].as_str().unwrap();
    let proof = served.ok(&["ledger", "proof", id]);
    assert_eq!(proof, served.ok(&["ledger", "proof", "73", "--key", &ledger_key]), "by its number as well");
    assert!(served.fails(&["ledger", "proof", id, "--key", &me], 1).contains("not the key of the ledger"));
    assert!(served.fails(&["ledger", "verify", "--key", &me], 1).contains("another key"));
    let file = served.wallets.folder().join("proof.json");
    let check = |proof: &str| {
        std::fs::write(&file, proof).unwrap();
        served.wallets.ok(&["ledger", "check-proof", file.to_str().unwrap(), "--key", &ledger_key])
    };
    assert!(check(&proof).contains("70.25 HYD"));
    assert!(check(&served.ok(&["ledger", "proof", "--since", "40"])).contains("all 40 transfers"));
    let error = served.fails(&["ledger", "proof", "--since", "41"], 1);
    assert!(error.contains("nearest size that was signed is 40"), "{error}");
    served.fails(&["ledger", "proof", "xyz"], 2);
    assert!(served.fails(&["ledger", "proof", "100000"], 1).contains("no_such_transfer"));

    pages_cover_everything_once(&served.url, served.wallets.ok(&["wallet", "show", "--wallet", "worker-1"]).trim());

    // What was shown over the network is what is there.
    let histories = ["wallet", "worker-1", "worker-2"].map(|wallet| {
        let far = served.ok(&["wallet", "history", "--last", "1000", "--wallet", wallet]);
        (wallet, far, served.ok(&["wallet", "history", "--last", "3", "--wallet", wallet]).lines().count())
    });
    let export = served.ok(&["ledger", "export"]);
    served.child.kill().unwrap();
    served.child.wait().unwrap();
    std::fs::copy(served.wallets.state().join("keys/wallet.key"), served.books.state().join("keys/wallet.key"))
        .unwrap();
    for (wallet, far, lines) in histories {
        assert_eq!(far, served.books.ok(&["wallet", "history", "--last", "1000", "--wallet", wallet]));
        assert_eq!(lines, 3 + 4, "three rows, a header and three rules");
    }
    assert_eq!(export, served.books.ok(&["ledger", "export"]));
    assert_eq!(head, served.books.ok(&["ledger", "head"]));
    assert_eq!(proof, served.books.ok(&["ledger", "proof", id]));
    assert_eq!(sound, served.books.ok(&["ledger", "verify"]));
    let error = served.fails(&["wallet", "balance"], 1);
    assert!(error.contains("cannot reach"), "{error}");
}

/// Reads what comes by the page, seven things at a time and all at once.
fn pages_cover_everything_once(url: &str, key: &str) {
    let stranger = Keypair::from_secret(&[5; 32]);
    let client = Client::new(url, stranger, Arc::new(SystemClock), None).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let history = format!("accounts/{key}/history");
    for (what, list, cursor, many) in [
        ("entries", "entries", "after", 79),
        ("heads", "heads", "after", 40),
        ("accounts", "accounts", "after", 6),
        (&history, "entries", "before", 37),
        // Two workers' last 32 rewards, and a stake on its way out.
        ("holds", "entries", "after", 65),
    ] {
        let get = |query: &str| {
            let path = format!("/hydra/v1/ledger/{what}?{query}");
            let mut page = runtime.block_on(client.get::<serde_json::Value>(&path)).unwrap();
            let next = page["next"].take();
            let serde_json::Value::Array(things) = page[list].take() else { panic!("{page}") };
            (things, next)
        };
        let (all, last) = get("most=1000");
        assert_eq!((all.len(), last), (many, serde_json::Value::Null), "{what}");
        let (mut paged, mut next) = get("most=7");
        while !next.is_null() {
            let name = next.as_str().map_or_else(|| next.to_string(), str::to_owned);
            let (things, then) = get(&format!("{cursor}={name}&most=7"));
            assert!(things.len() <= 7);
            paged.extend(things);
            next = then;
        }
        assert_eq!(paged, all, "{what}");
    }
}

#[test]
fn a_run_stays_with_the_ledger_that_it_began_with() {
    let served = Served::new("1");
    let wallet = ["wallet", "balance", "--coordinator", "ftp://nowhere"];
    assert!(served.wallets.fails(&wallet, 2).contains("no address"));
    let hydra = Hydra::new();
    hydra.up_json(&["--rounds", "1"]);
    let elsewhere = ["coordinator", "--rounds", "1", "--listen", "127.0.0.1:0", "--ledger", &served.url];
    assert!(hydra.fails(&elsewhere, 1).contains("go on without --ledger"));
    // A ledger that does not know this coordinator: it says so, and nothing hangs.
    let stranger = Hydra::new();
    let error = stranger.fails(&elsewhere, 1);
    assert!(error.contains("start it with --payer"), "{error}");
}
