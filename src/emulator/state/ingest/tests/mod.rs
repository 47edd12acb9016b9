//! Capture, grouping, lifecycle and bill, fact by fact, on the bare state machine.
//!
//! A test named `fact_n_…` shows the fact of that number in the list of what bites whoever builds on the
//! service; `cannot_…` shows what the service's documents say cannot be done.

mod calls;
mod lifecycle;
mod messages;
mod properties;

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::super::super::configuration::Configuration;
use super::super::super::resource::{
    Channel, Communication, NewParticipant, Participant, ParticipantType, Status, StatusCallback,
};
use super::super::super::twiml;
use super::super::{Change, Command, Effect, Entry, MAX_CONVERSATIONS, Setup, State};
use super::{Call, Message, Reason, Report, Utterance};

const NUMBER: &str = "+15551234567";
const CUSTOMER: &str = "+15559876543";
const OTHER: &str = "+15550001111";

const BY_CHANNEL: &str = "GROUP_BY_PARTICIPANT_ADDRESSES_AND_CHANNEL_TYPE";
const BY_ADDRESS: &str = "GROUP_BY_PARTICIPANT_ADDRESSES";
const BY_PROFILE: &str = "GROUP_BY_PROFILE";

/// A machine, its time, and what it announced.
struct World {
    state: State,
    minute: i64,
    seed: u64,
    announced: Vec<Value>,
}

impl World {
    fn new() -> Self {
        World {
            state: State::new(Setup {
                account_id: "AC1".into(),
                callbacks: callbacks(),
                since: at(0),
                operation_delay: SignedDuration::ZERO,
                keep_conversations: MAX_CONVERSATIONS,
            }),
            minute: 0,
            seed: 0,
            announced: Vec::new(),
        }
    }

    /// With one more configuration, `id`.
    fn with(mut self, id: &str, grouping: &str, channels: Value) -> Self {
        self.configure(id, grouping, json!({"channelSettings": channels}));
        self
    }

    fn configure(&mut self, id: &str, grouping: &str, more: Value) {
        let mut settings = json!({
            "displayName": id,
            "conversationGroupingType": grouping,
            "memoryStoreId": "mem_store_1",
            "statusCallbacks": [{"url": "https://example.com/callback"}],
        });
        for (field, value) in more.as_object().unwrap() {
            settings[field] = value.clone();
        }
        self.state.configurations.add(Configuration {
            id: id.into(),
            settings: serde_json::from_value(settings).unwrap(),
            version: 1,
            created_at: at(0),
            updated_at: at(0),
        });
    }

    /// Lets minutes pass, and happen what is due.
    fn pass(&mut self, minutes: i64) {
        self.minute += minutes;
        self.apply(Command::Tick);
    }

    fn apply(&mut self, command: Command) -> Arc<str> {
        let applied = self.state.apply(command, at(self.minute)).unwrap();
        self.announce(applied.effects);
        applied.id
    }

    fn announce(&mut self, effects: Vec<Effect>) {
        let bodies = effects.into_iter().map(|Effect::Announce(announcement)| {
            serde_json::from_slice::<Value>(&announcement.body).unwrap()
        });
        self.announced.extend(bodies);
    }

    fn message(&mut self, message: &Message) -> Report {
        self.seed += 1;
        let ingested = self.state.message(message, self.seed, at(self.minute));
        self.announce(ingested.effects);
        ingested.report
    }

    fn call(&mut self, call: &Call) -> Report {
        self.seed += 1;
        let ingested = self.state.call(call, self.seed, at(self.minute));
        self.announce(ingested.effects);
        ingested.report
    }

    fn entry(&self, id: &str) -> &Entry {
        self.state.conversation(id).unwrap()
    }

    fn status(&self, id: &str) -> Status {
        self.entry(id).conversation.status
    }

    fn said(&self, id: &str) -> &[Communication] {
        &self.entry(id).communications
    }

    fn bill(&self) -> Value {
        serde_json::to_value(self.state.bill()).unwrap()
    }

    fn set(&mut self, id: &str, status: Status) {
        self.apply(Command::Change {
            conversation: id.into(),
            change: Change {
                status: Some(status),
                ..Change::default()
            },
        });
    }

    /// A conversation of the API, with one participant.
    fn open(&mut self, id: &str, configuration: &str, address: (Channel, &str)) {
        self.apply(Command::Open {
            id: id.into(),
            configuration_id: configuration.into(),
            name: None,
            metadata: Default::default(),
            participants: vec![(
                format!("{id}-customer").into(),
                NewParticipant {
                    name: None,
                    kind: ParticipantType::Customer,
                    profile_id: None,
                    addresses: vec![super::super::super::resource::Address {
                        channel: address.0,
                        address: address.1.into(),
                        channel_id: None,
                    }],
                },
            )],
        });
    }
}

fn callbacks() -> Arc<[StatusCallback]> {
    let callback = json!([{"url": "https://example.com/callback"}]);
    serde_json::from_value(callback).unwrap()
}

fn at(minute: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + 60 * minute).unwrap()
}

/// Both rules that a number needs on a messaging channel.
fn both_ways(number: &str) -> Value {
    json!([{"from": number, "to": "*"}, {"from": "*", "to": number}])
}

fn sms(from: &str, to: &str) -> Message {
    message(Channel::Sms, from, to)
}

fn message(channel: Channel, from: &str, to: &str) -> Message {
    Message {
        channel,
        from: from.into(),
        to: to.into(),
        text: "hello".into(),
        channel_id: None,
        service: None,
        customer: None,
    }
}

/// A call of the customer's: who says something, in which document.
fn call(documents: &[&str], said: &[(ParticipantType, usize)]) -> Call {
    Call {
        from: CUSTOMER.into(),
        to: NUMBER.into(),
        call_type: Default::default(),
        customer: None,
        documents: documents
            .iter()
            .map(|xml| twiml::parse(xml).unwrap())
            .collect(),
        utterances: said
            .iter()
            .map(|(by, document)| Utterance {
                by: *by,
                text: "all of these are the words of one utterance".into(),
                milliseconds: 30_000,
                document: *document,
            })
            .collect(),
    }
}

fn relay(attributes: &str) -> String {
    format!("<Response><Connect><ConversationRelay {attributes}/></Connect></Response>")
}

/// The one conversation that a report names.
fn only(report: &Report) -> Arc<str> {
    let [captured] = &report.captured[..] else {
        panic!("{report:?}");
    };
    Arc::clone(&captured.conversation_id)
}

fn reasons(report: &Report) -> Vec<&Reason> {
    report.not_captured.iter().map(|not| &not.reason).collect()
}

fn customer(entry: &Entry) -> &Participant {
    let mut participants = entry.participants.iter();
    participants
        .find(|p| p.kind == ParticipantType::Customer)
        .unwrap()
}

fn authors(communications: &[Communication]) -> BTreeSet<&str> {
    communications.iter().map(|c| &*c.author.address).collect()
}
