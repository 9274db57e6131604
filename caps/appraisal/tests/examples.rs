//! The policies that people are shown: each is valid, and decides what its first lines say.
#![allow(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use distos_abi::NodeId;
use distos_appraisal::{Device, Kind, Policies, Tier, appraise};
use distos_evidence::findings::{Claim, Findings};
use distos_evidence::nvidia::{self, machine};
use distos_evidence::{eventlog, ima, pki, quote, snp};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/examples/policies")
}

fn policies(name: &str) -> Policies {
    let file = std::fs::read(folder().join(format!("{name}.cedar"))).unwrap();
    Policies::unsigned(&file).unwrap_or_else(|fault| panic!("{name}: {fault}"))
}

fn device(kind: Kind, passed: &[&'static str], claims: &[(&'static str, Claim)]) -> Device {
    let mut findings = Findings::default();
    for name in passed {
        findings.passed(name, "");
    }
    findings.claims.extend(claims.iter().cloned());
    Device { kind, findings }
}

type Node = BTreeMap<String, Device>;
/// What changes, what the node becomes by it, and the change.
type Change<'a> = (&'a str, Tier, &'a dyn Fn(&mut Node));

fn tier(policies: &Policies, node: &Node) -> Tier {
    appraise(Some(policies), NodeId([1; 32]), NodeId([2; 32]), node).unwrap().tier()
}

/// A good node is affirming, and each change makes it what it says.
fn decides(name: &str, good: &Node, changes: &[Change<'_>]) {
    let policies = policies(name);
    assert_eq!(tier(&policies, good), Tier::Affirming, "{name}");
    for (what, becomes, change) in changes {
        let mut node = good.clone();
        change(&mut node);
        assert_ne!(&node, good, "{name}: {what}");
        assert_eq!(tier(&policies, &node), *becomes, "{name}: {what}");
    }
}

fn claim(node: &mut Node, device: &str, name: &'static str, value: impl Into<Claim>) {
    node.get_mut(device).unwrap().findings.claim(name, value);
}

fn forget(node: &mut Node, device: &str, name: &str) {
    node.get_mut(device).unwrap().findings.claims.remove(name);
}

fn findings<'a>(node: &'a mut Node, device: &str) -> &'a mut Findings {
    &mut node.get_mut(device).unwrap().findings
}

fn tpm(kind: &str) -> Device {
    let passed = ["signature", "nonce", "register values", "certificate chain"];
    device(Kind::Tpm, &passed, &[("tpm", kind.into()), ("pcr-bank", "SHA-256".into())])
}

#[test]
fn every_example_is_named_after_its_file_and_tried_here() {
    let mut names: Vec<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    assert_eq!(names, ["confidential-gpu", "measured-boot", "snp", "software-tpm"]);
    for name in names {
        assert_eq!(policies(&name).edition().name, name);
    }
}

/// Or a rule asks for a check that nobody makes, and permits nothing.
#[test]
fn the_checks_that_examples_ask_for_are_made() {
    let made = [
        pki::CHAIN,
        pki::REVOCATION,
        quote::KEY,
        quote::SIGNATURE,
        quote::MAGIC,
        quote::QUOTE,
        quote::NONCE,
        quote::DIGEST,
        eventlog::FORMAT,
        eventlog::REPLAY,
        eventlog::DATA,
        eventlog::FACTS,
        ima::LIST,
        ima::REPLAY,
        nvidia::ARCHITECTURE,
        nvidia::FORMAT,
        nvidia::FIRMWARE_ID,
        nvidia::DEVICE_ID,
        nvidia::GOLDEN_VALUES,
        machine::ONE_NONCE,
        machine::DISTINCT,
        machine::TOPOLOGY,
        snp::SIGNING_KEY,
        snp::FIRMWARE,
        snp::CHIP,
    ];
    let mut asked = 0;
    for entry in std::fs::read_dir(folder()).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let lists = text.split("passed.contains").skip(1).chain(text.split("@unchecked").skip(1));
        for list in lists {
            // Every second part of it stands in quotes.
            let quoted = list[..list.find(')').unwrap()].split('"').skip(1).step_by(2);
            for name in quoted.flat_map(|names| names.split(',')).map(str::trim) {
                assert!(made.contains(&name), "{name:?} in {text}");
                asked += 1;
            }
        }
    }
    assert!(asked > 20, "{asked}");
}

#[test]
fn only_the_example_for_trying_things_out_accepts_a_software_tpm() {
    let node = Node::from([("tpm".to_owned(), tpm("software"))]);
    assert_eq!(tier(&policies("software-tpm"), &node), Tier::Affirming);
    for name in ["confidential-gpu", "measured-boot", "snp"] {
        assert_ne!(tier(&policies(name), &node), Tier::Affirming, "{name}");
    }
    decides(
        "software-tpm",
        &node,
        &[
            ("a hardware TPM is as good", Tier::Affirming, &|node| {
                claim(node, "tpm", "tpm", "hardware");
            }),
            ("no reference values", Tier::Affirming, &|node| {
                findings(node, "tpm").not_checked("register values", "none are known");
            }),
            ("no nonce", Tier::None, &|node| findings(node, "tpm").not_checked("nonce", "none")),
            ("another nonce", Tier::Contraindicated, &|node| {
                findings(node, "tpm").failed("nonce", "another");
            }),
            ("no TPM", Tier::None, &|node| node.clear()),
        ],
    );
}

#[test]
fn the_example_for_measured_boot_demands_hardware_and_secure_boot() {
    let log = [
        ("bank", "SHA-256".into()),
        ("secure-boot", true.into()),
        ("exit-boot-services", true.into()),
        ("uefi-debug", false.into()),
    ];
    let ima = [
        ("bank", "SHA-256".into()),
        ("ima-entries", Claim::Number(7)),
        ("ima-violations", Claim::Number(0)),
        ("ima-unknown-files", Claim::Texts(Default::default())),
    ];
    let node = Node::from([
        ("tpm".to_owned(), tpm("hardware")),
        ("eventlog".to_owned(), device(Kind::EventLog, &["replay"], &log)),
        ("ima".to_owned(), device(Kind::Ima, &["ima replay"], &ima)),
    ]);
    decides(
        "measured-boot",
        &node,
        &[
            ("a software TPM", Tier::Contraindicated, &|node| {
                claim(node, "tpm", "tpm", "software")
            }),
            ("a TPM of an unknown kind", Tier::Contraindicated, &|node| forget(node, "tpm", "tpm")),
            ("no secure boot", Tier::Contraindicated, &|node| {
                claim(node, "eventlog", "secure-boot", false);
            }),
            ("unknown secure boot", Tier::Contraindicated, &|node| {
                forget(node, "eventlog", "secure-boot");
            }),
            ("a bank that firmware leaves alone", Tier::Contraindicated, &|node| {
                claim(node, "eventlog", "bank", "SHA-384");
            }),
            ("nothing measured since", Tier::Contraindicated, &|node| {
                claim(node, "ima", "ima-entries", Claim::Number(0));
            }),
            ("debug firmware", Tier::Contraindicated, &|node| {
                claim(node, "eventlog", "uefi-debug", true);
            }),
            ("no log", Tier::None, &|node| {
                node.remove("eventlog");
            }),
            ("a log that does not add up", Tier::Contraindicated, &|node| {
                findings(node, "eventlog").failed("replay", "register 7");
            }),
            ("without IMA", Tier::Affirming, &|node| {
                node.remove("ima");
            }),
            ("an unknown file", Tier::Warning, &|node| {
                let files = std::collections::BTreeSet::from(["/tmp/x".to_owned()]);
                claim(node, "ima", "ima-unknown-files", files);
            }),
            ("a violation", Tier::Contraindicated, &|node| {
                claim(node, "ima", "ima-violations", Claim::Number(1));
            }),
        ],
    );
}

#[test]
fn the_example_for_gpus_demands_the_whole_machine_in_confidential_mode() {
    let passed = ["signature", "certificate chain", "nonce", "golden values"];
    let claims = [("confidential-mode", true.into()), ("developer-tools", false.into())];
    let mut node = Node::from([("tpm".to_owned(), tpm("hardware"))]);
    node.extend((0..8).map(|n| (format!("gpu-{n}"), device(Kind::NvidiaGpu, &passed, &claims))));
    let of_switch = [&passed[..], &["device id"]].concat();
    let switch = device(Kind::NvidiaSwitch, &of_switch, &[("locked", true.into())]);
    node.extend((0..4).map(|n| (format!("switch-{n}"), switch.clone())));
    let counts = [("gpus", Claim::Number(8)), ("switches", Claim::Number(4))];
    let whole = ["one nonce", "distinct devices", "topology"];
    node.insert("machine".to_owned(), device(Kind::NvidiaMachine, &whole, &counts));
    decides(
        "confidential-gpu",
        &node,
        &[
            ("not in confidential mode", Tier::Contraindicated, &|node| {
                claim(node, "gpu-3", "confidential-mode", false);
            }),
            ("an unknown mode", Tier::Contraindicated, &|node| {
                forget(node, "gpu-3", "confidential-mode");
            }),
            ("developer tools", Tier::Contraindicated, &|node| {
                claim(node, "gpu-3", "developer-tools", true);
            }),
            ("a switch that takes changes", Tier::Contraindicated, &|node| {
                claim(node, "switch-0", "locked", false);
            }),
            ("no list of what was revoked", Tier::Affirming, &|node| {
                findings(node, "gpu-3").not_checked("revocation", "none was given");
            }),
            ("a switch that is not the machine's", Tier::Contraindicated, &|node| {
                findings(node, "machine").failed("topology", "another");
            }),
            ("nobody has looked whose the switches are", Tier::None, &|node| {
                node.remove("machine");
            }),
            ("no golden values", Tier::None, &|node| {
                let values = &mut findings(node, "gpu-3").checks;
                values.retain(|check| check.name != "golden values");
                findings(node, "gpu-3").not_checked("golden values", "out of reach");
            }),
            ("other golden values", Tier::Contraindicated, &|node| {
                findings(node, "gpu-3").failed("golden values", "5 of 12");
            }),
            ("seven GPUs", Tier::None, &|node| {
                node.remove("gpu-7");
            }),
            ("three switches", Tier::None, &|node| {
                node.remove("switch-3");
            }),
            ("a software TPM", Tier::Contraindicated, &|node| {
                claim(node, "tpm", "tpm", "software")
            }),
        ],
    );
}

#[test]
fn the_example_for_guests_demands_their_measurement_and_no_debugging() {
    let measurement: String = (0..48).map(|byte| format!("{byte:02x}")).collect();
    let claims = [
        ("measurement", measurement.into()),
        ("debug-allowed", false.into()),
        ("migration-allowed", false.into()),
        ("vmpl", Claim::Number(0)),
        ("reported-tcb-snp", Claim::Number(8)),
    ];
    let passed =
        ["signature", "certificate chain", "nonce", "signing key", "firmware version", "chip id"];
    let node = Node::from([("snp".to_owned(), device(Kind::Snp, &passed, &claims))]);
    decides(
        "snp",
        &node,
        &[
            ("another image", Tier::Contraindicated, &|node| {
                claim(node, "snp", "measurement", "00")
            }),
            ("debugging", Tier::Contraindicated, &|node| claim(node, "snp", "debug-allowed", true)),
            ("migration", Tier::Contraindicated, &|node| {
                claim(node, "snp", "migration-allowed", true);
            }),
            ("another level", Tier::Contraindicated, &|node| {
                claim(node, "snp", "vmpl", Claim::Number(1));
            }),
            ("old firmware", Tier::Contraindicated, &|node| {
                claim(node, "snp", "reported-tcb-snp", Claim::Number(7));
            }),
            ("no report", Tier::None, &|node| node.clear()),
        ],
    );
}
