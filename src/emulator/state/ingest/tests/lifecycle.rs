//! ACTIVE, INACTIVE, CLOSED, by timeouts and by hand.

use super::*;

fn timed(inactive: u32, closed: u32) -> Value {
    json!({"SMS": {
        "captureRules": both_ways(NUMBER),
        "statusTimeouts": {"inactive": inactive, "closed": closed},
    }})
}

fn statuses(world: &World, id: &str) -> Vec<String> {
    let own = world
        .announced
        .iter()
        .filter(|event| event["data"]["id"] == id);
    own.map(|event| format!("{} {}", event["timestamp"], event["data"]["status"]).replace('"', ""))
        .collect()
}

#[test]
fn a_conversation_goes_quiet_wakes_and_closes_each_on_its_minute() {
    let mut world = World::new().with("c1", BY_CHANNEL, timed(10, 60));
    let id = only(&world.message(&sms(CUSTOMER, NUMBER)));
    world.pass(9);
    assert_eq!(world.status(&id), Status::Active);
    world.pass(1);
    assert_eq!(world.status(&id), Status::Inactive);
    world.pass(20);
    assert_eq!(only(&world.message(&sms(NUMBER, CUSTOMER))), id);
    assert_eq!(world.status(&id), Status::Active);
    // A long time at once: each change still has its own time.
    world.pass(10_000);
    assert_eq!(world.status(&id), Status::Closed);
    let minute = |minute: i64, status: &str| format!("{} {status}", at(minute));
    assert_eq!(
        statuses(&world, &id),
        [
            minute(0, "ACTIVE"),
            minute(10, "INACTIVE"),
            minute(30, "ACTIVE"),
            minute(40, "INACTIVE"),
            minute(90, "CLOSED"),
        ]
    );
    let new = world.message(&sms(CUSTOMER, NUMBER));
    assert_ne!(only(&new), id, "later traffic opens a new one");
    assert!(new.captured[0].opened);
    assert_eq!(world.said(&id).len(), 2);
}

#[test]
fn without_timeouts_nothing_ever_closes() {
    for channel in [json!({}), json!({"statusTimeouts": null})] {
        let mut settings = json!({"SMS": channel});
        settings["SMS"]["captureRules"] = both_ways(NUMBER);
        let mut world = World::new().with("c1", BY_CHANNEL, settings);
        let id = only(&world.message(&sms(CUSTOMER, NUMBER)));
        assert_eq!(world.state.due(), None);
        world.pass(1_000_000);
        assert_eq!(world.status(&id), Status::Active);
    }
}

#[test]
fn the_longest_living_channel_governs() {
    let mut settings = timed(10, 60);
    settings["VOICE"] = json!({
        "captureRules": [{"from": "*", "to": NUMBER}],
        "statusTimeouts": {"closed": 1},
    });
    let mut world = World::new().with("c1", BY_PROFILE, settings);
    let id = only(&world.message(&sms(CUSTOMER, NUMBER)));
    world.pass(5);
    world.call(&call(&[], &[(ParticipantType::Customer, 0)]));
    world.pass(1);
    assert_eq!(
        world.status(&id),
        Status::Active,
        "the call's close is a proposal"
    );
    world.pass(53);
    assert_ne!(world.status(&id), Status::Closed);
    world.pass(1);
    assert_eq!(
        world.status(&id),
        Status::Closed,
        "an hour after the message"
    );
}

#[test]
fn a_close_by_hand_is_at_once_and_final() {
    let mut world = World::new().with("c1", BY_CHANNEL, timed(10, 60));
    let id = only(&world.message(&sms(CUSTOMER, NUMBER)));
    world.set(&id, Status::Closed);
    assert_eq!(world.state.due(), None);
    let before = format!("{:?}", world.entry(&id));
    world.pass(100);
    let new = only(&world.message(&sms(CUSTOMER, NUMBER)));
    assert_ne!(new, id);
    assert_eq!(format!("{:?}", world.entry(&id)), before);
}

#[test]
fn conversations_due_together_change_in_the_order_of_creation() {
    let mut world = World::new().with("c1", BY_CHANNEL, timed(10, 60));
    let customers: Vec<_> = (0..20).map(|n| format!("+1555000{n:04}")).collect();
    let ids: Vec<_> = customers
        .iter()
        .map(|customer| only(&world.message(&sms(customer, NUMBER))))
        .collect();
    world.announced.clear();
    world.pass(10);
    let changed = world
        .announced
        .iter()
        .map(|event| event["data"]["id"].clone());
    let expected: Vec<Value> = ids.iter().map(|id| json!(**id)).collect();
    assert_eq!(changed.collect::<Vec<_>>(), expected);
    assert_eq!(world.state.due(), Some(at(60)));
}

#[test]
fn a_conversation_of_the_api_closes_by_its_participants_channel() {
    let mut world = World::new().with("c1", BY_CHANNEL, timed(10, 60));
    world.pass(5);
    world.open("v1", "c1", (Channel::Sms, CUSTOMER));
    assert_eq!(world.state.due(), Some(at(15)));
    world.pass(60);
    assert_eq!(world.status("v1"), Status::Closed);
}

#[test]
fn fact_10_cannot_extract_or_run_end_operators_while_active() {
    let mut world = World::new();
    let more = json!({
        "channelSettings": timed(10, 60),
        "memoryExtractionEnabled": true,
        "intelligenceConfigurationIds": ["intel_1"],
    });
    world.configure("c1", BY_CHANNEL, more);
    world.message(&sms(CUSTOMER, NUMBER));
    world.pass(9);
    assert_eq!(world.bill()["extractions"], json!({}));
    world.pass(1);
    let counted = |world: &World| world.bill()["extractions"]["mem_store_1"].clone();
    assert_eq!(
        counted(&world),
        json!({"inactive": 1, "closed": 0, "notDone": 0})
    );
    world.pass(50);
    assert_eq!(
        counted(&world),
        json!({"inactive": 1, "closed": 1, "notDone": 0})
    );
    let runs = json!({"communications": 1, "inactive": 1, "closed": 1});
    assert_eq!(world.bill()["operators"]["intel_1"], runs);
}

#[test]
fn extraction_is_opt_in() {
    let mut world = World::new().with("c1", BY_CHANNEL, timed(10, 60));
    world.message(&sms(CUSTOMER, NUMBER));
    world.pass(60);
    assert_eq!(world.bill()["extractions"], json!({}));
}
