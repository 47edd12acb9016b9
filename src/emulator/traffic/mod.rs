//! Made-up conversations: what happens in conversation `index` of a seed, step by step.
//!
//! Owns what is said, by whom and when; `cast` owns who takes part over which channels, `profile` what the
//! traffic as a whole is like. Refuses to carry anything out: a
//! [`Script`] gives commands for the state machine, [`drive`](super::drive) decides when they run.
//!
//! Guarantees: a script depends on the seed, its index and the plan, nothing else; ids not even on the
//! base time, so that the same seed later is the same conversations. All times lie in the
//! [`WINDOW_HOURS`] hours before the base time. A script of any length needs memory for a few steps.

mod cast;
mod profile;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

pub(crate) use self::profile::Spacing;
pub use self::profile::{InvalidProfile, Profile};

use self::cast::{
    Member, Side, address_on, draw_cast, draw_channels, other_spelling, resource_prefix,
};
use super::configuration::CONFIGURATION_ID;
use super::resource::{
    Author, Channel, Content, ContentType, DeliveryStatus, NewCommunication, ParticipantType,
    Recipient, Status, Transcription, Word,
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
    /// What it is like.
    pub(crate) profile: Arc<Profile>,
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

impl Script {
    /// The script of conversation `index`.
    pub(crate) fn new(plan: &Plan, index: u64) -> Self {
        let mut random = seeds::generator(plan.seed, index);
        // The eighth channel and participant types turn with the index, so that a short run has them all.
        let id = match random.random_ratio(1, 20) {
            true => seeds::sid("CH", &mut random).into(),
            false => seeds::id("conversation", &mut random),
        };
        let profile = &plan.profile;
        let channels = draw_channels(index, profile, &mut random);
        let (cast, handoff) = draw_cast(index, &channels, &mut random);
        let ordinary = profile.communications(&mut random);
        let total = match plan.large {
            Some(large) if index == 0 => large.max(1),
            _ => ordinary,
        };
        let window = plan.base - SignedDuration::from_hours(WINDOW_HOURS);
        let start = window + SignedDuration::from_millis(profile.start_ms(window, &mut random));
        // Updates, joins and the close pause as well: three pauses a communication is more than there are.
        let pauses = i64::try_from(3 * total + 16).unwrap_or(i64::MAX);
        let mut script = Script {
            id,
            cast,
            handoff,
            channels,
            language: profile.language(&mut random),
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

#[cfg(test)]
mod tests;
