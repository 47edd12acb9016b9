//! Conversations served by a server of bytes, and the rows they become.

use std::num::NonZeroU32;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use tokio::time::Instant;

use super::*;
use crate::api::scripted::{self, Reply, Seen, Server};
use crate::api::{Credentials, Settings};
use crate::table::row::Completeness;

fn now() -> Timestamp {
    "2026-11-22T12:00:00Z".parse().unwrap()
}

pub(super) fn close() -> Close {
    Close {
        conversation_id: "v1".to_owned(),
        account_id: Some("AC1".to_owned()),
        closed_at: Some("2026-11-22T11:59:00Z".parse().unwrap()),
        received_at: "2026-11-22T11:59:01Z".parse().unwrap(),
        partition: 3,
        offset: 41,
    }
}

pub(super) fn limits() -> Limits {
    Limits {
        status_delay: Duration::from_millis(1),
        ..Limits::default()
    }
}

pub(super) fn enricher(server: &Server, limits: Limits) -> Enricher {
    let settings = Settings {
        requests_per_second: NonZeroU32::new(100_000).unwrap(),
        max_attempts: NonZeroU32::new(3).unwrap(),
        min_delay: Duration::from_millis(1),
        max_delay: Duration::from_millis(2),
        max_body_bytes: 20_000,
        ..Settings::new(server.url.clone(), Credentials::new("AC1", "t"))
    };
    let clock = Clock::from_fn(now);
    Enricher::new(Api::new(settings, clock).unwrap(), clock, limits)
}

/// A conversation as it really is, and how the API shows it.
#[derive(Clone)]
pub(super) struct World {
    conversation: Value,
    pub(super) participants: Vec<Value>,
    communications: Vec<Value>,
    /// What the list's pages hold: indices, and the fields that each item lacks.
    pages: Vec<Vec<(usize, Vec<&'static str>)>>,
    /// Whether the conversation carries its participants.
    pub(super) embedded: bool,
}

impl World {
    pub(super) fn new(communications: Vec<Value>) -> World {
        World {
            conversation: json!({
                "id": "v1", "accountId": "AC1", "configurationId": "cfg1", "status": "CLOSED",
                "name": "n", "createdAt": "2026-11-22T10:00:00Z",
                "updatedAt": "2026-11-22T11:58:00Z", "metadata": {"k": "v"}, "sentiment": 1,
                "channels": ["SMS"], "configuration": {"statusCallbacks": [{"url": "https://h/?key=s"}]}
            }),
            participants: vec![
                json!({"id": "p1", "type": "CUSTOMER", "name": "Ann", "profileId": "prof1",
                       "addresses": [{"channel": "SMS", "address": "+1"}]}),
                json!({"id": "p2", "type": "AI_AGENT", "name": "Bot",
                       "addresses": [{"channel": "SMS", "address": "+2"},
                                     {"channel": "VOICE", "address": "+2", "channelId": "CA1"}]}),
            ],
            pages: vec![
                (0..communications.len())
                    .map(|at| (at, Vec::new()))
                    .collect(),
            ],
            communications,
            embedded: true,
        }
    }

    /// The items in pages of `size`.
    fn paged(mut self, size: usize) -> World {
        let items: Vec<_> = self.pages.concat();
        self.pages = items.chunks(size).map(<[_]>::to_vec).collect();
        self
    }

    fn lists_lack(mut self, fields: &[&'static str]) -> World {
        for (_, lacks) in self.pages.iter_mut().flatten() {
            *lacks = fields.to_vec();
        }
        self
    }

    pub(super) fn answer(&self, seen: &Seen) -> Reply {
        let parts: Vec<_> = seen.path().trim_start_matches("/v2/").split('/').collect();
        let find = |all: &[Value], id: &str| match all.iter().find(|item| item["id"] == id) {
            Some(item) => scripted::ok(item),
            None => scripted::error(404),
        };
        match parts[..] {
            ["Conversations", "v1"] => {
                let mut it = self.conversation.clone();
                if self.embedded {
                    it["participants"] = json!(self.participants);
                }
                scripted::ok(&it)
            }
            ["Conversations", "v1", "Communications"] => self.page(seen),
            ["Conversations", "v1", "Communications", id] => find(&self.communications, id),
            ["Conversations", "v1", "Participants"] => scripted::ok(
                &json!({"participants": self.participants, "meta": {"nextToken": null}}),
            ),
            ["Conversations", "v1", "Participants", id] => find(&self.participants, id),
            ["Conversations"] => scripted::ok(&json!({"conversations": [], "meta": {}})),
            _ => scripted::error(404),
        }
    }

    fn page(&self, seen: &Seen) -> Reply {
        let at: usize = seen
            .query("pageToken")
            .map_or(0, |token| token[2..].parse().unwrap());
        let items: Vec<_> = (self.pages.get(at).into_iter().flatten())
            .map(|(index, lacks)| {
                let mut item = self.communications[*index].clone();
                for field in lacks {
                    item.as_object_mut().unwrap().remove(*field);
                }
                item
            })
            .collect();
        let next = (at + 1 < self.pages.len()).then(|| format!("t&{}", at + 1));
        let meta = json!({"key": "communications", "nextToken": next, "previousToken": null});
        scripted::ok(&json!({"communications": items, "meta": meta}))
    }

    async fn serve(self) -> Server {
        Server::start(move |seen, _| self.answer(seen)).await
    }

    /// Serves it, but what `instead` answers.
    async fn serve_but(
        self,
        instead: impl Fn(&Seen, usize) -> Option<Reply> + Send + Sync + 'static,
    ) -> Server {
        Server::start(move |seen, nth| instead(seen, nth).unwrap_or_else(|| self.answer(seen)))
            .await
    }

    pub(super) async fn enrich(self) -> Enriched {
        let server = self.serve().await;
        enricher(&server, limits()).enrich(&close()).await.unwrap()
    }
}

pub(super) fn sms(n: usize) -> Value {
    let (author, to, who) = match n % 2 {
        0 => ("+1", "+2", "p1"),
        _ => ("+2", "+1", "p2"),
    };
    json!({
        "id": format!("c{n:03}"), "conversationId": "v1", "accountId": "AC1",
        "author": {"address": author, "channel": "SMS", "participantId": who},
        "content": {"type": "TEXT", "text": format!("text {n}")},
        "recipients": [{"address": to, "channel": "SMS", "deliveryStatus": "DELIVERED"}],
        "channelId": format!("SM{n}"), "resourceId": format!("SM{n}"),
        "createdAt": format!("2026-11-22T10:{:02}:{:02}.5Z", n / 60, n % 60),
        "updatedAt": "2026-11-22T10:59:00Z",
        "occurredAt": format!("2026-11-22T10:{:02}:{:02}Z", n / 60, n % 60),
    })
}

fn without(mut item: Value, fields: &[&str]) -> Value {
    for field in fields {
        item.as_object_mut().unwrap().remove(*field);
    }
    item
}

fn with(mut item: Value, fields: Value) -> Value {
    let object = item.as_object_mut().unwrap();
    object.extend(fields.as_object().unwrap().clone());
    item
}

/// The same rows without what they cost.
pub(super) fn said(mut enriched: Enriched) -> Enriched {
    enriched.conversation.pages = 0;
    enriched.conversation.fetched_singly = 0;
    enriched.conversation.api_calls = 0;
    enriched
}

#[tokio::test]
async fn a_whole_conversation() {
    let Enriched {
        conversation,
        communications,
    } = World::new((0..3).map(sms).collect()).enrich().await;
    assert_eq!(conversation.completeness, Completeness::Complete);
    assert_eq!(conversation.missing, [""; 0]);
    assert_eq!(conversation.channels, ["SMS"]);
    assert_eq!(conversation.communications, 3);
    assert_eq!((conversation.pages, conversation.api_calls), (1, 2));
    assert_eq!(conversation.fetched_singly, 0);
    assert_eq!(
        (conversation.kafka_partition, conversation.kafka_offset),
        (3, 41)
    );
    assert_eq!(conversation.metadata.as_deref(), Some(r#"{"k":"v"}"#));
    assert_eq!(conversation.extra.as_deref(), Some(r#"{"sentiment":1}"#));
    assert_eq!(conversation.enriched_at, now().as_microsecond());
    assert_eq!(
        conversation.created_at.map(|at| at % 3_600_000_000),
        Some(0)
    );
    assert_eq!(
        conversation.participants[0].profile_id.as_deref(),
        Some("prof1")
    );
    assert_eq!(
        conversation.participants[1].addresses[1]
            .channel_id
            .as_deref(),
        Some("CA1")
    );
    let first = &communications[0];
    assert_eq!(conversation.first_communication_at, first.occurred_at);
    assert_eq!(first.direction.as_deref(), Some("INBOUND"));
    assert_eq!(first.author_type.as_deref(), Some("CUSTOMER"));
    assert_eq!(first.text.as_deref(), Some("text 0"));
    assert_eq!(first.configuration_id.as_deref(), Some("cfg1"));
    assert_eq!(first.date, conversation.date);
    assert_eq!(communications[1].direction.as_deref(), Some("OUTBOUND"));
    let numbers: Vec<_> = communications
        .iter()
        .map(|c| (c.position, c.turn))
        .collect();
    assert_eq!(numbers, [(0, 0), (1, 1), (2, 2)]);
}

#[tokio::test]
async fn what_lists_leave_out_is_fetched() {
    let whole = World::new((0..5).map(sms).collect());
    let want = said(whole.clone().enrich().await);
    for lacks in [
        &["createdAt"][..],
        &["channel", "author"],
        &["content", "body"],
        &["recipients"],
        &["occurredAt"],
        &["createdAt", "author", "content", "recipients"],
    ] {
        let partial = whole.clone().paged(2).lists_lack(lacks).enrich().await;
        assert_eq!(partial.conversation.pages, 3);
        assert_eq!(partial.conversation.fetched_singly, 5, "{lacks:?}");
        assert_eq!(partial.conversation.api_calls, 9, "{lacks:?}");
        assert_eq!(said(partial), want, "{lacks:?}");
    }
}

#[tokio::test]
async fn older_names_are_read() {
    let item = with(
        without(sms(0), &["createdAt", "content"]),
        json!({"dateCreated": "2026-11-22T10:00:00Z", "content": {"type": "TEXT"}, "body": "b"}),
    );
    let enriched = World::new(vec![item]).enrich().await;
    assert_eq!(enriched.conversation.completeness, Completeness::Complete);
    assert_eq!(enriched.conversation.fetched_singly, 0);
    assert_eq!(enriched.communications[0].text.as_deref(), Some("b"));
    assert!(enriched.communications[0].created_at.is_some());
}

#[tokio::test]
async fn what_nobody_has_is_named() {
    let item = without(sms(0), &["author", "content", "recipients", "createdAt"]);
    let enriched = World::new(vec![item, sms(1)]).enrich().await;
    let names = [
        "author_address",
        "content_type",
        "text",
        "recipients",
        "created_at",
        "channel",
    ];
    assert_eq!(enriched.communications[0].missing, names);
    assert_eq!(enriched.communications[0].channel, "UNKNOWN");
    assert_eq!(enriched.communications[1].missing, [""; 0]);
    assert_eq!(enriched.conversation.completeness, Completeness::Partial);
    let mut prefixed = names.map(|name| format!("communications.{name}"));
    prefixed.sort();
    assert_eq!(enriched.conversation.missing, prefixed);
}

#[tokio::test]
async fn a_communication_that_is_gone_alone_stays_as_listed() {
    let world = World::new(vec![sms(0), sms(1)]).lists_lack(&["recipients"]);
    let server = world
        .serve_but(|seen, _| seen.path().ends_with("c001").then(|| scripted::error(404)))
        .await;
    let enriched = enricher(&server, limits()).enrich(&close()).await.unwrap();
    assert_eq!(enriched.communications[0].missing, [""; 0]);
    assert_eq!(enriched.communications[1].missing, ["recipients"]);
    assert_eq!(enriched.communications[1].text.as_deref(), Some("text 1"));
    assert_eq!(enriched.conversation.missing, ["communications.recipients"]);
}

#[tokio::test]
async fn the_channel_rule_step_by_step() {
    let nobody = json!({"address": "+9"});
    let to = |channel: Value| json!({"recipients": [{"address": "+3"}, {"address": "+4", "channel": channel}]});
    let plain = with(sms(0), json!({"author": nobody, "recipients": []}));
    let steps = [
        (with(sms(0), json!({"channel": "RCS"})), "RCS"),
        (sms(0), "SMS"),
        (with(plain.clone(), to(json!("WHATSAPP"))), "WHATSAPP"),
        (
            with(plain.clone(), json!({"author": {"participantId": "p1"}})),
            "SMS",
        ),
        // Two addresses say nothing.
        (
            with(plain.clone(), json!({"author": {"participantId": "p2"}})),
            "UNKNOWN",
        ),
        (
            with(
                plain.clone(),
                json!({"content": {"type": "TRANSCRIPTION", "text": "t"}}),
            ),
            "VOICE",
        ),
        (plain.clone(), "UNKNOWN"),
        (with(sms(0), json!({"channel": ""})), "SMS"),
        (
            with(sms(0), json!({"channel": "NEW_CHANNEL_2"})),
            "NEW_CHANNEL_2",
        ),
        (with(sms(0), json!({"channel": "../../x"})), "UNKNOWN"),
        (with(sms(0), json!({"channel": "sms"})), "UNKNOWN"),
        (
            with(sms(0), json!({"channel": "__HIVE_DEFAULT_PARTITION__"})),
            "UNKNOWN",
        ),
        (with(sms(0), json!({"channel": "A".repeat(33)})), "UNKNOWN"),
    ];
    for (item, channel) in steps {
        let enriched = World::new(vec![item.clone()]).enrich().await;
        assert_eq!(enriched.communications[0].channel, channel, "{item}");
        assert_eq!(enriched.conversation.channels, [channel]);
        let odd = item["channel"].as_str().filter(|_| channel == "UNKNOWN");
        let kept = odd.map(|name| json!({"channel": name}).to_string());
        assert_eq!(enriched.communications[0].extra, kept);
    }
}

#[tokio::test]
async fn direction_and_words_of_a_transcription() {
    let spoken = |id: &str, n: usize, transcription: Value| {
        with(
            without(sms(n), &["channel"]),
            json!({"id": id, "author": {"address": "+9", "channel": "VOICE"}, "channelId": "CA1",
                   "content": {"type": "TRANSCRIPTION", "text": "a b", "transcription": transcription}}),
        )
    };
    let enriched = World::new(vec![
        spoken("a", 0, json!({"channel": 0, "confidence": 0.5, "engine": "google", "words": [
            {"text": "a", "startTime": 0.25, "endTime": "0.5"}, {"text": "b", "endTime": "1.5s"}]})),
        spoken("b", 1, json!({"channel": 1, "lang": "en", "words": [
            {"text": "a", "startTime": "2026-11-22T10:00:01.100Z", "endTime": "2026-11-22T10:00:01.350Z"},
            {"text": "b", "startTime": "soon"}]})),
        spoken("c", 2, json!({})),
    ])
    .enrich()
    .await;
    let rows = enriched.communications;
    let directions: Vec<_> = rows.iter().map(|row| row.direction.as_deref()).collect();
    assert_eq!(directions, [Some("INBOUND"), Some("OUTBOUND"), None]);
    assert_eq!(rows[0].transcription_engine.as_deref(), Some("google"));
    assert_eq!(rows[0].transcription_confidence, Some(0.5));
    let times = |row: &CommunicationRow| -> Vec<_> {
        let words = row.transcription_words.as_ref().unwrap().iter();
        words.map(|word| (word.start_ms, word.end_ms)).collect()
    };
    assert_eq!(
        times(&rows[0]),
        [(Some(250), Some(500)), (None, Some(1_500))]
    );
    assert_eq!(times(&rows[1]), [(Some(0), Some(250)), (None, None)]);
    assert_eq!(
        rows[1].extra.as_deref(),
        Some(r#"{"content":{"transcription":{"lang":"en"}}}"#)
    );
    assert_eq!(rows[2].transcription_words, None);
}

#[tokio::test]
async fn an_author_without_an_id_is_found_by_its_address() {
    let mut world = World::new(vec![with(
        sms(0),
        json!({"author": {"address": "whatsapp:+1", "channel": "WHATSAPP"}}),
    )]);
    let enriched = world.clone().enrich().await;
    assert_eq!(
        enriched.communications[0].author_type.as_deref(),
        Some("CUSTOMER")
    );
    assert_eq!(
        enriched.communications[0].author_address.as_deref(),
        Some("whatsapp:+1")
    );
    assert_eq!(enriched.communications[0].author_participant_id, None);
    // Two that share it are neither.
    world.participants[1]["addresses"] = json!([{"channel": "SMS", "address": "+1"}]);
    let enriched = world.enrich().await;
    assert_eq!(enriched.communications[0].author_type, None);
}

#[tokio::test]
async fn participants_come_from_the_list_and_one_by_one() {
    let whole = World::new(vec![sms(0), sms(1)]);
    let want = said(whole.clone().enrich().await);
    let mut listed = whole.clone();
    listed.embedded = false;
    let enriched = listed.clone().enrich().await;
    assert_eq!(enriched.conversation.api_calls, 3);
    assert_eq!(said(enriched), want);
    // The list lacks what the single GET has, and leaves one out.
    let server = listed
        .serve_but(|seen, _| {
            let page = json!({"participants": [{"id": "p1"}], "meta": {"nextToken": null}});
            seen.path()
                .ends_with("/Participants")
                .then(|| scripted::ok(&page))
        })
        .await;
    let enriched = enricher(&server, limits()).enrich(&close()).await.unwrap();
    assert_eq!(enriched.conversation.fetched_singly, 2);
    assert_eq!(said(enriched), want);
    // Nobody has the second author.
    let mut removed = whole;
    removed.participants.pop();
    let enriched = removed.enrich().await;
    assert_eq!(enriched.communications[1].missing, ["author_type"]);
    assert_eq!(
        enriched.conversation.missing,
        ["communications.author_type"]
    );
}

#[tokio::test]
async fn a_conversation_that_is_gone() {
    let server = Server::start(|_, _| scripted::error(404)).await;
    let enriched = enricher(&server, limits()).enrich(&close()).await.unwrap();
    assert_eq!(enriched.conversation.completeness, Completeness::Gone);
    assert_eq!(enriched.conversation.conversation_id, "v1");
    assert_eq!(enriched.conversation.account_id.as_deref(), Some("AC1"));
    assert_eq!(enriched.conversation.api_calls, 1);
    assert!(enriched.communications.is_empty());
    // Deleted between the first call and the second.
    let server = World::new(vec![sms(0)])
        .serve_but(|seen, nth| {
            let still = seen.path().ends_with("v1") && nth == 0;
            (!still).then(|| scripted::error(404))
        })
        .await;
    let enriched = enricher(&server, limits()).enrich(&close()).await.unwrap();
    assert_eq!(enriched.conversation.completeness, Completeness::Gone);
    assert_eq!(enriched.conversation.api_calls, 3);
}

async fn dead(server: Server, limits: Limits) -> (&'static str, u32, Option<ResponseStart>) {
    match enricher(&server, limits).enrich(&close()).await {
        Err(EnrichError::Dead {
            reason,
            attempts,
            response,
            ..
        }) => (reason, attempts, response),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_read_that_would_be_short_is_an_error() {
    let world = || World::new((0..4).map(sms).collect()).paged(1);
    let is_list = |seen: &Seen| seen.path().ends_with("/Communications");
    let page = |token: &str| {
        scripted::ok(&json!({"communications": [sms(0)], "meta": {"nextToken": token}}))
    };
    let loops = world()
        .serve_but(move |seen, _| is_list(seen).then(|| page("again")))
        .await;
    assert_eq!(dead(loops, limits()).await.0, "page-token-repeated");

    let two_pages = Limits {
        max_pages: 2,
        ..limits()
    };
    assert_eq!(
        dead(world().serve().await, two_pages).await.0,
        "too-many-pages"
    );
    let four_pages = Limits {
        max_pages: 4,
        ..limits()
    };
    let server = world().serve().await;
    assert!(enricher(&server, four_pages).enrich(&close()).await.is_ok());

    let three = Limits {
        max_communications: 3,
        ..limits()
    };
    assert_eq!(
        dead(world().serve().await, three).await.0,
        "too-many-communications"
    );
    let bytes = Limits {
        max_bytes: 1_000,
        ..limits()
    };
    assert_eq!(dead(world().serve().await, bytes).await.0, "too-many-bytes");

    let no_list = world()
        .serve_but(move |seen, _| is_list(seen).then(|| scripted::error(404)))
        .await;
    assert_eq!(dead(no_list, limits()).await.0, "communications-not-found");
    let dies = world()
        .serve_but(move |seen, nth| (is_list(seen) && nth >= 2).then(|| scripted::error(500)))
        .await;
    assert_eq!(dead(dies, limits()).await.0, "unavailable");
}

#[tokio::test]
async fn a_page_that_is_too_large_is_asked_for_in_parts() {
    let server = World::new((0..4).map(sms).collect())
        .serve_but(|seen, _| {
            let size = seen.query("pageSize")?;
            let too_large = json!({"communications": ["x".repeat(30_000)], "meta": {}});
            (size != "1").then(|| scripted::ok(&too_large))
        })
        .await;
    let enriched = enricher(&server, limits()).enrich(&close()).await.unwrap();
    assert_eq!(enriched.conversation.communications, 4);
    assert_eq!(enriched.conversation.api_calls, 4);
}

#[tokio::test]
async fn a_stale_read_is_read_again() {
    let open = || scripted::ok(&json!({"id": "v1", "status": "INACTIVE"}));
    let stale = World::new(vec![sms(0)])
        .serve_but(move |seen, nth| (seen.path().ends_with("v1") && nth < 3).then(open))
        .await;
    let enriched = enricher(&stale, limits()).enrich(&close()).await.unwrap();
    assert_eq!(enriched.conversation.api_calls, 5);
    let never = World::new(vec![sms(0)])
        .serve_but(move |seen, _| seen.path().ends_with("v1").then(open))
        .await;
    assert_eq!(dead(never, limits()).await.0, "not-closed");
}

#[tokio::test]
async fn poison_is_told_from_an_outage() {
    let html = || scripted::raw(200, &[("content-type", "text/html")], b"<html>canary");
    // The API answers other questions: this conversation is the trouble.
    let poison = World::new(vec![sms(0)])
        .serve_but(move |seen, _| seen.path().contains("/v1").then(html))
        .await;
    let (reason, attempts, response) = dead(poison, limits()).await;
    assert_eq!((reason, attempts), ("malformed-answer", 3));
    assert_eq!(response.as_deref(), Some(&b"<html>canary"[..]));
    // It answers nothing.
    let outages: [fn() -> Reply; 4] = [
        || scripted::raw(200, &[("content-type", "text/html")], b"<html>"),
        || scripted::error(503),
        || scripted::error(429),
        || Reply::Bytes(Vec::new()),
    ];
    for outage in outages {
        let server = Server::start(move |_, _| outage()).await;
        let error = enricher(&server, limits())
            .enrich(&close())
            .await
            .unwrap_err();
        assert!(matches!(error, EnrichError::Later(_)), "{error:?}");
    }
    for status in [401, 403] {
        let server = Server::start(move |_, _| scripted::error(status)).await;
        let error = enricher(&server, limits())
            .enrich(&close())
            .await
            .unwrap_err();
        assert!(matches!(error, EnrichError::Stop(_)), "{error:?}");
    }
    let refused = Server::start(|_, _| scripted::error(400)).await;
    assert_eq!(dead(refused, limits()).await.0, "refused");
}

#[tokio::test]
async fn the_day_a_conversation_closed() {
    let server = World::new(vec![sms(0)]).serve().await;
    let enricher = enricher(&server, limits());
    let received = "2026-11-22T23:59:59Z";
    for (closed, day) in [
        (Some("2026-11-21T23:59:59.999Z"), "2026-11-21"),
        (None, "2026-11-22"),
        (Some("1970-01-01T00:00:00Z"), "2026-11-22"),
        (Some("2015-12-31T23:59:59Z"), "2026-11-22"),
        (Some("2016-01-01T00:00:00Z"), "2016-01-01"),
        (Some("9999-12-30T00:00:00Z"), "2026-11-22"),
        (Some("2026-11-23T23:59:59Z"), "2026-11-23"),
        (Some("2026-11-24T00:00:00Z"), "2026-11-22"),
    ] {
        let close = Close {
            closed_at: closed.map(|text| text.parse().unwrap()),
            received_at: received.parse().unwrap(),
            ..close()
        };
        let row = enricher.enrich(&close).await.unwrap().conversation;
        let midnight: Timestamp = format!("{day}T00:00:00Z").parse().unwrap();
        assert_eq!(
            i64::from(row.date) * 86_400,
            midnight.as_second(),
            "{closed:?}"
        );
        let updated = "2026-11-22T11:58:00Z".parse().unwrap();
        let closed_at = close.closed_at.unwrap_or(updated);
        assert_eq!(row.closed_at, Some(closed_at.as_microsecond()));
    }
}

#[tokio::test]
async fn times_that_are_none_are_kept_as_text() {
    let item = with(
        sms(0),
        json!({"updatedAt": "yesterday", "occurredAt": "2026-11-22T10:00:00"}),
    );
    let mut world = World::new(vec![item]);
    world.conversation["createdAt"] = json!("long ago");
    let enriched = world.enrich().await;
    let row = &enriched.communications[0];
    assert_eq!(row.extra.as_deref(), Some(r#"{"updatedAt":"yesterday"}"#));
    assert_eq!(row.occurred_at.map(|at| at % 60_000_000), Some(0));
    assert_eq!(enriched.conversation.missing, ["created_at"]);
    let extra = enriched.conversation.extra.unwrap();
    assert_eq!(extra, r#"{"createdAt":"long ago","sentiment":1}"#);
}

#[tokio::test]
async fn one_large_conversation_at_a_time() {
    let server = World::new((0..6).map(sms).collect()).paged(2).serve().await;
    let limits = Limits {
        large_threshold: 3,
        ..limits()
    };
    let enricher = enricher(&server, limits);
    let place = Arc::clone(&enricher.large).acquire_owned().await.unwrap();
    let waiting = tokio::spawn({
        let enricher = enricher.clone();
        async move { enricher.enrich(&close()).await }
    });
    let until = Instant::now() + Duration::from_secs(5);
    while server.seen().len() < 3 && Instant::now() < until {
        tokio::task::yield_now().await;
    }
    // Two pages are read; the third would be asked for by now if nothing held it back.
    assert!(enricher.api.answers().await);
    assert_eq!(server.seen().len(), 4);
    assert!(!waiting.is_finished());
    drop(place);
    assert_eq!(waiting.await.unwrap().unwrap().communications.len(), 6);
    assert_eq!(enricher.large.available_permits(), 1);
}

#[tokio::test]
async fn the_hash_says_what_the_rows_say() {
    let world = World::new((0..3).map(sms).collect());
    let one = world.clone().enrich().await;
    let mut other = close();
    other.offset = 99;
    other.closed_at = None;
    let server = world
        .clone()
        .paged(1)
        .lists_lack(&["content"])
        .serve()
        .await;
    let two = enricher(&server, limits()).enrich(&other).await.unwrap();
    assert_eq!(one.conversation.content_hash, two.conversation.content_hash);
    assert_eq!(one.conversation.content_hash.len(), 64);
    let recomputed = content_hash(&one.conversation, &one.communications);
    assert_eq!(one.conversation.content_hash, recomputed);
    let mut changed = world;
    changed.communications[1]["content"]["text"] = json!("other");
    let three = changed.enrich().await;
    assert_ne!(
        one.conversation.content_hash,
        three.conversation.content_hash
    );
}

const DROPPABLE: [&str; 5] = ["createdAt", "author", "content", "recipients", "occurredAt"];

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_split_with_repeats_and_gaps_is_the_same_conversation(
        cuts in proptest::collection::vec(1usize..5, 1..12),
        repeats in proptest::collection::vec(0usize..3, 12),
        gaps in proptest::collection::vec(0u8..32, 12),
        rotate in 0usize..12,
    ) {
        let whole = World::new((0..12).map(sms).collect());
        let mut split = whole.clone();
        split.pages = Vec::new();
        let mut at = 0;
        for (page, size) in cuts.iter().chain(std::iter::repeat(&3)).enumerate() {
            if at >= 12 {
                break;
            }
            // A page begins with some of the one before, as when a list shifts under the reader.
            let from = at - repeats[page % 12].min(at);
            let to = (at + size).min(12);
            split.pages.push((from..to).map(|n| ((n + rotate) % 12, lacks(gaps[n]))).collect());
            at = to;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (one, other) = runtime.block_on(async { (whole.enrich().await, split.enrich().await) });
        prop_assert_eq!(said(one), said(other));
    }
}

fn lacks(mask: u8) -> Vec<&'static str> {
    (0..5)
        .filter(|bit| mask >> bit & 1 == 1)
        .map(|bit| DROPPABLE[bit])
        .collect()
}
