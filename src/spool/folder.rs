//! The spool's folder: whose it is, which file is the queue, and what becomes of a file that cannot be one.
//!
//! Owns the names in the folder, its lock, and the order of the steps by which one file takes the place of
//! another. Refuses a folder that others can touch, and a spool of a newer release, which it leaves as it
//! is.
//!
//! Guarantees: a file is only renamed or removed after all that could be read from it is durable in the
//! file that takes its place, so that a crash between any two steps loses nothing and the next start goes
//! on from there. A damaged file is damaged once: what takes its place is whole. A folder, lock or queue that
//! somebody removes is noticed, and made anew from the file that is still open.
//!
//! | name | is |
//! |---|---|
//! | `lock` | held by the one process that uses the folder; says the format |
//! | `queue.redb` | the queue |
//! | `queue.new` | a queue in the making; whole only once `queue.redb` is gone |
//! | `reserve` | room on the disk, given up when a full one must be drained: to remove takes room, too |
//! | `set-aside-….redb` | a damaged or foreign file, kept for a person to look at |

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::StorageBackend;
use redb::backends::FileBackend;

use super::Error;
use super::queue::{FORMAT, Fault, Queue};
use super::record::{Found, read_found, search};
use crate::lifecycle::Clock;

const LOCK: &str = "lock";
const QUEUE: &str = "queue.redb";
const NEW: &str = "queue.new";
const RESERVE: &str = "reserve";
/// More than one removal of a drain's batch takes: the engine copies what it changes.
const RESERVE_BYTES: u64 = 4 * 1024 * 1024;
/// What the lock file says, before the number.
const FORMAT_LINE: &str = "convolake spool, format ";
/// Records and bytes that are copied in one commit.
const COPY_RECORDS: usize = 4_096;
const COPY_BYTES: usize = 8 * 1024 * 1024;
/// Where nobody knows which records a file should have.
const EVERY_NUMBER: Range<u64> = 0..u64::MAX;
/// Files that may be set aside within one second.
const MAX_ASIDE: u32 = 100;

/// What stands between the queue and its file: nothing, or the faults of a test.
#[derive(Clone)]
pub(super) struct Wrap(pub(super) Arc<WrapFile>);

type WrapFile = dyn Fn(FileBackend) -> Box<dyn StorageBackend> + Send + Sync;

impl Wrap {
    /// The file as it is.
    pub(super) fn none() -> Self {
        Wrap(Arc::new(|file| Box::new(file)))
    }
}

impl fmt::Debug for Wrap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wrap")
    }
}

/// The folder, locked.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    lock: File,
    clock: Clock,
    wrap: Wrap,
}

/// A queue and the file it lies in.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) queue: Queue,
    pub(super) file: File,
}

/// What opening the folder's queue did beside that.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mended {
    /// Files set aside.
    pub(super) set_aside: u64,
    /// Records that were read from them.
    pub(super) salvaged: u64,
}

impl Folder {
    /// Creates the folder where it is not there, checks whose it is, and locks it.
    pub(super) fn lock(path: &Path, clock: Clock, wrap: Wrap) -> Result<Folder, Error> {
        let failed = |doing| move |source| Error::folder(path, doing, source);
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => sync_folder(parent(path)).map_err(failed("making its entry durable"))?,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed("creating it")(error)),
        }
        // Of the link itself, were it one.
        let metadata = fs::symlink_metadata(path).map_err(failed("looking at it"))?;
        let user = rustix::process::geteuid().as_raw();
        if let Some(reason) = objection(Owned::of(&metadata), user) {
            return Err(Error::refused(path, reason));
        }
        for name in [LOCK, QUEUE, NEW, RESERVE] {
            if let Ok(metadata) = fs::symlink_metadata(path.join(name))
                && !(metadata.is_file() && metadata.uid() == user)
            {
                let reason = format!("{name} in it is a link, or another user's; remove it");
                return Err(Error::refused(path, reason));
            }
        }
        let mut lock = open(&path.join(LOCK), true).map_err(failed("opening its lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::InUse(path.to_owned())),
            Err(TryLockError::Error(error)) => return Err(failed("locking it")(error)),
        }
        let mut line = String::new();
        // What cannot be read or is no number is damage, and the queue's own format decides.
        let _ = (&mut lock).take(64).read_to_string(&mut line);
        let format = line.trim_end().strip_prefix(FORMAT_LINE);
        match format.and_then(|number| number.parse().ok()) {
            Some(newer) if newer > FORMAT => return Err(Error::newer(path, newer)),
            Some(_) => {}
            None => {
                let written = lock
                    .set_len(0)
                    .and_then(|()| writeln!(lock, "{FORMAT_LINE}{FORMAT}"));
                written.map_err(failed("writing its format"))?;
            }
        }
        Ok(Folder {
            path: path.to_owned(),
            lock,
            clock,
            wrap,
        })
    }

    /// Opens the queue, or makes one; sets aside a file that is none and keeps what can be read of it. No number
    /// below `next` is given again, which whoever has used the file before knows.
    pub(super) fn open_queue(&self, next: u64) -> Result<(Open, Mended), Fault> {
        let (main, new) = (self.path.join(QUEUE), self.path.join(NEW));
        if !exists(&main)? {
            if exists(&new)? {
                // A crash between the two renames of `put_in_place`.
                fs::rename(&new, &main)?;
                sync_folder(&self.path)?;
            } else {
                let open = self.build(None, next)?;
                self.put_in_place(false)?;
                return Ok((open, Mended::default()));
            }
        }
        let file = open(&main, false)?;
        remove(&new)?;
        if file.metadata()?.len() == 0 {
            // redb would make a queue of its own in it.
            return self.replace(&file, &EVERY_NUMBER, None, next);
        }
        match Queue::open(self.backend(&file)?) {
            Ok(queue) => Ok((Open { queue, file }, Mended::default())),
            Err(Fault::Damaged(reason)) => {
                tracing::error!(reason, "the spool's file is damaged, or is no spool");
                self.replace(&file, &EVERY_NUMBER, None, next)
            }
            Err(other) => Err(other),
        }
    }

    /// Puts a new file in the place of `old`, with every record of `numbers` that can be read from it.
    /// Where that is not all of the `expected` number, or nobody knows, `old` is set aside; so is another
    /// file that lies in its place. The new file's first number is `next`, or follows what was found.
    pub(super) fn replace(
        &self,
        old: &File,
        numbers: &Range<u64>,
        expected: Option<u64>,
        next: u64,
    ) -> Result<(Open, Mended), Fault> {
        let found = search(old, numbers)?;
        let salvaged = found.len() as u64;
        let next = found.last().map_or(next, |last| next.max(last.number + 1));
        let open = self.build(Some((old, &found)), next).inspect_err(|_| {
            // Half a copy is of no use, and takes room where that may be what is wanting.
            let _ = fs::remove_file(self.path.join(NEW));
        })?;
        let main = self.path.join(QUEUE);
        // Whatever has come to lie there is not ours to write over.
        let foreign = !is_at(old, &main)?;
        let partial = expected.is_none_or(|expected| salvaged < expected);
        let set_aside = exists(&main)? && (partial || foreign);
        self.put_in_place(set_aside)?;
        let mended = Mended {
            set_aside: u64::from(set_aside),
            salvaged,
        };
        Ok((open, mended))
    }

    /// That `file` and our lock are still those that the next start will find.
    pub(super) fn holds(&self, file: &File) -> Result<(), Fault> {
        match is_at(file, &self.path.join(QUEUE))? && is_at(&self.lock, &self.path.join(LOCK))? {
            true => Ok(()),
            false => Err(Fault::Gone),
        }
    }

    /// Makes the folder anew, and locks it, where it or its lock is gone.
    pub(super) fn restore(&mut self) -> Result<(), Fault> {
        if is_at(&self.lock, &self.path.join(LOCK))? {
            return Ok(());
        }
        *self = Folder::lock(&self.path, self.clock, self.wrap.clone()).map_err(|error| {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            Fault::Io {
                error: format!("{error}{}", cause.unwrap_or_default()),
                sync: false,
            }
        })?;
        Ok(())
    }

    /// Takes the reserve, if there is room for it.
    pub(super) fn take_reserve(&self) -> io::Result<()> {
        let mut file = open(&self.path.join(RESERVE), true)?;
        if file.metadata()?.len() == RESERVE_BYTES {
            return Ok(());
        }
        let block = [0xa5; 64 * 1024];
        let blocks = RESERVE_BYTES / block.len() as u64;
        let written = (0..blocks).try_for_each(|_| file.write_all(&block));
        let taken = written.and_then(|()| file.sync_all());
        if taken.is_err() {
            // A part of it is no reserve, and what wants room now is something else.
            let _ = file.set_len(0);
        }
        taken
    }

    /// Gives the reserve up; whether there was one.
    pub(super) fn give_up_reserve(&self) -> bool {
        let given_up = open(&self.path.join(RESERVE), false).and_then(|file| {
            let bytes = file.metadata()?.len();
            file.set_len(0)?;
            file.sync_all()?;
            Ok(bytes == RESERVE_BYTES)
        });
        given_up.unwrap_or(false)
    }

    /// A whole queue under the name of one in the making.
    fn build(&self, from: Option<(&File, &[Found])>, next: u64) -> Result<Open, Fault> {
        let new = self.path.join(NEW);
        remove(&new)?;
        let file = open(&new, true)?;
        let mut queue = Queue::create(self.backend(&file)?, next)?;
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let (old, found) = from.unzip();
        for found in found.unwrap_or_default() {
            let old = old.expect("what was found was found in it");
            batch.extend(read_found(old, *found)?);
            bytes += found.bytes;
            if batch.len() == COPY_RECORDS || bytes > COPY_BYTES {
                queue.restore(std::mem::take(&mut batch))?;
                bytes = 0;
            }
        }
        queue.restore(batch)?;
        Ok(Open { queue, file })
    }

    /// Gives the queue that was built its name, each step durable before the next.
    fn put_in_place(&self, set_aside: bool) -> Result<(), Fault> {
        let (main, new) = (self.path.join(QUEUE), self.path.join(NEW));
        sync_folder(&self.path)?;
        if set_aside {
            let aside = self.free_name()?;
            fs::rename(&main, &aside)?;
            sync_folder(&self.path)?;
            tracing::error!(file = %aside.display(), "a file of the spool was set aside");
        }
        fs::rename(&new, &main)?;
        Ok(sync_folder(&self.path)?)
    }

    fn free_name(&self) -> Result<PathBuf, Fault> {
        let time = self.clock.now().strftime("%Y%m%dT%H%M%SZ").to_string();
        for n in 0..MAX_ASIDE {
            let path = self.path.join(format!("set-aside-{time}-{n}.redb"));
            if !exists(&path)? {
                return Ok(path);
            }
        }
        Err(Fault::Io {
            error: format!("{MAX_ASIDE} files were set aside in one second; look at the disk"),
            sync: false,
        })
    }

    fn backend(&self, file: &File) -> Result<Box<dyn StorageBackend>, Fault> {
        let backend = FileBackend::new(file.try_clone()?)?;
        Ok((self.wrap.0)(backend))
    }
}

/// What decides whether a folder can be trusted with what callers were told is safe.
#[derive(Debug, Clone, Copy)]
struct Owned {
    is_folder: bool,
    user: u32,
    mode: u32,
}

impl Owned {
    fn of(metadata: &fs::Metadata) -> Self {
        Owned {
            is_folder: metadata.is_dir(),
            user: metadata.uid(),
            mode: metadata.mode() & 0o777,
        }
    }
}

/// Why a folder is refused. Records hold what people wrote to each other, so nobody else may look.
fn objection(folder: Owned, user: u32) -> Option<String> {
    if !folder.is_folder {
        return Some("it is no folder, or a link to one; name the folder itself".to_owned());
    }
    if folder.user != user {
        let owner = folder.user;
        return Some(format!(
            "user {owner} owns it and this process is user {user}; name a folder inside that this process can create"
        ));
    }
    (folder.mode & 0o077 != 0).then(|| {
        let mode = folder.mode;
        format!("others can reach into it (mode {mode:o}); run `chmod 700` on it")
    })
}

/// Opens a file of ours for reading and writing, never through a link.
fn open(path: &Path, create: bool) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(create)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("it is not a regular file"))
    }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        Some(_) => Path::new("."),
        None => path,
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn exists(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether `path` names `file` itself.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let there = match fs::symlink_metadata(path) {
        Ok(there) => there,
        // Also where a file has come to lie in the folder's place.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(false);
        }
        Err(error) => return Err(error),
    };
    let ours = file.metadata()?;
    Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino()))
}

/// A name is durable only when its folder is.
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
