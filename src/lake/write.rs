//! Rows into data files: split by partition, sorted, encoded, durable, described for the log.
//!
//! Nothing written here is visible until a commit names it. Memory: the rows that the caller holds anyway, and one
//! row group being encoded; finished row groups go to the store in parts.
//!
//! Settings are those of measurement: ZSTD 1, row groups of 131,072 rows (a point query reads one), no dictionary for
//! columns whose values are unique, packed timestamps, statistics only where a query prunes by them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, Write};
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::{filter_record_batch, interleave_record_batch, not};
use arrow::datatypes::{Date32Type, SchemaRef};
use arrow::row::{RowConverter, SortField};
use delta_kernel::FileMeta;
use delta_kernel::engine::arrow_conversion::TryIntoKernel;
use delta_kernel::engine::arrow_data::EngineDataArrowExt;
use delta_kernel::expressions::{ColumnName, Scalar};
use delta_kernel::schema::StructType;
use delta_kernel::snapshot::SnapshotRef;
use delta_kernel::transaction::{BoundWriteContext, WriteState};
use delta_kernel_default_engine::build_add_file_metadata;
use delta_kernel_default_engine::parquet::DataFileMetadata;
use delta_kernel_default_engine::stats::FileStatsAccumulator;
use object_store::{MultipartUpload, ObjectStoreExt, PutMode, path::Path as StorePath};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use crate::table::TableName;

use super::live::{IdHashes, LiveFile, Partition, file_name};
use super::log::Log;
use super::storage::Storage;
use super::{LakeError, read};

/// Rows of a row group at most.
const ROW_GROUP_ROWS: usize = 131_072;
/// Encoded bytes of a row group at most: callbacks of 256 KiB would make a row group of 32 GiB.
const ROW_GROUP_BYTES: usize = 64 << 20;
/// Rows gathered at once. With the largest text of a row, 256 KiB, far below Arrow's 2 GiB a column.
const GATHER_ROWS: usize = 1024;
/// Bytes of a file handed to the store at once.
const PART_BYTES: usize = 8 << 20;

/// A data file that is durable and not yet committed.
#[derive(Debug)]
pub(super) struct Written {
    /// As the log will name it.
    pub(super) path: Arc<str>,
    /// One row: what the kernel wants to be told of it.
    pub(super) add: RecordBatch,
    pub(super) bytes: u64,
    /// Hashes of its conversation ids.
    pub(super) hashes: Arc<[u64]>,
    location: StorePath,
}

impl Written {
    /// Deletes a file that no commit will name. One that stays is only in the way until the next vacuum.
    pub(super) fn discard(&self, log: &Log) {
        let storage = &log.storage;
        if let Err(error) = storage.wait(storage.store().delete(&self.location)) {
            tracing::debug!(table = %log.table, %error, "unused data file not deleted");
        }
    }
}

/// Writes `rows` as new files, one for each partition.
pub(super) fn rows(
    log: &Log,
    snapshot: &SnapshotRef,
    rows: &[RecordBatch],
) -> Result<Vec<Written>, LakeError> {
    let partitions = split(log.table, rows)?;
    if partitions.is_empty() {
        return Ok(Vec::new());
    }
    let state = log.write_state(snapshot)?;
    let sources: Vec<RecordBatch> = rows
        .iter()
        .map(|batch| without_partitions(log.table, batch))
        .collect();
    let sources: Vec<&RecordBatch> = sources.iter().collect();
    let mut written = Vec::new();
    for (partition, places) in partitions {
        let places = in_order(log.table, &sources, places)?;
        let mut file = FileWriter::create(
            log,
            &state,
            &partition,
            sources[0].schema(),
            &file_name(false),
        )?;
        for chunk in places.chunks(GATHER_ROWS) {
            file.write(&gather(log.table, &sources, chunk)?)?;
        }
        written.extend(file.finish()?);
    }
    Ok(written)
}

/// Writes a file again without the rows of `conversations`; `None` if none are left.
pub(super) fn without(
    log: &Log,
    snapshot: &SnapshotRef,
    file: &LiveFile,
    conversations: &BTreeSet<String>,
) -> Result<Option<Written>, LakeError> {
    let state = log.write_state(snapshot)?;
    // Its own columns: what an older version lacked stays absent, what somebody else added stays.
    let (schema, batches) = read::whole(&log.folder, file)?;
    let mut writer = FileWriter::create(log, &state, &file.partition, schema, &file_name(true))?;
    for batch in batches {
        let batch = batch?;
        let ids =
            batch
                .column_by_name("conversation_id")
                .ok_or_else(|| LakeError::Incompatible {
                    table: log.table,
                    reason: format!("its file `{}` has no conversation_id", file.path),
                })?;
        let gone = read::are_of(ids.as_string(), conversations);
        let kept = not(&gone)
            .and_then(|kept| filter_record_batch(&batch, &kept))
            .map_err(|error| invalid(log.table, &error))?;
        writer.write(&kept)?;
    }
    writer.finish()
}

/// Where each partition's rows are: (batch, row).
type Places = Vec<(usize, usize)>;

fn split(table: TableName, rows: &[RecordBatch]) -> Result<BTreeMap<Partition, Places>, LakeError> {
    let expected = crate::table::schema(table);
    let mut partitions: BTreeMap<Partition, Places> = BTreeMap::new();
    for (at, batch) in rows.iter().enumerate() {
        if batch.schema() != expected {
            return Err(LakeError::Invalid {
                table,
                reason: "rows have other columns than the table".to_owned(),
            });
        }
        let dates = batch["date"].as_primitive::<Date32Type>();
        let channels = batch
            .column_by_name("channel")
            .map(|c| c.as_string::<i32>());
        let mut by_value: HashMap<(i32, Option<&str>), Places> = HashMap::new();
        for row in 0..batch.num_rows() {
            let key = (dates.value(row), channels.map(|c| c.value(row)));
            by_value.entry(key).or_default().push((at, row));
        }
        for ((date, channel), places) in by_value {
            if let Some(name) = channel
                && !is_channel(name)
            {
                return Err(LakeError::Invalid {
                    table,
                    reason: "a channel is not of the form [A-Z0-9_]{1,32}".to_owned(),
                });
            }
            let channel = channel.map(str::to_owned);
            partitions
                .entry(Partition { date, channel })
                .or_default()
                .extend(places);
        }
    }
    Ok(partitions)
}

/// Whether a name can be a folder: the rule of the `channel` column.
fn is_channel(name: &str) -> bool {
    (1..=32).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
}

/// Sorts places by the table's order. One batch comes sorted; several are merged.
fn in_order(
    table: TableName,
    sources: &[&RecordBatch],
    mut places: Places,
) -> Result<Places, LakeError> {
    if places.first().map(|p| p.0) == places.last().map(|p| p.0) {
        return Ok(places);
    }
    let failed = |error| invalid(table, &error);
    let fields = table
        .sorted_by()
        .iter()
        .map(|name| SortField::new(sources[0][*name].data_type().clone()))
        .collect();
    let converter = RowConverter::new(fields).map_err(failed)?;
    let keys: Result<Vec<_>, _> = sources
        .iter()
        .map(|batch| {
            let columns: Vec<_> = table
                .sorted_by()
                .iter()
                .map(|name| batch[*name].clone())
                .collect();
            converter.convert_columns(&columns)
        })
        .collect();
    let keys = keys.map_err(failed)?;
    places.sort_by(|a, b| keys[a.0].row(a.1).cmp(&keys[b.0].row(b.1)));
    Ok(places)
}

/// The rows at `places`, copied only where they do not lie together.
fn gather(
    table: TableName,
    sources: &[&RecordBatch],
    places: &[(usize, usize)],
) -> Result<RecordBatch, LakeError> {
    let (batch, first) = places[0];
    let together = places
        .iter()
        .enumerate()
        .all(|(at, place)| *place == (batch, first + at));
    if together {
        return Ok(sources[batch].slice(first, places.len()));
    }
    interleave_record_batch(sources, places).map_err(|error| invalid(table, &error))
}

fn without_partitions(table: TableName, batch: &RecordBatch) -> RecordBatch {
    // Partition columns are the last ones in every table.
    let stored: Vec<usize> = (0..batch.num_columns() - table.partitions().len()).collect();
    batch
        .project(&stored)
        .expect("every index is below the number of columns")
}

/// One data file being written.
struct FileWriter<'a> {
    log: &'a Log,
    context: BoundWriteContext,
    url: url::Url,
    writer: ArrowWriter<Sink>,
    stats: FileStatsAccumulator,
    ids: IdHashes,
    rows: usize,
}

impl<'a> FileWriter<'a> {
    fn create(
        log: &'a Log,
        state: &Arc<WriteState>,
        partition: &Partition,
        schema: SchemaRef,
        name: &str,
    ) -> Result<FileWriter<'a>, LakeError> {
        let failed = |error| log.failed("preparing to write files", error);
        let mut values = HashMap::from([("date".to_owned(), Scalar::Date(partition.date))]);
        if let Some(channel) = &partition.channel {
            values.insert("channel".to_owned(), Scalar::String(channel.clone()));
        }
        let context = state
            .write_context_builder()
            .with_partition_values(values)
            .build()
            .map_err(failed)?;
        let url = context
            .write_dir()
            .join(name)
            .expect("a file name of ours is a relative URL");
        let location = StorePath::from_url_path(url.path()).map_err(|source| LakeError::File {
            action: "naming",
            path: url.path().into(),
            source: source.into(),
        })?;
        let physical: StructType = schema
            .as_ref()
            .try_into_kernel()
            .map_err(|error| log.failed("describing the columns", error))?;
        let columns: Vec<ColumnName> = log
            .table
            .pruned_by()
            .iter()
            .map(|name| ColumnName::new([*name]))
            .collect();
        let sink = Sink {
            storage: log.storage.clone(),
            location,
            part: Vec::new(),
            upload: None,
            bytes: 0,
        };
        let options = ArrowWriterOptions::new()
            .with_properties(properties(log.table))
            .with_skip_arrow_metadata(true);
        let writer = ArrowWriter::try_new_with_options(sink, schema, options)
            .map_err(|error| unwritable(&url, error))?;
        Ok(FileWriter {
            log,
            context,
            stats: FileStatsAccumulator::new(&columns, &physical),
            url,
            writer,
            ids: IdHashes::default(),
            rows: 0,
        })
    }

    fn write(&mut self, batch: &RecordBatch) -> Result<(), LakeError> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        self.writer
            .write(batch)
            .map_err(|error| unwritable(&self.url, error))?;
        self.stats
            .merge(batch)
            .map_err(|error| self.log.failed("collecting statistics", error))?;
        self.ids.add(batch["conversation_id"].as_string());
        self.rows += batch.num_rows();
        Ok(())
    }

    /// Makes the file durable. A file without rows is not made at all: readers would open it for nothing.
    fn finish(self) -> Result<Option<Written>, LakeError> {
        if self.rows == 0 {
            return Ok(None);
        }
        let (log, url) = (self.log, self.url);
        let sink = self
            .writer
            .into_inner()
            .map_err(|error| unwritable(&url, error))?;
        let location = sink.location.clone();
        let (bytes, modified) = sink.close().map_err(|error| unwritable(&url, error))?;
        let failed = |error| log.failed("describing a file", error);
        let stats = self
            .stats
            .finish()
            .map_err(failed)?
            .expect("a file with rows has merged some");
        let meta = FileMeta::new(url, modified, bytes);
        let add = build_add_file_metadata(DataFileMetadata::new(meta, stats), &self.context)
            .and_then(EngineDataArrowExt::try_into_record_batch)
            .map_err(failed)?;
        Ok(Some(Written {
            path: add["path"].as_string::<i32>().value(0).into(),
            add,
            bytes,
            hashes: self.ids.finish(),
            location,
        }))
    }
}

/// Takes a file's bytes and hands them to the store: small ones at once, larger ones in parts.
struct Sink {
    storage: Arc<Storage>,
    location: StorePath,
    part: Vec<u8>,
    upload: Option<Box<dyn MultipartUpload>>,
    bytes: u64,
}

impl Sink {
    /// Ends the file, durable; its size and time of change in milliseconds since 1970.
    fn close(mut self) -> Result<(u64, i64), object_store::Error> {
        let storage = self.storage.clone();
        let (store, location) = (storage.store(), &self.location);
        let rest = std::mem::take(&mut self.part);
        storage.wait(async {
            match self.upload.take() {
                None => {
                    store
                        .put_opts(location, rest.into(), PutMode::Create.into())
                        .await?;
                }
                Some(mut upload) => {
                    upload.put_part(rest.into()).await?;
                    upload.complete().await?;
                }
            }
            let meta = store.head(location).await?;
            Ok((self.bytes, meta.last_modified.timestamp_millis()))
        })
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.part.extend_from_slice(bytes);
        self.bytes += bytes.len() as u64;
        if self.part.len() >= PART_BYTES {
            let part = std::mem::take(&mut self.part);
            let storage = self.storage.clone();
            storage.wait(async {
                if self.upload.is_none() {
                    self.upload = Some(storage.store().put_multipart(&self.location).await?);
                }
                let upload = self.upload.as_mut().expect("set above");
                upload.put_part(part.into()).await
            })?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How a table's columns are stored.
fn properties(table: TableName) -> WriterProperties {
    // (unique values, times and offsets to pack, statistics a page, statistics a chunk)
    let (unique, packed, by_page, by_chunk): (&[&str], &[&str], &[&str], &[&str]) = match table {
        TableName::Communications => (
            &["communication_id", "text", "resource_id"],
            &["occurred_at", "created_at", "updated_at"],
            &[
                "communication_id",
                "conversation_id",
                "occurred_at",
                "created_at",
            ],
            &["account_id", "author_type", "author_address", "direction"],
        ),
        TableName::Conversations => (
            &["conversation_id", "content_hash", "metadata", "extra"],
            &[
                "created_at",
                "closed_at",
                "updated_at",
                "first_communication_at",
                "last_communication_at",
                "enriched_at",
                "kafka_offset",
            ],
            &["conversation_id", "created_at", "closed_at"],
            &["account_id", "status", "completeness", "enriched_at"],
        ),
        TableName::Events => (
            &["event_id", "idempotency_token", "body"],
            &["occurred_at", "received_at", "kafka_offset"],
            &["conversation_id", "occurred_at", "received_at"],
            &["event_type", "kafka_partition", "kafka_offset"],
        ),
    };
    let column = |name: &&str| ColumnPath::from(*name);
    let level = ZstdLevel::try_new(1).expect("1 is a level of ZSTD");
    let mut builder = WriterProperties::builder()
        .set_compression(Compression::ZSTD(level))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_max_row_group_bytes(Some(ROW_GROUP_BYTES))
        .set_statistics_enabled(EnabledStatistics::None);
    for name in unique.iter().chain(packed) {
        builder = builder.set_column_dictionary_enabled(column(name), false);
    }
    for name in packed {
        builder = builder.set_column_encoding(column(name), Encoding::DELTA_BINARY_PACKED);
    }
    if table == TableName::Communications {
        // Its values share long prefixes in file order. Not for conversation_id: point queries get slower.
        builder = builder.set_column_encoding(
            ColumnPath::from("communication_id"),
            Encoding::DELTA_BYTE_ARRAY,
        );
    }
    for name in by_page {
        builder = builder.set_column_statistics_enabled(column(name), EnabledStatistics::Page);
    }
    for name in by_chunk {
        builder = builder.set_column_statistics_enabled(column(name), EnabledStatistics::Chunk);
    }
    builder.build()
}

fn invalid(table: TableName, error: &dyn std::error::Error) -> LakeError {
    LakeError::Invalid {
        table,
        reason: error.to_string(),
    }
}

fn unwritable(
    url: &url::Url,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> LakeError {
    LakeError::File {
        action: "writing",
        path: url.path().into(),
        source: source.into(),
    }
}
