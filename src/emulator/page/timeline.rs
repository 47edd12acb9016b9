//! What happened in one conversation, in the order in which the Orchestrator wrote it down.
//!
//! Owns the order and the cut into pages. Refuses to show (`view`) and to keep anything.
//!
//! Guarantees: each communication and each delivery is in it once. What has no readable time stands where
//! its neighbour before it stands.

use jiff::Timestamp;
use serde::Deserialize;

use super::super::callbacks::Delivery;
use super::super::resource::Communication;
use crate::event::event_type;

/// Items of a page.
pub(super) const PAGE_ITEMS: usize = 50;

/// One thing that happened.
#[derive(Debug)]
pub(super) enum Happened<'a> {
    /// Something was said, and written down now.
    Said(&'a Communication),
    /// Somebody was told of something, or was not.
    Told(&'a Delivery, Event),
}

/// What a callback is about.
#[derive(Debug, Default)]
pub(super) struct Event {
    /// When it happened.
    pub(super) at: Option<Timestamp>,
    /// The status that a conversation has come to.
    pub(super) status: Option<String>,
}

/// All that happened, oldest first.
pub(super) fn of<'a>(
    communications: &'a [Communication],
    deliveries: &'a [Delivery],
) -> Vec<(Timestamp, Happened<'a>)> {
    let mut told = Vec::with_capacity(deliveries.len());
    let mut latest = Timestamp::MIN;
    for delivery in deliveries {
        let event = Event::of(delivery);
        latest = event.at.unwrap_or(latest);
        told.push((latest, Happened::Told(delivery, event)));
    }
    let said = communications
        .iter()
        .map(|communication| (communication.created_at, Happened::Said(communication)));
    let mut all: Vec<_> = said.chain(told).collect();
    // Stable, so that what was said stays in its order.
    all.sort_by_key(|(at, happened)| (*at, happened.rank()));
    all
}

impl Happened<'_> {
    /// The order within one moment, in which deliveries end in any order: who takes part comes before what
    /// is said, and that before who is told of it.
    fn rank(&self) -> u8 {
        match self {
            Happened::Told(delivery, _) => match delivery.event_type {
                event_type::CONVERSATION_CREATED => 0,
                event_type::PARTICIPANT_ADDED => 1,
                event_type::CONVERSATION_UPDATED => 4,
                _ => 3,
            },
            Happened::Said(_) => 2,
        }
    }
}

impl Event {
    fn of(delivery: &Delivery) -> Self {
        #[derive(Deserialize)]
        struct Body {
            timestamp: Option<String>,
            data: Option<Data>,
        }
        #[derive(Deserialize)]
        struct Data {
            status: Option<String>,
        }
        // A fault may have cut the body: what is left of it is not an event.
        let Ok(body) = serde_json::from_slice::<Body>(&delivery.body) else {
            return Event::default();
        };
        Event {
            at: body.timestamp.and_then(|at| at.parse().ok()),
            status: body.data.and_then(|data| data.status),
        }
    }
}

/// A page of a list whose newest end is shown first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    /// Position of its first item.
    pub(super) first: usize,
    /// Position behind its last.
    pub(super) end: usize,
    /// How many there are.
    pub(super) of: usize,
}

impl Window {
    /// The page that ends before position `before`, or with the newest item.
    pub(super) fn ending(before: Option<usize>, of: usize) -> Self {
        let end = before.unwrap_or(of).min(of);
        Window {
            first: end.saturating_sub(PAGE_ITEMS),
            end,
            of,
        }
    }

    /// `before` of the page of older items.
    pub(super) fn older(self) -> Option<usize> {
        (self.first > 0).then_some(self.first)
    }

    /// `before` of the page of newer ones.
    pub(super) fn newer(self) -> Option<usize> {
        (self.end < self.of).then_some((self.end + PAGE_ITEMS).min(self.of))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(event_type: &'static str, body: &'static str) -> Delivery {
        Delivery {
            token: String::new(),
            event_type,
            conversation_id: "conv_conversation_1".into(),
            url: "https://hooks.example.test/twilio".into(),
            method: "POST",
            duplicate: false,
            fault: None,
            accepted: true,
            headers: Vec::new(),
            body: body.into(),
            attempts: Vec::new(),
        }
    }

    #[test]
    fn deliveries_that_ended_in_any_order_stand_in_that_of_their_events() {
        let first = r#"{"timestamp": "2026-11-22T10:00:00Z", "data": {"status": "ACTIVE"}}"#;
        let last = r#"{"timestamp": "2026-11-22T10:00:01Z", "data": {"status": "CLOSED"}}"#;
        let deliveries = [
            delivery(event_type::CONVERSATION_UPDATED, last),
            delivery(
                event_type::COMMUNICATION_CREATED,
                "{\"timestamp\": \"2026-11-2",
            ),
            delivery(event_type::PARTICIPANT_ADDED, first),
            delivery(event_type::CONVERSATION_CREATED, first),
        ];
        let all = of(&[], &deliveries);
        let seen: Vec<_> = all
            .iter()
            .map(|(_, happened)| match happened {
                Happened::Told(delivery, event) => (delivery.event_type, event.status.as_deref()),
                Happened::Said(_) => unreachable!("nothing was said"),
            })
            .collect();
        let expected = [
            (event_type::CONVERSATION_CREATED, Some("ACTIVE")),
            (event_type::PARTICIPANT_ADDED, Some("ACTIVE")),
            // Half a body has no time of its own, and stands where the one before it stands.
            (event_type::COMMUNICATION_CREATED, None),
            (event_type::CONVERSATION_UPDATED, Some("CLOSED")),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn pages_of_a_list_hold_each_item_once_and_lead_both_ways() {
        for of in [0, 1, 49, 50, 51, 100, 149] {
            let mut seen = Vec::new();
            let mut window = Window::ending(None, of);
            loop {
                seen.splice(0..0, window.first..window.end);
                let Some(before) = window.older() else { break };
                let older = Window::ending(Some(before), of);
                assert!(older.newer().is_some(), "back from {older:?}");
                window = older;
            }
            assert_eq!(seen, Vec::from_iter(0..of), "{of} items");
        }
    }

    #[test]
    fn a_page_beyond_the_end_is_the_newest() {
        assert_eq!(
            Window::ending(Some(usize::MAX), 60),
            Window::ending(None, 60)
        );
        assert_eq!(Window::ending(None, 60).newer(), None);
        assert_eq!(Window::ending(Some(0), 60).older(), None);
    }
}
