//! Which files are live, and which of them have a conversation.
//!
//! Owns the newest snapshot that this process has seen and, beside it, what the log says of each live file. A refresh
//! reads only the log entries since. A look-up asks first the files' smallest and largest id (enough for ids that grow
//! with time), then a sorted list of id hashes per file, read once and kept below [`HASHES_MAX`], and last the file itself, so a
//! hash that collides claims nothing.
//!
//! Locks: `state` is held across a refresh (milliseconds), `hashes` never across I/O; both only on blocking threads.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::{Array, AsArray, BooleanArray, Int64Array, MapArray, StringArray, StructArray};
use arrow::datatypes::Int64Type;
use delta_kernel::engine::arrow_data::EngineDataArrowExt;
use delta_kernel::snapshot::SnapshotRef;
use serde::Deserialize;

use crate::table::TableName;
use crate::table::row::Days;

use super::log::Log;
use super::{LakeError, Stats, read};

/// Id hashes kept per table: 128 MiB. Above it the files asked least recently are read again when needed.
const HASHES_MAX: usize = 16 << 20;

/// Start of the name of a file whose rows were all live before.
const KEPT: &str = "kept-";

/// A live data file, as the log describes it.
#[derive(Debug)]
pub(super) struct LiveFile {
    /// As in the log: relative to the table, percent-encoded.
    pub(super) path: Arc<str>,
    pub(super) bytes: u64,
    pub(super) rows: u64,
    pub(super) partition: Partition,
    /// Bounds of its conversation ids (prefixes, so wider than the ids); `None` where the log has none.
    pub(super) ids: Option<(String, String)>,
    /// Bounds of its rows' Kafka partitions and offsets; `None` where the log has none.
    pub(super) kafka: Option<Kafka>,
    /// A version not below the one that brought its rows: whoever saw a later one saw them.
    since: u64,
}

/// Smallest and largest partition, smallest and largest offset.
pub(super) type Kafka = ((i32, i32), (i64, i64));

/// Values of the partition columns of a file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Partition {
    pub(super) date: Days,
    pub(super) channel: Option<String>,
}

/// One version: the snapshot and its live files.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub(super) snapshot: SnapshotRef,
    files: Arc<HashMap<Arc<str>, Arc<LiveFile>>>,
}

impl View {
    pub(super) fn is_live(&self, path: &str) -> bool {
        self.files.contains_key(path)
    }

    /// The same without some files.
    pub(super) fn without(&self, paths: &BTreeSet<String>) -> View {
        let mut view = self.clone();
        if !paths.is_empty() {
            let files = Arc::make_mut(&mut view.files);
            files.retain(|path, _| !paths.contains(&**path));
        }
        view
    }

    /// All live files, in the order of partitions.
    pub(super) fn files(&self) -> Vec<Arc<LiveFile>> {
        let mut files: Vec<_> = self.files.values().cloned().collect();
        files.sort_by(|a, b| (&a.partition, &a.path).cmp(&(&b.partition, &b.path)));
        files
    }

    pub(super) fn stats(&self) -> Stats {
        Stats {
            version: self.snapshot.version(),
            files: self.files.len(),
            rows: self.files.values().map(|file| file.rows).sum(),
            bytes: self.files.values().map(|file| file.bytes).sum(),
        }
    }
}

/// Files, each with the conversations that were looked for and are in it.
pub(super) type Found = Vec<(Arc<LiveFile>, BTreeSet<String>)>;

/// A table as this process knows it.
#[derive(Debug)]
pub(super) struct TableState {
    log: Log,
    state: Mutex<View>,
    /// That of `state`, readable while a refresh holds it.
    version: AtomicU64,
    hashes: Mutex<Hashes>,
    /// Held by the commit under way.
    pub(super) committing: Arc<tokio::sync::Mutex<()>>,
}

impl TableState {
    pub(super) fn new(log: Log, snapshot: SnapshotRef) -> Result<TableState, LakeError> {
        let view = load(&log, snapshot)?;
        Ok(TableState {
            log,
            version: AtomicU64::new(view.snapshot.version()),
            state: Mutex::new(view),
            hashes: Mutex::default(),
            committing: Arc::default(),
        })
    }

    pub(super) fn log(&self) -> &Log {
        &self.log
    }

    pub(super) fn table(&self) -> TableName {
        self.log.table
    }

    pub(super) fn folder(&self) -> &Path {
        &self.log.folder
    }

    /// The version seen last.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The newest version.
    pub(super) fn refresh(&self) -> Result<View, LakeError> {
        let mut state = lock(&self.state);
        let snapshot = self.log.refresh(state.snapshot.clone())?;
        self.advance(&mut state, snapshot)
    }

    /// Takes over a version that this process has just committed, with the id hashes of its files.
    pub(super) fn committed(
        &self,
        snapshot: SnapshotRef,
        written: impl IntoIterator<Item = (Arc<str>, Arc<[u64]>)>,
    ) -> Result<View, LakeError> {
        let mut state = lock(&self.state);
        let view = self.advance(&mut state, snapshot)?;
        drop(state);
        let mut hashes = lock(&self.hashes);
        for (path, ids) in written {
            hashes.keep(path, ids);
        }
        Ok(view)
    }

    /// Takes over the same version with a newer checkpoint under it.
    pub(super) fn adopt(&self, snapshot: SnapshotRef) {
        let mut state = lock(&self.state);
        if state.snapshot.version() == snapshot.version() {
            state.snapshot = snapshot;
        }
    }

    /// Which of `ids` have rows, by file. With `after`, only in files that came after that version.
    pub(super) fn find(
        &self,
        view: &View,
        ids: &[String],
        after: Option<u64>,
    ) -> Result<Found, LakeError> {
        let mut asked: Vec<(&str, u64)> = ids.iter().map(|id| (id.as_str(), hash(id))).collect();
        asked.sort_unstable();
        asked.dedup();
        let mut found = Vec::new();
        for file in view.files.values() {
            if after.is_some_and(|version| file.since <= version) {
                continue;
            }
            let within = match &file.ids {
                None => &asked[..],
                Some((smallest, largest)) => {
                    let from = asked.partition_point(|(id, _)| *id < smallest.as_str());
                    let to = asked.partition_point(|(id, _)| *id <= largest.as_str());
                    asked.get(from..to).unwrap_or(&[])
                }
            };
            if within.is_empty() {
                continue;
            }
            let hashes = self.hashes_of(file)?;
            let hits: BTreeSet<String> = within
                .iter()
                .filter(|(_, hash)| hashes.binary_search(hash).is_ok())
                .map(|(id, _)| (*id).to_owned())
                .collect();
            if hits.is_empty() {
                continue;
            }
            let mut confirmed = BTreeSet::new();
            for batch in read::matching(self.folder(), file, &["conversation_id"], &hits)? {
                for id in batch?.column(0).as_string::<i32>().iter().flatten() {
                    if !confirmed.contains(id) {
                        confirmed.insert(id.to_owned());
                    }
                }
            }
            if !confirmed.is_empty() {
                found.push((file.clone(), confirmed));
            }
        }
        Ok(found)
    }

    fn hashes_of(&self, file: &LiveFile) -> Result<Arc<[u64]>, LakeError> {
        if let Some(kept) = lock(&self.hashes).get(&file.path) {
            return Ok(kept);
        }
        let mut ids = IdHashes::default();
        for batch in read::rows(self.folder(), file, &["conversation_id"])? {
            ids.add(batch?.column(0).as_string::<i32>());
        }
        let ids = ids.finish();
        lock(&self.hashes).keep(file.path.clone(), ids.clone());
        Ok(ids)
    }

    fn advance(
        &self,
        state: &mut MutexGuard<'_, View>,
        snapshot: SnapshotRef,
    ) -> Result<View, LakeError> {
        let known = state.snapshot.version();
        if snapshot.version() <= known {
            return Ok(state.clone());
        }
        let failed = |error| self.log.failed("reading the log", error);
        let engine = self.log.storage.engine();
        let changes = snapshot
            .clone()
            .incremental_scan_builder(known)
            .build(engine)
            .map_err(failed)?;
        let Some(changes) = changes else {
            // The entries in between are gone into a checkpoint.
            let mut view = load(&self.log, snapshot)?;
            let files = Arc::make_mut(&mut view.files);
            for (path, file) in files {
                if let Some(known) = state.files.get(path) {
                    *file = known.clone();
                }
            }
            **state = view;
            self.version
                .store(state.snapshot.version(), Ordering::Release);
            return Ok(state.clone());
        };
        let changes = changes.into_listing().map_err(failed)?;
        let mut added = Vec::new();
        for data in changes.add_files {
            let (data, live) = data.into_parts();
            let batch = data.try_into_record_batch().map_err(failed)?;
            let adds = batch["add"].as_struct();
            parse(&self.log, adds, &live, snapshot.version(), &mut added)?;
        }
        let mut hashes = lock(&self.hashes);
        let files = Arc::make_mut(&mut state.files);
        for removed in &changes.summary.removes {
            files.remove(removed.path());
            hashes.forget(removed.path());
        }
        drop(hashes);
        for file in added {
            files.insert(file.path.clone(), Arc::new(file));
        }
        state.snapshot = snapshot;
        self.version
            .store(state.snapshot.version(), Ordering::Release);
        Ok(state.clone())
    }
}

/// The hashes of the ids in one column, sorted and distinct.
#[derive(Debug, Default)]
pub(super) struct IdHashes(Vec<u64>);

impl IdHashes {
    pub(super) fn add(&mut self, ids: &StringArray) {
        let mut last = None;
        for id in ids.iter().flatten() {
            // Rows of a conversation lie together.
            if last != Some(id) {
                self.0.push(hash(id));
                last = Some(id);
            }
        }
    }

    pub(super) fn finish(mut self) -> Arc<[u64]> {
        self.0.sort_unstable();
        self.0.dedup();
        self.0.into()
    }
}

/// Id hashes by file, least recently used ones dropped above [`HASHES_MAX`].
#[derive(Debug, Default)]
struct Hashes {
    by_file: HashMap<Arc<str>, (u64, Arc<[u64]>)>,
    entries: usize,
    clock: u64,
}

impl Hashes {
    fn get(&mut self, path: &str) -> Option<Arc<[u64]>> {
        self.clock += 1;
        let (used, ids) = self.by_file.get_mut(path)?;
        *used = self.clock;
        Some(ids.clone())
    }

    fn keep(&mut self, path: Arc<str>, ids: Arc<[u64]>) {
        self.clock += 1;
        self.entries += ids.len();
        if let Some((_, before)) = self.by_file.insert(path, (self.clock, ids)) {
            self.entries -= before.len();
        }
        if self.entries <= HASHES_MAX {
            return;
        }
        // A tenth at once, so that a full cache does not sort itself at every file.
        let mut by_age: Vec<_> = self
            .by_file
            .iter()
            .map(|(path, (used, _))| (*used, path.clone()))
            .collect();
        by_age.sort_unstable();
        for (_, path) in by_age {
            if self.entries <= HASHES_MAX / 10 * 9 {
                break;
            }
            self.forget(&path);
        }
    }

    fn forget(&mut self, path: &str) {
        if let Some((_, ids)) = self.by_file.remove(path) {
            self.entries -= ids.len();
        }
    }
}

fn hash(id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    hasher.finish()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panic leaves behind is still true: views and lists are replaced whole, after the work that can fail.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All live files of a snapshot, from its checkpoint and entries.
fn load(log: &Log, snapshot: SnapshotRef) -> Result<View, LakeError> {
    let failed = |error| log.failed("reading the log", error);
    let scan = snapshot.clone().scan_builder().build().map_err(failed)?;
    let mut files = Vec::new();
    for metadata in scan.scan_metadata(log.storage.engine()).map_err(failed)? {
        let (data, live) = metadata.map_err(failed)?.scan_files.into_parts();
        let batch = data.try_into_record_batch().map_err(failed)?;
        parse(
            log,
            &StructArray::from(batch),
            &live,
            snapshot.version(),
            &mut files,
        )?;
    }
    Ok(View {
        snapshot,
        files: Arc::new(
            files
                .into_iter()
                .map(|file| (file.path.clone(), Arc::new(file)))
                .collect(),
        ),
    })
}

/// Reads add actions, either as in the log (`add.path`, …) or as a scan gives them (partition values under
/// `fileConstantValues`).
fn parse(
    log: &Log,
    adds: &StructArray,
    live: &[bool],
    version: u64,
    into: &mut Vec<LiveFile>,
) -> Result<(), LakeError> {
    let odd = |what: &str| LakeError::Incompatible {
        table: log.table,
        reason: format!("its log describes a file without {what}"),
    };
    let column = |name: &'static str| adds.column_by_name(name).ok_or_else(|| odd(name));
    let paths = column("path")?.as_string::<i32>();
    let sizes: &Int64Array = column("size")?.as_primitive::<Int64Type>();
    let stats = column("stats")?.as_string::<i32>();
    let moves: Option<&BooleanArray> = adds.column_by_name("dataChange").map(|c| c.as_boolean());
    let values: &MapArray = match adds.column_by_name("partitionValues") {
        Some(values) => values.as_map(),
        None => column("fileConstantValues")?
            .as_struct()
            .column_by_name("partitionValues")
            .ok_or_else(|| odd("partition values"))?
            .as_map(),
    };
    for row in 0..adds.len() {
        if !live.get(row).copied().unwrap_or(true) || paths.is_null(row) {
            continue;
        }
        let known: FileStats = if stats.is_null(row) {
            FileStats::default()
        } else {
            serde_json::from_str(stats.value(row)).map_err(|_| odd("readable statistics"))?
        };
        let (least, most) = (known.min_values, known.max_values);
        let (least, most) = (least.unwrap_or_default(), most.unwrap_or_default());
        let partitions = least.kafka_partition.zip(most.kafka_partition);
        let offsets = least.kafka_offset.zip(most.kafka_offset);
        // Compaction, and the rewriting of a file for the sake of another conversation, move rows that were
        // there before: nobody's new writing.
        let moved =
            moves.is_some_and(|m| m.is_valid(row) && !m.value(row)) || is_kept(paths.value(row));
        into.push(LiveFile {
            path: paths.value(row).into(),
            bytes: u64::try_from(sizes.value(row)).unwrap_or(0),
            rows: known.num_records,
            partition: partition(log.table, &values.value(row))
                .ok_or_else(|| odd("a value for each partition column"))?,
            ids: least.conversation_id.zip(most.conversation_id),
            kafka: partitions.zip(offsets),
            since: if moved { 0 } else { version },
        });
    }
    Ok(())
}

/// Name of a data file: `kept` if all its rows were live before, in a file that it replaces.
pub(super) fn file_name(kept: bool) -> String {
    // A name is never used twice: a file removed and added in one version would be ambiguous.
    let id = uuid::Uuid::new_v4();
    format!("{}{id}.parquet", if kept { KEPT } else { "" })
}

fn is_kept(path: &str) -> bool {
    path.rsplit('/')
        .next()
        .is_some_and(|name| name.starts_with(KEPT))
}

fn partition(table: TableName, entries: &StructArray) -> Option<Partition> {
    let (names, values) = (entries.column(0), entries.column(1));
    let (names, values) = (names.as_string::<i32>(), values.as_string::<i32>());
    let value = |name: &str| {
        (0..names.len())
            .find(|row| names.value(*row) == name && values.is_valid(*row))
            .map(|row| values.value(row))
    };
    let epoch = jiff::civil::date(1970, 1, 1);
    let date: jiff::civil::Date = value("date")?.parse().ok()?;
    let channel = value("channel").map(str::to_owned);
    if table.partitions().contains(&"channel") != channel.is_some() {
        return None;
    }
    Some(Partition {
        date: (date - epoch).get_days(),
        channel,
    })
}

/// The part of a file's statistics that is used (Delta protocol, "Per-file Statistics").
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct FileStats {
    num_records: u64,
    min_values: Option<Bounds>,
    max_values: Option<Bounds>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Bounds {
    conversation_id: Option<String>,
    kafka_partition: Option<i32>,
    kafka_offset: Option<i64>,
}
