//! A tenant's program that attacks a node's sockets: `distos-e2e-red ATTACK UID`, started in the
//! directory of the sockets. It gives up root for UID (0: it stays who it is), says `begun` once
//! the attack is under way, goes on until its standard input ends, and says how many connections
//! it has made and how many of them the node has closed.
#![forbid(unsafe_code)]

use std::io::{Error, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use capnp::traits::HasTypeId;
use capnp_rpc::rpc_capnp::message;
use distos_schemas::capability_capnp::door;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{Gid, Uid};

/// The memory service stands first and often: it is where the others work.
const SERVICES: [&str; 10] = [
    "memory",
    "scheduler",
    "memory",
    "attestation",
    "memory",
    "audit",
    "memory",
    "gpu",
    "memory",
    "node",
];
/// How long a connection may take a byte, or give one.
const PATIENCE: Duration = Duration::from_millis(300);
/// Connections at one time, for the attack by their number.
const CONNECTIONS: usize = 10_000;
/// Connections at one time, for the attack by messages without an end.
const DRIPS: usize = 150;
/// What they announce: more than a stranger may, nearly all that it may, and less.
const WORDS: [u32; 4] = [(2 << 20) / 8 - 1, 8190, 8000, 100];

/// What the threads of an attack share.
#[derive(Default)]
struct Red {
    stop: AtomicBool,
    made: AtomicU64,
    closed: AtomicU64,
    begun: AtomicBool,
}

fn main() {
    let mut args = std::env::args().skip(1);
    let attack = args.next().expect("the name of an attack");
    let uid: u32 = args.next().and_then(|text| text.parse().ok()).expect("a uid");
    become_user(uid);
    let red = Arc::new(Red::default());
    let own = red.clone();
    std::thread::spawn(move || {
        // Either its end or an error: nobody wants this any more.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        own.stop.store(true, Ordering::Relaxed);
    });
    match attack.as_str() {
        "noise" => red.pour(noise),
        "malformed" => red.pour(malformed),
        "length" => red.pour(length),
        "calls" => red.pour(calls),
        "endless" => red.drip(),
        "connections" => red.crowd(),
        other => panic!("there is no attack '{other}'"),
    }
    say(&format!("{} {}", red.made.load(Ordering::Relaxed), red.closed.load(Ordering::Relaxed)));
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Whoever started this is gone, then.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// As the only thread, so that it holds for all that are started.
fn become_user(id: u32) {
    if id == 0 {
        return;
    }
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    rustix::thread::set_thread_groups(&[]).expect("root may leave its groups");
    rustix::thread::set_thread_res_gid(gid, gid, gid).expect("root may become anybody");
    rustix::thread::set_thread_res_uid(uid, uid, uid).expect("root may become anybody");
}

/// Numbers that look random and are the same in each run.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next().to_le_bytes()[3]).collect()
    }
}

impl Red {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn begin(&self) {
        if !self.begun.swap(true, Ordering::Relaxed) {
            say("begun");
        }
    }

    fn connect(&self, service: &str) -> Option<UnixStream> {
        let stream = UnixStream::connect(format!("{service}.sock")).ok()?;
        self.made.fetch_add(1, Ordering::Relaxed);
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.set_write_timeout(Some(PATIENCE)).ok()?;
        Some(stream)
    }

    /// One connection after the other, on two threads: `bytes` are written, then the answer is
    /// waited for.
    fn pour(&self, bytes: fn(&mut Dice) -> Vec<u8>) {
        std::thread::scope(|scope| {
            for seed in 1..3 {
                scope.spawn(move || {
                    let mut dice = Dice(seed);
                    while !self.stopped() {
                        let service = SERVICES[dice.next() as usize % SERVICES.len()];
                        if let Some(stream) = self.connect(service) {
                            self.pour_into(stream, &bytes(&mut dice));
                        }
                        self.begin();
                    }
                });
            }
        });
    }

    fn pour_into(&self, mut stream: UnixStream, bytes: &[u8]) {
        let written = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        // What it has to say is not read beyond this: the next connection is the better attack.
        let ended = written.is_err_and(|e| !waits(&e)) || is_closed(&mut stream);
        self.closed.fetch_add(u64::from(ended), Ordering::Relaxed);
    }

    /// Many connections at a time, each in the middle of a message of which a byte comes now and
    /// then and the last one never.
    fn drip(&self) {
        let mut open: Vec<UnixStream> = Vec::new();
        let mut dice = Dice(3);
        while !self.stopped() {
            while open.len() < DRIPS && !self.stopped() {
                let service = SERVICES[open.len() % SERVICES.len()];
                let Some(mut stream) = self.connect(service) else { break };
                let words = WORDS[dice.next() as usize % WORDS.len()];
                let head = [0, words].map(u32::to_le_bytes).concat();
                let sent = stream.write_all(&head).and_then(|()| stream.set_nonblocking(true));
                if sent.is_ok() {
                    open.push(stream);
                }
            }
            self.begin();
            let before = open.len();
            open.retain_mut(|stream| match stream.write(&[0]) {
                Err(e) => waits(&e),
                Ok(_) => true,
            });
            self.closed.fetch_add((before - open.len()) as u64, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// As many connections as there may be, and a new one for each that is closed.
    fn crowd(&self) {
        let hard = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard })
            .expect("a soft limit may be raised to the hard one");
        let most = hard.map_or(CONNECTIONS, |hard| (hard as usize).saturating_sub(32));
        let wanted = CONNECTIONS.min(most);
        let mut open: Vec<UnixStream> = Vec::new();
        let mut next = 0;
        while !self.stopped() {
            let before = open.len();
            open.retain_mut(|stream| !is_closed(stream));
            self.closed.fetch_add((before - open.len()) as u64, Ordering::Relaxed);
            let started = Instant::now();
            while open.len() < wanted && started.elapsed() < PATIENCE && !self.stopped() {
                next += 1;
                let Some(stream) = self.connect(SERVICES[next % SERVICES.len()]) else { continue };
                if stream.set_nonblocking(true).is_ok() {
                    open.push(stream);
                }
            }
            if next >= CONNECTIONS {
                self.begin();
            }
        }
    }
}

fn waits(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// Whether the node has closed it, after whatever it had to say.
fn is_closed(stream: &mut UnixStream) -> bool {
    loop {
        match stream.read(&mut [0; 4096]) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return !waits(&error),
        }
    }
}

fn noise(dice: &mut Dice) -> Vec<u8> {
    let len = 1 + dice.next() as usize % 4096;
    dice.bytes(len)
}

/// Announces more than anybody has memory for, in one of several ways.
fn length(dice: &mut Dice) -> Vec<u8> {
    let heads = [[0, u32::MAX], [0, 1 << 29], [u32::MAX, u32::MAX], [511, 1], [0, 1 << 28]];
    let head = heads[dice.next() as usize % heads.len()];
    [head.map(u32::to_le_bytes).concat(), dice.bytes(2048)].concat()
}

/// Messages that are framed as they should be and say nonsense: noise, calls on what was never
/// exported, calls of methods that there are not, and good calls with flipped bits.
fn malformed(dice: &mut Dice) -> Vec<u8> {
    let mut bytes = bootstrap();
    match dice.next() % 4 {
        0 => {
            let words = 1 + dice.next() as u32 % 256;
            bytes.extend([0, words].map(u32::to_le_bytes).concat());
            bytes.extend(dice.bytes(words as usize * 8));
        }
        1 => bytes.extend(call(1, Some(dice.next() as u32), 0, door::Client::TYPE_ID)),
        2 => bytes.extend(call(1, None, dice.next() as u16, dice.next())),
        _ => {
            let mut flipped = call(1, None, 0, door::Client::TYPE_ID);
            for _ in 0..4 {
                let at = 8 + dice.next() as usize % (flipped.len() - 8);
                flipped[at] ^= 1 << (dice.next() % 8);
            }
            bytes.extend(flipped);
        }
    }
    bytes
}

/// Good calls, more than anybody waits for the answers of.
fn calls(_: &mut Dice) -> Vec<u8> {
    let mut bytes = bootstrap();
    for question in 1..2000 {
        bytes.extend(call(question, None, 0, door::Client::TYPE_ID));
    }
    bytes
}

/// The message that every connection begins with, as question 0.
fn bootstrap() -> Vec<u8> {
    let mut message = capnp::message::Builder::new_default();
    message.init_root::<message::Builder<'_>>().init_bootstrap().set_question_id(0);
    capnp::serialize::write_message_to_words(&message)
}

/// A call without parameters: of an export, or of what the bootstrap answers with.
fn call(question: u32, export: Option<u32>, method: u16, interface: u64) -> Vec<u8> {
    let mut message = capnp::message::Builder::new_default();
    let mut call = message.init_root::<message::Builder<'_>>().init_call();
    call.set_question_id(question);
    call.set_interface_id(interface);
    call.set_method_id(method);
    let mut target = call.reborrow().init_target();
    match export {
        Some(export) => target.set_imported_cap(export),
        None => target.init_promised_answer().set_question_id(0),
    }
    call.init_params();
    capnp::serialize::write_message_to_words(&message)
}
