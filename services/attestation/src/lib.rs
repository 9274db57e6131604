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
//! It is two things, apart from one another. The **collector** (`collector`) has the TPM sign registers together with a challenge, reads
//! the logs that the image gives it, and judges nothing. The **verifier** ([`verifier`], [`state`]) challenges, examines what comes back
//! ([`distos_evidence`]), and has policies say what that is worth ([`distos_appraisal`]): of this node, and in a
//! cluster of each peer for which this node signs SVIDs. Between nodes both meet by way of the network services, which know
//! who is at the other end (`peers`).
//!
//! At start it extends the image's hash into PCR 11, once per reset of the TPM. Evidence is taken before half of the freshness bound
//! is over, each node at moments of its own, and whenever a holder of `attest` asks. What a node's evidence reaches is its standing: fresh, stale,
//! expired, or failed, and each time that evidence turns bad an epoch begins (A2, A3). Evidence that is missing, old, not answered in time, not
//! understood or not provided for in any policy gives no freshness, so that the node gets no work (A1, S1). Each
//! appraisal of this node, and each change of a standing, is an audit event.
//!
//! For a service that an edge with `create` leads here from, the TPM keeps secrets sealed to what this node has booted
//! (`sealing`): the secret broker's, with which it opens without an operator.
//!
//! # What it refuses, and what it does not show
//!
//! - No TPM is taken because it comes first: it is known by its endorsement key, whose certificate leads to a root that an
//!   operator gave (`anchor`) or whose name one has told (`enrol`). Where a policy puts up with "certificate chain" not being checked, as
//!   that of the images that come with DistOS does, whichever comes first is taken, and no other after it.
//! - A software TPM proves the protocol, not the machine: who controls the machine controls it. Only a policy that says so by name
//!   takes one.
//! - Nothing is made up where there is no policy: then there is no freshness.
//! - It replaces no damaged file of its own: that is a fault that names the file.
//! - Results (EAR) are signed by a key that ends with the service. They are made only by policies that somebody has signed.
//!
//! # Settings
//!
//! `image_hash` (64 hexadecimal digits, required with a TPM), `tpm` (`hardware` or `software`), `freshness_ms`
//! (default 300000), `grace_ms` (how long evidence counts as stale after that; default: as long as fresh), `pcrs` (default `0-7`; the image's register is
//! always added, and the kernel's if there is its list), `policy` (its text), `policy_signature`, and `policy_signers` (keys whose policies are
//! taken, apart by spaces), `gpus` (the edge to the service whose GPUs are asked, too). Devices beside the TPM: `boot-log` and `measured-files`.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

use std::process::ExitCode;

use distos_rpc::boot::Boot;

pub mod answering;
mod asking;
mod collector;
mod governing;
#[cfg(test)]
mod machines;
mod peers;
mod registry;
mod sealing;
mod server;
mod service;
mod session;
mod settings;
pub mod state;
mod tpm;
pub mod verifier;
mod watched;

/// Whoever switches this target on sees each step of the verifier, one event a line:
/// `specs/attestation` says what they mean and checks them.
const TRACE: &str = "distos::trace::attestation";

/// The whole life of the attestation vat: serves until its kernel ends.
pub fn run(boot: Boot) -> ExitCode {
    distos_rpc::run(boot, service::Attestation::start)
}
