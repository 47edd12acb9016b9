//! Damage done to a sound lake, and that each kind is named: files, rows, ledgers, callbacks, positions.

use std::path::{Path, PathBuf};
use std::time::Duration;

use parquet::file::metadata::ParquetMetaDataReader;

use super::*;
use crate::api;
use crate::emulator::{DEV_ACCOUNT_SID, DEV_AUTH_TOKEN, Emulator, Options};
use crate::enrich::{self, Enriched, Enricher, Limits};
use crate::lake::{Access, Commit, Position};
use crate::lifecycle::{Clock, Stop};
use crate::table::row::EventRow;
use crate::table::{communications_batch, conversations_batch, events_batch};

const PATIENCE: Duration = Duration::from_secs(60);
const CONVERSATIONS: u64 = 6;

/// A lake that has all that an emulator closed, one commit a conversation.
struct World {
    folder: tempfile::TempDir,
    lake: Lake,
    api: Api,
    _emulator: Emulator,
    enriched: Vec<Enriched>,
}

impl World {
    async fn start() -> World {
        let clock = Clock::system();
        let options = Options {
            conversations: CONVERSATIONS,
            ..Options::new(5, clock.now())
        };
        let emulator = Emulator::start(options, clock, Stop::new()).unwrap();
        tokio::time::timeout(PATIENCE, emulator.traffic_done())
            .await
            .unwrap();
        let origin = format!("http://{}", emulator.address()).parse().unwrap();
        let credentials = api::Credentials::new(DEV_ACCOUNT_SID, DEV_AUTH_TOKEN);
        let mut settings = api::Settings::new(origin, credentials);
        settings.requests_per_second = std::num::NonZeroU32::new(100_000).unwrap();
        let api = Api::new(settings, clock).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let lake = Lake::open(folder.path().to_str().unwrap(), Access::Create)
            .await
            .unwrap();
        let mut world = World {
            folder,
            lake,
            api,
            _emulator: emulator,
            enriched: Vec::new(),
        };
        world.fill().await;
        world
    }

    async fn fill(&mut self) {
        let enricher = Enricher::new(self.api.clone(), Clock::system(), Limits::default());
        let page = self.api.closed_conversations_page(None).await.unwrap();
        for (offset, item) in page.value.items.into_iter().enumerate() {
            let close = enrich::Close {
                conversation_id: item.id.unwrap(),
                account_id: None,
                closed_at: None,
                received_at: Clock::system().now(),
                partition: 0,
                offset: offset as i64,
            };
            let enriched = enricher.enrich(&close).await.unwrap();
            self.add(&enriched).await;
            self.enriched.push(enriched);
        }
        assert_eq!(self.enriched.len() as u64, CONVERSATIONS);
    }

    async fn add(&self, enriched: &Enriched) {
        let rows = vec![communications_batch(&enriched.communications)];
        self.commit(TableName::Communications, rows, None).await;
        let rows = vec![conversations_batch([&enriched.conversation])];
        self.commit(TableName::Conversations, rows, None).await;
    }

    async fn commit(&self, table: TableName, rows: Vec<RecordBatch>, replace: Option<&str>) {
        let commit = Commit {
            rows,
            replace: replace.map(str::to_owned).into_iter().collect(),
            ..Commit::default()
        };
        self.lake.table(table).commit(&commit).await.unwrap();
    }

    /// With another process's eyes: nothing remembered.
    async fn verify(&self) -> Report {
        let path = self.folder.path().to_str().unwrap();
        let lake = Lake::open(path, Access::Existing).await.unwrap();
        verify(&lake, &self.api).await.unwrap()
    }

    /// The one problem there is.
    async fn problem(&self) -> Problem {
        let mut report = self.verify().await;
        let problem = report
            .problems
            .pop()
            .unwrap_or_else(|| panic!("{report:?}"));
        assert!(report.problems.is_empty(), "{problem:?} and {report:?}");
        assert_eq!(report.complete, CONVERSATIONS - 1, "{report:?}");
        problem
    }

    fn id(&self, at: usize) -> &str {
        &self.enriched[at].conversation.conversation_id
    }

    /// The data files of a table.
    async fn files(&self, table: TableName) -> Vec<PathBuf> {
        let root = self.folder.path().join(table.as_str());
        let files = self.lake.table(table).files().await.unwrap();
        files.iter().map(|file| root.join(file.path())).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sound_lake_is_complete_and_every_difference_of_rows_is_named() {
    let world = World::start().await;
    let report = world.verify().await;
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(report.complete, CONVERSATIONS);
    let rows: usize = world
        .enriched
        .iter()
        .map(|it| it.communications.len())
        .sum();
    assert_eq!(report.communications, rows as u64);
    assert_eq!(report.by_channel.values().sum::<u64>(), rows as u64);

    let (id, mut enriched) = (world.id(2).to_owned(), world.enriched[2].clone());
    let table = TableName::Communications;
    // A row is lost, a text is changed, all rows are there twice, the ledger is there twice, all is lost.
    let lost = enriched.communications.pop().unwrap();
    world
        .commit(
            table,
            vec![communications_batch(&enriched.communications)],
            Some(&id),
        )
        .await;
    let problem = world.problem().await;
    assert_eq!((&problem.conversation_id, problem.kind), (&id, Kind::Torn));
    assert!(problem.why.contains("its ledger says"), "{problem:?}");

    enriched.communications.push(lost);
    let text = enriched.communications[0]
        .text
        .replace("another".to_owned());
    world
        .commit(
            table,
            vec![communications_batch(&enriched.communications)],
            Some(&id),
        )
        .await;
    let problem = world.problem().await;
    assert_eq!(problem.kind, Kind::Torn);
    assert!(problem.why.contains("content hash"), "{problem:?}");

    enriched.communications[0].text = text;
    let whole = communications_batch(&enriched.communications);
    world.commit(table, vec![whole.clone()], Some(&id)).await;
    assert!(world.verify().await.is_complete());
    world.commit(table, vec![whole.clone()], None).await;
    assert_eq!(world.problem().await.kind, Kind::Doubled);
    world.commit(table, vec![whole], Some(&id)).await;

    let ledger = conversations_batch([&enriched.conversation]);
    let conversations = TableName::Conversations;
    world.commit(conversations, vec![ledger], None).await;
    assert_eq!(world.problem().await.kind, Kind::Doubled);
    world.commit(conversations, vec![], Some(&id)).await;
    let problem = world.problem().await;
    assert_eq!(problem.kind, Kind::Missing);
    assert!(problem.why.contains("its own row is not"), "{problem:?}");
    world.commit(table, vec![], Some(&id)).await;
    let problem = world.problem().await;
    assert!(problem.why.contains("no callback announced"), "{problem:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_file_is_named_and_hides_nothing_else() {
    let world = World::start().await;
    for table in [TableName::Communications, TableName::Conversations] {
        let file = world.files(table).await.remove(0);
        let whole = std::fs::read(&file).unwrap();
        let mut flipped = whole.clone();
        flipped[text_page(&file)] ^= 0xff;
        for (damage, part) in [
            (None, "does not exist"),
            (
                Some(whole[..whole.len() / 2].to_vec()),
                "bytes, the log says",
            ),
            (Some(vec![0; whole.len()]), "footer"),
            (Some(flipped), ""),
        ] {
            match damage {
                None => std::fs::remove_file(&file).unwrap(),
                Some(bytes) => std::fs::write(&file, bytes).unwrap(),
            }
            let report = world.verify().await;
            assert!(report.complete < CONVERSATIONS, "{part}: {report:?}");
            assert!(report.complete >= CONVERSATIONS - 1, "{part}: {report:?}");
            // A changed page that can still be read is found by the content hash.
            if let Some(damage) = report.damaged.first() {
                assert!(damage.why.contains(part), "{report:?}");
                assert!(file.ends_with(&damage.path), "{report:?}");
                assert!(
                    damage.rows > 0 && damage.conversations.is_some(),
                    "{report:?}"
                );
            } else {
                assert_eq!(part, "", "{report:?}");
            }
            assert_eq!(report.problems.len(), 1, "{part}: {report:?}");
            std::fs::write(&file, &whole).unwrap();
        }
        assert!(world.verify().await.is_complete());
    }
}

/// A byte in the middle of the values of a column that every check reads.
fn text_page(file: &Path) -> usize {
    let footer = ParquetMetaDataReader::new()
        .parse_and_finish(&std::fs::File::open(file).unwrap())
        .unwrap();
    let chunks = footer.row_group(0).columns();
    let named = |name: &str| {
        let found = chunks.iter().find(|c| c.column_path().string() == name);
        found.map(|chunk| chunk.byte_range())
    };
    let (start, length) = named("text").or_else(|| named("content_hash")).unwrap();
    usize::try_from(start + length * 2 / 3).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn announced_and_not_held_and_positions_behind_their_rows_are_named() {
    let world = World::start().await;
    let announced = |conversation: &str, id: &str, offset| EventRow {
        event_id: format!("e{offset}"),
        event_type: event_type::COMMUNICATION_CREATED.to_owned(),
        conversation_id: conversation.to_owned(),
        occurred_at: None,
        received_at: 1_790_000_000_000_000,
        idempotency_token: None,
        body: format!(
            r#"{{"eventType":"COMMUNICATION_CREATED","data":{{"id":"{id}","conversationId":"{conversation}"}}}}"#
        ),
        kafka_partition: 3,
        kafka_offset: offset,
        date: 20_700,
    };
    let held = &world.enriched[1].communications[0].communication_id;
    let events = [
        announced(world.id(1), held, 0),
        announced(world.id(1), "lost", 1),
        announced(world.id(1), "lost", 2),
        announced("still open", "not yet", 7),
    ];
    let app = |partition: i32| format!("app/{partition}");
    let position = |from, to| Position {
        app: app(3),
        from,
        to,
    };
    let commit = Commit {
        rows: vec![events_batch(&events)],
        positions: vec![position(None, 7)],
        ..Commit::default()
    };
    let table = world.lake.table(TableName::Events);
    table.commit(&commit).await.unwrap();
    let report = world.verify().await;
    let want = Unheld {
        conversation_id: world.id(1).to_owned(),
        communication_id: "lost".to_owned(),
    };
    assert_eq!(report.unheld, [want]);
    assert_eq!(report.positions.len(), 1, "{report:?}");
    assert!(report.positions[0].contains("partition 3"), "{report:?}");

    let commit = Commit {
        positions: vec![position(Some(7), 8)],
        ..Commit::default()
    };
    table.commit(&commit).await.unwrap();
    let report = world.verify().await;
    assert_eq!(report.positions, [""; 0]);

    // Callbacks whose file is gone are told by offset: those of the file's bounds that are below the position, and of
    // no other file.
    let later = Commit {
        rows: vec![events_batch(&[announced("still open", "later", 8)])],
        positions: vec![position(Some(8), 9)],
        ..Commit::default()
    };
    table.commit(&later).await.unwrap();
    let files = table.files().await.unwrap();
    let lost = files.iter().find(|file| file.rows() == 4).unwrap();
    std::fs::remove_file(world.lake.root().join("events").join(lost.path())).unwrap();
    let report = world.verify().await;
    assert_eq!(report.positions, [""; 0]);
    let offsets: Vec<String> = report.lost_offsets().iter().map(Gap::to_string).collect();
    assert_eq!(offsets, ["3:0..8"], "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_cannot_be_read_is_taken_out_and_its_neighbours_stay() {
    let world = World::start().await;
    let table = world.lake.table(TableName::Communications);
    let before = table.files().await.unwrap();
    std::fs::remove_file(world.files(TableName::Communications).await.remove(0)).unwrap();
    let commit = Commit {
        drop_files: [before[0].path().to_owned()].into(),
        ..Commit::default()
    };
    table.commit(&commit).await.unwrap();
    // Safe to repeat: it is gone already.
    table.commit(&commit).await.unwrap();
    let after: Vec<String> = (table.files().await.unwrap().iter())
        .map(|file| file.path().to_owned())
        .collect();
    let want: Vec<&str> = before[1..].iter().map(DataFile::path).collect();
    assert_eq!(after, want);
    let report = world.verify().await;
    assert!(report.damaged.is_empty(), "{report:?}");
    assert_eq!(report.torn, 1, "{report:?}");
}
