//! Programs that are broken, greedy or endless: each gets a fault of its own, the tenant beside it
//! gets its result, and the node is as before.

use std::fs;
use std::time::{Duration, Instant};

use distos_e2e::watch::Watched;
use distos_e2e::{Node, Output};

const LONG: Duration = Duration::from_secs(60);
/// Declarations that every program here begins with.
const WASI: &str = r#"
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "\20\00\00\00\0b\00\00\00")
  (data (i32.const 32) "all is well")
"#;

fn say(to: u32) -> String {
    format!("(drop (call $write (i32.const {to}) (i32.const 16) (i32.const 1) (i32.const 8)))")
}

fn program(body: &str) -> Vec<u8> {
    wat::parse_str(format!("(module {WASI} (func (export \"_start\") {body}))")).expect("WAT")
}

/// A node on which red and blue each have some input.
fn node() -> Node {
    let node = Node::boot();
    node.tenants(&["red", "blue"]);
    fs::write(node.file("input"), "some input").expect("a file");
    for tenant in ["red.cap", "blue.cap"] {
        node.ok(&["region", "put", "input", "input", "--as", tenant]);
    }
    fs::write(node.file("good.wasm"), program(&say(1))).expect("a file");
    node
}

/// Runs red's bad program with blue's good one beside it.
fn beside(node: &Node, module: &[u8], limits: &[&str]) -> Output {
    fs::write(node.file("bad.wasm"), module).expect("a file");
    let args = [&["run", "bad.wasm", "--input", "input", "--as", "red.cap"], limits].concat();
    let bad = Watched::spawn(node.command(&args));
    let good = node.ok(&["run", "good.wasm", "--input", "input", "--as", "blue.cap"]);
    assert_eq!(good.text(), "all is well");
    bad.finish(LONG)
}

/// Nothing of the bad job is left, and its tenant's next job works.
fn is_healthy(node: &Node) {
    let list = node.json(&["region", "list", "--as", "red.cap"]);
    assert_eq!(list["regions"].as_array().map(Vec::len), Some(1), "{list}");
    assert_eq!(list["used_bytes"], 10, "{list}");
    let next = node.ok(&["run", "good.wasm", "--input", "input", "--as", "red.cap"]);
    assert_eq!(next.text(), "all is well");
    let status = node.json(&["status"]);
    for vat in status["vats"].as_array().expect("vats") {
        assert_eq!(vat["restarts"], 0, "{} ended: {status}", vat["name"]);
    }
}

fn fails(module: &[u8], limits: &[&str], code: i32, words: &[&str]) {
    let node = node();
    let output = beside(&node, module, limits);
    assert_eq!(output.code, code, "{}", output.stderr);
    assert!(words.iter().all(|w| output.stderr.contains(w)), "not {words:?}: {}", output.stderr);
    assert!(output.stdout.is_empty(), "it printed {}", output.text());
    is_healthy(&node);
}

#[test]
fn what_is_no_wasi_command_is_refused_with_the_reason() {
    let node = node();
    let whole = program(&say(1));
    let unknown = r#"(module (import "env" "system" (func)) (memory (export "memory") 1)
        (func (export "_start")))"#;
    let typed = r#"(module (memory (export "memory") 1) (func (export "_start") (param i32)))"#;
    let wat = |text: &str| wat::parse_str(text).expect("WAT");
    let refusals: [(Vec<u8>, &str); 9] = [
        (b"#!/bin/sh\necho hello\n".to_vec(), "not WASM"),
        (Vec::new(), "not WASM"),
        (fs::read("/bin/true").expect("a program"), "not WASM"),
        (whole[..whole.len() / 2].to_vec(), "not a WASM module"),
        (b"\0asm\x01\0\0\0garbage".to_vec(), "not a WASM module"),
        (wat("(module (memory (export \"memory\") 1))"), "'_start'"),
        (wat(typed), "'_start'"),
        (wat("(module (func (export \"_start\")))"), "'memory'"),
        (wat(unknown), "env::system"),
    ];
    for (module, words) in refusals {
        let output = beside(&node, &module, &[]);
        assert_eq!(output.code, 16, "{words}: {}", output.stderr);
        assert!(output.stderr.contains(words), "not '{words}': {}", output.stderr);
    }
    fs::write(node.file("huge.wasm"), vec![0; 9 << 20]).expect("a file");
    let said = node.refused(&["run", "huge.wasm", "--input", "input", "--as", "red.cap"], 16);
    assert!(said.contains("longer than"), "{said}");
    is_healthy(&node);
}

#[test]
fn an_endless_loop_ends_with_its_fuel() {
    fails(&program("(loop (br 0))"), &["--fuel", "200000000"], 20, &["fuel", "200000000"]);
}

#[test]
fn an_endless_loop_ends_with_its_time() {
    fails(&program("(loop (br 0))"), &["--wall", "1s"], 20, &["time", "1000 ms"]);
}

/// A program that waits uses no fuel.
#[test]
fn an_endless_wait_ends_with_its_time() {
    // One subscription: the monotonic clock, in 2^50 ns.
    let wait = "(i32.store8 (i32.const 136) (i32.const 0)) (i32.store (i32.const 144) (i32.const 1))
        (i64.store (i32.const 152) (i64.const 1125899906842624))
        (loop (drop (call $poll (i32.const 128) (i32.const 256) (i32.const 1) (i32.const 8))) (br 0))";
    fails(&program(wait), &["--wall", "1s"], 20, &["time", "1000 ms"]);
}

#[test]
fn a_program_that_allocates_without_end_ends_at_its_memory() {
    let grow =
        "(loop (br_if 0 (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) (unreachable)";
    fails(&program(grow), &["--memory", "16M"], 20, &["memory", "16777216"]);
}

#[test]
fn a_program_that_prints_without_end_ends_at_its_output() {
    let print = format!("(loop {} (br 0))", say(1));
    fails(&program(&print), &["--output", "4K"], 20, &["output", "4096 bytes"]);
}

/// What goes to stderr is cut, and takes neither memory nor the log.
#[test]
fn a_program_that_complains_without_end_ends_with_its_fuel() {
    let complain = format!("(loop {} (br 0))", say(2));
    fails(&program(&complain), &["--fuel", "3000000"], 20, &["fuel"]);
}

#[test]
fn a_program_that_exits_with_an_error_is_quoted() {
    let exit = format!("{} (call $exit (i32.const 3))", say(2));
    fails(&program(&exit), &[], 21, &["exit status 3", "all is well"]);
}

#[test]
fn a_program_that_traps_is_told_with_the_trap() {
    fails(&program("(unreachable)"), &[], 21, &["unreachable"]);
    let divide = "(drop (i32.div_u (i32.const 1) (i32.const 0)))";
    fails(&program(divide), &[], 21, &["divide by zero"]);
    fails(&program("(drop (i32.load (i32.const -8)))"), &[], 21, &["out of bounds"]);
}

#[test]
fn a_program_that_recurses_without_end_ends_at_its_stack() {
    let module = format!("(module {WASI} (func $f (export \"_start\") (call $f)))");
    let module = wat::parse_str(module).expect("WAT");
    fails(&module, &[], 20, &["stack"]);
}

#[test]
fn the_input_of_a_job_must_be_there() {
    let node = node();
    let said = node.refused(&["run", "good.wasm", "--input", "nosuch", "--as", "red.cap"], 15);
    assert!(said.contains("nosuch"), "{said}");
    let said = node.refused(&["run", "nosuch.wasm", "--input", "input", "--as", "red.cap"], 15);
    assert!(said.contains("nosuch.wasm"), "{said}");
    is_healthy(&node);
}

/// Else each costs the node more than its tenant, and the others wait meanwhile.
#[test]
fn jobs_of_a_tenant_whose_jobs_keep_failing_start_ever_later_until_one_ends_well() {
    let node = node();
    fs::write(node.file("bad.wasm"), program("unreachable")).expect("a file");
    let bad = ["run", "bad.wasm", "--input", "input", "--as", "red.cap"];
    let started = Instant::now();
    for _ in 0..8 {
        node.refused(&bad, 21);
    }
    // After the fourth to the seventh: 100, 200, 400 and 800 ms.
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(1500), "eight failing jobs took {took:?}");
    let good = |tenant| ["run", "good.wasm", "--input", "input", "--as", tenant];
    assert_eq!(node.ok(&good("blue.cap")).text(), "all is well");
    assert_eq!(node.ok(&good("red.cap")).text(), "all is well");
    is_healthy(&node);
}

/// Else a tenant's program takes as much of a processor as the services of all others.
#[test]
fn executors_stand_back_behind_the_services() {
    let node = node();
    node.ok(&["run", "good.wasm", "--input", "input", "--as", "red.cap"]);
    let nice = |vat| {
        let group = fs::read_to_string(format!("/proc/{}/autogroup", node.pid_of(vat))).ok()?;
        group.trim().rsplit(' ').next()?.parse::<i32>().ok()
    };
    let Some(executors) = nice("executor/red") else {
        // This Linux divides time among threads, and not among sessions first.
        return;
    };
    assert_eq!((executors, nice("memory")), (19, Some(0)));
}
