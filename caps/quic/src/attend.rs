//! How a service of a node comes to be reached over the network: its socket is the image's to give, its SVID
//! and whom to let in the network service's to say.

use std::cell::Cell;
use std::convert::Infallible;
use std::net::UdpSocket;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use distos_abi::{Fault, NodeId, VatName};
use distos_identity::{Bundle, Identity, KeyExchange, Peer, Peers, Subject, Trust, Usage, prove};
use distos_rpc::{Obeyed, Vat, fault_of};
use distos_schemas::network_capnp::credentials;
use distos_types::{HolderSecret, Revocation};

use crate::endpoint::{Endpoint, Settings};
use crate::reach::Way;
use crate::serve::serve;
use crate::tls::{Clock, Credentials};

/// The device by which the image gives a vat its UDP socket.
const SOCKET: &str = "quic";
/// The edge to the network service.
const EDGE: &str = "network";
/// How long to wait after something did not work.
const AGAIN: Duration = Duration::from_secs(1);
/// How often it is looked whether the SVID has run out.
const LOOK: Duration = Duration::from_secs(1);
/// The longest list of peers.
const MAX_PEERS: u32 = 8192;
/// The longest list of nodes' epochs: of those that are let in, and of others.
const MAX_EPOCHS: u32 = 16_384;
/// Revocations that are kept for one node.
const MAX_REVOCATIONS: u32 = 256;

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

/// Lets `vat` be reached over the network and reach others (`Vat::reach`), until it ends: if the image gives
/// it a socket (the device `quic`) and an edge `network` to the network service. Ends what others have signed that ends
/// here, as that tells. One at which no holder may
/// connect on its own node only reaches others. The keys of its SVIDs are made here, a new
/// one for each, are nowhere else, and end with the vat. What it waits for (a cluster, an issuer) it
/// waits for without end; what it was told last holds until it is told something newer; and once its
/// SVID has run out, it lets nobody in.
pub async fn attend(vat: Vat) {
    let Some(socket) = vat.take_device(SOCKET) else { return };
    tokio::task::spawn_local(obey(vat.clone()));
    let mut attendant = Attendant {
        vat,
        socket: socket.into(),
        endpoint: None,
        trust: None,
        from_s: 0,
        until_s: 0,
        fresh_s: 0,
        lapsed: Cell::new(false),
    };
    loop {
        // Never an Ok.
        if let Err(fault) = attendant.follow().await {
            tracing::debug!(%fault, "the network service is asked again");
        }
        attendant.lapse();
        tokio::time::sleep(AGAIN).await;
    }
}

struct Attendant {
    vat: Vat,
    socket: UdpSocket,
    /// Once there is an SVID to show.
    endpoint: Option<Rc<Endpoint>>,
    /// What was told last.
    trust: Option<Trust>,
    /// From when and until when the SVID holds that is shown.
    from_s: u64,
    until_s: u64,
    /// For the sake of which moment it was asked for anew.
    fresh_s: u64,
    /// Whether nobody is let in because that is over.
    lapsed: Cell<bool>,
}

/// What the network service says.
struct Told {
    revision: u64,
    trust: Trust,
    /// From when this service's SVID is to be.
    fresh_s: u64,
}

/// An SVID that was signed for a key.
type Signed = (Vec<Vec<u8>>, Arc<HolderSecret>);

impl Attendant {
    fn now_s(&self) -> u64 {
        self.vat.now_ms() / 1000
    }

    /// Where it lets others in; 0 if it does not.
    fn port(&self) -> Result<u16, Fault> {
        if !self.vat.listens() {
            return Ok(0);
        }
        Ok(self.socket.local_addr().map_err(Fault::internal)?.port())
    }

    /// Puts into effect what was told last. Whoever is nobody any more lets nobody in. What a node holds here of an earlier
    /// attestation epoch ends first, with one store for all of it (A3); then its connections are closed. What it uses elsewhere
    /// by a loan runs to the end of the loan's term.
    fn apply(&self) {
        let epochs = self.trust.iter().flat_map(|trust| &trust.peers.epochs);
        for (node, number) in epochs {
            self.vat.raise_epoch(&Peer::Node(*node).to_string(), *number);
        }
        let (Some(endpoint), Some(trust)) = (&self.endpoint, &self.trust) else { return };
        let mut trust = trust.clone();
        self.lapsed.set(self.until_s < self.now_s());
        if self.lapsed.get() {
            trust.peers = Peers::default();
        }
        endpoint.trust(trust);
    }

    /// Lets nobody in once the SVID has run out.
    fn lapse(&self) {
        if self.until_s < self.now_s() && !self.lapsed.get() {
            self.apply();
        }
    }

    /// Whether others may not take the SVID that is shown, and no other one was asked for yet: once for each time that
    /// this is told, because clocks differ.
    fn is_stale(&mut self, fresh_s: u64) -> bool {
        let is_new = self.endpoint.is_some() && self.fresh_s < fresh_s;
        if is_new {
            self.fresh_s = fresh_s;
        }
        is_new && self.from_s < fresh_s
    }

    /// Does what the network service says, until it cannot be asked. What it says is put into effect at once,
    /// whatever becomes of the SVID.
    async fn follow(&mut self) -> Result<(), Fault> {
        let network: credentials::Client = self.vat.root(EDGE).await?;
        let (node, port) = (self.vat.node(), self.port()?);
        let mut told = trust(&network, 0, port, node).await?;
        let (asked, vat) = (network.clone(), self.vat.clone());
        let ask = |after: Duration| {
            let (network, vat) = (asked.clone(), vat.clone());
            Box::pin(async move {
                tokio::time::sleep(after).await;
                ask(&network, &vat).await
            })
        };
        let mut asking = ask(Duration::ZERO);
        loop {
            self.trust = Some(told.trust.clone());
            self.apply();
            if self.is_stale(told.fresh_s) {
                asking = ask(Duration::ZERO);
            }
            // Asking with a revision says that it is in effect.
            let mut next = Box::pin(trust(&network, told.revision, port, node));
            told = loop {
                tokio::select! {
                    biased;
                    next = &mut next => break next?,
                    signed = &mut asking => {
                        let shown = signed.and_then(|signed| self.show(signed, &told.trust));
                        asking = ask(shown.unwrap_or_else(|fault| {
                            tracing::debug!(%fault, "no SVID yet");
                            AGAIN
                        }));
                        self.apply();
                    }
                    // The SVID may have run out.
                    () = tokio::time::sleep(LOOK) => self.lapse(),
                }
            };
        }
    }

    /// Shows an SVID; how long until the next is to be asked for.
    fn show(&mut self, signed: Signed, trust: &Trust) -> Result<Duration, Fault> {
        let (chain, secret) = signed;
        let now_s = self.now_s();
        let own = Identity::verify(&chain, &trust.bundle, now_s, Usage::Server)?;
        if own.key != secret.key() {
            return Err(Fault::Unauthenticated("this SVID is for another key".into()));
        }
        let credentials = Credentials { chain, secret };
        match &self.endpoint {
            Some(endpoint) => endpoint.renew(credentials),
            None => {
                // The original stays, in case this fails.
                let socket = self.socket.try_clone().map_err(Fault::internal)?;
                let settings = Settings { lets_in: self.vat.listens() };
                let clock = system_clock();
                let opened = Endpoint::new(socket, credentials, trust.clone(), settings, clock);
                let (endpoint, arrivals) = opened.map_err(Fault::internal)?;
                tracing::info!(id = %own.id, "is on the network");
                tokio::task::spawn_local(serve(self.vat.clone(), arrivals));
                let endpoint = Rc::new(endpoint);
                let way = Way::new(EDGE, endpoint.clone(), own.id.cluster);
                self.vat.set_reach(Rc::new(way));
                self.endpoint = Some(endpoint);
            }
        }
        (self.from_s, self.until_s) = (own.from_s, own.until_s);
        // Half of what is left of it: one that is short, because so is the node's evidence, holds from long before it was
        // signed, for the sake of clocks that differ. Not at once again, whatever its times are.
        Ok(renew_after(own.from_s.max(now_s), own.until_s, now_s).max(AGAIN))
    }
}

/// Ends what others have signed that ends here, until the vat ends.
async fn obey(vat: Vat) {
    let (mut obeyed, mut revocations) = (Obeyed::default(), Vec::new());
    loop {
        let Err(fault) = obey_until(&vat, &mut obeyed, &mut revocations).await;
        tracing::debug!(%fault, "what is to end is asked for again");
        tokio::time::sleep(AGAIN).await;
    }
}

async fn obey_until(
    vat: &Vat,
    obeyed: &mut Obeyed,
    revocations: &mut Vec<Revocation>,
) -> Result<Infallible, Fault> {
    let network: credentials::Client = vat.root(EDGE).await?;
    let mut seen = Vec::new();
    loop {
        let again = obeyed.obey(vat, revocations).await;
        let mut request = network.revocations_request();
        request.get().set_seen(&seen);
        // Of these nothing has an effect any more.
        let ended = obeyed.ended();
        let mut list = request.get().init_ended(ended.len() as u32);
        for (index, hash) in (0..).zip(&ended) {
            list.set(index, hash);
        }
        let asked = request.send().promise;
        let answer = match again {
            None => asked.await,
            Some(again) => match tokio::time::timeout(again, asked).await {
                Ok(answer) => answer,
                // It is time for one that had to wait.
                Err(_) => continue,
            },
        };
        let answer = answer.map_err(|e| fault_of(&e))?;
        let answer = answer.get().map_err(|e| fault_of(&e))?;
        let list = answer.get_revocations().map_err(|e| fault_of(&e))?;
        if list.len() > MAX_REVOCATIONS {
            return Err(Fault::malformed("so much is not kept for one vat"));
        }
        let read = |one: capnp::Result<&[u8]>| Revocation::decode(one.map_err(|e| fault_of(&e))?);
        *revocations = list.iter().map(read).collect::<Result<_, Fault>>()?;
        seen = answer.get_digest().map_err(|e| fault_of(&e))?.to_vec();
    }
}

/// Asks for an SVID for a new key.
async fn ask(network: &credentials::Client, vat: &Vat) -> Result<Signed, Fault> {
    let service = VatName::new(vat.name().as_str())?;
    let subject = Subject::Service { node: vat.node(), service };
    let secret = HolderSecret::fill(|seed| getrandom::fill(seed)).map_err(Fault::internal)?;
    let mut request = network.sign_request();
    request.get().set_key(&secret.key().0);
    request.get().set_proof(&prove(&subject, &secret));
    let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
    let chain = answer.get().and_then(|answer| {
        answer.get_chain()?.iter().take(2).map(|one| one.map(<[u8]>::to_vec)).collect()
    });
    Ok((chain.map_err(|e| fault_of(&e))?, Arc::new(secret)))
}

/// Whom to let in, once that differs from what was current at `seen`.
async fn trust(
    network: &credentials::Client,
    seen: u64,
    port: u16,
    node: NodeId,
) -> Result<Told, Fault> {
    let mut request = network.trust_request();
    request.get().set_seen(seen);
    request.get().set_port(port);
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
        let since = answer.get_since().map_err(faulty)?;
        if since.len() > MAX_PEERS {
            return Err(Fault::malformed("the list of those who were put out is too long"));
        }
        for one in since {
            let node = NodeId::try_from(one.get_node().map_err(faulty)?)?;
            peers.since_s.insert(node, one.get_at_s());
        }
        let epochs = answer.get_epochs().map_err(faulty)?;
        if epochs.len() > MAX_EPOCHS {
            return Err(Fault::malformed("the list of nodes' epochs is too long"));
        }
        for one in epochs {
            let node = NodeId::try_from(one.get_node().map_err(faulty)?)?;
            peers.epochs.insert(node, one.get_number());
        }
        let exchange = match answer.get_hybrid_only() {
            true => KeyExchange::HybridOnly,
            false => KeyExchange::HybridPreferred,
        };
        Ok(Told {
            revision: answer.get_revision(),
            fresh_s: answer.get_fresh_s(),
            trust: Trust { bundle, peers, own: Some(node), exchange },
        })
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
