//! A process of the program that a row ends and starts again.
//!
//! Owns what is kept between two of its lives: its arguments, what it wrote, how it ended when nobody asked it
//! to.

use std::process::ExitStatus;

use crate::harness::process::Process;
use crate::plan::{Under, Who};

/// A process of the program that may be ended and started again.
#[derive(Debug)]
pub(crate) struct Role {
    pub(crate) who: Who,
    pub(crate) args: Vec<String>,
    /// Further environment.
    pub(crate) env: Vec<(&'static str, String)>,
    /// `HOST:PORT` of the ops listener.
    pub(crate) ops: String,
    pub(crate) under: Under,
    pub(crate) process: Option<Process>,
    /// What lives of it wrote that have ended.
    pub(crate) written: Vec<String>,
    /// How those ended that the row did not end.
    pub(crate) ends: Vec<ExitStatus>,
}

impl Role {
    pub(crate) fn new(who: Who, args: Vec<String>, ops: String, under: Under) -> Role {
        Role {
            who,
            args,
            env: Vec::new(),
            ops,
            under,
            process: None,
            written: Vec::new(),
            ends: Vec::new(),
        }
    }

    /// Gives a flag that it has another value.
    pub(crate) fn set(&mut self, flag: &str, value: &str) {
        let at = self
            .args
            .iter()
            .position(|arg| arg == flag)
            .expect("a flag that it has");
        value.clone_into(&mut self.args[at + 1]);
    }

    /// `HOST:PORT` of the callback listener.
    pub(crate) fn address(&self) -> &str {
        &self.args[2]
    }

    pub(crate) fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the role runs")
    }

    /// Takes a process that has ended away, keeping what it wrote.
    pub(crate) fn bury(&mut self) {
        if let Some(mut process) = self.process.take() {
            self.written.push(process.stderr());
        }
    }

    pub(crate) fn kill9(&mut self) {
        self.note_end();
        if let Some(process) = &mut self.process {
            process.kill9();
        }
        self.bury();
    }

    /// Notes an end that nobody asked for.
    pub(crate) fn note_end(&mut self) {
        if let Some(status) = self.process.as_mut().and_then(Process::exited) {
            self.ends.push(status);
            self.bury();
        }
    }
}
