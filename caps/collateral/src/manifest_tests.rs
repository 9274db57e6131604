use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

/// When the signers of the real documents were certified.
const IN_2024_S: u64 = 1_720_000_000;
const IN_2026_S: u64 = 1_790_000_000;

pub(crate) fn read(name: &str) -> Option<Vec<u8>> {
    let root = std::env::var_os("DISTOS_TESTDATA").map_or_else(
        || std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/testdata"),
        PathBuf::from,
    );
    let path = root.join("attestation/nvidia").join(name);
    match std::fs::read(&path) {
        Ok(bytes) => Some(bytes),
        Err(error) if std::env::var_os("DISTOS_TESTDATA").is_none() => {
            eprintln!("NOT TESTED: {}: {error}; DISTOS_TESTDATA names its folder", path.display());
            None
        }
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

fn verify(document: &[u8], root: &str, at_s: u64) -> Option<Result<Manifest, Refusal>> {
    let roots = Certificate::several(&read(root)?).unwrap();
    let anchors = Anchors { roots: &roots, others: &[], crls: &[], responses: &[], at_s };
    Some(Manifest::verify(document, anchors))
}

#[test]
fn makers_documents_are_read_if_their_signer_was_certified_then() {
    for (name, at_s, product, version, count) in [
        ("ls10-vbios-rim-9610550001.xml", IN_2026_S, "LS10", "96.10.55.00.01", 31),
        ("vbios-rim-96005E0001.swidtag", IN_2024_S, "GH100", "96.00.5E.00.01", 12),
        ("driver-rim-sample.swidtag", IN_2024_S, "GH100", "545.00", 21),
    ] {
        let Some(document) = read(name) else { return };
        let manifest = verify(&document, "rim-root.pem", at_s).unwrap().unwrap();
        let golden = &manifest.golden;
        assert_eq!((golden.product.as_str(), golden.version.as_str()), (product, version));
        assert_eq!(golden.values.len(), count, "{name}");
        // Five years later, or signed by somebody whom another root certifies.
        let later = verify(&document, "rim-root.pem", 1_950_000_000).unwrap().unwrap_err();
        assert!(matches!(later, Refusal::Signer(pki::Refusal::NotValid { .. })), "{later}");
        let other = verify(&document, "device-root.pem", at_s).unwrap().unwrap_err();
        assert!(matches!(other, Refusal::Signer(_)), "{other}");
    }
}

/// The text with one piece of it changed.
fn changed(document: &[u8], from: &str, to: &str) -> Vec<u8> {
    let text = std::str::from_utf8(document).unwrap();
    assert!(text.contains(from), "{from}");
    text.replacen(from, to, 1).into_bytes()
}

#[test]
fn a_document_that_was_changed_says_nothing() {
    let Some(document) = read("ls10-vbios-rim-9610550001.xml") else { return };
    let refused =
        |document: &[u8]| verify(document, "rim-root.pem", IN_2026_S).unwrap().unwrap_err();
    for (from, to) in [
        ("9083ccee", "9083ccef"),
        ("96.10.55.00.01", "96.10.55.00.02"),
        ("active=\"True\"", "active=\"False\""),
        ("kzIxVDdqkzLcIO2b", "kzIxVDdqkzLcIO2c"),
        ("rW6Q1OhBEnY6MwAl", "rW6Q1OhBEnY6MwAm"),
        // The signature left alone, and something beside what it is over.
        ("</ns0:Payload>", "<ns0:Resource type=\"Measurement\"/></ns0:Payload>"),
        ("</SoftwareIdentity>", "<ns0:Payload/></SoftwareIdentity>"),
    ] {
        let why = refused(&changed(&document, from, to));
        assert!(matches!(why, Refusal::Signature(_)), "{from}: {why}");
    }
}

#[test]
fn no_part_of_a_document_is_signed_for_the_whole() {
    let Some(document) = read("ls10-vbios-rim-9610550001.xml") else { return };
    let text = String::from_utf8(document).unwrap();
    let refused = |document: &str| {
        verify(document.as_bytes(), "rim-root.pem", IN_2026_S).unwrap().unwrap_err()
    };
    // The signed document within another one that says what somebody likes.
    let inner = text.trim();
    let start = inner.find("<SoftwareIdentity").unwrap();
    let signature = inner.find("<ds:Signature").unwrap();
    let wrapped = format!("{}{}</SoftwareIdentity>", &inner[..signature], &inner[start..]);
    refused(&wrapped);
    let twice = inner.replacen(
        "<ds:Signature",
        &format!("{}<ds:Signature", &inner[signature..inner.len() - "</SoftwareIdentity>".len()]),
        1,
    );
    assert!(matches!(refused(&twice), Refusal::Malformed(_)));
    let weaker = inner.replacen("ecdsa-sha384", "ecdsa-sha256", 1);
    assert!(matches!(refused(&weaker), Refusal::Malformed(_)));
    for (from, to) in [
        ("URI=\"\"", "URI=\"#part\""),
        ("URI=\"\"", "URI=\"https://example.invalid/\""),
        ("xmldsig#enveloped-signature", "REC-xslt-19991116"),
    ] {
        let why = refused(&inner.replacen(from, to, 1));
        assert!(matches!(why, Refusal::Signature(_)), "{to}: {why}");
    }
    let without = format!("{}</SoftwareIdentity>", &inner[..signature]);
    assert!(matches!(refused(&without), Refusal::Malformed(_)));
}

#[test]
fn nothing_but_a_small_tag_is_parsed() {
    let anchors = Anchors { roots: &[], others: &[], crls: &[], responses: &[], at_s: IN_2026_S };
    let refused = |document: &[u8]| Manifest::verify(document, anchors).unwrap_err();
    for document in [
        &b""[..],
        b"<a/>",
        b"\xff\xfe",
        b"<SoftwareIdentity/>",
        b"<!DOCTYPE a [<!ENTITY b \"c\">]><a>&b;</a>",
        b"<!DOCTYPE a SYSTEM \"file:///etc/hostname\"><a/>",
    ] {
        assert!(matches!(refused(document), Refusal::Malformed(_)), "{document:?}");
    }
    let long = vec![b' '; MAX_DOCUMENT_BYTES + 1];
    assert!(matches!(refused(&long), Refusal::Malformed(why) if why.contains("bytes")));
    let deep = "<a>".repeat(100_000);
    assert!(matches!(refused(deep.as_bytes()), Refusal::Malformed(_)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let anchors = Anchors { roots: &[], others: &[], crls: &[], responses: &[], at_s: IN_2026_S };
        prop_assert!(Manifest::verify(&bytes, anchors).is_err());
    }
}
