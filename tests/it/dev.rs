//! `convolake dev`: the whole pipeline in one process, from nothing to a verified lake.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::harness::duckdb::query;
use crate::harness::process::{arg, convolake};
use crate::harness::{folder, parts};

const CONVERSATIONS: u64 = 60;
/// Longest run of that many, in an unoptimised build on two shared cores.
const DEV_LIMIT: Duration = Duration::from_secs(120);

#[tokio::test]
async fn dev_fills_a_lake_and_the_same_seed_adds_nothing() {
    let folder = folder();
    let lake = folder.path().join("lake");
    let first = dev(&lake).await;
    let documented = [
        "api_calls",
        "by_channel",
        "callbacks",
        "close_to_queryable_ms",
        "communications",
        "conversations",
        "lake",
        "seconds",
        "verify",
    ];
    let documented = BTreeSet::from(documented);
    assert!(documented.is_subset(&keys(&first)), "{first}");
    assert_eq!(first["conversations"], CONVERSATIONS, "{first}");
    for (object, names) in [
        ("callbacks", &["accepted", "duplicate", "refused"][..]),
        ("verify", &["complete", "gone", "missing", "partial"]),
        ("close_to_queryable_ms", &["p50", "p99"]),
    ] {
        let names = BTreeSet::from_iter(names.iter().copied());
        assert_eq!(keys(&first[object]), names, "{object}: {first}");
    }
    let verdict = &first["verify"];
    assert_eq!(verdict["missing"], 0, "{first}");
    assert_eq!(verdict["complete"], CONVERSATIONS, "{first}");
    let by_channel = first["by_channel"].as_object().unwrap().values();
    let by_channel: u64 = by_channel.map(|count| count.as_u64().unwrap()).sum();
    assert_eq!(first["communications"], by_channel, "{first}");
    assert!(by_channel > CONVERSATIONS, "{first}");
    assert_eq!(first["callbacks"]["refused"], 0, "{first}");

    let before = rows(&lake);
    let second = dev(&lake).await;
    assert_eq!(second["verify"]["missing"], 0, "{second}");
    assert_eq!(rows(&lake), before, "the same seed adds nothing");
    if let Some(before) = before {
        assert_eq!(before["conversations"], CONVERSATIONS, "{before}");
        assert_eq!(before["communications"], by_channel, "{before}");
        assert_eq!(before["communications"], before["ids"], "{before}");
    }
}

#[test]
fn the_line_that_dev_prints_works_as_printed() {
    let Some(python) = parts::python() else {
        return;
    };
    let folder = folder();
    let dev = Command::new(env!("CARGO_BIN_EXE_convolake"))
        .args(["dev", "--conversations", "20", "--lake", "it's a lake"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let printed = String::from_utf8(dev.stdout).unwrap();
    assert!(dev.status.success(), "{printed}");
    assert!(
        printed.contains("verdict             complete"),
        "{printed}"
    );
    let line = printed.lines().last().unwrap();
    let tools = python.parent().unwrap().to_str().unwrap();
    let queried = Command::new("sh")
        .args(["-c", &format!("PATH='{tools}':$PATH; {line}")])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let table = String::from_utf8_lossy(&queried.stdout);
    assert!(queried.status.success(), "{line}\n{queried:?}");
    assert!(
        table.contains("VOICE") && table.contains("communications"),
        "{table}"
    );
}

/// One run with the test's seed; the object that it prints.
async fn dev(lake: &Path) -> Value {
    let conversations = CONVERSATIONS.to_string();
    let mut process = convolake(
        &[
            "dev",
            "--conversations",
            &conversations,
            "--seed",
            "7",
            "--lake",
            arg(lake),
            "--json",
        ],
        &[],
    );
    let status = process.wait_exit(DEV_LIMIT).await;
    assert_eq!(status.code(), Some(0), "dev: {status}");
    let printed = process.stdout();
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("dev: {error}: {printed:?}"))
}

fn keys(object: &Value) -> BTreeSet<&str> {
    object
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

/// What DuckDB counts in the lake; `None` without DuckDB.
fn rows(lake: &Path) -> Option<Value> {
    let sql = "select (select count(*) from conversations) as conversations,
                      count(*) as communications,
                      count(distinct (conversation_id, communication_id)) as ids
               from communications";
    let rows = query(parts::python()?, lake, sql).unwrap_or_else(|why| panic!("{why}"));
    rows.into_iter().next()
}
