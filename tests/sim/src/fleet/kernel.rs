//! A node's kernel: the forest that decides, its table and its journal, which outlives it.

use std::collections::BTreeSet;

use distos_abi::{Authority, CapId, Fault, HolderKey, Kind, SessionId, SlotRef, TenantId, VatName};
use distos_core::{Command, Forest, GrantView, LinkClaim, Outcome, Record, TableOp};

const SLOTS: u32 = 1 << 16;
const KIND: Kind = Kind(2);

/// The vat whose objects are held.
pub(super) fn memory() -> VatName {
    VatName::new("memory").expect("a vat's name")
}

pub(super) struct Kernel {
    forest: Forest,
    journal: Vec<(u64, Record)>,
    /// The slots that stand.
    pub(super) table: BTreeSet<SlotRef>,
    epoch: u32,
    sessions: u64,
}

impl Kernel {
    pub(super) fn new(holder: HolderKey, now_ms: u64) -> (Kernel, CapId) {
        let (journal, table) = (Vec::new(), BTreeSet::new());
        let forest = Forest::new(1, SLOTS);
        let mut kernel = Kernel { forest, journal, table, epoch: 1, sessions: 0 };
        kernel.apply(Command::Boot { image_hash: [7; 32] }, now_ms).expect("a boot");
        let (vat, kind, tenant) = (memory(), KIND, TenantId::OPERATOR);
        let root = Command::MintRoot { vat, kind, authority: Authority::FULL, holder, tenant };
        let root = kernel.granted(root, now_ms).expect("a root");
        (kernel, root.cap)
    }

    /// Everything that is recorded is durable: an increase is, before it is told, and a decrease before its caller
    /// is answered.
    fn apply(&mut self, command: Command, now_ms: u64) -> Result<Outcome, Fault> {
        let applied = self.forest.apply(command, now_ms)?;
        for op in applied.table {
            match op {
                TableOp::Publish { slot, .. } => self.table.insert(slot),
                TableOp::Kill { slot } => self.table.remove(&slot),
            };
        }
        self.journal.extend(applied.records.into_iter().map(|record| (now_ms, record)));
        Ok(applied.outcome)
    }

    fn granted(&mut self, command: Command, now_ms: u64) -> Result<GrantView, Fault> {
        match self.apply(command, now_ms)? {
            Outcome::Granted(grant) => Ok(grant),
            _ => Err(Fault::internal("no grant")),
        }
    }

    /// The kernel dies, and comes back with what its journal holds.
    pub(super) fn restart(&mut self, now_ms: u64) {
        self.epoch += 1;
        self.forest = Forest::new(self.epoch, SLOTS);
        for (time_ms, record) in &self.journal {
            self.forest.replay(*time_ms, record).expect("its own journal");
        }
        let published = self.forest.table_after_replay();
        let slot = |op| match op {
            TableOp::Publish { slot, .. } | TableOp::Kill { slot } => slot,
        };
        self.table = published.into_iter().map(slot).collect();
        self.apply(Command::Boot { image_hash: [7; 32] }, now_ms).expect("a boot");
    }

    pub(super) fn session(&mut self) -> SessionId {
        self.sessions += 1;
        SessionId(self.sessions)
    }

    pub(super) fn redeem(
        &mut self,
        root_cap: CapId,
        links: Vec<LinkClaim>,
        session: SessionId,
        now_ms: u64,
    ) -> Result<GrantView, Fault> {
        self.granted(Command::Redeem { vat: memory(), root_cap, links, session }, now_ms)
    }

    /// Leaves a gift below what this session's capability hangs from: the link that it was restored from.
    pub(super) fn deposit(
        &mut self,
        of: CapId,
        receiver: &VatName,
        ticket: [u8; 32],
        now_ms: u64,
    ) -> Result<(), Fault> {
        let lineage = self.forest.lineage(of);
        let above = lineage.iter().rev().nth(1).ok_or(Fault::Revoked)?;
        let parent = self.forest.slot_of(*above).ok_or(Fault::Revoked)?;
        let wanted = self.forest.grant(parent).ok_or(Fault::Revoked)?.facts.authority;
        let (vat, receiver, expires_ms) = (memory(), receiver.clone(), now_ms + 30_000);
        let gift = Command::Deposit { vat, parent, receiver, wanted, ticket, expires_ms };
        self.apply(gift, now_ms).map(drop)
    }

    pub(super) fn withdraw(
        &mut self,
        receiver: &VatName,
        ticket: [u8; 32],
        session: SessionId,
        now_ms: u64,
    ) -> Result<GrantView, Fault> {
        let (vat, receiver) = (memory(), receiver.clone());
        self.granted(Command::Withdraw { vat, ticket, receiver, session }, now_ms)
    }

    /// The slots of a capability's line, the root's first; `None` if one is dead.
    pub(super) fn line(&self, grant: &GrantView) -> Option<Vec<SlotRef>> {
        let slots = grant.lineage.iter().map(|above| self.forest.slot_of(above.cap));
        let line: Option<Vec<SlotRef>> = slots.collect();
        line.filter(|line| line.iter().all(|slot| self.table.contains(slot)))
    }

    /// What each capability of a line allows, the root first.
    pub(super) fn authorities(&self, grant: &GrantView) -> Vec<Authority> {
        let slots = grant.lineage.iter().filter_map(|above| self.forest.slot_of(above.cap));
        slots
            .filter_map(|slot| self.forest.grant(slot))
            .map(|grant| grant.facts.authority)
            .collect()
    }

    /// Ends a capability and all below it; its slot, if it lived.
    pub(super) fn revoke(&mut self, cap: CapId, now_ms: u64) -> Option<SlotRef> {
        let slot = self.forest.slot_of(cap).filter(|slot| self.table.contains(slot))?;
        self.apply(Command::Revoke { vat: memory(), slot }, now_ms).ok().map(|_| slot)
    }

    pub(super) fn end_session(&mut self, session: SessionId, now_ms: u64) {
        // Nothing to end is no fault.
        let _ = self.apply(Command::EndSession { vat: memory(), session }, now_ms);
    }

    /// What the kernel does by itself: ends what has expired and makes room.
    pub(super) fn tidy(&mut self, now_ms: u64) {
        let _ = self.apply(Command::Sweep { max: 64 }, now_ms);
        if let Ok(Outcome::Reclaimed { token, .. }) =
            self.apply(Command::Reclaim { max: 64 }, now_ms)
        {
            let _ = self.apply(Command::Release { token }, now_ms);
        }
    }
}
