//! The vat under test: the runtime that all services share, and one region behind it.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use capnp::capability::FromClientHook;
use capnp::private::capability::ClientHook;
use capnp_rpc::rpc_twoparty_capnp::Side;
use distos_abi::{ByteRange, Fault, Rights};
use distos_rpc::boot::{Boot, Manifest};
use distos_rpc::transport::{self, Bounds};
use distos_rpc::{Facet, Faceted, Service, Vat, fail, serve_capability};
use distos_schemas::kernel_capnp::kernel;
use distos_schemas::memory_capnp::region;
use distos_table::{GuardPage, Table};
use futures::future::LocalBoxFuture;

use super::kernel::{Counts, Kernel, OBJECT, SLOTS, VAT, node};

/// A running vat and its kernel.
pub(super) struct World {
    dir: tempfile::TempDir,
    counts: Arc<Counts>,
    /// Connections that were made.
    pub(super) opened: u64,
}

/// How often what has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) redeemed: u64,
    pub(super) parted: u64,
    pub(super) served: u64,
}

impl World {
    pub(super) fn start() -> World {
        let counts: Arc<Counts> = Arc::default();
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("door.sock")).unwrap();
        let (kernel_end, vat_end) = UnixStream::pair().unwrap();
        let (control_kernel, control_vat) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let of_kernel = counts.clone();
        std::thread::Builder::new()
            .name("kernel".into())
            .spawn(move || {
                let (table, table_fd) = Table::create(SLOTS).unwrap();
                sender.send(table_fd).unwrap();
                // A closed control socket ends nothing but the passing of edges.
                let _open = control_kernel;
                serve_kernel(kernel_end, Kernel::new(table, of_kernel));
            })
            .unwrap();
        let table: OwnedFd = receiver.recv().unwrap();
        let guards = GuardPage::create(64).unwrap();
        let fds: [OwnedFd; 5] =
            [vat_end.into(), control_vat.into(), table, guards, listener.into()];
        let boot =
            Boot { manifest: manifest(), protections: Vec::new(), fds: (4..).zip(fds).collect() };
        let of_vat = counts.clone();
        std::thread::Builder::new()
            .name("vat".into())
            .spawn(move || {
                distos_rpc::run(boot, |vat| async move {
                    tokio::task::spawn_local(count_parted(vat.clone(), of_vat.clone()));
                    Ok(Rc::new(Regions { vat, counts: of_vat }) as Rc<dyn Service>)
                })
            })
            .unwrap();
        World { dir, counts, opened: 0 }
    }

    pub(super) fn socket(&self) -> PathBuf {
        Path::join(self.dir.path(), "door.sock")
    }

    pub(super) fn seen(&self) -> Seen {
        Seen {
            redeemed: self.counts.redeemed.load(Ordering::SeqCst),
            parted: self.counts.parted.load(Ordering::SeqCst),
            served: self.counts.served.load(Ordering::SeqCst),
        }
    }
}

/// Tells which connections the vat has let go of.
async fn count_parted(vat: Vat, counts: Arc<Counts>) {
    loop {
        counts.parted.store(vat.parted(), Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn manifest() -> Manifest {
    Manifest {
        vat: VAT.into(),
        program: VAT.into(),
        node: node().to_string(),
        tenant: 0,
        // All of it: here strangers have nobody whom they could disturb.
        params: BTreeMap::from([("strangers_part".to_owned(), "1".to_owned())]),
        serves: vec![OBJECT.0.0],
        data_dir: None,
        kernel_fd: 4,
        control_fd: 5,
        table_fd: 6,
        guard_fd: 7,
        listen_fd: Some(8),
        edges: Vec::new(),
        devices: BTreeMap::new(),
    }
}

fn serve_kernel(stream: UnixStream, server: Kernel) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async move {
        stream.set_nonblocking(true).unwrap();
        let stream = tokio::net::UnixStream::from_std(stream).unwrap();
        let client: kernel::Client = capnp_rpc::new_client(server);
        let client = capnp::capability::Client::new(client.into_client_hook());
        let _ = transport::start(stream, Side::Server, Some(client), Bounds::EDGE).await;
    });
}

struct Regions {
    vat: Vat,
    counts: Arc<Counts>,
}

impl Service for Regions {
    fn open(self: Rc<Self>, facet: Facet) -> Result<Box<dyn ClientHook>, Fault> {
        if (facet.kind(), facet.object()) != OBJECT {
            return Err(Fault::not_found("there is one region"));
        }
        Ok(Region { service: self, facet, writes: Cell::new(0) }.into_hook())
    }

    fn drain(self: Rc<Self>) -> LocalBoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}

struct Region {
    service: Rc<Regions>,
    facet: Facet,
    writes: Cell<u64>,
}

impl Region {
    fn into_hook(self) -> Box<dyn ClientHook> {
        capnp_rpc::new_client::<region::Client, _>(self).into_client_hook()
    }

    fn served(&self) {
        self.service.counts.served.fetch_add(1, Ordering::SeqCst);
    }
}

impl Faceted for Region {
    fn facet(&self) -> &Facet {
        &self.facet
    }

    fn with_facet(&self, facet: Facet) -> Box<dyn ClientHook> {
        Region { service: self.service.clone(), facet, writes: Cell::new(0) }.into_hook()
    }
}

serve_capability!(Region);

/// The most bytes of one reply.
const MAX_READ: u32 = 1 << 20;

impl region::Server for Region {
    /// Answers at once, with as much as a memory service would.
    async fn read(
        self: Rc<Self>,
        params: region::ReadParams,
        mut results: region::ReadResults,
    ) -> capnp::Result<()> {
        let (offset, len) = (params.get()?.get_offset(), params.get()?.get_len());
        if len > MAX_READ {
            return Err(fail(Fault::malformed("too long")));
        }
        let range = ByteRange { start: offset, end: offset.saturating_add(len.into()) };
        self.facet.check_range(Rights::READ, range).map_err(fail)?;
        self.served();
        self.facet.reply(&mut results).init_data(len);
        Ok(())
    }

    /// Waits, and then commits.
    async fn write(
        self: Rc<Self>,
        params: region::WriteParams,
        _: region::WriteResults,
    ) -> capnp::Result<()> {
        let _ = params.get()?.get_data()?;
        self.facet.check(Rights::WRITE).map_err(fail)?;
        tokio::time::sleep(Duration::from_millis(2)).await;
        let all = ByteRange { start: 0, end: 0 };
        let write = || self.writes.set(self.writes.get() + 1);
        self.facet.commit(Rights::WRITE, all, write).map_err(fail)?;
        self.served();
        Ok(())
    }

    /// Answers with a capability of its own, as `open` does.
    async fn info(
        self: Rc<Self>,
        _: region::InfoParams,
        mut results: region::InfoResults,
    ) -> capnp::Result<()> {
        self.facet.check(Rights::READ).map_err(fail)?;
        tokio::task::yield_now().await;
        self.served();
        let mut info = self.facet.reply(&mut results).init_info();
        info.set_name("region");
        info.set_bytes(self.writes.get());
        Ok(())
    }

    /// Never answers: whoever waits for it gives up.
    async fn drop(
        self: Rc<Self>,
        _: region::DropParams,
        _: region::DropResults,
    ) -> capnp::Result<()> {
        self.facet.check(Rights::DROP).map_err(fail)?;
        self.service.vat.report("drop", self.facet.tenant(), self.facet.cap_id(), "waits");
        std::future::pending().await
    }
}
