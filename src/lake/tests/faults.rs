//! Answers that are lost, logs that are cleaned, futures that are dropped.

use std::fs;
use std::sync::Mutex;
use std::time::Duration;

use object_store::local::LocalFileSystem;

use super::store::{Between, Fault, Hooked};
use super::*;

/// One fault, at the next put of a log entry.
#[derive(Debug, Default)]
struct Next(Mutex<Option<Fault>>);

#[async_trait::async_trait]
impl Between for Next {
    async fn put(&self) -> Option<Fault> {
        self.0.lock().unwrap().take()
    }
}

#[tokio::test]
async fn a_lost_answer_is_found_in_the_log() {
    for fault in [Fault::Lost, Fault::Repeated, Fault::Before] {
        for with_positions in [true, false] {
            let folder = TempDir::new().unwrap();
            let store = Arc::new(Hooked {
                inner: LocalFileSystem::new().with_fsync(true),
                between: Next::default(),
            });
            let storage = Arc::new(Storage::new(store.clone()).unwrap());
            let lake = Lake::open_on(storage, folder.path().to_owned(), Access::Create)
                .await
                .unwrap();
            let table = lake.table(TableName::Communications);
            let commit = Commit {
                positions: if with_positions {
                    position(None, 3)
                } else {
                    vec![]
                },
                ..rows(&communications("c1", 3))
            };
            *store.between.0.lock().unwrap() = Some(fault);
            let done = table.commit(&commit).await;
            match (fault, done) {
                (Fault::Lost | Fault::Repeated, Ok(done)) => {
                    assert_eq!((done.version, done.files, done.already), (1, 2, false));
                }
                (Fault::Before, Err(LakeError::Log { .. })) => {
                    assert!(content(table).await.is_empty());
                    assert_eq!(table.commit(&commit).await.unwrap().version, 1);
                }
                (fault, done) => panic!("{fault:?}: {done:?}"),
            }
            assert_eq!(content(table).await, pairs("c1", 3), "{fault:?}");
        }
    }
}

#[tokio::test]
async fn hundreds_of_commits_are_checkpointed_and_reopened() {
    const COMMITS: i64 = 200;
    let folder = TempDir::new().unwrap();
    let lake = open(folder.path()).await;
    let stale = open(folder.path()).await;
    let table = lake.table(TableName::Events);
    for offset in 0..COMMITS {
        let commit = Commit {
            rows: vec![events_batch(&[event(offset)])],
            positions: position((offset > 0).then_some(offset), offset + 1),
            ..Commit::default()
        };
        assert!(!table.commit(&commit).await.unwrap().already);
    }
    let log = folder.path().join("events/_delta_log");
    for version in [50, 100, 150, 200] {
        for end in ["checkpoint.parquet", "crc"] {
            let path = log.join(format!("{version:020}.{end}"));
            assert!(path.exists(), "{}", path.display());
        }
    }
    // As clean-up leaves it: nothing below the newest checkpoint's own entry.
    for version in 0..200 {
        fs::remove_file(log.join(format!("{version:020}.json"))).unwrap();
    }
    // And as a killed writer leaves it: the pointer to the checkpoint cut short, an entry staged.
    let staged = log.join(format!("{:020}.json#1", COMMITS + 1));
    fs::write(staged, b"{\"commitInfo\":").unwrap();
    for pointer in [&b""[..], b"{\"vers"] {
        fs::write(log.join("_last_checkpoint"), pointer).unwrap();
        drop(open(folder.path()).await);
    }
    let reopened = open(folder.path()).await;
    let reopened = reopened.table(TableName::Events);
    let stats = reopened.stats().await.unwrap();
    assert_eq!((stats.version, stats.files, stats.rows), (200, 200, 200));
    let positions = reopened.positions(&ids(&[APP])).await.unwrap();
    assert_eq!(positions, [Some(COMMITS)]);

    // A writer that slept through all of it must not commit into the gap, where nobody would look.
    let stale = stale.table(TableName::Events);
    assert_eq!(stale.version(), 0);
    let late = Commit {
        rows: vec![events_batch(&[event(COMMITS)])],
        positions: position(Some(COMMITS), COMMITS + 1),
        ..Commit::default()
    };
    assert_eq!(stale.commit(&late).await.unwrap().version, 201);
    assert_eq!(reopened.stats().await.unwrap().rows, 201);
}

#[tokio::test]
async fn a_commit_on_a_version_whose_entry_is_gone_is_a_conflict() {
    let folder = TempDir::new().unwrap();
    let lake = open(folder.path()).await;
    let table = lake.table(TableName::Events);
    let state = table.0.clone();
    let entry = folder
        .path()
        .join("events/_delta_log/00000000000000000000.json");
    let tried = blocking(move || {
        let snapshot = state.refresh()?.snapshot;
        fs::remove_file(entry).unwrap();
        let change = log::Change {
            adds: vec![],
            removes: vec![],
            positions: vec![(APP, 1)],
        };
        state.log().attempt(&snapshot, &change)
    });
    let tried = tried.await.unwrap();
    assert!(matches!(tried, log::Tried::Conflicted), "{tried:?}");
}

#[tokio::test]
async fn a_dropped_commit_lands_whole_or_not_at_all() {
    let folder = TempDir::new().unwrap();
    let lake = open(folder.path()).await;
    let table = lake.table(TableName::Communications);
    for (at, wait) in [0, 1, 3, 9].into_iter().enumerate() {
        let at = i64::try_from(at).unwrap();
        let commit = Commit {
            positions: position((at > 0).then_some(at), at + 1),
            ..rows(&communications(&format!("c{at}"), 2))
        };
        let _ = tokio::time::timeout(Duration::from_millis(wait), table.commit(&commit)).await;
        table.commit(&commit).await.unwrap();
    }
    let expected: Vec<_> = (0..4).flat_map(|at| pairs(&format!("c{at}"), 2)).collect();
    assert_eq!(content(table).await, expected);
}

#[tokio::test]
async fn a_damaged_file_is_an_error_and_not_an_end() {
    let folder = TempDir::new().unwrap();
    let lake = open(folder.path()).await;
    let table = lake.table(TableName::Communications);
    let commit = rows(&communications("c1", 2));
    table.commit(&commit).await.unwrap();
    let file = listing(folder.path())
        .into_iter()
        .find(|path| path.extension().is_some_and(|end| end == "parquet"))
        .unwrap();
    let whole = fs::read(&file).unwrap();
    for cut in [0, 1, whole.len() / 2, whole.len() - 1] {
        fs::write(&file, &whole[..cut]).unwrap();
        let mut batches = table.read(&["text"]).await.unwrap();
        let mut ended = None;
        while let Some(batch) = batches.next().await {
            ended = batch.err();
        }
        assert!(ended.is_some(), "cut at {cut}");
        let cold = open(folder.path()).await;
        let cold = cold.table(TableName::Communications);
        assert!(cold.holds(&ids(&["c1"])).await.is_err(), "cut at {cut}");
    }
}
