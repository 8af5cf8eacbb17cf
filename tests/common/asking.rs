//! Plain requests to a server.

#![allow(dead_code, clippy::unwrap_used, clippy::indexing_slicing, reason = "as in the rest of the tests")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

/// Sends a request: where the answer will come.
pub fn send(address: SocketAddr, method: &str, path: &str, key: Option<&str>, body: &str) -> TcpStream {
    let key = key.map_or_else(String::new, |key| format!("authorization: Bearer {key}\r\n"));
    let length = body.len();
    let head =
        format!("{method} {path} HTTP/1.1\r\nhost: x\r\n{key}connection: close\r\ncontent-length: {length}\r\n\r\n");
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).unwrap();
    stream
}

/// Sends a request: the status of the answer, and its JSON.
pub fn request(address: SocketAddr, method: &str, path: &str, key: Option<&str>, body: &str) -> (u16, Value) {
    let mut answer = String::new();
    send(address, method, path, key, body).read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), serde_json::from_str(body).unwrap_or(Value::Null))
}

/// The status of an answer, and the code of its error.
pub fn code(answer: &(u16, Value)) -> (u16, &str) {
    (answer.0, answer.1["error"]["code"].as_str().unwrap_or_default())
}
