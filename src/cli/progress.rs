use std::io::{IsTerminal, stderr};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::owner::WorkerStatus;
use super::report::{bits, thousands};
use crate::coordinator::{Ending, Report};
use crate::protocol::{PublicKey, Reason, Round, RunSpec};
use crate::runtime::Note;

/// Shows a run on standard error while it goes on: a line for each base model, and on a terminal a bar for the round.
pub(super) struct Progress {
    bar: ProgressBar,
    steps_per_round: u64,
    end: Option<Round>,
    losses: (f64, u64),
    closed: u32,
    failures: u32,
    /// What is wrong with the ledger elsewhere.
    ledger: Option<String>,
}

/// What to tell of a round that nobody can end.
pub(super) fn stuck(tasks: u32, reason: Option<&Reason>) -> String {
    let last = reason.map_or(String::new(), |reason| format!(" (the last because {reason})"));
    format!(
        "the results of everybody who asks for work were rejected{last} for {}, so that the round cannot end. Where all \
         losses are impossible, the learning rate is too high: begin anew with --fresh and a lower --lr",
        if tasks == 1 { "the task that is left".to_owned() } else { format!("the {tasks} tasks that are left") }
    )
}

impl Progress {
    pub fn new(spec: &RunSpec, end: Option<Round>) -> Self {
        let steps_per_round = (0..spec.tasks_per_round).map(|index| u64::from(spec.steps_of(index))).sum();
        let target = if stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(steps_per_round), target);
        if let Ok(style) = ProgressStyle::with_template("  {msg} {wide_bar:.cyan/dim} {pos}/{len} steps") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, steps_per_round, end, losses: (0.0, 0), closed: 0, failures: 0, ledger: None }
    }

    /// Says something that is not a note.
    pub fn say(&self, line: &str) {
        if self.bar.is_hidden() { eprintln!("{line}") } else { self.bar.println(line) }
    }

    pub fn header(&self) {
        self.say("  round        tokens   train loss   val loss   bits/byte   accepted");
    }

    pub fn see(&mut self, note: &Note) {
        match note {
            Note::Step { loss, .. } => {
                self.losses = (self.losses.0 + f64::from(*loss), self.losses.1 + 1);
                self.bar.inc(1);
            }
            Note::TaskFailed { worker, error } => {
                self.failures += 1;
                self.say(&format!("  worker {} could not do its task: {error}", worker.short()));
            }
            Note::CheckFailed { error } => self.say(&format!("  a check could not be done: {error}")),
            Note::Coordinator(report) => self.report(report),
            Note::Ledger { trouble } => self.ledger(trouble.as_ref()),
            Note::Fatal(_) => {}
        }
    }

    fn report(&mut self, report: &Report) {
        match report {
            Report::Rejected { round, worker, reason, .. } => self.rejected(*round, worker, reason),
            Report::RoundClosed { accepted, round, .. } => {
                self.closed = *accepted;
                self.failures = 0;
                self.bar.set_position(0);
                self.bar.set_length(self.steps_per_round);
                let of = self.end.map_or(String::new(), |end| format!(" of {}", end.0));
                self.bar.set_message(format!("round {}{of}", round.next().0 + 1));
            }
            Report::LeftOut { round, payload } => {
                let payload = payload.short();
                self.say(&format!(
                    "  round {round}: the accepted payload {payload} cannot be used, and counts for nothing"
                ));
            }
            Report::Evaluated { round, loss, tokens } => {
                let train = match std::mem::take(&mut self.losses) {
                    (_, 0) => "–".to_owned(),
                    (sum, steps) => format!("{:.4}", sum / steps as f64),
                };
                let accepted = if round.0 == 0 { String::new() } else { self.closed.to_string() };
                self.say(&format!(
                    "  {:>5}  {:>12}   {train:>10}   {loss:>8.4}   {:>9.3}   {accepted:>8}",
                    round.0,
                    thousands(*tokens),
                    bits(*loss),
                ));
            }
            Report::Stuck { round, tasks, reason } => {
                self.say(&format!("  round {round}: {}", stuck(*tasks, reason.as_ref())))
            }
            Report::Audited { ending: Ending::Clean, .. } | Report::Finished => {}
            Report::Audited { round, worker, ending } => {
                let ended = match ending {
                    Ending::False => "false, and that is final",
                    _ => "not to be judged in time: nothing is held against it",
                };
                self.say(&format!("  round {round}: the work of {} is {ended}", worker.short()));
            }
            Report::Convicted { round, worker, task } => {
                let (worker, task) = (worker.short(), task.0.short());
                self.say(&format!(
                    "  round {round}: verifiers found the work of {worker} false (task {task}); it may appeal"
                ));
            }
            Report::Forfeited { worker, lost } => {
                self.say(&format!("  {} has lost {lost} HYD for it", worker.short()));
            }
            Report::StruckOff { verifier } => {
                self.say(&format!("  the verifier {} is not believed any more", verifier.short()));
            }
        }
    }

    /// Says what is new about the ledger.
    fn ledger(&mut self, trouble: Option<&String>) {
        match (trouble, &self.ledger) {
            (Some(new), known) if known.as_ref() != Some(new) => self.say(&format!("  ledger: {new}; trying again")),
            (None, Some(_)) => self.say("  the ledger answers again"),
            _ => {}
        }
        self.ledger = trouble.cloned();
    }

    fn rejected(&self, round: Round, worker: &PublicKey, reason: &Reason) {
        self.say(&format!("  round {round}: the work of {} was rejected: {reason}", worker.short()));
    }

    /// Whether tasks fail again and again without any being accepted between.
    pub fn is_hopeless(&self) -> bool {
        self.failures >= 3
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Shows what a worker does: on a terminal a bar for its task, elsewhere nothing but what is said.
pub(super) struct TaskBar {
    bar: ProgressBar,
}

impl TaskBar {
    pub fn new() -> Self {
        let target = if stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        if let Ok(style) = ProgressStyle::with_template("  {msg} {wide_bar:.cyan/dim} {pos}/{len} steps") {
            bar.set_style(style);
        }
        Self { bar }
    }

    pub fn show(&self, status: &WorkerStatus) {
        let WorkerStatus { state, handed_in, of_steps, steps, .. } = status;
        self.bar.set_length(*of_steps);
        self.bar.set_position(*steps);
        let state = state.replace('_', " ");
        self.bar.set_message(format!("{state}; {} handed in", thousands(*handed_in)));
    }

    pub fn say(&self, line: &str) {
        if self.bar.is_hidden() { eprintln!("{line}") } else { self.bar.println(line) }
    }
}

impl Drop for TaskBar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
