//! Two writers of one table, step by step in an order that the test decides.
//!
//! Each writer stands still before every look at the log and every put of an entry, until it is its turn. What
//! is between two such steps touches nothing that the other sees, so an order of turns is an interleaving.
//! The short orders are all run; longer ones, with lost answers among the puts, are drawn. An order that ever
//! broke a promise is kept in [`ORDERS_THAT_BROKE`], by name.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;

use object_store::local::LocalFileSystem;
use proptest::prelude::*;
use tokio::sync::Notify;

use super::store::{Between, Fault, Hooked};
use super::*;

/// Turns of every order that is run in full: two tries of each writer have about as many steps.
const SHORT_ORDER: u32 = 5;
/// Turns of a drawn order, and how many are drawn for each pair of commits.
const LONG_ORDER: usize = 16;
const DRAWN: u32 = 24;
/// Commits of one writer until its answer is one that decides: an error of the log is none.
const TRIES: usize = 4;

/// An order, its name, and the faults of either writer.
type Kept = (&'static str, Pair, &'static [bool], [&'static [Fault]; 2]);

/// Orders that broke a promise once.
const ORDERS_THAT_BROKE: &[Kept] = &[];

/// What the two writers want.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Pair {
    /// The same position from the same start to another end: a zombie and the new owner.
    OnePosition,
    /// Positions of their own, conversations of their own.
    Strangers,
    /// Positions of their own, the same conversation.
    OneConversation,
}

const PAIRS: [Pair; 3] = [Pair::OnePosition, Pair::Strangers, Pair::OneConversation];

/// Whose turn it is.
#[derive(Debug, Default)]
struct Turns {
    state: Mutex<Order>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Order {
    /// `true` is the second writer's; when none is left, everybody's.
    turns: VecDeque<bool>,
    /// Who has ended needs no turn any more.
    ended: [bool; 2],
}

impl Turns {
    async fn pass(&self, me: bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut order = self.state.lock().unwrap();
                match order.turns.front().copied() {
                    None => return,
                    Some(turn) if turn == me || order.ended[usize::from(turn)] => {
                        order.turns.pop_front();
                        self.changed.notify_waiters();
                        if turn == me {
                            return;
                        }
                        continue;
                    }
                    Some(_) => {}
                }
            }
            changed.await;
        }
    }

    fn end(&self, me: bool) {
        self.state.lock().unwrap().ended[usize::from(me)] = true;
        self.changed.notify_waiters();
    }
}

/// A writer's side of the store.
#[derive(Debug)]
struct Side {
    me: bool,
    turns: Arc<Turns>,
    faults: Mutex<VecDeque<Fault>>,
}

#[async_trait::async_trait]
impl Between for Side {
    async fn put(&self) -> Option<Fault> {
        self.turns.pass(self.me).await;
        self.faults.lock().unwrap().pop_front()
    }

    async fn look(&self) {
        self.turns.pass(self.me).await;
    }
}

fn commits(pair: Pair) -> [Commit; 2] {
    let app = |name: &str, to: i64| {
        vec![Position {
            app: name.to_owned(),
            from: None,
            to,
        }]
    };
    let commit = |conversation: &str, positions| Commit {
        positions,
        seen: Some(0),
        ..rows(&communications(conversation, 2))
    };
    match pair {
        Pair::OnePosition => [commit("a", app(APP, 3)), commit("b", app(APP, 5))],
        Pair::Strangers => [commit("a", app("0", 3)), commit("b", app("1", 5))],
        Pair::OneConversation => [commit("a", app("0", 3)), commit("a", app("1", 5))],
    }
}

/// Without fsync: no power is cut here, and hundreds of lakes are made.
async fn open_quickly(root: &Path) -> Lake {
    let storage = Arc::new(Storage::new(Arc::new(LocalFileSystem::new())).unwrap());
    let opened = Lake::open_on(storage, root.to_owned(), Access::Create);
    opened.await.unwrap()
}

/// One writer's lake.
async fn open_as(me: bool, turns: &Arc<Turns>, faults: &[Fault], root: &Path) -> Lake {
    let store = Arc::new(Hooked {
        inner: LocalFileSystem::new(),
        between: Side {
            me,
            turns: turns.clone(),
            faults: Mutex::new(faults.iter().copied().collect()),
        },
    });
    let storage = Arc::new(Storage::new(store).unwrap());
    let opened = Lake::open_on(storage, root.to_owned(), Access::Create);
    opened.await.unwrap()
}

/// Runs both writers in this order and checks what is there afterwards.
async fn check(pair: Pair, order: &[bool], faults: [&[Fault]; 2]) {
    let folder = TempDir::new().unwrap();
    drop(open_quickly(folder.path()).await);
    let turns = Arc::new(Turns::default());
    let mut writers = Vec::new();
    for (me, commit) in [false, true].into_iter().zip(commits(pair)) {
        let lake = open_as(me, &turns, faults[usize::from(me)], folder.path()).await;
        writers.push((me, lake, commit));
    }
    turns.state.lock().unwrap().turns = order.iter().copied().collect();
    let run = writers.into_iter().map(|(me, lake, commit)| {
        let turns = turns.clone();
        tokio::spawn(async move {
            let table = lake.table(TableName::Communications);
            let mut result = table.commit(&commit).await;
            for _ in 1..TRIES {
                if !matches!(result, Err(LakeError::Log { .. })) {
                    break;
                }
                result = table.commit(&commit).await;
            }
            turns.end(me);
            result.map(drop)
        })
    });
    let results: Vec<Result<(), LakeError>> = futures::future::join_all(run)
        .await
        .into_iter()
        .map(|ended| ended.unwrap())
        .collect();
    let told = format!("{pair:?} {order:?} {faults:?}: {results:?}");
    let lake = open_quickly(folder.path()).await;
    let table = lake.table(TableName::Communications);
    let mut count: BTreeMap<(String, i64), usize> = BTreeMap::new();
    for row in content(table).await {
        *count.entry(row).or_default() += 1;
    }
    assert!(count.values().all(|times| *times == 1), "twice: {told}");
    let landed = results.iter().filter(|result| result.is_ok()).count();
    let refused = |result: &&Result<(), LakeError>| {
        matches!(
            result,
            Err(LakeError::Refused { .. } | LakeError::Raced { .. })
        )
    };
    let lost = results.iter().filter(refused).count();
    let (both, conversations) = match pair {
        Pair::Strangers => (2, 2),
        Pair::OnePosition | Pair::OneConversation => (1, 1),
    };
    assert_eq!((landed, lost), (both, 2 - both), "{told}");
    assert_eq!(count.len(), conversations * 2, "{told}");
    let apps = ids(&[APP, "0", "1"]);
    let at = table.positions(&apps).await.unwrap();
    let moved = |result: &Result<(), LakeError>, to: i64| result.is_ok().then_some(to);
    let (first, second) = (moved(&results[0], 3), moved(&results[1], 5));
    let want = match pair {
        Pair::OnePosition => vec![first.or(second), None, None],
        Pair::Strangers | Pair::OneConversation => vec![None, first, second],
    };
    assert_eq!(at, want, "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_every_short_order_two_writers_keep_every_promise() {
    for pair in PAIRS {
        for bits in 0..1_u32 << SHORT_ORDER {
            let order: Vec<bool> = (0..SHORT_ORDER).map(|turn| bits >> turn & 1 == 1).collect();
            check(pair, &order, [&[], &[]]).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_that_broke_a_promise_once_keep_it() {
    for (name, pair, order, faults) in ORDERS_THAT_BROKE {
        eprintln!("{name}");
        check(*pair, order, *faults).await;
    }
}

fn faults() -> impl Strategy<Value = Vec<Fault>> {
    let one = prop_oneof![
        Just(Fault::Lost),
        Just(Fault::Repeated),
        Just(Fault::Before)
    ];
    proptest::collection::vec(one, 0..3)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: DRAWN, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn in_drawn_orders_with_lost_answers_two_writers_keep_every_promise(
        pair in proptest::sample::select(&PAIRS[..]),
        order in proptest::collection::vec(any::<bool>(), LONG_ORDER),
        first in faults(),
        second in faults(),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.unwrap().block_on(check(pair, &order, [&first, &second]));
    }
}
