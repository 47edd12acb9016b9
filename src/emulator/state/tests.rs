//! The machine's rules, by any commands and by the ones that matter.

use proptest::prelude::*;

use super::super::configuration::CONFIGURATION_ID;
use super::super::listing::{ConversationView, Shape};
use super::super::pages::{self, Cursor};
use super::super::resource::{
    Address, Author, CallbackMethod, Channel, Content, ContentType, ParticipantType, Recipient,
};
use super::*;

/// How long operations take here, seconds.
const DELAY_S: i64 = 5;

fn machine() -> State {
    machine_that_keeps(MAX_CONVERSATIONS)
}

fn machine_that_keeps(keep_conversations: usize) -> State {
    let callback = StatusCallback {
        url: "https://example.com/callback".into(),
        method: CallbackMethod::Post,
    };
    State::new(Setup {
        account_id: "AC1".into(),
        callbacks: [callback].into(),
        since: at(0),
        operation_delay: SignedDuration::from_secs(DELAY_S),
        keep_conversations,
    })
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn participant(number: u8) -> NewParticipant {
    NewParticipant {
        name: None,
        kind: ParticipantType::Customer,
        profile_id: None,
        addresses: vec![Address {
            channel: Channel::Sms,
            address: format!("+1555000{number}").into(),
            channel_id: None,
        }],
    }
}

fn message(resource: Option<u8>) -> NewCommunication {
    let address: Arc<str> = "+15550000".into();
    NewCommunication {
        author: Author {
            address: Arc::clone(&address),
            channel: Channel::Sms,
            participant_id: None,
        },
        content: Content {
            kind: ContentType::Text,
            text: "hello".into(),
            transcription: None,
        },
        channel_id: None,
        resource_id: resource.map(|number| format!("SM{number}").into()),
        recipients: vec![Recipient {
            address,
            channel: Channel::Sms,
            participant_id: None,
            delivery_status: None,
        }],
        occurred_at: None,
    }
}

fn open(id: &str, participants: &[u8]) -> Command {
    Command::Open {
        id: id.into(),
        configuration_id: CONFIGURATION_ID.into(),
        name: None,
        metadata: BTreeMap::new(),
        participants: participants
            .iter()
            .map(|number| (format!("{id}-p{number}").into(), participant(*number)))
            .collect(),
    }
}

fn set(id: &str, status: Status) -> Command {
    Command::Change {
        conversation: id.into(),
        change: Change {
            status: Some(status),
            ..Change::default()
        },
    }
}

/// Few ids, so that commands meet: repeats, closed conversations, strangers.
fn any_command() -> impl Strategy<Value = Command> {
    let id = (0_u8..4).prop_map(|number| format!("v{number}"));
    let parts = (id, 0_u8..8, 0_u8..14, prop::option::of(0_u8..4));
    parts.prop_map(|(conversation, number, what, resource)| {
        let id: Arc<str> = conversation.as_str().into();
        match what {
            0 | 1 => open(&conversation, &[][..]),
            2 => open(&conversation, &[number]),
            3 => Command::Join {
                conversation: id,
                id: format!("p{number}").into(),
                participant: participant(number),
            },
            4 | 5 => Command::Capture {
                conversation: id,
                id: format!("c{number}").into(),
                communication: message(resource),
            },
            6 => Command::Deliver {
                conversation: id,
                communication: format!("c{number}").into(),
                status: [DeliveryStatus::Read, DeliveryStatus::Failed][usize::from(number % 2)],
            },
            7 => set(
                &conversation,
                [Status::Active, Status::Inactive, Status::Closed][usize::from(number % 3)],
            ),
            8 => Command::Change {
                conversation: id,
                change: Change {
                    name: Some(resource.map(|n| format!("name {n}").into())),
                    ..Change::default()
                },
            },
            9 => Command::Replace {
                conversation: id,
                participant: format!("p{number}").into(),
                new: participant(resource.unwrap_or(number)),
            },
            10 => Command::Begin {
                operation: format!("o{number}").into(),
                request: Request::DeleteConversation(id),
                key: resource.map(|n| format!("key {n}").into()),
            },
            11 => Command::Tick,
            _ => Command::Change {
                conversation: id,
                change: Change {
                    callbacks: (number == 0).then(|| [].into()),
                    metadata: MetadataChange::Merge(
                        [(format!("k{number}"), resource.map(|n| n.to_string()))].into(),
                    ),
                    ..Change::default()
                },
            },
        }
    })
}

/// Everything that can be read of a conversation.
fn shown(entry: &Entry) -> (Status, String) {
    let view = ConversationView::new(entry, "AC1", Shape::WHOLE);
    let whole = (view, &entry.communications);
    (
        entry.conversation.status,
        serde_json::to_string(&whole).unwrap(),
    )
}

fn snapshot(state: &State) -> BTreeMap<Arc<str>, (Status, String)> {
    let entries = state.conversations();
    entries
        .map(|entry| (Arc::clone(&entry.conversation.id), shown(entry)))
        .collect()
}

/// What one command may announce, from what it changed.
fn check_announcements(before: &State, after: &State, effects: &[Effect]) {
    let counts = |state: &State, id: &str| {
        state.conversation(id).map_or((0, 0, 0), |entry| {
            (
                entry.sequence,
                entry.participants.len(),
                entry.communications.len(),
            )
        })
    };
    for entry in after.conversations() {
        let id = &entry.conversation.id;
        let (sequence, participants, communications) = counts(before, id);
        let announced: Vec<&Announcement> = effects
            .iter()
            .map(|Effect::Announce(announcement)| announcement)
            .filter(|announcement| announcement.conversation_id == *id)
            .collect();
        let of = |wanted: &str| announced.iter().filter(|a| a.event_type == wanted).count();
        if entry.conversation.callbacks.is_empty() {
            assert_eq!(announced.len(), 0, "nobody listens");
            continue;
        }
        let numbers: Vec<u32> = announced.iter().map(|a| a.sequence).collect();
        let expected: Vec<u32> = (sequence..entry.sequence).collect();
        assert_eq!(numbers, expected, "numbered without gaps");
        let old = before.conversation(id).map(|e| &e.conversation);
        let new = &entry.conversation;
        let changed = old.is_some_and(|old| old.status != new.status || old.name != new.name);
        assert_eq!(of("CONVERSATION_CREATED"), usize::from(old.is_none()));
        assert_eq!(of("CONVERSATION_UPDATED"), usize::from(changed));
        let known = before.conversation(id).map(|e| &e.participants[..]);
        let replaced = known.unwrap_or(&[]).iter().zip(&entry.participants);
        let replaced = replaced.filter(|(old, new)| old != new).count();
        assert_eq!(of("PARTICIPANT_UPDATED"), replaced);
        let joined = entry.participants.len() - participants;
        assert_eq!(of("PARTICIPANT_ADDED"), joined);
        let captured = entry.communications.len() - communications;
        assert_eq!(of("COMMUNICATION_CREATED"), captured);
        assert!(of("COMMUNICATION_UPDATED") <= 1);
    }
}

proptest! {
    // Each command replays those before it, so a case costs the square of its length.
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_rules_hold_after_any_commands(commands in prop::collection::vec(any_command(), 1..60)) {
        let mut state = machine_that_keeps(KEPT);
        let mut carried_out = Vec::new();
        let mut ever = BTreeSet::new();
        for (second, command) in commands.into_iter().enumerate() {
            let time = at(second as i64);
            let ticks = matches!(command, Command::Tick);
            let before = snapshot(&state);
            let applied = state.apply(command.clone(), time);
            let after = snapshot(&state);
            for (id, (status, shown)) in &before {
                // It may be gone, by a deletion or to make room; what is there has not changed.
                let kept = after.get(id);
                let changed = kept.is_some_and(|(_, after)| after != shown);
                prop_assert!(*status != Status::Closed || !changed, "{id} changed");
            }
            match applied {
                Err(_) => prop_assert_eq!(&before, &after, "a refusal changes nothing"),
                Ok(applied) => {
                    // Pure: the same commands lead to the state before, which has not moved since.
                    let mut earlier = machine_that_keeps(KEPT);
                    for (command, time) in &carried_out {
                        earlier.apply(Command::clone(command), *time).unwrap();
                    }
                    check_announcements(&earlier, &state, &applied.effects);
                    carried_out.push((command, time));
                }
            }
            check_places(&state, &mut ever);
            if ticks {
                prop_assert!(state.due().is_none_or(|due| due > time), "nothing due is left");
            }
        }
    }
}

/// Conversations kept in the machine of any commands: fewer than there are ids.
const KEPT: usize = 2;

/// Each communication is in one conversation; what went took its own along; pages are the list.
fn check_places(state: &State, ever: &mut BTreeSet<Arc<str>>) {
    let mut seen = BTreeSet::new();
    for entry in state.conversations() {
        let conversation = &entry.conversation.id;
        for communication in &entry.communications {
            assert!(seen.insert(Arc::clone(&communication.id)), "in two places");
            let found = state.communication(conversation, &communication.id);
            assert_eq!(found, Some(communication));
        }
    }
    ever.extend(seen.iter().cloned());
    for gone in ever.difference(&seen) {
        let mut conversations = state.conversations();
        let found = conversations.find(|e| state.communication(&e.conversation.id, gone).is_some());
        assert!(found.is_none(), "{gone} went with its conversation");
    }
    let whole: Vec<&str> = state.conversations().map(|e| &*e.conversation.id).collect();
    let statuses = state.conversations().map(|e| e.conversation.status);
    let living = statuses.filter(|status| *status != Status::Closed).count();
    assert!(
        whole.len() <= KEPT.max(living),
        "only the living can be more than are kept"
    );
    assert!(state.tally().communications >= ever.len() as u64);
    for size in 1..=3 {
        let mut paged = Vec::new();
        let mut cursor = Some(Cursor::From(0));
        while let Some(at) = cursor {
            let page = pages::cut(
                |from| state.listed(from..u64::MAX).map(|(position, _)| position),
                |to| state.listed(0..to).rev().map(|(position, _)| position),
                at,
                size,
            );
            paged.extend(
                page.positions
                    .iter()
                    .map(|&p| &*state.at(p).unwrap().conversation.id),
            );
            cursor = page.next;
        }
        assert_eq!(paged, whole, "pageSize {size}");
    }
}

#[test]
fn a_close_is_an_update_that_says_closed() {
    let mut state = machine();
    state.apply(open("v", &[]), at(0)).unwrap();
    let applied = state.apply(set("v", Status::Closed), at(9)).unwrap();
    let [Effect::Announce(close)] = &applied.effects[..] else {
        panic!("{:?}", applied.effects);
    };
    let event = crate::event::CallbackEvent::parse(&close.body).unwrap();
    assert!(event.is_close());
    assert_eq!(event.timestamp.as_deref(), Some("2023-11-14T22:13:29Z"));
    assert_eq!(event.updated_at, event.timestamp);
    let again = state.apply(set("v", Status::Closed), at(10)).unwrap();
    assert_eq!(again.effects, [], "a repeated close is no second one");
    assert_eq!(
        state.apply(set("v", Status::Active), at(11)).unwrap_err(),
        Refusal::Closed
    );
}

#[test]
fn time_never_runs_backwards_in_a_conversation() {
    let mut state = machine();
    state.apply(open("v", &[]), at(100)).unwrap();
    state.apply(set("v", Status::Inactive), at(50)).unwrap();
    let own = &state.conversation("v").unwrap().conversation;
    assert_eq!(own.updated_at, at(100));
}

#[test]
fn grouping_finds_living_conversations_only() {
    let mut state = machine();
    state.apply(open("v", &[1, 2]), at(0)).unwrap();
    let refusal = state.apply(open("w", &[2, 1]), at(1)).unwrap_err();
    assert_eq!(refusal, Refusal::Conflict { living: "v".into() });
    state.apply(open("x", &[1]), at(2)).unwrap();
    state.apply(set("v", Status::Closed), at(3)).unwrap();
    state.apply(open("w", &[2, 1]), at(4)).unwrap();
}

fn deletion(operation: &str, conversation: &str) -> Command {
    Command::Begin {
        operation: operation.into(),
        request: Request::DeleteConversation(conversation.into()),
        key: None,
    }
}

#[test]
fn operations_end_each_at_its_own_time_and_fail_where_the_world_has_changed() {
    let mut state = machine();
    state.apply(open("v", &[]), at(0)).unwrap();
    state.apply(deletion("first", "v"), at(1)).unwrap();
    state.apply(deletion("second", "v"), at(3)).unwrap();
    assert_eq!(state.due(), Some(at(1 + DELAY_S)));
    state.apply(Command::Tick, at(DELAY_S)).unwrap();
    assert_eq!(state.operation("first").unwrap().status, Progress::Pending);
    let applied = state.apply(Command::Tick, at(1_000)).unwrap();
    assert_eq!(applied.effects, [], "Twilio has no event for it");
    let first = state.operation("first").unwrap();
    assert_eq!(
        (first.status, first.completed_at),
        (Progress::Completed, Some(at(1 + DELAY_S)))
    );
    let second = state.operation("second").unwrap();
    assert_eq!(
        (second.status, second.completed_at),
        (Progress::Failed, Some(at(3 + DELAY_S)))
    );
    assert_eq!(
        second.error.as_ref().unwrap().status,
        404,
        "the first has deleted it"
    );
    assert_eq!(state.due(), None);
    assert_eq!(
        state.apply(deletion("third", "v"), at(1_001)).unwrap_err(),
        Refusal::NotFound("conversation")
    );
}

#[test]
fn operations_are_bounded_and_forgotten_after_a_day() {
    let mut state = machine();
    state.apply(open("v", &[]), at(0)).unwrap();
    for number in 0..control::MAX_OPERATIONS {
        state
            .apply(deletion(&format!("o{number}"), "v"), at(0))
            .unwrap();
    }
    let one_more = deletion("one more", "v");
    let refusal = state.apply(one_more.clone(), at(0)).unwrap_err();
    assert!(
        matches!(
            refusal,
            Refusal::TooMany {
                what: "operations",
                ..
            }
        ),
        "{refusal}"
    );
    state.apply(Command::Tick, at(DELAY_S)).unwrap();
    state.apply(open("w", &[]), at(DELAY_S)).unwrap();
    let day = control::REMEMBERED.as_secs();
    let one_more = deletion("one more", "w");
    let refusal = state.apply(one_more.clone(), at(day - 1)).unwrap_err();
    assert!(matches!(refusal, Refusal::TooMany { .. }), "{refusal}");
    state.apply(one_more, at(day)).unwrap();
    assert!(state.operation("o0").is_none());
}
