//! How a service of a node comes to be reached over the network: its socket is the image's to give, its SVID
//! and whom to let in the network service's to say.

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use distos_abi::{Fault, VatName};
use distos_identity::{Bundle, Identity, Peer, Peers, Subject, Trust, Usage, prove};
use distos_rpc::{Vat, fault_of};
use distos_schemas::network_capnp::credentials;
use distos_types::HolderSecret;

use crate::endpoint::{Endpoint, Settings};
use crate::serve::serve;
use crate::tls::{Clock, Credentials};

/// The device by which the image gives a vat its UDP socket.
const SOCKET: &str = "quic";
/// The edge to the network service.
const EDGE: &str = "network";
/// How long to wait after something did not work.
const AGAIN: Duration = Duration::from_secs(1);
/// The longest list of peers.
const MAX_PEERS: u32 = 8192;

/// Tells the time by this machine's clock.
pub fn system_clock() -> Clock {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Arc::new(now)
}

/// How long until half of an SVID's time is over, which is when to ask for the next.
pub fn renew_after(from_s: u64, until_s: u64, now_s: u64) -> Duration {
    let half_s = from_s.saturating_add(until_s.saturating_sub(from_s) / 2);
    Duration::from_secs(half_s.saturating_sub(now_s))
}

/// Lets `vat` be reached over the network, until it ends: if the image gives it a socket (the device
/// `quic`) and an edge `network` to the network service. The keys of its SVIDs are made here, a new one for
/// each, are nowhere else, and end with the vat. What it waits for (a cluster, an issuer) it waits for without end, and what it was told
/// last holds until it is told something newer.
pub async fn attend(vat: Vat) {
    let Some(socket) = vat.take_device(SOCKET) else { return };
    let mut attendant = Attendant { vat, socket: Some(socket.into()), endpoint: None };
    loop {
        // Never an Ok.
        if let Err(fault) = attendant.follow().await {
            tracing::debug!(%fault, "the network service is asked again");
        }
        tokio::time::sleep(AGAIN).await;
    }
}

struct Attendant {
    vat: Vat,
    /// Until there is an endpoint.
    socket: Option<UdpSocket>,
    endpoint: Option<Endpoint>,
}

/// What the network service says.
struct Told {
    revision: u64,
    trust: Trust,
}

impl Attendant {
    /// Does what the network service says, until it cannot be asked.
    async fn follow(&mut self) -> Result<(), Fault> {
        let network: credentials::Client = self.vat.root(EDGE).await?;
        let mut told = trust(&network, 0).await?;
        loop {
            let renew_in = self.renew(&network, &told.trust).await?;
            let renewal = tokio::time::sleep(renew_in);
            tokio::pin!(renewal);
            loop {
                // Asking with a revision says that it is in effect.
                if let Some(endpoint) = &self.endpoint {
                    endpoint.trust(told.trust.clone());
                }
                let next = tokio::select! {
                    biased;
                    next = trust(&network, told.revision) => next?,
                    () = &mut renewal => break,
                };
                told = next;
            }
        }
    }

    /// Asks for an SVID for a new key and shows it; how long until the next.
    async fn renew(
        &mut self,
        network: &credentials::Client,
        trust: &Trust,
    ) -> Result<Duration, Fault> {
        let service = VatName::new(self.vat.name().as_str())?;
        let subject = Subject::Service { node: self.vat.node(), service };
        let secret = HolderSecret::fill(|seed| getrandom::fill(seed)).map_err(Fault::internal)?;
        let secret = Arc::new(secret);
        let mut request = network.sign_request();
        request.get().set_key(&secret.key().0);
        request.get().set_proof(&prove(&subject, &secret));
        let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
        let chain = answer.get().and_then(|answer| {
            answer.get_chain()?.iter().take(2).map(|one| one.map(<[u8]>::to_vec)).collect()
        });
        let chain: Vec<Vec<u8>> = chain.map_err(|e| fault_of(&e))?;
        let now_s = self.vat.now_ms() / 1000;
        let own = Identity::verify(&chain, &trust.bundle, now_s, Usage::Server)?;
        let renew_in = renew_after(own.from_s, own.until_s, now_s);
        if own.key != secret.key() {
            return Err(Fault::Unauthenticated("this SVID is for another key".into()));
        }
        let credentials = Credentials { chain, secret };
        if let Some(endpoint) = &self.endpoint {
            endpoint.renew(credentials);
        } else if let Some(socket) = self.socket.take() {
            let (settings, clock) = (Settings::default(), system_clock());
            let opened = Endpoint::new(socket, credentials, trust.clone(), settings, clock);
            let (endpoint, arrivals) = opened.map_err(Fault::internal)?;
            tracing::info!(id = %own.id, "is reached over the network");
            tokio::task::spawn_local(serve(self.vat.clone(), arrivals));
            self.endpoint = Some(endpoint);
        }
        // Not at once again, whatever its times are.
        Ok(renew_in.max(AGAIN))
    }
}

/// Whom to let in, once that differs from what was current at `seen`.
async fn trust(network: &credentials::Client, seen: u64) -> Result<Told, Fault> {
    let mut request = network.trust_request();
    request.get().set_seen(seen);
    let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
    let read = || -> Result<Told, Fault> {
        let faulty = |e: capnp::Error| fault_of(&e);
        let answer = answer.get().map_err(faulty)?;
        let text = |text: capnp::Result<capnp::text::Reader<'_>>| -> Result<String, Fault> {
            text.and_then(|text| Ok(text.to_str()?.to_owned())).map_err(faulty)
        };
        let bundle = Bundle::parse(&text(answer.get_bundle())?)?;
        let names = answer.get_peers().map_err(faulty)?;
        if names.len() > MAX_PEERS {
            return Err(Fault::malformed("the list of peers is too long"));
        }
        let mut peers = Peers::default();
        for name in names {
            match text(name)?.parse()? {
                Peer::Node(node) => drop(peers.nodes.insert(node)),
                Peer::Tenant(tenant) => drop(peers.tenants.insert(tenant)),
            }
        }
        Ok(Told { revision: answer.get_revision(), trust: Trust { bundle, peers } })
    };
    read()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_svid_is_renewed_when_half_of_its_time_is_over() {
        let after = |now_s| renew_after(1000, 4600, now_s).as_secs();
        assert_eq!((after(1000), after(2000), after(2800), after(9000)), (1800, 800, 0, 0));
        assert_eq!(renew_after(5, 4, 5).as_secs(), 0, "times that make no sense");
    }
}
