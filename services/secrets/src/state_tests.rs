//! Worlds of secrets, holders and nodes, and what must hold in them.

use super::*;
use crate::barrier::{SEALED_OVERHEAD, WRAPPED_KEY_BYTES};
use crate::shamir::Scheme;
use proptest::prelude::*;

pub(crate) const NOW: u64 = 1_000_000;
pub(crate) const NODE: NodeId = NodeId([9; 32]);
const OTHER_NODE: NodeId = NodeId([8; 32]);
const RED: TenantId = TenantId(1);
const BLUE: TenantId = TenantId(2);
const MINUTE: u64 = 60_000;

fn holder(tenant: TenantId, cap: u64, key: u8) -> Holder {
    Holder { tenant, cap: CapId(cap), key: HolderKey([key; 32]) }
}

fn red() -> Holder {
    holder(RED, 5, 5)
}

fn facts(tenant: TenantId, name: &str) -> Facts {
    Facts {
        name: name.into(),
        tenant,
        kind: SecretKind::Fixed,
        attested: false,
        lease_ms: MINUTE,
        key: [7; WRAPPED_KEY_BYTES],
    }
}

fn version(object: ObjectId, number: u32, previous_until_ms: u64) -> Record {
    let sealed = vec![number as u8; 100];
    Record::Version { object, number, previous_until_ms, leased_until_ms: 0, sealed }
}

fn put(state: &mut State, tenant: TenantId, name: &str) -> ObjectId {
    let object = state.next_object();
    state.apply(Record::Put { object, facts: facts(tenant, name) }).unwrap();
    state.apply(version(object, 1, 0)).unwrap();
    object
}

fn lease(state: &mut State, object: ObjectId, who: Holder, node: Option<NodeId>) -> LeaseId {
    let lease = state.lease(object, 0, (who, node), (0, u64::MAX), NOW).unwrap();
    state.apply(Record::Leased(lease)).unwrap();
    lease.id
}

fn state() -> State {
    State::new(Limits::default())
}

fn holds(state: &State, object: ObjectId, id: LeaseId, who: Holder) -> bool {
    state.check_lease(object, id, &who, NOW).is_ok()
}

/// One of everything, as it may follow one another.
pub(crate) fn life() -> Vec<Record> {
    let object = ObjectId(1);
    let lease = |id, cap: u64, node| {
        let (id, holder) = (LeaseId(id), holder(RED, cap, 5));
        Record::Leased(NewLease { id, object, version: 1, holder, node, until_ms: NOW + MINUTE })
    };
    let (id, scheme) = ([1; 16], Some(Scheme::new(2, 3).unwrap()));
    vec![
        Record::Root(RootFacts { id, scheme, check: [2; SEALED_OVERHEAD] }),
        Record::Put { object, facts: facts(RED, "db") },
        version(object, 1, 0),
        lease(1, 5, Some(NODE)),
        lease(2, 5, None),
        lease(3, 6, Some(OTHER_NODE)),
        lease(4, 7, None),
        version(object, 2, NOW + MINUTE),
        Record::Renewed { id: LeaseId(1), until_ms: NOW + 2 * MINUTE },
        Record::Ended(LeaseId(2)),
        Record::EndedCap(RED, CapId(7)),
        Record::EndedNode(OTHER_NODE),
        Record::AdmittedNode(OTHER_NODE),
        Record::EndedNode(NodeId([7; 32])),
        Record::Time(NOW),
        Record::Put { object: ObjectId(2), facts: facts(BLUE, "db") },
        version(ObjectId(2), 1, 0),
        Record::EndedSecret(ObjectId(2)),
        Record::Dropped(ObjectId(2)),
        Record::Counters { object: 9, lease: 20 },
        Record::Bound(Binding { blob: vec![6; 300], root: [7; WRAPPED_KEY_BYTES] }),
    ]
}

#[test]
fn red_never_hears_of_blues_secrets_of_the_same_name() {
    let mut state = state();
    let blues = put(&mut state, BLUE, "db");
    assert_eq!(state.by_name(RED, "db").unwrap_err().code(), 15);
    assert_eq!(state.list(RED, NOW), []);
    let reds = put(&mut state, RED, "db");
    assert_ne!(reds, blues);
    assert_eq!(state.by_name(RED, "db"), Ok(reds));
    assert_eq!(state.list(RED, NOW).len(), 1);
    assert_eq!(state.check_new(RED, "db", 1).unwrap_err().code(), 19);
}

#[test]
fn a_lease_is_its_holders_alone_and_ends_with_its_time() {
    let mut state = state();
    let (object, other) = (put(&mut state, RED, "db"), put(&mut state, RED, "mail"));
    let id = lease(&mut state, object, red(), None);
    assert!(holds(&state, object, id, red()));
    for (object, who) in [(other, red()), (object, holder(RED, 6, 5)), (object, holder(RED, 5, 6))]
    {
        assert!(!holds(&state, object, id, who), "{who:?}");
        assert_eq!(state.renewal(object, id, &who, (0, u64::MAX), NOW), Err(Fault::Revoked));
    }
    assert!(state.check_lease(object, id, &red(), NOW + MINUTE - 1).is_ok());
    assert_eq!(state.check_lease(object, id, &red(), NOW + MINUTE), Err(Fault::Revoked));
    let renewed = state.renewal(object, id, &red(), (0, u64::MAX), NOW + MINUTE - 1).unwrap();
    assert_eq!(renewed, NOW + 2 * MINUTE - 1);
    state.apply(Record::Renewed { id, until_ms: renewed }).unwrap();
    assert!(state.check_lease(object, id, &red(), NOW + MINUTE).is_ok());
    assert_eq!(state.renewal(object, id, &red(), (u64::MAX, u64::MAX), NOW), Ok(NOW + MINUTE));
    assert_eq!(state.renewal(object, id, &red(), (0, NOW + 5), NOW), Ok(NOW + 5), "evidence ends");
}

#[test]
fn ending_a_nodes_leases_ends_them_and_no_others_and_later_ones_hold() {
    let mut state = state();
    let object = put(&mut state, RED, "db");
    let here: Vec<LeaseId> =
        (0..1000).map(|_| lease(&mut state, object, red(), Some(NODE))).collect();
    let there = lease(&mut state, object, red(), Some(OTHER_NODE));
    let nowhere = lease(&mut state, object, red(), None);
    assert_eq!(state.apply(Record::EndedNode(NODE)), Ok(1001));
    assert!(here.iter().all(|id| !holds(&state, object, *id, red())));
    assert!(holds(&state, object, there, red()));
    assert!(!holds(&state, object, nowhere, red()), "it may be on that node");
    let ask = |state: &State, node| state.lease(object, 0, (red(), node), (0, u64::MAX), NOW);
    assert_eq!(ask(&state, Some(NODE)).unwrap_err().code(), 14, "it comes back and reads again");
    let mut restarted = super::State::new(Limits::default());
    state.snapshot(NOW).for_each(|record| assert!(restarted.apply(record).is_ok()));
    assert_eq!(ask(&restarted, Some(NODE)).unwrap_err().code(), 14, "after a restart");
    assert!(ask(&state, Some(OTHER_NODE)).is_ok() && ask(&state, None).is_ok());
    state.apply(Record::AdmittedNode(NODE)).unwrap();
    let nowhere = lease(&mut state, object, red(), None);
    let after = lease(&mut state, object, red(), Some(NODE));
    assert!(holds(&state, object, after, red()), "it was admitted again");
    // Cleared away a few at a time, whatever is asked in between.
    let mut rounds = 0;
    while state.counts().1 > 3 {
        assert!(state.sweep(64, NOW) <= 64);
        rounds += 1;
        assert!(rounds < 100);
    }
    assert!(rounds >= 1000 / 64);
    for id in [there, nowhere, after] {
        assert!(holds(&state, object, id, red()));
    }
}

#[test]
fn ending_a_secrets_or_a_capabilitys_leases_spares_all_others() {
    let mut state = state();
    let (db, mail) = (put(&mut state, RED, "db"), put(&mut state, RED, "mail"));
    let (other_cap, other_key) = (holder(RED, 6, 5), holder(RED, 5, 6));
    let of = |state: &mut State| {
        [(db, red()), (db, other_cap), (db, other_key), (mail, red())]
            .map(|(object, who)| (object, lease(state, object, who, None), who))
    };
    let all = of(&mut state);
    assert_eq!(state.apply(Record::EndedCap(RED, CapId(5))), Ok(3));
    let held = all.map(|(object, id, who)| holds(&state, object, id, who));
    assert_eq!(held, [false, true, false, false]);
    let all = of(&mut state);
    state.apply(Record::EndedSecret(db)).unwrap();
    let held = all.map(|(object, id, who)| holds(&state, object, id, who));
    assert_eq!(held, [false, false, false, true]);
}

#[test]
fn leases_by_gifts_are_over_when_the_broker_starts_again_and_no_others() {
    let mut state = state();
    let object = put(&mut state, RED, "db");
    let gift = Holder { key: Holder::NO_KEY, ..holder(RED, 9, 0) };
    let (given, own) =
        (lease(&mut state, object, gift, None), lease(&mut state, object, red(), None));
    let blues = put(&mut state, BLUE, "db");
    let kept = lease(&mut state, blues, holder(BLUE, 9, 5), None);
    let mut again = State::new(Limits::default());
    for record in state.snapshot(NOW) {
        again.apply(record).unwrap();
    }
    let ends = again.ends_of_gifts();
    assert_eq!(ends, [Record::EndedCap(RED, CapId(9))]);
    ends.into_iter().for_each(|record| assert_eq!(again.apply(record), Ok(1)));
    assert!(!holds(&again, object, given, gift));
    assert!(holds(&again, object, own, red()) && holds(&again, blues, kept, holder(BLUE, 9, 5)));
}

#[test]
fn after_a_rotation_the_old_version_is_read_until_its_last_lease_ends_and_no_longer_than_was_said()
{
    let mut state = state();
    let object = put(&mut state, RED, "db");
    let id = lease(&mut state, object, red(), None);
    assert_eq!(state.check_version(object, 100, NOW), Ok(2));
    state.apply(version(object, 2, NOW + 10 * MINUTE)).unwrap();
    assert_eq!(state.reading(object, 0, NOW).unwrap().version, 2);
    assert_eq!(state.reading(object, 1, NOW).unwrap().sealed, [1; 100]);
    assert_eq!(state.summary(object, NOW).unwrap().overlapping, 1);
    assert!(state.reading(object, 1, NOW + MINUTE).is_err(), "its last lease is over");
    // While it is renewed it stays, until the overlap is over.
    for n in 1..20 {
        let now = NOW + n * 50_000;
        match state.renewal(object, id, &red(), (0, u64::MAX), now) {
            Ok(until_ms) => {
                assert!(until_ms <= NOW + 10 * MINUTE);
                state.apply(Record::Renewed { id, until_ms }).unwrap();
                assert!(state.reading(object, 1, now).is_ok());
            }
            Err(fault) => {
                assert!(fault == Fault::Revoked && n >= 12, "{n}: {fault}");
            }
        }
    }
    assert_eq!(
        state.reading(object, 1, NOW + 10 * MINUTE).map(|r| r.version).map_err(|f| f.code()),
        Err(15)
    );
    state.retire(object, NOW + 10 * MINUTE);
    assert_eq!(state.used(RED).bytes, 100, "and its bytes are given back");
}

#[test]
fn a_tenant_is_kept_to_its_limits_and_gets_back_what_it_gives_up() {
    let limits = Limits { secrets: 2, bytes: 300, leases: 3, leases_of_holder: 3, versions: 2 };
    let mut state = State::new(limits);
    let object = put(&mut state, RED, "db");
    let fault = state.check_new(RED, "big", 201).unwrap_err();
    assert_eq!(fault, Fault::OverQuota { meter: Meter::Bytes, limit: 300, wanted: 301 });
    let second = put(&mut state, RED, "mail");
    assert_eq!(state.check_new(RED, "third", 1).unwrap_err().code(), 17);
    assert_eq!(state.check_new(BLUE, "third", 1), Ok(()), "blue is not red");
    let leases: Vec<LeaseId> = (0..3).map(|_| lease(&mut state, object, red(), None)).collect();
    let ask = |state: &State| state.lease(object, 0, (red(), None), (0, u64::MAX), NOW);
    assert_eq!(ask(&state).unwrap_err().code(), 17);
    assert_eq!(state.apply(Record::Ended(leases[1])), Ok(1));
    assert_eq!(state.apply(Record::Ended(leases[1])), Ok(0));
    assert!(ask(&state).is_ok());
    state.apply(version(object, 2, NOW + MINUTE)).unwrap();
    assert_eq!(state.check_version(object, 0, NOW).unwrap_err().code(), 17);
    state.apply(Record::Dropped(second)).unwrap();
    assert_eq!(state.check_new(RED, "third", 100), Ok(()));
}

#[test]
fn whoever_was_lent_a_secret_cannot_use_up_its_owners_leases() {
    let mut state = State::new(Limits::default().with_leases(16));
    let (object, borrower) = (put(&mut state, RED, "db"), holder(RED, 6, 6));
    let ask = |state: &State, who| state.lease(object, 0, (who, None), (0, u64::MAX), NOW);
    let ids = [(); 2].map(|()| lease(&mut state, object, borrower, None));
    assert_eq!(ask(&state, borrower).unwrap_err().code(), 17);
    assert!(ask(&state, red()).is_ok());
    state.apply(Record::Ended(ids[0])).unwrap();
    assert!(ask(&state, borrower).is_ok());
}

#[test]
fn once_all_leases_on_a_secret_are_ended_its_older_versions_are_read_no_more() {
    let mut state = state();
    let object = put(&mut state, RED, "db");
    lease(&mut state, object, red(), None);
    state.apply(version(object, 2, NOW + MINUTE)).unwrap();
    assert!(state.reading(object, 1, NOW).is_ok());
    state.apply(Record::EndedSecret(object)).unwrap();
    assert!(state.reading(object, 1, NOW).is_err());
    assert_eq!(state.reading(object, 0, NOW).unwrap().version, 2);
    assert_eq!(state.used(RED).bytes, 100);
}

#[test]
fn a_clock_that_is_set_back_also_over_a_restart_revives_nothing() {
    let mut state = state();
    let mut clock = Clock::new(0);
    let object = put(&mut state, RED, "db");
    let id = lease(&mut state, object, red(), None);
    let now_ms = clock.now_ms(NOW + MINUTE, 5_000);
    assert!(state.check_lease(object, id, &red(), now_ms).is_err());
    assert!(state.check_lease(object, id, &red(), clock.now_ms(NOW, 5_001)).is_err());
    state.apply(Record::Time(now_ms)).unwrap();
    let mut restarted = super::State::new(Limits::default());
    state.snapshot(0).for_each(|record| assert!(restarted.apply(record).is_ok()));
    let now_ms = Clock::new(restarted.floor_ms()).now_ms(NOW, 0);
    assert!(restarted.check_lease(object, id, &red(), now_ms).is_err());
}

#[test]
fn a_dropped_secret_is_gone_with_its_leases_and_its_number_is_never_anothers() {
    let mut state = state();
    let object = put(&mut state, RED, "db");
    let id = lease(&mut state, object, red(), Some(NODE));
    assert_eq!(state.apply(Record::Dropped(object)), Ok(1));
    assert!(!holds(&state, object, id, red()));
    assert!(state.reading(object, 0, NOW).is_err() && state.by_name(RED, "db").is_err());
    let again = put(&mut state, RED, "db");
    assert_ne!(again, object);
    assert!(!holds(&state, again, id, red()));
    state.sweep(10, NOW);
    assert_eq!(state.counts(), (1, 0));
}

#[test]
fn a_lease_takes_as_little_memory_as_is_promised() {
    assert_eq!(size_of::<LeaseId>() + size_of::<Lease>(), 48);
}

#[test]
fn no_account_is_forgotten_before_it_is_removed_whatever_ends_its_lease_and_whenever_the_broker_restarts()
 {
    let mut state = state();
    let object = state.next_object();
    let kind = SecretKind::Account;
    let mut log = vec![
        Record::Put { object, facts: Facts { kind, ..facts(RED, "db") } },
        version(object, 1, 0),
    ];
    log.iter().cloned().for_each(|record| assert!(state.apply(record).is_ok()));
    let mut apply = |state: &mut State, record: Record| {
        log.push(record.clone());
        state.apply(record).unwrap();
    };
    let ids: Vec<LeaseId> = (0..4)
        .map(|_| {
            let lease = state.lease(object, 0, (red(), Some(NODE)), (0, u64::MAX), NOW).unwrap();
            apply(&mut state, Record::Leased(lease));
            lease.id
        })
        .collect();
    apply(&mut state, Record::Ended(ids[0]));
    apply(&mut state, Record::EndedNode(NODE));
    assert_eq!(state.check_drop(object).unwrap_err().code(), 17);
    state.sweep(2, NOW);
    apply(&mut state, Record::Settled { object, id: ids[0] });
    let mut replayed = super::State::new(Limits::default());
    log.into_iter().for_each(|record| assert!(replayed.apply(record).is_ok()));
    let mut compacted = super::State::new(Limits::default());
    state.snapshot(NOW).for_each(|record| assert!(compacted.apply(record).is_ok()));
    for world in [&mut state, &mut replayed, &mut compacted] {
        let _ = (world.sweep(10, NOW), world.sweep(10, NOW));
        assert_eq!(world.owed_of(object).collect::<Vec<_>>(), ids[1..]);
        assert!(world.check_drop(object).is_err());
        for id in &ids[1..] {
            world.apply(Record::Settled { object, id: *id }).unwrap();
        }
        assert_eq!(world.check_drop(object), Ok(()));
    }
}

#[test]
fn an_operator_whose_shares_were_lost_on_the_way_may_make_others_until_a_secret_is_put() {
    let mut state = state();
    let Record::Root(first) = life()[0].clone() else { unreachable!() };
    let second = RootFacts { id: [2; 16], ..first.clone() };
    state.apply(Record::Root(first.clone())).unwrap();
    assert_eq!(state.apply(Record::Root(second.clone())), Ok(0));
    assert_eq!(state.root(), Some(&second));
    let object = put(&mut state, RED, "db");
    state.apply(Record::Dropped(object)).unwrap();
    assert!(state.is_used() && state.apply(Record::Root(first)).is_err());
}

#[test]
fn a_log_that_makes_no_sense_is_told_and_changes_nothing_by_panicking() {
    let object = ObjectId(1);
    for (before, wrong) in [
        (0, version(object, 1, 0)),
        (0, Record::Dropped(object)),
        (0, Record::Bound(Binding { blob: vec![6; 300], root: [7; WRAPPED_KEY_BYTES] })),
        (0, Record::EndedSecret(object)),
        (2, life()[0].clone()),
        (2, life()[1].clone()),
        (3, version(object, 1, 0)),
        (4, life()[3].clone()),
    ] {
        let mut state = state();
        life().into_iter().take(before).for_each(|record| assert!(state.apply(record).is_ok()));
        assert!(state.apply(wrong.clone()).is_err(), "{wrong:?} after {before}");
    }
}

/// What may be asked of a world.
#[derive(Clone, Debug)]
enum Step {
    Put(u32, u8),
    Rotate(u8, u64),
    Lease(u8, u64, u8, u64),
    Renew(u8, u64),
    End(u8),
    EndSecret(u8),
    EndCap(u64),
    EndNode(u8),
    AdmitNode(u8),
    Drop(u8),
    Sweep(usize),
    Wait(u64),
    SetBack(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        1 => (1u32..3, 0u8..3).prop_map(|(tenant, name)| Step::Put(tenant, name)),
        1 => (0u8..6, 0u64..90_000).prop_map(|(object, overlap)| Step::Rotate(object, overlap)),
        6 => (0u8..6, 0u64..3, 0u8..3, 0u64..90_000).prop_map(|(o, c, n, t)| Step::Lease(o, c, n, t)),
        2 => (0u8..40, 0u64..90_000).prop_map(|(lease, ttl)| Step::Renew(lease, ttl)),
        1 => (0u8..40).prop_map(Step::End),
        1 => (0u8..6).prop_map(Step::EndSecret),
        1 => (0u64..3).prop_map(Step::EndCap),
        1 => (0u8..3).prop_map(Step::EndNode),
        1 => (0u8..3).prop_map(Step::AdmitNode),
        1 => (0u8..6).prop_map(Step::Drop),
        2 => (1usize..20).prop_map(Step::Sweep),
        2 => (0u64..60_000).prop_map(Step::Wait),
        1 => (0u64..200_000).prop_map(Step::SetBack),
    ];
    prop::collection::vec(step, 0..80)
}

fn node(n: u8) -> Option<NodeId> {
    (n > 0).then_some(NodeId([n; 32]))
}

/// A lease as somebody would remember it who ends leases one by one.
struct Remembered {
    new: NewLease,
    until_ms: u64,
    ended: bool,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Epochs and lazy clearing against a list of leases, each of which is ended by itself; then a restart from the records,
    /// and one from a snapshot.
    #[test]
    fn no_sequence_of_steps_revives_a_lease_or_ends_one_that_nobody_ended(steps in steps()) {
        let mut state = state();
        let (mut clock, mut wall, mut run) = (Clock::new(NOW), NOW, 0);
        let (mut now, mut log, mut all) = (NOW, Vec::new(), Vec::<Remembered>::new());
        for step in steps {
            let mut apply = |state: &mut State, record: Record| {
                log.push(record.clone());
                state.apply(record).unwrap();
            };
            match step {
                Step::Put(tenant, name) => {
                    let (tenant, name) = (TenantId(tenant), format!("s{name}"));
                    if state.check_new(tenant, &name, 100).is_ok() {
                        let object = state.next_object();
                        apply(&mut state, Record::Put { object, facts: facts(tenant, &name) });
                        apply(&mut state, version(object, 1, 0));
                    }
                }
                Step::Rotate(object, overlap) => {
                    let object = ObjectId(object.into());
                    if let Ok(number) = state.check_version(object, 100, now) {
                        apply(&mut state, version(object, number, now + overlap));
                    }
                }
                Step::Lease(object, cap, n, ttl) => {
                    let object = ObjectId(object.into());
                    let tenant = state.facts(object).map(|facts| facts.tenant).unwrap_or(RED);
                    let who = (holder(tenant, cap, 1), node(n));
                    if let Ok(new) = state.lease(object, 0, who, (ttl, u64::MAX), now) {
                        apply(&mut state, Record::Leased(new));
                        all.push(Remembered { new, until_ms: new.until_ms, ended: false });
                    }
                }
                Step::Renew(at, ttl) => {
                    let Some(lease) = all.get_mut(usize::from(at)) else { continue };
                    let NewLease { object, id, holder, .. } = lease.new;
                    let asked = state.renewal(object, id, &holder, (ttl, u64::MAX), now);
                    prop_assert_eq!(asked.is_ok(), !lease.ended && now < lease.until_ms);
                    if let Ok(until_ms) = asked {
                        apply(&mut state, Record::Renewed { id, until_ms });
                        lease.until_ms = until_ms;
                    }
                }
                Step::End(at) => {
                    let Some(lease) = all.get_mut(usize::from(at)) else { continue };
                    apply(&mut state, Record::Ended(lease.new.id));
                    lease.ended = true;
                }
                Step::EndSecret(object) => {
                    let object = ObjectId(object.into());
                    if state.facts(object).is_ok() {
                        apply(&mut state, Record::EndedSecret(object));
                        let of = |l: &&mut Remembered| l.new.object == object;
                        all.iter_mut().filter(of).for_each(|l| l.ended = true);
                    }
                }
                Step::EndCap(cap) => {
                    apply(&mut state, Record::EndedCap(RED, CapId(cap)));
                    let of = |l: &&mut Remembered| {
                        l.new.holder.tenant == RED && l.new.holder.cap == CapId(cap)
                    };
                    all.iter_mut().filter(of).for_each(|l| l.ended = true);
                }
                Step::EndNode(n) => {
                    let Some(node) = node(n) else { continue };
                    apply(&mut state, Record::EndedNode(node));
                    let of = |l: &&mut Remembered| [Some(node), None].contains(&l.new.node);
                    all.iter_mut().filter(of).for_each(|l| l.ended = true);
                }
                Step::Drop(object) => {
                    let object = ObjectId(object.into());
                    if state.facts(object).is_ok() {
                        apply(&mut state, Record::Dropped(object));
                        let of = |l: &&mut Remembered| l.new.object == object;
                        all.iter_mut().filter(of).for_each(|l| l.ended = true);
                    }
                }
                Step::Sweep(batch) => {
                    state.sweep(batch, now);
                }
                Step::AdmitNode(n) => {
                    let Some(node) = node(n) else { continue };
                    apply(&mut state, Record::AdmittedNode(node));
                }
                Step::Wait(ms) => {
                    wall += ms;
                    run += ms;
                    let before = now;
                    now = clock.now_ms(wall, run);
                    prop_assert!(now >= before + ms);
                }
                Step::SetBack(ms) => {
                    wall = wall.saturating_sub(ms);
                    let before = now;
                    now = clock.now_ms(wall, run);
                    prop_assert_eq!(now, before);
                }
            }
        }
        let mut replayed = super::State::new(Limits::default());
        log.into_iter().for_each(|record| assert!(replayed.apply(record).is_ok()));
        let mut compacted = super::State::new(Limits::default());
        state.snapshot(now).for_each(|record| assert!(compacted.apply(record).is_ok()));
        for (object, number) in (0..8).flat_map(|object| (0..6).map(move |n| (ObjectId(object), n))) {
            let read = |world: &State| world.reading(object, number, now).map(|r| r.version).ok();
            prop_assert_eq!(read(&replayed), read(&state));
            prop_assert_eq!(read(&compacted), read(&state));
        }
        for world in [&mut state, &mut replayed, &mut compacted] {
            for lease in &all {
                let NewLease { object, id, holder, .. } = lease.new;
                let expected = !lease.ended && now < lease.until_ms;
                prop_assert_eq!(world.check_lease(object, id, &holder, now).is_ok(), expected);
            }
            // Once from wherever it was to the end, and once through all.
            let _ = (world.sweep(1000, now), world.sweep(1000, now));
            let live = all.iter().filter(|l| !l.ended && now < l.until_ms).count();
            prop_assert_eq!(world.counts().1, live);
            prop_assert_eq!(world.holders.numbers.len() + world.holders.free.len(), world.holders.entries.len());
            let counted: u64 = world.usage.values().map(|usage| usage.leases).sum();
            prop_assert_eq!(counted, live as u64);
            prop_assert!(world.next_lease > all.iter().map(|l| l.new.id.0).max().unwrap_or(0));
        }
    }

    /// Whoever can write the log can have it say anything that is well formed.
    #[test]
    fn records_in_any_order_are_carried_out_or_refused_and_never_a_panic(
        order in prop::collection::vec(0usize..20, 0..60),
    ) {
        let mut all = life();
        let kind = SecretKind::Account;
        all.push(Record::Put { object: ObjectId(3), facts: Facts { kind, ..facts(RED, "acc") } });
        all.push(Record::Owed { object: ObjectId(3), id: LeaseId(4) });
        all.push(Record::Settled { object: ObjectId(3), id: LeaseId(4) });
        let mut state = state();
        for at in order {
            let _ = state.apply(all[at % all.len()].clone());
            state.sweep(2, NOW + at as u64 * 10_000);
        }
        let mut again = super::State::new(Limits::default());
        for record in state.snapshot(NOW) {
            prop_assert!(again.apply(record).is_ok());
        }
    }
}
