//! The bytes of a log: its header and its events (section 10 of the profile).

use std::fmt;

use crate::bank::{Bank, Digest};
use crate::evidence::PcrSet;
use crate::wire::{Broken, Reader};

/// Bytes of a log, at most. Firmware reserves between 64 KiB and 1 MiB for it.
pub const MAX_BYTES: usize = 4 << 20;
/// Events of a log, at most.
pub const MAX_EVENTS: usize = 16_384;
/// Hash algorithms that a header may declare.
const MAX_ALGORITHMS: u32 = 16;
/// The header of a crypto-agile log (10.4.5.1).
const SPEC_ID_03: &[u8; 16] = b"Spec ID Event03\0";
/// Headers of logs that hold SHA-1 digests only, of PCs (`00`) and of EFI platforms (`02`).
const SPEC_ID_LEGACY: [&[u8; 16]; 2] = [b"Spec ID Event00\0", b"Spec ID Event02\0"];

/// Why a log is refused. Events are counted from 0, the header included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// More bytes than any firmware writes.
    #[error("the log has {0} bytes; at most {MAX_BYTES} are read")]
    TooLarge(usize),
    /// More events than any boot has.
    #[error("the log has more than {MAX_EVENTS} events")]
    TooManyEvents,
    /// There is nothing in it.
    #[error("the log is empty")]
    Empty,
    /// An event that ends before it should, or in which a field cannot be what it is.
    #[error("event {event} is broken or cut off at {field}")]
    Event {
        /// Which.
        event: usize,
        /// The field of `TCG_PCR_EVENT` or `TCG_PCR_EVENT2`.
        field: &'static str,
    },
    /// A first event that extends nothing is the header, and this one is none.
    #[error("event 0 is EV_NO_ACTION, but not a specification id: broken at {0}")]
    Header(&'static str),
    /// A register that no PC client's TPM has.
    #[error("event {event} extends PCR {pcr}, which does not exist")]
    Register {
        /// Which.
        event: usize,
        /// The register that it names.
        pcr: u32,
    },
    /// A digest of an algorithm that the header does not declare, or a second one of the same.
    #[error(
        "event {event} has a digest of algorithm {algorithm:#06x}, which is not declared or is there twice"
    )]
    Algorithm {
        /// Which.
        event: usize,
        /// Its `TPM_ALG_ID`.
        algorithm: u16,
    },
    /// The log does not say what was extended into this bank.
    #[error("event {event} has no digest for the {bank} bank")]
    NoDigest {
        /// Which.
        event: usize,
        /// The bank that is replayed.
        bank: Bank,
    },
    /// A startup locality that cannot be, is stated twice or after register 0 was extended.
    #[error("event {event} states a startup locality that cannot be")]
    Locality {
        /// Which.
        event: usize,
    },
}

/// The type of an event (10.4.1). No digest covers it: it is what whoever wrote the log says.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventType(pub u32);

macro_rules! event_types {
    ($($name:ident = $value:literal;)*) => {
        impl EventType {
            $(#[doc = concat!("`EV_", stringify!($name), "`.")] pub const $name: EventType = EventType($value);)*
        }

        impl fmt::Display for EventType {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self {
                    $(EventType::$name => f.write_str(concat!("EV_", stringify!($name))),)*
                    EventType(other) => write!(f, "event type {other:#010x}"),
                }
            }
        }
    };
}

event_types! {
    POST_CODE = 0x0000_0001;
    NO_ACTION = 0x0000_0003;
    SEPARATOR = 0x0000_0004;
    ACTION = 0x0000_0005;
    EVENT_TAG = 0x0000_0006;
    S_CRTM_CONTENTS = 0x0000_0007;
    S_CRTM_VERSION = 0x0000_0008;
    CPU_MICROCODE = 0x0000_0009;
    PLATFORM_CONFIG_FLAGS = 0x0000_000a;
    TABLE_OF_DEVICES = 0x0000_000b;
    COMPACT_HASH = 0x0000_000c;
    IPL = 0x0000_000d;
    IPL_PARTITION_DATA = 0x0000_000e;
    NONHOST_CODE = 0x0000_000f;
    NONHOST_CONFIG = 0x0000_0010;
    NONHOST_INFO = 0x0000_0011;
    OMIT_BOOT_DEVICE_EVENTS = 0x0000_0012;
    EFI_VARIABLE_DRIVER_CONFIG = 0x8000_0001;
    EFI_VARIABLE_BOOT = 0x8000_0002;
    EFI_BOOT_SERVICES_APPLICATION = 0x8000_0003;
    EFI_BOOT_SERVICES_DRIVER = 0x8000_0004;
    EFI_RUNTIME_SERVICES_DRIVER = 0x8000_0005;
    EFI_GPT_EVENT = 0x8000_0006;
    EFI_ACTION = 0x8000_0007;
    EFI_PLATFORM_FIRMWARE_BLOB = 0x8000_0008;
    EFI_HANDOFF_TABLES = 0x8000_0009;
    EFI_PLATFORM_FIRMWARE_BLOB2 = 0x8000_000a;
    EFI_HANDOFF_TABLES2 = 0x8000_000b;
    EFI_VARIABLE_BOOT2 = 0x8000_000c;
    EFI_GPT_EVENT2 = 0x8000_000d;
    EFI_HCRTM_EVENT = 0x8000_0010;
    EFI_VARIABLE_AUTHORITY = 0x8000_00e0;
    EFI_SPDM_FIRMWARE_BLOB = 0x8000_00e1;
    EFI_SPDM_FIRMWARE_CONFIG = 0x8000_00e2;
    EFI_SPDM_DEVICE_POLICY = 0x8000_00e3;
    EFI_SPDM_DEVICE_AUTHORITY = 0x8000_00e4;
}

impl fmt::Debug for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// How a log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `TCG_PCR_EVENT` throughout: SHA-1 digests only.
    Legacy,
    /// `TCG_PCR_EVENT2` after the header: a digest for each bank.
    CryptoAgile,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Legacy => "legacy",
            Format::CryptoAgile => "crypto-agile",
        })
    }
}

/// One event.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// Its place in the log, from 0, the header included.
    pub number: usize,
    /// The register that it extends; of no meaning for `EV_NO_ACTION`.
    pub pcr: u8,
    /// Its type.
    pub kind: EventType,
    /// What was hashed, or says what was: `event` of `TCG_PCR_EVENT2`.
    pub data: &'a [u8],
    digests: [Option<&'a [u8]>; Bank::ALL.len()],
}

impl<'a> Event<'a> {
    /// What was extended into the register of `bank`.
    pub fn digest(&self, bank: Bank) -> Option<&'a [u8]> {
        self.digests[bank as usize]
    }

    /// Whether anything was extended.
    pub fn extends(&self) -> bool {
        self.kind != EventType::NO_ACTION
    }

    /// Whether the digest of `bank` is that of these bytes.
    pub(super) fn is_of(&self, bank: Bank, bytes: &[u8]) -> bool {
        self.digest(bank) == Some(bank.hash(&[bytes]).as_bytes())
    }

    /// Whether the digest of `bank` is this one.
    pub(super) fn has(&self, bank: Bank, digest: &Digest) -> bool {
        self.digest(bank) == Some(digest.as_bytes())
    }
}

/// The algorithms that a header declares, with the bytes of their digests.
type Algorithms = Vec<(u16, usize)>;

/// A log whose every byte belongs to an event. Nothing of it is proven.
#[derive(Clone, Debug)]
pub struct EventLog<'a> {
    format: Format,
    banks: Vec<Bank>,
    events: Vec<Event<'a>>,
}

impl<'a> EventLog<'a> {
    /// Reads a log to its last byte.
    pub fn parse(bytes: &'a [u8]) -> Result<EventLog<'a>, Refusal> {
        if bytes.len() > MAX_BYTES {
            return Err(Refusal::TooLarge(bytes.len()));
        }
        let mut rest = Reader::new(bytes);
        if rest.is_empty() {
            return Err(Refusal::Empty);
        }
        let first = legacy_event(&mut rest, 0)?;
        let algorithms = if first.extends() { None } else { header(first.data)? };
        let mut events = vec![first];
        while !rest.is_empty() {
            if events.len() == MAX_EVENTS {
                return Err(Refusal::TooManyEvents);
            }
            let number = events.len();
            events.push(match &algorithms {
                None => legacy_event(&mut rest, number)?,
                Some(declared) => agile_event(&mut rest, number, declared)?,
            });
        }
        let (format, banks) = match algorithms {
            None => (Format::Legacy, vec![Bank::Sha1]),
            Some(declared) => (
                Format::CryptoAgile,
                declared.iter().filter_map(|(id, _)| Bank::of_algorithm(*id)).collect(),
            ),
        };
        Ok(EventLog { format, banks, events })
    }

    /// How it is written.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The banks that it has digests for, and that can be replayed.
    pub fn banks(&self) -> &[Bank] {
        &self.banks
    }

    /// Its events in the order in which they were made, the header included.
    pub fn events(&self) -> &[Event<'a>] {
        &self.events
    }
}

/// What is wrong with event `event`.
fn broken(event: usize) -> impl Fn(Broken) -> Refusal {
    move |Broken(field)| Refusal::Event { event, field }
}

/// `TCG_PCR_EVENT` (10.2.1).
fn legacy_event<'a>(r: &mut Reader<'a>, number: usize) -> Result<Event<'a>, Refusal> {
    let broken = broken(number);
    let pcr = r.u32_le("pcrIndex").map_err(&broken)?;
    let kind = EventType(r.u32_le("eventType").map_err(&broken)?);
    let mut digests = [None; Bank::ALL.len()];
    digests[Bank::Sha1 as usize] = Some(r.bytes(Bank::Sha1.size(), "digest").map_err(&broken)?);
    let data = r.sized_le("event").map_err(&broken)?;
    Ok(Event { number, pcr: register(pcr, kind, number)?, kind, data, digests })
}

/// `TCG_PCR_EVENT2` (10.2.2).
fn agile_event<'a>(
    r: &mut Reader<'a>,
    number: usize,
    declared: &Algorithms,
) -> Result<Event<'a>, Refusal> {
    let broken = broken(number);
    let pcr = r.u32_le("pcrIndex").map_err(&broken)?;
    let kind = EventType(r.u32_le("eventType").map_err(&broken)?);
    let count = r.u32_le("digests.count").map_err(&broken)?;
    if usize::try_from(count).map_or(true, |count| count > declared.len()) {
        return Err(broken(Broken("digests.count")));
    }
    let mut digests = [None; Bank::ALL.len()];
    let mut seen = [0; MAX_ALGORITHMS as usize];
    for place in 0..count as usize {
        let algorithm = r.u16_le("digests.hashAlg").map_err(&broken)?;
        let size = declared.iter().find(|(id, _)| *id == algorithm).map(|(_, size)| *size);
        let fresh = !seen[..place].contains(&algorithm);
        let Some(size) = size.filter(|_| fresh) else {
            return Err(Refusal::Algorithm { event: number, algorithm });
        };
        seen[place] = algorithm;
        let digest = r.bytes(size, "digests.digest").map_err(&broken)?;
        if let Some(bank) = Bank::of_algorithm(algorithm) {
            digests[bank as usize] = Some(digest);
        }
    }
    let data = r.sized_le("event").map_err(&broken)?;
    Ok(Event { number, pcr: register(pcr, kind, number)?, kind, data, digests })
}

/// The register of an event. What extends none may name any.
fn register(pcr: u32, kind: EventType, event: usize) -> Result<u8, Refusal> {
    match u8::try_from(pcr) {
        Ok(known) if known < PcrSet::COUNT => Ok(known),
        _ if kind == EventType::NO_ACTION => Ok(0),
        _ => Err(Refusal::Register { event, pcr }),
    }
}

/// The algorithms that a header declares; `None` if it is one of a legacy log.
fn header(data: &[u8]) -> Result<Option<Algorithms>, Refusal> {
    let wrong = |Broken(field)| Refusal::Header(field);
    let mut r = Reader::new(data);
    let signature = r.array::<16>("signature").map_err(wrong)?;
    let agile = &signature == SPEC_ID_03;
    if !agile && !SPEC_ID_LEGACY.contains(&&signature) {
        return Err(Refusal::Header("signature"));
    }
    r.u32_le("platformClass").map_err(wrong)?;
    r.array::<3>("specVersion").map_err(wrong)?;
    r.u8("uintnSize").map_err(wrong)?;
    let algorithms = if agile { Some(declared(&mut r)?) } else { None };
    let vendor = r.u8("vendorInfoSize").map_err(wrong)?;
    r.bytes(usize::from(vendor), "vendorInfo").map_err(wrong)?;
    r.end("the end of the header").map_err(wrong)?;
    Ok(algorithms)
}

/// `numberOfAlgorithms` and `digestSizes` of a header.
fn declared(r: &mut Reader<'_>) -> Result<Algorithms, Refusal> {
    let wrong = |Broken(field)| Refusal::Header(field);
    let count = r.u32_le("numberOfAlgorithms").map_err(wrong)?;
    if count == 0 || count > MAX_ALGORITHMS {
        return Err(Refusal::Header("numberOfAlgorithms"));
    }
    let mut algorithms = Algorithms::new();
    for _ in 0..count {
        let id = r.u16_le("digestSizes.algorithmId").map_err(wrong)?;
        let size = usize::from(r.u16_le("digestSizes.digestSize").map_err(wrong)?);
        if algorithms.iter().any(|(known, _)| *known == id) {
            return Err(Refusal::Header("digestSizes.algorithmId"));
        }
        if Bank::of_algorithm(id).is_some_and(|bank| bank.size() != size) {
            return Err(Refusal::Header("digestSizes.digestSize"));
        }
        algorithms.push((id, size));
    }
    Ok(algorithms)
}
