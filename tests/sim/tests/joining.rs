//! Who belongs to a cluster, in simulated time: `distos_sim::fleet::joining`.

use distos_sim::fleet::joining::{Plan, Report, run};

fn ran(plan: Plan) -> Report {
    run(plan).unwrap_or_else(|violation| panic!("{plan:?}: {violation}"))
}

/// In the time that everybody's test run has: `make sim` runs many more.
#[test]
fn nobody_is_let_in_without_votes_and_all_hear_all_of_them_whatever_goes_wrong() {
    let mut all = Report::default();
    for seed in 0..300 {
        let report = ran(Plan { nodes: 3 + seed as usize % 6, seed, troubles: true });
        all.cast += report.cast;
        all.taken += report.taken;
        all.refused += report.refused;
        all.configurations += report.configurations;
        all.let_in += report.let_in;
        all.crashes += report.crashes;
        all.revoked += report.revoked;
        all.came_home += report.came_home;
    }
    println!("{all:?}");
    // Otherwise nothing was checked.
    assert!(all.cast > 15_000 && all.taken > 50_000 && all.refused > 2_500, "{all:?}");
    assert!(all.configurations > 800 && all.let_in > 100_000 && all.crashes > 1_000, "{all:?}");
    assert!(all.revoked > 1_000 && all.came_home > 500, "{all:?}");
}

#[test]
fn many_join_and_one_is_put_out_within_a_heartbeat_of_the_last_vote() {
    let report = ran(Plan { nodes: 64, seed: 1, troubles: false });
    let (joined, removed) = (report.joined.expect("they join"), report.removed.expect("one goes"));
    println!("joined: {joined}\nremoved: {removed}");
    // Whoever is new asks with its next heartbeat.
    assert!(joined.after_last_us < 6_000_000, "{joined}");
    // The others are told by the voter itself: one message each, and nothing is asked.
    assert!(removed.us < 1_000 && removed.news == 62, "{removed}");
}
