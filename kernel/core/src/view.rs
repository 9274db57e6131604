//! What the forest shows: plain copies, never references into it.

use distos_abi::{CapId, Kind, MAX_DEPTH, ObjectId, SlotRef, TenantId, VatName};

use crate::{Facts, Forest, Life, TenantRecord};

/// One step of a lineage, with the limits that a home's meters keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AncestorView {
    /// The ancestor.
    pub cap: CapId,
    /// Bytes that may be held through it and all below it.
    pub quota_bytes: u64,
    /// Tasks likewise.
    pub quota_tasks: u32,
    /// Calls a second likewise.
    pub rate_per_s: u32,
}

/// A capability as its home sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantView {
    /// Where it lives in the table.
    pub slot: SlotRef,
    /// Its lasting identity.
    pub cap: CapId,
    /// What it is.
    pub facts: Facts,
    /// Root first, itself last.
    pub lineage: Vec<AncestorView>,
}

/// A capability as the operator's tree shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeView {
    /// Its lasting identity.
    pub cap: CapId,
    /// What it hangs from.
    pub parent: Option<CapId>,
    /// What it is.
    pub facts: Facts,
}

/// Where the slots are. `used + quarantined + free` is the capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// All slots.
    pub capacity: u32,
    /// Held by capabilities, live or not yet reclaimed.
    pub used: u32,
    /// Reclaimed, waiting for quiescence.
    pub quarantined: u32,
    /// Ready.
    pub free: u32,
    /// Links remembered as revoked.
    pub tombstones: u32,
    /// Gifts that wait.
    pub gifts: u32,
}

impl Forest {
    /// A live capability of any home; `None` if it or an ancestor is dead.
    pub fn grant(&self, slot: SlotRef) -> Option<GrantView> {
        self.find(slot).filter(|at| self.is_live(*at)).map(|at| self.grant_at(at))
    }

    /// Whom a live capability is charged to.
    pub fn tenant_of(&self, slot: SlotRef) -> Option<TenantId> {
        self.find(slot).filter(|at| self.is_live(*at)).map(|at| self.node(at).facts.tenant)
    }

    /// The slot of a live capability.
    pub fn slot_of(&self, cap: CapId) -> Option<SlotRef> {
        let at = *self.caps.get(&cap)?;
        self.is_live(at).then(|| self.node(at).slot)
    }

    /// The live durable roots that [`crate::Command::MintRoot`] made for a tenant.
    pub fn roots_of(&self, tenant: TenantId) -> Vec<GrantView> {
        let fits = |at: &u32| {
            let node = self.node(*at);
            !node.dead && node.facts.life == Life::Durable && node.facts.tenant == tenant
        };
        let roots = self.objects.iter().filter(|(_, _, object, _)| *object == ObjectId::ROOT);
        roots.map(|(.., at)| *at).filter(fits).map(|at| self.grant_at(at)).collect()
    }

    /// Root first, `cap` last; empty if the forest does not know it (any more).
    pub fn lineage(&self, cap: CapId) -> Vec<CapId> {
        self.caps.get(&cap).map_or_else(Vec::new, |at| self.lineage_at(*at))
    }

    /// Every object of a vat that a live durable capability names, root objects excepted.
    pub fn objects(&self, vat: &VatName) -> Vec<(Kind, ObjectId, TenantId)> {
        let from = (vat.clone(), Kind(0), ObjectId::ROOT, 0);
        let mut found: Vec<_> = self
            .objects
            .range(from..)
            .take_while(|entry| entry.0 == *vat)
            .filter(|entry| entry.2 != ObjectId::ROOT && self.is_live(entry.3))
            .filter(|entry| self.node(entry.3).facts.life == Life::Durable)
            .map(|entry| (entry.1, entry.2, self.node(entry.3).facts.tenant))
            .collect();
        found.dedup();
        found
    }

    /// The live capabilities of a tenant, or of all, in the order in which they came (parents
    /// first); at most `max`, and whether there are more.
    pub fn tree(&self, tenant: Option<TenantId>, max: usize) -> (Vec<TreeView>, bool) {
        let mut live = self
            .caps
            .values()
            .filter(|at| tenant.is_none_or(|t| self.node(**at).facts.tenant == t))
            .filter(|at| self.is_live(**at));
        let rows = live.by_ref().take(max).map(|at| self.tree_row(*at)).collect();
        (rows, live.next().is_some())
    }

    /// Every tenant but the operator, and how many slots and tombstones it uses.
    pub fn tenants(&self) -> Vec<(TenantRecord, u32)> {
        self.tenants.values().map(|t| (t.clone(), self.usage(t.id).slots)).collect()
    }

    /// Where the slots are.
    pub fn counts(&self) -> Counts {
        let used = self.caps.len() as u32;
        let quarantined: usize = self.quarantine.iter().map(|(_, slots)| slots.len()).sum();
        Counts {
            capacity: self.capacity,
            used,
            quarantined: quarantined as u32,
            free: self.free_slots(),
            tombstones: self.tombstones.len() as u32,
            gifts: self.gifts.len() as u32,
        }
    }

    /// The latest time seen, in milliseconds since the Unix epoch: commands never run earlier.
    pub fn time_floor_ms(&self) -> u64 {
        self.floor_ms
    }

    /// The number of this boot.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    pub(crate) fn grant_at(&self, at: u32) -> GrantView {
        let node = self.node(at);
        GrantView {
            slot: node.slot,
            cap: node.cap,
            facts: node.facts.clone(),
            lineage: self.path(at).iter().map(|at| self.ancestor(*at)).collect(),
        }
    }

    /// The indices from the root to `at`.
    pub(crate) fn path(&self, at: u32) -> Vec<u32> {
        let mut path: Vec<u32> =
            core::iter::successors(Some(at), |at| self.node(*at).parent).take(MAX_DEPTH).collect();
        path.reverse();
        path
    }

    pub(crate) fn lineage_at(&self, at: u32) -> Vec<CapId> {
        self.path(at).iter().map(|at| self.node(*at).cap).collect()
    }

    fn ancestor(&self, at: u32) -> AncestorView {
        let node = self.node(at);
        let caveats = node.facts.authority.caveats;
        AncestorView {
            cap: node.cap,
            quota_bytes: caveats.quota_bytes,
            quota_tasks: caveats.quota_tasks,
            rate_per_s: caveats.rate_per_s,
        }
    }

    fn tree_row(&self, at: u32) -> TreeView {
        let node = self.node(at);
        let parent = node.parent.map(|parent| self.node(parent).cap);
        TreeView { cap: node.cap, parent, facts: node.facts.clone() }
    }
}
