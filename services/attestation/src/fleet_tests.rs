//! A hundred machines, each with a real software TPM of its own, and three verifiers that watch all of them.

use std::sync::Arc;

use distos_abi::{HolderKey, NodeId};
use distos_evidence::evidence::Continuity;

use super::*;
use crate::collector::Collector;
use crate::machines::{IMAGE, Node, Swtpm, Verifier};
use crate::state::{Bounds, Now, Standing, State};
use crate::tpm::TimedFd;

const NODES: usize = 100;
const VERIFIERS: usize = 3;
const BOUNDS: Bounds = Bounds { fresh_ms: 60_000, grace_ms: 60_000 };
/// Between two rounds, in milliseconds.
const ROUND_MS: u64 = 25_000;
/// Machines are asked by so many threads at a time.
const THREADS: usize = 4;

/// What goes wrong with these.
const EXTENDED: usize = 7;
const REBOOTED: usize = 23;
const CLEARED: usize = 42;
/// It has the machine after it answer in its place.
const FEIGNED: usize = 77;

/// What one verifier knows of one node.
struct Watched {
    verifier: Verifier,
    state: State<Evidence>,
}

/// One machine, and what all verifiers know of it.
struct Machine {
    number: usize,
    off: Node,
    on: Option<(Swtpm, Collector<TimedFd>)>,
    watched: Vec<Watched>,
}

fn at(ms: u64) -> Now {
    Now { unix_ms: 1_800_000_000_000 + ms, mono_ms: ms }
}

/// 32 bytes that are different for each of these.
fn bytes(parts: [usize; 3]) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (place, part) in bytes.chunks_exact_mut(8).zip(parts) {
        place.copy_from_slice(&(part as u64 + 1).to_le_bytes());
    }
    bytes
}

impl Watched {
    /// Has the node enrolled if it is not, and its evidence judged, in the round of this number.
    fn attest(&mut self, of: &mut Collector<TimedFd>, number: usize, by: usize, round: usize) {
        let now = at(round as u64 * ROUND_MS);
        let nonce = self.state.challenge(bytes([number, by, round]), now);
        let verifier = &mut self.verifier;
        if !verifier.kept.is_enrolled() {
            verifier.enrol(of, bytes([by, round, number])).unwrap();
        }
        let bundle = verifier.bundle(of, nonce).unwrap();
        let judged = verifier.judge(&bundle, nonce);
        self.state.answer(&nonce, judged, at(round as u64 * ROUND_MS + 900)).unwrap();
    }
}

impl Machine {
    fn new(number: usize, policies: &Arc<Policies>) -> Machine {
        let watched = (0..VERIFIERS).map(|by| {
            let node = NodeId(bytes([number, 0, 0]));
            let session = Session {
                verifier: NodeId(bytes([by, 0, 1])),
                node,
                key: HolderKey(bytes([number, 1, 0])),
                life: bytes([number, 2, by]),
            };
            let verifier = Verifier { session, policies: policies.clone(), ..Verifier::new() };
            Watched { verifier, state: State::new(node, BOUNDS, 0).unwrap() }
        });
        let off = Node::new();
        let on = Some(off.boot(IMAGE));
        Machine { number, off, on, watched: watched.collect() }
    }

    /// Every verifier asks it; what answers is its own TPM, or that of another machine.
    fn attest(&mut self, round: usize, other: Option<&mut Collector<TimedFd>>) {
        let own = self.on.as_mut().map(|(_, collector)| collector);
        let collector = other.or(own).expect("a machine that is on");
        for (by, watched) in self.watched.iter_mut().enumerate() {
            watched.attest(collector, self.number, by, round);
        }
    }

    fn collector(&mut self) -> &mut Collector<TimedFd> {
        &mut self.on.as_mut().expect("a machine that is on").1
    }

    fn reboot(&mut self) {
        self.on = None;
        self.on = Some(self.off.boot(IMAGE));
    }
}

/// All of these, several at a time.
fn attest_all(machines: &mut [Machine], round: usize) {
    let each = machines.len().div_ceil(THREADS);
    std::thread::scope(|scope| {
        for some in machines.chunks_mut(each) {
            scope.spawn(move || some.iter_mut().for_each(|one| one.attest(round, None)));
        }
    });
}

/// Or two nodes that both begin with one machine's TPM both count, and each has work as if there were two.
#[test]
fn two_nodes_of_one_tpm_are_told_from_two_that_nobody_knows() {
    let known = |ek: &str, ak: &str| {
        let keys = Keys { ek: ek.to_owned(), certificate: None, ak: ak.to_owned() };
        Kept { keys: Some(keys), ..Kept::default() }
    };
    assert!(known("01", "02").is_same_tpm(&known("01", "03")), "whatever key it attests with");
    assert!(!known("01", "02").is_same_tpm(&known("04", "02")));
    assert!(!Kept::default().is_same_tpm(&Kept::default()));
    assert!(!known("01", "02").is_same_tpm(&Kept::default()));
}

/// Or two nodes that exchange devices wait for each other for ever, or one takes a device by an answer that is not good.
#[test]
fn a_node_gives_up_what_it_does_not_show_and_takes_nothing_by_it() {
    let mut kept = Kept { devices: Numbers::from([[1; 8], [2; 8]]), ..Kept::default() };
    let before = kept.clone();
    kept.give_up_but(&Numbers::from([[2; 8], [3; 8]]));
    assert_eq!(*kept.devices(), Numbers::from([[2; 8]]));
    assert!(kept.matters_after(&before), "or it comes back with a restart");
}

/// In a cluster, work would be taken from a machine for what another one did, or left on one that was tampered with because
/// one of three verifiers did not see it.
#[test]
fn three_verifiers_of_a_hundred_machines_fail_those_that_changed_and_no_other() {
    let policies = Arc::new(Policies::unsigned(crate::machines::POLICY.as_bytes()).unwrap());
    let mut machines: Vec<Machine> =
        (0..NODES).map(|number| Machine::new(number, &policies)).collect();
    for round in 0..2 {
        attest_all(&mut machines, round);
        let now = at(round as u64 * ROUND_MS + 1_000);
        let expected = if round == 0 { Continuity::First } else { Continuity::SameBoot };
        for watched in machines.iter().flat_map(|machine| &machine.watched) {
            let verdict = watched.state.verdict(now);
            assert_eq!(verdict.standing, Standing::Fresh, "{}", verdict.reason);
            assert_eq!(verdict.evidence.unwrap().appraised.continuity, expected);
        }
    }
    // Each is known by keys of its own, and by the same ones to all three.
    let keys: BTreeSet<String> = machines
        .iter()
        .flat_map(|machine| &machine.watched)
        .map(|watched| watched.verifier.kept.named())
        .collect();
    assert_eq!(keys.len(), NODES);

    machines[EXTENDED].collector().tpm.pcr_extend(4, &[0xee; 32]).unwrap();
    machines[REBOOTED].reboot();
    machines[CLEARED].on = None;
    std::fs::remove_file(machines[CLEARED].off.state.path().join("tpm2-00.permall")).unwrap();
    machines[CLEARED].reboot();
    let mut lent = machines[FEIGNED + 1].on.take().expect("a machine that is on");
    machines[FEIGNED].attest(2, Some(&mut lent.1));
    machines[FEIGNED + 1].on = Some(lent);
    let (before, after) = machines.split_at_mut(FEIGNED);
    attest_all(before, 2);
    attest_all(&mut after[1..], 2);

    let now = at(2 * ROUND_MS + 1_000);
    for machine in &machines {
        let number = machine.number;
        let why = match number {
            EXTENDED => Some("PCR 4"),
            CLEARED | FEIGNED => Some("signature"),
            _ => None,
        };
        for (by, watched) in machine.watched.iter().enumerate() {
            let verdict = watched.state.verdict(now);
            let said = format!("machine {number}, verifier {by}: {verdict:?}");
            assert_eq!(watched.state.epoch(), u64::from(why.is_some()), "{said}");
            let Some(why) = why else {
                assert_eq!(verdict.standing, Standing::Fresh, "{said}");
                let is_new = number == REBOOTED;
                let expected = if is_new { Continuity::NewBoot } else { Continuity::SameBoot };
                assert_eq!(verdict.evidence.unwrap().appraised.continuity, expected, "{number}");
                continue;
            };
            assert_eq!(verdict.standing, Standing::Failed, "{said}");
            assert!(verdict.reason.contains(why), "{said}");
        }
    }

    // A TPM ends with the collector that spoke to it.
    for machine in &mut machines {
        let (mut swtpm, collector) = machine.on.take().expect("a machine that is on");
        drop(collector);
        swtpm.0.wait().unwrap();
    }
}
