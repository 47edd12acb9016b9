//! `GET /emulator/truth`: every closed conversation as it really is, as a stream.
//!
//! Owns the order and the shape: `{"conversations": [{…conversation, "communications": […]}], "evicted": n}`,
//! whole resources, conversations by id, communications in the order of capture; `evicted` says how many
//! closed conversations made room for newer ones and are not in it. Refuses conversations that can still
//! change.
//!
//! Guarantees: the same closed conversations give the same bytes, whatever the order in which they ran.
//! Memory holds one chunk, of [`COMMUNICATIONS_A_CHUNK`] communications at most. What is closed cannot
//! change between two chunks, and what is deleted or evicted meanwhile is written all the same.

use std::sync::Arc;

use super::Shared;
use super::listing::{ConversationView, Shape};
use super::resource::Status;
use super::state::Entry;

/// Communications written at once.
const COMMUNICATIONS_A_CHUNK: usize = 256;

/// Writes the truth, chunk by chunk.
#[derive(Debug)]
pub(crate) struct Truth {
    account_id: Arc<str>,
    evicted: u64,
    /// The conversations that were closed when the answer began.
    closed: Vec<Arc<Entry>>,
    conversation: usize,
    communication: usize,
    /// Whether the conversation's own fields are written.
    opened: bool,
    began: bool,
    ended: bool,
}

impl Truth {
    /// The truth as of now.
    pub(crate) fn new(shared: &Shared) -> Self {
        let state = shared.state();
        let entries = state.conversations();
        let mut closed: Vec<Arc<Entry>> = entries
            .filter(|entry| entry.conversation.status == Status::Closed)
            .map(Arc::clone)
            .collect();
        let (account_id, evicted) = (state.account_id().into(), state.tally().evicted);
        drop(state);
        closed.sort_unstable_by(|a, b| a.conversation.id.cmp(&b.conversation.id));
        Truth {
            account_id,
            evicted,
            closed,
            conversation: 0,
            communication: 0,
            opened: false,
            began: false,
            ended: false,
        }
    }

    fn write(&mut self, out: &mut Vec<u8>) -> serde_json::Result<()> {
        if !self.began {
            self.began = true;
            out.extend_from_slice(b"{\"conversations\":[");
        }
        let mut budget = COMMUNICATIONS_A_CHUNK;
        while budget > 0 && self.conversation < self.closed.len() {
            let entry = &self.closed[self.conversation];
            if !self.opened {
                self.opened = true;
                if self.conversation > 0 {
                    out.push(b',');
                }
                open_conversation(entry, &self.account_id, out)?;
                budget -= 1;
            }
            let rest = &entry.communications[self.communication..];
            for communication in &rest[..rest.len().min(budget)] {
                if self.communication > 0 {
                    out.push(b',');
                }
                serde_json::to_writer(&mut *out, communication)?;
                self.communication += 1;
                budget -= 1;
            }
            if self.communication == entry.communications.len() {
                out.extend_from_slice(b"]}");
                self.conversation += 1;
                self.communication = 0;
                self.opened = false;
            }
        }
        if self.conversation == self.closed.len() {
            out.extend_from_slice(format!("],\"evicted\":{}}}", self.evicted).as_bytes());
            self.ended = true;
        }
        Ok(())
    }
}

impl Iterator for Truth {
    type Item = Result<Vec<u8>, serde_json::Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let mut out = Vec::new();
        Some(self.write(&mut out).map(|()| out))
    }
}

/// The conversation's own fields, and the start of its communications.
fn open_conversation(entry: &Entry, account: &str, out: &mut Vec<u8>) -> serde_json::Result<()> {
    serde_json::to_writer(
        &mut *out,
        &ConversationView::new(entry, account, Shape::WHOLE),
    )?;
    let brace = out.pop();
    debug_assert_eq!(brace, Some(b'}'));
    out.extend_from_slice(b",\"communications\":[");
    Ok(())
}
