use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::report::thousands;
use super::teller::{config_of, database, signer};
use super::{Failure, state_dir};
use crate::ledger::{Audited, Entry, Head, JournalSource, Proof, StoreError, Transfer, TransferId, audit, merkle};
use crate::protocol::{Digest, PublicKey, Signed, Time};
use crate::store::{Database, LedgerStore, StateDir};

/// Check, export, prove, back up and restore the ledger of a state directory
#[derive(Debug, Args)]
pub(super) struct LedgerArgs {
    #[command(subcommand)]
    command: LedgerCommand,
    /// Where the ledger is [default: as for `hydra up`]
    #[arg(long, value_name = "DIR", global = true)]
    state_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum LedgerCommand {
    /// Replay every transfer and check balances, the chain and all signed heads; also while the ledger runs
    Verify,
    /// Write all transfers out
    Export {
        /// How
        #[arg(long, value_enum, default_value_t = Format::Jsonl)]
        format: Format,
        /// Where to [default: standard output]
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Prove that a transfer is in the ledger, or that the ledger goes on from what it was
    ///
    /// The proof goes to standard output, and can be checked with the ledger's public key alone.
    Proof {
        /// The transfer: its id, or its number
        #[arg(required_unless_present = "since")]
        transfer: Option<String>,
        /// Instead: that the ledger goes on from when it had so many transfers (one of the sizes that it signed)
        #[arg(long, value_name = "SIZE", conflicts_with = "transfer")]
        since: Option<u64>,
    },
    /// Check a proof, with nothing but the ledger's public key
    CheckProof {
        /// What `hydra ledger proof` wrote
        file: PathBuf,
        /// The ledger's public key, from somebody whom you trust (`hydra ledger verify` tells it)
        #[arg(long)]
        key: PublicKey,
    },
    /// Copy the database to a new file; also while the ledger runs
    Backup {
        /// The new file
        file: PathBuf,
    },
    /// Put a copy made by `backup` in the place of the database, which is kept aside
    Restore {
        /// The copy
        file: PathBuf,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// One JSON object a line
    Jsonl,
    /// A table, comma-separated, with a header
    Csv,
}

pub(super) fn run(args: &LedgerArgs) -> Result<(), Failure> {
    let folder = || state_dir(args.state_dir.as_deref());
    match &args.command {
        LedgerCommand::Verify => verify(&folder()?),
        LedgerCommand::Export { format, output } => export(&folder()?, *format, output.as_deref()),
        LedgerCommand::Proof { transfer, since } => prove(&folder()?, transfer.as_deref(), *since),
        LedgerCommand::CheckProof { file, key } => check_proof(file, *key),
        LedgerCommand::Backup { file } => backup(&folder()?, file),
        LedgerCommand::Restore { file } => restore(&folder()?, file),
    }
}

fn audit_file(path: &Path, signer: Option<PublicKey>) -> anyhow::Result<Audited> {
    let config = config_of(path)?;
    Ok(audit(config, signer, &mut LedgerStore::snapshot(path)?)?)
}

fn verify(folder: &Path) -> Result<(), Failure> {
    let audited = audit_file(&database(folder)?, signer(folder)?)?;
    println!("{}", describe(&audited));
    Ok(())
}

fn describe(audited: &Audited) -> String {
    let Audited { transfers, heads, signer, head, totals } = audited;
    let by = signer.map_or_else(String::new, |signer| format!(" by {signer}"));
    format!(
        "sound: {} transfers, {} signed heads{by}; supply {}, ledger hash {head}",
        thousands(*transfers),
        thousands(*heads),
        totals.supply
    )
}

/// An entry of the journal as it is exported.
#[derive(Serialize)]
struct Exported<'a> {
    sequence: u64,
    at: Time,
    #[serde(flatten)]
    transfer: &'a Transfer,
    chain: Digest,
}

fn export(folder: &Path, format: Format, output: Option<&Path>) -> Result<(), Failure> {
    let mut store = LedgerStore::snapshot(&database(folder)?)?;
    let mut out: Box<dyn Write> = match output {
        Some(path) => {
            let file = File::create_new(path);
            Box::new(BufWriter::new(file.with_context(|| format!("cannot make {}", path.display()))?))
        }
        None => Box::new(BufWriter::new(io::stdout().lock())),
    };
    if matches!(format, Format::Csv) {
        writeln!(out, "sequence,at_ms,id,kind,debit,credit,amount_micro,purpose,chain")?;
    }
    store.entries(&mut |entry| write_entry(&mut out, format, &entry).map_err(|e| StoreError::Failed(e.to_string())))?;
    out.flush()?;
    Ok(())
}

fn write_entry(out: &mut dyn Write, format: Format, entry: &Entry) -> io::Result<()> {
    let Entry { sequence, at, transfer, chain } = entry;
    match format {
        Format::Jsonl => {
            serde_json::to_writer(&mut *out, &Exported { sequence: *sequence, at: *at, transfer, chain: *chain })?;
            writeln!(out)
        }
        Format::Csv => {
            let Transfer { id, kind, debit, credit, amount, purpose } = transfer;
            let (kind, amount, purpose) = (kind.name(), amount.micro(), purpose.name());
            writeln!(out, "{sequence},{},{id},{kind},{debit},{credit},{amount},{purpose},{chain}", at.0)
        }
    }
}

fn prove(folder: &Path, transfer: Option<&str>, since: Option<u64>) -> Result<(), Failure> {
    let mut store = LedgerStore::snapshot(&database(folder)?)?;
    let sequence = match transfer {
        Some(text) => Some(place(&store, text)?),
        None => None,
    };
    let head = store.kept()?.head.context("the ledger has signed nothing yet")?;
    let (mut leaves, mut wanted) = (Vec::new(), None);
    store.entries(&mut |entry| {
        leaves.push(entry.leaf());
        if Some(entry.sequence) == sequence {
            wanted = Some(entry);
        }
        Ok(())
    })?;
    let proof = match (wanted, since) {
        (Some(Entry { sequence, at, transfer, .. }), _) => {
            let index = usize::try_from(sequence - 1).unwrap_or(usize::MAX);
            let path = merkle::inclusion(&leaves, index).context("the transfer is not covered by a signed head")?;
            Proof::Inclusion { sequence, at, transfer, path, head }
        }
        (None, Some(since)) => {
            let (mut earlier, mut sizes) = (None, Vec::new());
            store.heads(&mut |size, signed: Signed| {
                sizes.push(size);
                if size == since {
                    earlier = Some(signed);
                }
                Ok(())
            })?;
            let near = sizes.iter().rev().find(|size| **size <= since).or(sizes.first());
            let near = near.map_or_else(String::new, |near| format!("; the nearest size that was signed is {near}"));
            let earlier = earlier.with_context(|| format!("no head of {since} transfers was signed{near}"))?;
            let since = usize::try_from(since).unwrap_or(usize::MAX);
            let path = merkle::consistency(&leaves, since).context("the ledger is shorter than that")?;
            Proof::Consistency { earlier, head, path }
        }
        (None, None) => return Err(anyhow!("there is no such transfer").into()),
    };
    println!("{}", serde_json::to_string(&proof)?);
    Ok(())
}

/// The place in the journal of a transfer that is named by its id or its number.
fn place(store: &LedgerStore, text: &str) -> Result<u64, Failure> {
    if let Ok(id) = text.parse::<TransferId>() {
        return Ok(store.find(id)?.with_context(|| format!("there is no transfer {id}"))?);
    }
    let number = text.parse().map_err(|_| {
        Failure::Usage(anyhow!("{text:?} is neither the id of a transfer (32 hexadecimal digits) nor its number"))
    })?;
    Ok(number)
}

fn check_proof(file: &Path, key: PublicKey) -> Result<(), Failure> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let proof: Proof = serde_json::from_str(&text).with_context(|| format!("{} is no proof", file.display()))?;
    let Head { size, at, .. } = proof.check(key)?;
    let by = format!("in the ledger that {} signed with {} transfers at {}", key.short(), thousands(size), date(at));
    match proof {
        Proof::Inclusion { sequence, transfer, at, .. } => {
            let Transfer { id, debit, credit, amount, kind, purpose } = transfer;
            let (kind, purpose, at) = (kind.name(), purpose.name(), date(at));
            println!(
                "proved: transfer {id}, number {sequence}, {kind} of {amount} from {debit} to {credit} ({purpose}) at {at}, is {by}"
            );
        }
        Proof::Consistency { earlier, .. } => {
            let (_, earlier) = earlier.open::<Head>()?;
            println!("proved: all {} transfers of {} are {by}", thousands(earlier.size), date(earlier.at));
        }
    }
    Ok(())
}

fn backup(folder: &Path, file: &Path) -> Result<(), Failure> {
    let database = database(folder)?;
    if file.exists() {
        return Err(anyhow!("{} is there already; choose another name", file.display()).into());
    }
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let copied = Database::open_read_only(&database)?.copy_to(&part).map_err(anyhow::Error::from);
    let audited = copied.and_then(|()| audit_file(&part, signer(folder)?));
    let renamed = audited.and_then(|audited| {
        File::open(&part)?.sync_all()?;
        std::fs::rename(&part, file)?;
        Ok(audited)
    });
    for leftover in ["", "-wal", "-shm"] {
        let mut path = part.as_os_str().to_owned();
        path.push(leftover);
        // Whatever is not there need not go.
        let _ = std::fs::remove_file(path);
    }
    println!("{} is {}", file.display(), describe(&renamed?));
    Ok(())
}

fn restore(folder: &Path, file: &Path) -> Result<(), Failure> {
    if !file.is_file() {
        return Err(anyhow!("there is no file {}", file.display()).into());
    }
    let state = StateDir::open(folder)?;
    // What this looks at must not change on the way: a copy in the folder is looked at, and put in place if it is sound.
    let audited = audit_file(file, signer(folder)?).context("the copy is not put in place")?;
    if let Some(aside) = state.replace_database(file)? {
        println!("The database that was here is now in {}", aside.display());
    }
    println!("restored; {}", describe(&audited));
    Ok(())
}

/// A time for people, in UTC.
pub(super) fn date(at: Time) -> String {
    let time = std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_millis(at.0));
    // The formatter knows the years up to 9999.
    match time.filter(|_| at.0 < 253_402_300_800_000) {
        Some(time) => humantime::format_rfc3339_seconds(time).to_string(),
        None => format!("{} ms after 1970", at.0),
    }
}
