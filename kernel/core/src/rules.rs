//! The rules: one small function for each command. Each checks everything before it changes
//! anything, so that a fault leaves the forest as it was.

use distos_abi::{
    Authority, CapId, Caveats, Fault, HolderKey, Kind, LinkHash, MAX_CHAIN_LINKS, MAX_DEPTH, Meter,
    ObjectId, Rights, SessionId, SlotRef, TenantId, VatName,
};

use crate::forest::Gift;
use crate::{
    Applied, Command, Facts, Forest, Holder, Life, LinkClaim, MAX_EVENT_BYTES, MAX_GIFTS,
    MAX_GIFTS_PER_TENANT, MAX_TENANT_NAME_BYTES, MAX_TENANTS, MAX_TOMBSTONE_MS, NodeRecord, Order,
    Outcome, Reason, Record, RevokeRecord, TableOp, TenantRecord,
};

/// How much longer than was asked an unredeemed link is remembered: a day.
const EXTENSION_MS: u64 = 24 * 3600 * 1000;
/// What instances of templates that serve the operator are called after.
const OPERATOR_NAME: &str = "operator";

impl Forest {
    /// Decides one command at `now_ms` (milliseconds since the Unix epoch; the latest time ever
    /// seen counts if that is later). A fault leaves the forest as it was.
    pub fn apply(&mut self, command: Command, now_ms: u64) -> Result<Applied, Fault> {
        self.floor_ms = self.floor_ms.max(now_ms);
        match command {
            Command::Boot { image_hash } => {
                // Forgetting leaves no record, so the journal has brought back what was forgotten.
                self.forget_late();
                let record = Record::Boot { epoch: self.epoch, image_hash };
                Ok(done(vec![record], Order::RecordFirst))
            }
            Command::AddTenant { name, holder, slot_quota } => {
                self.add_tenant(name, holder, slot_quota)
            }
            Command::MintRoot { vat, kind, authority, holder, tenant } => {
                let holder = Holder::Key(holder);
                self.plant(root(vat, kind, authority, holder, tenant, Life::Durable))
            }
            Command::Edge { home, kind, holder, authority, tenant } => {
                let holder = Holder::Vat(holder);
                self.plant(root(home, kind, authority, holder, tenant, Life::Edge))
            }
            Command::Mint { vat, parent, kind, object, authority, session } => {
                self.mint(vat, parent, kind, object, authority, session)
            }
            Command::Derive { vat, parent, wanted, session } => {
                self.derive(&vat, parent, wanted, session)
            }
            Command::Redeem { vat, root_cap, links, session } => {
                self.redeem(&vat, root_cap, &links, session)
            }
            Command::Deposit { vat, parent, receiver, wanted, ticket, expires_ms } => {
                let authority = self.weaker(&vat, parent, wanted)?;
                let tenant = self.node(parent.index).facts.tenant;
                self.deposit(ticket, Gift { vat, parent, receiver, authority, tenant, expires_ms })
            }
            Command::Withdraw { vat, ticket, receiver, session } => {
                self.withdraw(&vat, &ticket, receiver, session)
            }
            Command::PersistCheck { vat, slot, wanted } => self.persist_check(&vat, slot, wanted),
            Command::Revoke { vat, slot } => {
                let at = self.own(&vat, slot)?;
                Ok(self.revoke(at, Reason::Asked))
            }
            Command::RevokeLink { vat, under, link, expires_ms } => {
                self.revoke_link(&vat, under, link, expires_ms)
            }
            Command::RevokeObject { vat, kind, object } => self.revoke_object(vat, kind, object),
            Command::EndSession { vat, session } => Ok(self.end_session(vat, session)),
            Command::VatDied { vat } => Ok(self.vat_died(vat)),
            Command::Sweep { max } => Ok(self.sweep(max)),
            Command::Reclaim { max } => Ok(self.reclaim(max)),
            Command::Release { token } => Ok(self.release(token)),
            Command::Report { vat, kind, tenant, cap, detail } => {
                let (kind, detail, lineage) = (cut(kind), cut(detail), self.lineage(cap));
                let holder = self.caps.get(&cap).map(|at| self.node(*at).facts.holder.clone());
                let event = Record::Event { vat, kind, tenant, cap, holder, lineage, detail };
                Ok(done(vec![event], Order::Lazy))
            }
        }
    }

    fn add_tenant(
        &mut self,
        name: String,
        holder: HolderKey,
        slot_quota: u32,
    ) -> Result<Applied, Fault> {
        let is_name = name.len() <= MAX_TENANT_NAME_BYTES && !name.contains('/');
        if !is_name || name == OPERATOR_NAME || VatName::new(&name).is_err() {
            return Err(Fault::malformed(format!(
                "a tenant's name is 1 to {MAX_TENANT_NAME_BYTES} of a-z, 0-9 and '-', and not '{OPERATOR_NAME}'"
            )));
        }
        if let Some(other) = self.tenants.values().find(|t| t.name == name || t.holder == holder) {
            return Err(Fault::Exists(format!("tenant '{}' has this name or key", other.name)));
        }
        if self.tenants.len() >= MAX_TENANTS {
            return Err(Fault::unavailable(
                u64::MAX,
                format!("a node has at most {MAX_TENANTS} tenants"),
            ));
        }
        let id = TenantId(self.tenants.last_key_value().map_or(1, |(last, _)| last.0 + 1));
        let record = TenantRecord { id, name, holder, slot_quota };
        self.tenants.insert(id, record.clone());
        let recorded = done(vec![Record::Tenant(record)], Order::RecordFirst);
        Ok(Applied { outcome: Outcome::Tenant(id), ..recorded })
    }

    fn plant(&mut self, facts: Facts) -> Result<Applied, Fault> {
        let at = self.insert(None, None, facts)?;
        Ok(self.granted(&[at], Order::RecordFirst))
    }

    fn mint(
        &mut self,
        vat: VatName,
        parent: Option<SlotRef>,
        kind: Kind,
        object: ObjectId,
        authority: Authority,
        session: Option<SessionId>,
    ) -> Result<Applied, Fault> {
        if object == ObjectId::ROOT {
            return Err(Fault::malformed("object 0 is the root object, which an image grants"));
        }
        // A byte range that ends before it starts is empty; all others are combined with something, and so are.
        let authority = Authority { caveats: authority.caveats.meet(Caveats::NONE), ..authority };
        let Some(parent) = parent else {
            let holder = Holder::Vat(vat.clone());
            let facts = root(vat, kind, authority, holder, TenantId::OPERATOR, Life::Durable);
            return self.plant(Facts { object, ..facts });
        };
        let through = self.usable(&vat, parent)?;
        let own = &self.node(through).facts;
        if (own.kind, own.object) == (kind, object) {
            return Err(Fault::malformed("a capability to the same object is derived, not minted"));
        }
        let Caveats { expires_ms, end_to_end, .. } = own.authority.caveats;
        let own_terms = Caveats { expires_ms, end_to_end, ..Caveats::NONE };
        let authority = Authority { caveats: authority.caveats.meet(own_terms), ..authority };
        if let Some(session) = session {
            let (holder, tenant) = (own.holder.clone(), own.tenant);
            let facts = root(vat, kind, authority, holder, tenant, Life::Session(session));
            let at = self.insert(Some(through), None, Facts { object, ..facts })?;
            return Ok(self.granted(&[at], Order::Lazy));
        }
        let durable = self.durable_at(through);
        // It will hang from that one, and what hangs from a capability to the same object is derived.
        if durable
            .is_some_and(|d| (self.node(d).facts.kind, self.node(d).facts.object) == (kind, object))
        {
            return Err(Fault::malformed("a capability to the same object is derived, not minted"));
        }
        // A session's capability with smaller quotas than the durable one above it would let the
        // new object escape them, since the object outlives the session (C1).
        if durable.is_some_and(|d| limits(self.node(d).facts.authority) != limits(own.authority)) {
            return Err(Fault::denied(Rights::CREATE));
        }
        let life = if durable.is_some() { Life::Durable } else { Life::Parent };
        let facts = root(vat, kind, authority, own.holder.clone(), own.tenant, life);
        let at = self.insert(durable.or(Some(through)), None, Facts { object, ..facts })?;
        Ok(self.granted(&[at], Order::RecordFirst))
    }

    fn derive(
        &mut self,
        vat: &VatName,
        parent: SlotRef,
        wanted: Authority,
        session: SessionId,
    ) -> Result<Applied, Fault> {
        let authority = self.weaker(vat, parent, wanted)?;
        let holder = self.node(parent.index).facts.holder.clone();
        let facts = self.below(parent.index, authority, holder, session);
        let at = self.insert(Some(parent.index), None, facts)?;
        Ok(self.granted(&[at], Order::Lazy))
    }

    fn redeem(
        &mut self,
        vat: &VatName,
        root_cap: CapId,
        links: &[LinkClaim],
        session: SessionId,
    ) -> Result<Applied, Fault> {
        check_chain(links)?;
        // The kernel signed the root, so a capability that is not here any more did exist.
        let mut at = *self.caps.get(&root_cap).ok_or(Fault::Revoked)?;
        let facts = &self.node(at).facts;
        if facts.vat != *vat || facts.life != Life::Durable {
            return Err(Fault::not_found("no such capability at this vat"));
        }
        if !self.is_live(at) {
            return Err(Fault::Revoked);
        }
        let mut authority = facts.authority;
        self.check_time(authority)?;
        let mut lineage = self.lineage_at(at);
        let mut known = 0;
        let mut effective = Vec::with_capacity(links.len());
        for (i, claim) in links.iter().enumerate() {
            authority = authority.narrow(claim.authority)?;
            self.check_time(authority)?;
            if lineage.iter().any(|cap| self.tombstones.contains_key(&(*cap, claim.hash))) {
                return Err(Fault::Revoked);
            }
            match self.links.get(&claim.hash) {
                Some(link) if known == i && self.node(*link).parent == Some(at) => {
                    (at, known) = (*link, i + 1);
                    lineage.push(self.node(at).cap);
                }
                // A link that was killed is cut off from its parent until it is reclaimed.
                Some(link) if !self.is_live(*link) => return Err(Fault::Revoked),
                Some(_) => return Err(Fault::malformed("a link of this chain belongs to another")),
                None => {}
            }
            effective.push(authority);
        }
        let tenants: Vec<TenantId> = links
            .iter()
            .skip(known)
            .scan(self.node(at).facts.tenant, |tenant, claim| {
                *tenant = self.charged(*tenant, &claim.holder);
                Some(*tenant)
            })
            .collect();
        let user = tenants.last().copied().unwrap_or(self.node(at).facts.tenant);
        let last = links
            .last()
            .map_or_else(|| self.node(at).facts.holder.clone(), |claim| Holder::Key(claim.holder));
        self.room(Some(at), user, &last, tenants.len() as u32 + 1)?;
        for tenant in tenants.iter().filter(|tenant| **tenant != user) {
            let links = tenants.iter().filter(|other| *other == tenant).count();
            self.within_quota(*tenant, &last, links as u32)?;
        }
        let mut fresh = Vec::new();
        let new = links.iter().zip(effective).skip(known).zip(tenants);
        for ((claim, authority), tenant) in new {
            let facts = self.below(at, authority, Holder::Key(claim.holder), session);
            let (link, issuer, life) = (Some(claim.hash), Some(claim.issuer), Life::Durable);
            at = self.insert(Some(at), None, Facts { life, link, issuer, tenant, ..facts })?;
            fresh.push(at);
        }
        let Facts { authority, holder, .. } = self.node(at).facts.clone();
        let order = if fresh.is_empty() { Order::Lazy } else { Order::RecordFirst };
        let facts = self.below(at, authority, holder, session);
        fresh.push(self.insert(Some(at), None, facts)?);
        Ok(self.granted(&fresh, order))
    }

    /// Whom a link is charged to: the tenant above it. What the operator delegates to a tenant's
    /// key is the tenant's own from there on; what one tenant delegates to another stays charged
    /// to the one whose resources it uses.
    fn charged(&self, above: TenantId, holder: &HolderKey) -> TenantId {
        let named = || self.tenants.values().find(|tenant| tenant.holder == *holder);
        match above {
            TenantId::OPERATOR => named().map_or(above, |tenant| tenant.id),
            _ => above,
        }
    }

    fn deposit(&mut self, ticket: [u8; 32], gift: Gift) -> Result<Applied, Fault> {
        if self.node(gift.parent.index).depth + 1 >= MAX_DEPTH {
            return Err(Fault::TooDeep);
        }
        if self.gifts.len() >= MAX_GIFTS || self.usage(gift.tenant).gifts >= MAX_GIFTS_PER_TENANT {
            self.forget_late();
        }
        if self.gifts.len() >= MAX_GIFTS {
            return Err(Fault::unavailable(1000, "too many gifts wait on this node"));
        }
        let waiting = self.usage(gift.tenant).gifts + 1;
        if waiting > MAX_GIFTS_PER_TENANT {
            let (limit, wanted) = (MAX_GIFTS_PER_TENANT as u64, waiting as u64);
            return Err(Fault::OverQuota { meter: Meter::Slots, limit, wanted });
        }
        if self.gifts.contains_key(&ticket) {
            return Err(Fault::Exists("this ticket".to_owned()));
        }
        self.usage_mut(gift.tenant).gifts = waiting;
        self.gifts.insert(ticket, gift);
        Ok(done(vec![], Order::Lazy))
    }

    fn withdraw(
        &mut self,
        vat: &VatName,
        ticket: &[u8; 32],
        receiver: VatName,
        session: SessionId,
    ) -> Result<Applied, Fault> {
        let gift = self.gifts.get(ticket).filter(|gift| {
            gift.vat == *vat && gift.receiver == receiver && self.floor_ms < gift.expires_ms
        });
        let absent = || Fault::not_found("no such gift");
        let gift = gift.ok_or_else(absent)?;
        let parent = self.usable(vat, gift.parent).map_err(|_| absent())?;
        let facts = self.below(parent, gift.authority, Holder::Vat(receiver), session);
        let at = self.insert(Some(parent), None, facts)?;
        self.drop_gift(ticket);
        Ok(self.granted(&[at], Order::RecordFirst))
    }

    fn persist_check(
        &self,
        vat: &VatName,
        slot: SlotRef,
        wanted: Authority,
    ) -> Result<Applied, Fault> {
        let at = self.usable(vat, slot)?;
        let durable = self.standing(at).ok_or(Fault::denied(wanted.rights))?;
        let node = self.node(durable);
        let Holder::Key(holder) = node.facts.holder else {
            return Err(Fault::denied(wanted.rights));
        };
        let authority = node.facts.authority.narrow(wanted)?;
        let Facts { kind, object, .. } = node.facts;
        let outcome = Outcome::Persist { cap: node.cap, kind, object, holder, authority };
        Ok(Applied { outcome, ..done(vec![], Order::Lazy) })
    }

    fn revoke(&mut self, at: u32, reason: Reason) -> Applied {
        let mut applied = ended();
        let descendants = self.end(at, reason, &mut applied) - 1;
        applied.outcome = Outcome::Revoked { descendants };
        applied
    }

    /// Ends one live node with its table store and its records; returns how many ended.
    fn end(&mut self, at: u32, reason: Reason, into: &mut Applied) -> u64 {
        let node = self.node(at);
        let (cap, facts, parent) = (node.cap, node.facts.clone(), node.parent);
        into.table.push(TableOp::Kill { slot: node.slot });
        let lineage = self.lineage_at(at);
        let count = self.kill(at);
        // An expired link is refused for ever by its own time; any other needs a tombstone, first
        // in the journal, so that a torn write refuses too much rather than too little.
        if let (Some(link), Some(under)) =
            (facts.link, parent.filter(|_| reason != Reason::Expired))
        {
            let expires_ms = facts.authority.caveats.expires_ms;
            self.hand_over_charge(at);
            self.entomb(under, link, expires_ms);
            into.records.push(Record::Tombstone { under: self.node(under).cap, link, expires_ms });
        }
        into.records.push(Record::Revoke(Box::new(RevokeRecord {
            cap,
            vat: facts.vat,
            tenant: facts.tenant,
            holder: facts.holder,
            lineage,
            descendants: count - 1,
            reason,
        })));
        count
    }

    fn revoke_link(
        &mut self,
        vat: &VatName,
        under: SlotRef,
        link: LinkHash,
        expires_ms: u64,
    ) -> Result<Applied, Fault> {
        let foreign = || Fault::not_found("no such link under this capability");
        let under = self.own(vat, under)?;
        let under = self.standing(under).ok_or_else(foreign)?;
        match self.links.get(&link).copied().filter(|at| self.is_live(*at)) {
            Some(at) if self.descends(at, under) => return Ok(self.revoke(at, Reason::Link)),
            Some(_) => return Err(foreign()),
            None => {}
        }
        let mut applied = ended();
        let expires_ms = expires_ms.min(self.floor_ms.saturating_add(MAX_TOMBSTONE_MS));
        let known = self.tombstones.get(&(self.node(under).cap, link)).copied();
        if known.is_none() {
            let facts = &self.node(under).facts;
            self.within_quota(facts.tenant, &facts.holder, 1)?;
        }
        if known.is_none_or(|until| until < expires_ms) {
            // Each call may cost a record. Remembered for longer than was asked, it is not recorded
            // again whenever somebody asks for a little more.
            let expires_ms = expires_ms.saturating_add(EXTENSION_MS);
            self.entomb(under, link, expires_ms);
            applied.records.push(Record::Tombstone {
                under: self.node(under).cap,
                link,
                expires_ms,
            });
        }
        Ok(applied)
    }

    fn revoke_object(
        &mut self,
        vat: VatName,
        kind: Kind,
        object: ObjectId,
    ) -> Result<Applied, Fault> {
        if object == ObjectId::ROOT {
            return Err(Fault::malformed("object 0 is the root object, which only its image ends"));
        }
        let key = |at| (vat.clone(), kind, object, at);
        let tops = self.objects.range(key(0)..=key(u32::MAX)).map(|entry| entry.3).collect();
        Ok(self.end_each(tops, Reason::Object, true))
    }

    fn end_session(&mut self, vat: VatName, session: SessionId) -> Applied {
        let key = |at| (vat.clone(), session, at);
        let all = self.sessions.range(key(0)..=key(u32::MAX)).map(|entry| entry.2).collect();
        let mut applied = self.end_each(all, Reason::Asked, false);
        if let Outcome::Revoked { descendants: ended @ 1.. } = applied.outcome {
            applied.records.push(Record::SessionEnded { vat, session, ended });
        }
        applied
    }

    fn vat_died(&mut self, vat: VatName) -> Applied {
        let from = (vat.clone(), SessionId(0), 0);
        let sessions = self.sessions.range(from..).take_while(|entry| entry.0 == vat);
        let mut all: Vec<u32> = sessions.map(|entry| entry.2).collect();
        all.extend(self.edges.iter().copied().filter(|at| {
            let facts = &self.node(*at).facts;
            facts.vat == vat || facts.holder == Holder::Vat(vat.clone())
        }));
        let mut applied = self.end_each(all, Reason::Asked, false);
        self.retain_gifts(|_, gift| gift.vat != vat && gift.receiver != vat);
        if let Outcome::Revoked { descendants: ended } = applied.outcome {
            applied.records.push(Record::VatDied { vat, ended });
        }
        applied
    }

    fn sweep(&mut self, max: u32) -> Applied {
        self.forget_late();
        let late = self.expiries.range(..=(self.floor_ms, u32::MAX)).map(|entry| entry.1);
        // Dead ones stay in the index until they are reclaimed and must not fill the batch.
        let late = late.filter(|at| self.is_live(*at)).take(max as usize).collect();
        self.end_each(late, Reason::Expired, true)
    }

    /// Ends those of `all` that are still live when their turn comes. Without `each`, the caller
    /// writes one record for all.
    fn end_each(&mut self, all: Vec<u32>, reason: Reason, each: bool) -> Applied {
        let mut applied = ended();
        let mut descendants = 0;
        for at in all {
            if self.is_live(at) {
                descendants += self.end(at, reason, &mut applied);
            }
        }
        if !each {
            applied.records.clear();
        }
        applied.outcome = Outcome::Revoked { descendants };
        applied
    }

    fn reclaim(&mut self, max: u32) -> Applied {
        let mut applied = done(vec![], Order::Lazy);
        let mut slots = Vec::new();
        while (slots.len() as u64) < u64::from(max) {
            let Some((slot, killed)) = self.bury() else {
                break;
            };
            slots.push(slot.index);
            // A slot that only hung below a dead one still holds its generation. It must be gone
            // before the next owner's parent is written, or an old reader might follow that.
            if !killed {
                applied.table.push(TableOp::Kill { slot });
            }
        }
        let (count, more) = (slots.len() as u32, !self.dying.is_empty());
        applied.outcome = Outcome::Reclaimed { count, token: self.confine(slots), more };
        applied
    }

    fn release(&mut self, token: u64) -> Applied {
        while self.quarantine.front().is_some_and(|(batch, _)| *batch <= token) {
            if let Some((_, slots)) = self.quarantine.pop_front() {
                self.set_free(&slots);
            }
        }
        done(vec![], Order::Lazy)
    }

    /// The place of a live capability of `vat`.
    fn own(&self, vat: &VatName, slot: SlotRef) -> Result<u32, Fault> {
        let at = self.find(slot).ok_or(Fault::Revoked)?;
        if self.node(at).facts.vat != *vat {
            return Err(Fault::not_found("no such capability at this vat"));
        }
        self.is_live(at).then_some(at).ok_or(Fault::Revoked)
    }

    /// The same, if its time is not over.
    fn usable(&self, vat: &VatName, slot: SlotRef) -> Result<u32, Fault> {
        let at = self.own(vat, slot)?;
        self.check_time(self.node(at).facts.authority)?;
        Ok(at)
    }

    /// What a child of `parent` that asks for `wanted` may do (C1).
    fn weaker(
        &self,
        vat: &VatName,
        parent: SlotRef,
        wanted: Authority,
    ) -> Result<Authority, Fault> {
        let at = self.usable(vat, parent)?;
        let authority = self.node(at).facts.authority.narrow(wanted)?;
        self.check_time(authority)?;
        Ok(authority)
    }

    fn check_time(&self, authority: Authority) -> Result<(), Fault> {
        let at_ms = authority.caveats.expires_ms;
        if self.floor_ms >= at_ms { Err(Fault::Expired { at_ms }) } else { Ok(()) }
    }

    fn below(&self, at: u32, authority: Authority, holder: Holder, session: SessionId) -> Facts {
        let life = Life::Session(session);
        Facts { authority, holder, life, link: None, issuer: None, ..self.node(at).facts.clone() }
    }

    fn granted(&self, fresh: &[u32], order: Order) -> Applied {
        let last = *fresh.last().expect("callers have just inserted");
        Applied {
            outcome: Outcome::Granted(self.grant_at(last)),
            table: fresh.iter().map(|at| self.publish(*at)).collect(),
            records: fresh.iter().map(|at| self.node_record(*at)).collect(),
            order,
        }
    }

    pub(crate) fn publish(&self, at: u32) -> TableOp {
        let node = self.node(at);
        let parent = node.parent.map(|parent| self.node(parent).slot);
        TableOp::Publish { slot: node.slot, parent, tenant: node.facts.tenant }
    }

    pub(crate) fn node_record(&self, at: u32) -> Record {
        let node = self.node(at);
        let facts = node.facts.clone();
        Record::Node(Box::new(NodeRecord {
            cap: node.cap,
            parent: node.parent.map(|parent| self.node(parent).cap),
            vat: facts.vat,
            kind: facts.kind,
            object: facts.object,
            authority: facts.authority,
            tenant: facts.tenant,
            holder: facts.holder,
            link: facts.link,
            issuer: facts.issuer,
            life: facts.life,
            lineage: self.lineage_at(at),
        }))
    }

    /// Forgets tombstones whose time is over, and gifts that nobody can take any more.
    fn forget_late(&mut self) {
        let now = self.floor_ms;
        self.retain_gifts(|forest, gift| {
            now < gift.expires_ms && forest.usable(&gift.vat, gift.parent).is_ok()
        });
        let late: Vec<_> = self
            .tombstones
            .iter()
            .filter(|(_, until)| **until <= now)
            .map(|(key, _)| *key)
            .collect();
        for (cap, link) in late {
            self.tombstones.remove(&(cap, link));
            if let Some(at) = self.caps.get(&cap) {
                self.discharge(self.node(*at).facts.tenant, 1);
            }
        }
    }

    fn retain_gifts(&mut self, keep: impl Fn(&Forest, &Gift) -> bool) {
        let gone = self.gifts.iter().filter(|(_, gift)| !keep(self, gift));
        let gone: Vec<_> = gone.map(|(ticket, _)| *ticket).collect();
        gone.iter().for_each(|ticket| self.drop_gift(ticket));
    }
}

fn root(
    vat: VatName,
    kind: Kind,
    authority: Authority,
    holder: Holder,
    tenant: TenantId,
    life: Life,
) -> Facts {
    let object = ObjectId::ROOT;
    Facts { vat, kind, object, authority, tenant, holder, link: None, issuer: None, life }
}

fn limits(authority: Authority) -> (u64, u32, u32) {
    let caveats = authority.caveats;
    (caveats.quota_bytes, caveats.quota_tasks, caveats.rate_per_s)
}

fn check_chain(links: &[LinkClaim]) -> Result<(), Fault> {
    if links.is_empty() || links.len() > MAX_CHAIN_LINKS {
        return Err(Fault::malformed(format!("a chain has 1 to {MAX_CHAIN_LINKS} links")));
    }
    if links.windows(2).any(|pair| pair[1].issuer != pair[0].holder) {
        return Err(Fault::malformed("a link is not signed by the holder of the one before"));
    }
    if (1..links.len()).any(|i| links[..i].iter().any(|earlier| earlier.hash == links[i].hash)) {
        return Err(Fault::malformed("a chain holds a link twice"));
    }
    Ok(())
}

fn done(records: Vec<Record>, order: Order) -> Applied {
    Applied { outcome: Outcome::Done, table: vec![], records, order }
}

fn ended() -> Applied {
    Applied { outcome: Outcome::Revoked { descendants: 0 }, ..done(vec![], Order::TableFirst) }
}

fn cut(mut text: String) -> String {
    let mut end = text.len().min(MAX_EVENT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}
