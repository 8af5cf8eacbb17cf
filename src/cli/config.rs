//! Where options come from: defaults, then `hydra.toml`, then `HYDRA_*` variables, then the command line.
//!
//! A key of the file is a long flag of the command whose table it stands in, and a variable is a flag in capitals, so
//! the commands themselves are the only list of options. What file and environment say is put before the user's own
//! arguments, as flags that were not given, and parsed with them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, CommandFactory, FromArgMatches, Subcommand};
use serde_json::json;

use super::{Args, Failure, state_dir};
use crate::protocol::limits;

/// The commands that can be configured, each by the table of its name.
const COMMANDS: [&str; 5] = ["up", "coordinator", "worker", "verifier", "serve"];

/// Flags that are for once: each start of a service would do it again.
const ONCE: [&str; 3] = ["fresh", "show-key", "show-keys"];

/// Flags that are not shown.
const SECRET: [&str; 1] = ["invite"];

const FILE: &str = "hydra.toml";

/// Show what the commands that run for long are configured to do
#[derive(Debug, clap::Args)]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print the configuration in the form of hydra.toml, as file, environment and defaults make it
    Show {
        /// Of one command only
        #[arg(value_parser = COMMANDS)]
        command: Option<String>,
        /// Say where each value comes from
        #[arg(long)]
        origin: bool,
        /// Print one JSON object, origins included
        #[arg(long)]
        json: bool,
    },
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfigError {
    #[error("cannot read {}: {error}", path.display())]
    Read { path: PathBuf, error: std::io::Error },
    #[error("{} is larger than {limit} bytes: that is no configuration", path.display(), limit = limits::CONFIG_BYTES_MAX)]
    TooLong { path: PathBuf },
    #[error("{}: {error}", path.display())]
    Syntax { path: PathBuf, error: toml::de::Error },
    #[error("{}: there is no table [{table}]; did you mean [{nearest}]?", path.display())]
    UnknownTable { path: PathBuf, table: String, nearest: String },
    #[error("{}: {key} stands outside of the tables {tables}", path.display(), tables = COMMANDS.map(|name| format!("[{name}]")).join(", "))]
    NoTable { path: PathBuf, key: String },
    #[error("{}: {command} has no key {key}; did you mean {nearest}?", path.display())]
    UnknownKey { path: PathBuf, command: String, key: String, nearest: String },
    #[error("{}: {command}.{key} must be {needs}", path.display())]
    Value { path: PathBuf, command: String, key: String, needs: &'static str },
    #[error("the variable {name} must be {needs}")]
    Variable { name: String, needs: &'static str },
}

/// What file and environment say.
#[derive(Debug, Default)]
pub(super) struct Settings {
    file: Option<(PathBuf, toml::Table)>,
    environment: BTreeMap<String, OsString>,
}

/// One option of a command.
#[derive(Debug, Clone, PartialEq)]
struct Setting {
    key: String,
    kind: Kind,
    values: Vec<String>,
    origin: Origin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Switch,
    Single,
    List,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    Default,
    File(PathBuf),
    Variable(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Variable(name) => f.write_str(name),
        }
    }
}

/// Reads the command line, and what file and environment say for the command on it. Prints what is wrong, or the help
/// that was asked for, and gives the exit code then.
pub(super) fn read(
    arguments: &[OsString],
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> Result<(Args, Settings), u8> {
    let mut command = super::help::command();
    command.build();
    let wrong = |error: ConfigError| {
        eprintln!("error: {error}");
        2
    };
    // Only what is on the command line: whatever else is wrong with it comes out below.
    let given = command.clone().ignore_errors(true).try_get_matches_from(arguments).ok();
    let named = given.as_ref().and_then(ArgMatches::subcommand);
    let (mut settings, mut added, mut origins) = (Settings::default(), Vec::new(), Vec::new());
    if let Some((name, matches)) = named
        && (COMMANDS.contains(&name) || matches!(name, "config" | "doctor"))
    {
        settings = Settings::find(&command, matches, environment).map_err(wrong)?;
        if let Some(subcommand) = command.find_subcommand(name) {
            for setting in settings.of(subcommand).map_err(wrong)? {
                let of_caller = subcommand.get_arguments().find(|arg| arg.get_long() == Some(&setting.key));
                let open = of_caller.is_some_and(|arg| {
                    let asked = matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
                    // What talks to a running worker takes nothing but where that is.
                    !asked && (matches.subcommand().is_none() || arg.is_global_set())
                });
                if open && setting.origin != Origin::Default {
                    added.extend(setting.arguments());
                    origins.push((setting.key, setting.origin));
                }
            }
        }
    }
    let mut all = arguments.to_vec();
    if let Some((name, matches)) = named
        && let Some(place) = arguments.windows(2).position(|pair| pair[0] != "--config" && pair[1] == name)
    {
        let place = if matches.subcommand().is_some() { all.len() } else { place + 2 };
        all.splice(place..place, added);
    }
    let parsed = command.try_get_matches_from(all).and_then(|matches| Args::from_arg_matches(&matches));
    match parsed {
        Ok(args) => Ok((args, settings)),
        Err(error) => {
            // Nothing can be done about a terminal that is gone.
            let _ = error.print();
            if let Some(ContextValue::String(about)) = error.get(ContextKind::InvalidArg) {
                let flag = about.split([' ', '=']).next().unwrap_or_default();
                if let Some((_, origin)) = origins.iter().find(|(key, _)| flag.strip_prefix("--") == Some(key)) {
                    eprintln!("{flag} comes from {origin}");
                }
            }
            Err(u8::try_from(error.exit_code()).unwrap_or(2))
        }
    }
}

impl Settings {
    /// The first of `--config`, `HYDRA_CONFIG`, `hydra.toml` here, `hydra.toml` in the state directory.
    fn find(
        root: &clap::Command,
        matches: &ArgMatches,
        environment: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let environment: BTreeMap<String, OsString> = environment
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .filter(|(name, value)| name.starts_with("HYDRA_") && !value.is_empty())
            .collect();
        let path = |id: &str| matches.try_get_one::<PathBuf>(id).ok().flatten().cloned();
        let named = path("config").or_else(|| environment.get("HYDRA_CONFIG").map(PathBuf::from));
        let state = path("state_dir").or_else(|| environment.get("HYDRA_STATE_DIR").map(PathBuf::from));
        let file = match named {
            Some(file) => Some(file),
            None => {
                let there = state_dir(state.as_deref()).ok().map(|folder| folder.join(FILE));
                [Some(PathBuf::from(FILE)), there].into_iter().flatten().find(|path| path.exists())
            }
        };
        let file = file.map(|path| Ok((path.clone(), table(root, &path, &text(&path)?)?))).transpose()?;
        Ok(Self { file, environment })
    }

    /// The file, if there is one.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_ref().map(|(path, _)| path.as_path())
    }

    /// Every option of `command` that can be configured.
    fn of(&self, command: &clap::Command) -> Result<Vec<Setting>, ConfigError> {
        // What is wrong for a worker is told before it is started.
        let name = if command.get_name() == "doctor" { "worker" } else { command.get_name() };
        let file = self.file.as_ref().and_then(|(path, tables)| Some((path, tables.get(name)?.as_table()?)));
        let setting = |arg: &clap::Arg| {
            let key = arg.get_long().unwrap_or_default().to_owned();
            let kind = kind(arg);
            let variable = variable(&key);
            let (values, origin) = if let Some(value) = self.environment.get(&variable) {
                let values = from_variable(kind, value)
                    .map_err(|needs| ConfigError::Variable { name: variable.clone(), needs })?;
                (values, Origin::Variable(variable))
            } else if let Some((path, value)) = file.and_then(|(path, table)| Some((path, table.get(&key)?))) {
                let wrong = |needs| {
                    let (path, command, key) = (path.clone(), name.to_owned(), key.clone());
                    ConfigError::Value { path, command, key, needs }
                };
                (from_file(kind, value).map_err(wrong)?, Origin::File(path.clone()))
            } else {
                let values = arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned());
                (values.collect(), Origin::Default)
            };
            Ok(Setting { key, kind, values, origin })
        };
        settable(command).map(setting).collect()
    }
}

impl Setting {
    fn arguments(&self) -> Vec<OsString> {
        match self.kind {
            Kind::Switch if self.values == ["true"] => vec![format!("--{}", self.key).into()],
            Kind::Switch => vec![],
            Kind::Single | Kind::List => {
                self.values.iter().map(|value| format!("--{}={value}", self.key).into()).collect()
            }
        }
    }

    fn is_set(&self) -> bool {
        self.kind == Kind::Switch || !self.values.is_empty()
    }

    /// As it would stand in a file.
    fn value(&self) -> serde_json::Value {
        let word = |value: &String| match value.parse::<i64>() {
            Ok(number) => json!(number),
            Err(_) => json!(value),
        };
        if SECRET.contains(&self.key.as_str()) && !self.values.is_empty() {
            return json!("(not shown)");
        }
        match self.kind {
            Kind::Switch => json!(self.values == ["true"]),
            Kind::Single => self.values.first().map_or(json!(null), word),
            Kind::List => json!(self.values),
        }
    }
}

fn variable(key: &str) -> String {
    format!("HYDRA_{}", key.replace('-', "_").to_uppercase())
}

fn kind(arg: &clap::Arg) -> Kind {
    match arg.get_action() {
        ArgAction::SetTrue => Kind::Switch,
        ArgAction::Append => Kind::List,
        _ => Kind::Single,
    }
}

fn settable(command: &clap::Command) -> impl Iterator<Item = &clap::Arg> {
    command.get_arguments().filter(|arg| {
        let usual = !matches!(arg.get_action(), ArgAction::Help | ArgAction::Version);
        usual && arg.get_long().is_some_and(|long| long != "config" && !ONCE.contains(&long))
    })
}

fn from_variable(kind: Kind, value: &OsString) -> Result<Vec<String>, &'static str> {
    let value = value.to_str().ok_or("Unicode")?;
    match (kind, value) {
        (Kind::Single, _) => Ok(vec![value.to_owned()]),
        (Kind::List, _) => Ok(value.split(',').map(str::to_owned).collect()),
        (Kind::Switch, "true" | "1") => Ok(vec!["true".to_owned()]),
        (Kind::Switch, "false" | "0") => Ok(vec!["false".to_owned()]),
        (Kind::Switch, _) => Err("true or false"),
    }
}

fn from_file(kind: Kind, value: &toml::Value) -> Result<Vec<String>, &'static str> {
    let word = |value: &toml::Value| match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        _ => None,
    };
    match (kind, value) {
        (Kind::Switch, toml::Value::Boolean(value)) => Ok(vec![value.to_string()]),
        (Kind::Switch, _) => Err("true or false"),
        (Kind::Single, value) => Ok(vec![word(value).ok_or("a text or a number")?]),
        (Kind::List, toml::Value::Array(values)) => {
            values.iter().map(|value| word(value).ok_or("a list of texts")).collect()
        }
        (Kind::List, value) => Ok(vec![word(value).ok_or("a list of texts")?]),
    }
}

fn text(path: &Path) -> Result<String, ConfigError> {
    let read = |error| ConfigError::Read { path: path.to_owned(), error };
    if fs::metadata(path).map_err(read)?.len() > limits::CONFIG_BYTES_MAX {
        return Err(ConfigError::TooLong { path: path.to_owned() });
    }
    fs::read_to_string(path).map_err(read)
}

/// Reads a file and refuses whatever no command knows, for all commands, whichever is to run.
fn table(root: &clap::Command, path: &Path, text: &str) -> Result<toml::Table, ConfigError> {
    let path = || path.to_owned();
    let tables: toml::Table = toml::from_str(text).map_err(|error| ConfigError::Syntax { path: path(), error })?;
    for (name, table) in &tables {
        let Some(keys) = table.as_table() else {
            return Err(ConfigError::NoTable { path: path(), key: name.clone() });
        };
        let command = COMMANDS.contains(&name.as_str()).then(|| root.find_subcommand(name)).flatten();
        let Some(command) = command else {
            let nearest = nearest(name, COMMANDS.into_iter());
            return Err(ConfigError::UnknownTable { path: path(), table: name.clone(), nearest });
        };
        let known = || settable(command).filter_map(clap::Arg::get_long);
        if let Some(key) = keys.keys().find(|key| !known().any(|known| known == *key)) {
            let (command, nearest) = (name.clone(), nearest(key, known()));
            return Err(ConfigError::UnknownKey { path: path(), command, key: key.clone(), nearest });
        }
    }
    Ok(tables)
}

fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> String {
    let similar = |known: &str| strsim::jaro_winkler(word, known);
    known.max_by(|a, b| similar(a).total_cmp(&similar(b))).unwrap_or_default().to_owned()
}

pub(super) fn run(args: &ConfigArgs, settings: &Settings) -> Result<(), Failure> {
    let ConfigCommand::Show { command: only, origin, json } = &args.command;
    let mut root = Args::command();
    root.build();
    let mut shown = serde_json::Map::new();
    let mut lines = Vec::new();
    for name in COMMANDS.into_iter().filter(|name| only.as_deref().is_none_or(|only| only == *name)) {
        let Some(command) = root.find_subcommand(name) else { continue };
        let all = settings.of(command).map_err(|error| Failure::Usage(error.into()))?;
        let mut table = serde_json::Map::new();
        lines.push(format!("[{name}]"));
        for setting in all.iter().filter(|setting| setting.is_set()) {
            let value = setting.value();
            // What JSON writes for texts, numbers, truths and lists of texts is TOML too.
            let comment = if *origin { format!("  # {}", setting.origin) } else { String::new() };
            lines.push(format!("{} = {value}{comment}", setting.key));
            let origin = setting.origin.to_string();
            table.insert(setting.key.clone(), json!({ "value": value, "origin": origin }));
        }
        lines.push(String::new());
        shown.insert(name.to_owned(), table.into());
    }
    if *json {
        println!("{}", json!({ "file": settings.file(), "commands": shown }));
    } else {
        println!("{}", lines.join("\n").trim_end());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<toml::Table, ConfigError> {
        let mut root = Args::command();
        root.build();
        table(&root, Path::new("hydra.toml"), text)
    }

    /// What comes of a file, an environment and a command line.
    fn args(file: &str, environment: &[(&str, &str)], line: &[&str]) -> Result<String, u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        fs::write(&path, file).unwrap();
        let environment = environment.iter().map(|(name, value)| (name.into(), value.into()));
        let arguments = [&["hydra", "--config", path.to_str().unwrap()], line].concat();
        let arguments: Vec<OsString> = arguments.into_iter().map(OsString::from).collect();
        read(&arguments, environment).map(|(args, _)| format!("{:?}", args.command))
    }

    #[test]
    fn the_command_line_wins_over_the_environment_and_that_over_the_file() {
        let file = "[worker]\ncoordinator = 'http://file:1'\ncpus = 1\nidle-only = true\n";
        let cpus = |environment: &[_], line: &[_]| args(file, environment, &[&["worker"], line].concat()).unwrap();
        assert!(cpus(&[], &[]).contains("cpus: Some(1)"));
        assert!(cpus(&[("HYDRA_CPUS", "2")], &[]).contains("cpus: Some(2)"));
        assert!(cpus(&[("HYDRA_CPUS", "")], &[]).contains("cpus: Some(1)"));
        assert!(cpus(&[("HYDRA_CPUS", "2")], &["--cpus", "3"]).contains("cpus: Some(3)"));
        assert!(cpus(&[], &[]).contains("idle_only: true"));
        assert!(cpus(&[("HYDRA_IDLE_ONLY", "false")], &[]).contains("idle_only: false"));
        assert!(cpus(&[], &["--coordinator=http://line:1"]).contains("http://line:1"));
        let lists = "[coordinator]\ndata = ['a', 'b']\n";
        assert!(args(lists, &[], &["coordinator"]).unwrap().contains("data: [\"a\", \"b\"]"));
        assert!(args(lists, &[("HYDRA_DATA", "c,d")], &["coordinator"]).unwrap().contains("data: [\"c\", \"d\"]"));
        assert!(args(lists, &[], &["coordinator", "--data", "e"]).unwrap().contains("data: [\"e\"]"));
    }

    #[test]
    fn what_talks_to_a_running_worker_takes_its_state_directory_and_nothing_else() {
        let file = "[worker]\ncoordinator = 'http://file:1'\nstate-dir = 'there'\n";
        let parsed = args(file, &[], &["worker", "status"]).unwrap();
        assert!(parsed.contains("Status") && parsed.contains("there") && !parsed.contains("file:1"), "{parsed}");
    }

    #[test]
    fn what_belongs_together_must_come_together_from_a_file_too() {
        assert_eq!(args("[coordinator]\ntls-cert = 'a.pem'\n", &[], &["coordinator"]), Err(2));
        assert!(args("[coordinator]\ntls-cert = 'a'\ntls-key = 'b'\n", &[], &["coordinator"]).is_ok());
        assert_eq!(args("[worker]\ncpus = 0\ncoordinator = 'http://x:1'\n", &[], &["worker"]), Err(2));
        assert_eq!(args("[worker]\ncpu = 1\n", &[], &["coordinator"]), Err(2), "another command's table counts too");
    }

    #[test]
    fn unknown_keys_are_refused_with_the_nearest_known_one() {
        let refused = |text: &str| parse(text).unwrap_err().to_string();
        assert_eq!(
            refused("[worker]\ncpu-pecent = 50\n"),
            "hydra.toml: worker has no key cpu-pecent; did you mean cpu-percent?"
        );
        assert_eq!(refused("[workr]\n"), "hydra.toml: there is no table [workr]; did you mean [worker]?");
        assert!(refused("[coordinator]\ninner_steps = 3\n").contains("did you mean inner-steps?"));
        assert!(refused("listen = 'x'\n").contains("stands outside of the tables [up], [coordinator]"));
        // Each start of a service would throw its run away.
        assert!(refused("[up]\nfresh = true\n").contains("no key fresh"));
        // And would end at once with one that only shows keys.
        assert!(refused("[coordinator]\nshow-keys = true\n").contains("no key show-keys"));
        assert!(refused("[worker]\n[worker.cpus]\nx = ").contains("hydra.toml: TOML parse error at line 3"));
    }

    #[test]
    fn what_is_shown_is_a_file_that_says_the_same() {
        let mut root = Args::command();
        root.build();
        let file = "[coordinator]\ndata = [\"a \\\"b\\\"\"]\nlisten = \"[::]:1\"\ntasks = 7\nlr = 0.5\n";
        let path = PathBuf::from("x.toml");
        let settings = |text: &str| Settings {
            file: Some((path.clone(), table(&root, &path, text).unwrap())),
            environment: BTreeMap::new(),
        };
        let coordinator = root.find_subcommand("coordinator").unwrap();
        let before = settings(file).of(coordinator).unwrap();
        let set = before.iter().filter(|setting| setting.is_set());
        let shown: String = set.map(|setting| format!("{} = {}\n", setting.key, setting.value())).collect();
        let after = settings(&format!("[coordinator]\n{shown}")).of(coordinator).unwrap();
        for (before, after) in before.iter().zip(&after) {
            let no = |setting: &Setting| setting.kind == Kind::Switch && setting.values != ["true"];
            assert!(before.values == after.values || (no(before) && no(after)), "{before:?} {after:?}");
        }
    }

    #[test]
    fn no_file_brings_the_reader_down() {
        let mut root = Args::command();
        root.build();
        let root = std::panic::AssertUnwindSafe(root);
        let path = PathBuf::from("hydra.toml");
        let good = b"[worker]\ncpus = 2\nidle-only = true\n[coordinator]\ndata = ['a', 'b']\nlr = 1e-3\n";
        bolero::check!().with_iterations(2000).for_each(|input: &[u8]| {
            let mut altered = good.to_vec();
            for change in input.chunks_exact(2).take(4) {
                let at = usize::from(change[0]) % altered.len();
                altered[at] = change[1];
            }
            for text in [String::from_utf8_lossy(input), String::from_utf8_lossy(&altered)] {
                let Ok(tables) = table(&root, &path, &text) else { continue };
                let settings = Settings { file: Some((path.clone(), tables)), environment: BTreeMap::new() };
                for name in COMMANDS {
                    let _ = settings.of(root.find_subcommand(name).unwrap());
                }
            }
        });
    }

    /// The table of the book's chapter, from the commands themselves.
    fn reference() -> String {
        let mut root = Args::command();
        root.build();
        let mut lines = Vec::new();
        for name in COMMANDS {
            let command = root.find_subcommand(name).unwrap();
            lines.push(format!("\n## `[{name}]`\n\n| key | value | what it does |\n| --- | --- | --- |"));
            for arg in settable(command) {
                let names = arg.get_value_names().map_or_else(String::new, |names| names.join(" "));
                let value = match kind(arg) {
                    Kind::Switch => "true or false".to_owned(),
                    Kind::Single => names,
                    Kind::List => format!("list of {names}"),
                };
                let default: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
                let default = match kind(arg) {
                    Kind::Single if !default.is_empty() => format!(" [default: {}]", default.join(" ")),
                    _ => String::new(),
                };
                let help = arg.get_help().map_or_else(String::new, ToString::to_string).replace('|', "\\|");
                lines.push(format!("| `{}` | {value} | {help}{default} |", arg.get_long().unwrap()));
            }
        }
        lines.join("\n") + "\n"
    }

    /// `HYDRA_TEST_WRITE=1 cargo test the_book` writes the chapter anew.
    #[test]
    fn the_book_tells_of_every_key() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/src/configuration.md");
        let chapter = fs::read_to_string(&path).unwrap();
        let (begin, _) = chapter.split_once("\n## `[").unwrap();
        let right = format!("{begin}{}", reference());
        if std::env::var_os("HYDRA_TEST_WRITE").is_some() {
            return fs::write(&path, &right).unwrap();
        }
        let same = chapter == right;
        assert!(same, "the chapter on the configuration is old; HYDRA_TEST_WRITE=1 cargo test the_book writes it anew");
    }

    #[test]
    fn every_variable_stands_for_one_key() {
        let mut root = Args::command();
        root.build();
        for name in COMMANDS {
            let command = root.find_subcommand(name).unwrap();
            for arg in settable(command) {
                let variable = variable(arg.get_long().unwrap());
                assert_ne!(variable, "HYDRA_CONFIG");
                assert!(variable.chars().all(|c| c.is_ascii_uppercase() || c == '_'), "{variable}");
            }
        }
    }
}
