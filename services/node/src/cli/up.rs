//! `up`: boots a node from an image and stays with it. Also the face that the binary shows as the
//! kernel process itself.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use clap::Args;
use distos_abi::Fault;
use distos_host::pidns::{self, KernelSpec};
use distos_host::plan::Plan;
use distos_host::spawn::{Exit, Running};
use rustix::fs::FlockOperation;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};

use super::files::{self, io_fault};
use super::image::{Booting, Checked, PIN};
use super::{Context, Report, Stop, say};
use crate::image::{self, Machine};
use crate::operator;
use crate::paths;
use crate::signature::Pin;

/// The hidden subcommand of the kernel process.
pub const KERNEL_COMMAND: &str = "kernel";
/// Where the kernel process finds the pipe for its events, and the lock that it keeps.
const EVENTS_FD: i32 = 4;
const LOCK_FD: i32 = 5;

/// The layout of a node's directory that this program reads and writes.
const VERSION: u32 = 1;
/// How much of a log is looked through for errors, in bytes.
const MAX_LOG_BYTES: u64 = 64 << 10;
/// How long `down` waits for the last process to end.
const END_WAIT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);

/// Arguments of `up`.
#[derive(Args)]
#[command(after_help = "\
Examples:
  distos image keygen signer.key && distos image sign images/single.toml --key signer.key
  distos up images/single.toml                     stay in the foreground; Ctrl-C shuts down
  distos up images/single.toml --detach            return when the node is ready
  distos up images/single.toml --node /srv/distos --signer signer.pub

The image must be signed. Without --signer, the first boot of a directory pins the key that signed,
and later boots take no other's images.

Ctrl-C lets running work end; a second one ends it at once.")]
pub struct UpArgs {
    #[command(flatten)]
    booting: Booting,
    /// Return once the node is ready, and leave it running
    #[arg(long)]
    detach: bool,
}

pub(super) async fn up(context: &Context, args: UpArgs) -> Result<Report, Stop> {
    if args.detach {
        return detach(context, &args.booting).await;
    }
    let ended = stay(context, &args.booting).await;
    // Of what goes wrong in the kernel's process, the kernel tells itself. Standard error alone
    // would not do: a detached node's is a file, on a disk that may be full.
    if let Err(Stop::Fault(fault)) = &ended
        && context.json
    {
        tell(&json!({ "event": "failed", "why": fault.to_string() }), true);
    }
    ended
}

async fn stay(context: &Context, booting: &Booting) -> Result<Report, Stop> {
    let mut node = Node::start(booting, context.node())?;
    let json = context.json;
    tell(node.image(), json);
    if !json {
        say(&format!("node {}: kernel is {}", context.node().display(), node.isolation()));
    }
    let mut ready = false;
    let ended = node
        .attend(&mut |event| {
            ready |= event["event"] == "ready";
            tell(event, json);
        })
        .await;
    if node.asked && !ready {
        return Err(Stop::Interrupted);
    }
    ended.map(|()| Report::nothing())
}

/// Shows what the kernel tells.
pub fn tell(event: &Value, json: bool) {
    if json {
        say(&event.to_string());
    } else if let Some(text) = event_text(event) {
        say(&text);
    }
}

/// An event for people; `None` if it needs no words.
fn event_text(event: &Value) -> Option<String> {
    let word = |key: &str| event[key].as_str().unwrap_or_default();
    match word("event") {
        "image" => Some(image_text(event)),
        "kernel" => Some(vat_text("kernel", event)),
        "vat" => Some(vat_text(event["name"].as_str().unwrap_or("?"), event)),
        "restart" => Some(format!("{} ended ({}) and is started again", word("name"), word("why"))),
        "ready" => Some(format!(
            "ready: node {}…, boot {}",
            super::text::short(word("node")),
            event["epoch"]
        )),
        "stopped" => Some("the node is down".into()),
        _ => None,
    }
}

/// Whose word the image rests on, and whether that is new.
fn image_text(event: &Value) -> String {
    let name = event["image"].as_str().unwrap_or("?");
    let Some(signer) = event["image_signer"].as_str() else {
        return format!("image: unsigned, {name}: nobody answers for it");
    };
    let pinned = match event["pinned"].as_str() {
        Some("first") => {
            "\n  pinned on first use: from now on this node takes images of this key only"
        }
        Some("named") => "\n  pinned as named: from now on this node takes images of this key only",
        _ => "",
    };
    format!("image: {name}, signed by {signer}{pinned}")
}

/// A process and what protects it.
fn vat_text(name: &str, event: &Value) -> String {
    let protections = event["protections"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut marks = Vec::new();
    let mut reasons = String::new();
    for p in protections {
        let name = p["name"].as_str().unwrap_or("?");
        let enforced = p["enforced"] == true;
        marks.push(format!("{} {name}", if enforced { "✓" } else { "✗" }));
        if !enforced {
            let detail = p["detail"].as_str().unwrap_or_default();
            reasons += &format!("\n{:15}✗ {name}: {detail}", "");
        }
    }
    let pid = format!("pid {}", event["pid"]);
    format!("{name:<14} {pid:<10} {}{reasons}", marks.join("  "))
}

/// A node that this process started: it ends with it.
pub struct Node {
    kernel: Running,
    directory: PathBuf,
    isolation: String,
    /// An event: what was booted, and by whose word.
    image: Value,
    events: Lines<BufReader<pipe::Receiver>>,
    /// Told by the kernel when it could not go on.
    failure: Option<String>,
    /// Whether a signal asked for the end.
    asked: bool,
    /// Whether the kernel was told to end.
    ending: bool,
}

impl Node {
    /// Checks and reads the image, takes the node's directory for itself and starts the kernel.
    /// Nothing is touched if the image is wrong, or if its signature is not one that counts here.
    pub fn start(booting: &Booting, directory: &Path) -> Result<Node, Stop> {
        let (checked, plan) = plan(booting, directory)?;
        prepare_directory(directory)?;
        let lock = lock(directory)?;
        remove_drafts(directory);
        // Asked again, for the directory is this node's only since the lock.
        let pin = checked.pin(directory)?;
        let data_dir = full_path(directory)?;
        let operator_key = Some(operator::key(&data_dir)?.0);
        let plan = Plan { data_dir, operator_key, ..plan };
        Ok(Node::spawn(&plan, pin, lock)?)
    }

    fn spawn(plan: &Plan, pin: Pin, lock: File) -> Result<Node, Fault> {
        let pipe = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
        let (read, write) = pipe.map_err(Fault::internal)?;
        let spec = KernelSpec {
            args: vec!["distos".into(), KERNEL_COMMAND.into()],
            plan: serde_json::to_vec(plan).map_err(Fault::internal)?,
            fds: vec![write, OwnedFd::from(lock)],
        };
        let (kernel, isolation) = pidns::run_in_new_pid_namespace(spec)
            .map_err(|e| Fault::internal(format!("the kernel does not start: {e}")))?;
        let events = pipe::Receiver::from_owned_fd(read).map_err(Fault::internal)?;
        let events = BufReader::new(events).lines();
        Ok(Node {
            kernel,
            directory: plan.data_dir.clone(),
            isolation: isolation.detail,
            image: image_event(plan, pin),
            events,
            failure: None,
            asked: false,
            ending: false,
        })
    }

    /// How the kernel is isolated.
    pub fn isolation(&self) -> &str {
        &self.isolation
    }

    /// What was booted and by whose word, as an event.
    pub fn image(&self) -> &Value {
        &self.image
    }

    /// The kernel's next event; `None` when it has closed its end. Nothing is lost if the future
    /// is dropped. What the operator is given goes to its file and to nobody else, and is there
    /// before the kernel says that it is ready.
    async fn event(&mut self) -> Result<Option<Value>, Fault> {
        loop {
            let Some(line) = self.events.next_line().await.map_err(Fault::internal)? else {
                return Ok(None);
            };
            // Anything else on the kernel's standard output is not for machines.
            let Ok(event) = serde_json::from_str::<Value>(&line) else { continue };
            match event["event"].as_str() {
                Some("operator") => {
                    let file = event["file"].as_str().unwrap_or_default();
                    operator::write_capabilities(&self.directory, file)?;
                    continue;
                }
                Some("failed") => self.failure = event["why"].as_str().map(str::to_owned),
                _ => {}
            }
            return Ok(Some(event));
        }
    }

    /// Waits until every service serves.
    pub async fn until_ready(&mut self, tell: &mut dyn FnMut(&Value)) -> Result<(), Stop> {
        while let Some(event) = self.event().await? {
            tell(&event);
            if event["event"] == "ready" {
                return Ok(());
            }
        }
        self.end(tell).await?;
        Err(Fault::internal("the kernel ended before it was ready").into())
    }

    /// Does `work` and tells events as they come. A kernel that ends early ends the work too: its
    /// calls fail.
    pub async fn beside<T>(
        &mut self,
        work: impl Future<Output = T>,
        tell: &mut dyn FnMut(&Value),
    ) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                event = self.event() => match event {
                    Ok(Some(event)) => tell(&event),
                    Ok(None) | Err(_) => return work.await,
                },
            }
        }
    }

    /// Shuts the node down in order, and waits for it.
    pub async fn stop(&mut self, tell: &mut dyn FnMut(&Value)) -> Result<(), Stop> {
        self.terminate();
        self.attend(tell).await
    }

    /// Stays with the node until it has ended. The first SIGINT or SIGTERM asks it to end, the
    /// second kills it.
    pub async fn attend(&mut self, tell: &mut dyn FnMut(&Value)) -> Result<(), Stop> {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(Fault::internal)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(Fault::internal)?;
        loop {
            tokio::select! {
                event = self.event() => match event? {
                    Some(event) => {
                        tell(&event);
                        self.terminate_again(&event);
                    }
                    None => return self.end(tell).await,
                },
                _ = interrupt.recv() => self.end_asked(),
                _ = terminate.recv() => self.end_asked(),
            }
        }
    }

    fn terminate(&mut self) {
        self.ending = true;
        self.kernel.terminate();
    }

    /// The first process of a PID namespace does not get signals that it does not listen to yet,
    /// so a kernel that goes on starting may not have heard.
    fn terminate_again(&mut self, event: &Value) {
        if self.ending && (event["event"] == "vat" || event["event"] == "ready") {
            self.kernel.terminate();
        }
    }

    fn end_asked(&mut self) {
        if std::mem::replace(&mut self.asked, true) {
            self.kernel.kill();
        } else {
            self.terminate();
            super::complain("shutting down; Ctrl-C again ends running work at once");
        }
    }

    /// Waits for the end of the kernel process, and says how it ended.
    async fn end(&mut self, tell: &mut dyn FnMut(&Value)) -> Result<(), Stop> {
        while let Some(event) = self.event().await? {
            tell(&event);
        }
        let exit = self.kernel.wait().await.map_err(Fault::internal)?;
        let why = self.failure.take();
        match exit {
            Exit::Code(0) => Ok(()),
            Exit::Code(code) => Err(Stop::Ended {
                code: u8::try_from(code).unwrap_or(1),
                why: why.unwrap_or_else(|| format!("the kernel ended with code {code}")),
            }),
            Exit::Signal(signal) => {
                Err(Fault::internal(format!("the kernel was ended by signal {signal}")).into())
            }
        }
    }
}

fn image_event(plan: &Plan, pin: Pin) -> Value {
    let pinned = match pin {
        Pin::Stays => None,
        Pin::First => Some("first"),
        Pin::Named => Some("named"),
    };
    json!({
        "event": "image", "image": plan.image, "image_hash": hex::encode(plan.image_hash),
        "image_signer": plan.image_signer.map(hex::encode), "pinned": pinned,
    })
}

/// Checks the image's signature, and only then reads and resolves the image against this machine.
fn plan(booting: &Booting, directory: &Path) -> Result<(Checked, Plan), Fault> {
    let checked = booting.check()?;
    checked.admit(directory)?;
    let plan = resolve(&checked.text, &checked.path, directory)?;
    paths::checked(&plan).map_err(|lacking| {
        Fault::malformed(format!("the image has unprotected paths; nothing was started\n{lacking}"))
    })?;
    let image_signer = checked.signer.map(|signer| signer.0);
    Ok((checked, Plan { image_signer, ..plan }))
}

/// Resolves an image against this machine.
pub fn resolve(text: &str, path: &Path, directory: &Path) -> Result<Plan, Fault> {
    let machine = Machine {
        builtins: &crate::vat::PROGRAMS,
        executable: &|path| {
            path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
        },
        exists: &|path| path.exists(),
    };
    image::parse(text, path, directory, &machine).map_err(|errors| {
        let count = errors.0.len();
        let faults = if count == 1 { "one fault".into() } else { format!("{count} faults") };
        Fault::malformed(format!("the image has {faults}; nothing was started\n{errors}"))
    })
}

/// Makes the directory if it is not there, and refuses one that is not a node's or that a newer
/// program wrote.
pub fn prepare_directory(directory: &Path) -> Result<(), Fault> {
    let version = directory.join("VERSION");
    match files::read_text(&version, 64) {
        Ok(text) => return check_version(directory, &text),
        Err(Fault::NotFound(_)) => {}
        Err(fault) => return Err(fault),
    }
    let make = std::fs::DirBuilder::new().recursive(true).mode(0o711).create(directory);
    make.map_err(|e| io_fault(directory, &e))?;
    let foreign = |name: &OsStr| !files::is_draft_of(&version, name);
    let mut content = std::fs::read_dir(directory).map_err(|e| io_fault(directory, &e))?;
    // What a start that was killed had begun to write is no reason to refuse the next one.
    if content.any(|entry| entry.map_or(true, |e| foreign(&e.file_name()))) {
        return Err(Fault::malformed(format!(
            "{} holds other files and is not a node's directory: choose another --node",
            directory.display()
        )));
    }
    files::write(&version, format!("{VERSION}\n").as_bytes(), files::PUBLIC)
}

/// Removes what starts that were killed had begun to write. The lock is held: nobody writes it now.
fn remove_drafts(directory: &Path) {
    let mut places = vec![directory.join("VERSION"), directory.join(PIN)];
    places.extend(operator::places(directory));
    let folders = [directory.to_path_buf(), operator::directory(directory)];
    let contents = folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok());
    for entry in contents.flatten().flatten() {
        if places.iter().any(|place| files::is_draft_of(place, &entry.file_name())) {
            // A draft that cannot be removed is in nobody's way.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn check_version(directory: &Path, text: &str) -> Result<(), Fault> {
    let at = directory.display();
    match text.trim().parse::<u32>() {
        Ok(VERSION) => Ok(()),
        Ok(newer) if newer > VERSION => Err(Fault::malformed(format!(
            "{at} was written by a newer DistOS (layout {newer}, this one knows {VERSION}): \
             use that one, or another --node"
        ))),
        _ => Err(Fault::Corrupt(format!("{at}/VERSION: '{}' is no version", text.trim()))),
    }
}

fn full_path(directory: &Path) -> Result<PathBuf, Fault> {
    directory.canonicalize().map_err(|e| io_fault(directory, &e))
}

/// Takes the directory for one node. The kernel process keeps the lock too, so that it is free
/// only when both are gone.
fn lock(directory: &Path) -> Result<File, Fault> {
    let path = directory.join("lock");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let mut file = options.open(&path).map_err(|e| io_fault(&path, &e))?;
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut pid = String::new();
        // Only for the message.
        let _ = Read::by_ref(&mut file).take(32).read_to_string(&mut pid);
        let at = directory.display();
        return Err(Fault::unavailable(
            1000,
            format!(
                "a node is running in {at} (pid {}): stop it with `distos down --node {at}`, or choose another --node",
                pid.trim()
            ),
        ));
    }
    let write = file.set_len(0).and_then(|()| file.rewind());
    let write = write.and_then(|()| writeln!(file, "{}", std::process::id()));
    write.map_err(|e| io_fault(&path, &e))?;
    Ok(file)
}

/// Whether a node runs in this directory.
pub fn is_running(directory: &Path) -> bool {
    let Ok(file) = File::open(directory.join("lock")) else { return false };
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_err()
}

/// Waits until nothing of the node runs any more.
pub async fn wait_for_end(directory: &Path) -> Result<(), Fault> {
    let gone = async {
        while is_running(directory) {
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(END_WAIT, gone)
        .await
        .map_err(|_| Fault::unavailable(1000, "the node is still ending: try `distos down --now`"))
}

/// Starts this same command in the background and waits until its node is ready.
async fn detach(context: &Context, booting: &Booting) -> Result<Report, Stop> {
    let directory = context.node();
    plan(booting, directory)?;
    prepare_directory(directory)?;
    drop(lock(directory)?);
    let log_path = directory.join("node.log");
    let mut options = OpenOptions::new();
    let log =
        options.create(true).append(true).open(&log_path).map_err(|e| io_fault(&log_path, &e))?;
    let log_start = log.metadata().map_err(|e| io_fault(&log_path, &e))?.len();
    let program = std::env::current_exe().map_err(Fault::internal)?;
    let mut command = std::process::Command::new(program);
    command.arg("up").arg(booting.image()).args(booting.options());
    command.arg("--node").arg(directory).arg("--json");
    // A process group of its own: Ctrl-C in this terminal is not meant for it.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).process_group(0);
    // From here on a signal is listened to: it must not end this process and leave the other.
    super::interruptible(async { Ok(()) }).await?;
    let mut child = command.spawn().map_err(Fault::internal)?;
    let Some(events) = child.stdout.take() else {
        return Err(Fault::internal("the node has no output").into());
    };
    let events = pipe::Receiver::from_owned_fd(OwnedFd::from(events)).map_err(Fault::internal)?;
    let mut lines = BufReader::new(events).lines();
    let mut why = None;
    let wait = async {
        while let Some(line) = lines.next_line().await.map_err(Fault::internal)? {
            let Ok(event) = serde_json::from_str::<Value>(&line) else { continue };
            tell(&event, context.json);
            match event["event"].as_str() {
                Some("ready") => return Ok(true),
                Some("failed") => why = event["why"].as_str().map(str::to_owned),
                _ => {}
            }
        }
        Ok(false)
    };
    match super::interruptible(wait).await {
        Ok(true) => {
            let (pid, at) = (child.id(), directory.display());
            if !context.json {
                say(&format!(
                    "running in {at} (pid {pid}); stop it with `distos down --node {at}`"
                ));
            }
            Ok(Report::nothing())
        }
        Ok(false) => {
            let status = child.wait().map_err(Fault::internal)?;
            let code = status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(1);
            let why = why.unwrap_or_else(|| "it ended before it was ready".into());
            let said = errors_in(&log_path, log_start);
            Err(Stop::Ended { code, why: format!("{why} (see {}){said}", log_path.display()) })
        }
        Err(stop) => {
            let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
            if let Some(pid) = pid {
                // The child is not reaped yet, so the number is still its own.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
            let _ = child.wait();
            Err(stop)
        }
    }
}

/// What a node's log says about errors from byte `start` on, for the message of a failed start.
fn errors_in(log: &Path, start: u64) -> String {
    let mut text = Vec::new();
    let read = File::open(log).and_then(|mut file| {
        file.seek(SeekFrom::Start(start))?;
        file.take(MAX_LOG_BYTES).read_to_end(&mut text)
    });
    if read.is_err() {
        return String::new();
    }
    let text = String::from_utf8_lossy(&text);
    text.lines().filter(|line| line.contains(" ERROR ")).map(|line| format!("\n  {line}")).collect()
}

/// The kernel process: what [`Node::start`] started.
pub fn kernel() -> ExitCode {
    match enter_kernel() {
        Ok((plan, _lock)) => distos_host::start::main(plan),
        Err(fault) => {
            eprintln!("distos kernel: {fault} (nodes are started with `distos up`)");
            ExitCode::from(fault.code())
        }
    }
}

fn enter_kernel() -> Result<(Plan, OwnedFd), Fault> {
    let plan = pidns::inherited_plan().map_err(Fault::internal)?;
    let events = pidns::inherited(EVENTS_FD).map_err(Fault::internal)?;
    let lock = pidns::inherited(LOCK_FD).map_err(Fault::internal)?;
    rustix::stdio::dup2_stdout(&events).map_err(Fault::internal)?;
    // A session of its own: Ctrl-C in the terminal reaches `up`, which asks for an orderly end,
    // and not each service by itself. Pid 1 of a namespace leads a session already or can.
    let _ = rustix::process::setsid();
    let plan = serde_json::from_slice(&plan).map_err(|e| Fault::malformed(format!("plan: {e}")))?;
    Ok((plan, lock))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_node_in_one_directory_is_told_who_is_there() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_running(dir.path()));
        let held = lock(dir.path()).unwrap();
        assert!(is_running(dir.path()));
        let fault = lock(dir.path()).unwrap_err();
        assert_eq!(fault.code(), 17);
        assert!(fault.to_string().contains(&std::process::id().to_string()), "{fault}");
        drop(held);
        assert!(!is_running(dir.path()));
    }

    #[test]
    fn a_directory_of_a_newer_node_or_of_somebody_elses_files_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let node = dir.path().join("a/b");
        std::fs::create_dir_all(&node).unwrap();
        std::fs::write(node.join(".VERSION.77"), "").unwrap();
        prepare_directory(&node).unwrap();
        prepare_directory(&node).unwrap();
        let secret = operator::make_directory(&node).unwrap().join(".operator.key.77");
        std::fs::write(&secret, "").unwrap();
        remove_drafts(&node);
        assert_eq!(std::fs::read_dir(&node).unwrap().count(), 2);
        assert!(!secret.exists());
        std::fs::write(node.join("VERSION"), "2\n").unwrap();
        let fault = prepare_directory(&node).unwrap_err();
        assert!(fault.to_string().contains("newer DistOS"), "{fault}");
        std::fs::write(node.join("VERSION"), "x").unwrap();
        assert_eq!(prepare_directory(&node).unwrap_err().code(), 23);
        assert_eq!(prepare_directory(dir.path()).unwrap_err().code(), 16);
    }

    #[test]
    fn a_wrong_image_is_told_with_file_and_line() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("x.toml");
        std::fs::write(&image, "image = { name = \"x\" }\n[vat.y]\nprogram = \"nosuch\"\n")
            .unwrap();
        let booting = Booting::of(&image);
        // The signature comes first: what nobody answers for is not even read.
        assert_eq!(plan(&booting, dir.path()).err().unwrap().code(), 22);
        let secret = distos_types::HolderSecret::from_seed([1; 32]);
        super::super::image::Signed::at(&image, &dir.path().join("x.toml.sig"))
            .sign(&secret)
            .unwrap();
        let fault = plan(&booting, dir.path()).err().unwrap();
        assert_eq!(fault.code(), 16);
        assert!(fault.to_string().contains("x.toml:3: there is no program 'nosuch'"), "{fault}");
    }

    #[test]
    fn what_is_not_enforced_is_shown_with_its_reason() {
        let event = json!({ "event": "vat", "name": "memory", "pid": 7, "protections": [
            { "name": "seccomp", "enforced": true, "detail": "" },
            { "name": "own uid", "enforced": false, "detail": "not root" },
        ] });
        let text = event_text(&event).unwrap();
        assert!(text.contains("✓ seccomp") && text.contains("✗ own uid: not root"), "{text}");
        assert_eq!(event_text(&json!({ "event": "failed", "why": "x" })), None);
    }
}
