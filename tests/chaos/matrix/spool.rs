//! The receiver's disk, while Kafka is away.

use super::{PROMISED, secs};
use crate::plan::{
    Case, Claim, Load, Medium, Place, Plan, Row, SPOOLED, STEADY, Stand, Step, Under, Who, times,
};

/// `errno` of a failing disk.
const EIO: i32 = 5;

const AWAY: &[Step] = &[Step::Gone(Who::Kafka)];

pub(super) static ROWS: &[Row] = &[
    Row {
        id: "D1",
        place: "spool's disk",
        fault: "full while Kafka is away, then room again",
        must: "503 meanwhile, nothing half; drained when Kafka is back",
        plan: Plan::Run(Case {
            stand: Stand {
                spool: Some(Medium::Memory(16)),
                ..SPOOLED
            },
            load: STEADY,
            before: AWAY,
            steps: &[
                Step::Sent(50, secs(20)),
                Step::Fill(Place::Spool),
                Step::During(secs(6)),
                Step::Free(Place::Spool),
                Step::During(secs(3)),
                Step::Start(Who::Receiver),
                Step::Start(Who::Kafka),
            ],
            claims: &[],
        }),
    },
    Row {
        id: "D2",
        place: "spool's disk",
        fault: "fsync fails (EIO) for 4 s while Kafka is away",
        must: "never a 2xx for what was not synced; goes on, or ends and is started again",
        plan: Plan::Run(Case {
            stand: Stand {
                receiver_under: Under::Preload,
                ..SPOOLED
            },
            load: STEADY,
            before: AWAY,
            steps: &[
                Step::Sent(50, secs(20)),
                Step::Sync(EIO, 0),
                Step::During(secs(4)),
                Step::Sync(0, 0),
                Step::During(secs(3)),
                Step::Start(Who::Receiver),
                Step::Start(Who::Kafka),
            ],
            claims: &[Claim::Refuses],
        }),
    },
    Row {
        id: "D3",
        place: "spool's disk",
        fault: "the folder, then the queue's file, then the lock is deleted under a running receiver",
        must: "noticed before an answer, made anew with all that it held: nothing acknowledged is lost",
        plan: Plan::Run(Case {
            stand: SPOOLED,
            load: STEADY,
            before: AWAY,
            steps: &[
                Step::Sent(50, secs(20)),
                Step::Remove(Place::Spool),
                Step::During(secs(3)),
                Step::RemoveFile("queue.redb"),
                Step::During(secs(2)),
                Step::RemoveFile("lock"),
                Step::During(secs(2)),
                Step::Start(Who::Kafka),
                Step::Sent(100, secs(20)),
            ],
            claims: &[
                PROMISED,
                Claim::Lives,
                Claim::Says("the spool's file was removed"),
            ],
        }),
    },
    Row {
        id: "D4",
        place: "spool's disk",
        fault: "each fsync takes 1 s longer while Kafka is away",
        must: "answers in time: many records share an fsync",
        plan: Plan::Run(Case {
            stand: Stand {
                receiver_under: Under::Preload,
                ..SPOOLED
            },
            load: STEADY,
            before: AWAY,
            steps: &[
                Step::Sync(0, 1_000),
                Step::During(secs(8)),
                Step::Sync(0, 0),
                Step::Start(Who::Kafka),
            ],
            claims: &[PROMISED],
        }),
    },
    Row {
        id: "D5",
        place: "spool",
        fault: "bit flips, torn and zeroed tails, cut and foreign files",
        must: "the valid part is kept, damage is counted and set aside, no crash loop",
        plan: Plan::Tested(&[
            "spool::tests::damage",
            "spool::tests::edits",
            "spool::tests::folders",
        ]),
    },
    Row {
        id: "D6",
        place: "spool",
        fault: "a crash at every step, against a model",
        must: "what was acknowledged is there again",
        plan: Plan::Tested(&["spool::tests::crashes", "spool::tests::faults"]),
    },
    Row {
        id: "D7",
        place: "spool",
        fault: "a backlog is drained while callbacks go on",
        must: "drained at five times 200/s and more beside as many live ones; answers in time",
        plan: Plan::Run(Case {
            stand: SPOOLED,
            load: Load {
                rate: 1_000,
                least: times(4_000, 60_000),
                ..STEADY
            },
            before: AWAY,
            steps: &[
                Step::Backlog(times(3_000, 100_000)),
                Step::Start(Who::Kafka),
                Step::Drained(secs(240)),
                Step::Sent(500, secs(20)),
            ],
            claims: &[PROMISED, Claim::Drains(1_000)],
        }),
    },
];
