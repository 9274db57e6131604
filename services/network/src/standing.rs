//! What this node's verifier says of nodes' evidence, and what may be signed for them by it. No I/O; time is an argument.
//!
//! Where the image does not demand evidence, judgements are kept and shown, and nothing follows from them. Where it does:
//!
//! | standing | SVIDs of its services | SVID of its network service |
//! |---|---|---|
//! | fresh | until its evidence is not fresh any more, to whoever it is bound to: one key, and one life of its network service | as long as any, to the same |
//! | stale, or nobody has judged it yet | none | as long as any |
//! | expired, failed | none | none |
//!
//! The network service's own SVID outlives an appraisal on purpose: it is what a node is asked for evidence over. A node
//! whose evidence is late by minutes, because a verifier was away or the network cut, becomes fresh again by the next
//! answer, and nobody has to sign for it by hand. What that SVID opens is `Member` at other nodes' network services, and
//! no other service's objects: those are reached with SVIDs of other services.
//!
//! Nobody vouches for being silent about: what was judged stays as it was until its time is over, is stale then, and
//! expired a day later; and so is, a day after it was let in, who was never judged.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use distos_abi::{Fault, HolderKey, NodeId};
use distos_identity::MAX_SVID_LIFETIME_S;
use serde::{Deserialize, Serialize};

use crate::life::Bound;
use crate::state::SERVICE;

/// The setting of an image that says whether nodes have to show evidence.
pub(crate) const EVIDENCE: &str = "evidence";
/// How long a node is stale of which nothing is said, before it is expired: as long as an SVID may hold.
pub(crate) const GRACE_S: u64 = MAX_SVID_LIFETIME_S;
/// Between two times that a node is asked again because it has come with another key.
const AGAIN_S: u64 = 10;
/// Nodes of which something is kept: those that a node lets in, and as many that were put out.
const MAX_KNOWN: usize = 8192;
/// What is kept of a reason.
const MAX_REASON_BYTES: usize = 160;

/// Whether the image has it that nodes show evidence.
///
/// # Errors
/// [`Fault::Malformed`] if the setting is anything but `required`.
pub(crate) fn is_required(setting: Option<&str>) -> Result<bool, Fault> {
    match setting {
        None => Ok(false),
        Some("required") => Ok(true),
        Some(other) => Err(Fault::malformed(format!("{EVIDENCE} is 'required', not '{other}'"))),
    }
}

/// How far a node's evidence reaches, as `Attestation.Standing` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Standing {
    Fresh,
    Stale,
    Expired,
    Failed,
}

impl Standing {
    /// Whether nothing at all is signed for such a node, and such a node signs nothing.
    fn is_bad(self) -> bool {
        matches!(self, Standing::Expired | Standing::Failed)
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Standing::Fresh => "fresh",
            Standing::Stale => "stale",
            Standing::Expired => "expired",
            Standing::Failed => "failed",
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the verifier says of a node, until it says something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Judgement {
    pub(crate) node: NodeId,
    pub(crate) standing: Standing,
    /// Nothing that is signed for it holds longer; seconds since the Unix epoch.
    pub(crate) until_s: u64,
    /// How often its evidence has turned bad.
    pub(crate) epoch: u64,
    /// Why it is not fresh, or empty.
    pub(crate) reason: String,
    /// To whom its last good evidence was bound.
    pub(crate) bound: Option<Bound>,
}

/// What is to be remembered of a node when this service is started again. That it was fresh is not: it is judged anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Past {
    epoch: u64,
    /// How often it was put out.
    #[serde(default)]
    outs: u64,
    /// If it was expired or had failed.
    bad: Option<(Standing, String)>,
}

/// What changed for a node, for auditors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) node: NodeId,
    pub(crate) standing: Standing,
    pub(crate) reason: String,
}

#[derive(Clone, Debug)]
struct Said {
    standing: Standing,
    until_s: u64,
    /// When.
    at_s: u64,
    reason: String,
    bound: Option<Bound>,
}

/// What is known of one node.
#[derive(Clone, Debug, Default)]
struct Known {
    epoch: u64,
    /// How often it was put out, for whatever reason.
    outs: u64,
    /// What was said last, since it was let in.
    said: Option<Said>,
    /// Since when it is waited for the first word; `None` is not yet.
    since_s: Option<u64>,
    /// When it was asked again for the sake of its key.
    again_s: Option<u64>,
    /// What auditors were told.
    told: Option<(Standing, u64)>,
}

impl Known {
    /// The standing at that time, and why it is not fresh.
    fn at(&self, now_s: u64) -> (Standing, &str) {
        let late = |since_s: u64| match now_s.saturating_sub(since_s) {
            0..GRACE_S => Standing::Stale,
            _ => Standing::Expired,
        };
        match &self.said {
            None => (
                self.since_s.map_or(Standing::Stale, late),
                "this node's verifier has not judged it yet",
            ),
            Some(said) => match said.standing {
                Standing::Fresh if now_s < said.until_s => (Standing::Fresh, ""),
                Standing::Fresh => (
                    late(said.until_s),
                    "this node's verifier has said nothing since its evidence ran out",
                ),
                Standing::Stale if late(said.at_s) == Standing::Expired => {
                    (Standing::Expired, "this node's verifier has said nothing of it for a day")
                }
                other => (other, &said.reason),
            },
        }
    }

    /// Whether evidence was bound to something of which this is not so.
    fn is_bound_to_another(&self, is_it: impl Fn(Bound) -> bool) -> bool {
        self.said.as_ref().is_some_and(|said| !said.bound.is_some_and(&is_it))
    }

    fn past(&self) -> Past {
        let bad = self.said.as_ref().filter(|said| said.standing.is_bad());
        let bad = bad.map(|said| (said.standing, said.reason.clone()));
        Past { epoch: self.epoch, outs: self.outs, bad }
    }
}

/// What is known of the standing of this node and of others.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standings {
    is_required: bool,
    known: BTreeMap<NodeId, Known>,
}

impl Standings {
    /// Demands evidence from now on.
    pub(crate) fn require(&mut self) {
        self.is_required = true;
    }

    pub(crate) fn is_required(&self) -> bool {
        self.is_required
    }

    /// As it was kept.
    pub(crate) fn restore(&mut self, node: NodeId, past: Past) {
        let said = past.bad.clone().map(|(standing, reason)| {
            // It holds until something else is said.
            Said { standing, until_s: 0, at_s: 0, reason, bound: None }
        });
        let Past { epoch, outs, .. } = past;
        self.known.insert(node, Known { epoch, outs, said, ..Known::default() });
    }

    /// What is to be kept.
    pub(crate) fn keep(&self) -> impl Iterator<Item = (NodeId, Past)> {
        let all = self.known.iter().map(|(node, known)| (*node, known.past()));
        all.filter(|(_, past)| past.epoch > 0 || past.outs > 0 || past.bad.is_some())
    }

    /// Takes a judgement; whether something is to be kept that was not. What is bad counts at whatever epoch it is said:
    /// that of the node stays the highest of all.
    ///
    /// # Errors
    /// [`Fault::Malformed`] if it is good, and its epoch lower than one that was said of this node: it is from before, or its
    /// verifier has lost what it knew.
    pub(crate) fn judge(&mut self, judgement: Judgement, now_s: u64) -> Result<bool, Fault> {
        let Judgement { node, standing, until_s, mut epoch, mut reason, bound } = judgement;
        let known = self.known.get(&node);
        if standing.is_bad() {
            epoch = epoch.max(known.map_or(0, |known| known.epoch));
        }
        if let Some(known) = known.filter(|known| epoch < known.epoch) {
            return Err(Fault::malformed(format!(
                "node/{node} is judged at epoch {epoch}, and was at {} already",
                known.epoch
            )));
        }
        let before = known.map(Known::past);
        let mut end = reason.len().min(MAX_REASON_BYTES);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        reason.truncate(end);
        reason.retain(|c| !c.is_control());
        let known = self.known.entry(node).or_default();
        known.epoch = epoch;
        known.said = Some(Said { standing, until_s, at_s: now_s, reason, bound });
        Ok(before.unwrap_or(Past { epoch: 0, outs: 0, bad: None }) != known.past())
    }

    /// An operator lets a node in: what was said against it before does not count any more, what is said later does. Its
    /// epoch stays.
    pub(crate) fn admitted(&mut self, node: NodeId) {
        if let Some(known) = self.known.get_mut(&node)
            && known.said.as_ref().is_some_and(|said| said.standing.is_bad())
        {
            *known = Known { epoch: known.epoch, outs: known.outs, ..Known::default() };
        }
    }

    /// The standing of a node, if it was judged.
    pub(crate) fn of(&self, node: NodeId, now_s: u64) -> Option<Standing> {
        let known = self.known.get(&node).filter(|known| known.said.is_some())?;
        Some(known.at(now_s).0)
    }

    /// A node was put out, for whatever reason: what it was given until now is of an epoch that is over.
    pub(crate) fn put_out(&mut self, node: NodeId) {
        let known = self.known.entry(node).or_default();
        known.outs = known.outs.saturating_add(1);
    }

    /// The epochs by which what nodes are given here is told apart, of those that are not in their first: each was put out, or,
    /// where evidence is demanded, its evidence has turned bad. The sum of both goes back no more than they do.
    pub(crate) fn epochs(&self) -> impl Iterator<Item = (NodeId, u64)> {
        let all = self.known.iter().map(|(node, known)| {
            let turned = if self.is_required { known.epoch } else { 0 };
            (*node, known.outs.saturating_add(turned))
        });
        all.filter(|(_, epoch)| *epoch > 0)
    }

    /// What was told of epochs elsewhere holds here, too: what has ended by one must not be alive in it again.
    pub(crate) fn raise(&mut self, told: &Standings) {
        for (node, other) in &told.known {
            if other.epoch > 0 || other.outs > 0 {
                let known = self.known.entry(*node).or_default();
                known.epoch = known.epoch.max(other.epoch);
                known.outs = known.outs.max(other.outs);
            }
        }
    }

    /// The epoch of a node, as far as it is known.
    pub(crate) fn epoch(&self, node: NodeId) -> u64 {
        self.known.get(&node).map_or(0, |known| known.epoch)
    }

    /// Why a node is not fresh, as it was said, for people: short, and in one line.
    pub(crate) fn reason(&self, node: NodeId) -> String {
        let said = self.known.get(&node).and_then(|known| known.said.as_ref());
        said.map(|said| said.reason.clone()).unwrap_or_default()
    }

    /// Whether something is kept of this node.
    pub(crate) fn knows(&self, node: NodeId) -> bool {
        self.known.contains_key(&node)
    }

    /// Whether `own`, this node, may vouch for others.
    ///
    /// # Errors
    /// [`Fault::StaleAttestation`] if its own evidence has failed, or is expired.
    pub(crate) fn may_vouch(&self, own: NodeId, now_s: u64) -> Result<(), Fault> {
        let said = self.known.get(&own).filter(|known| known.said.is_some());
        match said.map(|known| known.at(now_s)).filter(|(at, _)| self.is_required && at.is_bad()) {
            None => Ok(()),
            Some((standing, reason)) => Err(Fault::StaleAttestation(format!(
                "this node's own evidence is {standing}, and it signs for nobody: {reason}"
            ))),
        }
    }

    /// Whether a node's evidence is good, and bound to another key than this.
    pub(crate) fn is_bound_to_another(&self, node: NodeId, by: HolderKey, now_s: u64) -> bool {
        let known = self.known.get(&node);
        self.is_required
            && self.of(node, now_s) == Some(Standing::Fresh)
            && known.is_some_and(|known| known.is_bound_to_another(|bound| bound.key == by))
    }

    /// Whether a node is to be asked again at once: its evidence is good, and bound to another key than that with which it has
    /// come, or to an earlier life of its network service: it may have been booted since. Not every time: whoever has a key that
    /// was the node's before may come with it as often as it likes.
    pub(crate) fn asks_again(&mut self, node: NodeId, by: Bound, now_s: u64) -> bool {
        let is_fresh = self.is_required && self.of(node, now_s) == Some(Standing::Fresh);
        let Some(known) = self.known.get_mut(&node).filter(|_| is_fresh) else { return false };
        let is_another = known.is_bound_to_another(|bound| bound == by);
        let is_time = known.again_s.is_none_or(|at_s| now_s.abs_diff(at_s) >= AGAIN_S);
        if is_another && is_time {
            known.again_s = Some(now_s);
        }
        is_another && is_time
    }

    /// The last second in which what is signed for a service of another node may hold. `by` is who asks for it: evidence
    /// vouches for whoever has the key to which it is bound, and not for somebody who has one that was the node's before; and for
    /// the boot that has answered, and not for the next one, which may find that key on the disk (A2).
    ///
    /// # Errors
    /// [`Fault::StaleAttestation`], with the reason, if nothing is signed for it.
    pub(crate) fn last_s(
        &self,
        node: NodeId,
        service: &str,
        by: Bound,
        now_s: u64,
    ) -> Result<u64, Fault> {
        if !self.is_required {
            return Ok(u64::MAX);
        }
        let nothing = Known::default();
        let known = self.known.get(&node).unwrap_or(&nothing);
        let (standing, reason) = known.at(now_s);
        match (standing, &known.said) {
            // Whoever has a key that was the node's before does not stay the node by it, either.
            (Standing::Fresh, Some(said))
                if said.bound != Some(by) && (service != SERVICE || said.bound.is_some()) =>
            {
                let other = match said.bound.is_some_and(|bound| bound.key == by.key) {
                    true => "is from before its network service was started",
                    false => "is bound to another key than that with which it asks",
                };
                Err(Fault::StaleAttestation(format!(
                    "node/{node}'s evidence {other}: it is asked again"
                )))
            }
            (Standing::Fresh | Standing::Stale, _) if service == SERVICE => Ok(u64::MAX),
            // An SVID holds to the end of its last second.
            (Standing::Fresh, Some(said)) => Ok(said.until_s.saturating_sub(1)),
            _ => Err(Fault::StaleAttestation(format!("node/{node} is {standing}: {reason}"))),
        }
    }

    /// Looks at the standing of those that are let in, of whom `own` is not one: what has changed since it was asked last.
    /// Forgets those that are let in no more and of whom nothing is to be kept.
    pub(crate) fn review(
        &mut self,
        own: NodeId,
        let_in: &BTreeSet<NodeId>,
        now_s: u64,
    ) -> Vec<Change> {
        for node in let_in {
            self.known.entry(*node).or_default().since_s.get_or_insert(now_s);
        }
        let stays = |node: &NodeId| *node == own || let_in.contains(node);
        self.known.retain(|node, known| {
            if !stays(node) {
                // Who comes back is waited for anew.
                known.since_s = None;
                known.said.take_if(|said| !said.standing.is_bad());
            }
            stays(node) || known.epoch > 0 || known.outs > 0 || known.said.is_some()
        });
        let surplus = self.known.len().saturating_sub(MAX_KNOWN);
        // Who has failed is remembered for longest.
        let others = self.known.iter().filter(|(node, _)| !stays(node));
        let mut others: Vec<(bool, NodeId)> =
            others.map(|(node, known)| (known.said.is_some(), *node)).collect();
        others.sort_unstable();
        for (_, node) in others.into_iter().take(surplus) {
            self.known.remove(&node);
        }
        let mut changes = Vec::new();
        for (node, known) in &mut self.known {
            if known.said.is_none() && !(self.is_required && let_in.contains(node)) {
                continue;
            }
            let (standing, reason) = known.at(now_s);
            if known.told != Some((standing, known.epoch)) {
                let reason = reason.to_owned();
                known.told = Some((standing, known.epoch));
                changes.push(Change { node: *node, standing, reason });
            }
        }
        changes
    }
}

#[cfg(test)]
#[path = "standing_tests.rs"]
mod tests;
