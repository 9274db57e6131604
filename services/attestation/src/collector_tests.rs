//! Against a real software TPM over a socket pair.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use super::*;

use crate::machines::*;
use crate::state::Judged;
use crate::tpm::TimedFd;
use crate::verifier::Kept;
use distos_appraisal::Policies;
use distos_evidence::credential::EPHEMERAL_BYTES;
use distos_evidence::evidence::{Continuity, Pcrs, extended_once};
use zeroize::Zeroizing;

#[test]
fn a_node_is_enrolled_once_and_good_ever_after() {
    let node = Node::new();
    let mut verifier = Verifier::new();
    let boots = {
        let (_swtpm, mut collector) = node.boot(IMAGE);
        let first = good(verifier.attest(&mut collector, 1));
        assert_eq!(first.continuity, Continuity::First);
        let image = PcrSet::default().with(IMAGE_PCR);
        let found = collector.tpm.pcr_read(image).unwrap();
        assert_eq!(found[&IMAGE_PCR], extended_once(&IMAGE));
        // More quotes than the TPM has room for objects: each must flush its own.
        for n in 2..8 {
            let next = good(verifier.attest(&mut collector, n));
            assert_eq!(next.continuity, Continuity::SameBoot);
        }
        first.clock.reset_count
    };
    let (_swtpm, mut collector) = node.boot(IMAGE);
    // Also for a verifier that was restarted.
    let kept = serde_json::to_string(&verifier.kept).unwrap();
    verifier.kept = serde_json::from_str(&kept).unwrap();
    let appraised = good(verifier.attest(&mut collector, 9));
    assert_eq!(appraised.continuity, Continuity::NewBoot);
    assert!(appraised.clock.reset_count > boots);
}

#[test]
fn a_register_extended_behind_the_services_back_is_refused_until_the_next_boot() {
    let node = Node::new();
    let mut verifier = Verifier::new();
    {
        let (_swtpm, mut collector) = node.boot(IMAGE);
        good(verifier.attest(&mut collector, 1));
        collector.tpm.pcr_extend(4, &[0xee; 32]).unwrap();
        for nonce in 2..4 {
            bad(verifier.attest(&mut collector, nonce), "PCR 4");
        }
    }
    let (_swtpm, mut collector) = node.boot(IMAGE);
    good(verifier.attest(&mut collector, 5));
}

#[test]
fn an_image_measured_over_another_is_refused() {
    let node = Node::new();
    let (_swtpm, mut collector) = node.boot(IMAGE);
    collector.tpm.startup().unwrap();
    collector.tpm.pcr_extend(IMAGE_PCR, &[0x66; 32]).unwrap();
    bad(Verifier::new().attest(&mut collector, 1), "PCR 11");
}

#[test]
fn a_restarted_service_measures_no_second_time() {
    let node = Node::new();
    let mut verifier = Verifier::new();
    let (_swtpm, mut collector) = node.boot(IMAGE);
    good(verifier.attest(&mut collector, 1));
    let Collector { tpm, .. } = collector;
    let pcrs = PcrSet::parse("0-7").unwrap();
    let mut again = Collector::new(tpm, IMAGE, pcrs, Logs::default());
    good(verifier.attest(&mut again, 2));
}

#[test]
fn another_tpm_in_the_place_of_the_nodes_is_refused() {
    let (node, other) = (Node::new(), Node::new());
    let mut verifier = Verifier::new();
    let (_swtpm, mut own) = node.boot(IMAGE);
    good(verifier.attest(&mut own, 1));
    let (_swtpm, mut theirs) = other.boot(IMAGE);
    bad(verifier.attest(&mut theirs, 2), "signature");
    // The attestation key of one and the endorsement key of the other.
    let identity = |of: &mut Collector<TimedFd>| {
        Identity::parse(&of.answer(&Question::Identity, verifier.session, 5).unwrap()).unwrap()
    };
    let (ours, foreign) = (identity(&mut own), identity(&mut theirs));
    let mixed = Identity { ak: foreign.ak, ..ours.clone() };
    let ephemeral = Zeroizing::new([9; EPHEMERAL_BYTES]);
    let new = Kept::default();
    let begun = new.begin(mixed, Zeroizing::new([7; 32]), &ephemeral).unwrap();
    let answered = verifier.ask(&mut own, Question::Activate(begun.1)).unwrap();
    let refused = Kept::default().enrol(&begun.0, verifier.session, &answered);
    assert!(matches!(refused, Err(Judged::Bad(_))), "the TPM does not have both keys");
    // An answer for another session, and one by whoever guesses.
    let begun = new.begin(ours, Zeroizing::new([7; 32]), &ephemeral).unwrap();
    let answer = verifier.ask(&mut own, Question::Activate(begun.1)).unwrap();
    let other = Session { key: HolderKey([8; 32]), ..verifier.session };
    for (session, answer) in [(other, &answer[..]), (verifier.session, &[0; 32])] {
        let refused = Kept::default().enrol(&begun.0, session, answer);
        assert!(matches!(refused, Err(Judged::Bad(_))));
    }
    assert!(Kept::default().enrol(&begun.0, verifier.session, &answer).is_ok());
}

#[test]
fn a_tpm_that_was_cleared_is_another_one_until_an_operator_says_so() {
    let node = Node::new();
    let mut verifier = Verifier::new();
    {
        let (_swtpm, mut collector) = node.boot(IMAGE);
        good(verifier.attest(&mut collector, 1));
    }
    // Its seeds are new: what a software TPM calls a clear of the endorsement hierarchy.
    std::fs::remove_file(node.state.path().join("tpm2-00.permall")).unwrap();
    let (_swtpm, mut collector) = node.boot(IMAGE);
    bad(verifier.attest(&mut collector, 2), "signature");
    verifier.kept.expect(None);
    good(verifier.attest(&mut collector, 3));
}

#[test]
fn of_a_node_whose_tpm_was_told_no_other_is_taken() {
    let (node, other) = (Node::new(), Node::new());
    let (_swtpm, mut own) = node.boot(IMAGE);
    let name = EndorsementKey::from_public(&own.identity(5).unwrap().ek).unwrap().name();
    let (_swtpm, mut theirs) = other.boot(IMAGE);
    let mut verifier = Verifier::new();
    verifier.kept.expect(Some(&name));
    bad(verifier.attest(&mut theirs, 1), "another TPM");
    good(verifier.attest(&mut own, 2));
}

#[test]
fn an_answer_that_was_given_before_or_by_another_node_is_refused() {
    let (node, other) = (Node::new(), Node::new());
    let mut verifier = Verifier::new();
    let (_swtpm, mut collector) = node.boot(IMAGE);
    good(verifier.attest(&mut collector, 1));
    let old = verifier.bundle(&mut collector, [1; 32]).unwrap();
    bad(verifier.judge(&old, [2; 32]), "replay");
    let (_swtpm, mut theirs) = other.boot(IMAGE);
    let foreign = verifier.bundle(&mut theirs, [2; 32]).unwrap();
    bad(verifier.judge(&foreign, [2; 32]), "signature");
    // What the same TPM said to another verifier.
    let session = Session { verifier: NODE, ..verifier.session };
    let wanted = Wanted { nonce: [3; 32], pcrs: verifier.pcrs, listed: 0 };
    let told = collector.answer(&Question::Evidence(wanted), session, 5).unwrap();
    bad(verifier.judge(&Bundle::parse(&told).unwrap(), [3; 32]), "replay");
    good(verifier.attest(&mut collector, 4));
}

#[test]
fn an_older_state_of_the_tpm_put_back_is_refused() {
    let node = Node::new();
    let mut verifier = Verifier::new();
    good(verifier.attest(&mut node.boot(IMAGE).1, 1));
    let saved = node.state.path().join("tpm2-00.permall");
    let old = std::fs::read(&saved).unwrap();
    for n in 2..4 {
        let (_swtpm, mut collector) = node.boot(IMAGE);
        good(verifier.attest(&mut collector, n));
    }
    std::fs::write(&saved, old).unwrap();
    let (_swtpm, mut collector) = node.boot(IMAGE);
    bad(verifier.attest(&mut collector, 9), "count went back");
}

/// Nothing permits what nobody has written down.
#[test]
fn a_software_tpm_is_good_only_by_a_policy_that_says_so() {
    let node = Node::new();
    let (_swtpm, mut collector) = node.boot(IMAGE);
    let mut verifier = Verifier::new();
    let strict = POLICY.replace("@accepts(\"software-tpm\")\n", "");
    verifier.policies = Arc::new(Policies::unsigned(strict.as_bytes()).unwrap());
    bad(verifier.attest(&mut collector, 1), "not known to be hardware");
    let checked = POLICY.replace("@unchecked(\"certificate chain\")\n", "");
    verifier.policies = Arc::new(Policies::unsigned(checked.as_bytes()).unwrap());
    let judged = verifier.attest(&mut collector, 2);
    assert!(
        matches!(&judged, Judged::Absent(why) if why.contains("certificate chain")),
        "{judged:?}"
    );
    assert!(verifier.kept.is_enrolled(), "it is known by its keys, and not good");
}

/// Or the GPUs that a machine has shown could be exchanged for others, or for relayed ones, between two quotes.
#[test]
fn a_tpm_holds_on_to_the_devices_that_were_measured_until_the_next_boot() {
    use distos_evidence::devices::{self, DEVICES_PCR, MEASURED, digest};
    use distos_evidence::findings::{Findings, Outcome};
    use distos_evidence::nvidia::machine::{Found, Machine};
    let (ours, others) = (Numbers::from([[1; 8], [2; 8]]), Numbers::from([[1; 8], [3; 8]]));
    let node = Node::new();
    let mut verifier = Verifier::new();
    verifier.pcrs = verifier.pcrs.with(DEVICES_PCR);
    // What a verifier makes of these devices, by a quote that it has found good.
    let mut outcome = |collector: &mut Collector<TimedFd>, numbers: &Numbers, nonce: u8| {
        good(verifier.attest(collector, nonce));
        let bundle = verifier.bundle(collector, [nonce; 32]).unwrap();
        let found = |number: &[u8; 8]| Found {
            is_switch: false,
            number: Some(*number),
            findings: Findings::default(),
        };
        let named = numbers.iter().map(|number| (hex::encode(number), found(number)));
        let mut machine = Machine { devices: named.collect(), ..Machine::default() };
        devices::check(&mut machine, bundle.pcrs.get(&DEVICES_PCR));
        machine.devices[&hex::encode([1; 8])].findings.outcome(MEASURED)
    };
    {
        let (_swtpm, mut collector) = node.boot(IMAGE);
        assert_eq!(outcome(&mut collector, &ours, 1), Outcome::NotChecked, "not yet measured");
        collector.measure_devices(&ours).unwrap();
        assert_eq!(outcome(&mut collector, &ours, 2), Outcome::Passed);
        assert_eq!(outcome(&mut collector, &others, 3), Outcome::Failed);
        // A collector that is asked again, or restarted, measures no others over them.
        collector.measure_devices(&others).unwrap();
        assert_eq!(outcome(&mut collector, &others, 4), Outcome::Failed);
        assert_eq!(outcome(&mut collector, &ours, 5), Outcome::Passed);
        // And whoever does it by hand spoils both.
        collector.tpm.pcr_extend(DEVICES_PCR, &digest(&others)).unwrap();
        assert_eq!(outcome(&mut collector, &others, 6), Outcome::Failed);
        assert_eq!(outcome(&mut collector, &ours, 7), Outcome::Failed);
    }
    let (_swtpm, mut collector) = node.boot(IMAGE);
    assert_eq!(outcome(&mut collector, &others, 8), Outcome::NotChecked);
    collector.measure_devices(&others).unwrap();
    assert_eq!(outcome(&mut collector, &others, 9), Outcome::Passed);
}

/// The log of another machine's boot, extended into this TPM as that machine's firmware did.
mod logs {
    use distos_evidence::bank::Bank;
    use distos_evidence::eventlog::EventLog;

    use super::*;

    fn file(bytes: &[u8]) -> (tempfile::NamedTempFile, Log) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let log = Log::from(OwnedFd::from(file.reopen().unwrap()));
        (file, log)
    }

    /// Real evidence, if it is there.
    fn testdata(path: &str) -> Option<Vec<u8>> {
        let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/testdata");
        let folder = std::env::var_os("DISTOS_TESTDATA").map_or(beside, Into::into);
        let found = std::fs::read(folder.join("attestation").join(path)).ok();
        if found.is_none() {
            eprintln!("NOT TESTED: {path} is not there (set DISTOS_TESTDATA)");
        }
        found
    }

    #[test]
    fn a_log_counts_if_the_quote_proves_it_and_a_cut_or_changed_one_does_not() {
        let Some(log) = testdata("eventlogs/sb_cert_eventlog.bin") else { return };
        let parsed = EventLog::parse(&log).unwrap();
        let node = Node::new();
        let (kept, given) = file(&log);
        let logs = Logs { boot: Some(given), files: None };
        let (_swtpm, mut collector) = node.boot_with(IMAGE, logs);
        collector.tpm.startup().unwrap();
        for event in parsed.events() {
            if let Some(digest) = event.digest(Bank::Sha256).filter(|_| event.extends()) {
                let digest = digest.try_into().unwrap();
                collector.tpm.pcr_extend(event.pcr, digest).unwrap();
            }
        }
        let mut verifier = Verifier::new();
        verifier.pcrs = PcrSet::parse("0-9,11-14").unwrap();
        good(verifier.attest(&mut collector, 1));
        kept.as_file().set_len(log.len() as u64 / 2).unwrap();
        let judged = verifier.attest(&mut collector, 2);
        assert!(matches!(judged, Judged::Bad(_)), "{judged:?}");
    }

    const ENTRIES: [&str; 3] = ["/usr/bin/known", "/usr/bin/other", "/tmp/unknown"];

    /// A list as the kernel writes it (`ima-ng`), **synthetic**: no kernel measured these files.
    fn list(entries: &[&str]) -> (String, Vec<[u8; 32]>) {
        use sha2::Digest as _;
        let mut text = String::new();
        let mut extended = Vec::new();
        for path in entries {
            let digest = sha2::Sha256::digest(path.as_bytes());
            let mut data = Vec::new();
            let mut field = |bytes: &[u8]| {
                data.extend(u32::try_from(bytes.len()).unwrap().to_le_bytes());
                data.extend(bytes);
            };
            field(&[b"sha256:\0", &digest[..]].concat());
            field(format!("{path}\0").as_bytes());
            let template = Bank::Sha1.hash(&[&data]).to_string();
            text += &format!("10 {template} ima-ng sha256:{} {path}\n", hex::encode(digest));
            extended.push(sha2::Sha256::digest(&data).into());
        }
        (text, extended)
    }

    #[test]
    fn a_file_that_nobody_knows_turns_the_evidence_bad_when_it_is_measured() {
        let (whole, digests) = list(&ENTRIES);
        let first = whole.lines().take(1).map(|line| format!("{line}\n")).collect::<String>();
        let node = Node::new();
        let (mut kept, given) = file(first.as_bytes());
        let logs = Logs { boot: None, files: Some(given) };
        let (_swtpm, mut collector) = node.boot_with(IMAGE, logs);
        collector.tpm.startup().unwrap();
        let mut verifier = Verifier::new();
        verifier.pcrs = verifier.pcrs.with(10);
        let known = ENTRIES[..2].iter().map(|path| {
            use sha2::Digest as _;
            format!("sha256:{}", hex::encode(sha2::Sha256::digest(path.as_bytes())))
        });
        verifier.known = Some(known.collect());
        collector.tpm.pcr_extend(10, &digests[0]).unwrap();
        good(verifier.attest(&mut collector, 1));
        assert_eq!(verifier.kept.listed(verifier.known.as_ref()), first.len() as u64);
        // From where it was: only the new part is read.
        kept.write_all(&whole.as_bytes()[first.len()..]).unwrap();
        collector.tpm.pcr_extend(10, &digests[1]).unwrap();
        good(verifier.attest(&mut collector, 2));
        collector.tpm.pcr_extend(10, &digests[2]).unwrap();
        for nonce in 3..5 {
            bad(verifier.attest(&mut collector, nonce), "ima: no policy permits it");
        }
        // Whatever was measured before is held against files that are named later, too.
        let named = ENTRIES[1..].iter().map(|path| {
            use sha2::Digest as _;
            format!("sha256:{}", hex::encode(sha2::Sha256::digest(path.as_bytes())))
        });
        verifier.known = Some(named.collect());
        assert_eq!(verifier.kept.listed(verifier.known.as_ref()), 0);
        bad(verifier.attest(&mut collector, 5), "ima: no policy permits it");
        // A register that was extended without an entry.
        let mut strange = Verifier::new();
        strange.pcrs = strange.pcrs.with(10);
        strange.known = Some(ENTRIES.iter().map(|_| "sha256:00".to_owned()).collect());
        collector.tpm.pcr_extend(10, &[1; 32]).unwrap();
        bad(strange.attest(&mut collector, 6), "ima");
    }
}

#[test]
fn a_killed_tpm_is_unavailable_and_stays_so() {
    let node = Node::new();
    let mut verifier = Verifier::new();
    let (mut swtpm, mut collector) = node.boot(IMAGE);
    good(verifier.attest(&mut collector, 1));
    swtpm.0.kill().unwrap();
    swtpm.0.wait().unwrap();
    for _ in 0..2 {
        let fault = verifier.bundle(&mut collector, [2; 32]).unwrap_err();
        assert!(matches!(fault, Fault::Unavailable { .. }), "{fault}");
    }
}

#[test]
fn a_tpm_that_never_answers_does_not_hang_the_service() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let mut tpm = Tpm::new(TimedFd::new(ours.into(), Duration::from_millis(20)).unwrap());
    assert!(matches!(tpm.startup(), Err(TpmError::Io(_))));
    assert!(matches!(tpm.startup(), Err(TpmError::Io(_))));
}

#[test]
fn a_late_answer_is_not_taken_for_that_to_the_next_command() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut tpm = Tpm::new(TimedFd::new(ours.into(), Duration::from_millis(500)).unwrap());
    assert!(matches!(tpm.startup(), Err(TpmError::Io(_))));
    let answer = |code: u8| [0x80, 1, 0, 0, 0, 10, 0, 0, 1, code];
    theirs.write_all(&answer(0x01)).unwrap();
    let answering = std::thread::spawn(move || {
        let mut commands = [0u8; 2 * 12];
        theirs.read_exact(&mut commands).unwrap();
        theirs.write_all(&answer(0x03)).unwrap();
    });
    assert!(matches!(tpm.startup(), Err(TpmError::Refused { code: 0x103, .. })));
    answering.join().unwrap();
}

#[test]
fn a_tpm_that_stops_in_the_middle_of_an_answer_is_given_up() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut tpm = Tpm::new(TimedFd::new(ours.into(), Duration::from_millis(20)).unwrap());
    theirs.write_all(&[0x80, 1, 0]).unwrap();
    assert!(matches!(tpm.startup(), Err(TpmError::Io(_))));
    assert!(matches!(tpm.startup(), Err(TpmError::Lost)));
}

#[test]
fn the_tpms_refusals_carry_their_code() {
    let node = Node::new();
    let (_swtpm, mut tpm) = swtpm(node.state.path());
    tpm.startup().unwrap();
    let error = tpm.pcr_extend(0xff, &[0; 32]).unwrap_err();
    assert!(error.to_string().contains("0x"), "{error}");
    assert!(matches!(Fault::from(error), Fault::Internal(_)));
    tpm.startup().unwrap();
}

/// A TPM that answers with given bytes.
struct Canned(std::io::Cursor<Vec<u8>>);

impl Read for Canned {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Canned {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

proptest::proptest! {
    #[test]
    fn no_answer_makes_the_client_panic_or_allocate_without_end(
        tag in proptest::prop_oneof![0x8001u16..=0x8002, proptest::num::u16::ANY],
        size in proptest::prop_oneof![0u32..200, proptest::num::u32::ANY],
        code in proptest::prop_oneof![0u32..2, proptest::num::u32::ANY],
        body in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
    ) {
        let mut bytes = [&tag.to_be_bytes()[..], &size.to_be_bytes(), &code.to_be_bytes()].concat();
        bytes.extend_from_slice(&body);
        for _ in 0..3 {
            bytes.extend_from_within(..);
        }
        let tpm = || Tpm::new(Canned(std::io::Cursor::new(bytes.clone())));
        let pcrs = PcrSet::parse("0-23").unwrap();
        let _ = tpm().startup();
        let _ = tpm().pcr_read(pcrs);
        let _ = tpm().evidence(&[0; 32], pcrs);
    }

    #[test]
    fn no_well_framed_answer_makes_the_client_panic(
        tag in 0x8001u16..=0x8002,
        body in proptest::collection::vec(proptest::prop_oneof![0u8..40, proptest::num::u8::ANY], 0..200),
    ) {
        let size = u32::try_from(body.len() + 10).unwrap();
        let bytes = [&tag.to_be_bytes()[..], &size.to_be_bytes(), &[0; 4], &body].concat();
        let tpm = || Tpm::new(Canned(std::io::Cursor::new(bytes.repeat(4))));
        let pcrs = PcrSet::parse("0-23").unwrap();
        let _ = tpm().pcr_read(pcrs);
        let _ = tpm().evidence(&[0; 32], pcrs);
    }
}

/// A cluster's node that invites by the TPM.
mod joining {
    use std::fs;

    use distos_evidence::credential::{
        Credential, EPHEMERAL_BYTES, EndorsementKey, Template, make_credential,
    };
    use distos_evidence::enrolment::{Kind, Makers};
    use distos_evidence::evidence::AttestationKey;
    use distos_evidence::joining::{Expected, Randomness, Request, Sealed, admit, seal};
    use distos_evidence::pki::Certificate;
    use zeroize::Zeroizing;

    use super::*;

    const INVITER: NodeId = NodeId([0x1a; 32]);
    const JOINER: NodeId = NodeId([0x2a; 32]);
    const KEY: HolderKey = HolderKey([0x3a; 32]);
    const NONCE: [u8; 32] = [0x4a; 32];
    const AT_S: u64 = 4_000_000_000;

    fn presents(collector: &mut Collector<TimedFd>) -> Request {
        collector.present(JOINER, KEY, INVITER, NONCE, 5).unwrap()
    }

    /// What an inviter expects that was told of this machine's TPM.
    fn expects(request: &Request) -> Expected {
        let ek = EndorsementKey::from_public(&request.ek).unwrap().name();
        let references = Pcrs::from([(IMAGE_PCR, extended_once(&IMAGE))]);
        Expected {
            inviter: INVITER,
            node: JOINER,
            nonce: NONCE,
            ek: Some(ek),
            makers: Makers::default(),
            references,
            at_s: AT_S,
        }
    }

    fn random(seed: u8) -> Randomness {
        let ephemeral = Zeroizing::new([seed; EPHEMERAL_BYTES]);
        Randomness::new(ephemeral, Zeroizing::new([7; 32])).unwrap()
    }

    fn refused(request: &Request, expected: &Expected, why: &str) {
        let told = admit(request, expected).unwrap_err();
        assert!(matches!(&told, Fault::Unauthenticated(text) if text.contains(why)), "{told}");
    }

    #[test]
    fn an_invitation_opens_in_the_tpm_that_was_expected_and_showed_the_image_and_in_no_other() {
        let (node, other) = (Node::new(), Node::new());
        let (_swtpm, mut collector) = node.boot(IMAGE);
        let request = presents(&mut collector);
        assert_eq!(Request::parse(&request.to_json().unwrap()), Ok(request.clone()));
        let admitted = admit(&request, &expects(&request)).unwrap();
        let sealed = seal("come", JOINER, &admitted, &random(9)).unwrap();
        let sealed = Sealed::parse(&sealed.to_json().unwrap()).unwrap();
        // More often than the TPM has room for objects and sessions.
        for _ in 0..6 {
            assert_eq!(collector.open(&sealed).unwrap(), "come");
        }
        // It is attested as before, too.
        good(Verifier::new().attest(&mut collector, 1));

        let (_swtpm, mut other) = other.boot(IMAGE);
        for _ in 0..6 {
            assert!(matches!(other.open(&sealed), Err(Fault::Unauthenticated(_))));
        }
        good(Verifier::new().attest(&mut other, 1));
        // What was changed on its way opens nowhere.
        let text = sealed.to_json().unwrap();
        for (what, with) in
            [(r#""sealed": ""#, r#""sealed": "00"#), (r#""node": "2a"#, r#""node": "2b"#)]
        {
            let changed = Sealed::parse(&text.replacen(what, with, 1)).unwrap();
            assert!(matches!(collector.open(&changed), Err(Fault::Unauthenticated(_))), "{what}");
        }
        let credential = &sealed.credential;
        let (blob, secret) = (credential.blob(), credential.secret());
        for at in 0..blob.len() + secret.len() {
            let mut changed = [blob, secret].concat();
            changed[at] ^= 1;
            let (blob, secret) = changed.split_at(blob.len());
            // What is of another form does not come so far.
            let Ok(credential) = Credential::parse(blob, secret) else { continue };
            let mut changed = sealed.clone();
            changed.credential = credential;
            assert!(matches!(collector.open(&changed), Err(Fault::Unauthenticated(_))), "{at}");
        }
        assert_eq!(collector.open(&sealed).unwrap(), "come");
    }

    #[test]
    fn whoever_shows_something_else_than_was_expected_is_not_invited() {
        let (node, other) = (Node::new(), Node::new());
        let (_swtpm, mut collector) = node.boot(IMAGE);
        let request = presents(&mut collector);
        let expected = expects(&request);
        // For another challenge, by another inviter, and for another key than the TPM was told.
        refused(&request, &Expected { nonce: [1; 32], ..expected.clone() }, "challenge");
        refused(&request, &Expected { inviter: JOINER, ..expected.clone() }, "replay");
        refused(&Request { key: HolderKey([1; 32]), ..request.clone() }, &expected, "replay");
        let elsewhere = Request { node: INVITER, ..request.clone() };
        refused(&elsewhere, &Expected { node: INVITER, ..expected.clone() }, "replay");
        // A quote for the node's own attestation is none for an inviter.
        let own = collector.tpm.evidence(&NONCE, collector.pcrs).unwrap();
        let own = Request { quote: own.quote, signature: own.signature, ..request.clone() };
        refused(&own, &expected, "replay");
        // Another machine's TPM, as it is, and under this one's name.
        let (_swtpm, mut other) = other.boot(IMAGE);
        let theirs = presents(&mut other);
        refused(&theirs, &expected, "another TPM");
        let claimed = Request { ek: request.ek.clone(), ..theirs.clone() };
        refused(&claimed, &expected, "replay");
        let mixed = Request { ak: theirs.ak.clone(), ..request.clone() };
        refused(&mixed, &expected, "not signed");
        // Another image, registers that were changed on their way, and an inviter that expects nothing.
        let another = Pcrs::from([(IMAGE_PCR, extended_once(&[0x66; 32]))]);
        refused(&request, &Expected { references: another, ..expected.clone() }, "PCR 11");
        let mut changed = request.clone();
        changed.pcrs.insert(0, [1; 32]);
        refused(&changed, &expected, "digest");
        refused(&request, &Expected { references: Pcrs::new(), ..expected.clone() }, "reference");
        let pinned = Pcrs::from([(IMAGE_PCR, extended_once(&IMAGE)), (0, [1; 32])]);
        refused(&request, &Expected { references: pinned, ..expected.clone() }, "PCR 0");
        // Nobody has said which TPM.
        refused(&request, &Expected { ek: None, ..expected }, "which TPM");
    }

    /// Both keys have to be in one TPM: that is what the credential shows, and the quote does not.
    #[test]
    fn a_credential_for_another_key_does_not_open_in_this_tpm() {
        let node = Node::new();
        let (_swtpm, mut collector) = node.boot(IMAGE);
        let request = presents(&mut collector);
        let ek = EndorsementKey::from_public(&request.ek).unwrap();
        let name = AttestationKey::from_public(&request.ak).unwrap().name();
        let secret = [0x5c; 32];
        let made = |name: &[u8; 34]| -> Credential {
            make_credential(&ek, name, &secret, &Zeroizing::new([9; EPHEMERAL_BYTES])).unwrap()
        };
        assert_eq!(*collector.tpm.activate(&made(&name)).unwrap(), secret);
        let mut another = name;
        another[33] ^= 1;
        let refused = collector.tpm.activate(&made(&another));
        assert!(matches!(refused, Err(TpmError::Another)), "{refused:?}");
        assert_eq!(*collector.tpm.activate(&made(&name)).unwrap(), secret);
    }

    /// A maker of software TPMs, with an authority of its own.
    struct Maker(tempfile::TempDir);

    impl Maker {
        fn new() -> Maker {
            let place = tempfile::tempdir().unwrap();
            let at = |name: &str| place.path().join(name).display().to_string();
            let authority = format!(
                "statedir = {}\nsigningkey = {}\nissuercert = {}\ncertserial = {}\n",
                at("."),
                at("signkey.pem"),
                at("issuercert.pem"),
                at("serial")
            );
            fs::write(at("authority"), authority).unwrap();
            fs::write(at("options"), "").unwrap();
            let setup = format!(
                "create_certs_tool = /usr/bin/swtpm_localca\n\
                 create_certs_tool_config = {}\ncreate_certs_tool_options = {}\n",
                at("authority"),
                at("options")
            );
            fs::write(at("setup"), setup).unwrap();
            Maker(place)
        }

        /// A TPM that it has made, with the certificates in it that it has by default.
        fn node(&self) -> Node {
            let node = Node::new();
            let made = Command::new("swtpm_setup")
                .args(["--tpm2", "--create-ek-cert", "--lock-nvram", "--overwrite", "--config"])
                .arg(self.0.path().join("setup"))
                .arg("--tpmstate")
                .arg(node.state.path())
                .output()
                .expect("swtpm_setup runs: .ci/setup installs it (Debian: swtpm-tools)");
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
            node
        }

        fn makers(&self, kind: Kind) -> Makers {
            let mut makers = Makers::default();
            for name in ["swtpm-localca-rootca-cert.pem", "issuercert.pem"] {
                let pem = fs::read(self.0.path().join(name)).unwrap();
                makers.pin(kind, Certificate::several(&pem).unwrap()).unwrap();
            }
            makers
        }
    }

    /// Of a key of each kind that DistOS takes, TPMs give back what was made for them without a TPM.
    #[test]
    fn a_credential_for_each_kind_of_endorsement_key_opens_in_its_tpm() {
        let node = Node::new();
        let (_swtpm, mut collector) = node.boot(IMAGE);
        let request = presents(&mut collector);
        let name = AttestationKey::from_public(&request.ak).unwrap().name();
        let secret = [0x5c; 32];
        for template in Template::ALL {
            let public = collector.tpm.endorsement_of(template).unwrap();
            let ek = EndorsementKey::from_public(&public).unwrap();
            assert_eq!(ek.template(), template);
            let made = |name: &[u8; 34]| {
                let ephemeral = Zeroizing::new([9; EPHEMERAL_BYTES]);
                make_credential(&ek, name, &secret, &ephemeral).unwrap()
            };
            // More often than the TPM has room for objects and sessions.
            for _ in 0..4 {
                assert_eq!(*collector.tpm.activate(&made(&name)).unwrap(), secret, "{template:?}");
                let refused = collector.tpm.activate(&made(&[1; 34]));
                assert!(matches!(refused, Err(TpmError::Another)), "{template:?}: {refused:?}");
            }
        }
    }

    /// Nobody was told of its TPM before, and nobody trusts the first that shows up.
    #[test]
    fn a_tpm_that_a_pinned_maker_has_certified_is_taken_and_no_other() {
        let (maker, stranger) = (Maker::new(), Maker::new());
        // An authority begins with the first that it certifies.
        let (node, another, _) = (maker.node(), maker.node(), stranger.node());
        let (_swtpm, mut collector) = node.boot(IMAGE);
        let request = presents(&mut collector);
        assert_eq!(Request::parse(&request.to_json().unwrap()), Ok(request.clone()));
        let identity = collector.identity(5).unwrap();
        assert_eq!((&identity.ek, &identity.certificate), (&request.ek, &request.certificate));
        let certified = |makers| Expected { ek: None, makers, ..expects(&request) };
        let expected = certified(maker.makers(Kind::Software));
        let admitted = admit(&request, &expected).unwrap();
        let shown = admitted.endorsement.as_ref().unwrap();
        assert_eq!(shown.kind, Kind::Software);
        assert_eq!(shown.origin.model.as_deref(), Some("swtpm"));
        let sealed = seal("come", JOINER, &admitted, &random(9)).unwrap();
        let sealed = Sealed::parse(&sealed.to_json().unwrap()).unwrap();
        for _ in 0..4 {
            assert_eq!(collector.open(&sealed).unwrap(), "come");
        }
        // It is no hardware, even if its maker's root lies among those of makers of hardware.
        let misplaced = admit(&request, &certified(maker.makers(Kind::Hardware))).unwrap();
        assert_eq!(misplaced.endorsement.unwrap().kind, Kind::Software);
        // By its name, it is taken as any other; with both, both hold.
        assert!(admit(&request, &expects(&request)).unwrap().endorsement.is_none());
        let both = Expected { ek: expects(&request).ek, ..expected.clone() };
        admit(&request, &both).unwrap();
        refused(&request, &Expected { ek: Some(vec![0; 50]), ..both.clone() }, "another TPM");

        refused(&request, &certified(stranger.makers(Kind::Software)), "certificate chain");
        refused(&Request { certificate: None, ..request.clone() }, &expected, "no certificate");
        // Another TPM's certificate, and another TPM's key with it: its quote is by nobody's key.
        let (_swtpm, mut another) = another.boot(IMAGE);
        let theirs = presents(&mut another);
        let shown = Request { certificate: theirs.certificate.clone(), ..request.clone() };
        refused(&shown, &expected, "another key");
        let claimed = Request { ek: theirs.ek.clone(), ..shown };
        refused(&claimed, &expected, "replay");
        // Whoever makes up a quote that names the other's key gets what opens in the other's TPM alone.
        let answers = qualifying(
            INVITER,
            JOINER,
            KEY,
            &EndorsementKey::from_public(&theirs.ek).unwrap().name(),
            &NONCE,
        );
        let quoted = collector.tpm.evidence(&answers, collector.pcrs).unwrap();
        let forged = Request { quote: quoted.quote, signature: quoted.signature, ..claimed };
        let admitted = admit(&forged, &expected).unwrap();
        let sealed = seal("come", JOINER, &admitted, &random(9)).unwrap();
        assert!(matches!(collector.open(&sealed), Err(Fault::Unauthenticated(_))));
        assert!(matches!(another.open(&sealed), Err(Fault::Unauthenticated(_))));
        // One that no maker has certified has none to show.
        let plain = Node::new();
        let (_swtpm, mut plain) = plain.boot(IMAGE);
        refused(&presents(&mut plain), &expected, "no certificate");
    }
}

/// A TPM that is made up, and counts what is in it.
mod made_up {
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::io::{self, ErrorKind};
    use std::rc::Rc;

    use distos_evidence::credential::{
        Credential, EPHEMERAL_BYTES, EndorsementKey, make_credential,
    };
    use distos_evidence::wire::Writer;
    use zeroize::Zeroizing;

    use super::*;

    const CREATE_PRIMARY: u32 = 0x131;
    const ACTIVATE: u32 = 0x147;
    const FLUSH: u32 = 0x165;
    const START_SESSION: u32 = 0x176;

    struct MadeUp {
        /// Objects and sessions.
        there: Rc<RefCell<Vec<u32>>>,
        made: u32,
        public: Vec<u8>,
        /// With which code credentials are answered.
        code: u32,
        /// Whether the answer to that comes late.
        is_late: bool,
        answer: VecDeque<u8>,
    }

    impl Write for MadeUp {
        fn write(&mut self, command: &[u8]) -> io::Result<usize> {
            let word = |at: usize| u32::from_be_bytes(command[at..at + 4].try_into().unwrap());
            let (tag, code) = (u16::from_be_bytes([command[0], command[1]]), word(6));
            let (mut answer, mut body) = (0, Writer::default());
            match code {
                CREATE_PRIMARY | START_SESSION => {
                    self.made += 1;
                    self.there.borrow_mut().push(self.made);
                    body = body.u32(self.made);
                    if code == CREATE_PRIMARY {
                        let parameters = Writer::default().sized(&self.public).done();
                        body = body.u32(parameters.len() as u32).bytes(&parameters);
                    }
                }
                FLUSH => {
                    let (handle, mut there) = (word(10), self.there.borrow_mut());
                    answer = if there.contains(&handle) { 0 } else { 0x1c4 };
                    there.retain(|one| *one != handle);
                }
                ACTIVATE => {
                    answer = self.code;
                    if answer == 0 {
                        // The session ends with it: the last that was made.
                        self.there.borrow_mut().pop();
                    }
                }
                _ => {}
            }
            let body = if answer == 0 { body.done() } else { Vec::new() };
            let tag = if answer == 0 { tag } else { 0x8001 };
            let head = Writer::default().u16(tag).u32(10 + body.len() as u32).u32(answer);
            self.answer.extend(head.bytes(&body).done());
            Ok(command.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Read for MadeUp {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            // Three keys and sessions are there only while a credential is activated.
            if self.is_late && self.there.borrow().len() >= 2 && self.made >= 3 {
                self.is_late = false;
                return Err(ErrorKind::TimedOut.into());
            }
            self.answer.read(buffer)
        }
    }

    /// It, what is in it, and a credential for somebody.
    fn made_up(code: u32, is_late: bool) -> (Tpm<MadeUp>, Rc<RefCell<Vec<u32>>>, Credential) {
        let node = Node::new();
        let (_swtpm, mut collector) = node.boot(IMAGE);
        let Identity { ek, ak, .. } = collector.identity(5).unwrap();
        let ek = EndorsementKey::from_public(&ek).unwrap();
        let (secret, own) = ([1; 32], Zeroizing::new([2; EPHEMERAL_BYTES]));
        let credential = make_credential(&ek, &[3; 34], &secret, &own).unwrap();
        let there = Rc::new(RefCell::new(Vec::new()));
        let (made, answer) = (0, VecDeque::new());
        let io = MadeUp { there: there.clone(), made, public: ak, code, is_late, answer };
        (Tpm::new(io), there, credential)
    }

    /// An operator would look for another invitation while the TPM is only busy.
    #[test]
    fn what_a_tpm_says_of_itself_is_not_taken_for_what_is_wrong_with_an_invitation() {
        for (code, is_another) in
            [(0x1df, true), (0x2d5, true), (0x922, false), (0x902, false), (0x101, false)]
        {
            let (mut tpm, there, credential) = made_up(code, false);
            let refused = tpm.activate(&credential).unwrap_err();
            assert_eq!(matches!(refused, TpmError::Another), is_another, "{code:#x}: {refused}");
            let is_passing = matches!(Fault::from(refused), Fault::Unavailable { .. });
            assert_eq!(is_passing, code == 0x922, "{code:#x}");
            assert!(there.borrow().is_empty(), "{code:#x}: {there:?}");
        }
    }

    /// A TPM holds three: two such answers would end its evidence.
    #[test]
    fn what_a_late_answer_leaves_behind_is_flushed_before_anything_else_is_asked() {
        for code in [0, 0x1df] {
            let (mut tpm, there, credential) = made_up(code, true);
            let late = tpm.activate(&credential).unwrap_err();
            assert!(matches!(late, TpmError::Io(_)), "{code:#x}: {late}");
            assert!(there.borrow().len() >= 2);
            tpm.startup().unwrap();
            assert!(there.borrow().is_empty(), "{code:#x}: {there:?}");
        }
    }
}
