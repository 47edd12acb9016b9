//! Whole lives of a spool, each killed at another of its system calls.
//!
//! Owns the sweep: a life is the folder made anew, records put into it while Kafka is away, drained when it is
//! back, the file closed, and opened a second time. `preload.c` counts the calls of one function on the spool's
//! files over the whole process, and kills it at the n-th; only a kill that it noted is counted. The sweep of a
//! function ends with a life that has no n-th call, so that none was left out.
//!
//! After each kill a further life of the same folder, which gets no traffic, has to drain it; then nothing that
//! was acknowledged is in it any more, and the next life may begin without it.

use std::time::Duration;

use rand::Rng as _;
use tokio::time::{Instant, sleep};

use crate::harness::http;
use crate::harness::{free_address, until};
use crate::plan::{Toxic, Who};
use crate::rig::Rig;

/// Acknowledged callbacks of a life before Kafka is back.
const ACKED: usize = 3;
/// Longest time for a life to get anywhere.
const LIFE_LIMIT: Duration = Duration::from_secs(60);
/// A life of later may have more calls than the one that was counted: at most so many times as many.
const MORE: i32 = 4;
/// Places in the control block: which call to kill at, how many there were, whether it was.
const KILL_AT: u64 = 24;
const STEPS: u64 = 28;
const KILLED: u64 = 32;
/// A figure.
pub(crate) const DRAINED_A_S: &str = "drained a s";
/// Records that are left of a backlog that is drained.
const FEW: u64 = 100;
/// Metrics.
const RECORDS: &str = "convolake_spool_records ";
const DRAINED: &str = "convolake_spool_drained_records_total ";
/// The functions by their numbers in `preload.c`, from 1.
const FUNCTIONS: [&str; 6] = [
    "fsync",
    "fdatasync",
    "pwrite",
    "rename",
    "unlink",
    "ftruncate",
];

/// Kills at `most` calls of each function, evenly spread; at each where a life has no more of them.
pub(crate) async fn kill_each(rig: &mut Rig<'_>, most: u32) {
    let at = rig.those(Who::Receiver)[0];
    let folder = rig.spool.as_ref().expect("the row has a spool").path();
    let parent = folder.parent().expect("it is in a folder");
    let parent = parent.to_str().expect("a UTF-8 path").to_owned();
    rig.roles[at].kill9();
    rig.roles[at].env.push(("CHAOS_SPOOL", parent));
    // So that the first life that is counted makes its folder, too.
    recover(rig, at).await;
    let most = i32::try_from(most).expect("a small number");
    for (call, function) in (1..).zip(FUNCTIONS) {
        let killed = life(rig, at, call, i32::MAX).await;
        assert!(!killed, "nobody is to be killed");
        let calls = rig.controlled(STEPS);
        let stride = ((calls + most - 1) / most).max(1);
        let (mut n, mut kills) = (rig.rng.random_range(1..=stride), 0);
        // A life with fewer calls than n: all before were tried.
        while n <= calls * MORE && life(rig, at, call, n).await {
            kills += 1;
            n += stride;
        }
        assert!(kills > 0 || calls == 0, "nothing was killed at {function}");
        rig.times += kills;
        rig.also
            .insert(format!("kills at {function}"), kills as f64);
        rig.also
            .insert(format!("calls of {function} a life"), f64::from(calls));
    }
    assert!(rig.times > 0, "the spool's calls are not seen");
    rig.start_role(at).await;
    rig.over();
}

/// A life that is killed at its n-th call of a function; whether it had so many.
async fn life(rig: &mut Rig<'_>, at: usize, call: i32, n: i32) -> bool {
    let control = [n, 0, 0, call].map(i32::to_ne_bytes);
    rig.control(KILL_AT, control.as_flattened());
    rig.set_proxy(Toxic::Refuse);
    rig.start_role(at).await;
    let before = rig.ledger.acked();
    let filled = async |rig: &mut Rig<'_>| rig.ledger.acked() >= before + ACKED;
    alive_until(rig, at, filled).await;
    rig.set_proxy(Toxic::Pass);
    let drained = async |rig: &mut Rig<'_>| metric(rig, at, DRAINED).await >= Some(ACKED as u64);
    alive_until(rig, at, drained).await;
    if rig.roles[at].process.is_some() && rig.roles[at].process().exited().is_none() {
        rig.roles[at].process().sigterm();
        alive_until(rig, at, async |_| false).await;
        rig.roles[at].bury();
        if rig.controlled(KILLED) == 0 {
            rig.start_role(at).await;
        }
    }
    rig.control(KILL_AT, &0_i32.to_ne_bytes());
    rig.roles[at].kill9();
    rig.roles[at].ends.clear();
    recover(rig, at).await;
    rig.controlled(KILLED) == 1
}

/// Waits until it is so, or the process has ended.
async fn alive_until(rig: &mut Rig<'_>, at: usize, so: impl AsyncFn(&mut Rig<'_>) -> bool) {
    let started = Instant::now();
    while let Some(process) = &mut rig.roles[at].process
        && process.exited().is_none()
        && !so(rig).await
    {
        assert!(
            started.elapsed() < LIFE_LIMIT,
            "a life of the spool got nowhere"
        );
        sleep(Duration::from_millis(10)).await;
    }
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
