//! Every command of `distos`, as a new user meets it: help with an example, JSON for programs, and
//! what draining and weakening a capability do.
#![allow(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]
#![forbid(unsafe_code)]

use std::fs;
use std::process::Command;
use std::time::Duration;

use distos_e2e::{Node, distos, run, wordcount};

const COMMANDS: [&str; 29] = [
    "up",
    "down",
    "drain",
    "status",
    "image keygen",
    "image sign",
    "image verify",
    "image trust",
    "tenant add",
    "tenant list",
    "region create",
    "region put",
    "region get",
    "region list",
    "region drop",
    "run",
    "cap show",
    "cap attenuate",
    "cap delegate",
    "cap redeem",
    "cap revoke",
    "cap tree",
    "audit list",
    "audit verify",
    "attest status",
    "attest now",
    "gpu list",
    "gpu evidence",
    "demo",
];

#[test]
fn a_new_user_finds_an_example_in_the_help_of_every_command() {
    for command in COMMANDS {
        let mut help = Command::new(distos());
        help.args(command.split(' ')).arg("--help");
        let output = run(help, b"", Duration::from_secs(20));
        assert_eq!(output.code, 0, "{command}");
        assert!(output.text().contains("Example"), "{command}: {}", output.text());
        assert!(output.text().contains("--json"), "{command}: {}", output.text());
    }
}

#[test]
fn a_script_can_read_what_every_command_says() {
    let node = Node::boot();
    node.tenants(&["red"]);
    fs::write(node.file("text"), "hello world\n").unwrap();
    let put = ["region", "put", "text", "text", "--as", "red.cap", "--out", "text.cap"];
    assert_eq!(node.json(&put)["name"], "text");
    let tenants = node.json(&["tenant", "list"]);
    assert_eq!(tenants[0]["name"], "red");
    let regions = node.json(&["region", "list", "--as", "red.cap"]);
    assert_eq!(regions["regions"][0]["bytes"], 12);
    let shown = node.json(&["cap", "show", "text.cap"]);
    assert_eq!(shown["entries"][0]["authority"]["rights"], "read+write+drop");
    assert!(!node.json(&["cap", "tree", "--all"])["nodes"].as_array().unwrap().is_empty());
    let before = node.json(&["attest", "status"])["fresh_until_ms"].as_u64().unwrap();
    let now = node.json(&["attest", "now"])["fresh_until_ms"].as_u64().unwrap();
    assert!(now >= before && before > 0, "{before} {now}");
    // A machine without a GPU boots and says so; one with a GPU lists it.
    let gpus = node.json(&["gpu", "list"]);
    let none = gpus["gpus"].as_array().unwrap().is_empty();
    assert_eq!(none, gpus["driver"].as_str().unwrap().starts_with("no GPU"), "{gpus}");
    assert_eq!(node.json(&["region", "drop", "text", "--as", "red.cap"])["dropped"], "text");
    node.refused(&["region", "get", "text", "--as", "red.cap"], 15);
}

#[test]
fn a_tenant_weakens_its_own_capability_offline_and_cannot_go_back() {
    let node = Node::boot();
    node.tenants(&["red"]);
    fs::write(node.file("text"), "hello world\n").unwrap();
    node.ok(&["region", "put", "text", "text", "--as", "red.cap", "--out", "text.cap"]);
    let weaken = ["cap", "attenuate", "text.cap", "--rights", "read", "--as", "red.cap"];
    node.ok(&[&weaken[..], &["-o", "ro.cap"]].concat());
    let redeemed = node.json(&["cap", "redeem", "ro.cap", "--as", "red.cap"]);
    assert_eq!(redeemed["authority"]["rights"], "read");
    let got = node.ok(&["region", "get", "--cap", "ro.cap", "--as", "red.cap"]);
    assert_eq!(got.stdout, b"hello world\n");
    let said = node.refused(&["region", "put", "--cap", "ro.cap", "text", "--as", "red.cap"], 10);
    assert!(said.contains("write"), "{said}");
    let widen = ["cap", "attenuate", "ro.cap", "--rights", "read,write", "--as", "red.cap"];
    node.refused(&[&widen[..], &["-o", "rw.cap"]].concat(), 10);
}

#[test]
fn a_node_that_drains_takes_no_job_and_still_serves_data() {
    let node = Node::boot();
    node.tenants(&["red"]);
    fs::write(node.file("text"), "hello world\n").unwrap();
    node.ok(&["region", "put", "text", "text", "--as", "red.cap"]);
    node.ok(&["drain"]);
    let module = wordcount();
    let job = ["run", module.to_str().unwrap(), "--input", "text", "--as", "red.cap"];
    let said = node.refused(&job, 17);
    assert!(said.contains("draining"), "{said}");
    assert_eq!(node.ok(&["region", "get", "text", "--as", "red.cap"]).stdout, b"hello world\n");
    assert_eq!(node.json(&["audit", "verify"])["ok"], true);
}
