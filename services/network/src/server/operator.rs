//! The network service's object for its node's operator.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use capnp::capability::FromClientHook as _;
use capnp::private::capability::ClientHook;
use distos_abi::{Fault, HolderKey, NodeId, Rights};
use distos_evidence::joining::seal;
use distos_identity::{Bundle, Invitation, Peer, TenantName};
use distos_membership::{Signed, Stance};
use distos_rpc::{Facet, Faceted, fail, serve_capability};
use distos_schemas::network_capnp::{heard, network};
use distos_types::{HolderSecret, Revocation, kind};

use super::{NO_BYTES, NetworkService, certificates, serial, write_chain};
use crate::agents::AgentsServer;
use crate::heard::{answer_known, answer_revocations, answer_votes, read_casts, read_revocations};
use crate::inviting::{AskedAttested, randomness, write_registers};
use crate::standing::Standing;
use crate::state::{SERVICE, State, validity};

/// Peers in one answer, as long as there are no more in this node's own list and among those that it lets in.
const MAX_LISTED: usize = 4096;

#[derive(Clone)]
pub(super) struct NetworkServer {
    pub(super) facet: Facet,
    pub(super) service: Rc<NetworkService>,
}

impl NetworkServer {
    pub(super) fn into_hook(self) -> Box<dyn ClientHook> {
        capnp_rpc::new_client::<network::Client, _>(self).into_client_hook()
    }

    fn check(&self, need: Rights) -> Result<(), capnp::Error> {
        self.facet.check(need).map_err(fail)
    }

    /// Changes what is known under a guard: after a revocation returned, nothing is.
    fn change(
        &self,
        change: impl FnOnce(&mut State) -> Result<(), Fault>,
    ) -> Result<(), capnp::Error> {
        let service = &self.service;
        let next = service.changed(change).map_err(fail)?;
        // Not with the disk: a revocation waits for what is done here.
        let before = self.facet.commit(Rights::ADMIN, NO_BYTES, || service.install(next));
        before.and_then(|before| service.save_or(before)).map_err(fail)
    }

    /// Lets a node in that is invited with this key, for so long unless it comes; its SVID.
    fn invited(
        &self,
        node: NodeId,
        key: HolderKey,
        lifetime_s: u64,
        how: &str,
    ) -> Result<Vec<Vec<u8>>, capnp::Error> {
        let service = &self.service;
        let (now_s, serial) = (service.now_s(), serial().map_err(fail)?);
        let validity = validity(now_s, lifetime_s);
        let (mut chain, mut cast) = (Vec::new(), None);
        self.change(|state| {
            chain = state.invite(&service.issuer_secret, node, key, validity, serial)?;
            cast = state.vote(
                &service.issuer_secret,
                node,
                state.for_it(node, None),
                now_s.saturating_mul(1_000_000),
            )?;
            Ok(())
        })?;
        service.clone().spread_all(cast);
        service.report(format!("node/{node} is invited {how} key {key}"));
        Ok(chain)
    }

    /// Goes by another key and its SVID from now on, under a guard; what was before, and what is to be shown.
    fn swap(
        &self,
        next: &Arc<HolderSecret>,
        chain: Vec<Vec<u8>>,
    ) -> Result<(Arc<HolderSecret>, State, distos_quic::Credentials), Fault> {
        let service = &self.service;
        let shown = distos_quic::Credentials { chain: chain.clone(), secret: next.clone() };
        let now_s = service.now_s();
        let changed = service.changed(|state| state.rotate(chain, next.key(), now_s))?;
        let (old, before) = self.facet.commit(Rights::ADMIN, NO_BYTES, || {
            (service.secret.replace(next.clone()), service.install(changed))
        })?;
        Ok((old, before, shown))
    }
}

impl Faceted for NetworkServer {
    fn facet(&self) -> &Facet {
        &self.facet
    }

    fn with_facet(&self, facet: Facet) -> Box<dyn ClientHook> {
        NetworkServer { facet, service: self.service.clone() }.into_hook()
    }
}

serve_capability!(NetworkServer);

impl heard::Server for NetworkServer {
    async fn heard(
        self: Rc<Self>,
        params: heard::HeardParams,
        mut results: heard::HeardResults,
    ) -> Result<(), capnp::Error> {
        self.check(Rights::READ)?;
        let known = self.service.answer_heard(params.get()?.get_seen()?, true).await;
        answer_known(&known.map_err(fail)?, self.facet.reply(&mut results));
        Ok(())
    }

    async fn configuration(
        self: Rc<Self>,
        _: heard::ConfigurationParams,
        mut results: heard::ConfigurationResults,
    ) -> Result<(), capnp::Error> {
        self.check(Rights::READ)?;
        let state = self.service.state.borrow();
        let mut reply = self.facet.reply(&mut results);
        if let Some(signed) = state.members().signed() {
            reply.set_configuration(signed.to_json());
        }
        Ok(())
    }

    async fn votes(
        self: Rc<Self>,
        params: heard::VotesParams,
        mut results: heard::VotesResults,
    ) -> Result<(), capnp::Error> {
        self.check(Rights::READ)?;
        let state = self.service.state.borrow();
        let reply = self.facet.reply(&mut results);
        answer_votes(state.members(), params.get()?, reply).map_err(fail)
    }

    async fn revocations(
        self: Rc<Self>,
        params: heard::RevocationsParams,
        mut results: heard::RevocationsResults,
    ) -> Result<(), capnp::Error> {
        self.check(Rights::READ)?;
        let state = self.service.state.borrow();
        let reply = self.facet.reply(&mut results);
        answer_revocations(state.members(), params.get()?, reply).map_err(fail)
    }
}

impl network::Server for NetworkServer {
    async fn bundle(
        self: Rc<Self>,
        _: network::BundleParams,
        mut results: network::BundleResults,
    ) -> Result<(), capnp::Error> {
        self.check(Rights::READ)?;
        let bundle = self.service.state.borrow().bundle().map_err(fail)?.to_json();
        self.facet.reply(&mut results).set_bundle(bundle);
        Ok(())
    }

    async fn offer(
        self: Rc<Self>,
        params: network::OfferParams,
        mut results: network::OfferResults,
    ) -> Result<(), capnp::Error> {
        self.check(Rights::WRITE)?;
        let service = &self.service;
        if !service.offers.borrow_mut().may((), service.now_s()) {
            return Err(fail(Fault::unavailable(10_000, "too much is offered")));
        }
        let params = params.get()?;
        let text = params.get_configuration()?.to_str()?;
        let signed = (!text.is_empty()).then(|| Signed::parse(text)).transpose().map_err(fail)?;
        let casts = read_casts(params.get_votes()?).map_err(fail)?;
        let install = |next| self.facet.commit(Rights::WRITE, NO_BYTES, || service.install(next));
        let revocations = read_revocations(params.get_revocations()?).map_err(fail)?;
        service.offered(signed, casts, revocations, install).map_err(fail)?;
        self.facet.reply(&mut results);
        Ok(())
    }

    async fn homes(
        self: Rc<Self>,
        _: network::HomesParams,
        mut results: network::HomesResults,
    ) -> Result<(), capnp::Error> {
        self.check(Rights::READ)?;
        let service = &self.service;
        let mut nodes = service.let_in();
        nodes.insert(service.vat.node());
        let mut list = self.facet.reply(&mut results).init_nodes(nodes.len() as u32);
        for (index, node) in (0..).zip(&nodes) {
            list.set(index, &node.0);
        }
        Ok(())
    }

    async fn carry(
        self: Rc<Self>,
        params: network::CarryParams,
        mut results: network::CarryResults,
    ) -> Result<(), capnp::Error> {
        self.check(Rights::WRITE)?;
        let revocation = Revocation::decode(params.get()?.get_revocation()?).map_err(fail)?;
        let service = &self.service;
        if !service.offers.borrow_mut().may((), service.now_s()) {
            return Err(fail(Fault::unavailable(10_000, "too much is offered")));
        }
        let install = |next| self.facet.commit(Rights::WRITE, NO_BYTES, || service.install(next));
        let ended = service.carry(revocation, install).await.map_err(fail)?;
        self.facet.reply(&mut results).set_ended(ended);
        Ok(())
    }

    async fn status(
        self: Rc<Self>,
        _: network::StatusParams,
        mut results: network::StatusResults,
    ) -> Result<(), capnp::Error> {
        self.check(Rights::READ)?;
        let service = &self.service;
        let mut status = self.facet.reply(&mut results).init_status();
        status.set_node(&service.vat.node().0);
        status.set_key(&service.secret().key().0);
        status.set_issuer_key(&service.issuer_secret.key().0);
        if let Some(address) = service.address.get() {
            status.set_address(address.to_string());
        }
        let state = service.state.borrow();
        if let Some((_, own)) = state.own() {
            status.set_id(own.id.to_string());
            status.set_until_s(own.until_s);
        }
        status.set_bundle(state.bundle().map_or(0, Bundle::sequence));
        if let Some(signed) = state.members().signed() {
            status.set_configuration(signed.to_json());
        }
        status.set_issues(state.issues());
        let token_key = service.token_key;
        status.set_token_key(token_key.as_ref());
        status.set_tokens(state.takes_tokens_of(token_key));
        // Those that have ended are of no interest any more.
        let here = service.vat.holders(kind::CREDENTIALS);
        let mut attending = service.attending.borrow_mut();
        // This one is none of them, and says here only what has ended.
        attending.retain(|name, _| here.contains(name) || name == SERVICE);
        let others: Vec<_> = attending.iter().filter(|(name, _)| *name != SERVICE).collect();
        let revision = *service.revision.borrow();
        let mut list = status.init_services(others.len() as u32);
        for (index, (name, one)) in (0..).zip(others) {
            let mut entry = list.reborrow().get(index);
            entry.set_service(name);
            entry.set_current(one.seen >= revision);
            entry.set_until_s(one.until_s);
        }
        Ok(())
    }

    async fn join(
        self: Rc<Self>,
        params: network::JoinParams,
        mut results: network::JoinResults,
    ) -> Result<(), capnp::Error> {
        self.check(Rights::ADMIN)?;
        let (bundle, chain) = {
            let params = params.get()?;
            let bundle = Bundle::parse(params.get_bundle()?.to_str()?).map_err(fail)?;
            (bundle, certificates(params.get_chain()?)?)
        };
        let now_s = self.service.now_s();
        self.change(|state| state.join(bundle, chain, now_s))?;
        let id = self.service.state.borrow().id().map_err(fail)?;
        self.service.report(format!("joined a cluster as {id}"));
        self.facet.reply(&mut results);
        Ok(())
    }

    async fn certify(
        self: Rc<Self>,
        params: network::CertifyParams,
        mut results: network::CertifyResults,
    ) -> Result<(), capnp::Error> {
        self.check(Rights::ADMIN)?;
        let certificate = params.get()?.get_certificate()?.to_vec();
        let (now_s, serial) = (self.service.now_s(), serial().map_err(fail)?);
        let secret = &self.service.issuer_secret;
        self.change(|state| state.certify(certificate, secret, now_s, serial))?;
        self.service.report("issues SVIDs for other nodes".to_owned());
        self.facet.reply(&mut results);
        Ok(())
    }

    async fn invite(
        self: Rc<Self>,
        params: network::InviteParams,
        mut results: network::InviteResults,
    ) -> Result<(), capnp::Error> {
        self.check(Rights::ADMIN)?;
        let (node, key, lifetime_s) = {
            let params = params.get()?;
            let node = NodeId::try_from(params.get_node()?).map_err(fail)?;
            let key = HolderKey::try_from(params.get_key()?).map_err(fail)?;
            (node, key, u64::from(params.get_lifetime_s()))
        };
        if self.service.is_by_tpm {
            let why =
                "this node's image has nodes invited by their TPMs: `distos network challenge`";
            return Err(fail(Fault::Unauthenticated(why.into())));
        }
        let chain = self.invited(node, key, lifetime_s, "with")?;
        let bundle = self.service.state.borrow().bundle().map_err(fail)?.to_json();
        let mut reply = self.facet.reply(&mut results);
        reply.set_bundle(bundle);
        write_chain(&chain, reply.init_chain(chain.len() as u32));
        Ok(())
    }

    async fn challenge(
        self: Rc<Self>,
        params: network::ChallengeParams,
        mut results: network::ChallengeResults,
    ) -> Result<(), capnp::Error> {
        self.check(Rights::ADMIN)?;
        let params = params.get()?;
        let node = NodeId::try_from(params.get_node()?).map_err(fail)?;
        let lifetime_s = u64::from(params.get_lifetime_s());
        let mut nonce = [0; 32];
        getrandom::fill(&mut nonce).map_err(|e| fail(Fault::internal(e)))?;
        let service = &self.service;
        let now_s = service.now_s();
        let opened = self.facet.commit(Rights::ADMIN, NO_BYTES, || {
            service.challenges.borrow_mut().open(nonce, node, lifetime_s, now_s)
        });
        opened.and_then(|opened| opened).map_err(fail)?;
        service.report(format!("node/{node} is challenged"));
        self.facet.reply(&mut results).set_nonce(&nonce);
        Ok(())
    }

    async fn invite_attested(
        self: Rc<Self>,
        params: network::InviteAttestedParams,
        mut results: network::InviteAttestedResults,
    ) -> Result<(), capnp::Error> {
        self.check(Rights::ADMIN)?;
        let asked = AskedAttested::read(params.get()?).map_err(fail)?;
        let service = &self.service;
        let node = asked.request.node;
        let random = randomness().map_err(fail)?;
        let admitted = service.admit(&asked).map_err(fail)?;
        let tpm = hex::encode(admitted.ek.name());
        // That it has that TPM shows once it comes.
        let shown = admitted.endorsement.as_ref().map(ToString::to_string).unwrap_or_default();
        let by = match shown.as_str() {
            "" => format!("for TPM {tpm} alone, with"),
            shown => format!("for TPM {tpm} ({shown}) alone, with"),
        };
        let chain = self.invited(node, admitted.key, asked.lifetime_s, &by)?;
        let invitation = Invitation {
            from: Peer::Node(service.vat.node()),
            address: asked.address,
            bundle: service.state.borrow().bundle().map_err(fail)?.clone(),
            chain,
        };
        let sealed = invitation.to_json().and_then(|text| seal(&text, node, &admitted, &random));
        let sealed = sealed.and_then(|sealed| sealed.to_json()).map_err(fail)?;
        let mut reply = self.facet.reply(&mut results);
        reply.set_node(&node.0);
        reply.set_sealed(sealed);
        reply.set_tpm(shown);
        write_registers(&admitted.pcrs, reply.init_registers(admitted.pcrs.len() as u32));
        Ok(())
    }

    async fn rotate(
        self: Rc<Self>,
        _: network::RotateParams,
        mut results: network::RotateResults,
    ) -> Result<(), capnp::Error> {
        self.check(Rights::ADMIN)?;
        let service = &self.service;
        let next = Arc::new(service.keys.make().map_err(fail)?);
        let swapped = match service.ask_own(&next).await {
            Ok((chain, _)) => self.swap(&next, chain),
            Err(fault) => Err(fault),
        };
        let (old, before, shown) = swapped.map_err(|fault| {
            // A key that is not in use is a secret that nobody needs.
            service.keys.forget(next.key());
            fail(fault)
        })?;
        // From here on the disk may name the new one, whatever it says.
        if let Err(fault) = service.save() {
            service.secret.replace(old);
            service.install(before);
            return Err(fail(fault));
        }
        service.keys.forget(old.key());
        if let Some(endpoint) = &*service.endpoint.borrow() {
            endpoint.renew(shown);
        }
        // Others are asked over new connections, on which it shows the new key: evidence is bound to that from now on.
        service.members.borrow_mut().clear();
        service.report(format!("changed its key to {}", next.key()));
        self.facet.reply(&mut results).set_key(&next.key().0);
        Ok(())
    }

    async fn peers(
        self: Rc<Self>,
        _: network::PeersParams,
        mut results: network::PeersResults,
    ) -> Result<(), capnp::Error> {
        self.check(Rights::LIST)?;
        let state = self.service.state.borrow();
        let reply = self.facet.reply(&mut results);
        let nodes = state.nodes(self.service.now_s());
        let standings = state.members().standings();
        let spoken_of = standings.keys().filter(|node| **node != self.service.vat.node());
        let spoken_of = spoken_of.map(|node| Peer::Node(*node));
        // Those of whom it matters, if voters speak of too many for one answer.
        let mut known: BTreeSet<Peer> = state.peers().keys().cloned().collect();
        known.extend(nodes.keys().map(|node| Peer::Node(*node)));
        for peer in spoken_of {
            if known.len() < MAX_LISTED {
                known.insert(peer);
            }
        }
        let mut list = reply.init_peers(known.len() as u32);
        for (index, peer) in (0..).zip(&known) {
            let mut entry = list.reborrow().get(index);
            entry.set_name(peer.to_string());
            entry.set_invited_s(state.invited_s(peer).unwrap_or(0));
            let mut address = state.peers().get(peer).copied().flatten();
            entry.set_let_in(true);
            if let Peer::Node(node) = peer {
                entry.set_let_in(nodes.contains_key(node));
                address = nodes.get(node).copied().flatten().or(address);
            }
            if let Peer::Node(node) = peer {
                let judged = state.standing(*node, self.service.now_s());
                entry.set_standing(judged.map_or("", Standing::as_str));
            }
            if let Peer::Node(node) = peer
                && let Some(standing) = standings.get(node)
            {
                entry.set_admit(standing.admit.len() as u32);
                entry.set_remove(standing.remove.len() as u32);
                entry.set_put_out(state.is_banned(*node));
            }
            let now_ms = self.service.clock_ms();
            let alive = self.service.alive.borrow();
            let word = match peer {
                Peer::Node(node) => alive.of(*node, now_ms),
                Peer::Tenant(_) => None,
            };
            if let Some((word, suspect)) = word {
                entry.set_suspect(suspect);
                entry.set_bundle(word.bundle);
                if word.heard {
                    entry.set_heard_ms(now_ms.saturating_sub(word.at_ms));
                }
            }
            if let Some(address) = address {
                entry.set_address(address.to_string());
            }
        }
        Ok(())
    }

    async fn add_peer(
        self: Rc<Self>,
        params: network::AddPeerParams,
        mut results: network::AddPeerResults,
    ) -> Result<(), capnp::Error> {
        self.check(Rights::ADMIN)?;
        let (peer, address) = {
            let asked = params.get()?.get_peer()?;
            let peer: Peer = asked.get_name()?.to_str()?.parse().map_err(fail)?;
            let address =
                match asked.get_address()?.to_str()? {
                    "" => None,
                    text => Some(text.parse().map_err(|_| {
                        fail(Fault::malformed("an address is HOST:PORT, in numbers"))
                    })?),
                };
            (peer, address)
        };
        let service = &self.service;
        let mut cast = None;
        self.change(|state| {
            state.add(peer.clone(), address)?;
            if let Peer::Node(node) = &peer {
                let stance = state.for_it(*node, address);
                cast = state.vote(&service.issuer_secret, *node, stance, service.now_us())?;
            }
            Ok(())
        })?;
        let is_in = match &peer {
            Peer::Node(node) => service.state.borrow().nodes(service.now_s()).contains_key(node),
            Peer::Tenant(_) => true,
        };
        service.report(match is_in {
            true => format!("{peer} is let in"),
            false => format!("{peer} would be let in if more of the cluster's voters were for it"),
        });
        service.clone().spread_all(cast);
        let behind = service.until_heard().await;
        self.facet.reply(&mut results).set_behind(behind.as_slice())
    }

    async fn remove_peer(
        self: Rc<Self>,
        params: network::RemovePeerParams,
        mut results: network::RemovePeerResults,
    ) -> Result<(), capnp::Error> {
        self.check(Rights::ADMIN)?;
        let peer: Peer = params.get()?.get_name()?.to_str()?.parse().map_err(fail)?;
        let service = &self.service;
        let mut cast = Ok(None);
        self.change(|state| {
            state.remove(&peer)?;
            if let Peer::Node(node) = &peer {
                let secret = &service.issuer_secret;
                // It is put out here in any case.
                cast = state.vote(secret, *node, Stance::Remove, service.now_us());
            }
            Ok(())
        })?;
        service.report(format!("{peer} is no longer let in"));
        let vote = cast.as_ref().ok().cloned().flatten();
        let said = service.spread(vote.map(|vote| service.beat(Some(vote))));
        let (mut behind, unheard) = futures::join!(service.until_heard(), said);
        if let Err(fault) = cast {
            let why = format!("{peer} is put out at this node, and it has not voted: {fault}");
            return Err(fail(Fault::malformed(why)));
        }
        behind.extend(unheard.iter().map(|node| Peer::Node(*node).to_string()));
        self.facet.reply(&mut results).set_behind(behind.as_slice())
    }

    async fn configure(
        self: Rc<Self>,
        params: network::ConfigureParams,
        mut results: network::ConfigureResults,
    ) -> Result<(), capnp::Error> {
        self.check(Rights::ADMIN)?;
        let signed = Signed::parse(params.get()?.get_configuration()?.to_str()?).map_err(fail)?;
        let (service, number) = (&self.service, signed.configuration().number);
        let (mut is_new, before) = (false, service.let_in());
        self.change(|state| {
            is_new = state.configure(signed, &service.issuer_secret, service.now_us())?;
            Ok(())
        })?;
        let now = service.let_in();
        let out = before.difference(&now).map(|node| Peer::Node(*node).to_string());
        let out: Vec<String> = out.collect();
        if is_new {
            service.report_changes(&before);
            service.configured(number);
        }
        let behind = service.until_heard().await;
        let mut reply = self.facet.reply(&mut results);
        reply.set_out(out.as_slice())?;
        reply.set_behind(behind.as_slice())
    }

    async fn agents(
        self: Rc<Self>,
        params: network::AgentsParams,
        mut results: network::AgentsResults,
    ) -> Result<(), capnp::Error> {
        self.check(Rights::ADMIN)?;
        let tenant = TenantName::new(params.get()?.get_tenant()?.to_str()?).map_err(fail)?;
        let known = || self.service.state.borrow().agents_of(&tenant);
        if known().is_none() {
            self.change(|state| state.serve_agents_of(&tenant))?;
        }
        let object = known().ok_or_else(|| fail(Fault::internal("a tenant was not kept")))?;
        let minted = AgentsServer::mint(self.service.clone(), &self.facet, object).await;
        let (server, chain) = minted.map_err(fail)?;
        let mut reply = self.facet.reply(&mut results);
        reply.set_agents(capnp::capability::FromClientHook::new(server.into_hook()));
        reply.set_chain(&chain);
        Ok(())
    }
}
