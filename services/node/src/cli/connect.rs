//! `connect`: a local socket that leads to a service of another node, or through somebody else's socket to one.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use capnp_rpc::rpc_twoparty_capnp::Side;
use clap::Args;
use distos_abi::Fault;
use distos_client::{Connection, SealedReader, SealedWriter, end_to_end};
use distos_identity::{Bundle, KeyExchange, Peers, SpiffeId, Subject, Trust};
use distos_quic::{ConnectionError, Credentials, Endpoint, Settings, why_closed};
use distos_rpc::transport::{self, Bounds};
use distos_schemas::capability_capnp::capability;
use distos_types::{Chain, HolderSecret, Root};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::cluster::{read_bundle, read_pem};
use super::holder::{pick, read_cap_file, read_secret};
use super::{Context, Report, complain, say, socket};

/// How often the SVID's file is looked at: whoever renews it replaces it.
const LOOK: Duration = Duration::from_secs(30);
/// How long the other side may take to let somebody in.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// Arguments of `connect`.
#[derive(Args)]
#[command(after_help = "\
Example: red's programs work with node 1f95…, as if they were on it
  distos connect 10.0.0.7:7401 --as red.cap --svid red.pem --entry regions --listen unix:run/memory.sock
  python3 docs/examples/python/client.py red.cap --sockets run
The address is that of the service at which the capability lives. The SVID is red's, for red's key:
  distos cluster svid tenant/red/agent/z6Mk… red.pub --issuer issuer.key
It goes on until Ctrl-C; a newer SVID in the same file is shown without a pause.

Through a socket at which somebody else runs that, whom red does not trust with what it says:
  distos connect unix:gateway/memory.sock --end-to-end --as red.cap --entry regions --listen unix:run/memory.sock
What passes there is encrypted with keys that red and the service alone have. Red's programs need not know.")]
pub struct ConnectArgs {
    /// Where the service listens, as HOST:PORT in numbers; or unix:PATH, a socket that leads there
    #[arg(value_name = "ADDRESS", value_parser = place)]
    address: Place,
    /// Encrypt to the service itself, whatever passes the connection on [default: where the capability asks for it]
    #[arg(long)]
    end_to_end: bool,
    /// The socket to make: unix:PATH
    #[arg(long, value_name = "unix:PATH", value_parser = socket::path)]
    listen: PathBuf,
    /// The entry of the capability file that says which node and service it is
    #[arg(long, value_name = "NAME")]
    entry: Option<String>,
    /// The SVID of whoever acts [default: the capability file with the extension .pem]
    #[arg(long, value_name = "FILE")]
    svid: Option<PathBuf>,
    /// The cluster's bundle
    #[arg(long, value_name = "FILE", default_value = "bundle.json")]
    bundle: PathBuf,
}

/// Where it leads.
#[derive(Clone)]
enum Place {
    Network(SocketAddr),
    Socket(PathBuf),
}

fn place(text: &str) -> Result<Place, String> {
    if text.starts_with("unix:") {
        return socket::path(text).map(Place::Socket);
    }
    let address = text.parse().map_err(|_| "neither HOST:PORT in numbers nor unix:PATH")?;
    Ok(Place::Network(address))
}

/// By which way the service is reached.
enum Way {
    Network { endpoint: Box<Endpoint>, address: SocketAddr, whom: SpiffeId },
    Socket(PathBuf),
}

/// Who speaks to whom.
struct Line {
    way: Way,
    chain: Chain,
    secret: Arc<HolderSecret>,
    end_to_end: bool,
}

type Reader = Box<dyn AsyncRead + Unpin>;
type Writer = Box<dyn AsyncWrite + Unpin>;
type Sealed = (SealedReader<BufReader<Reader>>, SealedWriter<Writer>);

/// Both directions of a connection.
struct Halves {
    reader: Reader,
    writer: Writer,
    /// How it ends, where something says so.
    ends: Option<(SocketAddr, distos_quic::Connection)>,
    /// What its handshake has given to its two ends.
    binding: Option<[u8; 32]>,
}

impl Halves {
    /// Why it has ended, if whoever runs this should know.
    fn complaint(&self) -> Option<Fault> {
        let (address, connection) = self.ends.as_ref()?;
        let reason = connection.close_reason()?;
        let ordinary = matches!(reason, ConnectionError::LocallyClosed);
        (!ordinary).then(|| why_closed(*address, &reason))
    }
}

impl Line {
    /// To whom it leads, for people.
    fn whom(&self) -> String {
        let root = self.chain.root();
        match &self.way {
            Way::Network { whom, .. } => whom.to_string(),
            Way::Socket(path) => {
                format!("node/{}/service/{} through {}", root.node, root.vat, path.display())
            }
        }
    }

    async fn open(&self) -> Result<Halves, Fault> {
        let reached = self.reach().await?;
        if !self.end_to_end {
            return Ok(reached);
        }
        let (reader, writer) = self.seal(reached.reader, reached.writer).await?;
        let (reader, writer) = (Box::new(reader), Box::new(writer));
        Ok(Halves { reader, writer, ends: reached.ends, binding: None })
    }

    async fn seal(&self, reader: Reader, writer: Writer) -> Result<Sealed, Fault> {
        let sealed = end_to_end(reader, writer, &self.chain, &self.secret);
        let silent = |_| Err(Fault::unavailable(1000, "the service is silent"));
        tokio::time::timeout(ANSWER_WAIT, sealed).await.unwrap_or_else(silent)
    }

    async fn reach(&self) -> Result<Halves, Fault> {
        match &self.way {
            Way::Network { endpoint, address, whom } => {
                let link = endpoint.connect(*address, whom).await?;
                let ends = Some((*address, link.connection().clone()));
                let binding = link.binding();
                let (reader, writer) = link.into_halves();
                Ok(Halves { reader: Box::new(reader), writer: Box::new(writer), ends, binding })
            }
            Way::Socket(path) => {
                let stream = UnixStream::connect(path).await.map_err(|error| {
                    let at = path.display();
                    Fault::unavailable(1000, format!("nobody answers at {at}: {error}"))
                })?;
                let (reader, writer) = stream.into_split();
                let (reader, writer) = (Box::new(reader), Box::new(writer));
                Ok(Halves { reader, writer, ends: None, binding: None })
            }
        }
    }

    /// Restores the capability once. That the other side lets somebody in shows in its first answer.
    async fn try_out(&self) -> Result<(), Fault> {
        match self.restore().await {
            // Who ended it before anything was said, the other side or its SVID's time, the next one shows.
            Err(Fault::Unavailable { .. }) => self.restore().await,
            tried => tried,
        }
    }

    async fn restore(&self) -> Result<(), Fault> {
        let Halves { reader, writer, ends, binding } = self.reach().await?;
        let over = if self.end_to_end {
            let (reader, writer) = self.seal(reader, writer).await?;
            Connection::over_end_to_end(reader, writer)
        } else {
            let system = transport::over(reader, writer, Side::Client, None, Bounds::EDGE);
            Connection::bound(system, binding)
        };
        let restored = over.restore::<capability::Client>(&self.chain, &self.secret);
        let restored = tokio::time::timeout(ANSWER_WAIT, restored).await;
        let ended = ends.and_then(|(address, connection)| {
            connection.close_reason().map(|reason| why_closed(address, &reason))
        });
        match (restored, ended) {
            (Ok(Ok(_)), _) => Ok(()),
            (_, Some(fault)) => Err(fault),
            (Ok(Err(fault)), None) => Err(fault),
            (Err(_), None) => Err(Fault::unavailable(1000, "the service is silent")),
        }
    }
}

pub(super) async fn command(context: &Context, args: ConnectArgs) -> Result<Report, Fault> {
    let acting = context.acting().ok_or_else(|| {
        Fault::malformed("say who speaks: --as FILE, with its secret key beside it")
    })?;
    let file = read_cap_file(acting)?;
    let secret = Arc::new(read_secret(acting)?);
    let chain = pick(&file, args.entry.as_deref())?.chain.clone();
    let asked = chain.authority().caveats.end_to_end;
    let svid = args.svid.unwrap_or_else(|| acting.with_extension("pem"));
    let way = match args.address {
        Place::Network(address) => {
            let bundle = read_bundle(&args.bundle)?;
            network(address, chain.root(), bundle, credentials(&svid, &secret)?)?
        }
        Place::Socket(path) => Way::Socket(path),
    };
    let end_to_end = args.end_to_end || asked;
    let line = Rc::new(Line { way, chain, secret, end_to_end });
    // Whatever is wrong is told before anybody relies on it.
    line.try_out().await?;
    let (listener, _place) = socket::listen(&args.listen)?;
    let (at, to) = (args.listen.display(), line.whom());
    let how = if end_to_end { ", end to end" } else { "" };
    let told = match context.json {
        true => {
            json!({ "listening": at.to_string(), "to": to, "end_to_end": end_to_end }).to_string()
        }
        false => format!("{at} leads to {to}{how}; Ctrl-C ends it"),
    };
    say(&told);
    tokio::select! {
        () = serve(&line, &listener) => {}
        () = renew(&line, &svid) => {}
    }
    Ok(Report::nothing())
}

/// To a service over the network.
fn network(
    address: SocketAddr,
    root: &Root,
    bundle: Bundle,
    own: Credentials,
) -> Result<Way, Fault> {
    let subject = Subject::Service { node: root.node, service: root.vat.clone() };
    let whom = SpiffeId { cluster: bundle.cluster().clone(), subject };
    let peers = Peers { nodes: [root.node].into(), ..Peers::default() };
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).map_err(Fault::internal)?;
    let trust = Trust { bundle, peers, own: None, exchange: KeyExchange::default() };
    let clock = distos_quic::system_clock();
    // Nobody connects to it: dropping arrivals refuses whoever tries.
    let (endpoint, _) =
        Endpoint::new(socket, own, trust, Settings::default(), clock).map_err(Fault::internal)?;
    Ok(Way::Network { endpoint: Box::new(endpoint), address, whom })
}

fn credentials(path: &Path, secret: &Arc<HolderSecret>) -> Result<Credentials, Fault> {
    Ok(Credentials { chain: read_pem(path)?, secret: secret.clone() })
}

async fn serve(line: &Rc<Line>, listener: &UnixListener) {
    loop {
        match listener.accept().await {
            Ok((local, _)) => {
                let line = line.clone();
                tokio::task::spawn_local(async move {
                    match line.open().await {
                        Ok(mut far) => {
                            let broken = join(local, &mut far).await;
                            if let Some(fault) = broken.or_else(|| far.complaint()) {
                                complain(&format!("distos: {fault}"));
                            }
                        }
                        // It is told by its end.
                        Err(fault) => complain(&format!("distos: {fault}")),
                    }
                });
            }
            Err(error) => {
                complain(&format!("distos: cannot accept a connection: {error}"));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Passes on what each side says, until either is done; what was wrong with what the far side has said, if it was
/// encrypted and was changed on its way.
async fn join(mut local: UnixStream, far: &mut Halves) -> Option<Fault> {
    let (from_far, to_far) = (&mut far.reader, &mut far.writer);
    let (mut from_near, mut to_near) = local.split();
    let out = async {
        let _ = tokio::io::copy(&mut from_near, to_far).await;
        let _ = to_far.shutdown().await;
    };
    let back = async {
        let ended = tokio::io::copy(from_far, &mut to_near).await;
        ended.err().and_then(|error| Fault::from_wire(&error.to_string()))
    };
    // The near side may say that it is done and still listen; once the far side is, nobody answers.
    tokio::pin!(back);
    tokio::select! {
        broken = &mut back => broken,
        () = out => back.await,
    }
}

/// Shows what is in the SVID's file, whenever that is another.
async fn renew(line: &Line, path: &Path) {
    let Way::Network { endpoint, .. } = &line.way else { return std::future::pending().await };
    let mut shown = None;
    loop {
        match credentials(path, &line.secret) {
            Ok(own) if shown.as_ref() != Some(&own.chain) => {
                shown = Some(own.chain.clone());
                endpoint.renew(own);
            }
            Ok(_) => {}
            Err(fault) => complain(&format!("distos: the SVID was not renewed: {fault}")),
        }
        tokio::time::sleep(LOOK).await;
    }
}
