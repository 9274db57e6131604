//! Proves this node's state with a TPM quote and says until when the proof is fresh.
//!
//! # What it holds
//!
//! One descriptor of a TPM 2.0 (device `tpm`: `/dev/tpmrm0`, or a socket to a software TPM that the
//! kernel started), one directory of its own, and what every vat has. It opens no other path, no
//! socket and no library (C3).
//!
//! # What it does
//!
//! At start it extends the image's hash into PCR 11, once per reset of the TPM. Then, at half the
//! freshness bound and whenever a holder of `attest` asks, it has the TPM sign the registers
//! together with a challenge that is used once, and appraises the answer ([`distos_evidence`]). Holders of
//! `read` learn the verdict: whether the last evidence matched (integrity), and until when it counts
//! (freshness). The two are told apart (A2). Evidence that is missing, old, not answered in time or not
//! understood gives no freshness, so that the node gets no work (A1, S1). Each appraisal is an
//! audit event.
//!
//! For a service that an edge with `create` leads here from, the TPM keeps secrets sealed to what this node has booted
//! (`sealing`): the secret broker's, with which it opens without an operator.
//!
//! # What it refuses, and what it does not show
//!
//! - It trusts the TPM that it sees first, and the register values it sees then (`enrolment` in its
//!   directory); from then on it refuses every other. It does not check the TPM maker's certificate, which it
//!   passes on to whoever invites the node: it shows that this node is what it was, not that the TPM is a real one.
//! - A software TPM proves the protocol, not the machine: who controls the machine controls it.
//!   Every verdict and audit event says which kind it is.
//! - Only holders on this node are convinced: the appraisal runs here. A verifier elsewhere must
//!   make its own challenge.
//! - It replaces no damaged file of its own: that is a fault that names the file.
//!
//! # Settings
//!
//! `image_hash` (64 hexadecimal digits, required with a TPM), `tpm` (`hardware` or `software`), `freshness_ms`
//! (default 300000), `pcrs` (default `0-7`; the image's register is always added).
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

use std::process::ExitCode;

use distos_rpc::boot::Boot;

mod attester;
mod sealing;
mod server;
mod state;
mod tpm;

/// Whoever switches this target on sees each step of the verifier, one event a line:
/// `specs/attestation` says what they mean and checks them.
const TRACE: &str = "distos::trace::attestation";

/// The whole life of the attestation vat: serves until its kernel ends.
pub fn run(boot: Boot) -> ExitCode {
    distos_rpc::run(boot, server::Attestation::start)
}
