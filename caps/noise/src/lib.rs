//! Sessions that reach from a holder to a vat, whatever passes them on.
//!
//! A connection to a vat may go through others: a relay, a gateway. TLS ends at each of them, and each could read the
//! calls and change them. A session goes from the holder of a capability to the vat at which the capability lives, over
//! any byte stream, and whoever passes it on sees lengths and times of frames and nothing else. The protocol is
//! `Noise_IK_25519_XChaChaPoly_BLAKE2s` (The Noise Protocol Framework, revision 34), computed by the crate `snow`;
//! XChaCha20-Poly1305 is no cipher of that text, and takes its place as ChaCha20-Poly1305 would: the nonce is 16 zero
//! bytes and the number of the frame, little-endian.
//!
//! The holder, who connects, is Noise's initiator, and the vat its responder. Numbers are big-endian.
//!
//! | | who | bytes |
//! |---|---|---|
//! | 1 | holder | [`HELLO`] |
//! | 2 | vat | length of its card (2), [card](Card). A length of zero says that there is no session to be had. |
//! | 3 | holder | length (2), Noise's first message: [`MESSAGE_1_BYTES`] |
//! | 4 | vat | length (2), Noise's second message: [`MESSAGE_2_BYTES`] |
//! | 5 | both | frames: length of what is sealed (2), 1 to [`MAX_PLAIN_BYTES`] bytes sealed |
//!
//! The vat's static key is nowhere but in its memory. Its card binds that key to its node: the node signs it, for
//! ten minutes, with the key that signs capabilities and is the node's name in them. So a capability is all that a holder needs
//! to know. A **place** is a node (32 bytes), the length of a vat's name (1) and the name. The holder's static key is made for each session;
//! the payload of the first message binds it to the holder: its Ed25519 key (32) and its signature (64) over the domain
//! `distos-noise-holder-v1`, the place, and the static keys of holder and vat. Noise's prologue is [`HELLO`], the place
//! and the encoded card. So both have seen the same card for the same place, or have no keys in common.
//!
//! # What it shows, and to whom
//!
//! - **To the holder**, once the second message was read: that it speaks with whoever has the static key that the
//!   capability's node has signed for that vat. Nobody else can read what it sends from then on. A relay
//!   that shows a card of its own, however valid, is somebody else.
//! - **To the vat**, once the first *frame* opened: that it speaks with whoever has the holder's key, and for this place.
//!   Not before: the first message may be one that somebody recorded. Whoever sends it again gets an answer and no session,
//!   for the keys follow also from a static secret of the holder's that is in no message. So nothing is to be done on behalf
//!   of a holder, or counted against it, before a frame has opened.
//! - **No unknown share**: a holder's signature names both static keys and the place, and all of it goes into the keys. It
//!   is of no use at another vat, at another start of the same vat, or beside another static key.
//! - **Forward secrecy**: keys follow from ephemeral secrets that both forget. What is sent after the second message stays
//!   closed when a static or an Ed25519 key is stolen later; only the first message, which says who the holder is, does
//!   not: whoever steals the vat's static key can tell from recordings who had connected. Who reads the memory of a session
//!   that goes on reads all of it: keys do not change within a session.
//! - **Stolen keys**: whoever has a vat's static key can pretend to be that vat as long as a card for that key holds,
//!   and cannot pretend to be a holder to it: the answer is for whoever has the holder's static secret. Whoever has a
//!   holder's key is that holder, and cannot pretend to be a vat to it.
//! - **Points of small order** are not looked for, as Noise has it: whoever sends one gives away only what it sends and
//!   receives itself.
//!
//! # What it does not do
//!
//! - It is not post-quantum, unlike the TLS below it where that agrees on keys with ML-KEM. Whoever recorded a session *inside*
//!   that TLS, which is whoever passed it on, can open it with a quantum computer.
//! - The end of a stream is not authenticated: whoever passes it on can cut it between two frames. So an end is to be taken
//!   for a connection that has ended, as RPC does, and never for an answer. What was cut within a frame is an error.
//! - That there is no session to be had is not authenticated either. Whoever then goes on without one lets whoever passes
//!   the stream on choose that.
//! - It ends no session when a card does, and has no timeouts: callers know what they wait for.
//! - `snow` does not erase the keys of a session's frames when it is done with them. Of X25519 secrets all copies are erased,
//!   and what reads frames does so with the plain bytes that it held.
//! - It says nothing about what a holder may do: capabilities do.
//!
//! Everything but [`stream`] and [`seal`] is a function of its arguments: bytes, time and randomness are among them.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod card;
mod handshake;
mod session;
pub mod stream;
mod vat;

pub use distos_rpc::seal::HELLO;

pub use card::{CARD_BYTES, Card, Place, StaticPublic};
pub use handshake::{Initiator, MESSAGE_1_BYTES, MESSAGE_2_BYTES, Own, Random, StaticKey};
pub use session::{MAX_PLAIN_BYTES, Opener, Sealer, Session, TAG_BYTES};
pub use vat::seal;
