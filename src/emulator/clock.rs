//! The time that the emulator lives in.
//!
//! Owns what "now" is for REST and for everything that happens by itself: the machine's clock, or one that
//! stands still, and in either case the seconds that somebody advanced it by. Refuses to know what is due
//! (`state`).
//!
//! Guarantees: it never runs backwards by itself. A clock that stands still makes two runs of the same
//! requests answer with the same bytes.
//!
//! Fails with [`TooFar`].

use std::sync::atomic::{AtomicU64, Ordering};

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::lifecycle::Clock;

/// How far a clock can be advanced in all: ten years.
pub(crate) const MAX_ADVANCED_S: u64 = 10 * 366 * 86_400;

/// More than [`MAX_ADVANCED_S`] in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("advanceSeconds: the clock cannot be advanced by more than {MAX_ADVANCED_S} s in all")]
pub(crate) struct TooFar;

/// A clock that can be advanced.
#[derive(Debug)]
pub(crate) struct EmulatedClock {
    base: Base,
    advanced_s: AtomicU64,
}

#[derive(Debug)]
enum Base {
    Running(Clock),
    Standing(Timestamp),
}

/// Whether time passes by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum Mode {
    Running,
    Standing,
}

/// What `GET /emulator/clock` shows.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Shown {
    #[serde(serialize_with = "super::resource::rfc3339")]
    now: Timestamp,
    mode: Mode,
    advanced_seconds: u64,
}

impl EmulatedClock {
    /// Stands still at `start` where it is given; else follows `clock`.
    pub(crate) fn new(start: Option<Timestamp>, clock: Clock) -> Self {
        EmulatedClock {
            base: start.map_or(Base::Running(clock), Base::Standing),
            advanced_s: AtomicU64::new(0),
        }
    }

    /// The time now.
    pub(crate) fn now(&self) -> Timestamp {
        let base = match &self.base {
            Base::Running(clock) => clock.now(),
            Base::Standing(start) => *start,
        };
        let advanced = self.advanced_s.load(Ordering::Relaxed);
        let advanced = i64::try_from(advanced).expect("MAX_ADVANCED_S fits i64");
        // Only a start near the year 9999 could end beyond what a timestamp holds.
        base.saturating_add(SignedDuration::from_secs(advanced))
            .unwrap_or(base)
    }

    /// Whether time passes by itself.
    pub(crate) fn mode(&self) -> Mode {
        match self.base {
            Base::Running(_) => Mode::Running,
            Base::Standing(_) => Mode::Standing,
        }
    }

    /// Advances it.
    pub(crate) fn advance(&self, seconds: u64) -> Result<(), TooFar> {
        let further = |advanced: u64| {
            let sum = advanced.checked_add(seconds)?;
            (sum <= MAX_ADVANCED_S).then_some(sum)
        };
        self.advanced_s
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, further)
            .map(|_| ())
            .map_err(|_| TooFar)
    }

    /// What it shows.
    pub(crate) fn shown(&self) -> Shown {
        Shown {
            now: self.now(),
            mode: self.mode(),
            advanced_seconds: self.advanced_s.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_standing_clock_moves_only_when_it_is_advanced() {
        let clock = EmulatedClock::new(Some(at("2026-01-01T00:00:00Z")), Clock::system());
        assert_eq!(clock.now(), at("2026-01-01T00:00:00Z"));
        clock.advance(3_600).unwrap();
        assert_eq!(clock.now(), at("2026-01-01T01:00:00Z"));
        assert_eq!(clock.advance(MAX_ADVANCED_S), Err(TooFar));
        assert_eq!(clock.advance(u64::MAX), Err(TooFar));
        assert_eq!(
            clock.now(),
            at("2026-01-01T01:00:00Z"),
            "a refusal changes nothing"
        );
    }

    #[test]
    fn a_running_clock_keeps_its_advance() {
        let clock = Clock::from_fn(|| "2026-01-01T00:00:00Z".parse().unwrap());
        let clock = EmulatedClock::new(None, clock);
        clock.advance(90).unwrap();
        assert_eq!(clock.now(), at("2026-01-01T00:01:30Z"));
        let shown = serde_json::to_value(clock.shown()).unwrap();
        assert_eq!(shown["mode"], "RUNNING");
        assert_eq!(shown["advancedSeconds"], 90);
    }
}
