//! Three nodes in one process, whose network services are the ones that production runs, reach one another over QUIC and
//! demand evidence. In the place of each node's attestation service is this test, over the edge that the service has: so
//! it is said here what machines answer and what verifiers think, and seen what follows.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use capnp::private::capability::ClientHook;
use distos_abi::{Fault, HolderKey, NodeId, VatName};
use distos_client::Connection;
use distos_identity::{
    Bundle, ClusterName, Home, Identity, Issuer, KeyExchange, Root, Serial, SpiffeId, Subject,
    Usage, Validity, prove,
};
use distos_membership::{Configuration, Voter, Voting};
use distos_node::image::{self, Machine};
use distos_rpc::{Facet, Service, Vat, fault_of};
use distos_schemas::attestation_capnp::Standing;
use distos_schemas::kernel_capnp::outbox;
use distos_schemas::network_capnp::{credentials, network, peer};
use distos_sim::{Life, Node, tasks};
use distos_types::HolderSecret;
use futures::future::LocalBoxFuture;

const IMAGE: &str = r#"
image = { name = "evidence", slots = 4096 }
grant = [
  { to = "attestation", name = "network", of = "network/credentials", rights = ["read", "attest"] },
  { to = "memory",      name = "network", of = "network/credentials", rights = ["read"] },
  { to = "attestation", kernel = "outbox" },
]
[operator]
network = { of = "network/network", rights = ["read", "list", "write", "admin"] }
[vat.network]
program = "network"
serves = ["network", "credentials"]
listen = true
data = true
devices = { quic = "network" }
params = { evidence = "required" }
[vat.attestation]
program = "attestation"
serves = ["attestation"]
[vat.memory]
program = "memory"
serves = ["regions"]
[device.network]
udp = "127.0.0.1:0"
"#;
/// Far beyond what anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(20);
/// How long whoever has answered goes on listening.
const SOON: Duration = Duration::from_secs(1);
const HOUR_S: u64 = 3600;

/// What a machine says.
type Said = Result<Vec<u8>, Fault>;

fn test<F: Future<Output = ()>>(work: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("loop");
    tokio::task::LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(PATIENCE, work).await.expect("it takes too long");
    });
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs()
}

fn secret(seed: u8) -> HolderSecret {
    HolderSecret::from_seed([seed; 32])
}

/// Waits until something is so.
async fn until(what: &str, so: impl AsyncFn() -> bool) {
    let wait = async {
        while !so().await {
            tokio::time::sleep(AGAIN).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("{what}"));
}

/// A vat that does nothing by itself.
struct Idle;

impl Service for Idle {
    fn open(self: Rc<Self>, _: Facet) -> Result<Box<dyn ClientHook>, Fault> {
        Err(Fault::not_found("it serves nothing"))
    }

    fn drain(self: Rc<Self>) -> LocalBoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// Lets the kernel forget what it has told auditors.
async fn acknowledge(outbox: outbox::Client) -> Result<(), capnp::Error> {
    let mut after = 0;
    loop {
        let mut request = outbox.pull_request();
        request.get().set_after(after);
        request.get().set_max(1024);
        let pulled = request.send().promise.await?;
        if let Some(last) = pulled.get()?.get_records()?.iter().map(|r| r.get_seq()).last() {
            after = last;
            let mut request = outbox.ack_request();
            request.get().set_up_to(after);
            request.send().promise.await?;
        }
    }
}

/// Hears whom to let in, as a service does that is reached over the network: else each change waits for it.
async fn attend(vat: Vat) -> Result<(), capnp::Error> {
    let network: credentials::Client = vat.root("network").await.map_err(distos_rpc::fail)?;
    let mut seen = 0;
    loop {
        let mut request = network.trust_request();
        request.get().set_seen(seen);
        seen = request.send().promise.await?.get()?.get_revision();
    }
}

/// One of the nodes.
struct Member {
    id: NodeId,
    /// Where its network service listens.
    address: SocketAddr,
    /// The key of its network service's SVID, and of its issuer.
    key: HolderKey,
    issuer: HolderKey,
    operator: network::Client,
    /// What its attestation service has, and what its memory service has.
    verifier: credentials::Client,
    memory: credentials::Client,
    _connection: Connection,
    _node: Node,
    _dir: tempfile::TempDir,
}

impl Member {
    async fn boot() -> Member {
        let dir = tempfile::tempdir().expect("a directory");
        let vats: Rc<RefCell<Vec<Vat>>> = Rc::default();
        let known = vats.clone();
        let spawn = tasks(move |boot| -> Life {
            let known = known.clone();
            match boot.manifest.vat.as_str() {
                "network" => Box::pin(distos_rpc::serve(boot, distos_network::start)),
                _ => Box::pin(distos_rpc::serve(boot, async move |vat: Vat| {
                    if vat.name().as_str() == "attestation" {
                        tokio::task::spawn_local(acknowledge(vat.outbox().await?));
                    }
                    tokio::task::spawn_local(attend(vat.clone()));
                    known.borrow_mut().push(vat);
                    Ok(Rc::new(Idle) as Rc<dyn Service>)
                })),
            }
        });
        let machine = Machine {
            builtins: &distos_node::vat::PROGRAMS,
            executable: &|path| path.exists(),
            exists: &|path| path.exists(),
        };
        let plan = image::parse(IMAGE, Path::new("evidence.toml"), dir.path(), &machine)
            .unwrap_or_else(|errors| panic!("{errors}"));
        let node = Node::boot(plan, spawn).await.expect("the node starts");
        let (file, owner) = node.operator().expect("the operator's files");
        let connection = node.connect("network").await.expect("the network service answers");
        let chain = &file.find("network").expect("the image grants it").chain;
        let operator: network::Client = connection.restore(chain, &owner).await.expect("network");
        let status = operator.status_request().send().promise.await.expect("a status");
        let status = status.get().and_then(|s| s.get_status()).expect("a status");
        let vat = |name: &str| {
            let vats = vats.borrow();
            vats.iter().find(|vat| vat.name().as_str() == name).cloned().expect("it has started")
        };
        let (attestation, memory) = (vat("attestation"), vat("memory"));
        let address = status.get_address().expect("an address").to_str().expect("text");
        Member {
            id: NodeId::try_from(status.get_node().expect("a number")).expect("a number"),
            address: address.parse().expect("an address"),
            key: HolderKey::try_from(status.get_key().expect("a key")).expect("a key"),
            issuer: HolderKey::try_from(status.get_issuer_key().expect("a key")).expect("a key"),
            operator: operator.clone(),
            verifier: attestation.root("network").await.expect("credentials"),
            memory: memory.root("network").await.expect("credentials"),
            _connection: connection,
            _node: node,
            _dir: dir,
        }
    }

    /// Judges a node, by evidence that is bound to this key and life; which epoch it is in.
    async fn judge(
        &self,
        (node, (key, life)): (NodeId, Bound),
        (standing, until_s, epoch): (Standing, u64, u64),
    ) -> Result<u64, Fault> {
        let mut request = self.verifier.judge_request();
        let mut one = request.get().init_judgements(1).get(0);
        one.set_node(&node.0);
        one.set_standing(standing);
        one.set_until_s(until_s);
        one.set_epoch(epoch);
        one.set_reason("PCR 11 differs");
        one.set_key(&key.0);
        one.set_life(&life);
        let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
        answer.get().and_then(|one| Ok(one.get_epochs()?.get(0))).map_err(|e| fault_of(&e))
    }

    /// Until when an SVID holds that another node signs for its memory service.
    async fn memory_svid(&self, bundle: &Bundle) -> Result<u64, Fault> {
        let service = VatName::new("memory")?;
        let subject = Subject::Service { node: self.id, service };
        let own = secret(77);
        let mut request = self.memory.sign_request();
        request.get().set_key(&own.key().0);
        request.get().set_proof(&prove(&subject, &own));
        let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
        let chain: Vec<Vec<u8>> = answer
            .get()
            .and_then(|answer| {
                answer.get_chain()?.iter().map(|one| one.map(<[u8]>::to_vec)).collect()
            })
            .map_err(|e| fault_of(&e))?;
        let identity = Identity::verify(&chain, bundle, now_s(), Usage::Server)?;
        assert_eq!((identity.id.subject, identity.key), (subject, own.key()));
        Ok(identity.until_s)
    }

    /// What its operator sees of a node.
    async fn sees<T>(&self, node: NodeId, see: impl Fn(peer::Reader<'_>) -> T) -> T {
        let answer = self.operator.peers_request().send().promise.await.expect("the list");
        let list = answer.get().and_then(|answer| answer.get_peers()).expect("the list");
        let name = format!("node/{node}");
        let found = list.iter().find(|peer| peer.get_name().is_ok_and(|found| found == &*name));
        see(found.expect("it is known"))
    }

    async fn lets_in(&self, node: NodeId) -> bool {
        self.sees(node, |peer| peer.get_let_in()).await
    }

    async fn standing(&self, node: NodeId) -> String {
        let text = |peer: peer::Reader<'_>| {
            Ok::<_, capnp::Error>(peer.get_standing()?.to_str()?.to_owned())
        };
        self.sees(node, text).await.expect("text")
    }

    /// The nodes that it is to verify, once they are others than at this revision.
    async fn attested(&self, seen: u64) -> (u64, Vec<NodeId>) {
        let (revision, nodes, _) = self.verifies(seen).await;
        (revision, nodes)
    }

    /// The same, and which of them it is to ask at once.
    async fn verifies(&self, seen: u64) -> (u64, Vec<NodeId>, Vec<NodeId>) {
        let mut request = self.verifier.attested_request();
        request.get().set_seen(seen);
        let answer = request.send().promise.await.expect("the nodes");
        let answer = answer.get().expect("the nodes");
        let read = |list: capnp::Result<capnp::data_list::Reader<'_>>| -> Vec<NodeId> {
            let list = list.expect("nodes").iter();
            list.map(|node| NodeId::try_from(node.expect("a number")).expect("a number")).collect()
        };
        (answer.get_revision(), read(answer.get_nodes()), read(answer.get_again()))
    }

    /// Asks a node's machine: what it says, and to whom that is bound.
    async fn ask(&self, node: NodeId, question: &[u8]) -> Result<(Vec<u8>, Bound), Fault> {
        let mut request = self.verifier.ask_request();
        request.get().set_node(&node.0);
        request.get().set_question(question);
        let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
        let answer = answer.get().map_err(|e| fault_of(&e))?;
        let key = HolderKey::try_from(answer.get_key().map_err(|e| fault_of(&e))?)?;
        let life = answer.get_life().map_err(|e| fault_of(&e))?;
        let life = life.try_into().expect("32 bytes");
        Ok((answer.get_answer().map_err(|e| fault_of(&e))?.to_vec(), (key, life)))
    }

    /// Answers so many questions, each by what `answer` says: it is given the verifier, to whom to bind it, and the question.
    async fn answers(&self, count: usize, answer: impl Fn(NodeId, Bound, &[u8]) -> Said) {
        let (mut answered, mut said) = (0, Vec::<(u64, Said)>::new());
        while answered < count || !said.is_empty() {
            let mut request = self.verifier.questions_request();
            let mut list = request.get().init_answered(said.len() as u32);
            for (index, (id, answer)) in (0..).zip(said.drain(..)) {
                let mut one = list.reborrow().get(index);
                one.set_id(id);
                match answer {
                    Ok(answer) => one.set_answer(&answer),
                    Err(fault) => one.set_fault(fault.to_wire()),
                }
            }
            let wait = if answered < count { PATIENCE } else { SOON };
            let Ok(posed) = tokio::time::timeout(wait, request.send().promise).await else { break };
            let posed = posed.expect("it is told");
            for one in posed.get().and_then(|posed| posed.get_questions()).expect("questions") {
                let verifier =
                    NodeId::try_from(one.get_verifier().expect("a node")).expect("a node");
                let key = HolderKey::try_from(one.get_key().expect("a key")).expect("a key");
                let life = one.get_life().expect("bytes").try_into().expect("32 bytes");
                let question = one.get_question().expect("bytes");
                said.push((one.get_id(), answer(verifier, (key, life), question)));
                answered += 1;
            }
        }
        assert_eq!(answered, count, "each is given out once");
    }
}

/// The key of a node's network service, and which life of that.
type Bound = (HolderKey, [u8; 32]);

/// Three nodes that vote on one another: two have to be for a node, and one against it is enough.
struct Cluster {
    nodes: Vec<Member>,
    bundle: Bundle,
}

impl Cluster {
    async fn boot() -> Cluster {
        let (root, issuer) = (secret(101), secret(102));
        let name = ClusterName::new("demo").expect("a name");
        let own = Root::new(name.clone(), &root);
        let valid = Validity { from_s: now_s() - 60, until_s: now_s() + 2 * HOUR_S };
        let serial = Serial([7; 16]);
        let bundle = vec![own.certificate(valid, serial).expect("a root's certificate")];
        let bundle = Bundle::new(bundle, 1).expect("a bundle");
        let offline = own.certify(issuer.key(), Home::Offline, valid, serial);
        let offline = Issuer::new(offline.expect("an issuer"), &issuer).expect("an issuer");
        let mut nodes = Vec::new();
        for _ in 0..3 {
            nodes.push(Member::boot().await);
        }
        for node in &nodes {
            let service = VatName::new("network").expect("a name");
            let subject = Subject::Service { node: node.id, service };
            let id = SpiffeId { cluster: name.clone(), subject };
            let chain = offline.issue(&id, node.key, valid, serial).expect("an SVID");
            let mut request = node.operator.join_request();
            request.get().set_bundle(bundle.to_json());
            let mut list = request.get().init_chain(2);
            (0..).zip(&chain).for_each(|(index, one)| list.set(index, one));
            request.send().promise.await.expect("it joins");
            let certified = own.certify(node.issuer, Home::Node(node.id), valid, serial);
            let mut request = node.operator.certify_request();
            request.get().set_certificate(&certified.expect("an issuer's certificate"));
            request.send().promise.await.expect("it signs for others");
        }
        let voter = |node: &Member| (node.id, Voter { key: node.issuer, since: 1 });
        let voters = nodes.iter().map(voter).collect();
        let configuration = Configuration {
            cluster: name,
            number: 1,
            key_exchange: KeyExchange::default(),
            voting: Some(Voting { voters, admit: 2, remove: 1 }),
        };
        let configuration = configuration.sign(&root).expect("a configuration").to_json();
        let cluster = Cluster { nodes, bundle };
        for node in &cluster.nodes {
            for other in cluster.nodes.iter().filter(|other| other.id != node.id) {
                cluster.add(node, other).await;
            }
            let mut request = node.operator.configure_request();
            request.get().set_configuration(&configuration);
            request.send().promise.await.expect("it goes by the configuration");
        }
        cluster
    }

    async fn add(&self, node: &Member, other: &Member) {
        let mut request = node.operator.add_peer_request();
        let mut peer = request.get().init_peer();
        peer.set_name(format!("node/{}", other.id));
        peer.set_address(other.address.to_string());
        request.send().promise.await.expect("it is added");
    }
}

#[test]
fn a_question_comes_to_the_machine_it_is_for_and_the_answer_with_what_it_is_bound_to() {
    test(async {
        let cluster = Cluster::boot().await;
        let [first, second, third] = &cluster.nodes[..] else { panic!("three nodes") };
        let long = vec![9; 1 << 20];
        let lives = RefCell::new(BTreeMap::new());
        let asking = async {
            let (answer, (key, life)) = first.ask(second.id, b"what do you run?").await.unwrap();
            assert_eq!((answer == long, key), (true, second.key));
            assert_eq!(lives.borrow().get(&first.id), Some(&life), "both ends bind it to one life");
            // Another verifier, to whom the machine has nothing to say.
            let answer = third.ask(second.id, b"and how?").await;
            assert_eq!(answer, Err(Fault::unavailable(7, "no TPM answers")));
        };
        let answering = second.answers(2, |verifier, (key, life), question| {
            assert_eq!(key, second.key);
            lives.borrow_mut().insert(verifier, life);
            match question {
                b"what do you run?" if verifier == first.id => Ok(long.clone()),
                b"and how?" if verifier == third.id => Err(Fault::unavailable(7, "no TPM answers")),
                other => panic!("{verifier} asks {other:?}"),
            }
        });
        futures::join!(asking, answering);
        assert_ne!(
            lives.borrow()[&first.id],
            lives.borrow()[&third.id],
            "no verifier has another's"
        );
        // Whoever asks without waiting for answers has its places, and those of others are left.
        until("four questions of one verifier wait", async || {
            let asked = tokio::time::timeout(AGAIN, first.ask(third.id, b"never mind")).await;
            asked.is_ok_and(|refused| refused.unwrap_err().to_string().contains("4 questions"))
        })
        .await;
        let other = tokio::time::timeout(AGAIN * 10, second.ask(third.id, b"are you busy?")).await;
        assert!(other.is_err(), "it waits for its answer: {other:?}");
        let stranger = first.ask(NodeId([9; 32]), b"who are you?").await;
        assert!(matches!(stranger, Err(Fault::NotFound(_))), "{stranger:?}");
        let endless = first.ask(second.id, &vec![0; (16 << 10) + 1]).await;
        assert!(matches!(endless, Err(Fault::Malformed(_))), "{endless:?}");
        // A service that only reads may do none of it.
        let mut denied = Vec::new();
        denied.push(first.memory.ask_request().send().promise.await.map(drop));
        denied.push(first.memory.judge_request().send().promise.await.map(drop));
        denied.push(first.memory.questions_request().send().promise.await.map(drop));
        denied.push(first.memory.attested_request().send().promise.await.map(drop));
        for denied in denied {
            let fault = denied.map_err(|e| fault_of(&e)).unwrap_err();
            assert!(matches!(fault, Fault::Denied { .. }), "{fault}");
        }
    });
}

#[test]
fn who_is_fresh_has_svids_signed_and_who_has_failed_is_put_out_everywhere() {
    test(async {
        let cluster = Cluster::boot().await;
        let [first, second, third] = &cluster.nodes[..] else { panic!("three nodes") };
        let (_, nodes) = first.attested(0).await;
        let mut others = vec![second.id, third.id];
        others.sort();
        assert_eq!(nodes, others, "it verifies those that it signs for");
        // Nobody has judged anybody.
        let refused = second.memory_svid(&cluster.bundle).await.unwrap_err();
        assert!(refused.to_string().contains("stale attestation"), "{refused}");
        assert_eq!(first.standing(second.id).await, "");
        // The network service's own is signed all the same: by it the node is asked.
        let rotated = second.operator.rotate_request().send().promise.await;
        let rotated = rotated.expect("it gets an SVID for another key");
        let key = rotated.get().and_then(|rotated| rotated.get_key()).expect("a key");
        let key = HolderKey::try_from(key).expect("a key");
        let stolen = (second.id, (second.key, [1; 32]));
        let until_s = now_s() + 30;
        // Whoever has its old key has no evidence, and evidence for that key is not the node's.
        first.judge(stolen, (Standing::Fresh, until_s, 3)).await.expect("it is judged");
        assert_eq!(first.standing(second.id).await, "fresh");
        let (revision, _, again) = first.verifies(0).await;
        assert_eq!(again, [], "nobody has come with another key");
        let refused = second.memory_svid(&cluster.bundle).await.unwrap_err();
        // Which of the two was asked last says why.
        assert!(matches!(refused, Fault::Unavailable { .. }), "{refused}");
        assert_eq!(first.verifies(revision).await.2, [second.id], "it is to be asked at once");
        let answering = second.answers(1, |_, (bound_to, _), _| Ok(bound_to.0.to_vec()));
        let (asked, ()) = futures::join!(first.ask(second.id, b"who are you now?"), answering);
        let (answer, (with, life)) = asked.unwrap();
        assert_eq!((answer, with), (key.0.to_vec(), key), "over a connection with the new key");
        // The key lies on the disk: evidence of another boot than the one that asks is not enough.
        let booted_before = (second.id, (key, [1; 32]));
        first.judge(booted_before, (Standing::Fresh, until_s, 3)).await.expect("it is judged");
        let refused = second.memory_svid(&cluster.bundle).await.unwrap_err();
        assert!(matches!(refused, Fault::Unavailable { .. }), "{refused}");
        let second_now = (second.id, (key, life));
        first.judge(second_now, (Standing::Fresh, until_s, 3)).await.expect("it is judged");
        let holds_s = second.memory_svid(&cluster.bundle).await.expect("it is signed");
        assert!(holds_s < until_s && holds_s + 2 > until_s, "{holds_s} and {until_s}");
        let old = first.judge(second_now, (Standing::Fresh, until_s + 60, 2)).await;
        assert_eq!(old, Ok(3), "it is told which epoch it is");
        let holds_s = second.memory_svid(&cluster.bundle).await.expect("it is signed");
        assert!(holds_s < until_s, "an epoch went back");

        first.judge(second_now, (Standing::Failed, 0, 4)).await.expect("it is judged");
        assert!(!first.lets_in(second.id).await);
        assert_eq!(first.standing(second.id).await, "failed");
        assert!(first.sees(second.id, |peer| peer.get_put_out()).await);
        assert_eq!(first.attested(revision).await.1, [third.id]);
        until("the others hear of it", async || !third.lets_in(second.id).await).await;
        assert_eq!(third.sees(second.id, |peer| peer.get_remove()).await, 1);
        let refused = second.memory_svid(&cluster.bundle).await;
        assert!(refused.is_err(), "nobody signs for it any more");
        let asked = first.ask(second.id, b"are you well?").await;
        assert!(matches!(asked, Err(Fault::NotFound(_))), "{asked:?}");

        // Its operator takes it back, and what was said before does not count any more.
        cluster.add(first, second).await;
        assert!(first.lets_in(second.id).await);
        assert_eq!(first.standing(second.id).await, "");
        until("the others hear of that, too", async || third.lets_in(second.id).await).await;
        let until_s = now_s() + 30;
        first.judge(second_now, (Standing::Fresh, until_s, 4)).await.expect("it is judged");
        until("it is signed again", async || second.memory_svid(&cluster.bundle).await.is_ok())
            .await;

        // A node that has failed itself vouches for nobody.
        first
            .judge((first.id, (first.key, [0; 32])), (Standing::Failed, 0, 1))
            .await
            .expect("it judges itself");
        let refused = second.memory_svid(&cluster.bundle).await.unwrap_err();
        assert!(matches!(refused, Fault::Unavailable { .. }), "{refused}");
    });
}
