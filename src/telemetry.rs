//! What a running process shows of itself: log events, metrics, and the ops listener.
//!
//! Owns every metric name (one table, [`METRICS`]), the readiness of each dependency, and the routes
//! `/livez`, `/readyz`, `/metrics`. Refuses message text, addresses and secrets: labels are closed sets of
//! words, and no id is ever a label.
//!
//! Guarantees: `/livez` answers while the process can answer at all; `/readyz` is 200 only when every
//! dependency, or what stands in for it, is up, and names those that are not, with the reason. Logs go to
//! standard error.

use std::collections::BTreeMap;
use std::future::IntoFuture;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;

use crate::lifecycle::Stop;

macro_rules! metrics_table {
    ($($kind:ident $constant:ident = $name:literal, $help:literal;)*) => {
        $(#[doc = $help] pub const $constant: &str = $name;)*
        /// Every metric: kind, name, help. Dashboards and alerts use only these.
        pub const METRICS: &[(Kind, &str, &str)] = &[$((Kind::$kind, $name, $help)),*];
    };
}

/// What a metric measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only ever grows.
    Counter,
    /// A value now.
    Gauge,
    /// A distribution, in seconds.
    Histogram,
}

metrics_table! {
    Counter CALLBACKS_ACCEPTED = "convolake_callbacks_accepted_total", "Callbacks answered 204, by destination (events, quarantine).";
    Counter CALLBACKS_REFUSED = "convolake_callbacks_refused_total", "Callbacks not answered 2xx, by reason.";
    Histogram CALLBACK_SECONDS = "convolake_callback_seconds", "Time from a callback's head to its answer.";
    Gauge CALLBACK_CONNECTIONS = "convolake_callback_connections", "Connections open on the callback listener.";
    Counter RECORDS_PUBLISHED = "convolake_records_published_total", "Records that Kafka acknowledged, by topic kind.";
    Counter PUBLISH_FAILURES = "convolake_publish_failures_total", "Records that Kafka did not acknowledge, by reason.";
    Counter PRODUCER_REBUILDS = "convolake_producer_rebuilds_total", "Producers replaced after a fatal error.";
    Gauge SPOOL_RECORDS = "convolake_spool_records", "Records that the spool holds.";
    Gauge SPOOL_BYTES = "convolake_spool_bytes", "Bytes of the records that the spool holds; its file is larger.";
    Gauge SPOOL_OLDEST_SECONDS = "convolake_spool_oldest_age_seconds", "Age of the oldest record that the spool holds, 0 where it is empty.";
    Counter SPOOL_WRITTEN = "convolake_spool_written_records_total", "Records that the spool made durable.";
    Counter SPOOL_DRAINED = "convolake_spool_drained_records_total", "Records that left the spool because Kafka has them.";
    Counter SPOOL_REFUSED = "convolake_spool_refused_records_total", "Records that the spool did not take, by reason (full, busy, down, closed).";
    Counter SPOOL_SET_ASIDE = "convolake_spool_set_aside_files_total", "Damaged or foreign files of the spool that were set aside.";
    Counter SPOOL_REMADE = "convolake_spool_remade_files_total", "Times that the spool's file or folder was removed while in use, and made anew.";
    Counter SPOOL_SWITCHES = "convolake_spool_switches_total", "Changes of the way that callbacks go first, by where it leads (kafka, spool).";
    Counter RECORDS_CONSUMED = "convolake_records_consumed_total", "Records read, by group.";
    Gauge IN_FLIGHT_BYTES = "convolake_in_flight_bytes", "Bytes of records read and not yet durable, by group.";
    Gauge CONSUMER_LAG = "convolake_consumer_lag_records", "Records between the lake's position and the end of the topic, by group.";
    Counter DEAD_LETTERS = "convolake_dead_letters_total", "Records set aside, by reason.";
    Counter REBALANCES = "convolake_rebalances_total", "Assignments and revocations, by kind.";
    Counter API_REQUESTS = "convolake_api_requests_total", "Requests to the API, by route and outcome.";
    Histogram API_SECONDS = "convolake_api_seconds", "Time of one request to the API, by route.";
    Counter API_WAIT_SECONDS = "convolake_api_wait_seconds_total", "Seconds spent waiting, by cause (budget, retry).";
    Counter CONVERSATIONS_ENRICHED = "convolake_conversations_enriched_total", "Conversations enriched, by completeness.";
    Counter CONVERSATIONS_SKIPPED = "convolake_conversations_skipped_total", "Closes not fetched because the lake has the conversation whole.";
    Counter CONVERSATIONS_RECHECKED = "convolake_conversations_rechecked_total", "Conversations fetched again, by cause (late, repair).";
    Counter CLOSES_RECONCILED = "convolake_closes_reconciled_total", "Closes published because no callback had announced them, by reason (missing, partial, gone).";
    Gauge ACTIVE_OVER_LIMIT = "convolake_active_over_limit", "Conversations that the last pass found ACTIVE for longer than the limit.";
    Histogram ENRICH_SECONDS = "convolake_enrich_seconds", "Time to fetch one conversation.";
    Counter LAKE_COMMITS = "convolake_lake_commits_total", "Commits, by table and outcome (committed, already, refused, raced, failed).";
    Counter LAKE_CONFLICTS = "convolake_lake_conflicts_total", "Commit tries that met a newer version, by table.";
    Counter LAKE_ROWS = "convolake_lake_rows_total", "Rows committed, by table.";
    Counter LAKE_FILES = "convolake_lake_files_total", "Files committed, by table.";
    Counter LAKE_BYTES = "convolake_lake_bytes_total", "Bytes of files committed, by table.";
    Histogram LAKE_COMMIT_SECONDS = "convolake_lake_commit_seconds", "Time from a batch to its commit, by table.";
    Histogram CLOSE_TO_QUERYABLE_SECONDS = "convolake_close_to_queryable_seconds", "Time from a callback's arrival to its conversation's commit.";
    Counter EMULATOR_DELIVERIES = "convolake_emulator_deliveries_total", "Callbacks the emulator sent, by outcome.";
}

/// Bounds of every histogram, seconds.
const BUCKETS_SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    120.0, 300.0,
];

/// How often values are folded into histograms.
const FOLD_INTERVAL: Duration = Duration::from_secs(5);

/// Longest time that the ops listener answers after the stop.
const OPS_DRAIN: Duration = Duration::from_secs(1);

/// How log events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// One line a person reads.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging to standard error. `filter` is a tracing filter such as `info` or `convolake=debug`.
pub fn start_logging(format: LogFormat, filter: &str) {
    let filter = tracing_subscriber::EnvFilter::builder().parse_lossy(filter);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    // A second start (tests, a library user with a subscriber) keeps the first.
    let _ = match format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}

/// Installs the recorder and describes every metric; a second call answers with the first's handle.
pub fn start_metrics() -> PrometheusHandle {
    static HANDLE: Mutex<Option<PrometheusHandle>> = Mutex::new(None);
    let mut handle = HANDLE.lock().unwrap_or_else(PoisonError::into_inner);
    handle.get_or_insert_with(install_recorder).clone()
}

fn install_recorder() -> PrometheusHandle {
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), BUCKETS_SECONDS)
        .expect("the bucket list is not empty")
        .build_recorder();
    let handle = recorder.handle();
    // Somebody else's recorder (a library user's) stays in place; ours then renders nothing.
    let _ = metrics::set_global_recorder(recorder);
    for &(kind, name, help) in METRICS {
        match kind {
            Kind::Counter => metrics::describe_counter!(name, help),
            Kind::Gauge => metrics::describe_gauge!(name, help),
            Kind::Histogram => metrics::describe_histogram!(name, metrics::Unit::Seconds, help),
        }
    }
    handle
}

/// Folds recorded values into the histograms until `stop`: without it they would be kept one by one for as
/// long as nobody asks for `/metrics`.
pub async fn fold_metrics(metrics: PrometheusHandle, stop: Stop) -> anyhow::Result<()> {
    while stop.race(tokio::time::sleep(FOLD_INTERVAL)).await.is_some() {
        metrics.run_upkeep();
    }
    Ok(())
}

/// The dependencies of a process and whether each is up. Shared: written by the part that knows, read by
/// `/readyz`.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, Known>>>);

/// What is known of a dependency.
#[derive(Debug, Clone)]
struct Known {
    up: Result<(), String>,
    /// What to look at although it is up.
    note: Option<String>,
    /// Another that does its work while it is down.
    stands_in: Option<&'static str>,
}

impl Readiness {
    /// No dependency yet: ready.
    pub fn new() -> Self {
        Readiness::default()
    }

    /// Adds a dependency, which is down until it says otherwise.
    pub fn dependency(&self, name: &'static str) -> Dependency {
        self.set(name, Err(NOT_YET.to_owned()), None);
        Dependency {
            name,
            readiness: self.clone(),
        }
    }

    /// Adds two dependencies of which one is enough.
    pub fn either(&self, names: [&'static str; 2]) -> [Dependency; 2] {
        let dependencies = names.map(|name| self.dependency(name));
        let mut state = self.lock();
        for (name, other) in [(names[0], names[1]), (names[1], names[0])] {
            if let Some(known) = state.get_mut(name) {
                known.stands_in = Some(other);
            }
        }
        drop(state);
        dependencies
    }

    /// Those that are down and have nothing that stands in, with the reason.
    pub fn missing(&self) -> Vec<(&'static str, String)> {
        let state = self.lock();
        let is_up = |name: &str| state.get(name).is_some_and(|known| known.up.is_ok());
        state
            .iter()
            .filter(|(_, known)| !known.stands_in.is_some_and(is_up))
            .filter_map(|(name, known)| Some((*name, known.up.as_ref().err()?.clone())))
            .collect()
    }

    /// What is down or noted, whether or not something stands in.
    pub fn remarks(&self) -> Vec<(&'static str, String)> {
        let state = self.lock();
        let remark = |known: &Known| known.up.clone().err().or_else(|| known.note.clone());
        (state.iter())
            .filter_map(|(name, known)| Some((*name, remark(known)?)))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, name: &'static str, up: Result<(), String>, note: Option<String>) {
        let mut state = self.lock();
        let stands_in = state.get(name).and_then(|known| known.stands_in);
        let known = Known {
            up: up.clone(),
            note,
            stands_in,
        };
        let before = state.insert(name, known).map(|known| known.up);
        drop(state);
        match (before, up) {
            (Some(Err(_)), Ok(())) => tracing::info!(dependency = name, "dependency is up"),
            (Some(Ok(())) | None, Err(reason)) if reason != NOT_YET => {
                tracing::warn!(dependency = name, reason, "dependency is down");
            }
            _ => {}
        }
    }
}

/// Why a dependency is down that has not been looked at.
const NOT_YET: &str = "not connected yet";

/// One dependency's switch.
#[derive(Debug, Clone)]
pub struct Dependency {
    name: &'static str,
    readiness: Readiness,
}

impl Dependency {
    /// It answers.
    pub fn up(&self) {
        self.readiness.set(self.name, Ok(()), None);
    }

    /// It answers, and there is something to look at.
    pub fn up_with(&self, note: Option<String>) {
        self.readiness.set(self.name, Ok(()), note);
    }

    /// It does not; `reason` is shown to the operator.
    pub fn down(&self, reason: impl Into<String>) {
        self.readiness.set(self.name, Err(reason.into()), None);
    }
}

/// Binds the ops listener.
///
/// # Errors
/// Names the address and the flag to change.
pub async fn bind_ops(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        anyhow::anyhow!(
            "--ops-listen {address}: cannot listen there: {error}; choose another address"
        )
    })
}

/// Serves `/livez`, `/readyz` and `/metrics` until `stop`.
pub async fn serve_ops(
    listener: TcpListener,
    readiness: Readiness,
    metrics: PrometheusHandle,
    stop: Stop,
) -> anyhow::Result<()> {
    let state = Ops {
        readiness,
        metrics,
        stop: stop.clone(),
    };
    let routes = Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(render))
        .with_state(state);
    let asked = stop.clone();
    let serving = axum::serve(listener, routes)
        .with_graceful_shutdown(async move { asked.requested().await });
    tokio::select! {
        ended = serving.into_future() => Ok(ended?),
        // A client that never finishes its request does not hold the process.
        () = async { stop.requested().await; tokio::time::sleep(OPS_DRAIN).await } => Ok(()),
    }
}

#[derive(Clone)]
struct Ops {
    readiness: Readiness,
    metrics: PrometheusHandle,
    stop: Stop,
}

async fn readyz(State(ops): State<Ops>) -> impl IntoResponse {
    let mut missing = ops.readiness.missing();
    if ops.stop.is_requested() {
        missing.push(("process", "stopping".to_owned()));
    }
    let lines = |known: Vec<(&str, String)>| -> String {
        (known.iter())
            .map(|(name, reason)| format!("{name}: {reason}\n"))
            .collect()
    };
    if missing.is_empty() {
        return (
            StatusCode::OK,
            format!("ready\n{}", lines(ops.readiness.remarks())),
        );
    }
    (StatusCode::SERVICE_UNAVAILABLE, lines(missing))
}

async fn render(State(ops): State<Ops>) -> impl IntoResponse {
    ops.metrics.run_upkeep();
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
        ops.metrics.render(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_convention() {
        for (kind, name, help) in METRICS {
            assert!(name.starts_with("convolake_"), "{name}");
            assert!(help.ends_with('.'), "{name}: {help}");
            assert_eq!(*kind == Kind::Counter, name.ends_with("_total"), "{name}");
            assert!(
                *kind != Kind::Histogram || name.ends_with("_seconds"),
                "{name}"
            );
        }
        let names: std::collections::BTreeSet<_> = METRICS.iter().map(|m| m.1).collect();
        assert_eq!(names.len(), METRICS.len());
    }

    #[test]
    fn readiness_names_what_is_missing() {
        let readiness = Readiness::new();
        let kafka = readiness.dependency("kafka");
        let lake = readiness.dependency("lake");
        lake.up();
        assert_eq!(
            readiness.missing(),
            [("kafka", "not connected yet".to_owned())]
        );
        kafka.up();
        lake.down("disk full");
        assert_eq!(readiness.missing(), [("lake", "disk full".to_owned())]);
    }

    #[test]
    fn one_of_two_is_enough_and_the_other_is_named() {
        let readiness = Readiness::new();
        let [kafka, spool] = readiness.either(["kafka", "spool"]);
        assert_eq!(readiness.missing().len(), 2);
        spool.up();
        kafka.down("no answer");
        assert_eq!(readiness.missing(), []);
        assert_eq!(readiness.remarks(), [("kafka", "no answer".to_owned())]);
        spool.down("disk full");
        assert_eq!(readiness.missing().len(), 2);
        kafka.up();
        spool.up_with(Some("1 file set aside".to_owned()));
        assert_eq!(readiness.missing(), []);
        assert_eq!(
            readiness.remarks(),
            [("spool", "1 file set aside".to_owned())]
        );
    }
}
