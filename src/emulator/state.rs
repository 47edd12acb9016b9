//! The Orchestrator's state machine: a command and a time in, a new state and effects out.
//!
//! Owns every rule of a conversation's life (`ACTIVE → INACTIVE → CLOSED`, the way back on new traffic,
//! the immutability of what is closed, one communication per `resourceId`). Refuses I/O, clocks and
//! randomness: ids and times arrive in the command, callbacks leave as [`Effect`]s that somebody else
//! sends. Requests over REST and generated traffic go through the same [`State::apply`].
//!
//! Guarantees: a refused command changes nothing. A closed conversation never changes. A communication
//! is in one conversation. Each change of state is announced once, to the callbacks that the
//! conversation has at that moment, and `sequence` numbers a conversation's announcements without gaps.
//! Nothing here is unbounded: each collection has a limit below, past which commands are refused.
//!
//! Fails with [`Refusal`], which `rest` turns into Twilio's error bodies.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;

use super::resource::{
    Address, Channel, Communication, Conversation, DeliveryStatus, NewCommunication,
    NewParticipant, Participant, Status, StatusCallback, rfc3339,
};
use crate::event::event_type;

/// Conversations kept; about 1 kB a communication, so memory ends far earlier on a laptop.
pub(crate) const MAX_CONVERSATIONS: usize = 1_000_000;
/// Communications of one conversation.
pub(crate) const MAX_COMMUNICATIONS: usize = 1_000_000;
/// Participants of one conversation.
pub(crate) const MAX_PARTICIPANTS: usize = 1_000;
/// Participants that a conversation can be created with (Twilio's limit).
pub(crate) const MAX_CREATED_PARTICIPANTS: usize = 50;
/// Entries of `metadata` (Twilio's limit, npm `twilio` 6.2).
pub(crate) const MAX_METADATA_ENTRIES: usize = 8;

/// What can be asked of the Orchestrator. Ids of new resources come with the command.
#[derive(Debug, Clone)]
pub(crate) enum Command {
    /// Opens a conversation.
    Open {
        id: Arc<str>,
        configuration_id: Arc<str>,
        name: Option<Arc<str>>,
        metadata: BTreeMap<String, String>,
        participants: Vec<(Arc<str>, NewParticipant)>,
    },
    /// Adds a participant.
    Join {
        conversation: Arc<str>,
        id: Arc<str>,
        participant: NewParticipant,
    },
    /// Captures a communication; where its `resourceId` is known already, updates that one.
    Capture {
        conversation: Arc<str>,
        id: Arc<str>,
        communication: NewCommunication,
    },
    /// Reports how far a communication got, to all its recipients.
    Deliver {
        conversation: Arc<str>,
        communication: Arc<str>,
        status: DeliveryStatus,
    },
    /// Changes a conversation's own fields, all of them or none.
    Change {
        conversation: Arc<str>,
        change: Change,
    },
}

/// Fields of a conversation to change; `None` leaves one as it is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Change {
    pub(crate) status: Option<Status>,
    /// `Some(None)` takes the name away.
    pub(crate) name: Option<Option<Arc<str>>>,
    pub(crate) callbacks: Option<Arc<[StatusCallback]>>,
    /// A merge patch: `None` takes an entry away.
    pub(crate) metadata: BTreeMap<String, Option<String>>,
}

/// What the world outside has to do after a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Tell the conversation's callbacks.
    Announce(Announcement),
}

/// One event, for every URL that the conversation announces itself to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Announcement {
    pub(crate) conversation_id: Arc<str>,
    /// The conversation's number.
    pub(crate) number: u64,
    /// 0.. in the conversation, counting events that nobody listened to as well.
    pub(crate) sequence: u32,
    pub(crate) event_type: &'static str,
    /// The callback's JSON.
    pub(crate) body: Bytes,
    /// Never empty.
    pub(crate) callbacks: Arc<[StatusCallback]>,
}

/// A command that was carried out.
#[derive(Debug)]
pub(crate) struct Applied {
    /// The resource that it made or changed.
    pub(crate) id: Arc<str>,
    pub(crate) effects: Vec<Effect>,
}

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// Nothing has this id.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// CLOSED is final.
    #[error("the conversation is closed and cannot change; open a new one")]
    Closed,
    /// The grouping finds a living conversation of the same participants.
    #[error("a living conversation has the same participants")]
    Conflict { living: Arc<str> },
    /// An id that exists already.
    #[error("a {0} with this id exists already")]
    Taken(&'static str),
    /// A limit of this file.
    #[error("there are {limit} {what} already, the most that are kept")]
    TooMany { what: &'static str, limit: usize },
}

/// A conversation with all that belongs to it.
#[derive(Debug)]
pub(crate) struct Entry {
    /// From 1 in the order of creation.
    pub(crate) number: u64,
    pub(crate) conversation: Conversation,
    pub(crate) participants: Vec<Participant>,
    /// In the order of capture.
    pub(crate) communications: Vec<Communication>,
    /// Channels seen in addresses and authors.
    pub(crate) channels: BTreeSet<Channel>,
    /// Calls and chats seen in addresses and communications.
    pub(crate) channel_ids: BTreeSet<Arc<str>>,
    /// `resourceId` to position; emptied at the close, after which nothing is captured.
    resources: HashMap<Arc<str>, u32>,
    sequence: u32,
    /// Time of the last command, which no later one may precede.
    latest: Timestamp,
}

/// How much there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) conversations: u64,
    pub(crate) closed: u64,
    pub(crate) communications: u64,
}

/// All conversations of one account.
#[derive(Debug)]
pub(crate) struct State {
    account_id: Arc<str>,
    /// What a new conversation copies from its configuration.
    default_callbacks: Arc<[StatusCallback]>,
    conversations: Vec<Entry>,
    by_id: HashMap<Arc<str>, u32>,
    communications: HashMap<Arc<str>, (u32, u32)>,
    living: BTreeSet<u32>,
}

impl State {
    /// No conversations yet.
    pub(crate) fn new(account_id: Arc<str>, default_callbacks: Arc<[StatusCallback]>) -> Self {
        State {
            account_id,
            default_callbacks,
            conversations: Vec::new(),
            by_id: HashMap::new(),
            communications: HashMap::new(),
            living: BTreeSet::new(),
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
                let conversation = Conversation {
                    id,
                    configuration_id,
                    status: Status::Active,
                    name,
                    metadata,
                    callbacks: Arc::clone(&self.default_callbacks),
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
                let (_, entry) = self.living_entry(&conversation)?;
                let at = entry.advance(at);
                entry.join(id, participant, &account_id, at)
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
        }
    }

    /// The account that everything belongs to.
    pub(crate) fn account_id(&self) -> &str {
        &self.account_id
    }

    /// Every conversation, in the order of creation.
    pub(crate) fn conversations(&self) -> &[Entry] {
        &self.conversations
    }

    /// One conversation.
    pub(crate) fn conversation(&self, id: &str) -> Option<&Entry> {
        self.by_id
            .get(id)
            .map(|&index| &self.conversations[index as usize])
    }

    /// One communication of the conversation `conversation`.
    pub(crate) fn communication(&self, conversation: &str, id: &str) -> Option<&Communication> {
        let &(index, position) = self.communications.get(id)?;
        let entry = &self.conversations[index as usize];
        (&*entry.conversation.id == conversation).then(|| &entry.communications[position as usize])
    }

    /// How much there is.
    pub(crate) fn tally(&self) -> Tally {
        Tally {
            conversations: self.conversations.len() as u64,
            closed: (self.conversations.len() - self.living.len()) as u64,
            communications: self.communications.len() as u64,
        }
    }

    fn open(
        &mut self,
        conversation: Conversation,
        participants: Vec<(Arc<str>, NewParticipant)>,
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
        if let Some(living) = self.same_participants(&conversation.configuration_id, &participants)
        {
            return Err(Refusal::Conflict { living });
        }
        let mut ids = BTreeSet::new();
        if !participants.iter().all(|(id, _)| ids.insert(id)) {
            return Err(Refusal::Taken("participant"));
        }
        let id = Arc::clone(&conversation.id);
        let at = conversation.created_at;
        let mut entry = Entry {
            number: self.conversations.len() as u64 + 1,
            conversation,
            participants: Vec::new(),
            communications: Vec::new(),
            channels: BTreeSet::new(),
            channel_ids: BTreeSet::new(),
            resources: HashMap::new(),
            sequence: 0,
            latest: at,
        };
        let mut effects = Vec::new();
        effects.extend(entry.announce_self(event_type::CONVERSATION_CREATED, &self.account_id, at));
        for (participant_id, participant) in participants {
            let joined = entry.join(participant_id, participant, &self.account_id, at)?;
            effects.extend(joined.effects);
        }
        let index = u32::try_from(self.conversations.len()).expect("MAX_CONVERSATIONS fits u32");
        self.by_id.insert(Arc::clone(&id), index);
        self.living.insert(index);
        self.conversations.push(entry);
        Ok(Applied { id, effects })
    }

    fn capture(
        &mut self,
        conversation: &str,
        id: Arc<str>,
        new: NewCommunication,
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
        let mut effects = Vec::new();
        effects.extend(entry.wake(&account_id, at));
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
            occurred_at: new.occurred_at.unwrap_or(at),
        };
        effects.extend(entry.announce(event_type::COMMUNICATION_CREATED, at, &communication));
        entry.communications.push(communication);
        self.communications
            .insert(Arc::clone(&id), (index, position));
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
        let index = self.index(conversation)?;
        let entry = &mut self.conversations[index as usize];
        let own = &entry.conversation;
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
        let at = entry.advance(at);
        entry.conversation.metadata = metadata;
        entry.conversation.status = status;
        entry.conversation.name = name;
        entry.conversation.callbacks = callbacks;
        entry.conversation.updated_at = at;
        let mut effects = Vec::new();
        if announced {
            effects.extend(entry.announce_self(event_type::CONVERSATION_UPDATED, &account_id, at));
        }
        if status == Status::Closed {
            entry.resources = HashMap::new();
            entry.communications.shrink_to_fit();
            entry.participants.shrink_to_fit();
            self.living.remove(&index);
        }
        Ok(Applied { id, effects })
    }

    fn index(&self, conversation: &str) -> Result<u32, Refusal> {
        self.by_id
            .get(conversation)
            .copied()
            .ok_or(Refusal::NotFound("conversation"))
    }

    fn living_entry(&mut self, conversation: &str) -> Result<(u32, &mut Entry), Refusal> {
        let index = self.index(conversation)?;
        let entry = &mut self.conversations[index as usize];
        if entry.conversation.status == Status::Closed {
            return Err(Refusal::Closed);
        }
        Ok((index, entry))
    }

    /// A living conversation of the same configuration and addresses. Without participants nothing can
    /// be grouped, so the conversation is a new one.
    fn same_participants(
        &self,
        configuration_id: &str,
        participants: &[(Arc<str>, NewParticipant)],
    ) -> Option<Arc<str>> {
        let wanted = address_set(participants.iter().flat_map(|(_, p)| &p.addresses));
        if wanted.is_empty() {
            return None;
        }
        self.living
            .iter()
            .map(|&index| &self.conversations[index as usize])
            .filter(|entry| &*entry.conversation.configuration_id == configuration_id)
            .find(|entry| {
                address_set(entry.participants.iter().flat_map(|p| &p.addresses)) == wanted
            })
            .map(|entry| Arc::clone(&entry.conversation.id))
    }
}

impl Entry {
    fn advance(&mut self, at: Timestamp) -> Timestamp {
        self.latest = self.latest.max(at);
        self.latest
    }

    fn join(
        &mut self,
        id: Arc<str>,
        new: NewParticipant,
        account_id: &Arc<str>,
        at: Timestamp,
    ) -> Result<Applied, Refusal> {
        within(self.participants.len(), MAX_PARTICIPANTS, "participants")?;
        if self.participants.iter().any(|known| known.id == id) {
            return Err(Refusal::Taken("participant"));
        }
        for address in &new.addresses {
            self.channels.insert(address.channel);
            self.channel_ids.extend(address.channel_id.clone());
        }
        let participant = Participant {
            id: Arc::clone(&id),
            conversation_id: Arc::clone(&self.conversation.id),
            account_id: Arc::clone(account_id),
            name: new.name,
            kind: new.kind,
            profile_id: new.profile_id,
            addresses: new.addresses,
            created_at: at,
            updated_at: at,
        };
        let effects = self
            .announce(event_type::PARTICIPANT_ADDED, at, &participant)
            .into_iter()
            .collect();
        self.participants.push(participant);
        Ok(Applied { id, effects })
    }

    /// New traffic takes an INACTIVE conversation back to ACTIVE.
    fn wake(&mut self, account_id: &str, at: Timestamp) -> Option<Effect> {
        if self.conversation.status != Status::Inactive {
            return None;
        }
        self.conversation.status = Status::Active;
        self.conversation.updated_at = at;
        self.announce_self(event_type::CONVERSATION_UPDATED, account_id, at)
    }

    fn announce_self(
        &mut self,
        event_type: &'static str,
        account_id: &str,
        at: Timestamp,
    ) -> Option<Effect> {
        let conversation = self.conversation.clone();
        let data = ConversationData {
            id: &conversation.id,
            account_id,
            configuration_id: &conversation.configuration_id,
            status: conversation.status,
            name: conversation.name.as_deref(),
            created_at: conversation.created_at,
            updated_at: conversation.updated_at,
        };
        self.announce(event_type, at, &data)
    }

    fn announce_communication_update(&mut self, position: u32, at: Timestamp) -> Option<Effect> {
        let communication = &mut self.communications[position as usize];
        communication.updated_at = at;
        let communication = communication.clone();
        self.announce(event_type::COMMUNICATION_UPDATED, at, &communication)
    }

    fn announce<T: Serialize>(
        &mut self,
        event_type: &'static str,
        at: Timestamp,
        data: &T,
    ) -> Option<Effect> {
        let sequence = self.sequence;
        self.sequence += 1;
        if self.conversation.callbacks.is_empty() {
            return None;
        }
        let body = serde_json::to_vec(&Event {
            event_type,
            timestamp: at,
            data,
        })
        .expect(
            "the resources have string keys and finite numbers, and memory does not fail to write",
        );
        Some(Effect::Announce(Announcement {
            conversation_id: Arc::clone(&self.conversation.id),
            number: self.number,
            sequence,
            event_type,
            body: body.into(),
            callbacks: Arc::clone(&self.conversation.callbacks),
        }))
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Event<'a, T> {
    event_type: &'static str,
    #[serde(serialize_with = "rfc3339")]
    timestamp: Timestamp,
    data: &'a T,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ConversationData<'a> {
    id: &'a str,
    account_id: &'a str,
    configuration_id: &'a str,
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(serialize_with = "rfc3339")]
    created_at: Timestamp,
    #[serde(serialize_with = "rfc3339")]
    updated_at: Timestamp,
}

fn address_set<'a>(addresses: impl Iterator<Item = &'a Address>) -> BTreeSet<(Channel, &'a str)> {
    addresses.map(|a| (a.channel, &*a.address)).collect()
}

fn merged(
    own: &BTreeMap<String, String>,
    patch: BTreeMap<String, Option<String>>,
) -> BTreeMap<String, String> {
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
