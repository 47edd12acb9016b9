//! Disks that fail while the spool is at work: an fsync, no room, no reading, no file.

use std::sync::atomic::Ordering;

use super::disk::Faults;
use super::*;

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn after_a_failed_fsync_its_batch_is_refused_and_another_file_takes_over() {
    let folder = folder();
    let (faults, wrap) = Faults::new(&settings(&folder).folder);
    let spool = Spool::open_with(&settings(&folder), wrap).unwrap();
    push_all(&spool, 0..10).await;
    let batch = held(&spool).await;
    remove(&spool, &batch[..3]).await;
    let old = queue_file(&folder);
    faults.failing_syncs.store(1, Ordering::SeqCst);
    assert_eq!(
        within(spool.push(entry(10), PATIENCE)).await,
        Err(NotStored::Down)
    );
    push_all(&spool, 11..13).await;
    let want: Vec<u64> = (3..10).chain(11..13).collect();
    assert_eq!(values(&held(&spool).await), want);
    assert_eq!(
        spool.health(),
        Health::default(),
        "all of the old file was read"
    );
    let new = queue_file(&folder);
    use std::os::unix::fs::MetadataExt;
    assert_ne!(old.metadata().unwrap().ino(), new.metadata().unwrap().ino());
    assert_eq!(old.metadata().unwrap().nlink(), 0);
    spool.close(PATIENCE).await;
    let spool = opened(&folder);
    assert_eq!(values(&held(&spool).await), want);
    spool.close(PATIENCE).await;
}

#[tokio::test]
async fn while_every_fsync_fails_nothing_is_acknowledged_and_then_all_is_well() {
    let folder = folder();
    let (faults, wrap) = Faults::new(&settings(&folder).folder);
    let spool = Spool::open_with(&settings(&folder), wrap).unwrap();
    push_all(&spool, 0..10).await;
    faults.failing_syncs.store(u64::MAX, Ordering::SeqCst);
    for n in 10..20 {
        assert_eq!(
            within(spool.push(entry(n), PATIENCE)).await,
            Err(NotStored::Down)
        );
    }
    let down = spool.health().down.unwrap();
    assert!(down.contains("os error 5"), "{down}");
    let read = within(spool.oldest(Vec::new(), None, ALL)).await;
    assert_eq!(read, Err(NotStored::Down));
    assert_eq!(files(&folder, "queue.new"), 0);
    faults.failing_syncs.store(0, Ordering::SeqCst);
    until("it works again", async || {
        spool.push(entry(20), PATIENCE).await.is_ok()
    })
    .await;
    let kept = values(&held(&spool).await);
    assert_eq!(kept[..10], (0..10).collect::<Vec<_>>());
    assert_eq!(kept[10..], [20]);
    assert_eq!(spool.health().down, None);
    spool.close(PATIENCE).await;
}

/// A file that cannot grow: refused pushes, and still everything can be taken out.
#[tokio::test]
async fn a_full_disk_refuses_and_drains_and_takes_again() {
    for size in [10, 500, 7_000, 200_000] {
        let folder = folder();
        let (faults, wrap) = Faults::new(&settings(&folder).folder);
        let spool = Spool::open_with(&settings(&folder), wrap).unwrap();
        within(spool.push(entry_of(0, size), PATIENCE))
            .await
            .unwrap();
        let capacity = faults.used() + 500_000;
        faults.capacity.store(capacity, Ordering::SeqCst);
        let mut kept = vec![0];
        for n in 1.. {
            match within(spool.push(entry_of(n, size), PATIENCE)).await {
                Ok(()) => kept.push(n),
                Err(error) => {
                    assert_eq!(error, NotStored::Down);
                    break;
                }
            }
        }
        // The first fault comes with a first try to open it again, which finds all that was acknowledged.
        assert_eq!(values(&held(&spool).await), kept, "{size}");
        let limit = Limit {
            records: kept.len() / 5 + 1,
            bytes: 1 << 30,
        };
        let (mut drained, mut removed) = (Vec::new(), Vec::new());
        loop {
            let read = within(spool.oldest(removed.clone(), None, limit)).await;
            let batch = read.unwrap_or_else(|error| {
                panic!(
                    "{size}: {error}, {} of {} left",
                    kept.len() - drained.len(),
                    kept.len()
                )
            });
            if batch.is_empty() {
                break;
            }
            drained.extend(values(&batch));
            removed = batch.iter().map(Stored::number).collect();
        }
        assert_eq!(drained, kept, "{size}");
        // With the reserve taken again.
        until("it takes records", async || {
            let (n, pushed) = (
                1_000_000,
                spool.push(entry_of(1_000_000, size), PATIENCE).await,
            );
            pushed.is_ok() && values(&held(&spool).await).contains(&n)
        })
        .await;
        assert_eq!(spool.health(), Health::default());
        spool.close(PATIENCE).await;
    }
}

#[tokio::test]
async fn a_start_on_a_disk_that_fails_waits_for_it() {
    let folder = folder();
    let (faults, wrap) = Faults::new(&settings(&folder).folder);
    let spool = Spool::open_with(&settings(&folder), wrap.clone()).unwrap();
    push_all(&spool, 0..10).await;
    spool.close(PATIENCE).await;
    faults.failing_reads.store(true, Ordering::SeqCst);
    let spool = Spool::open_with(&settings(&folder), wrap).unwrap();
    assert!(spool.health().down.is_some());
    assert_eq!(
        within(spool.push(entry(10), PATIENCE)).await,
        Err(NotStored::Down)
    );
    faults.failing_reads.store(false, Ordering::SeqCst);
    until("it works again", async || {
        spool.push(entry(10), PATIENCE).await.is_ok()
    })
    .await;
    assert_eq!(values(&held(&spool).await), (0..11).collect::<Vec<_>>());
    assert_eq!(files(&folder, "set-aside"), 0, "unreadable is not damaged");
    spool.close(PATIENCE).await;
}

/// What is removed while the spool is at work: the whole folder, the queue, or the lock alone.
#[tokio::test]
async fn what_was_removed_is_made_anew_with_all_that_it_held() {
    for name in ["", "queue.redb", "lock"] {
        let folder = folder();
        let spool = opened(&folder);
        push_all(&spool, 0..10).await;
        let batch = held(&spool).await;
        remove(&spool, &batch[..3]).await;
        let path = settings(&folder).folder;
        match name {
            "" => std::fs::remove_dir_all(&path).unwrap(),
            name => std::fs::remove_file(path.join(name)).unwrap(),
        }
        // Its commit went into a file that no start would find: it is told so, and kept all the same.
        assert_eq!(
            within(spool.push(entry(10), PATIENCE)).await,
            Err(NotStored::Down),
            "{name}"
        );
        push_all(&spool, 11..13).await;
        let want: Vec<u64> = (3..13).collect();
        assert_eq!(values(&held(&spool).await), want, "{name}");
        let Health { down, note } = spool.health();
        assert_eq!(down, None, "{name}");
        assert!(note.unwrap_or_default().starts_with("1 times"), "{name}");
        assert_eq!(files(&folder, "reserve"), 1, "{name}");
        let error = Spool::open(&settings(&folder)).unwrap_err();
        assert!(matches!(error, Error::InUse(_)), "{name}: {error}");
        spool.close(PATIENCE).await;
        let spool = opened(&folder);
        assert_eq!(values(&held(&spool).await), want, "{name}");
        spool.close(PATIENCE).await;
    }
}

#[tokio::test]
async fn a_removal_is_noticed_without_a_push() {
    let folder = folder();
    let spool = opened(&folder);
    push_all(&spool, 0..10).await;
    std::fs::remove_dir_all(settings(&folder).folder).unwrap();
    until("it is there again", async || {
        settings(&folder).folder.join("queue.redb").exists()
    })
    .await;
    assert_eq!(values(&held(&spool).await), (0..10).collect::<Vec<_>>());
    spool.close(PATIENCE).await;
}

/// Where it cannot be made anew, nothing is taken and that is said; what it held comes back with the folder.
#[tokio::test]
async fn while_it_cannot_be_made_anew_nothing_is_taken() {
    let folder = folder();
    let spool = opened(&folder);
    push_all(&spool, 0..10).await;
    let path = settings(&folder).folder;
    std::fs::remove_dir_all(&path).unwrap();
    std::fs::write(&path, "in its way").unwrap();
    for n in 10..13 {
        assert_eq!(
            within(spool.push(entry(n), PATIENCE)).await,
            Err(NotStored::Down)
        );
    }
    let down = spool.health().down.unwrap();
    assert!(down.contains("no folder"), "{down}");
    std::fs::remove_file(&path).unwrap();
    until("it works again", async || {
        spool.push(entry(20), PATIENCE).await.is_ok()
    })
    .await;
    let kept = values(&held(&spool).await);
    assert_eq!(kept[..10], (0..10).collect::<Vec<_>>());
    assert_eq!(kept.last(), Some(&20));
    spool.close(PATIENCE).await;
}

/// Another file in the place of ours is somebody's, and is kept.
#[tokio::test]
async fn a_file_that_took_its_place_is_set_aside() {
    let folder = folder();
    let spool = opened(&folder);
    push_all(&spool, 0..10).await;
    let queue = settings(&folder).folder.join("queue.redb");
    std::fs::remove_file(&queue).unwrap();
    std::fs::write(&queue, "another's").unwrap();
    assert_eq!(
        within(spool.push(entry(10), PATIENCE)).await,
        Err(NotStored::Down)
    );
    push_all(&spool, 11..12).await;
    assert_eq!(values(&held(&spool).await), (0..12).collect::<Vec<_>>());
    let aside = queue.with_file_name("set-aside-20261122T100000Z-0.redb");
    assert_eq!(std::fs::read(aside).unwrap(), b"another's");
    spool.close(PATIENCE).await;
}

/// An fsync that hangs: who comes while it does is told so at once, and the first to come after is taken.
#[tokio::test]
async fn a_disk_that_cannot_be_done_in_time_is_said_to_be_busy_at_once() {
    const TIME: Duration = Duration::from_millis(400);
    let folder = folder();
    let (disk, wrap) = disk::Held::new();
    let spool = Spool::open_with(&settings(&folder), wrap).unwrap();
    push_all(&spool, 0..1).await;
    disk.hold();
    let waits = tokio::spawn({
        let spool = spool.clone();
        async move { spool.push(entry(1), TIME).await }
    });
    until("the disk is waited for", async || {
        let started = Instant::now();
        let busy = spool.push(entry(2), TIME);
        let busy = tokio::time::timeout(TIME / 4, busy).await;
        busy == Ok(Err(NotStored::Busy)) && started.elapsed() < TIME / 4
    })
    .await;
    disk.release();
    assert_eq!(within(waits).await.unwrap(), Ok(()));
    until("it takes records", async || {
        spool.push(entry(3), TIME).await.is_ok()
    })
    .await;
    spool.close(PATIENCE).await;
}

/// What is damaged while the spool is at work is noticed by the next read.
#[tokio::test]
async fn damage_under_a_running_spool_is_set_aside() {
    use std::os::unix::fs::FileExt;
    let folder = folder();
    let spool = opened(&folder);
    for n in 0..300 {
        within(spool.push(entry_of(n, 100_000), PATIENCE))
            .await
            .unwrap();
    }
    let file = queue_file(&folder);
    let found = record::search(&file, &(0..u64::MAX)).unwrap();
    // Beyond what the engine keeps in memory.
    file.write_all_at(b"changed", found[7].offset + 1_000)
        .unwrap();
    let read = within(spool.oldest(Vec::new(), None, ALL)).await;
    assert_eq!(read, Err(NotStored::Down));
    let kept = values(&held(&spool).await);
    let want: Vec<u64> = (0..300).filter(|n| *n != 7).collect();
    assert_eq!(kept, want);
    let note = spool.health().note.unwrap_or_default();
    assert!(note.contains("1 damaged"), "{note}");
    push_all(&spool, 300..301).await;
    assert_eq!(files(&folder, "set-aside"), 1);
    spool.close(PATIENCE).await;
}

/// Whoever still has the number of a record that was lost to damage must not remove another one by it.
#[tokio::test]
async fn a_damaged_file_that_is_opened_again_gives_no_number_twice() {
    use std::os::unix::fs::FileExt;
    let folder = folder();
    let (faults, wrap) = Faults::new(&settings(&folder).folder);
    let spool = Spool::open_with(&settings(&folder), wrap).unwrap();
    push_all(&spool, 0..10).await;
    let last = held(&spool).await.last().unwrap().number();
    let file = queue_file(&folder);
    let found = record::search(&file, &(last..last + 1)).unwrap();
    file.write_all_at(b"changed", found[0].offset).unwrap();
    file.write_all_at(b"no queue", 0).unwrap();
    faults.capacity.store(1, Ordering::SeqCst);
    let pushed = within(spool.push(entry_of(10, 100_000), PATIENCE)).await;
    assert_eq!(pushed, Err(NotStored::Down));
    faults.capacity.store(0, Ordering::SeqCst);
    until("it works again", async || {
        spool.push(entry(11), PATIENCE).await.is_ok()
    })
    .await;
    within(spool.oldest(vec![last], None, ALL)).await.unwrap();
    let kept = held(&spool).await;
    assert_eq!(values(&kept).last(), Some(&11), "{last}");
    spool.close(PATIENCE).await;
}
