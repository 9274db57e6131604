//! What is end to end passes through others unread: a tenant's calls to a node, through somebody else's
//! `distos connect` on this machine.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use distos_abi::Fault;
use distos_client::Connection;
use distos_e2e::cluster::{Desk, TEXT, connect, two};
use distos_e2e::holder::{Holder, in_this_process};
use distos_e2e::{COMMAND_TIMEOUT, Node, wordcount};
use distos_schemas::capability_capnp::capability;
use rustix::process::Signal;

const UNAUTHENTICATED: i32 = 22;
const UNAVAILABLE: i32 = 17;
/// No byte is to be changed.
const NONE: usize = usize::MAX;
/// What a session begins with.
const HELLO: &[u8] = b"\xffdn\x01";

/// Somebody in between, who passes everything on, keeps what it heard, and may change a byte of what is answered.
#[derive(Clone)]
struct Relay {
    heard: Arc<Mutex<Vec<u8>>>,
    change: Arc<AtomicUsize>,
}

impl Relay {
    /// Listens at `DIR/run/memory.sock`, and passes on to `to`.
    fn start(dir: &Path, to: &Path) -> Relay {
        fs::create_dir_all(dir.join("run")).unwrap();
        let listener = UnixListener::bind(dir.join("run/memory.sock")).unwrap();
        let relay = Relay { heard: Arc::default(), change: Arc::new(AtomicUsize::new(NONE)) };
        let (passing, to) = (relay.clone(), to.to_owned());
        // It ends with the test's process.
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let (near, far) = (near.unwrap(), UnixStream::connect(&to).unwrap());
                let change = passing.change.load(Ordering::Relaxed);
                passing.pass(near.try_clone().unwrap(), far.try_clone().unwrap(), NONE);
                passing.pass(far, near, change);
            }
        });
        relay
    }

    fn pass(&self, mut from: UnixStream, mut to: UnixStream, change: usize) {
        let heard = self.heard.clone();
        std::thread::spawn(move || {
            let (mut bytes, mut passed) = ([0; 4096], 0);
            // Whoever ends it, the other hears.
            while let Ok(read @ 1..) = from.read(&mut bytes) {
                heard.lock().unwrap().extend(&bytes[..read]);
                if (passed..passed + read).contains(&change) {
                    bytes[change - passed] ^= 1;
                }
                passed += read;
                if to.write_all(&bytes[..read]).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(Shutdown::Write);
        });
    }

    /// What was said since this was asked last.
    fn heard(&self) -> Vec<u8> {
        std::mem::take(&mut self.heard.lock().unwrap())
    }
}

fn has(heard: &[u8], what: &[u8]) -> bool {
    heard.windows(what.len()).any(|part| part == what)
}

fn text(path: PathBuf) -> String {
    path.to_str().unwrap().to_owned()
}

/// How the capability `regions` of NAME.cap is restored in the clear at a socket.
fn restored(node: &Node, name: &str, socket: &Path) -> Result<(), Fault> {
    let holder = Holder::load(node, name);
    in_this_process(async {
        let connection = Connection::open(socket).await?;
        let chain = holder.chain("regions");
        connection.restore::<capability::Client>(chain, &holder.secret()).await.map(drop)
    })
}

#[test]
fn a_gateway_hears_nothing_of_a_tenant_whose_capabilities_are_end_to_end() {
    let desk = Desk::set_up();
    let (home, _other) = two(&desk, 3600);
    let node = &home.node;
    node.tenants(&["gate", "blue"]);
    node.ok(&["tenant", "add", "red", "--end-to-end"]);
    let told = node.ok(&["cap", "show", "red.cap"]).text();
    assert!(told.contains("end to end"), "{told}");
    for name in ["gate", "red"] {
        desk.agent(node, name);
        node.ok(&["peers", "add", &format!("tenant/{name}")]);
    }
    fs::write(node.file("text"), TEXT.repeat(50)).unwrap();
    let put = ["region", "put", "letters", "text"];
    let get = ["region", "get", "letters"];

    // Blue's calls are heard where they pass, and that is what the relay is there to show.
    let gateway = connect(&desk, &home, "gate", "far");
    let heard_at = desk.path("heard");
    let relay = Relay::start(&heard_at, &desk.path("far/run/memory.sock"));
    let there = text(heard_at.clone());
    node.ok(&[&put[..], &["--as", "blue.cap", "--node", &there]].concat());
    let heard = relay.heard();
    assert!(
        has(&heard, TEXT.as_bytes()) && has(&heard, b"letters") && has(&heard, b"memory"),
        "blue's calls are not read"
    );

    node.ok(&[&put[..], &["--as", "red.cap", "--node", &there]].concat());
    let got = node.ok(&[&get[..], &["--as", "red.cap", "--node", &there]].concat());
    assert_eq!(got.text(), TEXT.repeat(50));
    let heard = relay.heard();
    assert!(heard.starts_with(HELLO) && heard.len() > TEXT.len() * 100, "{} bytes", heard.len());
    for part in [TEXT.as_bytes(), b"holds authority", b"letters", b"memory"] {
        assert!(!has(&heard, part), "the gateway reads {:?}", String::from_utf8_lossy(part));
    }

    // In the clear it is refused, by the gateway's connection and at the node's own socket, and not by red's own
    // connection, behind whose handshake nobody else can be.
    let refused = |socket: &Path| {
        let fault = restored(node, "red", socket).unwrap_err();
        assert_eq!(i32::from(fault.code()), UNAUTHENTICATED, "{fault}");
        assert!(fault.to_string().contains("--end-to-end"), "{fault}");
    };
    refused(&desk.path("far/run/memory.sock"));
    refused(&node.directory().join("run/memory.sock"));
    gateway.signal(Signal::TERM);
    drop(gateway.finish(COMMAND_TIMEOUT));
    fs::remove_dir_all(desk.path("far")).unwrap();
    let own = connect(&desk, &home, "red", "far");
    restored(node, "red", &desk.path("far/run/memory.sock")).unwrap();
    own.signal(Signal::TERM);
    drop(own.finish(COMMAND_TIMEOUT));
    // What it makes is as it is, and the command line knows: at the node itself as well.
    node.ok(&["region", "create", "more", "--bytes", "1", "--as", "red.cap", "--out", "more.cap"]);
    assert!(node.ok(&["cap", "show", "more.cap"]).text().contains("end to end"));
    let count = wordcount();
    let count = ["run", count.to_str().unwrap(), "--input", "letters", "--map", "map"];
    let run = [&count[..], &["--reduce", "reduce", "--as", "red.cap"]].concat();
    let counted = node.ok(&run).text();
    let numbers: Vec<&str> = counted.split_whitespace().collect();
    assert_eq!(numbers[..2], ["50", "350"], "{counted}");
}

#[test]
fn whoever_passes_a_session_on_can_neither_change_it_nor_take_part_in_it() {
    let node = Node::boot();
    node.tenants(&["red", "gate"]);
    node.ok(&["tenant", "add", "blue", "--end-to-end"]);
    fs::write(node.file("text"), TEXT.repeat(50)).unwrap();
    node.ok(&["region", "put", "letters", "text", "--as", "blue.cap"]);
    let memory = node.directory().join("run/memory.sock");
    let between = node.file("between");
    let relay = Relay::start(&between, &memory);
    let there = text(between.clone());
    let get = ["region", "get", "letters", "--as", "blue.cap", "--node", &there];
    node.ok(&get);
    // A byte of the card, of the answer to the first message, of the first frame, and of what is read.
    for at in [1, 40, 120, 170, 200, 900, 2500] {
        relay.change.store(at, Ordering::Relaxed);
        let output = node.cli(&get);
        let expected = [UNAVAILABLE, UNAUTHENTICATED, 16];
        assert!(expected.contains(&output.code), "byte {at}: {} {}", output.code, output.stderr);
        assert!(output.stdout.is_empty(), "byte {at}: something was read");
    }
    relay.change.store(NONE, Ordering::Relaxed);
    node.ok(&get);

    // One session with each side: what red presents in it is not for whoever has made it.
    let (red, gate) = (Holder::load(&node, "red"), Holder::load(&node, "gate"));
    let stolen = in_this_process(async {
        let own = gate.chain("regions");
        let session = Connection::open_end_to_end(&memory, own, &gate.secret()).await?;
        session.restore::<capability::Client>(own, &gate.secret()).await?;
        session.restore::<capability::Client>(red.chain("regions"), &red.secret()).await.map(drop)
    });
    assert_eq!(i32::from(stolen.unwrap_err().code()), UNAUTHENTICATED);

    // Another service answers in place of the one that is meant.
    let scheduler = format!("unix:{}", text(node.directory().join("run/scheduler.sock")));
    let listen = format!("unix:{}", text(node.file("own.sock")));
    let through = ["connect", &scheduler, "--entry", "regions", "--listen", &listen];
    let asked = [&through[..], &["--as", "red.cap", "--end-to-end"]].concat();
    let told = node.refused(&asked, UNAUTHENTICATED);
    assert!(told.contains("memory"), "{told}");
    node.refused(&[&through[..], &["--as", "blue.cap"]].concat(), UNAUTHENTICATED);
}
