//! The executor's calls: jobs that are loaded, tasks that run.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use capnp::capability::FromClientHook;
use capnp::private::capability::ClientHook;
use distos_abi::{ByteRange, Fault, ObjectId, Rights};
use distos_rpc::{Facet, Faceted, Gift, Received, Service, Vat, fail, fault_of, serve_capability};
use distos_schemas::executor_capnp::executor;
use distos_schemas::memory_capnp::{PAGE_BYTES, region};
use distos_schemas::scheduler_capnp::{job_secret, limits};
use distos_types::kind;
use futures::future::LocalBoxFuture;
use tokio::sync::{Notify, Semaphore, oneshot, watch};

use crate::cache::Programs;
use crate::engine::{Engine, Program};
use crate::feed;
use crate::program::MAX_MODULE_BYTES;
use crate::sandbox::{Limits, Outcome, Task};
use crate::secrets::{self, Lent, MAX_SECRETS, Named};
use crate::stdio;

/// Tasks that run at the same time, unless the image's `workers` says otherwise.
const DEFAULT_WORKERS: usize = 2;
const MAX_WORKERS: usize = 64;
/// Jobs that may be loaded at the same time.
const MAX_JOBS: usize = 16;
/// Tasks that may wait for a worker.
const MAX_WAITING: usize = 64;
const MAX_SEGMENTS: u32 = 4096;
const MAX_ARGS: u32 = 64;
const MAX_ARG_BYTES: usize = 16 * 1024;
/// The priority of a thread that runs a tenant's program (setpriority(2)).
const LOWEST: i32 = 19;
/// What no caller can raise, whatever limits it names.
const MAX_MEMORY_BYTES: u64 = 1 << 30;
const MAX_WALL_MS: u32 = 3_600_000;

/// One tenant's executor.
pub(crate) struct Executor {
    vat: Vat,
    engine: Arc<Engine>,
    jobs: RefCell<HashMap<u64, Rc<Job>>>,
    /// Jobs that are being loaded.
    loading: Cell<usize>,
    /// One module is compiled at a time: the compiler's memory is the executor's largest.
    compiler: Arc<Semaphore>,
    programs: RefCell<Programs<Program>>,
    workers: Arc<Semaphore>,
    waiting: Cell<usize>,
    running: Cell<usize>,
    idle: Notify,
}

/// A loaded job: its program and what it was given. Dropping it ends its tasks.
struct Job {
    program: Program,
    input: Rc<Received<region::Client>>,
    output: Rc<Received<region::Client>>,
    secrets: Vec<Rc<Lent>>,
    ended: Rc<Ended>,
}

/// With what a job has ended, once it has.
type Ended = watch::Sender<Option<Fault>>;

/// Whoever ends it first says with what.
fn end(ended: &Ended, fault: Fault) {
    ended.send_if_modified(|ended| {
        let first = ended.is_none();
        if first {
            *ended = Some(fault);
        }
        first
    });
}

/// One task as the scheduler asks for it.
struct Run {
    job: u64,
    from_output: bool,
    segments: Vec<ByteRange>,
    output: ByteRange,
    task: Task,
}

impl Executor {
    /// An executor without jobs.
    pub(crate) async fn start(vat: Vat) -> Result<Rc<dyn Service>, Fault> {
        let workers = match vat.param("workers") {
            None => DEFAULT_WORKERS,
            Some(text) => {
                text.parse().ok().filter(|n| (1..=MAX_WORKERS).contains(n)).ok_or_else(|| {
                    Fault::malformed(format!("workers = {text}: 1 to {MAX_WORKERS}"))
                })?
            }
        };
        let engine = Arc::new(Engine::new()?);
        // To take gifts at other nodes, if the image gives it a way there.
        distos_noise::seal(&vat);
        tokio::task::spawn_local(distos_quic::attend(vat.clone()));
        Ok(Rc::new(Executor {
            vat,
            engine,
            jobs: RefCell::default(),
            loading: Cell::new(0),
            compiler: Arc::new(Semaphore::new(1)),
            programs: RefCell::new(Programs::new()),
            workers: Arc::new(Semaphore::new(workers)),
            waiting: Cell::new(0),
            running: Cell::new(0),
            idle: Notify::new(),
        }))
    }

    async fn load(
        &self,
        job: u64,
        module: Vec<u8>,
        input: &Gift,
        output: &Gift,
        secrets: Vec<Named>,
    ) -> Result<(), Fault> {
        // A job of the same number belongs to a scheduler that is gone: its tasks end.
        self.unload(job);
        if self.vat.draining() {
            return Err(Fault::unavailable(1000, "the node is draining"));
        }
        if self.jobs.borrow().len() + self.loading.get() >= MAX_JOBS {
            return Err(Fault::unavailable(1000, format!("{MAX_JOBS} jobs are loaded")));
        }
        let _loading = Counted::one_more(&self.loading);
        // Taken here, so that no client stands in between. Gifts wait for half a minute only, so they are
        // taken before the compiler starts.
        // Each waits for its record: both together, for one write to the disk.
        let (input, output): (Received<region::Client>, Received<region::Client>) =
            futures::try_join!(self.vat.receive(input), self.vat.receive(output))?;
        let (input, output) = (Rc::new(input), Rc::new(output));
        let secrets = Lent::take_all(&self.vat, secrets).await?;
        // From then on it is known whether it may still be used, also while the compiler works.
        let ended = Rc::new(Ended::new(None));
        let regions = [input.clone(), output.clone()];
        tokio::task::spawn_local(lose(regions, secrets.clone(), Rc::downgrade(&ended)));
        let mut over = ended.subscribe();
        let program = tokio::select! {
            program = self.program(module) => program?,
            fault = until(&mut over) => return Err(fault),
        };
        let loaded = Rc::new(Job { program, input, output, secrets, ended });
        self.jobs.borrow_mut().insert(job, loaded);
        Ok(())
    }

    /// A module's program: compiled, or kept from an earlier job of this tenant's.
    async fn program(&self, module: Vec<u8>) -> Result<Program, Fault> {
        let hash = *blake3::hash(&module).as_bytes();
        let turn = Arc::clone(&self.compiler).acquire_owned().await.map_err(Fault::internal)?;
        if let Some(program) = self.programs.borrow_mut().find(&hash) {
            return Ok(program);
        }
        let (engine, bytes) = (Arc::clone(&self.engine), module.len());
        // A compiler for which nobody waits any more has its turn until it is done.
        let program = blocking(move || {
            let _turn = turn;
            engine.compile(&module)
        });
        let program = program.await?;
        self.programs.borrow_mut().keep(hash, bytes, program.clone());
        Ok(program)
    }

    fn unload(&self, job: u64) {
        if let Some(job) = self.jobs.borrow_mut().remove(&job) {
            end(&job.ended, Fault::unavailable(0, "the job was ended"));
        }
    }

    fn job(&self, job: u64) -> Result<Rc<Job>, Fault> {
        let found = self.jobs.borrow().get(&job).cloned();
        found.ok_or_else(|| Fault::not_found(format!("job {job} is not loaded here")))
    }

    async fn run(&self, run: Run) -> Result<Outcome, Fault> {
        if self.waiting.get() >= MAX_WAITING {
            return Err(Fault::unavailable(1000, "too many tasks are waiting"));
        }
        let job = self.job(run.job)?;
        // Nothing begins by a lease that is over, whoever has been told of it.
        job.input.lease.check()?;
        job.output.lease.check()?;
        job.secrets.iter().try_for_each(|lent| lent.secret.lease.check())?;
        let mut ended = job.ended.subscribe();
        let _running = Running::start(self);
        tokio::select! {
            biased;
            ended = until(&mut ended) => Err(ended),
            outcome = self.run_to_end(&job, run) => outcome,
        }
    }

    /// Dropping this future ends the task: its sandbox notices that `cancel` is gone.
    async fn run_to_end(&self, job: &Job, run: Run) -> Result<Outcome, Fault> {
        let worker = {
            let _waiting = Counted::one_more(&self.waiting);
            Arc::clone(&self.workers).acquire_owned().await.map_err(Fault::internal)?
        };
        // For as long as it runs, and not while it waits for its turn.
        let (drawn, files) = secrets::draw_all(&job.secrets).await?;
        let mut run = run;
        run.task.secrets = files.into();
        let narrowed = feed::attenuate(&job.output.client, Rights::WRITE, run.output);
        let source = if run.from_output { &job.output } else { &job.input };
        let total = run.segments.iter().map(|segment| segment.len()).sum();
        let (feeder, stdin) = stdio::stdin(total);
        let (cancel, cancelled) = oneshot::channel();
        let (engine, program, task) = (Arc::clone(&self.engine), job.program.clone(), run.task);
        // A task that nobody waits for any more counts until its thread has noticed.
        let sandbox = blocking(move || {
            let _worker = worker;
            engine.run(&program, &task, stdin, cancelled)
        });
        let feeding = feed::feed(source.client.clone(), source.far(), run.segments, feeder);
        let done = async { futures::try_join!(alongside(sandbox, feeding), narrowed) };
        let ended = tokio::select! {
            biased;
            lost = secrets::first_lost(&drawn) => Err(lost),
            done = done => done,
        };
        drop(cancel);
        secrets::give_back(drawn).await;
        let (outcome, output) = ended?;
        write(&output, run.output.start, &outcome.output).await?;
        Ok(outcome)
    }
}

/// Resolves with what a job has ended.
async fn until(ended: &mut watch::Receiver<Option<Fault>>) -> Fault {
    let ended = ended.wait_for(Option::is_some).await;
    // Whoever waits holds the job, and so the sender.
    ended.ok().and_then(|ended| ended.clone()).unwrap_or(Fault::Revoked)
}

/// Ends a job that may not use what it was given any more: a program that runs asks nobody whether it still may.
async fn lose(
    [input, output]: [Rc<Received<region::Client>>; 2],
    secrets: Vec<Rc<Lent>>,
    ended: Weak<Ended>,
) {
    let Some(mut over) = ended.upgrade().map(|ended| ended.subscribe()) else { return };
    let lost_secret = async {
        if secrets.is_empty() {
            return std::future::pending().await;
        }
        let lost = secrets.iter().map(|lent| Box::pin(lent.secret.lease.lost()));
        futures::future::select_all(lost).await.0
    };
    let fault = tokio::select! {
        fault = input.lease.lost() => fault,
        fault = output.lease.lost() => fault,
        fault = lost_secret => fault,
        // Also once the job is dropped.
        _ = over.wait_for(Option::is_some) => return,
    };
    if let Some(ended) = ended.upgrade() {
        end(&ended, fault);
    }
}

/// Runs work that computes on a thread of its own. Who calls bounds how many there are.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    let (done, outcome) = oneshot::channel();
    let thread = std::thread::Builder::new().name("wasm".to_owned());
    // Nobody may wait for the outcome any more; then it is dropped.
    let start = thread.spawn(move || {
        // Where it is not permitted, the vat's own threads wait their turn.
        let _ = rustix::process::setpriority_process(None, LOWEST);
        drop(done.send(work()));
    });
    start.map_err(|e| Fault::unavailable(1000, format!("no thread to run on: {e}")))?;
    outcome.await.unwrap_or_else(|_| Err(Fault::internal("a worker thread ended early")))
}

/// Drives `helper` while `main` runs; `main`'s end is the end.
async fn alongside<T>(main: impl Future<Output = T>, helper: impl Future<Output = ()>) -> T {
    futures::pin_mut!(main, helper);
    match futures::future::select(main, helper).await {
        futures::future::Either::Left((done, _)) => done,
        futures::future::Either::Right(((), main)) => main.await,
    }
}

/// One write for the whole output. It fails if the capability was revoked meanwhile, and then no
/// byte of the task arrives.
async fn write(output: &region::Client, offset: u64, bytes: &[u8]) -> Result<(), Fault> {
    if bytes.is_empty() {
        return Ok(());
    }
    let mut request = output.write_request();
    request.get().set_offset(offset);
    request.get().set_data(bytes);
    request.send().promise.await.map_err(|e| fault_of(&e))?;
    Ok(())
}

/// Counts what is under way, also when its future is dropped.
struct Counted<'a>(&'a Cell<usize>);

impl<'a> Counted<'a> {
    fn one_more(count: &'a Cell<usize>) -> Counted<'a> {
        count.set(count.get() + 1);
        Counted(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// A task under way; `drain` waits for the last one.
struct Running<'a>(&'a Executor);

impl<'a> Running<'a> {
    fn start(executor: &'a Executor) -> Running<'a> {
        executor.running.set(executor.running.get() + 1);
        Running(executor)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.set(self.0.running.get() - 1);
        self.0.idle.notify_waiters();
    }
}

impl Service for Executor {
    fn open(self: Rc<Self>, facet: Facet) -> Result<Box<dyn ClientHook>, Fault> {
        if facet.kind() != kind::EXECUTOR || facet.object() != ObjectId::ROOT {
            return Err(Fault::not_found("an executor serves itself only"));
        }
        Ok(ExecutorServer::new(self, facet).into_hook())
    }

    fn drain(self: Rc<Self>) -> LocalBoxFuture<'static, ()> {
        Box::pin(async move {
            loop {
                let ended = self.idle.notified();
                if self.running.get() == 0 {
                    return;
                }
                ended.await;
            }
        })
    }
}

/// The executor behind one capability. The jobs that were loaded through it end with it, so that
/// nothing runs on for a scheduler that is gone.
struct ExecutorServer {
    executor: Rc<Executor>,
    facet: Facet,
    loaded: RefCell<Vec<u64>>,
}

impl Drop for ExecutorServer {
    fn drop(&mut self) {
        for job in self.loaded.take() {
            self.executor.unload(job);
        }
    }
}

impl ExecutorServer {
    fn new(executor: Rc<Executor>, facet: Facet) -> ExecutorServer {
        ExecutorServer { executor, facet, loaded: RefCell::default() }
    }

    fn into_hook(self) -> Box<dyn ClientHook> {
        capnp_rpc::new_client::<executor::Client, _>(self).into_client_hook()
    }
}

impl Faceted for ExecutorServer {
    fn facet(&self) -> &Facet {
        &self.facet
    }

    fn with_facet(&self, facet: Facet) -> Box<dyn ClientHook> {
        ExecutorServer::new(Rc::clone(&self.executor), facet).into_hook()
    }
}

serve_capability!(ExecutorServer);

impl executor::Server for ExecutorServer {
    async fn load(
        self: Rc<Self>,
        params: executor::LoadParams,
        _: executor::LoadResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::RUN).map_err(fail)?;
        let (job, module, input, output, secrets) = {
            let params = params.get()?;
            let module = params.get_module()?;
            if module.len() > MAX_MODULE_BYTES {
                return Err(fail(Fault::malformed("the module is too large")));
            }
            let input = Gift::read(params.get_input()?)?.map_err(fail)?;
            let output = Gift::read(params.get_output()?)?.map_err(fail)?;
            let secrets = read_secrets(params.get_secrets()?)?.map_err(fail)?;
            (params.get_job(), module.to_vec(), input, output, secrets)
        };
        // The message with its copy of the module is not needed while the compiler works.
        drop(params);
        self.loaded.borrow_mut().push(job);
        self.executor.load(job, module, &input, &output, secrets).await.map_err(fail)
    }

    async fn run(
        self: Rc<Self>,
        params: executor::RunParams,
        mut results: executor::RunResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::RUN).map_err(fail)?;
        let run = read_run(params.get()?)?.map_err(fail)?;
        drop(params);
        let outcome = self.executor.run(run).await.map_err(fail)?;
        let mut reply = self.facet.reply(&mut results);
        reply.set_output_bytes(outcome.output.len() as u32);
        reply.set_fuel(outcome.fuel);
        reply.set_micros(outcome.micros);
        Ok(())
    }

    async fn unload(
        self: Rc<Self>,
        params: executor::UnloadParams,
        _: executor::UnloadResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::RUN).map_err(fail)?;
        let job = params.get()?.get_job();
        self.loaded.borrow_mut().retain(|loaded| *loaded != job);
        self.executor.unload(job);
        Ok(())
    }
}

fn read_secrets(
    list: capnp::struct_list::Reader<'_, job_secret::Owned>,
) -> capnp::Result<Result<Vec<Named>, Fault>> {
    if list.len() > MAX_SECRETS {
        return Ok(Err(Fault::malformed(format!("more than {MAX_SECRETS} secrets"))));
    }
    let mut secrets = Vec::new();
    for named in list {
        let file = String::from_utf8_lossy(named.get_file()?.as_bytes()).into_owned();
        match Gift::read(named.get_gift()?)? {
            Ok(gift) => secrets.push(Named { file, gift }),
            Err(fault) => return Ok(Err(fault)),
        }
    }
    Ok(secrets::checked(secrets))
}

fn read_run(params: executor::run_params::Reader<'_>) -> capnp::Result<Result<Run, Fault>> {
    let (job, index) = (params.get_job(), params.get_task());
    let list = params.get_stdin()?;
    let args = params.get_args()?;
    if list.len() > MAX_SEGMENTS || args.len() > MAX_ARGS {
        return Ok(Err(Fault::malformed("too many segments or arguments")));
    }
    let segments: Option<Vec<ByteRange>> =
        list.iter().map(|s| ByteRange::at(s.get_offset(), s.get_len())).collect();
    let mut words = Vec::new();
    for arg in args.iter() {
        words.push(arg?.to_str()?.to_owned());
    }
    let limits = read_limits(params.get_limits()?);
    let task = Task { args: words, limits, seed: seed(job, index), secrets: Arc::default() };
    Ok(run_of(job, params.get_stdin_from_output(), segments, params.get_output_offset(), task))
}

/// Different for every task of every job, and the same whenever that task runs.
fn seed(job: u64, task: u32) -> u64 {
    job.rotate_left(32) ^ u64::from(task)
}

fn run_of(
    job: u64,
    from_output: bool,
    segments: Option<Vec<ByteRange>>,
    output_offset: u64,
    task: Task,
) -> Result<Run, Fault> {
    let segments = segments.ok_or_else(|| Fault::malformed("a segment ends beyond any region"))?;
    let page = u64::from(PAGE_BYTES);
    let output = ByteRange::at(output_offset, page)
        .filter(|_| output_offset.is_multiple_of(page))
        .ok_or_else(|| Fault::malformed("outputOffset is not the start of a page"))?;
    let total = segments.iter().try_fold(0u64, |sum, segment| sum.checked_add(segment.len()));
    total.ok_or_else(|| Fault::malformed("the segments are longer than any region"))?;
    let bytes: usize = task.args.iter().map(String::len).sum();
    if bytes > MAX_ARG_BYTES || task.args.iter().any(|arg| arg.contains('\0')) {
        return Err(Fault::malformed("arguments: at most 16 KiB together, without NUL"));
    }
    Ok(Run { job, from_output, segments, output, task })
}

/// What the scheduler asks for, cut to what no task may pass.
fn read_limits(limits: limits::Reader<'_>) -> Limits {
    Limits {
        fuel: limits.get_fuel(),
        memory_bytes: limits.get_memory_bytes().min(MAX_MEMORY_BYTES),
        output_bytes: limits.get_output_bytes().min(PAGE_BYTES) as usize,
        wall: Duration::from_millis(u64::from(limits.get_wall_ms().min(MAX_WALL_MS))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits { fuel: 1, memory_bytes: 1, output_bytes: 1, wall: Duration::from_secs(1) }
    }

    fn refused(segments: Option<Vec<ByteRange>>, offset: u64, args: &[&str]) -> bool {
        let args = args.iter().map(|a| (*a).to_owned()).collect();
        let task = Task { args, limits: limits(), seed: 0, secrets: Arc::default() };
        matches!(run_of(1, false, segments, offset, task), Err(Fault::Malformed(_)))
    }

    #[test]
    fn a_task_never_writes_outside_one_page() {
        assert!(!refused(Some(vec![]), 0, &["-l"]));
        assert!(!refused(Some(vec![]), 5 * 65536, &[]));
        assert!(refused(Some(vec![]), 1, &[]));
        assert!(refused(Some(vec![]), u64::MAX - 65535, &[]));
    }

    #[test]
    fn numbers_that_overflow_are_refused() {
        assert!(refused(None, 0, &[]));
        let half = ByteRange { start: 0, end: u64::MAX };
        assert!(refused(Some(vec![half, half]), 0, &[]));
        assert!(refused(Some(vec![]), 0, &["a\0b"]));
        assert!(refused(Some(vec![]), 0, &[&"x".repeat(MAX_ARG_BYTES + 1)]));
    }

    #[test]
    fn no_two_tasks_share_their_randomness() {
        let seeds: std::collections::HashSet<u64> =
            (1..50).flat_map(|job| (0..50).map(move |task| seed(job, task))).collect();
        assert_eq!(seeds.len(), 49 * 50);
    }
}
