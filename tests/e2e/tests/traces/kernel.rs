//! What a node's kernel recorded, through the deaths of a service and of the kernel, is a
//! behaviour of its model (`specs/capability`), and no record of it could be another (C1, C2, L2).

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use distos_abi::{ByteRange, CapId, Caveats, HolderKey, ObjectId, Rights, SessionId, VatName};
use distos_core::{Holder as Held, Life, NodeRecord, Reason, Record};
use distos_e2e::{Node, eventually, kill, wordcount};
use distos_specs::trace::kernel::{Entry, SPEC, journal, trace};

use super::{LONG, accepted, at_work, refused};

fn delegate(node: &Node, cap: &str, (from, to): (&str, &str), what: &[&str], out: &str) {
    let (from, to) = (format!("{from}.cap"), format!("{to}.pub"));
    let args = ["cap", "delegate", cap, "--as", &from, "--to", &to, "-o", out];
    node.ok(&[&args, what].concat());
}

fn reads(node: &Node, cap: &str, who: &str) -> i32 {
    node.cli(&["region", "get", "--cap", cap, "--as", &format!("{who}.cap"), "--len", "1"]).code
}

/// What two tenants do in a day: red lends blue in many ways, takes some of it back, and computes.
fn day(node: &Node, name: &str) {
    let file = |what: &str| format!("{name}-{what}.cap");
    let (own, live, back, dead, brief) =
        (file("own"), file("live"), file("back"), file("dead"), file("brief"));
    fs::write(node.file("data"), vec![b'a'; 3 * 65536]).unwrap();
    node.ok(&["region", "put", name, "data", "--as", "red.cap", "--out", &own]);
    delegate(node, &own, ("red", "blue"), &["--rights", "read", "--page", "1"], &live);
    delegate(node, &live, ("blue", "red"), &["--rights", "read", "--for", "1h"], &back);
    delegate(node, &own, ("red", "blue"), &["--rights", "read"], &dead);
    delegate(node, &own, ("red", "blue"), &["--rights", "read,write", "--for", "1s"], &brief);
    // A chain of two links in one go, and one link after another.
    assert_eq!(reads(node, &back, "red"), 0);
    for cap in [&live, &dead, &brief, &live] {
        assert_eq!(reads(node, cap, "blue"), 0);
    }
    node.ok(&["cap", "revoke", &dead, "--as", "red.cap"]);
    assert_eq!(reads(node, &dead, "blue"), 11);
    let unused = file("unused");
    delegate(node, &own, ("red", "blue"), &[], &unused);
    node.ok(&["cap", "revoke", &unused, "--as", "red.cap"]);
    assert_eq!(reads(node, &unused, "blue"), 11);
    let module = wordcount();
    node.ok(&["run", module.to_str().unwrap(), "--input", name, "--as", "red.cap"]);
    eventually("the end of a loan", LONG, || (reads(node, &brief, "blue") != 0).then_some(()));
}

/// Red's program is killed while its job runs, so that the scheduler still holds in red's name what
/// goes with the connection.
fn hang_up(node: &Node) {
    let recorded = |found: &dyn Fn(&Record) -> bool| {
        let entries = journal(&node.directory()).unwrap_or_default();
        entries.iter().filter(|entry| found(&entry.record)).count()
    };
    let placed =
        || recorded(&|record| matches!(record, Record::Event { kind, .. } if kind == "placement"));
    let loops = r#"(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))"#;
    fs::write(node.file("loop.wasm"), wat::parse_str(loops).unwrap()).unwrap();
    let before = placed();
    let mut run = node.command(&["run", "loop.wasm", "--input", "first", "--as", "red.cap"]);
    run.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut run = run.spawn().unwrap();
    eventually("a task that runs", LONG, || (placed() > before).then_some(()));
    run.kill().unwrap();
    run.wait().unwrap();
    let ended = || recorded(&|record| matches!(record, Record::SessionEnded { .. }));
    eventually("the end of the session", LONG, || (ended() > 0).then_some(()));
}

/// A node that went through all of this, running again.
fn worked() -> Node {
    let mut node = Node::boot();
    node.tenants(&["red", "blue"]);
    day(&node, "first");
    hang_up(&node);
    let memory = node.pid_of("memory");
    kill(memory);
    eventually("a new memory service", LONG, || {
        node.try_pid_of("memory").filter(|pid| *pid != memory)
    });
    eventually("a read", LONG, || (reads(&node, "first-live.cap", "blue") == 0).then_some(()));
    let processes = node.processes();
    let pause = || std::thread::sleep(Duration::from_millis(1200));
    at_work(&node, pause, || kill(node.kernel_pid()));
    node.wait_for_end(&processes);
    node.reboot();
    assert_eq!(reads(&node, "first-live.cap", "blue"), 0);
    assert_eq!(reads(&node, "first-dead.cap", "blue"), 11);
    node.down();
    node.reboot();
    day(&node, "second");
    node.ok(&["region", "drop", "first", "--as", "red.cap"]);
    assert_eq!(reads(&node, "first-back.cap", "red"), 11);
    node
}

/// The journal, which is what the auditor is shown, record by record.
fn audited(node: &Node) -> Vec<Entry> {
    let log = node.json(&["audit", "list"]);
    let log = log.as_array().unwrap();
    assert!(log.len() > 300, "there are only {} records", log.len());
    let entries = eventually("the journal", LONG, || {
        journal(&node.directory()).ok().filter(|entries| entries.len() >= log.len())
    });
    for (shown, Entry { seq, time_ms, record }) in log.iter().zip(&entries) {
        assert_eq!(
            (shown["seq"].as_u64(), shown["time_ms"].as_u64()),
            (Some(*seq), Some(*time_ms))
        );
        let (cap, lineage) = match record {
            Record::Node(node) => (node.cap, &node.lineage[..]),
            Record::Revoke(revoke) => (revoke.cap, &revoke.lineage[..]),
            Record::Tombstone { under, .. } => (*under, &[][..]),
            Record::Event { cap, lineage, .. } => (*cap, &lineage[..]),
            _ => (CapId(0), &[][..]),
        };
        let lineage: Vec<u64> = lineage.iter().map(|cap| cap.0).collect();
        assert_eq!(shown["cap_id"], cap.0, "record {seq}: {record:?}");
        assert_eq!(shown["lineage"], serde_json::json!(lineage), "record {seq}: {record:?}");
    }
    entries
}

fn node_of(entry: &Entry) -> Option<&NodeRecord> {
    match &entry.record {
        Record::Node(node) => Some(node),
        _ => None,
    }
}

fn first(entries: &[Entry], what: &str, found: impl Fn(&Record) -> bool) -> usize {
    let at = entries.iter().position(|entry| found(&entry.record));
    at.unwrap_or_else(|| panic!("{what}: there is none in this trace"))
}

fn the_node(entries: &[Entry], cap: CapId) -> NodeRecord {
    entries.iter().filter_map(node_of).find(|node| node.cap == cap).unwrap().clone()
}

/// The first `len` records, and one more.
fn then(entries: &[Entry], len: usize, record: Record) -> Vec<Entry> {
    let mut edited = entries[..len].to_vec();
    let last = edited.last().unwrap();
    edited.push(Entry { seq: last.seq + 1, time_ms: last.time_ms, record });
    edited
}

/// The first `len` records, and another capability below `parent`.
fn child(
    entries: &[Entry],
    len: usize,
    parent: &NodeRecord,
    change: impl Fn(&mut NodeRecord),
) -> Vec<Entry> {
    let last = entries[..len].iter().filter_map(node_of).map(|node| node.cap).max().unwrap();
    let cap = CapId(last.0 + 1);
    let mut node = NodeRecord {
        cap,
        parent: Some(parent.cap),
        life: Life::Session(SessionId(77)),
        link: None,
        issuer: None,
        lineage: [&parent.lineage[..], &[cap]].concat(),
        ..parent.clone()
    };
    change(&mut node);
    then(entries, len, Record::Node(Box::new(node)))
}

/// What no kernel may have done. The last record of each is the one that is wrong.
fn forged(entries: &[Entry]) -> Vec<(&'static str, Vec<Entry>)> {
    let dropped = first(
        entries,
        "a region that is dropped",
        |record| matches!(record, Record::Revoke(revoke) if revoke.reason == Reason::Object),
    );
    let cut_off = first(
        entries,
        "a link that is revoked",
        |record| matches!(record, Record::Revoke(revoke) if revoke.reason == Reason::Link),
    );
    let ended = |at: usize| match &entries[at].record {
        Record::Revoke(revoke) => the_node(entries, revoke.cap),
        _ => unreachable!(),
    };
    let with_children = first(
        entries,
        "an end of several",
        |record| matches!(record, Record::Revoke(revoke) if revoke.descendants > 0),
    );
    let lent = first(entries, "a page that is lent", |record| {
        matches!(record, Record::Node(node) if node.link.is_some()
            && node.authority.rights == Rights::READ
            && node.authority.caveats.range != ByteRange::WHOLE)
    });
    let page = node_of(&entries[lent]).unwrap();
    let session = first(entries, "a session that ends", |record| {
        matches!(record, Record::SessionEnded { .. })
    });
    let boots = entries.iter().enumerate().filter(|(_, e)| matches!(e.record, Record::Boot { .. }));
    let second = boots.map(|(at, _)| at).nth(1).unwrap();
    let connected = first(
        entries,
        "what a session derived",
        |record| matches!(record, Record::Node(node) if matches!(node.life, Life::Session(_))),
    );
    let memory = VatName::new("memory").unwrap();
    let edge = first(entries, "what a service holds until the kernel ends", |record| {
        matches!(record, Record::Node(node) if node.life == Life::Edge
            && node.vat != memory && node.holder != Held::Vat(memory.clone()))
    });
    let recounted = |at: usize, by: i64| {
        let mut record = entries[at].record.clone();
        match &mut record {
            Record::Revoke(revoke) => {
                revoke.descendants = revoke.descendants.wrapping_add_signed(by)
            }
            Record::SessionEnded { ended, .. } => *ended = ended.wrapping_add_signed(by),
            _ => unreachable!(),
        }
        then(entries, at, record)
    };
    let mut lost = entries[..cut_off].to_vec();
    lost.extend(entries[cut_off + 1..].iter().find(|entry| node_of(entry).is_some()).cloned());
    let after_boot =
        1 + second + entries[second..].iter().position(|e| node_of(e).is_some()).unwrap();
    let link = ended(cut_off);
    let above = the_node(entries, link.parent.unwrap());
    vec![
        (
            "a capability is used after its object ended",
            child(entries, dropped + 1, &ended(dropped), |_| {}),
        ),
        ("a link is redeemed again after it was revoked", {
            child(entries, cut_off + 1, &above, |node| {
                let NodeRecord { link, issuer, life, holder, authority, .. } = link.clone();
                (node.link, node.issuer, node.life) = (link, issuer, life);
                (node.holder, node.authority) = (holder, authority);
            })
        }),
        ("a right more than the parent's", {
            child(entries, lent + 1, page, |node| {
                node.authority.rights = Rights::READ.join(Rights::WRITE)
            })
        }),
        ("bytes beyond the parent's", {
            child(entries, lent + 1, page, |node| node.authority.caveats = Caveats::NONE)
        }),
        ("what is durable hangs from a session's", {
            let parent = node_of(&entries[connected]).unwrap();
            child(entries, connected + 1, parent, |node| {
                (node.life, node.object) = (Life::Durable, ObjectId(u64::MAX));
            })
        }),
        (
            "what a service held before a boot is used after it",
            child(entries, after_boot, node_of(&entries[edge]).unwrap(), |_| {}),
        ),
        (
            "a number is given out twice",
            then(entries, connected + 1, entries[connected].record.clone()),
        ),
        ("a link is signed by somebody else than whom it hangs from", {
            let issuer = Some(HolderKey([7; 32]));
            then(entries, lent, Record::Node(Box::new(NodeRecord { issuer, ..page.clone() })))
        }),
        ("a boot repeats an epoch", then(entries, second, entries[0].record.clone())),
        ("the end of a link is not recorded", lost),
        ("one more is said to have ended below", recounted(with_children, 1)),
        ("one less is said to have ended with a session", recounted(session, -1)),
    ]
}

#[test]
fn what_the_kernel_recorded_through_kills_is_a_behaviour_of_its_model_and_forged_traces_are_not() {
    let node = worked();
    let entries = audited(&node);
    let least = ["boot", "node", "revoke", "tombstone", "session", "vat"].map(|kind| (kind, 1));
    accepted(SPEC, &trace(&entries), &least);

    let any = |found: &dyn Fn(&Record) -> bool| entries.iter().any(|e| found(&e.record));
    for reason in [Reason::Asked, Reason::Link, Reason::Object, Reason::Expired] {
        let ended = any(&|record| matches!(record, Record::Revoke(r) if r.reason == reason));
        assert!(ended, "nothing ended for the reason {reason:?}");
    }
    let is_gift =
        |node: &NodeRecord| matches!((node.life, &node.holder), (Life::Session(_), Held::Vat(_)));
    assert!(any(&|record| matches!(record, Record::Node(node) if is_gift(node))), "no gift");

    let forged = forged(&entries);
    // The same child is fine as long as its parent lives.
    let control = {
        let (_, used) = &forged[0];
        let mut fine = used.clone();
        fine.remove(used.len() - 2);
        trace(&fine)
    };
    let forged: Vec<_> = forged.iter().map(|(what, entries)| (*what, trace(entries))).collect();
    refused(SPEC, &forged, &[("a capability is used while its object lives", control)]);
}
