//! One attestation from end to end: measure the image, ask the TPM, appraise, remember. Blocking.

use std::io::{Read, Write};
use std::path::Path;

use distos_abi::{Fault, HolderKey, NodeId};
use distos_evidence::credential::EndorsementKey;
use distos_evidence::evidence::{
    Appraised, AttestationKey, ClockInfo, PcrSet, Pcrs, Policy, Refusal, appraise, extended_once,
};
use distos_rpc::record::Record;
use serde::{Deserialize, Serialize};

use crate::TRACE;

use distos_evidence::joining::{IMAGE_PCR, Request, Sealed, qualifying};

use crate::tpm::{Endorsement, Evidence, Tpm};

/// What this node's TPM was seen to be the first time: the key it quotes with, and the registers'
/// values. **Trust on first use**: who controls the machine at that moment decides what counts
/// as good from then on. What it shows is that nothing has changed since.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Enrolment {
    /// `TPMT_PUBLIC` of the attestation key, hexadecimal.
    ak_public: String,
    /// Reference values by register, hexadecimal; the image's register is not among them.
    references: std::collections::BTreeMap<u8, String>,
    /// Unix milliseconds.
    enrolled_ms: u64,
}

impl Enrolment {
    fn of(evidence: &Evidence, enrolled_ms: u64) -> Enrolment {
        let golden = evidence.pcrs.iter().filter(|(pcr, _)| **pcr != IMAGE_PCR);
        Enrolment {
            ak_public: hex::encode(&evidence.ak_public),
            references: golden.map(|(pcr, value)| (*pcr, hex::encode(value))).collect(),
            enrolled_ms,
        }
    }

    fn key(&self) -> Result<AttestationKey, Fault> {
        let public = hex::decode(&self.ak_public)
            .map_err(|_| Fault::Corrupt("the enrolment's key is not hexadecimal".into()))?;
        AttestationKey::from_public(&public)
            .map_err(|broken| Fault::Corrupt(format!("the enrolled key is {broken}")))
    }

    fn policy(&self, image_hash: &[u8; 32]) -> Result<Policy, Fault> {
        let mut references = Pcrs::from([(IMAGE_PCR, extended_once(image_hash))]);
        for (pcr, value) in &self.references {
            let mut bytes = [0u8; 32];
            hex::decode_to_slice(value, &mut bytes)
                .map_err(|_| Fault::Corrupt(format!("the enrolment's value of PCR {pcr}")))?;
            references.insert(*pcr, bytes);
        }
        Ok(Policy::new(references))
    }
}

/// What came of one attestation.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// What appraisal said, and how long the quote took.
    pub(crate) result: Result<(Appraised, u64), Refusal>,
    /// TPM name of the enrolled key.
    pub(crate) ak_name: [u8; 34],
    /// Whether this attestation enrolled the TPM.
    pub(crate) enrolled_now: bool,
}

/// The TPM, and what is remembered about it.
#[derive(Debug)]
pub(crate) struct Attester<T> {
    pub(crate) tpm: Tpm<T>,
    enrolment_file: Record,
    clock_file: Record,
    image_hash: [u8; 32],
    pcrs: PcrSet,
    measured: bool,
}

impl<T: Read + Write> Attester<T> {
    /// Speaks to nobody yet. `dir` is the service's own directory, `pcrs` the registers that are
    /// quoted besides the image's.
    pub(crate) fn new(tpm: Tpm<T>, dir: &Path, image_hash: [u8; 32], pcrs: PcrSet) -> Attester<T> {
        const REMEDY: &str =
            "restore it from a backup, or remove it to trust what the TPM says next";
        let record = |name| Record::new(dir.join(name), "distos-attestation", REMEDY);
        Attester {
            tpm,
            enrolment_file: record("enrolment"),
            clock_file: record("clock"),
            image_hash,
            pcrs: pcrs.with(IMAGE_PCR),
            measured: false,
        }
    }

    /// Takes and appraises a quote that answers `qualifying`. A fault means that there is no
    /// evidence: the TPM does not answer, or what is remembered can't be read or written.
    pub(crate) fn attest(&mut self, qualifying: &[u8; 32], now_ms: u64) -> Result<Outcome, Fault> {
        self.measure_image(now_ms)?;
        let known: Option<Enrolment> = self.enrolment_file.load()?;
        // Another TPM's clock says nothing about the one that is enrolled now.
        let previous: Option<ClockInfo> =
            if known.is_some() { self.clock_file.load()? } else { None };
        let evidence = self.tpm.evidence(qualifying, self.pcrs)?;
        let enrolled_now = known.is_none();
        let enrolment = known.unwrap_or_else(|| Enrolment::of(&evidence, now_ms));
        let key = enrolment.key()?;
        let policy = enrolment.policy(&self.image_hash)?;
        if policy.pcrs() != self.pcrs {
            return Err(Fault::StaleAttestation(format!(
                "this TPM was enrolled with other registers than the image names: remove {} to enrol it anew",
                self.enrolment_file.path().display()
            )));
        }
        let Evidence { quote, signature, pcrs, quote_micros, .. } = evidence;
        let result = appraise(&policy, &key, qualifying, &quote, &signature, &pcrs, previous);
        if let Ok(appraised) = &result {
            if enrolled_now {
                self.enrolment_file.save(&enrolment)?;
            }
            self.clock_file.save(&appraised.clock)?;
        }
        let result = result.map(|appraised| (appraised, quote_micros));
        Ok(Outcome { result, ak_name: key.name(), enrolled_now })
    }

    /// The TPM's endorsement key, and `TPMT_PUBLIC` of the key that it quotes with.
    pub(crate) fn identity(&mut self, now_ms: u64) -> Result<(Endorsement, Vec<u8>), Fault> {
        self.measure_image(now_ms)?;
        Ok((self.tpm.endorsement()?, self.tpm.attestation()?))
    }

    /// What `node` presents to whoever may invite it, and made `nonce` for it.
    pub(crate) fn present(
        &mut self,
        node: NodeId,
        key: HolderKey,
        inviter: NodeId,
        nonce: [u8; 32],
        now_ms: u64,
    ) -> Result<Request, Fault> {
        self.measure_image(now_ms)?;
        let Endorsement { public: ek, certificate } = self.tpm.endorsement()?;
        let name = EndorsementKey::from_public(&ek)
            .map_err(|broken| Fault::internal(format!("the TPM's endorsement key is {broken}")))?;
        let answers = qualifying(inviter, node, key, &name.name(), &nonce);
        let Evidence { ak_public, quote, signature, pcrs, .. } =
            self.tpm.evidence(&answers, self.pcrs)?;
        Ok(Request { node, key, nonce, ek, certificate, ak: ak_public, quote, signature, pcrs })
    }

    /// Opens what was sealed to this TPM.
    ///
    /// # Errors
    /// [`Fault::Unauthenticated`] if it was sealed to another one, or changed.
    pub(crate) fn open(&mut self, sealed: &Sealed) -> Result<String, Fault> {
        self.tpm.startup()?;
        let secret = self.tpm.activate(&sealed.credential)?;
        sealed.open(&secret)
    }

    /// Once in this service's life: a TPM that is reset later loses the measurement and is refused.
    pub(crate) fn measure_image(&mut self, now_ms: u64) -> Result<(), Fault> {
        if !self.measured {
            self.tpm.startup()?;
            if self.tpm.measure_once(IMAGE_PCR, &self.image_hash)? {
                tracing::debug!(target: TRACE, at = now_ms, "boot");
            }
            self.measured = true;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "attester_tests.rs"]
pub(crate) mod tests;
