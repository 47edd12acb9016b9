//! The archive: every callback becomes a row of `events`, repeats and all.
//!
//! Owns what a record's row is and where its times come from. A record that cannot be read back (written
//! by something else than our receiver) is a dead letter, once: the enricher passes over it.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::{Dead, Outcome, Work};
use crate::announce::Why;
#[cfg(feature = "sabotage")]
use crate::config::sabotage::{self, Sabotage};
use crate::event::{CallbackEvent, header};
use crate::lake::{Commit, Lake, LakeError, Position, Table};
use crate::lifecycle::Clock;
use crate::table::row::{self, EventRow};
use crate::table::{self, TableName};
use crate::topic::Record;

/// The archive's work.
#[derive(Debug)]
pub struct Archive {
    lake: Arc<Lake>,
    clock: Clock,
}

impl Archive {
    /// An archive that writes to `lake`.
    pub fn new(lake: Arc<Lake>, clock: Clock) -> Self {
        Archive { lake, clock }
    }

    fn row(&self, record: &Record) -> Result<EventRow, Dead> {
        let event = CallbackEvent::parse(&record.value).map_err(|error| Dead {
            reason: error.reason(),
            attempts: 1,
            response: None,
        })?;
        let received_at = received_at(record, self.clock);
        let body_sha256: [u8; 32] = Sha256::digest(&record.value).into();
        Ok(EventRow {
            event_id: event.identity(&body_sha256).to_string(),
            event_type: event.event_type.clone().into_owned(),
            conversation_id: event.conversation_id.clone().into_owned(),
            occurred_at: event.timestamp.as_deref().and_then(micros),
            received_at: received_at.as_microsecond(),
            idempotency_token: text_header(record, header::IDEMPOTENCY_TOKEN),
            body: String::from_utf8_lossy(&record.value).into_owned(),
            kafka_partition: record.partition,
            kafka_offset: record.offset,
            date: row::day(received_at),
        })
    }
}

impl Work for Archive {
    type Row = EventRow;

    fn stage(&self) -> &'static str {
        "archive"
    }

    fn table(&self) -> &Table {
        self.lake.table(TableName::Events)
    }

    async fn assign(&self, apps: Vec<String>) -> Result<Vec<Option<i64>>, LakeError> {
        self.lake.table(TableName::Events).positions(&apps).await
    }

    fn forget(&self, _: &[i32]) {}

    fn process(self: Arc<Self>, record: Arc<Record>) -> BoxFuture<'static, Outcome<EventRow>> {
        let outcome = match self.row(&record) {
            // It is no callback: nobody sent it.
            _ if Why::of(&record).is_some() => Outcome::Nothing,
            Ok(row) => Outcome::Row(row),
            Err(dead) => Outcome::Dead(dead),
        };
        futures::future::ready(outcome).boxed()
    }

    fn weight(row: &EventRow) -> usize {
        size_of::<EventRow>() + row.body.len() + row.conversation_id.len() + 128
    }

    fn commit(
        self: Arc<Self>,
        rows: Vec<EventRow>,
        positions: Vec<Position>,
    ) -> BoxFuture<'static, Result<(), LakeError>> {
        async move {
            #[cfg(feature = "sabotage")]
            let positions = if sabotage::is(Sabotage::EarlyPosition) {
                let early = Commit {
                    positions,
                    ..Commit::default()
                };
                self.lake.table(TableName::Events).commit(&early).await?;
                Vec::new()
            } else {
                positions
            };
            let commit = Commit {
                rows: vec![table::events_batch(&rows)],
                positions,
                ..Commit::default()
            };
            drop(rows);
            self.lake.table(TableName::Events).commit(&commit).await?;
            Ok(())
        }
        .boxed()
    }
}

/// When the callback arrived: our receiver's header, else Kafka's timestamp, else now.
pub(super) fn received_at(record: &Record, clock: Clock) -> Timestamp {
    text_header(record, header::RECEIVED_AT)
        .and_then(|text| text.parse().ok())
        .or_else(|| Timestamp::from_millisecond(record.timestamp_ms?).ok())
        .unwrap_or_else(|| clock.now())
}

/// Microseconds of an ISO 8601 time, where it is one.
pub(super) fn micros(text: &str) -> Option<i64> {
    text.parse::<Timestamp>()
        .ok()
        .map(Timestamp::as_microsecond)
}

fn text_header(record: &Record, name: &str) -> Option<String> {
    record
        .headers
        .get(name)
        .and_then(|value| std::str::from_utf8(value).ok())
        .map(str::to_owned)
}
