//! What travels as JSON, and where: both sides of the wire use these.

pub mod ledger;
pub mod queries;
pub mod watch;

use serde::{Deserialize, Serialize};

use crate::coordinator::{RoundDraw, State, VerifierRecord};
use crate::protocol::{
    Balance, Digest, ExchangeKey, PassId, PublicKey, Round, RunId, RunSpec, SessionId, Signed, Time,
};
use crate::verifier::Job;

/// The paths. Those of blobs are followed by a slash and a digest.
pub mod path {
    /// Who this is, and what a signed call must name.
    pub const HELLO: &str = "/hydra/v1/hello";
    /// How the run stands.
    pub const STATUS: &str = "/hydra/v1/status";
    /// Who was audited in a round, and what came of it.
    pub const AUDITS: &str = "/hydra/v1/audits";
    /// What happens, as it happens.
    pub const EVENTS: &str = "/hydra/v1/events";
    /// Asks for a pass, which proves further calls.
    pub const PASS: &str = "/hydra/v1/pass";
    /// Asks to be admitted.
    pub const REGISTER: &str = "/hydra/v1/register";
    /// Asks for work.
    pub const LEASE: &str = "/hydra/v1/lease";
    /// Commits to a result.
    pub const COMMIT: &str = "/hydra/v1/commit";
    /// Hands in a result.
    pub const SUBMIT: &str = "/hydra/v1/submit";
    /// Gives a task back.
    pub const GIVE_BACK: &str = "/hydra/v1/give-back";
    /// Renews a lease.
    pub const HEARTBEAT: &str = "/hydra/v1/heartbeat";
    /// Appeals against a finding.
    pub const APPEAL: &str = "/hydra/v1/appeal";
    /// Blobs by digest.
    pub const BLOBS: &str = "/hydra/v1/blobs";
    /// Submissions to look at and to compare.
    pub const CHECKS: &str = "/hydra/v1/jobs/checks";
    /// A task to compute again. Both kinds can be asked for side by side, so that what takes long does not hold up what
    /// others wait for.
    pub const REPLAYS: &str = "/hydra/v1/jobs/replays";
    /// What a verifier found.
    pub const VERDICTS: &str = "/hydra/v1/verdicts";
    /// Ends the run after the open round.
    pub const FINISH: &str = "/hydra/v1/admin/finish";
    /// Makes an invite token.
    pub const INVITES: &str = "/hydra/v1/admin/invites";
    /// Admits or blocks keys.
    pub const KEYS: &str = "/hydra/v1/admin/keys";
}

/// Answers [`path::HELLO`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// What signed calls must name.
    pub session: SessionId,
    /// The server's time.
    pub time: Time,
    /// The version of Hydra.
    pub version: String,
    /// The run, where there is one: a ledger of its own has none.
    pub run: Option<RunId>,
    /// Who is admitted to it: `open`, `listed` or `invited`.
    pub admission: String,
}

/// Answers [`path::STATUS`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The run.
    pub run: RunId,
    /// The open round, which is also the number of rounds that are done.
    pub round: Round,
    /// Whether its work is done and the next base model is being made.
    pub closed: bool,
    /// Tasks of the open round.
    pub tasks: u32,
    /// Those that are accepted.
    pub accepted: u32,
    /// Those that somebody is working on.
    pub leased: u32,
    /// Accepted tokens of all rounds that are done.
    pub tokens: u64,
    /// The newest base model.
    pub model: Digest,
    /// The newest validation loss that was measured, nats a token.
    pub loss: Option<f64>,
    /// Parameters of the model.
    pub parameters: u64,
    /// Keys that have ever worked.
    pub workers: u64,
    /// Keys heard from in the last minute, or that hold a task.
    pub workers_seen: u64,
    /// When the round opened or was last extended.
    pub opened: Time,
    /// When it closes with a quorum instead of all its tasks, or is extended.
    pub deadline: Time,
    /// The server's time.
    pub time: Time,
}

/// Answers [`path::AUDITS`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundAudits {
    /// What the run was made of; its digest is the run's id.
    pub spec: RunSpec,
    /// The round.
    pub round: Round,
    /// Its audits; nothing where the round is still open, too long ago, or the run has no audits.
    pub draw: Option<RoundDraw>,
    /// What each verifier has done so far.
    pub verifiers: Vec<(PublicKey, VerifierRecord)>,
}

impl RoundAudits {
    /// Those of `round`, in a run that stands so.
    #[must_use]
    pub fn of(state: &State, round: Round) -> Self {
        let verifiers = state.verifiers().iter().map(|(key, record)| (*key, *record)).collect();
        Self { spec: state.spec().clone(), round, draw: state.draw_of(round).cloned(), verifiers }
    }
}

/// Asks [`path::PASS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewPass {
    /// The caller's half of an exchange of keys.
    pub exchange: ExchangeKey,
}

/// Answers [`path::PASS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pass {
    /// To be named in calls.
    pub pass: PassId,
    /// The server's half.
    pub exchange: ExchangeKey,
    /// The session that the key is for.
    pub session: SessionId,
    /// Until when it holds, by the server's clock.
    pub until: Time,
}

/// Asks [`path::REGISTER`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Register {
    /// An invite token, where one is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invite: Option<String>,
}

/// Answers where there is nothing to say but yes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Always true.
    pub ok: bool,
}

/// Answers a `PUT` to [`path::BLOBS`], and a `GET` of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    /// Bytes that the server has.
    pub received: u64,
    /// Whether the blob is whole and kept.
    pub complete: bool,
}

/// Answers [`path::CHECKS`] and [`path::REPLAYS`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LentJob {
    /// To be named with the verdicts.
    pub id: Digest,
    /// What to check.
    pub job: Job,
}

/// Asks [`path::VERDICTS`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdicts {
    /// Which job they are on.
    pub id: Digest,
    /// Each a signed [`Verdict`](crate::protocol::Verdict).
    pub verdicts: Vec<Signed>,
}

/// Asks [`path::INVITES`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewInvite {
    /// How many keys it admits.
    pub uses: u32,
}

/// Answers [`path::INVITES`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invite {
    /// To be given to whoever is invited. It is not shown again.
    pub token: String,
}

/// Asks [`path::KEYS`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyChange {
    /// Whose.
    pub key: PublicKey,
    /// Whether it may take part from now on.
    pub admitted: bool,
}

/// Every error: the object under `error`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// Stable between versions.
    pub code: String,
    /// For people.
    pub message: String,
    /// The server's present session, where the call was signed for another.
    #[serde(default)]
    pub session: Option<SessionId>,
    /// The server's time, where time matters.
    #[serde(default)]
    pub time: Option<Time>,
    /// Bytes that the server has of an upload.
    #[serde(default)]
    pub received: Option<u64>,
    /// What an account can spend that has not enough.
    #[serde(default)]
    pub available: Option<Balance>,
}
