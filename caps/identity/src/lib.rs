//! Who somebody is on the network: SPIFFE ids, X.509 and JWT SVIDs and who may issue them, trust bundles,
//! `did:key`, and signatures beside files.
//!
//! A cluster has one **root**, an Ed25519 key that is kept offline. It certifies **issuers** and
//! nothing else; an issuer signs short-lived **SVIDs** (SPIFFE verifiable identity documents) for
//! nodes, services and agents, and never one for the node that it runs on. Whoever checks an SVID
//! needs the cluster's [`Bundle`] and the time.
//!
//! Everything here is a function of its arguments: time, randomness and bytes are among them. What
//! this room does not do: open a connection, keep a key, decide who is a member. An identity says who
//! somebody is, and nothing about what it may do: that is what capabilities are for.
#![forbid(unsafe_code)]

mod authority;
mod bundle;
mod compact;
mod detached;
pub mod did;
mod id;
mod invitation;
mod pem;
mod profile;
mod request;
mod statement;
mod svid;
mod token;
mod trust;

pub use authority::{Issuer, Root, Serial, Validity};
pub use bundle::{Bundle, MAX_BUNDLE_BYTES};
pub use compact::{Compact, Flaw, sign_compact};
pub use detached::{DetachedSignature, MAX_SIGNATURE_BYTES};
pub use id::{ClusterName, SpiffeId, Subject, TenantName};
pub use invitation::{Invitation, MAX_INVITATION_BYTES};
pub use pem::{MAX_PEM_BYTES, from_pem, to_pem};
pub use profile::{Home, key_of, since};
pub use request::{prove, verify_proof};
pub use statement::{DRIFT_US, Heard, MAX_STATEMENT_BYTES, Statement, Ticks};
pub use svid::{Checked, Identity, MAX_SVID_LIFETIME_S, Refusal, Usage};
pub use token::{
    MAX_TOKEN_BYTES, MAX_TOKEN_LIFETIME_S, Token, TokenAuthority, TokenKey, TokenRefusal,
    TokenSecret,
};
pub use trust::{KeyExchange, Peer, Peers, Trust};
