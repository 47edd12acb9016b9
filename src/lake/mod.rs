//! The lake: three Delta tables under one folder, and the one primitive that changes them.
//!
//! Owns files, the Delta log, and what a commit promises. [`Table::commit`] makes *rows, removal of
//! conversations, and Kafka positions* durable and visible together, or not at all; everything that writes (the
//! enricher, the archive, erasure, repair) goes through it. Decides nothing about what a conversation needs.
//!
//! Guarantees:
//! - A commit is acknowledged only when its files, its log entry and their folders are fsynced.
//! - Positions are compared with the very version that is committed on: another owner's positions refuse the
//!   commit ([`LakeError::Refused`]). The Delta protocol leaves that comparison to writers.
//! - A conversation that somebody else wrote since the caller looked is never doubled
//!   ([`LakeError::Raced`]); `events` is the raw record and keeps repeats.
//! - A lost answer is resolved by reading positions back. Whatever error a commit ends with, committing the same
//!   thing again is safe.
//! - A folder that is not a lake of ours is refused before anything is written.
//!
//! Fails as [`LakeError`] says, each variant with what to do next. Everything here blocks underneath (the
//! kernel's interface is synchronous) and runs on blocking threads; a dropped future lets a commit that has begun
//! finish, and the next one waits for it.

mod audit;
mod commit;
mod live;
mod location;
mod log;
mod read;

pub mod sql;
mod storage;
mod vacuum;
mod write;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};

use crate::table::TableName;
use crate::table::row::Completeness;

use live::TableState;
use storage::Storage;

pub use audit::DataFile;
pub use read::Batches;
pub use vacuum::{RETENTION_LEAST, Sweep, Swept};

/// Whether opening a lake may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Missing tables are created, columns that an older version lacked are added.
    Create,
    /// All three tables must be there; opening writes nothing.
    Existing,
}

/// How far a Kafka partition has been written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// `convolake/<group>/<cluster id>/<topic>/<partition>`: the Delta transaction's `appId`.
    pub app: String,
    /// The next offset when the caller started; `None` where there was none.
    pub from: Option<i64>,
    /// The next offset after this commit.
    pub to: i64,
}

/// What changes together.
#[derive(Debug, Clone, Default)]
pub struct Commit {
    /// Rows from [`crate::table`], each batch in its own order.
    pub rows: Vec<RecordBatch>,
    /// Conversations whose rows, all of them, are removed in the same commit.
    pub replace: BTreeSet<String>,
    /// Paths of files ([`DataFile::path`]) that go, whatever they hold: the way out of a file that cannot be read.
    /// One that is not live any more is passed over.
    pub drop_files: BTreeSet<String>,
    /// Positions that move. Empty for erasure and repair.
    pub positions: Vec<Position>,
    /// [`Table::version`] from before the caller looked conversations up: whoever wrote one of `rows`' conversations
    /// after it wins. `None`: the version when the commit begins.
    pub seen: Option<u64>,
}

/// What a commit did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// Version of the table that has it.
    pub version: u64,
    /// Data files added.
    pub files: usize,
    /// Their size.
    pub bytes: u64,
    /// The positions were there already: this very commit had landed before, and nothing was added now.
    pub already: bool,
}

/// What the row of a conversation says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ledger {
    /// How much of it is there.
    pub completeness: Completeness,
    /// Equal for two enrichments that learned the same.
    pub content_hash: String,
}

/// Size of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Version that was looked at.
    pub version: u64,
    /// Live data files.
    pub files: usize,
    /// Rows in them.
    pub rows: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What went wrong with the lake, and what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LakeError {
    /// The location cannot be used. Stop; correct the configuration.
    #[error("the lake cannot be at `{location}`: {reason}")]
    Location { location: String, reason: String },
    /// The folder holds something else. Stop; nothing was written.
    #[error("`{}` is not a lake: {found}; give an empty folder or an existing lake", path.display())]
    Foreign { path: PathBuf, found: String },
    /// Opened as existing, and it is not there. Stop.
    #[error("there is no lake at `{}`: {missing}; `convolake ingest` makes one", path.display())]
    Missing { path: PathBuf, missing: String },
    /// Something that this version must not write to. Stop; nothing was written.
    #[error("table `{table}` cannot be written by this version: {reason}")]
    Incompatible { table: TableName, reason: String },
    /// Somebody else owns the partition. Drop what is in hand and take part in the next assignment.
    #[error(
        "table `{table}` has position {found:?} of `{app}` and not {expected:?}: another owner wrote it; nothing was committed"
    )]
    Refused {
        table: TableName,
        app: String,
        expected: Option<i64>,
        found: Option<i64>,
    },
    /// Others wrote these conversations since they were looked up. Look again, drop or replace them, commit again.
    #[error(
        "{} conversation(s) were written to table `{table}` by others since they were looked up; nothing was committed",
        conversations.len()
    )]
    Raced {
        table: TableName,
        conversations: Vec<String>,
    },
    /// Other writers were faster every time. Commit again, later.
    #[error(
        "table `{table}` changed under each of {tries} tries to commit; nothing was committed, commit again"
    )]
    Contended { table: TableName, tries: u32 },
    /// The caller's commit makes no sense. A defect: stop.
    #[error("not a commit for table `{table}`: {reason}")]
    Invalid { table: TableName, reason: String },
    /// The Delta log could not be read or written. Commit again: what has landed is recognised.
    #[error("table `{table}`: {action} failed")]
    Log {
        table: TableName,
        action: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A data file could not be read or written. Commit again.
    #[error("{action} `{}` failed", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A blocking task panicked or was cancelled by the end of the runtime. Stop.
    #[error("work on the lake ended early")]
    Ended(#[source] tokio::task::JoinError),
}

/// An open lake. Clones share everything.
#[derive(Debug, Clone)]
pub struct Lake {
    tables: [Table; 3],
}

impl Lake {
    /// Opens the lake at a plain path or `file://` URL.
    ///
    /// # Errors
    /// [`LakeError::Location`], [`LakeError::Foreign`], [`LakeError::Missing`], [`LakeError::Incompatible`]: nothing was
    /// written in any table; and I/O.
    pub async fn open(location: &str, access: Access) -> Result<Lake, LakeError> {
        let root = location::parse(location)?;
        let storage = Arc::new(Storage::local()?);
        Lake::open_on(storage, root, access).await
    }

    async fn open_on(
        storage: Arc<Storage>,
        root: PathBuf,
        access: Access,
    ) -> Result<Lake, LakeError> {
        blocking(move || {
            let present = location::inspect(&root, access)?;
            // Every table is judged before any is touched: a lake is taken over whole or not at all.
            let mut opened = Vec::new();
            for (table, present) in TableName::ALL.into_iter().zip(present) {
                let log = log::Log::new(storage.clone(), &root, table)?;
                let snapshot = if present { Some(log.load()?) } else { None };
                opened.push((log, snapshot));
            }
            let mut tables = Vec::new();
            for (log, snapshot) in opened {
                let snapshot = match snapshot {
                    Some(snapshot) => snapshot,
                    None => log.create()?,
                };
                let snapshot = match access {
                    Access::Create => log.complete_columns(snapshot)?,
                    Access::Existing => snapshot,
                };
                tables.push(Table(Arc::new(TableState::new(log, snapshot)?)));
            }
            let tables = tables
                .try_into()
                .expect("one table was pushed for each of the three names");
            Ok(Lake { tables })
        })
        .await
    }

    /// The folder that the tables are in.
    pub fn root(&self) -> &std::path::Path {
        let folder = self.tables[0].0.folder();
        folder.parent().expect("a table lies in the lake's folder")
    }

    /// One of the tables.
    pub fn table(&self, name: TableName) -> &Table {
        let [communications, conversations, events] = &self.tables;
        match name {
            TableName::Communications => communications,
            TableName::Conversations => conversations,
            TableName::Events => events,
        }
    }

    /// How complete the lake has each of `conversations` (those it does not have are absent), by the newest version
    /// of table `conversations`.
    ///
    /// # Errors
    /// I/O.
    pub async fn completeness(
        &self,
        conversations: &[String],
    ) -> Result<HashMap<String, Completeness>, LakeError> {
        let ledgers = self.ledgers(conversations).await?;
        let of = |(id, ledger): (String, Ledger)| (id, ledger.completeness);
        Ok(ledgers.into_iter().map(of).collect())
    }

    /// The same, with what a newer version of a conversation is compared by.
    ///
    /// # Errors
    /// I/O.
    pub async fn ledgers(
        &self,
        conversations: &[String],
    ) -> Result<HashMap<String, Ledger>, LakeError> {
        let state = self.table(TableName::Conversations).0.clone();
        let ids = conversations.to_vec();
        blocking(move || {
            let view = state.refresh()?;
            let mut found: HashMap<String, Ledger> = HashMap::new();
            for (file, ids) in state.find(&view, &ids, None)? {
                let columns = ["conversation_id", "completeness", "content_hash"];
                for batch in read::matching(state.folder(), &file, &columns, &ids)? {
                    let batch = batch?;
                    let [ids, values, hashes] =
                        [0, 1, 2].map(|at| batch.column(at).as_string::<i32>());
                    for row in 0..batch.num_rows() {
                        // An unknown value is of a newer version; the least claim is the safe one to act on.
                        let value = Completeness::from_column(values.value(row))
                            .unwrap_or(Completeness::Gone);
                        let ledger = Ledger {
                            completeness: value,
                            content_hash: hashes.value(row).to_owned(),
                        };
                        let id = ids.value(row);
                        if found.get(id).is_none_or(|best| best.completeness < value) {
                            found.insert(id.to_owned(), ledger);
                        }
                    }
                }
            }
            Ok(found)
        })
        .await
    }
}

/// One table of a [`Lake`]. Clones share everything; commits of one process queue for each other.
#[derive(Debug, Clone)]
pub struct Table(Arc<TableState>);

impl Table {
    /// Which table this is.
    pub fn name(&self) -> TableName {
        self.0.table()
    }

    /// Makes `commit` durable and visible, whole.
    ///
    /// # Errors
    /// [`LakeError::Refused`], [`LakeError::Raced`], [`LakeError::Contended`], [`LakeError::Invalid`]: nothing was
    /// committed. [`LakeError::Log`], [`LakeError::File`], [`LakeError::Ended`]: whether it was committed is not known
    /// here; the same commit again finds out.
    pub async fn commit(&self, commit: &Commit) -> Result<Committed, LakeError> {
        commit::run(self.0.clone(), commit.clone()).await
    }

    /// The position of each of `apps` in the newest version.
    ///
    /// # Errors
    /// I/O.
    pub async fn positions(&self, apps: &[String]) -> Result<Vec<Option<i64>>, LakeError> {
        let (state, apps) = (self.0.clone(), apps.to_vec());
        blocking(move || {
            let view = state.refresh()?;
            apps.iter()
                .map(|app| state.log().position(&view.snapshot, app))
                .collect()
        })
        .await
    }

    /// Every position in the newest version, by app; commits without positions of their callers have some, too.
    ///
    /// # Errors
    /// I/O.
    pub async fn all_positions(&self) -> Result<BTreeMap<String, i64>, LakeError> {
        let state = self.0.clone();
        blocking(move || {
            let view = state.refresh()?;
            state.log().all_positions(&view.snapshot)
        })
        .await
    }

    /// Which of `conversations` have a row in the newest version.
    ///
    /// # Errors
    /// I/O.
    pub async fn holds(&self, conversations: &[String]) -> Result<HashSet<String>, LakeError> {
        let (state, ids) = (self.0.clone(), conversations.to_vec());
        blocking(move || {
            let view = state.refresh()?;
            let found = state.find(&view, &ids, None)?;
            Ok(found.into_iter().flat_map(|(_, ids)| ids).collect())
        })
        .await
    }

    /// The newest version this process has seen; reads nothing.
    pub fn version(&self) -> u64 {
        self.0.version()
    }

    /// The rows of the newest version, file by file, with these columns in this order. A column that the table or
    /// a file lacks is null. Memory: a few batches.
    ///
    /// # Errors
    /// I/O; [`LakeError::Invalid`] for a column that is not one of ours.
    pub async fn read(&self, columns: &[&str]) -> Result<Batches, LakeError> {
        let state = self.0.clone();
        let columns = read::columns(state.table(), columns)?;
        let view = blocking({
            let state = state.clone();
            move || state.refresh()
        })
        .await?;
        Ok(Batches::start(
            state.table(),
            state.folder().to_owned(),
            view.files(),
            columns,
        ))
    }

    /// Size of the newest version.
    ///
    /// # Errors
    /// I/O.
    pub async fn stats(&self) -> Result<Stats, LakeError> {
        let state = self.0.clone();
        blocking(move || Ok(state.refresh()?.stats())).await
    }
}

/// Runs `work` where blocking is allowed.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LakeError> + Send + 'static,
) -> Result<T, LakeError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(LakeError::Ended)?
}

#[cfg(test)]
mod tests;
