//! The network service itself: what it holds, and how that comes to disk and to those who listen.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use capnp::private::capability::ClientHook;
use distos_abi::{ByteRange, CapId, Fault, HolderKey, NodeId, ObjectId, TenantId, VatName};
use distos_identity::{Heard, MAX_SVID_LIFETIME_S, Serial, Ticks, TokenKey, TokenSecret, Trust};
use distos_membership::Mark;
use distos_quic::Endpoint;
use distos_rpc::boot::Boot;
use distos_rpc::record::Record;
use distos_rpc::{Facet, Service, Vat, fail};
use distos_types::{HolderSecret, kind};
use futures::future::LocalBoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::agents::AgentsServer;
use crate::alive::Alive;
use crate::asked::{Asked, Question};
use crate::credentials::CredentialsServer;
use crate::inviting::{Challenges, is_by_tpm};
use crate::keys::Keys;
use crate::life::Life;
use crate::mesh::Member;
use crate::questions::Questions;
use crate::revocations::load_revocations;
use crate::standing::{EVIDENCE, is_required};
use crate::state::{Kept, State};
use crate::swim::Swim;
use crate::votes::load_votes;

mod operator;

use operator::NetworkServer;

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
    let life = Life::begin()?;
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
        life,
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
    pub(crate) asked: RefCell<Asked<(NodeId, HolderKey, Question)>>,
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
    /// Nobody has it who was not there since this service was started.
    pub(crate) life: Life,
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
    pub(crate) fn save_or(&self, mut before: State) -> Result<(), Fault> {
        self.tell();
        self.save().inspect_err(|_| {
            before.raise_epochs(&self.state.borrow());
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
