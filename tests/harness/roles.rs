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
        let (mut receiver, ops) = Receiver::spawn(kafka.address());
        receiver.process.wait_ready(&ops).await;
        receiver
    }

    /// The same without the wait; with the address of its ops listener.
    pub(crate) fn spawn(kafka: &str) -> (Receiver, String) {
        Receiver::spawn_with(kafka, &[])
    }

    /// The same with further flags.
    pub(crate) fn spawn_with(kafka: &str, flags: &[&str]) -> (Receiver, String) {
        let (address, ops) = (free_address(), free_address());
        let own = [
            "receive",
            "--listen",
            &address,
            "--public-url",
            PUBLIC_URL,
            "--ops-listen",
            &ops,
            "--kafka",
            kafka,
            "--topic",
            TOPIC,
            "--create-topics",
            "--partitions",
            PARTITIONS,
        ];
        let process = convolake(&[&own, flags].concat(), ACCOUNT);
        (Receiver { process, address }, ops)
    }
}

/// `body` as a callback to the receiver at `address`.
pub(crate) fn callback(address: &str, body: String) -> Callback {
    signed_callback(PUBLIC_URL, address, AUTH_TOKEN, body)
}

/// Starts `convolake ingest` into `lake` and waits until it is ready.
pub(crate) async fn ingest(kafka: &Kafka, lake: &Path, api: &str) -> Process {
    let (mut process, ops) = spawn_ingest(kafka.address(), lake, api, ACCOUNT, &[]);
    process.wait_ready(&ops).await;
    process
}

/// The same without the wait, with other credentials and further flags; with the address of its ops
/// listener.
pub(crate) fn spawn_ingest(
    kafka: &str,
    lake: &Path,
    api: &str,
    credentials: &[(&str, &str)],
    flags: &[&str],
) -> (Process, String) {
    let ops = free_address();
    let api_url = format!("http://{api}");
    let own = [
        "ingest",
        "--ops-listen",
        &ops,
        "--kafka",
        kafka,
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
    ];
    let process = convolake(&[&own, flags].concat(), credentials);
    (process, ops)
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
        let rate = rate.to_string();
        let flags = [
            "--callback-url",
            PUBLIC_URL,
            "--callback-connect",
            connect,
            "--rate",
            &rate,
        ];
        Orchestrator::with(conversations, seed, &flags).await
    }

    /// The same with these further flags instead of a rate and callbacks.
    pub(crate) async fn with(conversations: usize, seed: u64, flags: &[&str]) -> Orchestrator {
        let address = free_address();
        let (conversations, seed) = (conversations.to_string(), seed.to_string());
        let own = [
            "emulate",
            "--listen",
            &address,
            "--conversations",
            &conversations,
            "--seed",
            &seed,
        ];
        let mut process = convolake(&[&own, flags].concat(), ACCOUNT);
        let truth = format!("http://{address}/emulator/truth");
        process.wait_answer(&truth).await;
        Orchestrator { process, address }
    }
}
