//! What a result says, and which are refused.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use distos_evidence::findings::Findings;
use distos_identity::DetachedSignature;
use distos_types::HolderSecret;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::decision::{Device, appraise};
use crate::policy::{POLICY, Policies};

const NOW_S: u64 = 1_800_000_000;
const VERIFIER: NodeId = NodeId([1; 32]);
const NODE: NodeId = NodeId([2; 32]);
const POLICY_FILE: &str = r#"// distos-policy: test
// version: 7
@id("tpm") permit (principal, action == Action::"affirm", resource is Tpm);
@id("gpu") permit (principal, action == Action::"warn", resource is NvidiaGpu);
@id("gpu-on") permit (principal, action == Action::"affirm", resource is NvidiaGpu)
when { resource has confidential_mode && resource.confidential_mode };
@id("node") permit (principal, action == Action::"admit", resource) when { resource.tpm == 1 };
"#;

static POLICIES: LazyLock<Policies> = LazyLock::new(|| {
    let by = HolderSecret::from_seed([3; 32]);
    let signature = DetachedSignature::sign(POLICY, POLICY_FILE.as_bytes(), &by).to_text();
    Policies::open(POLICY_FILE.as_bytes(), &signature, &[by.key()]).unwrap()
});

fn secret(seed: u8) -> TokenSecret {
    TokenSecret::from_seed(&[seed; 32]).unwrap()
}

fn device(kind: Kind, confidential: bool) -> Device {
    let mut findings = Findings::default();
    findings.passed("signature", "");
    findings.claim("tpm", "hardware");
    findings.claim("confidential-mode", confidential);
    Device { kind, findings }
}

/// A node with a TPM and two GPUs, of which the second is not in confidential mode.
fn appraised(second: bool) -> Appraised {
    let devices = BTreeMap::from([
        ("tpm".to_owned(), device(Kind::Tpm, true)),
        ("gpu-0".to_owned(), device(Kind::NvidiaGpu, true)),
        ("gpu-1".to_owned(), device(Kind::NvidiaGpu, second)),
    ]);
    appraise(Some(&POLICIES), VERIFIER, NODE, &devices).unwrap()
}

fn verifier() -> VerifierId {
    VerifierId { developer: "DistOS".to_owned(), build: "0.1.0".to_owned() }
}

const BOUND: Bound = Bound { boot: 5, epoch: 9, nonce_hash: [6; 32], svid_key_hash: [7; 32] };
const VALIDITY: Validity = Validity { from_s: NOW_S, until_s: NOW_S + 300 };

fn of(appraised: &Appraised) -> Ear {
    Ear::of(appraised, verifier(), BOUND, vec![[8; 32]], VALIDITY).unwrap()
}

fn verify(text: &str) -> Result<Ear, Refusal> {
    Ear::verify(text, &[secret(4).key(), secret(9).key()], NOW_S).map(|(ear, _)| ear)
}

fn claims(ear: &Ear) -> Value {
    serde_json::to_value(Claims::from(ear)).unwrap()
}

/// A token of these claims by a key that counts.
fn forged(claims: &Value) -> String {
    sign_compact(claims, TYPE, &secret(9)).unwrap()
}

#[test]
fn a_result_is_read_back_and_says_who_signed_it() {
    let ear = of(&appraised(false));
    let text = ear.sign(&secret(9)).unwrap();
    let trusted = [secret(4).key(), secret(9).key()];
    let (read, by) = Ear::verify(&text, &trusted, NOW_S + 299).unwrap();
    assert_eq!((read, by), (ear.clone(), secret(9).key()));
    assert_eq!(ear.status(), Tier::Warning);
    assert_eq!(ear.status_of("gpu-0"), Tier::Affirming);
    assert_eq!(ear.status_of("gpu-1"), Tier::Warning);
    assert_eq!(ear.status_of("switch-0"), Tier::None, "what is absent is not affirming");
    assert_eq!(ear.submods()["gpu-1"].policies(), ["test@7/gpu"]);
    assert_eq!(ear.policy().unwrap().digest, POLICIES.edition().digest);
}

/// The names are those of draft-ietf-rats-ear-04: readers that know nothing of DistOS understand them.
#[test]
fn a_result_is_written_as_its_documentation_says() {
    let hex = |byte: u8| hex::encode([byte; 32]);
    let submod = |kind: &str, status: &str, vector: Value, policies: &[&str], reason: &str| {
        json!({
            "ear_status": status,
            "ear_trustworthiness_vector": vector,
            "ear_appraisal_policy_ids": policies,
            "ear_verifier_claims": {
                "distos_kind": kind,
                "distos_reason": reason,
                "distos_limits": Kind::of(kind).unwrap().limits(),
            },
        })
    };
    let hardware = json!({ "configuration": 2, "hardware": 2 });
    let tpm = json!({ "configuration": 2, "instance-identity": 2 });
    let warned = json!({ "configuration": 32 });
    let expected = json!({
        "eat_profile": "tag:ietf.org,2026:rats/ear#04",
        "iat": NOW_S,
        "exp": NOW_S + 300,
        "ear_verifier_id": { "developer": "DistOS", "build": "0.1.0" },
        "ear_status": "warning",
        "submods": {
            "tpm": submod("tpm", "affirming", tpm, &["test@7/tpm"], "permitted"),
            "gpu-0": submod("nvidia-gpu", "affirming", hardware, &["test@7/gpu-on"], "permitted"),
            "gpu-1": submod("nvidia-gpu", "warning", warned, &["test@7/gpu"],
                            "permitted with a warning"),
        },
        "distos_node": hex(2),
        "distos_boot": 5,
        "distos_epoch": 9,
        "distos_nonce_hash": hex(6),
        "distos_svid_key_hash": hex(7),
        "distos_policy": {
            "name": "test", "version": 7, "sha256": hex::encode(POLICIES.edition().digest),
        },
        "distos_collateral": [hex(8)],
        "distos_reason": "admitted",
    });
    assert_eq!(claims(&of(&appraised(false))), expected);
}

/// A node whose TPM is a program that nobody vouches for, and a GPU of which nobody knows whether it was revoked: a policy
/// has put up with both. The other GPU's golden values are not known either, so nothing is left to affirm.
fn put_up_with() -> Appraised {
    let file = r#"// distos-policy: lax
// version: 1
@id("tpm") @accepts("software-tpm") @unchecked("certificate chain")
permit (principal, action == Action::"affirm", resource is Tpm);
@id("gpu") @unchecked("revocation, golden values")
permit (principal, action == Action::"affirm", resource is NvidiaGpu);
@id("node") permit (principal, action == Action::"admit", resource);
"#;
    let by = HolderSecret::from_seed([3; 32]);
    let signature = DetachedSignature::sign(POLICY, file.as_bytes(), &by).to_text();
    let policies = Policies::open(file.as_bytes(), &signature, &[by.key()]).unwrap();
    let mut devices = BTreeMap::from([
        ("tpm".to_owned(), device(Kind::Tpm, true)),
        ("gpu-0".to_owned(), device(Kind::NvidiaGpu, true)),
        ("gpu-1".to_owned(), device(Kind::NvidiaGpu, true)),
    ]);
    let mut not_checked = |name: &str, check| {
        devices.get_mut(name).unwrap().findings.not_checked(check, "");
    };
    not_checked("tpm", "certificate chain");
    not_checked("gpu-0", "revocation");
    not_checked("gpu-1", "revocation");
    not_checked("gpu-1", "golden values");
    devices.get_mut("tpm").unwrap().findings.claim("tpm", "software");
    appraise(Some(&policies), VERIFIER, NODE, &devices).unwrap()
}

/// Whoever gives a key to this node for a result that says "affirming" would not know that a program has signed for it.
#[test]
fn what_a_policy_has_put_up_with_stands_in_the_result() {
    let appraised = put_up_with();
    assert_eq!(appraised.tier(), Tier::Affirming, "by the policy");
    let ear = verify(&of(&appraised).sign(&secret(9)).unwrap()).unwrap();
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let (tpm, gpu) = (&ear.submods()["tpm"], &ear.submods()["gpu-0"]);
    assert_eq!(*tpm.unchecked(), names(&["certificate chain"]));
    assert_eq!(*tpm.accepted(), names(&["software-tpm"]));
    assert_eq!(*gpu.unchecked(), names(&["revocation"]));
    assert_eq!(*gpu.accepted(), names(&[]));
    assert!(gpu.limits().iter().any(|limit| limit.contains("TDISP")), "{gpu:?}");
    // Of what was not checked nothing good is claimed, and of a part of which nothing is claimed nothing is said.
    let claims = claims(&ear);
    let vector = |name: &str| claims["submods"][name]["ear_trustworthiness_vector"].clone();
    assert_eq!(vector("tpm"), json!({ "configuration": 2 }));
    assert_eq!(vector("gpu-0"), json!({ "configuration": 2 }));
    assert_eq!(vector("gpu-1"), Value::Null);
    assert_eq!(ear.status_of("gpu-1"), Tier::None);
    assert_eq!(ear.status(), Tier::None, "the whole is as good as its worst part");
    // A hardware TPM needs nobody's acceptance, whatever a policy would accept.
    assert!(of(&self::appraised(true)).submods()["tpm"].accepted().is_empty());
}

/// Or a result that says itself that a check was not made vouches for what rests on it.
#[test]
fn no_result_affirms_what_it_says_was_not_checked() {
    let good = claims(&of(&appraised(true)));
    let with = |unchecked: &[&str], vector: Value| {
        let mut claims = good.clone();
        let submod = &mut claims["submods"]["gpu-0"];
        submod["ear_verifier_claims"]["distos_unchecked"] = json!(unchecked);
        submod["ear_trustworthiness_vector"] = vector;
        verify(&forged(&claims))
    };
    let better = Err(Refusal::Better("gpu-0".to_owned()));
    let both = json!({ "configuration": 2, "hardware": 2 });
    assert!(with(&[], both.clone()).is_ok());
    assert!(with(&["revocation"], json!({ "configuration": 2 })).is_ok());
    assert_eq!(with(&["revocation"], both.clone()), better);
    assert_eq!(with(&["golden values"], both), better);
    assert_eq!(with(&["certificate chain"], json!({ "configuration": 2 })), better);
    assert_eq!(with(&["revocation", "golden values"], json!({ "sourced-data": 2 })), better);
}

#[test]
fn nobody_else_can_make_one_or_change_it() {
    let ear = of(&appraised(true));
    let text = ear.sign(&secret(9)).unwrap();
    assert_eq!(verify(&text), Ok(ear.clone()));
    assert_eq!(verify(&ear.sign(&secret(5)).unwrap()), Err(Refusal::Signer));
    // Another key that gives itself the name of one that counts.
    let (header, rest) = text.split_once('.').unwrap();
    let other = ear.sign(&secret(5)).unwrap();
    let other = format!("{header}.{}", other.split_once('.').unwrap().1);
    assert_eq!(verify(&other), Err(Refusal::Forged));
    for at in 0..text.len() {
        let mut bytes = text.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(bytes).unwrap();
        assert!(verify(&changed).is_err(), "byte {at} may be changed");
        assert!(verify(&text[..at]).is_err(), "it may be cut after {at} bytes");
    }
    for bad in [format!("{text}."), format!(".{text}"), rest.to_owned(), "..".to_owned()] {
        assert!(verify(&bad).is_err(), "{bad}");
    }
    assert_eq!(verify(&"a".repeat(MAX_EAR_BYTES + 1)), Err(Refusal::Form("it is too long")));
}

/// The same keys may sign other tokens: none of them is a result.
#[test]
fn a_token_of_another_type_is_no_result() {
    let claims = claims(&of(&appraised(true)));
    assert!(verify(&forged(&claims)).is_ok());
    for typ in ["JWT", "JOSE", "", "eat+cwt", "EAT+JWT"] {
        let text = sign_compact(&claims, typ, &secret(9)).unwrap();
        assert_eq!(verify(&text), Err(Refusal::Form("it is of another type")), "{typ}");
    }
}

#[test]
fn a_result_holds_for_minutes_whoever_signed_it() {
    let good = claims(&of(&appraised(true)));
    let at = |iat: u64, exp: u64| {
        let mut claims = good.clone();
        (claims["iat"], claims["exp"]) = (iat.into(), exp.into());
        verify(&forged(&claims)).map(|ear| ear.validity())
    };
    assert_eq!(at(NOW_S, NOW_S + 300), Ok(VALIDITY));
    assert_eq!(at(NOW_S, NOW_S + 301), Err(Refusal::Lasting(301)));
    assert_eq!(at(0, u64::MAX), Err(Refusal::Lasting(u64::MAX)));
    assert_eq!(at(NOW_S - 300, NOW_S), Err(Refusal::Expired { until_s: NOW_S }));
    assert!(at(NOW_S + 60, NOW_S + 61).is_ok());
    assert_eq!(at(NOW_S + 61, NOW_S + 62), Err(Refusal::NotYet { from_s: NOW_S + 61 }));
    assert_eq!(at(NOW_S, NOW_S), Err(Refusal::Form("it never holds")));
    assert_eq!(at(NOW_S + 1, NOW_S), Err(Refusal::Form("it never holds")));
    for (name, value) in [("exp", json!(null)), ("exp", json!(1.5e9)), ("iat", json!(-1))] {
        let mut claims = good.clone();
        claims[name] = value;
        assert!(matches!(verify(&forged(&claims)), Err(Refusal::Form(_))), "{name}");
    }
}

/// Whoever has a key that counts, or a bug, does not get a better word for the whole than for its parts.
#[test]
fn no_result_is_better_than_its_worst_part_although_it_is_signed() {
    let good = claims(&of(&appraised(true)));
    let with = |whole: Option<&str>, part: Option<&str>, vector: Option<Value>| {
        let mut claims = good.clone();
        let set = |claims: &mut Value, name: &str, value: Option<Value>| {
            claims.as_object_mut().unwrap().remove(name);
            if let Some(value) = value {
                claims[name] = value;
            }
        };
        set(&mut claims, "ear_status", whole.map(Value::from));
        let submod = &mut claims["submods"]["gpu-0"];
        set(submod, "ear_status", part.map(Value::from));
        set(submod, "ear_trustworthiness_vector", vector);
        verify(&forged(&claims)).map(|ear| (ear.status(), ear.status_of("gpu-0")))
    };
    let node = || Err(Refusal::Better("the node".to_owned()));
    let gpu = || Err(Refusal::Better("gpu-0".to_owned()));
    let fine = || Some(json!({ "hardware": 2 }));
    let (affirming, warning) = (Some("affirming"), Some("warning"));
    let (none, contraindicated) = (Some("none"), Some("contraindicated"));
    assert_eq!(with(affirming, affirming, fine()), Ok((Tier::Affirming, Tier::Affirming)));
    assert_eq!(with(none, affirming, fine()), Ok((Tier::None, Tier::Affirming)));
    assert_eq!(with(None, affirming, fine()), Ok((Tier::None, Tier::Affirming)));
    for part in [warning, none, None, contraindicated] {
        assert_eq!(with(affirming, part, fine()), node(), "{part:?}");
    }
    assert_eq!(with(warning, none, fine()), node());
    assert_eq!(with(none, contraindicated, fine()), node());
    assert_eq!(with(contraindicated, warning, fine()).unwrap().0, Tier::Contraindicated);
    // A part is no better than its worst facet, and nothing is said where no facet speaks.
    for (claim, worst) in
        [(32, Tier::Warning), (96, Tier::Contraindicated), (99, Tier::Contraindicated)]
    {
        let vector = || Some(json!({ "hardware": 2, "configuration": claim }));
        assert_eq!(with(contraindicated, affirming, vector()), gpu(), "{claim}");
        let said = Some(worst.name());
        assert_eq!(with(contraindicated, said, vector()).unwrap().1, worst);
    }
    assert_eq!(with(affirming, affirming, None), gpu());
    assert_eq!(with(affirming, affirming, Some(json!({}))), gpu());
    assert_eq!(with(affirming, affirming, Some(json!({ "hardware": 0 }))), gpu());
    let zero = json!({ "hardware": 2, "file-system": 0 });
    assert!(with(affirming, affirming, Some(zero)).is_ok());
    // A word that is none.
    assert!(matches!(with(Some("good"), affirming, fine()), Err(Refusal::Form(_))));
    assert!(matches!(with(affirming, Some("Affirming"), fine()), Err(Refusal::Form(_))));
}

#[test]
fn a_result_without_parts_says_nothing_of_the_whole() {
    let mut claims = claims(&of(&appraised(true)));
    claims["submods"] = json!({});
    assert_eq!(verify(&forged(&claims)), Err(Refusal::Better("the node".to_owned())));
    claims["ear_status"] = "none".into();
    assert_eq!(verify(&forged(&claims)).unwrap().status(), Tier::None);
    claims.as_object_mut().unwrap().remove("submods");
    assert_eq!(verify(&forged(&claims)).unwrap().status_of("tpm"), Tier::None);
}

#[test]
fn a_signed_token_that_is_none_of_ours_is_refused_and_unknown_claims_are_passed_over() {
    let good = claims(&of(&appraised(true)));
    let mut more = good.clone();
    more["nbf"] = 5.into();
    more["submods"]["tpm"]["com.example"] = json!({ "a": [1, 2] });
    assert!(verify(&forged(&more)).is_ok());
    let long = "x".repeat(201);
    for (pointer, value) in [
        ("/eat_profile", json!("tag:github.com,2023:veraison/ear")),
        ("/eat_profile", json!(null)),
        ("/distos_node", json!("00")),
        ("/distos_node", json!("AB".repeat(32))),
        ("/distos_epoch", json!("9")),
        ("/distos_policy/name", json!("Test")),
        ("/distos_reason", json!(long)),
        ("/distos_reason", json!("a\nb")),
        ("/distos_collateral", json!(vec!["00".repeat(32); MAX_COLLATERAL + 1])),
        ("/ear_verifier_id/build", json!(long)),
        ("/submods/tpm/ear_verifier_claims/distos_kind", json!("tdx")),
        ("/submods/tpm/ear_verifier_claims/distos_reason", json!(long)),
        ("/submods/tpm/ear_verifier_claims/distos_limits", json!([long])),
        ("/submods/tpm/ear_verifier_claims/distos_limits", json!(vec!["a"; MAX_LIMITS + 1])),
        ("/submods/tpm/ear_appraisal_policy_ids", json!(vec!["a"; MAX_POLICY_IDS + 1])),
        ("/submods/tpm/ear_trustworthiness_vector", json!({ "hardware": 128 })),
        ("/submods/tpm/ear_trustworthiness_vector", json!({ "beauty": 2 })),
        ("/submods/tpm", json!("affirming")),
    ] {
        let mut claims = good.clone();
        *claims.pointer_mut(pointer).unwrap() = value;
        let refused = verify(&forged(&claims));
        assert!(matches!(refused, Err(Refusal::Form(_))), "{pointer}: {refused:?}");
    }
    // Of a part that claims nothing, so that it is for this alone.
    let mut silent = good.clone();
    silent["ear_status"] = "none".into();
    silent["submods"]["tpm"] =
        json!({ "ear_verifier_claims": { "distos_kind": "tpm", "distos_unchecked": ["nonce"] } });
    assert!(verify(&forged(&silent)).is_ok());
    let many: Vec<String> = (0..=MAX_NAMES).map(|number| number.to_string()).collect();
    for names in [json!([""]), json!(["a\"b"]), json!(["a".repeat(33)]), json!(many), json!("a")] {
        for claim in ["distos_unchecked", "distos_accepted"] {
            let mut claims = silent.clone();
            claims["submods"]["tpm"]["ear_verifier_claims"][claim] = names.clone();
            let refused = verify(&forged(&claims));
            assert!(matches!(refused, Err(Refusal::Form(_))), "{claim} {names}: {refused:?}");
        }
    }
    let mut many = good.clone();
    many["submods"] = (0..=MAX_SUBMODS)
        .map(|number| (format!("gpu-{number}"), good["submods"]["gpu-0"].clone()))
        .collect::<serde_json::Map<_, _>>()
        .into();
    assert_eq!(verify(&forged(&many)), Err(Refusal::Form("its submodules are too many")));
    let mut named = good.clone();
    named["submods"]["GPU 1"] = good["submods"]["gpu-0"].clone();
    assert!(matches!(verify(&forged(&named)), Err(Refusal::Form(_))));
}

/// Two readers would take one or the other.
#[test]
fn a_submodule_or_a_facet_that_stands_there_twice_is_refused() {
    let read = |text: &str| serde_json::from_str::<Claims>(text).is_ok();
    let text = claims(&of(&appraised(true))).to_string();
    assert!(read(&text));
    let facet = text.replacen("\"configuration\":2", "\"configuration\":96,\"configuration\":2", 1);
    assert!(facet != text && !read(&facet));
    let submod = text.replacen(
        "\"submods\":{",
        "\"submods\":{\"tpm\":{\"ear_verifier_claims\":{\"distos_kind\":\"tpm\"}},",
        1,
    );
    assert!(submod != text && !read(&submod));
    let status = text.replacen("\"ear_status\":", "\"ear_status\":\"none\",\"ear_status\":", 1);
    assert!(status != text && !read(&status));
}

#[test]
fn no_result_is_made_by_unsigned_policies_or_of_more_than_fits() {
    let unsigned = Policies::unsigned(POLICY_FILE.as_bytes()).unwrap();
    let devices = BTreeMap::from([("tpm".to_owned(), device(Kind::Tpm, true))]);
    let by_unsigned = appraise(Some(&unsigned), VERIFIER, NODE, &devices).unwrap();
    let make = |appraised: &Appraised, collateral: usize, until_s: u64| {
        let validity = Validity { from_s: NOW_S, until_s };
        Ear::of(appraised, verifier(), BOUND, vec![[0; 32]; collateral], validity)
    };
    let fault = make(&by_unsigned, 0, NOW_S + 1).unwrap_err();
    assert_eq!(fault.code(), 22);
    // Without any policy there is a result, and it says nothing.
    let by_none = appraise(None, VERIFIER, NODE, &devices).unwrap();
    let ear = make(&by_none, 0, NOW_S + 1).unwrap();
    assert_eq!(verify(&ear.sign(&secret(9)).unwrap()).unwrap().status(), Tier::None);
    let good = appraised(true);
    assert!(make(&good, MAX_COLLATERAL, NOW_S + 300).is_ok());
    for bad in [
        make(&good, MAX_COLLATERAL + 1, NOW_S + 1),
        make(&good, 0, NOW_S + 301),
        make(&good, 0, NOW_S),
    ] {
        assert_eq!(bad.unwrap_err().code(), 16);
    }
}

/// A bound that a full result does not fit would refuse real ones.
#[test]
fn the_fullest_result_fits() {
    let submod = Submod {
        kind: Kind::NvidiaSwitch,
        status: Tier::Contraindicated,
        reason: "\"".repeat(MAX_REASON_BYTES),
        policies: vec!["p".repeat(MAX_POLICY_ID_BYTES); MAX_POLICY_IDS],
        unchecked: (0..MAX_NAMES).map(|number| format!("{number:0MAX_NAME_BYTES$}")).collect(),
        accepted: (0..MAX_NAMES).map(|number| format!("{number:0MAX_NAME_BYTES$}")).collect(),
        limits: vec!["\"".repeat(MAX_TEXT_BYTES); MAX_LIMITS],
    };
    let name = |number: usize| format!("{number:064}");
    let ear = Ear {
        collateral: vec![[0; 32]; MAX_COLLATERAL],
        status: Tier::Contraindicated,
        reason: "\"".repeat(MAX_REASON_BYTES),
        submods: (0..MAX_SUBMODS).map(|number| (name(number), submod.clone())).collect(),
        ..of(&appraised(true))
    };
    let text = ear.sign(&secret(9)).unwrap();
    assert_eq!(verify(&text), Ok(ear));
    assert!(
        text.len() * 4 > MAX_EAR_BYTES * 3,
        "the bound is {} for {}",
        MAX_EAR_BYTES,
        text.len()
    );
}

proptest! {
    #[test]
    fn whatever_is_no_result_is_refused(text in "\\PC{0,200}", claims in "\\PC{0,200}") {
        prop_assert!(verify(&text).is_err());
        // Behind the signature, too.
        if let Ok(value) = serde_json::from_str::<Value>(&claims) {
            prop_assert!(verify(&forged(&value)).is_err());
        }
        prop_assert!(verify(&forged(&Value::from(claims))).is_err());
    }

    #[test]
    fn what_is_accepted_is_as_good_as_its_worst_part_at_best(
        whole in 0usize..4,
        parts in prop::collection::btree_map("[a-z]{1,3}", (0usize..4, -128i64..128), 0..4),
    ) {
        const NAMES: [&str; 4] = ["affirming", "warning", "none", "contraindicated"];
        let mut claims = claims(&of(&appraised(true)));
        claims["ear_status"] = NAMES[whole].into();
        let part = |status: usize, claim: i64| json!({
            "ear_status": NAMES[status],
            "ear_trustworthiness_vector": { "hardware": 2, "configuration": claim },
            "ear_verifier_claims": { "distos_kind": "nvidia-gpu" },
        });
        claims["submods"] = parts.iter()
            .map(|(name, (status, claim))| (name.clone(), part(*status, *claim)))
            .collect::<serde_json::Map<_, _>>()
            .into();
        let worst_of = |claim: i64| [tier_of(2), tier_of(claim as i8)]
            .into_iter().filter(|tier| *tier != Tier::None).max().unwrap();
        let tiers = [Tier::Affirming, Tier::Warning, Tier::None, Tier::Contraindicated];
        let sound = parts.values().all(|(status, claim)| tiers[*status] >= worst_of(*claim))
            && tiers[whole] >= Tier::worst(parts.values().map(|(status, _)| tiers[*status]));
        prop_assert_eq!(verify(&forged(&claims)).is_ok(), sound);
    }
}

/// The names that results of one policy have are apart from those of another.
#[test]
fn policies_are_named_with_their_file_and_its_version() {
    let ear = of(&appraised(true));
    let ids: BTreeSet<&str> =
        ear.submods().values().flat_map(Submod::policies).map(String::as_str).collect();
    // Affirming is asked first: what would warn is not named.
    assert_eq!(ids, BTreeSet::from(["test@7/gpu-on", "test@7/tpm"]));
}
