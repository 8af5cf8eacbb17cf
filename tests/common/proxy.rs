//! A bad line between a coordinator and everybody else.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hydra::protocol::{Seed, below};

/// What a connection suffers: a pause before each piece, and its end, without a word, after so many bytes asked or
/// answered.
#[derive(Debug, Clone, Copy)]
struct Fate {
    pause: Duration,
    asked: usize,
    answered: usize,
}

/// Listens on a port of its own and passes everything on to `to`, on connections that are slow and end as `seed` draws. Runs until the test's
/// process ends.
pub struct BadLine {
    pub port: u16,
    connections: Arc<AtomicU64>,
}

impl BadLine {
    pub fn to(to: u16, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&connections);
        std::thread::spawn(move || {
            let mut rng = Seed::from_number(seed).rng();
            for from in listener.incoming() {
                let mut bytes = |least: u64, most: u64| 1 << (least + below(&mut rng, most - least));
                let (asked, answered) = (bytes(10, 20), bytes(14, 24));
                let slow = below(&mut rng, 4) == 0;
                let fate = Fate { pause: Duration::from_millis(if slow { 50 } else { 0 }), asked, answered };
                counted.fetch_add(1, Ordering::Relaxed);
                let (Ok(from), Ok(to)) = (from, TcpStream::connect(("127.0.0.1", to))) else { continue };
                let (asks, answers) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                std::thread::spawn(move || pass(asks, to, fate.pause, fate.asked));
                std::thread::spawn(move || pass(answers, from, fate.pause, fate.answered));
            }
        });
        Self { port, connections }
    }

    /// Connections so far: all but the last of each caller were cut.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, pause: Duration, mut left: usize) {
    let mut piece = [0; 1 << 14];
    while let Ok(count @ 1..) = from.read(&mut piece) {
        std::thread::sleep(pause);
        let passed = count.min(left);
        left -= passed;
        if to.write_all(&piece[..passed]).is_err() || left == 0 {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
