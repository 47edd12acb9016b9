//! A callback's record, until Kafka or the spool has it.
//!
//! Owns the two ways and the time each gets, and what is reported to [`Ways`]. Refuses to retry on either:
//! the second way is the only second chance. It begins when the first has failed or its time is over, and
//! what the first still brings counts.
//!
//! Guarantees: [`Delivery::finish`] ends well only after an acknowledgement by all in-sync replicas or an
//! fsync; it ends at the deadline that its caller was given, at the latest, whatever both ways do. Without a
//! spool, Kafka is the only way and has all of the time.
//!
//! The lost answer: a record given up on one way may arrive there all the same, and is then stored twice.
//! Readers tell repeats by `ce_id`.

use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::{Either, select};
use metrics::Counter;
use tokio::sync::SemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::publish::Destination;
use super::ways::{Failure, Way, Ways};
use crate::spool::{Entry, NotStored, Spool};
use crate::telemetry;
use crate::topic::{Acknowledgement, Message, PublishError, Publisher};

/// How long Kafka is waited for alone, where it comes first. What is left until the deadline is the spool's.
pub const PUBLISH_TIMEOUT: Duration = Duration::from_millis(1_500);

/// How long the spool's disk is waited for alone, where that comes first: a commit of a slow disk and the one
/// before it. Kafka, were it well, needs far less than what is left.
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

    /// Waits for the first way, then tries the second; until `deadline` and no longer.
    pub(super) async fn finish(
        &self,
        outgoing: Outgoing<'_>,
        deadline: Instant,
    ) -> Result<(), NotDelivered> {
        let Outgoing {
            sent,
            entry,
            room: _room,
            ..
        } = outgoing;
        let Some((backup, entry)) = self.backup.as_ref().zip(entry) else {
            let sent = sent.expect("what cannot be spooled was published");
            let result = timeout_at(deadline, sent).await;
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
            Some(sent) => backup.kafka_first(sent, entry, deadline).await,
            None => self.spool_first(backup, entry, deadline).await,
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
    async fn spool_first(
        &self,
        backup: &Backup,
        entry: Entry,
        deadline: Instant,
    ) -> Result<(), BothReasons> {
        let mut stored = pin!(backup.store(entry.clone(), deadline));
        let alone = deadline.min(Instant::now() + SPOOL_TIMEOUT);
        let first = match timeout_at(alone, stored.as_mut()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(reason)) => Some(reason),
            Err(_) => None,
        };
        let sent = self.publisher.publish(&message(&entry.parts()));
        let sent = async { sent.await.map_err(PublishError::reason) };
        let second = match first {
            Some(_) => timeout_at(deadline, sent).await.unwrap_or(Err(LATE)),
            None => either(stored, sent, deadline).await,
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
        deadline: Instant,
    ) -> Result<(), BothReasons> {
        let alone = deadline.min(Instant::now() + PUBLISH_TIMEOUT);
        let first = match timeout_at(alone, &mut sent).await {
            Ok(Ok(())) => {
                self.ways().succeeded();
                return Ok(());
            }
            Ok(Err(error)) => Some(error),
            // Its body took the time, which says nothing about Kafka.
            Err(_) if alone == deadline => return Err((LATE, LATE)),
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
        let stored = self.store(entry, deadline);
        let second = match first {
            Some(_) => timeout_at(deadline, stored).await.unwrap_or(Err(LATE)),
            None => {
                let sent = async { sent.await.map_err(PublishError::reason) };
                either(sent, stored, deadline).await
            }
        };
        second.map_err(|second| (reason, second))
    }

    /// Does not wait for a disk that cannot be done by `deadline`: a caller that hears so at once tries again
    /// sooner, and the queue gets no longer.
    async fn store(&self, entry: Entry, deadline: Instant) -> Result<(), &'static str> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.spool
            .push(entry, left)
            .await
            .map_err(NotStored::reason)
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

/// Ends with the first of the two that ends well; otherwise with the last error, or at `deadline`.
async fn either(
    one: impl Future<Output = Result<(), &'static str>>,
    other: impl Future<Output = Result<(), &'static str>>,
    deadline: Instant,
) -> Result<(), &'static str> {
    let both = async {
        match select(pin!(one), pin!(other)).await {
            Either::Left((Ok(()), _)) | Either::Right((Ok(()), _)) => Ok(()),
            Either::Left((Err(_), other)) => other.await,
            Either::Right((Err(_), one)) => one.await,
        }
    };
    timeout_at(deadline, both).await.unwrap_or(Err(LATE))
}
