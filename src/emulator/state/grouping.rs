//! How traffic finds the conversation that it belongs to.
//!
//! Owns what the three grouping types compare. A conversation answers to [`Key`]s, made of the
//! participants that it was created with, or, where there were none, of those who joined since; traffic
//! looks for one of the keys that its own two ends make.
//!
//! Guarantees: addresses are compared by channel, so that a conversation with an address pair on SMS and
//! another in a chat is found by each. GROUP_BY_PROFILE without any profile, as where the memory store is
//! dead, groups as GROUP_BY_PARTICIPANT_ADDRESSES does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::super::capture::normalised;
use super::super::configuration::{Configuration, GroupingType};
use super::super::resource::{Address, Channel, NewParticipant, Participant, ParticipantType};
use super::{Refusal, State};

/// What a conversation is found by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    configuration: Arc<str>,
    by: By,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum By {
    /// Sorted; with the channel where the grouping separates channels.
    Addresses(Option<Channel>, Vec<Arc<str>>),
    Profile(Arc<str>),
}

/// A participant, as far as grouping looks at it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Party<'a> {
    pub(super) kind: ParticipantType,
    pub(super) profile: Option<&'a Arc<str>>,
    pub(super) addresses: &'a [Address],
}

impl<'a> From<&'a Participant> for Party<'a> {
    fn from(participant: &'a Participant) -> Self {
        Party {
            kind: participant.kind,
            profile: participant.profile_id.as_ref(),
            addresses: &participant.addresses,
        }
    }
}

impl<'a> From<&'a NewParticipant> for Party<'a> {
    fn from(participant: &'a NewParticipant) -> Self {
        Party {
            kind: participant.kind,
            profile: participant.profile_id.as_ref(),
            addresses: &participant.addresses,
        }
    }
}

/// The keys that `parties` make under `configuration`; none where nobody has an address.
pub(super) fn keys(configuration: &Configuration, parties: &[Party<'_>]) -> Vec<Key> {
    let key = |by| Key {
        configuration: Arc::clone(&configuration.id),
        by,
    };
    let grouping = configuration.settings.conversation_grouping_type;
    if grouping == GroupingType::GroupByProfile {
        let customers = parties
            .iter()
            .filter(|party| party.kind == ParticipantType::Customer);
        let profiles: BTreeSet<_> = customers.filter_map(|party| party.profile).collect();
        if !profiles.is_empty() {
            let profiles = profiles.into_iter().map(Arc::clone);
            return profiles.map(|profile| key(By::Profile(profile))).collect();
        }
    }
    let mut by_channel: BTreeMap<Channel, BTreeSet<&str>> = BTreeMap::new();
    for address in parties.iter().flat_map(|party| party.addresses) {
        let bare = normalised(address.channel, &address.address);
        by_channel.entry(address.channel).or_default().insert(bare);
    }
    let separate = grouping == GroupingType::GroupByParticipantAddressesAndChannelType;
    let mut keys = Vec::new();
    for (channel, addresses) in by_channel {
        let addresses = addresses.into_iter().map(Arc::from).collect();
        let key = key(By::Addresses(separate.then_some(channel), addresses));
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}

impl State {
    /// `participant` with its profile, where the conversation's memory store knows one.
    pub(super) fn resolved(
        &self,
        conversation: &str,
        mut participant: NewParticipant,
    ) -> Result<NewParticipant, Refusal> {
        let entry = &self.conversations[&self.position(conversation)?];
        let store = &entry.conversation.configuration.settings.memory_store_id;
        self.memory.resolve(store, &mut participant);
        Ok(participant)
    }

    /// The living conversation that traffic between `parties` belongs to.
    pub(super) fn grouped(
        &self,
        configuration: &Configuration,
        mut parties: [NewParticipant; 2],
    ) -> Option<Arc<str>> {
        for party in &mut parties {
            let store = &configuration.settings.memory_store_id;
            self.memory.resolve(store, party);
        }
        self.found(&keys(configuration, &parties.each_ref().map(Party::from)))
    }

    pub(super) fn found(&self, keys: &[Key]) -> Option<Arc<str>> {
        let position = keys.iter().find_map(|key| self.groups.get(key))?;
        Some(Arc::clone(&self.conversations[position].conversation.id))
    }

    /// Follows the participants of a conversation that was created without any.
    pub(super) fn regroup(&mut self, position: u64) {
        let entry = &self.conversations[&position];
        if entry.grows {
            let keys = entry.keys();
            self.release(position);
            self.claim(position, keys);
        }
    }

    /// Makes a living conversation answer to `keys`, as far as no other does.
    pub(super) fn claim(&mut self, position: u64, mut keys: Vec<Key>) {
        keys.retain(|key| !self.groups.contains_key(key));
        for key in &keys {
            self.groups.insert(key.clone(), position);
        }
        self.living_at(position).claimed = keys;
    }

    /// Takes all of its keys away.
    pub(super) fn release(&mut self, position: u64) {
        if let Some(entry) = self.conversations.get_mut(&position).and_then(Arc::get_mut) {
            for key in entry.claimed.drain(..) {
                self.groups.remove(&key);
            }
        }
    }
}
