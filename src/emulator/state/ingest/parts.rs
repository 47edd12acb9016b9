//! What a message or call is made of on its way: its two ends, where they sit, who hears.
//!
//! Owns small values and what follows from them alone. Refuses to read or change the state (`run`).

use std::sync::Arc;

use jiff::Timestamp;

use super::super::super::capture::{self, CallType, End};
use super::super::super::configuration::Configuration;
use super::super::super::resource::{
    Address, Channel, Content, DeliveryStatus, NewParticipant, ParticipantType,
};
use super::super::super::twiml::Verb;
use super::super::Refusal;
use super::super::bill::Source;
use super::{Call, Reason, Utterance};

/// Both ends of a message or call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends<'a> {
    pub(super) channel: Channel,
    pub(super) from: &'a Arc<str>,
    pub(super) to: &'a Arc<str>,
    /// The call's or classic conversation's SID.
    pub(super) channel_id: Option<&'a Arc<str>>,
    pub(super) call_type: CallType,
    pub(super) service: Option<&'a str>,
}

impl<'a> Ends<'a> {
    /// As capture rules look at them.
    pub(super) fn traffic(self) -> capture::Traffic<'a> {
        capture::Traffic {
            channel: self.channel,
            from: self.from,
            to: self.to,
            call_type: self.call_type,
            service: self.service,
        }
    }

    /// `address` on this channel.
    pub(super) fn address(self, address: &Arc<str>) -> Address {
        Address {
            channel: self.channel,
            address: Arc::clone(address),
            channel_id: self.channel_id.cloned(),
        }
    }

    /// The customer's participant and the other's.
    pub(super) fn parties(self, customer: End, other: ParticipantType) -> [NewParticipant; 2] {
        let (customer, business) = match customer {
            End::From => (self.from, self.to),
            End::To => (self.to, self.from),
        };
        [(ParticipantType::Customer, customer), (other, business)].map(|(kind, address)| {
            NewParticipant {
                name: None,
                kind,
                profile_id: None,
                addresses: vec![self.address(address)],
            }
        })
    }
}

/// A configuration's rules took it.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) configuration: Arc<Configuration>,
    pub(super) rules: Vec<usize>,
    pub(super) customer: End,
}

/// A conversation that traffic goes into, and its two ends there.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) configuration: Arc<str>,
    pub(super) conversation: Arc<str>,
    pub(super) opened: bool,
    pub(super) customer: Speaker,
    pub(super) other: Speaker,
}

/// A participant as communications name it.
#[derive(Debug, Clone)]
pub(super) struct Speaker {
    pub(super) id: Arc<str>,
    pub(super) address: Arc<str>,
    pub(super) kind: ParticipantType,
}

/// What goes into a communication besides its ends.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) content: Content,
    pub(super) resource: Arc<str>,
    pub(super) occurred_at: Timestamp,
    pub(super) delivery: Option<DeliveryStatus>,
}

/// An engine, and what it hears.
#[derive(Debug)]
pub(super) struct Ear {
    pub(super) source: Source,
    pub(super) engine: Arc<str>,
    /// Documents, both included.
    first: usize,
    last: usize,
}

impl Ear {
    /// Real-Time Transcription with its default engine, of the whole call.
    pub(super) fn passive() -> Self {
        Ear {
            source: Source::CaptureRule,
            engine: "google".into(),
            first: 0,
            last: usize::MAX,
        }
    }

    /// That of a verb in the document at the position `document`.
    pub(super) fn of(verb: Verb, engine: Arc<str>, document: usize) -> Self {
        let (source, last) = match verb {
            Verb::ConversationRelay => (Source::ConversationRelay, document),
            Verb::Transcription => (Source::Transcription, usize::MAX),
        };
        Ear {
            source,
            engine,
            first: document,
            last,
        }
    }

    /// Whether it runs while that is said.
    pub(super) fn hears(&self, utterance: &Utterance) -> bool {
        (self.first..=self.last).contains(&utterance.document)
    }

    /// Who speaks first for the business; without a word, whom the verb is for.
    pub(super) fn agent(&self, call: &Call) -> ParticipantType {
        let mut heard = call.utterances.iter().filter(|said| self.hears(said));
        let first = heard.find(|said| said.by != ParticipantType::Customer);
        match (first, self.source) {
            (Some(said), _) => said.by,
            (None, Source::ConversationRelay) => ParticipantType::AiAgent,
            (None, _) => ParticipantType::HumanAgent,
        }
    }
}

/// Why a verb has no conversation.
#[derive(Debug)]
pub(super) struct Missing {
    pub(super) reason: Reason,
    pub(super) configuration: Option<Arc<str>>,
    pub(super) conversation: Option<Arc<str>>,
}

impl Missing {
    pub(super) fn of(reason: Reason) -> Self {
        Missing {
            reason,
            configuration: None,
            conversation: None,
        }
    }
}

/// A limit as a reason.
pub(super) fn refused(refusal: &Refusal) -> Reason {
    Reason::Refused {
        problem: refusal.to_string(),
    }
}
