//! What a boot was, as far as the registers that hold what the log says prove it.
//!
//! Labels are not proven: neither the type of an event nor the name of a file nor GRUB's prefix is covered by a digest.
//! So what must not be overlooked is found by its digest, whatever its label (separators, debug mode, the end of boot
//! services, everything in registers 4 and 9), register 7 admits only what is understood to its last event, and the rest
//! is what was measured into that register, under a label that somebody gave it.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest as _, Sha256};

use super::covered::{Covered, KERNEL_COMMAND_LINE, KERNEL_COMMAND_LINE_OLD, Variable, utf16};
use super::event::{Event, EventLog, EventType};
use crate::bank::{Bank, Digest};
use crate::evidence::PcrSet;
use crate::findings::{Claim, Findings};
use crate::wire::Reader;

/// `EFI_GLOBAL_VARIABLE` (UEFI, 3.3): 8be4df61-93ca-11d2-aa0d-00e098032b8c.
const GLOBAL: [u8; 16] = *b"\x61\xdf\xe4\x8b\xca\x93\xd2\x11\xaa\x0d\x00\xe0\x98\x03\x2b\x8c";
/// `EFI_IMAGE_SECURITY_DATABASE_GUID` (UEFI, 32.4): d719b2cb-3d3a-4596-a3bc-dad00e67656f.
const SECURITY: [u8; 16] = *b"\xcb\xb2\x19\xd7\x3a\x3d\x96\x45\xa3\xbc\xda\xd0\x0e\x67\x65\x6f";
/// Shim's variables: 605dab50-e046-4300-abb6-3dd810dd8b23.
const SHIM: [u8; 16] = *b"\x50\xab\x5d\x60\x46\xe0\x00\x43\xab\xb6\x3d\xd8\x10\xdd\x8b\x23";
/// Shim's variables that say how it is set up, and are nobody's certificate.
const SHIM_SETTINGS: [&str; 4] = ["SbatLevel", "MokListTrusted", "MokSBState", "MokDBState"];
/// Longer values are claimed by their hash.
const MAX_SETTING_BYTES: usize = 128;

/// Bytes of an `EFI_SIGNATURE_LIST` without signatures.
const SIGNATURE_LIST_HEADER: usize = 28;

/// What firmware measures when a separator stands for an error (2.3.4 and 10.4.1).
const ERROR_SEPARATOR: [u8; 4] = 1u32.to_le_bytes();
/// What ends the part of a register that firmware measures before it looks for something to boot.
const SEPARATORS: [[u8; 4]; 2] = [[0; 4], [0xff; 4]];
/// The register of the secure boot policy.
const POLICY_PCR: u8 = 7;
/// The registers that firmware ends with a separator.
const FIRMWARE_PCRS: std::ops::RangeInclusive<u8> = 0..=7;

/// Strings that firmware measures into register 4 beside what it starts (10.4.3 and 10.4.4).
const BOOT_ACTIONS: [&[u8]; 5] = [
    b"Calling EFI Application from Boot Option",
    b"Returning from EFI Application from Boot Option",
    b"Calling INT 19h",
    b"Returned INT 19h",
    b"BOOT ATTEMPTS OMITTED",
];
const DEBUG_MODE: &[u8] = b"UEFI Debug Mode";
const DMA_UNPROTECTED: &[u8] = b"DMA Protection Disabled";
const EXIT_INVOKED: &[u8] = b"Exit Boot Services Invocation";
const EXIT_RETURNED: &[u8] = b"Exit Boot Services Returned with Success";

/// What a register's separator says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Separator {
    Normal,
    Error,
}

/// Digests by which events are known, whatever their label.
struct Known {
    separators: [Digest; 2],
    error: Digest,
    boot_actions: [Digest; BOOT_ACTIONS.len()],
    debug: [Digest; 2],
    dma: [Digest; 2],
    exit_invoked: Digest,
    exit_returned: Digest,
}

impl Known {
    fn of(bank: Bank) -> Known {
        let of = |bytes: &[u8]| bank.hash(&[bytes]);
        let string = |bytes: &[u8]| [bank.hash(&[bytes]), bank.hash(&[bytes, b"\0"])];
        Known {
            separators: SEPARATORS.map(|value| of(&value)),
            error: of(&ERROR_SEPARATOR),
            boot_actions: BOOT_ACTIONS.map(of),
            debug: string(DEBUG_MODE),
            dma: string(DMA_UNPROTECTED),
            exit_invoked: of(EXIT_INVOKED),
            exit_returned: of(EXIT_RETURNED),
        }
    }

    fn separator(&self, event: &Event<'_>, bank: Bank) -> Option<Separator> {
        if self.separators.iter().any(|separator| event.has(bank, separator)) {
            Some(Separator::Normal)
        } else if event.has(bank, &self.error) {
            Some(Separator::Error)
        } else {
            None
        }
    }
}

/// How far the end of boot services has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Exit {
    NotYet,
    Invoked,
    Returned,
}

/// What is gathered while the events go by.
struct Boot {
    bank: Bank,
    known: Known,
    /// The separators that have gone by, by register.
    separators: [Option<Separator>; 8],
    /// Events whose data is that of their digest, and those where it should be.
    recomputed: usize,
    not_recomputed: usize,
    /// What contradicts itself.
    broken: Vec<String>,
    contradictions: Vec<String>,
    /// Facts that can be stated once, with the register.
    stated: BTreeMap<&'static str, (u8, Claim)>,
    debug: bool,
    dma_unprotected: bool,
    exit: Exit,
    /// Facts that can be stated often.
    sets: BTreeMap<&'static str, BTreeSet<String>>,
}

/// Adds what the registers of `vouched` prove of the boot, and the checks of data and facts.
pub(super) fn gather(log: &EventLog<'_>, bank: Bank, vouched: PcrSet, findings: &mut Findings) {
    let mut boot = Boot {
        bank,
        known: Known::of(bank),
        separators: [None; 8],
        recomputed: 0,
        not_recomputed: 0,
        broken: Vec::new(),
        contradictions: Vec::new(),
        stated: BTreeMap::new(),
        debug: false,
        dma_unprotected: false,
        exit: Exit::NotYet,
        sets: BTreeMap::new(),
    };
    for event in log.events().iter().filter(|event| event.extends() && vouched.contains(event.pcr))
    {
        boot.event(event);
    }
    boot.report(vouched, findings);
}

impl Boot {
    fn event(&mut self, event: &Event<'_>) {
        if FIRMWARE_PCRS.contains(&event.pcr) {
            if let Some(separator) = self.known.separator(event, self.bank) {
                return self.separator(event, separator);
            }
            if event.kind == EventType::SEPARATOR {
                self.not_recomputed += 1;
                return self.note_broken(event, "a separator by its type and not by its digest");
            }
        }
        let covered = event.covered(self.bank);
        match covered {
            Covered::Data(_) => self.recomputed += 1,
            Covered::Not => self.not_recomputed += 1,
            Covered::Elsewhere => {}
        }
        match event.pcr {
            0 => self.firmware(event, covered),
            1 => self.boot_variable(event, covered),
            4 => self.boot_loader(event),
            5 => self.boot_services(event),
            POLICY_PCR => self.policy(event, covered),
            8 => self.grub_string(event, covered),
            9 => self.boot_file(event),
            12 => self.stub_string(event, covered),
            _ => {}
        }
    }

    /// Nothing behind the first separator of a register is from before it. One in register 7 under another label, or a
    /// second one, is somebody's attempt to mislead.
    fn separator(&mut self, event: &Event<'_>, separator: Separator) {
        self.recomputed += 1;
        let slot = &mut self.separators[usize::from(event.pcr)];
        let again = slot.is_some();
        slot.get_or_insert(separator);
        if event.pcr == POLICY_PCR {
            if again {
                self.note_broken(event, "a second separator");
            } else if event.kind != EventType::SEPARATOR {
                self.note_broken(event, "a separator by its digest and not by its type");
            }
        }
    }

    fn before_separator(&self, pcr: u8) -> bool {
        self.separators.get(usize::from(pcr)).is_some_and(Option::is_none)
    }

    fn note_broken(&mut self, event: &Event<'_>, what: &str) {
        self.broken
            .push(format!("event {} ({}, PCR {}) is {what}", event.number, event.kind, event.pcr));
    }

    /// Notes what firmware states once, before the separator.
    fn state(&mut self, event: &Event<'_>, name: &'static str, value: impl Into<Claim>) {
        let value = value.into();
        let (_, stated) = self.stated.entry(name).or_insert_with(|| (event.pcr, value.clone()));
        if *stated != value {
            self.contradictions.push(format!("{name} is stated twice, and not alike"));
        }
    }

    fn add(&mut self, name: &'static str, value: String) {
        self.sets.entry(name).or_default().insert(value);
    }

    fn digest(&self, event: &Event<'_>) -> String {
        hex::encode(event.digest(self.bank).unwrap_or_default())
    }

    fn firmware(&mut self, event: &Event<'_>, covered: Covered<'_>) {
        if event.kind == EventType::S_CRTM_VERSION
            && self.before_separator(event.pcr)
            && let Covered::Data(version) = covered
        {
            self.state(event, "firmware-version", version_text(version));
        }
    }

    fn boot_variable(&mut self, event: &Event<'_>, covered: Covered<'_>) {
        let variable =
            matches!(event.kind, EventType::EFI_VARIABLE_BOOT | EventType::EFI_VARIABLE_BOOT2);
        if variable && matches!(covered, Covered::Data(_)) {
            self.add("boot-variables", self.digest(event));
        }
    }

    /// Everything in register 4 that is no known string was started, whatever its label.
    fn boot_loader(&mut self, event: &Event<'_>) {
        if !self.known.boot_actions.iter().any(|action| event.has(self.bank, action)) {
            self.add("boot-loaders", self.digest(event));
        }
    }

    fn boot_services(&mut self, event: &Event<'_>) {
        if event.has(self.bank, &self.known.exit_invoked) && self.exit == Exit::NotYet {
            self.exit = Exit::Invoked;
        } else if event.has(self.bank, &self.known.exit_returned) && self.exit == Exit::Invoked {
            self.exit = Exit::Returned;
        }
    }

    /// Register 7: what decides whether images are verified, and then who vouched for those that were.
    fn policy(&mut self, event: &Event<'_>, covered: Covered<'_>) {
        let before = self.before_separator(event.pcr);
        if self.known.debug.iter().any(|debug| event.has(self.bank, debug)) {
            self.debug = true;
            return;
        }
        if self.known.dma.iter().any(|dma| event.has(self.bank, dma)) {
            self.dma_unprotected = true;
            return;
        }
        let Covered::Data(data) = covered else {
            return self.note_broken(event, "not what its digest covers");
        };
        match event.kind {
            EventType::EFI_ACTION if before && is_printable(data) => {}
            // A device's policy is a variable too, and of another vendor: nothing can hide under its type.
            EventType::EFI_SPDM_DEVICE_POLICY | EventType::EFI_SPDM_DEVICE_AUTHORITY
                if Variable::parse(data)
                    .is_ok_and(|variable| ![GLOBAL, SECURITY, SHIM].contains(&variable.vendor)) => {
            }
            EventType::EFI_VARIABLE_DRIVER_CONFIG | EventType::EFI_VARIABLE_AUTHORITY => {
                match Variable::parse(data) {
                    Ok(variable) if before => self.variable_before(event, &variable),
                    Ok(variable) => self.authority(&variable),
                    Err(_) => self.note_broken(event, "not a variable"),
                }
            }
            _ => self.note_broken(event, "nothing that belongs there"),
        }
    }

    /// Before the separator there are both the policy and the authorities of drivers, under labels that nothing covers:
    /// what it is must show.
    fn variable_before(&mut self, event: &Event<'_>, variable: &Variable<'_>) {
        let authority = match variable.vendor {
            SECURITY => !is_signature_database(variable.data),
            vendor => vendor == SHIM,
        };
        match (event.kind == EventType::EFI_VARIABLE_AUTHORITY, authority) {
            (true, true) => self.authority(variable),
            (false, false) => self.policy_variable(event, variable),
            _ => self.note_broken(
                event,
                "a policy that calls itself an authority, or the other way round",
            ),
        }
    }

    fn policy_variable(&mut self, event: &Event<'_>, variable: &Variable<'_>) {
        let name = variable.name().unwrap_or_default();
        match (variable.vendor, name.as_str()) {
            (GLOBAL, "SecureBoot") => {
                let on = match variable.data {
                    // What does not exist is measured as if it were empty.
                    [] | [0] => false,
                    [1] => true,
                    _ => return self.note_broken(event, "a SecureBoot that is neither on nor off"),
                };
                self.state(event, "secure-boot", on);
            }
            (GLOBAL, "PK") => self.state(event, "secure-boot-pk", self.digest(event)),
            (GLOBAL, "KEK") => self.state(event, "secure-boot-kek", self.digest(event)),
            (SECURITY, "db") => self.state(event, "secure-boot-db", self.digest(event)),
            (SECURITY, "dbx") => self.state(event, "secure-boot-dbx", self.digest(event)),
            _ => {}
        }
    }

    fn authority(&mut self, variable: &Variable<'_>) {
        let name = variable.name().unwrap_or_default();
        if variable.vendor == SHIM && SHIM_SETTINGS.contains(&name.as_str()) {
            let value = match variable.data {
                long if long.len() > MAX_SETTING_BYTES => format!("sha256:{}", sha256(long)),
                short => hex::encode(short),
            };
            return self.add("shim-settings", format!("{name}={value}"));
        }
        let signed_by = certificate(variable.data).unwrap_or(variable.data);
        self.add("boot-authorities", sha256(signed_by));
    }

    fn grub_string(&mut self, event: &Event<'_>, covered: Covered<'_>) {
        let labelled = [KERNEL_COMMAND_LINE, KERNEL_COMMAND_LINE_OLD]
            .iter()
            .any(|prefix| event.data.starts_with(prefix));
        if event.kind == EventType::IPL
            && labelled
            && let Covered::Data(line) = covered
        {
            let line = line.strip_suffix(b"\0").unwrap_or(line);
            self.add("kernel-command-lines", bytes_text(line));
        }
    }

    /// Register 12: what systemd's stub gives the kernel it carries, in UTF-16.
    fn stub_string(&mut self, event: &Event<'_>, covered: Covered<'_>) {
        if event.kind == EventType::IPL
            && let Covered::Data(line) = covered
            && let Some(line) = utf16(line)
            && let Some(line) = line.strip_suffix('\0')
        {
            self.add("kernel-command-lines", line.to_owned());
        }
    }

    /// Everything in register 9, whatever its label; what is labelled as a kernel is named apart.
    fn boot_file(&mut self, event: &Event<'_>) {
        let digest = self.digest(event);
        if event.kind == EventType::IPL && names_kernel(event.data) {
            self.add("kernel-digests", digest.clone());
        }
        self.add("boot-files", digest);
    }

    fn report(mut self, vouched: PcrSet, findings: &mut Findings) {
        let counted = format!(
            "{} events are what their digests cover; {} are not, and do not count",
            self.recomputed, self.not_recomputed
        );
        match self.broken.first() {
            None => findings.passed(super::DATA, counted),
            Some(first) => {
                findings.failed(super::DATA, format!("{first}; {} such", self.broken.len()));
            }
        }
        match self.contradictions.first() {
            None => findings.passed(super::FACTS, "none is stated twice and not alike"),
            Some(first) => findings.failed(super::FACTS, first),
        }
        // Without a separator nobody knows what is from before it, and after one for an error nothing is sure.
        for (name, (pcr, claim)) in std::mem::take(&mut self.stated) {
            if self.separators.get(usize::from(pcr)) == Some(&Some(Separator::Normal)) {
                findings.claim(name, claim);
            }
        }
        if self.separators[usize::from(POLICY_PCR)].is_some() {
            findings.claim("uefi-debug", self.debug);
            findings.claim("dma-protection-disabled", self.dma_unprotected);
        }
        if vouched.contains(5) {
            findings.claim("exit-boot-services", self.exit == Exit::Returned);
        }
        let errors = self.separators.contains(&Some(Separator::Error));
        if FIRMWARE_PCRS.into_iter().all(|pcr| vouched.contains(pcr)) {
            findings.claim("firmware-error", errors);
        } else if errors {
            findings.claim("firmware-error", true);
        }
        for (name, set) in std::mem::take(&mut self.sets) {
            findings.claim(name, set);
        }
    }
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// The certificate in an authority: as `EFI_SIGNATURE_DATA` holds it behind its owner, or on its own, as shim writes it.
fn certificate(data: &[u8]) -> Option<&[u8]> {
    let owned = data.get(16..);
    [Some(data), owned].into_iter().flatten().find(|bytes| is_der_sequence(bytes))
}

/// Whether these bytes are `EFI_SIGNATURE_LIST`s to their end (UEFI, 32.4.1), as `db` holds them; none is an empty
/// database. An authority is a single `EFI_SIGNATURE_DATA`.
fn is_signature_database(mut data: &[u8]) -> bool {
    while !data.is_empty() {
        let mut list = Reader::new(data);
        let size = list.array::<16>("signatureType").and_then(|_| list.u32_le("signatureListSize"));
        let size = size.ok().and_then(|size| usize::try_from(size).ok());
        match size.filter(|size| *size >= SIGNATURE_LIST_HEADER).and_then(|size| data.get(size..)) {
            Some(rest) => data = rest,
            None => return false,
        }
    }
    true
}

/// Whether these bytes are one DER sequence of more than 255 bytes to its end.
fn is_der_sequence(bytes: &[u8]) -> bool {
    match bytes {
        [0x30, 0x82, high, low, rest @ ..] => {
            rest.len() == usize::from(u16::from_be_bytes([*high, *low]))
        }
        _ => false,
    }
}

fn is_printable(bytes: &[u8]) -> bool {
    let text = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    text.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ')
}

/// A version as text, if it is some; else in hexadecimal, as some firmware gives a GUID.
fn version_text(version: &[u8]) -> String {
    let text = utf16(version).map(|text| text.trim_end_matches('\0').to_owned());
    let plain = text.filter(|text| text.chars().all(|c| c.is_ascii_graphic() || c == ' '));
    plain.unwrap_or_else(|| hex::encode(version))
}

/// Text as it stands; bytes that are none are escaped.
fn bytes_text(bytes: &[u8]) -> String {
    std::str::from_utf8(bytes)
        .map_or_else(|_| bytes.escape_ascii().to_string(), std::borrow::ToOwned::to_owned)
}

/// Whether a label of GRUB's is one of a kernel: a path to `vmlinuz…` and the like, or that of an older GRUB.
fn names_kernel(label: &[u8]) -> bool {
    let label = label.strip_suffix(b"\0").unwrap_or(label);
    let file = label.rsplit(|byte| *byte == b'/').next().unwrap_or(label);
    label == b"grub_linuxefi Kernel"
        || [&b"vmlinu"[..], b"bzImage", b"Image", b"linux"]
            .iter()
            .any(|name| file.starts_with(name))
}
