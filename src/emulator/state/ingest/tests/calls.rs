//! Calls: passively by rules, actively by TwiML, both at once, and what it costs.

use super::super::super::super::capture::{CallType, Miss};
use super::super::super::bill::Source;
use super::*;

const RULE: &str = r#"{"VOICE": {"captureRules": [{"from": "*", "to": "+15551234567"}]}}"#;

fn rule() -> Value {
    serde_json::from_str(RULE).unwrap()
}

use ParticipantType::{AiAgent, Customer, HumanAgent};

const TALK: &[(ParticipantType, usize)] = &[(Customer, 0), (AiAgent, 0)];

fn sources(report: &Report) -> Vec<Source> {
    report.captured.iter().map(|c| c.source).collect()
}

#[test]
fn a_human_agents_call_is_captured_without_twiml() {
    let mut world = World::new().with("c1", BY_CHANNEL, rule());
    let report = world.call(&call(&[], &[(Customer, 0), (HumanAgent, 0), (Customer, 0)]));
    let id = only(&report);
    assert_eq!(sources(&report), [Source::CaptureRule]);
    assert_eq!(world.said(&id).len(), 3, "one an utterance");
    let kinds: Vec<_> = world
        .entry(&id)
        .participants
        .iter()
        .map(|p| p.kind)
        .collect();
    assert_eq!(kinds, [Customer, HumanAgent]);
    let line = &world.bill()["calls"][0];
    assert_eq!(line["engines"].as_array().unwrap().len(), 1);
    assert_eq!(line["engines"][0]["source"], "CAPTURE_RULE");
    assert_eq!(line["engines"][0]["seconds"], 90);
    assert_eq!(line["engines"][0]["minutes"], 2);
    assert_eq!(line["doubleBilled"], false);
}

#[test]
fn cannot_capture_client_or_sip_calls_without_call_type() {
    let mut world = World::new().with("c1", BY_CHANNEL, rule());
    for call_type in [CallType::Client, CallType::PublicSip] {
        let report = world.call(&Call {
            call_type,
            ..call(&[], TALK)
        });
        let miss = Miss::OtherCallType;
        assert!(reasons(&report).contains(&&Reason::Rules { miss }));
        assert!(report.captured.is_empty(), "{report:?}");
    }
    assert_eq!(world.bill()["calls"], json!([]));
}

#[test]
fn fact_2_an_ai_agents_answer_is_several_communications() {
    let mut world = World::new().with("c1", BY_CHANNEL, json!({"VOICE": {}}));
    let relay = relay("conversationConfiguration='c1'");
    let id = only(&world.call(&call(&[&relay], &[(Customer, 0), (AiAgent, 0)])));
    let said = world.said(&id);
    assert_eq!(&*said[0].author.address, CUSTOMER);
    let fragments = &said[1..];
    assert!((3..=5).contains(&fragments.len()), "{}", fragments.len());
    assert_eq!(authors(fragments), [NUMBER].into());
    let times: Vec<_> = said.iter().map(|c| c.occurred_at).collect();
    assert!(
        times.is_sorted() && times.last() < Some(&at(0)),
        "{times:?}"
    );
    let resources: BTreeSet<_> = said.iter().map(|c| &c.resource_id).collect();
    assert_eq!(resources.len(), said.len(), "unique in the conversation");
    let again = World::new().with("c1", BY_CHANNEL, json!({"VOICE": {}}));
    let mut again = World { seed: 0, ..again };
    again.call(&call(&[&relay], &[(Customer, 0), (AiAgent, 0)]));
    assert_eq!(again.said(&id), world.said(&id), "by the seed");
}

#[test]
fn fact_7_a_rule_and_twiml_together_transcribe_and_bill_twice() {
    let mut world = World::new().with("c1", BY_CHANNEL, rule());
    let relay = relay("conversationConfiguration='c1' transcriptionProvider='Deepgram'");
    let report = world.call(&call(&[&relay], TALK));
    assert!(report.double_billed);
    assert_eq!(
        sources(&report),
        [Source::CaptureRule, Source::ConversationRelay]
    );
    let [passive, active] = &report.captured[..] else {
        panic!("{report:?}")
    };
    assert_eq!(passive.conversation_id, active.conversation_id);
    let ids: BTreeSet<_> = passive
        .communication_ids
        .iter()
        .chain(&active.communication_ids)
        .collect();
    let said = world.said(&passive.conversation_id);
    assert_eq!(said.len(), ids.len(), "two sets, no communication in both");
    assert_eq!(passive.communication_ids.len(), 2);
    assert!(active.communication_ids.len() >= 4, "with fragments");
    let bill = world.bill();
    assert_eq!(bill["speech"]["captureRuleMinutes"], 1);
    assert_eq!(bill["speech"]["conversationRelayMinutes"], 1);
    assert_eq!(bill["speech"]["doubleBilledCalls"], 1);
    assert_eq!(bill["calls"][0]["doubleBilled"], true);
    let engines = bill["calls"][0]["engines"].as_array().unwrap().iter();
    let engines: Vec<_> = engines.map(|e| e["engine"].as_str().unwrap()).collect();
    assert_eq!(engines, ["google", "deepgram"]);
}

#[test]
fn fact_7_without_rules_active_twiml_is_billed_once() {
    let mut world = World::new().with("c1", BY_CHANNEL, json!({"VOICE": {"statusTimeouts": null}}));
    let report = world.call(&call(&[&relay("conversationConfiguration='c1'")], TALK));
    assert!(!report.double_billed);
    assert_eq!(sources(&report), [Source::ConversationRelay]);
    assert_eq!(world.bill()["speech"]["captureRuleMinutes"], 0);
}

#[test]
fn fact_7_a_misnamed_attribute_captures_nothing() {
    let mut world = World::new().with("c1", BY_CHANNEL, json!({"VOICE": {}}));
    let misnamed = relay("conversationConfigurationId='c1'");
    let report = world.call(&call(&[&misnamed], TALK));
    assert!(report.captured.is_empty());
    assert_eq!(reasons(&report).last(), Some(&&Reason::MisnamedAttribute));
    let report = world.call(&call(&[&relay("url='wss://a'")], TALK));
    assert_eq!(reasons(&report).last(), Some(&&Reason::NoConversationNamed));
    assert_eq!(world.state.tally().conversations, 0);
    assert_eq!(world.bill()["calls"], json!([]));
}

#[test]
fn fact_7_conversation_id_wins_and_bypasses_the_grouping() {
    let mut world = World::new().with("c1", BY_CHANNEL, json!({"VOICE": {}}));
    world.open("v1", "c1", (Channel::Sms, OTHER));
    let both = "<Response><Start><Transcription conversationConfiguration='c1' \
                conversationId='v1'/></Start></Response>";
    let report = world.call(&call(&[both], &[(Customer, 0), (HumanAgent, 0)]));
    assert_eq!(&*only(&report), "v1");
    assert_eq!(world.state.tally().conversations, 1);
    assert_eq!(world.said("v1").len(), 2);
    assert_eq!(world.entry("v1").participants.len(), 3, "both ends joined");
}

#[test]
fn closed_and_unknown_ids_take_nothing_and_cost_nothing() {
    let mut world = World::new().with("c1", BY_CHANNEL, rule());
    world.open("v1", "c1", (Channel::Sms, OTHER));
    world.set("v1", Status::Closed);
    for (attribute, reason) in [
        ("conversationId='v1'", Reason::ClosedConversation),
        ("conversationId='v2'", Reason::UnknownConversation),
        (
            "conversationConfiguration='c9'",
            Reason::UnknownConfiguration,
        ),
    ] {
        let report = world.call(&call(&[&relay(attribute)], TALK));
        assert_eq!(reasons(&report).last(), Some(&&reason));
        assert_eq!(sources(&report), [Source::CaptureRule], "the rule goes on");
        assert!(!report.double_billed);
    }
    assert_eq!(world.said("v1").len(), 0);
    assert_eq!(world.bill()["speech"]["conversationRelayMinutes"], 0);
}

#[test]
fn an_ai_agent_hands_over_to_a_human_on_one_call() {
    let mut world = World::new().with("c1", BY_CHANNEL, json!({"VOICE": {}}));
    let first = relay("conversationConfiguration='c1'");
    let second = "<Response><Start><Transcription conversationConfiguration='c1'/></Start>\
                  <Dial><Client>agent-1</Client></Dial></Response>";
    let said = [(Customer, 0), (AiAgent, 0), (HumanAgent, 1), (Customer, 1)];
    let report = world.call(&call(&[&first, second], &said));
    let sources = sources(&report);
    assert_eq!(sources, [Source::ConversationRelay, Source::Transcription]);
    let ids: BTreeSet<_> = report.captured.iter().map(|c| &c.conversation_id).collect();
    assert_eq!(ids.len(), 1, "one conversation");
    assert!(!report.double_billed, "one after the other");
    let entry = world.entry(&report.captured[0].conversation_id);
    let seats: Vec<_> = entry
        .participants
        .iter()
        .map(|p| (p.kind, &*p.addresses[0].address))
        .collect();
    let expected = [
        (Customer, CUSTOMER),
        (AiAgent, NUMBER),
        (HumanAgent, "agent-1"),
    ];
    assert_eq!(seats, expected);
    assert_eq!(report.captured[1].communication_ids.len(), 2);
    let last = entry.communications.last().unwrap();
    let heard_by = (&*last.author.address, &*last.recipients[0].address);
    assert_eq!(heard_by, (CUSTOMER, "agent-1"), "the human listens now");
    let calls: BTreeSet<_> = entry.communications.iter().map(|c| &c.channel_id).collect();
    assert_eq!(calls, [&Some(Arc::clone(&report.sid))].into());
    let bill = world.bill();
    assert_eq!(bill["calls"][0]["engines"][0]["seconds"], 60);
    assert_eq!(bill["calls"][0]["engines"][1]["seconds"], 60);

    // The same by the id of the conversation that the first half opened.
    let id = report.captured[0].conversation_id.clone();
    let third =
        format!("<Response><Start><Transcription conversationId='{id}'/></Start></Response>");
    let again = world.call(&call(
        &[&relay("conversationConfiguration='c1'"), &third],
        &said,
    ));
    let same = again.captured.iter().all(|c| c.conversation_id == id);
    assert!(same, "{again:?}");
    assert_eq!(
        world.entry(&id).participants.len(),
        4,
        "no Dial: a human at our number"
    );
}

#[test]
fn fact_8_wildcards_of_several_rules_group_a_call_unexpectedly() {
    let wide = json!({"VOICE": {"captureRules": [
        {"from": "*", "to": "*", "metadata": {"callType": "PSTN"}},
        {"from": "*", "to": NUMBER},
    ]}});
    let mut world = World::new()
        .with("c1", BY_CHANNEL, wide)
        .with("c2", BY_CHANNEL, rule());
    let report = world.call(&call(&[], TALK));
    assert!(report.unexpected_grouping);
    let rules: Vec<_> = report.captured.iter().map(|c| c.rules.len()).collect();
    assert_eq!(rules, [2, 1]);
    assert_ne!(
        report.captured[0].conversation_id,
        report.captured[1].conversation_id
    );
    let bill = world.bill();
    assert_eq!(bill["unexpectedGroupings"], 1);
    assert_eq!(bill["calls"][0]["unexpectedGrouping"], true);
    assert_eq!(bill["calls"][0]["engines"].as_array().unwrap().len(), 2);
}

#[test]
fn cannot_filter_operators_by_participant_type() {
    let mut world = World::new();
    let more = json!({
        "channelSettings": {"VOICE": {}},
        "intelligenceConfigurationIds": ["intel_1", "intel_2"],
    });
    world.configure("c1", BY_CHANNEL, more);
    let relay = relay("conversationConfiguration='c1'");
    let id = only(&world.call(&call(&[&relay], TALK)));
    let runs = world.said(&id).len();
    assert!(runs >= 4, "a run a fragment, the customer's words too");
    for intelligence in ["intel_1", "intel_2"] {
        assert_eq!(
            world.bill()["operators"][intelligence]["communications"],
            runs
        );
    }
}
