//! `job`: the jobs of a tenant, over whichever connection they were made.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use distos_abi::Fault;
use distos_schemas::scheduler_capnp::{TaskState, job, job_status, queue};
use serde_json::{Value, json};

use super::files::{self, Draft};
use super::holder::{Holder, call, now_ms, read};
use super::run::{self, Done};
use super::text::{self, row};
use super::{Context, Report, Stop, interruptible, node, region as regions};

/// Commands about jobs.
#[derive(Subcommand)]
pub enum JobCommand {
    /// Your jobs, and what has become of them
    #[command(after_help = "Example:\n  distos job list --as red.cap")]
    List,
    /// How far a job is
    #[command(after_help = "Example:\n  distos job show 7 --as red.cap")]
    Show(JobArgs),
    /// Wait until a job has ended, and fetch its result
    Wait(WaitArgs),
    /// End a job
    #[command(after_help = "Example:\n  distos job cancel 7 --as red.cap")]
    Cancel(JobArgs),
}

/// Which job.
#[derive(Args)]
pub struct JobArgs {
    /// Its number, as `distos run --detach` and `distos job list` tell it
    job: u64,
}

/// Arguments of `job wait`.
#[derive(Args)]
#[command(after_help = "\
Examples:
  distos job wait 7 --as red.cap
  distos job wait 7 --out counts.txt --as red.cap
  distos job wait 7 --results there/red.cap --as red.cap

The result of a job that was deployed is printed or written to --out, and the region that held it is
dropped; likewise if the job has failed, for then there is none. Ctrl-C ends the waiting and not the job.")]
pub struct WaitArgs {
    #[command(flatten)]
    which: JobArgs,
    /// The capability file for the region that its output goes to, if another node keeps it
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
    /// That node's directory, or one with the sockets of `distos connect` [default: as the file says]
    #[arg(long, value_name = "DIR", requires = "results")]
    results_node: Option<PathBuf>,
    /// Fetch nothing and drop nothing: `distos region` has the output
    #[arg(long, conflicts_with = "out")]
    keep: bool,
    /// Write the result to a file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(super) async fn command(context: &Context, command: JobCommand) -> Result<Report, Stop> {
    match command {
        JobCommand::List => interruptible(list(context)).await,
        JobCommand::Show(args) => interruptible(show(context, args.job)).await,
        JobCommand::Wait(args) => interruptible(wait(context, args)).await,
        JobCommand::Cancel(args) => interruptible(cancel(context, args.job)).await,
    }
}

async fn list(context: &Context) -> Result<Report, Fault> {
    let holder = context.holder()?;
    let queue: queue::Client = holder.root("queue").await?;
    let answer = call(queue.list_request()).await?;
    let (jobs, drained_at_ms) = read(|| {
        let answer = answer.get()?;
        let jobs: capnp::Result<Vec<Value>> = answer.get_jobs()?.iter().map(told).collect();
        Ok((jobs?, drained(answer.get_drained_at_ms())))
    })?;
    let mut text = match jobs.is_empty() {
        true => "no jobs: none was run since the scheduler was started".to_owned(),
        false => table(&jobs),
    };
    if let Some(at_ms) = drained_at_ms {
        let line = node::drain_line(at_ms, now_ms());
        text = format!("{text}\nthe node's evidence has expired: {line}");
    }
    Ok(Report { json: json!({ "jobs": jobs, "drained_at_ms": drained_at_ms }), text })
}

/// When what still runs on a node is ended for want of evidence; `None` if it is not. For whoever has a queue there.
pub(super) async fn drained_at_ms(holder: &Holder) -> Result<Option<u64>, Fault> {
    let queue: queue::Client = holder.root("queue").await?;
    let answer = call(queue.list_request()).await?;
    read(|| Ok(drained(answer.get()?.get_drained_at_ms())))
}

/// As the scheduler says it: 0 is never.
fn drained(at_ms: u64) -> Option<u64> {
    Some(at_ms).filter(|at_ms| *at_ms != 0)
}

async fn show(context: &Context, id: u64) -> Result<Report, Fault> {
    let holder = context.holder()?;
    let job = find(&holder, id).await?;
    let answer = call(job.status_request()).await?;
    let json = read(|| told(answer.get()?.get_status()?))?;
    Ok(Report { text: table(std::slice::from_ref(&json)), json })
}

async fn cancel(context: &Context, id: u64) -> Result<Report, Fault> {
    let holder = context.holder()?;
    let job = find(&holder, id).await?;
    call(job.cancel_request()).await?;
    let answer = call(job.status_request()).await?;
    let json = read(|| told(answer.get()?.get_status()?))?;
    Ok(Report { text: format!("job {id}: {}", json["state"].as_str().unwrap_or_default()), json })
}

async fn wait(context: &Context, args: WaitArgs) -> Result<Report, Fault> {
    let holder = context.holder()?;
    let keeper = args.results.as_deref();
    let keeper = keeper.map(|file| Holder::load(file, args.results_node.as_deref())).transpose()?;
    let id = args.which.job;
    let job = find(&holder, id).await?;
    let (name, state) = {
        let answer = call(job.status_request()).await?;
        let told = || {
            let status = answer.get()?.get_status()?;
            Ok((status.get_output()?.to_str()?.to_owned(), status.get_state()?))
        };
        read(told)?
    };
    // Both are looked for first: a result that cannot be fetched or kept is not worth waiting for.
    let output = match !name.is_empty() && !args.keep {
        true => match regions::open(keeper.as_ref().unwrap_or(&holder), &name).await {
            // It was dropped when this was told before.
            Err(Fault::NotFound(_))
                if matches!(state, TaskState::Failed | TaskState::Cancelled) =>
            {
                None
            }
            Err(Fault::NotFound(what)) => {
                return Err(Fault::NotFound(format!(
                    "{what}: the result was fetched before, or another node keeps it (--results FILE)"
                )));
            }
            opened => Some(opened?),
        },
        false => None,
    };
    let draft = args.out.as_deref().map(|out| Draft::create(out, files::PUBLIC)).transpose()?;
    let bar = super::progress(context, 0, "running", false);
    let status = run::follow(&job, &bar).await;
    bar.finish_and_clear();
    let status = status?;
    let Some(output) = output else {
        if status.state != TaskState::Done {
            return Err(run::failure(&status, &run::tasks(&job).await?));
        }
        let json = json!({ "job": id, "tasks": status.tasks });
        return Ok(Report { text: format!("job {id}: done, {} tasks", status.tasks), json });
    };
    let ended_well = status.state == TaskState::Done;
    let fetched = run::result(&job, &output, status).await;
    if fetched.is_err() && !ended_well {
        super::undo(regions::drop_region(&output)).await;
    }
    let Done { mut json, output: bytes } = fetched?;
    let text = match draft {
        Some(mut draft) => {
            draft.append(&bytes)?;
            draft.keep()?;
            format!("job {id}: done")
        }
        None if context.json => {
            json["output"] = json!(String::from_utf8_lossy(&bytes));
            String::new()
        }
        None => {
            super::emit(&bytes).await?;
            String::new()
        }
    };
    regions::drop_region(&output).await?;
    Ok(Report { json, text })
}

/// One of the holder's tenant's jobs.
async fn find(holder: &Holder, id: u64) -> Result<job::Client, Fault> {
    let queue: queue::Client = holder.root("queue").await?;
    let mut request = queue.job_request();
    request.get().set_id(id);
    let answer = call(request).await.map_err(|fault| match fault {
        Fault::NotFound(what) => Fault::NotFound(format!(
            "{what}: `distos job list` has those that are; what has ended is forgotten in time, and when the \
             scheduler is started again, and its output region stays"
        )),
        other => other,
    })?;
    read(|| answer.get()?.get_job())
}

fn told(status: job_status::Reader<'_>) -> capnp::Result<Value> {
    let state = match status.get_state()? {
        TaskState::Queued => "queued",
        TaskState::Running => "running",
        TaskState::Done => "done",
        TaskState::Failed => "failed",
        TaskState::Cancelled => "cancelled",
    };
    let fault = status.get_fault()?.to_str()?;
    let fault = Fault::from_wire(fault).map_or_else(|| fault.to_owned(), |f| f.to_string());
    Ok(json!({
        "job": status.get_id(), "name": status.get_name()?.to_str()?, "state": state,
        "tasks": status.get_tasks(), "done": status.get_done(), "failed": status.get_failed(),
        "deployed": status.get_deployed(), "output": status.get_output()?.to_str()?, "fault": fault,
    }))
}

fn table(jobs: &[Value]) -> String {
    let mut rows = vec![row(["job", "name", "state", "done", "output", "why"])];
    for job in jobs {
        rows.push(row([
            &job["job"].to_string(),
            job["name"].as_str().unwrap_or_default(),
            job["state"].as_str().unwrap_or_default(),
            &format!("{}/{}", job["done"], job["tasks"]),
            job["output"].as_str().filter(|name| !name.is_empty()).unwrap_or("-"),
            job["fault"].as_str().unwrap_or_default(),
        ]));
    }
    text::table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deployment_that_a_restart_has_ended_says_what_to_do() {
        let mut message = capnp::message::Builder::new_default();
        let mut status = message.init_root::<job_status::Builder<'_>>();
        status.set_id(7);
        status.set_name("words");
        status.set_state(TaskState::Failed);
        status.set_deployed(true);
        status.set_output("run-5c2f");
        status.set_fault(Fault::unavailable(0, "deploy it again").to_wire().as_str());
        let json = told(status.into_reader()).unwrap();
        let text = table(&[json]);
        for word in ["7", "words", "failed", "run-5c2f", "deploy it again"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert!(!text.contains("distos:unavailable"), "{text}");
    }
}
