//! A stand-in for the kernel: it redeems real chains, keeps a real capability table, and decides
//! as simply as it can. It never grants what a chain does not.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use distos_abi::{
    Authority, CapId, Fault, Generation, Kind, NodeId, ObjectId, Rights, SlotRef, TenantId, VatName,
};
use distos_rpc::{authority_of, fail, write_caveats};
use distos_schemas::capability_capnp::{caveats, slot};
use distos_schemas::kernel_capnp::{grant, kernel};
use distos_table::Table;
use distos_types::{Chain, HolderSecret, Root, kind};

/// The vat's name in chains.
pub(super) const VAT: &str = "memory";
/// Slots of the table.
pub(super) const SLOTS: u32 = 1 << 14;
const TENANT: TenantId = TenantId(1);

/// The key that roots are signed with.
fn secret() -> HolderSecret {
    HolderSecret::from_seed([200; 32])
}

pub(super) fn node() -> NodeId {
    NodeId(secret().key().0)
}

/// Who may use [`chain`].
pub(super) fn holder() -> HolderSecret {
    HolderSecret::from_seed([1; 32])
}

/// A good capability to the vat's one region.
pub(super) fn chain() -> Chain {
    let root = Root {
        node: node(),
        key_epoch: 1,
        vat: VatName::new(VAT).unwrap(),
        kind: kind::REGION,
        object: ObjectId(1),
        cap: CapId(1),
        holder: holder().key(),
        authority: Authority::FULL,
        nonce: [7; 16],
    };
    Chain::issue(root, &secret())
}

/// What the fuzzer sees of the kernel and of the service.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) redeemed: AtomicU64,
    pub(super) parted: AtomicU64,
    pub(super) served: AtomicU64,
}

struct Live {
    slot: SlotRef,
    session: u64,
    authority: Authority,
    holder: Vec<u8>,
    lineage: Vec<CapId>,
}

pub(super) struct Kernel {
    table: Table,
    counts: Arc<Counts>,
    live: RefCell<HashMap<u32, Live>>,
    free: RefCell<Vec<u32>>,
    next: Cell<u64>,
}

impl Kernel {
    pub(super) fn new(table: Table, counts: Arc<Counts>) -> Kernel {
        let free = RefCell::new((0..SLOTS).collect());
        Kernel { table, counts, live: RefCell::default(), free, next: Cell::new(2) }
    }

    fn grant(
        &self,
        parent: Option<SlotRef>,
        session: u64,
        authority: Authority,
        holder: &[u8],
        mut to: grant::Builder<'_>,
    ) -> Result<(), Fault> {
        let number = self.next.replace(self.next.get() + 1);
        let cap = CapId(number);
        let lineage = match parent {
            Some(parent) => {
                let live = self.live.borrow();
                let above = live.get(&parent.index).filter(|live| live.slot == parent);
                let above = above.ok_or(Fault::Revoked)?;
                let mut lineage = above.lineage.clone();
                lineage.push(cap);
                lineage
            }
            None => vec![cap],
        };
        if lineage.len() > distos_abi::MAX_DEPTH {
            return Err(Fault::TooDeep);
        }
        let index = self.free.borrow_mut().pop().ok_or_else(|| Fault::unavailable(1, "no slot"))?;
        let generation = Generation::new(1, number).ok_or_else(|| Fault::internal("worn out"))?;
        let slot = SlotRef { index, generation };
        self.table.publish(slot, parent, TENANT);
        to.set_cap_id(number);
        to.set_kind(kind::REGION.0);
        to.set_object(1);
        to.set_rights(authority.rights.0);
        to.set_tenant(TENANT.0);
        to.set_holder(holder);
        let mut ancestors = to.reborrow().init_lineage(lineage.len() as u32);
        for (at, cap) in (0..).zip(&lineage) {
            ancestors.reborrow().get(at).set_cap_id(cap.0);
        }
        write_caveats(authority.caveats, to.reborrow().init_caveats());
        let mut place = to.init_slot();
        place.set_index(index);
        place.set_generation(generation.0);
        let live = Live { slot, session, authority, holder: holder.to_vec(), lineage };
        self.live.borrow_mut().insert(index, live);
        Ok(())
    }

    fn narrow(&self, parent: SlotRef, wanted: Authority) -> Result<(Authority, Vec<u8>), Fault> {
        let live = self.live.borrow();
        let above = live.get(&parent.index).filter(|live| live.slot == parent);
        let above = above.ok_or(Fault::Revoked)?;
        Ok((above.authority.narrow(wanted)?, above.holder.clone()))
    }

    fn free(&self, slot: SlotRef) {
        let mut live = self.live.borrow_mut();
        if live.get(&slot.index).is_some_and(|live| live.slot == slot) {
            live.remove(&slot.index);
            self.table.kill(slot);
            self.free.borrow_mut().push(slot.index);
        }
    }
}

fn slot_of(from: slot::Reader<'_>) -> SlotRef {
    SlotRef {
        index: from.get_index().min(SLOTS - 1),
        generation: Generation(from.get_generation()),
    }
}

fn wanted(rights: u64, caveats: capnp::Result<caveats::Reader<'_>>) -> capnp::Result<Authority> {
    Ok(authority_of(rights, caveats?))
}

impl kernel::Server for Kernel {
    async fn ready(
        self: Rc<Self>,
        _: kernel::ReadyParams,
        _: kernel::ReadyResults,
    ) -> capnp::Result<()> {
        Ok(())
    }

    async fn redeem(
        self: Rc<Self>,
        params: kernel::RedeemParams,
        mut results: kernel::RedeemResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let chain = Chain::decode(params.get_chain()?).map_err(fail)?;
        chain.verify(|epoch| (epoch == 1).then(node), 1).map_err(fail)?;
        let holder = chain.holder().0;
        let to = results.get().init_grant();
        self.grant(None, params.get_session(), chain.authority(), &holder, to).map_err(fail)?;
        self.counts.redeemed.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn derive(
        self: Rc<Self>,
        params: kernel::DeriveParams,
        mut results: kernel::DeriveResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let parent = slot_of(params.get_parent()?);
        let wanted = wanted(params.get_rights(), params.get_caveats())?;
        let (authority, holder) = self.narrow(parent, wanted).map_err(fail)?;
        let to = results.get().init_grant();
        self.grant(Some(parent), params.get_session(), authority, &holder, to).map_err(fail)
    }

    async fn deposit(
        self: Rc<Self>,
        params: kernel::DepositParams,
        mut results: kernel::DepositResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let wanted = wanted(params.get_rights(), params.get_caveats())?;
        self.narrow(slot_of(params.get_parent()?), wanted).map_err(fail)?;
        results.get().set_ticket(&[1; 32]);
        Ok(())
    }

    async fn persist(
        self: Rc<Self>,
        params: kernel::PersistParams,
        mut results: kernel::PersistResults,
    ) -> capnp::Result<()> {
        let params = params.get()?;
        let wanted = wanted(params.get_rights(), params.get_caveats())?;
        let (authority, _) = self.narrow(slot_of(params.get_slot()?), wanted).map_err(fail)?;
        let root = Root { authority, ..chain().root().clone() };
        results.get().set_chain(&Chain::issue(root, &secret()).encode());
        Ok(())
    }

    async fn revoke(
        self: Rc<Self>,
        params: kernel::RevokeParams,
        _: kernel::RevokeResults,
    ) -> capnp::Result<()> {
        self.table.kill(slot_of(params.get()?.get_slot()?));
        Ok(())
    }

    async fn revoke_link(
        self: Rc<Self>,
        params: kernel::RevokeLinkParams,
        _: kernel::RevokeLinkResults,
    ) -> capnp::Result<()> {
        self.table.kill(slot_of(params.get()?.get_under()?));
        Ok(())
    }

    async fn end_session(
        self: Rc<Self>,
        params: kernel::EndSessionParams,
        _: kernel::EndSessionResults,
    ) -> capnp::Result<()> {
        let session = params.get()?.get_session();
        let of_session: Vec<SlotRef> = {
            let live = self.live.borrow();
            live.values().filter(|live| live.session == session).map(|live| live.slot).collect()
        };
        of_session.into_iter().for_each(|slot| self.free(slot));
        Ok(())
    }

    async fn release(
        self: Rc<Self>,
        params: kernel::ReleaseParams,
        _: kernel::ReleaseResults,
    ) -> capnp::Result<()> {
        for slot in params.get()?.get_slots()? {
            self.free(slot_of(slot));
        }
        Ok(())
    }

    async fn report(
        self: Rc<Self>,
        _: kernel::ReportParams,
        _: kernel::ReportResults,
    ) -> capnp::Result<()> {
        Ok(())
    }
}

/// Rights of the capabilities that scripts ask for.
pub(super) const RIGHTS: Rights = Rights::ALL;
/// The kind and number of the vat's one object.
pub(super) const OBJECT: (Kind, ObjectId) = (kind::REGION, ObjectId(1));
