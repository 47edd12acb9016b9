//! A close that no callback announced: the record that `reconcile` and `verify --repair` publish.
//!
//! Owns its body, which has a callback's form, and its headers: those of any event, and `reconciled` with the
//! reason. By that header `archive` knows that it is no callback and keeps no row of it, and the enricher
//! that a repair replaces rows that look complete.
//!
//! Refuses to decide what needs one. A second one for the same conversation is harmless.

use jiff::Timestamp;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::event::{CLOSED, CallbackEvent, event_type, header};
use crate::topic::{Acknowledgement, Message, Publisher, Record, Topics};

/// Why a close is announced by us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// The lake does not have the conversation.
    Missing,
    /// The lake has it with named columns missing.
    Partial,
    /// The lake has it as deleted, and the API lists it.
    Gone,
    /// What the lake has of it is damaged: its rows are replaced even if their ledger says COMPLETE.
    Repair,
}

impl Why {
    /// The header's value, and the metric's label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Why::Missing => "missing",
            Why::Partial => "partial",
            Why::Gone => "gone",
            Why::Repair => "repair",
        }
    }

    /// Why this record was published, if it is no callback. A word of a newer version asks for the least.
    pub fn of(record: &Record) -> Option<Why> {
        let word = record.headers.get(header::RECONCILED)?;
        let known = [Why::Missing, Why::Partial, Why::Gone, Why::Repair];
        let known = known
            .into_iter()
            .find(|why| why.as_str().as_bytes() == word);
        Some(known.unwrap_or(Why::Missing))
    }
}

/// The close of one conversation.
#[derive(Debug, Clone, Copy)]
pub struct Close<'a> {
    /// Which.
    pub conversation_id: &'a str,
    /// Its account, where known.
    pub account_id: Option<&'a str>,
    /// When it closed, as the API says it, where known.
    pub closed_at: Option<&'a str>,
    /// Why it is announced.
    pub why: Why,
}

/// Hands the record to the producer; the acknowledgement says when Kafka has it.
pub fn publish(
    publisher: &Publisher,
    topics: &Topics,
    close: &Close<'_>,
    now: Timestamp,
) -> Acknowledgement {
    let body = json!({
        "eventType": event_type::CONVERSATION_UPDATED,
        "timestamp": close.closed_at,
        "data": {
            "id": close.conversation_id,
            "accountId": close.account_id,
            "status": CLOSED,
            "updatedAt": close.closed_at,
        },
    })
    .to_string();
    let event = CallbackEvent::parse(body.as_bytes())
        .expect("the id is one that a row or an answer of the API had, both checked");
    let body_sha256: [u8; 32] = Sha256::digest(body.as_bytes()).into();
    let attributes = event.attributes(&body_sha256);
    let received_at = format!("{now:.6}");
    let attributes = attributes.headers();
    let mut headers: Vec<(&str, &[u8])> = attributes
        .iter()
        .filter_map(|(name, value)| value.map(|value| (*name, value)))
        .collect();
    headers.extend([
        (header::CONTENT_TYPE, &b"application/json"[..]),
        (header::RECEIVED_AT, received_at.as_bytes()),
        (header::RECONCILED, close.why.as_str().as_bytes()),
    ]);
    publisher.publish(&Message {
        topic: &topics.events,
        key: Some(close.conversation_id.as_bytes()),
        value: body.as_bytes(),
        headers: &headers,
    })
}
