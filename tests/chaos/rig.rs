//! One row's processes, files and load, started as its stand says.
//!
//! Owns them and ends them. Decides nothing about faults or verdicts.

use std::collections::{BTreeMap, HashSet};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::harness::process::{Process, arg};
use crate::harness::roles::PUBLIC_URL;
use crate::harness::{folder, free_address, http, until};
use crate::ledger::Ledger;
use crate::load::{Orders, Sender, sha256};
use crate::plan::{Between, Case, Material, Place, Row, Stand, Step, Toxic, Under, Who};
use crate::proxy::Proxy;
use crate::role::Role;
use crate::volume::Volume;
use crate::world::{Cluster, World};

/// Longest start of a process until its ops listener answers.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Pause between two looks at memory and file descriptors.
const SAMPLE_PAUSE: Duration = Duration::from_millis(250);
/// Bytes of the control block of `preload.c`.
const CONTROL_BYTES: usize = 80;

/// The most that the processes held.
#[derive(Debug, Default)]
pub(crate) struct Peaks {
    pub(crate) rss_kb: u64,
    pub(crate) fds: u64,
    pub(crate) spool_bytes: u64,
}

/// A copy that a power cut left, with what had been acknowledged before it.
#[derive(Debug)]
pub(crate) struct Cut {
    pub(crate) volume: Volume,
    pub(crate) place: Place,
    /// Milliseconds of the ledger.
    pub(crate) at: u64,
    /// Kafka's own offsets of the archive's group, by partition: written after the lake has acknowledged them.
    pub(crate) hints: BTreeMap<i32, i64>,
}

/// A row that runs.
#[derive(Debug)]
pub(crate) struct Rig<'w> {
    pub(crate) world: &'w mut World,
    pub(crate) case: &'static Case,
    pub(crate) rng: ChaCha8Rng,
    pub(crate) topic: String,
    pub(crate) roles: Vec<Role>,
    own: Option<Cluster>,
    pub(crate) spool: Option<Volume>,
    pub(crate) lake: Option<Volume>,
    proxy: Option<Proxy>,
    pub(crate) ledger: Ledger,
    pub(crate) sender: Option<Sender>,
    pub(crate) cuts: Vec<Cut>,
    /// Hashes of bodies that the row itself put into a topic.
    pub(crate) planted: HashSet<String>,
    /// Hashes of bodies that the row took out of a topic.
    pub(crate) excused: HashSet<String>,
    /// How often the fault was done.
    pub(crate) times: u64,
    /// Files that a writer left behind, as the row made it look, and files that were swept.
    pub(crate) abandoned: u64,
    pub(crate) swept: u64,
    /// Milliseconds of the ledger when the last fault ended.
    pub(crate) mark: u64,
    pub(crate) also: BTreeMap<String, f64>,
    peaks: Arc<Mutex<Peaks>>,
    pids: Arc<Mutex<Vec<u32>>>,
    sampler: JoinHandle<()>,
    watcher: Option<Child>,
    control: PathBuf,
    pub(crate) folder: TempDir,
}

impl<'w> Rig<'w> {
    /// Starts what the stand names; the error says what this machine lacks.
    pub(crate) async fn start(
        world: &'w mut World,
        row: &Row,
        case: &'static Case,
    ) -> Result<Rig<'w>, String> {
        let stand = &case.stand;
        let own = match stand.broker {
            Some(medium) => Some(Cluster::start(medium, stand.broker_properties).await?),
            None => {
                world.cluster().await?;
                None
            }
        };
        let folder = folder();
        let control = folder.path().join("control");
        std::fs::write(&control, [0; CONTROL_BYTES]).map_err(|error| error.to_string())?;
        let ledger = Ledger::create(folder.path().join("ledger.jsonl"));
        let (peaks, pids) = (Arc::default(), Arc::default());
        let spool = stand.spool.map(Volume::new).transpose()?;
        let sampler = sample(
            Arc::clone(&pids),
            Arc::clone(&peaks),
            spool.as_ref().map(Volume::path),
        );
        let lake = match stand.workers {
            0 => None,
            _ => Some(Volume::new(stand.lake)?),
        };
        let seed = world.seed
            ^ row
                .id
                .bytes()
                .fold(0, |sum, byte| sum << 8 | u64::from(byte));
        let mut rig = Rig {
            case,
            rng: ChaCha8Rng::seed_from_u64(seed),
            topic: format!(
                "chaos.{}.{}",
                row.id,
                world.program.sabotage.unwrap_or("sound")
            ),
            roles: Vec::new(),
            own,
            spool,
            lake,
            proxy: None,
            ledger,
            sender: None,
            cuts: Vec::new(),
            planted: HashSet::new(),
            excused: HashSet::new(),
            times: 0,
            abandoned: 0,
            swept: 0,
            mark: 0,
            also: BTreeMap::new(),
            peaks,
            pids,
            sampler,
            watcher: None,
            control,
            folder,
            world,
        };
        rig.start_parts(stand).await?;
        Ok(rig)
    }

    async fn start_parts(&mut self, stand: &Stand) -> Result<(), String> {
        let topic = self.topic.clone();
        self.cluster().create_topics(&topic).await;
        if let Some(volume) = &self.cluster().volume {
            // Only what comes after the start is at stake in a power cut.
            volume.sync()?;
        }
        let api = match stand.material {
            Material::Played | Material::Unclosed => {
                self.world.played(stand.material).await.address.clone()
            }
            Material::Synthetic => free_address(),
        };
        let (direct, front, back) = {
            let cluster = self.cluster();
            (
                cluster.kafka.address().to_owned(),
                cluster.front,
                cluster.back,
            )
        };
        let (mut of_receivers, mut of_workers, mut of_api) = (direct.clone(), direct, api.clone());
        let behind = format!("127.0.0.1:{front}");
        match stand.proxied {
            None => {}
            Some(Between::WorkersAndApi) => {
                self.proxy = Some(Proxy::start(front, api).await);
                of_api = behind;
            }
            Some(between) => {
                self.proxy = Some(Proxy::start(front, format!("127.0.0.1:{back}")).await);
                match between {
                    Between::ReceiversAndKafka => of_receivers = behind,
                    _ => of_workers = behind,
                }
            }
        }
        let sweeps = |step: &Step| matches!(step, Step::Sweep(..));
        let roles = [stand.receiver_under, stand.worker_under];
        if roles.contains(&Under::Preload) || self.case.steps.iter().any(sweeps) {
            self.world.preload()?;
        }
        for _ in 0..stand.receivers {
            let role = self.receiver(&of_receivers, stand);
            self.roles.push(role);
        }
        for n in 0..stand.workers {
            let role = self.worker(n, &of_workers, &of_api, stand);
            self.roles.push(role);
        }
        Ok(())
    }

    pub(crate) fn receiver(&self, kafka: &str, stand: &Stand) -> Role {
        let ops = free_address();
        let listen = free_address();
        let own = [
            "receive",
            "--listen",
            &listen,
            "--public-url",
            PUBLIC_URL,
            "--ops-listen",
            &ops,
            "--kafka",
            kafka,
            "--topic",
            &self.topic,
        ];
        let mut args: Vec<String> = [&own, stand.receiver_flags]
            .concat()
            .into_iter()
            .map(str::to_owned)
            .collect();
        if let Some(spool) = &self.spool {
            args.extend(["--spool".to_owned(), arg(&spool.path()).to_owned()]);
        }
        Role::new(Who::Receiver, args, ops, stand.receiver_under)
    }

    fn worker(&self, n: usize, kafka: &str, api: &str, stand: &Stand) -> Role {
        let ops = free_address();
        let api_url = format!("http://{api}");
        let lake = self.lake_path();
        // A member that comes back under its name gets its partitions at once; a session is waited out only
        // by rows that are about that.
        let member = format!("group.instance.id=worker-{n}");
        let own = [
            "ingest",
            "--ops-listen",
            &ops,
            "--kafka",
            kafka,
            "--topic",
            &self.topic,
            "--group",
            &self.topic,
            "--lake",
            arg(&lake),
            "--api-url",
            &api_url,
            "--flush-interval",
            "1s",
            "--settle",
            "200ms",
            "--requests-per-second",
            "2000",
            "--kafka-property",
            "session.timeout.ms=6000",
            "--kafka-property",
            "heartbeat.interval.ms=500",
        ];
        let mut args: Vec<String> = own.map(str::to_owned).into();
        if !stand.worker_flags.contains(&NAMELESS) {
            args.extend(["--kafka-property".to_owned(), member]);
        }
        let mut role = Role::new(Who::Worker, args, ops, stand.worker_under);
        if let [flag, value] = stand.worker_flags {
            role.set(flag, value);
        }
        role
    }

    /// Starts the foreign reader, which reads the lake over and over until the verdict.
    pub(crate) fn watch(&mut self) {
        let Some(lake) = &self.lake else { return };
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chaos/watch.py");
        let watcher = Command::new(self.world.python)
            .arg("-B")
            .arg(script)
            .arg(lake.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        self.watcher = Some(watcher.unwrap());
    }

    /// What the foreign reader found.
    pub(crate) fn watched(&mut self) -> Option<Value> {
        let mut watcher = self.watcher.take()?;
        drop(watcher.stdin.take());
        let output = watcher.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        Some(
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("watch.py: {error}: {text}")),
        )
    }

    pub(crate) async fn send(&mut self) {
        let captured = match self.case.stand.material {
            Material::Played => Some(Arc::clone(&self.world.played_before().captured)),
            Material::Unclosed => {
                let all = self.world.played_before().captured.iter();
                let announced = all.filter(|callback| !callback.body.contains("\"CLOSED\""));
                Some(Arc::new(announced.cloned().collect()))
            }
            Material::Synthetic => None,
        };
        let listens = |role: &Role| role.args[2].clone();
        let receivers = self.roles.iter().filter(|role| role.who == Who::Receiver);
        let orders = Orders {
            load: self.case.load,
            receivers: receivers.map(listens).collect(),
            captured,
            ledger: self.ledger.clone(),
            rng: ChaCha8Rng::from_rng(&mut self.rng),
        };
        if !orders.receivers.is_empty() {
            self.sender = Some(Sender::start(orders));
        }
    }

    /// Starts the role at `at` and waits until its ops listener answers, or it has ended.
    pub(crate) async fn start_role(&mut self, at: usize) {
        self.launch(at).await;
        let role = &mut self.roles[at];
        let url = format!("http://{}/livez", role.ops);
        let process = role.process.as_mut().expect("just started");
        until("the ops listener", START_LIMIT, async || {
            if process.exited().is_some() {
                return Ok(());
            }
            match http::get(&url).await {
                Ok((200, _)) => Ok(()),
                Ok((status, body)) => Err(format!("{status}: {body}")),
                Err(error) => Err(error),
            }
        })
        .await;
    }

    /// The same without the wait.
    pub(crate) async fn launch(&mut self, at: usize) {
        let role = &mut self.roles[at];
        assert!(role.process.is_none(), "it runs already");
        let wrapper: Vec<String> = match role.under {
            Under::Nothing | Under::Preload => Vec::new(),
            Under::Files(most) => vec!["prlimit".into(), format!("--nofile={most}")],
            Under::MemoryLimit(megabytes) => {
                let group = memory_group(megabytes).unwrap_or_else(|why| panic!("{why}"));
                vec!["sh".into(), "-c".into(), MEMORY_SCRIPT.into(), group]
            }
        };
        let mut command = self.world.program.command(&wrapper, &role.args);
        command.envs(role.env.iter().map(|(name, value)| (name, value)));
        let name = format!("convolake {}", role.args[0]);
        if role.under == Under::Preload {
            self.preload(&mut command);
        }
        let process = Process::spawn(&name, &mut command);
        lock(&self.pids).push(process.id());
        self.roles[at].process = Some(process);
    }

    /// Puts our own library in front of what `command` starts.
    pub(crate) fn preload(&mut self, command: &mut Command) {
        let library = self.world.preload().expect("made before");
        command
            .env("LD_PRELOAD", library)
            .env("CHAOS_CONTROL", &self.control);
    }

    /// Which roles are meant.
    pub(crate) fn those(&self, who: Who) -> Vec<usize> {
        (0..self.roles.len())
            .filter(|at| self.roles[*at].who == who)
            .collect()
    }

    pub(crate) fn cluster(&mut self) -> &mut Cluster {
        match &mut self.own {
            Some(own) => own,
            None => self.world.cluster.as_mut().expect("started with the row"),
        }
    }

    pub(crate) fn lake_path(&self) -> PathBuf {
        self.lake.as_ref().expect("the row has workers").path()
    }

    /// The file that holds what is true of the played conversations.
    pub(crate) fn truth(&self) -> PathBuf {
        self.world.played_before().truth_file.clone()
    }

    pub(crate) fn set_proxy(&self, toxic: Toxic) {
        self.proxy.as_ref().expect("the row has a proxy").set(toxic);
    }

    /// Writes `value` into the control block of `preload.c`.
    pub(crate) fn control(&self, at: u64, value: &[u8]) {
        let file = OpenOptions::new().write(true).open(&self.control).unwrap();
        file.write_all_at(value, at).unwrap();
    }

    /// A number that is there.
    pub(crate) fn controlled(&self, at: u64) -> i32 {
        let mut value = [0; 4];
        let file = std::fs::File::open(&self.control).unwrap();
        file.read_exact_at(&mut value, at).unwrap();
        i32::from_ne_bytes(value)
    }

    /// Entries of the lake's three logs.
    pub(crate) fn versions(&self) -> usize {
        let lake = self.lake_path();
        let tables = ["communications", "conversations", "events"];
        let logs = tables
            .iter()
            .filter_map(|table| std::fs::read_dir(lake.join(table).join("_delta_log")).ok());
        logs.flatten()
            .filter(|entry| {
                entry
                    .as_ref()
                    .is_ok_and(|entry| entry.path().extension().is_some_and(|end| end == "json"))
            })
            .count()
    }

    pub(crate) fn peaks(&self) -> std::sync::MutexGuard<'_, Peaks> {
        self.peaks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The fault is over: what follows is recovery.
    pub(crate) fn over(&mut self) {
        self.mark = self.ledger.now();
    }

    /// What every life of every process wrote to standard error.
    pub(crate) fn written(&mut self) -> String {
        let mut text = String::new();
        for role in &mut self.roles {
            text.extend(role.written.iter().map(String::as_str));
            if let Some(process) = &mut role.process {
                text.push_str(&process.stderr());
            }
        }
        text
    }
}

/// A flag of the harness: the worker joins its groups without a name of its own.
pub(crate) const NAMELESS: &str = "nameless";

/// Puts itself into the memory cgroup that is its name, then becomes the program.
const MEMORY_SCRIPT: &str = "echo $$ > \"$0/cgroup.procs\" && exec \"$@\"";

/// Where memory cgroups of version 1 are.
const MEMORY_GROUPS: &str = "/sys/fs/cgroup/memory";

/// A memory cgroup of this harness with this limit.
fn memory_group(megabytes: u32) -> Result<String, String> {
    let group = format!("{MEMORY_GROUPS}/convolake-chaos-{megabytes}");
    let limit = Path::new(&group).join("memory.limit_in_bytes");
    std::fs::create_dir_all(&group)
        .and_then(|()| std::fs::write(limit, format!("{megabytes}M")))
        .map_err(|error| format!("{group}: {error}"))?;
    Ok(group)
}

impl Drop for Rig<'_> {
    fn drop(&mut self) {
        self.sampler.abort();
        if let Some(mut watcher) = self.watcher.take() {
            // Fails only where it has ended.
            let _ = watcher.kill();
            let _ = watcher.wait();
        }
    }
}

/// Notes the peaks of memory, descriptors and spool until it is aborted.
fn sample(
    pids: Arc<Mutex<Vec<u32>>>,
    peaks: Arc<Mutex<Peaks>>,
    spool: Option<PathBuf>,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            for pid in lock(&pids).iter() {
                let status =
                    std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
                let held = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse().ok());
                let open = std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
                let mut peaks = lock(&peaks);
                peaks.rss_kb = peaks.rss_kb.max(held.unwrap_or(0));
                peaks.fds = peaks.fds.max(open as u64);
            }
            if let Some(files) = spool
                .as_ref()
                .and_then(|spool| std::fs::read_dir(spool).ok())
            {
                let sizes = files.filter_map(|file| Some(file.ok()?.metadata().ok()?.len()));
                let mut peaks = lock(&peaks);
                peaks.spool_bytes = peaks.spool_bytes.max(sizes.sum());
            }
            tokio::time::sleep(SAMPLE_PAUSE).await;
        }
    })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The body of a record, as the ledger names it.
pub(crate) fn named(value: &[u8]) -> String {
    sha256(value)
}
