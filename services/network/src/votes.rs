//! How nodes of a cluster come to go by the same configuration and to have heard the same votes. Whoever casts a vote
//! tells everybody; with each word that a node is there it says what it has heard, and whoever has heard something
//! else asks it. All of it is signed by whoever decides it: it does not matter from whom it comes.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use distos_abi::{Fault, HolderKey, NodeId};
use distos_membership::{
    Cast, ClusterState as _, Signed, Summary, Voter, all_revocations, all_votes,
};
use distos_rpc::record::Record;
use distos_schemas::network_capnp::member;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};

use crate::alive::BEAT_MS;
use crate::heard::NodeState;
use crate::server::{HEARD_WAIT, NetworkService};
use crate::state::State;

/// How long it may take to ask for all of them.
const PAGES_WAIT: Duration = Duration::from_secs(5);
/// Nodes that are asked at one time for what this one has not heard, and how long one is not asked again: so that
/// whoever does not answer is not in the way of those who do.
const MAX_ASKED: usize = 4;
const ASK_AGAIN_MS: u64 = BEAT_MS;
const ASK_AGAIN_IN_VAIN_MS: u64 = 6 * BEAT_MS;
/// Changes that are told one by one.
const MAX_REPORTS: usize = 16;

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
        let digests: BTreeMap<NodeId, [u8; 32]> = members.digests().collect();
        let mut kept = self.kept_votes.borrow_mut();
        for (voter, Voter { key, .. }) in members.voting().into_iter().flat_map(|v| &v.voters) {
            let Some(digest) = digests.get(voter) else { continue };
            if kept.get(key) != Some(digest) {
                let votes = members.casts(*voter).map(|cast| STANDARD.encode(cast.bytes()));
                self.votes_record(*key)?.save(&VotesDisk { votes: votes.collect() })?;
                kept.insert(*key, *digest);
            }
        }
        Ok(())
    }

    /// Removes the votes of those who have none any more, by what is on disk.
    pub(crate) fn forget_votes(&self) -> Result<(), Fault> {
        let state = self.state.borrow();
        let voting = state.members().voting();
        let keys: BTreeSet<HolderKey> =
            voting.into_iter().flat_map(|v| v.voters.values()).map(|voter| voter.key).collect();
        let mut kept = self.kept_votes.borrow_mut();
        let gone: Vec<HolderKey> = kept.keys().filter(|key| !keys.contains(key)).copied().collect();
        for key in gone {
            if let Err(error) = std::fs::remove_file(self.votes_record(key)?.path()) {
                tracing::warn!(%error, "the votes of one who has none any more stay");
            }
            kept.remove(&key);
        }
        Ok(())
    }

    /// The nodes that are let in.
    pub(crate) fn let_in(&self) -> BTreeSet<NodeId> {
        self.state.borrow().nodes(self.now_s()).into_keys().collect()
    }

    /// Tells the auditors who is let in now and was not `before`, and the other way round; whether anybody is.
    pub(crate) fn report_changes(&self, before: &BTreeSet<NodeId>) -> bool {
        let now = self.let_in();
        let (came, went) = (now.difference(before), before.difference(&now));
        let changes = came.map(|node| (node, "is let in"));
        let changes: Vec<_> =
            changes.chain(went.map(|node| (node, "is no longer let in"))).collect();
        for (node, what) in changes.iter().take(MAX_REPORTS) {
            let standing = self.state.borrow().members().standing(**node);
            let (yes, no) = (names(&standing.admit), names(&standing.remove));
            self.report(format!("node/{node} {what}: for it {yes}, against it {no}"));
        }
        if let Some(more @ 1..) = changes.len().checked_sub(MAX_REPORTS) {
            self.report(format!("the same is so for {more} more nodes"));
        }
        !changes.is_empty()
    }

    /// Takes votes that came from somewhere: what follows from them has its effect at once.
    pub(crate) fn hear_votes(&self, casts: Vec<Cast>) -> Result<(), Fault> {
        let (_, wrong) = self.follow(casts);
        self.save_heard_votes(wrong)
    }

    /// Puts votes on disk that were followed; what is wrong with one of the others.
    pub(crate) fn save_heard_votes(&self, wrong: Option<Fault>) -> Result<(), Fault> {
        // Also what was heard before, if there was no room for it then.
        self.save_if_not()?;
        self.save_votes()?;
        self.save_revocations()?;
        wrong.map_or(Ok(()), Err)
    }

    /// Puts into effect what was heard; how many votes are new, and what is wrong with one of the others.
    fn follow(&self, casts: Vec<Cast>) -> (usize, Option<Fault>) {
        let before = self.let_in();
        let taken = self.state.borrow_mut().take(casts);
        if self.state.borrow_mut().note_put_out(&before, self.now_s()) {
            self.is_unsaved.set(true);
        }
        if taken.0 > 0 {
            self.more.send_replace(());
            if self.report_changes(&before) {
                self.tell();
            }
        }
        taken
    }

    /// Puts on disk what did not get there before, or tries again later.
    pub(crate) fn save_if_not(&self) -> Result<(), Fault> {
        if self.is_unsaved.get() {
            let saved = self.save();
            self.is_unsaved.set(saved.is_err());
            saved.inspect_err(|fault| tracing::error!(%fault, "what was heard is not on disk"))?;
        }
        Ok(())
    }

    /// Takes a configuration that came from another node.
    fn hear_configuration(self: &Rc<Self>, signed: Signed) -> Result<(), Fault> {
        let (number, before) = (signed.configuration().number, self.let_in());
        let mut is_new = false;
        let next = self.changed(|state: &mut State| {
            is_new = state.configure(signed, &self.issuer_secret, self.now_us())?;
            Ok(())
        })?;
        if is_new {
            self.install(next);
            self.report_changes(&before);
            self.tell();
            self.configured(number);
            // It holds whether or not there is room on the disk: whom it leaves out does not come back for that.
            self.is_unsaved.set(true);
            let _ = self.save_if_not();
        }
        Ok(())
    }

    /// What is to be done once this node goes by another configuration: others hear of it, and ask for it and for what
    /// this node says by it.
    pub(crate) fn configured(self: &Rc<Self>, number: u64) {
        self.report(format!("goes by configuration {number} of its cluster"));
        let service = self.clone();
        tokio::task::spawn_local(async move { service.spread(Some(service.beat(None))).await });
    }

    /// Says this to every node that is let in and can be reached; those that have not heard it in time. `None` is
    /// nothing.
    pub(crate) async fn spread(self: &Rc<Self>, body: Option<Vec<u8>>) -> Vec<NodeId> {
        let Some(body) = body else { return Vec::new() };
        let nodes = self.state.borrow().reachable(self.now_s());
        // Those of whom it is not known where they are, too.
        let mut unheard: BTreeSet<NodeId> =
            self.state.borrow().watched(self.now_s()).into_iter().collect();
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
        let own = self.state.borrow().members().summary();
        let is_behind = self.state.borrow().members().is_behind(theirs);
        // Whoever lets others in has heard something else, and said all of it that matters here.
        let turn = self.state.borrow().members().revocations().turn();
        let now = (theirs.homes, own.homes, turn);
        let is_settled = self.settled.borrow().get(&node) == Some(&now);
        let differs = is_behind || (theirs.homes != own.homes && !is_settled);
        let (mut asking, now_ms) = (self.asking.borrow_mut(), self.clock_ms());
        asking.retain(|_, until_ms| until_ms.is_none_or(|until_ms| now_ms < until_ms));
        let busy = asking.values().filter(|until_ms| until_ms.is_none()).count();
        if !differs || busy >= MAX_ASKED || asking.contains_key(&node) {
            return is_behind;
        }
        asking.insert(node, None);
        let (service, theirs) = (self.clone(), *theirs);
        tokio::task::spawn_local(async move {
            let begun_ms = service.clock_ms();
            let caught_up = service.catch_up(node, theirs.configuration).await;
            if caught_up.is_ok() {
                let state = service.state.borrow();
                let own = state.members().summary();
                let turn = state.members().revocations().turn();
                drop(state);
                let let_in = service.let_in();
                let mut settled = service.settled.borrow_mut();
                settled.retain(|node, _| let_in.contains(node));
                settled.insert(node, (theirs.homes, own.homes, turn));
            }
            let least_ms = if caught_up.is_ok() { ASK_AGAIN_MS } else { ASK_AGAIN_IN_VAIN_MS };
            // Who takes long has a smaller share of the places.
            let took_ms = service.clock_ms().saturating_sub(begun_ms);
            let wait_ms = least_ms.max(took_ms.saturating_mul(12));
            if let Err(fault) = caught_up {
                tracing::warn!(%node, %fault, "a node did not say what this one has not heard");
            }
            let until_ms = service.clock_ms() + wait_ms;
            service.asking.borrow_mut().insert(node, Some(until_ms));
        });
        is_behind
    }

    /// Asks a node for what this one has not heard. What it has said counts, however that ends, and whatever is wrong with
    /// one part of it says nothing about the others.
    async fn catch_up(self: &Rc<Self>, node: NodeId, number: u64) -> Result<(), Fault> {
        let mut configured = Ok(());
        let asked = self.with_member(node, async |member: member::Client| {
            let mut state = NodeState::of_peer(member);
            let may_be_newer = number >= self.state.borrow().members().number();
            let signed = if may_be_newer { state.configuration().await? } else { None };
            Ok((state, signed))
        });
        let (mut state, signed) = asked.await?;
        if let Some(signed) = signed {
            configured = self.hear_configuration(signed);
        }
        let known = self.state.borrow().members().known().digests;
        let asked = all_votes(&mut state, &known, async |casts| {
            let (_, wrong) = self.follow(casts);
            // Others have their turn.
            tokio::task::yield_now().await;
            wrong
        });
        let late = |_| Err(Fault::unavailable(1000, "it has not said all in time"));
        let votes = tokio::time::timeout(PAGES_WAIT, asked).await.unwrap_or_else(late);
        let known = self.state.borrow().members().known().homes;
        let wants = |home: &NodeId| self.state.borrow().members().revocations().shows(home);
        let asked = all_revocations(&mut state, &known, wants, async |page| {
            let wrong = self.follow_revocations(page);
            tokio::task::yield_now().await;
            wrong
        });
        let revocations = tokio::time::timeout(PAGES_WAIT, asked).await.unwrap_or_else(late);
        let saved = [self.save_votes(), self.save_revocations()];
        [configured, votes, revocations].into_iter().chain(saved).collect()
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

fn names(nodes: &BTreeSet<NodeId>) -> String {
    match nodes.is_empty() {
        true => "nobody".to_owned(),
        false => nodes.iter().map(|node| format!("node/{node}")).collect::<Vec<_>>().join(", "),
    }
}
