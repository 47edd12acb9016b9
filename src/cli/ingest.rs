//! `convolake ingest`: the Kafka consumer deployment.

use std::sync::Arc;

use crate::api::{self, Api};
use crate::config::args::{ApiArgs, FlushArgs, Ingest};
use crate::config::{Invalid, Secrets};
use crate::enrich::{Enricher, Limits};
use crate::ingest::archive::Archive;
use crate::ingest::enricher::EnricherWork;
use crate::ingest::{self, Progress};
use crate::lake::{Access, Lake};
use crate::lifecycle::Stop;
use crate::telemetry::Dependency;
use crate::topic::{self, Publisher, Topics};

use super::{
    Exit, KAFKA_CHECK, KAFKA_PAUSE, PUBLISHER_DRAIN, Process, block_on, cores, create_topics,
    kafka, open_lake,
};

pub(super) fn run(args: Ingest, secrets: &Secrets) -> anyhow::Result<Exit> {
    let api = api(&args.api, secrets)?;
    let (settings, topics) = kafka(&args.kafka)?;
    block_on(cores(), serve(args, api, settings, topics))?;
    Ok(Exit::Done)
}

async fn serve(
    args: Ingest,
    api: api::Settings,
    settings: topic::Settings,
    topics: Topics,
) -> anyhow::Result<()> {
    let lake = Arc::new(open_lake(&args.lake, Access::Create).await?);
    let mut process = Process::start("ingest", args.ops.ops_listen).await?;
    let api = Api::new(api, process.clock)?;
    process.readiness.dependency("lake").up();
    let kafka_up = process.readiness.dependency("kafka");
    create_topics(
        &settings,
        &topics,
        &args.kafka.topics,
        &kafka_up,
        &process.stop,
    )
    .await;
    let Some(cluster) = cluster(&settings, &kafka_up, &process.stop).await else {
        return process.tasks.finish().await;
    };
    kafka_up.up();
    let publisher = Publisher::start(&settings)?;
    process.tasks.spawn("readiness", {
        let (publisher, topics, stop) = (publisher.clone(), topics.clone(), process.stop.clone());
        async move {
            super::receive::watch(&publisher, &topics, &kafka_up, &stop).await;
            Ok(())
        }
    });
    let groups = Groups {
        settings,
        topics,
        cluster,
        group: args.group,
        flush: args.flush,
        accepted_gaps: args.accepted_gaps,
    };
    groups.spawn(&mut process, lake, api, &publisher);
    let ended = process.tasks.finish().await;
    if let Err(error) = publisher.close(PUBLISHER_DRAIN).await {
        // Dead letters that were not acknowledged hold their offsets: they are published again.
        tracing::warn!(%error, "stopped before every dead letter was acknowledged");
    }
    ended
}

/// The API's settings: origin, budget, credentials.
pub(super) fn api(args: &ApiArgs, secrets: &Secrets) -> Result<api::Settings, Invalid> {
    let (user, password) = secrets.basic_auth()?;
    let mut settings = api::Settings::new(
        args.api_url.clone(),
        api::Credentials::new(user, password.expose()),
    );
    settings.requests_per_second = args.requests_per_second;
    Ok(settings)
}

/// Asks for the cluster's id until it is there: positions are named by it.
async fn cluster(settings: &topic::Settings, ready: &Dependency, stop: &Stop) -> Option<String> {
    loop {
        match stop.race(topic::cluster_id(settings, KAFKA_CHECK)).await? {
            Ok(cluster) => return Some(cluster),
            Err(error) => {
                tracing::warn!(%error, "waiting for Kafka");
                ready.down(error.to_string());
            }
        }
        stop.race(tokio::time::sleep(KAFKA_PAUSE)).await?;
    }
}

/// What both consumer groups share.
pub(super) struct Groups {
    pub(super) settings: topic::Settings,
    pub(super) topics: Topics,
    pub(super) cluster: String,
    pub(super) group: String,
    pub(super) flush: FlushArgs,
    pub(super) accepted_gaps: Vec<topic::Gap>,
}

/// What the two groups let others see.
pub(super) struct Watched {
    pub(super) archive: Arc<Progress>,
    pub(super) enricher: Arc<Progress>,
    pub(super) work: Arc<EnricherWork>,
}

impl Groups {
    /// Starts the archive and the enricher as two groups on one loop.
    pub(super) fn spawn(
        self,
        process: &mut Process,
        lake: Arc<Lake>,
        api: Api,
        publisher: &Publisher,
    ) -> Watched {
        let api_up = process.readiness.dependency("api");
        // Unknown until the first conversation is fetched, and no reason to be out of service before.
        api_up.up();
        let archive = Arc::new(Archive::new(Arc::clone(&lake), process.clock));
        let enricher = Enricher::new(api, process.clock, Limits::default());
        let work = Arc::new(EnricherWork::new(
            enricher,
            lake,
            process.clock,
            self.flush.settle,
            self.flush.recheck_window,
            api_up,
        ));
        let watched = Watched {
            archive: Arc::default(),
            enricher: Arc::default(),
            work: Arc::clone(&work),
        };
        self.spawn_one(process, "archive", archive, publisher, &watched.archive);
        self.spawn_one(process, "enricher", work, publisher, &watched.enricher);
        watched
    }

    fn spawn_one<W: ingest::Work>(
        &self,
        process: &mut Process,
        name: &'static str,
        work: Arc<W>,
        publisher: &Publisher,
        progress: &Arc<Progress>,
    ) {
        let ready = process.readiness.dependency(name);
        let settings = ingest::Settings {
            group: format!("{}-{name}", self.group),
            cluster: self.cluster.clone(),
            topics: self.topics.clone(),
            flush_interval: self.flush.flush_interval,
            flush_rows: self.flush.flush_rows.get() as usize,
            flush_bytes: self.flush.flush_bytes.get() as usize,
            max_in_flight_bytes: self.flush.max_in_flight_bytes.get(),
            concurrency: self.flush.concurrency.get() as usize,
            accepted_gaps: self.accepted_gaps.clone(),
        };
        let (kafka, publisher) = (self.settings.clone(), publisher.clone());
        let (progress, stop) = (Arc::clone(progress), process.stop.clone());
        process.tasks.spawn(name, async move {
            Ok(ingest::run(work, &kafka, publisher, settings, progress, ready, stop).await?)
        });
    }
}
