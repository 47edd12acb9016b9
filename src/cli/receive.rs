//! `convolake receive`: the status-callback endpoint.

use std::time::Duration;

use crate::config::args::Receive;
use crate::config::{Invalid, Secrets};
use crate::lifecycle::{Clock, Stop};
use crate::signature::Verifier;
use crate::spool::{self, Spool};
use crate::topic::{Publisher, Topics};
use crate::{receive, telemetry, topic};

use super::{
    Exit, KAFKA_CHECK, KAFKA_PAUSE, PUBLISHER_DRAIN, Process, bind, block_on, create_topics, kafka,
};

/// How often the spool is asked how it is.
const SPOOL_PAUSE: Duration = Duration::from_millis(500);

/// File descriptors that are not for callbacks: listeners, ops connections, Kafka's sockets and pipes, the
/// spool's files and its folder, and one connection that waits for a place.
const RESERVED_FILES: u64 = 40;

/// Longest close of the spool's file after the role has ended: all that was answered is on disk.
const SPOOL_DRAIN: Duration = Duration::from_millis(500);

pub(super) fn run(args: Receive, secrets: &Secrets) -> anyhow::Result<Exit> {
    let verifier = Verifier::new(args.public_url.clone(), secrets.signing_keys()?)?;
    let (settings, topics) = kafka(&args.kafka)?;
    // Before the spool, whose thread would otherwise count into nothing.
    telemetry::start_metrics();
    let spool = args.spool.as_ref().map(|folder| {
        Spool::open(&spool::Settings {
            folder: folder.clone(),
            max_bytes: args.spool_max_bytes.get(),
            clock: Clock::system(),
        })
    });
    let spool = spool.transpose().map_err(refused)?;
    // One thread owns connections and acknowledgements: more were measured to be slower.
    block_on(1, serve(args, verifier, settings, topics, spool))?;
    Ok(Exit::Done)
}

/// How many connections the limit of open files has room for, of those `wanted`: with none left for them, Kafka
/// and the spool could not be opened again after a fault. The limit is raised as far as it may be.
fn connections(wanted: u32) -> usize {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let needed = u64::from(wanted) + RESERVED_FILES;
    if limit.current.is_some_and(|current| current < needed) {
        let before = limit.current;
        limit.current = Some(limit.maximum.map_or(needed, |most| most.min(needed)));
        if setrlimit(Resource::Nofile, limit).is_err() {
            limit.current = before;
        }
    }
    let possible = room(limit.current.unwrap_or(u64::MAX), wanted);
    if possible < wanted {
        tracing::warn!(
            wanted,
            possible,
            open_files = limit.current,
            "fewer connections at once than configured; raise the limit of open files"
        );
    }
    possible as usize
}

fn room(open_files: u64, wanted: u32) -> u32 {
    // Below the reserve nothing works well; one connection says so to whoever looks.
    let room = open_files.saturating_sub(RESERVED_FILES).max(1);
    u32::try_from(room).unwrap_or(u32::MAX).min(wanted)
}

/// A spool that cannot be used is wrong use, like any other setting.
fn refused(error: spool::Error) -> Invalid {
    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
    Invalid(format!("{error}{}", cause.unwrap_or_default()))
}

async fn serve(
    args: Receive,
    verifier: Verifier,
    settings: topic::Settings,
    topics: Topics,
    spool: Option<Spool>,
) -> anyhow::Result<()> {
    let listener = bind(args.listen).await?;
    let mut process = Process::start("receive", args.ops.ops_listen).await?;
    // Not the whole URL: its user and its query can hold secrets.
    tracing::info!(listen = %listener.local_addr()?, path = args.public_url.path(), "receiving callbacks");
    let publisher = Publisher::start(&settings)?;
    let ready = match &spool {
        None => process.readiness.dependency("kafka"),
        Some(spool) => {
            let [kafka, ready] = process.readiness.either(["kafka", "spool"]);
            let (spool, stop) = (spool.clone(), process.stop.clone());
            process.tasks.spawn("spool readiness", async move {
                watch_spool(&spool, &ready, &stop).await;
                Ok(())
            });
            kafka
        }
    };
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
        max_connections: connections(args.max_connections.get()),
        spool: spool.clone(),
    };
    let (clock, stop) = (process.clock, process.stop.clone());
    process.tasks.spawn("receive", async move {
        let served = receive::serve(listener, settings, publisher.clone(), clock, stop).await;
        // Everybody has an answer: what is still on its way was answered 503, or is in the spool as well.
        let flushed = publisher.close(PUBLISHER_DRAIN).await;
        if let Some(spool) = spool {
            spool.close(SPOOL_DRAIN).await;
        }
        served?;
        Ok(flushed?)
    });
    process.tasks.finish().await
}

/// Keeps `/readyz` honest about Kafka.
pub(super) async fn watch(
    publisher: &Publisher,
    topics: &Topics,
    ready: &telemetry::Dependency,
    stop: &Stop,
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

/// Keeps `/readyz` honest about the spool.
async fn watch_spool(spool: &Spool, ready: &telemetry::Dependency, stop: &Stop) {
    while !stop.is_requested() {
        let health = spool.health();
        match health.down {
            None => ready.up_with(health.note),
            Some(reason) => ready.down(reason),
        }
        stop.race(tokio::time::sleep(SPOOL_PAUSE)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_room_for_everything_else() {
        for (open_files, wanted, possible) in [
            (u64::MAX, 4_096, 4_096),
            (1_024, 4_096, 984),
            (64, 4_096, 24),
            (64, 10, 10),
            (20, 4_096, 1),
        ] {
            assert_eq!(room(open_files, wanted), possible, "{open_files} {wanted}");
        }
    }
}
