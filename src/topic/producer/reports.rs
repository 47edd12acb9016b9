//! What librdkafka reports of records, and what of it is proof.
//!
//! Owns the delivery reports of one producer: each ends its record's slot. Refuses to believe that a record is
//! stored because librdkafka says so.
//!
//! Guarantees: a record is acknowledged by the offset that a broker gave it, by nothing else. A broker that has just
//! become a partition's leader can refuse the first batch of a producer that it does not know and take the second;
//! librdkafka then reports both as delivered, the first without an offset, since the numbers of a known producer
//! would not allow that (confluent-kafka-go#921, and seen with Apache Kafka 4.1: in no partition). Where a broker
//! calls a batch a repeat, librdkafka counts its offsets from -1. Both end as [`PublishError::Unproven`], which at
//! worst stores a record twice.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::producer::{DeliveryResult, ProducerContext};

use super::{Deliveries, lock};
use crate::topic::{PublishError, QUEUE_MESSAGES, log_line};

/// The callbacks of one producer, which owns this alone: dropped with it, after its last report.
pub(super) struct Reports {
    pub(super) deliveries: Arc<Deliveries>,
    /// By topic and partition: the offset that comes next if it is counted from none. Rarely has one.
    counted: Mutex<HashMap<(String, i32), i64>>,
}

impl Reports {
    pub(super) fn to(deliveries: Arc<Deliveries>) -> Self {
        Reports {
            deliveries,
            counted: Mutex::default(),
        }
    }

    /// Whether a broker told the offset. A batch has [`QUEUE_MESSAGES`] records at most, and
    /// is reported in order; a true offset that looks like a counted one costs a repeat.
    fn is_proof(&self, record: &BorrowedMessage<'_>) -> bool {
        let offset = record.offset();
        if offset >= i64::from(QUEUE_MESSAGES) {
            return true;
        }
        let mut counted = lock(&self.counted);
        if offset >= 0 && counted.is_empty() {
            return true;
        }
        let partition = (record.topic().to_owned(), record.partition());
        let proof = offset >= 0 && counted.get(&partition) != Some(&offset);
        if !proof {
            counted.insert(partition, offset + 1);
        }
        proof
    }
}

impl Drop for Reports {
    fn drop(&mut self) {
        self.deliveries.end();
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, slot: usize) {
        let result = match result {
            Ok(record) if self.is_proof(record) => Ok(()),
            Ok(_) => Err(PublishError::Unproven),
            Err((error, _)) => Err(PublishError::of(
                error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail),
            )),
        };
        self.deliveries.done(slot, result);
    }
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        log_line(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // Which errors are fatal the event does not say: it carries the code behind it.
        self.deliveries.troubled.store(true, Ordering::Release);
        tracing::debug!(%error, reason, "the producer reports");
    }
}
