//! Thousands of spool folders that something has changed, each drawn from a seed: what comes out went in.
//!
//! A closed spool with twenty records, five of them removed, is made once; each edit gets a copy. For each is
//! claimed, over two starts: no start fails or loops; every record that comes out is one that went in; every
//! record that is missing was hit, and then the damage was told; what no longer belongs to us is refused and
//! left as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::sync::atomic::{AtomicU64, Ordering};

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::spool::record::search;

/// Edits in an ordinary run; another number, such as a release's 10,000, by this variable.
const EDITS: u64 = 2_000;
const EDITS_VARIABLE: &str = "CONVOLAKE_SPOOL_EDITS";
/// Threads that share them.
const THREADS: u64 = 4;
/// Records in the spool, and the first of them that was not removed.
const RECORDS: u64 = 20;
const LIVE: u64 = 5;
const PAGE: u64 = 4096;

/// What happens to the closed folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    BitFlip,
    TornTail,
    ZeroedTail,
    Truncated,
    DuplicatedPage,
    SwappedPages,
    ForeignFile,
    ForeignOwner,
}

const KINDS: [Kind; 8] = [
    Kind::BitFlip,
    Kind::TornTail,
    Kind::ZeroedTail,
    Kind::Truncated,
    Kind::DuplicatedPage,
    Kind::SwappedPages,
    Kind::ForeignFile,
    Kind::ForeignOwner,
];

/// Bytes of the file that an edit may have changed.
type Hit = Vec<(u64, u64)>;

/// The file that every edit gets a copy of, and where its records lie.
struct Template {
    bytes: Vec<u8>,
    places: BTreeMap<u64, Range<u64>>,
}

/// What all edits together came to.
#[derive(Debug, Default)]
struct Sums {
    edits: AtomicU64,
    refused: AtomicU64,
    owed: AtomicU64,
    kept: AtomicU64,
    damage_told: AtomicU64,
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "how many edits is the business of whoever runs the test"
)]
fn what_comes_out_of_an_edited_spool_went_in_and_what_is_missing_was_hit() {
    let edits = std::env::var(EDITS_VARIABLE).map_or(EDITS, |count| count.parse().unwrap());
    let (template, sums) = (Template::new(), Sums::default());
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (template, sums) = (&template, &sums);
            scope.spawn(move || {
                let folder = fast_folder();
                // Its reserve of 4 MiB is made once.
                runtime().block_on(async { opened(&folder).close(PATIENCE).await });
                for seed in (thread..edits).step_by(THREADS as usize) {
                    check(&folder, template, seed, sums);
                }
            });
        }
    });
    println!("{sums:?}");
    assert_eq!(sums.edits.into_inner(), edits);
    assert!(sums.refused.into_inner() > 0 && sums.damage_told.into_inner() > 0);
    assert_eq!(
        sums.kept.into_inner(),
        sums.owed.into_inner(),
        "unexplained"
    );
}

/// In memory where the machine has such a place: what is tested is what is read, not that it is on a disk.
fn fast_folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| folder())
}

fn runtime() -> tokio::runtime::Runtime {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().unwrap()
}

impl Template {
    fn new() -> Template {
        let folder = folder();
        runtime().block_on(async {
            let spool = opened(&folder);
            push_all(&spool, 0..RECORDS / 2).await;
            for n in RECORDS / 2..RECORDS {
                within(spool.push(entry_of(n, 3_000), PATIENCE))
                    .await
                    .unwrap();
            }
            let batch = held(&spool).await;
            remove(&spool, &batch[..LIVE as usize]).await;
            spool.close(PATIENCE).await;
        });
        let file = queue_file(&folder);
        let found = search(&file, &(0..u64::MAX)).unwrap();
        let place = |offset: u64, bytes: usize| offset..offset + bytes as u64;
        let places = found.iter().map(|f| (f.number, place(f.offset, f.bytes)));
        Template {
            places: places.collect(),
            bytes: std::fs::read(settings(&folder).folder.join("queue.redb")).unwrap(),
        }
    }

    /// Records that an edit of these bytes cannot have touched.
    fn owed(&self, hit: &Hit) -> BTreeSet<u64> {
        let untouched = |place: &Range<u64>| {
            let apart = |(from, to): &(u64, u64)| *to <= place.start || place.end <= *from;
            hit.iter().all(apart)
        };
        let owed = self.places.iter().filter(|(_, place)| untouched(place));
        owed.map(|(n, _)| *n).filter(|n| *n >= LIVE).collect()
    }
}

/// One edit and two starts after it.
fn check(folder: &TempDir, template: &Template, seed: u64, sums: &Sums) {
    let path = settings(folder).folder;
    for entry in std::fs::read_dir(&path).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "reserve" {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    let queue = path.join("queue.redb");
    std::fs::write(&queue, &template.bytes).unwrap();
    std::fs::set_permissions(&queue, PermissionsExt::from_mode(0o600)).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let kind = KINDS[rng.random_range(0..KINDS.len())];
    let hit = edit(kind, &queue, &mut rng);
    sums.edits.fetch_add(1, Ordering::Relaxed);
    if kind == Kind::ForeignOwner {
        refused(folder, template, seed);
        sums.refused.fetch_add(1, Ordering::Relaxed);
        return;
    }
    let owed = template.owed(&hit);
    runtime().block_on(async {
        let spool = opened(folder);
        let kept: BTreeSet<u64> = values(&held(&spool).await).into_iter().collect();
        assert!(
            kept.iter().all(|n| *n < RECORDS),
            "seed {seed} {kind:?}: invented"
        );
        assert!(
            owed.is_subset(&kept),
            "seed {seed} {kind:?}: {owed:?} {kept:?}"
        );
        let Health { down, note } = spool.health();
        assert_eq!(down, None, "seed {seed} {kind:?}");
        let missing = (LIVE..RECORDS).any(|n| !kept.contains(&n));
        let aside = files(folder, "set-aside");
        assert_eq!(note.is_some(), aside == 1, "seed {seed} {kind:?}: {note:?}");
        assert!(
            aside == 1 || !missing,
            "seed {seed} {kind:?}: damage untold"
        );
        spool.close(PATIENCE).await;
        // What took its place is whole: the damage is told once.
        let spool = opened(folder);
        let again: BTreeSet<u64> = values(&held(&spool).await).into_iter().collect();
        assert_eq!(
            (again, spool.health()),
            (kept.clone(), Health::default()),
            "seed {seed}"
        );
        assert_eq!(files(folder, "set-aside"), aside, "seed {seed}");
        spool.close(PATIENCE).await;
        let owed_and_kept = owed.intersection(&kept).count() as u64;
        sums.owed.fetch_add(owed.len() as u64, Ordering::Relaxed);
        sums.kept.fetch_add(owed_and_kept, Ordering::Relaxed);
        sums.damage_told.fetch_add(aside as u64, Ordering::Relaxed);
    });
}

/// Does it; gives the bytes that it may have changed.
fn edit(kind: Kind, queue: &Path, rng: &mut ChaCha8Rng) -> Hit {
    let file = File::options().read(true).write(true).open(queue).unwrap();
    let end = file.metadata().unwrap().len();
    let at = rng.random_range(0..end);
    let pages = end / PAGE;
    let page = |rng: &mut ChaCha8Rng| rng.random_range(0..pages) * PAGE;
    let read = |from: u64| {
        let mut bytes = vec![0; PAGE as usize];
        file.read_exact_at(&mut bytes, from).unwrap();
        bytes
    };
    // A write that was cut off ends with its sector.
    let tail = |rng: &mut ChaCha8Rng| end - (rng.random_range(1..=end) / 512 * 512).max(1);
    match kind {
        Kind::BitFlip => {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            byte[0] ^= 1 << rng.random_range(0..8);
            file.write_all_at(&byte, at).unwrap();
            vec![(at, at + 1)]
        }
        Kind::TornTail | Kind::ZeroedTail => {
            let from = tail(rng);
            let mut bytes = vec![0; usize::try_from(end - from).unwrap()];
            if kind == Kind::TornTail {
                rng.fill(&mut bytes[..]);
            }
            file.write_all_at(&bytes, from).unwrap();
            vec![(from, end)]
        }
        Kind::Truncated => {
            file.set_len(at).unwrap();
            vec![(at, end)]
        }
        Kind::DuplicatedPage => {
            let (from, to) = (page(rng), page(rng));
            file.write_all_at(&read(from), to).unwrap();
            vec![(to, to + PAGE)]
        }
        Kind::SwappedPages => {
            let (one, other) = (page(rng), page(rng));
            let (first, second) = (read(one), read(other));
            file.write_all_at(&first, other).unwrap();
            file.write_all_at(&second, one).unwrap();
            vec![(one, one + PAGE), (other, other + PAGE)]
        }
        Kind::ForeignFile => {
            let mut bytes = vec![0; rng.random_range(0..100_000)];
            rng.fill(&mut bytes[..]);
            std::fs::write(queue, bytes).unwrap();
            vec![(0, end)]
        }
        Kind::ForeignOwner => {
            // Only root can give a file away; for others it is the folder that is open to all.
            if rustix::process::geteuid().is_root() {
                chown(queue, Some(rng.random_range(1..60_000)), None).unwrap();
            } else {
                let folder = queue.parent().unwrap();
                let mode = 0o700 | rng.random_range(1..0o100);
                std::fs::set_permissions(folder, PermissionsExt::from_mode(mode)).unwrap();
            }
            Vec::new()
        }
    }
}

/// Not ours any more: no start, nothing changed, and all of it there once it is ours again.
fn refused(folder: &TempDir, template: &Template, seed: u64) {
    let path = settings(folder).folder;
    let queue = path.join("queue.redb");
    let error = Spool::open(&settings(folder)).unwrap_err();
    assert!(
        matches!(error, Error::Refused { .. }),
        "seed {seed}: {error}"
    );
    assert_eq!(
        std::fs::read(&queue).unwrap(),
        template.bytes,
        "seed {seed}"
    );
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
    if rustix::process::geteuid().is_root() {
        chown(&queue, Some(0), None).unwrap();
    }
    runtime().block_on(async {
        let spool = opened(folder);
        assert_eq!(
            values(&held(&spool).await),
            (LIVE..RECORDS).collect::<Vec<_>>()
        );
        spool.close(PATIENCE).await;
    });
}
