//! How many connections there are at once, and which of them goes when one more wants in.
//!
//! Owns the seats and when each occupant last began to wait for a request. Refuses to close anything: whoever
//! is asked to leave does so itself, and only while no request of its own has begun.
//!
//! Guarantees: never more occupants than seats. A connection that waits for a seat gets one as soon as
//! another has said nothing whole for [`GRACE`], longest first, so that clients that are idle or drip their
//! heads never keep out one that has something to say. Requests in progress are never cut off. While one waits,
//! [`Seat::is_wanted`] tells the others that their next answer is to be their last.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

/// Shortest time that an occupant has for a request's head while others wait: several round trips.
pub(super) const GRACE: Duration = Duration::from_millis(500);
/// Pause between two looks at who could leave.
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// States of an occupant besides the milliseconds at which it began to wait.
const BUSY: u64 = u64::MAX;
const LEAVING: u64 = u64::MAX - 1;

/// All seats.
#[derive(Debug)]
pub(super) struct Seats {
    free: Arc<Semaphore>,
    /// How many wait for a seat.
    wanting: AtomicUsize,
    began: Instant,
    occupants: Mutex<Occupants>,
}

#[derive(Debug, Default)]
struct Occupants {
    next: u64,
    by_number: HashMap<u64, Arc<Occupant>>,
}

#[derive(Debug)]
struct Occupant {
    /// Milliseconds since `began`, or one of the other states.
    waits_since: AtomicU64,
    leave: Notify,
}

/// A seat that is taken, until it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Arc<Seats>,
    number: u64,
    occupant: Arc<Occupant>,
    _permit: OwnedSemaphorePermit,
}

impl Seats {
    pub(super) fn new(count: usize) -> Arc<Seats> {
        Arc::new(Seats {
            free: Arc::new(Semaphore::new(count)),
            wanting: AtomicUsize::new(0),
            began: Instant::now(),
            occupants: Mutex::default(),
        })
    }

    /// Waits for a seat. Cancel-safe.
    pub(super) async fn take(self: &Arc<Self>) -> Seat {
        // One that is free is taken before anybody is asked for his.
        let permit = match Arc::clone(&self.free).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => self.wait().await,
        };
        let occupant = Arc::new(Occupant {
            waits_since: AtomicU64::new(self.now()),
            leave: Notify::new(),
        });
        let mut occupants = self.occupants();
        let number = occupants.next;
        occupants.next += 1;
        let same = Arc::clone(&occupant);
        occupants.by_number.insert(number, same);
        drop(occupants);
        Seat {
            seats: Arc::clone(self),
            number,
            occupant,
            _permit: permit,
        }
    }

    async fn wait(&self) -> OwnedSemaphorePermit {
        let _wanting = Wanting::one_more(&self.wanting);
        loop {
            self.ask_one();
            let acquire = Arc::clone(&self.free).acquire_owned();
            if let Ok(permit) = timeout(LOOK_PAUSE, acquire).await {
                return permit.expect("the semaphore is never closed");
            }
        }
    }

    /// Asks whoever has waited longest, and long enough, to leave.
    fn ask_one(&self) {
        let grace = u64::try_from(GRACE.as_millis()).expect("a short time");
        let latest = self.now().checked_sub(grace);
        let occupants = self.occupants();
        let waiting = occupants.by_number.values().filter_map(|occupant| {
            let since = occupant.waits_since.load(Ordering::Acquire);
            (Some(since) <= latest).then_some((since, occupant))
        });
        let Some((since, longest)) = waiting.min_by_key(|(since, _)| *since) else {
            return;
        };
        let order = (Ordering::AcqRel, Ordering::Acquire);
        let asked = (longest.waits_since).compare_exchange(since, LEAVING, order.0, order.1);
        if asked.is_ok() {
            longest.leave.notify_one();
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).expect("no process lives that long")
    }

    fn occupants(&self) -> MutexGuard<'_, Occupants> {
        self.occupants
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts one that waits, also when it gives up.
struct Wanting<'s>(&'s AtomicUsize);

impl<'s> Wanting<'s> {
    fn one_more(count: &'s AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Wanting(count)
    }
}

impl Drop for Wanting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Seat {
    /// Whether somebody waits for a seat, this or another.
    pub(super) fn is_wanted(&self) -> bool {
        self.seats.wanting.load(Ordering::Relaxed) > 0
    }

    /// A request has begun.
    pub(super) fn busy(&self) {
        self.occupant.waits_since.store(BUSY, Ordering::Release);
    }

    /// It has its answer, and the next one is waited for.
    pub(super) fn waits(&self) {
        let now = self.seats.now();
        self.occupant.waits_since.store(now, Ordering::Release);
    }

    /// Ends when another is to have the seat. Not where a request began at the same moment.
    pub(super) async fn wanted(&self) {
        loop {
            self.occupant.leave.notified().await;
            if self.is_leaving() {
                return;
            }
        }
    }

    /// Whether another is to have the seat, and no request has begun since.
    pub(super) fn is_leaving(&self) -> bool {
        self.occupant.waits_since.load(Ordering::Acquire) == LEAVING
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.occupants().by_number.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    async fn pass(time: Duration) {
        tokio::time::advance(time).await;
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_has_waited_longest_leaves_and_nobody_before_the_grace_is_over() {
        let seats = Seats::new(2);
        let first = seats.take().await;
        pass(GRACE / 4).await;
        let second = seats.take().await;
        let started = Instant::now();
        let mut third = std::pin::pin!(seats.take());
        tokio::select! {
            biased;
            _ = third.as_mut() => panic!("there are two seats"),
            () = second.wanted() => panic!("the first has waited longer"),
            () = first.wanted() => {}
        }
        let waited = GRACE / 4 + started.elapsed();
        assert!(
            (GRACE..=GRACE + 2 * LOOK_PAUSE).contains(&waited),
            "{waited:?}"
        );
        drop(first);
        assert!(second.is_wanted());
        drop(third.await);
        assert!(!second.is_wanted());
        drop(second);
        assert!(seats.occupants().by_number.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_in_progress_keeps_its_seat() {
        let seats = Seats::new(1);
        let seat = seats.take().await;
        seat.busy();
        let mut next = std::pin::pin!(seats.take());
        let waiting = timeout(GRACE * 20, next.as_mut()).await;
        assert!(waiting.is_err(), "the only seat is busy");
        // Answered, it has the same time as everybody.
        seat.waits();
        let early = timeout(GRACE / 2, async {
            tokio::select! { () = seat.wanted() => {}, _ = next.as_mut() => {} }
        });
        assert!(early.await.is_err());
        tokio::select! { () = seat.wanted() => {}, _ = next.as_mut() => panic!("it is taken") }
        // Its request began before it was gone: it stays.
        seat.busy();
        assert!(seat.wanted().now_or_never().is_none());
        drop(seat);
        next.await;
    }

    #[tokio::test(start_paused = true)]
    async fn with_free_seats_nobody_leaves() {
        let seats = Seats::new(2);
        let idle = seats.take().await;
        pass(GRACE * 10).await;
        drop(seats.take().await);
        let _second = seats.take().await;
        assert!(idle.wanted().now_or_never().is_none());
    }
}
