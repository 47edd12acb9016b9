//! The spool: a durable queue on this machine's disk for records that Kafka does not take now.
//!
//! Owns the records between [`Spool::push`] and their removal, in a folder of its own, and the one thread
//! that writes there. Refuses to decide which way a record goes first and when it is tried again: `receive`
//! does. Takes no record whose proof it could check: what enters was made by `receive` from a verified body.
//!
//! Guarantees: a push that ended well is on disk (fsync) and comes back from [`Spool::oldest`], in order of
//! its number, after any crash or power cut, until a [`Spool::oldest`] call has removed it. A removal is
//! durable before the call answers. Pushes that wait share one commit. After a failed fsync nothing more is
//! believed of that file.
//!
//! Fails with [`Error`] at start (wrong folder, newer release) and [`NotStored`] later, which promises
//! nothing about the record: it may come back all the same.
//!
//! The lost answer: a record whose removal was not durable is there again after a crash and is sent twice;
//! readers tell repeats by `ce_id`.

mod folder;
mod queue;
mod record;
mod writer;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

use self::folder::{Folder, Wrap};
use self::queue::FORMAT;
use self::writer::{Command, Writer};
use crate::lifecycle::Clock;

pub use self::record::{Entry, Parts, Stored};

/// Commands that may wait for the writer, and bytes of records with them. Beyond it a push is refused at
/// once.
const MAX_WAITING: usize = 8_192;
const MAX_WAITING_BYTES: u64 = 64 * 1024 * 1024;

/// What the spool needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its folder, which no other process uses.
    pub folder: PathBuf,
    /// Most bytes of records kept. The file takes up to about twice as much.
    pub max_bytes: u64,
    /// Stamps records and the names of files set aside.
    pub clock: Clock,
}

/// Why a spool is not opened. Nothing in its folder was changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a folder that can be trusted with records.
    #[error("--spool {}: {reason}", folder.display())]
    Refused {
        /// The folder.
        folder: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// Another process has it.
    #[error("--spool {}: another process uses it; give each its own folder", .0.display())]
    InUse(PathBuf),
    /// A newer release wrote it.
    #[error(
        "--spool {}: it has format {format} of a newer release, this one reads up to {FORMAT}; start that release until it has drained, or name another folder",
        folder.display()
    )]
    Newer {
        /// The folder.
        folder: PathBuf,
        /// Its format.
        format: u64,
    },
    /// The disk or the system refuses.
    #[error("--spool {}: {doing} failed; check the disk and its permissions", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl Error {
    fn refused(folder: &Path, reason: String) -> Self {
        let folder = folder.to_owned();
        Error::Refused { folder, reason }
    }

    fn newer(folder: &Path, format: u64) -> Self {
        let folder = folder.to_owned();
        Error::Newer { folder, format }
    }

    fn folder(folder: &Path, doing: &'static str, source: io::Error) -> Self {
        Error::Folder {
            folder: folder.to_owned(),
            doing,
            source,
        }
    }
}

/// Why a record was not spooled. It may be there all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotStored {
    /// It holds as many bytes as it may.
    #[error("the spool is full; let Kafka take what it holds, or raise --spool-max-bytes")]
    Full,
    /// More records wait for the disk than it can take in time.
    #[error("the disk of the spool is too slow for what arrives; try later")]
    Busy,
    /// The disk failed; [`Spool::health`] says how.
    #[error("the spool's disk fails; look at its folder")]
    Down,
    /// It was closed.
    #[error("the spool is closed; the process is stopping")]
    Closed,
}

impl NotStored {
    /// A stable word for metrics.
    pub fn reason(self) -> &'static str {
        match self {
            NotStored::Full => "full",
            NotStored::Busy => "busy",
            NotStored::Down => "down",
            NotStored::Closed => "closed",
        }
    }
}

/// How it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Why it takes no records now.
    pub down: Option<String>,
    /// What a person should look at although it works.
    pub note: Option<String>,
}

/// How much [`Spool::oldest`] gives at once.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// Most records.
    pub records: usize,
    /// Most bytes beyond the first record.
    pub bytes: usize,
}

/// A handle; clones share one spool.
#[derive(Clone)]
pub struct Spool {
    shared: Arc<Shared>,
    commands: Arc<Mutex<Option<SyncSender<Command>>>>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

/// What the handles and the writer share.
#[derive(Debug, Default)]
struct Shared {
    /// Records in the file.
    stored: AtomicU64,
    /// Pushes that wait for the disk, and their bytes.
    waiting: AtomicU64,
    waiting_bytes: AtomicU64,
    health: Mutex<Health>,
    /// Told after each commit that added records.
    arrived: Notify,
    pace: Mutex<Pace>,
}

/// How fast the disk is.
#[derive(Debug, Default)]
struct Pace {
    /// When the commit began that runs.
    since: Option<Instant>,
    /// What the last two took.
    last: [Duration; 2],
}

impl Pace {
    fn done(&mut self, took: Duration) {
        self.since = None;
        self.last = [self.last[1], took];
    }

    /// How long it takes from `now` until `commits` more have followed the one that runs. Judged by the faster
    /// of the last two, since one that makes the file larger has several fsyncs and is rare; one that already
    /// takes longer is taken to be half done.
    fn ahead(&self, now: Instant, commits: u32) -> Duration {
        let usual = self.last[0].min(self.last[1]);
        let run = self.since.map(|since| now.saturating_duration_since(since));
        let rest = match run {
            None => Duration::ZERO,
            Some(run) if run < usual => usual - run,
            Some(run) => run,
        };
        rest + usual.max(run.unwrap_or_default()) * commits
    }
}

/// A push that waits for its commit.
struct Waiting {
    reply: oneshot::Sender<Result<(), NotStored>>,
    place: Place,
}

/// Counts a push that waits for as long as it does.
struct Place {
    shared: Arc<Shared>,
    bytes: u64,
}

impl Place {
    fn take(shared: &Arc<Shared>, bytes: u64) -> Self {
        shared.waiting.fetch_add(1, Ordering::AcqRel);
        shared.waiting_bytes.fetch_add(bytes, Ordering::AcqRel);
        let shared = Arc::clone(shared);
        Place { shared, bytes }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
        let bytes = &self.shared.waiting_bytes;
        bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

impl Spool {
    /// Opens the folder, creates it where it is not there, and starts the writer. A queue that cannot be
    /// opened now (a full disk) is tried again later, see [`Spool::health`].
    ///
    /// # Errors
    /// See [`Error`].
    pub fn open(settings: &Settings) -> Result<Spool, Error> {
        Spool::open_with(settings, Wrap::none())
    }

    fn open_with(settings: &Settings, wrap: Wrap) -> Result<Spool, Error> {
        let folder = Folder::lock(&settings.folder, settings.clock, wrap)?;
        let shared = Arc::new(Shared::default());
        let writer = Writer::start(folder, settings, Arc::clone(&shared))?;
        let (commands, received) = sync_channel(MAX_WAITING);
        let thread = std::thread::Builder::new()
            .name("spool".to_owned())
            .spawn(move || writer.run(&received))
            .map_err(|source| Error::folder(&settings.folder, "starting its thread", source))?;
        Ok(Spool {
            shared,
            commands: Arc::new(Mutex::new(Some(commands))),
            thread: Arc::new(Mutex::new(Some(thread))),
        })
    }

    /// Hands `entry` to the writer. What comes back ends well once it is on disk; at once where others wait
    /// already, and the disk, judged by how long it takes for a commit, will not be done `within` the time.
    ///
    /// Cancel-safe: dropped early, the record may be written all the same, and nobody hears of it.
    pub async fn push(&self, entry: Entry, within: Duration) -> Result<(), NotStored> {
        if self.wait() > within {
            writer::refused(NotStored::Busy);
            return Err(NotStored::Busy);
        }
        let (reply, answer) = oneshot::channel();
        let bytes = entry.bytes() as u64;
        let waiting = Waiting {
            reply,
            place: Place::take(&self.shared, bytes),
        };
        if self.shared.waiting_bytes.load(Ordering::Acquire) > MAX_WAITING_BYTES {
            return Err(NotStored::Busy);
        }
        self.send(Command::Push { entry, waiting })?;
        answer.await.unwrap_or(Err(NotStored::Closed))
    }

    /// How long a push would wait now. One that nobody is ahead of is always worth a try: without it no one
    /// would learn that the disk is fast again.
    fn wait(&self) -> Duration {
        let waiting = self.shared.waiting.load(Ordering::Acquire);
        if waiting == 0 {
            return Duration::ZERO;
        }
        let commits = waiting / writer::BATCH_RECORDS as u64 + 1;
        let commits = u32::try_from(commits).unwrap_or(u32::MAX);
        lock(&self.shared.pace).ahead(Instant::now(), commits)
    }

    /// Removes the records numbered `removed`, durably, then gives the oldest that remain after number
    /// `after`.
    ///
    /// # Errors
    /// [`NotStored`]; what was to be removed may be there still.
    pub async fn oldest(
        &self,
        removed: Vec<u64>,
        after: Option<u64>,
        limit: Limit,
    ) -> Result<Vec<Stored>, NotStored> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Oldest {
            removed,
            after,
            limit,
            reply,
        })?;
        answer.await.unwrap_or(Err(NotStored::Closed))
    }

    /// Records held, those on their way to the disk included.
    pub fn held(&self) -> u64 {
        self.shared.stored.load(Ordering::Acquire) + self.shared.waiting.load(Ordering::Acquire)
    }

    /// Ends after records were added; at once where that happened since the last call.
    pub async fn arrived(&self) {
        self.shared.arrived.notified().await;
    }

    /// How it is now.
    pub fn health(&self) -> Health {
        let mut health = lock(&self.shared.health).clone();
        if lock(&self.thread)
            .as_ref()
            .is_some_and(JoinHandle::is_finished)
        {
            health.down = Some("its thread ended in a panic; restart".to_owned());
        }
        health
    }

    /// Takes no more commands, writes those that wait, and closes the file; for `limit` at most. Of
    /// several clones the first call closes for all.
    pub async fn close(self, limit: Duration) {
        lock(&self.commands).take();
        let Some(thread) = lock(&self.thread).take() else {
            return;
        };
        let joined = tokio::task::spawn_blocking(move || thread.join());
        match tokio::time::timeout(limit, joined).await {
            Ok(Ok(Ok(()))) => {}
            Ok(_) => tracing::error!("the spool's thread ended in a panic; report the defect"),
            Err(_) => tracing::warn!(
                limit_ms = limit.as_millis(),
                "the spool's disk did not finish in time; the next start checks its file"
            ),
        }
    }

    fn send(&self, command: Command) -> Result<(), NotStored> {
        match &*lock(&self.commands) {
            Some(commands) => commands.try_send(command).map_err(|error| match error {
                TrySendError::Full(_) => NotStored::Busy,
                TrySendError::Disconnected(_) => NotStored::Closed,
            }),
            None => Err(NotStored::Closed),
        }
    }
}

impl fmt::Debug for Spool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spool")
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
