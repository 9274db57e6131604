//! Faults as lines, and the kernel's messages as JSON.

use std::collections::BTreeMap;

use distos_abi::{ByteRange, Fault, Meter, Rights};
use distos_host::plan::Plan;
use distos_rpc::boot::{EdgeEnd, EdgeGrant, Manifest};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::seed;

pub(super) fn fault_seeds() -> Vec<(String, Vec<u8>)> {
    let faults = [
        Fault::Denied { missing: Rights::ALL, range: Some(ByteRange { start: 1, end: 2 }) },
        Fault::Revoked,
        Fault::Expired { at_ms: 9 },
        Fault::OverQuota { meter: Meter::Tasks, limit: 4, wanted: 5 },
        Fault::Unavailable { retry_after_ms: 100, why: "why; k=v: really".into() },
        Fault::Malformed("line 3: no".into()),
    ];
    let line = |fault: &Fault| {
        (format!("{}", fault.code()), format!("remote exception: {}", fault.to_wire()).into_bytes())
    };
    faults.iter().map(line).collect()
}

/// Whatever another vat calls a fault is one line of printable text for the one who reads it, and
/// comes through another vat unchanged.
pub(super) fn fault(bytes: &[u8]) {
    let Some(fault) = Fault::from_wire(&String::from_utf8_lossy(bytes)) else { return };
    let wire = fault.to_wire();
    assert!(wire.len() < 1_000 && !wire.contains(char::is_control), "{wire:?}");
    assert!(fault.code() > 0 && !fault.name().is_empty());
    let shown = fault.to_string();
    assert!(!shown.contains(char::is_control), "a peer writes to the terminal: {shown:?}");
    assert!(shown.len() < 1_000, "a peer fills the terminal: {} bytes", shown.len());
    assert_eq!(Fault::from_wire(&wire), Some(fault), "{wire}");
}

pub(super) fn manifest_seeds() -> Vec<(String, Vec<u8>)> {
    let grant =
        EdgeGrant { slot_index: 1, slot_generation: 2, cap_id: 3, kind: 4, rights: 5, tenant: 6 };
    let edge = EdgeEnd { name: "memory".into(), peer: "memory".into(), fd: -1, grant: Some(grant) };
    let manifest = Manifest {
        vat: "memory".into(),
        program: "memory".into(),
        node: "11".repeat(32),
        tenant: 0,
        params: BTreeMap::from([("message_bytes".into(), "9437184".into())]),
        serves: vec![1],
        data_dir: Some("/var/lib/distos".into()),
        kernel_fd: 4,
        control_fd: 5,
        table_fd: 6,
        guard_fd: 7,
        listen_fd: Some(8),
        edges: vec![edge.clone(), EdgeEnd { grant: None, ..edge.clone() }],
        devices: BTreeMap::from([("tpm".into(), 9)]),
    };
    let plan = super::image::plan();
    vec![
        seed("edge", serde_json::to_vec(&edge).unwrap()),
        seed("manifest", serde_json::to_vec(&manifest).unwrap()),
        seed("plan", serde_json::to_vec(&plan).unwrap()),
    ]
}

/// What is read as a message of the kernel's is written and read again as it was.
pub(super) fn manifest(bytes: &[u8]) {
    round_trip::<EdgeEnd>(bytes);
    round_trip::<Manifest>(bytes);
    round_trip::<Plan>(bytes);
}

fn round_trip<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(bytes) else { return };
    let text = serde_json::to_vec(&value).unwrap();
    let again: T = serde_json::from_slice(&text).unwrap();
    assert_eq!(serde_json::to_vec(&again).unwrap(), text);
}
