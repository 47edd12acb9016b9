//! One call to the Conversation Orchestrator's REST API (Conversations v2): asked, retried, judged.
//!
//! Owns authentication, the shared rate budget (`pace`), bounded retries, and the line between an
//! answer and a failure. Refuses to decide what a conversation needs (`enrich`) and sends GETs only.
//! This is the only place but `topic` that retries.
//!
//! Guarantees: requests go to the configured origin alone (ids are path segments, page tokens are query
//! values, redirects are not followed, proxies of the environment are not used). An answer is at most
//! [`Settings::max_body_bytes`], counted after inflation. It is JSON of the documented types with usable
//! ids, or it is tried again: a proxy's HTML, a cut body, a wrong type. Attempts, each one's time and the
//! total time are bounded. A lost answer costs nothing: GETs can be repeated.
//!
//! Fails with [`ApiError`], whose [`ApiError::outcome`] says what to do. No credential, text or id is in
//! an error, a metric or a log event.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use reqwest::header::HeaderValue;
use tokio::time::Instant;
use url::Url;

use crate::lifecycle::Clock;

mod attempt;
mod error;
mod pace;
pub mod resource;
#[cfg(test)]
pub(crate) mod scripted;
#[cfg(test)]
mod tests;

use attempt::{Route, Verdict};
pub use error::{ApiError, Outcome, RESPONSE_START_BYTES, ResponseStart};
use pace::{Cause, Pace};
use resource::{Communication, Configuration, Conversation, Page, Participant, Reply, Wanted};

/// Default of [`Settings::requests_per_second`].
pub const REQUESTS_PER_SECOND: NonZeroU32 = NonZeroU32::new(20).expect("20 is not 0");
/// Default of [`Settings::max_in_flight`].
pub const MAX_IN_FLIGHT: NonZeroU32 = NonZeroU32::new(32).expect("32 is not 0");
/// Default of [`Settings::max_attempts`].
pub const MAX_ATTEMPTS: NonZeroU32 = NonZeroU32::new(8).expect("8 is not 0");
/// Default of [`Settings::total_budget`].
pub const TOTAL_BUDGET: Duration = Duration::from_secs(60);
/// Default of [`Settings::request_timeout`].
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// Default of [`Settings::connect_timeout`].
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Default of [`Settings::min_delay`].
pub const MIN_DELAY: Duration = Duration::from_millis(250);
/// Default of [`Settings::max_delay`].
pub const MAX_DELAY: Duration = Duration::from_secs(10);
/// Default of [`Settings::max_retry_after`].
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);
/// Default of [`Settings::max_body_bytes`]: one communication has at most 8 MiB of text, and its escapes.
pub const MAX_BODY_BYTES: usize = 16 * 1024 * 1024;
/// Default of [`Settings::page_size`]; the API takes 1 to 1000.
pub const PAGE_SIZE: NonZeroU32 = NonZeroU32::new(100).expect("100 is not 0");

/// How the API is called.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Origin and optional path prefix; `/v2/…` is added. `http` or `https`.
    pub base_url: Url,
    /// Who calls.
    pub credentials: Credentials,
    /// Requests per second, shared by all clones of one [`Api`].
    pub requests_per_second: NonZeroU32,
    /// Requests under way at once, shared likewise.
    pub max_in_flight: NonZeroU32,
    /// Tries of one call, the first included.
    pub max_attempts: NonZeroU32,
    /// Longest time from a call's first try to its last, pauses included.
    pub total_budget: Duration,
    /// Longest time of one try, from connecting to the last byte.
    pub request_timeout: Duration,
    /// Longest time to connect.
    pub connect_timeout: Duration,
    /// Delay before the second try, before jitter (up to as much again); doubles for each later one.
    pub min_delay: Duration,
    /// Largest such delay.
    pub max_delay: Duration,
    /// Most that a `Retry-After` is obeyed for.
    pub max_retry_after: Duration,
    /// Largest answer, inflated.
    pub max_body_bytes: usize,
    /// Items asked for per page.
    pub page_size: NonZeroU32,
}

impl Settings {
    /// The defaults above.
    pub fn new(base_url: Url, credentials: Credentials) -> Self {
        Settings {
            base_url,
            credentials,
            requests_per_second: REQUESTS_PER_SECOND,
            max_in_flight: MAX_IN_FLIGHT,
            max_attempts: MAX_ATTEMPTS,
            total_budget: TOTAL_BUDGET,
            request_timeout: REQUEST_TIMEOUT,
            connect_timeout: CONNECT_TIMEOUT,
            min_delay: MIN_DELAY,
            max_delay: MAX_DELAY,
            max_retry_after: MAX_RETRY_AFTER,
            max_body_bytes: MAX_BODY_BYTES,
            page_size: PAGE_SIZE,
        }
    }
}

/// Basic authentication: account SID and auth token, or API key and secret. Does not print.
#[derive(Clone)]
pub struct Credentials {
    user: String,
    secret: String,
}

impl Credentials {
    /// `user` is the account SID or the key's SID.
    pub fn new(user: impl Into<String>, secret: impl Into<String>) -> Self {
        Credentials {
            user: user.into(),
            secret: secret.into(),
        }
    }

    fn header(&self) -> HeaderValue {
        let pair = format!("{}:{}", self.user, self.secret);
        let encoded = base64::engine::general_purpose::STANDARD.encode(pair);
        let mut value = HeaderValue::try_from(format!("Basic {encoded}"))
            .expect("base64 has no character that a header refuses");
        value.set_sensitive(true);
        value
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(hidden)")
    }
}

/// Why an [`Api`] could not be made. Nothing was sent.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Not an HTTP origin.
    #[error(
        "--api-url: the scheme {0:?} is not http or https; give an address like https://conversations.twilio.com"
    )]
    Scheme(String),
    /// Credentials, a query or a fragment in the address.
    #[error("--api-url: only origin and path are taken; credentials come from the environment")]
    NotAnOrigin,
    /// The HTTP client could not be built (the system's root certificates).
    #[error("the HTTP client cannot be set up; are the system's root certificates there?")]
    Client(#[source] reqwest::Error),
}

/// An answer, and what it cost.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer<T> {
    /// What the API says.
    pub value: T,
    /// Requests sent for it, retries included.
    pub calls: u32,
    /// Size of the answer, inflated.
    pub bytes: usize,
}

/// The client. Clones share connections, the budget and the pauses.
#[derive(Clone)]
pub struct Api(Arc<Inner>);

struct Inner {
    settings: Settings,
    authorization: HeaderValue,
    http: reqwest::Client,
    pace: Pace,
    clock: Clock,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api")
            .field("settings", &self.0.settings)
            .finish_non_exhaustive()
    }
}

impl Api {
    /// Checks the settings and sets the client up; sends nothing. `clock` reads dates of `Retry-After`.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn new(settings: Settings, clock: Clock) -> Result<Self, SettingsError> {
        let base = &settings.base_url;
        if !matches!(base.scheme(), "http" | "https") {
            return Err(SettingsError::Scheme(base.scheme().to_owned()));
        }
        let bare = base.username().is_empty() && base.password().is_none();
        if !bare || base.query().is_some() || base.fragment().is_some() {
            return Err(SettingsError::NotAnOrigin);
        }
        let http = reqwest::Client::builder()
            .connect_timeout(settings.connect_timeout)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .referer(false)
            .user_agent(concat!("convolake/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(SettingsError::Client)?;
        Ok(Api(Arc::new(Inner {
            authorization: settings.credentials.header(),
            pace: Pace::new(&settings),
            http,
            settings,
            clock,
        })))
    }

    /// `GET /Conversations/{id}`.
    ///
    /// # Errors
    /// [`ApiError`], as of every call here.
    pub async fn conversation(&self, id: &str) -> Result<Answer<Conversation>, ApiError> {
        let wanted = Wanted {
            conversation: Some(id),
            item: None,
        };
        self.call(Route::Conversation, self.url(&[id], &[])?, &wanted)
            .await
    }

    /// A page of `GET /Conversations/{id}/Communications`; `token` is the one the page before gave.
    pub async fn communications_page(
        &self,
        id: &str,
        token: Option<&str>,
    ) -> Result<Answer<Page<Communication>>, ApiError> {
        let size = self.0.settings.page_size;
        self.communications_page_of(id, token, size).await
    }

    /// The same with another page size, for a page that was [`ApiError::TooLarge`].
    pub async fn communications_page_of(
        &self,
        id: &str,
        token: Option<&str>,
        size: NonZeroU32,
    ) -> Result<Answer<Page<Communication>>, ApiError> {
        let wanted = Wanted {
            conversation: Some(id),
            item: None,
        };
        let url = self.page_url(&[id, "Communications"], &[], token, size)?;
        self.call(Route::Communications, url, &wanted).await
    }

    /// `GET /Conversations/{id}/Communications/{communication}`.
    pub async fn communication(
        &self,
        id: &str,
        communication: &str,
    ) -> Result<Answer<Communication>, ApiError> {
        let wanted = Wanted {
            conversation: Some(id),
            item: Some(communication),
        };
        let url = self.url(&[id, "Communications", communication], &[])?;
        self.call(Route::Communication, url, &wanted).await
    }

    /// A page of `GET /Conversations/{id}/Participants`.
    pub async fn participants_page(
        &self,
        id: &str,
        token: Option<&str>,
    ) -> Result<Answer<Page<Participant>>, ApiError> {
        let wanted = Wanted {
            conversation: Some(id),
            item: None,
        };
        let size = self.0.settings.page_size;
        let url = self.page_url(&[id, "Participants"], &[], token, size)?;
        self.call(Route::Participants, url, &wanted).await
    }

    /// `GET /Conversations/{id}/Participants/{participant}`.
    pub async fn participant(
        &self,
        id: &str,
        participant: &str,
    ) -> Result<Answer<Participant>, ApiError> {
        let wanted = Wanted {
            conversation: Some(id),
            item: Some(participant),
        };
        let url = self.url(&[id, "Participants", participant], &[])?;
        self.call(Route::Participant, url, &wanted).await
    }

    /// A page of `GET /Conversations?status=CLOSED`.
    pub async fn closed_conversations_page(
        &self,
        token: Option<&str>,
    ) -> Result<Answer<Page<Conversation>>, ApiError> {
        self.conversations_page(crate::event::CLOSED, token).await
    }

    /// `GET /ControlPlane/Configurations/{id}`.
    pub async fn configuration(&self, id: &str) -> Result<Answer<Configuration>, ApiError> {
        let wanted = Wanted {
            conversation: None,
            item: Some(id),
        };
        let url = self.below(&["ControlPlane", "Configurations"], &[id])?;
        self.call(Route::Configuration, url, &wanted).await
    }

    /// A page of `GET /Conversations?status=…`.
    pub async fn conversations_page(
        &self,
        status: &str,
        token: Option<&str>,
    ) -> Result<Answer<Page<Conversation>>, ApiError> {
        let size = self.0.settings.page_size;
        let url = self.page_url(&[], &[("status", status)], token, size)?;
        self.call(Route::Conversations, url, &Wanted::default())
            .await
    }

    /// Items that a page is asked for.
    pub fn page_size(&self) -> NonZeroU32 {
        self.0.settings.page_size
    }

    /// Requests that this API and its clones have sent, retries and probes included.
    pub fn calls(&self) -> u64 {
        self.0.pace.calls()
    }

    /// Whether any call got a real answer since `instant`: a resource, or a refusal in the API's own
    /// words. A 401, a 429, a 5xx and what makes no sense are none.
    pub fn answered_since(&self, instant: Instant) -> bool {
        self.0.pace.answered_since(instant)
    }

    /// Asks for one closed conversation, once and without a retry: does the API answer at all, now?
    pub async fn answers(&self) -> bool {
        let filter = [("status", crate::event::CLOSED)];
        let Ok(url) = self.page_url(&[], &filter, None, NonZeroU32::MIN) else {
            return false;
        };
        let _turn = self.0.pace.turn().await;
        let timeout = self.0.settings.request_timeout;
        let verdict = self
            .attempt::<Page<Conversation>>(Route::Probe, url, &Wanted::default(), timeout)
            .await;
        matches!(verdict, Verdict::Answer { .. })
    }

    fn page_url(
        &self,
        segments: &[&str],
        query: &[(&str, &str)],
        token: Option<&str>,
        size: NonZeroU32,
    ) -> Result<Url, ApiError> {
        let mut url = self.url(segments, query)?;
        url.query_pairs_mut()
            .append_pair("pageSize", &size.to_string());
        if let Some(token) = token {
            url.query_pairs_mut().append_pair("pageToken", token);
        }
        Ok(url)
    }

    fn url(&self, segments: &[&str], query: &[(&str, &str)]) -> Result<Url, ApiError> {
        let mut url = self.below(&["Conversations"], segments)?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(url)
    }

    /// The address of what has these ids and names below a collection.
    fn below(&self, collection: &[&str], segments: &[&str]) -> Result<Url, ApiError> {
        if !segments.iter().all(|segment| resource::usable(segment)) {
            return Err(ApiError::UnusableId);
        }
        let mut url = self.0.settings.base_url.clone();
        url.path_segments_mut()
            .expect("an http URL has a path (checked by Api::new)")
            .pop_if_empty()
            .push("v2")
            .extend(collection)
            .extend(segments);
        Ok(url)
    }

    /// Sends one GET until there is an answer, a final refusal, or no budget left.
    async fn call<T: Reply>(
        &self,
        route: Route,
        url: Url,
        wanted: &Wanted<'_>,
    ) -> Result<Answer<T>, ApiError> {
        let settings = &self.0.settings;
        let mut delays = pace::delays(settings);
        let mut deadline = None;
        let mut calls = 0;
        loop {
            let turn = self.0.pace.turn().await;
            let sent = Instant::now();
            // From the first try on: waiting for the shared budget before it is nobody's failure.
            let deadline = *deadline.get_or_insert(sent + settings.total_budget);
            // Another call's 429 can hold this one past its deadline: it still gets time for one try.
            let timeout = deadline
                .saturating_duration_since(sent)
                .max(settings.connect_timeout)
                .min(settings.request_timeout);
            calls += 1;
            let verdict = self.attempt(route, url.clone(), wanted, timeout).await;
            drop(turn);
            let trouble = match verdict {
                Verdict::Answer { value, bytes } => {
                    return Ok(Answer {
                        value,
                        calls,
                        bytes,
                    });
                }
                Verdict::Final(refusal) => return Err(refusal.into_error(calls)),
                Verdict::Again(trouble) => trouble,
            };
            let asked = trouble.retry_after();
            let next = delays
                .next()
                .map(|own| pace::delay(asked, own, settings.max_retry_after))
                .filter(|delay| Instant::now() + *delay < deadline);
            if let Some(asked) = asked.filter(|_| trouble.is_throttle()) {
                self.0.pace.hold(asked.min(settings.max_retry_after));
            }
            let Some(delay) = next else {
                return Err(trouble.into_error(calls, sent));
            };
            tokio::time::sleep(delay).await;
            self.0.pace.waited(Cause::Retry, delay);
        }
    }
}
