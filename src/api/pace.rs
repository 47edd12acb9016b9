//! When the next request may be sent: the shared budget, the pause a 429 asks for, the delays of retries.
//!
//! Owns the one [`Pace`] that all clones of an `Api` share. Refuses to know what is sent. Guarantees: at
//! most `requests_per_second` requests start per second (and a tenth of that at once), at most
//! `max_in_flight` are under way, and a 429's `Retry-After` holds back all of them; every wait for a
//! retry is bounded by the settings.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use backon::BackoffBuilder;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use jiff::Timestamp;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::Settings;
use crate::telemetry;

/// Share of a second's budget that may be sent at once.
const BURST_DIVISOR: u32 = 10;
/// Growth of the delay between two tries.
const BACKOFF_FACTOR: f32 = 2.0;
/// Most that is added to a `Retry-After`, so that those who wait for it do not all come back at once.
const MAX_RETRY_AFTER_JITTER: Duration = Duration::from_secs(1);
/// A `Retry-After` above this is a mistake of the sender's and is ignored, rather than capped.
const ABSURD_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug)]
pub(super) struct Pace {
    budget: DefaultDirectRateLimiter,
    in_flight: Semaphore,
    held_until: Mutex<Option<Instant>>,
    answered_at: Mutex<Option<Instant>>,
    calls: AtomicU64,
    waited_budget_us: AtomicU64,
    waited_retry_us: AtomicU64,
}

/// What a request waited for, as the label of the metric.
#[derive(Debug, Clone, Copy)]
pub(super) enum Cause {
    Budget,
    Retry,
}

impl Pace {
    pub(super) fn new(settings: &Settings) -> Self {
        let rate = settings.requests_per_second;
        let burst = NonZeroU32::new(rate.get() / BURST_DIVISOR).unwrap_or(NonZeroU32::MIN);
        Pace {
            budget: RateLimiter::direct(Quota::per_second(rate).allow_burst(burst)),
            in_flight: Semaphore::new(settings.max_in_flight.get() as usize),
            held_until: Mutex::new(None),
            answered_at: Mutex::new(None),
            calls: AtomicU64::new(0),
            waited_budget_us: AtomicU64::new(0),
            waited_retry_us: AtomicU64::new(0),
        }
    }

    /// Waits until a request may be sent. The permit is to be held until its answer is read.
    pub(super) async fn turn(&self) -> SemaphorePermit<'_> {
        let asked = Instant::now();
        let permit = self
            .in_flight
            .acquire()
            .await
            .expect("the semaphore is never closed");
        // Looked at once: those that pass together when a pause ends are spread by the budget.
        let held = *lock(&self.held_until);
        if let Some(until) = held.filter(|until| *until > asked) {
            tokio::time::sleep_until(until).await;
        }
        self.budget.until_ready().await;
        self.waited(Cause::Budget, asked.elapsed());
        self.calls.fetch_add(1, Ordering::Relaxed);
        permit
    }

    /// Holds back every request for `delay`.
    pub(super) fn hold(&self, delay: Duration) {
        let until = Instant::now() + delay;
        let mut held = lock(&self.held_until);
        if held.is_none_or(|before| before < until) {
            *held = Some(until);
        }
    }

    #[cfg(test)]
    pub(super) fn is_held(&self) -> bool {
        lock(&self.held_until).is_some_and(|until| until > Instant::now())
    }

    /// Turns taken.
    pub(super) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    pub(super) fn answered(&self) {
        *lock(&self.answered_at) = Some(Instant::now());
    }

    pub(super) fn answered_since(&self, instant: Instant) -> bool {
        lock(&self.answered_at).is_some_and(|at| at >= instant)
    }

    /// Counts a wait. Counters hold whole numbers: what a wait lacks to a second is carried on.
    pub(super) fn waited(&self, cause: Cause, wait: Duration) {
        let (total_us, label) = match cause {
            Cause::Budget => (&self.waited_budget_us, "budget"),
            Cause::Retry => (&self.waited_retry_us, "retry"),
        };
        let wait_us = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX);
        let before = total_us.fetch_add(wait_us, Ordering::Relaxed);
        let seconds = before.wrapping_add(wait_us) / 1_000_000 - before / 1_000_000;
        metrics::counter!(telemetry::API_WAIT_SECONDS, "cause" => label).increment(seconds);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The delays before the second and each later try: exponential, jittered, one fewer than the tries.
pub(super) fn delays(settings: &Settings) -> impl Iterator<Item = Duration> + Send + use<> {
    backon::ExponentialBuilder::new()
        .with_factor(BACKOFF_FACTOR)
        .with_min_delay(settings.min_delay)
        .with_max_delay(settings.max_delay)
        .with_max_times(settings.max_attempts.get() as usize - 1)
        .with_jitter()
        .build()
}

/// The delay before the next try, where the API asked for `asked` and our own next delay is `own`.
pub(super) fn delay(asked: Option<Duration>, own: Duration, cap: Duration) -> Duration {
    match asked {
        Some(asked) => asked.min(cap) + own.min(MAX_RETRY_AFTER_JITTER),
        None => own,
    }
}

/// Reads a `Retry-After` (RFC 9110, 10.2.3): seconds, or one of its three forms of a date, which counts
/// from `now` (the answer's own `Date` where it has one). A date that has passed is no delay. What is
/// neither, or is more than a day, is `None`.
pub(super) fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    let delay = if value.bytes().all(|b| b.is_ascii_digit()) {
        Duration::from_secs(value.parse().ok()?)
    } else {
        let wait = http_date(value)?.duration_since(now);
        Duration::try_from(wait).unwrap_or(Duration::ZERO)
    };
    (delay <= ABSURD_RETRY_AFTER).then_some(delay)
}

/// Reads an HTTP date.
pub(super) fn http_date(value: &str) -> Option<Timestamp> {
    if let Ok(zoned) = jiff::fmt::rfc2822::parse(value) {
        return Some(zoned.timestamp());
    }
    ["%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"]
        .into_iter()
        .find_map(|format| jiff::civil::DateTime::strptime(format, value).ok())
        .and_then(|utc| jiff::tz::Offset::UTC.to_timestamp(utc).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_in_every_form() {
        let now: Timestamp = "1994-11-06T08:49:00Z".parse().unwrap();
        let seconds = |n| Some(Duration::from_secs(n));
        for (value, delay) in [
            ("0", seconds(0)),
            (" 120 ", seconds(120)),
            ("86400", seconds(86_400)),
            ("86401", None),
            ("99999999999999999999999", None),
            ("-5", None),
            ("+5", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
            ("Sun, 06 Nov 1994 08:49:37 GMT", seconds(37)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", seconds(37)),
            ("Sun Nov  6 08:49:37 1994", seconds(37)),
            ("Sun, 06 Nov 1994 08:48:37 GMT", seconds(0)),
            ("Sun, 06 Nov 2094 08:49:37 GMT", None),
        ] {
            assert_eq!(retry_after(value, now), delay, "{value:?}");
        }
    }

    #[test]
    fn an_asked_delay_is_capped_and_jittered() {
        let ms = Duration::from_millis;
        assert_eq!(delay(None, ms(70), ms(1_000)), ms(70));
        assert_eq!(delay(Some(ms(500)), ms(70), ms(1_000)), ms(570));
        assert_eq!(delay(Some(ms(9_000)), ms(5_000), ms(1_000)), ms(2_000));
    }

    proptest::proptest! {
        #[test]
        fn retry_after_never_panics(value in "\\PC{0,40}") {
            let _ = retry_after(&value, Timestamp::UNIX_EPOCH);
        }
    }
}
