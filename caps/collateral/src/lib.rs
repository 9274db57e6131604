//! What evidence is held against: roots that are pinned, lists of what was revoked, what responders say of it, and the
//! reference values that makers publish. It can all lie in a folder, and nothing is fetched: a cluster without a network
//! verifies as one with.
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
use distos_evidence::ocsp::Response;
use distos_evidence::pki::{Anchors, COMMON_NAME, Certificate, Crl};
use distos_evidence::published::Published;
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
    /// So many OCSP responses.
    Responses(usize),
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
    responses: Vec<Response>,
    documents: Vec<(String, Vec<u8>)>,
    digests: BTreeSet<[u8; 32]>,
}

impl Collateral {
    /// Adds a file: what a maker [publishes](Published) of certificates, or a document of reference values. Of
    /// certificates, those that name themselves as their issuer are pinned as roots, and the others may stand between. A
    /// root whose name says RIM is one for documents of reference values, and any other is one for devices.
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
        let read = Published::read(bytes).map_err(|e| e.to_string())?;
        if !read.is_empty() {
            return Ok(self.add_published(read));
        }
        let has = |label: &str| bytes.windows(label.len()).any(|part| part == label.as_bytes());
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

    /// What is said of it is the first of what there is: certificates, lists, responses.
    fn add_published(&mut self, read: Published) -> Added {
        let Published { certificates, crls, responses } = read;
        let added = match (certificates.len(), crls.len()) {
            (0, 0) => Added::Responses(responses.len()),
            (0, lists) => Added::Lists(lists),
            (certificates, _) => Added::Certificates(certificates),
        };
        let (roots, others): (Vec<_>, Vec<_>) =
            certificates.into_iter().partition(Certificate::is_self_issued);
        let (for_documents, for_devices): (Vec<_>, Vec<_>) =
            roots.into_iter().partition(signs_documents);
        self.document_roots.extend(for_documents);
        self.roots.extend(for_devices);
        self.others.extend(others);
        self.crls.extend(crls);
        self.responses.extend(responses);
        added
    }

    /// What devices' certificates are held against at that time, in Unix seconds.
    pub fn anchors(&self, at_s: u64) -> Anchors<'_> {
        let Collateral { roots, others, crls, responses, .. } = self;
        Anchors { roots, others, crls, responses, at_s }
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

    /// One element of DER, of less than 128 bytes, or of less than 256.
    fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = u8::try_from(content.len()).unwrap();
        let length = if length < 0x80 { vec![length] } else { vec![0x81, length] };
        [&[tag][..], &length, content].concat()
    }

    /// A response that says that a certificate is good, by nobody's signature.
    fn response(serial: u8) -> Vec<u8> {
        let time = tlv(0x18, b"20260501000000Z");
        let hash = tlv(4, &[7; 20]);
        let sha1 = [&[0x30, 7, 6, 5, 0x2b, 14, 3, 2, 26][..], &hash, &hash, &[2, 1, serial]];
        let single = tlv(0x30, &[&tlv(0x30, &sha1.concat())[..], &[0x80, 0], &time].concat());
        let data = [&tlv(0xa2, &hash)[..], &time, &tlv(0x30, &single)].concat();
        let with = [0x30, 10, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
        let basic = tlv(0x30, &[&tlv(0x30, &data)[..], &with, &[3, 2, 0, 1]].concat());
        let of = [6, 9, 0x2b, 6, 1, 5, 5, 7, 48, 1, 1];
        let bytes = tlv(0x30, &[&of[..], &tlv(4, &basic)].concat());
        tlv(0x30, &[&[10, 1, 0][..], &tlv(0xa0, &bytes)].concat())
    }

    /// Or a verdict could not say by which answers of responders it was made.
    #[test]
    fn what_responders_say_is_collateral_and_in_its_digest() {
        let mut collateral = Collateral::default();
        let empty = collateral.digest();
        assert_eq!(collateral.add("a.ocsp", &response(5)), Ok(Added::Responses(1)));
        let one = collateral.digest();
        assert_ne!(one, empty);
        assert_eq!(collateral.add("again.ocsp", &response(5)), Ok(Added::Responses(1)));
        assert_eq!(collateral.digest(), one, "the same again is nothing new");
        assert_eq!(collateral.add("b", &response(6)), Ok(Added::Responses(1)));
        assert_ne!(collateral.digest(), one);
        assert_eq!(collateral.anchors(0).responses.len(), 3);
        let refused = [0x30, 3, 10, 1, 6];
        for (bytes, why) in [(&refused[..], "Unauthorized"), (&response(5)[..40], "malformed")] {
            let said = collateral.add("a.ocsp", bytes).unwrap_err();
            assert!(said.contains("OCSP") && said.contains(why), "{said}");
        }
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
