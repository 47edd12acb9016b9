//! What is wrong with one conversation, from its ledger, its rows and whether the API lists it. Pure.

use std::collections::BTreeSet;

use super::Kind;
use crate::enrich::content_hash;
use crate::table::row::{CommunicationRow, Completeness, ConversationRow};

/// What the lake has of one conversation.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) ledger: Vec<ConversationRow>,
    pub(super) rows: Vec<CommunicationRow>,
}

/// A conversation judged.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Whole, once, and its ledger true.
    Complete,
    /// As the API no longer has it: not listed, and GONE in the lake.
    Gone,
    /// Sound, and the API does not list it (any more).
    Unlisted,
    /// Something is wrong.
    Problem(Kind, String),
}

/// Judges what is `held`, whose rows come in any order.
pub(super) fn judge(held: &mut Held, listed: bool) -> Verdict {
    let rows = held.rows.len();
    let ledger = match &held.ledger[..] {
        [] => {
            let why = format!("{rows} communications are written, its own row is not");
            return Verdict::Problem(Kind::Missing, why);
        }
        [ledger] => ledger,
        several => {
            let why = format!("{} rows in conversations", several.len());
            return Verdict::Problem(Kind::Doubled, why);
        }
    };
    held.rows.sort_by_key(|row| row.position);
    if let Some((kind, why)) = against_ledger(ledger, &held.rows) {
        return Verdict::Problem(kind, why);
    }
    match (ledger.completeness, listed) {
        (Completeness::Gone, false) => Verdict::Gone,
        (_, false) => Verdict::Unlisted,
        (Completeness::Complete, true) => Verdict::Complete,
        (Completeness::Partial, true) => {
            let why = format!("the API did not give {}", ledger.missing.join(", "));
            Verdict::Problem(Kind::Partial, why)
        }
        (Completeness::Gone, true) => {
            let why = "it was gone when it was fetched, and the API lists it now".to_owned();
            Verdict::Problem(Kind::Missing, why)
        }
    }
}

/// Where the rows are not what the ledger says; `rows` by position.
fn against_ledger(ledger: &ConversationRow, rows: &[CommunicationRow]) -> Option<(Kind, String)> {
    let ids: BTreeSet<&str> = rows.iter().map(|row| &*row.communication_id).collect();
    if ids.len() < rows.len() {
        let twice = rows.len() - ids.len();
        return Some((
            Kind::Doubled,
            format!("{twice} of its {} communications are repeats", rows.len()),
        ));
    }
    let torn = |why: String| Some((Kind::Torn, why));
    if ledger.communications != rows.len() as i64 {
        return torn(format!(
            "{} rows in communications, its ledger says {}",
            rows.len(),
            ledger.communications
        ));
    }
    if ledger.completeness != Completeness::Gone && ledger.pages == 0 {
        return torn("its ledger says that no page was read".to_owned());
    }
    let incomplete = rows.iter().filter(|row| !row.missing.is_empty()).count();
    if ledger.completeness == Completeness::Complete && incomplete > 0 {
        return torn(format!(
            "its ledger says COMPLETE, and {incomplete} communications lack columns"
        ));
    }
    if content_hash(ledger, rows) != ledger.content_hash {
        return torn("its rows do not say what its ledger's content hash does".to_owned());
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MESSAGES: i64 = 3;

    fn sound() -> Held {
        let rows: Vec<CommunicationRow> = (0..MESSAGES)
            .map(|position| CommunicationRow {
                conversation_id: "v".to_owned(),
                communication_id: format!("c{position}"),
                position,
                text: Some(format!("text {position}")),
                channel: "SMS".to_owned(),
                ..CommunicationRow::default()
            })
            .collect();
        let mut ledger = ConversationRow {
            communications: MESSAGES,
            pages: 1,
            ..crate::table::row::empty_conversation("v")
        };
        ledger.content_hash = content_hash(&ledger, &rows);
        Held {
            ledger: vec![ledger],
            rows,
        }
    }

    fn problem(held: &mut Held) -> (Kind, String) {
        match judge(held, true) {
            Verdict::Problem(kind, why) => (kind, why),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_difference_has_its_name() {
        assert_eq!(judge(&mut sound(), true), Verdict::Complete);
        assert_eq!(judge(&mut sound(), false), Verdict::Unlisted);
        type Change = fn(&mut Held);
        let cases: [(Change, Kind, &str); 9] = [
            (
                |held| held.ledger.clear(),
                Kind::Missing,
                "3 communications",
            ),
            (
                |held| held.ledger.push(held.ledger[0].clone()),
                Kind::Doubled,
                "2 rows",
            ),
            (
                |held| held.rows.push(held.rows[0].clone()),
                Kind::Doubled,
                "1 of its 4",
            ),
            (
                |held| drop(held.rows.pop()),
                Kind::Torn,
                "2 rows in communications",
            ),
            (|held| held.ledger[0].pages = 0, Kind::Torn, "no page"),
            (
                |held| held.rows[1].text = Some("text 7".to_owned()),
                Kind::Torn,
                "content hash",
            ),
            (
                |held| held.rows[1].missing.push("text".to_owned()),
                Kind::Torn,
                "lack columns",
            ),
            (|held| partial(held), Kind::Partial, "participants"),
            (|held| gone(held), Kind::Missing, "lists it now"),
        ];
        for (change, want, part) in cases {
            let mut held = sound();
            change(&mut held);
            let (kind, why) = problem(&mut held);
            assert_eq!(kind, want, "{why}");
            assert!(why.contains(part), "{why}");
        }
        let mut held = sound();
        gone(&mut held);
        assert_eq!(judge(&mut held, false), Verdict::Gone);
    }

    fn partial(held: &mut Held) {
        let ledger = &mut held.ledger[0];
        ledger.completeness = Completeness::Partial;
        ledger.missing.push("participants".to_owned());
        ledger.content_hash = content_hash(ledger, &held.rows);
    }

    fn gone(held: &mut Held) {
        held.rows.clear();
        let ledger = &mut held.ledger[0];
        (ledger.completeness, ledger.communications) = (Completeness::Gone, 0);
        ledger.content_hash = content_hash(ledger, &[]);
    }

    proptest! {
        #[test]
        fn the_order_of_rows_does_not_matter_and_any_lost_or_repeated_row_does(
            order in Just((0..MESSAGES as usize).collect::<Vec<_>>()).prop_shuffle(),
            taken in prop::collection::vec(0..MESSAGES as usize, 0..5),
        ) {
            let whole = sound();
            let pick = |at: &Vec<usize>| Held {
                ledger: whole.ledger.clone(),
                rows: at.iter().map(|at| whole.rows[*at].clone()).collect(),
            };
            prop_assert_eq!(judge(&mut pick(&order), true), Verdict::Complete);
            let mut sorted = taken.clone();
            sorted.sort_unstable();
            let same = sorted == (0..MESSAGES as usize).collect::<Vec<_>>();
            prop_assert_eq!(judge(&mut pick(&taken), true) == Verdict::Complete, same);
        }
    }
}
