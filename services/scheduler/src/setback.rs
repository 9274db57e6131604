//! Programs that fail one after the other are started ever later, as service managers do with what
//! keeps crashing: starting and ending a job takes the node far more work than asking for it takes
//! the tenant, and others wait meanwhile. A pure state machine; time arrives as an argument.

use std::collections::BTreeMap;

use distos_abi::{Fault, TenantId};

/// Failures in a row after which nothing waits yet: whoever tries something out is not held up.
const FREE_FAILURES: u32 = 3;
/// The wait after the next failure. Each one more doubles it.
const FIRST_WAIT_MS: u64 = 100;
/// The longest wait between two jobs.
const LONGEST_WAIT_MS: u64 = 1000;
/// Failures are forgotten this long after the last.
const FORGET_MS: u64 = 10_000;
/// Jobs of a tenant that may wait: each holds its program in memory. Whoever comes beyond it is told to
/// come back.
const MAX_WAITING: u64 = 3;

/// Every tenant's failures in a row.
#[derive(Clone, Debug, Default)]
pub struct Setbacks {
    tenants: BTreeMap<TenantId, Setback>,
}

#[derive(Clone, Copy, Debug)]
struct Setback {
    failures: u32,
    last_ms: u64,
    /// When the next job may start.
    next_ms: u64,
}

impl Setback {
    fn wait_ms(&self) -> u64 {
        let doublings = self.failures.saturating_sub(FREE_FAILURES);
        match doublings.checked_sub(1) {
            None => 0,
            Some(doublings) => (FIRST_WAIT_MS << doublings.min(16)).min(LONGEST_WAIT_MS),
        }
    }
}

impl Setbacks {
    /// A job of the tenant's ended otherwise than well: with this fault, or cancelled. What this node
    /// did to it does not count.
    pub fn failed(&mut self, tenant: TenantId, now_ms: u64, fault: Option<&Fault>) {
        use Fault::{Internal, StaleAttestation, Unavailable};
        if let Some(Unavailable { .. } | StaleAttestation(_) | Internal(_)) = fault {
            return;
        }
        self.forget(now_ms);
        let none = Setback { failures: 0, last_ms: now_ms, next_ms: now_ms };
        let setback = self.tenants.entry(tenant).or_insert(none);
        setback.failures = setback.failures.saturating_add(1);
        setback.last_ms = now_ms;
        setback.next_ms = setback.next_ms.max(now_ms.saturating_add(setback.wait_ms()));
    }

    /// A job of the tenant's ended well.
    pub fn succeeded(&mut self, tenant: TenantId) {
        self.tenants.remove(&tenant);
    }

    /// How long until the tenant may start a job.
    pub fn wait_ms(&self, tenant: TenantId, now_ms: u64) -> u64 {
        self.tenants.get(&tenant).map_or(0, |setback| setback.next_ms.saturating_sub(now_ms))
    }

    /// Takes the tenant's next turn to start a job, and says how long it is until then.
    /// [`Fault::Unavailable`] if others of its jobs wait already.
    pub fn take_turn(&mut self, tenant: TenantId, now_ms: u64) -> Result<u64, Fault> {
        self.forget(now_ms);
        let Some(setback) = self.tenants.get_mut(&tenant) else { return Ok(0) };
        let wait = setback.next_ms.saturating_sub(now_ms);
        if wait > MAX_WAITING * setback.wait_ms() {
            let why = format!("your last {} jobs failed; the next ones wait", setback.failures);
            return Err(Fault::unavailable(wait, why));
        }
        setback.next_ms = setback.next_ms.max(now_ms).saturating_add(setback.wait_ms());
        Ok(wait)
    }

    fn forget(&mut self, now_ms: u64) {
        self.tenants.retain(|_, setback| setback.last_ms.saturating_add(FORGET_MS) > now_ms);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RED: TenantId = TenantId(1);
    const BLUE: TenantId = TenantId(2);

    fn fault() -> Fault {
        Fault::LimitExceeded("memory".into())
    }

    #[test]
    fn who_tries_something_out_is_not_held_up() {
        let mut setbacks = Setbacks::default();
        for _ in 0..FREE_FAILURES {
            assert_eq!(setbacks.take_turn(RED, 0), Ok(0));
            setbacks.failed(RED, 0, Some(&fault()));
        }
        assert_eq!(setbacks.take_turn(RED, 0), Ok(0));
        setbacks.failed(RED, 0, Some(&fault()));
        assert_eq!(setbacks.wait_ms(RED, 0), FIRST_WAIT_MS);
        assert_eq!(setbacks.wait_ms(BLUE, 0), 0, "another tenant waits for nobody's failures");
    }

    #[test]
    fn a_job_that_ends_well_or_ten_quiet_seconds_end_the_wait() {
        let mut setbacks = Setbacks::default();
        (0..9).for_each(|_| setbacks.failed(RED, 0, Some(&fault())));
        assert!(setbacks.wait_ms(RED, 0) > 0);
        setbacks.succeeded(RED);
        assert_eq!(setbacks.wait_ms(RED, 0), 0);
        (0..9).for_each(|_| setbacks.failed(RED, 0, Some(&fault())));
        assert_eq!(setbacks.take_turn(RED, FORGET_MS), Ok(0));
        setbacks.failed(RED, FORGET_MS, Some(&fault()));
        assert_eq!(setbacks.wait_ms(RED, FORGET_MS), 0, "it counts from the beginning");
    }

    #[test]
    fn what_is_not_the_programs_doing_does_not_count() {
        let mut setbacks = Setbacks::default();
        for _ in 0..100 {
            setbacks.failed(RED, 0, Some(&Fault::unavailable(0, "the executor was restarted")));
            setbacks.failed(RED, 0, Some(&Fault::StaleAttestation("too old".into())));
        }
        assert_eq!(setbacks.take_turn(RED, 0), Ok(0));
    }

    #[test]
    fn cancelling_or_spoiling_ones_own_jobs_is_no_way_around() {
        let mut setbacks = Setbacks::default();
        (0..FREE_FAILURES).for_each(|_| setbacks.failed(RED, 0, None));
        setbacks.failed(RED, 0, Some(&Fault::Revoked));
        assert_eq!(setbacks.wait_ms(RED, 0), FIRST_WAIT_MS);
    }

    #[test]
    fn few_jobs_wait_at_a_time() {
        let mut setbacks = Setbacks::default();
        (0..4).for_each(|_| setbacks.failed(RED, 0, Some(&fault())));
        let waiting = (0..50).filter(|_| setbacks.take_turn(RED, 0).is_ok()).count() as u64;
        assert!(waiting <= MAX_WAITING + 1, "{waiting}");
    }

    proptest! {
        /// However many a tenant starts at the same time, and whatever became of those before.
        #[test]
        fn jobs_of_a_tenant_whose_jobs_fail_start_apart(pauses in prop::collection::vec(0u64..300, 40..80)) {
            let mut setbacks = Setbacks::default();
            (0..20).for_each(|_| setbacks.failed(RED, 0, Some(&fault())));
            let (mut now, mut last) = (0, 0);
            for pause in pauses {
                now += pause;
                match setbacks.take_turn(RED, now) {
                    Ok(wait) => {
                        prop_assert!(now + wait >= last + LONGEST_WAIT_MS);
                        prop_assert!(wait <= MAX_WAITING * LONGEST_WAIT_MS);
                        last = now + wait;
                    }
                    Err(fault) => prop_assert_eq!(fault.name(), "unavailable"),
                }
                setbacks.failed(RED, now, Some(&fault()));
            }
        }
    }
}
