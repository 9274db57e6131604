//! Tenants are kept apart, and what one lends another it can take back (C1, C2, C4, M1).
#![allow(clippy::unwrap_used)]

use std::cell::{Cell, RefCell};
use std::fs;
use std::future::Future;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use capnp::capability::Promise;
use distos_abi::Fault;
use distos_client::{Connection, fault_of};
use distos_e2e::{Node, Output, eventually};
use distos_schemas::memory_capnp::region;
use distos_types::{CapFile, HolderSecret};

const PAGE: usize = 65536;

/// A node with tenants red, blue and green; red's region `text` of four pages, each full of its
/// own letter, and red's capability to it in text.cap.
fn lent() -> Node {
    let node = Node::boot();
    node.tenants(&["red", "blue", "green"]);
    let pages: Vec<u8> = b"abcd".iter().flat_map(|letter| [*letter; PAGE]).collect();
    fs::write(node.file("text"), pages).unwrap();
    node.ok(&["region", "put", "text", "text", "--as", "red.cap", "--out", "text.cap"]);
    node
}

/// Lends `what` of red's region to blue, as lent.cap.
fn lend(node: &Node, what: &[&str]) {
    let args = ["cap", "delegate", "text.cap", "--as", "red.cap", "--to", "blue.pub"];
    node.ok(&[&args, what, &["-o", "lent.cap"]].concat());
}

const READ_PAGE_1: [&str; 10] =
    ["region", "get", "--cap", "lent.cap", "--as", "blue.cap", "--offset", "65536", "--len", "64"];

#[test]
fn blue_cannot_reach_reds_region_by_its_name() {
    let node = lent();
    node.refused(&["region", "get", "text", "--as", "blue.cap"], 15);
    node.refused(&["region", "drop", "text", "--as", "blue.cap"], 15);
    let run = ["run", "x.wasm", "--input", "text", "--as", "blue.cap"];
    fs::copy(distos_e2e::wordcount(), node.file("x.wasm")).unwrap();
    node.refused(&run, 15);
    let list = node.json(&["region", "list", "--as", "blue.cap"]);
    assert_eq!(list["regions"], serde_json::json!([]));
    // A region of blue's with the same name is another region.
    let create = ["region", "create", "text", "--bytes", "64K", "--as", "blue.cap"];
    node.ok(&[&create[..], &["--out", "blues.cap"]].concat());
    let blues = node.ok(&["region", "get", "text", "--as", "blue.cap"]);
    assert!(blues.stdout.iter().all(|b| *b == 0));
}

#[test]
fn blue_reads_the_page_that_was_lent_and_is_told_what_it_lacks_for_anything_else() {
    let node = lent();
    lend(&node, &["--rights", "read", "--page", "1", "--for", "1m"]);
    assert_eq!(node.ok(&READ_PAGE_1).stdout, [b'b'; 64]);
    let whole = node.ok(&["region", "get", "--cap", "lent.cap", "--as", "blue.cap"]);
    assert_eq!(whole.stdout, [b'b'; PAGE], "what was lent, and no byte more");
    let get = ["region", "get", "--cap", "lent.cap", "--as", "blue.cap"];
    for (offset, len, bytes) in [("0", "60", "0..60"), ("131071", "2", "131071..131073")] {
        let said = node.refused(&[&get[..], &["--offset", offset, "--len", len]].concat(), 10);
        assert!(said.contains("read") && said.contains(bytes), "{said}");
    }
    fs::write(node.file("note"), "mine").unwrap();
    let put = ["region", "put", "--cap", "lent.cap", "note", "--as", "blue.cap"];
    let said = node.refused(&put, 10);
    assert!(said.contains("write"), "{said}");
    let after = node.ok(&["region", "get", "text", "--as", "red.cap"]);
    assert!(after.stdout == fs::read(node.file("text")).unwrap());
}

#[test]
fn blue_is_refused_from_the_moment_red_revokes_and_cannot_redeem_again() {
    let node = lent();
    lend(&node, &["--rights", "read", "--page", "1", "--for", "1m"]);
    node.ok(&READ_PAGE_1);
    let revoked = node.json(&["cap", "revoke", "lent.cap", "--as", "red.cap"]);
    let micros = revoked[0]["micros"].as_u64().unwrap();
    assert!(micros < 250_000, "{revoked}");
    node.refused(&READ_PAGE_1, 11);
    node.refused(&["cap", "redeem", "lent.cap", "--as", "blue.cap"], 11);
    // Red's own capability is above what was revoked.
    node.ok(&["region", "get", "text", "--as", "red.cap", "--len", "1"]);
    node.ok(&["region", "get", "--cap", "text.cap", "--as", "red.cap", "--len", "1"]);
}

#[test]
fn a_delegation_that_red_revokes_before_blue_ever_used_it_is_dead_too() {
    let node = lent();
    lend(&node, &["--rights", "read", "--page", "1", "--for", "1m"]);
    node.ok(&["cap", "revoke", "lent.cap", "--as", "red.cap"]);
    node.refused(&READ_PAGE_1, 11);
}

#[test]
fn the_time_that_revoking_took_is_printed_for_people() {
    let node = lent();
    lend(&node, &["--rights", "read"]);
    node.ok(&READ_PAGE_1);
    let said = node.ok(&["cap", "revoke", "lent.cap", "--as", "red.cap"]).text();
    assert!(said.contains("revoked in ") && (said.contains("µs") || said.contains("ms")), "{said}");
}

#[test]
fn a_stolen_capability_file_is_useless_without_its_key() {
    let node = lent();
    lend(&node, &["--rights", "read", "--page", "1"]);
    let read = |cap: &str, acting: &str| {
        node.cli(&["region", "get", "--cap", cap, "--as", acting, "--len", "8"])
    };
    // Green has blue's file, and red's, and only its own key.
    assert_eq!(read("lent.cap", "green.cap").code, 22);
    assert_eq!(read("text.cap", "green.cap").code, 22);
    // Even with its key beside a copy under the thief's own name.
    fs::copy(node.file("lent.cap"), node.file("stolen.cap")).unwrap();
    fs::copy(node.file("green.key"), node.file("stolen.key")).unwrap();
    assert_eq!(read("stolen.cap", "stolen.cap").code, 22);
    // Nor can it lend on what is not its own.
    let args = ["cap", "delegate", "lent.cap", "--as", "green.cap", "--to", "green.pub"];
    node.refused(&[&args[..], &["-o", "on.cap"]].concat(), 22);
    assert!(!node.file("on.cap").exists());
    // Without any key there is nothing to act with.
    fs::remove_file(node.file("stolen.key")).unwrap();
    assert_eq!(read("stolen.cap", "stolen.cap").code, 15);
    assert_eq!(read("lent.cap", "blue.cap").code, 0);
}

#[test]
fn a_delegation_ends_when_its_time_is_over() {
    let node = lent();
    lend(&node, &["--rights", "read", "--page", "1", "--for", "1s"]);
    let lent = Instant::now();
    let refused = eventually("the end of the delegation", Duration::from_secs(5), || {
        let output = node.cli(&READ_PAGE_1);
        (output.code != 0).then_some(output)
    });
    assert_eq!(refused.code, 12, "{}", refused.stderr);
    assert!(lent.elapsed() >= Duration::from_millis(900), "it ended early");
    let green = ["cap", "delegate", "text.cap", "--as", "red.cap", "--to", "green.pub"];
    node.ok(&[&green[..], &["--for", "1s", "-o", "green-lent.cap"]].concat());
    std::thread::sleep(Duration::from_millis(1100));
    // One that was never redeemed in its time is no better.
    node.refused(&["cap", "redeem", "green-lent.cap", "--as", "green.cap"], 12);
}

#[test]
fn a_chain_of_delegations_only_gets_weaker_and_ends_with_any_of_its_links() {
    let node = lent();
    lend(&node, &["--rights", "read", "--range", "0..131072"]);
    let on = ["cap", "delegate", "lent.cap", "--as", "blue.cap", "--to", "green.pub"];
    // More than blue has is no more than blue has.
    let said = node.refused(&[&on[..], &["--rights", "read,write", "-o", "more.cap"]].concat(), 10);
    assert!(said.contains("write"), "{said}");
    node.ok(&[&on[..], &["--range", "65536..262144", "-o", "on.cap"]].concat());
    let get = |offset: &str| {
        let args = ["region", "get", "--cap", "on.cap", "--as", "green.cap", "--len", "4"];
        node.cli(&[&args[..], &["--offset", offset]].concat())
    };
    assert_eq!(get("65536").stdout, b"bbbb");
    assert_eq!(get("131072").code, 10, "beyond blue's own reach");
    assert_eq!(get("0").code, 10, "beyond what blue lent on");
    // Red, who never saw green's file, ends blue's and with it green's.
    node.ok(&["cap", "revoke", "lent.cap", "--as", "red.cap"]);
    assert_eq!(get("65536").code, 11);
}

#[test]
fn blues_commands_end_with_revoked_while_red_revokes_and_none_works_after() {
    let node = lent();
    lend(&node, &["--rights", "read", "--page", "1"]);
    let stop = AtomicBool::new(false);
    let started = AtomicBool::new(false);
    let (reads, returned) = std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let mut reads: Vec<(Instant, Output)> = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let begun = Instant::now();
                reads.push((begun, node.cli(&READ_PAGE_1)));
                started.store(true, Ordering::Relaxed);
            }
            reads
        });
        eventually("a first read", Duration::from_secs(10), || {
            started.load(Ordering::Relaxed).then_some(())
        });
        node.ok(&["cap", "revoke", "lent.cap", "--as", "red.cap"]);
        let returned = Instant::now();
        std::thread::sleep(Duration::from_millis(200));
        stop.store(true, Ordering::Relaxed);
        (reading.join().unwrap(), returned)
    });
    assert_eq!(reads[0].1.code, 0);
    assert!(reads.iter().any(|(begun, _)| *begun > returned), "no read began after the revocation");
    for (begun, output) in &reads {
        assert!([0, 11].contains(&output.code), "{}", output.stderr);
        assert!(output.code == 11 || *begun < returned, "a read works after the revocation");
    }
}

/// What the node gives for the capability in a file to whoever signs with a key.
async fn restored(
    node: &Node,
    cap: &str,
    key: &str,
) -> Result<(Connection, region::Client), Fault> {
    let text = |name: &str| fs::read_to_string(node.file(name)).unwrap();
    let file = CapFile::parse(&text(cap)).unwrap();
    let secret = HolderSecret::from_file_text(&text(key)).unwrap();
    let connection = Connection::open(&node.directory().join("run/memory.sock")).await?;
    let region = connection.restore(&file.entries[0].chain, &secret).await?;
    Ok((connection, region))
}

fn in_this_process(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(tokio::task::LocalSet::new().run_until(work));
}

/// The command line refuses by itself; a thief would bring a client that does not.
#[test]
fn the_node_itself_refuses_whoever_signs_with_another_key_than_the_holders() {
    let node = lent();
    lend(&node, &["--rights", "read", "--page", "1"]);
    in_this_process(async {
        for (cap, key) in
            [("text.cap", "blue.key"), ("lent.cap", "green.key"), ("lent.cap", "red.key")]
        {
            let fault = restored(&node, cap, key).await.err().unwrap();
            assert_eq!(fault.code(), 22, "{cap} with {key}: {fault}");
        }
        let (_connection, region) = restored(&node, "lent.cap", "blue.key").await.unwrap();
        assert_eq!(read(&region, PAGE, 2).await.unwrap(), b"bb");
    });
}

async fn read(region: &region::Client, offset: usize, len: usize) -> Result<Vec<u8>, capnp::Error> {
    let mut request = region.read_request();
    request.get().set_offset(offset as u64);
    request.get().set_len(u32::try_from(len).unwrap());
    Ok(request.send().promise.await?.get()?.get_data()?.to_vec())
}

fn write(region: &region::Client, number: u64) -> Promise<(), capnp::Error> {
    let mut request = region.write_request();
    request.get().set_offset(PAGE as u64);
    request.get().set_data(&number.to_le_bytes());
    let sent = request.send().promise;
    Promise::from_future(async move { sent.await.map(|_| ()) })
}

/// Writes numbers that go up, several on their way at once, until one is refused; returns how
/// many were acknowledged and how the first refusal was.
async fn write_until_refused(region: region::Client, acknowledged: Rc<Cell<u64>>) -> capnp::Error {
    let mut next = 1;
    let mut on_their_way = std::collections::VecDeque::new();
    loop {
        while on_their_way.len() < 8 {
            on_their_way.push_back(write(&region, next));
            next += 1;
        }
        match on_their_way.pop_front().unwrap().await {
            Ok(()) => acknowledged.set(acknowledged.get() + 1),
            Err(error) => return error,
        }
    }
}

/// C2 where it hurts: blue's writes are on their way, some even at the disk, while red revokes.
#[test]
fn no_write_of_blues_takes_effect_after_reds_revoke_has_returned() {
    let node = lent();
    lend(&node, &["--rights", "read,write", "--page", "1"]);
    in_this_process(async {
        let (_reds, own) = restored(&node, "text.cap", "red.key").await.unwrap();
        let (_blues, lent) = restored(&node, "lent.cap", "blue.key").await.unwrap();
        let acknowledged = Rc::new(Cell::new(0));
        let refusal = Rc::new(RefCell::new(None));
        let (count, ending) = (acknowledged.clone(), refusal.clone());
        let writing = tokio::task::spawn_local(async move {
            *ending.borrow_mut() = Some(write_until_refused(lent, count).await);
        });
        while acknowledged.get() < 20 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Another process, so that this one goes on writing meanwhile.
        let mut command = node.command(&["cap", "revoke", "lent.cap", "--as", "red.cap"]);
        let revoke = tokio::task::spawn_blocking(move || command.output().unwrap());
        assert!(revoke.await.unwrap().status.success());
        let at_return = read(&own, PAGE, 8).await.unwrap();
        writing.await.unwrap();
        let error = refusal.borrow_mut().take().unwrap();
        assert_eq!(fault_of(&error).code(), 11, "{error}");
        let later = read(&own, PAGE, 8).await.unwrap();
        assert_eq!(at_return, later, "a write took effect after revoke had returned");
        let last = u64::from_le_bytes(later.try_into().unwrap());
        let acknowledged = acknowledged.get();
        assert!(last >= acknowledged, "write {acknowledged} was acknowledged, {last} is stored");
    });
}
