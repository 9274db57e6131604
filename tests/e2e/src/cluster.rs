//! Clusters as their operators make them: a desk with the root's and an issuer's keys, and nodes that join, each
//! a boot of its own on this machine.
//!
//! Everything here panics if a command does not do what it should.

use std::fs;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::images::replaced;
use crate::watch::Watched;
use crate::{COMMAND_TIMEOUT, Node, Output, distos, eventually, repository, run, wordcount};

/// How long a node may take to be vouched for by another.
pub const VOUCHED: Duration = Duration::from_secs(30);
/// The services of a node of a cluster, in the order of their ports in its image.
pub const SERVICES: [&str; 8] =
    ["network", "memory", "scheduler", "attestation", "audit", "gpu", "node", "secrets"];

/// Where a cluster is made: the root's and an issuer's keys.
pub struct Desk(tempfile::TempDir);

impl Desk {
    /// A new cluster, with an issuer that is on no node.
    pub fn set_up() -> Desk {
        let desk = Desk(tempfile::tempdir().expect("the test's own files, sockets and commands"));
        desk.ok(&["cluster", "init", "demo.example"]);
        desk.ok(&["image", "keygen", "issuer.key"]);
        desk.ok(&["cluster", "issuer", "issuer.pub"]);
        desk
    }

    /// A file of this desk.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The same, as text.
    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("the test's own files, sockets and commands").to_owned()
    }

    /// A command of `distos`, to be run here.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(distos());
        command.args(args).current_dir(self.0.path());
        command
    }

    /// Runs it.
    pub fn run(&self, args: &[&str]) -> Output {
        run(self.command(args), b"", COMMAND_TIMEOUT)
    }

    /// Runs it, and returns what it prints.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.code, 0, "{args:?}: {}", output.stderr);
        output.text()
    }

    /// An SVID for a tenant's key, as `NAME.pem` beside its capability file.
    pub fn agent(&self, node: &Node, name: &str) {
        for extension in ["cap", "key", "pub"] {
            let file = format!("{name}.{extension}");
            fs::copy(node.file(&file), self.path(&file))
                .expect("the test's own files, sockets and commands");
        }
        let key = format!("{name}.pub");
        let document: Value = serde_json::from_str(&self.ok(&["cluster", "did", &key, "--json"]))
            .expect("the test's own files, sockets and commands");
        let key_name = document["id"]
            .as_str()
            .expect("the test's own files, sockets and commands")
            .strip_prefix("did:key:")
            .expect("the test's own files, sockets and commands");
        self.ok(&["cluster", "svid", &format!("tenant/{name}/agent/{key_name}"), &key]);
    }
}

/// A node and where its services listen.
pub struct Member {
    /// The node.
    pub node: Node,
    /// Its number.
    pub number: String,
    /// The address at which they are reached.
    pub host: &'static str,
    /// Of its services, in the order of [`SERVICES`].
    pub ports: Vec<u16>,
}

/// Where nodes are reached that have no network of their own.
pub const LOOPBACK: &str = "127.0.0.1";

/// Ports that nobody has now. They are told apart by being open at the same time.
pub fn ports() -> Vec<u16> {
    let open: Vec<UdpSocket> = SERVICES
        .iter()
        .map(|_| {
            UdpSocket::bind("127.0.0.1:0").expect("the test's own files, sockets and commands")
        })
        .collect();
    open.iter()
        .map(|socket| {
            socket.local_addr().expect("the test's own files, sockets and commands").port()
        })
        .collect()
}

impl Member {
    /// A node that has joined the cluster of `desk`, signs for others, and knows none of them.
    pub fn join(desk: &Desk, svid_s: u32) -> Member {
        let (node, ports) = alone(svid_s);
        Member::of(desk, node, LOOPBACK, ports)
    }

    /// The same of a node that runs already, and is reached there.
    pub fn of(desk: &Desk, node: Node, host: &'static str, ports: Vec<u16>) -> Member {
        let status = node.json(&["network", "status"]);
        let text = |key: &str| {
            status[key].as_str().expect("the test's own files, sockets and commands").to_owned()
        };
        let number = text("node");
        let me = format!("node/{number}/service/network");
        desk.ok(&["cluster", "svid", &me, &text("key"), "--out", "network.pem"]);
        let bundle = desk.text("bundle.json");
        node.ok(&["network", "join", &desk.text("network.pem"), "--bundle", &bundle]);
        let home = format!("node/{number}");
        let issuer = ["cluster", "issuer", &text("issuer_key"), "--home", &home];
        desk.ok(&[&issuer[..], &["--out", "certificate.pem"]].concat());
        node.ok(&["network", "certify", &desk.text("certificate.pem")]);
        for made in ["network.pem", "certificate.pem"] {
            fs::remove_file(desk.path(made)).expect("the test's own files, sockets and commands");
        }
        Member { node, number, host, ports }
    }

    /// Has others take this node's tokens, which the bundle of `desk` names from now on.
    pub fn vouch_for_tokens(&self, desk: &Desk) {
        let status = self.node.json(&["network", "status"]);
        let text = |key: &str| status[key].as_str().expect("a text").to_owned();
        let home = format!("node/{}", self.number);
        desk.ok(&["cluster", "tokens", &text("token_key"), "--home", &home]);
        self.node.ok(&["network", "join", "--bundle", &desk.text("bundle.json")]);
    }

    /// Where a service of it is reached.
    pub fn address(&self, service: &str) -> String {
        let at = SERVICES
            .iter()
            .position(|name| *name == service)
            .expect("the test's own files, sockets and commands");
        format!("{}:{}", self.host, self.ports[at])
    }

    /// Lets another one in, and says where it is.
    pub fn meet(&self, other: &Member) {
        let peer = format!("node/{}", other.number);
        self.node.ok(&["peers", "add", &peer, "--at", &other.address("network")]);
    }

    /// Until when the SVID of a service holds; `None` while it has none.
    pub fn until_s(&self, service: &str) -> Option<u64> {
        let status = self.node.json(&["network", "status"]);
        let services = status["services"].as_array()?;
        let found = services.iter().find(|one| one["service"] == service)?;
        found["until_s"].as_u64().filter(|until_s| *until_s > 0)
    }
}

/// Two nodes that vouch for one another.
pub fn two(desk: &Desk, svid_s: u32) -> (Member, Member) {
    let (one, other) = (Member::join(desk, svid_s), Member::join(desk, svid_s));
    acquaint(&one, &other);
    (one, other)
}

/// Lets two nodes in at one another, and waits until they vouch for one another.
pub fn acquaint(one: &Member, other: &Member) {
    one.meet(other);
    other.meet(one);
    for member in [one, other] {
        eventually("every service has an SVID", VOUCHED, || {
            SERVICES[1..].iter().all(|service| member.until_s(service).is_some()).then_some(())
        });
    }
}

/// `distos connect` to the memory service of `member`, for `name`; the socket is in `run` of this folder of the desk.
pub fn connect(desk: &Desk, member: &Member, name: &str, folder: &str) -> Watched {
    connect_to(desk, member, ("memory", "regions"), name, folder)
}

/// The same to another service of it, and the entry of the capability file that lives there.
pub fn connect_to(
    desk: &Desk,
    member: &Member,
    (service, entry): (&str, &str),
    name: &str,
    folder: &str,
) -> Watched {
    let run = desk.path(folder).join("run");
    fs::create_dir_all(&run).expect("the test's own files, sockets and commands");
    let (cap, at) = (format!("{name}.cap"), member.address(service));
    let listen = format!("unix:{}", run.join(format!("{service}.sock")).display());
    let command =
        desk.command(&["connect", &at, "--as", &cap, "--entry", entry, "--listen", &listen]);
    let mut connected = Watched::spawn(command);
    let begun = Instant::now();
    while !connected.text().contains("leads to") {
        assert!(begun.elapsed() < VOUCHED, "{}", connected.text());
        assert!(
            connected.run_for(Duration::from_millis(20)),
            "it ended: {}",
            connected.complaints()
        );
    }
    connected
}

/// A node that has joined nothing yet.
pub fn alone(svid_s: u32) -> (Node, Vec<u16>) {
    alone_with(svid_s, str::to_owned)
}

/// The same with another image.
pub fn alone_with(svid_s: u32, change: impl Fn(&str) -> String) -> (Node, Vec<u16>) {
    let ports = ports();
    let image = fs::read_to_string(repository().join("images/cluster.toml"))
        .expect("the test's own files, sockets and commands");
    let image = replaced(&image, "svid_s = \"3600\"", &format!("svid_s = \"{svid_s}\""));
    let image = (7400..).zip(&ports).fold(image, |image, (port, own)| {
        replaced(&image, &format!("0.0.0.0:{port}"), &format!("127.0.0.1:{own}"))
    });
    (Node::boot_with(&change(&image)), ports)
}

/// A line of the text that [`counting`] counts.
pub const TEXT: &str = "nothing holds authority that nobody handed it\n";
/// How often it stands there.
pub const LINES: usize = 20_000;

/// The region `letters` of red's at `home`, and what counts its words at another node.
pub fn counting(home: &Member) -> Vec<String> {
    keep(home, "letters", LINES);
    let module = wordcount();
    let module = module.to_str().expect("the test's own files, sockets and commands");
    let count = ["run", module, "--input", "letters", "--map", "map", "--reduce", "reduce"];
    count.map(str::to_owned).into_iter().chain(over(home)).collect()
}

/// A region of red's at `home`, with so many lines of [`TEXT`].
pub fn keep(home: &Member, region: &str, lines: usize) {
    fs::write(home.node.file("text"), TEXT.repeat(lines))
        .expect("the test's own files, sockets and commands");
    home.node.ok(&["region", "put", region, "text", "--as", "red.cap"]);
}

/// Over the regions that red has at `home`.
pub fn over(home: &Member) -> Vec<String> {
    let [file, there] = red_at(home);
    ["--regions", &file, "--regions-node", &there, "--as", "red.cap"].map(str::to_owned).to_vec()
}

/// The tasks' output is kept by red's memory at `keeper` meanwhile.
pub fn results_at(keeper: &Member) -> Vec<String> {
    let [file, there] = red_at(keeper);
    ["--results", &file, "--results-node", &there].map(str::to_owned).to_vec()
}

/// Red's capability file at a node, and where the node is.
fn red_at(member: &Member) -> [String; 2] {
    [member.node.file("red.cap"), member.node.directory()]
        .map(|path| path.to_str().expect("the test's own files, sockets and commands").to_owned())
}

/// Arguments, as commands take them.
pub fn words(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

/// Counts at this node, and right.
pub fn is_counted(at: &Member, count: &[String]) {
    let counted = at.node.ok(&words(count)).text();
    let numbers: Vec<&str> = counted.split_whitespace().collect();
    let bytes = (TEXT.len() * LINES).to_string();
    assert_eq!(numbers, ["20000", "140000", &bytes], "{counted}");
}

/// A job of red's at one node that goes on for ever over a region that `home` keeps.
pub fn endless(at: &Member, home: &Member, region: &str) -> Watched {
    let text = "(module (memory (export \"memory\") 1) (func (export \"_start\") (loop (br 0))))";
    let module = wat::parse_str(text).expect("a module");
    fs::write(at.node.file("endless.wasm"), module)
        .expect("the test's own files, sockets and commands");
    let run = ["run", "endless.wasm", "--input", region].map(str::to_owned);
    let run: Vec<String> = run.into_iter().chain(over(home)).collect();
    let mut job = Watched::spawn(at.node.command(&words(&run)));
    assert!(job.run_for(Duration::from_secs(1)), "{}", job.text());
    job
}
