//! What was sent and what was answered, to be looked at.
//!
//! Owns what is remembered of a delivery, and the sums over all. Bounded in number ([`MAX_REMEMBERED`])
//! and in bytes ([`MAX_REMEMBERED_BYTES`]); the oldest go first. Request headers are kept as sent, but
//! for credentials that a URL may carry: a signature is a digest, and proves nothing about another body.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde::{Serialize, Serializer};
use tokio::sync::watch;

use crate::telemetry;

/// Deliveries that the log remembers.
pub(crate) const MAX_REMEMBERED: usize = 10_000;
/// Bytes of their bodies.
const MAX_REMEMBERED_BYTES: usize = 64 * 1024 * 1024;
/// Start of an answer's body that is kept.
pub(crate) const ANSWER_START_BYTES: usize = 512;

/// What became of callbacks so far. Every sum counts repeats as deliveries of their own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Outcomes {
    pub(crate) deliveries: u64,
    pub(crate) accepted: u64,
    pub(crate) refused: u64,
    pub(crate) unanswered: u64,
    pub(crate) duplicate: u64,
    pub(crate) lost: u64,
    pub(crate) retries: u64,
}

/// What was sent and what was answered.
#[derive(Debug, Default)]
pub(crate) struct Log {
    kept: Mutex<Kept>,
    /// Deliveries that are not at their end.
    pub(super) outstanding: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Kept {
    deliveries: VecDeque<Delivery>,
    bytes: usize,
    forgotten: u64,
    outcomes: Outcomes,
}

/// One delivery, all its tries.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Delivery {
    pub(crate) token: String,
    pub(crate) event_type: &'static str,
    pub(crate) conversation_id: Arc<str>,
    /// As configured, with its fragment.
    pub(crate) url: Arc<str>,
    pub(crate) method: &'static str,
    /// Sent once more on purpose.
    pub(crate) duplicate: bool,
    /// The fault that fell on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fault: Option<&'static str>,
    pub(crate) accepted: bool,
    /// Of the last try.
    #[serde(serialize_with = "as_object")]
    pub(crate) headers: Vec<(&'static str, String)>,
    #[serde(serialize_with = "as_json")]
    pub(crate) body: Bytes,
    pub(crate) attempts: Vec<Attempt>,
}

/// One try.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Attempt {
    /// The answer's status.
    pub(crate) status: Option<u16>,
    /// Why there was none: `timeout`, `connect`, `url` or `broken`.
    pub(crate) error: Option<&'static str>,
    /// The start of the answer's body.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) answer: String,
    pub(crate) milliseconds: u64,
}

/// Which deliveries are shown.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    conversation_id: Option<String>,
    event_type: Option<String>,
}

impl Filter {
    /// `conversationId=…&eventType=…`, each optional; other parameters are not used.
    pub(crate) fn parse(query: &str) -> Self {
        let mut filter = Filter::default();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "conversationId" => filter.conversation_id = Some(value.into_owned()),
                "eventType" => filter.event_type = Some(value.into_owned()),
                _ => {}
            }
        }
        filter
    }

    fn takes(&self, delivery: &Delivery) -> bool {
        let wanted =
            |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|it| it == is);
        wanted(&self.conversation_id, &delivery.conversation_id)
            && wanted(&self.event_type, delivery.event_type)
    }
}

impl Log {
    /// Sums since the start.
    pub(crate) fn outcomes(&self) -> Outcomes {
        self.kept().outcomes
    }

    /// `{"deliveries": […], "forgotten": n}`: those that `filter` takes, in the order of their ends.
    pub(crate) fn to_json(&self, filter: &Filter) -> Vec<u8> {
        #[derive(Serialize)]
        struct Answer<'a> {
            deliveries: Vec<&'a Delivery>,
            forgotten: u64,
        }
        let kept = self.kept();
        let taken = kept.deliveries.iter().filter(|it| filter.takes(it));
        serde_json::to_vec(&Answer {
            deliveries: taken.collect(),
            forgotten: kept.forgotten,
        })
        .expect("the log has string keys, and memory does not fail to write")
    }

    /// What is remembered of the conversation `id`, in the order of its ends.
    pub(crate) fn of_conversation(&self, id: &str) -> Vec<Delivery> {
        let kept = self.kept();
        let of_it = |delivery: &&Delivery| &*delivery.conversation_id == id;
        kept.deliveries.iter().filter(of_it).cloned().collect()
    }

    pub(super) fn record(&self, delivery: Delivery) {
        let answered = delivery.attempts.iter().any(|a| a.status.is_some());
        let outcome = match (delivery.accepted, answered, delivery.attempts.is_empty()) {
            (true, _, _) => "accepted",
            (false, true, _) => "refused",
            (false, false, false) => "unanswered",
            (false, false, true) => "lost",
        };
        metrics::counter!(telemetry::EMULATOR_DELIVERIES, "outcome" => outcome).increment(1);
        let mut kept = self.kept();
        let sums = &mut kept.outcomes;
        sums.deliveries += 1;
        sums.accepted += u64::from(outcome == "accepted");
        sums.refused += u64::from(outcome == "refused");
        sums.unanswered += u64::from(outcome == "unanswered");
        sums.lost += u64::from(outcome == "lost");
        sums.duplicate += u64::from(delivery.duplicate);
        sums.retries += delivery.attempts.len().saturating_sub(1) as u64;
        kept.bytes += delivery.body.len();
        kept.deliveries.push_back(delivery);
        while kept.deliveries.len() > MAX_REMEMBERED || kept.bytes > MAX_REMEMBERED_BYTES {
            let Some(oldest) = kept.deliveries.pop_front() else {
                break;
            };
            kept.bytes -= oldest.body.len();
            kept.forgotten += 1;
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn as_object<S: Serializer>(
    headers: &[(&'static str, String)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(headers.iter().map(|(name, value)| (name, value)))
}

/// The body as the JSON that it is.
fn as_json<S: Serializer>(body: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    let raw: &serde_json::value::RawValue =
        serde_json::from_slice(body).map_err(serde::ser::Error::custom)?;
    raw.serialize(serializer)
}
