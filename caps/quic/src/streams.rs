//! What a connection has beside the stream for calls: streams for many bytes, and one on which nothing but leases is
//! spoken of, so that a revocation is heard however many calls and bytes wait to be sent (C2, N4).
//!
//! Whoever connected begins each of them, with 16 bytes that say what it is: a ticket, or a word that is none.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use capnp_rpc::rpc_twoparty_capnp::Side;
use distos_abi::{CapId, Fault, TenantId};
use distos_rpc::transport::{self, Bounds, Driven};
use distos_rpc::{Arrived, Borrowing, Streamed, Vat};
use distos_schemas::capability_capnp::door;
use futures::future::LocalBoxFuture;
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::Semaphore;

use crate::bulk::{self, BROKEN_OFF, Bulk, STREAM_WAIT, TICKET, TICKET_WAIT};

/// Streams of a connection at one time, beside the one for calls.
pub(crate) const STREAMS: u32 = bulk::STREAMS + 1;
/// What stands where a ticket would, on the stream for leases. A ticket is that by chance once in 2^128 times.
const LEASES: &[u8; TICKET] = b"distos-leases-v1";
/// Of what waits to be sent, before what is said in calls.
const PRIORITY: i32 = 1;
/// Streams that began with what is nothing, after which a connection's are answered no more.
const MAX_WRONG: u32 = 8;

/// The other streams of a connection that was made from here. Cheap to clone.
#[derive(Clone)]
pub struct Streams {
    connection: Connection,
    /// Places for streams with many bytes: without them, those would keep the one for leases out.
    bulk: Arc<Semaphore>,
}

impl Streams {
    /// Those of this connection, for which nobody has asked before.
    pub fn of(connection: Connection) -> Streams {
        Streams { connection, bulk: Arc::new(Semaphore::new(bulk::STREAMS as usize)) }
    }

    /// A stream on which many bytes can be asked for by their ticket.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] if the connection has ended, or as many are under way as may be.
    pub fn bulk(&self) -> LocalBoxFuture<'static, Result<Streamed, Fault>> {
        let Streams { connection, bulk } = self.clone();
        Box::pin(async move {
            let place = tokio::time::timeout(STREAM_WAIT, bulk.acquire_owned()).await;
            let busy = || Fault::unavailable(100, "other streams are under way");
            // The places are never closed.
            let place = place.ok().and_then(Result::ok).ok_or_else(busy)?;
            let (send, receive) = open(&connection).await?;
            Ok(bulk::stream(send, receive, place))
        })
    }

    /// What the vat at the other end lends over this connection. Of its leases is spoken on a stream of its own, from when
    /// the first is asked for.
    pub fn leases(&self) -> Borrowing {
        let connection = self.connection.clone();
        Borrowing::beside(Rc::new(move || {
            let connection = connection.clone();
            Box::pin(async move {
                let (mut send, receive) = open(&connection).await?;
                // If it stays as it was, leases wait as calls do.
                let _ = send.set_priority(PRIORITY);
                let begun = send.write_all(LEASES).await;
                begun.map_err(|error| Fault::unavailable(1000, error.to_string()))?;
                let mut system = transport::over(receive, send, Side::Client, None, Bounds::LEASES);
                let door: door::Client = system.bootstrap(Side::Server);
                Ok((door, Driven::new(system)))
            })
        }))
    }
}

async fn open(connection: &Connection) -> Result<(SendStream, RecvStream), Fault> {
    let opened = tokio::time::timeout(STREAM_WAIT, connection.open_bi()).await;
    let opened = opened.map_err(|_| Fault::unavailable(100, "other streams are under way"))?;
    opened.map_err(|error| Fault::unavailable(1000, error.to_string()))
}

/// What a vat has under way on the other streams of one connection.
#[derive(Default)]
struct UnderWay {
    bulk: Cell<u32>,
    leases: Cell<bool>,
    /// Streams that began with what is nothing.
    wrong: Cell<u32>,
}

/// Answers the streams that the other side begins, until the connection ends, or until it has begun too many with what is
/// nothing. How many there are at one time the transport says.
pub(crate) async fn serve(vat: Vat, arrived: Arrived, connection: Connection) {
    let (bulk, under_way) = (Bulk::of(&vat), Rc::new(UnderWay::default()));
    while let Ok((send, receive)) = connection.accept_bi().await {
        if under_way.wrong.get() >= MAX_WRONG {
            let from = connection.remote_address();
            let told = format!("{from} begins streams by tickets that it was not given");
            vat.report("denial", TenantId::OPERATOR, CapId(0), told);
            return;
        }
        let (bulk, under_way, arrived) = (bulk.clone(), under_way.clone(), arrived.clone());
        let over = connection.clone();
        tokio::task::spawn_local(async move {
            tokio::select! {
                is_known = answer(&bulk, &under_way, &arrived, send, receive) => {
                    if !is_known {
                        under_way.wrong.set(under_way.wrong.get() + 1);
                    }
                }
                _ = over.closed() => {}
            }
        });
    }
}

/// Whether it began with what is something.
async fn answer(
    bulk: &Bulk,
    under_way: &UnderWay,
    arrived: &Arrived,
    mut send: SendStream,
    mut receive: RecvStream,
) -> bool {
    let mut first = [0; TICKET];
    let read = tokio::time::timeout(TICKET_WAIT, receive.read_exact(&mut first)).await;
    let is_whole = matches!(read, Ok(Ok(())));
    if is_whole && first == *LEASES && !under_way.leases.replace(true) {
        let _ = send.set_priority(PRIORITY);
        let served = arrived.serve_leases(receive, send).await;
        under_way.leases.set(false);
        return served.is_ok();
    }
    // Whatever else it says is not kept for anybody to read.
    let _ = receive.stop(BROKEN_OFF.into());
    if is_whole && first != *LEASES && under_way.bulk.get() < bulk::STREAMS {
        under_way.bulk.set(under_way.bulk.get() + 1);
        let is_known = bulk.answer(&first, &mut send).await;
        under_way.bulk.set(under_way.bulk.get() - 1);
        return is_known;
    }
    let _ = send.reset(BROKEN_OFF.into());
    false
}
