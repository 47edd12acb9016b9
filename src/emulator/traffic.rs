//! Made-up conversations: what happens in conversation `index` of a seed, step by step.
//!
//! Owns who takes part, over which channels, what is said and when. Refuses to carry anything out: a
//! [`Script`] gives commands for the state machine, [`drive`](super::drive) decides when they run.
//!
//! Guarantees: a script depends on the seed, its index and the plan, nothing else; ids not even on the
//! base time, so that the same seed later is the same conversations. All times lie in the
//! [`WINDOW_HOURS`] hours before the base time. A script of any length needs memory for a few steps.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::configuration::CONFIGURATION_ID;
use super::resource::{
    Address, Author, Channel, Content, ContentType, DeliveryStatus, NewCommunication,
    NewParticipant, ParticipantType, Recipient, Status, Transcription, Word,
};
use super::seeds;
use super::speech::FRAGMENTS;
use super::state::{Change, Command};
use super::texts::{self, TextKind};

/// Every time of the traffic lies this far before the base time at most.
pub const WINDOW_HOURS: i64 = 36;
/// Of which a conversation's start takes the first two thirds, its length the rest.
const START_WINDOW_MS: i64 = 24 * 3_600_000;
const LENGTH_WINDOW_MS: i64 = 12 * 3_600_000;
/// Communications of an ordinary conversation.
pub(crate) const MAX_ORDINARY: usize = 60;

/// What all scripts of a run share.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) base: Timestamp,
    /// Communications of conversation 0, where it shall be a large one.
    pub(crate) large: Option<usize>,
}

/// A command and its time.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) at: Timestamp,
    pub(crate) command: Command,
}

/// One conversation's steps, in order of time. The last one closes it.
#[derive(Debug)]
pub(crate) struct Script {
    random: ChaCha8Rng,
    id: Arc<str>,
    cast: Vec<Member>,
    /// Who joins when the half is over: a human takes over from an assistant.
    handoff: Option<Member>,
    /// Each channel with the call or chat it runs in.
    channels: Vec<(Channel, Arc<str>)>,
    language: usize,
    engine: Arc<str>,
    transcription: String,
    now: Timestamp,
    /// Longest pause that keeps the script within its window, milliseconds.
    longest_pause_ms: i64,
    total: usize,
    said: usize,
    utterances: u32,
    quiet: bool,
    pending: VecDeque<Step>,
    ended: bool,
}

#[derive(Debug, Clone)]
struct Member {
    id: Arc<str>,
    new: NewParticipant,
    side: Side,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Customer,
    Business,
}

impl Script {
    /// The script of conversation `index`.
    pub(crate) fn new(plan: &Plan, index: u64) -> Self {
        let mut random = seeds::generator(plan.seed, index);
        // The eighth channel and participant types turn with the index, so that a short run has them all.
        let id = match random.random_ratio(1, 20) {
            true => seeds::sid("CH", &mut random).into(),
            false => seeds::id("conversation", &mut random),
        };
        let channels = draw_channels(index, &mut random);
        let (cast, handoff) = draw_cast(index, &channels, &mut random);
        let share = random.random::<f64>();
        let ordinary = 1 + (share * share * MAX_ORDINARY as f64) as usize;
        let total = match plan.large {
            Some(large) if index == 0 => large.max(1),
            _ => ordinary.min(MAX_ORDINARY),
        };
        let start_ms = WINDOW_HOURS * 3_600_000 - random.random_range(0..START_WINDOW_MS);
        let start = plan.base - SignedDuration::from_millis(start_ms);
        // Updates, joins and the close pause as well: three pauses a communication is more than there are.
        let pauses = i64::try_from(3 * total + 16).unwrap_or(i64::MAX);
        let mut script = Script {
            id,
            cast,
            handoff,
            channels,
            language: random.random_range(0..texts::languages()),
            engine: ["deepgram", "google"][random.random_range(0..2)].into(),
            transcription: seeds::sid("GT", &mut random),
            now: start,
            longest_pause_ms: (LENGTH_WINDOW_MS / pauses).min(180_000),
            total,
            said: 0,
            utterances: 0,
            quiet: random.random_ratio(3, 10),
            pending: VecDeque::new(),
            ended: false,
            random,
        };
        script.begin(index);
        script
    }

    fn begin(&mut self, index: u64) {
        let name = self
            .random
            .random_bool(0.6)
            .then(|| format!("Case {}", 10_000 + index).into());
        let mut metadata = BTreeMap::new();
        if self.random.random_bool(0.3) {
            let order = self.random.random_range(100_000..1_000_000);
            metadata.insert("orderId".to_owned(), order.to_string());
        }
        self.push(Command::Open {
            id: Arc::clone(&self.id),
            configuration_id: CONFIGURATION_ID.into(),
            name,
            metadata,
            participants: Vec::new(),
        });
        for member in self.cast.clone() {
            self.pause();
            self.join(member);
        }
    }

    fn join(&mut self, member: Member) {
        self.push(Command::Join {
            conversation: Arc::clone(&self.id),
            id: member.id,
            participant: member.new,
        });
    }

    /// Fills `pending` with what happens next.
    fn go_on(&mut self) {
        if self.said >= self.total {
            return self.end();
        }
        if self.said * 2 >= self.total
            && let Some(member) = self.handoff.take()
        {
            self.cast.push(member.clone());
            self.join(member);
        }
        let author = self.author();
        let (channel, channel_id) = self
            .channels
            .choose(&mut self.random)
            .cloned()
            .expect("a script has a channel");
        if channel == Channel::Voice {
            self.speak(&author, &channel_id);
        } else {
            self.write(&author, channel, &channel_id);
        }
    }

    fn author(&mut self) -> Member {
        let customer = self.random.random_bool(0.5);
        let side = if customer {
            Side::Customer
        } else {
            Side::Business
        };
        // Whoever joined last speaks for the business: after a handoff, the human.
        let speaker = self.cast.iter().rev().find(|member| member.side == side);
        let someone = self.random.random_bool(0.1);
        match speaker {
            Some(member) if !someone => member.clone(),
            _ => self
                .cast
                .choose(&mut self.random)
                .cloned()
                .expect("a script has a cast"),
        }
    }

    fn write(&mut self, author: &Member, channel: Channel, channel_id: &Arc<str>) {
        self.pause();
        let kind = texts::draw_kind(&mut self.random);
        let text = texts::written(kind, self.language, &mut self.random);
        let resource = seeds::sid(resource_prefix(channel), &mut self.random);
        let content = Content {
            kind: ContentType::Text,
            text: text.into(),
            transcription: None,
        };
        let initiated = channel != Channel::Chat && kind != TextKind::Empty;
        let delivery = initiated.then_some(DeliveryStatus::Initiated);
        let id = self.capture(author, (channel, channel_id), content, resource, delivery);
        if initiated && self.random.random_bool(0.3) {
            self.pause();
            let status = match self.random.random_range(0..10) {
                0 => DeliveryStatus::Failed,
                1 => DeliveryStatus::InProgress,
                2..5 => DeliveryStatus::Read,
                _ => DeliveryStatus::Delivered,
            };
            self.push(Command::Deliver {
                conversation: Arc::clone(&self.id),
                communication: id,
                status,
            });
        }
    }

    /// One utterance; an assistant's comes in fragments, a second apart at most.
    fn speak(&mut self, author: &Member, channel_id: &Arc<str>) {
        let assistant = author.new.kind == ParticipantType::AiAgent;
        let fragments = match assistant {
            true => self.random.random_range(FRAGMENTS),
            false => 1,
        };
        self.pause();
        // Near the end an answer is cut short, as by a caller who hangs up.
        for _ in 0..fragments.min(self.total - self.said) {
            let text = texts::spoken(self.language, &mut self.random);
            let words = self.words(&text);
            let transcription = Transcription {
                channel: Some(u8::from(author.side == Side::Business)),
                confidence: Some(f64::from(self.random.random_range(500..1_000_u32)) / 1_000.0),
                engine: Some(Arc::clone(&self.engine)),
                words,
            };
            let content = Content {
                kind: ContentType::Transcription,
                text: text.into(),
                transcription: Some(Box::new(transcription)),
            };
            let resource = format!("{}_{}", self.transcription, self.utterances);
            self.utterances += 1;
            let delivered = Some(DeliveryStatus::Completed);
            self.capture(
                author,
                (Channel::Voice, channel_id),
                content,
                resource,
                delivered,
            );
            self.pause_up_to(1_000);
        }
    }

    fn words(&mut self, text: &str) -> Vec<Word> {
        let mut at = self.now;
        text.split_whitespace()
            .map(|word| {
                let length = self.random.random_range(80..400);
                let start = at;
                at += SignedDuration::from_millis(length);
                Word {
                    text: word.into(),
                    start_time: Some(start),
                    end_time: Some(at),
                }
            })
            .collect()
    }

    fn capture(
        &mut self,
        author: &Member,
        (channel, channel_id): (Channel, &Arc<str>),
        content: Content,
        resource: String,
        delivery_status: Option<DeliveryStatus>,
    ) -> Arc<str> {
        let recipients = self
            .cast
            .iter()
            .filter(|member| member.side != author.side)
            .map(|member| Recipient {
                address: address_on(member, channel),
                channel,
                participant_id: Some(Arc::clone(&member.id)),
                delivery_status,
            })
            .collect();
        let mut address = address_on(author, channel);
        if channel == Channel::Whatsapp && self.random.random_bool(0.3) {
            address = other_spelling(&address);
        }
        let id = seeds::id("communication", &mut self.random);
        let delay = SignedDuration::from_millis(self.random.random_range(0..200));
        self.push(Command::Capture {
            conversation: Arc::clone(&self.id),
            id: Arc::clone(&id),
            communication: NewCommunication {
                author: Author {
                    address,
                    channel,
                    participant_id: Some(Arc::clone(&author.id)),
                },
                content,
                channel_id: Some(Arc::clone(channel_id)),
                resource_id: Some(resource.into()),
                recipients,
                // It happened a little before the Orchestrator captured it.
                occurred_at: Some(self.now - delay),
            },
        });
        self.said += 1;
        id
    }

    fn end(&mut self) {
        if self.quiet {
            self.quiet = false;
            self.pause();
            self.status(Status::Inactive);
            if self.random.random_bool(0.3) {
                // Somebody comes back: one more communication, which the state machine takes as ACTIVE.
                self.total += 1;
            }
            return;
        }
        self.pause();
        self.status(Status::Closed);
        self.ended = true;
    }

    fn status(&mut self, status: Status) {
        self.push(Command::Change {
            conversation: Arc::clone(&self.id),
            change: Change {
                status: Some(status),
                ..Change::default()
            },
        });
    }

    fn push(&mut self, command: Command) {
        self.pending.push_back(Step {
            at: self.now,
            command,
        });
    }

    fn pause(&mut self) {
        self.pause_up_to(self.longest_pause_ms);
    }

    fn pause_up_to(&mut self, most_ms: i64) {
        let most = most_ms.min(self.longest_pause_ms).max(1);
        self.now += SignedDuration::from_millis(self.random.random_range(0..=most));
    }
}

impl Iterator for Script {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        while self.pending.is_empty() && !self.ended {
            self.go_on();
        }
        self.pending.pop_front()
    }
}

const CHANNELS: [Channel; 8] = [
    Channel::Voice,
    Channel::Sms,
    Channel::Rcs,
    Channel::Whatsapp,
    Channel::Chat,
    Channel::Video,
    Channel::Email,
    Channel::Api,
];

/// One channel by turns, a second one in a fifth of the conversations, sometimes a third.
fn draw_channels(index: u64, random: &mut ChaCha8Rng) -> Vec<(Channel, Arc<str>)> {
    let first = CHANNELS[(index % CHANNELS.len() as u64) as usize];
    let mut others: Vec<Channel> = CHANNELS.into_iter().filter(|c| *c != first).collect();
    others.shuffle(random);
    let more = match random.random_range(0..20) {
        0 => 2,
        1..5 => 1,
        _ => 0,
    };
    others.truncate(more);
    others.insert(0, first);
    others
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

fn draw_cast(
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

fn address_on(member: &Member, channel: Channel) -> Arc<str> {
    let found = member.new.addresses.iter().find(|a| a.channel == channel);
    Arc::clone(
        &found
            .expect("a member has an address on each of its conversation's channels")
            .address,
    )
}

fn other_spelling(address: &str) -> Arc<str> {
    match address.strip_prefix("whatsapp:") {
        Some(bare) => bare.into(),
        None => format!("whatsapp:{address}").into(),
    }
}

fn resource_prefix(channel: Channel) -> &'static str {
    match channel {
        Channel::Sms | Channel::Rcs | Channel::Whatsapp => "SM",
        _ => "IM",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::emulator::state::{Setup, State};

    fn base() -> Timestamp {
        "2026-11-22T12:00:00Z".parse().unwrap()
    }

    fn plan(seed: u64, large: Option<usize>) -> Plan {
        Plan {
            seed,
            base: base(),
            large,
        }
    }

    fn played(plan: &Plan, conversations: u64) -> State {
        let mut state = State::new(Setup {
            account_id: "AC1".into(),
            callbacks: [].into(),
            since: base(),
            operation_delay: SignedDuration::ZERO,
            keep_conversations: 1_000,
        });
        for index in 0..conversations {
            for step in Script::new(plan, index) {
                state.apply(step.command, step.at).unwrap();
            }
        }
        state
    }

    #[test]
    fn two_hundred_conversations_have_everything() {
        let state = played(&plan(1, None), 200);
        assert_eq!(state.tally().closed, 200, "the last step closes");
        let mut channels = BTreeSet::new();
        let mut kinds = BTreeSet::new();
        let mut deliveries = BTreeSet::new();
        let mut sizes = Vec::new();
        let (mut several, mut prefixed, mut bare, mut older, mut fragments) = (0, 0, 0, 0, 0);
        let (mut empty, mut longest, mut rtl, mut lines, mut emoji, mut words) = (0, 0, 0, 0, 0, 0);
        for entry in state.conversations() {
            sizes.push(entry.communications.len());
            several += usize::from(entry.channels.len() > 1);
            older += usize::from(entry.conversation.id.starts_with("CH"));
            kinds.extend(entry.participants.iter().map(|p| p.kind));
            let authors: Vec<_> = entry.communications.iter().map(|c| &c.author).collect();
            fragments += usize::from(authors.windows(3).any(|w| w[0] == w[1] && w[1] == w[2]));
            for communication in &entry.communications {
                channels.insert(communication.author.channel);
                deliveries.extend(communication.recipients.iter().map(|r| r.delivery_status));
                let text = &communication.content.text;
                if communication.author.channel == Channel::Whatsapp {
                    let has = communication.author.address.starts_with("whatsapp:");
                    prefixed += usize::from(has);
                    bare += usize::from(!has);
                }
                empty += usize::from(text.is_empty());
                longest += usize::from(text.chars().count() == texts::MAX_TEXT_CHARS);
                rtl += usize::from(text.contains('ש') || text.contains('م'));
                lines += usize::from(text.contains('\n'));
                emoji += usize::from(text.contains('📦'));
                words += communication
                    .content
                    .transcription
                    .as_ref()
                    .map_or(0, |t| t.words.len());
            }
        }
        assert_eq!(channels, CHANNELS.into());
        assert_eq!(kinds.len(), 5, "{kinds:?}");
        assert_eq!(deliveries.len(), 7, "six states and none: {deliveries:?}");
        assert_eq!(sizes.iter().min(), Some(&1));
        assert!(sizes.iter().max().unwrap() <= &(MAX_ORDINARY + 1));
        assert!(sizes.iter().max().unwrap() > &40, "{sizes:?}");
        for (what, count) in [
            ("several channels", several),
            ("whatsapp with prefix", prefixed),
            ("whatsapp without", bare),
            ("older ids", older),
            ("fragments", fragments),
            ("empty", empty),
            ("longest", longest),
            ("right to left", rtl),
            ("lines", lines),
            ("emoji", emoji),
            ("words", words),
        ] {
            assert!(count > 0, "no {what} in 200 conversations");
        }
    }

    #[test]
    fn ids_depend_on_the_seed_and_not_on_the_base_time() {
        let later = Plan {
            base: base() + SignedDuration::from_hours(100),
            ..plan(5, None)
        };
        let ids = |state: &State| -> Vec<Arc<str>> {
            let entries = state.conversations();
            entries
                .flat_map(|e| e.communications.iter().map(|c| Arc::clone(&c.id)))
                .collect()
        };
        let first = ids(&played(&plan(5, None), 10));
        assert_eq!(first, ids(&played(&later, 10)));
        assert_ne!(first, ids(&played(&plan(6, None), 10)));
    }

    #[test]
    fn times_stay_in_their_window_and_in_order() {
        for (large, conversations) in [(None, 50), (Some(3_000), 1)] {
            for index in 0..conversations {
                let mut last = base() - SignedDuration::from_hours(WINDOW_HOURS);
                for step in Script::new(&plan(2, large), index) {
                    assert!(step.at >= last);
                    last = step.at;
                }
                assert!(last <= base());
            }
        }
    }

    #[test]
    fn a_large_conversation_has_its_size_and_needs_little_memory() {
        let mut script = Script::new(&plan(3, Some(50_000)), 0);
        let mut captured = 0;
        while let Some(step) = script.next() {
            captured += usize::from(matches!(step.command, Command::Capture { .. }));
            assert!(script.pending.len() < 16);
        }
        assert!((50_000..=50_001).contains(&captured), "{captured}");
    }
}
