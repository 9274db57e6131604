//! Logs of measured boots: what firmware and boot loaders say that they extended into the TPM's registers (TCG PC Client
//! Platform Firmware Profile 1.06, section 10). Crypto-agile logs and the older ones with SHA-1 digests only.
//!
//! A log proves nothing by itself. [`verify`] replays it to register values, which a quote proves, and takes from it only
//! what those registers vouch for:
//!
//! - *log format*: every byte of the log belongs to an event. A malformed log is refused as a whole.
//! - *replay*: each register that was given holds what the log says; one that the log does not extend holds its initial
//!   value. Give only the registers that nobody but the boot extends: register 10 is of [`crate::ima`]. Without values
//!   it is not checked, and what the log claims is hearsay.
//! - *event data*: fails if a separator's type and digest disagree, or if register 7, which decides about secure boot,
//!   holds anything but what is understood and recomputes. Anywhere else an event whose digest is not that of its data
//!   does not count: real firmware writes such.
//! - *facts*: fails if what can be so only once is stated twice, and not alike.
//!
//! The claims, each from registers that were given and hold what the log says:
//!
//! | Claim | Register | What |
//! |---|---|---|
//! | `bank` | | the bank that was replayed: a policy has to demand it, as one that firmware leaves alone can be filled by anybody |
//! | `secure-boot` | 7 | the variable `SecureBoot` |
//! | `secure-boot-pk`, `-kek`, `-db`, `-dbx` | 7 | the digest of the variable as measured, in the bank that was replayed |
//! | `boot-authorities` | 7 | SHA-256 of each certificate (or other entry) that vouched for an image |
//! | `shim-settings` | 7 | `NAME=HEX` for shim's variables such as `MokSBState` |
//! | `uefi-debug`, `dma-protection-disabled` | 7 | whether firmware measured that |
//! | `firmware-version` | 0 | what the firmware calls itself |
//! | `firmware-error` | 0–7 | whether a separator stands for an error |
//! | `boot-variables` | 1 | digests of `Boot####` and `BootOrder` |
//! | `boot-loaders` | 4 | Authenticode digests of all that was started |
//! | `exit-boot-services` | 5 | whether the log reaches the end of boot services |
//! | `kernel-command-lines` | 8, 12 | from GRUB and from systemd's stub |
//! | `boot-files`, `kernel-digests` | 9 | digests of all that GRUB read, and of what it labels as kernels |
//!
//! What firmware states only once (`secure-boot` and what begins with it, `firmware-version`) counts before the
//! register's separator, and is absent if there is none or if it stands for an error.
//!
//! What they do not prove: an event's type, a file's name and GRUB's prefix are labels that no digest covers. A command
//! that GRUB ran can be relabelled as the kernel's command line; `kernel-digests` says that those bytes were measured,
//! not that they ran. Whoever controls the running system can extend every register further: it adds events behind those
//! of the boot, and never takes one away. So a policy demands that something is there, or that nothing else is. And it
//! demands a bank: one that the firmware leaves alone is for anybody to fill with another machine's boot.
//!
//! This module checks no signature and knows no good values: a quote is for [`crate::evidence`], and what is good is for
//! a policy.

mod covered;
mod event;
mod facts;
mod replay;

pub use covered::Covered;
pub use event::{Event, EventLog, EventType, Format, MAX_BYTES, MAX_EVENTS, Refusal};
pub use replay::Registers;

use crate::bank::{Bank, BankValues};
use crate::evidence::PcrSet;
use crate::findings::Findings;

/// Of the check that the log can be read.
pub const FORMAT: &str = "log format";
/// Of the check that registers hold what the log says.
pub const REPLAY: &str = "replay";
/// Of the check that events whose digests are of their data have those digests.
pub const DATA: &str = "event data";
/// Of the check that nothing is stated twice that can be so only once.
pub const FACTS: &str = "facts";

/// The registers that nobody extends whom the log does not tell of: not the kernel's list, nor what services of a running
/// system measure.
pub const OF_BOOT: [u8; 13] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14];

/// Replays a log to the given registers, and says what they prove of the boot. Registers of the SHA-256 bank that a quote
/// has proven are made into values by `BankValues::from`.
pub fn verify(log: &[u8], values: Option<&BankValues>) -> Findings {
    let mut findings = Findings::default();
    let log = findings.check(FORMAT, EventLog::parse(log), |log| {
        let banks: Vec<String> = log.banks().iter().map(Bank::to_string).collect();
        format!("{}, {} events, {}", log.format(), log.events().len(), banks.join(" "))
    });
    let Some(log) = log else { return findings };
    let given = values.filter(|values| !values.is_empty());
    let Some(bank) = given.map(BankValues::bank).or_else(|| usual_bank(&log)) else {
        findings.not_checked(REPLAY, "the log has no digests for a bank that can be replayed");
        return findings;
    };
    let registers = match log.replay(bank) {
        Ok(registers) => registers,
        Err(refusal) => {
            findings.failed(REPLAY, refusal);
            return findings;
        }
    };
    let vouched = match given {
        Some(given) => compared(&registers, given, &mut findings),
        None => {
            findings.not_checked(REPLAY, "no register values: nothing vouches for the log");
            (0..PcrSet::COUNT).collect()
        }
    };
    if !vouched.is_empty() {
        findings.claim("bank", bank.to_string());
    }
    facts::gather(&log, bank, vouched, &mut findings);
    findings
}

/// Notes how the replay ended, and returns the registers that hold what the log says.
fn compared(registers: &Registers, given: &BankValues, findings: &mut Findings) -> PcrSet {
    let (equal, differ) = registers.compare(given);
    let bank = registers.bank();
    if differ.is_empty() {
        findings.passed(REPLAY, format!("PCR {} of {bank}", list(equal)));
    } else {
        let differ = list(differ);
        findings.failed(REPLAY, format!("PCR {differ} of {bank} do not hold what the log says"));
    }
    equal
}

fn list(pcrs: PcrSet) -> String {
    pcrs.iter().map(|pcr| pcr.to_string()).collect::<Vec<_>>().join(",")
}

/// The bank from which facts are read if nobody names one.
fn usual_bank(log: &EventLog<'_>) -> Option<Bank> {
    [Bank::Sha256, Bank::Sha384, Bank::Sha512, Bank::Sha1]
        .into_iter()
        .find(|bank| log.banks().contains(bank))
}

#[cfg(test)]
#[path = "eventlog_tests.rs"]
mod tests;
