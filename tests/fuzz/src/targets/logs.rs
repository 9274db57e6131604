//! Logs of measured boots, and the kernel's lists of measured files.

use std::sync::LazyLock;

use distos_evidence::bank::{Bank, BankValues};
use distos_evidence::eventlog::{self, EventLog, EventType};
use distos_evidence::evidence::PcrSet;
use distos_evidence::findings::{Claim, Findings, Outcome};
use distos_evidence::ima::{Extension, Form, MeasuredFile, Progress};

use super::seed;
use crate::Input;

const GLOBAL: &[u8; 16] = b"\x61\xdf\xe4\x8b\xca\x93\xd2\x11\xaa\x0d\x00\xe0\x98\x03\x2b\x8c";
const SECURITY: &[u8; 16] = b"\xcb\xb2\x19\xd7\x3a\x3d\x96\x45\xa3\xbc\xda\xd0\x0e\x67\x65\x6f";

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_le_bytes()[..], bytes].concat()
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// `UEFI_VARIABLE_DATA`.
fn variable(vendor: &[u8; 16], name: &str, data: &[u8]) -> Vec<u8> {
    let units = (name.len() as u64).to_le_bytes();
    [&vendor[..], &units, &(data.len() as u64).to_le_bytes(), &utf16(name), data].concat()
}

/// An event as what was measured, and what is logged of it.
type Made = (u32, EventType, Vec<u8>, Vec<u8>);

fn measured(pcr: u32, kind: EventType, data: impl Into<Vec<u8>>) -> Made {
    let data = data.into();
    (pcr, kind, data.clone(), data)
}

/// A boot with secure boot, by shim and GRUB.
fn boot() -> Vec<Made> {
    let application = EventType::EFI_BOOT_SERVICES_APPLICATION;
    let config = EventType::EFI_VARIABLE_DRIVER_CONFIG;
    let mut events = vec![
        measured(0, EventType::S_CRTM_VERSION, utf16("v1\0")),
        measured(7, config, variable(GLOBAL, "SecureBoot", &[1])),
        measured(7, config, variable(SECURITY, "db", &[])),
        (1, EventType::EFI_VARIABLE_BOOT, vec![0, 0], variable(GLOBAL, "BootOrder", &[0, 0])),
    ];
    events.extend((0..8).map(|pcr| measured(pcr, EventType::SEPARATOR, [0; 4])));
    events.extend([
        measured(7, EventType::EFI_VARIABLE_AUTHORITY, variable(SECURITY, "db", b"an entry")),
        (4, application, b"shim".to_vec(), b"a device path".to_vec()),
        (9, EventType::IPL, b"a kernel".to_vec(), b"/boot/vmlinuz\0".to_vec()),
        (8, EventType::IPL, b"ro quiet".to_vec(), b"kernel_cmdline: ro quiet\0".to_vec()),
        measured(5, EventType::EFI_ACTION, "Exit Boot Services Invocation"),
        measured(5, EventType::EFI_ACTION, "Exit Boot Services Returned with Success"),
    ]);
    events
}

fn legacy((pcr, kind, measured, data): &Made) -> Vec<u8> {
    let digest = match *kind {
        EventType::NO_ACTION => Bank::Sha1.filled(0),
        _ => Bank::Sha1.hash(&[measured]),
    };
    let head = [pcr.to_le_bytes(), kind.0.to_le_bytes()].concat();
    [&head[..], digest.as_bytes(), &sized(data)].concat()
}

fn agile((pcr, kind, measured, data): &Made) -> Vec<u8> {
    let digest = match *kind {
        EventType::NO_ACTION => Bank::Sha256.filled(0),
        _ => Bank::Sha256.hash(&[measured]),
    };
    let head = [pcr.to_le_bytes(), kind.0.to_le_bytes(), 1u32.to_le_bytes()].concat();
    let algorithm = Bank::Sha256.algorithm().to_le_bytes();
    [&head[..], &algorithm, digest.as_bytes(), &sized(data)].concat()
}

fn crypto_agile_log() -> Vec<u8> {
    let spec = b"Spec ID Event03\0\0\0\0\0\0\x02\0\x02\x01\0\0\0\x0b\0\x20\0\0";
    let locality = measured(0, EventType::NO_ACTION, &b"StartupLocality\0\x03"[..]);
    let events = [vec![locality], boot()].concat();
    let header = legacy(&measured(0, EventType::NO_ACTION, &spec[..]));
    events.iter().fold(header, |log, event| [log, agile(event)].concat())
}

fn legacy_log() -> Vec<u8> {
    boot().iter().flat_map(legacy).collect()
}

/// A log, what the TPM's registers hold after it, and what was found of both.
struct Vouched {
    values: BankValues,
    found: Findings,
}

static VOUCHED: LazyLock<Vec<Vouched>> = LazyLock::new(|| {
    let logs = [(crypto_agile_log(), Bank::Sha256), (legacy_log(), Bank::Sha1)];
    logs.map(|(log, bank)| {
        let values = values_of(&EventLog::parse(&log).unwrap(), bank).unwrap();
        let found = eventlog::verify(&log, Some(&values));
        assert_eq!(found.worst(), Outcome::Passed, "{found:?}");
        Vouched { values, found }
    })
    .into()
});

/// All registers after a log; `None` if it cannot be replayed.
fn values_of(log: &EventLog<'_>, bank: Bank) -> Option<BankValues> {
    let registers = log.replay(bank).ok()?;
    let mut values = BankValues::new(bank);
    for pcr in 0..PcrSet::COUNT {
        values.insert(pcr, registers.value(pcr)?.as_bytes()).unwrap();
    }
    Some(values)
}

pub(super) fn eventlog_seeds() -> Vec<(String, Vec<u8>)> {
    vec![seed("crypto-agile", crypto_agile_log()), seed("legacy", legacy_log())]
}

/// A log that is read replays to one value a register in each of its banks. Beside the registers of another boot it claims
/// nothing that the log of that boot does not.
pub(super) fn eventlog(bytes: &[u8]) {
    for vouched in VOUCHED.iter() {
        let found = eventlog::verify(bytes, Some(&vouched.values));
        if found.worst() == Outcome::Passed {
            for (name, claim) in &found.claims {
                let less = match (claim, vouched.found.claims.get(name)) {
                    (Claim::Texts(now), Some(Claim::Texts(was))) => now.is_subset(was),
                    (now, was) => Some(now) == was,
                };
                assert!(less, "{name} is claimed, and was not measured: {claim:?}");
            }
        }
    }
    let found = eventlog::verify(bytes, None);
    assert_ne!(found.outcome("replay"), Outcome::Passed, "nothing vouches for it");
    let Ok(log) = EventLog::parse(bytes) else {
        assert!(found.claims.is_empty(), "a log that is refused claims something");
        return;
    };
    for bank in log.banks() {
        let Some(values) = values_of(&log, *bank) else { continue };
        let found = eventlog::verify(bytes, Some(&values));
        assert_eq!(found.outcome("replay"), Outcome::Passed);
        if found.claims.get("secure-boot") == Some(&Claim::Bool(true)) {
            let on = bank.hash(&[&variable(GLOBAL, "SecureBoot", &[1])]);
            let measured = |event: &eventlog::Event<'_>| {
                event.pcr == 7 && event.digest(*bank) == Some(on.as_bytes())
            };
            assert!(log.events().iter().any(measured), "secure boot that was not measured");
        }
    }
}

/// Fields of an entry of the templates with named digests.
fn template_data(digest: &[u8], path: &str, extra: Option<&[u8]>) -> Vec<u8> {
    let digest = [b"sha256:\0", digest].concat();
    let path = format!("{path}\0");
    [sized(&digest), sized(path.as_bytes()), extra.map(sized).unwrap_or_default()].concat()
}

const ENTRIES: [(&str, u8, &str, Option<&[u8]>); 3] = [
    ("ima-ng", 1, "boot_aggregate", None),
    ("ima-ng", 2, "/usr/bin/a program", None),
    ("ima-sig", 3, "/usr/bin/signed", Some(&[3, 2, 4])),
];

/// A list in one form, with a violation at its end.
fn list(form: Form) -> Vec<u8> {
    let mut out = Vec::new();
    for (template, byte, path, extra) in ENTRIES {
        let data = template_data(&[byte; 32], path, extra);
        let hash = Bank::Sha1.hash(&[&data]);
        match form {
            Form::Text => {
                let digest = hex::encode([byte; 32]);
                out.extend(format!("10 {hash} {template} sha256:{digest} {path}").bytes());
                out.extend(
                    extra
                        .map(|extra| format!(" {}", hex::encode(extra)))
                        .iter()
                        .flat_map(|text| text.bytes()),
                );
                out.push(b'\n');
            }
            Form::Binary => {
                out.extend(10u32.to_le_bytes());
                out.extend(hash.as_bytes());
                out.extend(sized(template.as_bytes()));
                out.extend(sized(&data));
            }
        }
    }
    out
}

const EXTENSIONS: [Extension; 3] = [Extension::Sha1, Extension::Sha256, Extension::Sha256Padded];

pub(super) fn ima_seeds() -> Vec<(String, Vec<u8>)> {
    let with = |choice: u8, form| [vec![choice], list(form)].concat();
    vec![seed("text", with(2, Form::Text)), seed("binary", with(3, Form::Binary))]
}

fn texts(files: &[MeasuredFile<'_>]) -> Vec<String> {
    files.iter().map(ToString::to_string).collect()
}

/// A list that is read gives the same when it is read again to the value that it gave, and when it is kept and gone on from.
/// Beside another list's value only that list's files are vouched for.
pub(super) fn ima(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let choice = input.u8();
    let form = if choice & 1 == 0 { Form::Text } else { Form::Binary };
    let start = Progress::new(form, EXTENSIONS[usize::from(choice >> 1) % EXTENSIONS.len()]);
    let given = input.rest();

    let own = list(form);
    let expected = start.advance(&own, None).unwrap();
    let value = expected.progress.value().as_bytes();
    if let Ok(found) = start.advance(given, Some(value)) {
        assert_eq!(texts(&found.files), texts(&expected.files), "nobody measured these");
    }
    let Ok(found) = start.advance(given, None) else { return };
    assert_eq!(found.progress.rest_of(given), Ok(&[][..]));
    let again = start.advance(given, Some(found.progress.value().as_bytes())).unwrap();
    assert_eq!(again.progress, found.progress);
    let kept = serde_json::to_string(&found.progress).unwrap();
    let kept: Progress = serde_json::from_str(&kept).unwrap();
    let longer = [given, &own].concat();
    let whole = start.advance(&longer, None).unwrap();
    let rest = kept.rest_of(&longer).unwrap();
    assert_eq!(kept.advance(rest, None).unwrap().progress, whole.progress);
}
