//! Which node has shown which device, as far as this verifier knows. Pure.
//!
//! A device is one node's: whoever has shown it first keeps it until it proves that it is without it, until the node is
//! verified no more, or until it is enrolled anew. Only this verifier's own node takes what others have shown: it has asked
//! its devices itself, and nobody relays to himself. What each node has shown is kept with what else is remembered of it
//! ([`Kept`](crate::verifier::Kept)): this is an index over that.

use std::collections::{BTreeMap, BTreeSet};

use distos_abi::NodeId;
use distos_evidence::devices::Numbers;

/// Devices by node, and nodes by device. A node has 64 at most.
#[derive(Debug)]
pub(crate) struct Registry {
    own: NodeId,
    holders: BTreeMap<[u8; 8], NodeId>,
    held: BTreeMap<NodeId, Numbers>,
}

impl Registry {
    /// Of this node's verifier. Nobody has shown anything yet.
    pub(crate) fn new(own: NodeId) -> Registry {
        Registry { own, holders: BTreeMap::new(), held: BTreeMap::new() }
    }

    /// From now on the node has these and no others. One that is another node's stays that one's, but for the own node.
    /// Returns from whom something was taken.
    pub(crate) fn hold(&mut self, node: NodeId, numbers: &Numbers) -> BTreeSet<NodeId> {
        self.release(node);
        let (mut mine, mut losers) = (Numbers::new(), BTreeSet::new());
        for number in numbers {
            match self.holders.get(number).copied() {
                Some(_) if node != self.own => continue,
                Some(other) => {
                    if let Some(theirs) = self.held.get_mut(&other) {
                        theirs.remove(number);
                    }
                    losers.insert(other);
                }
                None => {}
            }
            self.holders.insert(*number, node);
            mine.insert(*number);
        }
        if !mine.is_empty() {
            self.held.insert(node, mine);
        }
        losers
    }

    /// The devices that are this node's.
    pub(crate) fn held(&self, node: NodeId) -> Numbers {
        self.held.get(&node).cloned().unwrap_or_default()
    }

    /// The node has none any more.
    pub(crate) fn release(&mut self, node: NodeId) {
        for number in self.held.remove(&node).unwrap_or_default() {
            self.holders.remove(&number);
        }
    }

    /// Whose these are, of those that are another node's. The own node's are its own.
    pub(crate) fn elsewhere(&self, node: NodeId, numbers: &Numbers) -> BTreeMap<[u8; 8], NodeId> {
        if node == self.own {
            return BTreeMap::new();
        }
        let holders =
            numbers.iter().filter_map(|number| Some((*number, *self.holders.get(number)?)));
        holders.filter(|(_, holder)| *holder != node).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: NodeId = NodeId([9; 32]);
    const ONE: NodeId = NodeId([1; 32]);
    const OTHER: NodeId = NodeId([2; 32]);

    fn numbers(bytes: &[u8]) -> Numbers {
        bytes.iter().map(|byte| [*byte; 8]).collect()
    }

    #[test]
    fn a_device_stays_with_whoever_has_shown_it_first_until_that_one_is_without_it() {
        let mut registry = Registry::new(OWN);
        registry.hold(ONE, &numbers(&[1, 2]));
        let contested = |registry: &Registry, node| registry.elsewhere(node, &numbers(&[1, 2, 3]));
        assert_eq!(contested(&registry, ONE), BTreeMap::new());
        assert_eq!(contested(&registry, OTHER), BTreeMap::from([([1; 8], ONE), ([2; 8], ONE)]));
        // Whoever comes later does not take it, and gets what nobody has.
        assert_eq!(registry.hold(OTHER, &numbers(&[2, 3])), BTreeSet::new());
        assert_eq!(registry.held(OTHER), numbers(&[3]));
        assert_eq!(contested(&registry, ONE), BTreeMap::from([([3; 8], OTHER)]));
        assert_eq!(contested(&registry, OTHER).len(), 2);
        // The first is without one of them, and then gone.
        registry.hold(ONE, &numbers(&[1]));
        assert_eq!(contested(&registry, OTHER), BTreeMap::from([([1; 8], ONE)]));
        registry.hold(OTHER, &numbers(&[2, 3]));
        registry.release(ONE);
        registry.hold(OTHER, &numbers(&[1, 2, 3]));
        assert_eq!(contested(&registry, OTHER), BTreeMap::new());
        assert_eq!(contested(&registry, ONE).len(), 3);
        registry.release(OTHER);
        assert!(registry.holders.is_empty() && registry.held.is_empty());
    }

    /// Or whoever passes on what this node's own devices answer has it take itself for the liar.
    #[test]
    fn the_own_node_has_its_devices_whoever_has_shown_them_before() {
        let mut registry = Registry::new(OWN);
        registry.hold(ONE, &numbers(&[1, 2]));
        assert_eq!(registry.elsewhere(OWN, &numbers(&[1])), BTreeMap::new());
        // From whom it takes one is said: what is kept of that one must not bring it back.
        assert_eq!(registry.hold(OWN, &numbers(&[1])), BTreeSet::from([ONE]));
        assert_eq!((registry.held(OWN), registry.held(ONE)), (numbers(&[1]), numbers(&[2])));
        assert_eq!(registry.hold(ONE, &numbers(&[1, 2])), BTreeSet::new());
        assert_eq!(registry.held(ONE), numbers(&[2]));
        assert_eq!(registry.elsewhere(ONE, &numbers(&[1, 2])), BTreeMap::from([([1; 8], OWN)]));
        // That one's end takes nothing away from it.
        registry.release(ONE);
        assert_eq!(registry.elsewhere(OTHER, &numbers(&[1, 2])), BTreeMap::from([([1; 8], OWN)]));
        registry.hold(OWN, &Numbers::new());
        assert!(registry.holders.is_empty() && registry.held.is_empty());
    }
}
