//! One UDP socket, and the connections over it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use capnp_rpc::RpcSystem;
use capnp_rpc::rpc_twoparty_capnp::Side;
use distos_abi::{Fault, HolderKey};
use distos_identity::{Identity, Peer, SpiffeId, Subject, Trust};
use distos_rpc::transport::{self, Bounds};
use distos_rpc::{Seat, Seats};
use quinn::{
    Connection, ConnectionError, IdleTimeout, RecvStream, SendStream, TransportConfig,
    TransportErrorCode, VarInt,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, oneshot, watch};

use crate::streams;
use crate::tls::{Clock, Credentials, Shared, Tls, Unusable, Verdict};
use crate::watch::{Known, Opening, code};

/// How long a handshake may take, and what comes after it until there is a stream to speak on.
pub(crate) const HANDSHAKE_WAIT: Duration = Duration::from_secs(5);
/// Handshakes under way at one time, and those of one address. From a few on, whoever begins one has
/// to show that it gets what is sent to its address (RFC 9000, section 8.1).
const MAX_HANDSHAKES: usize = 128;
const MAX_HANDSHAKES_OF_AN_ADDRESS: usize = 32;
const UNPROVEN_HANDSHAKES: usize = 16;
/// Connections at one time in each direction; those of one peer, a node with all its services or a tenant with
/// all its agents; and those of one of these, so that none shuts out the others.
const MAX_CONNECTIONS: usize = 1024;
const MAX_CONNECTIONS_OF_A_PEER: usize = 128;
const MAX_CONNECTIONS_OF_ONE: usize = 16;
/// Connections that wait for whoever takes them.
const MAX_ARRIVALS: usize = 64;
/// A peer from which nothing comes for so long is gone; so often, it says that it is there.
const IDLE: Duration = Duration::from_secs(15);
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// What a peer may have sent that was not read, on a stream and in all.
const STREAM_WINDOW: u32 = 1 << 20;
const WINDOW: u32 = (1 + streams::STREAMS) * STREAM_WINDOW + (1 << 16);
/// What waits to be sent to it, and was not acknowledged: more than it may have unread, for a buffer counts until all of it
/// was acknowledged. So calls and many bytes that are not read leave room for what is said of leases: a stream has no more
/// than its window, and an eighth of all, at most, is read and not given back yet (quinn-proto's `MAX_DATA`).
const SEND_WINDOW: u64 = WINDOW as u64 + 2 * STREAM_WINDOW as u64;
/// For which purpose a connection's secret is made (RFC 8446, section 7.5).
const PRESENT_LABEL: &[u8] = b"EXPORTER-distos-present";
/// The alert of TLS for whoever is known and not let in (RFC 8446, section 6).
const ACCESS_DENIED: u8 = 49;

/// How an endpoint behaves.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Whether anybody may connect to it. If not, what comes from those whom it did not connect to itself
    /// is not read.
    pub lets_in: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { lets_in: true }
    }
}

/// Somebody who was not let in.
#[derive(Debug)]
pub struct Refused {
    /// From where; nobody proved that it is there.
    pub from: SocketAddr,
    /// Why.
    pub why: String,
}

/// Those who connect: connections that are authenticated, and who was refused. If nobody takes them for a
/// while, refusals are dropped first, and then connections are closed.
pub type Arrivals = mpsc::Receiver<Result<Link, Refused>>;

/// One UDP socket. Dropping it closes every connection over it.
pub struct Endpoint {
    inner: quinn::Endpoint,
    room: Rc<Room>,
}

/// What all connections of an endpoint share.
pub(crate) struct Room {
    pub(crate) shared: Arc<Shared>,
    tls: Tls,
    transport: Arc<TransportConfig>,
    handshakes: Arc<Seats<IpAddr>>,
    incoming: Places,
    outgoing: Places,
    /// The connections that are open, by a number of their own.
    pub(crate) open: RefCell<BTreeMap<u64, Rc<Known>>>,
    pub(crate) next: Cell<u64>,
    /// What we show; raised when it was changed.
    own: watch::Sender<Credentials>,
}

/// How many connections there may be in one direction.
struct Places {
    peers: Arc<Seats<Peer>>,
    each: Arc<Seats<Subject>>,
}

/// The place of a connection, given back when it is dropped.
pub(crate) struct Place {
    _peer: Seat<Peer>,
    _one: Seat<Subject>,
}

impl Places {
    fn new() -> Places {
        Places {
            peers: Seats::new(MAX_CONNECTIONS, MAX_CONNECTIONS_OF_A_PEER),
            each: Seats::new(MAX_CONNECTIONS, MAX_CONNECTIONS_OF_ONE),
        }
    }

    fn take(&self, who: &Subject) -> Option<Place> {
        let _one = self.each.take(who.clone())?;
        Some(Place { _peer: self.peers.take(Peer::of(who))?, _one })
    }
}

impl Endpoint {
    /// An endpoint on this socket, on the calling thread's `LocalSet`. `clock` tells the time in seconds
    /// since the Unix epoch. An error if the socket or this machine's TLS cannot be used.
    pub fn new(
        socket: UdpSocket,
        own: Credentials,
        trust: Trust,
        settings: Settings,
        clock: Clock,
    ) -> io::Result<(Endpoint, Arrivals)> {
        let shared = Arc::new(Shared::new(&own, trust, clock));
        let tls = Tls::new(shared.clone());
        let transport = transport_config();
        let server =
            server_config(&tls, &Verdict::default(), &transport).map_err(io::Error::other)?;
        let runtime = Arc::new(quinn::TokioRuntime);
        let config = quinn::EndpointConfig::default();
        let server = settings.lets_in.then_some(server);
        let inner = quinn::Endpoint::new(config, server, socket, runtime)?;
        let room = Rc::new(Room {
            shared,
            tls,
            transport,
            handshakes: Seats::new(MAX_HANDSHAKES, MAX_HANDSHAKES_OF_AN_ADDRESS),
            incoming: Places::new(),
            outgoing: Places::new(),
            open: RefCell::default(),
            next: Cell::new(0),
            own: watch::Sender::new(own),
        });
        let (arrive, arrivals) = mpsc::channel(MAX_ARRIVALS);
        tokio::task::spawn_local(take(inner.clone(), room.clone(), arrive));
        Ok((Endpoint { inner, room }, arrivals))
    }

    /// Where the socket is.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    /// Connections at this moment, and handshakes that others have begun and not ended.
    pub fn connections(&self) -> (usize, usize) {
        (self.room.open.borrow().len(), self.room.handshakes.taken())
    }

    /// Shows this SVID from now on, on the connections that are open too.
    pub fn renew(&self, own: Credentials) {
        self.room.shared.set_own(&own);
        self.room.own.send_replace(own);
    }

    /// Trusts these from now on. When it returns, the connections of others are closed, as are those that were opened in an
    /// earlier attestation epoch of a node, and nothing
    /// that they have sent and that was not read will be. If keys have to be agreed on in another way than before, so
    /// are those of everybody who has connected before: they connect again.
    pub fn trust(&self, trust: Trust) {
        self.room.shared.set_trust(trust);
        for known in self.room.open.borrow().values() {
            if !known.is_admitted(&self.room) {
                known.close(code::UNTRUSTED);
            }
        }
    }

    /// Connects to `whom` at `address`. [`Fault::Unavailable`] if nobody answers there or it has no
    /// room, [`Fault::Unauthenticated`] if it is somebody else, is not trusted or does not trust us.
    pub async fn connect(&self, address: SocketAddr, whom: &SpiffeId) -> Result<Link, Fault> {
        tokio::time::timeout(HANDSHAKE_WAIT, self.reach(address, whom)).await.unwrap_or_else(|_| {
            Err(Fault::unavailable(1000, format!("nobody answers at {address}")))
        })
    }

    async fn reach(&self, address: SocketAddr, whom: &SpiffeId) -> Result<Link, Fault> {
        let room = &self.room;
        let seat = room.outgoing.take(&whom.subject).ok_or_else(|| {
            Fault::unavailable(100, format!("there are too many connections to {whom}"))
        })?;
        let (verdict, own, shown) = room.begin();
        let tls = room.tls.client(whom, &verdict).map_err(Fault::internal)?;
        let mut config = quinn::ClientConfig::new(Arc::new(tls));
        config.transport_config(room.transport.clone());
        // Of the name nothing is sent.
        let connecting = self
            .inner
            .connect_with(config, address, "distos.invalid")
            .map_err(|e| Fault::unavailable(1000, format!("{address}: {e}")))?;
        let connection = match (connecting.await, verdict.take()) {
            (Ok(connection), Some(Ok(_))) => connection,
            (_, Some(Err(refusal))) => {
                return Err(Fault::Unauthenticated(format!("{address}: {refusal}")));
            }
            (Err(error), _) => return Err(why_closed(address, &error)),
            (Ok(_), None) => return Err(Fault::internal("a handshake that checked nobody")),
        };
        let opening = Opening::new(room, (connection, verdict.exchange), seat, own)
            .map_err(|refusal| Fault::Unauthenticated(format!("{address}: {refusal}")))?;
        let stream = opening.known.connection.open_bi().await;
        let stream = stream.map_err(|e| why_closed(address, &e))?;
        Ok(Link { opening, stream, shown })
    }

    /// Closes every connection, and resolves when the other sides were told or a while has passed.
    pub async fn leave(self) {
        self.inner.close(code::LEAVING.into(), b"this node is leaving");
        // Who does not hear of it notices later.
        let _ = tokio::time::timeout(HANDSHAKE_WAIT, self.inner.wait_idle()).await;
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.inner.close(code::LEAVING.into(), b"this node is leaving");
    }
}

fn server_config(
    tls: &Tls,
    verdict: &Verdict,
    transport: &Arc<TransportConfig>,
) -> Result<quinn::ServerConfig, Unusable> {
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls.server(verdict)?));
    config.transport_config(transport.clone()).max_incoming(MAX_HANDSHAKES);
    // Whoever moves to another address connects again.
    config.migration(false);
    Ok(config)
}

fn transport_config() -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    // One to speak on, those beside it, and one to show a newer SVID.
    config.max_concurrent_bidi_streams(VarInt::from_u32(1 + streams::STREAMS));
    config.max_concurrent_uni_streams(VarInt::from_u32(1));
    config.stream_receive_window(VarInt::from_u32(STREAM_WINDOW));
    config.receive_window(VarInt::from_u32(WINDOW));
    config.send_window(SEND_WINDOW);
    config.datagram_receive_buffer_size(None);
    config.max_idle_timeout(IdleTimeout::try_from(IDLE).ok());
    config.keep_alive_interval(Some(KEEP_ALIVE));
    Arc::new(config)
}

/// What it means for whoever is here that a connection to `address` ended so: [`Fault::Unauthenticated`] if
/// one side does not trust the other, [`Fault::Unavailable`] otherwise.
pub fn why_closed(address: SocketAddr, error: &ConnectionError) -> Fault {
    let why = format!("{address}: {}", told(error));
    match error {
        ConnectionError::ConnectionClosed(closed)
            if closed.error_code == TransportErrorCode::CONNECTION_REFUSED =>
        {
            Fault::unavailable(1000, format!("{address}: it has no room for now"))
        }
        ConnectionError::ConnectionClosed(closed)
            if closed.error_code == TransportErrorCode::crypto(ACCESS_DENIED) =>
        {
            Fault::Unauthenticated(format!("{address}: it does not trust us"))
        }
        ConnectionError::ApplicationClosed(closed)
            if closed.error_code == code::UNTRUSTED.into() =>
        {
            Fault::Unauthenticated(format!("{address}: it does not trust us (any more)"))
        }
        ConnectionError::TransportError(_)
        | ConnectionError::ConnectionClosed(_)
        | ConnectionError::VersionMismatch => Fault::Unauthenticated(why),
        _ => Fault::unavailable(1000, why),
    }
}

/// An error, without a word of the other side's: it goes into logs and to terminals.
fn told(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ConnectionClosed(closed) => {
            format!("the other side ended the handshake: {}", closed.error_code)
        }
        ConnectionError::ApplicationClosed(closed) => {
            format!("the other side closed it, with code {}", closed.error_code)
        }
        own => own.to_string(),
    }
}

/// Whose handshakes are counted together. Whoever has an IPv6 address has 2^64 of them.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let prefix = u128::from(address) & !u128::from(u64::MAX);
            IpAddr::V6(prefix.into())
        }
        v4 => v4,
    }
}

/// Takes connections until the endpoint is gone.
async fn take(
    endpoint: quinn::Endpoint,
    room: Rc<Room>,
    arrive: mpsc::Sender<Result<Link, Refused>>,
) {
    while let Some(incoming) = endpoint.accept().await {
        let from = incoming.remote_address();
        let crowded = room.handshakes.taken() >= UNPROVEN_HANDSHAKES;
        if crowded && !incoming.remote_address_validated() && incoming.may_retry() {
            // It may retry, so this is no error.
            let _ = incoming.retry();
            continue;
        }
        let Some(seat) = room.handshakes.take(network(from.ip())) else {
            incoming.refuse();
            continue;
        };
        let (room, arrive) = (room.clone(), arrive.clone());
        tokio::task::spawn_local(async move {
            let met = tokio::time::timeout(HANDSHAKE_WAIT, room.meet(incoming, seat)).await;
            let refused = match met {
                Ok(Ok(link)) => {
                    // A connection that nobody takes is closed by dropping it.
                    if let Err(error) = arrive.try_send(Ok(link)) {
                        tracing::warn!(%from, %error, "a connection was not taken");
                    }
                    return;
                }
                Ok(Err(why)) => Refused { from, why },
                Err(_) => Refused { from, why: "its handshake took too long".into() },
            };
            // Those who are refused do not crowd out those who are not.
            if arrive.capacity() > MAX_ARRIVALS / 2 {
                let _ = arrive.try_send(Err(refused));
            }
        });
    }
}

impl Room {
    /// The handshake, and the peer's first words. Whoever is known gives back its place among strangers.
    async fn meet(
        self: &Rc<Room>,
        incoming: quinn::Incoming,
        handshake: Seat<IpAddr>,
    ) -> Result<Link, String> {
        let (verdict, own, shown) = self.begin();
        let config = server_config(&self.tls, &verdict, &self.transport);
        let config = config.map_err(|e| e.to_string())?;
        let connecting = incoming.accept_with(Arc::new(config)).map_err(|e| told(&e))?;
        let (connection, peer) = match (connecting.await, verdict.take()) {
            (Ok(connection), Some(Ok(peer))) => (connection, peer),
            (_, Some(Err(refusal))) => return Err(refusal.to_string()),
            (Err(error), _) => return Err(told(&error)),
            (Ok(_), None) => return Err("a handshake that checked nobody".into()),
        };
        drop(handshake);
        let Some(seat) = self.incoming.take(&peer.id.subject) else {
            connection.close(code::BUSY.into(), b"");
            return Err(format!("there are too many connections of {}", peer.id));
        };
        let opening = Opening::new(self, (connection, verdict.exchange), seat, own);
        let opening = opening.map_err(|e| e.to_string())?;
        let stream = opening.known.connection.accept_bi().await.map_err(|e| told(&e))?;
        Ok(Link { opening, stream, shown })
    }

    /// What a handshake begins with, and the key of the SVID that is shown now.
    fn begin(&self) -> (Verdict, watch::Receiver<Credentials>, HolderKey) {
        let shown = self.own.borrow().secret.key();
        (Verdict::begin(&self.shared), self.own.subscribe(), shown)
    }
}

/// A connection to somebody known. Dropping it, or the system that it starts, closes it.
pub struct Link {
    opening: Opening,
    stream: (SendStream, RecvStream),
    shown: HolderKey,
}

impl Link {
    /// Who is at the other end.
    pub fn peer(&self) -> &Identity {
        &self.opening.peer
    }

    /// The key of the SVID that was shown from here when the handshake began. If it is the one that is shown now, it is the one
    /// that the handshake has shown.
    pub fn shown(&self) -> HolderKey {
        self.shown
    }

    /// What its two ends have from the handshake and nobody else has, for `Door.present`.
    pub fn binding(&self) -> Option<[u8; 32]> {
        let mut secret = [0; 32];
        // Nothing but a length that TLS does not give is refused.
        self.connection().export_keying_material(&mut secret, PRESENT_LABEL, b"").ok()?;
        Some(secret)
    }

    /// The connection beneath, for its figures.
    pub fn connection(&self) -> &Connection {
        &self.opening.known.connection
    }

    /// Starts Cap'n Proto on it. The caller spawns the returned system; it ends when the connection
    /// does.
    pub fn start(
        self,
        bootstrap: Option<capnp::capability::Client>,
        bounds: Bounds,
    ) -> RpcSystem<Side> {
        let side = match self.connection().side() {
            quinn::Side::Client => Side::Client,
            quinn::Side::Server => Side::Server,
        };
        let (reader, writer) = self.into_halves();
        transport::over(reader, writer, side, bootstrap, bounds)
    }

    /// The stream beneath. Dropping what is read from closes the connection, and gives back the peer's
    /// place. Once the connection is closed nothing more is read, whatever has arrived before.
    pub fn into_halves(
        self,
    ) -> (impl AsyncRead + Unpin + 'static, impl AsyncWrite + Unpin + 'static) {
        let (send, receive) = self.stream;
        let Opening { known, seat, held, .. } = self.opening;
        (Held { receive, known, _seat: seat, _held: held }, send)
    }
}

/// What a peer says, while the connection is held.
struct Held {
    receive: RecvStream,
    known: Rc<Known>,
    _seat: Rc<Place>,
    _held: oneshot::Sender<()>,
}

impl AsyncRead for Held {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.known.connection.close_reason().is_some() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        AsyncRead::poll_read(Pin::new(&mut self.receive), cx, buffer)
    }
}
