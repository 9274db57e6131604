//! Whoever is not who it says it is must be refused, and for the reason that it is.
#![allow(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]
#![forbid(unsafe_code)]

use std::num::NonZeroUsize;

use distos_abi::{HolderKey, NodeId, VatName};
use distos_identity::{
    Bundle, Checked, ClusterName, Home, Identity, Issuer, KeyExchange, MAX_SVID_LIFETIME_S, Peers,
    Refusal, Root, Serial, SpiffeId, Subject, TenantName, Trust, Usage, Validity, from_pem, to_pem,
};
use distos_types::HolderSecret;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
    PKCS_ED25519, PublicKeyData, SanType, SignatureAlgorithm, SigningKey,
};
use time::OffsetDateTime;

const NOW: u64 = 1_800_000_000;
const HOUR: u64 = 3600;
const YEAR: u64 = 365 * 24 * HOUR;
const NODE: NodeId = NodeId([1; 32]);
const OTHER_NODE: NodeId = NodeId([2; 32]);

fn secret(seed: u8) -> HolderSecret {
    HolderSecret::from_seed([seed; 32])
}

fn valid(from_s: u64, for_s: u64) -> Validity {
    Validity { from_s, until_s: from_s + for_s }
}

fn serial() -> Serial {
    Serial([0x81; 16])
}

fn cluster(name: &str) -> ClusterName {
    ClusterName::new(name).unwrap()
}

fn id(subject: Subject) -> SpiffeId {
    SpiffeId { cluster: cluster("demo"), subject }
}

/// The cluster "demo", its root's seed being 1 and its issuer's 2.
struct Demo {
    root: HolderSecret,
    issuer: HolderSecret,
    home: Home,
    certificate: Vec<u8>,
    bundle: Bundle,
    /// What of its certificates is known already.
    checked: Checked,
}

impl Demo {
    fn new(home: Home) -> Demo {
        let (root, issuer) = (secret(1), secret(2));
        let authority = Root::new(cluster("demo"), &root);
        let own = authority.certificate(valid(NOW - YEAR, 3 * YEAR), serial()).unwrap();
        let certificate =
            authority.certify(issuer.key(), home, valid(NOW - HOUR, YEAR), serial()).unwrap();
        let bundle = Bundle::new(vec![own], 1).unwrap();
        let checked = Checked::new(NonZeroUsize::MIN.saturating_add(63));
        Demo { root, issuer, home, certificate, bundle, checked }
    }

    fn issuer(&self) -> Issuer<'_> {
        Issuer::new(self.certificate.clone(), &self.issuer).unwrap()
    }

    fn node(&self) -> Vec<Vec<u8>> {
        let id = id(Subject::Node(NODE));
        self.issuer().issue(&id, secret(3).key(), valid(NOW - 60, HOUR), serial()).unwrap()
    }

    fn verify(&self, chain: &[Vec<u8>]) -> Result<Identity, Refusal> {
        let found = Identity::verify(chain, &self.bundle, NOW, Usage::Client);
        // Whoever knows some signatures already finds the same, each time.
        for _ in 0..2 {
            let again = self.known(chain, &self.bundle, NOW, Usage::Client);
            assert_eq!(again, found);
        }
        found
    }

    fn known(
        &self,
        chain: &[Vec<u8>],
        bundle: &Bundle,
        now: u64,
        usage: Usage,
    ) -> Result<Identity, Refusal> {
        Identity::verify_once(chain, bundle, now, usage, &self.checked)
    }

    /// What an issuer that was taken over could sign: `change` is made to what it would have signed.
    fn forged(&self, change: impl FnOnce(&mut CertificateParams)) -> Vec<Vec<u8>> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, "demo");
        params.subject_alt_names = vec![uri(&id(Subject::Node(NODE)).to_string())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.not_before, params.not_after) = (at(NOW - 60), at(NOW + HOUR));
        params.serial_number = Some(5_u64.into());
        change(&mut params);
        let mut signer = CertificateParams::default();
        signer.distinguished_name = rcgen::DistinguishedName::new();
        signer.distinguished_name.push(DnType::OrganizationName, "demo");
        signer.distinguished_name.push(DnType::OrganizationalUnitName, self.home.to_string());
        let short = self.issuer.key().to_string()[..16].to_owned();
        signer.distinguished_name.push(DnType::CommonName, format!("issuer {short}"));
        signer.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = Key(&self.issuer, self.issuer.key());
        let issuer = rcgen::Issuer::from_params(&signer, key);
        let own = secret(3);
        let made = params.signed_by(&Key(&own, own.key()), &issuer).unwrap();
        vec![made.der().to_vec(), self.certificate.clone()]
    }
}

fn at(s: u64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(s as i64).unwrap()
}

fn uri(text: &str) -> SanType {
    SanType::URI(Ia5String::try_from(text).unwrap())
}

struct Key<'a>(&'a HolderSecret, HolderKey);

impl PublicKeyData for Key<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.1.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

impl SigningKey for Key<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.0.sign(message).to_vec())
    }
}

#[test]
fn nodes_services_and_agents_are_who_they_are() {
    let demo = Demo::new(Home::Node(OTHER_NODE));
    let service = VatName::new("executor/red").unwrap();
    let tenant = TenantName::new("red").unwrap();
    for subject in [
        Subject::Node(NODE),
        Subject::Service { node: NODE, service },
        Subject::Agent { tenant, agent: secret(9).key() },
    ] {
        let id = id(subject);
        let chain = demo.issuer().issue(&id, secret(3).key(), valid(NOW, HOUR), serial()).unwrap();
        for usage in [Usage::Client, Usage::Server] {
            let found = Identity::verify(&chain, &demo.bundle, NOW, usage).unwrap();
            assert_eq!((&found.id, found.key), (&id, secret(3).key()));
            assert_eq!(found.issuer, demo.issuer.key());
            assert_eq!((found.from_s, found.until_s), (NOW, NOW + HOUR));
        }
        let text = to_pem(&chain).unwrap();
        assert_eq!(from_pem(&text).unwrap(), chain);
    }
    let again = Bundle::parse(&demo.bundle.to_json()).unwrap();
    assert_eq!(again, demo.bundle);
}

#[test]
fn nobody_is_anybody_before_or_after_its_time() {
    let demo = Demo::new(Home::Offline);
    let chain = demo.node();
    let verify = |now| demo.known(&chain, &demo.bundle, now, Usage::Server);
    let (from_s, until_s) = (NOW - 60, NOW - 60 + HOUR);
    assert!(verify(from_s).is_ok() && verify(until_s).is_ok());
    assert_eq!(verify(from_s - 1), Err(Refusal::NotYet { from_s }));
    assert_eq!(verify(until_s + 1), Err(Refusal::Expired { until_s }));
    // The issuer's certificate and the root's end too.
    let root = Root::new(cluster("demo"), &demo.root);
    let home = Home::Offline;
    let over = root.certify(demo.issuer.key(), home, valid(NOW - YEAR, HOUR), serial()).unwrap();
    let until_s = NOW - YEAR + HOUR;
    let late = vec![chain[0].clone(), over];
    assert_eq!(demo.verify(&late), Err(Refusal::Expired { until_s }));
    let soon = root.certificate(valid(NOW - HOUR, HOUR + 60), serial()).unwrap();
    let soon = Bundle::new(vec![soon], 1).unwrap();
    let found = Identity::verify(&chain, &soon, NOW, Usage::Server).unwrap();
    assert_eq!(found.until_s, NOW + 60, "nobody outlives its root");
    let old = root.certificate(valid(NOW - YEAR, HOUR), serial()).unwrap();
    let old = Bundle::new(vec![old], 1).unwrap();
    let found = demo.known(&chain, &old, NOW, Usage::Server);
    assert_eq!(found, Err(Refusal::Unknown), "a root whose time is over stands behind nobody");
}

#[test]
fn an_issuer_never_vouches_for_the_node_that_it_runs_on() {
    let demo = Demo::new(Home::Node(NODE));
    let service = VatName::new("memory").unwrap();
    for subject in [Subject::Node(NODE), Subject::Service { node: NODE, service }] {
        let issued = demo.issuer().issue(&id(subject), secret(3).key(), valid(NOW, HOUR), serial());
        assert_eq!(issued.unwrap_err().code(), 22);
    }
    let other = id(Subject::Node(OTHER_NODE));
    assert!(demo.issuer().issue(&other, secret(3).key(), valid(NOW, HOUR), serial()).is_ok());
    // Whoever has taken that node over signs it nevertheless, with the issuer's real key.
    assert_eq!(demo.verify(&demo.forged(|_| ())), Err(Refusal::OwnNode));
    assert!(Demo::new(Home::Node(OTHER_NODE)).verify(&demo.forged(|_| ())).is_err());
}

/// N2: else a node that was taken off the list would come back under any name that it signs.
#[test]
fn nobody_who_connects_is_taken_at_the_word_of_an_issuer_whose_node_is_not_in_the_list() {
    let home = NodeId([9; 32]);
    let demo = Demo::new(Home::Node(home));
    let chain = demo.node();
    let admit = |nodes: &[NodeId], own, usage| {
        let peers = Peers { nodes: nodes.iter().copied().collect(), ..Peers::default() };
        let exchange = KeyExchange::default();
        let trust = Trust { bundle: demo.bundle.clone(), peers, own, exchange };
        trust.admit(&chain, NOW, usage).map(|_| ())
    };
    assert_eq!(admit(&[NODE], None, Usage::Client), Err(Refusal::Vouched(home)));
    assert_eq!(admit(&[NODE, home], None, Usage::Client), Ok(()));
    assert_eq!(admit(&[NODE], Some(home), Usage::Client), Ok(()), "its own issuer");
    assert_eq!(admit(&[NODE], None, Usage::Server), Ok(()), "whom one has chosen to connect to");
    assert_eq!(admit(&[home], None, Usage::Client), Err(Refusal::Stranger));
}

#[test]
fn another_clusters_and_made_up_certificates_are_refused() {
    let demo = Demo::new(Home::Offline);
    let chain = demo.node();
    // A cluster of the same name that somebody else made.
    let stranger = secret(8);
    let root = Root::new(cluster("demo"), &stranger);
    let own = root.certificate(valid(NOW - YEAR, 3 * YEAR), serial()).unwrap();
    let theirs = Bundle::new(vec![own.clone()], 1).unwrap();
    let refused = Identity::verify(&chain, &theirs, NOW, Usage::Client).unwrap_err();
    assert!(matches!(refused, Refusal::Unknown | Refusal::Forged), "{refused}");
    // Another cluster.
    let root = Root::new(cluster("other"), &stranger);
    let other = root.certificate(valid(NOW - YEAR, 3 * YEAR), serial()).unwrap();
    let theirs = Bundle::new(vec![other.clone()], 1).unwrap();
    let refused = Identity::verify(&chain, &theirs, NOW, Usage::Client).unwrap_err();
    assert!(matches!(refused, Refusal::Cluster { .. }), "{refused}");
    assert!(Bundle::new(vec![own, other], 1).is_err(), "roots of two clusters");
    // A chain that is too short, too long or in the wrong order.
    for bad in [vec![], chain[..1].to_vec(), [chain.clone(), chain.clone()].concat()] {
        assert_eq!(demo.verify(&bad), Err(Refusal::Length(bad.len())));
    }
    let turned = vec![chain[1].clone(), chain[0].clone()];
    assert!(matches!(demo.verify(&turned), Err(Refusal::Certificate { .. })));
    // A root, or the end itself, in the issuer's place.
    let root = demo.bundle.roots().next().unwrap().to_vec();
    for instead in [root, chain[0].clone()] {
        let bad = vec![chain[0].clone(), instead];
        assert!(matches!(demo.verify(&bad), Err(Refusal::Certificate { .. })));
    }
}

#[test]
fn a_changed_byte_anywhere_is_noticed() {
    let demo = Demo::new(Home::Offline);
    let good = demo.node();
    for which in 0..2 {
        for at in 0..good[which].len() {
            let mut chain = good.clone();
            chain[which][at] ^= 1;
            assert!(demo.verify(&chain).is_err(), "byte {at} of certificate {which}");
        }
    }
}

#[test]
fn an_issuer_that_was_taken_over_cannot_widen_what_an_svid_is() {
    let demo = Demo::new(Home::Offline);
    assert!(demo.verify(&demo.forged(|_| ())).is_ok(), "what follows differs in one thing");
    let certificate = |change: fn(&mut CertificateParams), why: &str| {
        let refused = demo.verify(&demo.forged(change)).unwrap_err();
        assert!(matches!(refused, Refusal::Certificate { .. }), "{why}: {refused}");
    };
    certificate(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained), "an issuer");
    certificate(|p| p.key_usages.push(KeyUsagePurpose::KeyCertSign), "a signer");
    certificate(|p| p.key_usages.clear(), "no key usage");
    certificate(|p| p.key_usages.push(KeyUsagePurpose::KeyEncipherment), "another use");
    certificate(|p| p.extended_key_usages.clear(), "no side");
    certificate(|p| p.subject_alt_names.clear(), "nobody");
    certificate(|p| p.subject_alt_names.push(uri("spiffe://demo/node/x")), "two names");
    certificate(|p| p.subject_alt_names = vec![uri("spiffe://demo")], "the cluster");
    certificate(|p| p.subject_alt_names = vec![uri("https://demo/")], "no id");
    certificate(
        |p| p.subject_alt_names.push(SanType::DnsName("example.com".try_into().unwrap())),
        "a DNS name too",
    );
    certificate(
        |p| {
            let unknown = rcgen::CustomExtension::from_oid_content(&[1, 2, 3], vec![5, 0]);
            p.custom_extensions.push(unknown);
            p.custom_extensions[0].set_criticality(true);
        },
        "an extension that says it must be understood",
    );
    let usage = demo.forged(|p| {
        p.extended_key_usages.retain(|usage| *usage == ExtendedKeyUsagePurpose::ServerAuth);
    });
    assert_eq!(demo.verify(&usage), Err(Refusal::Usage(Usage::Client)));
    let cluster = demo.forged(|p| {
        let id = format!("spiffe://other/node/{NODE}");
        p.subject_alt_names = vec![uri(&id)];
    });
    assert!(matches!(demo.verify(&cluster), Err(Refusal::Cluster { .. })));
    let lasting = demo.forged(|p| p.not_after = at(NOW + 2 * MAX_SVID_LIFETIME_S));
    assert!(matches!(demo.verify(&lasting), Err(Refusal::Lasting(_))));
}

#[test]
fn an_issuer_signs_only_what_will_be_taken() {
    let demo = Demo::new(Home::Offline);
    let issuer = demo.issuer();
    let node = id(Subject::Node(NODE));
    let key = secret(3).key();
    let refused = |id: &SpiffeId, key, validity| {
        issuer.issue(id, key, validity, serial()).unwrap_err().code()
    };
    let other = SpiffeId { cluster: cluster("other"), ..node.clone() };
    assert_eq!(refused(&other, key, valid(NOW, HOUR)), 22);
    assert_eq!(refused(&node, key, valid(NOW, MAX_SVID_LIFETIME_S + 1)), 16);
    assert_eq!(refused(&node, key, valid(NOW - 2 * HOUR, HOUR)), 16, "before the issuer");
    assert_eq!(refused(&node, key, valid(NOW + YEAR - HOUR, HOUR)), 16, "after the issuer");
    assert_eq!(refused(&node, key, Validity { from_s: NOW, until_s: NOW }), 16);
    // Anybody could sign for a key of small order.
    assert_eq!(refused(&node, HolderKey([0; 32]), valid(NOW, HOUR)), 16);
    assert!(Issuer::new(demo.certificate.clone(), &secret(9)).is_err(), "another's certificate");
    assert!(Issuer::new(demo.node()[0].clone(), &secret(3)).is_err(), "an SVID is no issuer's");
}

#[test]
fn a_new_root_and_the_one_before_it_hold_side_by_side() {
    let demo = Demo::new(Home::Offline);
    let (fresh, issuer) = (secret(11), secret(12));
    let root = Root::new(cluster("demo"), &fresh);
    let own = root.certificate(valid(NOW - HOUR, YEAR), serial()).unwrap();
    let home = Home::Offline;
    let by = root.certify(issuer.key(), home, valid(NOW - HOUR, YEAR), serial()).unwrap();
    let svid = Issuer::new(by, &issuer)
        .unwrap()
        .issue(&id(Subject::Node(NODE)), secret(3).key(), valid(NOW, HOUR), serial())
        .unwrap();
    assert_eq!(demo.verify(&svid), Err(Refusal::Unknown));
    let roots: Vec<_> = demo.bundle.roots().map(<[u8]>::to_vec).chain([own]).collect();
    let both = Bundle::new(roots, 2).unwrap();
    for chain in [svid, demo.node()] {
        assert!(Identity::verify(&chain, &both, NOW, Usage::Client).is_ok());
    }
}
