//! What verifiers ask a running machine, what its collector answers, and how the quote in an answer is examined (A2).
//!
//! ```text
//! verifier                            collector
//!    identity  ------------------------->   endorsement key and its certificate, attestation key
//!    activate: a credential for both  -->   a proof that both are in one TPM, for this verifier alone
//!    measured: from where on          -->   a part of the kernel's list of files, which nothing proves yet
//!    evidence: a nonce, registers     -->   a quote bound to verifier, node, session key and nonce; image, logs
//! ```
//!
//! The first two are asked once: from then on the node is known by these keys (no TPM is taken because it comes first,
//! unless a policy says by name that it puts up with that: then the check [`CHAIN`] was not made). Questions and answers
//! are JSON; all bytes are hexadecimal or, logs, base64.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use distos_abi::{Fault, HolderKey, NodeId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::bank::{Bank, BankValues};
use crate::credential::{Credential, EndorsementKey};
use crate::enrolment::Makers;
use crate::eventlog::OF_BOOT;
use crate::evidence::{
    Appraised, Attest, AttestationKey, ClockInfo, Continuity, PcrSet, Pcrs, Policy, Refusal,
    appraise, extended_once,
};
use crate::findings::Findings;
use crate::joining::IMAGE_PCR;
use crate::nvidia::{GoldenValues, MAX_DEVICES, machine};
use crate::pki::{Anchors, CHAIN};
use crate::quote::{DIGEST, MAGIC, NONCE, QUOTE, SIGNATURE};

/// The longest question, in bytes.
pub const MAX_QUESTION_BYTES: usize = 16_384;
/// The longest answer, in bytes: with both logs in base64.
pub const MAX_ANSWER_BYTES: usize = 1 << 20;
/// The longest log of a boot that goes into an answer, in bytes.
pub const MAX_LOG_BYTES: usize = 256 << 10;
/// How much of the kernel's list goes into an answer, in bytes.
pub const MAX_LIST_BYTES: usize = 256 << 10;

/// Of the check that the quote covers the registers that were asked for, of the SHA-256 bank and no other.
pub const SELECTION: &str = "register selection";
/// Of the check that neither the TPM's clock nor its counters went back.
pub const CLOCK: &str = "clock";
/// Of the check that what was measured is the node's image, and nothing else.
pub const IMAGE: &str = "image";
/// Of the check that the registers of a boot are those that were there before in the same boot.
pub const BOOT: &str = "same boot";
/// Of the check that the keys are those by which the node is known.
pub const ENROLLED: &str = "enrolled keys";

const EVIDENCE: &[u8] = b"distos tpm evidence 2\0";
const ACTIVATED: &[u8] = b"distos tpm activated 2\0";
const DEVICE: &[u8] = b"distos device nonce 2\0";

/// To whom evidence is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// Who asks.
    pub verifier: NodeId,
    /// Who is asked.
    pub node: NodeId,
    /// The key with which the node authenticates the connection over which it answers; of a node that verifies itself, the
    /// kernel's.
    pub key: HolderKey,
    /// What stands for one life of whoever has that key: a hash of what that one has drawn since it was started, never
    /// kept, and tells this verifier alone. A key outlives a reboot; this does not. Of a node that verifies itself, zeros: both
    /// ends are in it, and end with it.
    pub life: [u8; 32],
}

impl Session {
    /// A node's own.
    pub fn own(node: NodeId) -> Session {
        Session { verifier: node, node, key: HolderKey(node.0), life: [0; 32] }
    }

    fn hash(&self, domain: &[u8]) -> Sha256 {
        Sha256::new()
            .chain_update(domain)
            .chain_update(self.verifier.0)
            .chain_update(self.node.0)
            .chain_update(self.key.0)
            .chain_update(self.life)
    }

    /// What the TPM is asked to sign with its registers.
    pub fn qualifying(&self, nonce: &[u8; 32]) -> [u8; 32] {
        self.hash(EVIDENCE).chain_update(nonce).finalize().into()
    }

    /// What the device of that number is asked with, so that no device can show another's answer.
    pub fn device_nonce(&self, nonce: &[u8; 32], number: u32) -> [u8; 32] {
        self.hash(DEVICE).chain_update(nonce).chain_update(number.to_le_bytes()).finalize().into()
    }

    /// What shows that a credential was activated for this session. The secret itself opens invitations: it is never told.
    pub fn activated(&self, secret: &[u8; 32]) -> [u8; 32] {
        self.hash(ACTIVATED).chain_update(secret).finalize().into()
    }
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Which TPM it is.
    Identity,
    /// Whether both keys are in one TPM.
    Activate(Credential),
    /// What the kernel has measured from so many bytes of its list on: what is too long to come with the evidence.
    Measured(u64),
    /// What the machine is.
    Evidence(Wanted),
}

/// Which evidence is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The challenge.
    pub nonce: [u8; 32],
    /// The registers to be quoted.
    pub pcrs: PcrSet,
    /// How many bytes of the kernel's list are known.
    pub listed: u64,
}

/// Which TPM a node says it has. Nothing in it is believed before both keys were shown to be in one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `TPMT_PUBLIC` of the endorsement key.
    pub ek: Vec<u8>,
    /// Its certificate (DER), if there is one.
    pub certificate: Option<Vec<u8>>,
    /// `TPMT_PUBLIC` of the attestation key.
    pub ak: Vec<u8>,
}

/// The evidence of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// BLAKE3 of the image from which the node says that it runs.
    pub image: [u8; 32],
    /// `TPMS_ATTEST`.
    pub quote: Vec<u8>,
    /// `TPMT_SIGNATURE`.
    pub signature: Vec<u8>,
    /// The registers.
    pub pcrs: Pcrs,
    /// How long the TPM took, in microseconds. Nobody's word but the node's.
    pub quote_micros: u64,
    /// The log of the boot, if the image gives the collector one.
    pub log: Option<Vec<u8>>,
    /// The kernel's list of measured files, from where it was asked for; `None` if the image gives the collector none.
    pub list: Option<Vec<u8>>,
    /// Whether there is more of the list than that.
    pub more: bool,
    /// What each GPU answered to its nonce ([`Session::device_nonce`]); `None` if the image gives the collector none.
    pub gpus: Option<Vec<Gpu>>,
}

/// What the driver hands over of one GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// What it is said to be: `HOPPER`.
    pub arch: String,
    /// Its certificates, in PEM.
    pub chain: String,
    /// Request and response, hexadecimal.
    pub report: String,
    /// What the driver says of confidential computing.
    pub mode: String,
    /// Why there is no evidence, or empty.
    pub fault: String,
}

/// Verifies what GPUs answered over this session.
///
/// # Errors
/// There are too many, or a report is not hexadecimal.
pub fn examine_gpus(
    gpus: &[Gpu],
    session: &Session,
    nonce: &[u8; 32],
    anchors: Anchors<'_>,
    golden: &[GoldenValues],
) -> Result<machine::Machine, String> {
    let reports: Result<Vec<Vec<u8>>, _> =
        gpus.iter().map(|gpu| hex::decode(&gpu.report)).collect();
    let reports = reports.map_err(|_| "a report is not hexadecimal".to_owned())?;
    let answers = (0..).zip(gpus).zip(&reports).map(|((number, gpu), report)| machine::Answer {
        arch: &gpu.arch,
        chain: gpu.chain.as_bytes(),
        report,
        mode: &gpu.mode,
        fault: &gpu.fault,
        nonce: session.device_nonce(nonce, number),
    });
    machine::verify_live(&answers.collect::<Vec<_>>(), anchors, golden)
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
enum QuestionText {
    Identity {},
    Activate { blob: String, secret: String },
    Measured { listed: u64 },
    Evidence { nonce: String, pcrs: Vec<u8>, listed: u64 },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct IdentityText {
    ek: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    certificate: Option<String>,
    ak: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BundleText {
    image: String,
    quote: String,
    signature: String,
    pcrs: BTreeMap<u8, String>,
    quote_micros: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    log: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    list: Option<String>,
    more: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gpus: Option<Vec<Gpu>>,
}

fn parse<T: DeserializeOwned>(bytes: &[u8], most: usize, what: &str) -> Result<T, Fault> {
    if bytes.len() > most {
        return Err(Fault::malformed(format!("{what} has {most} bytes at most")));
    }
    serde_json::from_slice(bytes).map_err(|e| Fault::malformed(format!("this is no {what}: {e}")))
}

fn unhex(text: &str, what: &str) -> Result<Vec<u8>, Fault> {
    hex::decode(text).map_err(|_| Fault::malformed(format!("{what} is not hexadecimal")))
}

fn array<const N: usize>(text: &str, what: &str) -> Result<[u8; N], Fault> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes)
        .map_err(|_| Fault::malformed(format!("{what} is not {} hexadecimal digits", 2 * N)))?;
    Ok(bytes)
}

fn unbase64(text: String, most: usize, what: &str) -> Result<Vec<u8>, Fault> {
    let bytes = STANDARD.decode(text).ok().filter(|bytes| bytes.len() <= most);
    bytes.ok_or_else(|| Fault::malformed(format!("{what} is not base64, or too long")))
}

impl Question {
    /// Reads a question. [`Fault::Malformed`] says what is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Question, Fault> {
        Ok(match parse(bytes, MAX_QUESTION_BYTES, "question")? {
            QuestionText::Identity {} => Question::Identity,
            QuestionText::Activate { blob, secret } => {
                let (blob, secret) = (unhex(&blob, "the blob")?, unhex(&secret, "the secret")?);
                let credential = Credential::parse(&blob, &secret)
                    .map_err(|e| Fault::malformed(format!("the credential is {e}")))?;
                Question::Activate(credential)
            }
            QuestionText::Measured { listed } => Question::Measured(listed),
            QuestionText::Evidence { nonce, pcrs, listed } => {
                let set: PcrSet = pcrs.iter().copied().collect();
                if set.is_empty() || !pcrs.iter().all(|pcr| set.contains(*pcr)) {
                    return Err(Fault::malformed("registers have numbers from 0 to 23"));
                }
                Question::Evidence(Wanted { nonce: array(&nonce, "the nonce")?, pcrs: set, listed })
            }
        })
    }

    /// The question as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let text = match self {
            Question::Identity => QuestionText::Identity {},
            Question::Activate(credential) => QuestionText::Activate {
                blob: hex::encode(credential.blob()),
                secret: hex::encode(credential.secret()),
            },
            Question::Measured(listed) => QuestionText::Measured { listed: *listed },
            Question::Evidence(Wanted { nonce, pcrs, listed }) => QuestionText::Evidence {
                nonce: hex::encode(nonce),
                pcrs: pcrs.iter().collect(),
                listed: *listed,
            },
        };
        serde_json::to_vec(&text).expect("texts and numbers are JSON")
    }
}

impl Identity {
    /// Reads an answer. [`Fault::Malformed`] says what is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Identity, Fault> {
        let text: IdentityText = parse(bytes, MAX_QUESTION_BYTES, "TPM's identity")?;
        Ok(Identity {
            ek: unhex(&text.ek, "the endorsement key")?,
            certificate: text.certificate.map(|one| unhex(&one, "its certificate")).transpose()?,
            ak: unhex(&text.ak, "the attestation key")?,
        })
    }

    /// The answer as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let text = IdentityText {
            ek: hex::encode(&self.ek),
            certificate: self.certificate.as_ref().map(hex::encode),
            ak: hex::encode(&self.ak),
        };
        serde_json::to_vec(&text).expect("texts are JSON")
    }
}

impl Bundle {
    /// Reads an answer. [`Fault::Malformed`] says what is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Bundle, Fault> {
        let text: BundleText = parse(bytes, MAX_ANSWER_BYTES, "evidence")?;
        let value = |(pcr, value): (u8, String)| Ok((pcr, array(&value, "a register")?));
        let log = text.log.map(|log| unbase64(log, MAX_LOG_BYTES, "the log of the boot"));
        let list = text.list.map(|list| unbase64(list, MAX_LIST_BYTES, "the list of files"));
        Ok(Bundle {
            image: array(&text.image, "the image")?,
            quote: unhex(&text.quote, "the quote")?,
            signature: unhex(&text.signature, "the signature")?,
            pcrs: text.pcrs.into_iter().map(value).collect::<Result<_, Fault>>()?,
            quote_micros: text.quote_micros,
            log: log.transpose()?,
            list: list.transpose()?,
            more: text.more,
            gpus: match text.gpus {
                Some(gpus) if gpus.len() > MAX_DEVICES => {
                    return Err(Fault::malformed(format!("a node has {MAX_DEVICES} GPUs at most")));
                }
                gpus => gpus,
            },
        })
    }

    /// The answer as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let text = BundleText {
            image: hex::encode(self.image),
            quote: hex::encode(&self.quote),
            signature: hex::encode(&self.signature),
            pcrs: self.pcrs.iter().map(|(pcr, value)| (*pcr, hex::encode(value))).collect(),
            quote_micros: self.quote_micros,
            log: self.log.as_ref().map(|log| STANDARD.encode(log)),
            list: self.list.as_ref().map(|list| STANDARD.encode(list)),
            more: self.more,
            gpus: self.gpus.clone(),
        };
        serde_json::to_vec(&text).expect("texts and numbers are JSON")
    }
}

/// What the last good quote of a node said: the next is held against it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Baseline {
    /// The TPM's clock and counters.
    pub clock: ClockInfo,
    /// The registers, hexadecimal.
    pcrs: BTreeMap<u8, String>,
}

/// What is expected of a quote.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The key by which the node is known.
    pub key: &'a AttestationKey,
    /// What the TPM was to be asked with ([`Session::qualifying`]).
    pub qualifying: &'a [u8; 32],
    /// The registers that were asked for.
    pub pcrs: PcrSet,
    /// What the last good quote said.
    pub baseline: Option<&'a Baseline>,
}

/// Examines a quote: each check in a fixed order, none after one that fails. Claims: `image`, `reset-count`,
/// `restart-count`, `firmware-version`, `pcr-bank`, `pcrs`. Returns what was found, and of a quote that is good what the next is to
/// be held against.
pub fn examine(
    bundle: &Bundle,
    expected: Expected<'_>,
    findings: &mut Findings,
) -> Option<(Appraised, Baseline)> {
    let Expected { key, qualifying, pcrs, baseline } = expected;
    // Of registers for which no value is demanded the policy sees what they hold.
    let zero = [0; 32];
    let hold = |pcr: u8| *bundle.pcrs.get(&pcr).unwrap_or(&zero);
    let mut references: Pcrs = pcrs.iter().map(|pcr| (pcr, hold(pcr))).collect();
    references.insert(IMAGE_PCR, extended_once(&bundle.image));
    let Bundle { quote, signature, pcrs: values, .. } = bundle;
    let clock = baseline.map(|known| known.clock);
    let policy = Policy::new(references);
    let appraised = appraise(&policy, key, qualifying, quote, signature, values, clock);
    let order = [SIGNATURE, MAGIC, QUOTE, NONCE, SELECTION, DIGEST, CLOCK, IMAGE];
    let failed = appraised.as_ref().err().map(name_of);
    for name in order.into_iter().take_while(|name| Some(*name) != failed) {
        findings.passed(name, "");
    }
    let appraised = match appraised {
        Ok(appraised) => appraised,
        Err(refusal) => {
            findings.failed(name_of(&refusal), refusal);
            return None;
        }
    };
    if let Some(known) = baseline.filter(|_| appraised.continuity == Continuity::SameBoot) {
        let changed = OF_BOOT.iter().find(|pcr| match (known.pcrs.get(pcr), values.get(pcr)) {
            (Some(was), Some(is)) => *was != hex::encode(is),
            // One that was not asked for before says nothing.
            _ => false,
        });
        if let Some(pcr) = changed {
            findings.failed(BOOT, format!("PCR {pcr} was extended since this boot was first seen"));
            return None;
        }
        findings.passed(BOOT, "no register of the boot was extended");
    } else {
        findings.passed(BOOT, "the first evidence of this boot");
    }
    let read = Attest::parse(quote).ok()?;
    findings.claim("image", hex::encode(bundle.image));
    findings.claim("reset-count", appraised.clock.reset_count);
    findings.claim("restart-count", appraised.clock.restart_count);
    findings.claim("firmware-version", format!("{:016x}", read.firmware));
    findings.claim("pcr-bank", Bank::Sha256.to_string());
    let shown = values.iter().map(|(pcr, value)| (*pcr, hex::encode(value)));
    let pcrs: BTreeMap<u8, String> = shown.collect();
    let told = pcrs.iter().map(|(pcr, value)| format!("{pcr}:{value}"));
    findings.claim("pcrs", told.collect::<std::collections::BTreeSet<_>>());
    Some((appraised, Baseline { clock: appraised.clock, pcrs }))
}

/// Holds the endorsement key by which a node is known against makers' roots: the check [`ENROLLED`], and those of the
/// certificate. Claim: `tpm`, with what [`Makers::verify`] says.
pub fn endorse(
    ek: &EndorsementKey,
    certificate: Option<&[u8]>,
    makers: &Makers,
    at_s: u64,
    findings: &mut Findings,
) {
    findings.passed(ENROLLED, hex::encode(ek.name()));
    match certificate {
        Some(certificate) if !makers.is_empty() => {
            makers.verify(certificate, ek, at_s, findings);
        }
        Some(_) => findings.not_checked(CHAIN, "no root of a TPM's maker is pinned"),
        None => findings.not_checked(CHAIN, "the TPM has no certificate of its maker"),
    }
}

/// The SHA-256 registers that only the boot extends, for a log of it.
pub fn booted(pcrs: &Pcrs) -> BankValues {
    let booted: Pcrs = pcrs
        .iter()
        .filter(|(pcr, _)| OF_BOOT.contains(pcr))
        .map(|(pcr, value)| (*pcr, *value))
        .collect();
    BankValues::from(&booted)
}

fn name_of(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::Signature => SIGNATURE,
        Refusal::Malformed(_) | Refusal::Magic(_) => MAGIC,
        Refusal::Type(_) => QUOTE,
        Refusal::QualifiedSigner => SIGNATURE,
        Refusal::Nonce => NONCE,
        Refusal::Selection => SELECTION,
        Refusal::Digest => DIGEST,
        Refusal::Clock { .. } | Refusal::Counters => CLOCK,
        Refusal::Reference { .. } | Refusal::NoReferences => IMAGE,
    }
}

#[cfg(test)]
#[path = "live_tests.rs"]
mod tests;
