//! Whether an endorsement key is one that a maker of TPMs has certified (TCG EK Credential Profile for TPM Family 2.0), so
//! that nobody has to be told of a machine's TPM before, and nobody trusts the first that shows up.
//!
//! - **Proved**, by a certificate that leads to a pinned root: that whoever has that root's power says that the key is in
//!   a TPM, of this manufacturer and model.
//! - **Not proved**: that whoever shows the certificate has the TPM. Certificates are public; that shows by the TPM
//!   activating a [credential](crate::credential) for its key. Nor which machine the TPM is in, or what runs there.
//!
//! **Whether a TPM is hardware** no certificate says of itself: software writes whatever its maker likes. It is what the
//! operator says who pins the root: [`Kind`]. A certificate in which the common software TPM names itself is software's
//! whatever it leads to: then a root is pinned in the wrong place.
//!
//! **Not done**: lists and certificates that certificates name are not fetched, nor are responders asked. Chains that some
//! makers leave in the TPM beside the certificate are not read: the certificates between are given with the roots.

use std::collections::BTreeSet;

use distos_abi::Fault;
use x509_cert::der::asn1::{ObjectIdentifier, UintRef};
use x509_cert::der::{Reader as _, SliceReader};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage, SubjectAltName};

use crate::credential::{EndorsementKey, Template};
use crate::findings::{Findings, Outcome};
use crate::ocsp::Response;
use crate::pki::{Anchors, Certificate, Crl, P256, P384, Path, RSA_KEY, Refusal};
use crate::published::Published;

/// Of the check that a certificate is one for endorsement keys, and for this one.
pub const ENDORSEMENT: &str = "endorsement certificate";
/// The longest certificate of an endorsement key that is read from a TPM, in bytes: they have one or two thousand.
pub const MAX_ENDORSEMENT_BYTES: usize = 4096;
/// What is pinned at most, in bytes: what goes in one message, with room for what else is in it.
pub const MAX_PINNED_BYTES: usize = 1 << 20;
/// How many certificates, lists and responses are pinned at most.
pub const MAX_PINNED: usize = 512;

/// `tcg-kp-EKCertificate`.
const EK_CERTIFICATE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.8.1");
const SUBJECT_ALT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.17");
const BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
const KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");
const MANUFACTURER: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.2.1");
const MODEL: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.2.2");
const VERSION: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.2.3");
/// `id-RSAES-OAEP`, as some makers name what the key is for (RFC 4055, section 4).
const RSA_OAEP_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.7");
/// The exponent of every endorsement key that is RSA's: 65537.
const RSA_EXPONENT: [u8; 3] = [1, 0, 1];
/// What the common software TPM (libtpms, swtpm) calls its manufacturer: IBM, as a number of PCI and of the TCG.
const SOFTWARE_MANUFACTURERS: [&str; 2] = ["id:00001014", "id:49424D00"];
/// The longest text that is taken from a certificate, in bytes.
const MAX_TEXT_BYTES: usize = 64;

/// What whoever pins a root says of the TPMs that it certifies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Chips, and what is part of a processor.
    Hardware,
    /// Programs: who controls the machine, or its host, controls the TPM.
    Software,
}

impl Kind {
    /// As the claim `tpm` has it.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Hardware => "hardware",
            Kind::Software => "software",
        }
    }
}

/// Whose TPMs are taken.
#[derive(Clone, Debug, Default)]
pub struct Makers {
    roots: Vec<Certificate>,
    /// SHA-256 over each root that was pinned for hardware, and not for software too.
    hardware: BTreeSet<[u8; 32]>,
    others: Vec<Certificate>,
    crls: Vec<Crl>,
    responses: Vec<Response>,
    bytes: usize,
}

impl Makers {
    /// Adds what is in a file that somebody [publishes](Published). Returns how many roots are among it.
    ///
    /// # Errors
    /// [`Fault::Malformed`] if it holds something else, or any of it cannot be read; or if there is too much.
    pub fn add(&mut self, kind: Kind, bytes: &[u8]) -> Result<usize, Fault> {
        let read = Published::read(bytes).map_err(|why| Fault::malformed(why.to_string()))?;
        if read.is_empty() {
            let why = "it holds no certificate, list of revoked ones or OCSP response";
            return Err(Fault::malformed(why));
        }
        let Published { certificates, crls, responses } = read;
        let roots = certificates.iter().filter(|one| one.is_self_issued()).count();
        self.pin(kind, certificates)?;
        self.add_lists(crls)?;
        self.add_responses(responses)?;
        Ok(roots)
    }

    /// Adds certificates of makers: those that name themselves as their issuer are pinned as roots of that kind, and the
    /// others may stand between. A root that is added as both kinds is software's.
    ///
    /// # Errors
    /// [`Fault::Malformed`] if there are too many.
    pub fn pin(&mut self, kind: Kind, certificates: Vec<Certificate>) -> Result<(), Fault> {
        for certificate in certificates {
            self.make_room(certificate.der().len())?;
            if !certificate.is_self_issued() {
                self.others.push(certificate);
                continue;
            }
            let digest = certificate.digest();
            let is_new = !self.roots.contains(&certificate);
            match kind {
                Kind::Hardware if is_new => drop(self.hardware.insert(digest)),
                Kind::Hardware => {}
                Kind::Software => drop(self.hardware.remove(&digest)),
            }
            if is_new {
                self.roots.push(certificate);
            }
        }
        Ok(())
    }

    /// Adds lists of certificates that were revoked.
    ///
    /// # Errors
    /// [`Fault::Malformed`] if there are too many.
    pub fn add_lists(&mut self, lists: Vec<Crl>) -> Result<(), Fault> {
        for list in lists {
            self.make_room(list.der().len())?;
            self.crls.push(list);
        }
        Ok(())
    }

    /// Adds what responders have said of certificates.
    ///
    /// # Errors
    /// [`Fault::Malformed`] if there are too many.
    pub fn add_responses(&mut self, responses: Vec<Response>) -> Result<(), Fault> {
        for response in responses {
            self.make_room(response.der().len())?;
            self.responses.push(response);
        }
        Ok(())
    }

    fn make_room(&mut self, bytes: usize) -> Result<(), Fault> {
        self.bytes = self.bytes.saturating_add(bytes);
        let revoked = self.crls.len() + self.responses.len();
        let count = self.roots.len() + self.others.len() + revoked;
        if count >= MAX_PINNED || self.bytes > MAX_PINNED_BYTES {
            return Err(Fault::malformed(format!(
                "more than {MAX_PINNED} certificates, lists and responses of TPMs' makers, or {MAX_PINNED_BYTES} bytes"
            )));
        }
        Ok(())
    }

    /// Whether no root is pinned: then no TPM is taken for its certificate.
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    /// The certificates that were added as of that kind; those that may stand between as hardware's.
    pub fn certificates(&self, kind: Kind) -> impl Iterator<Item = &Certificate> {
        let is_hardware = |one: &Certificate| self.hardware.contains(&one.digest());
        let roots =
            self.roots.iter().filter(move |one| is_hardware(one) == (kind == Kind::Hardware));
        roots.chain(self.others.iter().filter(move |_| kind == Kind::Hardware))
    }

    /// The lists and responses that were added, in DER.
    pub fn taken_back(&self) -> impl Iterator<Item = &[u8]> {
        self.crls.iter().map(Crl::der).chain(self.responses.iter().map(Response::der))
    }

    /// Holds the certificate of an endorsement key (DER) against what is pinned, at a time in Unix seconds, and notes what
    /// was found; `None` if any of it does not hold. Claims: `tpm` (hardware or software), and, as far as the
    /// certificate names them, `tpm-manufacturer`, `tpm-model` and `tpm-version`.
    pub fn verify(
        &self,
        certificate: &[u8],
        ek: &EndorsementKey,
        at_s: u64,
        findings: &mut Findings,
    ) -> Option<Endorsement> {
        let read = Certificate::from_der(certificate)
            .and_then(|one| Origin::of(&one).map(|origin| (one, origin)))
            .and_then(|(one, origin)| certifies(&one, ek).map(|()| (one, origin)));
        let (leaf, origin) = findings.check(ENDORSEMENT, read, |(_, origin)| origin.to_string())?;
        let Makers { roots, others, crls, responses, .. } = self;
        let anchors = Anchors { roots, others, crls, responses, at_s };
        let path = Path::note(&[leaf], anchors, Some(EK_CERTIFICATE), findings)?;
        let is_hardware = self.hardware.contains(&path.root().digest()) && !origin.is_software();
        let kind = if is_hardware { Kind::Hardware } else { Kind::Software };
        findings.claim("tpm", kind.word());
        for (name, value) in [
            ("tpm-manufacturer", &origin.manufacturer),
            ("tpm-model", &origin.model),
            ("tpm-version", &origin.version),
        ] {
            if let Some(value) = value {
                findings.claim(name, value.as_str());
            }
        }
        Some(Endorsement { kind, origin, root: path.root().subject(), until_s: path.until_s })
    }

    /// The same, for whoever takes a TPM or does not.
    ///
    /// # Errors
    /// [`Fault::Unauthenticated`]: the check that does not hold.
    pub fn demand(
        &self,
        certificate: &[u8],
        ek: &EndorsementKey,
        at_s: u64,
    ) -> Result<Endorsement, Fault> {
        let mut findings = Findings::default();
        self.verify(certificate, ek, at_s, &mut findings).ok_or_else(|| {
            let failed = findings.checks.iter().find(|check| check.outcome == Outcome::Failed);
            let why = failed.map(|check| format!("{}: {}", check.name, check.detail));
            Fault::Unauthenticated(format!(
                "the TPM's certificate is not taken: {}",
                why.unwrap_or_default()
            ))
        })
    }
}

/// A TPM whose maker is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endorsement {
    /// What whoever pinned the root says of such TPMs.
    pub kind: Kind,
    /// What the certificate says of it.
    pub origin: Origin,
    /// Whose root it leads to, for people.
    pub root: String,
    /// Unix seconds at which the first of the certificates runs out.
    pub until_s: u64,
}

impl std::fmt::Display for Endorsement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} TPM, {}, certified under '{}'", self.kind.word(), self.origin, self.root)
    }
}

/// What a certificate says of a TPM, as it is written there; what it leaves out, or what is no short text, is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// `id:` and eight hexadecimal digits (TCG Vendor ID Registry).
    pub manufacturer: Option<String>,
    /// The part number.
    pub model: Option<String>,
    /// `id:` and the firmware's version when it was made, in hexadecimal.
    pub version: Option<String>,
}

impl Origin {
    /// Of a certificate, whose signature and path say whether that is worth anything.
    ///
    /// # Errors
    /// [`Refusal::Malformed`] if the names in it can't be read.
    pub fn of(certificate: &Certificate) -> Result<Origin, Refusal> {
        let names: Option<SubjectAltName> = certificate.decoded(SUBJECT_ALT_NAME)?;
        let mut origin = Origin::default();
        for name in names.iter().flat_map(|names| &names.0) {
            let GeneralName::DirectoryName(name) = name else { continue };
            for one in name.0.iter().flat_map(|rdn| rdn.0.iter()) {
                let text = std::str::from_utf8(one.value.value()).ok();
                let is_plain = |text: &&str| {
                    let is_short = (1..=MAX_TEXT_BYTES).contains(&text.len());
                    is_short && text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
                };
                let text = text.filter(is_plain).map(str::to_owned);
                match one.oid {
                    MANUFACTURER => origin.manufacturer = text,
                    MODEL => origin.model = text,
                    VERSION => origin.version = text,
                    _ => {}
                }
            }
        }
        Ok(origin)
    }

    fn is_software(&self) -> bool {
        let named = self.manufacturer.as_deref().unwrap_or_default();
        SOFTWARE_MANUFACTURERS.iter().any(|one| one.eq_ignore_ascii_case(named))
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = |text: &Option<String>| text.clone().unwrap_or_else(|| "not named".to_owned());
        let (manufacturer, model) = (word(&self.manufacturer), word(&self.model));
        write!(f, "manufacturer {manufacturer}, model {model}, version {}", word(&self.version))
    }
}

/// Whether a certificate is an endorsement key's, and this one's. Who has signed it is not looked at.
///
/// # Errors
/// [`Refusal::Purpose`] if it is for something else, and [`Refusal::Subject`] if it is another key's.
pub fn certifies(certificate: &Certificate, ek: &EndorsementKey) -> Result<(), Refusal> {
    let basic: Option<BasicConstraints> = certificate.decoded(BASIC_CONSTRAINTS)?;
    let usage: Option<KeyUsage> = certificate.decoded(KEY_USAGE)?;
    let is_for_it = |usage: KeyUsage| match ek.template() {
        Template::Rsa2048 => usage.key_encipherment(),
        Template::P256 | Template::P384 => usage.key_agreement(),
    };
    if basic.is_some_and(|basic| basic.ca) || usage.is_some_and(|usage| !is_for_it(usage)) {
        return Err(Refusal::Purpose(certificate.subject()));
    }
    let is_its = match ek.template() {
        Template::P256 => certificate.key_on(P256) == Some(ek.key()),
        Template::P384 => certificate.key_on(P384) == Some(ek.key()),
        Template::Rsa2048 => {
            [RSA_KEY, RSA_OAEP_KEY].contains(&certificate.key_algorithm())
                && is_rsa_key(certificate.key(), ek.key())
        }
    };
    if is_its { Ok(()) } else { Err(Refusal::Subject(certificate.subject())) }
}

/// Whether an `RSAPublicKey` has that modulus, and the exponent that endorsement keys have.
fn is_rsa_key(der: &[u8], modulus: &[u8]) -> bool {
    let Ok(mut reader) = SliceReader::new(der) else { return false };
    let read = reader
        .sequence(|inner| Ok((inner.decode::<UintRef<'_>>()?, inner.decode::<UintRef<'_>>()?)));
    let is_it = read.is_ok_and(|(n, e)| n.as_bytes() == modulus && e.as_bytes() == RSA_EXPONENT);
    is_it && reader.is_finished()
}

/// The certificate at the front of what a TPM has stored, without what fills the rest of the place; `None` if no whole
/// one is there.
pub fn stored(bytes: &[u8]) -> Option<Certificate> {
    let mut reader = SliceReader::new(bytes).ok()?;
    let whole = reader.tlv_bytes().ok()?;
    (whole.len() <= MAX_ENDORSEMENT_BYTES).then(|| Certificate::from_der(whole).ok()).flatten()
}

#[cfg(test)]
#[path = "enrolment_tests.rs"]
mod tests;
