//! What tests share: real parts, our own processes, HTTP, readers that are not ours.
//!
//! Guarantees: every wait is for a condition, with a deadline, and says at the deadline what it last saw;
//! every process is ended by the value that started it; a failing test prints all that its processes
//! wrote, so that nothing has to be run again to be understood.

pub(crate) mod duckdb;
pub(crate) mod http;
pub(crate) mod parts;
pub(crate) mod process;
pub(crate) mod relay;
pub(crate) mod roles;
pub(crate) mod scripted;

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Pause between two looks at a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Pause where a look costs more than what it looks at can spare.
pub(crate) const SLOW_POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Looks at `check` until it is `Ok`; its `Err` says what it saw.
///
/// Panics at the deadline, with the last thing seen.
pub(crate) async fn until<T>(
    what: &str,
    limit: Duration,
    check: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    until_every(POLL_INTERVAL, what, limit, check).await
}

/// [`until`] with another pause between two looks.
pub(crate) async fn until_every<T>(
    pause: Duration,
    what: &str,
    limit: Duration,
    mut check: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let started = Instant::now();
    loop {
        match check().await {
            Ok(value) => return value,
            Err(seen) if started.elapsed() > limit => {
                panic!("{what}: not within {limit:?}; last seen: {seen}")
            }
            Err(_) => tokio::time::sleep(pause).await,
        }
    }
}

/// A port of 127.0.0.1 that nothing listened on a moment ago.
///
/// From below the range that the kernel takes for outgoing connections: one of those, of a test beside
/// this one, could otherwise sit on the port before our process binds it.
pub(crate) fn free_port() -> u16 {
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test binaries that run at once start at different places, far from each other though their ids follow
    // each other: a port is free to both until one of them has bound it.
    const APART: u32 = 7_919;
    let offset = (std::process::id().wrapping_mul(APART) % u32::from(COUNT)) as u16;
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        let port = FIRST + (offset + step) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!(
        "no free port of 127.0.0.1 between {FIRST} and {}",
        FIRST + COUNT
    );
}

/// A free port as `127.0.0.1:PORT`.
pub(crate) fn free_address() -> String {
    format!("127.0.0.1:{}", free_port())
}

/// A folder that is removed when dropped.
pub(crate) fn folder() -> TempDir {
    tempfile::Builder::new()
        .prefix("convolake-it-")
        .tempdir()
        .unwrap()
}

/// The account that all processes of a test share, as environment.
pub(crate) const ACCOUNT: &[(&str, &str)] = &[
    ("TWILIO_ACCOUNT_SID", ACCOUNT_SID),
    ("TWILIO_AUTH_TOKEN", AUTH_TOKEN),
];

/// Its SID.
pub(crate) const ACCOUNT_SID: &str = "AC00000000000000000000000000000001";

/// Its token, which signs callbacks.
pub(crate) const AUTH_TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// An API key of the account and its secret, which the emulator of an [`Orchestrator`] takes as well.
///
/// [`Orchestrator`]: roles::Orchestrator
pub(crate) const API_KEY: (&str, &str) = (
    "SK00000000000000000000000000000001",
    "fedcba9876543210fedcba9876543210",
);

/// `value` without its fields that are null, at any depth: an SDK cannot tell them from none.
pub(crate) fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .filter(|(_, field)| !field.is_null())
            .map(|(name, field)| (name, without_nulls(field)))
            .collect(),
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        value => value,
    }
}
