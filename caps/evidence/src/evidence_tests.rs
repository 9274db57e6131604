use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};
use proptest::prelude::*;

use super::*;

const NONCE: [u8; 32] = [0x5a; 32];
pub(crate) const CLOCK: ClockInfo =
    ClockInfo { clock_ms: 5_000, reset_count: 7, restart_count: 1, safe: true };

pub(crate) fn signer() -> SigningKey {
    SigningKey::from_slice(&[3; 32]).unwrap()
}

pub(crate) fn enrolled() -> AttestationKey {
    AttestationKey::from_public(&public_of(&signer())).unwrap()
}

fn public_of(key: &SigningKey) -> Vec<u8> {
    let point = key.verifying_key().to_encoded_point(false);
    Writer::default()
        .bytes(&key_template())
        .sized(point.x().unwrap())
        .sized(point.y().unwrap())
        .done()
}

pub(crate) fn registers() -> Pcrs {
    [(0, [1; 32]), (7, [2; 32]), (11, [3; 32])].into()
}

/// A quote whose every field can be spoiled.
#[derive(Clone)]
pub(crate) struct Made {
    magic: u32,
    kind: u16,
    signer: Vec<u8>,
    pub(crate) extra: Vec<u8>,
    pub(crate) clock: ClockInfo,
    pub(crate) banks: Vec<(u16, Vec<u8>)>,
    pub(crate) digest: Vec<u8>,
}

pub(crate) fn made() -> Made {
    let pcrs: PcrSet = registers().keys().copied().collect();
    Made {
        magic: GENERATED,
        kind: ATTEST_QUOTE,
        signer: enrolled().qualified_name().to_vec(),
        extra: NONCE.to_vec(),
        clock: CLOCK,
        banks: vec![(ALG_SHA256, pcrs.select().to_vec())],
        digest: pcr_digest(registers().values()).to_vec(),
    }
}

impl Made {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let head = Writer::default()
            .u32(self.magic)
            .u16(self.kind)
            .sized(&self.signer)
            .sized(&self.extra)
            .bytes(&self.clock.clock_ms.to_be_bytes())
            .u32(self.clock.reset_count)
            .u32(self.clock.restart_count)
            .u8(u8::from(self.clock.safe))
            .bytes(&[0; 8])
            .u32(u32::try_from(self.banks.len()).unwrap());
        let banks = self.banks.iter().fold(head, |w, (bank, select)| {
            w.u16(*bank).u8(u8::try_from(select.len()).unwrap()).bytes(select)
        });
        banks.sized(&self.digest).done()
    }

    fn appraised(&self) -> Result<Appraised, Refusal> {
        self.appraised_with(&registers(), None)
    }

    fn appraised_with(
        &self,
        pcrs: &Pcrs,
        previous: Option<ClockInfo>,
    ) -> Result<Appraised, Refusal> {
        let bytes = self.bytes();
        let signature = sign(&signer(), &bytes);
        appraise(&Policy::new(registers()), &enrolled(), &NONCE, &bytes, &signature, pcrs, previous)
    }
}

pub(crate) fn sign(key: &SigningKey, bytes: &[u8]) -> Vec<u8> {
    let signature: Signature = key.sign(bytes);
    let (r, s) = signature.split_bytes();
    Writer::default().u16(ALG_ECDSA).u16(ALG_SHA256).sized(&r).sized(&s).done()
}

fn spoiled(spoil: impl FnOnce(&mut Made)) -> Refusal {
    let mut quote = made();
    spoil(&mut quote);
    quote.appraised().unwrap_err()
}

#[test]
fn a_good_quote_is_accepted() {
    let appraised = made().appraised().unwrap();
    assert_eq!(appraised.clock, CLOCK);
    assert_eq!(appraised.continuity, Continuity::First);
    assert_eq!(appraised.pcrs.iter().collect::<Vec<_>>(), [0, 7, 11]);
}

#[test]
fn a_quote_by_another_key_is_refused() {
    let bytes = made().bytes();
    let other = SigningKey::from_slice(&[4; 32]).unwrap();
    let forged = |signature: &[u8]| {
        let policy = Policy::new(registers());
        appraise(&policy, &enrolled(), &NONCE, &bytes, signature, &registers(), None).unwrap_err()
    };
    assert_eq!(forged(&sign(&other, &bytes)), Refusal::Signature);
    let zero = Writer::default().u16(ALG_ECDSA).u16(ALG_SHA256).sized(&[]).sized(&[]).done();
    assert_eq!(forged(&zero), Refusal::Signature, "r = s = 0");
    let hmac = Writer::default().u16(5).u16(ALG_SHA256).bytes(&[0; 32]).done();
    assert_eq!(forged(&hmac), Refusal::Signature, "another scheme");
    assert!(matches!(forged(&[]), Refusal::Malformed(_)));
    let long =
        Writer::default().u16(ALG_ECDSA).u16(ALG_SHA256).sized(&[1; 33]).sized(&[1; 32]).done();
    assert!(matches!(forged(&long), Refusal::Malformed(_)));
}

#[test]
fn something_signed_outside_a_tpm_is_refused() {
    assert_eq!(spoiled(|q| q.magic = 0x1234), Refusal::Magic(0x1234));
}

#[test]
fn another_attestation_than_a_quote_is_refused() {
    assert_eq!(spoiled(|q| q.kind = 0x8017), Refusal::Type(0x8017));
}

#[test]
fn another_signer_is_refused() {
    assert_eq!(spoiled(|q| q.signer[33] ^= 1), Refusal::QualifiedSigner);
    assert_eq!(spoiled(|q| q.signer = enrolled().name().to_vec()), Refusal::QualifiedSigner);
    assert_eq!(spoiled(|q| q.signer.clear()), Refusal::QualifiedSigner);
}

/// Some verifiers compare nonces after cutting or padding one of them, and so accept old quotes.
#[test]
fn a_stale_cut_or_padded_nonce_is_refused() {
    assert_eq!(spoiled(|q| q.extra = vec![0xa5; 32]), Refusal::Nonce, "stale");
    assert_eq!(spoiled(|q| q.extra.push(0)), Refusal::Nonce, "padded behind");
    assert_eq!(spoiled(|q| q.extra.insert(0, 0)), Refusal::Nonce, "padded before");
    for len in 0..32 {
        assert_eq!(spoiled(|q| q.extra.truncate(len)), Refusal::Nonce, "cut to {len}");
    }
}

#[test]
fn another_selection_of_registers_is_refused() {
    let select = |pcrs: &[u8]| PcrSet::from_iter(pcrs.iter().copied()).select().to_vec();
    for banks in [
        vec![],
        vec![(ALG_SHA256, select(&[0, 7]))],
        vec![(ALG_SHA256, select(&[0, 7, 11, 12]))],
        vec![(0x0004, select(&[0, 7, 11]))],
        vec![(ALG_SHA256, select(&[0, 7, 11])), (0x0004, select(&[0]))],
        vec![(ALG_SHA256, select(&[0, 7])), (ALG_SHA256, select(&[11]))],
        vec![(ALG_SHA256, vec![0x81, 0x08, 0, 1])],
    ] {
        assert_eq!(spoiled(|q| q.banks = banks.clone()), Refusal::Selection, "{banks:?}");
    }
}

#[test]
fn registers_that_were_not_quoted_are_refused() {
    assert_eq!(spoiled(|q| q.digest[0] ^= 1), Refusal::Digest);
    assert_eq!(spoiled(|q| q.digest.truncate(31)), Refusal::Digest);
    let mut fewer = registers();
    fewer.remove(&7);
    let mut more = registers();
    more.insert(12, [0; 32]);
    let mut swapped = registers();
    swapped.insert(0, [2; 32]);
    swapped.insert(7, [1; 32]);
    for pcrs in [fewer, more, swapped] {
        assert_eq!(made().appraised_with(&pcrs, None).unwrap_err(), Refusal::Digest);
    }
}

#[test]
fn a_clock_that_goes_back_within_a_boot_is_refused() {
    let earlier = ClockInfo { clock_ms: 5_001, ..CLOCK };
    let refusal = made().appraised_with(&registers(), Some(earlier)).unwrap_err();
    assert_eq!(refusal, Refusal::Clock { was_ms: 5_001, is_ms: 5_000 });
    let same = made().appraised_with(&registers(), Some(CLOCK)).unwrap();
    assert_eq!(same.continuity, Continuity::SameBoot);
}

#[test]
fn an_older_tpm_state_put_back_is_refused() {
    for was in [
        ClockInfo { reset_count: 8, restart_count: 0, ..CLOCK },
        ClockInfo { restart_count: 2, clock_ms: 0, ..CLOCK },
    ] {
        let refusal = made().appraised_with(&registers(), Some(was)).unwrap_err();
        assert_eq!(refusal, Refusal::Counters);
    }
}

#[test]
fn a_new_boot_is_told_apart_and_appraised_in_full() {
    // After a reset the clock may be behind what was reported.
    let was = ClockInfo { reset_count: 6, clock_ms: 9_000, ..CLOCK };
    let appraised = made().appraised_with(&registers(), Some(was)).unwrap();
    assert_eq!(appraised.continuity, Continuity::NewBoot);
}

#[test]
fn a_register_without_its_reference_value_is_refused_and_named() {
    let mut found = registers();
    found.insert(7, [9; 32]);
    let mut quote = made();
    quote.digest = pcr_digest(found.values()).to_vec();
    let refusal = quote.appraised_with(&found, None).unwrap_err();
    assert!(matches!(refusal, Refusal::Reference { pcr: 7, .. }), "{refusal}");
}

#[test]
fn a_policy_without_reference_values_accepts_nothing() {
    let mut quote = made();
    quote.banks = vec![(ALG_SHA256, vec![0; 3])];
    quote.digest = pcr_digest(Vec::<[u8; 32]>::new()).to_vec();
    let bytes = quote.bytes();
    let (signature, policy) = (sign(&signer(), &bytes), Policy::new(Pcrs::new()));
    let refusal =
        appraise(&policy, &enrolled(), &NONCE, &bytes, &signature, &Pcrs::new(), None).unwrap_err();
    assert_eq!(refusal, Refusal::NoReferences);
}

/// Two faults at once: the earlier check of the documented order answers.
#[test]
fn the_checks_keep_their_order() {
    let mut quote = made();
    let expect = |quote: &Made, wanted: Refusal| {
        let was = ClockInfo { clock_ms: 9_999, ..CLOCK };
        let mut found = registers();
        found.insert(0, [8; 32]);
        assert_eq!(quote.appraised_with(&found, Some(was)).unwrap_err(), wanted);
    };
    let mut found = registers();
    found.insert(0, [8; 32]);
    quote.digest = pcr_digest(found.values()).to_vec();
    expect(&quote, Refusal::Clock { was_ms: 9_999, is_ms: 5_000 });
    quote.digest = vec![0; 32];
    expect(&quote, Refusal::Digest);
    quote.banks.clear();
    expect(&quote, Refusal::Selection);
    quote.extra.clear();
    expect(&quote, Refusal::Nonce);
    quote.signer.clear();
    expect(&quote, Refusal::QualifiedSigner);
    quote.kind = 1;
    expect(&quote, Refusal::Type(1));
    quote.magic = 2;
    expect(&quote, Refusal::Magic(2));
}

#[test]
fn bytes_behind_a_quote_are_refused() {
    let mut bytes = made().bytes();
    bytes.push(0);
    let signature = sign(&signer(), &bytes);
    let policy = Policy::new(registers());
    let refusal = appraise(&policy, &enrolled(), &NONCE, &bytes, &signature, &registers(), None);
    assert_eq!(refusal, Err(Refusal::Malformed(Broken("the end of the quote"))));
}

/// A key that can sign what the TPM did not make, or that could leave the TPM, proves nothing.
#[test]
fn only_a_restricted_key_of_the_tpm_can_be_enrolled() {
    let good = public_of(&signer());
    AttestationKey::from_public(&good).unwrap();
    for at in 0..key_template().len() {
        for bit in 0..8 {
            let mut public = good.clone();
            public[at] ^= 1 << bit;
            assert!(AttestationKey::from_public(&public).is_err(), "byte {at} bit {bit}");
        }
    }
    let off_curve = Writer::default().bytes(&key_template()).sized(&[1; 32]).sized(&[1; 32]).done();
    assert!(AttestationKey::from_public(&off_curve).is_err());
    assert!(AttestationKey::from_public(&[good.as_slice(), &[0]].concat()).is_err());
}

#[test]
fn a_register_list_says_what_is_wrong_with_it() {
    assert_eq!(PcrSet::parse("0-2, 11").unwrap().iter().collect::<Vec<_>>(), [0, 1, 2, 11]);
    for bad in ["", "24", "3-1", "a", "0-", "1,,2", "-1"] {
        assert!(PcrSet::parse(bad).is_err(), "{bad:?}");
    }
}

/// A shielded virtual machine's three quotes (SHA-1, SHA-256 and SHA-384 banks) by an RSA key. The
/// signature is not checked, as DistOS enrols only P-256 keys; all else is.
#[test]
fn a_real_machines_quotes_are_read_and_their_digests_hold() {
    let Some(text) = crate::testdata::read("tpm/gce-cos-85-nonce9009.json") else { return };
    let vector: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let bytes = |value: &serde_json::Value| hex::decode(value.as_str().unwrap()).unwrap();
    let public = bytes(&vector["ak_pub_tpmt_public_hex"]);
    let nonce = bytes(&vector["nonce_hex"]);
    assert!(AttestationKey::from_public(&public).is_err(), "an RSA key is not enrolled");
    let signer = qualified_name(HIERARCHY_ENDORSEMENT, &name_of(Sha256::digest(&public).into()));
    let mut seen = Vec::new();
    for quote in vector["quotes"].as_array().unwrap() {
        let message = bytes(&quote["tpms_attest_hex"]);
        let values: BTreeMap<u8, Vec<u8>> = quote["pcrs"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(pcr, value)| (pcr.parse().unwrap(), bytes(value)))
            .collect();
        let attest = Attest::parse(&message).unwrap();
        let body = attest.quote_body().unwrap();
        assert_eq!((attest.magic, attest.kind), (GENERATED, ATTEST_QUOTE));
        assert_eq!(attest.extra_data, nonce);
        assert_eq!(attest.qualified_signer, signer);
        assert_eq!(body.pcr_digest, pcr_digest(values.values()));
        assert_eq!(body.selections[0].pcrs, Some(values.keys().copied().collect()));
        seen.push(body.selections[0].bank);
        if body.selections[0].bank == ALG_SHA256 {
            let pcrs: Pcrs =
                values.iter().map(|(k, v)| (*k, v.as_slice().try_into().unwrap())).collect();
            let policy = Policy::new(pcrs.clone());
            let appraise =
                |nonce: &[u8]| appraise_signed(&policy, &signer, nonce, &message, &pcrs, None);
            appraise(&nonce).unwrap();
            for wrong in [&[0x90, 0x09, 0][..], &[0x90], &[], &[0, 0x90, 0x09]] {
                assert_eq!(appraise(wrong), Err(Refusal::Nonce), "{wrong:?}");
            }
        }
    }
    assert_eq!(seen, [0x0004, ALG_SHA256, 0x000c]);
}

proptest! {
    #[test]
    fn no_bytes_make_the_parsers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(attest) = Attest::parse(&bytes) {
            let _ = attest.quote_body();
        }
        let _ = AttestationKey::from_public(&bytes);
        let _ = parse_signature(&bytes);
    }

    #[test]
    fn no_change_of_a_good_quote_is_accepted(at in 0usize..400, flip in 1u8..) {
        let good = made().bytes();
        let signature = sign(&signer(), &good);
        let mut quote = good.clone();
        let at = at % quote.len();
        quote[at] ^= flip;
        let policy = Policy::new(registers());
        // The signature catches every change; the parser behind it must survive each.
        let refusal =
            appraise(&policy, &enrolled(), &NONCE, &quote, &signature, &registers(), None);
        prop_assert_eq!(refusal, Err(Refusal::Signature));
        let _ = appraise_signed(
            &policy, &enrolled().qualified_name(), &NONCE, &quote, &registers(), None,
        );
    }

    #[test]
    fn a_cut_quote_is_refused(len in 0usize..400) {
        let mut quote = made().bytes();
        quote.truncate(len % quote.len());
        let policy = Policy::new(registers());
        prop_assert!(appraise_signed(
            &policy, &enrolled().qualified_name(), &NONCE, &quote, &registers(), None,
        ).is_err());
    }
}
