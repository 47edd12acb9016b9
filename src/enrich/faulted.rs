//! What becomes of conversations whose API answers as each sample of `deploy/faults` says.

use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroU32;
use std::time::Duration;

use serde_json::Value;

use super::*;
use crate::api::{Credentials, Settings};
use crate::emulator::{DEV_ACCOUNT_SID, DEV_AUTH_TOKEN, Emulator, Options};
use crate::lifecycle::Stop;
use crate::table::row::Completeness;

const CONVERSATIONS: usize = 6;
const DEADLINE: Duration = Duration::from_secs(60);

/// What a conversation came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// COMPLETE, with every communication that there is.
    Whole,
    /// COMPLETE by all that the API shows, which is less than there is.
    Short,
    /// A row that says it does not exist.
    Gone,
    /// Set aside.
    Dead(&'static str),
    /// Stops the consumer.
    Stop,
    /// Waits for the API.
    Later,
}

use Fate::{Dead, Gone, Later, Short, Whole};

fn clock() -> Clock {
    Clock::from_fn(|| "2026-11-22T12:30:00Z".parse().unwrap())
}

struct Scene {
    emulator: Emulator,
    stop: Stop,
    /// Ids of each conversation's communications, in the order of creation.
    truth: Vec<(String, BTreeSet<String>)>,
    enricher: Enricher,
}

impl Scene {
    /// Conversations of 20 communications and more, and their faults.
    async fn of(sample: &str) -> Scene {
        let path = format!("{}/deploy/faults/{sample}.yaml", env!("CARGO_MANIFEST_DIR"));
        let script = std::fs::read_to_string(path).unwrap();
        let stop = Stop::new();
        let options = Options {
            conversations: CONVERSATIONS as u64,
            ..Options::new(11, "2026-11-22T12:00:00Z".parse().unwrap())
        };
        let emulator = Emulator::start(options, clock(), stop.clone()).unwrap();
        tokio::time::timeout(DEADLINE, emulator.traffic_done())
            .await
            .expect("the traffic ends");
        let origin = format!("http://{}", emulator.address());
        let truth = truth(&origin).await;
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let faults = client.put(format!("{origin}/emulator/faults"));
        let taken = faults.body(script).send().await.unwrap().status();
        assert!(taken.is_success(), "{sample}: {taken}");
        let quick = Duration::from_millis(1);
        let settings = Settings {
            requests_per_second: NonZeroU32::new(100_000).unwrap(),
            page_size: NonZeroU32::new(3).unwrap(),
            min_delay: quick,
            max_delay: quick,
            max_retry_after: quick,
            request_timeout: Duration::from_millis(500),
            ..Settings::new(
                origin.parse().unwrap(),
                Credentials::new(DEV_ACCOUNT_SID, DEV_AUTH_TOKEN),
            )
        };
        let limits = Limits {
            status_delay: quick,
            ..Limits::default()
        };
        let api = Api::new(settings, clock()).unwrap();
        Scene {
            emulator,
            stop,
            truth,
            enricher: Enricher::new(api, clock(), limits),
        }
    }

    async fn fates(&self) -> Vec<Fate> {
        let mut fates = Vec::new();
        for (id, communications) in &self.truth {
            fates.push(self.fate(id, communications).await);
        }
        fates
    }

    async fn fate(&self, id: &str, communications: &BTreeSet<String>) -> Fate {
        let close = Close {
            conversation_id: id.to_owned(),
            account_id: None,
            closed_at: None,
            received_at: clock().now(),
            partition: 0,
            offset: 0,
        };
        let enriched = match self.enricher.enrich(&close).await {
            Ok(enriched) => enriched,
            Err(EnrichError::Stop(_)) => return Fate::Stop,
            Err(EnrichError::Later(_)) => return Later,
            Err(EnrichError::Dead { reason, .. }) => return Dead(reason),
        };
        let rows: Vec<&String> = (enriched.communications.iter())
            .map(|row| &row.communication_id)
            .collect();
        let ids: BTreeSet<String> = rows.iter().map(|id| (*id).clone()).collect();
        assert_eq!(rows.len(), ids.len(), "{id}: no row twice");
        let row = &enriched.conversation;
        match row.completeness {
            Completeness::Gone => Gone,
            Completeness::Complete if ids == *communications => Whole,
            Completeness::Complete => Short,
            Completeness::Partial => panic!("{id}: {:?}", row.missing),
        }
    }

    async fn finish(self) {
        self.stop.request();
        self.emulator.finish().await.unwrap();
    }
}

async fn truth(origin: &str) -> Vec<(String, BTreeSet<String>)> {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let get = async |path: &str| -> Vec<Value> {
        let request = client.get(format!("{origin}{path}"));
        let request = request.basic_auth(DEV_ACCOUNT_SID, Some(DEV_AUTH_TOKEN));
        let body = request.send().await.unwrap().bytes().await.unwrap();
        let mut answer: Value = serde_json::from_slice(&body).unwrap();
        serde_json::from_value(answer["conversations"].take()).unwrap()
    };
    let id = |value: &Value| value["id"].as_str().unwrap().to_owned();
    let mut communications: HashMap<String, BTreeSet<String>> = (get("/emulator/truth").await)
        .iter()
        .map(|it| {
            let all = it["communications"].as_array().unwrap();
            (id(it), all.iter().map(id).collect())
        })
        .collect();
    let in_order = get("/v2/Conversations?pageSize=100").await;
    let in_order = in_order.iter().map(id);
    in_order
        .map(|id| (id.clone(), communications.remove(&id).unwrap()))
        .collect()
}

async fn check(sample: &str, expected: [Fate; CONVERSATIONS]) {
    let scene = Scene::of(sample).await;
    assert_eq!(scene.fates().await, expected, "{sample}");
    scene.finish().await;
}

/// Retries meet another answer.
#[tokio::test]
async fn what_passes_leaves_nothing_out() {
    let samples = [
        "throttled",
        "server-errors",
        "reset",
        "truncated",
        "html",
        "wrong-types",
        "redirected",
        "hanging",
    ];
    let checks = samples.map(|sample| check(sample, [Whole; CONVERSATIONS]));
    futures::future::join_all(checks).await;
}

/// What lists leave out or repeat is fetched one by one or merged.
#[tokio::test]
async fn lists_may_leave_fields_out_and_repeat_themselves() {
    for sample in ["partial", "duplicated-pages", "changed-between-pages"] {
        check(sample, [Whole; CONVERSATIONS]).await;
    }
}

/// A close that is not seen yet is read again, until it is or the reads are spent.
#[tokio::test]
async fn a_close_may_be_seen_late_or_never() {
    check("stale", [Whole; CONVERSATIONS]).await;
    check("late-closes", [Whole; CONVERSATIONS]).await;
    let mut expected = [Whole; CONVERSATIONS];
    expected[2] = Dead("not-closed");
    check("never-closing", expected).await;
}

#[tokio::test]
async fn what_is_deleted_is_a_row_that_says_so() {
    let expected = [Whole, Gone, Whole, Gone, Whole, Gone];
    check("deleted", expected).await;
    check("not-found", expected).await;
}

/// No list that leads in a circle makes a row that is cut short.
#[tokio::test]
async fn a_list_without_an_end_is_set_aside() {
    let scene = Scene::of("looping-pages").await;
    for ((_, communications), fate) in scene.truth.iter().zip(scene.fates().await) {
        let expected = match communications.len() > 3 {
            true => Dead("page-token-repeated"),
            false => Whole,
        };
        assert_eq!(fate, expected);
    }
    scene.finish().await;
}

/// What a list does not show and does not hint at, no reader of the list can miss: only the callbacks'
/// own ids tell.
#[tokio::test]
async fn what_a_list_conceals_is_not_seen() {
    let scene = Scene::of("skipped-pages").await;
    for ((_, communications), fate) in scene.truth.iter().zip(scene.fates().await) {
        let expected = if communications.len() > 6 {
            Short
        } else {
            Whole
        };
        assert_eq!(fate, expected);
    }
    scene.finish().await;
    check("stale-list", [Short; CONVERSATIONS]).await;
}

/// Nothing is set aside for credentials that are refused.
#[tokio::test]
async fn refused_credentials_stop() {
    check("unauthorized", [Fate::Stop; CONVERSATIONS]).await;
    check("forbidden", [Fate::Stop; CONVERSATIONS]).await;
}
