//! Whether the GPUs and switches of one machine are each other's.
//!
//! In a machine whose GPUs are linked by switches, data goes through switches: one that nobody verified could read it.
//! So each GPU says which switches it is linked with, each switch says with which GPUs, and here both must say the same of
//! exactly those whose evidence there is. Who is meant is shown by certificates: the numbers by which they know each other
//! are in the certificates of their boot ROMs.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::report::{MAX_REPORT_BYTES, Report};
use super::{
    ARCHITECTURE, Architecture, Device, DriverWord, Evidence, FORMAT, GoldenValues, MAX_DEVICES,
    NONCE, Text, is_sample_nonce,
};
use crate::findings::{Findings, Outcome};
use crate::pki::{Anchors, CHAIN, Certificate};

/// Of the check that no device is there twice.
pub const DISTINCT: &str = "distinct devices";
/// Of the check that all answer one asking: with one nonce, or, if each was asked with its own, no two with the same.
pub const ONE_NONCE: &str = "one nonce";
/// Of the check that GPUs and switches are each other's.
pub const TOPOLOGY: &str = "topology";

/// The longest chain of certificates that a device shows, in bytes of PEM.
const MAX_CHAIN_BYTES: usize = 65_536;
/// How much of why a device shows nothing is repeated, in characters.
const MAX_WHY: usize = 200;

type Ids = BTreeSet<[u8; 8]>;

/// How the devices of a machine were asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asking {
    /// All with one nonce.
    Together,
    /// Each with a nonce of its own, so that none can show another's answer. That each answers its own is checked device
    /// by device.
    Apart,
}

/// Evidence of one device, from a file.
#[derive(Clone, Debug)]
pub struct Shown {
    /// The evidence.
    pub evidence: Evidence,
    /// What it has to answer, if that is known.
    pub nonce: Option<[u8; 32]>,
    /// What whoever wrote it down says that it was asked with.
    pub noted: Option<[u8; 32]>,
}

/// What a device has just answered, as a driver hands it over. All of it may come from somebody else's machine.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// What it is said to be: `HOPPER`.
    pub arch: &'a str,
    /// Its certificates in PEM, its own first.
    pub chain: &'a [u8],
    /// The request and the response.
    pub report: &'a [u8],
    /// What the driver says: `on`, `off`, `devtools`, or nothing.
    pub mode: &'a str,
    /// Why there is no evidence, or empty.
    pub fault: &'a str,
    /// What it was asked with.
    pub nonce: [u8; 32],
}

/// What was found of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Whether it is a switch, and no GPU.
    pub is_switch: bool,
    /// The number by which its certificates know it, if its report is signed by the key that they lead to.
    pub number: Option<[u8; 8]>,
    /// The checks and claims.
    pub findings: Findings,
}

/// What was found of all devices of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// By name: `gpu-0`, `switch-0`, in the order in which they were given.
    pub devices: BTreeMap<String, Found>,
    /// Of all together. `None` if one of them was not verified, or if there is one alone and it names no other.
    pub together: Option<Findings>,
    /// Whether they name others, of which there is no evidence: what they are linked with could be anybody's.
    pub names_absent: bool,
}

/// Verifies evidence of a machine's devices from files.
pub fn verify_shown(
    shown: &[Shown],
    asking: Asking,
    anchors: Anchors<'_>,
    golden: &[GoldenValues],
) -> Machine {
    let mut machine = Machine::default();
    let mut verified = Vec::new();
    for one in shown {
        let (mut findings, device) =
            super::verify(&one.evidence, anchors, one.nonce.as_ref(), golden);
        if let (Some(noted), Some((_, report))) = (one.noted, &device)
            && noted != report.nonce
        {
            findings.failed(NONCE, "the report answers another nonce than its file says");
        }
        let number = device.as_ref().and_then(|(device, _)| device.device_id());
        verified.extend(device);
        machine.add(one.evidence.architecture.is_switch(), number, findings);
    }
    machine.put_together(&verified, asking);
    machine
}

/// Verifies what a machine's devices have answered just before, each to a nonce of its own that whoever calls this has
/// chosen. Nonces whose answers were published are refused. A device that shows nothing, or nothing that can be read, is
/// there in what was found, too.
///
/// # Errors
/// There are more than [`MAX_DEVICES`].
pub fn verify_live(
    answers: &[Answer<'_>],
    anchors: Anchors<'_>,
    golden: &[GoldenValues],
) -> Result<Machine, String> {
    if answers.len() > MAX_DEVICES {
        return Err(format!("{} devices are more than {MAX_DEVICES}", answers.len()));
    }
    let mut machine = Machine::default();
    let mut verified = Vec::new();
    for answer in answers {
        let is_switch = Architecture::parse(answer.arch).is_some_and(Architecture::is_switch);
        let (mut findings, device) = match answer.evidence() {
            Ok(evidence) => super::verify(&evidence, anchors, Some(&answer.nonce), golden),
            Err(findings) => (findings, None),
        };
        let number = device.as_ref().and_then(|(device, _)| device.device_id());
        verified.extend(device);
        if is_sample_nonce(&answer.nonce) {
            findings.failed(NONCE, "it is one of published samples: anybody can answer it");
        }
        machine.add(is_switch, number, findings);
    }
    machine.put_together(&verified, Asking::Apart);
    Ok(machine)
}

impl Answer<'_> {
    /// As [`Evidence::from_json`] reads it; nothing of a device that shows nothing.
    pub fn to_json(&self) -> Option<Value> {
        if !self.fault.is_empty() {
            return None;
        }
        let word = DriverWord::parse(self.mode);
        let text = Text {
            arch: self.arch.to_owned(),
            certificate: STANDARD.encode(self.chain),
            evidence: STANDARD.encode(self.report),
            nonce: Some(hex::encode(self.nonce)),
            confidential_mode: word.map(|word| word.confidential_mode),
            developer_tools: word.map(|word| word.developer_tools),
        };
        Some(json!(text))
    }

    /// As evidence, or what is wrong with it.
    fn evidence(&self) -> Result<Evidence, Findings> {
        let mut findings = Findings::default();
        if !self.fault.is_empty() {
            let why: String = self.fault.chars().take(MAX_WHY).collect();
            findings.not_checked(FORMAT, why);
            if let Some(word) = DriverWord::parse(self.mode) {
                word.claim(&mut findings);
            }
            return Err(findings);
        }
        let Some(architecture) = Architecture::parse(self.arch) else {
            findings.failed(ARCHITECTURE, "it is none that is known");
            return Err(findings);
        };
        if self.chain.len() > MAX_CHAIN_BYTES || self.report.len() > MAX_REPORT_BYTES {
            findings.failed(FORMAT, "the chain or the report is too long");
            return Err(findings);
        }
        let chain = match Certificate::several(self.chain) {
            Ok(chain) => chain,
            Err(why) => {
                findings.failed(CHAIN, why);
                return Err(findings);
            }
        };
        let driver = DriverWord::parse(self.mode);
        Ok(Evidence { architecture, chain, report: self.report.to_vec(), driver })
    }
}

impl Machine {
    fn add(&mut self, is_switch: bool, number: Option<[u8; 8]>, findings: Findings) {
        let word = if is_switch { "switch" } else { "gpu" };
        let at = self.devices.values().filter(|one| one.is_switch == is_switch).count();
        self.devices.insert(format!("{word}-{at}"), Found { is_switch, number, findings });
    }

    fn put_together(&mut self, verified: &[(Device, Report)], asking: Asking) {
        let names_others = names_others(verified);
        if verified.len() == self.devices.len() && (verified.len() > 1 || names_others) {
            let findings = verify(verified, asking);
            self.names_absent = names_others && findings.outcome(TOPOLOGY) == Outcome::NotChecked;
            self.together = Some(findings);
        }
    }
}

/// Checks the devices of one machine, each of which was verified. Where there is evidence of GPUs alone, or of switches
/// alone, nothing is known of what they are linked with: that is no contradiction, and nothing to rely on.
pub fn verify(devices: &[(Device, Report)], asking: Asking) -> Findings {
    let mut findings = Findings::default();
    let nonces: BTreeSet<[u8; 32]> = devices.iter().map(|(_, report)| report.nonce).collect();
    let (all, different) = (devices.len(), nonces.len());
    match asking {
        Asking::Together if different == 1 => {
            findings.passed(ONE_NONCE, format!("{all} devices"));
        }
        Asking::Apart if different == all && all > 0 => {
            findings.passed(ONE_NONCE, format!("{all} devices, each its own of one asking"));
        }
        Asking::Together | Asking::Apart => {
            findings.failed(ONE_NONCE, format!("{all} devices answer {different}"));
        }
    }
    let certificates: BTreeSet<[u8; 32]> =
        devices.iter().map(|(device, _)| device.certificate).collect();
    let ids: Vec<Option<[u8; 8]>> = devices.iter().map(|(device, _)| device.device_id()).collect();
    let known: Ids = ids.iter().flatten().copied().collect();
    if certificates.len() != devices.len() || known.len() != ids.iter().flatten().count() {
        findings.failed(DISTINCT, "one is there twice");
    } else {
        findings.passed(DISTINCT, format!("{} devices", devices.len()));
    }
    let of = |switches: bool| {
        devices.iter().filter(move |(device, _)| device.architecture.is_switch() == switches)
    };
    let (gpus, switches) = (of(false).count(), of(true).count());
    findings.claim("gpus", super::count(gpus));
    findings.claim("switches", super::count(switches));
    if gpus == 0 || switches == 0 {
        let named: Ids = devices.iter().flat_map(|(_, report)| links(report)).collect();
        let why = match (named.len(), gpus) {
            (0, _) => "no device names another".to_owned(),
            (named, 0) => format!("no evidence of the {named} GPUs that switches are linked with"),
            (named, _) => format!("no evidence of the {named} switches that GPUs are linked with"),
        };
        findings.not_checked(TOPOLOGY, why);
        return findings;
    }
    let ids_of = |switches: bool| -> Option<Ids> {
        of(switches).map(|(device, _)| device.device_id()).collect()
    };
    let (Some(gpu_ids), Some(switch_ids)) = (ids_of(false), ids_of(true)) else {
        findings.failed(TOPOLOGY, "a device has no number in its certificates");
        return findings;
    };
    let wrong = devices.iter().find_map(|(device, report)| {
        let there = if device.architecture.is_switch() { &gpu_ids } else { &switch_ids };
        differs(device, &links(report), there)
    });
    match wrong {
        Some(why) => findings.failed(TOPOLOGY, why),
        None => findings.passed(TOPOLOGY, format!("{gpus} GPUs and {switches} switches")),
    }
    findings
}

/// Whether any of them says that it is linked with another device.
fn names_others(devices: &[(Device, Report)]) -> bool {
    // A switch that names itself only is linked with nobody.
    let others = |(device, report): &(Device, Report)| {
        links(report).iter().any(|id| Some(*id) != device.device_id())
    };
    devices.iter().any(others)
}

/// Of a switch the GPUs, of a GPU the switches. A switch has its own number where a GPU has the others'.
fn links(report: &Report) -> Ids {
    report.gpus().or_else(|| report.switches()).into_iter().flatten().collect()
}

fn differs(device: &Device, said: &Ids, there: &Ids) -> Option<String> {
    let who = device.device_id().map(hex::encode).unwrap_or_default();
    if let Some(missing) = said.difference(there).next() {
        let missing = hex::encode(missing);
        return Some(format!("{who} is linked with {missing}, of which there is no evidence"));
    }
    let stranger = there.difference(said).next().map(hex::encode)?;
    Some(format!("{who} is not linked with {stranger}"))
}
