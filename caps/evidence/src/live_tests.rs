use super::*;
use crate::evidence::tests::{CLOCK as TIMES, Made, enrolled, made, registers, sign, signer};
use crate::evidence::{ALG_SHA256, pcr_digest};
use crate::findings::Outcome;

const IMAGE_HASH: [u8; 32] = [9; 32];

fn session() -> Session {
    Session {
        verifier: NodeId([1; 32]),
        node: NodeId([2; 32]),
        key: HolderKey([3; 32]),
        life: [4; 32],
    }
}

fn nonce() -> [u8; 32] {
    session().qualifying(&[7; 32])
}

fn values() -> Pcrs {
    let mut values = registers();
    values.insert(IMAGE_PCR, extended_once(&IMAGE_HASH));
    values.insert(10, [4; 32]);
    values
}

/// Evidence of a machine whose registers hold these.
fn bundle_of(values: &Pcrs, spoil: impl FnOnce(&mut Made)) -> Bundle {
    let mut quote = made();
    let pcrs: PcrSet = values.keys().copied().collect();
    quote.extra = nonce().to_vec();
    quote.banks = vec![(ALG_SHA256, pcrs.select().to_vec())];
    quote.digest = pcr_digest(values.values()).to_vec();
    spoil(&mut quote);
    let quote = quote.bytes();
    let signature = sign(&signer(), &quote);
    Bundle {
        image: IMAGE_HASH,
        quote,
        signature,
        pcrs: values.clone(),
        quote_micros: 850,
        log: None,
        list: None,
        more: false,
        gpus: None,
    }
}

fn examined(
    bundle: &Bundle,
    qualifying: [u8; 32],
    baseline: Option<&Baseline>,
) -> (Findings, Option<(Appraised, Baseline)>) {
    let mut findings = Findings::default();
    let pcrs = values().keys().copied().collect();
    let key = enrolled();
    let expected = Expected { key: &key, qualifying: &qualifying, pcrs, baseline };
    let good = examine(bundle, expected, &mut findings);
    (findings, good)
}

/// The check that fails, and only that one.
fn failing(findings: &Findings) -> Vec<&'static str> {
    let failed = findings.checks.iter().filter(|check| check.outcome == Outcome::Failed);
    failed.map(|check| check.name).collect()
}

#[test]
fn a_good_quote_passes_each_check_and_says_what_runs() {
    let (findings, good) = examined(&bundle_of(&values(), |_| ()), nonce(), None);
    assert!(good.is_some());
    let all = [SIGNATURE, MAGIC, QUOTE, NONCE, SELECTION, DIGEST, CLOCK, IMAGE, BOOT];
    assert_eq!(findings.all_passed(), all.into());
    assert_eq!(findings.claims["image"], hex::encode(IMAGE_HASH).into());
}

#[test]
fn evidence_for_another_verifier_node_session_or_challenge_is_none() {
    let own = session();
    let bundle = bundle_of(&values(), |_| ());
    for other in [
        Session { verifier: NodeId([9; 32]), ..own },
        Session { node: NodeId([9; 32]), ..own },
        Session { key: HolderKey([9; 32]), ..own },
        Session { life: [9; 32], ..own },
    ] {
        let (findings, good) = examined(&bundle, other.qualifying(&[7; 32]), None);
        assert!(good.is_none());
        assert_eq!(failing(&findings), [NONCE]);
        assert_ne!(other.activated(&[7; 32]), own.activated(&[7; 32]));
    }
    assert_eq!(failing(&examined(&bundle, own.qualifying(&[8; 32]), None).0), [NONCE]);
    assert_ne!(own.qualifying(&[7; 32]), own.activated(&[7; 32]), "one is not the other");
}

#[test]
fn no_device_is_asked_with_what_another_was() {
    let (one, nonce) = (session(), [7; 32]);
    let elsewhere = Session { node: NodeId([9; 32]), ..one };
    let nonces = [
        one.device_nonce(&nonce, 0),
        one.device_nonce(&nonce, 1),
        one.device_nonce(&[8; 32], 0),
        elsewhere.device_nonce(&nonce, 0),
        one.qualifying(&nonce),
    ];
    assert_eq!(std::collections::BTreeSet::from(nonces).len(), nonces.len());
}

#[test]
fn what_is_wrong_fails_by_its_name() {
    let good = bundle_of(&values(), |_| ());
    let failed = |bundle: &Bundle| failing(&examined(bundle, nonce(), None).0);
    let mut other = good.clone();
    other.signature[10] ^= 1;
    assert_eq!(failed(&other), [SIGNATURE]);
    let mut other = good.clone();
    other.image = [8; 32];
    assert_eq!(failed(&other), [IMAGE], "what was measured is another image");
    let mut other = good.clone();
    other.pcrs.insert(0, [8; 32]);
    assert_eq!(failed(&other), [DIGEST]);
    let mut other = good.clone();
    other.pcrs.remove(&0);
    assert_eq!(failed(&other), [DIGEST]);
    let fewer = bundle_of(&registers(), |_| ());
    assert_eq!(failed(&fewer), [SELECTION], "fewer registers than were asked for");
    let sha1 = bundle_of(&values(), |quote| quote.banks[0].0 = 4);
    assert_eq!(failed(&sha1), [SELECTION]);
    let mut more = values();
    more.insert(IMAGE_PCR, [1; 32]);
    assert_eq!(failed(&bundle_of(&more, |_| ())), [IMAGE], "something else was measured");
}

#[test]
fn a_register_of_the_boot_that_is_extended_in_the_same_boot_is_noticed() {
    let (_, good) = examined(&bundle_of(&values(), |_| ()), nonce(), None);
    let (_, baseline) = good.unwrap();
    let with = |pcr: u8, boot: u32| {
        let mut values = values();
        values.insert(pcr, [0x77; 32]);
        let bundle = bundle_of(&values, |quote| quote.clock.reset_count += boot);
        examined(&bundle, nonce(), Some(&baseline))
    };
    assert_eq!(failing(&with(7, 0).0), [BOOT]);
    assert!(with(10, 0).1.is_some(), "what runs goes on being measured");
    assert!(with(7, 1).1.is_some(), "another boot is the policy's to judge");
    let back = bundle_of(&values(), |quote| quote.clock.reset_count -= 1);
    assert_eq!(failing(&examined(&back, nonce(), Some(&baseline)).0), [CLOCK]);
    let back = bundle_of(&values(), |quote| quote.clock.clock_ms -= 1);
    assert_eq!(failing(&examined(&back, nonce(), Some(&baseline)).0), [CLOCK]);
    assert_eq!(baseline.clock, TIMES);
    let text = serde_json::to_string(&baseline).unwrap();
    assert_eq!(serde_json::from_str::<Baseline>(&text).unwrap(), baseline);
}

#[test]
fn a_tpm_without_a_certificate_is_not_checked_and_nothing_is_claimed_of_it() {
    let ek = crate::credential::tests::p256_key();
    let mut findings = Findings::default();
    endorse(&ek, None, &Makers::default(), 0, &mut findings);
    endorse(&ek, Some(&[0x30, 0]), &Makers::default(), 0, &mut findings);
    assert_eq!(findings.outcome(CHAIN), Outcome::NotChecked);
    assert_eq!(findings.all_passed(), [ENROLLED].into());
    assert!(findings.claims.is_empty());
}

#[test]
fn questions_and_answers_arrive_as_they_were_sent() {
    let pcrs: PcrSet = [0, 7, 11].into_iter().collect();
    for question in [
        Question::Identity,
        Question::Measured(17),
        Question::Evidence(Wanted { nonce: [3; 32], pcrs, listed: 17 }),
    ] {
        assert_eq!(Question::parse(&question.to_bytes()).unwrap(), question);
    }
    let identity = Identity { ek: vec![1], certificate: Some(vec![2]), ak: vec![3] };
    assert_eq!(Identity::parse(&identity.to_bytes()).unwrap(), identity);
    let log = Some(vec![5; MAX_LOG_BYTES]);
    let list = Some(vec![6; MAX_LIST_BYTES]);
    let gpu = Gpu {
        arch: "HOPPER".to_owned(),
        chain: "-".repeat(8_000),
        report: "00".repeat(4_000),
        mode: "on".to_owned(),
        fault: String::new(),
    };
    let gpus = Some(vec![gpu.clone(); 16]);
    let bundle = Bundle { log, list, gpus, more: true, ..bundle_of(&values(), |_| ()) };
    let bytes = bundle.to_bytes();
    assert!(bytes.len() <= MAX_ANSWER_BYTES);
    assert_eq!(Bundle::parse(&bytes).unwrap(), bundle);
}

#[test]
fn what_is_no_question_and_no_answer_is_refused() {
    let long = vec![b' '; MAX_ANSWER_BYTES + 1];
    for bytes in [&b""[..], b"{}", b"[]", b"{\"ask\":\"identity\",\"x\":1}", &long] {
        assert!(Question::parse(bytes).is_err() && Bundle::parse(bytes).is_err());
        assert!(Identity::parse(bytes).is_err());
    }
    let evidence = |pcrs: &str, nonce: &str| {
        let text = format!(r#"{{"ask":"evidence","nonce":"{nonce}","pcrs":{pcrs},"listed":0}}"#);
        Question::parse(text.as_bytes())
    };
    let nonce = "00".repeat(32);
    assert!(evidence("[0]", &nonce).is_ok());
    assert!(evidence("[]", &nonce).is_err() && evidence("[24]", &nonce).is_err());
    assert!(evidence("[0]", "00").is_err());
    let empty = Gpu {
        arch: String::new(),
        chain: String::new(),
        report: String::new(),
        mode: String::new(),
        fault: String::new(),
    };
    let many = Some(vec![empty; MAX_DEVICES + 1]);
    let many = Bundle { gpus: many, ..bundle_of(&values(), |_| ()) };
    assert!(Bundle::parse(&many.to_bytes()).is_err());
    let log = Bundle { log: Some(vec![0; MAX_LOG_BYTES + 1]), ..bundle_of(&values(), |_| ()) };
    assert!(Bundle::parse(&log.to_bytes()).is_err());
}
