//! A vat that is reached over QUIC. The kernel cannot hand a vat a UDP socket, so this one runs with its
//! kernel in one process that is not confined (`distos-sim`); whatever a call passes through is what
//! passes it in production: the connection, the facet with its checks, and the reply's.

use std::cell::RefCell;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use distos_abi::{Fault, NodeId, VatName};
use distos_client::Connection;
use distos_identity::{Peers, Subject, TenantName};
use distos_node::image::{self, Machine};
use distos_quic::{Arrivals, Endpoint};
use distos_rpc::transport::Bounds;
use distos_sim::cluster::Cluster;
use distos_sim::{Life, Node, tasks};
use distos_types::{CapFile, HolderSecret};

use crate::figures::Failure;
use crate::null_capnp::null;
use crate::peers::{Process, tls};
use crate::vats;

/// The argument under which this binary is the server.
pub const COMMAND: &str = "remote-vat";
const HOME: NodeId = NodeId([1; 32]);
const TENANT: &str = "bench";

fn home() -> Result<Subject, Fault> {
    Ok(Subject::Service { node: HOME, service: VatName::new(vats::NULL)? })
}

fn agent() -> Result<Subject, Fault> {
    let agent = HolderSecret::from_seed([9; 32]).key();
    Ok(Subject::Agent { tenant: TenantName::new(TENANT)?, agent })
}

/// The server's process: one thread. Says its address, and goes on until its standard input ends.
pub fn main(dir: &Path) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let served = runtime
        .map_err(Fault::internal)
        .and_then(|runtime| tokio::task::LocalSet::new().block_on(&runtime, serve(dir)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("the remote vat: {fault}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(dir: &Path) -> Result<(), Fault> {
    let cluster = Cluster::new("bench");
    let tenants = [TenantName::new(TENANT)?].into();
    let peers = Peers { tenants, ..Peers::default() };
    let (endpoint, arrivals) = cluster.endpoint(cluster.svid(home()?, 50), peers);
    let _node = boot(dir, arrivals).await?;
    println!("{}", endpoint.address().map_err(Fault::internal)?);
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        // Either its end or an error: nobody wants this any more.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = ended.send(());
    });
    let _ = end.await;
    Ok(())
}

async fn boot(dir: &Path, arrivals: Arrivals) -> Result<Node, Fault> {
    let null = vats::NULL;
    let text = format!(
        r#"
image = {{ name = "remote", slots = 4096 }}
[operator]
null = {{ of = "{null}/regions", rights = ["read"] }}
[vat.{null}]
program = "memory"
serves = ["regions"]
listen = true
"#
    );
    let machine = Machine {
        builtins: &distos_node::vat::PROGRAMS,
        executable: &|path| path.exists(),
        exists: &|path| path.exists(),
    };
    let plan = image::parse(&text, Path::new("remote.toml"), dir, &machine)
        .map_err(|errors| Fault::malformed(errors.to_string()))?;
    let arrivals = RefCell::new(Some(arrivals));
    let spawn = tasks(move |boot| -> Life {
        let arrivals = arrivals.borrow_mut().take();
        Box::pin(distos_rpc::serve(boot, async move |vat| {
            let arrivals = arrivals.ok_or_else(|| Fault::internal("a vat starts once"))?;
            tokio::task::spawn_local(distos_quic::serve(vat, arrivals));
            Ok(vats::service())
        }))
    });
    Node::boot(plan, spawn).await
}

/// The server in a process of its own, and a holder on another machine.
pub struct Remote {
    cluster: Cluster,
    own: Endpoint,
    address: SocketAddr,
    operator: PathBuf,
    server: Process,
}

impl Remote {
    /// Starts the server, with its files in `dir`; on a thread's `LocalSet`.
    pub fn start(dir: &Path) -> Result<Remote, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(COMMAND).arg(dir).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut server = Process(command.spawn()?);
        let address = tls::first_line(&mut server)?.parse()?;
        let cluster = Cluster::new("bench");
        let peers = Peers { nodes: [HOME].into(), ..Peers::default() };
        let (own, _) = cluster.endpoint(cluster.svid(agent()?, 60), peers);
        Ok(Remote { cluster, own, address, operator: dir.join("operator"), server })
    }

    /// The server's process.
    pub fn pid(&self) -> u32 {
        self.server.0.id()
    }

    /// A new connection, and the operator's capability over it.
    pub async fn connect(&self) -> Result<(Connection, null::Client), Failure> {
        let read = |name: &str| std::fs::read_to_string(self.operator.join(name));
        let owner = HolderSecret::from_file_text(&read("operator.key")?)?;
        let file = CapFile::parse(&read("operator.cap")?)?;
        let chain = &file.find("null").ok_or("the operator has no such capability")?.chain;
        let link = self.own.connect(self.address, &self.cluster.id(home()?)).await?;
        let connection = Connection::over(link.start(None, Bounds::EDGE));
        let live = connection.restore(chain, &owner).await?;
        Ok((connection, live))
    }
}
