//! What happens by itself, when it is due.
//!
//! Owns the wait for the next due time of the state machine. Refuses to know what happens then. Where the
//! clock stands still, only advancing it brings time, and that is done where it is advanced.
//!
//! Guarantees: one wait at a time, of [`LONGEST_WAIT`] at most, so that a machine that slept is late by that
//! much and no more. Ends at the stop.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::Shared;
use super::clock::Mode;
use crate::lifecycle::Stop;

/// Longest wait without another look at the clock.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Shortest one: a clock that is a little behind the timer's is not asked again at once.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

/// Lets happen what is due, until the stop.
pub(crate) async fn run(shared: Arc<Shared>, stop: Stop) {
    if shared.clock.mode() == Mode::Standing {
        return stop.requested().await;
    }
    let mut changes = shared.due.subscribe();
    loop {
        shared.catch_up().await;
        let due = *changes.borrow_and_update();
        let wait = due.map(|due| {
            let left = due.duration_since(shared.clock.now());
            let left = Duration::try_from(left).unwrap_or(Duration::ZERO);
            left.clamp(SHORTEST_WAIT, LONGEST_WAIT)
        });
        let next = async {
            tokio::select! {
                // The sender lives as long as `shared`.
                _ = changes.changed() => {}
                () = async { match wait {
                    Some(wait) => sleep(wait).await,
                    None => std::future::pending().await,
                } } => {}
            }
        };
        if stop.race(next).await.is_none() {
            return;
        }
    }
}
