//! A job's own calls, and how its state is told.

use std::rc::Rc;
use std::time::Duration;

use capnp::capability::FromClientHook;
use capnp::private::capability::ClientHook;
use distos_abi::{Fault, Rights};
use distos_rpc::{Facet, Faceted, fail, serve_capability};
use distos_schemas::scheduler_capnp as wire;
use distos_schemas::scheduler_capnp::job;

use crate::server::{EMPTY, Scheduler};
use crate::state::{Job, JobId, TaskState};

/// How long `wait` waits.
const WAIT: Duration = Duration::from_secs(1);

/// One job, for whoever asked their queue for it: what may be done with it goes by the queue's capability.
pub(crate) struct JobServer {
    pub(crate) scheduler: Rc<Scheduler>,
    pub(crate) id: JobId,
    pub(crate) facet: Facet,
    /// Whether whoever asked has made the job, or lent what it was made by.
    pub(crate) may_cancel: bool,
}

impl JobServer {
    /// Looks at the job, which is gone once too many others have ended after it.
    fn look<T>(&self, look: impl FnOnce(&Job) -> T) -> Result<T, capnp::Error> {
        let state = self.scheduler.state.borrow();
        let job = state.job(self.id);
        job.map(look)
            .ok_or_else(|| fail(Fault::not_found(format!("job {} ended long ago", self.id.0))))
    }
}

impl Faceted for JobServer {
    fn facet(&self) -> &Facet {
        &self.facet
    }

    fn with_facet(&self, facet: Facet) -> Box<dyn ClientHook> {
        let (scheduler, id) = (Rc::clone(&self.scheduler), self.id);
        let server = JobServer { scheduler, id, facet, may_cancel: self.may_cancel };
        capnp_rpc::new_client::<job::Client, _>(server).into_client_hook()
    }
}

serve_capability!(JobServer);

impl job::Server for JobServer {
    async fn status(
        self: Rc<Self>,
        _: job::StatusParams,
        mut results: job::StatusResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::READ).map_err(fail)?;
        self.look(|job| write_status(self.facet.reply(&mut results).init_status(), self.id, job))
    }

    async fn wait(
        self: Rc<Self>,
        params: job::WaitParams,
        mut results: job::WaitResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::READ).map_err(fail)?;
        let seen = params.get()?.get_seen_done();
        let news = async {
            // One that has ended holds nothing any more, and changes no more.
            let Some(live) = self.scheduler.live(self.id) else { return Ok(()) };
            loop {
                let changed = live.changed.notified();
                if self.look(|job| job.ended() || job.count(TaskState::Done) > seen)? {
                    return Ok::<(), capnp::Error>(());
                }
                changed.await;
            }
        };
        if let Ok(news) = tokio::time::timeout(WAIT, news).await {
            news?;
        }
        self.look(|job| write_status(self.facet.reply(&mut results).init_status(), self.id, job))
    }

    async fn tasks(
        self: Rc<Self>,
        _: job::TasksParams,
        mut results: job::TasksResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::READ).map_err(fail)?;
        self.look(|job| write_tasks(self.facet.reply(&mut results), job))
    }

    async fn cancel(
        self: Rc<Self>,
        _: job::CancelParams,
        _: job::CancelResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::CANCEL).map_err(fail)?;
        if !self.may_cancel {
            return Err(fail(self.facet.refused(Fault::denied(Rights::CANCEL))));
        }
        let cancel = || self.scheduler.state.borrow_mut().cancel(self.id);
        let freed = self.facet.commit(Rights::CANCEL, EMPTY, cancel).map_err(fail)?;
        if let Some(live) = self.scheduler.live(self.id) {
            self.scheduler.after(self.id, &live, freed);
        }
        Ok(())
    }
}

fn wire_state(state: TaskState) -> wire::TaskState {
    match state {
        TaskState::Queued => wire::TaskState::Queued,
        TaskState::Running => wire::TaskState::Running,
        TaskState::Done => wire::TaskState::Done,
        TaskState::Failed => wire::TaskState::Failed,
        TaskState::Cancelled => wire::TaskState::Cancelled,
    }
}

pub(crate) fn write_status(mut status: wire::job_status::Builder<'_>, id: JobId, job: &Job) {
    status.set_id(id.0);
    status.set_name(job.name());
    status.set_output(job.output());
    status.set_state(wire_state(job.state()));
    status.set_tasks(job.tasks().len() as u32);
    status.set_done(job.count(TaskState::Done));
    status.set_failed(job.count(TaskState::Failed));
    if let Some(fault) = job.fault() {
        status.set_fault(fault.to_wire().as_str());
    }
    status.set_reduce_index(job.reduce_index());
    let reduce = job.tasks().get(job.reduce_index() as usize);
    status.set_deployed(job.deployed());
    status.set_output_bytes(reduce.map_or(0, |task| task.report.output_bytes));
}

fn write_tasks(results: job::tasks_results::Builder<'_>, job: &Job) {
    let mut list = results.init_tasks(job.tasks().len() as u32);
    for (index, task) in (0u32..).zip(job.tasks()) {
        let mut entry = list.reborrow().get(index);
        let input = job.input(index);
        entry.set_index(index);
        entry.set_state(wire_state(task.state));
        entry.set_start(input.start);
        entry.set_end(input.end);
        entry.set_output_bytes(task.report.output_bytes);
        entry.set_fuel(task.report.fuel);
        entry.set_micros(task.report.micros);
        if let Some(fault) = &task.fault {
            entry.set_fault(fault.to_wire().as_str());
        }
    }
}
