//! `GET /emulator/truth`: every closed conversation as it really is, as a stream.
//!
//! Owns the order and the shape: `{"conversations": [{…conversation, "communications": […]}]}`, whole
//! resources, conversations by id, communications in the order of capture. Refuses conversations that can
//! still change.
//!
//! Guarantees: the same closed conversations give the same bytes, whatever the order in which they ran.
//! Memory holds one chunk, of [`COMMUNICATIONS_A_CHUNK`] communications at most, and the state is locked
//! for one chunk at a time: what is closed cannot change between two.

use std::sync::Arc;

use super::Shared;
use super::listing::{ConversationView, Shape};
use super::resource::Status;
use super::state::{Entry, State};

/// Communications written under one lock.
const COMMUNICATIONS_A_CHUNK: usize = 256;

/// Writes the truth, chunk by chunk.
#[derive(Debug)]
pub(crate) struct Truth {
    shared: Arc<Shared>,
    /// Ids of the conversations that were closed when the answer began.
    closed: Vec<Arc<str>>,
    conversation: usize,
    communication: usize,
    /// Whether the conversation's own fields are written.
    opened: bool,
    began: bool,
    ended: bool,
}

impl Truth {
    /// The truth as of now.
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let mut closed: Vec<Arc<str>> = shared
            .state()
            .conversations()
            .iter()
            .filter(|entry| entry.conversation.status == Status::Closed)
            .map(|entry| Arc::clone(&entry.conversation.id))
            .collect();
        closed.sort_unstable();
        Truth {
            shared,
            closed,
            conversation: 0,
            communication: 0,
            opened: false,
            began: false,
            ended: false,
        }
    }

    fn write(&mut self, state: &State, out: &mut Vec<u8>) -> serde_json::Result<()> {
        if !self.began {
            self.began = true;
            out.extend_from_slice(b"{\"conversations\":[");
        }
        let mut budget = COMMUNICATIONS_A_CHUNK;
        while budget > 0 && self.conversation < self.closed.len() {
            let id = &self.closed[self.conversation];
            let entry = state
                .conversation(id)
                .expect("conversations are never removed");
            if !self.opened {
                self.opened = true;
                if self.conversation > 0 {
                    out.push(b',');
                }
                open_conversation(entry, state.account_id(), out)?;
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
            out.extend_from_slice(b"]}");
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
        let shared = Arc::clone(&self.shared);
        let state = shared.state();
        Some(self.write(&state, &mut out).map(|()| out))
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
