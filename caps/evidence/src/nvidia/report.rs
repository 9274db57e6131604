//! The measurement report: an SPDM 1.1 `GET_MEASUREMENTS` request of 37 bytes and the response to it (DMTF DSP0274,
//! 10.11), signed together, with NVIDIA's fields in its opaque data.
//!
//! Numbers are little-endian here. The response repeats no nonce of the requester's: the request does, and the signature
//! covers both.

use std::collections::BTreeMap;
use std::ops::Range;

use super::Architecture;
use crate::wire::{Broken, Reader};

/// The longest report that is looked at, in bytes.
pub const MAX_REPORT_BYTES: usize = 65_536;
/// Of an ECDSA P-384 signature, two numbers of 48 bytes.
const SIGNATURE_BYTES: usize = 96;
const REQUEST_BYTES: usize = 37;
const VERSION: u8 = 0x11;
const GET_MEASUREMENTS: u8 = 0xe0;
const MEASUREMENTS: u8 = 0x60;
/// With a signature over a nonce, as the request must ask.
const SIGNATURE_REQUESTED: u8 = 1;
/// Not one block that somebody has chosen.
const ALL_MEASUREMENTS: u8 = 0xff;
/// A measurement in DMTF's form (DSP0274, table 22).
const DMTF: u8 = 1;
/// Where in the request the nonce is.
const NONCE: Range<usize> = 4..36;
const SWITCHED_ON: u8 = 0xaa;
const SWITCHED_OFF: u8 = 0x55;

/// A field of the opaque data, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Feature(u16);

impl Feature {
    /// The driver's version, in ASCII, ends with zero.
    const DRIVER_VERSION: Feature = Feature(3);
    const VBIOS_VERSION: Feature = Feature(6);
    /// Whether there is a video decoder to measure.
    pub const NVDEC0: Feature = Feature(11);
    const FIRMWARE_ID: Feature = Feature(20);
    /// Whether the links to the host are protected for several GPUs together.
    pub const PROTECTED_PCIE: Feature = Feature(21);
    /// On a GPU: by link, the switch at its other end. On a switch: itself.
    const SWITCHES: Feature = Feature(22);
    /// On a switch.
    const LOCKED: Feature = Feature(25);
    /// On a switch: up to eight GPUs that it is linked with, and then a map of its ports.
    const GPUS: Feature = Feature(26);
    const MODE: Feature = Feature(36);
}

/// How many GPUs a switch names.
const MOST_GPUS: usize = 8;
const ID_BYTES: usize = 8;

/// A report as it stands in its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Unverified<'a> {
    /// What is signed: the request, and the response up to the signature.
    pub signed: &'a [u8],
    /// The signature.
    pub signature: &'a [u8],
    /// The nonce of the request.
    pub nonce: [u8; 32],
    /// The measurements by the number of their block.
    pub measurements: Measurements<'a>,
    opaque: &'a [u8],
}

/// Measurement blocks that were found well-formed, and each number once.
#[derive(Clone, Copy, Debug)]
pub struct Measurements<'a> {
    record: &'a [u8],
    count: usize,
}

impl Measurements<'_> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// What a report says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The nonce of the request.
    pub nonce: [u8; 32],
    /// By number of the block, what was measured.
    pub measurements: BTreeMap<u8, Vec<u8>>,
    fields: BTreeMap<Feature, Vec<u8>>,
}

impl Report {
    /// Reads a report to its last byte.
    ///
    /// # Errors
    /// [`Broken`] names the field that is not as it should be.
    pub fn parse(bytes: &[u8]) -> Result<Unverified<'_>, Broken> {
        if bytes.len() > MAX_REPORT_BYTES {
            return Err(Broken("the report's length"));
        }
        let (request, response) =
            bytes.split_at_checked(REQUEST_BYTES).ok_or(Broken("the request"))?;
        if request[..4] != [VERSION, GET_MEASUREMENTS, SIGNATURE_REQUESTED, ALL_MEASUREMENTS] {
            return Err(Broken("the request's version, code, attributes and operation"));
        }
        let nonce = request[NONCE].try_into().map_err(|_| Broken("the nonce"))?;
        let mut r = Reader::new(response);
        if r.u8("version")? != VERSION || r.u8("code")? != MEASUREMENTS {
            return Err(Broken("the response's version and code"));
        }
        r.array::<2>("parameters")?;
        let blocks = r.u8("numberOfBlocks")?;
        let [a, b, c] = r.array("measurementRecordLength")?;
        let length = u32::from_le_bytes([a, b, c, 0]) as usize;
        let record = r.bytes(length, "measurementRecord")?;
        r.array::<32>("the response's nonce")?;
        let length = usize::from(r.u16_le("opaqueLength")?);
        let opaque = r.bytes(length, "opaqueData")?;
        let signature = r.bytes(SIGNATURE_BYTES, "signature")?;
        r.end("the end of the report")?;
        each_block(record, |_, _| {})?;
        let mut seen = [false; 256];
        let mut count = 0;
        let mut is_twice = false;
        each_block(record, |number, _| {
            is_twice |= std::mem::replace(&mut seen[usize::from(number)], true);
            count += 1;
        })?;
        if is_twice || count != usize::from(blocks) {
            return Err(Broken("the numbers of measurement blocks"));
        }
        let mut fields: Vec<u16> = Vec::new();
        each_field(opaque, |feature, _| fields.push(feature.0))?;
        let all = fields.len();
        fields.sort_unstable();
        fields.dedup();
        if fields.len() != all {
            return Err(Broken("the fields of the opaque data, of which one is there twice"));
        }
        let signed = &bytes[..bytes.len() - SIGNATURE_BYTES];
        let measurements = Measurements { record, count };
        Ok(Unverified { signed, signature, nonce, measurements, opaque })
    }

    /// The driver's version.
    pub fn driver_version(&self) -> Option<String> {
        text(self.fields.get(&Feature::DRIVER_VERSION)?)
    }

    /// The firmware's version: a switch has it as text, a GPU as numbers.
    pub fn vbios_version(&self, architecture: Architecture) -> Option<String> {
        let bytes = self.fields.get(&Feature::VBIOS_VERSION)?;
        if architecture.is_switch() {
            return text(bytes);
        }
        let [d, c, b, a, e, ..] = bytes.as_slice() else { return None };
        Some(format!("{a:02X}.{b:02X}.{c:02X}.{d:02X}.{e:02X}"))
    }

    /// The hash of the firmware that the signing key is for.
    pub fn firmware_id(&self) -> Option<&[u8]> {
        self.fields.get(&Feature::FIRMWARE_ID).map(Vec::as_slice)
    }

    /// Whether something that is on or off is on. `None` if the report does not say, or says something else.
    pub fn switched(&self, feature: Feature) -> Option<bool> {
        match self.fields.get(&feature)?.as_slice() {
            [SWITCHED_ON] => Some(true),
            [SWITCHED_OFF] => Some(false),
            _ => None,
        }
    }

    /// For what a GPU is set up, if it says so: several protected GPUs passed through (`mpt`), a single one (`spt`), or
    /// several whose links to the host are protected (`ppcie`).
    pub fn mode(&self) -> Option<&'static str> {
        match self.fields.get(&Feature::MODE)?.as_slice() {
            [0, rest @ ..] if rest.iter().all(|byte| *byte == 0) => Some("mpt"),
            [1, rest @ ..] if rest.iter().all(|byte| *byte == 0) => Some("spt"),
            [2, rest @ ..] if rest.iter().all(|byte| *byte == 0) => Some("ppcie"),
            _ => None,
        }
    }

    /// Whether a switch takes no more changes.
    pub fn is_locked(&self) -> Option<bool> {
        match self.fields.get(&Feature::LOCKED)?.as_slice() {
            [1, 0] => Some(true),
            [0, 0] => Some(false),
            _ => None,
        }
    }

    /// By which number a switch goes.
    pub fn switch_id(&self) -> Option<[u8; 8]> {
        self.fields.get(&Feature::SWITCHES)?.as_slice().try_into().ok()
    }

    /// The switches at the other ends of a GPU's links. A GPU has each number the other way round than the switch.
    pub fn switches(&self) -> Option<Vec<[u8; 8]>> {
        let ids = ids(self.fields.get(&Feature::SWITCHES)?)?;
        let turned = ids.into_iter().map(|mut id| {
            id.reverse();
            id
        });
        Some(turned.collect())
    }

    /// The GPUs that a switch is linked with.
    pub fn gpus(&self) -> Option<Vec<[u8; 8]>> {
        let field = self.fields.get(&Feature::GPUS)?;
        ids(field.get(..MOST_GPUS * ID_BYTES)?)
    }
}

impl Unverified<'_> {
    /// What it says, in bytes of its own.
    pub fn owned(&self) -> Report {
        let mut measurements = BTreeMap::new();
        let mut fields = BTreeMap::new();
        let blocks = each_block(self.measurements.record, |number, value| {
            measurements.insert(number, value.to_vec());
        });
        let opaque = each_field(self.opaque, |feature, value| {
            fields.insert(feature, value.to_vec());
        });
        debug_assert!(blocks.is_ok() && opaque.is_ok(), "both were read before");
        Report { nonce: self.nonce, measurements, fields }
    }
}

/// Links that lead nowhere have all ones, or zeros.
fn ids(field: &[u8]) -> Option<Vec<[u8; 8]>> {
    let (ids, rest) = field.as_chunks::<ID_BYTES>();
    rest.is_empty().then_some(())?;
    let linked = ids.iter().filter(|id| **id != [0xff; ID_BYTES] && **id != [0; ID_BYTES]);
    Some(linked.copied().collect())
}

/// ASCII up to the first zero.
fn text(bytes: &[u8]) -> Option<String> {
    let text = bytes.split(|byte| *byte == 0).next()?;
    let printable = text.iter().all(u8::is_ascii_graphic) && !text.is_empty();
    printable.then(|| String::from_utf8_lossy(text).into_owned())
}

fn each_block<'a>(record: &'a [u8], mut with: impl FnMut(u8, &'a [u8])) -> Result<(), Broken> {
    let mut r = Reader::new(record);
    while !r.rest().is_empty() {
        let number = r.u8("measurement.index")?;
        if r.u8("measurement.specification")? != DMTF {
            return Err(Broken("measurement.specification"));
        }
        let size = usize::from(r.u16_le("measurement.size")?);
        let mut inner = Reader::new(r.bytes(size, "measurement")?);
        inner.u8("measurement.valueType")?;
        let size = usize::from(inner.u16_le("measurement.valueSize")?);
        let value = inner.bytes(size, "measurement.value")?;
        inner.end("the end of a measurement")?;
        with(number, value);
    }
    Ok(())
}

fn each_field<'a>(opaque: &'a [u8], mut with: impl FnMut(Feature, &'a [u8])) -> Result<(), Broken> {
    let mut r = Reader::new(opaque);
    while !r.rest().is_empty() {
        let number = r.u16_le("opaque.type")?;
        let size = usize::from(r.u16_le("opaque.size")?);
        with(Feature(number), r.bytes(size, "opaque.value")?);
    }
    Ok(())
}
