//! What responders say of single certificates (OCSP, RFC 6960), read from files: nobody is asked here.
//!
//! A response names certificates by hashes of their issuer's name and key, and by their serial number. It counts for one if
//! that issuer has signed it, or a responder whose certificate comes with it, is for that (`id-kp-OCSPSigning`), and was
//! issued by that very issuer (4.2.2.2). What it says then counts so:
//!
//! - **Good**, from its `thisUpdate` to its `nextUpdate`, or for a day if it names none, as a list does. The responder's
//!   certificate has to hold at that time, and not to be revoked: it says that nobody need ask (`id-pkix-ocsp-nocheck`), or
//!   a current list of its issuer leaves it out. A responder of which nothing is known has said nothing that is good.
//! - **Revoked**, from its `thisUpdate` on and for ever, as what a list has named. So the responder's certificate has to hold
//!   at the time at which the response was made, and not any more later: those certificates last for weeks. A responder
//!   that a list names is believed in nothing.
//! - **Unknown** is as if nothing had been said: the responder does not serve this issuer, and somebody else may (2.2).
//!
//! **A response is as fresh as it says.** No nonce can be in it that whoever reads it has chosen: for as long as it is
//! current, it can be shown instead of a newer one, as a list can. How long that may be is the responder's choice, and which
//! files are there is that of whoever keeps the folder.
//!
//! **SHA-1 may name an issuer and a responder's key**: there it picks among certificates, and signs nothing. What is picked
//! must have signed the response, with an algorithm that [`pki`](crate::pki) takes; whoever finds two issuers with the same
//! hashes still has to sign as the one.
//!
//! **Not done**: responders that somebody else than the issuer has certified, those whose certificate does not come with the
//! response, and asking other responses whether a responder is revoked.

use std::fmt;

use sha1::Sha1;
use sha2::{Digest, Sha256, Sha384};
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Decode as _, Encode as _, Header, Reader as _, SliceReader};
use x509_cert::ext::pkix::{ExtendedKeyUsage, KeyUsage};
use x509_ocsp::{
    BasicOcspResponse, CertId, CertStatus, OcspGeneralizedTime, OcspResponse, OcspResponseStatus,
    ResponderId, SingleResponse,
};

use crate::pki::certificate::{
    Certificate, Crl, EXTENDED_KEY_USAGE, KEY_USAGE, Refusal, elements, is_current, signed_part,
};

/// The longest response that is looked at, in bytes. One of one certificate, with its responder's, has two thousand.
pub const MAX_RESPONSE_BYTES: usize = 65_536;
/// Of how many certificates a response may speak.
pub const MAX_SINGLE_RESPONSES: usize = 64;
/// How many certificates may come with a response.
const MAX_RESPONDERS: usize = 8;

/// `id-pkix-ocsp-basic`.
const BASIC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1.1");
/// `id-pkix-ocsp-nonce`: the answer to whoever asked, who is not here.
const NONCE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1.2");
/// `id-pkix-ocsp-nocheck`.
const NO_CHECK: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1.5");
/// `id-kp-OCSPSigning`.
const OCSP_SIGNING: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.9");
const SHA1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.14.3.2.26");
const SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");
const SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.2");

/// What a response says of a certificate, as far as it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Word {
    /// It was not revoked.
    Good,
    /// It was. Where both are said, this is it.
    Revoked,
}

/// A response, which somebody has signed. Who that is, and what it is worth, shows beside a certificate and its issuer.
#[derive(Clone, PartialEq, Eq)]
pub struct Response {
    der: Vec<u8>,
    signed: Vec<u8>,
    parsed: BasicOcspResponse,
    responders: Vec<Certificate>,
}

impl Response {
    /// Whether it begins as a response in DER does, and neither a certificate nor a list.
    pub fn is_one(bytes: &[u8]) -> bool {
        const ENUMERATED: u8 = 0x0a;
        let Ok(mut reader) = SliceReader::new(bytes) else { return false };
        Header::decode(&mut reader).is_ok() && reader.peek_byte() == Some(ENUMERATED)
    }

    /// Reads one in DER.
    ///
    /// # Errors
    /// [`Refusal::Malformed`]: also if the responder has not answered, in another form than the basic one, of too many
    /// certificates, or with an extension that must be understood and is not.
    pub fn from_der(der: &[u8]) -> Result<Response, Refusal> {
        let wrong = |why: String| Refusal::Malformed { what: "an OCSP response", why };
        let faulty = |why: x509_cert::der::Error| wrong(why.to_string());
        if der.len() > MAX_RESPONSE_BYTES {
            return Err(wrong(format!("it has more than {MAX_RESPONSE_BYTES} bytes")));
        }
        let outer = OcspResponse::from_der(der).map_err(faulty)?;
        let status = outer.response_status;
        let Some(bytes) = outer.response_bytes.filter(|_| status == OcspResponseStatus::Successful)
        else {
            return Err(wrong(format!("it says nothing: its status is {status:?}")));
        };
        if bytes.response_type != BASIC {
            return Err(wrong(format!("it is of the type {}", bytes.response_type)));
        }
        let basic = bytes.response.as_bytes();
        let parsed = BasicOcspResponse::from_der(basic).map_err(faulty)?;
        let singles = &parsed.tbs_response_data.responses;
        if singles.len() > MAX_SINGLE_RESPONSES {
            let why = format!("it speaks of more than {MAX_SINGLE_RESPONSES} certificates");
            return Err(wrong(why));
        }
        let extensions = singles.iter().map(|one| &one.single_extensions);
        let extensions = extensions.chain([&parsed.tbs_response_data.response_extensions]);
        let unknown =
            extensions.flatten().flatten().find(|one| one.critical && one.extn_id != NONCE);
        if let Some(oid) = unknown.map(|one| one.extn_id) {
            let why = format!("it has the extension {oid}, which must be understood and is not");
            return Err(wrong(why));
        }
        let certificates = certificates(basic).map_err(faulty)?;
        if certificates.len() > MAX_RESPONDERS {
            return Err(wrong(format!("more than {MAX_RESPONDERS} certificates come with it")));
        }
        let responders =
            certificates.into_iter().map(Certificate::from_der).collect::<Result<_, _>>()?;
        let signed = signed_part(basic).map_err(faulty)?;
        Ok(Response { der: der.to_vec(), signed, parsed, responders })
    }

    /// The response as it was read.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// What it says of `one` that counts at that time, in Unix seconds, if `issuer` has issued it and `lists` are that one's.
    /// `issuer` may issue certificates: whoever asks has seen to that.
    pub(crate) fn says(
        &self,
        one: &Certificate,
        issuer: &Certificate,
        lists: &[&Crl],
        at_s: u64,
    ) -> Option<Word> {
        let data = &self.parsed.tbs_response_data;
        let made_s = seconds(data.produced_at);
        let of_it = data.responses.iter().filter(|single| is_of(&single.cert_id, one, issuer));
        let word = of_it.filter_map(|single| word(single, at_s)).max()?;
        if made_s > at_s {
            return None;
        }
        match self.signer(issuer)? {
            Signer::Issuer => Some(word),
            Signer::Responder(responder) => {
                let is_valid = match word {
                    Word::Revoked => responder.check_time(made_s).is_ok(),
                    Word::Good => {
                        let is_unasked = responder.extension(NO_CHECK).is_some();
                        responder.check_time(at_s).is_ok()
                            && (is_unasked || lists.iter().any(|list| list.is_current(at_s)))
                    }
                };
                let is_revoked = lists.iter().any(|list| list.lists(responder));
                (is_valid && !is_revoked).then_some(word)
            }
        }
    }

    /// Who has signed it, if that one may for certificates of `issuer`.
    fn signer(&self, issuer: &Certificate) -> Option<Signer<'_>> {
        let BasicOcspResponse { signature_algorithm, signature, .. } = &self.parsed;
        let has_signed = |one: &Certificate| {
            self.is_named(one) && one.has_signed(signature_algorithm, &self.signed, signature)
        };
        if has_signed(issuer) {
            return Some(Signer::Issuer);
        }
        let found = self.responders.iter().find(|one| may_answer(one, issuer) && has_signed(one));
        found.map(Signer::Responder)
    }

    fn is_named(&self, one: &Certificate) -> bool {
        match &self.parsed.tbs_response_data.responder_id {
            ResponderId::ByName(name) => name == one.name(),
            ResponderId::ByKey(hash) => is_hash::<Sha1>(hash.as_bytes(), one.key()),
        }
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Response({:?})", self.parsed.tbs_response_data.responder_id)
    }
}

enum Signer<'a> {
    Issuer,
    Responder(&'a Certificate),
}

/// What comes with a `BasicOCSPResponse`, each as it stands there: it was signed as such.
fn certificates(basic: &[u8]) -> x509_cert::der::Result<Vec<&[u8]>> {
    const CERTIFICATES: usize = 3;
    let Some(tagged) = elements(basic)?.get(CERTIFICATES).copied() else { return Ok(Vec::new()) };
    let list = elements(tagged)?.first().copied();
    list.map_or(Ok(Vec::new()), elements)
}

/// What is said there, if it counts at that time, whoever says it.
fn word(single: &SingleResponse, at_s: u64) -> Option<Word> {
    let from_s = seconds(single.this_update);
    let is_current = is_current(from_s, single.next_update.map(seconds), at_s);
    match single.cert_status {
        _ if from_s > at_s => None,
        CertStatus::Revoked(_) => Some(Word::Revoked),
        CertStatus::Good(_) if is_current => Some(Word::Good),
        CertStatus::Good(_) | CertStatus::Unknown(_) => None,
    }
}

/// Whether a response that names a certificate so means `one`, which `issuer` has issued.
fn is_of(id: &CertId, one: &Certificate, issuer: &Certificate) -> bool {
    // First what costs nothing: whoever asks goes through all that there is.
    if id.serial_number != *one.serial() {
        return false;
    }
    match id.hash_algorithm.oid {
        SHA1 => names::<Sha1>(id, issuer),
        SHA256 => names::<Sha256>(id, issuer),
        SHA384 => names::<Sha384>(id, issuer),
        _ => false,
    }
}

fn names<D: Digest>(id: &CertId, issuer: &Certificate) -> bool {
    let name = issuer.name().to_der();
    name.is_ok_and(|name| is_hash::<D>(id.issuer_name_hash.as_bytes(), &name))
        && is_hash::<D>(id.issuer_key_hash.as_bytes(), issuer.key())
}

fn is_hash<D: Digest>(hash: &[u8], of: &[u8]) -> bool {
    D::digest(of)[..] == *hash
}

/// Whether `issuer` has said that this one may answer for it. When, and whether it has taken that back, is not looked at.
fn may_answer(responder: &Certificate, issuer: &Certificate) -> bool {
    let purposes = responder.decoded::<ExtendedKeyUsage>(EXTENDED_KEY_USAGE);
    let usage = responder.decoded::<KeyUsage>(KEY_USAGE);
    responder.issuer() == issuer.name()
        && matches!(purposes, Ok(Some(purposes)) if purposes.0.contains(&OCSP_SIGNING))
        && usage.is_ok_and(|usage| usage.is_none_or(|usage| usage.digital_signature()))
        && responder.check_extensions().is_ok()
        && responder.is_signed_by(issuer)
}

/// Since 1970.
fn seconds(time: OcspGeneralizedTime) -> u64 {
    time.0.to_unix_duration().as_secs()
}

#[cfg(test)]
#[path = "ocsp_tests.rs"]
pub(crate) mod tests;
