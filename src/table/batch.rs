//! Rows as Arrow record batches, in the order of a file.
//!
//! A batch holds what one flush holds. Arrow counts the bytes of a text column in 31 bits, so a batch must stay
//! below 2 GiB of text in any column; a flush is bounded by its caller far below that.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, Date32Array, Float64Array, Int32Array, Int64Array, ListArray, RecordBatch,
    StringArray, StructArray, TimestampMicrosecondArray,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field};

use super::columns::{ADDRESS, PARTICIPANT, RECIPIENT, WORD};
use super::row::{
    Address, CommunicationRow, ConversationRow, EventRow, Micros, Participant, Recipient, Word,
};
use super::{Kind, TableName, schema};

/// Rows of `communications`, sorted by conversation, time, position.
pub fn communications_batch<'a>(
    rows: impl IntoIterator<Item = &'a CommunicationRow>,
) -> RecordBatch {
    let rows = sorted(rows, |a, b| {
        (&a.conversation_id, a.occurred_at, a.position).cmp(&(
            &b.conversation_id,
            b.occurred_at,
            b.position,
        ))
    });
    let rows = rows.as_slice();
    batch(
        TableName::Communications,
        vec![
            text(rows, |r| Some(&r.conversation_id)),
            text(rows, |r| Some(&r.communication_id)),
            text(rows, |r| r.account_id.as_ref()),
            text(rows, |r| r.configuration_id.as_ref()),
            long(rows, |r| Some(r.position)),
            text(rows, |r| r.author_participant_id.as_ref()),
            text(rows, |r| r.author_type.as_ref()),
            text(rows, |r| r.author_address.as_ref()),
            text(rows, |r| r.author_channel.as_ref()),
            text(rows, |r| r.direction.as_ref()),
            text(rows, |r| r.content_type.as_ref()),
            text(rows, |r| r.text.as_ref()),
            text(rows, |r| r.transcription_engine.as_ref()),
            Arc::new(Float64Array::from_iter(
                rows.iter().map(|r| r.transcription_confidence),
            )),
            list(
                rows,
                &WORD,
                |r| r.transcription_words.as_deref(),
                word_fields,
            ),
            list(
                rows,
                &RECIPIENT,
                |r| r.recipients.as_deref(),
                recipient_fields,
            ),
            text(rows, |r| r.channel_id.as_ref()),
            text(rows, |r| r.resource_id.as_ref()),
            time(rows, |r| r.occurred_at),
            time(rows, |r| r.created_at),
            time(rows, |r| r.updated_at),
            long(rows, |r| Some(r.turn)),
            texts(rows, |r| &r.missing),
            text(rows, |r| r.extra.as_ref()),
            text(rows, |r| Some(&r.channel)),
            day(rows, |r| r.date),
        ],
    )
}

/// Rows of `conversations`, sorted by conversation.
pub fn conversations_batch<'a>(rows: impl IntoIterator<Item = &'a ConversationRow>) -> RecordBatch {
    let rows = sorted(rows, |a, b| a.conversation_id.cmp(&b.conversation_id));
    let rows = rows.as_slice();
    batch(
        TableName::Conversations,
        vec![
            text(rows, |r| Some(&r.conversation_id)),
            text(rows, |r| r.account_id.as_ref()),
            text(rows, |r| r.configuration_id.as_ref()),
            text(rows, |r| r.name.as_ref()),
            text(rows, |r| r.status.as_ref()),
            texts(rows, |r| &r.channels),
            list(
                rows,
                &PARTICIPANT,
                |r| Some(&r.participants[..]),
                participant_fields,
            ),
            time(rows, |r| r.created_at),
            time(rows, |r| r.closed_at),
            time(rows, |r| r.updated_at),
            time(rows, |r| r.first_communication_at),
            time(rows, |r| r.last_communication_at),
            long(rows, |r| Some(r.communications)),
            text(rows, |r| r.metadata.as_ref()),
            text(rows, |r| r.extra.as_ref()),
            Arc::new(StringArray::from_iter_values(
                rows.iter().map(|r| r.completeness.as_str()),
            )),
            texts(rows, |r| &r.missing),
            long(rows, |r| Some(r.pages)),
            long(rows, |r| Some(r.fetched_singly)),
            long(rows, |r| Some(r.api_calls)),
            text(rows, |r| Some(&r.content_hash)),
            int(rows, |r| r.kafka_partition),
            long(rows, |r| Some(r.kafka_offset)),
            time(rows, |r| Some(r.enriched_at)),
            day(rows, |r| r.date),
        ],
    )
}

/// Rows of `events`, sorted by the time received, then by their place in the topic.
pub fn events_batch<'a>(rows: impl IntoIterator<Item = &'a EventRow>) -> RecordBatch {
    let rows = sorted(rows, |a, b| {
        (a.received_at, a.kafka_partition, a.kafka_offset).cmp(&(
            b.received_at,
            b.kafka_partition,
            b.kafka_offset,
        ))
    });
    let rows = rows.as_slice();
    batch(
        TableName::Events,
        vec![
            text(rows, |r| Some(&r.event_id)),
            text(rows, |r| Some(&r.event_type)),
            text(rows, |r| Some(&r.conversation_id)),
            time(rows, |r| r.occurred_at),
            time(rows, |r| Some(r.received_at)),
            text(rows, |r| r.idempotency_token.as_ref()),
            text(rows, |r| Some(&r.body)),
            int(rows, |r| r.kafka_partition),
            long(rows, |r| Some(r.kafka_offset)),
            day(rows, |r| r.date),
        ],
    )
}

fn batch(table: TableName, columns: Vec<ArrayRef>) -> RecordBatch {
    RecordBatch::try_new(schema(table), columns)
        .expect("the columns above are those of the schema, in its order")
}

fn sorted<'a, R>(
    rows: impl IntoIterator<Item = &'a R>,
    order: impl Fn(&R, &R) -> Ordering,
) -> Vec<&'a R> {
    let mut rows: Vec<&R> = rows.into_iter().collect();
    rows.sort_by(|a, b| order(a, b));
    rows
}

fn text<R>(rows: &[&R], get: impl Fn(&R) -> Option<&String>) -> ArrayRef {
    Arc::new(StringArray::from_iter(rows.iter().map(|r| get(r))))
}

fn long<R>(rows: &[&R], get: impl Fn(&R) -> Option<i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter(rows.iter().map(|r| get(r))))
}

fn int<R>(rows: &[&R], get: impl Fn(&R) -> i32) -> ArrayRef {
    Arc::new(Int32Array::from_iter_values(rows.iter().map(|r| get(r))))
}

fn day<R>(rows: &[&R], get: impl Fn(&R) -> i32) -> ArrayRef {
    Arc::new(Date32Array::from_iter_values(rows.iter().map(|r| get(r))))
}

fn time<R>(rows: &[&R], get: impl Fn(&R) -> Option<Micros>) -> ArrayRef {
    let times = TimestampMicrosecondArray::from_iter(rows.iter().map(|r| get(r)));
    Arc::new(times.with_timezone("UTC"))
}

fn texts<R>(rows: &[&R], get: impl Fn(&R) -> &Vec<String>) -> ArrayRef {
    let values = StringArray::from_iter_values(rows.iter().flat_map(|r| get(r)));
    let offsets = OffsetBuffer::from_lengths(rows.iter().map(|r| get(r).len()));
    let element = Arc::new(Field::new("element", DataType::Utf8, true));
    Arc::new(ListArray::new(element, offsets, Arc::new(values), None))
}

/// A list of structs: `get` gives a row's elements (none: null), `fields` turns all rows' elements into columns.
fn list<R, E>(
    rows: &[&R],
    kind: &Kind,
    get: impl Fn(&R) -> Option<&[E]>,
    fields: impl Fn(&[&E]) -> Vec<ArrayRef>,
) -> ArrayRef {
    let elements: Vec<&E> = rows.iter().flat_map(|r| get(r).unwrap_or(&[])).collect();
    let offsets = OffsetBuffer::from_lengths(rows.iter().map(|r| get(r).map_or(0, <[E]>::len)));
    let nulls = NullBuffer::from_iter(rows.iter().map(|r| get(r).is_some()));
    let nulls = (nulls.null_count() > 0).then_some(nulls);
    let DataType::Struct(names) = kind.to_arrow() else {
        unreachable!("lists of structs are described by a struct");
    };
    let structs = StructArray::try_new_with_length(names, fields(&elements), None, elements.len())
        .expect("the fields below are those of the kind, in its order");
    let element = Arc::new(Field::new("element", structs.data_type().clone(), true));
    Arc::new(ListArray::new(element, offsets, Arc::new(structs), nulls))
}

fn word_fields(words: &[&Word]) -> Vec<ArrayRef> {
    vec![
        text(words, |w| w.text.as_ref()),
        long(words, |w| w.start_ms),
        long(words, |w| w.end_ms),
    ]
}

fn recipient_fields(recipients: &[&Recipient]) -> Vec<ArrayRef> {
    vec![
        text(recipients, |r| r.address.as_ref()),
        text(recipients, |r| r.channel.as_ref()),
        text(recipients, |r| r.participant_id.as_ref()),
        text(recipients, |r| r.delivery_status.as_ref()),
    ]
}

fn address_fields(addresses: &[&Address]) -> Vec<ArrayRef> {
    vec![
        text(addresses, |a| a.channel.as_ref()),
        text(addresses, |a| a.address.as_ref()),
        text(addresses, |a| a.channel_id.as_ref()),
    ]
}

fn participant_fields(participants: &[&Participant]) -> Vec<ArrayRef> {
    vec![
        text(participants, |p| p.participant_id.as_ref()),
        text(participants, |p| p.r#type.as_ref()),
        text(participants, |p| p.name.as_ref()),
        text(participants, |p| p.profile_id.as_ref()),
        list(
            participants,
            &ADDRESS,
            |p| Some(&p.addresses[..]),
            address_fields,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use arrow::datatypes::Int64Type;

    use super::*;

    #[test]
    fn communications_come_sorted_with_their_lists() {
        let row = |conversation: &str, occurred_at, position, words: Option<Vec<Word>>| {
            CommunicationRow {
                conversation_id: conversation.to_owned(),
                communication_id: format!("{conversation}-{position}"),
                position,
                occurred_at,
                transcription_words: words,
                missing: vec!["text".to_owned(); position as usize],
                channel: "VOICE".to_owned(),
                date: 20_000,
                ..CommunicationRow::default()
            }
        };
        let word = Word {
            text: Some("hi".to_owned()),
            start_ms: Some(3),
            end_ms: None,
        };
        let rows = [
            row("b", Some(1), 0, None),
            row("a", Some(9), 2, Some(vec![word.clone(), word])),
            row("a", Some(9), 1, Some(vec![])),
        ];
        let batch = communications_batch(&rows);
        let ids = batch["communication_id"].as_string::<i32>();
        assert_eq!(
            ids.iter().flatten().collect::<Vec<_>>(),
            ["a-1", "a-2", "b-0"]
        );
        let words = batch["transcription_words"].as_list::<i32>();
        assert_eq!(
            [words.is_null(0), words.is_null(1), words.is_null(2)],
            [false, false, true]
        );
        assert_eq!([words.value_length(0), words.value_length(1)], [0, 2]);
        let starts = words.value(1);
        let starts = starts
            .as_struct()
            .column(1)
            .as_primitive::<Int64Type>()
            .clone();
        assert_eq!(starts.values(), &[3, 3]);
        assert_eq!(batch["missing"].as_list::<i32>().value_length(1), 2);
    }

    #[test]
    fn no_rows_are_an_empty_batch_with_every_column() {
        for (table, batch) in [
            (TableName::Communications, communications_batch(&[])),
            (TableName::Conversations, conversations_batch(&[])),
            (TableName::Events, events_batch(&[])),
        ] {
            assert_eq!((batch.num_rows(), batch.schema()), (0, schema(table)));
        }
    }
}
