//! What evidence about this node decides: who gets a secret that is given out on evidence only, and until when; and that
//! the leases of holders on this node end when that turns bad.

use std::rc::Rc;
use std::time::{Duration, Instant};

use distos_abi::{CapId, Fault, TenantId};
use distos_rpc::{Facet, Whence, fault_of};
use distos_schemas::attestation_capnp::{Standing, attestation, verdict};

use super::{ATTESTATION_EDGE, Broker, TICK};
use crate::record::{self, Record};

/// How long the attestation service may take to say what it has decided: it has decided before.
const EVIDENCE_WAIT: Duration = Duration::from_secs(2);
/// How long it may take to say that nothing has changed: it says so after ten seconds.
const WATCH_WAIT: Duration = Duration::from_secs(20);

/// What the attestation service says of this node.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    standing: Standing,
    good: bool,
    fresh_until_ms: u64,
    /// How often the evidence has turned bad.
    epoch: u64,
    /// Whether nothing was appraised yet since the attestation service has started.
    is_unjudged: bool,
    /// Why it is not good, or empty.
    reason: String,
}

impl Heard {
    fn of(verdict: verdict::Reader<'_>) -> capnp::Result<Heard> {
        Ok(Heard {
            standing: verdict.get_standing()?,
            good: verdict.get_good(),
            fresh_until_ms: verdict.get_fresh_until_ms(),
            epoch: verdict.get_epoch(),
            is_unjudged: verdict.get_standing()? == Standing::Expired
                && verdict.get_taken_ms() == 0,
            reason: String::from_utf8_lossy(verdict.get_reason()?.as_bytes()).into_owned(),
        })
    }
}

/// What follows from what is heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Consequence {
    /// Nothing.
    None,
    /// All leases of holders on this node end.
    End,
}

/// What was heard last of this node's evidence, and whether it still had some.
#[derive(Clone, Copy, Debug, Default)]
struct Watch {
    /// Whether there was evidence that held, fresh or stale.
    held: bool,
    /// Whether it contradicted what is demanded.
    failed: bool,
    epoch: Option<u64>,
}

impl Watch {
    /// That of a broker that was started again, with what it has written before: what came about meanwhile is not missed.
    fn resumed(heard: Option<record::Heard>) -> Watch {
        let held = heard.is_some_and(|heard| heard.held);
        Watch { held, failed: false, epoch: heard.map(|heard| heard.epoch) }
    }

    /// What is to be written of it.
    fn kept(&self) -> Option<record::Heard> {
        self.epoch.map(|epoch| record::Heard { epoch, held: self.held })
    }

    /// Leases end when what was known to hold does so no more, and when the evidence contradicts what is demanded, once
    /// each. A node that never had evidence loses nothing. That it turned bad and good again between two answers is seen by
    /// its epoch.
    fn hear(&mut self, heard: &Heard) -> Consequence {
        // Leases on what is given out on evidence only end with what was said last.
        if heard.is_unjudged && self.epoch.is_none_or(|epoch| heard.epoch <= epoch) {
            return Consequence::None;
        }
        let held = heard.good && matches!(heard.standing, Standing::Fresh | Standing::Stale);
        let failed = heard.standing == Standing::Failed;
        // A lower one is of a count that was lost, and of what came about since nothing is known.
        let turned = self.epoch.is_some_and(|epoch| heard.epoch != epoch);
        let ends = (self.held && !held) || (failed && !self.failed) || turned;
        *self = Watch { held, failed, epoch: Some(heard.epoch) };
        if ends { Consequence::End } else { Consequence::None }
    }
}

impl Broker {
    async fn attestation(&self) -> Result<attestation::Client, Fault> {
        self.vat.root(ATTESTATION_EDGE).await
    }

    async fn verdict(&self) -> Result<Heard, Fault> {
        let request = self.attestation().await?.status_request();
        let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
        let read = || Heard::of(answer.get()?.get_verdict()?);
        read().map_err(|e| fault_of(&e))
    }

    /// What is said once it differs from what was said at revision `seen`, and the revision of that.
    async fn change_of_verdict(&self, seen: u64) -> Result<(u64, Heard), Fault> {
        let mut request = self.attestation().await?.watch_request();
        request.get().set_seen(seen);
        let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
        let read = || {
            let answer = answer.get()?;
            Ok((answer.get_revision(), Heard::of(answer.get_verdict()?)?))
        };
        read().map_err(|e| fault_of(&e))
    }

    /// Ends the leases of holders on this node when its evidence turns bad or is over, until the vat ends. While nothing is
    /// said of it, those on secrets that are given out on evidence only end with what was said last.
    pub(super) async fn watch_evidence(self: Rc<Self>) {
        let mut watch = Watch::resumed(self.state.borrow().heard());
        let (mut seen, mut pause) = (0, Duration::ZERO);
        loop {
            tokio::time::sleep(pause).await;
            pause = Duration::ZERO;
            let asked = Instant::now();
            let changed = tokio::time::timeout(WATCH_WAIT, self.change_of_verdict(seen)).await;
            let heard = match changed {
                Ok(Ok((revision, heard))) => {
                    // Whoever answers at once although nothing has changed is not asked all the time.
                    if revision == seen && asked.elapsed() < TICK {
                        pause = TICK;
                    }
                    seen = revision;
                    heard
                }
                // It does not say so by itself, or is started again and counts from the beginning.
                Ok(Err(_)) | Err(_) => {
                    (seen, pause) = (0, TICK);
                    let asked = tokio::time::timeout(EVIDENCE_WAIT, self.verdict()).await;
                    let Ok(Ok(heard)) = asked else { continue };
                    heard
                }
            };
            let failed = heard.standing == Standing::Failed;
            // Before their leases end: nobody reads again in between.
            *self.contradicted.borrow_mut() = failed.then(|| heard.reason.clone());
            let ends = watch.hear(&heard) == Consequence::End;
            let news = watch.kept().filter(|kept| self.state.borrow().heard() != Some(*kept));
            let news: Vec<Record> = news.map(Record::Evidence).into_iter().collect();
            if ends {
                self.end_own_node(&heard.reason, news).await;
            } else if !news.is_empty() {
                // What cannot be recorded is kept and written later.
                let _ = self.note_all(news).await;
            }
        }
    }

    /// Ends the leases of holders on this node. Whether they get new ones is another matter.
    async fn end_own_node(&self, why: &str, news: Vec<Record>) {
        let node = self.vat.node();
        let mut records = vec![Record::EndedNode(node)];
        if self.state.borrow().check_node(Some(node)).is_ok() {
            records.push(Record::AdmittedNode(node));
        }
        records.extend(news);
        // What cannot be recorded is kept and written later.
        if let Ok(leases) = self.note_all(records).await {
            let detail = format!("all {leases} leases on this node ended: {why}");
            self.report(TenantId::OPERATOR, CapId(0), detail);
        }
    }

    /// [`Fault::StaleAttestation`] if this is for a holder on this node, whose evidence contradicts what is demanded.
    pub(super) fn check_standing(&self, facet: &Facet) -> Result<(), Fault> {
        match &*self.contradicted.borrow() {
            Some(why) if facet.whence() == Whence::Here => Err(Fault::StaleAttestation(format!(
                "nothing is given out to holders on this node: {why}"
            ))),
            _ => Ok(()),
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
            Ok(Ok(heard)) if !heard.good => Err(stale(heard.reason)),
            Ok(Ok(heard)) if heard.fresh_until_ms > self.now_ms() => Ok(heard.fresh_until_ms),
            Ok(Ok(_)) => Err(stale("it is too old".into())),
            Ok(Err(fault)) => Err(stale(fault.to_string())),
            Err(_) => Err(stale("the attestation service is silent".into())),
        }
    }

    /// Until when a lease may run at most, for what it is on.
    pub(super) async fn most_ms(&self, facet: &Facet) -> Result<u64, Fault> {
        self.check_standing(facet)?;
        let attested = self.state.borrow().facts(facet.object())?.attested;
        let expires_ms = facet.authority().caveats.expires_ms;
        match attested {
            true => Ok(self.evidence(facet).await?.min(expires_ms)),
            false => Ok(expires_ms),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(standing: Standing, epoch: u64) -> Heard {
        let good = matches!(standing, Standing::Fresh | Standing::Stale);
        Heard {
            standing,
            good,
            fresh_until_ms: 0,
            epoch,
            is_unjudged: false,
            reason: String::new(),
        }
    }

    /// After which of these all leases end.
    fn ends(standings: &[(Standing, u64)]) -> Vec<bool> {
        ends_after(None, standings)
    }

    /// The same of a broker that was started again.
    fn ends_after(kept: Option<record::Heard>, standings: &[(Standing, u64)]) -> Vec<bool> {
        let mut watch = Watch::resumed(kept);
        let hear = |(standing, epoch): &(Standing, u64)| watch.hear(&heard(*standing, *epoch));
        standings.iter().map(hear).map(|consequence| consequence == Consequence::End).collect()
    }

    use Standing::{Expired, Failed, Fresh, Stale};

    #[test]
    fn a_node_loses_its_leases_once_when_its_evidence_turns_bad_or_is_over() {
        let told = [(Fresh, 0), (Stale, 0), (Expired, 0), (Expired, 0), (Fresh, 0), (Failed, 1)];
        assert_eq!(ends(&told), [false, false, true, false, false, true]);
        assert_eq!(ends(&[(Fresh, 0), (Failed, 1), (Failed, 1)]), [false, true, false]);
        assert_eq!(ends(&[(Expired, 0), (Failed, 1)]), [false, true]);
    }

    #[test]
    fn a_node_that_failed_while_nobody_listened_loses_its_leases_when_that_is_heard() {
        assert_eq!(ends(&[(Failed, 7)]), [true], "a broker that was started again");
        assert_eq!(ends(&[(Fresh, 3), (Fresh, 4)]), [false, true], "it turned good again");
        assert_eq!(
            ends(&[(Fresh, 3), (Fresh, 0), (Fresh, 0)]),
            [false, true, false],
            "a count was lost"
        );
    }

    #[test]
    fn what_turned_bad_while_the_broker_was_down_is_not_missed() {
        let kept = Some(record::Heard { epoch: 3, held: true });
        assert_eq!(ends_after(kept, &[(Fresh, 4), (Fresh, 4)]), [true, false], "and good again");
        assert_eq!(ends_after(kept, &[(Expired, 3)]), [true], "it is over");
        assert_eq!(ends_after(kept, &[(Fresh, 3)]), [false]);
        let kept = Some(record::Heard { epoch: 3, held: false });
        assert_eq!(ends_after(kept, &[(Expired, 3)]), [false]);
        let mut watch = Watch::resumed(None);
        watch.hear(&heard(Fresh, 3));
        assert_eq!(watch.kept(), Some(record::Heard { epoch: 3, held: true }));
        watch.hear(&heard(Failed, 4));
        assert_eq!(watch.kept(), Some(record::Heard { epoch: 4, held: false }));
    }

    #[test]
    fn a_node_without_any_evidence_loses_no_lease() {
        assert_eq!(ends(&[(Expired, 0), (Expired, 0), (Fresh, 0)]), [false; 3]);
    }

    #[test]
    fn evidence_that_is_said_not_to_be_good_holds_no_more_whatever_its_standing() {
        let mut watch = Watch::default();
        watch.hear(&heard(Fresh, 0));
        let bad = Heard { good: false, ..heard(Fresh, 0) };
        assert_eq!(watch.hear(&bad), Consequence::End);
        assert_eq!(watch.hear(&bad), Consequence::None);
    }

    /// The attestation service was killed, and its TPM has not answered the new one yet.
    #[test]
    fn what_was_not_judged_since_a_start_ends_nothing() {
        let mut watch = Watch::default();
        assert_eq!(watch.hear(&heard(Fresh, 1)), Consequence::None);
        let unjudged = Heard { is_unjudged: true, good: false, ..heard(Expired, 1) };
        assert_eq!(watch.hear(&unjudged), Consequence::None);
        assert_eq!(watch.hear(&heard(Fresh, 1)), Consequence::None);
        let turned = Heard { is_unjudged: true, good: false, ..heard(Expired, 2) };
        assert_eq!(watch.hear(&turned), Consequence::End, "its epoch is kept");
    }
}
