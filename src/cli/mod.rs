//! The commands: one small file each, which builds parts from checked configuration and hands over.
//!
//! Owns the one start sequence (configuration, logging, runtime, metrics, signals, ops listener, role),
//! the exit codes, and standard output. No role builds a world of its own: it is handed a [`Process`].
//!
//! Guarantees: configuration is checked, and its error names the flag, before any port opens; results go
//! to standard output, everything else to standard error; a reader that closes standard output early is a
//! success, as for any filter.

mod dev;
mod emulate;
mod ingest;
mod maintain;
mod receive;
mod reconcile;
mod replay;
mod sql;
mod verify;

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use tokio::net::TcpListener;

use crate::config::args::{Command, KafkaArgs, KafkaProperty, TopicArgs, TopicNames};
use crate::config::{self, Invalid};
use crate::lake::{Access, Lake};
use crate::lifecycle::{Clock, Stop, Tasks, stop_on_signal};
use crate::telemetry::{self, Readiness};
use crate::topic::{self, Topics};

/// How a command ended, as the exit code that scripts see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed while running.
    Failed = 1,
    /// Wrong use or configuration, said before any port opened.
    Usage = 2,
    /// `verify` or `reconcile` found something.
    Found = 3,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Runs the command line and answers with the exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let exit = config::load(arguments).and_then(|(cli, secrets)| {
        telemetry::start_logging(cli.log_format, &cli.log_filter);
        #[cfg(feature = "sabotage")]
        tracing::error!(version = config::VERSION, guard = ?config::sabotage::chosen(), "a guard is taken out: nothing that this process says holds");
        match cli.command {
            Command::Dev(args) => dev::run(args),
            Command::Receive(args) => receive::run(args, &secrets),
            Command::Ingest(args) => ingest::run(args, &secrets),
            Command::Emulate(args) => emulate::run(args, secrets),
            Command::Reconcile(args) => reconcile::run(args, &secrets),
            Command::Replay(args) => replay::run(args),
            Command::Verify(args) => verify::run(args, &secrets),
            Command::Maintain(args) => maintain::run(&args),
            Command::Sql(args) => sql::run(&args),
        }
    });
    exit.unwrap_or_else(|error| report(&error)).into()
}

/// The only place where an error becomes text for a person.
#[expect(
    clippy::print_stderr,
    reason = "an error before or after logging is for the terminal"
)]
fn report(error: &anyhow::Error) -> Exit {
    if let Some(usage) = error.downcast_ref::<clap::Error>() {
        // Help and version are errors to clap, and go to standard output.
        let _ = usage.print();
        return if usage.use_stderr() {
            Exit::Usage
        } else {
            Exit::Done
        };
    }
    let broken_pipe = error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe);
    if broken_pipe {
        return Exit::Done;
    }
    eprintln!("convolake: {error:#}");
    if error.chain().any(|cause| cause.is::<Invalid>()) {
        Exit::Usage
    } else {
        Exit::Failed
    }
}

/// Prints a result.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// What every long-running role is handed.
struct Process {
    stop: Stop,
    tasks: Tasks,
    clock: Clock,
    readiness: Readiness,
}

impl Process {
    /// Signals, metrics and the ops listener, in this order. A signal requests the stop.
    async fn start(role: &'static str, ops_listen: SocketAddr) -> anyhow::Result<Process> {
        let stop = Stop::new();
        Process::start_with(role, ops_listen, stop.clone(), stop).await
    }

    /// The same, where a signal requests `interrupted`, and what follows is up to the role.
    async fn start_with(
        role: &'static str,
        ops_listen: SocketAddr,
        stop: Stop,
        interrupted: Stop,
    ) -> anyhow::Result<Process> {
        let mut tasks = Tasks::new(stop.clone());
        let readiness = Readiness::new();
        let signals = stop_on_signal(interrupted)?;
        tasks.spawn("signals", {
            let stop = stop.clone();
            async move {
                stop.race(signals).await;
                stop.requested().await;
                Ok(())
            }
        });
        let listener = telemetry::bind_ops(ops_listen).await?;
        let ops = listener.local_addr()?;
        let metrics = telemetry::start_metrics();
        tasks.spawn(
            "metrics",
            telemetry::fold_metrics(metrics.clone(), stop.clone()),
        );
        tasks.spawn(
            "ops",
            telemetry::serve_ops(listener, readiness.clone(), metrics, stop.clone()),
        );
        tracing::info!(role, version = env!("CARGO_PKG_VERSION"), %ops, "starting");
        Ok(Process {
            stop,
            tasks,
            clock: Clock::system(),
            readiness,
        })
    }
}

/// Runs `work` on `threads`; one thread runs everything, the acknowledgements of Kafka included.
///
/// Blocking work that has begun (a commit, a look at the brokers) is not waited for beyond
/// [`BLOCKING_DRAIN`]: a commit that is cut off there is one that a crash would have cut off.
fn block_on<T>(threads: usize, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let mut builder = if threads == 1 {
        tokio::runtime::Builder::new_current_thread()
    } else {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(threads);
        builder
    };
    let runtime = builder.enable_all().build()?;
    let result = runtime.block_on(work);
    runtime.shutdown_timeout(BLOCKING_DRAIN);
    result
}

/// Longest wait for blocking work after a role has ended.
const BLOCKING_DRAIN: Duration = Duration::from_millis(500);

/// Longest flush of a publisher after its role has ended: all that counts was acknowledged before.
const PUBLISHER_DRAIN: Duration = Duration::from_millis(1_250);

/// Threads for a role that computes as well as waits.
fn cores() -> usize {
    std::thread::available_parallelism()
        .map_or(2, usize::from)
        .max(2)
}

/// A bar on standard error, or none where that is no terminal; `conversations` 0 is a number nobody knows.
fn progress_bar(conversations: u64) -> indicatif::ProgressBar {
    if !std::io::stderr().is_terminal() {
        return indicatif::ProgressBar::hidden();
    }
    match conversations {
        0 => indicatif::ProgressBar::new_spinner(),
        known => indicatif::ProgressBar::new(known),
    }
}

/// Binds a role's listener.
async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        anyhow::anyhow!("--listen {address}: cannot listen there: {error}; choose another address")
    })
}

/// Opens the lake; not every error of it names the folder.
async fn open_lake(location: &str, access: Access) -> anyhow::Result<Lake> {
    let lake = Lake::open(location, access).await;
    lake.map_err(|error| anyhow::Error::from(error).context(format!("--lake {location}")))
}

/// Client settings of `--kafka` and `--kafka-property`, checked by librdkafka without connecting.
fn kafka(args: &KafkaArgs) -> anyhow::Result<(topic::Settings, Topics)> {
    kafka_at(args.kafka.clone(), &args.topics.names)
}

fn kafka_at(brokers: String, names: &TopicNames) -> anyhow::Result<(topic::Settings, Topics)> {
    let properties: Result<Vec<_>, Invalid> = names
        .kafka_properties
        .iter()
        .map(KafkaProperty::split)
        .collect();
    let properties = properties?;
    let settings = topic::Settings {
        brokers,
        properties,
        cluster: None,
    };
    settings
        .validate()
        .map_err(|error| Invalid(error.to_string()))?;
    Ok((settings, Topics::named(&names.topic)))
}

/// Creates the topics where `--create-topics` asks for it, however long the brokers take to answer.
async fn create_topics(
    settings: &topic::Settings,
    topics: &Topics,
    args: &TopicArgs,
    ready: &telemetry::Dependency,
    stop: &Stop,
) {
    if !args.create_topics {
        return;
    }
    while let Some(Err(error)) = stop
        .race(topic::create_topics(
            settings,
            topics,
            args.partitions,
            args.replication,
        ))
        .await
    {
        ready.down(error.to_string());
        if stop.race(tokio::time::sleep(KAFKA_PAUSE)).await.is_none() {
            return;
        }
    }
}

/// Pause between tries to reach the brokers at start, and between readiness checks.
const KAFKA_PAUSE: Duration = Duration::from_secs(2);

/// Longest time one look at the brokers may take.
const KAFKA_CHECK: Duration = Duration::from_secs(2);
