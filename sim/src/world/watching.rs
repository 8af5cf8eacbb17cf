//! What is seen of a world.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hydra::coordinator::{Inspect, Report, State, recheck};
use hydra::ledger::{Account, Ledger};
use hydra::protocol::{Layer, PublicKey, Round, limits};
use hydra::runtime::Note;
use hydra::store::Blobs;
use tokio::sync::mpsc;

use super::World;
use crate::outcome::{Caught, RoundRow};
use crate::simulation::{Progress, SimError, virtual_seconds};

/// What the world tells whoever plays it.
pub(crate) enum News {
    Note(Note),
    /// Something is wrong that cannot go on.
    Broken(String),
}

/// What became of the news.
#[derive(Default)]
pub(crate) struct Telling {
    pub caught: BTreeMap<PublicKey, Caught>,
    pub rounds: Vec<RoundRow>,
    rejected: u64,
    convicted: u64,
}

impl World {
    /// Writes down what happens until everything is done.
    pub async fn follow(
        self: &Rc<Self>,
        heard: &mut mpsc::UnboundedReceiver<News>,
        telling: &mut Telling,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), String> {
        while let Some(news) = heard.recv().await {
            let note = match news {
                News::Note(note) => note,
                News::Broken(why) => return Err(why),
            };
            self.say(&format!("{note:?}"));
            if self.laws.are_broken() {
                return Err("it was not played on".to_owned());
            }
            match note {
                Note::Fatal(why) => self.dies(why)?,
                Note::Coordinator(Report::Finished) => return Ok(()),
                Note::Coordinator(report) => {
                    if let Report::RoundClosed { .. } = report {
                        self.begin_round();
                        let rounds = telling.rounds.len() as u32 + 1;
                        progress(Progress { rounds, virtual_seconds: virtual_seconds() });
                    }
                    telling.hear(&report, self.workers_up(), self.struck.borrow().len());
                }
                _ => {}
            }
        }
        Err("everybody who could say anything is gone".to_owned())
    }

    /// What the coordinator knows at the end, which must be what its records say.
    pub async fn state(&self) -> Result<State, SimError> {
        let recorded = || Ok(State::replay(self.spec.clone(), self.records.read().map_err(SimError::Disk)?));
        // Nobody asks for anything any more.
        self.front.standing.deaf.fetch_add(1, Ordering::Relaxed);
        for _ in 0..10 {
            let Some(coordinator) = self.coordinator.address() else { break };
            let Ok(live) = coordinator.send(Inspect).await else { break };
            if is_same(&live, &recorded()?) {
                return Ok(*live);
            }
            // Something had been decided that is on its way to the disk.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if self.coordinator.address().is_some_and(|address| address.connected()) {
            self.laws.tell("what the coordinator knows is not what its records say".to_owned());
        }
        recorded()
    }

    /// What must hold at the end, where everything is `finished` or not.
    pub fn hold_last_laws(&self, state: &State, ledger: &Ledger, finished: bool) {
        if let Some(dead) = self.dead() {
            self.laws.tell(dead);
        }
        for model in state.kept_models().iter().filter(|model| self.blobs.get(&model.digest).is_err()) {
            self.laws.tell(format!("model {} is lost", model.digest));
        }
        let first = state.round().0.saturating_sub(limits::DRAWS_KEPT as u32);
        let believed = state.verifiers().values().filter(|record| !record.struck_off).count();
        for round in (first..state.round().0).map(Round) {
            let Some(draw) = state.draw_of(round) else { continue };
            match recheck(&self.spec, round, draw, believed) {
                Ok(checked) if finished && checked.open > 0 => {
                    self.laws.tell(format!("{} audits of round {} never ended", checked.open, round.0));
                }
                Ok(_) => {}
                Err(error) => self.laws.tell(format!("the audits of round {}: {error}", round.0)),
            }
        }
        if !finished {
            return;
        }
        let ((held, settled), escrow) = (self.laws.queries(), ledger.book().posts(Account::Escrow));
        if held > 0 || escrow.balance().0 != 0 || escrow.credits_pending != 0 {
            self.laws.tell(format!("{held} queries hold tokens at the end, and escrow has {}", escrow.balance().0));
        }
        let told = self.till.as_ref().map_or(0, |till| i128::from(till.counts().paid.micro()));
        if told != settled {
            self.laws.tell(format!("customers were told that they paid {told} µHYD, the ledger took {settled}"));
        }
    }
}

/// Whether they are equal, where a loss that is not a number is equal to itself.
fn is_same(live: &State, recorded: &State) -> bool {
    live == recorded || format!("{live:?}") == format!("{recorded:?}")
}

impl Telling {
    fn hear(&mut self, report: &Report, workers_up: usize, strikes: usize) {
        let open = Round(self.rounds.last().map_or(0, |last| last.round + 1));
        let mut catch = |worker: &PublicKey, layer| {
            self.caught.entry(*worker).or_insert(Caught { round: open, layer });
        };
        match report {
            Report::Rejected { worker, layer, .. } => {
                catch(worker, *layer);
                self.rejected += 1;
            }
            Report::Convicted { worker, .. } => {
                catch(worker, Layer::Replay);
                self.convicted += 1;
            }
            Report::RoundClosed { round, accepted, late, tokens } => self.rounds.push(RoundRow {
                round: round.0,
                closed_seconds: virtual_seconds(),
                accepted: *accepted,
                late: *late,
                tokens: *tokens,
                loss: None,
                workers_up,
                rejected: self.rejected,
                convicted: self.convicted,
                strikes,
            }),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::Scenario;
    use hydra::coordinator::Record;
    use hydra::protocol::{DeviceKind, Digest, Keypair, Submission, Task, Time, Trail};

    const SMALL: &str = "about = 'one task'\n\
        job = { rounds = 1, inner_steps = 1, batch = 1, \
        model = { layers = 1, width = 4, heads = 1, hidden = 4, context = 8 } }\n\
        workers = [{ count = 1, tokens_per_second = 40 }]\n";

    #[test]
    fn a_loss_that_is_not_a_number_is_what_its_record_says() {
        let spec = Scenario::parse(Path::new("small.toml"), SMALL).unwrap().spec(1, Digest::of(&[]));
        let (base, worker) = (Digest::of(b"base"), Keypair::from_secret(&[1; 32]).public());
        let task = Task::of_round(&spec, Round(0), 0, base);
        let state = |loss| {
            let trail = Trail { device: DeviceKind::Other, states: vec![base] };
            let submission = Submission::new(task.id(), base, vec![loss], trail, task.tokens());
            let commitment = submission.commitment;
            let records = [
                Record::RoundOpened { round: Round(0), base, momentum: None, at: Time(0) },
                Record::Leased { index: 0, worker, deadline: Time(9) },
                Record::Committed { index: 0, worker, commitment },
                Record::Submitted { index: 0, worker, submission },
            ];
            State::replay(spec.clone(), records)
        };
        assert!(state(f32::NAN) != state(f32::NAN), "that is what makes it hard");
        assert!(is_same(&state(f32::NAN), &state(f32::NAN)));
        assert!(!is_same(&state(f32::NAN), &state(1.0)) && !is_same(&state(2.0), &state(1.0)));
    }
}
