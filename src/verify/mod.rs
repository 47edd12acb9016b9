//! Is every closed conversation in the lake, whole and once? Are its files, its positions and its callbacks?
//!
//! Owns the comparison of what the API lists as CLOSED with the ledger (`conversations`), the rows
//! (`communications`) and the callbacks (`events`), and the words that name a difference. [`judge`] decides about
//! one conversation, [`announced`] about callbacks, [`offsets`] about positions, [`repair`] publishes what
//! heals. [`verify`] itself changes nothing, on either side.
//!
//! Guarantees: every conversation that the API lists, and every one that the lake has, is judged by its ledger,
//! its rows and their content hash; one that is missing, partial, doubled or torn is named with the reason. A damaged
//! file is named and left out, so that the rest is judged all the same. What looks wrong is looked at again, because
//! the two tables are read one after the other. Memory: some 50 bytes for each id that the API lists, the
//! conversations of one look-up (at most [`CHUNK_ROWS`] rows, or one conversation), one pass over callbacks
//! (64 MiB), and what is wrong.
//!
//! Fails where the API or the log of a table cannot be read: no verdict is given then.

mod announced;
mod judge;
mod listed;
mod offsets;
pub mod repair;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use arrow::array::{Array, AsArray, RecordBatch, StringArray};
use arrow::datatypes::Int64Type;
use serde::Serialize;

use crate::api::{Api, ApiError};
use crate::event::{CallbackEvent, event_type};
use crate::lake::{DataFile, Lake, LakeError, Table};
use crate::table::{TableName, decode};
use crate::topic::Gap;

use judge::{Held, Verdict};
use listed::{Listed, MAX_PAGES};

/// Conversations judged at once.
const CHUNK_CONVERSATIONS: usize = 1_000;

/// Rows judged at once, by their ledgers.
const CHUNK_ROWS: i64 = 50_000;

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
    /// In the lake more than once, with other rows than the ledger says, or with another content.
    pub torn: u64,
    /// Rows of `communications` that belong to the listed conversations.
    pub communications: u64,
    /// The same by channel.
    pub by_channel: BTreeMap<String, u64>,
    /// Each conversation that is not whole and once, and why.
    pub problems: Vec<Problem>,
    /// Communications that a callback announced and no row of their conversation holds.
    pub unheld: Vec<Unheld>,
    /// Data files that are damaged.
    pub damaged: Vec<Damage>,
    /// Positions that do not match the rows.
    pub positions: Vec<String>,
}

/// What is wrong with a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The API lists it and the lake does not have it.
    Missing,
    /// Named columns are missing.
    Partial,
    /// A row is there more than once.
    Doubled,
    /// Ledger and rows contradict each other.
    Torn,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Missing => "missing",
            Kind::Partial => "partial",
            Kind::Doubled => "doubled",
            Kind::Torn => "torn",
        })
    }
}

/// One conversation that is not whole and once.
#[derive(Debug, Serialize)]
pub struct Problem {
    /// Which.
    pub conversation_id: String,
    /// What kind of problem.
    pub kind: Kind,
    /// What is wrong, in words.
    pub why: String,
}

/// A communication without its row.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Unheld {
    /// Its conversation, which the lake has.
    pub conversation_id: String,
    /// The id that a callback announced.
    pub communication_id: String,
}

/// A data file that is not what the log says.
#[derive(Debug, Serialize)]
pub struct Damage {
    /// Its table.
    pub table: &'static str,
    /// Its path below the table's folder.
    pub path: String,
    /// What is wrong, in words.
    pub why: String,
    /// Rows that the log counts in it.
    pub rows: u64,
    /// Smallest and largest id of its conversations (at least), by the log.
    pub conversations: Option<(String, String)>,
    /// For a file of `events`: offsets that it held, by the log's bounds, and no other row has. Our own closes and dead
    /// letters among them never had a row.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub offsets: Vec<Gap>,
}

impl Report {
    /// Whether nothing was found.
    pub fn is_complete(&self) -> bool {
        self.problems.is_empty()
            && self.unheld.is_empty()
            && self.damaged.is_empty()
            && self.positions.is_empty()
    }

    fn add(&mut self, conversation_id: &str, kind: Kind, why: String) {
        match kind {
            Kind::Missing => self.missing += 1,
            Kind::Partial => self.partial += 1,
            Kind::Doubled | Kind::Torn => self.torn += 1,
        }
        self.problems.push(Problem {
            conversation_id: conversation_id.to_owned(),
            kind,
            why,
        });
    }

    fn damage(&mut self, table: &Table, file: &DataFile, why: String) {
        let ids = file.conversations();
        self.damaged.push(Damage {
            table: table.name().as_str(),
            path: file.path().to_owned(),
            why,
            rows: file.rows(),
            conversations: ids.map(|(first, last)| (first.to_owned(), last.to_owned())),
            offsets: Vec::new(),
        });
    }

    /// Offsets of callbacks that damaged files held.
    pub fn lost_offsets(&self) -> Vec<Gap> {
        let lost = self.damaged.iter().flat_map(|it| &it.offsets);
        lost.copied().collect()
    }

    fn damaged_paths(&self) -> BTreeSet<String> {
        self.damaged.iter().map(|it| it.path.clone()).collect()
    }
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

/// Compares `lake` with what `api` lists, and with itself.
///
/// # Errors
/// [`VerifyError`] where one side cannot be read.
pub async fn verify(lake: &Lake, api: &Api) -> Result<Report, VerifyError> {
    // The API first: what closes while the lake is read is not held against it.
    let listed = Listed::read(api).await?;
    let mut report = Report::default();
    for name in TableName::ALL {
        let table = lake.table(name);
        for file in table.files().await? {
            if let Some(why) = table.damage(&file).await? {
                report.damage(table, &file, why);
            }
        }
    }
    // A file whose footer is whole may have a damaged page. It shows when it is read; then everything is judged
    // again without it. Each round leaves out one more file, so the files bound the rounds.
    loop {
        let mut round = Round {
            lake,
            listed: listed.clone(),
            damaged: report.damaged_paths(),
            report: Report::default(),
            doubled: BTreeSet::new(),
        };
        let error = match round.judge().await {
            Ok(()) => {
                report.damaged.append(&mut round.report.damaged);
                round.report.damaged = report.damaged;
                offsets::check(lake, &mut round.report).await?;
                return Ok(round.report);
            }
            Err(error) => error,
        };
        let Some((table, file)) = unreadable(lake, &error).await? else {
            return Err(error.into());
        };
        let known = report.damaged.len();
        if !report.damaged_paths().contains(file.path()) {
            let why = format!("its rows cannot be read: {:#}", anyhow::Error::from(error));
            report.damage(table, &file, why);
        }
        assert!(
            report.damaged.len() > known,
            "a file that was left out was read"
        );
    }
}

/// The live file that `error` is about, if it is about one.
async fn unreadable<'a>(
    lake: &'a Lake,
    error: &LakeError,
) -> Result<Option<(&'a Table, DataFile)>, LakeError> {
    let LakeError::File { path, .. } = error else {
        return Ok(None);
    };
    for name in TableName::ALL {
        let table = lake.table(name);
        if let Some(file) = table.file_at(path).await? {
            return Ok(Some((table, file)));
        }
    }
    Ok(None)
}

/// One judgement of everything.
struct Round<'a> {
    lake: &'a Lake,
    listed: Listed,
    /// Paths that are not looked at.
    damaged: BTreeSet<String>,
    report: Report,
    /// Conversations that are in more than one file of ledgers were judged with the first.
    doubled: BTreeSet<String>,
}

impl Round<'_> {
    async fn judge(&mut self) -> Result<(), LakeError> {
        let ledgers = self.lake.table(TableName::Conversations);
        let mut chunk = Vec::new();
        let mut rows = 0;
        for file in ledgers.files().await? {
            if self.damaged.contains(file.path()) {
                continue;
            }
            let columns = ["conversation_id", "communications"];
            let mut batches = ledgers.read_file(&file, &columns)?;
            while let Some(batch) = batches.next().await.transpose()? {
                let ids = text(&batch, columns[0]);
                let counts = column(&batch, columns[1]).as_primitive::<Int64Type>();
                for row in 0..batch.num_rows() {
                    let full = rows + counts.value(row) > CHUNK_ROWS;
                    if !chunk.is_empty() && (full || chunk.len() >= CHUNK_CONVERSATIONS) {
                        self.examine(&std::mem::take(&mut chunk)).await?;
                        rows = 0;
                    }
                    chunk.push(ids.value(row).to_owned());
                    rows += counts.value(row);
                }
            }
        }
        self.examine(&chunk).await?;
        // They may have been written since, or have rows and no ledger.
        let unmet: Vec<String> = self.listed.unmet().map(str::to_owned).collect();
        for chunk in unmet.chunks(CHUNK_CONVERSATIONS) {
            self.examine(chunk).await?;
        }
        self.missing().await?;
        let damaged = &self.damaged;
        self.report.unheld = announced::unheld(self.lake, damaged).await?;
        Ok(())
    }

    /// Judges these conversations by all that the lake has of them now; what looks wrong twice.
    async fn examine(&mut self, ids: &[String]) -> Result<(), LakeError> {
        let mut wrong = Vec::new();
        for (id, mut held) in self.held(ids).await? {
            match judge::judge(&mut held, self.listed.contains(&id)) {
                Verdict::Problem(..) => wrong.push(id),
                verdict => self.note(&id, &held, verdict),
            }
        }
        if wrong.is_empty() {
            return Ok(());
        }
        for (id, mut held) in self.held(&wrong).await? {
            let verdict = judge::judge(&mut held, self.listed.contains(&id));
            self.note(&id, &held, verdict);
        }
        Ok(())
    }

    async fn held(&self, ids: &[String]) -> Result<BTreeMap<String, Held>, LakeError> {
        let mut all: BTreeMap<String, Held> = BTreeMap::new();
        if ids.is_empty() {
            return Ok(all);
        }
        // The ledger is committed second, so it is read first: its rows are there then.
        let table = self.lake.table(TableName::Conversations);
        for batch in table.rows_of(ids, &table.columns(), &self.damaged).await? {
            for row in decode::conversations(&batch) {
                let held = all.entry(row.conversation_id.clone()).or_default();
                held.ledger.push(row);
            }
        }
        let table = self.lake.table(TableName::Communications);
        for batch in table.rows_of(ids, &table.columns(), &self.damaged).await? {
            for row in decode::communications(&batch) {
                let held = all.entry(row.conversation_id.clone()).or_default();
                held.rows.push(row);
            }
        }
        Ok(all)
    }

    fn note(&mut self, id: &str, held: &Held, verdict: Verdict) {
        let listed = self.listed.contains(id);
        if held.ledger.is_empty() && !listed {
            // Rows whose second commit is not there yet, and nobody claims them.
            return;
        }
        if held.ledger.len() > 1 && !self.doubled.insert(id.to_owned()) {
            return;
        }
        self.listed.met(id);
        if listed {
            self.report.communications += held.rows.len() as u64;
            for row in &held.rows {
                match self.report.by_channel.get_mut(&row.channel) {
                    Some(count) => *count += 1,
                    None => drop(self.report.by_channel.insert(row.channel.clone(), 1)),
                }
            }
        }
        match verdict {
            Verdict::Complete => self.report.complete += 1,
            Verdict::Gone => self.report.gone += 1,
            Verdict::Unlisted => self.report.unlisted += 1,
            Verdict::Problem(kind, why) => self.report.add(id, kind, why),
        }
    }

    /// Names what is listed and not there at all, and whether its close was received.
    async fn missing(&mut self) -> Result<(), LakeError> {
        let missing: BTreeSet<String> = self.listed.unmet().map(str::to_owned).collect();
        let announced = self.closes(&missing).await?;
        for id in &missing {
            let why = if announced.contains(id) {
                "its close was received, but it is not written yet; it may wait for its flush, or be a dead letter"
            } else {
                "no callback announced its close"
            };
            self.report.add(id, Kind::Missing, why.to_owned());
        }
        Ok(())
    }

    /// Which of `missing` had their close received: the archive has the callback.
    async fn closes(&self, missing: &BTreeSet<String>) -> Result<BTreeSet<String>, LakeError> {
        let mut announced = BTreeSet::new();
        let ids: Vec<String> = missing.iter().cloned().collect();
        let columns = ["conversation_id", "event_type", "body"];
        for chunk in ids.chunks(CHUNK_CONVERSATIONS) {
            let table = self.lake.table(TableName::Events);
            for batch in table.rows_of(chunk, &columns, &self.damaged).await? {
                let (ids, types) = (text(&batch, columns[0]), text(&batch, columns[1]));
                let bodies = text(&batch, columns[2]);
                for row in 0..batch.num_rows() {
                    if types.value(row) == event_type::CONVERSATION_UPDATED
                        && CallbackEvent::parse(bodies.value(row).as_bytes())
                            .is_ok_and(|event| event.is_close())
                    {
                        announced.insert(ids.value(row).to_owned());
                    }
                }
            }
        }
        Ok(announced)
    }
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> &'a dyn Array {
    batch
        .column_by_name(name)
        .expect("a read answers with the columns asked for")
        .as_ref()
}

fn text<'a>(batch: &'a RecordBatch, name: &str) -> &'a StringArray {
    column(batch, name).as_string::<i32>()
}
