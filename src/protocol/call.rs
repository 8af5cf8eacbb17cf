use serde::{Deserialize, Serialize};

use super::{Digest, Message, Time};

/// What the caller of an HTTP route signs: exactly this call, to this server process, once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// The server process that it is meant for: a number that the server drew when it started and tells everybody. A
    /// call that another process has seen, even one on the same machine before a restart, says nothing to this one.
    pub session: SessionId,
    /// The HTTP method, in capitals.
    pub method: String,
    /// The path with its query, as on the request line.
    pub path: String,
    /// The digest of the body; of no bytes where there is none.
    pub body: Digest,
    /// When it was made, by the caller's clock.
    pub time: Time,
    /// Random: a session takes each but once.
    pub nonce: [u8; 16],
}

impl Message for Call {
    const DOMAIN: &'static str = "http call v1";
}

/// The number of a server process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(pub Digest);
