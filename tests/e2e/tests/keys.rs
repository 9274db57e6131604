//! What may reach swap or a core file of a node that runs.
#![allow(clippy::unwrap_used)]

use std::fs;

use distos_e2e::{Node, is_root};
use serde_json::Value;

/// Kibibytes that a process has locked.
fn locked_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Kibibytes of a process in mappings that are locked, left out of core files and kept from
/// children. Only root may look.
fn protected_kib(pid: u32) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let (mut size, mut total) = (0, 0);
    for line in maps.lines() {
        if let Some(kib) = line.strip_prefix("Size:") {
            size = kib.trim().trim_end_matches(" kB").parse().unwrap();
        } else if let Some(flags) = line.strip_prefix("VmFlags:")
            && ["lo", "dd", "dc"].iter().all(|flag| flags.split(' ').any(|f| f == *flag))
        {
            total += size;
        }
    }
    total
}

#[test]
fn the_keys_of_a_running_node_are_locked_in_memory() {
    let node = Node::boot();
    node.tenants(&["red"]);
    fs::write(node.file("data"), [7; 100]).unwrap();
    node.ok(&["region", "put", "data", "data", "--as", "red.cap"]);
    let with_keys = [
        ("kernel", node.kernel_pid()),
        ("audit", node.pid_of("audit")),
        ("memory", node.pid_of("memory")),
    ];
    for (name, pid) in with_keys {
        let locked = locked_kib(pid);
        assert!(locked > 0, "{name}'s key can reach swap");
        if is_root() {
            assert_eq!(protected_kib(pid), locked, "{name}'s key can reach a core file or a child");
        }
    }
    let status = node.json(&["status"]);
    for vat in status["vats"].as_array().unwrap() {
        let name = vat["name"].as_str().unwrap();
        let said = vat["protections"].as_array().unwrap();
        let said = said.iter().find(|p| p["name"] == "keys locked").unwrap();
        assert_eq!(said["enforced"], true, "{name}: {said}");
        // What is said is said of keys that are there.
        let has_key = with_keys.iter().any(|(n, _)| *n == name);
        let detail = said["detail"].as_str().unwrap();
        assert_eq!(detail.contains("holds no key"), !has_key, "{name}: {said}");
        assert_eq!(locked_kib(node.pid_of(name)) > 0, has_key, "{name}");
    }
    let log = node.log();
    let mut events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let kernel = events.find(|event| event["event"] == "kernel").unwrap();
    let said = kernel["protections"].as_array().unwrap();
    assert!(said.iter().any(|p| p["name"] == "keys locked" && p["enforced"] == true), "{kernel}");
}
