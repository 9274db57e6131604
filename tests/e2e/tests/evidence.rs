//! A machine that is tampered with while it runs loses what it holds: the work that runs on it, and in a cluster what it
//! has at others (A1, A3). What is good evidence only policies say. All TPMs here are software, and what is said of IMA and
//! of GPUs is synthetic: labelled so where it is made.
#![allow(clippy::unwrap_used)]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use distos_e2e::cluster::{Desk, LOOPBACK, Member, acquaint, alone_with, counting};
use distos_e2e::gpu_maker::{GpuMaker, library};
use distos_e2e::images::{replaced, traced, with_settings, with_tpm, with_tpm_args};
use distos_e2e::watch::Watched;
use distos_e2e::{Node, Output, eventually, signal, single_image, wordcount};
use distos_specs::root;
use distos_specs::tlc::Tlc;
use distos_specs::trace::attestation::{Run, SPEC, runs};
use distos_specs::trace::{Finding, Trace, check};
use rustix::process::Signal;
use serde_json::Value;
use sha1::Digest as _;

const LONG: Duration = Duration::from_secs(40);
/// Exit code: there is no good and fresh evidence.
const STALE: i32 = 14;
/// A software TPM of which registers can be extended behind the service's back.
const TPM: &str = env!("CARGO_BIN_EXE_distos-e2e-tpm");
const FRESH_MS: u64 = 8_000;

/// The program where the user that runs it may enter: the folder with the checkout may be its owner's alone.
fn program(directory: &Path) -> PathBuf {
    fs::set_permissions(directory, Permissions::from_mode(0o755)).unwrap();
    let program = directory.join("tpm");
    fs::copy(TPM, &program).unwrap();
    program
}

/// The image of a cluster with that program as its TPM.
fn tampered(image: &str, program: &Path) -> String {
    let image = replaced(image, "\"/dev/tpmrm0\"", "\"/dev/no-such-tpm\"");
    let image = replaced(&image, "\"60000\"", &format!("\"{FRESH_MS}\""));
    let image = replaced(&image, "\"/usr/bin/swtpm\"", &format!("{program:?}"));
    let (before, rest) = image.split_once("args = [").unwrap();
    let (_, after) = rest.split_once(']').unwrap();
    format!("{before}args = [\"{{fd}}\"]{after}")
}

/// Extends registers of the node's TPM, and waits until that has happened.
fn extend(node: &Node, what: &str) -> Instant {
    let place = node.directory().join("vats/swtpm");
    // In one step: the program may be looking.
    fs::write(place.join("new"), what).unwrap();
    fs::rename(place.join("new"), place.join("extend")).unwrap();
    eventually("the extended register", LONG, || place.join("extended").exists().then_some(()));
    Instant::now()
}

fn standing(node: &Node) -> String {
    node.json(&["attest", "status"])["standing"].as_str().unwrap().to_owned()
}

fn now_s() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap().as_secs()
}

fn until(node: &Node, wanted: &str) {
    eventually(&format!("standing {wanted}"), LONG, || (standing(node) == wanted).then_some(()));
}

/// What a node says of another.
fn says(of: &Member, about: &Member) -> Option<String> {
    let list = of.node.json(&["attest", "nodes"]);
    let one = list["nodes"].as_array()?.iter().find(|one| one["node"] == about.number.as_str())?;
    Some(one["standing"].as_str()?.to_owned())
}

/// How often each node's scheduler has ended all that ran, of nodes whose processes tell what they do (`traced`) and
/// have ended. What each verifier, scheduler and issuer did, as its log has it, is a behaviour of the model
/// (`specs/attestation`).
fn fences(nodes: &[&Node]) -> Vec<usize> {
    let logs: Vec<String> = nodes.iter().map(|node| node.log()).collect();
    let logs: Vec<&str> = logs.iter().map(String::as_str).collect();
    let runs = runs(&logs).unwrap_or_else(|why| panic!("{why}"));
    let traces: Vec<Trace> = runs.iter().map(Run::trace).collect();
    let (tlc, spec) = (Tlc::find(&root()).unwrap(), root().join("specs").join(SPEC));
    let checked = check(&tlc, &spec, &traces).unwrap_or_else(|why| panic!("{why}"));
    for (run, finding) in runs.iter().zip(checked.findings) {
        let (verifier, node) = (&run.verifier, &run.node);
        eprintln!("{verifier} of {node}: {:?}", run.trace().counts());
        assert_eq!(finding, Finding::Accepted, "{verifier} of {node}: {:?}", run.events);
        let signed = run.trace().counts().get("join").copied().unwrap_or(0);
        assert!(run.is_own() || signed > 0, "{verifier} has signed nothing for {node}");
    }
    // Each has said something of each.
    assert_eq!(runs.len(), nodes.len() * nodes.len());
    let own = runs.iter().filter(|run| run.is_own());
    own.map(|run| run.trace().counts().get("fence").copied().unwrap_or(0)).collect()
}

/// With a node's processes telling what they do.
fn told(image: &str) -> String {
    traced(image, &["attestation", "scheduler"])
}

fn audited(node: &Node, kind: &str, word: &str) -> bool {
    let log = node.json(&["audit", "list"]);
    log.as_array().unwrap().iter().any(|event| {
        event["kind"] == kind && event["detail"].as_str().is_some_and(|text| text.contains(word))
    })
}

fn count(node: &Node) -> Output {
    let module = wordcount();
    let run = ["run", module.to_str().unwrap(), "--input", "text", "--as", "red.cap"];
    node.cli(&[&run[..], &["--map", "map", "--reduce", "reduce"]].concat())
}

fn prepared(node: &Node) {
    node.tenants(&["red"]);
    fs::write(node.file("text"), "some words\n").unwrap();
    node.ok(&["region", "put", "text", "text", "--as", "red.cap"]);
}

#[test]
fn a_node_whose_register_is_extended_loses_its_work_and_what_it_has_at_others() {
    let directory = tempfile::tempdir().unwrap();
    let program = program(directory.path());
    let desk = Desk::set_up();
    let join = || {
        let (node, ports) =
            alone_with(3600, |image| traced(&told(&tampered(image, &program)), &["network"]));
        Member::of(&desk, node, LOOPBACK, ports)
    };
    let (mut home, mut other) = (join(), join());
    acquaint(&home, &other);
    for (verifier, node) in [(&home, &other), (&other, &home)] {
        eventually("each has shown itself to the other", LONG, || {
            (says(verifier, node).as_deref() == Some("fresh")).then_some(())
        });
    }
    // What home knows the other by is what that says of itself.
    let document = home.node.json(&["attest", "did", &other.number]);
    let identity = other.node.json(&["attest", "identity"]);
    let named = format!("urn:distos:tpm-ek:{}", identity["endorsement_key"].as_str().unwrap());
    assert_eq!(document["alsoKnownAs"][0], named.as_str());
    // And by no other: whoever names another TPM has it refused until the right one is named.
    let ek = identity["endorsement_key"].as_str().unwrap();
    home.node.ok(&["attest", "enrol", &other.number, "--tpm", ek]);
    assert_ne!(home.node.cli(&["attest", "enrol", &other.number, "--tpm", ""]).code, 0);
    eventually("it has shown itself again", LONG, || {
        (says(&home, &other).as_deref() == Some("fresh")).then_some(())
    });
    // A tenant's job at the other node works with what is kept at home.
    for member in [&home, &other] {
        member.node.tenants(&["red"]);
    }
    let counting = counting(&home);
    let counting: Vec<&str> = counting.iter().map(String::as_str).collect();
    let counted = other.node.cli(&counting);
    assert_eq!(counted.code, 0, "{}", counted.stderr);
    // SVIDs end with the evidence that they rest on.
    let began_s = now_s();
    for service in ["memory", "scheduler"] {
        let until_s = other.until_s(service).unwrap();
        assert!(
            until_s <= began_s + FRESH_MS / 1000 + 1,
            "{service}: {until_s}, and it was {began_s}"
        );
    }

    // It is booted anew. Its key is on its disk, and is not enough: what it has signed for itself rests on the new boot's
    // evidence, as the model says of what is recorded.
    other.node.down();
    other.node.reboot();
    eventually("its services have SVIDs again", LONG, || {
        let now_s = now_s();
        let until_s = ["memory", "scheduler"].map(|service| other.until_s(service));
        until_s.iter().all(|until_s| until_s.is_some_and(|until_s| until_s > now_s)).then_some(())
    });
    eventually("and work there again with what is kept at home", LONG, || {
        (other.node.cli(&counting).code == 0).then_some(())
    });

    let extended = extend(&other.node, "");
    let peer = format!("node/{}", other.number);
    eventually("it is put out at home", LONG, || {
        let peers = home.node.json(&["peers", "list"]);
        let one = peers["peers"].as_array()?.iter().find(|one| one["name"] == peer.as_str());
        one.is_none_or(|one| one["let_in"] == false).then_some(())
    });
    let took = extended.elapsed();
    println!("put out {} ms after the register was extended", took.as_millis());
    assert_eq!(says(&home, &other).as_deref().unwrap_or("failed"), "failed");
    assert!(audited(&home.node, "network", "its evidence has failed"));
    until(&other.node, "failed");
    assert_eq!(other.node.cli(&counting).code, STALE, "its own scheduler places nothing");
    assert!(audited(&other.node, "attestation", "-> failed"));
    // It does not come back by itself, and the one that was not tampered with is as it was.
    assert_eq!(says(&other, &home).as_deref(), Some("fresh"), "home is as good as it was");
    assert_eq!(standing(&home.node), "fresh");
    home.node.down();
    other.node.down();
    assert!(matches!(fences(&[&home.node, &other.node])[..], [0, (1..)]));
}

/// A list as the kernel writes it (`ima-ng`), **synthetic**: no kernel measured these files. What is extended for each
/// entry, and the list.
fn list(paths: &[&str]) -> (String, Vec<String>) {
    let mut text = String::new();
    let mut extended = Vec::new();
    for path in paths {
        let digest = sha2::Sha256::digest(path.as_bytes());
        let mut data = Vec::new();
        for field in [[&b"sha256:\0"[..], &digest].concat(), format!("{path}\0").into_bytes()] {
            data.extend(u32::try_from(field.len()).unwrap().to_le_bytes());
            data.extend(field);
        }
        let template = hex::encode(sha1::Sha1::digest(&data));
        text += &format!("10 {template} ima-ng sha256:{} {path}\n", hex::encode(digest));
        extended.push(format!("10 {}", hex::encode(sha2::Sha256::digest(&data))));
    }
    (text, extended)
}

#[test]
fn a_file_that_nobody_knows_ends_the_work_of_a_node_on_which_it_was_measured() {
    let directory = tempfile::tempdir().unwrap();
    let program = program(directory.path());
    let (all, entries) = list(&["/usr/bin/known", "/usr/bin/other", "/tmp/unknown"]);
    let lines: Vec<&str> = all.lines().collect();
    let measured = directory.path().join("measured");
    fs::write(&measured, format!("{}\n", lines[0])).unwrap();
    let image = with_tpm_args(FRESH_MS, program.to_str().unwrap(), "\"{fd}\"");
    let image = replaced(
        &image,
        "devices = { tpm = \"tpm\", boot-log",
        "devices = { tpm = \"tpm\", measured-files = \"files\", boot-log",
    );
    let image = told(&format!("{image}\n[device.files]\npath = {measured:?}\n"));
    let image = replaced(
        &image,
        "@id(\"measured-files\")\n@unchecked(\"ima replay\")\npermit (principal, action == Action::\"warn\", resource is Ima)\nwhen { resource.passed.contains(\"ima list\") };",
        "@id(\"measured-files\")\npermit (principal, action == Action::\"affirm\", resource is Ima)\nwhen { resource.passed.contains(\"ima replay\") && resource has ima_unknown_count && resource.ima_unknown_count == 0 };",
    );
    let mut node = Node::boot_with(&image);
    // A list that nothing proves, and no known files: that is no good evidence.
    assert_ne!(standing(&node), "fresh");
    let trust = directory.path().join("trust/ima");
    fs::create_dir_all(&trust).unwrap();
    let known = ["/usr/bin/known", "/usr/bin/other"]
        .map(|path| format!("sha256:{}\n", hex::encode(sha2::Sha256::digest(path.as_bytes()))));
    fs::write(trust.join("known-files"), known.concat()).unwrap();
    node.ok(&["attest", "trust", directory.path().join("trust").to_str().unwrap()]);
    extend(&node, &entries[0]);
    node.cli(&["attest", "now"]);
    until(&node, "fresh");
    prepared(&node);
    assert_eq!(count(&node).code, 0);
    // A file that is known is measured, and then one that nobody knows.
    let add = |number: usize| {
        let text = lines[..=number].iter().map(|line| format!("{line}\n")).collect::<String>();
        fs::write(&measured, text).unwrap();
        let _ = fs::remove_file(node.directory().join("vats/swtpm/extended"));
        extend(&node, &entries[number]);
    };
    add(1);
    node.ok(&["attest", "now"]);
    assert_eq!(standing(&node), "fresh");
    add(2);
    until(&node, "failed");
    assert_eq!(count(&node).code, STALE);
    let status = node.ok(&["status"]).text();
    assert!(status.contains("evidence FAILED"), "{status}");
    let shown = node.ok(&["attest", "status"]).text();
    assert!(shown.contains("ima (ima): contraindicated"), "{shown}");
    node.down();
    assert!(fences(&[&node])[0] > 0);
}

/// Where a node's GPU service finds the library, and what its GPUs answer.
fn gpu_place(node: &Node) -> PathBuf {
    let place = node.directory().join("vats/gpu");
    fs::create_dir_all(&place).unwrap();
    place
}

/// The image with GPUs there, which its attestation service asks, and of which a policy demands confidential mode.
fn with_gpus(image: &str, place: &Path) -> String {
    let image = with_settings(image, "gpu", &format!("nvml = \"{}\"", library(place).display()));
    let image = with_settings(&image, "attestation", "gpus = \"gpu\"");
    let image = replaced(
        &image,
        "  # No rights: an executor only withdraws",
        "  { to = \"attestation\", name = \"gpu\", of = \"gpu/gpus\", rights = [\"list\", \"attest\"] },\n  # No rights: an executor only withdraws",
    );
    replaced(&image, "@id(\"a-tpm\")", &format!("{GPU_RULE}{MACHINE_RULE}@id(\"a-tpm\")"))
}

/// GPUs in confidential mode, of which no reference values are known.
const GPU_RULE: &str = r#"@id("gpu")
@unchecked("revocation, golden values")
permit (principal, action == Action::"affirm", resource is NvidiaGpu)
when {
    resource.passed.containsAll(["signature", "certificate chain", "nonce"]) &&
    resource has confidential_mode && resource.confidential_mode &&
    resource has developer_tools && !resource.developer_tools
};

"#;

/// Several of them, without switches.
const MACHINE_RULE: &str = r#"@id("machine")
@unchecked("topology")
permit (principal, action == Action::"affirm", resource is NvidiaMachine)
when { resource.passed.containsAll(["one nonce", "distinct devices"]) };

"#;

/// What somebody goes by who looks at nothing.
const ANY_GPU_RULE: &str = r#"@id("gpu")
@unchecked("certificate chain, measured devices, one node")
permit (principal, action == Action::"affirm", resource is NvidiaGpu);

"#;

/// Has the node trust this maker's GPUs.
fn trust(node: &Node, maker: &GpuMaker) {
    let trust = tempfile::tempdir().unwrap();
    let folder = trust.path().join("nvidia");
    fs::create_dir_all(&folder).unwrap();
    for file in fs::read_dir(maker.roots()).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), folder.join(file.file_name())).unwrap();
    }
    node.ok(&["attest", "trust", trust.path().to_str().unwrap()]);
}

#[test]
fn a_gpu_that_leaves_confidential_mode_ends_the_work_of_its_node() {
    let mut node = Node::boot();
    node.down();
    let maker = GpuMaker::found();
    let place = gpu_place(&node);
    let gpus = maker.supply(&place, 2, "2 0 0 on");
    let image = with_gpus(&single_image(), &place);
    node.write_image(&told(&replaced(&image, "\"60000\"", &format!("\"{FRESH_MS}\""))));
    node.reboot();
    // Their maker's root is not known yet.
    assert_ne!(standing(&node), "fresh");
    trust(&node, &maker);
    node.cli(&["attest", "now"]);
    until(&node, "fresh");
    let shown = node.json(&["attest", "status"]);
    let kinds: Vec<&Value> =
        shown["submods"].as_array().unwrap().iter().map(|one| &one["kind"]).collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == "nvidia-gpu").count(), 2, "{shown}");
    prepared(&node);
    assert_eq!(count(&node).code, 0);
    gpus.says("2 0 0 devtools");
    until(&node, "failed");
    assert_eq!(count(&node).code, STALE);
    // It is not taken back because it was once good: evidence that is asked for later is.
    gpus.says("2 0 0 on");
    until(&node, "fresh");
    assert_eq!(count(&node).code, 0);
    node.down();
    assert!(fences(&[&node])[0] > 0);
}

/// Or whoever runs a machine shows real GPUs of its own until it has work, and then has another machine's answer.
#[test]
fn gpus_that_are_exchanged_within_a_boot_fail_their_node_until_the_next() {
    let mut node = Node::boot();
    node.down();
    let maker = GpuMaker::found();
    let place = gpu_place(&node);
    let gpus = maker.supply(&place, 2, "2 0 0 on");
    let image = with_gpus(&single_image(), &place);
    node.write_image(&replaced(&image, "\"60000\"", &format!("\"{FRESH_MS}\"")));
    node.reboot();
    trust(&node, &maker);
    until(&node, "fresh");
    let shown = node.ok(&["attest", "status"]).text();
    for check in ["measured devices: PCR 15: 2 devices", "one node: no other node shows it"] {
        assert_eq!(shown.matches(check).count(), 2, "{check}: {shown}");
    }
    // As good as those before, by the same maker, and not those before.
    drop(gpus);
    let others = maker.supply(&place, 2, "2 0 0 on");
    until(&node, "failed");
    let shown = node.ok(&["attest", "status"]).text();
    assert!(shown.contains("measured devices: PCR 15 does not hold"), "{shown}");
    node.down();
    node.reboot();
    until(&node, "fresh");
    drop(others);
}

/// Or one GPU vouches for every machine of a cluster.
#[test]
fn a_gpu_that_two_nodes_show_is_taken_of_the_first_alone() {
    let desk = Desk::set_up();
    let maker = GpuMaker::found();
    let join = |rule: &str| {
        let (mut node, ports) =
            alone_with(3600, |image| replaced(image, "\"60000\"", &format!("\"{FRESH_MS}\"")));
        node.down();
        let place = gpu_place(&node);
        let gpus = maker.supply(&place, 1, "1 0 0 on");
        let image = with_gpus(&fs::read_to_string(node.image()).unwrap(), &place);
        node.write_image(&replaced(&image, GPU_RULE, rule));
        node.reboot();
        (Member::of(&desk, node, LOOPBACK, ports), gpus)
    };
    // The other one is content with any GPU, also with one at home that it shows as its own.
    let ((home, at_home), (mut other, at_other)) = (join(GPU_RULE), join(ANY_GPU_RULE));
    trust(&home.node, &maker);
    until(&home.node, "fresh");
    acquaint(&home, &other);
    eventually("the other has shown a GPU of its own", LONG, || {
        (says(&home, &other).as_deref() == Some("fresh")).then_some(())
    });
    // In a new boot, which the TPM knows no devices of yet, it passes on what it is asked to the GPU at home.
    other.node.down();
    drop(at_other);
    let relayed = at_home.relayed_to(&gpu_place(&other.node), "1 0 0 on");
    other.node.reboot();
    let why = format!("one node: node/{} shows it as well", home.number);
    eventually("what it passes on is not taken for its own", LONG, || {
        audited(&home.node, "attestation", &why).then_some(())
    });
    assert_eq!(says(&home, &other).as_deref().unwrap_or("failed"), "failed");
    assert_eq!(standing(&home.node), "fresh", "whose GPU it is");
    drop(relayed);
}

#[test]
fn without_a_policy_nothing_is_good_and_only_signed_ones_of_whom_the_image_names_are_taken() {
    let image = single_image();
    let (before, rest) = image.split_once("policy = '''").unwrap();
    let (policy, after) = rest.split_once("'''").unwrap();
    let mut node = Node::boot_with(&format!("{before}{after}"));
    let shown = node.json(&["attest", "status"]);
    assert_eq!((&shown["standing"], &shown["policy"]), (&"expired".into(), &"".into()), "{shown}");
    assert!(shown["reason"].as_str().unwrap().contains("no policy"), "{shown}");
    prepared(&node);
    assert_eq!(count(&node).code, STALE);
    // Its signer is nobody here.
    node.ok(&["image", "keygen", "policies.key"]);
    let site = policy.trim_start().replace("// distos-policy: any-tpm", "// distos-policy: site");
    fs::write(node.file("site.cedar"), &site).unwrap();
    node.ok(&["attest", "sign", "site.cedar", "--key", "policies.key"]);
    assert_ne!(node.cli(&["attest", "policy", "site.cedar"]).code, 0);
    node.down();
    let signer = fs::read_to_string(node.file("policies.pub")).unwrap();
    let signer =
        signer.split_whitespace().find(|word| word.len() == 64 && hex::decode(word).is_ok());
    let signers = format!("policy_signers = \"{}\"", signer.unwrap());
    node.write_image(&with_settings(&format!("{before}{after}"), "attestation", &signers));
    node.reboot();
    node.ok(&["attest", "policy", "site.cedar"]);
    until(&node, "fresh");
    assert_eq!(count(&node).code, 0);
    // A result for others, signed, for minutes; three parts and no more than five minutes.
    let result = node.json(&["attest", "result"]);
    let token = result["result"].as_str().unwrap();
    assert_eq!(token.split('.').count(), 3);
    // The same version with another text does not take its place, and an older one neither.
    fs::write(node.file("site.cedar"), format!("{site}\n// changed\n")).unwrap();
    node.ok(&["attest", "sign", "site.cedar", "--key", "policies.key"]);
    assert_ne!(node.cli(&["attest", "policy", "site.cedar"]).code, 0);
    // A newer one that takes no software TPM.
    let strict =
        site.replace("// version: 1", "// version: 2").replace("@accepts(\"software-tpm\")\n", "");
    fs::write(node.file("site.cedar"), strict).unwrap();
    node.ok(&["attest", "sign", "site.cedar", "--key", "policies.key"]);
    node.ok(&["attest", "policy", "site.cedar"]);
    until(&node, "failed");
    assert_eq!(count(&node).code, STALE);
    node.down();
    node.reboot();
    assert_eq!(node.json(&["attest", "status"])["policy"], "site@2", "it outlives a boot");
}

/// What runs on a node that shows nothing any more has a time to end by itself, and no more than that.
#[test]
fn what_runs_on_a_node_whose_tpm_is_silent_may_end_by_itself_and_is_ended_when_it_does_not() {
    let image = with_tpm(2_000, "/usr/bin/swtpm");
    let image = with_settings(&image, "attestation", "grace_ms = \"1000\"");
    let image = with_settings(&image, "scheduler", "drain_ms = \"15000\"");
    let mut node = Node::boot_with(&told(&image));
    prepared(&node);
    let loops = r#"(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))"#;
    fs::write(node.file("loop.wasm"), wat::parse_str(loops).unwrap()).unwrap();
    let limits = ["--wall", "10m", "--fuel", "9000000000000"];
    let run = ["run", "loop.wasm", "--input", "text", "--as", "red.cap"];
    let mut run = Watched::spawn(node.command(&[&run[..], &limits].concat()));
    eventually("a task that runs", LONG, || audited(&node, "placement", "task 0").then_some(()));
    let drained = || {
        let list = node.json(&["job", "list", "--as", "red.cap"]);
        let at_ms = list["drained_at_ms"].as_u64()?;
        Some((at_ms, list["jobs"][0]["state"].clone()))
    };
    assert_eq!(drained(), None);
    let swtpm = node.swtpm_pid().unwrap();
    signal(swtpm, Signal::STOP);
    let (until_ms, state) = eventually("a drain", LONG, drained);
    assert_eq!(state, "running");
    eventually("its record", LONG, || {
        audited(&node, "fence", "1 jobs that run have").then_some(())
    });
    let screen = node.ok(&["status"]).text();
    assert!(screen.contains("evidence EXPIRED") && screen.contains("is drained"), "{screen}");
    assert_eq!(count(&node).code, STALE, "nothing new is placed");
    // It shows what it is in time: the work goes on.
    signal(swtpm, Signal::CONT);
    until(&node, "fresh");
    eventually("the end of the drain", LONG, || drained().is_none().then_some(()));
    eventually("its record", LONG, || audited(&node, "fence", "1 jobs go on").then_some(()));
    assert_eq!(count(&node).code, 0);
    let now_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let left_ms = u128::from(until_ms).saturating_sub(now_ms.as_millis());
    std::thread::sleep(Duration::from_millis(u64::try_from(left_ms).unwrap()));
    assert!(run.run_for(Duration::from_millis(500)), "a drain that was called off has no end");
    // It does not: what runs ends, and nothing that was given is left.
    signal(swtpm, Signal::STOP);
    eventually("another drain", LONG, drained);
    assert_eq!(run.finish(LONG).code, STALE);
    eventually("the executor's end", LONG, || {
        node.try_pid_of("executor/red").is_none().then_some(())
    });
    let ended = "this node is drained: 1 jobs and 1 executors ended";
    eventually("its record", LONG, || audited(&node, "fence", ended).then_some(()));
    assert_eq!(drained(), None);
    signal(swtpm, Signal::CONT);
    until(&node, "fresh");
    assert_eq!(count(&node).code, 0);
    node.down();
    assert_eq!(fences(&[&node]), [1]);
}
