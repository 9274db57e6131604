//! One UDP socket, and the connections over it.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use capnp_rpc::RpcSystem;
use capnp_rpc::rpc_twoparty_capnp::Side;
use distos_abi::Fault;
use distos_identity::{Identity, SpiffeId, Subject, Trust, Usage};
use distos_rpc::transport::{self, Bounds};
use distos_rpc::{Seat, Seats};
use quinn::{Connection, IdleTimeout, RecvStream, SendStream, TransportConfig, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::{mpsc, oneshot, watch};

use crate::renewal;
use crate::tls::{Clock, Credentials, KeyExchange, Shared, Tls, Unusable, Verdict};

/// How long a handshake may take, and what comes after it until there is a stream to speak on.
const HANDSHAKE_WAIT: Duration = Duration::from_secs(5);
/// Handshakes under way at one time, and those of one address. From a few on, whoever begins one has
/// to show that it gets what is sent to its address (RFC 9000, section 8.1).
const MAX_HANDSHAKES: usize = 128;
const MAX_HANDSHAKES_OF_AN_ADDRESS: usize = 32;
const UNPROVEN_HANDSHAKES: usize = 16;
/// Connections at one time, and those of one peer.
const MAX_CONNECTIONS: usize = 4096;
const MAX_CONNECTIONS_OF_A_PEER: usize = 16;
/// Connections that wait for whoever takes them.
const MAX_ARRIVALS: usize = 64;
/// A peer from which nothing comes for so long is gone; so often, it says that it is there.
const IDLE: Duration = Duration::from_secs(15);
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// What a peer may have sent that was not read, on a stream and in all.
const STREAM_WINDOW: u32 = 1 << 20;
const WINDOW: u32 = 2 << 20;
/// What waits to be sent to it, and was not acknowledged.
const SEND_WINDOW: u64 = 2 << 20;
/// How often it is looked whether a peer's time is over: clocks are put forward.
const LOOK: Duration = Duration::from_secs(1);
/// Renewals that a peer may show in quick succession; more end its connection.
const MAX_RENEWALS: u32 = 8;
const RENEWAL_REST: Duration = Duration::from_secs(10);

/// Why a connection was closed, as the other side is told.
mod code {
    /// There is nothing more to say.
    pub(super) const DONE: u32 = 0;
    /// Its SVID has ended, or is no longer trusted.
    pub(super) const UNTRUSTED: u32 = 1;
    /// There are too many connections of its.
    pub(super) const BUSY: u32 = 2;
    /// It broke the protocol.
    pub(super) const BROKEN: u32 = 3;
    /// This node goes.
    pub(super) const LEAVING: u32 = 4;
}

/// How an endpoint behaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// How keys are agreed on.
    pub exchange: KeyExchange,
}

/// Somebody who was not let in.
#[derive(Debug)]
pub struct Refused {
    /// From where; nobody proved that it is there.
    pub from: SocketAddr,
    /// Why.
    pub why: String,
}

/// Those who connect: connections that are authenticated, and who was refused. Whoever is slow to take
/// them slows nobody else: refusals are dropped first, and then connections are closed.
pub type Arrivals = mpsc::Receiver<Result<Link, Refused>>;

/// One UDP socket. Dropping it closes every connection over it.
pub struct Endpoint {
    inner: quinn::Endpoint,
    room: Rc<Room>,
}

/// What all connections of an endpoint share.
struct Room {
    shared: Arc<Shared>,
    tls: Tls,
    transport: Arc<TransportConfig>,
    handshakes: Arc<Seats<IpAddr>>,
    peers: Arc<Seats<Subject>>,
    /// Raised when the list or the SVID was changed.
    trusted: watch::Sender<()>,
    own: watch::Sender<Credentials>,
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
        let tls = Tls::new(shared.clone(), settings.exchange);
        let transport = transport_config();
        let server =
            server_config(&tls, &Verdict::default(), &transport).map_err(io::Error::other)?;
        let runtime = Arc::new(quinn::TokioRuntime);
        let config = quinn::EndpointConfig::default();
        let inner = quinn::Endpoint::new(config, Some(server), socket, runtime)?;
        let room = Rc::new(Room {
            shared,
            tls,
            transport,
            handshakes: Seats::new(MAX_HANDSHAKES, MAX_HANDSHAKES_OF_AN_ADDRESS),
            peers: Seats::new(MAX_CONNECTIONS, MAX_CONNECTIONS_OF_A_PEER),
            trusted: watch::Sender::new(()),
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

    /// Connections at this moment, and handshakes that are under way.
    pub fn connections(&self) -> (usize, usize) {
        (self.room.peers.taken(), self.room.handshakes.taken())
    }

    /// Shows this SVID from now on, on the connections that are open too.
    pub fn renew(&self, own: Credentials) {
        self.room.shared.set_own(&own);
        self.room.own.send_replace(own);
    }

    /// Trusts these from now on, and ends the connections of others.
    pub fn trust(&self, trust: Trust) {
        self.room.shared.set_trust(trust);
        self.room.trusted.send_replace(());
    }

    /// Connects to `whom` at `address`. [`Fault::Unavailable`] if nobody answers there,
    /// [`Fault::Unauthenticated`] if it is somebody else, is not trusted or does not trust us.
    pub async fn connect(&self, address: SocketAddr, whom: &SpiffeId) -> Result<Link, Fault> {
        let verdict = Verdict::default();
        let tls = self.room.tls.client(whom, &verdict).map_err(Fault::internal)?;
        let mut config = quinn::ClientConfig::new(Arc::new(tls));
        config.transport_config(self.room.transport.clone());
        // Of the name nothing is sent.
        let connecting = self
            .inner
            .connect_with(config, address, "distos.invalid")
            .map_err(|e| Fault::unavailable(1000, format!("{address}: {e}")))?;
        let connection = tokio::time::timeout(HANDSHAKE_WAIT, connecting)
            .await
            .map_err(|_| Fault::unavailable(1000, format!("nobody answers at {address}")))?;
        let (connection, peer) = match (connection, verdict.take()) {
            (Ok(connection), Some(Ok(peer))) => (connection, peer),
            (_, Some(Err(refusal))) => {
                return Err(Fault::Unauthenticated(format!("{address}: {refusal}")));
            }
            (Err(error), _) => return Err(not_connected(address, &error)),
            (Ok(_), None) => return Err(Fault::internal("a handshake that checked nobody")),
        };
        let seat = self.room.peers.take(whom.subject.clone()).ok_or_else(|| {
            connection.close(code::BUSY.into(), b"");
            Fault::unavailable(100, format!("there are too many connections to {whom}"))
        })?;
        let (send, receive) = connection.open_bi().await.map_err(|e| not_connected(address, &e))?;
        Ok(Link::new(&self.room, connection, peer, seat, (send, receive)))
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
    // One to speak on, and one to show a newer SVID.
    config.max_concurrent_bidi_streams(VarInt::from_u32(1));
    config.max_concurrent_uni_streams(VarInt::from_u32(1));
    config.stream_receive_window(VarInt::from_u32(STREAM_WINDOW));
    config.receive_window(VarInt::from_u32(WINDOW));
    config.send_window(SEND_WINDOW);
    config.datagram_receive_buffer_size(None);
    config.max_idle_timeout(IdleTimeout::try_from(IDLE).ok());
    config.keep_alive_interval(Some(KEEP_ALIVE));
    Arc::new(config)
}

fn not_connected(address: SocketAddr, error: &quinn::ConnectionError) -> Fault {
    use quinn::ConnectionError::{
        ApplicationClosed, ConnectionClosed, TimedOut, TransportError, VersionMismatch,
    };
    let refused = |why: String| Fault::Unauthenticated(format!("{address}: {why}"));
    match error {
        TransportError(own) => refused(own.to_string()),
        ConnectionClosed(closed) => refused(format!("it does not let us in: {closed}")),
        ApplicationClosed(closed) if closed.error_code == code::UNTRUSTED.into() => {
            refused("it no longer trusts us: renew this SVID".into())
        }
        VersionMismatch => refused("it speaks another protocol".into()),
        TimedOut => Fault::unavailable(1000, format!("nobody answers at {address}")),
        other => Fault::unavailable(1000, format!("{address}: {other}")),
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
        let Some(seat) = room.handshakes.take(from.ip()) else {
            incoming.refuse();
            continue;
        };
        let (room, arrive) = (room.clone(), arrive.clone());
        tokio::task::spawn_local(async move {
            let met = tokio::time::timeout(HANDSHAKE_WAIT, room.meet(incoming, seat)).await;
            let arrival = match met {
                Ok(Ok(link)) => Ok(link),
                Ok(Err(why)) => Err(Refused { from, why }),
                Err(_) => Err(Refused { from, why: "its handshake took too long".into() }),
            };
            // A connection that nobody takes is closed by dropping it.
            if let Err(error) = arrive.try_send(arrival) {
                tracing::debug!(%from, %error, "a connection was not taken");
            }
        });
    }
}

impl Room {
    /// The handshake, and the peer's first words. Who is known no longer counts among those who are
    /// not.
    async fn meet(
        self: &Rc<Room>,
        incoming: quinn::Incoming,
        seat: Seat<IpAddr>,
    ) -> Result<Link, String> {
        let verdict = Verdict::default();
        let config = server_config(&self.tls, &verdict, &self.transport);
        let config = config.map_err(|e| e.to_string())?;
        let connecting = incoming.accept_with(Arc::new(config)).map_err(|e| e.to_string())?;
        let (connection, peer) = match (connecting.await, verdict.take()) {
            (Ok(connection), Some(Ok(peer))) => (connection, peer),
            (_, Some(Err(refusal))) => return Err(refusal.to_string()),
            (Err(error), _) => return Err(error.to_string()),
            (Ok(_), None) => return Err("a handshake that checked nobody".into()),
        };
        drop(seat);
        let Some(seat) = self.peers.take(peer.id.subject.clone()) else {
            connection.close(code::BUSY.into(), b"");
            return Err(format!("there are too many connections of {}", peer.id));
        };
        let stream = connection.accept_bi().await.map_err(|e| e.to_string())?;
        Ok(Link::new(self, connection, peer, seat, stream))
    }
}

fn chain(connection: &Connection) -> Vec<CertificateDer<'static>> {
    let shown = connection.peer_identity();
    shown.and_then(|shown| shown.downcast().ok()).map_or_else(Vec::new, |chain| *chain)
}

/// A connection to somebody known. Dropping it, or the system that it starts, closes it.
pub struct Link {
    peer: Identity,
    connection: Connection,
    stream: (SendStream, RecvStream),
    /// Dropped with the link.
    held: oneshot::Sender<()>,
}

impl Link {
    fn new(
        room: &Rc<Room>,
        connection: Connection,
        peer: Identity,
        seat: Seat<Subject>,
        stream: (SendStream, RecvStream),
    ) -> Link {
        let (held, dropped) = oneshot::channel();
        let watched = Watched {
            room: room.clone(),
            connection: connection.clone(),
            usage: match connection.side() {
                quinn::Side::Client => Usage::Server,
                quinn::Side::Server => Usage::Client,
            },
            id: peer.id.clone(),
            until_s: peer.until_s,
            chain: chain(&connection).iter().map(|one| one.to_vec()).collect(),
        };
        tokio::task::spawn_local(async move {
            watched.watch(dropped).await;
            drop(seat);
        });
        Link { peer, connection, stream, held }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &Identity {
        &self.peer
    }

    /// The connection beneath, for its figures.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Starts Cap'n Proto on it. The caller spawns the returned system; it ends when the connection
    /// does.
    pub fn start(
        self,
        bootstrap: Option<capnp::capability::Client>,
        bounds: Bounds,
    ) -> RpcSystem<Side> {
        let side = match self.connection.side() {
            quinn::Side::Client => Side::Client,
            quinn::Side::Server => Side::Server,
        };
        let (send, receive) = self.stream;
        let reader = Held { receive, _held: self.held };
        transport::over(reader, send, side, bootstrap, bounds)
    }
}

/// What a peer says, while the connection is held.
struct Held {
    receive: RecvStream,
    _held: oneshot::Sender<()>,
}

impl AsyncRead for Held {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.receive), cx, buffer)
    }
}

/// Ends a connection when it is time.
struct Watched {
    room: Rc<Room>,
    connection: Connection,
    /// As what the peer shows itself.
    usage: Usage,
    /// Who it is: a newer SVID says the same.
    id: SpiffeId,
    until_s: u64,
    chain: Vec<Vec<u8>>,
}

impl Watched {
    async fn watch(mut self, dropped: oneshot::Receiver<()>) {
        let (mut trusted, mut own) = (self.room.trusted.subscribe(), self.room.own.subscribe());
        let mut shown = 0;
        tokio::pin!(dropped);
        let code = loop {
            tokio::select! {
                _ = self.connection.closed() => return,
                _ = &mut dropped => break code::DONE,
                _ = tokio::time::sleep(LOOK) => {
                    if self.room.shared.now_s() > self.until_s {
                        tracing::info!(peer = %self.id, "a connection ends with its peer's SVID");
                        break code::UNTRUSTED;
                    }
                }
                changed = trusted.changed() => {
                    if changed.is_err() || !self.is_still_admitted() {
                        break code::UNTRUSTED;
                    }
                }
                changed = own.changed() => {
                    let own = own.borrow_and_update().clone();
                    if changed.is_err() || self.show(&own).await.is_err() {
                        break code::LEAVING;
                    }
                }
                stream = self.connection.accept_uni() => {
                    let Ok(stream) = stream else { return };
                    shown += 1;
                    if shown > MAX_RENEWALS {
                        tokio::time::sleep(RENEWAL_REST).await;
                        shown = 0;
                    }
                    if let Err(why) = self.renewed(stream).await {
                        tracing::warn!(peer = %self.id, why, "a peer's newer SVID is not taken");
                        break code::BROKEN;
                    }
                }
            }
        };
        self.connection.close(code.into(), b"");
    }

    fn is_still_admitted(&self) -> bool {
        let now_s = self.room.shared.now_s();
        self.room.shared.admit(&self.chain, now_s, self.usage).is_ok()
    }

    /// Shows the other side our newer SVID.
    async fn show(&self, own: &Credentials) -> Result<(), quinn::ConnectionError> {
        let Some(binding) = renewal::binding(&self.connection, self.connection.side()) else {
            return Ok(());
        };
        let message = renewal::encode(&own.chain, &binding, &own.secret);
        let shown = tokio::time::timeout(HANDSHAKE_WAIT, async {
            let mut stream = self.connection.open_uni().await?;
            // Whether it arrives shows when the older one ends.
            let _ = stream.write_all(&message).await;
            let _ = stream.finish();
            Ok(())
        });
        shown.await.unwrap_or(Ok(()))
    }

    /// Takes a newer SVID of the other side's: of the same peer, trusted, and shown by whoever has
    /// its key.
    async fn renewed(&mut self, mut stream: RecvStream) -> Result<(), &'static str> {
        let read = tokio::time::timeout(HANDSHAKE_WAIT, stream.read_to_end(renewal::MAX_BYTES));
        let message = match read.await {
            Ok(Ok(message)) => message,
            Ok(Err(_)) => return Err("it is too long, or was cut off"),
            Err(_) => return Err("it did not come in time"),
        };
        let shown = renewal::decode(&message).ok_or("it is broken")?;
        let now_s = self.room.shared.now_s();
        let found = self
            .room
            .shared
            .admit(&shown.chain, now_s, self.usage)
            .map_err(|_| "it is not trusted")?;
        let other = !self.connection.side();
        let binding = renewal::binding(&self.connection, other).ok_or("nothing binds it")?;
        if found.id != self.id {
            return Err("it is somebody else's");
        }
        if !shown.is_by(found.key, &binding) {
            return Err("its key did not sign it here");
        }
        // An older one, shown again, ends no sooner what a newer one has lengthened.
        if found.until_s > self.until_s {
            self.until_s = found.until_s;
            self.chain = shown.chain;
        }
        Ok(())
    }
}
