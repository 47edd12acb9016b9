//! `convolake emulate`: the Conversation Orchestrator on loopback.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::config::args::{CallbackArgs, Emulate, FaultArgs, ServiceArgs, TrafficArgs};
use crate::config::{Invalid, Secrets};
use crate::emulator::{
    Counts, DEV_ACCOUNT_SID, DEV_AUTH_TOKEN, Emulator, MAX_CONVERSATIONS, Options, Profile, Script,
};
use crate::lifecycle::{Clock, Stop, Tasks, stop_on_signal};

use super::{Exit, block_on, cores, progress_bar};

pub(super) fn run(args: Emulate, secrets: Secrets) -> anyhow::Result<Exit> {
    let clock = Clock::system();
    let secrets = with_defaults(secrets);
    let options = options(args.listen, &args.callbacks, &args.traffic, &secrets, clock)?;
    let options = Options {
        faults: faults(&args.faults)?,
        ..behaving(options, &args.service)
    };
    block_on(cores(), async move {
        let stop = Stop::new();
        let mut tasks = Tasks::new(stop.clone());
        let signals = stop_on_signal(stop.clone())?;
        let (seed, conversations) = (options.seed, options.conversations);
        let emulator = start(options, clock, stop.clone())?;
        tracing::info!(role = "emulate", listen = %emulator.address(), seed, "emulating the Conversation Orchestrator");
        let counts = emulator.counter();
        let until = stop.clone();
        tasks.spawn("progress", async move {
            show_progress(conversations, counts, &until).await;
            Ok(())
        });
        tasks.spawn("signals", async move {
            signals.await;
            Ok(())
        });
        tasks.spawn("emulator", async move { Ok(emulator.finish().await?) });
        tasks.finish().await
    })?;
    Ok(Exit::Done)
}

/// Starts an emulator; options that make no sense are wrong use, as any other flag.
pub(super) fn start(options: Options, clock: Clock, stop: Stop) -> anyhow::Result<Emulator> {
    options
        .check()
        .map_err(|error| Invalid(format!("{:#}", anyhow::Error::from(error))))?;
    Ok(Emulator::start(options, clock, stop)?)
}

/// How often the progress bar is looked at.
const TICK: Duration = Duration::from_millis(100);

/// Shows how many conversations have closed, on a terminal; ends at the stop.
async fn show_progress(conversations: u64, counts: impl Fn() -> Counts, stop: &Stop) {
    let bar = progress_bar(conversations);
    let mut ticks = tokio::time::interval(TICK);
    while !bar.is_hidden() && stop.race(ticks.tick()).await.is_some() {
        let closed = counts().conversations_closed;
        bar.set_position(closed);
        if conversations != 0 && closed >= conversations {
            break;
        }
    }
    bar.finish_and_clear();
    stop.requested().await;
}

/// Known credentials where none are given: they protect made-up conversations on loopback.
pub(super) fn with_defaults(secrets: Secrets) -> Secrets {
    secrets
        .or_default("TWILIO_ACCOUNT_SID", DEV_ACCOUNT_SID)
        .or_default("TWILIO_AUTH_TOKEN", DEV_AUTH_TOKEN)
}

/// The script of `--faults`; without one nothing goes wrong.
pub(super) fn faults(args: &FaultArgs) -> Result<Script, Invalid> {
    let Some(path) = &args.faults else {
        return Ok(Script::default());
    };
    let invalid = |what: String| Invalid(format!("--faults {}: {what}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| invalid(error.to_string()))?;
    Script::parse(&text).map_err(|error| invalid(error.to_string()))
}

/// Options of an emulator; a seed that is not given is a fresh one.
pub(super) fn options(
    listen: SocketAddr,
    callbacks: &CallbackArgs,
    traffic: &TrafficArgs,
    secrets: &Secrets,
    clock: Clock,
) -> Result<Options, Invalid> {
    let seed = traffic
        .seed
        .unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let defaults = Options::new(seed, clock.now());
    let conversations = usize::try_from(traffic.conversations).unwrap_or(usize::MAX);
    Ok(Options {
        listen,
        account_sid: secrets.account_sid().unwrap_or(DEV_ACCOUNT_SID).to_owned(),
        auth_token: secrets.auth_token().unwrap_or(DEV_AUTH_TOKEN).to_owned(),
        api_key: secrets.api_key(),
        callback_url: callbacks.callback_url.clone(),
        callback_connect: callbacks.callback_connect,
        signing_keys: secrets.signing_keys()?,
        conversations: traffic.conversations,
        rate: traffic.rate,
        large: traffic.large,
        profile: traffic
            .profile
            .as_deref()
            .map_or(Ok(Profile::default()), profile)?,
        // Traffic that ends can be looked at whole.
        keep_conversations: conversations.clamp(defaults.keep_conversations, MAX_CONVERSATIONS),
        ..defaults
    })
}

/// `options` with the service's behaviour as asked for; traffic is at the time where the clock stands.
fn behaving(options: Options, service: &ServiceArgs) -> Options {
    Options {
        start_time: service.start_time,
        base_time: service.start_time.unwrap_or(options.base_time),
        operation_delay: service.operation_delay,
        allow_configuration_patch: service.allow_configuration_patch,
        keep_conversations: service
            .keep_conversations
            .unwrap_or(options.keep_conversations),
        partial: service.partial,
        partial_fields: service.partial_fields.unwrap_or_default(),
        ..options
    }
}

fn profile(file: &Path) -> Result<Profile, Invalid> {
    let wrong = |what: String| Invalid(format!("--profile {}: {what}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
    Profile::parse(file, &text).map_err(|error| wrong(error.to_string()))
}
