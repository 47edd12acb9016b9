//! Both groups on the embedded cluster, the emulator's REST and a lake in a folder.

mod gaps;
mod groups;

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::AsArray;
use tokio::task::JoinHandle;

use super::archive::Archive;
use super::enricher::EnricherWork;
use super::{IngestError, Progress, Settings, Work, run};
use crate::api::{self, Api};
use crate::emulator::{DEV_ACCOUNT_SID, DEV_AUTH_TOKEN, Emulator, Options};
use crate::enrich::{Close, Enricher, Limits};
use crate::lake::{Access, Commit, Lake, Position};
use crate::lifecycle::{Clock, Stop};
use crate::table::{self, TableName};
use crate::telemetry::{Dependency, Readiness};
use crate::topic::{self, EmbeddedCluster, Message, Publisher, Topics};

/// Longest wait for anything here.
const PATIENCE: Duration = Duration::from_secs(60);
const CONVERSATIONS: u64 = 12;
const PARTITIONS: i32 = 1;

struct World {
    _folder: tempfile::TempDir,
    lake: Arc<Lake>,
    cluster: EmbeddedCluster,
    topics: Topics,
    publisher: Publisher,
    api: Api,
    emulator: Emulator,
    /// What the emulator closed.
    closed: Vec<String>,
}

/// A group that runs in the background.
struct Group {
    stop: Stop,
    progress: Arc<Progress>,
    task: JoinHandle<Result<(), IngestError>>,
}

impl Group {
    async fn passes(&self, records: u64) {
        until("records passed", || self.progress.passed() >= records).await;
    }

    /// Ends by itself, with this error.
    async fn fails(self) -> IngestError {
        let ended = tokio::time::timeout(PATIENCE, self.task).await;
        ended.unwrap().unwrap().unwrap_err()
    }

    async fn end(self) -> Result<(), IngestError> {
        self.stop.request();
        tokio::time::timeout(PATIENCE, self.task)
            .await
            .unwrap()
            .unwrap()
    }
}

impl World {
    async fn start() -> World {
        World::with(PARTITIONS, &Topics::named("convolake.events").all()).await
    }

    /// With these topics only.
    async fn with(partitions: i32, existing: &[&str]) -> World {
        let folder = tempfile::tempdir().unwrap();
        let location = folder.path().join("lake");
        let lake = Lake::open(location.to_str().unwrap(), Access::Create)
            .await
            .unwrap();
        let topics = Topics::named("convolake.events");
        let cluster = EmbeddedCluster::start(partitions, existing).unwrap();
        let publisher = Publisher::start(&cluster.settings()).unwrap();
        let clock = Clock::system();
        let options = Options {
            conversations: CONVERSATIONS,
            ..Options::new(3, clock.now())
        };
        let emulator = Emulator::start(options, clock, Stop::new()).unwrap();
        tokio::time::timeout(PATIENCE, emulator.traffic_done())
            .await
            .unwrap();
        let origin = format!("http://{}", emulator.address()).parse().unwrap();
        let credentials = api::Credentials::new(DEV_ACCOUNT_SID, DEV_AUTH_TOKEN);
        let mut settings = api::Settings::new(origin, credentials);
        settings.requests_per_second = NonZeroU32::new(100_000).unwrap();
        let api = Api::new(settings, clock).unwrap();
        let listed = api
            .closed_conversations_page(None)
            .await
            .unwrap()
            .value
            .items;
        let closed: Vec<String> = listed.into_iter().filter_map(|it| it.id).collect();
        assert_eq!(closed.len() as u64, CONVERSATIONS);
        World {
            _folder: folder,
            lake: Arc::new(lake),
            cluster,
            topics,
            publisher,
            api,
            emulator,
            closed,
        }
    }

    async fn publish(&self, key: &str, value: &[u8]) {
        let message = Message {
            topic: &self.topics.events,
            key: Some(key.as_bytes()),
            value,
            headers: &[],
        };
        self.publisher.publish(&message).await.unwrap();
    }

    async fn publish_closes(&self) {
        for id in &self.closed {
            self.publish(id, close(id).as_bytes()).await;
        }
    }

    fn enricher(&self) -> Arc<EnricherWork> {
        self.enricher_watched(Readiness::new().dependency("api"))
    }

    fn enricher_watched(&self, api_up: Dependency) -> Arc<EnricherWork> {
        let clock = Clock::system();
        let enricher = Enricher::new(self.api.clone(), clock, Limits::default());
        let lake = Arc::clone(&self.lake);
        Arc::new(EnricherWork::new(
            enricher,
            lake,
            clock,
            Duration::ZERO,
            Duration::from_secs(86_400),
            api_up,
        ))
    }

    fn archive(&self) -> Arc<Archive> {
        Arc::new(Archive::new(Arc::clone(&self.lake), Clock::system()))
    }

    fn settings(&self, group: &str) -> Settings {
        Settings {
            group: group.to_owned(),
            cluster: self.cluster.cluster_id().to_owned(),
            topics: self.topics.clone(),
            flush_interval: Duration::from_millis(50),
            flush_rows: 1_000,
            flush_bytes: 1 << 20,
            max_in_flight_bytes: 1 << 20,
            concurrency: 4,
            accepted_gaps: Vec::new(),
        }
    }

    fn spawn<W: Work>(&self, work: Arc<W>, group: &str) -> Group {
        self.spawn_with(work, &self.cluster.settings(), self.settings(group))
    }

    fn spawn_with<W: Work>(
        &self,
        work: Arc<W>,
        kafka: &topic::Settings,
        settings: Settings,
    ) -> Group {
        let (stop, progress) = (Stop::new(), Arc::<Progress>::default());
        let (kafka, publisher) = (kafka.clone(), self.publisher.clone());
        let (watched, stopped) = (Arc::clone(&progress), stop.clone());
        let ready = Readiness::new().dependency("group");
        let task = tokio::spawn(async move {
            run(work, &kafka, publisher, settings, watched, ready, stopped).await
        });
        Group {
            stop,
            progress,
            task,
        }
    }

    async fn ids(&self, table: TableName, column: &str) -> Vec<String> {
        let mut batches = self.lake.table(table).read(&[column]).await.unwrap();
        let mut ids = Vec::new();
        while let Some(batch) = batches.next().await.transpose().unwrap() {
            ids.extend(
                batch
                    .column(0)
                    .as_string::<i32>()
                    .iter()
                    .flatten()
                    .map(str::to_owned),
            );
        }
        ids
    }

    /// Every conversation that the API lists is there once and whole.
    async fn check_complete(&self) {
        let report = crate::verify::verify(&self.lake, &self.api).await.unwrap();
        assert!(report.is_complete(), "{report:?}");
        assert_eq!(report.complete, CONVERSATIONS);
        let ids = self
            .ids(TableName::Communications, "communication_id")
            .await;
        assert_eq!(
            ids.iter().collect::<BTreeSet<_>>().len(),
            ids.len(),
            "each row once"
        );
    }
}

fn close(id: &str) -> String {
    format!(
        r#"{{"eventType":"CONVERSATION_UPDATED","timestamp":"2026-11-22T10:00:00Z","data":{{"id":"{id}","status":"CLOSED"}}}}"#
    )
}

/// Files are read in no order of their writing.
fn sorted(mut rows: Vec<String>) -> Vec<String> {
    rows.sort();
    rows
}

/// A created event, which the archive keeps and the enricher passes over.
fn opened(id: &str) -> String {
    format!(r#"{{"eventType":"CONVERSATION_CREATED","data":{{"id":"{id}"}}}}"#)
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closes_that_come_twice_are_written_once() {
    let world = World::start().await;
    world.publish_closes().await;
    world.publish_closes().await;
    let group = world.spawn(world.enricher(), "g-enricher");
    group.passes(2 * CONVERSATIONS).await;
    // And once more after a restart, when only the lake remembers.
    group.end().await.unwrap();
    world.publish_closes().await;
    let group = world.spawn(world.enricher(), "g-enricher");
    group.passes(CONVERSATIONS).await;
    group.end().await.unwrap();
    world.check_complete().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_between_the_two_commits_is_repaired_by_replacement() {
    let world = World::start().await;
    world.publish_closes().await;
    // What a process leaves that died after its first commit: communications with their position, and
    // nothing in conversations.
    let enricher = Enricher::new(world.api.clone(), Clock::system(), Limits::default());
    let mut rows = Vec::new();
    for (offset, id) in world.closed.iter().enumerate() {
        let close = Close {
            conversation_id: id.clone(),
            account_id: None,
            closed_at: None,
            received_at: Clock::system().now(),
            partition: 0,
            offset: i64::try_from(offset).unwrap(),
        };
        rows.extend(enricher.enrich(&close).await.unwrap().communications);
    }
    let app = world.settings("g-enricher").app(0);
    let to = i64::try_from(CONVERSATIONS).unwrap();
    let commit = Commit {
        rows: vec![table::communications_batch(&rows)],
        positions: vec![Position {
            app,
            from: None,
            to,
        }],
        ..Commit::default()
    };
    world
        .lake
        .table(TableName::Communications)
        .commit(&commit)
        .await
        .unwrap();

    let group = world.spawn(world.enricher(), "g-enricher");
    group.passes(CONVERSATIONS).await;
    group.end().await.unwrap();
    world.check_complete().await;
    assert_eq!(
        world
            .ids(TableName::Communications, "communication_id")
            .await
            .len(),
        rows.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_was_overtaken_is_refused_and_reads_on_from_the_lake() {
    let world = World::start().await;
    world.publish_closes().await;
    let archive = world.archive();
    let app = world.settings("g-archive").app(0);
    let group = world.spawn(Arc::clone(&archive), "g-archive");
    group.passes(CONVERSATIONS).await;
    // Another process takes over, writes one record, and is gone: this one knows nothing of it.
    let at = i64::try_from(CONVERSATIONS).unwrap();
    let commit = Commit {
        positions: vec![Position {
            app,
            from: Some(at),
            to: at + 1,
        }],
        ..Commit::default()
    };
    world
        .lake
        .table(TableName::Events)
        .commit(&commit)
        .await
        .unwrap();
    world.publish_closes().await;
    group.passes(2 * CONVERSATIONS - 1).await;
    group.end().await.unwrap();
    // The record that the other one passed is its business; none of ours is doubled or lost.
    let events = world.ids(TableName::Events, "conversation_id").await;
    assert_eq!(events.len() as u64, 2 * CONVERSATIONS - 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poison_record_is_one_dead_letter_and_its_neighbours_are_rows() {
    let world = World::start().await;
    let id = &world.closed[0];
    world.publish(id, close(id).as_bytes()).await;
    world.publish(id, b"\xff not an event").await;
    world.publish(id, close(id).as_bytes()).await;
    let archive = world.spawn(world.archive(), "g-archive");
    let enricher = world.spawn(world.enricher(), "g-enricher");
    archive.passes(3).await;
    enricher.passes(3).await;
    archive.end().await.unwrap();
    enricher.end().await.unwrap();
    assert_eq!(
        world.ids(TableName::Events, "conversation_id").await,
        [id.clone(), id.clone()]
    );
    assert_eq!(
        world.ids(TableName::Conversations, "conversation_id").await,
        std::slice::from_ref(id)
    );

    let settings = world.cluster.settings();
    let letters = &world.topics.dead_letters;
    let mut reader = topic::Consumer::subscribe(&settings, "reader", letters, 1 << 20).unwrap();
    let letter = loop {
        match tokio::time::timeout(PATIENCE, reader.next()).await.unwrap() {
            topic::Event::Assigned { partitions, reply } => {
                reply.start_at(
                    partitions
                        .into_iter()
                        .map(|partition| (partition, None))
                        .collect(),
                );
            }
            topic::Event::Record(record) => break record,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(&letter.value[..], b"\xff not an event");
    assert_eq!(
        letter.headers.get("dead-letter-reason"),
        Some(&b"not-utf8"[..])
    );
    assert_eq!(letter.headers.get("dead-letter-offset"), Some(&b"1"[..]));
    let ends = reader.watermarks().await.unwrap();
    assert_eq!(
        ends.iter().map(|marks| marks.high).sum::<i64>(),
        1,
        "one dead letter"
    );
}
