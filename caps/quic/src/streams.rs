//! What a connection has beside the stream for calls: streams for many bytes, and one on which nothing but leases is
//! spoken of, so that a revocation is heard however many calls and bytes wait to be sent (C2).
//!
//! Whoever connected begins each of them, with 16 bytes that say what it is: a ticket, or a word that is none.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use capnp_rpc::rpc_twoparty_capnp::Side;
use distos_abi::{CapId, Fault, TenantId};
use distos_rpc::transport::{self, Bounds, Driven};
use distos_rpc::{Arrived, Borrowing, Streamed, Vat};
use distos_schemas::capability_capnp::door;
use futures::future::LocalBoxFuture;
use quinn::{Connection, ReadExactError, RecvStream, SendStream};
use tokio::sync::Semaphore;

use crate::bulk::{self, BROKEN_OFF, Bulk, STREAM_WAIT, TICKET, TICKET_WAIT};
use crate::watch::code;

/// Streams of a connection at one time, beside the one for calls.
pub(crate) const STREAMS: u32 = bulk::STREAMS + 1;
/// What stands where a ticket would, on the stream for leases. A ticket is that by chance once in 2^128 times.
const LEASES: &[u8; TICKET] = b"distos-leases-v1";
/// Of what waits to be sent, before what is said in calls.
const PRIORITY: i32 = 1;
/// How long to wait for the stream for leases: those with many bytes that were given up give back their places a while
/// later.
const LEASES_WAIT: Duration = Duration::from_secs(5);
/// Streams that began with what is nothing, after which no more of a connection's get any bytes; and how long each that
/// it begins nevertheless keeps the next waiting.
const MAX_WRONG: u32 = 8;
const REST: Duration = Duration::from_secs(1);

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
            let (send, receive) = open(&connection, STREAM_WAIT).await?;
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
                let (mut send, receive) = open(&connection, LEASES_WAIT).await?;
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

async fn open(connection: &Connection, wait: Duration) -> Result<(SendStream, RecvStream), Fault> {
    let opened = tokio::time::timeout(wait, connection.open_bi()).await;
    let opened = opened.map_err(|_| Fault::unavailable(100, "other streams are under way"))?;
    opened.map_err(|error| Fault::unavailable(1000, error.to_string()))
}

/// What a vat has under way on the other streams of one connection.
struct UnderWay {
    /// Places for streams with many bytes.
    bulk: Semaphore,
    leases: Cell<bool>,
    /// Streams that began with what is nothing.
    wrong: Cell<u32>,
}

/// What a stream was that the other side has begun.
enum Was {
    Something,
    /// It began with what is no ticket, or with what it may not have.
    Nothing,
    /// The one for leases, and it has ended.
    Leases,
}

/// Answers the streams that the other side begins, until the connection ends. How many there are at one time the transport
/// says. Whoever has begun too many with what is nothing is answered no more, but for its leases.
pub(crate) async fn serve(vat: Vat, arrived: Arrived, connection: Connection) {
    let under_way = Rc::new(UnderWay {
        bulk: Semaphore::new(bulk::STREAMS as usize),
        leases: Cell::new(false),
        wrong: Cell::new(0),
    });
    let mut is_told = false;
    while let Ok((send, receive)) = connection.accept_bi().await {
        let answering = answer(vat.clone(), under_way.clone(), arrived.clone(), (send, receive));
        let (over, under_way) = (connection.clone(), under_way.clone());
        let is_enough = under_way.wrong.get() >= MAX_WRONG;
        if is_enough && !is_told {
            is_told = true;
            let from = connection.remote_address();
            let told = format!("{from} begins streams by what it was not given");
            vat.report("denial", TenantId::OPERATOR, CapId(0), told);
        }
        tokio::task::spawn_local(async move {
            tokio::select! {
                biased;
                // Nothing that it has sent before is looked at any more.
                _ = over.closed() => {}
                was = answering => match was {
                    Was::Something => {}
                    Was::Nothing => under_way.wrong.set(under_way.wrong.get() + 1),
                    // Whoever was lent to hears nothing any more, and would go on without knowing that.
                    Was::Leases => over.close(code::DONE.into(), b""),
                }
            }
        });
        if is_enough {
            tokio::time::sleep(REST).await;
        }
    }
}

async fn answer(
    vat: Vat,
    under_way: Rc<UnderWay>,
    arrived: Arrived,
    (mut send, mut receive): (SendStream, RecvStream),
) -> Was {
    let mut first = [0; TICKET];
    let read = tokio::time::timeout(TICKET_WAIT, receive.read_exact(&mut first)).await;
    let is_whole = matches!(read, Ok(Ok(())));
    if is_whole && first == *LEASES && !under_way.leases.replace(true) {
        let _ = send.set_priority(PRIORITY);
        // It is ahead of the capability that was presented together with it.
        let _ = tokio::time::timeout(TICKET_WAIT, arrived.until_shown()).await;
        let served = arrived.serve_leases(receive, send).await;
        under_way.leases.set(false);
        return if served.is_ok() { Was::Leases } else { Was::Nothing };
    }
    // Whatever else it says is not kept for anybody to read.
    let _ = receive.stop(BROKEN_OFF.into());
    if is_whole && first != *LEASES && under_way.wrong.get() < MAX_WRONG {
        let is_known = Bulk::of(&vat).answer(&first, &mut send, &under_way.bulk).await;
        return if is_known { Was::Something } else { Was::Nothing };
    }
    let _ = send.reset(BROKEN_OFF.into());
    // Whoever thought better of it before it had said anything was not wrong.
    match read {
        Ok(Err(ReadExactError::FinishedEarly(0))) => Was::Something,
        _ => Was::Nothing,
    }
}
