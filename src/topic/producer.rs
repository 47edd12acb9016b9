//! The idempotent producer: one slot and no thread for each record on its way.
//!
//! Owns the records between [`Publisher::publish`] and their acknowledgement. Refuses to judge what librdkafka
//! reports (`reports`), to serve the producer's events and to replace one that failed for good (`rebuild`), and to
//! retry a record: librdkafka retries within [`MESSAGE_TIMEOUT`](super::MESSAGE_TIMEOUT), after that the caller
//! decides.
//!
//! Guarantees: every [`Acknowledgement`] ends, also when the producer is rebuilt, closed or dropped. A
//! slot is used again only after librdkafka has reported its record and the acknowledgement was read or
//! dropped. What was not acknowledged to somebody who waits when [`Publisher::close`] ends is counted in its error.
//!
//! The lost answer: a record can be in the topic although its acknowledgement is an error; see
//! [`PublishError::is_ambiguous`]. And after an outage a record can be there twice, idempotence or not:
//! seen with Apache Kafka 4.1 killed, restarted and then frozen (245 records at two offsets each, none
//! acknowledged and missing). The likely cause, not proven: when records time out with a batch on its
//! way, librdkafka takes a new epoch and sends again what is still in time, which the broker cannot
//! recognise. Readers tell repeats by `ce_id`.

mod rebuild;
mod reports;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use metrics::Counter;
use rdkafka::config::ClientConfig;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tokio::task::JoinHandle;

use self::rebuild::{end, serve};
use self::reports::Reports;
use super::notify::Wakeups;
use super::record::{Kind, Message};
use super::{Error, PublishError, Settings, admin};
#[cfg(feature = "sabotage")]
use crate::config::sabotage::{self, Sabotage};
use crate::telemetry;

/// Publishes records. Clones share one producer.
#[derive(Clone)]
pub struct Publisher(Arc<Owner>);

impl Publisher {
    /// Starts a producer, which connects in the background.
    ///
    /// # Errors
    /// A wrong setting, or no file descriptor for its wake-ups.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O enabled.
    pub fn start(settings: &Settings) -> Result<Publisher, Error> {
        let core = Arc::new(Core {
            config: settings.producer()?,
            brokers: settings.brokers.clone(),
            counters: Arc::new(Counters::new()),
            current: RwLock::new(None),
        });
        let wakeups = core.produce()?;
        *write(&core.current) = Some(Arc::clone(wakeups.producer()));
        let task = tokio::spawn(serve(Arc::clone(&core), wakeups));
        Ok(Publisher(Arc::new(Owner {
            core,
            task: Mutex::new(Some(task)),
        })))
    }

    /// Hands `message` to the producer, without waiting: what comes back ends when Kafka has
    /// acknowledged it, or with the reason why not. That takes [`MESSAGE_TIMEOUT`](super::MESSAGE_TIMEOUT)
    /// and a second at most: librdkafka looks for records that are too old once a second.
    ///
    /// Dropping the acknowledgement does not take the record back.
    pub fn publish(&self, message: &Message<'_>) -> Acknowledgement {
        let current = read(&self.0.core.current);
        let counters = &self.0.core.counters;
        let Some(producer) = &*current else {
            return counters.refuse(PublishError::Closed);
        };
        let deliveries = &producer.client().context().deliveries;
        let slot = deliveries.reserve(Kind::of(message.topic));
        let mut record = BaseRecord::with_opaque_to(message.topic, slot).payload(message.value);
        record.key = message.key;
        if !message.headers.is_empty() {
            let headers = OwnedHeaders::new_with_capacity(message.headers.len());
            record.headers = Some(
                message
                    .headers
                    .iter()
                    .fold(headers, |headers, (key, value)| {
                        headers.insert(Header {
                            key,
                            value: Some(*value),
                        })
                    }),
            );
        }
        match producer.send(record) {
            Ok(()) => Acknowledgement(State::Waiting {
                deliveries: Arc::clone(deliveries),
                slot,
            }),
            Err((error, _)) => {
                deliveries.release(slot);
                let code = error
                    .rdkafka_error_code()
                    .unwrap_or(RDKafkaErrorCode::InvalidArgument);
                counters.refuse(PublishError::of(code))
            }
        }
    }

    /// Whether brokers answer and `topics` exist, each partition with a leader.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::UnknownTopic`], [`Error::NoLeader`], [`Error::NotAllowed`];
    /// within `timeout` for all of them together.
    pub async fn check(&self, topics: &[&str], timeout: Duration) -> Result<(), Error> {
        let producer = self.0.core.producer().ok_or_else(closed)?;
        let brokers = self.0.core.brokers.clone();
        let topics: Vec<String> = topics.iter().map(|&topic| topic.to_owned()).collect();
        admin::blocking(move || {
            let client = producer.client();
            let deadline = admin::Deadline::after(timeout);
            topics
                .iter()
                .try_for_each(|topic| admin::check_topic(client, &brokers, topic, deadline))
        })
        .await
    }

    /// Refuses new records, waits until all are acknowledged, and ends the producer. Of several clones
    /// the first call closes for all.
    ///
    /// # Errors
    /// [`Error::Unflushed`] with the number of records that failed meanwhile or were still on their way
    /// at the deadline, of those that somebody waits for. Their acknowledgements end in an error too.
    pub async fn close(self, deadline: Duration) -> Result<(), Error> {
        let core = &self.0.core;
        let taken = write(&core.current).take();
        let Some(producer) = taken else {
            return Ok(());
        };
        #[cfg(feature = "sabotage")]
        if sabotage::is(Sabotage::Flush) {
            end(&producer);
            return Ok(());
        }
        let failed_before = core.counters.failed();
        let flushing = Arc::clone(&producer);
        let unacknowledged = admin::blocking(move || {
            // The count below says whether it succeeded.
            let _ = flushing.flush(deadline);
            flushing.client().context().deliveries.awaited()
        })
        .await;
        let failed = core.counters.failed() - failed_before;
        let task = lock(&self.0.task).take();
        if let Some(task) = task {
            task.abort();
            // Cancelled, or ended by itself; either way it holds the producer no longer.
            let _ = task.await;
        }
        admin::blocking(move || end(&producer)).await;
        if unacknowledged == 0 && failed == 0 {
            Ok(())
        } else {
            Err(Error::Unflushed {
                unacknowledged,
                failed,
            })
        }
    }

    /// Records handed over and not yet acknowledged.
    pub fn in_flight(&self) -> usize {
        let producer = self.0.core.producer();
        producer.map_or(0, |producer| {
            producer.client().context().deliveries.in_flight()
        })
    }
}

#[cfg(test)]
impl Publisher {
    /// Lets the producer fail for good, as after a gap in its sequence numbers.
    pub(crate) fn raise_fatal_error(&self) {
        let producer = self.0.core.producer().expect("it is open");
        super::notify::raise_fatal_error(producer.client());
    }

    /// Records that Kafka's client took and then reported as failed.
    pub(crate) fn failed(&self) -> u64 {
        self.0.core.counters.failed()
    }
}

fn closed() -> Error {
    Error::Client {
        reason: PublishError::Closed.to_string(),
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher")
            .field("brokers", &self.0.core.brokers)
            .finish_non_exhaustive()
    }
}

/// Ends with `Ok` when all in-sync replicas have the record. Cancel-safe: dropped early, the record
/// still goes its way and nobody hears of it.
#[must_use = "an acknowledgement that nobody awaits is a record that may be lost unnoticed"]
pub struct Acknowledgement(State);

enum State {
    Waiting {
        deliveries: Arc<Deliveries>,
        slot: usize,
    },
    Refused(PublishError),
    Ended,
}

impl Acknowledgement {
    /// Whether the record was not even taken: the queue is full, or the publisher closed.
    pub fn is_turned_away(&self) -> bool {
        matches!(
            self.0,
            State::Refused(PublishError::QueueFull | PublishError::Closed)
        )
    }
}

impl Future for Acknowledgement {
    type Output = Result<(), PublishError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let result = match &self.0 {
            #[cfg(feature = "sabotage")]
            State::Waiting { deliveries, slot }
                if sabotage::is(Sabotage::EarlyAnswer) || sabotage::is(Sabotage::Flush) =>
            {
                deliveries.abandon(*slot);
                Ok(())
            }
            State::Waiting { deliveries, slot } => {
                std::task::ready!(deliveries.poll(*slot, context.waker()))
            }
            State::Refused(error) => Err(*error),
            State::Ended => panic!("an acknowledgement was polled after it ended"),
        };
        self.0 = State::Ended;
        Poll::Ready(result)
    }
}

impl Drop for Acknowledgement {
    fn drop(&mut self) {
        if let State::Waiting { deliveries, slot } = &self.0 {
            deliveries.abandon(*slot);
        }
    }
}

impl fmt::Debug for Acknowledgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            State::Waiting { .. } => "Acknowledgement(waiting)",
            State::Refused(_) => "Acknowledgement(refused)",
            State::Ended => "Acknowledgement(ended)",
        })
    }
}

/// Ends the task with the last clone. Without [`Publisher::close`] before it, what is queued is purged.
struct Owner {
    core: Arc<Core>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        write(&self.core.current).take();
        if let Some(task) = lock(&self.task).take() {
            task.abort();
        }
    }
}

/// What the publishers and the task share.
struct Core {
    config: ClientConfig,
    brokers: String,
    counters: Arc<Counters>,
    /// `None` once closed. Publishing holds the read lock, so that after a write nobody still sends
    /// through the producer that was replaced.
    current: RwLock<Option<Arc<BaseProducer<Reports>>>>,
}

impl Core {
    fn producer(&self) -> Option<Arc<BaseProducer<Reports>>> {
        read(&self.current).clone()
    }

    fn produce(&self) -> Result<Wakeups<Reports>, Error> {
        let deliveries = Arc::new(Deliveries::new(Arc::clone(&self.counters)));
        let reports = Reports::to(deliveries);
        let producer: BaseProducer<Reports> =
            self.config
                .create_with_context(reports)
                .map_err(|error| Error::Client {
                    reason: error.to_string(),
                })?;
        Wakeups::enable(Arc::new(producer)).map_err(|source| Error::System {
            what: "the producer's wake-ups",
            source,
        })
    }
}

/// Counters of all producers of one publisher.
struct Counters {
    published: [Counter; Kind::ALL.len()],
    unacknowledged: Counter,
    unproven: Counter,
    refused: Counter,
    queue_full: Counter,
    closed: Counter,
    rebuilt: Counter,
    failed: AtomicU64,
}

impl Counters {
    fn new() -> Self {
        let failure = |reason: &'static str| metrics::counter!(telemetry::PUBLISH_FAILURES, "reason" => reason);
        Counters {
            published: Kind::ALL.map(
                |kind| metrics::counter!(telemetry::RECORDS_PUBLISHED, "topic" => kind.label()),
            ),
            unacknowledged: failure("unacknowledged"),
            unproven: failure("unproven"),
            refused: failure("refused"),
            queue_full: failure("queue-full"),
            closed: failure("closed"),
            rebuilt: metrics::counter!(telemetry::PRODUCER_REBUILDS),
            failed: AtomicU64::new(0),
        }
    }

    fn refuse(&self, error: PublishError) -> Acknowledgement {
        self.failure(error);
        Acknowledgement(State::Refused(error))
    }

    fn failure(&self, error: PublishError) {
        match error {
            PublishError::QueueFull => &self.queue_full,
            PublishError::Closed => &self.closed,
            PublishError::Refused(_) => &self.refused,
            PublishError::Unacknowledged(_) => &self.unacknowledged,
            PublishError::Unproven => &self.unproven,
        }
        .increment(1);
    }

    /// Records that librdkafka took and reported as failed to somebody who waited.
    fn failed(&self) -> u64 {
        self.failed.load(Ordering::Acquire)
    }
}

/// The slots of one producer.
struct Deliveries {
    slots: Mutex<Slots>,
    counters: Arc<Counters>,
    /// An error was reported, which may be a fatal one.
    troubled: AtomicBool,
}

/// Grows to the most records that were ever on their way at once, which the producer's queue bounds.
#[derive(Default)]
struct Slots {
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Slots whose record librdkafka has not reported yet.
    in_flight: usize,
    /// The producer is gone: nothing will be reported any more.
    ended: bool,
}

enum Slot {
    Free,
    Waiting(Kind, Option<Waker>),
    /// Nobody listens any more.
    Abandoned(Kind),
    Done(Result<(), PublishError>),
}

impl Deliveries {
    fn new(counters: Arc<Counters>) -> Self {
        Deliveries {
            slots: Mutex::default(),
            counters,
            troubled: AtomicBool::new(false),
        }
    }

    fn reserve(&self, kind: Kind) -> usize {
        let mut slots = lock(&self.slots);
        slots.in_flight += 1;
        let waiting = Slot::Waiting(kind, None);
        if let Some(index) = slots.free.pop() {
            slots.slots[index] = waiting;
            return index;
        }
        slots.slots.push(waiting);
        slots.slots.len() - 1
    }

    /// Takes a reservation back whose record librdkafka did not take.
    fn release(&self, index: usize) {
        let mut slots = lock(&self.slots);
        slots.in_flight -= 1;
        slots.release(index);
    }

    fn in_flight(&self) -> usize {
        lock(&self.slots).in_flight
    }

    /// Records on their way whose acknowledgement somebody still has.
    fn awaited(&self) -> usize {
        let slots = lock(&self.slots);
        let waiting = |slot: &&Slot| matches!(slot, Slot::Waiting(..));
        slots.slots.iter().filter(waiting).count()
    }

    fn poll(&self, index: usize, waker: &Waker) -> Poll<Result<(), PublishError>> {
        let mut slots = lock(&self.slots);
        let ended = slots.ended;
        let result = match &mut slots.slots[index] {
            Slot::Done(result) => *result,
            Slot::Waiting(..) if ended => Err(PublishError::of(RDKafkaErrorCode::PurgeInflight)),
            Slot::Waiting(_, waiting) => {
                match waiting {
                    Some(same) => same.clone_from(waker),
                    None => *waiting = Some(waker.clone()),
                }
                return Poll::Pending;
            }
            Slot::Free | Slot::Abandoned(_) => {
                unreachable!("only its one acknowledgement frees or abandons a slot")
            }
        };
        slots.release(index);
        Poll::Ready(result)
    }

    fn abandon(&self, index: usize) {
        let mut slots = lock(&self.slots);
        match slots.slots[index] {
            Slot::Waiting(kind, _) => slots.slots[index] = Slot::Abandoned(kind),
            Slot::Done(_) => slots.release(index),
            Slot::Free | Slot::Abandoned(_) => {}
        }
    }

    fn done(&self, index: usize, result: Result<(), PublishError>) {
        let mut slots = lock(&self.slots);
        if slots.ended {
            return;
        }
        slots.in_flight -= 1;
        let (kind, waker) = match std::mem::replace(&mut slots.slots[index], Slot::Done(result)) {
            Slot::Waiting(kind, waker) => {
                let failed = u64::from(result.is_err());
                self.counters.failed.fetch_add(failed, Ordering::Release);
                (kind, waker)
            }
            Slot::Abandoned(kind) => {
                slots.release(index);
                (kind, None)
            }
            Slot::Free | Slot::Done(_) => unreachable!("librdkafka reports a record once"),
        };
        drop(slots);
        match result {
            Ok(()) => self.counters.published[kind as usize].increment(1),
            Err(error) => self.counters.failure(error),
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ends every acknowledgement that still waits.
    fn end(&self) {
        let mut slots = lock(&self.slots);
        slots.ended = true;
        let waiting: Vec<Waker> = slots
            .slots
            .iter_mut()
            .filter_map(|slot| match slot {
                Slot::Waiting(_, waker) => waker.take(),
                Slot::Free | Slot::Abandoned(_) | Slot::Done(_) => None,
            })
            .collect();
        drop(slots);
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl Slots {
    fn release(&mut self, index: usize) {
        self.slots[index] = Slot::Free;
        self.free.push(index);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
