//! Reports of GPUs, switches and processors, the certificates of their makers, and what makers publish.

use distos_collateral::manifest::Manifest;
use distos_evidence::nvidia::{Architecture, Evidence, report::Report};
use distos_evidence::pki::{Anchors, Certificate, Crl, Path};
use distos_evidence::quote::{QuoteKey, values_of_tools};
use distos_evidence::snp;

use super::{identity, seed};

const NOBODY: Anchors<'_> =
    Anchors { roots: &[], others: &[], crls: &[], responses: &[], at_s: 1_780_000_000 };
const SIGNATURE_BYTES: usize = 96;

fn field(number: u16, value: &[u8]) -> Vec<u8> {
    [&number.to_le_bytes()[..], &(value.len() as u16).to_le_bytes(), value].concat()
}

/// A report with three measurements and these fields, which nobody has signed.
fn report(fields: &[Vec<u8>]) -> Vec<u8> {
    let block = |number: u8| [&[number, 1, 51, 0, 1, 48, 0][..], &[number; 48]].concat();
    let record = [block(1), block(2), block(3)].concat();
    let opaque = fields.concat();
    let mut out = [&[0x11, 0xe0, 1, 0xff][..], &[7; 32], &[0]].concat();
    out.extend([0x11, 0x60, 0, 0, 3]);
    out.extend(&(record.len() as u32).to_le_bytes()[..3]);
    out.extend(record);
    out.extend([9; 32]);
    out.extend((opaque.len() as u16).to_le_bytes());
    out.extend(opaque);
    out.extend([0; SIGNATURE_BYTES]);
    out
}

pub(super) fn report_seeds() -> Vec<(String, Vec<u8>)> {
    let gpu = [
        field(3, b"550.90.07\0"),
        field(6, &[0, 0xa5, 0, 0x96, 1, 0, 0, 0]),
        field(11, &[0x55]),
        field(20, &[5; 48]),
        field(21, &[0xaa]),
        field(22, &[3; 16]),
        field(36, &[2, 0]),
    ];
    let switch =
        [field(6, b"96.10.55.00.01"), field(22, &[3; 8]), field(25, &[1, 0]), field(26, &[4; 128])];
    let json = br#"[{"arch":"HOPPER","certificate":"AAAA","evidence":"AAAA","nonce":"00"}]"#;
    vec![seed("gpu", report(&gpu)), seed("switch", report(&switch)), seed("list", &json[..])]
}

/// What is read is all that is there, and nothing is read of a report that says a thing twice.
pub(super) fn report_target(bytes: &[u8]) {
    let _ = Evidence::from_json(bytes);
    let Ok(found) = Report::parse(bytes) else { return };
    assert_eq!(found.signed.len() + SIGNATURE_BYTES, bytes.len());
    let count = found.measurements.len();
    let report = found.owned();
    assert_eq!(report.measurements.len(), count);
    for architecture in [Architecture::Hopper, Architecture::Ls10] {
        let _ = report.vbios_version(architecture);
    }
    let _ = (report.driver_version(), report.mode(), report.is_locked());
    let ids = [report.switches(), report.gpus()].into_iter().flatten().flatten();
    assert!(ids.into_iter().all(|id| id != [0; 8] && id != [0xff; 8]), "a link to nowhere");
}

pub(super) fn snp_seeds() -> Vec<(String, Vec<u8>)> {
    let of_version = |version: u32| {
        let mut bytes = vec![0; snp::REPORT_BYTES];
        bytes[..4].copy_from_slice(&version.to_le_bytes());
        bytes[0x34] = 1;
        bytes[0x188] = 0x1a;
        bytes
    };
    vec![seed("second", of_version(2)), seed("fifth", of_version(5))]
}

/// A report is read whole, and nobody has signed one without a certificate.
pub(super) fn snp_target(bytes: &[u8]) {
    if let Ok(report) = snp::Report::parse(bytes) {
        assert_eq!(bytes.len(), snp::REPORT_BYTES);
        assert_eq!(report.reported_tcb.fmc.is_some(), report.version > 2 && bytes[0x188] == 0x1a);
    }
    assert!(snp::verify(bytes, &[], NOBODY, None).1.is_none());
}

pub(super) fn certificate_seeds() -> Vec<(String, Vec<u8>)> {
    // The device's own certificate stands first there, behind its length.
    let chains = identity::svid_seeds();
    let leaf = |chain: &[u8]| {
        let length = usize::from(u16::from_le_bytes([chain[0], chain[1]]));
        chain[2..2 + length].to_vec()
    };
    let mut seeds: Vec<_> = chains.iter().map(|(name, chain)| seed(name, leaf(chain))).collect();
    let pem = b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    seeds.push(seed("pem", &pem[..]));
    seeds
}

/// Where nobody is trusted nothing leads to a root, and where one certificate is, that one alone.
pub(super) fn certificate_target(bytes: &[u8]) {
    let _ = (Crl::several(bytes), QuoteKey::parse(bytes), values_of_tools(bytes));
    let Ok(found) = Certificate::several(bytes) else { return };
    for one in &found {
        assert_eq!(Certificate::from_der(one.der()).as_ref(), Ok(one));
        assert!(Path::find(one, &found, NOBODY, None).is_err());
        let roots = std::slice::from_ref(one);
        if let Ok(path) = Path::find(one, &found, Anchors { roots, ..NOBODY }, None) {
            assert_eq!(path.root(), one);
        }
    }
}

pub(super) fn manifest_seeds() -> Vec<(String, Vec<u8>)> {
    let swid = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd";
    let dsig = "http://www.w3.org/2000/09/xmldsig#";
    let text = format!(
        "<SoftwareIdentity xmlns=\"{swid}\"><Meta product=\"GH100\" colloquialVersion=\"1\"/><Payload/>\
         <s:Signature xmlns:s=\"{dsig}\"><s:SignedInfo><s:SignatureMethod \
         Algorithm=\"http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384\"/></s:SignedInfo><s:KeyInfo><s:X509Data>\
         <s:X509Certificate>MAA=</s:X509Certificate></s:X509Data></s:KeyInfo></s:Signature></SoftwareIdentity>"
    );
    vec![seed("tag", text)]
}

/// Where nobody is trusted no document says anything.
pub(super) fn manifest_target(bytes: &[u8]) {
    assert!(Manifest::verify(bytes, NOBODY).is_err());
}
