use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::evidence::Pcrs;
use crate::findings::{Claim, Outcome};
use crate::testdata;

const SM3: u16 = 0x0012;
const GLOBAL: &[u8; 16] = b"\x61\xdf\xe4\x8b\xca\x93\xd2\x11\xaa\x0d\x00\xe0\x98\x03\x2b\x8c";
const SECURITY: &[u8; 16] = b"\xcb\xb2\x19\xd7\x3a\x3d\x96\x45\xa3\xbc\xda\xd0\x0e\x67\x65\x6f";
const SHIM: &[u8; 16] = b"\x50\xab\x5d\x60\x46\xe0\x00\x43\xab\xb6\x3d\xd8\x10\xdd\x8b\x23";

/// An event as a test wants it: what was measured, and what is logged of it.
#[derive(Clone)]
struct Made {
    pcr: u32,
    kind: EventType,
    measured: Vec<u8>,
    data: Vec<u8>,
}

fn measured(pcr: u32, kind: EventType, data: impl Into<Vec<u8>>) -> Made {
    let data = data.into();
    Made { pcr, kind, measured: data.clone(), data }
}

fn labelled(pcr: u32, kind: EventType, bytes: &[u8], label: &[u8]) -> Made {
    Made { pcr, kind, measured: bytes.to_vec(), data: label.to_vec() }
}

fn u32s(value: usize) -> [u8; 4] {
    u32::try_from(value).unwrap().to_le_bytes()
}

fn legacy(event: &Made) -> Vec<u8> {
    let digest = match event.kind {
        EventType::NO_ACTION => Bank::Sha1.filled(0),
        _ => Bank::Sha1.hash(&[&event.measured]),
    };
    [
        &event.pcr.to_le_bytes()[..],
        &event.kind.0.to_le_bytes(),
        digest.as_bytes(),
        &u32s(event.data.len()),
        &event.data,
    ]
    .concat()
}

/// A header that declares SHA-1, SHA-256 and one algorithm that is not known.
fn spec_id() -> Vec<u8> {
    let mut data = b"Spec ID Event03\0\0\0\0\0\0\x02\0\x02\x03\0\0\0".to_vec();
    for (algorithm, size) in [(Bank::Sha1.algorithm(), 20u16), (SM3, 32), (0x000b, 32)] {
        data.extend(algorithm.to_le_bytes());
        data.extend(size.to_le_bytes());
    }
    data.push(0);
    data
}

fn agile(event: &Made) -> Vec<u8> {
    let mut out = [&event.pcr.to_le_bytes()[..], &event.kind.0.to_le_bytes(), &u32s(3)].concat();
    let digest = |bank: Bank| match event.kind {
        EventType::NO_ACTION => bank.filled(0),
        _ => bank.hash(&[&event.measured]),
    };
    out.extend(Bank::Sha1.algorithm().to_le_bytes());
    out.extend(digest(Bank::Sha1).as_bytes());
    out.extend(SM3.to_le_bytes());
    out.extend([0x33; 32]);
    out.extend(Bank::Sha256.algorithm().to_le_bytes());
    out.extend(digest(Bank::Sha256).as_bytes());
    out.extend(u32s(event.data.len()));
    out.extend(&event.data);
    out
}

fn log_of(events: &[Made]) -> Vec<u8> {
    let header = legacy(&measured(0, EventType::NO_ACTION, spec_id()));
    events.iter().fold(header, |log, event| [log, agile(event)].concat())
}

fn utf16le(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

fn variable(vendor: &[u8; 16], name: &str, data: &[u8]) -> Vec<u8> {
    let name = utf16le(name);
    let units = (name.len() as u64 / 2).to_le_bytes();
    [&vendor[..], &units, &(data.len() as u64).to_le_bytes(), &name, data].concat()
}

fn separator(pcr: u32) -> Made {
    measured(pcr, EventType::SEPARATOR, [0; 4])
}

fn secure_boot(on: bool) -> Made {
    let value = variable(GLOBAL, "SecureBoot", &[u8::from(on)]);
    measured(7, EventType::EFI_VARIABLE_DRIVER_CONFIG, value)
}

/// An `EFI_SIGNATURE_LIST`.
fn database(signatures: &[u8]) -> Vec<u8> {
    [&[5; 16][..], &u32s(28 + signatures.len()), &[0; 8], signatures].concat()
}

fn certificate() -> Vec<u8> {
    [&[0x30, 0x82, 0x01, 0x00][..], &[7; 256]].concat()
}

/// A boot in which everything happens that a claim is made of.
fn boot() -> Vec<Made> {
    let signature = [&[9; 16][..], &certificate()].concat();
    let config = EventType::EFI_VARIABLE_DRIVER_CONFIG;
    let mut events = vec![
        measured(0, EventType::S_CRTM_VERSION, utf16le("Firmware 7\0")),
        labelled(0, EventType::POST_CODE, b"the firmware's code", b"ACPI DATA"),
        secure_boot(true),
        measured(7, config, variable(GLOBAL, "PK", b"pk")),
        measured(7, config, variable(GLOBAL, "KEK", b"kek")),
        measured(7, config, variable(SECURITY, "db", &database(b"db"))),
        measured(7, config, variable(SECURITY, "dbx", &database(b"dbx"))),
        separator(7),
        labelled(1, EventType::EFI_VARIABLE_BOOT, &[1, 0], &variable(GLOBAL, "BootOrder", &[1, 0])),
        measured(1, EventType::EFI_VARIABLE_BOOT2, variable(GLOBAL, "Boot0001", b"disk")),
        measured(4, EventType::EFI_ACTION, "Calling EFI Application from Boot Option"),
    ];
    events.extend((0..=6).map(separator));
    let quirk = [variable(SHIM, "Shim", &certificate()), vec![0xaf]].concat();
    let application = EventType::EFI_BOOT_SERVICES_APPLICATION;
    events.extend([
        measured(5, EventType::EFI_GPT_EVENT, "EFI PART"),
        measured(7, EventType::EFI_VARIABLE_AUTHORITY, variable(SECURITY, "db", &signature)),
        labelled(4, application, b"shim's image", b"a path"),
        measured(7, EventType::EFI_VARIABLE_AUTHORITY, variable(SHIM, "MokSBState", &[1])),
        labelled(7, EventType::EFI_VARIABLE_AUTHORITY, &quirk[..quirk.len() - 1], &quirk),
        labelled(14, EventType::IPL, b"keys", b"MokList\0"),
        labelled(4, application, b"grub's image", b"a path"),
        labelled(9, EventType::IPL, b"menu", b"(hd0,gpt1)/grub.cfg\0"),
        labelled(8, EventType::IPL, b"insmod part_gpt", b"grub_cmd: insmod part_gpt\0"),
        labelled(9, EventType::IPL, b"a kernel", b"/boot/vmlinuz-6.1\0"),
        labelled(8, EventType::IPL, b"/vmlinuz ro", b"kernel_cmdline: /vmlinuz ro\0"),
        labelled(8, EventType::IPL, b"/vmlinuz rw\0", b"kernel_cmdline: /vmlinuz rw\0"),
        measured(12, EventType::IPL, utf16le("quiet\0")),
        measured(5, EventType::EFI_ACTION, "Exit Boot Services Invocation"),
        measured(5, EventType::EFI_ACTION, "Exit Boot Services Returned with Success"),
    ]);
    events
}

/// What registers hold after a log: what a TPM would have quoted.
fn values_of(log: &[u8], bank: Bank) -> BankValues {
    let registers = EventLog::parse(log).unwrap().replay(bank).unwrap();
    let mut values = BankValues::new(bank);
    for pcr in 0..PcrSet::COUNT {
        values.insert(pcr, registers.value(pcr).unwrap().as_bytes()).unwrap();
    }
    values
}

/// What a TPM says of a boot in which `events` were measured, and a log of them that was edited.
fn edited(events: &[Made], edit: impl FnOnce(&mut Vec<Made>)) -> Findings {
    let values = values_of(&log_of(events), Bank::Sha256);
    let mut edited = events.to_vec();
    edit(&mut edited);
    verify(&log_of(&edited), Some(&values))
}

fn untouched(events: &[Made]) -> Findings {
    edited(events, |_| {})
}

fn place(events: &[Made], what: &[u8]) -> usize {
    events.iter().position(|event| event.data.ends_with(what)).unwrap()
}

fn texts<const N: usize>(values: [String; N]) -> Claim {
    Claim::Texts(BTreeSet::from(values))
}

fn sha256(bytes: &[u8]) -> String {
    Bank::Sha256.hash(&[bytes]).to_string()
}

#[test]
fn a_policy_sees_what_was_booted() {
    let found = untouched(&boot());
    let passed = ["log format", "replay", "event data", "facts"];
    assert_eq!(found.all_passed(), BTreeSet::from(passed), "{found:?}");
    let boot_order = sha256(&[1, 0]);
    let wanted: Vec<(&str, Claim)> = vec![
        ("firmware-version", "Firmware 7".into()),
        ("bank", "SHA-256".into()),
        ("firmware-error", false.into()),
        ("secure-boot", true.into()),
        ("secure-boot-pk", sha256(&variable(GLOBAL, "PK", b"pk")).into()),
        ("secure-boot-kek", sha256(&variable(GLOBAL, "KEK", b"kek")).into()),
        ("secure-boot-db", sha256(&variable(SECURITY, "db", &database(b"db"))).into()),
        ("secure-boot-dbx", sha256(&variable(SECURITY, "dbx", &database(b"dbx"))).into()),
        ("boot-variables", texts([boot_order, sha256(&variable(GLOBAL, "Boot0001", b"disk"))])),
        ("boot-authorities", texts([sha256(&certificate())])),
        ("shim-settings", texts(["MokSBState=01".into()])),
        ("boot-loaders", texts([sha256(b"shim's image"), sha256(b"grub's image")])),
        ("boot-files", texts([sha256(b"menu"), sha256(b"a kernel")])),
        ("kernel-digests", texts([sha256(b"a kernel")])),
        (
            "kernel-command-lines",
            texts(["/vmlinuz ro".into(), "/vmlinuz rw".into(), "quiet".into()]),
        ),
        ("uefi-debug", false.into()),
        ("dma-protection-disabled", false.into()),
        ("exit-boot-services", true.into()),
    ];
    assert_eq!(found.claims, wanted.into_iter().collect());
}

#[test]
fn a_log_without_register_values_is_hearsay() {
    let found = verify(&log_of(&boot()), None);
    assert_eq!(found.outcome("replay"), Outcome::NotChecked);
    assert_eq!(found.claims["secure-boot"], Claim::Bool(true));
    let none = BankValues::new(Bank::Sha1);
    assert_eq!(verify(&log_of(&boot()), Some(&none)).outcome("replay"), Outcome::NotChecked);
}

#[test]
fn what_no_quoted_register_vouches_for_is_not_claimed() {
    let log = log_of(&boot());
    let all = values_of(&log, Bank::Sha256);
    let mut some = BankValues::new(Bank::Sha256);
    some.insert(4, all.value(4).unwrap().as_bytes()).unwrap();
    let found = verify(&log, Some(&some));
    assert_eq!(found.outcome("replay"), Outcome::Passed);
    assert_eq!(found.claims.keys().collect::<Vec<_>>(), [&"bank", &"boot-loaders"]);
    // A register that holds something else vouches for nothing, and the others still do.
    some.insert(7, &[1; 32]).unwrap();
    let found = verify(&log, Some(&some));
    assert_eq!(found.outcome("replay"), Outcome::Failed);
    assert_eq!(found.claims.keys().collect::<Vec<_>>(), [&"bank", &"boot-loaders"]);
}

#[test]
fn quoted_registers_of_the_sha256_bank_are_values() {
    let log = log_of(&boot());
    let registers = EventLog::parse(&log).unwrap().replay(Bank::Sha256).unwrap();
    let value = |pcr| registers.value(pcr).unwrap().as_bytes().try_into().unwrap();
    let mut pcrs: Pcrs = (0..8).map(|pcr| (pcr, value(pcr))).collect();
    assert_eq!(verify(&log, Some(&(&pcrs).into())).worst(), Outcome::Passed);
    pcrs.insert(3, [9; 32]);
    assert_eq!(verify(&log, Some(&(&pcrs).into())).outcome("replay"), Outcome::Failed);
}

/// What runs after the boot extends registers too: a register that the log knows nothing of must be as it was at reset.
#[test]
fn a_register_that_the_log_does_not_extend_holds_its_initial_value() {
    let log = log_of(&boot());
    for (pcr, byte, outcome) in [
        (11, 0, Outcome::Passed),
        (11, 1, Outcome::Failed),
        (16, 0, Outcome::Passed),
        (17, 0xff, Outcome::Passed),
        (17, 0, Outcome::Failed),
        (22, 0xff, Outcome::Passed),
        (23, 0, Outcome::Passed),
        (23, 0xff, Outcome::Failed),
    ] {
        let mut values = BankValues::new(Bank::Sha256);
        values.insert(pcr, &[byte; 32]).unwrap();
        assert_eq!(verify(&log, Some(&values)).outcome("replay"), outcome, "{pcr} {byte}");
    }
}

#[test]
fn values_that_are_no_registers_are_refused() {
    let mut values = BankValues::new(Bank::Sha256);
    assert!(values.insert(24, &[0; 32]).is_err());
    assert!(values.insert(0, &[0; 20]).is_err());
    assert!(values.is_empty());
    assert!(BankValues::from(&Pcrs::from([(24, [0; 32])])).is_empty());
}

#[test]
fn a_bank_that_the_log_has_no_digests_for_is_not_replayed() {
    let values = values_of(&log_of(&boot()), Bank::Sha1);
    assert_eq!(verify(&log_of(&boot()), Some(&values)).worst(), Outcome::Passed);
    let mut values = BankValues::new(Bank::Sha384);
    values.insert(0, &[0; 48]).unwrap();
    let found = verify(&log_of(&boot()), Some(&values));
    assert_eq!(found.outcome("replay"), Outcome::Failed);
    assert!(found.claims.is_empty());
}

/// Types are not covered by digests. Whoever edits the log can call the separator something else, so that what the running
/// system has extended seems to be from before it.
#[test]
fn a_system_cannot_state_secure_boot_after_the_separator() {
    let mut events = vec![separator(7), secure_boot(true)];
    assert_eq!(untouched(&events).claims.get("secure-boot"), None);
    let relabelled = edited(&events, |events| events[0].kind = EventType::EFI_ACTION);
    assert_eq!(relabelled.claims.get("secure-boot"), None);
    assert_eq!(relabelled.outcome("event data"), Outcome::Failed);
    // Nor with a separator of its own behind it.
    events.push(separator(7));
    let found = untouched(&events);
    assert_eq!(found.claims.get("secure-boot"), None);
    assert_eq!(found.outcome("event data"), Outcome::Failed);
    // Without any separator nobody knows what is from before it.
    let db = variable(SECURITY, "db", &database(b"db"));
    let found = untouched(&[
        measured(0, EventType::S_CRTM_VERSION, utf16le("Firmware 7\0")),
        secure_boot(true),
        measured(7, EventType::EFI_VARIABLE_DRIVER_CONFIG, db),
    ]);
    assert_eq!(found.worst(), Outcome::Passed);
    let named = BTreeSet::from(["bank", "exit-boot-services", "firmware-error"]);
    assert_eq!(found.claims.into_keys().collect::<BTreeSet<_>>(), named);
}

#[test]
fn what_only_calls_itself_a_separator_ends_nothing() {
    for pcr in [0, 4, 7] {
        let mut events = boot();
        events.insert(0, labelled(pcr, EventType::SEPARATOR, b"firmware", &[0; 4]));
        let found = untouched(&events);
        assert_eq!(found.outcome("event data"), Outcome::Failed, "PCR {pcr}");
        assert_eq!(found.outcome("replay"), Outcome::Passed);
    }
}

#[test]
fn a_separator_that_stands_for_an_error_is_no_secure_boot() {
    let mut events = boot();
    let at = place(&events, &[0; 4]);
    events[at] = measured(7, EventType::SEPARATOR, 1u32.to_le_bytes());
    let found = untouched(&events);
    assert_eq!(found.claims.get("secure-boot"), None);
    assert_eq!(found.claims["firmware-error"], Claim::Bool(true));
}

#[test]
fn secure_boot_that_is_off_cannot_be_written_on_in_the_log() {
    let mut events = boot();
    events[2] = secure_boot(false);
    assert_eq!(untouched(&events).claims["secure-boot"], Claim::Bool(false));
    let found = edited(&events, |events| events[2].data = secure_boot(true).data);
    assert_eq!(found.outcome("replay"), Outcome::Passed, "data is not extended");
    assert_eq!(found.outcome("event data"), Outcome::Failed);
    assert_eq!(found.claims.get("secure-boot"), None);
}

#[test]
fn secure_boot_that_is_on_and_off_is_a_contradiction() {
    let mut events = boot();
    events.insert(3, secure_boot(false));
    let found = untouched(&events);
    assert_eq!(found.outcome("facts"), Outcome::Failed, "{found:?}");
    let mut events = boot();
    events.insert(1, measured(0, EventType::S_CRTM_VERSION, utf16le("Firmware 8\0")));
    assert_eq!(untouched(&events).outcome("facts"), Outcome::Failed);
}

#[test]
fn debug_mode_is_found_under_any_label() {
    let mut events = boot();
    events.insert(0, measured(7, EventType::EFI_ACTION, "UEFI Debug Mode"));
    assert_eq!(untouched(&events).claims["uefi-debug"], Claim::Bool(true));
    for kind in [EventType::IPL, EventType::EVENT_TAG, EventType::EFI_BOOT_SERVICES_DRIVER] {
        let found = edited(&events, |events| {
            events[0].kind = kind;
            events[0].data = b"nothing of interest".to_vec();
        });
        assert_eq!(found.outcome("replay"), Outcome::Passed);
        assert_eq!(found.claims["uefi-debug"], Claim::Bool(true), "{kind}");
    }
}

/// The digest of an image is that of the image's bytes: whoever has them can present them as the data of any event.
#[test]
fn a_boot_loader_cannot_be_hidden_under_another_label() {
    let events = boot();
    let at = events.iter().position(|event| event.measured == b"grub's image").unwrap();
    let (all, authorities) = {
        let found = untouched(&events);
        (found.claims["boot-loaders"].clone(), found.claims["boot-authorities"].clone())
    };
    for kind in [EventType::EFI_ACTION, EventType::ACTION, EventType::SEPARATOR, EventType::IPL] {
        let found = edited(&events, |events| {
            events[at].kind = kind;
            events[at].data = events[at].measured.clone();
        });
        let seen = found.claims["boot-loaders"] == all;
        assert!(seen || found.worst() == Outcome::Failed, "{kind}");
    }
    let at = place(&events, &certificate());
    for kind in [
        EventType::EFI_ACTION,
        EventType::IPL,
        EventType::EFI_VARIABLE_DRIVER_CONFIG,
        EventType::EFI_SPDM_DEVICE_AUTHORITY,
    ] {
        let found = edited(&events, |events| events[at].kind = kind);
        let seen = found.claims.get("boot-authorities") == Some(&authorities);
        assert!(seen || found.worst() == Outcome::Failed, "{kind}");
    }
}

/// Before the separator the databases and what a driver was verified with are both variables, and only labels tell
/// them apart.
#[test]
fn a_database_is_no_authority_and_an_authority_no_database() {
    let mut events = boot();
    let signature = [&[9; 16][..], &certificate()].concat();
    let db = variable(SECURITY, "db", &signature);
    events.insert(7, measured(7, EventType::EFI_VARIABLE_AUTHORITY, db));
    assert_eq!(untouched(&events).worst(), Outcome::Passed);
    for (at, kind) in [
        (2, EventType::EFI_VARIABLE_AUTHORITY),
        (5, EventType::EFI_VARIABLE_AUTHORITY),
        (7, EventType::EFI_VARIABLE_DRIVER_CONFIG),
    ] {
        let found = edited(&events, |events| events[at].kind = kind);
        assert_eq!(found.outcome("event data"), Outcome::Failed, "{at}");
    }
}

/// Newer firmware measures how devices prove who they are.
#[test]
fn a_policy_for_devices_is_no_contradiction() {
    let mut events = boot();
    let policy = variable(&[4; 16], "devdb", b"policy");
    events.insert(3, measured(7, EventType::EFI_SPDM_DEVICE_POLICY, policy));
    assert_eq!(untouched(&events).worst(), Outcome::Passed);
    events[3] = measured(7, EventType::EFI_SPDM_DEVICE_POLICY, "no variable");
    assert_eq!(untouched(&events).outcome("event data"), Outcome::Failed);
}

/// Whoever has a string that was measured as it stands can put a label of GRUB's before it.
#[test]
fn only_what_a_boot_loader_labels_is_a_command_line() {
    let action = measured(8, EventType::EFI_ACTION, "kernel_cmdline: rw");
    let ascii = measured(12, EventType::IPL, "quiet!");
    let found = untouched(&[action, ascii]);
    assert_eq!(found.claims.get("kernel-command-lines"), None);
}

#[test]
fn a_command_line_that_was_not_measured_does_not_count() {
    let events = boot();
    let at = place(&events, b"kernel_cmdline: /vmlinuz ro\0");
    let found = edited(&events, |events| {
        events[at].data = b"kernel_cmdline: /vmlinuz lockdown\0".to_vec();
    });
    assert_eq!(found.worst(), Outcome::Passed);
    let wanted = texts(["/vmlinuz rw".into(), "quiet".into()]);
    assert_eq!(found.claims["kernel-command-lines"], wanted);
}

#[test]
fn register_0_begins_with_the_locality_of_the_start() {
    let locality =
        |byte: u8| measured(0, EventType::NO_ACTION, [&b"StartupLocality\0"[..], &[byte]].concat());
    let version = measured(0, EventType::S_CRTM_VERSION, "v");
    let hcrtm = labelled(0, EventType::EFI_HCRTM_EVENT, b"microcode", b"HCRTM");
    let register_0 = |events: &[Made]| {
        let log = log_of(events);
        let registers = EventLog::parse(&log).unwrap().replay(Bank::Sha256);
        registers.map(|registers| registers.value(0).unwrap())
    };
    let from = |last: u8, measured: &[&[u8]]| {
        let begin = Bank::Sha256.filled(0).with_last(last);
        measured.iter().fold(begin, |value, bytes| {
            value.extended(Bank::Sha256, Bank::Sha256.hash(&[bytes]).as_bytes())
        })
    };
    assert_eq!(register_0(std::slice::from_ref(&version)), Ok(from(0, &[b"v"])));
    assert_eq!(register_0(&[locality(3), version.clone()]), Ok(from(3, &[b"v"])));
    assert_eq!(register_0(&[locality(3)]), Ok(from(3, &[])));
    assert_eq!(register_0(&[separator(1), locality(0), version.clone()]), Ok(from(0, &[b"v"])));
    let measured: [&[u8]; 2] = [b"microcode", b"v"];
    assert_eq!(register_0(&[hcrtm.clone(), version.clone()]), Ok(from(4, &measured)));
    assert_eq!(register_0(&[locality(4), hcrtm, version.clone()]), Ok(from(4, &measured)));
    for wrong in [
        &[locality(1), version.clone()][..],
        &[version.clone(), locality(3)],
        &[locality(3), locality(3), version.clone()],
        &[measured_locality_without_byte(), version],
    ] {
        assert!(matches!(register_0(wrong), Err(Refusal::Locality { .. })));
    }
}

fn measured_locality_without_byte() -> Made {
    measured(0, EventType::NO_ACTION, &b"StartupLocality\0"[..])
}

#[test]
fn a_legacy_log_is_replayed_in_the_sha1_bank() {
    let header =
        measured(0, EventType::NO_ACTION, &b"Spec ID Event02\0\0\0\0\0\0\x02\x01\x02\0"[..]);
    for with_header in [false, true] {
        let head = if with_header { legacy(&header) } else { Vec::new() };
        let log = boot().iter().fold(head, |log, event| [log, legacy(event)].concat());
        let parsed = EventLog::parse(&log).unwrap();
        assert_eq!((parsed.format(), parsed.banks()), (Format::Legacy, &[Bank::Sha1][..]));
        let found = verify(&log, Some(&values_of(&log, Bank::Sha1)));
        assert_eq!(found.worst(), Outcome::Passed);
        assert_eq!(found.claims["secure-boot"], Claim::Bool(true));
    }
}

#[test]
fn a_log_that_cannot_be_says_where() {
    let refusal = |log: &[u8]| EventLog::parse(log).unwrap_err();
    assert_eq!(refusal(&[]), Refusal::Empty);
    assert_eq!(refusal(&vec![0; MAX_BYTES + 1]), Refusal::TooLarge(MAX_BYTES + 1));
    let good = log_of(&[separator(0), separator(1)]);
    let one = log_of(&[separator(0)]).len();
    assert_eq!(refusal(&good[..good.len() - 1]), Refusal::Event { event: 2, field: "event" });
    assert_eq!(refusal(&good[..one + 3]), Refusal::Event { event: 2, field: "pcrIndex" });
    let with = |at: usize, byte: u8| {
        let mut log = good.clone();
        log[at] = byte;
        EventLog::parse(&log).unwrap_err()
    };
    assert_eq!(with(one, 24), Refusal::Register { event: 2, pcr: 24 });
    assert_eq!(with(one + 8, 4), Refusal::Event { event: 2, field: "digests.count" });
    assert_eq!(with(one + 12, 9), Refusal::Algorithm { event: 2, algorithm: 9 });
    assert_eq!(with(one + 12, 11), {
        // A SHA-256 digest in the place of a SHA-1 one: the next algorithm is read from within a digest.
        let inner = Bank::Sha256.algorithm();
        let Refusal::Algorithm { event: 2, algorithm } = with(one + 12, 11) else { panic!() };
        assert_ne!(algorithm, inner);
        Refusal::Algorithm { event: 2, algorithm }
    });
    let header = |data: &[u8]| refusal(&legacy(&measured(0, EventType::NO_ACTION, data)));
    assert_eq!(header(b"StartupLocality\0\x03"), Refusal::Header("signature"));
    assert_eq!(header(b"Spec"), Refusal::Header("signature"));
    let spec = spec_id();
    assert_eq!(header(&spec[..spec.len() - 1]), Refusal::Header("vendorInfoSize"));
    assert_eq!(header(&[&spec[..], &[0]].concat()), Refusal::Header("the end of the header"));
    let changed = |at: usize, byte: u8| {
        let mut spec = spec_id();
        spec[at] = byte;
        header(&spec)
    };
    assert_eq!(changed(24, 0), Refusal::Header("numberOfAlgorithms"));
    assert_eq!(changed(27, 1), Refusal::Header("numberOfAlgorithms"));
    assert_eq!(changed(30, 21), Refusal::Header("digestSizes.digestSize"));
    assert_eq!(changed(32, 4), Refusal::Header("digestSizes.algorithmId"));
}

#[test]
fn a_log_of_more_events_than_any_boot_has_is_refused() {
    let event = agile(&separator(0));
    let mut log = log_of(&[]);
    for _ in 1..MAX_EVENTS {
        log.extend(&event);
    }
    assert_eq!(EventLog::parse(&log).unwrap().events().len(), MAX_EVENTS);
    log.extend(&event);
    assert_eq!(EventLog::parse(&log).unwrap_err(), Refusal::TooManyEvents);
}

#[test]
fn an_event_without_a_digest_for_the_bank_is_named() {
    let mut log = log_of(&[separator(0)]);
    log.extend([&[0; 4][..], &EventType::SEPARATOR.0.to_le_bytes(), &u32s(0), &u32s(0)].concat());
    let log = EventLog::parse(&log).unwrap();
    let refusal = log.replay(Bank::Sha256).unwrap_err();
    assert_eq!(refusal, Refusal::NoDigest { event: 2, bank: Bank::Sha256 });
}

/// Every byte of a log: either the registers say otherwise, or the log contradicts itself, or what it says is what it said,
/// or less.
#[test]
fn no_changed_byte_of_a_log_makes_it_claim_more() {
    let log = log_of(&boot());
    let values = values_of(&log, Bank::Sha256);
    let before = verify(&log, Some(&values));
    for at in 0..log.len() {
        for flip in [0x01, 0x80] {
            let mut changed = log.clone();
            changed[at] ^= flip;
            let after = verify(&changed, Some(&values));
            assert_no_more(&before, &after, &format!("byte {at} flipped by {flip:#x}"));
        }
    }
}

#[test]
fn no_changed_digest_replays() {
    let events = boot();
    let values = values_of(&log_of(&events), Bank::Sha256);
    let mut at = log_of(&[]).len();
    for event in &events {
        let digest = at + 12 + 2 + 20 + 2 + 32 + 2;
        for byte in digest..digest + 32 {
            let mut log = log_of(&events);
            log[byte] ^= 0x10;
            assert_eq!(verify(&log, Some(&values)).outcome("replay"), Outcome::Failed);
        }
        at += agile(event).len();
    }
}

/// Claims of `after` are those of `before`, or some of them, unless a check has failed.
fn assert_no_more(before: &Findings, after: &Findings, what: &str) {
    if after.worst() == Outcome::Failed {
        return;
    }
    for (name, claim) in &after.claims {
        match (claim, before.claims.get(name)) {
            (Claim::Texts(now), Some(Claim::Texts(was))) => {
                assert!(now.is_subset(was), "{what}: {name}");
            }
            (now, was) => assert_eq!(Some(now), was, "{what}: {name}"),
        }
    }
}

fn hex_of(value: &serde_json::Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

/// The log of a shielded virtual machine, and its registers 0 to 9 in each bank. Register 10 is the kernel's.
fn real_boot() -> Option<(Vec<u8>, Vec<BankValues>)> {
    let json = testdata::read("tpm/gce-cos-85-nonce9009.json")?;
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let banks = json["quotes"].as_array().unwrap().iter().map(|quote| {
        let algorithm = quote["hash_alg_tpm_id"].as_u64().unwrap();
        let bank = Bank::of_algorithm(u16::try_from(algorithm).unwrap()).unwrap();
        let mut values = BankValues::new(bank);
        for (pcr, value) in quote["pcrs"].as_object().unwrap() {
            let pcr = pcr.parse().unwrap();
            if pcr != 10 {
                values.insert(pcr, &hex_of(value)).unwrap();
            }
        }
        values
    });
    Some((hex_of(&json["event_log_hex"]), banks.collect()))
}

#[test]
fn a_real_machines_log_replays_to_what_its_tpm_holds_in_every_bank() {
    let Some((log, banks)) = real_boot() else { return };
    assert_eq!(banks.len(), 3);
    for values in &banks {
        let found = verify(&log, Some(values));
        assert_eq!(found.worst(), Outcome::Passed, "{}: {found:#?}", values.bank());
        assert_eq!(found.claims["secure-boot"], Claim::Bool(true));
        assert_eq!(found.claims["firmware-version"], "GCE Virtual Firmware v1".into());
        assert_eq!(found.claims["exit-boot-services"], Claim::Bool(true));
        let Claim::Texts(lines) = &found.claims["kernel-command-lines"] else { panic!() };
        assert!(lines.iter().all(|line| line.starts_with("/syslinux/vmlinuz.A ")), "{lines:?}");
        let Claim::Texts(loaders) = &found.claims["boot-loaders"] else { panic!() };
        assert_eq!(loaders.len(), 3);
        let Claim::Texts(authorities) = &found.claims["boot-authorities"] else { panic!() };
        // The firmware's entry in db and the loader's use of it are the same certificate.
        assert_eq!(authorities.len(), 1);
        let mut wrong = values.clone();
        wrong.insert(2, &vec![1; values.bank().size()]).unwrap();
        assert_eq!(verify(&log, Some(&wrong)).outcome("replay"), Outcome::Failed);
    }
}

#[test]
fn real_logs_are_read_or_refused_for_a_reason() {
    // The log, whether secure boot was on, how many things were started, and authorities.
    let logs = [
        ("coreos_36_shielded_vm_no_secure_boot_eventlog.bin", false, 2, 0),
        ("crypto_agile_eventlog.bin", false, 2, 0),
        ("debian-10.bin", true, 3, 2),
        ("gdc-host.bin", false, 3, 0),
        ("rhel8-uefi.bin", true, 3, 2),
        ("sb_cert_eventlog.bin", true, 3, 2),
        ("ubuntu-2404-amd-sevsnp.bin", false, 2, 0),
    ];
    for (name, on, loaders, authorities) in logs {
        let Some(log) = testdata::read(&format!("eventlogs/{name}")) else { return };
        let found = verify(&log, None);
        assert_eq!(found.outcome("log format"), Outcome::Passed, "{name}");
        assert_eq!(found.outcome("event data"), Outcome::Passed, "{name}: {found:#?}");
        assert_eq!(found.outcome("facts"), Outcome::Passed, "{name}");
        assert_eq!(found.claims.get("secure-boot"), Some(&Claim::Bool(on)), "{name}");
        let count = |claim: &str| match found.claims.get(claim) {
            Some(Claim::Texts(texts)) => texts.len(),
            _ => 0,
        };
        assert_eq!(count("boot-loaders"), loaders, "{name}");
        assert_eq!(count("boot-authorities"), authorities, "{name}");
    }
    let Some(malformed) = testdata::read("eventlogs/malformed-short-no-action.bin") else { return };
    assert_eq!(EventLog::parse(&malformed).unwrap_err(), Refusal::Header("signature"));
}

proptest! {
    #[test]
    fn no_bytes_make_the_verifier_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut values = BankValues::new(Bank::Sha256);
        values.insert(0, &[0; 32]).unwrap();
        let _ = verify(&bytes, Some(&values));
        let _ = verify(&[log_of(&[]), bytes].concat(), None);
    }

    #[test]
    fn no_changed_byte_of_a_real_log_makes_it_claim_more(at in any::<prop::sample::Index>(), flip in 1u8..) {
        if let Some((log, banks)) = real_boot() {
            let before = verify(&log, Some(&banks[1]));
            let mut changed = log.clone();
            changed[at.index(log.len())] ^= flip;
            assert_no_more(&before, &verify(&changed, Some(&banks[1])), "a real log");
        }
    }

    #[test]
    fn a_cut_log_never_replays(len in any::<prop::sample::Index>()) {
        let log = log_of(&boot());
        let values = values_of(&log, Bank::Sha256);
        let found = verify(&log[..len.index(log.len())], Some(&values));
        prop_assert_eq!(found.worst(), Outcome::Failed);
    }
}
