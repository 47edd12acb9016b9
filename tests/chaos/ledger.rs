//! What was sent and what came of it, on disk before anything is concluded from it.
//!
//! Owns the file: one JSON line an answer, fsynced in batches by a thread of its own. Three outcomes:
//! *acked* is a 2xx, *refused* any other answer or a connection that never stood, *indefinite* everything
//! after which the callback may be there or not. Refuses to interpret them: `oracle` does, from the file.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// How a callback was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    Acked,
    Refused,
    Indefinite,
}

/// What a callback is to the oracle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Sent for the first time.
    Event,
    /// Sent before.
    Repeat,
    /// An event with the idempotency token of another one.
    StolenToken,
    /// Signed, and no event: for the quarantine.
    Odd,
    /// Another body under a captured signature: must be refused, and nowhere afterwards.
    Forged,
}

/// One answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) n: usize,
    pub(crate) token: String,
    pub(crate) conv: String,
    pub(crate) kind: Kind,
    /// Milliseconds from the start of the row to the answer.
    pub(crate) t: u64,
    pub(crate) outcome: Outcome,
    /// Of HTTP; 0 where there was no answer.
    pub(crate) status: u16,
    /// Milliseconds from the request to the answer.
    pub(crate) ms: u64,
    /// SHA-256 of the body, in hex: what is looked for afterwards.
    pub(crate) sha256: String,
}

/// An open ledger. Clones write to the same file.
#[derive(Debug, Clone)]
pub(crate) struct Ledger(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    started: Instant,
    acked: AtomicUsize,
    forbidden: AtomicUsize,
    /// Milliseconds from the start to each 2xx, and what it took, for waits and marks while the row runs.
    acked_at: Mutex<Vec<(u64, u64)>>,
    entries: Mutex<Option<mpsc::Sender<Entry>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Ledger {
    pub(crate) fn create(path: PathBuf) -> Ledger {
        let mut file = File::create(&path).unwrap();
        let (sender, receiver) = mpsc::channel::<Entry>();
        let writer = std::thread::spawn(move || {
            while let Ok(first) = receiver.recv() {
                let mut lines = Vec::new();
                for entry in std::iter::once(first).chain(receiver.try_iter()) {
                    serde_json::to_writer(&mut lines, &entry).unwrap();
                    lines.push(b'\n');
                }
                file.write_all(&lines).unwrap();
                file.sync_data().unwrap();
            }
        });
        Ledger(Arc::new(Shared {
            path,
            started: Instant::now(),
            acked: AtomicUsize::new(0),
            forbidden: AtomicUsize::new(0),
            acked_at: Mutex::default(),
            entries: Mutex::new(Some(sender)),
            writer: Mutex::new(Some(writer)),
        }))
    }

    /// Milliseconds since the row began.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.0.started.elapsed().as_millis()).expect("no row lasts that long")
    }

    pub(crate) fn record(&self, entry: Entry) {
        if entry.outcome == Outcome::Acked {
            self.0.acked.fetch_add(1, Ordering::Relaxed);
            lock(&self.0.acked_at).push((entry.t, entry.ms));
        }
        if entry.status == 403 && entry.kind != Kind::Forged {
            self.0.forbidden.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(entries) = &*lock(&self.0.entries) {
            entries
                .send(entry)
                .expect("the writer ends after its senders");
        }
    }

    /// 2xx so far.
    pub(crate) fn acked(&self) -> usize {
        self.0.acked.load(Ordering::Relaxed)
    }

    /// Good callbacks that were forbidden so far.
    pub(crate) fn forbidden(&self) -> usize {
        self.0.forbidden.load(Ordering::Relaxed)
    }

    /// Milliseconds from `mark` to the first 2xx after it.
    pub(crate) fn first_ok_after(&self, mark: u64) -> Option<u64> {
        let acked_at = lock(&self.0.acked_at);
        acked_at
            .iter()
            .map(|(at, _)| *at)
            .filter(|at| *at >= mark)
            .min()
            .map(|at| at - mark)
    }

    /// What 99 of 100 of the 2xx of these milliseconds took at most.
    pub(crate) fn slowest_of_hundred(&self, when: std::ops::Range<u64>) -> u64 {
        let acked_at = lock(&self.0.acked_at);
        let these = acked_at.iter().filter(|(at, _)| when.contains(at));
        let mut took: Vec<u64> = these.map(|(_, ms)| *ms).collect();
        took.sort_unstable();
        took.get(took.len() * 99 / 100).copied().unwrap_or(0)
    }

    /// Closes the file and reads it back: what is not in it did not happen.
    pub(crate) fn finish(&self) -> Vec<Entry> {
        lock(&self.0.entries).take();
        if let Some(writer) = lock(&self.0.writer).take() {
            writer.join().expect("the writer of the ledger panicked");
        }
        read(&self.0.path)
    }
}

fn read(path: &Path) -> Vec<Entry> {
    BufReader::new(File::open(path).unwrap())
        .lines()
        .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
        .collect()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
