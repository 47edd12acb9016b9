//! The real parts: a foreign Python, Twilio's SDKs, a browser, and Apache Kafka as a process of the test.
//!
//! Each is fetched by its script in `tests/parts/`. Where that fails, `None` after printing why, or a
//! panic with `CI=true`: a part that silently stayed away would leave its claims untested for ever.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaResult;
use rdkafka::message::{Headers as _, Message as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tempfile::TempDir;

use super::process::{Process, arg, run};
use super::{POLL_INTERVAL, folder, free_port, until};

/// Longest start of a broker; 6 s on an idle machine of two cores, and more than 90 s were seen on a busy one.
const BROKER_LIMIT: Duration = Duration::from_secs(240);
/// Longest answer of a broker that is up.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Longest silence while reading a topic to its end.
const READ_LIMIT: Duration = Duration::from_secs(30);

/// The interpreter of a Python with DuckDB, delta-rs, pyarrow, jsonschema and Twilio's packages.
pub(crate) fn python() -> Option<&'static Path> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    part("python", &FOUND)
}

/// Debian's Chromium.
pub(crate) fn chromium() -> Option<&'static Path> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    part("chromium", &FOUND)
}

/// The `node_modules` folder with Twilio's SDK and what drives a browser, for NODE_PATH.
pub(crate) fn node_modules() -> Option<&'static Path> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    part("node", &FOUND)
}

fn kafka_jars() -> Option<&'static Path> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    part("kafka", &FOUND)
}

fn part(name: &str, found: &'static OnceLock<Result<PathBuf, String>>) -> Option<&'static Path> {
    let fetch = || {
        let script = parts_folder().join(format!("{name}.sh"));
        run(name, Command::new("bash").arg(script)).map(|line| PathBuf::from(line.trim_end()))
    };
    match found.get_or_init(fetch) {
        Ok(path) => Some(path),
        Err(why) if in_ci() => panic!("a part is missing: {why}"),
        Err(why) => {
            eprintln!("NOT RUN, a part is missing: {why}");
            None
        }
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "the ban is for the program; CI=true is how a test learns that nothing may be skipped"
)]
fn in_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true")
}

/// The folder of the scripts and of what they run.
pub(crate) fn parts_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parts")
}

/// A running Apache Kafka: one node, controller and broker in one, data in a folder of its own.
#[derive(Debug)]
pub(crate) struct Kafka {
    jars: &'static Path,
    folder: TempDir,
    data: PathBuf,
    address: String,
    /// `None` between [`Kafka::kill9`] and [`Kafka::restart`].
    broker: Option<Process>,
}

/// How a broker is not as all others.
#[derive(Debug, Clone, Default)]
pub(crate) struct Placed {
    /// Where it keeps its log; else in a folder of its own.
    pub(crate) data: Option<PathBuf>,
    /// A port that it listens on besides, and the one that clients of it are told to come back to: what
    /// forwards the second to the first is between them for ever.
    pub(crate) behind: Option<(u16, u16)>,
    /// There is a log of an earlier broker, which it takes over.
    pub(crate) adopted: bool,
    /// Further lines of its properties.
    pub(crate) properties: &'static str,
}

/// A record as any consumer sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) key: Option<String>,
    pub(crate) value: Vec<u8>,
    pub(crate) headers: Vec<(String, String)>,
}

impl Kafka {
    /// Starts a broker with an empty data folder and waits until it answers.
    pub(crate) async fn start() -> Option<Kafka> {
        Kafka::start_placed(Placed::default()).await
    }

    /// The same, placed.
    pub(crate) async fn start_placed(placed: Placed) -> Option<Kafka> {
        let jars = kafka_jars()?;
        let folder = folder();
        let data = placed.data.clone();
        let data = data.unwrap_or_else(|| folder.path().join("data"));
        let (port, controller) = (free_port(), free_port());
        let properties = properties(port, controller, &data, &placed);
        let config = folder.path().join("server.properties");
        std::fs::write(&config, properties).unwrap();
        if !placed.adopted {
            let mut format = java(jars);
            // In one argument: an id may begin with a dash.
            let id = format!("--cluster-id={}", cluster_id());
            format.args(["kafka.tools.StorageTool", "format", &id]);
            format.args(["--config", arg(&config)]);
            run("kafka storage format", &mut format).unwrap_or_else(|why| panic!("{why}"));
        }
        let mut kafka = Kafka {
            jars,
            folder,
            data,
            address: format!("127.0.0.1:{port}"),
            broker: None,
        };
        kafka.restart().await;
        Some(kafka)
    }

    /// `HOST:PORT`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Where the broker keeps its log.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// The running broker.
    pub(crate) fn broker(&mut self) -> &mut Process {
        self.broker.as_mut().expect("started, and not killed since")
    }

    /// Ends the broker without a word to its clients. The data stays.
    pub(crate) fn kill9(&mut self) {
        if let Some(mut broker) = self.broker.take() {
            broker.kill9();
        }
    }

    /// Starts it again on the same address and data, and waits until it answers.
    pub(crate) async fn restart(&mut self) {
        assert!(self.broker.is_none(), "the broker is running");
        let config = self.folder.path().join("server.properties");
        let mut command = java(self.jars);
        command.args(["kafka.Kafka", arg(&config)]);
        let mut broker = Process::spawn("kafka", &mut command);
        let client: BaseConsumer = self.config().create().unwrap();
        until("kafka: answers", BROKER_LIMIT, async || {
            if let Some(status) = broker.exited() {
                panic!("kafka: ended before it answered: {status}");
            }
            match client.fetch_metadata(None, ANSWER_LIMIT) {
                Ok(metadata) if !metadata.brokers().is_empty() => Ok(()),
                Ok(_) => Err("no broker in its metadata".to_owned()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
        self.broker = Some(broker);
    }

    /// Every record of `topic`, from the first offset to the end as it is at the call, by partition.
    pub(crate) fn records(&self, topic: &str) -> Vec<Record> {
        records(&self.config(), topic)
    }

    /// A client of it that belongs to no group of anybody's.
    pub(crate) fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.address)
            .set("group.id", "convolake-it")
            .set("enable.auto.commit", "false")
            .set("reconnect.backoff.max.ms", "200");
        config
    }
}

/// Every record of `topic` of any cluster, from the first offset to the end as it is at the call, by partition.
pub(crate) fn records(config: &ClientConfig, topic: &str) -> Vec<Record> {
    let consumer: BaseConsumer = config.create().unwrap();
    let metadata = asked(|| consumer.fetch_metadata(Some(topic), ANSWER_LIMIT));
    let partitions = metadata.topics()[0].partitions().len();
    let mut assignment = TopicPartitionList::new();
    let mut ends = BTreeMap::new();
    for partition in (0..partitions).map(|p| i32::try_from(p).unwrap()) {
        let marks = || consumer.fetch_watermarks(topic, partition, ANSWER_LIMIT);
        let (low, high) = asked(marks);
        if low < high {
            ends.insert(partition, high);
        }
        assignment
            .add_partition_offset(topic, partition, Offset::Beginning)
            .unwrap();
    }
    consumer.assign(&assignment).unwrap();
    let mut records = BTreeMap::new();
    while !ends.is_empty() {
        // Each error that a consumer goes on after is an answer, too.
        let message = asked(|| {
            let polled = consumer.poll(READ_LIMIT);
            polled.unwrap_or_else(|| panic!("{topic}: records before {ends:?} did not come"))
        });
        let record = Record::from(message);
        // An offset says where the end is, and a count does not: a consumer may get a record twice.
        ends.retain(|partition, end| *partition != record.partition || record.offset + 1 < *end);
        records.insert((record.partition, record.offset), record);
    }
    records.into_values().collect()
}

/// The answer of a broker that may have started a moment ago, and then knows nothing yet.
fn asked<T>(ask: impl Fn() -> KafkaResult<T>) -> T {
    let started = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(error) if started.elapsed() > READ_LIMIT => panic!("the broker: {error}"),
            Err(_) => std::thread::park_timeout(POLL_INTERVAL),
        }
    }
}

impl From<rdkafka::message::BorrowedMessage<'_>> for Record {
    fn from(message: rdkafka::message::BorrowedMessage<'_>) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let headers = message.headers().into_iter().flat_map(|all| all.iter());
        Record {
            partition: message.partition(),
            offset: message.offset(),
            key: message.key().map(text),
            value: message.payload().unwrap_or_default().to_vec(),
            headers: headers
                .map(|header| {
                    (
                        header.key.to_owned(),
                        text(header.value.unwrap_or_default()),
                    )
                })
                .collect(),
        }
    }
}

fn java(jars: &Path) -> Command {
    let logging = parts_folder().join("kafka/log4j2.properties");
    let mut command = Command::new("java");
    command
        .args(["-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
        .arg(format!("-Dlog4j2.configurationFile={}", arg(&logging)))
        .args(["-cp", &format!("{}/*", arg(jars))]);
    command
}

/// 16 random bytes in unpadded base64, as the broker wants it: a new cluster a start, so that positions
/// of one are never taken for another's.
fn cluster_id() -> String {
    use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
    BASE64_URL_SAFE_NO_PAD.encode(uuid::Uuid::new_v4().as_bytes())
}

fn properties(port: u16, controller: u16, data: &Path, placed: &Placed) -> String {
    let (listens, advertises) = match placed.behind {
        Some((listens, advertises)) => (
            format!(",BEHIND://127.0.0.1:{listens}"),
            format!(",BEHIND://127.0.0.1:{advertises}"),
        ),
        None => Default::default(),
    };
    format!(
        "process.roles=broker,controller\n\
         node.id=1\n\
         listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}{listens}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{port}{advertises}\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,BEHIND:PLAINTEXT\n\
         controller.listener.names=CONTROLLER\n\
         controller.quorum.voters=1@127.0.0.1:{controller}\n\
         inter.broker.listener.name=PLAINTEXT\n\
         log.dirs={data}\n\
         auto.create.topics.enable=false\n\
         group.initial.rebalance.delay.ms=0\n\
         offsets.topic.num.partitions=4\n\
         offsets.topic.replication.factor=1\n\
         transaction.state.log.num.partitions=1\n\
         transaction.state.log.replication.factor=1\n\
         transaction.state.log.min.isr=1\n\
         share.coordinator.state.topic.replication.factor=1\n\
         share.coordinator.state.topic.min.isr=1\n\
         {further}\n",
        data = data.display(),
        further = placed.properties
    )
}

/// A broker that is killed has kept what it acknowledged, and answers again at the same address.
#[tokio::test]
async fn a_broker_that_is_killed_comes_back_with_its_records() {
    use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
    use rdkafka::producer::{FutureProducer, FutureRecord};

    let Some(mut kafka) = Kafka::start().await else {
        return;
    };
    let admin: AdminClient<_> = kafka.config().create().unwrap();
    let topic = NewTopic::new("t", 3, TopicReplication::Fixed(1));
    let created = admin.create_topics([&topic], &AdminOptions::new()).await;
    assert_eq!(created.unwrap(), [Ok("t".to_owned())]);
    let producer: FutureProducer = kafka.config().create().unwrap();
    for n in 0..10 {
        let (key, value) = (format!("k{n}"), format!("v{n}"));
        let record = FutureRecord::to("t").key(&key).payload(&value);
        producer.send(record, ANSWER_LIMIT).await.unwrap();
    }
    let before = kafka.records("t");
    assert_eq!(before.len(), 10);
    kafka.kill9();
    assert!(kafka.data().join("t-0").is_dir());
    kafka.restart().await;
    assert_eq!(kafka.records("t"), before);
}
