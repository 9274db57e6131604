//! What a scheduler has on disk: the orders that it has carried out lately, and the deployments that have not ended.
//!
//! Both are in one file, so that an order and the job that it has made are there together or not at all, with one write.
//! No job is in it as it was submitted: nothing is run again by it.

use std::collections::BTreeMap;
use std::path::Path;

use distos_abi::{Fault, TenantId};
use distos_rpc::record::Record;
use distos_types::{Order, OrderId};
use serde::{Deserialize, Serialize};

use crate::cut::Cut;
use crate::orders::{Orders, Seen};
use crate::policy::Limits;
use crate::state::{JobId, NewJob};

/// Deployments that have not ended, of all tenants together.
const MAX_RUNNING: usize = 512;
/// What a deployment's owner is told when the scheduler was started again.
const LOST: &str = "the scheduler was restarted while this job ran; deploy it again";

/// As it is in the file.
#[derive(Serialize, Deserialize)]
struct Disk {
    /// The latest time at which an order was carried out, in microseconds since the Unix epoch.
    floor_us: u64,
    /// The number of the next job: that of a deployment is never another's.
    next_job: u64,
    orders: BTreeMap<String, SeenDisk>,
    /// Those that have not ended, and those of earlier runs that are remembered: after a restart they are the same.
    running: BTreeMap<u64, Deployment>,
}

#[derive(Serialize, Deserialize)]
struct SeenDisk {
    tenant: u32,
    at_us: u64,
}

/// What is remembered of a job that outlives its connection: what its owner knows it by, and how it was cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Deployment {
    tenant: u32,
    name: String,
    #[serde(default)]
    output: String,
    input_bytes: u64,
    pages_per_task: u32,
    reduce: bool,
}

impl Deployment {
    /// What is remembered of this one.
    pub(crate) fn of(job: &NewJob) -> Deployment {
        Deployment {
            tenant: job.tenant.0,
            name: job.name.clone(),
            output: job.output.clone(),
            input_bytes: job.cut.input_bytes(),
            pages_per_task: job.cut.pages_per_task(),
            reduce: job.reduce,
        }
    }

    /// As the job that it was. What its tasks could use is not remembered.
    fn job(&self) -> Result<NewJob, Fault> {
        let cut = Cut::new(self.input_bytes, self.pages_per_task, 1)?;
        let (name, output) = (self.name.clone(), self.output.clone());
        let (tenant, limits) = (TenantId(self.tenant), Limits::DEFAULT);
        Ok(NewJob { tenant, name, output, cut, reduce: self.reduce, limits, deployed: true })
    }
}

/// A job that an earlier run of the scheduler has left, and with what it has failed.
pub(crate) struct Lost {
    /// Its number.
    pub(crate) id: JobId,
    /// What it was.
    pub(crate) job: NewJob,
    /// For its owner.
    pub(crate) fault: Fault,
}

/// The file, and what is in it.
pub(crate) struct Ledger {
    record: Record,
    orders: Orders,
    next_job: JobId,
    /// Those that have not ended.
    running: BTreeMap<JobId, Deployment>,
    /// Those that an earlier run has left, and that are not forgotten yet.
    lost: BTreeMap<JobId, Deployment>,
}

impl Ledger {
    /// Reads it, or begins a new one.
    ///
    /// # Errors
    /// [`Fault::Corrupt`] if it is damaged: which orders were carried out is not guessed.
    pub(crate) fn open(directory: &Path) -> Result<Ledger, Fault> {
        const REMEDY: &str = "remove it, and wait for eleven minutes before this node is started: \
             what was ordered before is too old then";
        let record = Record::new(directory.join("orders"), "distos-orders", REMEDY);
        let (mut orders, mut lost, mut next_job) = Default::default();
        if let Some(disk) = record.load::<Disk>()? {
            let damaged = || Fault::Corrupt(format!("{}: {REMEDY}", record.path().display()));
            let seen = disk.orders.iter().map(|(id, seen)| {
                let mut bytes = [0; 32];
                hex::decode_to_slice(id, &mut bytes).map_err(|_| damaged())?;
                Ok((OrderId(bytes), Seen { tenant: TenantId(seen.tenant), at_us: seen.at_us }))
            });
            orders = Orders::restore(seen.collect::<Result<_, Fault>>()?, disk.floor_us);
            lost = disk.running.into_iter().map(|(id, job)| (JobId(id), job)).collect();
            next_job = disk.next_job;
        }
        let running = BTreeMap::new();
        Ok(Ledger { record, orders, next_job: JobId(next_job), running, lost })
    }

    /// The number below which none is given to another job.
    pub(crate) fn next_job(&self) -> JobId {
        self.next_job
    }

    /// Those that had not ended when the scheduler did, the oldest first.
    ///
    /// # Errors
    /// [`Fault::Malformed`] if one is none.
    pub(crate) fn lost(&self) -> Result<Vec<Lost>, Fault> {
        let lost = |(id, deployment): (&JobId, &Deployment)| {
            let fault = Fault::unavailable(0, LOST);
            Ok(Lost { id: *id, job: deployment.job()?, fault })
        };
        self.lost.iter().map(lost).collect()
    }

    /// Keeps of those that an earlier run has left the ones that are `remembered`.
    pub(crate) fn keep(&mut self, remembered: impl Fn(JobId) -> bool) {
        self.lost.retain(|id, _| remembered(*id));
    }

    /// Whether this order of `tenant`'s may be carried out at `now_us`. Errors are those of [`Orders::check`], and
    /// [`Fault::Unavailable`] if too many deployments have not ended.
    pub(crate) fn check(&self, tenant: TenantId, order: &Order, now_us: u64) -> Result<(), Fault> {
        self.orders.check(tenant, order.id(), order.at_us(), now_us)?;
        if self.running.len() >= MAX_RUNNING {
            return Err(Fault::unavailable(1000, "too many deployments have not ended"));
        }
        Ok(())
    }

    /// Notes that an order is carried out, and the job that it makes; both are durable when this returns. Those of
    /// earlier runs stay that are `remembered`.
    ///
    /// # Errors
    /// It may be on disk or not. The order is not to be carried out, and not to be taken again.
    pub(crate) fn accept(
        &mut self,
        order: &Order,
        (id, deployment): (JobId, Deployment),
        now_us: u64,
        remembered: impl Fn(JobId) -> bool,
    ) -> Result<(), Fault> {
        let seen = Seen { tenant: TenantId(deployment.tenant), at_us: order.at_us() };
        self.orders.note(order.id(), seen, now_us);
        self.next_job = self.next_job.max(JobId(id.0.saturating_add(1)));
        self.running.insert(id, deployment);
        let saved = self.save(remembered);
        if saved.is_err() {
            self.running.remove(&id);
        }
        saved
    }

    /// A deployment has ended.
    ///
    /// # Errors
    /// What the disk says. Then a restart shows it as one that has failed, unless something is written before.
    pub(crate) fn ended(
        &mut self,
        id: JobId,
        remembered: impl Fn(JobId) -> bool,
    ) -> Result<(), Fault> {
        match self.running.remove(&id) {
            Some(_) => self.save(remembered),
            None => Ok(()),
        }
    }

    fn save(&mut self, remembered: impl Fn(JobId) -> bool) -> Result<(), Fault> {
        self.keep(remembered);
        let (seen, floor_us) = self.orders.kept();
        let orders = seen.iter().map(|(id, seen)| {
            (id.to_string(), SeenDisk { tenant: seen.tenant.0, at_us: seen.at_us })
        });
        let running = self.running.iter().chain(&self.lost);
        let running = running.map(|(id, job)| (id.0, job.clone()));
        self.record.save(&Disk {
            floor_us,
            next_job: self.next_job.0,
            orders: orders.collect(),
            running: running.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use distos_abi::{Authority, CapId, Kind, NodeId, ObjectId, VatName};
    use distos_types::{Chain, HolderSecret, ORDER_DRIFT_US, Root};

    use super::*;
    use crate::orders::{MAX_ORDERS, MAX_ORDERS_OF_TENANT};
    use crate::state::MAX_HISTORY;

    const NOW_US: u64 = 1_800_000_000_000_000;
    const RED: TenantId = TenantId(1);

    fn order(at_us: u64) -> Order {
        let secret = HolderSecret::from_seed([1; 32]);
        let root = Root {
            node: NodeId(secret.key().0),
            key_epoch: 1,
            vat: VatName::new("scheduler").unwrap(),
            kind: Kind(1),
            object: ObjectId::ROOT,
            cap: CapId(1),
            holder: secret.key(),
            authority: Authority::FULL,
            nonce: [0; 16],
        };
        Order::sign(&Chain::issue(root, &secret), b"job", at_us, &secret).unwrap().0
    }

    fn job(tenant: TenantId, name: &str) -> NewJob {
        let cut = Cut::new(5 * 65_536, 2, 1).unwrap();
        let limits = Limits::DEFAULT;
        let (name, output) = (name.into(), "\"".repeat(64));
        NewJob { tenant, name, output, cut, reduce: true, limits, deployed: true }
    }

    fn accept(ledger: &mut Ledger, number: u64, at_us: u64) -> Result<(), Fault> {
        ledger.check(RED, &order(at_us), NOW_US)?;
        let deployment = Deployment::of(&job(RED, "words"));
        ledger.accept(&order(at_us), (JobId(number), deployment), NOW_US, |_| true)
    }

    /// Or a job would run twice that was ordered once.
    #[test]
    fn an_order_is_not_taken_again_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(directory.path()).unwrap();
        assert_eq!(accept(&mut ledger, 1, NOW_US), Ok(()));
        assert!(matches!(accept(&mut ledger, 2, NOW_US), Err(Fault::Unauthenticated(_))));
        let mut ledger = Ledger::open(directory.path()).unwrap();
        assert!(matches!(accept(&mut ledger, 2, NOW_US), Err(Fault::Unauthenticated(_))));
        assert_eq!(accept(&mut ledger, 2, NOW_US + 1), Ok(()));
    }

    #[test]
    fn whoever_deployed_a_job_is_told_after_a_restart_that_it_is_lost_and_its_number_is_no_others()
    {
        let directory = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(directory.path()).unwrap();
        assert!(ledger.lost().unwrap().is_empty());
        for number in [3, 7] {
            accept(&mut ledger, number, NOW_US + number).unwrap();
        }
        ledger.ended(JobId(7), |_| true).unwrap();
        for restart in 0..2 {
            let ledger = Ledger::open(directory.path()).unwrap();
            assert_eq!(ledger.next_job(), JobId(8));
            let lost = ledger.lost().unwrap();
            let [Lost { id, job, fault }] = &lost[..] else { panic!("{} are lost", lost.len()) };
            assert_eq!((*id, job.name.as_str(), job.cut.maps()), (JobId(3), "words", 3));
            assert!(job.deployed && job.reduce && job.tenant == RED, "{restart}");
            assert!(
                matches!(fault, Fault::Unavailable { why, .. } if why.contains("deploy it again"))
            );
        }
        // Once it is forgotten, it is.
        let mut ledger = Ledger::open(directory.path()).unwrap();
        ledger
            .accept(&order(NOW_US), (JobId(8), Deployment::of(&job(RED, "x"))), NOW_US, |id| {
                id != JobId(3)
            })
            .unwrap();
        let ledger = Ledger::open(directory.path()).unwrap();
        assert_eq!(
            ledger.lost().unwrap().iter().map(|lost| lost.id).collect::<Vec<_>>(),
            [JobId(8)]
        );
    }

    /// A file that is too long to be read again would forget everything.
    #[test]
    fn as_much_as_there_can_be_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(directory.path()).unwrap();
        let mut number: u64 = 0;
        for tenant in 0..(MAX_ORDERS / MAX_ORDERS_OF_TENANT) as u32 {
            for _ in 0..MAX_ORDERS_OF_TENANT {
                number += 1;
                let mut id = [0xff; 32];
                id[..8].copy_from_slice(&number.to_le_bytes());
                let seen = Seen { tenant: TenantId(u32::MAX - tenant), at_us: NOW_US + number };
                ledger.orders.note(OrderId(id), seen, NOW_US);
            }
        }
        for number in 0..MAX_RUNNING as u64 - 1 {
            let deployment = Deployment::of(&job(TenantId(u32::MAX), &"\"".repeat(64)));
            ledger.running.insert(JobId(u64::MAX - 1 - number), deployment);
        }
        assert_eq!(ledger.orders.kept().0.len(), MAX_ORDERS);
        ledger.running.insert(JobId(1), Deployment::of(&job(RED, "words")));
        for number in 0..MAX_HISTORY as u64 {
            let deployment = Deployment::of(&job(TenantId(u32::MAX), &"\"".repeat(64)));
            ledger.lost.insert(JobId(u64::MAX / 2 - number), deployment);
        }
        ledger.save(|_| true).unwrap();
        assert!(matches!(accept(&mut ledger, 2, NOW_US), Err(Fault::Unavailable { .. })));
        let read = Ledger::open(directory.path()).unwrap();
        assert_eq!(read.orders, ledger.orders);
        assert_eq!(read.lost.len(), MAX_RUNNING + MAX_HISTORY);
        // Or a node that was full when it was killed takes nothing more, however often it is started.
        let later_us = NOW_US + 2 * ORDER_DRIFT_US;
        assert_eq!(read.check(RED, &order(later_us), later_us), Ok(()));
    }

    #[test]
    fn a_damaged_file_is_not_taken_for_nothing_seen() {
        let directory = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(directory.path()).unwrap();
        accept(&mut ledger, 1, NOW_US).unwrap();
        let path = directory.path().join("orders");
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 3;
        bytes[last] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(Ledger::open(directory.path()), Err(Fault::Corrupt(_))));
    }
}
