//! Disks for tests: one that loses power, one that fails on demand, one that counts.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use redb::StorageBackend;
use redb::backends::FileBackend;

use super::lock;
use crate::spool::folder::Wrap;

/// A disk that forgets, at a power cut, any part of what was written since the last fsync.
///
/// Left out: blocks that were synced and change by themselves (`damage` does that), and time.
#[derive(Debug, Clone, Default)]
pub(super) struct Volatile(Arc<Mutex<Platter>>);

#[derive(Debug, Default)]
struct Platter {
    durable: Vec<u8>,
    now: Vec<u8>,
    pending: Vec<Change>,
    steps: u64,
    /// Nothing works from this step on.
    cut_at: Option<u64>,
}

#[derive(Debug, Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Change::Write(offset, data) => {
                let end = offset + data.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*offset..end].copy_from_slice(data);
            }
            Change::Length(length) => bytes.resize(*length, 0),
        }
    }
}

impl Volatile {
    /// A disk with these bytes, all durable, whose power is cut at step `cut_at` from now.
    pub(super) fn with(bytes: Vec<u8>, cut_at: Option<u64>) -> Self {
        Volatile(Arc::new(Mutex::new(Platter {
            now: bytes.clone(),
            durable: bytes,
            cut_at,
            ..Platter::default()
        })))
    }

    /// Writes, changes of length and fsyncs so far.
    pub(super) fn steps(&self) -> u64 {
        lock(&self.0).steps
    }

    /// What is on it while the power is on.
    pub(super) fn now(&self) -> Vec<u8> {
        lock(&self.0).now.clone()
    }

    /// What may be on it after the power came back: nothing of what was not synced, all of it, each
    /// beginning of it, each of it without one change, each change alone, and the last one torn.
    pub(super) fn after_power_cut(&self) -> BTreeSet<Vec<u8>> {
        let platter = lock(&self.0);
        let pending = &platter.pending;
        let image = |keep: &dyn Fn(usize) -> bool| {
            let mut bytes = platter.durable.clone();
            let kept = pending.iter().enumerate().filter(|(n, _)| keep(*n));
            kept.for_each(|(_, change)| change.apply(&mut bytes));
            bytes
        };
        let mut images = BTreeSet::from([image(&|_| false), image(&|_| true)]);
        for (one, change) in pending.iter().enumerate() {
            images.insert(image(&|n| n < one));
            images.insert(image(&|n| n != one));
            images.insert(image(&|n| n == one));
            if let Change::Write(offset, data) = change {
                let mut torn = image(&|n| n < one);
                Change::Write(*offset, data[..data.len() / 2].to_vec()).apply(&mut torn);
                images.insert(torn);
            }
        }
        images
    }

    fn change(&self, change: Change) -> io::Result<()> {
        let mut platter = lock(&self.0);
        platter.step()?;
        change.apply(&mut platter.now);
        platter.pending.push(change);
        Ok(())
    }
}

impl Platter {
    fn step(&mut self) -> io::Result<()> {
        if self.cut_at.is_some_and(|cut_at| self.steps >= cut_at) {
            return Err(io::Error::other("no power"));
        }
        self.steps += 1;
        Ok(())
    }
}

impl StorageBackend for Volatile {
    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.0).now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        let platter = lock(&self.0);
        let bytes = platter.now.get(offset..offset + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Change::Length(usize::try_from(len).unwrap()))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = lock(&self.0);
        platter.step()?;
        platter.durable = platter.now.clone();
        platter.pending.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Change::Write(
            usize::try_from(offset).unwrap(),
            data.to_vec(),
        ))
    }
}

/// What a [`Failing`] disk does wrong.
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// This many fsyncs fail from now on.
    pub(super) failing_syncs: AtomicU64,
    /// Bytes of blocks that all files together may have, the reserve among them; 0 is no bound.
    pub(super) capacity: AtomicU64,
    /// Blocks that were written, of each file.
    blocks: Mutex<BTreeMap<u64, BTreeSet<u64>>>,
    /// The reserve, which is written past this.
    reserve: PathBuf,
    /// Reads fail.
    pub(super) failing_reads: AtomicBool,
}

/// A real file on a disk that fails when told to.
#[derive(Debug)]
struct Failing {
    file: FileBackend,
    faults: Arc<Faults>,
    number: u64,
}

/// What a disk allocates at least.
const BLOCK: u64 = 4096;

impl Faults {
    /// For the spool in `folder`.
    pub(super) fn new(folder: &Path) -> (Arc<Faults>, Wrap) {
        let faults = Arc::new(Faults {
            reserve: folder.join("reserve"),
            ..Faults::default()
        });
        let shared = Arc::clone(&faults);
        let files = AtomicU64::new(0);
        let wrap = Wrap(Arc::new(move |file| {
            let faults = Arc::clone(&shared);
            let number = files.fetch_add(1, Ordering::SeqCst);
            // A file that is opened again has the blocks it had.
            let blocks = (0..file.len().unwrap().div_ceil(BLOCK)).collect();
            let mut known = lock(&faults.blocks);
            known.clear();
            known.insert(number, blocks);
            drop(known);
            Box::new(Failing {
                file,
                faults,
                number,
            })
        }));
        (faults, wrap)
    }

    /// Bytes of all blocks.
    pub(super) fn used(&self) -> u64 {
        let blocks: usize = lock(&self.blocks).values().map(BTreeSet::len).sum();
        let reserve = std::fs::metadata(&self.reserve).map_or(0, |reserve| reserve.len());
        blocks as u64 * BLOCK + reserve
    }

    fn room(&self, number: u64, from: u64, to: u64) -> io::Result<()> {
        let used = self.used();
        let mut known = lock(&self.blocks);
        let blocks = known.entry(number).or_default();
        let new: Vec<u64> = (from / BLOCK..to.div_ceil(BLOCK))
            .filter(|block| !blocks.contains(block))
            .collect();
        let capacity = self.capacity.load(Ordering::SeqCst);
        if capacity > 0 && !new.is_empty() && used + new.len() as u64 * BLOCK > capacity {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        blocks.extend(new);
        Ok(())
    }
}

impl StorageBackend for Failing {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if self.faults.failing_reads.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.file.read(offset, out)
    }

    /// A file that grows takes no blocks yet.
    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut known = lock(&self.faults.blocks);
        let blocks = known.entry(self.number).or_default();
        blocks.retain(|block| block * BLOCK < len);
        drop(known);
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let failing = &self.faults.failing_syncs;
        let fails = failing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if fails.is_ok() {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let end = offset + data.len() as u64;
        self.faults.room(self.number, offset, end)?;
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
}

/// A real file whose fsyncs are counted.
#[derive(Debug)]
pub(super) struct Counted {
    file: FileBackend,
    syncs: Arc<AtomicU64>,
}

/// How many there were.
#[derive(Debug)]
pub(super) struct Syncs(Arc<AtomicU64>);

impl Syncs {
    pub(super) fn syncs(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

impl Counted {
    #[expect(clippy::new_ret_no_self, reason = "the value itself goes to the spool")]
    pub(super) fn new() -> (Syncs, Wrap) {
        let counted = Arc::new(AtomicU64::new(0));
        let shared = Arc::clone(&counted);
        let wrap = Wrap(Arc::new(move |file| {
            let syncs = Arc::clone(&shared);
            Box::new(Counted { file, syncs })
        }));
        (Syncs(counted), wrap)
    }
}

impl StorageBackend for Counted {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::SeqCst);
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
}

/// A real file whose fsyncs wait while they are told to.
#[derive(Debug)]
pub(super) struct Held {
    file: FileBackend,
    hold: Hold,
}

/// Whether they do.
#[derive(Debug, Clone, Default)]
pub(super) struct Hold(Arc<(Mutex<bool>, Condvar)>);

impl Hold {
    pub(super) fn hold(&self) {
        *lock(&self.0.0) = true;
    }

    pub(super) fn release(&self) {
        *lock(&self.0.0) = false;
        self.0.1.notify_all();
    }
}

impl Held {
    #[expect(clippy::new_ret_no_self, reason = "the value itself goes to the spool")]
    pub(super) fn new() -> (Hold, Wrap) {
        let hold = Hold::default();
        let shared = hold.clone();
        let wrap = Wrap(Arc::new(move |file| {
            let hold = shared.clone();
            Box::new(Held { file, hold })
        }));
        (hold, wrap)
    }
}

impl StorageBackend for Held {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let (held, released) = &*self.hold.0;
        drop(released.wait_while(lock(held), |held| *held).unwrap());
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
}
