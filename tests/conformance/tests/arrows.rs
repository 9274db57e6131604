//! Who may depend on whom. A crate that reaches into another room is found here, before somebody
//! relies on it.
#![allow(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// A crate's folder, and its dependencies within the workspace, by folder; and its external ones.
struct Room {
    inside: Vec<String>,
    inside_tests: Vec<String>,
    outside: Vec<String>,
}

fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(distos_conformance::root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

fn rooms() -> BTreeMap<String, Room> {
    let root = distos_conformance::root();
    packages().iter().map(|package| room(&root, package)).collect()
}

fn room(root: &Path, package: &Value) -> (String, Room) {
    let folder =
        |path: &str| Path::new(path).strip_prefix(root).unwrap().to_str().unwrap().to_owned();
    let mut room = Room { inside: Vec::new(), inside_tests: Vec::new(), outside: Vec::new() };
    for dependency in package["dependencies"].as_array().unwrap() {
        let is_test = dependency["kind"] == "dev";
        match dependency["path"].as_str() {
            Some(path) if is_test => room.inside_tests.push(folder(path)),
            Some(path) => room.inside.push(folder(path)),
            None if is_test => {}
            None => room.outside.push(dependency["name"].as_str().unwrap().to_owned()),
        }
    }
    let manifest = folder(package["manifest_path"].as_str().unwrap());
    (manifest.trim_end_matches("/Cargo.toml").to_owned(), room)
}

/// What a room may depend on; `None` if it may depend on everything but tests.
fn allowed(room: &str) -> Option<&'static [&'static str]> {
    const KERNEL_AND_CAPS: &[(&str, &[&str])] = &[
        ("kernel/abi", &[]),
        ("kernel/core", &["kernel/abi"]),
        (
            "kernel/host",
            &["kernel/abi", "kernel/core", "caps/types", "caps/table", "caps/rpc", "schemas"],
        ),
        ("schemas", &[]),
        ("caps/types", &["kernel/abi"]),
        ("caps/table", &["kernel/abi"]),
        ("caps/lease", &["kernel/abi"]),
        ("caps/identity", &["kernel/abi", "caps/types"]),
        ("caps/evidence", &["kernel/abi"]),
        ("caps/collateral", &["caps/evidence"]),
        ("caps/appraisal", &["kernel/abi", "caps/types", "caps/identity", "caps/evidence"]),
        ("caps/membership", &["kernel/abi", "caps/types", "caps/identity"]),
        ("caps/delivery", &["kernel/abi", "caps/types"]),
        ("caps/erasing", &[]),
        ("caps/rpc", &["kernel/abi", "caps/types", "caps/table", "caps/lease", "schemas"]),
        ("caps/quic", &["kernel/abi", "caps/types", "caps/identity", "caps/rpc", "schemas"]),
        ("caps/noise", &["kernel/abi", "caps/types", "caps/rpc"]),
        ("caps/client", &["kernel/abi", "caps/types", "caps/rpc", "caps/noise", "schemas"]),
    ];
    if room == "services/node" || room.starts_with("tests/") {
        return None;
    }
    if room == "services/workload" {
        // It is no vat, and reaches nobody itself.
        return Some(&["kernel/abi", "caps/types", "caps/identity"]);
    }
    if room == "services/etcd" {
        // Nor is this one, and it reaches the store alone.
        return Some(&["kernel/abi", "caps/types", "caps/identity", "caps/membership"]);
    }
    if room.starts_with("services/") {
        return Some(&[
            "kernel/abi",
            "caps/types",
            "caps/identity",
            "caps/evidence",
            "caps/collateral",
            "caps/appraisal",
            "caps/membership",
            "caps/delivery",
            "caps/rpc",
            "caps/noise",
            "caps/quic",
            "caps/client",
            "schemas",
        ]);
    }
    let (_, allowed) =
        KERNEL_AND_CAPS.iter().find(|(name, _)| *name == room).unwrap_or_else(|| {
            panic!(
                "the new room {room} has no arrows yet: add them here and in docs/architecture.md"
            )
        });
    Some(allowed)
}

#[test]
fn no_room_depends_on_a_room_that_it_must_not_know() {
    let mut wrong = Vec::new();
    for (name, room) in rooms() {
        let Some(allowed) = allowed(&name) else { continue };
        let stray = room.inside.iter().filter(|on| !allowed.contains(&on.as_str()));
        wrong.extend(stray.map(|on| format!("{name} -> {on}")));
    }
    assert!(wrong.is_empty(), "these arrows are not in DistOS's design: {wrong:#?}");
}

#[test]
fn no_service_knows_another_services_crate_not_even_in_its_tests() {
    for (name, room) in rooms() {
        if name == "services/node" || name.starts_with("tests/") {
            continue;
        }
        for on in room.inside.iter().chain(&room.inside_tests) {
            assert!(!on.starts_with("services/"), "{name} -> {on}: services meet through schemas");
        }
    }
}

#[test]
fn nothing_depends_on_tests_but_other_tests() {
    for (name, room) in rooms() {
        if name.starts_with("tests/") {
            continue;
        }
        for on in room.inside.iter().chain(&room.inside_tests) {
            assert!(!on.starts_with("tests/"), "{name} -> {on}");
        }
    }
}

/// What shows the whole state of the kernel's core to tests is not in what people run.
#[test]
fn nothing_but_tests_sees_inside_the_kernels_core() {
    let mut seen_by = Vec::new();
    for package in packages() {
        let manifest = package["manifest_path"].as_str().unwrap().to_owned();
        for dependency in package["dependencies"].as_array().unwrap() {
            let features = dependency["features"].as_array().unwrap();
            if dependency["name"] == "distos-core" && features.iter().any(|f| f == "inspect") {
                seen_by.push(manifest.clone());
            }
        }
    }
    let tests = distos_conformance::root().join("tests/specs/Cargo.toml");
    assert_eq!(seen_by, [tests.to_str().unwrap()]);
}

/// What DistOS is measured beside must not come to be what it is made of. One service speaks gRPC to programs
/// that know nothing else.
#[test]
fn peers_are_known_to_the_benchmark_alone() {
    let rooms = rooms();
    let grpc: &[&str] = &["services/workload"];
    let peers = [
        ("biscuit-auth", &[][..]),
        ("macaroon", &[]),
        ("redis", &[]),
        ("tonic", grpc),
        ("tonic-prost", grpc),
    ];
    let measured = &rooms["tests/bench"].outside;
    for (peer, _) in peers {
        assert!(measured.iter().any(|on| on == peer), "{peer} is no peer any more: take it off");
    }
    for (name, room) in rooms.iter().filter(|(name, _)| *name != "tests/bench") {
        let may = |on: &str| {
            let peer = peers.iter().find(|(peer, _)| *peer == on);
            peer.is_none_or(|(_, rooms)| rooms.contains(&name.as_str()))
        };
        let stray: Vec<_> = room.outside.iter().filter(|on| !may(on)).collect();
        assert!(stray.is_empty(), "{name} -> {stray:?}");
    }
}

/// Whoever speaks to a store is no vat, and brings much with it.
#[test]
fn one_room_alone_speaks_to_etcd() {
    for (name, room) in rooms() {
        let may = name == "services/etcd";
        assert_eq!(room.outside.iter().any(|on| on == "etcd-client"), may, "{name}");
    }
}

/// Whoever reads policies brings a language with it: one room does, and hands out what they say.
#[test]
fn one_room_alone_reads_policies_in_cedar() {
    for (name, room) in rooms() {
        let reads = room.outside.iter().any(|on| on.starts_with("cedar-policy"));
        assert_eq!(reads, name == "caps/appraisal", "{name}");
    }
}

#[test]
fn the_kernels_core_depends_on_nobody_elses_code() {
    let rooms = rooms();
    for name in ["kernel/core", "kernel/abi"] {
        assert!(rooms[name].outside.is_empty(), "{name} needs {:?}", rooms[name].outside);
    }
}
