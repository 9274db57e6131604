//! Vats of other nodes: how they are reached from here, and who comes from there. Over what, this crate does not
//! know.

use std::rc::Rc;

use distos_abi::{Fault, NodeId, VatName};
use distos_schemas::capability_capnp;
use futures::future::LocalBoxFuture;
use futures::stream::LocalBoxStream;

use crate::admission::Party;
use crate::borrowing::Borrowing;
use crate::vat::Vat;

/// How a vat reaches those of other nodes: over a network that this crate knows nothing of.
pub trait Reach: 'static {
    /// Connects `from` to a vat of another node; one that is connected to already is not connected to again.
    /// [`Fault::Unavailable`] if it is not reached, [`Fault::Unauthenticated`] if one side does not trust
    /// the other, [`Fault::NotFound`] if there is no such node or vat.
    fn reach(
        &self,
        from: &Vat,
        node: NodeId,
        vat: VatName,
    ) -> LocalBoxFuture<'static, Result<Far, Fault>>;
}

/// A vat of another node, reached.
#[derive(Clone)]
pub struct Far {
    /// Its door.
    pub door: capability_capnp::door::Client,
    /// What it has lent over this connection.
    pub borrowing: Borrowing,
    /// The connection, which is closed when the last of these is dropped.
    pub open: Rc<dyn Open>,
}

/// A connection that ends with this.
pub trait Open: 'static {
    /// Why it has ended, if it has: its calls know only that it did.
    fn ended(&self) -> Option<Fault>;

    /// A stream of its own beside the calls, for what the vat offers by a ticket.
    /// [`Fault::Unavailable`] if there is none now: what was to be read can be asked for in calls.
    fn stream(&self) -> LocalBoxFuture<'static, Result<Streamed, Fault>>;
}

/// Bytes in order, page by page, each checked against its hash before it is here (M2). What was cut off ends with a
/// fault.
pub type Pages = LocalBoxStream<'static, Result<Vec<u8>, Fault>>;

/// Asks for what is offered by a ticket.
pub type Streamed = Box<dyn FnOnce(Vec<u8>) -> Pages>;

/// Who is at the other end of a connection that came over a network.
pub struct Remote {
    /// Who stands behind it.
    pub party: Party,
    /// By which name a gift can be left for it: the path of its SPIFFE id.
    pub name: String,
    /// What the handshake has given to the two ends of the connection, and to nobody else: with it, capabilities can be
    /// presented without a challenge. It is a secret of this connection.
    pub binding: Option<[u8; 32]>,
}
