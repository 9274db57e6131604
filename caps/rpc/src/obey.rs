//! Revocations that come signed, instead of being asked for by whoever holds a capability.

use std::collections::BTreeSet;

use distos_abi::Fault;
use distos_types::Revocation;

use crate::facet::{Facet, Origin, Revoked};
use crate::faults::fault_of;
use crate::vat::Vat;

impl Vat {
    /// Ends what a revocation names, whoever brings it: it proves that whoever signed it holds what it may end that by.
    /// When it returns, no use of it or of anything derived from it takes effect (C2).
    ///
    /// # Errors
    /// [`Fault::NotFound`] if this vat is not its home; [`Fault::Unauthenticated`], [`Fault::Denied`] or
    /// [`Fault::Expired`] if it proves nothing, or nothing any more; [`Fault::Revoked`] if what it would be ended by has
    /// ended, and that with it; what the kernel says.
    pub async fn obey(&self, revocation: &Revocation) -> Result<Revoked, Fault> {
        let chain = revocation.by();
        if chain.root().node != self.node() || chain.root().vat != *self.name() {
            return Err(Fault::not_found("what is to be revoked has another home"));
        }
        revocation.verify(self.now_ms())?;
        let session = self.next_session();
        let ended = async {
            let mut request = self.kernel()?.redeem_request();
            request.get().set_chain(&chain.encode());
            request.get().set_session(session.0);
            let response = request.send().promise.await.map_err(|e| fault_of(&e))?;
            let grant = response.get().and_then(|r| r.get_grant()).map_err(|e| fault_of(&e))?;
            let facet = Facet::new(self, session, grant, Origin::Session)?;
            let ended = facet.revoke_link(&revocation.link().0, revocation.expires_ms()).await?;
            let (tenant, cap) = (facet.tenant(), facet.cap_id());
            let by = chain.holder();
            let detail = format!("link {} was ended by key {by}, signed", revocation.link());
            self.report("revocation", tenant, cap, detail);
            Ok(ended)
        };
        let ended = ended.await;
        self.end_session(session).await;
        ended
    }
}

/// Revocations that a vat has obeyed, so that each is looked at once.
#[derive(Debug, Default)]
pub struct Obeyed(BTreeSet<[u8; 32]>);

impl Obeyed {
    /// Obeys those of these that were not before, and forgets those that are not among them. One that proves nothing is
    /// obeyed by doing nothing.
    ///
    /// # Errors
    /// Why one of them is to be tried again; the others have had their effect.
    pub async fn obey(&mut self, vat: &Vat, revocations: &[Revocation]) -> Result<(), Fault> {
        let all: BTreeSet<[u8; 32]> = revocations.iter().map(|one| *one.hash()).collect();
        self.0.retain(|hash| all.contains(hash));
        let mut later = None;
        for revocation in revocations {
            if self.0.contains(revocation.hash()) {
                continue;
            }
            match vat.obey(revocation).await {
                Err(
                    fault @ (Fault::Unavailable { .. }
                    | Fault::OverQuota { .. }
                    | Fault::Internal(_)),
                ) => later = Some(fault),
                Err(fault) => {
                    tracing::info!(link = %revocation.link(), %fault, "nothing is left to end");
                    self.0.insert(*revocation.hash());
                }
                Ok(_) => drop(self.0.insert(*revocation.hash())),
            }
        }
        later.map_or(Ok(()), Err)
    }
}
