//! Status callbacks: signed, sent, retried, repeated, shuffled, spoiled, and remembered.
//!
//! Owns the way of one announcement to each of its URLs: `queue` says when, `send` does it, as the URL's
//! fragment asks (`overrides`), and `log` remembers. Refuses to decide what is announced (`state`), what
//! counts as a proper signature (`signature`) and which fault falls (`faults`).
//!
//! Guarantees: every try and every repeat of one delivery carries the same `I-Twilio-Idempotency-Token`,
//! which depends on the seed alone, unless a fault replays it with another. Which deliveries come late or
//! twice depends on the seed alone, too. URLs do not wait for each other. Queue, parallel sends, tries,
//! their times and the log are bounded by named constants. At a stop the tries in flight end within
//! [`STOP_GRACE`]; what still waits is dropped.
//!
//! A delivery whose tries all fail is counted and left at that: Twilio does not come back either.

mod log;
pub(crate) mod overrides;
mod queue;
mod send;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::state::Announcement;
use crate::signature::SigningKey;

pub(crate) use self::log::{Attempt, Delivery, Filter, Log};
pub(crate) use self::queue::Sender;

/// Announcements that wait to be sent; a full queue holds traffic and requests back.
const QUEUE_ANNOUNCEMENTS: usize = 1_024;
/// Longest time that a try goes on after the stop: half of the drain deadline.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// The header that names a delivery.
pub const IDEMPOTENCY_HEADER: &str = "i-twilio-idempotency-token";

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
        let deliveries = announcement.callbacks.len() as u64;
        self.log
            .outstanding
            .send_modify(|count| *count += deliveries);
        if self.queue.send(announcement).await.is_err() {
            self.log
                .outstanding
                .send_modify(|count| *count -= deliveries);
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
