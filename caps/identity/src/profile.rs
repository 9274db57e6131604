//! What certificates of a cluster look like, and nothing else is one: the X.509-SVID standard's
//! sections 2 to 5, and what DistOS adds to it. Signatures and times are not checked here.

use std::fmt;
use std::str::FromStr;

use distos_abi::{Fault, HolderKey, NodeId};
use rustls_pki_types::alg_id;
use x509_cert::Certificate;
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::der::asn1::{PrintableStringRef, Utf8StringRef};
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{
    BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages, SubjectAltName,
};
use x509_cert::name::Name;

use crate::id::{ClusterName, SpiffeId, Subject};

/// The longest certificate that is looked at, in bytes. A cluster's longest has some 1,100.
pub(crate) const MAX_CERTIFICATE_BYTES: usize = 2048;

const ORGANIZATION: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.10");
const UNIT: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.11");
/// What an issuer's unit says if it runs on no node of the cluster.
const OFFLINE: &str = "offline";

/// Where an issuer runs. It signs nothing for that node: whoever took a node over could else go on
/// vouching for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// On no node: the operator's own machine.
    Offline,
    /// On this node.
    Node(NodeId),
}

impl Home {
    /// Whether this issuer may sign for `subject`.
    pub fn may_vouch_for(self, subject: &Subject) -> bool {
        match self {
            Home::Offline => true,
            Home::Node(home) => subject.node() != Some(home),
        }
    }
}

impl fmt::Display for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Home::Offline => f.write_str(OFFLINE),
            Home::Node(node) => Subject::Node(*node).fmt(f),
        }
    }
}

impl FromStr for Home {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Home, Fault> {
        if text == OFFLINE {
            return Ok(Home::Offline);
        }
        match text.parse()? {
            Subject::Node(node) => Ok(Home::Node(node)),
            _ => Err(Fault::malformed(format!("an issuer's home is '{OFFLINE}' or node/N"))),
        }
    }
}

/// What every certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) key: HolderKey,
    pub(crate) from_s: u64,
    pub(crate) until_s: u64,
}

/// A certificate of whoever uses it.
#[derive(Debug)]
pub(crate) struct Leaf {
    pub(crate) id: SpiffeId,
    pub(crate) facts: Facts,
}

/// A certificate of an issuer.
#[derive(Clone, Debug)]
pub(crate) struct IssuerFacts {
    pub(crate) cluster: ClusterName,
    pub(crate) home: Home,
    pub(crate) facts: Facts,
}

/// A cluster's own certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RootFacts {
    pub(crate) cluster: ClusterName,
    pub(crate) facts: Facts,
}

/// Reads an end's certificate. The text says what is not as it has to be.
pub(crate) fn leaf(der: &[u8]) -> Result<Leaf, &'static str> {
    let (cert, facts) = read(der)?;
    if basic(&cert)?.is_some_and(|basic| basic.ca) {
        return Err("it is an issuer's");
    }
    let (critical, usage) = usage(&cert)?;
    if !critical || usage.0 != KeyUsages::DigitalSignature {
        return Err("its key is for other things than proving who somebody is");
    }
    let sides = cert.tbs_certificate.get::<ExtendedKeyUsage>();
    if sides.map_err(|_| "its extended key usage is broken")?.is_none() {
        return Err("it does not say for which side of a connection it is");
    }
    let id = uri(&cert)?.parse().map_err(|_| "its name is no id of a cluster's")?;
    Ok(Leaf { id, facts })
}

/// The key of a certificate of a cluster's, whatever else it says.
pub fn key_of(der: &[u8]) -> Option<HolderKey> {
    read(der).ok().map(|(_, facts)| facts.key)
}

/// Since when a certificate of a cluster's holds, in seconds since the Unix epoch, whatever else it says.
pub fn since(der: &[u8]) -> Option<u64> {
    read(der).ok().map(|(_, facts)| facts.from_s)
}

/// Reads an issuer's certificate.
pub(crate) fn issuer(der: &[u8]) -> Result<IssuerFacts, &'static str> {
    let (cert, facts) = read(der)?;
    let cluster = signer(&cert, Some(0))?;
    let home = attribute(&cert.tbs_certificate.subject, UNIT)?;
    let home = home.parse().map_err(|_| "it does not say where its issuer runs")?;
    if attribute(&cert.tbs_certificate.subject, ORGANIZATION)? != cluster.as_str() {
        return Err("its issuer's name is not its cluster's");
    }
    Ok(IssuerFacts { cluster, home, facts })
}

/// Reads a root's certificate.
pub(crate) fn root(der: &[u8]) -> Result<RootFacts, &'static str> {
    let (cert, facts) = read(der)?;
    let cluster = signer(&cert, Some(1))?;
    if cert.tbs_certificate.subject != cert.tbs_certificate.issuer {
        return Err("it is no root's: somebody else issued it");
    }
    Ok(RootFacts { cluster, facts })
}

/// The cluster for which a certificate's owner signs others.
fn signer(cert: &Certificate, depth: Option<u8>) -> Result<ClusterName, &'static str> {
    let fits = |basic: &BasicConstraints| basic.ca && basic.path_len_constraint == depth;
    if !basic(cert)?.is_some_and(|basic| fits(&basic)) {
        return Err("it may not sign others, or too deep a chain of them");
    }
    let (critical, usage) = usage(cert)?;
    if !critical || usage.0 != KeyUsages::KeyCertSign {
        return Err("its key is for other things than signing certificates");
    }
    let uri = uri(cert)?;
    let cluster = uri.strip_prefix("spiffe://").and_then(|name| ClusterName::new(name).ok());
    cluster.ok_or("its name is no cluster's")
}

fn read(der: &[u8]) -> Result<(Certificate, Facts), &'static str> {
    if der.len() > MAX_CERTIFICATE_BYTES {
        return Err("it is too long");
    }
    let cert = Certificate::from_der(der).map_err(|_| "it is no X.509 certificate")?;
    let tbs = &cert.tbs_certificate;
    let spki = &tbs.subject_public_key_info;
    let algorithm = spki.algorithm.to_der().map_err(|_| "it is no X.509 certificate")?;
    // The outer SEQUENCE is not part of what rustls calls an algorithm.
    let ed25519 = algorithm.get(2..) == Some(alg_id::ED25519.as_ref());
    let key = spki.subject_public_key.as_bytes().and_then(|key| key.try_into().ok());
    let key = key.map(HolderKey).filter(|key| ed25519 && distos_types::is_usable(*key));
    let key = key.ok_or("its key is no Ed25519 key")?;
    let from_s = tbs.validity.not_before.to_unix_duration().as_secs();
    let until_s = tbs.validity.not_after.to_unix_duration().as_secs();
    if until_s <= from_s {
        return Err("it ends before it begins");
    }
    Ok((cert, Facts { key, from_s, until_s }))
}

fn basic(cert: &Certificate) -> Result<Option<BasicConstraints>, &'static str> {
    let found = cert.tbs_certificate.get::<BasicConstraints>();
    Ok(found.map_err(|_| "its basic constraints are broken")?.map(|(_, basic)| basic))
}

fn usage(cert: &Certificate) -> Result<(bool, KeyUsage), &'static str> {
    let found = cert.tbs_certificate.get::<KeyUsage>();
    found.map_err(|_| "its key usage is broken")?.ok_or("it does not say what its key is for")
}

/// The one name that it has.
fn uri(cert: &Certificate) -> Result<String, &'static str> {
    let found = cert.tbs_certificate.get::<SubjectAltName>();
    let (_, names) = found.map_err(|_| "its names are broken")?.ok_or("it names nobody")?;
    match names.0.as_slice() {
        [GeneralName::UniformResourceIdentifier(uri)] => Ok(uri.as_str().to_owned()),
        _ => Err("it has other names than one URI"),
    }
}

fn attribute(name: &Name, kind: ObjectIdentifier) -> Result<String, &'static str> {
    let mut found = name.0.iter().flat_map(|part| part.0.iter()).filter(|part| part.oid == kind);
    match (found.next(), found.next()) {
        (Some(part), None) => text(part).ok_or("its subject is broken"),
        _ => Err("its subject is not an issuer's"),
    }
}

fn text(part: &AttributeTypeAndValue) -> Option<String> {
    let utf8 = part.value.decode_as::<Utf8StringRef<'_>>().map(|text| text.as_str().to_owned());
    let text = utf8.or_else(|_| {
        part.value.decode_as::<PrintableStringRef<'_>>().map(|text| text.as_str().to_owned())
    });
    text.ok()
}
