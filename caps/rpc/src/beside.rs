//! What goes beside the calls of a connection that came over a network: what is said of leases, on a way of its own.

use std::rc::Rc;

use capnp_rpc::rpc_twoparty_capnp::Side;
use distos_abi::{Fault, Rights, SessionId};
use distos_schemas::capability_capnp::door;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::admission::Stranger;
use crate::faults::fail;
use crate::transport::{self, Bounds};
use crate::vat::Vat;

/// A connection that a vat has taken, for what is said beside its calls. Cheap to clone; it does not keep the
/// connection.
#[derive(Clone)]
pub struct Arrived {
    vat: Vat,
    session: SessionId,
    stranger: Rc<Stranger>,
}

impl Arrived {
    pub(crate) fn new(vat: Vat, session: SessionId, stranger: Rc<Stranger>) -> Arrived {
        Arrived { vat, session, stranger }
    }

    /// Resolves once a capability was shown over the connection, and there is something to lend.
    pub async fn until_shown(&self) {
        self.stranger.until_restored().await;
    }

    /// Serves whoever is told of leases over these two halves, which are a way of their own beside the connection's
    /// calls, until they end: the caller drops this with the connection. What is lent, and to whom, is the connection's.
    ///
    /// # Errors
    /// [`Fault::Denied`] if nothing was shown over the connection yet, or if its calls are encrypted to somebody who is
    /// not at its other end.
    pub async fn serve_leases<R, W>(&self, reader: R, writer: W) -> Result<(), Fault>
    where
        R: AsyncRead + Unpin + 'static,
        W: AsyncWrite + Unpin + 'static,
    {
        if !self.stranger.restored.get() || self.stranger.sealed.get() {
            return Err(Fault::denied(Rights::NONE));
        }
        let (vat, stranger) = (self.vat.clone(), self.stranger.clone());
        let door = LeaseDoor { vat, session: self.session, stranger };
        let door: door::Client = capnp_rpc::new_client(door);
        let (side, own) = (Side::Server, Some(door.client));
        let system = transport::over(reader, writer, side, own, Bounds::LEASES);
        transport::drive(system, std::future::pending()).await;
        Ok(())
    }
}

/// What is found on a way of its own beside the calls of a connection: who is told of leases, and nothing else.
struct LeaseDoor {
    vat: Vat,
    /// Of the connection.
    session: SessionId,
    stranger: Rc<Stranger>,
}

impl door::Server for LeaseDoor {
    async fn lessor(
        self: Rc<Self>,
        params: door::LessorParams,
        mut results: door::LessorResults,
    ) -> Result<(), capnp::Error> {
        if self.stranger.gone.get() {
            return Err(fail(Fault::unavailable(0, "the connection is over")));
        }
        let lessee = params.get()?.get_lessee()?;
        let (lessor, token) = self.vat.lend_to(self.session, lessee)?;
        let mut reply = results.get();
        reply.set_lessor(lessor);
        reply.set_token(token);
        Ok(())
    }
}
