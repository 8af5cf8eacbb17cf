//! Whether a round's audits were what they had to be, for anybody who has only what is published.

use std::collections::BTreeSet;

use super::audits::{DrawnResult, Ending, RoundDraw, repeated};
use crate::protocol::{
    Layer, Outcome, Parting, PublicKey, Reason, Round, RunSpec, TaskId, Verdict, is_drawn, secret_before,
};

/// What a recheck has found to be as it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rechecked {
    /// Results of the round.
    pub results: u32,
    /// Those that were drawn.
    pub drawn: u32,
    /// Audits that are not over.
    pub open: u32,
    /// Audits that nobody could finish in time.
    pub unfinished: u32,
    /// Verdicts whose signatures are good.
    pub verdicts: u32,
    /// Those that say where false work parts from the states that its worker had committed to.
    pub located: u32,
}

/// What is wrong with a round's audits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecheckError {
    /// A run without audits.
    #[error("the run has no audits")]
    NoAudits,
    /// The secret is not the one that was fixed when the run was made.
    #[error("the secret that was drawn by is not the one that the run's anchor was made from")]
    Secret,
    /// A result that had to be computed again was not, or one that had not to be was.
    #[error("the result of {worker} for task {task} {}", if *.drawn { "was drawn, but nobody computed it again" } else { "was judged without being drawn" })]
    Draw {
        /// The task.
        task: TaskId,
        /// Whose.
        worker: PublicKey,
        /// What the secret says.
        drawn: bool,
    },
    /// A verdict that is not signed, or on something else.
    #[error("a verdict on task {0} is not signed by whom it names, or is on something else")]
    Verdict(TaskId),
    /// The verdicts do not say what was made of them.
    #[error("the audit of task {task} ended as {ending:?}, which its verdicts do not say")]
    Ending {
        /// The task.
        task: TaskId,
        /// How it was said to end.
        ending: Ending,
    },
}

/// Checks what a coordinator has published about the audits of `round`: that the secret was fixed beforehand, that it drew
/// just those results that were computed again, and that each ended as its signed verdicts say. So many verifiers of the run
/// have judged anything and are believed: where it is one, it is asked twice, and otherwise two of them must have found
/// false work.
pub fn recheck(spec: &RunSpec, round: Round, draw: &RoundDraw, believed: usize) -> Result<Rechecked, RecheckError> {
    let audits = spec.audits.ok_or(RecheckError::NoAudits)?;
    let anchor = (0..=round.0).fold(draw.secret, |link, _| secret_before(&link));
    if anchor != audits.anchor {
        return Err(RecheckError::Secret);
    }
    let mut rechecked = Rechecked::default();
    let repeated = repeated(draw.results.iter().map(|result| result.payload));
    for result in &draw.results {
        let DrawnResult { task, worker, payload, clean, verdicts, ending } = result;
        rechecked.results += 1;
        let drawn = repeated.contains(payload) || is_drawn(&draw.secret, task, worker, audits.policy.rate(*clean));
        let judged = ending.is_some() || !verdicts.is_empty();
        let looked_at = *ending != Some(Ending::Clean) || !verdicts.is_empty();
        if (judged && !drawn) || !looked_at {
            return Err(RecheckError::Draw { task: *task, worker: *worker, drawn });
        }
        rechecked.drawn += u32::from(drawn);
        rechecked.open += u32::from(drawn && ending.is_none());
        rechecked.unfinished += u32::from(*ending == Some(Ending::Unfinished));
        let (verdicts, located) = check_verdicts(result, believed)?;
        rechecked.verdicts += verdicts;
        rechecked.located += located;
    }
    Ok(rechecked)
}

/// The verdicts on a result, and those of them that say where it went wrong.
fn check_verdicts(result: &DrawnResult, believed: usize) -> Result<(u32, u32), RecheckError> {
    let (mut clean, mut against, mut located) = (false, Vec::new(), 0);
    for signed in &result.verdicts {
        let wrong = RecheckError::Verdict(result.task);
        let (signer, verdict) = signed.open::<Verdict>().map_err(|_| wrong.clone())?;
        if !is_about(&verdict, result) {
            return Err(wrong);
        }
        match verdict.outcome {
            Outcome::Accepted { layer: Layer::Replay, .. } => clean = true,
            Outcome::Rejected { layer: Layer::Replay, reason } => {
                // A peer's copy is the peer's opinion, whoever has compared it.
                against.push(verdict.by.unwrap_or(signer));
                let unknown = matches!(reason, Reason::ReplayMismatch { parting: Parting::Unknown, .. });
                located += u32::from(matches!(reason, Reason::ReplayMismatch { .. }) && !unknown);
            }
            Outcome::Accepted { .. } | Outcome::Rejected { .. } => return Err(wrong),
        }
    }
    let opinions = against.len();
    let voices = against.into_iter().collect::<BTreeSet<PublicKey>>().len();
    let said = match result.ending {
        Some(Ending::Clean) => clean,
        Some(Ending::False) => voices >= 2 || (believed < 2 && opinions >= 2),
        Some(Ending::TestPassed | Ending::TestFailed) => false,
        Some(Ending::Unfinished) | None => true,
    };
    match result.ending {
        Some(ending) if !said => Err(RecheckError::Ending { task: result.task, ending }),
        _ => Ok((u32::try_from(result.verdicts.len()).unwrap_or(u32::MAX), located)),
    }
}

fn is_about(verdict: &Verdict, result: &DrawnResult) -> bool {
    (verdict.task, verdict.worker, verdict.payload) == (result.task, result.worker, result.payload)
}
