//! Boots real nodes for tests: the `distos` binary as a user starts it, every service a process of
//! its own, and nothing left behind when a test ends, however it ends.
//!
//! What it does not do: it does not look into a node. A test sees what a user sees: commands,
//! files, exit codes and processes.
#![forbid(unsafe_code)]

pub mod attack;
pub mod blue;
pub mod cluster;
pub mod disk;
pub mod etcd;
pub mod gpu_maker;
pub mod holder;
pub mod images;
pub mod steps;
pub mod tpm_maker;
pub mod watch;

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;
use tempfile::TempDir;

/// How long a node may take until every service serves.
pub const BOOT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a command may take, unless a test says otherwise.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the processes of a node may take to be gone after its end.
const END_TIMEOUT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(10);

/// The root of the repository.
pub fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.join("../..").canonicalize().expect("this crate stands two folders below the root")
}

/// The `distos` binary of the profile that this program was built in: tests stand in
/// `target/PROFILE/deps`, other programs in `target/PROFILE`.
///
/// # Panics
/// It is not built.
pub fn distos() -> PathBuf {
    let own = std::env::current_exe().expect("Linux knows the path of a running program");
    let folder = own.parent().expect("a program stands in a folder");
    let is_test = folder.file_name().is_some_and(|name| name == "deps");
    let profile = if is_test { folder.parent().unwrap_or(folder) } else { folder };
    let binary = profile.join("distos");
    assert!(
        binary.is_file(),
        "{} is not there: run `cargo build -p distos-node` first (`make test` does)",
        binary.display()
    );
    binary
}

/// The demo's word count as a WASI program, built if need be.
///
/// # Panics
/// clang or wasi-libc is not installed.
pub fn wordcount() -> PathBuf {
    let directory = repository().join("target/wasm");
    let module = directory.join("wordcount.wasm");
    // It is renamed into place, so what is there is whole.
    if module.is_file() {
        return module;
    }
    fs::create_dir_all(&directory).expect("target/wasm can be made");
    let lock = File::create(directory.join("lock")).expect("target/wasm can be written");
    lock.lock().expect("a file can be locked");
    if !module.is_file() {
        let built = Command::new(repository().join("services/node/demo/build.sh")).output();
        let built = built.expect("the build script can be started");
        let said = String::from_utf8_lossy(&built.stderr).into_owned();
        assert!(built.status.success(), "{said}\nclang and wasi-libc: run `make setup` first");
    }
    module
}

/// The text of the image that a new user boots.
pub fn single_image() -> String {
    let path = repository().join("images/single.toml");
    fs::read_to_string(path).expect("images/single.toml is in the repository")
}

/// Whether this test runs as root, as continuous integration does. Otherwise vats share the user's
/// uid, and tests that need more say so and check less.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// What a command did.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit code; 128 + N if signal N ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error, as text.
    pub stderr: String,
}

impl Output {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// Runs a command with `stdin` as its standard input.
///
/// # Panics
/// It cannot be started, or takes longer than `timeout`; it is killed then.
pub fn run(mut command: Command, stdin: &[u8], timeout: Duration) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let mut input = child.stdin.take().expect("standard input is piped");
    let (out, err) = (drain(child.stdout.take()), drain(child.stderr.take()));
    let stdin = stdin.to_vec();
    // A command that reads no further ends this thread by a broken pipe.
    std::thread::spawn(move || input.write_all(&stdin));
    let status = wait_for_child(&mut child, timeout);
    if status.is_none() {
        // It may have ended since, and then there is nothing to kill.
        let _ = child.kill();
        let _ = child.wait();
    }
    let stdout = out.join().expect("reading a pipe does not panic");
    let stderr = err.join().expect("reading a pipe does not panic");
    let stderr = String::from_utf8_lossy(&stderr).into_owned();
    let Some(status) = status else {
        panic!("{command:?} does not end within {timeout:?}; it said: {stderr}");
    };
    let signal = std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or(0);
    Output { code: status.code().unwrap_or(128 + signal), stdout, stderr }
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
    let mut pipe = pipe.expect("the output is piped");
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is all that there is.
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

fn wait_for_child(child: &mut Child, timeout: Duration) -> Option<std::process::ExitStatus> {
    let end = Instant::now() + timeout;
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Asks `probe` again and again until it answers.
///
/// # Panics
/// It does not within `timeout`; the message says `what` was waited for.
pub fn eventually<T>(what: &str, timeout: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + timeout;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not within {timeout:?}");
        std::thread::sleep(POLL);
    }
}

/// Ends a process by SIGKILL. One that has ended already is left alone.
pub fn kill(pid: u32) {
    signal(pid, Signal::KILL);
}

/// Sends a signal to a process. One that has ended already is left alone.
pub fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id is positive");
    let _ = rustix::process::kill_process(pid, signal);
}

/// A process that a test has seen. The start time tells it from a later one with the same number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its number on this machine.
    pub pid: u32,
    /// Its parent's.
    pub parent: u32,
    /// Its number in the innermost PID namespace that it is in.
    pub inner_pid: u32,
    /// Memory resident, in bytes, shared pages included.
    pub rss_bytes: u64,
    /// Its command line, separated by blanks.
    pub command: String,
    started: u64,
}

impl Process {
    fn read(pid: u32) -> Option<Process> {
        let directory = PathBuf::from(format!("/proc/{pid}"));
        let status = fs::read_to_string(directory.join("status")).ok()?;
        let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name));
        let state = field("State:")?.trim();
        if state.starts_with('Z') || state.starts_with('X') {
            return None;
        }
        let stat = fs::read_to_string(directory.join("stat")).ok()?;
        // The name in brackets may hold blanks; what follows it starts with field 3.
        let started = stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()?;
        let rss = field("VmRSS:").and_then(|v| v.split_whitespace().next()?.parse::<u64>().ok());
        let command = fs::read(directory.join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        Some(Process {
            pid,
            parent: field("PPid:")?.trim().parse().ok()?,
            inner_pid: field("NSpid:")?.split_whitespace().last()?.parse().ok()?,
            rss_bytes: rss.unwrap_or(0) * 1024,
            command: command.trim().to_owned(),
            started,
        })
    }

    /// Whether this is the same process, seen at another time.
    pub fn same_as(&self, other: &Process) -> bool {
        (self.pid, self.started) == (other.pid, other.started)
    }

    /// Whether it still runs.
    pub fn runs(&self) -> bool {
        Process::read(self.pid).is_some_and(|p| p.started == self.started)
    }
}

/// A process and all below it, parents first.
pub fn descendants(of: u32) -> Vec<Process> {
    let listing = fs::read_dir("/proc").expect("/proc is mounted");
    let numbers = listing.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let mut children: HashMap<u32, Vec<Process>> = HashMap::new();
    for process in numbers.filter_map(Process::read) {
        children.entry(process.parent).or_default().push(process);
    }
    let mut found: Vec<Process> = Process::read(of).into_iter().collect();
    let mut at = 0;
    while at < found.len() {
        let below = children.remove(&found[at].pid).unwrap_or_default();
        found.extend(below);
        at += 1;
    }
    found
}

/// A node of one test, in a temporary directory. Dropping it ends the node, checks that no process
/// of it is left and removes everything.
pub struct Node {
    directory: TempDir,
    up: Option<Child>,
    /// How often earlier boots have said that they are ready.
    readies: usize,
    /// What `distos up` is started by, and with.
    under: Vec<OsString>,
}

impl Node {
    /// Boots the image that a new user boots.
    ///
    /// # Panics
    /// It is not ready within [`BOOT_TIMEOUT`].
    pub fn boot() -> Node {
        Node::boot_with(&single_image())
    }

    /// Boots the image with this text.
    ///
    /// # Panics
    /// It is not ready within [`BOOT_TIMEOUT`].
    pub fn boot_with(image: &str) -> Node {
        let mut node = Node::new(image);
        node.reboot();
        node
    }

    /// A directory with the image in it, and nothing that runs yet.
    pub fn new(image: &str) -> Node {
        let directory = tempfile::Builder::new().prefix("distos-e2e-").tempdir();
        let node = {
            let directory = directory.expect("a temporary directory");
            Node { directory, up: None, readies: 0, under: Vec::new() }
        };
        fs::create_dir(node.work()).expect("a directory in it");
        node.ok(&["image", "keygen", &path_text(&node.signer())]);
        node.write_image(image);
        node
    }

    /// The same, with `distos up` started by another program, which gets it as its last arguments.
    pub fn under(image: &str, program: &Path, args: &[&str]) -> Node {
        let mut node = Node::new(image);
        node.under = vec![program.into()];
        node.under.extend(args.iter().map(OsString::from));
        node
    }

    /// Replaces the image, and signs it as the node's operator does.
    pub fn write_image(&self, image: &str) {
        fs::write(self.image(), image).expect("a file in the node's temporary directory");
        let (image, key) = (path_text(&self.image()), path_text(&self.signer()));
        self.ok(&["image", "sign", &image, "--key", &key]);
    }

    /// The image file.
    pub fn image(&self) -> PathBuf {
        self.directory.path().join("image.toml")
    }

    /// The secret key that signs the image; the public one has the extension `pub`.
    pub fn signer(&self) -> PathBuf {
        self.directory.path().join("signer.key")
    }

    /// The node's directory, as `--node` names it.
    pub fn directory(&self) -> PathBuf {
        self.directory.path().join("node")
    }

    /// The directory that commands run in: capability files and data stand here.
    pub fn work(&self) -> PathBuf {
        self.directory.path().join("work")
    }

    /// A file in [`Node::work`].
    pub fn file(&self, name: &str) -> PathBuf {
        self.work().join(name)
    }

    /// Everything that the node has said since it was first booted: its events, one JSON object a
    /// line, and its standard error.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("up.log")
    }

    /// Boots the node again in the same directory.
    ///
    /// # Panics
    /// It runs already, or is not ready within [`BOOT_TIMEOUT`].
    pub fn reboot(&mut self) {
        self.reboot_with(&[]);
    }

    /// Boots the node again with more options of `distos up`.
    ///
    /// # Panics
    /// It runs already, or is not ready within [`BOOT_TIMEOUT`].
    pub fn reboot_with(&mut self, options: &[&str]) {
        self.start_with(options);
        self.wait_until_ready();
    }

    /// Starts `distos up` and does not wait.
    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    fn start_with(&mut self, options: &[&str]) {
        assert!(self.up.is_none(), "the node runs already");
        self.readies = readies(&self.log());
        let mut log = fs::OpenOptions::new();
        let log = log.create(true).append(true).open(self.log_path()).expect("a log file");
        let mut command = self.command(&["up"]);
        if let [program, args @ ..] = &self.under[..] {
            command = self.in_work(Command::new(program));
            command.args(args).arg(distos()).arg("up");
        }
        command.arg(self.image()).args(options).arg("--json").stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a second descriptor")).stderr(log);
        self.up = Some(command.spawn().expect("distos can be started"));
    }

    /// Waits until every service serves.
    ///
    /// # Panics
    /// The node ends before, or is not ready within [`BOOT_TIMEOUT`].
    pub fn wait_until_ready(&mut self) {
        let end = Instant::now() + BOOT_TIMEOUT;
        loop {
            let ended = self.up.as_mut().and_then(|up| up.try_wait().ok().flatten());
            let log = self.log();
            if readies(&log) > self.readies {
                return;
            }
            assert!(ended.is_none(), "the node ended before it was ready ({ended:?}):\n{log}");
            assert!(Instant::now() < end, "the node is not ready after {BOOT_TIMEOUT:?}:\n{log}");
            std::thread::sleep(POLL);
        }
    }

    /// A `distos` command for this node, in [`Node::work`].
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.in_work(Command::new(distos()));
        command.args(args);
        command
    }

    fn in_work(&self, mut command: Command) -> Command {
        command.current_dir(self.work()).env("DISTOS_NODE", self.directory());
        command
    }

    /// Runs a command; it may fail.
    ///
    /// # Panics
    /// It takes longer than [`COMMAND_TIMEOUT`].
    pub fn cli(&self, args: &[&str]) -> Output {
        self.cli_with(args, b"", COMMAND_TIMEOUT)
    }

    /// Runs a command with this standard input, for at most `timeout`.
    ///
    /// # Panics
    /// It takes longer.
    pub fn cli_with(&self, args: &[&str], stdin: &[u8], timeout: Duration) -> Output {
        run(self.command(args), stdin, timeout)
    }

    /// Runs a command that must work.
    ///
    /// # Panics
    /// Its exit code is not 0.
    pub fn ok(&self, args: &[&str]) -> Output {
        let output = self.cli(args);
        assert_eq!(output.code, 0, "distos {}: {}", args.join(" "), output.stderr);
        output
    }

    /// Runs a command that must be refused with this exit code, and returns what it said.
    ///
    /// # Panics
    /// It is not.
    pub fn refused(&self, args: &[&str], code: i32) -> String {
        let output = self.cli(args);
        let (args, out) = (args.join(" "), output.text());
        assert_eq!(output.code, code, "distos {args}: {}\n{out}", output.stderr);
        output.stderr
    }

    /// Runs a command that must work, with `--json`.
    ///
    /// # Panics
    /// It fails, or does not print JSON.
    pub fn json(&self, args: &[&str]) -> Value {
        let output = self.ok(&[args, &["--json"]].concat());
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("distos {}: {e}: {}", args.join(" "), output.text()))
    }

    /// Makes tenants: NAME.cap, NAME.key and NAME.pub in [`Node::work`].
    pub fn tenants(&self, names: &[&str]) {
        for name in names {
            self.ok(&["tenant", "add", name]);
        }
    }

    /// The process that `distos up` is.
    ///
    /// # Panics
    /// The node does not run.
    pub fn up_pid(&self) -> u32 {
        self.up.as_ref().expect("the node runs").id()
    }

    /// The kernel's process.
    ///
    /// # Panics
    /// The node does not run.
    pub fn kernel_pid(&self) -> u32 {
        let up = self.up_pid();
        let kernel = self.processes().into_iter().find(|p| p.parent == up);
        kernel.expect("the kernel is a child of `distos up`").pid
    }

    /// `distos up`, the kernel, and every process below it.
    pub fn processes(&self) -> Vec<Process> {
        self.up.as_ref().map_or_else(Vec::new, |up| descendants(up.id()))
    }

    /// What `status` says about a vat; `None` if there is no such vat.
    pub fn vat(&self, name: &str) -> Option<Value> {
        let status = self.json(&["status"]);
        status["vats"].as_array()?.iter().find(|v| v["name"] == name).cloned()
    }

    /// A vat's process on this machine; `None` while it is down.
    pub fn try_pid_of(&self, name: &str) -> Option<u32> {
        let inner = self.vat(name)?["pid"].as_u64().filter(|pid| *pid != 0)?;
        let processes = self.processes();
        // Without a PID namespace both numbers are the same.
        let found = processes.iter().skip(1).find(|p| u64::from(p.inner_pid) == inner);
        found.map(|p| p.pid)
    }

    /// A vat's process on this machine.
    ///
    /// # Panics
    /// It does not run.
    pub fn pid_of(&self, name: &str) -> u32 {
        self.try_pid_of(name).unwrap_or_else(|| panic!("{name} does not run"))
    }

    /// The process of the software TPM; `None` if none runs.
    pub fn swtpm_pid(&self) -> Option<u32> {
        self.processes().iter().find(|p| p.command.contains("swtpm socket")).map(|p| p.pid)
    }

    /// Memory resident in `distos up`, the kernel and every service together, in bytes. Shared
    /// pages count once for each process, so this is more than is really used.
    pub fn rss_bytes(&self) -> u64 {
        self.processes().iter().map(|p| p.rss_bytes).sum()
    }

    /// Kills the kernel as a power failure would, and waits until all of the node is gone.
    ///
    /// # Panics
    /// A process of the node is left.
    pub fn crash(&mut self) {
        let all = self.processes();
        kill(self.kernel_pid());
        self.wait_for_end(&all);
    }

    /// Shuts the node down in order.
    ///
    /// # Panics
    /// It does not end, or a process of it is left.
    pub fn down(&mut self) {
        let all = self.processes();
        self.ok(&["down"]);
        self.wait_for_end(&all);
    }

    /// Waits until `distos up` and every process that the node had are gone, and returns the exit
    /// code of `distos up`.
    ///
    /// # Panics
    /// One is left.
    pub fn wait_for_end(&mut self, all: &[Process]) -> i32 {
        let mut up = self.up.take().expect("the node runs");
        let status = wait_for_child(&mut up, END_TIMEOUT);
        let left = remaining(all);
        if status.is_none() || !left.is_empty() {
            end_all(&mut up, all);
            panic!("the node is down, and these are left: {}\n{}", names(&left), self.log());
        }
        status.and_then(|s| s.code()).unwrap_or(-1)
    }
}

fn path_text(path: &Path) -> String {
    path.to_str().expect("a temporary directory has a plain name").to_owned()
}

fn readies(log: &str) -> usize {
    log.matches("\"event\":\"ready\"").count()
}

/// Waits until none of these runs, and returns those that do all the same.
fn remaining(all: &[Process]) -> Vec<Process> {
    let end = Instant::now() + END_TIMEOUT;
    loop {
        let left: Vec<Process> = all.iter().filter(|p| p.runs()).cloned().collect();
        if left.is_empty() || Instant::now() >= end {
            return left;
        }
        std::thread::sleep(POLL);
    }
}

fn names(processes: &[Process]) -> String {
    let mut out = String::new();
    for p in processes {
        // Writing to a string cannot fail.
        let _ = write!(out, "{} ({}) ", p.pid, p.command);
    }
    out
}

/// Ends by force what did not end by itself.
fn end_all(up: &mut Child, all: &[Process]) {
    let _ = up.kill();
    let _ = up.wait();
    all.iter().skip(1).filter(|p| p.runs()).for_each(|p| kill(p.pid));
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let said = log.lines().filter(|line| !line.contains("\"event\":\"vat\""));
            eprintln!("--- what the node said ---");
            said.for_each(|line| eprintln!("{line}"));
        }
        let Some(mut up) = self.up.take() else { return };
        let all = descendants(up.id());
        // SIGTERM asks `up` for an orderly end, and works even if no service answers.
        // The second one does not wait for running work.
        signal(up.id(), Signal::TERM);
        let ended = wait_for_child(&mut up, END_TIMEOUT / 4).is_some() || {
            signal(up.id(), Signal::TERM);
            wait_for_child(&mut up, END_TIMEOUT).is_some()
        };
        let left = if ended { remaining(&all) } else { all.clone() };
        end_all(&mut up, &all);
        if !std::thread::panicking() {
            assert!(ended && left.is_empty(), "the node does not end; left: {}", names(&left));
        }
    }
}
