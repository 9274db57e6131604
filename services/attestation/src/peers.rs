//! The peers that this node verifies, and the questions of those that verify it: both by way of the network services, which
//! know who is at the other end.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use distos_abi::{Fault, HolderKey, NodeId};
use distos_evidence::devices::Numbers;
use distos_evidence::live::{MAX_ANSWER_BYTES, MAX_QUESTION_BYTES, Question, Session};
use distos_rpc::{Vat, fault_of};
use distos_schemas::network_capnp::{credentials, question};
use futures::future::LocalBoxFuture;
use tokio::sync::Notify;

use crate::server::word_of;
use crate::service::{Attestation, NOBODY};
use crate::watched::Watched;

/// The edge to the network service.
const EDGE: &str = "network";
/// The setting that the image makes for a vat that has a socket of its own on the network.
const SOCKET: &str = "quic";
/// How long to wait after something did not work.
const AGAIN: Duration = Duration::from_secs(1);
/// Nodes that are verified at most.
const MAX_NODES: u32 = 8192;
/// How long whoever asks waits for an answer.
const ANSWER_WAIT: Duration = Duration::from_secs(30);
/// Questions that are taken at a time.
const MAX_QUESTIONS: u32 = 64;

/// Where this node's verifier meets others.
pub(crate) struct Peers {
    /// Whether the image lets this node meet any.
    meets: bool,
    nodes: RefCell<BTreeMap<NodeId, Rc<Watched>>>,
    /// Of whom something new is to be told to the network service.
    news: RefCell<BTreeSet<NodeId>>,
    told: Notify,
}

impl Peers {
    pub(crate) fn new(vat: &Vat) -> Peers {
        Peers {
            meets: vat.param(SOCKET).is_some(),
            nodes: RefCell::default(),
            news: RefCell::default(),
            told: Notify::new(),
        }
    }

    /// Answers, verifies and tells until the service ends; nothing if there is no network.
    pub(crate) fn attend(&self, service: &Rc<Attestation>) {
        if self.meets {
            tokio::task::spawn_local(answer(service.clone()));
            tokio::task::spawn_local(follow(service.clone()));
            tokio::task::spawn_local(tell(service.clone()));
        }
    }

    pub(crate) fn get(&self, node: NodeId) -> Option<Rc<Watched>> {
        self.nodes.borrow().get(&node).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Rc<Watched>> {
        self.nodes.borrow().values().cloned().collect()
    }

    /// Something new is known of a node.
    pub(crate) fn tell(&self, node: NodeId) {
        if self.meets {
            self.news.borrow_mut().insert(node);
            self.told.notify_one();
        }
    }

    /// Asks a peer's machine: what it answers, and the session, as the handshake has shown and that one's network service says.
    pub(crate) async fn ask(
        &self,
        vat: &Vat,
        node: NodeId,
        question: &[u8],
    ) -> Result<(Vec<u8>, Session), Fault> {
        let network: credentials::Client = vat.root(EDGE).await?;
        let mut request = network.ask_request();
        request.get().set_node(&node.0);
        request.get().set_question(question);
        let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
        let answer = answer.get().map_err(|e| fault_of(&e))?;
        let key = HolderKey::try_from(answer.get_key().map_err(|e| fault_of(&e))?)?;
        let life = read_life(answer.get_life().map_err(|e| fault_of(&e))?)?;
        let answer = answer.get_answer().map_err(|e| fault_of(&e))?;
        if answer.len() > MAX_ANSWER_BYTES {
            return Err(Fault::malformed("an answer that is too long"));
        }
        Ok((answer.to_vec(), Session { verifier: vat.node(), node, key, life }))
    }
}

/// Answers what verifiers of other nodes ask.
async fn answer(service: Rc<Attestation>) {
    loop {
        if let Err(fault) = exchange(&service, None).await {
            tracing::debug!(%fault, "questions are asked for again");
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// Gives an answer, if there is one, and takes what is asked now: each question is worked on by itself, and its answer sent
/// when there is one, so that nobody waits for another's.
fn exchange(
    service: &Rc<Attestation>,
    done: Option<(u64, Result<Vec<u8>, Fault>)>,
) -> LocalBoxFuture<'static, Result<(), Fault>> {
    let service = service.clone();
    Box::pin(async move {
        let network: credentials::Client = service.vat.root(EDGE).await?;
        let mut request = network.questions_request();
        if let Some((id, answer)) = done {
            let mut to = request.get().init_answered(1).get(0);
            to.set_id(id);
            match answer {
                Ok(answer) => to.set_answer(&answer),
                Err(fault) => to.set_fault(fault.to_wire().as_str()),
            }
        }
        let asked = request.send().promise.await.map_err(|e| fault_of(&e))?;
        let asked =
            asked.get().and_then(|asked| asked.get_questions()).map_err(|e| fault_of(&e))?;
        for one in asked.iter().take(MAX_QUESTIONS as usize) {
            let (id, read) = (one.get_id(), read_question(one, &service.vat));
            let service = service.clone();
            tokio::task::spawn_local(async move {
                let answer = match read {
                    // Nobody waits for longer.
                    Ok((question, session)) => {
                        let answer = service.answer(question, session);
                        let late = |_| Err(Fault::unavailable(1_000, "the TPM is busy"));
                        tokio::time::timeout(ANSWER_WAIT, answer).await.unwrap_or_else(late)
                    }
                    Err(fault) => Err(fault),
                };
                if let Err(fault) = exchange(&service, Some((id, answer))).await {
                    tracing::debug!(%fault, "an answer was not taken");
                }
            });
        }
        Ok(())
    })
}

fn read_question(one: question::Reader<'_>, vat: &Vat) -> Result<(Question, Session), Fault> {
    let faulty = |e: capnp::Error| fault_of(&e);
    let question = one.get_question().map_err(faulty)?;
    if question.len() > MAX_QUESTION_BYTES {
        return Err(Fault::malformed("a question that is too long"));
    }
    let verifier = NodeId::try_from(one.get_verifier().map_err(faulty)?)?;
    let key = HolderKey::try_from(one.get_key().map_err(faulty)?)?;
    let life = read_life(one.get_life().map_err(faulty)?)?;
    Ok((Question::parse(question)?, Session { verifier, node: vat.node(), key, life }))
}

fn read_life(life: &[u8]) -> Result<[u8; 32], Fault> {
    life.try_into().map_err(|_| Fault::malformed("what stands for a life has 32 bytes"))
}

/// Watches the nodes that this one is to verify.
async fn follow(service: Rc<Attestation>) {
    let mut seen = 0;
    loop {
        match nodes(&service.vat, seen).await {
            Ok(ToVerify { revision, nodes, again }) => {
                seen = revision;
                watch(&service, &nodes);
                for watched in again.into_iter().filter_map(|node| service.peers.get(node)) {
                    let service = service.clone();
                    // What it comes to is in its state and in the audit log.
                    tokio::task::spawn_local(
                        async move { drop(service.attest(watched, NOBODY).await) },
                    );
                }
            }
            Err(fault) => {
                tracing::debug!(%fault, "whom to verify is asked again");
                seen = 0;
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

fn watch(service: &Rc<Attestation>, nodes: &BTreeSet<NodeId>) {
    let peers = &service.peers;
    peers.nodes.borrow_mut().retain(|node, watched| {
        let stays = nodes.contains(node);
        watched.ended.set(!stays);
        if !stays {
            service.devices.borrow_mut().release(*node);
            if let Err(fault) = watched.keep_devices(Numbers::new()) {
                tracing::error!(%fault, %node, "that a node has no devices any more could not be kept");
            }
        }
        stays
    });
    for node in nodes {
        if *node == service.vat.node() || peers.nodes.borrow().contains_key(node) {
            continue;
        }
        let settings = &service.settings;
        match Watched::open(*node, settings.bounds, &settings.data_dir) {
            Ok(watched) => {
                let watched = Rc::new(watched);
                let kept = watched.kept.borrow().clone();
                service.keep(&watched, kept);
                peers.nodes.borrow_mut().insert(*node, watched.clone());
                tokio::task::spawn_local(service.clone().renew(watched));
            }
            Err(fault) => tracing::error!(%fault, %node, "a node cannot be verified"),
        }
    }
}

/// Whom to verify.
struct ToVerify {
    revision: u64,
    nodes: BTreeSet<NodeId>,
    /// Of these, whom to ask at once.
    again: BTreeSet<NodeId>,
}

async fn nodes(vat: &Vat, seen: u64) -> Result<ToVerify, Fault> {
    let network: credentials::Client = vat.root(EDGE).await?;
    let mut request = network.attested_request();
    request.get().set_seen(seen);
    let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
    let answer = answer.get().map_err(|e| fault_of(&e))?;
    let read = |list: capnp::Result<capnp::data_list::Reader<'_>>| {
        let list = list.map_err(|e| fault_of(&e))?;
        if list.len() > MAX_NODES {
            return Err(Fault::malformed("the list of nodes is too long"));
        }
        let node = |one: capnp::Result<&[u8]>| NodeId::try_from(one.map_err(|e| fault_of(&e))?);
        list.iter().map(node).collect::<Result<_, Fault>>()
    };
    let (nodes, again) = (read(answer.get_nodes())?, read(answer.get_again())?);
    Ok(ToVerify { revision: answer.get_revision(), nodes, again })
}

/// Tells the network service what this verifier says of nodes.
async fn tell(service: Rc<Attestation>) {
    let peers = &service.peers;
    loop {
        // One that was noted meanwhile is not lost.
        let noted = peers.told.notified();
        let news = std::mem::take(&mut *peers.news.borrow_mut());
        if news.is_empty() {
            noted.await;
            continue;
        }
        if let Err(fault) = judge(&service, &news).await {
            tracing::debug!(%fault, "what is known of nodes is told again");
            peers.news.borrow_mut().extend(news);
            tokio::time::sleep(AGAIN).await;
        }
    }
}

async fn judge(service: &Attestation, news: &BTreeSet<NodeId>) -> Result<(), Fault> {
    let network: credentials::Client = service.vat.root(EDGE).await?;
    let judgements: Vec<_> = news.iter().filter_map(|node| service.judgement(*node)).collect();
    let mut request = network.judge_request();
    let mut list = request.get().init_judgements(judgements.len() as u32);
    for (index, one) in (0..).zip(&judgements) {
        let mut to = list.reborrow().get(index);
        to.set_node(&one.node.0);
        to.set_standing(word_of(one.standing));
        to.set_until_s(one.until_s);
        to.set_epoch(one.epoch);
        to.set_reason(one.reason.as_str());
        if let Some((key, life)) = one.bound {
            to.set_key(&key.0);
            to.set_life(&life);
        }
    }
    let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
    // Who has lost what was kept of a node goes on from what others remember.
    let epochs = answer.get().and_then(|answer| answer.get_epochs()).map_err(|e| fault_of(&e))?;
    for (one, epoch) in judgements.iter().zip(epochs.iter()) {
        service.raise(one.node, epoch);
    }
    Ok(())
}
