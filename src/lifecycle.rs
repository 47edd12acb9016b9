//! How a process lives: the stop signal, the tasks it owns, the clock it reads.
//!
//! Owns the order of a stop (signal, drain, deadline) and nothing about what is drained. A [`Stop`] is
//! passed in, never global; every task is owned by a [`Tasks`] that awaits it, and the first task to end
//! ends the process.
//!
//! Guarantees: a second signal while draining does not cut the drain short (the deadline does); a panic
//! in any owned task is an error of the process, not a silent hole.

use std::future::Future;
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Longest time between the stop signal and exit. Orchestrators commonly kill after 30 s, some after 10.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

/// A request to stop, shared by all parts of a process.
#[derive(Debug, Clone, Default)]
pub struct Stop(CancellationToken);

impl Stop {
    /// A stop that nothing has requested yet.
    pub fn new() -> Self {
        Stop::default()
    }

    /// Requests it; safe to call twice.
    pub fn request(&self) {
        self.0.cancel();
    }

    /// Whether it was requested.
    pub fn is_requested(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Ends when the stop is requested.
    pub async fn requested(&self) {
        self.0.cancelled().await;
    }

    /// A stop that follows this one and can also be requested alone.
    pub fn child(&self) -> Stop {
        Stop(self.0.child_token())
    }

    /// Runs `work` until it ends, or drops it when the stop is requested first: `None`.
    pub async fn race<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.requested() => None,
            done = work => Some(done),
        }
    }
}

/// Requests `stop` at SIGTERM or Ctrl-C, from now on and not only once the future is polled: a signal that
/// comes while a role starts stops it as well. The future ends after that, or when stopped otherwise.
///
/// # Errors
/// The signals cannot be listened to.
pub fn stop_on_signal(stop: Stop) -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            () = stop.requested() => return,
        };
        tracing::info!(
            signal = name,
            deadline_s = DRAIN_DEADLINE.as_secs(),
            "stopping: draining what is in flight"
        );
        stop.request();
    })
}

/// Tasks that a process owns. Each ends with a result; the first error, or the first task to end before
/// the stop was requested, stops the others.
#[derive(Debug)]
pub struct Tasks {
    set: JoinSet<(&'static str, anyhow::Result<()>)>,
    stop: Stop,
}

impl Tasks {
    /// No tasks yet.
    pub fn new(stop: Stop) -> Self {
        Tasks {
            set: JoinSet::new(),
            stop,
        }
    }

    /// Starts `work` under a name that its failure is reported with.
    pub fn spawn(
        &mut self,
        name: &'static str,
        work: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        self.set.spawn(async move { (name, work.await) });
    }

    /// Waits until every task has ended, the drain deadline counting from the stop.
    ///
    /// # Errors
    /// The first failure or panic of a task; a drain that outlived [`DRAIN_DEADLINE`].
    pub async fn finish(mut self) -> anyhow::Result<()> {
        let mut first_error = None;
        let stop = self.stop.clone();
        let deadline = async {
            stop.requested().await;
            tokio::time::sleep(DRAIN_DEADLINE).await;
        };
        tokio::pin!(deadline);
        loop {
            let ended = tokio::select! {
                ended = self.set.join_next() => ended,
                () = &mut deadline => {
                    self.set.abort_all();
                    let late = anyhow::anyhow!("drain took longer than {} s; what was in flight was dropped unacknowledged", DRAIN_DEADLINE.as_secs());
                    return Err(first_error.unwrap_or(late));
                }
            };
            let error = match ended {
                None => break,
                Some(Ok((_, Ok(())))) => None,
                Some(Ok((name, Err(error)))) => Some(error.context(format!("{name} failed"))),
                Some(Err(panic)) => Some(anyhow::Error::from(panic).context("a task panicked")),
            };
            if let Some(error) = error {
                first_error.get_or_insert(error);
            }
            stop.request();
        }
        first_error.map_or(Ok(()), Err)
    }
}

/// Wall-clock time, by parameter. Durations are measured with `tokio::time::Instant`, which never jumps.
#[derive(Debug, Clone, Copy)]
pub struct Clock(fn() -> Timestamp);

impl Clock {
    /// The machine's clock.
    pub const fn system() -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "the one place that reads the wall clock"
        )]
        Clock(Timestamp::now)
    }

    /// A clock that answers with `now`, for tests.
    pub const fn from_fn(now: fn() -> Timestamp) -> Self {
        Clock(now)
    }

    /// The time now.
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_task_to_end_stops_the_others() {
        let stop = Stop::new();
        let mut tasks = Tasks::new(stop.clone());
        let other = stop.clone();
        tasks.spawn("waits", async move {
            other.requested().await;
            Ok(())
        });
        tasks.spawn("fails", async { anyhow::bail!("no lake") });
        let error = tasks.finish().await.unwrap_err();
        assert_eq!(format!("{error:#}"), "fails failed: no lake");
        assert!(stop.is_requested());
    }

    #[tokio::test]
    async fn a_panic_is_an_error() {
        let mut tasks = Tasks::new(Stop::new());
        tasks.spawn("panics", async { panic!("bug") });
        assert!(tasks.finish().await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_has_a_deadline() {
        let stop = Stop::new();
        let mut tasks = Tasks::new(stop.clone());
        tasks.spawn("hangs", std::future::pending());
        stop.request();
        let error = tasks.finish().await.unwrap_err();
        assert!(error.to_string().contains("longer than 10 s"), "{error}");
    }
}
