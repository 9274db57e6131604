//! What the services of this node ask for: SVIDs in their own names, whom to let in, where others are, and what others
//! have signed that ends there.

use std::collections::BTreeSet;
use std::rc::Rc;

use capnp::capability::FromClientHook as _;
use capnp::private::capability::ClientHook;
use distos_abi::{Fault, HolderKey, NodeId, Rights, VatName};
use distos_identity::{KeyExchange, Peer, verify_proof};
use distos_membership::MAX_OF_HOME;
use distos_rpc::{Facet, Faceted, fail, serve_capability};
use distos_schemas::network_capnp::credentials;

use crate::evidence::{read_answers, read_judgements, write_questions};
use crate::heard::write_revocations;
use crate::questions::QUESTION_WAIT;
use crate::server::{NO_BYTES, NetworkService, write_chain};

#[derive(Clone)]
pub(crate) struct CredentialsServer {
    pub(crate) facet: Facet,
    pub(crate) service: Rc<NetworkService>,
}

impl CredentialsServer {
    pub(crate) fn into_hook(self) -> Box<dyn ClientHook> {
        capnp_rpc::new_client::<credentials::Client, _>(self).into_client_hook()
    }

    /// The vat whose edge this is; nobody's if it was derived or passed on.
    fn asking(&self) -> Result<VatName, capnp::Error> {
        let edge = self.facet.edge().ok_or_else(|| {
            Fault::Unauthenticated(
                "credentials are for a service of this node, over its edge".into(),
            )
        });
        edge.and_then(VatName::new).map_err(fail)
    }
}

impl Faceted for CredentialsServer {
    fn facet(&self) -> &Facet {
        &self.facet
    }

    fn with_facet(&self, facet: Facet) -> Box<dyn ClientHook> {
        CredentialsServer { facet, service: self.service.clone() }.into_hook()
    }
}

serve_capability!(CredentialsServer);

impl credentials::Server for CredentialsServer {
    async fn sign(
        self: Rc<Self>,
        params: credentials::SignParams,
        mut results: credentials::SignResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::READ).map_err(fail)?;
        let (key, proof) = {
            let params = params.get()?;
            let key = HolderKey::try_from(params.get_key()?).map_err(fail)?;
            (key, params.get_proof()?.to_vec())
        };
        let asking = self.asking()?;
        let id = self.service.state.borrow().id_of(asking.clone()).map_err(fail)?;
        verify_proof(&id.subject, key, &proof).map_err(fail)?;
        let (chain, own) = self.service.ask(&asking, key, &proof).await.map_err(fail)?;
        self.service.note(asking.as_str(), |one| one.until_s = own.until_s);
        let mut reply = self.facet.reply(&mut results);
        reply.set_id(id.to_string());
        write_chain(&chain, reply.init_chain(chain.len() as u32));
        Ok(())
    }

    async fn trust(
        self: Rc<Self>,
        params: credentials::TrustParams,
        mut results: credentials::TrustResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::READ).map_err(fail)?;
        let (seen, port) = {
            let params = params.get()?;
            (params.get_seen(), params.get_port())
        };
        let mut revision = self.service.revision.subscribe();
        self.service.note(self.asking()?.as_str(), |one| {
            one.seen = seen;
            one.port = port;
        });
        // Nothing is to be told before there is a cluster.
        let known =
            |revision: &u64| *revision != seen && self.service.state.borrow().bundle().is_ok();
        // The sender lives as long as this service.
        let current = revision.wait_for(known).await.map_or(0, |revision| *revision);
        let (trust, fresh_s) = {
            let state = self.service.state.borrow();
            (state.trust(self.service.now_s()).map_err(fail)?, state.fresh_s())
        };
        let mut reply = self.facet.reply(&mut results);
        reply.set_revision(current);
        reply.set_fresh_s(fresh_s);
        let mut since = reply.reborrow().init_since(trust.peers.since_s.len() as u32);
        for (index, (node, at_s)) in (0..).zip(&trust.peers.since_s) {
            let mut one = since.reborrow().get(index);
            one.set_node(&node.0);
            one.set_at_s(*at_s);
        }
        // No more are known.
        let mut epochs = reply.reborrow().init_epochs(trust.peers.epochs.len() as u32);
        for (index, (node, number)) in (0..).zip(&trust.peers.epochs) {
            let mut one = epochs.reborrow().get(index);
            one.set_node(&node.0);
            one.set_number(*number);
        }
        reply.set_bundle(trust.bundle.to_json());
        reply.set_hybrid_only(trust.exchange == KeyExchange::HybridOnly);
        let nodes = trust.peers.nodes.iter().map(|node| Peer::Node(*node));
        let tenants = trust.peers.tenants.iter().map(|tenant| Peer::Tenant(tenant.clone()));
        let peers: Vec<String> = nodes.chain(tenants).map(|peer| peer.to_string()).collect();
        reply.set_peers(peers.as_slice())
    }

    async fn locate(
        self: Rc<Self>,
        params: credentials::LocateParams,
        mut results: credentials::LocateResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::READ).map_err(fail)?;
        let (node, service) = {
            let params = params.get()?;
            let service = VatName::new(params.get_service()?.to_str()?).map_err(fail)?;
            (NodeId::try_from(params.get_node()?).map_err(fail)?, service)
        };
        let asking = self.asking()?;
        let located = self.service.locate(node, &service, &asking).await;
        let address = located.map_err(fail)?;
        self.facet.reply(&mut results).set_address(address.to_string());
        Ok(())
    }

    async fn revocations(
        self: Rc<Self>,
        params: credentials::RevocationsParams,
        mut results: credentials::RevocationsResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::READ).map_err(fail)?;
        let asking = self.asking()?;
        let params = params.get()?;
        let seen: Option<[u8; 32]> = params.get_seen()?.try_into().ok();
        let service = &self.service;
        let list = params.get_ended()?;
        if list.len() > MAX_OF_HOME as u32 {
            return Err(fail(Fault::malformed("so much is not kept for one vat")));
        }
        let hash = |one: capnp::Result<&[u8]>| {
            let one = one?.try_into();
            one.map_err(|_| fail(Fault::malformed("a hash has 32 bytes")))
        };
        let ended = list.iter().map(hash).collect::<Result<BTreeSet<[u8; 32]>, _>>()?;
        service.has_ended(&asking, ended);
        let mut more = service.more.subscribe();
        let known = |_: &()| Some(service.ended_at(&asking).1) != seen;
        // The sender lives as long as this service.
        let _ = more.wait_for(known).await;
        let (ended, digest) = service.ended_at(&asking);
        let mut reply = self.facet.reply(&mut results);
        reply.set_digest(&digest);
        write_revocations(&ended, reply.init_revocations(ended.len() as u32));
        Ok(())
    }

    async fn contact(
        self: Rc<Self>,
        _: credentials::ContactParams,
        mut results: credentials::ContactResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::READ).map_err(fail)?;
        let service = &self.service;
        let (alive, now_ms) = (service.alive.borrow(), service.clock_ms());
        let hears = |node| alive.hears(node, now_ms);
        let (voters, heard) = service.state.borrow().contact(hears);
        let mut reply = self.facet.reply(&mut results);
        reply.set_voters(voters);
        reply.set_heard(heard);
        Ok(())
    }

    async fn questions(
        self: Rc<Self>,
        params: credentials::QuestionsParams,
        mut results: credentials::QuestionsResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::ATTEST).map_err(fail)?;
        let questions = &self.service.questions;
        for (id, answer) in read_answers(params.get()?.get_answered()?).map_err(fail)? {
            questions.answer(id, answer);
        }
        let posed = questions.take(QUESTION_WAIT).await;
        let mut reply = self.facet.reply(&mut results);
        write_questions(&posed, reply.reborrow().init_questions(posed.len() as u32));
        Ok(())
    }

    async fn ask(
        self: Rc<Self>,
        params: credentials::AskParams,
        mut results: credentials::AskResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::ATTEST).map_err(fail)?;
        let params = params.get()?;
        let node = NodeId::try_from(params.get_node()?).map_err(fail)?;
        let asked = self.service.ask_machine(node, params.get_question()?).await;
        let (answer, bound) = asked.map_err(fail)?;
        let mut reply = self.facet.reply(&mut results);
        reply.set_answer(&answer);
        reply.set_key(&bound.key.0);
        reply.set_life(&bound.life);
        Ok(())
    }

    async fn judge(
        self: Rc<Self>,
        params: credentials::JudgeParams,
        mut results: credentials::JudgeResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::ATTEST).map_err(fail)?;
        let judgements = read_judgements(params.get()?.get_judgements()?).map_err(fail)?;
        let service = &self.service;
        let nodes: Vec<NodeId> = judgements.iter().map(|one| one.node).collect();
        let install = |next| self.facet.commit(Rights::ATTEST, NO_BYTES, || service.install(next));
        service.judge(judgements, install).map_err(fail)?;
        let state = service.state.borrow();
        // No more than were judged.
        let mut epochs = self.facet.reply(&mut results).init_epochs(nodes.len() as u32);
        for (index, node) in (0..).zip(nodes) {
            epochs.set(index, state.epoch(node));
        }
        Ok(())
    }

    async fn attested(
        self: Rc<Self>,
        params: credentials::AttestedParams,
        mut results: credentials::AttestedResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::ATTEST).map_err(fail)?;
        let (service, seen) = (&self.service, params.get()?.get_seen());
        let (mut revision, mut again) = (service.revision.subscribe(), service.again.subscribe());
        // Both senders live as long as this service.
        let current = tokio::select! {
            current = revision.wait_for(|revision| *revision != seen) => current.map_or(0, |now| *now),
            _ = again.wait_for(|again| !again.is_empty()) => *service.revision.borrow(),
        };
        let again = service.again.send_replace(BTreeSet::new());
        let issues = service.state.borrow().issues();
        let nodes = if issues { service.let_in() } else { BTreeSet::new() };
        let mut reply = self.facet.reply(&mut results);
        reply.set_revision(current);
        let mut list = reply.reborrow().init_nodes(nodes.len() as u32);
        for (index, node) in (0..).zip(&nodes) {
            list.set(index, &node.0);
        }
        let mut list = reply.init_again(again.len() as u32);
        for (index, node) in (0..).zip(&again) {
            list.set(index, &node.0);
        }
        Ok(())
    }
}
