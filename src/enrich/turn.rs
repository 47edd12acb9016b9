//! The order of a conversation's communications, and which of them are one utterance. Pure.
//!
//! ConversationRelay writes an answer as 3 to 5 communications, one per spoken fragment; whoever counts
//! utterances counts distinct `turn`s. Guarantees: positions are 0.. without gaps; turns are 0.. by the
//! position of their first communication; only VOICE is ever joined.

use std::collections::HashMap;

use crate::table::row::{CommunicationRow, Micros};

/// Longest silence inside an utterance: from the end of a fragment to the start of the next.
pub const MAX_TURN_GAP_MS: i64 = 3_000;

/// Pace of speech that an end is estimated with where words have no times (some 150 words a minute).
const SPEECH_CHARS_PER_SECOND: i64 = 15;

/// Sorts by time (`occurred_at`, else `created_at`; one without either comes last), then `created_at`,
/// then id, and numbers positions and turns.
pub(super) fn number(rows: &mut [CommunicationRow]) {
    rows.sort_by(|a, b| {
        let time = |row: &CommunicationRow| start(row).unwrap_or(Micros::MAX);
        time(a)
            .cmp(&time(b))
            .then_with(|| a.created_at.cmp(&b.created_at))
            .then_with(|| a.communication_id.cmp(&b.communication_id))
    });
    let mut next_turn = 0;
    let mut calls: HashMap<Option<String>, Utterance> = HashMap::new();
    for (position, row) in (0..).zip(rows.iter_mut()) {
        row.position = position;
        let said = (row.channel == "VOICE").then(|| Utterance::of(row, next_turn));
        let joined = said
            .as_ref()
            .and_then(|said| calls.get(&row.channel_id)?.joined_by(said));
        row.turn = joined.unwrap_or(next_turn);
        next_turn += i64::from(joined.is_none());
        if let Some(mut said) = said {
            said.turn = row.turn;
            // By call: a message on another channel in between does not cut an utterance in two.
            calls.insert(row.channel_id.clone(), said);
        }
    }
}

/// When it was said.
pub(super) fn start(row: &CommunicationRow) -> Option<Micros> {
    row.occurred_at.or(row.created_at)
}

/// The last that was said on a call.
struct Utterance {
    participant: Option<String>,
    address: Option<String>,
    direction: Option<String>,
    start: Option<Micros>,
    end: Option<Micros>,
    turn: i64,
}

impl Utterance {
    fn of(row: &CommunicationRow, turn: i64) -> Self {
        let start = start(row);
        Utterance {
            participant: row.author_participant_id.clone(),
            address: row.author_address.clone(),
            direction: row.direction.clone(),
            start,
            end: start.map(|start| start.saturating_add(spoken_ms(row).saturating_mul(1_000))),
            turn,
        }
    }

    /// Our turn, if `next` goes on with it: the same known author, after a small gap or none.
    fn joined_by(&self, next: &Utterance) -> Option<i64> {
        let known = self.participant.is_some() || self.address.is_some();
        let same = self.participant == next.participant
            && self.address == next.address
            && self.direction == next.direction;
        let gap = next.start?.saturating_sub(self.end?);
        (known && same && gap <= MAX_TURN_GAP_MS * 1_000).then_some(self.turn)
    }
}

/// How long it took to say: by the words' times, else by the length of the text.
fn spoken_ms(row: &CommunicationRow) -> i64 {
    let words = row.transcription_words.as_deref().unwrap_or_default();
    let first = words.iter().filter_map(|word| word.start_ms).min();
    let last = words.iter().filter_map(|word| word.end_ms).max();
    match (first, last) {
        (Some(first), Some(last)) if last >= first => last.saturating_sub(first),
        _ => {
            let chars = row.text.as_deref().map_or(0, |text| text.chars().count());
            i64::try_from(chars).unwrap_or(i64::MAX / 1_000) * 1_000 / SPEECH_CHARS_PER_SECOND
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(id: &str, author: &str, at_ms: i64, text: &str) -> CommunicationRow {
        CommunicationRow {
            communication_id: id.to_owned(),
            author_address: Some(author.to_owned()),
            channel: "VOICE".to_owned(),
            channel_id: Some("CA1".to_owned()),
            occurred_at: Some(at_ms * 1_000),
            text: Some(text.to_owned()),
            ..CommunicationRow::default()
        }
    }

    fn turns(mut rows: Vec<CommunicationRow>) -> Vec<(String, i64, i64)> {
        number(&mut rows);
        rows.into_iter()
            .map(|row| (row.communication_id, row.position, row.turn))
            .collect()
    }

    fn expect(rows: &[(&str, i64, i64)]) -> Vec<(String, i64, i64)> {
        rows.iter()
            .map(|(id, p, t)| ((*id).to_owned(), *p, *t))
            .collect()
    }

    #[test]
    fn fragments_of_one_author_are_one_turn() {
        let rows = vec![
            said("d", "customer", 9_000, "fine"),
            said("b", "agent", 1_000, "how are you"),
            said("a", "agent", 0, "hello"),
            said("c", "agent", 2_000, "today?"),
            said("e", "agent", 10_000, "good"),
        ];
        let want = [
            ("a", 0, 0),
            ("b", 1, 0),
            ("c", 2, 0),
            ("d", 3, 1),
            ("e", 4, 2),
        ];
        assert_eq!(turns(rows), expect(&want));
    }

    #[test]
    fn a_long_silence_another_call_and_another_channel_are_turns_of_their_own() {
        let mut other_call = said("c", "agent", 200, "");
        other_call.channel_id = Some("CA2".to_owned());
        let mut message = said("d", "agent", 300, "");
        message.channel = "SMS".to_owned();
        let mut message_again = message.clone();
        message_again.communication_id = "e".to_owned();
        let rows = vec![
            said("a", "agent", 0, ""),
            said("b", "agent", 100, ""),
            other_call,
            message,
            message_again,
            said("f", "agent", 3_100, ""),
            said("g", "agent", 6_101, ""),
        ];
        let want = [
            ("a", 0, 0),
            ("b", 1, 0),
            ("c", 2, 1),
            ("d", 3, 2),
            ("e", 4, 3),
            ("f", 5, 0),
            ("g", 6, 4),
        ];
        assert_eq!(turns(rows), expect(&want));
    }

    #[test]
    fn order_is_by_time_then_creation_then_id() {
        let mut rows = vec![
            said("z", "x", 5, ""),
            said("b", "x", 5, ""),
            said("a", "x", 5, ""),
            said("none", "x", 0, ""),
            said("created", "x", 0, ""),
        ];
        for row in &mut rows {
            row.channel = "SMS".to_owned();
        }
        rows[0].created_at = Some(1);
        rows[1].created_at = Some(2);
        rows[2].created_at = Some(2);
        rows[3].occurred_at = None;
        rows[4].occurred_at = None;
        rows[4].created_at = Some(3_000);
        number(&mut rows);
        let ids: Vec<_> = rows
            .iter()
            .map(|row| row.communication_id.as_str())
            .collect();
        assert_eq!(ids, ["created", "z", "a", "b", "none"]);
    }

    #[test]
    fn an_author_that_is_not_known_is_never_joined() {
        let mut rows = vec![said("a", "x", 0, ""), said("b", "x", 1, "")];
        for row in &mut rows {
            row.author_address = None;
        }
        assert_eq!(turns(rows), expect(&[("a", 0, 0), ("b", 1, 1)]));
    }
}
