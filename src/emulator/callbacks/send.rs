//! One delivery: signed, sent, tried again as its URL asks.
//!
//! Owns the request on the wire. Guarantees: the fragment is neither sent nor signed; each wait is one of
//! the URL's [`Overrides`]; what a receiver answers is read to [`MAX_ANSWER_BYTES`] at most.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use reqwest::{Body, Method, Url};
use tokio::time::{Instant, sleep};

use super::log::{ANSWER_START_BYTES, Attempt, Delivery};
use super::overrides::{Failure, Overrides, without_fragment};
use super::queue::{Job, PARALLEL_DELIVERIES};
use super::{IDEMPOTENCY_HEADER, STOP_GRACE};
use crate::emulator::faults::{CallbackFault, Tries};
use crate::emulator::resource::CallbackMethod;
use crate::emulator::seeds;
use crate::lifecycle::Stop;
use crate::signature::{self, Algorithm, SIGNATURE_HEADER, SigningKey};

/// First pause before another try; each next one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Bytes of an answer's body that are read, so that its connection can be used again.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// Clients kept, one for each pair of waits that a URL asked for.
const MAX_CLIENTS: usize = 32;

/// Why the sender could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("the HTTP client for callbacks cannot be built")]
pub(crate) struct NoClient(#[source] reqwest::Error);

/// Sends requests to receivers.
#[derive(Debug)]
pub(super) struct Client {
    connect: Option<SocketAddr>,
    /// Waits for a connection and for an answer belong to a client, not to a request.
    by_waits: Mutex<HashMap<(Duration, Duration), reqwest::Client>>,
    usual: reqwest::Client,
    nobody: SigningKey,
    stop: Stop,
}

impl Client {
    /// A client that connects to `connect`, or where URLs say.
    pub(super) fn new(connect: Option<SocketAddr>, stop: Stop) -> Result<Self, NoClient> {
        Ok(Client {
            connect,
            by_waits: Mutex::default(),
            usual: client(Overrides::default()).map_err(NoClient)?,
            nobody: SigningKey::new(Algorithm::Sha1, "a key that nobody has")
                .expect("a constant that is a key"),
            stop,
        })
    }

    /// All tries of `job`, as one delivery.
    pub(super) async fn deliver(
        &self,
        job: &Job,
        key: &SigningKey,
        token: &str,
        duplicate: bool,
    ) -> Delivery {
        let Overrides {
            total,
            retries,
            policy,
            ..
        } = job.overrides;
        let deadline = Instant::now() + total;
        let mut delivery = Delivery::of(job, token.to_owned(), duplicate);
        let mut pause = FIRST_PAUSE;
        loop {
            let first = delivery.attempts.is_empty() && !duplicate;
            let call = Call::new(job, key, token, first, &self.nobody);
            let left = deadline.saturating_duration_since(Instant::now());
            let (attempt, failure) = self.attempt(&call, job, left).await;
            delivery.attempts.push(attempt);
            delivery.headers = call.headers;
            let Some(failure) = failure else {
                delivery.accepted = true;
                return delivery;
            };
            let last = delivery.attempts.len() as u64 > retries
                || !policy.covers(failure)
                || Instant::now() + pause >= deadline;
            if last || self.stop.race(sleep(pause)).await.is_none() {
                return delivery;
            }
            pause *= 2;
        }
    }

    async fn attempt(&self, call: &Call, job: &Job, left: Duration) -> (Attempt, Option<Failure>) {
        let began = Instant::now();
        let grace = async {
            self.stop.requested().await;
            sleep(STOP_GRACE).await;
        };
        let sent = tokio::select! {
            sent = self.send(call, job, left) => sent,
            () = grace => Err(("timeout", Failure::Read)),
        };
        let milliseconds = began.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
        match sent {
            Ok((status, answer)) => {
                let failure = Some(Failure::Status(status)).filter(|_| status / 100 != 2);
                let attempt = Attempt {
                    status: Some(status),
                    answer,
                    milliseconds,
                    ..Attempt::default()
                };
                (attempt, failure)
            }
            Err((why, failure)) => {
                let attempt = Attempt {
                    error: Some(why),
                    milliseconds,
                    ..Attempt::default()
                };
                (attempt, Some(failure))
            }
        }
    }

    async fn send(
        &self,
        call: &Call,
        job: &Job,
        left: Duration,
    ) -> Result<(u16, String), (&'static str, Failure)> {
        let target = destination(&call.signed, self.connect);
        let target = target.ok_or(("url", Failure::Connect))?;
        let mut request = self
            .with_waits(job.overrides)
            .request(method(job.callback().method), target)
            .timeout(left)
            .body(call.body());
        for (name, value) in &call.headers {
            request = request.header(*name, value);
        }
        let mut answer = request.send().await.map_err(|error| why(&error))?;
        let mut start = Vec::new();
        let mut read = 0;
        while read < MAX_ANSWER_BYTES
            && let Ok(Some(chunk)) = answer.chunk().await
        {
            read += chunk.len();
            let room = ANSWER_START_BYTES - start.len();
            start.extend_from_slice(&chunk[..chunk.len().min(room)]);
        }
        let start = String::from_utf8_lossy(&start).into_owned();
        Ok((answer.status().as_u16(), start))
    }

    fn with_waits(&self, overrides: Overrides) -> reqwest::Client {
        let usual = Overrides::default();
        let waits = (overrides.connect, overrides.read);
        if waits == (usual.connect, usual.read) {
            return self.usual.clone();
        }
        let mut clients = self.by_waits.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = clients.get(&waits) {
            return known.clone();
        }
        if clients.len() == MAX_CLIENTS {
            clients.clear();
        }
        // The usual one was built of the same parts.
        let built = client(overrides).unwrap_or_else(|_| self.usual.clone());
        clients.insert(waits, built.clone());
        built
    }
}

fn client(overrides: Overrides) -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .no_proxy()
        .pool_max_idle_per_host(PARALLEL_DELIVERIES)
        .connect_timeout(overrides.connect)
        .read_timeout(overrides.read)
        .build()
}

/// One request.
struct Call {
    /// The URL that is called, with the body's hash.
    signed: String,
    headers: Vec<(&'static str, String)>,
    bytes: Bytes,
    half: bool,
}

impl Call {
    fn new(job: &Job, key: &SigningKey, token: &str, first: bool, nobody: &SigningKey) -> Self {
        let now = |tries| tries == Tries::Every || first;
        let (key, half) = match job.fault {
            Some(CallbackFault::WrongSignature { tries }) if now(tries) => (nobody, false),
            Some(CallbackFault::HalfBody { tries }) if now(tries) => (key, true),
            _ => (key, false),
        };
        let bytes = job.announcement.body.clone();
        let signed = signature::signed_url(without_fragment(&job.callback().url), &bytes);
        let mut headers = vec![
            ("content-type", "application/json".to_owned()),
            (SIGNATURE_HEADER, signature::sign(key, &signed)),
            (IDEMPOTENCY_HEADER, token.to_owned()),
        ];
        headers.extend(host(&signed).map(|host| ("host", host)));
        Call {
            signed,
            headers,
            bytes,
            half,
        }
    }

    fn body(&self) -> Body {
        match self.half {
            false => self.bytes.clone().into(),
            true => Body::wrap(HalfBody {
                length: self.bytes.len() as u64,
                half: Some(self.bytes.slice(..self.bytes.len() / 2)),
                waited: false,
            }),
        }
    }
}

/// A body that announces its length, gives half of it, and fails.
#[derive(Debug)]
struct HalfBody {
    length: u64,
    half: Option<Bytes>,
    waited: bool,
}

impl HttpBody for HalfBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(half) = self.half.take() {
            return Poll::Ready(Some(Ok(Frame::data(half))));
        }
        if !self.waited {
            // The client writes what it has whenever the body has to be waited for.
            self.waited = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Some(Err(std::io::ErrorKind::ConnectionAborted.into())))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length)
    }
}

impl Delivery {
    /// A delivery that has not been tried yet.
    pub(super) fn of(job: &Job, token: String, duplicate: bool) -> Self {
        Delivery {
            token,
            event_type: job.announcement.event_type,
            conversation_id: Arc::clone(&job.announcement.conversation_id),
            url: without_credentials(&job.callback().url),
            method: method_name(job.callback().method),
            duplicate,
            fault: job.fault.map(name),
            accepted: false,
            headers: Vec::new(),
            body: job.announcement.body.clone(),
            attempts: Vec::new(),
        }
    }
}

impl Job {
    fn callback(&self) -> &crate::emulator::resource::StatusCallback {
        &self.announcement.callbacks[self.place]
    }
}

/// Where the request goes. `None`: not a URL.
fn destination(signed: &str, connect: Option<SocketAddr>) -> Option<Url> {
    let mut url = Url::parse(signed).ok()?;
    if let Some(connect) = connect {
        url.set_scheme("http").ok()?;
        url.set_ip_host(connect.ip()).ok()?;
        url.set_port(Some(connect.port())).ok()?;
    }
    Some(url)
}

/// What the log shows of a URL that may carry user and password.
fn without_credentials(url: &Arc<str>) -> Arc<str> {
    match Url::parse(url) {
        Ok(mut parsed) if !parsed.username().is_empty() || parsed.password().is_some() => {
            let hidden = parsed.set_username("").is_ok() && parsed.set_password(None).is_ok();
            if hidden {
                parsed.as_str().into()
            } else {
                "".into()
            }
        }
        _ => Arc::clone(url),
    }
}

/// The `Host` of the signed URL, wherever the connection goes.
fn host(signed: &str) -> Option<String> {
    let url = Url::parse(signed).ok()?;
    let host = url.host_str()?;
    Some(match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    })
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

fn method_name(method: CallbackMethod) -> &'static str {
    match method {
        CallbackMethod::Post => "POST",
        CallbackMethod::Get => "GET",
        CallbackMethod::Put => "PUT",
        CallbackMethod::Delete => "DELETE",
        CallbackMethod::Patch => "PATCH",
    }
}

/// As the script calls it.
fn name(fault: CallbackFault) -> &'static str {
    match fault {
        CallbackFault::Lost => "lost",
        CallbackFault::Duplicated { .. } => "duplicated",
        CallbackFault::Delayed { .. } => "delayed",
        CallbackFault::Reordered { .. } => "reordered",
        CallbackFault::Replayed { .. } => "replayed",
        CallbackFault::WrongSignature { .. } => "wrongSignature",
        CallbackFault::HalfBody { .. } => "halfBody",
    }
}

fn why(error: &reqwest::Error) -> (&'static str, Failure) {
    if error.is_connect() {
        ("connect", Failure::Connect)
    } else if error.is_timeout() {
        ("timeout", Failure::Read)
    } else {
        ("broken", Failure::Read)
    }
}

/// The token of the delivery that `draw` stands for.
pub(super) fn uuid(draw: u64) -> String {
    let bits = u128::from(draw) << 64 | u128::from(seeds::mix(draw, 5));
    uuid::Builder::from_random_bytes(bits.to_be_bytes())
        .into_uuid()
        .to_string()
}
