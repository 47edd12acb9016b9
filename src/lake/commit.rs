//! The one primitive: rows, removed conversations and positions, in one version or not at all.
//!
//! Each try works on the newest version: are the positions still the ones we started from, has anybody written our
//! conversations meanwhile, which files hold what is to be removed. Files once written are kept for the next
//! try, since a conflict means only that the version is taken (the kernel has no rebase); a rewritten file
//! is dropped when its original is no longer live, or the removal would be stale and rows would double.
//!
//! A lost answer: after any outcome but "committed" the next look at the positions decides. Found at their new value, the
//! commit has landed. Commits without positions get one of their own, made up for this commit.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::AsArray;
use rand::Rng;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use super::live::{LiveFile, TableState, View};
use super::log::{Change, Tried};
use super::write::{self, Written};
use super::{Commit, Committed, LakeError, blocking};
#[cfg(feature = "sabotage")]
use crate::config::sabotage::{self, Sabotage};
use crate::telemetry;

/// Tries before giving up. Each loses to a commit of another process, whose own takes milliseconds.
const TRIES_MAX: u32 = 60;
/// Longest pause between two tries; the first is below [`PAUSE_FIRST`], each next one below twice the one before.
const PAUSE_MAX: Duration = Duration::from_millis(250);
const PAUSE_FIRST: Duration = Duration::from_millis(2);

/// Commits, waiting for its turn among the commits of this process, and counts what came of it.
pub(super) async fn run(state: Arc<TableState>, commit: Commit) -> Result<Committed, LakeError> {
    let table = state.table().as_str();
    let rows: usize = commit.rows.iter().map(|batch| batch.num_rows()).sum();
    let started = Instant::now();
    let result = commit_in_turn(state, commit).await;
    metrics::histogram!(telemetry::LAKE_COMMIT_SECONDS, "table" => table).record(started.elapsed());
    let outcome = match &result {
        Ok(done) if done.already => "already",
        Ok(done) => {
            metrics::counter!(telemetry::LAKE_ROWS, "table" => table).increment(rows as u64);
            metrics::counter!(telemetry::LAKE_FILES, "table" => table).increment(done.files as u64);
            metrics::counter!(telemetry::LAKE_BYTES, "table" => table).increment(done.bytes);
            "committed"
        }
        Err(LakeError::Refused { .. }) => "refused",
        Err(LakeError::Raced { .. }) => "raced",
        Err(_) => "failed",
    };
    metrics::counter!(telemetry::LAKE_COMMITS, "table" => table, "outcome" => outcome).increment(1);
    result
}

async fn commit_in_turn(state: Arc<TableState>, commit: Commit) -> Result<Committed, LakeError> {
    let turn = state.committing.clone().lock_owned().await;
    let table = state.table();
    let mut work = blocking(move || Work::begin(state, commit, turn)).await?;
    for attempt in 0..TRIES_MAX {
        match blocking(move || work.attempt()).await? {
            Outcome::Done(done) => return Ok(done),
            Outcome::Again(next) => work = *next,
        }
        metrics::counter!(telemetry::LAKE_CONFLICTS, "table" => table.as_str()).increment(1);
        let most = PAUSE_FIRST
            .saturating_mul(1 << attempt.min(16))
            .min(PAUSE_MAX);
        // Jitter only: nothing that is written depends on it.
        let pause = most.mul_f64(rand::rng().random());
        tokio::time::sleep(pause).await;
    }
    blocking(move || {
        work.discard_all();
        Ok(())
    })
    .await?;
    Err(LakeError::Contended {
        table,
        tries: TRIES_MAX,
    })
}

/// A position that a commit moves.
#[derive(Debug)]
struct Move {
    app: String,
    from: Option<i64>,
    to: i64,
}

/// App and position.
type Stays = Vec<(String, i64)>;

enum Outcome {
    Done(Committed),
    Again(Box<Work>),
}

/// A commit under way, between tries.
struct Work {
    state: Arc<TableState>,
    commit: Commit,
    /// Conversations that rows are for; empty for tables that keep repeats.
    written: Vec<String>,
    /// Positions that move: at least one if anything else changes, so that the commit can be found again.
    moves: Vec<Move>,
    /// Positions that stay, which are compared and not written.
    stays: Stays,
    /// What the caller, or this commit at its start, had seen.
    base: u64,
    adds: Option<Vec<Written>>,
    /// By the path of the file that it replaces; `None`: nothing was left of it.
    rewrites: HashMap<Arc<str>, Option<Written>>,
    _turn: OwnedMutexGuard<()>,
}

impl Work {
    fn begin(
        state: Arc<TableState>,
        commit: Commit,
        turn: OwnedMutexGuard<()>,
    ) -> Result<Work, LakeError> {
        let view = state.refresh()?;
        // A table opened as existing may be older than this version.
        let snapshot = state.log().complete_columns(view.snapshot)?;
        let base = commit.seen.unwrap_or(snapshot.version());
        state.committed(snapshot, [])?;
        let (mut moves, stays) = positions(&state, &commit)?;
        let changes_rows = commit.rows.iter().any(|batch| batch.num_rows() > 0);
        let removes = !commit.replace.is_empty() || !commit.drop_files.is_empty();
        if moves.is_empty() && (changes_rows || removes) {
            moves.push(Move {
                app: format!("convolake/commit/{}", uuid::Uuid::new_v4()),
                from: None,
                to: 1,
            });
        }
        let mut written = BTreeSet::new();
        if state.table().is_keyed() {
            for batch in &commit.rows {
                let ids = batch.column_by_name("conversation_id");
                let ids = ids.ok_or_else(|| LakeError::Invalid {
                    table: state.table(),
                    reason: "rows have no conversation_id".to_owned(),
                })?;
                written.extend(ids.as_string::<i32>().iter().flatten());
            }
        }
        let written = written.into_iter().map(str::to_owned).collect();
        Ok(Work {
            state,
            written,
            moves,
            stays,
            base,
            commit,
            adds: None,
            rewrites: HashMap::new(),
            _turn: turn,
        })
    }

    fn attempt(mut self) -> Result<Outcome, LakeError> {
        let view = self.state.refresh()?;
        match self.try_on(&view) {
            Ok(Some(done)) => Ok(Outcome::Done(done)),
            Ok(None) => Ok(Outcome::Again(Box::new(self))),
            Err(error @ (LakeError::Refused { .. } | LakeError::Raced { .. })) => {
                self.discard_all();
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// One try on one version; `None`: a newer one exists by now.
    fn try_on(&mut self, view: &View) -> Result<Option<Committed>, LakeError> {
        if let Some(done) = self.landed(view)? {
            return Ok(Some(done));
        }
        self.check_raced(view)?;
        if self.adds.is_none() {
            let log = self.state.log();
            self.adds = Some(write::rows(log, &view.snapshot, &self.commit.rows)?);
        }
        self.rewrite(view)?;
        let files: Vec<&Written> = self.files().collect();
        let change = Change {
            adds: files.iter().map(|file| &file.add).collect(),
            removes: self.rewrites.keys().map(|path| &**path).collect(),
            positions: self
                .moves
                .iter()
                .map(|moved| (moved.app.as_str(), moved.to))
                .collect(),
        };
        let log = self.state.log();
        match log.attempt(&view.snapshot, &change)? {
            Tried::Committed(snapshot) => {
                let done = self.done(snapshot.version(), false);
                let hashes = files.iter().map(|f| (f.path.clone(), f.hashes.clone()));
                self.state.committed(snapshot.clone(), hashes)?;
                self.state.adopt(log.maintain(snapshot));
                Ok(Some(done))
            }
            Tried::Conflicted => Ok(None),
            Tried::Unknown(error) => {
                let view = self.state.refresh()?;
                let Some(done) = self.landed(&view)? else {
                    return Err(log.failed("committing", error));
                };
                tracing::info!(
                    table = %self.state.table(),
                    version = done.version,
                    error = %error.without_backtrace(),
                    "a commit's answer was lost; it is in the log"
                );
                Ok(Some(done))
            }
        }
    }

    /// What this commit did, if every position that moves is where it puts it.
    ///
    /// # Errors
    /// [`LakeError::Refused`] if a position is neither there nor where it started, or if some are and others are not:
    /// a commit moves all of its positions, so that was somebody else's.
    fn landed(&self, view: &View) -> Result<Option<Committed>, LakeError> {
        let position = |app: &str| self.state.log().position(&view.snapshot, app);
        let refused = |app: &str, expected: Option<i64>, found: Option<i64>| LakeError::Refused {
            table: self.state.table(),
            app: app.to_owned(),
            expected,
            found,
        };
        let mut landed = Vec::new();
        for moved in &self.moves {
            let found = position(&moved.app)?;
            if found == Some(moved.to) {
                landed.push(moved);
                continue;
            }
            #[cfg(feature = "sabotage")]
            if sabotage::is(Sabotage::Positions) {
                continue;
            }
            if found != moved.from {
                return Err(refused(&moved.app, moved.from, found));
            }
        }
        if landed.len() == self.moves.len() {
            // Ours, if its files are there; else the same commit of an earlier life.
            let ours = self
                .files()
                .next()
                .is_some_and(|file| view.is_live(&file.path));
            return Ok(Some(self.done(view.snapshot.version(), !ours)));
        }
        if let Some(other) = landed.first() {
            return Err(refused(&other.app, other.from, Some(other.to)));
        }
        for (app, at) in &self.stays {
            let found = position(app)?;
            if found != Some(*at) {
                return Err(refused(app, Some(*at), found));
            }
        }
        Ok(None)
    }

    fn done(&self, version: u64, already: bool) -> Committed {
        Committed {
            version,
            files: if already { 0 } else { self.files().count() },
            bytes: if already {
                0
            } else {
                self.files().map(|file| file.bytes).sum()
            },
            already,
        }
    }

    /// Files written for this commit so far.
    fn files(&self) -> impl Iterator<Item = &Written> {
        let rewritten = self.rewrites.values().flatten();
        self.adds.iter().flatten().chain(rewritten)
    }

    fn check_raced(&self, view: &View) -> Result<(), LakeError> {
        if self.written.is_empty() || view.snapshot.version() <= self.base {
            return Ok(());
        }
        let found = self
            .state
            .find(view, &self.written, Some(self.base))?
            .into_iter()
            .flat_map(|(_, ids)| ids)
            .collect::<BTreeSet<String>>();
        if found.is_empty() {
            return Ok(());
        }
        Err(LakeError::Raced {
            table: self.state.table(),
            conversations: found.into_iter().collect(),
        })
    }

    /// Brings the rewrites up to a version: those of files that are gone are dropped, files that hold what is to be
    /// removed and were not there before are rewritten.
    fn rewrite(&mut self, view: &View) -> Result<(), LakeError> {
        if self.commit.replace.is_empty() && self.commit.drop_files.is_empty() {
            return Ok(());
        }
        let log = self.state.log();
        let stale: Vec<Arc<str>> = self
            .rewrites
            .keys()
            .filter(|path| !view.is_live(path))
            .cloned()
            .collect();
        for path in stale {
            if let Some(Some(unused)) = self.rewrites.remove(&path) {
                unused.discard(log);
            }
        }
        for path in &self.commit.drop_files {
            if view.is_live(path) {
                self.rewrites.insert(path.as_str().into(), None);
            }
        }
        let ids: Vec<String> = self.commit.replace.iter().cloned().collect();
        let holding: Vec<Arc<LiveFile>> = self
            .state
            .find(&view.without(&self.commit.drop_files), &ids, None)?
            .into_iter()
            .map(|(file, _)| file)
            .filter(|file| !self.rewrites.contains_key(&file.path))
            .collect();
        for file in holding {
            let rewritten = write::without(log, &view.snapshot, &file, &self.commit.replace)?;
            self.rewrites.insert(file.path.clone(), rewritten);
        }
        Ok(())
    }

    /// Deletes what was written and will not be committed. Never after an unknown outcome: the log may name it.
    fn discard_all(self) {
        for file in self.files() {
            file.discard(self.state.log());
        }
    }
}

/// The positions that move, and those that stay.
fn positions(state: &TableState, commit: &Commit) -> Result<(Vec<Move>, Stays), LakeError> {
    let invalid = |reason: String| LakeError::Invalid {
        table: state.table(),
        reason,
    };
    let (mut moves, mut stays) = (Vec::new(), Vec::new());
    let mut apps = BTreeSet::new();
    for position in &commit.positions {
        let (app, from, to) = (position.app.clone(), position.from, position.to);
        if !apps.insert(app.clone()) {
            return Err(invalid(format!("two positions of `{app}`")));
        }
        match from {
            Some(from) if to < from => {
                let reason = format!("position of `{app}` would go back from {from} to {to}");
                return Err(invalid(reason));
            }
            Some(from) if to == from => stays.push((app, to)),
            Some(_) | None => moves.push(Move { app, from, to }),
        }
    }
    Ok((moves, stays))
}
