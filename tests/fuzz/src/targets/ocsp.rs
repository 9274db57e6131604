//! What responders say of certificates.

use std::sync::LazyLock;

use distos_evidence::ocsp::Response;
use distos_evidence::pki::{Anchors, Certificate, Path, Refusal};
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{DerSignature, SigningKey};
use sha2::{Digest as _, Sha256};

use super::seed;

const AT_S: u64 = 1_780_000_000;
/// `ecdsa-with-SHA256`.
const ALGORITHM: &[u8] = &[0x30, 10, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
/// `id-ecPublicKey`, on P-256.
const EC_KEY: &[u8] = &[
    0x30, 19, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7,
];
const GOOD: &[u8] = &[0x80, 0];
const SERIAL: u8 = 0x4d;

/// One element of DER.
fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = content.len();
    let length = match length {
        0..0x80 => vec![length as u8],
        0x80..0x100 => vec![0x81, length as u8],
        _ => [&[0x82][..], &u16::try_from(length).unwrap().to_be_bytes()].concat(),
    };
    [&[tag][..], &length, &content].concat()
}

fn time(text: &str) -> Vec<u8> {
    tlv(0x18, &[text.as_bytes()])
}

fn name(text: &str) -> Vec<u8> {
    let common = tlv(0x30, &[&[6, 3, 0x55, 4, 3], &tlv(12, &[text.as_bytes()])]);
    tlv(0x30, &[&tlv(0x31, &[&common])])
}

/// A root that is pinned, one certificate of its, and what it has said of that.
struct World {
    key: SigningKey,
    root: Certificate,
    leaf: Certificate,
    /// What it has signed: that the certificate is good, and that it is revoked.
    said: [Vec<u8>; 2],
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let [key, other] = [[1; 32], [2; 32]].map(|seed| SigningKey::from_slice(&seed).unwrap());
    let root = certificate(1, "root", &key, &key);
    let leaf = certificate(SERIAL, "leaf", &other, &key);
    let revoked = tlv(0xa1, &[&time("20260101000000Z")]);
    let said = [GOOD, &revoked].map(|status| {
        let hashes = [name("root"), point(&key)].map(|of| tlv(4, &[&Sha256::digest(of)]));
        let sha256 = [0x30, 11, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1];
        let id = tlv(0x30, &[&sha256, &hashes[0], &hashes[1], &[2, 1, SERIAL]]);
        let until = tlv(0xa0, &[&time("20270101000000Z")]);
        let single = tlv(0x30, &[&id, status, &time("20260102000000Z"), &until]);
        let responder = tlv(0xa1, &[&name("root")]);
        let made = time("20260102000000Z");
        tlv(0x30, &[&responder, &made, &tlv(0x30, &[&single])])
    });
    World { key, root, leaf, said }
});

fn point(key: &SigningKey) -> Vec<u8> {
    key.verifying_key().to_encoded_point(false).as_bytes().to_vec()
}

fn signed(data: &[u8], by: &SigningKey, behind: &[u8]) -> Vec<u8> {
    let signature: DerSignature = by.sign(data);
    let signature = tlv(3, &[&[0], signature.as_bytes()]);
    tlv(0x30, &[data, ALGORITHM, &signature, behind])
}

fn certificate(serial: u8, whose: &str, key: &SigningKey, by: &SigningKey) -> Certificate {
    let info = tlv(0x30, &[EC_KEY, &tlv(3, &[&[0], &point(key)])]);
    let valid = tlv(0x30, &[&time("20200101000000Z"), &time("20600101000000Z")]);
    let issuer = name("root");
    let body = [&[2, 1, serial][..], ALGORITHM, &issuer, &valid, &name(whose), &info].concat();
    Certificate::from_der(&signed(&tlv(0x30, &[&body]), by, &[])).unwrap()
}

/// A response with that signed part.
fn response(data: &[u8], by: &SigningKey, behind: &[u8]) -> Vec<u8> {
    let of = [6, 9, 0x2b, 6, 1, 5, 5, 7, 48, 1, 1];
    let bytes = tlv(0x30, &[&of, &tlv(4, &[&signed(data, by, behind)])]);
    tlv(0x30, &[&[10, 1, 0], &tlv(0xa0, &[&bytes])])
}

pub(super) fn seeds() -> Vec<(String, Vec<u8>)> {
    let World { key, root, said: [good, revoked], .. } = &*WORLD;
    let behind = tlv(0xa0, &[&tlv(0x30, &[root.der()])]);
    let (data, good) = (good.clone(), response(good, key, &[]));
    let revoked = response(revoked, key, &behind);
    // Or the engine begins with what says nothing anyway.
    let counts = |der: &[u8]| known(Response::from_der(der).unwrap());
    assert!(counts(&good) == Some(true) && counts(&revoked).is_none());
    let refused = seed("refused", &[0x30, 3, 10, 1, 6][..]);
    vec![seed("good", good), seed("revoked", revoked), refused, seed("data", data)]
}

/// Whether it is known of the certificate that it is not revoked; `None` if it is.
fn known(response: Response) -> Option<bool> {
    let World { root, leaf, .. } = &*WORLD;
    let (roots, responses) = (std::slice::from_ref(root), std::slice::from_ref(&response));
    let anchors = Anchors { roots, others: &[], crls: &[], responses, at_s: AT_S };
    match Path::find(leaf, &[], anchors, None) {
        Ok(path) => Some(path.is_revocation_known()),
        Err(Refusal::Revoked { .. }) => None,
        Err(other) => panic!("{other}"),
    }
}

/// Only what the issuer has signed counts, whatever is around it. The bytes are also taken for what it has signed: then
/// they say something of a certificate only if they name it.
pub(super) fn target(bytes: &[u8]) {
    let has = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    if let Ok(read) = Response::from_der(bytes) {
        assert!(read.der() == bytes && Response::is_one(bytes));
        match known(read) {
            Some(true) => assert!(has(&WORLD.said[0]), "nobody has said that"),
            Some(false) => {}
            None => assert!(has(&WORLD.said[1]), "nobody has taken it back"),
        }
    }
    if let Ok(read) = Response::from_der(&response(bytes, &WORLD.key, &[])) {
        let says_something = known(read) != Some(false);
        assert!(!says_something || has(&[2, 1, SERIAL]), "of another certificate");
    }
}
