//! One membership of a consumer group, from joining to leaving.
//!
//! Owns the order of everything that happens to a record between `topic` and the lake: reserve a place,
//! work, fill the place, take what is finished in order, commit, let go. Decides nothing about content.
//!
//! Guarantees those of [`super`]; fails with [`IngestError`] and passes nothing over.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, Interval};

use super::partition::{Partition, Slot};
use super::{Dead, IngestError, Outcome, Progress, Settings, Work};
use crate::lake::{LakeError, Position};
use crate::lifecycle::Stop;
use crate::telemetry;
use crate::topic::{self, Consumer, DeadLetter, Event, Publisher, Record, Topics, Watermarks};

/// Longest time that work in progress is waited for after the stop; then it is left to the next owner.
const DRAIN_WORK: Duration = Duration::from_secs(2);

/// Longest time from the stop to the last commit.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// Places of one partition, beyond which no work is started: what waits behind one that takes long.
const MAX_SLOTS: usize = 100_000;

/// Rows that had to wait at a flush, because an earlier record was unfinished, get this second chance soon.
const FOLLOW_UP: Duration = Duration::from_secs(1);

/// A position that moved without rows is committed this often, so that it never falls behind the topic's
/// retention.
const IDLE_COMMIT_INTERVAL: Duration = Duration::from_secs(600);

/// How often the ends of the partitions are asked for.
const LAG_INTERVAL: Duration = Duration::from_secs(10);

/// Pause between tries to publish a dead letter; the record's offset is held meanwhile.
const DEAD_LETTER_PAUSE: Duration = Duration::from_secs(1);

/// How a membership ended well.
pub(super) enum Ended {
    /// By the stop.
    Stopped,
    /// By a commit that another owner's positions refused.
    Refused,
}

/// A finished piece of work: which slot it belongs to, and what came of it.
struct Finished<Row> {
    partition: i32,
    generation: u64,
    offset: i64,
    outcome: Outcome<Row>,
}

/// One commit on its way.
struct Flush {
    done: BoxFuture<'static, Result<(), LakeError>>,
    /// Partition, generation, next offset, records covered.
    covers: Vec<(i32, u64, i64, u64)>,
    weight: usize,
}

/// One membership of the group.
pub(super) struct Loop<'a, W: Work> {
    work: &'a Arc<W>,
    pub(super) consumer: Consumer,
    publisher: &'a Publisher,
    settings: &'a Settings,
    progress: &'a Progress,
    ready: &'a telemetry::Dependency,
    partitions: BTreeMap<i32, Partition<W::Row>>,
    /// Read, not started: bounded by the bytes in flight that `topic` grants.
    waiting: VecDeque<Record>,
    working: FuturesUnordered<BoxFuture<'static, Finished<W::Row>>>,
    flush: Option<Flush>,
    next_generation: u64,
    /// Weight of finished rows that are not being written.
    finished_weight: usize,
    flush_at: Option<Instant>,
    /// The next flush is the second chance of rows that the last one had to leave.
    follow_up: bool,
    last_commit: Instant,
    /// The ends of the partitions, being asked for.
    watermarks: Option<BoxFuture<'static, Result<Vec<Watermarks>, topic::Error>>>,
    lag_ticks: Interval,
    /// Commits of this membership.
    pub(super) commits: u64,
}

impl<'a, W: Work> Loop<'a, W> {
    pub(super) fn new(
        work: &'a Arc<W>,
        consumer: Consumer,
        publisher: &'a Publisher,
        settings: &'a Settings,
        progress: &'a Progress,
        ready: &'a telemetry::Dependency,
    ) -> Self {
        Loop {
            work,
            consumer,
            publisher,
            settings,
            progress,
            ready,
            partitions: BTreeMap::new(),
            waiting: VecDeque::new(),
            working: FuturesUnordered::new(),
            flush: None,
            next_generation: 0,
            finished_weight: 0,
            flush_at: None,
            follow_up: false,
            last_commit: Instant::now(),
            watermarks: None,
            lag_ticks: tokio::time::interval(LAG_INTERVAL),
            commits: 0,
        }
    }

    /// Consumes until the stop or a refused commit.
    pub(super) async fn run(&mut self, stop: &Stop) -> Result<Ended, IngestError> {
        self.ready.up();
        let idle_tick = IDLE_COMMIT_INTERVAL;
        loop {
            self.start_waiting();
            let wake_at = self
                .flush_at
                .unwrap_or_else(|| self.last_commit + idle_tick);
            // In this order: a stop is seen at once; a commit's end frees memory before more is taken in.
            tokio::select! {
                biased;
                () = stop.requested() => return self.drain().await,
                result = finish(&mut self.flush) => {
                    if let Some(ended) = self.flushed(result)? { return Ok(ended) }
                }
                Some(finished) = self.working.next() => self.settle(finished)?,
                () = tokio::time::sleep_until(wake_at), if self.flush.is_none() => self.start_flush(),
                marks = answer(&mut self.watermarks) => self.measure_lag(marks),
                _ = self.lag_ticks.tick(), if self.watermarks.is_none() => {
                    self.watermarks = Some(Box::pin(self.consumer.watermarks()));
                }
                event = self.consumer.next() => {
                    if let Some(ended) = self.handle(event).await? { return Ok(ended) }
                }
            }
            if self.flush.is_none() && self.batch_is_full() {
                self.start_flush();
            }
        }
    }

    async fn handle(&mut self, event: Event) -> Result<Option<Ended>, IngestError> {
        match event {
            Event::Record(record) => {
                if let Some(partition) = self.partitions.get_mut(&record.partition) {
                    self.progress.read.fetch_add(1, Ordering::Relaxed);
                    partition.push(Slot::new(record.offset));
                    self.waiting.push_back(record);
                }
            }
            Event::Assigned { partitions, reply } => {
                let apps: Vec<String> = partitions.iter().map(|p| self.settings.app(*p)).collect();
                let positions = self
                    .work
                    .assign(apps.clone())
                    .await
                    .map_err(|e| self.lake_error(e))?;
                let mut starts = Vec::with_capacity(partitions.len());
                for ((partition, position), app) in partitions.into_iter().zip(positions).zip(apps)
                {
                    let start = self.settings.start(partition, position);
                    if start != position {
                        tracing::warn!(
                            group = self.settings.group,
                            partition,
                            from = position,
                            to = start,
                            "passing over records that are gone, as --accept-gap says"
                        );
                    }
                    self.next_generation += 1;
                    let owned = Partition::behind(app, self.next_generation, position, start);
                    self.partitions.insert(partition, owned);
                    starts.push((partition, start));
                }
                tracing::info!(
                    group = self.settings.group,
                    partitions = starts.len(),
                    "assigned: reading on from the lake's positions"
                );
                reply.start_at(starts);
            }
            Event::Revoked {
                partitions,
                lost,
                reply,
            } => {
                // What was lost may have another owner already, who reads it again.
                if !lost && let Some(ended) = self.flush_everything_finished().await? {
                    return Ok(Some(ended));
                }
                self.revoke(&partitions, reply);
            }
            Event::Unreachable(reason) => {
                tracing::warn!(
                    group = self.settings.group,
                    reason,
                    "Kafka is away; waiting"
                );
            }
            Event::Failed(source) => {
                return Err(IngestError::Topic {
                    group: self.settings.group.clone(),
                    source: Box::new(source),
                });
            }
        }
        Ok(None)
    }

    /// Forgets all work of the leaving partitions, then lets them go.
    fn revoke(&mut self, partitions: &[i32], reply: topic::RevokeReply) {
        for partition in partitions {
            if let Some(gone) = self.partitions.remove(partition) {
                self.finished_weight -= gone.finished_weight();
            }
        }
        self.waiting
            .retain(|record| !partitions.contains(&record.partition));
        self.work.forget(partitions);
        tracing::info!(
            group = self.settings.group,
            partitions = partitions.len(),
            "revoked: unfinished work discarded"
        );
        reply.done();
    }

    /// Starts work while there is room for its result.
    fn start_waiting(&mut self) {
        let writing = self.flush.as_ref().map_or(0, |flush| flush.weight);
        let crowded = self.partitions.values().any(|it| it.slots() > MAX_SLOTS);
        if crowded && !self.working.is_empty() {
            return;
        }
        while self.working.len() < self.settings.concurrency
            && self.finished_weight + writing < 2 * self.settings.flush_bytes
        {
            let Some(record) = self.waiting.pop_front().map(Arc::new) else {
                break;
            };
            let Some(partition) = self.partitions.get_mut(&record.partition) else {
                continue;
            };
            partition.hold(Arc::clone(&record));
            let (number, generation, offset) =
                (record.partition, partition.generation(), record.offset);
            let work = Arc::clone(self.work);
            let publisher = self.publisher.clone();
            let topics = self.settings.topics.clone();
            let ready = self.ready.clone();
            self.working.push(Box::pin(async move {
                let stage = work.stage();
                let outcome = work.process(Arc::clone(&record)).await;
                if let Outcome::Dead(dead) = &outcome {
                    set_aside(&publisher, &topics, &record, dead, stage, &ready).await;
                }
                Finished {
                    partition: number,
                    generation,
                    offset,
                    outcome,
                }
            }));
        }
    }

    /// Puts a result into its slot; a result of a generation that is gone is dropped.
    fn settle(&mut self, finished: Finished<W::Row>) -> Result<(), IngestError> {
        let partition = self
            .partitions
            .get_mut(&finished.partition)
            .filter(|partition| partition.generation() == finished.generation);
        let Some(partition) = partition else {
            return Ok(());
        };
        let row = match finished.outcome {
            Outcome::Row(row) => {
                let weight = W::weight(&row);
                Some((row, weight))
            }
            Outcome::Nothing => None,
            Outcome::Dead(_) => {
                partition.set_aside(finished.offset);
                None
            }
            Outcome::Stop(reason) => {
                return Err(IngestError::Stopped {
                    group: self.settings.group.clone(),
                    reason,
                });
            }
        };
        if let Some((_, weight)) = &row {
            self.finished_weight += weight;
        }
        if row.is_some() || partition.has_letter() {
            self.flush_at
                .get_or_insert_with(|| Instant::now() + self.settings.flush_interval);
        }
        let passed = partition.finish(finished.offset, row);
        self.progress.passed.fetch_add(passed, Ordering::Relaxed);
        Ok(())
    }

    fn batch_is_full(&self) -> bool {
        let sum =
            |of: fn(&Partition<W::Row>) -> usize| self.partitions.values().map(of).sum::<usize>();
        let rows = sum(Partition::ready_rows);
        let in_flight_limit = self.settings.max_in_flight_bytes as usize;
        rows > 0
            && (rows >= self.settings.flush_rows
                || sum(Partition::ready_weight) >= self.settings.flush_bytes
                || sum(Partition::ready_held_bytes) >= in_flight_limit / 2)
    }

    /// Takes what is finished in order and starts its commit. Positions without rows or
    /// dead letters wait for the idle interval.
    fn start_flush(&mut self) {
        let idle_is_over = self.last_commit.elapsed() >= IDLE_COMMIT_INTERVAL;
        if idle_is_over || self.partitions.values().any(Partition::is_due) {
            self.take_and_commit();
        }
        self.rearm();
    }

    fn take_and_commit(&mut self) {
        let mut rows = Vec::new();
        let mut positions = Vec::new();
        let mut covers = Vec::new();
        let mut weight = 0;
        for (number, partition) in &mut self.partitions {
            let from = partition.committed_at();
            if let Some(taken) = partition.take_ready() {
                let app = partition.app().to_owned();
                positions.push(Position {
                    app,
                    from,
                    to: taken.next_offset,
                });
                covers.push((
                    *number,
                    partition.generation(),
                    taken.next_offset,
                    taken.records,
                ));
                rows.extend(taken.rows);
                weight += taken.weight;
            }
        }
        self.last_commit = Instant::now();
        if positions.is_empty() {
            return;
        }
        self.finished_weight -= weight;
        let done = Arc::clone(self.work).commit(rows, positions);
        self.flush = Some(Flush {
            done,
            covers,
            weight,
        });
    }

    /// Finished rows and dead letters that wait behind an unfinished record keep a deadline: soon after a flush that had to
    /// leave them, once, so that few commits are small; then the flush interval again.
    fn rearm(&mut self) {
        let left = self.finished_weight > 0 || self.partitions.values().any(Partition::has_letter);
        self.follow_up = left && !self.follow_up;
        let interval = self.settings.flush_interval;
        let wait = if self.follow_up {
            FOLLOW_UP.min(interval)
        } else {
            interval
        };
        self.flush_at = left.then(|| Instant::now() + wait);
    }

    fn flushed(&mut self, result: Result<(), LakeError>) -> Result<Option<Ended>, IngestError> {
        let flush = self.flush.take().expect("only a flush in progress ends");
        match result {
            Ok(()) => {}
            Err(LakeError::Refused { .. }) => return Ok(Some(Ended::Refused)),
            Err(other) => return Err(self.lake_error(other)),
        }
        self.commits += 1;
        let mut hints = Vec::with_capacity(flush.covers.len());
        for (number, generation, next_offset, records) in flush.covers {
            let partition = self.partitions.get_mut(&number);
            if let Some(partition) = partition.filter(|p| p.generation() == generation) {
                partition.committed(next_offset);
                self.progress.passed.fetch_add(records, Ordering::Relaxed);
                hints.push((number, next_offset));
            }
        }
        self.consumer.commit_hint(&hints);
        Ok(None)
    }

    async fn flush_everything_finished(&mut self) -> Result<Option<Ended>, IngestError> {
        for start in [false, true] {
            if start && self.partitions.values().any(Partition::is_due) {
                self.start_flush();
            }
            if self.flush.is_some() {
                let result = finish(&mut self.flush).await;
                if let Some(ended) = self.flushed(result)? {
                    return Ok(Some(ended));
                }
            }
        }
        Ok(None)
    }

    /// The stop: nothing new is started, work in progress may end, what is finished is committed.
    async fn drain(&mut self) -> Result<Ended, IngestError> {
        self.waiting.clear();
        match tokio::time::timeout(DRAIN_LIMIT, self.finish_up()).await {
            Ok(ended) => ended,
            Err(_) => {
                // A commit on its way goes on or not; the next owner reads on from wherever it got.
                tracing::warn!(
                    group = self.settings.group,
                    "the last commit was not awaited"
                );
                Ok(Ended::Stopped)
            }
        }
    }

    async fn finish_up(&mut self) -> Result<Ended, IngestError> {
        let work_until = Instant::now() + DRAIN_WORK;
        while !self.working.is_empty() {
            tokio::select! {
                biased;
                result = finish(&mut self.flush) => {
                    if let Some(ended) = self.flushed(result)? { return Ok(ended) }
                }
                Some(finished) = self.working.next() => self.settle(finished)?,
                () = tokio::time::sleep_until(work_until) => break,
            }
        }
        let left = self.working.len();
        if left > 0 {
            tracing::info!(
                group = self.settings.group,
                left,
                "stopping before these were done; they are read again at the next start"
            );
        }
        let ended = self.flush_everything_finished().await?;
        Ok(ended.unwrap_or(Ended::Stopped))
    }

    /// Records between the lake's position and the end of the topic. Brokers that do not answer are
    /// reported by the consumer itself; the gauge then keeps its last value.
    fn measure_lag(&mut self, marks: Result<Vec<Watermarks>, topic::Error>) {
        self.watermarks = None;
        let Ok(marks) = marks else { return };
        let behind: i64 = marks
            .iter()
            .filter_map(|marks| {
                let stands = self.partitions.get(&marks.partition)?.stands();
                Some(marks.high - stands.unwrap_or(marks.low).max(marks.low))
            })
            .sum();
        let group = self.settings.group.clone();
        metrics::gauge!(telemetry::CONSUMER_LAG, "group" => group).set(behind.max(0) as f64);
    }

    /// The partitions that are ours.
    pub(super) fn partitions(&self) -> Vec<i32> {
        self.partitions.keys().copied().collect()
    }

    fn lake_error(&self, source: LakeError) -> IngestError {
        IngestError::Lake {
            group: self.settings.group.clone(),
            source,
        }
    }
}

/// Ends when the brokers have answered; never, where nothing was asked.
async fn answer<T>(asked: &mut Option<BoxFuture<'static, T>>) -> T {
    match asked {
        Some(asked) => asked.await,
        None => std::future::pending().await,
    }
}

/// Ends when the flush ends; never, where there is none.
async fn finish(flush: &mut Option<Flush>) -> Result<(), LakeError> {
    match flush {
        Some(flush) => (&mut flush.done).await,
        None => std::future::pending().await,
    }
}

/// Publishes the dead letter, however long it takes: an undeliverable one holds its record's offset.
async fn set_aside(
    publisher: &Publisher,
    topics: &Topics,
    record: &Record,
    dead: &Dead,
    stage: &'static str,
    ready: &telemetry::Dependency,
) {
    let letter = DeadLetter {
        reason: dead.reason,
        stage,
        attempts: dead.attempts,
        response: dead.response.as_deref(),
    };
    tracing::error!(
        stage,
        reason = dead.reason,
        partition = record.partition,
        offset = record.offset,
        "record set aside as a dead letter"
    );
    while let Err(error) = publisher.dead_letter(topics, record, &letter).await {
        ready.down(format!(
            "a dead letter cannot be published, and holds its offset: {error}"
        ));
        tokio::time::sleep(DEAD_LETTER_PAUSE).await;
    }
    ready.up();
}
