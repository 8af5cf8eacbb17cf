use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Database, DatabaseError};
use crate::ledger::TransferId;
use crate::protocol::{Amount, Digest, PublicKey, Time, limits};

/// API keys by the digest of their secret, and what queries hold that are not settled yet.
pub(super) const SCHEMA: &str = "
    CREATE TABLE api_key (
        digest BLOB PRIMARY KEY,
        wallet BLOB NOT NULL,
        name TEXT NOT NULL,
        spending_limit INTEGER,
        spent INTEGER NOT NULL,
        expires INTEGER,
        revoked INTEGER NOT NULL,
        UNIQUE (wallet, name)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE open_query (
        id BLOB PRIMARY KEY,
        api_key BLOB NOT NULL REFERENCES api_key (digest),
        wallet BLOB NOT NULL,
        most INTEGER NOT NULL,
        cost INTEGER,
        expires INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX open_query_by_key ON open_query (api_key);
";

/// What a server of queries must not forget: API keys, and which holds it has asked for.
#[derive(Debug)]
pub struct QueryStore {
    database: Database,
}

/// An API key. Its secret is known to its owner alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// The digest of its secret.
    pub digest: Digest,
    /// Who pays.
    pub wallet: PublicKey,
    /// What its owner calls it: one name for each key of a wallet.
    pub name: String,
    /// The most that may ever be spent with it, if there is a bound.
    pub limit: Option<Amount>,
    /// What was spent with it.
    pub spent: Amount,
    /// When it ends, if ever.
    pub expires: Option<Time>,
    /// Whether its owner has ended it.
    pub revoked: bool,
}

/// A query that is not settled: what it holds in the ledger, or is about to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenQuery {
    /// Its name in the ledger.
    pub id: TransferId,
    /// With which key it was asked.
    pub key: Digest,
    /// Who pays.
    pub wallet: PublicKey,
    /// What is held.
    pub most: Amount,
    /// What it cost, once it is over.
    pub cost: Option<Amount>,
    /// When the hold ends.
    pub expires: Time,
}

/// Why something about an API key is refused.
#[derive(Debug, thiserror::Error)]
pub enum QueryStoreError {
    /// The name is taken, also by a key that was revoked.
    #[error("this wallet has a key of that name; choose another name")]
    NameTaken,
    /// The wallet has as many as it may have.
    #[error("this wallet has {} keys, which is as many as it may have", limits::API_KEYS_PER_WALLET)]
    TooMany,
    /// The server knows as many as it may.
    #[error("the server has no room for more keys")]
    Full,
    /// No such key.
    #[error("there is no such key")]
    Unknown,
    /// The query might cost more than may be spent with the key.
    #[error("the key may spend {left} more, and this query may cost {most}")]
    Limit {
        /// What may still be spent, that under way not counted.
        left: Amount,
        /// What the query may cost.
        most: Amount,
    },
    /// The database cannot be used.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// SQLite failed.
    #[error("the database failed: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// A row does not decode.
    #[error("a row of the database is damaged")]
    Damaged,
}

fn micro(amount: i64) -> Result<Amount, QueryStoreError> {
    Amount::from_micro(amount).map_err(|_| QueryStoreError::Damaged)
}

fn time(time: Time) -> i64 {
    i64::try_from(time.0).unwrap_or(i64::MAX)
}

fn moment(time: i64) -> Time {
    Time(u64::try_from(time).unwrap_or(0))
}

const KEY: &str = "SELECT digest, wallet, name, spending_limit, spent, expires, revoked FROM api_key";

fn api_key(row: &Row<'_>) -> Result<ApiKey, QueryStoreError> {
    Ok(ApiKey {
        digest: Digest::from_bytes(row.get(0)?),
        wallet: PublicKey::from_bytes(row.get(1)?).map_err(|_| QueryStoreError::Damaged)?,
        name: row.get(2)?,
        limit: row.get::<_, Option<i64>>(3)?.map(micro).transpose()?,
        spent: micro(row.get(4)?)?,
        expires: row.get::<_, Option<i64>>(5)?.map(moment),
        revoked: row.get(6)?,
    })
}

fn find(connection: &Connection, digest: &Digest) -> Result<Option<ApiKey>, QueryStoreError> {
    let mut statement = connection.prepare_cached(&format!("{KEY} WHERE digest = ?1"))?;
    let mut rows = statement.query([digest.as_bytes()])?;
    rows.next()?.map(api_key).transpose()
}

impl QueryStore {
    /// That of `database`.
    #[must_use]
    pub fn new(database: Database) -> Self {
        Self { database }
    }

    /// Adds a key. Doing so twice is the same as once.
    pub fn add(&mut self, key: &ApiKey) -> Result<(), QueryStoreError> {
        let there = find(self.database.connection(), &key.digest)?;
        if there.is_some_and(|there| there.wallet == key.wallet && there.name == key.name) {
            return Ok(());
        }
        self.database.write(|transaction| {
            let wallet = [key.wallet.as_bytes()];
            let its: i64 =
                transaction.query_row("SELECT count(*) FROM api_key WHERE wallet = ?1", wallet, |row| row.get(0))?;
            if its >= limits::API_KEYS_PER_WALLET as i64 {
                return Err(QueryStoreError::TooMany);
            }
            let all: i64 = transaction.query_row("SELECT count(*) FROM api_key", [], |row| row.get(0))?;
            if all >= limits::API_KEYS_MAX as i64 {
                return Err(QueryStoreError::Full);
            }
            let added = transaction.execute(
                "INSERT INTO api_key (digest, wallet, name, spending_limit, spent, expires, revoked)
                 VALUES (?1, ?2, ?3, ?4, 0, ?5, 0) ON CONFLICT DO NOTHING",
                params![
                    key.digest.as_bytes(),
                    key.wallet.as_bytes(),
                    key.name,
                    key.limit.map(Amount::micro),
                    key.expires.map(time)
                ],
            )?;
            if added == 1 { Ok(()) } else { Err(QueryStoreError::NameTaken) }
        })
    }

    /// The keys of a wallet, by name.
    pub fn of(&self, wallet: &PublicKey) -> Result<Vec<ApiKey>, QueryStoreError> {
        let mut statement = self.database.connection().prepare(&format!("{KEY} WHERE wallet = ?1 ORDER BY name"))?;
        let mut rows = statement.query([wallet.as_bytes()])?;
        let mut keys = Vec::new();
        while let Some(row) = rows.next()? {
            keys.push(api_key(row)?);
        }
        Ok(keys)
    }

    /// Ends a key of a wallet, for good.
    pub fn revoke(&mut self, wallet: &PublicKey, name: &str) -> Result<(), QueryStoreError> {
        self.database.write(|transaction| {
            let row = params![wallet.as_bytes(), name];
            let ended = transaction.execute("UPDATE api_key SET revoked = 1 WHERE wallet = ?1 AND name = ?2", row)?;
            if ended == 1 { Ok(()) } else { Err(QueryStoreError::Unknown) }
        })
    }

    /// The key whose secret has this digest.
    pub fn find(&self, digest: &Digest) -> Result<Option<ApiKey>, QueryStoreError> {
        find(self.database.connection(), digest)
    }

    /// Notes a query before anything is held for it, if its key may spend as much.
    pub fn open(&mut self, query: &OpenQuery) -> Result<(), QueryStoreError> {
        self.database.write(|transaction| {
            let key = find(transaction, &query.key)?.ok_or(QueryStoreError::Unknown)?;
            if let Some(limit) = key.limit {
                let under_way: i64 = transaction.query_row(
                    "SELECT coalesce(sum(most), 0) FROM open_query WHERE api_key = ?1",
                    [query.key.as_bytes()],
                    |row| row.get(0),
                )?;
                let left = limit.saturating_sub(key.spent).saturating_sub(micro(under_way)?);
                if left < query.most {
                    return Err(QueryStoreError::Limit { left, most: query.most });
                }
            }
            transaction.execute(
                "INSERT INTO open_query (id, api_key, wallet, most, cost, expires) VALUES (?1, ?2, ?3, ?4, NULL, ?5)",
                params![
                    query.id.to_bytes(),
                    query.key.as_bytes(),
                    query.wallet.as_bytes(),
                    query.most.micro(),
                    time(query.expires)
                ],
            )?;
            Ok(())
        })
    }

    /// Notes what a query cost, before it is settled.
    pub fn price(&mut self, id: TransferId, cost: Amount) -> Result<(), QueryStoreError> {
        self.database.write(|transaction| {
            let row = params![id.to_bytes(), cost.micro()];
            transaction.execute("UPDATE open_query SET cost = ?2 WHERE id = ?1", row)?;
            Ok(())
        })
    }

    /// A query is settled: `paid` was spent with its key. Doing so twice is the same as once.
    pub fn close(&mut self, id: TransferId, paid: Amount) -> Result<(), QueryStoreError> {
        self.database.write(|transaction| {
            let key: Option<[u8; 32]> = transaction
                .query_row("DELETE FROM open_query WHERE id = ?1 RETURNING api_key", [id.to_bytes()], |row| row.get(0))
                .optional()?;
            if let Some(key) = key {
                let row = params![key, paid.micro()];
                transaction.execute("UPDATE api_key SET spent = spent + ?2 WHERE digest = ?1", row)?;
            }
            Ok(())
        })
    }

    /// Queries that are not settled.
    pub fn open_queries(&self) -> Result<Vec<OpenQuery>, QueryStoreError> {
        let connection = self.database.connection();
        let mut statement = connection.prepare("SELECT id, api_key, wallet, most, cost, expires FROM open_query")?;
        let mut rows = statement.query([])?;
        let mut queries = Vec::new();
        while let Some(row) = rows.next()? {
            queries.push(OpenQuery {
                id: TransferId::from(row.get::<_, [u8; 16]>(0)?),
                key: Digest::from_bytes(row.get(1)?),
                wallet: PublicKey::from_bytes(row.get(2)?).map_err(|_| QueryStoreError::Damaged)?,
                most: micro(row.get(3)?)?,
                cost: row.get::<_, Option<i64>>(4)?.map(micro).transpose()?,
                expires: moment(row.get(5)?),
            });
        }
        Ok(queries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::key;

    fn amount(micro: i64) -> Amount {
        Amount::from_micro(micro).unwrap()
    }

    fn store(folder: &tempfile::TempDir) -> QueryStore {
        QueryStore::new(Database::open(folder.path().join("hydra.db")).unwrap())
    }

    fn api_key(owner: u8, name: &str, limit: Option<i64>) -> ApiKey {
        ApiKey {
            digest: Digest::of(format!("{owner} {name}").as_bytes()),
            wallet: key(owner).public(),
            name: name.to_owned(),
            limit: limit.map(amount),
            spent: Amount::ZERO,
            expires: Some(Time(1000)),
            revoked: false,
        }
    }

    fn query(n: u64, key: &ApiKey, most: i64) -> OpenQuery {
        let id = TransferId::request(Time(5), n);
        OpenQuery { id, key: key.digest, wallet: key.wallet, most: amount(most), cost: None, expires: Time(99) }
    }

    #[test]
    fn a_key_is_found_by_its_digest_listed_by_its_wallet_and_revoked_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = store(&folder);
        let (a, b) = (api_key(1, "a", None), api_key(1, "b", Some(7)));
        for key in [&b, &a, &a] {
            store.add(key).unwrap();
        }
        store.add(&api_key(2, "a", None)).unwrap();
        assert_eq!(store.of(&a.wallet).unwrap(), [a.clone(), b.clone()]);
        assert_eq!(store.find(&b.digest).unwrap(), Some(b.clone()));
        assert_eq!(store.find(&Digest::of(b"none")).unwrap(), None);
        let other = ApiKey { digest: Digest::of(b"other"), ..a.clone() };
        assert!(matches!(store.add(&other), Err(QueryStoreError::NameTaken)));
        store.revoke(&a.wallet, "a").unwrap();
        assert!(store.find(&a.digest).unwrap().unwrap().revoked);
        assert!(matches!(store.revoke(&a.wallet, "c"), Err(QueryStoreError::Unknown)));
    }

    #[test]
    fn a_wallet_has_only_so_many_keys() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = store(&folder);
        for n in 0..limits::API_KEYS_PER_WALLET {
            store.add(&api_key(1, &n.to_string(), None)).unwrap();
        }
        assert!(matches!(store.add(&api_key(1, "more", None)), Err(QueryStoreError::TooMany)));
        store.add(&api_key(2, "more", None)).unwrap();
    }

    #[test]
    fn no_more_is_spent_with_a_key_than_may_be_and_what_is_open_outlives_a_crash() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = store(&folder);
        let key = api_key(1, "a", Some(100));
        first.add(&key).unwrap();
        first.open(&query(1, &key, 60)).unwrap();
        let over = first.open(&query(2, &key, 41));
        assert!(matches!(over, Err(QueryStoreError::Limit { left, .. }) if left == amount(40)), "{over:?}");
        first.open(&query(3, &key, 40)).unwrap();
        first.price(query(1, &key, 0).id, amount(10)).unwrap();
        drop(first);
        let mut again = store(&folder);
        let open = again.open_queries().unwrap();
        assert_eq!(open, [OpenQuery { cost: Some(amount(10)), ..query(1, &key, 60) }, query(3, &key, 40)]);
        again.close(open[0].id, amount(10)).unwrap();
        again.close(open[0].id, amount(10)).unwrap();
        again.close(open[1].id, Amount::ZERO).unwrap();
        assert_eq!(again.find(&key.digest).unwrap().unwrap().spent, amount(10));
        assert!(again.open_queries().unwrap().is_empty());
        again.open(&query(4, &key, 90)).unwrap();
    }
}
