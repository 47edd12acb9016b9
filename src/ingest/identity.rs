//! Whether the topic is the one that the lake's positions are of.
//!
//! A topic that was deleted and created anew has the old name and new records at the old offsets: reading on from the
//! lake's positions would pass over some of them in silence. Kafka gives each topic an id of its own; the first
//! membership of a group writes it into the table of its positions, and each later one compares it.
//!
//! Guarantees: no record is read before the comparison. Fails with [`IngestError::Recreated`]; Kafka being away is
//! waited out.

use std::time::Duration;

use super::{IngestError, Settings, Work};
use crate::lake::{Commit, LakeError, Position};
use crate::lifecycle::Stop;
use crate::telemetry;
use crate::topic;

/// Longest look at the brokers.
const LOOK: Duration = Duration::from_secs(5);

/// Pause between two looks while they are away.
const PAUSE: Duration = Duration::from_secs(2);

/// What came of the comparison.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// It is the topic that the positions are of, as far as the brokers can say.
    Same,
    /// The stop came first.
    Stopped,
}

/// Compares the topic's id with the one in the lake, and writes it there the first time.
pub(super) async fn check<W: Work>(
    work: &W,
    kafka: &topic::Settings,
    settings: &Settings,
    ready: &telemetry::Dependency,
    stop: &Stop,
) -> Result<Seen, IngestError> {
    let topic = &settings.topics.events;
    let id = loop {
        match stop.race(topic::topic_id(kafka, topic, LOOK)).await {
            None => return Ok(Seen::Stopped),
            Some(Ok(id)) => break id,
            Some(Err(error @ topic::Error::Unreachable { .. })) => ready.down(error.to_string()),
            Some(Err(source)) => {
                return Err(IngestError::Topic {
                    group: settings.group.clone(),
                    source: Box::new(source),
                });
            }
        }
        if stop.race(tokio::time::sleep(PAUSE)).await.is_none() {
            return Ok(Seen::Stopped);
        }
    };
    match id {
        Some(id) => compare(work, settings, id).await,
        None => Ok(Seen::Same),
    }
}

pub(super) async fn compare<W: Work>(
    work: &W,
    settings: &Settings,
    id: i64,
) -> Result<Seen, IngestError> {
    let table = work.table();
    let lake_error = |source| IngestError::Lake {
        group: settings.group.clone(),
        source,
    };
    let app = format!(
        "convolake/{}/{}/{}/id",
        settings.group, settings.cluster, settings.topics.events
    );
    // Twice, because another member may write it first.
    for _ in 0..2 {
        let known = table
            .positions(std::slice::from_ref(&app))
            .await
            .map_err(lake_error)?;
        match known[..] {
            [Some(known)] if known == id => return Ok(Seen::Same),
            [Some(_)] => break,
            _ => {}
        }
        let position = Position {
            app: app.clone(),
            from: None,
            to: id,
        };
        let commit = Commit {
            positions: vec![position],
            ..Commit::default()
        };
        match table.commit(&commit).await {
            Ok(_) => return Ok(Seen::Same),
            Err(LakeError::Refused { .. }) => {}
            Err(error) => return Err(lake_error(error)),
        }
    }
    Err(IngestError::Recreated {
        group: settings.group.clone(),
        topic: settings.topics.events.clone(),
    })
}
