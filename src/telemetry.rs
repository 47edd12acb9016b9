//! What a running process shows of itself: log events, metrics, and the ops listener.
//!
//! Owns every metric name (one table, [`METRICS`]), the readiness of each dependency, and the routes
//! `/livez`, `/readyz`, `/metrics`. Refuses message text, addresses and secrets: labels are closed sets of
//! words, and no id is ever a label.
//!
//! Guarantees: `/livez` answers while the process can answer at all; `/readyz` is 200 only when every
//! dependency is up, and names those that are not, with the reason. Logs go to standard error.

use std::collections::BTreeMap;
use std::future::IntoFuture;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
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
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, Result<(), String>>>>);

impl Readiness {
    /// No dependency yet: ready.
    pub fn new() -> Self {
        Readiness::default()
    }

    /// Adds a dependency, which is down until it says otherwise.
    pub fn dependency(&self, name: &'static str) -> Dependency {
        self.set(name, Err("not connected yet".to_owned()));
        Dependency {
            name,
            readiness: self.clone(),
        }
    }

    /// Those that are down, with the reason.
    pub fn missing(&self) -> Vec<(&'static str, String)> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state
            .iter()
            .filter_map(|(name, up)| Some((*name, up.as_ref().err()?.clone())))
            .collect()
    }

    fn set(&self, name: &'static str, up: Result<(), String>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = state.insert(name, up.clone());
        drop(state);
        match (before, up) {
            (Some(Err(_)), Ok(())) => tracing::info!(dependency = name, "dependency is up"),
            (Some(Ok(())) | None, Err(reason)) if before_was_up(&reason) => {
                tracing::warn!(dependency = name, reason, "dependency is down");
            }
            _ => {}
        }
    }
}

fn before_was_up(reason: &str) -> bool {
    reason != "not connected yet"
}

/// One dependency's switch.
#[derive(Debug, Clone)]
pub struct Dependency {
    name: &'static str,
    readiness: Readiness,
}

impl Dependency {
    /// It answers.
    pub fn up(&self) {
        self.readiness.set(self.name, Ok(()));
    }

    /// It does not; `reason` is shown to the operator.
    pub fn down(&self, reason: impl Into<String>) {
        self.readiness.set(self.name, Err(reason.into()));
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
    if missing.is_empty() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    let lines = missing
        .iter()
        .map(|(name, reason)| format!("{name}: {reason}\n"))
        .collect();
    (StatusCode::SERVICE_UNAVAILABLE, lines)
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
}
