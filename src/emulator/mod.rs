//! The Conversation Orchestrator itself, on loopback: REST, signed callbacks, seeded traffic.
//!
//! One pure state machine (`state`) knows the rules; thin layers put it to work: `rest` turns requests
//! into commands, `traffic` makes up conversations and `drive` runs them, `callbacks` sends what the
//! machine announces, `listing` and `pages` show what it holds, `truth` all of it, `faults` spoils answers
//! and callbacks as a script says. Requests and traffic take the same way, [`Shared::carry_out`].
//!
//! Guarantees: the seed decides ids, texts, what lists leave out, which callbacks come late or twice. Two
//! emulators of one seed hold the same closed conversations; only times follow the base time. Every task
//! is owned by the [`Emulator`] and joined by [`Emulator::finish`].
//!
//! Leaves out: configurations, capture rules, TwiML, actions. Everything is in memory
//! and ends with the process.
//!
//! Fails with [`Error`]: an address that cannot be bound, an option that makes no sense.

mod callbacks;
mod drive;
mod faults;
mod listing;
mod pages;
mod resource;
mod rest;
mod seeds;
mod state;
mod texts;
mod traffic;
mod truth;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use jiff::Timestamp;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use tokio::sync::watch;

pub use self::callbacks::IDEMPOTENCY_HEADER;
pub use self::faults::{BadScript, Script};
pub use self::traffic::WINDOW_HOURS;

use self::callbacks::{Outbox, Sender, Settings, overrides};
use self::drive::Pace;
use self::faults::Faults;
use self::faults::wire::{Link, Wires};
use self::listing::Shape;
use self::resource::StatusCallback;
use self::state::{Applied, Command, Effect, MAX_COMMUNICATIONS, Refusal, State};
use self::traffic::Plan;
use crate::lifecycle::{Clock, Stop, Tasks};
use crate::signature::{InvalidKey, PublicUrl, SigningKey};

/// The account where nothing else is given.
pub const DEV_ACCOUNT_SID: &str = "ACdev00000000000000000000000000000";
/// Its auth token. It protects made-up conversations on loopback, so everybody may know it.
pub const DEV_AUTH_TOKEN: &str = "dev-token-of-the-convolake-emulator";

/// What to emulate. Its `Debug` shows no credential.
#[derive(Clone)]
pub struct Options {
    /// Where REST listens; port 0 takes a free one, see [`Emulator::address`].
    pub listen: SocketAddr,
    /// User of Basic auth, and the account of all resources.
    pub account_sid: String,
    /// Its password, and the key of callbacks where `signing_keys` is empty.
    pub auth_token: String,
    /// API key and secret, good for REST as well.
    pub api_key: Option<(String, String)>,
    /// The status callback that conversations begin with: the URL that is signed, and in its fragment how
    /// it is tried again (`#rc=5&rp=all`). `None`: none is sent.
    pub callback_url: Option<String>,
    /// Where callbacks really connect, in plain HTTP, with the URL's `Host`.
    pub callback_connect: Option<SocketAddr>,
    /// Keys that sign callbacks, by turns as while rotating; empty: the auth token, HMAC-SHA1.
    pub signing_keys: Vec<SigningKey>,
    /// How many conversations the traffic has; 0: until the stop.
    pub conversations: u64,
    /// Conversations that begin a second; `None`: as fast as callbacks are answered.
    pub rate: Option<f64>,
    /// Decides ids, texts and choices.
    pub seed: u64,
    /// All times of the traffic lie in the [`WINDOW_HOURS`] hours before. Not used by endless traffic,
    /// which happens now.
    pub base_time: Timestamp,
    /// Share of list items that leave fields out, 0..1.
    pub partial: f64,
    /// Share of callbacks that are sent twice, 0..1.
    pub duplicates: f64,
    /// Share of callbacks that are held back so that others overtake them, 0..1.
    pub disorder: f64,
    /// What goes wrong.
    pub faults: Script,
    /// Communications of the first conversation, where it shall be a large one.
    pub large: Option<usize>,
    /// Whether the traffic may run at once; else it waits for [`Emulator::gate`].
    pub gate_open: bool,
}

impl Options {
    /// Loopback, a free port, dev credentials, 200 conversations, partial lists, and no callbacks.
    pub fn new(seed: u64, base_time: Timestamp) -> Self {
        Options {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            account_sid: DEV_ACCOUNT_SID.to_owned(),
            auth_token: DEV_AUTH_TOKEN.to_owned(),
            api_key: None,
            callback_url: None,
            callback_connect: None,
            signing_keys: Vec::new(),
            conversations: 200,
            rate: None,
            seed,
            base_time,
            partial: 0.1,
            duplicates: 0.02,
            disorder: 0.05,
            faults: Script::default(),
            large: None,
            gate_open: true,
        }
    }

    fn check(&self) -> Result<(), Error> {
        for (name, share) in [
            ("partial", self.partial),
            ("duplicates", self.duplicates),
            ("disorder", self.disorder),
        ] {
            if !(0.0..=1.0).contains(&share) {
                return Err(Error::Option(name, "a share from 0 to 1"));
            }
        }
        if self.rate.is_some_and(|rate| !(0.001..=1e6).contains(&rate)) {
            return Err(Error::Option("rate", "from 0.001 to 1,000,000 a second"));
        }
        if self.large.is_some_and(|large| large >= MAX_COMMUNICATIONS) {
            return Err(Error::Option("large", "below 1,000,000 communications"));
        }
        if let Some(url) = &self.callback_url {
            PublicUrl::parse(overrides::without_fragment(url)).map_err(Error::CallbackUrl)?;
        }
        Ok(())
    }
}

/// Whether callbacks can be sent to `url`: it can be signed, and its fragment asks for nothing unknown.
///
/// # Errors
/// What is wrong with it.
pub fn check_callback_url(url: &str) -> Result<(), String> {
    PublicUrl::parse(overrides::without_fragment(url)).map_err(|error| error.to_string())?;
    overrides::check(url)
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("listen", &self.listen)
            .field("account_sid", &self.account_sid)
            .field("callback_connect", &self.callback_connect)
            .field("conversations", &self.conversations)
            .field("rate", &self.rate)
            .field("seed", &self.seed)
            .field("base_time", &self.base_time)
            .field("partial", &self.partial)
            .field("duplicates", &self.duplicates)
            .field("disorder", &self.disorder)
            .field("large", &self.large)
            .finish_non_exhaustive()
    }
}

/// Why the emulator did not start, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is taken or not this machine's.
    #[error("the emulator cannot listen on {0}; choose another address with --listen")]
    Listen(SocketAddr, #[source] std::io::Error),
    /// A value out of its range.
    #[error("the emulator's option {0} has to be {1}")]
    Option(&'static str, &'static str),
    /// No URL that could be signed.
    #[error(
        "the emulator's callback URL cannot be used; give one as --callback-url https://host/path"
    )]
    CallbackUrl(#[source] crate::signature::InvalidPublicUrl),
    /// The auth token cannot sign.
    #[error("the auth token cannot sign callbacks; give another one")]
    Key(#[source] InvalidKey),
    /// No HTTP client.
    #[error("the emulator cannot send callbacks: TLS roots of this machine cannot be read")]
    Client(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// One of its tasks failed.
    #[error("the emulator ended early")]
    Ended(#[source] anyhow::Error),
}

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
        let faults = Arc::new(Faults::new(options.faults.clone(), options.seed));
        let sender = Sender::new(
            sending(&options)?,
            outbox.clone(),
            Arc::clone(&faults),
            clock,
            stop.clone(),
        )
        .map_err(|error| Error::Client(Box::new(error)))?;
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
        };
        let shared = Arc::new(Shared::new(options, clock, outbox, faults, stop.clone()));
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
    /// Ids of what is created over REST.
    ids: Mutex<ChaCha8Rng>,
    outbox: Outbox,
    faults: Arc<Faults>,
    clock: Clock,
    stop: Stop,
    credentials: Credentials,
    seed: u64,
    partial: f64,
    requests: AtomicU64,
}

impl Shared {
    fn new(
        options: Options,
        clock: Clock,
        outbox: Outbox,
        faults: Arc<Faults>,
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
        Shared {
            state: RwLock::new(State::new(
                options.account_sid.as_str().into(),
                callbacks.into(),
            )),
            ids: Mutex::new(seeds::generator(options.seed, seeds::REST_STREAM)),
            outbox,
            faults,
            clock,
            stop,
            credentials: Credentials {
                account: (options.account_sid, options.auth_token),
                api_key: options.api_key,
            },
            seed: options.seed,
            partial: options.partial,
            requests: AtomicU64::new(0),
        }
    }

    /// The state, to read.
    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies `command` at `at` and queues what it announces; the id is that of what it made or changed.
    async fn carry_out(&self, command: Command, at: Timestamp) -> Result<Arc<str>, Refusal> {
        let Applied { id, effects } = {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            state.apply(command, at)?
        };
        for effect in effects {
            match effect {
                Effect::Announce(announcement) => self.outbox.announce(announcement).await,
            }
        }
        Ok(id)
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
