//! What is end to end passes through others unread: a tenant's calls to a node, through somebody else's
//! `distos connect` on this machine.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use distos_abi::Fault;
use distos_client::{Connection, fault_of};
use distos_e2e::cluster::{Desk, TEXT, connect, two};
use distos_e2e::holder::{Holder, in_this_process};
use distos_e2e::watch::Watched;
use distos_e2e::{COMMAND_TIMEOUT, Node, wordcount};
use distos_schemas::capability_capnp::capability;
use distos_types::restore_message;
use rustix::process::Signal;

const UNAUTHENTICATED: i32 = 22;
const UNAVAILABLE: i32 = 17;
/// What a session begins with.
const HELLO: &[u8] = b"\xffdn\x01";

/// Which byte of which frame is to be changed.
type Change = Option<(usize, usize)>;

/// Somebody in between, who passes everything on, keeps what it heard, and may change a byte of what is answered.
#[derive(Clone)]
struct Relay {
    heard: Arc<Mutex<Vec<u8>>>,
    change: Arc<Mutex<Change>>,
}

impl Relay {
    /// Listens at `DIR/run/memory.sock`, and passes on to `to`.
    fn start(dir: &Path, to: &Path) -> Relay {
        fs::create_dir_all(dir.join("run")).unwrap();
        let listener = UnixListener::bind(dir.join("run/memory.sock")).unwrap();
        let relay = Relay { heard: Arc::default(), change: Arc::default() };
        let (passing, to) = (relay.clone(), to.to_owned());
        // It ends with the test's process.
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let (near, far) = (near.unwrap(), UnixStream::connect(&to).unwrap());
                let change = *passing.change.lock().unwrap();
                let heard = passing.heard.clone();
                let (from, to) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                std::thread::spawn(move || pass(from, to, &heard));
                let heard = passing.heard.clone();
                std::thread::spawn(move || match change {
                    None => pass(far, near, &heard),
                    Some(change) => change_one(far, near, change),
                });
            }
        });
        relay
    }
}

fn pass(mut from: UnixStream, mut to: UnixStream, heard: &Mutex<Vec<u8>>) {
    let mut bytes = [0; 4096];
    // Whoever ends it, the other hears.
    while let Ok(read @ 1..) = from.read(&mut bytes) {
        heard.lock().unwrap().extend(&bytes[..read]);
        if to.write_all(&bytes[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// Everything has a length here: the card is the first frame, and the answer to the first message the second.
fn change_one(mut from: UnixStream, mut to: UnixStream, (which, at): (usize, usize)) {
    for number in 0.. {
        let mut length = [0; 2];
        if from.read_exact(&mut length).is_err() {
            break;
        }
        let mut frame = vec![0; u16::from_be_bytes(length).into()];
        if from.read_exact(&mut frame).is_err() {
            break;
        }
        if number == which {
            frame[at] ^= 1;
        }
        if to.write_all(&[&length[..], &frame].concat()).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

fn has(heard: &[u8], what: &[u8]) -> bool {
    heard.windows(what.len()).any(|part| part == what)
}

fn text(path: PathBuf) -> String {
    path.to_str().unwrap().to_owned()
}

/// How the capability `regions` of NAME.cap is restored in the clear at a socket, by somebody who does not look at what
/// it asks for.
fn restored(node: &Node, name: &str, socket: &Path) -> Result<(), Fault> {
    let holder = Holder::load(node, name);
    in_this_process(async {
        let connection = Connection::open(socket).await?;
        let chain = holder.chain("regions");
        let fault = connection.restore::<capability::Client>(chain, &holder.secret()).await.err();
        assert!(fault.unwrap().to_string().contains("this connection is not"), "the library looks");
        let door = connection.door();
        let told = door.challenge_request().send().promise.await.map_err(|e| fault_of(&e))?;
        let nonce = told.get().and_then(|told| told.get_nonce()).map_err(|e| fault_of(&e))?;
        let (root, bytes) = (chain.root(), chain.encode());
        let nonce = nonce.try_into().unwrap();
        let message = restore_message(nonce, root.node, &root.vat, &bytes);
        let mut request = door.restore_request();
        request.get().set_chain(&bytes);
        request.get().set_signature(&holder.secret().sign(&message));
        request.send().promise.await.map(drop).map_err(|e| fault_of(&e))
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
    let there = text(heard_at);
    node.ok(&[&put[..], &["--as", "blue.cap", "--node", &there]].concat());
    let heard = relay.heard.lock().unwrap();
    assert!(
        has(&heard, TEXT.as_bytes()) && has(&heard, b"letters") && has(&heard, b"memory"),
        "blue's calls are not read"
    );

    drop(heard);
    let heard_at = desk.path("heard-red");
    let relay = Relay::start(&heard_at, &desk.path("far/run/memory.sock"));
    let there = text(heard_at);
    node.ok(&[&put[..], &["--as", "red.cap", "--node", &there]].concat());
    let got = node.ok(&[&get[..], &["--as", "red.cap", "--node", &there]].concat());
    assert_eq!(got.text(), TEXT.repeat(50));
    let heard = relay.heard.lock().unwrap();
    assert!(heard.starts_with(HELLO) && heard.len() > TEXT.len() * 100, "{} bytes", heard.len());
    for part in [TEXT.as_bytes(), b"holds authority", b"letters", b"memory"] {
        assert!(!has(&heard, part), "the gateway reads {:?}", String::from_utf8_lossy(part));
    }

    // In the clear it is refused, by the gateway's connection and at the node's own socket, and not by red's own
    // `distos connect`, which is its end.
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
    // A byte of the card, of the answer to the first message, and of frames.
    for change in [(0, 20), (0, 60), (1, 0), (1, 40), (2, 0), (3, 5), (4, 20)] {
        *relay.change.lock().unwrap() = Some(change);
        let output = node.cli(&get);
        assert_eq!(output.code, UNAUTHENTICATED, "{change:?}: {}", output.stderr);
        assert!(output.stdout.is_empty(), "{change:?}: something was read");
    }
    // Whoever runs `distos connect` is told, too.
    *relay.change.lock().unwrap() = Some((8, 5));
    let own = node.file("own");
    fs::create_dir_all(own.join("run")).unwrap();
    let listen = format!("unix:{}", text(own.join("run/memory.sock")));
    let through = format!("unix:{}", text(between.join("run/memory.sock")));
    let through =
        ["connect", &through, "--as", "blue.cap", "--entry", "regions", "--listen", &listen];
    let mut connected = Watched::spawn(node.command(&through));
    let begun = Instant::now();
    while !connected.text().contains("leads to") {
        assert!(begun.elapsed() < COMMAND_TIMEOUT, "{}", connected.text());
        assert!(connected.run_for(Duration::from_millis(20)), "{}", connected.text());
    }
    let holder = Holder::load(&node, "blue");
    let lost = in_this_process(async {
        let connection = Connection::open(&own.join("run/memory.sock")).await?;
        let mut fault = Ok(());
        for _ in 0..20 {
            let asked = connection.door().challenge_request().send().promise.await;
            fault = asked.map(drop).map_err(|e| fault_of(&e));
        }
        drop(holder);
        fault
    });
    assert_eq!(i32::from(lost.unwrap_err().code()), UNAVAILABLE);
    connected.signal(Signal::TERM);
    let told = connected.finish(COMMAND_TIMEOUT).stderr;
    assert!(told.contains("changed, left out or repeated"), "{told}");
    *relay.change.lock().unwrap() = None;
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

/// Else whoever reaches the socket keeps a vat busy, fills the audit log, or drowns in it what others do.
#[test]
fn whoever_begins_a_session_and_goes_costs_nobody_anything() {
    let node = Node::boot();
    node.tenants(&["blue"]);
    node.ok(&["tenant", "add", "red", "--end-to-end"]);
    let memory = node.directory().join("run/memory.sock");
    let first = [HELLO, &[0, 192], &[7; 192]].concat();
    let mut hanging = Vec::new();
    // Fewer than one user may have at one time.
    for round in 0..150 {
        let mut stream = UnixStream::connect(&memory).unwrap();
        // Gone at any moment; and one that never comes to its end.
        let said = &first[..round * 4 % (first.len() + 1)];
        let _ = stream.write_all(said);
        if round % 10 == 0 {
            hanging.push(stream);
        }
    }
    for name in ["red", "blue"] {
        node.ok(&["region", "list", "--as", &format!("{name}.cap")]);
    }
    drop(hanging);
    // A message that is nobody's, to whoever waits for the card: that is told, once a second.
    for _ in 0..10 {
        let mut stream = UnixStream::connect(&memory).unwrap();
        stream.write_all(HELLO).unwrap();
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut card = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut card).unwrap();
        stream.write_all(&first[HELLO.len()..]).unwrap();
        assert_eq!(stream.read(&mut card).unwrap(), 0, "it is answered");
    }
    let records = node.ok(&["audit", "list"]).text();
    let told = records.lines().filter(|line| line.contains("an encrypted connection")).count();
    assert!((1..9).contains(&told), "{told} records");
}
