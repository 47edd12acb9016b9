//! `maintain` while a row runs, and after its verdict.
//!
//! Owns what was abandoned on purpose, the command's runs, and the count of what they deleted. Whether a file was
//! deleted that somebody wanted is for the readers to say, as in every row.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::edit;
use crate::harness::process::Process;
use crate::harness::until;
use crate::line::Figures;
use crate::oracle;
use crate::plan::Under;
use crate::rig::Rig;

const TABLES: [&str; 3] = ["communications", "conversations", "events"];
/// Longest run of the command.
const COMMAND_LIMIT: Duration = Duration::from_secs(120);
/// Longest wait for a commit between two runs.
const PROGRESS_LIMIT: Duration = Duration::from_secs(60);
/// How old what is abandoned on purpose says it is: older than any retention that a row asks for.
const ABANDONED: Duration = Duration::from_secs(9 * 24 * 60 * 60);
/// Data files of the largest commits that one process can have under way.
pub(crate) const FILES_A_COMMIT: &str = "files a commit";
/// What is left is swept with no retention at all, once nothing runs.
const NOTHING_RUNS: &[&str] = &["--retain", "0s", "--writers-stopped"];

/// Leaves in each table one data file and one staged file of a writer that is long dead, and says how many that is.
pub(crate) fn abandon(lake: &Path) -> u64 {
    let mut left = 0;
    for table in TABLES {
        let file = edit::newest_data(&lake.join(table));
        for name in ["abandoned.parquet", "abandoned-2.parquet#1"] {
            let copy = file.with_file_name(name);
            std::fs::copy(&file, &copy).unwrap();
            let opened = std::fs::File::options().append(true).open(&copy).unwrap();
            let now = opened.metadata().unwrap().modified().unwrap();
            opened.set_modified(now - ABANDONED).unwrap();
            left += 1;
        }
    }
    left
}

/// Runs the command so often, each time after something was committed, under the row's wall clock.
pub(crate) async fn again(rig: &mut Rig<'_>, times: u32, flags: &[&str]) {
    for _ in 0..times {
        let before = rig.versions();
        until(
            "a commit between two sweeps",
            PROGRESS_LIMIT,
            async || match rig.versions() {
                more if more > before => Ok(()),
                same => Err(format!("{same}")),
            },
        )
        .await;
        rig.swept += once(rig, Under::Preload, flags).await;
        rig.times += 1;
    }
    rig.over();
}

/// How many files one run deleted.
async fn once(rig: &mut Rig<'_>, under: Under, flags: &[&str]) -> u64 {
    let own = ["maintain", "--json", "--lake", "{lake}"];
    let words = edit::filled(rig, &[&own, flags].concat());
    let mut command = rig.world.program.command(&[], &words);
    if under == Under::Preload {
        rig.preload(&mut command);
    }
    let mut process = Process::spawn(&words.join(" "), &mut command);
    let code = process.wait_exit(COMMAND_LIMIT).await.code();
    assert_eq!(code, Some(0), "{}", process.report());
    let report: Value = serde_json::from_str(&process.stdout()).expect("it was asked for JSON");
    let tables = report["tables"].as_array().expect("a list").iter();
    tables.map(|table| table["deleted"].as_u64().unwrap()).sum()
}

/// Sweeps what the row left, after which every file is named and every row still there.
pub(crate) async fn all(rig: &mut Rig<'_>, figures: &mut Figures, broken: &mut Vec<String>) {
    let before = oracle::audit(rig);
    rig.swept += once(rig, Under::Nothing, NOTHING_RUNS).await;
    figures.swept = Some(rig.swept);
    let (mut before, mut after) = match (before, oracle::audit(rig)) {
        (Ok((before, _)), Ok((after, _))) => (before, after),
        (Err(why), _) | (_, Err(why)) => {
            broken.push(format!("the lake cannot be read: {why}"));
            return;
        }
    };
    let number = |name: &str| before[name].as_f64().expect("a number");
    let kills = rig.times.max(1) as f64;
    for (name, value) in [
        (FILES_A_COMMIT, number("commit_files")),
        ("orphans a kill", number("orphans") / kills),
    ] {
        figures.also.insert(name.to_owned(), value);
    }
    for name in ["orphans", "replaced"] {
        before[name] = 0.into();
    }
    // Samples of what differs from the truth come in any order.
    for counts in [&mut before, &mut after] {
        counts["first"].take();
    }
    if before != after {
        broken.push(format!("after the sweep {after}, not {before}"));
    }
}
