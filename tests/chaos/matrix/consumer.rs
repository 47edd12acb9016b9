//! The workers between Kafka and the lake.

use super::secs;
use crate::plan::{
    Between, Case, Claim, Load, Medium, Offsets, Place, Plan, Row, STEADY, Stand, Step, Then,
    Toxic, Under, WHOLE, Who, times,
};
use crate::rig::NAMELESS;

/// Workers that join without a name, so that a rebalance waits for the session of one that is gone.
const STRANGERS: Stand = Stand {
    worker_flags: &[NAMELESS],
    ..WHOLE
};

pub(super) static ROWS: &[Row] = &[
    Row {
        id: "C1",
        place: "worker",
        fault: "kill -9 of one of two while both commit, half of them right after a commit",
        must: "once and whole, readable by others at every moment; a kill leaves the files of its commits at most, which are swept",
        plan: Plan::Run(Case {
            stand: WHOLE,
            load: STEADY,
            before: &[],
            steps: &[Step::Kill(Who::Worker, times(30, 300), (20, 1_200))],
            claims: &[Claim::Orphans, Claim::Lives],
        }),
    },
    Row {
        id: "C2",
        place: "worker",
        fault: "killed at exactly its n-th mkdir, create, write, fsync, link, rename, unlink of the lake, in lives that commit",
        must: "once and whole; a kill leaves the files of its commits at most, which are swept",
        plan: Plan::Run(Case {
            stand: Stand {
                worker_under: Under::Preload,
                // A commit as soon as there is something, so that a life of several is short.
                worker_flags: &["--flush-interval", "40ms"],
                ..WHOLE
            },
            load: Load { rate: 60, ..STEADY },
            before: &[],
            steps: &[
                Step::Sent(50, secs(20)),
                Step::KillEach(Who::Worker, times(3, 20)),
            ],
            claims: &[Claim::Orphans],
        }),
    },
    Row {
        id: "C3",
        place: "worker",
        fault: "power cut during commits",
        must: "the copy is readable without a gap, has every position told to Kafka, and becomes whole",
        plan: Plan::Run(Case {
            stand: Stand {
                lake: Medium::Image(128),
                ..WHOLE
            },
            load: STEADY,
            before: &[],
            steps: &[
                Step::Sent(300, secs(30)),
                Step::PowerCut(Place::Lake, times(3, 20), (300, 1_500)),
            ],
            claims: &[],
        }),
    },
    Row {
        id: "C4",
        place: "worker",
        fault: "four leave and come back one after the other, again and again",
        must: "once and whole; it goes on",
        plan: Plan::Run(Case {
            stand: Stand {
                workers: 4,
                ..STRANGERS
            },
            load: STEADY,
            before: &[],
            steps: &[Step::Terminate(Who::Worker, times(3, 50))],
            claims: &[Claim::Lives],
        }),
    },
    Row {
        id: "C5",
        place: "worker",
        fault: "frozen right before a commit, its files written; another takes over and commits, then on",
        must: "the late commit is refused",
        plan: Plan::Run(Case {
            stand: Stand {
                worker_under: Under::Preload,
                ..STRANGERS
            },
            load: STEADY,
            before: &[],
            steps: &[
                Step::Sent(100, secs(30)),
                Step::AtCommit(Then::Freeze, times(2, 10)),
                Step::Freeze(Who::Worker, secs(12)),
            ],
            claims: &[Claim::Lives],
        }),
    },
    Row {
        id: "C6",
        place: "worker",
        fault: "two writers of one commit protocol, step-locked in every interleaving, one of them reloading",
        must: "no row twice, the second owner is refused by the positions",
        plan: Plan::Tested(&["lake::tests::interleavings", "lake::tests::commits"]),
    },
    Row {
        id: "C7",
        place: "worker",
        fault: "the API answers nothing for 15 s, two and a half sessions",
        must: "stays in its group, redelivers nothing, goes on by itself",
        plan: Plan::Run(Case {
            stand: Stand {
                proxied: Some(Between::WorkersAndApi),
                ..WHOLE
            },
            load: STEADY,
            before: &[],
            steps: &[
                Step::Sent(100, secs(20)),
                Step::Proxy(Toxic::BlackHole),
                Step::During(secs(15)),
                Step::Proxy(Toxic::Pass),
            ],
            claims: &[Claim::Lives],
        }),
    },
    Row {
        id: "C8",
        place: "worker",
        fault: "the groups' offsets in Kafka are deleted, set to the start, set to the end",
        must: "goes on from the lake's positions",
        plan: Plan::Run(Case {
            stand: WHOLE,
            load: STEADY,
            before: &[],
            steps: &[
                Step::Sent(200, secs(30)),
                Step::CaughtUp,
                Step::Gone(Who::Worker),
                Step::Offsets(Offsets::Deleted),
                Step::Start(Who::Worker),
                Step::Sent(100, secs(30)),
                Step::Gone(Who::Worker),
                Step::Offsets(Offsets::AtEnd),
                Step::Start(Who::Worker),
                Step::Sent(100, secs(30)),
                Step::Gone(Who::Worker),
                Step::Offsets(Offsets::AtStart),
                Step::Start(Who::Worker),
                Step::Sent(100, secs(30)),
            ],
            claims: &[Claim::Lives],
        }),
    },
    Row {
        id: "C9",
        place: "worker",
        fault: "an empty lake, and a group whose offsets are at the end",
        must: "starts at the earliest record",
        plan: Plan::Run(Case {
            stand: WHOLE,
            load: STEADY,
            before: &[],
            steps: &[
                Step::Sent(300, secs(30)),
                Step::Gone(Who::Worker),
                Step::Offsets(Offsets::AtEnd),
                Step::Edit(crate::plan::Edit::Empty),
                Step::Start(Who::Worker),
                Step::Sent(100, secs(30)),
            ],
            claims: &[Claim::Lives],
        }),
    },
    Row {
        id: "C10",
        place: "worker",
        fault: "retention took records that the lake lacks",
        must: "stops with the exact missing range, skips nothing",
        plan: Plan::Run(Case {
            stand: WHOLE,
            load: STEADY,
            before: &[],
            steps: &[
                Step::Sent(300, secs(30)),
                Step::CaughtUp,
                Step::Gone(Who::Worker),
                Step::Quiet,
                Step::Retention,
                Step::Start(Who::Worker),
                Step::Ended(Who::Worker, secs(60)),
            ],
            claims: &[
                Claim::Exits(Who::Worker, 1),
                Claim::Says("were deleted unread"),
            ],
        }),
    },
    Row {
        id: "C11",
        place: "worker",
        fault: "records that are not JSON, have no ids, are half a megabyte of brackets",
        must: "one dead letter each; the neighbours are rows",
        plan: Plan::Run(Case {
            stand: WHOLE,
            load: STEADY,
            before: &[],
            steps: &[
                Step::Sent(100, secs(20)),
                Step::Poison(9),
                Step::Sent(100, secs(20)),
            ],
            claims: &[Claim::DeadLetters(9), Claim::Lives],
        }),
    },
    Row {
        id: "C12",
        place: "worker",
        fault: "dead letters cannot be written for 6 s: their topic is not there",
        must: "the offset is held; the letters come, once, when they can",
        plan: Plan::Run(Case {
            stand: WHOLE,
            load: STEADY,
            before: &[],
            steps: &[
                Step::Sent(100, secs(20)),
                Step::DropDeadLetters,
                Step::Poison(3),
                Step::During(secs(6)),
                Step::MakeDeadLetters,
            ],
            claims: &[Claim::DeadLetters(3), Claim::Lives],
        }),
    },
    Row {
        id: "C13",
        place: "worker",
        fault: "a conversation of 50,000 communications",
        must: "whole, in bounded memory",
        plan: Plan::Integration(&["faults::a_conversation_of_50_000"]),
    },
    Row {
        id: "C14",
        place: "worker",
        fault: "killed right before its first commit of `events`, its second and so on, their files written",
        must: "once and whole; a kill leaves the files of its commits at most, which are swept",
        plan: Plan::Run(Case {
            stand: Stand {
                worker_under: Under::Preload,
                ..WHOLE
            },
            load: STEADY,
            before: &[],
            steps: &[Step::AtCommit(Then::Kill, times(8, 20))],
            claims: &[Claim::Orphans, Claim::Lives],
        }),
    },
    Row {
        id: "C15",
        place: "worker",
        fault: "twelve for six partitions: each leaves and comes back, then one after the other is killed",
        must: "once and whole; it goes on",
        plan: Plan::Run(Case {
            stand: Stand {
                workers: 12,
                ..WHOLE
            },
            load: STEADY,
            before: &[],
            steps: &[
                Step::Sent(100, secs(30)),
                Step::Terminate(Who::Worker, times(1, 3)),
                Step::Kill(Who::Worker, times(12, 36), (20, 800)),
            ],
            claims: &[Claim::Orphans, Claim::Lives],
        }),
    },
];
