//! One conversation with all that belongs to it, and what it says of itself.
//!
//! Owns the bodies of announcements: which resource an event carries, and its number in the conversation.
//! Refuses to know other conversations (`mod`).
//!
//! Guarantees: time never runs backwards in it; each announcement takes the next number, whether anybody
//! listens or not.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

use super::super::resource::{
    Channel, Communication, Conversation, NewCommunication, NewParticipant, Participant, Status,
    rfc3339, rfc3339_seconds,
};
use super::grouping::{self, Key, Party};
use super::timeouts::Traffic;
use super::{Announcement, Applied, Effect, MAX_PARTICIPANTS, Refusal, within};
use crate::event::event_type;

/// A conversation with all that belongs to it.
#[derive(Debug, Clone)]
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
    pub(super) resources: HashMap<Arc<str>, u32>,
    pub(super) sequence: u32,
    pub(super) traffic: Traffic,
    /// Whether it is found by whoever joins: it was created without participants.
    pub(super) grows: bool,
    /// The keys that it is found by, of those that it makes.
    pub(super) claimed: Vec<Key>,
    /// When it becomes INACTIVE or CLOSED by itself, as scheduled.
    pub(super) due: Option<Timestamp>,
    /// Time of the last command, which no later one may precede.
    latest: Timestamp,
}

impl Entry {
    /// A conversation without anything said.
    pub(super) fn new(number: u64, conversation: Conversation, grows: bool) -> Self {
        Entry {
            number,
            traffic: Traffic::none(conversation.created_at),
            grows,
            claimed: Vec::new(),
            due: None,
            latest: conversation.created_at,
            conversation,
            participants: Vec::new(),
            communications: Vec::new(),
            channels: BTreeSet::new(),
            channel_ids: BTreeSet::new(),
            resources: HashMap::new(),
            sequence: 0,
        }
    }

    /// What it is found by.
    pub(super) fn keys(&self) -> Vec<Key> {
        let parties: Vec<_> = self.participants.iter().map(Party::from).collect();
        grouping::keys(&self.conversation.configuration, &parties)
    }

    /// What it becomes by itself, and when.
    pub(super) fn next(&self) -> Option<(Timestamp, Status)> {
        let settings = &self.conversation.configuration.settings;
        self.traffic
            .next(&settings.channel_settings, self.conversation.status)
    }

    /// The time of a command that comes at `at`.
    pub(super) fn advance(&mut self, at: Timestamp) -> Timestamp {
        self.latest = self.latest.max(at);
        self.latest
    }

    /// Adds a participant.
    pub(super) fn join(
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
        self.note(&new, at);
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

    /// Replaces a participant's own fields.
    pub(super) fn replace(
        &mut self,
        id: &str,
        new: NewParticipant,
        at: Timestamp,
    ) -> Result<Applied, Refusal> {
        let mut participants = self.participants.iter();
        let place = participants
            .position(|participant| &*participant.id == id)
            .ok_or(Refusal::NotFound("participant"))?;
        self.note(&new, at);
        let participant = &mut self.participants[place];
        let old = participant.clone();
        participant.name = new.name;
        participant.kind = new.kind;
        participant.profile_id = new.profile_id;
        participant.addresses = new.addresses;
        if *participant == old {
            return Ok(Applied::quiet(old.id));
        }
        participant.updated_at = at;
        let participant = participant.clone();
        let effects = self
            .announce(event_type::PARTICIPANT_UPDATED, at, &participant)
            .into_iter()
            .collect();
        Ok(Applied {
            id: participant.id,
            effects,
        })
    }

    fn note(&mut self, participant: &NewParticipant, at: Timestamp) {
        for address in &participant.addresses {
            self.traffic.begin(address.channel, at);
            self.channels.insert(address.channel);
            self.channel_ids.extend(address.channel_id.clone());
        }
    }

    /// Names the participants whose addresses `new` has, where its sender did not: readers look for them.
    pub(super) fn identify(&self, new: &mut NewCommunication) {
        let of = |channel: Channel, address: &str| {
            let mut participants = self.participants.iter();
            let found = participants.find(|participant| {
                let mut addresses = participant.addresses.iter();
                addresses.any(|own| own.channel == channel && *own.address == *address)
            });
            found.map(|participant| Arc::clone(&participant.id))
        };
        let author = &mut new.author;
        if author.participant_id.is_none() {
            author.participant_id = of(author.channel, &author.address);
        }
        for recipient in &mut new.recipients {
            if recipient.participant_id.is_none() {
                recipient.participant_id = of(recipient.channel, &recipient.address);
            }
        }
    }

    /// Nothing more will be captured: gives back what only that needs.
    pub(super) fn seal(&mut self) {
        self.resources = HashMap::new();
        self.communications.shrink_to_fit();
        self.participants.shrink_to_fit();
    }

    /// New traffic takes an INACTIVE conversation back to ACTIVE.
    pub(super) fn wake(&mut self, account_id: &str, at: Timestamp) -> Option<Effect> {
        if self.conversation.status != Status::Inactive {
            return None;
        }
        self.conversation.status = Status::Active;
        self.conversation.updated_at = at;
        self.announce_self(event_type::CONVERSATION_UPDATED, account_id, at)
    }

    pub(super) fn announce_self(
        &mut self,
        event_type: &'static str,
        account_id: &str,
        at: Timestamp,
    ) -> Option<Effect> {
        let conversation = self.conversation.clone();
        let data = ConversationData {
            id: &conversation.id,
            account_id,
            configuration_id: &conversation.configuration.id,
            status: conversation.status,
            name: conversation.name.as_deref(),
            created_at: conversation.created_at,
            updated_at: conversation.updated_at,
        };
        self.announce(event_type, at, &data)
    }

    pub(super) fn announce_communication_update(
        &mut self,
        position: u32,
        at: Timestamp,
    ) -> Option<Effect> {
        let communication = &mut self.communications[position as usize];
        communication.updated_at = at;
        let communication = communication.clone();
        self.announce(event_type::COMMUNICATION_UPDATED, at, &communication)
    }

    pub(super) fn announce<T: Serialize>(
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
    #[serde(serialize_with = "rfc3339_seconds")]
    created_at: Timestamp,
    #[serde(serialize_with = "rfc3339_seconds")]
    updated_at: Timestamp,
}
