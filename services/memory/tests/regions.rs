//! The memory service as its clients meet it: a real vat with real facets and a real capability
//! table, behind a kernel that grants what this test tells it to.
#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use capnp_rpc::rpc_twoparty_capnp::Side;
use distos_abi::{
    Authority, ByteRange, CapId, Caveats, Fault, Generation, Kind, ObjectId, Rights, SlotRef,
    TenantId,
};
use distos_rpc::boot::{Boot, EdgeEnd, EdgeGrant, Manifest};
use distos_rpc::transport::{self, Bounds};
use distos_rpc::{authority_of, fault_of, write_caveats};
use distos_schemas::capability_capnp::{capability, edge};
use distos_schemas::kernel_capnp::{grant, kernel};
use distos_schemas::memory_capnp::{region, regions};
use distos_table::{GuardPage, Table};
use distos_types::kind::{REGION, REGIONS};
use tokio::net::UnixStream;
use tokio::task::LocalSet;

const RED: TenantId = TenantId(1);
const BLUE: TenantId = TenantId(2);
const SLOTS: u32 = 256;
const GUARD_CELLS: usize = 64;
const PAGE: u64 = 65_536;

#[derive(Clone)]
struct Node {
    slot: SlotRef,
    parent: Option<SlotRef>,
    kind: Kind,
    object: ObjectId,
    tenant: TenantId,
    authority: Authority,
    lineage: Vec<(CapId, Caveats)>,
}

/// Capabilities as a kernel keeps them, without a journal, holders or chains.
struct Forest {
    table: Table,
    nodes: Vec<Node>,
    next: u32,
}

impl Forest {
    fn plant(&mut self, parent: Option<SlotRef>, mut node: Node) -> Node {
        let index = self.next;
        self.next += 1;
        let generation = Generation::new(1, u64::from(index) + 1).expect("a small number");
        node.slot = SlotRef { index, generation };
        node.parent = parent;
        node.lineage.push((CapId(u64::from(index) + 100), node.authority.caveats));
        self.table.publish(node.slot, parent, node.tenant);
        self.nodes.push(node.clone());
        node
    }

    fn root(&mut self, tenant: TenantId, rights: Rights) -> Node {
        let authority = Authority { rights, caveats: Caveats::NONE };
        let slot = SlotRef { index: 0, generation: Generation::DEAD };
        let (kind, object, lineage) = (REGIONS, ObjectId::ROOT, Vec::new());
        self.plant(None, Node { slot, parent: None, kind, object, tenant, authority, lineage })
    }

    fn at(&self, index: u32) -> Result<Node, capnp::Error> {
        let node = self.nodes.iter().find(|n| n.slot.index == index);
        node.cloned().ok_or_else(|| distos_rpc::fail(Fault::Revoked))
    }

    fn end(&mut self, slot: SlotRef) {
        self.table.kill(slot);
        self.nodes.retain(|n| n.slot != slot);
        let below: Vec<SlotRef> =
            self.nodes.iter().filter(|n| n.parent == Some(slot)).map(|n| n.slot).collect();
        below.into_iter().for_each(|child| self.end(child));
    }
}

fn write_grant(node: &Node, mut grant: grant::Builder<'_>) {
    let mut slot = grant.reborrow().init_slot();
    slot.set_index(node.slot.index);
    slot.set_generation(node.slot.generation.0);
    grant.set_kind(node.kind.0);
    grant.set_object(node.object.0);
    grant.set_rights(node.authority.rights.0);
    grant.set_tenant(node.tenant.0);
    write_caveats(node.authority.caveats, grant.reborrow().init_caveats());
    grant.set_cap_id(node.lineage.last().map_or(0, |(cap, _)| cap.0));
    let mut lineage = grant.init_lineage(node.lineage.len() as u32);
    for (at, (cap, caveats)) in node.lineage.iter().enumerate() {
        let mut ancestor = lineage.reborrow().get(at as u32);
        ancestor.set_cap_id(cap.0);
        ancestor.set_quota_bytes(caveats.quota_bytes);
    }
}

#[derive(Clone)]
struct Kernel(Rc<RefCell<Forest>>);

type Outcome = Result<(), capnp::Error>;

impl kernel::Server for Kernel {
    async fn ready(self: Rc<Self>, _: kernel::ReadyParams, _: kernel::ReadyResults) -> Outcome {
        Ok(())
    }

    async fn mint(self: Rc<Self>, p: kernel::MintParams, mut r: kernel::MintResults) -> Outcome {
        let p = p.get()?;
        let mut forest = self.0.borrow_mut();
        let parent = forest.at(p.get_parent()?.get_index())?;
        let authority = authority_of(p.get_rights(), p.get_caveats()?);
        let (kind, object) = (Kind(p.get_kind()), ObjectId(p.get_object()));
        let slot = parent.slot;
        let node = forest.plant(Some(slot), Node { kind, object, authority, ..parent });
        write_grant(&node, r.get().init_grant());
        Ok(())
    }

    async fn derive(
        self: Rc<Self>,
        p: kernel::DeriveParams,
        mut r: kernel::DeriveResults,
    ) -> Outcome {
        let p = p.get()?;
        let mut forest = self.0.borrow_mut();
        let parent = forest.at(p.get_parent()?.get_index())?;
        let wanted = authority_of(p.get_rights(), p.get_caveats()?);
        let authority = parent.authority.narrow(wanted).map_err(distos_rpc::fail)?;
        let slot = parent.slot;
        let node = forest.plant(Some(slot), Node { authority, ..parent });
        write_grant(&node, r.get().init_grant());
        Ok(())
    }

    async fn revoke(self: Rc<Self>, p: kernel::RevokeParams, _: kernel::RevokeResults) -> Outcome {
        let index = p.get()?.get_slot()?.get_index();
        let mut forest = self.0.borrow_mut();
        let node = forest.at(index)?;
        forest.end(node.slot);
        Ok(())
    }

    async fn revoke_object(
        self: Rc<Self>,
        p: kernel::RevokeObjectParams,
        _: kernel::RevokeObjectResults,
    ) -> Outcome {
        let object = ObjectId(p.get()?.get_object());
        let mut forest = self.0.borrow_mut();
        let of_object = |n: &&Node| n.kind == REGION && n.object == object;
        let slots: Vec<SlotRef> = forest.nodes.iter().filter(of_object).map(|n| n.slot).collect();
        slots.into_iter().for_each(|slot| forest.end(slot));
        Ok(())
    }

    async fn objects(
        self: Rc<Self>,
        _: kernel::ObjectsParams,
        mut r: kernel::ObjectsResults,
    ) -> Outcome {
        let forest = self.0.borrow();
        let live: Vec<&Node> = forest.nodes.iter().filter(|n| n.kind == REGION).collect();
        let mut list = r.get().init_objects(live.len() as u32);
        for (at, node) in live.iter().enumerate() {
            let mut entry = list.reborrow().get(at as u32);
            entry.set_kind(node.kind.0);
            entry.set_object(node.object.0);
            entry.set_tenant(node.tenant.0);
        }
        Ok(())
    }

    async fn end_session(
        self: Rc<Self>,
        _: kernel::EndSessionParams,
        _: kernel::EndSessionResults,
    ) -> Outcome {
        Ok(())
    }

    async fn report(self: Rc<Self>, _: kernel::ReportParams, _: kernel::ReportResults) -> Outcome {
        Ok(())
    }

    async fn release(
        self: Rc<Self>,
        _: kernel::ReleaseParams,
        _: kernel::ReleaseResults,
    ) -> Outcome {
        Ok(())
    }
}

/// A running memory service, with an edge for each of two tenants.
struct Running {
    forest: Rc<RefCell<Forest>>,
    red: regions::Client,
    blue: regions::Client,
    kernel: tokio::task::JoinHandle<Result<(), capnp::Error>>,
    vat: std::thread::JoinHandle<std::process::ExitCode>,
}

fn pair() -> (UnixStream, OwnedFd) {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    (UnixStream::from_std(ours).unwrap(), theirs.into())
}

/// `objects` are what the kernel remembers of an earlier run: regions of Red's.
async fn boot(dir: &Path, rights: Rights, objects: &[ObjectId]) -> Running {
    let (table, table_fd) = Table::create(SLOTS).unwrap();
    let mut forest = Forest { table, nodes: Vec::new(), next: 0 };
    let roots = [forest.root(RED, rights), forest.root(BLUE, rights)];
    for object in objects {
        let red = roots[0].clone();
        forest.plant(Some(red.slot), Node { kind: REGION, object: *object, ..red });
    }
    let (kernel_end, kernel_fd) = pair();
    let (control, control_fd) = pair();
    let guard_fd = GuardPage::create(GUARD_CELLS).unwrap();
    let mut edges = Vec::new();
    let mut streams = Vec::new();
    let mut fds = BTreeMap::new();
    for root in &roots {
        let (ours, theirs) = pair();
        edges.push(EdgeEnd {
            name: "memory".into(),
            peer: "client".into(),
            fd: theirs.as_raw_fd(),
            grant: Some(EdgeGrant {
                slot_index: root.slot.index,
                slot_generation: root.slot.generation.0,
                cap_id: root.lineage[0].0.0,
                kind: root.kind.0,
                rights: root.authority.rights.0,
                tenant: root.tenant.0,
            }),
        });
        fds.insert(theirs.as_raw_fd(), theirs);
        streams.push(ours);
    }
    let manifest = Manifest {
        vat: "memory".into(),
        program: "memory".into(),
        node: hex::encode([7; 32]),
        tenant: 0,
        params: BTreeMap::from([("volatile_bytes".into(), "1000000".into())]),
        serves: vec![REGIONS.0],
        data_dir: Some(dir.to_owned()),
        kernel_fd: kernel_fd.as_raw_fd(),
        control_fd: control_fd.as_raw_fd(),
        table_fd: table_fd.as_raw_fd(),
        guard_fd: guard_fd.as_raw_fd(),
        listen_fd: None,
        edges,
        devices: BTreeMap::new(),
    };
    for fd in [kernel_fd, control_fd, table_fd, guard_fd] {
        fds.insert(fd.as_raw_fd(), fd);
    }
    let vat_boot = Boot { manifest, protections: Vec::new(), fds };
    let vat = std::thread::spawn(move || distos_memory::run(vat_boot));
    let forest = Rc::new(RefCell::new(forest));
    let bootstrap: kernel::Client = capnp_rpc::new_client(Kernel(forest.clone()));
    let system = transport::start(kernel_end, Side::Server, Some(bootstrap.client), Bounds::EDGE);
    let kernel = tokio::task::spawn_local(async move {
        let _control = control;
        system.await
    });
    let mut clients = Vec::new();
    for stream in streams {
        let mut system = transport::start(stream, Side::Client, None, Bounds::EDGE);
        let edge: edge::Client = system.bootstrap(Side::Server);
        tokio::task::spawn_local(system);
        let root = edge.root_request().send().promise.await.unwrap();
        let cap = root.get().unwrap().get_cap().unwrap();
        clients.push(regions::Client { client: cap.client });
    }
    let [red, blue] = clients.try_into().ok().unwrap();
    Running { forest, red, blue, kernel, vat }
}

impl Running {
    /// The kernel goes away, and with it the vat.
    async fn end(self) {
        self.kernel.abort();
        let _ = self.kernel.await;
        tokio::task::spawn_blocking(|| self.vat.join().unwrap()).await.unwrap();
    }
}

async fn create(
    regions: &regions::Client,
    name: &str,
    bytes: u64,
) -> Result<region::Client, Fault> {
    let mut request = regions.create_request();
    request.get().set_name(name);
    request.get().set_bytes(bytes);
    let response = request.send().promise.await.map_err(|e| fault_of(&e))?;
    Ok(response.get().unwrap().get_region().unwrap())
}

async fn open(regions: &regions::Client, name: &str) -> Result<region::Client, Fault> {
    let mut request = regions.open_request();
    request.get().set_name(name);
    let response = request.send().promise.await.map_err(|e| fault_of(&e))?;
    Ok(response.get().unwrap().get_region().unwrap())
}

async fn list(regions: &regions::Client) -> Vec<String> {
    let response = regions.list_request().send().promise.await.unwrap();
    let found = response.get().unwrap().get_regions().unwrap();
    found.iter().map(|info| info.get_name().unwrap().to_string().unwrap()).collect()
}

async fn used(regions: &regions::Client) -> u64 {
    let response = regions.usage_request().send().promise.await.unwrap();
    response.get().unwrap().get_used_bytes()
}

async fn write(region: &region::Client, offset: u64, data: &[u8]) -> Result<(), Fault> {
    let mut request = region.write_request();
    request.get().set_offset(offset);
    request.get().set_data(data);
    request.send().promise.await.map(drop).map_err(|e| fault_of(&e))
}

async fn read(region: &region::Client, offset: u64, len: u32) -> Result<Vec<u8>, Fault> {
    let mut request = region.read_request();
    request.get().set_offset(offset);
    request.get().set_len(len);
    let response = request.send().promise.await.map_err(|e| fault_of(&e))?;
    Ok(response.get().unwrap().get_data().unwrap().to_vec())
}

async fn object_of(region: &region::Client) -> ObjectId {
    let response = region.info_request().send().promise.await.unwrap();
    ObjectId(response.get().unwrap().get_info().unwrap().get_object())
}

async fn weaker(
    cap: &capability::Client,
    rights: Rights,
    caveats: Caveats,
) -> Result<capability::Client, Fault> {
    let mut request = cap.attenuate_request();
    request.get().set_rights(rights.0);
    write_caveats(caveats, request.get().init_caveats());
    let response = request.send().promise.await.map_err(|e| fault_of(&e))?;
    Ok(response.get().unwrap().get_cap().unwrap())
}

fn base(client: &capnp::capability::Client) -> capability::Client {
    capability::Client { client: client.clone() }
}

async fn revoke(client: &capnp::capability::Client) {
    base(client).revoke_request().send().promise.await.unwrap();
}

fn run(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, work);
}

#[test]
fn a_tenant_gets_back_what_it_wrote_and_no_other_tenant_learns_of_it() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let node = boot(dir.path(), Rights::ALL, &[]).await;
        let region = create(&node.red, "text", 3 * PAGE).await.unwrap();
        write(&region, PAGE - 3, b"across two pages").await.unwrap();
        assert_eq!(read(&region, PAGE - 4, 18).await.unwrap(), b"\0across two pages\0");
        assert!(matches!(write(&region, 3 * PAGE, b"x").await, Err(Fault::Malformed(_))));
        assert!(matches!(create(&node.red, "text", 1).await, Err(Fault::Exists(_))));
        assert!(matches!(create(&node.red, "no/name", 1).await, Err(Fault::Malformed(_))));
        assert!(matches!(create(&node.red, "none", 0).await, Err(Fault::Malformed(_))));
        assert_eq!(list(&node.red).await, ["text"]);
        assert!(list(&node.blue).await.is_empty());
        assert!(matches!(open(&node.blue, "text").await, Err(Fault::NotFound(_))));
        create(&node.blue, "text", PAGE).await.unwrap();
        let again = open(&node.red, "text").await.unwrap();
        assert_eq!(read(&again, PAGE, 5).await.unwrap(), b"oss t");
        node.end().await;
    });
}

#[test]
fn a_weaker_capability_reaches_its_page_and_nothing_else_and_ends_when_it_is_revoked() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let node = boot(dir.path(), Rights::ALL, &[]).await;
        let region = create(&node.red, "text", 3 * PAGE).await.unwrap();
        write(&region, 0, &vec![7; 3 * PAGE as usize]).await.unwrap();
        let range = ByteRange { start: PAGE, end: 2 * PAGE };
        let caveats = Caveats { range, ..Caveats::NONE };
        let page = weaker(&base(&region.client), Rights::READ, caveats).await.unwrap();
        let page = region::Client { client: page.client };
        assert_eq!(read(&page, PAGE, PAGE as u32).await.unwrap(), [7; PAGE as usize]);
        let fault = read(&page, PAGE - 1, 2).await.unwrap_err();
        let wanted = ByteRange { start: PAGE - 1, end: PAGE + 1 };
        assert_eq!(fault, Fault::Denied { missing: Rights::READ, range: Some(wanted) });
        assert_eq!(write(&page, PAGE, b"x").await, Err(Fault::denied(Rights::WRITE)));
        assert!(page.drop_request().send().promise.await.is_err());
        revoke(&page.client).await;
        assert_eq!(read(&page, PAGE, 1).await, Err(Fault::Revoked));
        assert_eq!(read(&region, PAGE, 1).await.unwrap(), [7]);
        node.end().await;
    });
}

#[test]
fn a_region_opened_by_name_allows_no_more_than_what_it_was_opened_through() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let node = boot(dir.path(), Rights::ALL, &[]).await;
        create(&node.red, "text", PAGE).await.unwrap();
        let rights = Rights::LIST.join(Rights::READ);
        let reader = weaker(&base(&node.red.client), rights, Caveats::NONE).await.unwrap();
        let reader = regions::Client { client: reader.client };
        assert_eq!(create(&reader, "x", 1).await.err(), Some(Fault::denied(Rights::CREATE)));
        let opened = open(&reader, "text").await.unwrap();
        assert_eq!(read(&opened, 0, 1).await.unwrap(), [0]);
        assert_eq!(write(&opened, 0, b"x").await, Err(Fault::denied(Rights::WRITE)));
        revoke(&reader.client).await;
        assert_eq!(read(&opened, 0, 1).await, Err(Fault::Revoked));
        node.end().await;
    });
}

#[test]
fn a_write_under_way_when_its_capability_is_revoked_is_refused_or_was_there_before() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let node = boot(dir.path(), Rights::ALL, &[]).await;
        let region = create(&node.red, "text", 1 << 20).await.unwrap();
        let mut refused = 0;
        for fill in 1..40_u8 {
            let writer = weaker(&base(&region.client), Rights::WRITE, Caveats::NONE).await.unwrap();
            let writer = region::Client { client: writer.client };
            let under_way = tokio::task::spawn_local({
                let writer = writer.clone();
                async move { write(&writer, 0, &vec![fill; 1 << 20]).await }
            });
            tokio::task::yield_now().await;
            revoke(&writer.client).await;
            let at_return = read(&region, 0, 1 << 20).await.unwrap();
            let outcome = under_way.await.unwrap();
            let later = read(&region, 0, 1 << 20).await.unwrap();
            assert!(later == at_return, "C2: nothing took effect after revoke had returned");
            if let Err(fault) = outcome {
                assert_eq!(fault, Fault::Revoked);
                refused += 1;
            }
        }
        assert!(refused > 0, "no write was caught under way");
        node.end().await;
    });
}

#[test]
fn a_quota_counts_what_is_held_and_a_drop_gives_it_back() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let node = boot(dir.path(), Rights::ALL, &[]).await;
        let caveats = Caveats { quota_bytes: 100_000, ..Caveats::NONE };
        let small = weaker(&base(&node.red.client), Rights::ALL, caveats).await.unwrap();
        let small = regions::Client { client: small.client };
        let first = create(&small, "a", 60_000).await.unwrap();
        let fault = create(&small, "b", 60_000).await.err().unwrap();
        assert_eq!(fault.name(), "over-quota");
        assert_eq!(used(&node.red).await, 60_000);
        let other = open(&node.red, "a").await.unwrap();
        first.drop_request().send().promise.await.unwrap();
        assert_eq!(read(&other, 0, 1).await, Err(Fault::Revoked));
        assert_eq!(used(&node.red).await, 0);
        assert!(list(&node.red).await.is_empty());
        create(&small, "a", 100_000).await.unwrap();
        node.end().await;
    });
}

#[test]
fn a_restart_keeps_what_holds_data_and_erases_what_was_never_finished() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let node = boot(dir.path(), Rights::ALL, &[]).await;
        let kept = create(&node.red, "kept", 2 * PAGE).await.unwrap();
        create(&node.red, "unfinished", PAGE).await.unwrap();
        let orphan = create(&node.red, "orphan", PAGE).await.unwrap();
        write(&orphan, 0, b"acknowledged").await.unwrap();
        write(&kept, PAGE + 5, b"still here").await.unwrap();
        let object = object_of(&kept).await;
        node.end().await;
        let unknown = ObjectId(object.0 + 1_000);
        let node = boot(dir.path(), Rights::ALL, &[object, unknown]).await;
        let left: Vec<ObjectId> = node.forest.borrow().nodes.iter().map(|n| n.object).collect();
        assert!(!left.contains(&unknown), "a capability without a region is revoked");
        assert_eq!(list(&node.red).await, ["kept", "orphan"]);
        assert_eq!(used(&node.red).await, 3 * PAGE);
        let orphan = open(&node.red, "orphan").await.unwrap();
        assert_eq!(read(&orphan, 0, 12).await.unwrap(), b"acknowledged");
        let kept = open(&node.red, "kept").await.unwrap();
        assert_eq!(read(&kept, PAGE + 5, 10).await.unwrap(), b"still here");
        assert!(object_of(&create(&node.red, "unfinished", 1).await.unwrap()).await > object);
        node.end().await;
    });
}
