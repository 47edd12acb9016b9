//! Pages in any sequence, and single answers in any order, against what they must be merged to.
//!
//! A drawn script says what each page shows (any item, in any of its forms, more than once, without some of its fields),
//! where its token leads (on, back, to the end), what each single GET answers, and in which order those end. The model
//! is one fold over the items in the order that they were read: a field that a later one has replaces the earlier one's, and a
//! single GET is later than all pages. What must come of it is the fold, each id once; or the name of the limit that
//! was met. A script that ever broke this is kept in [`SCRIPTS_THAT_BROKE`], by name.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, PoisonError};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree as _;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::tests::{World, close, enricher, limits, said, sms};
use super::*;
use crate::api::scripted::{self, Reply, Seen, Server};

/// Distinct communications, and forms that each can be read in.
const IDS: usize = 12;
const FORMS: usize = 3;
const PAGES: usize = 8;
/// Single GETs asked at once: few, so that most scripts ask for more.
const IN_FLIGHT: usize = 3;
/// Scripts drawn.
const CASES: u32 = 64;
/// Longest run of one: a model that expects another number of single GETs than are sent would wait for ever.
const CASE_LIMIT: Duration = Duration::from_secs(20);
/// What an item can lack; each makes it be fetched alone.
const FIELDS: [&str; 5] = ["createdAt", "author", "content", "recipients", "occurredAt"];

/// One reading of an item: which, in which form, without which of [`FIELDS`] (bits), and whether those are null
/// instead of absent.
#[derive(Debug, Clone, Copy)]
struct Shown {
    id: usize,
    form: usize,
    lacks: u8,
    null: bool,
}

/// Where a page's token leads.
#[derive(Debug, Clone, Copy)]
enum Next {
    /// To the page after it; there is none after the last.
    On,
    /// To this page, wherever that is.
    To(usize),
    /// Nowhere: it is the last.
    End,
}

#[derive(Debug, Clone)]
struct Script {
    pages: Vec<(Vec<Shown>, Next)>,
    /// What GET of each item answers; `None` is a 404.
    singles: Vec<Option<Shown>>,
    /// Items of the participants' pages: which, and whether its addresses are left out; none: they come with the
    /// conversation.
    participants: Vec<(usize, bool)>,
    max_pages: u32,
    max_communications: usize,
    /// Which of the single GETs in flight is answered next.
    picks: Vec<usize>,
}

/// A script by its name.
type Kept = (&'static str, fn() -> Script);

/// Scripts that broke a promise once.
const SCRIPTS_THAT_BROKE: &[Kept] = &[];

/// What a reading says.
fn read(shown: Shown) -> Value {
    let Shown { id, form, .. } = shown;
    let mut item = sms(id);
    item["content"]["text"] = json!(format!("text {id} in form {form}"));
    item["recipients"][0]["deliveryStatus"] = json!(["SENT", "DELIVERED", "READ"][form]);
    item["updatedAt"] = json!(format!("2026-11-22T10:59:0{form}Z"));
    // Fields that nobody knows: one that each form has, one that only one of them has.
    item["note"] = json!(form);
    item[format!("note{form}")] = json!(true);
    for (bit, field) in FIELDS.iter().enumerate() {
        if shown.lacks >> bit & 1 == 1 {
            match shown.null {
                true => item[*field] = Value::Null,
                false => _ = item.as_object_mut().unwrap().remove(*field),
            }
        }
    }
    item
}

fn take_over(item: &mut Value, later: Value) {
    let Value::Object(later) = later else {
        panic!("an item is an object");
    };
    for (name, value) in later.into_iter().filter(|(_, value)| !value.is_null()) {
        item[name] = value;
    }
}

/// What must come of a script.
#[derive(Debug, PartialEq)]
struct Merged {
    communications: BTreeMap<usize, Value>,
    pages: usize,
    /// Single GETs of communications and participants.
    singles: [usize; 2],
}

impl Script {
    fn merged(&self) -> Result<Merged, &'static str> {
        let mut communications = BTreeMap::<usize, Value>::new();
        let (mut at, mut pages) = (0, 0);
        let mut tokens = HashSet::new();
        loop {
            let (items, next) = &self.pages[at];
            pages += 1;
            for shown in items {
                let item = communications.entry(shown.id).or_insert_with(|| json!({}));
                take_over(item, read(*shown));
            }
            if communications.len() > self.max_communications {
                return Err("too-many-communications");
            }
            let Some(token) = self.token(at, *next) else {
                break;
            };
            if !tokens.insert(token) {
                return Err("page-token-repeated");
            }
            if pages == self.max_pages as usize {
                return Err("too-many-pages");
            }
            at = token;
        }
        // Each participant has a page of its own.
        if self.participants.len() > self.max_pages as usize {
            return Err("too-many-pages");
        }
        let lacking = |item: &Value| FIELDS.iter().any(|field| item[*field].is_null());
        let mut single = 0;
        for (id, item) in &mut communications {
            if lacking(item) {
                single += 1;
                if let Some(whole) = self.singles[*id] {
                    take_over(item, read(whole));
                }
            }
        }
        Ok(Merged {
            communications,
            pages,
            singles: [single, self.lone_participants()],
        })
    }

    /// The page that the token of the page at `at` leads to.
    fn token(&self, at: usize, next: Next) -> Option<usize> {
        match next {
            Next::On => (at + 1 < self.pages.len()).then_some(at + 1),
            Next::To(page) => Some(page % self.pages.len()),
            Next::End => None,
        }
    }

    /// Participants that no page shows with addresses.
    fn lone_participants(&self) -> usize {
        let whole = |id: usize| self.participants.contains(&(id, false));
        let listed: HashSet<usize> = self.participants.iter().map(|(id, _)| *id).collect();
        listed.into_iter().filter(|id| !whole(*id)).count()
    }

    fn answer(&self, world: &World, turns: &[Turns; 2], seen: &Seen) -> Reply {
        let parts: Vec<&str> = seen.path().trim_start_matches("/v2/").split('/').collect();
        match parts[..] {
            ["Conversations", "v1", "Communications"] => {
                let at = seen.query("pageToken").map_or(0, |it| it.parse().unwrap());
                let (items, next) = &self.pages[at];
                let items: Vec<Value> = items.iter().map(|shown| read(*shown)).collect();
                let token = self.token(at, *next).map(|page| page.to_string());
                scripted::ok(&json!({"communications": items, "meta": {"nextToken": token}}))
            }
            ["Conversations", "v1", "Communications", id] => {
                let id: usize = id.trim_start_matches('c').parse().unwrap();
                turns[0].hold(match self.singles[id] {
                    Some(shown) => scripted::ok(&read(shown)),
                    None => scripted::error(404),
                })
            }
            ["Conversations", "v1", "Participants"] => {
                let at = seen.query("pageToken").map_or(0, |it| it.parse().unwrap());
                let (id, lacks) = self.participants[at];
                let mut item = world.participants[id].clone();
                if lacks {
                    item.as_object_mut().unwrap().remove("addresses");
                }
                let next = (at + 1 < self.participants.len()).then(|| (at + 1).to_string());
                scripted::ok(&json!({"participants": [item], "meta": {"nextToken": next}}))
            }
            ["Conversations", "v1", "Participants", _] => turns[1].hold(world.answer(seen)),
            _ => world.answer(seen),
        }
    }

    /// Enriches what it shows.
    async fn enrich(&self, singles: [usize; 2]) -> Result<Enriched, EnrichError> {
        let mut world = World::new(Vec::new());
        world.embedded = self.participants.is_empty();
        let turns = singles.map(|count| Turns::new(count, &self.picks));
        let script = self.clone();
        let server = Server::start(move |seen, _| script.answer(&world, &turns, seen)).await;
        let limits = Limits {
            max_pages: self.max_pages,
            max_communications: self.max_communications,
            singles_in_flight: IN_FLIGHT,
            ..limits()
        };
        let enricher = enricher(&server, limits);
        let enriching = tokio::time::timeout(CASE_LIMIT, enricher.enrich(&close())).await;
        enriching.unwrap_or_else(|_| panic!("not merged within {CASE_LIMIT:?}"))
    }

    async fn check(&self) {
        let merged = match self.merged() {
            Ok(merged) => merged,
            Err(limit) => {
                // How far it comes before it ends is not said, so nothing is held back.
                let enriched = self.enrich([0; 2]).await;
                let Err(EnrichError::Dead { reason, .. }) = &enriched else {
                    panic!("{enriched:?} and not {limit}");
                };
                assert_eq!(*reason, limit);
                return;
            }
        };
        let enriched = self.enrich(merged.singles).await.unwrap();
        let ids: Vec<&str> = (enriched.communications.iter())
            .map(|row| row.communication_id.as_str())
            .collect();
        let want: Vec<String> = (merged.communications.keys())
            .map(|id| format!("c{id:03}"))
            .collect();
        let distinct: HashSet<&str> = ids.iter().copied().collect();
        assert_eq!(ids.len(), distinct.len(), "an id twice: {ids:?}");
        assert_eq!(distinct, want.iter().map(String::as_str).collect());
        let cost = &enriched.conversation;
        assert_eq!(usize::try_from(cost.pages).unwrap(), merged.pages);
        let singles: usize = merged.singles.iter().sum();
        assert_eq!(usize::try_from(cost.fetched_singly).unwrap(), singles);
        // One page that shows all of it as merged, and nothing that could still be merged with it.
        let known = merged.communications.into_values().collect();
        let plain = World::new(known).enrich().await;
        assert_eq!(said(enriched), said(plain));
    }
}

/// Answers held back so that they are given in the order of the script, as far as they are in flight together.
struct Turns(Mutex<Held>);

struct Held {
    answers: Vec<(oneshot::Sender<Vec<u8>>, Vec<u8>)>,
    /// Answers not given yet, those not asked for yet included.
    left: usize,
    picks: Vec<usize>,
}

impl Turns {
    fn new(count: usize, picks: &[usize]) -> Turns {
        Turns(Mutex::new(Held {
            answers: Vec::new(),
            left: count,
            picks: picks.to_vec(),
        }))
    }

    fn hold(&self, reply: Reply) -> Reply {
        let Reply::Bytes(bytes) = reply else {
            return reply;
        };
        let (sender, receiver) = oneshot::channel();
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.answers.push((sender, bytes));
        while !held.answers.is_empty() && held.answers.len() >= IN_FLIGHT.min(held.left) {
            let pick = held.picks.pop().unwrap_or(0) % held.answers.len();
            let (sender, bytes) = held.answers.swap_remove(pick);
            held.left = held.left.saturating_sub(1);
            // The client may have left.
            let _ = sender.send(bytes);
        }
        Reply::Held(receiver)
    }
}

prop_compose! {
    fn shown()(
        id in 0..IDS, form in 0..FORMS, lacks in select(vec![0u8, 0, 1, 2, 4, 8, 16, 31]), null in any::<bool>(),
    ) -> Shown {
        Shown { id, form, lacks, null }
    }
}

fn single() -> impl Strategy<Value = Option<Shown>> {
    prop_oneof![4 => shown().prop_map(Some), 1 => Just(None)]
}

fn next() -> impl Strategy<Value = Next> {
    prop_oneof![
        12 => Just(Next::On),
        1 => (0..PAGES).prop_map(Next::To),
        1 => Just(Next::End),
    ]
}

prop_compose! {
    fn script()(
        pages in vec((vec(shown(), 0..7), next()), 1..PAGES),
        singles in vec(single(), IDS),
        participants in prop_oneof![
            Just(Vec::new()),
            vec((0usize..2, any::<bool>()), 0..4).prop_map(|mut some| {
                // Both are there; how often, and with what, is drawn.
                some.extend([(0, true), (1, true)]);
                some
            }),
        ],
        max_pages in prop_oneof![4 => Just(MAX_PAGES), 1 => 1u32..6],
        max_communications in prop_oneof![4 => Just(MAX_COMMUNICATIONS), 1 => 1usize..10],
        picks in vec(any::<usize>(), 2 * IDS),
    ) -> Script {
        let singles = singles.into_iter().enumerate().map(|(id, it)| it.map(|it| Shown { id, ..it }));
        Script {
            pages, singles: singles.collect(), participants, max_pages, max_communications, picks,
        }
    }
}

fn run(script: &Script) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(script.check());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..Default::default() })]

    #[test]
    fn pages_and_single_answers_in_any_order_are_merged_or_name_the_limit(script in script()) {
        run(&script);
    }

    /// The same pages and the same answers, those given in two orders.
    #[test]
    fn the_order_in_which_single_answers_come_changes_nothing(
        script in script(), picks in vec(any::<usize>(), 2 * IDS),
    ) {
        let other = Script { picks, ..script.clone() };
        let Ok(merged) = script.merged() else { return Ok(()) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (one, other) = runtime.block_on(async {
            (script.enrich(merged.singles).await.unwrap(), other.enrich(merged.singles).await.unwrap())
        });
        prop_assert_eq!(one, other);
    }
}

#[test]
fn scripts_that_broke_it_once() {
    for (name, script) in SCRIPTS_THAT_BROKE {
        println!("{name}");
        run(&script());
    }
}

/// That the drawn scripts meet every end there is; a model that always failed would prove nothing.
#[test]
fn the_scripts_that_are_drawn_meet_every_end() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut ends = BTreeMap::<&str, u32>::new();
    for _ in 0..400 {
        let script = script().new_tree(&mut runner).unwrap().current();
        let end = match script.merged() {
            Err(limit) => limit,
            Ok(merged) if merged.singles[0] > IN_FLIGHT => "more singles than in flight",
            Ok(merged) if merged.pages > 1 => "pages",
            Ok(_) => "one page",
        };
        *ends.entry(end).or_default() += 1;
    }
    let names: Vec<&str> = ends.keys().copied().collect();
    let want = [
        "more singles than in flight",
        "one page",
        "page-token-repeated",
        "pages",
        "too-many-communications",
        "too-many-pages",
    ];
    assert_eq!(names, want, "{ends:?}");
}
