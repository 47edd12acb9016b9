//! Whose folder it is, who else uses it, which release wrote it, and where a crash left it.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};

use super::*;
use crate::spool::queue::Queue;

fn refusal(settings: &Settings) -> String {
    Spool::open(settings).unwrap_err().to_string()
}

#[tokio::test]
async fn it_is_made_for_its_user_alone() {
    let folder = folder();
    opened(&folder).close(PATIENCE).await;
    let path = settings(&folder).folder;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    for name in ["lock", "queue.redb", "reserve"] {
        assert_eq!(mode(&path.join(name)), 0o600, "{name}");
    }
}

#[tokio::test]
async fn a_folder_that_others_reach_or_that_is_a_link_is_refused() {
    let folder = folder();
    let ours = settings(&folder);
    std::fs::DirBuilder::new()
        .mode(0o750)
        .create(&ours.folder)
        .unwrap();
    std::fs::set_permissions(&ours.folder, PermissionsExt::from_mode(0o750)).unwrap();
    assert!(refusal(&ours).contains("chmod 700"), "{}", refusal(&ours));
    std::fs::set_permissions(&ours.folder, PermissionsExt::from_mode(0o700)).unwrap();

    let link = folder.path().join("link");
    symlink(&ours.folder, &link).unwrap();
    let linked = Settings {
        folder: link,
        ..ours.clone()
    };
    assert!(refusal(&linked).contains("link"), "{}", refusal(&linked));

    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let not_a_folder = Settings {
        folder: file,
        ..ours.clone()
    };
    assert!(refusal(&not_a_folder).contains("no folder"));

    let victim = folder.path().join("victim");
    std::fs::write(&victim, "precious").unwrap();
    for name in ["lock", "queue.redb", "queue.new", "reserve"] {
        let path = ours.folder.join(name);
        symlink(&victim, &path).unwrap();
        let refusal = refusal(&ours);
        assert!(refusal.contains(name), "{refusal}");
        std::fs::remove_file(path).unwrap();
    }
    assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    Spool::open(&ours).unwrap().close(PATIENCE).await;
}

#[tokio::test]
async fn two_processes_cannot_share_it() {
    let folder = folder();
    let first = opened(&folder);
    let error = Spool::open(&settings(&folder)).unwrap_err();
    assert!(matches!(error, Error::InUse(_)), "{error}");
    push_all(&first, 0..1).await;
    first.close(PATIENCE).await;
    opened(&folder).close(PATIENCE).await;
}

#[tokio::test]
async fn a_newer_release_s_spool_is_refused_and_left_as_it_is() {
    // Said by the lock, or by the queue alone.
    for by_lock in [true, false] {
        let folder = folder();
        let spool = opened(&folder);
        push_all(&spool, 0..3).await;
        spool.close(PATIENCE).await;
        let path = settings(&folder).folder;
        if by_lock {
            std::fs::write(path.join("lock"), "convolake spool, format 2\n").unwrap();
            std::fs::write(path.join("queue.redb"), "unlike anything known").unwrap();
        } else {
            let database = redb::Database::create(path.join("queue.redb")).unwrap();
            let meta = redb::TableDefinition::<&str, u64>::new("meta");
            let transaction = database.begin_write().unwrap();
            transaction
                .open_table(meta)
                .unwrap()
                .insert("format", 2)
                .unwrap();
            transaction.commit().unwrap();
        }
        let records = |path: &Path| {
            let read = std::fs::read(path.join("queue.redb")).unwrap();
            (read.len(), files(&folder, ""))
        };
        let before = records(&path);
        let error = Spool::open(&settings(&folder)).unwrap_err();
        assert!(matches!(error, Error::Newer { format: 2, .. }), "{error}");
        assert!(error.to_string().contains("drained"), "{error}");
        assert_eq!(records(&path), before);
    }
}

/// Each state that a crash between two steps of a replacement leaves.
#[tokio::test]
async fn a_start_goes_on_from_wherever_a_replacement_was_cut_off() {
    let folder = folder();
    let spool = opened(&folder);
    push_all(&spool, 0..5).await;
    spool.close(PATIENCE).await;
    let path = settings(&folder).folder;
    let (queue, new) = (path.join("queue.redb"), path.join("queue.new"));
    let expect = async || {
        let spool = opened(&folder);
        assert_eq!(values(&held(&spool).await), [0, 1, 2, 3, 4]);
        assert_eq!(spool.health(), Health::default());
        spool.close(PATIENCE).await;
        assert_eq!(files(&folder, "queue.new"), 0);
    };
    // While the new one is made: it is not whole.
    std::fs::write(&new, "half of a file").unwrap();
    expect().await;
    // Made, and not yet in place.
    std::fs::copy(&queue, &new).unwrap();
    expect().await;
    // The old one was set aside, and the new one is not yet in place.
    std::fs::rename(&queue, &new).unwrap();
    expect().await;
}

/// At its very first start, before there is a queue.
#[tokio::test]
async fn a_first_start_that_was_cut_off_is_no_damage() {
    let folder = folder();
    opened(&folder).close(PATIENCE).await;
    let path = settings(&folder).folder;
    std::fs::remove_file(path.join("queue.redb")).unwrap();
    std::fs::write(path.join("lock"), "").unwrap();
    let spool = opened(&folder);
    assert_eq!(spool.health(), Health::default());
    push_all(&spool, 0..1).await;
    spool.close(PATIENCE).await;
}

/// The file of format 1 as its first release wrote it: later releases must read it.
#[test]
fn format_1_is_read() {
    let bytes = include_bytes!("format-1.redb.zst");
    let bytes = zstd::decode_all(&bytes[..]).unwrap();
    let disk = disk::Volatile::with(bytes, None);
    let queue = Queue::open(Box::new(disk)).unwrap();
    let batch = queue.read(None, 10, 1 << 20).unwrap();
    assert_eq!(values(&batch), [3, 4, 5]);
    assert_eq!(queue.next(), 6);
}
