//! The fault matrix: the real program, broken on purpose, and judged by what is left.
//!
//! `cargo run --example chaos -- [--rows R1,C1] [--short|--release] [--seed N] [--kills N] [--out FILE]` runs
//! rows and prints a JSON line for each; `… -- --sabotage` runs builds that lack a guard, each against the row
//! that has to see it; `… -- table < lines` prints the page of `docs/reliability.md`.
//!
//! The rows are values (`matrix`), in the vocabulary of `plan`; `rig` starts what a row needs, `step` breaks it,
//! `load` sends and `ledger` remembers, `oracle` judges. A row that this machine or this harness cannot run is
//! printed as *not run*, with the reason, and never as held. Exit code 1: a row is broken, or a sabotage was
//! not seen.
//!
//! Guarantees: what a seed decides is the same in every run (what is sent, in which order, who is killed
//! after which delay); what the machine decides (timing) never decides a verdict.
#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "all of this is a test and its helpers; a panic is how a row breaks"
)]

// What the integration tests share as well.
#[allow(dead_code, reason = "the integration tests use the rest of it")]
#[path = "../harness/mod.rs"]
mod harness;

// What a row is made of, and the rows.
mod matrix;
mod plan;

// What runs, what is sent, what breaks.
mod edit;
mod ledger;
mod lives;
mod load;
mod proxy;
mod recover;
mod rig;
mod role;
mod step;
mod sweep;
mod volume;
mod world;

// What came of it.
mod line;
mod oracle;
mod sabotage;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use clap::{Parser, Subcommand};
use futures::FutureExt as _;

use line::{Figures, Line, Verdict};
use oracle::Findings;
use plan::{Case, Plan, Row};
use rig::Rig;
use world::{Program, Size, World};

/// Breaks the real program on purpose and judges what is left; one JSON line a row.
#[derive(Debug, Parser)]
#[command(name = "chaos")]
struct Arguments {
    #[command(subcommand)]
    command: Option<Page>,
    /// Rows to run, by id; else all.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Sizes for every change: minutes (the default).
    #[arg(long, conflicts_with = "release")]
    short: bool,
    /// Sizes for a release: 300 kills, 20 power cuts.
    #[arg(long)]
    release: bool,
    /// What is drawn is drawn from this.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Kills, cuts and restarts of each row, instead of those of the size.
    #[arg(long)]
    kills: Option<u32>,
    /// JSON lines are appended here as well.
    #[arg(long)]
    out: Option<PathBuf>,
    /// The program, instead of one that is built first.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Print what the processes wrote, also where a row held.
    #[arg(long)]
    verbose: bool,
    /// Run builds that lack a guard; each must break its row.
    #[arg(long)]
    sabotage: bool,
}

/// Instead of running anything.
#[derive(Debug, Subcommand)]
enum Page {
    /// JSON lines on standard input to the Markdown page on standard output.
    Table,
    /// The ids of all rows, and what they break.
    List,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.command {
        Some(Page::Table) => line::page(std::io::stdin().lock(), matrix::rows()).map(|page| {
            print!("{page}");
            true
        }),
        Some(Page::List) => {
            list();
            Ok(true)
        }
        None => {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build();
            runtime.unwrap().block_on(run(&arguments))
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("chaos: {why}");
            ExitCode::FAILURE
        }
    }
}

fn list() {
    for row in matrix::rows() {
        println!("{}\t{}: {}", row.id, row.place, row.fault);
    }
}

/// Runs what was asked for; whether all of it held, or all of the sabotage was seen.
async fn run(arguments: &Arguments) -> Result<bool, String> {
    let size = if arguments.release {
        Size::Release
    } else {
        Size::Short
    };
    let unknown = |id: &&String| matrix::rows().all(|row| row.id != id.as_str());
    if let Some(id) = arguments.rows.iter().find(unknown) {
        return Err(format!("there is no row {id}; `chaos list` shows them"));
    }
    if arguments.sabotage {
        return sabotage::run(arguments, size).await;
    }
    let path = match &arguments.binary {
        Some(path) => path.clone(),
        None => build(&[])?,
    };
    let program = Program {
        path,
        sabotage: None,
    };
    let mut world = World::new(program, size, arguments)?;
    let mut held = true;
    for row in matrix::rows() {
        if arguments.rows.is_empty() || arguments.rows.iter().any(|id| id == row.id) {
            let line = one(&mut world, row).await;
            held &= line.verdict != Verdict::Broken;
            tell(arguments, &line)?;
        }
    }
    Ok(held)
}

/// Prints a line, and keeps it where `--out` says.
fn tell(arguments: &Arguments, line: &Line) -> Result<(), String> {
    let text = serde_json::to_string(line).expect("a line is JSON");
    println!("{text}");
    let Some(out) = &arguments.out else {
        return Ok(());
    };
    let file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(out);
    file.and_then(|mut file| writeln!(file, "{text}"))
        .map_err(|error| format!("{}: {error}", out.display()))
}

/// Builds the program as this harness was built, with these further arguments, and says where it is.
fn build(further: &[&str]) -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let folder = own
        .parent()
        .and_then(Path::parent)
        .ok_or("not in a target folder")?;
    let mut cargo = Command::new(option_env!("CARGO").unwrap_or("cargo"));
    cargo
        .args(["build", "--locked", "--quiet", "--bin", "convolake"])
        .args(further)
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    harness::process::run("cargo build", &mut cargo)?;
    Ok(folder.join("convolake"))
}

/// Runs a row.
async fn one(world: &mut World, row: &'static Row) -> Line {
    let started = Instant::now();
    let mut line = Line {
        row: row.id.to_owned(),
        place: row.place.to_owned(),
        fault: row.fault.to_owned(),
        must: row.must.to_owned(),
        verdict: Verdict::NotRun,
        why: Vec::new(),
        late: Vec::new(),
        sabotage: world.program.sabotage.map(str::to_owned),
        seed: world.seed,
        commit: commit(),
        size: format!("{:?}", world.size).to_lowercase(),
        seconds: 0.0,
        figures: Figures::default(),
    };
    let (target, names): (&[&str], _) = match &row.plan {
        Plan::Run(case) => {
            run_case(world, row, case, &mut line).await;
            line.seconds = started.elapsed().as_secs_f64();
            return line;
        }
        Plan::Tested(names) => (&["--lib"], names),
        Plan::Integration(names) => (&["--test", "it"], names),
    };
    match tested(target, names, world.size) {
        Ok(count) => {
            line.verdict = Verdict::Held;
            line.figures.also.insert("tests".to_owned(), count);
        }
        Err(why) => {
            line.verdict = Verdict::Broken;
            line.why.push(why);
        }
    }
    line.seconds = started.elapsed().as_secs_f64();
    line
}

/// Runs a row's experiment; a panic is a row that is broken.
async fn run_case(world: &mut World, row: &'static Row, case: &'static Case, line: &mut Line) {
    let run = std::panic::AssertUnwindSafe(experiment(world, row, case)).catch_unwind();
    match run.await {
        Ok(Ok(findings)) => {
            let held = findings.broken.is_empty();
            line.verdict = if held { Verdict::Held } else { Verdict::Broken };
            line.why = findings.broken;
            line.late = findings.late;
            line.figures = findings.figures;
        }
        Ok(Err(lacks)) => line.why.push(lacks),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            line.verdict = Verdict::Broken;
            line.why
                .push(text.unwrap_or_else(|| "it panicked".to_owned()));
            // The broker may be what was left broken; the next row has a new one.
            world.cluster = None;
        }
    }
}

/// Runs the tests of a target whose names begin so, of which there must be some, and says how many.
fn tested(target: &[&str], names: &[&str], size: Size) -> Result<f64, String> {
    let mut cargo = Command::new(option_env!("CARGO").unwrap_or("cargo"));
    cargo
        .args(["test", "--locked", "--quiet"])
        .args(target)
        .arg("--")
        .args(names)
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    if size == Size::Release {
        // As many edits of a spool as the matrix asks for.
        cargo.env("CONVOLAKE_SPOOL_EDITS", "10000");
    }
    let printed = harness::process::run("cargo test", &mut cargo)?;
    let passed = printed
        .split("test result: ok. ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    match passed.and_then(|count| count.parse().ok()) {
        Some(count) if count > 0.0 => Ok(count),
        _ => Err(format!("no test is named {}", names.join(" or "))),
    }
}

async fn experiment(
    world: &mut World,
    row: &'static Row,
    case: &'static Case,
) -> Result<Findings, String> {
    let verbose = world.verbose;
    let mut rig = Rig::start(world, row, case).await?;
    let done = std::panic::AssertUnwindSafe(break_and_judge(&mut rig, case)).catch_unwind();
    let done = done.await;
    if verbose || !matches!(&done, Ok(findings) if findings.broken.is_empty()) {
        eprintln!(
            "==== {}: what the processes wrote\n{}",
            row.id,
            rig.written()
        );
    }
    done.map_or_else(|panic| std::panic::resume_unwind(panic), Ok)
}

async fn break_and_judge(rig: &mut Rig<'_>, case: &'static Case) -> Findings {
    for step in case.before {
        step::run(rig, step).await;
    }
    for at in 0..rig.roles.len() {
        rig.start_role(at).await;
    }
    if case.stand.workers > 0 {
        edit::settled(rig).await;
    }
    rig.watch();
    rig.send().await;
    for step in case.steps {
        step::run(rig, step).await;
    }
    oracle::judge(rig).await
}

/// The commit of the working copy; `+` where something is not in it.
fn commit() -> String {
    let git = |args: &[&str]| {
        let mut git = Command::new("git");
        git.args(args).current_dir(env!("CARGO_MANIFEST_DIR"));
        harness::process::run("git", &mut git).unwrap_or_default()
    };
    let changed = if git(&["status", "--porcelain", "--untracked-files=no"])
        .trim()
        .is_empty()
    {
        ""
    } else {
        "+"
    };
    format!(
        "{}{changed}",
        git(&["rev-parse", "--short=12", "HEAD"]).trim()
    )
}
