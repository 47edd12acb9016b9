//! `convolake emulate`: the Conversation Orchestrator on loopback.

use std::net::SocketAddr;

use crate::config::args::{CallbackArgs, Emulate, TrafficArgs};
use crate::config::{Invalid, Secrets};
use crate::emulator::{Credentials, Emulator, Options};
use crate::lifecycle::{Clock, Stop, Tasks, stop_on_signal};

use super::{Exit, cores, runtime};

pub(super) fn run(args: Emulate, secrets: Secrets) -> anyhow::Result<Exit> {
    let options = options(args.listen, &args.callbacks, &args.traffic, secrets)?;
    runtime(cores())?.block_on(async move {
        let stop = Stop::new();
        let mut tasks = Tasks::new(stop.clone());
        tasks.spawn("signals", {
            let stop = stop.clone();
            async move { Ok(stop_on_signal(stop).await?) }
        });
        let seed = options.seed;
        let emulator = Emulator::start(options, Clock::system(), stop.clone()).await?;
        tracing::info!(listen = %emulator.address(), seed, "emulating the Conversation Orchestrator");
        tasks.spawn("emulator", async move { Ok(emulator.finish().await?) });
        tasks.finish().await
    })?;
    Ok(Exit::Done)
}

/// Options of an emulator whose credentials, where none are given, are fixed and printed nowhere.
pub(super) fn options(
    listen: SocketAddr,
    callbacks: &CallbackArgs,
    traffic: &TrafficArgs,
    secrets: Secrets,
) -> Result<Options, Invalid> {
    let _ = (listen, callbacks, traffic, secrets, Credentials::default());
    unimplemented!()
}
