//! The API of the service that is asked for conversations.

use super::secs;
use crate::plan::{Between, Case, Claim, Plan, Row, STEADY, Stand, Step, Toxic, WHOLE};

pub(super) static ROWS: &[Row] = &[Row {
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
}];
