//! Who takes part in a made-up conversation, over which channels, under which addresses.
//!
//! Owns the draw of channels and members. Refuses to know what they say (`mod`). Numbers are of the area
//! 555, which is nobody's.

use std::sync::Arc;

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::super::resource::{Address, Channel, NewParticipant, ParticipantType};
use super::super::seeds;
use super::profile::Profile;

#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) id: Arc<str>,
    pub(super) new: NewParticipant,
    pub(super) side: Side,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Customer,
    Business,
}

/// Channels that traffic runs over.
pub(super) const CHANNELS: [Channel; 8] = [
    Channel::Voice,
    Channel::Sms,
    Channel::Rcs,
    Channel::Whatsapp,
    Channel::Chat,
    Channel::Video,
    Channel::Email,
    Channel::Api,
];

/// Each channel of conversation `index` with the call or chat it runs in.
pub(super) fn draw_channels(
    index: u64,
    profile: &Profile,
    random: &mut ChaCha8Rng,
) -> Vec<(Channel, Arc<str>)> {
    let channels = profile.channels(index, random);
    channels
        .into_iter()
        .map(|channel| {
            let prefix = if channel == Channel::Voice {
                "CA"
            } else {
                "CI"
            };
            (channel, seeds::sid(prefix, random).into())
        })
        .collect()
}

pub(super) fn draw_cast(
    index: u64,
    channels: &[(Channel, Arc<str>)],
    random: &mut ChaCha8Rng,
) -> (Vec<Member>, Option<Member>) {
    let business = [
        ParticipantType::AiAgent,
        ParticipantType::HumanAgent,
        ParticipantType::Agent,
    ];
    let kind = business[(index / CHANNELS.len() as u64 % 3) as usize];
    let customer = match random.random_ratio(1, 12) {
        true => ParticipantType::Unknown,
        false => ParticipantType::Customer,
    };
    let mut cast = vec![member(customer, Side::Customer, channels, random)];
    if random.random_ratio(1, 15) {
        // A conference: a second person on the customer's side.
        cast.push(member(
            ParticipantType::Unknown,
            Side::Customer,
            channels,
            random,
        ));
    }
    cast.push(member(kind, Side::Business, channels, random));
    let handoff = (kind == ParticipantType::AiAgent && random.random_bool(0.4)).then(|| {
        let human = ParticipantType::HumanAgent;
        member(human, Side::Business, channels, random)
    });
    (cast, handoff)
}

fn member(
    kind: ParticipantType,
    side: Side,
    channels: &[(Channel, Arc<str>)],
    random: &mut ChaCha8Rng,
) -> Member {
    const NAMES: &[&str] = &[
        "Kiran", "Zoë", "李雷", "Noa", "Øyvind", "Amélie", "Tomás", "ليلى",
    ];
    let number: u32 = random.random_range(2_000_000..10_000_000);
    let addresses = channels
        .iter()
        .map(|(channel, channel_id)| Address {
            channel: *channel,
            address: address(*channel, side, number, random),
            channel_id: Some(Arc::clone(channel_id)),
        })
        .collect();
    let named = random.random_bool(0.8);
    let profiled = kind == ParticipantType::Customer && random.random_bool(0.7);
    Member {
        id: seeds::id("participant", random),
        new: NewParticipant {
            name: named.then(|| NAMES[number as usize % NAMES.len()].into()),
            kind,
            profile_id: profiled.then(|| seeds::id("profile", random)),
            addresses,
        },
        side,
    }
}

/// Numbers are of the area 555, which is nobody's.
fn address(channel: Channel, side: Side, number: u32, random: &mut ChaCha8Rng) -> Arc<str> {
    let text = match (channel, side) {
        (Channel::Whatsapp, _) if random.random_bool(0.5) => format!("whatsapp:+1555{number}"),
        (Channel::Rcs, Side::Business) => format!("rcs:brand_{number}_agent"),
        (Channel::Chat, _) => format!("visitor-{number}"),
        (Channel::Video, _) => format!("client:room-{number}"),
        (Channel::Email, _) => format!("person.{number}@example.com"),
        (Channel::Api, _) => format!("app-{number}"),
        _ => format!("+1555{number}"),
    };
    text.into()
}

pub(super) fn address_on(member: &Member, channel: Channel) -> Arc<str> {
    let found = member.new.addresses.iter().find(|a| a.channel == channel);
    Arc::clone(
        &found
            .expect("a member has an address on each of its conversation's channels")
            .address,
    )
}

pub(super) fn other_spelling(address: &str) -> Arc<str> {
    match address.strip_prefix("whatsapp:") {
        Some(bare) => bare.into(),
        None => format!("whatsapp:{address}").into(),
    }
}

pub(super) fn resource_prefix(channel: Channel) -> &'static str {
    match channel {
        Channel::Sms | Channel::Rcs | Channel::Whatsapp => "SM",
        _ => "IM",
    }
}
