//! Deployments: jobs that go on without the connection over which they were asked for, because their owner has signed for
//! them. An order is verified, noted on disk and then carried out, once (N3); the job runs by the capability that the
//! order was signed with, in a session of the scheduler's own, and ends with that capability (C2).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use capnp::message::ReaderOptions;
use distos_abi::{CapId, Fault, HolderKey, Meter, ObjectId, Rights, TenantId};
use distos_rpc::{Facet, Mandate, Vat};
use distos_schemas::scheduler_capnp::job_spec;
use distos_types::{Order, kind};

use crate::ledger::{Deployment, Ledger, Lost};
use crate::server::{EMPTY, Scheduler};
use crate::spec::{self, MAX_MODULE_BYTES, Submission};
use crate::state::{Job, JobId, NewJob, State};

/// The longest job, in bytes: its program, and all else that is in it.
pub const MAX_SPEC_BYTES: usize = MAX_MODULE_BYTES + 256 * 1024;
/// How deep what is in a job may be nested: a list of texts in a struct is the deepest that there is.
const NESTING: i32 = 8;
/// Orders of one tenant that are looked at at the same time: each has its job in memory, whether or not whoever brought it
/// is still there.
const MAX_ARRIVING: usize = 4;

/// What a scheduler knows of deployments.
pub(crate) struct Deployments {
    /// `None` if the image gives it no directory.
    ledger: RefCell<Option<Ledger>>,
    /// How many orders of each tenant are being looked at.
    arriving: RefCell<BTreeMap<TenantId, usize>>,
}

impl Deployments {
    /// As an earlier run has left them: the jobs that had not ended have failed.
    ///
    /// # Errors
    /// What is on disk is damaged.
    pub(crate) fn open(vat: &Vat, state: &mut State) -> Result<Deployments, Fault> {
        let mut ledger = vat.data_dir().map(Ledger::open).transpose()?;
        if let Some(ledger) = &mut ledger {
            for Lost { id, job, fault } in ledger.lost()? {
                let detail = format!("job {} '{}' is lost: {fault}", id.0, job.name);
                vat.report("deployment", job.tenant, CapId(0), detail);
                state.lost(id, job, fault);
            }
            state.begin_at(ledger.next_job());
            ledger.keep(|id| state.job(id).is_some());
        }
        Ok(Deployments { ledger: RefCell::new(ledger), arriving: RefCell::default() })
    }

    fn check(&self, tenant: TenantId, order: &Order, now_us: u64) -> Result<(), Fault> {
        match &*self.ledger.borrow() {
            Some(ledger) => ledger.check(tenant, order, now_us),
            None => Err(Fault::unavailable(
                0,
                "this scheduler cannot remember orders: its image gives it no directory (data = true)",
            )),
        }
    }
}

/// A signed order, and the job that it is for.
pub(crate) struct Signed {
    order: Order,
    submission: Submission,
}

/// An order that is being looked at.
pub(crate) struct Arriving {
    scheduler: Rc<Scheduler>,
    tenant: TenantId,
}

impl Drop for Arriving {
    fn drop(&mut self) {
        let mut arriving = self.scheduler.deployments.arriving.borrow_mut();
        let left = arriving.get(&self.tenant).map_or(0, |count| count.saturating_sub(1));
        match left {
            0 => drop(arriving.remove(&self.tenant)),
            left => drop(arriving.insert(self.tenant, left)),
        }
    }
}

/// Reads a job as bytes: exactly one message. [`Fault::Malformed`] for anything else.
pub fn read_spec(bytes: &[u8], tenant: TenantId, workers: u32) -> Result<Submission, Fault> {
    let broken = |error: capnp::Error| Fault::malformed(format!("spec: this is no job: {error}"));
    if bytes.len() > MAX_SPEC_BYTES {
        return Err(Fault::malformed(format!("spec: a job has at most {MAX_SPEC_BYTES} bytes")));
    }
    let mut options = ReaderOptions::new();
    // No part of it is looked at twice, so a message has no more to look at than it has bytes; and no more is
    // allocated for it, whatever length it claims.
    options.traversal_limit_in_words(Some(bytes.len() / 8 + 1)).nesting_limit(NESTING);
    let mut rest = bytes;
    let message = capnp::serialize::read_message(&mut rest, options).map_err(broken)?;
    if !rest.is_empty() {
        return Err(Fault::malformed("spec: there is something behind the job"));
    }
    let job = message.get_root::<job_spec::Reader<'_>>().map_err(broken)?;
    let mut submission = spec::read(job, tenant, workers).map_err(broken)??;
    submission.job.deployed = true;
    Ok(submission)
}

/// As what somebody stands before the queue.
#[derive(Clone, Copy)]
struct Standing {
    tenant: TenantId,
    /// `None` if a vat of this node holds the capability.
    holder: Option<HolderKey>,
    end_to_end: bool,
}

impl Standing {
    fn of(facet: &Facet) -> Standing {
        let end_to_end = facet.authority().caveats.end_to_end;
        Standing { tenant: facet.tenant(), holder: facet.holder(), end_to_end }
    }

    /// Whether this one may bring an order that was signed by `signer`: one of the same tenant; and if that is end to end,
    /// over a connection that is, from the same holder. Otherwise an order would be a way around that caveat.
    ///
    /// # Errors
    /// [`Fault::Unauthenticated`].
    fn may_bring(self, signer: Standing) -> Result<(), Fault> {
        let refuse = |why: &str| Err(Fault::Unauthenticated(why.to_owned()));
        if signer.tenant != self.tenant {
            return refuse(
                "this order is another tenant's: bring it by a capability to that one's queue",
            );
        }
        // A session restores its own holder's capabilities only, so its other end is that holder.
        let is_signers = signer.holder.is_some() && signer.holder == self.holder;
        if signer.end_to_end && !(self.end_to_end && is_signers) {
            return refuse(
                "this order is signed with a capability that is end to end: bring it as its holder, \
                 over a connection that is",
            );
        }
        Ok(())
    }
}

impl Scheduler {
    /// Looks at what somebody brings over `bringer`: whether it is for this vat, from now, signed and new, and the job that
    /// it is for. Nothing has happened yet.
    pub(crate) fn look_at(
        self: &Rc<Self>,
        bringer: &Facet,
        order: &[u8],
        signature: &[u8],
        job: &[u8],
    ) -> Result<(Signed, Arriving), Fault> {
        let tenant = bringer.tenant();
        let order = Order::decode(order)?;
        let checked = self
            .deployments
            .check(tenant, &order, self.now_us())
            .and_then(|()| order.verify(signature, (self.vat.node(), self.vat.name()), job));
        checked.map_err(|fault| refused(bringer, &order, fault))?;
        let arriving = self.arrive(tenant)?;
        let submission = read_spec(job, tenant, self.slots.tenant)?;
        Ok((Signed { order, submission }, arriving))
    }

    fn arrive(self: &Rc<Self>, tenant: TenantId) -> Result<Arriving, Fault> {
        let mut arriving = self.deployments.arriving.borrow_mut();
        let count = arriving.entry(tenant).or_default();
        if *count >= MAX_ARRIVING {
            let why = format!("{count} orders of yours are being looked at");
            return Err(Fault::unavailable(1000, why));
        }
        *count += 1;
        Ok(Arriving { scheduler: Rc::clone(self), tenant })
    }

    /// Carries an order out, and returns once the job holds its regions and its program is loaded. To be run to its end,
    /// whether or not its bringer waits for that: what has begun is either undone or goes on.
    pub(crate) async fn deploy(
        self: Rc<Self>,
        bringer: Facet,
        Signed { order, submission }: Signed,
        _arriving: Arriving,
    ) -> Result<JobId, Fault> {
        let turn = self.setbacks.borrow_mut().take_turn(bringer.tenant(), self.uptime_ms())?;
        if turn > 0 {
            tokio::time::sleep(Duration::from_millis(turn)).await;
        }
        let mandate = self.vat.mandate(order.chain()).await;
        let mandate = mandate.map_err(|fault| refused(&bringer, &order, fault))?;
        let Submission { job, payload, args } = submission;
        let id = match self.accept(&bringer, mandate.facet(), &order, job).await {
            Ok(id) => id,
            Err(fault) => {
                mandate.end().await;
                return Err(fault);
            }
        };
        let live = self.begin_job(id, mandate.facet().clone(), args, Some(mandate));
        tokio::task::spawn_local(Rc::clone(&self).bring_up(id, Rc::clone(&live), payload));
        // A home that does not give what was left there keeps nobody here: the job may be cancelled meanwhile.
        loop {
            let changed = live.changed.notified();
            match self.state.borrow().job(id) {
                Some(job) if job.ready() => return Ok(id),
                Some(job) if !job.ended() => {}
                ended => {
                    let cancelled =
                        || Fault::unavailable(0, "the job was cancelled before it began");
                    return Err(ended.and_then(Job::fault).cloned().unwrap_or_else(cancelled));
                }
            }
            changed.await;
        }
    }

    /// Admits the job of an order (S1). When this returns, both are on disk, and nothing has been done for the job.
    async fn accept(
        &self,
        bringer: &Facet,
        facet: &Facet,
        order: &Order,
        job: NewJob,
    ) -> Result<JobId, Fault> {
        let brought = match (facet.kind(), facet.object()) {
            (kind::QUEUE, ObjectId::ROOT) => Standing::of(bringer).may_bring(Standing::of(facet)),
            _ => Err(Fault::not_found("an order is signed with a capability to the queue")),
        };
        brought.map_err(|fault| refused(bringer, order, fault))?;
        let (evidence, contact) = self.grounds().await;
        // From here on nothing is waited for: of two that bring the same order, the second one finds it noted.
        let now_us = self.now_us();
        let known = self.deployments.check(facet.tenant(), order, now_us);
        known.map_err(|fault| refused(bringer, order, fault))?;
        let deployment = Deployment::of(&job);
        // Both are asked once more: who brings it may not be allowed to any more (C2).
        let admit = || self.admit(facet, job, &evidence, contact);
        let id = bringer.commit(Rights::RUN, EMPTY, admit)??;
        let mut ledger = self.deployments.ledger.borrow_mut();
        let noted = ledger.as_mut().map_or(Ok(()), |ledger| {
            let state = self.state.borrow();
            ledger.accept(order, (id, deployment), now_us, |id| state.job(id).is_some())
        });
        if let Err(fault) = noted {
            let why = format!("this order could not be noted, so make a new one: {fault}");
            let fault = Fault::unavailable(0, why);
            let freed = self.state.borrow_mut().fail(id, fault.clone());
            facet.refund(Meter::Tasks, u64::from(freed));
            return Err(fault);
        }
        let (made_ms, by) = (order.at_us() / 1000, order.chain().holder());
        let detail =
            format!("job {} by order {}, made at {made_ms} ms by key {by}", id.0, order.id());
        self.vat.report("deployment", facet.tenant(), facet.cap_id(), detail);
        Ok(id)
    }

    /// A deployment has ended: nothing more is done by what its order was signed with.
    pub(crate) fn deployment_ended(&self, id: JobId, mandate: Mandate) {
        let mut ledger = self.deployments.ledger.borrow_mut();
        let noted = ledger.as_mut().map_or(Ok(()), |ledger| {
            let state = self.state.borrow();
            ledger.ended(id, |id| state.job(id).is_some())
        });
        if let Err(fault) = noted {
            tracing::warn!(%fault, job = id.0, "it is not on disk that a deployment has ended");
        }
        tokio::task::spawn_local(mandate.end());
    }

    fn now_us(&self) -> u64 {
        self.vat.now_ms().saturating_mul(1000)
    }
}

/// Tells the auditors which order was refused, and by whose key it claims to be. Gives the fault back.
fn refused(bringer: &Facet, order: &Order, fault: Fault) -> Fault {
    let detail = format!("order {} of key {}: {fault}", order.id(), order.chain().holder());
    bringer.vat().report("denial", bringer.tenant(), bringer.cap_id(), detail);
    fault
}

#[cfg(test)]
mod tests {
    use distos_abi::VatName;
    use distos_rpc::Gift;

    use super::*;

    fn spec() -> Vec<u8> {
        spec_with(b"\0asm")
    }

    fn spec_with(module: &[u8]) -> Vec<u8> {
        let mut message = capnp::message::Builder::new_default();
        let mut spec = message.init_root::<job_spec::Builder<'_>>();
        spec.set_name("count words");
        spec.set_module(module);
        let gift = Gift { ticket: vec![1; 32], node: None, vat: VatName::new("memory").unwrap() };
        gift.write(spec.reborrow().init_input());
        gift.write(spec.reborrow().init_output());
        spec.set_input_bytes(100);
        spec.reborrow().init_map_args(1).set(0, "map");
        capnp::serialize::write_message_to_words(&message)
    }

    fn read(bytes: &[u8]) -> Result<Submission, Fault> {
        read_spec(bytes, TenantId(1), 2)
    }

    #[test]
    fn what_was_signed_is_what_runs_and_nothing_is_behind_it() {
        let bytes = spec();
        let submission = read(&bytes).unwrap();
        assert!(submission.job.deployed && submission.job.tenant == TenantId(1));
        assert_eq!(
            (submission.job.name.as_str(), &submission.args.map[..]),
            ("count words", &["map".to_owned()][..])
        );
        let mut longer = bytes.clone();
        longer.extend([0; 8]);
        for wrong in [&longer[..], &bytes[..bytes.len() - 8], &bytes[..3], b""] {
            assert!(matches!(read(wrong), Err(Fault::Malformed(_))), "{} bytes", wrong.len());
        }
    }

    /// Or an order would let somebody pass on what its signer's image says that nobody may.
    #[test]
    fn an_order_is_brought_by_its_own_tenant_and_an_end_to_end_one_by_its_own_holder() {
        let (red, agent) = (Some(HolderKey([1; 32])), Some(HolderKey([2; 32])));
        let stands =
            |tenant, holder, end_to_end| Standing { tenant: TenantId(tenant), holder, end_to_end };
        let plain = stands(1, red, false);
        let sealed = stands(1, red, true);
        let table = [
            // Who brings it, and whether that may be one of red's that is not end to end, and one that is.
            (plain, true, false),
            (sealed, true, true),
            (stands(1, agent, false), true, false),
            (stands(1, agent, true), true, false),
            (stands(1, None, true), true, false),
            (stands(2, red, true), false, false),
        ];
        for (row, (bringer, of_plain, of_sealed)) in table.into_iter().enumerate() {
            assert_eq!(bringer.may_bring(plain).is_ok(), of_plain, "{row}");
            assert_eq!(bringer.may_bring(sealed).is_ok(), of_sealed, "{row}");
        }
        assert!(stands(1, None, true).may_bring(stands(1, None, true)).is_err(), "nobody's key");
    }

    #[test]
    fn the_largest_job_that_may_be_submitted_may_be_deployed() {
        let bytes = spec_with(&vec![7; MAX_MODULE_BYTES]);
        assert_eq!(read(&bytes).unwrap().payload.module.len(), MAX_MODULE_BYTES);
        assert!(read(&spec_with(&vec![7; MAX_MODULE_BYTES + 1])).is_err());
    }

    /// A stranger's word for how much is to come costs no memory.
    #[test]
    fn a_job_that_claims_to_be_longer_than_it_is_is_refused() {
        for words in [0x10_0000u32, u32::MAX] {
            let mut bytes = spec();
            bytes[4..8].copy_from_slice(&words.to_le_bytes());
            assert!(matches!(read(&bytes), Err(Fault::Malformed(_))), "{words} words");
        }
        assert!(matches!(read(&vec![0; MAX_SPEC_BYTES + 1]), Err(Fault::Malformed(_))));
    }

    proptest::proptest! {
        #[test]
        fn whatever_bytes_arrive_are_read_or_refused(
            at in 0usize..400,
            to in proptest::prelude::any::<u8>(),
        ) {
            let mut bytes = spec();
            let at = at % bytes.len();
            bytes[at] = to;
            if let Err(fault) = read(&bytes) {
                proptest::prop_assert!(matches!(fault, Fault::Malformed(_)), "{}", fault);
            }
        }
    }
}
