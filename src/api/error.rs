//! Why a call to the API gave no answer, and what the caller is to do about it.
//!
//! Owns the boundary's error and its verdict ([`Outcome`], by a match with no wildcard). Refuses to hold
//! anything printable of an answer: the start of a malformed one travels in [`ResponseStart`], for the
//! dead letter alone, and URLs (ids, tokens) are stripped from the causes.

use std::fmt;
use std::ops::Deref;

use tokio::time::Instant;

/// Most of a refused or malformed answer that is kept.
pub const RESPONSE_START_BYTES: usize = 4 * 1024;

/// The start of an answer, at most [`RESPONSE_START_BYTES`]. It can hold message text, so it does not
/// print; `as_deref()` and `to_vec()` give the bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct ResponseStart(Vec<u8>);

impl ResponseStart {
    /// Keeps the start of `body`.
    pub fn of(body: &[u8]) -> Self {
        ResponseStart(body[..body.len().min(RESPONSE_START_BYTES)].to_vec())
    }
}

impl Deref for ResponseStart {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for ResponseStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ResponseStart({} bytes)", self.0.len())
    }
}

/// A call without an answer. `calls` counts the requests that were sent for it, retries included.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// 404 in the API's own words (a JSON object). Another 404 is [`ApiError::Malformed`]: it says that
    /// something else answers at this address.
    #[error("the API has no such resource")]
    NotFound {
        /// Requests sent.
        calls: u32,
    },
    /// 401 or 403.
    #[error(
        "the API refuses the credentials ({status}); check TWILIO_API_KEY and TWILIO_API_SECRET, or \
         TWILIO_ACCOUNT_SID and TWILIO_AUTH_TOKEN"
    )]
    Unauthorized {
        /// 401 or 403.
        status: u16,
        /// Requests sent.
        calls: u32,
    },
    /// Another 4xx: asking again would not help.
    #[error("the API refused the request ({status}); see the response in the dead letter")]
    Refused {
        /// The status.
        status: u16,
        /// Requests sent.
        calls: u32,
        /// How it put it.
        response: ResponseStart,
    },
    /// The id cannot be a path segment, so nothing was sent.
    #[error(
        "the id cannot be asked for; it is empty, too long, dots alone, or has control characters"
    )]
    UnusableId,
    /// The answer, inflated, is larger than the limit.
    #[error("the answer is larger than {limit_bytes} bytes; ask for smaller pages")]
    TooLarge {
        /// The limit.
        limit_bytes: usize,
        /// Requests sent.
        calls: u32,
    },
    /// Every try was answered, the last one not as documented.
    #[error("after {calls} tries the API's answer makes no sense: {flaw}")]
    Malformed {
        /// What is wrong with it, without content.
        flaw: String,
        /// Requests sent.
        calls: u32,
        /// When the last one was sent.
        last_sent: Instant,
        /// The start of the last answer.
        response: ResponseStart,
    },
    /// Every try failed, the last one by a redirect. They are not followed: credentials go nowhere else.
    #[error("after {calls} tries the API redirects ({status}); check --api-url")]
    Redirected {
        /// The 3xx.
        status: u16,
        /// Requests sent.
        calls: u32,
        /// When the last one was sent.
        last_sent: Instant,
    },
    /// Every try failed, the last one by 429.
    #[error("after {calls} tries the API still asks to slow down; lower --requests-per-second")]
    Throttled {
        /// Requests sent.
        calls: u32,
    },
    /// Every try failed, the last one by a 5xx.
    #[error("after {calls} tries the API still fails ({status})")]
    Unavailable {
        /// The 5xx (or 408, 425).
        status: u16,
        /// Requests sent.
        calls: u32,
        /// When the last one was sent.
        last_sent: Instant,
        /// How it put it.
        response: ResponseStart,
    },
    /// Every try failed, the last one before a whole answer was there: no connection, a cut, a timeout.
    #[error("after {calls} tries the API gives no whole answer")]
    Unreachable {
        /// Requests sent.
        calls: u32,
        /// When the last one was sent.
        last_sent: Instant,
        /// The cause, its URL removed.
        #[source]
        source: reqwest::Error,
    },
}

/// What is to be done about an [`ApiError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// What was asked for does not exist (any more).
    Gone,
    /// Stop consuming: every other call would fail alike, and nothing is to be set aside for it.
    Stop,
    /// Set aside: it would fail again.
    DeadLetter,
    /// Set aside if the API answered others since the given time; else try again later.
    DeadLetterIfAnsweredSince(Instant),
    /// Try again later.
    Later,
}

impl ApiError {
    /// What is to be done.
    pub fn outcome(&self) -> Outcome {
        match self {
            ApiError::NotFound { .. } => Outcome::Gone,
            ApiError::Unauthorized { .. } => Outcome::Stop,
            ApiError::Refused { .. } | ApiError::UnusableId | ApiError::TooLarge { .. } => {
                Outcome::DeadLetter
            }
            ApiError::Malformed { last_sent, .. }
            | ApiError::Redirected { last_sent, .. }
            | ApiError::Unavailable { last_sent, .. }
            | ApiError::Unreachable { last_sent, .. } => {
                Outcome::DeadLetterIfAnsweredSince(*last_sent)
            }
            ApiError::Throttled { .. } => Outcome::Later,
        }
    }

    /// A stable word: `dead-letter-reason` and metric label.
    pub fn reason(&self) -> &'static str {
        match self {
            ApiError::NotFound { .. } => "not-found",
            ApiError::Unauthorized { .. } => "unauthorized",
            ApiError::Refused { .. } => "refused",
            ApiError::UnusableId => "unusable-id",
            ApiError::TooLarge { .. } => "answer-too-large",
            ApiError::Malformed { .. } => "malformed-answer",
            ApiError::Redirected { .. } => "redirected",
            ApiError::Throttled { .. } => "throttled",
            ApiError::Unavailable { .. } => "unavailable",
            ApiError::Unreachable { .. } => "unreachable",
        }
    }

    /// Requests that were sent for the call, retries included.
    pub fn calls(&self) -> u32 {
        match self {
            ApiError::UnusableId => 0,
            ApiError::NotFound { calls }
            | ApiError::Unauthorized { calls, .. }
            | ApiError::Refused { calls, .. }
            | ApiError::TooLarge { calls, .. }
            | ApiError::Malformed { calls, .. }
            | ApiError::Redirected { calls, .. }
            | ApiError::Throttled { calls }
            | ApiError::Unavailable { calls, .. }
            | ApiError::Unreachable { calls, .. } => *calls,
        }
    }

    /// The start of the last answer, where there was one worth keeping.
    pub fn response(&self) -> Option<&ResponseStart> {
        match self {
            ApiError::Refused { response, .. }
            | ApiError::Malformed { response, .. }
            | ApiError::Unavailable { response, .. } => Some(response),
            ApiError::NotFound { .. }
            | ApiError::Unauthorized { .. }
            | ApiError::UnusableId
            | ApiError::TooLarge { .. }
            | ApiError::Redirected { .. }
            | ApiError::Throttled { .. }
            | ApiError::Unreachable { .. } => None,
        }
    }
}
