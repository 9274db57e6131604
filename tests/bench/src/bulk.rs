//! Many bytes from a memory service over QUIC, and the same many over the same connection with nothing around them.
//! As with [`crate::remote`], the service runs with its kernel in one process that is not confined.

use std::cell::RefCell;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use distos_abi::{Fault, NodeId, VatName};
use distos_client::Connection;
use distos_identity::{Peers, Subject, TenantName};
use distos_node::image::{self, Machine};
use distos_quic::{Arrivals, Endpoint, Streams};
use distos_rpc::transport::Bounds;
use distos_schemas::memory_capnp::{region, regions};
use distos_sim::cluster::Cluster;
use distos_sim::{Life, Node, tasks};
use distos_types::{CapFile, HolderSecret};
use futures::StreamExt as _;

use crate::figures::Failure;
use crate::peers::{Process, tls};
use crate::remote::{HOME, TENANT, process, until_asked};

/// The argument under which this binary is the memory service.
pub const COMMAND: &str = "bulk-vat";
/// The argument under which it sends bytes, and nothing else.
pub const BARE: &str = "bulk-bare";
const MEMORY: &str = "memory";
/// What is sent at once on either side.
pub const BUFFER: usize = 64 << 10;
/// How many different ones there are.
pub const BUFFERS: usize = 1024;

fn home() -> Result<Subject, Fault> {
    Ok(Subject::Service { node: HOME, service: VatName::new(MEMORY)? })
}

fn agent() -> Result<Subject, Fault> {
    let agent = HolderSecret::from_seed([9; 32]).key();
    Ok(Subject::Agent { tenant: TenantName::new(TENANT)?, agent })
}

fn listening(cluster: &Cluster) -> Result<(Endpoint, Arrivals), Fault> {
    let tenants = [TenantName::new(TENANT)?].into();
    let peers = Peers { tenants, nodes: [NodeId([2; 32])].into(), ..Peers::default() };
    Ok(cluster.endpoint(cluster.svid(home()?, 50), peers))
}

/// The memory service's process: one thread, and those that it has for its pages.
pub fn main(dir: &Path) -> ExitCode {
    process(async {
        let (endpoint, arrivals) = listening(&Cluster::new("bench"))?;
        let _node = boot(dir, arrivals).await?;
        println!("{}", endpoint.address()?);
        until_asked().await;
        Ok(())
    })
}

async fn boot(dir: &Path, arrivals: Arrivals) -> Result<Node, Fault> {
    let text = format!(
        r#"
image = {{ name = "bulk", slots = 4096 }}
[operator]
regions = {{ of = "{MEMORY}/regions", rights = ["read", "write", "create", "list", "drop"] }}
[vat.{MEMORY}]
program = "memory"
serves = ["regions"]
listen = true
data = true
"#
    );
    let machine = Machine {
        builtins: &distos_node::vat::PROGRAMS,
        executable: &|path| path.exists(),
        exists: &|path| path.exists(),
    };
    let plan = image::parse(&text, Path::new("bulk.toml"), dir, &machine)
        .map_err(|errors| Fault::malformed(errors.to_string()))?;
    let arrivals = RefCell::new(Some(arrivals));
    let spawn = tasks(move |boot| -> Life {
        let arrivals = arrivals.borrow_mut().take();
        Box::pin(distos_rpc::serve(boot, async move |vat| {
            let arrivals = arrivals.ok_or_else(|| Fault::internal("a vat starts once"))?;
            tokio::task::spawn_local(distos_quic::serve(vat.clone(), arrivals));
            distos_memory::start(vat).await
        }))
    });
    Node::boot(plan, spawn).await
}

/// The process that sends bytes: as many buffers as somebody asks for by a number of 8 bytes, on each stream.
pub fn bare() -> ExitCode {
    process(async {
        let (endpoint, mut arrivals) = listening(&Cluster::new("bench"))?;
        println!("{}", endpoint.address()?);
        tokio::task::spawn_local(async move {
            while let Some(Ok(link)) = arrivals.recv().await {
                tokio::task::spawn_local(async move {
                    let connection = link.connection().clone();
                    let _held = link.into_halves();
                    // As much memory as a region's, so that it comes from where that does.
                    let buffers: Vec<Vec<u8>> = (0..BUFFERS).map(|_| vec![7; BUFFER]).collect();
                    while let Ok((mut send, mut receive)) = connection.accept_bi().await {
                        let mut count = [0; 8];
                        let Ok(()) = receive.read_exact(&mut count).await else { return };
                        let count = u64::from_be_bytes(count) as usize;
                        for buffer in buffers.iter().cycle().take(count) {
                            let Ok(()) = send.write_all(buffer).await else { return };
                        }
                        let _ = send.finish();
                    }
                });
            }
        });
        until_asked().await;
        Ok(())
    })
}

/// One of both in a process of its own, and a connection to it.
pub struct Sender {
    connection: distos_quic::Connection,
    server: Process,
}

fn start(
    cluster: &Cluster,
    word: &str,
    dir: &Path,
) -> Result<(Endpoint, Process, String), Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(word).arg(dir).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut server = Process(command.spawn()?);
    let address = tls::first_line(&mut server)?;
    let peers = Peers { nodes: [HOME].into(), ..Peers::default() };
    let (own, _) = cluster.endpoint(cluster.svid(agent()?, 60), peers);
    Ok((own, server, address))
}

/// What sends bytes and nothing else.
pub struct Bare {
    sender: Sender,
    _held: Box<dyn std::any::Any>,
}

impl Bare {
    /// Starts it and connects to it.
    pub async fn start(dir: &Path) -> Result<Bare, Failure> {
        let cluster = Cluster::new("bench");
        let (own, server, address) = start(&cluster, BARE, dir)?;
        let link = own.connect(address.parse()?, &cluster.id(home()?)).await?;
        let connection = link.connection().clone();
        let (reader, mut writer) = link.into_halves();
        // A stream is there for the other side once something was said on it.
        tokio::io::AsyncWriteExt::write_all(&mut writer, &[0]).await?;
        let _held = Box::new((own, reader, writer));
        Ok(Bare { sender: Sender { connection, server }, _held })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.sender.server.0.id()
    }

    /// Reads so many buffers.
    pub async fn read(&self, buffers: u64) -> Result<(), Failure> {
        let (mut send, mut receive) = self.sender.connection.open_bi().await?;
        send.write_all(&buffers.to_be_bytes()).await?;
        send.finish()?;
        let mut buffer = vec![0; BUFFER];
        for _ in 0..buffers {
            receive.read_exact(&mut buffer).await?;
        }
        Ok(())
    }
}

/// A memory service, and the operator's capability to its regions.
pub struct Memory {
    sender: Sender,
    streams: Streams,
    regions: regions::Client,
    _held: (Endpoint, Connection),
}

impl Memory {
    /// Starts it with its files in `dir`, and connects to it.
    pub async fn start(dir: &Path) -> Result<Memory, Failure> {
        let cluster = Cluster::new("bench");
        let (own, server, address) = start(&cluster, COMMAND, dir)?;
        let operator = dir.join("operator");
        let read = |name: &str| std::fs::read_to_string(operator.join(name));
        let owner = HolderSecret::from_file_text(&read("operator.key")?)?;
        let file = CapFile::parse(&read("operator.cap")?)?;
        let chain = &file.find("regions").ok_or("the operator has no such capability")?.chain;
        let link = own.connect(address.parse()?, &cluster.id(home()?)).await?;
        let quic = link.connection().clone();
        let connection = Connection::over(link.start(None, Bounds::EDGE));
        let regions: regions::Client = connection.restore(chain, &owner).await?;
        let streams = Streams::of(quic.clone());
        let sender = Sender { connection: quic, server };
        Ok(Memory { sender, streams, regions, _held: (own, connection) })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.sender.server.0.id()
    }

    /// A region that is full of bytes.
    pub async fn region(
        &self,
        name: &str,
        bytes: u64,
        volatile: bool,
    ) -> Result<region::Client, Failure> {
        let mut request = self.regions.create_request();
        let mut asked = request.get();
        asked.set_name(name);
        asked.set_bytes(bytes);
        asked.set_volatile(volatile);
        let made = request.send().promise.await?;
        let region = made.get()?.get_region()?;
        let part = vec![7; 1 << 20];
        for offset in (0..bytes).step_by(part.len()) {
            let mut request = region.write_request();
            request.get().set_offset(offset);
            request.get().set_data(&part);
            request.send().promise.await?;
        }
        Ok(region)
    }

    /// Reads so many bytes by a stream, each page checked.
    pub async fn stream(&self, region: &region::Client, bytes: u64) -> Result<(), Failure> {
        let stream = self.streams.bulk().await?;
        let mut request = region.stream_request();
        request.get().set_len(bytes);
        let answer = request.send().promise.await?;
        let mut pages = stream(answer.get()?.get_ticket()?.to_vec());
        let mut came = 0;
        while let Some(page) = pages.next().await {
            came += page?.len() as u64;
        }
        if came == bytes { Ok(()) } else { Err(format!("{came} of {bytes} bytes came").into()) }
    }

    /// Reads so many bytes in calls, two at a time.
    pub async fn call(&self, region: &region::Client, bytes: u64) -> Result<(), Failure> {
        const PART: u64 = 512 << 10;
        let reads = futures::stream::iter((0..bytes).step_by(PART as usize)).map(|offset| {
            let mut request = region.read_request();
            request.get().set_offset(offset);
            request.get().set_len(PART as u32);
            request.send().promise
        });
        let mut reads = reads.buffered(2);
        while let Some(read) = reads.next().await {
            std::hint::black_box(read?.get()?.get_data()?.to_vec());
        }
        Ok(())
    }
}
