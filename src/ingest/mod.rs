//! The consumer's control flow: assign, order, bound, flush, commit, revoke, stop. Written once.
//!
//! Owns when something happens; what a batch *becomes* is its parameter, a [`Work`]: [`archive::Archive`]
//! keeps every callback as a row of `events`, [`enricher::EnricherWork`] fetches closed conversations. They
//! run as two consumer groups, so that an outage of the API never holds back the raw record.
//!
//! Guarantees:
//! - A position passes a record only when its row, or its dead letter, is durable: records complete in any
//!   order and leave in theirs ([`partition`]).
//! - The lake's position is the truth; the group's offset is a hint for other tools.
//! - A revoked partition's work is discarded before the revoke is acknowledged; what comes back late
//!   belongs to a generation that is gone.
//! - Bounded: records by bytes in flight (`topic` pauses partitions), work at once by
//!   [`Settings::concurrency`], finished rows by [`Settings::flush_bytes`].
//!
//! - A topic that was created anew under its old name is recognised ([`identity`]) and not read.
//!
//! Fails with [`IngestError`]: nothing is skipped to go on, but for a [`Gap`] that the operator names. A refused commit means another owner; the group
//! is joined anew, [`REFUSALS_IN_A_ROW`] times at most.

pub mod archive;
mod cause;
pub mod enricher;
mod identity;
mod membership;
pub mod partition;
mod recent;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;

use crate::api::ResponseStart;
use crate::lake::{LakeError, Position, Table};
use crate::lifecycle::Stop;
use crate::telemetry;
use crate::topic::{self, Consumer, Gap, Publisher, Record, Topics};
use membership::{Ended, Loop};

/// Commits refused one after the other before the process gives up: two processes fighting over one lake
/// must be seen, not hidden.
pub const REFUSALS_IN_A_ROW: u32 = 5;

/// How one group consumes.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Kafka's group id.
    pub group: String,
    /// Cluster id, part of every position's name.
    pub cluster: String,
    /// Topics.
    pub topics: Topics,
    /// Longest time a row waits for its commit.
    pub flush_interval: Duration,
    /// Rows that make a batch.
    pub flush_rows: usize,
    /// Bytes of rows that make a batch; twice this may wait or be written.
    pub flush_bytes: usize,
    /// Bytes of records read and not yet durable.
    pub max_in_flight_bytes: u32,
    /// Records worked on at once.
    pub concurrency: usize,
    /// Records that are gone from the topic and may be passed over.
    pub accepted_gaps: Vec<Gap>,
}

impl Settings {
    fn app(&self, partition: i32) -> String {
        position_name(&self.group, &self.cluster, &self.topics.events, partition)
    }

    /// Where to read on from, given the lake's position.
    fn start(&self, partition: i32, position: Option<i64>) -> Option<i64> {
        let accepted = |gap: &&Gap| gap.partition == partition && Some(gap.from) == position;
        match self.accepted_gaps.iter().find(accepted) {
            Some(gap) => Some(gap.to),
            None => position,
        }
    }
}

/// The name of a partition's position in the Delta log: a recreated cluster starts anew.
pub fn position_name(group: &str, cluster: &str, topic: &str, partition: i32) -> String {
    format!("convolake/{group}/{cluster}/{topic}/{partition}")
}

/// What a record becomes, and how a batch is made durable.
pub trait Work: Send + Sync + 'static {
    /// What one record becomes.
    type Row: Send + 'static;

    /// The stage's name, for dead letters and metrics.
    fn stage(&self) -> &'static str;

    /// The table whose positions are where reading goes on.
    fn table(&self) -> &Table;

    /// Reads the lake's positions for partitions that were just assigned.
    fn assign(
        &self,
        apps: Vec<String>,
    ) -> impl Future<Output = Result<Vec<Option<i64>>, LakeError>> + Send;

    /// Forgets everything about records of these partitions that are not durable yet.
    fn forget(&self, partitions: &[i32]);

    /// Works on one record. May take long; never fails silently.
    fn process(self: Arc<Self>, record: Arc<Record>) -> BoxFuture<'static, Outcome<Self::Row>>;

    /// Bytes that a row holds in memory, about.
    fn weight(row: &Self::Row) -> usize;

    /// Makes rows and positions durable together; the positions start where the assignment found the lake.
    fn commit(
        self: Arc<Self>,
        rows: Vec<Self::Row>,
        positions: Vec<Position>,
    ) -> BoxFuture<'static, Result<(), LakeError>>;
}

/// What came of one record.
#[derive(Debug)]
pub enum Outcome<Row> {
    /// A row to commit.
    Row(Row),
    /// Nothing to keep: the position may pass.
    Nothing,
    /// It can never become a row: a dead letter, then the position may pass.
    Dead(Dead),
    /// The process cannot go on (credentials refused): nothing is passed.
    Stop(String),
}

/// Why a record is set aside.
#[derive(Debug)]
pub struct Dead {
    /// A stable word.
    pub reason: &'static str,
    /// Tries it got.
    pub attempts: u32,
    /// The start of the API's answer.
    pub response: Option<ResponseStart>,
}

/// Why consuming ended.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// Kafka said something that cannot be waited out.
    #[error("{group}: Kafka")]
    Topic {
        /// The group.
        group: String,
        /// What it said.
        #[source]
        source: Box<topic::Error>,
    },
    /// The lake could not be read or written.
    #[error("{group}: lake")]
    Lake {
        /// The group.
        group: String,
        /// What happened.
        #[source]
        source: LakeError,
    },
    /// Another topic of the same name.
    #[error(
        "{group}: topic {topic} was deleted and created anew: the lake's positions mean records of the topic before. Start `convolake ingest` with another --group, which reads the topic from its beginning and writes no whole conversation again, and find those that closed in lost records with `convolake reconcile --once`"
    )]
    Recreated {
        /// The group.
        group: String,
        /// The topic.
        topic: String,
    },
    /// Commits refused again and again.
    #[error(
        "{group}: {count} commits in a row were refused, because another process owns the positions; stop the other one, or give this one its own --group"
    )]
    Fenced {
        /// The group.
        group: String,
        /// How many.
        count: u32,
    },
    /// The API refused our credentials, or similar.
    #[error("{group}: {reason}")]
    Stopped {
        /// The group.
        group: String,
        /// Why, and what to do.
        reason: String,
    },
}

/// How far a group is, shared with whoever watches (metrics, `dev`).
#[derive(Debug, Default)]
pub struct Progress {
    read: AtomicU64,
    passed: AtomicU64,
}

impl Progress {
    /// Records read.
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Records whose row or dead letter is durable, or that need none.
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }
}

/// Consumes until `stop`; joins the group anew after a refused commit.
///
/// # Errors
/// [`IngestError`], as the file's header says.
pub async fn run<W: Work>(
    work: Arc<W>,
    kafka: &topic::Settings,
    publisher: Publisher,
    settings: Settings,
    progress: Arc<Progress>,
    ready: telemetry::Dependency,
    stop: Stop,
) -> Result<(), IngestError> {
    let mut refusals = 0;
    loop {
        if identity::check(&*work, kafka, &settings, &ready, &stop).await?
            == identity::Seen::Stopped
        {
            return Ok(());
        }
        let group = settings.group.clone();
        let topic_error = |source| IngestError::Topic {
            group: group.clone(),
            source: Box::new(source),
        };
        let consumer = Consumer::subscribe(
            kafka,
            &settings.group,
            &settings.topics.events,
            settings.max_in_flight_bytes,
        )
        .map_err(topic_error)?;
        let mut group_loop = Loop::new(&work, consumer, &publisher, &settings, &progress, &ready);
        let ended = group_loop.run(&stop).await;
        let committed_before = group_loop.commits > 0;
        work.forget(&group_loop.partitions());
        let closed = group_loop.consumer.close(CLOSE_DEADLINE).await;
        if let Err(error) = closed {
            // Everything that was to be kept is in the lake by now.
            tracing::warn!(group, %error, "the group was not left in time");
        }
        match ended? {
            Ended::Stopped => return Ok(()),
            Ended::Refused if stop.is_requested() => return Ok(()),
            Ended::Refused => {
                refusals = if committed_before { 1 } else { refusals + 1 };
                if refusals > REFUSALS_IN_A_ROW {
                    let count = refusals - 1;
                    return Err(IngestError::Fenced { group, count });
                }
                tracing::warn!(
                    group,
                    refusals,
                    "a commit was refused: another process owns these positions; joining the group anew"
                );
            }
        }
    }
}

/// Longest time that leaving the group may take.
const CLOSE_DEADLINE: Duration = Duration::from_millis(2_500);
