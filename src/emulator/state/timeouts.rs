//! When a conversation goes INACTIVE or CLOSED by itself.
//!
//! Owns the arithmetic of `statusTimeouts`. Each channel that had traffic proposes a moment, its own
//! minutes after its own last traffic; the last of the proposals counts, so that the longest-living
//! channel governs. A channel without timeouts proposes nothing and holds nothing up: where no channel of
//! the conversation has any, it never closes.
//! Owns the schedule as well, in which every living conversation that has a next moment stands once.
//!
//! Guarantees: INACTIVE is left out where CLOSED comes no later. A proposal of INACTIVE that traffic on
//! another channel has overtaken has lapsed.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::super::configuration::{ChannelSettings, StatusTimeouts};
use super::super::resource::{Channel, Status};
use super::{Change, Effect, State};

/// What a conversation's timeouts are counted from.
#[derive(Debug, Clone)]
pub(super) struct Traffic {
    /// At most one entry a channel.
    last: Vec<(Channel, Timestamp)>,
    /// When it was last woken, or opened.
    active_since: Timestamp,
}

impl Traffic {
    /// None yet, in a conversation opened at `at`.
    pub(super) fn none(at: Timestamp) -> Self {
        Traffic {
            last: Vec::new(),
            active_since: at,
        }
    }

    /// A communication on `channel`.
    pub(super) fn on(&mut self, channel: Channel, at: Timestamp) {
        self.active_since = at;
        match self.last.iter_mut().find(|(known, _)| *known == channel) {
            Some((_, last)) => *last = at,
            None => self.last.push((channel, at)),
        }
    }

    /// Somebody can be reached on `channel`: its time runs from here, unless it had traffic.
    pub(super) fn begin(&mut self, channel: Channel, at: Timestamp) {
        if !self.last.iter().any(|(known, _)| *known == channel) {
            self.last.push((channel, at));
        }
    }

    /// Somebody made it ACTIVE without traffic.
    pub(super) fn woken(&mut self, at: Timestamp) {
        self.active_since = at;
    }

    /// What a conversation that is `status` becomes next, and when.
    pub(super) fn next(
        &self,
        settings: &BTreeMap<Channel, ChannelSettings>,
        status: Status,
    ) -> Option<(Timestamp, Status)> {
        if settings.is_empty() || status == Status::Closed {
            return None;
        }
        let close = self.latest(settings, |timeouts| timeouts.closed);
        let quiet = match status {
            Status::Active => self
                .latest(settings, |timeouts| timeouts.inactive)
                .filter(|at| *at > self.active_since),
            Status::Inactive | Status::Closed => None,
        };
        match (quiet, close) {
            (Some(quiet), Some(close)) if close <= quiet => Some((close, Status::Closed)),
            (Some(quiet), _) => Some((quiet, Status::Inactive)),
            (None, close) => close.map(|at| (at, Status::Closed)),
        }
    }

    fn latest(
        &self,
        settings: &BTreeMap<Channel, ChannelSettings>,
        minutes: impl Fn(StatusTimeouts) -> Option<u32>,
    ) -> Option<Timestamp> {
        let proposals = self.last.iter().filter_map(|(channel, last)| {
            let timeouts = settings.get(channel)?.status_timeouts?;
            let wait = SignedDuration::from_mins(i64::from(minutes(timeouts)?));
            // Beyond the year 9999 is never.
            last.checked_add(wait).ok()
        });
        proposals.max()
    }
}

impl State {
    /// Follows what the timeouts of a conversation say now.
    pub(super) fn reschedule(&mut self, position: u64) {
        let entry = self.living_at(position);
        let due = entry.next().map(|(at, _)| at);
        if due == entry.due {
            return;
        }
        if let Some(due) = std::mem::replace(&mut entry.due, due) {
            self.schedule.remove(&(due, position));
        }
        self.schedule.extend(due.map(|due| (due, position)));
    }

    /// Makes the conversation at `position` what its timeouts say.
    pub(super) fn lapse(&mut self, position: u64, at: Timestamp) -> Vec<Effect> {
        let entry = &self.conversations[&position];
        let (_, status) = entry.next().expect("what is scheduled has a time");
        let change = Change {
            status: Some(status),
            ..Change::default()
        };
        let id = Arc::clone(&entry.conversation.id);
        let applied = self.change(&id, change, at);
        applied
            .expect("a living conversation takes a status")
            .effects
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn settings(value: Value) -> BTreeMap<Channel, ChannelSettings> {
        serde_json::from_value(value).unwrap()
    }

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + 60 * minute).unwrap()
    }

    fn traffic(last: &[(Channel, i64)]) -> Traffic {
        let mut traffic = Traffic::none(at(0));
        for (channel, minute) in last {
            traffic.on(*channel, at(*minute));
        }
        traffic
    }

    #[test]
    fn a_channel_counts_from_its_own_last_traffic() {
        let sms = settings(json!({"SMS": {"statusTimeouts": {"inactive": 10, "closed": 60}}}));
        let last = traffic(&[(Channel::Sms, 5)]);
        let next = |status| last.next(&sms, status);
        assert_eq!(next(Status::Active), Some((at(15), Status::Inactive)));
        assert_eq!(next(Status::Inactive), Some((at(65), Status::Closed)));
        assert_eq!(next(Status::Closed), None);
    }

    #[test]
    fn a_close_is_a_proposal_and_the_longest_living_channel_governs() {
        let both = settings(json!({
            "VOICE": {"statusTimeouts": {"closed": 1}},
            "SMS": {"statusTimeouts": {"inactive": 10, "closed": 60}},
        }));
        // A message during the call: the call's minute passes, and the message's hour governs.
        let last = traffic(&[(Channel::Sms, 0), (Channel::Voice, 5)]);
        assert_eq!(
            last.next(&both, Status::Inactive),
            Some((at(60), Status::Closed))
        );
        let call = traffic(&[(Channel::Voice, 5)]);
        assert_eq!(
            call.next(&both, Status::Active),
            Some((at(6), Status::Closed)),
            "directly"
        );
        let later = traffic(&[(Channel::Sms, 0), (Channel::Voice, 70)]);
        assert_eq!(
            later.next(&both, Status::Active),
            Some((at(71), Status::Closed)),
            "the message's proposal of INACTIVE has lapsed"
        );
    }

    #[test]
    fn no_timeouts_never_close() {
        for never in [
            json!({}),
            json!({"VOICE": {}}),
            json!({"VOICE": {"statusTimeouts": null}}),
            json!({"SMS": {"statusTimeouts": {"inactive": 1, "closed": 1}}}),
        ] {
            let call = traffic(&[(Channel::Voice, 0)]);
            assert_eq!(
                call.next(&settings(never.clone()), Status::Active),
                None,
                "{never}"
            );
        }
        let quiet = settings(json!({"SMS": {"statusTimeouts": {"inactive": 1}}}));
        let last = traffic(&[(Channel::Sms, 0)]);
        assert_eq!(
            last.next(&quiet, Status::Active),
            Some((at(1), Status::Inactive))
        );
        assert_eq!(last.next(&quiet, Status::Inactive), None);
        let far = settings(json!({"SMS": {"statusTimeouts": {"closed": u32::MAX}}}));
        assert_eq!(last.next(&far, Status::Active), None, "not in this era");
    }

    #[test]
    fn a_channel_without_timeouts_neither_closes_nor_holds_up() {
        let one = settings(json!({
            "VOICE": {"statusTimeouts": null},
            "SMS": {"statusTimeouts": {"inactive": 10, "closed": 60}},
        }));
        let last = traffic(&[(Channel::Sms, 0), (Channel::Voice, 30)]);
        assert_eq!(
            last.next(&one, Status::Active),
            Some((at(60), Status::Closed))
        );
    }

    #[test]
    fn a_channel_begins_with_whoever_can_be_reached_on_it() {
        let sms = settings(json!({"SMS": {"statusTimeouts": {"closed": 60}}}));
        let mut last = Traffic::none(at(0));
        assert_eq!(last.next(&sms, Status::Active), None);
        last.begin(Channel::Sms, at(2));
        last.begin(Channel::Sms, at(9));
        assert_eq!(
            last.next(&sms, Status::Active),
            Some((at(62), Status::Closed))
        );
    }
}
