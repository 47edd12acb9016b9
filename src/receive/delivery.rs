//! A callback's record, until Kafka or the spool has it.
//!
//! Owns the two ways and the time each gets, and what is reported to [`Ways`]. Refuses to retry on either:
//! the second way is the only second chance. It begins when the first has failed or its time is over, and
//! what the first still brings counts.
//!
//! Guarantees: [`Delivery::finish`] ends well only after an acknowledgement by all in-sync replicas or an
//! fsync; it ends within [`PUBLISH_TIMEOUT`] and [`SPOOL_TIMEOUT`] together. Without a spool, Kafka is the
//! only way.
//!
//! The lost answer: a record given up on one way may arrive there all the same, and is then stored twice.
//! Readers tell repeats by `ce_id`.

use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::{Either, select};
use metrics::Counter;
use tokio::sync::SemaphorePermit;
use tokio::time::{Instant, timeout};

use super::PUBLISH_TIMEOUT;
use super::publish::Destination;
use super::ways::{Failure, Way, Ways};
use crate::spool::{Entry, NotStored, Spool};
use crate::telemetry;
use crate::topic::{Acknowledgement, Message, PublishError, Publisher};

/// Longest wait for the spool's disk. With [`PUBLISH_TIMEOUT`] before or after it, an answer takes 4 s.
pub const SPOOL_TIMEOUT: Duration = Duration::from_secs(2);

/// Where records can go.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) publisher: Publisher,
    pub(super) backup: Option<Backup>,
}

/// The spool, and which way comes first.
#[derive(Debug)]
pub(super) struct Backup {
    pub(super) spool: Spool,
    ways: Mutex<Ways>,
    to_kafka: Counter,
    to_spool: Counter,
}

/// A record on its way. It holds what the second way needs, and no more.
#[derive(Debug)]
pub(super) struct Outgoing<'a> {
    pub(super) destination: Destination,
    sent: Option<Acknowledgement>,
    entry: Option<Entry>,
    /// The share of memory that a large body has taken, kept as long as a copy of it.
    room: Option<SemaphorePermit<'a>>,
}

impl<'a> Outgoing<'a> {
    /// Keeps `room` for as long as the record itself is kept.
    pub(super) fn holding(mut self, room: Option<SemaphorePermit<'a>>) -> Self {
        self.room = room.filter(|_| self.entry.is_some());
        self
    }
}

/// Neither way took it, or nobody knows.
#[derive(Debug)]
pub(super) struct NotDelivered;

impl Delivery {
    pub(super) fn new(publisher: Publisher, spool: Option<Spool>) -> Self {
        let backup = spool.map(|spool| Backup {
            ways: Mutex::new(Ways::new(Instant::now(), spool.held() > 0)),
            spool,
            to_kafka: metrics::counter!(telemetry::SPOOL_SWITCHES, "to" => "kafka"),
            to_spool: metrics::counter!(telemetry::SPOOL_SWITCHES, "to" => "spool"),
        });
        Delivery { publisher, backup }
    }

    /// Sets a record on its first way. Nothing that `message` borrows is needed after.
    pub(super) fn start<'a>(
        &self,
        destination: Destination,
        message: &Message<'_>,
    ) -> Outgoing<'a> {
        let entry = (self.backup.as_ref()).and_then(|_| {
            Entry::encode(message.topic, message.key, message.value, message.headers)
        });
        let spool_first = entry.is_some()
            && (self.backup.as_ref()).is_some_and(|backup| backup.ways().first() == Way::Spool);
        Outgoing {
            destination,
            sent: (!spool_first).then(|| self.publisher.publish(message)),
            entry,
            room: None,
        }
    }

    /// Waits for the first way, then tries the second.
    pub(super) async fn finish(&self, outgoing: Outgoing<'_>) -> Result<(), NotDelivered> {
        let Outgoing {
            sent,
            entry,
            room: _room,
            ..
        } = outgoing;
        let Some((backup, entry)) = self.backup.as_ref().zip(entry) else {
            let sent = sent.expect("what cannot be spooled was published");
            let result = timeout(PUBLISH_TIMEOUT, sent).await;
            let result = result.map_or(Err(LATE), |sent| sent.map_err(PublishError::reason));
            return result.map_err(|reason| {
                tracing::warn!(
                    reason,
                    "Kafka did not take a callback; the sender was asked to retry"
                );
                NotDelivered
            });
        };
        let result = match sent {
            Some(sent) => backup.kafka_first(sent, entry).await,
            None => self.spool_first(backup, entry).await,
        };
        result.map_err(|(first, second)| {
            tracing::warn!(
                first,
                second,
                "neither Kafka nor the spool took a callback; the sender was asked to retry"
            );
            NotDelivered
        })
    }

    /// The spool, and Kafka where the disk fails or takes too long.
    async fn spool_first(&self, backup: &Backup, entry: Entry) -> Result<(), BothReasons> {
        let mut stored = pin!(backup.store(entry.clone()));
        let first = match timeout(SPOOL_TIMEOUT, stored.as_mut()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(reason)) => Some(reason),
            Err(_) => None,
        };
        let sent = self.publisher.publish(&message(&entry.parts()));
        let sent = async { sent.await.map_err(PublishError::reason) };
        let second = match first {
            Some(_) => timeout(PUBLISH_TIMEOUT, sent).await.unwrap_or(Err(LATE)),
            None => either(stored, sent, PUBLISH_TIMEOUT).await,
        };
        second.map_err(|second| (first.unwrap_or(LATE), second))
    }
}

/// Why neither way did, as stable words: the first way's reason and the second's.
type BothReasons = (&'static str, &'static str);

/// No answer within its time.
const LATE: &str = "late";

/// A record of the spool as it is published.
pub(super) fn message<'a>(parts: &'a crate::spool::Parts<'a>) -> Message<'a> {
    Message {
        topic: parts.topic,
        key: parts.key,
        value: parts.value,
        headers: &parts.headers,
    }
}

impl Backup {
    /// Kafka, and the spool where that fails or takes too long.
    async fn kafka_first(
        &self,
        mut sent: Acknowledgement,
        entry: Entry,
    ) -> Result<(), BothReasons> {
        let first = match timeout(PUBLISH_TIMEOUT, &mut sent).await {
            Ok(Ok(())) => {
                self.ways().succeeded();
                return Ok(());
            }
            Ok(Err(error)) => Some(error),
            Err(_) => None,
        };
        let reason = first.map_or(LATE, PublishError::reason);
        let failure = match first {
            Some(PublishError::QueueFull) => Failure::QueueFull,
            Some(_) | None => Failure::Unacknowledged,
        };
        if self.ways().failed(Instant::now(), failure) {
            self.to_spool.increment(1);
            tracing::warn!(
                reason,
                "Kafka does not take callbacks; the spool comes first"
            );
        }
        let stored = self.store(entry);
        let second = match first {
            Some(_) => timeout(SPOOL_TIMEOUT, stored).await.unwrap_or(Err(LATE)),
            None => {
                let sent = async { sent.await.map_err(PublishError::reason) };
                either(sent, stored, SPOOL_TIMEOUT).await
            }
        };
        second.map_err(|second| (reason, second))
    }

    async fn store(&self, entry: Entry) -> Result<(), &'static str> {
        self.spool.push(entry).await.map_err(NotStored::reason)
    }

    /// The drain's word that Kafka works, with `unsent` records neither there nor on their way.
    pub(super) fn drained(&self, unsent: u64) {
        if self.ways().drained(Instant::now(), unsent) {
            self.to_kafka.increment(1);
            tracing::info!(unsent, "Kafka takes records again and comes first");
        }
    }

    /// The drain's word that it does not.
    pub(super) fn stuck(&self) {
        self.ways().stuck();
    }

    pub(super) fn ways(&self) -> MutexGuard<'_, Ways> {
        self.ways.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends with the first of the two that ends well; otherwise with the last error, or at `limit`.
async fn either(
    one: impl Future<Output = Result<(), &'static str>>,
    other: impl Future<Output = Result<(), &'static str>>,
    limit: Duration,
) -> Result<(), &'static str> {
    let both = async {
        match select(pin!(one), pin!(other)).await {
            Either::Left((Ok(()), _)) | Either::Right((Ok(()), _)) => Ok(()),
            Either::Left((Err(_), other)) => other.await,
            Either::Right((Err(_), one)) => one.await,
        }
    };
    timeout(limit, both).await.unwrap_or(Err(LATE))
}
