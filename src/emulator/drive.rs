//! Runs the traffic: takes conversations' steps in turn and hands them to the state machine.
//!
//! Owns when a step runs: how many conversations are open at once, how fast new ones begin, and the gate
//! by which somebody downstream holds everything back. Refuses to know what a step is.
//!
//! Guarantees: without a rate, the order of all steps depends on the seed alone. What is open is bounded.
//! A script whose conversation somebody else closed over REST ends there. Ends when all scripts have, or
//! at the stop.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::Shared;
use super::seeds;
use super::state::Refusal;
use super::traffic::{Plan, Script, Spacing};
use crate::lifecycle::Stop;

/// Conversations open at once.
const INTERLEAVED: usize = 32;
/// Steps between two turns for the other tasks of this thread, where nothing else waits.
const STEPS_A_TURN: u32 = 64;

/// How fast and how many.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// 0: until the stop.
    pub(crate) conversations: u64,
    /// Conversations that begin a second.
    pub(crate) rate: Option<f64>,
}

/// Runs the traffic of `plan` to its end.
pub(crate) async fn run(
    plan: Plan,
    pace: Pace,
    shared: Arc<Shared>,
    mut gate: watch::Receiver<bool>,
    stop: Stop,
) {
    let mut order = seeds::generator(plan.seed, seeds::ORDER_STREAM);
    let mut open: Vec<Script> = Vec::new();
    let mut begun = 0;
    let random = seeds::generator(plan.seed, seeds::ARRIVAL_STREAM);
    let mut starts = Starts::new(pace.rate, plan.profile.spacing(), random);
    let mut steps: u32 = 0;
    loop {
        match stop.race(gate.wait_for(|open| *open)).await {
            Some(Ok(_)) => {}
            // A dropped gate belongs to a dropped emulator.
            Some(Err(_)) | None => return,
        }
        while open.len() < INTERLEAVED && !pace.is_over(begun) && starts.take() {
            open.push(Script::new(&plan_at(&plan, pace, &shared), begun));
            begun += 1;
        }
        if open.is_empty() {
            if pace.is_over(begun) {
                return;
            }
            if stop.race(starts.wait()).await.is_none() {
                return;
            }
            continue;
        }
        let turn = order.random_range(0..open.len());
        let Some(step) = open[turn].next() else {
            open.swap_remove(turn);
            continue;
        };
        match stop.race(shared.carry_out(step.command, step.at)).await {
            Some(Ok(_)) => {}
            Some(Err(refusal @ Refusal::TooMany { .. })) => {
                tracing::warn!(%refusal, "the emulator is full: its traffic ends here");
                return;
            }
            Some(Err(refusal)) => {
                tracing::debug!(%refusal, "a conversation of the traffic was changed from outside");
                open.swap_remove(turn);
            }
            None => return,
        }
        steps = steps.wrapping_add(1);
        if steps.is_multiple_of(STEPS_A_TURN) {
            tokio::task::yield_now().await;
        }
    }
}

impl Pace {
    fn is_over(self, begun: u64) -> bool {
        self.conversations != 0 && begun >= self.conversations
    }
}

/// Endless traffic happens now, each conversation when it begins.
fn plan_at(plan: &Plan, pace: Pace, shared: &Shared) -> Plan {
    let mut plan = plan.clone();
    if pace.conversations == 0 {
        plan.base = shared.clock.now();
    }
    plan
}

/// When conversations may begin.
struct Starts {
    period: Duration,
    spacing: Spacing,
    random: ChaCha8Rng,
    next: Instant,
}

impl Starts {
    fn new(rate: Option<f64>, spacing: Spacing, random: ChaCha8Rng) -> Self {
        Starts {
            period: rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(1.0 / rate)),
            spacing,
            random,
            next: Instant::now(),
        }
    }

    /// Whether one may begin now. Time lost behind the gate is not made up for in a burst.
    fn take(&mut self) -> bool {
        let now = Instant::now();
        if now < self.next {
            return false;
        }
        let distance = self.distance();
        let earliest = now.checked_sub(self.period).unwrap_or(now);
        self.next = self.next.max(earliest) + distance;
        true
    }

    /// To the next start. Independent callers come at exponential distances.
    fn distance(&mut self) -> Duration {
        match self.spacing {
            Spacing::Even => self.period,
            Spacing::Random => {
                let draw: f64 = self.random.random_range(f64::EPSILON..1.0);
                self.period.mul_f64(-draw.ln())
            }
        }
    }

    async fn wait(&self) {
        sleep_until(self.next).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn both_spacings_keep_the_rate() {
        for spacing in [Spacing::Even, Spacing::Random] {
            let random = seeds::generator(1, 0);
            let mut starts = Starts::new(Some(50.0), spacing, random);
            let began = Instant::now();
            for _ in 0..5_000 {
                while !starts.take() {
                    starts.wait().await;
                }
            }
            let seconds = began.elapsed().as_secs_f64();
            assert!((90.0..110.0).contains(&seconds), "{spacing:?}: {seconds}");
        }
    }
}
