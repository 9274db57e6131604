use std::collections::HashMap;

use distos_abi::Meter;
use proptest::prelude::*;

use super::*;
use crate::policy::Contact;

const SLOTS: Slots = Slots { tenant: 2, node: 3 };
const POLICY: Policy = Policy { draining: false, contact: Contact::Alone, caps: Limits::CAPS };

fn fresh(until_ms: u64) -> Evidence {
    Evidence { good: true, fresh_until_ms: until_ms, reason: String::new(), failed: false }
}

fn job(tenant: u32, maps: u64, reduce: bool) -> NewJob {
    NewJob {
        output: String::new(),
        tenant: TenantId(tenant),
        name: "count".into(),
        cut: Cut::new(maps * PAGE_BYTES, 1, 2).unwrap(),
        reduce,
        limits: Limits::DEFAULT,
        deployed: false,
    }
}

fn admitted(state: &mut State, spec: NewJob) -> JobId {
    let id = state.admit(0, spec, &fresh(10), &POLICY, |_| Ok(())).unwrap();
    state.ready(id);
    id
}

fn report(output_bytes: u32) -> Result<Report, Fault> {
    Ok(Report { output_bytes, fuel: 1, micros: 1 })
}

/// The tasks that are placed until nothing more can be.
fn place_all(state: &mut State) -> Vec<Placement> {
    std::iter::from_fn(|| {
        let id = state.candidate()?;
        Some(state.place(id, 0, &fresh(10), &POLICY).unwrap())
    })
    .collect()
}

#[test]
fn nothing_is_admitted_without_fresh_evidence_a_rule_and_a_quota() {
    let mut state = State::new(SLOTS);
    let mut admit = |evidence: &Evidence, policy: &Policy, charge: Result<(), Fault>| {
        state.admit(100, job(1, 1, false), evidence, policy, |_| charge).map_err(|f| f.name())
    };
    let full = Fault::OverQuota { meter: Meter::Tasks, limit: 0, wanted: 1 };
    let closed = Policy { draining: true, ..POLICY };
    assert_eq!(admit(&fresh(100), &POLICY, Ok(())), Err("stale-attestation"));
    assert_eq!(admit(&Evidence::none("PCR"), &POLICY, Ok(())), Err("stale-attestation"));
    assert_eq!(admit(&fresh(101), &closed, Ok(())), Err("unavailable"));
    assert_eq!(admit(&fresh(101), &POLICY, Err(full)), Err("over-quota"));
    assert_eq!(admit(&fresh(101), &POLICY, Ok(())), Ok(JobId(1)));
}

#[test]
fn a_job_waits_while_its_node_is_cut_off_and_fails_however_often_others_are_refused_meanwhile() {
    let mut state = State::new(SLOTS);
    let id = admitted(&mut state, job(1, 1, false));
    let cut_off = Policy { contact: Contact::Voters { heard: 1, of: 2 }, ..POLICY };
    let far = fresh(u64::MAX);
    for now_ms in (0..STALE_PATIENCE_MS).step_by(1000) {
        assert!(matches!(state.place(id, now_ms, &far, &cut_off), Err(Refusal::Wait)));
        let refused = state.admit(now_ms, job(2, 1, false), &far, &cut_off, |_| Ok(()));
        assert_eq!(refused.map_err(|fault| fault.name()), Err("unavailable"));
    }
    let ended = state.place(id, STALE_PATIENCE_MS, &far, &cut_off);
    assert!(matches!(ended, Err(Refusal::Fail(Fault::Unavailable { .. }))));
}

#[test]
fn a_job_waits_for_new_evidence_and_fails_when_none_comes() {
    let mut state = State::new(SLOTS);
    let id = admitted(&mut state, job(1, 2, false));
    let stale = fresh(10);
    assert_eq!(state.place(id, 10, &stale, &POLICY), Err(Refusal::Wait));
    assert_eq!(state.place(id, 30_009, &stale, &POLICY), Err(Refusal::Wait));
    // New evidence in between starts the wait anew.
    assert!(state.place(id, 30_009, &fresh(40_000), &POLICY).is_ok());
    assert_eq!(state.place(id, 50_000, &stale, &POLICY), Err(Refusal::Wait));
    assert!(matches!(
        state.place(id, 80_000, &stale, &POLICY),
        Err(Refusal::Fail(Fault::StaleAttestation(_)))
    ));
}

#[test]
fn a_program_that_is_not_loaded_yet_is_not_placed() {
    let mut state = State::new(SLOTS);
    let id = state.admit(0, job(1, 1, false), &fresh(10), &POLICY, |_| Ok(())).unwrap();
    assert_eq!(state.candidate(), None);
    assert_eq!(state.place(id, 0, &fresh(10), &POLICY), Err(Refusal::Wait));
}

#[test]
fn the_reduce_reads_what_the_maps_wrote_and_only_after_all_of_them() {
    let mut state = State::new(SLOTS);
    let id = admitted(&mut state, job(1, 2, true));
    let maps = place_all(&mut state);
    assert_eq!(maps.len(), 2);
    assert_eq!(maps[1].work, Work::Map { input: ByteRange { start: 65_536, end: 131_072 } });
    assert_eq!(state.finish(id, 1, report(20)), 1);
    assert_eq!(state.candidate(), None);
    assert_eq!(state.finish(id, 0, report(10)), 1);
    let reduce = place_all(&mut state);
    let outputs = vec![ByteRange { start: 0, end: 10 }, ByteRange { start: 65_536, end: 65_556 }];
    assert_eq!(reduce[0].work, Work::Reduce { outputs });
    assert_eq!(state.job(id).unwrap().state(), TaskState::Running);
    assert_eq!(state.finish(id, 2, report(5)), 1);
    let ended = state.job(id).unwrap();
    assert_eq!((ended.state(), ended.reduce_index()), (TaskState::Done, 2));
    assert!(state.idle());
}

#[test]
fn the_first_failure_ends_the_job_and_names_its_reason() {
    let mut state = State::new(SLOTS);
    let id = admitted(&mut state, job(1, 5, true));
    place_all(&mut state);
    let fault = Fault::LimitExceeded("fuel".into());
    // Its own quota and that of the four tasks that never began.
    assert_eq!(state.finish(id, 0, Err(fault.clone())), 1 + 4);
    let ended = state.job(id).unwrap();
    assert_eq!((ended.state(), ended.fault()), (TaskState::Failed, Some(&fault)));
    assert_eq!(ended.count(TaskState::Failed), 1);
    assert_eq!(state.candidate(), None);
    // A late success of the other running task changes nothing but the quota.
    assert_eq!(state.finish(id, 1, report(1)), 1);
    assert_eq!(state.job(id).unwrap().count(TaskState::Done), 0);
    assert!(state.idle());
}

#[test]
fn cancelling_gives_the_quota_back() {
    let mut state = State::new(SLOTS);
    let id = admitted(&mut state, job(1, 5, false));
    place_all(&mut state);
    assert_eq!(state.cancel(id), 3);
    assert_eq!(state.cancel(id), 0);
    assert_eq!(state.finish(id, 0, Err(Fault::Revoked)), 1);
    assert_eq!(state.finish(id, 1, report(0)), 1);
    assert_eq!(state.job(id).unwrap().state(), TaskState::Cancelled);
}

#[test]
fn a_tenant_with_one_small_job_does_not_wait_for_another_tenants_large_ones() {
    let mut state = State::new(Slots { tenant: 2, node: 1 });
    let large = admitted(&mut state, job(1, 1000, false));
    let small = admitted(&mut state, job(2, 2, false));
    let mut order = Vec::new();
    for _ in 0..4 {
        let placed = place_all(&mut state).pop().unwrap();
        order.push(placed.job);
        state.finish(placed.job, placed.task, report(0));
    }
    assert_eq!(order, [large, small, large, small]);
}

#[test]
fn a_tenant_cannot_pile_up_jobs_nor_history() {
    let mut state = State::new(SLOTS);
    for _ in 0..MAX_ACTIVE_JOBS {
        admitted(&mut state, job(1, 1, false));
    }
    let more = state.admit(0, job(1, 1, false), &fresh(10), &POLICY, |_| panic!("charged"));
    assert_eq!(more.unwrap_err().name(), "unavailable");
    for _ in 0..MAX_HISTORY + 50 {
        let id = admitted(&mut state, job(2, 1, false));
        state.cancel(id);
    }
    assert_eq!(state.jobs.len(), MAX_HISTORY + MAX_ACTIVE_JOBS);
}

/// What can happen to a scheduler, with small numbers that pick among what is there.
#[derive(Clone, Debug)]
enum Step {
    Submit { tenant: u32, maps: u64, reduce: bool },
    Ready(usize),
    Place { fresh: bool },
    Finish { which: usize, fails: bool },
    Cancel(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1u32..4, 1u64..6, any::<bool>()).prop_map(|(tenant, maps, reduce)| Step::Submit {
            tenant,
            maps,
            reduce
        }),
        any::<usize>().prop_map(Step::Ready),
        any::<bool>().prop_map(|fresh| Step::Place { fresh }),
        any::<bool>().prop_map(|fresh| Step::Place { fresh }),
        (any::<usize>(), prop::bool::weighted(0.2))
            .prop_map(|(which, fails)| Step::Finish { which, fails }),
        any::<usize>().prop_map(Step::Cancel),
    ]
}

const QUOTA: u64 = 8;

/// A scheduler beside the simplest account of what it must keep.
struct World {
    state: State,
    charged: HashMap<TenantId, u64>,
    running: Vec<Placement>,
    ids: Vec<JobId>,
    placed: HashMap<JobId, Vec<u32>>,
}

impl World {
    fn refund(&mut self, id: JobId, freed: u32) {
        let tenant = self.state.job(id).unwrap().tenant();
        let charged = self.charged.entry(tenant).or_default();
        *charged = charged.checked_sub(u64::from(freed)).expect("refunded more than was charged");
    }

    fn pick(&self, which: usize) -> Option<JobId> {
        (!self.ids.is_empty()).then(|| self.ids[which % self.ids.len()])
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Submit { tenant, maps, reduce } => {
                let used = self.charged.entry(TenantId(tenant)).or_default();
                let charge = |n| match *used + n {
                    wanted if wanted > QUOTA => {
                        Err(Fault::OverQuota { meter: Meter::Tasks, limit: QUOTA, wanted })
                    }
                    total => {
                        *used = total;
                        Ok(())
                    }
                };
                let spec = job(tenant, maps, reduce);
                self.ids.extend(self.state.admit(0, spec, &fresh(10), &POLICY, charge));
            }
            Step::Ready(which) => {
                self.pick(which).into_iter().for_each(|id| self.state.ready(id));
            }
            Step::Place { fresh: is_fresh } => self.place(is_fresh),
            Step::Finish { which, fails } if !self.running.is_empty() => {
                let ended = self.running.swap_remove(which % self.running.len());
                let outcome = if fails { Err(Fault::Revoked) } else { report(1) };
                let freed = self.state.finish(ended.job, ended.task, outcome);
                self.refund(ended.job, freed);
            }
            Step::Finish { .. } => {}
            Step::Cancel(which) => {
                if let Some(id) = self.pick(which) {
                    let freed = self.state.cancel(id);
                    self.refund(id, freed);
                }
            }
        }
    }

    fn place(&mut self, is_fresh: bool) {
        let Some(id) = self.state.candidate() else { return };
        let evidence = fresh(if is_fresh { 10 } else { 0 });
        match self.state.place(id, 5, &evidence, &POLICY) {
            Ok(placement) => {
                assert!(is_fresh, "placed on stale evidence");
                let before = self.placed.entry(id).or_default();
                assert!(!before.contains(&placement.task), "placed twice");
                if let Work::Reduce { .. } = placement.work {
                    let job = self.state.job(id).unwrap();
                    assert_eq!(job.count(TaskState::Done), job.reduce_index(), "reduced early");
                }
                before.push(placement.task);
                self.running.push(placement);
            }
            Err(refusal) => assert!(!is_fresh, "{refusal:?}"),
        }
    }

    fn check(&self) {
        assert!(self.running.len() <= SLOTS.node as usize);
        for (tenant, charged) in &self.charged {
            assert!(*charged <= QUOTA);
            let running = self.running.iter().filter(|p| p.tenant == *tenant).count();
            assert!(running <= SLOTS.tenant as usize);
            let waiting: u32 =
                self.state.jobs_of(*tenant).map(|(_, job)| job.count(TaskState::Queued)).sum();
            assert_eq!(*charged, running as u64 + u64::from(waiting), "quota of {tenant}");
        }
    }
}

proptest! {
    #[test]
    fn every_queued_or_running_task_is_paid_for_and_nothing_else_is(
        steps in prop::collection::vec(step(), 1..200)
    ) {
        let mut world = World {
            state: State::new(SLOTS),
            charged: HashMap::new(),
            running: Vec::new(),
            ids: Vec::new(),
            placed: HashMap::new(),
        };
        for step in &steps {
            world.apply(step);
            world.check();
        }
    }

    #[test]
    fn tenants_with_waiting_tasks_take_turns(tenants in 1u32..6, rounds in 1usize..10) {
        let mut state = State::new(Slots { tenant: 2, node: 1 });
        for tenant in 1..=tenants {
            admitted(&mut state, job(tenant, 20, false));
        }
        for _ in 0..rounds {
            let mut served: Vec<u32> = (0..tenants)
                .map(|_| {
                    let placed = place_all(&mut state).pop().unwrap();
                    state.finish(placed.job, placed.task, report(0));
                    placed.tenant.0
                })
                .collect();
            served.sort_unstable();
            prop_assert_eq!(served, (1..=tenants).collect::<Vec<_>>());
        }
    }
}

/// Whoever comes back for a job that a restart has ended finds that one, and no other in its place.
#[test]
fn a_job_of_an_earlier_run_is_told_as_failed_holds_nothing_and_keeps_its_number() {
    let mut state = State::new(SLOTS);
    state.lost(JobId(7), job(1, 3, true), Fault::unavailable(0, "deploy it again"));
    state.begin_at(JobId(5));
    assert_eq!(state.next_id(), JobId(8));
    let lost = state.job(JobId(7)).unwrap();
    assert_eq!((lost.state(), lost.count(TaskState::Cancelled)), (TaskState::Failed, 4));
    assert!(state.idle() && state.candidate().is_none());
    assert_eq!(
        state.fail(JobId(7), Fault::Revoked) + state.cancel(JobId(7)),
        0,
        "nothing was charged"
    );
    let next = admitted(&mut state, job(1, 1, false));
    assert_eq!((next, state.jobs_of(TenantId(1)).count()), (JobId(8), 2));
    for number in 100..100 + MAX_HISTORY as u64 {
        state.lost(JobId(number), job(1, 1, false), Fault::Revoked);
    }
    assert!(state.job(JobId(7)).is_none(), "it is forgotten as others are");
}

/// Or whoever runs many small jobs makes the node forget what another waits for until tomorrow.
#[test]
fn a_tenants_ended_jobs_are_forgotten_for_its_own_and_not_for_anothers() {
    let mut state = State::new(SLOTS);
    let ended = |state: &mut State, tenant| {
        let id = admitted(state, job(tenant, 1, false));
        state.fail(id, Fault::internal("it is over"));
        id
    };
    let reds = ended(&mut state, 1);
    let blues: Vec<JobId> = (0..=MAX_HISTORY).map(|_| ended(&mut state, 2)).collect();
    assert!(state.job(reds).is_some());
    assert!(state.job(blues[0]).is_none() && state.job(blues[1]).is_none());
    assert!(state.job(blues[2]).is_some());
}
