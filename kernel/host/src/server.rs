//! The kernel's side of every vat's socket: commands of its own services, decoded and handed to
//! [`Kernel`]. Each server knows which vat it talks to, and every command acts on that vat's own
//! objects only.

use std::rc::Rc;
use std::time::Duration;

use distos_abi::{
    ByteRange, CapId, Caveats, Fault, Generation, Kind, LinkHash, MAX_CHAIN_LINKS, ObjectId,
    Rights, SessionId, SlotRef, TenantId, VatName,
};
use distos_core::{Command, GrantView, Holder, LinkClaim, Outcome, Record};
use distos_rpc::boot::Protection;
use distos_rpc::{authority_of, fail, write_caveats};
use distos_schemas::{capability_capnp, kernel_capnp};
use distos_types::{Chain, Root};
use kernel_capnp::{control, kernel, outbox, spawner};

use crate::journal::codec;
use crate::kernel::{Kernel, Revoked, now_ms};
use crate::plan::Power;
use crate::vats::{Vat, Vats};

/// The epoch of the kernel's signing key, named by every root certificate.
pub(crate) const KEY_EPOCH: u32 = 1;
/// How long a gift waits for its receiver.
const GIFT_MS: u64 = 30_000;
/// Most records in one pull.
const MAX_PULL: usize = 1024;
/// How long a pull waits when there is nothing.
const PULL_WAIT: Duration = Duration::from_secs(1);
/// Events that one vat may report in a second.
const MAX_EVENTS_PER_S: u32 = 2000;
/// Nodes of the forest in one answer.
const MAX_TREE: usize = 4096;
/// Protections that a vat may report.
const MAX_PROTECTIONS: usize = 32;

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

    async fn granted(
        &self,
        command: Command,
        results: kernel_capnp::grant::Builder<'_>,
    ) -> Result<(), capnp::Error> {
        match self.kernel.apply(command).await.map_err(fail)? {
            Outcome::Granted(grant) => {
                write_grant(&grant, results);
                Ok(())
            }
            _ => Err(fail(Fault::internal("the command yields no capability"))),
        }
    }

    fn has(&self, power: impl Fn(&Power) -> bool) -> Result<(), capnp::Error> {
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
    async fn ready(
        self: Rc<Self>,
        params: kernel::ReadyParams,
        _: kernel::ReadyResults,
    ) -> Result<(), capnp::Error> {
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

    async fn mint(
        self: Rc<Self>,
        params: kernel::MintParams,
        mut results: kernel::MintResults,
    ) -> Result<(), capnp::Error> {
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

    async fn derive(
        self: Rc<Self>,
        params: kernel::DeriveParams,
        mut results: kernel::DeriveResults,
    ) -> Result<(), capnp::Error> {
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

    async fn redeem(
        self: Rc<Self>,
        params: kernel::RedeemParams,
        mut results: kernel::RedeemResults,
    ) -> Result<(), capnp::Error> {
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

    async fn deposit(
        self: Rc<Self>,
        params: kernel::DepositParams,
        mut results: kernel::DepositResults,
    ) -> Result<(), capnp::Error> {
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
        params: kernel::WithdrawParams,
        mut results: kernel::WithdrawResults,
    ) -> Result<(), capnp::Error> {
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

    async fn persist(
        self: Rc<Self>,
        params: kernel::PersistParams,
        mut results: kernel::PersistResults,
    ) -> Result<(), capnp::Error> {
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

    async fn revoke(
        self: Rc<Self>,
        params: kernel::RevokeParams,
        mut results: kernel::RevokeResults,
    ) -> Result<(), capnp::Error> {
        let command = Command::Revoke { vat: self.name()?, slot: slot(params.get()?.get_slot()?) };
        let done = self.kernel.revoke(command).await.map_err(fail)?;
        results.get().set_micros(done.micros);
        results.get().set_descendants(done.descendants);
        Ok(())
    }

    async fn revoke_link(
        self: Rc<Self>,
        params: kernel::RevokeLinkParams,
        mut results: kernel::RevokeLinkResults,
    ) -> Result<(), capnp::Error> {
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
        params: kernel::RevokeObjectParams,
        mut results: kernel::RevokeObjectResults,
    ) -> Result<(), capnp::Error> {
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

    async fn end_session(
        self: Rc<Self>,
        params: kernel::EndSessionParams,
        _: kernel::EndSessionResults,
    ) -> Result<(), capnp::Error> {
        let session = SessionId(params.get()?.get_session());
        self.kernel.drop_at_once(Command::EndSession { vat: self.name()?, session });
        Ok(())
    }

    async fn release(
        self: Rc<Self>,
        params: kernel::ReleaseParams,
        _: kernel::ReleaseResults,
    ) -> Result<(), capnp::Error> {
        for dropped in params.get()?.get_slots()?.iter().take(MAX_PULL) {
            self.kernel.drop_at_once(Command::Revoke { vat: self.name()?, slot: slot(dropped) });
        }
        Ok(())
    }

    async fn objects(
        self: Rc<Self>,
        _: kernel::ObjectsParams,
        mut results: kernel::ObjectsResults,
    ) -> Result<(), capnp::Error> {
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

    async fn report(
        self: Rc<Self>,
        params: kernel::ReportParams,
        _: kernel::ReportResults,
    ) -> Result<(), capnp::Error> {
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

    async fn outbox(
        self: Rc<Self>,
        _: kernel::OutboxParams,
        mut results: kernel::OutboxResults,
    ) -> Result<(), capnp::Error> {
        self.has(|power| *power == Power::Outbox)?;
        results
            .get()
            .set_outbox(capnp_rpc::new_client(OutboxServer { kernel: self.kernel.clone() }));
        Ok(())
    }

    async fn spawner(
        self: Rc<Self>,
        _: kernel::SpawnerParams,
        mut results: kernel::SpawnerResults,
    ) -> Result<(), capnp::Error> {
        self.has(|power| matches!(power, Power::Spawn(_)))?;
        let server = SpawnerServer { vats: self.vats.clone(), vat: self.vat.clone() };
        results.get().set_spawner(capnp_rpc::new_client(server));
        Ok(())
    }

    async fn control(
        self: Rc<Self>,
        _: kernel::ControlParams,
        mut results: kernel::ControlResults,
    ) -> Result<(), capnp::Error> {
        self.has(|power| *power == Power::Control)?;
        let server = ControlServer { vats: self.vats.clone(), vat: self.vat.clone() };
        results.get().set_control(capnp_rpc::new_client(server));
        Ok(())
    }
}

/// A sturdy capability of one link: the kernel's key signs nothing else.
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
    let mut slot = out.reborrow().init_slot();
    slot.set_index(grant.slot.index);
    slot.set_generation(grant.slot.generation.0);
    out.set_cap_id(grant.cap.0);
    out.set_kind(grant.kind.0);
    out.set_object(grant.object.0);
    out.set_rights(grant.authority.rights.0);
    write_caveats(grant.authority.caveats, out.reborrow().init_caveats());
    out.set_tenant(grant.tenant.0);
    if let Holder::Key(key) = &grant.holder {
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

/// The journal as the audit service reads it.
struct OutboxServer {
    kernel: Rc<Kernel>,
}

impl outbox::Server for OutboxServer {
    async fn pull(
        self: Rc<Self>,
        params: outbox::PullParams,
        mut results: outbox::PullResults,
    ) -> Result<(), capnp::Error> {
        let (after, max) = {
            let params = params.get()?;
            (params.get_after(), (params.get_max() as usize).min(MAX_PULL))
        };
        if after > self.kernel.journal.status().last_seq {
            let why = format!(
                "this journal has no record {after}: it is not the one that was read before"
            );
            return Err(fail(Fault::Corrupt(why)));
        }
        // What is still on its way to the disk belongs to the answer too.
        self.kernel.journal.sync().await.map_err(fail)?;
        let appended = self.kernel.appended.notified();
        let read = || self.kernel.journal.read_from(after, max);
        let mut frames = read();
        if frames.is_empty() {
            let _ = tokio::time::timeout(PULL_WAIT, appended).await;
            frames = read();
        }
        let mut list = results.get().init_records(frames.len() as u32);
        for (index, frame) in frames.iter().enumerate() {
            let record = codec::decode(&frame.payload).map_err(|e| fail(Fault::internal(e)))?;
            let mut out = list.reborrow().get(index as u32);
            out.set_seq(frame.seq);
            out.set_time_ms(frame.time_ms);
            write_record(&record, out);
        }
        Ok(())
    }

    async fn ack(
        self: Rc<Self>,
        params: outbox::AckParams,
        _: outbox::AckResults,
    ) -> Result<(), capnp::Error> {
        let up_to = params.get()?.get_up_to();
        let snapshot =
            || self.kernel.forest.borrow().snapshot().iter().map(codec::encode).collect();
        self.kernel.journal.acknowledge(up_to, now_ms(), snapshot);
        Ok(())
    }
}

/// What an auditor reads of a journal record: every change of authority with its holder and
/// lineage.
fn write_record(record: &Record, mut out: kernel_capnp::record::Builder<'_>) {
    let (kind, detail) = match record {
        Record::Boot { epoch, image_hash } => {
            ("boot", format!("epoch {epoch}, image {}", hex(image_hash)))
        }
        Record::Floor { epoch, time_ms } => ("floor", format!("epoch {epoch}, time {time_ms}")),
        Record::Tenant(tenant) => {
            out.set_tenant(tenant.id.0);
            out.set_holder(&tenant.holder.0);
            ("tenant", format!("{} with {} slots", tenant.name, tenant.slot_quota))
        }
        Record::Node(node) => {
            out.set_vat(node.vat.as_str());
            out.set_tenant(node.tenant.0);
            out.set_cap_id(node.cap.0);
            write_lineage(&node.lineage, out.reborrow());
            write_holder(&node.holder, out.reborrow());
            let kind = match (&node.link, node.life) {
                (Some(_), _) => "redeem",
                (None, distos_core::Life::Durable) => "mint",
                (None, distos_core::Life::Edge) => "edge",
                (None, _) => "derive",
            };
            let link = node.link.map(|l| format!(", link {l}")).unwrap_or_default();
            let issuer = node.issuer.map(|i| format!(", by {i}")).unwrap_or_default();
            let holder = match &node.holder {
                Holder::Key(_) => String::new(),
                Holder::Vat(vat) => format!(", held by {vat}"),
            };
            let what = distos_types::kind::name(node.kind);
            let caveats = describe_caveats(&node.authority.caveats);
            let rights = node.authority.rights;
            (kind, format!("{what} {}: {rights}{caveats}{holder}{link}{issuer}", node.object))
        }
        Record::Revoke(revoked) => {
            out.set_vat(revoked.vat.as_str());
            out.set_tenant(revoked.tenant.0);
            out.set_cap_id(revoked.cap.0);
            write_lineage(&revoked.lineage, out.reborrow());
            write_holder(&revoked.holder, out.reborrow());
            (
                "revoke",
                format!("with {} below it ({:?})", revoked.descendants, revoked.reason)
                    .to_lowercase(),
            )
        }
        Record::Tombstone { under, link, expires_ms } => {
            out.set_cap_id(under.0);
            ("revoke", format!("link {link} before it was redeemed, until {expires_ms}"))
        }
        Record::SessionEnded { vat, session, ended } => {
            out.set_vat(vat.as_str());
            ("session", format!("{session} ended with {ended} capabilities"))
        }
        Record::VatDied { vat, ended } => {
            out.set_vat(vat.as_str());
            ("vat", format!("ended with {ended} capabilities"))
        }
        Record::Event { vat, kind, tenant, cap, lineage, detail } => {
            out.set_vat(vat.as_str());
            out.set_tenant(tenant.0);
            out.set_cap_id(cap.0);
            write_lineage(lineage, out.reborrow());
            (kind.as_str(), detail.clone())
        }
    };
    out.set_kind(kind);
    out.set_detail(&detail);
}

fn write_lineage(lineage: &[CapId], out: kernel_capnp::record::Builder<'_>) {
    let mut list = out.init_lineage(lineage.len() as u32);
    for (index, cap) in lineage.iter().enumerate() {
        list.set(index as u32, cap.0);
    }
}

fn write_holder(holder: &Holder, mut out: kernel_capnp::record::Builder<'_>) {
    if let Holder::Key(key) = holder {
        out.set_holder(&key.0);
    }
}

fn describe_caveats(caveats: &Caveats) -> String {
    let mut text = String::new();
    if caveats.range != ByteRange::WHOLE {
        text += &format!(", bytes {}..{}", caveats.range.start, caveats.range.end);
    }
    if caveats.expires_ms != u64::MAX {
        text += &format!(", until {}", caveats.expires_ms);
    }
    if caveats.quota_bytes != u64::MAX {
        text += &format!(", at most {} bytes", caveats.quota_bytes);
    }
    if caveats.quota_tasks != u32::MAX {
        text += &format!(", at most {} tasks", caveats.quota_tasks);
    }
    text
}

fn hex(bytes: &[u8; 32]) -> String {
    LinkHash(*bytes).to_string()
}

/// The power to start instances of templates.
struct SpawnerServer {
    vats: Rc<Vats>,
    vat: Rc<Vat>,
}

impl SpawnerServer {
    fn may_spawn(&self, template: &str) -> Result<(), capnp::Error> {
        let granted =
            self.vat.plan.powers.iter().any(|p| matches!(p, Power::Spawn(t) if t == template));
        if granted && !self.vat.dead.get() {
            Ok(())
        } else {
            Err(fail(Fault::denied(Rights::SPAWN)))
        }
    }
}

impl spawner::Server for SpawnerServer {
    async fn start(
        self: Rc<Self>,
        params: spawner::StartParams,
        mut results: spawner::StartResults,
    ) -> Result<(), capnp::Error> {
        let (template, tenant) = {
            let params = params.get()?;
            (params.get_template()?.to_str()?.to_owned(), TenantId(params.get_tenant()))
        };
        self.may_spawn(&template)?;
        let name = self.vats.start_instance(&template, tenant).await.map_err(fail)?;
        results.get().set_vat(name.as_str());
        Ok(())
    }

    async fn stop(
        self: Rc<Self>,
        params: spawner::StopParams,
        _: spawner::StopResults,
    ) -> Result<(), capnp::Error> {
        let name = params.get()?.get_vat()?.to_str()?.to_owned();
        self.may_spawn(name.split('/').next().unwrap_or_default())?;
        self.vats.stop_instance(&name).map_err(fail)
    }
}

/// The operator's levers.
struct ControlServer {
    vats: Rc<Vats>,
    vat: Rc<Vat>,
}

impl ControlServer {
    fn kernel(&self) -> Result<&Rc<Kernel>, capnp::Error> {
        if self.vat.dead.get() {
            return Err(fail(Fault::unavailable(0, "this vat has ended")));
        }
        Ok(&self.vats.kernel)
    }
}

impl control::Server for ControlServer {
    async fn status(
        self: Rc<Self>,
        _: control::StatusParams,
        mut results: control::StatusResults,
    ) -> Result<(), capnp::Error> {
        let kernel = self.kernel()?;
        let mut out = results.get().init_status();
        let (counts, epoch) = {
            let forest = kernel.forest.borrow();
            (forest.counts(), forest.epoch())
        };
        let journal = kernel.journal.status();
        out.set_node(&kernel.node().0);
        out.set_image(&self.vats.plan.image);
        out.set_image_hash(&self.vats.plan.image_hash);
        out.set_epoch(epoch);
        out.set_slots_used(counts.used);
        out.set_slots_capacity(counts.capacity);
        out.set_journal_seq(journal.last_seq);
        out.set_journal_acked(journal.acked_seq);
        out.set_journal_bytes(journal.bytes);
        out.set_draining(kernel.draining.get());
        let live: Vec<_> = self.vats.live.borrow().values().cloned().collect();
        let mut list = out.init_vats(live.len() as u32);
        for (index, vat) in live.iter().enumerate() {
            self.write_vat(vat, list.reborrow().get(index as u32));
        }
        Ok(())
    }

    async fn add_tenant(
        self: Rc<Self>,
        params: control::AddTenantParams,
        mut results: control::AddTenantResults,
    ) -> Result<(), capnp::Error> {
        let command = {
            let params = params.get()?;
            Command::AddTenant {
                name: params.get_name()?.to_str()?.to_owned(),
                holder: params.get_holder()?.try_into().map_err(fail)?,
                slot_quota: params.get_slot_quota(),
            }
        };
        match self.kernel()?.apply(command).await.map_err(fail)? {
            Outcome::Tenant(id) => results.get().set_id(id.0),
            _ => return Err(fail(Fault::internal("the command yields no tenant"))),
        }
        Ok(())
    }

    async fn tenants(
        self: Rc<Self>,
        _: control::TenantsParams,
        mut results: control::TenantsResults,
    ) -> Result<(), capnp::Error> {
        let tenants = self.kernel()?.forest.borrow().tenants();
        let mut list = results.get().init_tenants(tenants.len() as u32);
        for (index, tenant) in tenants.iter().enumerate() {
            let mut out = list.reborrow().get(index as u32);
            out.set_id(tenant.id.0);
            out.set_name(&tenant.name);
            out.set_holder(&tenant.holder.0);
            out.set_slot_quota(tenant.slot_quota);
            out.set_slots_used(tenant.slots_used);
        }
        Ok(())
    }

    async fn tree(
        self: Rc<Self>,
        params: control::TreeParams,
        mut results: control::TreeResults,
    ) -> Result<(), capnp::Error> {
        let (tenant, max) = {
            let params = params.get()?;
            let tenant = (!params.get_all()).then(|| TenantId(params.get_tenant()));
            (tenant, (params.get_max() as usize).clamp(1, MAX_TREE))
        };
        let (nodes, truncated) = self.kernel()?.forest.borrow().tree(tenant, max);
        let mut out = results.get();
        out.set_truncated(truncated);
        let mut list = out.init_nodes(nodes.len() as u32);
        for (index, node) in nodes.iter().enumerate() {
            let mut out = list.reborrow().get(index as u32);
            out.set_cap_id(node.cap.0);
            out.set_parent(node.parent.map_or(0, |parent| parent.0));
            out.set_vat(node.vat.as_str());
            out.set_kind(node.kind.0);
            out.set_object(node.object.0);
            out.set_rights(node.authority.rights.0);
            write_caveats(node.authority.caveats, out.reborrow().init_caveats());
            out.set_tenant(node.tenant.0);
            if let Holder::Key(key) = &node.holder {
                out.set_holder(&key.0);
            }
            if let Some(link) = &node.link {
                out.set_link(&link.0);
            }
            out.set_durable(node.life == distos_core::Life::Durable);
        }
        Ok(())
    }

    async fn drain(
        self: Rc<Self>,
        _: control::DrainParams,
        _: control::DrainResults,
    ) -> Result<(), capnp::Error> {
        self.kernel()?;
        self.vats.drain().await;
        Ok(())
    }

    async fn shutdown(
        self: Rc<Self>,
        params: control::ShutdownParams,
        _: control::ShutdownResults,
    ) -> Result<(), capnp::Error> {
        self.kernel()?;
        self.vats.shutdown_now.set(params.get()?.get_now());
        self.vats.shutdown.notify_one();
        Ok(())
    }
}

impl ControlServer {
    fn write_vat(&self, vat: &Vat, mut out: kernel_capnp::vat_status::Builder<'_>) {
        out.set_name(vat.name.as_str());
        out.set_program(match &vat.plan.program {
            crate::plan::Program::Builtin(name) => name,
            crate::plan::Program::Path(_) => "a path",
        });
        out.set_pid(vat.pid() as u32);
        out.set_restarts(self.vats.restarts.borrow().get(vat.name.as_str()).copied().unwrap_or(0));
        out.set_up_ms(vat.started.elapsed().as_millis() as u64);
        out.set_rss_bytes(resident_bytes(vat.pid()));
        if vat.plan.listen {
            out.set_socket(self.vats.socket_path(vat.name.as_str()).display().to_string());
        }
        let protections = vat.protections.borrow();
        let mut list = out.init_protections(protections.len() as u32);
        for (index, protection) in protections.iter().enumerate() {
            let mut entry = list.reborrow().get(index as u32);
            entry.set_name(&protection.name);
            entry.set_enforced(protection.enforced);
            entry.set_detail(&protection.detail);
        }
    }
}

/// A process's resident memory in bytes; 0 if it cannot be told.
fn resident_bytes(pid: i32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}
