//! The one thread that writes: it takes what waits, commits it at once, and answers.
//!
//! Owns the open queue and what comes of its faults. Refuses to answer a push before its commit, or at all
//! well once the commit failed.
//!
//! Guarantees: one commit for all that waited when it began, so that a slow disk makes larger commits and
//! not a longer wait; after a fault the queue is opened anew before anything is written again: the same file
//! where only a write failed (a full disk), another one beside it where an fsync did, and where the file or its
//! folder was removed. That is looked for after each commit, before its pushes are answered, and every second.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use metrics::{Counter, Gauge};
use tokio::sync::oneshot;

use super::folder::{Folder, Mended, Open};
use super::queue::Fault;
use super::record::{Entry, Stored};
use super::{Error, Limit, NotStored, Settings, Shared, Waiting, lock};
use crate::lifecycle::Clock;
use crate::telemetry;

/// Most records and bytes of one commit.
pub(super) const BATCH_RECORDS: usize = 4_096;
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// How often gauges that change by themselves are set, and the file is looked for.
const TICK: Duration = Duration::from_secs(1);
/// Shortest time between two tries to open the queue after a fault.
const REOPEN_PAUSE: Duration = Duration::from_secs(2);

/// What the thread is asked.
pub(super) enum Command {
    Push {
        entry: Entry,
        waiting: Waiting,
    },
    Oldest {
        removed: Vec<u64>,
        after: Option<u64>,
        limit: Limit,
        reply: oneshot::Sender<Result<Vec<Stored>, NotStored>>,
    },
}

/// The thread's state.
pub(super) struct Writer {
    folder: Folder,
    state: State,
    max_bytes: u64,
    clock: Clock,
    shared: Arc<Shared>,
    meters: Meters,
    set_aside: u64,
    /// How often the file or its folder was gone.
    remade: u64,
    look_at: Instant,
    /// A push found no room, and there is not much yet.
    full: bool,
    /// Whether what is spooled can also be removed again on a full disk; without it nothing is taken.
    reserved: bool,
    reserve_at: Instant,
}

enum State {
    Open(Open),
    /// No queue is open; what was known of the one before, if there was one.
    Down {
        before: Option<Before>,
        retry_at: Instant,
    },
}

/// A file whose queue met a fault and was let go.
struct Before {
    file: File,
    /// It must be replaced, not opened again.
    replace: bool,
    /// Numbers of the records in it, and how many there are.
    numbers: Range<u64>,
    records: u64,
}

impl Writer {
    pub(super) fn start(
        folder: Folder,
        settings: &Settings,
        shared: Arc<Shared>,
    ) -> Result<Writer, Error> {
        let mut writer = Writer {
            folder,
            state: State::Down {
                before: None,
                retry_at: Instant::now(),
            },
            max_bytes: settings.max_bytes,
            clock: settings.clock,
            shared,
            meters: Meters::new(),
            set_aside: 0,
            remade: 0,
            look_at: Instant::now(),
            full: false,
            reserved: false,
            reserve_at: Instant::now(),
        };
        match writer.with_reserve(|writer| writer.folder.open_queue(0)) {
            Ok((open, mended)) => writer.opened(open, mended),
            Err(Fault::Newer(format)) => return Err(Error::newer(&settings.folder, format)),
            Err(fault) => writer.down(None, &fault),
        }
        Ok(writer)
    }

    /// Until nobody can ask any more.
    pub(super) fn run(mut self, commands: &Receiver<Command>) {
        loop {
            match commands.recv_timeout(TICK) {
                Ok(first) => {
                    self.reopen();
                    self.serve(first, commands);
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.reopen();
                    self.meter();
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        if let State::Open(open) = self.state {
            open.queue.close();
        }
    }

    /// One commit and its answers.
    fn serve(&mut self, first: Command, commands: &Receiver<Command>) {
        let (mut added, mut waiting, mut reads) = (Vec::new(), Vec::new(), Vec::new());
        let (mut removed, mut bytes) = (Vec::new(), 0);
        let mut next = Some(first);
        while let Some(command) = next {
            match command {
                // Nobody waits any more: its sender was told otherwise.
                Command::Push { waiting: push, .. } if push.reply.is_closed() => drop(push),
                Command::Push {
                    entry,
                    waiting: push,
                } => {
                    if let Err(refused) = self.room(bytes + entry.bytes() as u64) {
                        self.answer([push], Err(refused));
                    } else {
                        bytes += entry.bytes() as u64;
                        added.push(entry);
                        waiting.push(push);
                    }
                }
                Command::Oldest {
                    removed: done,
                    after,
                    limit,
                    reply,
                } => {
                    removed.extend(done);
                    reads.push((after, limit, reply));
                }
            }
            let full = added.len() == BATCH_RECORDS || bytes >= BATCH_BYTES as u64;
            next = if full { None } else { commands.try_recv().ok() };
        }
        let mut committed = self.commit(&removed, added);
        if committed.is_err() && !removed.is_empty() && self.give_up_reserve() {
            let drained = self.commit(&removed, Vec::new());
            if waiting.is_empty() {
                committed = drained;
            }
        }
        // Whoever is answered may look.
        self.meter();
        if committed.is_ok() && !waiting.is_empty() {
            self.meters.written.increment(waiting.len() as u64);
            self.shared.arrived.notify_one();
        }
        self.answer(waiting, committed);
        for (after, limit, reply) in reads {
            let batch = committed.and_then(|()| self.read(after, limit));
            // Nobody waits any more: the records stay where they are.
            let _ = reply.send(batch);
        }
    }

    fn room(&mut self, more: u64) -> Result<(), NotStored> {
        let State::Open(open) = &self.state else {
            return Err(NotStored::Down);
        };
        if !self.reserved || open.queue.bytes() + more > self.max_bytes {
            if !self.full {
                self.full = true;
                tracing::warn!(bytes = open.queue.bytes(), "the spool is full");
                self.meter();
            }
            return Err(NotStored::Full);
        }
        Ok(())
    }

    fn answer(&self, waiting: impl IntoIterator<Item = Waiting>, result: Result<(), NotStored>) {
        for push in waiting {
            if let Err(refused) = result {
                self::refused(refused);
            }
            let Waiting { reply, place } = push;
            // First, for whoever is answered may look.
            drop(place);
            let _ = reply.send(result);
        }
    }

    fn commit(&mut self, removed: &[u64], added: Vec<Entry>) -> Result<(), NotStored> {
        let State::Open(open) = &mut self.state else {
            return Err(NotStored::Down);
        };
        if removed.is_empty() && added.is_empty() {
            return Ok(());
        }
        let at_ms = self.clock.now().as_millisecond();
        let began = Instant::now();
        lock(&self.shared.pace).since = Some(began);
        let committed = open.queue.commit(removed, added, at_ms);
        lock(&self.shared.pace).done(began.elapsed());
        // An fsync of a file that nobody will find again is no promise.
        let committed = committed.and_then(|gone| self.folder.holds(&open.file).map(|()| gone));
        match committed {
            Ok(gone) => {
                self.meters.drained.increment(gone);
                let records = open.queue.records();
                self.shared.stored.store(records, Ordering::Release);
                Ok(())
            }
            Err(fault) => Err(self.fail(&fault)),
        }
    }

    fn read(&mut self, after: Option<u64>, limit: Limit) -> Result<Vec<Stored>, NotStored> {
        let State::Open(open) = &self.state else {
            return Err(NotStored::Down);
        };
        match open.queue.read(after, limit.records, limit.bytes) {
            Ok(batch) => Ok(batch),
            Err(fault) => Err(self.fail(&fault)),
        }
    }

    /// Tries once more with the room that the reserve gives, where there is one.
    fn with_reserve<T>(
        &mut self,
        mut work: impl FnMut(&mut Writer) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        match work(self) {
            Err(Fault::Io { sync: false, .. }) if self.give_up_reserve() => work(self),
            other => other,
        }
    }

    fn give_up_reserve(&mut self) -> bool {
        self.reserved = false;
        self.reserve_at = Instant::now() + REOPEN_PAUSE;
        self.folder.give_up_reserve()
    }

    fn take_reserve(&mut self) {
        self.reserve_at = Instant::now() + REOPEN_PAUSE;
        self.reserved = self.folder.take_reserve().is_ok();
    }

    /// Lets go of the open queue after a fault.
    fn fail(&mut self, fault: &Fault) -> NotStored {
        let down = State::Down {
            before: None,
            retry_at: Instant::now(),
        };
        let before = match std::mem::replace(&mut self.state, down) {
            State::Open(Open { queue, file }) => {
                let oldest = queue.oldest().map_or(queue.next(), |(number, _)| number);
                let before = Before {
                    file,
                    replace: match fault {
                        Fault::Io { sync, .. } => *sync,
                        Fault::Gone | Fault::Damaged(_) | Fault::Newer(_) => true,
                    },
                    numbers: oldest..queue.next(),
                    records: queue.records(),
                };
                // Before its file is opened again: two queues on one would not know of each other.
                queue.close();
                Some(before)
            }
            State::Down { before, .. } => before,
        };
        self.down(before, fault);
        // The first try comes at once: what failed once often works in a new file.
        self.try_open();
        NotStored::Down
    }

    fn down(&mut self, before: Option<Before>, fault: &Fault) {
        let reason = match fault {
            Fault::Io { error, .. } => error.clone(),
            Fault::Gone => fault.to_string(),
            Fault::Damaged(reason) => format!("its file is damaged: {reason}"),
            Fault::Newer(format) => format!("its file has format {format} of a newer release"),
        };
        let mut health = lock(&self.shared.health);
        if health.down.as_ref() != Some(&reason) {
            tracing::error!(reason, "the spool takes no records; trying on");
        }
        health.down = Some(reason);
        drop(health);
        self.state = State::Down {
            before,
            retry_at: Instant::now() + REOPEN_PAUSE,
        };
    }

    /// Looks after the file, and tries again what it is time for.
    fn reopen(&mut self) {
        if self.look_at <= Instant::now() {
            self.look_at = Instant::now() + TICK;
            if let State::Open(open) = &self.state
                && let Err(fault) = self.folder.holds(&open.file)
            {
                self.fail(&fault);
            }
        }
        if !self.reserved && self.reserve_at <= Instant::now() {
            self.take_reserve();
        }
        if matches!(&self.state, State::Down { retry_at, .. } if *retry_at <= Instant::now()) {
            self.try_open();
        }
    }

    fn try_open(&mut self) {
        let State::Down { before, .. } = &mut self.state else {
            return;
        };
        let before = before.take();
        let mut remade = false;
        let opened = self.with_reserve(|writer| {
            let folder = &mut writer.folder;
            let gone = |before: &Before| folder.holds(&before.file).is_err();
            remade |= before.as_ref().is_some_and(gone);
            folder.restore()?;
            let Some(before) = &before else {
                return folder.open_queue(0);
            };
            let (numbers, next) = (&before.numbers, before.numbers.end);
            if before.replace || remade {
                folder.replace(&before.file, numbers, Some(before.records), next)
            } else {
                folder.open_queue(next)
            }
        });
        if remade && opened.is_ok() {
            self.remade += 1;
            self.meters.remade.increment(1);
            // It went with the folder.
            (self.reserved, self.reserve_at) = (false, Instant::now());
            tracing::error!(
                "the spool's file was removed; another was made, with all that it held"
            );
        }
        match opened {
            Ok((open, mended)) => self.opened(open, mended),
            Err(fault) => self.down(before, &fault),
        }
    }

    fn opened(&mut self, open: Open, mended: Mended) {
        self.set_aside += mended.set_aside;
        self.meters.set_aside.increment(mended.set_aside);
        let records = open.queue.records();
        if records + mended.salvaged > 0 {
            tracing::info!(
                records,
                salvaged = mended.salvaged,
                "the spool holds records"
            );
        }
        self.shared.stored.store(records, Ordering::Release);
        let mut health = lock(&self.shared.health);
        if health.down.take().is_some() {
            tracing::info!("the spool takes records again");
        }
        let notes = [
            (
                self.set_aside,
                "damaged or foreign files were set aside in its folder",
            ),
            (
                self.remade,
                "times its file was removed and made anew; find out by whom",
            ),
        ];
        let told = notes.into_iter().filter(|(count, _)| *count > 0);
        let told: Vec<_> = told
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        health.note = (!told.is_empty()).then(|| told.join("; "));
        drop(health);
        self.state = State::Open(open);
        if !self.reserved && self.reserve_at <= Instant::now() {
            self.take_reserve();
        }
        self.meter();
    }

    fn meter(&mut self) {
        let State::Open(open) = &self.state else {
            return;
        };
        self.full &= !self.reserved || open.queue.bytes() > self.max_bytes / 10 * 9;
        let max_bytes = self.max_bytes;
        let down = match (self.reserved, self.full) {
            (false, _) => Some("its disk is full".to_owned()),
            (true, true) => Some(format!("it holds all of the {max_bytes} bytes that it may")),
            (true, false) => None,
        };
        lock(&self.shared.health).down = down;
        self.meters.records.set(open.queue.records() as f64);
        self.meters.bytes.set(open.queue.bytes() as f64);
        let now = self.clock.now().as_millisecond();
        let age = open.queue.oldest().map_or(0, |(_, at_ms)| now - at_ms);
        self.meters.oldest.set(age.max(0) as f64 / 1_000.0);
    }
}

struct Meters {
    records: Gauge,
    bytes: Gauge,
    oldest: Gauge,
    written: Counter,
    drained: Counter,
    set_aside: Counter,
    remade: Counter,
}

impl Meters {
    fn new() -> Self {
        Meters {
            records: metrics::gauge!(telemetry::SPOOL_RECORDS),
            bytes: metrics::gauge!(telemetry::SPOOL_BYTES),
            oldest: metrics::gauge!(telemetry::SPOOL_OLDEST_SECONDS),
            written: metrics::counter!(telemetry::SPOOL_WRITTEN),
            drained: metrics::counter!(telemetry::SPOOL_DRAINED),
            set_aside: metrics::counter!(telemetry::SPOOL_SET_ASIDE),
            remade: metrics::counter!(telemetry::SPOOL_REMADE),
        }
    }
}

/// Counts a push that was not stored.
pub(super) fn refused(refused: NotStored) {
    metrics::counter!(telemetry::SPOOL_REFUSED, "reason" => refused.reason()).increment(1);
}
