//! Crashes of the journal, the audit log and the regions at every moment of a recorded run.
//!
//! `DISTOS_CRASH_SEED` and `DISTOS_CRASH_RUNS` say which run is the first and how many there are.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test stops at the first thing that is not as it should be, and says what it did"
)]
#![forbid(unsafe_code)]

use std::time::Instant;

use distos_crash::explore::{Effort, Explorer, Life, Workload};
use distos_crash::workload::{audit::Audit, journal::Journal, memory::Memory};

const PROGRAM: &str = env!("CARGO_BIN_EXE_distos-crash");

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn effort(seed: u64) -> Effort {
    Effort { seed, second_lives: 12, mixtures: 2 }
}

/// Every crash of every run leaves something that the store recovers from and loses nothing.
fn survives<W: Workload>() {
    let first = number("DISTOS_CRASH_SEED", 1);
    for seed in first..first + number("DISTOS_CRASH_RUNS", 1) {
        let started = Instant::now();
        let mut explorer = Explorer::new(PROGRAM).unwrap();
        let life = explorer.first_life::<W>(seed).unwrap();
        let mut failure = explorer.explore::<W>(&life, effort(seed));
        if failure.is_none() {
            failure = explorer.explore_second::<W>(&life, effort(seed), &|_| {}).unwrap();
        }
        println!("{}, seed {seed}: {:?} in {:.1?}", W::NAME, explorer.count, started.elapsed());
        if let Some(failure) = failure {
            let kept = failure.keep().unwrap();
            let kept = kept.display();
            panic!(
                "{} with seed {seed}: {}\n  again: {PROGRAM} check {} {kept}",
                W::NAME,
                failure.why,
                W::NAME
            );
        }
        assert!(explorer.count.states > 500, "too little was tried to say anything");
    }
}

/// The test would notice if any one of the syncs that the store makes were missing.
fn needs_its_syncs<W: Workload>(expected: &[&str]) {
    let explorer = Explorer::new(PROGRAM).unwrap();
    let synced = explorer.first_life::<W>(1).unwrap().synced();
    assert_eq!(synced, expected, "what the store makes durable has changed");
    for path in synced {
        let mut explorer = Explorer::new(PROGRAM).unwrap();
        let mut life = explorer.first_life::<W>(1).unwrap();
        life.without_syncs(&|synced| synced == path);
        let failure = explorer.explore::<W>(&life, effort(1));
        let why = failure.map(|failure| failure.why.lines().next().unwrap_or_default().to_owned());
        println!("{} without syncs of '{path}': {why:?}", W::NAME);
        assert!(why.is_some(), "{}: a missing sync of '{path}' is not noticed", W::NAME);
    }
    // What a killed process left has to be made durable by the next. Which moments it is killed at
    // is chance, so that several runs may be needed.
    let why = (1..=5).find_map(|seed| {
        let mut explorer = Explorer::new(PROGRAM).unwrap();
        let life = explorer.first_life::<W>(seed).unwrap();
        let forget = &|second: &mut Life<W::Ledger>| second.without_syncs_at_start();
        explorer.explore_second::<W>(&life, effort(seed), forget).unwrap()
    });
    println!("{} without syncs at its start: {:?}", W::NAME, why.as_ref().map(|f| &f.why));
    assert!(why.is_some(), "{}: missing syncs at its start are not noticed", W::NAME);
}

#[test]
fn no_crash_loses_an_acknowledged_record_or_revives_a_revoked_capability() {
    survives::<Journal>();
}

#[test]
fn no_crash_loses_or_forges_an_acknowledged_entry_of_the_audit_log() {
    survives::<Audit>();
}

#[test]
fn no_crash_loses_an_acknowledged_write_or_brings_back_a_dropped_regions_key() {
    survives::<Memory>();
}

#[test]
fn a_sync_that_the_journal_forgot_would_be_noticed() {
    needs_its_syncs::<Journal>(&["", "journal", "journal/segment-N", "journal/spare.new"]);
}

#[test]
fn a_sync_that_the_audit_log_forgot_would_be_noticed() {
    needs_its_syncs::<Audit>(&["", "head.new", "key.new", "log-N.seg"]);
}

#[test]
fn a_sync_that_the_regions_forgot_would_be_noticed() {
    needs_its_syncs::<Memory>(&["", "extents.dat", "index.log", "index.log.new", "keys.bin"]);
}
