//! Members that come and go, work that takes long, answers that do not come.

use std::sync::atomic::{AtomicU64, Ordering};

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::Semaphore;

use super::*;
use crate::ingest::Outcome;
use crate::lake::{LakeError, Table};
use crate::table::row::EventRow;
use crate::topic::{Consumer, Event, Record};

/// The archive, whose work on each record begins when it is let.
struct Gated {
    archive: Arc<Archive>,
    gate: Semaphore,
    started: AtomicU64,
    assignments: AtomicU64,
}

impl Gated {
    fn closed(world: &World) -> Arc<Gated> {
        Arc::new(Gated {
            archive: world.archive(),
            gate: Semaphore::new(0),
            started: AtomicU64::new(0),
            assignments: AtomicU64::new(0),
        })
    }

    fn open(&self) {
        self.gate.add_permits(1_000);
    }

    fn started(&self) -> u64 {
        self.started.load(Ordering::Relaxed)
    }
}

impl Work for Gated {
    type Row = EventRow;

    fn stage(&self) -> &'static str {
        "archive"
    }

    fn table(&self) -> &Table {
        self.archive.table()
    }

    async fn assign(&self, apps: Vec<String>) -> Result<Vec<Option<i64>>, LakeError> {
        self.assignments.fetch_add(1, Ordering::Relaxed);
        self.archive.assign(apps).await
    }

    fn forget(&self, partitions: &[i32]) {
        self.archive.forget(partitions);
    }

    fn process(self: Arc<Self>, record: Arc<Record>) -> BoxFuture<'static, Outcome<EventRow>> {
        async move {
            self.started.fetch_add(1, Ordering::Relaxed);
            self.gate.acquire().await.unwrap().forget();
            Arc::clone(&self.archive).process(record).await
        }
        .boxed()
    }

    fn weight(row: &EventRow) -> usize {
        Archive::weight(row)
    }

    fn commit(
        self: Arc<Self>,
        rows: Vec<EventRow>,
        positions: Vec<Position>,
    ) -> BoxFuture<'static, Result<(), LakeError>> {
        Arc::clone(&self.archive).commit(rows, positions)
    }
}

const RECORDS: u64 = 20;

async fn publish_records(world: &World) {
    for n in 0..RECORDS {
        let id = format!("v{n:02}");
        world.publish(&id, opened(&id).as_bytes()).await;
    }
}

/// Every record is one row.
async fn each_once(world: &World) {
    let mut rows = world.ids(TableName::Events, "conversation_id").await;
    rows.sort();
    let want: Vec<String> = (0..RECORDS).map(|n| format!("v{n:02}")).collect();
    assert_eq!(rows, want);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_begun_before_a_revoke_is_discarded_and_done_by_the_next_owner() {
    let topics = Topics::named("convolake.events");
    let world = World::with(4, &topics.all()).await;
    publish_records(&world).await;
    let slow = Gated::closed(&world);
    let first = world.spawn(Arc::clone(&slow), "g-archive");
    until("the first holds work of all it will do at once", || {
        slow.started() >= 4
    })
    .await;
    // Half of the partitions go to another member, which writes their records.
    let second = world.spawn(world.archive(), "g-archive");
    until("the second wrote something", || {
        second.progress.passed() > 0
    })
    .await;
    let before = world.ids(TableName::Events, "conversation_id").await.len();
    assert!(before > 0);
    // What the first had begun comes back late, for partitions that are another's.
    slow.open();
    until("all are passed", || {
        first.progress.passed() + second.progress.passed() >= RECORDS
    })
    .await;
    first.end().await.unwrap();
    second.end().await.unwrap();
    each_once(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_work_never_leaves_the_group() {
    // Below it no broker's answer would be in time; the work takes more than twice as long.
    const MAX_POLL: Duration = Duration::from_millis(3_000);
    let world = World::start().await;
    publish_records(&world).await;
    let slow = Gated::closed(&world);
    let mut kafka = world.cluster.settings();
    let limit = MAX_POLL.as_millis().to_string();
    let property = "test.max.poll.interval.ms".to_owned();
    kafka.properties.push((property, limit));
    let group = world.spawn_with(Arc::clone(&slow), &kafka, world.settings("g-archive"));
    until("work began", || slow.started() >= 4).await;
    // The work of these records takes so long.
    let working = Arc::clone(&slow);
    let takes = tokio::spawn(async move {
        tokio::time::sleep(2 * MAX_POLL + Duration::from_secs(1)).await;
        working.open();
    });
    group.passes(RECORDS).await;
    takes.await.unwrap();
    assert_eq!(slow.assignments.load(Ordering::Relaxed), 1, "it never left");
    group.end().await.unwrap();
    each_once(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn group_offsets_do_not_matter_ahead_behind_or_in_front_of_an_empty_lake() {
    let world = World::start().await;
    publish_records(&world).await;
    for (offset, from, to) in [
        (15, 0, RECORDS),
        (3, RECORDS, RECORDS + 1),
        (40, RECORDS + 1, RECORDS + 2),
    ] {
        claim(&world, "g-archive", offset).await;
        for n in from.max(RECORDS)..to {
            let id = format!("v{n:02}");
            world.publish(&id, opened(&id).as_bytes()).await;
        }
        let group = world.spawn(world.archive(), "g-archive");
        group.passes(to - from).await;
        group.end().await.unwrap();
        let rows = world.ids(TableName::Events, "conversation_id").await;
        assert_eq!(rows.len() as u64, to, "the group said {offset}");
        let distinct: BTreeSet<&String> = rows.iter().collect();
        assert_eq!(distinct.len(), rows.len());
    }
}

/// Commits an offset for the group, as a tool would.
async fn claim(world: &World, group: &str, offset: i64) {
    let settings = world.cluster.settings();
    let events = &world.topics.events;
    let mut member = Consumer::subscribe(&settings, group, events, 1 << 20).unwrap();
    let joined = async {
        loop {
            if let Event::Assigned { partitions, reply } = member.next().await {
                reply.start_at(partitions.into_iter().map(|p| (p, None)).collect());
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, joined).await.unwrap();
    member.commit_hint(&[(0, offset)]);
    member.close(PATIENCE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_that_cannot_be_delivered_holds_its_offset_until_it_is() {
    let topics = Topics::named("convolake.events");
    let world = World::with(1, &[&topics.events]).await;
    world.publish("a", opened("a").as_bytes()).await;
    world.publish("a", b"\xff poison").await;
    world.publish("b", opened("b").as_bytes()).await;
    let app = [world.settings("g-archive").app(0)];
    let table = world.lake.table(TableName::Events).clone();
    let group = world.spawn(world.archive(), "g-archive");
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while table.positions(&app).await.unwrap() != [Some(1)] {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the row before it is kept"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // A stop is not held up, and passes nothing.
    group.end().await.unwrap();
    assert_eq!(table.positions(&app).await.unwrap(), [Some(1)]);

    let group = world.spawn(world.archive(), "g-archive");
    until("both are read again", || group.progress.read() >= 2).await;
    assert_eq!(group.progress.passed(), 0);
    world.cluster.add_topic(&topics.dead_letters);
    group.passes(2).await;
    group.end().await.unwrap();
    assert_eq!(table.positions(&app).await.unwrap(), [Some(3)]);
    let rows = world.ids(TableName::Events, "conversation_id").await;
    assert_eq!(sorted(rows), ["a", "b"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_api_is_away_the_enricher_waits_and_goes_on_by_itself() {
    let mut world = World::start().await;
    // An address that nobody answers at, until somebody does.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let upstream = world.emulator.address();
    let origin = format!("http://{address}").parse().unwrap();
    let mut settings = api::Settings::new(
        origin,
        api::Credentials::new(DEV_ACCOUNT_SID, DEV_AUTH_TOKEN),
    );
    settings.requests_per_second = NonZeroU32::new(100_000).unwrap();
    // A call that gives up soon, so that the waiting is the enricher's.
    settings.total_budget = Duration::from_millis(300);
    settings.min_delay = Duration::from_millis(50);
    let whole = std::mem::replace(&mut world.api, Api::new(settings, Clock::system()).unwrap());
    world.publish_closes().await;
    let readiness = Readiness::new();
    let api_up = readiness.dependency("api");
    api_up.up();
    let group = world.spawn(world.enricher_watched(api_up), "g-enricher");
    until("the API is missed", || !readiness.missing().is_empty()).await;
    assert_eq!(group.progress.passed(), 0);

    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let forward = tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = tokio::net::TcpStream::connect(upstream).await.unwrap();
            tokio::spawn(async move {
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    group.passes(CONVERSATIONS).await;
    group.end().await.unwrap();
    forward.abort();
    world.api = whole;
    world.check_complete().await;
    // Nothing was set aside for an outage.
    let kafka = world.cluster.settings();
    let mut letters = topic::Scan::start(&kafka, &world.topics.dead_letters)
        .await
        .unwrap();
    assert!(letters.next().await.unwrap().is_none());
}

/// From one member to twelve and back to one, leaving in turn with a word and without: every record is one row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_come_and_go_lose_and_double_nothing() {
    const MEMBERS: usize = 12;
    let topics = Topics::named("convolake.events");
    let world = World::with(12, &topics.all()).await;
    let mut published = 0;
    let mut publish = async || {
        for n in published..published + RECORDS {
            let id = format!("v{n:03}");
            world.publish(&id, opened(&id).as_bytes()).await;
        }
        published += RECORDS;
        published
    };
    let mut members: Vec<Group> = Vec::new();
    let mut total = 0;
    for wanted in [1, 3, MEMBERS, 5, 1] {
        total = publish().await;
        while members.len() < wanted {
            members.push(world.spawn(world.archive(), "g-archive"));
        }
        while members.len() > wanted {
            let member = members.remove(0);
            if members.len().is_multiple_of(2) {
                member.end().await.unwrap();
            } else {
                // Dropped in the middle of whatever it does.
                member.task.abort();
                let _ = member.task.await;
            }
        }
        rows_are(&world, total).await;
    }
    for member in members {
        member.end().await.unwrap();
    }
    let rows = world.ids(TableName::Events, "conversation_id").await;
    let distinct: BTreeSet<&String> = rows.iter().collect();
    assert_eq!((rows.len() as u64, distinct.len()), (total, rows.len()));
}

/// Waits until so many records are rows.
async fn rows_are(world: &World, want: u64) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let rows = world
            .lake
            .table(TableName::Events)
            .stats()
            .await
            .unwrap()
            .rows;
        if rows >= want {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{rows} of {want}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
