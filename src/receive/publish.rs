//! What a verified body becomes in Kafka: topic, key, headers.
//!
//! Owns the record contract of the events topic (CloudEvents 1.0 Kafka binding, binary mode) and of
//! quarantine. Takes nothing but [`Verified`] bodies, so no unproven byte can be published or spooled.
//! Refuses to change a body, or to refuse one for what it says.
//!
//! Guarantees: no clock and no I/O; what came unsigned (request headers) is bounded
//! and visible ASCII before it becomes a record header.

use hyper::HeaderMap;
use hyper::header::CONTENT_TYPE;
use jiff::Timestamp;

use crate::event::{CallbackEvent, MAX_HEADER_BYTES, copyable, header, write_hex};
use crate::signature::{Proof, Verified};
use crate::topic::{Message, Topics};

/// Twilio's retry token.
const TOKEN_HEADER: &str = "i-twilio-idempotency-token";

/// Where a callback went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Destination {
    /// It is an event.
    Events,
    /// It is Twilio's, and not understood: kept.
    Quarantine,
}

/// Gives `send` the record that `verified` becomes. It borrows body and headers, so that what `send`
/// returns lets both go while an answer is awaited.
pub(super) fn record<T>(
    topics: &Topics,
    verified: &Verified,
    request: &HeaderMap,
    received_at: Timestamp,
    send: impl FnOnce(Destination, &Message<'_>) -> T,
) -> T {
    let transport = Transport::of(verified, request, received_at);
    match understood(verified) {
        Ok(event) => {
            let attributes = event.attributes(verified.sha256());
            let headers = transport.after(&attributes.headers());
            let message = Message {
                topic: &topics.events,
                key: Some(event.conversation_id.as_bytes()),
                value: verified.body(),
                headers: &headers,
            };
            send(Destination::Events, &message)
        }
        Err(reason) => {
            tracing::warn!(
                reason,
                "an authentic callback was not understood; it is kept in quarantine"
            );
            let headers = transport.after(&[
                (header::DEAD_LETTER_REASON, Some(reason.as_bytes())),
                (header::DEAD_LETTER_STAGE, Some(b"receive")),
            ]);
            let message = Message {
                topic: &topics.quarantine,
                key: None,
                value: verified.body(),
                headers: &headers,
            };
            send(Destination::Quarantine, &message)
        }
    }
}

/// The event in a body whose every byte is proven, or a stable word why there is none.
fn understood(verified: &Verified) -> Result<CallbackEvent<'_>, &'static str> {
    if verified.proof() == Proof::Parameters {
        // Where its fields begin and end is not proven, so they cannot decide where it goes.
        return Err("form");
    }
    let event = CallbackEvent::parse(verified.body()).map_err(|error| error.reason())?;
    if !event.has_usable_type() {
        return Err("unusable-type");
    }
    Ok(event)
}

type RecordHeader<'a> = (&'a str, &'a [u8]);

/// Headers that every record has, whatever its body says.
struct Transport<'a> {
    content_type: &'a [u8],
    received_at: String,
    token: Option<&'a [u8]>,
    traceparent: [u8; 55],
}

impl<'a> Transport<'a> {
    fn of(verified: &Verified, request: &'a HeaderMap, received_at: Timestamp) -> Self {
        let single = |name| {
            let mut values = request.get_all(name).iter();
            let value = values.next().map(|value| value.as_bytes());
            value.filter(|_| values.next().is_none())
        };
        // A media type may have a space before its parameters.
        let content_type = single(CONTENT_TYPE.as_str())
            .filter(|value| value.len() <= MAX_HEADER_BYTES)
            .filter(|value| (value.iter()).all(|byte| matches!(byte, b' '..=b'~')));
        Transport {
            content_type: content_type.unwrap_or(b"application/octet-stream"),
            received_at: format!("{received_at:.6}"),
            token: single(TOKEN_HEADER).and_then(copyable),
            traceparent: single(header::TRACEPARENT)
                .and_then(well_formed)
                .unwrap_or_else(|| new_trace(verified.sha256(), received_at)),
        }
    }

    fn after<'b>(&'b self, first: &[(&'b str, Option<&'b [u8]>)]) -> Vec<RecordHeader<'b>> {
        let mut headers = Vec::with_capacity(first.len() + 4);
        for (name, value) in first {
            headers.extend(value.map(|value| (*name, value)));
        }
        headers.push((header::CONTENT_TYPE, self.content_type));
        headers.push((header::RECEIVED_AT, self.received_at.as_bytes()));
        headers.extend(self.token.map(|token| (header::IDEMPOTENCY_TOKEN, token)));
        headers.push((header::TRACEPARENT, &self.traceparent));
        headers
    }
}

/// Version 00 of W3C Trace Context: `00-<32 hex>-<16 hex>-<2 hex>`, ids not all zero.
fn well_formed(value: &[u8]) -> Option<[u8; 55]> {
    let value: [u8; 55] = value.try_into().ok()?;
    let fields = (&value[..3], &value[3..35], &value[36..52], &value[53..]);
    let dashes = value[35] == b'-' && value[52] == b'-';
    let hex = |field: &[u8]| (field.iter()).all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let some = |field: &[u8]| field.iter().any(|byte| *byte != b'0');
    let (version, trace, parent, flags) = fields;
    (version == b"00-" && dashes)
        .then(|| [trace, parent, flags].into_iter().all(hex) && some(trace) && some(parent))
        .filter(|well_formed| *well_formed)
        .map(|_| value)
}

/// A trace that starts here: named by the body, so that repeats of one callback are seen together, with a
/// parent named by the time as well. Not sampled: nothing was recorded yet.
fn new_trace(body_sha256: &[u8; 32], received_at: Timestamp) -> [u8; 55] {
    let mut traceparent = *b"00-00000000000000000000000000000000-0000000000000000-00";
    write_hex(&body_sha256[..16], &mut traceparent[3..35]);
    let seed: [u8; 8] = body_sha256[16..24].try_into().expect("eight bytes");
    let parent = u64::from_be_bytes(seed) ^ received_at.as_microsecond().cast_unsigned();
    write_hex(&parent.max(1).to_be_bytes(), &mut traceparent[36..52]);
    traceparent
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_well_formed_trace_passes_and_no_other() {
        assert_eq!(
            well_formed(TRACE.as_bytes())
                .as_ref()
                .map(|trace| &trace[..]),
            Some(TRACE.as_bytes())
        );
        for bad in [
            "",
            &TRACE.to_uppercase(),
            &TRACE.replacen("00-", "ff-", 1),
            &TRACE.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &TRACE.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &TRACE.replace("7-01", "7_01"),
            &format!("{TRACE}-extra"),
        ] {
            assert_eq!(well_formed(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_new_trace_is_well_formed_and_shared_by_repeats() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let (first, second) = (new_trace(&[7; 32], at(1)), new_trace(&[7; 32], at(2)));
        assert!(well_formed(&first).is_some());
        assert_eq!(first[..35], second[..35]);
        assert_ne!(first[36..52], second[36..52]);
    }
}
