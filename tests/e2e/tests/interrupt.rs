//! Ctrl-C, SIGTERM and SIGKILL at any moment: the command ends promptly, leaves no process, no
//! half-written file and no half-written region, and the node goes on.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use distos_e2e::watch::Watched;
use distos_e2e::{Node, Output, single_image};
use rustix::process::Signal;

const SOON: Duration = Duration::from_secs(10);
/// What a command may take to end after a signal, however slow the machine.
const PROMPT: Duration = Duration::from_secs(5);
const INTERRUPTED: i32 = 130;
const SIGNALS: [Signal; 2] = [Signal::INT, Signal::TERM];

/// Moments after a command's start, in milliseconds: dense where it connects, sparse where it works.
const MOMENTS: [u64; 12] = [0, 1, 2, 4, 6, 8, 12, 18, 30, 60, 150, 400];

/// Sends a signal after this time; `None` if the command ended before by itself.
fn interrupt(command: Command, after: Duration, what: Signal) -> Option<Output> {
    let mut watched = Watched::spawn(command);
    if !watched.run_for(after) {
        watched.finish(SOON);
        return None;
    }
    let sent = Instant::now();
    watched.signal(what);
    let output = watched.finish(SOON);
    assert!(sent.elapsed() < PROMPT, "it took {:?}: {}", sent.elapsed(), output.stderr);
    Some(output)
}

/// Either it had done its work, or it says that it was interrupted. Before a command listens to
/// signals it has begun nothing, and the signal itself ends it.
fn ended(output: &Output, what: Signal) -> bool {
    match output.code {
        0 => false,
        INTERRUPTED => true,
        code if code == 128 + what.as_raw() => true,
        code => panic!("exit code {code} after {what:?}: {}", output.stderr),
    }
}

fn node() -> Node {
    let node = Node::boot();
    node.tenants(&["red"]);
    fs::write(node.file("small"), "small").expect("a file");
    node.ok(&["region", "put", "small", "small", "--as", "red.cap"]);
    let loops = wat::parse_str(
        r#"(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))"#,
    );
    fs::write(node.file("loop.wasm"), loops.expect("WAT")).expect("a file");
    node
}

/// Red's regions and files are these; nothing is charged for others.
fn holds(node: &Node, regions: &[&str], files: usize) {
    let list = node.json(&["region", "list", "--as", "red.cap"]);
    let found = list["regions"].as_array().expect("a list");
    let names: Vec<_> = found.iter().map(|r| r["name"].as_str().expect("a name")).collect();
    assert_eq!(names, regions, "{list}");
    let bytes: u64 = found.iter().map(|r| r["bytes"].as_u64().expect("a number")).sum();
    assert_eq!(list["used_bytes"], bytes, "{list}");
    assert_eq!(count(node), files, "{:?}", fs::read_dir(node.work()).map(Vec::from_iter));
}

fn count(node: &Node) -> usize {
    fs::read_dir(node.work()).expect("the directory").count()
}

#[test]
fn an_interrupted_put_leaves_no_region() {
    let node = node();
    fs::File::create(node.file("big")).and_then(|f| f.set_len(256 << 20)).expect("a sparse file");
    let files = count(&node);
    for what in SIGNALS {
        for ms in MOMENTS {
            let put = node.command(&["region", "put", "big", "big", "--as", "red.cap"]);
            let output = interrupt(put, Duration::from_millis(ms), what);
            if output.is_none_or(|output| !ended(&output, what)) {
                node.ok(&["region", "drop", "big", "--as", "red.cap"]);
            }
            holds(&node, &["small"], files);
        }
    }
}

/// Standard input that never comes, and a pipe without a writer, do not hold a command.
#[test]
fn a_put_that_waits_for_its_input_can_be_interrupted() {
    let node = node();
    let files = count(&node);
    let mut put = node.command(&["region", "put", "new", "-", "--as", "red.cap"]);
    // A pipe whose other end stays open and silent.
    let mut child = put.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    std::thread::sleep(Duration::from_millis(100));
    distos_e2e::signal(child.id(), Signal::INT);
    let quiet = child.stdin.take();
    let started = Instant::now();
    let status = child.wait().expect("it ends");
    drop(quiet);
    assert_eq!(status.code(), Some(INTERRUPTED));
    assert!(started.elapsed() < PROMPT);
    let (pipe, mode) = (node.file("pipe"), rustix::fs::Mode::RUSR);
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, kind, mode, 0).expect("a named pipe");
    let put = node.command(&["region", "put", "new", "pipe", "--as", "red.cap"]);
    let output = interrupt(put, Duration::from_millis(100), Signal::INT).expect("it waits");
    assert_eq!(output.code, INTERRUPTED, "{}", output.stderr);
    fs::remove_file(pipe).expect("it is there");
    holds(&node, &["small"], files);
}

#[test]
fn an_interrupted_get_leaves_no_file() {
    let node = node();
    fs::File::create(node.file("big")).and_then(|f| f.set_len(256 << 20)).expect("a sparse file");
    node.ok(&["region", "put", "big", "big", "--as", "red.cap"]);
    let files = count(&node);
    for what in SIGNALS {
        for ms in MOMENTS {
            let get = node.command(&["region", "get", "big", "-o", "out", "--as", "red.cap"]);
            let output = interrupt(get, Duration::from_millis(ms), what);
            if output.is_none_or(|output| !ended(&output, what)) {
                let out = node.file("out");
                assert_eq!(out.metadata().expect("it is whole").len(), 256 << 20);
                fs::remove_file(out).expect("it is there");
            }
            holds(&node, &["big", "small"], files);
        }
    }
}

/// A reader that does not read holds nobody.
#[test]
fn a_get_into_a_full_pipe_can_be_interrupted() {
    let node = node();
    fs::File::create(node.file("big")).and_then(|f| f.set_len(8 << 20)).expect("a sparse file");
    node.ok(&["region", "put", "big", "big", "--as", "red.cap"]);
    let mut get = node.command(&["region", "get", "big", "--as", "red.cap"]);
    let mut child = get.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
    std::thread::sleep(Duration::from_millis(200));
    distos_e2e::signal(child.id(), Signal::INT);
    let end = Instant::now() + PROMPT;
    while child.try_wait().expect("its state").is_none() {
        if Instant::now() > end {
            let _ = child.kill();
            panic!("it waits for a reader that does not read");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(child.wait().expect("it ended").code(), Some(INTERRUPTED));
}

#[test]
fn an_interrupted_run_ends_its_job_and_gives_its_output_back() {
    let node = node();
    let files = count(&node);
    let run = ["run", "loop.wasm", "--input", "small", "-o", "out", "--as", "red.cap"];
    for what in SIGNALS {
        for ms in MOMENTS {
            let output = interrupt(node.command(&run), Duration::from_millis(ms), what);
            let output = output.expect("a loop does not end by itself");
            assert!(ended(&output, what), "{}", output.stderr);
            holds(&node, &["small"], files);
        }
    }
    // Were any of them still running, no worker would be free.
    let good = wat::parse_str(r#"(module (memory (export "memory") 1) (func (export "_start")))"#);
    fs::write(node.file("good.wasm"), good.expect("WAT")).expect("a file");
    let started = Instant::now();
    node.ok(&["run", "good.wasm", "--input", "small", "--as", "red.cap"]);
    assert!(started.elapsed() < PROMPT, "its tenant's executor was busy");
}

/// A front end that is killed takes its job with it: the connection was its life.
#[test]
fn a_killed_run_ends_its_job() {
    let node = node();
    for _ in 0..4 {
        let run = node.command(&["run", "loop.wasm", "--input", "small", "--as", "red.cap"]);
        let output = interrupt(run, Duration::from_millis(300), Signal::KILL);
        assert_eq!(output.expect("a loop does not end by itself").code, 137);
    }
    let good = wat::parse_str(r#"(module (memory (export "memory") 1) (func (export "_start")))"#);
    fs::write(node.file("good.wasm"), good.expect("WAT")).expect("a file");
    let started = Instant::now();
    node.ok(&["run", "good.wasm", "--input", "small", "--as", "red.cap"]);
    assert!(started.elapsed() < PROMPT, "its tenant's executor was busy");
}

/// Interrupted at any moment of its start, a node is gone, and its directory serves the next one.
#[test]
fn an_interrupted_start_leaves_nothing_running() {
    let mut node = Node::new(&single_image());
    for what in [Signal::INT, Signal::TERM, Signal::KILL] {
        for ms in [0, 2, 5, 10, 20, 35, 60, 90, 130] {
            let mut up = node.command(&["up"]);
            up.arg(node.image());
            let output = interrupt(up, Duration::from_millis(ms), what).expect("it stays");
            let ended = [0, INTERRUPTED, 128 + what.as_raw()].contains(&output.code);
            assert!(ended, "exit code {} after {what:?}: {}", output.code, output.stderr);
        }
    }
    node.reboot();
    node.ok(&["status"]);
    node.ok(&["audit", "verify"]);
}

/// The same for a start in the background.
#[test]
fn an_interrupted_detached_start_leaves_nothing_running() {
    let mut node = Node::new(&single_image());
    let image = node.image();
    let args = ["up", image.to_str().expect("a plain path"), "--detach"];
    for ms in [2, 10, 20, 40, 60] {
        let mut up = Watched::spawn(node.command(&args));
        if !up.run_for(Duration::from_millis(ms)) {
            // It was ready in this time.
            node.ok(&["down"]);
        } else {
            up.signal(Signal::INT);
            let output = up.finish(SOON);
            assert!(ended(&output, Signal::INT), "{}", output.stderr);
        }
    }
    node.reboot();
}

#[test]
fn ctrl_c_shuts_a_ready_node_down_in_order() {
    for what in SIGNALS {
        let mut node = node();
        let all = node.processes();
        distos_e2e::signal(node.up_pid(), what);
        assert_eq!(node.wait_for_end(&all), 0);
        assert!(node.log().contains("\"event\":\"stopped\""), "{}", node.log());
        let sockets = fs::read_dir(node.directory().join("run")).expect("a directory");
        assert_eq!(sockets.count(), 0, "a socket is left");
        node.reboot();
        assert_eq!(node.ok(&["region", "get", "small", "--as", "red.cap"]).text(), "small");
    }
}

/// A second Ctrl-C does not wait for work that runs.
#[test]
fn a_second_ctrl_c_ends_a_node_that_is_busy() {
    let mut node = node();
    let run = node.command(&["run", "loop.wasm", "--input", "small", "--as", "red.cap"]);
    let mut run = Watched::spawn(run);
    run.run_for(Duration::from_millis(300));
    let all = node.processes();
    distos_e2e::signal(node.up_pid(), Signal::INT);
    std::thread::sleep(Duration::from_millis(200));
    distos_e2e::signal(node.up_pid(), Signal::INT);
    let started = Instant::now();
    node.wait_for_end(&all);
    assert!(started.elapsed() < PROMPT);
    let output = run.finish(SOON);
    assert_eq!(output.code, 17, "{}", output.stderr);
    node.reboot();
    // Its output region was volatile; nobody was there to drop it.
    let list = node.json(&["region", "list", "--as", "red.cap"]);
    for region in list["regions"].as_array().expect("a list") {
        let name = region["name"].as_str().expect("a name");
        if name.starts_with("run-") {
            node.ok(&["region", "drop", name, "--as", "red.cap"]);
        }
    }
    holds(&node, &["small"], count(&node));
}

#[test]
fn killing_the_front_end_takes_the_node_with_it() {
    let mut node = node();
    let all = node.processes();
    assert!(all.len() > 7, "{all:?}");
    distos_e2e::kill(node.up_pid());
    node.wait_for_end(&all);
    node.reboot();
    assert_eq!(node.ok(&["region", "get", "small", "--as", "red.cap"]).text(), "small");
    node.ok(&["audit", "verify"]);
}

#[test]
fn an_interrupted_demo_takes_its_node_with_it() {
    let mut node = Node::new(&single_image());
    distos_e2e::wordcount();
    let module = distos_e2e::repository().join("target/wasm/wordcount.wasm");
    for (what, ms) in [
        (Signal::INT, 5),
        (Signal::INT, 60),
        (Signal::TERM, 150),
        (Signal::INT, 350),
        (Signal::TERM, 700),
        (Signal::KILL, 350),
    ] {
        let mut demo = node.command(&["demo", "--image"]);
        demo.arg(node.image()).arg("--module").arg(&module);
        if let Some(output) = interrupt(demo, Duration::from_millis(ms), what) {
            let known = [0, INTERRUPTED, 128 + what.as_raw()];
            assert!(
                known.contains(&output.code),
                "{} after {what:?}: {}",
                output.code,
                output.stderr
            );
        }
    }
    // The demo signs with a key of its own; the directory's owner names another.
    let public = node.signer().with_extension("pub");
    node.ok(&["image", "trust", public.to_str().expect("a plain path")]);
    node.reboot();
    node.ok(&["audit", "verify"]);
}
