//! What verifiers know of a fleet's nodes, in simulated time: `distos_sim::fleet::evidence`.

use distos_sim::fleet::evidence::{BOUNDS, Plan, Report, Troubles, run};

const NODES: usize = 1024;

fn ran(nodes: usize, seed: u64, seconds: u64, troubles: Troubles) -> Report {
    let plan = Plan { nodes, seed, seconds, troubles };
    let report = run(plan).unwrap_or_else(|violation| panic!("{plan:?}: {violation}"));
    eprintln!("{nodes} nodes, seed {seed}, {troubles:?}: {report}");
    report
}

/// Work would be taken from nodes that are as they should be, and verifiers would come to a standstill.
#[test]
fn a_fleet_stays_fresh_by_renewals_that_do_not_come_all_at_once() {
    for seed in 0..2 {
        let report = ran(NODES, seed, 300, Troubles::None);
        assert!(report.least_fresh >= 999_000, "{report}");
        // All were switched on in the same second: the second renewals are within an eighth of the bound.
        assert!((report.busiest as f64) < 6.0 * report.mean, "{report}");
        assert_eq!((report.bad, report.unanswered, report.late), (0, 0, 0), "{report}");
    }
}

/// A machine that was tampered with would go on, or one that was not would lose its work.
#[test]
fn what_was_tampered_with_fails_at_every_verifier_and_nothing_else_does_whatever_goes_wrong() {
    for seed in 0..3 {
        let report = ran(NODES, seed, 300, Troubles::Several);
        // A verifier whose clock is put back finds nobody fresh until all were asked again.
        assert!(report.fresh_share() > 0.95, "{report}");
        // Otherwise nothing was checked.
        assert!(report.seen_us.len() > 50 && report.seen_late > 0 && report.bad > 100, "{report}");
        assert!(report.crashes > 5 && report.set > 5 && report.reboots > 30, "{report}");
        assert!(report.late > 100 && report.unanswered > 100 && report.too_old > 0, "{report}");
    }
    // Small ones, in which everything comes together at the same nodes.
    for seed in 0..30 {
        let plan = Plan { nodes: 8, seed, seconds: 20_000, troubles: Troubles::Several };
        run(plan).unwrap_or_else(|violation| panic!("{plan:?}: {violation}"));
    }
}

/// Its nodes would lose their work at once, or keep it by the word of one who is no more.
#[test]
fn what_a_verifier_said_that_is_no_more_counts_until_then_and_the_others_go_on() {
    let report = ran(NODES, 5, 400, Troubles::Death);
    let (fresh_us, stale_us) = report.dead.expect("it died");
    let most_us = BOUNDS.fresh_ms * 1_000;
    assert!(fresh_us <= most_us && stale_us <= most_us + BOUNDS.grace_ms * 1_000, "{report}");
    // Nearly all were renewed before half of it was over.
    assert!(fresh_us > most_us / 2 && report.fresh_share() > 0.998, "{report}");
}
