//! Services that were taken over: a probe is started through each service's own entry in the image
//! and tries what nobody handed it (C3). Then one protection after the other is taken away from the
//! machine, and `status` and the probe have to say so.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use distos_e2e::images::with_settings;
use distos_e2e::{Node, eventually, is_root, repository, single_image};
use serde_json::Value;

const PROBE: &str = env!("CARGO_BIN_EXE_distos-probe");
const SERVICES: [&str; 8] =
    ["memory", "attestation", "scheduler", "audit", "gpu", "secrets", "node", "executor"];
/// What each vat's sandbox consists of.
const PROTECTIONS: [&str; 9] = [
    "own uid",
    "no_new_privs",
    "seccomp",
    "landlock",
    "namespaces",
    "rlimits",
    "capabilities",
    "no core dumps",
    "keys locked",
];
/// As root all of them hold. Nobody else may hand out uids.
const UNPRIVILEGED: [&str; 1] = ["own uid"];
const SOON: Duration = Duration::from_secs(60);

/// The image with the probe as the program of these services.
fn probed(services: &[&str], directory: &Path) -> String {
    let mut image = single_image();
    for service in services {
        let builtin = format!("program = \"{service}\"");
        assert_eq!(image.matches(&builtin).count(), 1, "{service}");
        image = image.replace(&builtin, &format!("program = \"{PROBE}\""));
        let other = if *service == "memory" { "audit" } else { "memory" };
        let target = |kind: &str| directory.join(kind).join(other).display().to_string();
        let start = if *service == "scheduler" { ", start = \"executor\"" } else { "" };
        let params =
            format!("other = \"{}\", socket = \"{}.sock\"{start}", target("vats"), target("run"));
        image = with_settings(&image, service, &params);
    }
    image
}

/// A node that is not running yet, with the probe in these places.
fn node(services: &[&str], under: Option<(&Path, &str)>) -> Node {
    let image = single_image();
    let node = match under {
        Some((program, protection)) => Node::under(&image, program, &[protection]),
        None => Node::new(&image),
    };
    node.write_image(&probed(services, &node.directory()));
    node
}

/// What the probes have said, one for each of `count` vats.
fn reports(node: &Node, count: usize) -> Vec<Value> {
    eventually("every probe reports", SOON, || {
        let log = node.log();
        let lines = log.lines().filter_map(|line| line.strip_prefix("PROBE "));
        let found: Vec<Value> = lines.filter_map(|line| serde_json::from_str(line).ok()).collect();
        (found.len() >= count).then_some(found)
    })
}

/// Everything that a probe found open: protections that do not hold, and attempts that were not
/// refused.
fn holes(report: &Value) -> Vec<String> {
    let loose = report["loose"].as_array().into_iter().flatten();
    let mut holes: Vec<String> = loose.map(|name| name.to_string()).collect();
    for (attempt, what) in report["permitted"].as_object().into_iter().flatten() {
        holes.push(format!("{attempt}: {what}"));
    }
    if !is_root() {
        holes.retain(|hole| !UNPRIVILEGED.iter().any(|name| *hole == format!("\"{name}\"")));
    }
    holes
}

#[test]
fn a_service_that_was_taken_over_can_do_nothing_that_nobody_handed_it() {
    let mut node = node(&SERVICES, None);
    node.start();
    let reports = reports(&node, SERVICES.len());
    let mut probed: Vec<&str> = reports.iter().filter_map(|r| r["vat"].as_str()).collect();
    probed.sort_unstable();
    let operators = "executor/operator";
    let all = ["attestation", "audit", operators, "gpu", "memory", "node", "scheduler", "secrets"];
    assert_eq!(probed, all);
    for report in &reports {
        assert!(report["tried"].as_u64() >= Some(25), "{report}");
        let holes = holes(report);
        assert!(holes.is_empty(), "{}: {holes:#?}", report["vat"]);
    }
}

/// The program that takes a protection away from the machine.
fn without() -> PathBuf {
    let directory = repository().join("target/e2e");
    fs::create_dir_all(&directory).expect("target/e2e can be made");
    let program = directory.join("without");
    let built = tempfile::NamedTempFile::new_in(&directory).expect("a file").into_temp_path();
    let compiled = Command::new("cc")
        .args(["-Wall", "-Werror", "-o"])
        .arg(&built)
        .arg(repository().join("tests/e2e/without.c"))
        .status();
    assert!(compiled.expect("a C compiler: run `make setup` first").success());
    // Another test may run it meanwhile, so it is replaced as a whole.
    fs::set_permissions(&built, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("mode");
    built.persist(&program).expect("a rename");
    program
}

/// Takes `protection` away from everything that a node starts.
///
/// The node boots, since what a machine does not have cannot be demanded of it; but `status` shows
/// the protection as missing for every vat, and a probe is not confined any more.
fn taken_away(protection: &str) {
    let mut node = node(&["gpu"], Some((&without(), protection)));
    // The software TPM confines itself by the same calls, and would end.
    let image = fs::read_to_string(node.image()).expect("the image");
    let own = "\"socket\", \"--tpm2\",";
    assert_eq!(image.matches(own).count(), 1, "the image starts a software TPM");
    let image = image.replace(own, &format!("{own} \"--seccomp\", \"action=none\","));
    node.write_image(&image);
    node.reboot();
    let status = node.json(&["status"]);
    let vats = status["vats"].as_array().expect("vats");
    assert!(vats.len() >= 6, "{status}");
    for vat in vats {
        let all = vat["protections"].as_array().expect("protections");
        let line = all.iter().find(|p| p["name"] == protection);
        let line = line.unwrap_or_else(|| panic!("no line '{protection}' for {}", vat["name"]));
        assert_eq!(line["enforced"], false, "{}: {line}", vat["name"]);
        assert!(line["detail"].as_str().is_some_and(|why| !why.is_empty()), "it says why: {line}");
        assert_eq!(all.len(), PROTECTIONS.len(), "{all:?}");
    }
    let report = &reports(&node, 1)[0];
    let missing = format!("\"{protection}\"");
    assert!(holes(report).contains(&missing), "the probe does not notice: {report}");
    let seen = node.ok(&["status"]).text();
    assert!(seen.contains('✗'), "no cross in status:\n{seen}");
}

#[test]
fn an_operator_sees_that_services_share_a_uid() {
    if is_root() {
        taken_away("own uid");
    } else {
        println!("NOT TESTED: only root hands out uids");
    }
}

#[test]
fn an_operator_sees_that_programs_may_gain_privileges() {
    if is_root() {
        taken_away("no_new_privs");
    } else {
        println!("NOT TESTED: only root can install a filter without it");
    }
}

#[test]
fn an_operator_sees_that_system_calls_are_not_filtered() {
    taken_away("seccomp");
}

#[test]
fn an_operator_sees_that_files_are_not_confined() {
    taken_away("landlock");
}

#[test]
fn an_operator_sees_that_services_share_namespaces() {
    taken_away("namespaces");
}

#[test]
fn an_operator_sees_that_resources_are_not_limited() {
    taken_away("rlimits");
}

#[test]
fn an_operator_sees_that_services_keep_capabilities() {
    taken_away("capabilities");
}

#[test]
fn an_operator_sees_that_memory_can_be_dumped() {
    taken_away("no core dumps");
}

#[test]
fn an_operator_sees_that_keys_can_be_swapped_out() {
    taken_away("keys locked");
}
