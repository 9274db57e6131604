//! What was acknowledged survives a kernel's death, a service's death and a shutdown (M3, L2), and
//! what was revoked stays dead (C2).
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use distos_e2e::{Node, Process, eventually, kill, wordcount};

const LONG: Duration = Duration::from_secs(20);

/// Bytes that no page repeats.
fn random(len: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    fs::File::open("/dev/urandom").unwrap().take(len).read_to_end(&mut bytes).unwrap();
    bytes
}

/// Red's region `data`; blue may read all of it by live.cap, and might by dead.cap, which is revoked.
fn prepared(node: &Node) -> Vec<u8> {
    node.tenants(&["red", "blue"]);
    let data = random(5 * 65536 + 123);
    fs::write(node.file("data"), &data).unwrap();
    node.ok(&["region", "put", "data", "data", "--as", "red.cap", "--out", "data.cap"]);
    for out in ["live.cap", "dead.cap"] {
        let lend = ["cap", "delegate", "data.cap", "--as", "red.cap", "--to", "blue.pub"];
        node.ok(&[&lend[..], &["--rights", "read", "-o", out]].concat());
        assert!(lent(node, out).stdout == data);
    }
    node.ok(&["cap", "revoke", "dead.cap", "--as", "red.cap"]);
    data
}

fn lent(node: &Node, cap: &str) -> distos_e2e::Output {
    node.cli(&["region", "get", "--cap", cap, "--as", "blue.cap"])
}

/// What a holder of any part can see is as it was.
fn check(node: &Node, data: &[u8]) {
    let get = node.ok(&["region", "get", "data", "--as", "red.cap"]);
    assert!(get.stdout == data, "red reads other bytes than it stored");
    let live = lent(node, "live.cap");
    assert_eq!(live.code, 0, "what red lent blue is gone: {}", live.stderr);
    assert!(live.stdout == data);
    assert_eq!(lent(node, "dead.cap").code, 11, "a revoked capability came back");
    let tenants = node.json(&["status"])["tenants"].clone();
    assert_eq!(tenants.as_array().unwrap().len(), 2, "{tenants}");
}

fn count(node: &Node) -> String {
    let module = wordcount();
    node.ok(&["run", module.to_str().unwrap(), "--input", "data", "--as", "red.cap"]).text()
}

#[test]
fn tenants_find_their_data_and_grants_as_they_were_after_the_kernel_was_killed() {
    let mut node = Node::boot();
    let data = prepared(&node);
    for boot in 2..4 {
        node.crash();
        let said = node.refused(&["region", "list", "--as", "red.cap"], 17);
        assert!(said.contains("distos up"), "{said}");
        node.reboot();
        assert_eq!(node.json(&["status"])["epoch"], boot);
        check(&node, &data);
    }
    count(&node);
    // Quotas are charged as before: dropping gives everything back.
    let used = node.json(&["region", "list", "--as", "red.cap"])["used_bytes"].as_u64().unwrap();
    assert_eq!(used, data.len() as u64);
    node.ok(&["region", "drop", "data", "--as", "red.cap"]);
    assert_eq!(node.json(&["region", "list", "--as", "red.cap"])["used_bytes"], 0);
    assert_eq!(lent(&node, "live.cap").code, 11, "blue reaches a region that is dropped");
    node.crash();
    node.reboot();
    node.refused(&["region", "get", "data", "--as", "red.cap"], 15);
    assert_eq!(lent(&node, "live.cap").code, 11, "a dropped region came back");
}

#[test]
fn tenants_go_on_after_the_memory_service_was_killed() {
    let node = Node::boot();
    let data = prepared(&node);
    count(&node);
    let memory = node.pid_of("memory");
    kill(memory);
    let new = eventually("a new memory service", LONG, || {
        node.try_pid_of("memory").filter(|pid| *pid != memory)
    });
    // A client that is too early is told to try again, and nothing else.
    eventually("a retry that works", LONG, || {
        let output = node.cli(&["region", "get", "data", "--as", "red.cap"]);
        assert!([0, 17].contains(&output.code), "{}: {}", output.code, output.stderr);
        (output.code == 0).then_some(())
    });
    check(&node, &data);
    // The executor's edge to it leads to the new process.
    count(&node);
    let status = node.vat("memory").unwrap();
    assert_eq!(status["restarts"], 1, "{status}");
    assert_eq!(node.pid_of("memory"), new);
    let missing: Vec<_> = status["protections"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|p| p["enforced"] != true)
        .collect();
    assert!(missing.is_empty() || !distos_e2e::is_root(), "not protected again: {missing:?}");
}

#[test]
fn a_tenant_is_told_that_a_volatile_region_is_lost_and_never_reads_zeros() {
    let mut node = Node::boot();
    node.tenants(&["red"]);
    fs::write(node.file("data"), random(100_000)).unwrap();
    node.ok(&["region", "put", "gone", "data", "--volatile", "--as", "red.cap"]);
    node.ok(&["region", "get", "gone", "--as", "red.cap"]);
    let memory = node.pid_of("memory");
    kill(memory);
    let output = eventually("the memory service", LONG, || {
        let output = node.cli(&["region", "get", "gone", "--as", "red.cap"]);
        (output.code != 17).then_some(output)
    });
    assert_eq!(output.code, 23, "{}", output.stderr);
    assert!(output.stderr.contains("volatile") && output.stdout.is_empty(), "{}", output.stderr);
    node.crash();
    node.reboot();
    node.refused(&["region", "get", "gone", "--as", "red.cap"], 23);
    node.ok(&["region", "drop", "gone", "--as", "red.cap"]);
    node.ok(&["region", "put", "gone", "data", "--as", "red.cap"]);
}

#[test]
fn a_tenant_that_stores_while_the_node_dies_can_store_again() {
    let mut node = Node::boot();
    node.tenants(&["red"]);
    fs::write(node.file("data"), random(48 << 20)).unwrap();
    let put = ["region", "put", "big", "data", "--as", "red.cap"];
    for wait_ms in [15, 60, 150] {
        let mut command = node.command(&put);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(wait_ms));
        node.crash();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!([Some(0), Some(17)].contains(&output.status.code()), "{:?} {said}", output.status);
        node.reboot();
        let listed = node.json(&["region", "list", "--as", "red.cap"]);
        for region in listed["regions"].as_array().unwrap() {
            // Whatever is there can be read: each page is old or new.
            assert_eq!(region["name"], "big");
            node.ok(&["region", "get", "big", "--as", "red.cap", "-o", "out"]);
        }
        node.ok(&put);
        node.ok(&["region", "get", "big", "--as", "red.cap", "-o", "out"]);
        assert!(fs::read(node.file("out")).unwrap() == fs::read(node.file("data")).unwrap());
        node.ok(&["region", "drop", "big", "--as", "red.cap"]);
    }
    assert_eq!(node.json(&["region", "list", "--as", "red.cap"])["used_bytes"], 0);
}

#[test]
fn an_operator_who_shuts_a_node_down_leaves_no_process_and_finds_it_as_it_was() {
    let mut node = Node::boot();
    let data = prepared(&node);
    count(&node);
    let all: Vec<Process> = node.processes();
    let count_of = |text: &str| all.iter().filter(|p| p.command.contains(text)).count();
    assert_eq!(count_of("distos kernel"), 1, "{all:?}");
    assert!(count_of("distos vat") >= 7, "{all:?}");
    node.down();
    assert!(all.iter().all(|p| !p.runs()));
    node.reboot();
    check(&node, &data);
}

#[test]
fn an_operators_ctrl_c_ends_the_node_in_order() {
    let mut node = Node::boot();
    let data = prepared(&node);
    let all = node.processes();
    distos_e2e::signal(node.up_pid(), rustix::process::Signal::INT);
    assert_eq!(node.wait_for_end(&all), 0);
    assert!(node.log().contains("\"event\":\"stopped\""), "{}", node.log());
    node.reboot();
    check(&node, &data);
}
