//! What evidence is held against: roots that are pinned, lists of what was revoked, and the reference values that makers
//! publish. It can all lie in a folder, and nothing is fetched: a cluster without a network verifies as one with.
//!
//! A [`Collateral`] is of one maker of devices. A root says nothing about another maker's devices, so whoever reads a
//! folder keeps makers apart ([`Maker::folder`]).
//!
//! What reads XML signatures is large: it is here, so that only those who verify evidence link it. No I/O, no clock: bytes
//! and time are arguments.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

use std::collections::BTreeSet;

use distos_evidence::nvidia::GoldenValues;
use distos_evidence::pki::{Anchors, COMMON_NAME, Certificate, Crl};
use sha2::{Digest as _, Sha256};

pub mod manifest;

use manifest::{MAX_DOCUMENT_BYTES, Manifest, Refusal};

/// How many files a maker's collateral may consist of.
pub const MAX_FILES: usize = 4096;
/// The longest file, in bytes: that of a list of revoked certificates.
pub const MAX_FILE_BYTES: usize = distos_evidence::pki::MAX_CRL_BYTES;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Whose devices it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Maker {
    /// NVIDIA's GPUs and switches.
    Nvidia,
    /// TPMs, whoever makes them.
    Tpm,
    /// AMD's processors.
    Amd,
}

impl Maker {
    /// Every maker.
    pub const ALL: [Maker; 3] = [Maker::Nvidia, Maker::Tpm, Maker::Amd];

    /// The name of its folder.
    pub fn folder(self) -> &'static str {
        match self {
            Maker::Nvidia => "nvidia",
            Maker::Tpm => "tpm",
            Maker::Amd => "amd",
        }
    }
}

/// What a file was found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// So many certificates.
    Certificates(usize),
    /// So many lists of revoked certificates.
    Lists(usize),
    /// A document of reference values, which is verified when it is used.
    Document,
    /// Something else, which was left out.
    Nothing,
}

/// One maker's collateral.
#[derive(Clone, Debug, Default)]
pub struct Collateral {
    roots: Vec<Certificate>,
    /// Of those who sign reference values: a device's key says nothing of what devices should measure.
    document_roots: Vec<Certificate>,
    others: Vec<Certificate>,
    crls: Vec<Crl>,
    documents: Vec<(String, Vec<u8>)>,
    digests: BTreeSet<[u8; 32]>,
}

impl Collateral {
    /// Adds a file: certificates and lists (PEM or DER), or a document of reference values. Of certificates, those that
    /// name themselves as their issuer are pinned as roots, and the others may stand between. A root whose name says RIM is
    /// one for documents of reference values, and any other is one for devices.
    ///
    /// # Errors
    /// What is wrong with it, if it looks like one of these.
    pub fn add(&mut self, name: &str, bytes: &[u8]) -> Result<Added, String> {
        if self.digests.len() == MAX_FILES {
            return Err(format!("there are more than {MAX_FILES} files"));
        }
        let added = self.read(name, bytes)?;
        if added != Added::Nothing {
            self.digests.insert(Sha256::digest(bytes).into());
        }
        Ok(added)
    }

    fn read(&mut self, name: &str, bytes: &[u8]) -> Result<Added, String> {
        const SEQUENCE: u8 = 0x30;
        let has = |label: &str| bytes.windows(label.len()).any(|part| part == label.as_bytes());
        let (certificates, lists) =
            (has("-----BEGIN CERTIFICATE-----"), has("-----BEGIN X509 CRL-----"));
        if certificates || lists {
            // Both are read before either is added.
            let lists =
                if lists { Crl::several(bytes).map_err(|e| e.to_string())? } else { Vec::new() };
            if certificates {
                let read = Certificate::several(bytes).map_err(|e| e.to_string())?;
                self.crls.extend(lists);
                return Ok(self.add_certificates(read));
            }
            return Ok(self.add_lists(lists));
        }
        if bytes.first() == Some(&SEQUENCE) {
            return match (Certificate::from_der(bytes), Crl::from_der(bytes)) {
                (Ok(one), _) => Ok(self.add_certificates(vec![one])),
                (_, Ok(one)) => Ok(self.add_lists(vec![one])),
                (Err(why), Err(_)) => Err(why.to_string()),
            };
        }
        let text = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
        if text.trim_ascii_start().starts_with(b"<") && has("SoftwareIdentity") {
            if bytes.len() > MAX_DOCUMENT_BYTES {
                return Err(format!("it has more than {MAX_DOCUMENT_BYTES} bytes"));
            }
            self.documents.push((name.to_owned(), text.to_vec()));
            return Ok(Added::Document);
        }
        Ok(Added::Nothing)
    }

    fn add_certificates(&mut self, certificates: Vec<Certificate>) -> Added {
        let count = certificates.len();
        let (roots, others): (Vec<_>, Vec<_>) =
            certificates.into_iter().partition(Certificate::is_self_issued);
        let (for_documents, for_devices): (Vec<_>, Vec<_>) =
            roots.into_iter().partition(signs_documents);
        self.document_roots.extend(for_documents);
        self.roots.extend(for_devices);
        self.others.extend(others);
        Added::Certificates(count)
    }

    fn add_lists(&mut self, lists: Vec<Crl>) -> Added {
        let count = lists.len();
        self.crls.extend(lists);
        Added::Lists(count)
    }

    /// What devices' certificates are held against at that time, in Unix seconds.
    pub fn anchors(&self, at_s: u64) -> Anchors<'_> {
        Anchors { roots: &self.roots, others: &self.others, crls: &self.crls, at_s }
    }

    /// How many roots are pinned, those for documents among them.
    pub fn roots(&self) -> usize {
        self.roots.len() + self.document_roots.len()
    }

    /// The reference values of all documents whose signatures hold at that time, and for each other document why not.
    pub fn golden(&self, at_s: u64) -> (Vec<GoldenValues>, Vec<(String, Refusal)>) {
        let mut golden = Vec::new();
        let mut refused = Vec::new();
        let anchors = Anchors { roots: &self.document_roots, ..self.anchors(at_s) };
        for (name, document) in &self.documents {
            match Manifest::verify(document, anchors) {
                Ok(manifest) => golden.push(manifest.golden),
                Err(why) => refused.push((name.clone(), why)),
            }
        }
        (golden, refused)
    }

    /// SHA-256 over all files, in an order of their own: against what evidence was held.
    pub fn digest(&self) -> [u8; 32] {
        self.digests
            .iter()
            .fold(Sha256::new(), |hash, one| hash.chain_update(one))
            .finalize()
            .into()
    }
}

/// NVIDIA's is called "NVIDIA CoRIM signing Root CA". Its name was pinned with it.
fn signs_documents(root: &Certificate) -> bool {
    root.subject_values(COMMON_NAME).iter().any(|name| name.contains("RIM"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn real(name: &str) -> Option<Vec<u8>> {
        manifest::real(name)
    }

    /// Or whoever takes a key out of one GPU says what all are to measure.
    #[test]
    fn devices_roots_are_none_of_documents_nor_the_other_way_round() {
        const AT_S: u64 = 1_790_000_000;
        let Some(document) = real("ls10-vbios-rim-9610550001.xml") else { return };
        let with = |root: &str| {
            let mut collateral = Collateral::default();
            collateral.add("document", &document).unwrap();
            collateral.add("root", &real(root).unwrap()).unwrap();
            collateral
        };
        let (devices, documents) = (with("device-root.pem"), with("rim-root.pem"));
        assert_eq!(documents.golden(AT_S).0.len(), 1);
        assert_eq!(devices.golden(AT_S).0.len(), 0);
        assert_eq!(
            (devices.anchors(AT_S).roots.len(), documents.anchors(AT_S).roots.len()),
            (1, 0)
        );
    }

    #[test]
    fn a_file_is_what_it_holds_whatever_it_is_called() {
        let mut collateral = Collateral::default();
        assert_eq!(collateral.add("root.pem", b"nothing to see"), Ok(Added::Nothing));
        assert_eq!(collateral.add("a", b""), Ok(Added::Nothing));
        let empty = collateral.digest();
        assert!(collateral.add("a", b"\x30\x00").is_err());
        assert!(collateral.add("a", b"-----BEGIN CERTIFICATE-----").is_err());
        assert!(collateral.add("a", b"-----BEGIN X509 CRL-----").is_err());
        let document = b" <SoftwareIdentity/>";
        assert_eq!(collateral.add("a.rim", document), Ok(Added::Document));
        assert_ne!(collateral.digest(), empty);
        let (golden, refused) = collateral.golden(0);
        assert!(golden.is_empty());
        assert_eq!(refused[0].0, "a.rim");
        let long = [&document[..], &vec![b' '; MAX_DOCUMENT_BYTES]].concat();
        assert!(collateral.add("b.rim", &long).is_err());
    }
}
