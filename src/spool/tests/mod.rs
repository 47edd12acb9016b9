//! The spool from outside, on a real folder and on disks that fail.

mod crashes;
mod damage;
mod disk;
mod edits;
mod faults;
mod folders;

use std::fs::File;
use std::ops::Range;
use std::time::Instant;

use tempfile::TempDir;

use super::*;

/// Longest wait for anything in a test.
const PATIENCE: Duration = Duration::from_secs(20);
const ALL: Limit = Limit {
    records: 100_000,
    bytes: 1 << 30,
};
const NONE: Limit = Limit {
    records: 0,
    bytes: 0,
};

fn settings(folder: &TempDir) -> Settings {
    Settings {
        folder: folder.path().join("spool"),
        max_bytes: 1 << 30,
        clock: Clock::from_fn(|| "2026-11-22T10:00:00Z".parse().unwrap()),
    }
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn opened(folder: &TempDir) -> Spool {
    Spool::open(&settings(folder)).unwrap()
}

/// A record whose value is `n`, and says so again in `size` bytes.
fn entry_of(n: u64, size: usize) -> Entry {
    let value = format!("{n} ").repeat(size / 2 + 1);
    let key = format!("conv_{}", n % 3);
    let headers: [(&str, &[u8]); 1] = [("ce_id", b"id")];
    Entry::encode("events", Some(key.as_bytes()), value.as_bytes(), &headers).unwrap()
}

fn entry(n: u64) -> Entry {
    entry_of(n, 200)
}

/// The `n` of [`entry_of`].
fn read_back(stored: &Stored) -> u64 {
    let parts = stored.parts();
    assert_eq!((parts.topic, parts.headers.len()), ("events", 1));
    let value = std::str::from_utf8(parts.value).unwrap();
    let mut numbers = value.split_terminator(' ').map(|n| n.parse().unwrap());
    let n: u64 = numbers.next().unwrap();
    assert!(numbers.all(|other| other == n), "a record is of one piece");
    n
}

fn values(batch: &[Stored]) -> Vec<u64> {
    batch.iter().map(read_back).collect()
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work)
        .await
        .expect("it ends in time")
}

async fn push_all(spool: &Spool, numbers: Range<u64>) {
    let pushes = numbers.map(|n| spool.push(entry(n), PATIENCE));
    for result in within(futures::future::join_all(pushes)).await {
        result.unwrap();
    }
}

async fn held(spool: &Spool) -> Vec<Stored> {
    within(spool.oldest(Vec::new(), None, ALL)).await.unwrap()
}

async fn remove(spool: &Spool, batch: &[Stored]) {
    let numbers = batch.iter().map(Stored::number).collect();
    within(spool.oldest(numbers, None, NONE)).await.unwrap();
}

/// Files in the spool's folder whose names start so.
fn files(folder: &TempDir, start: &str) -> usize {
    let names = std::fs::read_dir(settings(folder).folder).unwrap();
    names
        .filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_str().unwrap().starts_with(start)
        })
        .count()
}

fn queue_file(folder: &TempDir) -> File {
    let path = settings(folder).folder.join("queue.redb");
    File::options().read(true).write(true).open(path).unwrap()
}

#[tokio::test]
async fn what_was_pushed_comes_back_in_order_until_it_is_removed() {
    let folder = folder();
    let spool = opened(&folder);
    assert_eq!(held(&spool).await, []);
    push_all(&spool, 0..100).await;
    assert_eq!(spool.held(), 100);
    let limit = Limit {
        records: 40,
        bytes: 1 << 20,
    };
    let first = within(spool.oldest(Vec::new(), None, limit)).await.unwrap();
    assert_eq!(values(&first), (0..40).collect::<Vec<_>>());
    let last = first.last().unwrap().number();
    let numbers = first.iter().map(Stored::number).collect();
    let second = within(spool.oldest(numbers, Some(last), limit)).await;
    assert_eq!(values(&second.unwrap()), (40..80).collect::<Vec<_>>());
    assert_eq!(spool.held(), 60);
    spool.close(PATIENCE).await;

    let spool = opened(&folder);
    assert_eq!(spool.held(), 60);
    push_all(&spool, 100..101).await;
    assert_eq!(values(&held(&spool).await), (40..101).collect::<Vec<_>>());
    spool.close(PATIENCE).await;
}

#[tokio::test]
async fn a_batch_is_bounded_in_bytes_and_never_empty() {
    let folder = folder();
    let spool = opened(&folder);
    for n in 0..4 {
        within(spool.push(entry_of(n, 10_000), PATIENCE))
            .await
            .unwrap();
    }
    for (bytes, expected) in [(0, 1), (1, 1), (25_000, 2), (1 << 20, 4)] {
        let limit = Limit { records: 9, bytes };
        let batch = within(spool.oldest(Vec::new(), None, limit)).await.unwrap();
        assert_eq!(batch.len(), expected, "{bytes}");
    }
    spool.close(PATIENCE).await;
}

#[tokio::test]
async fn beyond_its_bytes_it_is_full_until_something_is_removed() {
    let folder = folder();
    let max_bytes = 20 * entry(10).bytes() as u64;
    let settings = Settings {
        max_bytes,
        ..settings(&folder)
    };
    let spool = Spool::open(&settings).unwrap();
    push_all(&spool, 10..30).await;
    assert_eq!(
        within(spool.push(entry(30), PATIENCE)).await,
        Err(NotStored::Full)
    );
    let down = spool.health().down.unwrap();
    assert!(down.contains(&max_bytes.to_string()), "{down}");
    let batch = held(&spool).await;
    remove(&spool, &batch[..10]).await;
    assert_eq!(spool.health().down, None);
    push_all(&spool, 30..40).await;
    assert_eq!(values(&held(&spool).await), (20..40).collect::<Vec<_>>());
    assert_eq!(
        within(spool.push(entry(40), PATIENCE)).await,
        Err(NotStored::Full)
    );
    spool.close(PATIENCE).await;
}

#[tokio::test]
async fn a_closed_spool_says_so() {
    let folder = folder();
    let spool = opened(&folder);
    spool.clone().close(PATIENCE).await;
    assert_eq!(spool.push(entry(1), PATIENCE).await, Err(NotStored::Closed));
    let read = spool.oldest(Vec::new(), None, ALL).await;
    assert_eq!(read, Err(NotStored::Closed));
    spool.close(PATIENCE).await;
}

#[tokio::test]
async fn arrivals_are_told() {
    let folder = folder();
    let spool = opened(&folder);
    push_all(&spool, 0..1).await;
    within(spool.arrived()).await;
    let (arrived, ()) = tokio::join!(within(spool.arrived()), push_all(&spool, 1..2));
    assert_eq!(arrived, ());
    spool.close(PATIENCE).await;
}

/// Not a claim about a machine: many pushes at once share commits, so that they are far from one fsync each.
#[tokio::test]
async fn pushes_that_wait_share_a_commit() {
    const PUSHES: u64 = 4_000;
    let folder = folder();
    let (disk, wrap) = disk::Counted::new();
    let spool = Spool::open_with(&settings(&folder), wrap).unwrap();
    let before = disk.syncs();
    let started = Instant::now();
    push_all(&spool, 0..PUSHES).await;
    let (pushed, syncs) = (started.elapsed(), disk.syncs() - before);
    assert!(syncs < PUSHES / 10, "{syncs} fsyncs");
    let started = Instant::now();
    let mut removed = Vec::new();
    let limit = Limit {
        records: 1_000,
        bytes: 1 << 20,
    };
    loop {
        let batch = within(spool.oldest(removed, None, limit)).await.unwrap();
        removed = batch.iter().map(Stored::number).collect();
        if batch.is_empty() {
            break;
        }
    }
    let drained = started.elapsed();
    let started = Instant::now();
    for n in 0..100 {
        within(spool.push(entry(n), PATIENCE)).await.unwrap();
    }
    println!(
        "{PUSHES} pushes at once: {pushed:?} with {syncs} fsyncs; read and removed in {drained:?}; 100 one by one: {:?}",
        started.elapsed()
    );
    spool.close(PATIENCE).await;
}

#[test]
fn the_wait_for_a_disk_is_judged_by_its_commits() {
    const SECOND: Duration = Duration::from_secs(1);
    let start = Instant::now();
    let mut pace = Pace::default();
    assert_eq!(pace.ahead(start, 1), Duration::ZERO, "nothing is known");
    pace.done(SECOND);
    pace.done(SECOND * 4);
    assert_eq!(pace.ahead(start, 1), SECOND, "one alone says little");
    pace.since = Some(start);
    assert_eq!(pace.ahead(start, 1), SECOND * 2);
    assert_eq!(pace.ahead(start + SECOND / 4, 2), SECOND * 11 / 4);
    assert_eq!(pace.ahead(start + SECOND * 3, 1), SECOND * 6, "it hangs");
    pace.done(SECOND * 4);
    assert_eq!(pace.ahead(start, 1), SECOND * 4, "two of them are its pace");
}
