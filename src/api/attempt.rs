//! One try: send the request, read at most so much, judge what came back.
//!
//! Owns the judgement of statuses and bodies. Guarantees: what is read is bounded after inflation and in
//! time; a resource is returned only when it parses, has the asked ids and nothing of a wrong type.
//! serde's messages quote the offending value, so only the place of a flaw is passed on.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, DATE, HeaderMap, RETRY_AFTER};
use reqwest::{Response, StatusCode};
use tokio::time::Instant;
use url::Url;

use super::error::{ApiError, ResponseStart};
use super::resource::{Reply, Wanted};
use super::{Api, pace};
use crate::telemetry;

/// What is asked for, as the label of the metrics.
#[derive(Debug, Clone, Copy)]
pub(super) enum Route {
    Configuration,
    Conversation,
    Conversations,
    Communication,
    Communications,
    Participant,
    Participants,
    Probe,
}

impl Route {
    fn as_str(self) -> &'static str {
        match self {
            Route::Configuration => "configuration",
            Route::Conversation => "conversation",
            Route::Conversations => "conversations",
            Route::Communication => "communication",
            Route::Communications => "communications",
            Route::Participant => "participant",
            Route::Participants => "participants",
            Route::Probe => "probe",
        }
    }
}

/// What one try came to.
pub(super) enum Verdict<T> {
    Answer { value: T, bytes: usize },
    Final(Refusal),
    Again(Trouble),
}

/// An answer that another try would not change.
pub(super) enum Refusal {
    NotFound,
    Unauthorized(StatusCode),
    Refused(StatusCode, ResponseStart),
    TooLarge { limit_bytes: usize },
}

impl Refusal {
    pub(super) fn into_error(self, calls: u32) -> ApiError {
        match self {
            Refusal::NotFound => ApiError::NotFound { calls },
            Refusal::Unauthorized(status) => ApiError::Unauthorized {
                status: status.as_u16(),
                calls,
            },
            Refusal::Refused(status, response) => ApiError::Refused {
                status: status.as_u16(),
                calls,
                response,
            },
            Refusal::TooLarge { limit_bytes } => ApiError::TooLarge { limit_bytes, calls },
        }
    }
}

/// A failure that another try may not meet.
pub(super) enum Trouble {
    Throttled(Option<Duration>),
    Unavailable(StatusCode, Option<Duration>, ResponseStart),
    Redirected(StatusCode),
    Malformed(String, ResponseStart),
    Unreachable(reqwest::Error),
}

impl Trouble {
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Trouble::Throttled(after) | Trouble::Unavailable(_, after, _) => *after,
            Trouble::Redirected(_) | Trouble::Malformed(..) | Trouble::Unreachable(_) => None,
        }
    }

    pub(super) fn is_throttle(&self) -> bool {
        matches!(self, Trouble::Throttled(_))
    }

    pub(super) fn into_error(self, calls: u32, last_sent: Instant) -> ApiError {
        match self {
            Trouble::Throttled(_) => ApiError::Throttled { calls },
            Trouble::Unavailable(status, _, response) => ApiError::Unavailable {
                status: status.as_u16(),
                calls,
                last_sent,
                response,
            },
            Trouble::Redirected(status) => ApiError::Redirected {
                status: status.as_u16(),
                calls,
                last_sent,
            },
            Trouble::Malformed(flaw, response) => ApiError::Malformed {
                flaw,
                calls,
                last_sent,
                response,
            },
            Trouble::Unreachable(source) => ApiError::Unreachable {
                calls,
                last_sent,
                source,
            },
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Trouble::Throttled(_) => "throttled",
            Trouble::Unavailable(..) => "unavailable",
            Trouble::Redirected(_) => "redirected",
            Trouble::Malformed(..) => "malformed",
            Trouble::Unreachable(_) => "unreachable",
        }
    }
}

impl<T> Verdict<T> {
    fn label(&self) -> &'static str {
        match self {
            Verdict::Answer { .. } => "answered",
            Verdict::Final(Refusal::NotFound) => "not-found",
            Verdict::Final(Refusal::Unauthorized(_)) => "unauthorized",
            Verdict::Final(Refusal::Refused(..)) => "refused",
            Verdict::Final(Refusal::TooLarge { .. }) => "too-large",
            Verdict::Again(trouble) => trouble.label(),
        }
    }

    /// Whether the API itself spoke, and about what was asked.
    fn is_real(&self) -> bool {
        match self {
            Verdict::Answer { .. }
            | Verdict::Final(Refusal::NotFound | Refusal::Refused(..) | Refusal::TooLarge { .. }) => {
                true
            }
            Verdict::Final(Refusal::Unauthorized(_)) | Verdict::Again(_) => false,
        }
    }
}

impl Api {
    /// One request and its judgement, measured.
    pub(super) async fn attempt<T: Reply>(
        &self,
        route: Route,
        url: Url,
        wanted: &Wanted<'_>,
        timeout: Duration,
    ) -> Verdict<T> {
        let sent = Instant::now();
        let verdict = self.judge(url, wanted, timeout).await;
        let (route, outcome) = (route.as_str(), verdict.label());
        metrics::histogram!(telemetry::API_SECONDS, "route" => route).record(sent.elapsed());
        metrics::counter!(telemetry::API_REQUESTS, "route" => route, "outcome" => outcome)
            .increment(1);
        if verdict.is_real() {
            self.0.pace.answered();
        }
        verdict
    }

    async fn judge<T: Reply>(
        &self,
        url: Url,
        wanted: &Wanted<'_>,
        timeout: Duration,
    ) -> Verdict<T> {
        let limit_bytes = self.0.settings.max_body_bytes;
        let request = self
            .0
            .http
            .get(url)
            .header(AUTHORIZATION, &self.0.authorization)
            .header(ACCEPT, "application/json")
            .timeout(timeout);
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => return Verdict::Again(Trouble::Unreachable(error.without_url())),
        };
        let status = response.status();
        let headers = response.headers().clone();
        if status.is_redirection() {
            return Verdict::Again(Trouble::Redirected(status));
        }
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Verdict::Final(Refusal::Unauthorized(status));
        }
        let body = match read(response, limit_bytes).await {
            Ok(Some(body)) => body,
            Ok(None) => return Verdict::Final(Refusal::TooLarge { limit_bytes }),
            Err(error) => return Verdict::Again(Trouble::Unreachable(error.without_url())),
        };
        let start = || ResponseStart::of(&body);
        match status {
            StatusCode::OK => match parse(&headers, &body, wanted) {
                Ok(value) => Verdict::Answer {
                    value,
                    bytes: body.len(),
                },
                Err(flaw) => Verdict::Again(Trouble::Malformed(flaw, start())),
            },
            StatusCode::TOO_MANY_REQUESTS => {
                Verdict::Again(Trouble::Throttled(self.retry_after(&headers)))
            }
            // 408 and 425 ask for another try (RFC 9110, RFC 8470).
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY => {
                Verdict::Again(Trouble::Unavailable(status, None, start()))
            }
            _ if status.is_server_error() => {
                let after = self.retry_after(&headers);
                Verdict::Again(Trouble::Unavailable(status, after, start()))
            }
            StatusCode::NOT_FOUND | StatusCode::GONE if is_json_object(&headers, &body) => {
                Verdict::Final(Refusal::NotFound)
            }
            StatusCode::NOT_FOUND | StatusCode::GONE => {
                let flaw = format!("{} without a JSON error", status.as_u16());
                Verdict::Again(Trouble::Malformed(flaw, start()))
            }
            _ if status.is_client_error() => Verdict::Final(Refusal::Refused(status, start())),
            // Another 2xx (a 206 is a part, a 204 nothing) is not how a GET is documented to answer.
            _ => {
                let flaw = format!("status {} to a GET", status.as_u16());
                Verdict::Again(Trouble::Malformed(flaw, start()))
            }
        }
    }

    fn retry_after(&self, headers: &HeaderMap) -> Option<Duration> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        // By the sender's own clock where it gives one: two clocks need not agree.
        let now = text(DATE).and_then(pace::http_date);
        pace::retry_after(
            text(RETRY_AFTER)?,
            now.unwrap_or_else(|| self.0.clock.now()),
        )
    }
}

/// Reads the body, inflated; `None` if it is larger than the limit.
async fn read(mut response: Response, limit_bytes: usize) -> Result<Option<Bytes>, reqwest::Error> {
    let announced = response.content_length().unwrap_or(0);
    if announced > limit_bytes as u64 {
        return Ok(None);
    }
    let Some(first) = response.chunk().await? else {
        return Ok(Some(Bytes::new()));
    };
    let mut body = BytesMut::from(first);
    while body.len() <= limit_bytes {
        let Some(chunk) = response.chunk().await? else {
            return Ok(Some(body.freeze()));
        };
        body.extend_from_slice(&chunk);
    }
    Ok(None)
}

fn parse<T: Reply>(headers: &HeaderMap, body: &[u8], wanted: &Wanted<'_>) -> Result<T, String> {
    if !is_json(headers) {
        return Err("its content type is not JSON".to_owned());
    }
    let value: T = serde_json::from_slice(body).map_err(|error| {
        let kind = match error.classify() {
            serde_json::error::Category::Io | serde_json::error::Category::Syntax => "not JSON",
            serde_json::error::Category::Data => "not of the documented types",
            serde_json::error::Category::Eof => "cut short",
        };
        format!("{kind} at line {} column {}", error.line(), error.column())
    })?;
    match value.flaw(wanted) {
        Some(flaw) => Err(flaw.to_owned()),
        None => Ok(value),
    }
}

fn is_json_object(headers: &HeaderMap, body: &[u8]) -> bool {
    is_json(headers)
        && serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(body).is_ok()
}

/// `application/json` or `application/…+json`; an answer without a content type is judged by its body.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE) else {
        return true;
    };
    let kind = value.to_str().unwrap_or("").split(';').next().unwrap_or("");
    let kind = kind.trim().to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}
