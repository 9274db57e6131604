//! Jobs, their tasks and where they stand: a pure state machine. Time, evidence, policy and the
//! quota's charge arrive as arguments, and every answer says how many tasks' quota goes back.
//!
//! Life of a job: admitted (its tasks' quota is charged), ready (its program is loaded), its map
//! tasks in input order, its reduce task after all of them, ended. The first task that fails ends
//! the job. A tenant's jobs run first in, first out; tenants take turns.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};

use distos_abi::{ByteRange, Fault, TenantId};

use crate::cut::{Cut, PAGE_BYTES};
use crate::policy::{Evidence, Limits, Policy, Request, Rule};

/// Jobs of one tenant that have not ended.
pub const MAX_ACTIVE_JOBS: usize = 8;
/// Ended jobs that are remembered on this node.
pub const MAX_HISTORY: usize = 256;
/// How long admitted tasks wait for the node's evidence to be renewed, and for its cluster to be heard, before
/// their job fails.
pub const STALE_PATIENCE_MS: u64 = 30_000;

/// A job's number on this node, while this scheduler runs; that of a deployed one is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

/// Where a task or a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// It waits.
    Queued,
    /// It runs.
    Running,
    /// It ended well.
    Done,
    /// It ended with a fault.
    Failed,
    /// It was ended, or never begun.
    Cancelled,
}

/// What a task that ended well says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How much of its output page is filled.
    pub output_bytes: u32,
    /// Fuel used.
    pub fuel: u64,
    /// Time used, in microseconds.
    pub micros: u64,
}

/// One task.
#[derive(Clone, Debug)]
pub struct Task {
    /// Where it stands.
    pub state: TaskState,
    /// What it reported; zeros until it is done.
    pub report: Report,
    /// Why it failed.
    pub fault: Option<Fault>,
}

impl Task {
    const QUEUED: Task = Task {
        state: TaskState::Queued,
        report: Report { output_bytes: 0, fuel: 0, micros: 0 },
        fault: None,
    };
}

/// A job that asks for admission.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// Whose it is.
    pub tenant: TenantId,
    /// What its owner calls it.
    pub name: String,
    /// What its owner calls the region that its output goes to; may be empty.
    pub output: String,
    /// Its map tasks.
    pub cut: Cut,
    /// Whether a reduce task follows.
    pub reduce: bool,
    /// What each task may use, settled.
    pub limits: Limits,
    /// Whether it goes on without the connection over which it was asked for.
    pub deployed: bool,
}

/// One job.
#[derive(Clone, Debug)]
pub struct Job {
    spec: NewJob,
    /// Map tasks in input order; the reduce task last.
    tasks: Vec<Task>,
    ready: bool,
    next_map: u32,
    maps_done: u32,
    running: u32,
    ended: Option<TaskState>,
    fault: Option<Fault>,
}

impl Job {
    fn new(spec: NewJob) -> Job {
        let count = spec.cut.maps() as usize + usize::from(spec.reduce);
        Job {
            spec,
            tasks: vec![Task::QUEUED; count],
            ready: false,
            next_map: 0,
            maps_done: 0,
            running: 0,
            ended: None,
            fault: None,
        }
    }

    /// Whose it is.
    pub fn tenant(&self) -> TenantId {
        self.spec.tenant
    }

    /// What its owner calls it.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// By what name its owner finds its output; may be empty.
    pub fn output(&self) -> &str {
        &self.spec.output
    }

    /// What each of its tasks may use.
    pub fn limits(&self) -> Limits {
        self.spec.limits
    }

    /// Whether it goes on without the connection over which it was asked for.
    pub fn deployed(&self) -> bool {
        self.spec.deployed
    }

    /// Whether its program was loaded, so that its tasks could be placed.
    pub fn ready(&self) -> bool {
        self.ready
    }

    /// Its tasks: map tasks in input order, the reduce task last.
    pub fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    /// The input of a task; empty for the reduce task.
    pub fn input(&self, task: u32) -> ByteRange {
        self.spec.cut.input(task)
    }

    /// The index of the reduce task; the number of tasks if there is none.
    pub fn reduce_index(&self) -> u32 {
        self.spec.cut.maps()
    }

    /// How many tasks are in a state.
    pub fn count(&self, state: TaskState) -> u32 {
        self.tasks.iter().filter(|task| task.state == state).count() as u32
    }

    /// Where the job as a whole stands.
    pub fn state(&self) -> TaskState {
        let begun = self.next_map > 0;
        self.ended.unwrap_or(if begun { TaskState::Running } else { TaskState::Queued })
    }

    /// Whether nothing more will happen to its tasks' states.
    pub fn ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Why it failed.
    pub fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    /// Whether nothing of it runs, and it has not ended.
    pub fn is_waiting(&self) -> bool {
        self.running == 0 && !self.ended()
    }

    /// The task that may start next, if any may.
    fn next(&self) -> Option<u32> {
        if !self.ready || self.ended() {
            return None;
        }
        let maps = self.spec.cut.maps();
        if self.next_map < maps {
            return Some(self.next_map);
        }
        let reduce_waits =
            self.tasks.get(maps as usize).is_some_and(|task| task.state == TaskState::Queued);
        (reduce_waits && self.maps_done == maps).then_some(maps)
    }

    fn work(&self, task: u32) -> Work {
        if task < self.spec.cut.maps() {
            return Work::Map { input: self.input(task) };
        }
        let outputs = self.tasks[..task as usize].iter().zip(0u64..).map(|(map, page)| {
            let start = page * PAGE_BYTES;
            ByteRange { start, end: start + u64::from(map.report.output_bytes) }
        });
        Work::Reduce { outputs: outputs.collect() }
    }

    /// Ends the job: what waits is cancelled, what runs counts as cancelled and gives its quota
    /// back when it really ends. Returns how many tasks' quota is free at once.
    fn end(&mut self, state: TaskState, fault: Option<Fault>) -> u32 {
        if self.ended() {
            return 0;
        }
        self.ended = Some(state);
        self.fault = fault;
        let freed = self.count(TaskState::Queued);
        for task in &mut self.tasks {
            if matches!(task.state, TaskState::Queued | TaskState::Running) {
                task.state = TaskState::Cancelled;
            }
        }
        freed
    }
}

/// What a placed task reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// Bytes of the job's input.
    Map {
        /// Which.
        input: ByteRange,
    },
    /// What the map tasks wrote, in order, as bytes of the job's output.
    Reduce {
        /// The filled part of each map task's page.
        outputs: Vec<ByteRange>,
    },
}

/// A decision to run a task on this node, and what it rests on (S1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Which job.
    pub job: JobId,
    /// Which of its tasks.
    pub task: u32,
    /// Whose.
    pub tenant: TenantId,
    /// What it reads.
    pub work: Work,
    /// What it may use.
    pub limits: Limits,
    /// The rule that allowed it.
    pub rule: Rule,
    /// Until when the node's evidence is fresh.
    pub fresh_until_ms: u64,
}

/// Why a task was not placed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing is wrong with the job; try again soon.
    Wait,
    /// The job cannot go on.
    Fail(Fault),
}

/// How much may run at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// Tasks of one tenant: the workers of its executor.
    pub tenant: u32,
    /// Tasks of all tenants together.
    pub node: u32,
}

#[derive(Clone, Debug, Default)]
struct Tenant {
    /// Jobs that have not ended, oldest first.
    active: VecDeque<JobId>,
    in_flight: u32,
}

/// Every job of this node.
#[derive(Clone, Debug)]
pub struct State {
    slots: Slots,
    jobs: BTreeMap<JobId, Job>,
    tenants: BTreeMap<TenantId, Tenant>,
    /// Jobs that ended and of which nothing runs any more, oldest first.
    history: VecDeque<JobId>,
    /// Whose turn it was.
    last: TenantId,
    in_flight: u32,
    next: u64,
    stale_since_ms: Option<u64>,
}

impl State {
    /// No jobs yet.
    pub fn new(slots: Slots) -> State {
        State {
            slots,
            jobs: BTreeMap::new(),
            tenants: BTreeMap::new(),
            history: VecDeque::new(),
            last: TenantId::OPERATOR,
            in_flight: 0,
            next: 1,
            stale_since_ms: None,
        }
    }

    /// The number that the next job gets.
    pub fn next_id(&self) -> JobId {
        JobId(self.next)
    }

    /// No job gets a number below this one.
    pub fn begin_at(&mut self, next: JobId) {
        self.next = self.next.max(next.0);
    }

    /// Remembers a job of an earlier run, which has failed with that: it holds nothing, and is forgotten as others are.
    pub fn lost(&mut self, id: JobId, spec: NewJob, fault: Fault) {
        let mut job = Job::new(spec);
        job.end(TaskState::Failed, Some(fault));
        self.jobs.insert(id, job);
        self.begin_at(JobId(id.0.saturating_add(1)));
        self.settle(id);
    }

    /// Admits a job: fresh evidence, a policy decision, then the quota, which `charge` takes for
    /// all of its tasks at once or refuses (S1). Nothing is charged unless it returns a number.
    pub fn admit(
        &mut self,
        now_ms: u64,
        spec: NewJob,
        evidence: &Evidence,
        policy: &Policy,
        charge: impl FnOnce(u64) -> Result<(), Fault>,
    ) -> Result<JobId, Fault> {
        evidence.check(now_ms)?;
        policy.admit(Request { tenant: spec.tenant, limits: spec.limits })?;
        // Not before: whoever is refused must not make those wait longer who wait for the same.
        self.stale_since_ms = None;
        let active = self.tenants.get(&spec.tenant).map_or(0, |tenant| tenant.active.len());
        if active >= MAX_ACTIVE_JOBS {
            let why = format!("{active} jobs of yours have not ended; wait for one");
            return Err(Fault::unavailable(1000, why));
        }
        let job = Job::new(spec);
        charge(job.tasks.len() as u64)?;
        let id = JobId(self.next);
        self.next += 1;
        self.tenants.entry(job.tenant()).or_default().active.push_back(id);
        self.jobs.insert(id, job);
        Ok(id)
    }

    /// The job's program is loaded: its tasks may be placed, unless it has ended meanwhile.
    pub fn ready(&mut self, id: JobId) {
        if let Some(job) = self.jobs.get_mut(&id) {
            job.ready = !job.ended();
        }
    }

    /// The job whose task is to be placed next, if a task waits and there is room for it.
    pub fn candidate(&self) -> Option<JobId> {
        if self.in_flight >= self.slots.node {
            return None;
        }
        let after = self.tenants.range((Excluded(self.last), Unbounded));
        let turn = after.chain(self.tenants.range(..=self.last));
        let with_room = turn.filter(|(_, tenant)| tenant.in_flight < self.slots.tenant);
        with_room
            .flat_map(|(_, tenant)| tenant.active.iter().copied())
            .find(|id| self.jobs.get(id).is_some_and(|job| job.next().is_some()))
    }

    /// Places the next task of a job, if the evidence is good and fresh at `now_ms`, the node is not cut off from
    /// its cluster, and the policy allows it (S1). Its quota was charged at admission.
    pub fn place(
        &mut self,
        id: JobId,
        now_ms: u64,
        evidence: &Evidence,
        policy: &Policy,
    ) -> Result<Placement, Refusal> {
        if let Err(fault) = evidence.check(now_ms).and_then(|()| policy.contact.check()) {
            let since = *self.stale_since_ms.get_or_insert(now_ms);
            let patient = now_ms.saturating_sub(since) < STALE_PATIENCE_MS;
            return Err(if patient { Refusal::Wait } else { Refusal::Fail(fault) });
        }
        self.stale_since_ms = None;
        let job = self.jobs.get_mut(&id).ok_or(Refusal::Wait)?;
        let tenant = self.tenants.entry(job.tenant()).or_default();
        if self.in_flight >= self.slots.node || tenant.in_flight >= self.slots.tenant {
            return Err(Refusal::Wait);
        }
        let task = job.next().ok_or(Refusal::Wait)?;
        let request = Request { tenant: job.tenant(), limits: job.limits() };
        let rule = policy.decide(request).map_err(Refusal::Fail)?;
        let work = job.work(task);
        job.tasks[task as usize].state = TaskState::Running;
        job.next_map = job.next_map.saturating_add(1).min(job.spec.cut.maps());
        job.running += 1;
        tenant.in_flight += 1;
        self.in_flight += 1;
        self.last = job.tenant();
        Ok(Placement {
            job: id,
            task,
            tenant: job.tenant(),
            work,
            limits: job.limits(),
            rule,
            fresh_until_ms: evidence.fresh_until_ms,
        })
    }

    /// A placed task ended. Returns how many tasks' quota goes back.
    pub fn finish(&mut self, id: JobId, task: u32, outcome: Result<Report, Fault>) -> u32 {
        let Some(job) = self.jobs.get_mut(&id) else { return 0 };
        let mut freed = 1;
        job.running -= 1;
        self.in_flight -= 1;
        if let Some(tenant) = self.tenants.get_mut(&job.spec.tenant) {
            tenant.in_flight -= 1;
        }
        let maps = job.spec.cut.maps();
        let entry = &mut job.tasks[task as usize];
        if entry.state == TaskState::Running {
            match outcome {
                Ok(report) => {
                    entry.state = TaskState::Done;
                    entry.report = report;
                    job.maps_done += u32::from(task < maps);
                    if job.tasks.iter().all(|task| task.state == TaskState::Done) {
                        freed += job.end(TaskState::Done, None);
                    }
                }
                Err(fault) => {
                    entry.state = TaskState::Failed;
                    entry.fault = Some(fault.clone());
                    freed += job.end(TaskState::Failed, Some(fault));
                }
            }
        }
        self.settle(id);
        freed
    }

    /// The job cannot go on. Returns how many tasks' quota goes back now; the rest does when what
    /// runs has ended.
    pub fn fail(&mut self, id: JobId, fault: Fault) -> u32 {
        self.end(id, TaskState::Failed, Some(fault))
    }

    /// Its owner wants it to end. Returns like [`State::fail`].
    pub fn cancel(&mut self, id: JobId) -> u32 {
        self.end(id, TaskState::Cancelled, None)
    }

    fn end(&mut self, id: JobId, state: TaskState, fault: Option<Fault>) -> u32 {
        let freed = self.jobs.get_mut(&id).map_or(0, |job| job.end(state, fault));
        self.settle(id);
        freed
    }

    /// Puts the books right after a job may have ended.
    fn settle(&mut self, id: JobId) {
        let Some(job) = self.jobs.get(&id).filter(|job| job.ended()) else { return };
        let owner = job.tenant();
        if let Some(tenant) = self.tenants.get_mut(&owner) {
            tenant.active.retain(|active| *active != id);
            if tenant.active.is_empty() && tenant.in_flight == 0 {
                self.tenants.remove(&owner);
            }
        }
        if job.running == 0 && !self.history.contains(&id) {
            self.history.push_back(id);
        }
        while self.history.len() > MAX_HISTORY {
            self.forget_one();
        }
    }

    /// Forgets the oldest job that has ended, of the tenant that has most of them: nobody's are forgotten for
    /// another's.
    fn forget_one(&mut self) {
        let mut counts: BTreeMap<TenantId, usize> = BTreeMap::new();
        let owner = |id: &JobId| self.jobs.get(id).map_or(TenantId::OPERATOR, Job::tenant);
        for id in &self.history {
            *counts.entry(owner(id)).or_default() += 1;
        }
        let most = counts.into_iter().max_by_key(|(_, count)| *count).map(|(tenant, _)| tenant);
        let oldest = self.history.iter().position(|id| Some(owner(id)) == most);
        if let Some(forgotten) = oldest.and_then(|oldest| self.history.remove(oldest)) {
            self.jobs.remove(&forgotten);
        }
    }

    /// A job, unless it is forgotten.
    pub fn job(&self, id: JobId) -> Option<&Job> {
        self.jobs.get(&id)
    }

    /// A tenant's jobs, oldest first.
    pub fn jobs_of(&self, tenant: TenantId) -> impl Iterator<Item = (JobId, &Job)> {
        self.jobs.iter().filter(move |(_, job)| job.tenant() == tenant).map(|(id, job)| (*id, job))
    }

    /// Jobs that have not ended.
    pub fn active(&self) -> impl Iterator<Item = JobId> {
        self.tenants.values().flat_map(|tenant| tenant.active.iter().copied())
    }

    /// Whether nothing runs and nothing waits.
    pub fn idle(&self) -> bool {
        self.in_flight == 0 && self.active().next().is_none()
    }
}

#[cfg(test)]
mod tests;
