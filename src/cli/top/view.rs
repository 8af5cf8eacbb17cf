//! What is drawn of a snapshot. Nothing here asks anybody anything.

use std::ffi::OsString;

use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph, Row, Table, Widget};

use super::look::Snapshot;
use crate::cli::report::{bits, thousands};
use crate::coordinator::{RoundSummary, WorkerRecord};
use crate::http::api::watch::WorkerRow;
use crate::protocol::Amount;

/// Columns that a fact takes, name and value.
const FACT: u16 = 30;

/// From how many columns on workers and rounds are side by side.
const WIDE: u16 = 120;

/// The most lines that rounds take where workers stand above them.
const ROUNDS: u16 = 12;

/// The most lines that workers take where nothing can be scrolled.
const WORKERS: u16 = 24;

/// Lines of a table besides its rows.
const TABLE: u16 = 2;

/// What is shown at a moment.
pub struct View<'a> {
    pub snapshot: Option<&'a Snapshot>,
    /// Why what is shown is old.
    pub trouble: Option<&'a str>,
    /// What the last key came to.
    pub said: Option<&'a str>,
    /// Workers that are scrolled past.
    pub scroll: usize,
    pub colour: bool,
    /// Whether keys are heard.
    pub live: bool,
}

/// Whether colours are wanted, by the variable `NO_COLOR`.
pub fn has_colour(no_colour: Option<OsString>) -> bool {
    no_colour.is_none_or(|value| value.is_empty())
}

/// Text from elsewhere, fit to be shown: what moves the cursor, hides or turns text around is a dot, and what is very
/// long is cut.
pub fn plain(text: &str) -> String {
    let harmless = |c: char| {
        let hidden =
            matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        if c.is_control() || hidden { '·' } else { c }
    };
    text.chars().take(400).map(harmless).collect()
}

/// The lines of a buffer, without what is empty at their ends.
pub fn lines(buffer: &Buffer) -> Vec<String> {
    let area = buffer.area;
    let cell = |x, y| buffer.cell((x, y)).map_or(" ", |cell| cell.symbol());
    let line = |y| (area.left()..area.right()).map(|x| cell(x, y)).collect::<String>().trim_end().to_owned();
    (area.top()..area.bottom()).map(line).collect()
}

fn loss(nats: Option<f64>) -> String {
    match nats {
        Some(nats) if nats.abs() < 1e4 => format!("{nats:.4}"),
        Some(nats) => format!("{nats:.1e}"),
        None => "–".to_owned(),
    }
}

fn duration(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..=99 => format!("{seconds} s"),
        100..=5999 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// Accepted tokens for each second that a round was open.
fn speed(round: &RoundSummary) -> Option<u64> {
    let ms = round.closed?.0.checked_sub(round.opened.0).filter(|ms| *ms > 0)?;
    Some((round.tokens as f64 * 1000.0 / ms as f64) as u64)
}

fn or_dash(number: Option<u64>) -> String {
    number.map_or_else(|| "–".to_owned(), thousands)
}

/// Lines of a table of so many rows, but not more than `most`.
fn table_lines(rows: usize, most: u16) -> u16 {
    u16::try_from(rows).unwrap_or(most).saturating_add(TABLE).min(most)
}

impl View<'_> {
    /// The lines that it takes to show all, or as much as is reasonable, in so many columns.
    pub fn height(&self, width: u16) -> u16 {
        let Some(snapshot) = self.snapshot else { return 4 };
        let facts = u16::try_from(facts(snapshot).len()).unwrap_or(0).div_ceil((width / FACT).max(1));
        let workers = table_lines(snapshot.workers.len(), WORKERS);
        let rounds = table_lines(snapshot.rounds.len(), ROUNDS);
        4 + facts + if width >= WIDE { workers.max(rounds) } else { workers.max(rounds) + rounds }
    }

    pub fn draw(&self, area: Rect, buffer: &mut Buffer) {
        let facts = self.snapshot.map_or_else(Vec::new, facts);
        let columns = (area.width / FACT).max(1);
        let rows = u16::try_from(facts.len()).unwrap_or(u16::MAX).div_ceil(columns);
        // What is at the bottom stays, however low the terminal is.
        let parts = [Constraint::Length(1), Constraint::Max(rows + 1), Constraint::Fill(1), Constraint::Length(2)];
        let [top, middle, tables, bottom] = Layout::vertical(parts).areas(area);
        self.title(top, buffer);
        self.facts(&facts, columns, middle, buffer);
        if let Some(snapshot) = self.snapshot {
            self.tables(snapshot, tables, buffer);
        }
        self.foot(bottom, buffer);
    }

    fn style(&self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }

    /// What stands out: without colours it is bold.
    fn strong(&self) -> Style {
        if self.live { Style::new().add_modifier(Modifier::BOLD) } else { Style::new() }
    }

    fn title(&self, area: Rect, buffer: &mut Buffer) {
        let (whose, phase) = match self.snapshot {
            Some(Snapshot { coordinator, status, .. }) => {
                let phase = if status.closed { "making the next model" } else { "training" };
                (format!("{}  run {}", plain(coordinator), status.run.0.short()), phase)
            }
            None => ("waiting for the coordinator".to_owned(), ""),
        };
        let line = Line::from(vec![
            Span::styled("hydra top  ", self.strong()),
            Span::raw(whose),
            Span::styled(format!("  {phase}"), self.style(Color::Green)),
        ]);
        Paragraph::new(line).render(area, buffer);
    }

    fn facts(&self, facts: &[(&str, String)], columns: u16, area: Rect, buffer: &mut Buffer) {
        if area.is_empty() {
            return;
        }
        let area = Rect { y: area.y + 1, height: area.height - 1, ..area };
        for ((name, value), index) in facts.iter().zip(0u16..) {
            let (x, y) = (index % columns * FACT, index / columns);
            if y < area.height {
                let place = Rect { x: area.x + x, y: area.y + y, width: (area.width - x).min(FACT), height: 1 };
                let name = Span::styled(format!("{name:<11}"), self.style(Color::DarkGray));
                let line = Line::from(vec![name, Span::styled(value.clone(), self.strong())]);
                Paragraph::new(line).render(place, buffer);
            }
        }
    }

    fn tables(&self, snapshot: &Snapshot, area: Rect, buffer: &mut Buffer) {
        let (workers, rounds) = if area.width >= WIDE {
            let [left, right] = Layout::horizontal([Constraint::Percentage(50), Constraint::Fill(1)]).areas(area);
            (left, right)
        } else {
            // Low terminals show workers only.
            let rounds = table_lines(snapshot.rounds.len(), ROUNDS).min(area.height / 2);
            let height = if area.height < 10 { 0 } else { rounds };
            let [above, below] = Layout::vertical([Constraint::Fill(1), Constraint::Length(height)]).areas(area);
            (above, below)
        };
        self.workers(snapshot, workers, buffer);
        self.rounds(snapshot, rounds, buffer);
    }

    fn workers(&self, snapshot: &Snapshot, area: Rect, buffer: &mut Buffer) {
        let room = usize::from(area.height.saturating_sub(TABLE));
        let all = snapshot.workers.len();
        let first = self.scroll.min(all.saturating_sub(room));
        let rows = snapshot.workers.iter().skip(first).take(room).map(|worker| {
            let WorkerRow { key, record, holds, seen } = worker;
            let WorkerRecord { accepted, rejected, tokens, pay, banned, found_false, .. } = record;
            let does = match (banned, holds, seen) {
                (true, ..) => "banned".to_owned(),
                (_, 1.., _) => "training".to_owned(),
                (_, _, Some(_)) => "there".to_owned(),
                _ => "–".to_owned(),
            };
            let style = if *banned || *found_false > 0 { self.style(Color::Red) } else { Style::new() };
            let cells = [key.short(), does, thousands(*accepted), thousands(*rejected), thousands(*tokens), hyd(*pay)];
            Row::new(cells).style(style)
        });
        let shown = if all > room && room > 0 {
            format!(", {} to {}", first + 1, (first + room).min(all))
        } else {
            String::new()
        };
        let title = format!("workers: {}{shown}", thousands(all as u64));
        let widths = [8, 8, 8, 8, 15, 12];
        self.table(title, ["worker", "does", "accepted", "rejected", "tokens", "paid"], rows, &widths, area, buffer);
    }

    fn rounds(&self, snapshot: &Snapshot, area: Rect, buffer: &mut Buffer) {
        let room = usize::from(area.height.saturating_sub(TABLE));
        let rows = snapshot.rounds.iter().rev().take(room).map(|round| {
            let verdicts = format!("{}/{}", round.accepted, round.rejected);
            let open = if round.closed.is_none() { self.style(Color::Green) } else { Style::new() };
            let cells = [
                round.round.0.to_string(),
                loss(round.loss),
                loss(round.train_loss),
                verdicts,
                or_dash(speed(round)),
                round.base.short(),
            ];
            Row::new(cells).style(open)
        });
        let titles = ["round", "val loss", "training", "good/bad", "tokens/s", "model"];
        self.table("rounds".to_owned(), titles, rows, &[8, 9, 9, 9, 10, 8], area, buffer);
    }

    fn table<'b>(
        &self,
        title: String,
        titles: [&'static str; 6],
        rows: impl Iterator<Item = Row<'b>>,
        widths: &[u16],
        area: Rect,
        buffer: &mut Buffer,
    ) {
        let block = Block::new().borders(Borders::TOP).title(format!(" {title} "));
        let header = Row::new(titles).style(self.style(Color::DarkGray));
        let widths = widths.iter().map(|width| Constraint::Length(*width));
        Table::new(rows, widths).header(header).block(block).column_spacing(1).render(area, buffer);
    }

    fn foot(&self, area: Rect, buffer: &mut Buffer) {
        let worker = self.snapshot.and_then(|snapshot| snapshot.worker.as_ref());
        let here = worker.map(|worker| {
            let step = if worker.of_steps > 0 && worker.task.is_some() {
                format!(", step {} of {}", worker.steps, worker.of_steps)
            } else {
                String::new()
            };
            format!("worker here: {}{step}; {}", plain(&worker.state), plain(&worker.why))
        });
        let (line, colour) = match (self.trouble, self.said, here) {
            (Some(trouble), ..) => (format!("{}; trying again", plain(trouble)), Color::Red),
            (None, Some(said), _) => (plain(said), Color::Yellow),
            (None, None, here) => (here.unwrap_or_default(), Color::Reset),
        };
        let keys = match (self.live, worker) {
            (false, _) => "",
            (true, Some(_)) => "q leave   p pause   r resume   f finish   ↑ ↓ workers",
            (true, None) => "q leave   ↑ ↓ workers",
        };
        let lines = vec![Line::styled(line, self.style(colour)), Line::styled(keys, self.style(Color::DarkGray))];
        Paragraph::new(lines).render(area, buffer);
    }
}

/// Without the unit: the column says it.
fn hyd(pay: Amount) -> String {
    pay.to_string().trim_end_matches(" HYD").to_owned()
}

/// What there is to know of a run at a glance.
fn facts(snapshot: &Snapshot) -> Vec<(&'static str, String)> {
    let Snapshot { status, rounds, ledger, .. } = snapshot;
    let closed = rounds.iter().rev().find(|round| round.closed.is_some());
    let left = status.deadline.0.saturating_sub(status.time.0);
    let mut facts = vec![
        ("round", thousands(status.round.0.into())),
        ("time left", duration(left)),
        ("accepted", format!("{} of {}", status.accepted, status.tasks)),
        ("under way", thousands(status.leased.into())),
        ("val loss", loss(status.loss)),
        ("bits/byte", status.loss.map_or_else(|| "–".to_owned(), |nats| loss(Some(bits(nats))))),
        ("training", loss(closed.and_then(|round| round.train_loss))),
        ("tokens/s", or_dash(closed.and_then(speed))),
        ("tokens", thousands(status.tokens)),
        ("workers", format!("{} of {}", thousands(status.workers_seen), thousands(status.workers))),
        ("parameters", format!("{:.1} M", status.parameters as f64 / 1e6)),
        ("model", status.model.short()),
    ];
    if let Some(sums) = ledger {
        facts.push(("supply", sums.supply.to_string()));
        facts.push(("unvested", sums.unvested.to_string()));
    }
    facts
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::path::Path;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::cli::owner::WorkerStatus;
    use crate::cli::top::look::Sums;
    use crate::http::api::Status;
    use crate::protocol::{Balance, Digest, Round, RunId, Time};
    use crate::testing::key;

    fn round(number: u32) -> RoundSummary {
        RoundSummary {
            round: Round(number),
            base: Digest::of(&[number as u8]),
            opened: Time(u64::from(number) * 10_000),
            closed: (number < 7).then_some(Time(u64::from(number) * 10_000 + 8_000)),
            accepted: 4,
            rejected: number % 2,
            late: 0,
            tokens: 46_080,
            train_loss: (number < 7).then(|| 3.0 - f64::from(number) / 10.0),
            loss: Some(3.1 - f64::from(number) / 10.0),
            paid: Amount::from_micro(100_000_000).unwrap(),
        }
    }

    fn worker(number: u8) -> WorkerRow {
        WorkerRow {
            key: key(number).public(),
            record: WorkerRecord {
                accepted: 40 - u64::from(number),
                rejected: u64::from(number) % 3,
                tokens: 46_080 * (40 - u64::from(number)),
                pay: Amount::from_micro(1_234_567 * i64::from(40 - number)).unwrap(),
                clean: 3,
                audited: 2,
                found_false: u64::from(number == 3),
                owed: 0,
                banned: number == 3,
            },
            holds: u32::from(number < 2),
            seen: (number < 5).then_some(Time(70_000)),
        }
    }

    fn snapshot() -> Snapshot {
        let status = Status {
            run: RunId(Digest::of(b"run")),
            round: Round(7),
            closed: false,
            tasks: 4,
            accepted: 1,
            leased: 2,
            tokens: 322_560,
            model: Digest::of(&[7]),
            loss: Some(2.4),
            parameters: 836_992,
            workers: 12,
            workers_seen: 5,
            opened: Time(70_000),
            deadline: Time(130_000),
            time: Time(75_500),
        };
        let worker_here = WorkerStatus {
            state: "training".to_owned(),
            why: "it computes its task".to_owned(),
            key: key(0).public(),
            coordinator: "http://organiser:7700".to_owned(),
            task: Some(crate::protocol::TaskId(Digest::of(b"task"))),
            steps: 12,
            of_steps: 30,
            handed_in: 7,
            trouble: None,
            failed: None,
            finishing: false,
        };
        Snapshot {
            coordinator: "http://organiser:7700".to_owned(),
            status,
            rounds: (0..8).map(round).collect(),
            workers: (0..12).map(worker).collect(),
            ledger: Some(Sums {
                supply: Balance(700_000_000),
                unvested: Balance(650_000_000),
                burned: Balance(0),
                transfers: 28,
            }),
            worker: Some(worker_here),
        }
    }

    fn view(snapshot: Option<&Snapshot>) -> View<'_> {
        View { snapshot, trouble: None, said: None, scroll: 0, colour: true, live: true }
    }

    fn frame(view: &View<'_>, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| view.draw(frame.area(), frame.buffer_mut())).unwrap();
        lines(terminal.backend().buffer()).into_iter().map(|line| line + "\n").collect()
    }

    /// `HYDRA_TEST_WRITE=1 cargo test --lib the_frames_are` writes the file anew.
    #[test]
    fn the_frames_are_what_they_were() {
        let snapshot = snapshot();
        let mut now = String::new();
        for (width, height) in [(130, 24), (80, 30), (80, 12), (40, 14), (18, 5)] {
            writeln!(now, "== {width} × {height}\n{}", frame(&view(Some(&snapshot)), width, height)).unwrap();
        }
        let away = View { trouble: Some("cannot reach http://organiser:7700: refused"), ..view(None) };
        writeln!(now, "== before anything is known\n{}", frame(&away, 80, 8)).unwrap();
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/top/frames.txt");
        if std::env::var_os("HYDRA_TEST_WRITE").is_some() {
            std::fs::write(&file, &now).unwrap();
        }
        let before = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(
            before == now,
            "frames.txt differs; HYDRA_TEST_WRITE=1 cargo test --lib the_frames_are writes it anew\n{now}"
        );
    }

    #[test]
    fn every_size_is_drawn_and_scrolling_ends_at_the_last_worker() {
        let snapshot = snapshot();
        for width in 1..140 {
            for height in [1, 2, 3, 5, 9, 10, 24] {
                frame(&View { scroll: 5, ..view(Some(&snapshot)) }, width, height);
            }
        }
        let end = frame(&View { scroll: usize::MAX, ..view(Some(&snapshot)) }, 80, 24);
        assert!(end.contains(&key(11).public().short()), "{end}");
    }

    #[test]
    fn what_a_hostile_server_says_moves_no_cursor_and_spills_nowhere() {
        let mut snapshot = snapshot();
        let worst = "\u{1b}[2J\u{1b}]0;title\u{7}\u{9b}31m\u{202e}txet\u{200b}\r\n\t".repeat(50);
        snapshot.coordinator.clone_from(&worst);
        snapshot.status.loss = Some(f64::MAX);
        snapshot.status.tokens = u64::MAX;
        snapshot.status.deadline = Time(u64::MAX);
        snapshot.rounds[3].loss = Some(-f64::MAX);
        snapshot.rounds[3].tokens = u64::MAX;
        snapshot.rounds[2].closed = Some(Time(0));
        let here = snapshot.worker.as_mut().unwrap();
        (here.state, here.why) = (worst.clone(), worst.clone());
        for (width, height) in [(80, 24), (30, 10)] {
            let view = View { trouble: Some(&worst), ..view(Some(&snapshot)) };
            for view in [&view, &View { trouble: None, ..view }] {
                let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
                terminal.draw(|frame| view.draw(frame.area(), frame.buffer_mut())).unwrap();
                for cell in terminal.backend().buffer().content() {
                    let bad =
                        |c: char| c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}');
                    assert!(!cell.symbol().chars().any(bad), "{:?}", cell.symbol());
                }
            }
        }
    }

    #[test]
    fn without_colours_nothing_has_one() {
        assert!(has_colour(None) && has_colour(Some("".into())) && !has_colour(Some("1".into())));
        let snapshot = snapshot();
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        let view = View { colour: false, ..view(Some(&snapshot)) };
        terminal.draw(|frame| view.draw(frame.area(), frame.buffer_mut())).unwrap();
        assert!(terminal.backend().buffer().content().iter().all(|cell| cell.fg == Color::Reset));
    }
}
