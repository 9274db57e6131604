//! What a holder has signed, instead of asking for it over a connection of its own: acting in its name, and obeying
//! revocations.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use distos_abi::{Fault, SessionId};
use distos_types::{Chain, Revocation};

use crate::facet::{Facet, Origin, Revoked};
use crate::faults::fault_of;
use crate::vat::Vat;

/// After how long one is tried again for which there was no room, or that cannot be judged yet: at first and at most.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_MOST: Duration = Duration::from_secs(300);

impl Vat {
    /// Ends what a revocation names, whoever brings it: it proves that whoever signed it holds what it may end that by.
    /// When it returns, no use of it or of anything derived from it takes effect (C2).
    ///
    /// # Errors
    /// [`Fault::NotFound`] if this vat is not its home; [`Fault::Unauthenticated`], [`Fault::Denied`] or
    /// [`Fault::Expired`] if it proves nothing, or nothing any more; [`Fault::Revoked`] if what it would be ended by has
    /// ended, and that with it; what the kernel says.
    pub async fn obey(&self, revocation: &Revocation) -> Result<Revoked, Fault> {
        if revocation.home() != self.node() || revocation.vat() != self.name() {
            return Err(Fault::not_found("what is to be revoked has another home"));
        }
        revocation.verify(self.now_ms())?;
        let mandate = self.mandate(&revocation.by()).await?;
        let ended = end_by(mandate.facet(), revocation).await;
        mandate.end().await;
        ended
    }

    /// Turns a chain into a live capability in a session in which nothing else is: no connection's end ends it. For
    /// whoever knows by a signature of the chain's holder what is to be done in its name: that stands for the proof of
    /// possession (C4). The chain itself is the kernel's to judge.
    ///
    /// Run it to its end, also if whoever has asked for it goes away: what was redeemed for nobody stays until this vat
    /// ends.
    ///
    /// # Errors
    /// [`Fault::NotFound`] if it is a capability to another vat's object; what the kernel says.
    pub async fn mandate(&self, chain: &Chain) -> Result<Mandate, Fault> {
        let root = chain.root();
        if root.node != self.node() || root.vat != *self.name() {
            let whose =
                format!("this capability belongs to vat '{}' of node {}", root.vat, root.node);
            return Err(Fault::not_found(whose));
        }
        let session = self.next_session();
        match self.redeem(chain, session).await {
            Ok(facet) => Ok(Mandate { facet, session }),
            Err(fault) => {
                self.end_session(session).await;
                Err(fault)
            }
        }
    }

    async fn redeem(&self, chain: &Chain, session: SessionId) -> Result<Facet, Fault> {
        let mut request = self.kernel()?.redeem_request();
        request.get().set_chain(&chain.encode());
        request.get().set_session(session.0);
        let response = request.send().promise.await.map_err(|e| fault_of(&e))?;
        let grant = response.get().and_then(|r| r.get_grant()).map_err(|e| fault_of(&e))?;
        Facet::new(self, session, grant, Origin::Session)
    }
}

async fn end_by(facet: &Facet, revocation: &Revocation) -> Result<Revoked, Fault> {
    let ended = facet.revoke_link(&revocation.link().0, revocation.expires_ms()).await?;
    let by = revocation.by().holder();
    let detail = format!("link {} was ended by key {by}, signed", revocation.link());
    facet.vat().report("revocation", facet.tenant(), facet.cap_id(), detail);
    Ok(ended)
}

/// A holder's capability that a vat uses in the holder's name, without a connection to it.
pub struct Mandate {
    facet: Facet,
    session: SessionId,
}

impl Mandate {
    /// What is done is done by this: it says whose it is and what it allows, and whether it lives.
    pub fn facet(&self) -> &Facet {
        &self.facet
    }

    /// Nothing is done by it any more.
    pub async fn end(self) {
        self.facet.vat().end_session(self.session).await;
    }
}

/// What became of a revocation.
#[derive(Debug)]
enum Outcome {
    /// Nothing that it ends has an effect any more.
    Ended,
    /// It ends nothing.
    Refused,
    /// It is to be tried again, and how long that was put off.
    Later(Instant, Duration),
}

/// Revocations that a vat has obeyed, so that each is looked at once.
#[derive(Debug, Default)]
pub struct Obeyed(BTreeMap<[u8; 32], Outcome>);

impl Obeyed {
    /// Obeys those of these that were not before, and forgets those that are not among them. One that has to wait is in
    /// the way of no other; how long until the first of those is to be tried again, if there are any.
    pub async fn obey(&mut self, vat: &Vat, revocations: &[Revocation]) -> Option<Duration> {
        let all: BTreeSet<[u8; 32]> = revocations.iter().map(|one| *one.hash()).collect();
        self.0.retain(|hash, _| all.contains(hash));
        for revocation in revocations {
            let now = Instant::now();
            let wait = match self.0.get(revocation.hash()) {
                None => AGAIN,
                Some(Outcome::Later(at, wait)) if *at <= now => (*wait * 2).min(AGAIN_MOST),
                Some(_) => continue,
            };
            let outcome = match vat.obey(revocation).await {
                Ok(_) | Err(Fault::Revoked | Fault::Expired { .. }) => Outcome::Ended,
                Err(Fault::Unavailable { .. } | Fault::OverQuota { .. } | Fault::Internal(_)) => {
                    Outcome::Later(now + wait, wait)
                }
                // This clock may be behind yet.
                Err(_) if revocation.is_early(vat.now_ms()) => Outcome::Later(now + wait, wait),
                Err(fault) => {
                    let detail = format!("revocation of link {}: {fault}", revocation.link());
                    let cap = revocation.by().root().cap;
                    vat.report("denial", distos_abi::TenantId::OPERATOR, cap, detail);
                    Outcome::Refused
                }
            };
            self.0.insert(*revocation.hash(), outcome);
        }
        let now = Instant::now();
        let later = self.0.values().filter_map(|outcome| match outcome {
            Outcome::Later(at, _) => Some(at.saturating_duration_since(now)),
            Outcome::Ended | Outcome::Refused => None,
        });
        later.min()
    }

    /// The hashes of those of which nothing has an effect any more.
    pub fn ended(&self) -> Vec<[u8; 32]> {
        let ended = self.0.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Ended));
        ended.map(|(hash, _)| *hash).collect()
    }
}
