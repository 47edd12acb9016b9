//! The program's roles, each a process with its listeners on free ports.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::http::{Callback, get_json, send_json, signed_callback};
use super::parts::Kafka;
use super::process::{Process, arg, convolake};
use super::{ACCOUNT, API_KEY, AUTH_TOKEN, free_address, until};

/// The URL that callbacks are signed for; nothing resolves it.
pub(crate) const PUBLIC_URL: &str = "https://hooks.example.test/twilio/callbacks";
/// The topic of all tests; each has a broker of its own.
pub(crate) const TOPIC: &str = "convolake.events";
/// Its partitions.
pub(crate) const PARTITIONS: &str = "12";

/// Longest time of an operation of the emulator.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Longest time to all conversations of an emulator.
const TRAFFIC_LIMIT: Duration = Duration::from_secs(60);

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
        let (rate, url) = (rate.to_string(), format!("{PUBLIC_URL}#rc=5&rp=all"));
        let flags = [
            "--callback-url",
            &url,
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
        let key = [
            ("TWILIO_API_KEY", API_KEY.0),
            ("TWILIO_API_SECRET", API_KEY.1),
        ];
        let mut process = convolake(&[&own, flags].concat(), &[ACCOUNT, &key].concat());
        let truth = format!("http://{address}/emulator/truth");
        process.wait_answer(&truth).await;
        Orchestrator { process, address }
    }

    /// Waits until it has closed `count` conversations, and gives them as they really are.
    pub(crate) async fn closed(&self, count: usize) -> Vec<Value> {
        until("conversations are closed", TRAFFIC_LIMIT, async || {
            let truth = get_json(&format!("http://{}/emulator/truth", self.address)).await;
            let closed = truth["conversations"].as_array().unwrap();
            match closed.len() {
                found if found >= count => Ok(closed.clone()),
                found => Err(format!("{found} of {count}")),
            }
        })
        .await
    }

    /// Creates `configuration` and gives its id, once the operation is completed.
    pub(crate) async fn configure(&self, configuration: &Value) -> String {
        let created = self
            .send("POST", "/ControlPlane/Configurations", configuration)
            .await;
        let url = created["statusUrl"].as_str().unwrap();
        until("the configuration is there", ANSWER_LIMIT, async || {
            let operation = get_json(url).await;
            match &operation["related"]["configurationId"] {
                Value::String(id) if operation["status"] == "COMPLETED" => Ok(id.clone()),
                _ => Err(operation.to_string()),
            }
        })
        .await
    }

    /// A request with a JSON body to `path` under `/v2`, which must succeed; its answer.
    pub(crate) async fn send(&self, method: &str, path: &str, body: &Value) -> Value {
        let url = format!("http://{}/v2{path}", self.address);
        let (status, answer) = send_json(method, &url, body).await.unwrap();
        assert!(
            (200..300).contains(&status),
            "{method} {url}: {status} {answer}"
        );
        serde_json::from_str(&answer).unwrap()
    }
}
