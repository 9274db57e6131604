//! Register values beside those of `tpm2_eventlog` (tpm2-tools), for every real log that it reads.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use distos_evidence::bank::Bank;
use distos_evidence::eventlog::EventLog;

/// Bank, register, value in hexadecimal.
type Values = BTreeMap<(String, u8), String>;

/// How an event begins that states the locality in which the TPM was started.
const LOCALITY: &[u8] = b"StartupLocality\0";

/// The section `pcrs:` of what the tool prints; `None` if it refuses the log.
fn by_the_tool(path: &Path) -> Option<Values> {
    let output = Command::new("tpm2_eventlog").arg(path).output().unwrap();
    if !output.status.success() {
        return None;
    }
    let text = String::from_utf8(output.stdout).unwrap();
    let (_, section) = text.split_once("\npcrs:\n").unwrap();
    let mut values = Values::new();
    let mut bank = String::new();
    for line in section.lines() {
        let (name, value) = line.split_once(':').unwrap();
        match value.trim().strip_prefix("0x") {
            Some(value) => {
                let pcr = name.trim().parse().unwrap();
                values.insert((bank.clone(), pcr), value.to_owned());
            }
            None => bank = name.trim().to_owned(),
        }
    }
    Some(values)
}

fn by_replay(log: &[u8]) -> Option<Values> {
    let log = EventLog::parse(log).ok()?;
    let mut values = Values::new();
    for bank in log.banks() {
        let registers = log.replay(*bank).ok()?;
        for pcr in registers.extended().iter() {
            let name = bank.to_string().replace('-', "").to_lowercase();
            values.insert((name, pcr), registers.value(pcr).unwrap().to_string());
        }
    }
    Some(values)
}

fn logs() -> Option<Vec<PathBuf>> {
    let root = std::env::var_os("DISTOS_TESTDATA").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/testdata"),
        Into::into,
    );
    let folder = root.join("attestation/eventlogs");
    match std::fs::read_dir(&folder) {
        Ok(entries) => Some(entries.map(|entry| entry.unwrap().path()).collect()),
        Err(error) if std::env::var_os("DISTOS_TESTDATA").is_none() => {
            let folder = folder.display();
            eprintln!("NOT TESTED: {folder}: {error}; DISTOS_TESTDATA names its folder");
            None
        }
        Err(error) => panic!("{}: {error}", folder.display()),
    }
}

#[test]
fn every_real_log_replays_to_the_values_that_another_verifier_gets() {
    if Command::new("tpm2_eventlog").arg("--version").output().is_err() {
        eprintln!("NOT TESTED: tpm2_eventlog is not installed");
        return;
    }
    let Some(logs) = logs() else { return };
    let mut compared = 0;
    for path in &logs {
        let log = std::fs::read(path).unwrap();
        let (mut ours, mut theirs) = (by_replay(&log), by_the_tool(path));
        // The tool before its version 5.6 extends the digest, all zeros, of an event that states a locality and
        // extends nothing.
        if log.windows(LOCALITY.len()).any(|bytes| bytes == LOCALITY) {
            for values in [&mut ours, &mut theirs].into_iter().flatten() {
                values.retain(|(_, pcr), _| *pcr != 0);
            }
        }
        assert_eq!(ours, theirs, "{}", path.display());
        compared += ours.map_or(0, |values| values.len());
    }
    assert!(compared >= Bank::ALL.len() * 8, "{compared} values are too few to have compared logs");
}
