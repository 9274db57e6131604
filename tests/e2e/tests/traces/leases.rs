//! What a home and those to whom it lends did at three nodes, of which one stood still while a revocation returned, is a
//! behaviour of their model (`specs/revocation`), and no step of it could be another (C2).

use std::thread::sleep;
use std::time::Duration;

use distos_e2e::cluster::{Desk, LOOPBACK, Member, acquaint, alone_with, endless, keep};
use distos_e2e::images::traced;
use distos_e2e::signal;
use distos_specs::trace::revocation::forged::forged;
use distos_specs::trace::revocation::{NODES, Names, SPEC, events};
use distos_specs::value::Value;
use rustix::process::Signal;

use super::{LONG, accepted_within, refused_within};

/// Exit codes.
const REVOKED: i32 = 11;
const UNAVAILABLE: i32 = 17;
/// So long that a lease is renewed twice: each third of five seconds.
const RENEWED: Duration = Duration::from_secs(4);
/// So long that whatever was lent is over: a term and the skew, and more.
const OVER: Duration = Duration::from_secs(6);

fn member(desk: &Desk) -> Member {
    let (node, ports) = alone_with(3600, |image| traced(image, &["memory", "executor"]));
    Member::of(desk, node, LOOPBACK, ports)
}

/// Jobs at two nodes over what a third keeps, which takes back a region and then all; what all three did.
fn taken_back() -> Vec<Value> {
    let desk = Desk::set_up();
    let (mut home, mut other, mut third) = (member(&desk), member(&desk), member(&desk));
    for (one, other) in [(&home, &other), (&other, &third), (&third, &home)] {
        acquaint(one, other);
    }
    for member in [&home, &other, &third] {
        member.node.tenants(&["red"]);
    }
    for region in ["letters", "more"] {
        keep(&home, region, 1);
    }
    let jobs = [endless(&other, &home, "letters"), endless(&third, &home, "letters")];
    let short = endless(&other, &home, "more");
    sleep(RENEWED);
    // Whoever uses it hears of it, and lives on.
    home.node.ok(&["region", "drop", "more", "--as", "red.cap"]);
    let ended = short.finish(LONG);
    assert_eq!(ended.code, REVOKED, "{}", ended.stderr);
    sleep(RENEWED);
    // One hears of it, and the other stands still until long after it is over.
    let executor = third.node.pid_of("executor/red");
    signal(executor, Signal::STOP);
    let told = home.node.json(&["cap", "revoke", "red.cap", "--entry", "regions"]);
    let left_ms = told[0]["elsewhere_ms"].as_u64().unwrap();
    assert!((1_001..=5_100).contains(&left_ms), "somebody is silent, and for no longer: {told}");
    sleep(OVER);
    signal(executor, Signal::CONT);
    for job in jobs {
        let ended = job.finish(LONG);
        assert!([REVOKED, UNAVAILABLE].contains(&ended.code), "{}: {}", ended.code, ended.stderr);
    }
    for member in [&mut other, &mut third, &mut home] {
        member.node.down();
    }
    let [home, other, third] = [home, other, third].map(|member| member.node.log());
    events(&home, &[&other, &third]).unwrap_or_else(|why| panic!("{why}"))
}

#[test]
fn what_was_lent_between_nodes_and_taken_back_is_a_behaviour_of_its_model_and_forged_traces_are_not()
 {
    let events = taken_back();
    let names = Names::of(&events).unwrap_or_else(|why| panic!("{why}"));
    let trace = names.trace(&events).unwrap_or_else(|why| panic!("{why}"));
    eprintln!("not in it: {:?}", trace.skipped());
    let least = [
        ("ask", 12),
        ("grant", 12),
        ("take", 12),
        ("use", 100),
        ("idle", 3),
        ("revoke", 2),
        ("hear", 2),
        ("hear_ack", 2),
        ("return", 2),
        ("elapse", 100),
    ];
    accepted_within((SPEC, NODES), &trace, &least);
    let (wrong, fine) = forged(&names, &events).unwrap_or_else(|why| panic!("{why}"));
    refused_within((SPEC, NODES), &wrong, &fine);
}
