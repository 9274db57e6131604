//! Whole fleets in simulated time: `distos_sim::fleet`.

use distos_sim::fleet::{Plan, Report, run};

fn ran(plan: Plan) -> Report {
    run(plan).unwrap_or_else(|violation| panic!("{plan:?}: {violation}"))
}

/// In the time that everybody's test run has: `make sim` runs many more.
#[test]
fn no_small_fleet_breaks_a_promise_whatever_goes_wrong() {
    let mut all = Report::default();
    for seed in 0..60 {
        let nodes = 3 + seed as usize % 6;
        let report = ran(Plan { nodes, seed, seconds: 60, troubles: true, shared: false });
        all.uses += report.uses;
        all.gifts += report.gifts;
        all.returned += report.returned;
        all.heard += report.heard;
        all.refused += report.refused;
        all.crashes += report.crashes;
    }
    // Otherwise nothing was checked.
    assert!(all.uses > 20_000 && all.gifts > 100 && all.returned > 300, "{all}");
    assert!(all.heard > 2_000 && all.refused > 1_000 && all.crashes > 100, "{all}");
}

#[test]
fn what_every_node_holds_ends_everywhere_within_the_bound_and_at_once_if_it_is_heard() {
    for (nodes, troubles) in [(64, false), (64, true), (1024, false)] {
        let report = ran(Plan { nodes, seed: 5, seconds: 16, troubles, shared: true });
        println!("{nodes}: {report}");
        let shared = report.shared.expect("it was revoked");
        assert_eq!(shared.ended + shared.crashed, shared.holders);
        assert!(shared.last_us <= 5_100_000 && shared.returned_us <= 5_200_000, "{report}");
        if !troubles {
            // All but the home itself, which holds nothing of its own by a lease from elsewhere.
            assert!(shared.holders >= nodes - 1, "{report}");
            assert!(shared.last_us < 2_000, "{report}");
            assert_eq!(shared.messages, 2 * shared.holders as u64, "one each, and an answer");
        }
    }
}
