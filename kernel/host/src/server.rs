//! The kernel's side of every vat's socket: commands of its own services, decoded and handed to
//! [`Kernel`]. Each server knows which vat it talks to, and every command acts on that vat's own
//! objects only.

use std::rc::Rc;

use distos_abi::{
    CapId, Fault, Generation, Kind, LinkHash, MAX_CHAIN_LINKS, ObjectId, Rights, SessionId,
    SlotRef, TenantId, VatName,
};
use distos_core::{Command, GrantView, Holder, LinkClaim, Outcome};
use distos_rpc::boot::Protection;
use distos_rpc::{authority_of, fail, write_caveats};
use distos_schemas::{capability_capnp, kernel_capnp};
use distos_types::{Chain, Root, channel_message};
use kernel_capnp::kernel::{self, *};

use crate::control::{ControlServer, SpawnerServer};
use crate::kernel::{Kernel, Revoked, now_ms};
use crate::outbox::OutboxServer;
use crate::plan::Power;
use crate::vats::{Vat, Vats};

/// The epoch of the kernel's signing key, named by every root certificate.
pub(crate) const KEY_EPOCH: u32 = 1;
/// How long a gift waits for its receiver.
const GIFT_MS: u64 = 30_000;
/// Most slots released in one call.
const MAX_RELEASES: usize = 1024;
/// How long a vat's channel key is good for once it was signed: nobody can take that back.
const CHANNEL_LASTS_MS: u64 = 600_000;
/// Events that one vat may report in a second.
const MAX_EVENTS_PER_S: u32 = 2000;
/// Protections that a vat may report.
const MAX_PROTECTIONS: usize = 32;

/// What a method of the kernel's interfaces comes to, beside its results.
pub(crate) type Done = Result<(), capnp::Error>;

/// What one vat holds of the kernel.
pub(crate) struct KernelServer {
    kernel: Rc<Kernel>,
    vats: Rc<Vats>,
    vat: Rc<Vat>,
    events: std::cell::Cell<(u64, u32)>,
}

impl KernelServer {
    pub(crate) fn new(vats: &Rc<Vats>, vat: Rc<Vat>) -> KernelServer {
        KernelServer {
            kernel: vats.kernel.clone(),
            vats: vats.clone(),
            vat,
            events: Default::default(),
        }
    }

    /// The name that commands of this vat carry; a fault once its process is gone, for what it
    /// sent before its end must not outlive the end of its sessions.
    fn name(&self) -> Result<VatName, capnp::Error> {
        if self.vat.dead.get() {
            return Err(fail(Fault::unavailable(0, "this vat has ended")));
        }
        Ok(self.vat.name.clone())
    }

    async fn granted(&self, command: Command, results: kernel_capnp::grant::Builder<'_>) -> Done {
        match self.kernel.apply(command).await.map_err(fail)? {
            Outcome::Granted(grant) => {
                write_grant(&grant, results);
                Ok(())
            }
            _ => Err(fail(Fault::internal("the command yields no capability"))),
        }
    }

    fn has(&self, power: impl Fn(&Power) -> bool) -> Done {
        let granted = self.vat.plan.powers.iter().any(power);
        if granted { Ok(()) } else { Err(fail(Fault::denied(Rights::ADMIN))) }
    }

    /// Whether one more event of this second is taken.
    fn admits_event(&self) -> bool {
        let second = now_ms() / 1000;
        let (window, count) = self.events.get();
        let count = if window == second { count } else { 0 };
        self.events.set((second, count.saturating_add(1)));
        count < MAX_EVENTS_PER_S
    }
}

impl kernel::Server for KernelServer {
    async fn ready(self: Rc<Self>, params: ReadyParams, _: ReadyResults) -> Done {
        let mut protections = Vec::new();
        for protection in params.get()?.get_protections()?.iter().take(MAX_PROTECTIONS) {
            protections.push(Protection {
                name: protection.get_name()?.to_str()?.to_owned(),
                enforced: protection.get_enforced(),
                detail: protection.get_detail()?.to_str()?.to_owned(),
            });
        }
        self.vat.announce_ready(protections);
        Ok(())
    }

    async fn mint(self: Rc<Self>, params: MintParams, mut results: MintResults) -> Done {
        let command = {
            let params = params.get()?;
            Command::Mint {
                vat: self.name()?,
                parent: if params.get_has_parent() {
                    Some(slot(params.get_parent()?))
                } else {
                    None
                },
                kind: Kind(params.get_kind()),
                object: ObjectId(params.get_object()),
                authority: authority_of(params.get_rights(), params.get_caveats()?),
                session: Some(params.get_session()).filter(|s| *s != 0).map(SessionId),
            }
        };
        self.granted(command, results.get().init_grant()).await
    }

    async fn derive(self: Rc<Self>, params: DeriveParams, mut results: DeriveResults) -> Done {
        let command = {
            let params = params.get()?;
            Command::Derive {
                vat: self.name()?,
                parent: slot(params.get_parent()?),
                wanted: authority_of(params.get_rights(), params.get_caveats()?),
                session: SessionId(params.get_session()),
            }
        };
        self.granted(command, results.get().init_grant()).await
    }

    async fn redeem(self: Rc<Self>, params: RedeemParams, mut results: RedeemResults) -> Done {
        let command = {
            let params = params.get()?;
            let chain = Chain::decode(params.get_chain()?).map_err(fail)?;
            let signer = self.kernel.node();
            let known = |epoch| (epoch == KEY_EPOCH).then_some(signer);
            chain.verify(known, now_ms()).map_err(fail)?;
            let vat = self.name()?;
            if chain.root().node != signer || chain.root().vat != vat {
                return Err(fail(Fault::not_found("this capability belongs to another vat")));
            }
            let facts = chain.links();
            debug_assert!(facts.len() <= MAX_CHAIN_LINKS);
            let links = facts
                .into_iter()
                .map(|link| LinkClaim {
                    hash: link.hash,
                    holder: link.holder,
                    issuer: link.issuer,
                    authority: link.authority,
                })
                .collect();
            Command::Redeem {
                vat,
                root_cap: chain.root().cap,
                links,
                session: SessionId(params.get_session()),
            }
        };
        self.granted(command, results.get().init_grant()).await
    }

    async fn deposit(self: Rc<Self>, params: DepositParams, mut results: DepositResults) -> Done {
        let mut ticket = [0; 32];
        getrandom::fill(&mut ticket).map_err(|e| fail(Fault::internal(e)))?;
        let command = {
            let params = params.get()?;
            Command::Deposit {
                vat: self.name()?,
                parent: slot(params.get_parent()?),
                receiver: VatName::new(params.get_receiver()?.to_str()?).map_err(fail)?,
                wanted: authority_of(params.get_rights(), params.get_caveats()?),
                ticket,
                expires_ms: now_ms() + GIFT_MS,
            }
        };
        self.kernel.apply(command).await.map_err(fail)?;
        results.get().set_ticket(&ticket);
        Ok(())
    }

    async fn withdraw(
        self: Rc<Self>,
        params: WithdrawParams,
        mut results: WithdrawResults,
    ) -> Done {
        let command = {
            let params = params.get()?;
            let ticket = params.get_ticket()?;
            Command::Withdraw {
                vat: self.name()?,
                ticket: ticket.try_into().map_err(|_| fail(Fault::not_found("gift")))?,
                receiver: VatName::new(params.get_receiver()?.to_str()?).map_err(fail)?,
                session: SessionId(params.get_session()),
            }
        };
        self.granted(command, results.get().init_grant()).await
    }

    async fn persist(self: Rc<Self>, params: PersistParams, mut results: PersistResults) -> Done {
        let vat = self.name()?;
        let command = {
            let params = params.get()?;
            Command::PersistCheck {
                vat: vat.clone(),
                slot: slot(params.get_slot()?),
                wanted: authority_of(params.get_rights(), params.get_caveats()?),
            }
        };
        let outcome = self.kernel.apply(command).await.map_err(fail)?;
        let chain = sign_root(&self.kernel, vat, outcome).map_err(fail)?;
        results.get().set_chain(&chain.encode());
        Ok(())
    }

    async fn revoke(self: Rc<Self>, params: RevokeParams, mut results: RevokeResults) -> Done {
        let command = Command::Revoke { vat: self.name()?, slot: slot(params.get()?.get_slot()?) };
        let done = self.kernel.revoke(command).await.map_err(fail)?;
        results.get().set_micros(done.micros);
        results.get().set_descendants(done.descendants);
        Ok(())
    }

    async fn revoke_link(
        self: Rc<Self>,
        params: RevokeLinkParams,
        mut results: RevokeLinkResults,
    ) -> Done {
        let command = {
            let params = params.get()?;
            Command::RevokeLink {
                vat: self.name()?,
                under: slot(params.get_under()?),
                link: LinkHash::try_from(params.get_link()?).map_err(fail)?,
                expires_ms: params.get_expires_ms(),
            }
        };
        let Revoked { micros, descendants } = self.kernel.revoke(command).await.map_err(fail)?;
        results.get().set_micros(micros);
        results.get().set_descendants(descendants);
        Ok(())
    }

    async fn revoke_object(
        self: Rc<Self>,
        params: RevokeObjectParams,
        mut results: RevokeObjectResults,
    ) -> Done {
        let command = {
            let params = params.get()?;
            Command::RevokeObject {
                vat: self.name()?,
                kind: Kind(params.get_kind()),
                object: ObjectId(params.get_object()),
            }
        };
        let done = self.kernel.revoke(command).await.map_err(fail)?;
        results.get().set_micros(done.micros);
        results.get().set_descendants(done.descendants);
        Ok(())
    }

    async fn end_session(self: Rc<Self>, params: EndSessionParams, _: EndSessionResults) -> Done {
        let session = SessionId(params.get()?.get_session());
        self.kernel.drop_at_once(Command::EndSession { vat: self.name()?, session });
        Ok(())
    }

    async fn release(self: Rc<Self>, params: ReleaseParams, _: ReleaseResults) -> Done {
        for dropped in params.get()?.get_slots()?.iter().take(MAX_RELEASES) {
            self.kernel.drop_at_once(Command::Revoke { vat: self.name()?, slot: slot(dropped) });
        }
        Ok(())
    }

    async fn objects(self: Rc<Self>, _: ObjectsParams, mut results: ObjectsResults) -> Done {
        let objects = self.kernel.forest.borrow().objects(&self.name()?);
        let mut list = results.get().init_objects(objects.len() as u32);
        for (index, (kind, object, tenant)) in objects.into_iter().enumerate() {
            let mut entry = list.reborrow().get(index as u32);
            entry.set_kind(kind.0);
            entry.set_object(object.0);
            entry.set_tenant(tenant.0);
        }
        Ok(())
    }

    async fn certify(self: Rc<Self>, params: CertifyParams, mut results: CertifyResults) -> Done {
        let key = params.get()?.get_key()?.try_into();
        let key = key.map_err(|_| fail(Fault::malformed("a channel's key has 32 bytes")))?;
        let until_ms = now_ms().saturating_add(CHANNEL_LASTS_MS);
        let message = channel_message(self.kernel.node(), &self.name()?, key, until_ms);
        results.get().set_until_ms(until_ms);
        results.get().set_signature(&self.kernel.secret.sign(&message));
        Ok(())
    }

    async fn report(self: Rc<Self>, params: ReportParams, _: ReportResults) -> Done {
        if !self.admits_event() {
            return Err(fail(Fault::unavailable(1000, "too many events in a second")));
        }
        let event = params.get()?.get_event()?;
        let command = Command::Report {
            vat: self.name()?,
            kind: event.get_kind()?.to_str()?.to_owned(),
            tenant: TenantId(event.get_tenant()),
            cap: CapId(event.get_cap_id()),
            detail: event.get_detail()?.to_str()?.to_owned(),
        };
        self.kernel.report(command).map_err(fail)
    }

    async fn outbox(self: Rc<Self>, _: OutboxParams, mut results: OutboxResults) -> Done {
        self.has(|power| *power == Power::Outbox)?;
        results
            .get()
            .set_outbox(capnp_rpc::new_client(OutboxServer { kernel: self.kernel.clone() }));
        Ok(())
    }

    async fn spawner(self: Rc<Self>, _: SpawnerParams, mut results: SpawnerResults) -> Done {
        self.has(|power| matches!(power, Power::Spawn(_)))?;
        let server = SpawnerServer { vats: self.vats.clone(), vat: self.vat.clone() };
        results.get().set_spawner(capnp_rpc::new_client(server));
        Ok(())
    }

    async fn control(self: Rc<Self>, _: ControlParams, mut results: ControlResults) -> Done {
        self.has(|power| *power == Power::Control)?;
        let server = ControlServer { vats: self.vats.clone(), vat: self.vat.clone() };
        results.get().set_control(capnp_rpc::new_client(server));
        Ok(())
    }
}

/// A sturdy capability of one link. Besides these the kernel's key signs whose a channel's key is, and nothing else.
pub(crate) fn sign_root(kernel: &Kernel, vat: VatName, outcome: Outcome) -> Result<Chain, Fault> {
    let Outcome::Persist { cap, kind, object, holder, authority } = outcome else {
        return Err(Fault::internal("the command yields no certificate"));
    };
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).map_err(Fault::internal)?;
    let root = Root {
        node: kernel.node(),
        key_epoch: KEY_EPOCH,
        vat,
        kind,
        object,
        cap,
        holder,
        authority,
        nonce,
    };
    Ok(Chain::issue(root, &kernel.secret))
}

fn slot(slot: capability_capnp::slot::Reader<'_>) -> SlotRef {
    SlotRef { index: slot.get_index(), generation: Generation(slot.get_generation()) }
}

fn write_grant(grant: &GrantView, mut out: kernel_capnp::grant::Builder<'_>) {
    let facts = &grant.facts;
    let mut slot = out.reborrow().init_slot();
    slot.set_index(grant.slot.index);
    slot.set_generation(grant.slot.generation.0);
    out.set_cap_id(grant.cap.0);
    out.set_kind(facts.kind.0);
    out.set_object(facts.object.0);
    out.set_rights(facts.authority.rights.0);
    write_caveats(facts.authority.caveats, out.reborrow().init_caveats());
    out.set_tenant(facts.tenant.0);
    if let Holder::Key(key) = &facts.holder {
        out.set_holder(&key.0);
    }
    let mut lineage = out.init_lineage(grant.lineage.len() as u32);
    for (index, ancestor) in grant.lineage.iter().enumerate() {
        let mut entry = lineage.reborrow().get(index as u32);
        entry.set_cap_id(ancestor.cap.0);
        entry.set_quota_bytes(ancestor.quota_bytes);
        entry.set_quota_tasks(ancestor.quota_tasks);
        entry.set_rate_per_s(ancestor.rate_per_s);
    }
}
