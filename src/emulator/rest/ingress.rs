//! `/emulator/messages`, `/calls` and what they draw on: the world outside the Orchestrator.
//!
//! Owns the bodies of these routes and their bounds. Refuses to know what is captured (`state::ingest`).
//! Each answer of a message or call names the conversations that it went into, and for each configuration
//! and verb that took nothing the reason.
//!
//! Nothing here exists at Twilio, where handsets, classic services and memory stores send by themselves.
//! TwiML that cannot be read is refused with Twilio's numbers for it, 12100 and, where it is too long,
//! 11750.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::{get, post, put};
use serde::{Deserialize, Serialize};

use super::super::Shared;
use super::super::capture::{CallType, End};
use super::super::configuration::{Invalid, at_most};
use super::super::resource::{Channel, ParticipantType};
use super::super::state::ingest::{Call, Message, Report, Utterance};
use super::super::twiml::{self, Malformed};
use super::{Answer, Problem, Sent, json, json_answer};

/// TwiML documents of one call.
const MAX_DOCUMENTS: usize = 10;
/// Utterances of one call.
const MAX_UTTERANCES: usize = 1_000;
/// Characters of an address.
const MAX_ADDRESS_CHARS: usize = 256;
/// Longest utterance.
const MAX_UTTERANCE_S: f64 = 3_600.0;
/// Addresses of one person, in one request.
const MAX_ADDRESSES: usize = 100;
/// Pace of speech where nobody says how long an utterance took (some 150 words a minute).
const SPEECH_CHARS_PER_SECOND: f64 = 15.0;

/// Its routes.
pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/messages", post(message))
        .route("/calls", post(call))
        .route("/profiles", post(unite))
        .route("/memory-stores/{id}", put(switch))
        .route("/bill", get(bill))
}

/// The body of a message.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::emulator) struct NewMessage {
    channel: Channel,
    from: Arc<str>,
    to: Arc<str>,
    #[serde(default)]
    text: Box<str>,
    /// Media are not in a conversation, only the text is: taken, and dropped.
    #[serde(default, rename = "media")]
    _media: Vec<String>,
    #[serde(default)]
    channel_id: Option<Arc<str>>,
    #[serde(default)]
    service_id: Option<Arc<str>>,
    #[serde(default)]
    customer: Option<End>,
}

async fn message(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Sent) -> Answer {
    let report = take_message(&shared, json(&headers, body)?).await?;
    Ok(json_answer(StatusCode::OK, &report))
}

/// Takes a message in, and says what became of it.
pub(in crate::emulator) async fn take_message(
    shared: &Shared,
    new: NewMessage,
) -> Result<Report, Problem> {
    check_ends(&new.from, &new.to)?;
    let chat = new.channel == Channel::Chat;
    if !chat && !matches!(new.channel, Channel::Sms | Channel::Rcs | Channel::Whatsapp) {
        let problem = "is SMS, RCS, WHATSAPP or CHAT; calls have a route of their own";
        return Err(Invalid::new("channel", problem).into());
    }
    if chat
        && !new
            .channel_id
            .as_ref()
            .is_some_and(|id| id.starts_with("CH"))
    {
        let problem = "is the SID of the classic conversation, which begins with CH";
        return Err(Invalid::new("channelId", problem).into());
    }
    if chat && new.service_id.is_none() {
        let problem = "is the SID of the classic service, which begins with IS";
        return Err(Invalid::new("serviceId", problem).into());
    }
    let message = Message {
        channel: new.channel,
        from: new.from,
        to: new.to,
        text: new.text,
        channel_id: new.channel_id.filter(|_| chat),
        service: new.service_id.filter(|_| chat),
        customer: new.customer,
    };
    let report = shared.take_in(|state, seed, at| state.message(&message, seed, at));
    Ok(report.await)
}

/// The body of a call.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::emulator) struct NewCall {
    from: Arc<str>,
    to: Arc<str>,
    #[serde(default)]
    call_type: CallType,
    #[serde(default)]
    customer: Option<End>,
    #[serde(default)]
    twiml: Twiml,
    #[serde(default)]
    utterances: Vec<NewUtterance>,
}

/// One document, or several that are played one after the other.
#[derive(Deserialize)]
#[serde(untagged)]
enum Twiml {
    One(String),
    Several(Vec<String>),
}

impl Default for Twiml {
    fn default() -> Self {
        Twiml::Several(Vec::new())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NewUtterance {
    by: ParticipantType,
    text: Box<str>,
    /// How long it took; by the length of the text where it is left out.
    #[serde(default)]
    seconds: Option<f64>,
    /// The document that was playing; the last utterance's where it is left out, 0 at first.
    #[serde(default)]
    document: Option<usize>,
}

async fn call(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Sent) -> Answer {
    let report = take_call(&shared, json(&headers, body)?).await?;
    Ok(json_answer(StatusCode::OK, &report))
}

/// Takes a call in, and says what became of it.
pub(in crate::emulator) async fn take_call(
    shared: &Shared,
    new: NewCall,
) -> Result<Report, Problem> {
    check_ends(&new.from, &new.to)?;
    let texts = match new.twiml {
        Twiml::One(text) => vec![text],
        Twiml::Several(texts) => texts,
    };
    at_most("twiml", texts.len(), MAX_DOCUMENTS)?;
    let documents = texts.iter().map(|text| twiml::parse(text));
    let documents = documents.collect::<Result<Vec<_>, Malformed>>()?;
    let call = Call {
        utterances: utterances(new.utterances, documents.len())?,
        from: new.from,
        to: new.to,
        call_type: new.call_type,
        customer: new.customer,
        documents,
    };
    let report = shared.take_in(|state, seed, at| state.call(&call, seed, at));
    Ok(report.await)
}

fn utterances(new: Vec<NewUtterance>, documents: usize) -> Result<Vec<Utterance>, Problem> {
    at_most("utterances", new.len(), MAX_UTTERANCES)?;
    let mut playing = 0;
    let checked = new.into_iter().enumerate().map(|(place, new)| {
        let invalid = |field: &str, problem: &str| {
            Invalid::new(format!("utterances[{place}].{field}"), problem)
        };
        let speaks = matches!(
            new.by,
            ParticipantType::Customer | ParticipantType::AiAgent | ParticipantType::HumanAgent
        );
        if !speaks {
            return Err(invalid("by", "is CUSTOMER, AI_AGENT or HUMAN_AGENT"));
        }
        let document = new.document.unwrap_or(playing);
        if document < playing || document >= documents.max(1) {
            return Err(invalid(
                "document",
                "is a position in twiml, and none before the last",
            ));
        }
        playing = document;
        let by_length = new.text.chars().count() as f64 / SPEECH_CHARS_PER_SECOND;
        let seconds = new.seconds.unwrap_or(by_length.clamp(1.0, MAX_UTTERANCE_S));
        if !(0.0..=MAX_UTTERANCE_S).contains(&seconds) {
            return Err(invalid("seconds", "is a number from 0 to 3600"));
        }
        Ok(Utterance {
            by: new.by,
            text: new.text,
            milliseconds: (seconds * 1_000.0).round() as u32,
            document,
        })
    });
    Ok(checked.collect::<Result<_, Invalid>>()?)
}

fn check_ends(from: &str, to: &str) -> Result<(), Problem> {
    for (field, address) in [("from", from), ("to", to)] {
        check_address(field, address)?;
    }
    Ok(())
}

fn check_address(field: &str, address: &str) -> Result<(), Invalid> {
    let chars = address.chars().count();
    match (1..=MAX_ADDRESS_CHARS).contains(&chars) && address != "*" {
        true => Ok(()),
        false => Err(Invalid::new(field, "is an address of 1 to 256 characters")),
    }
}

#[derive(Deserialize)]
struct Person {
    addresses: Vec<Arc<str>>,
}

/// These addresses are one person's from now on.
async fn unite(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Sent) -> Answer {
    let Person { addresses } = json(&headers, body)?;
    at_most("addresses", addresses.len(), MAX_ADDRESSES)?;
    for (place, address) in addresses.iter().enumerate() {
        check_address(&format!("addresses[{place}]"), address)?;
    }
    shared.memory(|memory| memory.unite(&addresses)).await?;
    #[derive(Serialize)]
    struct Shown {
        addresses: Vec<Arc<str>>,
    }
    Ok(json_answer(StatusCode::OK, &Shown { addresses }))
}

#[derive(Serialize, Deserialize)]
struct Store {
    alive: bool,
}

/// Whether a memory store can be reached from now on.
async fn switch(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Sent,
) -> Answer {
    let store: Store = json(&headers, body)?;
    shared
        .memory(|memory| memory.switch(id.into(), store.alive))
        .await?;
    Ok(json_answer(StatusCode::OK, &store))
}

async fn bill(State(shared): State<Arc<Shared>>) -> Response {
    shared.catch_up().await;
    json_answer(StatusCode::OK, shared.state().bill())
}

impl From<Malformed> for Problem {
    fn from(malformed: Malformed) -> Self {
        let code = match malformed {
            Malformed::TooLong => 11_750,
            Malformed::TooDeep
            | Malformed::TooManyListeners
            | Malformed::DocumentType
            | Malformed::NotAResponse
            | Malformed::Xml(_) => 12_100,
        };
        Problem::new(StatusCode::BAD_REQUEST, code, malformed.to_string())
    }
}
