//! The rows. In the order of the data: the receiver, its disk, Kafka, the consumer, the API, storage, clocks,
//! operators.

use std::time::Duration;

use crate::plan::Row;

mod api;
mod consumer;
mod kafka;
mod operator;
mod receiver;
mod spool;
mod storage;

/// Every row, in the order of the table.
pub(crate) fn rows() -> impl Iterator<Item = &'static Row> {
    [
        receiver::ROWS,
        spool::ROWS,
        kafka::ROWS,
        consumer::ROWS,
        api::ROWS,
        storage::ROWS,
        operator::ROWS,
    ]
    .into_iter()
    .flatten()
}

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// The promise of an answer under any one fault: 99 % within 3 s, none later than 5 s.
const PROMISED: crate::plan::Claim = crate::plan::Claim::Answers(secs(3), secs(5));
