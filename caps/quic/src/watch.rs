//! Watches over a connection: who has shown what at its other end, and until when that holds.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use distos_identity::{Identity, KeyExchange, Refusal, SpiffeId, Usage};
use quinn::{Connection, RecvStream};
use rustls::pki_types::CertificateDer;
use tokio::sync::{oneshot, watch};

use crate::endpoint::{HANDSHAKE_WAIT, Place, Room};
use crate::renewal;
use crate::tls::Credentials;

/// How often it is looked whether a peer's time is over: clocks are put forward.
const LOOK: Duration = Duration::from_secs(1);
/// Between two renewals that a peer shows; another one waits.
const RENEWAL_REST: Duration = Duration::from_secs(1);

/// Why a connection was closed, as the other side is told.
pub(crate) mod code {
    /// There is nothing more to say.
    pub(crate) const DONE: u32 = 0;
    /// Its SVID has ended, or is no longer trusted.
    pub(crate) const UNTRUSTED: u32 = 1;
    /// There are too many connections of its.
    pub(crate) const BUSY: u32 = 2;
    /// It broke the protocol.
    pub(crate) const BROKEN: u32 = 3;
    /// This node goes.
    pub(crate) const LEAVING: u32 = 4;
}

/// A connection whose other end is known.
pub(crate) struct Known {
    pub(crate) connection: Connection,
    /// As what the peer shows itself.
    usage: Usage,
    /// Who it is: a newer SVID says the same.
    id: SpiffeId,
    /// How keys had to be agreed on when it was opened.
    exchange: KeyExchange,
    /// In which attestation epoch of its node it was.
    epoch: u64,
    shown: RefCell<Shown>,
}

/// What a peer has shown.
struct Shown {
    /// The SVID that lasts longest, and the last one, if that is another.
    chains: Vec<Vec<Vec<u8>>>,
    until_s: u64,
    /// The same by a clock that nobody sets.
    until: Instant,
}

impl Shown {
    fn lasts(&mut self, until_s: u64, now_s: u64) {
        self.until_s = until_s;
        self.until = Instant::now() + Duration::from_secs(until_s.saturating_sub(now_s));
    }
}

impl Known {
    /// Closes the connection, unless it is: why the other side has closed it is not to be forgotten.
    pub(crate) fn close(&self, code: u32) {
        if self.connection.close_reason().is_none() {
            self.connection.close(code.into(), b"");
        }
    }

    /// Whether one of the SVIDs that the peer has shown lets it in, and its node is as it was when this was opened: whoever was put
    /// out and let in again meanwhile connects again (A3). The other SVIDs are forgotten.
    pub(crate) fn is_admitted(&self, room: &Room) -> bool {
        if !room.shared.allows(self.exchange) || room.shared.epoch(&self.id) != self.epoch {
            return false;
        }
        let now_s = room.shared.now_s();
        let mut shown = self.shown.borrow_mut();
        let mut until_s = None;
        shown.chains.retain(|chain| {
            let found = room.shared.admit(chain, now_s, self.usage).ok();
            until_s = until_s.max(found.as_ref().map(|found| found.until_s));
            found.is_some()
        });
        if let Some(until_s) = until_s {
            shown.lasts(until_s, now_s);
        }
        until_s.is_some()
    }
}

/// A connection from the end of its handshake on. Dropping it closes the connection.
pub(crate) struct Opening {
    pub(crate) peer: Identity,
    pub(crate) known: Rc<Known>,
    pub(crate) seat: Rc<Place>,
    /// Dropped with it.
    pub(crate) held: oneshot::Sender<()>,
}

impl Opening {
    /// Begins to watch over the connection. The handshake has let the peer in; whether it is to be let
    /// in now is asked once more, because nobody watched meanwhile.
    pub(crate) fn new(
        room: &Rc<Room>,
        (connection, exchange): (Connection, KeyExchange),
        seat: Place,
        own: watch::Receiver<Credentials>,
    ) -> Result<Opening, Refusal> {
        let usage = match connection.side() {
            quinn::Side::Client => Usage::Server,
            quinn::Side::Server => Usage::Client,
        };
        let (chain, now_s) = (chain(&connection), room.shared.now_s());
        let peer = match room.shared.allows(exchange) {
            true => room.shared.admit(&chain, now_s, usage),
            false => Err(Refusal::KeyExchange),
        };
        let peer = peer.inspect_err(|_| connection.close(code::UNTRUSTED.into(), b""))?;
        let mut shown = Shown { chains: vec![chain], until_s: 0, until: Instant::now() };
        shown.lasts(peer.until_s, now_s);
        let (id, shown) = (peer.id.clone(), RefCell::new(shown));
        let epoch = room.shared.epoch(&id);
        let known = Rc::new(Known { connection, usage, id, exchange, epoch, shown });
        let number = room.next.replace(room.next.get() + 1);
        room.open.borrow_mut().insert(number, known.clone());
        let (held, dropped) = oneshot::channel();
        let seat = Rc::new(seat);
        let watch = Watch { room: room.clone(), known: known.clone(), own };
        let own_seat = seat.clone();
        tokio::task::spawn_local(async move {
            if let Some(code) = watch.until_it_ends(dropped).await {
                watch.known.close(code);
            }
            watch.room.open.borrow_mut().remove(&number);
            drop(own_seat);
        });
        Ok(Opening { peer, known, seat, held })
    }
}

/// Ends a connection when it is time.
struct Watch {
    room: Rc<Room>,
    known: Rc<Known>,
    own: watch::Receiver<Credentials>,
}

/// Work that goes on beside the watch, if there is any.
type Beside<T> = Option<Pin<Box<dyn Future<Output = T>>>>;

async fn beside<T>(work: &mut Beside<T>) -> T {
    match work {
        Some(running) => {
            let done = running.await;
            *work = None;
            done
        }
        None => std::future::pending().await,
    }
}

impl Watch {
    /// The code with which the connection is to be closed; `None` if it is closed. Nothing in here
    /// waits for the peer: what does goes on beside it.
    async fn until_it_ends(&self, mut dropped: oneshot::Receiver<()>) -> Option<u32> {
        let connection = &self.known.connection;
        let mut own = self.own.clone();
        let mut looks = tokio::time::interval(LOOK);
        let mut renewals = Instant::now();
        let (mut showing, mut reading): (Beside<bool>, Beside<Option<Vec<u8>>>) = (None, None);
        loop {
            tokio::select! {
                _ = connection.closed() => return None,
                _ = &mut dropped => return Some(code::DONE),
                _ = looks.tick() => {
                    if self.is_over() {
                        tracing::info!(peer = %self.known.id, "a connection ends with its peer's SVID");
                        return Some(code::UNTRUSTED);
                    }
                }
                changed = own.changed(), if showing.is_none() => {
                    if changed.is_err() {
                        return Some(code::LEAVING);
                    }
                    let own = own.borrow_and_update().clone();
                    showing = Some(Box::pin(show(connection.clone(), own)));
                }
                shown = beside(&mut showing) => {
                    if !shown {
                        // Again, as if it had been changed once more.
                        own.mark_changed();
                        tokio::task::yield_now().await;
                    }
                }
                stream = connection.accept_uni(),
                    if reading.is_none() && Instant::now() >= renewals =>
                {
                    let Ok(stream) = stream else { return None };
                    reading = Some(Box::pin(read(stream)));
                }
                message = beside(&mut reading) => {
                    renewals = Instant::now() + RENEWAL_REST;
                    let Some(message) = message else { continue };
                    if let Err(why) = self.renewed(&message) {
                        tracing::warn!(peer = %self.known.id, why, "a peer's newer SVID is not taken");
                        return Some(code::BROKEN);
                    }
                }
            }
        }
    }

    fn is_over(&self) -> bool {
        let shown = self.known.shown.borrow();
        self.room.shared.now_s() > shown.until_s || Instant::now() > shown.until + LOOK
    }

    /// Takes a newer SVID of the other side's: of the same peer, trusted, and shown by whoever has
    /// its key.
    fn renewed(&self, message: &[u8]) -> Result<(), &'static str> {
        let shown = renewal::decode(message).ok_or("it is broken")?;
        let (known, shared) = (&self.known, &self.room.shared);
        let now_s = shared.now_s();
        let found =
            shared.admit(&shown.chain, now_s, known.usage).map_err(|_| "it is not trusted")?;
        let other = !known.connection.side();
        let binding = renewal::binding(&known.connection, other).ok_or("nothing binds it")?;
        if found.id != known.id {
            return Err("it is somebody else's");
        }
        if !shown.is_by(found.key, &binding) {
            return Err("its key did not sign it here");
        }
        let mut before = known.shown.borrow_mut();
        if found.until_s >= before.until_s {
            before.chains = vec![shown.chain];
            before.lasts(found.until_s, now_s);
        } else {
            // It ends no sooner what the other one has lengthened, and may be of a newer root.
            before.chains.truncate(1);
            before.chains.push(shown.chain);
        }
        Ok(())
    }
}

/// Shows the other side our newer SVID; `false` if it has to be tried again.
async fn show(connection: Connection, own: Credentials) -> bool {
    let Some(binding) = renewal::binding(&connection, connection.side()) else { return true };
    let message = renewal::encode(&own.chain, &binding, &own.secret);
    let Ok(mut stream) = connection.open_uni().await else { return true };
    let taken = tokio::time::timeout(HANDSHAKE_WAIT, async {
        stream.write_all(&message).await.ok()?;
        stream.finish().ok()?;
        // `None` once it has been received whole.
        stream.stopped().await.ok()
    });
    if matches!(taken.await, Ok(Some(None))) {
        return true;
    }
    // What was cut off must not look whole.
    let _ = stream.reset(code::DONE.into());
    tokio::time::sleep(RENEWAL_REST).await;
    false
}

/// What the other side shows; `None` if it has thought better of it.
async fn read(mut stream: RecvStream) -> Option<Vec<u8>> {
    let read = tokio::time::timeout(HANDSHAKE_WAIT, stream.read_to_end(renewal::MAX_BYTES)).await;
    match read {
        Ok(Ok(message)) => Some(message),
        // Longer than any: taken for what it is, no renewal.
        Ok(Err(quinn::ReadToEndError::TooLong)) => Some(Vec::new()),
        Ok(Err(_)) | Err(_) => None,
    }
}

fn chain(connection: &Connection) -> Vec<Vec<u8>> {
    let shown = connection.peer_identity();
    let shown = shown.and_then(|shown| shown.downcast::<Vec<CertificateDer<'static>>>().ok());
    shown.map_or_else(Vec::new, |chain| chain.iter().map(|one| one.to_vec()).collect())
}
