//! The promises of a commit, each against a real log in a folder of its own.

mod commits;
mod faults;
mod interleavings;
mod lookups;
mod opening;
mod store;
mod vacuum;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use tempfile::TempDir;

use super::*;
use crate::table::row::{CommunicationRow, ConversationRow, EventRow};
use crate::table::{communications_batch, conversations_batch, events_batch};

const APP: &str = "convolake/group/cluster/topic/0";

async fn open(root: &Path) -> Lake {
    Lake::open(root.to_str().unwrap(), Access::Create)
        .await
        .unwrap()
}

fn position(from: Option<i64>, to: i64) -> Vec<Position> {
    vec![Position {
        app: APP.to_owned(),
        from,
        to,
    }]
}

/// `count` communications of one conversation.
fn communications(conversation: &str, count: i64) -> Vec<CommunicationRow> {
    (0..count)
        .map(|position| CommunicationRow {
            conversation_id: conversation.to_owned(),
            communication_id: format!("{conversation}-{position}"),
            position,
            text: Some(format!("text {position} 'quoted' 😀")),
            occurred_at: Some(1_790_000_000_000_000 + position),
            channel: ["VOICE", "SMS"][usize::try_from(position % 2).unwrap()].to_owned(),
            date: 20_700,
            ..CommunicationRow::default()
        })
        .collect()
}

fn conversation(id: &str, completeness: Completeness) -> ConversationRow {
    ConversationRow {
        conversation_id: id.to_owned(),
        account_id: None,
        configuration_id: None,
        name: None,
        status: Some("CLOSED".to_owned()),
        channels: vec!["SMS".to_owned(), "VOICE".to_owned()],
        participants: vec![],
        created_at: None,
        closed_at: Some(1_790_000_000_000_000),
        updated_at: None,
        first_communication_at: None,
        last_communication_at: None,
        communications: 2,
        metadata: None,
        extra: None,
        completeness,
        missing: vec![],
        pages: 1,
        fetched_singly: 0,
        api_calls: 3,
        content_hash: "00".to_owned(),
        kafka_partition: 0,
        kafka_offset: 7,
        enriched_at: 1_790_000_000_000_000,
        date: 20_700,
    }
}

fn event(offset: i64) -> EventRow {
    EventRow {
        event_id: format!("e{offset}"),
        event_type: "CONVERSATION_UPDATED".to_owned(),
        conversation_id: "c".to_owned(),
        occurred_at: None,
        received_at: 1_790_000_000_000_000 + offset,
        idempotency_token: None,
        body: "{}".to_owned(),
        kafka_partition: 0,
        kafka_offset: offset,
        date: 20_700,
    }
}

fn rows(rows: &[CommunicationRow]) -> Commit {
    Commit {
        rows: vec![communications_batch(rows)],
        ..Commit::default()
    }
}

fn ids(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

/// Every (conversation, position) of a table of communications, sorted.
async fn content(table: &Table) -> Vec<(String, i64)> {
    let mut batches = table.read(&["conversation_id", "position"]).await.unwrap();
    let mut found = Vec::new();
    while let Some(batch) = batches.next().await {
        let batch = batch.unwrap();
        let conversations = batch.column(0).as_string::<i32>().iter().flatten();
        let positions = batch.column(1).as_primitive::<Int64Type>().values();
        found.extend(conversations.map(str::to_owned).zip(positions.to_vec()));
    }
    found.sort();
    found
}

fn pairs(conversation: &str, count: i64) -> Vec<(String, i64)> {
    (0..count).map(|p| (conversation.to_owned(), p)).collect()
}

/// Every file below a folder.
fn listing(root: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path.clone());
            }
            found.insert(path);
        }
    }
    found
}
