//! `connect`: a local socket that leads to a service of another node.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use distos_abi::{Fault, VatName};
use distos_client::Connection;
use distos_identity::{KeyExchange, Peers, SpiffeId, Subject, Trust};
use distos_quic::{ConnectionError, Credentials, Endpoint, Link, Settings, why_closed};
use distos_rpc::transport::Bounds;
use distos_schemas::capability_capnp::capability;
use distos_types::{Chain, HolderSecret};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
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
  python3 docs/examples/python/client.py run/memory.sock red.cap
The address is that of the service at which the capability lives. The SVID is red's, for red's key:
  distos cluster svid tenant/red/agent/z6Mk… red.pub --issuer issuer.key
It goes on until Ctrl-C; a newer SVID in the same file is shown without a pause.")]
pub struct ConnectArgs {
    /// Where the service listens, as HOST:PORT in numbers
    #[arg(value_name = "ADDRESS")]
    address: SocketAddr,
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

/// Who speaks to whom.
struct Line {
    endpoint: Endpoint,
    address: SocketAddr,
    whom: SpiffeId,
}

impl Line {
    /// What whoever runs this should know about the end of a connection.
    fn complaint(&self, reason: &ConnectionError) -> Option<Fault> {
        let ordinary = matches!(reason, ConnectionError::LocallyClosed);
        (!ordinary).then(|| why_closed(self.address, reason))
    }

    async fn open(&self) -> Result<Link, Fault> {
        self.endpoint.connect(self.address, &self.whom).await
    }

    /// Restores the capability once. That the other side lets somebody in shows in its first answer.
    async fn try_out(&self, chain: &Chain, secret: &HolderSecret) -> Result<(), Fault> {
        match self.restore(self.open().await?, chain, secret).await {
            // Who ended it before anything was said, the other side or its SVID's time, the next one shows.
            Err(Fault::Unavailable { .. }) => self.restore(self.open().await?, chain, secret).await,
            tried => tried,
        }
    }

    async fn restore(&self, link: Link, chain: &Chain, secret: &HolderSecret) -> Result<(), Fault> {
        let connection = link.connection().clone();
        let over = Connection::over(link.start(None, Bounds::EDGE));
        let restored =
            tokio::time::timeout(ANSWER_WAIT, over.restore::<capability::Client>(chain, secret));
        match (restored.await, connection.close_reason()) {
            (Ok(Ok(_)), _) => Ok(()),
            (_, Some(reason)) => Err(why_closed(self.address, &reason)),
            (Ok(Err(fault)), None) => Err(fault),
            (Err(_), None) => Err(Fault::unavailable(1000, format!("{} is silent", self.address))),
        }
    }
}

pub(super) async fn command(context: &Context, args: ConnectArgs) -> Result<Report, Fault> {
    let acting = context.acting().ok_or_else(|| {
        Fault::malformed("say who speaks: --as FILE, with its secret key beside it")
    })?;
    let file = read_cap_file(acting)?;
    let secret = Arc::new(read_secret(acting)?);
    let chain = &pick(&file, args.entry.as_deref())?.chain;
    let root = chain.root().clone();
    let bundle = read_bundle(&args.bundle)?;
    let whom = service(&bundle, root.node, root.vat);
    let svid = args.svid.unwrap_or_else(|| acting.with_extension("pem"));
    let peers = Peers { nodes: [root.node].into(), ..Peers::default() };
    let any: SocketAddr = match args.address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).map_err(Fault::internal)?;
    let own = credentials(&svid, &secret)?;
    let trust = Trust { bundle, peers, own: None, exchange: KeyExchange::default() };
    let clock = distos_quic::system_clock();
    // Nobody connects to it: dropping arrivals refuses whoever tries.
    let (endpoint, _) =
        Endpoint::new(socket, own, trust, Settings::default(), clock).map_err(Fault::internal)?;
    let line = Rc::new(Line { endpoint, address: args.address, whom });
    // Whatever is wrong is told before anybody relies on it.
    line.try_out(chain, &secret).await?;
    let (listener, _place) = socket::listen(&args.listen)?;
    let at = args.listen.display();
    let told = match context.json {
        true => json!({ "listening": at.to_string(), "to": line.whom.to_string() }).to_string(),
        false => format!("{at} leads to {}; Ctrl-C ends it", line.whom),
    };
    say(&told);
    tokio::select! {
        () = serve(&line, &listener) => {}
        () = renew(&line, &svid, &secret) => {}
    }
    Ok(Report::nothing())
}

fn service(bundle: &distos_identity::Bundle, node: distos_abi::NodeId, vat: VatName) -> SpiffeId {
    let subject = Subject::Service { node, service: vat };
    SpiffeId { cluster: bundle.cluster().clone(), subject }
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
                        Ok(link) => {
                            let connection = link.connection().clone();
                            join(local, link).await;
                            let reason = connection.close_reason();
                            if let Some(fault) = reason.and_then(|why| line.complaint(&why)) {
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

/// Passes on what each side says, until either is done.
async fn join(mut local: UnixStream, link: Link) {
    let (mut from_far, mut to_far) = link.into_halves();
    let (mut from_near, mut to_near) = local.split();
    let out = async {
        let _ = tokio::io::copy(&mut from_near, &mut to_far).await;
        let _ = to_far.shutdown().await;
    };
    let back = async {
        let _ = tokio::io::copy(&mut from_far, &mut to_near).await;
    };
    // The near side may say that it is done and still listen; once the far side is, nobody answers.
    tokio::pin!(back);
    tokio::select! {
        () = &mut back => {}
        () = out => back.await,
    }
}

/// Shows what is in the SVID's file, whenever that is another.
async fn renew(line: &Rc<Line>, path: &Path, secret: &Arc<HolderSecret>) {
    let mut shown = None;
    loop {
        match credentials(path, secret) {
            Ok(own) if shown.as_ref() != Some(&own.chain) => {
                shown = Some(own.chain.clone());
                line.endpoint.renew(own);
            }
            Ok(_) => {}
            Err(fault) => complain(&format!("distos: the SVID was not renewed: {fault}")),
        }
        tokio::time::sleep(LOOK).await;
    }
}
