//! In which machine a device is: its report does not show it, and can be relayed. Two things can be shown all the same (A2).
//!
//! **A device is in one machine at most.** A verifier keeps which node has shown it first ([`check_place`]). Another one that
//! shows it while that one's evidence is fresh contradicts it. While it is not, nobody knows whether the device was moved:
//! then it is not checked, until the node that had it shows itself without it, is put out, or is enrolled anew.
//!
//! **A machine has the devices that it had before in the same boot** ([`check`]). The first time in a boot that all of them have shown themselves, the collector extends a hash over their numbers
//! into a register, [`DEVICES_PCR`], and every quote covers it. A register is only ever extended: within the boot it cannot be made
//! to hold what other devices would give.
//!
//! The register is one that the boot does not use. Firmware and boot loaders extend 0 to 9 and 12 to 14, IMA 10, this node
//! its image into 11. Of those that only a reset clears that leaves 15. systemd measures the machine's name and the keys of
//! volumes into it, where a unified kernel image has measured itself into 11: there this node finds 11 taken, and its image
//! is refused anyway. Registers from 16 on can be set back while the machine runs.
//!
//! # What it does not show
//!
//! That the devices were in this machine when they were measured: whoever relays them from the boot on measures what they
//! relay.

use std::collections::{BTreeMap, BTreeSet};

use distos_abi::NodeId;
use sha2::{Digest as _, Sha256};

use crate::evidence::extended_once;
use crate::live::Gpu;
use crate::nvidia::machine::Machine;
use crate::nvidia::number_of;
use crate::pki::Certificate;

/// The register into which a hash over the devices' numbers is extended.
pub const DEVICES_PCR: u8 = 15;
/// Of the check that the devices are those that were measured in this boot.
pub const MEASURED: &str = "measured devices";

/// Of the check that no other node shows the device.
pub const PLACE: &str = "one node";

const DEVICES: &[u8] = b"distos devices 1\0";

/// The numbers of a machine's devices.
pub type Numbers = BTreeSet<[u8; 8]>;

/// By which other nodes devices were shown before, whose they are.
pub type Elsewhere = BTreeMap<[u8; 8], Holder>;

/// A node that has shown a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Which one.
    pub node: NodeId,
    /// Whether its evidence is fresh.
    pub is_fresh: bool,
}

/// What is extended for these devices.
pub fn digest(numbers: &Numbers) -> [u8; 32] {
    let hash = Sha256::new().chain_update(DEVICES);
    numbers.iter().fold(hash, |hash, number| hash.chain_update(number)).finalize().into()
}

/// What [`DEVICES_PCR`] holds where nothing but these devices was measured into it.
pub fn measured(numbers: &Numbers) -> [u8; 32] {
    extended_once(&digest(numbers))
}

/// The numbers by which devices' chains name them, for the machine that measures them itself: nothing is verified. `None` if
/// there is no device, or if one shows none, or the same as another: what is measured cannot be mended in this boot.
pub fn named(gpus: &[Gpu]) -> Option<Numbers> {
    let number = |gpu: &Gpu| {
        let chain = Certificate::several(gpu.chain.as_bytes()).ok();
        chain.filter(|_| gpu.fault.is_empty()).and_then(|chain| number_of(&chain))
    };
    let numbers: Numbers = gpus.iter().map(number).collect::<Option<_>>()?;
    (!numbers.is_empty() && numbers.len() == gpus.len()).then_some(numbers)
}

/// Checks that the devices of a machine are those that it has measured in this boot, and notes it of each. `register` is
/// what a quote proves of [`DEVICES_PCR`]; `None` if nothing.
pub fn check(machine: &mut Machine, register: Option<&[u8; 32]>) {
    let numbers: Option<Numbers> = machine.devices.values().map(|one| one.number).collect();
    let numbers = numbers.filter(|numbers| numbers.len() == machine.devices.len());
    for one in machine.devices.values_mut() {
        let findings = &mut one.findings;
        match (register, &numbers) {
            (None, _) => findings.not_checked(MEASURED, "no quote proves the register"),
            (Some(register), _) if *register == [0; 32] => {
                findings.not_checked(MEASURED, "the machine has measured none in this boot");
            }
            (Some(_), None) => {
                findings.not_checked(MEASURED, "not every device has shown which one it is");
            }
            (Some(register), Some(numbers)) if *register == measured(numbers) => {
                findings.passed(MEASURED, format!("PCR {DEVICES_PCR}: {} devices", numbers.len()));
            }
            (Some(_), Some(_)) => findings.failed(
                MEASURED,
                format!("PCR {DEVICES_PCR} does not hold what these devices give: in this boot there were others, or something else has measured into it"),
            ),
        }
    }
}

/// Checks that no other node shows these devices, and notes it of each. Returns the numbers of those that are here alone.
/// With `None` nobody has looked.
pub fn check_place(machine: &mut Machine, elsewhere: Option<&Elsewhere>) -> Numbers {
    let mut here = Numbers::new();
    for one in machine.devices.values_mut() {
        let findings = &mut one.findings;
        let (Some(number), Some(elsewhere)) = (one.number, elsewhere) else {
            findings
                .not_checked(PLACE, "nobody knows which device it is, or whether others show it");
            continue;
        };
        match elsewhere.get(&number) {
            None => {
                here.insert(number);
                findings.passed(PLACE, "no other node shows it");
            }
            Some(Holder { node, is_fresh: true }) => {
                findings.failed(PLACE, format!("node/{node} shows it as well"));
            }
            Some(Holder { node, is_fresh: false }) => findings.not_checked(
                PLACE,
                format!("node/{node} has shown it before: have that one show itself without it, put it out, or enrol it anew"),
            ),
        }
    }
    here
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::findings::{Findings, Outcome};
    use crate::nvidia::machine::Found;

    fn machine(numbers: &[Option<u8>]) -> Machine {
        let found = |number: &Option<u8>| Found {
            is_switch: false,
            number: number.map(|byte| [byte; 8]),
            findings: Findings::default(),
        };
        let devices = numbers.iter().enumerate();
        let devices = devices.map(|(at, number)| (format!("gpu-{at}"), found(number)));
        Machine { devices: devices.collect(), ..Machine::default() }
    }

    fn outcome(numbers: &[Option<u8>], register: Option<[u8; 32]>) -> Outcome {
        let mut machine = machine(numbers);
        check(&mut machine, register.as_ref());
        let each: BTreeSet<Outcome> =
            machine.devices.values().map(|one| one.findings.outcome(MEASURED)).collect();
        assert_eq!(each.len(), 1, "of each the same");
        *each.first().unwrap()
    }

    fn measured(bytes: &[u8]) -> Option<[u8; 32]> {
        Some(super::measured(&bytes.iter().map(|byte| [*byte; 8]).collect()))
    }

    #[test]
    fn a_device_that_was_not_there_when_they_were_measured_fails_all_and_a_silent_one_none() {
        let (one, two, three) = (Some(1), Some(2), Some(3));
        assert_eq!(outcome(&[one, two], measured(&[1, 2])), Outcome::Passed);
        assert_eq!(outcome(&[two, one], measured(&[1, 2])), Outcome::Passed, "in any order");
        for others in [&[one, three][..], &[one], &[one, two, three]] {
            assert_eq!(outcome(others, measured(&[1, 2])), Outcome::Failed, "{others:?}");
        }
        // Whatever was extended beside it, or after it.
        assert_eq!(outcome(&[one], Some([7; 32])), Outcome::Failed);
        let mut begins_with_zero = [7; 32];
        begins_with_zero[0] = 0;
        assert_eq!(outcome(&[one], Some(begins_with_zero)), Outcome::Failed);
        // Absent is not contradicting.
        assert_eq!(outcome(&[one, None], measured(&[1, 2])), Outcome::NotChecked);
        assert_eq!(outcome(&[one, one], measured(&[1])), Outcome::NotChecked);
        assert_eq!(outcome(&[one], Some([0; 32])), Outcome::NotChecked);
        assert_eq!(outcome(&[one], None), Outcome::NotChecked);
    }

    /// One GPU would vouch for the work of a whole cluster.
    #[test]
    fn a_device_that_another_node_shows_is_not_taken_and_fails_while_that_one_is_fresh() {
        let node = NodeId([9; 32]);
        let elsewhere = |is_fresh| Elsewhere::from([([1; 8], Holder { node, is_fresh })]);
        let place = |elsewhere: Option<&Elsewhere>| {
            let mut machine = machine(&[Some(1), Some(2), None]);
            let here = check_place(&mut machine, elsewhere);
            let outcome = |name: &str| machine.devices[name].findings.outcome(PLACE);
            (["gpu-0", "gpu-1", "gpu-2"].map(outcome), here)
        };
        use Outcome::{Failed, NotChecked, Passed};
        let (one, both) = (Numbers::from([[2; 8]]), Numbers::from([[1; 8], [2; 8]]));
        assert_eq!(place(Some(&elsewhere(true))), ([Failed, Passed, NotChecked], one.clone()));
        assert_eq!(place(Some(&elsewhere(false))), ([NotChecked, Passed, NotChecked], one));
        assert_eq!(place(Some(&Elsewhere::new())), ([Passed, Passed, NotChecked], both));
        assert_eq!(place(None), ([NotChecked; 3], Numbers::new()));
    }

    #[test]
    fn sets_of_devices_are_told_apart() {
        let of = |bytes: &[u8]| digest(&bytes.iter().map(|byte| [*byte; 8]).collect());
        let all = [of(&[]), of(&[1]), of(&[2]), of(&[1, 2])];
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    }
}
