use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::ledger_serve::ServeArgs;
use super::remote::{Remote, RemoteLedger};
use super::report::thousands;
use super::teller::{config_of, database, signer};
use super::{Failure, state_dir};
use crate::http::ApiError;
use crate::ledger::{
    Audited, EconomyConfig, Entry, Head, JournalSource, LedgerConfig, Proof, StoreError, Transfer, TransferId, audit,
    audit_journal,
};
use crate::protocol::{Digest, PublicKey, Signed, Time};
use crate::store::{Archive, Database, Growth, LedgerStore, StateDir};

/// Check, prove, export, serve, back up and restore a ledger
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
    Verify {
        #[command(flatten)]
        remote: Remote,
        /// The ledger's public key, from somebody whom you trust [default: the one that it names]
        #[arg(long, requires = "coordinator")]
        key: Option<PublicKey>,
    },
    /// Show what the ledger has signed last: how many transfers, their Merkle root, the ledger hash
    Head {
        #[command(flatten)]
        remote: Remote,
        /// Print the signed head as JSON
        #[arg(long)]
        json: bool,
    },
    /// Write all transfers out
    Export {
        #[command(flatten)]
        remote: Remote,
        /// How
        #[arg(long, value_enum, default_value_t = Format::Jsonl)]
        format: Format,
        /// Where to [default: standard output]
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Prove that a transfer is in the ledger, or that the ledger goes on from what it was
    ///
    /// The proof goes to standard output, and can be checked with the ledger's public key alone. One that comes over the
    /// network is checked before it is shown.
    Proof {
        #[command(flatten)]
        remote: Remote,
        /// The transfer: its id, or its number
        #[arg(required_unless_present = "since")]
        transfer: Option<String>,
        /// Instead: that the ledger goes on from when it had so many transfers (one of the sizes that it signed)
        #[arg(long, value_name = "SIZE", conflicts_with = "transfer")]
        since: Option<u64>,
        /// The ledger's public key, from somebody whom you trust [default: the one that it names]
        #[arg(long, requires = "coordinator")]
        key: Option<PublicKey>,
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
    Serve(ServeArgs),
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
        LedgerCommand::Verify { remote, key } => match remote.ledger()? {
            Some(ledger) => verify_remote(ledger, *key),
            None => verify(&folder()?),
        },
        LedgerCommand::Head { remote, json } => {
            let head = match remote.ledger()? {
                Some(ledger) => ledger.head()?.head,
                None => Archive::open(LedgerStore::read_only(&database(&folder()?)?)?)?.head()?,
            };
            show_head(head, *json)
        }
        LedgerCommand::Export { remote, format, output } => match remote.ledger()? {
            Some(mut ledger) => {
                ledger.hold_still()?;
                export(&mut ledger, *format, output.as_deref())
            }
            None => export(&mut LedgerStore::snapshot(&database(&folder()?)?)?, *format, output.as_deref()),
        },
        LedgerCommand::Proof { remote, transfer, since, key } => {
            let what = what_to_prove(transfer.as_deref(), *since)?;
            match remote.ledger()? {
                Some(ledger) => prove_remote(&ledger, &what, *key),
                None => prove(&folder()?, &what),
            }
        }
        LedgerCommand::CheckProof { file, key } => check_proof(file, *key),
        LedgerCommand::Backup { file } => backup(&folder()?, file),
        LedgerCommand::Restore { file } => restore(&folder()?, file),
        LedgerCommand::Serve(serve) => super::ledger_serve::run(serve, &folder()?),
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

/// Fetches the whole journal as it is now, and checks it here: nothing that the other side says is believed, but for what
/// rounds emit.
fn verify_remote(mut ledger: RemoteLedger, key: Option<PublicKey>) -> Result<(), Failure> {
    let books = ledger.books()?;
    let economy = EconomyConfig::emitting(books.emission).check()?;
    ledger.hold_still()?;
    let config = LedgerConfig { economy, verifiers: [].into() };
    let audited = audit_journal(config, Some(key.unwrap_or(books.key)), &mut ledger)?;
    println!("{}", describe(&audited));
    Ok(())
}

fn show_head(head: Option<Signed>, json: bool) -> Result<(), Failure> {
    let signed = head.context("the ledger has signed nothing yet")?;
    if json {
        println!("{}", serde_json::to_string(&signed)?);
        return Ok(());
    }
    let (signer, Head { size, root, chain, at }) = signed.open::<Head>()?;
    println!("  transfers   {}", thousands(size));
    println!("  root        {root}");
    println!("  hash        {chain}");
    println!("  time        {}", date(at));
    println!("  signed by   {signer}");
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

fn export(source: &mut dyn JournalSource, format: Format, output: Option<&Path>) -> Result<(), Failure> {
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
    source
        .entries(&mut |entry| write_entry(&mut out, format, &entry).map_err(|e| StoreError::Failed(e.to_string())))?;
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

/// What a proof is to show.
enum ToProve {
    Id(TransferId),
    Number(u64),
    Growth(u64),
}

fn what_to_prove(transfer: Option<&str>, since: Option<u64>) -> Result<ToProve, Failure> {
    let Some(text) = transfer else { return Ok(ToProve::Growth(since.context("there is nothing to prove")?)) };
    if let Ok(id) = text.parse() {
        return Ok(ToProve::Id(id));
    }
    text.parse().map(ToProve::Number).map_err(|_| {
        Failure::Usage(anyhow!("{text:?} is neither the id of a transfer (32 hexadecimal digits) nor its number"))
    })
}

fn prove(folder: &Path, what: &ToProve) -> Result<(), Failure> {
    let archive = Archive::open(LedgerStore::read_only(&database(folder)?)?)?;
    let number = match what {
        ToProve::Id(id) => archive.find(*id)?.with_context(|| format!("there is no transfer {id}"))?,
        ToProve::Number(number) => *number,
        ToProve::Growth(since) => {
            let proof = match archive.growth(*since)? {
                Growth::Proved(proof) => *proof,
                Growth::NeverSigned { nearest } => {
                    return Err(ApiError::NeverSigned { size: *since, nearest }.into());
                }
            };
            println!("{}", serde_json::to_string(&proof)?);
            return Ok(());
        }
    };
    let proof = archive.inclusion(number)?.context("there is no such transfer")?;
    println!("{}", serde_json::to_string(&proof)?);
    Ok(())
}

/// Fetches a proof, and shows it if it proves what was asked for.
fn prove_remote(ledger: &RemoteLedger, what: &ToProve, key: Option<PublicKey>) -> Result<(), Failure> {
    let proof = match what {
        ToProve::Id(id) => ledger.inclusion(&id.to_string())?,
        ToProve::Number(number) => ledger.inclusion(&number.to_string())?,
        ToProve::Growth(since) => ledger.growth(*since)?,
    };
    let is_it = match (what, &proof) {
        (ToProve::Id(id), Proof::Inclusion { transfer, .. }) => transfer.id == *id,
        (ToProve::Number(number), Proof::Inclusion { sequence, .. }) => sequence == number,
        (ToProve::Growth(since), Proof::Consistency { earlier, .. }) => earlier.open::<Head>()?.1.size == *since,
        _ => false,
    };
    if !is_it {
        return Err(anyhow!("the ledger proves something else than it was asked for").into());
    }
    let key = match key {
        Some(key) => key,
        None => ledger.head()?.key,
    };
    eprintln!("{}", describe_proof(&proof, key)?);
    println!("{}", serde_json::to_string(&proof)?);
    Ok(())
}

fn check_proof(file: &Path, key: PublicKey) -> Result<(), Failure> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let proof: Proof = serde_json::from_str(&text).with_context(|| format!("{} is no proof", file.display()))?;
    println!("{}", describe_proof(&proof, key)?);
    Ok(())
}

/// Checks a proof: what it proves.
fn describe_proof(proof: &Proof, key: PublicKey) -> Result<String, Failure> {
    let Head { size, at, .. } = proof.check(key)?;
    let by = format!("in the ledger that {} signed with {} transfers at {}", key.short(), thousands(size), date(at));
    match proof {
        Proof::Inclusion { sequence, transfer, at, .. } => {
            let Transfer { id, debit, credit, amount, kind, purpose } = transfer;
            let (kind, purpose, at) = (kind.name(), purpose.name(), date(*at));
            Ok(format!(
                "proved: transfer {id}, number {sequence}, {kind} of {amount} from {debit} to {credit} ({purpose}) at {at}, is {by}"
            ))
        }
        Proof::Consistency { earlier, .. } => {
            let (_, earlier) = earlier.open::<Head>()?;
            Ok(format!("proved: all {} transfers of {} are {by}", thousands(earlier.size), date(earlier.at)))
        }
    }
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
