//! The receiver and whoever calls it.

use super::{PROMISED, secs};
use crate::plan::{
    Between, Case, Claim, EDGE, Load, Plan, Row, SPOOLED, STEADY, Stand, Step, Toxic, Under, WHOLE,
    Who, times,
};

pub(super) static ROWS: &[Row] = &[
    Row {
        id: "R1",
        place: "receiver",
        fault: "kill -9 again and again, half of them right after an answer",
        must: "nothing acknowledged is lost; up again within 2 s",
        plan: Plan::Run(Case {
            stand: SPOOLED,
            load: STEADY,
            before: &[],
            steps: &[Step::Kill(Who::Receiver, times(30, 300), (20, 600))],
            claims: &[PROMISED],
        }),
    },
    Row {
        id: "R2",
        place: "receiver",
        fault: "killed at exactly its n-th mkdir, create, write, pwrite, ftruncate, fsync, fdatasync, rename, unlink of the spool, in lives that make, fill, drain, close and open it again",
        must: "each next life recovers and drains, with everything acknowledged",
        plan: Plan::Run(Case {
            stand: Stand {
                receiver_under: Under::Preload,
                // Full at once, so that a life need not wait before its spool comes first.
                receiver_flags: &["--kafka-property", "queue.buffering.max.messages=10"],
                proxied: Some(Between::ReceiversAndKafka),
                ..SPOOLED
            },
            load: Load {
                rate: 40,
                least: times(40, 400),
                ..STEADY
            },
            before: &[],
            steps: &[Step::KillEach(Who::Receiver, times(3, 150))],
            claims: &[],
        }),
    },
    Row {
        id: "R3",
        place: "receiver",
        fault: "power cut during acknowledgements, Kafka being away",
        must: "every 2xx before the cut is in that disk's spool",
        plan: Plan::Run(Case {
            stand: Stand {
                spool: Some(crate::plan::Medium::Image(64)),
                ..SPOOLED
            },
            load: STEADY,
            before: &[Step::Gone(Who::Kafka)],
            steps: &[
                Step::Sent(50, secs(20)),
                Step::PowerCut(crate::plan::Place::Spool, times(4, 20), (100, 700)),
                Step::Start(Who::Kafka),
            ],
            claims: &[],
        }),
    },
    Row {
        id: "R4",
        place: "receiver",
        fault: "SIGTERM under load, 100 ms away from Kafka",
        must: "nothing acknowledged is lost; ends with 0 within 10 s",
        plan: Plan::Run(Case {
            stand: Stand {
                proxied: Some(Between::ReceiversAndKafka),
                ..EDGE
            },
            load: STEADY,
            before: &[Step::Proxy(Toxic::Latency(100))],
            steps: &[Step::Terminate(Who::Receiver, times(6, 15))],
            claims: &[],
        }),
    },
    Row {
        id: "R5",
        place: "receiver",
        fault: "frozen for 8 s, then on",
        must: "no 2xx without durability after it; repeats are one row in the view",
        plan: Plan::Run(Case {
            stand: WHOLE,
            load: STEADY,
            before: &[],
            steps: &[
                Step::Sent(100, secs(20)),
                Step::Freeze(Who::Receiver, secs(8)),
                Step::Sent(100, secs(20)),
            ],
            claims: &[Claim::Lives],
        }),
    },
    Row {
        id: "R6",
        place: "receiver",
        fault: "128 MiB of memory and ten times the load",
        must: "never killed for memory",
        plan: Plan::Run(Case {
            stand: Stand {
                receiver_under: Under::MemoryLimit(128),
                ..EDGE
            },
            load: Load {
                rate: 2_000,
                least: times(4_000, 40_000),
                ..STEADY
            },
            before: &[],
            steps: &[],
            claims: &[Claim::Lives],
        }),
    },
    Row {
        id: "R7",
        place: "receiver",
        fault: "64 file descriptors and 120 slow connections",
        must: "accepts again by itself",
        plan: Plan::Run(Case {
            stand: Stand {
                receiver_under: Under::Files(64),
                ..SPOOLED
            },
            load: STEADY,
            before: &[],
            steps: &[
                Step::Sent(50, secs(20)),
                Step::Drip(120),
                Step::Sent(100, secs(30)),
            ],
            claims: &[PROMISED, Claim::Lives],
        }),
    },
    Row {
        id: "R8",
        place: "receiver",
        fault: "1,000 clients that send one byte a second",
        must: "good traffic goes on; the slow are dropped",
        plan: Plan::Run(Case {
            stand: EDGE,
            load: STEADY,
            before: &[],
            steps: &[Step::Drip(1_000)],
            claims: &[PROMISED, Claim::Lives],
        }),
    },
    Row {
        id: "R9",
        place: "receiver",
        fault: "clients that reset the connection after the body",
        must: "stored or not, never half; the process lives",
        plan: Plan::Run(Case {
            stand: EDGE,
            load: STEADY,
            before: &[],
            steps: &[Step::Leave(200)],
            claims: &[Claim::Lives],
        }),
    },
    Row {
        id: "R10",
        place: "receiver",
        fault: "every callback to two receivers at once",
        must: "one row in the view",
        plan: Plan::Run(Case {
            stand: Stand {
                receivers: 2,
                ..WHOLE
            },
            load: Load {
                everywhere: true,
                rate: 100,
                ..STEADY
            },
            before: &[],
            steps: &[],
            claims: &[Claim::Lives],
        }),
    },
];
