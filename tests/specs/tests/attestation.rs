//! What `specs/attestation` says of runs that somebody wrote by hand: which no process has to be there for.
#![allow(clippy::unwrap_used)]
#![forbid(unsafe_code)]

mod judge;

use distos_specs::trace::Trace;
use distos_specs::trace::attestation::{Run, SPEC, runs};

use judge::are_judged;

/// A verifier that is killed and started anew while a node's evidence turns bad, and good again after a reboot. It was bad twice before.
const RUN: &str = "\
0 start bound=60000 grace=20000
2 boot
3 challenge nonce=a1
20 verdict nonce=a1 good=true epoch=2 resets=17
30 begin drain=10000
100 place job=1 task=0 fresh_until=1700000060003
26000 challenge nonce=a2
26300 verdict nonce=a2 good=false epoch=3
26320 fence epoch=3
26330 end job=1 task=0 done=false
26400 start bound=60000 grace=20000
26401 challenge nonce=a3
26700 verdict nonce=a3 good=false epoch=4
26720 fence epoch=4
50000 boot
50100 challenge nonce=a4
50400 verdict nonce=a4 good=true epoch=4 resets=18
";
/// What runs when the TPM has fallen silent is drained: one task ends in time, and one is ended.
const DRAINED: &str = "\
0 start bound=2000 grace=1000
2 boot
3 challenge nonce=a1
20 verdict nonce=a1 good=true epoch=0 resets=17
30 begin drain=10000
100 place job=1 task=0 fresh_until=1700000002003
101 place job=2 task=0 fresh_until=1700000002003
1000 challenge nonce=a2
11000 no_answer
12000 end job=1 task=0 done=true
13100 fence epoch=0
13110 end job=2 task=0 done=false
60000 no_answer
";

/// Milliseconds since the Unix epoch.
const BEGIN: &str = "1700000";

/// What the verifier at `aa` says of itself, or of whom it names.
fn line_of(line: &str) -> String {
    let (ms, said) = line.split_once(' ').unwrap();
    let (kind, fields) = said.split_once(' ').unwrap_or((said, ""));
    let of = match kind {
        _ if fields.contains("node=") || fields.contains("verifier=") => "",
        "start" => "verifier=aa",
        "boot" => "",
        _ => "node=aa",
    };
    format!("x DEBUG distos::trace::attestation: {kind} at={BEGIN}{ms:0>6} {of} {fields}\n")
}

fn log(run: &str) -> String {
    run.lines().map(line_of).collect()
}

fn told(run: &str) -> Trace {
    runs(&[&log(run)]).unwrap()[0].trace()
}

/// Up to and with the line that has this, which is changed to that.
fn changed(this: &str, that: &str) -> Trace {
    let end = RUN.find(this).unwrap() + this.len();
    let end = end + RUN[end..].find('\n').unwrap() + 1;
    told(&RUN[..end].replace(this, that))
}

/// The lines of a run up to the one that begins with this, which is not in it, and then these.
fn then(run: &str, until: &str, more: &str) -> Trace {
    told(&format!("{}{more}", &run[..run.find(until).unwrap()]))
}

/// What was given under one epoch would go on under another: an epoch that does not rise, or goes back, ends nothing.
#[test]
fn an_epoch_rises_with_each_evidence_that_is_bad_and_with_nothing_else() {
    let fine = vec![("it is as it should be", told(RUN))];
    let wrong = vec![
        ("bad evidence begins no epoch", changed("good=false epoch=3", "good=false epoch=2")),
        ("two epochs begin at once", changed("good=false epoch=3", "good=false epoch=4")),
        ("a restart forgets an epoch", changed("good=false epoch=4", "good=false epoch=3")),
        ("good evidence ends an epoch", changed("good=true epoch=4", "good=true epoch=3")),
        ("good evidence begins one", changed("good=true epoch=4", "good=true epoch=5")),
    ];
    are_judged((SPEC, "Trace.cfg"), &wrong, &fine);
}

/// A record that shows that placements stop, and not that work does, would hide that a machine that was taken over works on.
#[test]
fn what_runs_ends_when_evidence_turns_bad_and_nothing_is_placed_behind_the_fence() {
    let place = |ms, job| format!("{ms} place job={job} task=0 fresh_until=1700000060003\n");
    let fine = vec![
        // Nobody can do anything at once.
        ("a task ends by itself a moment later", {
            then(RUN, "26320", "26390 end job=1 task=0 done=true\n32000 no_answer\n")
        }),
        ("the scheduler had read the verdict before", {
            then(
                RUN,
                "26320",
                &format!("{}26330 fence epoch=3\n40000 no_answer\n", place(26_310, 2)),
            )
        }),
        ("the scheduler is killed, and what it ran ends with it", {
            then(RUN, "26320", "26350 begin drain=10000\n40000 no_answer\n")
        }),
        ("after good evidence there is work again", {
            let placed = place(50_500, 9).replace("060003", "110100");
            told(&format!("{RUN}{placed}60000 end job=9 task=0 done=true\n"))
        }),
    ];
    let wrong = vec![
        ("a task goes on", then(RUN, "26320", "31300 no_answer\n")),
        ("a task goes on, and ends well", then(RUN, "26320", "31300 end job=1 task=0 done=true\n")),
        ("a task comes to a good end behind the fence", {
            then(RUN, "26330", "26330 end job=1 task=0 done=true\n")
        }),
        ("work is placed behind the fence", then(RUN, "26330", &place(26_325, 2))),
        ("work is placed when the fence was due", {
            then(RUN, "26320", &format!("26310 end job=1 task=0 done=false\n{}", place(31_300, 2)))
        }),
        ("a fence is for an epoch that has not begun", {
            then(RUN, "26320", "26320 fence epoch=4\n")
        }),
        ("a task is placed twice", then(RUN, "26000", &place(200, 1))),
        ("a task ends well twice", {
            then(RUN, "26000", "200 end job=1 task=0 done=true\n201 end job=1 task=0 done=true\n")
        }),
    ];
    are_judged((SPEC, "Trace.cfg"), &wrong, &fine);
}

/// Whoever keeps a TPM from answering would keep what runs on its machine running.
#[test]
fn what_runs_on_evidence_that_is_not_renewed_ends_with_its_drain() {
    let renewed = "11000 challenge nonce=a3\n11020 verdict nonce=a3 good=true epoch=0 resets=17\n";
    let fine = vec![
        ("it is as it should be", told(DRAINED)),
        ("the drain is called off", {
            then(DRAINED, "11000", &format!("{renewed}22000 end job=2 task=0 done=true\n"))
        }),
    ];
    // Fresh for 2 s, in its grace for one, drained for ten, and five in which that is done.
    let late = "18003 fence epoch=0\n";
    let wrong = vec![
        ("one is ended later than that", then(DRAINED, "13100", late)),
        ("one is not ended", then(DRAINED, "13100", "60000 no_answer\n")),
        ("one comes to a good end behind the drain", {
            then(DRAINED, "13110", "13110 end job=2 task=0 done=true\n")
        }),
    ];
    are_judged((SPEC, "Trace.cfg"), &wrong, &fine);
}

/// What a home signs for a peer, whose machine is booted anew, and fails at last.
const SIGNED: &str = "\
0 start bound=60000 grace=20000
1 boot
5 challenge node=bb nonce=b1
30 verdict node=bb nonce=b1 good=true epoch=4 resets=3
40 join node=bb until=1700000060000
50000 challenge node=bb nonce=b2
50030 verdict node=bb nonce=b2 good=true epoch=4 resets=4
50040 join node=bb until=1700000110000
80000 challenge node=bb nonce=b3
80030 verdict node=bb nonce=b3 good=false epoch=5
80040 raise node=bb epoch=5
90000 no_answer node=bb
";
/// When `bb` has started and booted, as its own log says.
const BOOTS: &str = "\
2 start verifier=bb bound=60000 grace=9
3 boot
40000 boot
";

/// Or whoever finds a node's key on its disk has an SVID by what the boot before it has shown (A2), and one that has failed
/// goes on having what it was given (A3).
#[test]
fn what_is_signed_for_a_peer_rests_on_evidence_of_the_boot_that_asks_and_ends_with_it() {
    let about = |text: &str| -> Trace {
        let ms = |line: &str| line.split_once(' ').unwrap().0.parse::<u64>().unwrap();
        let end = text.lines().last().map(ms).unwrap();
        let boots: String = BOOTS.lines().filter(|line| ms(line) <= end).map(line_of).collect();
        let runs = runs(&[&log(text), &boots]).unwrap();
        runs.iter().find(|run| run.verifier == "aa" && run.node == "bb").unwrap().trace()
    };
    // Up to the line that begins with this, and then this.
    let then = |until: &str, more: &str| {
        about(&format!("{}{more}\n", &SIGNED[..SIGNED.find(until).unwrap()]))
    };
    let signed = |ms: u64, until_ms: u64| format!("{ms} join node=bb until={BEGIN}{until_ms:0>6}");
    let fine = vec![
        ("it is as it should be", about(SIGNED)),
        ("for as long as the evidence is fresh", then("50000", &signed(39_999, 60_005))),
        ("the issuer has not heard of it yet", then("80040", &signed(80_035, 110_000))),
        ("nor for a while", then("80040", &signed(85_029, 110_000))),
    ];
    let wrong = vec![
        ("before anything was shown", then("5 challenge", &signed(4, 60_000))),
        ("before that was appraised", then("30 verdict", &signed(20, 60_000))),
        ("for longer than what it rests on", then("40 join", &signed(40, 60_006))),
        ("after a reboot by what was shown before", then("50000", &signed(41_000, 60_000))),
        ("before the new boot was appraised", then("50030", &signed(50_020, 60_000))),
        ("when it was heard that it has failed", then("90000", &signed(80_041, 110_000))),
        ("long after it has failed, of which nobody heard", {
            then("80040", &signed(85_030, 110_000))
        }),
        ("an epoch is heard of that has not begun", then("80040", "80040 raise node=bb epoch=6")),
        ("one is heard of twice", then("90000", "80041 raise node=bb epoch=5")),
        ("nothing has ended by it", then("80040", "80040 raise node=bb epoch=4")),
    ];
    are_judged((SPEC, "Trace.cfg"), &wrong, &fine);
}

/// Or only what a node says of itself would be held to anything, and what its issuers say of it not.
#[test]
fn each_node_that_a_verifier_judges_is_a_run_of_its_own() {
    let both = "\
0 start bound=60000 grace=20000
1 boot
2 challenge nonce=a1
3 challenge node=bb nonce=b1
8 challenge node=cc nonce=c1
20 verdict nonce=a1 good=true epoch=0 resets=17
30 verdict node=bb nonce=b1 good=true epoch=4 resets=3
40 no_answer node=cc
900 challenge node=bb nonce=b2
950 verdict node=bb nonce=b2 good=false epoch=5
990 challenge node=cc nonce=c2
995 verdict node=cc nonce=c2 good=true epoch=0 resets=8
";
    let all = |text: &str| -> Vec<Run> { runs(&[&log(text)]).unwrap() };
    let about = |text: &str, node: &str| -> Trace {
        all(text).iter().find(|run| run.node == node).unwrap().trace()
    };
    assert_eq!(all(both).len(), 3);
    let fine = vec![
        ("of itself", about(both, "aa")),
        ("of one that has failed", about(both, "bb")),
        ("of one that was silent", about(both, "cc")),
    ];
    let cut = |this: &str, that: &str| {
        let end = both.find(this).unwrap();
        let end = end + both[end..].find('\n').unwrap() + 1;
        both[..end].replace(this, that)
    };
    let wrong = vec![
        ("one node's answer is taken for another's", {
            about(&cut("node=bb nonce=b1 good=true", "node=bb nonce=c1 good=true"), "bb")
        }),
        ("another node's epoch begins no epoch", {
            about(&cut("good=false epoch=5", "good=false epoch=4"), "bb")
        }),
    ];
    are_judged((SPEC, "Trace.cfg"), &wrong, &fine);
}
