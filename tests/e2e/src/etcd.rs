//! A store of three etcd members, each a process of its own, with TLS on all sides. What they say to one another goes
//! through here, so that one can be cut off from the others and still be reached by its clients.
//!
//! Everything here panics if a member does not do what it should.

use std::fs;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::{eventually, repository};

/// How many there are.
const MEMBERS: usize = 3;
/// How long they may take to agree on a leader.
pub const AGREED: Duration = Duration::from_secs(60);
const OWN: &str = "the test's own files, sockets and commands";

/// Which members are cut off from the others, and what they say to one another now.
#[derive(Default)]
struct Links {
    processes: [u32; MEMBERS],
    is_cut: [bool; MEMBERS],
    open: Vec<(usize, usize, TcpStream)>,
}

/// Three members. They end with this.
pub struct Store {
    directory: tempfile::TempDir,
    clients: Vec<u16>,
    peers: Vec<u16>,
    /// Where each is reached by the others.
    between: Vec<u16>,
    members: Vec<Option<Child>>,
    links: Arc<Mutex<Links>>,
}

impl Store {
    /// Starts three members, and waits until they answer.
    pub fn start() -> Store {
        let directory = tempfile::tempdir().expect(OWN);
        certify(directory.path());
        let links = Arc::new(Mutex::new(Links::default()));
        let free = |_| TcpListener::bind("127.0.0.1:0").expect(OWN);
        // Open at the same time, and so different.
        let open: Vec<TcpListener> = (0..2 * MEMBERS).map(free).collect();
        let ports: Vec<u16> =
            open.iter().map(|open| open.local_addr().expect(OWN).port()).collect();
        drop(open);
        let (clients, peers) = (ports[..MEMBERS].to_vec(), ports[MEMBERS..].to_vec());
        let mut between = Vec::new();
        for (to, port) in peers.iter().enumerate() {
            let listener = TcpListener::bind("127.0.0.1:0").expect(OWN);
            between.push(listener.local_addr().expect(OWN).port());
            let (links, at) = (links.clone(), SocketAddr::from(([127, 0, 0, 1], *port)));
            // It ends with the test's process.
            std::thread::spawn(move || pass_on(&listener, to, at, &links));
        }
        let members = (0..MEMBERS).map(|_| None).collect();
        let mut store = Store { directory, clients, peers, between, members, links };
        for member in 0..MEMBERS {
            store.restart(member);
        }
        for member in 0..MEMBERS {
            store.wait_for(member);
        }
        store
    }

    /// A file of this store: `ca.pem`, `client.pem`, `client-key.pem`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The same, as text.
    pub fn text(&self, name: &str) -> String {
        self.file(name).to_str().expect(OWN).to_owned()
    }

    /// Where clients reach a member.
    pub fn endpoint(&self, member: usize) -> String {
        format!("https://127.0.0.1:{}", self.clients[member])
    }

    /// Starts a member that is not there, with what it has on disk.
    pub fn restart(&mut self, member: usize) {
        assert!(self.members[member].is_none(), "it runs");
        let name = |member: usize| format!("m{member}");
        let address = |port: u16| format!("https://127.0.0.1:{port}");
        let all: Vec<String> = (0..MEMBERS)
            .map(|one| format!("{}={}", name(one), address(self.between[one])))
            .collect();
        let log = fs::File::create(self.file(&format!("m{member}.log"))).expect(OWN);
        let mut command = Command::new(etcd());
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut option = |name: &str, value: &str| {
            command.arg(format!("--{name}={value}"));
        };
        option("name", &name(member));
        option("data-dir", &self.text(&format!("m{member}")));
        option("listen-client-urls", &address(self.clients[member]));
        option("advertise-client-urls", &address(self.clients[member]));
        option("listen-peer-urls", &address(self.peers[member]));
        option("initial-advertise-peer-urls", &address(self.between[member]));
        option("initial-cluster", &all.join(","));
        option("initial-cluster-state", "new");
        for (side, cert, key, ca) in [
            ("", "cert-file", "key-file", "trusted-ca-file"),
            ("peer-", "cert-file", "key-file", "trusted-ca-file"),
        ] {
            option(&format!("{side}{cert}"), &self.text("member.pem"));
            option(&format!("{side}{key}"), &self.text("member-key.pem"));
            option(&format!("{side}{ca}"), &self.text("ca.pem"));
            option(&format!("{side}client-cert-auth"), "true");
        }
        option("logger", "zap");
        let child = command.spawn().expect("etcd starts: `make etcd` fetches it");
        self.links.lock().expect(OWN).processes[member] = child.id();
        self.members[member] = Some(child);
    }

    /// Waits until a member answers together with a majority.
    pub fn wait_for(&self, member: usize) {
        let looked = |name: &str| fs::read_to_string(self.file(name)).unwrap_or_default();
        let log = format!("m{member}.log");
        eventually("etcd serves its clients", AGREED, || {
            looked(&log).contains("serving client traffic").then_some(())
        });
    }

    /// Ends a member at once.
    pub fn kill(&mut self, member: usize) {
        let mut child = self.members[member].take().expect("it runs");
        child.kill().expect(OWN);
        child.wait().expect(OWN);
    }

    /// Cuts a member off from the others; its clients reach it.
    pub fn cut(&self, member: usize) {
        let mut links = self.links.lock().expect(OWN);
        links.is_cut[member] = true;
        for (from, to, stream) in &links.open {
            if [*from, *to].contains(&member) {
                // One that has ended is as good.
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }

    /// Takes that back.
    pub fn mend(&self, member: usize) {
        self.links.lock().expect(OWN).is_cut[member] = false;
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        for child in self.members.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            for member in 0..MEMBERS {
                let log = fs::read_to_string(self.file(&format!("m{member}.log")));
                let log = log.unwrap_or_default();
                let from = log.char_indices().rev().nth(3000).map_or(0, |(at, _)| at);
                eprintln!("the end of what etcd {member} says:\n{}", &log[from..]);
            }
        }
    }
}

/// The program: as `make etcd` unpacks it, or as the machine has it.
fn etcd() -> PathBuf {
    let unpacked = repository().join("target/etcd/usr/bin/etcd");
    if unpacked.exists() { unpacked } else { PathBuf::from("etcd") }
}

/// An authority of the store's own, a certificate for its members, and one for a client.
fn certify(directory: &Path) {
    let openssl = |args: &[&str]| {
        let made = Command::new("openssl").args(args).current_dir(directory).output().expect(OWN);
        assert!(made.status.success(), "{args:?}: {}", String::from_utf8_lossy(&made.stderr));
    };
    let key = |name: &str| format!("{name}-key.pem");
    let new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
    let new = [&new[..], &["-nodes", "-days", "2", "-subj"]].concat();
    for own in ["ca", "strangers"] {
        let subject = format!("/CN={own}");
        let files = ["-keyout", &key(own), "-out", &format!("{own}.pem")];
        openssl(&[&new[..], &[&subject], &files].concat());
    }
    for (name, by) in [("member", "ca"), ("client", "ca"), ("stranger", "strangers")] {
        let subject = format!("/CN={name}");
        let signed = ["-CA", &format!("{by}.pem"), "-CAkey", &key(by)];
        let says = [
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-addext",
            "extendedKeyUsage=serverAuth,clientAuth",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
        ];
        let files = ["-keyout", &key(name), "-out", &format!("{name}.pem")];
        openssl(&[&new[..], &[&subject], &signed, &says, &files].concat());
    }
}

/// Passes on what other members say to this one, unless one of both is cut off.
fn pass_on(listener: &TcpListener, to: usize, at: SocketAddr, links: &Arc<Mutex<Links>>) {
    for arrived in listener.incoming() {
        let Ok(arrived) = arrived else { continue };
        let Ok(source) = arrived.peer_addr() else { continue };
        let mut known = links.lock().expect(OWN);
        // The members all come from one address: whose socket it is, the system knows.
        let from = known.processes.iter().position(|process| has_socket(*process, source.port()));
        let Some(from) = from.filter(|from| !known.is_cut[*from] && !known.is_cut[to]) else {
            continue;
        };
        let Ok(onwards) = TcpStream::connect(at) else { continue };
        let both = || -> io::Result<_> {
            Ok([
                (arrived.try_clone()?, onwards.try_clone()?),
                (onwards.try_clone()?, arrived.try_clone()?),
            ])
        };
        let Ok(both) = both() else { continue };
        for (mut reads, mut writes) in both {
            known.open.extend(reads.try_clone().map(|stream| (from, to, stream)));
            std::thread::spawn(move || {
                let _ = io::copy(&mut reads, &mut writes);
                let _ = writes.shutdown(Shutdown::Write);
            });
        }
    }
}

/// Whether a process has the socket whose port on loopback this is.
fn has_socket(process: u32, port: u16) -> bool {
    let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let local = format!("0100007F:{port:04X}");
    let inode = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut inode = inode.filter(|words| words.get(1) == Some(&local.as_str()));
    let Some(inode) = inode.find_map(|words| words.get(9).map(|inode| format!("socket:[{inode}]")))
    else {
        return false;
    };
    let Ok(descriptors) = fs::read_dir(format!("/proc/{process}/fd")) else { return false };
    descriptors
        .filter_map(Result::ok)
        .filter_map(|one| fs::read_link(one.path()).ok())
        .any(|link| link.to_str() == Some(&inode))
}
