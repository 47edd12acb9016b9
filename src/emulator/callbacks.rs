//! Status callbacks: signed, sent, retried, repeated, shuffled, and remembered.
//!
//! Owns the way of one announcement to each of its URLs. Refuses to decide what is announced (`state`)
//! and what counts as a proper signature (`signature`).
//!
//! Guarantees: every try and every repeat of one delivery carries the same `I-Twilio-Idempotency-Token`,
//! which depends on the seed alone. Which deliveries come late or twice depends on the seed alone, too.
//! Queue, parallel sends, tries, their times and the log are bounded by the constants below. At a stop the
//! tries in flight end by themselves, within [`Retries::attempt_timeout`]; what still waits is dropped.
//!
//! A delivery whose tries all fail is counted and left at that: Twilio does not come back either.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HOST};
use reqwest::{Client, Method, Url};
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::resource::CallbackMethod;
use super::seeds;
use super::state::Announcement;
use crate::lifecycle::Stop;
use crate::signature::{self, SIGNATURE_HEADER, SigningKey};
use crate::telemetry;

/// Announcements that wait to be sent; a full queue holds traffic and requests back.
const QUEUE_ANNOUNCEMENTS: usize = 1_024;
/// Deliveries under way at once.
const PARALLEL_DELIVERIES: usize = 64;
/// Longest time that a shuffled or repeated delivery is held back.
const MAX_DELAY_MS: u64 = 200;
/// First pause before another try; each next one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Deliveries that the log remembers.
pub(crate) const MAX_REMEMBERED: usize = 10_000;
/// Bytes of an answer's body that are read, so that its connection can be used again.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// The header that names a delivery.
pub const IDEMPOTENCY_HEADER: &str = "i-twilio-idempotency-token";

/// How often and how long a delivery is tried. Twilio waits 15 s in all and tries 5 times at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retries {
    /// Tries of one delivery, the first included.
    pub attempts: u32,
    /// Longest time of one try.
    pub attempt_timeout: Duration,
    /// Longest time of all tries and the pauses between them.
    pub total: Duration,
}

impl Default for Retries {
    fn default() -> Self {
        Retries {
            attempts: 5,
            attempt_timeout: Duration::from_secs(5),
            total: Duration::from_secs(15),
        }
    }
}

/// How callbacks are sent.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) seed: u64,
    /// Where to connect, in plain HTTP, whatever the URL says.
    pub(crate) connect: Option<SocketAddr>,
    /// Never empty; with several, the delivery's token picks one.
    pub(crate) keys: Vec<SigningKey>,
    /// Share of deliveries that are sent once more, 0..1.
    pub(crate) duplicates: f64,
    /// Share of deliveries that are held back, 0..1.
    pub(crate) disorder: f64,
    pub(crate) retries: Retries,
}

/// What became of callbacks so far. Every sum counts repeats as deliveries of their own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Outcomes {
    pub(crate) deliveries: u64,
    pub(crate) accepted: u64,
    pub(crate) refused: u64,
    pub(crate) unanswered: u64,
    pub(crate) duplicate: u64,
    pub(crate) retries: u64,
}

/// The way in: announcements are left here. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Outbox {
    queue: mpsc::Sender<Announcement>,
    log: Arc<Log>,
}

impl Outbox {
    /// An empty outbox, and the queue that [`Sender::send_all`] empties.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Announcement>) {
        let (queue, waiting) = mpsc::channel(QUEUE_ANNOUNCEMENTS);
        let log = Arc::new(Log::default());
        (Outbox { queue, log }, waiting)
    }

    /// Queues `announcement`, waiting for room. After a stop it is dropped.
    pub(crate) async fn announce(&self, announcement: Announcement) {
        self.log.outstanding.send_modify(|count| *count += 1);
        if self.queue.send(announcement).await.is_err() {
            self.log.outstanding.send_modify(|count| *count -= 1);
        }
    }

    /// The record of what was sent.
    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    /// Waits until every announcement so far was delivered or given up.
    pub(crate) async fn settled(&self) {
        let mut outstanding = self.log.outstanding.subscribe();
        outstanding
            .wait_for(|count| *count == 0)
            .await
            .expect("the log owns the sender and lives as long as self");
    }
}

/// What was sent and what was answered.
#[derive(Debug, Default)]
pub(crate) struct Log {
    kept: Mutex<Kept>,
    outstanding: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Kept {
    deliveries: VecDeque<Delivery>,
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
    pub(crate) url: Arc<str>,
    /// Sent once more on purpose.
    pub(crate) duplicate: bool,
    pub(crate) accepted: bool,
    pub(crate) attempts: Vec<Attempt>,
}

/// One try.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Attempt {
    /// The answer's status.
    pub(crate) status: Option<u16>,
    /// Why there was none: `timeout`, `connect`, `url` or `broken`.
    pub(crate) error: Option<&'static str>,
    pub(crate) milliseconds: u64,
}

impl Log {
    /// Sums since the start.
    pub(crate) fn outcomes(&self) -> Outcomes {
        self.kept().outcomes
    }

    /// `{"deliveries": […], "forgotten": n}`: the last [`MAX_REMEMBERED`] in the order of their ends.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Answer<'a> {
            deliveries: &'a VecDeque<Delivery>,
            forgotten: u64,
        }
        let kept = self.kept();
        serde_json::to_vec(&Answer {
            deliveries: &kept.deliveries,
            forgotten: kept.forgotten,
        })
        .expect("the log has string keys, and memory does not fail to write")
    }

    fn record(&self, delivery: Delivery) {
        let answered = delivery.attempts.iter().any(|a| a.status.is_some());
        let outcome = match (delivery.accepted, answered) {
            (true, _) => "accepted",
            (false, true) => "refused",
            (false, false) => "unanswered",
        };
        metrics::counter!(telemetry::EMULATOR_DELIVERIES, "outcome" => outcome).increment(1);
        let mut kept = self.kept();
        let sums = &mut kept.outcomes;
        sums.deliveries += 1;
        sums.accepted += u64::from(delivery.accepted);
        sums.refused += u64::from(!delivery.accepted && answered);
        sums.unanswered += u64::from(!delivery.accepted && !answered);
        sums.duplicate += u64::from(delivery.duplicate);
        sums.retries += delivery.attempts.len().saturating_sub(1) as u64;
        if kept.deliveries.len() == MAX_REMEMBERED {
            kept.deliveries.pop_front();
            kept.forgotten += 1;
        }
        kept.deliveries.push_back(delivery);
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why the sender could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("the HTTP client for callbacks cannot be built")]
pub(crate) struct NoClient(#[source] reqwest::Error);

/// Sends callbacks.
#[derive(Debug)]
pub(crate) struct Sender {
    settings: Settings,
    client: Client,
    outbox: Outbox,
    stop: Stop,
}

impl Sender {
    /// A sender of what is left in `outbox`.
    pub(crate) fn new(settings: Settings, outbox: Outbox, stop: Stop) -> Result<Self, NoClient> {
        let client = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .pool_max_idle_per_host(PARALLEL_DELIVERIES)
            .build()
            .map_err(NoClient)?;
        Ok(Sender {
            settings,
            client,
            outbox,
            stop,
        })
    }

    /// Sends everything in `waiting` until the stop.
    pub(crate) async fn send_all(self, mut waiting: mpsc::Receiver<Announcement>) {
        let stop = self.stop.clone();
        let sender = Arc::new(self);
        let mut under_way = JoinSet::new();
        while let Some(Some(announcement)) = stop.race(waiting.recv()).await {
            while under_way.len() >= PARALLEL_DELIVERIES {
                ended(under_way.join_next().await);
            }
            let sender = Arc::clone(&sender);
            under_way.spawn(async move {
                sender.deliver(announcement).await;
                let outstanding = &sender.outbox.log.outstanding;
                outstanding.send_modify(|count| *count -= 1);
            });
        }
        waiting.close();
        while let Some(done) = under_way.join_next().await {
            ended(Some(done));
        }
    }

    async fn deliver(&self, announcement: Announcement) {
        let conversation = seeds::mix_text(self.settings.seed, &announcement.conversation_id);
        for (place, callback) in announcement.callbacks.iter().enumerate() {
            let event = u64::from(announcement.sequence) << 8 | (place as u64 & 0xff);
            let draw = seeds::mix(conversation, event);
            if seeds::falls(seeds::mix(draw, 1), self.settings.disorder) {
                self.wait(delay(seeds::mix(draw, 2))).await;
            }
            let mut call = Call {
                announcement: &announcement,
                url: &callback.url,
                method: callback.method,
                token: uuid(draw),
                key: &self.settings.keys[(draw % self.settings.keys.len() as u64) as usize],
                duplicate: false,
            };
            self.try_until_accepted(&call).await;
            if seeds::falls(seeds::mix(draw, 3), self.settings.duplicates) {
                self.wait(delay(seeds::mix(draw, 4))).await;
                call.duplicate = true;
                self.try_until_accepted(&call).await;
            }
        }
    }

    async fn try_until_accepted(&self, call: &Call<'_>) {
        let retries = self.settings.retries;
        let deadline = Instant::now() + retries.total;
        let mut attempts = Vec::new();
        let mut pause = FIRST_PAUSE;
        let accepted = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let attempt = self.attempt(call, left.min(retries.attempt_timeout)).await;
            let accepted = matches!(attempt.status, Some(200..=299));
            attempts.push(attempt);
            let last = attempts.len() as u64 >= u64::from(retries.attempts)
                || Instant::now() + pause >= deadline
                || self.stop.is_requested();
            if accepted || last {
                break accepted;
            }
            self.wait(pause).await;
            pause *= 2;
        };
        self.outbox.log.record(Delivery {
            token: call.token.clone(),
            event_type: call.announcement.event_type,
            conversation_id: Arc::clone(&call.announcement.conversation_id),
            url: Arc::clone(call.url),
            duplicate: call.duplicate,
            accepted,
            attempts,
        });
    }

    async fn attempt(&self, call: &Call<'_>, timeout: Duration) -> Attempt {
        let began = Instant::now();
        let sent = self.send(call, timeout).await;
        let (status, error) = match sent {
            Ok(status) => (Some(status), None),
            Err(why) => (None, Some(why)),
        };
        Attempt {
            status,
            error,
            milliseconds: began.elapsed().as_millis().try_into().unwrap_or(u64::MAX),
        }
    }

    async fn send(&self, call: &Call<'_>, timeout: Duration) -> Result<u16, &'static str> {
        let body: &Bytes = &call.announcement.body;
        let signed = signature::signed_url(without_fragment(call.url), body);
        let signature = signature::sign(call.key, &signed);
        let (target, host) = destination(&signed, self.settings.connect).ok_or("url")?;
        let mut request = self
            .client
            .request(method(call.method), target)
            .timeout(timeout)
            .header(CONTENT_TYPE, "application/json")
            .header(SIGNATURE_HEADER, signature)
            .header(IDEMPOTENCY_HEADER, &call.token)
            .body(body.clone());
        if let Some(host) = host {
            request = request.header(HOST, host);
        }
        let mut answer = request.send().await.map_err(|error| why(&error))?;
        let mut read = 0;
        while read < MAX_ANSWER_BYTES
            && let Ok(Some(chunk)) = answer.chunk().await
        {
            read += chunk.len();
        }
        Ok(answer.status().as_u16())
    }

    async fn wait(&self, pause: Duration) {
        let _ = self.stop.race(sleep(pause)).await;
    }
}

struct Call<'a> {
    announcement: &'a Announcement,
    url: &'a Arc<str>,
    method: CallbackMethod,
    token: String,
    key: &'a SigningKey,
    duplicate: bool,
}

/// A panic in a delivery is a bug of this file; it ends the task that owns the deliveries.
fn ended(done: Option<Result<(), tokio::task::JoinError>>) {
    if let Some(Err(error)) = done
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
}

/// Where the request goes, and the `Host` it names where that is another. `None`: not a URL.
fn destination(signed: &str, connect: Option<SocketAddr>) -> Option<(Url, Option<String>)> {
    let mut url = Url::parse(signed).ok()?;
    let Some(connect) = connect else {
        return Some((url, None));
    };
    let host = match url.port() {
        Some(port) => format!("{}:{port}", url.host_str()?),
        None => url.host_str()?.to_owned(),
    };
    url.set_scheme("http").ok()?;
    url.set_ip_host(connect.ip()).ok()?;
    url.set_port(Some(connect.port())).ok()?;
    Some((url, Some(host)))
}

/// The fragment carries Twilio's connection overrides; it is never sent nor signed.
fn without_fragment(url: &str) -> &str {
    url.split_once('#').map_or(url, |(url, _)| url)
}

fn method(method: CallbackMethod) -> Method {
    match method {
        CallbackMethod::Post => Method::POST,
        CallbackMethod::Get => Method::GET,
        CallbackMethod::Put => Method::PUT,
        CallbackMethod::Delete => Method::DELETE,
        CallbackMethod::Patch => Method::PATCH,
    }
}

fn why(error: &reqwest::Error) -> &'static str {
    if error.is_timeout() {
        "timeout"
    } else if error.is_connect() {
        "connect"
    } else {
        "broken"
    }
}

fn delay(draw: u64) -> Duration {
    Duration::from_millis(1 + draw % MAX_DELAY_MS)
}

fn uuid(draw: u64) -> String {
    let bits = u128::from(draw) << 64 | u128::from(seeds::mix(draw, 5));
    uuid::Builder::from_random_bytes(bits.to_be_bytes())
        .into_uuid()
        .to_string()
}
