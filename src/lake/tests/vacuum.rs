//! What a sweep deletes, and what it must not.

use std::fs;
use std::sync::Mutex;
use std::time::Duration;

use object_store::local::LocalFileSystem;

use super::store::{Between, Fault, Hooked};
use super::*;
use crate::lifecycle::Clock;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const WEEK: Sweep = Sweep {
    retain: DAY.saturating_mul(7),
    dry_run: false,
    clock: Clock::system(),
};

/// Dates a file so far back.
fn age(path: &Path, by: Duration) {
    let file = fs::File::options().append(true).open(path).unwrap();
    let dated = file.metadata().unwrap().modified().unwrap();
    file.set_modified(dated - by).unwrap();
}

fn put(path: PathBuf, aged: Duration) -> PathBuf {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, b"PAR1").unwrap();
    age(&path, aged);
    path
}

fn data_files(root: &Path) -> BTreeSet<PathBuf> {
    let all = listing(root).into_iter();
    all.filter(|path| path.extension().is_some_and(|end| end == "parquet"))
        .filter(|path| !path.to_string_lossy().contains("_delta_log"))
        .collect()
}

async fn sweep_one(lake: &Lake, sweep: Sweep, table: TableName) -> Swept {
    let swept = lake.sweep(sweep).await.unwrap();
    let found = swept.into_iter().find(|it| it.table == table.as_str());
    found.unwrap()
}

#[tokio::test]
async fn exactly_what_no_writer_will_want_is_deleted() {
    let folder = TempDir::new().unwrap();
    let lake = open(folder.path()).await;
    let table = lake.table(TableName::Communications);
    table.commit(&rows(&communications("c1", 4))).await.unwrap();
    let root = folder.path().join("communications");
    let day = root.join("channel=SMS/date=2026-09-04");
    assert!(day.is_dir());
    // What is live may be as old as it likes.
    for file in data_files(&root) {
        age(&file, DAY * 100);
    }
    let aged = DAY * 8;
    let gone = [
        put(day.join("0b7e.parquet"), aged),
        put(day.join("part-00001-5f2c-c000.snappy.parquet"), aged),
        put(
            root.join("channel=RCS/date=2026-09-04/kept-1.parquet"),
            aged,
        ),
        put(day.join("0b7e.parquet#1"), aged),
        put(root.join("stray.parquet#12"), aged),
        put(root.join("_delta_log/00000000000000000009.json#1"), aged),
    ];
    let stay = [
        // About to be committed, or being written.
        put(day.join("young.parquet"), DAY * 6),
        put(day.join("young.parquet#1"), DAY * 6),
        // Somebody else's, or nobody's of this table.
        put(day.join("_hidden.parquet"), aged),
        put(day.join(".hidden.parquet"), aged),
        put(day.join("notes.txt"), aged),
        put(day.join("issue#12"), aged),
        put(day.join("deeper/0b7e.parquet"), aged),
        put(root.join("0b7e.parquet"), aged),
        put(root.join("other/date=2026-09-04/0b7e.parquet"), aged),
        put(root.join("_change_data/date=2026-09-04/0b7e.parquet"), aged),
        put(root.join("_delta_log/0b7e.parquet"), aged),
        put(
            folder.path().join("elsewhere/date=2026-09-04/0b7e.parquet"),
            aged,
        ),
    ];
    let elsewhere = folder.path().join("elsewhere");
    std::os::unix::fs::symlink(&elsewhere, root.join("channel=LINK")).unwrap();
    let sound = listing(folder.path());

    let dry = Sweep {
        dry_run: true,
        ..WEEK
    };
    let found = sweep_one(&lake, dry, TableName::Communications).await;
    assert_eq!(listing(folder.path()), sound);
    let counts = |it: &Swept| (it.live, it.kept, it.orphans, it.staged, it.deleted);
    assert_eq!(counts(&found), (2, 1, 3, 3, 0), "{found:?}");

    let swept = sweep_one(&lake, WEEK, TableName::Communications).await;
    assert_eq!(counts(&swept), (2, 1, 3, 3, 6), "{swept:?}");
    assert_eq!(swept.bytes, 6 * 4);
    let mut want = sound;
    for path in &gone {
        assert!(want.remove(path));
    }
    assert_eq!(listing(folder.path()), want);
    assert!(stay.iter().all(|path| path.exists()));
    assert_eq!(content(table).await, pairs("c1", 4));
    let again = sweep_one(&lake, WEEK, TableName::Communications).await;
    assert_eq!(counts(&again), (2, 1, 0, 0, 0));
}

/// Two conversations in one file, one of them replaced: the file of version 1 is a tombstone of version 2.
async fn replaced(root: &Path) -> (Lake, PathBuf) {
    let lake = open(root).await;
    let table = lake.table(TableName::Conversations);
    let ledger = |ids: &[&str]| {
        let rows = ids.iter().map(|id| conversation(id, Completeness::Partial));
        vec![conversations_batch(&rows.collect::<Vec<_>>())]
    };
    let first = Commit {
        rows: ledger(&["c1", "c2"]),
        ..Commit::default()
    };
    table.commit(&first).await.unwrap();
    let files = data_files(root);
    let [old] = files.iter().collect::<Vec<_>>()[..] else {
        panic!("{files:?}");
    };
    let second = Commit {
        rows: ledger(&["c2"]),
        replace: ["c2".to_owned()].into(),
        ..Commit::default()
    };
    table.commit(&second).await.unwrap();
    (lake, old.clone())
}

/// The entry that removed the file, with the tombstone's own time put so far back.
fn tombstone(root: &Path, back: Duration) -> PathBuf {
    let entry = root.join("conversations/_delta_log/00000000000000000002.json");
    let text = fs::read_to_string(&entry).unwrap();
    let lines = text.lines().map(|line| {
        let mut action: serde_json::Value = serde_json::from_str(line).unwrap();
        if let Some(removed) = action.get_mut("remove") {
            let time = removed["deletionTimestamp"].as_i64().unwrap();
            let back = i64::try_from(back.as_millis()).unwrap();
            removed["deletionTimestamp"] = (time - back).into();
        }
        action.to_string()
    });
    fs::write(&entry, lines.collect::<Vec<_>>().join("\n")).unwrap();
    entry
}

#[tokio::test]
async fn a_replaced_file_stays_for_the_retention_by_whichever_clock_says_longer() {
    // How long ago the tombstone was by the clock of who wrote it, and by that of the storage.
    for (theirs, storage, stays) in [
        (8, 8, false),
        (0, 8, true),
        // A writer whose clock is a week behind.
        (8, 0, true),
    ] {
        let folder = TempDir::new().unwrap();
        let (lake, old) = replaced(folder.path()).await;
        drop(lake);
        age(&old, DAY * 30);
        age(&tombstone(folder.path(), DAY * theirs), DAY * storage);
        let lake = open(folder.path()).await;
        let swept = sweep_one(&lake, WEEK, TableName::Conversations).await;
        let case = format!("{theirs} {storage}: {swept:?}");
        assert_eq!(old.exists(), stays, "{case}");
        assert_eq!(
            (swept.kept, swept.orphans),
            (stays.into(), (!stays).into()),
            "{case}"
        );
        let found = lake.completeness(&ids(&["c1", "c2"])).await.unwrap();
        assert_eq!(found.len(), 2, "{case}");
    }
}

#[tokio::test]
async fn a_tombstone_that_only_the_checkpoint_has_counts() {
    let folder = TempDir::new().unwrap();
    let (lake, old) = replaced(folder.path()).await;
    let table = lake.table(TableName::Conversations);
    let state = table.0.clone();
    blocking(move || {
        let snapshot = state.refresh()?.snapshot;
        state.log().checkpoint(snapshot);
        Ok(())
    })
    .await
    .unwrap();
    // As log clean-up leaves it.
    for version in 0..2 {
        let entry = format!("conversations/_delta_log/{version:020}.json");
        fs::remove_file(folder.path().join(entry)).unwrap();
    }
    let entry = "conversations/_delta_log/00000000000000000002.json";
    age(&folder.path().join(entry), DAY * 8);
    age(&old, DAY * 30);
    let lake = open(folder.path()).await;
    let swept = sweep_one(&lake, WEEK, TableName::Conversations).await;
    assert_eq!((swept.kept, old.exists()), (1, true), "{swept:?}");
}

#[tokio::test]
async fn a_table_that_asks_for_a_longer_retention_gets_it() {
    let folder = TempDir::new().unwrap();
    let (lake, old) = replaced(folder.path()).await;
    drop(lake);
    age(&old, DAY * 30);
    age(&tombstone(folder.path(), DAY * 20), DAY * 20);
    let log = folder.path().join("conversations/_delta_log");
    let first = fs::read_to_string(log.join("00000000000000000000.json")).unwrap();
    let mut metadata: serde_json::Value = first
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .find(|action: &serde_json::Value| action.get("metaData").is_some())
        .unwrap();
    let key = "delta.deletedFileRetentionDuration";
    metadata["metaData"]["configuration"][key] = "interval 30 days".into();
    fs::write(log.join("00000000000000000003.json"), metadata.to_string()).unwrap();
    let lake = open(folder.path()).await;
    let swept = sweep_one(&lake, WEEK, TableName::Conversations).await;
    assert_eq!(
        (swept.retain_seconds, swept.kept, old.exists()),
        (30 * 86_400, 1, true),
        "{swept:?}"
    );
}

/// This machine's clock, eight days ahead.
fn ahead() -> jiff::Timestamp {
    Clock::system().now() + jiff::SignedDuration::from_hours(8 * 24)
}

#[tokio::test]
async fn a_log_that_is_long_without_a_checkpoint_gets_one_but_not_by_a_wrong_clock() {
    let folder = TempDir::new().unwrap();
    let lake = open(folder.path()).await;
    let table = lake.table(TableName::Events);
    for offset in 0..60 {
        let commit = Commit {
            rows: vec![events_batch(&[event(offset)])],
            positions: position((offset > 0).then_some(offset), offset + 1),
            ..Commit::default()
        };
        table.commit(&commit).await.unwrap();
    }
    // As if it had failed.
    let log = folder.path().join("events/_delta_log");
    for name in [
        "00000000000000000050.checkpoint.parquet",
        "_last_checkpoint",
    ] {
        fs::remove_file(log.join(name)).unwrap();
    }
    let checkpoint = log.join("00000000000000000060.checkpoint.parquet");
    let lake = open(folder.path()).await;
    let wrong = Sweep {
        clock: Clock::from_fn(ahead),
        ..WEEK
    };
    let swept = sweep_one(&lake, wrong, TableName::Events).await;
    assert_eq!((swept.checkpoint, checkpoint.exists()), (None, false));
    assert_eq!((swept.live, swept.orphans), (60, 0), "{swept:?}");
    let swept = sweep_one(&lake, WEEK, TableName::Events).await;
    assert_eq!((swept.checkpoint, checkpoint.exists()), (Some(60), true));
    let swept = sweep_one(&lake, WEEK, TableName::Events).await;
    assert_eq!(swept.checkpoint, None);
    let reopened = open(folder.path()).await;
    let reopened = reopened.table(TableName::Events);
    assert_eq!(reopened.stats().await.unwrap().rows, 60);
    let positions = reopened.positions(&ids(&[APP])).await.unwrap();
    assert_eq!(positions, [Some(60)]);
}

/// Puts a log entry where it belongs at the n-th look at the log from when it was armed.
#[derive(Debug, Default)]
struct Late(Mutex<Option<(u32, PathBuf, PathBuf)>>);

#[async_trait::async_trait]
impl Between for Late {
    async fn put(&self) -> Option<Fault> {
        None
    }

    async fn look(&self) {
        let mut armed = self.0.lock().unwrap();
        if let Some((looks, from, to)) = &mut *armed {
            *looks -= 1;
            if *looks == 0 {
                fs::rename(from, to).unwrap();
                *armed = None;
            }
        }
    }
}

/// The commit of a writer that was suspended for days lands between the listing and the deletion.
#[tokio::test]
async fn a_file_that_is_committed_during_the_sweep_stays() {
    let folder = TempDir::new().unwrap();
    let writer = open(folder.path()).await;
    let table = writer.table(TableName::Communications);
    table.commit(&rows(&communications("c1", 2))).await.unwrap();
    let log = folder.path().join("communications/_delta_log");
    let (entry, aside) = (
        log.join("00000000000000000001.json"),
        folder.path().join("aside"),
    );
    fs::rename(&entry, &aside).unwrap();
    let files = data_files(folder.path());
    for file in &files {
        age(file, DAY * 8);
    }
    let store = Arc::new(Hooked {
        inner: LocalFileSystem::new().with_fsync(true),
        between: Late::default(),
    });
    let storage = Arc::new(Storage::new(store.clone()).unwrap());
    let lake = Lake::open_on(storage, folder.path().to_owned(), Access::Existing)
        .await
        .unwrap();
    // Two looks find nothing new when the sweep begins; the third one is that before the deletion.
    *store.between.0.lock().unwrap() = Some((3, aside, entry));
    let swept = sweep_one(&lake, WEEK, TableName::Communications).await;
    assert_eq!((swept.orphans, swept.deleted), (0, 0), "{swept:?}");
    assert_eq!(data_files(folder.path()), files);
    assert!(store.between.0.lock().unwrap().is_none());
}

#[tokio::test]
async fn nothing_is_kept_of_the_past_where_nothing_is_asked_for() {
    let folder = TempDir::new().unwrap();
    let (lake, old) = replaced(folder.path()).await;
    // Dates of the same tick of the storage's clock are no past yet.
    age(&old, Duration::from_secs(1));
    age(
        &tombstone(folder.path(), Duration::from_secs(1)),
        Duration::from_secs(1),
    );
    drop(lake);
    let lake = open(folder.path()).await;
    let all = Sweep {
        retain: Duration::ZERO,
        ..WEEK
    };
    let swept = sweep_one(&lake, all, TableName::Conversations).await;
    assert_eq!(
        (swept.kept, swept.deleted, old.exists()),
        (0, 1, false),
        "{swept:?}"
    );
    let found = lake.completeness(&ids(&["c1", "c2"])).await.unwrap();
    assert_eq!(found.len(), 2);
}
