use proptest::prelude::*;
use rcgen::{
    BasicConstraints as Basic, CertificateParams, CertificateRevocationListParams, CustomExtension,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256, RevokedCertParams, RsaKeySize,
    SerialNumber, date_time_ymd,
};

use super::*;
use crate::findings::Claim;
use crate::pki::{CHAIN, REVOCATION};
use crate::testdata;
use crate::wire::Writer;

const AT_S: u64 = 1_780_000_000;
const EK: [u64; 6] = [2, 23, 133, 8, 1, 0];
const SERIAL: u8 = 0x4d;

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: Certificate,
}

fn root(name: &str) -> Authority {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let mut params = named(name);
    params.is_ca = IsCa::Ca(Basic::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let made = params.self_signed(&key).unwrap();
    let certificate = Certificate::from_der(made.der()).unwrap();
    Authority { certificate, issuer: Issuer::new(params, key) }
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2040, 1, 1);
    params
}

/// One element of DER.
fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let len = u8::try_from(content.len()).unwrap();
    let len = if len < 0x80 { vec![len] } else { vec![0x81, len] };
    [&[tag], &len[..], content].concat()
}

/// `SubjectAltName` as makers of TPMs write it.
fn san(texts: [&str; 3]) -> CustomExtension {
    let rdn = |(last, text): (u8, &str)| {
        let oid = [0x67, 0x81, 0x05, 2, last];
        let one = [tlv(6, &oid), tlv(0x0c, text.as_bytes())].concat();
        tlv(0x31, &tlv(0x30, &one))
    };
    let rdns: Vec<u8> = (1..=3).zip(texts).flat_map(rdn).collect();
    let names = tlv(0x30, &tlv(0xa4, &tlv(0x30, &rdns)));
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 17], names);
    extension.set_criticality(true);
    extension
}

const MADE_BY: [&str; 3] = ["id:494E5443", "Chip 9", "id:00020008"];

/// What a maker writes into the certificate of a key of that kind.
fn ek_params(template: Template) -> CertificateParams {
    let mut params = named("device");
    params.serial_number = Some(SerialNumber::from_slice(&[SERIAL]));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(EK[..5].to_vec())];
    params.key_usages = vec![match template {
        Template::Rsa2048 => KeyUsagePurpose::KeyEncipherment,
        _ => KeyUsagePurpose::KeyAgreement,
    }];
    params.custom_extensions = vec![san(MADE_BY)];
    params
}

/// A key pair whose public half is an endorsement key.
fn key(template: Template) -> (KeyPair, EndorsementKey) {
    let (pair, unique) = match template {
        Template::P256 => (KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(), 68),
        Template::P384 => (KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap(), 4),
        Template::Rsa2048 => {
            (KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap(), 258)
        }
    };
    let raw = pair.public_key_raw();
    let shape = template.public();
    let shape = Writer::default().bytes(&shape[..shape.len() - unique]);
    let public = match template {
        // Before the exponent, which has three bytes.
        Template::Rsa2048 => shape.sized(&raw[raw.len() - 5 - 256..raw.len() - 5]),
        _ => {
            let (x, y) = raw[1..].split_at((raw.len() - 1) / 2);
            shape.sized(x).sized(y)
        }
    };
    let ek = EndorsementKey::from_public(&public.done()).unwrap();
    (pair, ek)
}

impl Authority {
    fn certify(&self, params: CertificateParams, key: &KeyPair) -> Vec<u8> {
        params.signed_by(key, &self.issuer).unwrap().der().to_vec()
    }

    fn crl(&self, revoked: &[u8]) -> Crl {
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(2040, 1, 1),
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: revoked
                .iter()
                .map(|serial| RevokedCertParams {
                    serial_number: SerialNumber::from_slice(&[*serial]),
                    revocation_time: date_time_ymd(2021, 1, 1),
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Crl::from_der(params.signed_by(&self.issuer).unwrap().der()).unwrap()
    }
}

fn pinned(kind: Kind, root: &Authority) -> Makers {
    let mut makers = Makers::default();
    makers.pin(kind, vec![root.certificate.clone()]).unwrap();
    makers
}

fn failed(makers: &Makers, der: &[u8], ek: &EndorsementKey) -> (&'static str, String) {
    let mut findings = Findings::default();
    assert_eq!(makers.verify(der, ek, AT_S, &mut findings), None);
    assert!(findings.claims.is_empty(), "nothing is claimed: {findings:?}");
    assert!(makers.demand(der, ek, AT_S).is_err());
    let last = findings.checks.last().unwrap();
    // Where nobody is pinned nothing could be checked, and nothing was good.
    let wanted = if makers.is_empty() { Outcome::NotChecked } else { Outcome::Failed };
    assert_eq!(last.outcome, wanted);
    (last.name, last.detail.clone())
}

#[test]
fn a_key_that_a_pinned_maker_has_certified_is_taken_with_what_the_certificate_says() {
    let maker = root("maker");
    for template in Template::ALL {
        let (pair, ek) = key(template);
        let der = maker.certify(ek_params(template), &pair);
        let mut findings = Findings::default();
        let makers = pinned(Kind::Hardware, &maker);
        let found = makers.verify(&der, &ek, AT_S, &mut findings).unwrap();
        assert_eq!(found.kind, Kind::Hardware);
        assert_eq!(found, makers.demand(&der, &ek, AT_S).unwrap());
        for (name, value) in ["tpm-manufacturer", "tpm-model", "tpm-version"].iter().zip(MADE_BY) {
            assert_eq!(findings.claims[name], Claim::Text(value.to_owned()));
        }
        assert_eq!(findings.claims["tpm"], Claim::Text("hardware".to_owned()));
        assert!([ENDORSEMENT, CHAIN].iter().all(|name| findings.all_passed().contains(name)));
        assert_eq!(findings.outcome(REVOCATION), Outcome::NotChecked, "nobody gave a list");
        assert_eq!(stored(&[&der[..], &[0xff; 40]].concat()).unwrap().der(), der);
        assert!(stored(&der[..der.len() - 1]).is_none());
        // It is this key's, and no other of that kind.
        let (check, why) = failed(&makers, &der, &key(template).1);
        assert!(check == ENDORSEMENT && why.contains("another key"), "{why}");
        for other in Template::ALL.into_iter().filter(|other| *other != template) {
            assert_eq!(failed(&makers, &der, &key(other).1).0, ENDORSEMENT);
        }
    }
    assert!(stored(&[0xff; 512]).is_none() && stored(&[]).is_none());
}

#[test]
fn who_is_not_pinned_certifies_nothing() {
    let (maker, other) = (root("maker"), root("maker"));
    let (pair, ek) = key(Template::P256);
    let der = maker.certify(ek_params(Template::P256), &pair);
    assert_eq!(failed(&pinned(Kind::Hardware, &other), &der, &ek).0, CHAIN);
    let nobody = Makers::default();
    assert!(nobody.is_empty());
    assert_eq!(failed(&nobody, &der, &ek).0, CHAIN);
    // What may stand between is no root.
    let middle = {
        let key = KeyPair::generate().unwrap();
        let mut params = named("middle");
        params.is_ca = IsCa::Ca(Basic::Unconstrained);
        let certificate = Certificate::from_der(&maker.certify(params.clone(), &key)).unwrap();
        Authority { certificate, issuer: Issuer::new(params, key) }
    };
    let der = middle.certify(ek_params(Template::P256), &pair);
    let between = pinned(Kind::Hardware, &middle);
    assert!(between.is_empty());
    assert_eq!(failed(&between, &der, &ek).0, CHAIN);
    let mut both = pinned(Kind::Hardware, &maker);
    assert_eq!(failed(&both, &der, &ek).0, CHAIN, "cut");
    both.pin(Kind::Hardware, vec![middle.certificate]).unwrap();
    assert!(both.demand(&der, &ek, AT_S).is_ok());
}

#[test]
fn a_certificate_for_something_else_is_none_for_an_endorsement_key() {
    let maker = root("maker");
    let makers = pinned(Kind::Hardware, &maker);
    let (pair, ek) = key(Template::P256);
    let with = |change: fn(&mut CertificateParams)| {
        let mut params = ek_params(Template::P256);
        change(&mut params);
        maker.certify(params, &pair)
    };
    for (change, check) in [
        (
            (|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth])
                as fn(&mut CertificateParams),
            CHAIN,
        ),
        (|params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature], ENDORSEMENT),
        (|params| params.key_usages = vec![KeyUsagePurpose::KeyEncipherment], ENDORSEMENT),
        (|params| params.is_ca = IsCa::Ca(Basic::Unconstrained), ENDORSEMENT),
        (|params| params.not_after = date_time_ymd(2021, 1, 1), CHAIN),
        (|params| params.not_before = date_time_ymd(2039, 1, 1), CHAIN),
        (
            |params| {
                let broken = CustomExtension::from_oid_content(&[2, 5, 29, 17], vec![0x30, 9]);
                params.custom_extensions = vec![broken];
            },
            ENDORSEMENT,
        ),
    ] {
        let der = with(change);
        assert_eq!(failed(&makers, &der, &ek).0, check);
    }
    // It may leave out what it is for, and whose the TPM is.
    let silent = with(|params| {
        (params.extended_key_usages, params.key_usages) = (Vec::new(), Vec::new());
        params.custom_extensions = Vec::new();
    });
    let found = makers.demand(&silent, &ek, AT_S).unwrap();
    assert_eq!(found.origin, Origin::default());
}

#[test]
fn a_key_that_its_maker_has_taken_back_is_refused() {
    let maker = root("maker");
    let (pair, ek) = key(Template::P384);
    let der = maker.certify(ek_params(Template::P384), &pair);
    let mut makers = pinned(Kind::Hardware, &maker);
    makers.add_lists(vec![maker.crl(&[SERIAL + 1])]).unwrap();
    let mut findings = Findings::default();
    assert!(makers.verify(&der, &ek, AT_S, &mut findings).is_some());
    assert_eq!(findings.outcome(REVOCATION), Outcome::Passed);
    makers.add_lists(vec![maker.crl(&[SERIAL])]).unwrap();
    assert!(failed(&makers, &der, &ek).1.contains("revoked"));
}

#[test]
fn a_key_of_which_a_responder_says_that_it_was_taken_back_is_refused() {
    let maker = crate::pki::tests::root("maker");
    let (pair, ek) = key(Template::P384);
    let der = ek_params(Template::P384).signed_by(&pair, &maker.issuer).unwrap().der().to_vec();
    let one = Certificate::from_der(&der).unwrap();
    let mut makers = Makers::default();
    makers.pin(Kind::Hardware, vec![maker.certificate.clone()]).unwrap();
    // From a folder, and as whoever invites is told of what is in it.
    let add = |makers: &mut Makers, is_good| {
        let response = crate::ocsp::tests::answer(&maker, &one, is_good);
        makers.add(Kind::Hardware, response.der()).unwrap();
    };
    add(&mut makers, true);
    let mut findings = Findings::default();
    assert!(makers.verify(&der, &ek, AT_S, &mut findings).is_some());
    assert_eq!(findings.outcome(REVOCATION), Outcome::Passed);
    add(&mut makers, false);
    assert!(failed(&makers, &der, &ek).1.contains("revoked"));
    let mut told = Makers::default();
    told.pin(Kind::Hardware, vec![maker.certificate.clone()]).unwrap();
    for der in makers.taken_back() {
        told.add_responses(Published::taken_back(der).unwrap().responses).unwrap();
    }
    assert!(failed(&told, &der, &ek).1.contains("revoked"));
    let many = vec![crate::ocsp::tests::answer(&maker, &one, true); MAX_PINNED + 1];
    assert!(Makers::default().add_responses(many[1..].to_vec()).is_ok());
    assert!(Makers::default().add_responses(many).is_err());
}

/// Or a policy that asks for hardware takes what any program says of itself.
#[test]
fn a_tpm_is_hardware_only_by_a_root_that_was_pinned_for_hardware() {
    let (maker, host) = (root("maker"), root("host"));
    let (pair, ek) = key(Template::P256);
    let kind = |makers: &Makers, by: &Authority, texts: [&str; 3]| {
        let mut params = ek_params(Template::P256);
        params.custom_extensions = vec![san(texts)];
        let der = by.certify(params, &pair);
        let mut findings = Findings::default();
        let found = makers.verify(&der, &ek, AT_S, &mut findings).unwrap();
        assert_eq!(findings.claims["tpm"], Claim::Text(found.kind.word().to_owned()));
        found.kind
    };
    let mut makers = pinned(Kind::Hardware, &maker);
    makers.pin(Kind::Software, vec![host.certificate.clone()]).unwrap();
    assert_eq!(kind(&makers, &maker, MADE_BY), Kind::Hardware);
    // Whatever it says of itself.
    assert_eq!(kind(&makers, &host, MADE_BY), Kind::Software);
    // The common software TPM, whose root stands in the wrong place.
    for name in ["id:00001014", "id:49424D00", "id:49424d00"] {
        assert_eq!(kind(&makers, &maker, [name, "swtpm", "id:1"]), Kind::Software);
    }
    // In both places, in either order.
    makers.pin(Kind::Software, vec![maker.certificate.clone()]).unwrap();
    makers.pin(Kind::Hardware, vec![host.certificate.clone()]).unwrap();
    assert_eq!(kind(&makers, &maker, MADE_BY), Kind::Software);
    assert_eq!(kind(&makers, &host, MADE_BY), Kind::Software);
    assert_eq!(makers.certificates(Kind::Software).count(), 2);
    assert_eq!(makers.certificates(Kind::Hardware).count(), 0);
}

/// It goes to the audit log, and to terminals.
#[test]
fn what_is_no_short_plain_text_is_not_taken_from_a_certificate() {
    let maker = root("maker");
    let makers = pinned(Kind::Hardware, &maker);
    let (pair, ek) = key(Template::P256);
    let long = "x".repeat(MAX_TEXT_BYTES + 1);
    let mut params = ek_params(Template::P256);
    params.custom_extensions = vec![san([&long, "a\nb", ""])];
    let found = makers.demand(&maker.certify(params, &pair), &ek, AT_S).unwrap();
    assert_eq!(found.origin, Origin::default());
}

#[test]
fn no_changed_byte_of_a_certificate_is_taken() {
    let maker = root("maker");
    let makers = pinned(Kind::Hardware, &maker);
    let (pair, ek) = key(Template::P256);
    let der = maker.certify(ek_params(Template::P256), &pair);
    for at in 0..der.len() {
        let mut changed = der.clone();
        changed[at] ^= 1;
        assert!(makers.demand(&changed, &ek, AT_S).is_err(), "{at}");
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// Or a key that was taken back is taken, as nobody has read that it was.
#[test]
fn a_file_is_added_with_all_that_is_in_it_or_not_at_all() {
    let maker = root("maker");
    let (pair, ek) = key(Template::P256);
    let der = maker.certify(ek_params(Template::P256), &pair);
    let (own, list) = (maker.certificate.der(), maker.crl(&[SERIAL]));
    let both = pem("CERTIFICATE", own) + &pem("X509 CRL", list.der());
    let mut makers = Makers::default();
    assert_eq!(makers.add(Kind::Hardware, both.as_bytes()), Ok(1));
    assert!(failed(&makers, &der, &ek).1.contains("revoked"));
    // One after the other, in DER.
    let mut makers = Makers::default();
    assert_eq!(makers.add(Kind::Hardware, own), Ok(1));
    assert!(makers.demand(&der, &ek, AT_S).is_ok());
    assert_eq!(makers.add(Kind::Software, list.der()), Ok(0));
    assert!(failed(&makers, &der, &ek).1.contains("revoked"));
    // A certificate of another is no root.
    assert_eq!(makers.add(Kind::Hardware, &der), Ok(0));
    let broken = pem("CERTIFICATE", own) + &pem("X509 CRL", &list.der()[1..]);
    for bytes in [broken.as_bytes(), b"", b"makers", &own[1..]] {
        assert!(Makers::default().add(Kind::Hardware, bytes).is_err());
    }
}

#[test]
fn no_more_is_pinned_than_goes_in_a_message() {
    let maker = root("maker");
    let many = vec![maker.certificate.clone(); MAX_PINNED + 1];
    assert!(Makers::default().pin(Kind::Hardware, many[1..].to_vec()).is_ok(), "it is one");
    let lists = vec![maker.crl(&[]); MAX_PINNED + 1];
    assert!(Makers::default().add_lists(lists[1..].to_vec()).is_ok());
    assert!(Makers::default().add_lists(lists).is_err());
    let revoked: Vec<u8> = (1..=u8::MAX).collect();
    let lists = vec![maker.crl(&revoked); MAX_PINNED];
    assert!(Makers::default().add_lists(lists).is_err(), "so many bytes");
}

/// Whoever pins what the makers publish can do so.
#[test]
fn the_roots_of_tpm_makers_are_pinned_together() {
    let Some(files) = testdata::list("tpm-roots") else { return };
    let mut makers = Makers::default();
    for (name, bytes) in files {
        let added = makers.add(Kind::Hardware, &bytes);
        assert!(added.is_ok(), "{name}: {added:?}");
    }
    assert!(makers.certificates(Kind::Hardware).count() > 50);
}

proptest! {
    #[test]
    fn bytes_of_anybody_panic_nowhere(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = EndorsementKey::from_public(&bytes);
        prop_assert!(stored(&bytes).is_none());
        prop_assert!(!is_rsa_key(&bytes, &[1]));
    }

    #[test]
    fn changed_certificates_panic_nowhere(at in 0usize..900, to in any::<u8>(), cut in 0usize..900) {
        static MADE: std::sync::LazyLock<(Makers, Vec<u8>, EndorsementKey)> =
            std::sync::LazyLock::new(|| {
                let maker = root("maker");
                let (pair, ek) = key(Template::P384);
                let der = maker.certify(ek_params(Template::P384), &pair);
                (pinned(Kind::Hardware, &maker), der, ek)
            });
        let (makers, good, ek) = &*MADE;
        let mut der = good.clone();
        if let Some(byte) = der.get_mut(at) {
            *byte = to;
        }
        der.truncate(cut.max(1));
        let is_same = der == *good;
        prop_assert_eq!(makers.demand(&der, ek, AT_S).is_ok(), is_same);
        let _ = stored(&der).map(|one| Origin::of(&one));
    }
}
