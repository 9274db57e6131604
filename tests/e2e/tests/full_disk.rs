//! A full disk: what does not fit is refused in words that say so, what was acknowledged stays,
//! authority can still be taken away, and once there is space again the work goes on.
//!
//! Needs the right to mount a small file system; without it, this test says so and checks nothing.

use std::fs;
use std::time::Duration;

use distos_e2e::attack::{Attack, Field};
use distos_e2e::disk::Disk;
use distos_e2e::watch::alone;
use distos_e2e::{COMMAND_TIMEOUT, Node, Output, single_image};

const FIRST_BYTES: usize = 1 << 20;

fn bytes(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

fn put(node: &Node, name: &str) -> Output {
    node.cli(&["region", "put", name, name, "--as", "red.cap"])
}

fn is_full(output: &Output) {
    assert_eq!(output.code, 17, "{}", output.stderr);
    assert!(output.stderr.contains("full"), "{}", output.stderr);
    assert!(output.stderr.contains("free"), "it does not say what to do: {}", output.stderr);
}

fn first_is_whole(node: &Node) {
    let back = node.ok(&["region", "get", "first", "--as", "red.cap"]);
    assert!(back.stdout == bytes(FIRST_BYTES), "an acknowledged region changed");
}

/// The audit log, which the full disk had stopped, takes in what the journal kept for it.
fn log_goes_on(node: &Node) {
    let soon = std::time::Duration::from_secs(10);
    distos_e2e::eventually("the log is whole again", soon, || {
        let verified = node.cli(&["audit", "verify"]);
        let waits = verified.code == 17 && verified.stderr.contains("the disk is full");
        assert!(waits || verified.code == 0, "{}", verified.stderr);
        (verified.code == 0).then_some(())
    });
}

fn names(node: &Node) -> Vec<String> {
    let list = node.json(&["region", "list", "--as", "red.cap"]);
    let all = list["regions"].as_array().expect("a list").iter();
    all.map(|r| r["name"].as_str().expect("a name").to_owned()).collect()
}

/// A node on a small disk, with tenants, the region `first` and a page of it lent to blue.
fn node() -> Option<(Node, Disk)> {
    let mut node = Node::new(&single_image());
    let disk = Disk::mount(&node.directory())?;
    node.reboot();
    node.tenants(&["red", "blue"]);
    for (name, len) in [("first", FIRST_BYTES), ("small", 100_000), ("large", 48 << 20)] {
        fs::write(node.file(name), bytes(len)).expect("a file on another disk");
    }
    node.ok(&["region", "put", "first", "first", "--as", "red.cap", "--out", "first.cap"]);
    let lend =
        "cap delegate first.cap --as red.cap --to blue.pub --rights read --page 1 -o page.cap";
    node.ok(&lend.split(' ').collect::<Vec<_>>());
    node.ok(&["region", "get", "--cap", "page.cap", "--as", "blue.cap"]);
    Some((node, disk))
}

#[test]
fn a_region_that_does_not_fit_is_refused_and_leaves_nothing() {
    let Some((mut node, _disk)) = node() else { return };
    for _ in 0..2 {
        is_full(&put(&node, "large"));
        assert_eq!(names(&node), ["first"]);
    }
    first_is_whole(&node);
    // Its space is free again.
    node.ok(&["region", "put", "small", "small", "--as", "red.cap"]);
    log_goes_on(&node);
    node.down();
    node.reboot();
    first_is_whole(&node);
    node.down();
}

#[test]
fn on_a_full_disk_authority_can_be_taken_away_and_data_be_read() {
    let Some((mut node, disk)) = node() else { return };
    disk.fill();
    is_full(&put(&node, "small"));
    first_is_whole(&node);
    node.ok(&["cap", "revoke", "page.cap", "--as", "red.cap"]);
    node.refused(&["region", "get", "--cap", "page.cap", "--as", "blue.cap"], 11);
    let status = node.json(&["status"]);
    for vat in status["vats"].as_array().expect("vats") {
        assert_eq!(vat["restarts"], 0, "{} ended: {status}", vat["name"]);
    }
    disk.free();
    assert_eq!(put(&node, "small").code, 0);
    assert_eq!(names(&node), ["first", "small"]);
    log_goes_on(&node);
    node.down();
    node.reboot();
    first_is_whole(&node);
    node.refused(&["region", "get", "--cap", "page.cap", "--as", "blue.cap"], 11);
    node.down();
}

#[test]
fn space_can_be_made_on_a_full_disk_by_dropping_a_region() {
    let Some((mut node, disk)) = node() else { return };
    disk.fill();
    node.ok(&["region", "drop", "first", "--as", "red.cap"]);
    node.ok(&["region", "put", "small", "small", "--as", "red.cap"]);
    node.down();
}

#[test]
fn a_node_on_a_full_disk_starts_or_says_why_not() {
    let Some((mut node, disk)) = node() else { return };
    node.down();
    disk.fill();
    let image = node.image();
    let args = ["up", image.to_str().expect("a plain path"), "--detach"];
    let output = node.cli_with(&args, b"", COMMAND_TIMEOUT);
    if output.code == 0 {
        first_is_whole(&node);
        node.ok(&["down"]);
    } else {
        let full = output.stderr.contains("No space left") || output.stderr.contains("full");
        assert!(full, "{}: {}", output.code, output.stderr);
    }
    disk.free();
    node.reboot();
    first_is_whole(&node);
    log_goes_on(&node);
    node.down();
}

/// The very first start, on a disk too small for a journal.
#[test]
fn a_new_node_on_a_full_disk_says_so() {
    let node = Node::new(&single_image());
    let Some(disk) = Disk::mount(&node.directory()) else { return };
    disk.fill();
    fs::rename(disk.filler(), disk.at.join(".VERSION.1")).expect("a name that a node ignores");
    let mut up = node.command(&["up"]);
    up.arg(node.image());
    let output = alone(up, COMMAND_TIMEOUT);
    assert!((10..=24).contains(&output.code), "{}", output.code);
    assert!(output.stderr.contains("No space left"), "{}", output.stderr);
}

/// What needs no space goes on: blue's reads, its empty calls and its new connections.
#[test]
fn a_tenant_that_reads_does_not_notice_that_another_meets_a_full_disk() {
    let Some(field) = Field::on_small_disk(Node::new(&single_image())) else { return };
    let measured = field.measure(Attack::FullDisk, Duration::from_millis(700), 2);
    assert!(measured.faults.is_empty(), "blue sees {:#?}", measured.faults);
    assert!(measured.unclear.is_empty(), "red is told {:#?}", measured.unclear);
    assert!(measured.refused > 0, "nothing was refused");
    let starved = measured.starved();
    assert!(starved.is_none(), "blue is starved: {}", starved.unwrap_or_default());
}
