//! Quotes of any TPM, for whoever was given one and was not there: other keys than those that DistOS enrols, and no
//! enrolment.
//!
//! What a node's own attestation accepts is narrower, and is in [`crate::evidence`]; both read the same structures. Here
//! each check is noted by name, and what there is nothing to check against is not checked.
//!
//! # What it does not show
//!
//! - That the key is in a TPM, unless a certificate of the key leads to a pinned root: then the check "certificate chain"
//!   has passed. A public key alone says nothing of where the private one is, whatever attributes are claimed for it.
//! - Which registers matter: that is for a policy, over the claim `pcrs`.

use std::collections::BTreeSet;
use std::fmt;

use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use x509_cert::der::asn1::{AnyRef, ObjectIdentifier, UintRef};
use x509_cert::der::{Decode as _, Document, Encode as _, Tag};
use x509_cert::spki::SubjectPublicKeyInfoOwned;

use crate::bank::{Bank, BankValues};
use crate::evidence::{
    ALG_ECC, ALG_ECDSA, ALG_NULL, ATTEST_QUOTE, Attest, CURVE_P256, GENERATED, PcrSet, QuoteBody,
    Selection,
};
use crate::findings::{Findings, Outcome};
use crate::pki::{Anchors, CHAIN, Certificate, P256, P384, Path, RSA_KEY};
use crate::wire::{Broken, Reader};

/// Of the check that the key may vouch for what it signs.
pub const KEY: &str = "key attributes";
/// Of the check of the signature.
pub const SIGNATURE: &str = "signature";
/// Of the check that a TPM made what is signed.
pub const MAGIC: &str = "made by a TPM";
/// Of the check that it is a quote.
pub const QUOTE: &str = "quote";
/// Of the check of the nonce.
pub const NONCE: &str = "nonce";
/// Of the check that the register values are those quoted.
pub const DIGEST: &str = "register values";

/// The first byte of what is encoded in DER here.
const SEQUENCE: u8 = 0x30;
const ALG_RSA: u16 = 0x0001;
const ALG_RSASSA: u16 = 0x0014;
const ALG_RSAPSS: u16 = 0x0016;
const CURVE_P384: u16 = 0x0004;
/// fixedTPM, restricted, sign: with these a TPM signs with the key only what it made itself.
const VOUCHING: u32 = 0x0005_0002;
/// decrypt: such a key does other things, too.
const DECRYPT: u32 = 0x0002_0000;
/// `tcg-kp-AIKCertificate` (TCG Credential Profile, 3.6).
const AIK: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.8.3");
/// The exponent of RSA keys that a TPM writes as zero.
const USUAL_EXPONENT: u32 = 65_537;
/// Bytes of a register list as tpm2-tools writes it: `TPML_PCR_SELECTION` with room for 16.
const SELECTIONS: usize = 16;
const DIGESTS: usize = 8;
const DIGEST_ROOM: usize = 64;

/// What signs quotes.
#[derive(Clone)]
pub struct QuoteKey {
    key: Key,
    /// Its attributes and name, if it was given as the TPM has it.
    attributes: Option<u32>,
    /// Its own certificate, and those that came with it.
    chain: Vec<Certificate>,
}

#[derive(Clone, PartialEq, Eq)]
enum Key {
    P256(Vec<u8>),
    P384(Vec<u8>),
    /// `RSAPublicKey` in DER.
    Rsa(Vec<u8>),
}

impl QuoteKey {
    /// Reads a `TPM2B_PUBLIC`, a `TPMT_PUBLIC`, or in PEM a public key or a certificate.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<QuoteKey, String> {
        let text = std::str::from_utf8(bytes).unwrap_or_default();
        let is_der = bytes.first() == Some(&SEQUENCE);
        if text.contains("-----BEGIN CERTIFICATE-----") || is_der {
            let chain = Certificate::several(bytes).map_err(|e| e.to_string())?;
            let first = chain.first().ok_or("there is no certificate")?;
            return Ok(QuoteKey { key: of_spki(&first.spki())?, attributes: None, chain });
        }
        if text.contains("-----BEGIN PUBLIC KEY-----") {
            let (_, document) = Document::from_pem(text.trim()).map_err(|e| e.to_string())?;
            let key = of_spki(document.as_bytes())?;
            return Ok(QuoteKey { key, attributes: None, chain: Vec::new() });
        }
        let (key, attributes) = of_public(inner(bytes)).map_err(|broken| broken.to_string())?;
        Ok(QuoteKey { key, attributes: Some(attributes), chain: Vec::new() })
    }

    /// The `TPMT_PUBLIC` in a file that is one, or a `TPM2B_PUBLIC`.
    pub fn public(bytes: &[u8]) -> Option<&[u8]> {
        let public = inner(bytes);
        of_public(public).is_ok().then_some(public)
    }

    /// What is known of one key from two files: the TPM's own words on it, and its certificate. `None` if they are not of
    /// one key.
    pub fn and(self, other: QuoteKey) -> Option<QuoteKey> {
        (self.key == other.key).then_some(())?;
        let chain = if self.chain.is_empty() { other.chain } else { self.chain };
        Some(QuoteKey { key: self.key, attributes: self.attributes.or(other.attributes), chain })
    }

    /// The algorithm that a `TPMT_SIGNATURE` is by, and the signature as it is verified; `None` if it cannot be this key's.
    fn signature(&self, bytes: &[u8]) -> Result<Option<Signature>, Broken> {
        let mut r = Reader::new(bytes);
        let (scheme, hash) = (r.u16("signature.sigAlg")?, r.u16("signature.hash")?);
        let hash = Bank::of_algorithm(hash);
        let numbers = |r: &mut Reader<'_>, size: usize| {
            let mut both = vec![0; 2 * size];
            for half in both.chunks_exact_mut(size) {
                let number = r.sized("signature")?;
                let start = size.checked_sub(number.len()).ok_or(Broken("signature"))?;
                half[start..].copy_from_slice(number);
            }
            Ok(both)
        };
        let found: Option<Signature> = match (&self.key, scheme, hash) {
            (Key::P256(_), ALG_ECDSA, Some(Bank::Sha256)) => {
                Some((&signature::ECDSA_P256_SHA256_FIXED, numbers(&mut r, 32)?))
            }
            (Key::P384(_), ALG_ECDSA, Some(Bank::Sha384)) => {
                Some((&signature::ECDSA_P384_SHA384_FIXED, numbers(&mut r, 48)?))
            }
            (Key::Rsa(_), ALG_RSASSA | ALG_RSAPSS, Some(hash)) => {
                let with = rsa(scheme == ALG_RSAPSS, hash);
                let bytes = r.sized("signature.sig")?.to_vec();
                with.map(|with| (with, bytes))
            }
            _ => return Ok(None),
        };
        r.end("the end of the signature")?;
        Ok(found)
    }

    fn verify(&self, message: &[u8], bytes: &[u8]) -> Result<(), String> {
        let found = self.signature(bytes).map_err(|broken| broken.to_string())?;
        let (with, signature) =
            found.ok_or("it is of a kind that this key does not make, or that is too weak")?;
        let (Key::P256(key) | Key::P384(key) | Key::Rsa(key)) = &self.key;
        UnparsedPublicKey::new(with, key)
            .verify(message, &signature)
            .map_err(|_| "it is not by this key, over this quote".to_owned())
    }
}

type Signature = (&'static dyn VerificationAlgorithm, Vec<u8>);

impl fmt::Debug for QuoteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.key {
            Key::P256(_) => "QuoteKey(P-256)",
            Key::P384(_) => "QuoteKey(P-384)",
            Key::Rsa(_) => "QuoteKey(RSA)",
        })
    }
}

fn rsa(is_pss: bool, hash: Bank) -> Option<&'static dyn VerificationAlgorithm> {
    Some(match (is_pss, hash) {
        (false, Bank::Sha256) => &signature::RSA_PKCS1_2048_8192_SHA256,
        (false, Bank::Sha384) => &signature::RSA_PKCS1_2048_8192_SHA384,
        (false, Bank::Sha512) => &signature::RSA_PKCS1_2048_8192_SHA512,
        (true, Bank::Sha256) => &signature::RSA_PSS_2048_8192_SHA256,
        (true, Bank::Sha384) => &signature::RSA_PSS_2048_8192_SHA384,
        (true, Bank::Sha512) => &signature::RSA_PSS_2048_8192_SHA512,
        (_, Bank::Sha1) => return None,
    })
}

fn of_spki(der: &[u8]) -> Result<Key, String> {
    let info = SubjectPublicKeyInfoOwned::from_der(der).map_err(|e| e.to_string())?;
    let key = info.subject_public_key.as_bytes().ok_or("the key ends within a byte")?.to_vec();
    let curve = info.algorithm.parameters.as_ref().and_then(|one| one.decode_as().ok());
    match curve {
        Some(P256) => Ok(Key::P256(key)),
        Some(P384) => Ok(Key::P384(key)),
        None if info.algorithm.oid == RSA_KEY => Ok(Key::Rsa(key)),
        _ => Err("the key is none of P-256, P-384 and RSA".to_owned()),
    }
}

/// What a `TPM2B` holds, if it is one.
fn inner(bytes: &[u8]) -> &[u8] {
    match Reader::new(bytes).sized("size") {
        Ok(inner) if inner.len() + 2 == bytes.len() => inner,
        _ => bytes,
    }
}

/// `TPMT_PUBLIC` (TPM 2.0 Library, Part 2, 12.2.4): the key, and what it is allowed.
fn of_public(public: &[u8]) -> Result<(Key, u32), Broken> {
    let mut r = Reader::new(public);
    let kind = r.u16("type")?;
    r.u16("nameAlg")?;
    let attributes = r.u32("objectAttributes")?;
    r.sized("authPolicy")?;
    if r.u16("symmetric")? != ALG_NULL {
        r.array::<4>("symmetric's size and mode")?;
    }
    if r.u16("scheme")? != ALG_NULL {
        r.u16("scheme's hash")?;
    }
    let key = match kind {
        ALG_ECC => {
            let curve = r.u16("curveID")?;
            if r.u16("kdf")? != ALG_NULL {
                r.u16("kdf's hash")?;
            }
            let size = match curve {
                CURVE_P256 => 32,
                CURVE_P384 => 48,
                _ => return Err(Broken("curveID")),
            };
            let mut point = vec![0; 1 + 2 * size];
            point[0] = 4;
            for half in point[1..].chunks_exact_mut(size) {
                let number = r.sized("unique")?;
                let start = size.checked_sub(number.len()).ok_or(Broken("unique"))?;
                half[start..].copy_from_slice(number);
            }
            if curve == CURVE_P256 { Key::P256(point) } else { Key::P384(point) }
        }
        ALG_RSA => {
            r.u16("keyBits")?;
            let exponent = match r.u32("exponent")? {
                0 => USUAL_EXPONENT,
                other => other,
            };
            let modulus = r.sized("unique")?;
            Key::Rsa(rsa_key(modulus, exponent).ok_or(Broken("unique"))?)
        }
        _ => return Err(Broken("type")),
    };
    r.end("the end of the key")?;
    Ok((key, attributes))
}

/// `RSAPublicKey` (RFC 8017, A.1.1).
fn rsa_key(modulus: &[u8], exponent: u32) -> Option<Vec<u8>> {
    let mut body = UintRef::new(modulus).ok()?.to_der().ok()?;
    body.extend(UintRef::new(&exponent.to_be_bytes()).ok()?.to_der().ok()?);
    AnyRef::new(Tag::Sequence, &body).ok()?.to_der().ok()
}

/// A quote, and what came with it.
#[derive(Clone, Copy, Debug)]
pub struct Quote<'a> {
    /// `TPMS_ATTEST` as signed.
    pub attest: &'a [u8],
    /// `TPMT_SIGNATURE`.
    pub signature: &'a [u8],
    /// What registers are said to hold, of whichever banks: those that were quoted count.
    pub values: &'a [BankValues],
}

/// Verifies a quote by `key`. `nonce` is what the TPM was to be asked with, to the byte. The values that the quote proves,
/// by bank, are returned if no check has failed.
pub fn verify(
    quote: Quote<'_>,
    key: &QuoteKey,
    nonce: Option<&[u8]>,
    anchors: Anchors<'_>,
) -> (Findings, Vec<BankValues>) {
    let mut findings = Findings::default();
    let proven = checked(quote, key, nonce, anchors, &mut findings);
    // Values of a quote that is stale, or by a key that nobody should believe, prove nothing of the logs behind them.
    let is_good = findings.worst() != Outcome::Failed;
    (findings, proven.filter(|_| is_good).unwrap_or_default())
}

fn checked(
    quote: Quote<'_>,
    key: &QuoteKey,
    nonce: Option<&[u8]>,
    anchors: Anchors<'_>,
    findings: &mut Findings,
) -> Option<Vec<BankValues>> {
    check_key(key, anchors, findings);
    let signed = key.verify(quote.attest, quote.signature);
    findings.check(SIGNATURE, signed, |()| format!("{key:?}"))?;
    let attest = findings.check(MAGIC, generated(quote.attest), |_| String::new())?;
    let body = findings.check(QUOTE, body_of(&attest), |body| {
        body.selections.iter().map(described).collect::<Vec<_>>().join(" ")
    })?;
    // Compared to the last byte: one that was cut or padded is another.
    match nonce {
        None => findings.not_checked(NONCE, "none was given: the quote may be of any age"),
        Some(nonce) if nonce == attest.extra_data => findings.passed(NONCE, "answered"),
        Some(_) => {
            findings.failed(NONCE, "the quote answers another one, or one that was cut or padded");
        }
    }
    findings.claim("firmware-version", format!("{:016x}", attest.firmware));
    findings.claim("reset-count", attest.clock.reset_count);
    findings.claim("restart-count", attest.clock.restart_count);
    let selected: Result<Vec<BankValues>, String> =
        body.selections.iter().map(|one| selected(one, quote.values)).collect();
    let values = match selected {
        Ok(values) => values,
        Err(missing) => {
            findings.not_checked(DIGEST, missing);
            return None;
        }
    };
    let held: Vec<&[u8]> =
        values.iter().flat_map(BankValues::iter).map(|(_, value)| value.as_bytes()).collect();
    // The digest is made with the hash of the signature's scheme.
    let is_quoted = |bank: Bank| {
        bank.size() == body.pcr_digest.len() && bank.hash(&held).as_bytes() == body.pcr_digest
    };
    if !Bank::ALL.into_iter().filter(|bank| *bank != Bank::Sha1).any(is_quoted) {
        findings.failed(DIGEST, "the quoted digest is not that of the values");
        return None;
    }
    findings.passed(DIGEST, body.selections.iter().map(described).collect::<Vec<_>>().join(" "));
    let pcrs = |values: &BankValues| -> BTreeSet<String> {
        values.iter().map(|(pcr, value)| format!("{pcr}:{value}")).collect()
    };
    // Policies speak of one bank.
    if let [values] = values.as_slice() {
        findings.claim("pcrs", pcrs(values));
        findings.claim("pcr-bank", values.bank().to_string());
    }
    Some(values)
}

/// The values of exactly the registers that were selected.
fn selected(selection: &Selection, given: &[BankValues]) -> Result<BankValues, String> {
    let bank = Bank::of_algorithm(selection.bank).ok_or("a bank was quoted that nobody knows")?;
    let pcrs = selection.pcrs.ok_or("a register was quoted that no PC's TPM has")?;
    let mut values = BankValues::new(bank);
    for pcr in pcrs.iter() {
        let held = given.iter().filter(|one| one.bank() == bank).find_map(|one| one.value(pcr));
        let held = held.ok_or_else(|| format!("no value of PCR {pcr} of {bank} was given"))?;
        values.insert(pcr, held.as_bytes()).map_err(|fault| fault.to_string())?;
    }
    Ok(values)
}

fn check_key(key: &QuoteKey, anchors: Anchors<'_>, findings: &mut Findings) {
    if key.chain.is_empty() {
        let why = "no certificate: the key is as good as whoever gave it";
        findings.not_checked(CHAIN, why);
    } else {
        Path::note(&key.chain, anchors, Some(AIK), findings);
    }
    match key.attributes {
        None => findings.not_checked(KEY, "the key does not come as the TPM has it"),
        Some(a) if a & (VOUCHING | DECRYPT) == VOUCHING => {
            findings.passed(KEY, "fixed to its TPM, signs only what that made");
        }
        Some(_) => findings.failed(KEY, "the key signs what its TPM did not make, or may leave it"),
    }
}

fn generated(bytes: &[u8]) -> Result<Attest<'_>, String> {
    let attest = Attest::parse(bytes).map_err(|broken| broken.to_string())?;
    match attest.magic {
        GENERATED => Ok(attest),
        other => Err(format!("the signed structure begins with {other:#010x}")),
    }
}

fn body_of<'a>(attest: &Attest<'a>) -> Result<QuoteBody<'a>, String> {
    match attest.kind {
        ATTEST_QUOTE => attest.quote_body().map_err(|broken| broken.to_string()),
        other => Err(format!("it is another attestation, of type {other:#06x}")),
    }
}

fn described(selection: &Selection) -> String {
    let bank = Bank::of_algorithm(selection.bank).map_or("?".to_owned(), |bank| bank.to_string());
    let pcrs: Vec<String> =
        selection.pcrs.iter().flat_map(|set| set.iter()).map(|n| n.to_string()).collect();
    format!("PCR {} of {bank}", pcrs.join(","))
}

/// Reads register values as tpm2-tools writes them (`tpm2_quote --pcr`, format `serialized`): a `TPML_PCR_SELECTION` with
/// room for 16, then lists of 8 digests, in the machine's own byte order, which is little-endian. One bank alone.
///
/// # Errors
/// [`Broken`] names the field that is not as it should be.
pub fn values_of_tools(bytes: &[u8]) -> Result<BankValues, Broken> {
    let mut r = Reader::new(bytes);
    if r.u32_le("count of banks")? != 1 {
        return Err(Broken("the count of banks, of which there is to be one"));
    }
    let mut chosen = None;
    for at in 0..SELECTIONS {
        let hash = r.u16_le("hash")?;
        let size = usize::from(r.u8("sizeofSelect")?);
        let select: [u8; 4] = r.array("pcrSelect")?;
        r.u8("padding")?;
        if at == 0 {
            let select = select.get(..size).ok_or(Broken("sizeofSelect"))?;
            let pcrs = PcrSet::from_select(select).ok_or(Broken("pcrSelect"))?;
            chosen = Some((Bank::of_algorithm(hash).ok_or(Broken("hash"))?, pcrs));
        }
    }
    let (bank, pcrs) = chosen.ok_or(Broken("hash"))?;
    let lists = r.u32_le("count of lists")?;
    let mut values = BankValues::new(bank);
    let mut registers = pcrs.iter();
    for _ in 0..lists {
        let count = r.u32_le("count of digests")?;
        for at in 0..DIGESTS {
            let size = usize::from(r.u16_le("digest's size")?);
            let room: [u8; DIGEST_ROOM] = r.array("digest")?;
            if at < count as usize {
                let value = room.get(..size).ok_or(Broken("digest's size"))?;
                let pcr = registers.next().ok_or(Broken("more digests than registers"))?;
                values.insert(pcr, value).map_err(|_| Broken("digest's size"))?;
            }
        }
    }
    if registers.next().is_some() {
        return Err(Broken("fewer digests than registers"));
    }
    r.end("the end of the values")?;
    Ok(values)
}

#[cfg(test)]
#[path = "quote_tests.rs"]
mod tests;
