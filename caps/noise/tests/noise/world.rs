//! A node, whose key has the seed 1, with a vat and a holder.

use std::sync::Arc;

use distos_abi::{Fault, NodeId, VatName};
use distos_noise::{Card, Own, Place, StaticKey};
use distos_types::{HolderSecret, channel_message};

/// In milliseconds since the Unix epoch.
pub(crate) const NOW: u64 = 1_800_000_000_000;
pub(crate) const HOUR: u64 = 3_600_000;

pub(crate) fn secret(seed: u8) -> HolderSecret {
    HolderSecret::from_seed([seed; 32])
}

pub(crate) fn node() -> NodeId {
    NodeId(secret(1).key().0)
}

/// Some other node.
pub(crate) fn other_node() -> NodeId {
    NodeId(secret(2).key().0)
}

pub(crate) fn static_key(seed: u8) -> StaticKey {
    let filled = StaticKey::fill::<Fault>(|bytes| {
        bytes.fill(seed);
        Ok(())
    });
    filled.unwrap()
}

/// A source of secrets that are known, for one side of one handshake.
pub(crate) fn random(mut seed: u8) -> impl FnMut(&mut [u8; 32]) -> Result<(), Fault> {
    move |bytes| {
        bytes.fill(seed);
        seed += 1;
        Ok(())
    }
}

pub(crate) fn place(node: NodeId, vat: &str) -> Place {
    Place { node, vat: VatName::new(vat).unwrap() }
}

pub(crate) fn memory() -> Place {
    place(node(), "memory")
}

/// A card for the static key of this seed, for an hour, signed by the key of `signer`.
pub(crate) fn card(place: &Place, key: u8, signer: u8) -> Card {
    let (key, until_ms) = (static_key(key).public(), NOW + HOUR);
    let message = channel_message(place.node, &place.vat, &key.0, until_ms);
    Card { until_ms, key, signature: secret(signer).sign(&message) }
}

/// What the vat at `place` answers with.
pub(crate) fn vat_at(place: &Place) -> Own {
    Own::new(Arc::new(static_key(40)), place.clone(), &card(place, 40, 1))
}
