//! Who is who in a cluster, as its operator makes it on a machine of its own: no node is needed.
//! OpenSSL and the SPIFFE project's own library read what is made here as we do.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::Command;

use distos_e2e::{COMMAND_TIMEOUT, Output, distos, run};
use serde_json::Value;
use spiffe::{TrustDomain, X509Bundle, X509Svid};

const UNAUTHENTICATED: i32 = 22;
const MALFORMED: i32 = 16;
const EXPIRED: i32 = 12;
const EXISTS: i32 = 19;
const NODE: &str = "node/0101010101010101010101010101010101010101010101010101010101010101";

/// A directory in which somebody runs `distos`.
struct Desk(tempfile::TempDir);

impl Desk {
    /// One with a cluster, an issuer that runs on no node, and a node's key.
    fn with_cluster() -> Desk {
        let desk = Desk(tempfile::tempdir().unwrap());
        desk.ok(&["cluster", "init", "demo.example"]);
        for key in ["issuer.key", "node.key"] {
            desk.ok(&["image", "keygen", key]);
        }
        desk.ok(&["cluster", "issuer", "issuer.pub"]);
        desk
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(distos());
        command.args(args).current_dir(self.path());
        run(command, b"", COMMAND_TIMEOUT)
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.code, 0, "{args:?}: {}", output.stderr);
        output.text()
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[args, &["--json"]].concat())).unwrap()
    }

    fn fails(&self, args: &[&str], code: i32) -> String {
        let output = self.run(args);
        assert_eq!(output.code, code, "{args:?}: {}", output.stderr);
        output.stderr
    }
}

#[test]
fn an_operator_makes_a_cluster_and_everybody_in_it_is_known_by_its_svid() {
    let desk = Desk::with_cluster();
    desk.ok(&["cluster", "svid", NODE, "node.pub"]);
    let found = desk.json(&["cluster", "verify", "node.pem"]);
    assert_eq!(found["id"], format!("spiffe://demo.example/{NODE}"));
    let key = fs::read_to_string(desk.path().join("node.pub")).unwrap();
    assert_eq!(found["key"].as_str(), key.lines().nth(1));
    // An agent is named by the key with which it holds capabilities.
    desk.ok(&["image", "keygen", "red.key"]);
    let did = desk.json(&["cluster", "did", "red.pub"])["id"].as_str().unwrap().to_owned();
    let agent = format!("tenant/red/agent/{}", did.strip_prefix("did:key:").unwrap());
    let service = format!("{NODE}/service/memory");
    for who in [&agent, &service] {
        desk.ok(&["cluster", "svid", who, "red.pub", "--lasting", "10m"]);
        for side in ["client", "server"] {
            let text = desk.ok(&["cluster", "verify", "red.pem", "--for", side]);
            assert!(text.contains(who), "{text}");
        }
    }
    for key in ["root.key", "issuer.key"] {
        let mode =
            std::os::unix::fs::MetadataExt::mode(&fs::metadata(desk.path().join(key)).unwrap());
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
}

#[test]
fn nothing_is_replaced_and_what_nobody_would_take_is_not_signed() {
    let desk = Desk::with_cluster();
    let before = fs::read(desk.path().join("bundle.json")).unwrap();
    desk.fails(&["cluster", "init", "demo.example", "--root", "other.key"], EXISTS);
    desk.fails(&["cluster", "init", "demo.example", "--bundle", "other.json"], EXISTS);
    assert_eq!(fs::read(desk.path().join("bundle.json")).unwrap(), before);
    assert!(!desk.path().join("other.key").exists(), "a key for a cluster that was not made");
    let nowhere = ["--root", "other.key", "--bundle", "nowhere/other.json"];
    desk.fails(&[&["cluster", "init", "demo.example"], &nowhere[..]].concat(), 15);
    assert!(!desk.path().join("other.key").exists(), "a root without a bundle");
    // The bundle's file is one of the key's; a root that would hold for ever.
    for (root, bundle) in [("own.key", "own.key"), ("own.key", "own.pub")] {
        desk.fails(&["cluster", "init", "demo", "--root", root, "--bundle", bundle], EXISTS);
        assert!(!desk.path().join("own.key").exists() && !desk.path().join("own.pub").exists());
    }
    let ever = ["cluster", "init", "demo", "--root", "own.key", "--lasting", "9999999d"];
    desk.fails(&[&ever, &["--bundle", "own.json"][..]].concat(), MALFORMED);
    assert!(!desk.path().join("own.key").exists());
    desk.fails(&["cluster", "init", "Demo", "--root", "d.key", "--bundle", "d.json"], MALFORMED);
    assert!(!desk.path().join("d.key").exists());
    // A key that is no root of this cluster.
    let said =
        desk.fails(&["cluster", "issuer", "node.pub", "--root", "node.key"], UNAUTHENTICATED);
    assert!(said.contains("no root"), "{said}");
    // Longer than a day; for ever; for nobody; over the issuer's own certificate.
    let svid = |more: &[&str]| desk.fails(&[&["cluster", "svid"], more].concat(), MALFORMED);
    svid(&[NODE, "node.pub", "--lasting", "25h"]);
    svid(&[NODE, "node.pub", "--lasting", "0s"]);
    svid(&["node/1", "node.pub"]);
    let exists = |more: &[&str]| desk.fails(&[&["cluster", "svid"], more].concat(), EXISTS);
    exists(&[NODE, "issuer.pub"]);
    exists(&[NODE, "./issuer.pub"]);
    for kept in ["root.key", "issuer.key", "bundle.json"] {
        let before = fs::read(desk.path().join(kept)).unwrap();
        exists(&[NODE, "node.pub", "--out", kept]);
        desk.fails(&["cluster", "issuer", "node.pub", "--out", kept], EXISTS);
        assert_eq!(fs::read(desk.path().join(kept)).unwrap(), before);
    }
    svid(&[NODE, "node.key"]);
    assert!(!desk.path().join("node.pem").exists());
    // A whole day, and a newer one in its place.
    for lasting in ["24h", "1d", "1h"] {
        desk.ok(&["cluster", "svid", NODE, "node.pub", "--lasting", lasting]);
        desk.ok(&["cluster", "verify", "node.pem"]);
    }
}

#[test]
fn an_issuer_on_a_node_signs_for_others_only() {
    let desk = Desk::with_cluster();
    desk.ok(&["image", "keygen", "own.key"]);
    desk.ok(&["cluster", "issuer", "own.pub", "--home", NODE]);
    let own = |who: &str| {
        vec!["cluster", "svid", who, "node.pub", "--issuer", "own.key"]
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let service = format!("{NODE}/service/memory");
    for who in [NODE, &service] {
        let args = own(who);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let said = desk.fails(&args, UNAUTHENTICATED);
        assert!(said.contains("never signs for its own node"), "{said}");
    }
    let other = NODE.replace("01", "02");
    let args = own(&other);
    desk.ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
    desk.ok(&["cluster", "verify", "node.pem"]);
}

#[test]
fn an_svid_is_worth_nothing_later_elsewhere_or_changed() {
    let desk = Desk::with_cluster();
    desk.ok(&["cluster", "svid", NODE, "node.pub"]);
    let verify = |more: &[&str], code| {
        desk.fails(&[&["cluster", "verify", "node.pem"], more].concat(), code)
    };
    verify(&["--at", "2099-01-01T00:00:00Z"], EXPIRED);
    verify(&["--at", "2001-01-01T00:00:00Z"], UNAUTHENTICATED);
    verify(&["--at", "tomorrow"], 2);
    // A cluster of the same name, of somebody else's.
    let other = ["--root", "other.key", "--bundle", "other.json"];
    desk.ok(&[&["cluster", "init", "demo.example"], &other[..]].concat());
    verify(&["--bundle", "other.json"], UNAUTHENTICATED);
    let path = desk.path().join("node.pem");
    let good = fs::read_to_string(&path).unwrap();
    fs::write(&path, &good[..good.len() / 2]).unwrap();
    verify(&[], MALFORMED);
    fs::write(&path, "").unwrap();
    verify(&[], MALFORMED);
    // The root's own secret in place of a certificate: it is not repeated.
    fs::copy(desk.path().join("root.key"), &path).unwrap();
    let said = verify(&[], MALFORMED);
    let secret = fs::read_to_string(desk.path().join("root.key")).unwrap();
    assert!(!said.contains(secret.lines().nth(1).unwrap()), "the secret is in the message");
}

fn openssl(desk: &Desk, args: &[&str]) -> Output {
    let mut command = Command::new("openssl");
    command.args(args).current_dir(desk.path());
    run(command, b"", COMMAND_TIMEOUT)
}

#[test]
fn openssl_takes_the_same_chain_and_refuses_the_same_stranger() {
    let desk = Desk::with_cluster();
    desk.ok(&["cluster", "svid", NODE, "node.pub"]);
    let bundle: Value =
        serde_json::from_slice(&fs::read(desk.path().join("bundle.json")).unwrap()).unwrap();
    let root = bundle["keys"][0]["x5c"][0].as_str().unwrap();
    let pem = format!("-----BEGIN CERTIFICATE-----\n{root}\n-----END CERTIFICATE-----\n");
    fs::write(desk.path().join("root.pem"), pem).unwrap();
    for purpose in ["sslclient", "sslserver"] {
        let args = ["verify", "-x509_strict", "-purpose", purpose, "-CAfile", "root.pem"];
        let output =
            openssl(&desk, &[&args, &["-untrusted", "issuer.pem", "node.pem"][..]].concat());
        assert_eq!(output.code, 0, "{} {}", output.text(), output.stderr);
    }
    let shown = openssl(&desk, &["x509", "-in", "node.pem", "-noout", "-text"]).text();
    for word in [&format!("URI:spiffe://demo.example/{NODE}"), "ED25519", "Digital Signature"] {
        assert!(shown.contains(word), "no {word} in {shown}");
    }
    let alone = openssl(&desk, &["verify", "-CAfile", "root.pem", "node.pem"]);
    assert_ne!(alone.code, 0, "without its issuer nobody stands behind it");
}

/// Of a file of certificates, DER, one behind the other, as the library takes them.
fn der(desk: &Desk, file: &str) -> Vec<Vec<u8>> {
    let text = fs::read_to_string(desk.path().join(file)).unwrap();
    distos_identity::from_pem(&text).unwrap()
}

#[test]
fn the_spiffe_projects_library_reads_our_svids_and_bundles() {
    let desk = Desk::with_cluster();
    desk.ok(&["cluster", "svid", NODE, "node.pub"]);
    let text = fs::read_to_string(desk.path().join("bundle.json")).unwrap();
    let roots: Vec<u8> =
        distos_identity::Bundle::parse(&text).unwrap().roots().flatten().copied().collect();
    let domain = TrustDomain::new("demo.example").unwrap();
    let bundle = X509Bundle::parse_from_der(domain.clone(), &roots).unwrap();
    assert_eq!(bundle.authorities().len(), 1);
    let chain = der(&desk, "node.pem").concat();
    let svid = X509Svid::parse_from_der(&chain, &pkcs8(&desk)).unwrap();
    assert_eq!(svid.spiffe_id().to_string(), format!("spiffe://demo.example/{NODE}"));
    assert_eq!(svid.spiffe_id().trust_domain(), &domain);
    assert_eq!(svid.cert_chain().len(), 2);
}

/// The node's secret key as PKCS #8 has it (RFC 8410, section 7).
fn pkcs8(desk: &Desk) -> Vec<u8> {
    let text = fs::read_to_string(desk.path().join("node.key")).unwrap();
    let seed = hex::decode(text.lines().nth(1).unwrap()).unwrap();
    let head = hex::decode("302e020100300506032b657004220420").unwrap();
    [head, seed].concat()
}
