//! What opening makes, completes and refuses.

use std::fs;

use super::*;

#[tokio::test]
async fn openers_that_race_make_one_lake() {
    let folder = TempDir::new().unwrap();
    let root = folder.path().join("new/lake");
    let openers: Vec<_> = (0..6)
        .map(|_| {
            let root = root.clone();
            tokio::spawn(async move { open(&root).await })
        })
        .collect();
    for opener in openers {
        let lake = opener.await.unwrap();
        for name in TableName::ALL {
            assert_eq!(lake.table(name).stats().await.unwrap().version, 0);
        }
    }
}

#[tokio::test]
async fn an_existing_lake_is_not_made() {
    let folder = TempDir::new().unwrap();
    let root = folder.path().join("typo");
    let error = Lake::open(root.to_str().unwrap(), Access::Existing)
        .await
        .unwrap_err();
    assert!(matches!(error, LakeError::Missing { .. }), "{error:?}");
    assert!(!root.exists());
}

async fn refused(root: &Path, part: &str) {
    let before = listing(root);
    for access in [Access::Create, Access::Existing] {
        let error = Lake::open(root.to_str().unwrap(), access)
            .await
            .unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
    assert_eq!(listing(root), before);
}

#[tokio::test]
async fn a_folder_that_is_not_ours_is_left_alone() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("holiday.jpg"), b"").unwrap();
    refused(folder.path(), "it holds `holiday.jpg`").await;

    let folder = TempDir::new().unwrap();
    fs::create_dir_all(folder.path().join("events/date=2026-01-01")).unwrap();
    refused(folder.path(), "no Delta log").await;

    let folder = TempDir::new().unwrap();
    drop(open(folder.path()).await);
    refused(&folder.path().join("events"), "itself a Delta table").await;
}

#[tokio::test]
async fn what_a_volume_or_a_killed_creation_leaves_does_not_matter() {
    let folder = TempDir::new().unwrap();
    fs::create_dir(folder.path().join("lost+found")).unwrap();
    let log = folder.path().join("conversations/_delta_log");
    fs::create_dir_all(&log).unwrap();
    fs::write(log.join("00000000000000000000.json#1"), b"{").unwrap();
    let lake = open(folder.path()).await;
    assert_eq!(lake.table(TableName::Conversations).version(), 0);
}

/// Appends a commit to the log of `events`, as another writer would.
fn append(root: &Path, version: u64, actions: &[serde_json::Value]) {
    let lines: Vec<String> = actions.iter().map(ToString::to_string).collect();
    let entry = format!("events/_delta_log/{version:020}.json");
    fs::write(root.join(entry), lines.join("\n")).unwrap();
}

/// The table's metadata action, changed.
fn metadata(root: &Path, change: impl FnOnce(&mut serde_json::Value)) -> serde_json::Value {
    let log = root.join("events/_delta_log/00000000000000000000.json");
    let log = fs::read_to_string(log).unwrap();
    let mut action = log
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .find(|action| action.get("metaData").is_some())
        .unwrap();
    change(&mut action["metaData"]);
    action
}

#[tokio::test]
async fn a_table_that_needs_more_than_this_version_knows_is_refused() {
    let protocol = |reader: u8, writer: u8, features: &[&str], writers: &[&str]| {
        serde_json::json!({"protocol": {
            "minReaderVersion": reader, "minWriterVersion": writer,
            "readerFeatures": features, "writerFeatures": writers,
        }})
    };
    let setting = |key: &'static str, value: &'static str| {
        move |metadata: &mut serde_json::Value| {
            metadata["configuration"][key] = value.into();
        }
    };
    type Change = Box<dyn Fn(&Path) -> serde_json::Value>;
    let cases: [(Change, &str); 6] = [
        (Box::new(move |_| protocol(4, 8, &[], &[])), "events"),
        (
            Box::new(move |_| protocol(3, 7, &["deletionVectors"], &["deletionVectors"])),
            "`deletionVectors`",
        ),
        (
            Box::new(move |_| protocol(3, 7, &[], &["invariants", "notInventedYet"])),
            "notInventedYet",
        ),
        (
            Box::new(move |root| {
                let key = "delta.setTransactionRetentionDuration";
                metadata(root, setting(key, "interval 1 days"))
            }),
            "positions in it expire",
        ),
        (
            Box::new(move |root| metadata(root, setting("delta.appendOnly", "true"))),
            "`delta.appendOnly` is set",
        ),
        (
            Box::new(move |root| metadata(root, |m| m["partitionColumns"] = serde_json::json!([]))),
            "partitioned by []",
        ),
    ];
    for (change, part) in cases {
        let folder = TempDir::new().unwrap();
        drop(open(folder.path()).await);
        append(folder.path(), 1, &[change(folder.path())]);
        refused(folder.path(), part).await;
    }
}

/// Changes the columns that the log of `events` declares.
fn with_columns(root: &Path, change: impl FnOnce(&mut Vec<serde_json::Value>)) {
    let action = metadata(root, |metadata| {
        let schema = metadata["schemaString"].as_str().unwrap();
        let mut schema: serde_json::Value = serde_json::from_str(schema).unwrap();
        change(schema["fields"].as_array_mut().unwrap());
        metadata["schemaString"] = schema.to_string().into();
    });
    append(root, 1, &[action]);
}

#[tokio::test]
async fn an_older_table_gets_the_columns_it_lacks() {
    let folder = TempDir::new().unwrap();
    drop(open(folder.path()).await);
    with_columns(folder.path(), |columns| {
        columns.retain(|column| column["name"] != "idempotency_token");
        columns.push(serde_json::json!(
            {"name": "theirs", "type": "integer", "nullable": true, "metadata": {}}
        ));
    });
    let before = listing(folder.path());
    let existing = Lake::open(folder.path().to_str().unwrap(), Access::Existing)
        .await
        .unwrap();
    assert_eq!(existing.table(TableName::Events).version(), 1);
    assert_eq!(listing(folder.path()), before);

    let lake = open(folder.path()).await;
    let table = lake.table(TableName::Events);
    assert_eq!(table.version(), 2);
    // One that was opened before is written to all the same.
    for (lake, offset) in [(&existing, 0), (&lake, 1)] {
        let mut row = event(offset);
        row.idempotency_token = Some("t".to_owned());
        let commit = Commit {
            rows: vec![events_batch(&[row])],
            ..Commit::default()
        };
        lake.table(TableName::Events).commit(&commit).await.unwrap();
    }
    let mut batches = table.read(&["date", "idempotency_token"]).await.unwrap();
    let mut tokens = 0;
    while let Some(batch) = batches.next().await {
        let batch = batch.unwrap();
        tokens += batch.column(1).as_string::<i32>().iter().flatten().count();
    }
    assert_eq!(tokens, 2);
}

#[tokio::test]
async fn a_column_of_another_type_is_refused() {
    let folder = TempDir::new().unwrap();
    drop(open(folder.path()).await);
    with_columns(folder.path(), |columns| {
        let body = columns.iter_mut().find(|c| c["name"] == "body").unwrap();
        body["type"] = "binary".into();
    });
    refused(folder.path(), "column `body` is Binary").await;
}
