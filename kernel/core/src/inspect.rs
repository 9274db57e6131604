//! The whole state of a forest as plain values, for tests that compare it with its model
//! (`specs/capability`). Compiled only with the feature `inspect`, which no production crate has.

use std::collections::BTreeMap;

use distos_abi::{Authority, CapId, LinkHash, SlotRef, VatName};

use crate::{Facts, Forest};

/// A capability that holds a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// Where it lives.
    pub slot: SlotRef,
    /// What it hangs from; none also if it was cut off.
    pub parent: Option<CapId>,
    /// What it is.
    pub facts: Facts,
    /// Whether neither it nor an ancestor is dead.
    pub live: bool,
    /// Whether its tenant pays for it.
    pub charged: bool,
}

/// A gift that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GiftView {
    /// Its ticket.
    pub ticket: [u8; 32],
    /// What it is derived from, dead or alive.
    pub parent: SlotRef,
    /// Who may withdraw it.
    pub receiver: VatName,
    /// What it allows.
    pub authority: Authority,
    /// When it is too late.
    pub expires_ms: u64,
}

/// Everything that the next command's outcome may depend on, except which free slot is next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// The latest time seen.
    pub now_ms: u64,
    /// Every capability that holds a slot.
    pub nodes: BTreeMap<CapId, NodeView>,
    /// Links that are refused, below what, and until when.
    pub tombstones: BTreeMap<(CapId, LinkHash), u64>,
    /// Gifts that wait.
    pub gifts: Vec<GiftView>,
    /// Slots that wait for quiescence.
    pub quarantined: u32,
}

impl Forest {
    /// The forest as plain values.
    pub fn inspect(&self) -> Inspection {
        let view = |at: u32| {
            let node = self.node(at);
            NodeView {
                slot: node.slot,
                parent: node.parent.map(|parent| self.node(parent).cap),
                facts: node.facts.clone(),
                live: self.is_live(at),
                charged: node.charged,
            }
        };
        let gifts = self.gifts.iter().map(|(ticket, gift)| GiftView {
            ticket: *ticket,
            parent: gift.parent,
            receiver: gift.receiver.clone(),
            authority: gift.authority,
            expires_ms: gift.expires_ms,
        });
        Inspection {
            now_ms: self.floor_ms,
            nodes: self.caps.iter().map(|(cap, at)| (*cap, view(*at))).collect(),
            tombstones: self.tombstones.clone(),
            gifts: gifts.collect(),
            quarantined: self.counts().quarantined,
        }
    }
}
