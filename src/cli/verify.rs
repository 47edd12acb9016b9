//! `convolake verify`: is every closed conversation in the lake, whole and once?

use crate::api::Api;
use crate::config::Secrets;
use crate::config::args::Verify;
use crate::lake::Access;
use crate::lifecycle::Clock;
use crate::verify::{Report, verify};

use super::{Exit, block_on, cores, open_lake, print};

/// Conversations that are named in the text; the JSON names all.
const NAMED: usize = 50;

pub(super) fn run(args: Verify, secrets: &Secrets) -> anyhow::Result<Exit> {
    let api = super::ingest::api(&args.api, secrets)?;
    let report = block_on(cores(), async {
        let lake = open_lake(&args.lake, Access::Existing).await?;
        anyhow::Ok(verify(&lake, &Api::new(api, Clock::system())?).await?)
    })?;
    if args.json {
        print(&format!("{}\n", serde_json::to_string(&report)?))?;
    } else {
        print(&text(&report))?;
    }
    Ok(if report.is_complete() {
        Exit::Done
    } else {
        Exit::Found
    })
}

/// The report for a person.
pub(super) fn text(report: &Report) -> String {
    use std::fmt::Write;
    let mut out = format!(
        "closed conversations: {} complete, {} partial, {} gone, {} missing\n",
        report.complete, report.partial, report.gone, report.missing
    );
    for problem in report.problems.iter().take(NAMED) {
        let _ = writeln!(out, "  {}: {}", problem.conversation_id, problem.why);
    }
    if report.problems.len() > NAMED {
        let _ = writeln!(
            out,
            "  … and {} more (--json names all)",
            report.problems.len() - NAMED
        );
    }
    let verdict = if report.is_complete() {
        "complete"
    } else {
        "NOT complete"
    };
    let _ = writeln!(out, "verdict: {verdict}");
    out
}
