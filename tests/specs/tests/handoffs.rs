//! What `specs/handoff` says of runs that somebody wrote by hand: which no process has to be there for.
#![allow(clippy::unwrap_used)]
#![forbid(unsafe_code)]

mod judge;

use distos_specs::trace::Finding;
use distos_specs::trace::handoff::forged::forged;
use distos_specs::trace::handoff::{SPEC, events, giver_has_left, trace};
use distos_specs::value::Value;

use judge::{are_judged, findings};

const BOUNDS: (&str, &str) = (SPEC, "Trace.cfg");

/// What the node of a home wrote, of whom session 7 is the giver's and session 9 the receiver's. A deposit is told when a
/// call has arrived that came later, and a call takes effect when the receiver has changed over.
const HOME: &str = "\
900 session_ends session=2
950 granted session=4 ticket=tother
1010.2 arrived session=7 n=1
1011.2 arrived session=7 n=2
1012 effect session=7 n=1
1013 effect session=7 n=2
1015 arrived session=8 n=1
1015.1 effect session=8 n=1
1022 arrived session=7 n=3
1025 deposited came=1020200000 session=7 ticket=tgift
1026.5 effect session=7 n=3
1036 granted session=9 ticket=tgift
1041.1 arrived session=7 n=4
1050.3 flushed session=7
1050.4 flushed session=9
1054 arrived session=9 n=5
1055 effect session=7 n=4
1056 effect session=9 n=5
1061 arrived session=9 n=6
1062 effect session=9 n=6
1091 arrived session=9 n=7
1201 session_ends session=7
1202 session_ends session=9
";
const GIVER: &str = "\
1000 settle
1010.1 forward n=1
1011.1 forward n=2
1020 deposit
1021 forward n=3
1026 offer ticket=tgift
1041 forward n=4
1050.2 forward_flush
1070 release
";
const RECEIVER: &str = "\
1010 call n=1
1011 call n=2
1020.5 call n=3
1030 stranger ticket=tgift
1035 withdraw ticket=tgift
1040 call n=4
1045 withdrawn ticket=tgift
1052 go_direct
1053 call n=5
1060 call n=6
1080 revoke
1090 call n=7
1200 giver_dies
";

fn log(said: &str) -> String {
    judge::log(SPEC, said)
}

fn run(home: &str) -> Result<Vec<Value>, String> {
    events(&log(home), &[&log(GIVER), &log(RECEIVER)])
}

/// With another line in the place of one.
fn edited(line: &str, with: &str) -> String {
    assert_eq!(HOME.matches(line).count(), 1, "{line}");
    HOME.replace(line, with)
}

/// Where the model refuses what a home wrote.
fn refused(home: &str) -> String {
    match &findings(BOUNDS, &[trace(&run(home).unwrap())])[..] {
        [Finding::Refused { text, .. }] => text.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_handoff_between_processes_is_a_behaviour_of_the_model_and_what_is_made_of_it_is_not() {
    let events = run(HOME).unwrap();
    let shown = events.iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
    assert_eq!(findings(BOUNDS, &[trace(&events)]), [Finding::Accepted], "{shown}");
    let (wrong, fine) = forged(&events).unwrap();
    are_judged(BOUNDS, &wrong, &fine);
}

/// A giver that dies before anybody has withdrawn what it left.
#[test]
fn a_receiver_goes_on_without_its_giver_once_its_calls_were_answered() {
    let giver = "\
1000 settle
1010.1 forward n=1
1020 deposit
1026 offer ticket=tgift
";
    let receiver = "\
1010 call n=1
1030 giver_dies
1040 withdraw ticket=tgift
1042 withdrawn ticket=tgift
1043 call n=2
1050 revoke
1060 call n=3
";
    let home = "\
1010.2 arrived session=7 n=1
1011 effect session=7 n=1
1021 deposited came=1020200000 session=7 ticket=tgift
1031 session_ends session=7
1041 granted session=9 ticket=tgift
1044 arrived session=9 n=2
1045 effect session=9 n=2
1061 arrived session=9 n=3
";
    let events = events(&log(home), &[&log(giver), &log(receiver)]).unwrap();
    assert_eq!(findings(BOUNDS, &[trace(&events)]), [Finding::Accepted]);
    assert!(giver_has_left(&log(home), "tgift"));
    let before = home.lines().take(3).map(|line| format!("{line}\n")).collect::<String>();
    assert!(!giver_has_left(&log(&before), "tgift") && !giver_has_left(&log(home), "tother"));
}

/// Else a home at which calls overtake one another would pass, for all of them arrive in their order.
#[test]
fn calls_that_take_effect_in_another_order_than_they_were_made_are_refused() {
    let late = refused(&edited("1055 effect session=7 n=4", "1056.5 effect session=7 n=4"));
    assert!(late.contains("flushed"), "the direct path was used before: {late}");
    let late = refused(&edited("1056 effect session=9 n=5", "1063 effect session=9 n=5"));
    assert!(late.contains("n |-> 6"), "{late}");
}

/// What a home may not have written: C2, and N3 where a second one takes the same gift.
#[test]
fn a_home_that_does_what_it_was_not_asked_to_is_refused() {
    let revoked = refused(&format!("{HOME}1092 effect session=9 n=7\n"));
    assert!(revoked.contains("took |-> TRUE"), "{revoked}");
    let lost = refused(&edited("1062 effect session=9 n=6\n", ""));
    assert!(lost.contains("took |-> FALSE"), "{lost}");
    let twice = refused(&format!("{HOME}1037 granted session=9 ticket=tgift\n"));
    assert!(twice.contains("granted"), "{twice}");
    for (home, why) in [
        (format!("{HOME}1037 granted session=5 ticket=tgift\n"), "two sessions"),
        (format!("{HOME}1093 effect session=9 n=8\n"), "nobody has seen"),
        (format!("{HOME}1093 effect session=9 n=6\n"), "it took effect before"),
        (HOME.replace("tgift", "tother"), "of 1 gifts 0 were left"),
        (format!("{HOME}1093 vanished session=9\n"), "no event of handoff"),
    ] {
        let told = run(&home).unwrap_err();
        assert!(told.contains(why), "{told}");
    }
}
