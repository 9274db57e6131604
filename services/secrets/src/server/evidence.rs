//! What evidence about this node decides: who gets a secret that is given out on evidence only, and until when.

use std::rc::Rc;
use std::time::Duration;

use distos_abi::{CapId, Fault};
use distos_rpc::{Facet, Whence, fault_of};
use distos_schemas::attestation_capnp::attestation;

use super::{Broker, TICK};
use crate::record::Record;

const ATTESTATION_EDGE: &str = "attestation";
/// How long the attestation service may take to say what it has decided: it has decided before.
const EVIDENCE_WAIT: Duration = Duration::from_secs(2);

impl Broker {
    /// What the attestation service says of this node: whether its evidence is good, until when, and why.
    pub(super) async fn verdict(&self) -> Result<(bool, u64, String), Fault> {
        let service: attestation::Client = self.vat.root(ATTESTATION_EDGE).await?;
        let answer = service.status_request().send().promise.await.map_err(|e| fault_of(&e))?;
        let read = || -> capnp::Result<_> {
            let verdict = answer.get()?.get_verdict()?;
            let reason = String::from_utf8_lossy(verdict.get_reason()?.as_bytes()).into_owned();
            Ok((verdict.get_good(), verdict.get_fresh_until_ms(), reason))
        };
        read().map_err(|e| fault_of(&e))
    }

    /// Ends leases on secrets that are given out on evidence only when that turns bad, until the vat ends. While nothing
    /// is said of it, they end with what was said last.
    pub(super) async fn watch_evidence(self: Rc<Self>) {
        let mut was_bad = false;
        loop {
            tokio::time::sleep(TICK).await;
            let leased = self.state.borrow().attested_leased();
            if leased.is_empty() {
                was_bad = false;
                continue;
            }
            let Ok(Ok((good, _, reason))) =
                tokio::time::timeout(EVIDENCE_WAIT, self.verdict()).await
            else {
                continue;
            };
            // Once: while it is bad, what is leased has ended and is not cleared away.
            if !good && !was_bad {
                for (object, tenant) in leased {
                    // It may have been dropped meanwhile. What cannot be recorded is kept and written later.
                    if self.state.borrow().facts(object).is_ok() {
                        let _ = self.note(Record::EndedSecret(object)).await;
                        let detail = format!("all leases on secret {object} ended: {reason}");
                        self.report(tenant, CapId(0), detail);
                    }
                }
            }
            was_bad = !good;
        }
    }

    /// Until when this node's evidence is good, for a secret that is given out on evidence only.
    pub(super) async fn evidence(&self, facet: &Facet) -> Result<u64, Fault> {
        if facet.whence() != Whence::Here {
            return Err(Fault::StaleAttestation(
                "this secret is given out only to holders on the broker's own node: of others it has no evidence".into(),
            ));
        }
        let stale = |why: String| Fault::StaleAttestation(format!("no good evidence: {why}"));
        match tokio::time::timeout(EVIDENCE_WAIT, self.verdict()).await {
            Ok(Ok((true, until_ms, _))) if until_ms > self.now_ms() => Ok(until_ms),
            Ok(Ok((true, ..))) => Err(stale("it is too old".into())),
            Ok(Ok((false, _, reason))) => Err(stale(reason)),
            Ok(Err(fault)) => Err(stale(fault.to_string())),
            Err(_) => Err(stale("the attestation service is silent".into())),
        }
    }

    /// Until when a lease may run at most, for what it is on.
    pub(super) async fn most_ms(&self, facet: &Facet) -> Result<u64, Fault> {
        let attested = self.state.borrow().facts(facet.object())?.attested;
        let expires_ms = facet.authority().caveats.expires_ms;
        match attested {
            true => Ok(self.evidence(facet).await?.min(expires_ms)),
            false => Ok(expires_ms),
        }
    }
}
