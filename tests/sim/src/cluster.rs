//! A cluster for tests: its root and one issuer that runs nowhere, whose keys anybody can guess.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use distos_identity::{
    Bundle, ClusterName, Home, Issuer, KeyExchange, Peers, Root, Serial, SpiffeId, Subject, Trust,
    Validity,
};
use distos_quic::{Arrivals, Credentials, Endpoint, Settings};
use distos_types::HolderSecret;

const START_S: u64 = 1_800_000_000;
const HOUR_S: u64 = 3600;
const VALID: Validity = Validity { from_s: START_S - HOUR_S, until_s: START_S + HOUR_S };
const SERIAL: Serial = Serial([7; 16]);

/// The cluster, with a clock of its own.
pub struct Cluster {
    name: ClusterName,
    issuer: HolderSecret,
    certificate: Vec<u8>,
    bundle: Bundle,
    now_s: Arc<AtomicU64>,
}

impl Cluster {
    /// The cluster of this name.
    ///
    /// # Panics
    /// It is no name.
    pub fn new(name: &str) -> Cluster {
        let name = ClusterName::new(name).expect("a cluster's name");
        let (root, issuer) =
            (HolderSecret::from_seed([101; 32]), HolderSecret::from_seed([102; 32]));
        let root = Root::new(name.clone(), &root);
        let own = root.certificate(VALID, SERIAL).expect("a root's certificate");
        let certificate = root
            .certify(issuer.key(), Home::Offline, VALID, SERIAL)
            .expect("an issuer's certificate");
        let bundle = Bundle::new(vec![own], 1).expect("a bundle");
        Cluster { name, issuer, certificate, bundle, now_s: Arc::new(START_S.into()) }
    }

    /// Somebody in it.
    pub fn id(&self, subject: Subject) -> SpiffeId {
        SpiffeId { cluster: self.name.clone(), subject }
    }

    /// An SVID for somebody, good for an hour.
    ///
    /// # Panics
    /// The issuer refuses.
    pub fn svid(&self, subject: Subject, seed: u8) -> Credentials {
        let secret = HolderSecret::from_seed([seed; 32]);
        let issuer = Issuer::new(self.certificate.clone(), &self.issuer).expect("an issuer");
        let chain = issuer
            .issue(&self.id(subject), secret.key(), VALID, SERIAL)
            .expect("an SVID that the issuer may sign");
        Credentials { chain, secret: Arc::new(secret) }
    }

    /// What lets these in.
    pub fn trust(&self, peers: Peers) -> Trust {
        let exchange = KeyExchange::default();
        Trust { bundle: self.bundle.clone(), peers, own: None, exchange }
    }

    /// An endpoint of somebody's on this machine's loopback, on the calling thread's `LocalSet`.
    ///
    /// # Panics
    /// This machine has no UDP.
    pub fn endpoint(&self, own: Credentials, peers: Peers) -> (Endpoint, Arrivals) {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a UDP socket");
        let now_s = self.now_s.clone();
        let clock = Arc::new(move || now_s.load(Ordering::Relaxed));
        let trust = self.trust(peers);
        Endpoint::new(socket, own, trust, Settings::default(), clock).expect("an endpoint")
    }

    /// Lets time pass.
    pub fn pass(&self, seconds: u64) {
        self.now_s.fetch_add(seconds, Ordering::Relaxed);
    }
}
