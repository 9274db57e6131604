//! A tenant at work: blue, with a connection of its own, makes small calls one after the other and
//! notes how long each took and what went wrong.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use capnp::capability::FromClientHook;
use distos_abi::Fault;
use distos_client::{Connection, fault_of};
use distos_schemas::capability_capnp::capability;
use distos_schemas::memory_capnp::{region, regions};
use distos_types::Chain;

use crate::Node;
use crate::holder::{Holder, in_this_process};

const PAGE: u64 = 65536;
const PAGES: u64 = 4;
const READ_BYTES: u32 = 4096;
const WRITE_BYTES: usize = 512;
/// Between two turns: blue is at work, not at an attack of its own.
const PAUSE: Duration = Duration::from_millis(1);
/// A write waits for the disk, so there are fewer.
const TURNS_A_WRITE: u64 = 4;
/// Proving possession of a key takes longer than everything else.
const TURNS_A_CONNECTION: u64 = 4;
/// What goes wrong is told this often.
const MAX_TOLD: usize = 20;

/// What blue does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// A call that does nothing but check the capability.
    Describe,
    /// 4 KiB of a region.
    Read,
    /// 512 bytes of a durable region.
    Write,
    /// A new connection, the proof of possession, and a first call.
    Connect,
}

impl Call {
    /// All of them.
    pub const ALL: [Call; 4] = [Call::Describe, Call::Read, Call::Write, Call::Connect];
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Call::Describe => "describe",
            Call::Read => "read",
            Call::Write => "write",
            Call::Connect => "connect",
        })
    }
}

/// What blue's work consists of.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Whether it writes: on a disk that is full it could not.
    pub writes: bool,
    /// Whether it connects again and again. Whoever shares a Linux user with an attacker may find
    /// that user's connections taken.
    pub connects: bool,
}

/// One call that was answered.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// What it was.
    pub call: Call,
    /// When it began.
    pub begun: Instant,
    /// How long it took.
    pub took: Duration,
}

#[derive(Default)]
struct Books {
    samples: Vec<Sample>,
    faults: Vec<String>,
}

struct Shared {
    stop: AtomicBool,
    books: Mutex<Books>,
}

/// The tenant at work. Dropping it ends its work.
pub struct Blue {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Blue {
    /// Lets the tenant of blue.cap begin.
    ///
    /// # Panics
    /// The node does not let it in.
    pub fn at_work(node: &Node, work: Work) -> Blue {
        let holder = Holder::load(node, "blue");
        let chain = in_this_process(make_region(&holder)).expect("blue may make a region");
        let shared =
            Arc::new(Shared { stop: AtomicBool::new(false), books: Mutex::new(Books::default()) });
        let own = shared.clone();
        let thread = std::thread::spawn(move || {
            let worked = in_this_process(go_on(&holder, &chain, work, &own));
            if let Err(fault) = worked {
                own.fault(format!("blue's work ended: {fault}"));
            }
        });
        Blue { shared, thread: Some(thread) }
    }

    /// What was answered since this was called last, and what went wrong.
    ///
    /// # Panics
    /// Blue's thread has panicked.
    pub fn take(&self) -> (Vec<Sample>, Vec<String>) {
        let mut books = self.shared.books.lock().expect("blue does not panic");
        (std::mem::take(&mut books.samples), std::mem::take(&mut books.faults))
    }
}

impl Drop for Blue {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "blue's thread panicked");
        }
    }
}

impl Shared {
    fn note(&self, call: Call, begun: Instant, answer: Result<(), capnp::Error>) {
        let took = begun.elapsed();
        match answer {
            Ok(()) => {
                let mut books = self.books.lock().expect("nobody panics while it holds the lock");
                books.samples.push(Sample { call, begun, took });
            }
            Err(error) => self.fault(format!("{call} after {took:?}: {}", fault_of(&error))),
        }
    }

    fn fault(&self, text: String) {
        let mut books = self.books.lock().expect("nobody panics while it holds the lock");
        if books.faults.len() < MAX_TOLD {
            books.faults.push(text);
        }
    }
}

/// The sturdy capability to a new region of blue's, written in full.
async fn make_region(holder: &Holder) -> Result<Chain, Fault> {
    let (_connection, regions) = holder.restore::<regions::Client>(holder.chain("regions")).await?;
    let mut request = regions.create_request();
    request.get().set_name("work");
    request.get().set_bytes(PAGES * PAGE);
    let made = request.send().promise.await.map_err(|e| fault_of(&e))?;
    let made = made.get().map_err(|e| fault_of(&e))?;
    let chain = made.get_chain().map_err(|e| fault_of(&e))?.to_vec();
    let region = made.get_region().map_err(|e| fault_of(&e))?;
    for page in 0..PAGES {
        write(&region, page * PAGE, &[b'b'; PAGE as usize]).await.map_err(|e| fault_of(&e))?;
    }
    Chain::decode(&chain)
}

async fn go_on(holder: &Holder, chain: &Chain, work: Work, shared: &Shared) -> Result<(), Fault> {
    let (_connection, region) = holder.restore::<region::Client>(chain).await?;
    for turn in 0_u64.. {
        if shared.stop.load(Ordering::Relaxed) {
            break;
        }
        let begun = Instant::now();
        shared.note(Call::Describe, begun, describe(&region).await);
        let offset = turn % PAGES * PAGE;
        let begun = Instant::now();
        shared.note(Call::Read, begun, read(&region, offset).await);
        if work.writes && turn % TURNS_A_WRITE == 0 {
            let begun = Instant::now();
            shared.note(Call::Write, begun, write(&region, offset, &[b'b'; WRITE_BYTES]).await);
        }
        if work.connects && turn % TURNS_A_CONNECTION == 0 {
            let begun = Instant::now();
            let again: Result<(Connection, region::Client), Fault> = holder.restore(chain).await;
            let answer = match &again {
                Ok((_connection, region)) => describe(region).await,
                Err(fault) => Err(capnp::Error::failed(fault.to_wire())),
            };
            shared.note(Call::Connect, begun, answer);
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

async fn describe(region: &region::Client) -> capnp::Result<()> {
    let capability: capability::Client = region.clone().cast_to();
    capability.describe_request().send().promise.await.map(drop)
}

async fn read(region: &region::Client, offset: u64) -> capnp::Result<()> {
    let mut request = region.read_request();
    request.get().set_offset(offset);
    request.get().set_len(READ_BYTES);
    let answer = request.send().promise.await?;
    let data = answer.get()?.get_data()?;
    // Wrong bytes are no answer.
    if data.len() == READ_BYTES as usize && data.iter().all(|byte| *byte == b'b') {
        return Ok(());
    }
    Err(capnp::Error::failed(Fault::Corrupt("blue reads what it did not write".into()).to_wire()))
}

async fn write(region: &region::Client, offset: u64, data: &[u8]) -> capnp::Result<()> {
    let mut request = region.write_request();
    request.get().set_offset(offset);
    request.get().set_data(data);
    request.send().promise.await.map(drop)
}
