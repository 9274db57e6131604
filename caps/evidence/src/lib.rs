//! What the silicon of a machine says of it, and whether it is good: TPMs and the logs behind them, GPUs, processors; and how
//! to seal something so that only one TPM opens it.
//!
//! - [`evidence`]: quotes, the keys that sign them, and their appraisal.
//! - [`quote`]: quotes of any TPM, for whoever was given one.
//! - [`bank`]: registers by hash algorithm, and what extending them does.
//! - [`eventlog`]: logs of measured boots, replayed to what a quote proves, and what they then say of the boot.
//! - [`ima`]: the kernel's list of the files that it has measured since, replayed as it grows.
//! - [`devices`]: which devices a machine has shown, held on to by its TPM.
//! - [`nvidia`]: reports of GPUs and switches, and whether those of one machine are each other's.
//! - [`snp`]: reports of AMD's secure processor on the virtual machine that it protects.
//! - [`pki`]: chains of certificates up to pinned roots, as makers of devices issue them.
//! - [`ocsp`]: what responders have said of certificates.
//! - [`published`]: what makers publish of all these, in files.
//! - [`credential`]: `TPM2_MakeCredential`, computed without a TPM: a secret for whoever has the TPM with this endorsement
//!   key, and in it this attestation key.
//! - [`enrolment`]: whether a TPM's maker has certified an endorsement key.
//! - [`live`]: what verifiers ask a running machine, and what its collector answers.
//! - [`findings`]: what verifying evidence of any kind gives: checks by name, and claims.
//! - [`joining`]: what a node presents that wants to be invited into a cluster by the TPM that it has, what the one who
//!   invites demands of it, and the invitation, sealed to that TPM (A1).
//!
//! No I/O, no clock, no randomness: bytes, time and random bytes are arguments, but for the padding of what is encrypted for
//! an RSA key ([`credential`]). It does not speak to a TPM; the attestation
//! service does.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod bank;
pub mod credential;
pub mod devices;
pub mod enrolment;
pub mod eventlog;
pub mod evidence;
pub mod findings;
pub mod ima;
pub mod joining;
pub mod live;
pub mod nvidia;
pub mod ocsp;
pub mod pki;
pub mod published;
pub mod quote;
pub mod snp;
#[cfg(test)]
mod testdata;
pub mod wire;
