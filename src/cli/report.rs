use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use super::remote::RemoteLedger;
use crate::coordinator::State;
use crate::http::ClientError;
use crate::ledger::{Account, Ledger, Posts, Totals};
use crate::protocol::{Amount, Balance, Digest, PublicKey, RunId};
use crate::store::StateDir;

/// What a run has come to: the JSON object of `--json`, and the table for people.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    pub run: RunId,
    pub rounds: u32,
    pub tokens: u64,
    /// Nats a token, before the first round and after the last.
    pub val_loss_first: Option<f64>,
    pub val_loss_last: Option<f64>,
    pub parameters: u64,
    /// Of this invocation.
    pub seconds: f64,
    pub tokens_per_second: f64,
    pub supply: Balance,
    /// Unvested pay included.
    pub emitted: Balance,
    pub unvested: Balance,
    pub burned: Balance,
    /// Of what is done, and of what is held until it vests or is settled.
    pub debits: Balance,
    pub credits: Balance,
    pub debits_pending: Balance,
    pub credits_pending: Balance,
    pub debits_equal_credits: bool,
    pub transfers: u64,
    pub ledger_head: Digest,
    pub accounts: BTreeMap<String, Balance>,
    pub model_digest: Digest,
    pub workers: Vec<WorkerSummary>,
}

#[derive(Debug, Serialize)]
pub(super) struct WorkerSummary {
    pub id: PublicKey,
    pub accepted: u64,
    pub rejected: u64,
    pub tokens: u64,
    /// All that it has earned in this run, vested or not.
    pub pay: Amount,
    /// What its wallet would get if all that is unvested vested.
    pub unvested: Balance,
    /// What its wallet can spend.
    pub spendable: Balance,
}

/// What a report tells of a ledger.
pub(super) struct Books {
    pub totals: Totals,
    pub transfers: u64,
    pub head: Digest,
    pub accounts: BTreeMap<Account, Posts>,
}

impl Books {
    /// Of a ledger in this process.
    pub fn of(ledger: &Ledger) -> Self {
        Self {
            totals: ledger.book().totals(),
            transfers: ledger.journal().length(),
            head: ledger.journal().head(),
            accounts: ledger.book().accounts().collect(),
        }
    }

    /// Of a ledger on another computer.
    pub fn fetch(ledger: &RemoteLedger) -> Result<Self, ClientError> {
        let books = ledger.books()?;
        let totals = Totals {
            supply: books.supply,
            emitted: books.emitted,
            unvested: books.unvested,
            burned: books.burned,
            debits: books.sides.debits,
            credits: books.sides.credits,
            debits_pending: books.sides.debits_pending,
            credits_pending: books.sides.credits_pending,
        };
        let accounts = ledger.accounts()?.into_iter().map(|one| (one.account, one.sides.into())).collect();
        Ok(Self { totals, transfers: books.transfers, head: books.head, accounts })
    }
}

impl Summary {
    /// Of a run in this state with these books, which trained for `time` now, from `tokens_before` on.
    pub fn new(state: &State, books: &Books, time: Duration, tokens_before: u64) -> Option<Self> {
        let (first, last) = (state.lineage().first()?, state.lineage().last()?);
        let totals = books.totals;
        let seconds = time.as_secs_f64();
        let worker = |(id, record): (&PublicKey, &crate::coordinator::WorkerRecord)| {
            let wallet = books.accounts.get(&Account::Wallet(*id)).copied().unwrap_or_default();
            WorkerSummary {
                id: *id,
                accepted: record.accepted,
                rejected: record.rejected,
                tokens: record.tokens,
                pay: record.pay,
                unvested: Balance(wallet.credits_pending),
                spendable: wallet.available(),
            }
        };
        Some(Self {
            run: state.spec().id(),
            rounds: state.round().0,
            tokens: state.tokens(),
            val_loss_first: first.loss,
            val_loss_last: last.loss,
            parameters: state.spec().model.parameters(),
            seconds,
            tokens_per_second: (state.tokens() - tokens_before) as f64 / seconds.max(1e-3),
            supply: totals.supply,
            emitted: totals.emitted,
            unvested: totals.unvested,
            burned: totals.burned,
            debits: totals.debits,
            credits: totals.credits,
            debits_pending: totals.debits_pending,
            credits_pending: totals.credits_pending,
            debits_equal_credits: totals.debits_equal_credits(),
            transfers: books.transfers,
            ledger_head: books.head,
            accounts: books.accounts.iter().map(|(account, posts)| (account.to_string(), posts.balance())).collect(),
            model_digest: last.digest,
            workers: state.workers().iter().map(worker).collect(),
        })
    }

    /// For people.
    pub fn to_text(&self, folder: &Path, model_file: &Path) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "  {name:<12}{value}");
        };
        let loss = |nats: f64| format!("{nats:.4} nats ({:.3} bits/byte)", bits(nats));
        line("rounds", self.rounds.to_string());
        line(
            "tokens",
            format!(
                "{} accepted; {} a second for {:.1} s",
                thousands(self.tokens),
                thousands(self.tokens_per_second as u64),
                self.seconds
            ),
        );
        if let (Some(first), Some(last)) = (self.val_loss_first, self.val_loss_last) {
            line("validation", format!("{} → {}", loss(first), loss(last)));
        }
        let equal = if self.debits_equal_credits { "=" } else { "≠" };
        line(
            "supply",
            format!(
                "{} = {} emitted − {} burned; {} not vested",
                self.supply, self.emitted, self.burned, self.unvested
            ),
        );
        line(
            "ledger",
            format!(
                "debits {} + {} held {equal} credits {} + {} held; {} transfers, head {}",
                self.debits,
                self.debits_pending,
                self.credits,
                self.credits_pending,
                self.transfers,
                self.ledger_head.short()
            ),
        );
        line("model", model_file.display().to_string());
        line("database", StateDir::database(folder).display().to_string());

        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED);
        table.set_header(["worker", "accepted", "rejected", "tokens", "pay", "unvested", "wallet"]);
        for worker in &self.workers {
            table.add_row([
                worker.id.short(),
                worker.accepted.to_string(),
                worker.rejected.to_string(),
                thousands(worker.tokens),
                worker.pay.to_string(),
                worker.unvested.to_string(),
                worker.spendable.to_string(),
            ]);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        format!("{text}{table}\n")
    }
}

/// Bits a byte of a loss in nats a token. (A token is a byte, but for the ends of documents.)
pub(super) fn bits(nats: f64) -> f64 {
    nats / std::f64::consts::LN_2
}

/// `1234567` as `1 234 567`.
pub(super) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!([0, 999, 1000, 1_234_567].map(thousands), ["0", "999", "1 000", "1 234 567"]);
    }
}
