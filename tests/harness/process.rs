//! A process of a test: started, watched, signalled, reaped.
//!
//! Owns the child and the threads that read its output. Guarantees: dropping the value kills that child
//! by its own id and reaps it, and when the test is failing prints everything the child wrote.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{http, until};

/// Time from the signal to the exit that every role promises.
pub(crate) const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Longest start of a role, in an unoptimised build on two shared cores.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// A child process.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    stdout: Captured,
    stderr: Captured,
    status: Option<ExitStatus>,
}

/// Starts `convolake ARGS` with `env` as its whole environment, so that a developer's own credentials and
/// settings change no test.
pub(crate) fn convolake(args: &[&str], env: &[(&str, &str)]) -> Process {
    // Cargo says where it is to integration tests alone; others that share this bring their own.
    let Some(program) = option_env!("CARGO_BIN_EXE_convolake") else {
        panic!("only integration tests are told where the program is");
    };
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .env("RUST_BACKTRACE", "1")
        .envs(env.iter().copied());
    Process::spawn(&format!("convolake {}", args.join(" ")), &mut command)
}

impl Process {
    /// Starts `command`; `name` heads its output.
    pub(crate) fn spawn(name: &str, command: &mut Command) -> Process {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: cannot start: {error}"));
        let stdout = Captured::start(child.stdout.take().expect("piped"));
        let stderr = Captured::start(child.stderr.take().expect("piped"));
        Process {
            name: name.to_owned(),
            child,
            stdout,
            stderr,
            status: None,
        }
    }

    /// How it ended, if it has.
    pub(crate) fn exited(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().unwrap();
        }
        self.status
    }

    /// Waits until `/readyz` of the ops listener at `ops` answers 200; the process must live until then.
    pub(crate) async fn wait_ready(&mut self, ops: &str) {
        self.wait_answer(&format!("http://{ops}/readyz")).await;
    }

    /// Waits until a GET of `url` answers 200; the process must live until then.
    pub(crate) async fn wait_answer(&mut self, url: &str) {
        let what = format!("{}: ready", self.name);
        until(&what, READY_LIMIT, async || {
            if let Some(status) = self.exited() {
                panic!("{}: ended before it was ready: {status}", self.name);
            }
            match http::get(url).await {
                Ok((200, _)) => Ok(()),
                Ok((status, body)) => Err(format!("{status}: {body}")),
                Err(error) => Err(error),
            }
        })
        .await;
    }

    /// Its process id; its own until it is reaped by one of the calls below.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to stop.
    pub(crate) fn sigterm(&mut self) {
        self.signal("TERM");
    }

    /// Sends the signal of this name, as `kill` knows it.
    pub(crate) fn signal(&mut self, name: &str) {
        assert!(self.exited().is_none(), "{}: has ended already", self.name);
        // The shell's builtin: std has no signal but SIGKILL, and the child is not reaped yet, so the id
        // is still its own.
        let sent = Command::new("sh")
            .args(["-c", &format!("kill -{name} {}", self.child.id())])
            .status()
            .unwrap();
        assert!(sent.success(), "{}: SIG{name} was not sent", self.name);
    }

    /// Whether it was stopped by a signal and not continued.
    pub(crate) fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id())).unwrap_or_default();
        // proc(5): the state follows the name, which may hold anything, in parentheses.
        stat.rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with('T'))
    }

    /// Ends it at once and reaps it.
    pub(crate) fn kill9(&mut self) {
        if self.exited().is_none() {
            self.child.kill().unwrap();
            self.status = Some(self.child.wait().unwrap());
        }
    }

    /// Waits for its own end.
    pub(crate) async fn wait_exit(&mut self, limit: Duration) -> ExitStatus {
        let what = format!("{}: exit", self.name);
        until(&what, limit, async || {
            self.exited().ok_or_else(|| "still running".to_owned())
        })
        .await
    }

    /// Asks it to stop and claims that it does, with exit code 0, in the time that is promised.
    pub(crate) async fn stop(&mut self) {
        self.sigterm();
        let status = self.wait_exit(STOP_LIMIT).await;
        assert_eq!(status.code(), Some(0), "{}: after SIGTERM", self.name);
    }

    /// What it has written to standard output; all of it once it has ended.
    pub(crate) fn stdout(&mut self) -> String {
        if self.exited().is_some() {
            self.stdout.finish();
        }
        self.stdout.text()
    }

    /// What it has written to standard error; all of it once it has ended.
    pub(crate) fn stderr(&mut self) -> String {
        if self.exited().is_some() {
            self.stderr.finish();
        }
        self.stderr.text()
    }

    /// The most memory that it has held so far (`VmHWM` of Linux's `/proc`), in bytes; it must be running.
    pub(crate) fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = line.and_then(|rest| rest.trim().strip_suffix(" kB"));
        kilobytes
            .unwrap_or_else(|| panic!("{}: {status}", self.name))
            .parse::<u64>()
            .unwrap()
            * 1024
    }

    /// All that it has written, under its name.
    pub(crate) fn report(&mut self) -> String {
        if self.exited().is_some() {
            self.stdout.finish();
            self.stderr.finish();
        }
        let state = match self.status {
            Some(status) => status.to_string(),
            None => "running".to_owned(),
        };
        format!(
            "==== {} ({state})\n---- standard output\n{}---- standard error\n{}====\n",
            self.name,
            self.stdout.text(),
            self.stderr.text()
        )
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let running = self.child.try_wait().is_ok_and(|status| status.is_none());
        if std::thread::panicking() {
            eprintln!("{}", self.report());
        }
        if running {
            // Either fails only where the child is gone already.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Runs `command` to its end and gives what it printed, or a report of the failure. It reads nothing unless
/// it was given a standard input.
pub(crate) fn run(name: &str, command: &mut Command) -> Result<String, String> {
    let output = command
        .output()
        .map_err(|error| format!("{name}: cannot start: {error}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(format!(
        "{name}: {}\n---- standard output\n{stdout}---- standard error\n{stderr}",
        output.status
    ))
}

/// Runs `command` to its end with `input` as its standard input, and gives what it printed. It talks to
/// loopback, whatever proxy this machine has.
///
/// Panics with all that it wrote where it fails.
pub(crate) fn run_with(name: &str, command: &mut Command, input: &str) -> String {
    let folder = super::folder();
    let file = folder.path().join("input");
    std::fs::write(&file, input).unwrap();
    command
        .env("NO_PROXY", "127.0.0.1")
        .env("no_proxy", "127.0.0.1")
        .stdin(File::open(&file).unwrap());
    run(name, command).unwrap_or_else(|why| panic!("{why}"))
}

/// A path as an argument.
pub(crate) fn arg(path: &Path) -> &str {
    path.to_str().expect("test folders have UTF-8 names")
}

/// A pipe's content so far, read by a thread of its own so that the child never blocks on it.
#[derive(Debug)]
struct Captured {
    content: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Captured {
    fn start(mut pipe: impl Read + Send + 'static) -> Captured {
        let content = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&content);
        let reader = std::thread::spawn(move || {
            let mut block = [0; 8192];
            while let Ok(read @ 1..) = pipe.read(&mut block) {
                sink.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .extend_from_slice(&block[..read]);
            }
        });
        Captured {
            content,
            reader: Some(reader),
        }
    }

    /// Reads to the end of the pipe, which comes when the child has ended.
    fn finish(&mut self) {
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }

    fn text(&self) -> String {
        let content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&content).into_owned()
    }
}

/// What a child writes is all there once it has ended, and a stop is claimed by its exit code.
#[tokio::test]
async fn a_process_is_stopped_and_its_output_kept() {
    let script = "trap 'echo bye; exit 0' TERM; echo up; echo trouble >&2; \
                  while :; do sleep 0.05; done";
    let mut process = Process::spawn("sh", Command::new("sh").args(["-c", script]));
    until("the trap is set", READY_LIMIT, async || {
        match process.stdout() {
            text if text == "up\n" => Ok(()),
            text => Err(text),
        }
    })
    .await;
    process.stop().await;
    assert_eq!(process.stdout(), "up\nbye\n");
    assert!(process.report().contains("trouble\n"));
    let mut killed = Process::spawn("sh", Command::new("sh").args(["-c", script]));
    killed.kill9();
    assert_eq!(killed.exited().unwrap().code(), None);
}
