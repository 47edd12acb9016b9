//! Traffic has everything, stays in its window, and is what its profile says.

use std::collections::BTreeSet;

use super::cast::CHANNELS;
use super::*;
use crate::emulator::state::{Setup, State};

fn base() -> Timestamp {
    "2026-11-22T12:00:00Z".parse().unwrap()
}

fn plan(seed: u64, large: Option<usize>) -> Plan {
    Plan {
        seed,
        base: base(),
        large,
        profile: Arc::default(),
    }
}

fn played(plan: &Plan, conversations: u64) -> State {
    let mut state = State::new(Setup {
        account_id: "AC1".into(),
        callbacks: [].into(),
        since: base(),
        operation_delay: SignedDuration::ZERO,
        keep_conversations: 1_000,
    });
    for index in 0..conversations {
        for step in Script::new(plan, index) {
            state.apply(step.command, step.at).unwrap();
        }
    }
    state
}

#[test]
fn two_hundred_conversations_have_everything() {
    let state = played(&plan(1, None), 200);
    assert_eq!(state.tally().closed, 200, "the last step closes");
    let mut channels = BTreeSet::new();
    let mut kinds = BTreeSet::new();
    let mut deliveries = BTreeSet::new();
    let mut sizes = Vec::new();
    let (mut several, mut prefixed, mut bare, mut older, mut fragments) = (0, 0, 0, 0, 0);
    let (mut empty, mut longest, mut rtl, mut lines, mut emoji, mut words) = (0, 0, 0, 0, 0, 0);
    for entry in state.conversations() {
        sizes.push(entry.communications.len());
        several += usize::from(entry.channels.len() > 1);
        older += usize::from(entry.conversation.id.starts_with("CH"));
        kinds.extend(entry.participants.iter().map(|p| p.kind));
        let authors: Vec<_> = entry.communications.iter().map(|c| &c.author).collect();
        fragments += usize::from(authors.windows(3).any(|w| w[0] == w[1] && w[1] == w[2]));
        for communication in &entry.communications {
            channels.insert(communication.author.channel);
            deliveries.extend(communication.recipients.iter().map(|r| r.delivery_status));
            let text = &communication.content.text;
            if communication.author.channel == Channel::Whatsapp {
                let has = communication.author.address.starts_with("whatsapp:");
                prefixed += usize::from(has);
                bare += usize::from(!has);
            }
            empty += usize::from(text.is_empty());
            longest += usize::from(text.chars().count() == texts::MAX_TEXT_CHARS);
            rtl += usize::from(text.contains('ש') || text.contains('م'));
            lines += usize::from(text.contains('\n'));
            emoji += usize::from(text.contains('📦'));
            words += communication
                .content
                .transcription
                .as_ref()
                .map_or(0, |t| t.words.len());
        }
    }
    assert_eq!(channels, CHANNELS.into());
    assert_eq!(kinds.len(), 5, "{kinds:?}");
    assert_eq!(deliveries.len(), 7, "six states and none: {deliveries:?}");
    assert_eq!(sizes.iter().min(), Some(&1));
    assert!(sizes.iter().max().unwrap() <= &(MAX_ORDINARY + 1));
    assert!(sizes.iter().max().unwrap() > &40, "{sizes:?}");
    for (what, count) in [
        ("several channels", several),
        ("whatsapp with prefix", prefixed),
        ("whatsapp without", bare),
        ("older ids", older),
        ("fragments", fragments),
        ("empty", empty),
        ("longest", longest),
        ("right to left", rtl),
        ("lines", lines),
        ("emoji", emoji),
        ("words", words),
    ] {
        assert!(count > 0, "no {what} in 200 conversations");
    }
}

#[test]
fn ids_depend_on_the_seed_and_not_on_the_base_time() {
    let later = Plan {
        base: base() + SignedDuration::from_hours(100),
        ..plan(5, None)
    };
    let ids = |state: &State| -> Vec<Arc<str>> {
        let entries = state.conversations();
        entries
            .flat_map(|e| e.communications.iter().map(|c| Arc::clone(&c.id)))
            .collect()
    };
    let first = ids(&played(&plan(5, None), 10));
    assert_eq!(first, ids(&played(&later, 10)));
    assert_ne!(first, ids(&played(&plan(6, None), 10)));
}

#[test]
fn times_stay_in_their_window_and_in_order() {
    for (large, conversations) in [(None, 50), (Some(3_000), 1)] {
        for index in 0..conversations {
            let mut last = base() - SignedDuration::from_hours(WINDOW_HOURS);
            for step in Script::new(&plan(2, large), index) {
                assert!(step.at >= last);
                last = step.at;
            }
            assert!(last <= base());
        }
    }
}

#[test]
fn a_large_conversation_has_its_size_and_needs_little_memory() {
    let mut script = Script::new(&plan(3, Some(50_000)), 0);
    let mut captured = 0;
    while let Some(step) = script.next() {
        captured += usize::from(matches!(step.command, Command::Capture { .. }));
        assert!(script.pending.len() < 16);
    }
    assert!((50_000..=50_001).contains(&captured), "{captured}");
}
