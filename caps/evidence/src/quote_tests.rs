use proptest::prelude::*;

use super::*;
use crate::findings::{Claim, Outcome};
use crate::testdata;

const NOWHERE: Anchors<'_> =
    Anchors { roots: &[], others: &[], crls: &[], responses: &[], at_s: 1_780_000_000 };

/// A cloud's virtual TPM: its key, three quotes that answer 0x9009, and what its registers hold.
struct Cloud {
    key: Vec<u8>,
    quotes: Vec<(Vec<u8>, Vec<u8>, BankValues)>,
}

fn cloud() -> Option<Cloud> {
    let text = testdata::read("tpm/gce-cos-85-nonce9009.json")?;
    let read: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let bytes = |value: &serde_json::Value| hex::decode(value.as_str().unwrap()).unwrap();
    let quotes = read["quotes"].as_array().unwrap().iter().map(|quote| {
        let attest = bytes(&quote["tpms_attest_hex"]);
        let parsed = Attest::parse(&attest).unwrap().quote_body().unwrap();
        let mut values = BankValues::new(Bank::of_algorithm(parsed.selections[0].bank).unwrap());
        for (pcr, value) in quote["pcrs"].as_object().unwrap() {
            values.insert(pcr.parse().unwrap(), &bytes(value)).unwrap();
        }
        (attest, bytes(&quote["tpmt_signature_hex"]), values)
    });
    Some(Cloud { key: bytes(&read["ak_pub_tpmt_public_hex"]), quotes: quotes.collect() })
}

/// What becomes of a register's value.
type Change = dyn Fn(u8, &[u8]) -> Option<Vec<u8>>;

fn findings(
    key: &[u8],
    (attest, signature, values): (&[u8], &[u8], Option<&BankValues>),
    nonce: Option<&[u8]>,
) -> Findings {
    let key = QuoteKey::parse(key).unwrap();
    let values = values.map(std::slice::from_ref).unwrap_or_default();
    verify(Quote { attest, signature, values }, &key, nonce, NOWHERE).0
}

#[test]
fn a_clouds_quotes_hold_in_each_bank_for_their_nonce_alone() {
    let Some(cloud) = cloud() else { return };
    for (attest, signature, values) in &cloud.quotes {
        let quote = (&attest[..], &signature[..], Some(values));
        let good = findings(&cloud.key, quote, Some(&[0x90, 0x09]));
        for check in [KEY, SIGNATURE, MAGIC, QUOTE, NONCE, DIGEST] {
            assert_eq!(good.outcome(check), Outcome::Passed, "{check}: {good:?}");
        }
        assert_eq!(good.claims["pcr-bank"], Claim::from(values.bank().to_string()));
        for wrong in [&[0x90, 0x09, 0][..], &[0x90], &[], &[0, 0x90, 0x09]] {
            let found = findings(&cloud.key, quote, Some(wrong));
            assert_eq!(found.outcome(NONCE), Outcome::Failed, "{wrong:?}");
        }
        assert_eq!(findings(&cloud.key, quote, None).outcome(NONCE), Outcome::NotChecked);
        let without = findings(&cloud.key, (attest, signature, None), None);
        assert_eq!(without.outcome(DIGEST), Outcome::NotChecked);
        assert!(!without.claims.contains_key("pcrs"));
    }
}

#[test]
fn values_other_than_those_quoted_prove_nothing() {
    let Some(cloud) = cloud() else { return };
    let [(attest, signature, values), (_, _, of_another_bank), ..] = &cloud.quotes[..] else {
        panic!("three quotes")
    };
    let outcome = |values: &BankValues| {
        findings(&cloud.key, (attest, signature, Some(values)), None).outcome(DIGEST)
    };
    assert_eq!(outcome(of_another_bank), Outcome::NotChecked);
    let but = |change: &Change| {
        let mut changed = BankValues::new(values.bank());
        for (pcr, value) in values.iter() {
            if let Some(value) = change(pcr, value.as_bytes()) {
                changed.insert(pcr, &value).unwrap();
            }
        }
        changed
    };
    assert_eq!(outcome(&but(&|_, value| Some(value.to_vec()))), Outcome::Passed);
    let fewer = but(&|pcr, value| (pcr != 3).then(|| value.to_vec()));
    assert_eq!(outcome(&fewer), Outcome::NotChecked);
    let other = but(&|pcr, value| {
        let mut value = value.to_vec();
        value[0] ^= u8::from(pcr == 3);
        Some(value)
    });
    assert_eq!(outcome(&other), Outcome::Failed);
    assert_eq!(outcome(&BankValues::new(values.bank())), Outcome::NotChecked);
    // All banks at once: those that were quoted count. And none, if the quote answers another nonce.
    let all = [of_another_bank.clone(), values.clone()];
    let key = QuoteKey::parse(&cloud.key).unwrap();
    let proven = |nonce: &[u8]| {
        let quote = Quote { attest, signature, values: &all };
        verify(quote, &key, Some(nonce), NOWHERE).1
    };
    assert_eq!(proven(&[0x90, 0x09]), std::slice::from_ref(values));
    assert_eq!(proven(&[0x90]), []);
}

#[test]
fn a_clouds_quote_with_a_changed_byte_is_refused_wherever_it_is() {
    let Some(cloud) = cloud() else { return };
    let (attest, signature, values) = &cloud.quotes[1];
    for at in 0..attest.len() {
        let mut changed = attest.clone();
        changed[at] ^= 0x20;
        let found = findings(&cloud.key, (&changed, signature, Some(values)), None);
        assert_eq!(found.outcome(SIGNATURE), Outcome::Failed, "{at}");
        assert!(found.claims.is_empty());
    }
    for at in 0..signature.len() {
        let mut changed = signature.clone();
        changed[at] ^= 0x20;
        let found = findings(&cloud.key, (attest, &changed, Some(values)), None);
        assert_eq!(found.outcome(SIGNATURE), Outcome::Failed, "{at}");
    }
}

#[test]
fn keys_are_read_in_each_form_and_one_that_signs_anything_vouches_for_nothing() {
    let Some(cloud) = cloud() else { return };
    let (attest, signature, _) = &cloud.quotes[1];
    let quote = (&attest[..], &signature[..], None);
    let sized = [&u16::try_from(cloud.key.len()).unwrap().to_be_bytes()[..], &cloud.key].concat();
    assert_eq!(findings(&sized, quote, None).outcome(SIGNATURE), Outcome::Passed);
    // Without *restricted*, with *decrypt*, without *fixedTPM*.
    for (at, flip) in [(5, 0x01), (5, 0x02), (7, 0x02)] {
        let mut loose = cloud.key.clone();
        loose[at] ^= flip;
        assert_eq!(findings(&loose, quote, None).outcome(KEY), Outcome::Failed, "{at} {flip}");
    }
    let certificate = testdata::read("tpm/pca_tpm_ecc_sign_cert.pem").unwrap();
    let found = findings(&certificate, quote, None);
    assert_eq!(found.outcome(crate::pki::CHAIN), Outcome::NotChecked, "nobody is trusted");
    assert_eq!(found.outcome(KEY), Outcome::NotChecked);
    assert_eq!(found.outcome(SIGNATURE), Outcome::Failed, "and it is another's");
    let public = QuoteKey::parse(&cloud.key).unwrap();
    assert!(public.clone().and(QuoteKey::parse(&sized).unwrap()).is_some());
    assert!(public.and(QuoteKey::parse(&certificate).unwrap()).is_none(), "another's certificate");
    for wrong in [&b""[..], b"-----BEGIN PUBLIC KEY-----", b"\0\x01\0\x0b", &cloud.key[1..]] {
        assert!(QuoteKey::parse(wrong).is_err());
    }
}

#[test]
fn values_that_tools_write_are_read_to_their_end() {
    // What tpm2_quote of PCR 0 and 16 of SHA-256 writes.
    let mut bytes = 1u32.to_le_bytes().to_vec();
    bytes.extend([0x0b, 0, 3, 1, 0, 1, 0, 0]);
    bytes.extend([0; 15 * 8]);
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(2u32.to_le_bytes());
    for at in 0..8u8 {
        let size: u16 = if at < 2 { 32 } else { 0 };
        bytes.extend(size.to_le_bytes());
        bytes.extend([at; 64]);
    }
    let values = values_of_tools(&bytes).unwrap();
    assert_eq!(values.bank(), Bank::Sha256);
    let read: Vec<(u8, &[u8])> =
        values.iter().map(|(pcr, value)| (pcr, value.as_bytes())).collect();
    assert_eq!(read, [(0, &[0; 32][..]), (16, &[1; 32])]);
    for len in 0..bytes.len() {
        assert!(values_of_tools(&bytes[..len]).is_err(), "{len}");
    }
    bytes.push(0);
    assert!(values_of_tools(&bytes).is_err());
    bytes.pop();
    bytes[136] = 1;
    assert!(values_of_tools(&bytes).is_err(), "one digest for two registers");
    bytes[136] = 3;
    assert!(values_of_tools(&bytes).is_err(), "three");
}

proptest! {
    #[test]
    fn no_bytes_make_the_parsers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..900)) {
        let _ = values_of_tools(&bytes);
        let _ = QuoteKey::parse(&bytes);
    }

    #[test]
    fn no_signature_makes_the_parser_panic(
        scheme in 0u16..0x20, hash in 0u16..0x10, rest in proptest::collection::vec(any::<u8>(), 0..80),
    ) {
        let bytes = [&scheme.to_be_bytes()[..], &hash.to_be_bytes(), &rest].concat();
        for key in [Key::P256(vec![4; 65]), Key::P384(vec![4; 97]), Key::Rsa(vec![0; 10])] {
            let key = QuoteKey { key, attributes: None, chain: Vec::new() };
            prop_assert!(key.verify(b"", &bytes).is_err());
        }
    }
}
