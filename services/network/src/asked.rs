//! How often somebody may ask: each question is a signature and a record in the audit log, or a connection to
//! another node.

use std::collections::BTreeMap;

/// Questions of one node in so many seconds: several times what all its services need when it boots, and
/// with SVIDs of a few seconds.
const MOST: u32 = 128;
const WINDOW_S: u64 = 10;

/// What nodes ask one another for. Whoever asks for one thing too often may ask for the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Question {
    /// To sign an SVID.
    Sign,
    /// Where a service is.
    Locate,
    /// To hear a statement.
    Tell,
    /// To hear whom others reach.
    Gossip,
    /// What this node has heard of the cluster's configuration and voters, and of revocations.
    Heard,
    /// To take a revocation.
    Carry,
    /// What this node's machine is.
    Evidence,
}

/// What each has asked in the present window. Only peers and this node's services ask, so it is as long as
/// their lists; a node with each of its keys by itself, so that one that was stolen does not silence it.
#[derive(Debug)]
pub(crate) struct Asked<K>(BTreeMap<K, (u64, u32)>);

impl<K> Default for Asked<K> {
    fn default() -> Asked<K> {
        Asked(BTreeMap::new())
    }
}

impl<K: Ord> Asked<K> {
    /// Whether this one may ask once more.
    pub(crate) fn may(&mut self, node: K, now_s: u64) -> bool {
        let window = now_s / WINDOW_S;
        self.0.retain(|_, (of, _)| *of == window);
        let (_, count) = self.0.entry(node).or_insert((window, 0));
        *count = count.saturating_add(1);
        *count <= MOST
    }
}

#[cfg(test)]
mod tests {
    use distos_abi::NodeId;

    use super::*;

    #[test]
    fn a_node_that_asks_without_end_is_held_back_and_no_other() {
        let (mut asked, one, other) = (Asked::default(), NodeId([1; 32]), NodeId([2; 32]));
        let answered = (0..1000).filter(|_| asked.may(one, 100)).count();
        assert_eq!(answered, MOST as usize);
        assert!(asked.may(other, 100));
        assert!(!asked.may(one, 109) && asked.may(one, 110));
    }
}
