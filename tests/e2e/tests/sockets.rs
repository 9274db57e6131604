//! Anybody may connect to a service's socket; nobody can take it from the others that way.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use distos_e2e::Node;

const SERVICES: [&str; 7] =
    ["memory", "scheduler", "attestation", "audit", "gpu", "secrets", "node"];
const SOON: Duration = Duration::from_secs(10);

fn node() -> Node {
    let node = Node::boot();
    node.tenants(&["red"]);
    fs::write(node.file("kept.txt"), "still here").expect("a file");
    node.ok(&["region", "put", "kept", "kept.txt", "--as", "red.cap"]);
    node
}

fn socket(node: &Node, service: &str) -> PathBuf {
    node.directory().join("run").join(format!("{service}.sock"))
}

fn connect(node: &Node, service: &str) -> UnixStream {
    let stream = UnixStream::connect(socket(node, service)).expect("the service listens");
    stream.set_read_timeout(Some(SOON)).expect("a timeout");
    stream.set_write_timeout(Some(SOON)).expect("a timeout");
    stream
}

/// Every service answers others, and none was started again.
fn serves(node: &Node) {
    let started = Instant::now();
    assert_eq!(node.ok(&["region", "get", "kept", "--as", "red.cap"]).text(), "still here");
    node.ok(&["attest", "status"]);
    node.ok(&["gpu", "list"]);
    node.ok(&["audit", "list"]);
    let status = node.json(&["status"]);
    for vat in status["vats"].as_array().expect("vats") {
        assert_eq!(vat["restarts"], 0, "{} ended: {status}", vat["name"]);
    }
    assert!(started.elapsed() < SOON, "others waited {:?}", started.elapsed());
}

/// Writes what may not be taken any more: the service has closed the connection then.
fn pour(stream: &mut UnixStream, bytes: &[u8]) {
    let _ = stream.write_all(bytes);
}

/// Bytes that look random and are the same in each run.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..len).map(step).collect()
}

#[test]
fn noise_on_a_socket_ends_that_connection_only() {
    let node = node();
    for service in SERVICES {
        for seed in 1..20 {
            pour(&mut connect(&node, service), &noise(seed, 40 * seed as usize));
        }
    }
    serves(&node);
}

/// A Cap'n Proto frame begins with the number of segments and their lengths.
#[test]
fn a_huge_length_takes_no_memory_and_ends_that_connection() {
    let node = node();
    let before = node.rss_bytes();
    for service in SERVICES {
        for head in [
            [0u32, u32::MAX],     // one segment of 32 GiB
            [0, 1 << 28],         // of 2 GiB
            [u32::MAX, u32::MAX], // four billion segments
            [511, 1],             // 512 segments
        ] {
            let mut stream = connect(&node, service);
            let bytes: Vec<u8> = head.iter().flat_map(|n| n.to_le_bytes()).collect();
            pour(&mut stream, &bytes);
            pour(&mut stream, &noise(7, 4096));
            let mut answer = Vec::new();
            match stream.read_to_end(&mut answer) {
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
                Err(e) => panic!("{service} keeps a connection that announced {head:?}: {e}"),
            }
        }
    }
    let grown = node.rss_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "the node grew by {grown} bytes");
    serves(&node);
}

#[test]
fn a_connection_that_says_nothing_keeps_nobody_waiting() {
    let node = node();
    let mut half = Vec::new();
    for service in SERVICES {
        for _ in 0..5 {
            half.push(connect(&node, service));
            let mut stream = connect(&node, service);
            pour(&mut stream, &[0, 0, 0, 0, 8, 0]);
            half.push(stream);
        }
    }
    serves(&node);
    drop(half);
    serves(&node);
}

#[test]
fn hundreds_of_connections_to_a_service_do_not_bring_it_down() {
    let mut node = node();
    for service in SERVICES {
        let idle: Vec<_> = (0..300)
            .filter_map(|_| UnixStream::connect(socket(&node, service)).ok())
            .inspect(|s| s.set_nonblocking(true).expect("a socket"))
            .collect();
        assert!(idle.len() > 100, "only {} could connect to {service}", idle.len());
        // Those beyond the limit are closed rather than left hanging.
        let closed = |s: &&UnixStream| matches!((&mut &**s).read(&mut [0]), Ok(0));
        let end = Instant::now() + SOON;
        while idle.iter().filter(closed).count() == 0 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        let closed = idle.iter().filter(closed).count();
        assert!(closed > 0, "{service} has a limit below 300 connections");
        drop(idle);
    }
    serves(&node);
    node.down();
}
