//! Faults as data: what goes wrong with answers, callbacks and conversations, by a script.
//!
//! `script` is the file's format and its limits (`value`), `decide` says which rule falls (pure), `view` edits what
//! an answer shows (pure), `rest` is the layer around `/v2` that acts, `wire` resets connections;
//! callbacks are spoiled where they are sent. [`Faults`] holds the script that is in force, its counts,
//! and what was read of the conversations that it names.
//!
//! Guarantees: the same seed, script and questions in the same order give the same faults. No fault
//! changes the state: the truth stays the truth. What is remembered of conversations is bounded by
//! [`MAX_REMEMBERED`]; hangs, delays and rules by the limits in `script`.

mod decide;
pub(crate) mod rest;
mod script;
mod value;
mod view;
pub(crate) mod wire;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

pub use self::script::{BadScript, Script};

pub(crate) use self::decide::{Asked, Told};
pub(crate) use self::script::{CallbackFault, RestFault, Tries};

use self::decide::{Counter, Counters};
use self::script::{ConversationFault, Late};
use self::value::Text;
use self::view::View;
use super::resource::Status;
use super::state::Entry;

/// Conversations whose reads are remembered, for faults that depend on them; later ones are as if never
/// read before.
pub(crate) const MAX_REMEMBERED: usize = 100_000;

/// The script in force, and how far it got.
#[derive(Debug)]
pub(crate) struct Faults {
    /// Whether there is no rule at all: then nobody waits for the lock.
    quiet: AtomicBool,
    own_seed: u64,
    live: Mutex<Live>,
}

#[derive(Debug)]
struct Live {
    script: Script,
    seed: u64,
    counters: Counters,
    /// By the conversation's number.
    reads: HashMap<u64, Reads>,
}

/// What was read of a conversation that a rule names.
#[derive(Debug, Clone, Copy, Default)]
struct Reads {
    count: u64,
    first: Option<Timestamp>,
    /// When the first page of its communications was read.
    paged: Option<Timestamp>,
}

/// What a request reads of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// The conversation itself.
    Itself,
    /// The first page of its communications.
    FirstPage,
    /// Anything else of it.
    Part,
    /// It stands in a list of conversations, which reads none of them.
    Listed,
}

impl Faults {
    /// `script` in force; `own_seed` where it has none.
    pub(crate) fn new(script: Script, own_seed: u64) -> Self {
        Faults {
            quiet: AtomicBool::new(script.is_empty()),
            own_seed,
            live: Mutex::new(Live::new(script, own_seed)),
        }
    }

    /// Puts another script in force; every count begins anew.
    pub(crate) fn replace(&self, script: Script) {
        let mut live = self.live();
        self.quiet.store(script.is_empty(), Ordering::Release);
        *live = Live::new(script, self.own_seed);
    }

    /// Whether there is no rule at all.
    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet.load(Ordering::Acquire)
    }

    /// The fault of this request's answer, and whether the request is carried out all the same.
    pub(crate) fn rest(&self, asked: Asked<'_>) -> Option<(RestFault, bool)> {
        let live = &mut *self.live();
        decide::rest(&live.script, live.seed, &mut live.counters, asked)
            .map(|(fault, after)| (fault.clone(), after))
    }

    /// The fault of this callback.
    pub(crate) fn callback(&self, told: Told<'_>) -> Option<CallbackFault> {
        let live = &mut *self.live();
        decide::callback(&live.script, live.seed, &mut live.counters, told)
    }

    /// What this look at a conversation sees of it.
    pub(crate) fn view(&self, entry: &Entry, look: Look, now: Timestamp) -> View {
        let live = &mut *self.live();
        let Some((place, fault)) = decide::conversation(&live.script, live.seed, entry.number)
        else {
            return View::default();
        };
        let room = live.reads.len() < MAX_REMEMBERED || live.reads.contains_key(&entry.number);
        let mut unremembered = Reads::default();
        let reads = match room {
            true => live.reads.entry(entry.number).or_default(),
            false => &mut unremembered,
        };
        let closed = entry.conversation.status == Status::Closed;
        let view = reads.view(fault, look, closed, now);
        let counter = &mut live.counters.conversations[place];
        counter.matched += u64::from(look != Look::Listed);
        counter.fired += u64::from(look != Look::Listed && !view.is_whole());
        view
    }

    /// The script and its counts, as `GET /emulator/faults` shows them.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        let live = self.live();
        let names = |name: &Option<Text>| name.as_ref().map(|name| name.as_str().to_owned());
        let (script, counters) = (&live.script, &live.counters);
        let rest = script.rest.iter().map(|rule| names(&rule.name));
        let callbacks = script.callbacks.iter().map(|rule| names(&rule.name));
        let conversations = script.conversations.iter().map(|rule| names(&rule.name));
        serde_json::to_vec(&Shown {
            seed: live.seed,
            script,
            counts: Counts {
                rest: counted(rest, &counters.rest),
                callbacks: counted(callbacks, &counters.callbacks),
                conversations: counted(conversations, &counters.conversations),
            },
        })
        .expect("the script has string keys, and memory does not fail to write")
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    fn new(script: Script, own_seed: u64) -> Self {
        Live {
            seed: script.seed.unwrap_or(own_seed),
            counters: Counters::new(&script),
            reads: HashMap::new(),
            script,
        }
    }
}

impl Reads {
    /// Counts this look, and says what it sees.
    fn view(&mut self, fault: ConversationFault, look: Look, closed: bool, now: Timestamp) -> View {
        let mut view = View::default();
        match fault {
            ConversationFault::LateClose(late) if closed => {
                let first = self.first.unwrap_or(now);
                view.open = match late {
                    Late::Reads(reads) => self.count < reads.get(),
                    Late::Seconds(seconds) => {
                        let seconds = i64::try_from(seconds.get()).unwrap_or(i64::MAX);
                        now.duration_since(first) < SignedDuration::from_secs(seconds)
                    }
                };
                if look == Look::Itself {
                    self.count += 1;
                    self.first = Some(first);
                }
            }
            ConversationFault::LateClose(_) => {}
            ConversationFault::NeverCloses => view.open = closed,
            ConversationFault::DeletedDuringFetch { after_reads } => {
                view.gone = self.count >= after_reads.get();
                self.count += u64::from(look != Look::Listed);
            }
            ConversationFault::ChangedBetweenPages => {
                view.changed = self.paged;
                if look == Look::FirstPage && self.paged.is_none() {
                    self.paged = Some(now);
                }
            }
        }
        view
    }
}

#[derive(Serialize)]
struct Shown<'a> {
    /// What probabilities are drawn from.
    seed: u64,
    script: &'a Script,
    counts: Counts,
}

#[derive(Serialize)]
struct Counts {
    rest: Vec<RuleCount>,
    callbacks: Vec<RuleCount>,
    conversations: Vec<RuleCount>,
}

/// In the order of the rules.
#[derive(Serialize)]
struct RuleCount {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    matched: u64,
    fired: u64,
}

fn counted(names: impl Iterator<Item = Option<String>>, counters: &[Counter]) -> Vec<RuleCount> {
    names
        .zip(counters)
        .map(|(name, counter)| RuleCount {
            name,
            matched: counter.matched,
            fired: counter.fired,
        })
        .collect()
}
