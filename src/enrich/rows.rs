//! From what the API has to rows: channel, direction, times, what is missing, what is not understood. Pure.
//!
//! Owns the rules of each column. Guarantees: nothing is guessed that the API could have said; the rules
//! that stand in (a channel from the recipients, a direction from the audio channel, a type by address)
//! are the documented ones. A value that cannot be a column's (a time that is none, a channel name that
//! cannot be a partition) is kept in `extra` under the API's own name.
//!
//! Addresses stay as sent, with or without `whatsapp:`; only the comparison of two of them ignores it.

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::fetch::{Fetched, Ledger};
use super::{Close, Enriched, hash, turn};
use crate::api::resource::{self, Communication, Conversation, Recipient, WordTime};
use crate::table::row::{
    self, CommunicationRow, Completeness, ConversationRow, Days, Micros, Participant, Word,
};

/// 2016-01-01: a conversation that closed earlier than the service can have existed has a wrong clock.
const EARLIEST_CLOSE: Timestamp = Timestamp::constant(1_451_606_400, 0);
/// How much later than its announcement was received a conversation may have closed.
const MAX_CLOSE_AHEAD_S: i64 = 86_400;

const UNKNOWN: &str = "UNKNOWN";
const VOICE: &str = "VOICE";
const TRANSCRIPTION: &str = "TRANSCRIPTION";

/// Whether an item of the list has to be fetched alone (see `fetch`).
pub(super) fn lacks_fields(item: &Communication) -> bool {
    let author = item
        .author
        .as_ref()
        .is_some_and(|author| author.address.is_some() && author.channel.is_some());
    let content = item
        .content
        .as_ref()
        .is_some_and(|content| content.r#type.is_some());
    !author
        || !content
        || text(item).is_none()
        || item.recipients.is_none()
        || created_at(item).is_none()
        || item.occurred_at.as_deref().and_then(micros).is_none()
}

/// The rows of a conversation that was read to its end.
pub(super) fn judge(close: &Close, fetched: Fetched, ledger: &Ledger, now: Timestamp) -> Enriched {
    let Fetched {
        conversation,
        communications,
        mut participants,
        participants_whole,
    } = fetched;
    let mut row = empty(close, Completeness::Complete, ledger, now);
    describe(&mut row, conversation);
    let updated_at = row.updated_at.map(Timestamp::from_microsecond);
    let closed_at = close
        .closed_at
        .or_else(|| updated_at?.ok())
        .unwrap_or(close.received_at);
    row.closed_at = Some(closed_at.as_microsecond());
    row.date = day(closed_at, close.received_at);

    participants.sort_by(|a, b| a.id.cmp(&b.id));
    let people = People::new(&participants);
    let mut communications: Vec<_> = communications
        .into_iter()
        .map(|item| communication(&row, &people, item))
        .collect();
    turn::number(&mut communications);
    row.participants = participants.into_iter().map(participant).collect();

    row.communications = communications.len() as i64;
    row.first_communication_at = communications.iter().filter_map(turn::start).min();
    row.last_communication_at = communications.iter().filter_map(turn::start).max();
    let channels: BTreeSet<_> = communications.iter().map(|c| c.channel.as_str()).collect();
    row.channels = channels.into_iter().map(str::to_owned).collect();
    if !participants_whole {
        row.missing.push("participants".to_owned());
    }
    let missing: BTreeSet<_> = communications.iter().flat_map(|c| &c.missing).collect();
    let missing = missing
        .into_iter()
        .map(|name| format!("communications.{name}"));
    row.missing.extend(missing);
    if !row.missing.is_empty() {
        row.completeness = Completeness::Partial;
    }
    row.content_hash = hash::content_hash(&row, &communications);
    Enriched {
        conversation: row,
        communications,
    }
}

/// The row of a conversation that does not exist any more.
pub(super) fn gone(close: &Close, ledger: &Ledger, now: Timestamp) -> Enriched {
    let closed_at = close.closed_at.unwrap_or(close.received_at);
    let mut row = empty(close, Completeness::Gone, ledger, now);
    row.closed_at = Some(closed_at.as_microsecond());
    row.date = day(closed_at, close.received_at);
    row.content_hash = hash::content_hash(&row, &[]);
    Enriched {
        conversation: row,
        communications: Vec::new(),
    }
}

fn empty(
    close: &Close,
    completeness: Completeness,
    ledger: &Ledger,
    now: Timestamp,
) -> ConversationRow {
    ConversationRow {
        conversation_id: close.conversation_id.clone(),
        account_id: close.account_id.clone(),
        configuration_id: None,
        name: None,
        status: None,
        channels: Vec::new(),
        participants: Vec::new(),
        created_at: None,
        closed_at: None,
        updated_at: None,
        first_communication_at: None,
        last_communication_at: None,
        communications: 0,
        metadata: None,
        extra: None,
        completeness,
        missing: Vec::new(),
        pages: i64::from(ledger.pages),
        fetched_singly: i64::from(ledger.fetched_singly),
        api_calls: i64::from(ledger.calls),
        content_hash: String::new(),
        kafka_partition: close.partition,
        kafka_offset: close.offset,
        enriched_at: now.as_microsecond(),
        date: 0,
    }
}

/// Fills in what the conversation says of itself, and names what it should say.
fn describe(row: &mut ConversationRow, from: Conversation) {
    let mut extra = from.unknown;
    row.created_at = time(from.created_at, "createdAt", &mut extra)
        .or_else(|| time(from.date_created, "dateCreated", &mut extra));
    row.updated_at = time(from.updated_at, "updatedAt", &mut extra)
        .or_else(|| time(from.date_updated, "dateUpdated", &mut extra));
    row.account_id = from.account_id.or(row.account_id.take());
    row.configuration_id = from.configuration_id;
    row.name = from.name;
    row.status = from.status;
    row.metadata = from
        .metadata
        .map(|metadata| Value::Object(metadata).to_string());
    row.extra = json(extra);
    for (lacks, name) in [
        (row.account_id.is_none(), "account_id"),
        (row.status.is_none(), "status"),
        (row.created_at.is_none(), "created_at"),
    ] {
        if lacks {
            row.missing.push(name.to_owned());
        }
    }
}

fn participant(from: resource::Participant) -> Participant {
    let address = |from: resource::Address| row::Address {
        channel: from.channel,
        address: from.address,
        channel_id: from.channel_id,
    };
    Participant {
        participant_id: from.id,
        r#type: from.r#type,
        name: from.name,
        profile_id: from.profile_id,
        addresses: from.addresses.into_iter().flatten().map(address).collect(),
    }
}

fn communication(
    conversation: &ConversationRow,
    people: &People<'_>,
    mut item: Communication,
) -> CommunicationRow {
    let person = (item.author.as_ref()).and_then(|author| {
        people.find(author.participant_id.as_deref(), author.address.as_deref())
    });
    let named_channel = channel(&item, person);
    let mut extra = leftovers(&mut item);
    let created_at = time(item.created_at, "createdAt", &mut extra)
        .or_else(|| time(item.date_created, "dateCreated", &mut extra));
    let updated_at = time(item.updated_at, "updatedAt", &mut extra)
        .or_else(|| time(item.date_updated, "dateUpdated", &mut extra));
    let occurred_at = time(item.occurred_at, "occurredAt", &mut extra);
    let author = item.author.unwrap_or_default();
    let content = item.content.unwrap_or_default();
    let text = content.text.or(item.body);
    let transcription = content.transcription.unwrap_or_default();
    let author_type = person.and_then(|person| person.r#type.clone());
    let direction = direction(author_type.as_deref(), transcription.channel);

    let unknown_author = author.participant_id.is_some() && person.is_none();
    let no_author = author.address.is_none() && author.participant_id.is_none();
    let missing = [
        (unknown_author, "author_type"),
        (no_author, "author_address"),
        (content.r#type.is_none(), "content_type"),
        (text.is_none(), "text"),
        (item.recipients.is_none(), "recipients"),
        (created_at.is_none(), "created_at"),
        (named_channel.is_none(), "channel"),
    ];
    CommunicationRow {
        conversation_id: conversation.conversation_id.clone(),
        communication_id: item.id.unwrap_or_default(),
        account_id: item.account_id.or_else(|| conversation.account_id.clone()),
        configuration_id: conversation.configuration_id.clone(),
        position: 0,
        author_participant_id: author.participant_id,
        author_type,
        author_address: author.address,
        author_channel: author.channel,
        direction: direction.map(str::to_owned),
        content_type: content.r#type,
        text,
        transcription_engine: transcription.engine,
        transcription_confidence: transcription.confidence,
        transcription_words: transcription.words.map(|words| self::words(&words)),
        recipients: item
            .recipients
            .map(|list| list.into_iter().map(recipient).collect()),
        channel_id: item.channel_id,
        resource_id: item.resource_id,
        occurred_at,
        created_at,
        updated_at,
        turn: 0,
        missing: (missing.iter())
            .filter(|(lacks, _)| *lacks)
            .map(|(_, name)| (*name).to_owned())
            .collect(),
        extra: json(extra),
        channel: named_channel.unwrap_or_else(|| UNKNOWN.to_owned()),
        date: conversation.date,
    }
}

fn recipient(from: Recipient) -> row::Recipient {
    row::Recipient {
        address: from.address,
        channel: from.channel,
        participant_id: from.participant_id,
        delivery_status: from.delivery_status,
    }
}

/// The text: `content.text`, else `body`.
fn text(item: &Communication) -> Option<&str> {
    let content = item
        .content
        .as_ref()
        .and_then(|content| content.text.as_deref());
    content.or(item.body.as_deref())
}

fn created_at(item: &Communication) -> Option<Micros> {
    [&item.created_at, &item.date_created]
        .into_iter()
        .find_map(|text| micros(text.as_deref()?))
}

/// The channel: `channel`, the author's, a recipient's, that of the author's only address, VOICE for a
/// transcription. The first that is there decides, also if its name cannot be a partition (UNKNOWN).
/// `None` where nothing says it.
fn channel(item: &Communication, author: Option<&resource::Participant>) -> Option<String> {
    let own = item.channel.as_deref();
    let authors = || item.author.as_ref()?.channel.as_deref();
    let recipients = || {
        item.recipients
            .iter()
            .flatten()
            .find_map(|r| r.channel.as_deref())
    };
    let only_address = || match author?.addresses.as_deref()? {
        [only] => only.channel.as_deref(),
        _ => None,
    };
    let transcribed = || {
        let kind = item.content.as_ref()?.r#type.as_deref()?;
        (kind == TRANSCRIPTION).then_some(VOICE)
    };
    let name = present(own)
        .or_else(|| present(authors()))
        .or_else(|| present(recipients()))
        .or_else(|| present(only_address()))
        .or_else(transcribed)?;
    Some(if is_partition(name) { name } else { UNKNOWN }.to_owned())
}

fn present(name: Option<&str>) -> Option<&str> {
    name.filter(|name| !name.is_empty())
}

/// Whether `name` can be a value of the partition column. Hive's word for null is refused, although it
/// has the characters: readers would show null.
fn is_partition(name: &str) -> bool {
    (1..=32).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
        && name != "__HIVE_DEFAULT_PARTITION__"
}

fn direction(author_type: Option<&str>, audio_channel: Option<i64>) -> Option<&'static str> {
    match (author_type, audio_channel) {
        (Some("CUSTOMER"), _) => Some("INBOUND"),
        (Some("HUMAN_AGENT" | "AI_AGENT" | "AGENT"), _) => Some("OUTBOUND"),
        (_, Some(0)) => Some("INBOUND"),
        (_, Some(1)) => Some("OUTBOUND"),
        _ => None,
    }
}

/// Participants by id and by address.
struct People<'a> {
    by_id: HashMap<&'a str, &'a resource::Participant>,
    /// `None` where two participants share the address.
    by_address: HashMap<&'a str, Option<&'a resource::Participant>>,
}

impl<'a> People<'a> {
    fn new(all: &'a [resource::Participant]) -> Self {
        let mut people = People {
            by_id: HashMap::new(),
            by_address: HashMap::new(),
        };
        for person in all {
            if let Some(id) = &person.id {
                people.by_id.insert(id, person);
            }
            let addresses: BTreeSet<_> = (person.addresses.iter().flatten())
                .filter_map(|address| address.address.as_deref().map(bare))
                .collect();
            for address in addresses {
                let shared = people.by_address.contains_key(address);
                people
                    .by_address
                    .insert(address, (!shared).then_some(person));
            }
        }
        people
    }

    /// The participant by id; where no id is given, the only one with the address.
    fn find(&self, id: Option<&str>, address: Option<&str>) -> Option<&'a resource::Participant> {
        match id {
            Some(id) => self.by_id.get(id).copied(),
            None => self.by_address.get(bare(address?)).copied().flatten(),
        }
    }
}

/// An address without WhatsApp's prefix, which Twilio writes or leaves out.
fn bare(address: &str) -> &str {
    address.strip_prefix("whatsapp:").unwrap_or(address)
}

/// Words with milliseconds. A number, or one written as text, is seconds from the start of the
/// transcription; a time is counted from the earliest in the list. What is neither has no value.
fn words(from: &[resource::Word]) -> Vec<Word> {
    let clock = |time: &Option<WordTime>| match time {
        Some(WordTime::Text(text)) => micros(text),
        Some(WordTime::Seconds(_)) | None => None,
    };
    let zero = (from.iter())
        .flat_map(|word| [clock(&word.start_time), clock(&word.end_time)])
        .flatten()
        .min()
        .unwrap_or(0);
    let ms = |time: &Option<WordTime>| match (clock(time), time) {
        (Some(at), _) => Some((at - zero) / 1_000),
        (None, Some(WordTime::Seconds(seconds))) => milliseconds(*seconds),
        (None, Some(WordTime::Text(text))) => {
            milliseconds(text.trim().trim_end_matches('s').parse().ok()?)
        }
        (None, None) => None,
    };
    from.iter()
        .map(|word| Word {
            text: word.text.clone(),
            start_ms: ms(&word.start_time),
            end_ms: ms(&word.end_time),
        })
        .collect()
}

fn milliseconds(seconds: f64) -> Option<i64> {
    let ms = (seconds * 1_000.0).round();
    // Beyond 2^53 a float holds no single milliseconds, and no call has lasted for that.
    (ms.abs() < 9e15).then_some(ms as i64)
}

/// Microseconds of an ISO 8601 time; one without an offset is UTC.
fn micros(text: &str) -> Option<Micros> {
    let at = text.parse::<Timestamp>().or_else(|_| {
        let civil: jiff::civil::DateTime = text.parse()?;
        jiff::tz::Offset::UTC.to_timestamp(civil)
    });
    at.ok().map(Timestamp::as_microsecond)
}

/// The same; a text that is no time goes to `extra`.
fn time(text: Option<String>, name: &str, extra: &mut Map<String, Value>) -> Option<Micros> {
    let text = text?;
    let at = micros(&text);
    if at.is_none() {
        extra.insert(name.to_owned(), Value::String(text));
    }
    at
}

/// The fields of a communication and its parts that this program does not know, under the API's names,
/// and a channel name that could not become the partition.
fn leftovers(item: &mut Communication) -> Map<String, Value> {
    let mut extra = std::mem::take(&mut item.unknown);
    let mut put = |name: &str, fields: Map<String, Value>| {
        if !fields.is_empty() {
            extra.insert(name.to_owned(), Value::Object(fields));
        }
    };
    if let Some(author) = &mut item.author {
        put("author", std::mem::take(&mut author.unknown));
    }
    if let Some(content) = &mut item.content {
        let mut fields = std::mem::take(&mut content.unknown);
        let of_transcription = content.transcription.as_mut();
        let inner = of_transcription.map(|it| std::mem::take(&mut it.unknown));
        if let Some(inner) = inner.filter(|inner| !inner.is_empty()) {
            fields.insert("transcription".to_owned(), Value::Object(inner));
        }
        put("content", fields);
    }
    let recipients = item.recipients.as_deref().unwrap_or_default();
    if recipients
        .iter()
        .any(|recipient| !recipient.unknown.is_empty())
    {
        let all = recipients.iter().map(|r| Value::Object(r.unknown.clone()));
        extra.insert("recipients".to_owned(), all.collect());
    }
    if let Some(name) = present(item.channel.as_deref()).filter(|name| !is_partition(name)) {
        extra.insert("channel".to_owned(), Value::String(name.to_owned()));
    }
    extra
}

fn json(extra: Map<String, Value>) -> Option<String> {
    (!extra.is_empty()).then(|| Value::Object(extra).to_string())
}

/// The UTC day of the partition.
fn day(closed_at: Timestamp, received_at: Timestamp) -> Days {
    let ahead_s = closed_at
        .as_second()
        .saturating_sub(received_at.as_second());
    let odd = closed_at < EARLIEST_CLOSE || ahead_s > MAX_CLOSE_AHEAD_S;
    let counts = if odd { received_at } else { closed_at };
    row::day(counts)
}
