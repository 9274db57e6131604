//! A vat that is reached over QUIC. The kernel cannot hand a vat a UDP socket, so this one runs with its
//! kernel in one process that is not confined (`distos-sim`); whatever a call passes through is what
//! passes it in production: the connection, the facet with its checks, and the reply's.

use std::cell::RefCell;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::rc::Rc;

use capnp_rpc::rpc_twoparty_capnp::Side;
use distos_abi::{Authority, Fault, NodeId, Rights, VatName};
use distos_client::handoff::{self, Home};
use distos_client::{Connection, Gift};
use distos_identity::{Peers, Subject, TenantName};
use distos_node::image::{self, Machine};
use distos_quic::{Arrivals, Endpoint};
use distos_rpc::transport::{Bounds, Driven};
use distos_sim::cluster::Cluster;
use distos_sim::{Life, Node, tasks};
use distos_types::{CapFile, HolderSecret};

use crate::figures::Failure;
use crate::null_capnp::{self, null};
use crate::peers::{Process, tls};
use crate::vats;

/// The argument under which this binary is the server.
pub const COMMAND: &str = "remote-vat";
/// The argument under which it is a node that passes on what it has of the server's.
pub const GIVER: &str = "remote-giver";
/// The server's node.
pub const HOME: NodeId = NodeId([1; 32]);
const GIVING: NodeId = NodeId([2; 32]);
/// Whose agents come.
pub const TENANT: &str = "bench";

/// The server.
pub fn home() -> Result<Subject, Fault> {
    Ok(Subject::Service { node: HOME, service: VatName::new(vats::NULL)? })
}

fn agent() -> Result<Subject, Fault> {
    let agent = HolderSecret::from_seed([9; 32]).key();
    Ok(Subject::Agent { tenant: TenantName::new(TENANT)?, agent })
}

fn giving() -> Result<Subject, Fault> {
    Ok(Subject::Service { node: GIVING, service: VatName::new("giver")? })
}

/// The server's process: one thread. Says its address, and goes on until its standard input ends.
pub fn main(dir: &Path, slots: &str) -> ExitCode {
    process(async { Ok(serve(dir, slots).await?) })
}

/// The giver's process, likewise.
pub fn giver(dir: &Path, home: &str) -> ExitCode {
    process(give(dir, home))
}

/// Runs one of these processes.
pub fn process(work: impl Future<Output = Result<(), Failure>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let served = runtime
        .map_err(Failure::from)
        .and_then(|runtime| tokio::task::LocalSet::new().block_on(&runtime, work));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("a server of the benchmark: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Resolves when standard input ends.
pub async fn until_asked() {
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        // Either its end or an error: nobody wants this any more.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = ended.send(());
    });
    let _ = end.await;
}

/// A holder of the server's capability, at whom others ask for it.
async fn give(dir: &Path, home: &str) -> Result<(), Failure> {
    let cluster = Cluster::new("bench");
    let peers = Peers {
        tenants: [TenantName::new(TENANT)?].into(),
        nodes: [HOME].into(),
        ..Peers::default()
    };
    let (endpoint, mut arrivals) = cluster.endpoint(cluster.svid(giving()?, 51), peers);
    let (_connection, live) =
        restored(&endpoint, &cluster, home.parse()?, &dir.join("operator")).await?;
    println!("{}", endpoint.address()?);
    tokio::task::spawn_local(async move {
        while let Some(Ok(link)) = arrivals.recv().await {
            let own: null_capnp::giver::Client =
                capnp_rpc::new_client(Giver { live: live.clone() });
            tokio::task::spawn_local(link.start(Some(own.client), Bounds::EDGE));
        }
    });
    until_asked().await;
    Ok(())
}

struct Giver {
    live: null::Client,
}

impl null_capnp::giver::Server for Giver {
    async fn give(
        self: Rc<Self>,
        params: null_capnp::giver::GiveParams,
        mut results: null_capnp::giver::GiveResults,
    ) -> Result<(), capnp::Error> {
        let receiver = params.get()?.get_receiver()?.to_str()?.to_owned();
        let wanted = Authority { rights: Rights::READ, ..Authority::FULL };
        let vat = VatName::new(vats::NULL).map_err(distos_rpc::fail)?;
        let home = Home { node: Some(HOME), vat };
        let gift = handoff::give(&self.live, &receiver, wanted, home).await;
        let gift = gift.map_err(distos_rpc::fail)?;
        let mut reply = results.get();
        reply.set_proxied(self.live.clone());
        gift.write(reply.init_gift());
        Ok(())
    }
}

/// A new connection to the server, and the operator's capability over it.
async fn restored(
    from: &Endpoint,
    cluster: &Cluster,
    address: SocketAddr,
    operator: &Path,
) -> Result<(Connection, null::Client), Failure> {
    let read = |name: &str| std::fs::read_to_string(operator.join(name));
    let owner = HolderSecret::from_file_text(&read("operator.key")?)?;
    let file = CapFile::parse(&read("operator.cap")?)?;
    let chain = &file.find("null").ok_or("the operator has no such capability")?.chain;
    let link = from.connect(address, &cluster.id(home()?)).await?;
    let binding = link.binding();
    let connection = Connection::bound(link.start(None, Bounds::EDGE), binding);
    // What is called first goes out with it, as with the peer.
    let live = connection.present(chain, &owner).await?;
    Ok((connection, live))
}

async fn serve(dir: &Path, slots: &str) -> Result<(), Fault> {
    let cluster = Cluster::new("bench");
    let tenants = [TenantName::new(TENANT)?].into();
    let peers = Peers { tenants, nodes: [GIVING].into(), ..Peers::default() };
    let (endpoint, arrivals) = cluster.endpoint(cluster.svid(home()?, 50), peers);
    let _node = boot(dir, slots, arrivals).await?;
    println!("{}", endpoint.address().map_err(Fault::internal)?);
    until_asked().await;
    Ok(())
}

async fn boot(dir: &Path, slots: &str, arrivals: Arrivals) -> Result<Node, Fault> {
    let null = vats::NULL;
    let text = format!(
        r#"
image = {{ name = "remote", slots = {slots} }}
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
        Remote::with_slots(dir, 4096)
    }

    /// The same with a table of so many slots.
    pub fn with_slots(dir: &Path, slots: u32) -> Result<Remote, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg(COMMAND)
            .arg(dir)
            .arg(slots.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut server = Process(command.spawn()?);
        let address = tls::first_line(&mut server)?.parse()?;
        let cluster = Cluster::new("bench");
        let peers = Peers { nodes: [HOME, GIVING].into(), ..Peers::default() };
        let (own, _) = cluster.endpoint(cluster.svid(agent()?, 60), peers);
        Ok(Remote { cluster, own, address, operator: dir.join("operator"), server })
    }

    /// The server's process.
    pub fn pid(&self) -> u32 {
        self.server.0.id()
    }

    /// Where it is reached.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A new connection, and the operator's capability over it.
    pub async fn connect(&self) -> Result<(Connection, null::Client), Failure> {
        restored(&self.own, &self.cluster, self.address, &self.operator).await
    }

    /// Starts somebody who has the server's capability, gets it from there, and changes over.
    pub async fn handed(&self) -> Result<Handed, Failure> {
        let dir = self.operator.parent().ok_or("no directory")?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(GIVER).arg(dir).arg(self.address.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut giver = Process(command.spawn()?);
        let address = tls::first_line(&mut giver)?.parse()?;
        let link = self.own.connect(address, &self.cluster.id(giving()?)).await?;
        let mut system = link.start(None, Bounds::EDGE);
        let giving: null_capnp::giver::Client = system.bootstrap(Side::Server);
        let driven = Driven::new(system);
        let mut request = giving.give_request();
        request.get().set_receiver(agent()?.to_string());
        let given = request.send().promise.await?;
        let proxied = given.get()?.get_proxied()?;
        let gift = Gift::read(given.get()?.get_gift()?)??;
        let link = self.own.connect(self.address, &self.cluster.id(home()?)).await?;
        let connection = Connection::over(link.start(None, Bounds::EDGE));
        let direct: null::Client = connection.withdraw(&gift.ticket).await?;
        let direct = handoff::change_over(proxied.clone(), direct).await;
        Ok(Handed { proxied, direct, giver, _open: (driven, connection) })
    }
}

/// What somebody else has handed over.
pub struct Handed {
    /// By way of the giver.
    pub proxied: null::Client,
    /// Without it.
    pub direct: null::Client,
    giver: Process,
    _open: (Driven, Connection),
}

impl Handed {
    /// The giver's process.
    pub fn pid(&self) -> u32 {
        self.giver.0.id()
    }
}
