//! The arena and its indexes: what is where, how it ends, whom it is charged to. The slot of a
//! capability is also its place in the arena, so two can never share one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use distos_abi::{
    Authority, CapId, Fault, Generation, HolderKey, Kind, LinkHash, MAX_DEPTH, Meter, ObjectId,
    SessionId, SlotRef, TenantId, VatName,
};

use crate::{Holder, Life, TenantRecord};

/// What a capability is, whatever its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its home.
    pub vat: VatName,
    /// Kind of its object.
    pub kind: Kind,
    /// Its object.
    pub object: ObjectId,
    /// What it allows.
    pub authority: Authority,
    /// Whom it is charged to.
    pub tenant: TenantId,
    /// Who holds it.
    pub holder: Holder,
    /// The certificate link that it stands for.
    pub link: Option<LinkHash>,
    /// Who signed that link (C4).
    pub issuer: Option<HolderKey>,
    /// How long it lives.
    pub life: Life,
}

/// A capability in its place. Children form a doubly linked list through the arena.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) slot: SlotRef,
    pub(crate) cap: CapId,
    pub(crate) facts: Facts,
    /// Always an occupied place: a killed node is cut off, a subtree is freed leaves first.
    pub(crate) parent: Option<u32>,
    first_child: Option<u32>,
    next: Option<u32>,
    previous: Option<u32>,
    pub(crate) depth: usize,
    /// Nodes from here down that nobody has killed.
    pub(crate) live: u64,
    /// Killed itself. A node is live if neither it nor an ancestor is dead.
    pub(crate) dead: bool,
    /// Whether its tenant still pays for it; a tombstone that it left may have taken that over.
    pub(crate) charged: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Gift {
    pub(crate) vat: VatName,
    pub(crate) parent: SlotRef,
    pub(crate) receiver: VatName,
    pub(crate) authority: Authority,
    pub(crate) tenant: TenantId,
    pub(crate) expires_ms: u64,
}

/// What a tenant uses.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Slots and tombstones.
    pub(crate) slots: u32,
    pub(crate) gifts: usize,
}

/// The derivation forest of one node. The default one has no room for anything.
#[derive(Clone, Debug, Default)]
pub struct Forest {
    pub(crate) epoch: u32,
    pub(crate) capacity: u32,
    /// Generations given out in this boot.
    counter: u64,
    pub(crate) floor_ms: u64,
    nodes: Vec<Option<Node>>,
    free: Vec<u32>,
    pub(crate) quarantine: VecDeque<(u64, Vec<u32>)>,
    last_token: u64,
    /// Killed nodes whose subtrees still hold slots.
    pub(crate) dying: Vec<u32>,
    pub(crate) caps: BTreeMap<CapId, u32>,
    pub(crate) links: BTreeMap<LinkHash, u32>,
    pub(crate) sessions: BTreeSet<(VatName, SessionId, u32)>,
    pub(crate) edges: BTreeSet<u32>,
    /// The topmost capabilities of each object.
    pub(crate) objects: BTreeSet<(VatName, Kind, ObjectId, u32)>,
    pub(crate) expiries: BTreeSet<(u64, u32)>,
    /// Links that are refused below a durable capability, and until when.
    pub(crate) tombstones: BTreeMap<(CapId, LinkHash), u64>,
    pub(crate) gifts: BTreeMap<[u8; 32], Gift>,
    pub(crate) tenants: BTreeMap<TenantId, TenantRecord>,
    usage: BTreeMap<TenantId, Usage>,
}

impl Forest {
    /// An empty forest of boot number `epoch` (from 1, later than any before it) over a table of
    /// `capacity` slots.
    pub fn new(epoch: u32, capacity: u32) -> Forest {
        Forest { epoch, capacity, ..Forest::default() }
    }

    pub(crate) fn node(&self, at: u32) -> &Node {
        self.nodes[at as usize].as_ref().expect("indexes and links name occupied places only")
    }

    fn node_mut(&mut self, at: u32) -> &mut Node {
        self.nodes[at as usize].as_mut().expect("indexes and links name occupied places only")
    }

    /// The place of a reference, if its generation is still there.
    pub(crate) fn find(&self, slot: SlotRef) -> Option<u32> {
        let node = self.nodes.get(slot.index as usize)?.as_ref()?;
        (node.slot == slot).then_some(slot.index)
    }

    /// Whether neither `at` nor an ancestor is dead.
    pub(crate) fn is_live(&self, at: u32) -> bool {
        let mut next = Some(at);
        while let Some(at) = next {
            let node = self.node(at);
            if node.dead {
                return false;
            }
            next = node.parent;
        }
        true
    }

    /// Whether `at` is `above` or descends from it.
    pub(crate) fn descends(&self, at: u32, above: u32) -> bool {
        core::iter::successors(Some(at), |at| self.node(*at).parent).any(|at| at == above)
    }

    /// The nearest durable capability at or above `at`.
    pub(crate) fn durable_at(&self, at: u32) -> Option<u32> {
        core::iter::successors(Some(at), |at| self.node(*at).parent)
            .find(|at| self.node(*at).facts.life == Life::Durable)
    }

    /// The durable capability for which `at` stands, because nothing on the way narrows it.
    pub(crate) fn standing(&self, at: u32) -> Option<u32> {
        let durable = self.durable_at(at)?;
        let (own, above) = (&self.node(at).facts, &self.node(durable).facts);
        let same = own.authority == above.authority
            && own.holder == above.holder
            && (own.kind, own.object) == (above.kind, above.object);
        same.then_some(durable)
    }

    pub(crate) fn free_slots(&self) -> u32 {
        self.capacity - self.nodes.len() as u32 + self.free.len() as u32
    }

    pub(crate) fn usage(&self, tenant: TenantId) -> Usage {
        self.usage.get(&tenant).copied().unwrap_or_default()
    }

    pub(crate) fn usage_mut(&mut self, tenant: TenantId) -> &mut Usage {
        self.usage.entry(tenant).or_default()
    }

    /// Whether `tenant` may use `extra` more slots or tombstones for `holder`. An eighth of the
    /// quota is for the tenant's own key alone: whoever it delegated to must not be able to use up
    /// the slots that it needs in order to revoke (C2).
    pub(crate) fn within_quota(
        &self,
        tenant: TenantId,
        holder: &Holder,
        extra: u32,
    ) -> Result<(), Fault> {
        let limit = match self.tenants.get(&tenant) {
            Some(record) if *holder == Holder::Key(record.holder) => record.slot_quota,
            Some(record) => record.slot_quota - record.slot_quota / 8,
            None if tenant == TenantId::OPERATOR => self.capacity,
            None => return Err(Fault::not_found("no such tenant")),
        };
        let wanted = u64::from(self.usage(tenant).slots) + u64::from(extra);
        if wanted > u64::from(limit) {
            return Err(Fault::OverQuota { meter: Meter::Slots, limit: limit.into(), wanted });
        }
        Ok(())
    }

    /// Whether `extra` nodes below one another fit under `parent`: depth, quota, slots,
    /// generations. Everything that an insertion needs, so that none stops half way.
    pub(crate) fn room(
        &self,
        parent: Option<u32>,
        tenant: TenantId,
        holder: &Holder,
        extra: u32,
    ) -> Result<(), Fault> {
        let above = parent.map_or(0, |at| self.node(at).depth + 1);
        if above + extra as usize > MAX_DEPTH {
            return Err(Fault::TooDeep);
        }
        self.within_quota(tenant, holder, extra)?;
        // Quotas may promise more than there is; the operator's last slots are not for tenants.
        let kept = if tenant == TenantId::OPERATOR { 0 } else { (self.capacity / 16).min(256) };
        if extra + kept > self.free_slots() {
            return Err(Fault::unavailable(100, "the capability table is full"));
        }
        match Generation::new(self.epoch, self.counter + u64::from(extra)) {
            Some(_) => Ok(()),
            None => Err(Fault::internal("this boot's generations are used up: restart the node")),
        }
    }

    /// Adds a node for which there is [`Forest::room`]. A new one gets its generation as its
    /// `CapId`: never reused, because the epoch is never reused.
    pub(crate) fn insert(
        &mut self,
        parent: Option<u32>,
        cap: Option<CapId>,
        facts: Facts,
    ) -> Result<u32, Fault> {
        self.room(parent, facts.tenant, &facts.holder, 1).or_else(|fault| match fault {
            // What the journal holds was within its quota when it was made.
            Fault::OverQuota { .. } | Fault::Unavailable { .. }
                if cap.is_some() && self.free_slots() > 0 =>
            {
                Ok(())
            }
            other => Err(other),
        })?;
        self.counter += 1;
        let generation = Generation::new(self.epoch, self.counter)
            .ok_or_else(|| Fault::internal("generations are used up"))?;
        let index = self.free.pop().unwrap_or(self.nodes.len() as u32);
        let node = Node {
            slot: SlotRef { index, generation },
            cap: cap.unwrap_or(CapId(generation.0)),
            facts,
            parent,
            first_child: None,
            next: parent.and_then(|at| self.node(at).first_child),
            previous: None,
            depth: parent.map_or(0, |at| self.node(at).depth + 1),
            live: 1,
            dead: false,
            charged: true,
        };
        if let Some(next) = node.next {
            self.node_mut(next).previous = Some(index);
        }
        if let Some(parent) = parent {
            self.node_mut(parent).first_child = Some(index);
        }
        if index as usize == self.nodes.len() {
            self.nodes.push(Some(node));
        } else {
            self.nodes[index as usize] = Some(node);
        }
        self.count_up(parent, 1);
        self.index(index, true);
        Ok(index)
    }

    fn count_up(&mut self, from: Option<u32>, by: i64) {
        let mut next = from;
        while let Some(at) = next {
            let node = self.node_mut(at);
            node.live = node.live.saturating_add_signed(by);
            next = node.parent;
        }
    }

    /// Puts a node into all indexes, or takes it out of them.
    fn index(&mut self, at: u32, enter: bool) {
        let node = self.node(at);
        let (cap, facts) = (node.cap, node.facts.clone());
        let above = node.parent.map(|parent| &self.node(parent).facts);
        let tops =
            above.is_none_or(|above| (above.kind, above.object) != (facts.kind, facts.object));
        set(
            &mut self.expiries,
            (facts.authority.caveats.expires_ms, at),
            enter && facts.authority.caveats.expires_ms != u64::MAX,
        );
        // A node that was cut off looks like a top when it leaves: removing what is absent is harmless.
        set(&mut self.objects, (facts.vat.clone(), facts.kind, facts.object, at), enter && tops);
        set(&mut self.edges, at, enter && facts.life == Life::Edge);
        if let Life::Session(session) = facts.life {
            set(&mut self.sessions, (facts.vat, session, at), enter);
        }
        let usage = self.usage.entry(facts.tenant).or_default();
        if enter {
            self.caps.insert(cap, at);
            usage.slots += 1;
            facts.link.map(|link| self.links.insert(link, at));
        } else {
            self.caps.remove(&cap);
            if let Some(link) = facts.link.filter(|link| self.links.get(link) == Some(&at)) {
                self.links.remove(&link);
            }
        }
    }

    /// Ends a live node, and all below it by that; returns how many ended. O(depth).
    pub(crate) fn kill(&mut self, at: u32) -> u64 {
        let ended = self.node(at).live;
        self.count_up(self.node(at).parent, -(ended as i64));
        self.cut_off(at);
        self.node_mut(at).dead = true;
        self.dying.push(at);
        ended
    }

    fn cut_off(&mut self, at: u32) {
        let Node { parent, next, previous, .. } = *self.node(at);
        match (previous, parent) {
            (Some(previous), _) => self.node_mut(previous).next = next,
            (None, Some(parent)) => self.node_mut(parent).first_child = next,
            (None, None) => {}
        }
        if let Some(next) = next {
            self.node_mut(next).previous = previous;
        }
        let node = self.node_mut(at);
        (node.parent, node.next, node.previous) = (None, None, None);
    }

    /// Takes one node without children out of a dead subtree. Its place is not yet free. `None`
    /// when nothing is dying. The boolean: whether it was killed itself.
    pub(crate) fn bury(&mut self) -> Option<(SlotRef, bool)> {
        let top = *self.dying.last()?;
        let mut at = top;
        while let Some(child) = self.node(at).first_child {
            at = child;
        }
        self.cut_off(at);
        self.index(at, false);
        let node = self.nodes[at as usize].take().expect("the leaf was reached through a link");
        if node.charged {
            self.discharge(node.facts.tenant, 1);
        }
        self.forget_tombstones_below(node.cap, node.facts.tenant);
        if at == top {
            self.dying.pop();
        }
        Some((node.slot, node.dead))
    }

    pub(crate) fn discharge(&mut self, tenant: TenantId, slots: u32) {
        let usage = self.usage_mut(tenant);
        usage.slots = usage.slots.saturating_sub(slots);
    }

    /// Remembers a link as revoked and charges the tenant of `under`.
    pub(crate) fn entomb(&mut self, under: u32, link: LinkHash, expires_ms: u64) {
        let (cap, tenant) = (self.node(under).cap, self.node(under).facts.tenant);
        if self.tombstones.insert((cap, link), expires_ms).is_none() {
            self.usage_mut(tenant).slots += 1;
        }
    }

    /// A killed link's slot pays for the tombstone that it leaves, so that revoking never fails
    /// for want of quota.
    pub(crate) fn hand_over_charge(&mut self, at: u32) {
        let tenant = self.node(at).facts.tenant;
        if core::mem::take(&mut self.node_mut(at).charged) {
            self.discharge(tenant, 1);
        }
    }

    /// Nothing can be redeemed below a capability that is gone, so its tombstones go too.
    fn forget_tombstones_below(&mut self, cap: CapId, tenant: TenantId) {
        let (first, last) = ((cap, LinkHash([0; 32])), (cap, LinkHash([0xff; 32])));
        let gone: Vec<_> = self.tombstones.range(first..=last).map(|(key, _)| *key).collect();
        for key in &gone {
            self.tombstones.remove(key);
        }
        self.discharge(tenant, gone.len() as u32);
    }

    /// Puts buried slots into quarantine; the token names the batch.
    pub(crate) fn confine(&mut self, slots: Vec<u32>) -> u64 {
        if !slots.is_empty() {
            self.last_token += 1;
            self.quarantine.push_back((self.last_token, slots));
        }
        self.last_token
    }

    pub(crate) fn set_free(&mut self, slots: &[u32]) {
        self.free.extend(slots);
    }

    pub(crate) fn drop_gift(&mut self, ticket: &[u8; 32]) {
        if let Some(gift) = self.gifts.remove(ticket) {
            self.usage_mut(gift.tenant).gifts -= 1;
        }
    }
}

fn set<T: Ord>(index: &mut BTreeSet<T>, entry: T, present: bool) {
    if present {
        index.insert(entry);
    } else {
        index.remove(&entry);
    }
}
