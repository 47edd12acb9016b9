//! Arrow record batches back as rows: the reverse of [`super::batch`], for those who check what was written.
//!
//! A column that a file lacks is null, and an optional one is then `None`; a required one that is null reads as
//! empty, so that a check finds it different.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StructArray};
use arrow::datatypes::{Date32Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType};

use super::row::{
    Address, CommunicationRow, Completeness, ConversationRow, Days, Micros, Participant, Recipient,
    Word,
};

/// The rows of a batch of `communications` with all its columns.
pub fn communications(batch: &RecordBatch) -> Vec<CommunicationRow> {
    let rows = Rows(batch);
    (0..batch.num_rows())
        .map(|row| CommunicationRow {
            conversation_id: rows.required("conversation_id", row),
            communication_id: rows.required("communication_id", row),
            account_id: rows.text("account_id", row),
            configuration_id: rows.text("configuration_id", row),
            position: rows.long("position", row).unwrap_or_default(),
            author_participant_id: rows.text("author_participant_id", row),
            author_type: rows.text("author_type", row),
            author_address: rows.text("author_address", row),
            author_channel: rows.text("author_channel", row),
            direction: rows.text("direction", row),
            content_type: rows.text("content_type", row),
            text: rows.text("text", row),
            transcription_engine: rows.text("transcription_engine", row),
            transcription_confidence: rows.double("transcription_confidence", row),
            transcription_words: rows.list("transcription_words", row, word),
            recipients: rows.list("recipients", row, recipient),
            channel_id: rows.text("channel_id", row),
            resource_id: rows.text("resource_id", row),
            occurred_at: rows.time("occurred_at", row),
            created_at: rows.time("created_at", row),
            updated_at: rows.time("updated_at", row),
            turn: rows.long("turn", row).unwrap_or_default(),
            missing: rows.texts("missing", row),
            extra: rows.text("extra", row),
            channel: rows.required("channel", row),
            date: rows.day("date", row),
        })
        .collect()
}

/// The rows of a batch of `conversations` with all its columns. A completeness of a newer version is the
/// least claim, GONE.
pub fn conversations(batch: &RecordBatch) -> Vec<ConversationRow> {
    let rows = Rows(batch);
    (0..batch.num_rows())
        .map(|row| ConversationRow {
            conversation_id: rows.required("conversation_id", row),
            account_id: rows.text("account_id", row),
            configuration_id: rows.text("configuration_id", row),
            name: rows.text("name", row),
            status: rows.text("status", row),
            channels: rows.texts("channels", row),
            participants: rows
                .list("participants", row, participant)
                .unwrap_or_default(),
            created_at: rows.time("created_at", row),
            closed_at: rows.time("closed_at", row),
            updated_at: rows.time("updated_at", row),
            first_communication_at: rows.time("first_communication_at", row),
            last_communication_at: rows.time("last_communication_at", row),
            communications: rows.long("communications", row).unwrap_or_default(),
            metadata: rows.text("metadata", row),
            extra: rows.text("extra", row),
            completeness: Completeness::from_column(&rows.required("completeness", row))
                .unwrap_or(Completeness::Gone),
            missing: rows.texts("missing", row),
            pages: rows.long("pages", row).unwrap_or_default(),
            fetched_singly: rows.long("fetched_singly", row).unwrap_or_default(),
            api_calls: rows.long("api_calls", row).unwrap_or_default(),
            content_hash: rows.required("content_hash", row),
            kafka_partition: rows.int("kafka_partition", row).unwrap_or_default(),
            kafka_offset: rows.long("kafka_offset", row).unwrap_or_default(),
            enriched_at: rows.time("enriched_at", row).unwrap_or_default(),
            date: rows.day("date", row),
        })
        .collect()
}

/// Columns by name; none where a batch lacks one.
trait Columns {
    fn column(&self, name: &str) -> Option<&ArrayRef>;

    fn present(&self, name: &str, row: usize) -> Option<&ArrayRef> {
        self.column(name).filter(|column| column.is_valid(row))
    }

    fn text(&self, name: &str, row: usize) -> Option<String> {
        let column = self.present(name, row)?;
        Some(column.as_string::<i32>().value(row).to_owned())
    }

    fn required(&self, name: &str, row: usize) -> String {
        self.text(name, row).unwrap_or_default()
    }

    fn long(&self, name: &str, row: usize) -> Option<i64> {
        let column = self.present(name, row)?;
        Some(column.as_primitive::<Int64Type>().value(row))
    }

    fn int(&self, name: &str, row: usize) -> Option<i32> {
        let column = self.present(name, row)?;
        Some(column.as_primitive::<Int32Type>().value(row))
    }

    fn double(&self, name: &str, row: usize) -> Option<f64> {
        let column = self.present(name, row)?;
        Some(column.as_primitive::<Float64Type>().value(row))
    }

    fn time(&self, name: &str, row: usize) -> Option<Micros> {
        let column = self.present(name, row)?;
        Some(column.as_primitive::<TimestampMicrosecondType>().value(row))
    }

    fn day(&self, name: &str, row: usize) -> Days {
        self.present(name, row)
            .map_or(0, |column| column.as_primitive::<Date32Type>().value(row))
    }

    fn texts(&self, name: &str, row: usize) -> Vec<String> {
        let Some(column) = self.present(name, row) else {
            return Vec::new();
        };
        let values = column.as_list::<i32>().value(row);
        let values = values.as_string::<i32>();
        values.iter().flatten().map(str::to_owned).collect()
    }

    /// The elements of a list of structs; `None` where the list is null.
    fn list<E>(
        &self,
        name: &str,
        row: usize,
        element: impl Fn(&StructArray, usize) -> E,
    ) -> Option<Vec<E>> {
        let values = self.present(name, row)?.as_list::<i32>().value(row);
        let values = values.as_struct();
        Some((0..values.len()).map(|at| element(values, at)).collect())
    }
}

struct Rows<'a>(&'a RecordBatch);

impl Columns for Rows<'_> {
    fn column(&self, name: &str) -> Option<&ArrayRef> {
        self.0.column_by_name(name)
    }
}

impl Columns for StructArray {
    fn column(&self, name: &str) -> Option<&ArrayRef> {
        self.column_by_name(name)
    }
}

fn word(from: &StructArray, at: usize) -> Word {
    Word {
        text: from.text("text", at),
        start_ms: from.long("start_ms", at),
        end_ms: from.long("end_ms", at),
    }
}

fn recipient(from: &StructArray, at: usize) -> Recipient {
    Recipient {
        address: from.text("address", at),
        channel: from.text("channel", at),
        participant_id: from.text("participant_id", at),
        delivery_status: from.text("delivery_status", at),
    }
}

fn participant(from: &StructArray, at: usize) -> Participant {
    let address = |from: &StructArray, at| Address {
        channel: from.text("channel", at),
        address: from.text("address", at),
        channel_id: from.text("channel_id", at),
    };
    Participant {
        participant_id: from.text("participant_id", at),
        r#type: from.text("type", at),
        name: from.text("name", at),
        profile_id: from.text("profile_id", at),
        addresses: from.list("addresses", at, address).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::table::{communications_batch, conversations_batch};

    fn text() -> impl Strategy<Value = Option<String>> {
        prop::option::of("[a-zé😀 ]{0,6}")
    }

    fn texts() -> impl Strategy<Value = Vec<String>> {
        prop::collection::vec("[a-z]{0,4}", 0..3)
    }

    prop_compose! {
        fn some_communication()(
            short in prop::collection::vec(text(), 13),
            times in prop::collection::vec(prop::option::of(any::<i64>()), 3),
            numbers in any::<(i64, i64, i32)>(),
            confidence in prop::option::of(0.0..1.0f64),
            words in prop::option::of(prop::collection::vec((text(), any::<Option<i64>>()), 0..3)),
            people in prop::option::of(prop::collection::vec((text(), text()), 0..3)),
            missing in texts(),
        ) -> CommunicationRow {
            let mut short = short.into_iter();
            let mut next = || short.next().flatten();
            CommunicationRow {
                conversation_id: "v".to_owned(),
                communication_id: "c".to_owned(),
                account_id: next(),
                configuration_id: next(),
                position: numbers.0,
                author_participant_id: next(),
                author_type: next(),
                author_address: next(),
                author_channel: next(),
                direction: next(),
                content_type: next(),
                text: next(),
                transcription_engine: next(),
                transcription_confidence: confidence,
                transcription_words: words.map(|words| words.into_iter().map(|(text, ms)| Word {
                    text, start_ms: ms, end_ms: None,
                }).collect()),
                recipients: people.map(|people| people.into_iter().map(|(address, status)| Recipient {
                    address, channel: None, participant_id: None, delivery_status: status,
                }).collect()),
                channel_id: next(),
                resource_id: next(),
                occurred_at: times[0],
                created_at: times[1],
                updated_at: times[2],
                turn: numbers.1,
                missing,
                extra: next(),
                channel: "SMS".to_owned(),
                date: numbers.2,
            }
        }
    }

    prop_compose! {
        fn some_conversation()(
            short in prop::collection::vec(text(), 8),
            times in prop::collection::vec(prop::option::of(any::<i64>()), 5),
            numbers in any::<(i64, i64, i32)>(),
            people in prop::collection::vec((text(), prop::collection::vec(text(), 0..3)), 0..3),
            lists in (texts(), texts()),
            whole in any::<bool>(),
        ) -> ConversationRow {
            let mut short = short.into_iter();
            let mut next = || short.next().flatten();
            ConversationRow {
                conversation_id: "v".to_owned(),
                account_id: next(),
                configuration_id: next(),
                name: next(),
                status: next(),
                channels: lists.0,
                participants: people.into_iter().map(|(name, addresses)| Participant {
                    participant_id: None,
                    r#type: Some("CUSTOMER".to_owned()),
                    name,
                    profile_id: None,
                    addresses: addresses.into_iter().map(|address| Address {
                        channel: None, address, channel_id: None,
                    }).collect(),
                }).collect(),
                created_at: times[0],
                closed_at: times[1],
                updated_at: times[2],
                first_communication_at: times[3],
                last_communication_at: times[4],
                communications: numbers.0,
                metadata: next(),
                extra: next(),
                completeness: if whole { Completeness::Complete } else { Completeness::Partial },
                missing: lists.1,
                pages: numbers.1,
                fetched_singly: 1,
                api_calls: 2,
                content_hash: "ab".to_owned(),
                kafka_partition: numbers.2,
                kafka_offset: 9,
                enriched_at: 8,
                date: numbers.2,
            }
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_back_the_same(
            communication in some_communication(), conversation in some_conversation(),
        ) {
            let batch = communications_batch([&communication]);
            prop_assert_eq!(communications(&batch), [communication]);
            let batch = conversations_batch([&conversation]);
            prop_assert_eq!(conversations(&batch), [conversation]);
        }
    }
}
