//! Whole lives of a spool.
//!
//! Owns what such a life is: the folder made anew, records put into it while Kafka is away, drained when it is
//! back, the file closed, and opened a second time. After it a further life of the same folder, which gets no
//! traffic, has to drain it; then nothing that was acknowledged is in it any more, and the next life may begin
//! without it.

use std::time::Duration;

use super::{LIFE_LIMIT, NO_END, alive_until, begin, count, ended, functions, killed, stop, sweep};
use crate::harness::http;
use crate::harness::{free_address, until};
use crate::plan::{Toxic, Who};
use crate::rig::Rig;

/// Acknowledged callbacks of a life before Kafka is back.
const ACKED: usize = 3;
/// A life of later may have more calls than the one that was counted: at most so many times as many.
const MORE: i32 = 4;
/// A figure.
pub(crate) const DRAINED_A_S: &str = "drained a s";
/// Records that are left of a backlog that is drained.
const FEW: u64 = 100;
/// Metrics.
const RECORDS: &str = "convolake_spool_records ";
const DRAINED: &str = "convolake_spool_drained_records_total ";

/// Kills the receiver at `most` calls of each function on its spool's files.
pub(super) async fn kill_each(rig: &mut Rig<'_>, at: usize, most: i32) {
    let folder = rig.spool.as_ref().expect("the row has a spool").path();
    count(rig, at, &folder);
    // So that the first life that is counted makes its folder, too.
    recover(rig, at).await;
    begin(rig, NO_END);
    life(rig, at).await;
    let counted = functions(rig);
    sweep(rig, &counted, (most, MORE), async |rig| life(rig, at).await).await;
}

/// Whether it was killed.
async fn life(rig: &mut Rig<'_>, at: usize) -> bool {
    rig.set_proxy(Toxic::Refuse);
    rig.start_role(at).await;
    let before = rig.ledger.acked();
    let filled = async |rig: &mut Rig<'_>| rig.ledger.acked() >= before + ACKED;
    alive_until(rig, at, filled).await;
    rig.set_proxy(Toxic::Pass);
    let drained = async |rig: &mut Rig<'_>| metric(rig, at, DRAINED).await >= Some(ACKED as u64);
    alive_until(rig, at, drained).await;
    if !ended(rig, at) {
        rig.roles[at].process().sigterm();
        alive_until(rig, at, async |_| false).await;
        rig.roles[at].bury();
        if !killed(rig) {
            rig.start_role(at).await;
        }
    }
    stop(rig, at);
    recover(rig, at).await;
    killed(rig)
}

/// A life out of sight of the senders, until it has drained the folder, which is then removed.
async fn recover(rig: &mut Rig<'_>, at: usize) {
    let address = rig.roles[at].address().to_owned();
    rig.roles[at].set("--listen", &free_address());
    rig.start_role(at).await;
    until(
        "a killed spool is drained",
        LIFE_LIMIT,
        async || match metric(rig, at, RECORDS).await {
            Some(0) => Ok(()),
            records => Err(format!("it holds {records:?}")),
        },
    )
    .await;
    rig.roles[at].kill9();
    rig.roles[at].set("--listen", &address);
    let folder = rig.spool.as_ref().expect("the row has a spool").path();
    std::fs::remove_dir_all(folder).unwrap();
}

/// What it says of its spool. One that cannot be opened says nothing.
async fn metric(rig: &Rig<'_>, at: usize, name: &str) -> Option<u64> {
    let url = format!("http://{}/metrics", rig.roles[at].ops);
    let (_, metrics) = http::get(&url).await.ok()?;
    let value = metrics.lines().find_map(|line| line.strip_prefix(name));
    value?.trim().parse().ok()
}

/// Waits until the backlog is drained: how fast that was, and how long answers took before it and meanwhile.
pub(crate) async fn drained(rig: &mut Rig<'_>, limit: Duration) {
    let at = rig.those(Who::Receiver)[0];
    let (from, first) = (rig.ledger.now(), metric(rig, at, DRAINED).await);
    let backlog = metric(rig, at, RECORDS).await;
    let drained = until("the backlog is drained", limit, async || {
        match metric(rig, at, RECORDS).await {
            // What comes in meanwhile goes the same way; some of it is always there.
            Some(few) if few < FEW => metric(rig, at, DRAINED).await.ok_or_else(String::new),
            records => Err(format!("it holds {records:?}")),
        }
    })
    .await;
    let to = rig.ledger.now();
    let seconds = Duration::from_millis(to - from).as_secs_f64();
    let count = (drained - first.unwrap_or(0)) as f64;
    let before = rig.ledger.slowest_of_hundred(0..from);
    let during = rig.ledger.slowest_of_hundred(from..to);
    for (name, value) in [
        ("backlog", backlog.unwrap_or(0) as f64),
        (DRAINED_A_S, count / seconds),
        ("p99 ms before", before as f64),
        ("p99 ms during the drain", during as f64),
    ] {
        rig.also.insert(name.to_owned(), value);
    }
}
