//! How a service reaches those of other nodes: where they are, its network service says; that they are who they
//! should be, their handshakes show.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};

use capnp_rpc::rpc_twoparty_capnp::Side;
use distos_abi::{Fault, NodeId, VatName};
use distos_identity::{ClusterName, SpiffeId, Subject};
use distos_rpc::transport::{Bounds, Driven};
use distos_rpc::{Borrowing, Far, Open, Reach, Streamed, Vat, fault_of};
use distos_schemas::capability_capnp::door;
use distos_schemas::network_capnp::credentials;
use futures::future::LocalBoxFuture;
use tokio::sync::Mutex;

use crate::endpoint::{Endpoint, why_closed};
use crate::streams::Streams;

/// Vats of other nodes that are reached at one time. A tenant's program decides which.
const MOST: usize = 64;
/// How often a connection is used for something new: a door gives 1,024 times. Those who have something by it
/// keep it.
const USES: u32 = 1000;

/// Reaches vats of other nodes through an endpoint.
struct Outward {
    /// The edge to the network service.
    edge: &'static str,
    endpoint: Rc<Endpoint>,
    cluster: ClusterName,
    /// Whom this vat is connected to, or is connecting to.
    open: RefCell<BTreeMap<Whom, Place>>,
}

type Whom = (NodeId, VatName);

/// One connection at a time. It is the users' to keep.
type Place = Rc<Mutex<Weak<Connected>>>;

/// A connection, which ends with this.
struct Connected {
    door: door::Client,
    borrowing: Borrowing,
    uses: Cell<u32>,
    connection: quinn::Connection,
    streams: Streams,
    _driven: Driven,
}

impl Open for Connected {
    fn ended(&self) -> Option<Fault> {
        let why = self.connection.close_reason()?;
        Some(why_closed(self.connection.remote_address(), &why))
    }

    fn stream(&self) -> LocalBoxFuture<'static, Result<Streamed, Fault>> {
        self.streams.bulk()
    }
}

impl Outward {
    /// The place of a connection to this vat.
    fn place(&self, whom: &Whom) -> Result<Place, Fault> {
        let mut open = self.open.borrow_mut();
        // One that nobody uses and nobody is about to.
        open.retain(|_, place| {
            Rc::strong_count(place) > 1
                || place.try_lock().is_ok_and(|open| open.strong_count() > 0)
        });
        if open.len() >= MOST && !open.contains_key(whom) {
            let why = format!("{MOST} vats of other nodes are reached already");
            return Err(Fault::unavailable(1000, why));
        }
        Ok(open.entry(whom.clone()).or_default().clone())
    }

    async fn locate(&self, vat: &Vat, (node, service): &Whom) -> Result<SocketAddr, Fault> {
        let network: credentials::Client = vat.root(self.edge).await?;
        let mut request = network.locate_request();
        request.get().set_node(&node.0);
        request.get().set_service(service.as_str());
        let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
        let address = answer.get().and_then(|answer| answer.get_address());
        let address = address.and_then(|text| Ok(text.to_str()?)).map_err(|e| fault_of(&e))?;
        address.parse().map_err(|_| Fault::internal("the network service names no address"))
    }

    async fn connect(&self, vat: &Vat, whom: &Whom) -> Result<Rc<Connected>, Fault> {
        let address = self.locate(vat, whom).await?;
        let (node, service) = whom.clone();
        let subject = Subject::Service { node, service };
        let id = SpiffeId { cluster: self.cluster.clone(), subject };
        let link = self.endpoint.connect(address, &id).await?;
        let connection = link.connection().clone();
        let streams = Streams::of(connection.clone());
        let mut system = link.start(None, Bounds::EDGE);
        let door: door::Client = system.bootstrap(Side::Server);
        Ok(Rc::new(Connected {
            borrowing: streams.leases(),
            door,
            uses: Cell::new(0),
            connection,
            streams,
            _driven: Driven::new(system),
        }))
    }

    async fn reached(&self, vat: &Vat, whom: Whom) -> Result<Far, Fault> {
        let place = self.place(&whom)?;
        let mut place = place.lock().await;
        let known = place
            .upgrade()
            .filter(|open| open.connection.close_reason().is_none() && open.uses.get() < USES);
        let open = match known {
            Some(open) => open,
            None => self.connect(vat, &whom).await?,
        };
        open.uses.set(open.uses.get() + 1);
        *place = Rc::downgrade(&open);
        Ok(Far { door: open.door.clone(), borrowing: open.borrowing.clone(), open })
    }
}

/// The way out of a vat, for whoever holds the vat.
pub(crate) struct Way(Rc<Outward>);

impl Way {
    /// Asks over this edge where others are, and connects through `endpoint` to those of `cluster`.
    pub(crate) fn new(edge: &'static str, endpoint: Rc<Endpoint>, cluster: ClusterName) -> Way {
        Way(Rc::new(Outward { edge, endpoint, cluster, open: RefCell::default() }))
    }
}

impl Reach for Way {
    fn reach(
        &self,
        from: &Vat,
        node: NodeId,
        vat: VatName,
    ) -> LocalBoxFuture<'static, Result<Far, Fault>> {
        let (outward, from) = (self.0.clone(), from.clone());
        Box::pin(async move { outward.reached(&from, (node, vat)).await })
    }
}
