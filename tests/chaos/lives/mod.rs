//! Lives of one process, each killed at another of its calls that change or sync a file.
//!
//! Owns the sweep, and the reading of what `preload.c` counts below one folder, over all threads; what a life is,
//! `spool` and `commit` say. Only a kill that the preload noted is counted: at exactly the call meant. A life that
//! ends by itself and badly breaks the row, as does a function that is called and whose calls killed nobody.
//!
//! A life that nobody kills says how often each function is called. Those calls are then the ends of as many lives
//! as were asked for, evenly spread; each life has to go on from what the one before it left.

use std::path::Path;
use std::time::Duration;

use rand::Rng as _;
use tokio::time::{Instant, sleep};

use crate::harness::process::arg;
use crate::plan::Who;
use crate::rig::Rig;

mod commit;
mod spool;

pub(crate) use spool::{DRAINED_A_S, drained};

/// Longest time for a life to get anywhere.
const LIFE_LIMIT: Duration = Duration::from_secs(60);
/// Places in the control block: which function, which of its calls to kill at, whether it was, the calls so far.
const KILL_CALL: u64 = 24;
const KILL_AT: u64 = 28;
const KILLED: u64 = 32;
const CALLS: u64 = 36;
/// Numbers of functions in `preload.c`.
const MKDIR: i32 = 1;
const LINK: i32 = 8;
const RENAME: i32 = 9;
/// Their names, from 1.
const FUNCTIONS: [&str; 10] = [
    "mkdir",
    "create",
    "write",
    "pwrite",
    "ftruncate",
    "fsync",
    "fdatasync",
    "link",
    "rename",
    "unlink",
];

/// A function that is swept.
#[derive(Debug, Clone, Copy)]
struct Function {
    /// Its number.
    call: i32,
    /// How often a life that nobody killed called it.
    calls: i32,
}

/// The end that is set for a life.
#[derive(Debug, Clone, Copy)]
struct End {
    /// A function by its number.
    call: i32,
    /// Which call of it.
    n: i32,
}

/// Of a life that is only counted.
const NO_END: End = End {
    call: 0,
    n: i32::MAX,
};

/// Kills one of them at `most` calls of each function that it makes; at each where a life has no more of them.
pub(crate) async fn kill_each(rig: &mut Rig<'_>, who: Who, most: u32) {
    let at = rig.those(who)[0];
    let most = i32::try_from(most).expect("a small number");
    let before = rig.times;
    match who {
        Who::Receiver => spool::kill_each(rig, at, most).await,
        Who::Worker => commit::kill_each(rig, at, most).await,
        Who::Kafka => panic!("the broker's calls are not counted"),
    }
    assert!(rig.times > before, "none of its calls is seen");
    rig.start_role(at).await;
    rig.over();
}

/// From its next life on, its calls on what is beside and below `folder` are counted, and nobody else's.
fn count(rig: &mut Rig<'_>, at: usize, folder: &Path) {
    // Beside it, so that the folder is seen when it is made anew.
    let parent = arg(folder.parent().expect("it is in a folder")).to_owned();
    rig.roles[at].kill9();
    rig.roles[at].env.push(("CHAOS_BELOW", parent));
}

/// Lives that end at calls of the functions, until there are `most` of each, or a life has `longer` times the calls
/// that were counted; a life says whether it was killed.
async fn sweep(
    rig: &mut Rig<'_>,
    functions: &[Function],
    (most, longer): (i32, i32),
    life: impl AsyncFn(&mut Rig<'_>) -> bool,
) {
    let stride = |calls: i32| ((calls + most - 1) / most).max(1);
    let ends = functions.iter().map(|Function { call, calls }| {
        let n = rig.rng.random_range(1..=stride(*calls));
        End { call: *call, n }
    });
    let mut ends: Vec<End> = ends.collect();
    let mut kills = vec![0_u32; ends.len()];
    // In turn, so that each function has its kills from the beginning of the row to its end.
    while ends
        .iter()
        .zip(functions)
        .any(|(end, of)| end.n <= of.calls * longer)
    {
        for (at, Function { calls, .. }) in functions.iter().enumerate() {
            let end = ends[at];
            if end.n > calls * longer {
                continue;
            }
            begin(rig, end);
            if life(rig).await {
                kills[at] += 1;
                ends[at].n += stride(*calls);
            } else {
                // It had fewer: all before were tried.
                ends[at].n = i32::MAX;
            }
        }
    }
    for (Function { call, calls }, kills) in functions.iter().zip(kills) {
        let name = name(*call);
        assert!(kills > 0 || *calls == 0, "nothing was killed at {name}");
        rig.times += u64::from(kills);
        let figures = &mut rig.also;
        figures.insert(format!("calls of {name} a life"), f64::from(*calls));
        if *calls > 0 {
            figures.insert(format!("kills at {name}"), f64::from(kills));
        }
    }
}

/// Counts anew, and sets an end.
fn begin(rig: &Rig<'_>, End { call, n }: End) {
    let mut control = [0; 3 + FUNCTIONS.len()];
    [control[0], control[1]] = [call, n];
    rig.control(KILL_CALL, control.map(i32::to_ne_bytes).as_flattened());
}

/// Calls of this life so far.
fn functions(rig: &Rig<'_>) -> Vec<Function> {
    let each = (1..).zip(FUNCTIONS).map(|(call, _)| Function {
        call,
        calls: made(rig, call),
    });
    each.collect()
}

fn made(rig: &Rig<'_>, call: i32) -> i32 {
    let at = u64::try_from(call - 1).expect("numbered from 1");
    rig.controlled(CALLS + 4 * at)
}

fn name(call: i32) -> &'static str {
    let at = usize::try_from(call - 1).expect("numbered from 1");
    FUNCTIONS[at]
}

fn killed(rig: &Rig<'_>) -> bool {
    rig.controlled(KILLED) == 1
}

/// Waits until it is so, or the process has ended.
async fn alive_until(rig: &mut Rig<'_>, at: usize, so: impl AsyncFn(&mut Rig<'_>) -> bool) {
    let started = Instant::now();
    while !ended(rig, at) && !so(rig).await {
        assert!(started.elapsed() < LIFE_LIMIT, "a life got nowhere");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Whether it has, which it may where that was set, or well.
fn ended(rig: &mut Rig<'_>, at: usize) -> bool {
    let Some(process) = &mut rig.roles[at].process else {
        return true;
    };
    let Some(status) = process.exited() else {
        return false;
    };
    let fine = status.success() || killed(rig);
    assert!(fine, "{}", rig.roles[at].process().report());
    true
}

/// What is left of a life is ended, and no more is counted.
fn stop(rig: &mut Rig<'_>, at: usize) {
    ended(rig, at);
    rig.control(KILL_AT, &0_i32.to_ne_bytes());
    rig.roles[at].kill9();
    rig.roles[at].ends.clear();
}
