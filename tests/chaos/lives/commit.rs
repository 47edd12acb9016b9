//! Lives of a worker, among others that commit to the same tables.
//!
//! Owns what such a life is: a start, the backlog that the life before left, and commits from then on, as long as
//! nobody kills it. Folders are made but once, so lives that may be killed there begin with no lake at all, and read
//! the topic from its start; each is followed by one that has to make of what it left tables with commits, and only
//! the last one's lake is kept. All others go on with that one, which is read throughout and judged at the end.

use super::{
    Function, LINK, MKDIR, NO_END, RENAME, alive_until, begin, count, functions, killed, made,
    stop, sweep,
};
use crate::edit;
use crate::plan::Who;
use crate::rig::Rig;

/// Files that are given their names in the commits of a life over which its kills are spread.
const NAMED: i32 = 20;
/// A life that nobody kills ends when it has named so many times as many.
const MORE: i32 = 2;
/// Renames of a checkpoint: its own, and that of the file that says which one is the last. Nothing else replaces a
/// file.
const CHECKPOINT: i32 = 2;

/// Kills the worker at `most` calls of each function on the lake's files.
pub(super) async fn kill_each(rig: &mut Rig<'_>, at: usize, most: i32) {
    let lake = rig.lake_path();
    count(rig, at, &lake);
    let (folders, files): (Vec<Function>, _) = counted(rig, at)
        .await
        .into_iter()
        .partition(|function| function.call == MKDIR);
    // Calls go on for as long as a life does: it may be waited for as many as were counted.
    sweep(rig, &folders, (most, 1), async |rig| first(rig, at).await).await;
    rig.watch();
    sweep(rig, &files, (most, 1), async |rig| life(rig, at).await).await;
}

/// The calls of a few commits, and those that only a checkpoint makes.
async fn counted(rig: &mut Rig<'_>, at: usize) -> Vec<Function> {
    begin(rig, NO_END);
    start_empty(rig, at).await;
    alive_until(rig, at, async |rig| made(rig, LINK) >= NAMED).await;
    let mut counted = functions(rig);
    alive_until(rig, at, async |rig| is_long(rig)).await;
    for function in counted.iter_mut().filter(|function| function.calls == 0) {
        function.calls = made(rig, function.call);
    }
    stop(rig, at);
    counted
}

/// A life without a lake, and the next one; whether the first was killed.
async fn first(rig: &mut Rig<'_>, at: usize) -> bool {
    start_empty(rig, at).await;
    alive_until(rig, at, async |rig| is_long(rig)).await;
    stop(rig, at);
    let killed = killed(rig);
    begin(rig, NO_END);
    rig.start_role(at).await;
    alive_until(rig, at, async |rig| made(rig, LINK) >= NAMED).await;
    stop(rig, at);
    killed
}

/// Whether it was killed.
async fn life(rig: &mut Rig<'_>, at: usize) -> bool {
    rig.start_role(at).await;
    alive_until(rig, at, async |rig| is_long(rig)).await;
    stop(rig, at);
    killed(rig)
}

fn is_long(rig: &Rig<'_>) -> bool {
    made(rig, LINK) >= MORE * NAMED && made(rig, RENAME) >= CHECKPOINT
}

/// Starts it and the others with no lake.
async fn start_empty(rig: &mut Rig<'_>, at: usize) {
    let workers = rig.those(Who::Worker);
    for worker in &workers {
        rig.roles[*worker].kill9();
    }
    edit::empty(rig);
    rig.start_role(at).await;
    for other in workers {
        if other != at {
            rig.start_role(other).await;
        }
    }
}
