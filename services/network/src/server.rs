//! The network service's objects: the operator's, and the one that this node's services ask.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use capnp::capability::FromClientHook as _;
use capnp::private::capability::ClientHook;
use distos_abi::{ByteRange, CapId, Fault, HolderKey, NodeId, ObjectId, Rights, TenantId, VatName};
use distos_evidence::joining::seal;
use distos_identity::{
    Bundle, Heard, Invitation, MAX_SVID_LIFETIME_S, Peer, Serial, TenantName, Ticks, TokenKey,
    TokenSecret, Trust,
};
use distos_membership::{Mark, Signed, Stance};
use distos_quic::Endpoint;
use distos_rpc::boot::Boot;
use distos_rpc::record::Record;
use distos_rpc::{Facet, Faceted, Service, Vat, fail, serve_capability};
use distos_schemas::network_capnp::{heard, network};
use distos_types::{HolderSecret, Revocation, kind};
use futures::future::LocalBoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::agents::AgentsServer;
use crate::alive::Alive;
use crate::asked::{Asked, Question};
use crate::credentials::CredentialsServer;
use crate::heard::{answer_known, answer_revocations, answer_votes, read_casts, read_revocations};
use crate::inviting::{AskedAttested, Challenges, is_by_tpm, randomness, write_registers};
use crate::keys::Keys;
use crate::mesh::Member;
use crate::questions::Questions;
use crate::revocations::load_revocations;
use crate::standing::{EVIDENCE, Standing, is_required};
use crate::state::{Kept, SERVICE, State, validity};
use crate::swim::Swim;
use crate::votes::load_votes;

/// The objects have no bytes.
pub(crate) const NO_BYTES: ByteRange = ByteRange { start: 0, end: 0 };
/// The setting of an image that says how long an SVID holds that this node signs, in seconds.
const LIFETIME: &str = "svid_s";
const LIFETIME_S: u64 = 3600;
/// The setting that says how nodes are invited: `key` or `tpm`.
const JOINING: &str = "joining";
/// How long a change of the list waits for the services to say that they know.
pub(crate) const HEARD_WAIT: Duration = Duration::from_secs(2);
const HEARD_LOOK: Duration = Duration::from_millis(5);
/// Peers in one answer, as long as there are no more in this node's own list and among those that it lets in.
const MAX_LISTED: usize = 4096;
/// The longest chain that is taken: two certificates.
const MAX_CHAIN: u32 = 2;

/// Runs the network service; blocks for the whole life of the vat.
pub fn run(boot: Boot) -> ExitCode {
    distos_rpc::run(boot, start)
}

/// What is on disk, beside the keys.
#[derive(Serialize, Deserialize)]
struct Disk {
    /// Whose secret halves are in files that are named after them.
    key: String,
    issuer_key: String,
    state: Kept,
}

/// What was heard, in a file of its own: it is written as long as others speak.
#[derive(Serialize, Deserialize)]
struct HeardDisk {
    /// The latest time that was seen, in microseconds since the Unix epoch.
    floor_us: u64,
    /// Until when statements of each member may have been heard.
    until_us: BTreeMap<String, u64>,
}

/// Starts the network service of a vat; for whoever runs vats in another way than [`run`].
///
/// # Errors
/// [`Fault::Malformed`] if the image lacks something or a setting says nothing; [`Fault::Corrupt`] if what is on disk
/// is damaged.
pub async fn start(vat: Vat) -> Result<Rc<dyn Service>, Fault> {
    distos_noise::seal(&vat);
    let directory = vat.data_dir().ok_or_else(|| {
        Fault::malformed("the network service keeps keys: give it `data = true` in the image")
    })?;
    let lifetime_s = match vat.param(LIFETIME).map(str::parse) {
        Some(Ok(lifetime_s)) if (1..=MAX_SVID_LIFETIME_S).contains(&lifetime_s) => lifetime_s,
        None => LIFETIME_S,
        _ => {
            let why = format!("{LIFETIME} is a number of seconds, {MAX_SVID_LIFETIME_S} at most");
            return Err(Fault::malformed(why));
        }
    };
    let is_by_tpm = is_by_tpm(vat.param(JOINING))?;
    let is_required = is_required(vat.param(EVIDENCE))?;
    let keys = Keys::new(directory);
    let record = record(directory);
    let (secret, issuer_secret, kept) = match record.load::<Disk>()? {
        Some(disk) => (keys.load(&disk.key)?, keys.load(&disk.issuer_key)?, Some(disk.state)),
        None => (keys.make()?, keys.make()?, None),
    };
    let heard_record = heard_record(directory);
    let heard = match heard_record.load::<HeardDisk>()? {
        Some(disk) => {
            let until_us = disk.until_us.iter().map(|(name, at_us)| Ok((name.parse()?, *at_us)));
            Heard::restore(until_us.collect::<Result<_, Fault>>()?, disk.floor_us)
        }
        None => Heard::default(),
    };
    let own = (secret.key(), issuer_secret.key());
    let is_new = kept.is_none();
    let mut state = match kept {
        Some(kept) => {
            let revocations = load_revocations(directory)?;
            State::restore(vat.node(), own, kept, &|key| load_votes(directory, key), revocations)?
        }
        None => State::new(vat.node(), own),
    };
    if is_required {
        state.require_evidence();
    }
    let kept_votes = state.members().digests().filter_map(|(voter, digest)| {
        let voting = state.members().voting()?;
        Some((voting.voters.get(&voter)?.key, digest))
    });
    let kept_votes = kept_votes.collect();
    let kept_revocations = state.members().revocations().kept().collect();
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(Fault::internal)?;
    // Later than whenever it took part before, also if its clock was set back.
    let since_us = vat.now_ms().saturating_mul(1000).max(heard.kept().1.saturating_add(1));
    let swim = Swim::new(vat.node(), since_us, u64::from_ne_bytes(seed));
    let token_key = TokenSecret::of_issuer(&issuer_secret)?.key();
    getrandom::fill(&mut seed).map_err(Fault::internal)?;
    let questions = Questions::new(u64::from_ne_bytes(seed));
    let service = Rc::new(NetworkService {
        vat,
        record,
        heard_record,
        keys,
        secret: RefCell::new(Arc::new(secret)),
        issuer_secret,
        token_key,
        lifetime_s,
        state: RefCell::new(state),
        revision: watch::Sender::new(1),
        again: watch::Sender::default(),
        attending: RefCell::default(),
        endpoint: RefCell::default(),
        address: Cell::new(None),
        asked: RefCell::default(),
        locating: RefCell::default(),
        located: RefCell::default(),
        came_from: RefCell::default(),
        started: Instant::now(),
        alive: RefCell::default(),
        swim: RefCell::new(swim),
        under_way: RefCell::default(),
        looked: RefCell::default(),
        heard: RefCell::new(heard),
        ticks: RefCell::default(),
        speaking: RefCell::default(),
        members: RefCell::default(),
        kept_votes: RefCell::new(kept_votes),
        kept_revocations: RefCell::new(kept_revocations),
        asking: RefCell::default(),
        settled: RefCell::default(),
        left: RefCell::default(),
        told: RefCell::default(),
        offers: RefCell::default(),
        more: watch::Sender::new(()),
        agents_asked: RefCell::default(),
        is_unsaved: Cell::new(false),
        is_by_tpm,
        challenges: RefCell::default(),
        questions,
    });
    service.show_revocations();
    if is_new {
        // The keys that the operator has signed must be those of the next boot.
        service.save()?;
    }
    tokio::task::spawn_local(service.clone().expire());
    tokio::task::spawn_local(service.clone().keep());
    tokio::task::spawn_local(service.clone().speak());
    tokio::task::spawn_local(service.clone().probe());
    tokio::task::spawn_local(service.clone().obey());
    Ok(service)
}

fn record(directory: &Path) -> Record {
    const REMEDY: &str =
        "restore it from a backup, or remove it, and join the cluster with a new key";
    Record::new(directory.join("network"), "distos-network", REMEDY)
}

fn heard_record(directory: &Path) -> Record {
    const REMEDY: &str = "remove it, and wait for eleven minutes before this node is started: what was said before is too old then";
    Record::new(directory.join("heard"), "distos-heard", REMEDY)
}

/// A service that asks for credentials.
#[derive(Clone, Default)]
pub(crate) struct Attending {
    /// The revision that it has put into effect.
    pub(crate) seen: u64,
    /// Until when its SVID holds.
    pub(crate) until_s: u64,
    /// The UDP port at which it lets others in; 0 if it does not.
    pub(crate) port: u16,
    /// The hashes of those revocations of which nothing has an effect there any more.
    pub(crate) ended: BTreeSet<[u8; 32]>,
}

/// The port of a service, as its node said, and until when that is believed.
pub(crate) type Said = (u64, Result<u16, Fault>);

/// The digests of what another node and this one had heard of revocations, and how often the homes had changed by then
/// that this one lets in.
pub(crate) type Settled = ([u8; 32], [u8; 32], u64);

pub(crate) struct NetworkService {
    pub(crate) vat: Vat,
    record: Record,
    heard_record: Record,
    keys: Keys,
    /// The key of this service's SVID, and that of its issuer.
    secret: RefCell<Arc<HolderSecret>>,
    pub(crate) issuer_secret: HolderSecret,
    /// The public half of what it signs tokens with, which is made of the issuer's whenever it is used.
    token_key: TokenKey,
    /// How often agents of each tenant have had something signed lately.
    pub(crate) agents_asked: RefCell<Asked<ObjectId>>,
    pub(crate) lifetime_s: u64,
    pub(crate) state: RefCell<State>,
    /// The number of the present list. It begins anew with the service.
    pub(crate) revision: watch::Sender<u64>,
    /// Nodes that this node's verifier is to ask at once.
    pub(crate) again: watch::Sender<BTreeSet<NodeId>>,
    pub(crate) attending: RefCell<BTreeMap<String, Attending>>,
    pub(crate) endpoint: RefCell<Option<Rc<Endpoint>>>,
    pub(crate) address: Cell<Option<SocketAddr>>,
    /// How often each node has asked lately.
    pub(crate) asked: RefCell<Asked<(NodeId, Question)>>,
    /// How often each service of this node has asked where others are.
    pub(crate) locating: RefCell<Asked<VatName>>,
    /// Where services of other nodes are, and when that was said.
    pub(crate) located: RefCell<BTreeMap<(NodeId, VatName), Said>>,
    /// From where other nodes' network services have connected.
    pub(crate) came_from: RefCell<BTreeMap<NodeId, SocketAddr>>,
    pub(crate) started: Instant,
    /// Which nodes are there.
    pub(crate) alive: RefCell<Alive>,
    /// Whom others reach, as they say.
    pub(crate) swim: RefCell<Swim>,
    /// How many messages about that are under way, and when those were asked last who are not reached.
    pub(crate) under_way: RefCell<BTreeMap<NodeId, usize>>,
    pub(crate) looked: RefCell<BTreeMap<NodeId, u64>>,
    /// What was heard of whom, so that nothing is heard twice.
    pub(crate) heard: RefCell<Heard>,
    /// The clock of what this node says.
    pub(crate) ticks: RefCell<Ticks>,
    /// Those who are being told that this node is there.
    pub(crate) speaking: RefCell<BTreeSet<NodeId>>,
    /// Connections to other nodes' network services.
    pub(crate) members: RefCell<BTreeMap<NodeId, Rc<Member>>>,
    /// What is on disk of the votes that were signed with each key.
    pub(crate) kept_votes: RefCell<BTreeMap<HolderKey, [u8; 32]>>,
    /// What is on disk of the revocations for each home.
    pub(crate) kept_revocations: RefCell<BTreeMap<NodeId, [u8; 32]>>,
    /// Those who are being asked for what this node has not heard, and until when the others are not asked again.
    pub(crate) asking: RefCell<BTreeMap<NodeId, Option<u64>>>,
    /// What those have heard of revocations, and what this node had then, who have told all of it that is taken here.
    pub(crate) settled: RefCell<BTreeMap<NodeId, Settled>>,
    /// Which tenant's agents have left which revocation here.
    pub(crate) left: RefCell<BTreeMap<Mark, ObjectId>>,
    /// Whether a configuration is followed that is not on disk.
    pub(crate) is_unsaved: Cell<bool>,
    /// Whether nodes are invited by their TPMs alone.
    is_by_tpm: bool,
    /// What nodes are to answer that want to be invited.
    pub(crate) challenges: RefCell<Challenges>,
    /// What other nodes' verifiers ask this one's machine.
    pub(crate) questions: Questions,
    /// How often votes of each voter were told lately.
    pub(crate) told: RefCell<Asked<NodeId>>,
    /// How often what was heard elsewhere was offered lately, by whoever may.
    offers: RefCell<Asked<()>>,
    /// Told whenever more has been heard, or said here.
    pub(crate) more: watch::Sender<()>,
}

impl NetworkService {
    pub(crate) fn now_s(&self) -> u64 {
        self.vat.now_ms() / 1000
    }

    /// The key of this service's SVID.
    pub(crate) fn secret(&self) -> Arc<HolderSecret> {
        self.secret.borrow().clone()
    }

    /// Puts what is known on disk.
    pub(crate) fn save(&self) -> Result<(), Fault> {
        self.save_votes()?;
        let disk = Disk {
            key: self.secret().key().to_string(),
            issuer_key: self.issuer_secret.key().to_string(),
            state: self.state.borrow().keep(),
        };
        self.record.save(&disk)?;
        self.forget_votes()
    }

    /// Puts on disk what may have been heard.
    pub(crate) fn save_heard(&self) -> Result<(), Fault> {
        let heard = self.heard.borrow();
        let (kept, floor_us) = heard.kept();
        let until_us = kept.iter().map(|(from, at_us)| (from.to_string(), *at_us)).collect();
        self.heard_record.save(&HeardDisk { floor_us, until_us })
    }

    /// What would be known after this change.
    pub(crate) fn changed(
        &self,
        change: impl FnOnce(&mut State) -> Result<(), Fault>,
    ) -> Result<State, Fault> {
        let (mut next, before) = (self.state.borrow().clone(), self.let_in());
        change(&mut next)?;
        next.note_put_out(&before, self.now_s());
        Ok(next)
    }

    /// Goes by this from now on; what was known before.
    pub(crate) fn install(&self, next: State) -> State {
        std::mem::replace(&mut *self.state.borrow_mut(), next)
    }

    /// Tells whoever listens what was installed.
    pub(crate) fn tell(&self) {
        if let (Some(endpoint), Ok(trust)) = (&*self.endpoint.borrow(), self.own_trust()) {
            endpoint.trust(trust);
        }
        self.show_revocations();
        self.revision.send_modify(|revision| *revision += 1);
        self.more.send_replace(());
    }

    /// Whom this service itself lets in: network services of other nodes.
    pub(crate) fn own_trust(&self) -> Result<Trust, Fault> {
        let mut trust = self.state.borrow().trust(self.now_s())?;
        trust.peers.tenants.clear();
        Ok(trust)
    }

    /// Tells what was installed and puts it on disk, or goes back to what was known before.
    pub(crate) fn save_or(&self, before: State) -> Result<(), Fault> {
        self.tell();
        self.save().inspect_err(|_| {
            self.install(before);
            self.tell();
            // What is there of it already does not hold after a restart either.
            let _ = self.save_votes();
        })
    }

    /// Waits until the services that may ask have put the present list into effect; those that have not
    /// in time.
    async fn until_heard(&self) -> Vec<String> {
        // Before there is a cluster nobody is served, and nothing is told.
        if self.state.borrow().bundle().is_err() {
            return Vec::new();
        }
        let revision = *self.revision.borrow();
        let behind = || -> Vec<String> {
            let attending = self.attending.borrow();
            let knows =
                |service: &String| attending.get(service).is_some_and(|one| one.seen >= revision);
            let holders = self.vat.holders(kind::CREDENTIALS);
            holders.into_iter().filter(|service| !knows(service)).collect()
        };
        let begun = Instant::now();
        while !behind().is_empty() && begun.elapsed() < HEARD_WAIT {
            tokio::time::sleep(HEARD_LOOK).await;
        }
        behind()
    }

    /// Where a service of this node lets others in.
    pub(crate) fn port_of(&self, service: &str) -> Option<u16> {
        let attending = self.attending.borrow();
        attending.get(service).map(|one| one.port).filter(|port| *port != 0)
    }

    pub(crate) fn note(&self, service: &str, note: impl FnOnce(&mut Attending)) {
        note(self.attending.borrow_mut().entry(service.to_owned()).or_default());
    }

    pub(crate) fn report(&self, detail: String) {
        self.vat.report("network", TenantId::OPERATOR, CapId(0), detail);
    }
}

/// A number that no other certificate has.
pub(crate) fn serial() -> Result<Serial, Fault> {
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).map_err(Fault::internal)?;
    Ok(Serial(serial))
}

impl Service for NetworkService {
    fn open(self: Rc<Self>, facet: Facet) -> Result<Box<dyn ClientHook>, Fault> {
        match facet.kind() {
            kind::NETWORK if facet.object() == ObjectId::ROOT => {
                Ok(NetworkServer { facet, service: self }.into_hook())
            }
            kind::CREDENTIALS if facet.object() == ObjectId::ROOT => {
                Ok(CredentialsServer { facet, service: self }.into_hook())
            }
            kind::AGENTS => {
                self.state.borrow().tenant_of(facet.object())?;
                Ok(AgentsServer { facet, service: self }.into_hook())
            }
            _ => Err(Fault::not_found("this vat serves the network, credentials and agents")),
        }
    }

    fn drain(self: Rc<Self>) -> LocalBoxFuture<'static, ()> {
        // Everything acknowledged is durable, and it starts nothing.
        Box::pin(std::future::ready(()))
    }
}

#[derive(Clone)]
struct NetworkServer {
    facet: Facet,
    service: Rc<NetworkService>,
}

impl NetworkServer {
    fn into_hook(self) -> Box<dyn ClientHook> {
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

pub(crate) fn certificates(
    list: capnp::data_list::Reader<'_>,
) -> Result<Vec<Vec<u8>>, capnp::Error> {
    if list.len() > MAX_CHAIN {
        return Err(fail(Fault::malformed("an SVID is two certificates")));
    }
    list.iter().map(|one| one.map(<[u8]>::to_vec)).collect()
}

pub(crate) fn write_chain(chain: &[Vec<u8>], mut list: capnp::data_list::Builder<'_>) {
    for (index, certificate) in (0..).zip(chain) {
        list.set(index, certificate);
    }
}

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
