//! The collector outside of its service, for whoever measures it: this machine answers as the service has it answer, by a TPM whose
//! descriptor the caller brings. It can do no more than that descriptor can.

use std::os::fd::OwnedFd;

use distos_abi::Fault;
use distos_evidence::evidence::PcrSet;
use distos_evidence::live::{Question, Session};

use crate::collector::{Collector, Logs};
use crate::tpm::{TIMEOUT, TimedFd, Tpm};

/// A machine without logs.
#[derive(Debug)]
pub struct Answering(Collector<TimedFd>);

impl Answering {
    /// Speaks to nobody yet. `image_hash` is what is to be measured.
    ///
    /// # Errors
    /// The descriptor is none of a device or socket.
    pub fn new(tpm: OwnedFd, image_hash: [u8; 32], pcrs: PcrSet) -> std::io::Result<Answering> {
        let tpm = Tpm::new(TimedFd::new(tpm, TIMEOUT)?);
        Ok(Answering(Collector::new(tpm, image_hash, pcrs, Logs::default())))
    }

    /// Starts the TPM, and extends the image's hash if that has not happened since the TPM was reset. What is asked first
    /// does so, too. `now_ms` is Unix milliseconds.
    ///
    /// # Errors
    /// As [`Answering::answer`].
    pub fn measure(&mut self, now_ms: u64) -> Result<(), Fault> {
        self.0.measure_image(now_ms)
    }

    /// Answers a verifier that asks over this session. `now_ms` is Unix milliseconds.
    ///
    /// # Errors
    /// The TPM does not answer, or refuses.
    pub fn answer(
        &mut self,
        question: &Question,
        session: Session,
        now_ms: u64,
    ) -> Result<Vec<u8>, Fault> {
        self.0.answer(question, session, now_ms)
    }
}
