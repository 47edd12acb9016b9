//! The control plane: configurations, their versions, and the operations that change them.
//!
//! Owns what a request has to wait for and what becomes of it. What a request says by itself is judged
//! before it gets here (`configuration`, answered 400), and that what it names exists, when it arrives
//! (404). What depends on the rest of the account is judged when the operation ends, as the account may
//! have changed until then: the limit of [`MAX_CONFIGURATIONS`], one configuration a classic service, the
//! grouping type that cannot change, the version that a PUT sent back. Such an operation is FAILED.
//!
//! Guarantees: an operation is PENDING for the configured delay, then COMPLETED or FAILED for good.
//! A new configuration's id is nowhere to be seen before its operation is COMPLETED. The same idempotency
//! key within [`REMEMBERED`] is the same operation. Operations are forgotten after that time, and past
//! [`MAX_OPERATIONS`] new ones are refused.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::super::configuration::{Configuration, Settings};
use super::super::resource::{rfc3339_seconds, rfc3339_seconds_or_null};
use super::{Applied, Refusal, State, within};

/// Configurations of an account (Twilio's limit).
pub(crate) const MAX_CONFIGURATIONS: usize = 10;
/// Operations remembered at once.
pub(crate) const MAX_OPERATIONS: usize = 10_000;
/// How long an operation and its idempotency key are remembered (Twilio's time).
pub(crate) const REMEMBERED: SignedDuration = SignedDuration::from_hours(24);

/// What an operation is to do.
#[derive(Debug, Clone)]
pub(crate) enum Request {
    Configuration(ConfigurationChange),
    /// The end of a conversation, whatever its status. No event tells of it, as Twilio has none.
    DeleteConversation(Arc<str>),
}

/// A change of the account's configurations.
#[derive(Debug, Clone)]
pub(crate) enum ConfigurationChange {
    Create {
        id: Arc<str>,
        settings: Settings,
    },
    /// All of a configuration; `version` is the one that the sender saw, where it says so.
    Replace {
        configuration: Arc<str>,
        settings: Settings,
        version: Option<u64>,
    },
    /// A merge patch, which the SDKs know and the documents deny.
    Patch {
        configuration: Arc<str>,
        patch: Map<String, Value>,
    },
    /// Conversations keep the version that they were born under.
    Delete {
        configuration: Arc<str>,
    },
}

impl Request {
    /// The resource that is known before the operation ends.
    fn related(&self) -> Option<Related> {
        match self {
            Request::Configuration(ConfigurationChange::Create { .. }) => None,
            Request::Configuration(
                ConfigurationChange::Replace { configuration, .. }
                | ConfigurationChange::Patch { configuration, .. }
                | ConfigurationChange::Delete { configuration },
            ) => Some(Related::Configuration(Arc::clone(configuration))),
            Request::DeleteConversation(id) => Some(Related::Conversation(Arc::clone(id))),
        }
    }
}

/// The account's configurations as of now.
#[derive(Debug, Default)]
pub(crate) struct Configurations {
    /// By the order of creation; a deleted one leaves its number unused, so that pages stay right.
    listed: BTreeMap<u64, Arc<Configuration>>,
    created: u64,
}

impl Configurations {
    /// The configuration `id` in its latest version.
    pub(crate) fn current(&self, id: &str) -> Option<&Arc<Configuration>> {
        self.all().find(|configuration| &*configuration.id == id)
    }

    /// Every configuration in its latest version, in the order of creation.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Configuration>> {
        self.listed.values()
    }

    /// Position after the last one that was ever created.
    pub(crate) fn end(&self) -> u64 {
        self.created
    }

    /// The configuration at `position` of the list.
    pub(crate) fn at(&self, position: u64) -> Option<&Arc<Configuration>> {
        self.listed.get(&position)
    }

    /// Adds a first version.
    pub(super) fn add(&mut self, configuration: Configuration) {
        self.listed.insert(self.created, Arc::new(configuration));
        self.created += 1;
    }

    /// What `change` is refused for at once.
    fn admit(&self, change: &ConfigurationChange) -> Result<(), Refusal> {
        let (ConfigurationChange::Replace { configuration, .. }
        | ConfigurationChange::Patch { configuration, .. }
        | ConfigurationChange::Delete { configuration }) = change
        else {
            return Ok(());
        };
        let current = self.current(configuration);
        let current = current.ok_or(Refusal::NotFound("configuration"))?;
        if let ConfigurationChange::Patch { patch, .. } = change {
            current.settings.patched(patch)?;
        }
        Ok(())
    }

    /// Carries out what an operation asked for.
    fn carry_out(
        &mut self,
        change: ConfigurationChange,
        at: Timestamp,
    ) -> Result<Arc<str>, Failure> {
        match change {
            ConfigurationChange::Create { id, settings } => self.create(id, settings, at),
            ConfigurationChange::Replace {
                configuration,
                settings,
                version,
            } => self.replace(configuration, version, at, |_| Ok(settings)),
            ConfigurationChange::Patch {
                configuration,
                patch,
            } => self.replace(configuration, None, at, |current| {
                let patched = current.patched(&patch);
                patched.map_err(|invalid| Failure::new(400, "Bad Request", invalid.to_string()))
            }),
            ConfigurationChange::Delete { configuration } => {
                let position = self.position(&configuration)?;
                self.listed.remove(&position);
                Ok(configuration)
            }
        }
    }

    fn create(
        &mut self,
        id: Arc<str>,
        settings: Settings,
        at: Timestamp,
    ) -> Result<Arc<str>, Failure> {
        if self.listed.len() >= MAX_CONFIGURATIONS {
            return Err(Failure::conflict(format!(
                "the account has {MAX_CONFIGURATIONS} configurations, the most there can be; delete one"
            )));
        }
        self.lone_bridge(&settings, None)?;
        self.add(Configuration {
            id: Arc::clone(&id),
            settings,
            version: 1,
            created_at: at,
            updated_at: at,
        });
        Ok(id)
    }

    fn replace(
        &mut self,
        id: Arc<str>,
        version: Option<u64>,
        at: Timestamp,
        change: impl FnOnce(&Settings) -> Result<Settings, Failure>,
    ) -> Result<Arc<str>, Failure> {
        let position = self.position(&id)?;
        let current = &self.listed[&position];
        let settings = change(&current.settings)?;
        if version.is_some_and(|version| version != current.version) {
            return Err(Failure::conflict(format!(
                "version: the configuration is at version {} meanwhile; fetch it again",
                current.version
            )));
        }
        if settings.conversation_grouping_type != current.settings.conversation_grouping_type {
            return Err(Failure::conflict(
                "conversationGroupingType: cannot change after creation; create a new configuration"
                    .to_owned(),
            ));
        }
        self.lone_bridge(&settings, Some(position))?;
        let next = Configuration {
            id: Arc::clone(&id),
            settings,
            version: current.version + 1,
            created_at: current.created_at,
            updated_at: at,
        };
        self.listed.insert(position, Arc::new(next));
        Ok(id)
    }

    /// One configuration a classic service (npm `twilio` 6.2, `conversationsV1Bridge.serviceId`).
    fn lone_bridge(&self, settings: &Settings, own: Option<u64>) -> Result<(), Failure> {
        let Some(bridge) = &settings.conversations_v1_bridge else {
            return Ok(());
        };
        let mut others = self
            .listed
            .iter()
            .filter(|(position, _)| Some(**position) != own);
        let taken = others.any(|(_, other)| {
            other
                .settings
                .conversations_v1_bridge
                .as_ref()
                .is_some_and(|b| b == bridge)
        });
        match taken {
            true => Err(Failure::conflict(
                "conversationsV1Bridge.serviceId: another configuration bridges this service"
                    .to_owned(),
            )),
            false => Ok(()),
        }
    }

    fn position(&self, id: &str) -> Result<u64, Failure> {
        let mut listed = self.listed.iter();
        let found = listed.find(|(_, configuration)| &*configuration.id == id);
        found
            .map(|(&position, _)| position)
            .ok_or_else(Failure::gone)
    }
}

/// Where an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum Progress {
    Pending,
    Completed,
    Failed,
}

/// The resource that an operation is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) enum Related {
    #[serde(rename = "configurationId")]
    Configuration(Arc<str>),
    #[serde(rename = "conversationId")]
    Conversation(Arc<str>),
}

/// Why an operation failed, as RFC 9457 words it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Failure {
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    pub(crate) status: u16,
    pub(crate) detail: String,
}

impl Failure {
    fn new(status: u16, title: &'static str, detail: String) -> Self {
        Failure {
            kind: format!("https://www.twilio.com/docs/errors/20{status}"),
            title,
            status,
            detail,
        }
    }

    fn conflict(detail: String) -> Self {
        Failure::new(409, "Conflict", detail)
    }

    /// What was there when the request came is not there any more.
    fn gone() -> Self {
        Failure::new(
            404,
            "Not Found",
            "the resource was deleted meanwhile".to_owned(),
        )
    }
}

/// A long-running operation, as `GET /v2/ControlPlane/Operations/{id}` shows it but for its URL.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Operation {
    #[serde(rename = "operationId")]
    pub(crate) id: Arc<str>,
    pub(crate) status: Progress,
    #[serde(serialize_with = "rfc3339_seconds")]
    pub(crate) created_at: Timestamp,
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "rfc3339_seconds_or_null"
    )]
    pub(crate) completed_at: Option<Timestamp>,
    #[serde(serialize_with = "related")]
    pub(crate) related: Option<Related>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<Failure>,
    /// What was known of it when it began.
    #[serde(skip)]
    pub(crate) known: Option<Related>,
    #[serde(skip)]
    request: Option<Request>,
    #[serde(skip)]
    key: Option<Arc<str>>,
}

/// `{}` where nothing is known yet.
pub(crate) fn related<S: Serializer>(
    related: &Option<Related>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match related {
        Some(related) => related.serialize(serializer),
        None => BTreeMap::<(), ()>::new().serialize(serializer),
    }
}

/// All operations that are remembered.
#[derive(Debug)]
pub(crate) struct Operations {
    delay: SignedDuration,
    by_id: HashMap<Arc<str>, Operation>,
    by_key: HashMap<Arc<str>, Arc<str>>,
    /// In the order in which they began, oldest first.
    begun: VecDeque<Arc<str>>,
    pending: BTreeSet<(Timestamp, u64, Arc<str>)>,
    count: u64,
}

impl Operations {
    /// None yet; each will take `delay`.
    pub(super) fn new(delay: SignedDuration) -> Self {
        Operations {
            delay,
            by_id: HashMap::new(),
            by_key: HashMap::new(),
            begun: VecDeque::new(),
            pending: BTreeSet::new(),
            count: 0,
        }
    }

    /// One operation.
    pub(crate) fn get(&self, id: &str) -> Option<&Operation> {
        self.by_id.get(id)
    }

    /// When the next one ends.
    pub(super) fn due(&self) -> Option<Timestamp> {
        self.pending.first().map(|(due, _, _)| *due)
    }

    /// The operation that the idempotency key `key` began.
    pub(super) fn of_key(&mut self, key: &str, at: Timestamp) -> Option<Arc<str>> {
        self.forget(at);
        self.by_key.get(key).map(Arc::clone)
    }

    /// Begins `request` at `at`.
    pub(super) fn begin(
        &mut self,
        id: Arc<str>,
        request: Request,
        key: Option<Arc<str>>,
        at: Timestamp,
    ) -> Result<(), Refusal> {
        self.forget(at);
        within(self.by_id.len(), MAX_OPERATIONS, "operations")?;
        if self.by_id.contains_key(&id) {
            return Err(Refusal::Taken("operation"));
        }
        if let Some(key) = &key {
            self.by_key.insert(Arc::clone(key), Arc::clone(&id));
        }
        self.pending
            .insert((at + self.delay, self.count, Arc::clone(&id)));
        self.count += 1;
        self.begun.push_back(Arc::clone(&id));
        let operation = Operation {
            id: Arc::clone(&id),
            status: Progress::Pending,
            created_at: at,
            completed_at: None,
            related: request.related(),
            known: request.related(),
            error: None,
            request: Some(request),
            key,
        };
        self.by_id.insert(id, operation);
        Ok(())
    }

    /// Takes the request of the next operation that is due at `at`.
    pub(super) fn take_due(&mut self, at: Timestamp) -> Option<(Arc<str>, Request)> {
        let due = self.pending.first().is_some_and(|(due, _, _)| *due <= at);
        let (_, _, id) = due.then(|| self.pending.pop_first()).flatten()?;
        let request = self.by_id.get_mut(&id)?.request.take()?;
        Some((id, request))
    }

    /// Ends an operation at `at`.
    pub(super) fn end(&mut self, id: &str, result: Result<Related, Failure>, at: Timestamp) {
        let Some(operation) = self.by_id.get_mut(id) else {
            return;
        };
        operation.completed_at = Some(at);
        match result {
            Ok(related) => {
                operation.status = Progress::Completed;
                operation.related = Some(related);
            }
            Err(failure) => {
                operation.status = Progress::Failed;
                operation.error = Some(failure);
            }
        }
    }

    /// Forgets what ended and is older than [`REMEMBERED`].
    fn forget(&mut self, at: Timestamp) {
        while let Some(oldest) = self.begun.front() {
            let operation = &self.by_id[oldest];
            let ended = operation.status != Progress::Pending;
            if !ended || at.duration_since(operation.created_at) < REMEMBERED {
                return;
            }
            if let Some(key) = &operation.key {
                self.by_key.remove(key);
            }
            self.by_id.remove(oldest);
            self.begun.pop_front();
        }
    }
}

impl State {
    /// Begins an operation, or finds the one that this idempotency key began.
    pub(super) fn begin(
        &mut self,
        id: Arc<str>,
        request: Request,
        key: Option<Arc<str>>,
        at: Timestamp,
    ) -> Result<Applied, Refusal> {
        if let Some(key) = &key
            && let Some(first) = self.operations.of_key(key, at)
        {
            return Ok(Applied::quiet(first));
        }
        match &request {
            Request::Configuration(change) => self.configurations.admit(change)?,
            Request::DeleteConversation(conversation) => {
                self.position(conversation)?;
            }
        }
        self.operations.begin(Arc::clone(&id), request, key, at)?;
        Ok(Applied::quiet(id))
    }

    /// Ends the next operation that is due at `at`.
    pub(super) fn end_operation(&mut self, at: Timestamp) {
        let Some((id, request)) = self.operations.take_due(at) else {
            return;
        };
        let result = match request {
            Request::Configuration(change) => self
                .configurations
                .carry_out(change, at)
                .map(Related::Configuration),
            Request::DeleteConversation(conversation) => self
                .remove(&conversation)
                .map(|()| Related::Conversation(conversation))
                .map_err(|_| Failure::gone()),
        };
        self.operations.end(&id, result, at);
    }
}
