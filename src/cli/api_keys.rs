use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Subcommand;
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;

use super::Failure;
use super::ledger::date;
use super::remote::Remote;
use crate::http::api::Done;
use crate::http::api::queries::{ApiKeys, NewApiKey, RevokeApiKey, path};
use crate::protocol::{Amount, Digest, Keypair};
use crate::runtime::{Clock, SystemClock, entropy};

/// What an API key begins with, so that people and scanners know one when they see it.
const PREFIX: &str = "hydra-";

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Make an API key that spends this wallet's HYD on queries, and print it: it is not shown again
    Create {
        /// What to call it
        name: String,
        /// The most that may ever be spent with it, in HYD
        #[arg(long, value_name = "HYD", value_parser = super::wallet::hyd)]
        limit: Option<Amount>,
        /// When it ends
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        expires: Option<Duration>,
    },
    /// The API keys of this wallet, and what was spent with them
    List,
    /// End an API key, for good
    Revoke {
        /// Which
        name: String,
    },
}

pub(super) fn run(command: &KeyCommand, remote: &Remote, wallet: Keypair, as_json: bool) -> Result<(), Failure> {
    let Some(address) = remote.address() else {
        return Err(Failure::Usage(anyhow!(
            "API keys are kept where queries are answered; name it with --coordinator"
        )));
    };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let client = super::client(address, wallet, &clock, remote.authorities())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match command {
        KeyCommand::Create { name, limit, expires } => {
            let mut random = [0; 32];
            entropy(&mut random).context("the operating system gives no random numbers")?;
            let secret = format!("{PREFIX}{}", data_encoding::BASE64URL_NOPAD.encode(&random));
            let expires = expires.map(|expires| clock.now() + expires);
            let new = NewApiKey { digest: Digest::of(secret.as_bytes()), name: name.clone(), limit: *limit, expires };
            runtime.block_on(client.post::<_, Done>(path::API_KEYS, &new))?;
            println!("{secret}");
        }
        KeyCommand::List => {
            let keys = runtime.block_on(client.poll::<ApiKeys>(path::API_KEYS))?.context("there was no answer")?.keys;
            if as_json {
                println!("{}", serde_json::to_string(&keys)?);
                return Ok(());
            }
            let mut table = Table::new();
            table.load_style(UTF8_FULL_CONDENSED);
            table.set_header(["name", "spent", "limit", "ends"]);
            for key in keys {
                let limit = key.limit.map_or_else(|| "none".to_owned(), |limit| limit.to_string());
                let ends = match (key.revoked, key.expires) {
                    (true, _) => "revoked".to_owned(),
                    (false, Some(expires)) => date(expires),
                    (false, None) => "never".to_owned(),
                };
                table.add_row([key.name, key.spent.to_string(), limit, ends]);
            }
            println!("{table}");
        }
        KeyCommand::Revoke { name } => {
            runtime.block_on(client.post::<_, Done>(path::REVOKE, &RevokeApiKey { name: name.clone() }))?;
        }
    }
    Ok(())
}
