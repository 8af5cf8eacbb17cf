//! Keys, transfers, verdicts and random histories for the tests of the ledger and its store.

use proptest::prelude::*;

use super::{Account, Purpose, Transfer, TransferId};
use crate::protocol::{Amount, Keypair};

/// The `n`-th of the tests' keys.
pub fn key(n: u8) -> Keypair {
    Keypair::from_secret(&[n + 1; 32])
}

/// The wallet of [`key`] `n`.
pub fn wallet(n: u8) -> Account {
    Account::Wallet(key(n).public())
}

/// A transfer of `amount` µHYD.
pub fn transfer(id: u128, debit: Account, credit: Account, amount: i64) -> Transfer {
    let amount = Amount::from_micro(amount).unwrap();
    Transfer { id: TransferId::new(id), debit, credit, amount, purpose: Purpose::Transfer }
}

fn account() -> impl Strategy<Value = Account> {
    prop_oneof![
        3 => Just(Account::Emission),
        1 => Just(Account::Treasury),
        1 => Just(Account::Burn),
        1 => Just(Account::Escrow),
        6 => (0..3u8).prop_map(wallet),
        1 => Just(Account::Stake(key(0).public())),
    ]
}

/// Chains of transfers, as careless clients would send them: most ids are new, some are used again, a third of the
/// chains are earlier ones sent again; amounts are now and then nothing or more than there is.
pub fn history() -> impl Strategy<Value = Vec<Vec<Transfer>>> {
    let id = prop_oneof![1 => 0..20u128, 9 => any::<u128>()];
    let amount = prop_oneof![1 => Just(0), 20 => 1..400i64, 1 => any::<i64>().prop_map(|n| n.max(0))];
    let one =
        (id, account(), account(), amount).prop_map(|(id, debit, credit, amount)| transfer(id, debit, credit, amount));
    let chain = prop::collection::vec(one, 0..4);
    let step = (chain, any::<Option<prop::sample::Index>>());
    prop::collection::vec(step, 1..40).prop_map(|steps| {
        let mut history: Vec<Vec<Transfer>> = Vec::new();
        for (n, (chain, again)) in steps.into_iter().enumerate() {
            match again {
                Some(again) if n % 3 == 2 => history.push(again.get(&history).clone()),
                _ => history.push(chain),
            }
        }
        history
    })
}
