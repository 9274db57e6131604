//! This node's network service and those of its peers: an endpoint of its own, on which they ask one
//! another for SVIDs.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use capnp_rpc::rpc_twoparty_capnp::Side;
use distos_abi::{CapId, Fault, HolderKey, NodeId, TenantId, VatName};
use distos_identity::{Peer, SpiffeId, Subject, prove};
use distos_quic::{Arrivals, Connection, Endpoint, Link, Refusals, Refused, Settings, renew_after};
use distos_rpc::transport::{Bounds, Driven, drive};
use distos_rpc::{fail, fault_of};
use distos_schemas::network_capnp::{heard, member};
use distos_types::{HolderSecret, Revocation};

use crate::TRACE;
use crate::asked::Question;
use crate::heard::{answer_known, answer_revocations, answer_votes, write_summary};
use crate::life::{Bound, mark_of};
use crate::questions::ANSWER_WAIT;
use crate::server::{NetworkService, certificates, serial, write_chain};
use crate::state::{Own, Request, SERVICE, check};

/// The device by which the image gives this service its socket.
const SOCKET: &str = "quic";
/// How long another node may take to answer.
const MEMBER_WAIT: Duration = Duration::from_secs(5);
/// How long to wait after something did not work.
const AGAIN: Duration = Duration::from_secs(5);
/// For how long it is believed where a service is, that there is none, and of how many.
const LOCATED_MS: u64 = 10_000;
const ABSENT_MS: u64 = 1000;
const MAX_LOCATED: usize = 1024;
/// How often it is looked whose invitation has ended.
const LOOK: Duration = Duration::from_secs(5);
/// How long a peer may stay without being asked for anything.
const STAY: Duration = Duration::from_secs(60);

/// A connection to the network service of another node, which ends with this.
pub(crate) struct Member {
    pub(crate) member: member::Client,
    /// The key of that one's SVID, as the handshake has shown.
    pub(crate) key: HolderKey,
    connection: Connection,
    _driven: Driven,
}

impl Member {
    /// Ends it, also for whoever waits for an answer over it: the other side has another key, or was started anew.
    pub(crate) fn end(&self) {
        self.connection.close(0_u32.into(), b"");
    }
}

impl NetworkService {
    /// Opens the endpoint once there is an SVID to show, and renews that, until the vat ends.
    pub(crate) async fn keep(self: Rc<Self>) {
        let Some(socket) = self.vat.take_device(SOCKET) else {
            tracing::info!("the image gives the network service no socket");
            return;
        };
        let mut socket = Some(std::net::UdpSocket::from(socket));
        self.address.set(socket.as_ref().and_then(|socket| socket.local_addr().ok()));
        let mut revision = self.revision.subscribe();
        let mut shown = None;
        loop {
            let now_s = self.now_s();
            let own = self.state.borrow().own().map(|(chain, own)| {
                // Not at once again, whatever its times are.
                let renew_in = renew_after(own.from_s, own.until_s, now_s);
                (chain.to_vec(), renew_in.max(Duration::from_secs(1)))
            });
            let Some((chain, renew_in)) = own else {
                // The sender lives as long as this service.
                let _ = revision.changed().await;
                continue;
            };
            if shown.as_ref() != Some(&chain) {
                if let Err(error) = self.show(chain.clone(), &mut socket) {
                    tracing::error!(%error, "the network service cannot use its socket");
                    return;
                }
                shown = Some(chain);
            }
            tokio::select! {
                changed = revision.changed() => drop(changed),
                () = tokio::time::sleep(renew_in) => {
                    if let Err(fault) = self.renew_own().await {
                        tracing::warn!(%fault, "the network service's SVID was not renewed");
                        tokio::time::sleep(AGAIN).await;
                    }
                }
            }
        }
    }

    /// Takes off the list whose invitation has ended, until the vat ends.
    pub(crate) async fn expire(self: Rc<Self>) {
        loop {
            tokio::time::sleep(LOOK).await;
            if let Err(fault) = self.expire_once() {
                tracing::warn!(%fault, "an invitation that has ended stays");
            }
        }
    }

    fn expire_once(self: &Rc<Self>) -> Result<(), Fault> {
        self.tell_standings();
        self.expire_revocations()?;
        if !self.state.borrow().has_late(self.now_s()) {
            return Ok(());
        }
        let (now_s, mut late, mut casts) = (self.now_s(), Vec::new(), Vec::new());
        let next = self.changed(|state| {
            late = state.expire(now_s);
            for peer in &late {
                let Peer::Node(node) = peer else { continue };
                let now_us = now_s.saturating_mul(1_000_000);
                // It is off the list in any case.
                casts.extend(state.take_back(&self.issuer_secret, *node, now_us).ok().flatten());
            }
            Ok(())
        })?;
        if late.is_empty() {
            return Ok(());
        }
        let before = self.install(next);
        self.save_or(before)?;
        for peer in late {
            self.report(format!("{peer} was invited and has not come"));
        }
        self.clone().spread_all(casts);
        Ok(())
    }

    /// Notes that a node has come that was invited.
    pub(crate) fn came(&self, node: NodeId) -> Result<(), Fault> {
        let came = self.state.borrow_mut().came(node);
        let Some(until_s) = came else { return Ok(()) };
        self.save().inspect_err(|_| self.state.borrow_mut().not_come(node, until_s))?;
        self.report(format!("node/{node} has come"));
        Ok(())
    }

    /// Shows this SVID from now on.
    fn show(
        self: &Rc<Self>,
        chain: Vec<Vec<u8>>,
        socket: &mut Option<std::net::UdpSocket>,
    ) -> Result<(), Fault> {
        let own = distos_quic::Credentials { chain, secret: self.secret() };
        if let Some(endpoint) = &*self.endpoint.borrow() {
            endpoint.renew(own);
            return Ok(());
        }
        let Some(socket) = socket.take() else { return Ok(()) };
        let trust = self.own_trust()?;
        let opened =
            Endpoint::new(socket, own, trust, Settings::default(), distos_quic::system_clock());
        let (endpoint, arrivals) = opened.map_err(Fault::internal)?;
        *self.endpoint.borrow_mut() = Some(Rc::new(endpoint));
        tokio::task::spawn_local(self.clone().receive(arrivals));
        Ok(())
    }

    async fn renew_own(&self) -> Result<(), Fault> {
        let (chain, own) = self.ask_own(&self.secret()).await?;
        // Nobody else has to hear of it.
        let now_s = self.now_s();
        self.state.borrow_mut().renew(chain, now_s)?;
        tracing::info!(until_s = own.until_s, "renewed the network service's SVID");
        self.save()
    }

    /// An SVID for this service itself.
    pub(crate) async fn ask_own(
        &self,
        secret: &HolderSecret,
    ) -> Result<(Vec<Vec<u8>>, Own), Fault> {
        let subject = self.state.borrow().id()?.subject;
        let proof = prove(&subject, secret);
        self.ask(&VatName::new(SERVICE)?, secret.key(), &proof).await
    }

    /// An SVID for a service of this node, from the first node that signs one.
    pub(crate) async fn ask(
        &self,
        service: &VatName,
        key: HolderKey,
        proof: &[u8],
    ) -> Result<(Vec<Vec<u8>>, Own), Fault> {
        let (id, nodes) = {
            let state = self.state.borrow();
            (state.id_of(service.clone())?, state.reachable(self.now_s()))
        };
        self.opened()?;
        let mut why = "no peer with an address is in the list: `distos peers add`".to_owned();
        for node in nodes {
            let signed = self
                .with_member(node, async |member: member::Client| {
                    signed_by(&member, service, key, proof, &self.life.token(node)).await
                })
                .await;
            // What comes from another node is looked at as if nobody had signed it.
            let checked = signed.and_then(|chain| {
                let own = check(self.state.borrow().bundle()?, &chain, &id, key, self.now_s())?;
                Ok((chain, own))
            });
            match checked {
                Ok(found) => return Ok(found),
                Err(fault) => why = fault.to_string(),
            }
        }
        Err(Fault::unavailable(5000, format!("nobody has signed an SVID for {id}: {why}")))
    }

    fn opened(&self) -> Result<Rc<Endpoint>, Fault> {
        let endpoint = self.endpoint.borrow().clone();
        endpoint.ok_or_else(|| {
            Fault::unavailable(5000, "the network service has no socket, or no SVID yet")
        })
    }

    /// Asks the network service of another node, over a connection that stays for a while.
    pub(crate) async fn with_member<T>(
        &self,
        node: NodeId,
        ask: impl AsyncFn(member::Client) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        self.with_link(node, MEMBER_WAIT, async |link: &Member| ask(link.member.clone()).await)
            .await
    }

    /// The same for what takes so long, and with the connection in hand.
    pub(crate) async fn with_link<T>(
        &self,
        node: NodeId,
        wait: Duration,
        ask: impl AsyncFn(&Member) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let asked = async {
            let known = self.members.borrow().get(&node).cloned();
            if let Some(known) = known.filter(|known| known.connection.close_reason().is_none()) {
                let answered = ask(&known).await;
                // It may have come to its end meanwhile.
                if answered.is_ok() || known.connection.close_reason().is_none() {
                    return answered;
                }
            }
            let opened = Rc::new(self.member(node).await?);
            self.members.borrow_mut().insert(node, opened.clone());
            ask(&opened).await
        };
        tokio::time::timeout(wait, asked).await.unwrap_or_else(|_| {
            // The next question does not wait for a connection of which nobody hears.
            self.members.borrow_mut().remove(&node);
            Err(Fault::unavailable(1000, format!("node/{node} does not answer")))
        })
    }

    async fn member(&self, node: NodeId) -> Result<Member, Fault> {
        let endpoint = self.opened()?;
        let (address, cluster) = {
            let state = self.state.borrow();
            // One that was invited has come before anybody has noted where it is.
            let came_from = self.came_from.borrow().get(&node).copied();
            let address = match (state.place(node, self.now_s()), came_from) {
                (Some(None), Some(address)) => address,
                _ => state.address(node, self.now_s())?,
            };
            (address, state.id()?.cluster)
        };
        let subject = Subject::Service { node, service: VatName::new(SERVICE)? };
        let link = endpoint.connect(address, &SpiffeId { cluster, subject }).await?;
        if link.shown() != self.secret().key() {
            return Err(Fault::unavailable(100, "this node has changed its key meanwhile"));
        }
        // Those that have ended are of no use.
        self.members.borrow_mut().retain(|_, known| known.connection.close_reason().is_none());
        let (connection, key) = (link.connection().clone(), link.peer().key);
        let mut system = link.start(None, Bounds::HOLDER);
        let member = system.bootstrap(Side::Server);
        Ok(Member { member, key, connection, _driven: Driven::new(system) })
    }

    /// Where a service of another node listens, as that node says, or said a little while ago: also that there
    /// is none. `asking` is who wants to know.
    pub(crate) async fn locate(
        &self,
        node: NodeId,
        service: &VatName,
        asking: &VatName,
    ) -> Result<SocketAddr, Fault> {
        // What this node knows itself is not believed for a while, but known.
        let address = self.state.borrow().address(node, self.now_s())?;
        let at = |port: u16| SocketAddr::new(address.ip(), port);
        let whom = (node, service.clone());
        let known = self.located.borrow().get(&whom).cloned();
        if let Some((until_ms, said)) = known
            && self.clock_ms() < until_ms
        {
            return said.map(at);
        }
        // What one tenant's executor asks for without end is not asked of other nodes for it.
        if !self.locating.borrow_mut().may(asking.clone(), self.now_s()) {
            return Err(Fault::unavailable(10_000, format!("{asking} asks too often")));
        }
        let said = self.ask_where(node, service).await;
        let lasts_ms = match said {
            Ok(_) => Some(LOCATED_MS),
            // It may be about to start.
            Err(Fault::NotFound(_)) => Some(ABSENT_MS),
            Err(_) => None,
        };
        if let Some(lasts_ms) = lasts_ms {
            let (mut located, now_ms) = (self.located.borrow_mut(), self.clock_ms());
            located.retain(|_, (until_ms, _)| now_ms < *until_ms);
            if located.len() < MAX_LOCATED {
                located.insert(whom, (now_ms + lasts_ms, said.clone()));
            }
        }
        said.map(at)
    }

    async fn ask_where(&self, node: NodeId, service: &VatName) -> Result<u16, Fault> {
        self.with_member(node, async |member: member::Client| {
            let mut request = member.locate_request();
            request.get().set_service(service.as_str());
            let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
            Ok(answer.get().map_err(|e| fault_of(&e))?.get_port())
        })
        .await
    }

    /// A network service listens where it connects from: it has one socket.
    fn note_where(&self, node: NodeId, address: SocketAddr) {
        let mut came_from = self.came_from.borrow_mut();
        if came_from.len() >= MAX_LOCATED {
            came_from.clear();
        }
        came_from.insert(node, address);
    }

    /// Lets network services of other nodes ask, and nobody else.
    async fn receive(self: Rc<Self>, mut arrivals: Arrivals) {
        let mut refusals = Refusals::default();
        while let Some(arrival) = arrivals.recv().await {
            match arrival {
                Ok(link) => match &link.peer().id.subject {
                    Subject::Service { node, service } if service.as_str() == SERVICE => {
                        let (by, key) = (link.peer().key, link.shown());
                        // Whoever has a key that was the node's before does not say where it is.
                        if !self.state.borrow().is_bound_to_another(*node, by, self.now_s()) {
                            self.note_where(*node, link.connection().remote_address());
                        }
                        // Evidence is bound to what the handshake has shown, and that is what is shown from now on:
                        // one that has begun before this node changed its key begins anew.
                        if key == self.secret().key() {
                            let service = self.clone();
                            let server = MemberServer { service, node: *node, by, key };
                            tokio::task::spawn_local(serve(link, server));
                        }
                    }
                    other => {
                        let from = link.connection().remote_address();
                        let refused =
                            Refused { from, why: format!("{other} is no network service") };
                        if let Some(told) = refusals.note(&refused, Instant::now()) {
                            self.vat.report("denial", TenantId::OPERATOR, CapId(0), told);
                        }
                    }
                },
                Err(refused) => {
                    if let Some(told) = refusals.note(&refused, Instant::now()) {
                        self.vat.report("denial", TenantId::OPERATOR, CapId(0), told);
                    }
                }
            }
            // One connection, then everybody's turn.
            tokio::task::yield_now().await;
        }
    }
}

async fn serve(link: Link, server: MemberServer) {
    let client: member::Client = capnp_rpc::new_client(server);
    let system = link.start(Some(client.client), Bounds::HOLDER);
    // How a connection ends is its client's affair, and that it does is ours.
    drive(system, tokio::time::sleep(STAY)).await;
}

async fn signed_by(
    member: &member::Client,
    service: &VatName,
    key: HolderKey,
    proof: &[u8],
    token: &[u8; 32],
) -> Result<Vec<Vec<u8>>, Fault> {
    let mut request = member.sign_request();
    let mut asked = request.get();
    asked.set_service(service.as_str());
    asked.set_key(&key.0);
    asked.set_proof(proof);
    asked.set_token(token);
    let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
    let chain = answer.get().and_then(|answer| answer.get_chain()).and_then(certificates);
    chain.map_err(|e| fault_of(&e))
}

/// What another node's network service finds at its end of a connection.
struct MemberServer {
    service: Rc<NetworkService>,
    /// That node.
    node: NodeId,
    /// The key of its SVID when it connected.
    by: HolderKey,
    /// The key of this node's SVID when it connected.
    key: HolderKey,
}

impl MemberServer {
    fn once_more(&self, question: Question) -> Result<(), capnp::Error> {
        let service = &self.service;
        if service.asked.borrow_mut().may((self.node, self.by, question), service.now_s()) {
            return Ok(());
        }
        Err(fail(Fault::unavailable(10_000, "this node asks too often")))
    }
}

impl heard::Server for MemberServer {
    async fn heard(
        self: Rc<Self>,
        params: heard::HeardParams,
        mut results: heard::HeardResults,
    ) -> Result<(), capnp::Error> {
        self.once_more(Question::Heard)?;
        let known = self.service.answer_heard(params.get()?.get_seen()?, false).await;
        answer_known(&known.map_err(fail)?, results.get());
        Ok(())
    }

    async fn configuration(
        self: Rc<Self>,
        _: heard::ConfigurationParams,
        mut results: heard::ConfigurationResults,
    ) -> Result<(), capnp::Error> {
        self.once_more(Question::Heard)?;
        let state = self.service.state.borrow();
        if let Some(signed) = state.members().signed() {
            results.get().set_configuration(signed.to_json());
        }
        Ok(())
    }

    async fn votes(
        self: Rc<Self>,
        params: heard::VotesParams,
        mut results: heard::VotesResults,
    ) -> Result<(), capnp::Error> {
        self.once_more(Question::Heard)?;
        let state = self.service.state.borrow();
        answer_votes(state.members(), params.get()?, results.get()).map_err(fail)
    }

    async fn revocations(
        self: Rc<Self>,
        params: heard::RevocationsParams,
        mut results: heard::RevocationsResults,
    ) -> Result<(), capnp::Error> {
        self.once_more(Question::Heard)?;
        let state = self.service.state.borrow();
        answer_revocations(state.members(), params.get()?, results.get()).map_err(fail)
    }
}

impl member::Server for MemberServer {
    async fn tell(
        self: Rc<Self>,
        params: member::TellParams,
        mut results: member::TellResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let service = &self.service;
        self.once_more(Question::Tell)?;
        let chain = certificates(params.get_chain()?)?;
        let heard = service.hear(params.get_statement()?, params.get_signature()?, &chain);
        heard.map_err(|fault| {
            if !matches!(fault, Fault::Unavailable { .. }) {
                service.report(format!("node/{} has said something in vain: {fault}", self.node));
            }
            fail(fault)
        })?;
        let state = service.state.borrow();
        write_summary(&state.members().summary(), results.get().init_summary());
        Ok(())
    }

    async fn gossip(
        self: Rc<Self>,
        params: member::GossipParams,
        _: member::GossipResults,
    ) -> Result<(), capnp::Error> {
        self.once_more(Question::Gossip)?;
        self.service.gossiped(self.node, params.get()?.get_message()?).map_err(fail)
    }

    async fn carry(
        self: Rc<Self>,
        params: member::CarryParams,
        mut results: member::CarryResults,
    ) -> Result<(), capnp::Error> {
        self.once_more(Question::Carry)?;
        let revocation = Revocation::decode(params.get()?.get_revocation()?).map_err(fail)?;
        if revocation.home() != self.service.vat.node() {
            return Err(fail(Fault::malformed("this is for another node")));
        }
        let ended = self
            .service
            .carry(revocation, |next| Ok(self.service.install(next)))
            .await
            .map_err(fail)?;
        results.get().set_ended(ended);
        Ok(())
    }

    async fn evidence(
        self: Rc<Self>,
        params: member::EvidenceParams,
        mut results: member::EvidenceResults,
    ) -> Result<(), capnp::Error> {
        self.once_more(Question::Evidence)?;
        let question = params.get()?.get_question()?;
        let questions = &self.service.questions;
        // Nobody takes a call back that came over the network: it has its place until it is answered, its time is over, or
        // the connection is.
        let own = Bound { key: self.key, life: self.service.life.mark(self.node) };
        let answer = questions.ask(self.node, own, question, ANSWER_WAIT).await;
        let mut reply = results.get();
        reply.set_answer(&answer.map_err(fail)?);
        reply.set_life(&own.life);
        Ok(())
    }

    async fn locate(
        self: Rc<Self>,
        params: member::LocateParams,
        mut results: member::LocateResults,
    ) -> Result<(), capnp::Error> {
        let service = params.get()?.get_service()?.to_str()?.to_owned();
        let own = &self.service;
        self.once_more(Question::Locate)?;
        let port = own.port_of(&service).ok_or_else(|| {
            fail(Fault::not_found("no such service lets anybody in over the network"))
        })?;
        results.get().set_port(port);
        Ok(())
    }

    async fn sign(
        self: Rc<Self>,
        params: member::SignParams,
        mut results: member::SignResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let service = &self.service;
        self.once_more(Question::Sign)?;
        let asks = Request {
            node: self.node,
            by: Bound { key: self.by, life: mark_of(params.get_token()?).map_err(fail)? },
            service: params.get_service()?.to_str()?,
            key: HolderKey::try_from(params.get_key()?).map_err(fail)?,
            proof: params.get_proof()?,
        };
        let (at, serial) = (service.vat.now_ms(), serial().map_err(fail)?);
        service.note_bound(self.node, asks.by);
        let signed = service.state.borrow().sign(
            &service.issuer_secret,
            &asks,
            service.lifetime_s,
            at / 1000,
            serial,
        );
        let (chain, ends_s) = signed.map_err(|fault| {
            // A node that is not fresh asks every second, and that it is not was told.
            if !matches!(fault, Fault::StaleAttestation(_)) {
                service.report(format!("node/{} was refused an SVID: {fault}", self.node));
            }
            fail(fault)
        })?;
        service.report(format!("signed node/{}/service/{}", self.node, asks.service));
        if asks.service != SERVICE && service.state.borrow().requires_evidence() {
            let (node, until) = (self.node, ends_s.saturating_mul(1000));
            tracing::debug!(target: TRACE, at, %node, until, "join");
        }
        service.came(self.node).map_err(fail)?;
        write_chain(&chain, results.get().init_chain(chain.len() as u32));
        Ok(())
    }
}
