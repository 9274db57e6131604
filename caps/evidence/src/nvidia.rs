//! What NVIDIA's GPUs and switches say of themselves, and whether it is good: Hopper, Blackwell, LS10.
//!
//! A device signs what it measured, with a nonce, by a key that its boot ROM certified for the firmware that runs
//! ([`report`]). This module checks in a fixed order: the path from the key to a pinned root, that the certificate is for
//! the firmware that the report names, the signature, the nonce, and each measurement against the values that the maker
//! published ([`GoldenValues`]). [`machine`] checks that GPUs and switches are each other's, and verifies all of a machine's
//! devices together: from files ([`machine::verify_shown`]), or as they have just answered ([`machine::verify_live`]).
//!
//! # What it does not show
//!
//! - **Where the device is.** A report can be relayed from another machine until devices and hosts authenticate each
//!   other (TDISP). It shows that such a device exists and answered this nonce. What limits that lies elsewhere: a TPM
//!   holds on to which devices a machine has ([`devices`](crate::devices)), and a verifier takes none of two machines.
//! - **Confidential mode and developer tools.** The report carries no such bit: a driver says so. The claims
//!   `confidential-mode` and `developer-tools` are the driver's word ([`DriverWord`]), worth as much as the evidence for
//!   the host. `mode`, where there is one, is signed by the device.
//! - Measurements for which the maker published no value are not compared; the check says how many.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED, ParsedPublicKey};
use x509_cert::der::asn1::ObjectIdentifier;

use crate::findings::Findings;
use crate::pki::{Anchors, COMMON_NAME, Certificate, P384, Path};

pub mod machine;
pub mod report;

use report::{Feature, Report};

/// Of the check that the report can be read.
pub const FORMAT: &str = "report format";
/// Of the check that the report is of the kind of device that it is said to be of.
pub const ARCHITECTURE: &str = "architecture";
/// Of the check of the report's signature.
pub const SIGNATURE: &str = "signature";
/// Of the check that the certificate is for the firmware that the report names.
pub const FIRMWARE_ID: &str = "firmware id";
/// Of the check that a switch names itself as its certificate does.
pub const DEVICE_ID: &str = "device id";
/// Of the check of the nonce.
pub const NONCE: &str = "nonce";
/// Of the check of the measurements against what the maker published.
pub const GOLDEN_VALUES: &str = "golden values";

/// `tcg-dice-TcbInfo`, and the form in which NVIDIA's devices have it: the last 48 bytes are the firmware's id.
const FIRMWARE_ID_OIDS: [ObjectIdentifier; 2] = [
    ObjectIdentifier::new_unwrap("2.23.133.5.4.1"),
    ObjectIdentifier::new_unwrap("2.23.133.5.4.1.1"),
];
/// `serialNumber` of a name (X.520).
const SERIAL_NUMBER: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.5");
/// The measurement of the video decoder, which a GPU without one does not make.
const NVDEC0_INDEX: u8 = 35;

/// The longest text of evidence that is looked at, in bytes.
pub const MAX_JSON_BYTES: usize = 4 << 20;
/// How many devices one text may be of.
pub const MAX_DEVICES: usize = 64;

/// The nonces of samples that were published with the reports that answer them: whoever asks a device with one of these
/// can be answered by anybody.
const SAMPLE_NONCES: [&str; 2] = [
    "931d8dd0add203ac3d8b4fbde75e115278eefcdceac5b87671a748f32364dfcb",
    "4760e30534a0621357d458b1a7936551b5dc4cd1e69718adf7ed9fb0252a537e",
];

/// Whether anybody can have the answer to this nonce: live evidence is not asked for with it.
pub fn is_sample_nonce(nonce: &[u8; 32]) -> bool {
    SAMPLE_NONCES.contains(&hex::encode(nonce).as_str())
}

/// The kinds of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Architecture {
    /// GH100 GPUs.
    Hopper,
    /// GB100 and GB20x GPUs.
    Blackwell,
    /// NVLink switches of the third generation.
    Ls10,
}

impl Architecture {
    /// As evidence names it.
    pub fn parse(name: &str) -> Option<Architecture> {
        match name.to_ascii_uppercase().as_str() {
            "HOPPER" => Some(Architecture::Hopper),
            "BLACKWELL" => Some(Architecture::Blackwell),
            "LS10" => Some(Architecture::Ls10),
            _ => None,
        }
    }

    /// What a device is whose certificates these are, the device's own first.
    pub fn of_chain(chain: &[Certificate]) -> Option<Architecture> {
        let names = chain.first()?.subject_values(COMMON_NAME);
        let all = [Architecture::Hopper, Architecture::Blackwell, Architecture::Ls10];
        all.into_iter().find(|one| names.iter().any(|name| one.is_chip(name)))
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Hopper => "HOPPER",
            Architecture::Blackwell => "BLACKWELL",
            Architecture::Ls10 => "LS10",
        }
    }

    /// Whether it is a switch, and no GPU.
    pub fn is_switch(self) -> bool {
        self == Architecture::Ls10
    }

    /// Whether its maker calls the chip in a certificate so.
    fn is_chip(self, name: &str) -> bool {
        let chip = name.split(' ').next().unwrap_or_default();
        match self {
            Architecture::Hopper => chip == "GH100",
            Architecture::Blackwell => chip.starts_with("GB1") || chip.starts_with("GB2"),
            Architecture::Ls10 => chip == "LS_10" || chip == "LS10",
        }
    }
}

/// What the driver says of a GPU, over NVML. Signed by nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DriverWord {
    /// Whether confidential computing is on.
    pub confidential_mode: bool,
    /// Whether developers' tools may look in, which makes everything else worthless.
    pub developer_tools: bool,
}

impl DriverWord {
    /// What a driver's mode says: `on`, `off`, or `devtools`, which is on with developers' tools let in. Of any other
    /// word nothing is known.
    pub fn parse(mode: &str) -> Option<DriverWord> {
        let (confidential_mode, developer_tools) = match mode {
            "on" => (true, false),
            "off" => (false, false),
            "devtools" => (true, true),
            _ => return None,
        };
        Some(DriverWord { confidential_mode, developer_tools })
    }

    fn claim(self, findings: &mut Findings) {
        findings.claim("confidential-mode", self.confidential_mode);
        findings.claim("developer-tools", self.developer_tools);
    }
}

/// What the maker published of one version of firmware or driver: from a document whose signature was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoldenValues {
    /// The product, such as `GH100`.
    pub product: String,
    /// The version.
    pub version: String,
    /// By index, each measurement's possible values. Index `i` is of the measurement block `i + 1`.
    pub values: BTreeMap<u8, Vec<Vec<u8>>>,
    /// SHA-256 over the document.
    pub digest: [u8; 32],
}

/// A device's evidence.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// What it is said to be.
    pub architecture: Architecture,
    /// From the device's certificate on.
    pub chain: Vec<Certificate>,
    /// The request and the response.
    pub report: Vec<u8>,
    /// What the driver says, for a GPU.
    pub driver: Option<DriverWord>,
}

/// Evidence, and the nonce that whoever wrote it down says that it asked with.
pub type Written = (Evidence, Option<[u8; 32]>);

/// As tools write it: a list of these, in JSON.
#[derive(Deserialize, Serialize)]
struct Text {
    arch: String,
    certificate: String,
    evidence: String,
    nonce: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    confidential_mode: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    developer_tools: Option<bool>,
}

impl Evidence {
    /// Reads a JSON list of objects with `arch`, `certificate` (a chain in PEM, in base64), `evidence` (request and
    /// response, in base64), and if it is there `nonce` (hexadecimal), which is what whoever wrote it says that it asked
    /// with. Beside what tools write, `confidential_mode` and `developer_tools` may say what the driver says.
    ///
    /// # Errors
    /// What is wrong, and with which device.
    pub fn from_json(text: &[u8]) -> Result<Vec<Written>, String> {
        if text.len() > MAX_JSON_BYTES {
            return Err(format!("it has more than {MAX_JSON_BYTES} bytes"));
        }
        let list: Vec<Text> = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        if list.is_empty() || list.len() > MAX_DEVICES {
            return Err(format!(
                "it is to have 1 to {MAX_DEVICES} devices, and has {}",
                list.len()
            ));
        }
        let each = list.into_iter().enumerate();
        each.map(|(at, one)| Evidence::of(one).map_err(|why| format!("device {at}: {why}")))
            .collect()
    }

    fn of(text: Text) -> Result<Written, String> {
        let bytes = |what: &str, text: &str| {
            STANDARD.decode(text).map_err(|e| format!("{what} is not base64: {e}"))
        };
        let architecture = Architecture::parse(&text.arch).ok_or_else(|| {
            format!("{:?} is no known architecture: HOPPER, BLACKWELL or LS10", text.arch)
        })?;
        let chain = bytes("the certificate", &text.certificate)?;
        let chain = Certificate::several(&chain).map_err(|e| e.to_string())?;
        let report = bytes("the evidence", &text.evidence)?;
        let nonce = text.nonce.map(|nonce| {
            let mut bytes = [0; 32];
            let read = hex::decode_to_slice(nonce, &mut bytes);
            read.map(|()| bytes).map_err(|_| "the nonce is not 32 bytes in hexadecimal")
        });
        let words = text.confidential_mode.zip(text.developer_tools);
        let driver = words.map(|(confidential_mode, developer_tools)| DriverWord {
            confidential_mode,
            developer_tools,
        });
        Ok((Evidence { architecture, chain, report, driver }, nonce.transpose()?))
    }
}

/// A device whose certificate chain holds. Checking a chain takes five signatures, and it stays the same while the
/// device's firmware does: a verifier may keep this until [`Device::until_s`].
#[derive(Debug)]
pub struct Device {
    architecture: Architecture,
    key: ParsedPublicKey,
    /// As documents call it.
    product: String,
    firmware_id: Option<Vec<u8>>,
    device_id: Option<[u8; 8]>,
    /// SHA-256 over the device's certificate: what it is kept by.
    pub certificate: [u8; 32],
    /// Unix seconds at which the chain's first certificate runs out.
    pub until_s: u64,
}

impl Device {
    /// Checks the chain, and notes it.
    pub fn of_chain(
        architecture: Architecture,
        chain: &[Certificate],
        anchors: Anchors<'_>,
        findings: &mut Findings,
    ) -> Option<Device> {
        let path = Path::note(chain, anchors, None, findings)?;
        let leaf = &path.certificates[0];
        let name = leaf.subject_values(COMMON_NAME).into_iter().next().unwrap_or_default();
        if !architecture.is_chip(&name) {
            let kind = architecture.name();
            findings.failed(ARCHITECTURE, format!("'{name}' is no certificate of a {kind}"));
            return None;
        }
        findings.passed(ARCHITECTURE, &name);
        let key = leaf.key_on(P384).ok_or("the device's key is not one of P-384");
        let parsed = key.and_then(|key| {
            ParsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, key)
                .map_err(|_| "the device's key is no point of P-384")
        });
        let key = match parsed {
            Ok(key) => key,
            Err(why) => {
                findings.failed(SIGNATURE, why);
                return None;
            }
        };
        Some(Device {
            architecture,
            key,
            product: product_of(&name),
            firmware_id: firmware_id(leaf),
            device_id: number_of(&path.certificates),
            certificate: leaf.digest(),
            until_s: path.until_s,
        })
    }

    /// Checks a report of this device. `nonce` is the challenge that it has to answer.
    pub fn verify(
        &self,
        bytes: &[u8],
        nonce: Option<&[u8; 32]>,
        golden: &[GoldenValues],
        findings: &mut Findings,
    ) -> Option<Report> {
        let read = Report::parse(bytes);
        let report = findings.check(FORMAT, read, |report| {
            format!("SPDM 1.1, {} measurements", report.measurements.len())
        })?;
        let signed = self.key.verify_sig(report.signed, report.signature);
        let signed = signed.map_err(|_| "not by the key of the device's certificate");
        findings.check(SIGNATURE, signed, |()| "ECDSA P-384, SHA-384".to_owned())?;
        let report = report.owned();
        self.check_firmware(&report, findings);
        self.check_device(&report, findings);
        check_nonce(&report, nonce, findings);
        self.claim(&report, findings);
        self.check_values(&report, golden, findings);
        Some(report)
    }

    /// The device's number, which its boot ROM's certificate names.
    pub fn device_id(&self) -> Option<[u8; 8]> {
        self.device_id
    }

    fn check_firmware(&self, report: &Report, findings: &mut Findings) {
        match (report.firmware_id(), &self.firmware_id) {
            (None, _) => findings.not_checked(FIRMWARE_ID, "the report names none"),
            (Some(_), None) => {
                findings.failed(FIRMWARE_ID, "the device's certificate is for no firmware");
            }
            (Some(said), Some(certified)) if said == certified => {
                findings.claim("fwid", hex::encode(said));
                findings.passed(FIRMWARE_ID, "as in the device's certificate");
            }
            (Some(_), Some(_)) => {
                findings.failed(FIRMWARE_ID, "the device's certificate is for other firmware");
            }
        }
    }

    fn check_device(&self, report: &Report, findings: &mut Findings) {
        let Some(id) = self.device_id else {
            findings.not_checked(DEVICE_ID, "no certificate of the chain names the device");
            return;
        };
        findings.claim("device-id", hex::encode(id));
        if !self.architecture.is_switch() {
            findings.passed(DEVICE_ID, hex::encode(id));
        } else if report.switch_id() == Some(id) {
            findings.passed(DEVICE_ID, format!("{}, in report and certificate", hex::encode(id)));
        } else {
            findings.failed(DEVICE_ID, "the report names another switch than the certificate");
        }
    }

    fn claim(&self, report: &Report, findings: &mut Findings) {
        findings.claim("arch", self.architecture.name());
        if let Some(version) = report.driver_version() {
            findings.claim("driver-version", version);
        }
        if let Some(version) = report.vbios_version(self.architecture) {
            findings.claim("vbios-version", version);
        }
        if let Some(on) = report.switched(Feature::PROTECTED_PCIE) {
            findings.claim("protected-pcie", on);
        }
        if let Some(on) = report.switched(Feature::NVDEC0) {
            findings.claim("nvdec0", on);
        }
        if let Some(mode) = report.mode() {
            findings.claim("mode", mode);
        }
        if let Some(locked) = report.is_locked() {
            findings.claim("locked", locked);
        }
    }

    /// Each active golden value must be what the device measured. A GPU has two documents, one of its driver and one of
    /// its firmware; a switch has one.
    fn check_values(&self, report: &Report, golden: &[GoldenValues], findings: &mut Findings) {
        let driver = report.driver_version();
        let firmware = report.vbios_version(self.architecture);
        let mut versions: Vec<String> = firmware.into_iter().collect();
        if !self.architecture.is_switch() {
            versions.extend(driver);
        }
        let wanted = if self.architecture.is_switch() { 1 } else { 2 };
        // Several boards may have one version: the document that fits is the board's.
        let documents: Vec<&GoldenValues> = versions
            .iter()
            .filter_map(|version| {
                let of_version = golden
                    .iter()
                    .filter(|one| one.version == *version && one.product == self.product);
                of_version.min_by_key(|one| compare(report, &[one]).wrong.len())
            })
            .collect();
        if versions.len() < wanted {
            findings.failed(GOLDEN_VALUES, "the report does not name its versions");
            return;
        }
        let compared = compare(report, &documents);
        if documents.is_empty() {
            let versions = versions.join(" and ");
            findings.not_checked(GOLDEN_VALUES, format!("no document for {versions}"));
            return;
        }
        findings.claim("golden-values-matched", count(compared.matched));
        findings.claim("golden-values-failed", count(compared.wrong.len()));
        if let Some(index) = compared.twice {
            findings.failed(GOLDEN_VALUES, format!("two documents have a value {index}"));
        } else if !compared.wrong.is_empty() {
            let shown: Vec<String> = compared.wrong.iter().take(16).map(u8::to_string).collect();
            let (wrong, all) = (compared.wrong.len(), compared.matched + compared.wrong.len());
            let shown = shown.join(", ");
            findings.failed(GOLDEN_VALUES, format!("{wrong} of {all} differ: {shown}"));
        } else if documents.len() < wanted {
            let had = &documents[0].version;
            findings.not_checked(
                GOLDEN_VALUES,
                format!("{} match for {had}, no document for the other version", compared.matched),
            );
        } else if compared.matched == 0 {
            findings.not_checked(GOLDEN_VALUES, "the documents have no values");
        } else {
            let rest = report.measurements.len().saturating_sub(compared.matched);
            findings.passed(
                GOLDEN_VALUES,
                format!("{} match, {rest} have no reference", compared.matched),
            );
        }
    }
}

/// Verifies a device's evidence from nothing.
pub fn verify(
    evidence: &Evidence,
    anchors: Anchors<'_>,
    nonce: Option<&[u8; 32]>,
    golden: &[GoldenValues],
) -> (Findings, Option<(Device, Report)>) {
    let mut findings = Findings::default();
    let device = Device::of_chain(evidence.architecture, &evidence.chain, anchors, &mut findings);
    let verified = device.and_then(|device| {
        let report = device.verify(&evidence.report, nonce, golden, &mut findings)?;
        Some((device, report))
    });
    if let Some(word) = evidence.driver.filter(|_| !evidence.architecture.is_switch()) {
        word.claim(&mut findings);
    }
    (findings, verified)
}

fn check_nonce(report: &Report, nonce: Option<&[u8; 32]>, findings: &mut Findings) {
    match nonce {
        None => findings.not_checked(NONCE, "none was given: the report may be of any age"),
        Some(nonce) if *nonce == report.nonce => findings.passed(NONCE, "answered"),
        Some(_) => findings.failed(NONCE, "the report answers another one"),
    }
}

/// The chip's name, which a certificate writes with a line where documents have none.
fn product_of(name: &str) -> String {
    name.split(' ').next().unwrap_or_default().replace('_', "")
}

fn firmware_id(leaf: &Certificate) -> Option<Vec<u8>> {
    let value = FIRMWARE_ID_OIDS.iter().find_map(|oid| leaf.extension(*oid))?;
    Some(value.last_chunk::<48>()?.to_vec())
}

/// The number by which a chain names its device, the device's own certificate first. Nothing of the chain is verified here.
pub fn number_of(chain: &[Certificate]) -> Option<[u8; 8]> {
    chain.iter().skip(1).find_map(device_id)
}

/// The boot ROM's certificate names the device by a serial number: a byte of type, then eight that switches and GPUs
/// know each other by.
fn device_id(certificate: &Certificate) -> Option<[u8; 8]> {
    let names = certificate.subject_values(COMMON_NAME);
    names.iter().any(|name| name.ends_with("BROM")).then_some(())?;
    let serial = certificate.subject_values(SERIAL_NUMBER).into_iter().next()?;
    let bytes: [u8; 9] = hex::decode(serial).ok()?.try_into().ok()?;
    Some(*bytes.last_chunk::<8>().expect("nine bytes end with eight"))
}

struct Compared {
    matched: usize,
    wrong: BTreeSet<u8>,
    twice: Option<u8>,
}

fn compare(report: &Report, documents: &[&GoldenValues]) -> Compared {
    let without_decoder = report.switched(Feature::NVDEC0) == Some(false);
    let mut seen = BTreeSet::new();
    let mut compared = Compared { matched: 0, wrong: BTreeSet::new(), twice: None };
    for (index, possible) in documents.iter().flat_map(|one| &one.values) {
        if !seen.insert(*index) {
            compared.twice = Some(*index);
        }
        if *index == NVDEC0_INDEX && without_decoder {
            continue;
        }
        let measured = index.checked_add(1).and_then(|block| report.measurements.get(&block));
        if measured.is_some_and(|value| possible.contains(value)) {
            compared.matched += 1;
        } else {
            compared.wrong.insert(*index);
        }
    }
    compared
}

/// A count of measurements: there are at most 255 blocks.
fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "nvidia_tests.rs"]
mod tests;
