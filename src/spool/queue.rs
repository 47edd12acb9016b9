//! The queue in one file: numbered frames in a redb table, changed by one durable commit at a time.
//!
//! Owns the tables, the format number of the file and what is counted about it. Refuses to decide what
//! comes of a fault: it says which kind it was.
//!
//! Guarantees: after [`Queue::commit`] answered, a crash or a power cut leaves the file as of that commit
//! or a later one; before, as of the last one answered or this. One commit is one fsync. An opened queue was
//! read whole: every page and every frame was checked.
//!
//! redb is trusted with order and atomicity, and not with damage: it may panic on a file that was changed
//! behind its back, so that every call is caught and such a file is [`Fault::Damaged`].

use std::fmt;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use redb::{
    Builder, Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, StorageBackend,
    TableDefinition,
};

use super::record::{Entry, Stored};
#[cfg(feature = "sabotage")]
use crate::config::sabotage::{self, Sabotage};

/// The file's format. An older one is read; a newer one belongs to a newer release.
pub(super) const FORMAT: u64 = 1;

/// Memory redb may keep pages in; its own default is 1 GiB.
const CACHE_BYTES: usize = 16 * 1024 * 1024;

const RECORDS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("records");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const META_FORMAT: &str = "format";
/// The number that the next record gets. Kept, because a number that was used twice would let one of two
/// frames pass for an old copy of the other.
const META_NEXT: &str = "next";

/// What went wrong with a file.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// The disk did not do as told. After a failed fsync nobody knows what it holds, and a second fsync
    /// that succeeds proves nothing: such a file takes no further record.
    #[error("{error}")]
    Io {
        error: String,
        /// An fsync failed.
        sync: bool,
    },
    /// Its name, or that of its folder's lock, leads to nothing or to something else: what is in it will not
    /// be found by the next start.
    #[error("its file or its folder was removed")]
    Gone,
    /// Not a spool file, or one that something else has changed.
    #[error("{0}")]
    Damaged(String),
    /// Written by a newer release.
    #[error("format {0}")]
    Newer(u64),
}

/// A queue, open.
pub(super) struct Queue {
    db: Database,
    sync_failed: Arc<AtomicBool>,
    next: u64,
    records: u64,
    bytes: u64,
    oldest: Option<(u64, i64)>,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("records", &self.records)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl Queue {
    /// Makes a queue in an empty file, whose first record gets the number `next`.
    pub(super) fn create(backend: Box<dyn StorageBackend>, next: u64) -> Result<Queue, Fault> {
        let (backend, sync_failed) = Watched::new(backend);
        guard(&sync_failed, || {
            let mut builder = Builder::new();
            let db = builder
                .set_cache_size(CACHE_BYTES)
                .create_with_backend(backend)?;
            let transaction = db.begin_write()?;
            {
                transaction.open_table(RECORDS)?;
                let mut meta = transaction.open_table(META)?;
                meta.insert(META_FORMAT, FORMAT)?;
                meta.insert(META_NEXT, next)?;
            }
            transaction.commit()?;
            Ok(Queue {
                db,
                sync_failed: Arc::clone(&sync_failed),
                next,
                records: 0,
                bytes: 0,
                oldest: None,
            })
        })
    }

    /// Opens a file that is there, and reads all of it.
    pub(super) fn open(backend: Box<dyn StorageBackend>) -> Result<Queue, Fault> {
        let (backend, sync_failed) = Watched::new(backend);
        guard(&sync_failed, || {
            let mut builder = Builder::new();
            let db = builder
                .set_cache_size(CACHE_BYTES)
                .set_check_integrity_on_open(true)
                .create_with_backend(backend)?;
            let transaction = db.begin_read()?;
            let meta = transaction.open_table(META)?;
            let format = meta.get(META_FORMAT)?.map(|value| value.value());
            match format {
                Some(1..=FORMAT) => {}
                Some(newer) => return Err(Fault::Newer(newer)),
                None => return Err(Fault::Damaged("it has no format".to_owned())),
            }
            let next = meta.get(META_NEXT)?.map_or(0, |value| value.value());
            let table = transaction.open_table(RECORDS)?;
            let mut queue = Queue {
                next,
                sync_failed: Arc::clone(&sync_failed),
                records: 0,
                bytes: 0,
                oldest: None,
                db,
            };
            for row in table.iter()? {
                let (number, frame) = row?;
                let stored = stored(number.value(), frame.value())?;
                if stored.number() >= next {
                    return Err(Fault::Damaged("a record from its future".to_owned()));
                }
                queue.records += 1;
                queue.bytes += stored.frame().len() as u64;
                queue
                    .oldest
                    .get_or_insert((stored.number(), stored.at_ms()));
            }
            if table.len()? != queue.records {
                return Err(Fault::Damaged("records are missing".to_owned()));
            }
            Ok(queue)
        })
    }

    /// Removes and adds, in one durable commit; how many were there to be removed.
    pub(super) fn commit(
        &mut self,
        removed: &[u64],
        added: Vec<Entry>,
        at_ms: i64,
    ) -> Result<u64, Fault> {
        let first = self.next;
        let frames = (first..).zip(added);
        self.change(removed, frames.map(|(n, entry)| (n, entry.seal(n, at_ms))))
    }

    /// Takes over what was found whole in another file, numbers and times as they were.
    pub(super) fn restore(&mut self, stored: Vec<Stored>) -> Result<(), Fault> {
        let frames = stored.into_iter();
        self.change(&[], frames.map(|s| (s.number(), s.frame().to_vec())))
            .map(drop)
    }

    fn change(
        &mut self,
        removed: &[u64],
        added: impl Iterator<Item = (u64, Vec<u8>)>,
    ) -> Result<u64, Fault> {
        let (mut next, mut records, mut bytes) = (self.next, self.records, self.bytes);
        let mut gone = 0;
        let oldest = guard(&self.sync_failed, || {
            let transaction = self.db.begin_write()?;
            let oldest;
            {
                let mut table = transaction.open_table(RECORDS)?;
                for number in removed {
                    if let Some(frame) = table.remove(number)? {
                        gone += 1;
                        records -= 1;
                        bytes -= frame.value().len() as u64;
                    }
                }
                for (number, frame) in added {
                    table.insert(number, &frame[..])?;
                    next = next.max(number + 1);
                    records += 1;
                    bytes += frame.len() as u64;
                }
                oldest = match table.first()? {
                    Some((number, frame)) => {
                        let stored = stored(number.value(), frame.value())?;
                        Some((stored.number(), stored.at_ms()))
                    }
                    None => None,
                };
                transaction.open_table(META)?.insert(META_NEXT, next)?;
            }
            transaction.commit()?;
            Ok(oldest)
        })?;
        (self.next, self.records, self.bytes) = (next, records, bytes);
        self.oldest = oldest;
        Ok(gone)
    }

    /// The oldest records after number `after`, in order: at most `records`, and no more than `bytes` of
    /// them beyond the first.
    pub(super) fn read(
        &self,
        after: Option<u64>,
        records: usize,
        bytes: usize,
    ) -> Result<Vec<Stored>, Fault> {
        guard(&self.sync_failed, || {
            let table = self.db.begin_read()?.open_table(RECORDS)?;
            let (mut batch, mut taken) = (Vec::new(), 0);
            for row in table.range(after.map_or(0, |after| after + 1)..)? {
                let (number, frame) = row?;
                taken += frame.value().len();
                if batch.len() == records || (taken > bytes && !batch.is_empty()) {
                    break;
                }
                batch.push(stored(number.value(), frame.value())?);
            }
            Ok(batch)
        })
    }

    /// The number that the next record gets.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// How many records.
    pub(super) fn records(&self) -> u64 {
        self.records
    }

    /// Their bytes; the file is larger.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number and time of the oldest record.
    pub(super) fn oldest(&self) -> Option<(u64, i64)> {
        self.oldest
    }

    /// Ends it cleanly, so that the next start need not repair. What fails here cost nothing but that.
    pub(super) fn close(self) {
        let _ = catch_unwind(AssertUnwindSafe(|| drop(self)));
    }
}

fn stored(number: u64, frame: &[u8]) -> Result<Stored, Fault> {
    Stored::read(Bytes::copy_from_slice(frame))
        .filter(|stored| stored.number() == number)
        .ok_or_else(|| Fault::Damaged(format!("record {number} is not what was written")))
}

/// Runs what may fail, and may panic on a damaged file.
fn guard<T>(sync_failed: &AtomicBool, work: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    let result = catch_unwind(AssertUnwindSafe(work));
    let result = result.unwrap_or_else(|_| {
        Err(Fault::Damaged(
            "the storage engine panicked on it".to_owned(),
        ))
    });
    // redb reports only the first I/O error as what it was, so the file itself is asked.
    result.map_err(|fault| match fault {
        Fault::Io { error, .. } => Fault::Io {
            error,
            sync: sync_failed.load(Ordering::Acquire),
        },
        Fault::Damaged(reason) if sync_failed.load(Ordering::Acquire) => Fault::Io {
            error: reason,
            sync: true,
        },
        other => other,
    })
}

impl From<redb::Error> for Fault {
    fn from(error: redb::Error) -> Self {
        match error {
            // What is too short, or starts like no file of redb's.
            redb::Error::Io(error)
                if matches!(
                    error.kind(),
                    ErrorKind::UnexpectedEof | ErrorKind::InvalidData
                ) =>
            {
                Fault::Damaged(error.to_string())
            }
            redb::Error::Io(error) => Fault::Io {
                error: error.to_string(),
                sync: false,
            },
            redb::Error::PreviousIo | redb::Error::DatabaseClosed => Fault::Io {
                error: error.to_string(),
                sync: false,
            },
            // Wrong tables, wrong types, wrong checksums: whatever it is, it is no spool of ours.
            other => Fault::Damaged(other.to_string()),
        }
    }
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Fault::from(redb::Error::Io(error))
    }
}

macro_rules! faults {
    ($($error:ty),*) => {
        $(impl From<$error> for Fault {
            fn from(error: $error) -> Self {
                Fault::from(redb::Error::from(error))
            }
        })*
    };
}

faults!(
    redb::DatabaseError,
    redb::TransactionError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError
);

/// Storage that remembers a failed fsync. It has no locks: the spool's folder has one.
#[derive(Debug)]
struct Watched {
    inner: Box<dyn StorageBackend>,
    sync_failed: Arc<AtomicBool>,
}

impl Watched {
    fn new(inner: Box<dyn StorageBackend>) -> (Watched, Arc<AtomicBool>) {
        let sync_failed = Arc::new(AtomicBool::new(false));
        let watched = Watched {
            inner,
            sync_failed: Arc::clone(&sync_failed),
        };
        (watched, sync_failed)
    }
}

impl StorageBackend for Watched {
    fn len(&self) -> std::io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> std::io::Result<()> {
        #[cfg(feature = "sabotage")]
        if sabotage::is(Sabotage::SpoolSync) {
            return Ok(());
        }
        let synced = self.inner.sync_data();
        if synced.is_err() {
            self.sync_failed.store(true, Ordering::Release);
        }
        synced
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.inner.write(offset, data)
    }

    fn close(&self) -> std::io::Result<()> {
        self.inner.close()
    }
}
