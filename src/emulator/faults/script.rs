//! The fault script: what goes wrong, where and when, as data.
//!
//! Owns the file's format (YAML, or JSON, which the same parser reads) and every limit on it. Refuses to
//! act: `decide` says which rule falls, `rest` and `callbacks` do it.
//!
//! Guarantees: a [`Script`] is within its limits; each of them is checked while the file is read, so that
//! a refusal names line, column and field. Unknown fields are refused. `schemas/faults.schema.json` is
//! generated from these types, and a test fails where the two differ.
//!
//! Fails with [`BadScript`].

#[cfg(test)]
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_saphyr::{MessageFormatter as _, UserMessageFormatter};

use super::value::{Few, Moment, Ordinal, PathPattern, Share, Text, Whole};

/// Rules of one kind.
pub(crate) const MAX_RULES: usize = 100;
/// Largest file.
pub(crate) const MAX_SCRIPT_BYTES: usize = 256 * 1024;
/// Longest hang; clients give up far earlier.
pub(crate) const MAX_HANG_SECONDS: u64 = 120;
/// Longest delay of a callback.
pub(crate) const MAX_DELAY_MILLISECONDS: u64 = 60_000;
/// Entries of a list inside a rule.
const MAX_ENTRIES: usize = 256;

/// A script that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadScript {
    /// Where it is wrong, and why.
    #[error("line {line}, column {column}: {field}{why}")]
    At {
        /// 1-based.
        line: u64,
        /// 1-based.
        column: u64,
        /// `rest[0].when.every: `, or empty where the file as a whole is wrong.
        field: String,
        /// What is wrong.
        why: String,
    },
    /// More than [`MAX_SCRIPT_BYTES`].
    #[error("larger than {MAX_SCRIPT_BYTES} bytes, the most that a fault script may have")]
    TooLarge,
}

/// What goes wrong. The empty script is the service as it should be.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Script {
    /// What probabilities are drawn from; without it the emulator's own seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) seed: Option<u64>,
    /// Faults of answers. Of the rules that match a request, the first that falls decides.
    #[serde(default)]
    pub(crate) rest: Few<RestRule, MAX_RULES>,
    /// Faults of callbacks. Of the rules that match one, the first that falls decides.
    #[serde(default)]
    pub(crate) callbacks: Few<CallbackRule, MAX_RULES>,
    /// Faults of whole conversations. The first rule that names a conversation decides.
    #[serde(default)]
    pub(crate) conversations: Few<ConversationRule, MAX_RULES>,
}

impl Script {
    /// Reads a script. YAML and JSON alike; an empty text is the empty script.
    ///
    /// # Errors
    /// [`BadScript`] with the first thing that is wrong.
    pub fn parse(text: &str) -> Result<Self, BadScript> {
        if text.len() > MAX_SCRIPT_BYTES {
            return Err(BadScript::TooLarge);
        }
        let mut field = String::new();
        serde_saphyr::with_deserializer_from_str(text, |deserializer| {
            serde_path_to_error::deserialize::<_, Option<Script>>(deserializer).map_err(|error| {
                let path = error.path().to_string();
                if path != "." {
                    field = format!("{path}: ");
                }
                error.into_inner()
            })
        })
        .map(Option::unwrap_or_default)
        .map_err(|error| {
            let at = error.location();
            let why = UserMessageFormatter.format_message(error.without_snippet());
            BadScript::At {
                line: at.map_or(1, |at| at.line()),
                column: at.map_or(1, |at| at.column()),
                field,
                // It may quote the file, and ends in a terminal or a log.
                why: why.replace(char::is_control, " "),
            }
        })
    }

    /// Whether nothing goes wrong.
    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty() && self.callbacks.is_empty() && self.conversations.is_empty()
    }
}

/// What goes wrong with answers of one kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct RestRule {
    /// Shown with the counts of `GET /emulator/faults`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<Text>,
    /// The request's method; without it any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) method: Option<Method>,
    /// The request's path, such as `/v2/Conversations/*/Communications`.
    pub(crate) path: PathPattern,
    /// Which of the requests; without it each.
    #[serde(default)]
    pub(crate) when: When,
    /// Whether `when` counts all requests together or those of each path alone.
    #[serde(default)]
    pub(crate) count: Count,
    /// Whether the request is carried out all the same and only its answer lost. Faults that need an
    /// answer to spoil always are.
    #[serde(default)]
    pub(crate) after_effect: bool,
    /// What goes wrong.
    pub(crate) fault: RestFault,
}

/// What goes wrong with callbacks of one kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct CallbackRule {
    /// Shown with the counts of `GET /emulator/faults`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<Text>,
    /// Such as `CONVERSATION_UPDATED`; without it any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) event_type: Option<Text>,
    /// Only closes: `CONVERSATION_UPDATED` with status CLOSED.
    #[serde(default)]
    pub(crate) close: bool,
    /// Which conversations; without it each.
    #[serde(default)]
    pub(crate) conversation: Which,
    /// Which of these callbacks; without it each.
    #[serde(default)]
    pub(crate) when: When,
    /// What goes wrong.
    pub(crate) fault: CallbackFault,
}

/// What goes wrong with some conversations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct ConversationRule {
    /// Shown with the counts of `GET /emulator/faults`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<Text>,
    /// Which conversations; without it each.
    #[serde(default)]
    pub(crate) conversation: Which,
    /// What goes wrong.
    pub(crate) fault: ConversationFault,
}

/// Which of the things that a rule matches it falls on; all that is given has to hold.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct When {
    /// These, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) nth: Option<Few<Ordinal, MAX_ENTRIES>>,
    /// The n-th, the 2n-th, and so on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) every: Option<Ordinal>,
    /// A share of them, drawn from the seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) probability: Option<Share>,
    /// Not before this time of the emulator's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) from: Option<Moment>,
    /// Before this time of the emulator's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) until: Option<Moment>,
    /// At most so often in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) times: Option<Ordinal>,
}

/// Which conversations, by the order in which they were created; all that is given has to hold.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Which {
    /// These, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) nth: Option<Few<Ordinal, MAX_ENTRIES>>,
    /// The n-th, the 2n-th, and so on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) every: Option<Ordinal>,
    /// A share of them, drawn from the seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) probability: Option<Share>,
}

/// What `when` counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(crate) enum Count {
    /// All requests that the rule matches. With several clients at once, chance decides who is the n-th.
    #[default]
    Rule,
    /// The requests of each path alone, so that the order of several clients does not matter.
    Path,
}

/// A request's method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Method {
    Get,
    Post,
    Put,
    Patch,
    Delete,
}

impl Method {
    /// As in a request line.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Patch => "PATCH",
            Method::Delete => "DELETE",
        }
    }
}

/// What goes wrong with an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) enum RestFault {
    /// An error in the API's own words: 429, 500, 503, 401, 403, 404.
    #[serde(rename_all = "camelCase")]
    Status {
        /// 400 to 599.
        code: Whole<400, 599>,
        /// The header that asks to wait.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after: Option<RetryAfter>,
    },
    /// No answer for so long, then the connection ends.
    Hang {
        /// Real seconds, whatever the emulator's clock says.
        seconds: Whole<1, MAX_HANG_SECONDS>,
    },
    /// The connection is reset (TCP RST) instead of an answer.
    Reset,
    /// The body ends early.
    Truncated {
        /// The share of it that is sent.
        keep: Share,
        /// Whether the message is whole by its length, so that only the JSON is cut; else the connection
        /// ends before the announced length.
        #[serde(default)]
        framed: bool,
    },
    /// A proxy's page instead of JSON.
    Html {
        /// 200 to 599.
        code: Whole<200, 599>,
    },
    /// These members have values of another JSON type, wherever they stand.
    WrongTypes {
        /// Names such as `meta` or `author`.
        fields: Few<Text, MAX_ENTRIES>,
    },
    /// These members are left out, wherever they stand.
    Partial {
        /// Names such as `recipients` or `createdAt`.
        fields: Few<Text, MAX_ENTRIES>,
    },
    /// A conversation as it was before: the answer of a replica that lags.
    Stale(Age),
    /// A list leads elsewhere than to its next page. A list of one page has nothing to spoil.
    Page(PageFault),
    /// Sent elsewhere.
    #[serde(rename_all = "camelCase")]
    Redirect {
        /// 300 to 308.
        code: Whole<300, 308>,
        /// The `Location`, another origin's.
        to: Text,
    },
}

/// The forms of `Retry-After`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(crate) enum RetryAfter {
    /// A number of seconds.
    Seconds(u32),
    /// A date so many seconds from now by the emulator's clock; negative: one that has passed.
    Date(i32),
    /// Whatever is written here.
    Text(Text),
}

/// How far back an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(crate) enum Age {
    /// Without the last so many changes: the close, then communications, the latest first.
    Changes(Whole<1, 1_000_000>),
    /// Without what happened in the last so many seconds, by the times of the resources.
    Seconds(Whole<1, 1_000_000>),
}

/// Where a page leads instead of to the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(crate) enum PageFault {
    /// To the same items once more, by another token.
    Duplicate,
    /// To the page after the next: the items between are not seen.
    Skip,
    /// To itself: a reader that follows tokens never ends.
    Loop,
}

/// What goes wrong with a callback.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) enum CallbackFault {
    /// Never sent.
    Lost,
    /// Sent again, with the same token.
    Duplicated {
        /// How often again.
        times: Whole<1, 10>,
    },
    /// Sent later.
    Delayed {
        /// Real milliseconds.
        milliseconds: Whole<1, MAX_DELAY_MILLISECONDS>,
    },
    /// Sent after later ones, or when no other is left.
    Reordered {
        /// How many others end before it.
        behind: Whole<1, 1_000>,
    },
    /// Sent again with another token, so that only the content tells that it is a repeat.
    Replayed {
        /// How often again.
        times: Whole<1, 10>,
    },
    /// Signed with a key that nobody has.
    WrongSignature {
        /// Which of its tries.
        #[serde(default)]
        tries: Tries,
    },
    /// Half of the body, signed for the whole, then the connection ends.
    HalfBody {
        /// Which of its tries.
        #[serde(default)]
        tries: Tries,
    },
}

/// Which tries of a delivery.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(crate) enum Tries {
    /// The first: a retry is as it should be.
    First,
    /// All.
    #[default]
    Every,
}

/// What goes wrong with a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) enum ConversationFault {
    /// Its close is announced, and read as ACTIVE for a while.
    LateClose(Late),
    /// Its close is announced, and always read as ACTIVE.
    NeverCloses,
    /// It is gone after its first so many reads, of itself or of what belongs to it.
    #[serde(rename_all = "camelCase")]
    DeletedDuringFetch {
        /// Reads that are answered.
        after_reads: Whole<0, 1_000_000>,
    },
    /// Once the first page of its communications was read, every recipient has READ them, and
    /// `updatedAt` says so.
    ChangedBetweenPages,
}

/// How long a close stays unseen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(crate) enum Late {
    /// For so many reads of the closed conversation.
    Reads(Whole<1, 1_000_000>),
    /// For so many seconds of the emulator's clock after its first read.
    Seconds(Whole<1, 1_000_000>),
}

#[cfg(test)]
mod tests;
