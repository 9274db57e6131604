//! How often other nodes may ask: each question is a signature and a record in the audit log.

use std::collections::BTreeMap;

use distos_abi::NodeId;

/// Questions of one node in so many seconds: several times what all its services need when it boots, and
/// with SVIDs of a few seconds.
const MOST: u32 = 128;
const WINDOW_S: u64 = 10;

/// What each node has asked in the present window. Only peers ask, so it is as long as their list.
#[derive(Debug, Default)]
pub(crate) struct Asked(BTreeMap<NodeId, (u64, u32)>);

impl Asked {
    /// Whether this node may ask once more.
    pub(crate) fn may(&mut self, node: NodeId, now_s: u64) -> bool {
        let window = now_s / WINDOW_S;
        self.0.retain(|_, (of, _)| *of == window);
        let (_, count) = self.0.entry(node).or_insert((window, 0));
        *count = count.saturating_add(1);
        *count <= MOST
    }
}

#[cfg(test)]
mod tests {
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
