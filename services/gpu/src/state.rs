//! Who holds which GPU. Pure: time is an argument, and so is what was read from the device.
//!
//! ```text
//! Cleaning ──idle──▶ Clean ──acquire──▶ Leased ──release, expiry, revocation──▶ Cleaning
//!     └──not shown to be idle in time──▶ Quarantined (until the service is restarted)
//! ```
//!
//! The only way into `Leased` is from `Clean`, and the only way into `Clean` is a reading that
//! shows the GPU idle: so two tenants never hold one GPU, and none gets it unverified (G1). What
//! was before a restart is unknown, so every GPU starts in `Cleaning`.

use distos_abi::{Fault, ObjectId, TenantId};

/// Longest lease, in milliseconds; renewing starts it anew.
pub(crate) const MAX_LEASE_MS: u64 = 60_000;
/// How long a GPU may take to become idle after a lease before it is quarantined.
pub(crate) const CLEANING_MS: u64 = 10_000;
/// Memory in use may be this much above what it was when the GPU was first seen idle.
const SLACK_BYTES: u64 = 32 * 1024 * 1024;

/// A time that goes on at least as fast as both of the machine's clocks, and never back: what ends at
/// one of its moments ends no later because somebody put the wall clock back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// The wall clock's lead over the monotonic one, at its largest.
    lead_ms: u64,
}

impl Clock {
    /// A clock that begins at `unix_ms`, when the monotonic clock stands at zero.
    pub(crate) fn new(unix_ms: u64) -> Clock {
        Clock { lead_ms: unix_ms }
    }

    /// The time, in milliseconds, when the wall clock shows `unix_ms` and the monotonic one
    /// `mono_ms`. A wall clock that is put forward takes this one with it, for good.
    pub(crate) fn now_ms(&mut self, unix_ms: u64, mono_ms: u64) -> u64 {
        self.lead_ms = self.lead_ms.max(unix_ms.saturating_sub(mono_ms));
        self.lead_ms.saturating_add(mono_ms)
    }
}

/// What one look at a GPU showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reading {
    /// Processes that compute or draw on it.
    pub(crate) processes: u64,
    /// Memory that is allocated on it.
    pub(crate) used_bytes: u64,
}

/// Where one GPU is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Gpu {
    /// Seen idle; the next tenant may have it.
    Clean,
    /// Held by one tenant.
    Leased { lease: ObjectId, tenant: TenantId, until_ms: u64 },
    /// Not yet seen idle since it was last held.
    Cleaning { since_ms: u64 },
    /// Could not be shown to be idle.
    Quarantined { why: String },
}

/// A lease that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) lease: ObjectId,
    pub(crate) index: u32,
    pub(crate) tenant: TenantId,
}

/// All GPUs of the node.
pub(crate) struct Fleet {
    gpus: Vec<Slot>,
    /// More than this in use is never taken for an idle GPU.
    idle_bytes: u64,
}

struct Slot {
    gpu: Gpu,
    /// Memory in use when it was first seen idle.
    baseline: Option<u64>,
}

impl Fleet {
    /// GPUs, none of them seen idle yet since this service started. `baselines` has for each what it
    /// used when it was first seen idle, if it ever was. An idle one uses at most `idle_bytes`.
    pub(crate) fn new(baselines: Vec<Option<u64>>, idle_bytes: u64, now_ms: u64) -> Fleet {
        let slot = |baseline| Slot { gpu: Gpu::Cleaning { since_ms: now_ms }, baseline };
        Fleet { gpus: baselines.into_iter().map(slot).collect(), idle_bytes }
    }

    /// What each GPU used when it was first seen idle.
    pub(crate) fn baselines(&self) -> impl Iterator<Item = Option<u64>> {
        self.gpus.iter().map(|slot| slot.baseline)
    }

    /// Every GPU, in order.
    pub(crate) fn gpus(&self) -> impl Iterator<Item = &Gpu> {
        self.gpus.iter().map(|slot| &slot.gpu)
    }

    /// Lends a clean GPU for `ttl_ms`, at most [`MAX_LEASE_MS`]; returns when the lease ends.
    pub(crate) fn acquire(
        &mut self,
        index: u32,
        lease: ObjectId,
        tenant: TenantId,
        ttl_ms: u32,
        now_ms: u64,
    ) -> Result<u64, Fault> {
        let until_ms = end_of(ttl_ms, now_ms)?;
        let slot = self
            .gpus
            .get_mut(index as usize)
            .ok_or_else(|| Fault::not_found(format!("this node has no GPU {index}")))?;
        match &slot.gpu {
            Gpu::Clean => {
                slot.gpu = Gpu::Leased { lease, tenant, until_ms };
                Ok(until_ms)
            }
            Gpu::Leased { until_ms, .. } => Err(Fault::unavailable(
                until_ms.saturating_sub(now_ms).max(1),
                format!("GPU {index} is leased"),
            )),
            Gpu::Cleaning { .. } => {
                Err(Fault::unavailable(1_000, format!("GPU {index} is being cleaned")))
            }
            Gpu::Quarantined { why } => {
                Err(Fault::unavailable(MAX_LEASE_MS, format!("GPU {index} is quarantined: {why}")))
            }
        }
    }

    /// Lets a lease end `ttl_ms` from now; [`Fault::Revoked`] if it has ended already.
    pub(crate) fn renew(
        &mut self,
        lease: ObjectId,
        ttl_ms: u32,
        now_ms: u64,
    ) -> Result<u64, Fault> {
        let until = end_of(ttl_ms, now_ms)?;
        let held = self.gpus.iter_mut().find_map(|slot| match &mut slot.gpu {
            Gpu::Leased { lease: held, until_ms, .. } if *held == lease && *until_ms > now_ms => {
                Some(until_ms)
            }
            _ => None,
        });
        let held = held.ok_or(Fault::Revoked)?;
        *held = until;
        Ok(until)
    }

    /// Ends a lease. `None` if it had ended already.
    pub(crate) fn end(&mut self, lease: ObjectId, now_ms: u64) -> Option<Ended> {
        self.end_where(now_ms, |held, _| held == lease).pop()
    }

    /// Ends every lease whose time is over.
    pub(crate) fn expire(&mut self, now_ms: u64) -> Vec<Ended> {
        self.end_where(now_ms, |_, until_ms| until_ms <= now_ms)
    }

    /// Whether this lease is in force.
    pub(crate) fn holds(&self, lease: ObjectId, now_ms: u64) -> bool {
        self.gpus().any(|gpu| {
            matches!(gpu, Gpu::Leased { lease: held, until_ms, .. } if *held == lease && *until_ms > now_ms)
        })
    }

    /// The GPUs that have to be looked at.
    pub(crate) fn cleaning(&self) -> Vec<u32> {
        let is_cleaning = |gpu: &Gpu| matches!(gpu, Gpu::Cleaning { .. });
        (0..).zip(self.gpus()).filter(|(_, gpu)| is_cleaning(gpu)).map(|(index, _)| index).collect()
    }

    /// What a look at a GPU that is being cleaned showed, or why it could not be looked at.
    /// Returns its state if that changed.
    pub(crate) fn looked(
        &mut self,
        index: u32,
        reading: Result<Reading, String>,
        now_ms: u64,
    ) -> Option<&Gpu> {
        let idle_bytes = self.idle_bytes;
        let slot = self.gpus.get_mut(index as usize)?;
        let Gpu::Cleaning { since_ms } = slot.gpu else { return None };
        let limit =
            slot.baseline.map_or(idle_bytes, |b| idle_bytes.min(b.saturating_add(SLACK_BYTES)));
        let why = match reading {
            Ok(Reading { processes: 0, used_bytes }) if used_bytes <= limit => {
                slot.baseline.get_or_insert(used_bytes);
                slot.gpu = Gpu::Clean;
                return Some(&slot.gpu);
            }
            Ok(Reading { processes: 0, used_bytes }) => {
                format!("{used_bytes} bytes are still in use, {limit} would be idle")
            }
            Ok(Reading { processes, .. }) => format!("{processes} processes still run on it"),
            Err(error) => format!("it cannot be read: {error}"),
        };
        // A clock that went back does not keep a GPU in doubt for ever: it starts the wait anew.
        if now_ms < since_ms {
            slot.gpu = Gpu::Cleaning { since_ms: now_ms };
            return None;
        }
        if now_ms - since_ms < CLEANING_MS {
            return None;
        }
        slot.gpu = Gpu::Quarantined { why };
        Some(&slot.gpu)
    }

    fn end_where(&mut self, now_ms: u64, ends: impl Fn(ObjectId, u64) -> bool) -> Vec<Ended> {
        let mut ended = Vec::new();
        for (index, slot) in (0..).zip(&mut self.gpus) {
            if let Gpu::Leased { lease, tenant, until_ms } = slot.gpu
                && ends(lease, until_ms)
            {
                slot.gpu = Gpu::Cleaning { since_ms: now_ms };
                ended.push(Ended { lease, index, tenant });
            }
        }
        ended
    }
}

fn end_of(ttl_ms: u32, now_ms: u64) -> Result<u64, Fault> {
    match u64::from(ttl_ms) {
        0 => Err(Fault::malformed("a lease lasts at least one millisecond")),
        ttl_ms => Ok(now_ms.saturating_add(ttl_ms.min(MAX_LEASE_MS))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const MIB: u64 = 1024 * 1024;
    const IDLE: Result<Reading, String> = Ok(Reading { processes: 0, used_bytes: 5 * MIB });
    const RED: TenantId = TenantId(1);
    const BLUE: TenantId = TenantId(2);

    fn clean() -> Fleet {
        let mut fleet = Fleet::new(vec![None], 600 * MIB, 0);
        assert_eq!(fleet.looked(0, IDLE, 1), Some(&Gpu::Clean));
        fleet
    }

    /// Else red keeps a GPU for as long as the clock was put back by.
    #[test]
    fn a_lease_ends_in_time_though_the_wall_clock_is_put_back_or_forward() {
        let mut clock = Clock::new(10_000_000);
        assert_eq!(clock.now_ms(10_000_000, 0), 10_000_000);
        let until_ms = 10_000_000 + MAX_LEASE_MS;
        let hour_ms = 3_600_000;
        assert!(clock.now_ms(10_000_000 - hour_ms, MAX_LEASE_MS) >= until_ms, "put back");
        assert!(clock.now_ms(10_000_000 + hour_ms, MAX_LEASE_MS + 1) >= until_ms, "put forward");
        let later = clock.now_ms(10_000_000, MAX_LEASE_MS + 1);
        let renewed = later + MAX_LEASE_MS;
        assert!(clock.now_ms(0, 2 * MAX_LEASE_MS + 1) >= renewed, "put forward and back");
    }

    #[test]
    fn blue_does_not_get_a_gpu_that_red_has_left_things_on() {
        let mut fleet = clean();
        fleet.acquire(0, ObjectId(1), RED, 1_000, 10).unwrap();
        assert_eq!(fleet.acquire(0, ObjectId(2), BLUE, 1_000, 20).unwrap_err().code(), 17);
        assert_eq!(fleet.end(ObjectId(1), 30).unwrap().tenant, RED);
        assert_eq!(fleet.acquire(0, ObjectId(2), BLUE, 1_000, 40).unwrap_err().code(), 17);
        let left = Ok(Reading { processes: 0, used_bytes: 100 * MIB });
        assert_eq!(fleet.looked(0, left.clone(), 50), None, "more than it used when it was idle");
        assert_eq!(fleet.looked(0, Ok(Reading { processes: 1, used_bytes: 0 }), 60), None);
        assert!(matches!(fleet.looked(0, left, 30 + CLEANING_MS), Some(Gpu::Quarantined { .. })));
        assert_eq!(fleet.looked(0, IDLE, 30 + CLEANING_MS), None, "quarantine needs a restart");
        let fault = fleet.acquire(0, ObjectId(2), BLUE, 1_000, 99_999).unwrap_err();
        assert!(fault.to_string().contains("quarantined"), "{fault}");
    }

    #[test]
    fn a_gpu_that_cannot_be_read_is_never_lent() {
        let mut fleet = Fleet::new(vec![None], 600 * MIB, 0);
        assert_eq!(fleet.looked(0, Err("gone".into()), 1), None);
        assert!(fleet.acquire(0, ObjectId(1), RED, 1_000, 2).is_err());
        assert!(matches!(
            fleet.looked(0, Err("gone".into()), CLEANING_MS),
            Some(Gpu::Quarantined { .. })
        ));
    }

    /// Else red keeps a little memory through a restart of the service, and blue gets the GPU.
    #[test]
    fn what_was_idle_before_a_restart_is_idle_after_it_and_no_more() {
        let mut fleet = Fleet::new(vec![Some(5 * MIB)], 600 * MIB, 0);
        let left = Ok(Reading { processes: 0, used_bytes: 100 * MIB });
        assert_eq!(fleet.looked(0, left, 1), None);
        assert_eq!(fleet.looked(0, IDLE, 2), Some(&Gpu::Clean));
        assert_eq!(clean().baselines().collect::<Vec<_>>(), [Some(5 * MIB)]);
    }

    #[test]
    fn a_gpu_that_was_full_before_the_service_started_is_not_idle() {
        let mut fleet = Fleet::new(vec![None], 600 * MIB, 0);
        let full = Ok(Reading { processes: 0, used_bytes: 700 * MIB });
        assert_eq!(fleet.looked(0, full, 1), None);
    }

    #[test]
    fn a_lease_lasts_a_minute_at_most_and_cannot_be_renewed_once_it_has_ended() {
        let mut fleet = clean();
        assert_eq!(fleet.acquire(0, ObjectId(1), RED, u32::MAX, 0), Ok(MAX_LEASE_MS));
        assert_eq!(fleet.renew(ObjectId(1), 5_000, 1_000), Ok(6_000));
        assert_eq!(
            fleet.renew(ObjectId(1), 5_000, 6_000),
            Err(Fault::Revoked),
            "even before the sweep"
        );
        assert_eq!(fleet.expire(6_000).len(), 1);
        assert_eq!(fleet.renew(ObjectId(1), 5_000, 6_001), Err(Fault::Revoked));
        assert_eq!(fleet.acquire(7, ObjectId(2), RED, 1, 0).unwrap_err().code(), 15);
        assert_eq!(clean().acquire(0, ObjectId(2), RED, 0, 0).unwrap_err().code(), 16);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Acquire(u32, u32, u32),
        Renew(u64, u32),
        End(u64),
        Expire,
        Look(u32, Option<(u64, u64)>),
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u32..3, 1u32..4, 1u32..90_000).prop_map(|(g, t, ttl)| Step::Acquire(g, t, ttl)),
            (0u64..20, 1u32..90_000).prop_map(|(l, ttl)| Step::Renew(l, ttl)),
            (0u64..20).prop_map(Step::End),
            Just(Step::Expire),
            (0u32..2, proptest::option::of((0u64..2, 0u64..800)))
                .prop_map(|(g, r)| Step::Look(g, r)),
            (0u64..20_000).prop_map(Step::Wait),
        ]
    }

    proptest! {
        #[test]
        fn no_two_tenants_ever_hold_one_gpu_and_none_gets_it_unverified(
            steps in proptest::collection::vec(step(), 1..200)
        ) {
            let mut fleet = Fleet::new(vec![None; 2], 600 * MIB, 0);
            let (mut now, mut next) = (0u64, 0u64);
            // The model: who holds a GPU, and which were seen idle since they were last held.
            let mut holder: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
            let mut idle = [false; 2];
            for step in steps {
                match step {
                    Step::Wait(ms) => now += ms,
                    Step::Acquire(gpu, tenant, ttl) => {
                        let got = fleet.acquire(gpu, ObjectId(next), TenantId(tenant), ttl, now);
                        if let Ok(until) = got {
                            prop_assert!(idle[gpu as usize], "lent without having been seen idle");
                            prop_assert!(!holder.contains_key(&gpu), "lent twice");
                            prop_assert!(until <= now + MAX_LEASE_MS);
                            holder.insert(gpu, (next, until));
                            idle[gpu as usize] = false;
                            next += 1;
                        }
                    }
                    Step::Renew(lease, ttl) => {
                        let got = fleet.renew(ObjectId(lease), ttl, now);
                        let held = holder.values_mut().find(|(l, until)| *l == lease && *until > now);
                        prop_assert_eq!(got.is_ok(), held.is_some());
                        if let (Ok(until), Some(held)) = (got, held) {
                            held.1 = until;
                        }
                    }
                    Step::End(lease) => {
                        if let Some(ended) = fleet.end(ObjectId(lease), now) {
                            prop_assert_eq!(holder.remove(&ended.index).map(|h| h.0), Some(lease));
                        }
                    }
                    Step::Expire => {
                        for ended in fleet.expire(now) {
                            let (lease, until) = holder.remove(&ended.index).unwrap();
                            prop_assert_eq!(lease, ended.lease.0);
                            prop_assert!(until <= now);
                        }
                        prop_assert!(holder.values().all(|(_, until)| *until > now));
                    }
                    Step::Look(gpu, reading) => {
                        let reading = reading
                            .map(|(processes, mib)| Reading { processes, used_bytes: mib * MIB })
                            .ok_or("unreadable".to_owned());
                        let was_leased = holder.contains_key(&gpu);
                        if let Some(Gpu::Clean) = fleet.looked(gpu, reading.clone(), now) {
                            let seen = reading.unwrap();
                            prop_assert!(seen.processes == 0 && seen.used_bytes <= 600 * MIB);
                            prop_assert!(!was_leased);
                            idle[gpu as usize] = true;
                        }
                    }
                }
            }
        }
    }
}
