//! Deployments on a real node: a job goes on without the connection over which it was ordered, once for each order, for as
//! long as the capability lives that the order was signed with (N3, C2).

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use capnp::capability::FromClientHook as _;
use distos_abi::{Authority, CapId, Caveats, Fault, NodeId, Rights, VatName};
use distos_client::handoff::{self, Home};
use distos_client::{Connection, fault_of};
use distos_e2e::holder::{Holder, in_this_process};
use distos_e2e::{Node, eventually, kill, wordcount};
use distos_schemas::capability_capnp::capability;
use distos_schemas::memory_capnp::regions;
use distos_schemas::scheduler_capnp::{TaskState, job_spec, queue};
use distos_types::{Chain, HolderSecret, Order, Root};

const LONG: Duration = Duration::from_secs(60);
const PAGE: u64 = 65_536;
/// Says that all is well, after it has computed for a while.
const SLOW: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "\20\00\00\00\0b\00\00\00")
  (data (i32.const 32) "all is well")
  (func (export "_start") (local $left i32)
    (local.set $left (i32.const 500000000))
    (loop $more
      (local.set $left (i32.sub (local.get $left) (i32.const 1)))
      (br_if $more (local.get $left)))
    (drop (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 8)))))"#;
const ENDLESS: &str =
    r#"(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))"#;

/// A node on which red has some input, and blue is another tenant.
fn node() -> Node {
    let node = Node::boot();
    node.tenants(&["red", "blue"]);
    fs::write(node.file("text"), "some words\nin two lines\n").expect("a file");
    node.ok(&["region", "put", "text", "text", "--as", "red.cap"]);
    for (name, text) in [("slow.wasm", SLOW), ("endless.wasm", ENDLESS)] {
        fs::write(node.file(name), wat::parse_str(text).expect("WAT")).expect("a file");
    }
    node
}

/// Deploys by a command of its own, which has ended when this returns: the job's number and its output region.
fn detached(node: &Node, args: &[&str]) -> (String, String) {
    let run = [&["run"], args, &["--input", "text", "--detach", "--as", "red.cap"]].concat();
    let told = node.json(&run);
    let output = told["output"].as_str().expect("a region").to_owned();
    (told["job"].to_string(), output)
}

fn shown(node: &Node, job: &str) -> serde_json::Value {
    node.json(&["job", "show", job, "--as", "red.cap"])
}

fn is_lost(node: &Node, job: &str) {
    let lost = eventually("the scheduler is back", LONG, || {
        let shown = node.cli(&["job", "show", job, "--as", "red.cap", "--json"]);
        (shown.code == 0).then_some(shown)
    });
    let told: serde_json::Value = serde_json::from_slice(&lost.stdout).expect("JSON");
    assert_eq!((&told["state"], &told["deployed"]), (&"failed".into(), &true.into()), "{told}");
    let why = told["fault"].as_str().expect("a fault");
    assert!(why.contains("restarted") && why.contains("deploy it again"), "{why}");
    let said = node.refused(&["job", "wait", job, "--as", "red.cap"], 17);
    assert!(said.contains("deploy it again"), "{said}");
}

#[test]
fn a_job_goes_on_without_its_command_and_another_one_fetches_its_result() {
    let node = node();
    let module = wordcount();
    let module = module.to_str().expect("a plain path");
    let (counts, counted) = detached(&node, &[module, "--map", "map", "--reduce", "reduce"]);
    let (slow, said) = detached(&node, &["slow.wasm"]);
    assert_ne!(counts, slow);
    assert_eq!(shown(&node, &slow)["deployed"], true);
    for (job, region, result) in [(&counts, &counted, "2 5 24"), (&slow, &said, "all is well")] {
        assert_eq!(shown(&node, job)["output"], **region);
        let wait = ["job", "wait", job, "--as", "red.cap"];
        let output = node.cli_with(&wait, b"", LONG);
        assert_eq!(output.code, 0, "{}", output.stderr);
        assert_eq!(output.text().split_whitespace().collect::<Vec<_>>().join(" "), result);
        assert_eq!(shown(&node, job)["state"], "done");
        // Whether there is such a job is nobody else's affair.
        let foreign = node.refused(&["job", "show", job, "--as", "blue.cap"], 15);
        let absent = node.refused(&["job", "show", "999", "--as", "blue.cap"], 15);
        assert_eq!(foreign.replace(job.as_str(), "999"), absent);
    }
    // The output regions were given back.
    let list = node.json(&["region", "list", "--as", "red.cap"]);
    assert_eq!(list["regions"].as_array().map(Vec::len), Some(1), "{list}");
    let jobs = node.json(&["job", "list", "--as", "red.cap"]);
    assert_eq!(jobs["jobs"].as_array().map(Vec::len), Some(2), "{jobs}");
}

#[test]
fn whoever_deployed_a_job_can_end_it_from_elsewhere() {
    let node = node();
    let (job, _) = detached(&node, &["endless.wasm"]);
    node.refused(&["job", "cancel", &job, "--as", "blue.cap"], 15);
    assert_eq!(shown(&node, &job)["state"], "running");
    // Nor does one whom red has lent its queue to end what red has begun by it.
    let delegate = ["cap", "delegate", "red.cap", "--entry", "queue", "--as", "red.cap"];
    node.ok(&[&delegate[..], &["--to", "blue.pub", "--out", "lent.cap"]].concat());
    fs::copy(node.file("blue.key"), node.file("lent.key")).expect("a copy");
    assert_eq!(node.json(&["job", "show", &job, "--as", "lent.cap"])["state"], "running");
    node.refused(&["job", "cancel", &job, "--as", "lent.cap"], 10);
    node.ok(&["job", "cancel", &job, "--as", "red.cap"]);
    assert_eq!(shown(&node, &job)["state"], "cancelled");
    // There is no result, and nothing is left of it.
    node.refused(&["job", "wait", &job, "--as", "red.cap"], 17);
    let list = node.json(&["region", "list", "--as", "red.cap"]);
    assert_eq!(list["regions"].as_array().map(Vec::len), Some(1), "{list}");
}

#[test]
fn a_job_that_ran_when_the_scheduler_or_the_node_was_killed_is_told_to_be_lost() {
    let mut node = node();
    let (first, _) = detached(&node, &["endless.wasm"]);
    eventually("it runs", LONG, || (shown(&node, &first)["state"] == "running").then_some(()));
    kill(node.pid_of("scheduler"));
    is_lost(&node, &first);
    let (second, _) = detached(&node, &["endless.wasm"]);
    assert_ne!(first, second);
    node.crash();
    node.reboot();
    is_lost(&node, &first);
    is_lost(&node, &second);
    // Nobody's number is used again, and there is work as before.
    let (third, _) = detached(&node, &["slow.wasm"]);
    assert!(third != first && third != second);
    let wait = ["job", "wait", &third, "--as", "red.cap"];
    assert_eq!(node.cli_with(&wait, b"", LONG).text(), "all is well");
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
    now.as_millis() as u64
}

fn now_us() -> u64 {
    now_ms() * 1000
}

/// An order and what goes with it, as it is brought.
#[derive(Clone)]
struct Brought {
    order: Vec<u8>,
    signature: Vec<u8>,
    spec: Vec<u8>,
}

impl Brought {
    fn signed(chain: &Chain, secret: &HolderSecret, at_us: u64, spec: &[u8]) -> Brought {
        let (order, signature) =
            Order::sign(chain, spec, at_us, secret).expect("it is the holder's");
        let (order, signature) = (order.bytes().to_vec(), signature.to_vec());
        Brought { order, signature, spec: spec.to_vec() }
    }

    async fn to(&self, queue: &queue::Client) -> Result<u64, Fault> {
        let mut request = queue.deploy_request();
        let mut params = request.get();
        params.set_order(&self.order);
        params.set_signature(&self.signature);
        params.set_spec(&self.spec);
        let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
        Ok(answer.get().expect("an answer").get_id())
    }
}

async fn queue_of(holder: &Holder) -> Result<(Connection, queue::Client), Fault> {
    holder.restore(holder.chain("queue")).await
}

/// A job of red's over its text, whose output goes to a new region: its bytes, with gifts in it for half a minute. Red's
/// connections have ended when this returns.
async fn spec(red: &Holder, module: &str, output: &str) -> Vec<u8> {
    let (_scheduler, queue) = queue_of(red).await.expect("red may run");
    let executor = queue.executor_request().send().promise.await.expect("an executor");
    let executor = executor.get().and_then(|answer| answer.get_vat()).expect("its name");
    let executor = executor.to_str().expect("a plain name");
    let (_memory, regions): (_, regions::Client) =
        red.restore(red.chain("regions")).await.expect("red may store");
    let mut open = regions.open_request();
    open.get().set_name("text");
    open.get().set_until_ms(now_ms() + 3_600_000);
    let open = open.send().promise.await.expect("red's text");
    let input = open.get().and_then(|answer| answer.get_region()).expect("a region");
    let mut create = regions.create_request();
    create.get().set_name(output);
    create.get().set_bytes(2 * PAGE);
    let create = create.send().promise.await.expect("room for the output");
    let output = create.get().and_then(|answer| answer.get_region()).expect("a region");
    let home = || Home { node: None, vat: VatName::new("memory").expect("a name") };
    let wanted = |rights| Authority { rights, caveats: Caveats::NONE };
    let to_read = handoff::give(&input, executor, wanted(Rights::READ), home()).await;
    let both = wanted(Rights::READ.join(Rights::WRITE));
    let to_write = handoff::give(&output, executor, both, home()).await;
    let mut message = capnp::message::Builder::new_default();
    let mut spec = message.init_root::<job_spec::Builder<'_>>();
    spec.set_name("ordered");
    spec.set_module(&wat::parse_str(module).expect("WAT"));
    to_read.expect("it is red's to give").write(spec.reborrow().init_input());
    to_write.expect("it is red's to give").write(spec.reborrow().init_output());
    spec.set_input_bytes(24);
    capnp::serialize::write_message_to_words(&message)
}

/// Where a job stands, and why.
async fn stands(queue: &queue::Client, id: u64) -> (TaskState, String) {
    let mut request = queue.job_request();
    request.get().set_id(id);
    let job = request.send().promise.await.expect("it is remembered");
    let job = job.get().and_then(|answer| answer.get_job()).expect("a job");
    let answer = job.status_request().send().promise.await.expect("its status");
    let status = answer.get().and_then(|answer| answer.get_status()).expect("its status");
    let fault = status.get_fault().expect("a text").to_str().expect("a text").to_owned();
    (status.get_state().expect("a state"), fault)
}

async fn ended(queue: &queue::Client, id: u64) -> (TaskState, String) {
    let end = tokio::time::Instant::now() + LONG;
    loop {
        let stands = stands(queue, id).await;
        if !matches!(stands.0, TaskState::Queued | TaskState::Running) {
            return stands;
        }
        assert!(tokio::time::Instant::now() < end, "job {id} does not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn is_unauthenticated(outcome: &Result<u64, Fault>) -> bool {
    matches!(outcome, Err(Fault::Unauthenticated(_)))
}

#[test]
fn an_order_is_carried_out_once_whoever_brings_it_and_whatever_is_killed_meanwhile() {
    let mut node = node();
    let (red, blue) = (Holder::load(&node, "red"), Holder::load(&node, "blue"));
    let brought = in_this_process(async {
        let spec = spec(&red, SLOW, "output").await;
        let brought = Brought::signed(red.chain("queue"), &red.secret(), now_us(), &spec);
        let (_connection, queue) = queue_of(&red).await.expect("red may run");
        let (first, second) = futures::join!(brought.to(&queue), brought.to(&queue));
        assert!(first.is_ok() != second.is_ok(), "{first:?}, {second:?}");
        let id = *first.as_ref().or(second.as_ref()).expect("one of them");
        for outcome in [first, second] {
            assert!(outcome.is_ok() || is_unauthenticated(&outcome), "{outcome:?}");
        }
        assert!(is_unauthenticated(&brought.to(&queue).await));
        let (_other, blues) = queue_of(&blue).await.expect("blue may run");
        assert!(is_unauthenticated(&brought.to(&blues).await));
        assert_eq!(ended(&queue, id).await, (TaskState::Done, String::new()));
        assert!(is_unauthenticated(&brought.to(&queue).await));
        brought
    });
    let again = |node: &Node| {
        eventually("the scheduler is back", LONG, || {
            node.cli(&["job", "list", "--as", "red.cap"]).code.eq(&0).then_some(())
        });
        in_this_process(async {
            let (_connection, queue) = queue_of(&red).await.expect("red may run");
            let outcome = brought.to(&queue).await;
            assert!(is_unauthenticated(&outcome), "{outcome:?}");
        });
        let jobs = node.json(&["job", "list", "--as", "red.cap"]);
        let jobs = jobs["jobs"].as_array().expect("jobs").clone();
        assert!(jobs.iter().all(|job| job["state"] != "running"), "{jobs:?}");
    };
    kill(node.pid_of("scheduler"));
    again(&node);
    node.crash();
    node.reboot();
    again(&node);
}

#[test]
fn an_order_is_refused_that_is_old_or_early_or_changed_or_for_somebody_else() {
    let node = node();
    let (red, blue) = (Holder::load(&node, "red"), Holder::load(&node, "blue"));
    in_this_process(async {
        let spec = spec(&red, SLOW, "output").await;
        let (_connection, queue) = queue_of(&red).await.expect("red may run");
        let by = |chain: &Chain, at_us| Brought::signed(chain, &red.secret(), at_us, &spec);
        let (own, six_minutes_us) = (red.chain("queue"), 360_000_000);
        for at_us in [now_us() - six_minutes_us, now_us() + six_minutes_us] {
            let outcome = by(own, at_us).to(&queue).await;
            assert!(is_unauthenticated(&outcome), "{outcome:?}");
        }
        // For another vat of this node, and for the same one of another.
        let elsewhere = HolderSecret::from_seed([7; 32]);
        let root = Root {
            node: NodeId(elsewhere.key().0),
            holder: red.secret().key(),
            cap: CapId(1),
            ..own.root().clone()
        };
        for chain in [red.chain("regions").clone(), Chain::issue(root, &elsewhere)] {
            let outcome = by(&chain, now_us()).to(&queue).await;
            assert!(matches!(outcome, Err(Fault::NotFound(_))), "{outcome:?}");
        }
        // Another tenant's, over red's connection; and red's, over another tenant's.
        let blues = Brought::signed(blue.chain("queue"), &blue.secret(), now_us(), &spec);
        let outcome = blues.to(&queue).await;
        assert!(is_unauthenticated(&outcome), "{outcome:?}");
        let good = by(own, now_us());
        let (_other, blues_queue) = queue_of(&blue).await.expect("blue may run");
        let outcome = good.to(&blues_queue).await;
        assert!(is_unauthenticated(&outcome), "{outcome:?}");
        for at in 0..good.order.len() {
            let mut changed = good.clone();
            changed.order[at] ^= 1;
            assert!(changed.to(&queue).await.is_err(), "byte {at} of the order");
        }
        for at in 0..good.signature.len() {
            let mut changed = good.clone();
            changed.signature[at] ^= 1;
            assert!(changed.to(&queue).await.is_err(), "byte {at} of the signature");
        }
        for at in 0..good.spec.len() {
            let mut changed = good.clone();
            changed.spec[at] ^= 1;
            let outcome = changed.to(&queue).await;
            assert!(is_unauthenticated(&outcome), "byte {at} of the job: {outcome:?}");
        }
        // Nothing of that has had an effect.
        let list = queue.list_request().send().promise.await.expect("red's jobs");
        assert_eq!(list.get().and_then(|answer| answer.get_jobs()).expect("a list").len(), 0);
        // By then the gifts may be late; whether they are is told by the job, and the order is taken.
        let outcome = good.to(&queue).await;
        assert!(matches!(outcome, Ok(_) | Err(Fault::NotFound(_))), "{outcome:?}");
        assert!(is_unauthenticated(&good.to(&queue).await));
    });
}

/// Blue runs a job for red, by what red has lent; red takes that back.
#[test]
fn a_deployment_ends_with_the_capability_that_its_order_was_signed_with() {
    let node = node();
    let (red, blue) = (Holder::load(&node, "red"), Holder::load(&node, "blue"));
    in_this_process(async {
        let own = red.chain("queue");
        let rights = own.authority().rights;
        let all = Authority { rights, caveats: Caveats::NONE };
        let lent = own.delegate(&red.secret(), blue.secret().key(), all, [7; 16]);
        let lent = lent.expect("red holds it");
        let spec = spec(&red, ENDLESS, "output").await;
        let order = Brought::signed(&lent, &blue.secret(), now_us(), &spec);
        let id = {
            let (_connection, queue) = blue.restore::<queue::Client>(&lent).await.expect("lent");
            order.to(&queue).await.expect("blue may run for red")
        };
        // Blue has gone, and the job has not.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (_connection, queue) = queue_of(&red).await.expect("red may run");
        assert_eq!(stands(&queue, id).await.0, TaskState::Running);
        let link = lent.links().pop().expect("what red has signed");
        let own: capability::Client = queue.clone().cast_to();
        let mut revoke = own.revoke_link_request();
        revoke.get().set_link(&link.hash.0);
        revoke.get().set_expires_ms(link.authority.caveats.expires_ms);
        revoke.send().promise.await.expect("it is red's to end");
        let (state, why) = ended(&queue, id).await;
        assert_eq!(state, TaskState::Failed);
        assert_eq!(Fault::from_wire(&why), Some(Fault::Revoked), "{why}");
        // What is signed with it now is not carried out, whoever brings it.
        let late = Brought::signed(&lent, &blue.secret(), now_us(), &spec);
        assert_eq!(late.to(&queue).await, Err(Fault::Revoked));
    });
}

async fn opened(regions: &regions::Client, until_ms: u64) -> Result<(), Fault> {
    let mut open = regions.open_request();
    open.get().set_name("text");
    open.get().set_until_ms(until_ms);
    open.send().promise.await.map(drop).map_err(|e| fault_of(&e))
}

/// Or revoking what was weakened for somebody would not end what they have opened by it (C2).
#[test]
fn nothing_is_opened_beyond_a_session_by_what_was_weakened_in_it_nor_for_more_than_a_day() {
    let node = node();
    let red = Holder::load(&node, "red");
    in_this_process(async {
        let restored = red.restore::<regions::Client>(red.chain("regions")).await;
        let (_connection, regions) = restored.expect("red may store");
        let hour_ms = 3_600_000;
        assert_eq!(opened(&regions, now_ms() + hour_ms).await, Ok(()));
        let late = opened(&regions, now_ms() + 25 * hour_ms).await;
        assert!(matches!(late, Err(Fault::Malformed(_))), "{late:?}");
        let own: capability::Client = regions.cast_to();
        let mut weaker = own.attenuate_request();
        weaker.get().set_rights(Rights::LIST.join(Rights::READ).0);
        let weaker = weaker.send().promise.await.expect("red has these rights");
        let weaker = weaker.get().and_then(|answer| answer.get_cap()).expect("a capability");
        let weaker: regions::Client = weaker.cast_to();
        assert_eq!(opened(&weaker, 0).await, Ok(()));
        let beyond = opened(&weaker, now_ms() + hour_ms).await;
        assert!(matches!(beyond, Err(Fault::Malformed(_))), "{beyond:?}");
    });
}
