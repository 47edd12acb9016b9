//! Rebalances as messages: what librdkafka asks in a callback becomes an event with a reply.
//!
//! Owns the wait for that reply and the one call that follows it. Invariants: records of a partition are
//! current from before its assignment to before its revocation is announced; every callback ends with
//! exactly one assign or unassign, within [`REPLY_WAIT`], whether or not anybody answers.

use std::fmt;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use tokio::sync::mpsc;

use super::{Event, Partition, REPLY_WAIT, Shared};
use crate::telemetry;
use crate::topic::admin::Deadline;
use crate::topic::{Error, log_line};

/// How often a wait for a reply looks whether the consumer is closing.
const STOP_LOOK: Duration = Duration::from_millis(100);

/// Tells a consumer where to start. Dropped without an answer, the partitions are not read.
pub struct AssignReply(SyncSender<Vec<(i32, Option<i64>)>>);

impl AssignReply {
    /// The next offset of every partition that was assigned; `None`: the earliest there is.
    pub fn start_at(self, positions: Vec<(i32, Option<i64>)>) {
        // The callback may have stopped waiting; it has reported that itself.
        let _ = self.0.send(positions);
    }
}

/// Lets partitions go. Dropped, it says the same.
pub struct RevokeReply(SyncSender<()>);

impl RevokeReply {
    /// Nothing read from these partitions will be committed by us any more.
    pub fn done(self) {
        let _ = self.0.send(());
    }
}

impl fmt::Debug for AssignReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AssignReply")
    }
}

impl fmt::Debug for RevokeReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RevokeReply")
    }
}

/// librdkafka's callbacks, all on the consumer's thread.
pub(super) struct Callbacks {
    group: String,
    topic: String,
    events: mpsc::Sender<Event>,
    shared: Arc<Shared>,
    /// What librdkafka said last: the reason behind "all brokers are down".
    last_error: Mutex<String>,
}

impl Callbacks {
    pub(super) fn new(
        group: &str,
        topic: &str,
        events: mpsc::Sender<Event>,
        shared: Arc<Shared>,
    ) -> Self {
        Callbacks {
            group: group.to_owned(),
            topic: topic.to_owned(),
            events,
            shared,
            last_error: Mutex::default(),
        }
    }

    /// Why brokers are away.
    pub(super) fn last_error(&self) -> String {
        self.last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn assign(&self, consumer: &BaseConsumer<Self>, assigned: &TopicPartitionList) {
        let partitions = numbers(assigned);
        let positions = if partitions.is_empty() || self.shared.stopping() {
            Vec::new()
        } else {
            self.count("assigned");
            let (sender, receiver) = sync_channel(1);
            let event = Event::Assigned {
                partitions: partitions.clone(),
                reply: AssignReply(sender),
            };
            self.ask(event, &receiver).unwrap_or_default()
        };
        let mut starts = TopicPartitionList::with_capacity(partitions.len());
        let mut unanswered = Vec::new();
        for partition in partitions {
            let start = positions.iter().find(|(number, _)| *number == partition);
            let offset = match start {
                None => None,
                Some((_, None)) => Some(Offset::Beginning),
                Some((_, Some(next))) => Some(Offset::Offset(*next)),
            };
            let added =
                offset.map(|offset| starts.add_partition_offset(&self.topic, partition, offset));
            match (start, added) {
                (Some((_, next)), Some(Ok(()))) => self.begin(partition, *next),
                // No answer, or an offset below zero.
                _ => unanswered.push(partition),
            }
        }
        let done = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_assign(&starts),
            RebalanceProtocol::Eager | RebalanceProtocol::None => consumer.assign(&starts),
        };
        self.check("taking partitions over", done);
        if !unanswered.is_empty() && !self.shared.stopping() {
            self.tell(Event::Failed(Error::NoPositions {
                partitions: unanswered,
            }));
        }
    }

    fn begin(&self, partition: i32, next: Option<i64>) {
        let mut assignment = self.shared.assignment();
        assignment.generation += 1;
        let generation = assignment.generation;
        assignment.partitions.insert(
            partition,
            Partition {
                generation,
                next,
                paused: false,
            },
        );
    }

    fn revoke(&self, consumer: &BaseConsumer<Self>, revoked: &TopicPartitionList) {
        let partitions = numbers(revoked);
        let lost = consumer.assignment_lost();
        let paused = self.end(&partitions);
        if !partitions.is_empty() && !self.shared.stopping() {
            self.count(if lost { "lost" } else { "revoked" });
            let (sender, receiver) = sync_channel(1);
            let event = Event::Revoked {
                partitions,
                lost,
                reply: RevokeReply(sender),
            };
            self.ask(event, &receiver);
        }
        // librdkafka remembers a pause; the partition may come back one day.
        if let Err(error) = consumer.resume(&paused) {
            tracing::warn!(%error, "partitions could not be resumed before they went");
        }
        let done = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_unassign(revoked),
            RebalanceProtocol::Eager | RebalanceProtocol::None => consumer.unassign(),
        };
        self.check("handing partitions over", done);
    }

    /// Ends the generations of `partitions`; those that were paused.
    fn end(&self, partitions: &[i32]) -> TopicPartitionList {
        let mut assignment = self.shared.assignment();
        let mut paused = TopicPartitionList::new();
        for number in partitions {
            if let Some(partition) = assignment.partitions.remove(number)
                && partition.paused
            {
                paused.add_partition(&self.topic, *number);
            }
        }
        paused
    }

    /// Sends `event` and waits for its reply. `None`: there is none, because it came too late, was
    /// dropped, or nobody listens.
    fn ask<T>(&self, event: Event, reply: &Receiver<T>) -> Option<T> {
        if !self.tell(event) {
            return None;
        }
        let deadline = Deadline::after(REPLY_WAIT);
        while !self.shared.stopping() {
            match reply.recv_timeout(deadline.left().min(STOP_LOOK)) {
                Ok(answer) => return Some(answer),
                Err(RecvTimeoutError::Timeout) if !deadline.passed() => {}
                Err(RecvTimeoutError::Timeout) => {
                    let waited_s = REPLY_WAIT.as_secs();
                    tracing::warn!(waited_s, "a rebalance goes on without an answer");
                    return None;
                }
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
        None
    }

    fn tell(&self, event: Event) -> bool {
        self.events
            .try_send(event)
            .inspect_err(|error| tracing::debug!(%error, "nobody takes the consumer's events"))
            .is_ok()
    }

    fn check(&self, doing: &'static str, result: KafkaResult<()>) {
        if let Err(source) = result
            && !self.shared.stopping()
        {
            self.tell(Event::Failed(Error::Fatal { doing, source }));
        }
    }

    fn count(&self, kind: &'static str) {
        let group = self.group.clone();
        metrics::counter!(telemetry::REBALANCES, "group" => group, "kind" => kind).increment(1);
    }
}

fn numbers(list: &TopicPartitionList) -> Vec<i32> {
    list.elements()
        .iter()
        .map(|element| element.partition())
        .collect()
}

impl ConsumerContext for Callbacks {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        what: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        if what == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            self.assign(consumer, partitions);
        } else {
            self.revoke(consumer, partitions);
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            tracing::debug!(%error, "group offsets were not committed");
        }
    }
}

impl ClientContext for Callbacks {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        log_line(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "the consumer reports");
        let mut last = self
            .last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // "All brokers are down" is the least telling of them.
        if last.is_empty() || error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            reason.clone_into(&mut last);
        }
    }
}
