//! Kafka, and the network before it.

use super::{PROMISED, millis, secs};
use crate::plan::{
    Between, Case, Claim, EDGE, Load, Medium, Place, Plan, Row, SPOOLED, STEADY, Stand, Step,
    Toxic, WHOLE, Who, times,
};

pub(super) static ROWS: &[Row] = &[
    Row {
        id: "K1",
        place: "Kafka",
        fault: "away when the receiver starts",
        must: "the receiver is up, spools and drains",
        plan: Plan::Run(Case {
            stand: SPOOLED,
            load: STEADY,
            before: &[Step::Gone(Who::Kafka)],
            steps: &[Step::Sent(200, secs(20)), Step::Start(Who::Kafka)],
            claims: &[PROMISED],
        }),
    },
    Row {
        id: "K2",
        place: "Kafka",
        fault: "kill -9 and restart, again and again",
        must: "nothing acknowledged is lost; answers in time",
        plan: Plan::Run(Case {
            stand: SPOOLED,
            load: STEADY,
            before: &[],
            steps: &[Step::Kill(Who::Kafka, times(2, 12), (200, 2_000))],
            claims: &[PROMISED, Claim::FirstOk(secs(1)), Claim::Lives],
        }),
    },
    Row {
        id: "K3",
        place: "Kafka",
        fault: "frozen for 5 s and for 15 s",
        must: "nothing acknowledged is lost; sends of unknown outcome are one row in the view",
        plan: Plan::Run(Case {
            stand: Stand {
                spool: Some(Medium::Folder),
                ..WHOLE
            },
            load: STEADY,
            before: &[],
            steps: &[
                Step::Sent(100, secs(20)),
                Step::Freeze(Who::Kafka, secs(5)),
                Step::Sent(100, secs(20)),
                Step::Freeze(Who::Kafka, secs(15)),
            ],
            claims: &[PROMISED, Claim::Lives],
        }),
    },
    Row {
        id: "K4",
        place: "Kafka",
        fault: "acknowledgements are lost after the append",
        must: "repeats in Kafka, one row in the view",
        plan: Plan::Run(Case {
            stand: Stand {
                proxied: Some(Between::ReceiversAndKafka),
                ..WHOLE
            },
            load: STEADY,
            before: &[],
            steps: &[
                Step::Sent(100, secs(20)),
                Step::Proxy(Toxic::LoseReplies),
                Step::During(secs(4)),
                Step::Proxy(Toxic::Pass),
                Step::Sent(100, secs(20)),
            ],
            claims: &[Claim::Lives],
        }),
    },
    Row {
        id: "K5",
        place: "Kafka",
        fault: "passing errors: not leader, not enough replicas, timeouts",
        must: "retried without repeats",
        plan: Plan::Tested(&["topic::producer::tests::passing_errors_of_the_broker"]),
    },
    Row {
        id: "K6",
        place: "Kafka",
        fault: "errors for good: too large, not authorised, unknown topic",
        must: "told to the caller as certain, never dropped",
        plan: Plan::Tested(&["topic::producer::tests::a_refusal_of_the_broker"]),
    },
    Row {
        id: "K7",
        place: "Kafka",
        fault: "a fatal error of idempotence",
        must: "the producer is replaced, every sender gets an answer",
        plan: Plan::Tested(&["topic::producer::tests::a_fatal_error_replaces"]),
    },
    Row {
        id: "K8",
        place: "Kafka",
        fault: "the producer's queue of 100 records is full while Kafka is frozen",
        must: "answers in time, into the spool",
        plan: Plan::Run(Case {
            stand: Stand {
                receiver_flags: &["--kafka-property", "queue.buffering.max.messages=100"],
                ..SPOOLED
            },
            load: STEADY,
            before: &[],
            steps: &[Step::Sent(100, secs(20)), Step::Freeze(Who::Kafka, secs(6))],
            claims: &[PROMISED, Claim::Lives],
        }),
    },
    Row {
        id: "K9",
        place: "network to Kafka",
        fault: "500 ms latency, 16 kB/s, resets, half-open, black hole, refusal, one after the other",
        must: "nothing acknowledged is lost; answers in time",
        plan: Plan::Run(Case {
            stand: Stand {
                proxied: Some(Between::ReceiversAndKafka),
                ..SPOOLED
            },
            load: STEADY,
            before: &[],
            steps: &[
                Step::Sent(50, secs(20)),
                Step::Proxy(Toxic::Latency(500)),
                Step::During(secs(3)),
                Step::Proxy(Toxic::Bandwidth(16_000)),
                Step::During(secs(3)),
                Step::Proxy(Toxic::Reset(0.15)),
                Step::During(secs(3)),
                Step::Proxy(Toxic::HalfClose),
                Step::During(secs(3)),
                Step::Proxy(Toxic::BlackHole),
                Step::During(secs(4)),
                Step::Proxy(Toxic::Refuse),
                Step::During(secs(3)),
                Step::Proxy(Toxic::Pass),
                Step::Sent(50, secs(20)),
            ],
            claims: &[PROMISED, Claim::Lives],
        }),
    },
    Row {
        id: "K10",
        place: "Kafka's disk",
        fault: "full, then room and a restart",
        must: "the spool takes over and is drained",
        plan: Plan::Run(Case {
            stand: Stand {
                broker: Some(Medium::Memory(512)),
                ..SPOOLED
            },
            load: STEADY,
            before: &[],
            steps: &[
                Step::Sent(100, secs(20)),
                Step::Fill(Place::Broker),
                Step::During(secs(6)),
                Step::Gone(Who::Kafka),
                Step::Free(Place::Broker),
                Step::Start(Who::Kafka),
                Step::Sent(100, secs(20)),
            ],
            claims: &[PROMISED, Claim::Lives],
        }),
    },
    Row {
        id: "K11",
        place: "Kafka's disk",
        fault: "power cut of the only broker, log.flush.interval.messages=1",
        must: "nothing acknowledged is lost (with Kafka's default of no flush, a lone broker may lose it)",
        plan: Plan::Run(Case {
            stand: Stand {
                broker: Some(Medium::Image(512)),
                broker_properties: "log.flush.interval.messages=1",
                ..EDGE
            },
            load: Load {
                rate: 50,
                least: times(200, 1_000),
                ..STEADY
            },
            before: &[],
            steps: &[
                Step::Sent(50, secs(20)),
                Step::PowerCut(Place::Broker, times(1, 5), (100, 900)),
            ],
            claims: &[],
        }),
    },
    Row {
        id: "K12",
        place: "Kafka",
        fault: "the topic is deleted and made again under its consumers",
        must: "they stop and say so: nothing is skipped, nothing is read as if it were old",
        plan: Plan::Run(Case {
            stand: WHOLE,
            load: STEADY,
            before: &[],
            steps: &[
                Step::Sent(200, secs(30)),
                Step::Quiet,
                Step::CaughtUp,
                Step::RecreateTopic,
                Step::Ended(Who::Worker, secs(60)),
            ],
            claims: &[Claim::Exits(Who::Worker, 1)],
        }),
    },
    Row {
        id: "K13",
        place: "Kafka",
        fault: "kill -9 and restart without a spool",
        must: "503 meanwhile, first 2xx within 1 s of its return",
        plan: Plan::Run(Case {
            stand: EDGE,
            load: STEADY,
            before: &[],
            steps: &[
                Step::Sent(50, secs(20)),
                Step::Down(Who::Kafka, millis(3_000)),
                Step::Sent(50, secs(20)),
            ],
            claims: &[PROMISED, Claim::Refuses, Claim::FirstOk(secs(1))],
        }),
    },
    Row {
        id: "K14",
        place: "network from Kafka",
        fault: "500 ms latency, 64 kB/s, resets, black hole, refusal before the workers, one after the other",
        must: "once and whole; nobody ends",
        plan: Plan::Run(Case {
            stand: Stand {
                proxied: Some(Between::WorkersAndKafka),
                ..WHOLE
            },
            load: STEADY,
            before: &[],
            steps: &[
                Step::Sent(50, secs(20)),
                Step::Proxy(Toxic::Latency(500)),
                Step::During(secs(3)),
                Step::Proxy(Toxic::Bandwidth(64_000)),
                Step::During(secs(3)),
                Step::Proxy(Toxic::Reset(0.15)),
                Step::During(secs(3)),
                Step::Proxy(Toxic::BlackHole),
                Step::During(secs(8)),
                Step::Proxy(Toxic::Refuse),
                Step::During(secs(3)),
                Step::Proxy(Toxic::Pass),
            ],
            claims: &[Claim::Lives],
        }),
    },
];
