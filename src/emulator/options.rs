//! What to emulate, checked before a port opens.
//!
//! Owns every option with its default and its range. Refuses to build anything (`mod`).
//!
//! Fails with [`Error`], which names the option.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use jiff::Timestamp;

use super::callbacks::overrides;
use super::faults::Script;
use super::listing::PartialFields;
use super::state::{MAX_COMMUNICATIONS, MAX_CONVERSATIONS};
use super::traffic::Profile;
use crate::signature::{InvalidKey, PublicUrl, SigningKey};

/// The account where nothing else is given.
pub const DEV_ACCOUNT_SID: &str = "ACdev00000000000000000000000000000";
/// Its auth token. It protects made-up conversations on loopback, so everybody may know it.
pub const DEV_AUTH_TOKEN: &str = "dev-token-of-the-convolake-emulator";

/// Longest time that an operation can be made to take.
const MAX_OPERATION_DELAY: Duration = Duration::from_secs(3_600);

/// What to emulate. Its `Debug` shows no credential.
#[derive(Clone)]
pub struct Options {
    /// Where REST listens; port 0 takes a free one, see
    /// [`Emulator::address`](super::Emulator::address).
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
    /// All times of the traffic lie in the [`WINDOW_HOURS`](super::WINDOW_HOURS) hours before. Not used by
    /// endless traffic, which happens now.
    pub base_time: Timestamp,
    /// Where the emulator's clock stands still until it is advanced; `None`: it follows the machine's.
    pub start_time: Option<Timestamp>,
    /// How long an operation of the control plane is PENDING.
    pub operation_delay: Duration,
    /// Whether a configuration can be patched, as the SDKs know it and the documents deny.
    pub allow_configuration_patch: bool,
    /// Conversations kept, of some 25 kB each; past it the ones that closed first leave memory.
    pub keep_conversations: usize,
    /// Share of list items that leave fields out, 0..1.
    pub partial: f64,
    /// Which fields those are.
    pub partial_fields: PartialFields,
    /// Share of callbacks that are sent twice, 0..1.
    pub duplicates: f64,
    /// Share of callbacks that are held back so that others overtake them, 0..1.
    pub disorder: f64,
    /// What goes wrong.
    pub faults: Script,
    /// What the traffic is like.
    pub profile: Profile,
    /// Communications of the first conversation, where it shall be a large one.
    pub large: Option<usize>,
    /// Whether the traffic may run at once; else it waits for
    /// [`Emulator::gate`](super::Emulator::gate).
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
            start_time: None,
            operation_delay: Duration::from_millis(200),
            allow_configuration_patch: false,
            keep_conversations: 20_000,
            partial: 0.1,
            partial_fields: PartialFields::default(),
            duplicates: 0.02,
            disorder: 0.05,
            faults: Script::default(),
            profile: Profile::default(),
            large: None,
            gate_open: true,
        }
    }

    /// Refuses what makes no sense.
    ///
    /// # Errors
    /// [`Error::Option`] and [`Error::CallbackUrl`].
    pub fn check(&self) -> Result<(), Error> {
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
        if !(1..=MAX_CONVERSATIONS).contains(&self.keep_conversations) {
            return Err(Error::Option("keep-conversations", "from 1 to 1,000,000"));
        }
        if self.operation_delay > MAX_OPERATION_DELAY {
            return Err(Error::Option("operation-delay", "an hour at most"));
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
