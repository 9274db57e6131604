//! Certificates and lists of what was revoked, as they are read from files or come from devices (RFC 5280): what they say,
//! whether they hold at a time, and whose signature is on them.
//!
//! **Not done**: name constraints and policy mappings (a certificate with the former is refused), and lists of revoked
//! certificates that somebody else than the issuer signed. SHA-1 signatures are refused.

use std::fmt;

use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use sha2::{Digest as _, Sha256};
use x509_cert::crl::CertificateList;
use x509_cert::der::asn1::{BitString, ObjectIdentifier};
use x509_cert::der::{Decode as _, Encode as _, Reader as _, SliceReader};
use x509_cert::ext::Extensions;
use x509_cert::ext::pkix::{
    AuthorityInfoAccessSyntax, BasicConstraints, ExtendedKeyUsage, KeyUsage,
};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};

/// The longest certificate that is looked at, in bytes.
pub const MAX_CERTIFICATE_BYTES: usize = 16_384;
/// The longest list of revoked certificates that is looked at, in bytes.
pub const MAX_CRL_BYTES: usize = 4 << 20;
/// How many certificates a text may hold.
pub const MAX_CERTIFICATES: usize = 256;
/// How long what names no end holds.
const DAY_S: u64 = 86_400;
const PEM_END: &str = "-----END CERTIFICATE-----";
const CRL_END: &str = "-----END X509 CRL-----";

const BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
pub(crate) const KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");
pub(crate) const EXTENDED_KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37");
const NAME_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.30");
const POLICY_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.36");
const AUTHORITY_INFO_ACCESS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.1.1");
/// `id-ad-ocsp`: where a responder is asked.
const RESPONDER: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1");
/// What may be critical: the above, alternative names, and policies, which narrow what a certificate is for to what
/// nobody here asks.
const UNDERSTOOD: [ObjectIdentifier; 5] = [
    BASIC_CONSTRAINTS,
    KEY_USAGE,
    EXTENDED_KEY_USAGE,
    ObjectIdentifier::new_unwrap("2.5.29.17"),
    ObjectIdentifier::new_unwrap("2.5.29.32"),
];

/// `commonName` of a name (X.520).
pub const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const ECDSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
const ECDSA_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3");
const ECDSA_SHA512: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.4");
const RSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11");
const RSA_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.12");
const RSA_SHA512: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.13");
const RSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");
const EC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
pub(crate) const RSA_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
/// The curves P-256, P-384 and P-521.
pub(crate) const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
pub(crate) const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const P521: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.35");

/// Why there is no path, or none that holds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Bytes that are no certificate or list.
    #[error("{what} is malformed: {why}")]
    Malformed {
        /// What it is to be.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// Nobody among those given has issued it.
    #[error("no pinned root, nor a certificate that was given, has issued '{0}'")]
    NoIssuer(String),
    /// Whoever is named as the issuer has not signed it.
    #[error("'{0}' is not signed by the one that it names as its issuer")]
    Signature(String),
    /// Too old or too new.
    #[error("'{subject}' holds from {from_s} to {until_s}, and the time is {at_s} (Unix seconds)")]
    NotValid {
        /// Whose certificate.
        subject: String,
        /// Unix seconds.
        from_s: u64,
        /// Unix seconds.
        until_s: u64,
        /// Unix seconds.
        at_s: u64,
    },
    /// It may not issue certificates, or not one for another issuer.
    #[error("'{0}' may not issue certificates here")]
    NotIssuer(String),
    /// It has an extension that must be understood and is not.
    #[error("'{subject}' has the extension {oid}, which must be understood and is not")]
    Extension {
        /// Whose certificate.
        subject: String,
        /// Which.
        oid: String,
    },
    /// It is for something else.
    #[error("'{0}' is a certificate for another purpose")]
    Purpose(String),
    /// It is for another key.
    #[error("the certificate of '{0}' is for another key")]
    Subject(String),
    /// Its issuer has taken it back.
    #[error("the certificate {serial} of '{subject}' is revoked")]
    Revoked {
        /// Whose certificate.
        subject: String,
        /// Its serial number, hexadecimal.
        serial: String,
    },
}

/// A certificate.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate {
    der: Vec<u8>,
    signed: Vec<u8>,
    parsed: x509_cert::Certificate,
}

impl Certificate {
    /// Reads one in DER.
    pub fn from_der(der: &[u8]) -> Result<Certificate, Refusal> {
        let what = "a certificate";
        let wrong = |why: String| Refusal::Malformed { what, why };
        if der.len() > MAX_CERTIFICATE_BYTES {
            return Err(wrong(format!("it has more than {MAX_CERTIFICATE_BYTES} bytes")));
        }
        let parsed = x509_cert::Certificate::from_der(der).map_err(|e| wrong(e.to_string()))?;
        let signed = signed_part(der).map_err(|e| wrong(e.to_string()))?;
        if parsed.tbs_certificate.signature != parsed.signature_algorithm {
            return Err(wrong("it names two signature algorithms".to_owned()));
        }
        Ok(Certificate { der: der.to_vec(), signed, parsed })
    }

    /// Reads all in a text of PEM, or the one that is DER.
    pub fn several(bytes: &[u8]) -> Result<Vec<Certificate>, Refusal> {
        each(bytes, "CERTIFICATE", PEM_END, Certificate::from_der)
    }

    /// The certificate as it was read.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// SHA-256 over the certificate.
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(&self.der).into()
    }

    /// Whose it is, for people.
    pub fn subject(&self) -> String {
        self.parsed.tbs_certificate.subject.to_string()
    }

    /// The values of an attribute of the subject's name, as text.
    pub fn subject_values(&self, of: ObjectIdentifier) -> Vec<String> {
        let rdns = &self.parsed.tbs_certificate.subject.0;
        let attributes = rdns.iter().flat_map(|rdn| rdn.0.iter());
        let values = attributes.filter(|a| a.oid == of);
        values.map(|a| String::from_utf8_lossy(a.value.value()).into_owned()).collect()
    }

    /// The public key: for an elliptic curve a point (SEC 1), for RSA an `RSAPublicKey`.
    pub fn key(&self) -> &[u8] {
        self.parsed.tbs_certificate.subject_public_key_info.subject_public_key.raw_bytes()
    }

    /// `SubjectPublicKeyInfo` in DER.
    pub fn spki(&self) -> Vec<u8> {
        let info = &self.parsed.tbs_certificate.subject_public_key_info;
        info.to_der().expect("what was decoded can be encoded")
    }

    /// The key, if it is one of `curve`.
    pub(crate) fn key_on(&self, curve: ObjectIdentifier) -> Option<&[u8]> {
        let info = &self.parsed.tbs_certificate.subject_public_key_info;
        (curve_of(info) == Some(curve)).then(|| self.key())
    }

    /// What its key is for, as the key itself says.
    pub(crate) fn key_algorithm(&self) -> ObjectIdentifier {
        self.parsed.tbs_certificate.subject_public_key_info.algorithm.oid
    }

    /// The value of an extension.
    pub fn extension(&self, oid: ObjectIdentifier) -> Option<&[u8]> {
        find(&self.parsed.tbs_certificate.extensions, oid)
    }

    /// Whether it names itself as its issuer.
    pub fn is_self_issued(&self) -> bool {
        let body = &self.parsed.tbs_certificate;
        body.subject == body.issuer
    }

    /// Until when it holds, in Unix seconds.
    pub fn not_after_s(&self) -> u64 {
        self.parsed.tbs_certificate.validity.not_after.to_unix_duration().as_secs()
    }

    pub(crate) fn issuer(&self) -> &Name {
        &self.parsed.tbs_certificate.issuer
    }

    pub(crate) fn name(&self) -> &Name {
        &self.parsed.tbs_certificate.subject
    }

    pub(crate) fn serial(&self) -> &SerialNumber {
        &self.parsed.tbs_certificate.serial_number
    }

    pub(crate) fn decoded<'a, T: x509_cert::der::Decode<'a>>(
        &'a self,
        oid: ObjectIdentifier,
    ) -> Result<Option<T>, Refusal> {
        let Some(value) = self.extension(oid) else { return Ok(None) };
        T::from_der(value).map(Some).map_err(|e| Refusal::Malformed {
            what: "an extension of a certificate",
            why: e.to_string(),
        })
    }

    pub(crate) fn check_time(&self, at_s: u64) -> Result<(), Refusal> {
        let validity = &self.parsed.tbs_certificate.validity;
        let from_s = validity.not_before.to_unix_duration().as_secs();
        let until_s = self.not_after_s();
        if (from_s..=until_s).contains(&at_s) {
            return Ok(());
        }
        Err(Refusal::NotValid { subject: self.subject(), from_s, until_s, at_s })
    }

    pub(crate) fn check_extensions(&self) -> Result<(), Refusal> {
        for one in self.parsed.tbs_certificate.extensions.iter().flatten() {
            let narrows = [NAME_CONSTRAINTS, POLICY_CONSTRAINTS].contains(&one.extn_id);
            if narrows || (one.critical && !UNDERSTOOD.contains(&one.extn_id)) {
                return Err(Refusal::Extension {
                    subject: self.subject(),
                    oid: one.extn_id.to_string(),
                });
            }
        }
        Ok(())
    }

    /// `below` is how many issuers there are between this one and the leaf.
    pub(crate) fn check_may_issue(&self, below: usize) -> Result<(), Refusal> {
        let refused = || Refusal::NotIssuer(self.subject());
        let basic: BasicConstraints = self.decoded(BASIC_CONSTRAINTS)?.ok_or_else(refused)?;
        let long = basic.path_len_constraint.is_some_and(|most| below > usize::from(most));
        let usage: Option<KeyUsage> = self.decoded(KEY_USAGE)?;
        if !basic.ca || long || usage.is_some_and(|usage| !usage.key_cert_sign()) {
            return Err(refused());
        }
        Ok(())
    }

    pub(crate) fn may_sign_lists(&self) -> bool {
        let usage: Result<Option<KeyUsage>, _> = self.decoded(KEY_USAGE);
        usage.is_ok_and(|usage| usage.is_none_or(|usage| usage.crl_sign()))
    }

    /// Whether it names a responder, or in a way that cannot be read somebody.
    pub(crate) fn names_responder(&self) -> bool {
        match self.decoded::<AuthorityInfoAccessSyntax>(AUTHORITY_INFO_ACCESS) {
            Ok(None) => false,
            Ok(Some(access)) => access.0.iter().any(|one| one.access_method == RESPONDER),
            Err(_) => true,
        }
    }

    pub(crate) fn check_purpose(&self, purpose: Option<ObjectIdentifier>) -> Result<(), Refusal> {
        let Some(wanted) = purpose else { return Ok(()) };
        match self.decoded::<ExtendedKeyUsage>(EXTENDED_KEY_USAGE)? {
            Some(usage) if !usage.0.contains(&wanted) => Err(Refusal::Purpose(self.subject())),
            _ => Ok(()),
        }
    }

    /// Whether `issuer`'s key has signed this.
    pub(crate) fn is_signed_by(&self, issuer: &Certificate) -> bool {
        issuer.has_signed(&self.parsed.signature_algorithm, &self.signed, &self.parsed.signature)
    }

    /// Whether `signature` over `message` is by its key.
    pub(crate) fn has_signed(
        &self,
        algorithm: &AlgorithmIdentifierOwned,
        message: &[u8],
        signature: &BitString,
    ) -> bool {
        let info = &self.parsed.tbs_certificate.subject_public_key_info;
        verify(algorithm, info, message, signature)
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate({})", self.subject())
    }
}

/// A list of certificates that their issuer has taken back (RFC 5280, section 5).
#[derive(Clone, PartialEq, Eq)]
pub struct Crl {
    der: Vec<u8>,
    signed: Vec<u8>,
    parsed: CertificateList,
}

impl Crl {
    /// Reads one in DER.
    pub fn from_der(der: &[u8]) -> Result<Crl, Refusal> {
        let what = "a list of revoked certificates";
        let wrong = |why: String| Refusal::Malformed { what, why };
        if der.len() > MAX_CRL_BYTES {
            return Err(wrong(format!("it has more than {MAX_CRL_BYTES} bytes")));
        }
        let parsed = CertificateList::from_der(der).map_err(|e| wrong(e.to_string()))?;
        let signed = signed_part(der).map_err(|e| wrong(e.to_string()))?;
        if parsed.tbs_cert_list.signature != parsed.signature_algorithm {
            return Err(wrong("it names two signature algorithms".to_owned()));
        }
        if parsed.tbs_cert_list.crl_extensions.iter().flatten().any(|one| one.critical) {
            return Err(wrong("it is for a part of its issuer's certificates".to_owned()));
        }
        Ok(Crl { der: der.to_vec(), signed, parsed })
    }

    /// Reads all in a text of PEM, or the one that is DER.
    pub fn several(bytes: &[u8]) -> Result<Vec<Crl>, Refusal> {
        each(bytes, "X509 CRL", CRL_END, Crl::from_der)
    }

    /// The list as it was read.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// SHA-256 over the list.
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(&self.der).into()
    }

    /// Whether it was `issuer`'s at that time, or before.
    pub(crate) fn is_by(&self, issuer: &Certificate, at_s: u64) -> bool {
        let body = &self.parsed.tbs_cert_list;
        let (algorithm, signature) = (&self.parsed.signature_algorithm, &self.parsed.signature);
        body.issuer == *issuer.name()
            && body.this_update.to_unix_duration().as_secs() <= at_s
            && issuer.may_sign_lists()
            && issuer.has_signed(algorithm, &self.signed, signature)
    }

    /// Whether there is no newer one to be had yet.
    pub(crate) fn is_current(&self, at_s: u64) -> bool {
        let body = &self.parsed.tbs_cert_list;
        let named = body.next_update.map(|time| time.to_unix_duration().as_secs());
        is_current(body.this_update.to_unix_duration().as_secs(), named, at_s)
    }

    pub(crate) fn lists(&self, certificate: &Certificate) -> bool {
        let listed = self.parsed.tbs_cert_list.revoked_certificates.iter().flatten();
        listed.into_iter().any(|one| one.serial_number == *certificate.serial())
    }
}

impl fmt::Debug for Crl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Crl({})", self.parsed.tbs_cert_list.issuer)
    }
}

/// Whether what was said at `from_s` still counts: until the end that it names, or for a day.
pub(crate) fn is_current(from_s: u64, until_s: Option<u64>, at_s: u64) -> bool {
    at_s <= until_s.unwrap_or(from_s.saturating_add(DAY_S))
}

/// The first element of the outermost sequence, as it stands there: what is signed.
pub(crate) fn signed_part(der: &[u8]) -> x509_cert::der::Result<Vec<u8>> {
    let first = elements(der)?.first().map(|one| one.to_vec());
    first.ok_or_else(|| x509_cert::der::Tag::Sequence.length_error())
}

/// The elements of what stands outermost, each as it stands there.
pub(crate) fn elements(der: &[u8]) -> x509_cert::der::Result<Vec<&[u8]>> {
    let mut outer = SliceReader::new(der)?;
    let header = x509_cert::der::Header::decode(&mut outer)?;
    outer.read_nested(header.length, |inner| {
        let mut found = Vec::new();
        while !inner.is_finished() {
            found.push(inner.tlv_bytes()?);
        }
        Ok(found)
    })
}

fn find(extensions: &Option<Extensions>, oid: ObjectIdentifier) -> Option<&[u8]> {
    let one = extensions.iter().flatten().find(|one| one.extn_id == oid)?;
    Some(one.extn_value.as_bytes())
}

/// Reads each block of PEM with that label, or all of it as one in DER.
fn each<T>(
    bytes: &[u8],
    label: &'static str,
    end: &str,
    read: impl Fn(&[u8]) -> Result<T, Refusal>,
) -> Result<Vec<T>, Refusal> {
    let wrong = |why: String| Refusal::Malformed { what: "a text of PEM", why };
    let text = match std::str::from_utf8(bytes) {
        Ok(text) if text.contains("-----BEGIN") => text,
        _ => return Ok(vec![read(bytes)?]),
    };
    let begin = format!("-----BEGIN {label}-----");
    let mut found = Vec::new();
    for part in text.split_inclusive(end) {
        let Some(start) = part.find(&begin) else { continue };
        if found.len() == MAX_CERTIFICATES {
            return Err(wrong(format!("it has more than {MAX_CERTIFICATES}")));
        }
        let (_, block) = x509_cert::der::Document::from_pem(part[start..].trim())
            .map_err(|e| wrong(e.to_string()))?;
        found.push(read(block.as_bytes())?);
    }
    if found.is_empty() {
        return Err(wrong(format!("it has no {label}")));
    }
    Ok(found)
}

fn curve_of(info: &SubjectPublicKeyInfoOwned) -> Option<ObjectIdentifier> {
    let parameters = info.algorithm.parameters.as_ref()?;
    (info.algorithm.oid == EC_KEY).then_some(())?;
    parameters.decode_as().ok()
}

/// Whether `signature` over `message` is by the key of `info`, with an algorithm that is not broken.
fn verify(
    algorithm: &AlgorithmIdentifierOwned,
    info: &SubjectPublicKeyInfoOwned,
    message: &[u8],
    signature: &BitString,
) -> bool {
    let Some(with) = algorithm_of(algorithm, info) else { return false };
    // None if they end within a byte: the bits behind would be nobody's.
    let bytes = (info.subject_public_key.as_bytes(), signature.as_bytes());
    let (Some(key), Some(signature)) = bytes else { return false };
    let key = UnparsedPublicKey::new(with, key);
    key.verify(message, signature).is_ok()
}

fn algorithm_of(
    algorithm: &AlgorithmIdentifierOwned,
    info: &SubjectPublicKeyInfoOwned,
) -> Option<&'static dyn VerificationAlgorithm> {
    if let Some(curve) = curve_of(info) {
        return Some(match (curve, algorithm.oid) {
            (P256, ECDSA_SHA256) => &signature::ECDSA_P256_SHA256_ASN1,
            (P256, ECDSA_SHA384) => &signature::ECDSA_P256_SHA384_ASN1,
            (P256, ECDSA_SHA512) => &signature::ECDSA_P256_SHA512_ASN1,
            (P384, ECDSA_SHA256) => &signature::ECDSA_P384_SHA256_ASN1,
            (P384, ECDSA_SHA384) => &signature::ECDSA_P384_SHA384_ASN1,
            (P384, ECDSA_SHA512) => &signature::ECDSA_P384_SHA512_ASN1,
            (P521, ECDSA_SHA256) => &signature::ECDSA_P521_SHA256_ASN1,
            (P521, ECDSA_SHA384) => &signature::ECDSA_P521_SHA384_ASN1,
            (P521, ECDSA_SHA512) => &signature::ECDSA_P521_SHA512_ASN1,
            _ => return None,
        });
    }
    if info.algorithm.oid != RSA_KEY {
        return None;
    }
    Some(match algorithm.oid {
        RSA_SHA256 => &signature::RSA_PKCS1_2048_8192_SHA256,
        RSA_SHA384 => &signature::RSA_PKCS1_2048_8192_SHA384,
        RSA_SHA512 => &signature::RSA_PKCS1_2048_8192_SHA512,
        RSA_PSS => pss_of(&algorithm.parameters.as_ref()?.to_der().ok()?)?,
        _ => return None,
    })
}

/// RSASSA-PSS with one hash throughout and a salt as long as it, which all that is signed so has (RFC 4055, 3.1).
fn pss_of(parameters: &[u8]) -> Option<&'static dyn VerificationAlgorithm> {
    let named = |hash: u8, salt: u8| {
        // The hash's identifier with NULL as its parameters, and without.
        let with: Vec<u8> =
            [&[0x30, 13, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, hash][..], &[5, 0]].concat();
        let without = [0x30, 11, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, hash].to_vec();
        [with, without].iter().any(|id| {
            let mgf = [&[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 13, 1, 1, 8][..], id].concat();
            let mgf = tagged(0xa1, &tagged(0x30, &mgf));
            let salt = tagged(0xa2, &[2, 1, salt]);
            let trailer = tagged(0xa3, &[2, 1, 1]);
            let short = [&tagged(0xa0, id)[..], &mgf, &salt].concat();
            let long = [&short[..], &trailer].concat();
            [short, long].iter().any(|body| tagged(0x30, body) == parameters)
        })
    };
    Some(match parameters {
        _ if named(1, 32) => &signature::RSA_PSS_2048_8192_SHA256,
        _ if named(2, 48) => &signature::RSA_PSS_2048_8192_SHA384,
        _ if named(3, 64) => &signature::RSA_PSS_2048_8192_SHA512,
        _ => return None,
    })
}

/// One element of DER whose content is short.
fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).expect("the parameters of a signature are short");
    [&[tag, length][..], content].concat()
}
