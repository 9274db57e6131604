//! What `specs/revocation` says of runs that somebody wrote by hand: which no process has to be there for.
#![allow(clippy::unwrap_used)]
#![forbid(unsafe_code)]

mod judge;

use distos_specs::trace::Finding;
use distos_specs::trace::revocation::forged::forged;
use distos_specs::trace::revocation::{NODES, Names, SPEC, elapse, event, events, question, trace};
use distos_specs::value::Value;

use judge::{are_judged, findings};

const BOUNDS: (&str, &str) = (SPEC, NODES);

/// Else runs of nodes would be held to another model than those that are counted tick by tick.
#[test]
fn time_that_goes_by_in_one_step_is_so_many_ticks_of_every_clock() {
    let begun = [
        question("ask", "b", 1),
        question("grant", "b", 1),
        question("ask", "d", 1),
        question("grant", "d", 1),
        question("take", "b", 1),
    ];
    let later = [
        question("ask", "b", 2),
        question("grant", "b", 2),
        event("revoke", &[("x", "a")]),
        event("revoke", &[("x", "c")]),
    ];
    // Each says whether something has come to its end: a lease, a question, what the home counts.
    let asked = [
        event("use", &[("c", "b")]),
        event("idle", &[("c", "b")]),
        question("take", "b", 2),
        question("take", "d", 1),
        event("return", &[("x", "a")]),
        event("return", &[("x", "c")]),
    ];
    let tick = [
        event("home_tick", &[]),
        event("remote_tick", &[("n", "n1")]),
        event("remote_tick", &[("n", "n2")]),
    ];
    let ticks = |k: i64| -> Vec<Value> { (0..k).flat_map(|_| tick.clone()).collect() };
    let mut traces = Vec::new();
    for (first, second) in (0..=5).flat_map(|first| (0..=5).map(move |second| (first, second))) {
        for last in &asked {
            let timed = |time: &dyn Fn(i64) -> Vec<Value>| {
                let last = std::slice::from_ref(last);
                trace(&[&begun[..], &time(first), &later, &time(second), last].concat())
            };
            traces.extend([timed(&ticks), timed(&|k| vec![elapse(k)])]);
        }
    }
    let found = findings((SPEC, "Trace.cfg"), &traces);
    let mut counts = [0, 0];
    for (two, traces) in found.chunks(2).zip(traces.chunks(2)) {
        let is_accepted = |finding: &Finding| *finding == Finding::Accepted;
        assert_eq!(is_accepted(&two[0]), is_accepted(&two[1]), "{two:?}: {:?}", traces[1]);
        for (finding, trace) in two.iter().zip(traces) {
            let last = trace.len();
            let is_last = !matches!(finding, Finding::Refused { event, .. } if *event != last);
            assert!(is_last, "{finding:?}: {trace:?}");
        }
        counts[usize::from(is_accepted(&two[0]))] += 1;
    }
    assert!(counts.iter().all(|count| *count > 20), "refused and accepted: {counts:?}");
}

/// What the nodes of a home and of two holders wrote: milliseconds since the machine was booted, and what they say then.
/// One of the two stands still while a revocation returns.
const HOME: &str = "\
900 started vat=memory
950 started vat=executor
6001 grant vat=memory link=la line=1,2,3,4 slots=1@a,2@a,10@a,11@a
6005 grant vat=memory link=la line=1,2,5,6 slots=1@a,2@a,12@a,13@a
6006 grant vat=memory link=lb line=1,2,3,4 slots=1@a,2@a,20@a,21@a
6500 grant vat=memory link=lnobody line=1,2 slots=1@a,2@a
7668 renewal vat=memory link=la ended=
7671 renewal vat=memory link=lb ended=
8100.5 tell vat=memory link=la ended=3
8101 revoke vat=memory began=8100100000 slots=10@a
8102 hear_ack vat=memory link=la ended=3
8102.1 return vat=memory began=8100100000 left=0
8900.1 given_back vat=memory link=la released=4
8900.2 renewal vat=memory link=la ended=
9301 renewal vat=memory link=lb ended=
9400.1 tell vat=memory link=la ended=2
9400.2 tell vat=memory link=lb ended=2
9400.9 revoke vat=memory began=9399900000 slots=2@a
9401.5 hear_ack vat=memory link=la ended=2
9500 revoke vat=memory began=9499900000 slots=
9501 return vat=memory began=9499900000 left=0
9651 return vat=memory began=9399900000 left=4750
15503 hear_ack vat=memory link=lb ended=2
";
const ONE: &str = "\
6000 ask link=la ask=1
6002 take link=la ask=1 key=4
6003 ask link=la ask=2
6007 take link=la ask=2 key=6
6008 ask link=lown ask=1
6009 grant vat=memory link=lown line=1 slots=7@a
6010 take link=lown ask=1 key=1
6100 use link=la key=4
6101 use link=la key=6
7667 ask_again link=la ask=3
7669 renewed link=la ask=3 ended=
8000 use link=la key=4
8001 use link=la key=6
8101.3 hear link=la ended=3
8101.6 idle link=la key=4
8101.7 release link=la key=4
8900 ask_again link=la ask=4
8901 renewed link=la ask=4 ended=
9300 use link=la key=6
9401 hear link=la ended=2
9401.1 idle link=la key=6
9402 release link=la key=6
";
const OTHER: &str = "\
6004 ask link=lb ask=1
6008 take link=lb ask=1 key=4
6102 use link=lb key=4
7670 ask_again link=lb ask=2
7672 renewed link=lb ask=2 ended=
8002 use link=lb key=4
9299.5 use link=lb key=4
9300 ask_again link=lb ask=3
15500 idle link=lb key=4
15501 renewed link=lb ask=3 ended=
15502 hear link=lb ended=2
15504 release link=lb key=4
";

fn log(said: &str) -> String {
    judge::log(SPEC, said)
}

#[test]
fn a_run_of_nodes_is_a_behaviour_of_the_model_and_what_is_made_of_it_is_not() {
    let (home, one, other) = (log(HOME), log(ONE), log(OTHER));
    let events = events(&home, &[&one, &other]).unwrap();
    let names = Names::of(&events).unwrap();
    let run = names.trace(&events).unwrap();
    let shown = run.events().iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
    assert_eq!(findings(BOUNDS, std::slice::from_ref(&run)), [Finding::Accepted], "{shown}");
    let (wrong, fine) = forged(&names, &events).unwrap();
    are_judged(BOUNDS, &wrong, &fine);
}

/// A millisecond is a tick: what the code counts and what the model counts is the same to the last one.
#[test]
fn a_revocation_that_returns_a_millisecond_before_all_is_over_is_refused() {
    let home = log(&HOME.replace("left=4750", "left=4749"));
    let events = events(&home, &[&log(ONE), &log(OTHER)]).unwrap();
    let run = Names::of(&events).unwrap().trace(&events).unwrap();
    let found = findings(BOUNDS, std::slice::from_ref(&run));
    let text = match &found[..] {
        [Finding::Refused { text, .. }] => text,
        other => panic!("{other:?}"),
    };
    assert!(text.contains("return") && text.contains("2@a"), "{text}");
}
