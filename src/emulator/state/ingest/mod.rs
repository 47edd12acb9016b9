//! Messages and calls of the outside world, and the conversations that they end up in.
//!
//! Owns who takes part, which conversation is found or opened, and what is written into it: passively by
//! the rules of `capture`, actively by what TwiML names. Refuses to change a conversation other than by
//! [`State::apply`], so that everything said here obeys the machine's rules.
//!
//! How it decides, where the service's documents leave it open:
//!
//! - Where a configuration's grouping finds a living conversation, the capture rules of the version that
//!   it was born under decide, else the current ones.
//! - Each configuration that takes a message or call does so once. Several of them, or several rules of
//!   one, are an unexpected grouping: the traffic is in each configuration's conversation, and the report,
//!   the log and the bill say so.
//! - A conversation that TwiML names and that is closed or unknown, or a configuration that is unknown,
//!   takes nothing: the call goes on, that verb's engine does not run, the report says why.
//! - A call is captured when it ends, so that its utterances occurred in the time before.
//! - `<Transcription>` hears the call from its document to the end; `<ConversationRelay>` hears its own
//!   document, and writes what an AI agent says in 3 to 5 fragments.
//! - The customer is whoever the caller of the route says, else the end that a rule leaves open, else
//!   whoever is a customer of the conversation that is found, else `from`.
//! - A configuration that was deleted captures nothing more; its living conversations are reached by
//!   `conversationId` and over REST.
//!
//! Guarantees: ids and cuts are drawn from the seed that comes with the traffic. Whatever is refused half
//! way (a limit) is reported, and what was announced before stays announced.

mod parts;
mod run;

use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

use super::super::capture::{CallType, End, Miss};
use super::super::resource::{Channel, Content, ContentType, DeliveryStatus, ParticipantType};
use super::super::seeds;
use super::super::twiml::{Document, Listener};
use super::bill::{CallLine, EngineLine, Source};
use super::{Effect, Refusal, State};

use self::parts::{Ear, Ends, Missing, Said, Taken, refused};
use self::run::Run;

/// A message between two addresses.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    /// SMS, RCS, WHATSAPP or CHAT.
    pub(crate) channel: Channel,
    pub(crate) from: Arc<str>,
    pub(crate) to: Arc<str>,
    pub(crate) text: Box<str>,
    /// Of CHAT: the classic conversation's SID.
    pub(crate) channel_id: Option<Arc<str>>,
    /// Of CHAT: the classic service's SID.
    pub(crate) service: Option<Arc<str>>,
    pub(crate) customer: Option<End>,
}

/// A call from beginning to end.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) from: Arc<str>,
    pub(crate) to: Arc<str>,
    pub(crate) call_type: CallType,
    pub(crate) customer: Option<End>,
    /// Played one after the other.
    pub(crate) documents: Vec<Document>,
    /// In the order in which they were said.
    pub(crate) utterances: Vec<Utterance>,
}

/// What somebody said on a call.
#[derive(Debug, Clone)]
pub(crate) struct Utterance {
    pub(crate) by: ParticipantType,
    pub(crate) text: Box<str>,
    pub(crate) milliseconds: u32,
    /// Position of the document that was playing.
    pub(crate) document: usize,
}

/// What became of a message or call.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    /// The message's or call's SID.
    pub(crate) sid: Arc<str>,
    pub(crate) captured: Vec<Captured>,
    pub(crate) not_captured: Vec<NotCaptured>,
    /// Several rules took it.
    pub(crate) unexpected_grouping: bool,
    /// A capture rule and TwiML both had the call recognised.
    pub(crate) double_billed: bool,
}

/// One conversation that was touched.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Captured {
    pub(crate) source: Source,
    pub(crate) configuration_id: Arc<str>,
    pub(crate) conversation_id: Arc<str>,
    /// It is a new one.
    pub(crate) opened: bool,
    /// Positions of the capture rules that matched.
    pub(crate) rules: Vec<usize>,
    pub(crate) communication_ids: Vec<Arc<str>>,
}

/// One configuration or verb that took nothing.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NotCaptured {
    pub(crate) source: Source,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) configuration_id: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) conversation_id: Option<Arc<str>>,
    #[serde(flatten)]
    pub(crate) reason: Reason,
}

/// Why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "reason", rename_all = "camelCase")]
pub(crate) enum Reason {
    /// No rule of the configuration.
    Rules {
        miss: Miss,
    },
    /// The verb has neither `conversationConfiguration` nor `conversationId`.
    NoConversationNamed,
    /// Nor that, because `conversationConfigurationId` is no attribute.
    MisnamedAttribute,
    UnknownConversation,
    ClosedConversation,
    UnknownConfiguration,
    /// A limit.
    Refused {
        problem: String,
    },
}

/// A report, and what there is to announce.
#[derive(Debug)]
pub(crate) struct Ingested {
    pub(crate) report: Report,
    pub(crate) effects: Vec<Effect>,
}

impl State {
    /// A message reached Twilio or left it.
    pub(crate) fn message(&mut self, message: &Message, seed: u64, at: Timestamp) -> Ingested {
        let mut run = Run::new(self, seed, at);
        let (prefix, source) = match message.channel {
            Channel::Chat => ("IM", Source::ClassicBridge),
            _ => ("SM", Source::CaptureRule),
        };
        run.report.sid = seeds::sid(prefix, &mut run.random).into();
        let ends = Ends {
            channel: message.channel,
            from: &message.from,
            to: &message.to,
            channel_id: message.channel_id.as_ref(),
            call_type: CallType::Pstn,
            service: message.service.as_deref(),
        };
        for taken in run.judge_all(ends, message.customer, source) {
            let configuration = Arc::clone(&taken.configuration.id);
            if let Err(refusal) = run.write_message(message, ends, taken, source) {
                run.missed(source, &configuration, refused(&refusal));
            }
        }
        let unexpected = run.report.unexpected_grouping;
        run.state.bill.grouping(unexpected);
        run.finish()
    }

    /// A call ended.
    pub(crate) fn call(&mut self, call: &Call, seed: u64, at: Timestamp) -> Ingested {
        let mut run = Run::new(self, seed, at);
        let sid: Arc<str> = seeds::sid("CA", &mut run.random).into();
        run.report.sid = Arc::clone(&sid);
        let ends = Ends {
            channel: Channel::Voice,
            from: &call.from,
            to: &call.to,
            channel_id: Some(&sid),
            call_type: call.call_type,
            service: None,
        };
        let mut engines = Vec::new();
        for taken in run.judge_all(ends, call.customer, Source::CaptureRule) {
            let configuration = Arc::clone(&taken.configuration.id);
            match run.hear_passively(call, ends, taken) {
                Ok(line) => engines.push(line),
                Err(refusal) => run.missed(Source::CaptureRule, &configuration, refused(&refusal)),
            }
        }
        let passive = engines.len();
        for (place, document) in call.documents.iter().enumerate() {
            for listener in &document.listeners {
                let ear = Ear::of(listener.verb, Arc::clone(&listener.engine), place);
                match run.hear_actively(call, ends, listener, &ear) {
                    Ok(line) => engines.push(line),
                    Err(missing) => run.report.not_captured.push(NotCaptured {
                        source: ear.source,
                        configuration_id: missing.configuration,
                        conversation_id: missing.conversation,
                        reason: missing.reason,
                    }),
                }
            }
        }
        run.report.double_billed = passive > 0 && engines.len() > passive;
        let line = CallLine {
            call_sid: sid,
            ended_at: at,
            double_billed: run.report.double_billed,
            unexpected_grouping: run.report.unexpected_grouping,
            engines,
        };
        run.state.bill.call(line);
        run.finish()
    }
}

impl Run<'_> {
    fn write_message(
        &mut self,
        message: &Message,
        ends: Ends<'_>,
        taken: Taken,
        source: Source,
    ) -> Result<(), Refusal> {
        let place = self.place(
            &taken.configuration,
            ends,
            taken.customer,
            ParticipantType::Agent,
        )?;
        let said = Said {
            content: Content {
                kind: ContentType::Text,
                text: message.text.clone(),
                transcription: None,
            },
            resource: Arc::clone(&self.report.sid),
            occurred_at: self.at,
            delivery: (message.channel != Channel::Chat).then_some(DeliveryStatus::Delivered),
        };
        let (author, recipient) = match taken.customer {
            End::From => (&place.customer, &place.other),
            End::To => (&place.other, &place.customer),
        };
        let id = self.write(&place.conversation, ends, author, recipient, said)?;
        self.captured(source, place, taken.rules, vec![id]);
        Ok(())
    }

    fn hear_passively(
        &mut self,
        call: &Call,
        ends: Ends<'_>,
        taken: Taken,
    ) -> Result<EngineLine, Refusal> {
        let ear = Ear::passive();
        let agent = ear.agent(call);
        let place = self.place(&taken.configuration, ends, taken.customer, agent)?;
        self.hear(call, ends, place, taken.rules, &ear)
    }

    fn hear_actively(
        &mut self,
        call: &Call,
        ends: Ends<'_>,
        listener: &Listener,
        ear: &Ear,
    ) -> Result<EngineLine, Missing> {
        let Some(target) = &listener.target else {
            return Err(Missing::of(match listener.misnamed {
                true => Reason::MisnamedAttribute,
                false => Reason::NoConversationNamed,
            }));
        };
        let place = self.named(target, ends, call, ear)?;
        self.hear(call, ends, place, Vec::new(), ear)
            .map_err(|refusal| Missing::of(refused(&refusal)))
    }
}

#[cfg(test)]
mod tests;
