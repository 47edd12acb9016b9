//! A hash over what a conversation's rows say: equal for two enrichments that learned the same.
//!
//! Guarantees: it does not depend on pages, fetches, calls, nor on how the close was delivered, so the
//! ledger, the record's position, the times of receipt and `date` take no part. Every value is preceded
//! by whether it is there and by its length, so that no two different rows run together into the same
//! bytes.

use sha2::{Digest, Sha256};

use crate::table::row::{CommunicationRow, ConversationRow};

/// Raised when what takes part changes, so that hashes of two releases are never compared by accident.
const VERSION: &str = "1";

/// Hex SHA-256 over `conversation` and `communications` (by position). Left out: `closed_at` (the
/// announcement's), `date`, `pages`, `fetched_singly`, `api_calls`, `content_hash`, `kafka_partition`,
/// `kafka_offset`, `enriched_at`.
pub fn content_hash(conversation: &ConversationRow, communications: &[CommunicationRow]) -> String {
    let mut hash = Fields(Sha256::new());
    hash.text(VERSION);
    hash.conversation(conversation);
    hash.count(communications.len());
    for communication in communications {
        hash.communication(communication);
    }
    let digest: [u8; 32] = hash.0.finalize().into();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Fields(Sha256);

impl Fields {
    fn conversation(&mut self, row: &ConversationRow) {
        self.text(&row.conversation_id);
        self.texts(&[
            &row.account_id,
            &row.configuration_id,
            &row.name,
            &row.status,
        ]);
        self.list(&row.channels);
        self.count(row.participants.len());
        for participant in &row.participants {
            self.texts(&[
                &participant.participant_id,
                &participant.r#type,
                &participant.name,
                &participant.profile_id,
            ]);
            self.count(participant.addresses.len());
            for address in &participant.addresses {
                self.texts(&[&address.channel, &address.address, &address.channel_id]);
            }
        }
        for time in [
            row.created_at,
            row.updated_at,
            row.first_communication_at,
            row.last_communication_at,
        ] {
            self.number(time);
        }
        self.texts(&[&row.metadata, &row.extra]);
        self.text(row.completeness.as_str());
        self.list(&row.missing);
    }

    fn communication(&mut self, row: &CommunicationRow) {
        self.text(&row.communication_id);
        self.texts(&[
            &row.account_id,
            &row.configuration_id,
            &row.author_participant_id,
            &row.author_type,
            &row.author_address,
            &row.author_channel,
            &row.direction,
            &row.content_type,
            &row.text,
            &row.transcription_engine,
            &row.channel_id,
            &row.resource_id,
            &row.extra,
        ]);
        let confidence = row.transcription_confidence.map(f64::to_bits);
        self.optional(
            confidence
                .map(u64::to_be_bytes)
                .as_ref()
                .map(<[u8; 8]>::as_slice),
        );
        self.number(
            row.transcription_words
                .as_ref()
                .map(|words| words.len() as i64),
        );
        for word in row.transcription_words.iter().flatten() {
            self.texts(&[&word.text]);
            self.number(word.start_ms);
            self.number(word.end_ms);
        }
        self.number(row.recipients.as_ref().map(|list| list.len() as i64));
        for recipient in row.recipients.iter().flatten() {
            self.texts(&[
                &recipient.address,
                &recipient.channel,
                &recipient.participant_id,
                &recipient.delivery_status,
            ]);
        }
        for time in [row.occurred_at, row.created_at, row.updated_at] {
            self.number(time);
        }
        self.number(Some(row.position));
        self.number(Some(row.turn));
        self.list(&row.missing);
        self.text(&row.channel);
    }

    fn list(&mut self, values: &[String]) {
        self.count(values.len());
        for value in values {
            self.text(value);
        }
    }

    fn texts(&mut self, values: &[&Option<String>]) {
        for value in values {
            self.optional(value.as_deref().map(str::as_bytes));
        }
    }

    fn text(&mut self, value: &str) {
        self.optional(Some(value.as_bytes()));
    }

    fn number(&mut self, value: Option<i64>) {
        self.optional(
            value
                .map(i64::to_be_bytes)
                .as_ref()
                .map(<[u8; 8]>::as_slice),
        );
    }

    fn count(&mut self, count: usize) {
        self.number(Some(count as i64));
    }

    fn optional(&mut self, value: Option<&[u8]>) {
        match value {
            None => self.0.update([0]),
            Some(bytes) => {
                self.0.update([1]);
                self.0.update((bytes.len() as u64).to_be_bytes());
                self.0.update(bytes);
            }
        }
    }
}
