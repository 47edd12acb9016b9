//! One table's Delta log: load, refresh, create, take over, try a commit, checkpoint.
//!
//! The only file that builds kernel transactions. It never decides whether a commit may be tried again ([`super::commit`]
//! does): a try ends in [`Tried`], and "conflict" there means only that a newer version exists.
//!
//! Invariants: a commit is put only where the version before it still has its entry ([`Guarded`]); a checksum file is
//! written after create and with each checkpoint, so that positions cost no replay.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, Schema};
use delta_kernel::committer::{CommitMetadata, CommitResponse, Committer, PublishMetadata};
use delta_kernel::engine::arrow_conversion::{TryIntoArrow, TryIntoKernel};
use delta_kernel::engine::arrow_data::{ArrowEngineData, EngineDataArrowExt};
use delta_kernel::schema::{DataType, StructField, StructType};
use delta_kernel::snapshot::{IncrementalReplay, SnapshotRef};
use delta_kernel::table_features::TableFeature;
use delta_kernel::transaction::create_table::create_table;
use delta_kernel::transaction::data_layout::DataLayout;
use delta_kernel::transaction::{CommitResult, UpdateTableOperation};
use delta_kernel::{
    Engine, FileMeta, FilteredEngineData, KernelError, KernelResult, KernelResultIterator, Snapshot,
};
use object_store::{ObjectStoreExt, path::Path as StorePath};
use url::Url;

use crate::table::{self, TableName};

use super::storage::Storage;
use super::{LakeError, location};

/// Commits between two checkpoints: what a fresh reader has to replay at most.
const CHECKPOINT_EVERY_VERSIONS: u64 = 50;
/// Tries to add columns while others commit.
const ALTER_TRIES: u32 = 20;
/// Written into every commit's `commitInfo`.
const ENGINE_INFO: &str = concat!("convolake/", env!("CARGO_PKG_VERSION"));

/// What one try to commit came to.
#[derive(Debug)]
pub(super) enum Tried {
    /// Durable and visible.
    Committed(SnapshotRef),
    /// A newer version exists. After a lost answer that version may be ours.
    Conflicted,
    /// An error on the way: durable or not, only the log knows.
    Unknown(KernelError),
}

/// What one try wants to write.
#[derive(Debug)]
pub(super) struct Change<'a> {
    /// Add metadata, one batch a file.
    pub(super) adds: Vec<&'a RecordBatch>,
    /// Paths of live files that go.
    pub(super) removes: Vec<&'a str>,
    /// Positions, each app once.
    pub(super) positions: Vec<(&'a str, i64)>,
}

#[derive(Debug)]
pub(super) struct Log {
    pub(super) table: TableName,
    pub(super) storage: Arc<Storage>,
    pub(super) folder: PathBuf,
    url: Url,
}

impl Log {
    pub(super) fn new(
        storage: Arc<Storage>,
        root: &Path,
        table: TableName,
    ) -> Result<Log, LakeError> {
        let folder = root.join(table.as_str());
        let url = Url::from_directory_path(&folder).map_err(|()| LakeError::Location {
            location: root.display().to_string(),
            reason: "the path is not absolute".to_owned(),
        })?;
        Ok(Log {
            table,
            storage,
            folder,
            url,
        })
    }

    /// The newest version, judged: this version of the program can write to it.
    pub(super) fn load(&self) -> Result<SnapshotRef, LakeError> {
        let snapshot = Snapshot::builder_for(&self.url)
            .with_incremental_crc_replay(IncrementalReplay::Unlimited)
            .build(self.storage.engine())
            .map_err(|error| self.unreadable(error))?;
        self.judge(&snapshot)?;
        Ok(snapshot)
    }

    /// The newest version, from a known one. Two file look-ups when nothing is new; else the log from the known
    /// checkpoint on is listed, and the entries after the known version are read.
    pub(super) fn refresh(&self, known: SnapshotRef) -> Result<SnapshotRef, LakeError> {
        // The own entry is looked at second: clean-up deletes upwards, so while it is there the next one is, too,
        // if it ever was.
        let version = known.version();
        let failed = |error: object_store::Error| self.failed("reading the log", error);
        let has_next = self.has_entry(version + 1).map_err(failed)?;
        if !has_next && self.has_entry(version).map_err(failed)? {
            return Ok(known);
        }
        Snapshot::builder_from(known)
            .with_incremental_crc_replay(IncrementalReplay::Unlimited)
            .build(self.storage.engine())
            .map_err(|error| self.failed("reading the log", error))
    }

    /// Makes the table, or takes the one that somebody else made meanwhile.
    pub(super) fn create(&self) -> Result<SnapshotRef, LakeError> {
        location::make_folder(&self.folder)?;
        let engine = self.storage.engine();
        let schema: StructType = table::schema(self.table)
            .as_ref()
            .try_into_kernel()
            .map_err(|error| self.failed("describing the columns", error))?;
        // Kept out of the log by this for any writer: text and addresses must not outlive an erasure there.
        let statistics = self.table.pruned_by().join(",");
        let created = create_table(self.url.as_str(), Arc::new(schema), ENGINE_INFO, false)
            .with_table_properties([("delta.dataSkippingStatsColumns", statistics)])
            .with_data_layout(DataLayout::partitioned(
                self.table.partitions().iter().copied(),
            ))
            .build(engine, Box::new(self.guarded()))
            .and_then(|transaction| transaction.commit(engine));
        // Lost the race, or lost the answer: either way what counts is what is there now.
        let snapshot = self.load().map_err(|unreadable| match created {
            Err(error) => self.failed("creating it", error),
            Ok(_) => unreadable,
        })?;
        Ok(self.write_checksum(snapshot))
    }

    /// Adds the columns that an older version of ours did not have.
    pub(super) fn complete_columns(
        &self,
        mut snapshot: SnapshotRef,
    ) -> Result<SnapshotRef, LakeError> {
        for _ in 0..ALTER_TRIES {
            let lacking = self.judge(&snapshot)?;
            if lacking.is_empty() {
                return Ok(snapshot);
            }
            let names: Vec<&str> = lacking.iter().map(|f| f.name().as_str()).collect();
            tracing::info!(table = %self.table, columns = ?names, "adding columns to the table");
            let mut builder =
                snapshot
                    .clone()
                    .update_table(UpdateTableOperation::AlterTable, ENGINE_INFO, false);
            for field in lacking {
                builder = builder.add_column(field);
            }
            let engine = self.storage.engine();
            // Committed, or somebody else committed first: what counts is what is there now.
            let _ = builder
                .build(engine, Box::new(self.guarded()))
                .and_then(|transaction| transaction.commit(engine))
                .map_err(|error| self.failed("adding columns", error))?;
            snapshot = self.refresh(snapshot)?;
        }
        Err(LakeError::Contended {
            table: self.table,
            tries: ALTER_TRIES,
        })
    }

    /// The columns that the table lacks, or why it must not be written.
    pub(super) fn judge(&self, snapshot: &SnapshotRef) -> Result<Vec<StructField>, LakeError> {
        let refuse = |reason: String| LakeError::Incompatible {
            table: self.table,
            reason,
        };
        let configuration = snapshot.table_configuration();
        let protocol = configuration.protocol();
        let (reader, writer) = (protocol.min_reader_version(), protocol.min_writer_version());
        if !matches!((reader, writer), (1, 1 | 2 | 7) | (3, 7)) {
            return Err(refuse(format!(
                "its Delta protocol is reader {reader}, writer {writer}; known are 1/1, 1/2, 1/7 and 3/7"
            )));
        }
        let features = [protocol.reader_features(), protocol.writer_features()];
        for feature in features.into_iter().flatten().flatten() {
            // Both are in force for every table of writer version 2, and add nothing by themselves.
            if !matches!(feature, TableFeature::AppendOnly | TableFeature::Invariants) {
                return Err(refuse(format!("it needs the Delta feature `{feature}`")));
            }
        }
        let properties = snapshot.metadata_configuration();
        // Positions would expire, and a replay would be taken for new.
        if properties.contains_key("delta.setTransactionRetentionDuration") {
            return Err(refuse(
                "`delta.setTransactionRetentionDuration` is set, so Kafka positions in it expire; unset it".to_owned(),
            ));
        }
        if properties.get("delta.appendOnly").map(String::as_str) == Some("true") {
            return Err(refuse(
                "`delta.appendOnly` is set, so nothing can be replaced or erased; unset it"
                    .to_owned(),
            ));
        }
        let found: Schema = snapshot
            .schema()
            .as_ref()
            .try_into_arrow()
            .map_err(|error| self.failed("reading the columns", error))?;
        let lacking = table::reconcile(
            self.table,
            &found,
            configuration.metadata().partition_columns(),
        )
        .map_err(|mismatch| refuse(mismatch.to_string()))?;
        // Asks the kernel whether it may write: invariants, constraints, whatever it knows and we do not.
        snapshot
            .clone()
            .update_table(UpdateTableOperation::Write, ENGINE_INFO, true)
            .build(self.storage.engine(), Box::new(self.guarded()))
            .map_err(|error| refuse(error.without_backtrace().to_string()))?;
        lacking
            .iter()
            .map(|field| {
                field
                    .try_into_kernel()
                    .map_err(|error| self.failed("describing the columns", error))
            })
            .collect()
    }

    /// The position of an app in a version.
    pub(super) fn position(
        &self,
        snapshot: &SnapshotRef,
        app: &str,
    ) -> Result<Option<i64>, LakeError> {
        snapshot
            .get_app_id_version(app, self.storage.engine())
            .map_err(|error| self.failed("reading positions", error))
    }

    /// Every position in a version.
    pub(super) fn all_positions(
        &self,
        snapshot: &SnapshotRef,
    ) -> Result<BTreeMap<String, i64>, LakeError> {
        let failed = |error| self.failed("reading positions", error);
        let transaction = StructType::new_unchecked([
            StructField::nullable("appId", DataType::STRING),
            StructField::nullable("version", DataType::LONG),
        ]);
        let transaction = StructField::nullable("txn", transaction);
        let schema = Arc::new(StructType::new_unchecked([transaction]));
        let engine = self.storage.engine();
        let actions = snapshot.log_segment().read_actions(engine, schema);
        let mut positions = BTreeMap::new();
        for batch in actions.map_err(failed)? {
            let batch = batch.map_err(failed)?.actions;
            let batch = batch.try_into_record_batch().map_err(failed)?;
            let transactions = batch["txn"].as_struct();
            let apps = transactions.column(0).as_string::<i32>();
            let versions = transactions.column(1).as_primitive::<Int64Type>();
            for row in (0..apps.len()).filter(|row| apps.is_valid(*row)) {
                // Entries come newest first, the checkpoint last.
                let position = positions.entry(apps.value(row).to_owned());
                position.or_insert(versions.value(row));
            }
        }
        Ok(positions)
    }

    /// Tries once, on exactly this version.
    pub(super) fn attempt(
        &self,
        snapshot: &SnapshotRef,
        change: &Change<'_>,
    ) -> Result<Tried, LakeError> {
        let engine = self.storage.engine();
        let operation = if change.removes.is_empty() {
            UpdateTableOperation::StreamingUpdate
        } else {
            UpdateTableOperation::Update
        };
        let mut builder = snapshot.clone().update_table(operation, ENGINE_INFO, true);
        // The kernel calls a commit of positions alone no append.
        if change.removes.is_empty() && !change.adds.is_empty() {
            builder = builder
                .with_blind_append()
                .with_operation_parameters([("outputMode", Some("Append"))]);
        }
        for (app, version) in &change.positions {
            builder = builder.with_transaction_id(*app, *version);
        }
        let mut transaction = builder
            .build(engine, Box::new(self.guarded()))
            .map_err(|error| self.failed("preparing a commit", error))?;
        for add in &change.adds {
            transaction.add_files(Box::new(ArrowEngineData::new((*add).clone())));
        }
        for removed in self.select(snapshot, &change.removes)? {
            transaction.remove_files(removed);
        }
        Ok(match transaction.commit(engine) {
            Ok(CommitResult::Committed(done)) => match done.post_commit_snapshot() {
                Some(snapshot) => Tried::Committed(snapshot.clone()),
                None => Tried::Committed(self.refresh(snapshot.clone())?),
            },
            Ok(CommitResult::Conflicted(_)) => Tried::Conflicted,
            Ok(CommitResult::Retryable(failed)) => Tried::Unknown(failed.error),
            Err(error) => Tried::Unknown(error),
        })
    }

    /// After a commit: at every fiftieth version a checkpoint and a checksum, which the returned snapshot builds on. A
    /// failure is logged and no more; the next one makes up for it.
    pub(super) fn maintain(&self, snapshot: SnapshotRef) -> SnapshotRef {
        if !snapshot.version().is_multiple_of(CHECKPOINT_EVERY_VERSIONS) {
            return snapshot;
        }
        self.checkpoint(snapshot)
    }

    /// Whether a fresh reader has more to replay than [`Log::maintain`] leaves: other writers, or checkpoints that failed.
    pub(super) fn is_long(&self, snapshot: &SnapshotRef) -> bool {
        let newest = snapshot.log_segment().checkpoint_version.unwrap_or(0);
        snapshot.version() - newest > CHECKPOINT_EVERY_VERSIONS
    }

    /// Writes a checkpoint and a checksum; the same snapshot where that fails.
    pub(super) fn checkpoint(&self, snapshot: SnapshotRef) -> SnapshotRef {
        match snapshot.checkpoint(self.storage.engine(), None) {
            Ok((_, snapshot)) => self.write_checksum(snapshot),
            Err(error) => {
                tracing::warn!(
                    table = %self.table,
                    version = snapshot.version(),
                    error = %error.without_backtrace(),
                    "checkpoint failed; reading the table gets slower until the next one succeeds"
                );
                snapshot
            }
        }
    }

    /// What a data file of a partition is written with.
    pub(super) fn write_state(
        &self,
        snapshot: &SnapshotRef,
    ) -> Result<Arc<delta_kernel::transaction::WriteState>, LakeError> {
        snapshot
            .clone()
            .update_table(UpdateTableOperation::Write, ENGINE_INFO, true)
            .build(self.storage.engine(), Box::new(self.guarded()))
            .and_then(|transaction| transaction.write_state())
            .map_err(|error| self.failed("preparing to write files", error))
    }

    pub(super) fn failed(
        &self,
        action: &'static str,
        error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> LakeError {
        LakeError::Log {
            table: self.table,
            action,
            source: error.into(),
        }
    }

    /// The live files at `paths`, as the kernel wants them removed. Each must be live in `snapshot`: a stale remove is
    /// accepted by the protocol and doubles rows.
    fn select(
        &self,
        snapshot: &SnapshotRef,
        paths: &[&str],
    ) -> Result<Vec<FilteredEngineData>, LakeError> {
        if paths.is_empty() {
            return Ok(Vec::new());
        }
        let failed = |error| self.failed("selecting files to remove", error);
        let scan = snapshot.clone().scan_builder().build().map_err(failed)?;
        let mut selected = Vec::new();
        let mut found = 0;
        for metadata in scan.scan_metadata(self.storage.engine()).map_err(failed)? {
            let (data, live) = metadata.map_err(failed)?.scan_files.into_parts();
            let batch = data.try_into_record_batch().map_err(failed)?;
            let names = batch["path"].as_string::<i32>();
            let chosen: Vec<bool> = (0..names.len())
                .map(|row| {
                    live.get(row).copied().unwrap_or(true) && paths.contains(&names.value(row))
                })
                .collect();
            let count = chosen.iter().filter(|chosen| **chosen).count();
            if count > 0 {
                found += count;
                let data = Box::new(ArrowEngineData::new(batch));
                selected.push(FilteredEngineData::try_new(data, chosen).map_err(failed)?);
            }
        }
        if found != paths.len() {
            return Err(LakeError::Invalid {
                table: self.table,
                reason: format!("{found} of {} files to remove are live", paths.len()),
            });
        }
        Ok(selected)
    }

    fn write_checksum(&self, snapshot: SnapshotRef) -> SnapshotRef {
        match snapshot.write_checksum(self.storage.engine()) {
            Ok((_, snapshot)) => snapshot,
            Err(error) => {
                tracing::warn!(
                    table = %self.table,
                    version = snapshot.version(),
                    error = %error.without_backtrace(),
                    "checksum file not written; reading positions costs a replay until the next one"
                );
                snapshot
            }
        }
    }

    fn has_entry(&self, version: u64) -> Result<bool, object_store::Error> {
        has_entry(&self.storage, &self.url, version)
    }

    fn guarded(&self) -> Guarded {
        Guarded(self.storage.clone())
    }

    /// An error of the first load: mostly a protocol that the kernel does not know.
    fn unreadable(&self, error: KernelError) -> LakeError {
        match error.without_backtrace() {
            KernelError::Unsupported(reason) | KernelError::InvalidProtocol(reason) => {
                LakeError::Incompatible {
                    table: self.table,
                    reason: reason.clone(),
                }
            }
            _ => self.failed("reading the log", error),
        }
    }
}

/// Whether a version's entry is in the log of the table at `root`.
fn has_entry(storage: &Storage, root: &Url, version: u64) -> Result<bool, object_store::Error> {
    let path = StorePath::from_url_path(root.path())?
        .join("_delta_log")
        .join(format!("{version:020}.json"));
    match storage.wait(storage.store().head(&path)) {
        Ok(_) => Ok(true),
        Err(object_store::Error::NotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Puts a commit only if the version before it still has its entry.
///
/// Log clean-up may delete entries below a checkpoint. A writer that slept through that would put its commit into the
/// gap, be told "committed", and no reader would ever look there.
#[derive(Debug)]
struct Guarded(Arc<Storage>);

impl Committer for Guarded {
    fn commit(
        &self,
        engine: &dyn Engine,
        actions: KernelResultIterator<'_, FilteredEngineData>,
        metadata: CommitMetadata,
    ) -> KernelResult<CommitResponse> {
        let version = metadata.version();
        if let Some(before) = version.checked_sub(1) {
            match has_entry(&self.0, metadata.table_root(), before) {
                Ok(true) => {}
                Ok(false) => return Ok(CommitResponse::Conflict { version }),
                Err(error) => return Err(KernelError::generic_err(error)),
            }
        }
        let entry = metadata.published_commit_path()?;
        match engine
            .json_handler()
            .write_json_file(&entry, actions, false)
        {
            Ok(bytes) => Ok(CommitResponse::Committed {
                file_meta: FileMeta::new(entry, metadata.in_commit_timestamp(), bytes),
            }),
            // With back traces on, errors come wrapped.
            Err(error) => match error.without_backtrace() {
                KernelError::FileAlreadyExists(_) => Ok(CommitResponse::Conflict { version }),
                _ => Err(error),
            },
        }
    }

    fn is_catalog_committer(&self) -> bool {
        false
    }

    fn publish(&self, _: &dyn Engine, _: PublishMetadata) -> KernelResult<()> {
        Ok(())
    }
}
