//! Which rule falls: a pure function of the seed, the counts so far and what is asked.
//!
//! Owns counting and drawing. Refuses clocks, sockets and generators of random numbers: time is an
//! argument, and a draw is a hash of seed, rule and count. The same questions in the same order get the
//! same decisions.
//!
//! Guarantees: a rule counts what it matches and what the rules before it left alone; rules behind the
//! one that falls do not see the question. Counts of single paths are kept for [`MAX_COUNTED_PATHS`];
//! later paths share one count.

use std::collections::HashMap;

use jiff::Timestamp;

use super::script::{CallbackFault, ConversationFault, Count, RestFault, Script, When, Which};
use super::value::{Few, Ordinal, Share};
use crate::emulator::seeds;

/// Paths that a rule counts one by one.
pub(crate) const MAX_COUNTED_PATHS: usize = 100_000;

/// The kinds of rules, as the first word of a draw.
const REST: u64 = 1;
const CALLBACKS: u64 = 2;
const CONVERSATIONS: u64 = 3;

/// A request, as far as rules look at it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) method: &'a str,
    /// With `/v2`, without the query.
    pub(crate) path: &'a str,
    pub(crate) now: Timestamp,
}

/// A callback, as far as rules look at it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Told<'a> {
    pub(crate) event_type: &'a str,
    pub(crate) close: bool,
    /// The conversation's number, from 1 in the order of creation.
    pub(crate) conversation: u64,
    pub(crate) now: Timestamp,
}

/// How often rules matched and fell.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) rest: Vec<Counter>,
    pub(crate) callbacks: Vec<Counter>,
    pub(crate) conversations: Vec<Counter>,
}

/// The counts of one rule.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counter {
    pub(crate) matched: u64,
    pub(crate) fired: u64,
    paths: HashMap<u64, u64>,
}

impl Counters {
    /// Nothing counted yet, for the rules of `script`.
    pub(crate) fn new(script: &Script) -> Self {
        Counters {
            rest: vec![Counter::default(); script.rest.len()],
            callbacks: vec![Counter::default(); script.callbacks.len()],
            conversations: vec![Counter::default(); script.conversations.len()],
        }
    }
}

/// The fault of this request's answer, and whether the request is carried out all the same.
pub(crate) fn rest<'a>(
    script: &'a Script,
    seed: u64,
    counters: &mut Counters,
    asked: Asked<'_>,
) -> Option<(&'a RestFault, bool)> {
    for (place, (rule, counter)) in (0..).zip(script.rest.iter().zip(&mut counters.rest)) {
        let method = rule
            .method
            .is_none_or(|method| method.as_str() == asked.method);
        if !method || !rule.path.matches(asked.path) {
            continue;
        }
        let path = match rule.count {
            Count::Rule => 0,
            Count::Path => seeds::mix_text(REST, asked.path),
        };
        let draws = [seed, REST, place, path];
        if counter.falls(&rule.when, draws, asked.now) {
            return Some((&rule.fault, rule.after_effect));
        }
    }
    None
}

/// The fault of this callback.
pub(crate) fn callback(
    script: &Script,
    seed: u64,
    counters: &mut Counters,
    told: Told<'_>,
) -> Option<CallbackFault> {
    for (place, (rule, counter)) in (0..).zip(script.callbacks.iter().zip(&mut counters.callbacks))
    {
        let mut event_type = rule.event_type.iter();
        let matches = event_type.all(|wanted| wanted.as_str() == told.event_type)
            && (told.close || !rule.close)
            && chosen(
                &rule.conversation,
                [seed, CALLBACKS, place],
                told.conversation,
            );
        if matches && counter.falls(&rule.when, [seed, CALLBACKS, place, 0], told.now) {
            return Some(rule.fault);
        }
    }
    None
}

/// The fault of the conversation with this number, and its rule's place.
pub(crate) fn conversation(
    script: &Script,
    seed: u64,
    number: u64,
) -> Option<(usize, ConversationFault)> {
    (0..)
        .zip(script.conversations.iter())
        .find(|(place, rule)| chosen(&rule.conversation, [seed, CONVERSATIONS, *place], number))
        .map(|(place, rule)| (place as usize, rule.fault))
}

impl Counter {
    /// Counts what was matched, and says whether the rule falls on it.
    fn falls(&mut self, when: &When, draws: [u64; 4], now: Timestamp) -> bool {
        self.matched += 1;
        let path = draws[3];
        let count = match path {
            0 => self.matched,
            _ => {
                let known = self.paths.len() < MAX_COUNTED_PATHS || self.paths.contains_key(&path);
                let count = self.paths.entry(if known { path } else { 0 }).or_default();
                *count += 1;
                *count
            }
        };
        let early = when.from.is_some_and(|from| now < from.get());
        let late = when.until.is_some_and(|until| now >= until.get());
        let spent = when.times.is_some_and(|times| self.fired >= times.get());
        let falls = !early
            && !late
            && !spent
            && holds(&when.nth, when.every, when.probability, &draws, count);
        self.fired += u64::from(falls);
        falls
    }
}

fn chosen(which: &Which, draws: [u64; 3], number: u64) -> bool {
    holds(&which.nth, which.every, which.probability, &draws, number)
}

fn holds<const MAX: usize>(
    nth: &Option<Few<Ordinal, MAX>>,
    every: Option<Ordinal>,
    probability: Option<Share>,
    draws: &[u64],
    count: u64,
) -> bool {
    let draw = draws
        .iter()
        .fold(count, |draw, word| seeds::mix(draw, *word));
    nth.as_ref()
        .is_none_or(|nth| nth.iter().any(|nth| nth.get() == count))
        && every.is_none_or(|every| count.is_multiple_of(every.get()))
        && probability.is_none_or(|share| seeds::falls(draw, share.get()))
}

#[cfg(test)]
mod tests;
