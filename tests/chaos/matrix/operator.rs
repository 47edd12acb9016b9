//! Clocks, and people.

use super::api::RECONCILE;
use super::secs;
use crate::plan::{
    Case, Claim, Edit, Load, Material, Medium, Offsets, Plan, Row, STEADY, Stand, Step, Then,
    Under, WHOLE, Who, times,
};

/// What may happen at any time, and to anyone.
const DRAWN: &[&[Step]] = &[
    &[Step::Kill(Who::Receiver, times(1, 1), (20, 500))],
    &[Step::Kill(Who::Worker, times(1, 1), (20, 500))],
    &[Step::Terminate(Who::Receiver, times(1, 1))],
    &[Step::Terminate(Who::Worker, times(1, 1))],
    &[Step::AtCommit(Then::Kill, times(1, 1))],
    &[Step::Freeze(Who::Receiver, secs(2))],
    &[Step::Freeze(Who::Worker, secs(8))],
    &[Step::Freeze(Who::Kafka, secs(4))],
    &[Step::Down(Who::Kafka, secs(3))],
    &[
        Step::Sync(EIO, 0),
        Step::During(secs(2)),
        Step::Sync(0, 0),
        Step::During(secs(1)),
    ],
    &[Step::Sync(0, 300), Step::During(secs(3)), Step::Sync(0, 0)],
    &[Step::Clock(DAY), Step::During(secs(3)), Step::Clock(0)],
    &[
        Step::Api(Some("server-errors")),
        Step::During(secs(5)),
        Step::Api(None),
    ],
    &[Step::Edit(Edit::Compact)],
];

const EIO: i32 = 5;
const DAY: i64 = 86_400;
const HOUR: i64 = 3_600;

pub(super) static ROWS: &[Row] = &[
    Row {
        id: "W1",
        place: "clock",
        fault: "a day ahead, then an hour back, then right again",
        must: "once and whole; no storm of commits",
        plan: Plan::Run(Case {
            stand: Stand {
                receiver_under: Under::Preload,
                worker_under: Under::Preload,
                ..WHOLE
            },
            load: STEADY,
            before: &[],
            steps: &[
                Step::Sent(100, secs(30)),
                Step::Clock(DAY),
                Step::Sent(100, secs(30)),
                Step::Clock(-HOUR),
                Step::Sent(100, secs(30)),
                Step::Clock(0),
            ],
            claims: &[Claim::Lives],
        }),
    },
    Row {
        id: "W2",
        place: "clock",
        fault: "events dated 1970 and 9999",
        must: "kept; they make no folders of their own",
        plan: Plan::Run(Case {
            stand: WHOLE,
            load: STEADY,
            before: &[],
            steps: &[
                Step::Sent(50, secs(20)),
                Step::OddTimes(20),
                Step::Sent(50, secs(20)),
            ],
            claims: &[Claim::Days(2), Claim::Lives],
        }),
    },
    Row {
        id: "O1",
        place: "operator",
        fault: "the signing key is rotated: old, both, new alone",
        must: "no good callback is forbidden while both are valid; the old key is afterwards",
        plan: Plan::Run(Case {
            stand: WHOLE,
            load: STEADY,
            before: &[],
            steps: &[
                Step::Sent(50, secs(20)),
                Step::Keys("sha1:new,sha1:{old}"),
                Step::Sent(100, secs(20)),
                Step::NoneForbidden,
                Step::Keys("sha1:new"),
                Step::Forbidden(secs(20)),
                Step::Keys("sha1:new,sha1:{old}"),
            ],
            claims: &[],
        }),
    },
    Row {
        id: "O2",
        place: "operator",
        fault: "a spool of an older release, a table of an older one, one that is newer than this",
        must: "the older are read, the newer are refused",
        plan: Plan::Tested(&["spool::", "lake::tests::opening"]),
    },
    Row {
        id: "O3",
        place: "operator",
        fault: "dead letters and quarantine replayed, groups set back to the start, everything reconciled",
        must: "no row is added",
        plan: Plan::Run(Case {
            stand: WHOLE,
            load: STEADY,
            before: &[],
            steps: &[
                Step::Sent(50, secs(20)),
                Step::Poison(3),
                Step::Quiet,
                Step::CaughtUp,
                Step::Gone(Who::Worker),
                Step::Offsets(Offsets::AtStart),
                Step::Start(Who::Worker),
                Step::Command(&["replay", "--kafka", "{kafka}", "--topic", "{topic}"]),
                Step::Command(&[
                    "replay",
                    "--from",
                    "quarantine",
                    "--kafka",
                    "{kafka}",
                    "--topic",
                    "{topic}",
                ]),
                RECONCILE,
                Step::CaughtUp,
            ],
            claims: &[Claim::DeadLetters(3), Claim::Lives],
        }),
    },
    Row {
        id: "O4",
        place: "operator",
        fault: "no close is ever announced",
        must: "`reconcile` finds every one, and the lake has it",
        plan: Plan::Run(Case {
            stand: Stand {
                material: Material::Unclosed,
                ..WHOLE
            },
            load: Load {
                rate: 1_000,
                ..STEADY
            },
            before: &[],
            steps: &[Step::Quiet, RECONCILE],
            claims: &[Claim::DeadLetters(0), Claim::Lives],
        }),
    },
    Row {
        id: "O5",
        place: "all",
        fault: "faults of all kinds, drawn one after the other: five minutes in a release run",
        must: "everything; memory and descriptors stay bounded",
        plan: Plan::Run(Case {
            stand: Stand {
                spool: Some(Medium::Folder),
                receiver_under: Under::Preload,
                worker_under: Under::Preload,
                ..WHOLE
            },
            load: STEADY,
            before: &[],
            steps: &[Step::Drawn(DRAWN, times(30, 300))],
            claims: &[],
        }),
    },
];
