//! By what a node's evidence is judged: a policy, and what evidence is held against. Both come with the image or from
//! whoever holds `admin`, and are kept in the service's directory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use distos_abi::{Fault, HolderKey};
use distos_appraisal::{MAX_POLICY_BYTES, Policies};
use distos_collateral::{Collateral, Maker};
use distos_evidence::enrolment::{Kind, Makers};
use distos_evidence::ima::known_files;
use distos_rpc::record::Record;
use serde::{Deserialize, Serialize};

use crate::verifier::Law;

/// How many files of trust there are at most, and their bytes together.
const MAX_FILES: usize = 512;
const MAX_BYTES: usize = 8 << 20;
/// In base64, with the names.
const MAX_RECORD_BYTES: u64 = 12 << 20;
/// The folder of roots whose TPMs are programs.
const SOFTWARE: &str = "software-tpm";
/// The file of known files' digests, one a line.
const KNOWN: &str = "ima/known-files";

/// What the image says of policies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Given {
    /// The text of one; empty if there is none.
    pub(crate) policy: String,
    /// The signature over it; empty if nobody signed it.
    pub(crate) signature: String,
    /// Whose policies are taken.
    pub(crate) signers: Vec<HolderKey>,
}

#[derive(Serialize, Deserialize)]
struct PolicyFile {
    policy: String,
    signature: String,
}

/// Base64 by name.
type TrustFile = BTreeMap<String, String>;

/// By what is judged.
pub(crate) struct Governing {
    policies: Option<Policies>,
    makers: Makers,
    known: Option<BTreeSet<String>>,
    collateral: BTreeMap<Maker, Collateral>,
}

impl Governing {
    /// The law at this time, in Unix seconds.
    pub(crate) fn law(&self, at_s: u64) -> Law<'_> {
        let Governing { policies, makers, known, collateral } = self;
        let nvidia = collateral.get(&Maker::Nvidia);
        let (policies, known) = (policies.as_ref(), known.as_ref());
        Law { policies, makers, nvidia, known, elsewhere: None, at_s }
    }

    /// The policy's name and version; `None` if there is none.
    pub(crate) fn edition(&self) -> Option<String> {
        self.policies.as_ref().map(|policies| policies.edition().to_string())
    }

    /// SHA-256 of what evidence is held against, maker by maker.
    pub(crate) fn digests(&self) -> Vec<[u8; 32]> {
        self.collateral.values().map(Collateral::digest).collect()
    }
}

/// Where policy and trust are kept.
pub(crate) struct Archive {
    policy: Record,
    trust: Record,
    given: Given,
}

impl Archive {
    pub(crate) fn new(directory: &Path, given: Given) -> Archive {
        const POLICY: &str = "remove it to go by the image's policy, and give the other again";
        const TRUST: &str = "remove it, and give the folder of trust again";
        let record = |name, remedy| Record::new(directory.join(name), "distos-attestation", remedy);
        Archive {
            policy: record("policy", POLICY),
            trust: record("trust", TRUST).of_at_most(MAX_RECORD_BYTES),
            given,
        }
    }

    /// What is in force. A policy that was given later than the image's counts while it is of that one's name and newer.
    pub(crate) fn read(&self) -> Result<Governing, Fault> {
        let image = self.images()?;
        let later = match self.policy.load::<PolicyFile>()? {
            None => None,
            Some(PolicyFile { policy, signature }) => {
                match Policies::open(policy.as_bytes(), &signature, &self.given.signers) {
                    Ok(later) => Some(later),
                    // The image has changed whose policies count.
                    Err(fault) => {
                        tracing::warn!(%fault, "the policy that was given later is not used");
                        None
                    }
                }
            }
        };
        let policies = match (later, image) {
            (Some(later), Some(image)) if later.edition().accepts(image.edition()).is_err() => {
                Some(image)
            }
            (Some(later), _) => Some(later),
            (None, image) => image,
        };
        let files = self.trust.load::<TrustFile>()?.unwrap_or_default();
        let corrupt = |name: &str| Fault::Corrupt(format!("trust: {name}"));
        let file = |(name, text): (String, String)| {
            let bytes = STANDARD.decode(text).map_err(|_| corrupt(&name))?;
            Ok((name, bytes))
        };
        let files = files.into_iter().map(file).collect::<Result<_, Fault>>()?;
        trusting(policies, &files)
    }

    fn images(&self) -> Result<Option<Policies>, Fault> {
        let Given { policy, signature, signers } = &self.given;
        match (policy.is_empty(), signature.is_empty()) {
            (true, true) => Ok(None),
            (true, false) => Err(Fault::malformed(
                "attestation: setting 'policy_signature' is there, and no 'policy'",
            )),
            (false, true) => Policies::unsigned(policy.as_bytes()).map(Some),
            (false, false) => Policies::open(policy.as_bytes(), signature, signers).map(Some),
        }
    }

    /// Goes by this policy from now on, durably.
    pub(crate) fn govern(&self, policy: &[u8], signature: &str) -> Result<(), Fault> {
        if policy.len() > MAX_POLICY_BYTES {
            return Err(Fault::malformed(format!("a policy has {MAX_POLICY_BYTES} bytes at most")));
        }
        let new = Policies::open(policy, signature, &self.given.signers)?;
        if let Some(known) = self.read()?.policies {
            new.edition().accepts(known.edition())?;
        }
        let policy = std::str::from_utf8(policy)
            .map_err(|_| Fault::malformed("a policy is text"))?
            .to_owned();
        self.policy.save(&PolicyFile { policy, signature: signature.to_owned() })
    }

    /// Holds evidence against these files from now on, durably.
    pub(crate) fn anchor(&self, files: &BTreeMap<String, Vec<u8>>) -> Result<(), Fault> {
        let bytes: usize = files.values().map(Vec::len).sum();
        if files.len() > MAX_FILES || bytes > MAX_BYTES {
            let why = format!("at most {MAX_FILES} files of {MAX_BYTES} bytes are taken");
            return Err(Fault::malformed(why));
        }
        // All of it is read before any of it counts.
        trusting(None, files)?;
        let text = |(name, bytes): (&String, &Vec<u8>)| (name.clone(), STANDARD.encode(bytes));
        self.trust.save(&files.iter().map(text).collect::<TrustFile>())
    }
}

/// What files say whom to trust, each in the folder of its maker.
fn trusting(
    policies: Option<Policies>,
    files: &BTreeMap<String, Vec<u8>>,
) -> Result<Governing, Fault> {
    let mut makers = Makers::default();
    let mut collateral: BTreeMap<Maker, Collateral> = BTreeMap::new();
    let mut known = None;
    for (name, bytes) in files {
        let wrong = |why: String| Fault::malformed(format!("{name}: {why}"));
        let folder = name.split_once('/').map_or("", |(folder, _)| folder);
        let maker = Maker::ALL.into_iter().find(|maker| maker.folder() == folder);
        let kind = match (folder, maker) {
            (SOFTWARE, _) => Some(Kind::Software),
            (_, Some(Maker::Tpm)) => Some(Kind::Hardware),
            _ => None,
        };
        if let Some(kind) = kind {
            makers.add(kind, bytes).map_err(|fault| wrong(fault.to_string()))?;
        }
        if name == KNOWN {
            let text = std::str::from_utf8(bytes).map_err(|_| wrong("it is no text".into()))?;
            known = Some(known_files(text));
        } else if let Some(maker) = maker {
            collateral.entry(maker).or_default().add(name, bytes).map_err(wrong)?;
        } else if kind.is_none() {
            let folders = "tpm/, software-tpm/, nvidia/, amd/, or is ima/known-files";
            return Err(wrong(format!("a file of trust lies in one of {folders}")));
        }
    }
    Ok(Governing { policies, makers, known, collateral })
}

#[cfg(test)]
mod tests {
    use distos_appraisal::POLICY;
    use distos_identity::DetachedSignature;
    use distos_types::HolderSecret;

    use super::*;

    fn policy(name: &str, version: u32) -> String {
        format!(
            "// distos-policy: {name}\n// version: {version}\n\n\
             @id(\"a\")\npermit (principal, action == Action::\"admit\", resource is Node);\n"
        )
    }

    fn secret(seed: u8) -> HolderSecret {
        HolderSecret::from_seed([seed; 32])
    }

    fn signed(text: &str, by: u8) -> String {
        DetachedSignature::sign(POLICY, text.as_bytes(), &secret(by)).to_text()
    }

    fn archive(directory: &Path, policy: &str) -> Archive {
        let given = Given {
            policy: policy.to_owned(),
            signature: String::new(),
            signers: vec![secret(1).key()],
        };
        Archive::new(directory, given)
    }

    #[test]
    fn a_policy_that_was_given_later_counts_until_the_images_is_newer() {
        let dir = tempfile::tempdir().unwrap();
        let first = archive(dir.path(), &policy("site", 1));
        assert_eq!(first.read().unwrap().edition().unwrap(), "site@1");
        let new = policy("site", 3);
        first.govern(new.as_bytes(), &signed(&new, 1)).unwrap();
        assert_eq!(first.read().unwrap().edition().unwrap(), "site@3");
        for (image, counts) in [
            (policy("site", 2), "site@3"),
            (policy("site", 4), "site@4"),
            (policy("other", 1), "other@1"),
        ] {
            let image = archive(dir.path(), &image);
            assert_eq!(image.read().unwrap().edition().unwrap(), counts);
        }
    }

    #[test]
    fn nobody_else_governs_and_nothing_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        let archive = archive(dir.path(), &policy("site", 5));
        let govern = |text: &str, by| archive.govern(text.as_bytes(), &signed(text, by));
        assert!(matches!(govern(&policy("site", 6), 2), Err(Fault::Unauthenticated(_))));
        for (name, version) in [("site", 4), ("other", 6)] {
            let refused = govern(&policy(name, version), 1);
            assert!(matches!(refused, Err(Fault::Unauthenticated(_))), "{name} {version}");
        }
        govern(&policy("site", 7), 1).unwrap();
        assert!(govern(&policy("site", 6), 1).is_err());
        let other = signed(&policy("site", 8), 1);
        assert!(archive.govern(policy("site", 9).as_bytes(), &other).is_err());
        assert_eq!(archive.read().unwrap().edition().unwrap(), "site@7");
    }

    #[test]
    fn without_a_policy_there_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(archive(dir.path(), "").read().unwrap().edition(), None);
        assert!(archive(dir.path(), "permit (principal, action, resource);").read().is_err());
    }

    #[test]
    fn what_cannot_be_read_takes_the_place_of_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let archive = archive(dir.path(), "");
        let known = |text: &str| BTreeMap::from([(KNOWN.to_owned(), text.as_bytes().to_vec())]);
        archive.anchor(&known("# ours\nsha256:00\n\n")).unwrap();
        let files = || archive.read().unwrap().known;
        assert_eq!(files(), Some(["sha256:00".to_owned()].into()));
        for (name, bytes) in [
            ("tpm/root.pem", &b"no certificate"[..]),
            ("root.pem", b""),
            ("../tpm/root.pem", b""),
            ("cisco/root.pem", b""),
            ("tpm/root.ocsp", &[0x30, 3, 10, 1, 6]),
            ("nvidia/ica.ocsp", &[0x30, 3, 10, 1, 0]),
            (KNOWN, b"\xff"),
        ] {
            let file = BTreeMap::from([(name.to_owned(), bytes.to_vec())]);
            let fault = archive.anchor(&file).unwrap_err();
            assert!(matches!(&fault, Fault::Malformed(why) if why.contains(name)), "{fault}");
        }
        let many = (0..=MAX_FILES).map(|n| (format!("tpm/{n}"), Vec::new())).collect();
        assert!(archive.anchor(&many).is_err());
        let much = BTreeMap::from([(KNOWN.to_owned(), vec![b' '; MAX_BYTES + 1])]);
        assert!(archive.anchor(&much).is_err());
        assert_eq!(files(), Some(["sha256:00".to_owned()].into()));
        archive.anchor(&BTreeMap::new()).unwrap();
        assert_eq!(files(), None);
    }
}
