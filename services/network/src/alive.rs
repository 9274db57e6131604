//! Which nodes are there: whom this one has heard lately. It is a hint and grants nothing, nor takes anything away.

use std::collections::BTreeMap;

use distos_abi::NodeId;

/// How often each says that it is there, in milliseconds.
pub(crate) const BEAT_MS: u64 = 5000;
/// After how long without a word of it a node is suspect.
pub(crate) const SUSPECT_MS: u64 = 15_000;
/// And after how long, if nobody reaches it: somewhat more than passes between two words.
const DOUBT_MS: u64 = BEAT_MS + 1000;

/// What was heard of a node last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    /// When, or since when it is listened to: milliseconds by this node's own clock.
    pub(crate) at_ms: u64,
    /// Whether anything was heard.
    pub(crate) heard: bool,
    /// The number of its bundle; 0 if nothing was heard yet.
    pub(crate) bundle: u64,
    /// Whether it was told that the node is suspect.
    suspect: bool,
    /// Whether it was not reached since.
    doubted: bool,
}

impl Word {
    fn new(now_ms: u64) -> Word {
        Word { at_ms: now_ms, heard: false, bundle: 0, suspect: false, doubted: false }
    }
}

/// What has changed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing was heard of it for so long.
    Suspect(NodeId),
    /// Neither is it heard nor is it reached.
    Doubted(NodeId),
    /// It is there again.
    Back(NodeId),
}

/// What was heard of each peer last.
#[derive(Debug, Default)]
pub(crate) struct Alive(BTreeMap<NodeId, Word>);

impl Alive {
    /// A node has said that it is there.
    pub(crate) fn heard(&mut self, node: NodeId, bundle: u64, now_ms: u64) -> Option<Change> {
        let before = self.0.insert(node, Word { heard: true, bundle, ..Word::new(now_ms) });
        before.is_some_and(|word| word.suspect).then_some(Change::Back(node))
    }

    /// Looks who is suspect, of these peers: whoever is new is given as long as everybody.
    pub(crate) fn look(&mut self, peers: &[NodeId], now_ms: u64) -> Vec<Change> {
        self.0.retain(|node, _| peers.contains(node));
        let mut changes = Vec::new();
        for node in peers {
            let word = self.0.entry(*node).or_insert(Word::new(now_ms));
            if !word.suspect && now_ms.saturating_sub(word.at_ms) > SUSPECT_MS {
                word.suspect = true;
                changes.push(Change::Suspect(*node));
            }
        }
        changes
    }

    /// Whether a node is not heard so well that it is there, whoever reaches it.
    pub(crate) fn may_doubt(&self, node: NodeId, now_ms: u64) -> bool {
        let word = self.0.get(&node);
        word.is_some_and(|word| !word.doubted && now_ms.saturating_sub(word.at_ms) > DOUBT_MS)
    }

    /// A node was not reached. Its next word shows that it is there.
    pub(crate) fn doubt(&mut self, node: NodeId, now_ms: u64) -> Option<Change> {
        if !self.may_doubt(node, now_ms) {
            return None;
        }
        let word = self.0.get_mut(&node)?;
        word.doubted = true;
        let is_new = !std::mem::replace(&mut word.suspect, true);
        is_new.then_some(Change::Doubted(node))
    }

    /// Whether there is a word of this node that is new enough.
    pub(crate) fn hears(&self, node: NodeId, now_ms: u64) -> bool {
        self.of(node, now_ms).is_some_and(|(word, suspect)| word.heard && !suspect)
    }

    /// What was heard of a node last, and whether it is suspect at `now_ms`.
    pub(crate) fn of(&self, node: NodeId, now_ms: u64) -> Option<(Word, bool)> {
        let word = self.0.get(&node)?;
        Some((*word, word.doubted || now_ms.saturating_sub(word.at_ms) > SUSPECT_MS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: NodeId = NodeId([1; 32]);
    const OTHER: NodeId = NodeId([2; 32]);

    #[test]
    fn a_node_is_suspect_after_fifteen_seconds_and_no_longer_once_it_is_heard() {
        let mut alive = Alive::default();
        assert_eq!(alive.look(&[ONE, OTHER], 1000), []);
        assert!(!alive.hears(ONE, 1000), "nothing was heard yet");
        assert_eq!(alive.heard(ONE, 7, 9000), None);
        assert_eq!(alive.look(&[ONE, OTHER], 16_000), []);
        assert_eq!(alive.look(&[ONE, OTHER], 16_001), [Change::Suspect(OTHER)]);
        assert_eq!(alive.look(&[ONE, OTHER], 17_000), [], "it is told once");
        assert!(alive.of(OTHER, 17_000).is_some_and(|(_, suspect)| suspect));
        assert!(!alive.hears(OTHER, 17_000) && alive.hears(ONE, 17_000));
        assert_eq!(alive.heard(OTHER, 7, 18_000), Some(Change::Back(OTHER)));
        assert!(alive.hears(OTHER, 33_000) && !alive.hears(OTHER, 33_001));
        assert!(
            alive.of(OTHER, 18_000).is_some_and(|(word, suspect)| !suspect && word.bundle == 7)
        );
        // Whoever is off the list is nobody of whom anything is known.
        assert_eq!(alive.look(&[ONE], 20_000), []);
        assert_eq!(alive.of(OTHER, 20_000), None);
    }

    /// Whoever says of others that they are gone must not have them counted as gone while they are heard.
    #[test]
    fn a_node_that_nobody_reaches_is_suspect_sooner_and_only_if_it_is_not_heard() {
        let mut alive = Alive::default();
        alive.look(&[ONE, OTHER], 0);
        alive.heard(ONE, 7, 1000);
        assert!(!alive.may_doubt(ONE, 7000) && alive.may_doubt(ONE, 7001));
        assert_eq!(alive.doubt(ONE, 7000), None);
        assert!(alive.hears(ONE, 7000));
        assert_eq!(alive.doubt(ONE, 7001), Some(Change::Doubted(ONE)));
        assert!(!alive.hears(ONE, 7001));
        assert_eq!(alive.doubt(ONE, 8000), None, "it is told once");
        assert_eq!(alive.look(&[ONE], 17_000), [], "and not again after fifteen seconds");
        assert_eq!(alive.heard(ONE, 7, 18_000), Some(Change::Back(ONE)));
        assert!(alive.hears(ONE, 18_000));
        assert_eq!(alive.doubt(NodeId([9; 32]), 18_000), None, "nobody");
    }
}
