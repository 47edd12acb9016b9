//! What rows share: the program under test, a broker, conversations that were played to their end.
//!
//! Owns what takes long to start and what no row breaks for good. Each is started when a row first asks.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::Arguments;
use crate::harness::http::{Callback, get_json};
use crate::harness::parts::{self, Kafka, Placed};
use crate::harness::process::{Process, arg};
use crate::harness::roles::PUBLIC_URL;
use crate::harness::{ACCOUNT, folder, free_address, free_port, until};
use crate::load::{Captured, sha256};
use crate::plan::{Material, Medium};
use crate::volume::Volume;

/// Conversations played for the rows of a short run, and of a release.
const CONVERSATIONS: crate::plan::Times = crate::plan::times(30, 60);
/// The same where nobody announces that they close.
const UNCLOSED: crate::plan::Times = crate::plan::times(30, 1_000);
/// Longest time until the emulator has played and announced them.
const PLAY_LIMIT: Duration = Duration::from_secs(300);
/// Partitions of a row's topic.
pub(crate) const PARTITIONS: i32 = 6;

/// How large the run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    Short,
    Release,
}

impl crate::plan::Times {
    pub(crate) fn of(self, size: Size) -> u32 {
        match size {
            Size::Short => self.short,
            Size::Release => self.release,
        }
    }
}

/// The program under test.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    /// `CONVOLAKE_SABOTAGE`, of a build that has the feature.
    pub(crate) sabotage: Option<&'static str>,
}

impl Program {
    /// `convolake ARGS` with the account of all tests and nothing else of the environment.
    pub(crate) fn command(&self, wrapper: &[String], args: &[String]) -> Command {
        let mut words: Vec<&str> = wrapper.iter().map(String::as_str).collect();
        words.push(arg(&self.path));
        words.extend(args.iter().map(String::as_str));
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .env("RUST_BACKTRACE", "1")
            .envs(ACCOUNT.iter().copied());
        if let Some(sabotage) = self.sabotage {
            command.env("CONVOLAKE_SABOTAGE", sabotage);
        }
        command
    }
}

/// A broker, and the ports of the way through the fault proxy.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) kafka: Kafka,
    /// Where the proxy has to listen.
    pub(crate) front: u16,
    /// Where it has to connect to.
    pub(crate) back: u16,
    /// Its disk, where it has one of its own.
    pub(crate) volume: Option<Volume>,
}

impl Cluster {
    /// Starts one on `medium`.
    pub(crate) async fn start(medium: Medium, properties: &'static str) -> Result<Cluster, String> {
        let volume = match medium {
            Medium::Folder => None,
            other => Some(Volume::new(other)?),
        };
        let (front, back) = (free_port(), free_port());
        let placed = Placed {
            data: volume.as_ref().map(Volume::path),
            behind: Some((back, front)),
            adopted: false,
            properties,
        };
        let kafka = Kafka::start_placed(placed).await;
        Ok(Cluster {
            kafka: kafka.ok_or("Apache Kafka could not be had")?,
            front,
            back,
            volume,
        })
    }

    /// Makes `topic` and those beside it.
    pub(crate) async fn create_topics(&self, topic: &str) {
        let admin: AdminClient<_> = self.kafka.config().create().unwrap();
        let names = topics(topic);
        let new = names
            .each_ref()
            .map(|name| NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1)));
        let created = admin.create_topics(&new, &AdminOptions::new()).await;
        for result in created.unwrap() {
            result.unwrap();
        }
    }
}

/// Events, quarantine, dead letters.
pub(crate) fn topics(topic: &str) -> [String; 3] {
    [
        topic.to_owned(),
        format!("{topic}.quarantine"),
        format!("{topic}.dead-letters"),
    ]
}

/// Conversations that were played to their end, and the emulator that still answers for them.
#[derive(Debug)]
pub(crate) struct Played {
    count: u32,
    pub(crate) address: String,
    pub(crate) captured: Captured,
    pub(crate) truth_file: PathBuf,
    _emulator: Process,
    _folder: TempDir,
}

impl Played {
    /// Plays `count` conversations from `seed` and captures every callback of theirs, once each.
    pub(crate) async fn start(program: &Program, count: u32, seed: u64) -> Played {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connect = listener.local_addr().unwrap().to_string();
        let caught: Arc<Mutex<Vec<Callback>>> = Arc::default();
        let routes = axum::Router::new()
            .fallback(catch)
            .with_state(Arc::clone(&caught));
        let server = tokio::spawn(async move { axum::serve(listener, routes).await });
        let address = free_address();
        let (conversations, seed) = (count.to_string(), seed.to_string());
        let args = [
            "emulate",
            "--listen",
            &address,
            "--conversations",
            &conversations,
            "--seed",
            &seed,
            "--callback-url",
            PUBLIC_URL,
            "--callback-connect",
            &connect,
        ]
        .map(str::to_owned);
        let mut emulator = Process::spawn("emulate", &mut program.command(&[], &args));
        let url = format!("http://{address}/emulator/truth");
        emulator.wait_answer(&url).await;
        let truth = until("conversations are played", PLAY_LIMIT, async || {
            let truth = get_json(&url).await;
            let closed = ids(&truth);
            let caught = caught.lock().unwrap_or_else(PoisonError::into_inner);
            let announced = closes(&caught);
            match closed.iter().filter(|id| announced.contains(*id)).count() {
                all if all == count as usize => Ok(truth),
                some => Err(format!("{some} of {count} are closed and announced")),
            }
        })
        .await;
        server.abort();
        let mut captured =
            std::mem::take(&mut *caught.lock().unwrap_or_else(PoisonError::into_inner));
        captured.sort_by_key(|callback| sha256(&callback.body));
        captured.dedup_by_key(|callback| callback.body.clone());
        let folder = folder();
        let truth_file = folder.path().join("truth.json");
        std::fs::write(&truth_file, truth.to_string()).unwrap();
        Played {
            count,
            address,
            captured: Arc::new(captured),
            truth_file,
            _emulator: emulator,
            _folder: folder,
        }
    }
}

fn ids(truth: &Value) -> Vec<String> {
    let closed = truth["conversations"].as_array().expect("a list");
    let id = |conversation: &Value| conversation["id"].as_str().expect("an id").to_owned();
    closed.iter().map(id).collect()
}

/// Conversations that these callbacks close.
fn closes(caught: &[Callback]) -> HashSet<String> {
    let closing = caught
        .iter()
        .filter(|callback| callback.body.contains("\"CLOSED\""));
    let id = |callback: &Callback| {
        let body: Value = serde_json::from_str(&callback.body).ok()?;
        body["data"]["id"].as_str().map(str::to_owned)
    };
    closing.filter_map(id).collect()
}

async fn catch(
    State(caught): State<Arc<Mutex<Vec<Callback>>>>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    let header = |name| String::from_utf8_lossy(headers[name].as_bytes()).into_owned();
    let callback = Callback {
        url: format!("http://127.0.0.1:1{uri}"),
        signature: header("x-twilio-signature"),
        token: header("i-twilio-idempotency-token"),
        body: String::from_utf8_lossy(&body).into_owned(),
    };
    caught
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(callback);
    StatusCode::NO_CONTENT
}

/// Everything that rows share.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) program: Program,
    pub(crate) python: &'static Path,
    pub(crate) size: Size,
    pub(crate) seed: u64,
    /// Instead of the kills that a row asks for.
    pub(crate) kills: Option<u32>,
    /// Whether a row that held is told as much of as one that did not.
    pub(crate) verbose: bool,
    pub(crate) cluster: Option<Cluster>,
    played: Option<Played>,
    preload: Option<PathBuf>,
    folder: TempDir,
}

impl World {
    /// Nothing is started yet.
    pub(crate) fn new(
        program: Program,
        size: Size,
        arguments: &Arguments,
    ) -> Result<World, String> {
        Ok(World {
            program,
            python: parts::python().ok_or("a Python with DuckDB and delta-rs could not be had")?,
            size,
            seed: arguments.seed,
            kills: arguments.kills,
            verbose: arguments.verbose,
            cluster: None,
            played: None,
            preload: None,
            folder: folder(),
        })
    }

    pub(crate) async fn cluster(&mut self) -> Result<(), String> {
        if self.cluster.is_none() {
            self.cluster = Some(Cluster::start(Medium::Folder, "").await?);
        }
        Ok(())
    }

    /// Conversations of a row's material; those of the row before, where it wants as many.
    pub(crate) async fn played(&mut self, material: Material) -> &Played {
        let count = match material {
            Material::Unclosed => UNCLOSED.of(self.size),
            Material::Played | Material::Synthetic => CONVERSATIONS.of(self.size),
        };
        if self
            .played
            .as_ref()
            .is_none_or(|played| played.count != count)
        {
            let played = Played::start(&self.program, count, self.seed).await;
            self.played = Some(played);
        }
        self.played.as_ref().expect("made above")
    }

    /// The same, where a row has asked for them before.
    pub(crate) fn played_before(&self) -> &Played {
        self.played.as_ref().expect("the row's material")
    }

    /// The library that stands between a process and fsync.
    pub(crate) fn preload(&mut self) -> Result<PathBuf, String> {
        if let Some(library) = &self.preload {
            return Ok(library.clone());
        }
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chaos/preload.c");
        let library = self.folder.path().join("preload.so");
        let mut cc = Command::new("cc");
        cc.args([
            "-shared",
            "-fPIC",
            "-O1",
            "-o",
            arg(&library),
            arg(&source),
            "-ldl",
        ]);
        crate::harness::process::run("cc", &mut cc)?;
        self.preload = Some(library.clone());
        Ok(library)
    }
}
