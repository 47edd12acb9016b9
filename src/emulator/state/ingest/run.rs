//! One message or call on its way through the state machine.
//!
//! Owns the search for the conversation, for the participants in it, and the commands that write what was
//! said. Refuses to decide which configurations and verbs take the traffic (`mod`).
//!
//! Guarantees: a participant is looked for before one joins, by profile where profiles group, else by
//! address; a further address of the same person is added to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use rand_chacha::ChaCha8Rng;

use super::super::super::capture::{self, End, normalised};
use super::super::super::configuration::{Configuration, GroupingType};
use super::super::super::resource::{
    Address, Author, Channel, DeliveryStatus, NewCommunication, NewParticipant, Participant,
    ParticipantType, Recipient, Status,
};
use super::super::super::seeds;
use super::super::super::speech::{self, Hearing};
use super::super::super::twiml::Target;
use super::super::bill::{EngineLine, Source};
use super::super::{Applied, Command, Effect, Entry, Refusal, State};
use super::parts::{Ear, Ends, Missing, Place, Said, Speaker, Taken, refused};
use super::{Call, Captured, Ingested, NotCaptured, Reason, Report, Utterance};

/// Addresses that a participant gathers; what comes from later ones is captured all the same.
const MAX_ADDRESSES: usize = 100;

/// One message or call on its way through the state.
#[derive(Debug)]
pub(super) struct Run<'a> {
    pub(super) state: &'a mut State,
    pub(super) random: ChaCha8Rng,
    pub(super) at: Timestamp,
    pub(super) report: Report,
    effects: Vec<Effect>,
}

impl<'a> Run<'a> {
    /// At its beginning; `seed` decides what is drawn.
    pub(super) fn new(state: &'a mut State, seed: u64, at: Timestamp) -> Self {
        Run {
            state,
            random: seeds::generator(seed, seeds::INGEST_STREAM),
            at,
            report: Report::default(),
            effects: Vec::new(),
        }
    }

    /// What came of it.
    pub(super) fn finish(self) -> Ingested {
        Ingested {
            report: self.report,
            effects: self.effects,
        }
    }

    fn apply(&mut self, command: Command) -> Result<Arc<str>, Refusal> {
        let Applied { id, effects } = self.state.apply(command, self.at)?;
        self.effects.extend(effects);
        Ok(id)
    }

    /// The configurations that take it; the others are reported.
    pub(super) fn judge_all(
        &mut self,
        ends: Ends<'_>,
        customer: Option<End>,
        source: Source,
    ) -> Vec<Taken> {
        let all: Vec<_> = self.state.configurations.all().map(Arc::clone).collect();
        let mut taking = Vec::new();
        let mut matches = 0;
        for configuration in all {
            let current = capture::judge(&configuration.settings, ends.traffic());
            let by_rule = current.as_ref().ok().and_then(|taken| taken.customer);
            let living = self.living(&configuration, ends, customer.or(by_rule));
            let judged = match &living {
                Some(living) => capture::judge(&living.pinned.settings, ends.traffic()),
                None => current,
            };
            match judged {
                Ok(taken) => {
                    // A chat needs no rule.
                    matches += taken.rules.len().max(1);
                    let known = living.map(|living| living.customer);
                    taking.push(Taken {
                        configuration,
                        rules: taken.rules,
                        customer: customer.or(taken.customer).or(known).unwrap_or(End::From),
                    });
                }
                Err(miss) => self.missed(source, &configuration.id, Reason::Rules { miss }),
            }
        }
        self.report.unexpected_grouping = matches > 1;
        taking
    }

    /// The living conversation of both ends. Where nobody says who the customer is, either may be.
    fn living(
        &self,
        configuration: &Configuration,
        ends: Ends<'_>,
        customer: Option<End>,
    ) -> Option<Living> {
        let sides = match &customer {
            Some(end) => std::slice::from_ref(end),
            None => &[End::From, End::To],
        };
        sides.iter().find_map(|&end| {
            let parties = ends.parties(end, ParticipantType::Unknown);
            let id = self.state.grouped(configuration, parties)?;
            let entry = self.state.conversation(&id)?;
            Some(Living {
                pinned: Arc::clone(&entry.conversation.configuration),
                customer: customer_end(entry, ends).unwrap_or(end),
            })
        })
    }

    /// The conversation that the grouping finds or that is opened, with both ends in it.
    pub(super) fn place(
        &mut self,
        configuration: &Arc<Configuration>,
        ends: Ends<'_>,
        customer: End,
        other: ParticipantType,
    ) -> Result<Place, Refusal> {
        let parties = ends.parties(customer, other);
        let found = self.state.grouped(configuration, parties.clone());
        let opened = found.is_none();
        let conversation = match found {
            Some(conversation) => conversation,
            None => {
                let id = seeds::id("conversation", &mut self.random);
                let participants = parties.clone();
                let participants =
                    participants.map(|party| (seeds::id("participant", &mut self.random), party));
                self.apply(Command::Open {
                    id,
                    configuration_id: Arc::clone(&configuration.id),
                    name: None,
                    metadata: BTreeMap::new(),
                    participants: participants.into(),
                })?
            }
        };
        self.seat(&conversation, parties, opened)
    }

    /// Both ends as participants of `conversation`, joined where they are not.
    fn seat(
        &mut self,
        conversation: &str,
        parties: [NewParticipant; 2],
        opened: bool,
    ) -> Result<Place, Refusal> {
        let own = &self.living_one(conversation)?.conversation;
        let (configuration, conversation) =
            (Arc::clone(&own.configuration.id), Arc::clone(&own.id));
        let [customer, other] = parties;
        Ok(Place {
            configuration,
            opened,
            customer: self.speaker(&conversation, customer, Likeness::Kind)?,
            // Whoever is there already; who of them speaks is known when somebody does.
            other: self.speaker(&conversation, other, Likeness::Address)?,
            conversation,
        })
    }

    fn living_one(&self, conversation: &str) -> Result<&Entry, Refusal> {
        match self.state.conversation(conversation) {
            None => Err(Refusal::NotFound("conversation")),
            Some(entry) if entry.conversation.status == Status::Closed => Err(Refusal::Closed),
            Some(entry) => Ok(entry),
        }
    }

    /// The participant that `wanted` is, with its address of this channel; or a new one.
    fn speaker(
        &mut self,
        conversation: &str,
        mut wanted: NewParticipant,
        likeness: Likeness,
    ) -> Result<Speaker, Refusal> {
        let address = wanted.addresses[0].clone();
        let entry = self.living_one(conversation)?;
        let settings = &entry.conversation.configuration.settings;
        let memory = &self.state.memory;
        memory.resolve(&settings.memory_store_id, &mut wanted);
        let by_profile = settings.conversation_grouping_type == GroupingType::GroupByProfile;
        let mut participants = entry.participants.iter();
        let found = participants.find(|known| is_same(known, &wanted, likeness, by_profile));
        let speaker = |id: &Arc<str>, kind| Speaker {
            id: Arc::clone(id),
            address: Arc::clone(&address.address),
            kind,
        };
        let Some(found) = found else {
            let id = seeds::id("participant", &mut self.random);
            let speaker = speaker(&id, wanted.kind);
            self.apply(Command::Join {
                conversation: conversation.into(),
                id,
                participant: wanted,
            })?;
            return Ok(speaker);
        };
        let speaker = speaker(&found.id, found.kind);
        // A call's SID is on its communications; only a chat's has its place on the address.
        let known = found.addresses.iter().any(|known| {
            known.channel == address.channel
                && bare(known) == bare(&address)
                && (known.channel != Channel::Chat || known.channel_id == address.channel_id)
        });
        if !known && found.addresses.len() < MAX_ADDRESSES {
            let mut addresses = found.addresses.clone();
            addresses.push(address);
            let new = NewParticipant {
                name: found.name.clone(),
                kind: found.kind,
                profile_id: found.profile_id.clone(),
                addresses,
            };
            self.apply(Command::Replace {
                conversation: conversation.into(),
                participant: Arc::clone(&speaker.id),
                new,
            })?;
        }
        Ok(speaker)
    }

    /// The conversation that TwiML names.
    pub(super) fn named(
        &mut self,
        target: &Target,
        ends: Ends<'_>,
        call: &Call,
        ear: &Ear,
    ) -> Result<Place, Missing> {
        let agent = ear.agent(call);
        match target {
            Target::Configuration(id) => {
                let missing = |reason| Missing {
                    configuration: Some(Arc::clone(id)),
                    ..Missing::of(reason)
                };
                let configuration = self.state.configurations.current(id).cloned();
                let configuration =
                    configuration.ok_or_else(|| missing(Reason::UnknownConfiguration))?;
                let known = self.living(&configuration, ends, call.customer);
                let customer = call.customer.or(known.map(|living| living.customer));
                let customer = customer.unwrap_or(End::From);
                self.place(&configuration, ends, customer, agent)
                    .map_err(|refusal| missing(refused(&refusal)))
            }
            Target::Conversation(id) => {
                let entry = self.state.conversation(id);
                let known = entry.and_then(|entry| customer_end(entry, ends));
                let customer = call.customer.or(known).unwrap_or(End::From);
                let parties = ends.parties(customer, agent);
                self.seat(id, parties, false).map_err(|refusal| Missing {
                    conversation: Some(Arc::clone(id)),
                    ..Missing::of(match refusal {
                        Refusal::NotFound(_) => Reason::UnknownConversation,
                        Refusal::Closed => Reason::ClosedConversation,
                        other => refused(&other),
                    })
                })
            }
        }
    }

    /// Writes down what `ear` hears of `call`.
    pub(super) fn hear(
        &mut self,
        call: &Call,
        ends: Ends<'_>,
        place: Place,
        rules: Vec<usize>,
        ear: &Ear,
    ) -> Result<EngineLine, Refusal> {
        let lengths = call
            .utterances
            .iter()
            .map(|said| i64::from(said.milliseconds));
        let total = SignedDuration::from_millis(lengths.sum());
        // A call longer than the calendar is said at once.
        let mut now = self.at.checked_sub(total).unwrap_or(self.at);
        let sid = seeds::sid("GT", &mut self.random);
        let (mut heard, mut written) = (0, Vec::new());
        let mut agent = place.other.clone();
        for utterance in &call.utterances {
            let began = now;
            now += SignedDuration::from_millis(i64::from(utterance.milliseconds));
            if !ear.hears(utterance) {
                continue;
            }
            heard += u64::from(utterance.milliseconds);
            let by_customer = utterance.by == ParticipantType::Customer;
            if !by_customer {
                agent = self.agent(call, ends, &place, utterance)?;
            }
            let (author, recipient) = match by_customer {
                true => (&place.customer, &agent),
                false => (&agent, &place.customer),
            };
            let fragmented =
                ear.source == Source::ConversationRelay && utterance.by == ParticipantType::AiAgent;
            let hearing = Hearing {
                channel: u8::from(!by_customer),
                engine: &ear.engine,
                fragmented,
            };
            let parts = speech::heard(&utterance.text, (began, now), &hearing, &mut self.random);
            for (occurred_at, content) in parts {
                let said = Said {
                    content,
                    resource: format!("{sid}_{}", written.len()).into(),
                    occurred_at,
                    delivery: Some(DeliveryStatus::Completed),
                };
                let id = self.write(&place.conversation, ends, author, recipient, said)?;
                written.push(id);
            }
        }
        let conversation = Arc::clone(&place.conversation);
        self.captured(ear.source, place, rules, written);
        Ok(EngineLine::new(
            ear.source,
            Arc::clone(&ear.engine),
            conversation,
            heard,
        ))
    }

    /// Who speaks for the business: after a `<Dial>`, a human at the number that it called.
    fn agent(
        &mut self,
        call: &Call,
        ends: Ends<'_>,
        place: &Place,
        utterance: &Utterance,
    ) -> Result<Speaker, Refusal> {
        let human = utterance.by == ParticipantType::HumanAgent;
        let played = &call.documents[..call.documents.len().min(utterance.document + 1)];
        let dialled = played
            .iter()
            .rev()
            .find_map(|document| document.dial.as_ref());
        let address = match dialled {
            Some(dialled) if human => dialled,
            _ => &place.other.address,
        };
        if utterance.by == place.other.kind && *address == place.other.address {
            return Ok(place.other.clone());
        }
        let agent = NewParticipant {
            name: None,
            kind: utterance.by,
            profile_id: None,
            addresses: vec![ends.address(address)],
        };
        self.speaker(&place.conversation, agent, Likeness::Kind)
    }

    /// Writes one communication.
    pub(super) fn write(
        &mut self,
        conversation: &Arc<str>,
        ends: Ends<'_>,
        author: &Speaker,
        recipient: &Speaker,
        said: Said,
    ) -> Result<Arc<str>, Refusal> {
        let id = seeds::id("communication", &mut self.random);
        self.apply(Command::Capture {
            conversation: Arc::clone(conversation),
            id,
            communication: NewCommunication {
                author: Author {
                    address: Arc::clone(&author.address),
                    channel: ends.channel,
                    participant_id: Some(Arc::clone(&author.id)),
                },
                content: said.content,
                channel_id: ends.channel_id.cloned(),
                resource_id: Some(said.resource),
                recipients: vec![Recipient {
                    address: Arc::clone(&recipient.address),
                    channel: ends.channel,
                    participant_id: Some(Arc::clone(&recipient.id)),
                    delivery_status: said.delivery,
                }],
                occurred_at: Some(said.occurred_at),
            },
        })
    }

    /// Reports that it went into `place`.
    pub(super) fn captured(
        &mut self,
        source: Source,
        place: Place,
        rules: Vec<usize>,
        communication_ids: Vec<Arc<str>>,
    ) {
        self.report.captured.push(Captured {
            source,
            configuration_id: place.configuration,
            conversation_id: place.conversation,
            opened: place.opened,
            rules,
            communication_ids,
        });
    }

    /// Reports that `configuration` took nothing.
    pub(super) fn missed(&mut self, source: Source, configuration: &Arc<str>, reason: Reason) {
        self.report.not_captured.push(NotCaptured {
            source,
            configuration_id: Some(Arc::clone(configuration)),
            conversation_id: None,
            reason,
        });
    }
}

/// A living conversation that the grouping finds.
struct Living {
    /// The version that it was born under.
    pinned: Arc<Configuration>,
    customer: End,
}

/// Which end is a customer of the conversation.
fn customer_end(entry: &Entry, ends: Ends<'_>) -> Option<End> {
    let customers = entry.participants.iter();
    let customers = customers.filter(|known| known.kind == ParticipantType::Customer);
    let addresses: Vec<&str> = customers
        .flat_map(|known| &known.addresses)
        .map(bare)
        .collect();
    [(End::From, ends.from), (End::To, ends.to)]
        .into_iter()
        .find(|(_, address)| addresses.contains(&normalised(ends.channel, address)))
        .map(|(end, _)| end)
}

/// What makes a participant at an address the one that traffic shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Likeness {
    /// Being there.
    Address,
    /// Its type as well. AGENT and UNKNOWN may turn out to be anybody.
    Kind,
}

fn is_same(
    known: &Participant,
    wanted: &NewParticipant,
    likeness: Likeness,
    by_profile: bool,
) -> bool {
    let open = |kind| matches!(kind, ParticipantType::Agent | ParticipantType::Unknown);
    let fits = likeness == Likeness::Address
        || known.kind == wanted.kind
        || open(known.kind)
        || open(wanted.kind);
    let same_profile = by_profile
        && known.kind == wanted.kind
        && known.profile_id.is_some()
        && known.profile_id == wanted.profile_id;
    let address = wanted.addresses.first().map(bare);
    same_profile || (fits && known.addresses.iter().any(|own| Some(bare(own)) == address))
}

fn bare(address: &Address) -> &str {
    normalised(address.channel, &address.address)
}
