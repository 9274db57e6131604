//! GPUs and leases as objects, and the loop that ends leases and cleans.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use capnp::capability::FromClientHook as _;
use capnp::private::capability::ClientHook;
use distos_abi::{Authority, ByteRange, CapId, Caveats, Fault, ObjectId, Rights, TenantId};
use distos_rpc::boot::Boot;
use distos_rpc::{Facet, Faceted, Service, Vat, fail, serve_capability};
use distos_schemas::gpu_capnp::{GpuState, gpu, gpus, lease};
use distos_types::kind;
use futures::future::LocalBoxFuture;
use tokio::sync::Mutex;

use crate::evidence::{self, Shown};
use crate::nvml::{LIBRARY, Machine};
use crate::seen::{self, Seen};
use crate::state::{Clock, Ended, Fleet, Gpu};

/// How often leases are checked and GPUs looked at: the bound within which a revoked lease ends.
const TICK: Duration = Duration::from_secs(1);
/// An idle GPU uses at most this much of its memory, unless the image's setting `idle_mib` says
/// otherwise.
const IDLE_MIB: u64 = 600;
/// How long all GPUs together may take to sign what they measured. They are asked one after another.
const EVIDENCE: Duration = Duration::from_secs(30);
const WHOLE: ByteRange = ByteRange { start: 0, end: 0 };

/// Runs the GPU service; blocks for the whole life of the vat.
pub fn run(boot: Boot) -> ExitCode {
    distos_rpc::run(boot, start)
}

async fn start(vat: Vat) -> Result<Rc<dyn Service>, Fault> {
    let library = vat.param("nvml").unwrap_or(LIBRARY).to_owned();
    let idle_mib = match vat.param("idle_mib") {
        Some(text) => text
            .parse()
            .map_err(|_| Fault::malformed(format!("idle_mib: '{text}' is no number of MiB")))?,
        None => IDLE_MIB,
    };
    let machine = tokio::task::spawn_blocking(move || Machine::probe(&library))
        .await
        .map_err(Fault::internal)?;
    tracing::info!(driver = machine.driver, gpus = machine.gpus.len(), "looked for GPUs");
    // Leases do not outlive the service, and their GPUs are cleaned like all others.
    for (kind, object, _) in vat.objects().await? {
        if kind == kind::LEASE {
            vat.revoke_object(kind, object).await?;
        }
    }
    let now_ms = vat.now_ms();
    let seen = match vat.data_dir() {
        Some(directory) => seen::load(directory, &machine.driver)?,
        None => Seen::new(),
    };
    let baselines = machine.gpus.iter().map(|gpu| seen.get(&gpu.uuid).copied()).collect();
    let fleet = Fleet::new(baselines, idle_mib << 20, now_ms);
    // No number is used twice, not even by a restarted service, whatever its clock says.
    let mut first = [0; 8];
    getrandom::fill(&mut first).map_err(Fault::internal)?;
    let first = (u64::from_le_bytes(first) >> 1).max(1);
    distos_noise::seal(&vat);
    tokio::task::spawn_local(distos_quic::attend(vat.clone()));
    let service = Rc::new(GpuService {
        vat,
        machine: Arc::new(machine),
        fleet: RefCell::new(fleet),
        held: RefCell::default(),
        next_lease: Cell::new(first),
        clock: Cell::new(Clock::new(now_ms)),
        started: Instant::now(),
        asking: Arc::default(),
    });
    if !service.machine.gpus.is_empty() {
        tokio::task::spawn_local(service.clone().keep());
    }
    Ok(service)
}

struct GpuService {
    vat: Vat,
    machine: Arc<Machine>,
    fleet: RefCell<Fleet>,
    /// The capability behind each lease.
    held: RefCell<BTreeMap<ObjectId, Facet>>,
    next_lease: Cell<u64>,
    clock: Cell<Clock>,
    started: Instant,
    /// Held while a GPU is asked for evidence: a library that never answers keeps one thread, and not one for each call.
    asking: Arc<Mutex<()>>,
}

impl GpuService {
    /// The time by which leases end.
    fn now_ms(&self) -> u64 {
        let mut clock = self.clock.get();
        let now_ms = clock.now_ms(self.vat.now_ms(), self.started.elapsed().as_millis() as u64);
        self.clock.set(clock);
        now_ms
    }

    /// Ends leases whose time is over or whose capability is, and looks at GPUs that are to be
    /// cleaned, until the vat ends.
    async fn keep(self: Rc<Self>) {
        loop {
            let now_ms = self.now_ms();
            let mut ended = self.fleet.borrow_mut().expire(now_ms);
            ended.extend(self.revoked(now_ms));
            for lease in ended {
                self.finish(lease, "the lease ended").await;
            }
            let cleaning = self.fleet.borrow().cleaning();
            for index in cleaning {
                self.look(index).await;
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// Ends the leases whose capability no longer holds.
    fn revoked(&self, now_ms: u64) -> Vec<Ended> {
        let lapsed = |facet: &Facet| facet.commit(Rights::LEASE, WHOLE, || ()).is_err();
        let held = self.held.borrow();
        let lapsed = held.iter().filter(|(_, facet)| lapsed(facet)).map(|(lease, _)| *lease);
        lapsed.filter_map(|lease| self.fleet.borrow_mut().end(lease, now_ms)).collect()
    }

    /// What follows the end of a lease: its capabilities end too, and it is recorded.
    async fn finish(&self, ended: Ended, why: &str) {
        let Ended { lease, index, tenant } = ended;
        let facet = self.held.borrow_mut().remove(&lease);
        let cap = facet.as_ref().map_or(CapId(0), Facet::cap_id);
        self.report(tenant, cap, format!("GPU {index}: {why}"));
        if let Err(fault) = self.vat.revoke_object(kind::LEASE, lease).await {
            // The state has ended the lease already: what is left is a name for nothing.
            tracing::warn!(%lease, %fault, "a lease's capability could not be ended");
        }
    }

    async fn look(&self, index: u32) {
        let machine = self.machine.clone();
        let reading = tokio::task::spawn_blocking(move || machine.read(index))
            .await
            .unwrap_or_else(|e| Err(e.to_string()));
        let now_ms = self.now_ms();
        let known = |fleet: &Fleet| fleet.baselines().flatten().count();
        let before = known(&self.fleet.borrow());
        let changed = self.fleet.borrow_mut().looked(index, reading, now_ms).cloned();
        if known(&self.fleet.borrow()) > before {
            self.note_baselines().await;
        }
        match changed {
            Some(Gpu::Clean) => {
                self.report(TenantId::OPERATOR, CapId(0), format!("GPU {index}: seen idle"));
            }
            Some(Gpu::Quarantined { why }) => {
                let detail = format!("GPU {index}: quarantined: {why}");
                self.report(TenantId::OPERATOR, CapId(0), detail);
            }
            _ => {}
        }
    }

    /// Without a directory, or on a full disk, what is idle is learnt anew at the next start.
    async fn note_baselines(&self) {
        let Some(directory) = self.vat.data_dir().map(ToOwned::to_owned) else { return };
        let baselines: Vec<_> = self.fleet.borrow().baselines().collect();
        let machine = self.machine.clone();
        let uuids = machine.gpus.iter().map(|gpu| gpu.uuid.clone());
        let seen: Seen = uuids.zip(baselines).filter_map(|(uuid, b)| Some((uuid, b?))).collect();
        let noted =
            tokio::task::spawn_blocking(move || seen::store(&directory, &machine.driver, &seen));
        if let Err(error) = noted.await.unwrap_or_else(|e| Err(std::io::Error::other(e))) {
            tracing::warn!(%error, "what the GPUs use when idle could not be noted");
        }
    }

    fn report(&self, tenant: TenantId, cap: CapId, detail: String) {
        self.vat.report("lease", tenant, cap, detail);
    }

    /// Lends a GPU: first in the state, then as a capability. If the capability cannot be made,
    /// the GPU goes back through cleaning. To be run to its end: a lease whose capability is not among
    /// those that are held would not end when that is revoked.
    async fn acquire(&self, facet: &Facet, index: u32, ttl_ms: u32) -> Result<Facet, Fault> {
        if self.vat.draining() {
            return Err(Fault::unavailable(60_000, "the node is draining"));
        }
        let lease = ObjectId(self.next_lease.replace(self.next_lease.get() + 1));
        let now_ms = self.now_ms();
        facet.commit(Rights::LEASE, WHOLE, || {
            self.fleet.borrow_mut().acquire(index, lease, facet.tenant(), ttl_ms, now_ms)
        })??;
        let wanted = Authority { rights: Rights::LEASE, caveats: Caveats::NONE };
        match facet.mint(kind::LEASE, lease, wanted).await {
            Ok(minted) if self.fleet.borrow().holds(lease, self.now_ms()) => {
                self.held.borrow_mut().insert(lease, minted.clone());
                let detail = format!("GPU {index}: leased");
                self.report(facet.tenant(), minted.cap_id(), detail);
                Ok(minted)
            }
            minted => {
                let ended = self.fleet.borrow_mut().end(lease, self.now_ms());
                let fault = minted.err().unwrap_or(Fault::Revoked);
                if let Some(ended) = ended {
                    self.finish(ended, "the lease could not be handed out").await;
                }
                Err(fault)
            }
        }
    }

    /// Asks one GPU for evidence. If it does not answer until `end`, it stays asked, and nobody else is until it does.
    async fn evidence(&self, index: u32, nonce: [u8; 32], end: tokio::time::Instant) -> Shown {
        let (machine, asking) = (self.machine.clone(), self.asking.clone());
        let ask = async move {
            let turn = asking.lock_owned().await;
            let ask = move || {
                let shown = machine.evidence(index, nonce);
                drop(turn);
                shown
            };
            tokio::task::spawn_blocking(ask).await
        };
        match tokio::time::timeout_at(end, ask).await {
            Ok(Ok(shown)) => shown,
            Ok(Err(error)) => Shown::nothing(error.to_string()),
            Err(_) => Shown::nothing("it did not answer in time".to_owned()),
        }
    }

    fn write(&self, index: u32, viewer: TenantId, mut to: gpu::Builder<'_>) {
        let fleet = self.fleet.borrow();
        let Some((gpu, described)) = fleet.gpus().zip(&self.machine.gpus).nth(index as usize)
        else {
            return;
        };
        to.set_index(index);
        to.set_name(&described.name);
        to.set_uuid(&described.uuid);
        to.set_memory_bytes(described.memory_bytes);
        to.set_state(match gpu {
            Gpu::Clean => GpuState::Clean,
            Gpu::Leased { .. } => GpuState::Leased,
            Gpu::Cleaning { .. } => GpuState::Cleaning,
            Gpu::Quarantined { .. } => GpuState::Quarantined,
        });
        if let Gpu::Leased { tenant, until_ms, .. } = gpu
            && (viewer == TenantId::OPERATOR || viewer == *tenant)
        {
            to.set_tenant(tenant.0);
            to.set_until_ms(*until_ms);
        }
    }
}

impl Service for GpuService {
    fn open(self: Rc<Self>, facet: Facet) -> Result<Box<dyn ClientHook>, Fault> {
        let lease = facet.object();
        match facet.kind() {
            kind::GPUS if lease == ObjectId::ROOT => {
                Ok(GpusServer { gpus: self, facet }.into_hook())
            }
            kind::LEASE if self.fleet.borrow().holds(lease, self.now_ms()) => {
                Ok(LeaseServer { gpus: self, facet }.into_hook())
            }
            _ => Err(Fault::not_found("the GPU service has no such object")),
        }
    }

    /// Leases end by themselves within a minute, for none is renewed on a draining node.
    fn drain(self: Rc<Self>) -> LocalBoxFuture<'static, ()> {
        Box::pin(async move {
            let is_leased = |gpu: &Gpu| matches!(gpu, Gpu::Leased { .. });
            while self.fleet.borrow().gpus().any(is_leased) {
                tokio::time::sleep(TICK / 4).await;
            }
        })
    }
}

struct GpusServer {
    gpus: Rc<GpuService>,
    facet: Facet,
}

impl GpusServer {
    fn into_hook(self) -> Box<dyn ClientHook> {
        capnp_rpc::new_client::<gpus::Client, _>(self).into_client_hook()
    }
}

impl Faceted for GpusServer {
    fn facet(&self) -> &Facet {
        &self.facet
    }

    fn with_facet(&self, facet: Facet) -> Box<dyn ClientHook> {
        GpusServer { gpus: self.gpus.clone(), facet }.into_hook()
    }
}

serve_capability!(GpusServer);

impl gpus::Server for GpusServer {
    async fn list(
        self: Rc<Self>,
        _: gpus::ListParams,
        mut results: gpus::ListResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::LIST).map_err(fail)?;
        let machine = &self.gpus.machine;
        let mut reply = self.facet.reply(&mut results);
        reply.set_driver(&machine.driver);
        let count = machine.gpus.len() as u32;
        let mut list = reply.init_gpus(count);
        for index in 0..count {
            self.gpus.write(index, self.facet.tenant(), list.reborrow().get(index));
        }
        Ok(())
    }

    async fn acquire(
        self: Rc<Self>,
        params: gpus::AcquireParams,
        mut results: gpus::AcquireResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::LEASE).map_err(fail)?;
        let (index, ttl_ms) = params.get().map(|p| (p.get_index(), p.get_ttl_ms()))?;
        // A caller that gives up must not leave it half done.
        let this = self.clone();
        let acquire = async move { this.gpus.acquire(&this.facet, index, ttl_ms).await };
        let minted = tokio::task::spawn_local(acquire).await.map_err(Fault::internal);
        let minted = minted.and_then(|minted| minted).map_err(fail)?;
        let hook = LeaseServer { gpus: self.gpus.clone(), facet: minted }.into_hook();
        let mut reply = self.facet.reply(&mut results);
        reply.set_lease(lease::Client::new(hook));
        self.gpus.write(index, self.facet.tenant(), reply.init_device());
        Ok(())
    }

    async fn evidence(
        self: Rc<Self>,
        params: gpus::EvidenceParams,
        mut results: gpus::EvidenceResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::ATTEST).map_err(fail)?;
        let machine = &self.gpus.machine;
        let given = params.get()?.get_nonces()?;
        let given: Vec<&[u8]> = given.iter().collect::<Result<_, capnp::Error>>()?;
        let nonces = evidence::nonces(given.into_iter(), machine.gpus.len()).map_err(fail)?;
        let end = tokio::time::Instant::now() + EVIDENCE;
        let mut shown = Vec::with_capacity(nonces.len());
        for (index, nonce) in (0..).zip(nonces) {
            shown.push(self.gpus.evidence(index, nonce, end).await);
        }
        let mut reply = self.facet.reply(&mut results);
        reply.set_driver(&machine.driver);
        let mut list = reply.init_gpus(shown.len() as u32);
        for (index, (gpu, shown)) in (0..).zip(machine.gpus.iter().zip(&shown)) {
            let mut to = list.reborrow().get(index);
            to.set_index(index);
            to.set_uuid(&gpu.uuid);
            to.set_arch(&shown.arch);
            to.set_mode(shown.mode);
            match &shown.signed {
                Ok(signed) => {
                    to.set_chain(&signed.chain);
                    to.set_report(&signed.report);
                }
                Err(why) => to.set_fault(why),
            }
        }
        Ok(())
    }
}

struct LeaseServer {
    gpus: Rc<GpuService>,
    facet: Facet,
}

impl LeaseServer {
    fn into_hook(self) -> Box<dyn ClientHook> {
        capnp_rpc::new_client::<lease::Client, _>(self).into_client_hook()
    }
}

impl Faceted for LeaseServer {
    fn facet(&self) -> &Facet {
        &self.facet
    }

    fn with_facet(&self, facet: Facet) -> Box<dyn ClientHook> {
        LeaseServer { gpus: self.gpus.clone(), facet }.into_hook()
    }
}

serve_capability!(LeaseServer);

impl lease::Server for LeaseServer {
    async fn renew(
        self: Rc<Self>,
        params: lease::RenewParams,
        mut results: lease::RenewResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::LEASE).map_err(fail)?;
        if self.gpus.vat.draining() {
            return Err(fail(Fault::unavailable(60_000, "the node is draining")));
        }
        let ttl_ms = params.get()?.get_ttl_ms();
        let now_ms = self.gpus.now_ms();
        let renew = || self.gpus.fleet.borrow_mut().renew(self.facet.object(), ttl_ms, now_ms);
        let renewed = self.facet.commit(Rights::LEASE, WHOLE, renew);
        let until_ms = renewed.and_then(|until_ms| until_ms).map_err(fail)?;
        self.facet.reply(&mut results).set_until_ms(until_ms);
        Ok(())
    }

    async fn release(
        self: Rc<Self>,
        _: lease::ReleaseParams,
        _: lease::ReleaseResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::LEASE).map_err(fail)?;
        let now_ms = self.gpus.now_ms();
        let end = || self.gpus.fleet.borrow_mut().end(self.facet.object(), now_ms);
        let ended = self.facet.commit(Rights::LEASE, WHOLE, end).map_err(fail)?;
        // The capability is dead after this, so the empty reply is not made in its name.
        match ended {
            Some(ended) => self.gpus.finish(ended, "released").await,
            None => return Err(fail(Fault::Revoked)),
        }
        Ok(())
    }
}
