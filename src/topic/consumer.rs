//! The consumer: records and rebalances of one topic as events, read on a thread of its own.
//!
//! Owns membership in the group and which partitions are read ([`rebalance`]), the reading itself and
//! its bound in bytes ([`reading`]). Refuses to choose a position: whoever is asked by
//! [`Event::Assigned`] does, and where nobody answers nothing is read. Refuses to commit by itself;
//! [`Consumer::commit_hint`] is for those who watch the group from outside.
//!
//! Guarantees: one assignment with explicit offsets for each rebalance, never a seek after it; a
//! partition's records are handed out in order and only between its `Assigned` and its `Revoked`;
//! records handed out or waiting hold at most the bound in bytes, and one more record a partition; the
//! thread keeps polling meanwhile, so that a slow reader does not fall out of its group.
//!
//! Fails with [`Event::Failed`], after which the only thing to do is to stop; outages are
//! [`Event::Unreachable`], after which consuming goes on by itself.

mod reading;
mod rebalance;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use metrics::{Counter, Gauge};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::{mpsc, oneshot};

use super::admin::{self, Deadline};
use super::record::RECORD_OVERHEAD_BYTES;
use super::{Error, Record, Settings};
use crate::telemetry;
use reading::Reader;
use rebalance::Callbacks;
pub use rebalance::{AssignReply, RevokeReply};

/// Longest wait for the answer to an assignment or a revocation. A flush fits in it.
pub const REPLY_WAIT: Duration = Duration::from_secs(30);
/// Longest time without a poll before Kafka takes the partitions away (`max.poll.interval.ms`).
pub const MAX_POLL_INTERVAL: Duration = Duration::from_secs(300);
/// A rebalance revokes, then assigns; both may wait in one poll.
const _: () = assert!(2 * REPLY_WAIT.as_secs() < MAX_POLL_INTERVAL.as_secs());
/// Longest wait for the watermarks of all partitions.
const WATERMARKS_TIMEOUT: Duration = Duration::from_secs(5);
/// Events other than records that nobody has fetched yet. Rebalances wait for their answer, so more
/// than a few mean that nobody listens.
const WAITING_EVENTS: usize = 64;

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// These partitions are ours now; nothing of them is read before the reply says where to start.
    Assigned {
        /// Their numbers.
        partitions: Vec<i32>,
        /// Tells where to start, within [`REPLY_WAIT`].
        reply: AssignReply,
    },
    /// These partitions go to another member once the reply is given, or [`REPLY_WAIT`] is over. None of
    /// their records comes any more.
    Revoked {
        /// Their numbers.
        partitions: Vec<i32>,
        /// They went already (the session expired): another member may be reading them.
        lost: bool,
        /// Lets them go.
        reply: RevokeReply,
    },
    /// The next record of a partition.
    Record(Record),
    /// No broker answers, for this reason. Consuming goes on by itself when one does.
    Unreachable(String),
    /// Consuming cannot go on.
    Failed(Error),
}

/// A member of a consumer group, reading one topic.
pub struct Consumer {
    brokers: String,
    topic: String,
    /// Before the records: a revocation must not wait behind megabytes of them.
    events: mpsc::Receiver<Event>,
    /// Unbounded as a channel; what is in it is bounded by the bytes it holds.
    records: mpsc::UnboundedReceiver<Read>,
    shared: Arc<Shared>,
    /// The thread owns it, and lets it go only when nobody else uses it.
    client: Weak<BaseConsumer<Callbacks>>,
    ended: oneshot::Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Consumer {
    /// Joins `group` and reads `topic`. Records handed out and not yet dropped, with those that wait to
    /// be, hold at most `max_in_flight_bytes`; a record larger than that comes alone.
    ///
    /// # Errors
    /// A wrong setting, or no thread. Brokers that do not answer are an [`Event::Unreachable`] later.
    pub fn subscribe(
        settings: &Settings,
        group: &str,
        topic: &str,
        max_in_flight_bytes: u32,
    ) -> Result<Consumer, Error> {
        let config = settings.consumer(Some((group, max_in_flight_bytes)))?;
        let shared = Arc::new(Shared::new(group, max_in_flight_bytes));
        let (event_sender, events) = mpsc::channel(WAITING_EVENTS);
        let (record_sender, records) = mpsc::unbounded_channel();
        let (ended_sender, ended) = oneshot::channel();
        let callbacks = Callbacks::new(group, topic, event_sender.clone(), Arc::clone(&shared));
        let failed = |error: KafkaError| Error::Client {
            reason: error.to_string(),
        };
        let client: BaseConsumer<Callbacks> =
            config.create_with_context(callbacks).map_err(failed)?;
        client.subscribe(&[topic]).map_err(failed)?;
        let client = Arc::new(client);
        let weak = Arc::downgrade(&client);
        let reader = Reader::new(
            topic,
            client,
            event_sender,
            record_sender,
            Arc::clone(&shared),
        );
        let thread = std::thread::Builder::new()
            .name("kafka-consumer".to_owned())
            .spawn(move || {
                reader.run();
                // Nobody listens when the consumer was dropped instead of closed.
                let _ = ended_sender.send(());
            })
            .map_err(|source| Error::System {
                what: "the consumer's thread",
                source,
            })?;
        Ok(Consumer {
            brokers: settings.brokers.clone(),
            topic: topic.to_owned(),
            events,
            records,
            shared,
            client: weak,
            ended,
            thread: Some(thread),
        })
    }

    /// The next event. Cancel-safe: dropped early, nothing is lost.
    pub async fn next(&mut self) -> Event {
        loop {
            tokio::select! {
                biased;
                Some(event) = self.events.recv() => return event,
                Some(read) = self.records.recv() => {
                    if self.shared.is_current(read.record.partition, read.generation) {
                        self.shared.consumed.increment(1);
                        return Event::Record(read.record);
                    }
                }
                else => {
                    let source = KafkaError::Canceled;
                    return Event::Failed(Error::Fatal { doing: "polling", source });
                }
            }
        }
    }

    /// Commits next offsets for the group, for those who watch it from outside: never waited for, never
    /// read by us, a failure is only logged.
    pub fn commit_hint(&self, positions: &[(i32, i64)]) {
        let Some(client) = self.client.upgrade() else {
            return;
        };
        let mut list = TopicPartitionList::with_capacity(positions.len());
        for &(partition, offset) in positions {
            if list
                .add_partition_offset(&self.topic, partition, Offset::Offset(offset))
                .is_err()
            {
                tracing::debug!(partition, offset, "not an offset, not committed");
            }
        }
        if let Err(error) = client.commit(&list, CommitMode::Async) {
            tracing::debug!(%error, "group offsets were not committed");
        }
    }

    /// The ends of the log and our position, for each partition that is ours.
    ///
    /// # Errors
    /// [`Error::Unreachable`] if not all can be had within 5 s.
    pub fn watermarks(
        &self,
    ) -> impl Future<Output = Result<Vec<Watermarks>, Error>> + Send + use<> {
        let client = self.client.upgrade();
        let (brokers, topic) = (self.brokers.clone(), self.topic.clone());
        let positions = self.shared.positions();
        admin::blocking(move || {
            let Some(client) = client else {
                return Ok(Vec::new());
            };
            let deadline = Deadline::after(WATERMARKS_TIMEOUT);
            positions
                .into_iter()
                .map(|(partition, position)| {
                    let (low, high) = client
                        .fetch_watermarks(&topic, partition, deadline.left())
                        .map_err(|error| {
                            admin::unreachable_error(&brokers, WATERMARKS_TIMEOUT, Some(error))
                        })?;
                    Ok(Watermarks {
                        partition,
                        low,
                        high,
                        position,
                    })
                })
                .collect()
        })
    }

    /// Records not yet read, for each partition that is ours.
    ///
    /// # Errors
    /// As [`watermarks`](Self::watermarks).
    pub async fn lag(&self) -> Result<Vec<(i32, i64)>, Error> {
        let watermarks = self.watermarks().await?;
        Ok(watermarks
            .iter()
            .map(|marks| (marks.partition, marks.lag()))
            .collect())
    }

    /// Leaves the group, so that others get the partitions at once. What was read and not committed
    /// elsewhere is read again by whoever comes next.
    ///
    /// # Errors
    /// [`Error::Leave`] after `deadline`; the thread then ends by itself, or with the process.
    pub async fn close(mut self, deadline: Duration) -> Result<(), Error> {
        self.shared.stop.store(true, Ordering::Release);
        // Ends every wait for a reply: nobody will give one.
        self.events.close();
        while self.events.try_recv().is_ok() {}
        if tokio::time::timeout(deadline, &mut self.ended)
            .await
            .is_err()
        {
            return Err(Error::Leave {
                topic: self.topic.clone(),
                waited: deadline,
            });
        }
        if let Some(thread) = self.thread.take()
            && let Err(panic) = admin::blocking(move || thread.join()).await
        {
            std::panic::resume_unwind(panic);
        }
        Ok(())
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("topic", &self.topic)
            .finish_non_exhaustive()
    }
}

/// The ends of a partition's log, and how far it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermarks {
    /// The partition.
    pub partition: i32,
    /// First offset in the log.
    pub low: i64,
    /// One past the last offset in the log.
    pub high: i64,
    /// The next offset to read; `None` while nothing was read from the earliest on.
    pub position: Option<i64>,
}

impl Watermarks {
    /// Records from the position to the end.
    pub fn lag(&self) -> i64 {
        (self.high - self.position.unwrap_or(self.low)).max(0)
    }
}

/// A record on its way to [`Consumer::next`].
struct Read {
    /// Of the assignment it was read under.
    generation: u64,
    record: Record,
}

/// What the consumer, its thread and the callbacks share.
struct Shared {
    stop: AtomicBool,
    assignment: Mutex<Assignment>,
    budget: Arc<Budget>,
    consumed: Counter,
}

#[derive(Default)]
struct Assignment {
    partitions: BTreeMap<i32, Partition>,
    /// Counts assignments, so that a partition that went and came back is another one.
    generation: u64,
}

struct Partition {
    generation: u64,
    /// The next offset to read; `None` before the first record from the earliest on.
    next: Option<i64>,
    /// We asked librdkafka to pause it.
    paused: bool,
}

impl Shared {
    fn new(group: &str, max_in_flight_bytes: u32) -> Self {
        let group = group.to_owned();
        Shared {
            stop: AtomicBool::new(false),
            assignment: Mutex::default(),
            consumed: metrics::counter!(telemetry::RECORDS_CONSUMED, "group" => group.clone()),
            budget: Arc::new(Budget {
                whole: max_in_flight_bytes.max(1),
                free: Mutex::new(max_in_flight_bytes.max(1)),
                freed: Condvar::new(),
                gauge: metrics::gauge!(telemetry::IN_FLIGHT_BYTES, "group" => group),
            }),
        }
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn assignment(&self) -> MutexGuard<'_, Assignment> {
        self.assignment
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn is_current(&self, partition: i32, generation: u64) -> bool {
        let assignment = self.assignment();
        assignment
            .partitions
            .get(&partition)
            .is_some_and(|p| p.generation == generation)
    }

    fn positions(&self) -> Vec<(i32, Option<i64>)> {
        self.assignment()
            .partitions
            .iter()
            .map(|(number, p)| (*number, p.next))
            .collect()
    }
}

/// The bound in bytes.
struct Budget {
    whole: u32,
    free: Mutex<u32>,
    freed: Condvar,
    gauge: Gauge,
}

impl Budget {
    /// What a record of `bytes` takes: never more than there is, so that the largest comes too.
    fn share(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.saturating_add(RECORD_OVERHEAD_BYTES))
            .unwrap_or(u32::MAX)
            .min(self.whole)
    }

    /// Takes `share`, waiting at most `patience` for it.
    fn hold(self: &Arc<Self>, share: u32, patience: Duration) -> Option<Hold> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut free, _) = self
            .freed
            .wait_timeout_while(free, patience, |free| *free < share)
            .unwrap_or_else(PoisonError::into_inner);
        *free = free.checked_sub(share)?;
        drop(free);
        self.gauge.increment(f64::from(share));
        Some(Hold {
            budget: Arc::clone(self),
            share,
        })
    }

    fn free(&self) -> u32 {
        *self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether so much is free that going on reading is worth a new fetch.
    fn has_room(&self) -> bool {
        self.free() >= self.whole / 4
    }
}

/// A share of the bound, given back when dropped.
pub(super) struct Hold {
    budget: Arc<Budget>,
    share: u32,
}

impl Drop for Hold {
    fn drop(&mut self) {
        *self
            .budget
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner) += self.share;
        self.budget.freed.notify_one();
        self.budget.gauge.decrement(f64::from(self.share));
    }
}
