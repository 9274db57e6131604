//! Against a real software TPM over a socket pair.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::*;
use crate::tpm::{TIMEOUT, TimedFd, TpmError};
use distos_evidence::evidence::Continuity;

const IMAGE: [u8; 32] = [0x11; 32];

/// A swtpm process that ends when its client goes.
pub(crate) struct Swtpm(Child);

impl Drop for Swtpm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// swtpm takes no descriptor below 3, so the shell moves it there from standard input.
fn swtpm(state: &Path) -> (Swtpm, Tpm<TimedFd>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let script = "exec swtpm socket --tpm2 --tpmstate dir=\"$1\",mode=0600 --fd 3 \
                  --flags not-need-init,startup-clear 3<&0 </dev/null";
    let child = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(state)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let swtpm = Swtpm(child);
    (swtpm, Tpm::new(TimedFd::new(ours.into(), TIMEOUT).unwrap()))
}

pub(crate) struct Node {
    state: tempfile::TempDir,
    data: tempfile::TempDir,
}

impl Node {
    pub(crate) fn new() -> Node {
        let found = Command::new("swtpm").arg("--version").output();
        assert!(
            found.is_ok_and(|output| output.status.success()),
            "swtpm is not installed: run .ci/setup (Debian: apt-get install swtpm)"
        );
        Node { state: tempfile::tempdir().unwrap(), data: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn boot(&self, image: [u8; 32], pcrs: &str) -> (Swtpm, Attester<TimedFd>) {
        let (process, tpm) = swtpm(self.state.path());
        (process, Attester::new(tpm, self.data.path(), image, PcrSet::parse(pcrs).unwrap()))
    }
}

fn good(outcome: Outcome) -> Appraised {
    outcome.result.unwrap().0
}

#[test]
fn a_node_is_enrolled_once_and_good_ever_after() {
    let node = Node::new();
    let (first, boots) = {
        let (_swtpm, mut attester) = node.boot(IMAGE, "0-7");
        let outcome = attester.attest(&[1; 32], 5).unwrap();
        assert!(outcome.enrolled_now);
        let (name, first) = (outcome.ak_name, good(outcome));
        assert_eq!(first.continuity, Continuity::First);
        let image = PcrSet::default().with(IMAGE_PCR);
        let found = attester.tpm.pcr_read(image).unwrap();
        assert_eq!(found[&IMAGE_PCR], extended_once(&IMAGE));
        // More quotes than the TPM has room for objects: each must flush its own.
        for n in 2..8 {
            let outcome = attester.attest(&[n; 32], 5).unwrap();
            assert!(!outcome.enrolled_now);
            assert_eq!(good(outcome).continuity, Continuity::SameBoot);
        }
        (name, first.clock.reset_count)
    };
    let (_swtpm, mut attester) = node.boot(IMAGE, "0-7");
    let outcome = attester.attest(&[9; 32], 5).unwrap();
    assert_eq!(outcome.ak_name, first, "the same seed gives the same key");
    let appraised = good(outcome);
    assert_eq!(appraised.continuity, Continuity::NewBoot);
    assert!(appraised.clock.reset_count > boots);
}

#[test]
fn a_register_extended_behind_the_services_back_is_refused() {
    let node = Node::new();
    let (_swtpm, mut attester) = node.boot(IMAGE, "0-7");
    good(attester.attest(&[1; 32], 5).unwrap());
    attester.tpm.pcr_extend(4, &[0xee; 32]).unwrap();
    let refusal = attester.attest(&[2; 32], 5).unwrap().result.unwrap_err();
    assert!(matches!(refusal, Refusal::Reference { pcr: 4, .. }), "{refusal}");
}

#[test]
fn an_image_measured_over_another_is_refused() {
    let node = Node::new();
    let (_swtpm, mut attester) = node.boot(IMAGE, "0-7");
    attester.tpm.startup().unwrap();
    attester.tpm.pcr_extend(IMAGE_PCR, &[0x66; 32]).unwrap();
    let outcome = attester.attest(&[1; 32], 5).unwrap();
    let refusal = outcome.result.unwrap_err();
    assert!(matches!(refusal, Refusal::Reference { pcr: IMAGE_PCR, .. }), "{refusal}");
    assert!(!node.data.path().join("enrolment").exists(), "and is not enrolled");
}

#[test]
fn a_new_image_is_good_after_a_boot_that_measured_it() {
    let node = Node::new();
    {
        let (_swtpm, mut attester) = node.boot(IMAGE, "0-7");
        good(attester.attest(&[1; 32], 5).unwrap());
    }
    let (_swtpm, mut attester) = node.boot([0x22; 32], "0-7");
    good(attester.attest(&[2; 32], 5).unwrap());
}

#[test]
fn a_restarted_service_measures_no_second_time() {
    let node = Node::new();
    let (_swtpm, mut attester) = node.boot(IMAGE, "0-7");
    good(attester.attest(&[1; 32], 5).unwrap());
    let Attester { tpm, .. } = attester;
    let pcrs = PcrSet::parse("0-7").unwrap();
    let mut again = Attester::new(tpm, node.data.path(), IMAGE, pcrs);
    good(again.attest(&[2; 32], 5).unwrap());
}

#[test]
fn another_tpm_is_refused() {
    let node = Node::new();
    {
        let (_swtpm, mut attester) = node.boot(IMAGE, "0-7");
        good(attester.attest(&[1; 32], 5).unwrap());
    }
    let other = Node { state: tempfile::tempdir().unwrap(), data: node.data };
    let (_swtpm, mut attester) = other.boot(IMAGE, "0-7");
    let refusal = attester.attest(&[2; 32], 5).unwrap().result.unwrap_err();
    assert_eq!(refusal, Refusal::Signature);
}

#[test]
fn an_older_state_of_the_tpm_put_back_is_refused() {
    let node = Node::new();
    drop(node.boot(IMAGE, "0").1.attest(&[1; 32], 5).unwrap());
    let saved = node.state.path().join("tpm2-00.permall");
    let old = std::fs::read(&saved).unwrap();
    for n in 2..4 {
        let (_swtpm, mut attester) = node.boot(IMAGE, "0");
        good(attester.attest(&[n; 32], 5).unwrap());
    }
    std::fs::write(&saved, old).unwrap();
    let (_swtpm, mut attester) = node.boot(IMAGE, "0");
    let refusal = attester.attest(&[9; 32], 5).unwrap().result.unwrap_err();
    assert_eq!(refusal, Refusal::Counters);
}

#[test]
fn other_registers_than_enrolled_are_a_clear_fault() {
    let node = Node::new();
    {
        let (_swtpm, mut attester) = node.boot(IMAGE, "0-7");
        good(attester.attest(&[1; 32], 5).unwrap());
    }
    let (_swtpm, mut attester) = node.boot(IMAGE, "0-9");
    let fault = attester.attest(&[2; 32], 5).unwrap_err();
    assert!(matches!(fault, Fault::StaleAttestation(_)), "{fault}");
}

#[test]
fn a_damaged_enrolment_is_never_replaced() {
    let node = Node::new();
    let (_swtpm, mut attester) = node.boot(IMAGE, "0-7");
    good(attester.attest(&[1; 32], 5).unwrap());
    let file = node.data.path().join("enrolment");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, &text[..text.len() / 2]).unwrap();
    let fault = attester.attest(&[2; 32], 5).unwrap_err();
    assert!(matches!(fault, Fault::Corrupt(_)), "{fault}");
    assert_eq!(std::fs::read_to_string(&file).unwrap().len(), text.len() / 2);
}

#[test]
fn a_killed_tpm_is_unavailable_and_stays_so() {
    let node = Node::new();
    let (mut swtpm, mut attester) = node.boot(IMAGE, "0-7");
    good(attester.attest(&[1; 32], 5).unwrap());
    swtpm.0.kill().unwrap();
    swtpm.0.wait().unwrap();
    for _ in 0..2 {
        let fault = attester.attest(&[2; 32], 5).unwrap_err();
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

    fn presents(attester: &mut Attester<TimedFd>) -> Request {
        attester.present(JOINER, KEY, INVITER, NONCE, 5).unwrap()
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
        let (_swtpm, mut attester) = node.boot(IMAGE, "0-7");
        let request = presents(&mut attester);
        assert_eq!(Request::parse(&request.to_json().unwrap()), Ok(request.clone()));
        let admitted = admit(&request, &expects(&request)).unwrap();
        let sealed = seal("come", JOINER, &admitted, &random(9)).unwrap();
        let sealed = Sealed::parse(&sealed.to_json().unwrap()).unwrap();
        // More often than the TPM has room for objects and sessions.
        for _ in 0..6 {
            assert_eq!(attester.open(&sealed).unwrap(), "come");
        }
        // It is attested as before, too.
        good(attester.attest(&[1; 32], 5).unwrap());

        let (_swtpm, mut other) = other.boot(IMAGE, "0-7");
        for _ in 0..6 {
            assert!(matches!(other.open(&sealed), Err(Fault::Unauthenticated(_))));
        }
        good(other.attest(&[1; 32], 5).unwrap());
        // What was changed on its way opens nowhere.
        let text = sealed.to_json().unwrap();
        for (what, with) in
            [(r#""sealed": ""#, r#""sealed": "00"#), (r#""node": "2a"#, r#""node": "2b"#)]
        {
            let changed = Sealed::parse(&text.replacen(what, with, 1)).unwrap();
            assert!(matches!(attester.open(&changed), Err(Fault::Unauthenticated(_))), "{what}");
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
            assert!(matches!(attester.open(&changed), Err(Fault::Unauthenticated(_))), "{at}");
        }
        assert_eq!(attester.open(&sealed).unwrap(), "come");
    }

    #[test]
    fn whoever_shows_something_else_than_was_expected_is_not_invited() {
        let (node, other) = (Node::new(), Node::new());
        let (_swtpm, mut attester) = node.boot(IMAGE, "0-7");
        let request = presents(&mut attester);
        let expected = expects(&request);
        // For another challenge, by another inviter, and for another key than the TPM was told.
        refused(&request, &Expected { nonce: [1; 32], ..expected.clone() }, "challenge");
        refused(&request, &Expected { inviter: JOINER, ..expected.clone() }, "replay");
        refused(&Request { key: HolderKey([1; 32]), ..request.clone() }, &expected, "replay");
        let elsewhere = Request { node: INVITER, ..request.clone() };
        refused(&elsewhere, &Expected { node: INVITER, ..expected.clone() }, "replay");
        // A quote for the node's own attestation is none for an inviter.
        let own = attester.tpm.evidence(&NONCE, attester.pcrs).unwrap();
        let own = Request { quote: own.quote, signature: own.signature, ..request.clone() };
        refused(&own, &expected, "replay");
        // Another machine's TPM, as it is, and under this one's name.
        let (_swtpm, mut other) = other.boot(IMAGE, "0-7");
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
        let (_swtpm, mut attester) = node.boot(IMAGE, "0-7");
        let request = presents(&mut attester);
        let ek = EndorsementKey::from_public(&request.ek).unwrap();
        let name = AttestationKey::from_public(&request.ak).unwrap().name();
        let secret = [0x5c; 32];
        let made = |name: &[u8; 34]| -> Credential {
            make_credential(&ek, name, &secret, &Zeroizing::new([9; EPHEMERAL_BYTES])).unwrap()
        };
        assert_eq!(*attester.tpm.activate(&made(&name)).unwrap(), secret);
        let mut another = name;
        another[33] ^= 1;
        let refused = attester.tpm.activate(&made(&another));
        assert!(matches!(refused, Err(TpmError::Another)), "{refused:?}");
        assert_eq!(*attester.tpm.activate(&made(&name)).unwrap(), secret);
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
        let (_swtpm, mut attester) = node.boot(IMAGE, "0-7");
        let request = presents(&mut attester);
        let name = AttestationKey::from_public(&request.ak).unwrap().name();
        let secret = [0x5c; 32];
        for template in Template::ALL {
            let public = attester.tpm.endorsement_of(template).unwrap();
            let ek = EndorsementKey::from_public(&public).unwrap();
            assert_eq!(ek.template(), template);
            let made = |name: &[u8; 34]| {
                let ephemeral = Zeroizing::new([9; EPHEMERAL_BYTES]);
                make_credential(&ek, name, &secret, &ephemeral).unwrap()
            };
            // More often than the TPM has room for objects and sessions.
            for _ in 0..4 {
                assert_eq!(*attester.tpm.activate(&made(&name)).unwrap(), secret, "{template:?}");
                let refused = attester.tpm.activate(&made(&[1; 34]));
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
        let (_swtpm, mut attester) = node.boot(IMAGE, "0-7");
        let request = presents(&mut attester);
        assert_eq!(Request::parse(&request.to_json().unwrap()), Ok(request.clone()));
        let (identity, _) = attester.identity(5).unwrap();
        assert_eq!((&identity.public, &identity.certificate), (&request.ek, &request.certificate));
        let certified = |makers| Expected { ek: None, makers, ..expects(&request) };
        let expected = certified(maker.makers(Kind::Software));
        let admitted = admit(&request, &expected).unwrap();
        let shown = admitted.endorsement.as_ref().unwrap();
        assert_eq!(shown.kind, Kind::Software);
        assert_eq!(shown.origin.model.as_deref(), Some("swtpm"));
        let sealed = seal("come", JOINER, &admitted, &random(9)).unwrap();
        let sealed = Sealed::parse(&sealed.to_json().unwrap()).unwrap();
        for _ in 0..4 {
            assert_eq!(attester.open(&sealed).unwrap(), "come");
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
        let (_swtpm, mut another) = another.boot(IMAGE, "0-7");
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
        let quoted = attester.tpm.evidence(&answers, attester.pcrs).unwrap();
        let forged = Request { quote: quoted.quote, signature: quoted.signature, ..claimed };
        let admitted = admit(&forged, &expected).unwrap();
        let sealed = seal("come", JOINER, &admitted, &random(9)).unwrap();
        assert!(matches!(attester.open(&sealed), Err(Fault::Unauthenticated(_))));
        assert!(matches!(another.open(&sealed), Err(Fault::Unauthenticated(_))));
        // One that no maker has certified has none to show.
        let plain = Node::new();
        let (_swtpm, mut plain) = plain.boot(IMAGE, "0-7");
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
        let (_swtpm, mut attester) = node.boot(IMAGE, "0-7");
        let (ek, ak) = attester.identity(5).unwrap();
        let ek = EndorsementKey::from_public(&ek.public).unwrap();
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
