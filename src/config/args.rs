//! The command line as types: one struct a command, parsed once; later code never sees a raw flag.
//!
//! Owns names, defaults and help of every flag. Refuses to build anything: `cli` does, from these.

use std::fmt;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use jiff::Timestamp;
use url::Url;

use super::Invalid;
use crate::emulator::{self, PartialFields};
use crate::replay::Source;
use crate::signature::PublicUrl;
use crate::telemetry::LogFormat;
use crate::topic::Gap;

/// Signed conversation callbacks in, Kafka through, an exact Parquet lake out.
#[derive(Debug, Parser)]
#[command(
    name = "convolake",
    version = super::VERSION,
    max_term_width = 100,
    disable_help_subcommand = true
)]
pub struct Cli {
    /// What to run.
    #[command(subcommand)]
    pub command: Command,
    /// TOML file with any of these settings; flags and environment come before it.
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How log events are written to standard error.
    #[arg(long, global = true, value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// Which log events are written, e.g. `info` or `convolake=debug`.
    #[arg(
        long,
        global = true,
        value_name = "FILTER",
        default_value = "warn,convolake=info,librdkafka=error"
    )]
    pub log_filter: String,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Everything in one process: emulator, embedded Kafka, receiver, ingester; then verifies the lake.
    Dev(Dev),
    /// The status-callback endpoint.
    Receive(Receive),
    /// The Kafka consumer: run as many as there are partitions.
    Ingest(Ingest),
    /// The Conversation Orchestrator on loopback: REST, signed callbacks, traffic, faults.
    Emulate(Emulate),
    /// Dead letters, or quarantine, back through the pipeline.
    Replay(Replay),
    /// Finds closed conversations that no callback announced, and publishes their close.
    Reconcile(Reconcile),
    /// Is every closed conversation in the lake, whole and once? Names what is not (exit code 3).
    Verify(Verify),
    /// Deletes what killed writers left and what was replaced long ago; writes a checkpoint where one is due.
    Maintain(Maintain),
    /// The DuckDB views over a lake, on standard output.
    Sql(Sql),
}

/// Where Kafka is.
#[derive(Debug, Clone, Args)]
pub struct KafkaArgs {
    /// Bootstrap brokers.
    #[arg(long, value_name = "HOST:PORT,…")]
    pub kafka: String,
    #[command(flatten)]
    pub topics: TopicArgs,
}

/// Where Kafka is, for commands that make no topics.
#[derive(Debug, Clone, Args)]
pub struct KafkaClientArgs {
    /// Bootstrap brokers.
    #[arg(long, value_name = "HOST:PORT,…")]
    pub kafka: String,
    #[command(flatten)]
    pub names: TopicNames,
}

/// Which topics, and client properties.
#[derive(Debug, Clone, Args)]
pub struct TopicNames {
    /// librdkafka property, e.g. for TLS and SASL; may be repeated.
    #[arg(long = "kafka-property", value_name = "NAME=VALUE", value_parser = kafka_property)]
    pub kafka_properties: Vec<KafkaProperty>,
    /// Topic of events; `.quarantine` and `.dead-letters` stand beside it.
    #[arg(long, value_name = "NAME", default_value = "convolake.events")]
    pub topic: String,
}

/// Topics, and how they are made.
#[derive(Debug, Clone, Args)]
pub struct TopicArgs {
    #[command(flatten)]
    pub names: TopicNames,
    /// Create the topics at start where they are missing.
    #[arg(long)]
    pub create_topics: bool,
    /// Partitions of a topic that is created.
    #[arg(long, value_name = "N", default_value = "12", value_parser = clap::value_parser!(i32).range(1..=10_000))]
    pub partitions: i32,
    /// Replicas of a topic that is created.
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(i32).range(1..=100))]
    pub replication: i32,
}

/// Where the API is, and how hard it may be asked.
#[derive(Debug, Clone, Args)]
pub struct ApiArgs {
    /// Origin of the REST API.
    #[arg(long, value_name = "URL", default_value = "https://conversations.twilio.com", value_parser = origin)]
    pub api_url: Url,
    /// Requests a second that this process may send.
    #[arg(long, value_name = "N", default_value = "20")]
    pub requests_per_second: NonZeroU32,
}

/// The ops listener.
#[derive(Debug, Clone, Args)]
pub struct OpsArgs {
    /// Address of /livez, /readyz and /metrics.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9464")]
    pub ops_listen: SocketAddr,
}

/// When a batch is written, and how much may be in flight.
#[derive(Debug, Clone, Args)]
pub struct FlushArgs {
    /// Longest time a row waits for its commit.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub flush_interval: Duration,
    /// Rows that make a batch.
    #[arg(long, value_name = "N", default_value = "100000")]
    pub flush_rows: NonZeroU32,
    /// Bytes of rows that make a batch.
    #[arg(long, value_name = "BYTES", default_value = "67108864")]
    pub flush_bytes: NonZeroU32,
    /// Bytes of records read and not yet durable, for each of the two groups; then partitions pause.
    #[arg(long, value_name = "BYTES", default_value = "33554432")]
    pub max_in_flight_bytes: NonZeroU32,
    /// Wait after a close before its conversation is fetched.
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration)]
    pub settle: Duration,
    /// How long after its close callbacks about a conversation have it fetched again; 0s: never.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration)]
    pub recheck_window: Duration,
    /// Conversations fetched at once.
    #[arg(long, value_name = "N", default_value = "32")]
    pub concurrency: NonZeroU32,
}

impl FlushArgs {
    /// What `dev` uses: its own waits, everything else as the defaults above.
    pub fn for_dev(flush_interval: Duration, settle: Duration) -> Self {
        FlushArgs {
            flush_interval,
            settle,
            ..<FlushDefaults as Parser>::parse_from([""]).flush
        }
    }
}

/// The defaults stand in one place, the attributes of [`FlushArgs`].
#[derive(Parser)]
struct FlushDefaults {
    #[command(flatten)]
    flush: FlushArgs,
}

/// `convolake receive`
#[derive(Debug, Args)]
pub struct Receive {
    /// Address that callbacks arrive on (plain HTTP; TLS ends in front).
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,
    /// The URL that Twilio calls and signs, byte for byte; its path is the route.
    #[arg(long, value_name = "URL", value_parser = public_url)]
    pub public_url: PublicUrl,
    /// Connections open at once.
    #[arg(long, value_name = "N", default_value = "4096")]
    pub max_connections: NonZeroU32,
    /// Folder of the spool: what Kafka does not take in time is kept there, and sent when it can be;
    /// without it such callbacks are answered 503. Created if missing; one for each process.
    #[arg(long, value_name = "DIR")]
    pub spool: Option<PathBuf>,
    /// Bytes of records that the spool keeps at most; its file takes up to about twice as much.
    #[arg(long, value_name = "BYTES", default_value = "1073741824")]
    pub spool_max_bytes: NonZeroU64,
    #[command(flatten)]
    pub kafka: KafkaArgs,
    #[command(flatten)]
    pub ops: OpsArgs,
}

/// `convolake ingest`
#[derive(Debug, Args)]
pub struct Ingest {
    #[command(flatten)]
    pub kafka: KafkaArgs,
    /// Consumer group; the archive and the enricher add their own names to it.
    #[arg(long, value_name = "NAME", default_value = "convolake")]
    pub group: String,
    /// Root of the lake.
    #[arg(long, value_name = "PATH")]
    pub lake: String,
    /// Go on behind records that the topic no longer has, as the error that reports them says; may be repeated.
    #[arg(long = "accept-gap", value_name = "PARTITION:FROM..TO")]
    pub accepted_gaps: Vec<Gap>,
    #[command(flatten)]
    pub api: ApiArgs,
    #[command(flatten)]
    pub flush: FlushArgs,
    #[command(flatten)]
    pub ops: OpsArgs,
}

/// `convolake emulate`
#[derive(Debug, Args)]
pub struct Emulate {
    /// Address of the REST API and of the emulator's own routes.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8085")]
    pub listen: SocketAddr,
    #[command(flatten)]
    pub callbacks: CallbackArgs,
    #[command(flatten)]
    pub traffic: TrafficArgs,
    #[command(flatten)]
    pub service: ServiceArgs,
    #[command(flatten)]
    pub faults: FaultArgs,
}

/// How the emulated service behaves.
#[derive(Debug, Clone, Args)]
pub struct ServiceArgs {
    /// Let time stand still here until it is advanced by POST /emulator/clock; without it, time is now.
    #[arg(long, value_name = "RFC3339")]
    pub start_time: Option<Timestamp>,
    /// How long operations of the control plane are PENDING.
    #[arg(long, value_name = "DURATION", default_value = "200ms", value_parser = duration)]
    pub operation_delay: Duration,
    /// Accept PATCH of a configuration, which the SDKs know and the service denies.
    #[arg(long)]
    pub allow_configuration_patch: bool,
    /// Conversations kept in memory; past it the ones that closed first are forgotten. Without it 20,000, or
    /// --conversations where that is more.
    #[arg(long, value_name = "N")]
    pub keep_conversations: Option<usize>,
    /// Share of list items that leave fields out, 0 to 1.
    #[arg(long, value_name = "SHARE", default_value = "0.1")]
    pub partial: f64,
    /// Which: createdAt, dateCreated, channels, flat, author, content, recipients; all of them unless said.
    #[arg(long, value_name = "FIELD,…")]
    pub partial_fields: Option<PartialFields>,
}

/// Where the emulator's callbacks go.
#[derive(Debug, Clone, Args)]
pub struct CallbackArgs {
    /// URL that callbacks are signed for; without it none are sent. Its fragment asks for retries
    /// (`#rc=5&rp=all`), as at Twilio.
    #[arg(long, value_name = "URL", value_parser = callback_url)]
    pub callback_url: Option<String>,
    /// Where they really connect, plain HTTP (a laptop has no public host).
    #[arg(long, value_name = "HOST:PORT")]
    pub callback_connect: Option<SocketAddr>,
}

/// What goes wrong at the emulator.
#[derive(Debug, Clone, Default, Args)]
pub struct FaultArgs {
    /// Script of faults, YAML or JSON: schemas/faults.schema.json, samples in deploy/faults/.
    #[arg(long, value_name = "FILE")]
    pub faults: Option<PathBuf>,
}

/// The emulator's traffic.
#[derive(Debug, Clone, Args)]
pub struct TrafficArgs {
    /// Conversations to play; 0 goes on until stopped.
    #[arg(long, value_name = "N", default_value = "200")]
    pub conversations: u64,
    /// Conversations a second; without it as fast as callbacks are answered.
    #[arg(long, value_name = "R")]
    pub rate: Option<f64>,
    /// Same seed, same conversations; without it a fresh one, printed.
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
    /// What the traffic is like, as TOML or JSON: channels, lengths, languages, arrival.
    #[arg(long, value_name = "FILE")]
    pub profile: Option<PathBuf>,
    /// Communications of the first conversation, to try a very large one.
    #[arg(long, value_name = "N")]
    pub large: Option<usize>,
}

/// `convolake verify`
#[derive(Debug, Args)]
pub struct Verify {
    /// Root of the lake.
    #[arg(long, value_name = "PATH")]
    pub lake: String,
    #[command(flatten)]
    pub api: ApiArgs,
    /// Bootstrap brokers, for --repair.
    #[arg(long, value_name = "HOST:PORT,…")]
    pub kafka: Option<String>,
    #[command(flatten)]
    pub names: TopicNames,
    /// Publish the callbacks of lost files again, take damaged files out of the log, and publish a close of each
    /// conversation with a finding.
    #[arg(long, requires = "kafka")]
    pub repair: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `convolake replay`
#[derive(Debug, Args)]
pub struct Replay {
    #[command(flatten)]
    pub kafka: KafkaClientArgs,
    /// Which topic is read, from its beginning to the end that it has now.
    #[arg(long, value_enum, default_value = "dead-letters")]
    pub from: Source,
    /// Only records set aside for this reason; may be repeated.
    #[arg(long = "reason", value_name = "WORD")]
    pub reasons: Vec<String>,
    /// Only records set aside at or after this time (RFC 3339).
    #[arg(long, value_name = "TIME", value_parser = timestamp)]
    pub since: Option<Timestamp>,
    /// Only records set aside before this time (RFC 3339).
    #[arg(long, value_name = "TIME", value_parser = timestamp)]
    pub until: Option<Timestamp>,
    /// Only records of this conversation; may be repeated.
    #[arg(long = "conversation", value_name = "ID")]
    pub conversations: Vec<String>,
    /// Only records at these offsets, as `verify` names those that a lost file of `events` held; may be repeated.
    #[arg(
        long = "offsets",
        value_name = "PARTITION:FROM..TO",
        required_if_eq("from", "events")
    )]
    pub offsets: Vec<Gap>,
    /// Count, and publish nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `convolake reconcile`
#[derive(Debug, Args)]
pub struct Reconcile {
    #[command(flatten)]
    pub kafka: KafkaClientArgs,
    /// Root of the lake.
    #[arg(long, value_name = "PATH")]
    pub lake: String,
    #[command(flatten)]
    pub api: ApiArgs,
    /// One pass, then end (exit code 3 where something was found); this is the default.
    #[arg(long, conflicts_with = "every")]
    pub once: bool,
    /// A pass, this pause, and again until stopped.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub every: Option<Duration>,
    /// Leave a close younger than this to its callback.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub grace: Duration,
    /// Name conversations that are ACTIVE, and unchanged, for longer than this; without it none are looked at.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub active_limit: Option<Duration>,
    /// The bookmark of a pass that was broken off; by default `.reconcile.json` in the lake's folder.
    #[arg(long, value_name = "FILE")]
    pub state: Option<PathBuf>,
    #[command(flatten)]
    pub ops: OpsArgs,
    /// Print one JSON object a pass.
    #[arg(long)]
    pub json: bool,
}

/// `convolake maintain`
#[derive(Debug, Args)]
pub struct Maintain {
    /// Root of the lake.
    #[arg(long, value_name = "PATH")]
    pub lake: String,
    /// How long a file is kept after no version names it, and a version stays readable; a table's own
    /// `delta.deletedFileRetentionDuration` counts where it is longer.
    #[arg(long, value_name = "DURATION", default_value = "7d", value_parser = duration)]
    pub retain: Duration,
    /// Nothing writes to the lake now, which alone makes a --retain below 1h safe.
    #[arg(long)]
    pub writers_stopped: bool,
    /// Name what would be deleted, and delete nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `convolake sql`
#[derive(Debug, Args)]
pub struct Sql {
    /// Root of the lake.
    #[arg(long, value_name = "PATH", default_value = "./lake")]
    pub lake: String,
    /// Read through DuckDB's Delta extension instead of plain SQL.
    #[arg(long)]
    pub delta: bool,
}

/// `convolake dev`
#[derive(Debug, Args)]
pub struct Dev {
    #[command(flatten)]
    pub traffic: TrafficArgs,
    #[command(flatten)]
    pub faults: FaultArgs,
    /// Root of the lake.
    #[arg(long, value_name = "PATH", default_value = "./lake")]
    pub lake: String,
    /// A real cluster instead of the embedded one.
    #[arg(long, value_name = "HOST:PORT,…")]
    pub kafka: Option<String>,
    #[command(flatten)]
    pub topics: TopicArgs,
    /// Longest time a row waits for its commit.
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration)]
    pub flush_interval: Duration,
    /// Wait after a close before its conversation is fetched.
    #[arg(long, value_name = "DURATION", default_value = "200ms", value_parser = duration)]
    pub settle: Duration,
    /// Requests a second to the emulator.
    #[arg(long, value_name = "N", default_value = "100000")]
    pub requests_per_second: NonZeroU32,
    /// Address of /livez, /readyz and /metrics; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub ops_listen: SocketAddr,
    /// Print the summary as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// A `--kafka-property` as given. It may hold a password, so that `Debug` shows its name at most, and it
/// is judged after the command line was parsed, whose errors quote what they refuse.
#[derive(Clone)]
pub struct KafkaProperty(String);

impl KafkaProperty {
    /// Name and value.
    ///
    /// # Errors
    /// There is no `=`.
    pub fn split(&self) -> Result<(String, String), Invalid> {
        let missing = || Invalid("--kafka-property: write NAME=VALUE".to_owned());
        let (name, value) = self.0.split_once('=').ok_or_else(missing)?;
        Ok((name.trim().to_owned(), value.to_owned()))
    }
}

impl fmt::Debug for KafkaProperty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            self.0
                .split_once('=')
                .map_or("[malformed]", |(name, _)| name),
        )
    }
}

fn kafka_property(text: &str) -> Result<KafkaProperty, String> {
    Ok(KafkaProperty(text.to_owned()))
}

fn duration(text: &str) -> Result<Duration, String> {
    // Days are a matter of calendars to the parser; here they are 24 hours.
    let days = text
        .strip_suffix('d')
        .and_then(|days| days.parse::<u32>().ok());
    if let Some(days) = days {
        return Ok(Duration::from_secs(u64::from(days) * 24 * 60 * 60));
    }
    let signed: jiff::SignedDuration = text
        .parse()
        .map_err(|_| "write a duration such as 500ms, 30s or 2m")?;
    Duration::try_from(signed).map_err(|_| "a duration cannot be negative".to_owned())
}

fn timestamp(text: &str) -> Result<Timestamp, String> {
    text.parse()
        .map_err(|_| "write a time such as 2026-11-22T10:00:00Z".to_owned())
}

fn public_url(text: &str) -> Result<PublicUrl, String> {
    PublicUrl::parse(text).map_err(|error| error.to_string())
}

fn callback_url(text: &str) -> Result<String, String> {
    emulator::check_callback_url(text)?;
    Ok(text.to_owned())
}

fn origin(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    let bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() || !bare {
        return Err(
            "write only scheme, host and port, such as https://conversations.twilio.com".into(),
        );
    }
    if url.username() != "" || url.password().is_some() {
        return Err(
            "credentials go into TWILIO_API_KEY and TWILIO_API_SECRET, not into the URL".into(),
        );
    }
    Ok(url)
}
