//! A node boots only what the signer that it was told of answers for; whoever else can write the
//! image file, or put another one in its place, changes nothing.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use distos_e2e::watch::alone;
use distos_e2e::{Node, Output, single_image};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(20);
const UNAUTHENTICATED: i32 = 22;
const MALFORMED: i32 = 16;

/// Boots with these options, which must fail; nothing of it is left running.
fn fails(node: &Node, options: &[&str], code: i32) -> Output {
    let mut command = node.command(&["up"]);
    command.arg(node.image()).args(options);
    let output = alone(command, SOON);
    assert_eq!(output.code, code, "up {options:?}: {}", output.stderr);
    output
}

fn signature(node: &Node) -> PathBuf {
    node.image().with_extension("toml.sig")
}

fn text(path: PathBuf) -> String {
    path.to_str().unwrap().to_owned()
}

/// The public key of a key file, as status and the log show it.
fn key_in(public: &PathBuf) -> String {
    fs::read_to_string(public).unwrap().lines().nth(1).unwrap().to_owned()
}

/// Somebody else's key, as secret and public key file.
fn other_signer(node: &Node) -> (String, String) {
    node.ok(&["image", "keygen", "other.key"]);
    (text(node.file("other.key")), text(node.file("other.pub")))
}

/// Every file of the node's journal.
fn journal(node: &Node) -> BTreeMap<PathBuf, Vec<u8>> {
    let listing = fs::read_dir(node.directory().join("kernel/journal")).unwrap();
    let paths = listing.map(|entry| entry.unwrap().path());
    let files: BTreeMap<_, _> = paths.map(|p| (p.clone(), fs::read(p).unwrap())).collect();
    assert!(!files.is_empty(), "the journal is elsewhere");
    files
}

/// What the audit log says about the image at each boot.
fn images_in_log(node: &Node) -> Vec<Value> {
    let log = node.json(&["audit", "list"]);
    let kernels = |e: &&Value| e["kind"] == "image" && e["vat"] == "kernel";
    log.as_array().unwrap().iter().filter(kernels).cloned().collect()
}

#[test]
fn an_unsigned_image_starts_nothing_and_the_operator_is_told_how_to_sign() {
    let node = Node::new(&single_image());
    fs::remove_file(signature(&node)).unwrap();
    for options in [&[][..], &["--detach"]] {
        let output = fails(&node, options, UNAUTHENTICATED);
        assert!(output.stderr.contains("is not signed"), "{}", output.stderr);
        assert!(output.stderr.contains("distos image sign"), "{}", output.stderr);
        assert!(!node.directory().exists(), "a directory was made for an unsigned image");
    }
}

#[test]
fn one_changed_byte_of_image_or_signature_starts_nothing() {
    let mut node = Node::boot();
    node.down();
    let before = journal(&node);
    let (image, signed) = (fs::read(node.image()).unwrap(), fs::read(signature(&node)).unwrap());
    // A letter of a comment: what the image grants is the same, and what was signed is not.
    let mut changed = image.clone();
    let at = image.iter().position(|b| *b == b'#').unwrap() + 2;
    changed[at] ^= 1;
    fs::write(node.image(), changed).unwrap();
    let output = fails(&node, &[], UNAUTHENTICATED);
    let says = ["image.toml.sig is no signature over", "one of them was changed"];
    assert!(says.iter().all(|s| output.stderr.contains(s)), "{}", output.stderr);
    fs::write(node.image(), &image).unwrap();

    let text = String::from_utf8(signed.clone()).unwrap();
    let last = text.trim_end().chars().last().unwrap();
    let digit = if last == '0' { '1' } else { '0' };
    let forged = format!("{}{digit}\n", &text.trim_end()[..text.trim_end().len() - 1]);
    fs::write(signature(&node), forged).unwrap();
    fails(&node, &[], UNAUTHENTICATED);
    for (broken, says) in [
        (text.replace("signature: ", "signatur: "), "image.toml.sig: line 3: "),
        (text.replace("signer: ", "signer: zz"), "image.toml.sig: line 2: "),
        (String::new(), "image.toml.sig: line 1: "),
        (text.repeat(100), "image.toml.sig is longer than"),
    ] {
        fs::write(signature(&node), broken).unwrap();
        let output = fails(&node, &[], MALFORMED);
        assert!(output.stderr.contains(says), "{says}: {}", output.stderr);
    }
    assert!(before == journal(&node), "a refused image left something in the journal");
    fs::write(signature(&node), signed).unwrap();
    node.reboot();
    assert_eq!(images_in_log(&node).len(), 2, "a refused boot is no boot");
}

#[test]
fn another_signers_image_boots_only_when_the_operator_names_that_signer() {
    let mut node = Node::boot();
    let ours = key_in(&node.signer().with_extension("pub"));
    assert!(node.log().contains("\"pinned\":\"first\""), "{}", node.log());
    node.down();
    let (key, public) = other_signer(&node);
    let theirs = key_in(&node.file("other.pub"));
    node.ok(&["image", "sign", &text(node.image()), "--key", &key]);
    for options in [&[][..], &["--detach"]] {
        let output = fails(&node, options, UNAUTHENTICATED);
        assert!(output.stderr.contains(&ours) && output.stderr.contains(&theirs));
        assert!(output.stderr.contains("--signer"), "{}", output.stderr);
    }
    // Naming a signer that did not sign this image changes nothing.
    let named = text(node.signer().with_extension("pub"));
    fails(&node, &["--signer", &named], UNAUTHENTICATED);
    let output = fails(&node, &["--unsigned"], UNAUTHENTICATED);
    assert!(output.stderr.contains("--unsigned is for directories without"), "{}", output.stderr);

    node.reboot_with(&["--signer", &public]);
    assert_eq!(node.json(&["status"])["image_signer"], Value::from(theirs.clone()));
    node.down();
    node.reboot();
    node.down();
    node.write_image(&single_image());
    fails(&node, &[], UNAUTHENTICATED);
    let said = node.json(&["image", "trust", &named]);
    assert_eq!((said["before"].as_str(), said["signer"].as_str()), (Some(&*theirs), Some(&*ours)));
    node.reboot();
    let signers: Vec<String> =
        images_in_log(&node).iter().map(|e| e["detail"].as_str().unwrap().to_owned()).collect();
    let by = [&ours, &theirs, &theirs, &ours];
    assert_eq!(signers.len(), by.len(), "{signers:?}");
    for (said, key) in signers.iter().zip(by) {
        assert!(said.contains(&format!("signed by {key}")), "{signers:?}");
    }
}

/// Otherwise whoever can remove one public file decides what the node runs.
#[test]
fn a_node_that_lost_its_pin_does_not_take_the_next_signer_that_comes() {
    let mut node = Node::boot();
    node.down();
    fs::remove_file(node.directory().join("image-signer.pub")).unwrap();
    let output = fails(&node, &[], UNAUTHENTICATED);
    assert!(output.stderr.contains("no signer is pinned"), "{}", output.stderr);
    let public = text(node.signer().with_extension("pub"));
    node.reboot_with(&["--signer", &public]);
    node.down();
    node.reboot();
}

#[test]
fn an_unsigned_boot_is_asked_for_by_name_and_shown_to_operator_and_auditor() {
    let mut node = Node::new(&single_image());
    fs::remove_file(signature(&node)).unwrap();
    node.reboot_with(&["--unsigned"]);
    assert!(node.ok(&["status"]).text().contains("image: unsigned"));
    assert_eq!(node.json(&["status"])["image_signer"], Value::Null);
    let log = images_in_log(&node);
    assert!(log[0]["detail"].as_str().unwrap().contains("image: unsigned"), "{log:?}");
    node.down();
    let detached = ["up", &text(node.image()), "--unsigned", "--detach"];
    assert!(node.ok(&detached).text().contains("image: unsigned"));
    node.ok(&["down"]);
    // It is asked for at each boot, and a signer that comes later is not taken unasked.
    fails(&node, &[], UNAUTHENTICATED);
    node.write_image(&single_image());
    fails(&node, &[], UNAUTHENTICATED);
    let public = text(node.signer().with_extension("pub"));
    node.reboot_with(&["--signer", &public]);
    assert!(node.ok(&["status"]).text().contains("image: signed by"));
    node.down();
    fails(&node, &["--unsigned"], UNAUTHENTICATED);
}

#[test]
fn the_auditor_reads_who_signed_before_anything_that_a_service_did() {
    let node = Node::boot();
    let key = key_in(&node.signer().with_extension("pub"));
    let status = node.json(&["status"]);
    assert_eq!(status["image_signer"], Value::from(key.clone()));
    let log = node.json(&["audit", "list"]);
    let log = log.as_array().unwrap();
    let at = log.iter().position(|e| e["kind"] == "image").expect("an entry about the image");
    assert_eq!(log[at]["vat"], "kernel");
    assert!(log[at]["detail"].as_str().unwrap().contains(&key), "{}", log[at]);
    let boot = log.iter().position(|e| e["kind"] == "boot").unwrap();
    let edge = log.iter().position(|e| e["kind"] == "edge").unwrap();
    assert!(boot < at && at < edge, "boot {boot}, image {at}, first edge {edge}");
    node.ok(&["audit", "verify"]);
}
