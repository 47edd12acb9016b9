//! `convolake reconcile`: closed conversations that no callback announced.

use std::time::Duration;

use crate::api::{self, Api};
use crate::config::Secrets;
use crate::config::args::Reconcile;
use crate::lake::{Access, Lake};
use crate::lifecycle::{Clock, Stop};
use crate::reconcile::bookmark::{Bookmark, FILE_NAME};
use crate::reconcile::{Reconciler, Report};
use crate::topic::{self, Publisher, Topics};

use super::{Exit, PUBLISHER_DRAIN, Process, block_on, cores, kafka_at, open_lake, print};

/// Findings of a kind that are named in the text; the JSON names all.
const NAMED: usize = 50;

pub(super) fn run(args: Reconcile, secrets: &Secrets) -> anyhow::Result<Exit> {
    let api = super::ingest::api(&args.api, secrets)?;
    let (settings, topics) = kafka_at(args.kafka.kafka.clone(), &args.kafka.names)?;
    block_on(cores(), async {
        let lake = open_lake(&args.lake, Access::Existing).await?;
        match args.every {
            None => once(&args, api, &settings, &topics, &lake).await,
            Some(every) => repeat(args, every, api, settings, topics, lake).await,
        }
    })
}

async fn once(
    args: &Reconcile,
    api: api::Settings,
    settings: &topic::Settings,
    topics: &Topics,
    lake: &Lake,
) -> anyhow::Result<Exit> {
    let publisher = Publisher::start(settings)?;
    let api = Api::new(api, Clock::system())?;
    let report = reconciler(args, lake, &api, &publisher, topics)
        .pass(&Stop::new())
        .await?;
    publisher.close(PUBLISHER_DRAIN).await?;
    show(args.json, &report)?;
    Ok(if report.is_clean() {
        Exit::Done
    } else {
        Exit::Found
    })
}

/// A pass that fails is one that the next goes on with.
async fn repeat(
    args: Reconcile,
    every: Duration,
    api: api::Settings,
    settings: topic::Settings,
    topics: Topics,
    lake: Lake,
) -> anyhow::Result<Exit> {
    let mut process = Process::start("reconcile", args.ops.ops_listen).await?;
    let passing = process.readiness.dependency("pass");
    let publisher = Publisher::start(&settings)?;
    let api = Api::new(api, process.clock)?;
    let stop = process.stop.clone();
    process.tasks.spawn("reconcile", async move {
        while !stop.is_requested() {
            let reconciler = reconciler(&args, &lake, &api, &publisher, &topics);
            // A page's closes are awaited: dropped in between, the page is done again.
            match stop.race(reconciler.pass(&stop)).await {
                Some(Ok(report)) => {
                    passing.up();
                    show(args.json, &report)?;
                }
                Some(Err(error)) => {
                    let error = format!("{:#}", anyhow::Error::from(error));
                    tracing::warn!(
                        error,
                        "a pass was broken off; the next one goes on from there"
                    );
                    passing.down(error);
                }
                None => break,
            }
            stop.race(tokio::time::sleep(every)).await;
        }
        publisher.close(PUBLISHER_DRAIN).await?;
        Ok(())
    });
    process.tasks.finish().await?;
    Ok(Exit::Done)
}

fn reconciler<'a>(
    args: &Reconcile,
    lake: &'a Lake,
    api: &'a Api,
    publisher: &'a Publisher,
    topics: &'a Topics,
) -> Reconciler<'a> {
    let state = args.state.clone();
    let state = state.unwrap_or_else(|| lake.root().join(FILE_NAME));
    Reconciler {
        lake,
        api,
        publisher,
        topics,
        clock: Clock::system(),
        bookmark: Bookmark::new(state, args.api.api_url.as_str()),
        grace: args.grace,
        active_limit: args.active_limit,
    }
}

fn show(json: bool, report: &Report) -> anyhow::Result<()> {
    print(&if json {
        format!("{}\n", serde_json::to_string(report)?)
    } else {
        text(report)
    })
}

fn text(report: &Report) -> String {
    let mut out = format!(
        "closed conversations: {} listed, {} complete, {} young, {} closes published\n",
        report.listed,
        report.complete,
        report.young,
        report.closes.len()
    );
    if report.published.contains_key("missing") {
        let delays = report.delay_seconds;
        out += &format!(
            "found after their close: p50 {} s, p99 {} s, at most {} s\n",
            delays.p50, delays.p99, delays.max
        );
    }
    for close in report.closes.iter().take(NAMED) {
        out += &format!("  {}: {}\n", close.conversation_id, close.why);
    }
    for active in report.active.iter().take(NAMED) {
        out += &format!(
            "  {}: ACTIVE since {}: {}\n",
            active.conversation_id, active.since, active.cause
        );
    }
    let named = report.closes.len().min(NAMED) + report.active.len().min(NAMED);
    let more = report.closes.len() + report.active.len() - named;
    if more > 0 {
        out += &format!("  … and {more} more (--json names all)\n");
    }
    out
}
