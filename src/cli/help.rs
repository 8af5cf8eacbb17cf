//! The shape of every help: what the command is, its usage, examples, its options, exit codes. And what is made from
//! the same description: completions and manual pages.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, CommandFactory};

use super::Failure;

/// Examples before options: most people copy one and change it.
const TEMPLATE: &str = "\
{before-help}{about-with-newline}
{usage-heading} {usage}{after-help}

{all-args}

Exit codes: 0 done, 1 failed, 2 wrong usage, 101 a bug in hydra.";

/// For manual pages, which know no template.
const EXIT_STATUS: &str = "Exit codes: 0 done, 1 failed, 2 wrong usage, 101 a bug in hydra.";

/// What an example is for, and what to type.
type Example = (&'static str, &'static str);

const EXAMPLES: &[(&str, &[Example])] = &[
    (
        "hydra",
        &[
            ("Train on Hydra's own code and documentation", "hydra up --rounds 20"),
            ("Let the newest model write", "hydra generate \"fn main\" --tokens 200"),
            ("Take part in somebody's run, and earn HYD", "hydra worker --coordinator http://organiser:7700"),
            ("Hand out work to other computers", "hydra coordinator --listen 0.0.0.0:7700 --tasks 8"),
            ("See what a worker of this machine has earned", "hydra wallet balance --wallet worker-1"),
        ],
    ),
    (
        "hydra up",
        &[
            ("Train for twenty rounds, or go on for twenty more", "hydra up --rounds 20"),
            ("Train on your own text, in a folder of its own", "hydra up --data notes/ --state-dir mine --rounds 20"),
            ("Begin anew with a larger network; the old run is kept aside", "hydra up --fresh --preset micro"),
            ("Let others in the network look on, in their browsers", "hydra up --listen 0.0.0.0:8787"),
            ("Let the newest model write on the page", "hydra up --serve --free-tokens 100000"),
            ("Open no port, and print one JSON object at the end", "hydra up --rounds 20 --no-page --json"),
        ],
    ),
    (
        "hydra coordinator",
        &[
            (
                "Train on these books, with eight tasks a round",
                "hydra coordinator --listen 0.0.0.0:7700 --tasks 8 --data books/",
            ),
            ("Only for these workers", "hydra coordinator --admission listed --allow KEY"),
            ("Answer queries to the newest model, for HYD", "hydra coordinator --serve --price 10"),
            ("What a ledger in a process of its own must be told", "hydra coordinator --show-keys"),
            ("Have that ledger pay", "hydra coordinator --ledger http://banker:7710"),
        ],
    ),
    (
        "hydra model",
        &[
            ("The models of the run, and those that were imported", "hydra model list"),
            ("The newest one for transformers", "hydra model export --format hf model/"),
            ("Take a Hugging Face folder in", "hydra model import finetuned/"),
        ],
    ),
    (
        "hydra model export",
        &[
            ("The newest model for transformers", "hydra model export --format hf model/"),
            ("For llama.cpp", "hydra model export --format gguf model/"),
        ],
    ),
    (
        "hydra model import",
        &[
            ("Take in what transformers saved; prints its digest", "hydra model import finetuned/"),
            ("Begin a run with it", "hydra up --init finetuned/ --rounds 10"),
            ("Let it write", "hydra generate \"fn main\" --model finetuned/"),
        ],
    ),
    ("hydra model list", &[("The models of the run, and those that were imported", "hydra model list")]),
    ("hydra model show", &[("What is known of the newest model", "hydra model show")]),
    ("hydra model diff", &[("How far two models are apart", "hydra model diff 3f2a 91bc")]),
    (
        "hydra worker",
        &[
            ("Train for this coordinator", "hydra worker --coordinator http://organiser:7700"),
            (
                "On two cores, at night, and half of the time",
                "hydra worker --coordinator http://organiser:7700 --cpus 2 \\\n      --cpu-percent 50 --schedule 22:00-07:00",
            ),
            ("Finish the task under way, hand it in, and end", "hydra worker finish"),
        ],
    ),
    ("hydra worker pause", &[("Let the machine rest, whatever it is doing", "hydra worker pause")]),
    ("hydra worker resume", &[("Go on after a pause", "hydra worker resume")]),
    ("hydra worker finish", &[("End without wasting what is begun", "hydra worker finish")]),
    ("hydra worker status", &[("What the worker does, for a program", "hydra worker status --json")]),
    (
        "hydra verifier",
        &[
            (
                "The key that the coordinator must be told",
                "hydra verifier --coordinator http://organiser:7700 --show-key",
            ),
            ("Verify for it", "hydra verifier --coordinator http://organiser:7700"),
        ],
    ),
    (
        "hydra verifier recheck",
        &[
            ("A round of the run in the state directory", "hydra verifier recheck 12"),
            (
                "A round of somebody's run, believing nobody",
                "hydra verifier recheck 12 --coordinator http://organiser:7700",
            ),
        ],
    ),
    (
        "hydra verdicts",
        &[
            ("The newest rounds of the run in the state directory", "hydra verdicts"),
            ("Those of a coordinator, for a program", "hydra verdicts --coordinator http://organiser:7700 --json"),
        ],
    ),
    (
        "hydra top",
        &[
            ("The run of this machine's coordinator, as it goes on", "hydra top"),
            ("That of `hydra up`", "hydra top --coordinator http://127.0.0.1:8787"),
            ("One JSON object, for a program", "hydra top --once --json --coordinator http://organiser:7700"),
        ],
    ),
    (
        "hydra generate",
        &[
            ("Let the newest model go on", "hydra generate \"fn main\" --tokens 200"),
            ("The likeliest text, and the same each time", "hydra generate \"fn main\" --temperature 0"),
        ],
    ),
    (
        "hydra serve",
        &[
            ("The key that the ledger must be told", "hydra serve --coordinator http://organiser:7700 --show-key"),
            ("Tell it", "hydra coordinator --server-key KEY"),
            (
                "Answer for ten µHYD a token, from another computer",
                "hydra serve --coordinator http://organiser:7700 --listen 0.0.0.0:7720 \\\n      --price 10",
            ),
        ],
    ),
    (
        "hydra query",
        &[(
            "Ask a coordinator, with the key in HYDRA_API_KEY",
            "hydra query \"fn main\" --coordinator http://organiser:7700 --tokens 60",
        )],
    ),
    (
        "hydra chat",
        &[("Talk, with the key in a file", "hydra chat --coordinator http://organiser:7700 --key-file laptop.key")],
    ),
    ("hydra device", &[("How fast this machine trains", "hydra device bench")]),
    ("hydra device list", &[("What --device can be here", "hydra device list")]),
    (
        "hydra device bench",
        &[
            ("The network that is trained by default", "hydra device bench"),
            ("A larger one, for a program", "hydra device bench --preset mini --json"),
        ],
    ),
    ("hydra config", &[("Every value, and where it comes from", "hydra config show --origin")]),
    (
        "hydra config show",
        &[
            ("What a worker started here would do", "hydra config show worker --origin"),
            ("A file that says the same", "hydra config show > hydra.toml"),
        ],
    ),
    (
        "hydra doctor",
        &[
            ("Whether a worker would work here", "hydra doctor --coordinator http://organiser:7700"),
            ("The same for a program; exit code 1 where not", "hydra doctor --json"),
        ],
    ),
    (
        "hydra ledger",
        &[
            ("Replay the ledger of this machine's run", "hydra ledger verify"),
            ("Replay somebody's ledger here", "hydra ledger verify --coordinator http://organiser:7700"),
            ("Keep a copy, also while it is written to", "hydra ledger backup ledger.bak"),
        ],
    ),
    (
        "hydra ledger verify",
        &[
            ("The ledger of this machine's run", "hydra ledger verify"),
            (
                "Somebody's, which must be signed by KEY",
                "hydra ledger verify --coordinator http://organiser:7700 --key KEY",
            ),
        ],
    ),
    ("hydra ledger head", &[("The newest signed head", "hydra ledger head --json")]),
    ("hydra ledger export", &[("All transfers as a table", "hydra ledger export --format csv --output transfers.csv")]),
    (
        "hydra ledger proof",
        &[
            ("That transfer 72 is in the ledger", "hydra ledger proof 72 > proof.json"),
            (
                "That somebody's ledger goes on from its first 72 transfers",
                "hydra ledger proof --since 72 --coordinator http://organiser:7700",
            ),
        ],
    ),
    (
        "hydra ledger check-proof",
        &[("With the key from somebody whom you trust", "hydra ledger check-proof proof.json --key KEY")],
    ),
    ("hydra ledger backup", &[("A copy of the whole database", "hydra ledger backup ledger.bak")]),
    ("hydra ledger restore", &[("Put it back; what is there now is kept aside", "hydra ledger restore ledger.bak")]),
    (
        "hydra ledger serve",
        &[
            ("The keys of a coordinator and of its verifier", "hydra coordinator --show-keys --state-dir RUN"),
            ("A ledger for them", "hydra ledger serve --state-dir BOOKS --payer KEY --verifier KEY"),
            ("Have it pay", "hydra coordinator --ledger http://127.0.0.1:7710 --state-dir RUN"),
        ],
    ),
    (
        "hydra wallet",
        &[
            ("What a worker of this machine has earned", "hydra wallet balance --wallet worker-1"),
            ("Send some of it", "hydra wallet send KEY 2.5 --wallet worker-1"),
            (
                "What a key has in a ledger on another computer",
                "hydra wallet balance KEY --coordinator http://organiser:7700",
            ),
        ],
    ),
    (
        "hydra wallet new",
        &[
            ("A key called wallet", "hydra wallet new"),
            ("Another, under a passphrase", "hydra wallet new --wallet savings --protect"),
        ],
    ),
    ("hydra wallet show", &[("The address to be paid at", "hydra wallet show --wallet worker-1")]),
    (
        "hydra wallet balance",
        &[
            ("Your own", "hydra wallet balance --wallet worker-1"),
            ("Somebody's, for a program", "hydra wallet balance KEY --json"),
        ],
    ),
    ("hydra wallet history", &[("The last five", "hydra wallet history --wallet worker-1 --last 5")]),
    ("hydra wallet send", &[("Two and a half HYD", "hydra wallet send KEY 2.5 --wallet worker-1")]),
    ("hydra wallet stake", &[("Ten HYD", "hydra wallet stake 10 --wallet worker-1")]),
    ("hydra wallet unstake", &[("Ten HYD, back after a week", "hydra wallet unstake 10 --wallet worker-1")]),
    ("hydra wallet offer", &[("What others offer", "hydra wallet offer list")]),
    (
        "hydra wallet offer make",
        &[(
            "For one taker, and for three days",
            "hydra wallet offer make 5 --to KEY --terms \"an hour of piano\" \\\n      --expires 3days",
        )],
    ),
    ("hydra wallet offer accept", &[("Bind an offer of the list to you", "hydra wallet offer accept OFFER")]),
    ("hydra wallet offer release", &[("You have got it: pay", "hydra wallet offer release OFFER")]),
    ("hydra wallet offer cancel", &[("Nobody wanted it", "hydra wallet offer cancel OFFER")]),
    ("hydra wallet offer list", &[("For a program", "hydra wallet offer list --json")]),
    (
        "hydra wallet key",
        &[(
            "A key for a program, for five HYD at most",
            "hydra wallet key create laptop --limit 5 --wallet worker-1 \\\n      --coordinator http://organiser:7700",
        )],
    ),
    (
        "hydra wallet key create",
        &[(
            "For five HYD at most, and for a month",
            "hydra wallet key create laptop --limit 5 --expires 30days \\\n      --wallet worker-1 --coordinator http://organiser:7700",
        )],
    ),
    (
        "hydra wallet key list",
        &[(
            "What each has spent",
            "hydra wallet key list --wallet worker-1 \\\n      --coordinator http://organiser:7700",
        )],
    ),
    (
        "hydra wallet key revoke",
        &[(
            "It is lost, or no longer needed",
            "hydra wallet key revoke laptop --wallet worker-1 \\\n      --coordinator http://organiser:7700",
        )],
    ),
    (
        "hydra completions",
        &[
            ("For bash, from the next shell on", "hydra completions bash > ~/.bash_completion"),
            ("For zsh, in a folder of $fpath", "hydra completions zsh > ~/.zfunc/_hydra"),
        ],
    ),
    ("hydra man", &[("Where `man hydra` finds them", "hydra man ~/.local/share/man/man1")]),
];

/// Print what makes a shell complete hydra's commands and options
#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// Which shell
    shell: clap_complete::Shell,
}

/// Write manual pages, one a command
#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// The folder; it is made where there is none
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// The whole command line, with its examples.
pub(super) fn command() -> clap::Command {
    dress("hydra", super::Args::command())
}

fn dress(path: &str, mut command: clap::Command) -> clap::Command {
    if let Some((_, examples)) = EXAMPLES.iter().find(|(of, _)| *of == path) {
        let style = *command.get_styles().get_header();
        let examples: String = examples.iter().map(|(what, line)| format!("\n  {what}:\n    {line}")).collect();
        command = command.after_help(format!("{style}Examples:{style:#}{examples}"));
    }
    command.help_template(TEMPLATE).mut_subcommands(|subcommand| {
        let path = format!("{path} {}", subcommand.get_name());
        dress(&path, subcommand)
    })
}

pub(super) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command(), "hydra", &mut script);
    Ok(std::io::stdout().write_all(&script).context("cannot write the completions")?)
}

pub(super) fn man(args: &ManArgs) -> Result<(), Failure> {
    let wrong = || format!("cannot write manual pages into {}", args.folder.display());
    std::fs::create_dir_all(&args.folder).with_context(wrong)?;
    let mut pages = with_exit_status(command());
    pages.build();
    Ok(clap_mangen::generate_to(pages, &args.folder).with_context(wrong)?)
}

fn with_exit_status(command: clap::Command) -> clap::Command {
    let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    // `hydra help send` needs no page of its own.
    command
        .disable_help_subcommand(true)
        .after_help(format!("{examples}\n\n{EXIT_STATUS}"))
        .mut_subcommands(with_exit_status)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::protocol::Keypair;

    /// Every command with its path, groups before their members; without what clap adds itself.
    fn all(path: &str, command: &clap::Command, found: &mut Vec<(String, clap::Command)>) {
        found.push((path.to_owned(), command.clone()));
        for subcommand in command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help") {
            all(&format!("{path} {}", subcommand.get_name()), subcommand, found);
        }
    }

    fn commands() -> Vec<(String, clap::Command)> {
        let mut root = command().term_width(100);
        root.build();
        let mut found = Vec::new();
        all("hydra", &root, &mut found);
        found
    }

    fn help(command: &clap::Command) -> String {
        let text = command.clone().term_width(100).render_long_help().to_string();
        text.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
    }

    #[test]
    fn every_help_has_examples_and_they_can_be_typed() {
        let key = Keypair::from_secret(&[7; 32]).public().to_string();
        let commands = commands();
        for (of, _) in EXAMPLES {
            assert!(commands.iter().any(|(path, _)| path == of), "there is no command {of:?}");
        }
        for (path, command) in commands {
            let help = help(&command);
            let (_, examples) = help.split_once("\nExamples:\n").unwrap_or_else(|| panic!("{path} has no examples"));
            let examples = examples.split("\n\n").next().unwrap();
            assert!(examples.contains(&path), "no example of {path} shows it");
            for line in examples.replace("\\\n", " ").lines().filter_map(|line| line.strip_prefix("    ")) {
                let line = line.split('>').next().unwrap().replace("KEY", &key).replace("OFFER", &"0".repeat(32));
                // Every other piece stood between quotes, and is one word.
                let pieces = line.split('"').enumerate();
                let words: Vec<&str> = pieces
                    .flat_map(|(at, piece)| if at % 2 == 1 { vec![piece] } else { piece.split_whitespace().collect() })
                    .collect();
                let parsed = super::command().try_get_matches_from(&words);
                assert!(parsed.is_ok(), "{path}: {line}: {}", parsed.unwrap_err());
            }
            let widest = examples.lines().max_by_key(|line| line.len()).unwrap();
            assert!(widest.len() <= 80, "{path}: does not fit into 80 columns: {widest}");
        }
    }

    /// `HYDRA_TEST_WRITE=1 cargo test the_help_is` writes the files anew.
    #[test]
    fn the_help_is_what_it_was() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/help");
        let mut files = std::collections::BTreeMap::<String, String>::new();
        for (path, command) in commands() {
            let name = path.split(' ').nth(1).unwrap_or("hydra").to_owned();
            write!(files.entry(name).or_default(), "$ {path} --help\n{}\n", help(&command)).unwrap();
        }
        for (name, now) in files {
            let file = folder.join(format!("{name}.txt"));
            if std::env::var_os("HYDRA_TEST_WRITE").is_some() {
                fs::create_dir_all(&folder).unwrap();
                fs::write(&file, &now).unwrap();
            }
            let before = fs::read_to_string(&file).unwrap_or_default();
            let line = before.lines().zip(now.lines()).find(|(before, now)| before != now);
            assert!(
                before == now,
                "{} differs, first at {line:?}; HYDRA_TEST_WRITE=1 cargo test the_help_is writes it anew",
                file.display()
            );
        }
    }

    #[test]
    fn every_shell_and_every_command_is_served() {
        use clap::ValueEnum;
        for shell in clap_complete::Shell::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut command(), "hydra", &mut script);
            assert!(String::from_utf8(script).unwrap().contains("check-proof"), "{shell}");
        }
        let folder = tempfile::tempdir().unwrap();
        man(&ManArgs { folder: folder.path().join("man1") }).unwrap();
        for (path, _) in commands() {
            let page = folder.path().join("man1").join(path.replace(' ', "-") + ".1");
            let page = fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
            assert!(page.contains("Examples:") && page.contains("Exit codes:"), "{path}");
        }
        assert_eq!(fs::read_dir(folder.path().join("man1")).unwrap().count(), commands().len());
    }
}
