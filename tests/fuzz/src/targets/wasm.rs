//! Programs that tenants submit, in the executor's sandbox.

use std::convert::Infallible;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arbitrary::Unstructured;
use distos_abi::Fault;
use distos_executor::{Engine, Limits, Outcome, Secret, Task, stdin};
use distos_types::SecretBytes;
use wasm_smith::{Config, Module};

use super::seed;

const LIMITS: Limits = Limits {
    fuel: 1_000_000,
    memory_bytes: 4 << 20,
    output_bytes: 4096,
    wall: Duration::from_secs(5),
};

/// What generated modules may import, and what they export to be WASI commands.
const IMPORTS: &str = r#"(module
    (import "wasi_snapshot_preview1" "args_get" (func (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "clock_time_get" (func (param i32 i64 i32) (result i32)))
    (import "wasi_snapshot_preview1" "environ_sizes_get" (func (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_close" (func (param i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_fdstat_get" (func (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_filestat_get" (func (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_pread" (func (param i32 i32 i32 i64 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_prestat_dir_name" (func (param i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_prestat_get" (func (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_read" (func (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_readdir" (func (param i32 i32 i32 i64 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_renumber" (func (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_seek" (func (param i32 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_tell" (func (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_filestat_get" (func (param i32 i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_open" (func (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "poll_oneoff" (func (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))
    (import "wasi_snapshot_preview1" "random_get" (func (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))
    (import "wasi_snapshot_preview1" "sock_accept" (func (param i32 i32 i32) (result i32))))"#;
const EXPORTS: &str = r#"(module (memory (export "memory") 1) (func (export "_start")))"#;

const PROGRAMS: [(&str, &str); 5] = [
    ("empty", r#"(module (memory (export "memory") 1) (func (export "_start")))"#),
    (
        "print",
        r#"(module
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 0) "\10\00\00\00\05\00\00\00")
        (data (i32.const 16) "hello")
        (func (export "_start") (loop $again
            (br_if $again (i32.eqz (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))))"#,
    ),
    (
        "grow",
        r#"(module (memory (export "memory") 1) (table 10 funcref)
        (func (export "_start") (loop $again
            (drop (table.grow (ref.null func) (i32.const 1000)))
            (br_if $again (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))))"#,
    ),
    (
        "poll",
        r#"(module
        (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 1)
        (func (export "_start")
            (drop (call $random (i32.const 256) (i32.const 64)))
            (i64.store (i32.const 128) (i64.const 1000))
            (drop (call $poll (i32.const 104) (i32.const 208) (i32.const 1) (i32.const 300)))
            (call $exit (i32.load (i32.const 256)))))"#,
    ),
    (
        "recurse",
        r#"(module (memory (export "memory") 1) (type $f (func (param f64) (result f64)))
        (table 2 funcref) (elem (i32.const 0) $again)
        (func $again (type $f)
            (call_indirect (type $f) (f64.div (local.get 0) (f64.const 0)) (i32.const 0)))
        (func (export "_start") (drop (call $again (f64.const 1)))))"#,
    ),
];

pub(super) fn seeds() -> Vec<(String, Vec<u8>)> {
    let mut seeds: Vec<_> =
        PROGRAMS.iter().map(|(name, text)| seed(name, wat::parse_str(text).unwrap())).collect();
    // Choices for the generator; the driver's mutations make others of them.
    for number in 1..4u32 {
        let choices: Vec<u8> = (0..1500u32)
            .map(|at| (at.wrapping_mul(0x9e37_79b1 ^ (number << 7)) >> 11) as u8)
            .collect();
        seeds.push(seed(&format!("choices-{number}"), [&[1][..], &choices].concat()));
    }
    seeds
}

static ENGINE: LazyLock<Engine> = LazyLock::new(|| Engine::new().unwrap());
/// What every task finds in its private directory.
static SECRETS: LazyLock<Arc<[Secret]>> =
    LazyLock::new(|| [("db", "hunter2"), ("key", "x")].map(secret).into());

fn secret((file, value): (&str, &str)) -> Secret {
    let Ok(value) = SecretBytes::fill::<Infallible>(value.len(), |place| {
        place.copy_from_slice(value.as_bytes());
        Ok(())
    });
    Secret { file: file.to_owned(), value }
}

fn generated(choices: &[u8]) -> Option<Vec<u8>> {
    let config = Config {
        available_imports: Some(wat::parse_str(IMPORTS).unwrap()),
        exports: Some(wat::parse_str(EXPORTS).unwrap()),
        max_memories: 1,
        memory64_enabled: false,
        threads_enabled: false,
        gc_enabled: false,
        exceptions_enabled: false,
        ..Config::default()
    };
    Some(Module::new(config, &mut Unstructured::new(choices)).ok()?.to_bytes())
}

/// A module is refused, or its task ends within its limits and the same way each time (S2). Bytes
/// that begin as a module does are taken as they are; others choose what a valid one consists of.
pub(super) fn module(bytes: &[u8]) {
    match bytes.split_first() {
        Some((0, _)) | None => run(bytes),
        Some((_, choices)) => {
            if let Some(module) = generated(choices) {
                run(&module);
            }
        }
    }
}

fn run(module: &[u8]) {
    let program = match ENGINE.compile(module) {
        Ok(program) => program,
        Err(Fault::Malformed(_)) => return,
        Err(other) => panic!("a bad module is not the tenant's fault: {other}"),
    };
    let run = || {
        let task =
            Task { args: vec!["one".into()], limits: LIMITS, seed: 7, secrets: SECRETS.clone() };
        let (_feed, stdin) = stdin(0);
        let (_keep, cancelled) = tokio::sync::oneshot::channel();
        ENGINE.run(&program, &task, stdin, cancelled)
    };
    let first = run();
    match &first {
        Ok(Outcome { output, fuel, .. }) => {
            assert!(output.len() <= LIMITS.output_bytes, "{} bytes of output", output.len());
            assert!(*fuel <= LIMITS.fuel, "{fuel} units of fuel");
        }
        Err(Fault::LimitExceeded(which)) if which.starts_with("time") => return,
        Err(Fault::LimitExceeded(_) | Fault::ProgramFailed(_)) => {}
        Err(other) => panic!("a program is blamed on the executor: {other}"),
    }
    let without_time = |outcome: Result<Outcome, Fault>| outcome.map(|o| (o.output, o.fuel));
    assert_eq!(without_time(first), without_time(run()), "a task ends otherwise when repeated");
}
