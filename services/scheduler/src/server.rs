//! The scheduler's calls, and what moves tasks along: evidence comes from the attestation
//! service, executors from the kernel's spawner, decisions from [`State`].

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::str::FromStr;
use std::time::{Duration, Instant};

use capnp::capability::FromClientHook;
use capnp::private::capability::ClientHook;
use distos_abi::{ByteRange, Fault, Meter, ObjectId, Rights, TenantId};
use distos_rpc::{Facet, Faceted, Mandate, Service, Vat, fail, fault_of, serve_capability};
use distos_schemas::attestation_capnp::{Standing, attestation, verdict};
use distos_schemas::executor_capnp::executor;
use distos_schemas::network_capnp::credentials;
use distos_schemas::scheduler_capnp::{job, queue};
use distos_types::kind;
use futures::future::LocalBoxFuture;
use tokio::sync::Notify;

use crate::cut::{Cut, PAGE_BYTES};
use crate::deploy::Deployments;
use crate::job::{JobServer, write_status};
use crate::policy::{Contact, Evidence, Limits, Policy, Request};
use crate::setback::Setbacks;
use crate::spec::{self, Args, Payload, Submission};
use crate::standing::{DRAIN_MS, MAX_DRAIN_MS, Watch};
use crate::state::{Job, JobId, NewJob, Placement, Refusal, Report, Slots, State, TaskState, Work};

/// The image's template for executors, and the edge to the evidence.
const EXECUTOR_TEMPLATE: &str = "executor";
pub(crate) const ATTESTATION_EDGE: &str = "attestation";
/// The setting of an image that names the edge to the service that knows whether this node is cut off from its
/// cluster. Without it, nobody is asked.
const CONTACT: &str = "contact";
/// How long the attestation service may take to say what it has decided: it has decided before.
const EVIDENCE_WAIT: Duration = Duration::from_secs(2);
/// How long it may take to have the TPM sign anew: a real one takes most of a second.
const ATTEST_WAIT: Duration = Duration::from_secs(5);
/// Not sooner again is it asked to.
const ATTEST_PAUSE: Duration = Duration::from_secs(5);
/// How long it may take to say whether this node is cut off.
const CONTACT_WAIT: Duration = Duration::from_secs(2);
/// Workers of an executor, unless the image's `workers` says otherwise.
const DEFAULT_WORKERS: u32 = 2;
/// Tenants that can keep all of their workers busy at the same time, unless `node-tasks` says
/// otherwise.
const BUSY_TENANTS: u32 = 2;
/// How often waiting jobs are looked at when nothing happens: whether their capability lives,
/// and whether there is new evidence.
const RECHECK: Duration = Duration::from_secs(1);
/// How long an executor stays when its tenant runs nothing: a node has room for so many at once,
/// and whoever comes next needs one. Long enough for a job's gifts, which wait 30 s.
const IDLE_MS: u64 = 60_000;
/// How often idle executors are looked for.
const IDLE_CHECK: Duration = Duration::from_secs(15);
/// How much of what is counted an image may ask for.
const COUNT: RangeInclusive<u32> = 1..=1024;
/// No bytes of the object: the queue has none.
pub(crate) const EMPTY: ByteRange = ByteRange { start: 0, end: 0 };

/// What is placed and what is ended are steps of what `specs/attestation` models, told where the verifier tells its own.
pub(crate) const TRACE: &str = "distos::trace::attestation";

/// The scheduler of a node.
pub(crate) struct Scheduler {
    pub(crate) vat: Vat,
    pub(crate) slots: Slots,
    pub(crate) state: RefCell<State>,
    started: Instant,
    pub(crate) setbacks: RefCell<Setbacks>,
    pub(crate) deployments: Deployments,
    /// How far this node's evidence reaches, and what that has ended.
    pub(crate) watch: RefCell<Watch>,
    /// Whether everything that runs is being ended: meanwhile nothing begins.
    pub(crate) ending: Cell<bool>,
    /// When new evidence was asked for last, because there was none that is fresh.
    attested: Cell<Option<Instant>>,
    /// What was said last about this node's contact to its cluster.
    contact: Cell<Option<Contact>>,
    /// What jobs that have not ended hold.
    pub(crate) live: RefCell<HashMap<JobId, Rc<Live>>>,
    /// Each tenant's executor, and when it was last asked for, in Unix milliseconds.
    pub(crate) executors: RefCell<HashMap<TenantId, (String, u64)>>,
    /// Something happened that may let a task be placed.
    pub(crate) work: Notify,
    /// A task or a job ended.
    pub(crate) ended: Notify,
}

/// What a job holds beside its state.
pub(crate) struct Live {
    /// The capability in whose name the job runs.
    facet: Facet,
    /// That it was ordered by, if it goes on without a connection.
    mandate: RefCell<Option<Mandate>>,
    args: Args,
    /// Where its program is loaded. Dropped when the job ends.
    executor: RefCell<Option<executor::Client>>,
    pub(crate) changed: Notify,
}

impl Live {
    /// Whether the job was made by the capability that this one was restored from, or by what was made from that.
    fn is_of(&self, facet: &Facet) -> bool {
        let mut above = facet.lineage();
        if facet.is_restored() {
            // The session's own.
            above.pop();
        }
        !above.is_empty() && self.facet.lineage().starts_with(&above)
    }
}

impl Scheduler {
    /// A scheduler without jobs, and the task that places.
    pub(crate) async fn start(vat: Vat) -> Result<Rc<dyn Service>, Fault> {
        let setting = |key| (key, vat.param(key));
        let tenant = number(setting("workers"), DEFAULT_WORKERS, COUNT)?;
        let node = number(setting("node-tasks"), BUSY_TENANTS * tenant, COUNT)?;
        let slots = Slots { tenant, node };
        let drain = number(setting("drain_ms"), DRAIN_MS, 0..=MAX_DRAIN_MS)?;
        let (at, node_id) = (vat.now_ms(), vat.node());
        tracing::debug!(target: TRACE, at, node = %node_id, drain, "begin");
        distos_noise::seal(&vat);
        tokio::task::spawn_local(distos_quic::attend(vat.clone()));
        let mut state = State::new(slots);
        let deployments = Deployments::open(&vat, &mut state)?;
        let scheduler = Rc::new(Scheduler {
            vat,
            slots,
            state: RefCell::new(state),
            started: Instant::now(),
            setbacks: RefCell::default(),
            deployments,
            watch: RefCell::new(Watch::new(drain)),
            ending: Cell::new(false),
            attested: Cell::new(None),
            contact: Cell::new(None),
            live: RefCell::default(),
            executors: RefCell::default(),
            work: Notify::new(),
            ended: Notify::new(),
        });
        tokio::task::spawn_local(Rc::clone(&scheduler).dispatch());
        tokio::task::spawn_local(Rc::clone(&scheduler).end_idle_executors());
        tokio::task::spawn_local(Rc::clone(&scheduler).follow_standing());
        Ok(scheduler)
    }

    fn policy(&self, contact: Contact) -> Policy {
        Policy { draining: self.vat.draining(), contact, caps: Limits::CAPS }
    }

    /// Whether this node is part of its cluster, as it is now.
    async fn contact(&self) -> Contact {
        let Some(edge) = self.vat.param(CONTACT) else { return Contact::Alone };
        let asked = async {
            let service: credentials::Client = self.vat.root(edge).await?;
            let answer =
                service.contact_request().send().promise.await.map_err(|e| fault_of(&e))?;
            let read = || -> capnp::Result<_> {
                let answer = answer.get()?;
                Ok((answer.get_heard(), answer.get_voters()))
            };
            read().map_err(|e| fault_of(&e))
        };
        let late = |_| Err(Fault::unavailable(1000, "the network service is silent"));
        let contact = match tokio::time::timeout(CONTACT_WAIT, asked).await.unwrap_or_else(late) {
            Ok((_, 0)) => Contact::Alone,
            Ok((heard, of)) => Contact::Voters { heard, of },
            Err(fault) => {
                tracing::warn!(%fault, "it is not known whether this node is cut off");
                // A cluster that does not vote does not begin to while nobody can say so.
                return match self.contact.get() {
                    Some(Contact::Alone) => Contact::Alone,
                    _ => Contact::Unknown,
                };
            }
        };
        self.contact.set(Some(contact));
        contact
    }

    /// The evidence as it is now, taken anew if it is old (A2). A service that does not answer is no evidence.
    async fn evidence(&self) -> Evidence {
        let known = self.verdict(EVIDENCE_WAIT, async |service| {
            let answer = service.status_request().send().promise.await.map_err(|e| fault_of(&e))?;
            answer.get().and_then(|one| evidence_of(one.get_verdict()?)).map_err(|e| fault_of(&e))
        });
        let known = known.await;
        let is_recent = self.attested.get().is_some_and(|at| at.elapsed() < ATTEST_PAUSE);
        if is_recent || !known.is_stale(self.vat.now_ms()) {
            return known;
        }
        self.attested.set(Some(Instant::now()));
        let new = self.verdict(ATTEST_WAIT, async |service| {
            let answer = service.attest_request().send().promise.await.map_err(|e| fault_of(&e))?;
            answer.get().and_then(|one| evidence_of(one.get_verdict()?)).map_err(|e| fault_of(&e))
        });
        let new = new.await;
        // Why there was none before says more than that none came now.
        if new.is_stale(self.vat.now_ms()) && !known.reason.is_empty() { known } else { new }
    }

    /// Asks the attestation service, and waits for so long.
    async fn verdict(
        &self,
        wait: Duration,
        ask: impl AsyncFnOnce(attestation::Client) -> Result<Evidence, Fault>,
    ) -> Evidence {
        let asked = async { ask(self.vat.root(ATTESTATION_EDGE).await?).await };
        let silent = |_| Err(Fault::unavailable(1000, "it is silent"));
        let answer = tokio::time::timeout(wait, asked).await.unwrap_or_else(silent);
        answer.unwrap_or_else(|fault: Fault| {
            Evidence::none(format!("the attestation service does not answer: {fault}"))
        })
    }

    /// The name of a tenant's executor, which is started if need be.
    async fn executor_of(&self, tenant: TenantId) -> Result<String, Fault> {
        self.check_failed()?;
        let mut request = self.vat.spawner().await?.start_request();
        request.get().set_template(EXECUTOR_TEMPLATE);
        request.get().set_tenant(tenant.0);
        let response = request.send().promise.await.map_err(|e| fault_of(&e))?;
        let name = response.get().and_then(|r| r.get_vat()).map_err(|e| fault_of(&e))?;
        let name = String::from_utf8_lossy(name.as_bytes()).into_owned();
        self.executors.borrow_mut().insert(tenant, (name.clone(), self.vat.now_ms()));
        // One that was being started when everything was ended is given nothing.
        self.check_failed()?;
        Ok(name)
    }

    async fn end_idle_executors(self: Rc<Self>) {
        loop {
            tokio::time::sleep(IDLE_CHECK).await;
            for (tenant, name) in self.idle_executors() {
                self.executors.borrow_mut().remove(&tenant);
                if let Err(fault) = self.stop_executor(&name).await {
                    tracing::warn!(%fault, name, "an idle executor could not be stopped");
                }
            }
        }
    }

    fn idle_executors(&self) -> Vec<(TenantId, String)> {
        let now_ms = self.vat.now_ms();
        let state = self.state.borrow();
        let executors = self.executors.borrow();
        let idle = executors.iter().filter(|(tenant, (_, used_ms))| {
            used_ms.saturating_add(IDLE_MS) < now_ms
                && state.jobs_of(**tenant).all(|(_, job)| job.ended())
        });
        idle.map(|(tenant, (name, _))| (*tenant, name.clone())).collect()
    }

    pub(crate) async fn stop_executor(&self, name: &str) -> Result<(), Fault> {
        let mut request = self.vat.spawner().await?.stop_request();
        request.get().set_vat(name);
        request.send().promise.await.map_err(|e| fault_of(&e))?;
        Ok(())
    }

    /// Admits a job in the name of `facet` (S1) and has its program loaded.
    async fn submit(
        self: Rc<Self>,
        facet: &Facet,
        submission: Submission,
    ) -> Result<JobServer, Fault> {
        let Submission { job, payload, args } = submission;
        let (evidence, contact) = self.grounds().await;
        let id = self.admit(facet, job, &evidence, contact)?;
        let live = self.begin_job(id, facet.clone(), args, None);
        tokio::task::spawn_local(Rc::clone(&self).bring_up(id, live, payload));
        Ok(JobServer { scheduler: self, id, facet: facet.clone(), may_cancel: true })
    }

    /// Evidence that was read a moment before may be from before this node failed.
    fn check_failed(&self) -> Result<(), Fault> {
        match self.watch.borrow().has_failed() {
            true => Err(Fault::StaleAttestation("this node has failed its attestation".into())),
            false => Ok(()),
        }
    }

    /// What a decision rests on, as it is now.
    pub(crate) async fn grounds(&self) -> (Evidence, Contact) {
        futures::join!(self.evidence(), self.contact())
    }

    /// Admits a job in the name of `facet` (S1); nothing is done for it yet.
    pub(crate) fn admit(
        &self,
        facet: &Facet,
        job: NewJob,
        evidence: &Evidence,
        contact: Contact,
    ) -> Result<JobId, Fault> {
        self.check_failed()?;
        let (now_ms, policy) = (self.vat.now_ms(), self.policy(contact));
        let admitted = facet.commit(Rights::RUN, EMPTY, || {
            let charge = |tasks| facet.charge(Meter::Tasks, tasks);
            self.state.borrow_mut().admit(now_ms, job, evidence, &policy, charge)
        })?;
        admitted.inspect_err(|fault| {
            let detail = format!("a job was not admitted: {fault}");
            self.vat.report("denial", facet.tenant(), facet.cap_id(), detail);
        })
    }

    /// What an admitted job holds from now on.
    pub(crate) fn begin_job(
        &self,
        id: JobId,
        facet: Facet,
        args: Args,
        mandate: Option<Mandate>,
    ) -> Rc<Live> {
        let live = Rc::new(Live {
            facet,
            mandate: RefCell::new(mandate),
            args,
            executor: RefCell::new(None),
            changed: Notify::new(),
        });
        self.live.borrow_mut().insert(id, Rc::clone(&live));
        live
    }

    /// What a job holds, unless it has ended.
    pub(crate) fn live(&self, id: JobId) -> Option<Rc<Live>> {
        self.live.borrow().get(&id).cloned()
    }

    /// Has the program of an admitted job loaded, and its regions withdrawn.
    pub(crate) async fn bring_up(self: Rc<Self>, id: JobId, live: Rc<Live>, payload: Payload) {
        match self.load(id, &live, payload).await {
            Ok(executor) => {
                *live.executor.borrow_mut() = Some(executor);
                self.state.borrow_mut().ready(id);
                self.wind_up(id, &live);
                live.changed.notify_waiters();
                self.work.notify_one();
            }
            Err(fault) => self.fail(id, fault),
        }
    }

    async fn load(
        &self,
        id: JobId,
        live: &Live,
        payload: Payload,
    ) -> Result<executor::Client, Fault> {
        let name = self.executor_of(live.facet.tenant()).await?;
        let executor: executor::Client = self.vat.root(&name).await?;
        let mut request = executor.load_request();
        let mut params = request.get();
        params.set_job(id.0);
        params.set_module(&payload.module);
        payload.input.write(params.reborrow().init_input());
        payload.output.write(params.reborrow().init_output());
        let mut secrets = params.init_secrets(payload.secrets.len() as u32);
        for (index, (file, gift)) in (0u32..).zip(&payload.secrets) {
            let mut secret = secrets.reborrow().get(index);
            secret.set_file(file.as_str());
            gift.write(secret.init_gift());
        }
        drop(payload);
        request.send().promise.await.map_err(|e| fault_of(&e))?;
        Ok(executor)
    }

    /// Places tasks whenever something happened that may allow it.
    async fn dispatch(self: Rc<Self>) {
        loop {
            let something = self.work.notified();
            if self.state.borrow().active().next().is_none() {
                something.await;
            } else {
                let _ = tokio::time::timeout(RECHECK, something).await;
            }
            self.end_jobs_without_authority();
            if self.state.borrow().candidate().is_some() {
                let (evidence, contact) = self.grounds().await;
                self.place_all(&evidence, contact);
            }
        }
    }

    /// A job runs in the name of the capability that it was submitted or ordered with, and ends with it:
    /// revoked, expired, or gone with its session.
    fn end_jobs_without_authority(&self) {
        let live: Vec<(JobId, Rc<Live>)> =
            self.live.borrow().iter().map(|(id, live)| (*id, Rc::clone(live))).collect();
        for (id, live) in live {
            if let Err(fault) = live.facet.commit(Rights::RUN, EMPTY, || ()) {
                self.fail(id, fault);
            }
        }
    }

    fn place_all(self: &Rc<Self>, evidence: &Evidence, contact: Contact) {
        loop {
            let candidate = self.state.borrow().candidate();
            let Some(id) = candidate else { return };
            let Some(live) = self.live(id) else { return };
            match self.place(id, &live, evidence, contact) {
                Ok(placement) => self.begin(placement, live),
                Err(Refusal::Wait) => return,
                Err(Refusal::Fail(fault)) => self.fail(id, fault),
            }
        }
    }

    /// One placement, under a guard of the job's capability (C2, S1).
    fn place(
        &self,
        id: JobId,
        live: &Live,
        evidence: &Evidence,
        contact: Contact,
    ) -> Result<Placement, Refusal> {
        self.check_failed().map_err(Refusal::Fail)?;
        if self.ending.get() {
            return Err(Refusal::Wait);
        }
        let (now_ms, policy) = (self.vat.now_ms(), self.policy(contact));
        let placed = live.facet.commit(Rights::RUN, EMPTY, || {
            self.state.borrow_mut().place(id, now_ms, evidence, &policy)
        });
        let placement = placed.map_err(Refusal::Fail)??;
        let fresh_until = placement.fresh_until_ms;
        let (node, job, task) = (self.vat.node(), placement.job.0, placement.task);
        tracing::debug!(target: TRACE, at = now_ms, %node, job, task, fresh_until, "place");
        Ok(placement)
    }

    fn begin(self: &Rc<Self>, placement: Placement, live: Rc<Live>) {
        let detail = format!(
            "job {} task {} on this node: evidence fresh until {} ms, rule {}",
            placement.job.0, placement.task, placement.fresh_until_ms, placement.rule.0
        );
        self.vat.report("placement", placement.tenant, live.facet.cap_id(), detail);
        live.changed.notify_waiters();
        tokio::task::spawn_local(Rc::clone(self).run(placement, live));
    }

    async fn run(self: Rc<Self>, placement: Placement, live: Rc<Live>) {
        let (id, task) = (placement.job, placement.task);
        let outcome = call(&live, placement).await;
        // What becomes of a task whose job has ended counts for nothing.
        let counts = self.state.borrow().job(id).is_some_and(|job| !job.ended());
        let (at, node, done) = (self.vat.now_ms(), self.vat.node(), counts && outcome.is_ok());
        tracing::debug!(target: TRACE, at, %node, job = id.0, task, done, "end");
        if let Err(fault @ Fault::LimitExceeded(_)) = &outcome {
            let detail = format!("job {} task {task}: {fault}", id.0);
            self.vat.report("limit", live.facet.tenant(), live.facet.cap_id(), detail);
        }
        let freed = self.state.borrow_mut().finish(id, task, outcome);
        self.after(id, &live, freed);
    }

    pub(crate) fn fail(&self, id: JobId, fault: Fault) {
        if let Some(live) = self.live(id) {
            let freed = self.state.borrow_mut().fail(id, fault);
            self.after(id, &live, freed);
        }
    }

    /// What follows every change of a job: quota goes back, watchers wake, an ended job is
    /// unloaded, and the next task gets its turn.
    pub(crate) fn after(&self, id: JobId, live: &Live, freed: u32) {
        if freed > 0 {
            live.facet.refund(Meter::Tasks, u64::from(freed));
        }
        self.wind_up(id, live);
        live.changed.notify_waiters();
        self.work.notify_one();
        self.ended.notify_waiters();
    }

    /// Drops what an ended job holds; its executor ends what still runs of it.
    fn wind_up(&self, id: JobId, live: &Live) {
        let goes_on = self.state.borrow().job(id).is_some_and(|job| !job.ended());
        if goes_on {
            return;
        }
        if self.live.borrow_mut().remove(&id).is_some() {
            self.note_end(id, live.facet.tenant());
        }
        if let Some(mandate) = live.mandate.take() {
            self.deployment_ended(id, mandate);
        }
        if let Some(executor) = live.executor.take() {
            let mut request = executor.unload_request();
            request.get().set_job(id.0);
            let sent = request.send().promise;
            tokio::task::spawn_local(async move {
                if let Err(error) = sent.await {
                    tracing::debug!(%error, job = id.0, "an executor did not unload a job");
                }
            });
        }
    }
}

impl Scheduler {
    /// Time that no clock's change makes shorter or longer.
    pub(crate) fn uptime_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// What became of a job decides how soon its tenant's next may start.
    fn note_end(&self, id: JobId, tenant: TenantId) {
        let state = self.state.borrow();
        let Some(job) = state.job(id) else { return };
        let mut setbacks = self.setbacks.borrow_mut();
        match job.state() {
            TaskState::Done => setbacks.succeeded(tenant),
            _ => setbacks.failed(tenant, self.uptime_ms(), job.fault()),
        }
    }
}

/// What a verdict says to whoever places work.
fn evidence_of(verdict: verdict::Reader<'_>) -> capnp::Result<Evidence> {
    Ok(Evidence {
        good: verdict.get_good(),
        fresh_until_ms: verdict.get_fresh_until_ms(),
        reason: String::from_utf8_lossy(verdict.get_reason()?.as_bytes()).into_owned(),
        failed: verdict.get_standing()? == Standing::Failed,
    })
}

/// A setting of the image: a number within these bounds.
fn number<N: Display + FromStr + PartialOrd>(
    (key, text): (&str, Option<&str>),
    default: N,
    bounds: RangeInclusive<N>,
) -> Result<N, Fault> {
    let Some(text) = text else { return Ok(default) };
    let parsed = text.parse().ok().filter(|number| bounds.contains(number));
    let (least, most) = (bounds.start(), bounds.end());
    parsed.ok_or_else(|| Fault::malformed(format!("{key} = {text}: {least} to {most}")))
}

/// Has the executor run one task. A job whose executor is gone cannot go on: its gifts were
/// withdrawn by the executor that died.
async fn call(live: &Live, placement: Placement) -> Result<Report, Fault> {
    let executor = live.executor.borrow().clone();
    let executor = executor.ok_or_else(|| Fault::unavailable(0, "the job was ended"))?;
    let mut request = executor.run_request();
    write_run(request.get(), live, &placement);
    let outcome = request.send().promise.await.and_then(|response| {
        let done = response.get()?;
        Ok(Report {
            output_bytes: done.get_output_bytes(),
            fuel: done.get_fuel(),
            micros: done.get_micros(),
        })
    });
    outcome.map_err(|error| match fault_of(&error) {
        Fault::Unavailable { why, .. } => Fault::unavailable(
            1000,
            format!("{why}; if the executor was restarted, submit the job again"),
        ),
        fault => fault,
    })
}

fn write_run(mut params: executor::run_params::Builder<'_>, live: &Live, placement: &Placement) {
    params.set_job(placement.job.0);
    params.set_task(placement.task);
    params.set_output_offset(u64::from(placement.task) * PAGE_BYTES);
    let (args, segments, from_output) = match &placement.work {
        Work::Map { input } => (&live.args.map, std::slice::from_ref(input), false),
        Work::Reduce { outputs } => (&live.args.reduce, outputs.as_slice(), true),
    };
    params.set_stdin_from_output(from_output);
    let mut words = params.reborrow().init_args(args.len() as u32);
    for (index, arg) in (0u32..).zip(args) {
        words.set(index, arg.as_str());
    }
    let mut stdin = params.reborrow().init_stdin(segments.len() as u32);
    for (index, segment) in (0u32..).zip(segments) {
        let mut entry = stdin.reborrow().get(index);
        entry.set_offset(segment.start);
        entry.set_len(segment.len());
    }
    let mut limits = params.init_limits();
    limits.set_fuel(placement.limits.fuel);
    limits.set_memory_bytes(placement.limits.memory_bytes);
    limits.set_output_bytes(placement.limits.output_bytes);
    limits.set_wall_ms(placement.limits.wall_ms);
}

impl Service for Scheduler {
    fn open(self: Rc<Self>, facet: Facet) -> Result<Box<dyn ClientHook>, Fault> {
        if facet.kind() != kind::QUEUE || facet.object() != ObjectId::ROOT {
            return Err(Fault::not_found("the scheduler serves its queue only"));
        }
        Ok(QueueServer { scheduler: self, facet }.into_hook())
    }

    /// Admitted jobs run to their end: their queue is not kept across a restart.
    fn drain(self: Rc<Self>) -> LocalBoxFuture<'static, ()> {
        Box::pin(async move {
            loop {
                let ended = self.ended.notified();
                if self.state.borrow().idle() {
                    return;
                }
                ended.await;
            }
        })
    }
}

/// A tenant's queue behind one capability.
struct QueueServer {
    scheduler: Rc<Scheduler>,
    facet: Facet,
}

impl QueueServer {
    fn into_hook(self) -> Box<dyn ClientHook> {
        capnp_rpc::new_client::<queue::Client, _>(self).into_client_hook()
    }

    fn job_server(&self, id: JobId) -> JobServer {
        let (scheduler, facet) = (Rc::clone(&self.scheduler), self.facet.clone());
        JobServer { scheduler, id, facet, may_cancel: true }
    }
}

impl Faceted for QueueServer {
    fn facet(&self) -> &Facet {
        &self.facet
    }

    fn with_facet(&self, facet: Facet) -> Box<dyn ClientHook> {
        QueueServer { scheduler: Rc::clone(&self.scheduler), facet }.into_hook()
    }
}

serve_capability!(QueueServer);

impl queue::Server for QueueServer {
    async fn executor(
        self: Rc<Self>,
        _: queue::ExecutorParams,
        mut results: queue::ExecutorResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::RUN).map_err(fail)?;
        let request = Request { tenant: self.facet.tenant(), limits: Limits::DEFAULT };
        let contact = self.scheduler.contact().await;
        self.scheduler.policy(contact).admit(request).map_err(fail)?;
        // Without a turn of its own: that is the submission's.
        let tenant = self.facet.tenant();
        let wait = self.scheduler.setbacks.borrow().wait_ms(tenant, self.scheduler.uptime_ms());
        if wait > 0 {
            tokio::time::sleep(Duration::from_millis(wait)).await;
            self.facet.check(Rights::RUN).map_err(fail)?;
            let contact = self.scheduler.contact().await;
            self.scheduler.policy(contact).admit(request).map_err(fail)?;
        }
        let name = self.scheduler.executor_of(self.facet.tenant()).await.map_err(fail)?;
        self.facet.reply(&mut results).set_vat(name.as_str());
        Ok(())
    }

    async fn plan(
        self: Rc<Self>,
        params: queue::PlanParams,
        mut results: queue::PlanResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::RUN).map_err(fail)?;
        let params = params.get()?;
        let workers = self.scheduler.slots.tenant;
        let cut = Cut::new(params.get_input_bytes(), params.get_pages_per_task(), workers);
        let cut = cut.map_err(fail)?;
        let mut reply = self.facet.reply(&mut results);
        reply.set_tasks(cut.maps());
        reply.set_pages_per_task(cut.pages_per_task());
        Ok(())
    }

    async fn submit(
        self: Rc<Self>,
        params: queue::SubmitParams,
        mut results: queue::SubmitResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::RUN).map_err(fail)?;
        let workers = self.scheduler.slots.tenant;
        let submission = spec::read(params.get()?.get_spec()?, self.facet.tenant(), workers)?;
        // The message with its copy of the module is not needed any more.
        drop(params);
        let submission = submission.map_err(fail)?;
        let scheduler = Rc::clone(&self.scheduler);
        let (tenant, now_ms) = (self.facet.tenant(), scheduler.uptime_ms());
        let wait = scheduler.setbacks.borrow_mut().take_turn(tenant, now_ms).map_err(fail)?;
        if wait > 0 {
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
        let submitted = scheduler.submit(&self.facet, submission).await;
        let client: job::Client = capnp_rpc::new_client(submitted.map_err(fail)?);
        self.facet.reply(&mut results).set_job(client);
        Ok(())
    }

    async fn list(
        self: Rc<Self>,
        _: queue::ListParams,
        mut results: queue::ListResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::LIST).map_err(fail)?;
        let state = self.scheduler.state.borrow();
        let jobs: Vec<(JobId, &Job)> = state.jobs_of(self.facet.tenant()).collect();
        let (now_ms, until_ms) = (self.scheduler.uptime_ms(), self.scheduler.draining_until_ms());
        let left_ms = until_ms.map(|until_ms| until_ms.saturating_sub(now_ms));
        let mut reply = self.facet.reply(&mut results);
        reply.set_drained_at_ms(left_ms.map_or(0, |left_ms| self.scheduler.vat.now_ms() + left_ms));
        let mut list = reply.init_jobs(jobs.len() as u32);
        for (index, (id, job)) in (0u32..).zip(jobs) {
            write_status(list.reborrow().get(index), id, job);
        }
        Ok(())
    }

    async fn deploy(
        self: Rc<Self>,
        params: queue::DeployParams,
        mut results: queue::DeployResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::RUN).map_err(fail)?;
        let (signed, arriving) = {
            let params = params.get()?;
            let (order, signature) = (params.get_order()?, params.get_signature()?);
            let looked = self.scheduler.look_at(&self.facet, order, signature, params.get_spec()?);
            looked.map_err(fail)?
        };
        // The message with its copy of the module is not needed any more.
        drop(params);
        let (scheduler, facet) = (Rc::clone(&self.scheduler), self.facet.clone());
        // Whoever leaves before the answer leaves nothing half done.
        let deployed = tokio::task::spawn_local(scheduler.deploy(facet, signed, arriving));
        let id = deployed.await.map_err(Fault::internal).and_then(|id| id).map_err(fail)?;
        let server = self.job_server(id);
        let mut reply = self.facet.reply(&mut results);
        reply.set_job(capnp_rpc::new_client(server));
        reply.set_id(id.0);
        Ok(())
    }

    async fn job(
        self: Rc<Self>,
        params: queue::JobParams,
        mut results: queue::JobResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::LIST).map_err(fail)?;
        let id = JobId(params.get()?.get_id());
        let own = |job: &Job| job.tenant() == self.facet.tenant();
        if !self.scheduler.state.borrow().job(id).is_some_and(own) {
            let none = Fault::not_found(format!("no job {} of yours is remembered", id.0));
            return Err(fail(self.facet.refused(none)));
        }
        // One that has ended holds nothing any more, and there is nothing to cancel.
        let live = self.scheduler.live(id);
        let may_cancel = live.is_none_or(|live| live.is_of(&self.facet));
        let server = JobServer { may_cancel, ..self.job_server(id) };
        self.facet.reply(&mut results).set_job(capnp_rpc::new_client(server));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_makes_no_sense_is_told_with_what_would() {
        let drain_ms = |text| number(("drain_ms", text), DRAIN_MS, 0..=MAX_DRAIN_MS);
        assert_eq!((drain_ms(None), drain_ms(Some("0"))), (Ok(60_000), Ok(0)));
        assert_eq!(drain_ms(Some("86400000")), Ok(MAX_DRAIN_MS));
        for wrong in ["86400001", "-1", "1 s", ""] {
            let fault = drain_ms(Some(wrong)).unwrap_err().to_string();
            assert!(fault.contains("drain_ms") && fault.contains("0 to 86400000"), "{fault}");
        }
        assert!(number(("workers", Some("0")), DEFAULT_WORKERS, COUNT).is_err());
    }
}
