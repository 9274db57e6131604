//! Which orders were carried out lately, so that each has its effect once (N3). A pure table; time arrives as an
//! argument, and what is to be kept over a restart is handed out before an order has its effect.
//!
//! It is bounded because an order that is older than clocks may differ is refused for its age, whether it was carried out
//! or not, and need not be remembered.

use std::collections::BTreeMap;

use distos_abi::{Fault, TenantId};
use distos_types::{ORDER_DRIFT_US, OrderId};

/// Orders of one tenant that are remembered: so many it can have carried out in five minutes.
pub const MAX_ORDERS_OF_TENANT: usize = 128;
/// Orders of all tenants together.
pub const MAX_ORDERS: usize = 4096;

/// An order that was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Whose it was.
    pub tenant: TenantId,
    /// When it was made, in microseconds since the Unix epoch.
    pub at_us: u64,
}

impl Seen {
    /// Whether it would not be refused for its age alone.
    fn counts(&self, now_us: u64) -> bool {
        self.at_us.saturating_add(ORDER_DRIFT_US) >= now_us
    }
}

/// The orders that were carried out lately.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    seen: BTreeMap<OrderId, Seen>,
    /// The latest time at which one was: a clock that is set back makes none new that was forgotten.
    floor_us: u64,
}

impl Orders {
    /// As they were kept.
    pub fn restore(seen: BTreeMap<OrderId, Seen>, floor_us: u64) -> Orders {
        Orders { seen, floor_us }
    }

    /// What is to be kept: the orders, and the latest time.
    pub fn kept(&self) -> (&BTreeMap<OrderId, Seen>, u64) {
        (&self.seen, self.floor_us)
    }

    /// Whether an order of this tenant's, made at `at_us`, may have its effect at `now_us`.
    ///
    /// # Errors
    /// [`Fault::Unauthenticated`] if it had it before, or if clocks differ by too much; [`Fault::Unavailable`] if too
    /// many had theirs lately.
    pub fn check(
        &self,
        tenant: TenantId,
        id: OrderId,
        at_us: u64,
        now_us: u64,
    ) -> Result<(), Fault> {
        let ahead_us = self.floor_us.saturating_sub(now_us);
        if ahead_us > ORDER_DRIFT_US {
            let left_ms = (ahead_us - ORDER_DRIFT_US) / 1000 + 1;
            return Err(Fault::unavailable(
                left_ms,
                "this node's clock was ahead when an order was carried out: until it is that late, none is taken",
            ));
        }
        let now_us = now_us.max(self.floor_us);
        let apart_us = at_us.abs_diff(now_us);
        if apart_us > ORDER_DRIFT_US {
            return Err(Fault::Unauthenticated(format!(
                "this order was made {} seconds {}: clocks may differ by five minutes, so set yours, or make a new order",
                apart_us / 1_000_000,
                if at_us > now_us { "ahead" } else { "ago" },
            )));
        }
        if self.seen.contains_key(&id) {
            let why = "this order was carried out before: make a new one to run the job once more";
            return Err(Fault::Unauthenticated(why.into()));
        }
        let counting = || self.seen.values().filter(|seen| seen.counts(now_us));
        let own = || counting().filter(|seen| seen.tenant == tenant);
        if own().count() >= MAX_ORDERS_OF_TENANT {
            return Err(full(own(), now_us, "of yours"));
        }
        if counting().count() >= MAX_ORDERS {
            return Err(full(counting(), now_us, "of all tenants"));
        }
        Ok(())
    }

    /// Remembers that an order has its effect now, and forgets those that are too old to have it again.
    pub fn note(&mut self, id: OrderId, seen: Seen, now_us: u64) {
        self.floor_us = self.floor_us.max(now_us);
        let floor_us = self.floor_us;
        self.seen.retain(|_, seen| seen.counts(floor_us));
        self.seen.insert(id, seen);
    }
}

fn full<'a>(seen: impl Iterator<Item = &'a Seen>, now_us: u64, whose: &str) -> Fault {
    let first_us = seen.map(|seen| seen.at_us).min().unwrap_or(now_us);
    let wait_us = first_us.saturating_add(ORDER_DRIFT_US).saturating_sub(now_us);
    let why = format!("too many orders {whose} were carried out in the last five minutes");
    Fault::unavailable(wait_us / 1000 + 1, why)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const NOW_US: u64 = 1_800_000_000_000_000;
    const RED: TenantId = TenantId(1);
    const BLUE: TenantId = TenantId(2);

    fn id(number: u64) -> OrderId {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&number.to_le_bytes());
        OrderId(id)
    }

    fn takes(orders: &mut Orders, tenant: TenantId, number: u64, at_us: u64, now_us: u64) -> bool {
        let fine = orders.check(tenant, id(number), at_us, now_us).is_ok();
        if fine {
            orders.note(id(number), Seen { tenant, at_us }, now_us);
        }
        fine
    }

    #[test]
    fn an_order_has_its_effect_once_whoever_brings_it_and_only_while_it_is_new() {
        let mut orders = Orders::default();
        assert!(takes(&mut orders, RED, 1, NOW_US, NOW_US));
        assert!(!takes(&mut orders, RED, 1, NOW_US, NOW_US), "again");
        assert!(!takes(&mut orders, BLUE, 1, NOW_US, NOW_US), "by another");
        // Whoever makes several does not have to make them in the order in which they come.
        assert!(takes(&mut orders, RED, 2, NOW_US - 1, NOW_US));
        assert!(takes(&mut orders, RED, 3, NOW_US + ORDER_DRIFT_US, NOW_US));
        assert!(takes(&mut orders, RED, 4, NOW_US - ORDER_DRIFT_US, NOW_US));
        for apart_us in [ORDER_DRIFT_US + 1, 10 * ORDER_DRIFT_US] {
            assert!(!takes(&mut orders, RED, 5, NOW_US + apart_us, NOW_US));
            assert!(!takes(&mut orders, RED, 5, NOW_US - apart_us, NOW_US));
        }
    }

    /// Or the clock's owner could have any order carried out twice.
    #[test]
    fn a_clock_that_is_set_back_makes_nothing_new_that_was_forgotten() {
        let mut orders = Orders::default();
        assert!(takes(&mut orders, RED, 1, NOW_US, NOW_US));
        let later_us = NOW_US + ORDER_DRIFT_US;
        assert!(takes(&mut orders, RED, 2, later_us, later_us));
        assert!(orders.kept().0.contains_key(&id(1)), "it would not be too old yet");
        assert!(takes(&mut orders, RED, 3, later_us + 1, later_us + 1));
        assert!(!orders.kept().0.contains_key(&id(1)));
        assert!(!takes(&mut orders, RED, 1, NOW_US, NOW_US), "the clock was set back");
        let (seen, floor_us) = orders.kept();
        let mut orders = Orders::restore(seen.clone(), floor_us);
        assert!(!takes(&mut orders, RED, 1, NOW_US, NOW_US), "and the scheduler restarted");
    }

    #[test]
    fn a_tenant_that_orders_too_much_has_to_wait_and_is_in_the_way_of_no_other() {
        let mut orders = Orders::default();
        let most = MAX_ORDERS_OF_TENANT as u64;
        assert!((0..most).all(|n| takes(&mut orders, RED, n, NOW_US + n, NOW_US)));
        let fault = orders.check(RED, id(most), NOW_US, NOW_US).unwrap_err();
        let Fault::Unavailable { retry_after_ms, .. } = fault else { panic!("{fault}") };
        assert_eq!(retry_after_ms, 300_001);
        assert!(takes(&mut orders, BLUE, most, NOW_US, NOW_US));
        let then_us = NOW_US + 1000 * retry_after_ms;
        assert!(takes(&mut orders, RED, most + 1, then_us, then_us));
    }

    #[test]
    fn all_tenants_together_fill_no_more_than_there_is_room_for() {
        let mut orders = Orders::default();
        for number in 0..2 * MAX_ORDERS as u64 {
            takes(&mut orders, TenantId(number as u32 % 100), number, NOW_US, NOW_US);
        }
        assert_eq!(orders.kept().0.len(), MAX_ORDERS);
        assert!(!takes(&mut orders, TenantId(1000), u64::MAX, NOW_US, NOW_US));
    }

    proptest! {
        /// However often the scheduler restarts and however its clock jumps.
        #[test]
        fn nothing_has_its_effect_twice(
            steps in proptest::collection::vec((0u64..20, -400_000_000i64..400_000_000, any::<bool>()), 1..80),
        ) {
            let (mut orders, mut done) = (Orders::default(), BTreeSet::new());
            let mut now_us = NOW_US;
            for (number, jump_us, restarts) in steps {
                if restarts {
                    let (seen, floor_us) = orders.kept();
                    orders = Orders::restore(seen.clone(), floor_us);
                }
                now_us = now_us.saturating_add_signed(jump_us);
                // Each has one time, as it is in what was signed.
                let at_us = NOW_US + number * 100_000_000;
                if takes(&mut orders, RED, number, at_us, now_us) {
                    prop_assert!(done.insert(number), "{number} was carried out twice");
                }
                prop_assert!(orders.kept().0.len() <= MAX_ORDERS_OF_TENANT);
            }
        }
    }
}
