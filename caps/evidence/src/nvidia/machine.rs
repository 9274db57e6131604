//! Whether the GPUs and switches of one machine are each other's.
//!
//! In a machine whose GPUs are linked by switches, data goes through switches: one that nobody verified could read it.
//! So each GPU says which switches it is linked with, each switch says with which GPUs, and here both must say the same of
//! exactly those whose evidence there is. Who is meant is shown by certificates: the numbers by which they know each other
//! are in the certificates of their boot ROMs.

use std::collections::BTreeSet;

use super::Device;
use super::report::Report;
use crate::findings::Findings;

/// Of the check that no device is there twice.
pub const DISTINCT: &str = "distinct devices";
/// Of the check that all answer one nonce.
pub const ONE_NONCE: &str = "one nonce";
/// Of the check that GPUs and switches are each other's.
pub const TOPOLOGY: &str = "topology";

type Ids = BTreeSet<[u8; 8]>;

/// Checks the devices of one machine, each of which was verified. Where there is evidence of GPUs alone, or of switches
/// alone, nothing is known of what they are linked with: that is no contradiction, and nothing to rely on.
pub fn verify(devices: &[(Device, Report)]) -> Findings {
    let mut findings = Findings::default();
    let nonces: BTreeSet<[u8; 32]> = devices.iter().map(|(_, report)| report.nonce).collect();
    if nonces.len() == 1 {
        findings.passed(ONE_NONCE, format!("{} devices", devices.len()));
    } else {
        findings.failed(ONE_NONCE, format!("{} devices answer {}", devices.len(), nonces.len()));
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
pub fn names_others(devices: &[(Device, Report)]) -> bool {
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
