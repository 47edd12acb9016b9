//! What became of everything that was sent: sets, by readers that are not ours.
//!
//! Owns the verdict. *Lost* is what was answered 2xx and is in no topic, or in the topic and not in the lake
//! although the lake had all the time it needed. *Invented* is what is in a topic and was never sent, or only
//! under a forged signature. Repeats and torn conversations are counted by `audit.py`, what a reader met
//! while the row ran by `watch.py`. An indefinite callback may be there or not.
//!
//! Timing never decides: a limit that was missed is told beside the verdict. Only waiting has an end, and
//! what is not there at the end is lost.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::harness::SLOW_POLL_INTERVAL;
use crate::harness::duckdb::run_script;
use crate::harness::parts::Record;
use crate::harness::process::arg;
use crate::ledger::{Entry, Kind, Outcome};
use crate::line::Figures;
use crate::lives::DRAINED_A_S;
use crate::plan::{Claim, Who};
use crate::recover;
use crate::rig::{Rig, named};
use crate::step;
use crate::sweep::{self, FILES_A_COMMIT};
use crate::world::topics;

/// Longest time from the end of the load until a spool has been drained and the lake has everything.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(300);
/// What has not got less for so long will not, also on a machine that is ten times slower: fifteen times the longest
/// pause that anything here makes.
const STALL_LIMIT: Duration = Duration::from_secs(150);
/// Longest time for every captured callback to be acknowledged once nothing breaks any more.
const ACKNOWLEDGE_LIMIT: Duration = Duration::from_secs(120);

/// The same where a loss is expected, and being wrong about it would only be seen by the sound build's row.
const SABOTAGED_STALL_LIMIT: Duration = Duration::from_secs(15);

/// How long something that has to become less is waited for.
#[derive(Debug)]
pub(crate) struct Patience {
    stall: Duration,
    started: Instant,
    least: u64,
    since: Instant,
}

impl Patience {
    pub(crate) fn of(rig: &Rig<'_>) -> Patience {
        let now = Instant::now();
        Patience {
            stall: match rig.world.program.sabotage {
                None => STALL_LIMIT,
                Some(_) => SABOTAGED_STALL_LIMIT,
            },
            started: now,
            least: u64::MAX,
            since: now,
        }
    }

    /// Pauses, unless `left` is nothing, has not got less for long, or was waited for long enough.
    pub(crate) async fn goes_on(&mut self, left: u64) -> bool {
        if left < self.least {
            self.least = left;
            self.since = Instant::now();
        }
        if left == 0 || self.since.elapsed() > self.stall || self.elapsed() > CATCH_UP_LIMIT {
            return false;
        }
        tokio::time::sleep(SLOW_POLL_INTERVAL).await;
        true
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

/// Rows that differ from the truth as [`Claim::Except`] allows.
const CHANGED: &str = "changed";

/// What was found of a row.
#[derive(Debug)]
pub(crate) struct Findings {
    pub(crate) figures: Figures,
    pub(crate) broken: Vec<String>,
    pub(crate) late: Vec<String>,
}

/// Bodies by the hash that the ledger names them with.
#[derive(Debug, Default)]
struct Sent {
    acked: HashMap<String, u64>,
    genuine: HashSet<String>,
    forged: HashSet<String>,
}

/// Ends the load, lets everything be drained, stops the processes, and judges.
pub(crate) async fn judge(rig: &mut Rig<'_>) -> Findings {
    finish_load(rig).await;
    let entries = rig.ledger.finish();
    let sent = Sent::of(&entries);
    let mut figures = figures(rig, &entries);
    let mut broken = Vec::new();
    drained(rig, &sent, &mut figures).await;
    if rig.lake.is_some() {
        lake(rig, &sent, &mut figures, &mut broken).await;
    }
    broken.extend(step::stop(&mut rig.roles).await);
    if rig.case.claims.contains(&Claim::Orphans) {
        sweep::all(rig, &mut figures, &mut broken).await;
    } else if rig.case.claims.contains(&Claim::Swept) {
        figures.swept = Some(rig.swept);
    }
    count_topics(rig, &sent, &mut figures, &mut broken);
    recover::copies(rig, &sent.acked, &mut broken).await;
    figures.also.append(&mut rig.also);
    if figures.lost > 0 {
        broken.push(format!("{} answered 2xx are nowhere", figures.lost));
    }
    if figures.invented > 0 {
        broken.push(format!(
            "{} were never sent, or were forged",
            figures.invented
        ));
    }
    let mut late = Vec::new();
    for claim in rig.case.claims {
        late.extend(missed(claim, &figures));
        check(rig, claim, &figures, &mut broken);
    }
    Findings {
        figures,
        broken,
        late,
    }
}

impl Sent {
    fn of(entries: &[Entry]) -> Sent {
        let mut sent = Sent::default();
        for entry in entries {
            let hash = entry.sha256.clone();
            match (entry.kind, entry.outcome) {
                (Kind::Forged, _) => {
                    sent.forged.insert(hash);
                }
                (_, Outcome::Acked) => {
                    let first = sent.acked.entry(hash.clone()).or_insert(entry.t);
                    *first = entry.t.min(*first);
                    sent.genuine.insert(hash);
                }
                (_, Outcome::Refused | Outcome::Indefinite) => {
                    sent.genuine.insert(hash);
                }
            }
        }
        sent
    }

    fn lost<'s>(&'s self, found: &HashSet<String>) -> Vec<&'s String> {
        self.acked
            .keys()
            .filter(|hash| !found.contains(*hash))
            .collect()
    }
}

/// The load has sent what it had to send, and everything of a conversation was acknowledged.
pub(crate) async fn finish_load(rig: &mut Rig<'_>) {
    let least = rig.case.load.least.of(rig.world.size) as usize;
    let Some(sender) = rig.sender.take() else {
        return;
    };
    let started = Instant::now();
    let wanted = |rig: &Rig<'_>| rig.ledger.acked() >= least && sender.unfinished() == 0;
    while !wanted(rig) {
        let waited = started.elapsed();
        assert!(
            waited < ACKNOWLEDGE_LIMIT,
            "callbacks were not acknowledged {waited:?} after the last fault"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    sender.finish().await;
}

fn figures(rig: &mut Rig<'_>, entries: &[Entry]) -> Figures {
    let count = |outcome| {
        entries
            .iter()
            .filter(|entry| entry.outcome == outcome)
            .count() as u64
    };
    let mut answers: Vec<u64> = entries
        .iter()
        .filter(|entry| entry.status > 0)
        .map(|entry| entry.ms)
        .collect();
    answers.sort_unstable();
    let quantile = |share: usize| {
        answers
            .get((answers.len() * share / 100).min(answers.len().saturating_sub(1)))
            .copied()
    };
    let first_ok = rig.ledger.first_ok_after(rig.mark);
    let peaks = rig.peaks();
    Figures {
        times: rig.times,
        sent: entries.len() as u64,
        acked: count(Outcome::Acked),
        refused: entries
            .iter()
            .filter(|entry| entry.outcome == Outcome::Refused && entry.kind != Kind::Forged)
            .count() as u64,
        indefinite: count(Outcome::Indefinite),
        p50_ms: quantile(50),
        p99_ms: quantile(99),
        max_ms: answers.last().copied(),
        t_first_ok_s: first_ok.map(|ms| Duration::from_millis(ms).as_secs_f64()),
        rss_peak_mb: Some(peaks.rss_kb / 1024),
        fds_peak: Some(peaks.fds),
        spool_peak_mb: rig
            .spool
            .is_some()
            .then(|| peaks.spool_bytes as f64 / f64::from(1 << 20)),
        ..Figures::default()
    }
}

/// Records of a topic, those of a topic that is not there being none.
fn records(rig: &mut Rig<'_>, topic: &str) -> Vec<Record> {
    rig.cluster().kafka.records(topic)
}

/// Hashes of all bodies in a topic.
fn hashes(rig: &mut Rig<'_>, topic: &str) -> HashSet<String> {
    let records = records(rig, topic);
    records.iter().map(|record| named(&record.value)).collect()
}

/// Hashes of all bodies in Kafka.
fn in_kafka(rig: &mut Rig<'_>) -> HashSet<String> {
    let mut found = HashSet::new();
    for topic in topics(&rig.topic.clone()) {
        found.extend(
            records(rig, &topic)
                .iter()
                .map(|record| named(&record.value)),
        );
    }
    found
}

/// Waits until Kafka has everything that was acknowledged, which a spool may still hold.
async fn drained(rig: &mut Rig<'_>, sent: &Sent, figures: &mut Figures) {
    let mut patience = Patience::of(rig);
    loop {
        let mut found = in_kafka(rig);
        found.extend(rig.excused.iter().cloned());
        if rig.lake.is_some() {
            // What a topic lost by its retention is kept by the archive; a lake that is not there yet has nothing.
            found.extend(audit(rig).map(|(_, archived)| archived).unwrap_or_default());
        }
        figures.lost = sent.lost(&found).len() as u64;
        // Without a spool there is nowhere that they could still come from.
        if rig.spool.is_none() || !patience.goes_on(figures.lost).await {
            break;
        }
    }
    figures.t_spool_empty_s = rig
        .spool
        .is_some()
        .then(|| patience.elapsed().as_secs_f64());
}

fn count_topics(rig: &mut Rig<'_>, sent: &Sent, figures: &mut Figures, broken: &mut Vec<String>) {
    let [events, quarantine, dead] = topics(&rig.topic.clone());
    let events = records(rig, &events);
    let quarantined = records(rig, &quarantine);
    figures.dlq = records(rig, &dead).len() as u64;
    figures.quarantine = quarantined.len() as u64;
    let mut bodies: BTreeMap<String, u64> = BTreeMap::new();
    for record in events.iter().chain(&quarantined) {
        *bodies.entry(named(&record.value)).or_default() += 1;
    }
    figures.topic = bodies.len() as u64;
    figures.topic_repeats = bodies.values().map(|count| count - 1).sum();
    let true_closes = true_closes(rig, &events);
    let invented: Vec<&String> = bodies
        .keys()
        .filter(|hash| {
            !sent.genuine.contains(*hash)
                && !rig.planted.contains(*hash)
                && !true_closes.contains(*hash)
        })
        .collect();
    figures.invented += invented.len() as u64;
    if let Some(forged) = invented.iter().find(|hash| sent.forged.contains(**hash)) {
        broken.push(format!("the forged body {forged} was taken"));
    }
}

/// Hashes of closes that are true, whoever announced them: `reconcile`, `verify` and `replay` do.
fn true_closes(rig: &Rig<'_>, events: &[Record]) -> HashSet<String> {
    if rig.lake.is_none() {
        return HashSet::new();
    }
    let truth = std::fs::read_to_string(rig.truth()).unwrap();
    let truth: Value = serde_json::from_str(&truth).expect("the emulator answers in JSON");
    let closed = truth["conversations"].as_array().expect("a list");
    let closed: HashSet<&str> = closed.iter().filter_map(|one| one["id"].as_str()).collect();
    let is_close = |record: &&Record| {
        let body: Value = serde_json::from_slice(&record.value).unwrap_or_default();
        let id = body["data"]["id"].as_str();
        body["eventType"] == "CONVERSATION_UPDATED"
            && body["data"]["status"] == "CLOSED"
            && id.is_some_and(|id| closed.contains(id))
    };
    let closes = events.iter().filter(is_close);
    closes.map(|record| named(&record.value)).collect()
}

/// Waits until the lake has everything that is in Kafka.
pub(crate) async fn caught_up(rig: &mut Rig<'_>) {
    let [events, _, dead] = topics(&rig.topic.clone());
    let wanted = hashes(rig, &events);
    let mut patience = Patience::of(rig);
    loop {
        let letters = hashes(rig, &dead);
        let seen = audit(rig).map(|(counts, archived)| {
            let kept = |hash: &&String| archived.contains(*hash) || letters.contains(*hash);
            let missing = wanted.iter().filter(|hash| !kept(hash));
            // Conversations are whole only once all of their callbacks were sent.
            let rows = match rig.sender {
                Some(_) => 0,
                None => number(&counts, "missing") + number(&counts, "torn"),
            };
            missing.count() as u64 + rows
        });
        let left = seen.clone().unwrap_or(u64::MAX);
        if !patience.goes_on(left).await {
            assert_eq!(seen, Ok(0), "the lake did not catch up");
            break;
        }
    }
    let took = patience.elapsed().as_secs_f64();
    rig.also.insert("caught up s".to_owned(), took);
}

/// Waits until the archive has everything that is in the topic by now.
pub(crate) async fn archived(rig: &mut Rig<'_>) {
    let [events, _, _] = topics(&rig.topic.clone());
    let wanted = hashes(rig, &events);
    let mut patience = Patience::of(rig);
    loop {
        let seen = audit(rig).map(|(_, archived)| wanted.difference(&archived).count() as u64);
        if !patience.goes_on(seen.clone().unwrap_or(u64::MAX)).await {
            assert_eq!(
                seen,
                Ok(0),
                "nobody took over from a worker that stood still"
            );
            return;
        }
    }
}

/// What `audit.py` counted, and the hashes of archived bodies.
pub(crate) fn audit(rig: &mut Rig<'_>) -> Result<(Value, HashSet<String>), String> {
    let hashes = rig.folder.path().join("hashes");
    let truth = rig.truth();
    let lake = rig.lake_path();
    let mut args = vec![arg(&lake), arg(&truth), arg(&hashes)];
    for claim in rig.case.claims {
        if let Claim::Except(columns) = claim {
            args.extend(*columns);
        }
    }
    let counts = run_script(rig.world.python, "../chaos/audit.py", &args)?;
    let text = std::fs::read_to_string(&hashes).map_err(|error| error.to_string())?;
    Ok((counts, text.lines().map(str::to_owned).collect()))
}

async fn lake(rig: &mut Rig<'_>, sent: &Sent, figures: &mut Figures, broken: &mut Vec<String>) {
    let [events, _, dead] = topics(&rig.topic.clone());
    let mut wanted = hashes(rig, &events);
    // What our own commands publish is no callback, and is not archived as one.
    wanted.retain(|hash| sent.genuine.contains(hash) || rig.planted.contains(hash));
    let excused = !rig.excused.is_empty();
    let mut patience = Patience::of(rig);
    let last = loop {
        let letters = hashes(rig, &dead);
        wanted.retain(|hash| !letters.contains(hash));
        let seen = audit(rig).map(|(counts, archived)| {
            let missing = wanted.iter().filter(|hash| !archived.contains(*hash));
            (missing.count() as u64, counts)
        });
        let left = match &seen {
            Ok((missing, _)) if excused => *missing,
            Ok((missing, counts)) => missing + number(counts, "missing") + number(counts, "torn"),
            Err(_) => u64::MAX,
        };
        if !patience.goes_on(left).await {
            break seen;
        }
    };
    figures.t_caught_up_s = Some(patience.elapsed().as_secs_f64());
    match last {
        Err(why) => broken.push(format!("a foreign reader cannot read the lake: {why}")),
        Ok((missing, counts)) => count_lake(&counts, missing, excused, figures, broken),
    }
    if let Some(watched) = rig.watched() {
        figures.looks = watched["looks"].as_u64();
        for found in watched["broken"].as_array().into_iter().flatten() {
            broken.push(format!("a reader met {found}"));
        }
    }
}

fn count_lake(
    counts: &Value,
    missing: u64,
    excused: bool,
    figures: &mut Figures,
    broken: &mut Vec<String>,
) {
    figures.lake = Some(number(counts, "events"));
    figures.conversations = Some(number(counts, "conversations"));
    figures.lost += missing
        + if excused {
            0
        } else {
            number(counts, "missing")
        };
    figures.invented += number(counts, "invented");
    for (name, figure) in [
        ("dup_raw", &mut figures.dup_raw),
        ("dup_view", &mut figures.dup_view),
        ("torn", &mut figures.torn),
    ] {
        *figure = Some(number(counts, name));
        if number(counts, name) > 0 {
            broken.push(format!(
                "{name} {}: {}",
                number(counts, name),
                counts["first"]
            ));
        }
    }
    figures.orphans = Some(number(counts, "orphans"));
    let changed = number(counts, CHANGED);
    if changed > 0 {
        figures.also.insert(CHANGED.to_owned(), changed as f64);
    }
}

fn number(counts: &Value, name: &str) -> u64 {
    counts[name]
        .as_u64()
        .unwrap_or_else(|| panic!("audit.py: no {name} in {counts}"))
}

/// Time limits of a claim that were missed.
fn missed(claim: &Claim, figures: &Figures) -> Vec<String> {
    let mut late = Vec::new();
    match *claim {
        Claim::Answers(p99, longest) => {
            for (name, limit, found) in [
                ("p99", p99, figures.p99_ms),
                ("slowest", longest, figures.max_ms),
            ] {
                let found = Duration::from_millis(found.unwrap_or(0));
                if found > limit {
                    late.push(format!("{name} answer took {found:?}, limit {limit:?}"));
                }
            }
        }
        Claim::FirstOk(limit) => {
            let found = figures.t_first_ok_s.unwrap_or(f64::INFINITY);
            if found > limit.as_secs_f64() {
                late.push(format!("first 2xx after {found:.1} s, limit {limit:?}"));
            }
        }
        Claim::Drains(rate) => {
            let found = figures.also.get(DRAINED_A_S).copied().unwrap_or(0.0);
            if found < f64::from(rate) {
                late.push(format!("drained {found:.0} records a second, not {rate}"));
            }
        }
        _ => {}
    }
    late
}

fn check(rig: &mut Rig<'_>, claim: &Claim, figures: &Figures, broken: &mut Vec<String>) {
    let mut claim_that = |holds: bool, why: String| {
        if !holds {
            broken.push(why);
        }
    };
    match *claim {
        // Reported by `missed`.
        Claim::Answers(..) | Claim::FirstOk(_) | Claim::Drains(_) => {}
        Claim::Except(_) => claim_that(
            figures.also.contains_key(CHANGED),
            "the fault was not felt".to_owned(),
        ),
        Claim::Refuses => claim_that(figures.refused > 0, "nothing was refused".to_owned()),
        Claim::DeadLetters(count) => claim_that(
            figures.dlq == u64::from(count),
            format!("{} dead letters, not {count}", figures.dlq),
        ),
        Claim::Says(text) => {
            let written = rig.written();
            claim_that(written.contains(text), format!("nobody said {text:?}"));
        }
        Claim::Exits(who, code) => {
            let ended = rig
                .roles
                .iter()
                .filter(|role| role.who == who)
                .flat_map(|role| &role.ends);
            let codes: Vec<_> = ended.map(std::process::ExitStatus::code).collect();
            claim_that(
                codes.contains(&Some(code)),
                format!("{who:?} ended with {codes:?}, not {code}"),
            );
        }
        Claim::Lives => {
            let ended: Vec<Who> = rig
                .roles
                .iter()
                .filter(|role| !role.ends.is_empty())
                .map(|role| role.who)
                .collect();
            claim_that(ended.is_empty(), format!("{ended:?} ended by themselves"));
        }
        Claim::Days(most) => {
            let folders = std::fs::read_dir(rig.lake_path().join("events")).unwrap();
            let days =
                folders.filter(|entry| entry.as_ref().is_ok_and(|entry| entry.path().is_dir()));
            // One of the folders is the log.
            let days = days.count() - 1;
            claim_that(days <= most, format!("{days} days"));
        }
        Claim::Orphans => {
            let orphans = figures.orphans.unwrap_or(0);
            let files = figures.also.get(FILES_A_COMMIT).copied().unwrap_or(0.0);
            claim_that(
                orphans as f64 <= rig.times as f64 * files,
                format!(
                    "{orphans} orphans of {} kills, {files} files a commit",
                    rig.times
                ),
            );
        }
        Claim::Swept => claim_that(
            rig.swept == rig.abandoned,
            format!(
                "{} files swept, {} were abandoned",
                rig.swept, rig.abandoned
            ),
        ),
    }
}
