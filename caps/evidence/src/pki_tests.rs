use rcgen::{
    BasicConstraints as Basic, CertificateParams, CertificateRevocationListParams, CustomExtension,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SerialNumber, date_time_ymd,
};

use super::*;
use crate::testdata;

pub(crate) const AT_S: u64 = 1_780_000_000;

/// Whoever issues certificates in these tests.
pub(crate) struct Authority {
    pub(crate) issuer: Issuer<'static, KeyPair>,
    pub(crate) certificate: Certificate,
}

pub(crate) fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2040, 1, 1);
    params
}

pub(crate) fn issuing(name: &str) -> CertificateParams {
    let mut params = named(name);
    params.is_ca = IsCa::Ca(Basic::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

pub(crate) fn root(name: &str) -> Authority {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let params = issuing(name);
    let made = params.self_signed(&key).unwrap();
    Authority {
        certificate: Certificate::from_der(made.der()).unwrap(),
        issuer: Issuer::new(params, key),
    }
}

impl Authority {
    pub(crate) fn issue(&self, params: CertificateParams) -> Authority {
        let key = KeyPair::generate().unwrap();
        let made = params.signed_by(&key, &self.issuer).unwrap();
        Authority {
            certificate: Certificate::from_der(made.der()).unwrap(),
            issuer: Issuer::new(params, key),
        }
    }

    pub(crate) fn leaf(&self, params: CertificateParams) -> Certificate {
        self.issue(params).certificate
    }

    pub(crate) fn crl(&self, revoked: &[&[u8]], last_year: i32) -> Crl {
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(last_year, 1, 1),
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: revoked
                .iter()
                .map(|serial| RevokedCertParams {
                    serial_number: SerialNumber::from_slice(serial),
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

fn anchors<'a>(roots: &'a [Certificate], crls: &'a [Crl]) -> Anchors<'a> {
    Anchors { roots, others: &[], crls, responses: &[], at_s: AT_S }
}

fn find(leaf: &Certificate, chain: &[&Authority], roots: &[&Authority]) -> Result<Path, Refusal> {
    let chain: Vec<Certificate> = chain.iter().map(|one| one.certificate.clone()).collect();
    let roots: Vec<Certificate> = roots.iter().map(|one| one.certificate.clone()).collect();
    Path::find(leaf, &chain, anchors(&roots, &[]), None)
}

#[test]
fn a_chain_is_as_good_as_the_root_that_is_pinned() {
    let (ours, other) = (root("root"), root("root"));
    let middle = ours.issue(issuing("middle"));
    let leaf = middle.leaf(named("leaf"));
    let path = find(&leaf, &[&middle], &[&other, &ours]).unwrap();
    assert_eq!(path.root(), &ours.certificate);
    assert_eq!(path.certificates.len(), 3);
    assert!(!path.is_revocation_known(), "nobody gave a list");
    // A root of the same name that did not sign it.
    let refused = find(&leaf, &[&middle], &[&other]).unwrap_err();
    assert_eq!(refused, Refusal::Signature("CN=middle".into()));
    // The root comes with the chain and is pinned nowhere.
    let refused = find(&leaf, &[&middle, &ours], &[]).unwrap_err();
    assert_eq!(refused, Refusal::NoIssuer("CN=root".into()));
    // Cut.
    let refused = find(&leaf, &[], &[&ours]).unwrap_err();
    assert_eq!(refused, Refusal::NoIssuer("CN=leaf".into()));
}

#[test]
fn whoever_was_certified_twice_is_found_by_either_way() {
    let (lost, ours) = (root("lost"), root("ours"));
    let key = KeyPair::generate().unwrap();
    let params = issuing("middle");
    let by = |one: &Authority| {
        let made = params.signed_by(&key, &one.issuer).unwrap();
        Certificate::from_der(made.der()).unwrap()
    };
    let chain = [by(&lost), by(&ours)];
    let issuer = Issuer::from_params(&params, &key);
    let leaf = named("leaf").signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
    let leaf = Certificate::from_der(leaf.der()).unwrap();
    let roots = [ours.certificate.clone()];
    let path = Path::find(&leaf, &chain, anchors(&roots, &[]), None).unwrap();
    assert_eq!(path.certificates[1], chain[1]);
}

#[test]
fn only_authorities_issue() {
    let ours = root("root");
    let device = ours.issue(named("device"));
    let forged = device.leaf(named("forged"));
    let refused = find(&forged, &[&device], &[&ours]).unwrap_err();
    assert_eq!(refused, Refusal::NotIssuer("CN=device".into()));
    let mut params = issuing("last");
    params.is_ca = IsCa::Ca(Basic::Constrained(0));
    let last = ours.issue(params);
    let next = last.issue(issuing("next"));
    find(&last.leaf(named("leaf")), &[&last], &[&ours]).unwrap();
    let refused = find(&next.leaf(named("leaf")), &[&last, &next], &[&ours]).unwrap_err();
    assert_eq!(refused, Refusal::NotIssuer("CN=last".into()));
    let mut params = issuing("lists");
    params.key_usages = vec![KeyUsagePurpose::CrlSign];
    let lists = ours.issue(params);
    let refused = find(&lists.leaf(named("leaf")), &[&lists], &[&ours]).unwrap_err();
    assert_eq!(refused, Refusal::NotIssuer("CN=lists".into()));
}

#[test]
fn a_certificate_holds_in_its_time_for_its_purpose_and_if_it_is_understood() {
    let ours = root("root");
    let roots = [ours.certificate.clone()];
    let at = |leaf: &Certificate, at_s: u64| {
        Path::find(leaf, &[], Anchors { at_s, ..anchors(&roots, &[]) }, None)
    };
    let leaf = ours.leaf(named("leaf"));
    let path = at(&leaf, AT_S).unwrap();
    assert_eq!(path.until_s, leaf.not_after_s());
    at(&leaf, path.until_s).unwrap();
    for at_s in [path.until_s + 1, 0] {
        assert!(matches!(at(&leaf, at_s), Err(Refusal::NotValid { .. })));
    }
    let mut params = named("strange");
    let mut strange = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
    params.custom_extensions.push(strange.clone());
    at(&ours.leaf(params.clone()), AT_S).unwrap();
    strange.set_criticality(true);
    params.custom_extensions = vec![strange];
    assert!(matches!(
        at(&ours.leaf(params), AT_S),
        Err(Refusal::Extension { oid, .. }) if oid == "1.2.3.4"
    ));
    let mut params = named("client");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let client = ours.leaf(params);
    let purpose = |leaf: &Certificate, oid: &str| {
        let oid = ObjectIdentifier::new(oid).unwrap();
        Path::find(leaf, &[], anchors(&roots, &[]), Some(oid))
    };
    purpose(&client, "1.3.6.1.5.5.7.3.2").unwrap();
    purpose(&leaf, "1.3.6.1.5.5.7.3.2").unwrap();
    let refused = purpose(&client, "2.23.133.8.1").unwrap_err();
    assert_eq!(refused, Refusal::Purpose("CN=client".into()));
}

#[test]
fn what_its_issuer_has_taken_back_is_refused_and_old_lists_say_nothing() {
    let ours = root("root");
    let middle = ours.issue(issuing("middle"));
    let mut params = named("leaf");
    params.serial_number = Some(SerialNumber::from_slice(&[0x4d, 2]));
    let leaf = middle.leaf(params);
    let roots = [ours.certificate.clone()];
    let chain = [middle.certificate.clone()];
    let with = |crls: &[Crl]| Path::find(&leaf, &chain, anchors(&roots, crls), None);
    let revoked = with(&[middle.crl(&[&[0x4d, 2]], 2040)]).unwrap_err();
    assert_eq!(revoked, Refusal::Revoked { subject: "CN=leaf".into(), serial: "4D:02".into() });
    // Another's certificate of that number; an old list; one by a stranger of the same name.
    let path = with(&[middle.crl(&[&[0x4d, 3]], 2040)]).unwrap();
    assert!(!path.is_revocation_known(), "nothing is known of the middle");
    let path = with(&[middle.crl(&[&[0x4d, 3]], 2040), ours.crl(&[], 2040)]).unwrap();
    assert!(path.is_revocation_known());
    let path = with(&[middle.crl(&[], 2021), ours.crl(&[], 2040)]).unwrap();
    assert!(!path.is_revocation_known());
    // What was taken back once stays so when its list runs out.
    let revoked = with(&[middle.crl(&[&[0x4d, 2]], 2021)]).unwrap_err();
    assert!(matches!(revoked, Refusal::Revoked { .. }));
    let stranger = root("middle");
    let path = with(&[stranger.crl(&[&[0x4d, 2]], 2040), ours.crl(&[], 2040)]).unwrap();
    assert!(!path.is_revocation_known());
}

#[test]
fn a_search_ends_however_many_namesakes_there_are() {
    let ours = root("root");
    let many: Vec<Authority> = (0..MAX_SIGNATURES).map(|_| root("root")).collect();
    let leaf = ours.leaf(named("leaf"));
    let mut roots: Vec<&Authority> = many.iter().skip(1).collect();
    roots.push(&ours);
    find(&leaf, &[], &roots).unwrap();
    // One more, and the right one is not looked at.
    roots.insert(0, &many[0]);
    assert_eq!(find(&leaf, &[], &roots), Err(Refusal::Signature("CN=leaf".into())));
    // And a chain that goes round.
    let (a, b) = (root("a"), root("b"));
    let a_by_b = b.issue(issuing("a"));
    let b_by_a = a.issue(issuing("b"));
    assert!(find(&a_by_b.leaf(named("leaf")), &[&a_by_b, &b_by_a, &a, &b], &[]).is_err());
}

#[test]
fn no_changed_byte_of_a_certificate_is_accepted() {
    let ours = root("root");
    let leaf = ours.leaf(named("leaf"));
    for at in 0..leaf.der().len() {
        let mut changed = leaf.der().to_vec();
        changed[at] ^= 1;
        if let Ok(changed) = Certificate::from_der(&changed) {
            assert!(find(&changed, &[], &[&ours]).is_err(), "{at}");
        }
    }
}

#[test]
fn a_text_of_certificates_is_read_to_its_end_or_not_at_all() {
    let Some(chain) = testdata::read("nvidia/hopper-cert-chain.pem") else { return };
    let chain = Certificate::several(&chain).unwrap();
    assert_eq!(chain.len(), 5);
    assert_eq!(Certificate::several(chain[0].der()).unwrap(), chain[..1]);
    assert!(Certificate::several(b"").is_err());
    assert!(Certificate::several(b"-----BEGIN NOTHING-----").is_err());
    let broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(Certificate::several(broken).is_err());
}

#[test]
fn makers_chains_hold_up_to_their_roots_and_no_others() {
    let read = |name: &str| testdata::read(name).map(|bytes| Certificate::several(&bytes).unwrap());
    let Some(chain) = read("nvidia/hopper-cert-chain.pem") else { return };
    let roots = read("nvidia/device-root.pem").unwrap();
    let path = Path::find(&chain[0], &chain[1..], anchors(&roots, &[]), None).unwrap();
    assert_eq!(path.certificates.len(), 5);
    assert_eq!(path.root(), &roots[0]);
    let others = read("nvidia/rim-root.pem").unwrap();
    assert!(Path::find(&chain[0], &chain[1..], anchors(&others, &[]), None).is_err());
    for cut in 1..4 {
        let rest: Vec<Certificate> = chain
            .iter()
            .skip(1)
            .enumerate()
            .filter(|(at, _)| at + 1 != cut)
            .map(|(_, c)| c.clone())
            .collect();
        assert!(Path::find(&chain[0], &rest, anchors(&roots, &[]), None).is_err(), "{cut}");
    }
}

#[test]
fn all_roots_of_tpm_makers_can_be_read() {
    let Some(files) = testdata::list("tpm-roots") else { return };
    assert!(files.len() > 50);
    for (name, bytes) in files {
        let read = Certificate::several(&bytes);
        assert!(read.is_ok(), "{name}: {read:?}");
    }
}
