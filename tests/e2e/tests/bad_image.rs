//! A wrong image is told with file and line, and nothing is started or made for it.

use std::fs;
use std::time::Duration;

use distos_e2e::watch::alone;
use distos_e2e::{Node, Output, single_image};

const SOON: Duration = Duration::from_secs(20);

/// Boots this image, which must fail.
fn fails(image: &str) -> (Node, Output) {
    let node = Node::new(image);
    let mut command = node.command(&["up"]);
    command.arg(node.image());
    let output = alone(command, SOON);
    assert_ne!(output.code, 0, "it boots:\n{image}");
    (node, output)
}

/// The image with one edit must be refused, at the edited line and with these words.
fn refused(from: &str, to: &str, words: &[&str]) {
    let image = single_image();
    let at = image.find(from).unwrap_or_else(|| panic!("the image has no '{from}'"));
    let line = image[..at].matches('\n').count() + 1 + to.matches('\n').count();
    let (node, output) = fails(&image.replacen(from, to, 1));
    assert_eq!(output.code, 16, "{}", output.stderr);
    let place = format!("image.toml:{line}: ");
    let said =
        output.stderr.lines().any(|l| l.contains(&place) && words.iter().all(|w| l.contains(w)));
    assert!(said, "no line says '{place}' with {words:?}:\n{}", output.stderr);
    assert!(output.stderr.contains("one fault; nothing was started"), "{}", output.stderr);
    assert!(!node.directory().exists(), "a directory was made for a wrong image");
}

#[test]
fn an_unknown_key_is_told_with_what_was_meant() {
    refused("data = true ", "dato = true ", &["unknown key 'dato'", "[vat.memory]", "'data'"]);
}

/// Vats as threads of one process confine nothing, and are for tests alone.
#[test]
fn no_image_can_ask_for_services_without_processes_of_their_own() {
    let asked = "slots = 262144, mode = \"threads\" }";
    refused("slots = 262144 }", asked, &["unknown key 'mode'"]);
}

#[test]
fn a_missing_program_is_told_with_what_there_is() {
    refused("program = \"gpu\"", "program = \"gppu\"", &["no program 'gppu'", "builtin: memory"]);
    refused("program = \"gpu\"", "program = \"./gpu\"", &["program", "gpu is missing"]);
    refused("/usr/bin/swtpm", "/usr/bin/nosuchtpm", &["nosuchtpm is missing", "install"]);
}

#[test]
fn a_cycle_of_calls_is_told_with_its_members() {
    let power = "  { to = \"audit\",";
    let edge = "  { to = \"memory\", name = \"x\", of = \"scheduler/queue\", rights = [\"run\"] },";
    let (_, output) = fails(&single_image().replacen(power, &format!("{edge}\n{power}"), 1));
    assert_eq!(output.code, 16);
    let cycle = "a cycle of calls: memory → scheduler → executor → memory";
    assert!(output.stderr.contains(cycle), "{}", output.stderr);
}

#[test]
fn a_grant_of_what_does_not_exist_is_told() {
    refused("attestation/attestation", "attestation/tpm", &["no kind 'tpm'"]);
    refused("attestation/attestation", "attestation/queue", &["attestation", "queue"]);
    refused("gpu/gpus", "nosuch/gpus", &["no vat or template 'nosuch'"]);
    refused("to = \"audit\", ", "to = \"nobody\", ", &["no vat or template 'nobody'"]);
    refused("\"lease\"", "\"borrow\"", &["no right", "'borrow'", "lease"]);
    refused("tpm = \"tpm\"", "tpm = \"tpm9\"", &["no device 'tpm9'"]);
    refused("spawn executor", "spawn nobody", &["nobody"]);
    refused("kernel = \"control\"", "kernel = \"crown\"", &["crown"]);
}

#[test]
fn what_is_not_toml_is_told_with_its_line() {
    refused("[vat.gpu]", "[vat.gpu", &["not TOML"]);
    refused("[vat.gpu]", "[vat.audit]", &["duplicate key"]);
}

#[test]
fn every_fault_of_an_image_is_told_at_once() {
    let image = single_image().replacen("\"lease\"", "\"borrow\"", 1);
    let (_, output) = fails(&image.replacen("listen = true ", "lisen = true ", 1));
    assert!(output.stderr.contains("'borrow'"), "{}", output.stderr);
    assert!(output.stderr.contains("'lisen'"), "{}", output.stderr);
}

#[test]
fn a_file_that_is_no_image_is_refused() {
    let node = Node::new("");
    fs::write(node.file("binary"), [0xff; 100]).expect("a file");
    for (file, code, words) in [
        ("nosuch.toml", 15, "nosuch.toml: there is no such file"),
        (".", 16, "is a directory"),
        ("/dev/zero", 16, "longer than"),
        ("binary", 16, "not text"),
        ("../image.toml", 16, "image.toml:1: there is no [image]"),
    ] {
        let output = alone(node.command(&["up", file]), SOON);
        assert_eq!(output.code, code, "{file}: {}", output.stderr);
        assert!(output.stderr.contains(words), "{file}: {}", output.stderr);
        assert!(!node.directory().exists(), "{file}");
    }
}

/// The fault cannot be seen before the start; then whatever was started must end.
#[test]
fn a_program_that_ends_at_once_is_named_and_the_node_does_not_stay() {
    let image = single_image().replacen("program = \"gpu\"", "program = \"/bin/true\"", 1);
    let (node, output) = fails(&image);
    assert!((10..=24).contains(&output.code), "exit code {}", output.code);
    assert!(output.stderr.contains("'gpu' ended while it started"), "{}", output.stderr);
    let sockets = fs::read_dir(node.directory().join("run")).expect("the directory was made");
    assert_eq!(sockets.count(), 0, "a socket is left");
    node.write_image(&single_image());
    let mut node = node;
    node.reboot();
    assert!(node.vat("gpu").is_some());
}
