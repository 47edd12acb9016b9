//! What each step of a row does to what runs.
//!
//! Owns the doing of faults and nothing else: when, how often and to whom are the row's values, chances are
//! the seed's. Fails by a panic that says which step could not be done; the row is broken then.

use std::time::Duration;

use rand::Rng as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::edit;
use crate::harness::process::{Process, STOP_LIMIT};
use crate::harness::{AUTH_TOKEN, until};
use crate::lives;
use crate::oracle;
use crate::plan::{Place, Step, Then, Times, Who};
use crate::rig::{Cut, Rig};
use crate::role::Role;
use crate::sweep;

/// Longest wait for anything to go on between two kills.
const PROGRESS_LIMIT: Duration = Duration::from_secs(60);
/// Longest time for a backlog to come together.
const BACKLOG_LIMIT: Duration = Duration::from_secs(300);
/// Longest run of a command that ends by itself.
const COMMAND_LIMIT: Duration = Duration::from_secs(120);
/// Longest life of slow connections, those included that wait in the kernel for a descriptor.
const DRIP_LIMIT: Duration = Duration::from_secs(90);
/// A SIGTERM may take what is promised, and the time to be seen on a busy machine.
const EXIT_LIMIT: Duration = STOP_LIMIT.saturating_add(Duration::from_secs(5));

/// Does one step.
pub(crate) async fn run(rig: &mut Rig<'_>, step: &'static Step) {
    match *step {
        Step::Sent(count, limit) => sent(rig, count as usize, limit).await,
        Step::During(time) => sleep(time).await,
        Step::Backlog(count) => {
            sent(rig, count.of(rig.world.size) as usize, BACKLOG_LIMIT).await;
        }
        Step::Drained(limit) => lives::drained(rig, limit).await,
        Step::Quiet => oracle::finish_load(rig).await,
        Step::CaughtUp => oracle::caught_up(rig).await,
        Step::Ended(who, limit) => ended(rig, who, limit).await,
        Step::Start(who) => start(rig, who).await,
        Step::Kill(who, times, after) => kill(rig, who, times, after).await,
        Step::Down(who, time) => {
            gone(rig, who);
            sleep(time).await;
            start(rig, who).await;
            rig.times += 1;
            rig.over();
        }
        Step::Gone(who) => gone(rig, who),
        Step::AtCommit(then, times) => at_commit(rig, then, times).await,
        Step::Drawn(faults, times) => drawn(rig, faults, times).await,
        Step::KillEach(who, times) => lives::kill_each(rig, who, often(rig, times)).await,
        Step::Terminate(who, times) => terminate(rig, who, times).await,
        Step::Freeze(who, time) => {
            signal(rig, who, "STOP");
            sleep(time).await;
            signal(rig, who, "CONT");
            rig.times += 1;
            rig.over();
        }
        Step::Proxy(toxic) => {
            rig.set_proxy(toxic);
            rig.over();
        }
        Step::PowerCut(place, times, after) => power_cut(rig, place, times, after).await,
        Step::Fill(place) => volume(rig, place).fill(),
        Step::Free(place) => {
            volume(rig, place).free();
            rig.times += 1;
            rig.over();
        }
        Step::Sync(errno, millis) => {
            rig.control(0, &[errno.to_ne_bytes(), millis.to_ne_bytes()].concat());
            rig.over();
        }
        Step::Clock(seconds) => rig.control(8, &seconds.to_ne_bytes()),
        Step::Remove(place) => {
            std::fs::remove_dir_all(volume(rig, place).path()).unwrap();
            rig.times += 1;
        }
        Step::RemoveFile(name) => {
            let file = volume(rig, Place::Spool).path().join(name);
            std::fs::remove_file(file).unwrap();
            rig.times += 1;
        }
        Step::Drip(count) => drip(rig, count).await,
        Step::Leave(count) => leave(rig, count).await,
        Step::Offsets(offsets) => edit::offsets(rig, offsets).await,
        Step::Poison(count) => edit::poison(rig, count).await,
        Step::OddTimes(count) => edit::odd_times(rig, count).await,
        Step::RecreateTopic => edit::recreate_topics(rig).await,
        Step::Retention => edit::retention(rig).await,
        Step::DropDeadLetters => edit::drop_dead_letters(rig).await,
        Step::MakeDeadLetters => edit::make_dead_letters(rig).await,
        Step::Keys(keys) => with_keys(rig, keys).await,
        Step::NoneForbidden => {
            let forbidden = rig.ledger.forbidden();
            assert_eq!(forbidden, 0, "good callbacks were forbidden");
        }
        Step::Forbidden(limit) => forbidden(rig, limit).await,
        Step::Api(schedule) => edit::api(rig, schedule).await,
        Step::Edit(what) => edit::lake(rig, what),
        Step::Command(args) => command(rig, args).await,
        Step::Sweep(times, flags) => sweep::again(rig, often(rig, times), flags).await,
    }
}

/// Waits for so many more 2xx, within the limit.
async fn sent(rig: &mut Rig<'_>, count: usize, limit: Duration) {
    let (before, started) = (rig.ledger.acked(), Instant::now());
    while rig.ledger.acked() < before + count && started.elapsed() < limit {
        sleep(Duration::from_millis(20)).await;
    }
}

async fn start(rig: &mut Rig<'_>, who: Who) {
    if who == Who::Kafka {
        rig.cluster().kafka.restart().await;
    }
    for at in rig.those(who) {
        rig.roles[at].note_end();
        if rig.roles[at].process.is_none() {
            rig.start_role(at).await;
        }
    }
}

fn gone(rig: &mut Rig<'_>, who: Who) {
    if who == Who::Kafka {
        rig.cluster().kafka.kill9();
    }
    for at in rig.those(who) {
        rig.roles[at].kill9();
    }
}

fn signal(rig: &mut Rig<'_>, who: Who, name: &str) {
    if who == Who::Kafka {
        return rig.cluster().kafka.broker().signal(name);
    }
    // Of several workers the first: the others take over from it.
    let at = rig.those(who)[0];
    rig.roles[at].process().signal(name);
}

fn often(rig: &Rig<'_>, times: Times) -> u32 {
    rig.world.kills.unwrap_or_else(|| times.of(rig.world.size))
}

/// What has to grow before the next kill: one that hits nothing proves nothing.
fn progress(rig: &Rig<'_>, who: Who) -> usize {
    match who {
        Who::Worker => rig.versions(),
        Who::Receiver | Who::Kafka => rig.ledger.acked(),
    }
}

async fn kill(rig: &mut Rig<'_>, who: Who, times: Times, (least, most): (u64, u64)) {
    let mut restarts = Vec::new();
    for _ in 0..often(rig, times) {
        let before = progress(rig, who);
        let what = "progress between two kills";
        until(what, PROGRESS_LIMIT, async || match progress(rig, who) {
            more if more > before => Ok(()),
            same => Err(format!("{same}")),
        })
        .await;
        // Half of the kills come at once after progress, where a commit or an answer is half done.
        let delay = match rig.rng.random_bool(0.5) {
            true => 0,
            false => rig.rng.random_range(least..most),
        };
        sleep(Duration::from_millis(delay)).await;
        let started = Instant::now();
        if who == Who::Kafka {
            rig.cluster().kafka.kill9();
            rig.cluster().kafka.restart().await;
        } else {
            let those = rig.those(who);
            let at = those[rig.rng.random_range(0..those.len())];
            rig.roles[at].kill9();
            rig.start_role(at).await;
        }
        restarts.push(started.elapsed().as_secs_f64());
        rig.times += 1;
    }
    rig.over();
    restarts.sort_by(f64::total_cmp);
    if let Some(slowest) = restarts.get(restarts.len() * 99 / 100) {
        rig.also.insert("restart p99 s".to_owned(), *slowest);
    }
}

/// Commits of the archive in a row before which a worker is killed: a batch, and the next one.
const COMMITS_IN_TURN: u32 = 4;

/// Workers that end exactly between the files of a commit and the commit, which their preload does.
async fn at_commit(rig: &mut Rig<'_>, then: Then, times: Times) {
    for n in 0..often(rig, times) {
        let (signal, commits) = match then {
            Then::Freeze => (libc::SIGSTOP, 1),
            Then::Kill => (libc::SIGKILL, 1 + n % COMMITS_IN_TURN),
        };
        rig.control(20, &signal.to_ne_bytes());
        rig.control(16, &commits.to_ne_bytes());
        let those = rig.those(Who::Worker);
        let mut hit = None;
        until("a worker commits", PROGRESS_LIMIT, async || {
            hit = those.iter().copied().find(|at| match then {
                Then::Freeze => rig.roles[*at].process().is_stopped(),
                Then::Kill => rig.roles[*at].process().exited().is_some(),
            });
            hit.map(drop).ok_or_else(|| "none did".to_owned())
        })
        .await;
        let at = hit.expect("found above");
        match then {
            Then::Freeze => {
                oracle::archived(rig).await;
                rig.roles[at].process().signal("CONT");
            }
            Then::Kill => {
                rig.roles[at].bury();
                rig.start_role(at).await;
            }
        }
        rig.times += 1;
    }
    rig.over();
}

async fn drawn(rig: &mut Rig<'_>, faults: &'static [&'static [Step]], seconds: Times) {
    let limit = Duration::from_secs(seconds.of(rig.world.size).into());
    let started = Instant::now();
    while started.elapsed() < limit {
        for step in faults[rig.rng.random_range(0..faults.len())] {
            Box::pin(run(rig, step)).await;
        }
        for who in [Who::Receiver, Who::Worker] {
            start(rig, who).await;
        }
        sent(rig, 50, Duration::from_secs(10)).await;
    }
    rig.over();
}

async fn terminate(rig: &mut Rig<'_>, who: Who, times: Times) {
    let mut slowest: f64 = 0.0;
    for _ in 0..often(rig, times) {
        let (before, acked) = (progress(rig, who), rig.ledger.acked());
        let what = "progress between two stops";
        until(what, PROGRESS_LIMIT, async || match progress(rig, who) {
            more if more > before && rig.ledger.acked() > acked + 10 => Ok(()),
            few => Err(format!("{few}")),
        })
        .await;
        for at in rig.those(who) {
            let started = Instant::now();
            rig.roles[at].process().sigterm();
            let status = rig.roles[at].process().wait_exit(EXIT_LIMIT).await;
            assert_eq!(status.code(), Some(0), "after SIGTERM");
            slowest = slowest.max(started.elapsed().as_secs_f64());
            rig.roles[at].bury();
            rig.start_role(at).await;
        }
        rig.times += 1;
    }
    rig.over();
    rig.also.insert("slowest exit s".to_owned(), slowest);
}

/// The writers stand still while the image is copied; the copies are recovered from when the row is judged.
async fn power_cut(rig: &mut Rig<'_>, place: Place, times: Times, (least, most): (u64, u64)) {
    let who = match place {
        Place::Spool => Who::Receiver,
        Place::Lake => Who::Worker,
        Place::Broker => Who::Kafka,
    };
    for _ in 0..often(rig, times) {
        let delay = rig.rng.random_range(least..most);
        sleep(Duration::from_millis(delay)).await;
        let hints = edit::hints(rig);
        let at = rig.ledger.now();
        each(rig, who, "STOP");
        let volume = volume(rig, place).power_cut();
        each(rig, who, "CONT");
        let volume = volume.unwrap_or_else(|why| panic!("the copy of a power cut: {why}"));
        rig.cuts.push(Cut {
            volume,
            place,
            at,
            hints,
        });
        rig.times += 1;
    }
    rig.over();
}

fn each(rig: &mut Rig<'_>, who: Who, name: &str) {
    if who == Who::Kafka {
        return rig.cluster().kafka.broker().signal(name);
    }
    for at in rig.those(who) {
        rig.roles[at].process().signal(name);
    }
}

fn volume<'r>(rig: &'r mut Rig<'_>, place: Place) -> &'r crate::volume::Volume {
    let volume = match place {
        Place::Spool => rig.spool.as_ref(),
        Place::Lake => rig.lake.as_ref(),
        Place::Broker => rig.cluster().volume.as_ref(),
    };
    volume.expect("the row's stand has it")
}

/// Connections that send a byte a second for as long as they are let.
async fn drip(rig: &mut Rig<'_>, count: u32) {
    let address = rig.roles[rig.those(Who::Receiver)[0]].address().to_owned();
    let started = Instant::now();
    let mut connections = tokio::task::JoinSet::new();
    for _ in 0..count {
        let address = address.clone();
        connections.spawn(async move {
            let Ok(mut stream) = TcpStream::connect(address).await else {
                return;
            };
            for byte in b"POST /twilio/callbacks HTTP/1.1\r\nHost: x\r\n"
                .iter()
                .cycle()
            {
                if stream.write_all(&[*byte]).await.is_err() {
                    return;
                }
                sleep(Duration::from_secs(1)).await;
            }
        });
    }
    let all = async { while connections.join_next().await.is_some() {} };
    let ended = tokio::time::timeout(DRIP_LIMIT, all).await;
    assert!(
        ended.is_ok(),
        "slow connections were still open after {DRIP_LIMIT:?}"
    );
    rig.times += u64::from(count);
    rig.also.insert(
        "slow clients held s".to_owned(),
        started.elapsed().as_secs_f64(),
    );
    rig.over();
}

/// Callbacks whose sender resets the connection right after the body: they may be there or not.
async fn leave(rig: &mut Rig<'_>, count: u32) {
    let address = rig.roles[rig.those(Who::Receiver)[0]].address().to_owned();
    for n in 0..count {
        let left = crate::load::left_behind(n, &rig.ledger);
        let Ok(mut stream) = TcpStream::connect(&address).await else {
            continue;
        };
        let _ = stream.set_zero_linger();
        // The receiver may have gone; the callback is indefinite either way.
        let _ = stream.write_all(left.as_bytes()).await;
        rig.times += 1;
    }
    rig.over();
}

async fn forbidden(rig: &mut Rig<'_>, limit: Duration) {
    until("the old key is forbidden", limit, async || {
        match rig.ledger.forbidden() {
            0 => Err("none is".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
}

async fn ended(rig: &mut Rig<'_>, who: Who, limit: Duration) {
    let those = rig.those(who);
    until("a process ends by itself", limit, async || {
        for at in &those {
            rig.roles[*at].note_end();
            if !rig.roles[*at].ends.is_empty() {
                return Ok(());
            }
        }
        Err("all of them run".to_owned())
    })
    .await;
    rig.times += 1;
}

async fn command(rig: &mut Rig<'_>, args: &[&str]) {
    let words = edit::filled(rig, args);
    let mut command = rig.world.program.command(&[], &words);
    let started = Instant::now();
    let mut process = Process::spawn(&words.join(" "), &mut command);
    let code = process.wait_exit(COMMAND_LIMIT).await.code();
    assert!(matches!(code, Some(0 | 3)), "{}", process.report());
    let exit = f64::from(code.expect("one of the two"));
    rig.also.insert(format!("exit of {}", args[0]), exit);
    let took = started.elapsed().as_secs_f64();
    rig.also.insert(format!("s of {}", args[0]), took);
}

async fn with_keys(rig: &mut Rig<'_>, keys: &str) {
    for at in rig.those(Who::Receiver) {
        let role = &mut rig.roles[at];
        role.env = vec![("CONVOLAKE_SIGNING_KEYS", keys.replace("{old}", AUTH_TOKEN))];
        role.process().sigterm();
        role.process().wait_exit(EXIT_LIMIT).await;
        role.bury();
        rig.start_role(at).await;
    }
    rig.times += 1;
}

/// Ends every role as an operator would; one that does not end well is told.
pub(crate) async fn stop(roles: &mut [Role]) -> Vec<String> {
    let mut found = Vec::new();
    for role in roles {
        role.note_end();
        let Some(process) = &mut role.process else {
            continue;
        };
        process.sigterm();
        let status = process.wait_exit(EXIT_LIMIT).await;
        if status.code() != Some(0) {
            found.push(format!("{:?} ended with {status} after SIGTERM", role.who));
        }
        role.bury();
    }
    found
}
