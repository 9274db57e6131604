//! What an audit service wrote into its log, killed again and again amid that, is a behaviour of
//! its model (`specs/audit`), and no step of it could be another (L1, L2).

use std::fs;

use distos_e2e::images::traced;
use distos_e2e::{Node, eventually, kill, signal, single_image};
use distos_specs::trace::audit::{SPEC, events, trace};
use distos_specs::value::Value;
use rustix::process::Signal;

use super::{LONG, accepted, at_work, refused};

/// Behind which of its steps the service is killed: its batch is being written, is stored and not
/// in the head file, is there and not yet sure to survive.
const MOMENTS: [&str; 5] = ["append", "synced", "head", "append", "synced"];

fn recorded(node: &Node) -> Vec<Value> {
    events(&node.log()).unwrap_or_else(|why| panic!("{why}"))
}

fn kind(event: &Value) -> &str {
    event.at("event").str()
}

/// Whether none of a process's threads runs any more.
fn is_stopped(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    threads.flatten().all(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, fields)| fields.starts_with('T'))
    })
}

/// Kills a process of the node when the newest step of the audit service is of this kind. The
/// service is stopped meanwhile, so that it is there for sure.
fn kill_behind(node: &Node, step: &str, victim: u32) {
    let audit = node.pid_of("audit");
    let target = "distos::trace::audit: ";
    eventually(&format!("a moment behind {step}"), LONG, || {
        signal(audit, Signal::STOP);
        eventually("a service that stands still", LONG, || is_stopped(audit).then_some(()));
        let log = node.log();
        let newest = log.lines().rev().find_map(|line| Some(line.split_once(target)?.1));
        let is_there = newest.is_some_and(|said| said.split(' ').next() == Some(step));
        if is_there {
            kill(victim);
        }
        signal(audit, Signal::CONT);
        is_there.then_some(())
    });
}

/// The service again and again loses its life, once its disk, and at last its kernel.
fn killed() -> Node {
    let mut node = Node::boot_with(&traced(&single_image(), &["audit"]));
    node.tenants(&["red", "blue"]);
    let trouble = || {
        for step in MOMENTS {
            let pid = node.pid_of("audit");
            kill_behind(&node, step, pid);
            eventually("a new audit service", LONG, || {
                node.try_pid_of("audit").filter(|new| *new != pid)
            });
            eventually("a verified log", LONG, || {
                (node.cli(&["audit", "verify"]).code == 0).then_some(())
            });
        }
        // Its head file cannot be replaced: what it appends fails and is tried again.
        let block = node.directory().join("vats/audit/head.new");
        let failures = || recorded(&node).iter().filter(|event| kind(event) == "failed").count();
        eventually("a place in the way", LONG, || fs::create_dir(&block).ok());
        eventually("an append that fails", LONG, || (failures() > 0).then_some(()));
        fs::remove_dir(&block).unwrap();
        eventually("a verified log", LONG, || {
            (node.cli(&["audit", "verify"]).code == 0).then_some(())
        });
    };
    let processes = at_work(&node, trouble, || {
        let processes = node.processes();
        kill_behind(&node, "append", node.kernel_pid());
        processes
    });
    node.wait_for_end(&processes);
    node.reboot();
    node.ok(&["region", "create", "last", "--bytes", "1", "--as", "red.cap"]);
    node.ok(&["audit", "verify"]);
    node.down();
    node
}

fn event<const N: usize>(kind: &str, fields: [(&str, i64); N]) -> Value {
    let named = fields.into_iter().map(|(name, n)| (name.to_owned(), Value::from(n)));
    let event = ("event".to_owned(), Value::text(kind));
    Value::Record([event].into_iter().chain(named).collect())
}

/// The first events up to and with the one at `last`, and one more.
fn then(events: &[Value], last: usize, more: Value) -> Vec<Value> {
    [&events[..=last], &[more]].concat()
}

/// Where these kinds of events follow each other for the first time: the place of the last one.
fn after(events: &[Value], kinds: &[&str]) -> usize {
    let found =
        events.windows(kinds.len()).position(|w| w.iter().map(kind).eq(kinds.iter().copied()));
    found.unwrap_or_else(|| panic!("nowhere in this trace: {kinds:?}")) + kinds.len() - 1
}

/// What no audit service may have done. The last step of each is the one that is wrong.
fn forged(events: &[Value]) -> Vec<(&'static str, Vec<Value>)> {
    let batch = after(events, &["ack", "append"]);
    let number = |at: usize, field: &str| events[at].at(field).int();
    let (first, last, size) =
        (number(batch, "first"), number(batch, "last"), number(batch, "size"));
    let (before, acked) = (first - 1, size - (last - first + 1));
    let stored = after(events, &["append", "synced"]);
    let named = after(events, &["synced", "head"]);
    let acknowledged = after(events, &["settle", "ack"]);
    let killed = after(events, &["append", "open"]);
    let survived = after(events, &["synced", "open"]);
    let of = |at: usize| events[..at].iter().rev().find(|event| kind(event) == "append").unwrap();
    let ack = |at: usize| event("ack", [("up_to", of(at).at("last").int())]);
    let open = |size: i64| event("open", [("size", size), ("last_seq", size)]);
    let append =
        |first, last, size| event("append", [("first", first), ("last", last), ("size", size)]);
    let synced_size = number(survived - 1, "size");
    vec![
        ("a batch is acknowledged while it is written", then(events, batch, ack(batch + 1))),
        (
            "a batch is acknowledged before the head file names it",
            then(events, stored, ack(stored)),
        ),
        (
            "a batch is acknowledged before the head file is settled",
            then(events, named, ack(named)),
        ),
        (
            "the head file names a batch before that is stored",
            then(events, batch, event("head", [("size", size)])),
        ),
        (
            "a checkpoint covers a batch that is being written",
            then(events, batch, event("checkpoint", [("size", size)])),
        ),
        (
            "a checkpoint covers less than the log has",
            then(
                events,
                acknowledged,
                event("checkpoint", [("size", number(acknowledged - 1, "size") - 1)]),
            ),
        ),
        ("a batch lacks a record", then(events, batch - 1, append(first + 1, last + 1, size))),
        ("a record is taken twice", then(events, batch - 1, append(before, last, size + 1))),
        (
            "a batch has more entries than records, without a gap",
            then(events, batch - 1, append(first, last, size + 1)),
        ),
        (
            "a new service finds less than was stored",
            then(events, survived - 1, open(synced_size - 1)),
        ),
        ("a new service finds less than was acknowledged", then(events, batch, open(acked - 1))),
        (
            "a new service finds more than was written",
            then(events, killed - 1, open(number(killed - 1, "size") + 1)),
        ),
        (
            "a new service goes on with the batch of the old one",
            then(events, killed, event("synced", [("size", number(killed - 1, "size"))])),
        ),
    ]
}

#[test]
fn what_an_audit_service_wrote_through_kills_is_a_behaviour_of_its_model_and_forged_traces_are_not()
{
    let node = killed();
    let events = recorded(&node);
    let least = [
        ("open", MOMENTS.len() + 2),
        ("append", 50),
        ("synced", 50),
        ("head", 50),
        ("failed", 1),
        ("settle", 50),
        ("ack", 50),
        ("checkpoint", MOMENTS.len() + 1),
    ];
    accepted(SPEC, &trace(&events), &least);
    for step in MOMENTS {
        after(&events, &[step, "open"]);
    }

    let forged: Vec<_> =
        forged(&events).into_iter().map(|(what, events)| (what, trace(&events))).collect();
    // Of a batch that was being written, as much may be there as there was time for.
    let killed = after(&events, &["append", "open"]);
    let append = &events[killed - 1];
    let (with, first, last) =
        (append.at("size").int(), append.at("first").int(), append.at("last").int());
    let found = |size, seq| {
        trace(&then(&events, killed - 1, event("open", [("size", size), ("last_seq", seq)])))
    };
    let controls = [
        ("the batch is there", found(with, last)),
        ("the batch is not there", found(with - (last - first + 1), first - 1)),
    ];
    refused(SPEC, &forged, &controls);
}
