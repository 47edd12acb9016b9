//! Which conversations the lake has, for ids that grow with time and for random ones.

use rand::{RngCore, SeedableRng};

use super::*;

async fn ledger(lake: &Lake, ids: &[String], completeness: Completeness) {
    let rows: Vec<_> = ids
        .iter()
        .map(|id| conversation(id, completeness))
        .collect();
    let commit = Commit {
        rows: vec![conversations_batch(&rows)],
        ..Commit::default()
    };
    lake.table(TableName::Conversations)
        .commit(&commit)
        .await
        .unwrap();
}

#[tokio::test]
async fn every_id_written_is_found_and_no_other() {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    let mut next = |grows: bool, at: usize| {
        let number = random.next_u64();
        if grows {
            // Longer than the prefix that the log keeps of a bound.
            format!("conv_conversation_{at:08}_{number:016x}")
        } else {
            format!("conv_{number:016x}")
        }
    };
    for grows in [true, false] {
        let folder = TempDir::new().unwrap();
        let lake = open(folder.path()).await;
        let written: Vec<String> = (0..300).map(|at| next(grows, at)).collect();
        let others: Vec<String> = (0..100).map(|at| next(grows, at * 3)).collect();
        for (at, ids) in written.chunks(30).enumerate() {
            let completeness = [Completeness::Partial, Completeness::Complete][at % 2];
            ledger(&lake, ids, completeness).await;
        }
        let asked: Vec<String> = written.iter().chain(&others).cloned().collect();
        // Warm, as the writer; and cold, from the files.
        for lake in [lake, open(folder.path()).await] {
            let table = lake.table(TableName::Conversations);
            let held = table.holds(&asked).await.unwrap();
            assert_eq!(held, written.iter().cloned().collect());
            let known = lake.completeness(&asked).await.unwrap();
            assert_eq!(known.len(), written.len());
            for (at, id) in written.iter().enumerate() {
                let expected = [Completeness::Partial, Completeness::Complete][at / 30 % 2];
                assert_eq!(known[id], expected);
            }
        }
    }
}

#[tokio::test]
async fn what_others_write_and_remove_is_seen() {
    let folder = TempDir::new().unwrap();
    let (here, there) = (open(folder.path()).await, open(folder.path()).await);
    ledger(&here, &ids(&["a", "b"]), Completeness::Partial).await;
    let asked = ids(&["a", "b", "c"]);
    let table = there.table(TableName::Conversations);
    let held = table.holds(&asked).await.unwrap();
    assert_eq!(held, HashSet::from(["a".to_owned(), "b".to_owned()]));
    let erase = Commit {
        replace: BTreeSet::from(["a".to_owned()]),
        ..Commit::default()
    };
    let done = table.commit(&erase).await.unwrap();
    assert_eq!((done.version, done.files), (2, 1));
    let known = here.completeness(&asked).await.unwrap();
    assert_eq!(
        known,
        HashMap::from([("b".to_owned(), Completeness::Partial)])
    );
}

#[tokio::test]
async fn a_file_of_several_parts_and_row_groups_is_read_back() {
    let folder = TempDir::new().unwrap();
    let lake = open(folder.path()).await;
    let table = lake.table(TableName::Events);
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    // Does not compress below the size at which a file goes to the store in parts.
    let mut body = || -> String {
        (0..64)
            .map(|_| format!("{:016x}", random.next_u64()))
            .collect()
    };
    let rows: Vec<_> = (0..40_000)
        .map(|offset| {
            let mut row = event(offset);
            row.body = body();
            row.conversation_id = format!("c{offset:05}");
            row
        })
        .collect();
    let commit = Commit {
        rows: rows.chunks(15_000).rev().map(events_batch).collect(),
        ..Commit::default()
    };
    let done = table.commit(&commit).await.unwrap();
    assert!(done.files == 1 && done.bytes > 16 << 20, "{done:?}");
    let mut batches = table.read(&["kafka_offset"]).await.unwrap();
    let mut offsets = Vec::new();
    while let Some(batch) = batches.next().await {
        let batch = batch.unwrap();
        offsets.extend_from_slice(batch.column(0).as_primitive::<Int64Type>().values());
    }
    // Batches came in another order: rows of a file are sorted across them.
    assert_eq!(offsets, Vec::from_iter(0..40_000));
    let held = table
        .holds(&ids(&["c00000", "c39999", "c40000"]))
        .await
        .unwrap();
    assert_eq!(held.len(), 2);
}
