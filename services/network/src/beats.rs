//! What this node says to others by itself, and what it hears of them: that they are there. Signed, and heard
//! once (N3).

use std::rc::Rc;
use std::time::Duration;

use distos_abi::{Fault, NodeId, VatName};
use distos_identity::{Statement, Subject};
use distos_rpc::fault_of;
use distos_schemas::network_capnp::member;

use crate::alive::{BEAT_MS, Change};
use crate::server::{NetworkService, write_chain};
use crate::state::SERVICE;

/// By how much a beat comes earlier or later, so that nodes that were started together do not all speak at once.
const JITTER_MS: u64 = 500;
/// The first byte of what a node says when it says that it is there; the number of its bundle follows (8 bytes,
/// big-endian).
const BEAT: u8 = 1;

/// That a node is there.
fn beat(bundle: u64) -> Vec<u8> {
    [&[BEAT][..], &bundle.to_be_bytes()].concat()
}

/// The bundle's number of one that says that it is there.
fn read_beat(body: &[u8]) -> Result<u64, Fault> {
    let bundle = body.split_first().filter(|(kind, _)| **kind == BEAT).map(|(_, bundle)| bundle);
    let bundle = bundle.and_then(|bundle| <[u8; 8]>::try_from(bundle).ok());
    bundle.map(u64::from_be_bytes).ok_or_else(|| Fault::malformed("a statement of no known kind"))
}

/// The network service of a node.
fn service_of(node: NodeId) -> Result<Subject, Fault> {
    Ok(Subject::Service { node, service: VatName::new(SERVICE)? })
}

impl NetworkService {
    fn now_us(&self) -> u64 {
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
            let nodes = self.state.borrow().members();
            let changes = self.alive.borrow_mut().look(&nodes, self.clock_ms());
            changes.iter().for_each(|change| self.tell_change(change));
            for (node, _) in self.state.borrow().reachable() {
                // Who has not answered the last one is not asked again meanwhile.
                if self.speaking.borrow_mut().insert(node) {
                    let service = self.clone();
                    tokio::task::spawn_local(async move {
                        if let Err(fault) = service.say(node).await {
                            tracing::debug!(%node, %fault, "a node was not told that this one is there");
                        }
                        service.speaking.borrow_mut().remove(&node);
                    });
                }
            }
        }
    }

    fn tell_change(&self, change: &Change) {
        self.report(match change {
            Change::Suspect(node) => {
                format!("node/{node} has said nothing for 15 s: it is suspect")
            }
            Change::Back(node) => format!("node/{node} is heard again"),
        });
    }

    async fn say(&self, node: NodeId) -> Result<(), Fault> {
        let (chain, bundle) = {
            let state = self.state.borrow();
            let (chain, _) = state.own().ok_or_else(|| Fault::unavailable(5000, "no SVID"))?;
            (chain.to_vec(), state.bundle()?.sequence())
        };
        let at_us = self.ticks.borrow_mut().next(self.now_us());
        let (from, to) = (service_of(self.vat.node())?, service_of(node)?);
        let statement = Statement { from, to, at_us, body: beat(bundle) };
        let (bytes, signature) = statement.sign(&self.secret());
        self.with_member(node, async |member: member::Client| {
            let mut request = member.tell_request();
            let mut said = request.get();
            said.set_statement(&bytes);
            said.set_signature(&signature);
            write_chain(&chain, said.init_chain(chain.len() as u32));
            request.send().promise.await.map(drop).map_err(|e| fault_of(&e))
        })
        .await
    }

    /// Takes what a node has said and signed, over whatever connection it came: once.
    pub(crate) fn hear(
        &self,
        bytes: &[u8],
        signature: &[u8],
        chain: &[Vec<u8>],
    ) -> Result<(), Fault> {
        let said = {
            let (state, heard) = (self.state.borrow(), self.heard.borrow());
            state.hears(&heard, bytes, signature, chain, self.now_us())?
        };
        let bundle = read_beat(&said.body)?;
        self.note_heard(&said)?;
        let Subject::Service { node, .. } = said.from else { return Ok(()) };
        let change = self.alive.borrow_mut().heard(node, bundle, self.clock_ms());
        change.iter().for_each(|change| self.tell_change(change));
        Ok(())
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
    fn what_is_no_beat_is_refused() {
        assert_eq!(read_beat(&beat(7)), Ok(7));
        for other in [&[][..], &[BEAT], &[2, 0, 0, 0, 0, 0, 0, 0, 7], &[BEAT; 10]] {
            assert!(read_beat(other).is_err(), "{other:?}");
        }
    }
}
