//! What AMD's secure processor says of a virtual machine, and whether it is good: SEV-SNP attestation reports.
//!
//! Source: AMD, *SEV Secure Nested Paging Firmware ABI Specification* (56860), table 23; *Versioned Chip Endorsement Key
//! Certificate and KDS Interface Specification* (57230) for the certificates' extensions. Numbers are little-endian.
//!
//! The key that signs is a chip's and a version's of its firmware (VCEK), or a cloud's (VLEK). Its certificate names the
//! version, and a VCEK's the chip: both are compared with the report. [`vtpm_report_data`] is how a virtual TPM inside
//! the machine is bound to a report.
//!
//! # What it does not show
//!
//! - That the machine still runs what it was started with. `measurement` is of the launch alone.
//! - Where it runs, with a VLEK; nor that the chip is in nobody's laboratory.
//! - Whether the firmware's version is new enough: policies say so, by the `reported-tcb` claims.

use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED, UnparsedPublicKey};
use sha2::{Digest as _, Sha512};
use x509_cert::der::Decode as _;
use x509_cert::der::asn1::ObjectIdentifier;

use crate::findings::Findings;
use crate::pki::{Anchors, Certificate, P384, Path};
use crate::wire::{Broken, Reader};

/// A report's length, in bytes.
pub const REPORT_BYTES: usize = 0x4a0;
/// Of the check that the report can be read.
pub const FORMAT: &str = "report format";
/// Of the check of the report's signature.
pub const SIGNATURE: &str = "signature";
/// Of the check that the report names the kind of key that its certificate is for.
pub const SIGNING_KEY: &str = "signing key";
/// Of the check that the certificate is for the version of firmware that the report names.
pub const FIRMWARE: &str = "firmware version";
/// Of the check that the certificate is for the chip that the report names.
pub const CHIP: &str = "chip id";
/// Of the check of what the report was asked with.
pub const NONCE: &str = "nonce";

/// Of the check that a report vouches for a virtual TPM.
pub const VTPM: &str = "virtual TPM";

/// What is signed.
const SIGNED_BYTES: usize = 0x2a0;
/// A number of the signature: 48 bytes, and zeros.
const NUMBER_BYTES: usize = 72;
const P384_BYTES: usize = 48;
const ECDSA_P384_SHA384: u32 = 1;
/// The versions of the report that this reads. Later ones may give reserved bytes a meaning.
const VERSIONS: std::ops::RangeInclusive<u32> = 2..=5;
/// The family of processors (Zen 5) since which the version of the firmware has other parts.
const TURIN_FAMILY: u8 = 0x1a;

const HARDWARE_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.4");
const CLOUD_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.5");
const BOOTLOADER: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.1");
const TEE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.2");
const SNP: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.3");
const MICROCODE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.8");
const FMC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.9");

/// Who signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SigningKey {
    /// A key of one chip and one version of its firmware.
    Vcek,
    /// A key of a cloud.
    Vlek,
}

impl SigningKey {
    fn name(self) -> &'static str {
        match self {
            SigningKey::Vcek => "vcek",
            SigningKey::Vlek => "vlek",
        }
    }
}

/// A version of the firmware, by its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcb {
    /// Of the first firmware that starts, on processors since Zen 5.
    pub fmc: Option<u8>,
    /// Of the boot loader.
    pub bootloader: u8,
    /// Of the secure processor's operating system.
    pub tee: u8,
    /// Of the SNP firmware.
    pub snp: u8,
    /// Of the processor's microcode.
    pub microcode: u8,
}

impl Tcb {
    fn of(bytes: [u8; 8], is_turin: bool) -> Tcb {
        let [a, b, c, d, _, _, g, h] = bytes;
        if is_turin {
            Tcb { fmc: Some(a), bootloader: b, tee: c, snp: d, microcode: h }
        } else {
            Tcb { fmc: None, bootloader: a, tee: b, snp: g, microcode: h }
        }
    }
}

/// What the guest's owner allows the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestPolicy(u64);

impl GuestPolicy {
    /// Whether other threads of its cores may run something else.
    pub fn is_smt_allowed(self) -> bool {
        self.bit(16)
    }

    /// Whether it may be taken to another machine.
    pub fn is_migration_allowed(self) -> bool {
        self.bit(18)
    }

    /// Whether the host may read its memory, for debugging.
    pub fn is_debug_allowed(self) -> bool {
        self.bit(19)
    }

    /// Whether it runs on one socket alone.
    pub fn is_single_socket(self) -> bool {
        self.bit(20)
    }

    fn bit(self, at: u32) -> bool {
        self.0 >> at & 1 == 1
    }
}

/// How the host has set up the processor and its memory. Reports of every version have the field, and firmware has given
/// its bits a meaning one after another, without another version: a bit that a firmware does not know is 0. So 1 says that
/// something is so, and 0 that it is not known to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlatformInfo(u64);

impl PlatformInfo {
    /// Whether a core runs several threads, which can observe each other.
    pub fn is_smt_enabled(self) -> bool {
        self.bit(0)
    }

    /// Whether all of the memory is encrypted, also what is not the guest's.
    pub fn is_tsme_enabled(self) -> bool {
        self.bit(1)
    }

    /// Whether the memory corrects errors, which makes it harder to change bits by reading beside them.
    pub fn is_ecc_enabled(self) -> bool {
        self.bit(2)
    }

    /// Whether nobody can measure how much power the processor takes, by which secrets leak.
    pub fn is_rapl_disabled(self) -> bool {
        self.bit(3)
    }

    /// Whether the host cannot read the guest's memory as it lies there encrypted.
    pub fn is_ciphertext_hidden(self) -> bool {
        self.bit(4)
    }

    /// Whether the firmware has looked since the last reset that no two addresses lead to the same memory, as a module
    /// that lies about its size makes them (CVE-2024-21944).
    pub fn is_alias_check_complete(self) -> bool {
        self.bit(5)
    }

    fn bit(self, at: u32) -> bool {
        self.0 >> at & 1 == 1
    }
}

/// What a report says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Of the report's form.
    pub version: u32,
    /// A number that the guest's owner gave its software.
    pub guest_svn: u32,
    /// What the guest's owner allows.
    pub policy: GuestPolicy,
    /// Given by the guest's owner.
    pub family_id: [u8; 16],
    /// Given by the guest's owner.
    pub image_id: [u8; 16],
    /// The privilege of whoever asked for the report: 0 is the highest.
    pub vmpl: u32,
    /// How the host has set up the machine.
    pub platform: PlatformInfo,
    /// Who signed.
    pub signing_key: SigningKey,
    /// What whoever asked gave: a nonce, or the hash of something.
    pub report_data: [u8; 64],
    /// Of what the guest was started with.
    pub measurement: [u8; 48],
    /// Given by the host at the start.
    pub host_data: [u8; 32],
    /// Of the key that signed the guest's identity; zeros if none did.
    pub id_key_digest: [u8; 48],
    /// Of the key that certified that one; zeros if none did.
    pub author_key_digest: [u8; 48],
    /// The version for which the signing key was made.
    pub reported_tcb: Tcb,
    /// Which chip it is; zeros if the host does not want it to be known.
    pub chip_id: [u8; 64],
    signature: [u8; 2 * P384_BYTES],
}

impl Report {
    fn is_chip_masked(&self) -> bool {
        self.chip_id == [0; 64]
    }

    /// Reads a report.
    ///
    /// # Errors
    /// [`Broken`] names the field that is not as it should be.
    pub fn parse(bytes: &[u8]) -> Result<Report, Broken> {
        if bytes.len() != REPORT_BYTES {
            return Err(Broken("the report's length"));
        }
        let mut r = Reader::new(bytes);
        let version = r.u32_le("version")?;
        if !VERSIONS.contains(&version) {
            return Err(Broken("version"));
        }
        let guest_svn = r.u32_le("guestSvn")?;
        let policy = GuestPolicy(u64::from_le_bytes(r.array("policy")?));
        let (family_id, image_id) = (r.array("familyId")?, r.array("imageId")?);
        let vmpl = r.u32_le("vmpl")?;
        if r.u32_le("signatureAlgo")? != ECDSA_P384_SHA384 {
            return Err(Broken("signatureAlgo"));
        }
        r.array::<8>("currentTcb")?;
        let platform = PlatformInfo(u64::from_le_bytes(r.array("platformInfo")?));
        let flags = r.u32_le("flags")?;
        let signing_key = match flags >> 2 & 7 {
            0 => SigningKey::Vcek,
            1 => SigningKey::Vlek,
            _ => return Err(Broken("signingKey")),
        };
        r.array::<4>("reserved")?;
        let report_data = r.array("reportData")?;
        let measurement = r.array("measurement")?;
        let host_data = r.array("hostData")?;
        let id_key_digest = r.array("idKeyDigest")?;
        let author_key_digest = r.array("authorKeyDigest")?;
        r.array::<64>("reportId")?;
        let reported_tcb = r.array("reportedTcb")?;
        let [family, ..] = r.array::<24>("cpuid")?;
        let chip_id: [u8; 64] = r.array("chipId")?;
        // Before version 3 the report does not say which processor it is of, and Zen 5 has no such firmware.
        let is_turin = version > 2 && family == TURIN_FAMILY;
        let mut r = Reader::new(&bytes[SIGNED_BYTES..]);
        let mut signature = [0; 2 * P384_BYTES];
        for half in signature.chunks_exact_mut(P384_BYTES) {
            let number: [u8; NUMBER_BYTES] = r.array("signature")?;
            if number[P384_BYTES..].iter().any(|byte| *byte != 0) {
                return Err(Broken("signature"));
            }
            half.copy_from_slice(&number[..P384_BYTES]);
            half.reverse();
        }
        Ok(Report {
            version,
            guest_svn,
            policy,
            family_id,
            image_id,
            vmpl,
            platform,
            signing_key,
            report_data,
            measurement,
            host_data,
            id_key_digest,
            author_key_digest,
            reported_tcb: Tcb::of(reported_tcb, is_turin),
            chip_id,
            signature,
        })
    }
}

/// Verifies a report with the certificate of the key that signed it, first in `chain`. `asked` is what the report must
/// have been asked with.
pub fn verify(
    bytes: &[u8],
    chain: &[Certificate],
    anchors: Anchors<'_>,
    asked: Option<&[u8; 64]>,
) -> (Findings, Option<Report>) {
    let mut findings = Findings::default();
    let report = checked(bytes, chain, anchors, asked, &mut findings);
    (findings, report)
}

fn checked(
    bytes: &[u8],
    chain: &[Certificate],
    anchors: Anchors<'_>,
    asked: Option<&[u8; 64]>,
    findings: &mut Findings,
) -> Option<Report> {
    let path = Path::note(chain, anchors, None, findings)?;
    let leaf = &path.certificates[0];
    let report = findings
        .check(FORMAT, Report::parse(bytes), |report| format!("version {}", report.version))?;
    let signed = leaf.key_on(P384).is_some_and(|key| {
        let key = UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, key);
        key.verify(&bytes[..SIGNED_BYTES], &report.signature).is_ok()
    });
    if !signed {
        findings.failed(SIGNATURE, "not by the key of the certificate");
        return None;
    }
    findings.passed(SIGNATURE, "ECDSA P-384, SHA-384");
    check_key(&report, leaf, findings);
    check_firmware(&report, leaf, findings);
    check_chip(&report, leaf, findings);
    match asked {
        None => findings.not_checked(NONCE, "none was given: the report may be of any age"),
        Some(asked) if *asked == report.report_data => findings.passed(NONCE, "answered"),
        Some(_) => findings.failed(NONCE, "the report was asked with something else"),
    }
    claim(&report, findings);
    Some(report)
}

/// A chip's certificate has the chip's number, a cloud's has the cloud's.
fn check_key(report: &Report, leaf: &Certificate, findings: &mut Findings) {
    let certified = match (leaf.extension(HARDWARE_ID), leaf.extension(CLOUD_ID)) {
        (Some(_), None) => Some(SigningKey::Vcek),
        (None, Some(_)) => Some(SigningKey::Vlek),
        _ => None,
    };
    if certified == Some(report.signing_key) {
        findings.passed(SIGNING_KEY, report.signing_key.name());
    } else {
        findings.failed(SIGNING_KEY, "the certificate is of another kind of key");
    }
}

fn check_firmware(report: &Report, leaf: &Certificate, findings: &mut Findings) {
    let Tcb { fmc, bootloader, tee, snp, microcode } = report.reported_tcb;
    let parts = [
        ("first firmware", FMC, fmc),
        ("boot loader", BOOTLOADER, Some(bootloader)),
        ("TEE", TEE, Some(tee)),
        ("SNP firmware", SNP, Some(snp)),
        ("microcode", MICROCODE, Some(microcode)),
    ];
    for (part, oid, said) in parts {
        let certified = leaf.extension(oid).map(u8::from_der);
        match (said, certified) {
            (Some(said), Some(Ok(certified))) if said == certified => {}
            (None, _) => {}
            _ => {
                let why = format!("the certificate is for another version of the {part}");
                findings.failed(FIRMWARE, why);
                return;
            }
        }
    }
    findings.passed(FIRMWARE, "as in the certificate");
}

fn check_chip(report: &Report, leaf: &Certificate, findings: &mut Findings) {
    if report.signing_key == SigningKey::Vlek {
        findings.not_checked(CHIP, "a cloud's key is not bound to a chip");
    } else if report.is_chip_masked() {
        findings.not_checked(CHIP, "the host masks it");
    } else {
        // Zen 5 has eight bytes, and the report has zeros behind them.
        let said = hardware_id(leaf).unwrap_or_default();
        let is_same = [8, 64].contains(&said.len())
            && report.chip_id.strip_prefix(said).is_some_and(|rest| rest.iter().all(|b| *b == 0));
        match is_same {
            true => findings.passed(CHIP, hex::encode(said)),
            false => findings.failed(CHIP, "the certificate is for another chip"),
        }
    }
}

/// Some certificates have it as it is, and others in an OCTET STRING.
fn hardware_id(leaf: &Certificate) -> Option<&[u8]> {
    let value = leaf.extension(HARDWARE_ID)?;
    match value {
        [4, length, inner @ ..] if inner.len() == usize::from(*length) => Some(inner),
        _ => Some(value),
    }
}

fn claim(report: &Report, findings: &mut Findings) {
    findings.claim("version", report.version);
    findings.claim("guest-svn", report.guest_svn);
    findings.claim("vmpl", report.vmpl);
    findings.claim("smt-allowed", report.policy.is_smt_allowed());
    findings.claim("migration-allowed", report.policy.is_migration_allowed());
    findings.claim("debug-allowed", report.policy.is_debug_allowed());
    findings.claim("single-socket", report.policy.is_single_socket());
    let platform = report.platform;
    findings.claim("smt-enabled", platform.is_smt_enabled());
    findings.claim("tsme-enabled", platform.is_tsme_enabled());
    findings.claim("ecc-enabled", platform.is_ecc_enabled());
    findings.claim("rapl-disabled", platform.is_rapl_disabled());
    findings.claim("ciphertext-hidden", platform.is_ciphertext_hidden());
    findings.claim("alias-check-complete", platform.is_alias_check_complete());
    findings.claim("signing-key", report.signing_key.name());
    findings.claim("measurement", hex::encode(report.measurement));
    findings.claim("report-data", hex::encode(report.report_data));
    findings.claim("host-data", hex::encode(report.host_data));
    findings.claim("family-id", hex::encode(report.family_id));
    findings.claim("image-id", hex::encode(report.image_id));
    findings.claim("id-key-digest", hex::encode(report.id_key_digest));
    findings.claim("author-key-digest", hex::encode(report.author_key_digest));
    if report.signing_key == SigningKey::Vcek && !report.is_chip_masked() {
        findings.claim("chip-id", hex::encode(report.chip_id));
    }
    let tcb = report.reported_tcb;
    findings.claim("reported-tcb-bootloader", u32::from(tcb.bootloader));
    findings.claim("reported-tcb-tee", u32::from(tcb.tee));
    findings.claim("reported-tcb-snp", u32::from(tcb.snp));
    findings.claim("reported-tcb-microcode", u32::from(tcb.microcode));
    if let Some(fmc) = tcb.fmc {
        findings.claim("reported-tcb-fmc", u32::from(fmc));
    }
}

/// Checks that a report vouches for a virtual TPM with this endorsement key (`TPMT_PUBLIC`), asked with `nonce`.
pub fn check_vtpm(report: &Report, nonce: &[u8], endorsement_key: &[u8], findings: &mut Findings) {
    if report.vmpl != 0 {
        findings.failed(VTPM, "the guest's own system, or less, asked for the report");
    } else if report.report_data == vtpm_report_data(nonce, endorsement_key) {
        findings.passed(VTPM, "the report is over its endorsement key and the nonce");
    } else {
        findings.failed(VTPM, "the report is over another endorsement key, or another nonce");
    }
}

/// What a secure VM service module asks for a report with, to vouch for the virtual TPM that it runs (AMD, *Secure VM
/// Service Module for SEV-SNP Guests*, 58019, 7): SHA-512 over the nonce and the `TPMT_PUBLIC` of the TPM's endorsement
/// key. It asks at VMPL 0, where no guest's system is.
pub fn vtpm_report_data(nonce: &[u8], endorsement_key: &[u8]) -> [u8; 64] {
    Sha512::new().chain_update(nonce).chain_update(endorsement_key).finalize().into()
}

/// Whether a certificate names a chip or a cloud, as those of signing keys do.
pub fn is_of_signing_key(certificate: &Certificate) -> bool {
    [HARDWARE_ID, CLOUD_ID].iter().any(|oid| certificate.extension(*oid).is_some())
}

#[cfg(test)]
#[path = "snp_tests.rs"]
mod tests;
