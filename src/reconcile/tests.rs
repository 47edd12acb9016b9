//! Passes over the emulator's list, with a lake that lacks some of it.

use std::num::NonZeroU32;

use super::*;
use crate::api;
use crate::emulator::{DEV_ACCOUNT_SID, DEV_AUTH_TOKEN, Emulator, Options};
use crate::event::{CallbackEvent, header};
use crate::lake::{Access, Commit};
use crate::table::{TableName, conversations_batch, row};
use crate::topic::{EmbeddedCluster, Scan};

const PATIENCE: Duration = Duration::from_secs(60);
const CONVERSATIONS: u64 = 25;
/// Pages of the list: a pass that is broken off has some before and some after.
const PAGE: u32 = 4;

struct World {
    folder: tempfile::TempDir,
    lake: Lake,
    cluster: EmbeddedCluster,
    topics: Topics,
    publisher: Publisher,
    api: Api,
    _emulator: Emulator,
}

impl World {
    async fn start() -> World {
        let clock = Clock::system();
        let options = Options {
            conversations: CONVERSATIONS,
            ..Options::new(9, clock.now())
        };
        let emulator = Emulator::start(options, clock, Stop::new()).unwrap();
        tokio::time::timeout(PATIENCE, emulator.traffic_done())
            .await
            .unwrap();
        let origin = format!("http://{}", emulator.address()).parse().unwrap();
        let credentials = api::Credentials::new(DEV_ACCOUNT_SID, DEV_AUTH_TOKEN);
        let mut settings = api::Settings::new(origin, credentials);
        settings.requests_per_second = NonZeroU32::new(100_000).unwrap();
        settings.page_size = NonZeroU32::new(PAGE).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let location = folder.path().join("lake");
        let lake = Lake::open(location.to_str().unwrap(), Access::Create)
            .await
            .unwrap();
        let topics = Topics::named("convolake.events");
        let cluster = EmbeddedCluster::start(2, &topics.all()).unwrap();
        let publisher = Publisher::start(&cluster.settings()).unwrap();
        World {
            folder,
            lake,
            cluster,
            topics,
            publisher,
            api: Api::new(settings, clock).unwrap(),
            _emulator: emulator,
        }
    }

    fn reconciler(&self) -> Reconciler<'_> {
        Reconciler {
            lake: &self.lake,
            api: &self.api,
            publisher: &self.publisher,
            topics: &self.topics,
            clock: Clock::system(),
            bookmark: Bookmark::new(self.folder.path().join("state"), "emulator"),
            grace: Duration::ZERO,
            active_limit: None,
        }
    }

    async fn have(&self, id: &str, completeness: Completeness) {
        let conversation = row::ConversationRow {
            completeness,
            ..row::empty_conversation(id)
        };
        let commit = Commit {
            rows: vec![conversations_batch([&conversation])],
            ..Commit::default()
        };
        let table = self.lake.table(TableName::Conversations);
        table.commit(&commit).await.unwrap();
    }

    /// Conversation and reason of each close in the topic, sorted.
    async fn announced(&self) -> Vec<(String, String)> {
        let kafka = self.cluster.settings();
        let mut scan = Scan::start(&kafka, &self.topics.events).await.unwrap();
        let mut found = Vec::new();
        while let Some(record) = scan.next().await.unwrap() {
            let event = CallbackEvent::parse(&record.value).unwrap();
            assert!(event.is_close() && event.timestamp.is_some());
            assert_eq!(
                record.key.as_deref(),
                Some(event.conversation_id.as_bytes())
            );
            let why = record.headers.get(header::RECONCILED).unwrap();
            let why = String::from_utf8(why.to_vec()).unwrap();
            found.push((event.conversation_id.into_owned(), why));
        }
        found.sort();
        found
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_lake_lacks_is_announced_once_also_by_a_pass_that_was_broken_off() {
    let world = World::start().await;
    let first = world
        .api
        .closed_conversations_page(None)
        .await
        .unwrap()
        .value;
    let ids: Vec<String> = first.items.into_iter().filter_map(|item| item.id).collect();
    world.have(&ids[0], Completeness::Complete).await;
    world.have(&ids[1], Completeness::Partial).await;
    world.have(&ids[2], Completeness::Gone).await;

    // Broken off: Kafka goes away after the second page, and the bookmark stands there.
    let reconciler = world.reconciler();
    let second = first.next_token.unwrap();
    reconciler.bookmark.write(&second).await.unwrap();
    world.cluster.go_down();
    reconciler.pass(&Stop::new()).await.unwrap_err();
    world.cluster.come_up();
    assert_eq!(reconciler.bookmark.read().await, Some(second));
    let before = world.announced().await.len();
    let rest = reconciler.pass(&Stop::new()).await.unwrap();
    assert!(rest.resumed, "{rest:?}");
    assert_eq!(rest.listed, CONVERSATIONS - u64::from(PAGE));
    assert_eq!(rest.published["missing"], CONVERSATIONS - u64::from(PAGE));

    // The next pass begins anew, and is whole.
    let whole = reconciler.pass(&Stop::new()).await.unwrap();
    assert!(!whole.resumed && !whole.is_clean());
    assert_eq!((whole.listed, whole.complete), (CONVERSATIONS, 1));
    let counts = [("gone", 1), ("missing", CONVERSATIONS - 3), ("partial", 1)];
    assert_eq!(whole.published, BTreeMap::from(counts));
    assert!(whole.delay_seconds.max >= whole.delay_seconds.p50);
    let announced = world.announced().await;
    let records = whole.closes.len() + rest.closes.len();
    // What was unacknowledged in the outage may be there as well.
    assert!(announced.len() >= records && announced.len() <= records + before.max(PAGE as usize));
    for (id, why) in [
        (&ids[1], "partial"),
        (&ids[2], "gone"),
        (&ids[3], "missing"),
    ] {
        assert!(
            announced.contains(&(id.clone(), why.to_owned())),
            "{id}: {announced:?}"
        );
    }
    assert!(
        !announced.iter().any(|(id, _)| *id == ids[0]),
        "{announced:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_young_close_is_left_to_its_callback_and_a_stop_leaves_a_bookmark() {
    let world = World::start().await;
    let reconciler = Reconciler {
        grace: Duration::from_secs(1_000_000_000),
        ..world.reconciler()
    };
    let report = reconciler.pass(&Stop::new()).await.unwrap();
    assert_eq!(
        report.young + report.closes.len() as u64,
        CONVERSATIONS,
        "{report:?}"
    );
    assert!(report.young > 0, "{report:?}");
    let stop = Stop::new();
    stop.request();
    let report = reconciler.pass(&stop).await.unwrap();
    assert!(report.interrupted && report.pages == 0, "{report:?}");
    // A token that the API does not know (any more): the pass begins anew.
    reconciler.bookmark.write("no such page").await.unwrap();
    let report = reconciler.pass(&Stop::new()).await.unwrap();
    assert!(!report.resumed, "{report:?}");
    assert_eq!(report.listed, CONVERSATIONS);
}

#[test]
fn what_becomes_of_a_conversation_depends_on_the_lake_and_on_its_age() {
    let (grace, young, old) = (
        Duration::from_secs(300),
        Some(Duration::from_secs(299)),
        Some(Duration::from_secs(300)),
    );
    for (have, why) in [
        (None, Why::Missing),
        (Some(Completeness::Partial), Why::Partial),
        (Some(Completeness::Gone), Why::Gone),
    ] {
        assert_eq!(judge(have, young, grace), Judged::Young);
        for age in [old, None] {
            assert_eq!(judge(have, age, grace), Judged::Announce(why));
        }
    }
    for age in [young, old, None] {
        let complete = Some(Completeness::Complete);
        assert_eq!(judge(complete, age, grace), Judged::Complete);
    }
}

/// Three that stay ACTIVE, for three reasons; one young, one gone meanwhile. Lists leave times out.
#[tokio::test]
async fn what_stays_active_is_named_with_the_cause_in_its_configuration() {
    use crate::api::scripted::{Server, error, ok};
    use serde_json::json;

    let item = |id: &str, configuration: &str, updated: Option<&str>| json!({"id": id, "status": "ACTIVE", "configurationId": configuration, "updatedAt": updated});
    let server = Server::start(move |seen, _| match seen.path() {
        "/v2/Conversations" if seen.query("pageToken").is_none() => {
            assert_eq!(seen.query("status").as_deref(), Some("ACTIVE"));
            ok(&json!({
                "conversations": [
                    item("old", "half", Some("2026-01-01T00:00:00Z")),
                    item("timeless", "none", None),
                    item("deleted", "none", None),
                ],
                "meta": {"nextToken": "t2"},
            }))
        }
        "/v2/Conversations" => ok(&json!({
            "conversations": [
                item("young", "half", Some("2026-01-09T23:00:01Z")),
                item("lost", "gone", Some("2026-01-01T00:00:00Z")),
                item("again", "half", Some("2026-01-02T00:00:00Z")),
            ],
            "meta": {"nextToken": null},
        })),
        "/v2/Conversations/timeless" => ok(&item("timeless", "none", Some("2026-01-03T00:00:00Z"))),
        "/v2/ControlPlane/Configurations/half" => ok(&json!({
            "id": "half",
            "channelSettings": {"SMS": {"statusTimeouts": {"closed": 60}}, "VOICE": {}},
            "statusCallbacks": [{"url": "https://hooks.example.test/canary", "method": "POST"}],
        })),
        "/v2/ControlPlane/Configurations/none" => ok(&json!({"id": "none", "channelSettings": {}})),
        _ => error(404),
    })
    .await;
    let credentials = api::Credentials::new("AC1", "token");
    let mut settings = api::Settings::new(server.url.clone(), credentials);
    settings.requests_per_second = NonZeroU32::new(100_000).unwrap();
    let api = Api::new(settings, Clock::system()).unwrap();
    let now: Timestamp = "2026-01-10T00:00:00Z".parse().unwrap();
    let hour = Duration::from_secs(3_600);
    let found = active::overdue(&api, hour, now).await.unwrap();
    let causes: Vec<(&str, &str)> = (found.iter())
        .map(|active| (&*active.conversation_id, &*active.cause))
        .collect();
    for ((id, part), (found, cause)) in [
        ("old", "no statusTimeouts.closed for VOICE"),
        ("timeless", "no statusCallbacks"),
        ("lost", "does not exist"),
        ("again", "no statusTimeouts.closed for VOICE"),
    ]
    .into_iter()
    .zip(&causes)
    {
        assert_eq!(id, *found);
        assert!(cause.contains(part), "{part}: {cause}");
    }
    assert_eq!(found.len(), 4, "{causes:?}");
    let asked = server.seen();
    let configurations = asked
        .iter()
        .filter(|seen| seen.path().contains("Configurations"));
    assert_eq!(configurations.count(), 3, "each is asked for once");
}
