//! The lake's files and log.

use super::api::RECONCILE;
use super::secs;
use crate::plan::{
    Case, Claim, Edit, Medium, Place, Plan, Row, STEADY, Stand, Step, WHOLE, Who, times,
};

const REPAIR: Step = Step::Command(&[
    "verify",
    "--lake",
    "{lake}",
    "--api-url",
    "{api}",
    "--kafka",
    "{kafka}",
    "--topic",
    "{topic}",
    "--repair",
]);

pub(super) static ROWS: &[Row] = &[
    Row {
        id: "S1",
        place: "storage",
        fault: "the answer to a commit is lost, repeated, or never sent",
        must: "found in the log, never committed twice",
        plan: Plan::Tested(&[
            "lake::tests::faults::a_lost_answer",
            "lake::tests::interleavings",
        ]),
    },
    Row {
        id: "S2",
        place: "storage",
        fault: "disk full for 6 s, then room",
        must: "no version without its files; goes on, or ends and is started again",
        plan: Plan::Run(Case {
            stand: Stand {
                lake: Medium::Memory(96),
                ..WHOLE
            },
            load: STEADY,
            before: &[],
            steps: &[
                Step::Sent(200, secs(30)),
                Step::Fill(Place::Lake),
                Step::During(secs(6)),
                Step::Free(Place::Lake),
                Step::During(secs(2)),
                Step::Start(Who::Worker),
                Step::Sent(100, secs(30)),
            ],
            claims: &[],
        }),
    },
    Row {
        id: "S3",
        place: "storage",
        fault: "two workers, beside them delta-rs compacting their tables, a reconciliation and a vacuum, again and again",
        must: "once and whole; conflicts are resolved, nothing that is retained is deleted",
        plan: Plan::Run(Case {
            stand: WHOLE,
            load: STEADY,
            before: &[],
            steps: &[
                Step::Sent(200, secs(30)),
                Step::Edit(Edit::Compact),
                RECONCILE,
                Step::Edit(Edit::Compact),
                Step::Sweep(times(2, 20), &["--retain", "1h"]),
                RECONCILE,
                Step::Edit(Edit::Compact),
                Step::Sweep(times(2, 20), &["--retain", "1h"]),
                Step::Sent(100, secs(30)),
            ],
            claims: &[Claim::Swept, Claim::Lives],
        }),
    },
    Row {
        id: "S4",
        place: "storage",
        fault: "an empty or torn pointer to the checkpoint, entries below it cleaned up",
        must: "opened by listing",
        plan: Plan::Tested(&["lake::tests::faults::hundreds_of_commits"]),
    },
    Row {
        id: "S5",
        place: "storage",
        fault: "stray temporary files of a killed writer in data and log",
        must: "ignored, by us and by others",
        plan: Plan::Run(Case {
            stand: WHOLE,
            load: STEADY,
            before: &[],
            steps: &[
                Step::Sent(100, secs(30)),
                Step::Edit(Edit::StrayFiles),
                Step::Gone(Who::Worker),
                Step::Start(Who::Worker),
                Step::Sent(100, secs(30)),
            ],
            claims: &[Claim::Lives],
        }),
    },
    Row {
        id: "S6",
        place: "storage",
        fault: "a data file is deleted, another cut in half",
        must: "`verify` names them, `verify --repair` has their conversations written anew",
        plan: Plan::Run(Case {
            stand: WHOLE,
            load: STEADY,
            before: &[],
            steps: &[
                Step::Quiet,
                Step::CaughtUp,
                Step::Edit(Edit::DeleteData),
                Step::Edit(Edit::CutData),
                REPAIR,
            ],
            claims: &[Claim::Lives],
        }),
    },
    Row {
        id: "S7",
        place: "storage",
        fault: "vacuum during writes, on a host eight days ahead",
        must: "no file is deleted that is live, about to be, or retained; what was abandoned is",
        plan: Plan::Run(Case {
            stand: WHOLE,
            load: STEADY,
            before: &[],
            steps: &[
                Step::Sent(200, secs(30)),
                Step::CaughtUp,
                Step::Edit(Edit::Abandoned),
                Step::Clock(8 * 86_400),
                Step::Sweep(times(6, 30), &[]),
                Step::Edit(Edit::Compact),
                Step::Edit(Edit::Abandoned),
                Step::Sweep(times(6, 30), &["--retain", "1h"]),
            ],
            claims: &[Claim::Swept, Claim::Lives],
        }),
    },
    Row {
        id: "S8",
        place: "storage",
        fault: "a commit every 100 ms",
        must: "once and whole; others keep reading",
        plan: Plan::Run(Case {
            stand: Stand {
                worker_flags: &["--flush-interval", "100ms"],
                ..WHOLE
            },
            load: STEADY,
            before: &[],
            steps: &[Step::Sent(600, secs(30))],
            claims: &[Claim::Lives],
        }),
    },
    Row {
        id: "S9",
        place: "storage",
        fault: "entries below the newest checkpoint are deleted, the table is opened anew",
        must: "rows and positions are kept; a writer that slept through it is refused the gap",
        plan: Plan::Tested(&[
            "lake::tests::faults::hundreds_of_commits",
            "lake::tests::faults::a_commit_on_a_version",
        ]),
    },
];
