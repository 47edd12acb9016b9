//! The API that is asked for conversations.

use super::secs;
use crate::plan::{Between, Case, Claim, Plan, Row, STEADY, Stand, Step, Toxic, WHOLE, Who};

/// What heals whatever was set aside or left unfinished, once the API answers as it should.
const REPLAY: Step = Step::Command(&["replay", "--kafka", "{kafka}", "--topic", "{topic}"]);
pub(super) const RECONCILE: Step = Step::Command(&[
    "reconcile",
    "--kafka",
    "{kafka}",
    "--topic",
    "{topic}",
    "--lake",
    "{lake}",
    "--api-url",
    "{api}",
    "--grace",
    "0s",
    "--ops-listen",
    "{ops}",
]);

/// A row whose answers are spoiled by a schedule for as long as the callbacks come, and then no more.
macro_rules! spoiled {
    ($id:literal, $fault:literal, $must:literal, [$($schedule:literal),+]) => {
        Row {
            id: $id,
            place: "API",
            fault: $fault,
            must: $must,
            plan: Plan::Run(Case {
                stand: WHOLE,
                load: STEADY,
                before: &[],
                steps: &[
                    $(Step::Api(Some($schedule)), Step::Sent(250, secs(30)), Step::During(secs(2)),)+
                    Step::Quiet,
                    Step::During(secs(8)),
                    Step::Api(None),
                    REPLAY,
                    RECONCILE,
                ],
                claims: &[Claim::Lives],
            }),
        }
    };
}

pub(super) static ROWS: &[Row] = &[
    spoiled!(
        "A1",
        "429 without Retry-After, with seconds, with dates past and future, with nonsense",
        "obeyed within the budget; whole",
        ["throttled"]
    ),
    spoiled!(
        "A2",
        "500, 503, resets, hangs, cut and HTML answers, one after the other",
        "tried again within bounds; whole, or a dead letter that replays whole",
        ["server-errors", "reset", "hanging", "truncated", "html"]
    ),
    spoiled!(
        "A3",
        "lists that leave out author, content, channel, recipients and times",
        "fetched one by one; nothing is UNKNOWN that need not be",
        ["partial"]
    ),
    spoiled!(
        "A4",
        "pages that skip, repeat and loop",
        "never a silent short read; no row twice",
        ["skipped-pages", "duplicated-pages", "looping-pages"]
    ),
    spoiled!(
        "A5",
        "a close that the API shows late, a replica that lags",
        "read again, or marked and made whole later",
        ["late-closes", "stale"]
    ),
    Row {
        id: "A6",
        place: "API",
        fault: "401 for everything",
        must: "the worker ends and says so; nothing is set aside; whole once it may again",
        plan: Plan::Run(Case {
            stand: WHOLE,
            load: STEADY,
            before: &[],
            steps: &[
                Step::Sent(100, secs(20)),
                Step::Api(Some("unauthorized")),
                Step::Quiet,
                Step::Ended(Who::Worker, secs(60)),
                Step::Api(None),
                Step::Start(Who::Worker),
            ],
            claims: &[Claim::Exits(Who::Worker, 1), Claim::DeadLetters(0)],
        }),
    },
    Row {
        id: "A7",
        place: "API",
        fault: "away: connections refused for 20 s",
        must: "the enricher waits, the archive goes on; everything comes when it is back",
        plan: Plan::Run(Case {
            stand: Stand {
                proxied: Some(Between::WorkersAndApi),
                ..WHOLE
            },
            load: STEADY,
            before: &[],
            steps: &[
                Step::Sent(100, secs(20)),
                Step::Proxy(Toxic::Refuse),
                Step::During(secs(20)),
                Step::Proxy(Toxic::Pass),
            ],
            claims: &[Claim::DeadLetters(0), Claim::Lives],
        }),
    },
    spoiled!(
        "A8",
        "values of other JSON types, then a little of everything at once",
        "tried again within bounds; whole, or a dead letter that replays whole",
        ["wrong-types", "weather"]
    ),
    Row {
        id: "A9",
        place: "API",
        fault: "conversations that change between two pages: everything read, and changed, from the second answer on",
        must: "whole; a row says what either answer did. Times of change are not compared: they are the fault's, and not \
               in the truth, which no fault changes",
        plan: Plan::Run(Case {
            stand: WHOLE,
            load: STEADY,
            before: &[Step::Api(Some("changed-between-pages"))],
            steps: &[
                Step::Sent(250, secs(30)),
                Step::Quiet,
                Step::CaughtUp,
                Step::Api(None),
                RECONCILE,
            ],
            claims: &[
                Claim::Except(&["updated_at"]),
                Claim::DeadLetters(0),
                Claim::Lives,
            ],
        }),
    },
];
