//! Who may say who somebody is: a cluster's root, and the issuers that it certifies.

use distos_abi::{Fault, HolderKey};
use distos_types::HolderSecret;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyIdMethod, KeyUsagePurpose, PKCS_ED25519, PublicKeyData, SanType, SerialNumber,
    SignatureAlgorithm, SigningKey,
};
use time::OffsetDateTime;

use crate::id::{ClusterName, SpiffeId};
use crate::profile::{self, Home, IssuerFacts};
use crate::svid::MAX_SVID_LIFETIME_S;

/// When a certificate holds, in seconds since the Unix epoch, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// From when.
    pub from_s: u64,
    /// Until when.
    pub until_s: u64,
}

/// A certificate's serial number: 16 random bytes.
#[derive(Clone, Copy, Debug)]
pub struct Serial(pub [u8; 16]);

/// A cluster's root. Its key belongs on a machine that is not on a network.
pub struct Root<'a> {
    cluster: ClusterName,
    secret: &'a HolderSecret,
}

impl Root<'_> {
    /// The root of `cluster` with this key.
    pub fn new(cluster: ClusterName, secret: &HolderSecret) -> Root<'_> {
        Root { cluster, secret }
    }

    /// The root's own certificate, DER, for the cluster's bundle.
    pub fn certificate(&self, validity: Validity, serial: Serial) -> Result<Vec<u8>, Fault> {
        let params = self.params(validity, serial)?;
        let made = params.self_signed(&Signing::of(self.secret)).map_err(Fault::internal)?;
        Ok(made.der().to_vec())
    }

    /// Lets whoever has `key` issue SVIDs, for everybody but its home. DER.
    pub fn certify(
        &self,
        key: HolderKey,
        home: Home,
        validity: Validity,
        serial: Serial,
    ) -> Result<Vec<u8>, Fault> {
        let mut params = issuer_params(&self.cluster, key, home)?;
        valid(&mut params, validity, serial)?;
        let root = self.params(validity, serial)?;
        let root = rcgen::Issuer::from_params(&root, Signing::of(self.secret));
        let made = params.signed_by(&public(key)?, &root).map_err(Fault::internal)?;
        Ok(made.der().to_vec())
    }

    fn params(&self, validity: Validity, serial: Serial) -> Result<CertificateParams, Fault> {
        let mut params = signer_params(&self.cluster, self.secret.key(), 1)?;
        params.distinguished_name.push(DnType::CommonName, named("root", self.secret.key()));
        valid(&mut params, validity, serial)?;
        Ok(params)
    }
}

/// An issuer of a cluster.
pub struct Issuer<'a> {
    certificate: Vec<u8>,
    facts: IssuerFacts,
    secret: &'a HolderSecret,
}

impl Issuer<'_> {
    /// The issuer with this certificate, DER, and key. [`Fault::Malformed`] if the certificate is no
    /// issuer's or of another key; who signed it is not asked, as whoever uses its SVIDs will.
    pub fn new(certificate: Vec<u8>, secret: &HolderSecret) -> Result<Issuer<'_>, Fault> {
        let facts = profile::issuer(&certificate).map_err(|why| {
            Fault::malformed(format!("this is no certificate of an issuer: {why}"))
        })?;
        if facts.facts.key != secret.key() {
            return Err(Fault::malformed("this issuer's certificate is of another key"));
        }
        Ok(Issuer { certificate, facts, secret })
    }

    /// Its cluster.
    pub fn cluster(&self) -> &ClusterName {
        &self.facts.cluster
    }

    /// Where it runs.
    pub fn home(&self) -> Home {
        self.facts.home
    }

    /// Until when its own certificate holds, in seconds since the Unix epoch.
    pub fn until_s(&self) -> u64 {
        self.facts.facts.until_s
    }

    /// An SVID: the certificate of `id` with `key`, and this issuer's own, both DER. Whether `key`
    /// is that of whom `id` names is for the caller to know.
    ///
    /// [`Fault::Unauthenticated`] if it is not up to this issuer to sign that: for another cluster,
    /// or for the node it runs on. [`Fault::Malformed`] if it would hold longer than an SVID may, or
    /// than this issuer's own certificate.
    pub fn issue(
        &self,
        id: &SpiffeId,
        key: HolderKey,
        validity: Validity,
        serial: Serial,
    ) -> Result<Vec<Vec<u8>>, Fault> {
        if id.cluster != self.facts.cluster {
            let own = &self.facts.cluster;
            return Err(Fault::Unauthenticated(format!("this issuer is of {own}, and not {id}'s")));
        }
        if !self.facts.home.may_vouch_for(&id.subject) {
            let why = format!("an issuer never signs for its own node, and {id} is of it");
            return Err(Fault::Unauthenticated(why));
        }
        if validity.until_s.saturating_sub(validity.from_s) > MAX_SVID_LIFETIME_S {
            let most = MAX_SVID_LIFETIME_S / 3600;
            return Err(Fault::malformed(format!("an SVID holds for {most} hours at most")));
        }
        let own = &self.facts.facts;
        if validity.from_s < own.from_s || validity.until_s > own.until_s {
            let why = "the SVID would hold longer than its issuer's certificate: \
                       have the root certify the issuer again";
            return Err(Fault::malformed(why));
        }
        let mut params = params(&self.facts.cluster, key, &id.to_string())?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // Everybody is a client to some and a server to others.
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        valid(&mut params, validity, serial)?;
        let issuer = issuer_params(&self.facts.cluster, self.secret.key(), self.facts.home)?;
        let issuer = rcgen::Issuer::from_params(&issuer, Signing::of(self.secret));
        let made = params.signed_by(&public(key)?, &issuer).map_err(Fault::internal)?;
        Ok(vec![made.der().to_vec(), self.certificate.clone()])
    }
}

fn params(cluster: &ClusterName, key: HolderKey, uri: &str) -> Result<CertificateParams, Fault> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, cluster.as_str());
    let uri = Ia5String::try_from(uri).map_err(Fault::internal)?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    params.use_authority_key_identifier_extension = true;
    let hash = blake3::hash(&key.0);
    params.key_identifier_method = KeyIdMethod::PreSpecified(hash.as_bytes()[..20].to_vec());
    Ok(params)
}

fn signer_params(
    cluster: &ClusterName,
    key: HolderKey,
    depth: u8,
) -> Result<CertificateParams, Fault> {
    let mut params = params(cluster, key, &cluster.authority())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(depth));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok(params)
}

/// An issuer's name follows from what it is, so that its certificate and those it signs agree.
fn issuer_params(
    cluster: &ClusterName,
    key: HolderKey,
    home: Home,
) -> Result<CertificateParams, Fault> {
    let mut params = signer_params(cluster, key, 0)?;
    let name = &mut params.distinguished_name;
    name.push(DnType::OrganizationalUnitName, home.to_string());
    name.push(DnType::CommonName, named("issuer", key));
    Ok(params)
}

/// A name that nobody else has: paths of certificates are found by them.
fn named(what: &str, key: HolderKey) -> String {
    format!("{what} {}", &key.to_string()[..16])
}

fn valid(params: &mut CertificateParams, validity: Validity, serial: Serial) -> Result<(), Fault> {
    let date = |s: u64| {
        let date = i64::try_from(s).ok().and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok());
        date.ok_or_else(|| Fault::malformed("a certificate cannot hold for so long"))
    };
    if validity.until_s <= validity.from_s {
        return Err(Fault::malformed("a certificate ends after it begins"));
    }
    params.not_before = date(validity.from_s)?;
    params.not_after = date(validity.until_s)?;
    params.serial_number = Some(SerialNumber::from_slice(&serial.0));
    Ok(())
}

/// A public key in a certificate that is to be made.
struct Public(HolderKey);

fn public(key: HolderKey) -> Result<Public, Fault> {
    if distos_types::is_usable(key) {
        return Ok(Public(key));
    }
    Err(Fault::malformed("this is no Ed25519 public key"))
}

impl PublicKeyData for Public {
    fn der_bytes(&self) -> &[u8] {
        &self.0.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

/// A key that signs certificates.
struct Signing<'a> {
    secret: &'a HolderSecret,
    public: Public,
}

impl Signing<'_> {
    fn of(secret: &HolderSecret) -> Signing<'_> {
        Signing { secret, public: Public(secret.key()) }
    }
}

impl PublicKeyData for Signing<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.public.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.public.algorithm()
    }
}

impl SigningKey for Signing<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.secret.sign(message).to_vec())
    }
}
