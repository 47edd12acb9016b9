//! Any traffic, any time, any close: what holds all the same.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::super::super::capture::CallType;
use super::super::super::super::listing::{ConversationView, Shape};
use super::super::super::Request;
use super::*;

/// Something that happens.
#[derive(Debug, Clone)]
enum Happening {
    Message(Message),
    Call(Call),
    Pass(i64),
    Set(usize, Status),
    Delete(usize),
    Unite(String, String),
    Switch(bool),
}

const NUMBERS: [&str; 2] = ["+15551234567", "+15557654321"];

fn address() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "+15550001".to_owned(),
        "whatsapp:+15550001".to_owned(),
        "+15550002".to_owned(),
        NUMBERS[0].to_owned(),
        NUMBERS[1].to_owned(),
    ])
}

fn any_message() -> impl Strategy<Value = Happening> {
    let channel = prop::sample::select(vec![Channel::Sms, Channel::Whatsapp, Channel::Chat]);
    (channel, address(), address()).prop_map(|(channel, from, to)| {
        let chat = channel == Channel::Chat;
        Happening::Message(Message {
            channel_id: chat.then(|| "CH1".into()),
            service: chat.then(|| "IS1".into()),
            ..message(channel, &from, &to)
        })
    })
}

fn any_call() -> impl Strategy<Value = Happening> {
    let document = prop::sample::select(vec![
        relay("conversationConfiguration='c1'"),
        relay("conversationConfiguration='c3'"),
        relay("conversationConfigurationId='c1'"),
        relay("conversationId='nobody'"),
        "<Response><Start><Transcription conversationConfiguration='c2'/></Start></Response>"
            .into(),
        "<Response><Dial>+15550009</Dial></Response>".to_owned(),
    ]);
    let by = prop::sample::select(vec![
        ParticipantType::Customer,
        ParticipantType::AiAgent,
        ParticipantType::HumanAgent,
    ]);
    let documents = prop::collection::vec(document, 0..3);
    let said = prop::collection::vec((by, 0_usize..3), 0..5);
    (address(), address(), documents, said, any::<bool>()).prop_map(
        |(from, to, documents, mut said, client)| {
            let last = documents.len().saturating_sub(1);
            said.iter_mut().for_each(|said| said.1 = said.1.min(last));
            said.sort_by_key(|said| said.1);
            let documents: Vec<&str> = documents.iter().map(String::as_str).collect();
            Happening::Call(Call {
                from: from.as_str().into(),
                to: to.as_str().into(),
                call_type: if client {
                    CallType::Client
                } else {
                    CallType::Pstn
                },
                ..call(&documents, &said)
            })
        },
    )
}

fn any_happening() -> impl Strategy<Value = Happening> {
    let status = prop::sample::select(vec![Status::Active, Status::Inactive, Status::Closed]);
    prop_oneof![
        4 => any_message(),
        3 => any_call(),
        3 => (0_i64..40).prop_map(Happening::Pass),
        2 => (0_usize..6, status).prop_map(|(place, status)| Happening::Set(place, status)),
        1 => (0_usize..6).prop_map(Happening::Delete),
        1 => (address(), address()).prop_map(|(one, two)| Happening::Unite(one, two)),
        1 => any::<bool>().prop_map(Happening::Switch),
    ]
}

fn world() -> World {
    let mut world = World::new();
    let rules = both_ways(NUMBERS[0]);
    let channels = json!({
        "SMS": {"captureRules": rules, "statusTimeouts": {"inactive": 10, "closed": 60}},
        "WHATSAPP": {"captureRules": rules, "statusTimeouts": {"closed": 20}},
        "VOICE": {"captureRules": [{"from": "*", "to": NUMBERS[0]}], "statusTimeouts": null},
    });
    let more = json!({
        "channelSettings": channels,
        "conversationsV1Bridge": {"serviceId": "IS1"},
        "memoryExtractionEnabled": true,
        "intelligenceConfigurationIds": ["intel_1"],
    });
    for (id, grouping) in [("c1", BY_CHANNEL), ("c2", BY_ADDRESS), ("c3", BY_PROFILE)] {
        world.configure(id, grouping, more.clone());
    }
    world
}

impl World {
    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Message(message) => drop(self.message(&message)),
            Happening::Call(call) => drop(self.call(&call)),
            Happening::Pass(minutes) => self.pass(minutes),
            Happening::Set(place, status) => {
                let entry = self.state.conversations().nth(place);
                let id = entry.map(|entry| Arc::clone(&entry.conversation.id));
                let living = id.filter(|id| self.status(id) != Status::Closed);
                if let Some(id) = living {
                    self.set(&id, status);
                }
            }
            Happening::Delete(place) => {
                let entry = self.state.conversations().nth(place);
                let id = entry.map(|entry| Arc::clone(&entry.conversation.id));
                if let Some(id) = id {
                    self.apply(Command::Begin {
                        operation: format!("delete {id}").into(),
                        request: Request::DeleteConversation(id),
                        key: None,
                    });
                    self.pass(0);
                }
            }
            Happening::Unite(one, two) => {
                let addresses = [one.as_str().into(), two.as_str().into()];
                self.state.memory_mut().unite(&addresses).unwrap();
            }
            Happening::Switch(alive) => {
                let memory = self.state.memory_mut();
                memory.switch("mem_store_1".into(), alive).unwrap();
            }
        }
    }

    fn shown(&self) -> BTreeMap<Arc<str>, (Status, String)> {
        let entries = self.state.conversations().map(|entry| {
            let view = ConversationView::new(entry, "AC1", Shape::WHOLE);
            let text = serde_json::to_string(&(view, &entry.communications)).unwrap();
            let own = &entry.conversation;
            (Arc::clone(&own.id), (own.status, text))
        });
        entries.collect()
    }

    /// Each conversation is what its events tell, and no event tells nothing.
    fn check_events(&self) {
        let mut told: BTreeMap<&str, &Value> = BTreeMap::new();
        for event in &self.announced {
            let data = &event["data"];
            let before = told.insert(data["id"].as_str().unwrap(), data);
            match event["eventType"].as_str().unwrap() {
                "CONVERSATION_CREATED" | "PARTICIPANT_ADDED" | "COMMUNICATION_CREATED" => {
                    assert_eq!(before, None, "new twice");
                }
                "CONVERSATION_UPDATED" => {
                    let before = &before.unwrap()["status"];
                    assert_ne!(before, &data["status"], "an event without a change");
                }
                "PARTICIPANT_UPDATED" => {
                    let before = &before.unwrap()["addresses"];
                    assert_ne!(before, &data["addresses"], "an event without a change");
                }
                other => panic!("{other}"),
            }
        }
        for entry in self.state.conversations() {
            let own = &entry.conversation;
            assert_eq!(told[&*own.id]["status"], json!(own.status));
            for participant in &entry.participants {
                assert_eq!(told[&*participant.id], &json!(participant));
            }
            for communication in &entry.communications {
                assert_eq!(told[&*communication.id], &json!(communication));
            }
        }
    }

    /// Nothing is due that should have happened, and the schedule and the keys name the living alone.
    fn check_schedule(&self) {
        let mut expected = BTreeSet::new();
        for (position, entry) in self.state.listed(0..u64::MAX) {
            expected.extend(entry.next().map(|(at, _)| (at, position)));
            let living = entry.conversation.status != Status::Closed;
            assert!(living || entry.claimed.is_empty());
            for key in &entry.claimed {
                assert_eq!(self.state.groups[key], position);
            }
        }
        let claimed: usize = self.state.conversations().map(|e| e.claimed.len()).sum();
        assert_eq!(claimed, self.state.groups.len());
        assert_eq!(self.state.schedule, expected);
        assert!(self.state.due().is_none_or(|due| due > at(self.minute)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn invariants_hold_after_any_traffic_timeouts_and_closes(
        happenings in prop::collection::vec(any_happening(), 1..40)
    ) {
        let mut world = world();
        for happening in happenings {
            let before = world.shown();
            world.happen(happening);
            let after = world.shown();
            for (id, (status, shown)) in before {
                let same = after.get(&id).is_none_or(|(_, after)| *after == shown);
                prop_assert!(status != Status::Closed || same, "{id} changed");
            }
            world.check_events();
            world.check_schedule();
            let mut seen = BTreeSet::new();
            for entry in world.state.conversations() {
                let mut resources = BTreeSet::new();
                for communication in &entry.communications {
                    prop_assert!(seen.insert(Arc::clone(&communication.id)), "in two places");
                    prop_assert!(resources.insert(&communication.resource_id));
                    prop_assert_eq!(&communication.conversation_id, &entry.conversation.id);
                }
            }
            let captured = world.state.tally().communications;
            prop_assert!(seen.len() as u64 <= captured);
            prop_assert_eq!(
                world.bill()["operators"]["intel_1"]["communications"].as_u64().unwrap_or(0),
                captured
            );
        }
    }

    #[test]
    fn the_same_happenings_lead_to_the_same_state(
        happenings in prop::collection::vec(any_happening(), 1..20)
    ) {
        let (mut one, mut two) = (world(), world());
        for happening in happenings {
            one.happen(happening.clone());
            two.happen(happening);
        }
        prop_assert_eq!(one.shown(), two.shown());
        prop_assert_eq!(&one.announced, &two.announced);
        prop_assert_eq!(one.bill(), two.bill());
    }
}
