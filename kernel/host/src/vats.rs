//! The vats of a node: started as the plan says, wired as the plan says, restarted when they end.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::File;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use capnp::capability::FromClientHook;
use capnp_rpc::rpc_twoparty_capnp::Side;
use distos_abi::{Authority, Caveats, Fault, Kind, Rights, TenantId, VatName};
use distos_core::{Command, GrantView, Outcome};
use distos_rpc::boot::{EdgeEnd, EdgeGrant, Manifest, Protection};
use distos_rpc::control::send_edge;
use distos_rpc::transport::{self, Bounds};
use distos_schemas::kernel_capnp;
use distos_table::{GuardPage, GuardWatch};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::net::UnixStream;
use tokio::sync::Notify;

use crate::events::Event;
use crate::kernel::{Kernel, Watched};
use crate::plan::{Device, EdgePlan, Plan, Power, Program, VatPlan};
use crate::server::KernelServer;
use crate::spawn::{self, Exit, Run, Running, SELF_PROGRAM, SpawnSpec, VatFds};

/// How long a vat may take from its start until it serves.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Instances of templates at one time.
const MAX_INSTANCES: usize = 64;
/// How long a vat has to run for its end to be no failure to start.
const STEADY: Duration = Duration::from_secs(10);
/// The longest wait before a vat that keeps ending is started again.
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// The longest that the auditor may take to come to rest.
const AUDIT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest that a vat may take to drain.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// One run of one vat.
pub(crate) struct Vat {
    pub(crate) name: VatName,
    pub(crate) plan: VatPlan,
    pub(crate) tenant: TenantId,
    pub(crate) protections: RefCell<Vec<Protection>>,
    /// Set when the process is gone: what still arrives from it has no effect.
    pub(crate) dead: Cell<bool>,
    pub(crate) started: Instant,
    /// How the process ended.
    exit: Cell<Option<Exit>>,
    ready: Cell<bool>,
    changed: Notify,
    running: RefCell<Option<Rc<dyn Run>>>,
    control: OwnedFd,
    client: RefCell<Option<kernel_capnp::vat::Client>>,
}

impl Vat {
    /// Takes the vat's own report, less what the kernel sees to be untrue from outside.
    pub(crate) fn announce_ready(&self, mut protections: Vec<Protection>) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()));
        contradict(&mut protections, &status.unwrap_or_default());
        *self.protections.borrow_mut() = protections;
        self.ready.set(true);
        self.changed.notify_waiters();
    }

    pub(crate) fn pid(&self) -> i32 {
        self.running.borrow().as_ref().map_or(0, |running| running.pid())
    }

    fn kill(&self) {
        if let Some(running) = self.running.borrow().as_ref() {
            running.kill();
        }
    }

    /// Why a vat that ended before it served did so, as far as its exit code tells.
    fn failure(&self) -> Fault {
        let why = |detail: &str| format!("'{}' ended while it started: {detail}", self.name);
        let (malformed, corrupt) = (Fault::malformed(""), Fault::Corrupt(String::new()));
        match self.exit.get() {
            Some(Exit::Code(code)) if code == i32::from(malformed.code()) => {
                Fault::Malformed(why("its settings or its files are not valid; its log says which"))
            }
            Some(Exit::Code(code)) if code == i32::from(corrupt.code()) => {
                Fault::Corrupt(why("its files are not what was written; its log says which"))
            }
            Some(exit) => Fault::unavailable(1000, why(&format!("{exit:?}"))),
            None => Fault::unavailable(1000, why("unknown")),
        }
    }

    async fn until_dead(&self) {
        loop {
            let changed = self.changed.notified();
            if self.dead.get() {
                return;
            }
            changed.await;
        }
    }

    async fn until_ready(&self) -> Result<(), Fault> {
        let ready = async {
            loop {
                let changed = self.changed.notified();
                if self.dead.get() {
                    return Err(self.failure());
                }
                if self.ready.get() {
                    return Ok(());
                }
                changed.await;
            }
        };
        tokio::time::timeout(START_TIMEOUT, ready).await.unwrap_or_else(|_| {
            Err(Fault::unavailable(1000, format!("'{}' did not start in time", self.name)))
        })
    }
}

/// All vats of this node.
pub(crate) struct Vats {
    pub(crate) kernel: Rc<Kernel>,
    pub(crate) plan: Plan,
    pub(crate) live: RefCell<BTreeMap<String, Rc<Vat>>>,
    pub(crate) restarts: RefCell<BTreeMap<String, u32>>,
    pub(crate) shutdown: Notify,
    pub(crate) shutdown_now: Notify,
    pub(crate) tell: Box<dyn Fn(&Event<'_>)>,
    spawn: Box<dyn Fn(SpawnSpec) -> std::io::Result<Rc<dyn Run>>>,
    table: OwnedFd,
    listeners: RefCell<BTreeMap<String, OwnedFd>>,
    /// One lock for each vat that was ever started or stopped: there are never two runs of one
    /// name on their way.
    starting: RefCell<BTreeMap<String, Rc<tokio::sync::Mutex<()>>>>,
    stopping: Cell<bool>,
}

impl Vats {
    pub(crate) fn new(
        kernel: Rc<Kernel>,
        plan: Plan,
        table: OwnedFd,
        spawn: Box<dyn Fn(SpawnSpec) -> std::io::Result<Rc<dyn Run>>>,
        tell: Box<dyn Fn(&Event<'_>)>,
    ) -> Vats {
        Vats {
            kernel,
            plan,
            live: RefCell::default(),
            restarts: RefCell::default(),
            shutdown: Notify::new(),
            shutdown_now: Notify::new(),
            tell,
            spawn,
            table,
            listeners: RefCell::default(),
            starting: RefCell::default(),
            stopping: Cell::new(false),
        }
    }

    /// Starts every vat of the image, in order; each serves before the next one starts.
    pub(crate) async fn start_all(self: &Rc<Self>) -> Result<(), Fault> {
        for plan in self.plan.vats.clone() {
            let name = VatName::new(&plan.name)?;
            self.start(plan, name, TenantId::OPERATOR).await?;
        }
        Ok(())
    }

    /// Starts a template's instance for a tenant, unless it runs already.
    pub(crate) async fn start_instance(
        self: &Rc<Self>,
        template: &str,
        tenant: TenantId,
    ) -> Result<VatName, Fault> {
        if self.kernel.draining.get() {
            return Err(Fault::unavailable(5000, "this node is draining"));
        }
        let plan = self.plan.templates.iter().find(|plan| plan.name == template);
        let plan = plan.ok_or_else(|| Fault::not_found(format!("template '{template}'")))?.clone();
        let tenants = self.kernel.forest.borrow().tenants();
        let tenant_name = match tenants.into_iter().find(|(t, _)| t.id == tenant) {
            Some((tenant, _)) => tenant.name,
            None if tenant == TenantId::OPERATOR => "operator".to_owned(),
            None => return Err(Fault::not_found(format!("tenant {tenant}"))),
        };
        let name = VatName::new(&format!("{template}/{tenant_name}"))?;
        let alone = self.lock_of(name.as_str());
        let _alone = alone.lock().await;
        let running = self.live.borrow().get(name.as_str()).cloned();
        match running {
            Some(vat) => vat.until_ready().await?,
            None => {
                if self.live.borrow().len() >= self.plan.vats.len() + MAX_INSTANCES {
                    return Err(Fault::unavailable(5000, "too many instances run on this node"));
                }
                self.start(plan, name.clone(), tenant).await?;
            }
        }
        Ok(name)
    }

    /// Ends an instance and waits until it is gone.
    pub(crate) async fn stop_instance(&self, name: &str) -> Result<(), Fault> {
        let alone = self.lock_of(name);
        let _alone = alone.lock().await;
        let vat = self.live.borrow().get(name).cloned();
        let vat = vat.filter(|vat| vat.name.as_str() != vat.plan.name);
        let vat = vat.ok_or_else(|| Fault::not_found(format!("instance '{name}'")))?;
        self.live.borrow_mut().remove(name);
        vat.kill();
        vat.until_dead().await;
        Ok(())
    }

    fn lock_of(&self, name: &str) -> Rc<tokio::sync::Mutex<()>> {
        self.starting.borrow_mut().entry(name.to_owned()).or_default().clone()
    }

    /// Tells every vat to finish what runs.
    pub(crate) async fn drain(&self) {
        self.kernel.draining.set(true);
        let clients: Vec<_> =
            self.live.borrow().values().filter_map(|vat| vat.client.borrow().clone()).collect();
        let drains = clients.iter().map(|client| async move {
            let drained = client.drain_request().send().promise;
            match tokio::time::timeout(DRAIN_TIMEOUT, drained).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::warn!(%error, "a vat did not drain"),
                Err(_) => tracing::warn!("a vat did not drain in time"),
            }
        });
        futures::future::join_all(drains).await;
    }

    /// Lets the auditor come to rest, so that its files end with what it has acknowledged.
    pub(crate) async fn close_outbox(&self) {
        let audits = |vat: &Rc<Vat>| vat.plan.powers.contains(&Power::Outbox);
        if !self.live.borrow().values().any(audits) {
            return;
        }
        let audited = self.kernel.audited.notified();
        self.kernel.closing.set(true);
        self.kernel.appended.notify_waiters();
        if tokio::time::timeout(AUDIT_TIMEOUT, audited).await.is_err() {
            tracing::warn!(
                "the auditor did not come to rest: it will mend its files at its next start"
            );
        }
    }

    /// Ends every vat, holders before those that serve them.
    pub(crate) async fn end_all(&self) {
        self.stopping.set(true);
        let place = |vat: &Rc<Vat>| self.plan.vats.iter().position(|p| p.name == vat.plan.name);
        let mut live: Vec<_> = self.live.borrow().values().cloned().collect();
        // Instances of templates have no place in the plan, and go first.
        live.sort_by_key(|vat| std::cmp::Reverse(place(vat).unwrap_or(usize::MAX)));
        for vat in live {
            vat.kill();
            let running = vat.running.borrow().clone();
            if let Some(running) = running {
                let _ = running.wait().await;
            }
        }
        for name in self.listeners.borrow().keys() {
            let _ = std::fs::remove_file(self.socket_path(name));
        }
    }

    /// Where holders of a vat's objects connect.
    pub(crate) fn socket_path(&self, vat: &str) -> std::path::PathBuf {
        self.plan.data_dir.join("run").join(format!("{vat}.sock"))
    }

    async fn start(
        self: &Rc<Self>,
        plan: VatPlan,
        name: VatName,
        tenant: TenantId,
    ) -> Result<(), Fault> {
        let failed = |what: &'static str, name: &VatName| {
            let name = name.clone();
            move |e: std::io::Error| Fault::internal(format!("cannot start '{name}': {what}: {e}"))
        };
        let (kernel_end, vat_end) = pair(SocketType::STREAM).map_err(failed("socket", &name))?;
        let (control, vat_control) =
            pair(SocketType::SEQPACKET).map_err(failed("socket", &name))?;
        let guard = GuardPage::create(64).map_err(failed("guard page", &name))?;
        let guards = GuardWatch::map(&guard).map_err(Fault::internal)?;
        let (devices, foreign) = self.devices(&plan)?;
        let listen = plan.listen.then(|| self.listener(name.as_str())).transpose()?;
        let data_dir = plan.data.then(|| self.data_dir(name.as_str()));

        let vat = Rc::new(Vat {
            name: name.clone(),
            plan: plan.clone(),
            tenant,
            protections: RefCell::default(),
            dead: Cell::new(false),
            started: Instant::now(),
            exit: Cell::new(None),
            ready: Cell::new(false),
            changed: Notify::new(),
            running: RefCell::new(None),
            control,
            client: RefCell::new(None),
        });
        let (ends, edge_fds): (Vec<_>, Vec<_>) = self.edges_of(&vat).await?.into_iter().unzip();
        let (program, args) = match &plan.program {
            Program::Builtin(_) => {
                (SELF_PROGRAM.into(), vec!["distos".to_owned(), "vat".to_owned()])
            }
            Program::Path(path) => {
                (path.clone(), vec![path.display().to_string(), "vat".to_owned()])
            }
        };
        let manifest = Manifest {
            vat: name.to_string(),
            program: match &plan.program {
                Program::Builtin(program) => program.clone(),
                Program::Path(path) => path.display().to_string(),
            },
            node: self.kernel.node().to_string(),
            tenant: tenant.0,
            params: plan.params.clone(),
            serves: plan.serves.clone(),
            data_dir,
            kernel_fd: -1,
            control_fd: -1,
            table_fd: -1,
            guard_fd: -1,
            listen_fd: None,
            edges: ends,
            devices: BTreeMap::new(),
        };
        let fds = VatFds {
            kernel: vat_end,
            control: vat_control,
            table: self.table.try_clone().map_err(failed("table", &name))?,
            guard,
            listen,
            edges: edge_fds,
            devices,
            log: None,
        };
        let uid = uid_of(name.as_str());
        let spec = SpawnSpec {
            program,
            args,
            manifest,
            fds,
            uid,
            profile: plan.profile,
            limits: plan.limits,
        };
        let running = (self.spawn)(spec).map_err(failed("process", &name))?;
        *vat.running.borrow_mut() = Some(running.clone());
        self.connect(&vat, kernel_end)?;
        let watched = Rc::new(Watched {
            name: name.clone(),
            guards,
            kill: Box::new({
                let running = running.clone();
                move || running.kill()
            }),
        });
        self.kernel.watch(watched.clone());
        self.live.borrow_mut().insert(name.to_string(), vat.clone());
        tokio::task::spawn_local(self.clone().supervise(vat.clone(), running, watched, foreign));
        if let Err(fault) = vat.until_ready().await {
            // What hangs while it starts would keep its name and its holders waiting.
            self.forget(&vat);
            vat.kill();
            vat.until_dead().await;
            return Err(fault);
        }
        (self.tell)(&Event::Vat {
            name: name.as_str(),
            pid: vat.pid(),
            protections: &vat.protections.borrow(),
        });
        Ok(())
    }

    fn connect(self: &Rc<Self>, vat: &Rc<Vat>, socket: OwnedFd) -> Result<(), Fault> {
        let socket = std::os::unix::net::UnixStream::from(socket);
        socket.set_nonblocking(true).map_err(Fault::internal)?;
        let stream = UnixStream::from_std(socket).map_err(Fault::internal)?;
        let server = KernelServer::new(self, vat.clone());
        let client: kernel_capnp::kernel::Client = capnp_rpc::new_client(server);
        let bootstrap = capnp::capability::Client::new(client.into_client_hook());
        let mut system = transport::start(stream, Side::Server, Some(bootstrap), Bounds::EDGE);
        *vat.client.borrow_mut() = Some(system.bootstrap(Side::Client));
        tokio::task::spawn_local(system);
        Ok(())
    }

    /// Waits for the end of one run, ends what depended on it, and starts the vat again.
    async fn supervise(
        self: Rc<Self>,
        vat: Rc<Vat>,
        running: Rc<dyn Run>,
        watched: Rc<Watched>,
        foreign: Option<Running>,
    ) {
        let ended = match &foreign {
            Some(foreign) => tokio::select! {
                ended = running.wait() => ended,
                _ = foreign.wait() => {
                    tracing::warn!(vat = %vat.name, "the program behind its device ended");
                    running.kill();
                    running.wait().await
                }
            },
            None => running.wait().await,
        };
        drop(foreign);
        vat.exit.set(ended.as_ref().ok().copied());
        vat.dead.set(true);
        vat.changed.notify_waiters();
        self.kernel.unwatch(&watched);
        self.kernel.drop_at_once(Command::VatDied { vat: vat.name.clone() });
        // One that was stopped on purpose is no longer in the list, and one that never served has
        // somebody who waits for its start, hears of its end and decides.
        if !self.forget(&vat) || self.stopping.get() || !vat.ready.get() {
            return;
        }
        tracing::warn!(vat = %vat.name, ?ended, "a vat ended and is started again");
        (self.tell)(&Event::Restart { name: vat.name.as_str(), why: &format!("{ended:?}") });
        self.restart(&vat).await;
    }

    /// Takes a run out of the list, if it is still in it.
    fn forget(&self, vat: &Rc<Vat>) -> bool {
        let mut live = self.live.borrow_mut();
        let current = live.get(vat.name.as_str()).is_some_and(|other| Rc::ptr_eq(other, vat));
        if current {
            live.remove(vat.name.as_str());
        }
        current
    }

    async fn restart(self: &Rc<Self>, vat: &Vat) {
        let alone = self.lock_of(vat.name.as_str());
        let _alone = alone.lock().await;
        // A vat that ran for a while did not end because of how it was started.
        let steady = vat.started.elapsed() > STEADY;
        for attempt in 0u32.. {
            *self.restarts.borrow_mut().entry(vat.name.to_string()).or_default() += 1;
            let backoff = Duration::from_millis(if steady { 50 } else { 200 } << attempt.min(7));
            tokio::time::sleep(backoff.min(MAX_BACKOFF)).await;
            if self.stopping.get() || self.live.borrow().contains_key(vat.name.as_str()) {
                return;
            }
            let again = Box::pin(self.start(vat.plan.clone(), vat.name.clone(), vat.tenant));
            match again.await {
                Ok(()) => return,
                Err(fault) => {
                    tracing::error!(vat = %vat.name, %fault, "a vat could not be started again")
                }
            }
        }
    }

    /// Makes a fresh pair for every edge of this vat whose other end runs, hands the other ends
    /// over, and returns the vat's own.
    async fn edges_of(&self, vat: &Vat) -> Result<Vec<(EdgeEnd, OwnedFd)>, Fault> {
        let mut own = Vec::new();
        let (instance, template) = (vat.name.as_str(), vat.plan.name.as_str());
        for edge in &self.plan.edges {
            if edge.holder == template {
                for home in self.running(&edge.home) {
                    own.push(self.edge(edge, vat, &home, true).await?);
                }
            } else if edge.home == template {
                for holder in self.running(&edge.holder) {
                    own.push(self.edge(edge, &holder, vat, false).await?);
                }
            }
        }
        tracing::debug!(vat = instance, edges = own.len(), "wired");
        Ok(own)
    }

    fn running(&self, plan_name: &str) -> Vec<Rc<Vat>> {
        self.live
            .borrow()
            .values()
            .filter(|vat| vat.plan.name == plan_name && !vat.dead.get())
            .cloned()
            .collect()
    }

    /// One edge. Returns the end of the vat that is starting: the holder's if `holder_starts`.
    async fn edge(
        &self,
        edge: &EdgePlan,
        holder: &Vat,
        home: &Vat,
        holder_starts: bool,
    ) -> Result<(EdgeEnd, OwnedFd), Fault> {
        let tenant = if holder.tenant == TenantId::OPERATOR { home.tenant } else { holder.tenant };
        let granted = self
            .kernel
            .apply(Command::Edge {
                home: home.name.clone(),
                kind: Kind(edge.kind),
                holder: holder.name.clone(),
                authority: Authority { rights: Rights(edge.rights), caveats: Caveats::NONE },
                tenant,
            })
            .await?;
        let Outcome::Granted(GrantView { slot, cap, facts, .. }) = granted else {
            return Err(Fault::internal("an edge yields a grant"));
        };
        let (holder_socket, home_socket) = pair(SocketType::STREAM).map_err(Fault::internal)?;
        // A template's instances are told apart by their own names.
        let name = if home.name.as_str() == home.plan.name {
            edge.name.clone()
        } else {
            home.name.to_string()
        };
        let holder_end = EdgeEnd { name, peer: home.name.to_string(), fd: -1, grant: None };
        let home_end = EdgeEnd {
            name: edge.name.clone(),
            peer: holder.name.to_string(),
            fd: -1,
            grant: Some(EdgeGrant {
                slot_index: slot.index,
                slot_generation: slot.generation.0,
                cap_id: cap.0,
                kind: facts.kind.0,
                rights: facts.authority.rights.0,
                tenant: facts.tenant.0,
            }),
        };
        if holder_starts {
            send_edge(&home.control, &home_end, &home_socket)?;
            Ok((holder_end, holder_socket))
        } else {
            send_edge(&holder.control, &holder_end, &holder_socket)?;
            Ok((home_end, home_socket))
        }
    }

    /// Opens a vat's devices; starts the program behind one, if it is foreign.
    fn devices(
        &self,
        plan: &VatPlan,
    ) -> Result<(BTreeMap<String, OwnedFd>, Option<Running>), Fault> {
        let mut devices = BTreeMap::new();
        let mut foreign = None;
        for (name, device) in &plan.devices {
            let descriptor = match device {
                Device::Path(path) => {
                    File::options().read(true).write(true).open(path).map(OwnedFd::from)
                }
                Device::Udp(address) => UdpSocket::bind(address).map(OwnedFd::from),
                Device::Foreign(program) => {
                    let program = self.plan.foreign.iter().find(|f| f.name == *program);
                    let program = program.ok_or_else(|| Fault::not_found(name.as_str()))?;
                    let (own, other) = pair(SocketType::STREAM).map_err(Fault::internal)?;
                    let (data, uid) = (self.data_dir(&program.name), uid_of(&program.name));
                    spawn::spawn_foreign(program, &data, other, uid).map(|started| {
                        foreign = Some(started);
                        own
                    })
                }
            };
            let descriptor =
                descriptor.map_err(|e| Fault::internal(format!("'{name}', {device:?}: {e}")))?;
            devices.insert(name.clone(), descriptor);
        }
        Ok((devices, foreign))
    }

    fn data_dir(&self, name: &str) -> std::path::PathBuf {
        self.plan.data_dir.join("vats").join(name)
    }

    /// The vat's listening socket. The kernel keeps it open, so that holders who connect while the
    /// vat restarts wait instead of failing.
    fn listener(&self, name: &str) -> Result<OwnedFd, Fault> {
        let path = self.socket_path(name);
        let failed = |e: std::io::Error| Fault::internal(format!("{}: {e}", path.display()));
        let mut listeners = self.listeners.borrow_mut();
        if let Some(listener) = listeners.get(name) {
            return listener.try_clone().map_err(failed);
        }
        // The directory's lock is held, so a socket that is still there is a dead node's.
        let _ = std::fs::remove_file(&path);
        let listener = std::os::unix::net::UnixListener::bind(&path).map_err(failed)?;
        // Anybody may connect: authority is what a connection presents, never who made it.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).map_err(failed)?;
        let listener = OwnedFd::from(listener);
        let copy = listener.try_clone().map_err(failed)?;
        listeners.insert(name.to_owned(), listener);
        Ok(copy)
    }
}

/// Corrects a vat's report by its process's status, as the system gives it: a vat that was taken
/// over before it reported could claim anything.
fn contradict(protections: &mut [Protection], status: &str) {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().split_whitespace().next().unwrap_or_default().to_owned()
    };
    let keys = Protection::KEYS_LOCKED;
    // Where there is no key, nothing needs to be locked.
    let keyless = protections.iter().any(|p| p.name == keys && p.detail == Protection::NO_KEYS);
    let locks = field("VmLck").parse().is_ok_and(|kib: u64| kib > 0);
    let seen = [
        (keys, keyless || locks),
        ("no_new_privs", field("NoNewPrivs") == "1"),
        ("seccomp", field("Seccomp") == "2"),
        ("capabilities", field("CapEff").trim_matches('0').is_empty()),
    ];
    for (name, holds) in seen {
        for claimed in protections.iter_mut().filter(|p| p.name == name && p.enforced && !holds) {
            claimed.enforced = false;
            claimed.detail = "claimed by the vat, but the system says otherwise".to_owned();
        }
    }
}

fn pair(kind: SocketType) -> std::io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?)
}

/// A uid that is the vat's own and the same at every boot, so that its files stay its own.
fn uid_of(name: &str) -> u32 {
    let hash = blake3::hash(name.as_bytes());
    let [a, b, c, d, ..] = *hash.as_bytes();
    // 29 bits, above every uid that a distribution or a container engine hands out.
    0x4000_0000 | (u32::from_le_bytes([a, b, c, d]) & 0x1fff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vat_cannot_claim_a_protection_that_it_does_not_have() {
        let claim =
            |name: &str| Protection { name: name.into(), enforced: true, detail: "yes".into() };
        let names = ["keys locked", "no_new_privs", "seccomp", "capabilities", "landlock"];
        let mut claims: Vec<Protection> = names.map(claim).into();
        let honest = "Name:\tdistos\nVmLck:\t       4 kB\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n";
        contradict(&mut claims, honest);
        assert!(claims.iter().all(|p| p.enforced));
        let taken = "VmLck:\t       0 kB\nCapEff:\t0000000000200000\nNoNewPrivs:\t0\nSeccomp:\t0\n";
        let mut keyless = Protection { detail: Protection::NO_KEYS.into(), ..claim("keys locked") };
        contradict(std::slice::from_mut(&mut keyless), taken);
        assert!(keyless.enforced, "without a key there is nothing to lock");
        // No other protection can hide behind those words.
        claims[2].detail = Protection::NO_KEYS.into();
        contradict(&mut claims, taken);
        let kept: Vec<bool> = claims.iter().map(|p| p.enforced).collect();
        assert_eq!(kept, [false, false, false, false, true]);
    }

    #[test]
    fn a_vat_keeps_its_uid_across_boots_and_shares_it_with_nobody() {
        let names =
            ["memory", "scheduler", "attestation", "audit", "gpu", "node", "executor/red", "swtpm"];
        let uids: std::collections::BTreeSet<u32> = names.iter().map(|name| uid_of(name)).collect();
        assert_eq!(uids.len(), names.len());
        assert_eq!(uid_of("memory"), uid_of("memory"));
    }
}
