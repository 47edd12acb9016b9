//! Messages: rules, grouping, profiles, the classic bridge.

use super::super::super::super::capture::{End, Miss};
use super::super::super::control::{ConfigurationChange, Request};
use super::*;

#[test]
fn fact_8_one_sms_rule_captures_one_direction_only() {
    let one = json!({"SMS": {"captureRules": [{"from": "*", "to": NUMBER}]}});
    let mut world = World::new().with("c1", BY_CHANNEL, one);
    let id = only(&world.message(&sms(CUSTOMER, NUMBER)));
    let answer = world.message(&sms(NUMBER, CUSTOMER));
    assert!(answer.captured.is_empty(), "{answer:?}");
    let miss = Reason::Rules {
        miss: Miss::OnlyTheOtherDirection,
    };
    assert!(reasons(&answer).contains(&&miss), "{answer:?}");
    assert_eq!(world.said(&id).len(), 1, "half the talk");

    let both = json!({"SMS": {"captureRules": both_ways(NUMBER)}});
    let mut world = World::new().with("c1", BY_CHANNEL, both);
    let id = only(&world.message(&sms(CUSTOMER, NUMBER)));
    assert_eq!(only(&world.message(&sms(NUMBER, CUSTOMER))), id);
    assert_eq!(authors(world.said(&id)), [CUSTOMER, NUMBER].into());
    assert_eq!(
        &*customer(world.entry(&id)).addresses[0].address,
        CUSTOMER,
        "the open end is the customer"
    );
    assert_eq!(world.entry(&id).participants.len(), 2);
}

#[test]
fn grouping_by_channel_keeps_channels_apart() {
    let rules = json!({
        "SMS": {"captureRules": both_ways(NUMBER)},
        "WHATSAPP": {"captureRules": both_ways(NUMBER)},
    });
    let mut world = World::new().with("c1", BY_CHANNEL, rules.clone());
    let first = only(&world.message(&sms(CUSTOMER, NUMBER)));
    let second = only(&world.message(&message(Channel::Whatsapp, CUSTOMER, NUMBER)));
    assert_ne!(first, second);

    let mut world = World::new().with("c1", BY_ADDRESS, rules);
    let first = only(&world.message(&sms(CUSTOMER, NUMBER)));
    let other = only(&world.message(&sms(OTHER, NUMBER)));
    assert_ne!(first, other, "another pair");
    let second = only(&world.message(&message(Channel::Whatsapp, CUSTOMER, NUMBER)));
    assert_eq!(first, second);
    assert_eq!(
        world.entry(&first).participants.len(),
        2,
        "the same two, with an address more each"
    );
}

#[test]
fn fact_3_one_conversation_holds_several_channels() {
    let rules = json!({
        "SMS": {"captureRules": both_ways(NUMBER)},
        "VOICE": {"captureRules": [{"from": "*", "to": NUMBER}]},
        "WHATSAPP": {"captureRules": both_ways("+15557654321")},
    });
    let mut world = World::new().with("c1", BY_PROFILE, rules);
    let id = only(&world.message(&sms(CUSTOMER, NUMBER)));
    let call = call(&[], &[(ParticipantType::Customer, 0)]);
    assert_eq!(only(&world.call(&call)), id);
    let prefixed = format!("whatsapp:{CUSTOMER}");
    let whatsapp = message(Channel::Whatsapp, &prefixed, "+15557654321");
    assert_eq!(
        only(&world.message(&whatsapp)),
        id,
        "another number of ours"
    );
    let entry = world.entry(&id);
    let channels = [Channel::Voice, Channel::Sms, Channel::Whatsapp];
    assert_eq!(entry.channels, channels.into());
    let addresses = &customer(entry).addresses;
    assert_eq!(addresses.len(), 3, "{addresses:?}");
    assert!(customer(entry).profile_id.is_some());
}

#[test]
fn addresses_of_one_person_are_one_conversation_by_profile() {
    let rules = json!({"SMS": {"captureRules": both_ways(NUMBER)}});
    let mut world = World::new().with("c1", BY_PROFILE, rules);
    let first = only(&world.message(&sms(CUSTOMER, NUMBER)));
    assert_ne!(only(&world.message(&sms("+15550002222", NUMBER))), first);
    let person = [CUSTOMER.into(), OTHER.into()];
    world.state.memory_mut().unite(&person).unwrap();
    assert_eq!(only(&world.message(&sms(OTHER, NUMBER))), first);
    let answer = sms(NUMBER, OTHER);
    assert_eq!(only(&world.message(&answer)), first, "and the way back");
    let entry = world.entry(&first);
    assert_eq!(entry.participants.len(), 2);
    let profile = customer(entry).profile_id.clone();
    assert_eq!(
        profile,
        world.state.memory_mut().profile("mem_store_1", CUSTOMER)
    );
}

#[test]
fn fact_9_a_dead_store_leaves_capture_working_and_profiles_null() {
    let rules = json!({
        "SMS": {
            "captureRules": both_ways(NUMBER),
            "statusTimeouts": {"inactive": 10, "closed": 60},
        },
    });
    let mut world = World::new();
    let more = json!({
        "channelSettings": rules,
        "memoryStoreId": "mem_store_dead_1",
        "memoryExtractionEnabled": true,
    });
    world.configure("c1", BY_PROFILE, more);
    let id = only(&world.message(&sms(CUSTOMER, NUMBER)));
    assert_eq!(customer(world.entry(&id)).profile_id, None);
    assert_eq!(
        only(&world.message(&sms(NUMBER, CUSTOMER))),
        id,
        "grouped by addresses"
    );
    assert_ne!(only(&world.message(&sms(OTHER, NUMBER))), id);
    world.pass(60);
    assert_eq!(world.status(&id), Status::Closed);
    // Two conversations, both transitions each.
    let expected = json!({"mem_store_dead_1": {"inactive": 0, "closed": 0, "notDone": 4}});
    assert_eq!(world.bill()["extractions"], expected);
}

#[test]
fn fact_11_whatsapp_with_and_without_prefix_is_one_conversation() {
    let rules = json!({"WHATSAPP": {"captureRules": both_ways(NUMBER)}});
    for grouping in [BY_CHANNEL, BY_ADDRESS, BY_PROFILE] {
        let mut world = World::new().with("c1", grouping, rules.clone());
        let id = only(&world.message(&message(Channel::Whatsapp, CUSTOMER, NUMBER)));
        let prefixed = [CUSTOMER, NUMBER].map(|address| format!("whatsapp:{address}"));
        let same = message(Channel::Whatsapp, &prefixed[0], &prefixed[1]);
        assert_eq!(only(&world.message(&same)), id, "{grouping}");
        assert_eq!(world.entry(&id).participants.len(), 2);
        let spellings = [CUSTOMER, &prefixed[0]].into();
        assert_eq!(authors(world.said(&id)), spellings, "as they came");
    }
}

#[test]
fn chat_comes_through_the_classic_bridge_with_its_sid() {
    let mut world = World::new();
    let bridge = json!({"conversationsV1Bridge": {"serviceId": "IS1"}});
    world.configure("c1", BY_ADDRESS, bridge);
    let chat = |sid: &str, service: &str| Message {
        channel_id: Some(sid.into()),
        service: Some(service.into()),
        customer: Some(End::From),
        ..message(Channel::Chat, "user123", "agent-1")
    };
    let id = only(&world.message(&chat("CH1", "IS1")));
    let entry = world.entry(&id);
    let sid = customer(entry).addresses[0].channel_id.as_deref();
    assert_eq!(sid, Some("CH1"));
    assert_eq!(entry.communications[0].channel_id.as_deref(), Some("CH1"));
    assert!(entry.channel_ids.contains("CH1"));
    assert_eq!(only(&world.message(&chat("CH2", "IS1"))), id);
    assert_eq!(customer(world.entry(&id)).addresses.len(), 2);
    let stranger = world.message(&chat("CH3", "IS2"));
    let misses = [Miss::NoBridge, Miss::OtherService].map(|miss| Reason::Rules { miss });
    assert_eq!(reasons(&stranger), misses.each_ref());
}

#[test]
fn fact_8_rules_of_two_configurations_put_one_message_into_two_conversations() {
    let rules = json!({"SMS": {"captureRules": both_ways(NUMBER)}});
    let wide = json!({"SMS": {"captureRules": [{"from": "*", "to": "*"}]}});
    let mut world = World::new()
        .with("c1", BY_CHANNEL, rules)
        .with("c2", BY_CHANNEL, wide);
    let report = world.message(&sms(CUSTOMER, NUMBER));
    assert!(report.unexpected_grouping);
    let ids: BTreeSet<_> = report.captured.iter().map(|c| &c.conversation_id).collect();
    assert_eq!(ids.len(), 2);
    let communications: BTreeSet<_> = report
        .captured
        .iter()
        .flat_map(|c| &c.communication_ids)
        .collect();
    assert_eq!(communications.len(), 2, "each in one conversation");
    assert_eq!(world.bill()["unexpectedGroupings"], 1);
    assert!(!world.message(&sms(CUSTOMER, OTHER)).unexpected_grouping);
}

#[test]
fn cannot_pick_up_configuration_changes_retroactively() {
    let old = json!({"SMS": {"captureRules": both_ways(NUMBER)}});
    let mut world = World::new().with("c1", BY_CHANNEL, old);
    let id = only(&world.message(&sms(CUSTOMER, NUMBER)));
    let mut settings = world
        .state
        .configurations()
        .current("c1")
        .unwrap()
        .settings
        .clone();
    settings.channel_settings = serde_json::from_value(json!({
        "SMS": {"statusTimeouts": {"closed": 1}, "captureRules": [{"from": NUMBER, "to": "*"}]},
    }))
    .unwrap();
    settings.intelligence_configuration_ids = vec!["intel_1".into()];
    world.apply(Command::Begin {
        operation: "op1".into(),
        request: Request::Configuration(ConfigurationChange::Replace {
            configuration: "c1".into(),
            settings,
            version: None,
        }),
        key: None,
    });
    world.pass(0);
    assert_eq!(
        world.state.configurations().current("c1").unwrap().version,
        2
    );
    assert_eq!(
        only(&world.message(&sms(CUSTOMER, NUMBER))),
        id,
        "the old rules took it"
    );
    assert!(
        world.message(&sms(OTHER, NUMBER)).captured.is_empty(),
        "the new ones do not"
    );
    world.pass(60);
    assert_eq!(
        world.status(&id),
        Status::Active,
        "the old one has no timeouts"
    );
    assert_eq!(world.bill()["operators"], json!({}));

    world.set(&id, Status::Closed);
    assert!(world.message(&sms(CUSTOMER, NUMBER)).captured.is_empty());
    let new = only(&world.message(&sms(NUMBER, CUSTOMER)));
    world.pass(1);
    assert_eq!(world.status(&new), Status::Closed);
    assert_eq!(world.bill()["operators"]["intel_1"]["communications"], 1);
}

#[test]
fn traffic_finds_conversations_of_the_api() {
    let rules = json!({"SMS": {"captureRules": both_ways(NUMBER)}});
    let mut world = World::new().with("c1", BY_PROFILE, rules);
    world.open("v1", "c1", (Channel::Sms, CUSTOMER));
    let report = world.message(&sms(CUSTOMER, NUMBER));
    assert_eq!(&*only(&report), "v1");
    assert!(!report.captured[0].opened);
    let kinds: Vec<_> = world
        .entry("v1")
        .participants
        .iter()
        .map(|p| p.kind)
        .collect();
    assert_eq!(kinds, [ParticipantType::Customer, ParticipantType::Agent]);
}
