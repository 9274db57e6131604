//! What a verifier knows of one node, and what it makes of that one's answers. Pure: bytes, time, trust and policies are
//! arguments.
//!
//! A node is known by its TPM's endorsement and attestation keys, once both were shown to be in one TPM
//! ([`Enrolling`]). Each answer to a challenge is verified device by device, and appraised by policy. What of that has to be
//! remembered until the next answer, and across restarts, is [`Kept`].

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use distos_abi::Fault;
use distos_appraisal::{Appraised as Opinion, Device, Kind, Policies, Tier, appraise};
use distos_collateral::Collateral;
use distos_evidence::credential::{Credential, EndorsementKey, make_credential};
use distos_evidence::devices::{self, DEVICES_PCR, Elsewhere, Numbers};
use distos_evidence::enrolment::Makers;
use distos_evidence::evidence::{Appraised, AttestationKey, PcrSet};
use distos_evidence::findings::{Claim, Findings, Outcome};
use distos_evidence::ima::{self, MAX_NAMED_FILES, Progress};
use distos_evidence::live::{
    Baseline, Bundle, Expected, Gpu, Identity, Session, booted, endorse, examine, examine_gpus,
};
use distos_evidence::{eventlog, ima::IMA_PCR};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::state::Judged;

/// The name of a TPM's submodule, and of those of the logs behind it.
const TPM: &str = "tpm";
const LOG: &str = "eventlog";
const LIST: &str = "ima";
const MACHINE: &str = "machine";
const UNKNOWN_COUNT: &str = "ima-unknown-count";
const UNKNOWN_FILES: &str = "ima-unknown-files";

/// What evidence is held against.
#[derive(Clone, Copy)]
pub struct Law<'a> {
    /// Without any nothing is good.
    pub policies: Option<&'a Policies>,
    /// Whose TPMs' certificates count.
    pub makers: &'a Makers,
    /// What NVIDIA's devices are held against.
    pub nvidia: Option<&'a Collateral>,
    /// Digests of the files that are known, if anybody has said which are.
    pub known: Option<&'a BTreeSet<String>>,
    /// Which of its devices other nodes have shown before; `None` if nobody has looked.
    pub elsewhere: Option<&'a Elsewhere>,
    /// Unix seconds.
    pub at_s: u64,
}

/// What is remembered of a node.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Kept {
    /// How often its evidence has turned bad.
    pub epoch: u64,
    /// The name of the endorsement key that an operator has said it has, hexadecimal.
    told: Option<String>,
    keys: Option<Keys>,
    baseline: Option<Baseline>,
    list: Option<Listed>,
    /// The devices that its last good evidence has shown, and that were no other node's, without those that it has given up.
    #[serde(default)]
    devices: Numbers,
}

/// The keys by which a node is known, hexadecimal.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Keys {
    /// `TPMT_PUBLIC`.
    ek: String,
    /// DER.
    certificate: Option<String>,
    /// `TPMT_PUBLIC`.
    ak: String,
}

/// How far the kernel's list is verified.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Listed {
    progress: Progress,
    /// In which boot.
    resets: u32,
    /// By which files it was verified, hexadecimal: with other ones it is verified anew.
    #[serde(default)]
    known: String,
    /// Entries of files that nobody knows, and the first of these.
    unknown: u64,
    named: BTreeSet<String>,
}

/// What good evidence of a node says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The TPM's quote.
    pub appraised: Appraised,
    /// How long the TPM took, in microseconds, as the node says.
    pub quote_micros: u64,
    /// The TPM name of the key that signed.
    pub ak_name: [u8; 34],
    /// What it is bound to.
    pub session: Session,
    /// The challenge that it answers.
    pub nonce: [u8; 32],
}

/// What a node answered to a challenge.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// Over which session.
    pub session: Session,
    /// The challenge.
    pub nonce: [u8; 32],
    /// The registers that were asked for.
    pub pcrs: PcrSet,
    /// The evidence.
    pub bundle: &'a Bundle,
    /// What came of the kernel's list with this answer and those before it.
    pub list: Option<&'a [u8]>,
}

/// A node's answer, examined.
#[derive(Clone, Debug)]
pub struct Examined {
    /// In one word.
    pub judged: Judged<Evidence>,
    /// What was found, device by device.
    pub devices: BTreeMap<String, Device>,
    /// What policies say of it.
    pub opinion: Opinion,
    /// The devices of which it has shown that they are what they say.
    pub shown: Numbers,
    /// What is to be remembered from now on. Of what is not good, that the node is without devices that it had.
    pub kept: Kept,
}

/// A TPM that says it is a node's, and has yet to show that both keys are in it.
#[derive(Debug)]
pub struct Enrolling {
    identity: Identity,
    secret: Zeroizing<[u8; 32]>,
}

impl Kept {
    /// The name of the endorsement key by which the node is known.
    pub fn endorsement(&self) -> Option<Vec<u8>> {
        self.keys().ok().map(|(ek, _, _)| ek.name())
    }

    /// Whether what is new in `self` has to be on disk: what else changes with each answer may be that of an earlier one.
    pub fn matters_after(&self, before: &Kept) -> bool {
        let boot = |kept: &Kept| {
            kept.baseline.as_ref().map(|known| (known.clock.reset_count, known.clock.restart_count))
        };
        let keys = |kept: &Kept| kept.keys.as_ref().map(|keys| (keys.ek.clone(), keys.ak.clone()));
        (self.epoch, &self.told, keys(self), boot(self), &self.devices)
            != (before.epoch, &before.told, keys(before), boot(before), &before.devices)
    }

    /// The numbers of the devices that are this node's.
    pub fn devices(&self) -> &Numbers {
        &self.devices
    }

    /// These are the node's devices from now on, and no others.
    pub fn set_devices(&mut self, devices: Numbers) {
        self.devices = devices;
    }

    /// Whether both are known by one TPM. Of one that is known by none nobody can say so.
    pub fn is_same_tpm(&self, other: &Kept) -> bool {
        // Of one key there is one public area: a TPM is known by the standard's templates alone.
        matches!((&self.keys, &other.keys), (Some(one), Some(other)) if one.ek == other.ek)
    }

    /// Gives up the devices that are not among those that the node has shown.
    fn give_up_but(&mut self, shown: &Numbers) {
        self.devices.retain(|number| shown.contains(number));
    }

    /// Whether the node is known by its keys.
    pub fn is_enrolled(&self) -> bool {
        self.keys.is_some()
    }

    /// Takes the TPM whose endorsement key has this name from now on, and no other; with `None`, whichever comes next.
    /// What is known of the one before is forgotten, but for the epoch.
    pub fn expect(&mut self, ek: Option<&[u8]>) {
        *self = Kept { epoch: self.epoch, told: ek.map(hex::encode), ..Kept::default() };
    }

    /// The boot of which the kernel's list is verified: how often the TPM was reset.
    pub fn listed_in(&self) -> Option<u32> {
        self.list.as_ref().map(|list| list.resets)
    }

    /// By what it is known, for people.
    pub fn named(&self) -> String {
        match self.keys() {
            Ok((ek, certificate, ak)) => {
                let certified = if certificate.is_some() { "with" } else { "without" };
                let (ek, ak) = (hex::encode(ek.name()), hex::encode(ak.name()));
                format!("endorsement key {ek}, {certified} a certificate; attestation key {ak}")
            }
            Err(_) => "nothing".to_owned(),
        }
    }

    /// How many bytes of the kernel's list are verified, by these known files.
    pub fn listed(&self, known: Option<&BTreeSet<String>>) -> u64 {
        let by_these = self.list.as_ref().filter(|list| list.known == named_by(known));
        by_these.map_or(0, |list| list.progress.offset())
    }

    /// The TPM that answered, if it may be the node's. `random` is for the secret that shows it, and for nothing else; `ephemeral`
    /// is to be a private key ([`distos_evidence::credential::is_ephemeral`]).
    ///
    /// # Errors
    /// [`Judged::Bad`] if it is another one than was told, [`Judged::Absent`] if it is none.
    pub fn begin(
        &self,
        identity: Identity,
        random: Zeroizing<[u8; 32]>,
        ephemeral: &Zeroizing<[u8; distos_evidence::credential::EPHEMERAL_BYTES]>,
    ) -> Result<(Enrolling, Credential), Judged<Infallible>> {
        let broken = |what: &str, why| Judged::Absent(format!("the {what} key is {why}"));
        let ek = EndorsementKey::from_public(&identity.ek).map_err(|e| broken("endorsement", e))?;
        let ak = AttestationKey::from_public(&identity.ak).map_err(|e| broken("attestation", e))?;
        let name = hex::encode(ek.name());
        if self.told.as_ref().is_some_and(|told| *told != name) {
            let why = format!("this is another TPM than the operator has named: {name}");
            return Err(Judged::Bad(why));
        }
        let credential = make_credential(&ek, &ak.name(), &random, ephemeral)
            .ok_or_else(|| Judged::Absent("a random number that is no key".to_owned()))?;
        Ok((Enrolling { identity, secret: random }, credential))
    }

    /// Knows the node by these keys, if the answer shows that they are in one TPM.
    ///
    /// # Errors
    /// [`Judged::Bad`] if it does not.
    pub fn enrol(
        &mut self,
        enrolling: &Enrolling,
        session: Session,
        answer: &[u8],
    ) -> Result<(), Judged<Infallible>> {
        if answer != session.activated(&enrolling.secret) {
            let why = "nothing shows that the attestation key is in the TPM of the endorsement key";
            return Err(Judged::Bad(why.to_owned()));
        }
        let Identity { ek, certificate, ak } = &enrolling.identity;
        self.keys = Some(Keys {
            ek: hex::encode(ek),
            certificate: certificate.as_ref().map(hex::encode),
            ak: hex::encode(ak),
        });
        (self.baseline, self.list) = (None, None);
        Ok(())
    }

    fn keys(&self) -> Result<(EndorsementKey, Option<Vec<u8>>, AttestationKey), Fault> {
        let none = || Fault::unavailable(1_000, "the node is not enrolled");
        let keys = self.keys.as_ref().ok_or_else(none)?;
        let bytes = |text: &str| {
            hex::decode(text).map_err(|_| Fault::Corrupt("an enrolled key: not hexadecimal".into()))
        };
        let corrupt = |why| Fault::Corrupt(format!("an enrolled key is {why}"));
        let ek = EndorsementKey::from_public(&bytes(&keys.ek)?).map_err(corrupt)?;
        let ak = AttestationKey::from_public(&bytes(&keys.ak)?).map_err(corrupt)?;
        Ok((ek, keys.certificate.as_deref().map(bytes).transpose()?, ak))
    }

    /// Examines what a node answered. Of the verifier's own node, `own` says whether its TPM is a device of this machine.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] if the node is not enrolled, [`Fault::Corrupt`] if what is remembered cannot be read, and
    /// as [`appraise`].
    pub fn examine(
        &self,
        answer: Answer<'_>,
        own: Option<bool>,
        law: Law<'_>,
    ) -> Result<Examined, Fault> {
        let Answer { session, nonce, pcrs, bundle, list } = answer;
        let (ek, certificate, ak) = self.keys()?;
        let mut kept = self.clone();
        let mut devices = BTreeMap::new();
        let mut tpm = Findings::default();
        endorse(&ek, certificate.as_deref(), law.makers, law.at_s, &mut tpm);
        match own {
            // What stands behind the descriptor the kernel of this machine knows better than any certificate.
            Some(false) => tpm.claim("tpm", "software"),
            Some(true) if !tpm.claims.contains_key("tpm") => tpm.claim("tpm", "hardware"),
            _ => {}
        }
        let qualifying = session.qualifying(&nonce);
        let baseline = self.baseline.as_ref();
        let expected = Expected { key: &ak, qualifying: &qualifying, pcrs, baseline };
        let good = examine(bundle, expected, &mut tpm);
        // Values of a quote that is not good prove nothing of the logs.
        let proven = good.is_some() && tpm.worst() != Outcome::Failed;
        devices.insert(TPM.to_owned(), Device { kind: Kind::Tpm, findings: tpm });
        if let Some(log) = &bundle.log {
            let values = booted(&bundle.pcrs);
            let findings = eventlog::verify(log, proven.then_some(&values));
            devices.insert(LOG.to_owned(), Device { kind: Kind::EventLog, findings });
        }
        if let Some(list) = list {
            let resets = good.as_ref().map(|(appraised, _)| appraised.clock.reset_count);
            let value = bundle.pcrs.get(&IMA_PCR).filter(|_| proven).map(|value| &value[..]);
            let findings = kept.listed_on(list, value, resets, law.known);
            devices.insert(LIST.to_owned(), Device { kind: Kind::Ima, findings });
        }
        let (mut shown, mut here, mut is_whole) = (Numbers::new(), Numbers::new(), false);
        if let Some(gpus) = &bundle.gpus {
            let register = bundle.pcrs.get(&DEVICES_PCR).filter(|_| proven);
            (shown, here, is_whole) =
                examine_each(gpus, session, &nonce, law, register, &mut devices)?;
        }
        let opinion = appraise(law.policies, session.verifier, session.node, &devices)?;
        let judged = match (opinion.tier(), good) {
            (Tier::Affirming | Tier::Warning, Some((appraised, baseline))) => {
                kept.baseline = Some(baseline);
                kept.devices = here;
                let quote_micros = bundle.quote_micros;
                let ak_name = ak.name();
                Judged::Good(Evidence { appraised, quote_micros, ak_name, session, nonce })
            }
            (Tier::Contraindicated, _) => Judged::Bad(why(&opinion, &devices)),
            _ => Judged::Absent(why(&opinion, &devices)),
        };
        if !matches!(judged, Judged::Good(_)) {
            // Nothing is built on what is not good: the next answer is held against what this one was.
            kept = self.clone();
            if matches!(judged, Judged::Absent(_)) && proven && is_whole {
                // But for what it proves to be without. Or two nodes that exchange devices wait for each other.
                kept.give_up_but(&shown);
            }
        }
        Ok(Examined { judged, devices, opinion, shown, kept })
    }

    /// Goes on with the kernel's list from where it was verified, if that was in this boot.
    fn listed_on(
        &mut self,
        list: &[u8],
        value: Option<&[u8]>,
        resets: Option<u32>,
        known: Option<&BTreeSet<String>>,
    ) -> Findings {
        let by = named_by(known);
        let before = self.list.take();
        let before = before.filter(|before| Some(before.resets) == resets && before.known == by);
        let (mut findings, advance) = match &before {
            Some(before) => ima::verify(&before.progress, list, value, known),
            None => ima::verify_first(list, value, known),
        };
        let Some(advance) = advance else { return findings };
        let (mut unknown, mut named) =
            before.map_or((0, BTreeSet::new()), |before| (before.unknown, before.named));
        if let Some(known) = known {
            let new = advance.unknown_files(known);
            unknown = unknown.saturating_add(new.count);
            let room = MAX_NAMED_FILES.saturating_sub(named.len());
            named.extend(new.named.into_iter().take(room));
            let count = i64::try_from(unknown).unwrap_or(i64::MAX);
            findings.claim(UNKNOWN_COUNT, Claim::Number(count));
            findings.claim(UNKNOWN_FILES, named.clone());
        }
        if let Some(resets) = resets.filter(|_| advance.vouched) {
            self.list =
                Some(Listed { progress: advance.progress, resets, known: by, unknown, named });
        }
        findings
    }
}

/// What a set of known files is called.
fn named_by(known: Option<&BTreeSet<String>>) -> String {
    let Some(known) = known else { return String::new() };
    let all =
        known.iter().fold(Sha256::new(), |hash, one| hash.chain_update(one).chain_update(b"\n"));
    hex::encode(all.finalize())
}

/// Adds what was found of each GPU, and of all of them together. Returns the devices that are what they say, those of them
/// that no other node shows, and whether there are some and each has shown which one it is. `register` is what the
/// quote proves of the register in which they are measured.
fn examine_each(
    gpus: &[Gpu],
    session: Session,
    nonce: &[u8; 32],
    law: Law<'_>,
    register: Option<&[u8; 32]>,
    devices: &mut BTreeMap<String, Device>,
) -> Result<(Numbers, Numbers, bool), Fault> {
    let nothing = Collateral::default();
    let collateral = law.nvidia.unwrap_or(&nothing);
    // Documents whose signatures do not hold are not used: then "golden values" is not checked.
    let (golden, _) = collateral.golden(law.at_s);
    let mut found = examine_gpus(gpus, &session, nonce, collateral.anchors(law.at_s), &golden)
        .map_err(Fault::malformed)?;
    devices::check(&mut found, register);
    let here = devices::check_place(&mut found, law.elsewhere);
    let shown: Numbers = found.devices.values().filter_map(|one| one.number).collect();
    let is_whole = !shown.is_empty() && shown.len() == found.devices.len();
    for (name, one) in found.devices {
        let kind = if one.is_switch { Kind::NvidiaSwitch } else { Kind::NvidiaGpu };
        devices.insert(name, Device { kind, findings: one.findings });
    }
    if let Some(findings) = found.together {
        devices.insert(MACHINE.to_owned(), Device { kind: Kind::NvidiaMachine, findings });
    }
    Ok((shown, here, is_whole))
}

/// Why a node is not good, for people: the first device that is not, with the first check of it that did not pass.
fn why(opinion: &Opinion, devices: &BTreeMap<String, Device>) -> String {
    let worst = opinion.tier();
    let of_device = opinion.submods().iter().find(|(_, (_, one))| one.tier() == worst);
    let Some((name, (_, one))) = of_device else {
        return format!("the node: {}", opinion.admission().reason());
    };
    let mut said = format!("{name}: {}", one.reason());
    let checks = devices.get(name).map(|device| device.findings.checks.as_slice());
    let failed = checks.unwrap_or_default().iter().find(|check| check.outcome == Outcome::Failed);
    if let Some(check) = failed {
        said = format!("{said}: {}", check.detail);
    }
    said
}

#[cfg(test)]
#[path = "fleet_tests.rs"]
mod tests;
