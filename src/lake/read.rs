//! Rows out of data files.
//!
//! Data files are read where they lie, a row group's pages at a time; only the columns asked for. A file written by an
//! older version, or by somebody else, may lack a column: it is null then. A file that is damaged makes an error, and where
//! the Parquet reader panics on it the blocking task ends alone ([`LakeError::Ended`]).

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BooleanArray, Date32Array, RecordBatch, RecordBatchOptions, StringArray,
    new_null_array,
};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Field, Schema, SchemaRef};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::file::metadata::RowGroupMetaData;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::table::{self, TableName};

use super::LakeError;
use super::live::{LiveFile, Partition};

/// Rows of a batch that a reader hands on.
const BATCH_ROWS: usize = 8192;
/// Batches read ahead of whoever takes them.
const BATCHES_AHEAD: usize = 2;

/// The rows of a table, batch by batch. Dropping it ends the reading.
#[derive(Debug)]
pub struct Batches {
    receiver: mpsc::Receiver<Result<RecordBatch, LakeError>>,
    /// Awaited after the last batch: a reader that panicked must not look like one that is done.
    reader: Option<JoinHandle<()>>,
}

impl Batches {
    pub(super) fn start(
        table: TableName,
        folder: PathBuf,
        files: Vec<Arc<LiveFile>>,
        columns: SchemaRef,
    ) -> Batches {
        let (sender, receiver) = mpsc::channel(BATCHES_AHEAD);
        // It ends at the first batch that nobody takes, or with the last file.
        let reader = tokio::task::spawn_blocking(move || {
            for file in files {
                let batches = match open(table, &folder, &file, &columns, None) {
                    Ok(batches) => batches,
                    Err(error) => {
                        let _ = sender.blocking_send(Err(error));
                        return;
                    }
                };
                for batch in batches {
                    let failed = batch.is_err();
                    if sender.blocking_send(batch).is_err() || failed {
                        return;
                    }
                }
            }
        });
        Batches {
            receiver,
            reader: Some(reader),
        }
    }

    /// The next batch; `None` after the last.
    ///
    /// # Errors
    /// I/O, after which there are no more.
    pub async fn next(&mut self) -> Option<Result<RecordBatch, LakeError>> {
        if let Some(batch) = self.receiver.recv().await {
            return Some(batch);
        }
        let ended = self.reader.take()?.await;
        ended.err().map(|error| Err(LakeError::Ended(error)))
    }
}

/// The schema of some of a table's columns, each nullable.
pub(super) fn columns(table: TableName, names: &[&str]) -> Result<SchemaRef, LakeError> {
    let schema = table::schema(table);
    let fields: Result<Vec<Field>, LakeError> = names
        .iter()
        .map(|name| {
            schema
                .field_with_name(name)
                .map(|field| field.clone().with_nullable(true))
                .map_err(|_| LakeError::Invalid {
                    table,
                    reason: format!("it has no column `{name}`"),
                })
        })
        .collect();
    Ok(Arc::new(Schema::new(fields?)))
}

/// Every row of a file, with columns that its rows have for certain.
pub(super) fn rows(
    folder: &Path,
    file: &LiveFile,
    columns: &[&str],
) -> Result<impl Iterator<Item = Result<RecordBatch, LakeError>>, LakeError> {
    let path = file.location(folder);
    let builder = builder(&path)?;
    let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
    let reader = finish(builder.with_projection(mask), &path)?;
    let columns: Vec<String> = columns.iter().map(|name| (*name).to_owned()).collect();
    Ok(reader.map(move |batch| {
        let batch = batch.map_err(|error| unreadable(&path, error))?;
        let order: Result<Vec<usize>, _> = columns
            .iter()
            .map(|name| batch.schema().index_of(name))
            .collect();
        order
            .and_then(|order| batch.project(&order))
            .map_err(|error| unreadable(&path, error))
    }))
}

/// The rows of some conversations in a file: the same, of the row groups that can have them.
pub(super) fn matching(
    folder: &Path,
    file: &LiveFile,
    columns: &[&str],
    conversations: &BTreeSet<String>,
) -> Result<impl Iterator<Item = Result<RecordBatch, LakeError>>, LakeError> {
    debug_assert_eq!(columns.first(), Some(&"conversation_id"));
    let path = file.location(folder);
    let builder = builder(&path)?;
    let groups = may_hold_one(&builder, conversations);
    let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
    let reader = finish(builder.with_projection(mask).with_row_groups(groups), &path)?;
    let columns: Vec<String> = columns.iter().map(|name| (*name).to_owned()).collect();
    Ok(reader.map(move |batch| {
        let batch = batch.map_err(|error| unreadable(&path, error))?;
        let order: Result<Vec<usize>, _> = columns
            .iter()
            .map(|name| batch.schema().index_of(name))
            .collect();
        let chosen = order
            .and_then(|order| batch.project(&order))
            .and_then(|batch| {
                let wanted = are_of(batch.column(0).as_string(), conversations);
                filter_record_batch(&batch, &wanted)
            });
        chosen.map_err(|error| unreadable(&path, error))
    }))
}

/// A file whole, with the columns that it has, for rewriting.
pub(super) fn whole(
    folder: &Path,
    file: &LiveFile,
) -> Result<
    (
        SchemaRef,
        impl Iterator<Item = Result<RecordBatch, LakeError>>,
    ),
    LakeError,
> {
    let path = file.location(folder);
    let reader = finish(builder(&path)?, &path)?;
    let schema = arrow::array::RecordBatchReader::schema(&reader);
    Ok((
        schema,
        reader.map(move |batch| batch.map_err(|error| unreadable(&path, error))),
    ))
}

/// Which rows are of one of the conversations.
pub(super) fn are_of(ids: &StringArray, conversations: &BTreeSet<String>) -> BooleanArray {
    ids.iter()
        .map(|id| Some(id.is_some_and(|id| conversations.contains(id))))
        .collect()
}

impl LiveFile {
    /// Where it lies. Its path in the log is percent-encoded (Delta protocol, "Add File").
    pub(super) fn location(&self, folder: &Path) -> PathBuf {
        located(folder, &self.path)
    }
}

/// Where the log's `path` is, in the table at `folder`.
pub(super) fn located(folder: &Path, path: &str) -> PathBuf {
    url::Url::from_directory_path(folder)
        .ok()
        .and_then(|url| url.join(path).ok())
        .and_then(|url| url.to_file_path().ok())
        .unwrap_or_else(|| folder.join(path))
}

/// The rows of a file in the shape of `columns`: partition values filled in, what the file lacks null. With `only`,
/// those of these conversations; `columns` must then begin with their id.
pub(super) fn open(
    table: TableName,
    folder: &Path,
    file: &LiveFile,
    columns: &SchemaRef,
    only: Option<BTreeSet<String>>,
) -> Result<impl Iterator<Item = Result<RecordBatch, LakeError>> + use<>, LakeError> {
    let path = file.location(folder);
    let builder = builder(&path)?;
    let names = columns.fields().iter().map(|field| field.name().as_str());
    let stored = names.filter(|name| !table.partitions().contains(name));
    let mask = ProjectionMask::columns(builder.parquet_schema(), stored);
    let mut builder = builder.with_projection(mask);
    if let Some(conversations) = &only {
        debug_assert_eq!(columns.field(0).name(), "conversation_id");
        let groups = may_hold_one(&builder, conversations);
        builder = builder.with_row_groups(groups);
    }
    let reader = finish(builder, &path)?;
    let (columns, partition) = (columns.clone(), file.partition.clone());
    Ok(reader.map(move |batch| {
        let batch = batch.map_err(|error| unreadable(&path, error))?;
        let rows = batch.num_rows();
        let shaped = columns
            .fields()
            .iter()
            .map(|field| {
                partition
                    .column(field.name(), rows)
                    .or_else(|| batch.column_by_name(field.name()).cloned())
                    .unwrap_or_else(|| new_null_array(field.data_type(), rows))
            })
            .collect();
        let count = RecordBatchOptions::new().with_row_count(Some(rows));
        let shaped = RecordBatch::try_new_with_options(columns.clone(), shaped, &count);
        let chosen = match &only {
            None => shaped,
            Some(conversations) => shaped.and_then(|batch| {
                let wanted = are_of(batch.column(0).as_string(), conversations);
                filter_record_batch(&batch, &wanted)
            }),
        };
        chosen.map_err(|error| unreadable(&path, error))
    }))
}

impl Partition {
    fn column(&self, name: &str, rows: usize) -> Option<ArrayRef> {
        match (name, &self.channel) {
            ("date", _) => Some(Arc::new(Date32Array::from_value(self.date, rows))),
            ("channel", Some(channel)) => Some(Arc::new(StringArray::from_iter_values(
                std::iter::repeat_n(channel, rows),
            ))),
            _ => None,
        }
    }
}

/// The row groups that can have rows of one of the conversations.
fn may_hold_one(
    builder: &ParquetRecordBatchReaderBuilder<File>,
    conversations: &BTreeSet<String>,
) -> Vec<usize> {
    let groups = builder.metadata().row_groups().iter().enumerate();
    groups
        .filter(|(_, group)| may_hold(group, conversations))
        .map(|(at, _)| at)
        .collect()
}

/// Whether the bounds of a row group's ids leave room for one of the conversations.
fn may_hold(group: &RowGroupMetaData, conversations: &BTreeSet<String>) -> bool {
    let Some(statistics) = group
        .columns()
        .iter()
        .find(|column| column.column_path().string() == "conversation_id")
        .and_then(|column| column.statistics())
    else {
        return true;
    };
    let (Some(smallest), Some(largest)) = (statistics.min_bytes_opt(), statistics.max_bytes_opt())
    else {
        return true;
    };
    conversations
        .iter()
        .any(|id| smallest <= id.as_bytes() && id.as_bytes() <= largest)
}

fn builder(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>, LakeError> {
    let file = File::open(path).map_err(|error| unreadable(path, error))?;
    let builder =
        ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| unreadable(path, error))?;
    Ok(builder.with_batch_size(BATCH_ROWS))
}

fn finish(
    builder: ParquetRecordBatchReaderBuilder<File>,
    path: &Path,
) -> Result<ParquetRecordBatchReader, LakeError> {
    builder.build().map_err(|error| unreadable(path, error))
}

fn unreadable(
    path: &Path,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> LakeError {
    LakeError::File {
        action: "reading",
        path: path.to_owned(),
        source: source.into(),
    }
}
