//! Black-box tests by role, in one binary so that the crate is linked once.
//!
//! Each module states claims about the program from outside: processes, sockets, Kafka, files. Parts that
//! are not ours come from `tests/parts/`; where one cannot be had a test prints why and returns, and with
//! `CI=true` it fails instead.
#![allow(
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "clippy exempts test functions; this whole crate is tests and their helpers"
)]

// What tests share, with each other and with `tests/chaos/`: real parts, our processes, HTTP, foreign readers.
#[allow(dead_code, reason = "the fault matrix uses the rest of it")]
#[path = "../harness/mod.rs"]
mod harness;

// The published schemas say what the code does.
mod schemas;

// Files and logs of the lake, as other programs read them.
mod lake;

// Everything in one process: its summary, its verdict, the same seed twice.
mod dev;

// The roles as processes on a real Kafka: kills, duplicates, disorder, and three readers of the result.
mod pipeline;

// What a SIGTERM may not lose.
mod stop;

// What is accepted while Kafka is away.
mod spool;

// What others do wrong: poison, an API that lies, Kafka and credentials that are not there.
mod faults;

// What the emulator can be told to do wrong, with the whole pipeline behind it.
mod fault_scripts;

// What an operator heals afterwards: replay, reconcile, verify.
mod heal;

// What killed writers leave, swept.
mod maintain;

// The Orchestrator as a process: profile, clock, bounds, progress.
mod emulate;

// The command line: wrong use, help, pipes, exit codes.
mod cli;

// Requests signed by Twilio's own code.
mod twilio_sdk;

// Twilio's own clients against the emulator: every step of Twilio's documents.
mod agent_connect;
mod official_sdks;
mod samples;

// The emulator's page in a browser.
mod page;

// From a capture rule to a row in DuckDB, as somebody new would go.
mod newcomer;
