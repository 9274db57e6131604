//! The collector: what this node's machine says of itself, from its TPM and its logs. Blocking. It judges nothing.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use distos_abi::{Fault, HolderKey, NodeId};
use distos_evidence::credential::EndorsementKey;
use distos_evidence::devices::{DEVICES_PCR, Numbers, digest};
use distos_evidence::evidence::PcrSet;
use distos_evidence::joining::{IMAGE_PCR, Request, Sealed, qualifying};
use distos_evidence::live::{
    Bundle, Identity, MAX_LIST_BYTES, MAX_LOG_BYTES, Question, Session, Wanted,
};

use crate::TRACE;
use crate::tpm::{Endorsement, Evidence, Tpm, TpmError};

/// A log that the image gives the collector, opened once and read from where it is asked for.
#[derive(Debug)]
pub(crate) struct Log(File);

impl From<OwnedFd> for Log {
    fn from(fd: OwnedFd) -> Log {
        Log(File::from(fd))
    }
}

impl Log {
    /// At most `most` bytes from there on, and whether there are more.
    fn read(&self, start: u64, most: usize) -> Result<(Vec<u8>, bool), Fault> {
        let failed = |e| Fault::unavailable(5_000, format!("a log cannot be read: {e}"));
        let mut bytes = vec![0; most.saturating_add(1)];
        let mut len = 0;
        // The kernel gives its logs in parts.
        while len < bytes.len() {
            let at = start.saturating_add(len as u64);
            match self.0.read_at(&mut bytes[len..], at) {
                Ok(0) => break,
                Ok(read) => len += read,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(failed(e)),
            }
        }
        bytes.truncate(len.min(most));
        Ok((bytes, len > most))
    }
}

/// The logs of this machine, as far as the image gives them.
#[derive(Debug, Default)]
pub(crate) struct Logs {
    /// Of the measured boot (TCG).
    pub(crate) boot: Option<Log>,
    /// Of the files that the kernel has measured (IMA).
    pub(crate) files: Option<Log>,
}

/// The TPM, and what else this machine has to say.
#[derive(Debug)]
pub(crate) struct Collector<T> {
    pub(crate) tpm: Tpm<T>,
    image_hash: [u8; 32],
    /// The registers that are quoted when a node wants to join.
    pcrs: PcrSet,
    logs: Logs,
    measured: bool,
}

impl<T: Read + Write> Collector<T> {
    /// Speaks to nobody yet.
    pub(crate) fn new(tpm: Tpm<T>, image_hash: [u8; 32], pcrs: PcrSet, logs: Logs) -> Collector<T> {
        Collector { tpm, image_hash, pcrs: pcrs.with(IMAGE_PCR), logs, measured: false }
    }

    /// Answers a verifier, over the session in which it asks; of GPUs it knows nothing. A fault means that there is no
    /// evidence.
    pub(crate) fn answer(
        &mut self,
        question: &Question,
        session: Session,
        now_ms: u64,
    ) -> Result<Vec<u8>, Fault> {
        match question {
            Question::Identity => Ok(self.identity(now_ms)?.to_bytes()),
            Question::Activate(credential) => {
                self.tpm.startup()?;
                match self.tpm.activate(credential) {
                    Ok(secret) => Ok(session.activated(&secret).to_vec()),
                    // In the answer: a fault may as well be of the way to here.
                    Err(TpmError::Another) => Ok(Vec::new()),
                    Err(error) => Err(error.into()),
                }
            }
            Question::Measured(listed) => match &self.logs.files {
                Some(list) => Ok(list.read(*listed, MAX_LIST_BYTES)?.0),
                None => Err(Fault::not_found("the image gives the collector no such list")),
            },
            Question::Evidence(wanted) => Ok(self.evidence(*wanted, session, now_ms)?.to_bytes()),
        }
    }

    /// What the machine is, for one challenge.
    pub(crate) fn evidence(
        &mut self,
        wanted: Wanted,
        session: Session,
        now_ms: u64,
    ) -> Result<Bundle, Fault> {
        self.measure_image(now_ms)?;
        let qualifying = session.qualifying(&wanted.nonce);
        let Evidence { quote, signature, pcrs, quote_micros, .. } =
            self.tpm.evidence(&qualifying, wanted.pcrs)?;
        // After the quote: what it covers is in the logs by then.
        let log = match &self.logs.boot {
            None => None,
            Some(log) => match log.read(0, MAX_LOG_BYTES)? {
                (log, false) => Some(log),
                (_, true) => {
                    let why = format!("the log of the boot has more than {MAX_LOG_BYTES} bytes");
                    return Err(Fault::unavailable(60_000, why));
                }
            },
        };
        let list = match &self.logs.files {
            None => None,
            Some(list) => Some(list.read(wanted.listed, MAX_LIST_BYTES)?),
        };
        let (list, more) = list.map_or((None, false), |(list, more)| (Some(list), more));
        let image = self.image_hash;
        Ok(Bundle { image, quote, signature, pcrs, quote_micros, log, list, more, gpus: None })
    }

    /// Which TPM it is.
    pub(crate) fn identity(&mut self, now_ms: u64) -> Result<Identity, Fault> {
        self.measure_image(now_ms)?;
        let Endorsement { public: ek, certificate } = self.tpm.endorsement()?;
        Ok(Identity { ek, certificate, ak: self.tpm.attestation()? })
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

    /// Has the TPM hold on to the devices that this machine has shown, once in a boot: what is measured is not judged.
    pub(crate) fn measure_devices(&mut self, numbers: &Numbers) -> Result<(), Fault> {
        self.tpm.measure_once(DEVICES_PCR, &digest(numbers))?;
        Ok(())
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
#[path = "collector_tests.rs"]
mod tests;
