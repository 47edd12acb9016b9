//! Dead letters and quarantine, back through the pipeline.
//!
//! Owns which of the records that were set aside are published again ([`Selection`], [`decide`]) and what
//! they carry: key, value and the headers of the event, `replayed` in place of why they were set aside.
//! Refuses to judge a second time what the pipeline judges: a record that fails again is a dead letter again.
//!
//! Guarantees: only what is an event now is published. A form stays in quarantine whatever it reads like,
//! because its fields are not proven. The topics that records were set aside in are only read. Repeating a
//! replay is safe: a conversation that is COMPLETE in the lake is not written again, and `events` shows a
//! repeat by its `event_id`.
//!
//! Fails where Kafka does: what was published until then stays, and the same replay again is safe.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use jiff::Timestamp;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::event::{CallbackEvent, header};
use crate::topic::{
    self, Acknowledgement, Gap, Message, PublishError, Publisher, Record, Scan, Topics,
};

/// Records published and not yet acknowledged: far below what the producer's queue takes.
const UNACKNOWLEDGED: usize = 64;

/// Records that stay where they are, named in the report one by one; all are counted.
const NAMED: usize = 1_000;

/// Quarantined for this reason, a body is authentic as a whole and in none of its fields.
const FORM: &str = "form";

/// Which topic is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// Records that a stage of `ingest` gave up on.
    DeadLetters,
    /// Authentic callbacks that `receive` did not understand.
    Quarantine,
    /// Events that the lake has lost; `--offsets` says which.
    Events,
}

/// Which of its records; what is empty or absent selects all.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Stable words: why they were set aside.
    pub reasons: BTreeSet<String>,
    /// Set aside at or after.
    pub since: Option<Timestamp>,
    /// Set aside before.
    pub until: Option<Timestamp>,
    /// Conversation ids.
    pub conversations: BTreeSet<String>,
    /// Places in the topic that is read.
    pub offsets: Vec<Gap>,
}

/// What was found and done.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Which topic was read.
    pub from: Source,
    /// Nothing was published.
    pub dry_run: bool,
    /// Records read.
    pub read: u64,
    /// Records that the selection takes.
    pub selected: u64,
    /// Records published, or that would be.
    pub replayed: u64,
    /// Records that are no event, and stay where they are.
    pub not_understood: u64,
    /// The selected ones by the reason they were set aside for.
    pub by_reason: BTreeMap<String, Counts>,
    /// The first of those that stay.
    pub staying: Vec<Staying>,
}

/// Selected records of one reason.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Published, or that would be.
    pub replayed: u64,
    /// No event.
    pub not_understood: u64,
}

/// A record that stays where it is.
#[derive(Debug, Serialize)]
pub struct Staying {
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Why it is no event, a stable word.
    pub reason: &'static str,
}

/// Why a replay ended early.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The topic could not be read to its end.
    #[error("reading what was set aside; run the same replay again")]
    Read(#[from] topic::Error),
    /// Kafka did not take a record.
    #[error("{replayed} records were replayed, then one was not taken; run the same replay again")]
    Publish {
        /// Acknowledged before.
        replayed: u64,
        /// Why.
        #[source]
        source: PublishError,
    },
}

/// What [`decide`] looks at.
#[derive(Debug, Clone, Copy)]
struct Letter<'a> {
    reason: &'a str,
    key: Option<&'a str>,
    /// Partition and offset.
    place: (i32, i64),
    set_aside_at: Option<Timestamp>,
    value: &'a [u8],
}

impl<'a> Letter<'a> {
    fn of(record: &'a Record) -> Self {
        let text = |bytes: &'a [u8]| std::str::from_utf8(bytes).ok();
        Letter {
            reason: (record.headers.get(header::DEAD_LETTER_REASON))
                .and_then(text)
                .unwrap_or("unknown"),
            key: record.key.as_deref().and_then(text),
            place: (record.partition, record.offset),
            set_aside_at: (record.timestamp_ms).and_then(|ms| Timestamp::from_millisecond(ms).ok()),
            value: &record.value,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Decision<'a> {
    NotSelected,
    NotUnderstood(&'static str),
    Replay(CallbackEvent<'a>),
}

fn decide<'a>(letter: &Letter<'a>, selection: &Selection) -> Decision<'a> {
    let at = letter.set_aside_at;
    let reasons = &selection.reasons;
    let in_time = selection.since.is_none_or(|since| at >= Some(since))
        && selection
            .until
            .is_none_or(|until| at.is_some_and(|at| at < until));
    let (partition, offset) = letter.place;
    let places = &selection.offsets;
    let in_place = places.is_empty() || places.iter().any(|it| it.has(partition, offset));
    if !in_time || !in_place || !(reasons.is_empty() || reasons.contains(letter.reason)) {
        return Decision::NotSelected;
    }
    let event = CallbackEvent::parse(letter.value);
    let conversation = event
        .as_ref()
        .map_or(letter.key, |event| Some(&*event.conversation_id));
    let wanted = &selection.conversations;
    if !wanted.is_empty() && !conversation.is_some_and(|id| wanted.contains(id)) {
        return Decision::NotSelected;
    }
    match event {
        Ok(_) if letter.reason == FORM => Decision::NotUnderstood(FORM),
        Ok(event) if !event.has_usable_type() => Decision::NotUnderstood("unusable-type"),
        Ok(event) => Decision::Replay(event),
        Err(error) => Decision::NotUnderstood(error.reason()),
    }
}

/// Reads all that was set aside in `from` until now, and publishes what `selection` takes and what is an
/// event to the events topic; with `dry_run` only counts.
///
/// # Errors
/// [`ReplayError`].
pub async fn replay(
    kafka: &topic::Settings,
    publisher: &Publisher,
    topics: &Topics,
    from: Source,
    selection: &Selection,
    dry_run: bool,
) -> Result<Report, ReplayError> {
    let topic = match from {
        Source::DeadLetters => &topics.dead_letters,
        Source::Quarantine => &topics.quarantine,
        Source::Events => &topics.events,
    };
    let mut report = Report {
        from,
        dry_run,
        read: 0,
        selected: 0,
        replayed: 0,
        not_understood: 0,
        by_reason: BTreeMap::new(),
        staying: Vec::new(),
    };
    let mut scan = Scan::start(kafka, topic).await?;
    let mut acknowledgements = VecDeque::with_capacity(UNACKNOWLEDGED);
    while let Some(record) = scan.next().await? {
        report.read += 1;
        let letter = Letter::of(&record);
        let decision = decide(&letter, selection);
        if decision == Decision::NotSelected {
            continue;
        }
        report.selected += 1;
        let counts = report.by_reason.entry(letter.reason.to_owned());
        match decision {
            Decision::NotSelected => unreachable!("left above"),
            Decision::NotUnderstood(reason) => {
                counts.or_default().not_understood += 1;
                report.not_understood += 1;
                if report.staying.len() < NAMED {
                    report.staying.push(Staying {
                        partition: record.partition,
                        offset: record.offset,
                        reason,
                    });
                }
            }
            Decision::Replay(event) => {
                counts.or_default().replayed += 1;
                if dry_run {
                    report.replayed += 1;
                    continue;
                }
                acknowledgements.push_back(publish(publisher, topics, &record, &event));
                if acknowledgements.len() >= UNACKNOWLEDGED {
                    acknowledged(&mut acknowledgements, &mut report.replayed).await?;
                }
            }
        }
    }
    while !acknowledgements.is_empty() {
        acknowledged(&mut acknowledgements, &mut report.replayed).await?;
    }
    Ok(report)
}

/// Waits for the oldest.
async fn acknowledged(
    waiting: &mut VecDeque<Acknowledgement>,
    replayed: &mut u64,
) -> Result<(), ReplayError> {
    if let Some(oldest) = waiting.pop_front() {
        oldest.await.map_err(|source| ReplayError::Publish {
            replayed: *replayed,
            source,
        })?;
        *replayed += 1;
    }
    Ok(())
}

fn publish(
    publisher: &Publisher,
    topics: &Topics,
    record: &Record,
    event: &CallbackEvent<'_>,
) -> Acknowledgement {
    let body_sha256: [u8; 32] = Sha256::digest(&record.value).into();
    let attributes = event.attributes(&body_sha256);
    let place = format!("{}/{}/{}", record.topic(), record.partition, record.offset);
    let of_the_event = attributes.headers();
    let mut headers: Vec<(&str, &[u8])> = of_the_event
        .iter()
        .filter_map(|(name, value)| value.map(|value| (*name, value)))
        .collect();
    // A record from before has the attributes already; a quarantined one never had them.
    let ours = |name: &str| {
        name == header::REPLAYED || of_the_event.iter().any(|(attribute, _)| *attribute == name)
    };
    headers.extend(
        record
            .headers
            .of_the_event()
            .filter(|(name, _)| !ours(name)),
    );
    headers.push((header::REPLAYED, place.as_bytes()));
    publisher.publish(&Message {
        topic: &topics.events,
        key: Some(event.conversation_id.as_bytes()),
        value: &record.value,
        headers: &headers,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Duration;

    use super::*;
    use crate::topic::EmbeddedCluster;

    const PATIENCE: Duration = Duration::from_secs(20);
    const CLOSE: &[u8] =
        br#"{"eventType":"CONVERSATION_UPDATED","timestamp":"2026-11-22T10:00:00Z","data":{"id":"v1","accountId":"AC1","status":"CLOSED"}}"#;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn letter(reason: &'static str, value: &'static [u8]) -> Letter<'static> {
        Letter {
            reason,
            key: Some("v1"),
            place: (3, 7),
            set_aside_at: Some(at(100)),
            value,
        }
    }

    fn selects(letter: &Letter<'_>, selection: Selection) -> bool {
        decide(letter, &selection) != Decision::NotSelected
    }

    #[test]
    fn a_selection_is_by_reason_time_and_conversation_together() {
        let letter = letter("not-closed", CLOSE);
        let words = |word: &str| BTreeSet::from([word.to_owned()]);
        let base = Selection::default;
        assert!(selects(&letter, base()));
        for (selection, want) in [
            (
                Selection {
                    reasons: words("not-closed"),
                    ..base()
                },
                true,
            ),
            (
                Selection {
                    offsets: vec!["3:7..8".parse().unwrap()],
                    ..base()
                },
                true,
            ),
            (
                Selection {
                    offsets: vec!["3:0..7".parse().unwrap(), "2:7..8".parse().unwrap()],
                    ..base()
                },
                false,
            ),
            (
                Selection {
                    reasons: words("server-error"),
                    ..base()
                },
                false,
            ),
            (
                Selection {
                    since: Some(at(100)),
                    ..base()
                },
                true,
            ),
            (
                Selection {
                    since: Some(at(101)),
                    ..base()
                },
                false,
            ),
            (
                Selection {
                    until: Some(at(101)),
                    ..base()
                },
                true,
            ),
            (
                Selection {
                    until: Some(at(100)),
                    ..base()
                },
                false,
            ),
            (
                Selection {
                    conversations: words("v1"),
                    ..base()
                },
                true,
            ),
            (
                Selection {
                    conversations: words("v2"),
                    ..base()
                },
                false,
            ),
            (
                Selection {
                    conversations: words("v1"),
                    reasons: words("x"),
                    ..base()
                },
                false,
            ),
        ] {
            assert_eq!(selects(&letter, selection.clone()), want, "{selection:?}");
        }
        // A poison record is found by its key; one without a time is in no range.
        let poison = Letter {
            value: b"\xff",
            ..letter
        };
        assert!(selects(
            &poison,
            Selection {
                conversations: words("v1"),
                ..base()
            }
        ));
        let timeless = Letter {
            set_aside_at: None,
            ..letter
        };
        assert!(selects(&timeless, base()));
        assert!(!selects(
            &timeless,
            Selection {
                since: Some(at(1)),
                ..base()
            }
        ));
        assert!(!selects(
            &timeless,
            Selection {
                until: Some(at(9)),
                ..base()
            }
        ));
    }

    #[test]
    fn only_what_is_an_event_now_is_published_and_a_form_never() {
        let all = Selection::default();
        assert!(matches!(
            decide(&letter("not-json", CLOSE), &all),
            Decision::Replay(_)
        ));
        assert_eq!(
            decide(&letter("not-utf8", b"\xff"), &all),
            Decision::NotUnderstood("not-utf8")
        );
        assert_eq!(
            decide(&letter("form", CLOSE), &all),
            Decision::NotUnderstood("form")
        );
        let odd = br#"{"eventType":"A\u0000B","data":{"id":"1","conversationId":"v1"}}"#;
        assert_eq!(
            decide(&letter("unusable-type", odd), &all),
            Decision::NotUnderstood("unusable-type")
        );
    }

    async fn set_aside(
        publisher: &Publisher,
        topic: &str,
        key: Option<&str>,
        value: &[u8],
        headers: &[(&str, &[u8])],
    ) {
        let message = Message {
            topic,
            key: key.map(str::as_bytes),
            value,
            headers,
        };
        tokio::time::timeout(PATIENCE, publisher.publish(&message))
            .await
            .unwrap()
            .unwrap();
    }

    /// Headers of what is in the events topic.
    async fn replayed(kafka: &topic::Settings, topics: &Topics) -> Vec<HashMap<String, String>> {
        let mut scan = Scan::start(kafka, &topics.events).await.unwrap();
        let mut found = Vec::new();
        while let Some(record) = scan.next().await.unwrap() {
            assert_eq!(record.value, CLOSE);
            assert_eq!(record.key.as_deref(), Some(&b"v1"[..]));
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            let headers = record.headers.iter();
            let headers: Vec<_> = headers
                .map(|(name, value)| (name.to_owned(), text(value.unwrap())))
                .collect();
            let count = headers.len();
            let headers: HashMap<_, _> = headers.into_iter().collect();
            assert_eq!(headers.len(), count, "each header once");
            found.push(headers);
        }
        found
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_dead_letter_and_a_quarantined_event_become_the_record_that_receive_would_have_made()
    {
        let topics = Topics::named("convolake.events");
        let cluster = EmbeddedCluster::start(1, &topics.all()).unwrap();
        let kafka = cluster.settings();
        let publisher = Publisher::start(&kafka).unwrap();
        let event = CallbackEvent::parse(CLOSE).unwrap();
        let attributes = event.attributes(&Sha256::digest(CLOSE).into());
        let mut headers: Vec<_> = attributes
            .headers()
            .into_iter()
            .filter_map(|(n, v)| Some((n, v?)))
            .collect();
        let received: &[(&str, &[u8])] = &[
            (header::CONTENT_TYPE, b"application/json"),
            (header::RECEIVED_AT, b"2026-11-22T10:00:01.000000Z"),
        ];
        headers.extend(received);
        let fresh = headers.clone();
        headers.extend([
            (header::DEAD_LETTER_REASON, &b"not-closed"[..]),
            (header::DEAD_LETTER_STAGE, b"enrich"),
            (header::DEAD_LETTER_OFFSET, b"7"),
            (header::REPLAYED, b"an/earlier/0"),
        ]);
        set_aside(
            &publisher,
            &topics.dead_letters,
            Some("v1"),
            CLOSE,
            &headers,
        )
        .await;
        set_aside(
            &publisher,
            &topics.dead_letters,
            Some("v1"),
            b"\xff",
            &headers,
        )
        .await;
        let reason = (header::DEAD_LETTER_REASON, &b"missing-type"[..]);
        let quarantined = [received, &[reason]].concat();
        set_aside(&publisher, &topics.quarantine, None, CLOSE, &quarantined).await;

        let all = Selection::default();
        let letters = Source::DeadLetters;
        let report = replay(&kafka, &publisher, &topics, letters, &all, true)
            .await
            .unwrap();
        assert_eq!(
            (report.read, report.replayed, report.not_understood),
            (2, 1, 1)
        );
        assert_eq!(
            replayed(&kafka, &topics).await.len(),
            0,
            "a dry run publishes nothing"
        );

        let report = replay(&kafka, &publisher, &topics, letters, &all, false)
            .await
            .unwrap();
        let counts = Counts {
            replayed: 1,
            not_understood: 1,
        };
        assert_eq!(
            report.by_reason,
            BTreeMap::from([("not-closed".to_owned(), counts)])
        );
        assert_eq!(
            (report.staying[0].offset, report.staying[0].reason),
            (1, "not-utf8")
        );
        let quarantine = Source::Quarantine;
        let report = replay(&kafka, &publisher, &topics, quarantine, &all, false)
            .await
            .unwrap();
        assert_eq!((report.read, report.replayed), (1, 1));

        let want: HashMap<String, String> = fresh
            .iter()
            .map(|(name, value)| {
                (
                    (*name).to_owned(),
                    String::from_utf8(value.to_vec()).unwrap(),
                )
            })
            .collect();
        for (mut found, place) in replayed(&kafka, &topics).await.into_iter().zip([
            "convolake.events.dead-letters/0/0",
            "convolake.events.quarantine/0/0",
        ]) {
            assert_eq!(found.remove(header::REPLAYED).as_deref(), Some(place));
            assert_eq!(found, want);
        }
        publisher.close(PATIENCE).await.unwrap();
    }
}
