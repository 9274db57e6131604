//! Attacks, and what a tenant at work notices of them. [`Field::measure`] lets blue work in turns
//! without and with an attack of red's, and returns how long blue's calls took in both: figures
//! of one run, in which the one is the other's peer.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::blue::{Blue, Call, Sample, Work};
use crate::disk::Disk;
use crate::{COMMAND_TIMEOUT, Node, Output, distos, is_root, run};

/// Whom red's program runs as where tests run as root: nobody else is this.
const RED_UID: u32 = 0x5245_4400;
/// What blue needs to come to rest after an attack, before its normal work is measured again.
const REST: Duration = Duration::from_millis(700);
/// See [`Measured::starved`].
pub const STARVED_RATIO: f64 = 10.0;
/// See [`Measured::starved`].
pub const STARVED: Duration = Duration::from_millis(100);
/// Commands of red's at one time.
const COMMANDS: usize = 2;
/// Declarations that every program here begins with.
const WASI: &str = r#"
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "\20\00\00\00\0b\00\00\00")
  (data (i32.const 32) "all is well")
"#;

/// What red does, again and again while it lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// Random bytes on every socket.
    Noise,
    /// Messages on every socket that are framed well and say nonsense.
    Malformed,
    /// A message on every socket that announces up to 32 GiB.
    HugeLength,
    /// Messages on every socket that never end.
    EndlessMessage,
    /// Calls on every socket without waiting for their answers.
    EndlessCalls,
    /// Ten thousand connections.
    Connections,
    /// `up` on the directory of the node that runs.
    SecondUp,
    /// `up` on a directory of a newer version.
    NewerDirectory,
    /// Commands with a capability file that is cut or has a flipped byte.
    BrokenCapability,
    /// A module that is not WASM.
    NotWasm,
    /// A program that loops for ever.
    Loop,
    /// A program that allocates without end.
    Allocate,
    /// A program that prints without end.
    Print,
    /// Storing on a disk that is full. For [`Field::on_small_disk`] only.
    FullDisk,
}

impl Attack {
    /// All that a node can be put through on any disk.
    pub const ALL: [Attack; 13] = [
        Attack::Noise,
        Attack::Malformed,
        Attack::HugeLength,
        Attack::EndlessMessage,
        Attack::EndlessCalls,
        Attack::Connections,
        Attack::SecondUp,
        Attack::NewerDirectory,
        Attack::BrokenCapability,
        Attack::NotWasm,
        Attack::Loop,
        Attack::Allocate,
        Attack::Print,
    ];

    /// A short name, for figures.
    pub fn name(self) -> &'static str {
        match self {
            Attack::Noise => "noise",
            Attack::Malformed => "malformed messages",
            Attack::HugeLength => "huge length",
            Attack::EndlessMessage => "endless message",
            Attack::EndlessCalls => "endless calls",
            Attack::Connections => "10,000 connections",
            Attack::SecondUp => "second up",
            Attack::NewerDirectory => "newer directory",
            Attack::BrokenCapability => "broken capability",
            Attack::NotWasm => "not WASM",
            Attack::Loop => "endless loop",
            Attack::Allocate => "endless allocation",
            Attack::Print => "endless output",
            Attack::FullDisk => "full disk",
        }
    }

    /// Whether the node has anything to do with it. What red's own command refuses does not get there.
    pub fn reaches_the_node(self) -> bool {
        use Attack::{BrokenCapability, NewerDirectory, NotWasm, SecondUp};
        !matches!(self, SecondUp | NewerDirectory | BrokenCapability | NotWasm)
    }

    /// How red's program knows it; `None` for what is done by commands.
    fn on_sockets(self) -> Option<&'static str> {
        match self {
            Attack::Noise => Some("noise"),
            Attack::Malformed => Some("malformed"),
            Attack::HugeLength => Some("length"),
            Attack::EndlessMessage => Some("endless"),
            Attack::EndlessCalls => Some("calls"),
            Attack::Connections => Some("connections"),
            _ => None,
        }
    }

    /// The command, its exit code, and words of the fault that it has to tell. `N` is another number
    /// for each of those that run at one time.
    fn command(self) -> (&'static str, i32, &'static str) {
        match self {
            Attack::SecondUp => ("up ../image.toml", 17, "is running in"),
            Attack::NewerDirectory => ("up ../image.toml --node newer", 16, "newer"),
            Attack::BrokenCapability => ("region list --as cut.cap", 16, "cut.cap"),
            Attack::NotWasm => ("run text.wasm --input input --as red.cap", 16, "not WASM"),
            Attack::Loop => ("run loop.wasm --input input --as red.cap --wall 1s", 20, "time"),
            Attack::Allocate => ("run grow.wasm --input input --as red.cap", 20, "memory"),
            Attack::Print => ("run print.wasm --input input --as red.cap", 20, "output"),
            Attack::FullDisk => ("region put large-N large --as red.cap", 17, "full"),
            other => panic!("{} is no command", other.name()),
        }
    }
}

/// Red's own programs run when nobody else wants their processor (sched(7), `SCHED_IDLE`): what is
/// asked is what the node does for red, and not how Linux shares a processor among the node, blue and
/// red's programs.
const BEHIND: [&str; 3] = ["chrt", "--idle", "0"];

fn behind(program: &Path) -> Command {
    let mut command = Command::new(BEHIND[0]);
    command.args(&BEHIND[1..]).arg(program);
    command
}

/// The same for the calling thread and all that it starts, so that starting a program takes no time
/// from anybody else either.
fn stand_back() {
    let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
    let status = Command::new("chrt").args(["--idle", "--pid", "0", &thread]).status();
    assert!(status.is_ok_and(|status| status.success()), "chrt(1) is part of every Debian");
}

/// A node with red, blue at work on it, and what red needs.
pub struct Field {
    blue: Blue,
    /// The node.
    pub node: Node,
    /// Unmounted after the node has ended.
    disk: Option<Disk>,
}

/// What blue noticed.
pub struct Measured {
    /// What red did.
    pub attack: Attack,
    /// Blue's calls while red did nothing, window by window.
    pub normal: Vec<Vec<Sample>>,
    /// Blue's calls during the attack.
    pub attacked: Vec<Vec<Sample>>,
    /// Blue's calls that failed, whenever.
    pub faults: Vec<String>,
    /// How often red tried: connections or commands.
    pub tries: u64,
    /// How many of red's connections the node closed, or of its commands that told a clear fault.
    pub refused: u64,
    /// Commands of red's that did not tell the fault that they should.
    pub unclear: Vec<String>,
}

impl Measured {
    /// The time within which 99 of 100 calls of this kind were answered, normally and during the
    /// attack, in the median window of each: what the machine does besides, it does in one and not in
    /// the next. `None` if there were no calls.
    pub fn p99(&self, call: Call) -> Option<(Duration, Duration)> {
        Some((p99(&self.normal, call)?, p99(&self.attacked, call)?))
    }

    /// Blue's p99 during the attack over its normal one.
    pub fn ratio(&self, call: Call) -> Option<f64> {
        let (normal, attacked) = self.p99(call)?;
        Some(attacked.as_secs_f64() / normal.as_secs_f64().max(1e-6))
    }

    /// Whether calls of this kind were answered normally, and none during the attack.
    pub fn unanswered(&self, call: Call) -> bool {
        p99(&self.normal, call).is_some() && p99(&self.attacked, call).is_none()
    }

    /// Which calls of blue's red keeps from being answered; `None` if there are none. A machine
    /// that is merely busy does not look like this: the p99 is [`STARVED_RATIO`] times the normal
    /// one and also longer than [`STARVED`], or next to nothing was answered.
    pub fn starved(&self) -> Option<String> {
        let slow = Call::ALL.into_iter().find_map(|call| {
            if self.unanswered(call) {
                return Some(format!("{call}: none was answered"));
            }
            let (normal, attacked) = self.p99(call)?;
            let starved = attacked > STARVED && self.ratio(call)? > STARVED_RATIO;
            starved.then(|| format!("{call}: p99 {attacked:?}, normally {normal:?}"))
        });
        slow.or_else(|| {
            let reads = |windows: &[Vec<Sample>]| {
                let reads = windows.iter().flatten().filter(|s| s.call == Call::Read).count();
                reads / windows.len().max(1)
            };
            let (normal, attacked) = (reads(&self.normal), reads(&self.attacked));
            (attacked < normal / 20).then(|| format!("{attacked} reads, normally {normal}"))
        })
    }
}

fn p99(windows: &[Vec<Sample>], call: Call) -> Option<Duration> {
    let in_window = |samples: &Vec<Sample>| {
        let took = samples.iter().filter(|s| s.call == call).map(|s| s.took);
        quantile(took.collect(), 99)
    };
    let mut times: Vec<_> = windows.iter().filter_map(in_window).collect();
    times.sort();
    // Of two windows, the worse.
    times.get(times.len() / 2).copied()
}

/// The least of them that `percent` of them do not exceed.
fn quantile(mut times: Vec<Duration>, percent: usize) -> Option<Duration> {
    times.sort();
    let rank = (times.len() * percent).div_ceil(100);
    times.get(rank.checked_sub(1)?).copied()
}

impl Field {
    /// Boots `node`, of the image of one node ([`single_image`]), and puts blue to work.
    ///
    /// # Panics
    /// The node does not boot, or refuses what it should not.
    pub fn new(mut node: Node) -> Field {
        node.reboot();
        // Connections are shared by Linux user: without one of its own, red could take blue's.
        Field::on(node, None, Work { writes: true, connects: is_root() })
    }

    /// The same on a small disk, with a blue that does not write. `None` if this machine does not
    /// permit mounting one.
    ///
    /// # Panics
    /// As [`Field::new`].
    pub fn on_small_disk(mut node: Node) -> Option<Field> {
        let disk = Disk::mount(&node.directory())?;
        node.reboot();
        Some(Field::on(node, Some(disk), Work { writes: false, connects: is_root() }))
    }

    fn on(node: Node, disk: Option<Disk>, work: Work) -> Field {
        node.tenants(&["red", "blue"]);
        let write = |name: &str, bytes: &[u8]| {
            fs::write(node.file(name), bytes).expect("a file in the work directory");
        };
        let program = |body: &str| {
            let text = format!("(module {WASI} (func (export \"_start\") {body}))");
            wat::parse_str(text).expect("WAT")
        };
        write("input", b"some input");
        write("large", &vec![b'r'; 1 << 20]);
        node.ok(&["region", "put", "input", "input", "--as", "red.cap"]);
        let cap = fs::read(node.file("red.cap")).expect("red's file");
        write("cut.cap", &cap[..cap.len() / 2]);
        fs::copy(node.file("red.key"), node.file("cut.key")).expect("a copy");
        fs::create_dir(node.file("newer")).expect("a directory");
        write("newer/VERSION", b"2\n");
        write("text.wasm", b"#!/bin/sh\necho hello\n");
        write("loop.wasm", &program("(loop (br 0))"));
        let grow =
            "(loop (br_if 0 (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) unreachable";
        write("grow.wasm", &program(grow));
        let say = "(drop (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 8)))";
        write("print.wasm", &program(&format!("(loop {say} (br 0))")));
        let blue = Blue::at_work(&node, work);
        Field { blue, node, disk }
    }

    /// Lets blue work for `window` normally, then under attack, `rounds` times, and once more
    /// normally.
    ///
    /// # Panics
    /// Red's program cannot be started.
    pub fn measure(&self, attack: Attack, window: Duration, rounds: usize) -> Measured {
        let mut measured = Measured {
            attack,
            normal: Vec::new(),
            attacked: Vec::new(),
            faults: Vec::new(),
            tries: 0,
            refused: 0,
            unclear: Vec::new(),
        };
        self.normal(&mut measured, window);
        for _ in 0..rounds {
            if attack == Attack::FullDisk {
                self.disk.as_ref().expect("this field has a disk of its own").fill();
            }
            let red = Red::begin(attack, &self.node);
            // What comes before this is red's preparation.
            measured.faults.extend(self.blue.take().1);
            std::thread::sleep(window);
            let (samples, faults) = self.blue.take();
            measured.attacked.push(samples);
            measured.faults.extend(faults);
            red.end(&mut measured);
            if attack == Attack::FullDisk {
                self.disk.iter().for_each(Disk::free);
            }
            self.normal(&mut measured, window);
        }
        measured
    }

    fn normal(&self, measured: &mut Measured, window: Duration) {
        std::thread::sleep(REST);
        measured.faults.extend(self.blue.take().1);
        std::thread::sleep(window);
        let (samples, faults) = self.blue.take();
        measured.normal.push(samples);
        measured.faults.extend(faults);
    }
}

/// An attack under way.
enum Red {
    Program { child: Child, stdin: ChildStdin, stdout: BufReader<ChildStdout> },
    Commands { shared: Arc<Commands>, threads: Vec<JoinHandle<()>> },
}

struct Commands {
    args: &'static str,
    code: i32,
    words: &'static str,
    /// The directory that they run in, and the node's.
    work: PathBuf,
    node: PathBuf,
    stop: AtomicBool,
    tries: AtomicU64,
    unclear: Mutex<Vec<String>>,
}

impl Red {
    fn begin(attack: Attack, node: &Node) -> Red {
        match attack.on_sockets() {
            Some(name) => Red::program(name, node),
            None => Red::commands(attack, node),
        }
    }

    fn program(name: &str, node: &Node) -> Red {
        let binary = distos().with_file_name("distos-e2e-red");
        let uid = if is_root() { RED_UID } else { 0 };
        let mut command = behind(&binary);
        command.args([name, &uid.to_string()]).current_dir(node.directory().join("run"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = command.spawn();
        let mut child = child.unwrap_or_else(|e| {
            panic!("{}: {e}: run `cargo build -p distos-e2e` first", binary.display())
        });
        let stdin = child.stdin.take().expect("standard input is piped");
        let mut stdout = BufReader::new(child.stdout.take().expect("standard output is piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("a pipe can be read");
        assert_eq!(line, "begun\n", "red's program does not begin");
        Red::Program { child, stdin, stdout }
    }

    fn commands(attack: Attack, node: &Node) -> Red {
        let (args, code, words) = attack.command();
        let shared = Arc::new(Commands {
            args,
            code,
            words,
            work: node.work(),
            node: node.directory(),
            stop: AtomicBool::new(false),
            tries: AtomicU64::new(0),
            unclear: Mutex::default(),
        });
        let threads = (0..COMMANDS).map(|number| {
            let shared = shared.clone();
            std::thread::spawn(move || shared.repeat(number))
        });
        let threads = threads.collect();
        Red::Commands { shared, threads }
    }

    /// Ends it, and adds what came of it.
    fn end(self, measured: &mut Measured) {
        match self {
            Red::Program { mut child, stdin, mut stdout } => {
                drop(stdin);
                let mut text = String::new();
                stdout.read_to_string(&mut text).expect("a pipe can be read");
                let status = child.wait().expect("red's program ends");
                assert!(status.success(), "red's program ended with {status}");
                let mut counts = text.split_whitespace().filter_map(|n| n.parse::<u64>().ok());
                measured.tries += counts.next().unwrap_or(0);
                measured.refused += counts.next().unwrap_or(0);
            }
            Red::Commands { shared, threads } => {
                shared.stop.store(true, Ordering::Relaxed);
                for thread in threads {
                    thread.join().expect("a command of red's ends in time");
                }
                let unclear = std::mem::take(&mut *shared.unclear.lock().expect("nobody panics"));
                let tries = shared.tries.load(Ordering::Relaxed);
                measured.tries += tries;
                measured.refused += tries - unclear.len() as u64;
                measured.unclear.extend(unclear);
            }
        }
    }
}

impl Commands {
    fn repeat(&self, number: usize) {
        stand_back();
        let args = self.args.replace('N', &number.to_string());
        while !self.stop.load(Ordering::Relaxed) {
            let mut command = Command::new(distos());
            command.args(args.split(' ')).current_dir(&self.work);
            command.env("DISTOS_NODE", &self.node);
            let output = run(command, b"", COMMAND_TIMEOUT);
            if !self.is_clear(&output) {
                let told = format!("exit code {}: {}", output.code, output.stderr);
                self.unclear.lock().expect("nobody panics").push(told);
            }
            self.tries.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Two commands at a time may meet the bounds of a tenant.
    fn is_clear(&self, output: &Output) -> bool {
        output.code == self.code && output.stderr.contains(self.words)
    }
}
