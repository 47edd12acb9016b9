//! The consumer's thread: polls, counts bytes, pauses, and says what an error means.
//!
//! Owns the order of records between librdkafka and the channel. Invariants: it polls at least every
//! [`POLL`], whatever the reader does; a record for which there is no room waits here with its partition
//! paused, and nothing of any partition overtakes it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use tokio::sync::mpsc;

use super::rebalance::Callbacks;
use super::{Event, Read, Shared};
use crate::topic::admin::{Deadline, not_allowed};
use crate::topic::{Error, OutOfRange, Record};

/// Longest poll: bounds how late a stop is seen.
const POLL: Duration = Duration::from_millis(100);
/// Longest poll while records wait for room: bounds how late freed room is seen.
const POLL_WHILE_HELD: Duration = Duration::from_millis(10);
/// How long a record waits for room before its partitions are paused. A reader that keeps up is never
/// further behind; until the pause nothing is polled, so a rebalance waits as long.
const BEFORE_PAUSE: Duration = Duration::from_millis(200);
/// A pause throws away what was read ahead, so going on with little room is not worth it before this.
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);
/// Shortest time between two reports that brokers are away.
const UNREACHABLE_EVERY: Duration = Duration::from_secs(5);
/// Pause between two attempts to find out which position is not in the log.
const LOCATE_EVERY: Duration = Duration::from_secs(1);
/// Longest such attempt.
const LOCATE_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) struct Reader {
    topic: String,
    client: Arc<BaseConsumer<Callbacks>>,
    events: mpsc::Sender<Event>,
    records: mpsc::UnboundedSender<Read>,
    shared: Arc<Shared>,
    /// Records without room, at most a few of each partition: those that were polled before the pause.
    held: VecDeque<Read>,
    held_since: Instant,
    unreachable_until: Option<Instant>,
    /// A position was not in the log; when to look for it.
    locate_at: Option<Instant>,
}

impl Reader {
    pub(super) fn new(
        topic: &str,
        client: Arc<BaseConsumer<Callbacks>>,
        events: mpsc::Sender<Event>,
        records: mpsc::UnboundedSender<Read>,
        shared: Arc<Shared>,
    ) -> Self {
        Reader {
            topic: topic.to_owned(),
            client,
            events,
            records,
            shared,
            held: VecDeque::new(),
            held_since: Instant::now(),
            unreachable_until: None,
            locate_at: None,
        }
    }

    /// Until stopped; then leaves the group.
    pub(super) fn run(mut self) {
        while !self.shared.stopping() {
            self.let_go();
            let client = Arc::clone(&self.client);
            match client.poll(if self.held.is_empty() {
                POLL
            } else {
                POLL_WHILE_HELD
            }) {
                None => {}
                Some(Ok(message)) => self.take(&message),
                Some(Err(error)) => self.report(error),
            }
            self.locate();
        }
        // A question about watermarks may still use the client; it is bounded.
        while Arc::strong_count(&self.client) > 1 {
            self.client.poll(POLL_WHILE_HELD);
        }
        // Dropped here, it leaves the group and revokes what it has; nobody is asked any more.
    }

    fn take(&mut self, message: &BorrowedMessage<'_>) {
        let number = message.partition();
        let generation = {
            let mut assignment = self.shared.assignment();
            let Some(partition) = assignment.partitions.get_mut(&number) else {
                return;
            };
            partition.next = Some(message.offset() + 1);
            partition.generation
        };
        let read = Read {
            generation,
            record: Record::copy(message),
        };
        if self.held.is_empty() {
            let Err(read) = self.send(read, BEFORE_PAUSE) else {
                return;
            };
            self.held_since = Instant::now();
            self.held.push_back(*read);
        } else {
            self.held.push_back(read);
        }
        self.pause();
    }

    /// Gives `read` back when no room for it came within `patience`.
    fn send(&self, mut read: Read, patience: Duration) -> Result<(), Box<Read>> {
        let share = self.shared.budget.share(read.record.bytes());
        let Some(hold) = self.shared.budget.hold(share, patience) else {
            return Err(Box::new(read));
        };
        read.record.hold(hold);
        // Closed only when the consumer is going away.
        let _ = self.records.send(read);
        Ok(())
    }

    /// Sends what was held as soon as there is room, and goes on reading when all of it went.
    fn let_go(&mut self) {
        if self.held.is_empty() {
            return;
        }
        if !self.shared.budget.has_room() && self.held_since.elapsed() < SHORTEST_PAUSE {
            return;
        }
        while let Some(read) = self.held.pop_front() {
            if !self
                .shared
                .is_current(read.record.partition, read.generation)
            {
                continue;
            }
            if let Err(read) = self.send(read, Duration::ZERO) {
                self.held.push_front(*read);
                // Those assigned meanwhile are not paused yet.
                self.pause();
                return;
            }
        }
        self.set_paused(false);
    }

    fn pause(&self) {
        self.set_paused(true);
    }

    fn set_paused(&self, pause: bool) {
        let mut list = TopicPartitionList::new();
        for (number, partition) in &mut self.shared.assignment().partitions {
            if partition.paused != pause {
                partition.paused = pause;
                list.add_partition(&self.topic, *number);
            }
        }
        if list.count() == 0 {
            return;
        }
        let done = if pause {
            self.client.pause(&list)
        } else {
            self.client.resume(&list)
        };
        if let Err(source) = done {
            self.tell(Event::Failed(Error::Fatal {
                doing: "pausing or resuming",
                source,
            }));
        }
    }

    fn report(&mut self, error: KafkaError) {
        use RDKafkaErrorCode as Code;
        let code = error.rdkafka_error_code().unwrap_or(Code::Unknown);
        let topic = self.topic.clone();
        if let KafkaError::MessageConsumptionFatal(_) = error {
            return self.tell(Event::Failed(Error::Fatal {
                doing: "reading",
                source: error,
            }));
        }
        match code {
            Code::AutoOffsetReset | Code::OffsetOutOfRange | Code::LogTruncation => {
                self.locate_at = Some(Instant::now());
            }
            Code::UnknownTopic | Code::UnknownTopicOrPartition => {
                self.tell(Event::Failed(Error::UnknownTopic { topic }));
            }
            Code::BadMessage | Code::InvalidMessage | Code::BadCompression => {
                self.tell(Event::Failed(Error::Corrupt {
                    topic,
                    source: code,
                }));
            }
            Code::AllBrokersDown => self.unreachable(),
            code if not_allowed(code) => {
                let doing = format!("reading {topic}");
                self.tell(Event::Failed(Error::NotAllowed {
                    doing,
                    source: code,
                }));
            }
            // librdkafka goes on by itself: one broker of several, a coordinator on the move, a
            // session that expired and is joined again.
            _ => tracing::debug!(%error, "reading met an error that passes"),
        }
    }

    fn unreachable(&mut self) {
        let now = Instant::now();
        if self.unreachable_until.is_none_or(|until| now >= until) {
            self.unreachable_until = Some(now + UNREACHABLE_EVERY);
            self.tell(Event::Unreachable(self.client.context().last_error()));
        }
    }

    /// Finds the positions that are not in the log: the error itself names neither partition nor range.
    fn locate(&mut self) {
        if self.locate_at.is_none_or(|at| Instant::now() < at) {
            return;
        }
        let deadline = Deadline::after(LOCATE_TIMEOUT);
        let (mut missing, mut unknown) = (Vec::new(), false);
        for (partition, next) in self.shared.positions() {
            let Some(wanted) = next else { continue };
            match self
                .client
                .fetch_watermarks(&self.topic, partition, deadline.left())
            {
                Ok((low, high)) if wanted < low || wanted > high => {
                    missing.push(OutOfRange {
                        partition,
                        wanted,
                        low,
                        high,
                    });
                }
                Ok(_) => {}
                Err(error) => {
                    unknown = true;
                    tracing::debug!(%error, partition, "no watermarks yet");
                }
            }
        }
        self.locate_at = unknown.then(|| Instant::now() + LOCATE_EVERY);
        if unknown {
            return;
        }
        let topic = self.topic.clone();
        self.tell(Event::Failed(if missing.is_empty() {
            Error::Position { topic }
        } else {
            Error::OffsetOutOfRange { topic, missing }
        }));
    }

    fn tell(&self, event: Event) {
        if let Err(error) = self.events.try_send(event) {
            tracing::debug!(%error, "nobody takes the consumer's events");
        }
    }
}
