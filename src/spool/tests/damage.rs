//! Files that something else has changed: what can be read is kept, and a start never fails twice.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::*;
use crate::spool::record::search;

/// What happens to a closed file.
#[derive(Debug, Clone)]
enum Damage {
    /// One bit, at this part of the file (in 1/65536).
    Flip(u16, u8),
    /// Zeros from here, so many bytes.
    Zero(u16, usize),
    /// Garbage from here, so many bytes.
    Garbage(u16, usize, u8),
    /// The end is missing.
    Cut(u16),
    /// Two blocks of 4 KiB change places.
    Swap(u16, u16),
    /// One block lies over another.
    Copy(u16, u16),
}

const BLOCK: u64 = 4096;

impl Damage {
    /// Does it; gives the bytes that it may have changed.
    fn strike(&self, file: &File) -> Vec<(u64, u64)> {
        let end = file.metadata().unwrap().len();
        let place = |part: u16| end * u64::from(part) / 65_536;
        if end < BLOCK {
            // An earlier cut left nothing that could be damaged further.
            return Vec::new();
        }
        // The last block of a file that was cut begins before its own border.
        let block = |part: u16| (place(part) / BLOCK * BLOCK).min(end - BLOCK);
        let fill = |part, bytes: usize, with: u8| {
            let from = place(part);
            let to = end.min(from + bytes as u64);
            let filling = vec![with; usize::try_from(to - from).unwrap()];
            file.write_all_at(&filling, from).unwrap();
            vec![(from, to)]
        };
        let read = |from| {
            let mut bytes = vec![0; BLOCK as usize];
            file.read_exact_at(&mut bytes, from).unwrap();
            bytes
        };
        match *self {
            Damage::Flip(part, bit) => {
                let at = place(part);
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ (1 << (bit % 8))], at)
                    .unwrap();
                vec![(at, at + 1)]
            }
            Damage::Zero(part, bytes) => fill(part, bytes, 0),
            Damage::Garbage(part, bytes, with) => fill(part, bytes, with),
            Damage::Cut(part) => {
                file.set_len(place(part)).unwrap();
                vec![(place(part), end)]
            }
            Damage::Swap(one, other) => {
                let (one, other) = (block(one), block(other));
                let (first, second) = (read(one), read(other));
                file.write_all_at(&first, other).unwrap();
                file.write_all_at(&second, one).unwrap();
                // Both may come from one frame that lies across their border.
                vec![(one, one + BLOCK), (other, other + BLOCK)]
            }
            Damage::Copy(from, to) => {
                let (from, to) = (block(from), block(to));
                file.write_all_at(&read(from), to).unwrap();
                vec![(to, to + BLOCK)]
            }
        }
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => (any::<u16>(), any::<u8>()).prop_map(|(p, b)| Damage::Flip(p, b)),
        2 => (any::<u16>(), 1..20_000usize).prop_map(|(p, n)| Damage::Zero(p, n)),
        2 => (any::<u16>(), 1..20_000usize, any::<u8>()).prop_map(|(p, n, b)| Damage::Garbage(p, n, b)),
        2 => any::<u16>().prop_map(Damage::Cut),
        1 => (any::<u16>(), any::<u16>()).prop_map(|(a, b)| Damage::Swap(a, b)),
        1 => (any::<u16>(), any::<u16>()).prop_map(|(a, b)| Damage::Copy(a, b)),
    ]
}

/// Twenty records were acknowledged, the first five removed; the file was closed, or its process killed.
/// Then the damage.
async fn check(damages: &[Damage], killed: bool) {
    let folder = folder();
    let spool = opened(&folder);
    push_all(&spool, 0..12).await;
    for n in 12..20 {
        within(spool.push(entry_of(n, 3_000), PATIENCE))
            .await
            .unwrap();
    }
    let batch = held(&spool).await;
    remove(&spool, &batch[..5]).await;
    if killed {
        let path = settings(&folder).folder.join("queue.redb");
        let copy = std::fs::read(&path).unwrap();
        spool.close(PATIENCE).await;
        std::fs::write(&path, copy).unwrap();
    } else {
        spool.close(PATIENCE).await;
    }

    let file = queue_file(&folder);
    let before = search(&file, &(0..u64::MAX)).unwrap();
    let hit: Vec<_> = damages
        .iter()
        .flat_map(|damage| damage.strike(&file))
        .collect();
    let mut frames = before.iter();
    // The one copy that a search names may not be the live one: only records none of whose bytes were
    // near a strike are owed.
    let owed: BTreeSet<u64> = (5..20)
        .filter(|number| {
            frames
                .by_ref()
                .find(|found| found.number == *number)
                .is_some_and(|found| {
                    let span = found.offset..found.offset + found.bytes as u64;
                    hit.iter()
                        .all(|(from, to)| *to <= span.start || span.end <= *from)
                })
        })
        .collect();

    for start in 0..2 {
        let spool = opened(&folder);
        assert_eq!(spool.health().down, None, "start {start}");
        let kept: Vec<u64> = values(&held(&spool).await);
        assert!(
            kept.is_sorted() && kept.iter().all(|n| *n < 20 + start),
            "{kept:?}"
        );
        let lost: Vec<_> = owed.iter().filter(|n| !kept.contains(n)).collect();
        assert!(lost.is_empty(), "start {start}: {lost:?} lost of {owed:?}");
        let note = spool.health().note;
        assert_eq!(
            note.is_some(),
            start == 0 && files(&folder, "set-aside") == 1
        );
        push_all(&spool, 20 + start..21 + start).await;
        let all = values(&held(&spool).await);
        assert_eq!(all.last(), Some(&(20 + start)), "{all:?}");
        // The second start finds nothing wrong any more, so that no third can.
        let pushed = all.iter().filter(|n| **n >= 20).count() as u64;
        assert_eq!(pushed, start + 1);
        let batch = held(&spool).await;
        spool.close(PATIENCE).await;
        if start == 0 {
            continue;
        }
        assert!(files(&folder, "set-aside") <= 1, "{}", batch.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn what_was_not_hit_is_kept_and_a_damaged_file_is_damaged_once(
        damages in proptest::collection::vec(damage(), 1..4),
        killed in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(check(&damages, killed));
    }
}

/// Not a spool at all.
#[tokio::test]
async fn a_foreign_file_is_set_aside_whole() {
    let empty_queue = {
        let folder = folder();
        opened(&folder).close(PATIENCE).await;
        std::fs::read(settings(&folder).folder.join("queue.redb")).unwrap()
    };
    let foreign_database = {
        let folder = folder();
        let path = folder.path().join("other.redb");
        let database = redb::Database::create(&path).unwrap();
        let table = redb::TableDefinition::<u64, u64>::new("meta");
        let transaction = database.begin_write().unwrap();
        transaction.open_table(table).unwrap().insert(1, 1).unwrap();
        transaction.commit().unwrap();
        drop(database);
        std::fs::read(path).unwrap()
    };
    let letter = b"Dear diary, ".repeat(1_000);
    let cases = [
        Vec::new(),
        letter,
        foreign_database,
        empty_queue[..5_000].to_vec(),
    ];
    for foreign in cases {
        let folder = folder();
        let path = settings(&folder).folder;
        opened(&folder).close(PATIENCE).await;
        std::fs::write(path.join("queue.redb"), &foreign).unwrap();
        let spool = opened(&folder);
        let note = spool.health().note.unwrap_or_default();
        assert!(note.contains("set aside"), "{note}");
        push_all(&spool, 0..3).await;
        spool.close(PATIENCE).await;
        let aside = path.join("set-aside-20261122T100000Z-0.redb");
        // But for what the engine notes in a file that it could read.
        let kept = std::fs::read(&aside).unwrap();
        assert!(
            kept == foreign || foreign.starts_with(b"redb"),
            "{}",
            kept.len()
        );
        let spool = opened(&folder);
        assert_eq!(values(&held(&spool).await), [0, 1, 2]);
        assert_eq!(spool.health(), Health::default());
        spool.close(PATIENCE).await;
    }
}
