//! What heals a lake that [`super::verify`] found wanting: damaged files out of the log, closes into the topic.
//!
//! Owns which of the findings can be healed from the API. Writes no row itself: a close goes the way of every
//! other, and the enricher replaces what is there. A damaged file is taken out of the Delta log in one commit (the
//! file itself stays on disk for whoever wants to look), because nothing can be replaced in a table that cannot be
//! read.
//!
//! Callbacks whose file is lost do not come back by this: they are replayed from Kafka, for as long as it keeps them, before
//! the file is taken out.

use std::collections::BTreeSet;

use serde::Serialize;

use super::Report;
use crate::announce::{self, Close, Why};
use crate::lake::{Commit, Lake, LakeError};
use crate::lifecycle::Clock;
use crate::table::TableName;
use crate::topic::{PublishError, Publisher, Topics};

/// Closes published and not yet acknowledged: far below what the producer's queue takes.
const UNACKNOWLEDGED: usize = 64;

/// What was done.
#[derive(Debug, Default, Serialize)]
pub struct Repair {
    /// Damaged files that are no longer part of their tables.
    pub files_dropped: u64,
    /// Conversations whose close was published.
    pub closes_published: u64,
}

/// Why a repair ended early. Another one is safe.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// A damaged file could not be taken out.
    #[error("damaged files could not be taken out of the log; run the repair again")]
    Lake(#[from] LakeError),
    /// Kafka did not take a close.
    #[error("{published} closes were published, then one was not taken; run the repair again")]
    Publish {
        /// Acknowledged before.
        published: u64,
        /// Why.
        #[source]
        source: PublishError,
    },
}

/// Takes damaged files out of the log, then publishes a close of every conversation with a finding.
///
/// # Errors
/// [`RepairError`].
pub async fn repair(
    lake: &Lake,
    report: &Report,
    publisher: &Publisher,
    topics: &Topics,
    clock: Clock,
) -> Result<Repair, RepairError> {
    let mut done = Repair::default();
    for name in TableName::ALL {
        let damaged = report.damaged.iter().filter(|it| it.table == name.as_str());
        let drop_files: BTreeSet<String> = damaged.map(|it| it.path.clone()).collect();
        if drop_files.is_empty() {
            continue;
        }
        done.files_dropped += drop_files.len() as u64;
        let commit = Commit {
            drop_files,
            ..Commit::default()
        };
        lake.table(name).commit(&commit).await?;
    }
    let ids = report.problems.iter().map(|it| &*it.conversation_id);
    let unheld = report.unheld.iter().map(|it| &*it.conversation_id);
    let ids: Vec<&str> = ids
        .chain(unheld)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    for chunk in ids.chunks(UNACKNOWLEDGED) {
        let acknowledgements: Vec<_> = chunk
            .iter()
            .map(|conversation_id| {
                let close = Close {
                    conversation_id,
                    account_id: None,
                    closed_at: None,
                    why: Why::Repair,
                };
                announce::publish(publisher, topics, &close, clock.now())
            })
            .collect();
        for acknowledgement in acknowledgements {
            acknowledgement
                .await
                .map_err(|source| RepairError::Publish {
                    published: done.closes_published,
                    source,
                })?;
            done.closes_published += 1;
        }
    }
    Ok(done)
}
