//! Closed conversations that no callback announced, and open ones that nothing closes.
//!
//! Owns one pass over the API's list of CLOSED conversations: each that the lake lacks, or has in part, gets its close
//! published ([`crate::announce`]) and goes the way of every other. Then, with a limit, the list of ACTIVE ones
//! ([`active`]). Writes no row and fetches no conversation: `ingest` does.
//!
//! Guarantees: a pass goes on where the last one was broken off ([`bookmark`]), at worst with a page done twice; a
//! close that is published twice is written once. Requests stay inside the rate budget of [`Api`]; one page is in
//! memory at a time, and what was found. A conversation that closed within the grace time is left to its callback.
//!
//! Fails with [`ReconcileError`]; the bookmark then stands at the page that was not done.

pub mod active;
pub mod bookmark;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hdrhistogram::Histogram;
use jiff::Timestamp;
use serde::Serialize;

use crate::announce::{self, Close, Why};
use crate::api::resource::Conversation;
use crate::api::{Api, ApiError};
use crate::event::CLOSED;
use crate::lake::{Lake, LakeError};
use crate::lifecycle::{Clock, Stop};
use crate::table::row::Completeness;
use crate::telemetry;
use crate::topic::{PublishError, Publisher, Topics};

use active::Active;
use bookmark::{Bookmark, BookmarkError};

/// Pages of one list at most: a list that goes in circles ends here, as an error.
const MAX_PAGES: u64 = 1_000_000;

/// Significant decimal digits of the delays.
const DELAY_DIGITS: u8 = 2;

/// What a pass works with.
#[derive(Debug)]
pub struct Reconciler<'a> {
    /// What is compared.
    pub lake: &'a Lake,
    /// With what.
    pub api: &'a Api,
    /// Takes the closes.
    pub publisher: &'a Publisher,
    /// Where they go.
    pub topics: &'a Topics,
    /// Ages are counted by it.
    pub clock: Clock,
    /// Where a pass that was broken off goes on.
    pub bookmark: Bookmark,
    /// A close younger than this is left to its callback.
    pub grace: Duration,
    /// A conversation that is ACTIVE and unchanged for longer is named; without it none are looked at.
    pub active_limit: Option<Duration>,
}

/// What a pass found and did.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Pages of closed conversations read.
    pub pages: u64,
    /// Closed conversations on them.
    pub listed: u64,
    /// Those that the lake has whole.
    pub complete: u64,
    /// Those that closed within the grace time, and are not whole yet.
    pub young: u64,
    /// Closes published, by reason.
    pub published: BTreeMap<&'static str, u64>,
    /// The same one by one.
    pub closes: Vec<Published>,
    /// Seconds from the close of a missing conversation to its publication.
    pub delay_seconds: Delays,
    /// Conversations that are ACTIVE for longer than the limit.
    pub active: Vec<Active>,
    /// The pass went on from a bookmark.
    pub resumed: bool,
    /// The pass was stopped, and left a bookmark.
    pub interrupted: bool,
}

impl Report {
    /// Whether nothing was found.
    pub fn is_clean(&self) -> bool {
        self.closes.is_empty() && self.active.is_empty()
    }
}

/// A close that was published.
#[derive(Debug, Serialize)]
pub struct Published {
    /// Of which conversation.
    pub conversation_id: String,
    /// `missing`, `partial` or `gone`.
    pub why: &'static str,
}

/// How late closes were found.
#[derive(Debug, Default, Clone, Copy, Serialize)]
pub struct Delays {
    /// Half of them at most.
    pub p50: u64,
    /// All but one of a hundred at most.
    pub p99: u64,
    /// The latest.
    pub max: u64,
}

/// Why a pass ended early. Another one goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The API could not be asked.
    #[error("the API could not be asked; the next pass goes on from the bookmark")]
    Api(#[from] ApiError),
    /// The list does not end.
    #[error("the API's list repeats a page token or has more than {MAX_PAGES} pages")]
    EndlessList,
    /// The lake could not be read.
    #[error("the lake could not be read")]
    Lake(#[from] LakeError),
    /// Kafka did not take a close.
    #[error("a close was not taken; the next pass goes on from the bookmark")]
    Publish(#[from] PublishError),
    /// The bookmark could not be kept.
    #[error(transparent)]
    Bookmark(#[from] BookmarkError),
}

impl Reconciler<'_> {
    /// One pass, or the rest of one; ends early where `stop` asks for it.
    ///
    /// # Errors
    /// [`ReconcileError`].
    pub async fn pass(&self, stop: &Stop) -> Result<Report, ReconcileError> {
        let mut report = Report::default();
        let mut delays = Histogram::new(DELAY_DIGITS).expect("2 is a valid precision");
        let mut token = self.bookmark.read().await;
        report.resumed = token.is_some();
        let mut seen = BTreeSet::new();
        loop {
            if stop.is_requested() {
                report.interrupted = true;
                return Ok(report);
            }
            let page = self.api.conversations_page(CLOSED, token.as_deref()).await;
            let page = match page {
                // The API forgets page tokens after a while.
                Err(ApiError::Refused { .. } | ApiError::NotFound { .. })
                    if report.resumed && report.pages == 0 && token.is_some() =>
                {
                    tracing::warn!("the bookmark's page is no longer there; beginning anew");
                    token = None;
                    report.resumed = false;
                    continue;
                }
                page => page?.value,
            };
            report.pages += 1;
            self.page(&page.items, &mut report, &mut delays).await?;
            token = page.next_token;
            match &token {
                None => break,
                Some(next) if !seen.insert(next.clone()) || report.pages >= MAX_PAGES => {
                    self.bookmark.clear().await?;
                    return Err(ReconcileError::EndlessList);
                }
                Some(next) => self.bookmark.write(next).await?,
            }
        }
        self.bookmark.clear().await?;
        report.delay_seconds = Delays {
            p50: delays.value_at_quantile(0.5),
            p99: delays.value_at_quantile(0.99),
            max: delays.max(),
        };
        if let Some(limit) = self.active_limit {
            report.active = active::overdue(self.api, limit, self.clock.now()).await?;
            metrics::gauge!(telemetry::ACTIVE_OVER_LIMIT).set(report.active.len() as f64);
        }
        Ok(report)
    }

    /// Publishes what one page has and the lake has not, and waits until Kafka has it.
    async fn page(
        &self,
        items: &[Conversation],
        report: &mut Report,
        delays: &mut Histogram<u64>,
    ) -> Result<(), ReconcileError> {
        let ids: Vec<String> = items.iter().filter_map(|item| item.id.clone()).collect();
        let known = self.lake.completeness(&ids).await?;
        report.listed += ids.len() as u64;
        let now = self.clock.now();
        let mut acknowledgements = Vec::new();
        for item in items {
            let Some(id) = &item.id else { continue };
            let closed_at = item.updated_at.as_deref().or(item.date_updated.as_deref());
            let age = closed_at.and_then(|text| age(text, now));
            match judge(known.get(id).copied(), age, self.grace) {
                Judged::Complete => report.complete += 1,
                Judged::Young => report.young += 1,
                Judged::Announce(why) => {
                    let close = Close {
                        conversation_id: id,
                        account_id: item.account_id.as_deref(),
                        closed_at,
                        why,
                    };
                    let sent = announce::publish(self.publisher, self.topics, &close, now);
                    acknowledgements.push((id, why, age, sent));
                }
            }
        }
        for (id, why, age, sent) in acknowledgements {
            sent.await?;
            metrics::counter!(telemetry::CLOSES_RECONCILED, "reason" => why.as_str()).increment(1);
            *report.published.entry(why.as_str()).or_default() += 1;
            report.closes.push(Published {
                conversation_id: id.clone(),
                why: why.as_str(),
            });
            if let (Why::Missing, Some(age)) = (why, age) {
                // It grows as needed.
                let _ = delays.record(age.as_secs());
            }
        }
        Ok(())
    }
}

/// What becomes of a closed conversation.
#[derive(Debug, PartialEq, Eq)]
enum Judged {
    Complete,
    Young,
    Announce(Why),
}

/// `have`: what the lake has of it; `age`: time since its close, where known.
fn judge(have: Option<Completeness>, age: Option<Duration>, grace: Duration) -> Judged {
    let why = match have {
        Some(Completeness::Complete) => return Judged::Complete,
        Some(Completeness::Partial) => Why::Partial,
        Some(Completeness::Gone) => Why::Gone,
        None => Why::Missing,
    };
    match age {
        Some(age) if age < grace => Judged::Young,
        Some(_) | None => Judged::Announce(why),
    }
}

/// Time since `text`, which lies in the future where the service's clock is ahead of ours: no time then.
fn age(text: &str, now: Timestamp) -> Option<Duration> {
    let then: Timestamp = text.parse().ok()?;
    Some(Duration::try_from(now.duration_since(then)).unwrap_or_default())
}
