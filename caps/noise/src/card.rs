//! A vat's card: whose static key it is, said by the vat's node.
//!
//! | card | bytes |
//! |---|---|
//! | version (1) | 1 |
//! | until when it holds, in milliseconds since the Unix epoch, little-endian | 8 |
//! | static key (X25519) | 32 |
//! | signature by the node | 64 |
//!
//! The signature is of `distos_types::channel_message`, by the key that signs the capabilities of that node, which is its
//! name: whoever has a capability knows it. The place is not in the card: whoever wants to reach a vat knows which one.

use std::fmt;

use distos_abi::{Fault, HolderKey, NodeId, VatName};
use distos_types::{CHANNEL_KEY_BYTES, channel_message, verify_signature};

/// How long a card is.
pub const CARD_BYTES: usize = 1 + 8 + CHANNEL_KEY_BYTES + 64;
const VERSION: u8 = 1;

/// Where a capability lives: a vat of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The node.
    pub node: NodeId,
    /// The vat.
    pub vat: VatName,
}

impl Place {
    /// As it is signed: the node, the length of the vat's name (at most [`VatName::MAX_BYTES`]) and the name.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let vat = self.vat.as_str().as_bytes();
        [&self.node.0[..], &[vat.len() as u8], vat].concat()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of node {}", self.vat, self.node)
    }
}

/// The public half of an X25519 pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaticPublic(pub [u8; CHANNEL_KEY_BYTES]);

/// Whose static key it is. One that was decoded says nothing until [`Card::verify`] accepts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Card {
    /// Until when it holds, in milliseconds since the Unix epoch.
    pub until_ms: u64,
    /// The static key.
    pub key: StaticPublic,
    /// By the node.
    pub signature: [u8; 64],
}

impl Card {
    /// The card's bytes, as [`Card::decode`] reads them.
    pub fn encode(&self) -> [u8; CARD_BYTES] {
        let mut out = [0; CARD_BYTES];
        let parts = [&[VERSION][..], &self.until_ms.to_le_bytes(), &self.key.0, &self.signature];
        for (byte, part) in out.iter_mut().zip(parts.into_iter().flatten()) {
            *byte = *part;
        }
        out
    }

    /// Reads a card; there is one encoding of each. Checks no signature. [`Fault::Malformed`] says what is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Card, Fault> {
        let bytes: &[u8; CARD_BYTES] = bytes.try_into().map_err(|_| {
            Fault::malformed(format!("a card has {CARD_BYTES} bytes, and not {}", bytes.len()))
        })?;
        let (version, rest) = bytes.split_at(1);
        if version != [VERSION] {
            return Err(Fault::malformed(format!(
                "a card of version {}; this DistOS reads version {VERSION}",
                version[0]
            )));
        }
        let (mut until_ms, mut key, mut signature) = ([0; 8], [0; CHANNEL_KEY_BYTES], [0; 64]);
        until_ms.copy_from_slice(&rest[..8]);
        key.copy_from_slice(&rest[8..8 + CHANNEL_KEY_BYTES]);
        signature.copy_from_slice(&rest[8 + CHANNEL_KEY_BYTES..]);
        let until_ms = u64::from_le_bytes(until_ms);
        Ok(Card { until_ms, key: StaticPublic(key), signature })
    }

    /// The static key of the vat at `place`, if this is its card at `now_ms`, in milliseconds since the Unix epoch.
    ///
    /// [`Fault::Unauthenticated`] if its node has not signed it for that vat, or its time is over.
    pub fn verify(&self, place: &Place, now_ms: u64) -> Result<StaticPublic, Fault> {
        let message = channel_message(place.node, &place.vat, &self.key.0, self.until_ms);
        verify_signature(HolderKey(place.node.0), &message, &self.signature).map_err(|_| {
            Fault::Unauthenticated(format!(
                "whoever answers here is not {place}: its node has not signed so"
            ))
        })?;
        if now_ms >= self.until_ms {
            let late_s = (now_ms - self.until_ms) / 1000;
            return Err(Fault::Unauthenticated(format!(
                "the card of {place} ended {late_s} s ago: a clock is wrong, or somebody shows an old one"
            )));
        }
        Ok(self.key)
    }
}
