//! Capabilities at rest: keys, certificate chains, capability files, and what is signed by their holders and carried by
//! others: revocations and orders.
//!
//! A sturdy capability is a chain of certificates. The first is signed by a node's kernel, each
//! further one by the holder of the one before, so that attenuating and delegating need no
//! network. A chain proves who granted what to whom; to use it, its last holder also proves
//! possession of its key (C4), by signing [`restore_message`].
//!
//! There is no I/O here, no clock and no source of randomness: bytes and time come in as arguments.
//! All that is asked of Linux is memory that suits a secret ([`SecretPage`]).
//! Whether a link was revoked is not known here either, but to the kernel that redeems it.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod capfile;
mod chain;
mod encoding;
mod key;
pub mod kind;
mod order;
mod revocation;
mod secret;

pub use capfile::{CapEntry, CapFile};
pub use chain::{Chain, LinkFacts, Root};
pub use encoding::{AUTHORITY_BYTES, authority_bytes, authority_from};
pub use key::{
    CHANNEL_KEY_BYTES, HolderSecret, channel_message, check_version, is_usable, key_file_text,
    parse_key_file, present_message, restore_message, verify_signature,
};
pub use order::{MAX_ORDER_BYTES, ORDER_DRIFT_US, Order, OrderId};
pub use revocation::{MAX_REVOCATION_BYTES, REVOCATION_LASTS_MS, Revocation, Signer};
pub use secret::{SECRET_BYTES, SecretBytes, SecretPage, SecretPages};
