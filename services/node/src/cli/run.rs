//! `run`: a WASI program over the pages of a region, in parallel.

use std::path::PathBuf;

use capnp::capability::FromClientHook as _;
use clap::Args;
use distos_abi::{Authority, Caveats, Fault, Rights, VatName};
use distos_client::handoff::{self, Home};
use distos_identity::Subject;
use distos_rpc::Gift;
use distos_schemas::capability_capnp::capability;
use distos_schemas::memory_capnp::region;
use distos_schemas::scheduler_capnp::{TaskState, job, job_spec, job_status, limits, queue};
use distos_schemas::secrets_capnp::{secret, secrets};
use distos_types::Order;
use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::files::{self, Draft};
use super::holder::{Holder, call, now_ms, random, read};
use super::text::{self, PAGE_BYTES, row};
use super::{Context, Report, Stop, interruptible, region as regions, settled, undo};

/// The longest module that a node takes.
const MAX_MODULE_BYTES: u64 = 8 << 20;
/// For how long the input of a job can be read that goes on without its command, in milliseconds, at least and at most: a
/// node takes a day, by its own clock. It takes a slot of the tenant's for as long.
const LEAST_MS: u64 = 3600 * 1000;
const DETACHED_MS: u64 = 23 * 3600 * 1000;
/// What a node allows a task if nothing is said, in milliseconds, and jobs of a tenant that have not ended.
const WALL_MS: u64 = 60_000;
const ACTIVE_JOBS: u64 = 8;
/// Failed tasks that are told one by one.
const MAX_FAILURES_SHOWN: usize = 10;

/// Arguments of `run`.
#[derive(Args)]
#[command(after_help = "\
Examples:
  distos run wordcount.wasm --input books --map map --reduce reduce --as red.cap
  distos run wordcount.wasm --input books --pages-per-task 16 --out counts.txt --as red.cap
  distos run wordcount.wasm --input books --regions there/red.cap --as here/red.cap
  distos run wordcount.wasm --input books --map map --reduce reduce --detach --as red.cap

Each map task gets a range of the input's pages as its standard input; its standard output is one
page. With --reduce, one more task gets all those outputs, in order, and its output is the result.

With --secret, each task finds one of your secrets as a file that it can only read: /secrets/FILE, in memory
and there for that task alone. FILE is NAME behind its last '/', unless you say another. The task has a lease
of its own on it, which is renewed while it runs, and ends when that is revoked.
  distos run sync.wasm --input books --secret db/password --secret web/client=client.pem --as red.cap

With --detach, the command ends as soon as the job has begun, and the job goes on without it:
`distos job wait N` fetches its result, which stays until then. The input can be read for as long
as eight such jobs take one after the other, an hour at least and 23 hours at most.

With --regions, the tasks run at the node of --as, and read and write the regions at that other node,
which must have this one in its list of peers.")]
pub struct RunArgs {
    /// A WASI preview 1 command, at most 8 MiB
    module: PathBuf,
    /// The region to work on
    #[arg(long, value_name = "REGION")]
    input: String,
    /// The capability file for the region, if another node keeps it
    #[arg(long, value_name = "FILE")]
    regions: Option<PathBuf>,
    /// That other node's directory, or one with the sockets of `distos connect` [default: as the file says]
    #[arg(long, value_name = "DIR", requires = "regions")]
    regions_node: Option<PathBuf>,
    /// The capability file for a region that holds the tasks' outputs meanwhile [default: as --regions]
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
    /// The directory of that node, likewise
    #[arg(long, value_name = "DIR", requires = "results")]
    results_node: Option<PathBuf>,
    /// The job's name [default: the module's file name]
    #[arg(long)]
    name: Option<String>,
    /// Arguments of each map task, separated by blanks
    #[arg(long, default_value = "", value_name = "ARGS")]
    map: String,
    /// Arguments of the reduce task; without this there is none
    #[arg(long, value_name = "ARGS")]
    reduce: Option<String>,
    /// Pages of 64 KiB for each task [default: the scheduler chooses]
    #[arg(long, default_value_t = 0, value_name = "N")]
    pages_per_task: u32,
    /// Write the result to a file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// A secret that each task finds as the file /secrets/FILE
    #[arg(long = "secret", value_name = "NAME[=FILE]", value_parser = secret_file, conflicts_with = "detach")]
    secrets: Vec<(String, String)>,
    /// End as soon as the job has begun; it goes on
    #[arg(long, conflicts_with = "out")]
    detach: bool,
    #[command(flatten)]
    limits: Limits,
}

/// What each task may use; zero is the node's default.
#[derive(Args, Clone, Copy, Default)]
pub struct Limits {
    /// WASM instructions, roughly [default: 50 billion]
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "N")]
    pub fuel: u64,
    /// Memory [default: 64M]
    #[arg(long, default_value = "0", hide_default_value = true, value_parser = text::parse_bytes, value_name = "SIZE")]
    pub memory: u64,
    /// Standard output, at most one page [default: 64K]
    #[arg(long, default_value = "0", hide_default_value = true, value_parser = text::parse_bytes, value_name = "SIZE")]
    pub output: u64,
    /// Time [default: 60s]
    #[arg(long, default_value = "0s", hide_default_value = true, value_parser = text::parse_span_ms, value_name = "TIME")]
    pub wall: u64,
}

impl Limits {
    fn write(self, mut builder: limits::Builder<'_>) {
        builder.set_fuel(self.fuel);
        builder.set_memory_bytes(self.memory);
        builder.set_output_bytes(u32::try_from(self.output).unwrap_or(u32::MAX));
        builder.set_wall_ms(u32::try_from(self.wall).unwrap_or(u32::MAX));
    }
}

/// A job to run.
pub struct Job {
    /// Its name.
    pub name: String,
    /// The program.
    pub module: Vec<u8>,
    /// The region that it works on.
    pub input: String,
    /// Arguments of each map task.
    pub map: Vec<String>,
    /// Arguments of the reduce task, if there is one.
    pub reduce: Option<Vec<String>>,
    /// Zero: the scheduler chooses.
    pub pages_per_task: u32,
    /// For each task.
    pub limits: Limits,
    /// Secrets of the runner's that each task draws: their names, and those of the files.
    pub secrets: Vec<(String, String)>,
}

/// A job that is done.
pub struct Done {
    /// For machines and `text`.
    pub json: Value,
    /// The output of the reduce task, or of each map task in order.
    pub output: Vec<u8>,
}

impl Done {
    /// One line about the work.
    pub fn text(&self) -> String {
        format!(
            "job {}: {} tasks, {} of compute in {}",
            self.json["job"],
            self.json["tasks"],
            text::micros(self.json["task_micros"].as_u64().unwrap_or(0)),
            text::micros(self.json["micros"].as_u64().unwrap_or(0)),
        )
    }
}

/// A secret's name and its file's.
fn secret_file(text: &str) -> Result<(String, String), String> {
    let (name, file) = match text.split_once('=') {
        Some((name, file)) => (name, file),
        None => (text, text.rsplit('/').next().unwrap_or(text)),
    };
    if name.is_empty() || file.is_empty() {
        return Err("NAME or NAME=FILE".to_owned());
    }
    Ok((name.to_owned(), file.to_owned()))
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// Reads a module and checks that it is WASM at all, before anything is stored for it.
pub fn read_module(path: &std::path::Path) -> Result<Vec<u8>, Fault> {
    let module = files::read_bytes(path, MAX_MODULE_BYTES)?;
    if !module.starts_with(b"\0asm") {
        return Err(Fault::malformed(format!(
            "{} is not WASM: build it with `clang --target=wasm32-wasi`",
            path.display()
        )));
    }
    Ok(module)
}

pub(super) async fn command(context: &Context, args: RunArgs) -> Result<Report, Stop> {
    let holder = context.holder()?;
    let elsewhere = |file: &Option<PathBuf>, node: &Option<PathBuf>| {
        let file = file.as_deref().map(|file| Holder::load(file, node.as_deref()));
        file.transpose()
    };
    let regions = elsewhere(&args.regions, &args.regions_node)?;
    let results = elsewhere(&args.results, &args.results_node)?;
    let input = regions.as_ref().unwrap_or(&holder);
    let output = results.as_ref().unwrap_or(input);
    let at = At { runner: &holder, input, output };
    let file_name = args.module.file_name().map(|n| n.to_string_lossy().into_owned());
    let job = Job {
        name: args.name.or(file_name).unwrap_or_else(|| "job".into()),
        module: read_module(&args.module)?,
        input: args.input,
        map: words(&args.map),
        reduce: args.reduce.as_deref().map(words),
        pages_per_task: args.pages_per_task,
        limits: args.limits,
        secrets: args.secrets,
    };
    if args.detach {
        // Where another command finds the output.
        let (file, node) = match &args.results {
            Some(file) => (Some(file), &args.results_node),
            None => (args.regions.as_ref(), &args.regions_node),
        };
        let mut keeper = flag("--results", file);
        keeper.push_str(&flag("--results-node", node.as_ref()));
        return deploy(context, &at, &job, &keeper).await;
    }
    // The file is opened first: a result that cannot be kept is not worth computing.
    let draft = interruptible(async {
        args.out.as_deref().map(|out| Draft::create(out, files::PUBLIC)).transpose()
    })
    .await?;
    let bar = super::progress(context, 0, "running", false);
    let done = run(&at, &job, &bar).await?;
    if let Some(mut draft) = draft {
        draft.append(&done.output)?;
        draft.keep()?;
        return Ok(Report { text: done.text(), json: done.json });
    }
    if context.json {
        let mut json = done.json;
        json["output"] = json!(String::from_utf8_lossy(&done.output));
        return Ok(Report { json, text: String::new() });
    }
    interruptible(super::emit(&done.output)).await?;
    super::complain(&done.text());
    Ok(Report::nothing())
}

/// Who runs a job and who keeps its regions: one and the same holder, or those of several nodes.
pub struct At<'a> {
    /// At whose node it runs.
    pub runner: &'a Holder,
    /// At whose node its input is.
    pub input: &'a Holder,
    /// At whose node its output is meanwhile.
    pub output: &'a Holder,
}

/// Runs a job to its end. Its output region is dropped whatever happens; Ctrl-C cancels the job.
pub async fn run(at: &At<'_>, job: &Job, bar: &ProgressBar) -> Result<Done, Stop> {
    let started = std::time::Instant::now();
    let queue: queue::Client = interruptible(at.runner.root("queue")).await?;
    let plan = interruptible(plan(at, &queue, job)).await?;
    let prepared = settled(prepare(at, plan, true)).await?;
    let output = prepared.output.clone();
    let outcome = work(at.runner, &queue, job, prepared, bar).await;
    bar.finish_and_clear();
    let mut done = match outcome {
        Ok(done) => done,
        Err(stop) => {
            undo(regions::drop_region(&output)).await;
            return Err(stop);
        }
    };
    regions::drop_region(&output).await?;
    let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
    done.json["micros"] = json!(micros);
    Ok(done)
}

/// Has a job go on without this command; `keeper` are the flags by which another finds who keeps its output. If that fails,
/// what was made for it is given back.
async fn deploy(context: &Context, at: &At<'_>, job: &Job, keeper: &str) -> Result<Report, Stop> {
    let queue: queue::Client = interruptible(at.runner.root("queue")).await?;
    let plan = interruptible(plan(at, &queue, job)).await?;
    let tasks = plan.tasks;
    let prepared = settled(prepare(at, plan, false)).await?;
    let (output, name) = (prepared.output.clone(), prepared.name.clone());
    let until_ms = now_ms().saturating_add(lasting_ms(tasks, job));
    let id = match settled(regions::open_until(at.input, &job.input, until_ms)).await {
        Ok(input) => {
            let lasting: capability::Client = input.clone().cast_to();
            let plan = Plan { input, ..prepared.plan };
            let prepared = Prepared { plan, ..prepared };
            let ordered = interruptible(order(at.runner, &queue, job, &prepared)).await;
            if ordered.is_err() {
                undo(call(lasting.revoke_request())).await;
            }
            ordered
        }
        Err(stop) => Err(stop),
    };
    if id.is_err() {
        undo(regions::drop_region(&output)).await;
    }
    let id = id?;
    let acting = flag("--as", Some(&at.runner.path)) + &flag("--node", context.named_node());
    let text = format!(
        "job {id} is deployed: its output goes to region {name}\n\
         look at it:        distos job show {id}{acting}\n\
         fetch its result:  distos job wait {id}{keeper}{acting}\n\
         end it:            distos job cancel {id}{acting}"
    );
    let tasks = u64::from(tasks) + u64::from(job.reduce.is_some());
    Ok(Report { json: json!({ "job": id, "tasks": tasks, "output": name }), text })
}

/// For how long the input of a job is to be read that goes on by itself: as many such jobs as a tenant may have, one task
/// after the other.
fn lasting_ms(tasks: u32, job: &Job) -> u64 {
    let wall_ms = if job.limits.wall == 0 { WALL_MS } else { job.limits.wall };
    let all_ms = ACTIVE_JOBS.saturating_mul(u64::from(tasks) + 1).saturating_mul(wall_ms);
    all_ms.clamp(LEAST_MS, DETACHED_MS)
}

/// A flag with a path, as a shell reads it, and a blank before it; nothing without a path.
fn flag(name: &str, path: Option<&PathBuf>) -> String {
    let Some(path) = path else { return String::new() };
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => format!(" {name} {text}"),
        false => format!(" {name} '{}'", text.replace('\'', r"'\''")),
    }
}

/// Signs for a job, and returns its number once it has begun.
async fn order(
    runner: &Holder,
    queue: &queue::Client,
    job: &Job,
    prepared: &Prepared,
) -> Result<u64, Fault> {
    let [input, output] = give(prepared).await?;
    let mut message = capnp::message::Builder::new_default();
    let mut spec = message.init_root::<job_spec::Builder<'_>>();
    spec.set_output_name(prepared.name.as_str());
    write_spec(spec, job, &prepared.plan, &input, &output);
    let spec = capnp::serialize::write_message_to_words(&message);
    let chain = &runner.entry("queue")?.chain;
    let at_us = now_ms().saturating_mul(1000);
    let (order, signature) = Order::sign(chain, &spec, at_us, &runner.secret)?;
    let mut request = queue.deploy_request();
    let mut params = request.get();
    params.set_order(order.bytes());
    params.set_signature(&signature);
    params.set_spec(&spec);
    let answer = call(request).await?;
    read(|| Ok(answer.get()?.get_id()))
}

/// What a job needs before it can be submitted.
struct Plan {
    input: region::Client,
    input_bytes: u64,
    /// Who takes the gifts: the vat, by its name on the runner's node.
    executor: VatName,
    tasks: u32,
    pages_per_task: u32,
}

struct Prepared {
    plan: Plan,
    output: region::Client,
    /// What the output region is called.
    name: String,
    /// Who takes each, and where: as the input's home knows it, and as the output's does.
    gifts: [(String, Home); 2],
}

async fn plan(at: &At<'_>, queue: &queue::Client, job: &Job) -> Result<Plan, Fault> {
    let input = regions::open(at.input, &job.input).await?;
    let input_bytes = regions::info(&input).await?.bytes;
    let mut request = queue.plan_request();
    request.get().set_input_bytes(input_bytes);
    request.get().set_pages_per_task(job.pages_per_task);
    let plan = call(request).await?;
    let (tasks, pages_per_task) =
        read(|| Ok((plan.get()?.get_tasks(), plan.get()?.get_pages_per_task())))?;
    let answer = call(queue.executor_request()).await?;
    let executor = VatName::new(&read(|| Ok(answer.get()?.get_vat()?.to_str()?.to_owned()))?)?;
    Ok(Plan { input, input_bytes, executor, tasks, pages_per_task })
}

/// How `executor` of the runner's node is called where `keeper` has its regions, and where that is.
fn receiver(runner: &Holder, keeper: &Holder, executor: &VatName) -> Result<(String, Home), Fault> {
    let vat = keeper.entry("regions")?.chain.root().vat.clone();
    let (here, there) = (runner.file.node, keeper.file.node);
    if here == there {
        return Ok((executor.to_string(), Home { node: None, vat }));
    }
    let subject = Subject::Service { node: here, service: executor.clone() };
    Ok((subject.to_string(), Home { node: Some(there), vat }))
}

async fn prepare(at: &At<'_>, plan: Plan, volatile: bool) -> Result<Prepared, Fault> {
    let of = |keeper| receiver(at.runner, keeper, &plan.executor);
    let gifts = [of(at.input)?, of(at.output)?];
    // One page for each map task and one for the reduce task.
    let bytes = (u64::from(plan.tasks) + 1) * PAGE_BYTES;
    let name = format!("run-{}", hex::encode(random::<8>()?));
    let (output, _) = regions::create(at.output, &name, bytes, volatile).await?;
    Ok(Prepared { plan, output, name, gifts })
}

async fn work(
    runner: &Holder,
    queue: &queue::Client,
    job: &Job,
    prepared: Prepared,
    bar: &ProgressBar,
) -> Result<Done, Stop> {
    // What was given of a secret ends with what it was given from.
    let secrets = interruptible(open_secrets(runner, job)).await?;
    let submitted = submit(runner, queue, job, &prepared, &secrets);
    let running = interruptible(submitted).await?;
    match interruptible(follow(&running, bar)).await {
        Ok(status) => Ok(interruptible(result(&running, &prepared.output, status)).await?),
        Err(stop) => {
            undo(call(running.cancel_request())).await;
            Err(stop)
        }
    }
}

async fn submit(
    runner: &Holder,
    queue: &queue::Client,
    job: &Job,
    prepared: &Prepared,
    secrets: &[secret::Client],
) -> Result<job::Client, Fault> {
    let [input, output] = give(prepared).await?;
    let secrets = give_secrets(runner, &prepared.plan.executor, secrets).await?;
    let mut request = queue.submit_request();
    let mut spec = request.get().init_spec();
    write_spec(spec.reborrow(), job, &prepared.plan, &input, &output);
    let mut list = spec.init_secrets(u32::try_from(secrets.len()).unwrap_or(u32::MAX));
    for ((index, (_, file)), gift) in (0..list.len()).zip(&job.secrets).zip(&secrets) {
        let mut secret = list.reborrow().get(index);
        secret.set_file(file.as_str());
        gift.write(secret.init_gift());
    }
    let answer = call(request).await?;
    read(|| answer.get()?.get_job())
}

/// Leaves the input and the output for whoever runs the job.
async fn give(prepared: &Prepared) -> Result<[Gift; 2], Fault> {
    let [to_read, to_write] = &prepared.gifts;
    let input = gift(&prepared.plan.input, to_read, Rights::READ).await?;
    let both = Rights::READ.join(Rights::WRITE);
    Ok([input, gift(&prepared.output, to_write, both).await?])
}

/// The job's secrets, of the runner's own.
async fn open_secrets(runner: &Holder, job: &Job) -> Result<Vec<secret::Client>, Fault> {
    if job.secrets.is_empty() {
        return Ok(Vec::new());
    }
    let secrets: secrets::Client = runner.root(super::secret::ENTRY).await?;
    let mut opened = Vec::new();
    for (name, _) in &job.secrets {
        let mut request = secrets.open_request();
        request.get().set_name(name.as_str());
        let answer = call(request).await?;
        opened.push(read(|| answer.get()?.get_secret())?);
    }
    Ok(opened)
}

/// Leaves these for the executor, to be read and nothing else.
async fn give_secrets(
    runner: &Holder,
    executor: &VatName,
    secrets: &[secret::Client],
) -> Result<Vec<Gift>, Fault> {
    let mut given = Vec::new();
    for secret in secrets {
        let vat = runner.entry(super::secret::ENTRY)?.chain.root().vat.clone();
        let wanted = Authority { rights: Rights::READ, caveats: Caveats::NONE };
        let home = Home { node: None, vat };
        given.push(handoff::give(secret, executor.as_str(), wanted, home).await?);
    }
    Ok(given)
}

fn write_spec(
    mut spec: job_spec::Builder<'_>,
    job: &Job,
    plan: &Plan,
    input: &Gift,
    output: &Gift,
) {
    spec.set_name(job.name.as_str());
    spec.set_module(&job.module);
    input.write(spec.reborrow().init_input());
    spec.set_input_bytes(plan.input_bytes);
    output.write(spec.reborrow().init_output());
    spec.set_pages_per_task(plan.pages_per_task);
    spec.set_reduce(job.reduce.is_some());
    let empty = Vec::new();
    let reduce = job.reduce.as_ref().unwrap_or(&empty);
    set_words(spec.reborrow().init_map_args(count(&job.map)), &job.map);
    set_words(spec.reborrow().init_reduce_args(count(reduce)), reduce);
    job.limits.write(spec.init_limits());
}

fn count(words: &[String]) -> u32 {
    u32::try_from(words.len()).unwrap_or(u32::MAX)
}

fn set_words(mut list: capnp::text_list::Builder<'_>, words: &[String]) {
    for (index, word) in (0..list.len()).zip(words) {
        list.set(index, word.as_str());
    }
}

/// Leaves a weaker capability to a region for the executor, which alone can take it.
async fn gift(
    region: &region::Client,
    (receiver, home): &(String, Home),
    rights: Rights,
) -> Result<Gift, Fault> {
    let wanted = Authority { rights, caveats: Caveats::NONE };
    handoff::give(region, receiver, wanted, home.clone()).await
}

/// What is needed of a job's status.
pub(super) struct Status {
    pub(super) id: u64,
    pub(super) state: TaskState,
    pub(super) tasks: u32,
    done: u32,
    fault: String,
    reduce_index: u32,
    output_bytes: u32,
}

impl Status {
    fn of(status: job_status::Reader<'_>) -> capnp::Result<Status> {
        Ok(Status {
            id: status.get_id(),
            state: status.get_state()?,
            tasks: status.get_tasks(),
            done: status.get_done(),
            fault: status.get_fault()?.to_str()?.to_owned(),
            reduce_index: status.get_reduce_index(),
            output_bytes: status.get_output_bytes(),
        })
    }
}

/// Waits until a job has ended.
pub(super) async fn follow(job: &job::Client, bar: &ProgressBar) -> Result<Status, Fault> {
    let mut seen = 0;
    loop {
        let mut request = job.wait_request();
        request.get().set_seen_done(seen);
        let answer = call(request).await?;
        let status = read(|| Status::of(answer.get()?.get_status()?))?;
        bar.set_length(status.tasks.into());
        bar.set_position(status.done.into());
        seen = status.done;
        match status.state {
            TaskState::Queued | TaskState::Running => {}
            TaskState::Done | TaskState::Failed | TaskState::Cancelled => return Ok(status),
        }
    }
}

/// One task's share of the work.
pub(super) struct Task {
    index: u32,
    state: TaskState,
    range: (u64, u64),
    output_bytes: u32,
    fuel: u64,
    micros: u64,
    fault: String,
}

pub(super) async fn tasks(job: &job::Client) -> Result<Vec<Task>, Fault> {
    let answer = call(job.tasks_request()).await?;
    read(|| {
        let tasks = answer.get()?.get_tasks()?;
        tasks
            .iter()
            .map(|t| {
                Ok(Task {
                    index: t.get_index(),
                    state: t.get_state()?,
                    range: (t.get_start(), t.get_end()),
                    output_bytes: t.get_output_bytes(),
                    fuel: t.get_fuel(),
                    micros: t.get_micros(),
                    fault: t.get_fault()?.to_str()?.to_owned(),
                })
            })
            .collect()
    })
}

/// The result of a job that has ended, out of its output region; or why there is none.
pub(super) async fn result(
    job: &job::Client,
    output: &region::Client,
    status: Status,
) -> Result<Done, Fault> {
    let tasks = tasks(job).await?;
    if status.state != TaskState::Done {
        return Err(failure(&status, &tasks));
    }
    let hidden = ProgressBar::hidden();
    let mut bytes = Vec::new();
    let has_reduce = status.reduce_index < status.tasks;
    for task in &tasks {
        if has_reduce && task.index != status.reduce_index {
            continue;
        }
        let len = if has_reduce { status.output_bytes } else { task.output_bytes };
        let at = u64::from(task.index) * PAGE_BYTES;
        regions::fetch(output, at, len.into(), &hidden, &mut async |part: &[u8]| {
            bytes.extend_from_slice(part);
            Ok(())
        })
        .await?;
    }
    let json = json!({
        "job": status.id, "tasks": status.tasks,
        "fuel": tasks.iter().map(|t| t.fuel).sum::<u64>(),
        "task_micros": tasks.iter().map(|t| t.micros).sum::<u64>(),
    });
    Ok(Done { json, output: bytes })
}

/// Tells which tasks failed and why, and returns the first one's fault.
pub(super) fn failure(status: &Status, tasks: &[Task]) -> Fault {
    let failed: Vec<&Task> = tasks.iter().filter(|t| t.state == TaskState::Failed).collect();
    if failed.len() > 1 {
        eprintln!("{}", failures(&failed));
    }
    if status.state == TaskState::Cancelled {
        return Fault::unavailable(0, format!("job {} was cancelled", status.id));
    }
    Fault::from_wire(&status.fault)
        .unwrap_or_else(|| Fault::internal(format!("job {} failed: {}", status.id, status.fault)))
}

fn failures(failed: &[&Task]) -> String {
    let mut rows = vec![row(["task", "input bytes", "why it failed"])];
    for task in failed.iter().take(MAX_FAILURES_SHOWN) {
        let why =
            Fault::from_wire(&task.fault).map_or_else(|| task.fault.clone(), |f| f.to_string());
        let range = format!("{}..{}", task.range.0, task.range.1);
        rows.push(row([&task.index.to_string(), &range, &why]));
    }
    let more = failed.len().saturating_sub(MAX_FAILURES_SHOWN);
    let tail = if more > 0 { format!("\n… and {more} more") } else { String::new() };
    text::table(&rows) + &tail
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(index: u32) -> Task {
        Task {
            index,
            state: TaskState::Failed,
            range: (0, 65536),
            output_bytes: 0,
            fuel: 0,
            micros: 0,
            fault: Fault::LimitExceeded("fuel".into()).to_wire(),
        }
    }

    #[test]
    fn a_failed_job_says_which_task_and_keeps_the_faults_code() {
        let tasks: Vec<Task> = (0..12).map(task).collect();
        let text = failures(&tasks.iter().collect::<Vec<_>>());
        assert!(text.contains("limit exceeded: fuel") && text.contains("and 2 more"), "{text}");
        let status = Status {
            id: 1,
            state: TaskState::Failed,
            tasks: 1,
            done: 0,
            fault: task(0).fault,
            reduce_index: 1,
            output_bytes: 0,
        };
        assert_eq!(failure(&status, &[task(0)]).code(), 20);
    }

    #[test]
    fn a_file_that_is_not_wasm_is_refused_before_anything_is_sent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.wasm");
        std::fs::write(&path, "#!/bin/sh").unwrap();
        assert_eq!(read_module(&path).unwrap_err().code(), 16);
        assert_eq!(words(" a  b "), ["a", "b"]);
    }
}
