//! `convolake replay`: dead letters, or quarantine, back through the pipeline.

use crate::config::args::Replay;
use crate::replay::{Report, Selection, replay};
use crate::topic::Publisher;

use super::{Exit, PUBLISHER_DRAIN, block_on, cores, kafka_at, print};

pub(super) fn run(args: Replay) -> anyhow::Result<Exit> {
    let (settings, topics) = kafka_at(args.kafka.kafka, &args.kafka.names)?;
    let selection = Selection {
        reasons: args.reasons.into_iter().collect(),
        since: args.since,
        until: args.until,
        conversations: args.conversations.into_iter().collect(),
        offsets: args.offsets,
    };
    let report = block_on(cores(), async {
        let publisher = Publisher::start(&settings)?;
        let report = replay(
            &settings,
            &publisher,
            &topics,
            args.from,
            &selection,
            args.dry_run,
        )
        .await?;
        // Everything in the report was acknowledged.
        publisher.close(PUBLISHER_DRAIN).await?;
        anyhow::Ok(report)
    })?;
    if args.json {
        print(&format!("{}\n", serde_json::to_string(&report)?))?;
    } else {
        print(&text(&report))?;
    }
    Ok(Exit::Done)
}

fn text(report: &Report) -> String {
    use std::fmt::Write;
    let did = if report.dry_run {
        "would be replayed"
    } else {
        "replayed"
    };
    let mut out = format!(
        "{} records read, {} selected: {} {did}, {} are no event and stay\n",
        report.read, report.selected, report.replayed, report.not_understood
    );
    for (reason, counts) in &report.by_reason {
        let _ = writeln!(
            out,
            "  {reason}: {} {did}, {} stay",
            counts.replayed, counts.not_understood
        );
    }
    out
}
