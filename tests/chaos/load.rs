//! The sender: signed callbacks at a rate, again and again until they are acknowledged, all in the ledger.
//!
//! Owns what is sent when. From one seed: which callbacks come a second time, which carry a stolen token,
//! which are forged, which are no events, in which order. Refuses to judge an answer beyond its outcome.
//!
//! Bounded by [`IN_FLIGHT`]; a callback that is not acknowledged is sent again, [`TRIES`] times, as Twilio
//! would, or without end where a conversation depends on it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::Rng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;
use reqwest::Client;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;

use crate::harness::AUTH_TOKEN;
use crate::harness::http::{Callback, connect_to, pooled_client, signed_callback};
use crate::harness::roles::PUBLIC_URL;
use crate::ledger::{Entry, Kind, Ledger, Outcome};
use crate::plan::Load;

/// Callbacks on their way at once.
const IN_FLIGHT: usize = 512;
/// Sends of a synthetic callback, the first included.
const TRIES: u32 = 5;
/// Pause before a callback is sent again.
const AGAIN: Duration = Duration::from_millis(300);
/// Conversations that synthetic callbacks belong to.
const CONVERSATIONS: usize = 500;
/// Callbacks that may be sent a second time: the last so many.
const REMEMBERED: usize = 1_000;

/// Callbacks as they were captured, whose signatures hold.
pub(crate) type Captured = Arc<Vec<Callback>>;

/// A running sender.
#[derive(Debug)]
pub(crate) struct Sender {
    stop: Arc<AtomicBool>,
    unfinished: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

/// Where it sends, and what.
#[derive(Debug)]
pub(crate) struct Orders {
    pub(crate) load: Load,
    /// `HOST:PORT` of each receiver.
    pub(crate) receivers: Vec<String>,
    /// Played conversations; synthetic ones without.
    pub(crate) captured: Option<Captured>,
    pub(crate) ledger: Ledger,
    pub(crate) rng: ChaCha8Rng,
}

impl Sender {
    pub(crate) fn start(orders: Orders) -> Sender {
        let stop = Arc::new(AtomicBool::new(false));
        let unfinished = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(run(orders, Arc::clone(&stop), Arc::clone(&unfinished)));
        Sender {
            stop,
            unfinished,
            task,
        }
    }

    /// Captured callbacks that were not acknowledged yet.
    pub(crate) fn unfinished(&self) -> u64 {
        self.unfinished.load(Ordering::Acquire)
    }

    /// Sends nothing new, waits for the answers to what is on its way.
    pub(crate) async fn finish(self) {
        self.stop.store(true, Ordering::Release);
        self.task.await.expect("the sender panicked");
    }
}

/// A callback on its way.
#[derive(Debug, Clone)]
struct Parcel {
    callback: Callback,
    conversation: String,
    kind: Kind,
    receiver: String,
    tries: u32,
    due: Instant,
}

async fn run(orders: Orders, stop: Arc<AtomicBool>, unfinished: Arc<AtomicU64>) {
    let load = orders.load;
    let ledger = orders.ledger.clone();
    let endless = orders.captured.is_some();
    let mut source = Source::new(orders, &unfinished);
    let slots = Arc::new(Semaphore::new(IN_FLIGHT));
    let client = pooled_client();
    let (returned, mut returns) = mpsc::unbounded_channel::<Parcel>();
    let mut again: VecDeque<Parcel> = VecDeque::new();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / load.rate.max(1));
    let mut n = 0;
    while !stop.load(Ordering::Acquire) {
        ticks.tick().await;
        while let Ok(parcel) = returns.try_recv() {
            again.push_back(parcel);
        }
        let due = again
            .front()
            .is_some_and(|parcel| parcel.due <= Instant::now());
        let parcels = match due.then(|| again.pop_front()).flatten() {
            Some(parcel) => vec![parcel],
            None => source.next(),
        };
        for parcel in parcels {
            let slot = Arc::clone(&slots).acquire_owned().await;
            let job = Job {
                slot: slot.expect("the semaphore is never closed"),
                n,
                client: client.clone(),
                ledger: ledger.clone(),
                returned: returned.clone(),
                endless,
                unfinished: Arc::clone(&unfinished),
            };
            tokio::spawn(job.send(parcel));
            n += 1;
        }
    }
    let all = u32::try_from(IN_FLIGHT).expect("a small number");
    let _all = slots.acquire_many(all).await.expect("never closed");
}

/// What sends one parcel once.
struct Job {
    slot: OwnedSemaphorePermit,
    n: usize,
    client: Client,
    ledger: Ledger,
    returned: mpsc::UnboundedSender<Parcel>,
    endless: bool,
    unfinished: Arc<AtomicU64>,
}

impl Job {
    async fn send(self, mut parcel: Parcel) {
        let started = Instant::now();
        let url = connect_to(&parcel.callback.url, &parcel.receiver);
        let request = self
            .client
            .post(url)
            .header("content-type", "application/json")
            .header("x-twilio-signature", &parcel.callback.signature)
            .header("i-twilio-idempotency-token", &parcel.callback.token)
            .body(parcel.callback.body.clone());
        let (outcome, status) = match request.send().await {
            Ok(answer) if answer.status().is_success() => {
                (Outcome::Acked, answer.status().as_u16())
            }
            Ok(answer) => (Outcome::Refused, answer.status().as_u16()),
            Err(error) if error.is_connect() => (Outcome::Refused, 0),
            Err(_) => (Outcome::Indefinite, 0),
        };
        self.ledger.record(Entry {
            n: self.n,
            token: parcel.callback.token.clone(),
            conv: parcel.conversation.clone(),
            kind: parcel.kind,
            t: self.ledger.now(),
            outcome,
            status,
            ms: u64::try_from(started.elapsed().as_millis()).expect("a request is short"),
            sha256: sha256(&parcel.callback.body),
        });
        let first = parcel.kind == Kind::Event;
        if outcome == Outcome::Acked {
            if first && self.endless {
                self.unfinished.fetch_sub(1, Ordering::AcqRel);
            }
        } else if parcel.kind != Kind::Forged && (self.endless && first || parcel.tries < TRIES) {
            parcel.tries += 1;
            parcel.due = Instant::now() + AGAIN;
            // Nobody takes it any more once the sender is stopped.
            let _ = self.returned.send(parcel);
        }
        drop(self.slot);
    }
}

/// Which callback is next, by the seed alone.
struct Source {
    orders: Orders,
    /// Captured callbacks that were not sent yet, in a shuffled order.
    left: Vec<usize>,
    recent: VecDeque<(Callback, String)>,
    made: u64,
}

impl Source {
    fn new(mut orders: Orders, unfinished: &AtomicU64) -> Source {
        let count = orders
            .captured
            .as_ref()
            .map_or(0, |captured| captured.len());
        let mut left: Vec<usize> = (0..count).collect();
        left.shuffle(&mut orders.rng);
        let each = if orders.load.everywhere {
            orders.receivers.len()
        } else {
            1
        };
        unfinished.store((count * each) as u64, Ordering::Release);
        Source {
            orders,
            left,
            recent: VecDeque::new(),
            made: 0,
        }
    }

    /// One callback, for one receiver or for each.
    fn next(&mut self) -> Vec<Parcel> {
        if self.orders.load.rate == 0 {
            return Vec::new();
        }
        let Some((callback, conversation, kind)) = self.draw() else {
            return Vec::new();
        };
        let all = self.orders.receivers.clone();
        let one = self.orders.rng.random_range(0..all.len());
        let chosen = match self.orders.load.everywhere {
            true => all,
            false => vec![all[one].clone()],
        };
        let parcel = |receiver| Parcel {
            callback: callback.clone(),
            conversation: conversation.clone(),
            kind,
            receiver,
            tries: 1,
            due: Instant::now(),
        };
        chosen.into_iter().map(parcel).collect()
    }

    fn draw(&mut self) -> Option<(Callback, String, Kind)> {
        let dice: f64 = self.orders.rng.random();
        if dice < 0.30 && !self.recent.is_empty() {
            let (callback, conversation) = self.one_recent();
            return Some((callback, conversation, Kind::Repeat));
        }
        if dice < 0.32 && !self.recent.is_empty() {
            let (captured, conversation) = self.one_recent();
            self.made += 1;
            let forged = Callback {
                body: message(&conversation, &format!("forged-{}", self.made)),
                ..captured
            };
            return Some((forged, conversation, Kind::Forged));
        }
        if self.orders.captured.is_some() {
            return self.captured();
        }
        self.made += 1;
        if dice < 0.33 {
            let odd = sign(format!("[\"no event\", {}]", self.made));
            return Some((odd, String::new(), Kind::Odd));
        }
        let conversation = format!("chaos-{}", self.orders.rng.random_range(0..CONVERSATIONS));
        let mut callback = sign(message(&conversation, &format!("message-{}", self.made)));
        let kind = if dice < 0.36 && !self.recent.is_empty() {
            callback.token = self.one_recent().0.token;
            Kind::StolenToken
        } else {
            Kind::Event
        };
        self.remember(&callback, &conversation);
        Some((callback, conversation, kind))
    }

    /// The next captured callback; after the last one of before.
    fn captured(&mut self) -> Option<(Callback, String, Kind)> {
        let captured = Arc::clone(self.orders.captured.as_ref()?);
        let Some(at) = self.left.pop() else {
            let (callback, conversation) = self.one_recent();
            return Some((callback, conversation, Kind::Repeat));
        };
        let callback = captured[at].clone();
        self.remember(&callback, "");
        Some((callback, String::new(), Kind::Event))
    }

    fn remember(&mut self, callback: &Callback, conversation: &str) {
        if self.recent.len() == REMEMBERED {
            self.recent.pop_front();
        }
        self.recent
            .push_back((callback.clone(), conversation.to_owned()));
    }

    fn one_recent(&mut self) -> (Callback, String) {
        let at = self.orders.rng.random_range(0..self.recent.len());
        self.recent[at].clone()
    }
}

fn sign(body: String) -> Callback {
    signed_callback(PUBLIC_URL, "127.0.0.1:1", AUTH_TOKEN, body)
}

fn message(conversation: &str, id: &str) -> String {
    json!({
        "eventType": "COMMUNICATION_CREATED",
        "timestamp": "2026-11-22T10:10:00Z",
        "data": {"id": id, "conversationId": conversation, "accountId": "AC00000000000000000000000000000001"},
    })
    .to_string()
}

/// In hex.
pub(crate) fn sha256(body: impl AsRef<[u8]>) -> String {
    use std::fmt::Write as _;
    Sha256::digest(body.as_ref())
        .iter()
        .fold(String::with_capacity(64), |mut text, byte| {
            write!(text, "{byte:02x}").expect("a String takes everything");
            text
        })
}

/// A request whose sender leaves after the body, as bytes, noted as indefinite.
pub(crate) fn left_behind(n: u32, ledger: &Ledger) -> String {
    let callback = sign(message("chaos-left", &format!("left-{n}")));
    ledger.record(Entry {
        n: n as usize,
        token: callback.token.clone(),
        conv: "chaos-left".to_owned(),
        kind: Kind::Event,
        t: ledger.now(),
        outcome: Outcome::Indefinite,
        status: 0,
        ms: 0,
        sha256: sha256(&callback.body),
    });
    let (_, target) = callback
        .url
        .split_once("127.0.0.1:1")
        .expect("signed for it");
    format!(
        "POST {target} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-Twilio-Signature: {}\r\n\
         Content-Length: {}\r\n\r\n{}",
        callback.signature,
        callback.body.len(),
        callback.body
    )
}
