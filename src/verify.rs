//! Is every closed conversation in the lake, whole and once?
//!
//! Owns the comparison of what the API lists as CLOSED with the ledger (`conversations`) and the rows
//! (`communications`), and the words that name a difference. Changes nothing, on either side.
//!
//! Guarantees: every conversation that the API lists is judged; one that is missing, partial, doubled or
//! torn is named with the reason. Memory: one entry a conversation, none a communication.
//!
//! Fails where the API or the lake cannot be read: no verdict is given then.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use serde::Serialize;

use crate::api::{Api, ApiError};
use crate::event::{CallbackEvent, event_type};
use crate::lake::{Lake, LakeError};
use crate::table::TableName;
use crate::table::row::Completeness;

/// Pages of the API's list at most: a list that goes in circles ends here, as an error.
const MAX_PAGES: u64 = 1_000_000;

/// What was found.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Listed as closed, and in the lake whole and once.
    pub complete: u64,
    /// Listed as closed, and in the lake with named columns missing.
    pub partial: u64,
    /// In the lake as deleted before they could be fetched; the API does not list them.
    pub gone: u64,
    /// In the lake and not listed: older than the API keeps, or another account's.
    pub unlisted: u64,
    /// Listed as closed and not in the lake.
    pub missing: u64,
    /// In the lake more than once, or with another number of rows than the ledger says.
    pub torn: u64,
    /// Rows of `communications` that belong to the listed conversations.
    pub communications: u64,
    /// The same by channel.
    pub by_channel: BTreeMap<String, u64>,
    /// Each conversation that is not whole and once, and why.
    pub problems: Vec<Problem>,
}

impl Report {
    /// Whether nothing is missing, partial or torn.
    pub fn is_complete(&self) -> bool {
        self.problems.is_empty()
    }

    fn add(&mut self, conversation_id: &str, why: String) {
        self.problems.push(Problem {
            conversation_id: conversation_id.to_owned(),
            why,
        });
    }
}

/// One conversation that is not whole and once.
#[derive(Debug, Serialize)]
pub struct Problem {
    /// Which.
    pub conversation_id: String,
    /// What is wrong, in words.
    pub why: String,
}

/// Why no verdict could be given.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The API could not be listed.
    #[error("the API's list of closed conversations could not be read")]
    Api(#[from] ApiError),
    /// The list does not end.
    #[error(
        "the API's list of closed conversations repeats a page token or has more than {MAX_PAGES} pages"
    )]
    EndlessList,
    /// The lake could not be read.
    #[error("the lake could not be read")]
    Lake(#[from] LakeError),
}

/// What the lake has of one conversation.
#[derive(Default)]
struct Held {
    ledger_rows: u32,
    completeness: Option<Completeness>,
    missing: Vec<String>,
    communications: i64,
    communication_rows: i64,
}

/// Compares `lake` with what `api` lists.
///
/// # Errors
/// [`VerifyError`] where one side cannot be read.
pub async fn verify(lake: &Lake, api: &Api) -> Result<Report, VerifyError> {
    // The API first: what closes while the lake is read is not held against it.
    let closed = closed_conversations(api).await?;
    let mut report = Report::default();
    let mut held = held(lake, &closed, &mut report).await?;
    let suspects = suspects(&closed, &held);
    if !suspects.is_empty() {
        // The two tables are read one after the other, and a conversation may be committed between: what
        // looks wrong is looked at again.
        let again = self::held(lake, &closed, &mut Report::default()).await?;
        held.retain(|id, _| !suspects.contains(id));
        held.extend(again.into_iter().filter(|(id, _)| suspects.contains(id)));
    }
    let mut missing = BTreeSet::new();
    for id in &closed {
        match held.get(id) {
            Some(held) => judge(&mut report, id, held, true),
            None => {
                missing.insert(id.clone());
            }
        }
    }
    for (id, held) in held.iter().filter(|(id, _)| !closed.contains(*id)) {
        judge(&mut report, id, held, false);
    }
    report.missing += missing.len() as u64;
    let announced = announced(lake, &missing).await?;
    for id in &missing {
        let why = if announced.contains(id) {
            "missing: its close was received, but it is not written yet; it may wait for its flush, or be a dead letter"
        } else {
            "missing: no callback announced its close"
        };
        report.add(id, why.to_owned());
    }
    Ok(report)
}

/// Those that are not whole and once at first sight.
fn suspects(closed: &BTreeSet<String>, held: &BTreeMap<String, Held>) -> BTreeSet<String> {
    let mut report = Report::default();
    for (id, held) in held {
        judge(&mut report, id, held, closed.contains(id));
    }
    let absent = closed.iter().filter(|id| !held.contains_key(*id)).cloned();
    report
        .problems
        .into_iter()
        .map(|problem| problem.conversation_id)
        .chain(absent)
        .collect()
}

fn judge(report: &mut Report, id: &str, held: &Held, listed: bool) {
    if held.ledger_rows == 0 {
        // Rows without a ledger entry: the second commit is not there yet. Nobody claims an unlisted one.
        if listed {
            report.missing += 1;
            let rows = held.communication_rows;
            report.add(
                id,
                format!("missing: {rows} communications are written, its own row is not"),
            );
        }
        return;
    }
    if held.ledger_rows > 1 {
        report.torn += 1;
        report.add(
            id,
            format!("doubled: {} rows in conversations", held.ledger_rows),
        );
        return;
    }
    if held.communications != held.communication_rows {
        report.torn += 1;
        report.add(
            id,
            format!(
                "torn: {} rows in communications, its ledger says {}",
                held.communication_rows, held.communications
            ),
        );
        return;
    }
    match held.completeness.unwrap_or(Completeness::Partial) {
        Completeness::Gone if !listed => report.gone += 1,
        _ if !listed => report.unlisted += 1,
        Completeness::Complete => report.complete += 1,
        Completeness::Partial => {
            report.partial += 1;
            report.add(
                id,
                format!("partial: the API did not give {}", held.missing.join(", ")),
            );
        }
        Completeness::Gone => {
            report.missing += 1;
            report.add(
                id,
                "missing: it was gone when it was fetched, and the API lists it now".to_owned(),
            );
        }
    }
}

async fn closed_conversations(api: &Api) -> Result<BTreeSet<String>, VerifyError> {
    let mut closed = BTreeSet::new();
    let mut token: Option<String> = None;
    let mut seen = BTreeSet::new();
    for _ in 0..MAX_PAGES {
        let page = api.closed_conversations_page(token.as_deref()).await?.value;
        closed.extend(
            page.items
                .into_iter()
                .filter_map(|conversation| conversation.id),
        );
        match page.next_token {
            None => return Ok(closed),
            Some(next) if !seen.insert(next.clone()) => return Err(VerifyError::EndlessList),
            next => token = next,
        }
    }
    Err(VerifyError::EndlessList)
}

async fn held(
    lake: &Lake,
    closed: &BTreeSet<String>,
    report: &mut Report,
) -> Result<BTreeMap<String, Held>, LakeError> {
    let mut held: BTreeMap<String, Held> = BTreeMap::new();
    let columns = [
        "conversation_id",
        "completeness",
        "missing",
        "communications",
    ];
    let mut batches = lake.table(TableName::Conversations).read(&columns).await?;
    while let Some(batch) = batches.next().await.transpose()? {
        let (ids, completeness) = (
            text(&batch, "conversation_id"),
            text(&batch, "completeness"),
        );
        let missing = column(&batch, "missing").as_list::<i32>();
        let communications = column(&batch, "communications").as_primitive::<Int64Type>();
        for row in 0..batch.num_rows() {
            let entry = held.entry(ids.value(row).to_owned()).or_default();
            entry.ledger_rows += 1;
            entry.completeness = Completeness::from_column(completeness.value(row));
            entry.communications = communications.value(row);
            let names = missing.value(row);
            entry.missing = names
                .as_string::<i32>()
                .iter()
                .flatten()
                .map(str::to_owned)
                .collect();
        }
    }
    let columns = ["conversation_id", "channel"];
    let mut batches = lake.table(TableName::Communications).read(&columns).await?;
    while let Some(batch) = batches.next().await.transpose()? {
        let (ids, channels) = (text(&batch, "conversation_id"), text(&batch, "channel"));
        for row in 0..batch.num_rows() {
            let (id, channel) = (ids.value(row), channels.value(row));
            match held.get_mut(id) {
                Some(entry) => entry.communication_rows += 1,
                None => held.entry(id.to_owned()).or_default().communication_rows += 1,
            }
            if closed.contains(id) {
                report.communications += 1;
                match report.by_channel.get_mut(channel) {
                    Some(count) => *count += 1,
                    None => drop(report.by_channel.insert(channel.to_owned(), 1)),
                }
            }
        }
    }
    Ok(held)
}

/// Which of `missing` had their close received: the archive has the callback.
async fn announced(lake: &Lake, missing: &BTreeSet<String>) -> Result<BTreeSet<String>, LakeError> {
    let mut announced = BTreeSet::new();
    if missing.is_empty() {
        return Ok(announced);
    }
    let columns = ["conversation_id", "event_type", "body"];
    let mut batches = lake.table(TableName::Events).read(&columns).await?;
    while let Some(batch) = batches.next().await.transpose()? {
        let (ids, types) = (text(&batch, "conversation_id"), text(&batch, "event_type"));
        let bodies = text(&batch, "body");
        for row in 0..batch.num_rows() {
            if types.value(row) == event_type::CONVERSATION_UPDATED
                && missing.contains(ids.value(row))
                && CallbackEvent::parse(bodies.value(row).as_bytes())
                    .is_ok_and(|event| event.is_close())
            {
                announced.insert(ids.value(row).to_owned());
            }
        }
    }
    Ok(announced)
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> &'a dyn Array {
    batch
        .column_by_name(name)
        .expect("read() answers with the columns asked for")
        .as_ref()
}

fn text<'a>(batch: &'a RecordBatch, name: &str) -> &'a arrow::array::StringArray {
    column(batch, name).as_string::<i32>()
}
