//! Each service of the image, killed: who calls it meanwhile is told to try again and nothing
//! else, it comes back with the same grants, and nothing acknowledged is lost.

use std::fs;
use std::time::Duration;

use distos_client::fault_of;
use distos_e2e::holder::{Holder, in_this_process};
use distos_e2e::watch::Watched;
use distos_e2e::{Node, Output, eventually, kill, wordcount};
use distos_schemas::capability_capnp::capability;
use serde_json::Value;

const LONG: Duration = Duration::from_secs(30);
const UNAVAILABLE: i32 = 17;

fn node() -> Node {
    let node = Node::boot();
    node.tenants(&["red", "blue"]);
    fs::write(node.file("text"), "some words\nin two lines\n").expect("a file");
    node.ok(&["region", "put", "text", "text", "--as", "red.cap", "--out", "text.cap"]);
    for out in ["live.cap", "dead.cap"] {
        let lend = ["cap", "delegate", "text.cap", "--as", "red.cap", "--to", "blue.pub"];
        node.ok(&[&lend[..], &["--rights", "read", "-o", out]].concat());
        assert_eq!(lent(&node, out).code, 0);
    }
    node.ok(&["cap", "revoke", "dead.cap", "--as", "red.cap"]);
    let loops = r#"(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))"#;
    fs::write(node.file("loop.wasm"), wat::parse_str(loops).expect("WAT")).expect("a file");
    count(&node);
    node
}

fn lent(node: &Node, cap: &str) -> Output {
    node.cli(&["region", "get", "--cap", cap, "--as", "blue.cap"])
}

/// The same command until it works; it may be told to try again, and nothing else.
fn sooner_or_later(node: &Node, args: &[&str]) -> Output {
    eventually(&args.join(" "), LONG, || {
        let output = node.cli(args);
        let code = output.code;
        assert!([0, UNAVAILABLE].contains(&code), "{}: {code}: {}", args.join(" "), output.stderr);
        (code == 0).then_some(output)
    })
}

/// A job goes through the scheduler, the attestation service, an executor and memory.
fn count(node: &Node) {
    let module = wordcount();
    let module = module.to_str().expect("a plain path");
    let run = ["run", module, "--input", "text", "--map", "map", "--reduce", "reduce"];
    let output = sooner_or_later(node, &[&run[..], &["--as", "red.cap"]].concat());
    assert_eq!(output.text().split_whitespace().collect::<Vec<_>>(), ["2", "5", "24"]);
}

/// All that was acknowledged before is there, and every edge leads somewhere.
fn is_as_it_was(node: &Node) {
    let back = sooner_or_later(node, &["region", "get", "text", "--as", "red.cap"]);
    assert_eq!(back.text(), "some words\nin two lines\n");
    assert_eq!(lent(node, "live.cap").code, 0, "what red lent is gone");
    assert_eq!(lent(node, "dead.cap").code, 11, "what red took back came back");
    count(node);
    sooner_or_later(node, &["attest", "status"]);
    sooner_or_later(node, &["gpu", "list"]);
    sooner_or_later(node, &["audit", "list"]);
    sooner_or_later(node, &["audit", "verify"]);
    let status = sooner_or_later(node, &["status", "--json"]);
    let status: Value = serde_json::from_slice(&status.stdout).expect("JSON");
    assert_eq!(status["tenants"].as_array().map(Vec::len), Some(2), "{status}");
}

/// A service, whose capability file has a capability to it, and under which name.
const SERVICES: [(&str, &str, &str); 7] = [
    ("memory", "red", "regions"),
    ("scheduler", "red", "queue"),
    ("attestation", "operator", "attestation"),
    ("audit", "operator", "log"),
    ("gpu", "operator", "gpus"),
    ("secrets", "operator", "secrets"),
    ("node", "operator", "node"),
];

#[test]
fn whoever_uses_a_service_that_is_killed_is_told_to_try_again_and_finds_it_as_it_was() {
    let node = node();
    for ending in ["cap", "key"] {
        let name = format!("operator.{ending}");
        fs::copy(node.directory().join("operator").join(&name), node.file(&name)).expect("a copy");
    }
    for (service, who, entry) in SERVICES {
        let pid = node.pid_of(service);
        let holder = Holder::load(&node, who);
        in_this_process(async {
            let held = holder.restore::<capability::Client>(holder.chain(entry)).await;
            let (_connection, live) = held.expect("it serves");
            live.describe_request().send().promise.await.map(drop).expect("it serves");
            kill(pid);
            // The call may reach the socket before the kill reaches the process.
            let fault = loop {
                match live.describe_request().send().promise.await {
                    Ok(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                    Err(error) => break fault_of(&error),
                }
            };
            assert_eq!(i32::from(fault.code()), UNAVAILABLE, "{service}: {fault}");
            // The same sturdy capability works again, without anybody's help.
            let end = tokio::time::Instant::now() + LONG;
            while let Err(fault) = holder.restore::<capability::Client>(holder.chain(entry)).await {
                assert_eq!(i32::from(fault.code()), UNAVAILABLE, "{service}: {fault}");
                assert!(tokio::time::Instant::now() < end, "{service} does not come back: {fault}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        is_as_it_was(&node);
        let vat = node.vat(service).expect("it is in the image");
        assert_eq!(vat["restarts"], 1, "{vat}");
        assert_ne!(node.pid_of(service), pid);
    }
}

/// What runs is lost with the vat that ran or placed it; the tenant is told so and submits again.
#[test]
fn a_tenant_whose_job_lost_its_executor_or_scheduler_is_told_and_runs_it_again() {
    let node = node();
    for vat in ["executor/", "scheduler"] {
        let run = node.command(&["run", "loop.wasm", "--input", "text", "--as", "red.cap"]);
        let mut run = Watched::spawn(run);
        let running = eventually("the job runs", LONG, || {
            assert!(run.run_for(Duration::from_millis(1)), "a loop does not end by itself");
            let status = node.json(&["status"]);
            let vats = status["vats"].as_array().expect("vats");
            let found = vats.iter().find_map(|v| v["name"].as_str().filter(|n| n.starts_with(vat)));
            found.map(str::to_owned)
        });
        run.run_for(Duration::from_millis(300));
        kill(node.pid_of(&running));
        let output = run.finish(LONG);
        assert_eq!(output.code, UNAVAILABLE, "{running}: {}", output.stderr);
        is_as_it_was(&node);
        // Its output was given back.
        let list = node.json(&["region", "list", "--as", "red.cap"]);
        assert_eq!(list["regions"].as_array().map(Vec::len), Some(1), "{list}");
    }
}

/// The software TPM is no service, but what one stands on.
#[test]
fn a_node_whose_software_tpm_is_killed_goes_on() {
    let node = node();
    let Some(tpm) = node.swtpm_pid() else {
        eprintln!("not checked: this node has no software TPM");
        return;
    };
    kill(tpm);
    is_as_it_was(&node);
}
