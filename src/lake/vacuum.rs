//! What may be deleted: data files that no version within the retention names, and what killed writers staged.
//!
//! Owns the rule, which is that of Delta's VACUUM. A file goes when it is older than the retention, and neither live nor
//! removed within it. Only files that a writer of data gives their names are looked at (`*.parquet` in partition folders, and
//! `<name>#<number>`, as the local store stages); names with `_` or `.` in front are others', and in the log nothing but staged files
//! is touched.
//!
//! *Now* is the storage's time, not the process': a host whose clock is days ahead would take a file that is about to be
//! committed for an old one. What was removed when is read off the log entries' own times as well, since a tombstone has the
//! clock of whoever removed.
//!
//! Safe beside writers: what they are about to commit is younger than [`RETENTION_LEAST`], and the log is looked at again
//! before each deletion. Not safe beside one that was suspended for longer than the retention with a commit in hand.
//!
//! Memory: the paths of files that are live or within the retention, and [`BATCH`] candidates.

use std::collections::HashMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use arrow::array::{Array, AsArray};
use arrow::datatypes::Int64Type;
use delta_kernel::engine::arrow_data::EngineDataArrowExt;
use delta_kernel::schema::{DataType, SchemaRef, StructField, StructType};
use serde::{Deserialize, Serialize};

use crate::lifecycle::Clock;
use crate::table::TableName;

use super::live::{TableState, View};
use super::read::located;
use super::{Lake, LakeError, blocking};

/// The shortest retention that is safe beside writers. A file waits for its commit for as long as the tries of one commit
/// take, which is a minute; the rest is for a disk or a process that stands still.
pub const RETENTION_LEAST: Duration = Duration::from_secs(60 * 60);

/// Candidates gathered before the log is looked at again.
const BATCH: usize = 1024;
/// Names of files that a report holds.
const NAMED: usize = 50;
/// How far the process' clock may be from the storage's for a checkpoint: it leaves out tombstones by that clock.
const SKEW_MAX: Duration = Duration::from_secs(10 * 60);

/// What to keep, and whether to delete.
#[derive(Debug, Clone, Copy)]
pub struct Sweep {
    /// Versions of so long ago stay readable. A table's own `delta.deletedFileRetentionDuration` counts where it is longer.
    pub retain: Duration,
    /// Delete nothing, and write nothing but the file that is dated.
    pub dry_run: bool,
    /// The process' clock: compared with the storage's, and believed in nothing.
    pub clock: Clock,
}

/// What was found in one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Swept {
    /// Its name.
    pub table: &'static str,
    /// The version that was looked at last.
    pub version: u64,
    /// The retention that was applied.
    pub retain_seconds: u64,
    /// Data files that the version named at first.
    pub live: u64,
    /// Further ones that are kept: named by a version within the retention, or younger than it.
    pub kept: u64,
    /// Those that are neither.
    pub orphans: u64,
    /// Files that a killed writer had staged, older than the retention.
    pub staged: u64,
    /// Bytes of orphans and staged files.
    pub bytes: u64,
    /// How many of both were deleted.
    pub deleted: u64,
    /// The first of them, relative to the table.
    pub files: Vec<String>,
    /// The version that a checkpoint was written of, as the log was long without one.
    pub checkpoint: Option<u64>,
}

impl Lake {
    /// Sweeps every table.
    ///
    /// # Errors
    /// I/O; tables before the one that failed are swept.
    pub async fn sweep(&self, sweep: Sweep) -> Result<Vec<Swept>, LakeError> {
        let (root, lake) = (self.root().to_owned(), self.clone());
        blocking(move || {
            let now = storage_now(&root)?;
            let tables = TableName::ALL.iter();
            tables
                .map(|name| table(&lake.table(*name).0, sweep, now))
                .collect()
        })
        .await
    }
}

/// The time by the clock that files are dated with.
fn storage_now(root: &Path) -> Result<SystemTime, LakeError> {
    let path = root.join(format!(".maintain-{}", uuid::Uuid::new_v4()));
    let probe = || {
        let mut file = fs::File::create_new(&path)?;
        // Without its name it is still dated when written, and gone whatever happens.
        fs::remove_file(&path)?;
        file.write_all(b"now")?;
        file.sync_all()?;
        file.metadata()?.modified()
    };
    probe().map_err(|error| failed("dating", &path, error))
}

fn table(state: &TableState, sweep: Sweep, now: SystemTime) -> Result<Swept, LakeError> {
    let view = state.refresh()?;
    let own = view.snapshot.table_properties();
    let retain = own
        .deleted_file_retention_duration
        .map_or(sweep.retain, |own| own.max(sweep.retain));
    let mut sweeper = Sweeper {
        state,
        dry_run: sweep.dry_run,
        // Before 1970 nothing was written.
        horizon: now.checked_sub(retain).unwrap_or(SystemTime::UNIX_EPOCH),
        named: HashMap::new(),
        candidates: Vec::new(),
        swept: Swept {
            table: state.table().as_str(),
            version: view.snapshot.version(),
            retain_seconds: retain.as_secs(),
            live: view.files().len() as u64,
            kept: 0,
            orphans: 0,
            staged: 0,
            bytes: 0,
            deleted: 0,
            files: Vec::new(),
            checkpoint: None,
        },
        view,
    };
    sweeper.name_live();
    sweeper.name_tombstones()?;
    sweeper.log()?;
    sweeper.data(state.folder(), state.table().partitions())?;
    sweeper.checkpoint(sweep.clock, now);
    Ok(sweeper.swept)
}

/// One table being swept.
struct Sweeper<'a> {
    state: &'a TableState,
    dry_run: bool,
    /// What is dated later stays.
    horizon: SystemTime,
    view: View,
    /// Where the files are that are live or were within the retention; it only grows.
    named: HashMap<PathBuf, Named>,
    candidates: Vec<Candidate>,
    swept: Swept,
}

#[derive(Clone, Copy, PartialEq)]
enum Named {
    Live,
    Removed,
}

struct Candidate {
    path: PathBuf,
    bytes: u64,
}

impl Sweeper<'_> {
    fn name_live(&mut self) {
        let folder = self.state.folder();
        let live = self.view.files();
        let live = live.iter().map(|file| (file.location(folder), Named::Live));
        self.named.extend(live);
    }

    /// Names what tombstones that the newest checkpoint and the entries since it have say was removed within the retention.
    fn name_tombstones(&mut self) -> Result<(), LakeError> {
        let log = self.state.log();
        let failed = |error| log.failed("reading tombstones", error);
        let horizon = millis(self.horizon);
        let segment = self.view.snapshot.log_segment();
        let actions = segment.read_actions(log.storage.engine(), tombstones());
        for batch in actions.map_err(failed)? {
            let batch = batch.map_err(failed)?.actions;
            let batch = batch.try_into_record_batch().map_err(failed)?;
            let removes = batch["remove"].as_struct();
            let paths = removes.column(0).as_string::<i32>();
            let times = removes.column(1).as_primitive::<Int64Type>();
            for row in 0..removes.len() {
                // One without a time was removed nobody knows when (Delta protocol, "Add File and Remove File").
                let late = times.is_valid(row) && times.value(row) > horizon;
                if removes.is_valid(row) && paths.is_valid(row) && late {
                    self.name_removed(paths.value(row));
                }
            }
        }
        Ok(())
    }

    fn name_removed(&mut self, path: &str) {
        let path = located(self.state.folder(), path);
        self.named.entry(path).or_insert(Named::Removed);
    }

    /// Names what entries within the retention removed, and sweeps what was staged beside them.
    fn log(&mut self) -> Result<(), LakeError> {
        for entry in entries(&self.state.folder().join("_delta_log"))? {
            let entry = entry?;
            if is_staged(&entry.name) {
                self.consider(entry, true)?;
            } else if is_entry(&entry.name) && entry.modified > self.horizon {
                for path in removed_by(&entry.path)? {
                    self.name_removed(&path);
                }
            }
        }
        self.delete()
    }

    /// Goes through the folders of partitions; data files lie in the innermost.
    fn data(&mut self, folder: &Path, partitions: &[&str]) -> Result<(), LakeError> {
        for entry in entries(folder)? {
            let entry = entry?;
            match partitions {
                [column, inner @ ..] if entry.is_folder => {
                    let value = entry.name.strip_prefix(column);
                    if value.is_some_and(|rest| rest.starts_with('=')) {
                        self.data(&entry.path, inner)?;
                    }
                }
                _ if is_staged(&entry.name) => self.consider(entry, true)?,
                [] if is_data(&entry.name) => self.consider(entry, false)?,
                _ => {}
            }
        }
        self.delete()
    }

    fn consider(&mut self, entry: Entry, staged: bool) -> Result<(), LakeError> {
        if !entry.is_file {
            return Ok(());
        }
        let named = self.named.get(&entry.path);
        if named.is_some() || entry.modified > self.horizon {
            self.swept.kept += u64::from(!staged && named != Some(&Named::Live));
            return Ok(());
        }
        match staged {
            true => self.swept.staged += 1,
            false => self.swept.orphans += 1,
        }
        self.candidates.push(Candidate {
            path: entry.path,
            bytes: entry.bytes,
        });
        if self.candidates.len() >= BATCH {
            self.delete()?;
        }
        Ok(())
    }

    /// Deletes the candidates that the newest version does not name either.
    fn delete(&mut self) -> Result<(), LakeError> {
        if self.candidates.is_empty() {
            return Ok(());
        }
        let view = self.state.refresh()?;
        if view.snapshot.version() > self.view.snapshot.version() {
            self.view = view;
            self.swept.version = self.view.snapshot.version();
            self.name_live();
        }
        for Candidate { path, bytes } in std::mem::take(&mut self.candidates) {
            if self.named.contains_key(&path) {
                self.swept.orphans -= 1;
                continue;
            }
            self.swept.bytes += bytes;
            if self.swept.files.len() < NAMED {
                let name = path.strip_prefix(self.state.folder()).unwrap_or(&path);
                self.swept.files.push(name.display().to_string());
            }
            if self.dry_run {
                continue;
            }
            match fs::remove_file(&path) {
                Ok(()) => self.swept.deleted += 1,
                // By another sweep, or by the writer that staged it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed("deleting", &path, error)),
            }
            tracing::debug!(table = self.swept.table, path = %path.display(), "deleted");
        }
        Ok(())
    }

    /// Writes a checkpoint where the log is long without one.
    fn checkpoint(&mut self, clock: Clock, now: SystemTime) {
        if self.dry_run || !self.state.log().is_long(&self.view.snapshot) {
            return;
        }
        let here = SystemTime::from(clock.now());
        let apart = here.duration_since(now).unwrap_or_else(|e| e.duration());
        if apart > SKEW_MAX {
            tracing::warn!(
                table = self.swept.table,
                seconds = apart.as_secs(),
                "no checkpoint written: this host's clock is so far from the storage's, and by it tombstones would be left out; \
                 set the clock"
            );
            return;
        }
        let snapshot = self.view.snapshot.clone();
        let version = snapshot.version();
        let snapshot = self.state.log().checkpoint(snapshot);
        let written = snapshot.log_segment().checkpoint_version == Some(version);
        self.swept.checkpoint = written.then_some(version);
        self.state.adopt(snapshot);
    }
}

/// The part of a remove action that is read.
fn tombstones() -> SchemaRef {
    let remove = StructType::new_unchecked([
        StructField::nullable("path", DataType::STRING),
        StructField::nullable("deletionTimestamp", DataType::LONG),
    ]);
    let remove = StructField::nullable("remove", remove);
    std::sync::Arc::new(StructType::new_unchecked([remove]))
}

/// An entry of a folder, looked at without following links.
struct Entry {
    name: String,
    path: PathBuf,
    is_file: bool,
    is_folder: bool,
    bytes: u64,
    modified: SystemTime,
}

/// The entries of a folder, one at a time; what is gone meanwhile, or has no name in UTF-8, is passed over.
fn entries(
    folder: &Path,
) -> Result<impl Iterator<Item = Result<Entry, LakeError>> + use<>, LakeError> {
    let listing = match fs::read_dir(folder) {
        Ok(listing) => Some(listing),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed("listing", folder, error)),
    };
    let folder = folder.to_owned();
    let look = |entry: io::Result<fs::DirEntry>| {
        let entry = entry?;
        let metadata = entry.metadata()?;
        io::Result::Ok(Entry {
            name: entry.file_name().into_string().unwrap_or_default(),
            path: entry.path(),
            is_file: metadata.is_file(),
            is_folder: metadata.is_dir(),
            bytes: metadata.len(),
            modified: metadata.modified()?,
        })
    };
    Ok(listing
        .into_iter()
        .flatten()
        .filter_map(move |entry| match look(entry) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            looked => Some(looked.map_err(|error| failed("listing", &folder, error))),
        }))
}

/// `*.parquet` that no reader of Delta takes for hidden.
fn is_data(name: &str) -> bool {
    name.ends_with(".parquet") && !name.starts_with(['_', '.'])
}

/// `<name>#<number>`: what the local store writes to before it gives a file its name.
fn is_staged(name: &str) -> bool {
    name.rsplit_once('#').is_some_and(|(name, number)| {
        let ours = [".parquet", ".json", ".crc", "_last_checkpoint"];
        ours.iter().any(|end| name.ends_with(end))
            && !number.is_empty()
            && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// `<20 digits>.json` (Delta protocol, "Delta Log Entries").
fn is_entry(name: &str) -> bool {
    name.strip_suffix(".json").is_some_and(|version| {
        version.len() == 20 && version.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// Paths that an entry of the log removes.
fn removed_by(entry: &Path) -> Result<Vec<String>, LakeError> {
    #[derive(Deserialize)]
    struct Action {
        remove: Option<Remove>,
    }
    #[derive(Deserialize)]
    struct Remove {
        path: String,
    }
    let file = match fs::File::open(entry) {
        Ok(file) => file,
        // Log clean-up was faster; its tombstones are in the checkpoint.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("reading", entry, error)),
    };
    let mut paths = Vec::new();
    for line in BufReader::new(file).lines() {
        let line = line.map_err(|error| failed("reading", entry, error))?;
        if line.trim().is_empty() {
            continue;
        }
        let action: Action =
            serde_json::from_str(&line).map_err(|error| failed("reading", entry, error))?;
        paths.extend(action.remove.map(|remove| remove.path));
    }
    Ok(paths)
}

fn millis(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    })
}

fn failed(
    action: &'static str,
    path: &Path,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> LakeError {
    LakeError::File {
        action,
        path: path.to_owned(),
        source: source.into(),
    }
}
