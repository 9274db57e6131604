//! The nodes on which the demo runs: one, or several of one cluster, each a kernel and its services on loopback
//! addresses of this machine.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use distos_abi::Fault;
use serde_json::{Value, json};
use toml_edit::{DocumentMut, Item};

use super::{Talk, make_closed, signed, unexpected};
use crate::cli::files::{self, io_fault};
use crate::cli::holder::Holder;
use crate::cli::up::{self, Node};
use crate::cli::{Context, Stop, inner, interrupted, interruptible};

/// The longest image.
const MAX_IMAGE_BYTES: u64 = 1 << 20;
/// How long the nodes of a cluster may take to vouch for one another.
const VOUCHED: Duration = Duration::from_secs(60);
/// How long a tenant's program may take to be let in.
const LET_IN: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(50);
/// The services that have to be reached before the demo goes on.
const NEEDED: [&str; 2] = ["memory", "scheduler"];

/// Where one of the demo's nodes is.
pub(super) struct Place {
    /// How the transcript calls it; nothing if there is only one.
    pub(super) name: String,
    pub(super) directory: PathBuf,
    /// Its number in its cluster.
    number: String,
    /// Where its memory service is reached.
    memory: Option<SocketAddr>,
}

impl Place {
    /// The only node.
    pub(super) fn alone(directory: &Path) -> Place {
        Place {
            name: String::new(),
            directory: directory.to_owned(),
            number: String::new(),
            memory: None,
        }
    }

    /// Where something is done, for a heading.
    pub(super) fn on(&self) -> String {
        if self.name.is_empty() { String::new() } else { format!(" at {}", self.name) }
    }

    async fn run(&self, words: &[&str]) -> Result<Value, Stop> {
        inner(&self.directory, words).await
    }
}

/// The nodes, running.
pub(super) struct Running {
    nodes: Vec<Node>,
}

impl Running {
    /// Does `work` while the nodes run, and shuts them down.
    pub(super) async fn beside<T>(
        mut self,
        work: impl Future<Output = Result<T, Stop>>,
        talk: &Talk,
    ) -> Result<T, Stop> {
        let done = {
            let mut tells: Vec<_> =
                self.nodes.iter().map(|_| |event: &Value| talk.event(event)).collect();
            // Each node's events are told while the others' are, and while the work goes on.
            let mut work: futures::future::LocalBoxFuture<'_, Result<T, Stop>> = Box::pin(work);
            for (node, tell) in self.nodes.iter_mut().zip(&mut tells) {
                work = Box::pin(node.beside(work, tell));
            }
            work.await
        };
        let mut stopped = Ok(());
        for node in &mut self.nodes {
            let ended = node.stop(&mut |event| talk.event(event)).await;
            stopped = stopped.and(ended);
        }
        let done = done?;
        stopped?;
        Ok(done)
    }
}

/// Boots one node in the command's directory, or several below it, and makes a cluster of them.
pub(super) async fn boot(
    context: &Context,
    image: &Path,
    count: usize,
    talk: &Talk,
) -> Result<(Running, Vec<Place>), Stop> {
    if count == 1 {
        talk.head(1, &format!("boot {}", image.display()));
        let node = booted(image, context.node(), talk).await?;
        return Ok((Running { nodes: vec![node] }, vec![Place::alone(context.node())]));
    }
    talk.head(1, &format!("boot {count} nodes of {}, and make a cluster of them", image.display()));
    let text = files::read_text(image, MAX_IMAGE_BYTES)?;
    up::prepare_directory(context.node())?;
    let (mut nodes, mut places) = (Vec::new(), Vec::new());
    for index in 1..=count {
        let name = format!("node {index}");
        talk.line(&format!("{name}:"));
        let directory = context.node().join(format!("node-{index}"));
        let own = context.node().join(format!("node-{index}.toml"));
        let (text, memory) = addressed(&text)?;
        files::write(&own, text.as_bytes(), files::PUBLIC)?;
        nodes.push(booted(&own, &directory, talk).await?);
        places.push(Place { name, directory, number: String::new(), memory });
    }
    // Dropping the nodes ends them.
    cluster(context, &mut places, talk).await?;
    Ok((Running { nodes }, places))
}

async fn booted(image: &Path, directory: &Path, talk: &Talk) -> Result<Node, Stop> {
    let mut node = Node::start(&signed(image, directory)?, directory)?;
    talk.event(node.image());
    talk.line(&format!("kernel: {}", node.isolation()));
    let mut tell = |event: &Value| talk.event(event);
    let ready = tokio::select! {
        ready = node.until_ready(&mut tell) => ready,
        asked = interrupted() => Err(asked.map_or_else(Stop::Fault, |()| Stop::Interrupted)),
    };
    match ready {
        Ok(()) => Ok(node),
        Err(stop) => {
            // Why it did not start is the failure to report.
            let _ = node.stop(&mut tell).await;
            Err(stop)
        }
    }
}

/// The image with a loopback address that is free in the place of each that it names, and that of its memory
/// service.
fn addressed(image: &str) -> Result<(String, Option<SocketAddr>), Fault> {
    let mut image: DocumentMut =
        image.parse().map_err(|error| Fault::malformed(format!("the image: {error}")))?;
    let devices = image.get_mut("device").and_then(Item::as_table_like_mut);
    // Held until all are found, so that none is found twice.
    let (mut held, mut memory, mut found) = (Vec::new(), None, false);
    for (name, device) in devices.into_iter().flat_map(|devices| devices.iter_mut()) {
        let device = device.as_table_like_mut();
        let Some(udp) = device.and_then(|device| device.get_mut("udp")) else { continue };
        let named: SocketAddr =
            udp.as_str().and_then(|text| text.parse().ok()).ok_or_else(|| {
                Fault::malformed(format!(
                    "the address of device '{}' is HOST:PORT in numbers",
                    name.get()
                ))
            })?;
        let mut own = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        if named.port() != 0 {
            let socket = UdpSocket::bind(own).map_err(Fault::internal)?;
            own = socket.local_addr().map_err(Fault::internal)?;
            held.push(socket);
        }
        if name == "memory" {
            memory = Some(own);
        }
        *udp = toml_edit::value(own.to_string());
        found = true;
    }
    if !found {
        return Err(Fault::malformed(
            "this image gives no service a UDP socket, so its nodes make no cluster: see images/cluster.toml",
        ));
    }
    Ok((image.to_string(), memory))
}

/// A path as an argument.
fn word(path: &Path) -> Result<&str, Fault> {
    path.to_str().ok_or_else(|| {
        Fault::malformed(format!("{}: choose a directory with a plain name", path.display()))
    })
}

/// Makes a cluster of the nodes, as their operator would.
async fn cluster(context: &Context, places: &mut [Place], talk: &Talk) -> Result<(), Stop> {
    let desk = context.node().join("desk");
    make_closed(&desk)?;
    let file = |name: &str| desk.join(name);
    let (root, bundle) = (file("root.key"), file("bundle.json"));
    let (root, bundle) = (word(&root)?, word(&bundle)?);
    let (issuer, own) = (file("issuer.key"), file("issuer.pub"));
    let (issuer, own) = (word(&issuer)?, word(&own)?);
    let (svid, certificate) = (file("svid.pem"), file("certificate.pem"));
    let (svid, certificate) = (word(&svid)?, word(&certificate)?);
    let signing = ["--root", root, "--bundle", bundle];
    if !Path::new(root).exists() {
        inner(&desk, &[&["cluster", "init", "demo.example"][..], &signing].concat()).await?;
        inner(&desk, &["image", "keygen", issuer]).await?;
        inner(&desk, &[&["cluster", "issuer", own][..], &signing].concat()).await?;
    }
    let mut addresses = Vec::new();
    for place in places.iter_mut() {
        let status = place.run(&["network", "status"]).await?;
        let text = |key: &str| status[key].as_str().unwrap_or_default().to_owned();
        place.number = text("node");
        let who = format!("node/{}/service/network", place.number);
        let sign = ["cluster", "svid", &who, &text("key"), "--issuer", issuer, "--out", svid];
        place.run(&sign).await?;
        place.run(&["network", "join", svid, "--bundle", bundle]).await?;
        let home = format!("node/{}", place.number);
        let certify =
            ["cluster", "issuer", &text("issuer_key"), "--home", &home, "--out", certificate];
        place.run(&[&certify[..], &signing].concat()).await?;
        place.run(&["network", "certify", certificate]).await?;
        addresses.push((home, text("address")));
    }
    for (index, place) in places.iter().enumerate() {
        for (other, (number, address)) in addresses.iter().enumerate() {
            if other != index {
                place.run(&["peers", "add", number, "--at", address]).await?;
            }
        }
    }
    for place in places.iter() {
        vouched(place).await?;
        talk.line(&format!(
            "{}: node/{}…",
            place.name,
            &place.number[..12.min(place.number.len())]
        ));
    }
    talk.held("each is vouched for by another, and lets in nobody but the others");
    Ok(())
}

/// Waits until the services that the demo uses have SVIDs.
async fn vouched(place: &Place) -> Result<(), Stop> {
    let begun = Instant::now();
    loop {
        let status = place.run(&["network", "status"]).await?;
        let has = |name: &&str| {
            let services = status["services"].as_array().map(Vec::as_slice).unwrap_or_default();
            let one = services.iter().find(|one| one["service"] == **name);
            one.is_some_and(|one| one["until_s"].as_u64().unwrap_or(0) > 0)
        };
        if NEEDED.iter().all(has) {
            return Ok(());
        }
        if begun.elapsed() > VOUCHED {
            return Err(unexpected(format!("nobody vouches for {}", place.name)).into());
        }
        interruptible(async {
            tokio::time::sleep(LOOK).await;
            Ok(())
        })
        .await?;
    }
}

/// A tenant's way to a node's memory service from elsewhere: `distos connect`, a process of its own that ends with
/// this.
pub(super) struct Line {
    process: Child,
    /// Has `run/memory.sock`, as a node's directory has.
    pub(super) directory: PathBuf,
}

impl Drop for Line {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Lets `name` of the tenants at `home` in from elsewhere, and connects there as that tenant does, with an SVID
/// of its own.
pub(super) async fn connect(context: &Context, home: &Place, name: &str) -> Result<Line, Stop> {
    let address = home.memory.ok_or_else(|| unexpected("the memory service has no address"))?;
    let desk = context.node().join("desk");
    let tenants = home.directory.join("tenants");
    let (cap, key) = (tenants.join(format!("{name}.cap")), tenants.join(format!("{name}.pub")));
    let (svid, bundle) = (tenants.join(format!("{name}.pem")), desk.join("bundle.json"));
    let issuer = desk.join("issuer.key");
    let shown = home.run(&["cluster", "did", word(&key)?]).await?;
    let agent = shown["id"].as_str().and_then(|id| id.strip_prefix("did:key:"));
    let agent = agent.ok_or_else(|| unexpected("a tenant's key has no name"))?;
    let who = format!("tenant/{name}/agent/{agent}");
    let sign =
        ["cluster", "svid", &who, word(&key)?, "--issuer", word(&issuer)?, "--out", word(&svid)?];
    home.run(&sign).await?;
    home.run(&["peers", "add", &format!("tenant/{name}")]).await?;
    let directory = context.node().join(format!("{name}-elsewhere"));
    make_closed(&directory.join("run"))?;
    let socket = directory.join("run/memory.sock");
    // One that an earlier run has left.
    let _ = std::fs::remove_file(&socket);
    let program = std::env::current_exe().map_err(Fault::internal)?;
    let mut command = Command::new(&program);
    command.args(["connect", &address.to_string(), "--as", word(&cap)?, "--entry", "regions"]);
    command.args(["--svid", word(&svid)?, "--bundle", word(&bundle)?]);
    command.args(["--listen", &format!("unix:{}", word(&socket)?)]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let process = command.spawn().map_err(|e| io_fault(&program, &e))?;
    let mut line = Line { process, directory };
    let begun = Instant::now();
    while !socket.exists() {
        let ended = line.process.try_wait().map_err(Fault::internal)?;
        if ended.is_some() || begun.elapsed() > LET_IN {
            return Err(unexpected(format!("{name} is not let in from elsewhere")).into());
        }
        interruptible(async {
            tokio::time::sleep(LOOK).await;
            Ok(())
        })
        .await?;
    }
    Ok(line)
}

/// What holds for the cluster's audit logs together.
pub(super) fn together(logs: Vec<Value>) -> Value {
    match logs.len() {
        1 => logs.into_iter().next().unwrap_or_default(),
        _ => json!(logs),
    }
}

/// The tenant `name` at a node.
pub(super) fn tenant_at(place: &Place, name: &str) -> Result<Holder, Fault> {
    let file = place.directory.join("tenants").join(format!("{name}.cap"));
    Holder::load(&file, Some(&place.directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_of_one_machine_has_addresses_of_its_own_and_nobody_elses() {
        let image = include_str!("../../../../../images/cluster.toml");
        let (one, memory) = addressed(image).unwrap();
        let (other, _) = addressed(image).unwrap();
        assert_eq!(one.matches("udp = \"127.0.0.1:").count(), image.matches("udp = \"").count());
        assert!(!one.contains("0.0.0.0:7"), "{one}");
        assert!(memory.is_some_and(|memory| one.contains(&memory.to_string())));
        // What makes its own port each time still does.
        assert_eq!(one.matches("127.0.0.1:0\"").count(), image.matches("0.0.0.0:0\"").count());
        assert_eq!(one.lines().count(), other.lines().count());
        // However it is written, and never on other addresses than loopback.
        let odd = image.replace("udp = \"0.0.0.0:7401\"", "  udp=\"0.0.0.0:7401\" # here");
        assert!(!addressed(&odd).unwrap().0.contains("0.0.0.0"));
        assert!(addressed(include_str!("../../../../../images/single.toml")).is_err());
    }
}
