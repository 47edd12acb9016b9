//! Every communication that a callback announced and no row holds.
//!
//! Owns the comparison of `events` with `communications`. A lake has far more communications than fit in memory, so
//! they are compared by hash in as many passes as keep one below [`PASS_ROWS`]; only what is left over is read by
//! name, and looked up once more: a conversation may have been written between the two readings.
//!
//! Counted are conversations that the lake has and that were not deleted. A conversation that is still open has
//! announcements without rows, as it should.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{Hash, Hasher};

use arrow::array::{Array, RecordBatch};

use super::{Unheld, text};
use crate::event::CallbackEvent;
use crate::lake::{DataFile, Lake, LakeError, Table};
use crate::table::TableName;
use crate::table::row::Completeness;

/// Events compared at once: 64 MiB of hashes if each announced another communication.
const PASS_ROWS: u64 = 8_000_000;

/// Conversations looked up at once.
const LOOKUP: usize = 1_000;

/// Names what is announced and not held, leaving out the files of `damaged`.
pub(super) async fn unheld(
    lake: &Lake,
    damaged: &BTreeSet<String>,
) -> Result<Vec<Unheld>, LakeError> {
    let (events, communications) = (
        lake.table(TableName::Events),
        lake.table(TableName::Communications),
    );
    let rows: u64 = events.files().await?.iter().map(DataFile::rows).sum();
    let passes = rows.div_ceil(PASS_ROWS).max(1);
    let mut left = Vec::new();
    for pass in 0..passes {
        let in_pass = |conversation: &str| hash(&[conversation]) % passes == pass;
        let mut announced: HashSet<u64> = HashSet::new();
        each_announced(events, damaged, |conversation, communication| {
            if in_pass(conversation) {
                announced.insert(hash(&[conversation, communication]));
            }
        })
        .await?;
        let columns = ["conversation_id", "communication_id"];
        each_batch(communications, damaged, &columns, |batch| {
            let (conversations, ids) = (text(batch, columns[0]), text(batch, columns[1]));
            for row in 0..batch.num_rows() {
                announced.remove(&hash(&[conversations.value(row), ids.value(row)]));
            }
        })
        .await?;
        if !announced.is_empty() {
            left.extend(named(lake, damaged, &announced).await?);
        }
    }
    Ok(left)
}

/// The names behind the hashes that were left over, those that are to be held.
async fn named(
    lake: &Lake,
    damaged: &BTreeSet<String>,
    left: &HashSet<u64>,
) -> Result<Vec<Unheld>, LakeError> {
    let mut open: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    each_announced(
        lake.table(TableName::Events),
        damaged,
        |conversation, id| {
            if left.contains(&hash(&[conversation, id])) {
                let ids = open.entry(conversation.to_owned()).or_default();
                ids.insert(id.to_owned());
            }
        },
    )
    .await?;
    let conversations: Vec<String> = open.keys().cloned().collect();
    for chunk in conversations.chunks(LOOKUP) {
        let known = ledgers(lake, damaged, chunk).await?;
        let held: Vec<String> = known.into_iter().collect();
        for id in chunk {
            if !held.contains(id) {
                open.remove(id);
            }
        }
        let columns = ["conversation_id", "communication_id"];
        let table = lake.table(TableName::Communications);
        for batch in table.rows_of(&held, &columns, damaged).await? {
            let (conversations, ids) = (text(&batch, columns[0]), text(&batch, columns[1]));
            for row in 0..batch.num_rows() {
                if let Some(open) = open.get_mut(conversations.value(row)) {
                    open.remove(ids.value(row));
                }
            }
        }
    }
    Ok(open
        .into_iter()
        .flat_map(|(conversation_id, ids)| {
            ids.into_iter().map(move |communication_id| Unheld {
                conversation_id: conversation_id.clone(),
                communication_id,
            })
        })
        .collect())
}

/// Which of `ids` the lake has with communications.
async fn ledgers(
    lake: &Lake,
    damaged: &BTreeSet<String>,
    ids: &[String],
) -> Result<BTreeSet<String>, LakeError> {
    let columns = ["conversation_id", "completeness"];
    let table = lake.table(TableName::Conversations);
    let mut known = BTreeSet::new();
    for batch in table.rows_of(ids, &columns, damaged).await? {
        let (ids, values) = (text(&batch, columns[0]), text(&batch, columns[1]));
        let has = |row: &usize| values.value(*row) != Completeness::Gone.as_str();
        known.extend(
            (0..ids.len())
                .filter(has)
                .map(|row| ids.value(row).to_owned()),
        );
    }
    Ok(known)
}

/// Calls `take` with conversation and communication of every callback about a communication.
async fn each_announced(
    events: &Table,
    damaged: &BTreeSet<String>,
    mut take: impl FnMut(&str, &str),
) -> Result<(), LakeError> {
    let columns = ["event_type", "body"];
    each_batch(events, damaged, &columns, |batch| {
        let (types, bodies) = (text(batch, columns[0]), text(batch, columns[1]));
        for row in 0..batch.num_rows() {
            if types.value(row).starts_with("COMMUNICATION_")
                && let Ok(event) = CallbackEvent::parse(bodies.value(row).as_bytes())
            {
                take(&event.conversation_id, &event.resource_id);
            }
        }
    })
    .await
}

async fn each_batch(
    table: &Table,
    damaged: &BTreeSet<String>,
    columns: &[&str],
    mut take: impl FnMut(&RecordBatch),
) -> Result<(), LakeError> {
    for file in table.files().await? {
        if damaged.contains(file.path()) {
            continue;
        }
        let mut batches = table.read_file(&file, columns)?;
        while let Some(batch) = batches.next().await.transpose()? {
            take(&batch);
        }
    }
    Ok(())
}

fn hash(parts: &[&str]) -> u64 {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    hasher.finish()
}
