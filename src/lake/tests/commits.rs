//! Commits against commits: positions, races, replacement.

use super::*;

#[tokio::test]
async fn a_commit_is_read_back_after_reopening() {
    let folder = TempDir::new().unwrap();
    let root = folder.path().join("a lake's");
    let lake = open(&root).await;
    let table = lake.table(TableName::Communications);
    let commit = Commit {
        positions: position(None, 10),
        ..rows(&communications("c1", 5))
    };
    let done = table.commit(&commit).await.unwrap();
    assert_eq!((done.version, done.files, done.already), (1, 2, false));
    drop(lake);

    let lake = Lake::open(root.to_str().unwrap(), Access::Existing)
        .await
        .unwrap();
    let table = lake.table(TableName::Communications);
    assert_eq!(content(table).await, pairs("c1", 5));
    let positions = table.positions(&ids(&[APP, "other"])).await.unwrap();
    assert_eq!(positions, [Some(10), None]);
    let stats = table.stats().await.unwrap();
    assert_eq!((stats.files, stats.rows, stats.bytes), (2, 5, done.bytes));
}

#[tokio::test]
async fn the_same_commit_twice_adds_once() {
    let folder = TempDir::new().unwrap();
    let lake = open(folder.path()).await;
    let table = lake.table(TableName::Communications);
    let commit = Commit {
        positions: position(None, 10),
        ..rows(&communications("c1", 3))
    };
    table.commit(&commit).await.unwrap();
    let files = listing(folder.path());
    let again = table.commit(&commit).await.unwrap();
    assert!(again.already, "{again:?}");
    assert_eq!(listing(folder.path()), files);
    assert_eq!(content(table).await, pairs("c1", 3));
}

#[tokio::test]
async fn another_owner_is_refused_and_leaves_nothing() {
    let folder = TempDir::new().unwrap();
    let (owner, stale) = (open(folder.path()).await, open(folder.path()).await);
    let owner = owner.table(TableName::Communications);
    let stale = stale.table(TableName::Communications);
    let commit = |conversation: &str, from, to| Commit {
        positions: position(from, to),
        ..rows(&communications(conversation, 2))
    };
    owner.commit(&commit("c1", None, 10)).await.unwrap();
    owner.commit(&commit("c2", Some(10), 20)).await.unwrap();
    let files = listing(folder.path());
    for (from, to) in [(None, 5), (Some(10), 15), (Some(20), 20)] {
        let mut late = commit("c3", from, to);
        // A position that stays is compared as well.
        late.positions.push(Position {
            app: "other".to_owned(),
            from: Some(1),
            to: if from == Some(20) { 1 } else { 2 },
        });
        match stale.commit(&late).await.unwrap_err() {
            LakeError::Refused { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    let back = stale.commit(&commit("c3", Some(20), 19)).await.unwrap_err();
    assert!(matches!(back, LakeError::Invalid { .. }), "{back:?}");
    assert_eq!(listing(folder.path()), files);
    assert_eq!(
        content(owner).await,
        [pairs("c1", 2), pairs("c2", 2)].concat()
    );
}

#[tokio::test]
async fn some_positions_there_and_others_not_is_another_owner() {
    let folder = TempDir::new().unwrap();
    let lake = open(folder.path()).await;
    let table = lake.table(TableName::Communications);
    let at = |app: &str, from, to| Position {
        app: app.to_owned(),
        from,
        to,
    };
    let only = |positions| Commit {
        positions,
        ..Commit::default()
    };
    table.commit(&only(vec![at("a", None, 5)])).await.unwrap();
    let both = only(vec![at("a", None, 5), at("b", None, 7)]);
    let error = table.commit(&both).await.unwrap_err();
    assert!(matches!(error, LakeError::Refused { .. }), "{error:?}");
    let positions = table.positions(&ids(&["a", "b"])).await.unwrap();
    assert_eq!(positions, [Some(5), None]);
}

#[tokio::test]
async fn writers_that_conflict_all_land() {
    const WRITERS: usize = 3;
    const COMMITS: i64 = 12;
    let folder = TempDir::new().unwrap();
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let lake = open(folder.path()).await;
        writers.push(tokio::spawn(async move {
            let table = lake.table(TableName::Communications);
            for commit in 0..COMMITS {
                let commit = Commit {
                    positions: vec![Position {
                        app: format!("writer {writer}"),
                        from: (commit > 0).then_some(commit),
                        to: commit + 1,
                    }],
                    ..rows(&communications(&format!("c{writer}-{commit}"), 2))
                };
                table.commit(&commit).await.unwrap();
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let lake = open(folder.path()).await;
    let table = lake.table(TableName::Communications);
    let expected: BTreeSet<_> = (0..WRITERS)
        .flat_map(|w| (0..COMMITS).flat_map(move |c| pairs(&format!("c{w}-{c}"), 2)))
        .collect();
    assert_eq!(content(table).await, Vec::from_iter(expected));
    assert_eq!(table.version(), WRITERS as u64 * COMMITS as u64);
}

#[tokio::test]
async fn a_conversation_somebody_else_wrote_is_not_doubled() {
    let folder = TempDir::new().unwrap();
    let (winner, loser) = (open(folder.path()).await, open(folder.path()).await);
    let winner = winner.table(TableName::Communications);
    let loser = loser.table(TableName::Communications);
    let seen = Some(loser.version());
    assert!(loser.holds(&ids(&["c1", "c2"])).await.unwrap().is_empty());
    winner
        .commit(&rows(&communications("c1", 2)))
        .await
        .unwrap();

    let both = [communications("c1", 3), communications("c2", 3)].concat();
    let files = listing(folder.path());
    for replace in [BTreeSet::new(), BTreeSet::from(["c1".to_owned()])] {
        let commit = Commit {
            seen,
            replace,
            ..rows(&both)
        };
        match loser.commit(&commit).await.unwrap_err() {
            LakeError::Raced { conversations, .. } => assert_eq!(conversations, ["c1"]),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(listing(folder.path()), files);
    // Looked at again, it is the caller's to replace.
    let commit = Commit {
        seen: Some(loser.version()),
        replace: BTreeSet::from(["c1".to_owned()]),
        ..rows(&both)
    };
    loser.commit(&commit).await.unwrap();
    assert_eq!(
        content(winner).await,
        [pairs("c1", 3), pairs("c2", 3)].concat()
    );
}

#[tokio::test]
async fn the_raw_record_keeps_repeats() {
    let folder = TempDir::new().unwrap();
    let lake = open(folder.path()).await;
    let table = lake.table(TableName::Events);
    for offset in 0..3 {
        let commit = Commit {
            rows: vec![events_batch(&[event(offset)])],
            positions: position((offset > 0).then_some(offset), offset + 1),
            seen: Some(0),
            ..Commit::default()
        };
        table.commit(&commit).await.unwrap();
    }
    assert_eq!(table.stats().await.unwrap().rows, 3);
}

#[tokio::test]
async fn replacement_removes_exactly_the_old_rows() {
    let folder = TempDir::new().unwrap();
    let lake = open(folder.path()).await;
    let table = lake.table(TableName::Communications);
    let many: Vec<_> = (0..20)
        .flat_map(|c| communications(&format!("c{c:02}"), 4))
        .collect();
    table.commit(&rows(&many)).await.unwrap();
    table
        .commit(&rows(&communications("alone", 2)))
        .await
        .unwrap();
    let commit = Commit {
        replace: ["c03", "c17", "alone", "unknown"].map(str::to_owned).into(),
        ..rows(&communications("c03", 6))
    };
    let done = table.commit(&commit).await.unwrap();
    // Two rewritten (one a channel), two new; the file with nothing left is only removed.
    assert_eq!(done.files, 4);
    let expected: Vec<_> = (0..20)
        .filter(|c| *c != 17)
        .flat_map(|c| pairs(&format!("c{c:02}"), if c == 3 { 6 } else { 4 }))
        .collect();
    assert_eq!(content(table).await, expected);
    let stats = table.stats().await.unwrap();
    assert_eq!((stats.files, stats.rows), (4, 78));
}

/// The removal of a file that somebody else has rewritten meanwhile would be accepted, and double its rows.
#[tokio::test]
async fn replacements_of_the_same_file_do_not_double_rows() {
    const ROUNDS: i64 = 6;
    let folder = TempDir::new().unwrap();
    let lakes = [open(folder.path()).await, open(folder.path()).await];
    let all: Vec<_> = (0..4)
        .flat_map(|c| communications(&format!("c{c}"), 2))
        .collect();
    let table = lakes[0].table(TableName::Communications);
    table.commit(&rows(&all)).await.unwrap();
    for round in 0..ROUNDS {
        let replace = |lake: usize| {
            let table = lakes[lake].table(TableName::Communications).clone();
            let conversation = format!("c{lake}");
            tokio::spawn(async move {
                let commit = Commit {
                    replace: BTreeSet::from([conversation.clone()]),
                    ..rows(&communications(&conversation, 2 + round))
                };
                table.commit(&commit).await.unwrap();
            })
        };
        let (a, b) = (replace(0), replace(1));
        a.await.unwrap();
        b.await.unwrap();
        let count = 2 + round;
        let expected = [
            pairs("c0", count),
            pairs("c1", count),
            pairs("c2", 2),
            pairs("c3", 2),
        ];
        assert_eq!(content(table).await, expected.concat(), "round {round}");
    }
}

#[tokio::test]
async fn a_crash_between_the_tables_is_made_good_by_replacement() {
    let folder = TempDir::new().unwrap();
    let lake = open(folder.path()).await;
    let commit = Commit {
        positions: position(None, 10),
        ..rows(&communications("c1", 3))
    };
    let table = lake.table(TableName::Communications);
    table.commit(&commit).await.unwrap();
    drop(lake);

    let lake = open(folder.path()).await;
    let (first, second) = (
        lake.table(TableName::Communications),
        lake.table(TableName::Conversations),
    );
    let app = ids(&[APP]);
    assert_eq!(first.positions(&app).await.unwrap(), [Some(10)]);
    assert_eq!(second.positions(&app).await.unwrap(), [None]);
    assert!(lake.completeness(&ids(&["c1"])).await.unwrap().is_empty());
    let again = Commit {
        replace: BTreeSet::from(["c1".to_owned()]),
        ..rows(&communications("c1", 3))
    };
    first.commit(&again).await.unwrap();
    let ledger = Commit {
        rows: vec![conversations_batch(&[conversation(
            "c1",
            Completeness::Complete,
        )])],
        positions: position(None, 10),
        ..Commit::default()
    };
    second.commit(&ledger).await.unwrap();
    assert_eq!(content(first).await, pairs("c1", 3));
    let known = lake.completeness(&ids(&["c1"])).await.unwrap();
    assert_eq!(known["c1"], Completeness::Complete);
}

#[tokio::test]
async fn nothing_to_commit_commits_nothing() {
    let folder = TempDir::new().unwrap();
    let lake = open(folder.path()).await;
    let table = lake.table(TableName::Communications);
    let files = listing(folder.path());
    let done = table.commit(&rows(&[])).await.unwrap();
    assert_eq!((done.version, done.files), (0, 0));
    assert_eq!(listing(folder.path()), files);
    let only = Commit {
        positions: position(None, 4),
        ..rows(&[])
    };
    assert_eq!(table.commit(&only).await.unwrap().version, 1);
    assert_eq!(table.positions(&ids(&[APP])).await.unwrap(), [Some(4)]);
}

#[tokio::test]
async fn rows_that_are_not_ours_are_invalid() {
    let folder = TempDir::new().unwrap();
    let lake = open(folder.path()).await;
    let table = lake.table(TableName::Communications);
    let mut escape = communications("c1", 1);
    escape[0].channel = "../../SMS".to_owned();
    let other = Commit {
        rows: vec![events_batch(&[event(0)])],
        ..Commit::default()
    };
    for commit in [rows(&escape), other] {
        let error = table.commit(&commit).await.unwrap_err();
        assert!(matches!(error, LakeError::Invalid { .. }), "{error:?}");
    }
    assert_eq!(table.stats().await.unwrap().version, 0);
}
