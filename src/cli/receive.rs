//! `convolake receive`: the status-callback endpoint.

use crate::config::Secrets;
use crate::config::args::Receive;
use crate::signature::Verifier;
use crate::topic::{Publisher, Topics};
use crate::{receive, telemetry, topic};

use super::{
    Exit, KAFKA_CHECK, KAFKA_PAUSE, PUBLISHER_DRAIN, Process, bind, block_on, create_topics, kafka,
};

pub(super) fn run(args: Receive, secrets: &Secrets) -> anyhow::Result<Exit> {
    let verifier = Verifier::new(args.public_url.clone(), secrets.signing_keys()?)?;
    let (settings, topics) = kafka(&args.kafka)?;
    // One thread owns connections and acknowledgements: more were measured to be slower.
    block_on(1, serve(args, verifier, settings, topics))?;
    Ok(Exit::Done)
}

async fn serve(
    args: Receive,
    verifier: Verifier,
    settings: topic::Settings,
    topics: Topics,
) -> anyhow::Result<()> {
    let listener = bind(args.listen).await?;
    let mut process = Process::start("receive", args.ops.ops_listen).await?;
    // Not the whole URL: its user and its query can hold secrets.
    tracing::info!(listen = %listener.local_addr()?, path = args.public_url.path(), "receiving callbacks");
    let publisher = Publisher::start(&settings)?;
    let ready = process.readiness.dependency("kafka");
    process.tasks.spawn("readiness", {
        let (publisher, topics, stop) = (publisher.clone(), topics.clone(), process.stop.clone());
        let topic_args = args.kafka.topics.clone();
        async move {
            create_topics(&settings, &topics, &topic_args, &ready, &stop).await;
            watch(&publisher, &topics, &ready, &stop).await;
            Ok(())
        }
    });
    let settings = receive::Settings {
        verifier,
        topics,
        max_connections: args.max_connections.get() as usize,
    };
    let (clock, stop) = (process.clock, process.stop.clone());
    process.tasks.spawn("receive", async move {
        receive::serve(listener, settings, publisher.clone(), clock, stop).await?;
        // Nothing that was answered 204 is unacknowledged; this flush is for what was not answered.
        publisher.close(PUBLISHER_DRAIN).await?;
        Ok(())
    });
    process.tasks.finish().await
}

/// Keeps `/readyz` honest about Kafka.
pub(super) async fn watch(
    publisher: &Publisher,
    topics: &Topics,
    ready: &telemetry::Dependency,
    stop: &crate::lifecycle::Stop,
) {
    while !stop.is_requested() {
        match stop.race(publisher.check(&topics.all(), KAFKA_CHECK)).await {
            Some(Ok(())) => ready.up(),
            Some(Err(error)) => ready.down(error.to_string()),
            None => return,
        }
        stop.race(tokio::time::sleep(KAFKA_PAUSE)).await;
    }
}
