//! Bulk data: many bytes by one capability, on a stream of their own beside the calls of a connection.
//!
//! A holder asks an object for a ticket, over RPC, and begins a stream of the same connection with it. The home
//! answers there with pages, each behind its length (4 bytes, big-endian) and its BLAKE3 hash (32); a length of 0 is the
//! end. A page enters the stream under a guard, as the reply of a call does: after a revocation has returned, none does (C2).
//! Whoever reads hands out no byte of a page before all of it was checked (M2).
//!
//! Of what waits to be sent, these streams come after calls; room to wait in is theirs and the calls' alike. A
//! connection has few of them at one time, and a tenant; whoever takes longer than a while for a page has it ended.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use distos_abi::{ByteRange, Fault, Rights, TenantId};
use distos_rpc::{Facet, Pages, Seats, Streamed, Vat};
use futures::StreamExt as _;
use futures::stream::LocalBoxStream;
use quinn::{RecvStream, SendStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What a stream begins with, in bytes.
pub(crate) const TICKET: usize = 16;
/// The longest page, in bytes.
pub const MAX_PAGE: usize = 64 << 10;
/// What stands before a page.
const HEADER: usize = 4 + 32;
/// Streams of a connection at one time.
pub(crate) const STREAMS: u32 = 2;
/// Streams of a vat under way, and those of one tenant: what each has read ahead is kept for it.
const MAX_STREAMS: usize = 64;
const MAX_STREAMS_OF_A_TENANT: usize = 16;
/// Tickets that were given and not used yet, in all and to one tenant.
const MAX_TICKETS: usize = 256;
const MAX_TICKETS_OF_A_TENANT: usize = 16;
/// How long a ticket is good for, and how long either side may be silent.
pub(crate) const TICKET_WAIT: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_secs(15);
/// How long to wait for a stream while others are under way.
pub(crate) const STREAM_WAIT: Duration = Duration::from_millis(100);
/// Of what waits to be sent, behind what is said in calls.
const PRIORITY: i32 = -1;
/// Why a stream was broken off.
pub(crate) const BROKEN_OFF: u32 = 1;

/// Bytes that are to be sent together, and their hash.
pub struct Page {
    /// BLAKE3 of the bytes.
    pub hash: [u8; 32],
    /// At least one, and no more than [`MAX_PAGE`].
    pub bytes: Bytes,
}

/// What a vat has offered, of which nobody has begun a stream yet, and the streams that are under way.
pub struct Bulk {
    offers: RefCell<BTreeMap<[u8; TICKET], Offer>>,
    /// Whether somebody looks whose time is over.
    is_watched: Cell<bool>,
    streams: Arc<Seats<TenantId>>,
}

impl Default for Bulk {
    fn default() -> Bulk {
        Bulk {
            offers: RefCell::default(),
            is_watched: Cell::new(false),
            streams: Seats::new(MAX_STREAMS, MAX_STREAMS_OF_A_TENANT),
        }
    }
}

/// Pages, and the capability by which they may be sent.
struct Offer {
    facet: Facet,
    need: Rights,
    range: ByteRange,
    pages: LocalBoxStream<'static, Result<Page, Fault>>,
    until: Instant,
}

impl Bulk {
    /// What this vat offers.
    pub fn of(vat: &Vat) -> Rc<Bulk> {
        vat.attached()
    }

    /// Offers pages, for one stream, to whoever shows the ticket: over an encrypted connection, it is known to the holder
    /// alone. `pages` are sent as long as `facet` allows `need` over `range`. Between two of them nobody asks for the
    /// next: what others wait for must not be held meanwhile.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] if too much is offered already, or if the vat is draining.
    pub fn offer(
        self: &Rc<Bulk>,
        facet: Facet,
        (need, range): (Rights, ByteRange),
        pages: LocalBoxStream<'static, Result<Page, Fault>>,
    ) -> Result<[u8; TICKET], Fault> {
        if facet.vat().draining() {
            return Err(Fault::unavailable(1000, "this node is draining"));
        }
        let mut offers = self.offers.borrow_mut();
        let now = Instant::now();
        offers.retain(|_, offer| now < offer.until);
        let of = |tenant: TenantId| offers.values().filter(|o| o.facet.tenant() == tenant).count();
        if offers.len() >= MAX_TICKETS || of(facet.tenant()) >= MAX_TICKETS_OF_A_TENANT {
            return Err(Fault::unavailable(1000, "too many streams are offered and not begun"));
        }
        let mut ticket = [0; TICKET];
        getrandom::fill(&mut ticket).map_err(Fault::internal)?;
        offers.insert(ticket, Offer { facet, need, range, pages, until: now + TICKET_WAIT });
        if !self.is_watched.replace(true) {
            tokio::task::spawn_local(expire(Rc::downgrade(self)));
        }
        Ok(ticket)
    }

    fn take(&self, ticket: &[u8; TICKET]) -> Option<Offer> {
        let offer = self.offers.borrow_mut().remove(ticket)?;
        (Instant::now() < offer.until).then_some(offer)
    }

    /// Answers a stream that began with these bytes, once its connection has a place; whether they are a ticket.
    pub(crate) async fn answer(
        &self,
        ticket: &[u8; TICKET],
        send: &mut SendStream,
        places: &Semaphore,
    ) -> bool {
        let offer = self.take(ticket);
        let is_known = offer.is_some();
        // It is nothing to the stream that its priority stays what it was.
        let _ = send.set_priority(PRIORITY);
        let place = match &offer {
            // One that was given up may not have been noticed yet.
            Some(_) => tokio::time::timeout(TICKET_WAIT, places.acquire()).await.ok(),
            None => None,
        };
        let seat = offer.as_ref().zip(place).and_then(|(offer, place)| {
            // The places are never closed.
            Some((self.streams.take(offer.facet.tenant())?, place.ok()?))
        });
        let sent = match (offer, seat) {
            (Some(mut offer), Some(_seat)) => offer.send(send).await,
            (Some(_), None) => Err(Fault::unavailable(1000, "too many streams are under way")),
            (None, _) => Err(Fault::not_found("nothing is offered by this ticket")),
        };
        if let Err(fault) = sent {
            tracing::debug!(%fault, "a stream was broken off");
            let _ = send.reset(BROKEN_OFF.into());
        }
        is_known
    }
}

/// Lets go of what nobody has begun in time, as long as anything is offered: it keeps its object and its vat.
async fn expire(bulk: Weak<Bulk>) {
    loop {
        tokio::time::sleep(TICKET_WAIT).await;
        let Some(bulk) = bulk.upgrade() else { return };
        let now = Instant::now();
        let over: Vec<Offer> = {
            let mut offers = bulk.offers.borrow_mut();
            offers.extract_if(.., |_, offer| now >= offer.until).map(|(_, offer)| offer).collect()
        };
        drop(over);
        if bulk.offers.borrow().is_empty() {
            bulk.is_watched.set(false);
            return;
        }
    }
}

impl Offer {
    async fn send(&mut self, stream: &mut SendStream) -> Result<(), Fault> {
        let mut sent = 0;
        while let Some(page) = self.pages.next().await {
            let Page { hash, bytes } = page?;
            let len = bytes.len();
            let header = [&(len as u32).to_be_bytes()[..], &hash].concat();
            self.write(stream, &mut [header.into(), bytes]).await?;
            sent += len;
            // One page, then everybody's turn.
            tokio::task::yield_now().await;
        }
        self.write(stream, &mut [Bytes::from_static(&[0; HEADER])]).await?;
        tracing::debug!(bytes = sent, "sent by a stream");
        stream.finish().map_err(Fault::internal)
    }

    /// Has these bytes enter the stream, as many at once as there is room for, each time under a guard. All of them within
    /// the time for which either side may be silent.
    async fn write(&self, stream: &mut SendStream, bytes: &mut [Bytes]) -> Result<(), Fault> {
        let written = async {
            let mut at = 0;
            while at < bytes.len() {
                let mut entering = pin!(stream.write_chunks(&mut bytes[at..]));
                let some = poll_fn(|context| {
                    let polled = self
                        .facet
                        .commit(self.need, self.range, || entering.as_mut().poll(context));
                    match polled {
                        Ok(Poll::Pending) => Poll::Pending,
                        Ok(Poll::Ready(written)) => Poll::Ready(written.map_err(|error| {
                            Fault::unavailable(0, format!("nobody reads the stream: {error}"))
                        })),
                        Err(fault) => Poll::Ready(Err(fault)),
                    }
                });
                at += some.await?.chunks;
            }
            Ok(())
        };
        let silent = |_| Err(Fault::unavailable(0, "the stream is read too slowly"));
        tokio::time::timeout(SILENCE, written).await.unwrap_or_else(silent)
    }
}

/// A stream that was opened, on which something can be asked for by its ticket. Its place is taken as long as it is read.
pub(crate) fn stream(
    send: SendStream,
    receive: RecvStream,
    place: OwnedSemaphorePermit,
) -> Streamed {
    Box::new(move |ticket| pages(send, receive, ticket, place))
}

fn pages(
    mut send: SendStream,
    receive: RecvStream,
    ticket: Vec<u8>,
    place: OwnedSemaphorePermit,
) -> Pages {
    let begun = async move {
        // It is the home that says what it is.
        let begun = async {
            (ticket.len() == TICKET).then_some(())?;
            send.write_all(&ticket).await.ok()?;
            // The home may have heard enough already.
            let _ = send.finish();
            Some(())
        };
        tokio::time::timeout(SILENCE, begun).await.ok().flatten()
    };
    let begun = futures::stream::once(begun).filter_map(|begun| async move {
        begun.is_none().then(|| Err(Fault::unavailable(1000, "the stream was not begun")))
    });
    let pages = futures::stream::try_unfold((receive, place), |(mut receive, place)| async move {
        let page = tokio::time::timeout(SILENCE, page(&mut receive)).await;
        let silent = |_| Err(Fault::unavailable(1000, "nothing comes by the stream"));
        Ok(page.unwrap_or_else(silent)?.map(|page| (page, (receive, place))))
    });
    begun.chain(pages).boxed_local()
}

/// The next page; `None` at the end.
async fn page(receive: &mut RecvStream) -> Result<Option<Vec<u8>>, Fault> {
    let broken =
        |why: String| Fault::unavailable(1000, format!("the stream was broken off: {why}"));
    let mut header = [0; HEADER];
    let read = receive.read_exact(&mut header).await;
    read.map_err(|error| broken(error.to_string()))?;
    let (len, hash) = header.split_at(4);
    let len = u32::from_be_bytes(len.try_into().map_err(Fault::internal)?) as usize;
    if len == 0 {
        return Ok(None);
    }
    if len > MAX_PAGE {
        return Err(Fault::malformed(format!("a page has {MAX_PAGE} bytes at most")));
    }
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let chunk = receive.read_chunk(len - bytes.len(), true).await;
        let chunk = chunk.map_err(|error| broken(error.to_string()))?;
        let chunk = chunk.ok_or_else(|| broken("it ends within a page".to_owned()))?;
        bytes.extend_from_slice(&chunk.bytes);
    }
    match blake3::hash(&bytes).as_bytes() == hash {
        true => Ok(Some(bytes)),
        false => Err(Fault::Corrupt("a page is not what its hash says".into())),
    }
}
