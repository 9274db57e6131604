//! `down` lets running work end, but not for ever; `down --now` does not wait. Either way what was
//! acknowledged is there at the next boot, and nothing is left running.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use distos_e2e::watch::Watched;
use distos_e2e::{Node, Process};

/// What a drain may take (10 s for the services together, 5 s for the auditor), as the operator's
/// guide says it.
const DRAIN: Duration = Duration::from_secs(15);
/// What ending the processes may take on a machine that is busy.
const ENDING: Duration = Duration::from_secs(10);
const SOON: Duration = Duration::from_secs(20);
const UNAVAILABLE: i32 = 17;

/// A node on which two tenants each have two endless tasks that run and one that waits, and red
/// sends a region whose input never ends.
struct Busy {
    node: Node,
    runs: Vec<Watched>,
    put: Watched,
    /// Keeps the input of `put` open.
    _input: fs::File,
}

fn busy() -> Busy {
    let node = Node::boot();
    node.tenants(&["red", "blue"]);
    let loops = r#"(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))"#;
    fs::write(node.file("loop.wasm"), wat::parse_str(loops).expect("WAT")).expect("a file");
    fs::write(node.file("kept"), "kept").expect("a file");
    let mut runs = Vec::new();
    for tenant in ["red.cap", "blue.cap"] {
        node.ok(&["region", "put", "kept", "kept", "--as", tenant]);
        for _ in 0..3 {
            let run = ["run", "loop.wasm", "--input", "kept", "--as", tenant];
            runs.push(Watched::spawn(node.command(&run)));
        }
    }
    let pipe = node.file("pipe");
    let (here, mode) = (rustix::fs::CWD, rustix::fs::Mode::RWXU);
    rustix::fs::mknodat(here, &pipe, rustix::fs::FileType::Fifo, mode, 0).expect("a named pipe");
    // For both, so that opening it waits for nobody.
    let input = fs::OpenOptions::new().read(true).write(true).open(&pipe).expect("a pipe");
    let mut put = node.command(&["region", "put", "endless", "pipe", "--as", "red.cap"]);
    put.stdout(Stdio::null());
    let put = Watched::spawn(put);
    let mut busy = Busy { node, runs, put, _input: input };
    distos_e2e::eventually("tasks run", SOON, || {
        let busy_vats = busy.node.processes();
        let executors = ["executor/red", "executor/blue"];
        let all = executors.iter().all(|name| busy.node.try_pid_of(name).is_some());
        (all && busy_vats.len() > 8).then_some(())
    });
    for run in &mut busy.runs {
        assert!(run.run_for(Duration::from_millis(150)), "a loop does not end by itself");
    }
    busy
}

impl Busy {
    /// Ends the node by this command within `bound`, and says how long it took.
    fn end(mut self, args: &[&str], bound: Duration) -> (Node, Duration) {
        let all: Vec<Process> = self.node.processes();
        let began = Instant::now();
        let output = self.node.cli_with(args, b"", bound + ENDING);
        let took = began.elapsed();
        assert_eq!(output.code, 0, "{}", output.stderr);
        assert!(took < bound + ENDING, "it took {took:?}");
        assert_eq!(self.node.wait_for_end(&all), 0);
        // Whoever waits is told, and promptly.
        for run in self.runs {
            let output = run.finish(SOON);
            assert_eq!(output.code, UNAVAILABLE, "{}", output.stderr);
        }
        self.put.signal(rustix::process::Signal::INT);
        self.put.finish(SOON);
        (self.node, took)
    }
}

fn is_as_it_was(node: &mut Node) {
    node.reboot();
    for tenant in ["red.cap", "blue.cap"] {
        assert_eq!(node.ok(&["region", "get", "kept", "--as", tenant]).text(), "kept");
        let list = node.json(&["region", "list", "--as", tenant]);
        let regions = list["regions"].as_array().expect("a list");
        let whole = |r: &&serde_json::Value| r["name"] == "kept";
        assert!(regions.iter().any(|r| whole(&r)), "{list}");
        // Its input had not ended, so there is nothing of it.
        assert!(regions.iter().all(|r| r["name"] != "endless"), "half a region is left: {list}");
    }
    node.ok(&["audit", "verify"]);
    node.down();
}

#[test]
fn down_ends_a_node_with_endless_tasks_within_its_bound() {
    let busy = busy();
    // While it drains, nobody gets new work in.
    let late = busy.node.command(&["region", "create", "late", "--bytes", "1", "--as", "red.cap"]);
    let late = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(2));
        distos_e2e::run(late, b"", SOON)
    });
    let (mut node, took) = busy.end(&["down"], DRAIN);
    let late = late.join().expect("a command ends");
    assert_eq!(late.code, UNAVAILABLE, "{}", late.stderr);
    assert!(took > Duration::from_secs(5), "it did not let running work end: {took:?}");
    is_as_it_was(&mut node);
}

#[test]
fn down_now_does_not_wait_for_endless_tasks() {
    let (mut node, took) = busy().end(&["down", "--now"], Duration::ZERO);
    assert!(took < DRAIN, "it waited for running work: {took:?}");
    is_as_it_was(&mut node);
}

/// An end by both at once: the second one wins.
#[test]
fn down_now_ends_a_drain_that_waits() {
    let busy = busy();
    let mut waiting = Watched::spawn(busy.node.command(&["down"]));
    assert!(waiting.run_for(Duration::from_millis(500)), "there is nothing to wait for");
    let (mut node, took) = busy.end(&["down", "--now"], Duration::ZERO);
    assert!(took < Duration::from_secs(8), "it waited for running work: {took:?}");
    assert_eq!(waiting.finish(SOON).code, 0);
    is_as_it_was(&mut node);
}
