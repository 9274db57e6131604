//! TPM quotes, signatures and keys, and what is carried between a node that joins and one that invites.

use std::sync::LazyLock;

use distos_abi::{Fault, HolderKey, NodeId};
use distos_evidence::credential::{EndorsementKey, Template};
use distos_evidence::enrolment::{Makers, Origin, stored};
use distos_evidence::evidence::{Attest, AttestationKey, PcrSet, Pcrs, Policy, appraise};
use distos_evidence::findings::Findings;
use distos_evidence::joining::{Challenge, Expected, IMAGE_PCR, Request, Sealed, admit};
use distos_evidence::live::{
    Bundle, Expected as Wants, Identity, Question, Session, Wanted, examine, examine_gpus,
};
use distos_evidence::pki::Anchors;
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

const ONE: NodeId = NodeId([1; 32]);

/// `TPMT_PUBLIC` of an endorsement key.
fn endorsement() -> Vec<u8> {
    let point = signing_key().verifying_key().to_encoded_point(false);
    let template = Template::P256.public();
    let (x, y) = (point.x().unwrap(), point.y().unwrap());
    [&template[..template.len() - 68], &sized(x), &sized(y)].concat()
}

fn request() -> Request {
    let own = AttestationKey::from_public(&public()).unwrap();
    let quote = attest(&own.qualified_name());
    Request {
        node: ONE,
        key: HolderKey([3; 32]),
        nonce: NONCE,
        ek: endorsement(),
        certificate: Some(vec![0x30, 0]),
        ak: public(),
        signature: signature(&quote),
        quote,
        pcrs: pcrs(),
    }
}

pub(super) fn joining_seeds() -> Vec<(String, Vec<u8>)> {
    let challenge = Challenge { inviter: ONE, node: ONE, nonce: NONCE };
    let sealed = r#"{"distos":"sealed invitation","version":1,"node":"00","ak_name":"00","credential":"00","secret":"00","sealed":"00"}"#;
    let sealed = sealed
        .replace(r#""credential":"00""#, &format!(r#""credential":"00440020{}""#, "0a".repeat(66)))
        .replace(r#""secret":"00""#, &format!(r#""secret":"00440020{0}0020{0}""#, "0c".repeat(32)))
        .replace(r#""node":"00""#, &format!(r#""node":"{}""#, "01".repeat(32)))
        .replace(r#""ak_name":"00""#, &format!(r#""ak_name":"{}""#, "0b".repeat(34)));
    vec![
        seed("challenge", challenge.to_json().unwrap()),
        seed("request", request().to_json().unwrap()),
        seed("sealed", sealed),
    ]
}

/// What is read is written again as the same, opens with no secret that it was not made with, and nobody is admitted by
/// a quote that answers something else.
pub(super) fn joining(bytes: &[u8]) {
    let _ = EndorsementKey::from_public(bytes).map(|key| key.name());
    let _ = stored(bytes).map(|certificate| Origin::of(&certificate));
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(read) = Challenge::parse(text) {
        assert_eq!(Challenge::parse(&read.to_json().unwrap()), Ok(read));
    }
    if let Ok(read) = Sealed::parse(text) {
        assert!(matches!(read.open(&[7; 32]), Err(Fault::Unauthenticated(_))));
        assert_eq!(Sealed::parse(&read.to_json().unwrap()), Ok(read));
    }
    if let Ok(read) = Request::parse(text) {
        assert_eq!(Request::parse(&read.to_json().unwrap()).as_ref(), Ok(&read));
        let ek = EndorsementKey::from_public(&endorsement()).unwrap().name();
        let references = Pcrs::from([(IMAGE_PCR, [9; 32])]);
        let expected = Expected {
            inviter: ONE,
            node: ONE,
            nonce: NONCE,
            ek: Some(ek),
            makers: Makers::default(),
            references,
            at_s: 1,
        };
        assert!(admit(&read, &expected).is_err(), "its quote answers another challenge");
    }
}

/// What verifiers and collectors of other nodes say.
pub(super) fn live_seeds() -> Vec<(String, Vec<u8>)> {
    let wanted = Wanted { nonce: NONCE, pcrs: (0..8).collect(), listed: 17 };
    let Request { ek, certificate, ak, quote, signature, pcrs, .. } = request();
    let identity = Identity { ek, certificate, ak };
    let gpu = distos_evidence::live::Gpu {
        arch: "HOPPER".to_owned(),
        chain: String::new(),
        report: "11e0".to_owned(),
        mode: "on".to_owned(),
        fault: String::new(),
    };
    let bundle = Bundle {
        image: [9; 32],
        quote,
        signature,
        pcrs,
        quote_micros: 850,
        log: Some(b"log".to_vec()),
        list: Some(b"10 list".to_vec()),
        more: true,
        gpus: Some(vec![gpu]),
    };
    vec![
        seed("identity", identity.to_bytes()),
        seed("question", Question::Evidence(wanted).to_bytes()),
        seed("who", Question::Identity.to_bytes()),
        seed("bundle", bundle.to_bytes()),
    ]
}

/// What is read is written again as the same, and evidence that answers something else is never good.
pub(super) fn live(bytes: &[u8]) {
    if let Ok(read) = Question::parse(bytes) {
        assert_eq!(Question::parse(&read.to_bytes()), Ok(read));
    }
    if let Ok(read) = Identity::parse(bytes) {
        assert_eq!(Identity::parse(&read.to_bytes()), Ok(read));
    }
    let Ok(read) = Bundle::parse(bytes) else { return };
    let session = Session { verifier: ONE, node: ONE, key: HolderKey([3; 32]), life: [4; 32] };
    let key = AttestationKey::from_public(&public()).expect("a key");
    let qualifying = session.qualifying(&[8; 32]);
    let pcrs = (0..8).collect();
    let wants = Wants { key: &key, qualifying: &qualifying, pcrs, baseline: None };
    assert!(examine(&read, wants, &mut Findings::default()).is_none());
    let anchors = Anchors { roots: &[], others: &[], crls: &[], responses: &[], at_s: 1 };
    let gpus = read.gpus.as_deref().unwrap_or_default();
    if let Ok(machine) = examine_gpus(gpus, &session, &[8; 32], anchors, &[]) {
        assert_eq!(machine.devices.len(), gpus.len());
    }
    assert_eq!(Bundle::parse(&read.to_bytes()), Ok(read));
}
