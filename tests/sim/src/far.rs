//! A node whose memory service is reached over the network, and holders on machines of their own.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use distos_abi::{Authority, Fault, NodeId, VatName};
use distos_client::Connection;
use distos_identity::{Peers, Subject, TenantName};
use distos_node::image::{self, Machine};
use distos_quic::{Endpoint, Streams};
use distos_rpc::transport::Bounds;
use distos_rpc::{Service, Vat};
use distos_schemas::capability_capnp::capability;
use distos_types::{Chain, HolderSecret};
use futures::future::LocalBoxFuture;

use crate::cluster::Cluster;
use crate::{Life, Node, tasks};

const IMAGE: &str = r#"
image = { name = "remote", slots = 4096 }
[operator]
regions = { of = "memory/regions", rights = ["create", "list", "read", "write", "drop"] }
[vat.memory]
program = "memory"
serves = ["regions"]
listen = true
data = true
"#;
/// The node.
pub const HOME: NodeId = NodeId([1; 32]);
const SOON: Duration = Duration::from_secs(30);

/// Runs a test on one thread.
///
/// # Panics
/// It takes longer than half a minute.
pub fn test<F: Future<Output = ()>>(work: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("loop");
    tokio::task::LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(SOON, work).await.expect("it takes too long");
    });
}

/// A tenant.
///
/// # Panics
/// This is no name.
pub fn tenant(name: &str) -> TenantName {
    TenantName::new(name).expect("a tenant's name")
}

/// What lets these tenants in.
///
/// # Panics
/// One is no name.
pub fn tenants(names: &[&str]) -> Peers {
    Peers { tenants: names.iter().map(|name| tenant(name)).collect(), ..Peers::default() }
}

/// The memory service of the node.
///
/// # Panics
/// Never.
pub fn memory() -> Subject {
    Subject::Service { node: HOME, service: VatName::new("memory").expect("a vat's name") }
}

/// What a service's start resolves to.
pub type Start = LocalBoxFuture<'static, Result<Rc<dyn Service>, Fault>>;

/// A node whose memory service is reached over the network, by agents of red and blue.
pub struct World {
    /// Who is who.
    pub cluster: Cluster,
    /// The node.
    pub node: Node,
    endpoint: Rc<RefCell<Option<Endpoint>>>,
    /// Where its memory service is.
    pub address: SocketAddr,
    _dir: tempfile::TempDir,
}

impl World {
    /// With its memory service.
    ///
    /// # Panics
    /// It does not start.
    pub async fn boot() -> World {
        World::boot_with(|vat| Box::pin(distos_memory::start(vat))).await
    }

    /// With another service in its place.
    ///
    /// # Panics
    /// It does not start.
    pub async fn boot_with(start: impl Fn(Vat) -> Start + 'static) -> World {
        let dir = tempfile::tempdir().expect("a directory");
        let cluster = Cluster::new("demo");
        let (endpoint, arrivals) =
            cluster.endpoint(cluster.svid(memory(), 50), tenants(&["red", "blue"]));
        let address = endpoint.address().expect("its address");
        let (arrivals, start) = (RefCell::new(Some(arrivals)), Rc::new(start));
        let spawn = tasks(move |boot| -> Life {
            let arrivals = arrivals.borrow_mut().take().expect("the service starts once");
            let start = start.clone();
            Box::pin(distos_rpc::serve(boot, async move |vat: Vat| {
                let service = start(vat.clone()).await?;
                tokio::task::spawn_local(distos_quic::serve(vat, arrivals));
                Ok(service)
            }))
        });
        let machine = Machine {
            builtins: &distos_node::vat::PROGRAMS,
            executable: &|path| path.exists(),
            exists: &|path| path.exists(),
        };
        let plan = image::parse(IMAGE, Path::new("remote.toml"), dir.path(), &machine)
            .unwrap_or_else(|errors| panic!("{errors}"));
        let node = Node::boot(plan, spawn).await.expect("the node starts");
        let endpoint = Rc::new(RefCell::new(Some(endpoint)));
        World { cluster, node, endpoint, address, _dir: dir }
    }

    /// The operator's regions, delegated to this holder without a network.
    ///
    /// # Panics
    /// The operator has no regions.
    pub fn delegated(&self, to: &HolderSecret) -> Chain {
        let (file, owner) = self.node.operator().expect("the operator's files");
        let own = &file.find("regions").expect("regions").chain;
        let wanted = Authority { rights: own.authority().rights, ..Authority::FULL };
        own.delegate(&owner, to.key(), wanted, [3; 16]).expect("a delegation")
    }

    /// An agent of this tenant's, on a machine of its own.
    ///
    /// # Panics
    /// This is no name.
    pub fn agent(&self, name: &str, key: &HolderSecret, seed: u8) -> Endpoint {
        let agent = Subject::Agent { tenant: tenant(name), agent: key.key() };
        let home = Peers { nodes: [HOME].into(), ..Peers::default() };
        self.cluster.endpoint(self.cluster.svid(agent, seed), home).0
    }

    /// Connects as an agent does.
    ///
    /// # Errors
    /// It is not let in.
    pub async fn connect(&self, from: &Endpoint) -> Result<Connection, Fault> {
        let link = from.connect(self.address, &self.cluster.id(memory())).await?;
        let binding = link.binding();
        let leases = Streams::of(link.connection().clone()).leases();
        Ok(Connection::bound(link.start(None, Bounds::EDGE), binding).lending(leases))
    }

    /// Ends what the operator has given to this holder; within how many milliseconds leases elsewhere are over.
    ///
    /// # Panics
    /// It is not ended.
    pub async fn take_back(&self, chain: &Chain) -> u32 {
        let (file, owner) = self.node.operator().expect("the operator's files");
        let nearby = self.node.connect("memory").await.expect("the socket");
        let own = &file.find("regions").expect("regions").chain;
        let root: capability::Client = nearby.restore(own, &owner).await.expect("the operator's");
        let mut request = root.revoke_link_request();
        request.get().set_link(&chain.links().last().expect("a link").hash.0);
        request.get().set_expires_ms(u64::MAX);
        let answer = request.send().promise.await.expect("the link is revoked");
        answer.get().expect("an answer").get_elsewhere_ms()
    }

    /// Lets these in from now on.
    ///
    /// # Panics
    /// Its endpoint is closed.
    pub fn trust(&self, peers: Peers) {
        let endpoint = self.endpoint.borrow();
        endpoint.as_ref().expect("it is open").trust(self.cluster.trust(peers));
    }
}
