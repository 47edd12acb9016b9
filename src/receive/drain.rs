//! From the spool to Kafka: oldest first, in bounded batches, as soon as Kafka takes them.
//!
//! Owns what was read from the spool and not yet removed. Refuses to remove a record that Kafka has not
//! acknowledged, and to hold up the others for one that Kafka refuses: such a record stays in the spool, is
//! passed over, and is tried again every [`REFUSED_PAUSE`].
//!
//! Guarantees: at most [`BATCH`] on its way at once, beside the live traffic; while Kafka is away a single
//! record is, and always one, so that the first success comes as soon as Kafka can give it. A crash between
//! acknowledgement and removal repeats one batch at most.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::delivery::{Backup, message};
use crate::lifecycle::Stop;
use crate::spool::{Limit, Stored};
use crate::topic::{Acknowledgement, PublishError, Publisher};

/// What is on its way at once, of the [`QUEUE_MESSAGES`](crate::topic::QUEUE_MESSAGES) that the producer
/// takes.
const BATCH: Limit = Limit {
    records: 2_000,
    bytes: 2 * 1024 * 1024,
};
/// The same while Kafka does not answer.
const PROBE: Limit = Limit {
    records: 1,
    bytes: 0,
};
/// Removes only.
const NOTHING: Limit = Limit {
    records: 0,
    bytes: 0,
};
/// Records handed over before other tasks of the thread get their turn.
const RECORDS_A_TURN: usize = 64;
/// Pause after a failure, which for a Kafka that is away comes after 2.5 s by itself.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// How often an empty spool is looked at.
const IDLE_PAUSE: Duration = Duration::from_millis(250);
/// Time between two tries of records that Kafka refuses.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);
/// Longest wait for acknowledgements after the stop.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// Drains until `stop`.
pub(super) async fn drain(backup: &Backup, publisher: &Publisher, stop: &Stop) {
    let mut drain = Drain::default();
    while !stop.is_requested() {
        if let Some(pause) = drain.round(backup, publisher, stop).await {
            let arrived = backup.spool.arrived();
            let pause = tokio::time::timeout(pause, async {
                match drain.probing {
                    true => std::future::pending().await,
                    false => arrived.await,
                }
            });
            stop.race(pause).await;
        }
    }
    if !drain.acknowledged.is_empty() {
        // Not removed, they are sent again by the next start.
        let removal = backup.spool.oldest(drain.acknowledged, None, NOTHING);
        let _ = tokio::time::timeout(STOP_GRACE, removal).await;
    }
}

/// Where it stands.
#[derive(Debug, Default)]
struct Drain {
    /// In Kafka, to be removed.
    acknowledged: Vec<u64>,
    /// Read up to here.
    after: Option<u64>,
    /// Kafka refuses these; they are below `after`.
    refused: BTreeSet<u64>,
    retry_refused_at: Option<Instant>,
    /// Kafka did not answer the last batch, or not for all of it.
    probing: bool,
    /// Kafka took nothing of it.
    nothing_taken: bool,
}

impl Drain {
    /// Removes what was acknowledged and sends the next batch. Gives the pause before the next round.
    async fn round(
        &mut self,
        backup: &Backup,
        publisher: &Publisher,
        stop: &Stop,
    ) -> Option<Duration> {
        if self.retry_refused_at.is_some_and(|at| at <= Instant::now()) {
            self.retry_refused_at = None;
            self.refused.clear();
            self.after = None;
        }
        if backup.spool.held() == 0 {
            (self.after, self.nothing_taken) = (None, false);
            backup.drained(0);
            return Some(IDLE_PAUSE);
        }
        let limit = if self.probing { PROBE } else { BATCH };
        let removed = self.acknowledged.clone();
        // A stop does not wait for a disk that hangs.
        let read = stop.race(backup.spool.oldest(removed, self.after, limit));
        let Some(Ok(batch)) = read.await else {
            return Some(IDLE_PAUSE);
        };
        self.acknowledged.clear();
        let sent = send(publisher, &batch).await;
        if !self.probing && !self.nothing_taken {
            let sent = sent.len() + self.refused.len();
            backup.drained(backup.spool.held().saturating_sub(sent as u64));
        }
        if batch.is_empty() {
            return Some(IDLE_PAUSE);
        }
        let (first, last) = (batch.first(), batch.last());
        let unsent = batch.get(sent.len()).map(Stored::number);
        let (first, last) = first.map(Stored::number).zip(last.map(Stored::number))?;
        let grace = async {
            stop.requested().await;
            tokio::time::sleep(STOP_GRACE).await;
        };
        let failed = tokio::select! {
            failed = self.results(sent) => failed.or(unsent),
            () = grace => Some(first),
        };
        self.after = failed.map_or(Some(last), |failed| failed.checked_sub(1));
        self.probing = failed.is_some();
        failed.map(|_| {
            backup.stuck();
            RETRY_PAUSE
        })
    }

    /// Sorts the results of a batch; the first number that has to be sent again.
    async fn results(&mut self, sent: Vec<(u64, Acknowledgement)>) -> Option<u64> {
        let (mut failed, mut refused) = (None, 0);
        let taken_before = self.acknowledged.len();
        for (number, acknowledgement) in sent {
            match acknowledgement.await {
                Ok(()) => self.acknowledged.push(number),
                Err(PublishError::Refused(code)) => {
                    if refused == 0 {
                        tracing::error!(%code, "Kafka refuses a spooled record; it stays in the spool: check topics, size limits and access control lists");
                    }
                    refused += 1;
                    self.refused.insert(number);
                    let at = Instant::now() + REFUSED_PAUSE;
                    self.retry_refused_at.get_or_insert(at);
                }
                Err(
                    PublishError::QueueFull
                    | PublishError::Closed
                    | PublishError::Unacknowledged(_)
                    | PublishError::Unproven,
                ) => {
                    failed.get_or_insert(number);
                }
            }
        }
        if let Some(failed) = failed {
            // Those behind it are read again with it.
            self.refused.retain(|refused| *refused < failed);
        }
        self.nothing_taken = self.acknowledged.len() == taken_before;
        failed
    }
}

/// Hands a batch over, up to the first record that the producer has no room for.
async fn send(publisher: &Publisher, batch: &[Stored]) -> Vec<(u64, Acknowledgement)> {
    let mut sent = Vec::with_capacity(batch.len());
    for turn in batch.chunks(RECORDS_A_TURN) {
        for stored in turn {
            let acknowledgement = publisher.publish(&message(&stored.parts()));
            if acknowledgement.is_turned_away() {
                return sent;
            }
            sent.push((stored.number(), acknowledgement));
        }
        tokio::task::yield_now().await;
    }
    sent
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topic::{EmbeddedCluster, Message};

    /// What is read again must not count as passed over: the way back would open before it was handed over.
    #[tokio::test]
    async fn a_refused_record_behind_one_that_failed_is_read_again_with_it() {
        let cluster = EmbeddedCluster::start(1, &["events"]).unwrap();
        let publisher = Publisher::start(&cluster.settings()).unwrap();
        let mut sent = Vec::new();
        for number in 5..10 {
            match number {
                6 | 8 => cluster.refuse_produce(1),
                7 => cluster.doubt_produce(),
                _ => {}
            }
            let record = Message {
                topic: "events",
                key: None,
                value: b"v",
                headers: &[],
            };
            sent.push((number, publisher.publish(&record)));
            while publisher.in_flight() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        let mut drain = Drain::default();
        assert_eq!(drain.results(sent).await, Some(7));
        assert_eq!(drain.acknowledged, [5, 9]);
        assert_eq!(drain.refused, BTreeSet::from([6]));
    }
}
