//! What this node says to others by itself, and what it hears of them: that they are there. Signed, and heard
//! once (N3).

use std::rc::Rc;
use std::time::Duration;

use distos_abi::{Fault, NodeId, VatName};
use distos_identity::{Bundle, Statement, Subject};
use distos_membership::{Cast, Summary};
use distos_rpc::fault_of;
use distos_schemas::network_capnp::member;

use crate::alive::{BEAT_MS, Change};
use crate::heard::read_summary;
use crate::server::{NetworkService, write_chain};
use crate::state::SERVICE;

/// By how much a beat comes earlier or later, so that nodes that were started together do not all speak at once.
const JITTER_MS: u64 = 500;
/// The first byte of what a node says: that it is there. The numbers of its bundle and of its configuration
/// follow (8 bytes each, big-endian), the digests of that and of the votes that it has heard, and of revocations (32 each), and a vote with its
/// signature, if it has something to say about that.
const BEAT: u8 = 1;

/// What a node says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Beat {
    bundle: u64,
    summary: Summary,
    vote: Option<Cast>,
}

impl Beat {
    fn encode(&self) -> Vec<u8> {
        let numbers = [self.bundle, self.summary.configuration].map(u64::to_be_bytes);
        let vote = self.vote.as_ref().map_or(&[][..], Cast::bytes);
        [&[BEAT][..], &numbers.concat(), &self.summary.votes, &self.summary.homes, vote].concat()
    }

    fn decode(body: &[u8]) -> Result<Beat, Fault> {
        let unknown = || Fault::malformed("a statement of no known kind");
        let rest = body.strip_prefix(&[BEAT]).ok_or_else(unknown)?;
        let (bundle, rest) = rest.split_first_chunk::<8>().ok_or_else(unknown)?;
        let (configuration, rest) = rest.split_first_chunk::<8>().ok_or_else(unknown)?;
        let (votes, rest) = rest.split_first_chunk::<32>().ok_or_else(unknown)?;
        let (homes, vote) = rest.split_first_chunk::<32>().ok_or_else(unknown)?;
        let [bundle, configuration] = [*bundle, *configuration].map(u64::from_be_bytes);
        let vote = (!vote.is_empty()).then(|| Cast::decode(vote)).transpose()?;
        Ok(Beat { bundle, summary: Summary { configuration, votes: *votes, homes: *homes }, vote })
    }
}

/// The network service of a node.
fn service_of(node: NodeId) -> Result<Subject, Fault> {
    Ok(Subject::Service { node, service: VatName::new(SERVICE)? })
}

impl NetworkService {
    pub(crate) fn now_us(&self) -> u64 {
        self.vat.now_ms().saturating_mul(1000)
    }

    /// By this machine's own clock, which never goes back.
    pub(crate) fn clock_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Says to each peer that this node is there, and looks who is not, until the vat ends.
    pub(crate) async fn speak(self: Rc<Self>) {
        loop {
            let mut random = [0; 8];
            // Without randomness all speak at once.
            let _ = getrandom::fill(&mut random);
            let jitter_ms = u64::from_ne_bytes(random) % (2 * JITTER_MS + 1);
            tokio::time::sleep(Duration::from_millis(BEAT_MS - JITTER_MS + jitter_ms)).await;
            let _ = self.save_if_not();
            let nodes = self.state.borrow().watched(self.now_s());
            let changes = self.alive.borrow_mut().look(&nodes, self.clock_ms());
            changes.iter().for_each(|change| self.tell_change(change));
            for node in self.state.borrow().reachable(self.now_s()) {
                // Who has not answered the last one is not asked again meanwhile.
                if self.speaking.borrow_mut().insert(node) {
                    let service = self.clone();
                    tokio::task::spawn_local(async move {
                        if let Err(fault) = service.say(node, service.beat(None)).await {
                            tracing::debug!(%node, %fault, "a node was not told that this one is there");
                        }
                        service.speaking.borrow_mut().remove(&node);
                    });
                }
            }
        }
    }

    pub(crate) fn tell_change(&self, change: &Change) {
        self.report(match change {
            Change::Suspect(node) => {
                format!("node/{node} has said nothing for 15 s: it is suspect")
            }
            Change::Doubted(node) => {
                format!("node/{node} has said nothing for 6 s and is not reached: it is suspect")
            }
            Change::Back(node) => format!("node/{node} is heard again"),
        });
    }

    /// That this node is there, what it has heard, and this vote.
    pub(crate) fn beat(&self, vote: Option<Cast>) -> Vec<u8> {
        let state = self.state.borrow();
        let bundle = state.bundle().map_or(0, Bundle::sequence);
        Beat { bundle, summary: state.members().summary(), vote }.encode()
    }

    /// Says this to a node, which answers with what it has heard.
    pub(crate) async fn say(self: &Rc<Self>, node: NodeId, body: Vec<u8>) -> Result<(), Fault> {
        let chain = {
            let state = self.state.borrow();
            let (chain, _) = state.own().ok_or_else(|| Fault::unavailable(5000, "no SVID"))?;
            chain.to_vec()
        };
        let at_us = self.ticks.borrow_mut().next(self.now_us());
        let (from, to) = (service_of(self.vat.node())?, service_of(node)?);
        let statement = Statement { from, to, at_us, body };
        let (bytes, signature) = statement.sign(&self.secret());
        let answered = self.with_member(node, async |member: member::Client| {
            let mut request = member.tell_request();
            let mut said = request.get();
            said.set_statement(&bytes);
            said.set_signature(&signature);
            write_chain(&chain, said.init_chain(chain.len() as u32));
            let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
            let answer = answer.get().map_err(|e| fault_of(&e))?;
            read_summary(answer.get_summary().map_err(|e| fault_of(&e))?)
        });
        let theirs = answered.await?;
        self.compare(node, &theirs);
        Ok(())
    }

    /// Takes what a node has said and signed, over whatever connection it came: once.
    pub(crate) fn hear(
        self: &Rc<Self>,
        bytes: &[u8],
        signature: &[u8],
        chain: &[Vec<u8>],
    ) -> Result<(), Fault> {
        let said = {
            let (state, heard) = (self.state.borrow(), self.heard.borrow());
            state.hears(&heard, bytes, signature, chain, self.now_us())?
        };
        let beat = Beat::decode(&said.body)?;
        self.note_heard(&said)?;
        let Subject::Service { node, .. } = said.from else { return Ok(()) };
        let change = self.alive.borrow_mut().heard(node, beat.bundle, self.clock_ms());
        change.iter().for_each(|change| self.tell_change(change));
        // Who was invited has come, at whomever it shows up.
        if let Err(fault) = self.came(node) {
            tracing::warn!(%node, %fault, "that it has come is not on disk");
        }
        let taken = beat.vote.map_or(Ok(()), |vote| self.hear_vote(vote));
        let is_behind = self.compare(node, &beat.summary);
        taken.map_err(|fault| match is_behind {
            // What it can make nothing of, it may understand once it has heard the rest.
            true => Fault::unavailable(1000, format!("not before it has caught up: {fault}")),
            false => fault,
        })
    }

    /// Takes a vote that somebody tells; not more of one voter than of anybody who asks, and none counts against it
    /// that it has not cast. Those that are too many are heard when this node asks for them.
    fn hear_vote(&self, vote: Cast) -> Result<(), Fault> {
        let voter = vote.vote().voter;
        let is_new = self.state.borrow().members().check(&vote)?;
        if is_new && !self.told.borrow_mut().may(voter, self.now_s()) {
            return Err(Fault::unavailable(10_000, "this voter says too much"));
        }
        self.hear_votes(vec![vote])
    }

    /// Lets a statement have its effect, and none again, also after a restart.
    fn note_heard(&self, Statement { from, at_us, .. }: &Statement) -> Result<(), Fault> {
        let (at_us, now_us) = (*at_us, self.now_us());
        if self.heard.borrow().is_ahead(from, at_us) {
            let before = self.heard.borrow().clone();
            self.heard.borrow_mut().reserve(from, at_us, now_us);
            // What is not on disk might be heard again after a restart.
            self.save_heard().inspect_err(|_| drop(self.heard.replace(before)))?;
        }
        self.heard.borrow_mut().note(from, at_us);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_neither_a_beat_nor_a_vote_is_refused() {
        let summary = Summary { configuration: 3, votes: [9; 32], homes: [8; 32] };
        let cluster = distos_identity::ClusterName::new("demo").unwrap();
        let (voter, node) = (NodeId([1; 32]), NodeId([2; 32]));
        let stance = distos_membership::Stance::Remove;
        let vote = distos_membership::Vote { cluster, voter, since: 1, node, number: 4, stance };
        let vote = vote.sign(&distos_types::HolderSecret::from_seed([1; 32]));
        for vote in [None, Some(vote)] {
            let beat = Beat { bundle: 7, summary, vote };
            assert_eq!(Beat::decode(&beat.encode()), Ok(beat));
        }
        for other in [&[][..], &[BEAT], &[BEAT; 80], &[BEAT; 82], &[2; 81]] {
            assert!(Beat::decode(other).is_err(), "{other:?}");
        }
    }
}
