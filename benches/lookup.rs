//! Is a conversation in the lake already? How long that takes as the lake grows.
//!
//! Fills a lake's `conversations` with made-up rows through the lake's own commit, opens it anew as a
//! process that starts, and asks for batches of ids, half of them there. Two kinds of ids: those that grow
//! with time, as Twilio's now do, which the files' bounds tell apart; and random ones, which they do not.
//!
//! ```sh
//! cargo bench --bench lookup -- 10000000            # conversations; 1,000,000 without it
//! ```
//!
//! Prints one line a kind: the first batch after opening (it reads what it needs from the files), and the
//! median and the worst of those that follow. A line's figures compare with each other, not with another
//! machine's.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a measurement prints its result and ends at the first error"
)]

use std::path::Path;
use std::time::{Duration, Instant};

use convolake::lake::{Access, Commit, Lake, Position};
use convolake::table::row::{Completeness, ConversationRow};
use convolake::table::{self, TableName};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Rows of one commit: what an ingester with the default settings flushes at most.
const ROWS_A_COMMIT: u64 = 100_000;
/// Conversations that close on one day.
const ROWS_A_DAY: u64 = 500_000;
/// Ids asked for at once: an ordinary batch of closes.
const IDS_A_BATCH: u64 = 100;
/// Batches after the first.
const BATCHES: usize = 50;
/// 2026-01-01, in days since 1970.
const FIRST_DAY: i32 = 20_454;

fn main() {
    let conversations = std::env::args()
        .skip(1)
        .find_map(|argument| argument.parse().ok())
        .unwrap_or(1_000_000);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    for kind in [Ids::Ordered, Ids::Random] {
        runtime.block_on(measure(kind, conversations));
    }
}

#[derive(Debug, Clone, Copy)]
enum Ids {
    Ordered,
    Random,
}

impl Ids {
    /// The id of conversation `index`; indices beyond the last are ids that nothing has.
    fn of(self, index: u64) -> String {
        match self {
            Ids::Ordered => format!("conv_conversation_{index:026}"),
            Ids::Random => {
                let bits: u128 = ChaCha8Rng::seed_from_u64(index).random();
                format!("conv_conversation_{bits:026x}")
            }
        }
    }
}

async fn measure(ids: Ids, conversations: u64) {
    let folder = tempfile::tempdir().unwrap();
    let filling = Instant::now();
    fill(folder.path(), ids, conversations).await;
    let filled = filling.elapsed();

    let opening = Instant::now();
    let lake = Lake::open(folder.path().to_str().unwrap(), Access::Existing)
        .await
        .unwrap();
    let opened = opening.elapsed();
    let files = lake.table(TableName::Conversations);
    let files = files.stats().await.unwrap().files;
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let first = ask(&lake, ids, conversations, &mut random).await;
    let mut later = Vec::new();
    for _ in 0..BATCHES {
        later.push(ask(&lake, ids, conversations, &mut random).await);
    }
    later.sort_unstable();
    println!(
        "{ids:?} ids: {conversations} conversations in {files} files, filled in {:.0} s, opened in {:.0} ms; \
         {IDS_A_BATCH} ids looked up: first {:.1} ms, then median {:.2} ms, worst {:.2} ms",
        filled.as_secs_f64(),
        ms(opened),
        ms(first),
        ms(later[BATCHES / 2]),
        ms(later[BATCHES - 1]),
    );
}

async fn fill(root: &Path, ids: Ids, conversations: u64) {
    let lake = Lake::open(root.to_str().unwrap(), Access::Create)
        .await
        .unwrap();
    let mut from = None;
    for start in (0..conversations).step_by(usize::try_from(ROWS_A_COMMIT).unwrap()) {
        let end = conversations.min(start + ROWS_A_COMMIT);
        let mut rows: Vec<_> = (start..end).map(|index| row(ids, index)).collect();
        rows.sort_unstable_by(|a, b| a.conversation_id.cmp(&b.conversation_id));
        let to = i64::try_from(end).unwrap();
        let position = Position {
            app: "convolake/bench/cluster/topic/0".to_owned(),
            from: from.replace(to),
            to,
        };
        let commit = Commit {
            rows: vec![table::conversations_batch(rows.iter())],
            positions: vec![position],
            ..Commit::default()
        };
        let table = lake.table(TableName::Conversations);
        table.commit(&commit).await.unwrap();
    }
}

/// Looks up one batch, half of it there, and checks the answer.
async fn ask(lake: &Lake, ids: Ids, conversations: u64, random: &mut ChaCha8Rng) -> Duration {
    let half = 0..IDS_A_BATCH / 2;
    let mut draw = |first: u64, count: u64| -> Vec<String> {
        let indices = half.clone().map(|_| first + random.random_range(0..count));
        indices.map(|index| ids.of(index)).collect()
    };
    let known = draw(0, conversations);
    let asked = [known.clone(), draw(conversations, 1 << 40)].concat();
    let asking = Instant::now();
    let found = lake.completeness(&asked).await.unwrap();
    let took = asking.elapsed();
    assert!(
        known.iter().all(|id| found.contains_key(id)),
        "one is missing"
    );
    assert!(found.len() <= known.len(), "one was invented");
    took
}

fn row(ids: Ids, index: u64) -> ConversationRow {
    let day = FIRST_DAY + i32::try_from(index / ROWS_A_DAY).unwrap();
    let closed_at =
        i64::from(day) * 86_400_000_000 + i64::try_from(index % ROWS_A_DAY).unwrap() * 100_000;
    ConversationRow {
        conversation_id: ids.of(index),
        account_id: Some("AC00000000000000000000000000000000".to_owned()),
        configuration_id: None,
        name: None,
        status: Some("CLOSED".to_owned()),
        channels: vec!["SMS".to_owned()],
        participants: Vec::new(),
        created_at: Some(closed_at - 3_600_000_000),
        closed_at: Some(closed_at),
        updated_at: Some(closed_at),
        first_communication_at: None,
        last_communication_at: None,
        communications: 12,
        metadata: None,
        extra: None,
        completeness: Completeness::Complete,
        missing: Vec::new(),
        pages: 1,
        fetched_singly: 0,
        api_calls: 3,
        content_hash: format!("{index:064x}"),
        kafka_partition: 0,
        kafka_offset: i64::try_from(index).unwrap(),
        enriched_at: closed_at + 2_000_000,
        date: day,
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}
