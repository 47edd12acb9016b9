//! One request on the callback listener: from its head to its answer.
//!
//! Owns the order of the checks (route, method, expectations, size, signature) and every status. Content
//! refuses nothing: what is authentic is kept. Refuses to retry: `topic` does, within the time it gets, and
//! `delivery` has a second way.
//!
//! Guarantees: 204 only after Kafka acknowledged the record or the spool has it on disk; an answer within
//! [`ANSWER_TIME_LIMIT`] of the head; all refusals of the signature are alike to the sender, so that probing tells nothing; no body, query, header or address is
//! logged. While either is awaited, body and head are gone.
//!
//! The lost answer: after a 503, or a connection that broke before its 204, the record may be in Kafka.
//! Twilio's retry then makes a second one with the same `ce_id`, which readers fold.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{
    ALLOW, CONNECTION, CONTENT_ENCODING, CONTENT_TYPE, EXPECT, HeaderValue, RETRY_AFTER,
    TRANSFER_ENCODING,
};
use hyper::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use metrics::{Counter, Histogram};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::delivery::{Delivery, Outgoing};
use super::gate::REFUSED_METHOD;
use super::publish::{Destination, record};
#[cfg(feature = "sabotage")]
use crate::config::sabotage::{self, Sabotage};
use crate::lifecycle::Clock;
use crate::signature::{Refusal, Verifier};
use crate::telemetry;
use crate::topic::{Message, Topics};

/// Largest body. Twilio's callbacks are a few kB.
pub const MAX_BODY_BYTES: usize = 256 * 1024;

/// Time for a whole answer, from its request's head: body, Kafka and spool share it. What has not been proven
/// durable by then is answered 503, so that all of a sender's retries fit into Twilio's 15 s.
pub const ANSWER_TIME_LIMIT: Duration = Duration::from_millis(2_500);

/// Time for a whole body to arrive, from its head: a callback of a few kB comes with it.
pub const BODY_TIME_LIMIT: Duration = Duration::from_secs(2);

/// Bodies up to this size are bounded by the number of connections alone.
const SMALL_BODY_BYTES: usize = 16 * 1024;

/// Memory for all bodies above [`SMALL_BODY_BYTES`] together: unproven bytes of strangers.
const LARGE_BODIES_KBYTES: usize = 64 * 1024;

/// What every connection shares.
#[derive(Debug)]
pub(super) struct Edge {
    verifier: Verifier,
    topics: Topics,
    pub(super) delivery: Delivery,
    clock: Clock,
    large_bodies: Semaphore,
    to_events: Counter,
    to_quarantine: Counter,
    seconds: Histogram,
}

impl Edge {
    pub(super) fn new(
        verifier: Verifier,
        topics: Topics,
        delivery: Delivery,
        clock: Clock,
    ) -> Self {
        let accepted = |destination: &'static str| metrics::counter!(telemetry::CALLBACKS_ACCEPTED, "destination" => destination);
        Edge {
            verifier,
            topics,
            delivery,
            clock,
            large_bodies: Semaphore::new(LARGE_BODIES_KBYTES),
            to_events: accepted("events"),
            to_quarantine: accepted("quarantine"),
            seconds: metrics::histogram!(telemetry::CALLBACK_SECONDS),
        }
    }

    /// Answers one request. Never fails: every failure is an answer.
    pub(super) async fn respond(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let started = Instant::now();
        #[cfg(feature = "sabotage")]
        if sabotage::is(Sabotage::TokenAlone) && sabotage::token_seen(request.headers()) {
            return Ok(Response::new(Full::default()));
        }
        // The gate does not measure chunked bodies, so nothing may follow one.
        let unmeasured = request.headers().contains_key(TRANSFER_ENCODING);
        let outcome = match self.publish(request).await {
            Ok(outgoing) => {
                let destination = outgoing.destination;
                let deadline = started + ANSWER_TIME_LIMIT;
                let delivered = self.delivery.finish(outgoing, deadline).await;
                delivered
                    .map(|()| destination)
                    .map_err(|_| Answer::NotPublished)
            }
            Err(answer) => Err(answer),
        };
        self.seconds.record(started.elapsed());
        let mut response = match outcome {
            Ok(destination) => {
                match destination {
                    Destination::Events => self.to_events.increment(1),
                    Destination::Quarantine => self.to_quarantine.increment(1),
                }
                let mut response = Response::new(Full::default());
                *response.status_mut() = StatusCode::NO_CONTENT;
                response
            }
            Err(answer) => answer.count().response(),
        };
        if unmeasured {
            last(&mut response);
        }
        Ok(response)
    }

    /// Checks, reads, proves and publishes. The request is gone when this returns.
    async fn publish(&self, request: Request<Incoming>) -> Result<Outgoing<'_>, Answer> {
        let received_at = self.clock.now();
        let (head, body) = request.into_parts();
        route(&head.method, &head.uri, self.verifier.url().path())?;
        expectations(&head.headers)?;
        let length = match body.size_hint().exact() {
            Some(length) => usize::try_from(length).unwrap_or(usize::MAX),
            None => MAX_BODY_BYTES,
        };
        if length > MAX_BODY_BYTES {
            return Err(Answer::BodyTooLarge);
        }
        let room = if length > SMALL_BODY_BYTES {
            let kbytes = u32::try_from(length.div_ceil(1024)).expect("at most 256");
            let room = self.large_bodies.try_acquire_many(kbytes);
            Some(room.map_err(|_| Answer::Busy)?)
        } else {
            None
        };
        let body = timeout(BODY_TIME_LIMIT, read(body, length))
            .await
            .map_err(|_| Answer::BodyTooSlow)??;
        let target = head
            .uri
            .path_and_query()
            .map_or("", |target| target.as_str());
        let verified = (self.verifier)
            .verify(target, &head.headers, body)
            .map_err(Answer::Forbidden)?;
        let send = |destination, message: &Message<'_>| self.delivery.start(destination, message);
        let (topics, headers) = (&self.topics, &head.headers);
        let outgoing = record(topics, &verified, headers, received_at, send);
        Ok(outgoing.holding(room))
    }
}

/// Makes `response` the last one of its connection, and says so.
pub(super) fn last(response: &mut Response<Full<Bytes>>) {
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(CONNECTION, close);
}

/// Path first, then method. Both are compared as sent: no escape is decoded, no dot resolved.
fn route(method: &Method, uri: &Uri, path: &str) -> Result<(), Answer> {
    if method.as_str() == REFUSED_METHOD {
        return Err(match uri.path() {
            "/414" => Answer::TargetTooLong,
            "/431" => Answer::HeadTooLarge,
            _ => Answer::Malformed,
        });
    }
    if uri.path() != path {
        return Err(Answer::NotFound);
    }
    if method != Method::POST {
        return Err(Answer::MethodNotAllowed);
    }
    Ok(())
}

fn expectations(headers: &HeaderMap) -> Result<(), Answer> {
    let unknown = |value: &HeaderValue| !value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if headers.get_all(EXPECT).iter().any(unknown) {
        return Err(Answer::ExpectationFailed);
    }
    // Nothing is ever inflated here, so no small request can become a large one.
    if headers.contains_key(CONTENT_ENCODING) {
        return Err(Answer::Encoded);
    }
    Ok(())
}

/// Reads at most `limit` bytes. The common body is one frame and is not copied.
async fn read(mut body: Incoming, limit: usize) -> Result<Bytes, Answer> {
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        // Broken chunks, or an end before the announced one.
        let frame = frame.map_err(|_| Answer::Malformed)?;
        let Ok(data) = frame.into_data() else {
            continue; // trailers are not signed and mean nothing to us
        };
        if first.len() + whole.len() + data.len() > limit {
            return Err(Answer::BodyTooLarge);
        }
        if whole.is_empty() && first.is_empty() {
            first = data;
            continue;
        }
        whole.extend_from_slice(&std::mem::take(&mut first));
        whole.extend_from_slice(&data);
    }
    Ok(if whole.is_empty() {
        first
    } else {
        whole.freeze()
    })
}

/// Every answer but 204.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Malformed,
    Forbidden(Refusal),
    NotFound,
    MethodNotAllowed,
    BodyTooSlow,
    BodyTooLarge,
    TargetTooLong,
    Encoded,
    ExpectationFailed,
    HeadTooLarge,
    Busy,
    NotPublished,
}

impl Answer {
    /// Status, a stable word for the metric, and whether the connection must end because the request
    /// was not read to its end.
    fn parts(self) -> (StatusCode, &'static str, bool) {
        match self {
            Answer::Malformed => (StatusCode::BAD_REQUEST, "malformed", true),
            Answer::Forbidden(refusal) => (StatusCode::FORBIDDEN, refusal.reason(), false),
            Answer::NotFound => (StatusCode::NOT_FOUND, "not-found", true),
            Answer::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "method", true),
            Answer::BodyTooSlow => (StatusCode::REQUEST_TIMEOUT, "body-too-slow", true),
            Answer::BodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", true),
            Answer::TargetTooLong => (StatusCode::URI_TOO_LONG, "target-too-long", true),
            Answer::Encoded => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "encoded", true),
            Answer::ExpectationFailed => (StatusCode::EXPECTATION_FAILED, "expectation", true),
            Answer::HeadTooLarge => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "head-too-large",
                true,
            ),
            Answer::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy", true),
            Answer::NotPublished => (StatusCode::SERVICE_UNAVAILABLE, "not-published", false),
        }
    }

    fn count(self) -> Self {
        let (status, reason, _) = self.parts();
        metrics::counter!(telemetry::CALLBACKS_REFUSED, "reason" => reason).increment(1);
        tracing::info!(status = status.as_u16(), reason, "callback refused");
        self
    }

    fn response(self) -> Response<Full<Bytes>> {
        let (status, _, closes) = self.parts();
        let text = status.canonical_reason().unwrap_or_default().as_bytes();
        let mut response = Response::new(Full::new(Bytes::from_static(text)));
        *response.status_mut() = status;
        if closes {
            last(&mut response);
        }
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        match self {
            Answer::MethodNotAllowed => headers.insert(ALLOW, HeaderValue::from_static("POST")),
            Answer::Busy | Answer::NotPublished => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("1"))
            }
            _ => None,
        };
        response
    }
}
