//! What `distos` answers when there is no node, or what it is given is broken: a clear fault with
//! a stable exit code, and nothing left behind.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output, Stdio};

fn distos(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_distos"));
    command.args(args).current_dir(dir).env_remove("DISTOS_NODE").stdin(Stdio::null());
    command.output().unwrap()
}

fn refused(dir: &Path, args: &[&str], code: i32) -> String {
    let output = distos(dir, args);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
    assert!(output.stdout.is_empty(), "{args:?}");
    text
}

/// Makes `signer.key` and signs an image with it.
fn sign(dir: &Path, image: &str) {
    if !dir.join("signer.key").exists() {
        assert!(distos(dir, &["image", "keygen", "signer.key"]).status.success());
    }
    assert!(distos(dir, &["image", "sign", image, "--key", "signer.key"]).status.success());
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).unwrap().next().is_none()
}

#[test]
fn wrong_usage_is_2_and_no_node_says_how_to_start_one() {
    let dir = tempfile::tempdir().unwrap();
    refused(dir.path(), &["fly"], 2);
    refused(dir.path(), &["region", "put", "x"], 2);
    refused(
        dir.path(),
        &["cap", "delegate", "x", "--to", "y", "-o", "z", "--page", "1", "--range", "0..1"],
        2,
    );
    let text = refused(dir.path(), &["status"], 15);
    assert!(text.contains("distos up"), "{text}");
    let json = refused(dir.path(), &["status", "--json"], 15);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["error"]["name"], "not-found");
    assert!(is_empty(dir.path()));
}

#[test]
fn a_broken_image_starts_nothing_and_makes_no_directory() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("x.toml"), "image = { name = \"x\" }\nvats = 1\n").unwrap();
    sign(dir.path(), "x.toml");
    for more in [&[][..], &["--detach"]] {
        let text = refused(dir.path(), &[&["up", "x.toml", "--node", "n"], more].concat(), 16);
        assert!(text.contains("x.toml:2: unknown key 'vats'"), "{text}");
    }
    refused(dir.path(), &["up", "nosuch.toml"], 15);
    assert!(!dir.path().join("n").exists());
}

#[test]
fn a_directory_of_other_files_or_of_a_newer_node_is_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("x.toml");
    std::fs::write(&image, "image = { name = \"x\" }\n").unwrap();
    sign(dir.path(), "x.toml");
    let text = refused(dir.path(), &["up", "x.toml", "--node", "."], 16);
    assert!(text.contains("not a node's directory"), "{text}");
    std::fs::create_dir(dir.path().join("n")).unwrap();
    std::fs::write(dir.path().join("n/VERSION"), "99\n").unwrap();
    let text = refused(dir.path(), &["up", "x.toml", "--node", "n"], 16);
    assert!(text.contains("newer DistOS"), "{text}");
}

/// The commands that have nothing to do with a node: each kind of failure has its exit code.
#[test]
fn a_signer_is_told_what_is_wrong_with_a_key_a_signature_or_an_image() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("x.toml"), "image = { name = \"x\" }\n").unwrap();
    sign(dir.path(), "x.toml");
    let verify =
        distos(dir.path(), &["image", "verify", "x.toml", "--key", "signer.pub", "--json"]);
    assert!(verify.status.success());
    let said: serde_json::Value = serde_json::from_slice(&verify.stdout).unwrap();
    let public = std::fs::read_to_string(at("signer.pub")).unwrap();
    assert!(public.contains(said["image_signer"].as_str().unwrap()), "{said}");
    refused(dir.path(), &["image", "keygen", "signer.key"], 19);
    let text = refused(dir.path(), &["image", "sign", "x.toml", "--key", "signer.pub"], 16);
    assert!(text.contains("the secret key file is needed"), "{text}");
    let text = refused(dir.path(), &["image", "verify", "x.toml", "--key", "signer.key"], 16);
    assert!(text.contains("public key file only"), "{text}");
    refused(dir.path(), &["image", "verify", "x.toml", "--key", "nosuch.pub"], 15);
    refused(dir.path(), &["image", "sign", "nosuch.toml", "--key", "signer.key"], 15);
    assert!(distos(dir.path(), &["image", "keygen", "other.key"]).status.success());
    let text = refused(dir.path(), &["image", "verify", "x.toml", "--key", "other.pub"], 22);
    assert!(text.contains("and not by"), "{text}");
    std::fs::write(at("x.toml.sig"), "distos image signature v1\nsigner: 00\n").unwrap();
    let text = refused(dir.path(), &["image", "verify", "x.toml"], 16);
    assert!(text.contains("x.toml.sig: line 2"), "{text}");
    std::fs::remove_file(at("x.toml.sig")).unwrap();
    refused(dir.path(), &["image", "verify", "x.toml"], 22);
    refused(dir.path(), &["image", "verify", "x.toml", "--signature", "y.sig"], 15);
    refused(dir.path(), &["up", "x.toml", "--unsigned", "--signer", "signer.pub"], 2);
}

#[test]
fn the_hidden_faces_refuse_a_person_and_say_where_to_go() {
    let dir = tempfile::tempdir().unwrap();
    for hidden in ["vat", "kernel"] {
        let output = distos(dir.path(), &[hidden]);
        assert!(!output.status.success());
        assert!(String::from_utf8(output.stderr).unwrap().contains("distos up"));
    }
}
