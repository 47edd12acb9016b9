//! What goes into the state machine and what comes out: commands, effects, refusals.
//!
//! Owns their vocabulary. Ids of new resources come with the command, times beside it, so that the machine
//! needs neither randomness nor a clock.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::super::configuration::Invalid;
use super::super::resource::{
    DeliveryStatus, NewCommunication, NewParticipant, Status, StatusCallback,
};
use super::Request;

/// What can be asked of the Orchestrator. Ids of new resources come with the command.
#[derive(Debug, Clone)]
pub(crate) enum Command {
    /// Opens a conversation.
    Open {
        id: Arc<str>,
        configuration_id: Arc<str>,
        name: Option<Arc<str>>,
        metadata: BTreeMap<String, String>,
        participants: Vec<(Arc<str>, NewParticipant)>,
    },
    /// Adds a participant.
    Join {
        conversation: Arc<str>,
        id: Arc<str>,
        participant: NewParticipant,
    },
    /// Replaces all of a participant but its ids and its creation.
    Replace {
        conversation: Arc<str>,
        participant: Arc<str>,
        new: NewParticipant,
    },
    /// Captures a communication; where its `resourceId` is known already, updates that one.
    Capture {
        conversation: Arc<str>,
        id: Arc<str>,
        communication: NewCommunication,
    },
    /// Reports how far a communication got, to all its recipients.
    Deliver {
        conversation: Arc<str>,
        communication: Arc<str>,
        status: DeliveryStatus,
    },
    /// Changes a conversation's own fields, all of them or none.
    Change {
        conversation: Arc<str>,
        change: Change,
    },
    /// Begins what takes its time, unless the idempotency key began it already.
    Begin {
        operation: Arc<str>,
        request: Request,
        key: Option<Arc<str>>,
    },
    /// Nothing but the time: what is due happens. Its id means nothing.
    Tick,
}

/// Fields of a conversation to change; `None` leaves one as it is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Change {
    pub(crate) status: Option<Status>,
    /// `Some(None)` takes the name away.
    pub(crate) name: Option<Option<Arc<str>>>,
    pub(crate) callbacks: Option<Arc<[StatusCallback]>>,
    pub(crate) metadata: MetadataChange,
}

/// How a conversation's metadata changes.
#[derive(Debug, Clone)]
pub(crate) enum MetadataChange {
    /// `None` takes an entry away; what is not named stays.
    Merge(BTreeMap<String, Option<String>>),
    /// What is not named goes.
    Replace(BTreeMap<String, String>),
}

impl Default for MetadataChange {
    fn default() -> Self {
        MetadataChange::Merge(BTreeMap::new())
    }
}

/// What the world outside has to do after a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Tell the conversation's callbacks.
    Announce(Announcement),
}

/// One event, for every URL that the conversation announces itself to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Announcement {
    pub(crate) conversation_id: Arc<str>,
    /// The conversation's number, from 1 in the order of creation.
    pub(crate) number: u64,
    /// 0.. in the conversation, counting events that nobody listened to as well.
    pub(crate) sequence: u32,
    pub(crate) event_type: &'static str,
    /// The callback's JSON.
    pub(crate) body: Bytes,
    /// Never empty.
    pub(crate) callbacks: Arc<[StatusCallback]>,
}

/// A command that was carried out.
#[derive(Debug)]
pub(crate) struct Applied {
    /// The resource that it made or changed.
    pub(crate) id: Arc<str>,
    pub(crate) effects: Vec<Effect>,
}

impl Applied {
    /// Without anything to announce.
    pub(super) fn quiet(id: Arc<str>) -> Self {
        Applied {
            id,
            effects: Vec::new(),
        }
    }
}

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// Nothing has this id.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// CLOSED is final.
    #[error("the conversation is closed and cannot change; open a new one")]
    Closed,
    /// The grouping finds a living conversation of the same participants.
    #[error("a living conversation has the same participants")]
    Conflict { living: Arc<str> },
    /// An id that exists already.
    #[error("a {0} with this id exists already")]
    Taken(&'static str),
    /// A field that cannot be so.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// A limit of this folder.
    #[error("there are {limit} {what} already, the most that are kept")]
    TooMany { what: &'static str, limit: usize },
}
