//! Decisions without a socket: the same questions in the same order are answered alike.

use proptest::prelude::*;

use super::*;

fn script(rule: &str) -> Script {
    Script::parse(rule).unwrap_or_else(|error| panic!("{rule}: {error}"))
}

fn at(time: &str) -> Timestamp {
    time.parse().unwrap()
}

fn asked(path: &str) -> Asked<'_> {
    Asked {
        method: "GET",
        path,
        now: at("2026-11-22T12:00:00Z"),
    }
}

/// Which of twelve requests to one path the rule falls on.
fn fallen(when: &str) -> Vec<u64> {
    let script = script(&format!(
        "rest: [{{path: /v2/x, when: {when}, fault: reset}}]"
    ));
    let mut counters = Counters::new(&script);
    (1..=12)
        .filter(|_| rest(&script, 7, &mut counters, asked("/v2/x")).is_some())
        .collect()
}

#[test]
fn a_rule_falls_where_all_that_it_says_holds() {
    for (when, falls) in [
        ("{}", (1..=12).collect()),
        ("{nth: [2, 5]}", vec![2, 5]),
        ("{every: 4}", vec![4, 8, 12]),
        ("{every: 4, times: 2}", vec![4, 8]),
        ("{every: 2, nth: [3, 4]}", vec![4]),
        ("{probability: 0}", vec![]),
        ("{probability: 1}", (1..=12).collect()),
        ("{from: '2026-11-22T12:00:01Z'}", vec![]),
        ("{until: '2026-11-22T12:00:00Z'}", vec![]),
        (
            "{from: '2026-11-22T12:00:00Z', until: '2026-11-22T12:00:01Z', times: 1}",
            vec![1],
        ),
    ] {
        assert_eq!(fallen(when), falls, "{when}");
    }
}

#[test]
fn the_first_rule_that_falls_decides_and_those_behind_do_not_count() {
    let script = script(
        "rest:\n  - {method: POST, path: /v2/**, fault: reset}\n  \
         - {path: /v2/x, when: {every: 2}, fault: {html: {code: 502}}}\n  \
         - {path: /v2/**, afterEffect: true, fault: reset}\n",
    );
    let mut counters = Counters::new(&script);
    let mut faults = Vec::new();
    for _ in 0..4 {
        let (fault, after_effect) = rest(&script, 7, &mut counters, asked("/v2/x")).unwrap();
        faults.push((matches!(fault, RestFault::Reset), after_effect));
    }
    assert_eq!(
        faults,
        [(true, true), (false, false), (true, true), (false, false)]
    );
    let counts = counters.rest.iter().map(|it| (it.matched, it.fired));
    assert_eq!(counts.collect::<Vec<_>>(), [(0, 0), (4, 2), (2, 2)]);
}

#[test]
fn paths_can_be_counted_one_by_one() {
    let script = script("rest: [{path: '/v2/*', count: path, when: {nth: [2]}, fault: reset}]");
    let mut counters = Counters::new(&script);
    let order = ["/v2/a", "/v2/b", "/v2/b", "/v2/a", "/v2/a"];
    let fallen = order.map(|path| rest(&script, 7, &mut counters, asked(path)).is_some());
    assert_eq!(fallen, [false, false, true, true, false]);
    for other in 0..MAX_COUNTED_PATHS + 10 {
        rest(&script, 7, &mut counters, asked(&format!("/v2/{other}")));
    }
    assert!(counters.rest[0].paths.len() <= MAX_COUNTED_PATHS + 1);
}

#[test]
fn callbacks_and_conversations_are_chosen_by_what_they_are() {
    let script = script(
        "callbacks: [{eventType: CONVERSATION_UPDATED, close: true, conversation: {every: 2}, fault: lost}]\n\
         conversations: [{conversation: {nth: [3]}, fault: neverCloses}]",
    );
    let mut counters = Counters::new(&script);
    let mut falls = |event_type, close, number| {
        let told = Told {
            event_type,
            close,
            conversation: number,
            now: at("2026-11-22T12:00:00Z"),
        };
        callback(&script, 7, &mut counters, told).is_some()
    };
    assert!(falls("CONVERSATION_UPDATED", true, 2));
    assert!(!falls("CONVERSATION_UPDATED", true, 3));
    assert!(!falls("CONVERSATION_UPDATED", false, 2));
    assert!(!falls("CONVERSATION_CREATED", true, 2));
    let named = (1..6).filter(|number| conversation(&script, 7, *number).is_some());
    assert_eq!(named.collect::<Vec<_>>(), [3]);
}

proptest! {
    /// Counted by path, what a path gets does not depend on what is asked of others in between.
    #[test]
    fn a_path_of_its_own_is_decided_alike_in_any_company(
        seed in any::<u64>(),
        company in prop::collection::vec(0_u8..4, 0..60),
    ) {
        let script = script(
            "rest: [{path: '/v2/*', count: path, when: {probability: 0.5}, fault: reset}]",
        );
        let paths = ["/v2/a", "/v2/b", "/v2/c", "/v2/d"];
        let mut counters = Counters::new(&script);
        let mut together = vec![Vec::new(); paths.len()];
        for path in &company {
            let path = usize::from(*path);
            let fault = rest(&script, seed, &mut counters, asked(paths[path]));
            together[path].push(fault.is_some());
        }
        for (path, together) in paths.iter().zip(together) {
            let mut counters = Counters::new(&script);
            let alone: Vec<bool> = together
                .iter()
                .map(|_| rest(&script, seed, &mut counters, asked(path)).is_some())
                .collect();
            prop_assert_eq!(alone, together);
        }
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn a_share_is_met(seed in any::<u64>()) {
        let script = script("rest: [{path: /v2/x, when: {probability: 0.3}, fault: reset}]");
        let mut counters = Counters::new(&script);
        let fallen = (0..2_000).filter(|_| {
            rest(&script, seed, &mut counters, asked("/v2/x")).is_some()
        });
        let fallen = fallen.count();
        prop_assert!((450..750).contains(&fallen), "{}", fallen);
    }
}
