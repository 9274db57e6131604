//! Meters: what is held through a capability and all of its descendants together.
//!
//! A meter belongs to a [`CapId`], never to a facet, so that two children of one capability share
//! their parent's quota instead of doubling it (C1).

use std::cell::RefCell;
use std::collections::HashMap;

use distos_abi::{CapId, Fault, Meter};

/// One ancestor's limits, as the kernel told them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) cap: CapId,
    pub(crate) quota_bytes: u64,
    pub(crate) quota_tasks: u32,
    pub(crate) rate_per_s: u32,
}

impl Limits {
    fn limit(&self, meter: Meter) -> u64 {
        match meter {
            Meter::Bytes => self.quota_bytes,
            Meter::Tasks if self.quota_tasks == u32::MAX => u64::MAX,
            Meter::Tasks => u64::from(self.quota_tasks),
            Meter::Slots | Meter::Rate | Meter::Calls => u64::MAX,
        }
    }
}

/// All meters of one vat.
#[derive(Debug, Default)]
pub struct Meters {
    used: RefCell<HashMap<(CapId, Meter), u64>>,
    /// Calls in the current second, by capability.
    calls: RefCell<HashMap<CapId, (u64, u32)>>,
}

impl Meters {
    /// Counts what a restarted service finds that it holds for a capability's lineage. There is
    /// no limit here: it was admitted before.
    pub fn restore(&self, lineage: &[CapId], meter: Meter, amount: u64) {
        let mut used = self.used.borrow_mut();
        for cap in lineage {
            let count = used.entry((*cap, meter)).or_default();
            *count = count.saturating_add(amount);
        }
    }

    /// Gives back what was charged to a lineage.
    pub fn refund(&self, lineage: &[CapId], meter: Meter, amount: u64) {
        let mut used = self.used.borrow_mut();
        for cap in lineage {
            if let Some(count) = used.get_mut(&(*cap, meter)) {
                *count = count.saturating_sub(amount);
                if *count == 0 {
                    used.remove(&(*cap, meter));
                }
            }
        }
    }

    /// What is charged to one capability and its descendants.
    pub fn used(&self, cap: CapId, meter: Meter) -> u64 {
        self.used.borrow().get(&(cap, meter)).copied().unwrap_or(0)
    }

    /// Charges every ancestor, or none if one of them would pass its limit.
    pub(crate) fn charge(
        &self,
        lineage: &[Limits],
        meter: Meter,
        amount: u64,
    ) -> Result<(), Fault> {
        for ancestor in lineage {
            let wanted = self.used(ancestor.cap, meter).saturating_add(amount);
            let limit = ancestor.limit(meter);
            if wanted > limit {
                return Err(Fault::OverQuota { meter, limit, wanted });
            }
        }
        let mut used = self.used.borrow_mut();
        for ancestor in lineage {
            let count = used.entry((ancestor.cap, meter)).or_default();
            *count = count.saturating_add(amount);
        }
        Ok(())
    }

    /// Counts one call against every ancestor's rate, in windows of one second.
    pub(crate) fn tick(&self, lineage: &[Limits], now_ms: u64) -> Result<(), Fault> {
        let second = now_ms / 1000;
        let mut calls = self.calls.borrow_mut();
        let limited = || lineage.iter().filter(|a| a.rate_per_s != u32::MAX);
        for ancestor in limited() {
            let (window, count) = calls.get(&ancestor.cap).copied().unwrap_or((second, 0));
            if window == second && count >= ancestor.rate_per_s {
                let limit = u64::from(ancestor.rate_per_s);
                return Err(Fault::OverQuota { meter: Meter::Rate, limit, wanted: limit + 1 });
            }
        }
        for ancestor in limited() {
            let entry = calls.entry(ancestor.cap).or_insert((second, 0));
            *entry = if entry.0 == second { (second, entry.1 + 1) } else { (second, 1) };
        }
        Ok(())
    }

    /// Forgets what no live capability can ask about again.
    pub(crate) fn forget_idle_rates(&self, now_ms: u64) {
        let second = now_ms / 1000;
        self.calls.borrow_mut().retain(|_, (window, _)| *window + 1 >= second);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(cap: u64, quota_bytes: u64, rate_per_s: u32) -> Limits {
        Limits { cap: CapId(cap), quota_bytes, quota_tasks: u32::MAX, rate_per_s }
    }

    #[test]
    fn two_children_cannot_double_their_parents_quota() {
        let meters = Meters::default();
        let parent = limits(1, 100, u32::MAX);
        let (a, b) = ([parent, limits(2, 80, u32::MAX)], [parent, limits(3, 80, u32::MAX)]);
        meters.charge(&a, Meter::Bytes, 70).unwrap();
        let fault = meters.charge(&b, Meter::Bytes, 70).unwrap_err();
        assert_eq!(fault, Fault::OverQuota { meter: Meter::Bytes, limit: 100, wanted: 140 });
        assert_eq!(meters.used(CapId(3), Meter::Bytes), 0, "a refused charge leaves no trace");
        meters.refund(&[CapId(1), CapId(2)], Meter::Bytes, 70);
        meters.charge(&b, Meter::Bytes, 70).unwrap();
    }

    #[test]
    fn a_charge_cannot_wrap_around() {
        let meters = Meters::default();
        let a = [limits(1, 100, u32::MAX)];
        meters.charge(&a, Meter::Bytes, 1).unwrap();
        assert!(meters.charge(&a, Meter::Bytes, u64::MAX).is_err());
        let unlimited = [limits(2, u64::MAX, u32::MAX)];
        meters.charge(&unlimited, Meter::Bytes, u64::MAX).unwrap();
        meters.charge(&unlimited, Meter::Bytes, 1).unwrap();
        assert_eq!(meters.used(CapId(2), Meter::Bytes), u64::MAX);
    }

    #[test]
    fn a_rate_holds_over_all_descendants_and_renews() {
        let meters = Meters::default();
        let (a, b) = ([limits(1, 0, 2)], [limits(1, 0, 2), limits(2, 0, u32::MAX)]);
        meters.tick(&a, 1000).unwrap();
        meters.tick(&b, 1001).unwrap();
        assert!(meters.tick(&a, 1999).is_err());
        meters.tick(&a, 2000).unwrap();
    }
}
