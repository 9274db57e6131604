//! Shares of time that somebody may use, as token buckets. Time arrives as an argument.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A share of time: one part in `part`, of which `most` is saved up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    pub(crate) part: u32,
    pub(crate) most: Duration,
}

/// Time that somebody may still use (a token bucket). It may be overdrawn once: a turn is taken
/// whole, and paid for before the next.
#[derive(Debug)]
pub(crate) struct Budget {
    rate: Rate,
    /// In nanoseconds; negative is debt.
    left: i64,
    /// When `left` was true, since a fixed moment.
    at: Duration,
}

impl Budget {
    pub(crate) fn full(rate: Rate, now: Duration) -> Budget {
        Budget { rate, left: nanos(rate.most), at: now }
    }

    fn earn(&mut self, now: Duration) {
        let earned = nanos(now.saturating_sub(self.at) / self.rate.part);
        self.left = self.left.saturating_add(earned).min(nanos(self.rate.most));
        self.at = self.at.max(now);
    }

    pub(crate) fn spend(&mut self, now: Duration, took: Duration) {
        self.earn(now);
        self.left = self.left.saturating_sub(nanos(took));
    }

    /// Gives back what was spent.
    pub(crate) fn refund(&mut self, took: Duration) {
        self.left = self.left.saturating_add(nanos(took)).min(nanos(self.rate.most));
    }

    /// How long until the next turn; zero if it may be now.
    pub(crate) fn debt(&mut self, now: Duration) -> Duration {
        self.earn(now);
        Duration::from_nanos(self.left.min(0).unsigned_abs()) * self.rate.part
    }

    /// How long until as much is saved up as may be.
    pub(crate) fn until_full(&mut self, now: Duration) -> Duration {
        self.earn(now);
        let missing = nanos(self.rate.most).saturating_sub(self.left);
        Duration::from_nanos(missing.unsigned_abs()) * self.rate.part
    }
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

/// Processor time of this thread: what a turn takes, however long others keep it from running.
pub(crate) fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn what_strangers_may_use_is_a_share_of_the_time_that_passes() {
        let rate = Rate { part: 4, most: 2 * MS };
        let mut budget = Budget::full(rate, Duration::ZERO);
        let (mut now, mut used) = (Duration::ZERO, Duration::ZERO);
        while now < 1000 * MS {
            now += budget.debt(now);
            budget.spend(now, MS / 2);
            used += MS / 2;
        }
        let most = now / 4 + 2 * MS + MS / 2;
        assert!(used <= most, "{used:?} of {now:?}");
        assert!(used + MS >= now / 4, "{used:?} of {now:?}");
    }

    #[test]
    fn who_waited_long_has_saved_no_more_than_the_most() {
        let mut budget = Budget::full(Rate { part: 4, most: 2 * MS }, Duration::ZERO);
        budget.spend(Duration::ZERO, 3 * MS);
        assert_eq!(budget.debt(Duration::ZERO), 4 * MS);
        assert_eq!(budget.debt(4 * MS), Duration::ZERO);
        assert!(!budget.until_full(8 * MS).is_zero());
        assert!(budget.until_full(1000 * MS).is_zero());
        budget.spend(1000 * MS, 2 * MS + MS / 4);
        assert_eq!(budget.debt(1000 * MS), MS);
        assert_eq!(budget.debt(900 * MS), MS, "a clock that went back pays nobody's debt");
    }
}
