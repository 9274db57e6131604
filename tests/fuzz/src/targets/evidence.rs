//! TPM quotes, signatures and attestation keys.

use std::sync::LazyLock;

use distos_evidence::evidence::{Attest, AttestationKey, PcrSet, Pcrs, Policy, appraise};
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};
use sha2::{Digest, Sha256};

use super::seed;
use crate::Input;

const NONCE: [u8; 32] = [5; 32];

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

fn pcrs() -> Pcrs {
    (0..8).map(|pcr| (pcr, [pcr; 32])).collect()
}

fn signing_key() -> SigningKey {
    SigningKey::from_slice(&[6; 32]).unwrap()
}

/// `TPMT_PUBLIC` of a restricted P-256 signing key.
fn public() -> Vec<u8> {
    let point = signing_key().verifying_key().to_encoded_point(false);
    let template = "0023000b00050472000000100018000b00030010";
    let (x, y) = (point.x().unwrap(), point.y().unwrap());
    [hex::decode(template).unwrap(), sized(x), sized(y)].concat()
}

/// `TPMS_ATTEST` of a quote over [`pcrs`].
fn attest(signer: &[u8]) -> Vec<u8> {
    let values: Vec<u8> = pcrs().values().flatten().copied().collect();
    let digest = Sha256::digest(&values);
    let mut out = hex::decode("ff5443478018").unwrap();
    out.extend(sized(signer));
    out.extend(sized(&NONCE));
    out.extend(
        [&1_000u64.to_be_bytes()[..], &2u32.to_be_bytes(), &0u32.to_be_bytes(), &[1]].concat(),
    );
    out.extend(7u64.to_be_bytes());
    out.extend([&1u32.to_be_bytes()[..], &0x000bu16.to_be_bytes(), &[3, 0xff, 0, 0]].concat());
    out.extend(sized(&digest));
    out
}

fn signature(message: &[u8]) -> Vec<u8> {
    let signature: Signature = signing_key().sign(message);
    let (r, s) = signature.split_bytes();
    [&[0, 0x18, 0, 0x0b][..], &sized(&r), &sized(&s)].concat()
}

/// Key, quote and signature, each with its length, as the target takes them apart.
fn bundle() -> Vec<u8> {
    let key = AttestationKey::from_public(&public()).unwrap();
    let quote = attest(&key.qualified_name());
    let signature = signature(&quote);
    [sized(&public()), sized(&quote), sized(&signature)].concat()
}

static BUNDLE: LazyLock<Vec<u8>> = LazyLock::new(bundle);

pub(super) fn seeds() -> Vec<(String, Vec<u8>)> {
    vec![seed("quote", BUNDLE.clone()), seed("pcrs", "0-7,11,23")]
}

fn part<'a>(input: &mut Input<'a>) -> &'a [u8] {
    let len = u16::from_be_bytes(input.array());
    input.take(usize::from(len))
}

/// A quote is good only if it is the one that the key signed for this challenge.
pub(super) fn quote(bytes: &[u8]) {
    if let Ok(set) = PcrSet::parse(&String::from_utf8_lossy(bytes)) {
        assert!(set.iter().all(|pcr| pcr < PcrSet::COUNT));
        assert_eq!(set.iter().collect::<PcrSet>(), set);
    }
    let mut input = Input::new(bytes);
    let (public, message, signature) = (part(&mut input), part(&mut input), part(&mut input));
    if let Ok(attest) = Attest::parse(message) {
        let _ = attest.quote_body();
    }
    let own = AttestationKey::from_public(&self::public()).unwrap();
    for key in AttestationKey::from_public(public).into_iter().chain([own]) {
        let good = appraise(&Policy::new(pcrs()), &key, &NONCE, message, signature, &pcrs(), None);
        if let Ok(good) = good {
            assert_eq!(good.pcrs, pcrs().keys().copied().collect());
            // ECDSA signatures can be rewritten by anyone; what they sign cannot.
            assert_eq!(
                message,
                attest(&key.qualified_name()),
                "a quote that nobody signed is good"
            );
        }
    }
    // What follows the signature: the same message under a signature that holds.
    let own = AttestationKey::from_public(&self::public()).unwrap();
    let signed = self::signature(message);
    let _ = appraise(&Policy::new(pcrs()), &own, &NONCE, message, &signed, &pcrs(), None);
}
