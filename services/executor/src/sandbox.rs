//! One task in one sandbox (S2). A sandbox has stdin, stdout, stderr, arguments, and the secrets that its job was given
//! (`private.rs`), and nothing else: no environment, no other file, no socket. Its clocks and its randomness are made up:
//!
//! - the wall clock stands still at the Unix epoch, and the monotonic clock moves on by a
//!   millisecond each time it is read, so a program cannot time its neighbours;
//! - random bytes are a fixed sequence for a given job and task: the same task gives the same
//!   output wherever it runs. They are not secret.
//!
//! Every task has a store, a memory and tables of its own, which end with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use distos_abi::Fault;
use tokio::sync::oneshot;
use wasmtime::{ResourceLimiter, Store, Trap, UpdateDeadline};
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::{
    Deterministic, HostMonotonicClock, HostWallClock, I32Exit, WasiCtxBuilder, WasiView,
};

use crate::engine::{Engine, Program};
use crate::private::{Private, Secret};
use crate::stdio::{Beyond, Sink, Stdin};

/// What one task may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// WASM instructions, roughly.
    pub fuel: u64,
    /// Linear memory.
    pub memory_bytes: u64,
    /// stdout; more ends the task.
    pub output_bytes: usize,
    /// Time from start to end.
    pub wall: Duration,
}

/// One task of a program.
#[derive(Clone, Debug)]
pub struct Task {
    /// argv, without the program's name.
    pub args: Vec<String>,
    /// What it may use.
    pub limits: Limits,
    /// Where its random bytes start: same seed, same bytes.
    pub seed: u64,
    /// What it finds in its private directory.
    pub secrets: Arc<[Secret]>,
}

/// A task that ended well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Its stdout.
    pub output: Vec<u8>,
    /// The fuel it used.
    pub fuel: u64,
    /// How long it ran, in microseconds.
    pub micros: u64,
}

/// How often a program is left to look whether its time is over, or it was cancelled.
const LOOK: Duration = Duration::from_millis(10);
/// How much of stderr a fault's text can draw on.
const STDERR_BYTES: usize = 4096;
/// Elements of all tables together; a C program needs one for each function whose address it takes.
const TABLE_ELEMENTS: usize = 100_000;
/// The most bytes that one WASI call moves or copies, and so the largest single `read`.
const HOST_CALL_BYTES: usize = 16 * 1024 * 1024;
/// Handles that a task may have open at once: its streams, and what one `poll` waits for.
const MAX_HANDLES: usize = 256;
/// The most random bytes that one call returns.
const RANDOM_CALL_BYTES: u64 = 64 * 1024;
const RANDOM_CYCLE_BYTES: usize = 4096;

/// What the store of a task holds.
pub(crate) struct Cell {
    pub(crate) wasi: WasiP1Ctx,
    pub(crate) private: Private,
    bounds: Bounds,
}

/// Refuses memory beyond the limit, and remembers that it did.
struct Bounds {
    memory_bytes: u64,
    refused: bool,
}

impl ResourceLimiter for Bounds {
    fn memory_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let fits = desired as u64 <= self.memory_bytes;
        self.refused |= !fits;
        Ok(fits)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let fits = desired <= TABLE_ELEMENTS;
        self.refused |= !fits;
        Ok(fits)
    }

    fn instances(&self) -> usize {
        1
    }

    fn tables(&self) -> usize {
        1
    }

    fn memories(&self) -> usize {
        1
    }
}

struct StoppedClock;

impl HostWallClock for StoppedClock {
    fn resolution(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn now(&self) -> Duration {
        Duration::ZERO
    }
}

#[derive(Default)]
struct CountingClock(AtomicU64);

const CLOCK_STEP_NS: u64 = 1_000_000;

impl HostMonotonicClock for CountingClock {
    fn resolution(&self) -> u64 {
        CLOCK_STEP_NS
    }

    fn now(&self) -> u64 {
        self.0.fetch_add(CLOCK_STEP_NS, Ordering::Relaxed)
    }
}

/// SplitMix64: well spread bytes from a small seed; not secret.
fn random_cycle(seed: u64) -> Deterministic {
    let mut state = seed;
    let word = |_| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    };
    Deterministic::new((0..RANDOM_CYCLE_BYTES / 8).flat_map(word).collect())
}

/// The streams of one task.
struct Streams {
    stdin: Stdin,
    stdout: Sink,
    stderr: Sink,
}

fn cell(task: &Task, streams: &Streams) -> Cell {
    let mut wasi = WasiCtxBuilder::new();
    wasi.arg("program")
        .args(&task.args)
        .stdin(streams.stdin.clone())
        .stdout(streams.stdout.clone())
        .stderr(streams.stderr.clone())
        .wall_clock(StoppedClock)
        .monotonic_clock(CountingClock::default())
        .secure_random(random_cycle(task.seed))
        .insecure_random(random_cycle(task.seed))
        .insecure_random_seed(u128::from(task.seed))
        .max_random_size(RANDOM_CALL_BYTES)
        .allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false);
    let mut wasi = wasi.build_p1();
    wasi.ctx().table.set_max_capacity(MAX_HANDLES);
    let bounds = Bounds { memory_bytes: task.limits.memory_bytes, refused: false };
    Cell { wasi, private: Private::new(Arc::clone(&task.secrets)), bounds }
}

/// How a run came to its end.
enum End {
    Returned(wasmtime::Result<()>),
    OutOfTime,
    Cancelled,
}

impl Engine {
    /// Runs one task to its end on the calling thread, which must not be one that serves calls.
    /// `cancelled` ends the task when it is sent to or dropped.
    ///
    /// [`Fault::LimitExceeded`] names the limit; [`Fault::ProgramFailed`] has the exit status and
    /// the start of stderr; a fault of stdin's feeder ends the task with that fault.
    pub fn run(
        &self,
        program: &Program,
        task: &Task,
        stdin: Stdin,
        cancelled: oneshot::Receiver<()>,
    ) -> Result<Outcome, Fault> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(|e| Fault::internal(format!("a task's runtime: {e}")))?;
        let streams = Streams {
            stdin,
            stdout: Sink::new(task.limits.output_bytes, Beyond::Ends),
            stderr: Sink::new(STDERR_BYTES, Beyond::Dropped),
        };
        let mut store = self.store(task, &streams)?;
        let started = Instant::now();
        let _ticking = self.ticking();
        let end = runtime.block_on(until_end(&mut store, program, task.limits.wall, cancelled));
        judge(end, &store, &streams, task.limits)?;
        Ok(Outcome {
            output: streams.stdout.take(),
            fuel: fuel_used(&store, task.limits),
            micros: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
        })
    }

    fn store(&self, task: &Task, streams: &Streams) -> Result<Store<Cell>, Fault> {
        let mut store = Store::new(self.wasmtime(), cell(task, streams));
        store.limiter(|cell| &mut cell.bounds);
        store.set_fuel(task.limits.fuel).map_err(Fault::internal)?;
        store.set_hostcall_fuel(HOST_CALL_BYTES);
        store.set_epoch_deadline(1);
        let mut looked = Instant::now();
        store.epoch_deadline_callback(move |_| {
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                return Ok(UpdateDeadline::Yield(1));
            }
            std::thread::yield_now();
            Ok(UpdateDeadline::Continue(1))
        });
        Ok(store)
    }
}

async fn until_end(
    store: &mut Store<Cell>,
    program: &Program,
    wall: Duration,
    cancelled: oneshot::Receiver<()>,
) -> End {
    tokio::select! {
        biased;
        _ = cancelled => End::Cancelled,
        () = tokio::time::sleep(wall) => End::OutOfTime,
        returned = start(store, program) => End::Returned(returned),
    }
}

async fn start(store: &mut Store<Cell>, program: &Program) -> wasmtime::Result<()> {
    let instance = program.code.instantiate_async(&mut *store).await?;
    let start = instance.get_typed_func::<(), ()>(&mut *store, "_start")?;
    start.call_async(store, ()).await
}

fn fuel_used(store: &Store<Cell>, limits: Limits) -> u64 {
    limits.fuel.saturating_sub(store.get_fuel().unwrap_or(0))
}

/// Which fault a run's end is, if any. What the sandbox did to the program comes before what the
/// program made of it: a program that exits with an error because memory was refused ran into a
/// limit.
fn judge(end: End, store: &Store<Cell>, streams: &Streams, limits: Limits) -> Result<(), Fault> {
    let error = match end {
        End::Cancelled => return Err(Fault::unavailable(0, "the task was cancelled")),
        End::OutOfTime => {
            let ms = limits.wall.as_millis();
            return Err(Fault::LimitExceeded(format!("time: the task ran for {ms} ms")));
        }
        End::Returned(Ok(())) => return Ok(()),
        End::Returned(Err(error)) => error,
    };
    if let Some(fault) = streams.stdin.fault() {
        return Err(fault);
    }
    if streams.stdout.overflowed() {
        let limit = limits.output_bytes;
        return Err(Fault::LimitExceeded(format!("output: more than {limit} bytes on stdout")));
    }
    if let Some(I32Exit(0)) = error.downcast_ref() {
        return Ok(());
    }
    if store.data().bounds.refused {
        let limit = limits.memory_bytes;
        return Err(Fault::LimitExceeded(format!(
            "memory: the task asked for more than {limit} bytes"
        )));
    }
    Err(program_fault(&error, limits, &streams.stderr.take()))
}

fn program_fault(error: &wasmtime::Error, limits: Limits, stderr: &[u8]) -> Fault {
    let said = String::from_utf8_lossy(stderr);
    let said = said.trim();
    let with_stderr = |what: String| match said {
        "" => Fault::ProgramFailed(what),
        said => Fault::ProgramFailed(format!("{what}: {said}")),
    };
    if let Some(I32Exit(status)) = error.downcast_ref() {
        return with_stderr(format!("exit status {status}"));
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => {
            Fault::LimitExceeded(format!("fuel: the task used {} units", limits.fuel))
        }
        Some(Trap::StackOverflow) => {
            Fault::LimitExceeded("stack: the task recursed too deeply".to_owned())
        }
        Some(trap) => with_stderr(format!("trap: {trap}")),
        None => with_stderr(error.root_cause().to_string()),
    }
}

#[cfg(test)]
mod tests;
