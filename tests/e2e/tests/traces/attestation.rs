//! What a node's verifier and scheduler did, through the loss of the service, of the TPM and of the
//! kernel and on a machine that was tampered with, is a behaviour of their model
//! (`specs/attestation`), and no step of it could be another (A1, A2, A3).

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::time::{SystemTime, UNIX_EPOCH};

use distos_e2e::images::{traced, with_tpm_args};
use distos_e2e::{Node, Output, eventually, kill, signal, wordcount};
use distos_specs::trace::attestation::{Run, SPEC, runs, trace};
use distos_specs::value::Value;
use rustix::process::Signal;

use super::{LONG, accepted, refused};

/// A software TPM of which a register can be extended behind the service's back.
const TPM: &str = env!("CARGO_BIN_EXE_distos-e2e-tpm");
/// So short that evidence runs out while a TPM is silent for ten seconds.
const FRESH_MS: u64 = 4_000;
/// Exit code: there is no good and fresh evidence.
const STALE: i32 = 14;
/// How long the model gives a scheduler to end what runs when evidence turns bad.
const FENCE_MS: i64 = 5_000;

fn count(node: &Node) -> Output {
    let module = wordcount();
    let run = ["run", module.to_str().unwrap(), "--input", "text", "--as", "red.cap"];
    node.cli(&[&run[..], &["--map", "map", "--reduce", "reduce"]].concat())
}

/// Work is placed, sooner or later.
fn counted(node: &Node) {
    eventually("work that is done", LONG, || (count(node).code == 0).then_some(()));
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap()
}

/// A directory that the program's own user can enter. The one with the checkout may be its owner's
/// alone.
fn reachable() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    directory
}

/// All that can happen to a node's evidence; what it did.
fn attested() -> Run {
    let reachable = reachable();
    let program = reachable.path().join("tpm");
    fs::copy(TPM, &program).unwrap();
    let image = with_tpm_args(FRESH_MS, program.to_str().unwrap(), "\"{fd}\"");
    let mut node = Node::boot_with(&traced(&image, &["attestation", "scheduler"]));
    node.tenants(&["red"]);
    fs::write(node.file("text"), "some words\n".repeat(20_000)).unwrap();
    node.ok(&["region", "put", "text", "text", "--as", "red.cap"]);
    for _ in 0..6 {
        counted(&node);
        node.ok(&["attest", "now"]);
    }
    // The service is killed, and with it goes its TPM.
    for _ in 0..2 {
        node.ok(&["attest", "now"]);
        kill(node.pid_of("attestation"));
        counted(&node);
    }
    // The TPM is silent until the evidence has run out.
    let swtpm = node.swtpm_pid().unwrap();
    signal(swtpm, Signal::STOP);
    assert_ne!(node.cli(&["attest", "now"]).code, 0);
    assert_eq!(count(&node).code, STALE);
    signal(swtpm, Signal::CONT);
    counted(&node);
    // A register is extended, which the next quotes show, until the TPM is reset.
    let place = node.directory().join("vats/swtpm");
    fs::write(place.join("extend"), "").unwrap();
    node.cli(&["attest", "now"]);
    eventually("the extended register", LONG, || place.join("extended").exists().then_some(()));
    let tampered = now_ms();
    node.cli(&["attest", "now"]);
    assert_eq!(count(&node).code, STALE);
    kill(node.swtpm_pid().unwrap());
    counted(&node);
    node.crash();
    node.reboot();
    counted(&node);
    node.down();
    let mut runs = runs(&[&node.log()]).unwrap_or_else(|why| panic!("{why}"));
    assert!(runs.len() == 1 && runs[0].is_own(), "it verifies itself alone");
    runs[0].tamper(tampered);
    runs.remove(0)
}

fn kind(event: &Value) -> &str {
    event.at("event").str()
}

fn is_verdict(event: &Value, good: bool) -> bool {
    kind(event) == "verdict" && event.at("good") == &Value::Bool(good)
}

/// No scheduler has given a job this number.
const FORGED: i64 = 1_000_000;

/// A task of a job that nobody has submitted.
fn of_task(kind: &str, at: i64, field: (&str, Value)) -> Value {
    let (job, task) = (Value::from(FORGED), Value::from(0));
    let (event, at) = (Value::text(kind), Value::from(at));
    Value::record([("event", event), ("at", at), ("job", job), ("task", task), field])
}

fn place(at: i64, fresh_until: i64) -> Value {
    of_task("place", at, ("fresh_until", Value::from(fresh_until)))
}

fn end(at: i64, done: bool) -> Value {
    of_task("end", at, ("done", Value::Bool(done)))
}

/// A node says nothing, which is no wrong.
fn no_answer(at: i64) -> Value {
    Value::record([("event", Value::text("no_answer")), ("at", Value::from(at))])
}

fn with(event: &Value, field: &str, value: Value) -> Value {
    let Value::Record(fields) = event else { panic!("{event}") };
    let mut fields = fields.clone();
    fields.insert(field.to_owned(), value);
    Value::Record(fields)
}

/// The first events up to and with the one at `last`, and one more.
fn then(events: &[Value], last: usize, more: Value) -> Vec<Value> {
    [&events[..=last], &[more]].concat()
}

/// The places of these events, in order.
fn all(events: &[Value], found: impl Fn(&Value) -> bool) -> Vec<usize> {
    let places = events.iter().enumerate().filter(|(_, event)| found(event));
    places.map(|(at, _)| at).collect()
}

/// Until when the evidence of the verdict at `at` is fresh, at the latest.
fn fresh_until(events: &[Value], at: usize) -> i64 {
    let nonce = events[at].at("nonce");
    let challenge = |event: &&Value| kind(event) == "challenge" && event.at("nonce") == nonce;
    events[..at].iter().find(challenge).unwrap().at("at").int() + FRESH_MS as i64
}

type Forged = Vec<(&'static str, Vec<Value>)>;

/// What no verifier and no scheduler may have done, the last step of each being the one that is
/// wrong; and what they may have.
fn forged(events: &[Value]) -> (Forged, Forged) {
    let at = |place: usize| events[place].at("at").int();
    let good = all(events, |event| is_verdict(event, true));
    let (first, second) = (good[0], good[1]);
    let until = fresh_until(events, first);
    let challenges = all(events, |event| kind(event) == "challenge");
    let tampered = all(events, |event| kind(event) == "tamper")[0];
    let bad = tampered + all(&events[tampered..], |event| is_verdict(event, false))[0];
    let resets = events[good.iter().rfind(|at| **at < bad).copied().unwrap()].at("resets");
    // A boot so soon after the last evidence that this would still be fresh.
    let boots = all(events, |event| kind(event) == "boot");
    let proven = |boot: &usize| {
        let verdict = good.iter().rfind(|at| **at < *boot)?;
        let until = fresh_until(events, *verdict);
        (at(*boot) + 100 < until).then_some((*boot, until))
    };
    let (boot, old) = boots.iter().find_map(proven).expect("a boot behind fresh evidence");
    let other = *good.iter().find(|at| **at > boot).unwrap();
    let booted = all(events, |event| kind(event) == "boot").into_iter().rfind(|at| *at < other);
    let booted = booted.unwrap();
    // Work that is placed on the last good evidence before that is bad, and what is done until then.
    let last = *good.iter().rfind(|at| **at < bad).unwrap();
    let working = |to: usize| -> Vec<Value> {
        let placed = place(at(last), fresh_until(events, last));
        [&events[..=last], &[placed], &events[last + 1..=to]].concat()
    };
    // The test may see later than a quote that a register was extended.
    let first_bad = last + all(&events[last..], |event| is_verdict(event, false))[0];
    let fenced = first_bad + all(&events[first_bad..], |event| kind(event) == "fence")[0];
    let late = at(first_bad) + FENCE_MS;
    let mut bad_boot = events[..=other].to_vec();
    bad_boot[booted] = with(&bad_boot[booted], "good", Value::Bool(false));
    let forged = vec![
        (
            "work is placed before there is evidence",
            then(events, first - 1, place(at(first), until)),
        ),
        ("work is placed when its evidence has run out", then(events, first, place(until, until))),
        (
            "evidence is said to be fresh for longer than it is",
            then(events, first, place(at(first), until + 1)),
        ),
        (
            "a verdict answers an earlier challenge",
            then(
                events,
                second - 1,
                with(&events[second], "nonce", events[first].at("nonce").clone()),
            ),
        ),
        ("a challenge is answered twice", then(events, first, events[first].clone())),
        (
            "a nonce is drawn twice",
            then(
                events,
                challenges[1] - 1,
                with(&events[challenges[1]], "nonce", events[challenges[0]].at("nonce").clone()),
            ),
        ),
        ("a verdict is good though a register was extended", {
            let answer = with(&events[bad], "good", Value::Bool(true));
            then(events, bad - 1, with(&answer, "resets", resets.clone()))
        }),
        ("a verdict is good though something else was booted", bad_boot),
        ("evidence that was refused begins no epoch", {
            let epoch = Value::from(events[bad].at("epoch").int() - 1);
            then(events, bad - 1, with(&events[bad], "epoch", epoch))
        }),
        (
            "work is placed on evidence that was refused",
            then(events, bad, place(at(bad), at(bad) + FRESH_MS as i64)),
        ),
        (
            "work is placed after a reboot on what was proven before",
            then(events, boot, place(at(boot), old)),
        ),
        (
            "work goes on though evidence was refused",
            [working(first_bad), vec![no_answer(late)]].concat(),
        ),
        (
            "work goes on behind the fence, and comes to a good end",
            [working(fenced), vec![end(at(fenced), true)]].concat(),
        ),
        (
            "what runs is ended for an epoch that has not begun",
            then(events, fenced - 1, {
                let told = events[..fenced].iter().filter(|event| kind(event) == "verdict");
                let next = told.map(|verdict| verdict.at("epoch").int()).max().unwrap() + 1;
                with(&events[fenced], "epoch", Value::from(next))
            }),
        ),
    ];
    let fine = vec![
        ("work is placed at the last moment", then(events, first, place(until - 1, until))),
        ("work is placed right before a reboot", then(events, boot - 1, place(at(boot), old))),
        ("work ends since evidence was refused", {
            [working(first_bad), vec![end(late - 1, false), no_answer(late)]].concat()
        }),
        ("work is ended by the fence, of which whoever waits hears later", {
            [working(fenced), vec![end(at(fenced), false), no_answer(late)]].concat()
        }),
    ];
    (forged, fine)
}

#[test]
fn what_a_verifier_did_through_kills_is_a_behaviour_of_its_model_and_forged_traces_are_not() {
    let run = attested();
    let events = &run.events;
    let least = [
        ("start", 5),
        ("boot", 5),
        ("challenge", 15),
        ("verdict", 13),
        ("no_answer", 1),
        ("begin", 2),
        ("place", 20),
        ("end", 18),
        ("tamper", 1),
        ("fence", 1),
    ];
    accepted(SPEC, &run.trace(), &least);
    for (good, least) in [(true, 10), (false, 1)] {
        let found = all(events, |event| is_verdict(event, good)).len();
        assert!(found >= least, "only {found} verdicts of which good is {good}");
    }

    let traces = |all: Forged| -> Vec<_> {
        all.into_iter().map(|(what, events)| (what, trace(&events))).collect()
    };
    let (forged, fine) = forged(events);
    refused(SPEC, &traces(forged), &traces(fine));
}
