//! Connections between nodes: QUIC with TLS 1.3, both sides authenticated by their SVIDs.
//!
//! An [`Endpoint`] has one UDP socket, one SVID that can be renewed, and a list of whom it trusts. Who a
//! peer is, and whether it is let in, is decided inside the handshake: nothing that a stranger says
//! afterwards is read (N2), and nothing goes over a path that is not encrypted and authenticated
//! (N1). A connection ends when its peer's SVID does, unless the peer shows a newer one, and at once when
//! the list no longer names the peer.
//!
//! Many bytes by one capability go on a stream of their own ([`Bulk`]), and what is said of leases on another, before
//! all else ([`Streams`]).
//!
//! What it does not do: say what a peer may do. A connection starts at a door, as one over a Unix
//! socket does; capabilities are presented there. It opens no socket, and keeps no list: whoever
//! builds it hands both in. A service of a node gets them from its image and its network service
//! ([`attend`]), and reaches those of other nodes by `Vat::reach`.
//!
//! Sessions are never resumed, and nothing is sent before the handshake is over (0-RTT): either would
//! let somebody in whose certificate nobody looked at.
#![forbid(unsafe_code)]

mod attend;
mod bulk;
mod endpoint;
mod reach;
pub mod renewal;
mod serve;
mod streams;
mod tls;
mod watch;

pub use attend::{attend, renew_after, system_clock};
pub use quinn::{Connection, ConnectionError};

pub use bulk::{Bulk, MAX_PAGE, Page};
pub use endpoint::{Arrivals, Endpoint, Link, Refused, Settings, why_closed};
pub use serve::{Refusals, serve};
pub use streams::Streams;
pub use tls::{Clock, Credentials};

/// The protocol, for ALPN: who speaks another version does not connect.
pub const ALPN: &[u8] = b"distos/1";
