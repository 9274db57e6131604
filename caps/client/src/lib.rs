//! What an application links: connect to a vat, restore a sturdy capability, call, drop.
//!
//! A [`Connection`] belongs to one thread's `tokio::task::LocalSet`. Dropping the last clone of a
//! capability gives it up; dropping the connection ends everything that was derived on it.
#![forbid(unsafe_code)]

pub mod handoff;

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use capnp::capability::{FromClientHook, RemotePromise};
use capnp_rpc::RpcSystem;
use capnp_rpc::rpc_twoparty_capnp::Side;
use distos_abi::{Fault, NodeId, VatName};
use distos_noise::Place;
pub use distos_noise::stream::{SealedReader, SealedWriter};
use distos_rpc::transport::{self, Bounds, Driven};
pub use distos_rpc::{Borrowing, Gift, Held, authority_of, caveats_of, fault_of, write_caveats};
use distos_schemas::capability_capnp::door;
use distos_types::{Chain, HolderSecret, present_message, restore_message};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

/// How long [`Connection::open`] waits for its turn at a vat to which many connect.
const TURN_WAIT: Duration = Duration::from_secs(10);

/// A connection to the door of one vat. Dropping it ends every capability that was restored over
/// it: calls on them, waiting ones too, fail with [`Fault::Unavailable`].
pub struct Connection {
    door: door::Client,
    borrowing: Borrowing,
    is_end_to_end: bool,
    /// What its two ends have from their handshake.
    binding: Option<[u8; 32]>,
    /// Dropped with the connection, which is what closes it.
    _open: Driven,
}

impl Connection {
    /// Connects to a vat's socket. [`Fault::Unavailable`] if nobody listens there, or if so many
    /// others connect that its turn does not come within ten seconds.
    pub async fn open(socket: &Path) -> Result<Connection, Fault> {
        let stream = reach(socket).await?;
        Ok(Connection::over(transport::start(stream, Side::Client, None, Bounds::EDGE)))
    }

    /// The same over a connection to a vat that somebody else has made, such as one over a network.
    pub fn over(mut system: RpcSystem<Side>) -> Connection {
        let door: door::Client = system.bootstrap(Side::Server);
        let borrowing = Borrowing::at(door.clone());
        let _open = Driven::new(system);
        Connection { door, borrowing, is_end_to_end: false, binding: None, _open }
    }

    /// The same, where a handshake has given its two ends a secret that nobody else has (`Link::binding` of a connection
    /// between nodes): capabilities are presented without waiting for a challenge.
    pub fn bound(system: RpcSystem<Side>, binding: Option<[u8; 32]>) -> Connection {
        Connection { binding, ..Connection::over(system) }
    }

    /// The same connection, over which leases are spoken of by a way of their own.
    pub fn lending(self, borrowing: Borrowing) -> Connection {
        Connection { borrowing, ..self }
    }

    /// Connects to the vat at which a capability lives, by a socket that leads there through whomever: what is said
    /// is encrypted with keys that its holder and the vat alone have.
    ///
    /// # Errors
    /// As [`Connection::open`], and [`Fault::Unauthenticated`] if it is not that vat that answers.
    pub async fn open_end_to_end(
        socket: &Path,
        chain: &Chain,
        holder: &HolderSecret,
    ) -> Result<Connection, Fault> {
        let (reader, writer) = reach(socket).await?.into_split();
        let (reader, writer) = end_to_end(reader, writer, chain, holder).await?;
        Ok(Connection::over_end_to_end(reader, writer))
    }

    /// The same over what [`end_to_end`] has returned.
    pub fn over_end_to_end<R, W>(
        reader: SealedReader<BufReader<R>>,
        writer: SealedWriter<W>,
    ) -> Connection
    where
        R: AsyncRead + Unpin + 'static,
        W: AsyncWrite + Unpin + 'static,
    {
        let system = transport::over(reader, writer, Side::Client, None, Bounds::EDGE);
        Connection { is_end_to_end: true, ..Connection::over(system) }
    }

    /// The vat's door, for what this crate does not do there.
    pub fn door(&self) -> &door::Client {
        &self.door
    }

    /// Takes a gift that was left for whoever this connection has shown to be here, at a vat that was reached
    /// over a network.
    ///
    /// # Errors
    /// [`Fault::NotFound`] if none is left for it under this ticket.
    pub async fn withdraw<T: FromClientHook>(&self, ticket: &[u8]) -> Result<T, Fault> {
        let mut request = self.door.withdraw_request();
        request.get().set_ticket(ticket);
        let response = request.send().promise.await.map_err(|e| fault_of(&e))?;
        let cap = response.get().and_then(|r| r.get_cap()).map_err(|e| fault_of(&e))?;
        Ok(cap.cast_to())
    }

    /// Holds a capability that came over this connection by a lease: whether it may still be used is known then
    /// without asking its home each time.
    ///
    /// # Errors
    /// How it has ended; [`Fault::Unavailable`] if too much is lent.
    pub async fn hold<T: FromClientHook + Clone>(&self, cap: &T) -> Result<Held, Fault> {
        self.borrowing.hold(cap).await
    }

    /// Turns a sturdy capability into a live one of the interface `T`, proving possession of the
    /// holder's key (C4).
    ///
    /// # Errors
    /// What the vat says; and [`Fault::Unauthenticated`], before anything is said, if the capability is end to end and this
    /// connection is not: whoever passes it on could answer in the vat's place.
    pub async fn restore<T: FromClientHook>(
        &self,
        chain: &Chain,
        holder: &HolderSecret,
    ) -> Result<T, Fault> {
        if let Some(presented) = self.presented(chain, holder)? {
            let response = presented.promise.await.map_err(|e| fault_of(&e))?;
            let cap = response.get().and_then(|r| r.get_cap()).map_err(|e| fault_of(&e))?;
            return Ok(cap.cast_to());
        }
        let response =
            self.door.challenge_request().send().promise.await.map_err(|e| fault_of(&e))?;
        let bytes = chain.encode();
        let message = {
            let read = || -> Result<Vec<u8>, capnp::Error> {
                let challenge = response.get()?;
                let malformed = |what| capnp::Error::failed(Fault::malformed(what).to_wire());
                let nonce = challenge.get_nonce()?.try_into().map_err(|_| malformed("nonce"))?;
                let node = NodeId::try_from(challenge.get_node()?).map_err(distos_rpc::fail)?;
                let vat = VatName::new(challenge.get_vat()?.to_str()?).map_err(distos_rpc::fail)?;
                // Signed only for the node and vat that the chain names: a stranger at the socket
                // gets no signature that it could use elsewhere.
                if node != chain.root().node || vat != chain.root().vat {
                    return Err(malformed(
                        "this socket belongs to another vat or node than the capability",
                    ));
                }
                Ok(restore_message(nonce, node, &vat, &bytes))
            };
            read().map_err(|e| fault_of(&e))?
        };
        let mut request = self.door.restore_request();
        request.get().set_chain(&bytes);
        request.get().set_signature(&holder.sign(&message));
        let response = request.send().promise.await.map_err(|e| fault_of(&e))?;
        let cap = response.get().and_then(|r| r.get_cap()).map_err(|e| fault_of(&e))?;
        Ok(cap.cast_to())
    }

    /// The same without waiting for the vat's answer, if this connection is [bound](Connection::bound): calls on what is
    /// returned go out with what presents it, and fail as it does. Otherwise it waits as [`Connection::restore`] does.
    /// Until the vat has answered, a message of more than 64 KiB ends the connection: call for something small first.
    ///
    /// # Errors
    /// As [`Connection::restore`]; what the vat says, the first call says.
    pub async fn present<T: FromClientHook>(
        &self,
        chain: &Chain,
        holder: &HolderSecret,
    ) -> Result<T, Fault> {
        match self.presented(chain, holder)? {
            Some(presented) => Ok(presented.pipeline.get_cap().cast_to()),
            None => self.restore(chain, holder).await,
        }
    }

    /// A capability on its way to a vat to which this connection is bound; `None` if it is not.
    fn presented(&self, chain: &Chain, holder: &HolderSecret) -> Result<Option<Presented>, Fault> {
        if chain.authority().caveats.end_to_end && !self.is_end_to_end {
            return Err(Fault::Unauthenticated(
                "this capability is end to end, and this connection is not: open one that is"
                    .into(),
            ));
        }
        let Some(binding) = &self.binding else { return Ok(None) };
        let (root, bytes) = (chain.root(), chain.encode());
        let message = present_message(binding, root.node, &root.vat, &bytes);
        let mut request = self.door.present_request();
        request.get().set_chain(&bytes);
        request.get().set_signature(&holder.sign(&message));
        Ok(Some(request.send()))
    }
}

/// What was asked by presenting a capability.
type Presented = RemotePromise<door::present_results::Owned>;

/// Encrypts a connection, whose halves these are, to the vat at which a capability lives.
///
/// # Errors
/// [`Fault::Unauthenticated`] if it is not that vat that answers, or if what it says was changed on its way;
/// [`Fault::Unavailable`] if it has no key now, or the connection ends.
pub async fn end_to_end<R, W>(
    reader: R,
    writer: W,
    chain: &Chain,
    holder: &HolderSecret,
) -> Result<(SealedReader<BufReader<R>>, SealedWriter<W>), Fault>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let root = chain.root();
    let place = Place { node: root.node, vat: root.vat.clone() };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    // A frame is read in two parts.
    let reader = BufReader::new(reader);
    distos_noise::stream::connect(reader, writer, &place, holder, now_ms).await
}

async fn reach(socket: &Path) -> Result<UnixStream, Fault> {
    connect(socket).await.map_err(|e| {
        Fault::unavailable(1000, format!("nobody answers at {}: {e}", socket.display()))
    })
}

/// Where the queue of connections is full, who does not block is told so at once, and not when there
/// is room (connect(2), `EAGAIN`). Who blocks has a place among those who wait, so a thread does: asking
/// again and again loses to whoever asks more often.
async fn connect(socket: &Path) -> io::Result<UnixStream> {
    match UnixStream::connect(socket).await {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        done => return done,
    }
    let (done, outcome) = oneshot::channel();
    let path = socket.to_owned();
    let wait = move || drop(done.send(wait_for_turn(&path)));
    std::thread::Builder::new().name("connect".to_owned()).spawn(wait)?;
    let stream = outcome.await.map_err(io::Error::other)??;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

fn wait_for_turn(path: &Path) -> io::Result<std::os::unix::net::UnixStream> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(TURN_WAIT))?;
    let address = SocketAddrUnix::new(path)?;
    rustix::io::retry_on_intr(|| rustix::net::connect(&socket, &address))?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else whoever connects while others connect without end is told that nobody is there.
    #[test]
    fn who_connects_where_many_do_waits_for_its_turn() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("door.sock");
            let socket = tokio::net::UnixSocket::new_stream().unwrap();
            socket.bind(&path).unwrap();
            let listener = socket.listen(1).unwrap();
            let mut others = Vec::new();
            let full = loop {
                match UnixStream::connect(&path).await {
                    Ok(other) => others.push(other),
                    Err(error) => break error,
                }
            };
            assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
            let room = async {
                tokio::time::sleep(Duration::from_millis(30)).await;
                listener.accept().await.unwrap()
            };
            let (opened, _first) = futures::join!(Connection::open(&path), room);
            assert!(opened.is_ok());
        });
    }

    #[test]
    fn a_call_over_a_connection_that_was_dropped_fails_instead_of_waiting_for_ever() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("door.sock");
            // Takes connections and never answers.
            let listener = tokio::net::UnixListener::bind(&path).unwrap();
            let connection = Connection::open(&path).await.unwrap();
            let _stream = listener.accept().await.unwrap();
            let waiting = connection.door.challenge_request().send().promise;
            let door = connection.door.clone();
            drop(connection);
            let late = async { door.challenge_request().send().promise.await };
            let both = async { (waiting.await.err().unwrap(), late.await.err().unwrap()) };
            let (waiting, late) =
                tokio::time::timeout(Duration::from_secs(10), both).await.unwrap();
            assert_eq!(fault_of(&waiting).code(), 17, "{waiting}");
            assert_eq!(fault_of(&late).code(), 17, "{late}");
        });
    }
}
