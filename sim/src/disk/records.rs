use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fs, io};

use hydra::coordinator::{Record, RecordStore, RecordStoreError};
use hydra::protocol::{RunSpec, limits, wire};
use hydra::store::{Database, RunStore};

use super::{Folder, Health, Torn};
use crate::laws::Laws;
use crate::network::Standing;
use crate::simulation::virtual_now;

/// The records of a run. Clones share them.
#[derive(Clone)]
pub(crate) struct Records {
    kept: Rc<Kept>,
    pub health: Rc<Health>,
    laws: Laws,
}

/// Where they are.
enum Kept {
    /// In memory, encoded as they are in a database.
    Memory(RefCell<Vec<Vec<u8>>>),
    /// In a database: in which of its copies, and where those are.
    Sqlite { folder: Rc<Folder>, copy: Cell<u32> },
}

type Wrong = Box<dyn std::error::Error>;

impl Records {
    /// A run that begins with these.
    pub fn new(folder: Option<&Rc<Folder>>, spec: &RunSpec, first: &[Record], laws: Laws) -> Result<Self, String> {
        let kept = match folder {
            None => Kept::Memory(RefCell::new(first.iter().map(wire::encode).collect())),
            Some(folder) => Kept::Sqlite { folder: Rc::clone(folder), copy: Cell::new(0) },
        };
        laws.recorded(first, virtual_now());
        let records = Self { kept: Rc::new(kept), health: Rc::default(), laws };
        if let Some(path) = records.path() {
            let create = || Ok::<_, Wrong>(RunStore::new(Database::open(path)?).create(spec, first)?);
            create().map_err(|error| error.to_string())?;
        }
        Ok(records)
    }

    fn path(&self) -> Option<PathBuf> {
        match &*self.kept {
            Kept::Memory(_) => None,
            Kept::Sqlite { folder, copy } => Some(folder.file(&format!("run-{}.db", copy.get()))),
        }
    }

    pub fn read(&self) -> Result<Vec<Record>, String> {
        match &*self.kept {
            Kept::Memory(kept) => {
                let decode = |record: &Vec<u8>| wire::decode(record, limits::RECORD_BYTES_MAX);
                kept.borrow()
                    .iter()
                    .map(decode)
                    .collect::<Result<_, _>>()
                    .map_err(|error: wire::WireError| error.to_string())
            }
            Kept::Sqlite { .. } => {
                let path = self.path().unwrap_or_default();
                let load = || Ok::<_, Wrong>(RunStore::new(Database::open(path)?).load()?);
                let loaded = load().map_err(|error| error.to_string())?;
                loaded.map(|(_, records)| records).ok_or_else(|| "there is no run in the database".to_owned())
            }
        }
    }

    /// Opens them for a process that lives while `alive` says so, on a machine that stands as `standing` says.
    pub fn open(&self, alive: &Arc<AtomicBool>, standing: &Arc<Standing>) -> Result<OpenRecords, String> {
        let open = |path| Database::open(path).map(RunStore::new).map_err(|error| error.to_string());
        let store = self.path().map(open).transpose()?;
        let (alive, standing) = (Arc::clone(alive), Arc::clone(standing));
        Ok(OpenRecords { records: self.clone(), store, alive, standing })
    }
}

/// The same, as one process has them open.
pub(crate) struct OpenRecords {
    records: Records,
    store: Option<RunStore>,
    alive: Arc<AtomicBool>,
    standing: Arc<Standing>,
}

impl OpenRecords {
    fn write(&mut self, records: &[Record]) -> Result<(), RecordStoreError> {
        if let Some(store) = &mut self.store {
            store.append(records)?;
        } else if let Kept::Memory(kept) = &*self.records.kept {
            kept.borrow_mut().extend(records.iter().map(wire::encode));
        }
        self.records.laws.recorded(records, virtual_now());
        Ok(())
    }

    /// The machine dies while the transaction is on its way to the disk: what is left is the database before it, and a part
    /// of the log.
    fn tear(&mut self, records: &[Record]) -> Result<(), Wrong> {
        let (Some(store), Some(path)) = (&mut self.store, self.records.path()) else { return Ok(()) };
        let Kept::Sqlite { copy, .. } = &*self.records.kept else { return Ok(()) };
        let (before, log_before) = (fs::read(&path)?, read_log(&path)?);
        store.append(records)?;
        let (after, log_after) = (fs::read(&path)?, read_log(&path)?);
        copy.set(copy.get() + 1);
        let next = self.records.path().unwrap_or_default();
        fs::write(&next, &before)?;
        // Half of what the transaction added to the log, unless the log was begun anew meanwhile.
        let grown = before == after && log_after.starts_with(&log_before);
        let log = if grown { &log_after[..usize::midpoint(log_before.len(), log_after.len())] } else { &log_before };
        fs::write(log_of(&next), log)?;
        Ok(())
    }
}

fn log_of(database: &Path) -> PathBuf {
    let mut log = database.as_os_str().to_owned();
    log.push("-wal");
    log.into()
}

fn read_log(database: &Path) -> io::Result<Vec<u8>> {
    match fs::read(log_of(database)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read,
    }
}

impl RecordStore for OpenRecords {
    fn append(&mut self, records: &[Record]) -> Result<(), RecordStoreError> {
        let health = Rc::clone(&self.records.health);
        let refuse = |why: &str| {
            health.refuse();
            Err(RecordStoreError(why.to_owned()))
        };
        if !self.alive.load(Ordering::Relaxed) {
            return Err(RecordStoreError("written by a process that is dead".to_owned()));
        }
        if health.full.get() > 0 {
            return refuse("disk full");
        }
        if !health.slow().is_zero() {
            self.standing.pause(virtual_now() + health.slow());
        }
        let torn = health.torn.take();
        health.tore.set(torn.is_some());
        match torn {
            None => self.write(records),
            Some(Torn::After) => {
                self.write(records)?;
                refuse("killed while writing")
            }
            Some(Torn::Before) => {
                self.tear(records).map_err(|error| RecordStoreError(error.to_string()))?;
                refuse("killed while writing")
            }
        }
    }
}
