//! What this node's standing ends: asked of the attestation service, decided by [`Watch`](crate::standing::Watch), done here.

use std::rc::Rc;
use std::time::Duration;

use distos_abi::{CapId, Fault, TenantId};
use distos_rpc::fault_of;
use distos_schemas::attestation_capnp::{self as wire, attestation};
use futures::FutureExt as _;
use futures::future::join_all;

use crate::server::{ATTESTATION_EDGE, Scheduler, TRACE};
use crate::standing::{Heard, Load, Standing, Step};
use crate::state::{Job, JobId};

/// How long after a failure the attestation service is asked again what has become of this node.
const STANDING_AGAIN: Duration = Duration::from_secs(1);
/// It says something every ten seconds.
const STANDING_WAIT: Duration = Duration::from_secs(15);

/// How long the kernel may take to kill an executor before others may work again.
const STOP_WAIT: Duration = Duration::from_secs(10);

/// How far this node's evidence reaches.
struct Reach {
    revision: u64,
    heard: Heard,
    /// Why it does not reach further.
    reason: String,
}

impl Scheduler {
    /// Ends at once what runs here when this node's evidence turns bad (A3), and drains it when that is too old for anything.
    pub(crate) async fn follow_standing(self: Rc<Self>) {
        let mut reason = String::new();
        let mut asked = Rc::clone(&self).standing(0).boxed_local();
        loop {
            let ended = self.ended.notified();
            if self.draining_until_ms().is_some() {
                self.end_waiting(&reason);
            }
            let now_ms = self.uptime_ms();
            let load = self.here();
            let step = self.watch.borrow_mut().passed(now_ms, load);
            if step == Some(Step::AskAgain) {
                asked = Rc::clone(&self).standing(0).boxed_local();
                continue;
            }
            if let Some(step) = step {
                if reason.is_empty() {
                    "nothing is heard of this node's evidence any more".clone_into(&mut reason);
                }
                self.act(step, &reason).await;
                continue;
            }
            let next_ms = self.watch.borrow().next_ms(now_ms);
            let time = async {
                match next_ms {
                    Some(next_ms) => {
                        let wait = next_ms.saturating_sub(now_ms);
                        tokio::time::sleep(Duration::from_millis(wait)).await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                told = &mut asked => {
                    let seen = match told {
                        Ok(reach) => {
                            reason = reach.reason;
                            self.heard(reach.heard, &reason).await;
                            reach.revision
                        }
                        Err(fault) => {
                            tracing::debug!(%fault, "this node's standing is asked for again");
                            0
                        }
                    };
                    asked = Rc::clone(&self).standing(seen).boxed_local();
                }
                () = time => {}
                () = ended => {}
            }
        }
    }

    /// Until when what runs may end by itself, on the clock of [`Scheduler::uptime_ms`], if this node is drained.
    pub(crate) fn draining_until_ms(&self) -> Option<u64> {
        self.watch.borrow().draining_until_ms()
    }

    /// Acts on what the attestation service has said.
    async fn heard(&self, heard: Heard, reason: &str) {
        let (now_ms, load) = (self.uptime_ms(), self.here());
        let step = self.watch.borrow_mut().heard(now_ms, heard, load);
        if let Some(step) = step {
            self.act(step, reason).await;
        }
        if heard.standing == Standing::Fresh {
            self.work.notify_one();
        }
    }

    /// What rests on this node's evidence, as it is now.
    fn here(&self) -> Load {
        Load { jobs: self.live.borrow().len(), executors: self.executors.borrow().len() }
    }

    async fn act(&self, step: Step, reason: &str) {
        let detail = match step {
            // By whoever asks.
            Step::AskAgain => return,
            Step::Fence => {
                let load = self.end_all(reason).await;
                if load == Load::default() {
                    return;
                }
                format!("this node failed its attestation: {load} ended: {reason}")
            }
            Step::BeginDrain { until_ms } => {
                let rest_ms = until_ms.saturating_sub(self.uptime_ms());
                self.end_waiting(reason);
                let jobs = self.here().jobs;
                format!(
                    "this node's evidence ran out: {jobs} jobs that run have {rest_ms} ms to end: {reason}"
                )
            }
            Step::CallOffDrain => {
                format!("this node's evidence is fresh again: {} jobs go on", self.here().jobs)
            }
            Step::EndDrain => {
                let load = self.end_all(reason).await;
                format!("this node is drained: {load} ended: {reason}")
            }
        };
        self.vat.report("fence", TenantId::OPERATOR, CapId(0), detail);
    }

    /// Every job ends, and with every executor all that it was given. Returns once nothing runs, with what there was.
    async fn end_all(&self, reason: &str) -> Load {
        let load = self.here();
        self.ending.set(true);
        let live: Vec<JobId> = self.live.borrow().keys().copied().collect();
        for id in live {
            self.fail(id, Fault::StaleAttestation(reason.to_owned()));
        }
        let executors: Vec<(TenantId, (String, u64))> =
            self.executors.borrow_mut().drain().collect();
        let names = executors.iter().map(|(_, (name, _))| name.as_str());
        let stopped = all_at_once(names, async |name| self.end_executor(name).await).await;
        let mut is_left = false;
        for ((tenant, executor), stopped) in executors.into_iter().zip(stopped) {
            if let Err(fault) = stopped {
                tracing::error!(%fault, name = executor.0, "an executor could not be stopped");
                // It is tried again when the standing is told the next time. One that was started meanwhile is another.
                self.executors.borrow_mut().entry(tenant).or_insert(executor);
                is_left = true;
            }
        }
        self.ending.set(false);
        self.work.notify_one();
        if !is_left {
            let (at, node, epoch) =
                (self.vat.now_ms(), self.vat.node(), self.watch.borrow().epoch());
            tracing::debug!(target: TRACE, at, %node, epoch, "fence");
        }
        load
    }

    /// Ends an executor, unless it has ended by itself.
    async fn end_executor(&self, name: &str) -> Result<(), Fault> {
        let late = |_| Err(Fault::unavailable(0, "the kernel does not say that it has ended"));
        match tokio::time::timeout(STOP_WAIT, self.stop_executor(name)).await.unwrap_or_else(late) {
            Err(Fault::NotFound(_)) => Ok(()),
            stopped => stopped,
        }
    }

    /// Jobs of which nothing runs end.
    fn end_waiting(&self, reason: &str) {
        let waiting: Vec<JobId> = {
            let state = self.state.borrow();
            state.active().filter(|id| state.job(*id).is_some_and(Job::is_waiting)).collect()
        };
        if waiting.is_empty() {
            return;
        }
        let detail = format!(
            "this node's evidence ran out: {} jobs of which nothing runs ended: {reason}",
            waiting.len()
        );
        self.vat.report("fence", TenantId::OPERATOR, CapId(0), detail);
        for id in waiting {
            self.fail(id, Fault::StaleAttestation(reason.to_owned()));
        }
    }

    /// How far this node's evidence reaches, once that differs from what it was at `seen`; or, after a while, that nobody says so.
    async fn standing(self: Rc<Self>, seen: u64) -> Result<Reach, Fault> {
        let silent = |_| Err(Fault::unavailable(1000, "the attestation service is silent"));
        let asked = tokio::time::timeout(STANDING_WAIT, self.ask_standing(seen));
        let told = asked.await.unwrap_or_else(silent);
        if told.is_err() {
            tokio::time::sleep(STANDING_AGAIN).await;
        }
        told
    }

    async fn ask_standing(&self, seen: u64) -> Result<Reach, Fault> {
        let service: attestation::Client = self.vat.root(ATTESTATION_EDGE).await?;
        let mut request = service.watch_request();
        request.get().set_seen(seen);
        let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
        let read = || -> capnp::Result<_> {
            let answer = answer.get()?;
            let verdict = answer.get_verdict()?;
            let standing = match verdict.get_standing()? {
                wire::Standing::Fresh => Standing::Fresh,
                wire::Standing::Stale => Standing::Stale,
                wire::Standing::Expired => Standing::Expired,
                wire::Standing::Failed => Standing::Failed,
            };
            let left_ms = verdict.get_expires_ms().saturating_sub(self.vat.now_ms());
            Ok(Reach {
                revision: answer.get_revision(),
                heard: Heard { standing, epoch: verdict.get_epoch(), left_ms },
                reason: String::from_utf8_lossy(verdict.get_reason()?.as_bytes()).into_owned(),
            })
        };
        read().map_err(|e| fault_of(&e))
    }
}

/// Does this to all of them at the same time, so that all takes as long as the slowest one. What came of each, in order.
async fn all_at_once<T, R>(all: impl Iterator<Item = T>, act: impl AsyncFn(T) -> R) -> Vec<R> {
    join_all(all.map(|one| act(one))).await
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Builder;
    use tokio::sync::Barrier;

    use super::*;

    /// Or what a node that has failed holds at others goes on for as long as it takes to stop one executor after the other.
    #[test]
    fn no_executor_waits_for_another_to_be_stopped() {
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        let gate = Barrier::new(3);
        // None is stopped before all have been told to stop.
        let stop = async |number: u32| {
            gate.wait().await;
            number
        };
        let all =
            async { tokio::time::timeout(Duration::from_secs(5), all_at_once(0..3, stop)).await };
        let stopped = runtime.block_on(all);
        assert_eq!(stopped.expect("they are stopped one after the other"), [0, 1, 2]);
    }
}
