//! What a TPM and the logs behind it say of a machine, and whether it is good; and how to seal something so that only
//! one TPM opens it.
//!
//! - [`evidence`]: quotes, the keys that sign them, and their appraisal.
//! - [`bank`]: registers by hash algorithm, and what extending them does.
//! - [`eventlog`]: logs of measured boots, replayed to what a quote proves, and what they then say of the boot.
//! - [`ima`]: the kernel's list of the files that it has measured since, replayed as it grows.
//! - [`credential`]: `TPM2_MakeCredential`, computed without a TPM: a secret for whoever has the TPM with this endorsement
//!   key, and in it this attestation key.
//! - [`findings`]: what verifying evidence of any kind gives: checks by name, and claims.
//! - [`joining`]: what a node presents that wants to be invited into a cluster by the TPM that it has, what the one who
//!   invites demands of it, and the invitation, sealed to that TPM (A1).
//!
//! No I/O, no clock, no randomness: bytes, time and random bytes are arguments. It does not speak to a TPM; the attestation
//! service does.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod bank;
pub mod credential;
pub mod eventlog;
pub mod evidence;
pub mod findings;
pub mod ima;
pub mod joining;
pub mod wire;
