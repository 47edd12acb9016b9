//! Conversations that closed lately: whose callbacks are late. Pure.
//!
//! Most callbacks about communications come before the close and need nothing of the enricher; to look each one up in
//! the lake would cost more than the rest of its work. So the ids that closed within the re-check window are kept as
//! hashes, 16 bytes each and at most [`MOST`]. Two ids of one hash cost a look-up in the lake, and claim nothing.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::time::Duration;

use crate::table::row::Micros;

/// Conversations kept: a day of 400 a minute, and a half more. Above it the oldest half is forgotten.
const MOST: usize = 1_000_000;

/// What closed within the window.
#[derive(Debug)]
pub(super) struct Recent {
    window: Micros,
    most: usize,
    closed_at: HashMap<u64, Micros>,
}

impl Recent {
    /// Nothing yet; a window of zero keeps nothing.
    pub(super) fn new(window: Duration) -> Self {
        Recent {
            window: Micros::try_from(window.as_micros()).unwrap_or(Micros::MAX),
            most: MOST,
            closed_at: HashMap::new(),
        }
    }

    /// The start of the window; `None` where nothing is kept.
    pub(super) fn since(&self, now: Micros) -> Option<Micros> {
        (self.window > 0).then(|| now.saturating_sub(self.window))
    }

    /// `id` closed at this time, by the service's clock.
    pub(super) fn note(&mut self, id: &str, closed_at: Micros, now: Micros) {
        if self.since(now).is_none_or(|since| closed_at < since) {
            return;
        }
        self.closed_at.insert(hash(id), closed_at);
        if self.closed_at.len() > self.most {
            self.forget(now);
        }
    }

    /// When `id` closed, if what happened at `happened` came after it and is within the window. A callback without
    /// a time counts as late.
    pub(super) fn late(&self, id: &str, happened: Option<Micros>, now: Micros) -> Option<Micros> {
        let closed_at = *self.closed_at.get(&hash(id))?;
        let in_window = closed_at >= self.since(now)?;
        let after = happened.is_none_or(|at| at > closed_at);
        (in_window && after).then_some(closed_at)
    }

    fn forget(&mut self, now: Micros) {
        let since = self.since(now).unwrap_or(Micros::MAX);
        self.closed_at.retain(|_, at| *at >= since);
        if self.closed_at.len() > self.most {
            let mut times: Vec<Micros> = self.closed_at.values().copied().collect();
            let half = times.len() / 2;
            let (_, median, _) = times.select_nth_unstable(half);
            let median = *median;
            self.closed_at.retain(|_, at| *at > median);
        }
    }
}

fn hash(id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: Micros = 1_000;

    fn recent() -> Recent {
        Recent::new(Duration::from_micros(WINDOW as u64))
    }

    #[test]
    fn what_happened_after_the_close_is_late_and_what_happened_before_is_not() {
        let mut recent = recent();
        recent.note("v", 100, 110);
        assert_eq!(recent.late("v", Some(101), 120), Some(100));
        assert_eq!(recent.late("v", None, 120), Some(100));
        for at in [99, 100] {
            assert_eq!(recent.late("v", Some(at), 120), None);
        }
        assert_eq!(recent.late("w", Some(101), 120), None);
        assert_eq!(recent.late("v", Some(101), 100 + WINDOW), Some(100));
        assert_eq!(recent.late("v", Some(101), 101 + WINDOW), None);
        let mut off = Recent::new(Duration::ZERO);
        off.note("v", 100, 100);
        assert_eq!(off.late("v", Some(101), 100), None);
    }

    proptest! {
        #[test]
        fn it_is_bounded_and_the_newest_is_known(
            closes in prop::collection::vec((any::<u8>(), 0..3 * WINDOW), 1..80),
        ) {
            let mut recent = Recent { most: 8, ..recent() };
            let mut now = 0;
            for (id, closed_at) in closes {
                now = now.max(closed_at);
                recent.note(&id.to_string(), closed_at, now);
                prop_assert!(recent.closed_at.len() <= 8);
                if closed_at == now && recent.closed_at.values().all(|at| *at < now || recent.closed_at.len() < 4) {
                    prop_assert_eq!(recent.late(&id.to_string(), None, now), Some(closed_at));
                }
            }
        }
    }
}
