//! The enricher: a closed conversation is fetched, judged, and written once.
//!
//! Owns when a conversation is fetched (after the settle delay, and only where the lake does not have it
//! whole), and the order of the two commits: `communications`, then `conversations`. The second *is* the
//! conversation's commit. Its position is where reading goes on; where `communications` is ahead (a crash
//! between the two), the conversations are read again and replace what is there.
//!
//! Guarantees: a conversation that is COMPLETE in the lake is not fetched again and not written twice,
//! whichever record brings it. Communications are always written by replacement, so neither a crash nor a
//! second owner can double them. A poorer version never replaces a richer one.
//!
//! A callback about a communication that happened after the close (a delivery state, a text that came later) has the
//! conversation fetched again, within the re-check window, and its rows replaced where they say something else. Late
//! callbacks that come together share one fetch: what began after they settled covers them. Nothing is fetched again
//! that no callback names.
//!
//! While the API does not answer at all, work waits here ([`OUTAGE_PAUSE`] between tries) and the group
//! keeps its partitions; nothing becomes a dead letter because of an outage.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arrow::array::{Array, AsArray};
use arrow::datatypes::TimestampMicrosecondType;
use futures::FutureExt;
use futures::future::BoxFuture;
use hdrhistogram::Histogram;

use super::archive::{micros, received_at};
use super::cause::{Cause, Fetched};
use super::recent::Recent;
use super::{Dead, Outcome, Work};
use crate::announce::Why;
use crate::enrich::{Close, EnrichError, Enriched, Enricher};
use crate::event::CallbackEvent;
use crate::lake::{Commit, Lake, LakeError, Ledger, Position, Table};
use crate::lifecycle::Clock;
use crate::table::row::{self, Completeness};
use crate::table::{self, TableName};
use crate::telemetry;
use crate::topic::Record;

/// Pause between tries while the API does not answer at all.
const OUTAGE_PAUSE: Duration = Duration::from_secs(5);

/// What the names of events about communications begin with.
const COMMUNICATION: &str = "COMMUNICATION_";

/// How often a batch is built again because another writer's conversations were among it.
const RACES_PER_BATCH: u32 = 20;

/// Significant decimal digits of the quantiles shown by `dev`.
const QUANTILE_DIGITS: u8 = 2;

/// A conversation to fetch.
#[derive(Debug)]
struct Task {
    close: Close,
    cause: Cause,
}

/// One conversation, ready to be written.
#[derive(Debug)]
pub struct Ready {
    enriched: Enriched,
    cause: Cause,
    received_at: jiff::Timestamp,
}

impl Ready {
    fn key(&self) -> (i32, String) {
        let row = &self.enriched.conversation;
        (row.kafka_partition, row.conversation_id.clone())
    }
}

/// Whose turn it is to fetch a conversation, and how it was fetched last.
type Turn = Arc<tokio::sync::Mutex<Option<Fetched>>>;

/// Time since `then`; none where the clock that wrote it is ahead of ours.
fn since(then: jiff::Timestamp, clock: Clock) -> Duration {
    Duration::try_from(clock.now().duration_since(then)).unwrap_or_default()
}

/// The enricher's work.
#[derive(Debug)]
pub struct EnricherWork {
    enricher: Enricher,
    lake: Arc<Lake>,
    clock: Clock,
    settle: Duration,
    api_up: telemetry::Dependency,
    /// Where `communications` stands: after a crash between the two commits it is ahead.
    communications_at: Mutex<HashMap<String, Option<i64>>>,
    /// Conversations of a partition that are being fetched or wait for their commit. A second close of the same conversation waits for the first instead of fetching it again.
    pending: Mutex<HashMap<(i32, String), Turn>>,
    /// What closed within the re-check window.
    recent: Mutex<Recent>,
    /// Milliseconds from a close's arrival to its commit.
    close_to_queryable_ms: Mutex<Histogram<u64>>,
}

impl EnricherWork {
    /// Work that fetches with `enricher`, `settle` after a close arrived, and again for callbacks that come up to
    /// `recheck_window` after it.
    pub fn new(
        enricher: Enricher,
        lake: Arc<Lake>,
        clock: Clock,
        settle: Duration,
        recheck_window: Duration,
        api_up: telemetry::Dependency,
    ) -> Self {
        EnricherWork {
            enricher,
            lake,
            clock,
            settle,
            api_up,
            communications_at: Mutex::default(),
            pending: Mutex::default(),
            recent: Mutex::new(Recent::new(recheck_window)),
            close_to_queryable_ms: Mutex::new(
                Histogram::new(QUANTILE_DIGITS).expect("2 is a valid precision"),
            ),
        }
    }

    /// Milliseconds from a close's arrival to its commit, at quantile `q` (0..1).
    pub fn close_to_queryable_ms(&self, q: f64) -> u64 {
        let histogram = self
            .close_to_queryable_ms
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        histogram.value_at_quantile(q)
    }

    /// What a record asks for; most need nothing of the enricher.
    fn task(&self, record: &Record) -> Option<Task> {
        let event = CallbackEvent::parse(&record.value).ok()?;
        let happened = event.timestamp.as_deref().and_then(micros);
        let (cause, closed_at) = if event.is_close() {
            let repair = Why::of(record) == Some(Why::Repair);
            (if repair { Cause::Repair } else { Cause::Close }, happened)
        } else if event.event_type.starts_with(COMMUNICATION) {
            let now = self.clock.now().as_microsecond();
            let late = self.recent().late(&event.conversation_id, happened, now);
            (Cause::Late, Some(late?))
        } else {
            return None;
        };
        let close = Close {
            conversation_id: event.conversation_id.into_owned(),
            account_id: event.account_id.map(std::borrow::Cow::into_owned),
            closed_at: closed_at.and_then(|at| jiff::Timestamp::from_microsecond(at).ok()),
            received_at: received_at(record, self.clock),
            partition: record.partition,
            offset: record.offset,
        };
        Some(Task { close, cause })
    }

    async fn fetch(&self, task: Task) -> Outcome<Ready> {
        let key = (task.close.partition, task.close.conversation_id.clone());
        let turn = Arc::clone(self.pending().entry(key.clone()).or_default());
        let outcome = self.fetch_in_turn(&task, &turn).await;
        if !matches!(outcome, Outcome::Row(_)) {
            let mut pending = self.pending();
            // The map's and ours: nobody else waits for it, and no fetch of it waits for its commit.
            let ours = pending
                .get(&key)
                .is_some_and(|there| Arc::ptr_eq(there, &turn));
            let unused = turn.try_lock().is_ok_and(|fetched| fetched.is_none());
            if ours && unused && Arc::strong_count(&turn) == 2 {
                pending.remove(&key);
            }
        }
        outcome
    }

    async fn fetch_in_turn(&self, task: &Task, turn: &Turn) -> Outcome<Ready> {
        let (close, cause) = (&task.close, task.cause);
        let skip = || {
            metrics::counter!(telemetry::CONVERSATIONS_SKIPPED).increment(1);
            Outcome::Nothing
        };
        let mut last = turn.lock().await;
        let covered = |last: &Fetched| cause.is_covered(last, close.received_at, self.settle);
        if last.as_ref().is_some_and(covered) {
            return skip();
        }
        let waited = since(close.received_at, self.clock);
        tokio::time::sleep(self.settle.saturating_sub(waited)).await;
        let id = std::slice::from_ref(&close.conversation_id);
        let have = match self.lake.completeness(id).await {
            Ok(known) => known.get(&close.conversation_id).copied(),
            Err(error) => {
                let error = anyhow::Error::from(error);
                return Outcome::Stop(format!("the lake cannot be read: {error:#}"));
            }
        };
        match cause {
            Cause::Close if have == Some(Completeness::Complete) => return skip(),
            // Deleted, or never written: its close is a dead letter, or another id has its hash.
            Cause::Late if have.is_none_or(|have| have == Completeness::Gone) && last.is_none() => {
                return skip();
            }
            Cause::Close => {}
            Cause::Late => count_recheck("late"),
            Cause::Repair => count_recheck("repair"),
        }
        let began = self.clock.now();
        let outcome = self.enrich(task).await;
        if let Outcome::Row(ready) = &outcome {
            let row = &ready.enriched.conversation;
            *last = Some(Fetched {
                whole: row.completeness == Completeness::Complete,
                began,
            });
            if let Some(closed_at) = row.closed_at {
                let now = self.clock.now().as_microsecond();
                self.recent().note(&row.conversation_id, closed_at, now);
            }
        }
        outcome
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Learns what closed within the window, whoever wrote it.
    async fn learn_recent(&self) -> Result<(), LakeError> {
        let now = self.clock.now();
        let Some(since) = self.recent().since(now.as_microsecond()) else {
            return Ok(());
        };
        // A close that has an odd time lies under the day it was received.
        let first_day = jiff::Timestamp::from_microsecond(since).map_or(0, row::day) - 1;
        let table = self.lake.table(TableName::Conversations);
        for file in table.files().await? {
            if file.date() < first_day {
                continue;
            }
            let mut batches = table.read_file(&file, &["conversation_id", "closed_at"])?;
            while let Some(batch) = batches.next().await.transpose()? {
                let ids = batch.column(0).as_string::<i32>();
                let times = batch.column(1).as_primitive::<TimestampMicrosecondType>();
                let mut recent = self.recent();
                for row in 0..batch.num_rows() {
                    if times.is_valid(row) {
                        recent.note(ids.value(row), times.value(row), now.as_microsecond());
                    }
                }
            }
        }
        Ok(())
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<(i32, String), Turn>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn enrich(&self, task: &Task) -> Outcome<Ready> {
        let close = &task.close;
        let started = tokio::time::Instant::now();
        loop {
            match self.enricher.enrich(close).await {
                Ok(enriched) => {
                    self.api_up.up();
                    let completeness = enriched.conversation.completeness.as_str();
                    metrics::counter!(telemetry::CONVERSATIONS_ENRICHED, "completeness" => completeness)
                        .increment(1);
                    metrics::histogram!(telemetry::ENRICH_SECONDS).record(started.elapsed());
                    return Outcome::Row(Ready {
                        enriched,
                        cause: task.cause,
                        received_at: close.received_at,
                    });
                }
                Err(EnrichError::Later(error)) => {
                    self.api_up
                        .down(format!("{:#}", anyhow::Error::from(error)));
                    tokio::time::sleep(OUTAGE_PAUSE).await;
                }
                Err(EnrichError::Stop(error)) => {
                    let error = anyhow::Error::from(error);
                    return Outcome::Stop(format!(
                        "{error:#}; the conversation stays in the topic"
                    ));
                }
                Err(EnrichError::Dead {
                    reason,
                    attempts,
                    response,
                    ..
                }) => {
                    return Outcome::Dead(Dead {
                        reason,
                        attempts,
                        response,
                    });
                }
            }
        }
    }

    /// Writes a batch: drops what the lake has at least as whole, replaces what is poorer.
    async fn write(
        &self,
        rows: Vec<Ready>,
        positions: Vec<Position>,
    ) -> Result<Vec<Ready>, LakeError> {
        let mut batch = richest(rows);
        let mut races = 0;
        loop {
            let ids: Vec<String> = batch.keys().cloned().collect();
            let seen = Seen {
                communications: self.lake.table(TableName::Communications).version(),
                conversations: self.lake.table(TableName::Conversations).version(),
            };
            let known = self.lake.ledgers(&ids).await?;
            batch.retain(|id, ready| {
                let new = &ready.enriched.conversation;
                known
                    .get(id)
                    .is_none_or(|have| ready.cause.replaces(new, have))
            });
            match self.commit_both(&batch, known, &positions, seen).await {
                Ok(()) => return Ok(batch.into_values().collect()),
                Err(LakeError::Raced { .. }) if races < RACES_PER_BATCH => races += 1,
                Err(error) => return Err(error),
            }
        }
    }

    async fn commit_both(
        &self,
        batch: &BTreeMap<String, Ready>,
        known: HashMap<String, Ledger>,
        positions: &[Position],
        seen: Seen,
    ) -> Result<(), LakeError> {
        let communications = batch
            .values()
            .flat_map(|ready| &ready.enriched.communications);
        let commit = Commit {
            rows: vec![table::communications_batch(communications)],
            replace: batch.keys().cloned().collect(),
            positions: self.communications_positions(positions),
            seen: Some(seen.communications),
            ..Commit::default()
        };
        self.lake
            .table(TableName::Communications)
            .commit(&commit)
            .await?;
        self.communications_stand_at(positions);

        let conversations = batch.values().map(|ready| &ready.enriched.conversation);
        let replace: BTreeSet<String> = known
            .into_keys()
            .filter(|id| batch.contains_key(id))
            .collect();
        let commit = Commit {
            rows: vec![table::conversations_batch(conversations)],
            replace,
            positions: positions.to_vec(),
            seen: Some(seen.conversations),
            ..Commit::default()
        };
        self.lake
            .table(TableName::Conversations)
            .commit(&commit)
            .await?;
        Ok(())
    }

    fn communications_stand_at(&self, positions: &[Position]) {
        let mut stands = self
            .communications_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for position in positions {
            let at = stands.entry(position.app.clone()).or_default();
            *at = (*at).max(Some(position.to));
        }
    }

    /// The same moves from where `communications` stands. One that is ahead never goes back: its rows
    /// are replaced, and its position stays.
    fn communications_positions(&self, positions: &[Position]) -> Vec<Position> {
        let stands = self
            .communications_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        positions
            .iter()
            .map(|position| Position {
                from: stands.get(&position.app).copied().flatten(),
                ..position.clone()
            })
            .filter(|position| position.from.is_none_or(|from| from < position.to))
            .collect()
    }
}

impl EnricherWork {
    fn measure(&self, written: &[Ready]) {
        let mut histogram = self
            .close_to_queryable_ms
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for ready in written.iter().filter(|ready| ready.cause == Cause::Close) {
            let took = since(ready.received_at, self.clock);
            metrics::histogram!(telemetry::CLOSE_TO_QUERYABLE_SECONDS).record(took);
            // It grows as needed; an hour-long wait is a value as any other.
            let _ = histogram.record(took.as_millis().try_into().unwrap_or(u64::MAX));
        }
    }
}

/// Versions of the two tables from before a batch was looked up.
#[derive(Clone, Copy)]
struct Seen {
    communications: u64,
    conversations: u64,
}

/// One version of each conversation, the most complete, the latest among equals, for the strongest cause.
fn richest(rows: Vec<Ready>) -> BTreeMap<String, Ready> {
    let mut batch: BTreeMap<String, Ready> = BTreeMap::new();
    for mut ready in rows {
        let conversation = &ready.enriched.conversation;
        let id = conversation.conversation_id.clone();
        if let Some(have) = batch.get_mut(&id) {
            let cause = have.cause.max(ready.cause);
            have.cause = cause;
            ready.cause = cause;
            if have.enriched.conversation.completeness > conversation.completeness {
                continue;
            }
        }
        batch.insert(id, ready);
    }
    batch
}

fn count_recheck(cause: &'static str) {
    metrics::counter!(telemetry::CONVERSATIONS_RECHECKED, "cause" => cause).increment(1);
}

impl Work for EnricherWork {
    type Row = Ready;

    fn stage(&self) -> &'static str {
        "enrich"
    }

    fn table(&self) -> &Table {
        self.lake.table(TableName::Conversations)
    }

    async fn assign(&self, apps: Vec<String>) -> Result<Vec<Option<i64>>, LakeError> {
        let communications = self
            .lake
            .table(TableName::Communications)
            .positions(&apps)
            .await?;
        let conversations = self
            .lake
            .table(TableName::Conversations)
            .positions(&apps)
            .await?;
        self.learn_recent().await?;
        let mut stands = self
            .communications_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        stands.extend(apps.into_iter().zip(communications));
        Ok(conversations)
    }

    fn forget(&self, partitions: &[i32]) {
        self.pending()
            .retain(|(partition, _), _| !partitions.contains(partition));
    }

    fn process(self: Arc<Self>, record: Arc<Record>) -> BoxFuture<'static, Outcome<Ready>> {
        async move {
            match self.task(&record) {
                Some(task) => self.fetch(task).await,
                None => Outcome::Nothing,
            }
        }
        .boxed()
    }

    fn weight(row: &Ready) -> usize {
        row.enriched.bytes()
    }

    fn commit(
        self: Arc<Self>,
        rows: Vec<Ready>,
        positions: Vec<Position>,
    ) -> BoxFuture<'static, Result<(), LakeError>> {
        async move {
            let done: HashSet<_> = rows.iter().map(Ready::key).collect();
            let written = self.write(rows, positions).await?;
            self.pending().retain(|key, _| !done.contains(key));
            self.measure(&written);
            Ok(())
        }
        .boxed()
    }
}
