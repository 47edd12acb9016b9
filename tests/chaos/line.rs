//! One row's result: a JSON line, and the table of many of them.
//!
//! Owns the names of the figures and how they are shown.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::BufRead;

use serde::{Deserialize, Serialize};

use crate::plan::Row;

/// Whether what must hold did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Verdict {
    #[serde(rename = "held")]
    Held,
    #[serde(rename = "broken")]
    Broken,
    #[serde(rename = "not run")]
    NotRun,
}

/// What came of a row. A figure that the row does not have is null.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) row: String,
    pub(crate) place: String,
    pub(crate) fault: String,
    pub(crate) must: String,
    pub(crate) verdict: Verdict,
    /// What was broken, or why it was not run.
    pub(crate) why: Vec<String>,
    /// Time limits that were missed: reported, deciding nothing.
    pub(crate) late: Vec<String>,
    pub(crate) sabotage: Option<String>,
    pub(crate) seed: u64,
    pub(crate) commit: String,
    pub(crate) size: String,
    pub(crate) seconds: f64,
    #[serde(flatten)]
    pub(crate) figures: Figures,
}

/// What was counted and measured.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Figures {
    /// Kills, cuts, restarts: how often the fault was done.
    pub(crate) times: u64,
    pub(crate) sent: u64,
    pub(crate) acked: u64,
    pub(crate) refused: u64,
    pub(crate) indefinite: u64,
    /// Distinct bodies of records in the topic, and records that repeat one.
    pub(crate) topic: u64,
    pub(crate) topic_repeats: u64,
    /// Rows of `events`, and conversations.
    pub(crate) lake: Option<u64>,
    pub(crate) conversations: Option<u64>,
    pub(crate) dlq: u64,
    pub(crate) quarantine: u64,
    pub(crate) lost: u64,
    pub(crate) dup_raw: Option<u64>,
    pub(crate) dup_view: Option<u64>,
    pub(crate) invented: u64,
    pub(crate) torn: Option<u64>,
    pub(crate) orphans: Option<u64>,
    /// Files that `maintain` deleted.
    pub(crate) swept: Option<u64>,
    /// Looks of the foreign reader while the row ran.
    pub(crate) looks: Option<u64>,
    pub(crate) p50_ms: Option<u64>,
    pub(crate) p99_ms: Option<u64>,
    pub(crate) max_ms: Option<u64>,
    pub(crate) t_first_ok_s: Option<f64>,
    pub(crate) t_spool_empty_s: Option<f64>,
    pub(crate) t_caught_up_s: Option<f64>,
    pub(crate) rss_peak_mb: Option<u64>,
    pub(crate) fds_peak: Option<u64>,
    pub(crate) spool_peak_mb: Option<f64>,
    /// Figures of this row alone.
    pub(crate) also: BTreeMap<String, f64>,
}

/// The Markdown page of the JSON lines in `lines`, rows in the order of the matrix.
pub(crate) fn page<'a>(
    lines: impl BufRead,
    rows: impl Iterator<Item = &'a Row>,
) -> Result<String, String> {
    let mut found: Vec<Line> = Vec::new();
    for line in lines.lines() {
        let line = line.map_err(|error| error.to_string())?;
        found.push(serde_json::from_str(&line).map_err(|error| format!("{error}: {line}"))?);
    }
    let sabotage: Vec<&Line> = found
        .iter()
        .filter(|line| line.sabotage.is_some())
        .collect();
    let of = |row: &Row| {
        let last = found
            .iter()
            .rfind(|line| line.row == row.id && line.sabotage.is_none());
        last.map_or_else(|| "not run | not part of this run".to_owned(), figures)
    };
    let ran = |line: &&Line| line.sabotage.is_none() && line.verdict != Verdict::NotRun;
    let mut text = String::from(HEAD);
    let commits: std::collections::BTreeSet<&str> =
        found.iter().map(|line| line.commit.as_str()).collect();
    let count = found.iter().filter(ran).count();
    let held = found
        .iter()
        .filter(ran)
        .filter(|line| line.verdict == Verdict::Held)
        .count();
    let commits: Vec<&str> = commits.into_iter().collect();
    writeln!(
        text,
        "{count} rows were run, {held} held; at {}. A time limit never decides a row; those missed are named.\n",
        commits.join(", ")
    )
    .expect("a String takes everything");
    text.push_str(
        "| row | what breaks | what must hold | verdict | figures |\n|---|---|---|---|---|\n",
    );
    for row in rows {
        let line = format!(
            "| {} | {}: {} | {} | {} |\n",
            row.id,
            row.place,
            row.fault,
            row.must,
            of(row)
        );
        text.push_str(&line);
    }
    text.push_str(SABOTAGE_HEAD);
    let mut tries: BTreeMap<&str, Vec<&Line>> = BTreeMap::new();
    for line in sabotage {
        let name = line.sabotage.as_deref().unwrap_or_default();
        tries.entry(name).or_default().push(line);
    }
    for (name, tries) in tries {
        let last = tries.last().expect("entered with one");
        let seen = match last.verdict {
            Verdict::Broken => "seen",
            Verdict::Held => "**not seen**",
            Verdict::NotRun => "not run",
        };
        let why = last.why.first().map_or(String::new(), |why| cell(why));
        let seeds = tries.len();
        text.push_str(&format!(
            "| {name} | {} | {seen} | {seeds} | {why} |\n",
            last.row
        ));
    }
    Ok(text)
}

/// Verdict and figures, as two cells.
fn figures(line: &Line) -> String {
    if line.verdict == Verdict::NotRun {
        return format!("not run | {}", cell(&line.why.join("; ")));
    }
    let f = &line.figures;
    let mut cells = Vec::new();
    let mut add = |name: &str, value: Option<String>| {
        cells.extend(value.map(|value| format!("{name} {value}")));
    };
    let some = |n: u64| (n > 0).then(|| n.to_string());
    add("times", some(f.times));
    add("acked", some(f.acked));
    add("refused", some(f.refused));
    add("indefinite", some(f.indefinite));
    add("lost", Some(f.lost.to_string()));
    add("invented", Some(f.invented.to_string()));
    add("repeats in Kafka", some(f.topic_repeats));
    add("dup raw", f.dup_raw.map(|n| n.to_string()));
    add("dup view", f.dup_view.map(|n| n.to_string()));
    add("torn", f.torn.map(|n| n.to_string()));
    add("conversations", f.conversations.map(|n| n.to_string()));
    add("dead letters", some(f.dlq));
    add("orphans", f.orphans.map(|n| n.to_string()));
    add("swept", f.swept.map(|n| n.to_string()));
    add("looks", f.looks.map(|n| n.to_string()));
    add("p99 ms", f.p99_ms.map(|n| n.to_string()));
    add("max ms", f.max_ms.map(|n| n.to_string()));
    add("first 2xx s", f.t_first_ok_s.map(|n| format!("{n:.1}")));
    add(
        "spool empty s",
        f.t_spool_empty_s.map(|n| format!("{n:.1}")),
    );
    add("caught up s", f.t_caught_up_s.map(|n| format!("{n:.1}")));
    add("RSS MB", f.rss_peak_mb.map(|n| n.to_string()));
    add("descriptors", f.fds_peak.map(|n| n.to_string()));
    add("seed", Some(line.seed.to_string()));
    for (name, value) in &f.also {
        add(name, Some(format!("{value:.1}")));
    }
    let verdict = match line.verdict {
        Verdict::Held => "held",
        Verdict::Broken => "**broken**",
        Verdict::NotRun => "not run",
    };
    let why: Vec<&str> = line
        .why
        .iter()
        .chain(&line.late)
        .map(String::as_str)
        .collect();
    let why = if why.is_empty() {
        String::new()
    } else {
        cell(&format!("; {}", why.join("; ")))
    };
    format!("{verdict} | {}{why}", cells.join(", "))
}

/// Text that stays in its cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

const HEAD: &str = "\
# The fault matrix, as it was run

Written by `cargo run --example chaos -- table` from the JSON lines of a run; not by hand. Each row starts the
real program, a real Kafka and, where a lake is concerned, readers that are not ours, and breaks something
while signed callbacks come in. **lost**: answered 2xx and nowhere afterwards. **invented**: somewhere and never
sent, or under a forged signature. **dup raw**: one Kafka position twice in `events`. **dup view**: a conversation or
communication twice. **torn**: one that differs from what really was. All of them have to be 0 in every row.

**orphans**: data files that no version ever named. A commit writes a file for each channel and day that it has rows of,
so a writer that is killed before its log entry leaves up to **files a commit** of them: one only where the rows are of
one channel and one day. That figure is what the largest commits had, to `events` and to one other table, since a process
commits to two at a time. **swept**: how many files `maintain` deleted afterwards: orphans, replaced ones, and those that
were staged and never finished. None may be left then, and no row may have changed.

";

const SABOTAGE_HEAD: &str = "
## Would it be seen?

A build with a guard taken out on purpose has to turn its row red.

| sabotage | row | | seeds tried | what was seen |
|---|---|---|---|---|
";
