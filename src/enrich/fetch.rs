//! Everything that the API has of one conversation: pages to their end, single resources where a list
//! left fields out, participants.
//!
//! Owns the order of the calls and the limits on them. Guarantees: pages are read until a page says that
//! it is the last; a token that comes twice, and anything above a limit, is an error and never a short
//! read. A resource that comes twice is merged, the later one's fields over the earlier one's.
//!
//! What is fetched one by one: a communication whose list item lacks author, author's address or
//! channel, content type, text, recipients, creation time or `occurredAt`. The first five are what lists
//! are known to leave out. `occurredAt` orders the conversation; where the single GET lacks it too, there
//! is none, and the creation time stands in. Other fields are optional in Twilio's models: lists have not
//! been seen to drop them, and asking one by one for every message without them would cost a call each.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU32;

use futures::stream::{self, StreamExt};
use sha2::{Digest, Sha256};
use tokio::sync::SemaphorePermit;

use super::{EnrichError, Enricher, rows};
use crate::api::resource::{self, Communication, Conversation, Participant};
use crate::api::{Answer, ApiError};
use crate::event::CLOSED;

/// A page that was too large is asked for again with this part of its items, down to one.
const SMALLER_PAGE_DIVISOR: u32 = 10;

/// What a conversation cost.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ledger {
    /// Pages of communications.
    pub(super) pages: u32,
    /// Communications and participants that were fetched one by one.
    pub(super) fetched_singly: u32,
    /// Requests, retries included.
    pub(super) calls: u32,
    bytes: usize,
}

/// What the API has.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) conversation: Conversation,
    /// Distinct ids, in the order of their first appearance.
    pub(super) communications: Vec<Communication>,
    /// Distinct ids; those that communications name are among them, if they exist.
    pub(super) participants: Vec<Participant>,
    /// Whether every participant that the API lists is here with its addresses.
    pub(super) participants_whole: bool,
}

pub(super) struct Fetch<'a> {
    enricher: &'a Enricher,
    id: &'a str,
    ledger: Ledger,
    large: Option<SemaphorePermit<'a>>,
}

impl<'a> Fetch<'a> {
    pub(super) fn new(enricher: &'a Enricher, id: &'a str) -> Self {
        Fetch {
            enricher,
            id,
            ledger: Ledger::default(),
            large: None,
        }
    }

    pub(super) fn ledger(&self) -> Ledger {
        self.ledger
    }

    /// The whole conversation; `None` if it does not exist.
    pub(super) async fn all(&mut self) -> Result<Option<Fetched>, EnrichError> {
        let Some(mut conversation) = self.closed_conversation().await? else {
            return Ok(None);
        };
        let Some(mut communications) = self.communications().await? else {
            // Deleted since the call before, or a list that is missing by mistake?
            return match self.closed_conversation().await? {
                None => Ok(None),
                Some(_) => Err(EnrichError::dead("communications-not-found", 1)),
            };
        };
        self.complete_communications(&mut communications).await?;
        let listed = conversation.participants.take();
        let (participants, participants_whole) = self.participants(listed, &communications).await?;
        Ok(Some(Fetched {
            conversation,
            communications,
            participants,
            participants_whole,
        }))
    }

    /// The conversation, `CLOSED`.
    ///
    /// A close is final, so a conversation that was announced as closed and reads otherwise is a stale
    /// read: it is read again. A replayed close of an old conversation reads `CLOSED` at once. One that
    /// never does was not closed, whatever the announcement said; its rows would be cut short. One
    /// without a status is taken as it is, `status` missing.
    async fn closed_conversation(&mut self) -> Result<Option<Conversation>, EnrichError> {
        let limits = &self.enricher.limits;
        for read in 1..=limits.status_reads {
            let call = self.enricher.api.conversation(self.id).await;
            let Some(conversation) = self.found(call).await? else {
                return Ok(None);
            };
            if conversation
                .status
                .as_deref()
                .is_none_or(|status| status == CLOSED)
            {
                return Ok(Some(conversation));
            }
            if read < limits.status_reads {
                tokio::time::sleep(limits.status_delay).await;
            }
        }
        Err(EnrichError::dead("not-closed", limits.status_reads))
    }

    /// Every communication that the list has; `None` if there is no list.
    async fn communications(&mut self) -> Result<Option<Vec<Communication>>, EnrichError> {
        let limits = &self.enricher.limits;
        let mut all = Distinct::default();
        let mut tokens = Tokens::new(limits.max_pages);
        let mut size = self.enricher.api.page_size();
        loop {
            let api = &self.enricher.api;
            let call = api
                .communications_page_of(self.id, tokens.current(), size)
                .await;
            if let (Err(ApiError::TooLarge { calls, .. }), Some(smaller)) = (&call, smaller(size)) {
                self.ledger.calls += calls;
                size = smaller;
                continue;
            }
            let Some(page) = self.found(call).await? else {
                return Ok(None);
            };
            self.ledger.pages += 1;
            for item in page.items {
                all.add(item);
            }
            if all.items.len() > limits.max_communications {
                return Err(EnrichError::dead("too-many-communications", 1));
            }
            self.wait_if_large(all.items.len()).await;
            if !tokens.advance(page.next_token)? {
                return Ok(Some(all.items));
            }
        }
    }

    /// Waits until no other conversation is large, if this one has become so.
    async fn wait_if_large(&mut self, communications: usize) {
        let limits = &self.enricher.limits;
        let large = communications > limits.large_threshold
            || self.ledger.bytes > limits.large_threshold_bytes;
        if large && self.large.is_none() {
            let permit = self.enricher.large.acquire().await;
            self.large = Some(permit.expect("the semaphore is never closed"));
        }
    }

    /// Fetches those one by one that lack what a row needs. A 404 leaves the list's item as it is.
    async fn complete_communications(
        &mut self,
        communications: &mut [Communication],
    ) -> Result<(), EnrichError> {
        let (api, id) = (&self.enricher.api, self.id);
        let incomplete: Vec<(usize, String)> = communications
            .iter()
            .enumerate()
            .filter(|(_, item)| rows::lacks_fields(item))
            .map(|(index, item)| (index, item.key().to_owned()))
            .collect();
        // The ids are moved in: the compiler cannot prove a future over borrowed ones to be Send.
        let calls = incomplete
            .into_iter()
            .map(|(index, item)| async move { (index, api.communication(id, &item).await) });
        let mut answers =
            stream::iter(calls).buffer_unordered(self.enricher.limits.singles_in_flight);
        while let Some((index, call)) = answers.next().await {
            self.ledger.fetched_singly += 1;
            if let Some(whole) = self.found(call).await? {
                communications[index].merge(whole);
            }
        }
        Ok(())
    }

    /// The participants, and whether they are whole: from the conversation itself if it has them with
    /// ids, types and addresses and knows every author, else from the list and one by one.
    async fn participants(
        &mut self,
        listed: Option<Vec<Participant>>,
        communications: &[Communication],
    ) -> Result<(Vec<Participant>, bool), EnrichError> {
        let authors: HashSet<&str> = communications
            .iter()
            .filter_map(|item| item.author.as_ref()?.participant_id.as_deref())
            .collect();
        let whole = |item: &Participant| item.addresses.is_some() && item.r#type.is_some();
        let mut all = Distinct::default();
        let mut sure = listed.is_some();
        for item in listed.into_iter().flatten() {
            sure &= item.id.is_some() && whole(&item);
            if item.id.is_some() {
                all.add(item);
            }
        }
        let knows = |all: &Distinct<Participant>, author: &&str| all.index.contains_key(*author);
        if sure && authors.iter().all(|author| knows(&all, author)) {
            return Ok((all.items, true));
        }
        let has_list = self.list_participants(&mut all).await?;
        let singles: Vec<String> = all
            .items
            .iter()
            .filter(|item| !whole(item))
            .map(|item| item.key().to_owned())
            .chain(
                authors
                    .iter()
                    .filter(|author| !knows(&all, author) && resource::usable(author))
                    .map(|author| (*author).to_owned()),
            )
            .collect();
        let (api, id) = (&self.enricher.api, self.id);
        let calls = singles
            .into_iter()
            .map(|item| async move { api.participant(id, &item).await });
        let mut answers =
            stream::iter(calls).buffer_unordered(self.enricher.limits.singles_in_flight);
        while let Some(call) = answers.next().await {
            self.ledger.fetched_singly += 1;
            if let Some(item) = self.found(call).await? {
                all.add(item);
            }
        }
        let has_addresses = all.items.iter().all(|item| item.addresses.is_some());
        Ok((all.items, has_list && has_addresses))
    }

    /// Adds every page of participants; false if there is no list.
    async fn list_participants(
        &mut self,
        all: &mut Distinct<Participant>,
    ) -> Result<bool, EnrichError> {
        let limits = &self.enricher.limits;
        let mut tokens = Tokens::new(limits.max_pages);
        loop {
            let api = &self.enricher.api;
            let call = api.participants_page(self.id, tokens.current()).await;
            let Some(page) = self.found(call).await? else {
                return Ok(false);
            };
            for item in page.items {
                all.add(item);
            }
            if all.items.len() > limits.max_participants {
                return Err(EnrichError::dead("too-many-participants", 1));
            }
            if !tokens.advance(page.next_token)? {
                return Ok(true);
            }
        }
    }

    /// Enters a call in the ledger; `None` for a 404.
    async fn found<T>(
        &mut self,
        call: Result<Answer<T>, ApiError>,
    ) -> Result<Option<T>, EnrichError> {
        match call {
            Ok(answer) => {
                self.ledger.calls += answer.calls;
                self.ledger.bytes += answer.bytes;
                if self.ledger.bytes > self.enricher.limits.max_bytes {
                    return Err(EnrichError::dead("too-many-bytes", 1));
                }
                Ok(Some(answer.value))
            }
            Err(ApiError::NotFound { calls }) => {
                self.ledger.calls += calls;
                Ok(None)
            }
            Err(error) => Err(self.enricher.failed(error).await),
        }
    }
}

fn smaller(size: NonZeroU32) -> Option<NonZeroU32> {
    (size.get() > 1)
        .then(|| NonZeroU32::new(size.get() / SMALLER_PAGE_DIVISOR).unwrap_or(NonZeroU32::MIN))
}

/// The way through a list's pages.
struct Tokens {
    current: Option<String>,
    /// Hashes, because a token may have kilobytes.
    seen: HashSet<[u8; 32]>,
    pages_left: u32,
}

impl Tokens {
    fn new(max_pages: u32) -> Self {
        Tokens {
            current: None,
            seen: HashSet::new(),
            pages_left: max_pages,
        }
    }

    fn current(&self) -> Option<&str> {
        self.current.as_deref()
    }

    /// Goes on to `next`; false at the end.
    fn advance(&mut self, next: Option<String>) -> Result<bool, EnrichError> {
        self.pages_left = self.pages_left.saturating_sub(1);
        let Some(token) = next else {
            return Ok(false);
        };
        if !self.seen.insert(Sha256::digest(&token).into()) {
            return Err(EnrichError::dead("page-token-repeated", 1));
        }
        if self.pages_left == 0 {
            return Err(EnrichError::dead("too-many-pages", 1));
        }
        self.current = Some(token);
        Ok(true)
    }
}

/// A resource with an id that `api` has checked.
trait Keyed {
    fn key(&self) -> &str;
    fn take_over(&mut self, later: Self);
}

impl Keyed for Communication {
    fn key(&self) -> &str {
        self.id
            .as_deref()
            .expect("api refuses an answer without id")
    }

    fn take_over(&mut self, later: Self) {
        self.merge(later);
    }
}

impl Keyed for Participant {
    fn key(&self) -> &str {
        self.id
            .as_deref()
            .expect("api refuses an answer without id")
    }

    fn take_over(&mut self, later: Self) {
        self.merge(later);
    }
}

/// Resources by id, in the order of their first appearance.
struct Distinct<T> {
    items: Vec<T>,
    index: HashMap<String, usize>,
}

impl<T> Default for Distinct<T> {
    fn default() -> Self {
        Distinct {
            items: Vec::new(),
            index: HashMap::new(),
        }
    }
}

impl<T: Keyed> Distinct<T> {
    fn add(&mut self, item: T) {
        match self.index.get(item.key()) {
            Some(&at) => self.items[at].take_over(item),
            None => {
                self.index.insert(item.key().to_owned(), self.items.len());
                self.items.push(item);
            }
        }
    }
}
