//! What a faulty answer shows of a conversation: less than there is, or other than it is.
//!
//! Owns the edits of an answer's JSON. Pure: an answer, and what is to be seen of the conversations in
//! it, give another answer. The state is never touched, so that a fault taken away leaves no trace.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value};

use super::script::Age;
use crate::emulator::resource::Status;
use crate::emulator::state::Entry;

/// What is to be seen of a conversation. The default is all of it, as it is.
#[derive(Debug, Default)]
pub(crate) struct View {
    /// It is not there.
    pub(crate) gone: bool,
    /// It is not closed yet.
    pub(crate) open: bool,
    /// Communications and participants that are not there yet.
    pub(crate) hidden: HashSet<Arc<str>>,
    /// It has changed at this time: everything was read.
    pub(crate) changed: Option<Timestamp>,
}

impl View {
    /// Whether all of it is seen, as it is.
    pub(crate) fn is_whole(&self) -> bool {
        !self.gone && !self.open && self.hidden.is_empty() && self.changed.is_none()
    }

    /// Sees `entry` as it was `age` before `now`. Delivery states are seen as they are: when they
    /// changed is not known.
    pub(crate) fn age(&mut self, entry: &Entry, age: Age, now: Timestamp) {
        let closed = entry.conversation.status == Status::Closed;
        match age {
            Age::Changes(changes) => {
                self.open |= closed;
                let changes = usize::try_from(changes.get()).unwrap_or(usize::MAX);
                let latest = entry.communications.iter().rev();
                let latest = latest.take(changes - usize::from(closed));
                self.hidden.extend(latest.map(|it| Arc::clone(&it.id)));
            }
            Age::Seconds(seconds) => {
                let seconds = i64::try_from(seconds.get()).unwrap_or(i64::MAX);
                let then = now.saturating_sub(SignedDuration::from_secs(seconds));
                let then = then.unwrap_or(Timestamp::MIN);
                self.gone |= entry.conversation.created_at > then;
                self.open |= closed && entry.conversation.updated_at > then;
                let communications = entry.communications.iter().rev();
                let later = communications.take_while(|it| it.created_at > then);
                self.hidden.extend(later.map(|it| Arc::clone(&it.id)));
                let participants = entry.participants.iter();
                let later = participants.filter(|it| it.created_at > then);
                self.hidden.extend(later.map(|it| Arc::clone(&it.id)));
            }
        }
    }

    /// Shows a conversation.
    pub(crate) fn show_conversation(&self, conversation: &mut Map<String, Value>) {
        if self.open {
            conversation.insert("status".to_owned(), "ACTIVE".into());
        }
        if let Some(at) = self.changed {
            conversation.insert("updatedAt".to_owned(), at.to_string().into());
        }
        if let Some(Value::Array(participants)) = conversation.get_mut("participants") {
            participants.retain(|participant| !self.hides(participant));
        }
    }

    /// Shows a communication or participant.
    pub(crate) fn show_item(&self, item: &mut Map<String, Value>) {
        let Some(at) = self.changed else { return };
        let Some(Value::Array(recipients)) = item.get_mut("recipients") else {
            return;
        };
        for recipient in recipients.iter_mut().filter_map(Value::as_object_mut) {
            recipient.insert("deliveryStatus".to_owned(), "READ".into());
        }
        item.insert("updatedAt".to_owned(), at.to_string().into());
    }

    /// Shows a page of communications or participants.
    pub(crate) fn show_page(&self, page: &mut Map<String, Value>, key: &str) {
        let Some(Value::Array(items)) = page.get_mut(key) else {
            return;
        };
        let before = items.len();
        items.retain(|item| !self.hides(item));
        let cut = items.len() < before;
        for item in items.iter_mut().filter_map(Value::as_object_mut) {
            self.show_item(item);
        }
        if cut && let Some(meta) = page.get_mut("meta").and_then(Value::as_object_mut) {
            // What follows is later still, and not there either.
            meta.insert("nextToken".to_owned(), Value::Null);
        }
    }

    fn hides(&self, item: &Value) -> bool {
        let id = item.get("id").and_then(Value::as_str);
        id.is_some_and(|id| self.hidden.contains(id))
    }
}

/// Leaves members out, wherever they stand.
pub(crate) fn leave_out(value: &mut Value, wanted: &dyn Fn(&str) -> bool) {
    match value {
        Value::Object(members) => {
            members.retain(|name, _| !wanted(name));
            members.values_mut().for_each(|it| leave_out(it, wanted));
        }
        Value::Array(items) => items.iter_mut().for_each(|it| leave_out(it, wanted)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Gives members a value of another type, wherever they stand.
pub(crate) fn mistype(value: &mut Value, wanted: &dyn Fn(&str) -> bool) {
    match value {
        Value::Object(members) => {
            for (name, member) in members.iter_mut() {
                match wanted(name) {
                    true => *member = other_type(member),
                    false => mistype(member, wanted),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|it| mistype(it, wanted)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// What no reader of `value` expects: never a null, which many take for an absent member.
fn other_type(value: &Value) -> Value {
    match value {
        Value::Null | Value::String(_) => Value::from(42),
        Value::Bool(_) | Value::Number(_) => Value::from(vec![value.clone()]),
        Value::Array(items) => Value::from(items.len().to_string()),
        Value::Object(_) => Value::from(true),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn members_are_left_out_and_mistyped_wherever_they_stand() {
        let page = json!({"items": [{"id": "a", "text": "x", "deep": {"text": null}}], "text": 1});
        let mut partial = page.clone();
        leave_out(&mut partial, &|name| name == "text");
        assert_eq!(partial, json!({"items": [{"id": "a", "deep": {}}]}));
        let mut mistyped = page;
        mistype(&mut mistyped, &|name| name == "text");
        let expected =
            json!({"items": [{"id": "a", "text": 42, "deep": {"text": 42}}], "text": [1]});
        assert_eq!(mistyped, expected);
        for value in [
            json!(null),
            json!(true),
            json!(1),
            json!("a"),
            json!([1]),
            json!({}),
        ] {
            let other = other_type(&value);
            assert!(std::mem::discriminant(&other) != std::mem::discriminant(&value));
        }
    }
}
