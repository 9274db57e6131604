//! The table and the guards, explored by loom: the orders in which a revocation, slots that are used
//! again and what one or two users do meanwhile may interleave, with every value that a load may
//! then return. What runs is the crate's own source; only the words that it reads and writes are
//! the checker's (`src/modelled.rs`).
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --release --locked -p distos-table --test loom --target-dir target/loom
//! ```
//!
//! Models of two threads are explored without a bound, models of three with at most three
//! preemptions in a schedule ([`BOUND`]; the longest, of a revoked parent, with two); a switch away
//! from a thread that waits or ends is none.
//! `LOOM_MAX_PREEMPTIONS` sets another bound for all. With `-- --nocapture` each model prints how
//! many schedules it took.
//!
//! What this does not show: that `membarrier` and an order to the compiler are together the two fences
//! for which the crate takes them (`src/barrier.rs`; loom explores the fences); that an action ends
//! in time. Loom itself
//! lets a SeqCst fence acquire whatever earlier ones released, which is more than the language
//! promises, and never lets a load return what is stored only later. More threads, deeper lines of
//! ancestors and more cells than here are for the argument in the crate's docs.
#![cfg(loom)]
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use distos_abi::{Generation, SlotRef, TenantId};
use distos_table::{Ancestry, Barrier, GuardPage, GuardWatch, Seat, Snapshot, Table, View};
use loom::cell::UnsafeCell;
use loom::sync::atomic::AtomicBool;
use loom::thread;

/// How many preemptions a schedule may have, unless a model says otherwise.
const BOUND: Option<usize> = Some(3);

const OLD_TENANT: TenantId = TenantId(5);
const NEW_TENANT: TenantId = TenantId(6);

fn slot(index: u32, counter: u64) -> SlotRef {
    SlotRef { index, generation: Generation(counter) }
}

/// Explores a model with at most `preemptions` switches away from a thread that could have gone on
/// (`None`: any number), and prints how many schedules that took.
fn explore(name: &str, preemptions: Option<usize>, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(preemptions);
    let schedules = Arc::new(AtomicUsize::new(0));
    let counted = schedules.clone();
    let start = std::time::Instant::now();
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        model();
    });
    eprintln!("{name}: {} schedules, {:?}", schedules.load(Ordering::Relaxed), start.elapsed());
}

/// How often something was seen over all schedules, so that no test passes because the case that it
/// is about never came up.
#[derive(Clone, Default)]
struct Seen(Arc<AtomicUsize>);

impl Seen {
    fn note(&self, is_so: bool) {
        self.0.fetch_add(usize::from(is_so), Ordering::Relaxed);
    }

    fn times(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// What capabilities are about. Loom ends the test if a use of it and its end are not ordered by what
/// the crate does.
#[derive(Clone)]
struct Object(Rc<UnsafeCell<()>>);

impl Object {
    fn new() -> Object {
        Object(Rc::new(UnsafeCell::new(())))
    }

    /// What a vat does under a guard. Twice, as an action is no single access.
    fn act(&self) {
        self.0.with(|_| ());
        self.0.with(|_| ());
    }

    /// What may be done once `revoke` has returned.
    fn end(&self) {
        self.0.with_mut(|_| ());
    }
}

/// How often the kernel looks whether the guards have ended. It does not wait for them, because two
/// threads that wait can keep each other company for ever, in a schedule that never lets the third
/// go on.
const LOOKS: usize = 2;

/// The kernel's reply to a revocation.
struct Reply {
    had_guards_to_wait_for: bool,
}

/// R1 to R4: what the kernel does before it replies. None if it does not reply, as a guard is still
/// in force when it has looked often enough.
fn revoke(table: &Table, slot: SlotRef, watches: &[&GuardWatch]) -> Option<Reply> {
    table.kill(slot);
    let barrier = Barrier::pass().unwrap();
    let mut snapshots: Vec<_> = watches.iter().map(|watch| watch.snapshot(&barrier)).collect();
    let had_guards_to_wait_for = !snapshots.iter().all(Snapshot::is_empty);
    for _ in 0..LOOKS {
        let mut at_each = watches.iter().zip(&mut snapshots);
        if at_each.all(|(watch, snapshot)| watch.quiescent_since(snapshot)) {
            return Some(Reply { had_guards_to_wait_for });
        }
        thread::yield_now();
    }
    None
}

/// How a vat looks at a capability before it acts.
#[derive(Clone, Copy, PartialEq)]
enum Check {
    Walk,
    Known,
}

fn commit(seat: &Seat, view: &View, check: (Check, SlotRef, &Ancestry), object: &Object) -> bool {
    match check {
        (Check::Walk, slot, _) => seat.commit(view, slot, || object.act()).is_some(),
        (Check::Known, _, known) => seat.commit_below(view, known, || object.act()).is_some(),
    }
}

/// A guard page of as many cells as there are threads of its vat.
fn guards(cells: usize) -> (GuardPage, GuardWatch) {
    let fd = GuardPage::create(cells).unwrap();
    (GuardPage::map(&fd).unwrap(), GuardWatch::map(&fd).unwrap())
}

fn one_seat() -> (Seat, GuardWatch) {
    let (page, watch) = guards(1);
    (page.seat().unwrap(), watch)
}

/// A root (slot 0) with a child (slot 1).
fn family() -> (Table, View, SlotRef, SlotRef) {
    let (table, fd) = Table::create(2).unwrap();
    let view = View::map(&fd).unwrap();
    let (root, child) = (slot(0, 1), slot(1, 2));
    table.publish(root, None, OLD_TENANT);
    table.publish(child, Some(root), OLD_TENANT);
    (table, view, root, child)
}

/// Threads of vats, each of which looks and acts a number of times, while the kernel revokes the root
/// of what they act on.
fn revoke_against(name: &str, preemptions: Option<usize>, threads: &'static [&'static [Check]]) {
    let (acted, refused, waited) = (Seen::default(), Seen::default(), Seen::default());
    let seen = [acted.clone(), refused.clone(), waited.clone()];
    explore(name, preemptions, move || {
        let (table, view, root, child) = family();
        let (page, watch) = guards(threads.len());
        let known = Rc::new(view.ancestry(child).unwrap());
        let object = Object::new();
        let users: Vec<_> = threads
            .iter()
            .map(|checks| {
                let (seat, view, known, object) =
                    (page.seat().unwrap(), view.clone(), known.clone(), object.clone());
                let (acted, refused) = (acted.clone(), refused.clone());
                thread::spawn(move || {
                    for check in *checks {
                        let is_done = commit(&seat, &view, (*check, child, &known), &object);
                        acted.note(is_done);
                        refused.note(!is_done);
                    }
                })
            })
            .collect();
        if let Some(reply) = revoke(&table, root, &[&watch]) {
            waited.note(reply.had_guards_to_wait_for);
            object.end();
        }
        assert!(!view.alive(child) && !view.holds(&known));
        users.into_iter().for_each(|user| user.join().unwrap());
    });
    let [acted, refused, waited] = seen.map(|seen| seen.times());
    assert!(acted > 0 && refused > 0, "{name}: only one outcome was explored");
    assert!(waited > 0, "{name}: no reply had to wait");
}

use Check::{Known, Walk};

#[test]
fn what_a_vat_does_happens_before_the_revocation_returns_or_not_at_all() {
    revoke_against("a user that walks", None, &[&[Walk]]);
    revoke_against("a user that knows the ancestors", None, &[&[Known]]);
}

#[test]
fn a_cell_that_is_used_again_hides_no_guard() {
    revoke_against("a user, twice", None, &[&[Walk, Known]]);
    revoke_against("a user, three times", BOUND, &[&[Known, Known, Walk]]);
}

#[test]
fn a_guard_within_a_guard_ends_with_the_outer_one() {
    let acted = Seen::default();
    let seen = acted.clone();
    explore("a guard within a guard", None, move || {
        let (table, view, root, child) = family();
        let (seat, watch) = one_seat();
        let object = Object::new();
        let acts_on = object.clone();
        let acted = acted.clone();
        let user = thread::spawn(move || {
            let outer = seat.enter();
            acted.note(seat.commit(&view, child, || acts_on.act()).is_some());
            // The inner one has ended, and the cell is held all the same.
            if view.alive(child) {
                acts_on.act();
            }
            drop(outer);
        });
        if revoke(&table, root, &[&watch]).is_some() {
            object.end();
        }
        user.join().unwrap();
    });
    assert!(seen.times() > 0, "nobody acted");
}

#[test]
fn two_threads_of_a_vat_are_watched_like_one() {
    revoke_against("two users", BOUND, &[&[Walk], &[Known]]);
    revoke_against("two users, one of them twice", BOUND, &[&[Known, Walk], &[Known]]);
}

#[test]
fn a_revocation_waits_for_every_vat() {
    explore("two vats", BOUND, || {
        let (table, view, root, child) = family();
        let known = Rc::new(view.ancestry(child).unwrap());
        let ((one, watch_one), (two, watch_two)) = (one_seat(), one_seat());
        let object = Object::new();
        let users = [(one, Walk), (two, Known)].map(|(seat, check)| {
            let (view, known, object) = (view.clone(), known.clone(), object.clone());
            thread::spawn(move || commit(&seat, &view, (check, child, &known), &object))
        });
        if revoke(&table, root, &[&watch_one, &watch_two]).is_some() {
            object.end();
        }
        for user in users {
            user.join().unwrap();
        }
    });
}

/// Slot 2, first a child of slot 0, is used again for a child of slot 1.
struct Reuse {
    table: Table,
    view: View,
    old: SlotRef,
    old_parent: SlotRef,
    new: SlotRef,
    new_parent: SlotRef,
}

impl Reuse {
    fn new() -> Reuse {
        let (table, fd) = Table::create(3).unwrap();
        let view = View::map(&fd).unwrap();
        let (old_parent, new_parent, old, new) = (slot(0, 1), slot(1, 2), slot(2, 3), slot(2, 4));
        table.publish(old_parent, None, OLD_TENANT);
        table.publish(new_parent, None, NEW_TENANT);
        table.publish(old, Some(old_parent), OLD_TENANT);
        Reuse { table, view, old, old_parent, new, new_parent }
    }

    fn publish_again(&self) {
        self.table.publish(self.new, Some(self.new_parent), NEW_TENANT);
    }
}

/// One reader walks with the slot's old generation, one with its new one, while the kernel uses the
/// slot again.
fn read_while_a_slot_is_used_again() {
    let (old_seen, new_seen) = (Seen::default(), Seen::default());
    let seen = (old_seen.clone(), new_seen.clone());
    explore("a slot used again", BOUND, move || {
        let reuse = Reuse::new();
        let (old, new) = (reuse.old, reuse.new);
        let was = reuse.view.ancestry(old);
        let told = Rc::new(AtomicBool::new(false));

        let view = reuse.view.clone();
        let of_old = thread::spawn(move || (view.ancestry(old), view.tenant(old)));
        let (view, hears) = (reuse.view.clone(), told.clone());
        let of_new = thread::spawn(move || {
            let is_told = hears.load(Ordering::Acquire);
            (is_told, view.ancestry(new), view.tenant(new))
        });
        assert!(reuse.table.kill(old));
        reuse.publish_again();
        told.store(true, Ordering::Release);

        let is = reuse.view.ancestry(new);
        let (ancestry, tenant) = of_old.join().unwrap();
        old_seen.note(ancestry.is_some());
        assert!(ancestry.is_none() || ancestry == was, "the old child under another parent");
        assert!(tenant.is_none_or(|t| t == OLD_TENANT), "the old child charged to another tenant");
        let (is_told, ancestry, tenant) = of_new.join().unwrap();
        new_seen.note(ancestry.is_some());
        assert!(ancestry.is_none() || ancestry == is, "the new child under another parent");
        assert!(tenant.is_none_or(|t| t == NEW_TENANT), "the new child charged to another tenant");
        assert!(!is_told || ancestry.is_some() && tenant.is_some(), "not found once announced");
    });
    assert!(seen.0.times() > 0 && seen.1.times() > 0, "one of the two was never alive");
}

#[test]
fn a_reader_finds_a_slots_own_parent_or_none() {
    read_while_a_slot_is_used_again();
}

#[test]
fn a_dead_child_is_not_revived_by_the_parent_of_its_slots_next_use() {
    explore("a dead child's slot used again", BOUND, || {
        let reuse = Reuse::new();
        let old = reuse.old;
        reuse.table.kill(reuse.old_parent);
        let readers = [(); 2].map(|()| {
            let view = reuse.view.clone();
            thread::spawn(move || assert!(!view.alive(old), "alive under another parent"))
        });
        reuse.table.kill(old);
        reuse.publish_again();
        for reader in readers {
            reader.join().unwrap();
        }
    });
}

#[test]
fn a_child_is_dead_once_its_parent_is_and_stays_dead_when_the_parents_slot_is_used_again() {
    let (alive_seen, told_seen) = (Seen::default(), Seen::default());
    let seen = (alive_seen.clone(), told_seen.clone());
    explore("a parent revoked", Some(2), move || {
        let (table, view, root, child) = family();
        let known = Rc::new(view.ancestry(child).unwrap());
        let told = Rc::new(AtomicBool::new(false));
        let readers = [Walk, Known].map(|check| {
            let (view, known, told) = (view.clone(), known.clone(), told.clone());
            let (alive_seen, told_seen) = (alive_seen.clone(), told_seen.clone());
            thread::spawn(move || {
                let look = |check| match check {
                    Walk => view.alive(child),
                    Known => view.holds(&known),
                };
                let is_told = told.load(Ordering::Relaxed);
                // The message alone: it is the fences that order it after the revocation.
                loom::sync::atomic::fence(Ordering::Acquire);
                let first = look(check);
                let again = look(if check == Walk { Known } else { Walk });
                alive_seen.note(first);
                told_seen.note(is_told);
                assert!(!(is_told && first), "alive after its parent's revocation returned");
                assert!(first || !again, "dead, and then alive again");
            })
        });
        table.kill(root);
        told.store(true, Ordering::Release);
        table.publish(slot(0, 3), None, NEW_TENANT);
        for reader in readers {
            reader.join().unwrap();
        }
    });
    assert!(seen.0.times() > 0 && seen.1.times() > 0, "only one outcome was explored");
}

#[test]
fn a_slots_whole_life_keeps_the_users_of_both_its_capabilities_to_their_own_objects() {
    let (old_seen, new_seen) = (Seen::default(), Seen::default());
    let seen = (old_seen.clone(), new_seen.clone());
    explore("a slot's whole life", BOUND, move || {
        let reuse = Reuse::new();
        let (old, new) = (reuse.old, reuse.new);
        let (page, watch) = guards(2);
        let objects = (Object::new(), Object::new());
        let (seat, view, object) = (page.seat().unwrap(), reuse.view.clone(), objects.0.clone());
        let of_old = thread::spawn(move || seat.commit(&view, old, || object.act()).is_some());
        let (seat, view, object) = (page.seat().unwrap(), reuse.view.clone(), objects.1.clone());
        let of_new = thread::spawn(move || seat.commit(&view, new, || object.act()).is_some());
        if revoke(&reuse.table, old, &[&watch]).is_some() {
            objects.0.end();
            // Making the next object writes to it as ending one does: whoever finds the slot
            // alive has to find the object made.
            objects.1.end();
            reuse.publish_again();
        }
        old_seen.note(of_old.join().unwrap());
        new_seen.note(of_new.join().unwrap());
    });
    assert!(seen.0.times() > 0 && seen.1.times() > 0, "one of the two never acted");
}

/// What loom finds when a line of the argument is missing: each of these faults has to end in a
/// counterexample, or the tests above show nothing.
mod faults {
    use distos_table::modelled::leave_out_fence;

    use super::*;

    /// Leaves out the fences of a function of this crate.
    fn without_fence(file: &'static str, function: &str) {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(file);
        let source = std::fs::read_to_string(path).unwrap();
        let head = format!("fn {function}(");
        let (line, _) = source
            .lines()
            .enumerate()
            .skip_while(|(_, line)| !line.contains(&head))
            .find(|(_, line)| line.contains("fence(Ordering::") && !line.contains("compiler_fence"))
            .unwrap_or_else(|| panic!("no fence in {function}"));
        leave_out_fence(file, line as u32 + 1);
    }

    fn one_user() {
        revoke_against("faulty", BOUND, &[&[Walk]]);
    }

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn u2_a_user_does_not_fence() {
        without_fence("barrier.rs", "light");
        one_user();
    }

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn u2_a_user_that_knows_the_ancestors_does_not_fence() {
        without_fence("barrier.rs", "light");
        revoke_against("faulty", BOUND, &[&[Known]]);
    }

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn r2_the_kernel_does_not_fence() {
        without_fence("barrier.rs", "pass");
        one_user();
    }

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn r4_what_a_guards_end_released_is_not_acquired() {
        without_fence("map.rs", "load_acquire");
        one_user();
    }

    #[test]
    #[should_panic(expected = "another")]
    fn a_slot_is_used_again_without_a_fence() {
        without_fence("table.rs", "publish");
        read_while_a_slot_is_used_again();
    }

    #[test]
    #[should_panic(expected = "another")]
    fn a_reader_looks_again_without_a_fence() {
        without_fence("map.rs", "load_acquire");
        read_while_a_slot_is_used_again();
    }

    /// A user and a kernel that do something else than the crate's `commit` and [`revoke`].
    fn faulty_protocol(
        user: fn(&Seat, &View, SlotRef, &Object),
        revoker: fn(&Table, SlotRef, &GuardWatch) -> bool,
    ) {
        explore("faulty", BOUND, move || {
            let (table, view, root, child) = family();
            let (seat, watch) = one_seat();
            let object = Object::new();
            let acts_on = object.clone();
            let user = thread::spawn(move || user(&seat, &view, child, &acts_on));
            if revoker(&table, root, &watch) {
                object.end();
            }
            user.join().unwrap();
        });
    }

    fn sound_user(seat: &Seat, view: &View, slot: SlotRef, object: &Object) {
        seat.commit(view, slot, || object.act());
    }

    fn sound_revoker(table: &Table, slot: SlotRef, watch: &GuardWatch) -> bool {
        revoke(table, slot, &[watch]).is_some()
    }

    #[test]
    fn without_a_fault_none_is_found() {
        faulty_protocol(sound_user, sound_revoker);
    }

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn u1_the_guard_is_taken_after_the_check() {
        let user = |seat: &Seat, view: &View, slot, object: &Object| {
            if view.alive(slot) {
                let _guard = seat.enter();
                object.act();
            }
        };
        faulty_protocol(user, sound_revoker);
    }

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn u5_the_guard_is_let_go_before_the_action() {
        let user = |seat: &Seat, view: &View, slot, object: &Object| {
            if seat.commit(view, slot, || ()).is_some() {
                object.act();
            }
        };
        faulty_protocol(user, sound_revoker);
    }

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn r1_the_guards_are_read_before_the_slot_is_killed() {
        let revoker = |table: &Table, slot, watch: &GuardWatch| {
            let mut snapshot = watch.snapshot(&Barrier::pass().unwrap());
            table.kill(slot);
            watch.quiescent_since(&mut snapshot)
        };
        faulty_protocol(sound_user, revoker);
    }

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn r4_the_reply_does_not_wait() {
        faulty_protocol(sound_user, |table, slot, _| table.kill(slot));
    }

    /// A slot as `View::read` reads it and as `Table::publish` uses it again, but that the second
    /// load of the generation can be left out: the crate's own code has no such switch.
    fn read_slot(looks_again: bool) {
        use loom::sync::atomic::{AtomicU64, fence};
        explore("a copy of a slot", BOUND, move || {
            let words = Rc::new([AtomicU64::new(1), AtomicU64::new(10)]);
            let reader = words.clone();
            let reader = thread::spawn(move || {
                let [generation, parent] = &*reader;
                let load = |word: &AtomicU64| {
                    let value = word.load(Ordering::Relaxed);
                    fence(Ordering::Acquire);
                    value
                };
                if load(generation) == 1 {
                    let parent = load(parent);
                    if !looks_again || load(generation) == 1 {
                        assert_eq!(parent, 10, "the old child under another parent");
                    }
                }
            });
            let [generation, parent] = &*words;
            generation.store(0, Ordering::Release);
            fence(Ordering::Release);
            parent.store(20, Ordering::Relaxed);
            generation.store(2, Ordering::Release);
            reader.join().unwrap();
        });
    }

    #[test]
    fn a_reader_that_looks_at_the_generation_twice_finds_its_own_parent() {
        read_slot(true);
    }

    #[test]
    #[should_panic(expected = "another parent")]
    fn a_reader_looks_at_the_generation_once() {
        read_slot(false);
    }
}
