//! Memory stores, as far as conversations see them: whose profile an address is, and whether a store is
//! there at all.
//!
//! Owns identity resolution. A profile belongs to a store and an address, WhatsApp's prefix aside;
//! addresses that belong to one person by [`Memory::unite`] share one. Refuses observations, traits and
//! everything else that a real store keeps: extractions are counted (`bill`), not made.
//!
//! Guarantees: profile ids depend on the store and the addresses alone, so two emulators agree on them. A
//! store that is dead, missing or named with [`DEAD_STORE_PREFIX`] resolves nothing, and nobody is told:
//! as at the service, only the missing `profileId` shows it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::super::resource::{NewParticipant, ParticipantType};
use super::super::seeds;
use super::{Refusal, within_inclusive};

/// Stores whose ids begin so are dead until told otherwise.
pub(crate) const DEAD_STORE_PREFIX: &str = "mem_store_dead";
/// Addresses that are known to belong together.
pub(crate) const MAX_UNITED_ADDRESSES: usize = 100_000;
/// Stores that somebody switched.
pub(crate) const MAX_SWITCHED_STORES: usize = 1_000;

/// All stores.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    switched: BTreeMap<Arc<str>, bool>,
    /// An address to the one that stands for its person.
    people: HashMap<Arc<str>, Arc<str>>,
}

impl Memory {
    /// Whether the store can be reached.
    pub(crate) fn is_alive(&self, store: &str) -> bool {
        match self.switched.get(store) {
            Some(alive) => *alive,
            None => !store.is_empty() && !store.starts_with(DEAD_STORE_PREFIX),
        }
    }

    /// Kills a store, or brings it back. Participants keep the profile that they have.
    ///
    /// # Errors
    /// More than [`MAX_SWITCHED_STORES`].
    pub(crate) fn switch(&mut self, store: Arc<str>, alive: bool) -> Result<(), Refusal> {
        if !self.switched.contains_key(&store) {
            let count = self.switched.len() + 1;
            within_inclusive(count, MAX_SWITCHED_STORES, "switched memory stores")?;
        }
        self.switched.insert(store, alive);
        Ok(())
    }

    /// From now on these addresses, and those that they were united with, are one person's: the first
    /// one's. Participants keep the profile that they have.
    ///
    /// # Errors
    /// More than [`MAX_UNITED_ADDRESSES`].
    pub(crate) fn unite(&mut self, addresses: &[Arc<str>]) -> Result<(), Refusal> {
        let Some(first) = addresses.first() else {
            return Ok(());
        };
        let count = self.people.len() + addresses.len();
        within_inclusive(count, MAX_UNITED_ADDRESSES, "united addresses")?;
        let person = self.person(first);
        for address in addresses {
            let other = self.person(address);
            for known in self.people.values_mut().filter(|known| **known == other) {
                *known = Arc::clone(&person);
            }
            self.people.insert(bare(address), Arc::clone(&person));
        }
        Ok(())
    }

    /// The profile of whoever has `address`; `None` where the store is dead.
    pub(crate) fn profile(&self, store: &str, address: &str) -> Option<Arc<str>> {
        if !self.is_alive(store) {
            return None;
        }
        let seed = seeds::mix_text(seeds::mix_text(0, store), &self.person(address));
        let mut random = seeds::generator(seed, seeds::PROFILE_STREAM);
        Some(seeds::id("profile", &mut random))
    }

    /// Gives a customer its profile, by the first address; one that came with a profile keeps it.
    pub(super) fn resolve(&self, store: &str, participant: &mut NewParticipant) {
        if participant.kind == ParticipantType::Customer
            && participant.profile_id.is_none()
            && let Some(first) = participant.addresses.first()
        {
            participant.profile_id = self.profile(store, &first.address);
        }
    }

    fn person(&self, address: &str) -> Arc<str> {
        let address = bare(address);
        self.people.get(&address).cloned().unwrap_or(address)
    }
}

fn bare(address: &str) -> Arc<str> {
    address.strip_prefix("whatsapp:").unwrap_or(address).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unite(memory: &mut Memory, addresses: &[&str]) {
        let addresses: Vec<Arc<str>> = addresses.iter().map(|&a| a.into()).collect();
        memory.unite(&addresses).unwrap();
    }

    #[test]
    fn a_profile_belongs_to_a_store_and_an_address() {
        let memory = Memory::default();
        let profile = memory.profile("mem_store_1", "+15550001");
        assert!(profile.is_some());
        assert_eq!(
            profile,
            Memory::default().profile("mem_store_1", "whatsapp:+15550001")
        );
        assert_ne!(profile, memory.profile("mem_store_1", "+15550002"));
        assert_ne!(profile, memory.profile("mem_store_2", "+15550001"));
    }

    #[test]
    fn fact_9_a_dead_store_resolves_nothing() {
        let mut memory = Memory::default();
        assert_eq!(memory.profile("", "+15550001"), None, "none was given");
        assert_eq!(memory.profile("mem_store_dead_1", "+15550001"), None);
        let before = memory.profile("mem_store_1", "+15550001");
        memory.switch("mem_store_1".into(), false).unwrap();
        assert_eq!(memory.profile("mem_store_1", "+15550001"), None);
        memory.switch("mem_store_1".into(), true).unwrap();
        assert_eq!(memory.profile("mem_store_1", "+15550001"), before);
        memory.switch("mem_store_dead_1".into(), true).unwrap();
        assert!(memory.profile("mem_store_dead_1", "+15550001").is_some());
    }

    #[test]
    fn addresses_of_one_person_share_a_profile() {
        let mut memory = Memory::default();
        let profile = |memory: &Memory, address| memory.profile("mem_store_1", address);
        let first = profile(&memory, "+15550001");
        unite(&mut memory, &["+15550001", "user123"]);
        assert_eq!(profile(&memory, "user123"), first);
        unite(&mut memory, &["a@example.com", "+15550003"]);
        unite(&mut memory, &["user123", "+15550003"]);
        for address in ["+15550001", "user123", "a@example.com", "+15550003"] {
            assert_eq!(profile(&memory, address), first, "{address}");
        }
        assert_ne!(profile(&memory, "+15550009"), first);
    }
}
