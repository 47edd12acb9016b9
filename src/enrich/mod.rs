//! One closed conversation: what it needs, what complete means, what is recorded as missing.
//!
//! Owns the judgement from a [`Close`] to rows. `fetch` asks for pages, single resources and
//! participants; `rows` merges, orders and names what is missing (pure); `turn` counts utterances;
//! `hash` says whether two enrichments say the same. Refuses to retry: `api` has done that, and an error
//! here says what is to become of the record. The one thing read again is a conversation that is not
//! `CLOSED` yet, because only this file knows that it was announced as closed.
//!
//! Guarantees: a row exists only for a conversation that was read to the end of its pages. COMPLETE means
//! every communication that the API lists, each with author, content type, text, recipients, creation
//! time and channel, and with the author's participant where it names one. What could not be had is
//! named in `missing` (PARTIAL). Rows depend on what the API says, not on how it was cut into pages nor
//! on the order of fetches. At most one conversation at a time holds more than
//! [`Limits::large_threshold`] communications (plus one page).
//!
//! Fails with [`EnrichError`]: stop, later, or dead with a reason. Nothing has been written by then.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Semaphore;

use crate::api::{Api, ApiError, Outcome, ResponseStart};
use crate::lifecycle::Clock;
use crate::table::row::{CommunicationRow, ConversationRow, Recipient, Word};

#[cfg(test)]
mod emulated;
#[cfg(test)]
mod faulted;
mod fetch;
mod hash;
#[cfg(test)]
mod merging;
mod rows;
#[cfg(test)]
mod tests;
mod turn;

pub use hash::content_hash;
pub use turn::MAX_TURN_GAP_MS;

/// Default of [`Limits::max_pages`].
pub const MAX_PAGES: u32 = 4_096;
/// Default of [`Limits::max_communications`]: one Parquet row group.
pub const MAX_COMMUNICATIONS: usize = 131_072;
/// Default of [`Limits::max_participants`].
pub const MAX_PARTICIPANTS: usize = 10_000;
/// Default of [`Limits::max_bytes`].
pub const MAX_CONVERSATION_BYTES: usize = 256 * 1024 * 1024;
/// Default of [`Limits::large_threshold`].
pub const LARGE_THRESHOLD: usize = 2_000;
/// Default of [`Limits::large_threshold_bytes`].
pub const LARGE_THRESHOLD_BYTES: usize = 8 * 1024 * 1024;
/// Default of [`Limits::singles_in_flight`].
pub const SINGLES_IN_FLIGHT: usize = 8;
/// Default of [`Limits::status_reads`].
pub const STATUS_READS: u32 = 5;
/// Default of [`Limits::status_delay`].
pub const STATUS_DELAY: Duration = Duration::from_secs(2);

/// A close that was announced: which conversation, and by which record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Close {
    /// The conversation.
    pub conversation_id: String,
    /// The account that the announcement names.
    pub account_id: Option<String>,
    /// When it closed, by the announcement.
    pub closed_at: Option<Timestamp>,
    /// When the announcement was received.
    pub received_at: Timestamp,
    /// The record's partition.
    pub partition: i32,
    /// The record's offset.
    pub offset: i64,
}

/// What one conversation may cost.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Pages of one list; more is `too-many-pages`.
    pub max_pages: u32,
    /// Communications; more is `too-many-communications`.
    pub max_communications: usize,
    /// Participants; more is `too-many-participants`.
    pub max_participants: usize,
    /// Bytes of all answers; more is `too-many-bytes`.
    pub max_bytes: usize,
    /// Communications above which a conversation waits to be the only large one in memory.
    pub large_threshold: usize,
    /// Bytes of answers above which it does likewise.
    pub large_threshold_bytes: usize,
    /// Single resources asked for at once.
    pub singles_in_flight: usize,
    /// Reads of a conversation that is not `CLOSED` yet, the first included; then `not-closed`.
    pub status_reads: u32,
    /// Time between two of them.
    pub status_delay: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_pages: MAX_PAGES,
            max_communications: MAX_COMMUNICATIONS,
            max_participants: MAX_PARTICIPANTS,
            max_bytes: MAX_CONVERSATION_BYTES,
            large_threshold: LARGE_THRESHOLD,
            large_threshold_bytes: LARGE_THRESHOLD_BYTES,
            singles_in_flight: SINGLES_IN_FLIGHT,
            status_reads: STATUS_READS,
            status_delay: STATUS_DELAY,
        }
    }
}

/// A conversation that was judged, ready to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct Enriched {
    /// Its row.
    pub conversation: ConversationRow,
    /// Its communications by position; none for a GONE one.
    pub communications: Vec<CommunicationRow>,
}

impl Enriched {
    /// Roughly what it takes in memory: for the bound on rows that wait for their commit.
    pub fn bytes(&self) -> usize {
        let conversation = &self.conversation;
        let texts = [
            &conversation.metadata,
            &conversation.extra,
            &conversation.name,
        ];
        let participants = conversation.participants.len() * PARTICIPANT_BYTES;
        size_of::<Self>()
            + texts.into_iter().flatten().map(String::len).sum::<usize>()
            + participants
            + self
                .communications
                .iter()
                .map(communication_bytes)
                .sum::<usize>()
    }
}

/// A participant with two addresses, and the short texts of each.
const PARTICIPANT_BYTES: usize = 512;
/// The ids, addresses and names of a communication or of one of its recipients.
const SHORT_TEXTS_BYTES: usize = 256;

fn communication_bytes(row: &CommunicationRow) -> usize {
    let long = [&row.text, &row.extra]
        .into_iter()
        .flatten()
        .map(String::len);
    let recipients = row.recipients.as_ref().map_or(0, Vec::len);
    let words = row.transcription_words.iter().flatten();
    let words = words.map(|word| size_of::<Word>() + word.text.as_ref().map_or(0, String::len));
    size_of::<CommunicationRow>()
        + SHORT_TEXTS_BYTES
        + recipients * (size_of::<Recipient>() + SHORT_TEXTS_BYTES)
        + long.sum::<usize>()
        + words.sum::<usize>()
}

/// Why a conversation has no rows, and what is to become of the record that announced it.
#[derive(Debug, thiserror::Error)]
pub enum EnrichError {
    /// Stop consuming: the credentials are refused. The record stays where it is.
    #[error("the API refuses our credentials; the conversation stays in the topic")]
    Stop(#[source] ApiError),
    /// Try again later: nothing answers. The record stays where it is.
    #[error("the API is away; the conversation is tried again")]
    Later(#[source] ApiError),
    /// Set aside: this conversation fails while the API answers others.
    #[error("the conversation cannot be fetched ({reason}); it goes to the dead letters")]
    Dead {
        /// A stable word: one of `api`'s reasons, or `page-token-repeated`, `too-many-pages`,
        /// `too-many-communications`, `too-many-participants`, `too-many-bytes`, `not-closed`,
        /// `communications-not-found`.
        reason: &'static str,
        /// Requests of the call that decided it; for `not-closed` the reads.
        attempts: u32,
        /// The start of the answer, where one was malformed or refused. Can hold message text.
        response: Option<ResponseStart>,
        /// The call that failed, if one did.
        #[source]
        source: Option<ApiError>,
    },
}

impl EnrichError {
    fn dead(reason: &'static str, attempts: u32) -> Self {
        EnrichError::Dead {
            reason,
            attempts,
            response: None,
            source: None,
        }
    }
}

/// Turns closes into rows. Clones share the API's budget and the one place for a large conversation.
#[derive(Debug, Clone)]
pub struct Enricher {
    api: Api,
    clock: Clock,
    limits: Limits,
    large: Arc<Semaphore>,
}

impl Enricher {
    /// `clock` stamps `enriched_at`.
    pub fn new(api: Api, clock: Clock, limits: Limits) -> Self {
        Enricher {
            api,
            clock,
            limits,
            large: Arc::new(Semaphore::new(1)),
        }
    }

    /// Fetches and judges one conversation. Safe to drop at any await: nothing has an effect.
    ///
    /// A 404 is a GONE row and no communications.
    ///
    /// # Errors
    /// [`EnrichError`].
    pub async fn enrich(&self, close: &Close) -> Result<Enriched, EnrichError> {
        let mut fetch = fetch::Fetch::new(self, &close.conversation_id);
        let fetched = fetch.all().await?;
        let ledger = fetch.ledger();
        let now = self.clock.now();
        Ok(match fetched {
            Some(fetched) => rows::judge(close, fetched, &ledger, now),
            None => rows::gone(close, &ledger, now),
        })
    }

    /// What becomes of the record when a call failed for good.
    async fn failed(&self, error: ApiError) -> EnrichError {
        let dead = match error.outcome() {
            Outcome::Stop => return EnrichError::Stop(error),
            Outcome::Later => false,
            Outcome::Gone | Outcome::DeadLetter => true,
            // An outage fails every call alike and must set nothing aside. Where no other call can
            // tell (this is the only conversation under way), one cheap question does.
            Outcome::DeadLetterIfAnsweredSince(since) => {
                self.api.answered_since(since) || self.api.answers().await
            }
        };
        if !dead {
            return EnrichError::Later(error);
        }
        EnrichError::Dead {
            reason: error.reason(),
            attempts: error.calls(),
            response: error.response().cloned(),
            source: Some(error),
        }
    }
}
