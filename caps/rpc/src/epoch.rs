//! Attestation epochs of peers: what somebody far away holds of a vat's objects ends when its epoch does.
//!
//! A peer's epoch rises when its evidence turns bad, or when it is put out. Whatever a vat gives to a peer (a capability
//! over a connection, a loan, a gift that waits for it) carries the epoch in which it was given, and counts in no other.
//! So all of it ends with one store, whatever its number, before the first connection is closed: a vat has one thread, so
//! nothing is half way through a check when the store is made (A3). What it uses where it is, by a loan, is not renewed, and runs
//! to the end of the loan's term.
//!
//! Whose epoch is which, this crate is told ([`Vat::raise_epoch`](crate::Vat::raise_epoch)).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Peers of which nothing is held and nothing was told: beyond so many they are forgotten.
const MAX_IDLE: usize = 1024;

/// The epochs of those who connect to one vat, by what names them: the first two parts of the path of a SPIFFE id.
#[derive(Default)]
pub(crate) struct Epochs {
    now: RefCell<BTreeMap<String, Rc<Cell<u64>>>>,
}

/// What one peer is given in one epoch. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Epoch {
    now: Rc<Cell<u64>>,
    at: u64,
}

impl Epoch {
    /// Whether another one has begun.
    pub(crate) fn is_over(&self) -> bool {
        self.now.get() != self.at
    }

    /// Its number.
    pub(crate) fn number(&self) -> u64 {
        self.at
    }
}

impl Epochs {
    /// The present epoch of whoever has this path: of its node, or of its tenant.
    pub(crate) fn of(&self, path: &str) -> Epoch {
        let mut now = self.now.borrow_mut();
        if now.len() >= MAX_IDLE && !now.contains_key(peer_of(path)) {
            now.retain(|_, now| now.get() > 0 || Rc::strong_count(now) > 1);
        }
        let now = now.entry(peer_of(path).to_owned()).or_default().clone();
        Epoch { at: now.get(), now }
    }

    /// Begins an epoch of a peer, if it is a later one: the one store by which what it was given before ends.
    pub(crate) fn raise(&self, peer: &str, number: u64) {
        if number == 0 {
            // Everybody begins there.
            return;
        }
        let mut now = self.now.borrow_mut();
        let now = now.entry(peer_of(peer).to_owned()).or_default();
        now.set(now.get().max(number));
    }
}

/// The part of a path that names a node or a tenant, with all that it is.
fn peer_of(path: &str) -> &str {
    let end = path.match_indices('/').nth(1).map_or(path.len(), |(at, _)| at);
    &path[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_a_node_was_given_ends_with_one_store_and_nothing_of_anybody_elses() {
        let epochs = Epochs::default();
        let given: Vec<Epoch> =
            (0..1000).map(|n| epochs.of(&format!("node/1/service/s{n}"))).collect();
        let others = [epochs.of("node/2/service/s1"), epochs.of("tenant/1/agent/z")];
        epochs.raise("node/1", 3);
        assert!(given.iter().all(Epoch::is_over));
        assert!(!others.iter().any(Epoch::is_over));
        let later = epochs.of("node/1/service/s1");
        assert_eq!((later.number(), later.is_over()), (3, false));
    }

    #[test]
    fn an_epoch_never_goes_back() {
        let epochs = Epochs::default();
        epochs.raise("node/1", 3);
        let given = epochs.of("node/1");
        for number in [0, 2, 3] {
            epochs.raise("node/1", number);
            assert!(!given.is_over(), "{number}");
        }
        epochs.raise("node/1", 4);
        assert!(given.is_over());
    }

    /// Or whoever comes under ever new names fills the memory; or, worse, a name that was forgotten begins at 0 again.
    #[test]
    fn what_is_forgotten_is_nobodys() {
        let epochs = Epochs::default();
        epochs.raise("node/raised", 7);
        let held = epochs.of("node/held");
        for n in 0..3 * MAX_IDLE {
            epochs.of(&format!("node/{n}"));
        }
        assert!(epochs.now.borrow().len() <= MAX_IDLE + 1);
        assert_eq!(epochs.of("node/raised").number(), 7);
        epochs.raise("node/held", 1);
        assert!(held.is_over());
    }
}
