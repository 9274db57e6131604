//! A node works only on fresh evidence of its own state (A1, A2, S1). These tests use the software
//! TPM, also where there is a hardware one.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use distos_e2e::images::{with_tpm, with_tpm_args};
use distos_e2e::{Node, Output, eventually, kill, signal, wordcount};
use rustix::process::Signal;
use serde_json::Value;

const LONG: Duration = Duration::from_secs(20);

fn prepared(node: &Node) {
    node.tenants(&["red"]);
    fs::write(node.file("text"), "some words\n").unwrap();
    node.ok(&["region", "put", "text", "text", "--as", "red.cap"]);
}

fn count(node: &Node) -> Output {
    let module = wordcount();
    let args = ["run", module.to_str().unwrap(), "--input", "text", "--as", "red.cap"];
    node.cli(&args)
}

fn placements(node: &Node) -> usize {
    let log = node.json(&["audit", "list"]);
    log.as_array().unwrap().iter().filter(|e| e["kind"] == "placement").count()
}

fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap()
}

fn is_fresh(verdict: &Value) -> bool {
    verdict["good"] == true && verdict["fresh_until_ms"].as_u64().unwrap() > now_ms()
}

#[test]
fn an_operator_sees_good_evidence_and_that_its_tpm_is_software() {
    let node = Node::boot_with(&with_tpm(60_000, "/usr/bin/swtpm"));
    let status = node.json(&["status"]);
    let verdict = &status["attestation"];
    assert!(is_fresh(verdict), "{verdict}");
    assert_eq!(verdict["hardware"], false);
    assert!(verdict["tpm"].as_str().unwrap().contains("software TPM"), "{verdict}");
    assert!(verdict["pcrs"].as_array().unwrap().contains(&Value::from(11)), "{verdict}");
    let screen = node.ok(&["status"]).text();
    assert!(screen.contains("evidence good") && screen.contains("software TPM"), "{screen}");
    let now = node.json(&["attest", "now"]);
    assert!(now["taken_ms"].as_u64() > verdict["taken_ms"].as_u64(), "{now}");
    assert_eq!(now["ak_name"], verdict["ak_name"], "another key has signed");
    // Another image measures otherwise: the verdict is bound to what was booted.
    let other = with_tpm(60_000, "/usr/bin/swtpm").replace("name = \"single\"", "name = \"other\"");
    let other = Node::boot_with(&other).json(&["attest", "status"]);
    assert_ne!(other["pcr_digest"], verdict["pcr_digest"]);
}

#[test]
fn a_node_gets_a_new_tpm_and_good_evidence_after_its_software_tpm_was_killed() {
    let node = Node::boot_with(&with_tpm(60_000, "/usr/bin/swtpm"));
    prepared(&node);
    let before = node.json(&["attest", "status"]);
    kill(node.swtpm_pid().unwrap());
    let after = eventually("new evidence", LONG, || {
        let status = node.json(&["status"]);
        let verdict = status["attestation"].clone();
        let newer = verdict["taken_ms"].as_u64() > before["taken_ms"].as_u64();
        (newer && is_fresh(&verdict)).then_some(verdict)
    });
    assert!(after["reset_count"].as_u64() > before["reset_count"].as_u64(), "{after}");
    assert_eq!(after["ak_name"], before["ak_name"]);
    assert!(node.vat("attestation").unwrap()["restarts"].as_u64().unwrap() >= 1);
    let output = count(&node);
    assert_eq!(output.code, 0, "{}", output.stderr);
}

/// Stops the TPM for so long, and lets it go on.
fn silenced_for(node: &Node, pause: Duration) {
    let swtpm = node.swtpm_pid().unwrap();
    signal(swtpm, Signal::STOP);
    let stopped = Instant::now();
    eventually("the end of the evidence", LONG, || {
        (!is_fresh(&node.json(&["attest", "status"]))).then_some(())
    });
    let refused = count(node);
    assert_eq!(refused.code, 14, "{}", refused.stderr);
    let placed = placements(node);
    assert_eq!(count(node).code, 14);
    assert_eq!(placements(node), placed, "something was placed on stale evidence");
    let screen = node.ok(&["status"]).text();
    let is_told = ["STALE", "EXPIRED", "NOT GOOD"]
        .iter()
        .any(|word| screen.contains(&format!("evidence {word}")));
    assert!(is_told, "{screen}");
    // What needs no placement goes on.
    node.ok(&["region", "get", "text", "--as", "red.cap"]);
    std::thread::sleep(pause.saturating_sub(stopped.elapsed()));
    signal(swtpm, Signal::CONT);
    eventually("new evidence", LONG, || is_fresh(&node.json(&["attest", "status"])).then_some(()));
    let again = count(node);
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert_eq!(node.swtpm_pid(), Some(swtpm));
}

#[test]
fn a_tenants_job_is_refused_while_the_tpm_is_silent_and_runs_when_it_answers_again() {
    let node = Node::boot_with(&with_tpm(2_000, "/usr/bin/swtpm"));
    prepared(&node);
    assert_eq!(count(&node).code, 0);
    silenced_for(&node, Duration::ZERO);
}

/// Longer than the attestation service waits for one answer: the late answers come as answers to
/// later questions, if nobody takes care.
#[test]
fn a_node_recovers_from_a_tpm_that_was_silent_for_long() {
    let node = Node::boot_with(&with_tpm(2_000, "/usr/bin/swtpm"));
    prepared(&node);
    silenced_for(&node, Duration::from_secs(12));
}

#[test]
fn a_node_whose_tpm_never_answers_boots_and_places_nothing() {
    let node = Node::boot_with(&with_tpm_args(1_000, "/usr/bin/sleep", "\"1000\""));
    prepared(&node);
    let output = count(&node);
    assert_eq!(output.code, 14, "{}", output.stderr);
    assert_eq!(placements(&node), 0);
    let screen = node.ok(&["status"]).text();
    assert!(screen.contains("NOT GOOD"), "{screen}");
}

#[test]
fn a_node_whose_tpm_does_not_start_does_not_boot_and_leaves_nothing() {
    let mut node = Node::new(&with_tpm(1_000, "/bin/false"));
    node.start();
    let all = node.processes();
    assert_eq!(node.wait_for_end(&all), 17, "{}", node.log());
    assert!(node.log().contains("attestation"), "{}", node.log());
}

#[test]
fn a_node_that_has_lost_its_tpm_for_good_places_nothing_and_serves_on() {
    let place = tempfile::tempdir().unwrap();
    // Programs of a node run under a uid of their own.
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let swtpm = place.path().join("swtpm");
    fs::copy("/usr/bin/swtpm", &swtpm).unwrap();
    let node = Node::boot_with(&with_tpm(1_000, swtpm.to_str().unwrap()));
    prepared(&node);
    assert_eq!(count(&node).code, 0);
    fs::remove_file(&swtpm).unwrap();
    kill(node.swtpm_pid().unwrap());
    let refused = eventually("the end of the evidence", LONG, || {
        let output = count(&node);
        (output.code != 0).then_some(output)
    });
    assert!([14, 17].contains(&refused.code), "{}", refused.stderr);
    let placed = placements(&node);
    let again = count(&node);
    assert!([14, 17].contains(&again.code), "{}", again.stderr);
    assert_eq!(placements(&node), placed, "something was placed without evidence");
    node.ok(&["region", "get", "text", "--as", "red.cap"]);
    let screen = node.ok(&["status"]).text();
    assert!(screen.contains("NOT GOOD"), "{screen}");
}
