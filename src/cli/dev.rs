//! `convolake dev`: everything in one process, then the verdict.
//!
//! No shortcut inside the process: each conversation goes through HTTP, signature, Kafka, REST paging and
//! Delta. The embedded cluster keeps little, in memory, so the emulator is held back by how far the two
//! consumer groups are behind ([`MAX_BEHIND`]).

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use tokio::time::Instant;

use crate::api::{self, Api};
use crate::config::Secrets;
use crate::config::args::{CallbackArgs, Dev, FlushArgs, TopicArgs};
use crate::emulator::{Emulator, Options, Script};
use crate::lake::{Access, Lake};
use crate::lifecycle::{DRAIN_DEADLINE, Stop};
use crate::signature::{PublicUrl, Verifier};
use crate::table::TableName;
use crate::topic::{EmbeddedCluster, Publisher, Topics};
use crate::{receive, topic, verify};

use super::ingest::{Groups, Watched};
use super::{
    Exit, PUBLISHER_DRAIN, Process, bind, block_on, cores, kafka_at, open_lake, print, progress_bar,
};

/// Records that either group may be behind before the emulator is held back: far below what the embedded
/// cluster keeps of a partition (5 MB).
const MAX_BEHIND: u64 = 20_000;

/// How often the pace and the progress bar are looked at.
const TICK: Duration = Duration::from_millis(20);

/// Longest time from the last callback to the last commit, beyond the flush interval and the settle delay.
const CATCH_UP: Duration = Duration::from_secs(120);

/// The URL that the emulator signs: nobody resolves it, the connection goes to loopback.
const PUBLIC_URL: &str = "https://convolake.example/twilio/conversations";

/// How it is tried again: as often as Twilio can be asked to.
const RETRIES: &str = "#rc=5&rp=all";

/// Partitions of the embedded topic.
const EMBEDDED_PARTITIONS: i32 = 4;

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Summary {
    conversations: u64,
    communications: u64,
    by_channel: BTreeMap<String, u64>,
    callbacks: Callbacks,
    api_calls: u64,
    lake: LakeSummary,
    verify: Verdict,
    close_to_queryable_ms: Quantiles,
    seconds: f64,
    seed: u64,
}

#[derive(Debug, Serialize)]
struct Callbacks {
    accepted: u64,
    refused: u64,
    duplicate: u64,
}

#[derive(Debug, Serialize)]
struct LakeSummary {
    path: String,
    files: u64,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Verdict {
    complete: u64,
    partial: u64,
    gone: u64,
    missing: u64,
}

#[derive(Debug, Serialize)]
struct Quantiles {
    p50: u64,
    p99: u64,
}

pub(super) fn run(args: Dev) -> anyhow::Result<Exit> {
    let kafka = args
        .kafka
        .clone()
        .map(|brokers| kafka_at(brokers, &args.topics.names))
        .transpose()?;
    let faults = super::emulate::faults(&args.faults)?;
    let json = args.json;
    let summary = block_on(cores(), async move {
        let (stop, interrupted) = (Stop::new(), Stop::new());
        let mut process =
            Process::start_with("dev", args.ops_listen, stop.clone(), interrupted.clone()).await?;
        // Ends after everything that talks to it.
        let mut embedded = None;
        let world = World::start(&mut process, &args, faults, kafka, &mut embedded).await?;
        let publisher = world.publisher.clone();
        let (result, summary) = tokio::sync::oneshot::channel();
        process.tasks.spawn("dev", async move {
            let summary = world.play(&args, &interrupted).await;
            stop.request();
            // Nobody waits for it only where another task failed first, and that is what is reported.
            let _ = result.send(summary?);
            Ok(())
        });
        process.tasks.finish().await?;
        publisher.close(PUBLISHER_DRAIN).await?;
        summary.await.context("dev ended before it had a result")
    })?;
    let complete = summary.verify.partial + summary.verify.missing == 0;
    print(&if json {
        format!("{}\n", serde_json::to_string(&summary)?)
    } else {
        text(&summary)
    })?;
    Ok(if complete { Exit::Done } else { Exit::Found })
}

/// Every role, wired together over loopback.
struct World {
    emulator: Emulator,
    publisher: Publisher,
    lake: Arc<Lake>,
    api: Api,
    watched: Watched,
    seed: u64,
}

impl World {
    async fn start(
        process: &mut Process,
        args: &Dev,
        faults: Script,
        kafka: Option<(topic::Settings, Topics)>,
        embedded: &mut Option<EmbeddedCluster>,
    ) -> anyhow::Result<World> {
        let lake = Arc::new(open_lake(&args.lake, Access::Create).await?);
        process.readiness.dependency("lake").up();
        let (settings, topics) = match kafka {
            Some((settings, topics)) => {
                let TopicArgs {
                    partitions,
                    replication,
                    ..
                } = args.topics;
                topic::create_topics(&settings, &topics, partitions, replication).await?;
                (settings, topics)
            }
            None => {
                let topics = Topics::named(&args.topics.names.topic);
                let cluster = EmbeddedCluster::start(EMBEDDED_PARTITIONS, &topics.all())?;
                (embedded.insert(cluster).settings(), topics)
            }
        };
        let cluster = topic::cluster_id(&settings, DRAIN_DEADLINE).await?;
        let publisher = Publisher::start(&settings)?;
        let secrets = super::emulate::with_defaults(Secrets::default());
        let callbacks = start_receiver(process, &secrets, &topics, &publisher).await?;
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let options = Options {
            faults,
            ..super::emulate::options(listen, &callbacks, &args.traffic, &secrets, process.clock)?
        };
        let seed = options.seed;
        let emulator = super::emulate::start(options, process.clock, process.stop.child())?;
        let api = start_api(&emulator, &secrets, args, process)?;
        let flush = FlushArgs::for_dev(args.flush_interval, args.settle);
        let groups = Groups {
            settings,
            topics,
            cluster,
            group: "convolake".to_owned(),
            flush,
            accepted_gaps: Vec::new(),
        };
        let watched = groups.spawn(process, Arc::clone(&lake), api.clone(), &publisher);
        Ok(World {
            emulator,
            publisher,
            lake,
            api,
            watched,
            seed,
        })
    }

    /// Plays the traffic, waits until it is all in the lake, verifies.
    async fn play(self, args: &Dev, interrupted: &Stop) -> anyhow::Result<Summary> {
        let started = Instant::now();
        self.pace(args.traffic.conversations, interrupted).await;
        let patience = if interrupted.is_requested() {
            DRAIN_DEADLINE / 2
        } else {
            args.flush_interval + args.settle + CATCH_UP
        };
        let caught_up = self.catch_up(patience).await;
        let seconds = started.elapsed().as_secs_f64();
        if !caught_up {
            tracing::warn!("the ingester did not catch up; the verdict is of what it had written");
        }
        let api_calls = self.emulator.counts().api_requests;
        let report = verify::verify(&self.lake, &self.api).await?;
        if !report.is_complete() {
            print(&super::verify::text(&report))?;
        }
        let mut files = (0, 0);
        for name in TableName::ALL {
            let stats = self.lake.table(name).stats().await?;
            files = (files.0 + stats.files as u64, files.1 + stats.bytes);
        }
        let counts = self.emulator.counts();
        Ok(Summary {
            conversations: report.complete + report.partial + report.missing + report.torn,
            communications: report.communications,
            by_channel: report.by_channel,
            callbacks: Callbacks {
                accepted: counts.deliveries_accepted,
                refused: counts.refused + counts.unanswered,
                duplicate: counts.duplicate,
            },
            api_calls,
            lake: LakeSummary {
                path: args.lake.clone(),
                files: files.0,
                bytes: files.1,
            },
            verify: Verdict {
                complete: report.complete,
                partial: report.partial,
                gone: report.gone,
                missing: report.missing + report.torn,
            },
            close_to_queryable_ms: Quantiles {
                p50: self.watched.work.close_to_queryable_ms(0.5),
                p99: self.watched.work.close_to_queryable_ms(0.99),
            },
            seconds,
            seed: self.seed,
        })
    }

    /// Holds the emulator back while a group is behind, until its traffic is done or a signal came.
    async fn pace(&self, conversations: u64, interrupted: &Stop) {
        let bar = progress_bar(conversations);
        let done = self.emulator.traffic_done();
        tokio::pin!(done);
        let mut ticks = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                () = &mut done => break,
                () = interrupted.requested() => break,
                _ = ticks.tick() => {}
            }
            let counts = self.emulator.counts();
            self.emulator
                .gate(counts.deliveries_accepted.saturating_sub(self.passed()) < MAX_BEHIND);
            bar.set_position(counts.conversations_closed);
        }
        self.emulator.gate(!interrupted.is_requested());
        bar.finish_and_clear();
    }

    async fn catch_up(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut ticks = tokio::time::interval(TICK);
        while self.passed() < self.emulator.counts().deliveries_accepted {
            if Instant::now() > deadline {
                return false;
            }
            ticks.tick().await;
        }
        true
    }

    /// Records that both groups are done with.
    fn passed(&self) -> u64 {
        self.watched
            .archive
            .passed()
            .min(self.watched.enricher.passed())
    }
}

async fn start_receiver(
    process: &mut Process,
    secrets: &Secrets,
    topics: &Topics,
    publisher: &Publisher,
) -> anyhow::Result<CallbackArgs> {
    let listener = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await?;
    let address = listener.local_addr()?;
    let public_url = PublicUrl::parse(PUBLIC_URL)?;
    let settings = receive::Settings {
        verifier: Verifier::new(public_url, secrets.signing_keys()?)?,
        topics: topics.clone(),
        max_connections: 1024,
        spool: None,
    };
    let (publisher, clock, stop) = (publisher.clone(), process.clock, process.stop.clone());
    process.tasks.spawn("receive", async move {
        Ok(receive::serve(listener, settings, publisher, clock, stop).await?)
    });
    Ok(CallbackArgs {
        callback_url: Some(format!("{PUBLIC_URL}{RETRIES}")),
        callback_connect: Some(address),
    })
}

fn start_api(
    emulator: &Emulator,
    secrets: &Secrets,
    args: &Dev,
    process: &Process,
) -> anyhow::Result<Api> {
    let (user, password) = secrets.basic_auth()?;
    let origin = format!("http://{}", emulator.address()).parse()?;
    let mut settings = api::Settings::new(origin, api::Credentials::new(user, password.expose()));
    settings.requests_per_second = args.requests_per_second;
    Ok(Api::new(settings, process.clock)?)
}

/// The summary for a person, with the line to try next.
fn text(summary: &Summary) -> String {
    let channels: Vec<String> = summary
        .by_channel
        .iter()
        .map(|(channel, rows)| format!("{channel} {rows}"))
        .collect();
    let Summary {
        callbacks,
        lake,
        verify,
        close_to_queryable_ms: queryable,
        ..
    } = summary;
    let verdict = if verify.partial + verify.missing == 0 {
        "complete"
    } else {
        "NOT complete"
    };
    format!(
        "conversations       {} (seed {})\n\
         communications      {}: {}\n\
         callbacks           {} accepted, {} refused, {} of them duplicates\n\
         api calls           {}\n\
         lake                {}: {} files, {} bytes\n\
         close to queryable  p50 {} ms, p99 {} ms\n\
         seconds             {:.1}\n\
         verify              {} complete, {} partial, {} gone, {} missing\n\
         verdict             {verdict}\n\n\
         Try next, with DuckDB:\n  {}\n",
        summary.conversations,
        summary.seed,
        summary.communications,
        channels.join(", "),
        callbacks.accepted,
        callbacks.refused,
        callbacks.duplicate,
        summary.api_calls,
        lake.path,
        lake.files,
        lake.bytes,
        queryable.p50,
        queryable.p99,
        summary.seconds,
        verify.complete,
        verify.partial,
        verify.gone,
        verify.missing,
        try_next(&lake.path),
    )
}

/// A line that works as printed, in the folder that `dev` ran in.
fn try_next(lake: &str) -> String {
    let program = std::env::current_exe().unwrap_or_else(|_| "convolake".into());
    let here = std::env::current_dir().unwrap_or_default();
    let program = program.strip_prefix(&here).unwrap_or(&program).display();
    let lake = lake.replace('\'', r"'\''");
    format!("duckdb -c \"$('{program}' sql --lake '{lake}') FROM channel_daily ORDER BY ALL\"")
}
