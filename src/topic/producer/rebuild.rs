//! The task of a publisher: it serves acknowledgements, and puts a new producer in the place of one that
//! reported a fatal error.
//!
//! Owns the producer's event queue and the order in which one producer follows another. Refuses to send again
//! what the old one had not sent: the caller of each record is told, and decides.
//!
//! Guarantees: nobody sends through a producer that was replaced; every acknowledgement of it ends, as
//! ambiguous; at most one replacement in [`REBUILD_PAUSE`].
//!
//! Fails only by leaving the failed producer in place, which refuses at once, until another can be made.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rdkafka::producer::{BaseProducer, Producer, PurgeConfig};
use tokio::time::Instant;

use super::{Core, Reports, write};
use crate::topic::Error;
use crate::topic::notify::Wakeups;

/// Shortest time between two replacements of the producer: one that fails at once must not spin.
const REBUILD_PAUSE: Duration = Duration::from_secs(1);
/// Longest wait for the reports of records that were purged, which needs no broker.
const PURGE_TIMEOUT: Duration = Duration::from_millis(500);
/// Events served before other tasks of the thread get their turn.
const EVENTS_A_TURN: usize = 64;

impl Core {
    /// Puts a new producer in the place of one that cannot go on; not if that was closed meanwhile.
    fn replace(&self) -> Result<Option<Wakeups<Reports>>, Error> {
        let wakeups = self.produce()?;
        let mut current = write(&self.current);
        let Some(failed) = &mut *current else {
            drop(current);
            retire(wakeups);
            return Ok(None);
        };
        *failed = Arc::clone(wakeups.producer());
        Ok(Some(wakeups))
    }
}

/// Serves acknowledgements until aborted, and replaces the producer after a fatal error.
pub(super) async fn serve(core: Arc<Core>, mut wakeups: Wakeups<Reports>) {
    let mut next_rebuild = Instant::now();
    loop {
        // First, and after a replacement: an event that was there before the signal gives none.
        serve_queued(&wakeups).await;
        while is_fatal(wakeups.producer()) {
            // The producer that failed stays in place until there is another: it refuses at once.
            tokio::time::sleep_until(next_rebuild).await;
            next_rebuild = Instant::now() + REBUILD_PAUSE;
            match core.replace() {
                Ok(None) => return,
                Ok(Some(replacement)) => {
                    tracing::warn!("the producer met a fatal error and was replaced");
                    core.counters.rebuilt.increment(1);
                    retire(std::mem::replace(&mut wakeups, replacement));
                }
                Err(error) => tracing::error!(%error, "cannot replace the producer yet"),
            }
            serve_queued(&wakeups).await;
        }
        if let Err(error) = wakeups.wait().await {
            // Only a closed descriptor fails here, and this task owns it.
            tracing::error!(%error, "the producer's wake-ups failed; restart the process");
            return;
        }
    }
}

/// Cheap as long as nothing went wrong; librdkafka's own question locks.
fn is_fatal(producer: &BaseProducer<Reports>) -> bool {
    let client = producer.client();
    client.context().deliveries.troubled.load(Ordering::Acquire) && client.fatal_error().is_some()
}

async fn serve_queued(wakeups: &Wakeups<Reports>) {
    loop {
        for _ in 0..EVENTS_A_TURN {
            wakeups.producer().poll(Duration::ZERO);
            if wakeups.queued() == 0 {
                return;
            }
        }
        tokio::task::yield_now().await;
    }
}

/// Lets go of a producer off the runtime's threads, because librdkafka joins its own.
fn retire(wakeups: Wakeups<Reports>) {
    tokio::task::spawn_blocking(move || end(wakeups.producer()));
}

/// Ends every acknowledgement that still waits, as ambiguous. Not left to the producer's own drop, which
/// may be later: a check in progress holds it too.
pub(super) fn end(producer: &BaseProducer<Reports>) {
    producer.purge(PurgeConfig::default().queue().inflight());
    // Serves the reports of what was purged; those that did not come in time end with the line below.
    let _ = producer.flush(PURGE_TIMEOUT);
    producer.client().context().deliveries.end();
}
