//! The program's roles, each a process with its listeners on free ports.

use std::path::Path;

use super::http::{Callback, signed_callback};
use super::parts::Kafka;
use super::process::{Process, arg, convolake};
use super::{ACCOUNT, AUTH_TOKEN, free_address};

/// The URL that callbacks are signed for; nothing resolves it.
pub(crate) const PUBLIC_URL: &str = "https://hooks.example.test/twilio/callbacks";
/// The topic of all tests; each has a broker of its own.
pub(crate) const TOPIC: &str = "convolake.events";
/// Its partitions.
pub(crate) const PARTITIONS: &str = "12";

/// `convolake receive`.
#[derive(Debug)]
pub(crate) struct Receiver {
    pub(crate) process: Process,
    /// `HOST:PORT` of the callback listener.
    pub(crate) address: String,
}

impl Receiver {
    /// Starts one that makes the topics, and waits until it is ready.
    pub(crate) async fn start(kafka: &Kafka) -> Receiver {
        let (address, ops) = (free_address(), free_address());
        let mut process = convolake(
            &[
                "receive",
                "--listen",
                &address,
                "--public-url",
                PUBLIC_URL,
                "--ops-listen",
                &ops,
                "--kafka",
                kafka.address(),
                "--topic",
                TOPIC,
                "--create-topics",
                "--partitions",
                PARTITIONS,
            ],
            ACCOUNT,
        );
        process.wait_ready(&ops).await;
        Receiver { process, address }
    }
}

/// `body` as a callback to the receiver at `address`.
pub(crate) fn callback(address: &str, body: String) -> Callback {
    signed_callback(PUBLIC_URL, address, AUTH_TOKEN, body)
}

/// Starts `convolake ingest` into `lake` and waits until it is ready.
pub(crate) async fn ingest(kafka: &Kafka, lake: &Path, api: &str) -> Process {
    let ops = free_address();
    let api_url = format!("http://{api}");
    let mut process = convolake(
        &[
            "ingest",
            "--ops-listen",
            &ops,
            "--kafka",
            kafka.address(),
            "--topic",
            TOPIC,
            "--group",
            "convolake-it",
            "--lake",
            arg(lake),
            "--api-url",
            &api_url,
            "--flush-interval",
            "1s",
            "--settle",
            "500ms",
            "--requests-per-second",
            "2000",
        ],
        ACCOUNT,
    );
    process.wait_ready(&ops).await;
    process
}

/// `convolake emulate`.
#[derive(Debug)]
pub(crate) struct Orchestrator {
    pub(crate) process: Process,
    /// `HOST:PORT` of its REST API.
    pub(crate) address: String,
}

impl Orchestrator {
    /// Starts one that makes `conversations` from `seed`, at `rate` a second, and announces them to
    /// [`PUBLIC_URL`] at `connect`.
    pub(crate) async fn start(
        connect: &str,
        conversations: usize,
        seed: u64,
        rate: u32,
    ) -> Orchestrator {
        let address = free_address();
        let mut process = convolake(
            &[
                "emulate",
                "--listen",
                &address,
                "--callback-url",
                PUBLIC_URL,
                "--callback-connect",
                connect,
                "--conversations",
                &conversations.to_string(),
                "--seed",
                &seed.to_string(),
                "--rate",
                &rate.to_string(),
            ],
            ACCOUNT,
        );
        let truth = format!("http://{address}/emulator/truth");
        process.wait_answer(&truth).await;
        Orchestrator { process, address }
    }
}
