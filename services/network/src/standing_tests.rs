use proptest::prelude::*;

use super::*;

const NOW_S: u64 = 1_800_000_000;
const OWN: NodeId = NodeId([1; 32]);
const NODE: NodeId = NodeId([2; 32]);
/// Its network service.
const BOUND: Bound = Bound { key: HolderKey([7; 32]), life: [3; 32] };

fn judgement(standing: Standing, until_s: u64, epoch: u64) -> Judgement {
    let reason = "PCR 11 differs".into();
    Judgement { node: NODE, standing, until_s, epoch, reason, bound: Some(BOUND) }
}

fn required() -> Standings {
    let mut standings = Standings::default();
    standings.require();
    standings
}

fn let_in() -> BTreeSet<NodeId> {
    BTreeSet::from([NODE])
}

/// What may be signed for the network service and for another one, at that time.
fn signs(standings: &Standings, now_s: u64) -> (bool, bool) {
    let signs = |service| standings.last_s(NODE, service, BOUND, now_s).is_ok();
    (signs(SERVICE), signs("memory"))
}

#[test]
fn only_what_is_known_is_demanded() {
    assert_eq!([None, Some("required")].map(is_required), [Ok(false), Ok(true)]);
    let refused = is_required(Some("maybe")).unwrap_err();
    assert!(matches!(&refused, Fault::Malformed(why) if why.contains("evidence")), "{refused}");
}

/// Whoever has stolen a key that the node has changed since is not the node.
#[test]
fn evidence_vouches_for_the_key_to_which_it_is_bound_and_for_no_other() {
    let other = Bound { key: HolderKey([8; 32]), ..BOUND };
    let mut standings = required();
    assert!(!standings.asks_again(NODE, other, NOW_S), "nothing is known yet");
    standings.judge(judgement(Standing::Fresh, NOW_S + 60, 0), NOW_S).unwrap();
    assert_eq!(standings.last_s(NODE, "memory", BOUND, NOW_S), Ok(NOW_S + 59));
    let refused = standings.last_s(NODE, "memory", other, NOW_S).unwrap_err();
    let says = "bound to another key";
    assert!(matches!(&refused, Fault::StaleAttestation(why) if why.contains(says)), "{refused}");
    assert!(standings.last_s(NODE, SERVICE, other, NOW_S).is_err(), "nor stays it the node by it");
    assert!(standings.is_bound_to_another(NODE, other.key, NOW_S));
    assert!(!standings.is_bound_to_another(NODE, BOUND.key, NOW_S));
    let mut asks = |now_s| [BOUND, other].map(|by| standings.asks_again(NODE, by, now_s));
    assert_eq!(asks(NOW_S), [false, true]);
    assert_eq!(asks(NOW_S + 9), [false, false], "whoever comes often has its TPM sign often");
    assert_eq!(asks(NOW_S + 10), [false, true]);
    assert_eq!(asks(NOW_S + 60), [false, false], "it is asked anyway");
    let bound = Judgement { bound: Some(other), ..judgement(Standing::Fresh, NOW_S + 60, 0) };
    standings.judge(bound, NOW_S).unwrap();
    assert!(standings.last_s(NODE, "memory", other, NOW_S).is_ok());
    assert!(standings.last_s(NODE, "memory", BOUND, NOW_S).is_err(), "it has another now");
    standings
        .judge(Judgement { bound: None, ..judgement(Standing::Fresh, NOW_S + 60, 0) }, NOW_S)
        .unwrap();
    assert!(standings.last_s(NODE, "memory", BOUND, NOW_S).is_err(), "nobody says to which");
    assert_eq!(
        standings.last_s(NODE, SERVICE, BOUND, NOW_S),
        Ok(u64::MAX),
        "it is asked over that"
    );
}

/// The key lies on the disk, and whatever is booted next may read it: it answers for itself before it gets anything.
#[test]
fn evidence_vouches_for_the_boot_that_has_given_it_and_not_for_the_next_a2() {
    let next = Bound { life: [4; 32], ..BOUND };
    let mut standings = required();
    standings.judge(judgement(Standing::Fresh, NOW_S + 60, 0), NOW_S).unwrap();
    for service in ["memory", SERVICE] {
        let refused = standings.last_s(NODE, service, next, NOW_S).unwrap_err();
        let says = "from before its network service was started";
        assert!(
            matches!(&refused, Fault::StaleAttestation(why) if why.contains(says)),
            "{refused}"
        );
    }
    assert!(!standings.is_bound_to_another(NODE, next.key, NOW_S), "it may say where it is");
    assert!(standings.asks_again(NODE, next, NOW_S));
    let answered = Judgement { bound: Some(next), ..judgement(Standing::Fresh, NOW_S + 60, 0) };
    standings.judge(answered, NOW_S).unwrap();
    assert!(standings.last_s(NODE, "memory", next, NOW_S).is_ok());
    assert!(standings.last_s(NODE, "memory", BOUND, NOW_S).is_err(), "what was before is over");
}

/// What it was given before must not come back to life with it.
#[test]
fn a_node_that_is_put_out_comes_back_in_another_epoch_that_is_kept() {
    let mut standings = required();
    let epochs = |standings: &Standings| standings.epochs().collect::<Vec<_>>();
    assert_eq!(epochs(&standings), []);
    standings.put_out(NODE);
    assert_eq!(epochs(&standings), [(NODE, 1)]);
    standings.judge(judgement(Standing::Failed, 0, 2), NOW_S).unwrap();
    standings.put_out(NODE);
    assert_eq!(epochs(&standings), [(NODE, 4)], "put out twice, and bad twice");
    let mut back = required();
    for (node, past) in standings.keep() {
        back.restore(node, past);
    }
    back.admitted(NODE);
    assert_eq!(epochs(&back), [(NODE, 4)]);
    // Its verifier counts evidence alone.
    assert_eq!(back.epoch(NODE), 2);
    assert!(back.judge(judgement(Standing::Fresh, NOW_S + 60, 2), NOW_S).is_ok());
    // What was told cannot be taken back.
    let mut before = required();
    before.put_out(NODE);
    before.raise(&back);
    assert_eq!(epochs(&before), [(NODE, 4)]);
    // Where no evidence is demanded, nothing ends by it.
    let mut lax = Standings::default();
    lax.judge(judgement(Standing::Failed, 0, 2), NOW_S).unwrap();
    assert_eq!(epochs(&lax), []);
    lax.put_out(NODE);
    assert_eq!(epochs(&lax), [(NODE, 1)]);
}

/// Or a cluster that has no verifiers yet stands still.
#[test]
fn where_no_evidence_is_demanded_judgements_are_known_and_nothing_follows() {
    let mut standings = Standings::default();
    for standing in [Standing::Fresh, Standing::Stale, Standing::Expired, Standing::Failed] {
        standings.judge(judgement(standing, NOW_S, 1), NOW_S).unwrap();
        standings.judge(Judgement { node: OWN, ..judgement(standing, NOW_S, 1) }, NOW_S).unwrap();
        assert_eq!(standings.last_s(NODE, "memory", BOUND, NOW_S + GRACE_S), Ok(u64::MAX));
        assert_eq!(standings.may_vouch(OWN, NOW_S), Ok(()));
    }
    assert_eq!(standings.of(NODE, NOW_S), Some(Standing::Failed));
}

#[test]
fn a_fresh_node_has_all_services_signed_and_none_of_them_beyond_its_evidence() {
    let mut standings = required();
    standings.judge(judgement(Standing::Fresh, NOW_S + 60, 0), NOW_S).unwrap();
    assert_eq!(
        standings.last_s(NODE, "memory", BOUND, NOW_S),
        Ok(NOW_S + 59),
        "a second is a whole one"
    );
    assert_eq!(standings.last_s(NODE, "attestation", BOUND, NOW_S), Ok(NOW_S + 59));
    assert_eq!(
        standings.last_s(NODE, SERVICE, BOUND, NOW_S),
        Ok(u64::MAX),
        "it is asked over that"
    );
    assert_eq!(signs(&standings, NOW_S + 59), (true, true));
    assert_eq!(signs(&standings, NOW_S + 60), (true, false), "its evidence has run out");
}

#[test]
fn a_stale_node_keeps_the_way_over_which_it_is_asked_and_becomes_fresh_again_by_its_answer() {
    let mut standings = required();
    standings.judge(judgement(Standing::Stale, 0, 0), NOW_S).unwrap();
    assert_eq!(signs(&standings, NOW_S), (true, false));
    let refused = standings.last_s(NODE, "memory", BOUND, NOW_S).unwrap_err();
    assert!(
        matches!(&refused, Fault::StaleAttestation(why) if why.contains("PCR 11 differs")),
        "{refused}"
    );
    standings.judge(judgement(Standing::Fresh, NOW_S + 60, 0), NOW_S + 30).unwrap();
    assert_eq!(signs(&standings, NOW_S + 30), (true, true));
}

#[test]
fn for_who_is_expired_or_has_failed_nothing_is_signed() {
    for standing in [Standing::Expired, Standing::Failed] {
        let mut standings = required();
        // Also if it were said to hold.
        standings.judge(judgement(standing, u64::MAX, 0), NOW_S).unwrap();
        assert_eq!(signs(&standings, NOW_S), (false, false), "{standing}");
    }
}

/// A verifier that is dead, or was told to be silent, must not be as good as one that finds nothing.
#[test]
fn silence_makes_stale_and_a_day_of_it_makes_expired() {
    let mut standings = required();
    standings.judge(judgement(Standing::Fresh, NOW_S + 60, 0), NOW_S).unwrap();
    let of = |standings: &Standings, after_s| standings.of(NODE, NOW_S + after_s).unwrap();
    assert_eq!(of(&standings, 59), Standing::Fresh);
    assert_eq!(of(&standings, 60), Standing::Stale);
    assert_eq!(of(&standings, 60 + GRACE_S - 1), Standing::Stale);
    assert_eq!(of(&standings, 60 + GRACE_S), Standing::Expired);
    assert_eq!(signs(&standings, NOW_S + 60 + GRACE_S), (false, false));
    standings.judge(judgement(Standing::Stale, 0, 0), NOW_S).unwrap();
    assert_eq!(of(&standings, GRACE_S - 1), Standing::Stale);
    assert_eq!(of(&standings, GRACE_S), Standing::Expired);
    // It speaks again.
    standings.judge(judgement(Standing::Stale, 0, 0), NOW_S + GRACE_S).unwrap();
    assert_eq!(of(&standings, GRACE_S), Standing::Stale);
}

#[test]
fn a_node_that_nobody_has_judged_yet_may_be_asked_for_a_day_and_has_nothing_else() {
    let mut standings = required();
    assert_eq!(signs(&standings, NOW_S), (true, false), "it was let in this moment");
    assert_eq!(standings.review(OWN, &let_in(), NOW_S).len(), 1, "and this was told");
    assert_eq!(standings.of(NODE, NOW_S), None);
    assert_eq!(signs(&standings, NOW_S + GRACE_S - 1), (true, false));
    assert_eq!(signs(&standings, NOW_S + GRACE_S), (false, false));
    // It goes, and comes back.
    standings.review(OWN, &BTreeSet::new(), NOW_S + GRACE_S);
    standings.review(OWN, &let_in(), NOW_S + GRACE_S);
    assert_eq!(signs(&standings, NOW_S + GRACE_S), (true, false));
}

#[test]
fn a_node_whose_own_evidence_is_bad_signs_for_nobody() {
    let mut standings = required();
    assert_eq!(standings.may_vouch(OWN, NOW_S), Ok(()), "nothing is known");
    for (standing, vouches) in [
        (Standing::Fresh, true),
        (Standing::Stale, true),
        (Standing::Expired, false),
        (Standing::Failed, false),
        (Standing::Fresh, true),
    ] {
        standings.judge(Judgement { node: OWN, ..judgement(standing, NOW_S, 3) }, NOW_S).unwrap();
        assert_eq!(standings.may_vouch(OWN, NOW_S).is_ok(), vouches, "{standing}");
    }
}

/// Or somebody who has kept an old judgement brings a node back that has failed since.
#[test]
fn an_epoch_never_goes_back_whatever_was_said_meanwhile() {
    let mut standings = required();
    assert_eq!(standings.judge(judgement(Standing::Failed, 0, 7), NOW_S), Ok(true));
    let old = standings.judge(judgement(Standing::Fresh, NOW_S + 60, 6), NOW_S).unwrap_err();
    assert!(matches!(old, Fault::Malformed(_)), "{old}");
    assert_eq!(standings.of(NODE, NOW_S), Some(Standing::Failed));
    // What is bad counts, also if whoever says it has lost count.
    assert!(standings.judge(judgement(Standing::Expired, 0, 0), NOW_S).is_ok());
    assert!(standings.judge(judgement(Standing::Failed, 0, 0), NOW_S).is_ok());
    assert_eq!(standings.epoch(NODE), 7);
    // Not by being let in again, nor by a restart, nor while it is away.
    standings.admitted(NODE);
    let mut back = required();
    standings.keep().for_each(|(node, past)| back.restore(node, past));
    back.review(OWN, &BTreeSet::new(), NOW_S);
    for standings in [&mut standings, &mut back] {
        assert!(standings.judge(judgement(Standing::Fresh, NOW_S + 60, 6), NOW_S).is_err());
        assert!(standings.judge(judgement(Standing::Fresh, NOW_S + 60, 7), NOW_S).is_ok());
    }
}

#[test]
fn what_was_said_against_a_node_is_known_after_a_restart_until_its_operator_lets_it_in() {
    let mut standings = required();
    standings.judge(judgement(Standing::Failed, 0, 1), NOW_S).unwrap();
    let mut back = required();
    standings.keep().for_each(|(node, past)| back.restore(node, past));
    back.review(OWN, &BTreeSet::new(), NOW_S);
    assert_eq!(back.of(NODE, NOW_S), Some(Standing::Failed));
    let refused = back.last_s(NODE, SERVICE, BOUND, NOW_S).unwrap_err();
    assert!(refused.to_string().contains("PCR 11 differs"), "{refused}");
    back.admitted(NODE);
    assert_eq!((back.of(NODE, NOW_S), signs(&back, NOW_S)), (None, (true, false)));
    // Whoever was fresh is judged anew.
    let mut standings = required();
    standings.judge(judgement(Standing::Fresh, NOW_S + 60, 1), NOW_S).unwrap();
    let mut back = required();
    standings.keep().for_each(|(node, past)| back.restore(node, past));
    assert_eq!(signs(&back, NOW_S), (true, false));
    // And naming one who is fresh takes nothing from it.
    standings.admitted(NODE);
    assert_eq!(signs(&standings, NOW_S), (true, true));
}

#[test]
fn auditors_hear_once_of_each_change_also_of_those_that_time_makes() {
    let mut standings = required();
    let told = |standings: &mut Standings, after_s: u64| -> Vec<Standing> {
        let changes = standings.review(OWN, &let_in(), NOW_S + after_s);
        changes.iter().map(|change| change.standing).collect()
    };
    assert_eq!(told(&mut standings, 0), [Standing::Stale], "nobody has judged it");
    standings.judge(judgement(Standing::Fresh, NOW_S + 60, 0), NOW_S).unwrap();
    assert_eq!(told(&mut standings, 0), [Standing::Fresh]);
    standings.judge(judgement(Standing::Fresh, NOW_S + 90, 0), NOW_S).unwrap();
    assert_eq!(told(&mut standings, 0), []);
    assert_eq!(told(&mut standings, 90), [Standing::Stale]);
    standings.judge(judgement(Standing::Failed, 0, 1), NOW_S + 91).unwrap();
    assert_eq!(told(&mut standings, 91), [Standing::Failed]);
    standings.judge(judgement(Standing::Failed, 0, 1), NOW_S + 92).unwrap();
    assert_eq!(told(&mut standings, 92), []);
    standings.judge(judgement(Standing::Failed, 0, 2), NOW_S + 93).unwrap();
    assert_eq!(told(&mut standings, 93), [Standing::Failed], "it has turned bad once more");
}

/// A reason comes from another machine's evidence: it goes into logs, onto terminals and into one file of a megabyte.
#[test]
fn a_reason_without_end_is_cut_and_has_no_control_characters() {
    let mut standings = required();
    let reason = "\u{1b}[2J".to_owned() + &"ä".repeat(10_000);
    let said = Judgement { reason, ..judgement(Standing::Failed, 0, 0) };
    standings.judge(said, NOW_S).unwrap();
    let change = standings.review(OWN, &let_in(), NOW_S).remove(0);
    assert!(change.reason.starts_with("[2Jä") && change.reason.len() <= MAX_REASON_BYTES);
}

#[test]
fn who_is_let_in_is_never_forgotten_for_those_who_are_not() {
    let mut standings = required();
    let node = |n: usize| {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&(n as u64).to_be_bytes());
        NodeId(id)
    };
    let let_in = BTreeSet::from([node(0)]);
    for n in 0..MAX_KNOWN + 10 {
        let said = Judgement { node: node(n), ..judgement(Standing::Failed, 0, 1) };
        standings.judge(said, NOW_S).unwrap();
    }
    standings.review(OWN, &let_in, NOW_S);
    assert_eq!(standings.keep().count(), MAX_KNOWN);
    assert!(standings.knows(node(0)));
}

#[derive(Clone, Debug)]
enum Step {
    Judge(Standing, u64, u64),
    Admit,
    Restart,
    Wait(u64),
    Review(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let standing = prop_oneof![
        Just(Standing::Fresh),
        Just(Standing::Stale),
        Just(Standing::Expired),
        Just(Standing::Failed)
    ];
    prop_oneof![
        4 => (standing, 0..200u64, 0..6u64).prop_map(|(s, after, epoch)| Step::Judge(s, after, epoch)),
        1 => Just(Step::Admit),
        1 => Just(Step::Restart),
        2 => prop_oneof![0..100u64, Just(GRACE_S)].prop_map(Step::Wait),
        1 => any::<bool>().prop_map(Step::Review),
    ]
}

proptest! {
    /// Whatever comes in whatever order: no service but the network's is signed for unless the last word that was taken is
    /// that the node is fresh, and never beyond it; nothing at all after bad news; and no epoch goes back.
    #[test]
    fn nothing_is_signed_beyond_what_was_said_and_no_epoch_goes_back(
        steps in prop::collection::vec(step(), 1..60)
    ) {
        let (mut standings, mut now_s) = (required(), NOW_S);
        let (mut highest, mut last) = (0, None);
        for step in steps {
            match step {
                Step::Judge(standing, after_s, epoch) => {
                    let taken = standings.judge(judgement(standing, now_s + after_s, epoch), now_s);
                    prop_assert_eq!(taken.is_ok(), epoch >= highest || standing.is_bad());
                    if taken.is_ok() {
                        highest = epoch.max(highest);
                        prop_assert_eq!(standings.epoch(NODE), highest);
                        last = Some((standing, now_s + after_s));
                    }
                }
                Step::Admit => {
                    standings.admitted(NODE);
                    last.take_if(|(standing, _)| standing.is_bad());
                }
                Step::Restart => {
                    let kept: Vec<_> = standings.keep().collect();
                    standings = required();
                    kept.into_iter().for_each(|(node, past)| standings.restore(node, past));
                    last.take_if(|(standing, _)| !standing.is_bad());
                }
                Step::Wait(s) => now_s += s,
                Step::Review(is_in) => {
                    let let_in = if is_in { let_in() } else { BTreeSet::new() };
                    standings.review(OWN, &let_in, now_s);
                    if !is_in {
                        last.take_if(|(standing, _)| !standing.is_bad());
                    }
                }
            }
            match (standings.last_s(NODE, "memory", BOUND, now_s), last) {
                (Ok(last_s), Some((Standing::Fresh, until_s))) => {
                    prop_assert!(now_s <= last_s && last_s < until_s);
                }
                (Ok(_), said) => prop_assert!(false, "signed after {said:?}"),
                (Err(_), Some((Standing::Fresh, until_s))) => prop_assert!(now_s >= until_s),
                (Err(_), _) => {}
            }
            if let Some((Standing::Expired | Standing::Failed, _)) = last {
                prop_assert!(standings.last_s(NODE, SERVICE, BOUND, now_s).is_err());
            }
        }
    }
}
