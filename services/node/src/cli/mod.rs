//! The command line: one module for each family of commands. A command's work is a function that
//! returns data or a fault; printing happens here, once.
#![allow(clippy::print_stdout, clippy::print_stderr)]

pub mod attest;
pub mod audit;
pub mod cap;
mod carry;
pub mod cluster;
pub mod connect;
pub mod demo;
pub mod files;
pub mod gpu;
pub mod holder;
pub mod image;
pub mod job;
mod joining;
pub mod network;
pub mod node;
pub mod region;
pub mod run;
pub mod secret;
mod share;
mod socket;
pub mod tenant;
pub mod text;
pub mod up;
mod verify;
pub mod workload;

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::task::Poll;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use distos_abi::Fault;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::signal::unix::{Signal, SignalKind, signal};

use holder::Holder;

/// Where a node lives if nobody says.
pub const DEFAULT_NODE: &str = ".distos";
/// The exit code after Ctrl-C, as shells have it; also after SIGTERM and SIGHUP.
const INTERRUPTED: u8 = 130;

const EXAMPLES: &str = "\
Examples:
  distos image keygen signer.key               make a key to sign images with
  distos image sign images/single.toml --key signer.key
  distos up images/single.toml --detach        boot a node in ./.distos
  distos tenant add red                        make a tenant: red.cap and red.key
  distos region put books /usr/share/common-licenses --as red.cap
  distos run target/wasm/wordcount.wasm --input books --map map --reduce reduce --as red.cap
  distos status                                one screen about the node
  distos down

Exit codes: 0 done, 2 wrong usage, 130 interrupted, 10 to 24 a fault, 30 to 32 a verdict (docs/faults.md).";

/// DistOS: a node of capabilities.
#[derive(Parser)]
#[command(name = "distos", version, about = "Boots a DistOS node and works with it", after_help = EXAMPLES)]
pub struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Args, Clone)]
pub struct Common {
    /// Capability file to act with, its secret key beside it as FILE with the extension .key
    /// [default: the operator's, DIR/operator/operator.cap]
    #[arg(long = "as", global = true, value_name = "FILE")]
    acting: Option<PathBuf>,
    /// The node's directory [default: $DISTOS_NODE, else .distos]
    #[arg(long, global = true, value_name = "DIR")]
    node: Option<PathBuf>,
    /// Print JSON, for programs
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Boot a node from an image
    Up(up::UpArgs),
    /// Shut the node down
    Down(node::DownArgs),
    /// Take no new work, and return when what runs has ended
    #[command(after_help = "Example:\n  distos drain && distos down")]
    Drain,
    /// Show the node on one screen: protections, evidence, tenants
    #[command(after_help = "Example:\n  distos status --json | jq .vats[].name")]
    Status,
    /// Sign images, check signatures, and say whose images a node takes
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Make tenants
    #[command(subcommand)]
    Tenant(tenant::TenantCommand),
    /// Store and fetch data
    #[command(subcommand)]
    Region(region::RegionCommand),
    /// Run a WASI program over a region, in parallel
    Run(run::RunArgs),
    /// Look after your jobs, those that go on by themselves too
    #[command(subcommand)]
    Job(job::JobCommand),
    /// Look at, weaken, pass on and end capabilities
    #[command(subcommand)]
    Cap(cap::CapCommand),
    /// Who is who in a cluster: its root, issuers and SVIDs
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// This node in its cluster
    #[command(subcommand)]
    Network(network::NetworkCommand),
    /// Whom this node lets in over the network
    #[command(subcommand)]
    Peers(network::PeersCommand),
    /// Make a local socket that leads to a service of another node, for programs without QUIC
    Connect(connect::ConnectArgs),
    /// Be one of a tenant's agents, for programs that know SPIFFE and not DistOS
    #[command(subcommand)]
    Workload(workload::WorkloadCommand),
    /// Read and verify the audit log
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Evidence about this node
    #[command(subcommand)]
    Attest(attest::AttestCommand),
    /// Keep secrets, and read them under leases
    #[command(subcommand)]
    Secret(secret::SecretCommand),
    /// The node's GPUs
    #[command(subcommand)]
    Gpu(gpu::GpuCommand),
    /// Do the whole main job on a node of its own, showing each step
    Demo(demo::DemoArgs),
}

/// Why a command did not do its work.
#[derive(Debug)]
pub enum Stop {
    /// A fault; its code is the exit code.
    Fault(Fault),
    /// Ctrl-C, SIGTERM or SIGHUP.
    Interrupted,
    /// The arguments do not go together.
    Usage(String),
    /// The command did its work, and what it found has an exit code of its own.
    Verdict {
        /// What it found.
        report: Report,
        /// Its exit code.
        code: u8,
    },
    /// Another process of DistOS ended with this exit code.
    Ended {
        /// Its exit code.
        code: u8,
        /// What it said.
        why: String,
    },
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Stop {
        Stop::Fault(fault)
    }
}

/// What a command has to say, for machines and for people.
#[derive(Debug)]
pub struct Report {
    /// With `--json`.
    pub json: Value,
    /// Otherwise; may be empty.
    pub text: String,
}

impl Report {
    /// For a command that has written its output itself.
    pub fn nothing() -> Report {
        Report { json: Value::Null, text: String::new() }
    }

    fn print(&self, context: &Context) {
        if context.json && !self.json.is_null() {
            say(&self.json.to_string());
        } else if !self.text.is_empty() {
            say(&self.text);
        }
    }
}

/// What every command is given: resolved options.
#[derive(Clone)]
pub struct Context {
    node: Option<PathBuf>,
    acting: Option<PathBuf>,
    /// Whether to print JSON.
    pub json: bool,
}

impl Context {
    /// The node's directory.
    pub fn node(&self) -> &Path {
        self.node.as_deref().unwrap_or(Path::new(DEFAULT_NODE))
    }

    /// The same, if one was named.
    pub fn named_node(&self) -> Option<&PathBuf> {
        self.node.as_ref()
    }

    /// The capability file to act with, if one was named.
    pub fn acting(&self) -> Option<&Path> {
        self.acting.as_deref()
    }

    /// Who acts: the holder of `--as`, else the operator.
    pub fn holder(&self) -> Result<Holder, Fault> {
        match &self.acting {
            Some(path) => Holder::load(path, self.node.as_deref()),
            None => operator(self.node()),
        }
    }
}

/// The operator of the node in `node`.
pub fn operator(node: &Path) -> Result<Holder, Fault> {
    let path = crate::operator::capabilities(node);
    Holder::load(&path, Some(node)).map_err(|fault| match fault {
        Fault::NotFound(what) if !up::is_running(node) => Fault::NotFound(format!(
            "{what}; no node was ever booted in {dir}: start one with `distos up images/single.toml --node {dir}`",
            dir = node.display()
        )),
        other => other,
    })
}

/// Runs the command line. `environment` is the value of `DISTOS_NODE`.
pub fn main(environment: Option<PathBuf>) -> ExitCode {
    let cli = Cli::parse();
    let context = Context {
        node: cli.common.node.or(environment),
        acting: cli.common.acting,
        json: cli.common.json,
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return finish(&context, Err(Fault::internal(e).into())),
    };
    let local = tokio::task::LocalSet::new();
    let outcome = local.block_on(&runtime, dispatch(&context, cli.command));
    let code = finish(&context, outcome);
    // A read of standard input may still block its thread.
    runtime.shutdown_background();
    code
}

async fn dispatch(context: &Context, command: Command) -> Result<Report, Stop> {
    match command {
        Command::Up(args) => up::up(context, args).await,
        Command::Run(args) => run::command(context, args).await,
        Command::Job(command) => job::command(context, command).await,
        Command::Demo(args) => demo::command(context, args).await,
        Command::Region(command) => region::command(context, command).await,
        Command::Secret(command) => secret::command(context, command).await,
        Command::Down(args) => interruptible(node::down(context, args)).await,
        Command::Drain => interruptible(node::drain(context)).await,
        Command::Status => interruptible(node::status(context)).await,
        Command::Image(command) => interruptible(image::command(context, command)).await,
        Command::Tenant(command) => interruptible(tenant::command(context, command)).await,
        Command::Cap(command) => interruptible(cap::command(context, command)).await,
        Command::Cluster(command) => interruptible(cluster::command(command)).await,
        Command::Network(command) => interruptible(network::command(context, command)).await,
        Command::Peers(command) => interruptible(network::peers(context, command)).await,
        Command::Connect(args) => interruptible(connect::command(context, args)).await,
        Command::Workload(command) => interruptible(workload::command(context, command)).await,
        Command::Audit(command) => interruptible(audit::command(context, command)).await,
        Command::Attest(attest::AttestCommand::Verify(args)) => verify::command(&args),
        Command::Attest(attest::AttestCommand::Sign { policy, key }) => {
            Ok(attest::sign(&policy, &key)?)
        }
        Command::Attest(command) => interruptible(attest::command(context, command)).await,
        Command::Gpu(command) => interruptible(gpu::command(context, command)).await?,
    }
}

/// Runs another command, at the node in `node`, as if this program were called with these words.
async fn inner(node: &Path, words: &[&str]) -> Result<Value, Stop> {
    let words = std::iter::once("distos").chain(words.iter().copied());
    let cli = Cli::try_parse_from(words).map_err(|e| Stop::Usage(e.to_string()))?;
    let Common { acting, .. } = cli.common;
    let context = Context { node: Some(node.to_owned()), acting, json: true };
    Ok(Box::pin(dispatch(&context, cli.command)).await?.json)
}

/// How long a command that was interrupted may take to undo what it had begun.
const UNDO_WAIT: Duration = Duration::from_secs(5);

thread_local! {
    /// Listens from the first [`interruptible`] work to the end of the process, so that a signal
    /// between two of them is not lost. Before that, a signal ends the process at once.
    static INTERRUPTS: RefCell<Option<Interrupts>> = const { RefCell::new(None) };
}

/// The signals by which terminals, service managers and `kill` ask a program to end.
struct Interrupts {
    signals: Vec<Signal>,
    came: bool,
}

impl Interrupts {
    fn listen() -> std::io::Result<Interrupts> {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        Ok(Interrupts {
            signals: kinds.map(signal).into_iter().collect::<Result<_, _>>()?,
            came: false,
        })
    }

    fn poll(&mut self, context: &mut std::task::Context<'_>) -> Poll<()> {
        self.came |= self.signals.iter_mut().any(|s| s.poll_recv(context).is_ready());
        if self.came { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// Resolves when a signal has asked this command to end, also if that was earlier.
pub async fn interrupted() -> Result<(), Fault> {
    let listening = INTERRUPTS.with_borrow_mut(|interrupts| {
        if interrupts.is_none() {
            *interrupts = Some(Interrupts::listen()?);
        }
        Ok(())
    });
    listening.map_err(|e: std::io::Error| Fault::internal(format!("no signals: {e}")))?;
    poll_fn(|context| {
        INTERRUPTS.with_borrow_mut(|interrupts| {
            interrupts.as_mut().map_or(Poll::Pending, |i| i.poll(context))
        })
    })
    .await;
    Ok(())
}

/// Does `work` unless Ctrl-C, SIGTERM or SIGHUP comes first; then it is dropped, and with it
/// whatever it had begun.
pub async fn interruptible<T>(work: impl Future<Output = Result<T, Fault>>) -> Result<T, Stop> {
    tokio::select! {
        biased;
        asked = interrupted() => Err(asked.map_or_else(Stop::Fault, |()| Stop::Interrupted)),
        done = work => Ok(done?),
    }
}

/// Does short work that leaves something behind: an interruption that comes meanwhile is seen by
/// the next [`interruptible`] work, when it is known what there is to undo.
pub async fn settled<T>(work: impl Future<Output = Result<T, Fault>>) -> Result<T, Stop> {
    let mut work = std::pin::pin!(work);
    tokio::select! {
        biased;
        _ = interrupted() => {}
        done = &mut work => return Ok(done?),
    }
    match tokio::time::timeout(UNDO_WAIT, work).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(Stop::Interrupted),
    }
}

/// Undoes what a command had begun, for a bounded time. The failure that led here is the one to
/// report, so that of undoing is not.
pub async fn undo<T>(work: impl Future<Output = Result<T, Fault>>) {
    let _ = tokio::time::timeout(UNDO_WAIT, work).await;
}

fn finish(context: &Context, outcome: Result<Report, Stop>) -> ExitCode {
    match outcome {
        Ok(report) => {
            report.print(context);
            ExitCode::SUCCESS
        }
        Err(Stop::Verdict { report, code }) => {
            report.print(context);
            ExitCode::from(code)
        }
        Err(Stop::Fault(fault)) => {
            if context.json {
                complain(&text::fault_json(&fault).to_string());
            } else {
                complain(&format!("distos: {}", told(&fault)));
            }
            ExitCode::from(fault.code())
        }
        Err(Stop::Ended { code, why }) => {
            if context.json {
                let error = serde_json::json!({ "error": { "code": code, "message": why } });
                complain(&error.to_string());
            } else {
                complain(&format!("distos: {why}"));
            }
            ExitCode::from(code)
        }
        Err(Stop::Interrupted) => {
            complain("distos: interrupted");
            ExitCode::from(INTERRUPTED)
        }
        Err(Stop::Usage(what)) => {
            // A message that cannot be written has no reader.
            let _ = Cli::command().error(clap::error::ErrorKind::ArgumentConflict, what).print();
            ExitCode::from(2)
        }
    }
}

/// A fault, with times as people read them.
fn told(fault: &Fault) -> String {
    match fault {
        Fault::Expired { at_ms } => format!("expired: it ended at {}", text::instant(*at_ms)),
        other => other.to_string(),
    }
}

/// Prints a line. A reader that has gone away (`| head`) is no failure.
pub fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Prints a line to standard error. A terminal that has gone away is no reason to panic.
pub fn complain(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Writes raw bytes to standard output, on a thread of its own: a reader that does not read keeps
/// nobody from Ctrl-C.
pub async fn emit(bytes: &[u8]) -> Result<(), Fault> {
    let mut out = tokio::io::stdout();
    let written = async {
        out.write_all(bytes).await?;
        out.flush().await
    };
    written.await.map_err(|e| match e.kind() {
        std::io::ErrorKind::BrokenPipe => {
            Fault::unavailable(0, "nobody reads the standard output any more")
        }
        _ => files::io_fault(Path::new("standard output"), &e),
    })
}

/// A progress bar over `total` units: visible only if somebody watches.
pub fn progress(context: &Context, total: u64, what: &'static str, of_bytes: bool) -> ProgressBar {
    if context.json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = if of_bytes {
        "{msg:12} {bar:30} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left"
    } else {
        "{msg:12} {bar:30} {pos}/{len}  {elapsed}"
    };
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.with_style(style).with_message(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed_and_every_command_shows_an_example() {
        let mut command = Cli::command();
        command.build();
        command.clone().debug_assert();
        fn visit(command: &clap::Command) {
            let leaf = command.get_subcommands().next().is_none();
            if leaf && command.get_name() != "help" {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("distos "), "{} has no example", command.get_name());
            }
            command.get_subcommands().filter(|c| c.get_name() != "help").for_each(visit);
        }
        visit(&command);
    }

    #[test]
    fn the_commands_are_the_documented_ones() {
        let command = Cli::command();
        let mut names: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
        names.sort_unstable();
        let all = "attest audit cap cluster connect demo down drain gpu image job network peers region run \
                   secret status tenant up workload";
        assert_eq!(names.join(" "), all);
    }

    #[test]
    fn options_may_follow_the_command() {
        let cli =
            Cli::try_parse_from(["distos", "region", "list", "--as", "red.cap", "--json"]).unwrap();
        assert!(cli.common.json);
        assert_eq!(cli.common.acting, Some("red.cap".into()));
        let wrong = Cli::try_parse_from(["distos", "region", "create", "x", "--bytes", "many"]);
        assert_eq!(wrong.err().unwrap().exit_code(), 2);
    }
}
