use bytes::Bytes;

use super::*;
use crate::stdio::stdin;

const LIMITS: Limits = Limits {
    fuel: 1_000_000_000,
    memory_bytes: 4 * 1024 * 1024,
    output_bytes: 64 * 1024,
    wall: Duration::from_secs(20),
};

fn task(limits: Limits) -> Task {
    Task { args: vec!["one".into()], limits, seed: 7, secrets: Arc::default() }
}

/// A module with the WASI imports that these programs use, one page of memory and `body`.
fn module(body: &str) -> Vec<u8> {
    let text = format!(
        r#"(module
        (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
        (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_prestat_get" (func $prestat (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "path_open" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "sock_accept" (func $accept (param i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (func $print (param $fd i32) (param $at i32) (param $len i32)
          (i32.store (i32.const 0) (local.get $at))
          (i32.store (i32.const 4) (local.get $len))
          (drop (call $write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))))
        {body})"#
    );
    wat::parse_str(text).unwrap()
}

fn run_fed(body: &str, input: &'static [u8], limits: Limits) -> Result<Outcome, Fault> {
    let engine = Engine::new().unwrap();
    let program = engine.compile(&module(body))?;
    let (feed, stdin) = stdin(input.len() as u64);
    feed.try_send(Ok(Bytes::from_static(input))).unwrap();
    let (_keep, cancelled) = oneshot::channel();
    engine.run(&program, &task(limits), stdin, cancelled)
}

fn run(body: &str, limits: Limits) -> Result<Outcome, Fault> {
    run_fed(body, b"", limits)
}

fn limit(body: &str, limits: Limits) -> String {
    match run(body, limits) {
        Err(Fault::LimitExceeded(which)) => which,
        other => panic!("expected a limit, got {other:?}"),
    }
}

const FOREVER: &str = r#"(func (export "_start") (loop $again (br $again)))"#;
const ECHO: &str = r#"(func (export "_start") (loop $again
    (i32.store (i32.const 16) (i32.const 1024))
    (i32.store (i32.const 20) (i32.const 7))
    (drop (call $read (i32.const 0) (i32.const 16) (i32.const 1) (i32.const 24)))
    (if (i32.load (i32.const 24)) (then
      (call $print (i32.const 1) (i32.const 1024) (i32.load (i32.const 24)))
      (br $again)))))"#;

#[test]
fn a_program_that_loops_forever_ends_at_its_fuel() {
    assert!(limit(FOREVER, Limits { fuel: 100_000, ..LIMITS }).starts_with("fuel"));
}

#[test]
fn a_program_that_loops_forever_ends_at_its_time() {
    let limits = Limits { fuel: u64::MAX, wall: Duration::from_millis(50), ..LIMITS };
    assert!(limit(FOREVER, limits).starts_with("time"));
}

#[test]
fn a_program_that_sleeps_forever_ends_at_its_time() {
    let body = r#"(func (export "_start")
        (i32.store (i32.const 120) (i32.const 1))
        (i64.store (i32.const 128) (i64.const 3600000000000))
        (drop (call $poll (i32.const 104) (i32.const 208) (i32.const 1) (i32.const 300))))"#;
    let limits = Limits { wall: Duration::from_millis(50), ..LIMITS };
    assert!(limit(body, limits).starts_with("time"));
}

#[test]
fn a_program_that_allocates_without_end_ends_at_its_memory() {
    let body = r#"(func (export "_start") (loop $again
        (if (i32.eq (memory.grow (i32.const 16)) (i32.const -1)) (then (call $exit (i32.const 1))))
        (br $again)))"#;
    assert!(limit(body, LIMITS).starts_with("memory"));
}

#[test]
fn a_program_that_starts_with_too_much_memory_never_runs() {
    assert!(
        limit(r#"(func (export "_start"))"#, Limits { memory_bytes: 1, ..LIMITS })
            .starts_with("memory")
    );
}

#[test]
fn a_program_that_prints_without_end_ends_at_its_output() {
    let body = r#"(func (export "_start") (loop $again
        (call $print (i32.const 1) (i32.const 1024) (i32.const 5000)) (br $again)))"#;
    assert!(limit(body, LIMITS).starts_with("output"));
    let exactly = r#"(func (export "_start") (call $print (i32.const 1) (i32.const 0) (i32.const 65535))
        (call $print (i32.const 1) (i32.const 0) (i32.const 1)))"#;
    assert_eq!(run(exactly, LIMITS).unwrap().output.len(), 65536);
}

#[test]
fn a_program_that_recurses_without_end_is_stopped() {
    let body = r#"(func $f (export "_start") (call $f) (call $f))"#;
    assert!(limit(body, LIMITS).starts_with("stack"));
}

#[test]
fn a_failing_program_says_its_status_and_stderr() {
    let body = r#"(data (i32.const 64) "no such word")
        (func (export "_start") (call $print (i32.const 2) (i32.const 64) (i32.const 12)) (call $exit (i32.const 3)))"#;
    assert_eq!(run(body, LIMITS), Err(Fault::ProgramFailed("exit status 3: no such word".into())));
    let body = r#"(func (export "_start") unreachable)"#;
    assert!(matches!(run(body, LIMITS), Err(Fault::ProgramFailed(t)) if t.contains("unreachable")));
    let body = r#"(func (export "_start") (call $exit (i32.const 0)))"#;
    assert_eq!(run(body, LIMITS).unwrap().output, b"");
}

#[test]
fn stdin_reaches_the_program_in_full_and_in_order() {
    let outcome = run_fed(ECHO, b"a word that straddles two reads", LIMITS).unwrap();
    assert_eq!(outcome.output, b"a word that straddles two reads");
    assert!(outcome.fuel > 0);
}

#[test]
fn a_revoked_input_ends_the_task_as_revoked() {
    let engine = Engine::new().unwrap();
    let program = engine.compile(&module(ECHO)).unwrap();
    let (feed, stdin) = stdin(100);
    feed.try_send(Err(Fault::Revoked)).unwrap();
    let (_keep, cancelled) = oneshot::channel();
    assert_eq!(engine.run(&program, &task(LIMITS), stdin, cancelled), Err(Fault::Revoked));
}

#[test]
fn an_abandoned_task_ends() {
    let engine = Engine::new().unwrap();
    let program = engine.compile(&module(FOREVER)).unwrap();
    let (_feed, stdin) = stdin(0);
    let (drop_me, cancelled) = oneshot::channel();
    drop(drop_me);
    let limits = Limits { fuel: u64::MAX, wall: Duration::from_secs(3600), ..LIMITS };
    let fault = engine.run(&program, &task(limits), stdin, cancelled).unwrap_err();
    assert_eq!(fault.name(), "unavailable");
}

#[test]
fn a_task_finds_nothing_of_the_task_before_it() {
    // Exits with 9 if the mark of an earlier task is still there, then leaves the mark.
    let body = r#"(global $mark (mut i32) (i32.const 0))
        (func (export "_start")
          (if (i32.or (i32.load (i32.const 60000)) (global.get $mark)) (then (call $exit (i32.const 9))))
          (i32.store (i32.const 60000) (i32.const 1)) (global.set $mark (i32.const 1)))"#;
    let engine = Engine::new().unwrap();
    let program = engine.compile(&module(body)).unwrap();
    for _ in 0..20 {
        let (_feed, stdin) = stdin(0);
        let (_keep, cancelled) = oneshot::channel();
        engine.run(&program, &task(LIMITS), stdin, cancelled).unwrap();
    }
}

#[test]
fn a_program_sees_no_clock_no_environment_no_file_and_no_socket() {
    // Prints the wall clock (8 bytes), the count of environment variables (4), and the errors of
    // asking for a preopened directory, opening /etc/passwd and accepting a connection.
    let body = r#"(data (i32.const 64) "etc/passwd")
        (func (export "_start")
          (drop (call $clock (i32.const 0) (i64.const 0) (i32.const 128)))
          (drop (call $environ (i32.const 136) (i32.const 200)))
          (i32.store (i32.const 140) (call $prestat (i32.const 3) (i32.const 220)))
          (i32.store (i32.const 144) (call $open (i32.const 3) (i32.const 0) (i32.const 64)
            (i32.const 10) (i32.const 0) (i64.const 2) (i64.const 2) (i32.const 0) (i32.const 240)))
          (i32.store (i32.const 148) (call $accept (i32.const 3) (i32.const 0) (i32.const 244)))
          (call $print (i32.const 1) (i32.const 128) (i32.const 24)))"#;
    let output = run(body, LIMITS).unwrap().output;
    assert_eq!(output[..12], [0; 12], "clock and environment");
    for error in output[12..].chunks(4) {
        assert_ne!(error, [0; 4], "a file or socket was reachable");
    }
}

#[test]
fn the_same_task_gives_the_same_output_again() {
    let body = r#"(func (export "_start")
        (drop (call $random (i32.const 128) (i32.const 100)))
        (drop (call $clock (i32.const 1) (i64.const 0) (i32.const 232)))
        (call $print (i32.const 1) (i32.const 128) (i32.const 112)))"#;
    let first = run(body, LIMITS).unwrap();
    let second = run(body, LIMITS).unwrap();
    assert_eq!((&first.output, first.fuel), (&second.output, second.fuel));
    assert_ne!(first.output[..100], [0; 100]);
}

fn refusal(text: &str) -> String {
    match Engine::new().unwrap().compile(&wat::parse_str(text).unwrap()) {
        Err(Fault::Malformed(why)) => why,
        Err(other) => panic!("expected malformed, got {other:?}"),
        Ok(_) => panic!("accepted"),
    }
}

#[test]
fn only_wasi_commands_are_accepted() {
    let no_start = refusal(r#"(module (memory (export "memory") 1))"#);
    assert!(no_start.contains("_start"), "{no_start}");
    let wrong_start =
        refusal(r#"(module (memory (export "memory") 1) (func (export "_start") (param i32)))"#);
    assert!(wrong_start.contains("_start"), "{wrong_start}");
    let no_memory = refusal(r#"(module (func (export "_start")))"#);
    assert!(no_memory.contains("memory"), "{no_memory}");
    let unknown = refusal(
        r#"(module (import "env" "fork" (func)) (memory (export "memory") 1) (func (export "_start")))"#,
    );
    assert!(unknown.contains("fork"), "{unknown}");
    assert!(Engine::new().unwrap().compile(b"hello").is_err());
}

/// Compiles a C program with Debian's clang and wasi-libc.
fn compile_c(source: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let module = dir.path().join("program.wasm");
    let status = std::process::Command::new("clang")
        .args(["--target=wasm32-wasi", "-O2", "-o"])
        .arg(&module)
        .arg(source)
        .status()
        .expect("clang, wasi-libc, lld and libclang-rt-dev-wasm32 are installed");
    assert!(status.success());
    std::fs::read(module).unwrap()
}

#[test]
fn an_unmodified_c_program_runs_and_finds_nothing_of_the_machine() {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/plain.c");
    let engine = Engine::new().unwrap();
    let program = engine.compile(&compile_c(source)).unwrap();
    let (feed, stdin) = stdin(16);
    let feeder = std::thread::spawn(move || {
        for chunk in [&b"one two thr"[..], b"ee\nfo"] {
            feed.blocking_send(Ok(Bytes::from_static(chunk))).unwrap();
        }
    });
    let (_keep, cancelled) = oneshot::channel();
    let outcome = engine.run(&program, &task(LIMITS), stdin, cancelled).unwrap();
    feeder.join().unwrap();
    assert_eq!(String::from_utf8(outcome.output).unwrap(), "one 4 16 0 0\n");
}

/// What `tests/secrets.c` says with these files and this argument.
fn with_secrets(files: &[(&str, &str)], argument: &str) -> String {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/secrets.c");
    let engine = Engine::new().unwrap();
    let program = engine.compile(&compile_c(source)).unwrap();
    let secret = |(file, value): &(&str, &str)| {
        let fill = |place: &mut [u8]| {
            place.copy_from_slice(value.as_bytes());
            Ok::<(), Fault>(())
        };
        let value = distos_types::SecretBytes::fill(value.len(), fill).unwrap();
        Secret { file: (*file).to_owned(), value }
    };
    let secrets = files.iter().map(secret).collect();
    let task = Task { args: vec![argument.into()], secrets, ..task(LIMITS) };
    let (_feed, stdin) = stdin(0);
    let (_keep, cancelled) = oneshot::channel();
    let outcome = engine.run(&program, &task, stdin, cancelled).unwrap();
    String::from_utf8(outcome.output).unwrap()
}

#[test]
fn an_unmodified_c_program_finds_its_secrets_as_files_that_it_can_only_read() {
    let files = [("db", "hunter2"), ("key.pem", "abc")];
    assert_eq!(with_secrets(&files, "/secrets/db"), "ivoufs3\ndb key.pem \n");
    assert_eq!(with_secrets(&files, "/secrets/key.pem"), "bcd\ndb key.pem \n");
    assert!(with_secrets(&files, "/secrets/other").starts_with("none"));
}

#[test]
fn a_task_finds_no_secret_of_another_one() {
    assert!(with_secrets(&[("key", "abc")], "/secrets/db").starts_with("none"));
    assert!(with_secrets(&[], "/secrets/db").starts_with("none"));
}
