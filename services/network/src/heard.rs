//! What a node has heard of its cluster and of revocations, as others ask for it and offer more: other nodes, and whoever carries it to
//! a store that nodes share.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use capnp::capability::FromClientHook as _;
use distos_abi::{Fault, LinkHash, NodeId};
use distos_membership::{
    Cast, ClusterState, Known, MAX_HOMES, Mark, Members, Offer, PAGE, Place, REVOCATIONS_PAGE,
    Signed, Summary,
};
use distos_rpc::fault_of;
use distos_schemas::network_capnp::{heard, known, member, network, summary};
use distos_types::{Revocation, Signer};

use crate::server::NetworkService;
use crate::state::State;

/// How long somebody may wait for more to be heard, before they are answered in any case.
pub(crate) const MORE_WAIT: Duration = Duration::from_secs(5);
/// Nodes that are let in.
const MAX_LET_IN: u32 = 8192;
/// Voters, or homes, of whom somebody says what it has heard.
const MAX_KNOWN: u32 = MAX_HOMES as u32;

/// What a node has heard, over a connection to it: a cluster's state as its nodes keep it by themselves.
pub struct NodeState {
    heard: heard::Client,
    /// To whom something may be offered; another node is told by statements.
    offers: Option<network::Client>,
}

impl NodeState {
    /// That of this machine's node.
    pub fn own(client: network::Client) -> NodeState {
        NodeState { heard: client.clone().cast_to(), offers: Some(client) }
    }

    /// That of another node.
    pub(crate) fn of_peer(client: member::Client) -> NodeState {
        NodeState { heard: client.cast_to(), offers: None }
    }

    /// The nodes for which it takes revocations.
    ///
    /// # Errors
    /// What it answers; [`Fault::Malformed`] of another node, which is not asked.
    pub async fn homes(&self) -> Result<BTreeSet<NodeId>, Fault> {
        let own = self.offers.as_ref();
        let own = own.ok_or_else(|| Fault::malformed("another node's homes are its own affair"))?;
        let answer = own.homes_request().send().promise.await.map_err(|e| fault_of(&e))?;
        let nodes = answer.get().and_then(|answer| answer.get_nodes()).map_err(|e| fault_of(&e))?;
        if nodes.len() > MAX_LET_IN {
            return Err(Fault::malformed("a node does not let so many in"));
        }
        nodes.iter().map(|one| NodeId::try_from(one.map_err(|e| fault_of(&e))?)).collect()
    }

    async fn heard(&self, seen: Option<&Summary>) -> Result<Known, Fault> {
        let mut request = self.heard.heard_request();
        if let Some(seen) = seen {
            write_summary(seen, request.get().init_seen());
        }
        let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
        let answer = answer.get().map_err(|e| fault_of(&e))?;
        let summary = read_summary(answer.get_summary().map_err(|e| fault_of(&e))?)?;
        let digests = read_known(answer.get_known().map_err(|e| fault_of(&e))?)?;
        let homes = read_known(answer.get_homes().map_err(|e| fault_of(&e))?)?;
        Ok(Known { summary, digests, homes })
    }
}

impl ClusterState for NodeState {
    async fn known(&mut self) -> Result<Known, Fault> {
        self.heard(None).await
    }

    async fn configuration(&mut self) -> Result<Option<Signed>, Fault> {
        let answer = self.heard.configuration_request().send().promise.await;
        let answer = answer.map_err(|e| fault_of(&e))?;
        let text = answer.get().and_then(|answer| answer.get_configuration());
        let text = text.and_then(|text| Ok(text.to_str()?)).map_err(|e| fault_of(&e))?;
        (!text.is_empty()).then(|| Signed::parse(text)).transpose()
    }

    async fn votes(
        &mut self,
        known: &BTreeMap<NodeId, [u8; 32]>,
        after: Option<Place>,
    ) -> Result<(Vec<Cast>, Option<Place>), Fault> {
        let mut request = self.heard.votes_request();
        let after = after.map(|Place { voter, node }| (voter.0, node.0));
        request.get().set_after(&write_place(after));
        write_known(known, request.get().init_known(known.len() as u32));
        let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
        let answer = answer.get().map_err(|e| fault_of(&e))?;
        let casts = read_casts(answer.get_votes().map_err(|e| fault_of(&e))?)?;
        let next = read_place(answer.get_after().map_err(|e| fault_of(&e))?)?;
        let next = next.map(|(voter, node)| Place { voter: NodeId(voter), node: NodeId(node) });
        Ok((casts, next))
    }

    async fn revocations(
        &mut self,
        known: &BTreeMap<NodeId, [u8; 32]>,
        after: Option<Mark>,
    ) -> Result<(Vec<Revocation>, Option<Mark>), Fault> {
        let mut request = self.heard.revocations_request();
        request.get().set_after(&write_mark(after));
        write_known(known, request.get().init_known(known.len() as u32));
        let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
        let answer = answer.get().map_err(|e| fault_of(&e))?;
        let page = read_revocations(answer.get_revocations().map_err(|e| fault_of(&e))?)?;
        let next = read_mark(answer.get_after().map_err(|e| fault_of(&e))?)?;
        Ok((page, next))
    }

    async fn leave(&mut self, offer: Offer<'_>) -> Result<(), Fault> {
        let Offer { configuration, votes, revocations } = offer;
        let offers = self.offers.as_ref();
        let offers =
            offers.ok_or_else(|| Fault::malformed("another node is told by statements"))?;
        let mut request = offers.offer_request();
        if let Some(signed) = configuration {
            request.get().set_configuration(signed.to_json());
        }
        write_casts(votes.iter(), request.get().init_votes(votes.len() as u32));
        let list = request.get().init_revocations(revocations.len() as u32);
        write_revocations(revocations, list);
        request.send().promise.await.map(drop).map_err(|e| fault_of(&e))
    }

    async fn changed(&mut self, seen: &Summary) -> Result<(), Fault> {
        self.heard(Some(seen)).await.map(drop)
    }
}

pub(crate) fn read_casts(list: capnp::data_list::Reader<'_>) -> Result<Vec<Cast>, Fault> {
    if list.len() > PAGE as u32 {
        return Err(Fault::malformed(format!("{PAGE} votes at most are told at once")));
    }
    list.iter().map(|one| Cast::decode(one.map_err(|e| fault_of(&e))?)).collect()
}

pub(crate) fn write_casts<'a>(
    casts: impl IntoIterator<Item = &'a Cast>,
    mut list: capnp::data_list::Builder<'_>,
) {
    for (index, cast) in (0..).zip(casts) {
        list.set(index, cast.bytes());
    }
}

pub(crate) fn read_summary(summary: summary::Reader<'_>) -> Result<Summary, Fault> {
    let digest = |bytes: capnp::Result<&[u8]>| {
        let bytes = bytes.map_err(|e| fault_of(&e))?.try_into();
        bytes.map_err(|_| Fault::malformed("a digest has 32 bytes"))
    };
    let (votes, homes) = (digest(summary.get_votes())?, digest(summary.get_homes())?);
    Ok(Summary { configuration: summary.get_configuration(), votes, homes })
}

pub(crate) fn write_summary(summary: &Summary, mut into: summary::Builder<'_>) {
    into.set_configuration(summary.configuration);
    into.set_votes(&summary.votes);
    into.set_homes(&summary.homes);
}

/// What somebody has heard, by voter or home.
pub(crate) fn read_known(
    list: capnp::struct_list::Reader<'_, known::Owned>,
) -> Result<BTreeMap<NodeId, [u8; 32]>, Fault> {
    if list.len() > MAX_KNOWN {
        return Err(Fault::malformed("a cluster has not so many nodes"));
    }
    let one = |one: known::Reader<'_>| -> Result<(NodeId, [u8; 32]), Fault> {
        let node = NodeId::try_from(one.get_node().map_err(|e| fault_of(&e))?)?;
        let digest = one.get_digest().map_err(|e| fault_of(&e))?.try_into();
        Ok((node, digest.map_err(|_| Fault::malformed("a digest has 32 bytes"))?))
    };
    list.iter().map(one).collect()
}

pub(crate) fn write_known(
    known: &BTreeMap<NodeId, [u8; 32]>,
    mut list: capnp::struct_list::Builder<'_, known::Owned>,
) {
    for (index, (node, digest)) in (0..).zip(known) {
        let mut one = list.reborrow().get(index);
        one.set_node(&node.0);
        one.set_digest(digest);
    }
}

/// Where somebody goes on: the voter, then the node.
type Behind = ([u8; 32], [u8; 32]);

/// The same as bytes.
pub(crate) fn read_place(bytes: &[u8]) -> Result<Option<Behind>, Fault> {
    let broken = |_| Fault::malformed("a place has 64 bytes");
    match (bytes.is_empty(), bytes.split_first_chunk::<32>()) {
        (true, _) => Ok(None),
        (false, Some((first, second))) => Ok(Some((*first, second.try_into().map_err(broken)?))),
        (false, None) => Err(Fault::malformed("a place has 64 bytes")),
    }
}

pub(crate) fn write_place(place: Option<Behind>) -> Vec<u8> {
    place.map(|(first, second)| [first, second].concat()).unwrap_or_default()
}

/// Where somebody goes on: the home, the link, and by whom.
fn read_mark(bytes: &[u8]) -> Result<Option<Mark>, Fault> {
    let broken = || Fault::malformed("a mark has 65 bytes");
    let Some((signer, place)) = bytes.split_last() else { return Ok(None) };
    let signer = match signer {
        0 => Signer::Issuer,
        1 => Signer::Holder,
        _ => return Err(broken()),
    };
    let (home, link) = read_place(place)?.ok_or_else(broken)?;
    Ok(Some(Mark { home: NodeId(home), link: LinkHash(link), signer }))
}

fn write_mark(mark: Option<Mark>) -> Vec<u8> {
    let Some(Mark { home, link, signer }) = mark else { return Vec::new() };
    [&write_place(Some((home.0, link.0)))[..], &[u8::from(signer == Signer::Holder)]].concat()
}

/// At most a page of them.
pub(crate) fn read_revocations(
    list: capnp::data_list::Reader<'_>,
) -> Result<Vec<Revocation>, Fault> {
    if list.len() > REVOCATIONS_PAGE as u32 {
        let why = format!("{REVOCATIONS_PAGE} revocations at most are told at once");
        return Err(Fault::malformed(why));
    }
    list.iter().map(|one| Revocation::decode(one.map_err(|e| fault_of(&e))?)).collect()
}

pub(crate) fn write_revocations<'a>(
    revocations: impl IntoIterator<Item = &'a Revocation>,
    mut list: capnp::data_list::Builder<'_>,
) {
    for (index, revocation) in (0..).zip(revocations) {
        list.set(index, revocation.bytes());
    }
}

/// What is asked for, of what this node has heard.
impl NetworkService {
    /// In short; once it differs from what somebody has seen, if they may wait.
    pub(crate) async fn answer_heard(
        &self,
        seen: summary::Reader<'_>,
        may_wait: bool,
    ) -> Result<Known, Fault> {
        let has_seen = seen.has_votes().then(|| read_summary(seen)).transpose()?;
        if may_wait && let Some(seen) = has_seen {
            let mut more = self.more.subscribe();
            let more = more.wait_for(|_| self.state.borrow().members().summary() != seen);
            // The sender lives as long as this service.
            let _ = tokio::time::timeout(MORE_WAIT, more).await;
        }
        Ok(self.state.borrow().members().known())
    }

    /// Takes what somebody has heard elsewhere: `install` is called with what is known then, and what was before is
    /// returned by it, unless whoever has offered it may do so no more.
    pub(crate) fn offered(
        self: &Rc<Self>,
        configuration: Option<Signed>,
        casts: Vec<Cast>,
        revocations: Vec<Revocation>,
        install: impl FnOnce(State) -> Result<State, Fault>,
    ) -> Result<(), Fault> {
        let (before, mut wrong, mut configured) = (self.let_in(), None, None);
        let mut new = 0;
        // Signatures are looked at here, and not while a revocation waits.
        let next = self.changed(|state| {
            if let Some(signed) = configuration {
                let number = signed.configuration().number;
                match state.configure(signed, &self.issuer_secret, self.now_us()) {
                    Ok(is_new) => configured = is_new.then_some(number),
                    Err(fault) => wrong = Some(fault),
                }
            }
            let taken = state.take(casts);
            new = taken.0;
            let ended = state.take_revocations(revocations, self.vat.now_ms());
            new += ended.0;
            wrong = wrong.take().or(taken.1).or(ended.1);
            Ok(())
        })?;
        if configured.is_some() || new > 0 {
            install(next)?;
            self.more.send_replace(());
            if self.report_changes(&before) || configured.is_some() {
                self.tell();
                // Who was put out, and when.
                self.is_unsaved.set(true);
            }
            if let Some(number) = configured {
                self.configured(number);
            }
        }
        self.save_if_not()?;
        self.save_heard_votes(wrong)
    }
}

pub(crate) fn answer_known(known: &Known, mut reply: heard::heard_results::Builder<'_>) {
    write_summary(&known.summary, reply.reborrow().init_summary());
    write_known(&known.digests, reply.reborrow().init_known(known.digests.len() as u32));
    write_known(&known.homes, reply.init_homes(known.homes.len() as u32));
}

pub(crate) fn answer_votes(
    members: &Members,
    asked: heard::votes_params::Reader<'_>,
    mut reply: heard::votes_results::Builder<'_>,
) -> Result<(), Fault> {
    let known = read_known(asked.get_known().map_err(|e| fault_of(&e))?)?;
    let after = read_place(asked.get_after().map_err(|e| fault_of(&e))?)?;
    let after = after.map(|(voter, node)| Place { voter: NodeId(voter), node: NodeId(node) });
    let (page, next) = members.page(&known, after, PAGE);
    reply.set_after(&write_place(next.map(|Place { voter, node }| (voter.0, node.0))));
    let count = page.len() as u32;
    write_casts(page, reply.init_votes(count));
    Ok(())
}

pub(crate) fn answer_revocations(
    members: &Members,
    asked: heard::revocations_params::Reader<'_>,
    mut reply: heard::revocations_results::Builder<'_>,
) -> Result<(), Fault> {
    let known = read_known(asked.get_known().map_err(|e| fault_of(&e))?)?;
    let after = read_mark(asked.get_after().map_err(|e| fault_of(&e))?)?;
    let (page, next) = members.revocations().page(&known, after, REVOCATIONS_PAGE);
    reply.set_after(&write_mark(next));
    let count = page.len() as u32;
    write_revocations(page, reply.init_revocations(count));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_as_it_was_written_and_no_other_bytes_are_one() {
        for signer in [Signer::Issuer, Signer::Holder] {
            let mark = Some(Mark { home: NodeId([1; 32]), link: LinkHash([2; 32]), signer });
            assert_eq!(read_mark(&write_mark(mark)), Ok(mark));
        }
        assert_eq!(read_mark(&write_mark(None)), Ok(None));
        for bytes in [vec![2; 65], vec![0; 64], vec![0; 66], vec![0; 1]] {
            assert!(read_mark(&bytes).is_err(), "{bytes:?}");
        }
        let place = Some(([1; 32], [2; 32]));
        assert_eq!(read_place(&write_place(place)), Ok(place));
        assert_eq!(read_place(&write_place(None)), Ok(None));
        for len in [1, 31, 32, 63, 65] {
            assert!(read_place(&vec![0; len]).is_err(), "{len}");
        }
    }
}
