use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use serde::Serialize;

use super::api_keys::{self, KeyCommand};
use super::ledger::date;
use super::remote::Remote;
use super::teller::{LocalTeller, Teller};
use super::{Failure, state_dir};
use crate::http::api::ledger::Recorded;
use crate::ledger::{Account, Action, Entry, Order, Posts, TransferId};
use crate::protocol::{Amount, Balance, Digest, Keypair, PublicKey, Signed};
use crate::runtime::{Clock, SystemClock, entropy};
use crate::store::{KeyFile, StateDir};

/// How long an order may take to reach the ledger.
const ORDER_VALID: Duration = Duration::from_mins(10);

/// Keys, balances, transfers and offers
///
/// A wallet is a key in the state directory, by name; the workers of `hydra up` are called worker-1, worker-2 and so on.
/// A passphrase is asked for, or taken from the file of --passphrase-file or the variable `HYDRA_PASSPHRASE`.
///
/// The ledger is that of the state directory, or with --coordinator one that is served on another computer.
#[derive(Debug, Args)]
pub(super) struct WalletArgs {
    #[command(subcommand)]
    command: WalletCommand,
    /// Where keys are, and the ledger without --coordinator [default: as for `hydra up`]
    #[arg(long, value_name = "DIR", global = true)]
    state_dir: Option<PathBuf>,
    /// Whose wallet
    #[arg(long, value_name = "NAME", global = true, default_value = "wallet")]
    wallet: String,
    /// A file with the passphrase in its first line
    #[arg(long, value_name = "FILE", global = true)]
    passphrase_file: Option<PathBuf>,
    #[command(flatten)]
    remote: Remote,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum WalletCommand {
    /// Make a key
    New {
        /// Put it under a passphrase
        #[arg(long)]
        protect: bool,
    },
    /// Show the public key: the address that others send to. With several wallets, all of them
    Show,
    /// What the wallet has, can spend, has earned and not vested, and has at stake
    Balance {
        /// Somebody else's wallet
        key: Option<PublicKey>,
    },
    /// The latest transfers
    History {
        /// How many
        #[arg(long, default_value_t = 20)]
        last: usize,
    },
    /// Send HYD to another wallet
    Send {
        /// Its public key
        to: PublicKey,
        /// How many HYD
        #[arg(value_parser = hyd)]
        amount: Amount,
    },
    /// Put HYD at stake: they are burned if work of this key is found false
    Stake {
        /// How many HYD
        #[arg(value_parser = hyd)]
        amount: Amount,
    },
    /// Take HYD out of the stake; they are back after a week
    Unstake {
        /// How many HYD
        #[arg(value_parser = hyd)]
        amount: Amount,
    },
    /// HYD for something outside of the ledger
    #[command(subcommand)]
    Offer(OfferCommand),
    /// API keys, with which programs spend this wallet's HYD on queries
    #[command(subcommand)]
    Key(KeyCommand),
}

#[derive(Debug, Subcommand)]
enum OfferCommand {
    /// Hold HYD for whoever gives you what you agree on
    Make {
        /// How many HYD
        #[arg(value_parser = hyd)]
        amount: Amount,
        /// Only this key may accept
        #[arg(long, value_name = "KEY")]
        to: Option<PublicKey>,
        /// What you agree on; the ledger keeps its digest
        #[arg(long, default_value = "")]
        terms: String,
        /// When the HYD go back to you
        #[arg(long, value_name = "TIME", default_value = "7days", value_parser = humantime::parse_duration)]
        expires: Duration,
    },
    /// Bind somebody's offer to you
    Accept {
        /// The offer
        id: TransferId,
    },
    /// Let your accepted offer go, now that you have what you agreed on
    Release {
        /// The offer
        id: TransferId,
    },
    /// Take back your offer while nobody has accepted it, or give back what you have accepted
    Cancel {
        /// The offer
        id: TransferId,
    },
    /// All open offers
    List,
}

pub(super) fn hyd(text: &str) -> Result<Amount, String> {
    let wrong = || "an amount is a decimal number of HYD with at most six places, such as 12.5".to_owned();
    Amount::from_hyd_text(text).map_err(|_| wrong())
}

pub(super) fn run(args: &WalletArgs) -> Result<(), Failure> {
    let folder = state_dir(args.state_dir.as_deref())?;
    let mut teller: Box<dyn Teller> = match args.remote.ledger()? {
        Some(remote) => Box::new(remote),
        None => Box::new(LocalTeller::new(&folder)),
    };
    let teller = &mut *teller;
    let order = |teller: &mut dyn Teller, action| order(args, &folder, teller, action);
    match &args.command {
        WalletCommand::New { protect } => new(args, &folder, *protect),
        WalletCommand::Show => show(args, &folder),
        WalletCommand::Balance { key } => balance(args, &folder, teller, *key),
        WalletCommand::History { last } => history(args, &folder, teller, *last),
        WalletCommand::Send { to, amount } => order(teller, Action::Send { to: *to, amount: *amount }),
        WalletCommand::Stake { amount } => order(teller, Action::Stake { amount: *amount }),
        WalletCommand::Unstake { amount } => order(teller, Action::Unstake { amount: *amount }),
        WalletCommand::Offer(command) => match command {
            OfferCommand::Make { amount, to, terms, expires } => {
                let (terms, expires) = (Digest::of(terms.as_bytes()), SystemClock.now() + *expires);
                order(teller, Action::Offer { amount: *amount, taker: *to, terms, expires })
            }
            OfferCommand::Accept { id } => order(teller, Action::Accept { offer: *id }),
            OfferCommand::Release { id } => order(teller, Action::Release { offer: *id }),
            OfferCommand::Cancel { id } => order(teller, Action::Cancel { offer: *id }),
            OfferCommand::List => offers(args, teller),
        },
        WalletCommand::Key(command) => api_keys::run(command, &args.remote, keypair(args, &folder)?, args.json),
    }
}

fn key_file(args: &WalletArgs, folder: &Path) -> Result<KeyFile, Failure> {
    let none = || format!("there is no wallet {:?} here; `hydra wallet new --wallet {0}` makes it", args.wallet);
    Ok(StateDir::find_key(folder, &args.wallet)?.with_context(none)?)
}

fn keypair(args: &WalletArgs, folder: &Path) -> Result<Keypair, Failure> {
    match key_file(args, folder)? {
        KeyFile::Open(key) => Ok(key),
        KeyFile::Locked(locked) => Ok(locked.open(&passphrase(args, false)?)?),
    }
}

fn passphrase(args: &WalletArgs, new: bool) -> Result<String, Failure> {
    if let Some(path) = &args.passphrase_file {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        return Ok(text.lines().next().unwrap_or_default().to_owned());
    }
    if let Ok(passphrase) = std::env::var("HYDRA_PASSPHRASE") {
        return Ok(passphrase);
    }
    if !std::io::stdin().is_terminal() {
        let missing = "the key is under a passphrase; give it with --passphrase-file or HYDRA_PASSPHRASE";
        return Err(anyhow!(missing).into());
    }
    let passphrase = rpassword::prompt_password("Passphrase: ")?;
    if new && rpassword::prompt_password("Once more: ")? != passphrase {
        return Err(anyhow!("the two passphrases differ").into());
    }
    Ok(passphrase)
}

fn new(args: &WalletArgs, folder: &Path, protect: bool) -> Result<(), Failure> {
    let passphrase = if protect { Some(passphrase(args, true)?) } else { None };
    if passphrase.as_ref().is_some_and(String::is_empty) {
        return Err(Failure::Usage(anyhow!("the passphrase is empty")));
    }
    std::fs::create_dir_all(folder)?;
    let key = StateDir::make_key(folder, &args.wallet, passphrase.as_deref())?;
    println!("{}", key.public());
    Ok(())
}

fn show(args: &WalletArgs, folder: &Path) -> Result<(), Failure> {
    if args.wallet != "wallet" || StateDir::find_key(folder, &args.wallet)?.is_some() {
        println!("{}", key_file(args, folder)?.public());
        return Ok(());
    }
    let names = StateDir::key_names(folder)?;
    if names.is_empty() {
        return Err(anyhow!("there is no wallet in {}; `hydra wallet new` makes one", folder.display()).into());
    }
    for name in names {
        if let Some(key) = StateDir::find_key(folder, &name)? {
            println!("{}  {name}", key.public());
        }
    }
    Ok(())
}

#[derive(Serialize)]
struct BalanceSummary {
    key: PublicKey,
    balance: Balance,
    spendable: Balance,
    held: Balance,
    unvested: Balance,
    stake: Balance,
}

fn balance(args: &WalletArgs, folder: &Path, teller: &mut dyn Teller, key: Option<PublicKey>) -> Result<(), Failure> {
    let key = match key {
        Some(key) => key,
        None => key_file(args, folder)?.public(),
    };
    let (wallet, stake): (Posts, Posts) = teller.posts(key)?;
    let summary = BalanceSummary {
        key,
        balance: wallet.balance(),
        spendable: wallet.available(),
        held: Balance(wallet.debits_pending),
        unvested: Balance(wallet.credits_pending),
        stake: stake.balance(),
    };
    if args.json {
        println!("{}", serde_json::to_string(&summary)?);
        return Ok(());
    }
    println!("  spendable   {}", summary.spendable);
    println!("  held        {}", summary.held);
    println!("  to come     {}   (pay that has not vested, offers accepted)", summary.unvested);
    println!("  at stake    {}", summary.stake);
    Ok(())
}

fn history(args: &WalletArgs, folder: &Path, teller: &mut dyn Teller, last: usize) -> Result<(), Failure> {
    let key = key_file(args, folder)?.public();
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(["number", "time", "what", "amount", "with"]);
    for entry in teller.history(key, last)? {
        if args.json {
            println!("{}", serde_json::to_string(&entry)?);
            continue;
        }
        let Entry { sequence, at, transfer, .. } = entry;
        let own = |account| account == Account::Wallet(key) || account == Account::Stake(key);
        let (sign, other) = if own(transfer.debit) { ("−", transfer.credit) } else { ("+", transfer.debit) };
        table.add_row([
            sequence.to_string(),
            date(at),
            format!("{} ({})", transfer.purpose.name(), transfer.kind.name()),
            format!("{sign}{}", transfer.amount),
            other.to_string(),
        ]);
    }
    if !args.json {
        println!("{table}");
    }
    Ok(())
}

/// Signs an order, and has it done.
fn order(args: &WalletArgs, folder: &Path, teller: &mut dyn Teller, action: Action) -> Result<(), Failure> {
    let key = keypair(args, folder)?;
    let now = SystemClock.now();
    let mut random = [0; 8];
    entropy(&mut random).context("the operating system gives no random numbers")?;
    let order =
        Order { id: TransferId::request(now, u64::from_le_bytes(random)), valid_until: now + ORDER_VALID, action };
    let Recorded { id, sequence } = teller.order(&Signed::seal(&key, &order))?;
    if args.json {
        println!("{}", serde_json::json!({ "id": id, "sequence": sequence }));
    } else {
        println!("done: {id}, number {sequence} of the ledger");
    }
    Ok(())
}

fn offers(args: &WalletArgs, teller: &mut dyn Teller) -> Result<(), Failure> {
    for offer in teller.offers()? {
        if args.json {
            println!("{}", serde_json::to_string(&offer)?);
            continue;
        }
        let state = match (offer.accepted_by, offer.taker) {
            (Some(taker), _) => format!("accepted by {taker}"),
            (None, Some(taker)) => format!("for {taker}"),
            (None, None) => "for anybody".to_owned(),
        };
        println!("{}  {}  by {}  {state}  until {}", offer.id, offer.amount, offer.maker, date(offer.expires));
    }
    Ok(())
}
