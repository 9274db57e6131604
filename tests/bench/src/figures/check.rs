//! Checking a capability, beside what a program does that trusts its own process: upgrading a
//! `sync::Weak`, and following pointers.

use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Weak};
use std::time::Duration;

use criterion::Criterion;
use distos_abi::{Generation, SlotRef, TenantId};
use distos_table::{Ancestry, GuardPage, Table, View};

use super::{Failure, Outcome};
use crate::report::Figure;
use crate::sample::{Pairs, Random};

/// How often the sampler goes round.
const ROUNDS: usize = 5;
/// Slots of the cold table: 32 MB, which no cache of a core holds.
const SLOTS: u32 = 1_000_000;
/// Slots on a cold walk, the root included.
const COLD_DEPTH: u32 = 4;
/// Walks timed together: a clock takes longer than a walk.
const WALKS: usize = 500;
/// Pairs of such groups.
const GROUPS: usize = 400;

fn reference(index: u32) -> SlotRef {
    let generation = Generation::new(1, u64::from(index) + 1).unwrap_or(Generation::DEAD);
    SlotRef { index, generation }
}

fn table(slots: u32, parent: impl Fn(u32) -> Option<u32>) -> Result<(Table, View), Failure> {
    let (table, fd) = Table::create(slots)?;
    for index in 0..slots {
        table.publish(reference(index), parent(index).map(reference), TenantId(1));
    }
    let view = View::map(&fd)?;
    Ok((table, view))
}

/// A check with its guard while everything is in the cache, by criterion.
pub(super) fn hot(scratch: &Path) -> Outcome {
    let (_table, view) = table(16, |index| index.checked_sub(1))?;
    let page = GuardPage::create(64)?;
    let guards = GuardPage::map(&page)?.seat().ok_or("a page without a cell")?;
    let shared = Arc::new(7_u64);
    let weak: Weak<u64> = Arc::downgrade(&shared);
    let mut criterion = Criterion::default()
        .without_plots()
        .output_directory(scratch)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    let (mut upgrade, mut four, mut sixteen) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let mut check = |depth: u32| {
            // What a facet keeps of its capability.
            let ancestry = view.ancestry(reference(depth - 1)).ok_or("a dead capability")?;
            let commit = || black_box(guards.commit_below(&view, black_box(&ancestry), || ()));
            let name = format!("check-depth-{depth}-{round}");
            criterion.bench_function(&name, |bencher| bencher.iter(commit));
            estimate(scratch, &name)
        };
        four.push(check(4)?);
        sixteen.push(check(16)?);
        let name = format!("weak-upgrade-{round}");
        criterion.bench_function(&name, |bencher| {
            bencher.iter(|| drop(black_box(black_box(&weak).upgrade())));
        });
        upgrade.push(estimate(scratch, &name)?);
    }
    let peer = middle(&mut upgrade);
    let figure = |depth, ours: &mut Vec<f64>, bound| {
        Figure::of("check", format!("with guard, hot, depth {depth}"), middle(ours), peer)
            .beside("sync::Weak::upgrade and drop")
            .at_most(bound)
    };
    Ok(vec![figure(4, &mut four, 0.75), figure(16, &mut sixteen, 2.0)])
}

/// Criterion's median of the last run, in nanoseconds.
fn estimate(scratch: &Path, name: &str) -> Result<f64, Failure> {
    let bytes = fs::read(scratch.join(name).join("new/estimates.json"))?;
    let estimates: serde_json::Value = serde_json::from_slice(&bytes)?;
    let median = estimates["median"]["point_estimate"].as_f64();
    median.ok_or_else(|| "criterion wrote no median".into())
}

fn middle(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// A node of the pointer chase: as large as a slot, and aligned like one.
#[derive(Clone, Copy)]
#[repr(align(32))]
struct Link {
    next: u32,
}

/// A check of one of a million capabilities that was not used lately.
pub(super) fn cold(_: &Path) -> Outcome {
    let mut random = Random(11);
    let layer = SLOTS / COLD_DEPTH;
    // Slot `i` of one layer hangs below a random one of the layer above it.
    let parents: Vec<u32> = (0..SLOTS)
        .map(|index| match index / layer {
            0 => u32::MAX,
            depth => (depth - 1) * layer + random.below(layer as usize) as u32,
        })
        .collect();
    let (_table, view) =
        table(SLOTS, |index| Some(parents[index as usize]).filter(|p| *p != u32::MAX))?;
    let chase: Vec<Link> = parents.iter().map(|next| Link { next: *next }).collect();
    let lowest = (COLD_DEPTH - 1) * layer;
    // What the facets of a vat keep, as far from one another in memory as the slots are.
    let known: Option<Vec<Ancestry>> =
        (lowest..SLOTS).map(|index| view.ancestry(reference(index))).collect();
    let known = known.ok_or("a dead capability")?;
    let starts: Vec<u32> =
        (0..WALKS * GROUPS).map(|_| random.below(layer as usize) as u32).collect();
    let (mut ours, mut peers) = (starts.chunks(WALKS), starts.chunks(WALKS).rev());
    // A check stands alone between other work. The fence keeps the next walk from starting before
    // this one has ended, in both loops alike.
    let pairs = Pairs::take(
        GROUPS,
        || {
            for start in ours.next().unwrap_or_default() {
                if !view.holds(&known[*start as usize]) {
                    return Err(Failure::from("a live capability was found dead"));
                }
                fence(Ordering::SeqCst);
            }
            Ok(())
        },
        || {
            for start in peers.next().unwrap_or_default() {
                let mut at = lowest + *start;
                while let Some(link) = chase.get(at as usize) {
                    at = link.next;
                }
                black_box(at);
                fence(Ordering::SeqCst);
            }
            Ok(())
        },
    )?;
    let (ours, peer) = pairs.medians();
    let name = format!("cold, random over 1,000,000 slots, depth {COLD_DEPTH}");
    let figure = Figure::of("check", name, ours / WALKS as f64, peer / WALKS as f64)
        .beside("a bare pointer chase of the same length")
        .within(pairs.interval())
        .at_most(1.2);
    Ok(vec![figure])
}
