//! The Orchestrator's state machine: a command and a time in, a new state and effects out.
//!
//! Owns every rule of a conversation's life (`ACTIVE → INACTIVE → CLOSED`, the way back on new traffic,
//! the immutability of what is closed, one communication per `resourceId`), and which closed conversations
//! make room for new ones; `entry` is one conversation, `grouping` how traffic finds it, `timeouts` when it
//! changes by itself, `control` the account's control plane, `command` the vocabulary; `ingest` brings messages
//! and calls in, `memory` knows whose they are, `bill` counts. Refuses I/O, clocks and randomness: ids and times arrive in the command, callbacks leave as
//! [`Effect`]s that somebody else sends. Requests over REST, generated traffic and the passing of time go
//! through the same [`State::apply`].
//!
//! Guarantees: a refused command changes nothing. A closed conversation never changes. A communication
//! is in one conversation. Each change of state is announced once, to the callbacks that the
//! conversation has at that moment, and `sequence` numbers a conversation's announcements without gaps.
//! Nothing here is unbounded: each collection has a limit below, past which commands are refused.
//!
//! Fails with [`Refusal`], which `rest` turns into Twilio's error bodies.

mod bill;
mod command;
mod control;
mod entry;
mod grouping;
pub(crate) mod ingest;
mod memory;
mod timeouts;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::configuration::Configuration;
use super::resource::{
    Communication, Conversation, DeliveryStatus, NewCommunication, NewParticipant, Status,
    StatusCallback, whole_seconds,
};
use crate::event::event_type;

pub(crate) use self::bill::{Bill, CallLine, Source};
pub(crate) use self::command::{
    Announcement, Applied, Change, Command, Effect, MetadataChange, Refusal,
};
use self::control::Operations;
pub(crate) use self::control::{
    ConfigurationChange, Configurations, Operation, Progress, Related, Request, related,
};
pub(crate) use self::entry::Entry;
use self::grouping::{Key, Party};
pub(crate) use self::memory::Memory;

/// Conversations at once, living ones included; about 1 kB a communication.
pub const MAX_CONVERSATIONS: usize = 1_000_000;
/// Communications of one conversation.
pub(crate) const MAX_COMMUNICATIONS: usize = 1_000_000;
/// Participants of one conversation.
pub(crate) const MAX_PARTICIPANTS: usize = 1_000;
/// Participants that a conversation can be created with (Twilio's limit).
pub(crate) const MAX_CREATED_PARTICIPANTS: usize = 50;
/// Entries of `metadata` (Twilio's limit, npm `twilio` 6.2).
pub(crate) const MAX_METADATA_ENTRIES: usize = 8;

/// How much there is, and was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Ever opened.
    pub(crate) conversations: u64,
    /// Ever closed.
    pub(crate) closed: u64,
    /// Ever captured.
    pub(crate) communications: u64,
    /// Closed conversations that made room for newer ones.
    pub(crate) evicted: u64,
}

/// What a machine begins with.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) account_id: Arc<str>,
    /// Callbacks of the configuration that is there from the start.
    pub(crate) callbacks: Arc<[StatusCallback]>,
    /// When that configuration was created.
    pub(crate) since: Timestamp,
    /// How long operations take.
    pub(crate) operation_delay: SignedDuration,
    /// Conversations kept; past it the ones that closed first make room.
    pub(crate) keep_conversations: usize,
}

/// All conversations of one account, and its control plane.
#[derive(Debug)]
pub(crate) struct State {
    account_id: Arc<str>,
    configurations: Configurations,
    operations: Operations,
    /// By the order of creation; what was deleted or evicted leaves its number unused. A reader that keeps
    /// a living one keeps it as it was: the next change is made to a copy.
    conversations: BTreeMap<u64, Arc<Entry>>,
    by_id: HashMap<Arc<str>, u64>,
    communications: HashMap<Arc<str>, (u64, u32)>,
    living: BTreeSet<u64>,
    /// In the order of their closes.
    closed: VecDeque<u64>,
    keep_conversations: usize,
    /// What living conversations are found by; the one that came first has the key.
    groups: HashMap<Key, u64>,
    /// Living conversations that become INACTIVE or CLOSED by themselves, by time.
    schedule: BTreeSet<(Timestamp, u64)>,
    memory: Memory,
    bill: Bill,
    tally: Tally,
}

impl State {
    /// No conversations yet, and the configuration
    /// [`CONFIGURATION_ID`](super::configuration::CONFIGURATION_ID).
    pub(crate) fn new(setup: Setup) -> Self {
        let mut configurations = Configurations::default();
        configurations.add(Configuration::dev(setup.callbacks, setup.since));
        State {
            account_id: setup.account_id,
            configurations,
            operations: Operations::new(setup.operation_delay),
            conversations: BTreeMap::new(),
            by_id: HashMap::new(),
            communications: HashMap::new(),
            living: BTreeSet::new(),
            closed: VecDeque::new(),
            keep_conversations: setup.keep_conversations,
            groups: HashMap::new(),
            schedule: BTreeSet::new(),
            memory: Memory::default(),
            bill: Bill::default(),
            tally: Tally::default(),
        }
    }

    /// Carries out `command` at the time `at`; a time before the conversation's last is taken as that.
    pub(crate) fn apply(&mut self, command: Command, at: Timestamp) -> Result<Applied, Refusal> {
        match command {
            Command::Open {
                id,
                configuration_id,
                name,
                metadata,
                participants,
            } => {
                let configuration = self.configurations.current(&configuration_id);
                let configuration = configuration.ok_or(Refusal::NotFound("configuration"))?;
                let conversation = Conversation {
                    id,
                    configuration: Arc::clone(configuration),
                    status: Status::Active,
                    name,
                    metadata,
                    callbacks: Arc::clone(&configuration.settings.status_callbacks),
                    created_at: at,
                    updated_at: at,
                };
                self.open(conversation, participants)
            }
            Command::Join {
                conversation,
                id,
                participant,
            } => {
                let account_id = Arc::clone(&self.account_id);
                let participant = self.resolved(&conversation, participant)?;
                let (position, entry) = self.living_entry(&conversation)?;
                let at = entry.advance(at);
                let applied = entry.join(id, participant, &account_id, at)?;
                self.regroup(position);
                self.reschedule(position);
                Ok(applied)
            }
            Command::Replace {
                conversation,
                participant,
                new,
            } => {
                let new = self.resolved(&conversation, new)?;
                let (position, entry) = self.living_entry(&conversation)?;
                let at = entry.advance(at);
                let applied = entry.replace(&participant, new, at)?;
                self.regroup(position);
                self.reschedule(position);
                Ok(applied)
            }
            Command::Capture {
                conversation,
                id,
                communication,
            } => self.capture(&conversation, id, communication, at),
            Command::Deliver {
                conversation,
                communication,
                status,
            } => self.deliver(&conversation, &communication, status, at),
            Command::Change {
                conversation,
                change,
            } => self.change(&conversation, change, at),
            Command::Begin {
                operation,
                request,
                key,
            } => self.begin(operation, request, key, at),
            Command::Tick => Ok(self.tick(at)),
        }
    }

    /// When something happens next by itself, unless a command changes that.
    pub(crate) fn due(&self) -> Option<Timestamp> {
        let conversation = self.schedule.first().map(|(at, _)| *at);
        self.operations.due().into_iter().chain(conversation).min()
    }

    /// Lets everything happen that is due until `at`, each thing at its own time.
    fn tick(&mut self, at: Timestamp) -> Applied {
        let mut effects = Vec::new();
        while let Some(due) = self.due().filter(|due| *due <= at) {
            match self.schedule.first() {
                Some(&(at, position)) if at == due => effects.extend(self.lapse(position, at)),
                _ => self.end_operation(due),
            }
        }
        Applied {
            id: "".into(),
            effects,
        }
    }

    /// The account that everything belongs to.
    pub(crate) fn account_id(&self) -> &str {
        &self.account_id
    }

    /// What was billed so far.
    pub(crate) fn bill(&self) -> &Bill {
        &self.bill
    }

    /// The memory stores.
    pub(crate) fn memory_mut(&mut self) -> &mut Memory {
        &mut self.memory
    }

    /// The account's configurations.
    pub(crate) fn configurations(&self) -> &Configurations {
        &self.configurations
    }

    /// An operation of the last 24 hours.
    pub(crate) fn operation(&self, id: &str) -> Option<&Operation> {
        self.operations.get(id)
    }

    /// Every conversation that is kept, in the order of creation.
    pub(crate) fn conversations(&self) -> impl DoubleEndedIterator<Item = &Arc<Entry>> {
        self.conversations.values()
    }

    /// The same with their positions, which never change, from `start` to `end`.
    pub(crate) fn listed(
        &self,
        range: Range<u64>,
    ) -> impl DoubleEndedIterator<Item = (u64, &Arc<Entry>)> {
        self.conversations
            .range(range)
            .map(|(&p, entry)| (p, entry))
    }

    /// The conversation at `position` of the list.
    pub(crate) fn at(&self, position: u64) -> Option<&Arc<Entry>> {
        self.conversations.get(&position)
    }

    /// One conversation.
    pub(crate) fn conversation(&self, id: &str) -> Option<&Arc<Entry>> {
        self.by_id
            .get(id)
            .map(|position| &self.conversations[position])
    }

    /// One communication of the conversation `conversation`.
    pub(crate) fn communication(&self, conversation: &str, id: &str) -> Option<&Communication> {
        let &(position, number) = self.communications.get(id)?;
        let entry = &self.conversations[&position];
        (&*entry.conversation.id == conversation).then(|| &entry.communications[number as usize])
    }

    /// How many conversations are kept before the ones that closed first make room.
    pub(crate) fn keep_conversations(&self) -> usize {
        self.keep_conversations
    }

    /// How much there is.
    pub(crate) fn tally(&self) -> Tally {
        self.tally
    }

    fn open(
        &mut self,
        conversation: Conversation,
        mut participants: Vec<(Arc<str>, NewParticipant)>,
    ) -> Result<Applied, Refusal> {
        within(self.conversations.len(), MAX_CONVERSATIONS, "conversations")?;
        within_inclusive(participants.len(), MAX_CREATED_PARTICIPANTS, "participants")?;
        within_inclusive(
            conversation.metadata.len(),
            MAX_METADATA_ENTRIES,
            "metadata entries",
        )?;
        if self.by_id.contains_key(&conversation.id) {
            return Err(Refusal::Taken("conversation"));
        }
        let configuration = &conversation.configuration;
        for (_, participant) in &mut participants {
            let store = &configuration.settings.memory_store_id;
            self.memory.resolve(store, participant);
        }
        let parties: Vec<_> = participants.iter().map(|(_, p)| Party::from(p)).collect();
        if let Some(living) = self.found(&grouping::keys(configuration, &parties)) {
            return Err(Refusal::Conflict { living });
        }
        let mut ids = BTreeSet::new();
        if !participants.iter().all(|(id, _)| ids.insert(id)) {
            return Err(Refusal::Taken("participant"));
        }
        let id = Arc::clone(&conversation.id);
        let at = conversation.created_at;
        let number = self.tally.conversations + 1;
        let mut entry = Entry::new(number, conversation, participants.is_empty());
        let mut effects = Vec::new();
        effects.extend(entry.announce_self(event_type::CONVERSATION_CREATED, &self.account_id, at));
        for (participant_id, participant) in participants {
            let joined = entry.join(participant_id, participant, &self.account_id, at)?;
            effects.extend(joined.effects);
        }
        let position = self.tally.conversations;
        self.tally.conversations += 1;
        self.by_id.insert(Arc::clone(&id), position);
        self.living.insert(position);
        let keys = entry.keys();
        self.conversations.insert(position, Arc::new(entry));
        self.claim(position, keys);
        self.reschedule(position);
        self.evict();
        Ok(Applied { id, effects })
    }

    fn capture(
        &mut self,
        conversation: &str,
        id: Arc<str>,
        mut new: NewCommunication,
        at: Timestamp,
    ) -> Result<Applied, Refusal> {
        if self.communications.contains_key(&id) {
            return Err(Refusal::Taken("communication"));
        }
        let account_id = Arc::clone(&self.account_id);
        let (index, entry) = self.living_entry(conversation)?;
        within(
            entry.communications.len(),
            MAX_COMMUNICATIONS,
            "communications",
        )?;
        let at = entry.advance(at);
        entry.identify(&mut new);
        let mut effects = Vec::new();
        effects.extend(entry.wake(&account_id, at));
        entry.traffic.on(new.author.channel, at);
        entry.channels.insert(new.author.channel);
        entry.channel_ids.extend(new.channel_id.clone());
        let known = new
            .resource_id
            .as_ref()
            .and_then(|resource| entry.resources.get(resource).copied());
        if let Some(position) = known {
            let communication = &mut entry.communications[position as usize];
            communication.author = new.author;
            communication.content = new.content;
            communication.recipients = new.recipients;
            let id = Arc::clone(&communication.id);
            effects.extend(entry.announce_communication_update(position, at));
            self.reschedule(index);
            return Ok(Applied { id, effects });
        }
        let position = u32::try_from(entry.communications.len()).expect("MAX_COMMUNICATIONS fits");
        if let Some(resource) = &new.resource_id {
            entry.resources.insert(Arc::clone(resource), position);
        }
        let communication = Communication {
            id: Arc::clone(&id),
            conversation_id: Arc::clone(&entry.conversation.id),
            account_id,
            author: new.author,
            content: new.content,
            channel_id: new.channel_id,
            resource_id: new.resource_id,
            recipients: new.recipients,
            created_at: at,
            updated_at: at,
            occurred_at: new.occurred_at.unwrap_or_else(|| whole_seconds(at)),
        };
        effects.extend(entry.announce(event_type::COMMUNICATION_CREATED, at, &communication));
        entry.communications.push(communication);
        let configuration = Arc::clone(&entry.conversation.configuration);
        self.bill.communication(&configuration.settings);
        self.reschedule(index);
        self.communications
            .insert(Arc::clone(&id), (index, position));
        self.tally.communications += 1;
        Ok(Applied { id, effects })
    }

    fn deliver(
        &mut self,
        conversation: &str,
        communication: &str,
        status: DeliveryStatus,
        at: Timestamp,
    ) -> Result<Applied, Refusal> {
        let place = self.communications.get(communication).copied();
        let (index, entry) = self.living_entry(conversation)?;
        let position = place
            .filter(|place| place.0 == index)
            .ok_or(Refusal::NotFound("communication"))?
            .1;
        let at = entry.advance(at);
        let found = &mut entry.communications[position as usize];
        let id = Arc::clone(&found.id);
        let mut changed = false;
        for recipient in &mut found.recipients {
            changed |= recipient.delivery_status != Some(status);
            recipient.delivery_status = Some(status);
        }
        let effects = match changed {
            true => entry
                .announce_communication_update(position, at)
                .into_iter()
                .collect(),
            false => Vec::new(),
        };
        Ok(Applied { id, effects })
    }

    fn change(
        &mut self,
        conversation: &str,
        change: Change,
        at: Timestamp,
    ) -> Result<Applied, Refusal> {
        let account_id = Arc::clone(&self.account_id);
        let position = self.position(conversation)?;
        let own = &self.conversations[&position].conversation;
        let id = Arc::clone(&own.id);
        let metadata = merged(&own.metadata, change.metadata);
        let status = change.status.unwrap_or(own.status);
        let name = change.name.unwrap_or_else(|| own.name.clone());
        let callbacks = change.callbacks.unwrap_or_else(|| own.callbacks.clone());
        let announced = status != own.status || name != own.name;
        let unchanged = !announced && metadata == own.metadata && callbacks == own.callbacks;
        if unchanged {
            // A repeated close is answered as the first was: nothing changes, nothing is announced.
            return Ok(Applied {
                id,
                effects: Vec::new(),
            });
        }
        if own.status == Status::Closed {
            return Err(Refusal::Closed);
        }
        within_inclusive(metadata.len(), MAX_METADATA_ENTRIES, "metadata entries")?;
        let (_, entry) = self.living_entry(conversation)?;
        let at = entry.advance(at);
        let became = (status != entry.conversation.status).then_some(status);
        if became == Some(Status::Active) {
            entry.traffic.woken(at);
        }
        entry.conversation.metadata = metadata;
        entry.conversation.status = status;
        entry.conversation.name = name;
        entry.conversation.callbacks = callbacks;
        entry.conversation.updated_at = at;
        let mut effects = Vec::new();
        if announced {
            effects.extend(entry.announce_self(event_type::CONVERSATION_UPDATED, &account_id, at));
        }
        if let Some(status) = became {
            self.became(position, status);
        }
        Ok(Applied { id, effects })
    }

    /// What follows from a living conversation's new status.
    fn became(&mut self, position: u64, status: Status) {
        self.reschedule(position);
        let configuration = &self.conversations[&position].conversation.configuration;
        let settings = &configuration.settings;
        let alive = self.memory.is_alive(&settings.memory_store_id);
        self.bill.became(status, settings, alive);
        if status == Status::Closed {
            self.release(position);
            self.living_at(position).seal();
            self.living.remove(&position);
            self.closed.push_back(position);
            self.tally.closed += 1;
            self.evict();
        }
    }

    /// Takes the conversations away that closed first, until as few are kept as wanted.
    fn evict(&mut self) {
        while self.conversations.len() > self.keep_conversations {
            let Some(position) = self.closed.pop_front() else {
                return;
            };
            // Those that were deleted are gone already.
            if self.take(position).is_some() {
                self.tally.evicted += 1;
            }
        }
    }

    /// Takes one conversation away, whatever its status.
    fn remove(&mut self, conversation: &str) -> Result<(), Refusal> {
        let position = self.position(conversation)?;
        self.take(position);
        Ok(())
    }

    fn take(&mut self, position: u64) -> Option<Arc<Entry>> {
        self.release(position);
        let entry = self.conversations.remove(&position)?;
        if let Some(due) = entry.due {
            self.schedule.remove(&(due, position));
        }
        self.by_id.remove(&entry.conversation.id);
        self.living.remove(&position);
        for communication in &entry.communications {
            self.communications.remove(&communication.id);
        }
        Some(entry)
    }

    fn position(&self, conversation: &str) -> Result<u64, Refusal> {
        let position = self.by_id.get(conversation).copied();
        position.ok_or(Refusal::NotFound("conversation"))
    }

    fn living_entry(&mut self, conversation: &str) -> Result<(u64, &mut Entry), Refusal> {
        let position = self.position(conversation)?;
        if !self.living.contains(&position) {
            return Err(Refusal::Closed);
        }
        Ok((position, self.living_at(position)))
    }

    fn living_at(&mut self, position: u64) -> &mut Entry {
        let entry = self.conversations.get_mut(&position);
        Arc::make_mut(entry.expect("what lives is kept"))
    }
}

fn merged(own: &BTreeMap<String, String>, change: MetadataChange) -> BTreeMap<String, String> {
    let patch = match change {
        MetadataChange::Merge(patch) => patch,
        MetadataChange::Replace(all) => return all,
    };
    let mut merged = own.clone();
    for (key, value) in patch {
        match value {
            Some(value) => merged.insert(key, value),
            None => merged.remove(&key),
        };
    }
    merged
}

fn within(count: usize, limit: usize, what: &'static str) -> Result<(), Refusal> {
    within_inclusive(count + 1, limit, what)
}

fn within_inclusive(count: usize, limit: usize, what: &'static str) -> Result<(), Refusal> {
    match count <= limit {
        true => Ok(()),
        false => Err(Refusal::TooMany { what, limit }),
    }
}

#[cfg(test)]
mod tests;
