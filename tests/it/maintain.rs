//! What killed writers leave, swept: exactly that, and nothing that a reader can ask for.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::faults::{CONVERSATIONS, LAKE_LIMIT, closed, in_lake, parts, publish, publisher, whole};
use crate::harness::duckdb::run_script;
use crate::harness::process::{STOP_LIMIT, arg, convolake};
use crate::harness::roles::{ingest, spawn_ingest};
use crate::harness::scripted::Api;
use crate::harness::{ACCOUNT, folder, until};
use crate::heal::{command, content, data_files};

/// Longest run of the command.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// What waits for the partitions of a process that was killed waits for so long.
const SHORT_SESSION: &[&str] = &["--kafka-property", "session.timeout.ms=6000"];
const TABLES: [&str; 3] = ["communications", "conversations", "events"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_ingest_left_is_swept_and_readers_see_no_difference() {
    let Some((python, kafka)) = parts().await else {
        return;
    };
    let folder = folder();
    let lake = folder.path().join("lake");
    let api = Api::start(|_| None).await;
    let publisher = publisher(&kafka).await;
    publish(&publisher, "one", closed("one").as_bytes()).await;
    let mut first = ingest(&kafka, &lake, api.address()).await;
    in_lake(python, &lake, CONVERSATIONS, &whole(&["one"]), LAKE_LIMIT).await;
    first.stop().await;
    let sound = files(&lake);

    // A folder where the next entry of the log has to go: the commit is tried again and again, and killed so.
    let communications = lake.join("communications");
    let blocked = next_entry(&communications);
    fs::create_dir(&blocked).unwrap();
    publish(&publisher, "two", closed("two").as_bytes()).await;
    let (mut killed, ops) = spawn_ingest(
        kafka.address(),
        &lake,
        api.address(),
        ACCOUNT,
        SHORT_SESSION,
    );
    killed.wait_ready(&ops).await;
    until(
        "files without a commit",
        LAKE_LIMIT,
        async || match data_files(&communications) {
            more if more.iter().any(|file| !sound.contains(file)) => Ok(()),
            same => Err(format!("{same:?}")),
        },
    )
    .await;
    killed.kill9();
    fs::remove_dir(&blocked).unwrap();
    let is_left = |file: &PathBuf| is_staged(file) || file.starts_with(&communications);
    let left: BTreeSet<PathBuf> = files(&lake)
        .into_iter()
        .filter(|file| !sound.contains(file) && is_left(file))
        .collect();
    let orphans = left.iter().filter(|file| !is_staged(file)).count() as u64;
    let before = (content(python, &lake), rows(python, &lake));

    // A week is not over; nor is an hour, and less is refused while writers may run.
    for flags in [&[][..], &["--retain", "1h"]] {
        let report = maintain(&lake, flags).await;
        let of = &report["tables"][0];
        assert_eq!(of["kept"].as_u64(), Some(orphans), "{report}");
        assert_eq!((&of["orphans"], &of["deleted"]), (&json!(0), &json!(0)));
    }
    let mut refused = convolake(&["maintain", "--lake", arg(&lake), "--retain", "59m"], &[]);
    assert_eq!(refused.wait_exit(COMMAND_LIMIT).await.code(), Some(2));
    assert!(refused.stderr().contains("--writers-stopped"));
    let all = ["--retain", "0s", "--writers-stopped"];
    let dry = maintain(&lake, &[&all[..], &["--dry-run"]].concat()).await;
    assert_eq!(found(&lake, &dry), left, "{dry}");
    assert!(left.iter().all(|file| file.exists()));

    let swept = maintain(&lake, &all).await;
    assert_eq!(found(&lake, &swept), left, "{swept}");
    assert!(left.iter().all(|file| !file.exists()));
    assert!(sound.iter().all(|file| file.exists()));
    assert_eq!((content(python, &lake), rows(python, &lake)), before);
    let again = maintain(&lake, &all).await;
    assert_eq!(found(&lake, &again), BTreeSet::new(), "{again}");

    // The next owner finds nothing amiss.
    let mut next = ingest(&kafka, &lake, api.address()).await;
    let both = whole(&["one", "two"]);
    in_lake(python, &lake, CONVERSATIONS, &both, LAKE_LIMIT).await;
    next.stop().await;
    publisher.close(STOP_LIMIT).await.unwrap();

    // Another writer's compaction: what it replaced can be read for as long as it is retained, and no longer.
    let events = lake.join("events");
    let version = delta_rs(python, &events, &["read", "app"]).unwrap()["version"].to_string();
    let past = delta_rs(python, &events, &["at", &version]).unwrap();
    delta_rs(python, &events, &["compact"]).unwrap();
    let now = rows(python, &lake);
    maintain(&lake, &["--retain", "1h"]).await;
    assert_eq!(delta_rs(python, &events, &["at", &version]).unwrap(), past);
    maintain(&lake, &all).await;
    let gone = delta_rs(python, &events, &["at", &version]);
    assert!(gone.is_err(), "{gone:?}");
    assert_eq!(rows(python, &lake), now);
}

/// What `convolake maintain --json` printed.
async fn maintain(lake: &Path, flags: &[&str]) -> Value {
    let own = ["maintain", "--json", "--lake", arg(lake)];
    let (code, printed) = command(&[&own, flags].concat()).await;
    assert_eq!(code, Some(0), "{printed}");
    printed
}

/// The files that a report names.
fn found(lake: &Path, report: &Value) -> BTreeSet<PathBuf> {
    let tables = report["tables"].as_array().unwrap().iter();
    let of = |table: &Value| {
        let folder = lake.join(table["table"].as_str().unwrap());
        let names = table["files"].as_array().unwrap().clone();
        names
            .into_iter()
            .map(move |name| folder.join(name.as_str().unwrap()))
    };
    tables.flat_map(of).collect()
}

/// Data files, and what was staged to be one or an entry of a log.
fn files(lake: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut folders: Vec<PathBuf> = TABLES.iter().map(|table| lake.join(table)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let data = path.extension().is_some_and(|end| end == "parquet");
            if path.is_dir() {
                folders.push(path);
            } else if is_staged(&path) || data && !folder.ends_with("_delta_log") {
                found.insert(path);
            }
        }
    }
    found
}

fn is_staged(file: &Path) -> bool {
    file.to_string_lossy().contains('#')
}

/// Where the entry goes that follows the newest one.
fn next_entry(table: &Path) -> PathBuf {
    let log = table.join("_delta_log");
    let entries = fs::read_dir(&log).unwrap();
    let versions = entries.filter_map(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        name.strip_suffix(".json")?.parse::<u64>().ok()
    });
    log.join(format!("{:020}.json", versions.max().unwrap() + 1))
}

/// Version and rows of each table, as delta-rs reads them.
fn rows(python: &Path, lake: &Path) -> Vec<Value> {
    let of = |table: &&str| {
        delta_rs(python, &lake.join(table), &["read", "app"]).unwrap()["rows"].clone()
    };
    TABLES.iter().map(of).collect()
}

fn delta_rs(python: &Path, table: &Path, args: &[&str]) -> Result<Value, String> {
    run_script(python, "delta_rs.py", &[&[arg(table)], args].concat())
}
