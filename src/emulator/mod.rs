//! The Conversation Orchestrator itself, on loopback: REST, signed callbacks, seeded traffic.
//!
//! One pure state machine (`state`) knows the rules; thin layers put it to work: `rest` turns requests
//! into commands, and messages and calls of the world outside into what `capture` and `twiml` make of them;
//! `traffic` makes up conversations and `drive` runs them, `timers` lets happen what is due by
//! `clock`, `callbacks` sends what the machine announces, `listing` and `pages` show what it holds, `page`
//! shows it to people, `truth` all of it, `faults` spoils answers and callbacks as a script says. Requests, traffic and time take the
//! same way, [`Shared::carry_out`].
//!
//! Guarantees: the seed decides ids, texts, what lists leave out, which callbacks come late or twice. Two
//! emulators of one seed hold the same closed conversations; only times follow the base time. Every task
//! is owned by the [`Emulator`] and joined by [`Emulator::finish`].
//!
//! Leaves out: actions; of TwiML every verb but those that bring a call into a
//! conversation, and `<Stop>`; what memory stores and Intelligence operators find, of which only the runs are
//! counted. Everything is in memory and ends with the process.
//!
//! Fails with [`Error`]: an address that cannot be bound, an option that makes no sense.

mod callbacks;
mod capture;
mod clock;
mod configuration;
mod drive;
mod faults;
mod listing;
mod options;
mod page;
mod pages;
mod resource;
mod rest;
mod seeds;
mod speech;
mod state;
mod texts;
mod timers;
mod traffic;
mod truth;
mod twiml;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use jiff::{SignedDuration, Timestamp};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use tokio::sync::watch;

pub use self::callbacks::IDEMPOTENCY_HEADER;
pub use self::faults::{BadScript, Script};
pub use self::listing::PartialFields;
pub use self::options::{DEV_ACCOUNT_SID, DEV_AUTH_TOKEN, Error, Options, check_callback_url};
pub use self::state::MAX_CONVERSATIONS;
pub use self::traffic::{InvalidProfile, Profile, WINDOW_HOURS};

use self::callbacks::{Outbox, Sender, Settings};
use self::clock::EmulatedClock;
use self::drive::Pace;
use self::faults::Faults;
use self::faults::wire::{Link, Wires};
use self::listing::{Partial, Shape};
use self::resource::StatusCallback;
use self::state::ingest::{Ingested, Report};
use self::state::{Applied, Command, Effect, Memory, Refusal, Setup, State};
use self::traffic::Plan;
use crate::lifecycle::{Clock, Stop, Tasks};
use crate::signature::SigningKey;

/// What happened so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Conversations, open ones included.
    pub conversations: u64,
    /// Closed ones.
    pub conversations_closed: u64,
    /// Communications, of open conversations too.
    pub communications: u64,
    /// Closed conversations that left memory.
    pub evicted: u64,
    /// Callbacks whose delivery ended, repeats included: accepted, refused and unanswered ones.
    pub deliveries: u64,
    /// Answered 2xx, at the first try or a later one.
    pub deliveries_accepted: u64,
    /// Given up, with an answer other than 2xx.
    pub refused: u64,
    /// Given up without any answer.
    pub unanswered: u64,
    /// Never sent, by a fault.
    pub lost: u64,
    /// Deliveries that repeated another on purpose.
    pub duplicate: u64,
    /// Tries after the first.
    pub retries: u64,
    /// Requests to `/v2`, refused ones included.
    pub api_requests: u64,
}

/// A running emulator.
#[derive(Debug)]
pub struct Emulator {
    address: SocketAddr,
    shared: Arc<Shared>,
    gate: watch::Sender<bool>,
    traffic_over: watch::Receiver<bool>,
    stop: Stop,
    tasks: Tasks,
}

impl Emulator {
    /// Binds, and starts its tasks on the current tokio runtime. They end after `stop`.
    ///
    /// # Errors
    /// Each of [`Error`] but `Ended`; nothing runs then.
    pub fn start(options: Options, clock: Clock, stop: Stop) -> Result<Self, Error> {
        options.check()?;
        let listener = bind(options.listen).map_err(|e| Error::Listen(options.listen, e))?;
        let address = listener
            .local_addr()
            .map_err(|e| Error::Listen(options.listen, e))?;
        let (outbox, waiting) = Outbox::new();
        let settings = sending(&options)?;
        let (gate, gate_state) = watch::channel(options.gate_open);
        let (over, traffic_over) = watch::channel(false);
        let pace = Pace {
            conversations: options.conversations,
            rate: options.rate,
        };
        let plan = Plan {
            seed: options.seed,
            base: options.base_time,
            large: options.large,
            profile: Arc::new(options.profile.clone()),
        };
        let shared = Arc::new(Shared::new(options, clock, outbox, address, stop.clone()));
        let sender = Sender::new(settings, Arc::clone(&shared))
            .map_err(|error| Error::Client(Box::new(error)))?;
        let mut tasks = Tasks::new(stop.clone());
        tasks.spawn("the emulator's callbacks", async move {
            sender.send_all(waiting).await;
            Ok(())
        });
        let (driven, until) = (Arc::clone(&shared), stop.clone());
        tasks.spawn("the emulator's traffic", async move {
            drive::run(plan, pace, driven, gate_state, until.clone()).await;
            over.send_replace(true);
            // The first task to end ends the others; REST outlives the traffic.
            until.requested().await;
            Ok(())
        });
        let (timed, until) = (Arc::clone(&shared), stop.clone());
        tasks.spawn("the emulator's clock", async move {
            timers::run(timed, until).await;
            Ok(())
        });
        let (routes, until) = (rest::router(Arc::clone(&shared)), stop.clone());
        tasks.spawn("the emulator's REST server", async move {
            let routes = routes.into_make_service_with_connect_info::<Link>();
            axum::serve(Wires(listener), routes)
                .with_graceful_shutdown(async move { until.requested().await })
                .await?;
            Ok(())
        });
        Ok(Emulator {
            address,
            shared,
            gate,
            traffic_over,
            stop,
            tasks,
        })
    }

    /// Where REST listens: `http://<address>/v2/…`.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets traffic run, or holds it back. Requests over REST and callbacks under way go on.
    pub fn gate(&self, open: bool) {
        self.gate.send_replace(open);
    }

    /// A handle of the gate for another task.
    pub fn gate_handle(&self) -> watch::Sender<bool> {
        self.gate.clone()
    }

    /// Waits until the traffic is over and each callback so far was delivered or given up; returns at once
    /// after the stop.
    pub async fn traffic_done(&self) {
        let mut over = self.traffic_over.clone();
        let done = async {
            // The traffic's task dropped its end only if it is gone, which is over as well.
            let _ = over.wait_for(|over| *over).await;
            self.shared.outbox.settled().await;
        };
        let _ = self.stop.race(done).await;
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        self.shared.counts()
    }

    /// The same from another task.
    pub fn counter(&self) -> impl Fn() -> Counts + Send + use<> {
        let shared = Arc::clone(&self.shared);
        move || shared.counts()
    }

    /// Serves until the stop, then joins every task.
    ///
    /// # Errors
    /// [`Error::Ended`]: a task failed or panicked, or did not end within the drain deadline.
    pub async fn finish(self) -> Result<(), Error> {
        self.tasks.finish().await.map_err(Error::Ended)
    }
}

fn bind(address: SocketAddr) -> std::io::Result<tokio::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    tokio::net::TcpListener::from_std(listener)
}

fn sending(options: &Options) -> Result<Settings, Error> {
    let keys = match options.signing_keys.is_empty() {
        true => vec![
            SigningKey::new(crate::signature::Algorithm::Sha1, &options.auth_token)
                .map_err(Error::Key)?,
        ],
        false => options.signing_keys.clone(),
    };
    Ok(Settings {
        seed: options.seed,
        connect: options.callback_connect,
        keys,
        duplicates: options.duplicates,
        disorder: options.disorder,
    })
}

/// What all layers share: the state machine, and what it takes to feed it.
struct Shared {
    /// Many readers page while one writer applies a command; neither waits for anything inside.
    state: RwLock<State>,
    /// When something is due next. Written with the state locked, so that no earlier time is overwritten.
    due: watch::Sender<Option<Timestamp>>,
    /// Ids of what is created over REST.
    ids: Mutex<ChaCha8Rng>,
    outbox: Outbox,
    faults: Faults,
    clock: EmulatedClock,
    stop: Stop,
    /// Where REST listens.
    address: SocketAddr,
    credentials: Credentials,
    seed: u64,
    partial: Partial,
    allow_configuration_patch: bool,
    requests: AtomicU64,
    /// Whether the log has said that conversations leave memory.
    evicts: AtomicBool,
}

impl Shared {
    fn new(
        options: Options,
        clock: Clock,
        outbox: Outbox,
        address: SocketAddr,
        stop: Stop,
    ) -> Self {
        let callbacks: Vec<StatusCallback> = options
            .callback_url
            .iter()
            .map(|url| StatusCallback {
                url: url.as_str().into(),
                method: resource::CallbackMethod::Post,
            })
            .collect();
        let setup = Setup {
            account_id: options.account_sid.as_str().into(),
            callbacks: callbacks.into(),
            since: options.start_time.unwrap_or(options.base_time),
            operation_delay: SignedDuration::try_from(options.operation_delay)
                .expect("the options' check bounds it"),
            keep_conversations: options.keep_conversations,
        };
        Shared {
            state: RwLock::new(State::new(setup)),
            due: watch::Sender::new(None),
            ids: Mutex::new(seeds::generator(options.seed, seeds::REST_STREAM)),
            outbox,
            faults: Faults::new(options.faults, options.seed),
            stop,
            clock: EmulatedClock::new(options.start_time, clock),
            address,
            credentials: Credentials {
                account: (options.account_sid, options.auth_token),
                api_key: options.api_key,
            },
            seed: options.seed,
            partial: Partial {
                rate: options.partial,
                fields: options.partial_fields,
            },
            allow_configuration_patch: options.allow_configuration_patch,
            requests: AtomicU64::new(0),
            evicts: AtomicBool::new(false),
        }
    }

    /// The state, to read.
    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies `command` at `at` and queues what it announces; the id is that of what it made or changed.
    async fn carry_out(&self, command: Command, at: Timestamp) -> Result<Arc<str>, Refusal> {
        let carried_out = self.change(at, |state| match state.apply(command, at) {
            Ok(Applied { id, effects }) => (Ok(id), effects),
            Err(refusal) => (Err(refusal), Vec::new()),
        });
        carried_out.await
    }

    /// Takes a message or call in; `ingest` gets the seed of what it draws, and the time.
    async fn take_in(&self, ingest: impl FnOnce(&mut State, u64, Timestamp) -> Ingested) -> Report {
        let seed = {
            let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
            ids.random()
        };
        let now = self.clock.now();
        let taken_in = self.change(now, |state| {
            let Ingested { report, effects } = ingest(state, seed, now);
            (report, effects)
        });
        let report = taken_in.await;
        if report.unexpected_grouping {
            let conversations = report.captured.len();
            tracing::warn!(sid = %report.sid, conversations, "several capture rules took one message or call");
        }
        if report.double_billed {
            tracing::warn!(sid = %report.sid, "a capture rule and TwiML both had one call recognised");
        }
        report
    }

    /// Changes what memory stores know; nothing is announced by that.
    async fn memory<T>(&self, change: impl FnOnce(&mut Memory) -> T) -> T {
        let changed = self.change(self.clock.now(), |state| {
            (change(state.memory_mut()), Vec::new())
        });
        changed.await
    }

    /// Does `change` after everything that is due by `at`, and queues what both announce.
    async fn change<T>(
        &self,
        at: Timestamp,
        change: impl FnOnce(&mut State) -> (T, Vec<Effect>),
    ) -> T {
        let (result, effects) = {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            let ticked = state.apply(Command::Tick, at);
            let mut effects = ticked.expect("a tick is never refused").effects;
            let (result, more) = change(&mut state);
            effects.extend(more);
            let due = state.due();
            self.due.send_if_modified(|known| {
                let changed = *known != due;
                *known = due;
                changed
            });
            if state.tally().evicted > 0 && !self.evicts.swap(true, Ordering::Relaxed) {
                tracing::info!(
                    keep_conversations = state.keep_conversations(),
                    "the emulator keeps no more conversations: from here on those that closed first leave memory"
                );
            }
            (result, effects)
        };
        for effect in effects {
            match effect {
                Effect::Announce(announcement) => self.outbox.announce(announcement).await,
            }
        }
        result
    }

    /// Lets everything happen that is due by now.
    async fn catch_up(&self) {
        let now = self.clock.now();
        let due = *self.due.borrow();
        if due.is_some_and(|due| due <= now) {
            let ticked = self.carry_out(Command::Tick, now).await;
            ticked.expect("a tick is never refused");
        }
    }

    fn new_id(&self, kind: &str) -> Arc<str> {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        seeds::id(kind, &mut ids)
    }

    fn list_shape(&self, id: &str) -> Shape {
        Shape::in_list(self.seed, id, self.partial)
    }

    fn counts(&self) -> Counts {
        let tally = self.state().tally();
        let outcomes = self.outbox.log().outcomes();
        Counts {
            conversations: tally.conversations,
            conversations_closed: tally.closed,
            communications: tally.communications,
            evicted: tally.evicted,
            deliveries: outcomes.deliveries,
            deliveries_accepted: outcomes.accepted,
            refused: outcomes.refused,
            unanswered: outcomes.unanswered,
            lost: outcomes.lost,
            duplicate: outcomes.duplicate,
            retries: outcomes.retries,
            api_requests: self.requests.load(Ordering::Relaxed),
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// User and password pairs that REST accepts.
struct Credentials {
    account: (String, String),
    api_key: Option<(String, String)>,
}

impl Credentials {
    fn accept(&self, user: &str, password: &str) -> bool {
        std::iter::once(&self.account)
            .chain(&self.api_key)
            .any(|(name, secret)| name == user && secret == password)
    }
}
