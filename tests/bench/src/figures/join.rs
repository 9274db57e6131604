//! One node that joins: from its TPM's start to its SVID, stage by stage, against a real software TPM. What the network
//! carries between the stages, and operators decide, is not in it.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use distos_abi::{HolderKey, NodeId, VatName};
use distos_appraisal::Policies;
use distos_attestation::answering::Answering;
use distos_attestation::state::Judged;
use distos_attestation::verifier::{Answer, Kept, Law};
use distos_evidence::credential::EPHEMERAL_BYTES;
use distos_evidence::enrolment::Makers;
use distos_evidence::evidence::PcrSet;
use distos_evidence::live::{Bundle, Identity, Question, Session, Wanted};
use distos_identity::{
    ClusterName, Home, Issuer, Root, Serial, SpiffeId, Subject, Validity, prove, verify_proof,
};
use distos_rpc::record::Record;
use distos_types::HolderSecret;
use rustix::io::{FdFlags, fcntl_setfd};
use zeroize::Zeroizing;

use super::{Failure, Outcome};
use crate::report::{Figure, time};
use crate::sample::{Pairs, quantile};

/// Nodes that join, each with a TPM that was never used before.
const JOINS: usize = 60;
const IMAGE: [u8; 32] = [0x11; 32];
const AT_S: u64 = 1_800_000_000;
const VALID: Validity = Validity { from_s: AT_S, until_s: AT_S + 3600 };
/// The stages, in their order.
const STAGES: [&str; 8] = [
    "TPM started, image measured",
    "identity: endorsement and attestation key made",
    "credential made for both",
    "activated in the TPM",
    "quote taken, with what is read beside it",
    "quote verified, and appraised by policy",
    "what is known of the node kept, twice",
    "SVID asked for and signed",
];
/// The one that waits for the disk.
const KEPT: usize = 6;

/// A software TPM that was just switched on.
struct Swtpm {
    process: Child,
    _state: tempfile::TempDir,
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Swtpm {
    /// It, and the descriptor by which it is asked. Its state is on the disk of the build, as that of a node's.
    fn start(beside: &Path) -> Result<(Swtpm, OwnedFd), Failure> {
        let state = tempfile::tempdir_in(beside)?;
        let (mut ours, theirs) = UnixStream::pair()?;
        // Inherited under its own number.
        fcntl_setfd(&theirs, FdFlags::empty())?;
        let mut command = Command::new("swtpm");
        command.args(["socket", "--tpm2", "--flags", "not-need-init", "--tpmstate"]);
        command.arg(format!("dir={},mode=0600", state.path().display()));
        command.arg("--fd").arg(theirs.as_raw_fd().to_string());
        command.stdin(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().map_err(|e| format!("swtpm (Debian: swtpm): {e}"))?;
        let swtpm = Swtpm { process, _state: state };
        drop(theirs);
        // That it runs: what it answers to TPM2_GetRandom before TPM2_Startup is a refusal. Its own start is no node's work.
        ours.write_all(&[0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 1])?;
        let mut refusal = [0; 10];
        ours.read_exact(&mut refusal)?;
        Ok((swtpm, ours.into()))
    }
}

/// What the cluster has: the policy of the images that come with DistOS, and an issuer.
struct Cluster {
    policies: Policies,
    makers: Makers,
    pcrs: PcrSet,
    verifier: NodeId,
    issuer: HolderSecret,
    certificate: Vec<u8>,
    beside: std::path::PathBuf,
}

impl Cluster {
    fn new(beside: &Path) -> Result<Cluster, Failure> {
        let image = include_str!("../../../../images/cluster.toml");
        let (_, policy) = image.split_once("policy = '''\n").ok_or("the image has a policy")?;
        let (policy, _) = policy.split_once("'''").ok_or("the image's policy ends")?;
        let verifier = NodeId([0xee; 32]);
        let (root, issuer) = (HolderSecret::from_seed([2; 32]), HolderSecret::from_seed([3; 32]));
        let root = Root::new(ClusterName::new("bench")?, &root);
        let certificate =
            root.certify(issuer.key(), Home::Node(verifier), VALID, Serial([4; 16]))?;
        Ok(Cluster {
            policies: Policies::unsigned(policy.as_bytes())?,
            makers: Makers::default(),
            pcrs: PcrSet::parse("0-7,11")?,
            verifier,
            issuer,
            certificate,
            beside: beside.to_owned(),
        })
    }

    /// One node joins. How long each stage took, and the quote's command alone, in nanoseconds.
    fn join(&self, number: u8) -> Result<([u64; STAGES.len()], u64), Failure> {
        let (_swtpm, tpm) = Swtpm::start(&self.beside)?;
        let mut machine = Answering::new(tpm, IMAGE, self.pcrs)?;
        let secret = HolderSecret::from_seed([number; 32]);
        let session = Session {
            verifier: self.verifier,
            node: NodeId([number; 32]),
            key: secret.key(),
            life: [number; 32],
        };
        let file = self.beside.join(format!("node-{number}"));
        let record = Record::new(file, "distos-bench", "measure again");
        let mut kept = Kept::default();
        let mut took = [0; STAGES.len()];
        let mut begun = Instant::now();
        let mut stage = |at: usize| {
            let now = Instant::now();
            took[at] += (now - std::mem::replace(&mut begun, now)).as_nanos() as u64;
        };

        machine.measure(0)?;
        stage(0);
        let mut ask = |question: Question| machine.answer(&question, session, 0);
        let identity = Identity::parse(&ask(Question::Identity)?)?;
        stage(1);
        let mut random = Zeroizing::new([number; 32]);
        random[0] ^= 1;
        let ephemeral = Zeroizing::new([number; EPHEMERAL_BYTES]);
        let begun = kept.begin(identity, random, &ephemeral);
        let (enrolling, credential) = begun.map_err(|why| format!("{why:?}"))?;
        stage(2);
        let answer = ask(Question::Activate(credential))?;
        kept.enrol(&enrolling, session, &answer).map_err(|why| format!("{why:?}"))?;
        stage(3);
        record.save(&kept)?;
        stage(KEPT);
        let nonce = [number; 32];
        let wanted = Wanted { nonce, pcrs: self.pcrs, listed: kept.listed(None) };
        let bundle = Bundle::parse(&ask(Question::Evidence(wanted))?)?;
        stage(4);
        let law = Law {
            policies: Some(&self.policies),
            makers: &self.makers,
            nvidia: None,
            known: None,
            elsewhere: None,
            at_s: AT_S,
        };
        let answer = Answer { session, nonce, pcrs: self.pcrs, bundle: &bundle, list: None };
        let examined = kept.examine(answer, None, law)?;
        let Judged::Good(_) = examined.judged else {
            return Err(format!("not good: {:?}", examined.judged).into());
        };
        stage(5);
        record.save(&examined.kept)?;
        stage(KEPT);
        self.issue(session.node, session.key, &secret)?;
        stage(7);
        Ok((took, bundle.quote_micros * 1_000))
    }

    /// As services/network does it, for the node's own network service.
    fn issue(&self, node: NodeId, key: HolderKey, secret: &HolderSecret) -> Result<(), Failure> {
        let subject = Subject::Service { node, service: VatName::new("network")? };
        let proof = prove(&subject, secret);
        verify_proof(&subject, key, &proof)?;
        let issuer = Issuer::new(self.certificate.clone(), &self.issuer)?;
        let id = SpiffeId { cluster: issuer.cluster().clone(), subject };
        issuer.issue(&id, key, VALID, Serial([5; 16]))?;
        Ok(())
    }
}

pub(super) fn all(_: &Path) -> Outcome {
    // On the disk of the build, not in memory.
    let own = std::env::current_exe()?;
    let beside = tempfile::tempdir_in(own.parent().ok_or("a program stands in a folder")?)?;
    measure(JOINS, beside.path()).map(|figure| vec![figure])
}

fn measure(joins: usize, beside: &Path) -> Result<Figure, Failure> {
    let cluster = Cluster::new(beside)?;
    cluster.join(200)?;
    let mut pairs = Pairs::default();
    let mut stages: [Vec<u64>; STAGES.len()] = Default::default();
    for number in 1..=joins {
        let (took, quote) = cluster.join(u8::try_from(number)?)?;
        pairs.ours.push(took.iter().sum());
        pairs.peer.push(quote);
        stages.iter_mut().zip(took).for_each(|(stage, ns)| stage.push(ns));
    }
    let (ours, peer) = pairs.medians();
    let medians = stages.map(|mut samples| quantile(&mut samples, 0.5));
    let whole: f64 = medians.iter().sum();
    let mut note = format!("{joins} joins, each with a new TPM; median of each stage:");
    for (name, ns) in STAGES.iter().zip(medians) {
        write!(note, "\n{:>10} {:5.1} %  {name}", time(ns), ns / whole * 100.0)?;
    }
    let most = (0..STAGES.len()).max_by(|a, b| medians[*a].total_cmp(&medians[*b]));
    let most = most.ok_or("there are stages")?;
    // What the TPM does, and waiting for it, against the rest.
    let tpm = medians[0] + medians[1] + medians[3] + medians[4];
    write!(
        note,
        "\n{} dominates; the TPM is {:.0} % of the whole. Connections and operators' votes are not in it",
        STAGES[most],
        tpm / whole * 100.0
    )?;
    let name = "one node, its TPM's start to its SVID, software TPM, p50";
    let figure = Figure::of("join", name, ours, peer)
        .beside("the bare TPM2_Quote of the same TPM")
        .within(pairs.interval())
        .noting(note);
    Ok(figure)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A figure that leaves out a stage would name the wrong one as what to make faster.
    #[test]
    fn every_stage_of_a_join_takes_its_time_and_the_quote_is_one_of_them() {
        let beside = tempfile::tempdir().unwrap();
        let cluster = Cluster::new(beside.path()).unwrap();
        let (took, quote) = cluster.join(1).unwrap();
        assert!(took.iter().all(|ns| *ns > 0), "{took:?}");
        assert!(quote > 0 && quote <= took[4], "{quote} {took:?}");
        let figure = measure(3, beside.path()).unwrap();
        assert!(figure.ratio > 1.0, "{figure:?}");
        println!("{}", crate::report::text(&figure));
    }
}
