//! A run as it goes on, in a terminal.

mod look;
mod view;

use std::io::{IsTerminal, stdout};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use ratatui::DefaultTerminal;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::Rect;

use self::look::{Look, Snapshot};
use self::view::View;
use super::Failure;
use super::owner;
use crate::protocol::Keypair;
use crate::runtime::{Clock, SystemClock, entropy};

/// How often the screen is drawn, and keys are heard at the latest.
const DRAW: Duration = Duration::from_millis(250);

/// How often the coordinator is asked.
const ASK: Duration = Duration::from_secs(1);

/// The columns of a frame that is printed where there is no terminal to ask.
const PRINTED: u16 = 80;

/// Watch a run in the terminal, and the worker of this machine
///
/// Asks a coordinator, or `hydra up`, for what its page shows too. p pauses the worker that runs on --state-dir, r lets it
/// go on, f has it finish its task and end, q leaves. Where the output is no terminal, one frame is printed.
#[derive(Debug, Args)]
pub(super) struct TopArgs {
    /// Which run: the address of its coordinator, or of the page of `hydra up`
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7700")]
    coordinator: String,
    /// Print one frame and end
    #[arg(long)]
    once: bool,
    /// Print one JSON object and end, with --once
    #[arg(long, requires = "once")]
    json: bool,
    /// Certificates to trust besides the well-known ones, a PEM file
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Where the worker is that keys talk to [default: the folder of `hydra worker`]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

pub(super) fn run(args: &TopArgs) -> Result<(), Failure> {
    let worker = match &args.state_dir {
        Some(folder) => folder.clone(),
        None => super::state_dir(None)?.join("worker"),
    };
    // Nothing is asked that needs a name.
    let mut secret = [0; 32];
    entropy(&mut secret).context("the operating system gives no random numbers")?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let client = super::client(&args.coordinator, Keypair::from_secret(&secret), &clock, args.tls_ca.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut look = Look::new(client, worker.clone());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    if args.once || dumb || !stdout().is_terminal() {
        let snapshot = runtime.block_on(look.now())?;
        if args.json {
            println!("{}", serde_json::to_string(&snapshot)?);
        } else {
            let width = ratatui::crossterm::terminal::size().map_or(0, |size| size.0);
            print!("{}", print(&snapshot, if width == 0 { PRINTED } else { width }));
        }
        return Ok(());
    }
    let shared = Arc::new(Mutex::new(Shared::default()));
    runtime.spawn(watch(look, Arc::clone(&shared)));
    // A panic gives the terminal back, too.
    let mut terminal = ratatui::try_init().context("cannot use this terminal; --once prints one frame")?;
    let shown = show(&mut terminal, &shared, &worker);
    ratatui::try_restore()?;
    runtime.shutdown_background();
    shown
}

/// What the network has found out.
#[derive(Debug, Default)]
struct Shared {
    snapshot: Option<Arc<Snapshot>>,
    trouble: Option<String>,
    stop: bool,
}

/// Asks again and again, until the process is told to end.
async fn watch(mut look: Look, shared: Arc<Mutex<Shared>>) {
    let asking = async {
        loop {
            let now = look.now().await;
            {
                let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
                match now {
                    Ok(snapshot) => (shared.snapshot, shared.trouble) = (Some(Arc::new(snapshot)), None),
                    Err(error) => shared.trouble = Some(error.to_string()),
                }
            }
            tokio::time::sleep(ASK).await;
        }
    };
    tokio::select! {
        biased;
        () = told_to_end() => {}
        () = asking => {}
    }
    shared.lock().unwrap_or_else(PoisonError::into_inner).stop = true;
}

#[cfg(unix)]
async fn told_to_end() {
    match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(mut terminate) => {
            terminate.recv().await;
        }
        Err(_) => std::future::pending().await,
    }
}

#[cfg(not(unix))]
async fn told_to_end() {
    std::future::pending().await
}

/// Draws and hears keys until somebody leaves.
fn show(terminal: &mut DefaultTerminal, shared: &Mutex<Shared>, worker: &Path) -> Result<(), Failure> {
    let (mut keys, colour) = (Keys::default(), view::has_colour(std::env::var_os("NO_COLOR")));
    loop {
        let (snapshot, trouble) = {
            let shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
            if shared.stop {
                return Ok(());
            }
            (shared.snapshot.clone(), shared.trouble.clone())
        };
        let view = View {
            snapshot: snapshot.as_deref(),
            trouble: trouble.as_deref(),
            said: keys.said.as_deref(),
            scroll: keys.scroll,
            colour,
            live: true,
        };
        terminal.draw(|frame| view.draw(frame.area(), frame.buffer_mut()))?;
        // A new size is drawn for at once, too.
        if event::poll(DRAW)?
            && let Event::Key(key) = event::read()?
            && key.kind == KeyEventKind::Press
        {
            match keys.press(key) {
                Some(Wish::Leave) => return Ok(()),
                Some(Wish::Say(command)) => {
                    let said = owner::ask(worker, command);
                    keys.said = Some(match said {
                        Ok(status) => format!("the worker is {}: {}", status.state, status.why),
                        Err(error) => error.to_string(),
                    });
                }
                None => {}
            }
        }
    }
}

/// What keys have come to.
#[derive(Debug, Default)]
struct Keys {
    /// Workers above the first that is shown.
    scroll: usize,
    /// Whether finishing was asked for once.
    finishing: bool,
    said: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Wish {
    Leave,
    /// To the worker of this machine.
    Say(&'static str),
}

impl Keys {
    fn press(&mut self, key: KeyEvent) -> Option<Wish> {
        let (asked, control) = (std::mem::take(&mut self.finishing), key.modifiers.contains(KeyModifiers::CONTROL));
        self.said = None;
        match key.code {
            KeyCode::Char('c') if control => Some(Wish::Leave),
            KeyCode::Char('q') | KeyCode::Esc => Some(Wish::Leave),
            KeyCode::Char('p') => Some(Wish::Say("pause")),
            KeyCode::Char('r') => Some(Wish::Say("resume")),
            KeyCode::Char('f') if asked => Some(Wish::Say("finish")),
            KeyCode::Char('f') => {
                self.finishing = true;
                self.said = Some("f once more: the worker finishes its task and ends".to_owned());
                None
            }
            code => {
                self.scroll = match code {
                    KeyCode::Down | KeyCode::Char('j') => self.scroll + 1,
                    KeyCode::Up | KeyCode::Char('k') => self.scroll.saturating_sub(1),
                    KeyCode::PageDown => self.scroll + 10,
                    KeyCode::PageUp => self.scroll.saturating_sub(10),
                    KeyCode::Home => 0,
                    _ => self.scroll,
                }
                .min(look::WORKERS_MAX);
                None
            }
        }
    }
}

/// One frame without colours, as wide as the terminal, or as many terminals are.
fn print(snapshot: &Snapshot, width: u16) -> String {
    let view = View { snapshot: Some(snapshot), trouble: None, said: None, scroll: 0, colour: false, live: false };
    let area = Rect::new(0, 0, width, view.height(width));
    let mut buffer = Buffer::empty(area);
    view.draw(area, &mut buffer);
    let lines = view::lines(&buffer);
    let end = lines.iter().rposition(|line| !line.is_empty()).map_or(0, |last| last + 1);
    lines.into_iter().take(end).map(|line| line + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_pause_and_resume_at_once_and_finish_when_asked_twice() {
        let mut keys = Keys::default();
        let mut press = |key: char| keys.press(KeyEvent::new(KeyCode::Char(key), KeyModifiers::NONE));
        assert_eq!(press('p'), Some(Wish::Say("pause")));
        assert_eq!(press('r'), Some(Wish::Say("resume")));
        assert_eq!((press('f'), press('f')), (None, Some(Wish::Say("finish"))));
        assert_eq!((press('f'), press('x'), press('f')), (None, None, None), "another key takes it back");
        assert_eq!(press('q'), Some(Wish::Leave));
        assert_eq!(press('c'), None);
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(keys.press(interrupt), Some(Wish::Leave));
    }
}
