//! Carries capabilities between vats: sockets, facets, gifts, and the runtime of a vat.
//!
//! This is the only room that knows connections. It does: Unix-socket transport with buffered
//! writers and per-connection bounds ([`transport`]), the facet through which every object is
//! handed out ([`Facet`]), the door at which sturdy capabilities become live, edges and gifts, and
//! the life of a vat process ([`run`]). It does not: decide who may do what (the kernel does),
//! parse tenant data, or open any path. Connections between nodes are `caps/quic`'s, which brings its
//! streams to [`transport`]: nothing else knows what carries a call.
//!
//! How C2 is kept here: a facet checks at dispatch, commits under a guard, and the reply of a call
//! is checked once more, under a guard, at the moment at which it enters the writer
//! ([`Facet::reply`]). A capability that is revoked in between yields a fault in place of the
//! reply.
//!
//! How A3 is kept here: what a peer is given carries the attestation epoch in which it was given, and the same checks
//! ask whether that is over ([`Vat::raise_epoch`]).
#![forbid(unsafe_code)]

mod admission;
mod base;
mod beside;
pub mod boot;
mod borrowing;
mod budget;
pub mod control;
mod door;
mod doorkeeper;
mod epoch;
mod facet;
mod faults;
mod framing;
pub mod gift;
mod lending;
pub mod log;
mod meters;
mod obey;
mod quiet;
mod reach;
pub mod record;
pub mod seal;
mod seats;
pub mod transport;
mod vat;

pub use admission::Party;
pub use base::{Base, Faceted};
pub use beside::Arrived;
pub use borrowing::{Beside, Borrowing, Held};
pub use facet::{Facet, Revoked};
pub use faults::{authority_of, caveats_of, fail, fault_of, write_caveats};
pub use gift::{Gift, Received};
pub use meters::Meters;
pub use obey::{Mandate, Obeyed};
pub use reach::{Far, Open, Pages, Reach, Remote, Streamed};

pub use seats::{Seat, Seats};
pub use vat::{Service, Vat, Whence, run, serve};

#[doc(hidden)]
pub mod private {
    //! What [`serve_capability!`](crate::serve_capability) expands to.
    pub use capnp;
    pub use distos_schemas::capability_capnp;
}
