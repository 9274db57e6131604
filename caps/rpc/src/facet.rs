//! Facets: what one capability allows, at the home of its object.
//!
//! Every object that a vat hands out is wrapped in exactly one facet. A derived capability is a
//! new facet with narrower authority, not a facet around a facet; quotas and rates are meters
//! that a facet charges in its own name and in every ancestor's.

use std::cell::OnceCell;
use std::rc::Rc;

use capnp::capability::Results;
use capnp::traits::Owned;
use distos_abi::{
    Authority, ByteRange, CapId, Fault, Generation, HolderKey, Kind, LinkHash, MAX_DEPTH, Meter,
    ObjectId, Rights, SessionId, SlotRef, TenantId,
};
use distos_schemas::{capability_capnp, kernel_capnp};
use distos_table::Ancestry;

use crate::epoch::Epoch;
use crate::faults::{authority_of, fault_of, write_caveats};
use crate::gift;
use crate::lending::boot_ns;
use crate::meters::Limits;
use crate::transport::Tag;
use crate::vat::{Vat, Whence};

/// What a revocation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// From the command to quiescence, in microseconds.
    pub micros: u64,
    /// How many live capabilities ended with it.
    pub descendants: u64,
    /// Within how many milliseconds the last lease is over that somebody may still have on one of them.
    pub elsewhere_ms: u64,
}

/// One capability as its home vat sees it. Cheap to clone.
#[derive(Clone)]
pub struct Facet {
    inner: Rc<Inner>,
}

struct Inner {
    vat: Vat,
    session: SessionId,
    slot: SlotRef,
    /// Known from the first check that found it alive.
    ancestry: OnceCell<Ancestry>,
    cap: CapId,
    kind: Kind,
    object: ObjectId,
    authority: Authority,
    tenant: TenantId,
    holder: Option<HolderKey>,
    lineage: Vec<Limits>,
    /// The capability that lasts under which it is held.
    lasting: CapId,
    origin: Origin,
    /// Whose edge it is, if it is one's root.
    edge: Option<String>,
    /// In which epoch of its holder's node it was given, if that is another node.
    epoch: Option<Epoch>,
}

/// Where a facet's capability comes from, and so what ends with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Made for an object or an edge: it outlives this facet.
    Lasting,
    /// Bound to its session and held by this facet alone: its slot goes when the facet does.
    Session,
    /// The same, restored from a chain whose last link this is.
    Link(LinkHash),
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.origin != Origin::Lasting {
            self.vat.release(self.slot);
        }
    }
}

impl Facet {
    pub(crate) fn new(
        vat: &Vat,
        session: SessionId,
        grant: kernel_capnp::grant::Reader<'_>,
        origin: Origin,
    ) -> Result<Facet, Fault> {
        let read = |grant: kernel_capnp::grant::Reader<'_>| -> capnp::Result<Facet> {
            let slot = grant.get_slot()?;
            let lineage = grant.get_lineage()?.iter().map(|a| Limits {
                cap: CapId(a.get_cap_id()),
                quota_bytes: a.get_quota_bytes(),
                quota_tasks: a.get_quota_tasks(),
                rate_per_s: a.get_rate_per_s(),
            });
            let lineage: Vec<Limits> = lineage.collect();
            let cap = CapId(grant.get_cap_id());
            let lasting = match (origin, lineage.iter().rev().nth(1)) {
                (Origin::Link(_), Some(link)) => link.cap,
                _ => cap,
            };
            Ok(Facet {
                inner: Rc::new(Inner {
                    vat: vat.clone(),
                    session,
                    slot: SlotRef {
                        index: slot.get_index(),
                        generation: Generation(slot.get_generation()),
                    },
                    ancestry: OnceCell::new(),
                    cap,
                    kind: Kind(grant.get_kind()),
                    object: ObjectId(grant.get_object()),
                    authority: authority_of(grant.get_rights(), grant.get_caveats()?),
                    tenant: TenantId(grant.get_tenant()),
                    holder: HolderKey::try_from(grant.get_holder()?).ok(),
                    lineage,
                    lasting,
                    origin,
                    edge: None,
                    epoch: vat.epoch_of(session),
                }),
            })
        };
        read(grant).map_err(|e| fault_of(&e))
    }

    pub(crate) fn of_edge(
        vat: &Vat,
        session: SessionId,
        grant: &crate::boot::EdgeGrant,
        peer: &str,
    ) -> Facet {
        let cap = CapId(grant.cap_id);
        Facet {
            inner: Rc::new(Inner {
                vat: vat.clone(),
                session,
                slot: SlotRef {
                    index: grant.slot_index,
                    generation: Generation(grant.slot_generation),
                },
                ancestry: OnceCell::new(),
                cap,
                kind: Kind(grant.kind),
                object: ObjectId::ROOT,
                authority: Authority { rights: Rights(grant.rights), ..Authority::FULL },
                tenant: TenantId(grant.tenant),
                holder: None,
                lineage: vec![Limits {
                    cap,
                    quota_bytes: u64::MAX,
                    quota_tasks: u32::MAX,
                    rate_per_s: u32::MAX,
                }],
                lasting: cap,
                origin: Origin::Lasting,
                edge: Some(peer.to_owned()),
                epoch: None,
            }),
        }
    }

    /// The vat that serves the object.
    pub fn vat(&self) -> &Vat {
        &self.inner.vat
    }

    /// What type of object it is.
    pub fn kind(&self) -> Kind {
        self.inner.kind
    }

    /// Which object it is.
    pub fn object(&self) -> ObjectId {
        self.inner.object
    }

    /// Whose resources it uses.
    pub fn tenant(&self) -> TenantId {
        self.inner.tenant
    }

    /// The capability's lasting identity.
    pub fn cap_id(&self) -> CapId {
        self.inner.cap
    }

    /// Every ancestor, root first, and itself last.
    pub fn lineage(&self) -> Vec<CapId> {
        self.inner.lineage.iter().map(|ancestor| ancestor.cap).collect()
    }

    /// What it allows, short of asking whether it is still alive.
    pub fn authority(&self) -> Authority {
        self.inner.authority
    }

    /// The key that it was restored with; `None` if a vat of this node holds it.
    pub fn holder(&self) -> Option<HolderKey> {
        self.inner.holder
    }

    /// Where its calls come from.
    pub fn whence(&self) -> Whence {
        self.inner.vat.whence(self.inner.session)
    }

    /// The capability that lasts under which it is held: the chain's last link, if this was restored from one or derived
    /// from what was, and otherwise itself. It is the same each time that the chain is restored.
    pub fn lasting_cap(&self) -> CapId {
        self.inner.lasting
    }

    /// Whether it was restored from a chain, and nothing was derived since: what is minted from it hangs from the chain's last
    /// link, so it outlives this session, and revoking this ends it.
    pub fn is_restored(&self) -> bool {
        matches!(self.inner.origin, Origin::Link(_))
    }

    /// The vat of this node to whose edge this is the root, as the kernel names it. What was derived from
    /// it may be anybody's, and has none.
    pub fn edge(&self) -> Option<&str> {
        self.inner.edge.as_deref()
    }

    /// The check at dispatch, for an operation on the whole object. A refusal goes to the audit
    /// log.
    pub fn check(&self, need: Rights) -> Result<(), Fault> {
        self.check_range(need, ByteRange { start: 0, end: 0 })
    }

    /// The check at dispatch, for an operation on some bytes.
    pub fn check_range(&self, need: Rights, range: ByteRange) -> Result<(), Fault> {
        let allowed = self.permits(need, range).and_then(|()| {
            let now_ms = self.inner.vat.now_ms();
            self.inner.vat.meters().tick(&self.inner.lineage, now_ms)
        });
        self.audited(allowed)
    }

    /// The check at commit (C2): runs `act` under a guard, if the capability is alive and
    /// sufficient. `act` must not block: a revocation waits for it.
    pub fn commit<T>(
        &self,
        need: Rights,
        range: ByteRange,
        act: impl FnOnce() -> T,
    ) -> Result<T, Fault> {
        let checker = self.inner.vat.checker();
        let allowed = self.permits(need, range).and_then(|()| {
            let committed = self
                .ancestry()
                .and_then(|ancestry| checker.guards.commit_below(&checker.view, ancestry, act));
            committed.ok_or(Fault::Revoked)
        });
        self.audited(allowed)
    }

    /// Tells whoever traces handoffs that the call of this number has come by this capability, before it is checked:
    /// a method of which it matters in which order its calls take effect begins with this. Numbers are the caller's,
    /// and each is of one call.
    pub fn arrived(&self, n: u64) {
        let session = self.inner.session.0;
        tracing::debug!(target: gift::TRACE, at = boot_ns(), session, n, "arrived");
    }

    /// Tells the same that this call has taken effect, right behind [`Facet::commit`]; not within, for a revocation
    /// would wait.
    pub fn took_effect(&self, n: u64) {
        let session = self.inner.session.0;
        tracing::debug!(target: gift::TRACE, at = boot_ns(), session, n, "effect");
    }

    /// The results of a call, for the method to fill. The reply is checked again, under a guard,
    /// as it enters the writer; if the capability was revoked by then, the caller gets that fault
    /// and not a byte of the reply. Use it in place of `results.get()`, and before it.
    pub fn reply<'a, T: Owned>(&self, results: &'a mut Results<T>) -> T::Builder<'a> {
        let checker = self.inner.vat.checker();
        let (slot, epoch) = (self.inner.slot, self.inner.epoch.clone());
        checker.tag.set(Some(Tag { slot, epoch }));
        let builder = results.get();
        checker.tag.set(None);
        builder
    }

    /// A durable capability to a new object of this vat, below this one: it ends when this one
    /// does, and what it holds is charged here too.
    pub async fn mint(
        &self,
        kind: Kind,
        object: ObjectId,
        authority: Authority,
    ) -> Result<Facet, Fault> {
        self.below(kind, object, authority, None).await
    }

    /// A capability to another object of this vat that exists already, below this one and bound
    /// to this session.
    pub async fn reach(
        &self,
        kind: Kind,
        object: ObjectId,
        authority: Authority,
    ) -> Result<Facet, Fault> {
        self.below(kind, object, authority, Some(self.inner.session)).await
    }

    async fn below(
        &self,
        kind: Kind,
        object: ObjectId,
        authority: Authority,
        session: Option<SessionId>,
    ) -> Result<Facet, Fault> {
        let origin = if session.is_some() { Origin::Session } else { Origin::Lasting };
        let mut request = self.inner.vat.kernel()?.mint_request();
        let mut params = request.get();
        write_slot(self.inner.slot, params.reborrow().init_parent());
        params.set_has_parent(true);
        params.set_kind(kind.0);
        params.set_object(object.0);
        params.set_rights(authority.rights.0);
        params.set_session(session.map_or(0, |session| session.0));
        write_caveats(authority.caveats, params.init_caveats());
        let response = request.send().promise.await.map_err(|e| fault_of(&e))?;
        self.granted(response.get().and_then(|r| r.get_grant()), origin)
    }

    /// A weaker capability to the same object, bound to this session.
    pub async fn attenuate(&self, wanted: Authority) -> Result<Facet, Fault> {
        // The kernel decides; asking here first puts the refusal into the audit log by name.
        self.audited(self.inner.authority.narrow(wanted))?;
        let mut request = self.inner.vat.kernel()?.derive_request();
        let mut params = request.get();
        write_slot(self.inner.slot, params.reborrow().init_parent());
        params.set_rights(wanted.rights.0);
        params.set_session(self.inner.session.0);
        write_caveats(wanted.caveats, params.init_caveats());
        let response = request.send().promise.await.map_err(|e| fault_of(&e))?;
        self.granted(response.get().and_then(|r| r.get_grant()), Origin::Session)
    }

    /// A sturdy capability to the same object for the same holder: the bytes of a certificate
    /// chain of one link.
    pub async fn persist(&self, wanted: Authority) -> Result<Vec<u8>, Fault> {
        self.audited(self.inner.authority.narrow(wanted))?;
        let mut request = self.inner.vat.kernel()?.persist_request();
        let mut params = request.get();
        write_slot(self.inner.slot, params.reborrow().init_slot());
        params.set_rights(wanted.rights.0);
        write_caveats(wanted.caveats, params.init_caveats());
        let response = request.send().promise.await.map_err(|e| fault_of(&e))?;
        let chain = response.get().and_then(|r| r.get_chain()).map_err(|e| fault_of(&e))?;
        Ok(chain.to_vec())
    }

    /// Leaves a one-shot capability for a receiver, as the kernel knows it. It hangs from what this capability
    /// was restored from, if it was: what was given outlives the giver's connection, and revoking the giver's
    /// capability, which revokes that link, ends it (`specs/handoff`).
    pub async fn gift(&self, receiver: &str, wanted: Authority) -> Result<Vec<u8>, Fault> {
        self.audited(self.inner.authority.narrow(wanted))?;
        let mut parent = self.inner.slot;
        if let Origin::Link(_) = self.inner.origin {
            // The kernel put this session's capability right below the link's.
            let link = self.inner.vat.checker().view.parent(parent);
            parent = link.ok_or(Fault::Revoked)?;
        }
        let mut request = self.inner.vat.kernel()?.deposit_request();
        let mut params = request.get();
        write_slot(parent, params.reborrow().init_parent());
        params.set_receiver(receiver);
        params.set_rights(wanted.rights.0);
        write_caveats(wanted.caveats, params.init_caveats());
        let response = request.send().promise.await.map_err(|e| fault_of(&e))?;
        let ticket = response.get().and_then(|r| r.get_ticket()).map_err(|e| fault_of(&e))?;
        Ok(ticket.to_vec())
    }

    /// Ends this capability and all below it. When it returns, none of them has an effect. One that
    /// was restored from a certificate ends for good: the certificate cannot be redeemed again.
    pub async fn revoke(&self) -> Result<Revoked, Fault> {
        if let Origin::Link(link) = self.inner.origin {
            return self.revoke_link(&link.0, self.inner.authority.caveats.expires_ms).await;
        }
        let began = boot_ns();
        let mut request = self.inner.vat.kernel()?.revoke_request();
        write_slot(self.inner.slot, request.get().init_slot());
        let response = request.send().promise.await.map_err(|e| fault_of(&e))?;
        let done = response.get().map_err(|e| fault_of(&e))?;
        let elsewhere_ms = self.inner.vat.lending().ended(self.inner.slot, began).await;
        let (micros, descendants) = (done.get_micros(), done.get_descendants());
        Ok(Revoked { micros, descendants, elsewhere_ms })
    }

    /// Ends a delegation that was made below this capability, redeemed or not.
    pub async fn revoke_link(&self, link: &[u8], expires_ms: u64) -> Result<Revoked, Fault> {
        let (began, marks) = (boot_ns(), self.inner.vat.lending().marks());
        let mut request = self.inner.vat.kernel()?.revoke_link_request();
        let mut params = request.get();
        write_slot(self.inner.slot, params.reborrow().init_under());
        params.set_link(link);
        params.set_expires_ms(expires_ms);
        let response = request.send().promise.await.map_err(|e| fault_of(&e))?;
        let done = response.get().map_err(|e| fault_of(&e))?;
        let vat = &self.inner.vat;
        let elsewhere_ms = vat.lending().some_ended(vat, marks, began).await;
        let (micros, descendants) = (done.get_micros(), done.get_descendants());
        Ok(Revoked { micros, descendants, elsewhere_ms })
    }

    /// Puts a refusal into the audit log that this facet could not see: of something that the
    /// caller asked for by name. Gives the fault back.
    pub fn refused(&self, fault: Fault) -> Fault {
        self.report_denial(&fault);
        fault
    }

    /// Charges this capability's meter and every ancestor's, or none of them.
    pub fn charge(&self, meter: Meter, amount: u64) -> Result<(), Fault> {
        self.audited(self.inner.vat.meters().charge(&self.inner.lineage, meter, amount))
    }

    /// Gives back what was charged.
    pub fn refund(&self, meter: Meter, amount: u64) {
        self.inner.vat.meters().refund(&self.lineage(), meter, amount);
    }

    /// What a holder may know about its own capability.
    pub(crate) fn describe(&self, mut info: capability_capnp::info::Builder<'_>) {
        let inner = &self.inner;
        info.set_kind(distos_types::kind::name(inner.kind));
        info.set_object(inner.object.0);
        info.set_vat(inner.vat.name().as_str());
        info.set_rights(inner.authority.rights.0);
        info.set_tenant(inner.tenant.0);
        info.set_depth(inner.lineage.len().saturating_sub(1) as u8);
        info.set_cap_id(inner.cap.0);
        write_caveats(inner.authority.caveats, info.init_caveats());
    }

    /// Alive, in time, and sufficient for `need`; and given in the present epoch of its holder's node (A3).
    pub(crate) fn permits(&self, need: Rights, range: ByteRange) -> Result<(), Fault> {
        let view = &self.inner.vat.checker().view;
        if self.inner.epoch.as_ref().is_some_and(Epoch::is_over) {
            return Err(Fault::Revoked);
        }
        if !self.ancestry().is_some_and(|ancestry| view.holds(ancestry)) {
            return Err(Fault::Revoked);
        }
        self.inner.authority.permits(need, range, self.inner.vat.now_ms())
    }

    /// The connection that it belongs to.
    pub(crate) fn session(&self) -> SessionId {
        self.inner.session
    }

    /// Its slot and those of what it was derived from, the root's first. All were alive when this returned.
    pub(crate) fn line(&self) -> Result<Vec<SlotRef>, Fault> {
        let view = &self.inner.vat.checker().view;
        let above = std::iter::successors(Some(self.inner.slot), |slot| view.parent(*slot));
        let mut line: Vec<SlotRef> = above.take(MAX_DEPTH).collect();
        line.reverse();
        // A slot's parent does not change while it stands: all of them were those of the line.
        self.permits(Rights::NONE, ByteRange { start: 0, end: 0 })?;
        Ok(line)
    }

    /// `None` if the capability is not alive.
    fn ancestry(&self) -> Option<&Ancestry> {
        let known = &self.inner.ancestry;
        if known.get().is_none() {
            let found = self.inner.vat.checker().view.ancestry(self.inner.slot)?;
            // Nobody was in between: a facet stays on its thread.
            let _ = known.set(found);
        }
        known.get()
    }

    fn audited<T>(&self, outcome: Result<T, Fault>) -> Result<T, Fault> {
        outcome.inspect_err(|fault| self.report_denial(fault))
    }

    fn report_denial(&self, fault: &Fault) {
        let what = distos_types::kind::name(self.inner.kind);
        let detail = format!("{what} {}: {fault}", self.inner.object);
        self.inner.vat.report("denial", self.inner.tenant, self.inner.cap, detail);
    }

    fn granted(
        &self,
        grant: capnp::Result<kernel_capnp::grant::Reader<'_>>,
        origin: Origin,
    ) -> Result<Facet, Fault> {
        let grant = grant.map_err(|e| fault_of(&e))?;
        let mut facet = Facet::new(&self.inner.vat, self.inner.session, grant, origin)?;
        if let (Origin::Session, Some(inner)) = (origin, Rc::get_mut(&mut facet.inner)) {
            inner.lasting = self.inner.lasting;
        }
        Ok(facet)
    }
}

fn write_slot(slot: SlotRef, mut to: capability_capnp::slot::Builder<'_>) {
    to.set_index(slot.index);
    to.set_generation(slot.generation.0);
}
