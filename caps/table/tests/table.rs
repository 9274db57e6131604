//! What the capability table and the guards promise to the kernel and to vats.
#![cfg(not(loom))]
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use distos_abi::{Generation, MAX_DEPTH, SlotRef, TenantId};
use distos_table::{
    Ancestry, Barrier, GuardPage, GuardWatch, MAX_CELLS, Seat, Snapshot, Table, TableError, View,
};
use proptest::prelude::*;
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::Errno;

const TENANT: TenantId = TenantId(5);

fn slot(index: u32, counter: u64) -> SlotRef {
    SlotRef { index, generation: Generation(counter) }
}

fn table(capacity: u32) -> (Table, View, OwnedFd) {
    let (table, fd) = Table::create(capacity).unwrap();
    let view = View::map(&fd).unwrap();
    (table, view, fd)
}

fn guards(cells: usize) -> (GuardPage, GuardWatch) {
    let fd = GuardPage::create(cells).unwrap();
    (GuardPage::map(&fd).unwrap(), GuardWatch::map(&fd).unwrap())
}

fn one_seat() -> (Seat, GuardWatch) {
    let (page, watch) = guards(1);
    (page.seat().unwrap(), watch)
}

fn in_force(watch: &GuardWatch) -> Snapshot {
    watch.snapshot(&Barrier::pass().unwrap())
}

#[test]
fn revoking_one_slot_ends_every_descendant_and_nothing_else() {
    let (table, view, _fd) = table(8);
    let (root, child, grandchild, sibling) = (slot(0, 1), slot(7, 2), slot(3, 3), slot(4, 4));
    table.publish(root, None, TENANT);
    table.publish(child, Some(root), TENANT);
    table.publish(grandchild, Some(child), TenantId(6));
    table.publish(sibling, Some(root), TENANT);
    assert!([root, child, grandchild, sibling].iter().all(|s| view.alive(*s)));
    assert_eq!(view.tenant(grandchild), Some(TenantId(6)));

    assert!(table.kill(child));
    assert!(!view.alive(child) && !view.alive(grandchild));
    assert!(view.alive(root) && view.alive(sibling));
    assert!(!table.kill(child), "a capability ends once");
}

#[test]
fn a_slot_that_is_used_again_revives_no_old_reference_and_no_old_child() {
    let (table, view, _fd) = table(4);
    let (old, child, new) = (slot(1, 1), slot(2, 2), slot(1, 3));
    table.publish(old, None, TENANT);
    table.publish(child, Some(old), TENANT);
    table.kill(old);
    table.publish(new, None, TENANT);
    assert!(view.alive(new));
    assert!(!view.alive(old) && !view.alive(child));
    assert!(!table.kill(old), "a late revocation must not end the slot's new capability");
    assert!(view.alive(new));
}

#[test]
fn what_is_known_of_a_capabilitys_ancestors_revives_none_of_them() {
    let (table, view, _fd) = table(4);
    let (root, child, leaf) = (slot(0, 1), slot(1, 2), slot(2, 3));
    assert_eq!(view.ancestry(leaf), None, "nothing is known of what was not made yet");
    table.publish(root, None, TENANT);
    table.publish(child, Some(root), TENANT);
    table.publish(leaf, Some(child), TENANT);
    let known = view.ancestry(leaf).unwrap();
    assert!(view.holds(&known));
    table.kill(child);
    assert!(!view.holds(&known), "an ancestor in between ended");
    table.publish(slot(1, 4), Some(root), TENANT);
    assert!(!view.holds(&known), "another capability in its place is no ancestor");
    assert_eq!(view.ancestry(leaf), None);
}

#[test]
fn references_that_no_kernel_gave_out_are_dead() {
    let (table, view, _fd) = table(4);
    table.publish(slot(1, 1), None, TENANT);
    for forged in [slot(1, 2), slot(1, 0), slot(0, 0), slot(4, 1), slot(u32::MAX, 1), slot(2, 9)] {
        assert!(!view.alive(forged), "{forged}");
        assert_eq!(view.tenant(forged), None, "{forged}");
    }
}

#[test]
fn a_walk_ends_even_in_a_cycle_or_in_too_deep_a_line() {
    let (table, view, _fd) = table(64);
    table.publish(slot(0, 1), Some(slot(1, 2)), TENANT);
    table.publish(slot(1, 2), Some(slot(0, 1)), TENANT);
    assert!(!view.alive(slot(0, 1)));

    table.publish(slot(2, 3), None, TENANT);
    for i in 3..40 {
        table.publish(slot(i, u64::from(i) + 1), Some(slot(i - 1, u64::from(i))), TENANT);
    }
    let deepest = 2 + MAX_DEPTH as u32 - 1;
    assert!(view.alive(slot(deepest, u64::from(deepest) + 1)));
    assert!(!view.alive(slot(deepest + 1, u64::from(deepest) + 2)));
}

#[test]
#[should_panic(expected = "taken")]
fn publishing_over_a_live_capability_is_a_broken_kernel() {
    let (table, _view, _fd) = table(4);
    table.publish(slot(1, 1), None, TENANT);
    table.publish(slot(1, 2), None, TENANT);
}

#[test]
fn a_table_without_slots_or_with_too_many_is_refused() {
    assert!(Table::create(0).is_err());
    assert!(Table::create(u32::MAX).is_err());
}

#[test]
fn a_vat_can_neither_write_nor_resize_nor_empty_the_table_it_was_handed() {
    let (table, view, fd) = table(104);
    table.publish(slot(1, 1), None, TENANT);
    let len = 4096 + 104 * 24;
    assert_eq!(rustix::io::pwrite(&fd, &[1; 8], 4096), Err(Errno::PERM));
    assert_eq!(rustix::io::write(&fd, &[1; 8]), Err(Errno::PERM));
    assert_eq!(rustix::fs::ftruncate(&fd, 0), Err(Errno::PERM));
    assert_eq!(rustix::fs::ftruncate(&fd, 1 << 20), Err(Errno::PERM));
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    assert_eq!(rustix::fs::fallocate(&fd, punch, 0, len as u64), Err(Errno::PERM));
    assert_eq!(rustix::fs::fcntl_add_seals(&fd, SealFlags::WRITE), Err(Errno::PERM));
    // The size is also that of a guard page, so this gets as far as mapping it for writing.
    let written = GuardPage::map(&fd).map(|_| ()).unwrap_err();
    let denied = std::io::ErrorKind::PermissionDenied;
    assert!(matches!(written, TableError::Io(e) if e.kind() == denied));
    assert!(view.alive(slot(1, 1)));
    assert!(table.kill(slot(1, 1)), "the kernel itself still writes");
    assert!(!view.alive(slot(1, 1)));
}

#[test]
fn a_vat_cannot_pull_its_guard_page_from_under_the_kernel() {
    let fd = GuardPage::create(64).unwrap();
    assert_eq!(rustix::fs::ftruncate(&fd, 0), Err(Errno::PERM));
    assert_eq!(rustix::fs::ftruncate(&fd, 1 << 20), Err(Errno::PERM));
    assert_eq!(rustix::fs::fcntl_add_seals(&fd, SealFlags::WRITE), Err(Errno::PERM));
    let watch = GuardWatch::map(&fd).unwrap();
    let seat = GuardPage::map(&fd).unwrap().seat().unwrap();
    let guard = seat.enter();
    let mut seen = in_force(&watch);
    assert!(!watch.quiescent_since(&mut seen));
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&fd, punch, 0, 4096).unwrap();
    assert!(watch.quiescent_since(&mut seen), "a vat that lies betrays its own objects only");
    drop(guard);
    rustix::io::pwrite(&fd, &[0xff; 4096], 0).unwrap();
    assert!(!in_force(&watch).is_empty());
}

/// A memfd with this content and these seals.
fn memfd(content: &[u8], seals: SealFlags) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create("test", flags).unwrap();
    rustix::io::pwrite(&fd, content, 0).unwrap();
    rustix::fs::fcntl_add_seals(&fd, seals).unwrap();
    fd
}

fn table_bytes(magic: &[u8; 8], version: u64, capacity: u64, slots: usize) -> Vec<u8> {
    let mut bytes = [*magic, version.to_ne_bytes(), capacity.to_ne_bytes()].concat();
    bytes.resize(4096 + slots * 24, 0);
    bytes
}

#[test]
fn a_descriptor_that_is_no_table_is_an_error_not_a_crash() {
    let size = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    let all = size | SealFlags::FUTURE_WRITE;
    let good = table_bytes(b"distosCT", 2, 4, 4);
    assert!(View::map(memfd(&good, all)).is_ok());
    assert!(matches!(View::map(memfd(&good, size)), Err(TableError::Unsealed)));
    assert!(matches!(View::map(memfd(&good, SealFlags::empty())), Err(TableError::Unsealed)));
    for bad in [
        Vec::new(),
        vec![0; 100],
        vec![0; 4096],
        vec![0; 8192],
        table_bytes(b"distosXX", 1, 4, 4),
        table_bytes(b"distosCT", 1, 4, 4),
        table_bytes(b"distosCT", 2, 5, 4),
        table_bytes(b"distosCT", 2, u64::MAX, 4),
        good[..good.len() - 1].to_vec(),
    ] {
        let mapped = View::map(memfd(&bad, all));
        assert!(matches!(mapped, Err(TableError::Malformed(_))), "{} bytes", bad.len());
    }
    let null: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    for fd in [null, reader, std::fs::File::open("/proc/self/exe").unwrap().into()] {
        assert!(matches!(View::map(fd.as_fd()), Err(TableError::Unsealed)));
        assert!(matches!(GuardWatch::map(fd.as_fd()), Err(TableError::Unsealed)));
        assert!(matches!(GuardPage::map(fd.as_fd()), Err(TableError::Unsealed)));
    }
    for len in [0, 63, 65, 64 * (MAX_CELLS + 1)] {
        let odd = memfd(&vec![0; len], size);
        assert!(matches!(GuardWatch::map(&odd), Err(TableError::Malformed(_))), "{len} bytes");
        assert!(matches!(GuardPage::map(&odd), Err(TableError::Malformed(_))), "{len} bytes");
    }
    assert!(GuardPage::create(0).is_err() && GuardPage::create(MAX_CELLS + 1).is_err());
}

#[test]
fn revoke_waits_for_the_guards_that_began_before_it_and_for_no_later_one() {
    let (page, watch) = guards(2);
    let (one, other) = (page.seat().unwrap(), page.seat().unwrap());
    assert!(page.seat().is_none() && page.seat().is_none(), "a cell has one owner");
    assert!(in_force(&watch).is_empty());
    let (first, second) = (one.enter(), other.enter());
    let mut seen = in_force(&watch);
    assert!(!watch.quiescent_since(&mut seen));
    drop(first);
    assert!(!watch.quiescent_since(&mut seen));
    let later = one.enter();
    drop(second);
    assert!(watch.quiescent_since(&mut seen), "the guard that took the same cell is a later one");
    drop(later);
    assert!(in_force(&watch).is_empty());
}

#[test]
fn a_guard_within_a_guard_ends_with_the_outer_one() {
    let (seat, watch) = one_seat();
    let outer = seat.enter();
    let mut seen = in_force(&watch);
    let inner = seat.enter();
    drop(outer);
    assert!(!watch.quiescent_since(&mut seen), "whichever of the two ends first");
    drop(inner);
    assert!(watch.quiescent_since(&mut seen));
    let again = seat.enter();
    assert!(!in_force(&watch).is_empty() && watch.quiescent_since(&mut seen));
    drop(again);
}

#[test]
fn a_seat_whose_cell_was_left_held_starts_free() {
    let fd = GuardPage::create(1).unwrap();
    rustix::io::pwrite(&fd, &[0xff; 8], 0).unwrap();
    let watch = GuardWatch::map(&fd).unwrap();
    let seat = GuardPage::map(&fd).unwrap().seat().unwrap();
    let guard = seat.enter();
    let mut seen = in_force(&watch);
    assert!(!seen.is_empty() && !watch.quiescent_since(&mut seen));
    drop(guard);
    assert!(watch.quiescent_since(&mut seen) && in_force(&watch).is_empty());
}

#[test]
fn a_guard_ends_with_its_action_even_if_that_panics() {
    let (table, view, _fd) = table(2);
    let (seat, watch) = one_seat();
    table.publish(slot(0, 1), None, TENANT);
    assert_eq!(seat.commit(&view, slot(0, 1), || !in_force(&watch).is_empty()), Some(true));
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        seat.commit(&view, slot(0, 1), || panic!("action"))
    }));
    assert!(panicked.is_err() && in_force(&watch).is_empty());
    table.kill(slot(0, 1));
    assert_eq!(seat.commit(&view, slot(0, 1), || unreachable!()), None::<()>);
    assert!(in_force(&watch).is_empty());
}

/// The child that users act on in one round, under the root that the revoker ends.
fn child(round: u64) -> SlotRef {
    slot(1, 2 * round + 2)
}

/// Users act on a child as fast as they can while its root is revoked and made anew. If a use
/// took effect after a revocation had returned, the round's count would still grow (C2).
fn race(users: usize, rounds: u64, known: bool) -> u64 {
    let (table, view, _fd) = table(2);
    let (page, watch) = guards(users);
    let uses: Vec<AtomicU64> = (0..rounds).map(|_| AtomicU64::new(0)).collect();
    let (round, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut counts = Vec::new();
    thread::scope(|scope| {
        for _ in 0..users {
            let seat = page.seat().unwrap();
            let (uses, round, done, view) = (&uses, &round, &done, &view);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let now = round.load(Ordering::Relaxed);
                    let count = &uses[now as usize];
                    // Not atomic on purpose: an action is more than one step.
                    let act = || {
                        let before = count.load(Ordering::Relaxed);
                        (0..100).for_each(|_| std::hint::spin_loop());
                        count.store(before + 1, Ordering::Relaxed);
                    };
                    let used = if known {
                        let ancestry = view.ancestry(child(now));
                        ancestry.and_then(|ancestry| seat.commit_below(view, &ancestry, act))
                    } else {
                        seat.commit(view, child(now), act)
                    };
                    if used.is_none() {
                        thread::yield_now();
                    }
                }
            });
        }
        for now in 0..rounds {
            let root = slot(0, 2 * now + 1);
            table.publish(root, None, TENANT);
            table.publish(child(now), Some(root), TENANT);
            round.store(now, Ordering::Relaxed);
            // Most rounds are to end while somebody is acting.
            for _ in 0..1_000 {
                if uses[now as usize].load(Ordering::Relaxed) > now % 4 {
                    break;
                }
                std::hint::spin_loop();
            }
            table.kill(root);
            let mut seen = in_force(&watch);
            while !watch.quiescent_since(&mut seen) {
                thread::yield_now();
            }
            counts.push(uses[now as usize].load(Ordering::Relaxed));
            table.kill(child(now));
        }
        done.store(true, Ordering::Relaxed);
    });
    let end: Vec<u64> = uses.into_iter().map(AtomicU64::into_inner).collect();
    assert_eq!(counts, end, "a use took effect after revoke had returned");
    end.iter().sum()
}

#[test]
fn no_use_takes_effect_after_revoke_returned_c2() {
    let race = |known| race(1, 5_000, known) + race(3, 5_000, known);
    assert!(race(false) > 0, "the test is void if nobody ever used a capability");
    assert!(race(true) > 0, "nor if nobody ever used one whose ancestors were known");
}

#[derive(Clone, Debug)]
enum Op {
    Mint { index: u32, parent: Option<usize> },
    Kill(usize),
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0..12u32, prop::option::weighted(0.8, any::<usize>()))
            .prop_map(|(index, parent)| Op::Mint { index, parent }),
        1 => any::<usize>().prop_map(Op::Kill),
    ]
}

/// Whether the model's forest has a live path from the slot to a root.
fn model_alive(model: &HashMap<SlotRef, Option<SlotRef>>, at: SlotRef) -> bool {
    let walk =
        std::iter::successors(Some(Some(at)), |at| at.and_then(|at| model.get(&at)).copied());
    let path: Vec<SlotRef> = walk.map_while(|at| at).collect();
    path.len() <= MAX_DEPTH && path.iter().all(|slot| model.contains_key(slot))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_table_agrees_with_a_plain_forest(ops in prop::collection::vec(any_op(), 1..80)) {
        let (table, view, _fd) = table(12);
        let mut model: HashMap<SlotRef, Option<SlotRef>> = HashMap::new();
        let mut given: Vec<SlotRef> = Vec::new();
        let mut known: HashMap<SlotRef, Ancestry> = HashMap::new();
        for op in ops {
            match op {
                Op::Mint { index, parent } => {
                    if model.keys().any(|slot| slot.index == index) {
                        continue;
                    }
                    let parent = parent.filter(|_| !given.is_empty()).map(|i| given[i % given.len()]);
                    let minted = slot(index, given.len() as u64 + 1);
                    table.publish(minted, parent, TENANT);
                    model.insert(minted, parent);
                    given.push(minted);
                }
                Op::Kill(i) if !given.is_empty() => {
                    let target = given[i % given.len()];
                    prop_assert_eq!(table.kill(target), model.remove(&target).is_some());
                }
                Op::Kill(_) => {}
            }
            for slot in &given {
                let alive = model_alive(&model, *slot);
                prop_assert_eq!(view.alive(*slot), alive, "{}", slot);
                let ancestry = view.ancestry(*slot);
                prop_assert_eq!(ancestry.is_some(), alive, "{}", slot);
                known.extend(ancestry.map(|ancestry| (*slot, ancestry)));
                let holds = known.get(slot).is_some_and(|ancestry| view.holds(ancestry));
                prop_assert_eq!(holds, alive, "what was known earlier of {}", slot);
            }
        }
    }
}
