use std::path::Path as File;
use std::process::Command;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
    SerialNumber, SigningKey as _, date_time_ymd,
};
use sha2::Sha512;
use x509_cert::der::asn1::GeneralizedTime;

use super::*;
use crate::findings::{Findings, Outcome};
use crate::pki::tests::{AT_S, Authority, issuing, named, root};
use crate::pki::{Anchors, Path, REVOCATION};

/// Before and after [`AT_S`], which is on the 28th of May.
const MADE: &str = "20260501000000Z";
const NEXT: &str = "20260601000000Z";
const GOOD: &[u8] = &[0x80, 0];
const UNKNOWN: &[u8] = &[0x82, 0];

/// One element of DER.
fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = content.len();
    let length = match length {
        0..0x80 => vec![length as u8],
        0x80..0x100 => vec![0x81, length as u8],
        _ => [&[0x82][..], &u16::try_from(length).unwrap().to_be_bytes()].concat(),
    };
    [&[tag][..], &length, &content].concat()
}

fn time(text: &str) -> Vec<u8> {
    tlv(0x18, &[text.as_bytes()])
}

fn revoked() -> Vec<u8> {
    tlv(0xa1, &[&time("20210101000000Z")])
}

fn oid(of: ObjectIdentifier) -> Vec<u8> {
    of.to_der().unwrap()
}

/// What a response calls a certificate: the hashes of its issuer's name and key, and its number.
fn id_by<D: Digest>(hash: ObjectIdentifier, one: &Certificate, issuer: &Certificate) -> Vec<u8> {
    let name = D::digest(issuer.name().to_der().unwrap());
    let key = D::digest(issuer.key());
    let serial = one.serial().to_der().unwrap();
    let hash = tlv(0x30, &[&oid(hash)]);
    tlv(0x30, &[&hash, &tlv(4, &[&name]), &tlv(4, &[&key]), &serial])
}

fn id(one: &Certificate, issuer: &Certificate) -> Vec<u8> {
    id_by::<Sha1>(SHA1, one, issuer)
}

/// A critical extension, or one that is not.
fn extension(of: ObjectIdentifier, is_critical: bool) -> Vec<u8> {
    let critical: &[u8] = if is_critical { &[1, 1, 0xff] } else { &[] };
    tlv(0x30, &[&oid(of), critical, &tlv(4, &[&[4, 1, 7]])])
}

fn single(id: &[u8], status: &[u8], from: &str, until: Option<&str>) -> Vec<u8> {
    let until = until.map(|until| tlv(0xa0, &[&time(until)])).unwrap_or_default();
    tlv(0x30, &[id, status, &time(from), &until])
}

/// A response as a responder makes one. Tests change parts of it.
struct Made<'a> {
    by: &'a Authority,
    by_key: bool,
    made: &'a str,
    singles: Vec<Vec<u8>>,
    extensions: Vec<u8>,
    certificates: Vec<&'a Certificate>,
}

impl<'a> Made<'a> {
    fn by(by: &'a Authority, singles: Vec<Vec<u8>>) -> Made<'a> {
        let (extensions, certificates) = (Vec::new(), Vec::new());
        Made { by, by_key: false, made: MADE, singles, extensions, certificates }
    }

    fn with(mut self, certificate: &'a Certificate) -> Made<'a> {
        self.certificates.push(certificate);
        self
    }

    fn der(&self) -> Vec<u8> {
        let own = &self.by.certificate;
        let responder = match self.by_key {
            true => tlv(0xa2, &[&tlv(4, &[&Sha1::digest(own.key())])]),
            false => tlv(0xa1, &[&own.name().to_der().unwrap()]),
        };
        let extensions = match self.extensions.is_empty() {
            true => Vec::new(),
            false => tlv(0xa1, &[&tlv(0x30, &[&self.extensions])]),
        };
        let singles = tlv(0x30, &[&self.singles.concat()]);
        let data = tlv(0x30, &[&responder, &time(self.made), &singles, &extensions]);
        let key = self.by.issuer.key();
        let signature = key.sign(&data).unwrap();
        // The keys of roots are of P-384 here, and all others of P-256.
        let is_p384 = own.key_on(crate::pki::P384).is_some();
        let with = if is_p384 { "1.2.840.10045.4.3.3" } else { "1.2.840.10045.4.3.2" };
        let with = tlv(0x30, &[&oid(ObjectIdentifier::new(with).unwrap())]);
        let certificates = match self.certificates.is_empty() {
            true => Vec::new(),
            false => {
                let all: Vec<&[u8]> = self.certificates.iter().map(|one| one.der()).collect();
                tlv(0xa0, &[&tlv(0x30, &all)])
            }
        };
        let basic = tlv(0x30, &[&data, &with, &tlv(3, &[&[0], &signature]), &certificates]);
        wrapped(&[10, 1, 0], BASIC, &basic)
    }

    fn read(&self) -> Response {
        Response::from_der(&self.der()).unwrap()
    }
}

/// A response of that status and type.
fn wrapped(status: &[u8], of: ObjectIdentifier, basic: &[u8]) -> Vec<u8> {
    let bytes = tlv(0x30, &[&oid(of), &tlv(4, &[basic])]);
    tlv(0x30, &[status, &tlv(0xa0, &[&bytes])])
}

/// What `by` says of a certificate that it has issued, current at [`AT_S`].
pub(crate) fn answer(by: &Authority, one: &Certificate, is_good: bool) -> Response {
    let id = id(one, &by.certificate);
    let status = if is_good { GOOD.to_vec() } else { revoked() };
    Made::by(by, vec![single(&id, &status, MADE, Some(NEXT))]).read()
}

/// A chain of three, of which a list speaks of the middle: what is known of the leaf is for responses to say.
struct World {
    root: Authority,
    middle: Authority,
    leaf: Certificate,
    list: Crl,
}

impl World {
    fn new() -> World {
        let root = root("root");
        let middle = root.issue(issuing("middle"));
        let mut params = named("leaf");
        params.serial_number = Some(SerialNumber::from_slice(&[0x4d, 2]));
        let leaf = middle.leaf(params);
        let list = root.crl(&[], 2040);
        World { root, middle, leaf, list }
    }

    fn lists(&self) -> &[Crl] {
        std::slice::from_ref(&self.list)
    }

    fn id(&self) -> Vec<u8> {
        id(&self.leaf, &self.middle.certificate)
    }

    fn says(&self, status: &[u8]) -> Vec<u8> {
        single(&self.id(), status, MADE, Some(NEXT))
    }

    fn find(&self, responses: &[Response], crls: &[Crl], at_s: u64) -> Result<Path, Refusal> {
        let roots = [self.root.certificate.clone()];
        let chain = [self.middle.certificate.clone()];
        let anchors = Anchors { roots: &roots, others: &[], crls, responses, at_s };
        Path::find(&self.leaf, &chain, anchors, None)
    }

    /// Whether the leaf is known not to be revoked.
    fn is_known(&self, made: &Made<'_>) -> bool {
        self.is_known_at(made, AT_S)
    }

    fn is_known_at(&self, made: &Made<'_>, at_s: u64) -> bool {
        let path = self.find(&[made.read()], self.lists(), at_s).unwrap();
        assert!(path.unanswered.iter().all(|subject| subject == "CN=leaf"));
        path.is_revocation_known()
    }

    fn is_revoked_at(&self, made: &Made<'_>, at_s: u64) -> bool {
        let found = self.find(&[made.read()], self.lists(), at_s);
        match found {
            Ok(_) => false,
            Err(Refusal::Revoked { subject, serial }) => {
                assert_eq!((subject.as_str(), serial.as_str()), ("CN=leaf", "4D:02"));
                true
            }
            Err(other) => panic!("{other}"),
        }
    }

    /// Somebody who may answer for the middle.
    fn responder(&self, change: impl FnOnce(&mut CertificateParams)) -> Authority {
        let mut params = named("responder");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::OcspSigning];
        params.serial_number = Some(SerialNumber::from_slice(&[0x4e]));
        params.custom_extensions = vec![no_check()];
        change(&mut params);
        self.middle.issue(params)
    }
}

fn no_check() -> CustomExtension {
    CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 48, 1, 5], vec![5, 0])
}

/// Unix seconds of a day at midnight.
fn day(year: i32, month: u8, day: u8) -> u64 {
    date_time_ymd(year, month, day).unix_timestamp() as u64
}

#[test]
fn an_answer_of_each_issuer_is_as_good_as_its_list() {
    let world = World::new();
    let World { root, middle, leaf, list } = &world;
    let of_leaf = Made::by(middle, vec![world.says(GOOD)]).read();
    let of_middle = id(&middle.certificate, &root.certificate);
    let of_middle = Made::by(root, vec![single(&of_middle, GOOD, MADE, Some(NEXT))]).read();
    let all = [of_middle, of_leaf];
    let unanswered = |responses: &[Response], crls: &[Crl]| {
        world.find(responses, crls, AT_S).unwrap().unanswered
    };
    assert!(unanswered(&all, &[]).is_empty());
    assert!(unanswered(&all[1..], std::slice::from_ref(list)).is_empty());
    assert_eq!(unanswered(&all[1..], &[]), ["CN=middle"]);
    assert_eq!(unanswered(&all[..1], &[]), ["CN=leaf"]);
    assert_eq!(unanswered(&[], &[]), ["CN=leaf", "CN=middle"]);
    // Whoever reads the check learns of what nothing is known.
    let roots = [root.certificate.clone()];
    let mut findings = Findings::default();
    let chain = [leaf.clone(), middle.certificate.clone()];
    let anchors =
        Anchors { roots: &roots, others: &[], crls: &[], responses: &all[1..], at_s: AT_S };
    Path::note(&chain, anchors, None, &mut findings).unwrap();
    let check = findings.checks.iter().find(|check| check.name == REVOCATION).unwrap();
    assert_eq!(check.outcome, Outcome::NotChecked);
    assert!(check.detail.ends_with("'CN=middle'"), "{}", check.detail);
}

#[test]
fn a_certificate_is_named_by_its_issuers_hashes_and_its_number() {
    let world = World::new();
    let World { root, middle, leaf, .. } = &world;
    let own = &middle.certificate;
    let known = |id: &[u8], by_key: bool| {
        let mut made = Made::by(middle, vec![single(id, GOOD, MADE, Some(NEXT))]);
        made.by_key = by_key;
        world.is_known(&made)
    };
    for by_key in [false, true] {
        assert!(known(&id_by::<Sha1>(SHA1, leaf, own), by_key));
        assert!(known(&id_by::<Sha256>(SHA256, leaf, own), by_key));
        assert!(known(&id_by::<Sha384>(SHA384, leaf, own), by_key));
    }
    let sha512 = ObjectIdentifier::new("2.16.840.1.101.3.4.2.3").unwrap();
    assert!(!known(&id_by::<Sha512>(sha512, leaf, own), false), "an unknown hash");
    assert!(!known(&id_by::<Sha1>(SHA256, leaf, own), false), "another hash than it says");
    let mut params = named("leaf");
    params.serial_number = Some(SerialNumber::from_slice(&[0x4d, 3]));
    let other = middle.leaf(params);
    assert!(!known(&id(&other, own), false), "another number");
    // Of the same name with another key, and the other way round.
    let namesake = root.issue(issuing("middle")).certificate;
    assert!(!known(&id(leaf, &namesake), false), "another key");
    let renamed = issuing("other").signed_by(middle.issuer.key(), &root.issuer).unwrap();
    let renamed = Certificate::from_der(renamed.der()).unwrap();
    assert_eq!(renamed.key(), own.key());
    assert!(!known(&id(leaf, &renamed), false), "another name");
    // One answer among others.
    let singles = vec![single(&id(&other, own), &revoked(), MADE, Some(NEXT)), world.says(GOOD)];
    assert!(world.is_known(&Made::by(middle, singles)));
}

#[test]
fn what_was_revoked_is_refused_also_when_the_answer_has_run_out() {
    let world = World::new();
    let middle = &world.middle;
    let revoked = revoked();
    let made = Made::by(middle, vec![world.says(&revoked)]);
    assert!(world.is_revoked_at(&made, AT_S));
    assert!(world.is_revoked_at(&made, day(2031, 1, 1)));
    // Before it was said nothing is known.
    assert!(!world.is_revoked_at(&made, day(2026, 4, 30)));
    assert!(!world.is_known_at(&made, day(2026, 4, 30)));
    // Somebody has said that it is good, and so does the issuer's list.
    let both = [made.read(), Made::by(middle, vec![world.says(GOOD)]).read()];
    let lists = [world.list.clone(), middle.crl(&[], 2040)];
    let found = world.find(&both, &lists, AT_S);
    assert!(matches!(found, Err(Refusal::Revoked { .. })));
    let made = Made::by(middle, vec![world.says(GOOD), world.says(&revoked)]);
    assert!(world.is_revoked_at(&made, AT_S), "both in one");
    // A list, and an answer that says that it is good.
    let lists = [world.list.clone(), middle.crl(&[&[0x4d, 2]], 2021)];
    let found = world.find(&both[1..], &lists, AT_S);
    assert!(matches!(found, Err(Refusal::Revoked { .. })));
}

#[test]
fn an_answer_counts_in_its_time() {
    let world = World::new();
    let good = |from: &str, until: Option<&str>| single(&world.id(), GOOD, from, until);
    let at = |single: Vec<u8>, at_s: u64| {
        world.is_known_at(&Made::by(&world.middle, vec![single]), at_s)
    };
    let (from_s, until_s) = (day(2026, 5, 1), day(2026, 6, 1));
    for (at_s, counts) in
        [(from_s - 1, false), (from_s, true), (until_s, true), (until_s + 1, false)]
    {
        assert_eq!(at(good(MADE, Some(NEXT)), at_s), counts, "{at_s}");
    }
    // One that names no end holds for a day.
    for (at_s, counts) in [(from_s + 86_400, true), (from_s + 86_401, false)] {
        assert_eq!(at(good(MADE, None), at_s), counts, "{at_s}");
    }
    assert!(!at(good("20260529000000Z", Some(NEXT)), AT_S), "of tomorrow");
    assert!(!at(good(NEXT, Some(MADE)), AT_S), "ends before it begins");
    let mut made = Made::by(&world.middle, vec![good(MADE, Some(NEXT))]);
    made.made = "20260529000000Z";
    assert!(!world.is_known(&made), "signed tomorrow");
}

#[test]
fn whoever_does_not_know_a_certificate_has_said_nothing() {
    let world = World::new();
    let made = Made::by(&world.middle, vec![world.says(UNKNOWN)]);
    assert!(!world.is_known(&made));
    assert!(!world.is_revoked_at(&made, AT_S));
    // Somebody else does.
    let lists = [world.list.clone(), world.middle.crl(&[], 2040)];
    assert!(world.find(&[made.read()], &lists, AT_S).unwrap().is_revocation_known());
}

#[test]
fn nobody_answers_but_the_issuer_and_those_whom_it_has_certified_for_that() {
    let world = World::new();
    let World { root: ours, middle, .. } = &world;
    let answers = |by: &Authority| {
        let (good, revoked) = (vec![world.says(GOOD)], vec![world.says(&revoked())]);
        let made = |singles, by_key| Made { by_key, ..Made::by(by, singles) }.with(&by.certificate);
        let known = [false, true].map(|by_key| world.is_known(&made(good.clone(), by_key)));
        let revoked =
            [false, true].map(|by_key| world.is_revoked_at(&made(revoked.clone(), by_key), AT_S));
        assert_eq!((known[0], revoked[0]), (known[1], revoked[1]));
        (known[0], revoked[0])
    };
    const BELIEVED: (bool, bool) = (true, true);
    const NOT: (bool, bool) = (false, false);
    assert_eq!(answers(middle), BELIEVED);
    assert_eq!(answers(&world.responder(|_| {})), BELIEVED);
    assert_eq!(answers(&world.responder(|params| params.key_usages.clear())), BELIEVED);
    // A stranger of the same name; the issuer's issuer, and whom that one has certified.
    assert_eq!(answers(&root("middle")), NOT);
    assert_eq!(answers(ours), NOT);
    let mut params = named("responder");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::OcspSigning];
    params.custom_extensions = vec![no_check()];
    assert_eq!(answers(&ours.issue(params.clone())), NOT);
    assert_eq!(answers(&root("middle").issue(params.clone())), NOT, "certified by a namesake");
    // By whom the issuer has certified: a path is not enough.
    assert_eq!(answers(&middle.issue(issuing("below")).issue(params)), NOT);
    type Change = fn(&mut CertificateParams);
    let changes: [(&str, Change); 4] = [
        ("for nothing named", |params| params.extended_key_usages.clear()),
        ("for something else", |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        }),
        ("for everything", |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
        }),
        ("its key signs no data", |params| {
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        }),
    ];
    for (what, change) in changes {
        assert_eq!(answers(&world.responder(change)), NOT, "{what}");
    }
    let strange = world.responder(|params| {
        let mut one = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
        one.set_criticality(true);
        params.custom_extensions.push(one);
    });
    assert_eq!(answers(&strange), NOT, "with an extension that must be understood");
    // Its certificate is not there, or another's is, or it names another as the one who has signed.
    let (responder, other) = (world.responder(|_| {}), world.responder(|_| {}));
    let made = |by| Made::by(by, vec![world.says(GOOD)]);
    assert!(!world.is_known(&made(&responder)));
    assert!(!world.is_known(&made(&responder).with(&other.certificate)));
    assert!(
        world.is_known(&made(&responder).with(&other.certificate).with(&responder.certificate))
    );
    let mut by_key = made(&responder).with(&other.certificate);
    by_key.by_key = true;
    assert!(!world.is_known(&by_key));
}

#[test]
fn a_responder_holds_in_its_time() {
    let world = World::new();
    let lasting = |from: (i32, u8, u8), until: (i32, u8, u8)| {
        world.responder(|params| {
            params.not_before = date_time_ymd(from.0, from.1, from.2);
            params.not_after = date_time_ymd(until.0, until.1, until.2);
        })
    };
    let says = |by: &Authority, status: &[u8], at_s: u64| {
        let made = Made::by(by, vec![world.says(status)]).with(&by.certificate);
        world.find(&[made.read()], world.lists(), at_s)
    };
    let is_known = |by: &Authority, at_s| says(by, GOOD, at_s).unwrap().is_revocation_known();
    let is_revoked = |by: &Authority, at_s| says(by, &revoked(), at_s).is_err();
    // It ran out before it is read. What it has revoked in its time stays revoked.
    let before = lasting((2026, 4, 1), (2026, 5, 20));
    assert!(is_known(&before, day(2026, 5, 20)));
    assert!(!is_known(&before, AT_S));
    assert!(is_revoked(&before, AT_S) && is_revoked(&before, day(2031, 1, 1)));
    // It had run out when it signed, or did not hold yet.
    for never in [lasting((2026, 3, 1), (2026, 4, 20)), lasting((2026, 5, 29), (2040, 1, 1))] {
        assert!(!is_known(&never, AT_S) && !is_revoked(&never, AT_S));
    }
}

#[test]
fn a_responder_says_nothing_good_until_it_is_known_not_to_be_revoked_itself() {
    let world = World::new();
    let unchecked = world.responder(|params| params.custom_extensions.clear());
    // Such a list would do for the leaf as well: the response is asked by itself.
    let says = |by: &Authority, status: &[u8], lists: &[Crl]| {
        let made = Made::by(by, vec![world.says(status)]).with(&by.certificate);
        let lists: Vec<&Crl> = lists.iter().collect();
        made.read().says(&world.leaf, &world.middle.certificate, &lists, AT_S)
    };
    let (current, old) = (world.middle.crl(&[], 2040), world.middle.crl(&[], 2021));
    assert_eq!(says(&unchecked, GOOD, &[]), None);
    assert_eq!(says(&unchecked, GOOD, std::slice::from_ref(&old)), None);
    assert_eq!(says(&unchecked, GOOD, std::slice::from_ref(&current)), Some(Word::Good));
    assert_eq!(says(&unchecked, &revoked(), &[]), Some(Word::Revoked));
    // On its issuer's list, however old, it is believed in nothing; nor if it says that nobody need ask.
    let on_list = world.middle.crl(&[&[0x4e]], 2021);
    for by in [&unchecked, &world.responder(|_| {})] {
        for status in [GOOD, &revoked()] {
            let lists = [on_list.clone(), current.clone()];
            assert_eq!(says(by, status, &lists), None);
        }
    }
}

#[test]
fn what_must_be_understood_and_is_not_is_refused() {
    let world = World::new();
    let strange = ObjectIdentifier::new("1.2.3.4").unwrap();
    let with = |of, is_critical| {
        let mut made = Made::by(&world.middle, vec![world.says(GOOD)]);
        made.extensions = extension(of, is_critical);
        made.der()
    };
    for (of, is_critical) in [(strange, false), (NONCE, false), (NONCE, true)] {
        assert!(Response::from_der(&with(of, is_critical)).is_ok());
    }
    let refused = Response::from_der(&with(strange, true)).unwrap_err().to_string();
    assert!(refused.contains("1.2.3.4"), "{refused}");
    // In what is said of one certificate.
    let of_one = |is_critical| {
        let extensions = tlv(0xa1, &[&tlv(0x30, &[&extension(strange, is_critical)])]);
        let until = tlv(0xa0, &[&time(NEXT)]);
        let single = tlv(0x30, &[&world.id(), GOOD, &time(MADE), &until, &extensions]);
        Made::by(&world.middle, vec![single]).der()
    };
    assert!(Response::from_der(&of_one(false)).is_ok());
    assert!(Response::from_der(&of_one(true)).is_err());
}

#[test]
fn no_changed_byte_of_a_response_is_believed() {
    let world = World::new();
    let responder = world.responder(|_| {});
    let all = [
        Made::by(&world.middle, vec![world.says(GOOD)]).der(),
        Made::by(&responder, vec![world.says(GOOD)]).with(&responder.certificate).der(),
    ];
    for der in all {
        let is_known = |der: &[u8]| {
            let Ok(response) = Response::from_der(der) else { return false };
            let lists = world.lists();
            world.find(&[response], lists, AT_S).unwrap().is_revocation_known()
        };
        assert!(is_known(&der));
        for at in 0..der.len() {
            let mut changed = der.clone();
            changed[at] ^= 1;
            assert!(!is_known(&changed), "{at} of {}", der.len());
        }
    }
}

#[test]
fn a_response_is_read_whole_or_not_at_all() {
    let world = World::new();
    let made = Made::by(&world.middle, vec![world.says(GOOD)]).with(&world.middle.certificate);
    let der = made.der();
    assert_eq!(Response::from_der(&der).unwrap().der(), der);
    assert!(Response::is_one(&der));
    assert!(!Response::is_one(world.leaf.der()) && !Response::is_one(world.list.der()));
    for short in 0..der.len() {
        assert!(Response::from_der(&der[..short]).is_err(), "{short}");
    }
    assert!(Response::from_der(&[&der[..], &[0]].concat()).is_err(), "something behind it");
    let basic = |behind: &[u8]| {
        let bytes = OcspResponse::from_der(&der).unwrap().response_bytes.unwrap();
        wrapped(&[10, 1, 0], BASIC, &[bytes.response.as_bytes(), behind].concat())
    };
    assert!(Response::from_der(&basic(&[])).is_ok());
    assert!(Response::from_der(&basic(&[5, 0])).is_err(), "something behind what is signed");
    // A responder that has not answered: alone, and beside something that looks like an answer.
    for status in [1, 2, 3, 5, 6] {
        let alone = Response::from_der(&[0x30, 3, 10, 1, status]);
        let why = alone.unwrap_err().to_string();
        assert!(why.contains("says nothing"), "{why}");
        let bytes = OcspResponse::from_der(&der).unwrap().response_bytes.unwrap();
        let beside = wrapped(&[10, 1, status], BASIC, bytes.response.as_bytes());
        assert!(Response::from_der(&beside).is_err());
    }
    assert!(Response::from_der(&[0x30, 3, 10, 1, 0]).is_err(), "successful, and empty");
    let other = wrapped(&[10, 1, 0], NONCE, b"");
    assert!(Response::from_der(&other).is_err(), "of another type");
}

#[test]
fn a_response_is_no_larger_than_it_may_be() {
    let world = World::new();
    let of = |count: usize| Made::by(&world.middle, vec![world.says(GOOD); count]).der();
    assert!(Response::from_der(&of(MAX_SINGLE_RESPONSES)).is_ok());
    assert!(Response::from_der(&of(MAX_SINGLE_RESPONSES + 1)).is_err());
    let with = |count: usize| {
        let made = Made::by(&world.middle, vec![world.says(GOOD)]);
        Made { certificates: vec![&world.leaf; count], ..made }.der()
    };
    assert!(Response::from_der(&with(MAX_RESPONDERS)).is_ok());
    assert!(Response::from_der(&with(MAX_RESPONDERS + 1)).is_err());
    let long = [&of(1)[..], &vec![0; MAX_RESPONSE_BYTES]].concat();
    let why = Response::from_der(&long).unwrap_err().to_string();
    assert!(why.contains("more than 65536 bytes"), "{why}");
}

/// Or whatever a device's firmware was certified by would be asked for something that it cannot say; and whoever names a
/// responder would pass without one.
#[test]
fn whoever_may_sign_no_lists_takes_back_only_by_a_responder_that_certificates_name() {
    let ours = root("root");
    let mut params = issuing("device");
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let device = ours.issue(params);
    let known = |leaf: &Certificate, responses: &[Response]| {
        let roots = [ours.certificate.clone()];
        let list = [ours.crl(&[], 2040)];
        let anchors = Anchors { roots: &roots, others: &[], crls: &list, responses, at_s: AT_S };
        let chain = std::slice::from_ref(&device.certificate);
        Path::find(leaf, chain, anchors, None).map(|path| path.is_revocation_known())
    };
    assert_eq!(known(&device.leaf(named("leaf")), &[]), Ok(true));
    let url = tlv(0x86, &[b"http://ocsp.example"]);
    let responder = ObjectIdentifier::new("1.3.6.1.5.5.7.48.1").unwrap();
    let access = tlv(0x30, &[&tlv(0x30, &[&oid(responder), &url])]);
    for (access, what) in [(access, "a responder"), (vec![5, 0], "what cannot be read")] {
        let mut params = named("leaf");
        let one = CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 1], access);
        params.custom_extensions.push(one);
        let leaf = device.leaf(params);
        assert_eq!(known(&leaf, &[]), Ok(false), "{what}");
        let says = |status: &[u8]| {
            let id = id(&leaf, &device.certificate);
            Made::by(&device, vec![single(&id, status, MADE, Some(NEXT))]).read()
        };
        assert_eq!(known(&leaf, &[says(GOOD)]), Ok(true), "{what}");
        assert!(known(&leaf, &[says(&revoked())]).is_err());
    }
}

/// Files for OpenSSL: the world's certificates, and whatever else is written there.
struct Folder(tempfile::TempDir);

impl Folder {
    fn of(world: &World) -> Folder {
        let folder = Folder(tempfile::tempdir().unwrap());
        folder.certificate("root.pem", &world.root.certificate);
        folder.certificate("middle.pem", &world.middle.certificate);
        folder.certificate("leaf.pem", &world.leaf);
        folder
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.0.path().join(name), bytes).unwrap();
    }

    fn certificate(&self, name: &str, one: &Certificate) {
        self.pem(name, "CERTIFICATE", one.der());
    }

    fn pem(&self, name: &str, label: &str, der: &[u8]) {
        let text = STANDARD.encode(der);
        let lines: Vec<&str> =
            text.as_bytes().chunks(64).map(|line| str::from_utf8(line).unwrap()).collect();
        let lines = lines.join("\n");
        let pem = format!("-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n");
        self.write(name, pem.as_bytes());
    }

    /// What `openssl ocsp` says, and whether it has succeeded.
    fn ocsp(&self, args: &[&str]) -> (bool, String) {
        let output =
            Command::new("openssl").arg("ocsp").args(args).current_dir(self.path()).output();
        let output = output.unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    fn path(&self) -> &File {
        self.0.path()
    }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

/// Unix seconds as a response writes them.
fn written(at_s: u64) -> String {
    let time = GeneralizedTime::from_unix_duration(Duration::from_secs(at_s)).unwrap();
    String::from_utf8(time.to_der().unwrap().split_off(2)).unwrap()
}

#[test]
fn what_openssl_answers_is_read_as_it_was_meant() {
    let world = World::new();
    let folder = Folder::of(&world);
    let delegated = world.responder(|_| {});
    for (name, by) in [("middle", &world.middle), ("responder", &delegated)] {
        folder.certificate(&format!("{name}.pem"), &by.certificate);
        folder.pem(&format!("{name}.key"), "PRIVATE KEY", by.issuer.key().serialized_der());
    }
    let entries = [
        ("good", "V\t400101000000Z\t\t4D02\tunknown\t/CN=leaf\n"),
        ("revoked", "R\t400101000000Z\t210101000000Z\t4D02\tunknown\t/CN=leaf\n"),
        ("unknown", "V\t400101000000Z\t\t4D03\tunknown\t/CN=other\n"),
    ];
    for (status, index) in entries {
        folder.write("index.txt", index.as_bytes());
        folder.write("index.txt.attr", b"unique_subject = no\n");
        for (hash, by, id) in [
            ("-sha1", "middle", &[][..]),
            ("-sha256", "responder", &["-resp_key_id"][..]),
            ("-sha384", "responder", &[][..]),
        ] {
            let asked =
                [hash, "-issuer", "middle.pem", "-cert", "leaf.pem", "-reqout", "asked.der"];
            let (is_made, text) = folder.ocsp(&asked);
            assert!(is_made, "{text}");
            let (signer, key) = (format!("{by}.pem"), format!("{by}.key"));
            let answer = ["-index", "index.txt", "-CA", "middle.pem", "-rsigner", &signer];
            let answer = [&answer[..], &["-rkey", &key, "-reqin", "asked.der"], id].concat();
            let (is_made, text) =
                folder.ocsp(&[&answer[..], &["-ndays", "7", "-respout", "answer.der"]].concat());
            assert!(is_made, "{text}");
            let response = std::fs::read(folder.path().join("answer.der")).unwrap();
            let response = Response::from_der(&response).unwrap();
            let at = |at_s| world.find(std::slice::from_ref(&response), world.lists(), at_s);
            let now_s = now_s();
            // It was made by the machine's clock, which goes on.
            let found = at(now_s + 5);
            match status {
                "good" => {
                    assert!(found.unwrap().is_revocation_known(), "{hash} {by}");
                    assert!(!at(now_s + 8 * 86_400).unwrap().is_revocation_known());
                    assert!(!at(now_s - 3600).unwrap().is_revocation_known());
                }
                "revoked" => assert!(matches!(found, Err(Refusal::Revoked { .. })), "{hash} {by}"),
                _ => assert!(!found.unwrap().is_revocation_known(), "{hash} {by}"),
            }
        }
    }
}

/// Where both look at the same: OpenSSL does not ask whether a responder is revoked.
#[test]
fn openssl_believes_the_same_answers_as_we_do() {
    let world = World::new();
    let folder = Folder::of(&world);
    let now_s = now_s();
    let (made, next, over) = (written(now_s - 3600), written(now_s + 3600), written(now_s - 1800));
    let says = |status: &[u8], from, until| single(&world.id(), status, from, Some(until));
    let good = says(GOOD, &made, &next);
    let nobody = world.responder(|params| params.extended_key_usages.clear());
    let late = world.responder(|params| params.not_after = date_time_ymd(2021, 1, 1));
    let (responder, stranger) = (world.responder(|_| {}), root("middle"));
    let mut other = named("leaf");
    other.serial_number = Some(SerialNumber::from_slice(&[0x4d, 3]));
    let other = id(&world.middle.leaf(other), &world.middle.certificate);
    let cases: [(&str, bool, &Authority, Vec<u8>); 9] = [
        ("the issuer", true, &world.middle, good.clone()),
        ("a responder", true, &responder, good.clone()),
        ("a responder for nothing", false, &nobody, good.clone()),
        ("a responder that ran out", false, &late, good.clone()),
        ("a namesake", false, &stranger, good),
        ("revoked", false, &world.middle, says(&revoked(), &made, &next)),
        ("unknown", false, &world.middle, says(UNKNOWN, &made, &next)),
        ("it ran out", false, &world.middle, says(GOOD, &made, &over)),
        ("another number", false, &world.middle, single(&other, GOOD, &made, Some(&next))),
    ];
    for (what, is_good, by, single) in cases {
        let made = Made { made: &made, ..Made::by(by, vec![single]) }.with(&by.certificate);
        folder.write("answer.der", &made.der());
        let (_, text) = folder.ocsp(&[
            "-respin",
            "answer.der",
            "-issuer",
            "middle.pem",
            "-cert",
            "leaf.pem",
            "-CAfile",
            "root.pem",
            "-verify_other",
            "middle.pem",
            "-no_nonce",
        ]);
        let theirs = text.contains("Response verify OK")
            && text.contains("leaf.pem: good")
            && !text.contains("Status times invalid");
        assert_eq!(theirs, is_good, "{what}: {text}");
        let found = world.find(&[made.read()], world.lists(), now_s);
        let ours = found.is_ok_and(|path| path.is_revocation_known());
        assert_eq!(ours, is_good, "{what}");
    }
}
