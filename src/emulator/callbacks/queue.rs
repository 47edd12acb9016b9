//! When a callback is sent: in turn, later, or behind others.
//!
//! Owns the order of deliveries. A fault is decided when its announcement leaves the queue, one after the
//! other, so that the decisions depend on the order of announcements and not on who answers first.
//!
//! Guarantees: at most [`PARALLEL_DELIVERIES`] under way, and about [`MAX_HELD`] held back; what is held
//! behind others goes when they have ended, or when nothing has moved for [`QUIET`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};

use super::Settings;
use super::log::Delivery;
use super::overrides::Overrides;
use super::send::{Client, NoClient, uuid};
use crate::emulator::Shared;
use crate::emulator::faults::{CallbackFault, Told};
use crate::emulator::seeds;
use crate::emulator::state::Announcement;
use crate::event::CallbackEvent;

/// Deliveries under way at once.
pub(super) const PARALLEL_DELIVERIES: usize = 64;
/// Deliveries that wait for their time or for others.
const MAX_HELD: usize = 1_024;
/// After so long without a callback, nothing more is waited for.
const QUIET: Duration = Duration::from_secs(1);
/// Longest time that a shuffled or repeated delivery is held back.
const MAX_DELAY_MS: u64 = 200;

/// Sends callbacks.
#[derive(Debug)]
pub(crate) struct Sender {
    settings: Settings,
    client: Client,
    shared: Arc<Shared>,
}

/// One announcement to one URL.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) announcement: Arc<Announcement>,
    /// Of the URL among the announcement's.
    pub(super) place: usize,
    pub(super) fault: Option<CallbackFault>,
    /// What its token and its choices are drawn from.
    pub(super) draw: u64,
    pub(super) overrides: Overrides,
}

/// What is under way, and what will be.
#[derive(Default)]
struct Queue {
    under_way: JoinSet<()>,
    ready: VecDeque<Job>,
    delayed: JoinSet<Job>,
    /// Each with the number of deliveries that end before it.
    behind: VecDeque<(u64, Job)>,
    ended: u64,
}

impl Sender {
    /// A sender of what is left in the outbox.
    pub(crate) fn new(settings: Settings, shared: Arc<Shared>) -> Result<Self, NoClient> {
        Ok(Sender {
            client: Client::new(settings.connect, shared.stop.clone())?,
            settings,
            shared,
        })
    }

    /// Sends everything in `waiting` until the stop.
    pub(crate) async fn send_all(self, mut waiting: mpsc::Receiver<Announcement>) {
        let stop = self.shared.stop.clone();
        let sender = Arc::new(self);
        let mut queue = Queue::default();
        loop {
            while queue.has_room()
                && let Some(job) = queue.ready.pop_front()
            {
                let sender = Arc::clone(&sender);
                queue
                    .under_way
                    .spawn(async move { sender.deliver(job).await });
            }
            let (room, held) = (queue.has_room(), !queue.behind.is_empty());
            let listens = room && queue.held() < MAX_HELD;
            tokio::select! {
                biased;
                () = stop.requested() => break,
                Some(done) = queue.under_way.join_next() => queue.end(done),
                Some(job) = queue.delayed.join_next() => queue.ready.extend(job),
                Some(announcement) = waiting.recv(), if listens => {
                    sender.take(announcement, &mut queue);
                }
                () = tokio::time::sleep(QUIET), if held => queue.release_all(),
            }
        }
        waiting.close();
        queue.delayed.shutdown().await;
        while let Some(done) = queue.under_way.join_next().await {
            queue.end(done);
        }
    }

    /// Decides on the deliveries of `announcement`.
    fn take(&self, announcement: Announcement, queue: &mut Queue) {
        let announcement = Arc::new(announcement);
        let conversation = seeds::mix_text(self.settings.seed, &announcement.conversation_id);
        for (place, callback) in announcement.callbacks.iter().enumerate() {
            let event = u64::from(announcement.sequence) << 8 | (place as u64 & 0xff);
            let job = Job {
                announcement: Arc::clone(&announcement),
                place,
                fault: self.fault(&announcement, self.shared.clock.now()),
                draw: seeds::mix(conversation, event),
                overrides: Overrides::of(&callback.url),
            };
            let shuffled = seeds::falls(seeds::mix(job.draw, 1), self.settings.disorder);
            match job.fault {
                Some(CallbackFault::Lost) => self.lose(&job),
                Some(CallbackFault::Delayed { milliseconds }) => {
                    queue.delay(job, Duration::from_millis(milliseconds.get()));
                }
                Some(CallbackFault::Reordered { behind }) => {
                    let after = queue.ended + queue.under_way.len() as u64 + behind.get();
                    queue.behind.push_back((after, job));
                }
                _ if shuffled => {
                    let pause = delay(seeds::mix(job.draw, 2));
                    queue.delay(job, pause);
                }
                _ => queue.ready.push_back(job),
            }
        }
    }

    fn fault(&self, announcement: &Announcement, now: Timestamp) -> Option<CallbackFault> {
        if self.shared.faults.is_quiet() {
            return None;
        }
        let event = CallbackEvent::parse(&announcement.body);
        self.shared.faults.callback(Told {
            event_type: announcement.event_type,
            close: event.is_ok_and(|event| event.is_close()),
            conversation: announcement.number,
            now,
        })
    }

    async fn deliver(&self, job: Job) {
        let keys = &self.settings.keys;
        let key = &keys[(job.draw % keys.len() as u64) as usize];
        let token = uuid(job.draw);
        let log = self.shared.outbox.log();
        log.record(self.client.deliver(&job, key, &token, false).await);
        let repeated = seeds::falls(seeds::mix(job.draw, 3), self.settings.duplicates);
        let (times, tokens) = match job.fault {
            Some(CallbackFault::Duplicated { times }) => (times.get(), false),
            Some(CallbackFault::Replayed { times }) => (times.get(), true),
            _ => (u64::from(repeated), false),
        };
        for time in 0..times {
            let pause = delay(seeds::mix(job.draw, 4 + 2 * time));
            let _ = self.shared.stop.race(tokio::time::sleep(pause)).await;
            let other = uuid(seeds::mix(job.draw, 1_000 + time));
            let token = if tokens { &other } else { &token };
            log.record(self.client.deliver(&job, key, token, true).await);
        }
        self.shared
            .outbox
            .log()
            .outstanding
            .send_modify(|count| *count -= 1);
    }

    fn lose(&self, job: &Job) {
        let log = self.shared.outbox.log();
        log.record(Delivery::of(job, uuid(job.draw), false));
        log.outstanding.send_modify(|count| *count -= 1);
    }
}

impl Queue {
    fn has_room(&self) -> bool {
        self.under_way.len() < PARALLEL_DELIVERIES
    }

    fn held(&self) -> usize {
        self.ready.len() + self.delayed.len() + self.behind.len()
    }

    fn delay(&mut self, job: Job, pause: Duration) {
        self.delayed.spawn(async move {
            tokio::time::sleep(pause).await;
            job
        });
    }

    /// A panic in a delivery is a bug of this folder; it ends the task that owns the deliveries.
    fn end(&mut self, done: Result<(), JoinError>) {
        if let Err(error) = done
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
        self.ended += 1;
        let (due, later) = std::mem::take(&mut self.behind)
            .into_iter()
            .partition(|(after, _)| *after <= self.ended);
        self.behind = later;
        let due: VecDeque<(u64, Job)> = due;
        self.ready.extend(due.into_iter().map(|(_, job)| job));
    }

    fn release_all(&mut self) {
        self.ready.extend(self.behind.drain(..).map(|(_, job)| job));
    }
}

fn delay(draw: u64) -> Duration {
    Duration::from_millis(1 + draw % MAX_DELAY_MS)
}
