//! How nodes of a cluster come to go by the same configuration and to have heard the same votes. Whoever casts a vote
//! tells everybody; with each word that a node is there it says what it has heard, and whoever has heard something
//! else asks it. All of it is signed by whoever decides it: it does not matter from whom it comes.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use distos_abi::{Fault, HolderKey, NodeId};
use distos_membership::{Cast, Place, Signed, Summary, Voter};
use distos_rpc::fault_of;
use distos_rpc::record::Record;
use distos_schemas::network_capnp::{known, member};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};

use crate::server::{HEARD_WAIT, NetworkService};
use crate::state::State;

/// Votes in one answer.
pub(crate) const PAGE: usize = 256;
/// Answers that are asked for at a time: all votes that there may be.
const MAX_PAGES: usize = 192;
/// Nodes that are asked at one time for what this one has not heard.
const MAX_ASKED: usize = 4;

/// What is on disk of one voter.
#[derive(Serialize, Deserialize)]
struct VotesDisk {
    /// In base64, each with its signature.
    votes: Vec<String>,
}

impl NetworkService {
    /// Where the votes are that were signed with this key: another key of the same voter's is another voter.
    fn votes_record(&self, key: HolderKey) -> Result<Record, Fault> {
        let directory = self.vat.data_dir().ok_or_else(|| Fault::internal("it has a directory"))?;
        Ok(votes_record(directory, key))
    }

    /// Puts on disk what is not.
    pub(crate) fn save_votes(&self) -> Result<(), Fault> {
        let state = self.state.borrow();
        let members = state.members();
        let voters = members.voting().map(|voting| voting.voters.clone()).unwrap_or_default();
        let digests: BTreeMap<NodeId, [u8; 32]> = members.digests().collect();
        let mut kept = self.kept_votes.borrow_mut();
        for (voter, Voter { key, .. }) in &voters {
            let Some(digest) = digests.get(voter) else { continue };
            if kept.get(key) != Some(digest) {
                let votes = members.casts(*voter).map(|cast| STANDARD.encode(cast.bytes()));
                self.votes_record(*key)?.save(&VotesDisk { votes: votes.collect() })?;
                kept.insert(*key, *digest);
            }
        }
        let voting: BTreeSet<&HolderKey> = voters.values().map(|voter| &voter.key).collect();
        let gone: Vec<HolderKey> =
            kept.keys().filter(|key| !voting.contains(key)).copied().collect();
        for key in gone {
            if let Err(error) = std::fs::remove_file(self.votes_record(key)?.path()) {
                tracing::warn!(%error, "the votes of one who has none any more stay");
            }
            kept.remove(&key);
        }
        Ok(())
    }

    fn let_in(&self) -> BTreeSet<NodeId> {
        self.state.borrow().nodes(self.now_s()).into_keys().collect()
    }

    /// Tells this node's services if other nodes are let in than `before`, and the auditors why.
    pub(crate) fn tell_if_changed(&self, before: &BTreeSet<NodeId>) {
        let now = self.let_in();
        if now == *before {
            return;
        }
        self.tell();
        let told = |nodes: Vec<&NodeId>, what: &str| {
            for node in nodes {
                let standing = self.state.borrow().members().standing(*node);
                let (yes, no) = (names(&standing.admit), names(&standing.remove));
                self.report(format!("node/{node} {what}: for it {yes}, against it {no}"));
            }
        };
        told(now.difference(before).collect(), "is let in");
        told(before.difference(&now).collect(), "is no longer let in");
    }

    /// Takes votes that came from somewhere: what follows from them has its effect at once.
    pub(crate) fn hear_votes(&self, casts: Vec<Cast>) -> Result<(), Fault> {
        let before = self.let_in();
        let (new, wrong) = self.state.borrow_mut().take(casts);
        if new > 0 {
            self.tell_if_changed(&before);
            self.save_votes()?;
        }
        wrong.map_or(Ok(()), Err)
    }

    /// Takes a configuration that came from another node.
    fn hear_configuration(self: &Rc<Self>, signed: Signed) -> Result<(), Fault> {
        let number = signed.configuration().number;
        let (mut is_new, mut casts) = (false, Vec::new());
        let next = self.changed(|state: &mut State| {
            (is_new, casts) = state.configure(signed, &self.issuer_secret, self.now_us())?;
            Ok(())
        })?;
        if is_new {
            let before = self.install(next);
            self.save_or(before)?;
            self.configured(number, casts);
        }
        Ok(())
    }

    /// What is to be done once this node goes by another configuration.
    pub(crate) fn configured(self: &Rc<Self>, number: u64, casts: Vec<Cast>) {
        self.report(format!("goes by configuration {number} of its cluster"));
        let service = self.clone();
        tokio::task::spawn_local(async move {
            // Others hear of it at once, and ask for it.
            service.spread(Some(service.beat(None))).await;
            service.spread_all(casts);
        });
    }

    /// Says this to every node that is let in and can be reached; those that have not heard it in time. `None` is
    /// nothing.
    pub(crate) async fn spread(self: &Rc<Self>, body: Option<Vec<u8>>) -> Vec<NodeId> {
        let Some(body) = body else { return Vec::new() };
        let nodes = self.state.borrow().reachable(self.now_s());
        let mut unheard: BTreeSet<NodeId> = nodes.iter().copied().collect();
        let said = nodes.into_iter().map(|node| {
            let (service, body) = (self.clone(), body.clone());
            // Who takes longer hears it all the same.
            tokio::task::spawn_local(async move { (node, service.say(node, body).await) })
        });
        let mut said: FuturesUnordered<_> = said.collect();
        let all = async {
            while let Some(done) = said.next().await {
                if let Ok((node, Ok(()))) = done {
                    unheard.remove(&node);
                }
            }
        };
        let _ = tokio::time::timeout(HEARD_WAIT, all).await;
        unheard.into_iter().collect()
    }

    /// Says these votes to everybody, meanwhile.
    pub(crate) fn spread_all(self: Rc<Self>, casts: impl IntoIterator<Item = Cast>) {
        let casts: Vec<Cast> = casts.into_iter().collect();
        tokio::task::spawn_local(async move {
            for cast in casts {
                self.spread(Some(self.beat(Some(cast)))).await;
            }
        });
    }

    /// A node has said what it has: asks it, if this one has heard something else, and says so.
    pub(crate) fn compare(self: &Rc<Self>, node: NodeId, theirs: &Summary) -> bool {
        let is_behind = self.state.borrow().members().is_behind(theirs);
        let mut asking = self.asking.borrow_mut();
        if !is_behind || asking.len() >= MAX_ASKED || !asking.insert(node) {
            return is_behind;
        }
        let (service, number) = (self.clone(), theirs.configuration);
        tokio::task::spawn_local(async move {
            if let Err(fault) = service.catch_up(node, number).await {
                tracing::debug!(%node, %fault, "a node did not say what this one has not heard");
            }
            service.asking.borrow_mut().remove(&node);
        });
        true
    }

    /// Asks a node for what this one has not heard.
    async fn catch_up(self: &Rc<Self>, node: NodeId, number: u64) -> Result<(), Fault> {
        self.with_member(node, async |member: member::Client| {
            if number > self.state.borrow().members().number() {
                let answer = member.configuration_request().send().promise.await;
                let answer = answer.map_err(|e| fault_of(&e))?;
                let text = answer.get().and_then(|answer| answer.get_configuration());
                let text = text.and_then(|text| Ok(text.to_str()?)).map_err(|e| fault_of(&e))?;
                self.hear_configuration(Signed::parse(text)?)?;
            }
            let heard: Vec<_> = self.state.borrow().members().digests().collect();
            let mut after = Vec::new();
            for _ in 0..MAX_PAGES {
                let mut request = member.votes_request();
                request.get().set_after(&after);
                let mut known = request.get().init_known(heard.len() as u32);
                for (index, (voter, digest)) in (0..).zip(&heard) {
                    let mut one = known.reborrow().get(index);
                    one.set_voter(&voter.0);
                    one.set_digest(digest);
                }
                let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
                let answer = answer.get().map_err(|e| fault_of(&e))?;
                let casts = read_casts(answer.get_votes().map_err(|e| fault_of(&e))?)?;
                self.hear_votes(casts)?;
                after = answer.get_after().map_err(|e| fault_of(&e))?.to_vec();
                if after.is_empty() {
                    return Ok(());
                }
            }
            Err(Fault::malformed("there is no end to its votes"))
        })
        .await
    }
}

/// The record of the votes that were signed with this key.
fn votes_record(directory: &std::path::Path, key: HolderKey) -> Record {
    const REMEDY: &str = "remove it: the other nodes of the cluster tell this one again";
    Record::new(directory.join(format!("votes-{key}")), "distos-votes", REMEDY)
}

/// The votes on disk that were signed with this key.
pub(crate) fn load_votes(directory: &std::path::Path, key: HolderKey) -> Result<Vec<Cast>, Fault> {
    let Some(disk) = votes_record(directory, key).load::<VotesDisk>()? else {
        return Ok(Vec::new());
    };
    let broken = |_| Fault::Corrupt("a vote on disk is not in base64".into());
    let read = |text: &String| Cast::decode(&STANDARD.decode(text).map_err(broken)?);
    disk.votes.iter().map(read).collect()
}

fn read_casts(list: capnp::data_list::Reader<'_>) -> Result<Vec<Cast>, Fault> {
    if list.len() > PAGE as u32 {
        return Err(Fault::malformed(format!("an answer has {PAGE} votes at most")));
    }
    list.iter().map(|one| Cast::decode(one.map_err(|e| fault_of(&e))?)).collect()
}

/// What whoever asks has heard, by voter.
pub(crate) fn read_known(
    list: capnp::struct_list::Reader<'_, known::Owned>,
) -> Result<BTreeMap<NodeId, [u8; 32]>, Fault> {
    if list.len() > distos_membership::MAX_VOTERS as u32 {
        return Err(Fault::malformed("a cluster has not so many voters"));
    }
    let one = |one: known::Reader<'_>| -> Result<(NodeId, [u8; 32]), Fault> {
        let voter = NodeId::try_from(one.get_voter().map_err(|e| fault_of(&e))?)?;
        let digest = one.get_digest().map_err(|e| fault_of(&e))?.try_into();
        Ok((voter, digest.map_err(|_| Fault::malformed("a digest has 32 bytes"))?))
    };
    list.iter().map(one).collect()
}

/// Where somebody goes on, as bytes: the voter, then the node.
pub(crate) fn read_place(bytes: &[u8]) -> Result<Option<Place>, Fault> {
    match (bytes.is_empty(), bytes.split_at_checked(32)) {
        (true, _) => Ok(None),
        (false, Some((voter, node))) => {
            Ok(Some(Place { voter: NodeId::try_from(voter)?, node: NodeId::try_from(node)? }))
        }
        (false, None) => Err(Fault::malformed("a place has 64 bytes")),
    }
}

pub(crate) fn write_place(place: Option<Place>) -> Vec<u8> {
    place.map(|place| [place.voter.0, place.node.0].concat()).unwrap_or_default()
}

fn names(nodes: &BTreeSet<NodeId>) -> String {
    match nodes.is_empty() {
        true => "nobody".to_owned(),
        false => nodes.iter().map(|node| format!("node/{node}")).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_as_it_was_written_and_no_other_bytes_are_one() {
        let place = Some(Place { voter: NodeId([1; 32]), node: NodeId([2; 32]) });
        assert_eq!(read_place(&write_place(place)), Ok(place));
        assert_eq!(read_place(&write_place(None)), Ok(None));
        for len in [1, 31, 32, 63, 65] {
            assert!(read_place(&vec![0; len]).is_err(), "{len}");
        }
    }
}
