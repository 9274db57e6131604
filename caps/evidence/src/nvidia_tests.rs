use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use proptest::prelude::*;
use rcgen::{CertificateParams, CustomExtension, DnType, IsCa, Issuer, KeyPair};

use super::machine::{Answer, Asking, Shown};
use super::*;
use crate::findings::{Claim, Outcome};
use crate::pki::CHAIN;
use crate::testdata;

/// A day on which all the real certificates hold.
const AT_S: u64 = 1_780_000_000;

fn anchors(roots: &[Certificate]) -> Anchors<'_> {
    Anchors { roots, others: &[], crls: &[], responses: &[], at_s: AT_S }
}

fn real(name: &str) -> Option<(Vec<Written>, Vec<Certificate>)> {
    let text = testdata::read(&format!("nvidia/{name}"))?;
    let root = testdata::read("nvidia/device-root.pem")?;
    Some((Evidence::from_json(&text).unwrap(), Certificate::several(&root).unwrap()))
}

/// The H100 whose report and chain were published apart.
fn hopper(report: &str) -> Option<(Evidence, Vec<Certificate>)> {
    let report = testdata::read(&format!("nvidia/{report}"))?;
    let chain = testdata::read("nvidia/hopper-cert-chain.pem")?;
    let root = testdata::read("nvidia/device-root.pem")?;
    let evidence = Evidence {
        architecture: Architecture::Hopper,
        chain: Certificate::several(&chain).unwrap(),
        report: hex::decode(report.trim_ascii()).unwrap(),
        driver: None,
    };
    Some((evidence, Certificate::several(&root).unwrap()))
}

#[test]
fn a_real_machine_of_eight_gpus_and_four_switches_is_verified_as_one() {
    let Some((gpus, roots)) = real("h100x8-evidence.json") else { return };
    let (switches, _) = real("ls10x4-evidence.json").unwrap();
    let mut devices = Vec::new();
    for (evidence, nonce) in gpus.iter().chain(&switches) {
        let (findings, verified) = verify(evidence, anchors(&roots), nonce.as_ref(), &[]);
        for check in [CHAIN, ARCHITECTURE, FORMAT, SIGNATURE, NONCE, DEVICE_ID] {
            assert_eq!(findings.outcome(check), Outcome::Passed, "{check}: {findings:?}");
        }
        let firmware =
            if evidence.architecture.is_switch() { Outcome::NotChecked } else { Outcome::Passed };
        assert_eq!(findings.outcome(FIRMWARE_ID), firmware);
        assert_eq!(findings.outcome(GOLDEN_VALUES), Outcome::NotChecked, "there are none");
        devices.push(verified.unwrap());
    }
    let claims = verify(&gpus[0].0, anchors(&roots), None, &[]).0.claims;
    let said = |name: &str| claims.get(name).cloned();
    assert_eq!(said("driver-version"), Some(Claim::from("590.12")));
    assert_eq!(said("vbios-version"), Some(Claim::from("96.00.A5.00.01")));
    assert_eq!(said("protected-pcie"), Some(Claim::from(true)));
    assert_eq!(said("mode"), Some(Claim::from("ppcie")));
    assert_eq!(said("confidential-mode"), None, "a report does not say so");
    let whole = machine::verify(&devices, Asking::Together);
    assert_eq!(whole.worst(), Outcome::Passed, "{whole:?}");

    // A switch that nobody has verified, or a GPU, could be anybody's.
    for missing in [0, 7, 8, 11] {
        let mut fewer = devices.split_off(missing);
        let kept = fewer.remove(0);
        devices.append(&mut fewer);
        let cut = machine::verify(&devices, Asking::Together);
        assert_eq!(cut.outcome(machine::TOPOLOGY), Outcome::Failed, "{missing}");
        devices.insert(missing, kept);
    }
    // One that is shown twice in place of another.
    let (evidence, _) = &gpus[0];
    devices[1] = verify(evidence, anchors(&roots), None, &[]).1.unwrap();
    assert_eq!(
        machine::verify(&devices, Asking::Together).outcome(machine::DISTINCT),
        Outcome::Failed
    );
    // One that answered somebody else, at another time.
    let (other, _) = hopper("hopper-report.hex").unwrap();
    devices[1] = verify(&other, anchors(&roots), None, &[]).1.unwrap();
    let mixed = machine::verify(&devices, Asking::Together);
    assert_eq!(mixed.outcome(machine::ONE_NONCE), Outcome::Failed);
    assert_eq!(mixed.outcome(machine::TOPOLOGY), Outcome::Failed);
    assert_eq!(
        machine::verify(&[], Asking::Together).worst(),
        Outcome::Failed,
        "of nothing, nothing is known"
    );
}

#[test]
fn gpus_without_switches_have_no_topology() {
    let Some((evidence, roots)) = hopper("hopper-report.hex") else { return };
    let device = verify(&evidence, anchors(&roots), None, &[]).1.unwrap();
    let findings = machine::verify(&[device], Asking::Together);
    assert_eq!(findings.outcome(machine::TOPOLOGY), Outcome::NotChecked);
    assert_eq!(findings.outcome(machine::ONE_NONCE), Outcome::Passed);
    // Nor are GPUs and switches each other's of which only one side has been shown.
    for name in ["h100x8-evidence.json", "ls10x4-evidence.json"] {
        let (several, roots) = real(name).unwrap();
        let verified = several.iter().map(|(one, _)| verify(one, anchors(&roots), None, &[]).1);
        let findings =
            machine::verify(&verified.map(Option::unwrap).collect::<Vec<_>>(), Asking::Together);
        assert_eq!(findings.outcome(machine::TOPOLOGY), Outcome::NotChecked, "{name}");
        assert_ne!(findings.worst(), Outcome::Failed);
    }
}

#[test]
fn a_report_that_was_changed_is_refused_before_anything_in_it_counts() {
    let Some((evidence, roots)) = hopper("hopper-report-bad-signature.hex") else { return };
    let (findings, verified) = verify(&evidence, anchors(&roots), None, &[]);
    assert_eq!(findings.outcome(SIGNATURE), Outcome::Failed);
    assert!(verified.is_none() && !findings.claims.contains_key("driver-version"));
}

#[test]
fn a_real_report_with_a_changed_byte_is_refused_wherever_it_is() {
    let Some((evidence, roots)) = hopper("hopper-report.hex") else { return };
    let mut findings = Findings::default();
    let device =
        Device::of_chain(Architecture::Hopper, &evidence.chain, anchors(&roots), &mut findings);
    let device = device.unwrap();
    let mut report = evidence.report.clone();
    for at in (0..report.len()).step_by(7) {
        report[at] ^= 0x80;
        let mut findings = Findings::default();
        assert!(device.verify(&report, None, &[], &mut findings).is_none(), "{at}");
        assert_eq!(findings.worst(), Outcome::Failed);
        report[at] ^= 0x80;
    }
    for len in (0..report.len()).step_by(97) {
        let mut findings = Findings::default();
        assert!(device.verify(&report[..len], None, &[], &mut findings).is_none(), "{len}");
        assert_eq!(findings.outcome(FORMAT), Outcome::Failed);
    }
    report.push(0);
    assert!(device.verify(&report, None, &[], &mut Findings::default()).is_none());
}

#[test]
fn a_chain_of_a_switch_is_none_of_a_gpu_and_another_gpus_is_not_this_ones() {
    let Some((gpus, roots)) = real("h100x8-evidence.json") else { return };
    let (switches, _) = real("ls10x4-evidence.json").unwrap();
    let outcome = |chain: &Evidence, report: &Evidence, check| {
        let evidence = Evidence { chain: chain.chain.clone(), ..report.clone() };
        verify(&evidence, anchors(&roots), None, &[]).0.outcome(check)
    };
    let (gpu, other, switch) = (&gpus[0].0, &gpus[1].0, &switches[0].0);
    assert_eq!(outcome(switch, gpu, ARCHITECTURE), Outcome::Failed);
    assert_eq!(outcome(gpu, switch, ARCHITECTURE), Outcome::Failed);
    assert_eq!(outcome(other, gpu, SIGNATURE), Outcome::Failed);
    let (empty, nowhere) = (Evidence { chain: Vec::new(), ..gpu.clone() }, &[]);
    assert_eq!(verify(&empty, anchors(&roots), None, &[]).0.outcome(CHAIN), Outcome::Failed);
    assert_eq!(verify(gpu, anchors(nowhere), None, &[]).0.outcome(CHAIN), Outcome::NotChecked);
}

#[test]
fn whoever_repeats_a_nonce_or_takes_one_from_a_sample_is_not_fresh() {
    let Some((switches, roots)) = real("ls10-evidence-with-rim.json") else { return };
    let (evidence, nonce) = &switches[0];
    let nonce = nonce.unwrap();
    assert!(is_sample_nonce(&nonce));
    assert!(!is_sample_nonce(&[7; 32]));
    let outcome =
        |nonce: Option<&[u8; 32]>| verify(evidence, anchors(&roots), nonce, &[]).0.outcome(NONCE);
    assert_eq!(outcome(Some(&nonce)), Outcome::Passed);
    assert_eq!(outcome(Some(&[7; 32])), Outcome::Failed);
    assert_eq!(outcome(None), Outcome::NotChecked);
}

/// A GPU that was never made: a report with documents that match it, which no real one here has. **Synthetic**: its
/// authority is a key of this test's.
struct Made {
    roots: Vec<Certificate>,
    chain: Vec<Certificate>,
    pem: String,
    key: EcdsaKeyPair,
}

const FWID: [u8; 48] = [0x5f; 48];
const DRIVER: &str = "999.10";
const VBIOS: &str = "96.00.AA.00.07";

fn made() -> Made {
    let params = |name: &str, serial: Option<&str>| {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        if let Some(serial) = serial {
            let serial_number = DnType::CustomDnType(vec![2, 5, 4, 5]);
            params.distinguished_name.push(serial_number, serial);
        }
        params
    };
    let authority = |mut params: CertificateParams| {
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params
    };
    let p384 = || KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let (root_key, rom_key, leaf_key) = (p384(), p384(), p384());
    let root = authority(params("synthetic root", None));
    let rom = authority(params("GH100 A01 GSP BROM", Some("410102030405060708")));
    let mut leaf = params("GH100 A01 GSP FMC LF", None);
    let value = [&[0x30, 0x30][..], &FWID].concat();
    leaf.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 23, 133, 5, 4, 1], value)];
    let root_der = root.self_signed(&root_key).unwrap();
    let root_issuer = Issuer::from_params(&root, &root_key);
    let rom_der = rom.signed_by(&rom_key, &root_issuer).unwrap();
    let rom_issuer = Issuer::from_params(&rom, &rom_key);
    let leaf_der = leaf.signed_by(&leaf_key, &rom_issuer).unwrap();
    let read = |der: &[u8]| Certificate::from_der(der).unwrap();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &leaf_key.serialize_der());
    let made = Made {
        roots: vec![read(root_der.der())],
        chain: vec![read(leaf_der.der()), read(rom_der.der())],
        pem: [pem(leaf_der.der()), pem(rom_der.der())].concat(),
        key: key.unwrap(),
    };
    assert_eq!(made.key.public_key().as_ref(), made.chain[0].key());
    made
}

fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines = text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line));
    let lines: Vec<_> = lines.collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// What block `number` measures.
fn measured(number: u8) -> Vec<u8> {
    vec![number; 48]
}

fn response(blocks: u8, fields: &[(u16, &[u8])]) -> Vec<u8> {
    let mut record = Vec::new();
    for number in 1..=blocks {
        record.extend([number, 1, 51, 0, 1, 48, 0]);
        record.extend(measured(number));
    }
    let mut opaque = Vec::new();
    for (number, value) in fields {
        opaque.extend(number.to_le_bytes());
        opaque.extend(u16::try_from(value.len()).unwrap().to_le_bytes());
        opaque.extend(*value);
    }
    let mut response = vec![0x11, 0x60, 0, 0, blocks];
    response.extend(&u32::try_from(record.len()).unwrap().to_le_bytes()[..3]);
    response.extend(record);
    response.extend([9; 32]);
    response.extend(u16::try_from(opaque.len()).unwrap().to_le_bytes());
    response.extend(opaque);
    response
}

impl Made {
    fn answer(&self, nonce: [u8; 32], response: &[u8]) -> Vec<u8> {
        let mut report = vec![0x11, 0xe0, 1, 0xff];
        report.extend(nonce);
        report.push(0);
        report.extend(response);
        let signature = self.key.sign(&SystemRandom::new(), &report).unwrap();
        report.extend(signature.as_ref());
        report
    }

    fn sign(&self, response: &[u8]) -> Evidence {
        let report = self.answer([7; 32], response);
        let driver = Some(DriverWord { confidential_mode: true, developer_tools: false });
        Evidence { architecture: Architecture::Hopper, chain: self.chain.clone(), report, driver }
    }

    fn findings(&self, evidence: &Evidence, golden: &[GoldenValues]) -> Findings {
        verify(evidence, anchors(&self.roots), Some(&[7; 32]), golden).0
    }

    fn good(&self) -> Evidence {
        let fields: [(u16, &[u8]); 4] =
            [(3, b"999.10\0"), (6, &[0, 0xaa, 0, 0x96, 7, 0, 0, 0]), (11, &[0x55]), (20, &FWID)];
        self.sign(&response(64, &fields))
    }
}

fn golden(version: &str, indices: impl IntoIterator<Item = u8>) -> GoldenValues {
    let values = indices.into_iter().map(|i| (i, vec![vec![0; 48], measured(i + 1)])).collect();
    let (product, version) = ("GH100".to_owned(), version.to_owned());
    GoldenValues { product, version, values, digest: [0; 32] }
}

fn both() -> [GoldenValues; 2] {
    [golden(DRIVER, 0..20), golden(VBIOS, 20..36)]
}

#[test]
fn a_synthetic_gpu_with_matching_documents_passes_every_check() {
    let made = made();
    let findings = made.findings(&made.good(), &both());
    for check in
        [CHAIN, ARCHITECTURE, FORMAT, SIGNATURE, FIRMWARE_ID, DEVICE_ID, NONCE, GOLDEN_VALUES]
    {
        assert_eq!(findings.outcome(check), Outcome::Passed, "{check}: {findings:?}");
    }
    // The 36th belongs to a decoder that this GPU has not.
    assert_eq!(findings.claims["golden-values-matched"], Claim::from(35));
    assert_eq!(findings.claims["device-id"], Claim::from("0102030405060708"));
    assert_eq!(findings.claims["confidential-mode"], Claim::from(true));
    assert_eq!(findings.claims["developer-tools"], Claim::from(false));
}

/// GPUs of two machines, each of one; an answer is to be had of either.
fn two() -> ([Made; 2], Vec<Certificate>) {
    let both = [made(), made()];
    let roots = both.iter().flat_map(|one| one.roots.clone()).collect();
    (both, roots)
}

const NO_ANSWER: Answer<'_> =
    Answer { arch: "HOPPER", chain: &[], report: &[], mode: "", fault: "", nonce: [7; 32] };

#[test]
fn gpus_that_answer_each_its_own_nonce_are_verified_and_none_with_anothers_answer() {
    let ([first, second], roots) = two();
    // They have one number, so they are told apart by their certificates, and are not each other's machine.
    let fields: [(u16, &[u8]); 2] = [(3, b"999.10\0"), (20, &FWID)];
    let response = response(64, &fields);
    let (one, other) = (first.answer([1; 32], &response), second.answer([2; 32], &response));
    let answers = |nonces: [u8; 2]| {
        [(&first, &one, "on", nonces[0]), (&second, &other, "devtools", nonces[1])].map(
            |(made, report, mode, nonce)| Answer {
                chain: made.pem.as_bytes(),
                report,
                mode,
                nonce: [nonce; 32],
                ..NO_ANSWER
            },
        )
    };
    let live =
        |answers: &[Answer<'_>]| machine::verify_live(answers, anchors(&roots), &[]).unwrap();
    let good = live(&answers([1, 2]));
    let [gpu_0, gpu_1] = ["gpu-0", "gpu-1"].map(|name| &good.devices[name].findings);
    for check in [CHAIN, ARCHITECTURE, FORMAT, SIGNATURE, FIRMWARE_ID, NONCE] {
        assert_eq!(gpu_0.outcome(check), Outcome::Passed, "{check}: {gpu_0:?}");
        assert_eq!(gpu_1.outcome(check), Outcome::Passed, "{check}: {gpu_1:?}");
    }
    assert_eq!(gpu_0.claims["confidential-mode"], Claim::from(true));
    assert_eq!(gpu_0.claims["developer-tools"], Claim::from(false));
    assert_eq!(gpu_1.claims["developer-tools"], Claim::from(true), "who could look in");
    let together = good.together.as_ref().unwrap();
    assert_eq!(together.outcome(machine::ONE_NONCE), Outcome::Passed, "{together:?}");
    assert!(!good.names_absent);

    // Written down, they are read again as they were.
    let list = answers([1, 2]).map(|one| one.to_json().unwrap());
    let read = Evidence::from_json(&serde_json::to_vec(&list).unwrap()).unwrap();
    let shown: Vec<Shown> =
        read.into_iter().map(|(evidence, noted)| Shown { evidence, nonce: noted, noted }).collect();
    assert_eq!(machine::verify_shown(&shown, Asking::Apart, anchors(&roots), &[]), good);
    let once = machine::verify_shown(&shown, Asking::Together, anchors(&roots), &[]).together;
    assert_eq!(once.unwrap().outcome(machine::ONE_NONCE), Outcome::Failed);
    assert!(Answer { fault: "none", ..answers([1, 2])[0] }.to_json().is_none());

    // Asked in the other order, neither answer is the one that was asked for.
    let swapped = live(&answers([2, 1]));
    assert!(swapped.devices.values().all(|one| one.findings.outcome(NONCE) == Outcome::Failed));
    // One GPU's answer in two places.
    let twice = live(&[answers([1, 2])[0], answers([1, 2])[0]]);
    let together = twice.together.unwrap();
    assert_eq!(together.outcome(machine::ONE_NONCE), Outcome::Failed);
    assert_eq!(together.outcome(machine::DISTINCT), Outcome::Failed);
}

#[test]
fn an_answer_to_a_published_nonce_is_no_live_one_however_good_it_is() {
    let made = made();
    let nonce = hex::decode(SAMPLE_NONCES[0]).unwrap().try_into().unwrap();
    let report = made.answer(nonce, &response(64, &[(20, &FWID)]));
    let answer = Answer { chain: made.pem.as_bytes(), report: &report, nonce, ..NO_ANSWER };
    let found = machine::verify_live(&[answer], anchors(&made.roots), &[]).unwrap();
    let findings = &found.devices["gpu-0"].findings;
    assert_eq!(findings.outcome(SIGNATURE), Outcome::Passed);
    assert_eq!(findings.outcome(NONCE), Outcome::Failed);
}

#[test]
fn a_gpu_that_shows_nothing_or_nonsense_is_never_passed_over() {
    let made = made();
    let report = made.answer([7; 32], &response(3, &[]));
    let whole = Answer { chain: made.pem.as_bytes(), report: &report, ..NO_ANSWER };
    let long = vec![b'x'; MAX_JSON_BYTES];
    let cases = [
        (
            Answer { fault: "it is not supported", mode: "off", ..whole },
            FORMAT,
            Outcome::NotChecked,
        ),
        (Answer { arch: "", ..whole }, ARCHITECTURE, Outcome::Failed),
        (Answer { chain: b"text", ..whole }, CHAIN, Outcome::Failed),
        (Answer { chain: &[], ..whole }, CHAIN, Outcome::Failed),
        (Answer { chain: &long, ..whole }, FORMAT, Outcome::Failed),
        (Answer { report: &long, ..whole }, FORMAT, Outcome::Failed),
        (Answer { report: &[], ..whole }, FORMAT, Outcome::Failed),
    ];
    for (answer, check, outcome) in cases {
        let found = machine::verify_live(&[whole, answer], anchors(&made.roots), &[]).unwrap();
        let findings = &found.devices["gpu-1"].findings;
        assert_eq!(findings.outcome(check), outcome, "{check}: {findings:?}");
        assert_ne!(findings.outcome(NONCE), Outcome::Passed);
        assert_eq!(found.together, None, "nothing is known of the whole");
        let off = (!answer.fault.is_empty()).then(|| Claim::from(false));
        assert_eq!(findings.claims.get("confidential-mode").cloned(), off);
    }
    let many = vec![whole; MAX_DEVICES + 1];
    assert!(machine::verify_live(&many, anchors(&made.roots), &[]).is_err());
    assert_eq!(DriverWord::parse("ON"), None, "an unknown word says nothing");
}

#[test]
fn one_wrong_golden_value_is_enough_and_half_the_documents_are_not() {
    let made = made();
    let good = made.good();
    let outcome = |golden: &[GoldenValues]| made.findings(&good, golden).outcome(GOLDEN_VALUES);
    let mut wrong = both();
    wrong[1].values.insert(21, vec![vec![0; 48]]);
    assert_eq!(outcome(&wrong), Outcome::Failed);
    let mut shorter = both();
    shorter[0].values.insert(3, vec![measured(4)[..47].to_vec()]);
    assert_eq!(outcome(&shorter), Outcome::Failed);
    // A value of a block that there is not.
    let mut more = both();
    more[1].values.insert(64, vec![measured(65)]);
    assert_eq!(outcome(&more), Outcome::Failed);
    more[1].values.remove(&64);
    more[1].values.insert(255, vec![Vec::new()]);
    assert_eq!(outcome(&more), Outcome::Failed);
    // Another board's document of the same version is passed over if this one's is there.
    assert_eq!(outcome(&[&wrong[..], &both()].concat()), Outcome::Passed);
    // One index in both.
    assert_eq!(outcome(&[golden(DRIVER, 0..21), golden(VBIOS, 20..36)]), Outcome::Failed);
    // One document alone, of another version, of another product, or without values.
    assert_eq!(outcome(&both()[..1]), Outcome::NotChecked);
    assert_eq!(outcome(&both()[1..]), Outcome::NotChecked);
    assert_eq!(outcome(&[golden("1.0", 0..20), golden("2.0", 20..36)]), Outcome::NotChecked);
    let mut other = both();
    other.iter_mut().for_each(|one| one.product = "LS10".to_owned());
    assert_eq!(outcome(&other), Outcome::NotChecked);
    assert_eq!(outcome(&[golden(DRIVER, []), golden(VBIOS, [])]), Outcome::NotChecked);
}

#[test]
fn a_gpu_with_a_decoder_must_have_measured_it() {
    let made = made();
    let fields: [(u16, &[u8]); 4] =
        [(3, b"999.10\0"), (6, &[0, 0xaa, 0, 0x96, 7, 0, 0, 0]), (11, &[0xaa]), (20, &FWID)];
    let with = made.sign(&response(35, &fields));
    let findings = made.findings(&with, &both());
    assert_eq!(findings.outcome(GOLDEN_VALUES), Outcome::Failed);
    assert_eq!(findings.claims["golden-values-failed"], Claim::from(1));
}

#[test]
fn a_certificate_for_other_firmware_does_not_vouch_for_this() {
    let made = made();
    let fields: [(u16, &[u8]); 3] =
        [(3, b"999.10\0"), (6, &[0, 0xaa, 0, 0x96, 7, 0, 0, 0]), (20, &[0x60; 48])];
    let findings = made.findings(&made.sign(&response(64, &fields)), &both());
    assert_eq!(findings.outcome(FIRMWARE_ID), Outcome::Failed);
    let findings = made.findings(&made.sign(&response(64, &fields[..2])), &both());
    assert_eq!(findings.outcome(FIRMWARE_ID), Outcome::NotChecked);
}

#[test]
fn signed_reports_that_say_a_thing_twice_or_wrongly_are_not_read() {
    let made = made();
    let good = response(3, &[(3, b"1\0")]);
    let outcome = |response: &[u8]| made.findings(&made.sign(response), &[]).outcome(FORMAT);
    assert_eq!(outcome(&good), Outcome::Passed);
    let changed = |at: usize, to: u8| {
        let mut bytes = good.clone();
        bytes[at] = to;
        bytes
    };
    // Version, code, number of blocks, length of the record, a block's number, specification, size, and value's size.
    for (at, to) in
        [(0, 0x12), (1, 0x61), (4, 4), (5, 0), (7, 9), (8 + 55, 1), (9, 2), (10, 50), (13, 47)]
    {
        assert_eq!(outcome(&changed(at, to)), Outcome::Failed, "{at}");
    }
    let twice = response(3, &[(3, b"1\0"), (3, b"2\0")]);
    assert_eq!(outcome(&twice), Outcome::Failed, "which driver is it?");
    assert_eq!(outcome(&[&good[..], &[0]].concat()), Outcome::Failed);
}

#[test]
fn files_of_evidence_are_read_whole_or_refused_with_a_reason() {
    let why = |text: &str| Evidence::from_json(text.as_bytes()).unwrap_err();
    assert!(why("[]").contains("1 to 64"));
    assert!(why("{}").contains("invalid type"));
    let one = |arch: &str, certificate: &str, evidence: &str, nonce: &str| {
        why(&format!(
            r#"[{{"arch":"{arch}","certificate":"{certificate}","evidence":"{evidence}","nonce":"{nonce}"}}]"#
        ))
    };
    assert!(one("TURING", "", "", "").contains("TURING"));
    assert!(one("HOPPER", "?", "", "").contains("base64"));
    assert!(one("HOPPER", "AAAA", "", "").contains("certificate"));
    let root = made();
    let pem = STANDARD.encode(root.roots[0].der());
    assert!(one("HOPPER", &pem, "?", "").contains("evidence"));
    assert!(one("HOPPER", &pem, "", "00").contains("nonce"));
}

/// A machine measures what its devices say they are, and a verifier goes by what their certificates prove: of a good device
/// both are the same.
#[test]
fn the_number_that_a_machine_measures_is_the_one_that_is_proven() {
    let made = made();
    let (report, arch) = (made.good().report, "HOPPER".to_owned());
    let gpu = crate::live::Gpu {
        arch,
        chain: made.pem.clone(),
        report: hex::encode(&report),
        mode: "on".to_owned(),
        fault: String::new(),
    };
    let named = crate::devices::named(std::slice::from_ref(&gpu)).unwrap();
    let answer = Answer { chain: gpu.chain.as_bytes(), report: &report, ..NO_ANSWER };
    let machine = machine::verify_live(&[answer], anchors(&made.roots), &[]).unwrap();
    assert_eq!(machine.devices["gpu-0"].number.into_iter().collect::<BTreeSet<_>>(), named);
    // Of a chain that leads nowhere, or a report that another key has signed, nothing is proven.
    let other = self::made();
    for (roots, report) in [(&[][..], report.clone()), (&made.roots[..], other.good().report)] {
        let answer = Answer { report: &report, ..answer };
        let machine = machine::verify_live(&[answer], anchors(roots), &[]).unwrap();
        assert_eq!(machine.devices["gpu-0"].number, None);
    }
    // One that is silent, or there twice, leaves nothing to be measured.
    let silent = crate::live::Gpu { fault: "it does not answer".to_owned(), ..gpu.clone() };
    let strange = crate::live::Gpu { chain: "no chain".to_owned(), ..gpu.clone() };
    for gpus in [&[][..], &[gpu.clone(), silent], &[gpu.clone(), strange], &[gpu.clone(), gpu]] {
        assert_eq!(crate::devices::named(gpus), None);
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_report_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        if let Ok(report) = Report::parse(&bytes) {
            let report = report.owned();
            let _ = (report.switches(), report.gpus(), report.mode(), report.switch_id());
        }
    }

    #[test]
    fn no_change_of_a_response_makes_the_parser_panic(at in 0usize..2000, flip in 1u8..) {
        let fields: [(u16, &[u8]); 2] = [(3, b"999.10\0"), (22, &[3; 8])];
        let mut bytes = [&[0x11, 0xe0, 1, 0xff][..], &[7; 33], &response(20, &fields), &[0; 96]].concat();
        let at = at % bytes.len();
        bytes[at] ^= flip;
        if let Ok(report) = Report::parse(&bytes) {
            let report = report.owned();
            let _ = (report.driver_version(), report.vbios_version(Architecture::Ls10));
        }
    }
}
