//! The WASM engine: one per executor. Compiles modules and keeps the clock by which sandboxes
//! are interrupted. It holds nothing of any task.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

use distos_abi::Fault;
use wasmtime::{Config, EngineWeak, ExternType, InstancePre, Linker, Module};
use wasmtime_wasi::p1;

use crate::sandbox::Cell;
use crate::{private, program};

/// How often running code is interrupted, to give up its processor to whom it is due. By itself Linux
/// looks when somebody wakes and four milliseconds later, so that a service which is not due for a
/// moment when it wakes would wait behind a program for that long.
const PULSE: Duration = Duration::from_micros(125);
/// Native stack of compiled code. A deeper recursion ends the task.
const WASM_STACK_BYTES: usize = 512 * 1024;

/// Compiles programs and runs them, each task in a sandbox of its own ([`Engine::run`]).
pub struct Engine {
    engine: wasmtime::Engine,
    linker: Linker<Cell>,
    ticker: Ticker,
}

/// A compiled WASI command, ready to be instantiated. Cheap to clone, holds no task's state.
#[derive(Clone)]
pub struct Program {
    pub(crate) code: InstancePre<Cell>,
}

impl Engine {
    /// An engine, and the thread that interrupts what it runs. [`Fault::Internal`] if this
    /// machine cannot run WASM.
    pub fn new() -> Result<Engine, Fault> {
        let engine = wasmtime::Engine::new(&config()).map_err(internal)?;
        let mut linker = Linker::new(&engine);
        p1::add_to_linker_async(&mut linker, |cell: &mut Cell| &mut cell.wasi).map_err(internal)?;
        private::shadow(&mut linker).map_err(internal)?;
        let ticker = Ticker::start(engine.weak()).map_err(internal)?;
        Ok(Engine { engine, linker, ticker })
    }

    /// Compiles a module: slow (seconds for the largest), so not for the thread that serves
    /// calls. [`Fault::Malformed`] if it is not a WASI preview 1 command.
    pub fn compile(&self, module: &[u8]) -> Result<Program, Fault> {
        program::inspect(module)?;
        let _ticking = self.ticking();
        let module = Module::new(&self.engine, module)
            .map_err(|e| Fault::malformed(format!("not a valid WASM module: {}", line(&e))))?;
        command(&module)?;
        let code = self
            .linker
            .instantiate_pre(&module)
            .map_err(|e| Fault::malformed(format!("not a WASI preview 1 command: {}", line(&e))))?;
        Ok(Program { code })
    }

    pub(crate) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.engine
    }

    /// Interrupts keep coming while the result is held.
    pub(crate) fn ticking(&self) -> Ticking {
        self.ticker.hold()
    }
}

/// Deterministic code, metered by fuel and interruptible. Memories are mapped for each task and
/// unmapped after it, so there is no pooled slot that could show a task its predecessor's bytes.
fn config() -> Config {
    let mut config = Config::new();
    config
        .consume_fuel(true)
        .epoch_interruption(true)
        .cranelift_nan_canonicalization(true)
        .relaxed_simd_deterministic(true)
        .wasm_multi_memory(false)
        .wasm_memory64(false)
        .memory_init_cow(false)
        .max_wasm_stack(WASM_STACK_BYTES);
    config
}

/// A command exports `_start: () -> ()` and the memory that WASI calls work on.
fn command(module: &Module) -> Result<(), Fault> {
    match module.get_export("_start") {
        Some(ExternType::Func(f)) if f.params().len() == 0 && f.results().len() == 0 => {}
        _ => {
            return Err(Fault::malformed(
                "not a WASI command: it exports no function '_start' without parameters",
            ));
        }
    }
    match module.get_export("memory") {
        Some(ExternType::Memory(_)) => Ok(()),
        _ => Err(Fault::malformed("not a WASI command: it exports no 'memory'")),
    }
}

/// The causes of an error on one line.
pub(crate) fn line(error: &wasmtime::Error) -> String {
    format!("{error:#}").replace('\n', " ")
}

fn internal(error: impl std::fmt::Display) -> Fault {
    Fault::internal(format!("the WASM engine: {error:#}"))
}

/// A thread that raises the engine's epoch while anything runs, and sleeps otherwise.
struct Ticker {
    running: Arc<AtomicUsize>,
    thread: Thread,
}

impl Ticker {
    fn start(engine: EngineWeak) -> std::io::Result<Ticker> {
        let running = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&running);
        let thread = thread::Builder::new()
            .name("epoch".into())
            .spawn(move || tick(&engine, &seen))?
            .thread()
            .clone();
        Ok(Ticker { running, thread })
    }

    fn hold(&self) -> Ticking {
        self.running.fetch_add(1, Ordering::SeqCst);
        self.thread.unpark();
        Ticking(Arc::clone(&self.running))
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.thread.unpark();
    }
}

/// Waking takes this processor from a program, which has the lower priority, and going to sleep gives
/// it to whom it is due; programs on other processors do the same themselves when they see the epoch.
fn tick(engine: &EngineWeak, running: &AtomicUsize) {
    while let Some(engine) = engine.upgrade() {
        if running.load(Ordering::SeqCst) == 0 {
            drop(engine);
            thread::park_timeout(Duration::from_secs(1));
        } else {
            engine.increment_epoch();
            drop(engine);
            thread::sleep(PULSE);
        }
    }
}

/// While this lives, running code is interrupted again and again.
pub(crate) struct Ticking(Arc<AtomicUsize>);

impl Drop for Ticking {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
