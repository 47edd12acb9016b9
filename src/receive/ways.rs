//! Which way a callback goes first: to Kafka, or into the spool.
//!
//! Owns the switching, as a state machine over what publishes and the drain report, with the time as an
//! argument. Refuses to publish, to store, or to read a clock.
//!
//! Guarantees: a single failure never switches; a switch to the spool lasts at least [`MIN_STAY`], and twice
//! as long as the last one where Kafka failed again soon after, so that a Kafka that works every other
//! second is not followed back and forth. The way back opens only once the spool has nothing that is not on
//! its way to Kafka, so that no record overtakes an older one of its key. Two exceptions: a receiver so busy
//! that this never holds, where it opens after [`CATCH_UP_LIMIT`] with few records left, and a record that is
//! sent again because it failed alone.

use std::time::Duration;

use tokio::time::Instant;

/// Publishes that fail in a row before the spool comes first.
pub(super) const FAILURES_IN_A_ROW: u32 = 3;
/// Shortest time that the spool comes first: no shorter than a publish is waited for, so that those that
/// began before the switch have all been counted.
pub(super) const MIN_STAY: Duration = Duration::from_secs(2);
const _: () = assert!(MIN_STAY.as_millis() >= super::PUBLISH_TIMEOUT.as_millis());
/// Longest that such a stay grows to.
pub(super) const MAX_STAY: Duration = Duration::from_secs(30);
/// A Kafka that has not failed for as long begins anew with [`MIN_STAY`].
const STEADY: Duration = Duration::from_secs(30);
/// Records not yet on their way to Kafka that count as few.
pub(super) const FEW: u64 = 1_000;
/// How long there must have been only a few.
pub(super) const CATCH_UP_LIMIT: Duration = Duration::from_secs(5);

/// Where a callback goes first. The other way is its second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Kafka,
    Spool,
}

/// Why a publish failed, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// It took no more: switch at once.
    QueueFull,
    /// No acknowledgement in time, or a refusal.
    Unacknowledged,
}

/// The state machine.
#[derive(Debug)]
pub(super) struct Ways {
    way: Way,
    failures: u32,
    /// Of the last switch to this way.
    since: Instant,
    stay: Duration,
    /// Since when only a few records are left to send.
    few_since: Option<Instant>,
}

impl Ways {
    /// With records of a former start in the spool, it comes first until they are on their way.
    pub(super) fn new(now: Instant, backlog: bool) -> Self {
        Ways {
            way: if backlog { Way::Spool } else { Way::Kafka },
            failures: 0,
            since: now,
            stay: Duration::ZERO,
            few_since: None,
        }
    }

    pub(super) fn first(&self) -> Way {
        self.way
    }

    /// Kafka acknowledged a callback in time.
    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
    }

    /// It did not. Whether that switched.
    pub(super) fn failed(&mut self, now: Instant, failure: Failure) -> bool {
        if self.way == Way::Spool {
            return false;
        }
        self.failures += 1;
        if failure != Failure::QueueFull && self.failures < FAILURES_IN_A_ROW {
            return false;
        }
        let soon = now.saturating_duration_since(self.since) < STEADY;
        self.stay = if soon && !self.stay.is_zero() {
            (self.stay * 2).min(MAX_STAY)
        } else {
            MIN_STAY
        };
        self.to(Way::Spool, now);
        true
    }

    /// The drain had all it sent acknowledged, or found nothing to send; `unsent` records are in the spool
    /// and not on their way. Whether that switched.
    pub(super) fn drained(&mut self, now: Instant, unsent: u64) -> bool {
        if self.way == Way::Kafka {
            return false;
        }
        let few_since = match unsent {
            0..=FEW => *self.few_since.get_or_insert(now),
            _ => {
                self.few_since = None;
                return false;
            }
        };
        let stayed = now.saturating_duration_since(self.since) >= self.stay;
        let enough = now.saturating_duration_since(few_since) >= CATCH_UP_LIMIT;
        if !stayed || !(unsent == 0 || enough) {
            return false;
        }
        self.to(Way::Kafka, now);
        true
    }

    /// The drain failed: what is left is not on its way.
    pub(super) fn stuck(&mut self) {
        self.few_since = None;
    }

    fn to(&mut self, way: Way, now: Instant) {
        self.way = way;
        self.since = now;
        self.failures = 0;
        self.few_since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn fail_over(ways: &mut Ways, now: Instant) {
        for _ in 1..FAILURES_IN_A_ROW {
            assert!(!ways.failed(now, Failure::Unacknowledged));
        }
        assert!(ways.failed(now, Failure::Unacknowledged));
        assert_eq!(ways.first(), Way::Spool);
    }

    /// Drains with nothing left every 100 ms until the way back opens.
    fn time_to_return(ways: &mut Ways, from: Instant) -> Duration {
        let mut now = from;
        while !ways.drained(now, 0) {
            now += SECOND / 10;
        }
        now - from
    }

    #[test]
    fn only_failures_in_a_row_switch() {
        let now = Instant::now();
        let mut ways = Ways::new(now, false);
        for _ in 0..100 {
            for _ in 1..FAILURES_IN_A_ROW {
                assert!(!ways.failed(now, Failure::Unacknowledged));
            }
            ways.succeeded();
        }
        assert_eq!(ways.first(), Way::Kafka);
        fail_over(&mut ways, now);
        assert!(!ways.failed(now, Failure::QueueFull), "once is enough");
    }

    #[test]
    fn a_full_queue_switches_at_once() {
        let now = Instant::now();
        let mut ways = Ways::new(now, false);
        assert!(ways.failed(now, Failure::QueueFull));
        assert_eq!(ways.first(), Way::Spool);
    }

    #[test]
    fn a_backlog_of_a_former_start_goes_first() {
        let now = Instant::now();
        let mut ways = Ways::new(now, true);
        assert_eq!(ways.first(), Way::Spool);
        assert!(!ways.drained(now, 5));
        assert!(ways.drained(now, 0), "no failure was seen: no stay");
    }

    #[test]
    fn the_way_back_opens_when_nothing_is_left_and_the_stay_is_over() {
        let now = Instant::now();
        let mut ways = Ways::new(now, false);
        fail_over(&mut ways, now);
        assert!(!ways.drained(now + MIN_STAY, 1));
        assert!(!ways.drained(now + MIN_STAY - SECOND / 10, 0));
        assert!(ways.drained(now + MIN_STAY, 0));
        assert!(!ways.drained(now + MIN_STAY, 0), "once is enough");
    }

    #[test]
    fn a_busy_receiver_returns_with_few_left_and_never_with_many() {
        let now = Instant::now();
        let mut ways = Ways::new(now, false);
        fail_over(&mut ways, now);
        for step in 0..100 {
            assert!(!ways.drained(now + SECOND * step, FEW + 1));
        }
        let now = now + SECOND * 100;
        assert!(!ways.drained(now, FEW));
        assert!(!ways.drained(now + CATCH_UP_LIMIT / 2, 1));
        ways.stuck();
        assert!(
            !ways.drained(now + CATCH_UP_LIMIT, 1),
            "the wait begins anew"
        );
        assert!(ways.drained(now + CATCH_UP_LIMIT * 2, 1));
    }

    #[test]
    fn a_kafka_that_fails_again_soon_is_left_for_longer_each_time() {
        let mut now = Instant::now();
        let mut ways = Ways::new(now, false);
        let mut stays = Vec::new();
        for _ in 0..7 {
            fail_over(&mut ways, now);
            let stay = time_to_return(&mut ways, now);
            stays.push(stay.as_secs());
            now += stay + SECOND;
        }
        assert_eq!(stays, [2, 4, 8, 16, 30, 30, 30]);
        now += STEADY;
        fail_over(&mut ways, now);
        assert_eq!(time_to_return(&mut ways, now), MIN_STAY);
    }

    #[test]
    fn a_kafka_that_works_every_other_second_is_followed_a_few_times_an_hour() {
        let start = Instant::now();
        let mut ways = Ways::new(start, false);
        let mut switches = 0;
        // Ten publishes or drains a second for an hour; even seconds fail.
        for step in 0..36_000 {
            let now = start + SECOND / 10 * step;
            let works = (step / 10) % 2 == 1;
            switches += u32::from(match (ways.first(), works) {
                (Way::Kafka, false) => ways.failed(now, Failure::Unacknowledged),
                (Way::Kafka, true) => {
                    ways.succeeded();
                    false
                }
                (Way::Spool, true) => ways.drained(now, 0),
                (Way::Spool, false) => {
                    ways.stuck();
                    false
                }
            });
        }
        assert!((2..=260).contains(&switches), "{switches} in an hour");
    }
}
