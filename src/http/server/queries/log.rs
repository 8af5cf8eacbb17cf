use std::fs::File;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

use serde_json::json;

use super::tell::Usage;
use crate::http::error::ApiError;
use crate::protocol::Time;
use crate::runtime::Stopwatch;

/// A line of JSON for each query that has ended or was refused. What was asked and answered is not in it.
#[derive(Debug)]
pub struct AccessLog {
    file: Mutex<File>,
}

/// What is known of a query when it comes.
#[derive(Debug, Clone)]
pub struct Entry {
    pub at: Time,
    /// As in the answer's `x-request-id`.
    pub id: String,
    /// `free`, `operator`, or the first digits of a key's digest; nothing as long as nobody pays.
    pub payer: Option<String>,
    pub path: &'static str,
    pub watch: Stopwatch,
}

impl AccessLog {
    /// Adds lines to a file that was opened for that.
    pub fn new(file: File) -> Self {
        Self { file: Mutex::new(file) }
    }

    /// A query has ended: `stop`, `abort` or `error`.
    pub fn ended(&self, entry: &Entry, how: &str, usage: &Usage) {
        let Usage { prompt_tokens, completion_tokens, cost } = usage;
        self.write(&json!({
            "at_ms": entry.at.0, "id": entry.id, "path": entry.path, "payer": entry.payer, "status": 200,
            "finished": how, "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "cost": cost,
            "seconds": entry.watch.elapsed().as_secs_f64(),
        }));
    }

    /// A query was refused.
    pub fn refused(&self, entry: &Entry, error: &ApiError) {
        self.write(&json!({
            "at_ms": entry.at.0, "id": entry.id, "path": entry.path, "payer": entry.payer,
            "status": error.status().as_u16(), "code": error.code(), "seconds": entry.watch.elapsed().as_secs_f64(),
        }));
    }

    fn write(&self, line: &serde_json::Value) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // A disk that is full keeps nobody from an answer.
        let _ = file.write_all(format!("{line}\n").as_bytes());
    }
}
