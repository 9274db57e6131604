//! Verifying evidence, beside the one signature that it cannot do without. One core, everything warm.

use std::path::Path;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED,
    ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, ParsedPublicKey,
};
use distos_evidence::bank::{Bank, BankValues};
use distos_evidence::eventlog::{self, EventType};
use distos_evidence::evidence::{AttestationKey, Pcrs, Policy, appraise, key_template};
use distos_evidence::findings::{Findings, Outcome as Checked};
use distos_evidence::nvidia::{self, Architecture, Device, GoldenValues};
use distos_evidence::pki::{Anchors, Certificate};
use rcgen::{CertificateParams, CustomExtension, DnType, IsCa, Issuer, KeyPair};

use super::{Failure, Outcome};
use crate::report::Figure;
use crate::sample::Pairs;

const PAIRS: usize = 3_000;
const EVENTS: usize = 200;
/// As long as an event of a real log is in the mean.
const EVENT_BYTES: usize = 256;
const NONCE: [u8; 32] = [7; 32];
const NODES: u32 = 1024;
const PERIOD_NS: f64 = 30e9;
const AT_S: u64 = 1_780_000_000;

pub(super) fn all(_: &Path) -> Outcome {
    let mut figures = quote()?;
    figures.extend(gpu()?);
    Ok(figures)
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

/// A crypto-agile log whose events are all of one register, each covered by its digest, and what the register then holds.
fn log() -> (Vec<u8>, [u8; 32]) {
    let algorithm = Bank::Sha256.algorithm().to_le_bytes();
    let head = |pcr: u32, kind: EventType| [pcr.to_le_bytes(), kind.0.to_le_bytes()].concat();
    let mut spec = b"Spec ID Event03\0".to_vec();
    spec.extend([0, 0, 0, 0, 0, 2, 0, 2]);
    spec.extend(1u32.to_le_bytes());
    spec.extend(algorithm);
    spec.extend([32, 0, 0]);
    let mut log = head(0, EventType::NO_ACTION);
    log.extend([0; 20]);
    log.extend((spec.len() as u32).to_le_bytes());
    log.extend(spec);
    let mut value = Bank::Sha256.filled(0);
    for number in 0..EVENTS {
        let data = vec![number as u8; EVENT_BYTES];
        let digest = Bank::Sha256.hash(&[&data]);
        value = value.extended(Bank::Sha256, digest.as_bytes());
        log.extend(head(5, EventType::EFI_ACTION));
        log.extend(1u32.to_le_bytes());
        log.extend(algorithm);
        log.extend(digest.as_bytes());
        log.extend((data.len() as u32).to_le_bytes());
        log.extend(data);
    }
    let mut held = [0; 32];
    held.copy_from_slice(value.as_bytes());
    (log, held)
}

/// `TPMS_ATTEST` of a quote over these registers.
fn attest(key: &AttestationKey, pcrs: &Pcrs) -> Vec<u8> {
    let values: Vec<&[u8]> = pcrs.values().map(<[u8; 32]>::as_slice).collect();
    let mut out = vec![0xff, b'T', b'C', b'G', 0x80, 0x18];
    out.extend(sized(&key.qualified_name()));
    out.extend(sized(&NONCE));
    out.extend([0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1]);
    out.extend([0; 8]);
    out.extend([0, 0, 0, 1, 0, 0x0b, 3, 0xff, 0, 0]);
    out.extend(sized(Bank::Sha256.hash(&values).as_bytes()));
    out
}

fn quote() -> Outcome {
    let random = SystemRandom::new();
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
    let point = pair.public_key().as_ref();
    let public = [key_template(), sized(&point[1..33]), sized(&point[33..])].concat();
    let key = AttestationKey::from_public(&public)?;
    let (log, held) = log();
    let mut pcrs: Pcrs = (0..8).map(|pcr| (pcr, [0; 32])).collect();
    pcrs.insert(5, held);
    let quote = attest(&key, &pcrs);
    let raw = pair.sign(&random, &quote)?;
    let (r, s) = raw.as_ref().split_at(32);
    let signature = [&[0, 0x18, 0, 0x0b][..], &sized(r), &sized(s)].concat();
    let policy = Policy::new(pcrs.clone());
    let ours = || -> Result<(), Failure> {
        appraise(&policy, &key, &NONCE, &quote, &signature, &pcrs, None)?;
        let found = eventlog::verify(&log, Some(&BankValues::from(&pcrs)));
        good(&found, "replay")
    };
    let bare = ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)?;
    let peer = || -> Result<(), Failure> { Ok(bare.verify_sig(&quote, raw.as_ref())?) };
    Pairs::take(PAIRS / 10, ours, peer)?;
    let pairs = Pairs::take(PAIRS, ours, peer)?;
    let (ours, peer) = pairs.medians();
    let kib = log.len() / 1024;
    let figure = Figure::of("evidence", "a TPM's quote with its log, p50", ours, peer)
        .beside("aws-lc-rs: the quote's signature alone, P-256, the key parsed")
        .within(pairs.interval())
        .at_most(3.0)
        .noting(format!(
            "the log has {EVENTS} events and {kib} KiB, each hashed once and extended"
        ));
    // What verifying costs a fleet, by what it costs for one node.
    let fleet = ours * f64::from(NODES);
    let cores = Figure::of(
        "evidence",
        "1,024 nodes that attest every 30 s, by that",
        fleet,
        PERIOD_NS,
    )
    .beside("one core for 30 s")
    .noting("how many cores a verifier keeps busy; what carries the evidence there is not in it");
    Ok(vec![figure, cores])
}

fn good(findings: &Findings, check: &str) -> Result<(), Failure> {
    if findings.outcome(check) == Checked::Passed && findings.worst() != Checked::Failed {
        return Ok(());
    }
    Err(format!("not good: {findings:?}").into())
}

/// A GPU that was never made, its chain, and a report of it that matches two documents. No real report here has its
/// documents.
struct Gpu {
    roots: Vec<Certificate>,
    chain: Vec<Certificate>,
    report: Vec<u8>,
    golden: Vec<GoldenValues>,
}

impl Gpu {
    fn new() -> Result<(Gpu, Vec<u8>), Failure> {
        let p384 = || KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384);
        let named = |name: &str| -> Result<CertificateParams, rcgen::Error> {
            let mut params = CertificateParams::new(Vec::new())?;
            params.distinguished_name.push(DnType::CommonName, name);
            Ok(params)
        };
        let (root_key, leaf_key) = (p384()?, p384()?);
        let mut root = named("a root of the benchmark's")?;
        root.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let mut leaf = named("GH100 A01 GSP FMC LF")?;
        let firmware = [&[0x30, 0x30][..], &[5; 48]].concat();
        let id = CustomExtension::from_oid_content(&[2, 23, 133, 5, 4, 1], firmware);
        leaf.custom_extensions.push(id);
        let issued = leaf.signed_by(&leaf_key, &Issuer::from_params(&root, &root_key))?;
        let pkcs8 = leaf_key.serialize_der();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &pkcs8)?;
        let mut report = request_and_response();
        let signature = pair.sign(&SystemRandom::new(), &report)?;
        report.extend(signature.as_ref());
        let golden = |version: &str, indices: std::ops::Range<u8>| GoldenValues {
            product: "GH100".to_owned(),
            version: version.to_owned(),
            values: indices.map(|index| (index, vec![vec![index + 1; 48]])).collect(),
            digest: [0; 32],
        };
        let gpu = Gpu {
            roots: vec![Certificate::from_der(root.self_signed(&root_key)?.der())?],
            chain: vec![Certificate::from_der(issued.der())?],
            report,
            golden: vec![golden("550.90.07", 0..20), golden("96.00.A5.00.01", 20..35)],
        };
        Ok((gpu, pair.public_key().as_ref().to_vec()))
    }
}

/// With 64 measurements and the fields of a real H100's.
fn request_and_response() -> Vec<u8> {
    let mut record = Vec::new();
    for number in 1..=64 {
        record.extend([number, 1, 51, 0, 1, 48, 0]);
        record.extend([number; 48]);
    }
    let fields: [(u16, &[u8]); 6] = [
        (3, b"550.90.07\0"),
        (6, &[0, 0xa5, 0, 0x96, 1, 0, 0, 0]),
        (11, &[0x55]),
        (12, &[0; 256]),
        (20, &[5; 48]),
        (21, &[0xaa]),
    ];
    let mut opaque = Vec::new();
    for (number, value) in fields {
        opaque.extend(number.to_le_bytes());
        opaque.extend((value.len() as u16).to_le_bytes());
        opaque.extend(value);
    }
    let mut out = [&[0x11, 0xe0, 1, 0xff][..], &NONCE, &[0, 0x11, 0x60, 0, 0, 64]].concat();
    out.extend(&(record.len() as u32).to_le_bytes()[..3]);
    out.extend(record);
    out.extend([9; 32]);
    out.extend((opaque.len() as u16).to_le_bytes());
    out.extend(opaque);
    out
}

fn gpu() -> Outcome {
    let (gpu, public) = Gpu::new()?;
    let anchors = Anchors { roots: &gpu.roots, others: &[], crls: &[], responses: &[], at_s: AT_S };
    let mut findings = Findings::default();
    let device = Device::of_chain(Architecture::Hopper, &gpu.chain, anchors, &mut findings)
        .ok_or_else(|| format!("the chain does not hold: {findings:?}"))?;
    let ours = || -> Result<(), Failure> {
        let mut findings = Findings::default();
        device.verify(&gpu.report, Some(&NONCE), &gpu.golden, &mut findings);
        good(&findings, nvidia::GOLDEN_VALUES)
    };
    let key = ParsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, public)?;
    let (message, signature) = gpu.report.split_at(gpu.report.len() - 96);
    let peer = || -> Result<(), Failure> { Ok(key.verify_sig(message, signature)?) };
    Pairs::take(PAIRS / 10, ours, peer)?;
    let pairs = Pairs::take(PAIRS, ours, peer)?;
    let (ours, peer) = pairs.medians();
    let name = "a GPU's report with 35 reference values, its chain known, p50";
    let figure = Figure::of("evidence", name, ours, peer)
        .beside("aws-lc-rs: P-384 with SHA-384 over the same bytes, the key parsed")
        .within(pairs.interval())
        .at_most(1.5)
        .noting(format!(
            "{} bytes; synthetic, as no real report has its documents here",
            message.len()
        ));
    Ok(vec![figure])
}
