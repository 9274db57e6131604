//! Whether the GPUs and switches of one machine are each other's.
//!
//! In a machine whose GPUs are linked by switches, data goes through switches: one that nobody verified could read it.
//! So each GPU says which switches it is linked with, each switch says with which GPUs, and here both must say the same of
//! exactly those whose evidence there is. Who is meant is shown by certificates: the numbers by which they know each other
//! are in the certificates of their boot ROMs.

use std::collections::BTreeSet;

use super::report::Report;
use super::{Architecture, Device};
use crate::findings::Findings;

/// Of the check that no device is there twice.
pub const DISTINCT: &str = "distinct devices";
/// Of the check that all answer one nonce.
pub const ONE_NONCE: &str = "one nonce";
/// Of the check that GPUs and switches are each other's.
pub const TOPOLOGY: &str = "topology";

type Ids = BTreeSet<[u8; 8]>;

/// Checks the devices of one machine, each of which was verified. A machine without switches has no topology.
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
    if switches == 0 && of(false).all(|(_, report)| linked(report).is_empty()) {
        findings.not_checked(TOPOLOGY, "no GPU names a switch");
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
        let (said, there) = match device.architecture {
            Architecture::Ls10 => (report.gpus().into_iter().flatten().collect(), &gpu_ids),
            _ => (linked(report), &switch_ids),
        };
        differs(device, &said, there)
    });
    match wrong {
        Some(why) => findings.failed(TOPOLOGY, why),
        None => findings.passed(TOPOLOGY, format!("{gpus} GPUs and {switches} switches")),
    }
    findings
}

fn linked(report: &Report) -> Ids {
    report.switches().into_iter().flatten().collect()
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
