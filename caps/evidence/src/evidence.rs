//! What a TPM quote says, and whether it is good. Pure: no clock, no I/O, no randomness.
//!
//! A quote is a `TPMS_ATTEST` structure that the TPM signed (TPM 2.0 Library, Part 2, 10.12). This
//! module does not decide how old a quote may be: that is freshness, and whoever asks for quotes keeps
//! it apart from integrity (A2).

use std::collections::BTreeMap;
use std::fmt;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ParsedPublicKey};
use distos_abi::Fault;
use sha2::{Digest, Sha256};

pub use crate::wire::Broken;
use crate::wire::{Reader, Writer};

/// `TPM_ALG_SHA256`.
pub const ALG_SHA256: u16 = 0x000b;
/// `TPM_ALG_NULL`.
pub const ALG_NULL: u16 = 0x0010;
/// `TPM_ALG_ECDSA`.
pub const ALG_ECDSA: u16 = 0x0018;
/// `TPM_ALG_ECC`.
pub const ALG_ECC: u16 = 0x0023;
/// `TPM_ECC_NIST_P256`.
pub const CURVE_P256: u16 = 0x0003;
/// The endorsement hierarchy: its seed outlives a change of owner.
pub const HIERARCHY_ENDORSEMENT: u32 = 0x4000_000b;
/// fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, sign. *Restricted*
/// is what makes a quote evidence: the TPM signs with such a key nothing that it did not make.
const AK_ATTRIBUTES: u32 = 0x0005_0472;

/// `TPM_GENERATED_VALUE`: what is signed was made inside a TPM.
pub(crate) const GENERATED: u32 = 0xff54_4347;
/// `TPM_ST_ATTEST_QUOTE`.
pub(crate) const ATTEST_QUOTE: u16 = 0x8018;
/// More banks than any TPM has.
const MAX_SELECTIONS: u32 = 16;
/// `TPMS_PCR_SELECT` of at most 32 registers.
const MAX_SELECT_BYTES: u8 = 4;

/// The registers of a TPM's SHA-256 bank, by number.
pub type Pcrs = BTreeMap<u8, [u8; 32]>;

/// A set of platform configuration registers, 0 to 23.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PcrSet(u32);

impl PcrSet {
    /// How many registers a PC client's TPM has.
    pub const COUNT: u8 = 24;

    /// Parses a list such as `0-7,11`. [`Fault::Malformed`] names the item that is wrong.
    pub fn parse(text: &str) -> Result<PcrSet, Fault> {
        let wrong = |item: &str| {
            Fault::malformed(format!(
                "'{item}' is no PCR list: use numbers from 0 to 23 such as 0-7,11"
            ))
        };
        let number = |word: &str, item: &str| match word.trim().parse::<u8>() {
            Ok(n) if n < PcrSet::COUNT => Ok(n),
            _ => Err(wrong(item)),
        };
        text.split(',').try_fold(PcrSet::default(), |set, item| {
            let (first, last) = item.split_once('-').unwrap_or((item, item));
            let (first, last) = (number(first, item)?, number(last, item)?);
            if first > last {
                return Err(wrong(item));
            }
            Ok((first..=last).fold(set, PcrSet::with))
        })
    }

    /// The set with `pcr` added; numbers above 23 are ignored.
    #[must_use]
    pub fn with(self, pcr: u8) -> PcrSet {
        if pcr < PcrSet::COUNT { PcrSet(self.0 | 1 << pcr) } else { self }
    }

    /// The set without `pcr`.
    #[must_use]
    pub fn without(self, pcr: u8) -> PcrSet {
        PcrSet(self.0 & !PcrSet::default().with(pcr).0)
    }

    /// Whether `pcr` is a member.
    pub fn contains(self, pcr: u8) -> bool {
        !PcrSet::default().with(pcr).is_empty() && self.with(pcr) == self
    }

    /// The members in ascending order: the order in which a TPM hashes them.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..PcrSet::COUNT).filter(move |pcr| self.0 >> pcr & 1 == 1)
    }

    /// Whether there is no member.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// As the TPM's bitmap: register 0 is the lowest bit of the first byte.
    pub fn select(self) -> [u8; 3] {
        let [a, b, c, _] = self.0.to_le_bytes();
        [a, b, c]
    }

    /// From a bitmap; `None` if it names a register above 23.
    pub fn from_select(select: &[u8]) -> Option<PcrSet> {
        let bits = select.iter().enumerate().try_fold(0u32, |bits, (i, byte)| {
            let shift = u32::try_from(i * 8).ok()?;
            if *byte == 0 { Some(bits) } else { Some(bits | u32::from(*byte).checked_shl(shift)?) }
        })?;
        (bits >> PcrSet::COUNT == 0).then_some(PcrSet(bits))
    }
}

impl FromIterator<u8> for PcrSet {
    fn from_iter<I: IntoIterator<Item = u8>>(pcrs: I) -> PcrSet {
        pcrs.into_iter().fold(PcrSet::default(), PcrSet::with)
    }
}

/// `TPMS_CLOCK_INFO`: the TPM's own time and how often it was restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ClockInfo {
    /// Milliseconds that the TPM has been powered, over its whole life.
    pub clock_ms: u64,
    /// Resets: power-ups that did not resume a saved state.
    pub reset_count: u32,
    /// Resumptions since the last reset.
    pub restart_count: u32,
    /// Whether no higher clock value was ever reported before.
    pub safe: bool,
}

/// One bank of a quote's PCR selection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// `TPM_ALG_ID` of the bank.
    pub bank: u16,
    /// The registers; `None` if the bitmap names one that no PC client's TPM has.
    pub pcrs: Option<PcrSet>,
}

/// The fields of `TPMS_ATTEST` that every attestation has; the body is read by
/// [`Attest::quote_body`] once the type is known.
#[derive(Clone, Copy, Debug)]
pub struct Attest<'a> {
    /// `TPM_GENERATED_VALUE` if the TPM made this.
    pub magic: u32,
    /// What is attested.
    pub kind: u16,
    /// The signing key's qualified name.
    pub qualified_signer: &'a [u8],
    /// What the challenger supplied.
    pub extra_data: &'a [u8],
    /// The TPM's time.
    pub clock: ClockInfo,
    /// The TPM's firmware version.
    pub firmware: u64,
    body: Reader<'a>,
}

/// `TPMS_QUOTE_INFO`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuoteBody<'a> {
    /// Which registers of which banks were quoted.
    pub selections: Vec<Selection>,
    /// The digest over their values.
    pub pcr_digest: &'a [u8],
}

impl<'a> Attest<'a> {
    /// Reads the fixed part.
    pub fn parse(bytes: &'a [u8]) -> Result<Attest<'a>, Broken> {
        let mut r = Reader::new(bytes);
        Ok(Attest {
            magic: r.u32("magic")?,
            kind: r.u16("type")?,
            qualified_signer: r.sized("qualifiedSigner")?,
            extra_data: r.sized("extraData")?,
            clock: ClockInfo {
                clock_ms: r.u64("clock")?,
                reset_count: r.u32("resetCount")?,
                restart_count: r.u32("restartCount")?,
                safe: match r.u8("safe")? {
                    0 => false,
                    1 => true,
                    _ => return Err(Broken("safe")),
                },
            },
            firmware: r.u64("firmwareVersion")?,
            body: r,
        })
    }

    /// Reads the part that a quote has, to the last byte.
    pub fn quote_body(&self) -> Result<QuoteBody<'a>, Broken> {
        let mut r = self.body;
        let count = r.u32("pcrSelect")?;
        if count > MAX_SELECTIONS {
            return Err(Broken("pcrSelect"));
        }
        let selections = (0..count)
            .map(|_| {
                let bank = r.u16("pcrSelect.hash")?;
                let len = r.u8("pcrSelect.sizeofSelect")?;
                if len > MAX_SELECT_BYTES {
                    return Err(Broken("pcrSelect.sizeofSelect"));
                }
                let select = r.bytes(usize::from(len), "pcrSelect.select")?;
                Ok(Selection { bank, pcrs: PcrSet::from_select(select) })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let pcr_digest = r.sized("pcrDigest")?;
        r.end("the end of the quote")?;
        Ok(QuoteBody { selections, pcr_digest })
    }
}

/// An attestation key's public part, of the one shape that DistOS accepts: a restricted P-256
/// ECDSA signing key that never leaves its TPM, primary in the endorsement hierarchy.
#[derive(Clone)]
pub struct AttestationKey {
    public: Vec<u8>,
    key: ParsedPublicKey,
}

impl AttestationKey {
    /// From a `TPMT_PUBLIC` structure, whose every field is checked.
    pub fn from_public(public: &[u8]) -> Result<AttestationKey, Broken> {
        let point = point_of(public, &key_template(), "the key's type, attributes and scheme")?;
        let key = ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
            .map_err(|_| Broken("the key's point"))?;
        Ok(AttestationKey { public: public.to_vec(), key })
    }

    /// The `TPMT_PUBLIC` structure.
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// The key's TPM name: the hash algorithm, then the hash of the public part.
    pub fn name(&self) -> [u8; 34] {
        name_of(Sha256::digest(&self.public).into())
    }

    /// The name that includes the hierarchy under which the key is primary.
    pub fn qualified_name(&self) -> [u8; 34] {
        qualified_name(HIERARCHY_ENDORSEMENT, &self.name())
    }

    fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), Refusal> {
        let signature = parse_signature(signature).map_err(Refusal::Malformed)?;
        let signature = signature.ok_or(Refusal::Signature)?;
        self.key.verify_sig(message, &signature).map_err(|_| Refusal::Signature)
    }
}

impl fmt::Debug for AttestationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AttestationKey({})", hex::encode(self.name()))
    }
}

/// The point (SEC 1, uncompressed) of a `TPMT_PUBLIC` that begins like `wanted`, which is to be `what`, and ends with it.
pub(crate) fn point_of(
    public: &[u8],
    wanted: &[u8],
    what: &'static str,
) -> Result<[u8; 65], Broken> {
    let mut r = Reader::new(public);
    if r.bytes(wanted.len(), what)? != wanted {
        return Err(Broken(what));
    }
    let (x, y) = (scalar(r.sized("x")?, "x")?, scalar(r.sized("y")?, "y")?);
    r.end("the end of the key")?;
    let mut point = [4u8; 65];
    point[1..33].copy_from_slice(&x);
    point[33..].copy_from_slice(&y);
    Ok(point)
}

/// `TPMT_PUBLIC` up to its point: what makes an attestation key one. Equal bytes here and the same
/// seed in the TPM give the same key at every boot.
pub fn key_template() -> Vec<u8> {
    Writer::default()
        .u16(ALG_ECC)
        .u16(ALG_SHA256)
        .u32(AK_ATTRIBUTES)
        .sized(&[])
        .u16(ALG_NULL)
        .u16(ALG_ECDSA)
        .u16(ALG_SHA256)
        .u16(CURVE_P256)
        .u16(ALG_NULL)
        .done()
}

/// A TPM name: the hash algorithm, then the hash.
pub(crate) fn name_of(digest: [u8; 32]) -> [u8; 34] {
    let mut name = [0u8; 34];
    name[..2].copy_from_slice(&ALG_SHA256.to_be_bytes());
    name[2..].copy_from_slice(&digest);
    name
}

/// The qualified name of a primary key (TPM 2.0 Library, Part 1, 16): the hash of its hierarchy's
/// handle and its own name.
fn qualified_name(hierarchy: u32, name: &[u8]) -> [u8; 34] {
    name_of(
        Sha256::new().chain_update(hierarchy.to_be_bytes()).chain_update(name).finalize().into(),
    )
}

/// A number that the TPM may have written without its leading zeros.
fn scalar(bytes: &[u8], field: &'static str) -> Result<[u8; 32], Broken> {
    let mut whole = [0u8; 32];
    let start = whole.len().checked_sub(bytes.len()).ok_or(Broken(field))?;
    whole[start..].copy_from_slice(bytes);
    Ok(whole)
}

/// Reads a `TPMT_SIGNATURE`: r and s; `None` if it is of another scheme.
fn parse_signature(bytes: &[u8]) -> Result<Option<[u8; 64]>, Broken> {
    let mut reader = Reader::new(bytes);
    let scheme = (reader.u16("signature.sigAlg")?, reader.u16("signature.hash")?);
    if scheme != (ALG_ECDSA, ALG_SHA256) {
        return Ok(None);
    }
    let r = scalar(reader.sized("signature.r")?, "signature.r")?;
    let s = scalar(reader.sized("signature.s")?, "signature.s")?;
    reader.end("the end of the signature")?;
    let mut both = [0; 64];
    both[..32].copy_from_slice(&r);
    both[32..].copy_from_slice(&s);
    Ok(Some(both))
}

/// Which registers a quote must cover, and what each must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    references: Pcrs,
}

impl Policy {
    /// Every register of `references` is quoted and compared; without one, nothing is accepted.
    pub fn new(references: Pcrs) -> Policy {
        Policy { references }
    }

    /// The registers that a quote must cover, no more and no fewer.
    pub fn pcrs(&self) -> PcrSet {
        self.references.keys().copied().collect()
    }
}

/// How a quote relates to the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Continuity {
    /// There is none before it.
    First,
    /// The TPM was neither reset nor resumed since.
    SameBoot,
    /// The TPM was reset or resumed since. The registers were appraised from nothing, as they are
    /// for every quote.
    NewBoot,
}

/// A quote that is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appraised {
    /// The TPM's time when it signed.
    pub clock: ClockInfo,
    /// The digest over the selected registers.
    pub pcr_digest: [u8; 32],
    /// The registers that it covers.
    pub pcrs: PcrSet,
    /// How it relates to the one before it.
    pub continuity: Continuity,
}

/// Why evidence is refused: the first check that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Bytes that are no quote or no signature.
    #[error("the evidence is {0}")]
    Malformed(#[from] Broken),
    /// Not signed by the enrolled key.
    #[error(
        "the quote is not signed by the enrolled attestation key: the TPM, or the state of the software TPM, is another"
    )]
    Signature,
    /// Signed, but not made inside a TPM.
    #[error("the signed structure was not made by a TPM (magic {0:#010x})")]
    Magic(u32),
    /// Another kind of attestation.
    #[error("the signed structure is not a quote (type {0:#06x})")]
    Type(u16),
    /// A key of the same point, but in another place of the TPM.
    #[error("the signer's qualified name is not the enrolled key's")]
    QualifiedSigner,
    /// Not an answer to this challenge; also if it is one that was padded or cut.
    #[error("the quote does not answer this challenge: a replay, or a padded or cut nonce")]
    Nonce,
    /// Not exactly the registers that the policy names.
    #[error("the quote does not cover exactly the SHA-256 registers that the policy names")]
    Selection,
    /// The register values that came along are not those quoted.
    #[error("the quoted digest is not that of the register values")]
    Digest,
    /// The TPM's clock is behind an earlier quote of the same boot.
    #[error("the TPM's clock went back from {was_ms} to {is_ms} ms")]
    Clock {
        /// In the earlier quote.
        was_ms: u64,
        /// In this one.
        is_ms: u64,
    },
    /// The TPM counts fewer resets or resumptions than before: its state was put back.
    #[error("the TPM's reset or restart count went back: an older state of it was put back")]
    Counters,
    /// A register does not hold its reference value.
    #[error("PCR {pcr} holds {found}, not the reference value {wanted}")]
    Reference {
        /// The register.
        pcr: u8,
        /// What it holds, hexadecimal.
        found: String,
        /// What it should hold.
        wanted: String,
    },
    /// The policy names no reference value: nothing may be concluded.
    #[error("the policy has no reference values")]
    NoReferences,
}

/// Appraises a quote: each check in a fixed order, the first failure is the answer.
///
/// `quote` is the `TPMS_ATTEST` as signed, `signature` the `TPMT_SIGNATURE`, `nonce` the
/// challenge that the TPM was given, `pcrs` the register values that came with the quote and
/// `previous` the clock of the last good quote.
pub fn appraise(
    policy: &Policy,
    enrolled: &AttestationKey,
    nonce: &[u8; 32],
    quote: &[u8],
    signature: &[u8],
    pcrs: &Pcrs,
    previous: Option<ClockInfo>,
) -> Result<Appraised, Refusal> {
    enrolled.verify(quote, signature)?;
    appraise_signed(policy, &enrolled.qualified_name(), nonce, quote, pcrs, previous)
}

/// What follows the signature check.
fn appraise_signed(
    policy: &Policy,
    qualified_signer: &[u8],
    nonce: &[u8],
    quote: &[u8],
    pcrs: &Pcrs,
    previous: Option<ClockInfo>,
) -> Result<Appraised, Refusal> {
    let attest = Attest::parse(quote)?;
    if attest.magic != GENERATED {
        return Err(Refusal::Magic(attest.magic));
    }
    if attest.kind != ATTEST_QUOTE {
        return Err(Refusal::Type(attest.kind));
    }
    if attest.qualified_signer != qualified_signer {
        return Err(Refusal::QualifiedSigner);
    }
    // Slices are equal only if their lengths are: a nonce with bytes appended, or cut to a prefix,
    // is another nonce.
    if attest.extra_data != nonce {
        return Err(Refusal::Nonce);
    }
    let body = attest.quote_body()?;
    check_selection(policy, &body)?;
    let pcr_digest = check_digest(policy, &body, pcrs)?;
    let continuity = check_clock(attest.clock, previous)?;
    check_references(policy, pcrs)?;
    Ok(Appraised { clock: attest.clock, pcr_digest, pcrs: policy.pcrs(), continuity })
}

fn check_selection(policy: &Policy, body: &QuoteBody<'_>) -> Result<(), Refusal> {
    match body.selections.as_slice() {
        [one] if one.bank == ALG_SHA256 && one.pcrs == Some(policy.pcrs()) => Ok(()),
        _ => Err(Refusal::Selection),
    }
}

fn check_digest(policy: &Policy, body: &QuoteBody<'_>, pcrs: &Pcrs) -> Result<[u8; 32], Refusal> {
    if pcrs.keys().copied().ne(policy.references.keys().copied()) {
        return Err(Refusal::Digest);
    }
    let digest = pcr_digest(pcrs.values());
    if body.pcr_digest == digest { Ok(digest) } else { Err(Refusal::Digest) }
}

/// The digest that a quote with SHA-256 covers: over the values in ascending order of registers.
pub fn pcr_digest<T: AsRef<[u8]>>(values: impl IntoIterator<Item = T>) -> [u8; 32] {
    values.into_iter().fold(Sha256::new(), |hash, value| hash.chain_update(value)).finalize().into()
}

/// Within one boot the clock only advances. After a reset it may be behind (the TPM saves it now
/// and then), but the reset count never is.
fn check_clock(now: ClockInfo, previous: Option<ClockInfo>) -> Result<Continuity, Refusal> {
    let Some(was) = previous else {
        return Ok(Continuity::First);
    };
    let boots = |c: ClockInfo| (c.reset_count, c.restart_count);
    match boots(now).cmp(&boots(was)) {
        std::cmp::Ordering::Less => Err(Refusal::Counters),
        std::cmp::Ordering::Greater => Ok(Continuity::NewBoot),
        std::cmp::Ordering::Equal if now.clock_ms < was.clock_ms => {
            Err(Refusal::Clock { was_ms: was.clock_ms, is_ms: now.clock_ms })
        }
        std::cmp::Ordering::Equal => Ok(Continuity::SameBoot),
    }
}

fn check_references(policy: &Policy, pcrs: &Pcrs) -> Result<(), Refusal> {
    if policy.references.is_empty() {
        return Err(Refusal::NoReferences);
    }
    for (pcr, wanted) in &policy.references {
        match pcrs.get(pcr) {
            Some(found) if found == wanted => {}
            found => {
                return Err(Refusal::Reference {
                    pcr: *pcr,
                    found: found.map_or_else(|| "nothing".to_owned(), hex::encode),
                    wanted: hex::encode(wanted),
                });
            }
        }
    }
    Ok(())
}

/// What a register that was zero holds after `digest` is extended into it.
pub fn extended_once(digest: &[u8; 32]) -> [u8; 32] {
    Sha256::new().chain_update([0u8; 32]).chain_update(digest).finalize().into()
}

#[cfg(test)]
#[path = "evidence_tests.rs"]
pub(crate) mod tests;
