//! Appraisal policies that somebody has signed, and attestation results.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use distos_abi::NodeId;
use distos_appraisal::{
    Appraised, Bound, Device, Ear, Kind, MAX_EAR_LIFETIME_S, POLICY, Policies, Tier, VerifierId,
    appraise,
};
use distos_evidence::findings::Findings;
use distos_identity::{DetachedSignature, TokenSecret, Validity, sign_compact};
use distos_types::HolderSecret;

use super::seed;
use crate::Input;

const NOW_S: u64 = 1_800_000_000;
const NODE: NodeId = NodeId([1; 32]);
/// The policies that people are shown.
const EXAMPLES: [(&str, &str); 4] = [
    ("software-tpm", include_str!("../../../../docs/examples/policies/software-tpm.cedar")),
    ("measured-boot", include_str!("../../../../docs/examples/policies/measured-boot.cedar")),
    ("confidential-gpu", include_str!("../../../../docs/examples/policies/confidential-gpu.cedar")),
    ("snp", include_str!("../../../../docs/examples/policies/snp.cedar")),
];

fn signer() -> HolderSecret {
    HolderSecret::from_seed([1; 32])
}

fn token_secret() -> TokenSecret {
    TokenSecret::from_seed(&[2; 32]).unwrap()
}

fn signature(file: &[u8]) -> String {
    DetachedSignature::sign(POLICY, file, &signer()).to_text()
}

/// A signature file behind its length, and what it is beside.
fn signed(file: &str) -> Vec<u8> {
    let signature = signature(file.as_bytes());
    [&(signature.len() as u16).to_be_bytes()[..], signature.as_bytes(), file.as_bytes()].concat()
}

pub(super) fn policy_seeds() -> Vec<(String, Vec<u8>)> {
    EXAMPLES.iter().map(|(name, file)| seed(name, signed(file))).collect()
}

/// Of these kinds one device each, of which the checks passed that examples ask for.
fn devices() -> BTreeMap<String, Device> {
    let device = |kind: Kind| {
        let mut findings = Findings::default();
        for name in ["signature", "nonce", "certificate chain", "golden values", "replay"] {
            findings.passed(name, "");
        }
        findings.claim("tpm", "software");
        (kind.name().to_owned(), Device { kind, findings })
    };
    Kind::ALL.map(device).into()
}

fn is_good(tier: Tier) -> bool {
    matches!(tier, Tier::Affirming | Tier::Warning)
}

fn asked(policies: &Policies, devices: &BTreeMap<String, Device>) -> Appraised {
    appraise(Some(policies), NODE, NODE, devices).unwrap()
}

/// Only what was signed is taken, and whatever a policy says, it does not say what no policy can.
pub(super) fn policy(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let length = u16::from_be_bytes(input.array());
    let (by, file) = (input.take(length.into()).to_vec(), input.rest());
    let by = String::from_utf8_lossy(&by);
    if let Ok(policies) = Policies::open(file, &by, &[signer().key()]) {
        assert!(EXAMPLES.iter().any(|(_, own)| own.as_bytes() == file), "{policies:?} is made up");
    }
    // Behind the signature: the parser, the validator, and every kind of device.
    let Ok(policies) = Policies::open(file, &signature(file), &[signer().key()]) else { return };
    let text = std::str::from_utf8(file).unwrap();
    let mut devices = devices();
    for (kind, appraisal) in asked(&policies, &devices).submods().values() {
        let accepts = text.contains("software-tpm");
        assert!(accepts || !is_good(appraisal.tier()), "{kind:?} rests on a software TPM");
    }
    for device in devices.values_mut() {
        device.findings.not_checked("the moon's phase", "");
    }
    for (kind, appraisal) in asked(&policies, &devices).submods().values() {
        let passes_over = text.contains("the moon's phase");
        assert!(passes_over || !is_good(appraisal.tier()), "{kind:?} was not checked");
    }
    for device in devices.values_mut() {
        device.findings.failed("signature", "");
    }
    let appraised = asked(&policies, &devices);
    for (kind, appraisal) in appraised.submods().values() {
        assert_eq!(appraisal.tier(), Tier::Contraindicated, "{kind:?} has failed");
    }
    assert_eq!(appraised.tier(), Tier::Contraindicated);
}

/// Every result that was ever signed, and what it says.
static RESULTS: LazyLock<Vec<(String, Ear)>> = LazyLock::new(|| {
    let result = |(_, file): &(&str, &str)| {
        let policies =
            Policies::open(file.as_bytes(), &signature(file.as_bytes()), &[signer().key()]);
        let appraised = asked(&policies.unwrap(), &devices());
        let verifier = VerifierId { developer: "DistOS".to_owned(), build: "0".to_owned() };
        let bound = Bound { boot: 1, epoch: 2, nonce_hash: [3; 32], svid_key_hash: [4; 32] };
        let validity = Validity { from_s: NOW_S, until_s: NOW_S + 300 };
        let ear = Ear::of(&appraised, verifier, bound, vec![[5; 32]], validity).unwrap();
        (ear.sign(&token_secret()).unwrap(), ear)
    };
    EXAMPLES.iter().map(result).collect()
});

pub(super) fn ear_seeds() -> Vec<(String, Vec<u8>)> {
    let tokens = EXAMPLES.iter().zip(&*RESULTS);
    tokens.map(|((name, _), (text, _))| seed(name, text.as_bytes())).collect()
}

/// Nobody is vouched for by anything else than what was signed, nor, whoever signed it, better than by the worst part.
pub(super) fn ear(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let trusted = [token_secret().key()];
    let said = |text: &str| text.rsplit_once('.').map(|(said, _)| said.to_owned());
    if let Ok((found, _)) = Ear::verify(text, &trusted, NOW_S) {
        // Of a signature of this kind there is a second one, which says the same.
        let signed = |(own, ear): &(String, Ear)| *ear == found && said(own) == said(text);
        assert!(RESULTS.iter().any(signed), "{found:?} is made up");
    }
    assert!(Ear::verify(text, &trusted, NOW_S + 301).is_err());
    // Behind the signature: the claims of the token, or the bytes as claims.
    let claims = text.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let claims = claims.as_deref().unwrap_or(bytes);
    let Ok(claims) = serde_json::from_slice::<serde_json::Value>(claims) else { return };
    let resigned = sign_compact(&claims, "eat+jwt", &token_secret()).unwrap();
    let Ok((ear, by)) = Ear::verify(&resigned, &trusted, NOW_S) else { return };
    assert_eq!(by, trusted[0]);
    let lasts = ear.validity().until_s - ear.validity().from_s;
    assert!((1..=MAX_EAR_LIFETIME_S).contains(&lasts));
    for (name, submod) in ear.submods() {
        assert!(ear.status() >= submod.status(), "the node is better than {name}");
    }
    let again = ear.sign(&token_secret()).unwrap();
    assert_eq!(Ear::verify(&again, &trusted, NOW_S), Ok((ear, by)));
}
