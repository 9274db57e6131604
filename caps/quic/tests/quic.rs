//! Who is not who it should be gets no word in, and whoever is goes on being served.
#![allow(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use capnp_rpc::rpc_twoparty_capnp::Side;
use distos_abi::{Fault, NodeId, VatName};
use distos_identity::{
    Bundle, ClusterName, Home, Issuer, KeyExchange, Peers, Root, Serial, SpiffeId, Subject, Trust,
    Validity,
};
use distos_quic::{ALPN, Arrivals, Credentials, Endpoint, Link, Settings};
use distos_rpc::transport::Bounds;
use distos_schemas::capability_capnp::door;
use distos_types::HolderSecret;
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig};
use rustls::NamedGroup;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;

const START: u64 = 1_800_000_000;
const HOUR: u64 = 3600;
const ONE: NodeId = NodeId([1; 32]);
const TWO: NodeId = NodeId([2; 32]);
const SOON: Duration = Duration::from_secs(60);

/// Runs a test on one thread, for a while at most.
fn test<F: Future<Output = ()>>(work: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        tokio::time::timeout(SOON, work).await.expect("it takes too long");
    });
}

/// A cluster, and its time.
struct Cluster {
    name: ClusterName,
    root: HolderSecret,
    issuer: HolderSecret,
    bundle: Bundle,
    now: Arc<AtomicU64>,
}

impl Cluster {
    fn new(name: &str, seed: u8) -> Cluster {
        let name = ClusterName::new(name).unwrap();
        let (root, issuer) =
            (HolderSecret::from_seed([seed; 32]), HolderSecret::from_seed([seed + 1; 32]));
        let own = Root::new(name.clone(), &root).certificate(long(), Serial([1; 16])).unwrap();
        let bundle = Bundle::new(vec![own], 1).unwrap();
        Cluster { name, root, issuer, bundle, now: Arc::new(AtomicU64::new(START)) }
    }

    fn id(&self, subject: Subject) -> SpiffeId {
        SpiffeId { cluster: self.name.clone(), subject }
    }

    fn node(&self, node: NodeId) -> SpiffeId {
        self.id(Subject::Node(node))
    }

    fn svid_at(&self, id: &SpiffeId, from_s: u64, until_s: u64, seed: u8) -> Credentials {
        let certificate = Root::new(self.name.clone(), &self.root)
            .certify(self.issuer.key(), Home::Offline, long(), Serial([2; 16]))
            .unwrap();
        let secret = HolderSecret::from_seed([seed; 32]);
        let validity = Validity { from_s, until_s };
        let chain = Issuer::new(certificate, &self.issuer)
            .unwrap()
            .issue(id, secret.key(), validity, Serial([3; 16]))
            .unwrap();
        Credentials { chain, secret: Arc::new(secret) }
    }

    fn svid(&self, id: &SpiffeId) -> Credentials {
        self.svid_at(id, START - 60, START + HOUR, 50)
    }

    fn trust(&self, nodes: &[NodeId]) -> Trust {
        let peers = Peers { nodes: nodes.iter().copied().collect(), ..Peers::default() };
        let exchange = KeyExchange::default();
        Trust { bundle: self.bundle.clone(), peers, own: None, exchange }
    }

    fn endpoint(&self, own: Credentials, trust: Trust) -> (Endpoint, Arrivals) {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let now = self.now.clone();
        let clock = Arc::new(move || now.load(Ordering::Relaxed));
        Endpoint::new(socket, own, trust, Settings::default(), clock).unwrap()
    }

    /// Node one, which serves a door to whoever is let in, and node two.
    fn pair(&self) -> Pair {
        let both = [ONE, TWO];
        let (one, arrivals) = self.endpoint(self.svid(&self.node(ONE)), self.trust(&both));
        let (two, _) = self.endpoint(self.svid(&self.node(TWO)), self.trust(&both));
        let seen = Seen::default();
        tokio::task::spawn_local(serve(arrivals, seen.clone()));
        Pair { one, two, seen }
    }
}

fn long() -> Validity {
    Validity { from_s: START - 100 * HOUR, until_s: START + 1000 * HOUR }
}

struct Pair {
    one: Endpoint,
    two: Endpoint,
    seen: Seen,
}

struct Greeter {
    whom: String,
    served: Rc<Cell<usize>>,
}

impl door::Server for Greeter {
    async fn challenge(
        self: Rc<Self>,
        _: door::ChallengeParams,
        mut results: door::ChallengeResults,
    ) -> Result<(), capnp::Error> {
        self.served.set(self.served.get() + 1);
        results.get().set_vat(&self.whom);
        Ok(())
    }
}

/// What the one who serves has seen.
#[derive(Clone, Default)]
struct Seen {
    refused: Rc<Cell<usize>>,
    served: Rc<Cell<usize>>,
}

async fn serve(mut arrivals: Arrivals, seen: Seen) {
    while let Some(arrival) = arrivals.recv().await {
        let Ok(link) = arrival else {
            seen.refused.set(seen.refused.get() + 1);
            continue;
        };
        let greeter = Greeter { whom: link.peer().id.to_string(), served: seen.served.clone() };
        let greeter: door::Client = capnp_rpc::new_client(greeter);
        tokio::task::spawn_local(link.start(Some(greeter.client), Bounds::HOLDER));
    }
}

/// The door at the other end; the connection lives as long as the task.
fn door(link: Link) -> (door::Client, tokio::task::JoinHandle<Result<(), capnp::Error>>) {
    let mut system = link.start(None, Bounds::EDGE);
    let door = system.bootstrap(Side::Server);
    (door, tokio::task::spawn_local(system))
}

async fn greeted(door: &door::Client) -> Result<String, capnp::Error> {
    let answer = door.challenge_request().send().promise.await?;
    Ok(answer.get()?.get_vat()?.to_string()?)
}

/// Until `holds`; the test's own time limit ends it otherwise.
async fn until(holds: impl Fn() -> bool) {
    while !holds() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn two_nodes_know_one_another_and_agree_on_a_key_that_a_quantum_computer_does_not_find() {
    test(async {
        let cluster = Cluster::new("demo", 1);
        let Pair { one, two, .. } = cluster.pair();
        let link = two.connect(one.address().unwrap(), &cluster.node(ONE)).await.unwrap();
        assert_eq!(link.peer().id, cluster.node(ONE));
        let data = link.connection().handshake_data().unwrap();
        let data = data.downcast::<HandshakeData>().unwrap();
        assert_eq!(data.negotiated_key_exchange_group, NamedGroup::X25519MLKEM768);
        assert_eq!(data.protocol.as_deref(), Some(ALPN));
        let (door, task) = door(link);
        for _ in 0..10 {
            assert_eq!(greeted(&door).await.unwrap(), cluster.node(TWO).to_string());
        }
        assert_eq!((one.connections(), two.connections()), ((1, 0), (1, 0)));
        task.abort();
        until(|| one.connections() == (0, 0) && two.connections() == (0, 0)).await;
    });
}

#[test]
fn a_service_and_a_node_are_two_and_only_the_one_that_was_asked_for_will_do() {
    test(async {
        let cluster = Cluster::new("demo", 1);
        let Pair { one, two, seen } = cluster.pair();
        let memory = VatName::new("memory").unwrap();
        for other in
            [cluster.node(TWO), cluster.id(Subject::Service { node: ONE, service: memory })]
        {
            let fault = two.connect(one.address().unwrap(), &other).await.err().unwrap();
            assert!(matches!(fault, Fault::Unauthenticated(_)), "{fault}");
            assert!(fault.to_string().contains("somebody else was asked for"), "{fault}");
        }
        until(|| seen.refused.get() == 2).await;
        assert_eq!(one.connections(), (0, 0));
    });
}

#[test]
fn where_nobody_listens_the_caller_is_told_to_try_again() {
    test(async {
        let cluster = Cluster::new("demo", 1);
        let Pair { two, .. } = cluster.pair();
        // Bound, and nobody reads from it.
        let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = silent.local_addr().unwrap();
        let fault = two.connect(address, &cluster.node(ONE)).await.err().unwrap();
        assert!(matches!(fault, Fault::Unavailable { .. }), "{fault}");
    });
}

/// Somebody with a TLS library of its own.
struct Outsider {
    chain: Vec<Vec<u8>>,
    secret: [u8; 32],
    alpn: &'static [u8],
    groups: Vec<&'static dyn rustls::crypto::SupportedKxGroup>,
}

impl Outsider {
    fn with(chain: Vec<Vec<u8>>, seed: u8) -> Outsider {
        let groups = aws_lc_rs::default_provider().kx_groups;
        Outsider { chain, secret: [seed; 32], alpn: ALPN, groups }
    }

    fn config(&self) -> quinn::ClientConfig {
        let provider =
            CryptoProvider { kx_groups: self.groups.clone(), ..aws_lc_rs::default_provider() };
        let builder = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody));
        let mut config = if self.chain.is_empty() {
            builder.with_no_client_auth()
        } else {
            let chain = self.chain.iter().cloned().map(CertificateDer::from).collect();
            let keys = aws_lc_rs::default_provider().key_provider;
            // RFC 8410, section 7.
            let head = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
            let key = PrivatePkcs8KeyDer::from([&head[..], &self.secret].concat());
            let key = keys.load_private_key(PrivateKeyDer::from(key)).unwrap();
            builder.with_client_cert_resolver(Arc::new(Shows(CertifiedKey::new(chain, key).into())))
        };
        config.alpn_protocols = vec![self.alpn.to_vec()];
        quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()))
    }

    /// Connects, and says at once what it has to say, before the other side has looked at its
    /// certificate. The error with which the other side ends it.
    async fn intrude(&self, address: SocketAddr) -> String {
        let endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let connecting = endpoint.connect_with(self.config(), address, "node").unwrap();
        let connection = match connecting.await {
            Ok(connection) => connection,
            Err(error) => return error.to_string(),
        };
        if let Ok((mut send, _receive)) = connection.open_bi().await {
            // As much as a message: a segment of no words.
            let _ = send.write_all(&[0; 64]).await;
            return connection.closed().await.to_string();
        }
        connection.closed().await.to_string()
    }
}

/// Shows a certificate, whether or not its key fits.
#[derive(Debug)]
struct Shows(Arc<CertifiedKey>);

impl ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Takes whoever it meets for whomever it wants.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        vec![rustls::SignatureScheme::ED25519]
    }
}

/// Refused for this reason, before there is a connection to speak of.
async fn is_refused(arrivals: &mut Arrivals, outsider: &Outsider, address: SocketAddr, why: &str) {
    let (_, arrival) = tokio::join!(outsider.intrude(address), arrivals.recv());
    match arrival.unwrap() {
        Err(refused) => assert!(refused.why.contains(why), "not '{why}': {}", refused.why),
        Ok(link) => panic!("{} was let in, against '{why}'", link.peer().id),
    }
}

/// N2.
#[test]
fn nobody_who_is_not_trusted_gets_a_byte_read() {
    test(async {
        let cluster = Cluster::new("demo", 1);
        let own = cluster.svid(&cluster.node(ONE));
        let (one, mut arrivals) = cluster.endpoint(own, cluster.trust(&[ONE, TWO]));
        let address = one.address().unwrap();
        let good = cluster.svid(&cluster.node(TWO)).chain;
        let late = cluster.svid_at(&cluster.node(TWO), START - 2 * HOUR, START - 1, 50).chain;
        let early = cluster.svid_at(&cluster.node(TWO), START + 1, START + HOUR, 50).chain;
        let unlisted = cluster.svid(&cluster.node(NodeId([3; 32]))).chain;
        let theirs = Cluster::new("demo", 9);
        let others = Cluster::new("other", 9);
        let stranger = theirs.svid(&theirs.node(TWO)).chain;
        let other = others.svid(&others.node(TWO)).chain;
        let root: Vec<Vec<u8>> = cluster.bundle.roots().map(<[u8]>::to_vec).collect();
        let with = |chain: &[Vec<u8>]| Outsider::with(chain.to_vec(), 50);
        for (outsider, why) in [
            (with(&[]), "no certificates"),
            (with(&late), "it held until"),
            (with(&early), "it holds from"),
            (with(&unlisted), "the list of trusted peers does not name it"),
            // A cluster of the same name, and another one.
            (with(&stranger), "no root of the cluster"),
            (with(&other), "it is of the cluster other"),
            // Without its issuer, the issuer alone, with another's issuer.
            (with(&good[..1]), "and not 1"),
            (with(&good[1..]), "and not 1"),
            (with(&[good[0].clone(), stranger[1].clone()]), "no root of the cluster"),
            (with(&root), "and not 1"),
            (with(&[good.clone(), good.clone()].concat()), "and not 4"),
            // Without its key.
            (Outsider::with(good.clone(), 51), "BadSignature"),
            (Outsider { alpn: b"distos/0", ..with(&good) }, "known protocol"),
        ] {
            is_refused(&mut arrivals, &outsider, address, why).await;
            assert_eq!(one.connections(), (0, 0), "{why}: it leaves something behind");
        }
        // What follows differs in nothing from those but in being let in.
        let outsider = with(&good);
        let (told, arrival) = tokio::join!(
            tokio::time::timeout(Duration::from_secs(2), outsider.intrude(address)),
            arrivals.recv()
        );
        drop(told);
        assert_eq!(arrival.unwrap().unwrap().peer().id, cluster.node(TWO));
    });
}

#[test]
fn a_configuration_can_require_the_hybrid_key_exchange_also_of_those_who_are_connected() {
    test(async {
        let cluster = Cluster::new("demo", 1);
        let good = cluster.svid(&cluster.node(TWO)).chain;
        let classic = || {
            let groups: Vec<_> = vec![aws_lc_rs::kx_group::X25519];
            Outsider { groups, ..Outsider::with(good.clone(), 50) }
        };
        let trust = cluster.trust(&[TWO]);
        let only = Trust { exchange: KeyExchange::HybridOnly, ..trust.clone() };
        let (one, mut arrivals) = cluster.endpoint(cluster.svid(&cluster.node(ONE)), trust);
        let address = one.address().unwrap();
        let intrude = |classic: Outsider| {
            tokio::task::spawn_local(async move { classic.intrude(address).await });
        };
        intrude(classic());
        let link = arrivals.recv().await.unwrap().unwrap();
        let own = cluster.svid(&cluster.node(TWO));
        let (two, _refusals) = cluster.endpoint(own, cluster.trust(&[ONE]));
        let link_of_two = two.connect(address, &cluster.node(ONE)).await.unwrap();
        let hybrid = link_of_two.connection().clone();
        // Whoever arrives has said something.
        let (_door, _task) = door(link_of_two);
        let _met = arrivals.recv().await.unwrap().unwrap();
        // From now on it is required: whoever has connected before is cut off, and connects again if it can.
        one.trust(only.clone());
        assert!(link.connection().close_reason().is_some());
        hybrid.closed().await;
        intrude(classic());
        let refused = arrivals.recv().await.unwrap().err().unwrap();
        assert!(!refused.why.is_empty());
        let again = two.connect(address, &cluster.node(ONE)).await.unwrap();
        let (_door, _task) = door(again);
        let met = arrivals.recv().await.unwrap().unwrap();
        // Nothing more is required of it.
        one.trust(only);
        assert!(met.connection().close_reason().is_none());
    });
}

/// A3: who is put out and let in again between two words of the network service's would go on as if nothing had been.
#[test]
fn a_connection_ends_with_the_attestation_epoch_in_which_it_was_opened() {
    test(async {
        let cluster = Cluster::new("demo", 1);
        let trust = || cluster.trust(&[ONE, TWO]);
        let (one, mut arrivals) = cluster.endpoint(cluster.svid(&cluster.node(ONE)), trust());
        let (two, _) = cluster.endpoint(cluster.svid(&cluster.node(TWO)), trust());
        let link = two.connect(one.address().unwrap(), &cluster.node(ONE)).await.unwrap();
        let (_door, _task) = door(link);
        let met = arrivals.recv().await.unwrap().unwrap();
        let at = |epoch| {
            let mut trust = trust();
            trust.peers.epochs.insert(TWO, epoch);
            trust
        };
        one.trust(trust());
        assert!(met.connection().close_reason().is_none());
        one.trust(at(2));
        assert!(met.connection().close_reason().is_some(), "it is let in, and of another epoch");
        let again = two.connect(one.address().unwrap(), &cluster.node(ONE)).await.unwrap();
        let (_door, _task) = door(again);
        let met = arrivals.recv().await.unwrap().unwrap();
        one.trust(at(2));
        assert!(met.connection().close_reason().is_none());
        one.trust(at(3));
        assert!(met.connection().close_reason().is_some());
    });
}

#[test]
fn a_connection_ends_with_its_peers_svid_and_goes_on_with_a_newer_one() {
    test(async {
        let cluster = Cluster::new("demo", 1);
        let Pair { one, two, .. } = cluster.pair();
        let link = two.connect(one.address().unwrap(), &cluster.node(ONE)).await.unwrap();
        let (door, _task) = door(link);
        assert!(greeted(&door).await.is_ok());
        // Both show newer ones, with other keys; calls go on meanwhile and afterwards.
        let newer =
            |node, seed| cluster.svid_at(&cluster.node(node), START, START + 3 * HOUR, seed);
        one.renew(newer(ONE, 61));
        two.renew(newer(TWO, 62));
        for _ in 0..20 {
            assert!(greeted(&door).await.is_ok());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        cluster.now.store(START + 2 * HOUR, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(2500)).await;
        assert!(greeted(&door).await.is_ok(), "the older ones have ended, the newer ones hold");
        cluster.now.store(START + 4 * HOUR, Ordering::Relaxed);
        until(|| one.connections().0 == 0 && two.connections().0 == 0).await;
        assert!(greeted(&door).await.is_err(), "nobody is anybody any more");
        // And nobody gets in with it.
        let fault = two.connect(one.address().unwrap(), &cluster.node(ONE)).await.err().unwrap();
        assert!(matches!(fault, Fault::Unauthenticated(_)), "{fault}");
    });
}

/// Whoever serves does not rely on its client's clock.
#[test]
fn a_server_ends_the_connection_of_whoever_is_nobody_any_more() {
    test(async {
        let cluster = Cluster::new("demo", 1);
        let both = cluster.trust(&[ONE, TWO]);
        let own = cluster.svid_at(&cluster.node(ONE), START, START + 20 * HOUR, 50);
        let (one, arrivals) = cluster.endpoint(own, both.clone());
        tokio::task::spawn_local(serve(arrivals, Seen::default()));
        // A client whose clock stands still.
        let slow = Cluster { now: Arc::new(AtomicU64::new(START)), ..Cluster::new("demo", 1) };
        let (two, _) = slow.endpoint(slow.svid(&slow.node(TWO)), both);
        let link = two.connect(one.address().unwrap(), &cluster.node(ONE)).await.unwrap();
        let (door, _task) = door(link);
        assert!(greeted(&door).await.is_ok());
        cluster.now.store(START + 2 * HOUR, Ordering::Relaxed);
        until(|| one.connections().0 == 0).await;
        assert!(greeted(&door).await.is_err());
    });
}

#[test]
fn a_newer_svid_that_is_not_the_peers_own_ends_the_connection() {
    test(async {
        let cluster = Cluster::new("demo", 1);
        let (ours, long) = (cluster.node(TWO), START + 3 * HOUR);
        let unsigned = Credentials {
            secret: Arc::new(HolderSecret::from_seed([99; 32])),
            ..cluster.svid_at(&ours, START, long, 70)
        };
        let stranger = Cluster::new("demo", 9).svid(&ours);
        for (newer, why) in [
            (cluster.svid(&cluster.node(ONE)), "another peer that is trusted as well"),
            (unsigned, "a certificate without its key"),
            (cluster.svid_at(&ours, START - 2 * HOUR, START - 1, 70), "one whose time is over"),
            (stranger, "another cluster's"),
        ] {
            let Pair { one, two, .. } = cluster.pair();
            let link = two.connect(one.address().unwrap(), &cluster.node(ONE)).await.unwrap();
            let (door, _task) = door(link);
            assert!(greeted(&door).await.is_ok());
            two.renew(newer);
            until(|| one.connections().0 == 0).await;
            assert!(greeted(&door).await.is_err(), "{why}");
        }
    });
}

#[test]
fn of_whoever_is_taken_off_the_list_nothing_more_is_read() {
    test(async {
        let cluster = Cluster::new("demo", 1);
        let Pair { one, two, seen } = cluster.pair();
        let link = two.connect(one.address().unwrap(), &cluster.node(ONE)).await.unwrap();
        let (door, _task) = door(link);
        assert!(greeted(&door).await.is_ok());
        let calls: Vec<_> = (0..2000).map(|_| door.challenge_request().send().promise).collect();
        while seen.served.get() == 1 {
            tokio::task::yield_now().await;
        }
        one.trust(cluster.trust(&[ONE]));
        let served = seen.served.get();
        assert!(served < 2000, "all were served before");
        tokio::time::sleep(Duration::from_millis(300)).await;
        // What had been read was a buffer full; nothing was added to it.
        assert_eq!(one.connections().0, 0);
        assert!(seen.served.get() < 2000, "{served} before, {} after", seen.served.get());
        drop(calls);
    });
}

/// Between the handshake and the first word the list may have changed.
#[test]
fn whoever_is_taken_off_the_list_before_its_first_word_does_not_say_it() {
    test(async {
        let cluster = Cluster::new("demo", 1);
        let own = cluster.svid(&cluster.node(ONE));
        let (one, mut arrivals) = cluster.endpoint(own, cluster.trust(&[ONE, TWO]));
        let good = Outsider::with(cluster.svid(&cluster.node(TWO)).chain, 50);
        let endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let connecting =
            endpoint.connect_with(good.config(), one.address().unwrap(), "node").unwrap();
        let connection = connecting.await.unwrap();
        until(|| one.connections().0 == 1).await;
        one.trust(cluster.trust(&[ONE]));
        if let Ok((mut send, _receive)) = connection.open_bi().await {
            let _ = send.write_all(&[0; 64]).await;
        }
        connection.closed().await;
        assert!(arrivals.recv().await.unwrap().is_err());
        assert_eq!(one.connections(), (0, 0));
    });
}

#[test]
fn whoever_is_taken_off_the_list_is_cut_off_at_once_and_others_are_not() {
    test(async {
        let cluster = Cluster::new("demo", 1);
        let three = NodeId([3; 32]);
        let all = [ONE, TWO, three];
        let (one, arrivals) =
            cluster.endpoint(cluster.svid(&cluster.node(ONE)), cluster.trust(&all));
        tokio::task::spawn_local(serve(arrivals, Seen::default()));
        let mut doors = Vec::new();
        for node in [TWO, three] {
            let (own, _) = cluster.endpoint(cluster.svid(&cluster.node(node)), cluster.trust(&all));
            let link = own.connect(one.address().unwrap(), &cluster.node(ONE)).await.unwrap();
            let (door, task) = door(link);
            assert!(greeted(&door).await.is_ok());
            doors.push((door, task, own));
        }
        one.trust(cluster.trust(&[ONE, three]));
        until(|| one.connections().0 == 1).await;
        assert!(greeted(&doors[0].0).await.is_err());
        assert!(greeted(&doors[1].0).await.is_ok());
        let again = doors[0].2.connect(one.address().unwrap(), &cluster.node(ONE)).await;
        let told = match again {
            Err(fault) => fault,
            // The server decides after its client does: the first call tells.
            Ok(link) => {
                let (door, _task) = door(link);
                assert!(greeted(&door).await.is_err());
                return;
            }
        };
        assert!(matches!(told, Fault::Unauthenticated(_)), "{told}");
    });
}

#[test]
fn a_peer_has_so_many_connections_and_no_more_and_others_have_theirs() {
    test(async {
        let cluster = Cluster::new("demo", 1);
        let three = NodeId([3; 32]);
        let all = [ONE, TWO, three];
        let (one, arrivals) =
            cluster.endpoint(cluster.svid(&cluster.node(ONE)), cluster.trust(&all));
        let seen = Seen::default();
        tokio::task::spawn_local(serve(arrivals, seen.clone()));
        let address = one.address().unwrap();
        let (mut held, mut greedy) = (Vec::new(), Vec::new());
        // Each endpoint keeps to the bound itself, so a greedy peer has several.
        for _ in 0..3 {
            let (two, _) = cluster.endpoint(cluster.svid(&cluster.node(TWO)), cluster.trust(&all));
            for _ in 0..8 {
                let link = two.connect(address, &cluster.node(ONE)).await.unwrap();
                let (door, task) = door(link);
                let greeted = greeted(&door).await.is_ok();
                held.push((door, task, greeted));
            }
            greedy.push(two);
        }
        assert_eq!(held.iter().filter(|(_, _, greeted)| *greeted).count(), 16);
        assert_eq!((one.connections().0, seen.refused.get()), (16, 8));
        let (other, _) = cluster.endpoint(cluster.svid(&cluster.node(three)), cluster.trust(&all));
        let link = other.connect(address, &cluster.node(ONE)).await.unwrap();
        assert!(greeted(&door(link).0).await.is_ok());
    });
}

/// Noise on the port, and handshakes that nobody goes on with, cost others nothing that they notice.
#[test]
fn noise_and_half_open_handshakes_keep_nobody_out() {
    test(async {
        let cluster = Cluster::new("demo", 1);
        let Pair { one, two, .. } = cluster.pair();
        let address = one.address().unwrap();
        let noise = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        for round in 0..2000_u32 {
            let bytes: Vec<u8> = (0..1200).map(|at| (round.wrapping_mul(31) + at) as u8).collect();
            // A full queue loses some, as a network does.
            let _ = noise.send_to(&bytes, address);
        }
        // First words of handshakes, passed on from an address at which nobody answers.
        let sink = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let good = Outsider::with(cluster.svid(&cluster.node(TWO)).chain, 50);
        let mut most = 0;
        for _ in 0..200 {
            let endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
            let begun =
                endpoint.connect_with(good.config(), sink.local_addr().unwrap(), "node").unwrap();
            let mut packet = [0; 2048];
            // The hybrid key takes two.
            let mut passed = 0;
            while passed < 2 {
                let (length, from) = sink.recv_from(&mut packet).await.unwrap();
                if from != address {
                    sink.send_to(&packet[..length], address).await.unwrap();
                    passed += 1;
                }
            }
            tokio::task::yield_now().await;
            most = most.max(one.connections().1);
            drop(begun);
        }
        assert!((1..=16).contains(&most), "{most}: from 16 on one shows that it gets what is sent");
        let link = two.connect(address, &cluster.node(ONE)).await.unwrap();
        assert!(greeted(&door(link).0).await.is_ok());
    });
}

/// M2: whoever sends pages is believed none of them, whatever it says of it.
#[test]
fn a_page_that_is_not_what_its_hash_says_or_is_no_page_is_handed_to_nobody() {
    let header = |len: u32, hash: [u8; 32]| [&len.to_be_bytes()[..], &hash].concat();
    let page = |bytes: &[u8]| {
        [header(bytes.len() as u32, *blake3::hash(bytes).as_bytes()), bytes.to_vec()].concat()
    };
    let good = page(b"good");
    let end = header(0, [0; 32]);
    let mut changed = page(b"changed");
    *changed.last_mut().unwrap() ^= 1;
    let corrupt = |fault: &Fault| matches!(fault, Fault::Corrupt(_));
    let malformed = |fault: &Fault| matches!(fault, Fault::Malformed(_));
    let cut = |fault: &Fault| matches!(fault, Fault::Unavailable { .. });
    let (too_long, huge) = (header(65_537, [0; 32]), header(u32::MAX, [0; 32]));
    let (early, nothing) = (page(b"early")[..38].to_vec(), Vec::new());
    // What follows a good page, and with what that ends.
    type Ends<'a> = Option<&'a dyn Fn(&Fault) -> bool>;
    let cases: [(&[u8], Ends<'_>); 8] = [
        (&end, None),
        (&changed, Some(&corrupt)),
        (&too_long, Some(&malformed)),
        (&huge, Some(&malformed)),
        (&early, Some(&cut)),
        (&early[..20], Some(&cut)),
        (&nothing, Some(&cut)),
        (&[7; 36], Some(&malformed)),
    ];
    test(async {
        let cluster = Cluster::new("demo", 1);
        let both = [ONE, TWO];
        let (one, mut arrivals) =
            cluster.endpoint(cluster.svid(&cluster.node(ONE)), cluster.trust(&both));
        let (two, _) = cluster.endpoint(cluster.svid(&cluster.node(TWO)), cluster.trust(&both));
        let link = two.connect(one.address().unwrap(), &cluster.node(ONE)).await.unwrap();
        let streams = distos_quic::Streams::of(link.connection().clone());
        let (_reader, mut writer) = link.into_halves();
        tokio::io::AsyncWriteExt::write_all(&mut writer, b"hello").await.unwrap();
        let sender = arrivals.recv().await.unwrap().unwrap();
        for (rest, ends) in cases {
            let pages = streams.bulk().await.unwrap()(vec![7; 16]);
            // Nothing is asked for before somebody reads.
            let came = tokio::task::spawn_local(futures::StreamExt::collect::<Vec<_>>(pages));
            let (mut send, mut receive) = sender.connection().accept_bi().await.unwrap();
            assert_eq!(receive.read_to_end(100).await.unwrap(), [7; 16]);
            send.write_all(&good).await.unwrap();
            send.write_all(rest).await.unwrap();
            send.finish().unwrap();
            let came: Vec<Result<Vec<u8>, Fault>> = came.await.unwrap();
            assert_eq!(came[0], Ok(b"good".to_vec()));
            match ends {
                None => assert_eq!(came.len(), 1),
                Some(is) => {
                    assert_eq!(came.len(), 2, "{rest:?}");
                    assert!(came[1].as_ref().is_err_and(is), "{:?} after {rest:?}", came[1]);
                }
            }
        }
    });
}
