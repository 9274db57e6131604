//! Machines with real software TPMs, and a verifier of one of them: for tests.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use distos_abi::{Fault, HolderKey, NodeId};
use distos_appraisal::Policies;
use distos_evidence::credential::EPHEMERAL_BYTES;
use distos_evidence::enrolment::Makers;
use distos_evidence::evidence::{Appraised, PcrSet};
use distos_evidence::live::{Bundle, Identity, Question, Session, Wanted};
use zeroize::Zeroizing;

use crate::collector::{Collector, Logs};
use crate::state::Judged;
use crate::tpm::{TIMEOUT, TimedFd, Tpm};
use crate::verifier::{Answer, Evidence as Good, Kept, Law};

pub(crate) const IMAGE: [u8; 32] = [0x11; 32];

/// A swtpm process that ends when its client goes.
pub(crate) struct Swtpm(pub(crate) Child);

impl Drop for Swtpm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// swtpm takes no descriptor below 3, so the shell moves it there from standard input.
pub(crate) fn swtpm(state: &Path) -> (Swtpm, Tpm<TimedFd>) {
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

/// A machine that is off.
pub(crate) struct Node {
    pub(crate) state: tempfile::TempDir,
}

/// A policy that takes a software TPM of whichever maker, and files only if they are known.
pub(crate) const POLICY: &str = r#"// distos-policy: test
// version: 1

@id("any-tpm")
@accepts("software-tpm")
@unchecked("certificate chain")
permit (principal, action == Action::"affirm", resource is Tpm)
when { resource.passed.containsAll(["enrolled keys", "signature", "nonce", "image", "same boot"]) };

@id("log")
permit (principal, action == Action::"affirm", resource is EventLog)
when { resource.passed.contains("replay") };

@id("files")
permit (principal, action == Action::"affirm", resource is Ima)
when {
    resource.passed.contains("ima replay") &&
    resource has ima_unknown_count && resource.ima_unknown_count == 0
};

@id("tpm")
permit (principal, action == Action::"admit", resource is Node)
when { resource.tpm == 1 };
"#;

pub(crate) const NODE: NodeId = NodeId([2; 32]);
pub(crate) const VERIFIER: NodeId = NodeId([1; 32]);
pub(crate) const AT_S: u64 = 1_800_000_000;

/// A verifier, and what it keeps of one node.
pub(crate) struct Verifier {
    pub(crate) kept: Kept,
    pub(crate) policies: Arc<Policies>,
    pub(crate) makers: Makers,
    pub(crate) known: Option<BTreeSet<String>>,
    pub(crate) pcrs: PcrSet,
    pub(crate) session: Session,
}

impl Verifier {
    pub(crate) fn new() -> Verifier {
        Verifier {
            kept: Kept::default(),
            policies: Arc::new(Policies::unsigned(POLICY.as_bytes()).unwrap()),
            makers: Makers::default(),
            known: None,
            pcrs: PcrSet::parse("0-7,11").unwrap(),
            session: Session {
                verifier: VERIFIER,
                node: NODE,
                key: HolderKey([3; 32]),
                life: [4; 32],
            },
        }
    }

    /// Asks over this verifier's session.
    pub(crate) fn ask(
        &self,
        of: &mut Collector<TimedFd>,
        question: Question,
    ) -> Result<Vec<u8>, Fault> {
        // As it arrives.
        let question = Question::parse(&question.to_bytes()).unwrap();
        of.answer(&question, self.session, 5)
    }

    /// Has the node show that its keys are in one TPM, by this secret.
    pub(crate) fn enrol(
        &mut self,
        of: &mut Collector<TimedFd>,
        secret: [u8; 32],
    ) -> Result<(), Judged<Infallible>> {
        let identity = Identity::parse(&self.ask(of, Question::Identity).unwrap()).unwrap();
        let ephemeral = Zeroizing::new([9; EPHEMERAL_BYTES]);
        let begun = self.kept.begin(identity, Zeroizing::new(secret), &ephemeral);
        let (enrolling, credential) = begun?;
        let answer = self.ask(of, Question::Activate(credential)).unwrap();
        self.kept.enrol(&enrolling, self.session, &answer)
    }

    pub(crate) fn bundle(
        &self,
        of: &mut Collector<TimedFd>,
        nonce: [u8; 32],
    ) -> Result<Bundle, Fault> {
        let wanted =
            Wanted { nonce, pcrs: self.pcrs, listed: self.kept.listed(self.known.as_ref()) };
        Bundle::parse(&self.ask(of, Question::Evidence(wanted))?)
    }

    pub(crate) fn judge(&mut self, bundle: &Bundle, nonce: [u8; 32]) -> Judged<Good> {
        let Verifier { policies, makers, known, session, pcrs, .. } = &*self;
        let law = Law {
            policies: Some(policies),
            makers,
            nvidia: None,
            known: known.as_ref(),
            elsewhere: None,
            at_s: AT_S,
        };
        let answer =
            Answer { session: *session, nonce, pcrs: *pcrs, bundle, list: bundle.list.as_deref() };
        let examined = self.kept.examine(answer, None, law).unwrap();
        self.kept = examined.kept;
        examined.judged
    }

    /// Enrols a node that is not, and judges its evidence.
    pub(crate) fn attest(&mut self, of: &mut Collector<TimedFd>, nonce: u8) -> Judged<Good> {
        if !self.kept.is_enrolled()
            && let Err(judged) = self.enrol(of, [7; 32])
        {
            return judged.of();
        }
        let bundle = self.bundle(of, [nonce; 32]).unwrap();
        self.judge(&bundle, [nonce; 32])
    }
}

impl Node {
    pub(crate) fn new() -> Node {
        let found = Command::new("swtpm").arg("--version").output();
        assert!(
            found.is_ok_and(|output| output.status.success()),
            "swtpm is not installed: run .ci/setup (Debian: apt-get install swtpm)"
        );
        Node { state: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn boot(&self, image: [u8; 32]) -> (Swtpm, Collector<TimedFd>) {
        self.boot_with(image, Logs::default())
    }

    pub(crate) fn boot_with(&self, image: [u8; 32], logs: Logs) -> (Swtpm, Collector<TimedFd>) {
        let (process, tpm) = swtpm(self.state.path());
        let pcrs = PcrSet::parse("0-7").unwrap();
        (process, Collector::new(tpm, image, pcrs, logs))
    }
}

pub(crate) fn good(judged: Judged<Good>) -> Appraised {
    match judged {
        Judged::Good(evidence) => evidence.appraised,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn bad(judged: Judged<Good>, why: &str) {
    assert!(matches!(&judged, Judged::Bad(told) if told.contains(why)), "{judged:?}");
}
