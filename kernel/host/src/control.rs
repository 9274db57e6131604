//! The powers that an image grants beyond what every vat has: starting instances of templates, and
//! the operator's levers.

use std::rc::Rc;

use distos_abi::{Fault, Rights, TenantId};
use distos_core::{Command, Holder, Outcome};
use distos_rpc::{fail, write_caveats};
use distos_schemas::kernel_capnp;
use kernel_capnp::control::{self, *};
use kernel_capnp::spawner::{self, *};

use crate::kernel::Kernel;
use crate::plan::{Power, VatPlan};
use crate::server::Done;
use crate::vats::{Vat, Vats};

/// Nodes of the forest in one answer.
const MAX_TREE: usize = 4096;

/// The power to start instances of templates.
pub(crate) struct SpawnerServer {
    pub(crate) vats: Rc<Vats>,
    pub(crate) vat: Rc<Vat>,
}

impl SpawnerServer {
    fn may_spawn(&self, template: &str) -> Done {
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
    async fn start(self: Rc<Self>, params: StartParams, mut results: StartResults) -> Done {
        let (template, tenant) = {
            let params = params.get()?;
            (params.get_template()?.to_str()?.to_owned(), TenantId(params.get_tenant()))
        };
        self.may_spawn(&template)?;
        // Finished even if the caller gives up: a vat that is half started is watched by nobody.
        let vats = self.vats.clone();
        let start = async move { vats.start_instance(&template, tenant).await };
        let started = tokio::task::spawn_local(start).await.map_err(Fault::internal);
        let name = started.and_then(|started| started).map_err(fail)?;
        results.get().set_vat(name.as_str());
        Ok(())
    }

    async fn stop(self: Rc<Self>, params: StopParams, _: StopResults) -> Done {
        let name = params.get()?.get_vat()?.to_str()?.to_owned();
        self.may_spawn(name.split('/').next().unwrap_or_default())?;
        self.vats.stop_instance(&name).await.map_err(fail)
    }
}

/// The operator's levers.
pub(crate) struct ControlServer {
    pub(crate) vats: Rc<Vats>,
    pub(crate) vat: Rc<Vat>,
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
    async fn status(self: Rc<Self>, _: StatusParams, mut results: StatusResults) -> Done {
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
        if let Some(signer) = &self.vats.plan.image_signer {
            out.set_image_signer(signer);
        }
        out.set_epoch(epoch);
        out.set_slots_used(counts.used);
        out.set_slots_capacity(counts.capacity);
        out.set_journal_seq(journal.last_seq);
        out.set_journal_acked(journal.acked_seq);
        out.set_journal_bytes(journal.bytes);
        out.set_draining(kernel.draining.get());
        let live: Vec<_> = self.vats.live.borrow().values().cloned().collect();
        let is_up = |plan: &&VatPlan| live.iter().any(|vat| vat.name.as_str() == plan.name);
        let down: Vec<_> = self.vats.plan.vats.iter().filter(|plan| !is_up(plan)).collect();
        let mut list = out.init_vats((live.len() + down.len()) as u32);
        for (index, plan) in down.iter().enumerate() {
            let mut out = list.reborrow().get((live.len() + index) as u32);
            out.set_name(&plan.name);
            out.set_restarts(self.vats.restarts.borrow().get(&plan.name).copied().unwrap_or(0));
        }
        for (index, vat) in live.iter().enumerate() {
            self.write_vat(vat, list.reborrow().get(index as u32));
        }
        Ok(())
    }

    async fn add_tenant(
        self: Rc<Self>,
        params: AddTenantParams,
        mut results: AddTenantResults,
    ) -> Done {
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

    async fn tenants(self: Rc<Self>, _: TenantsParams, mut results: TenantsResults) -> Done {
        let tenants = self.kernel()?.forest.borrow().tenants();
        let mut list = results.get().init_tenants(tenants.len() as u32);
        for (index, (tenant, used)) in tenants.iter().enumerate() {
            let mut out = list.reborrow().get(index as u32);
            out.set_id(tenant.id.0);
            out.set_name(&tenant.name);
            out.set_holder(&tenant.holder.0);
            out.set_slot_quota(tenant.slot_quota);
            out.set_slots_used(*used);
        }
        Ok(())
    }

    async fn tree(self: Rc<Self>, params: TreeParams, mut results: TreeResults) -> Done {
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
            let facts = &node.facts;
            out.set_cap_id(node.cap.0);
            out.set_parent(node.parent.map_or(0, |parent| parent.0));
            out.set_vat(facts.vat.as_str());
            out.set_kind(facts.kind.0);
            out.set_object(facts.object.0);
            out.set_rights(facts.authority.rights.0);
            write_caveats(facts.authority.caveats, out.reborrow().init_caveats());
            out.set_tenant(facts.tenant.0);
            if let Holder::Key(key) = &facts.holder {
                out.set_holder(&key.0);
            }
            if let Some(link) = &facts.link {
                out.set_link(&link.0);
            }
            out.set_durable(facts.life == distos_core::Life::Durable);
        }
        Ok(())
    }

    async fn drain(self: Rc<Self>, _: DrainParams, _: DrainResults) -> Done {
        self.kernel()?;
        self.vats.drain().await;
        Ok(())
    }

    async fn shutdown(self: Rc<Self>, params: ShutdownParams, _: ShutdownResults) -> Done {
        self.kernel()?;
        let told =
            if params.get()?.get_now() { &self.vats.shutdown_now } else { &self.vats.shutdown };
        told.notify_one();
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
