//! What a refusal looks like: `{code, message, more_info, status}`, as Twilio words its errors.
//!
//! Owns the numbers and the statuses. Refuses to decide what is refused.
//!
//! Guarantees: each refusal of the state machine has one status and one number, by a match without a
//! wildcard.

use std::sync::Arc;

use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::super::clock::TooFar;
use super::super::configuration::Invalid;
use super::super::state::Refusal;
use super::json_answer;

/// An error as Twilio words them.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    /// Twilio's error number; where it publishes none, 20000 and the status.
    code: u32,
    pub(crate) message: String,
    /// The living conversation that stands in the way.
    conflicting: Option<Arc<str>>,
}

impl Problem {
    /// Any other status.
    pub(crate) fn new(status: StatusCode, code: u32, message: impl Into<String>) -> Self {
        Problem {
            status,
            code,
            message: message.into(),
            conflicting: None,
        }
    }

    /// A body that is too large or cut short.
    pub(super) fn unreadable(rejection: BytesRejection) -> Self {
        let code = 20_000 + u32::from(rejection.status().as_u16());
        Problem::new(rejection.status(), code, rejection.body_text())
    }

    /// 400.
    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Problem::new(StatusCode::BAD_REQUEST, 20_001, message)
    }

    /// 401.
    pub(super) fn unauthorized() -> Self {
        let message = "Authenticate with account SID and auth token, or API key and secret";
        Problem::new(StatusCode::UNAUTHORIZED, 20_003, message)
    }

    /// 404.
    pub(crate) fn not_found(what: &str) -> Self {
        Problem::new(StatusCode::NOT_FOUND, 20_404, format!("There is no {what}"))
    }

    /// 405.
    pub(super) fn method_not_allowed(message: &str) -> Self {
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, 20_004, message)
    }

    /// 415.
    pub(super) fn unsupported_media_type() -> Self {
        let message = "The content type has to be application/json";
        Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, 20_415, message)
    }

    /// 501.
    pub(super) fn not_implemented(message: &str) -> Self {
        Problem::new(StatusCode::NOT_IMPLEMENTED, 20_501, message)
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        match refusal {
            Refusal::NotFound(what) => Problem::not_found(what),
            Refusal::Closed | Refusal::Taken(_) => {
                Problem::new(StatusCode::CONFLICT, 20_409, message)
            }
            Refusal::Conflict { living } => Problem {
                conflicting: Some(living),
                ..Problem::new(StatusCode::CONFLICT, 20_409, message)
            },
            Refusal::TooMany { .. } | Refusal::Invalid(_) => Problem::bad_request(message),
        }
    }
}

impl From<Invalid> for Problem {
    fn from(invalid: Invalid) -> Self {
        Problem::bad_request(invalid.to_string())
    }
}

impl From<TooFar> for Problem {
    fn from(too_far: TooFar) -> Self {
        Problem::bad_request(too_far.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Shown<'a> {
            code: u32,
            message: &'a str,
            more_info: String,
            status: u16,
        }
        let shown = Shown {
            code: self.code,
            message: &self.message,
            more_info: format!("https://www.twilio.com/docs/errors/{}", self.code),
            status: self.status.as_u16(),
        };
        let mut response = json_answer(self.status, &shown);
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            let realm = HeaderValue::from_static("Basic realm=\"Twilio API\"");
            headers.insert(header::WWW_AUTHENTICATE, realm);
        }
        let id = self.conflicting.map(|id| HeaderValue::from_str(&id));
        if let Some(Ok(id)) = id {
            headers.insert("x-conflicting-resource-id", id);
        }
        response
    }
}
