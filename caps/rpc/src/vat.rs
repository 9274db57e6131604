//! The life of a vat: from the descriptors that it was handed to the end of its kernel.

use std::any::{Any, TypeId};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;
use std::rc::{Rc, Weak};
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use capnp::capability::FromClientHook;
use capnp::private::capability::ClientHook;
use capnp_rpc::rpc_twoparty_capnp::Side;
use distos_abi::{CapId, Fault, Kind, NodeId, ObjectId, SessionId, SlotRef, TenantId, VatName};
use distos_schemas::capability_capnp::{lessee, lessor};
use distos_schemas::{capability_capnp, kernel_capnp};
use distos_table::{GuardPage, Seat, View};
use futures::future::LocalBoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc, watch};

use crate::admission::{self, Admission, Party, Stranger};
use crate::beside::Arrived;
use crate::boot::{Boot, EdgeEnd, EdgeGrant, Manifest, Protection};
use crate::borrowing::Borrowing;
use crate::control::Control;
use crate::door::{Door, EdgeHome};
use crate::doorkeeper::{Arrival, Doorkeeper};
use crate::epoch::{Epoch, Epochs};
use crate::facet::{Facet, Revoked};
use crate::faults::{fail, fault_of};
use crate::gift;
use crate::lending::{Lending, boot_ns};
use crate::meters::Meters;
use crate::quiet::Quiet;
use crate::reach::{Far, Reach, Remote};
use crate::seal::{End, Seal};
use crate::transport::{self, Bounds, Checker};

/// Audit events that wait for the kernel; beyond it they are counted instead of kept.
const MAX_WAITING_EVENTS: usize = 1024;
/// How long [`Vat::edge`] waits for an edge that is being wired again, and [`Vat::reach`] for a way out.
const EDGE_WAIT: Duration = Duration::from_secs(5);
/// The setting of an image that says how long a message from a holder may be, for a service that
/// takes longer ones than most.
const MESSAGE_BYTES: &str = "message_bytes";
/// The setting of an image that says which part of the vat's time the strangers of one Linux user have:
/// one in so many.
const STRANGERS_PART: &str = "strangers_part";
/// Slots given back in one call.
const MAX_RELEASES: usize = 256;

/// What a service implements: the objects behind its facets.
pub trait Service: 'static {
    /// The server object for what `facet` speaks of (its kind and object number);
    /// [`Fault::NotFound`] if there is none.
    fn open(self: Rc<Self>, facet: Facet) -> Result<Box<dyn ClientHook>, Fault>;

    /// Takes no new work and resolves when what runs has ended and everything acknowledged is
    /// durable.
    fn drain(self: Rc<Self>) -> LocalBoxFuture<'static, ()>;
}

/// The runtime of one vat. Cheap to clone.
#[derive(Clone)]
pub struct Vat {
    core: Rc<Core>,
}

/// Where a connection comes from.
struct Caller {
    /// Who stands behind it.
    party: Party,
    /// Whom its handshake has shown, by the path of its SPIFFE id.
    name: Option<String>,
    /// What its two ends know of it and nobody else.
    binding: Option<[u8; 32]>,
}

/// What is known of a connection's other end.
struct Known {
    /// The path of its SPIFFE id, if its handshake has shown one.
    name: Option<String>,
    /// In which epoch of that node or tenant it has come.
    epoch: Option<Epoch>,
    /// Tells whether the holder is encrypted to this vat, behind whatever that is.
    stranger: Rc<Stranger>,
}

/// Where the calls of a connection come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whence {
    /// This node: by its socket, or over an edge.
    Here,
    /// Whoever has shown an SVID, by the path of its SPIFFE id.
    Shown(String),
    /// Anywhere: the holder is encrypted to this vat, and who passes that on says nothing of it.
    Anywhere,
}

/// A vat, for what must not keep it.
pub(crate) struct WeakVat(Weak<Core>);

impl WeakVat {
    /// The vat, if it goes on.
    pub(crate) fn upgrade(&self) -> Option<Vat> {
        self.0.upgrade().map(|core| Vat { core })
    }
}

struct Core {
    /// What each connection from a holder may keep this vat busy with.
    bounds: Bounds,
    name: VatName,
    /// Whether the image lets holders connect to it.
    listens: bool,
    reach: watch::Sender<Option<Rc<dyn Reach>>>,
    /// What answers those who want to be encrypted to this vat.
    seal: RefCell<Option<Rc<dyn Seal>>>,
    node: NodeId,
    tenant: TenantId,
    lending: Rc<Lending>,
    params: BTreeMap<String, String>,
    data_dir: Option<std::path::PathBuf>,
    devices: RefCell<HashMap<String, OwnedFd>>,
    checker: Rc<Checker>,
    meters: Meters,
    kernel: RefCell<Option<kernel_capnp::kernel::Client>>,
    service: RefCell<Option<Rc<dyn Service>>>,
    edges: RefCell<HashMap<String, Wired>>,
    edges_changed: Notify,
    /// The edges that others hold to this vat, by the number of their session: whose each is, and to
    /// what kind of object.
    served: RefCell<BTreeMap<u64, (String, Kind)>>,
    /// In which epoch those are who come over the network.
    epochs: Epochs,
    /// Connections from holders, by the number of their session.
    callers: RefCell<BTreeMap<u64, Known>>,
    events: mpsc::Sender<Event>,
    suppressed: Cell<u64>,
    releases: mpsc::UnboundedSender<SlotRef>,
    next_session: Cell<u64>,
    admission: Rc<Admission>,
    /// What other crates keep with this vat, one of each type.
    attached: RefCell<HashMap<TypeId, Rc<dyn Any>>>,
    /// Connections from holders that have ended.
    parted: Cell<u64>,
    draining: Cell<bool>,
}

/// An edge that this vat holds. The number tells a new wiring from the one it replaced.
struct Wired {
    number: u64,
    /// The vat at its other end.
    peer: String,
    client: capability_capnp::edge::Client,
    /// What was lent over it.
    borrowing: Borrowing,
}

struct Event {
    kind: String,
    tenant: TenantId,
    cap: CapId,
    detail: String,
}

/// Runs a vat: connects it to its kernel, wires its edges, lets `start` build the service, serves,
/// and returns when the kernel is gone.
pub fn run<F, Fut>(boot: Boot, start: F) -> ExitCode
where
    F: FnOnce(Vat) -> Fut + 'static,
    Fut: Future<Output = Result<Rc<dyn Service>, Fault>> + 'static,
{
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "a vat cannot start its event loop");
            return ExitCode::FAILURE;
        }
    };
    let name = boot.manifest.vat.clone();
    let local = tokio::task::LocalSet::new();
    match local.block_on(&runtime, serve(boot, start)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            tracing::error!(vat = name, %fault, "a vat cannot go on");
            ExitCode::from(fault.code())
        }
    }
}

/// The seat of the vat's one thread in its guard page.
fn seat(page: &OwnedFd) -> Result<Seat, Fault> {
    let page = GuardPage::map(page).map_err(Fault::internal)?;
    page.seat().ok_or_else(|| Fault::internal("a guard page without a cell"))
}

/// The whole life of a vat on the calling thread's `LocalSet`: what [`run`] does in a process of its
/// own. Resolves when the kernel is gone; tasks that it has started end with the `LocalSet`.
///
/// # Errors
/// Something that the manifest promises is missing, or `start` fails.
pub async fn serve<F, Fut>(boot: Boot, start: F) -> Result<(), Fault>
where
    F: FnOnce(Vat) -> Fut,
    Fut: Future<Output = Result<Rc<dyn Service>, Fault>>,
{
    let Boot { manifest, mut protections, mut fds } = boot;
    let mut take = |number: i32, what: &str| {
        fds.remove(&number)
            .ok_or_else(|| Fault::internal(format!("the kernel did not hand over {what}")))
    };
    let kernel_socket = take(manifest.kernel_fd, "its socket")?;
    let control_socket = take(manifest.control_fd, "the control socket")?;
    let table = take(manifest.table_fd, "the capability table")?;
    let guards = take(manifest.guard_fd, "the guard page")?;
    let listener = manifest.listen_fd.map(|fd| take(fd, "the listening socket")).transpose()?;
    let mut edges = Vec::new();
    for edge in &manifest.edges {
        edges.push((edge.clone(), take(edge.fd, "an edge")?));
    }
    let mut devices = HashMap::new();
    for (name, fd) in &manifest.devices {
        devices.insert(name.clone(), take(*fd, "a device")?);
    }

    let (events, waiting_events) = mpsc::channel(MAX_WAITING_EVENTS);
    let (releases, waiting_releases) = mpsc::unbounded_channel();
    let checker = Rc::new(Checker {
        view: View::map(&table).map_err(Fault::internal)?,
        guards: seat(&guards)?,
        tag: Cell::new(None),
    });
    let vat = Vat::new(&manifest, devices, checker, events, releases)?;
    let lost = vat.connect_kernel(stream(kernel_socket)?);
    tokio::task::spawn_local(vat.clone().send_events(waiting_events));
    tokio::task::spawn_local(vat.clone().send_releases(waiting_releases));

    let (held, served): (Vec<_>, Vec<_>) =
        edges.into_iter().partition(|(edge, _)| edge.grant.is_none());
    for (edge, socket) in held {
        vat.wire(edge, socket)?;
    }
    let serve = async {
        let service = start(vat.clone()).await?;
        *vat.core.service.borrow_mut() = Some(service);
        for (edge, socket) in served {
            vat.wire(edge, socket)?;
        }
        let control = Control::new(control_socket).map_err(Fault::internal)?;
        tokio::task::spawn_local(vat.clone().take_edges(control));
        if let Some(listener) = listener {
            rustix::io::ioctl_fionbio(&listener, true).map_err(Fault::internal)?;
            let door = Doorkeeper::start(listener).map_err(Fault::internal)?;
            tokio::task::spawn_local(vat.clone().take_in(door));
        }
        // The service has its keys now; when the sandbox was entered it had none.
        for keys in protections.iter_mut().filter(|p| p.name == Protection::KEYS_LOCKED) {
            *keys = Protection::keys_locked();
        }
        vat.announce(&protections).await?;
        std::future::pending::<Result<(), Fault>>().await
    };
    tokio::select! {
        biased;
        () = lost => Ok(()),
        outcome = serve => outcome,
    }
}

/// The bounds of connections from holders, with the longest message that the image allows.
fn holder_bounds(params: &BTreeMap<String, String>) -> Result<Bounds, Fault> {
    let Some(bytes) = number::<usize>(params, MESSAGE_BYTES)? else { return Ok(Bounds::HOLDER) };
    Ok(Bounds { message_words: bytes / 8, ..Bounds::HOLDER })
}

/// Which part of the vat's time each user's strangers have.
fn strangers_part(params: &BTreeMap<String, String>) -> Result<u32, Fault> {
    match number(params, STRANGERS_PART)? {
        None => Ok(admission::STRANGERS_PART),
        Some(0) => Err(Fault::malformed(format!("{STRANGERS_PART} is at least 1"))),
        Some(part) => Ok(part),
    }
}

fn number<T: FromStr>(params: &BTreeMap<String, String>, key: &str) -> Result<Option<T>, Fault> {
    let parse = |text: &String| {
        text.parse().map_err(|_| Fault::malformed(format!("{key} is a number, not '{text}'")))
    };
    params.get(key).map(parse).transpose()
}

fn stream(socket: OwnedFd) -> Result<UnixStream, Fault> {
    let socket = std::os::unix::net::UnixStream::from(socket);
    socket.set_nonblocking(true).map_err(Fault::internal)?;
    UnixStream::from_std(socket).map_err(Fault::internal)
}

impl Vat {
    fn new(
        manifest: &Manifest,
        devices: HashMap<String, OwnedFd>,
        checker: Rc<Checker>,
        events: mpsc::Sender<Event>,
        releases: mpsc::UnboundedSender<SlotRef>,
    ) -> Result<Vat, Fault> {
        let mut node = [0; 32];
        hex::decode_to_slice(&manifest.node, &mut node)
            .map_err(|e| Fault::internal(format!("the node's name in the manifest: {e}")))?;
        let name = VatName::new(&manifest.vat)?;
        Ok(Vat {
            core: Rc::new(Core {
                bounds: holder_bounds(&manifest.params)?,
                lending: Rc::new(Lending::started(&name)),
                name,
                listens: manifest.listen_fd.is_some(),
                reach: watch::Sender::new(None),
                seal: RefCell::default(),
                node: NodeId(node),
                tenant: TenantId(manifest.tenant),
                params: manifest.params.clone(),
                data_dir: manifest.data_dir.clone(),
                devices: RefCell::new(devices),
                checker,
                meters: Meters::default(),
                kernel: RefCell::new(None),
                service: RefCell::new(None),
                edges: RefCell::default(),
                edges_changed: Notify::new(),
                served: RefCell::default(),
                epochs: Epochs::default(),
                callers: RefCell::default(),
                events,
                suppressed: Cell::new(0),
                releases,
                next_session: Cell::new(1),
                admission: Rc::new(Admission::new(strangers_part(&manifest.params)?)),
                attached: RefCell::default(),
                parted: Cell::new(0),
                draining: Cell::new(false),
            }),
        })
    }

    /// This vat's name.
    pub fn name(&self) -> &VatName {
        &self.core.name
    }

    /// Whether the image lets holders connect to it.
    pub fn listens(&self) -> bool {
        self.core.listens
    }

    /// Lets holders encrypt to this vat by `seal` from now on.
    pub fn set_seal(&self, seal: Rc<dyn Seal>) {
        *self.core.seal.borrow_mut() = Some(seal);
    }

    /// Reaches vats of other nodes by `reach` from now on.
    pub fn set_reach(&self, reach: Rc<dyn Reach>) {
        self.core.reach.send_replace(Some(reach));
    }

    /// A vat of another node. Errors are those of [`Reach::reach`]. Waits a few seconds for a way out that is
    /// being prepared, then fails with [`Fault::Unavailable`].
    pub async fn reach(&self, node: NodeId, vat: &VatName) -> Result<Far, Fault> {
        let mut reach = self.core.reach.subscribe();
        let known = tokio::time::timeout(EDGE_WAIT, reach.wait_for(Option::is_some)).await;
        let known = known.ok().and_then(|known| known.ok().and_then(|known| known.clone()));
        let reach = known.ok_or_else(|| {
            let why = format!("{} reaches no other node: it has no socket or no SVID", self.name());
            Fault::unavailable(1000, why)
        })?;
        reach.reach(self, node, vat.clone()).await
    }

    /// The node that it is part of.
    pub fn node(&self) -> NodeId {
        self.core.node
    }

    /// The tenant that a template instance serves; the operator otherwise.
    pub fn tenant(&self) -> TenantId {
        self.core.tenant
    }

    /// The time, in milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
    }

    /// A plain setting from the image.
    pub fn param(&self, key: &str) -> Option<&str> {
        self.core.params.get(key).map(String::as_str)
    }

    /// The one directory in which this vat has files.
    pub fn data_dir(&self) -> Option<&Path> {
        self.core.data_dir.as_deref()
    }

    /// Takes a device that the image grants, once.
    pub fn take_device(&self, name: &str) -> Option<OwnedFd> {
        self.core.devices.borrow_mut().remove(name)
    }

    /// What is held through this vat's capabilities.
    pub fn meters(&self) -> &Meters {
        &self.core.meters
    }

    /// Connections from holders that have ended, and of which nothing is left.
    pub fn parted(&self) -> u64 {
        self.core.parted.get()
    }

    /// Whether the node is draining: no new work is to be taken.
    pub fn draining(&self) -> bool {
        self.core.draining.get()
    }

    /// An edge that the image gives this vat, by its name. Waits a few seconds for one whose other
    /// end is starting or was restarted, then fails with [`Fault::Unavailable`].
    pub async fn edge(&self, name: &str) -> Result<capability_capnp::edge::Client, Fault> {
        self.wired(name, |known, _| known == name).await.map(|(client, _)| client)
    }

    /// An edge that the image gives this vat to the vat of that name, whatever the edge is called; likewise.
    pub(crate) async fn edge_to(
        &self,
        vat: &VatName,
    ) -> Result<(capability_capnp::edge::Client, Borrowing), Fault> {
        self.wired(vat.as_str(), |_, peer| peer == vat.as_str()).await
    }

    async fn wired(
        &self,
        what: &str,
        is: impl Fn(&str, &str) -> bool,
    ) -> Result<(capability_capnp::edge::Client, Borrowing), Fault> {
        let wired = async {
            loop {
                let changed = self.core.edges_changed.notified();
                let found = {
                    let edges = self.core.edges.borrow();
                    let found = edges.iter().find(|(name, wired)| is(name, &wired.peer));
                    found.map(|(_, wired)| (wired.client.clone(), wired.borrowing.clone()))
                };
                if let Some(wired) = found {
                    return wired;
                }
                changed.await;
            }
        };
        tokio::time::timeout(EDGE_WAIT, wired)
            .await
            .map_err(|_| Fault::unavailable(1000, format!("'{what}' is not reachable")))
    }

    /// The vats of this node that hold an edge to this vat's root object of `kind`, at this moment.
    pub fn holders(&self, kind: Kind) -> Vec<String> {
        let served = self.core.served.borrow();
        let of_kind = served.values().filter(|(_, served)| *served == kind);
        of_kind.map(|(holder, _)| holder.clone()).collect()
    }

    /// The capability that the image grants over an edge.
    pub async fn root<T: FromClientHook>(&self, edge: &str) -> Result<T, Fault> {
        let response =
            self.edge(edge).await?.root_request().send().promise.await.map_err(|e| fault_of(&e))?;
        let cap = response.get().and_then(|r| r.get_cap()).map_err(|e| fault_of(&e))?;
        Ok(cap.cast_to())
    }

    /// The audit outbox; [`Fault::Denied`] unless the image grants it.
    pub async fn outbox(&self) -> Result<kernel_capnp::outbox::Client, Fault> {
        let response =
            self.kernel()?.outbox_request().send().promise.await.map_err(|e| fault_of(&e))?;
        response.get().and_then(|r| r.get_outbox()).map_err(|e| fault_of(&e))
    }

    /// The power to start templates; [`Fault::Denied`] unless the image grants it.
    pub async fn spawner(&self) -> Result<kernel_capnp::spawner::Client, Fault> {
        let response =
            self.kernel()?.spawner_request().send().promise.await.map_err(|e| fault_of(&e))?;
        response.get().and_then(|r| r.get_spawner()).map_err(|e| fault_of(&e))
    }

    /// The operator's levers; [`Fault::Denied`] unless the image grants them.
    pub async fn control(&self) -> Result<kernel_capnp::control::Client, Fault> {
        let response =
            self.kernel()?.control_request().send().promise.await.map_err(|e| fault_of(&e))?;
        response.get().and_then(|r| r.get_control()).map_err(|e| fault_of(&e))
    }

    /// Every object of this vat that a live durable capability names.
    pub async fn objects(&self) -> Result<Vec<(Kind, ObjectId, TenantId)>, Fault> {
        let response =
            self.kernel()?.objects_request().send().promise.await.map_err(|e| fault_of(&e))?;
        let objects = response.get().and_then(|r| r.get_objects()).map_err(|e| fault_of(&e))?;
        Ok(objects
            .iter()
            .map(|o| (Kind(o.get_kind()), ObjectId(o.get_object()), TenantId(o.get_tenant())))
            .collect())
    }

    /// Ends every capability to one of this vat's objects: what dropping an object starts with.
    pub async fn revoke_object(&self, kind: Kind, object: ObjectId) -> Result<Revoked, Fault> {
        let (began, marks) = (boot_ns(), self.core.lending.marks());
        let mut request = self.kernel()?.revoke_object_request();
        request.get().set_kind(kind.0);
        request.get().set_object(object.0);
        let response = request.send().promise.await.map_err(|e| fault_of(&e))?;
        let done = response.get().map_err(|e| fault_of(&e))?;
        let elsewhere_ms = self.core.lending.some_ended(self, marks, began).await;
        let (micros, descendants) = (done.get_micros(), done.get_descendants());
        Ok(Revoked { micros, descendants, elsewhere_ms })
    }

    /// Puts an event into the audit outbox. Never blocks: if too many wait, they are counted, and
    /// the count is reported.
    pub fn report(&self, kind: &str, tenant: TenantId, cap: CapId, detail: impl Into<String>) {
        let event = Event { kind: kind.to_owned(), tenant, cap, detail: detail.into() };
        if self.core.events.try_send(event).is_err() {
            self.core.suppressed.set(self.core.suppressed.get() + 1);
        }
    }

    pub(crate) fn lending(&self) -> &Rc<Lending> {
        &self.core.lending
    }

    /// The same, without keeping it.
    /// Whoever is at the other end of this session's connection wants to be told of leases.
    pub(crate) fn lend_to(
        &self,
        session: SessionId,
        lessee: lessee::Client,
    ) -> Result<(lessor::Client, u64), capnp::Error> {
        self.lending().arrive(self, session, lessee).map_err(fail)
    }

    pub(crate) fn downgrade(&self) -> WeakVat {
        WeakVat(Rc::downgrade(&self.core))
    }

    pub(crate) fn checker(&self) -> &Rc<Checker> {
        &self.core.checker
    }

    pub(crate) fn kernel(&self) -> Result<kernel_capnp::kernel::Client, Fault> {
        let kernel = self.core.kernel.borrow().clone();
        kernel.ok_or_else(|| Fault::unavailable(200, "the kernel is not connected"))
    }

    pub(crate) fn seal(&self) -> Result<Rc<dyn Seal>, Fault> {
        let seal = self.core.seal.borrow().clone();
        seal.ok_or_else(|| Fault::unavailable(0, "nobody is encrypted to this vat"))
    }

    /// What each connection from a holder may keep this vat busy with.
    pub(crate) fn bounds(&self) -> Bounds {
        self.core.bounds
    }

    pub(crate) fn service(&self) -> Result<Rc<dyn Service>, Fault> {
        let service = self.core.service.borrow().clone();
        service.ok_or_else(|| Fault::unavailable(200, "the service is starting"))
    }

    pub(crate) fn release(&self, slot: SlotRef) {
        // The receiver lives as long as the vat; at its end there is nothing to give back.
        let _ = self.core.releases.send(slot);
    }

    pub(crate) fn next_session(&self) -> SessionId {
        let number = self.core.next_session.get();
        self.core.next_session.set(number + 1);
        SessionId(number)
    }

    /// Connects to the kernel; the returned future resolves when the kernel is gone.
    fn connect_kernel(&self, stream: UnixStream) -> impl Future<Output = ()> + use<> {
        let own =
            capnp_rpc::new_client::<kernel_capnp::vat::Client, _>(VatServer { vat: self.clone() });
        let own = capnp::capability::Client::new(own.into_client_hook());
        let mut system = transport::start(stream, Side::Client, Some(own), Bounds::EDGE);
        *self.core.kernel.borrow_mut() = Some(system.bootstrap(Side::Server));
        let task = tokio::task::spawn_local(system);
        async move {
            let _ = task.await;
        }
    }

    /// Connects one end of an edge.
    fn wire(&self, edge: EdgeEnd, socket: OwnedFd) -> Result<(), Fault> {
        let stream = stream(socket)?;
        match edge.grant {
            Some(grant) => self.serve_edge(edge.peer, grant, stream),
            None => self.hold_edge(edge.name, edge.peer, stream),
        }
        Ok(())
    }

    fn serve_edge(&self, peer: String, grant: EdgeGrant, stream: UnixStream) {
        let session = self.next_session();
        self.core.served.borrow_mut().insert(session.0, (peer.clone(), Kind(grant.kind)));
        let facet = Facet::of_edge(self, session, &grant, &peer);
        let home = EdgeHome { vat: self.clone(), session, peer, facet };
        let home: capability_capnp::edge::Client = capnp_rpc::new_client(home);
        let home = capnp::capability::Client::new(home.into_client_hook());
        let (reader, writer) = stream.into_split();
        let (side, checker) = (Side::Server, Some(self.core.checker.clone()));
        let system =
            transport::system(reader, writer, side, Some(home), Bounds::EDGE, checker, None);
        let vat = self.clone();
        tokio::task::spawn_local(async move {
            let _ = system.await;
            vat.core.served.borrow_mut().remove(&session.0);
            vat.core.lending.leave(session);
            vat.end_session(session).await;
        });
    }

    fn hold_edge(&self, name: String, peer: String, stream: UnixStream) {
        let number = self.next_session().0;
        let mut system = transport::start(stream, Side::Client, None, Bounds::EDGE);
        let client: capability_capnp::edge::Client = system.bootstrap(Side::Server);
        let borrowing = Borrowing::by(client.clone());
        let wired = Wired { number, peer, client, borrowing };
        self.core.edges.borrow_mut().insert(name.clone(), wired);
        self.core.edges_changed.notify_waiters();
        let vat = self.clone();
        tokio::task::spawn_local(async move {
            let _ = system.await;
            let mut edges = vat.core.edges.borrow_mut();
            if edges.get(&name).is_some_and(|wired| wired.number == number) {
                edges.remove(&name);
            }
        });
    }

    async fn take_edges(self, control: Control) {
        loop {
            match control.next().await {
                Ok(Some((edge, socket))) => {
                    if let Err(fault) = self.wire(edge, socket) {
                        tracing::warn!(%fault, "an edge could not be wired");
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(%error, "the control socket failed");
                    return;
                }
            }
        }
    }

    async fn take_in(self, mut door: Doorkeeper) {
        while let Some(arrival) = door.arrivals.recv().await {
            self.admit(arrival);
            // One connection, then everybody's turn.
            tokio::task::yield_now().await;
        }
    }

    fn admit(&self, arrival: Arrival) {
        let Arrival { socket, user, seat } = arrival;
        let socket = Quiet::new(socket);
        let (reader, writer) = (socket.clone(), socket.clone());
        let from = Caller { party: Party::User(user), name: None, binding: None };
        let _ = self.take(reader, writer, from, Some(socket), async move {
            // It lasts until its client ends it.
            let _seat = seat;
            std::future::pending().await
        });
    }

    /// Serves whoever is at the other end of these two halves, as one who connects to this vat's
    /// socket is served: it begins at the door, and may do nothing before it has restored something.
    /// It ends when `over` resolves, whatever is under way, or when its
    /// client ends it; then `over` is dropped.
    pub fn take_stream<R, W>(
        &self,
        reader: R,
        writer: W,
        from: Remote,
        over: impl Future<Output = ()> + 'static,
    ) -> Arrived
    where
        R: AsyncRead + Unpin + 'static,
        W: AsyncWrite + Unpin + 'static,
    {
        let Remote { party, name, binding } = from;
        let from = Caller { party, name: Some(name), binding };
        self.take(reader, writer, from, None, over)
    }

    /// What is kept with this vat of this type; it is there from the first question on, and ends with the vat.
    pub fn attached<T: Default + 'static>(&self) -> Rc<T> {
        let mut attached = self.core.attached.borrow_mut();
        let kept = attached.entry(TypeId::of::<T>()).or_insert_with(|| Rc::new(T::default()));
        // Whatever is there by this type is of it.
        kept.clone().downcast().unwrap_or_default()
    }

    /// The same; `socket` is what both halves are of, if it can be silenced.
    fn take<R, W>(
        &self,
        reader: R,
        writer: W,
        from: Caller,
        socket: Option<Quiet>,
        over: impl Future<Output = ()> + 'static,
    ) -> Arrived
    where
        R: AsyncRead + Unpin + 'static,
        W: AsyncWrite + Unpin + 'static,
    {
        let place = self.core.admission.place(from.party, socket);
        let session = self.next_session();
        let (stranger, restores) = (Rc::new(Stranger::default()), Rc::new(Cell::new(0)));
        let door = Door {
            vat: self.clone(),
            session,
            peer: from.name.clone(),
            end: End::Unknown,
            nonce: Cell::new(None),
            binding: from.binding,
            restores: restores.clone(),
            stranger: stranger.clone(),
        };
        let epoch = from.name.as_deref().map(|name| self.core.epochs.of(name));
        let known = Known { name: from.name, epoch, stranger: stranger.clone() };
        self.core.callers.borrow_mut().insert(session.0, known);
        let start = move || async move { door.welcome(reader, writer).await };
        let arrived = Arrived::new(self.clone(), session, stranger.clone());
        let vat = self.clone();
        tokio::task::spawn_local(async move {
            tokio::select! {
                biased;
                () = over => {}
                served = place.drive(&stranger, start) => {
                    if served.is_none() {
                        tracing::info!("a connection that restores nothing is closed");
                    }
                }
            }
            drop(place);
            stranger.gone.set(true);
            vat.core.callers.borrow_mut().remove(&session.0);
            vat.core.lending.leave(session);
            // The kernel has heard of this session only if something was presented to it.
            if restores.get() > 0 {
                vat.meters().forget_idle_rates(vat.now_ms());
                vat.end_session(session).await;
            }
            vat.core.parted.set(vat.core.parted.get() + 1);
        });
        arrived
    }

    /// Begins an attestation epoch of a peer, if it is a later one: of a node with all its services ("node/N"), or of a tenant
    /// with all its agents ("tenant/T"). When this returns, nothing has an effect any more that it was given here before:
    /// neither a capability that it holds over a connection, nor a loan, nor a gift that waits for it. Its connections are
    /// for others to close.
    pub fn raise_epoch(&self, peer: &str, number: u64) {
        self.core.epochs.raise(peer, number);
    }

    pub(crate) fn epochs(&self) -> &Epochs {
        &self.core.epochs
    }

    /// The epoch in which a session has come over the network.
    pub(crate) fn epoch_of(&self, session: SessionId) -> Option<Epoch> {
        self.core.callers.borrow().get(&session.0)?.epoch.clone()
    }

    /// Where a session's calls come from. One that has ended says that it was anywhere.
    pub(crate) fn whence(&self, session: SessionId) -> Whence {
        let callers = self.core.callers.borrow();
        match callers.get(&session.0) {
            Some(known) if known.stranger.sealed.get() => Whence::Anywhere,
            Some(Known { name: Some(name), .. }) => Whence::Shown(name.clone()),
            Some(Known { name: None, .. }) => Whence::Here,
            None if self.core.served.borrow().contains_key(&session.0) => Whence::Here,
            None => Whence::Anywhere,
        }
    }

    /// Nothing is served over its connection any more.
    pub(crate) async fn end_session(&self, session: SessionId) {
        tracing::debug!(target: gift::TRACE, at = boot_ns(), session = session.0, "session_ends");
        let Ok(kernel) = self.kernel() else { return };
        let mut request = kernel.end_session_request();
        request.get().set_session(session.0);
        if let Err(error) = request.send().promise.await {
            tracing::debug!(%error, "a session could not be ended");
        }
    }

    async fn announce(&self, protections: &[Protection]) -> Result<(), Fault> {
        let mut request = self.kernel()?.ready_request();
        let mut list = request.get().init_protections(protections.len() as u32);
        for (index, protection) in protections.iter().enumerate() {
            let mut entry = list.reborrow().get(index as u32);
            entry.set_name(&protection.name);
            entry.set_enforced(protection.enforced);
            entry.set_detail(&protection.detail);
        }
        request.send().promise.await.map_err(|e| fault_of(&e))?;
        Ok(())
    }

    async fn send_events(self, mut waiting: mpsc::Receiver<Event>) {
        while let Some(event) = waiting.recv().await {
            self.send_event(&event).await;
            let suppressed = self.core.suppressed.take();
            if suppressed > 0 {
                let detail = format!("{suppressed} events were not kept: they came too fast");
                let (kind, tenant, cap) = ("suppressed".to_owned(), TenantId::OPERATOR, CapId(0));
                self.send_event(&Event { kind, tenant, cap, detail }).await;
            }
        }
    }

    async fn send_event(&self, event: &Event) {
        let Ok(kernel) = self.kernel() else { return };
        let mut request = kernel.report_request();
        let mut message = request.get().init_event();
        message.set_kind(&event.kind);
        message.set_tenant(event.tenant.0);
        message.set_cap_id(event.cap.0);
        message.set_detail(&event.detail);
        if let Err(error) = request.send().promise.await {
            tracing::warn!(%error, kind = event.kind, "an audit event was not taken");
        }
    }

    async fn send_releases(self, mut waiting: mpsc::UnboundedReceiver<SlotRef>) {
        let mut batch = Vec::with_capacity(MAX_RELEASES);
        while waiting.recv_many(&mut batch, MAX_RELEASES).await > 0 {
            let Ok(kernel) = self.kernel() else { return };
            let mut request = kernel.release_request();
            let mut slots = request.get().init_slots(batch.len() as u32);
            for (index, slot) in batch.drain(..).enumerate() {
                let mut entry = slots.reborrow().get(index as u32);
                entry.set_index(slot.index);
                entry.set_generation(slot.generation.0);
            }
            if let Err(error) = request.send().promise.await {
                tracing::debug!(%error, "capabilities could not be released");
            }
        }
    }
}

/// What the kernel holds of this vat.
struct VatServer {
    vat: Vat,
}

impl kernel_capnp::vat::Server for VatServer {
    async fn drain(
        self: Rc<Self>,
        _: kernel_capnp::vat::DrainParams,
        _: kernel_capnp::vat::DrainResults,
    ) -> Result<(), capnp::Error> {
        self.vat.core.draining.set(true);
        self.vat.service().map_err(fail)?.drain().await;
        Ok(())
    }

    async fn ping(
        self: Rc<Self>,
        _: kernel_capnp::vat::PingParams,
        _: kernel_capnp::vat::PingResults,
    ) -> Result<(), capnp::Error> {
        Ok(())
    }
}
