use std::process::Command;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair};
use proptest::prelude::*;
use rcgen::{CertificateParams, CustomExtension, DnType, KeyPair};
use sev::parser::ByteParser as _;

use super::*;
use crate::findings::{Claim, Outcome};
use crate::pki::CHAIN;

const AT_S: u64 = 1_780_000_000;
const ALL: [&str; 7] = [CHAIN, FORMAT, SIGNATURE, SIGNING_KEY, FIRMWARE, CHIP, NONCE];

fn anchors(roots: &[Certificate]) -> Anchors<'_> {
    Anchors { roots, others: &[], crls: &[], responses: &[], at_s: AT_S }
}

/// A real processor's report and its key's certificate: they come with the package of AMD's own library, which is a
/// dependency of these tests.
fn real() -> (Vec<u8>, Vec<Certificate>, Vec<Certificate>) {
    // Packages of other platforms may never have been fetched.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--locked"])
        .args(["--filter-platform", &platform])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let sev = packages.iter().find(|package| package["name"] == "sev").unwrap();
    let folder = std::path::Path::new(sev["manifest_path"].as_str().unwrap()).parent().unwrap();
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let several = |name: &str| Certificate::several(&read(name)).unwrap();
    let report = read("tests/certs_data/report_milan.hex");
    let report = report.trim_ascii();
    let report = hex::decode(report).unwrap_or_else(|_| report.to_vec());
    let mut chain = several("tests/certs_data/vcek_milan.der");
    chain.extend(several("src/certs/snp/builtin/milan/ask.pem"));
    (report, chain, several("src/certs/snp/builtin/milan/ark.pem"))
}

#[test]
fn a_real_processors_report_is_good_and_says_what_amds_own_library_reads() {
    let (bytes, chain, roots) = real();
    let report = Report::parse(&bytes).unwrap();
    let (findings, read) = verify(&bytes, &chain, anchors(&roots), Some(&report.report_data));
    for check in ALL {
        assert_eq!(findings.outcome(check), Outcome::Passed, "{check}: {findings:?}");
    }
    assert_eq!(read, Some(report.clone()));
    let peer = sev::firmware::guest::AttestationReport::from_bytes(&bytes).unwrap();
    assert_eq!(report.version, peer.version);
    assert_eq!(report.guest_svn, peer.guest_svn);
    assert_eq!(report.vmpl, peer.vmpl);
    assert_eq!(report.measurement[..], peer.measurement[..]);
    assert_eq!(report.report_data[..], peer.report_data[..]);
    assert_eq!(report.chip_id[..], peer.chip_id[..]);
    assert_eq!(report.host_data[..], peer.host_data[..]);
    assert_eq!(report.policy.is_debug_allowed(), peer.policy.debug_allowed());
    assert_eq!(report.policy.is_smt_allowed(), peer.policy.smt_allowed());
    assert_eq!(report.policy.is_migration_allowed(), peer.policy.migrate_ma_allowed());
    assert_eq!(report.policy.is_single_socket(), peer.policy.single_socket_required());
    let (ours, theirs) = (report.platform, peer.plat_info);
    assert_eq!(ours.is_smt_enabled(), theirs.smt_enabled());
    assert_eq!(ours.is_tsme_enabled(), theirs.tsme_enabled());
    assert_eq!(ours.is_ecc_enabled(), theirs.ecc_enabled());
    assert_eq!(ours.is_rapl_disabled(), theirs.rapl_disabled());
    assert_eq!(ours.is_ciphertext_hidden(), theirs.ciphertext_hiding_enabled());
    assert_eq!(ours.is_alias_check_complete(), theirs.alias_check_complete());
    let tcb = peer.reported_tcb;
    let said = Tcb {
        fmc: None,
        bootloader: tcb.bootloader,
        tee: tcb.tee,
        snp: tcb.snp,
        microcode: tcb.microcode,
    };
    assert_eq!(report.reported_tcb, said);
}

#[test]
fn a_real_report_with_a_changed_byte_is_refused_wherever_it_is() {
    let (mut bytes, chain, roots) = real();
    // Behind the two numbers of the signature nothing is said and nothing is signed.
    for at in (0..SIGNED_BYTES + 2 * NUMBER_BYTES).step_by(5) {
        bytes[at] ^= 0x10;
        let (findings, report) = verify(&bytes, &chain, anchors(&roots), None);
        assert!(report.is_none(), "{at}");
        assert_eq!(findings.worst(), Outcome::Failed);
        bytes[at] ^= 0x10;
    }
    assert!(verify(&bytes[1..], &chain, anchors(&roots), None).1.is_none());
    let failed = |chain: &[Certificate], roots: &[Certificate]| {
        let (findings, report) = verify(&bytes, chain, anchors(roots), None);
        report.is_none() && findings.outcome(CHAIN) == Outcome::Failed
    };
    assert!(failed(&chain[..1], &roots), "without the one between");
    let (findings, report) = verify(&bytes, &chain, anchors(&[]), None);
    assert!(
        report.is_none() && findings.outcome(CHAIN) == Outcome::NotChecked,
        "nobody is trusted"
    );
    assert!(failed(&[], &roots));
    let (findings, _) = verify(&bytes, &chain, anchors(&roots), Some(&[0x77; 64]));
    assert_eq!(findings.outcome(NONCE), Outcome::Failed);
}

/// A processor that was never made. **Synthetic**: its key is this test's.
struct Made {
    key: EcdsaKeyPair,
    certificate: Certificate,
}

const VERSIONS_SAID: [u8; 5] = [9, 1, 2, 3, 4];

fn made(versions: [u8; 5], identity: Option<(&[u64], &[u8])>) -> Made {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, "SEV-VCEK");
    for (part, version) in [9, 1, 2, 3, 8].into_iter().zip(versions) {
        let oid = [1, 3, 6, 1, 4, 1, 3704, 1, 3, part];
        params.custom_extensions.push(CustomExtension::from_oid_content(&oid, vec![2, 1, version]));
    }
    if let Some((last, value)) = identity {
        let oid = [&[1, 3, 6, 1, 4, 1, 3704, 1][..], last].concat();
        params.custom_extensions.push(CustomExtension::from_oid_content(&oid, value.to_vec()));
    }
    let certificate = Certificate::from_der(params.self_signed(&key).unwrap().der()).unwrap();
    let pkcs8 = key.serialize_der();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &pkcs8).unwrap();
    Made { key, certificate }
}

impl Made {
    /// Of the version 5, by Zen 5; `flags` as the report has them.
    fn report(&self, flags: u32, chip: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; REPORT_BYTES];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &5u32.to_le_bytes());
        put(0x34, &1u32.to_le_bytes());
        put(0x48, &flags.to_le_bytes());
        put(0x50, &[6; 64]);
        put(0x180, &[9, 1, 2, 3, 0, 0, 0, 4]);
        put(0x188, &[TURIN_FAMILY]);
        put(0x1a0, chip);
        let signature = self.key.sign(&SystemRandom::new(), &bytes[..SIGNED_BYTES]).unwrap();
        for (half, at) in signature.as_ref().chunks_exact(48).zip([0, NUMBER_BYTES]) {
            let mut number = half.to_vec();
            number.reverse();
            bytes[SIGNED_BYTES + at..][..48].copy_from_slice(&number);
        }
        bytes
    }

    fn findings(&self, report: &[u8]) -> Findings {
        let one = [self.certificate.clone()];
        verify(report, &one, anchors(&one), Some(&[6; 64])).0
    }
}

#[test]
fn newer_processors_have_other_versions_and_shorter_numbers() {
    let vcek = made(VERSIONS_SAID, Some((&[4], &[5; 8])));
    let findings = vcek.findings(&vcek.report(0, &[5; 8]));
    for check in ALL {
        assert_eq!(findings.outcome(check), Outcome::Passed, "{check}: {findings:?}");
    }
    assert_eq!(findings.claims["reported-tcb-fmc"], Claim::from(9));
    let other = vcek.findings(&vcek.report(0, &[5; 9]));
    assert_eq!(other.outcome(CHIP), Outcome::Failed);
    let masked = vcek.findings(&vcek.report(0, &[0; 8]));
    assert_eq!(masked.outcome(CHIP), Outcome::NotChecked);
    assert!(!masked.claims.contains_key("chip-id"));
    let wrapped = made(VERSIONS_SAID, Some((&[4], &[4, 8, 5, 5, 5, 5, 5, 5, 5, 5])));
    let findings = wrapped.findings(&wrapped.report(0, &[5; 8]));
    assert_eq!(findings.outcome(CHIP), Outcome::Passed);
    let short = made(VERSIONS_SAID, Some((&[4], &[5; 3])));
    assert_eq!(short.findings(&short.report(0, &[5, 5, 5])).outcome(CHIP), Outcome::Failed);
}

/// Or a policy demands one thing of the host, and is shown another.
#[test]
fn each_bit_of_how_the_host_has_set_up_the_machine_is_a_claim_of_its_own() {
    const NAMES: [&str; 6] = [
        "smt-enabled",
        "tsme-enabled",
        "ecc-enabled",
        "rapl-disabled",
        "ciphertext-hidden",
        "alias-check-complete",
    ];
    let (mut bytes, ..) = real();
    for (bit, name) in NAMES.into_iter().enumerate() {
        bytes[0x40..0x48].copy_from_slice(&(1u64 << bit).to_le_bytes());
        let report = Report::parse(&bytes).unwrap();
        let peer = sev::firmware::guest::AttestationReport::from_bytes(&bytes).unwrap();
        let peers = [
            peer.plat_info.smt_enabled(),
            peer.plat_info.tsme_enabled(),
            peer.plat_info.ecc_enabled(),
            peer.plat_info.rapl_disabled(),
            peer.plat_info.ciphertext_hiding_enabled(),
            peer.plat_info.alias_check_complete(),
        ];
        let mut findings = Findings::default();
        claim(&report, &mut findings);
        for (other, peers) in NAMES.into_iter().zip(peers) {
            assert_eq!(findings.claims[other], Claim::from(peers), "{other}");
            assert_eq!(peers, other == name, "{other} by bit {bit}");
        }
    }
}

#[test]
fn a_certificate_for_older_firmware_does_not_vouch_for_newer() {
    for part in 0..5 {
        let mut versions = VERSIONS_SAID;
        versions[part] += 1;
        let vcek = made(versions, Some((&[4], &[5; 8])));
        let findings = vcek.findings(&vcek.report(0, &[5; 8]));
        assert_eq!(findings.outcome(FIRMWARE), Outcome::Failed, "{part}");
    }
}

#[test]
fn a_clouds_key_is_not_taken_for_a_chips() {
    let vlek = made(VERSIONS_SAID, Some((&[5], b"cloud")));
    let findings = vlek.findings(&vlek.report(1 << 2, &[0; 64]));
    assert_eq!(findings.outcome(SIGNING_KEY), Outcome::Passed, "{findings:?}");
    assert_eq!(findings.outcome(CHIP), Outcome::NotChecked);
    let said = vlek.findings(&vlek.report(0, &[5; 64]));
    assert_eq!(said.outcome(SIGNING_KEY), Outcome::Failed);
    assert_eq!(said.outcome(CHIP), Outcome::Failed);
    let vcek = made(VERSIONS_SAID, Some((&[4], &[5; 8])));
    let said = vcek.findings(&vcek.report(1 << 2, &[0; 64]));
    assert_eq!(said.outcome(SIGNING_KEY), Outcome::Failed);
    let neither = made(VERSIONS_SAID, None);
    assert_eq!(
        neither.findings(&neither.report(0, &[0; 64])).outcome(SIGNING_KEY),
        Outcome::Failed
    );
    let none = vcek.findings(&vcek.report(7 << 2, &[0; 64]));
    assert_eq!(none.outcome(FORMAT), Outcome::Failed, "nobody signed");
}

#[test]
fn a_virtual_tpm_is_bound_by_its_endorsement_key_and_the_nonce() {
    let bound = vtpm_report_data(b"nonce", b"key");
    assert_eq!(bound, <[u8; 64]>::from(Sha512::digest(b"noncekey")));
    let (bytes, ..) = real();
    let mut report = Report::parse(&bytes).unwrap();
    let outcome = |report: &Report, nonce: &[u8], key: &[u8]| {
        let mut findings = Findings::default();
        check_vtpm(report, nonce, key, &mut findings);
        findings.outcome(VTPM)
    };
    report.report_data = bound;
    report.vmpl = 0;
    assert_eq!(outcome(&report, b"nonce", b"key"), Outcome::Passed);
    assert_eq!(outcome(&report, b"nonce", b"other"), Outcome::Failed);
    assert_eq!(outcome(&report, b"other", b"key"), Outcome::Failed);
    report.vmpl = 1;
    assert_eq!(outcome(&report, b"nonce", b"key"), Outcome::Failed, "the guest could have asked");
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), REPORT_BYTES)) {
        let _ = Report::parse(&bytes);
    }
}
