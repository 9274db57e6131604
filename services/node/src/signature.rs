//! Signed images: the signature file that stands beside an image, and whose signature a node takes.
//!
//! ```text
//! distos image signature v1
//! signer: 64 HEXADECIMAL DIGITS
//! signature: 128 HEXADECIMAL DIGITS
//! ```
//!
//! The signature is Ed25519, by an ordinary key pair of DistOS, over
//! `"distos-image-v1" ‖ length of the image (8 bytes, little endian) ‖ BLAKE3 of the image`.
//!
//! Pure. What it does not do: it covers the image's bytes and nothing that they name. A program
//! that an image names by its path is whatever stands there at boot.

use distos_abi::{Fault, HolderKey};
use distos_types::{HolderSecret, check_version, verify_signature};

/// What is signed begins with this, so that a signature over anything else that the same key signs
/// (a certificate, a proof of possession) is never one over an image.
const DOMAIN: &[u8] = b"distos-image-v1";
const HEADER: &str = "distos image signature v";
const VERSION: u32 = 1;
const SIGNER: &str = "signer: ";
const SIGNATURE: &str = "signature: ";
/// The longest signature file that is read, in bytes.
pub const MAX_BYTES: u64 = 1024;

/// Somebody's signature over an image. Unchecked until [`ImageSignature::verify`] says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSignature {
    signer: HolderKey,
    signature: [u8; 64],
}

impl ImageSignature {
    /// Signs the bytes of an image.
    pub fn sign(image: &[u8], by: &HolderSecret) -> ImageSignature {
        ImageSignature { signer: by.key(), signature: by.sign(&message(image)) }
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        let signature = hex::encode(self.signature);
        format!("{HEADER}{VERSION}\n{SIGNER}{}\n{SIGNATURE}{signature}\n", self.signer)
    }

    /// Reads [`ImageSignature::to_text`]. [`Fault::Malformed`] says which line is wrong and what
    /// to do. Checks no signature.
    pub fn parse(text: &str) -> Result<ImageSignature, Fault> {
        if text.len() as u64 > MAX_BYTES {
            return Err(bad(
                1,
                "the file is too long for an image's signature: sign the image again",
            ));
        }
        let mut lines = text.lines();
        let version = lines.next().and_then(|line| line.strip_prefix(HEADER)).ok_or_else(|| {
            let starts = format!("it starts with \"{HEADER}{VERSION}\"");
            bad(1, &format!("this is no signature of an image: {starts}"))
        })?;
        check_version(version, VERSION, "image signature")?;
        let (mut signer, mut signature) = ([0; 32], [0; 64]);
        digits(lines.next(), 2, SIGNER, &mut signer)?;
        digits(lines.next(), 3, SIGNATURE, &mut signature)?;
        if lines.any(|line| !line.trim().is_empty()) {
            return Err(bad(4, "nothing may follow the signature"));
        }
        Ok(ImageSignature { signer: HolderKey(signer), signature })
    }

    /// The key that signed exactly these bytes; [`Fault::Unauthenticated`] if it did not.
    pub fn verify(&self, image: &[u8]) -> Result<HolderKey, Fault> {
        verify_signature(self.signer, &message(image), &self.signature).map(|()| self.signer)
    }
}

fn message(image: &[u8]) -> Vec<u8> {
    let length = (image.len() as u64).to_le_bytes();
    [DOMAIN, &length, blake3::hash(image).as_bytes()].concat()
}

/// Reads `KEY: DIGITS` of exactly as many digits as `out` takes.
fn digits(line: Option<&str>, number: u32, key: &str, out: &mut [u8]) -> Result<(), Fault> {
    let expected = out.len() * 2;
    let found = line.and_then(|line| line.strip_prefix(key));
    found.and_then(|digits| hex::decode_to_slice(digits.trim_end(), out).ok()).ok_or_else(|| {
        let what = format!("expected \"{key}\" and {expected} hexadecimal digits");
        bad(number, &format!("{what}: copy the file again, or sign the image again"))
    })
}

fn bad(line: u32, what: &str) -> Fault {
    Fault::malformed(format!("line {line}: {what}"))
}

/// What a node's directory says about whose images it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trust {
    /// The one signer whose images are taken.
    pub pinned: Option<HolderKey>,
    /// Whether a kernel has run in the directory. From then on no signer is taken unasked: a pin
    /// that is lost must not be replaced by whoever comes first.
    pub booted: bool,
}

/// What booting an image makes of a directory's pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// It stays as it is.
    Stays,
    /// The image's signer is pinned on first use.
    First,
    /// The image's signer is pinned because the operator named it.
    Named,
}

impl Trust {
    /// Whether an image signed by `signer` boots here; the operator may have `named` whose images
    /// are to be taken from now on. [`Fault::Unauthenticated`] if it does not.
    pub fn admit(&self, signer: HolderKey, named: Option<HolderKey>) -> Result<Pin, Fault> {
        let refuse = |why: String| Err(Fault::Unauthenticated(why));
        match (named, self.pinned) {
            (Some(named), _) if named != signer => {
                refuse(format!("the image is signed by {signer}, and --signer names {named}"))
            }
            (Some(_), pinned) if pinned != Some(signer) => Ok(Pin::Named),
            (_, Some(pinned)) if pinned != signer => refuse(format!(
                "the image is signed by {signer}, and this node takes images of {pinned} only: \
                 name the signer with --signer PUBFILE, or with `distos image trust PUBFILE`, if \
                 that is to change"
            )),
            (_, Some(_)) => Ok(Pin::Stays),
            (_, None) if self.booted => refuse(format!(
                "the image is signed by {signer}, and no signer is pinned in this node's \
                 directory, which was booted before: name the signer with --signer PUBFILE, or \
                 with `distos image trust PUBFILE`"
            )),
            (_, None) => Ok(Pin::First),
        }
    }

    /// Whether an image without a signature boots here, the operator having asked for it.
    /// [`Fault::Unauthenticated`] if a signer is pinned.
    pub fn admit_unsigned(&self) -> Result<Pin, Fault> {
        match self.pinned {
            None => Ok(Pin::Stays),
            Some(pinned) => Err(Fault::Unauthenticated(format!(
                "this node takes images of {pinned} only: --unsigned is for directories without a \
                 pinned signer"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: &[u8] = b"image = { name = \"x\" }\n";

    fn secret(seed: u8) -> HolderSecret {
        HolderSecret::from_seed([seed; 32])
    }

    fn signed() -> ImageSignature {
        ImageSignature::sign(IMAGE, &secret(1))
    }

    #[test]
    fn a_signature_is_read_back_and_names_who_signed() {
        let read = ImageSignature::parse(&signed().to_text()).unwrap();
        assert_eq!(read.verify(IMAGE), Ok(secret(1).key()));
        let windows = signed().to_text().replace('\n', "\r\n");
        assert_eq!(ImageSignature::parse(&windows), Ok(signed()));
    }

    /// The layout is public: other tools make and check signatures from its description alone.
    #[test]
    fn what_is_signed_is_what_the_documentation_says() {
        let mut message = b"distos-image-v1".to_vec();
        message.extend(23u64.to_le_bytes());
        message.extend(blake3::hash(IMAGE).as_bytes());
        assert_eq!(signed().signature, secret(1).sign(&message));
    }

    #[test]
    fn no_changed_byte_of_image_or_signature_passes() {
        for at in 0..IMAGE.len() {
            let mut changed = IMAGE.to_vec();
            changed[at] ^= 1;
            assert_eq!(signed().verify(&changed).unwrap_err().code(), 22, "byte {at}");
        }
        assert!(signed().verify(&[IMAGE, b"\n"].concat()).is_err());
        assert!(signed().verify(&IMAGE[1..]).is_err());
        let text = signed().to_text();
        for at in 0..text.trim_end().len() {
            let mut changed = text.clone().into_bytes();
            changed[at] ^= 1;
            let Ok(changed) = String::from_utf8(changed) else { continue };
            let passes = ImageSignature::parse(&changed).and_then(|s| s.verify(IMAGE));
            assert!(passes.is_err(), "byte {at}: {changed}");
        }
    }

    #[test]
    fn a_signature_for_something_else_is_none_over_an_image() {
        let by = secret(1);
        let hash = *blake3::hash(IMAGE).as_bytes();
        for other in [IMAGE, &hash, &[b"distos-link-v1".as_slice(), &hash].concat()] {
            let signature = ImageSignature { signer: by.key(), signature: by.sign(other) };
            assert!(signature.verify(IMAGE).is_err());
        }
        let stolen = ImageSignature { signer: secret(2).key(), ..signed() };
        assert!(stolen.verify(IMAGE).is_err());
    }

    #[test]
    fn broken_signature_files_are_refused_with_the_line() {
        let good = signed().to_text();
        let cut = |lines: usize| good.lines().take(lines).collect::<Vec<_>>().join("\n");
        for (text, says) in [
            (String::new(), "line 1"),
            (key_file(), "line 1: this is no signature of an image"),
            (good.replace("v1", "v2"), "install the newer one"),
            (cut(1), "line 2"),
            (good.replacen("signer: ", "signer: 00", 1), "line 2"),
            (cut(2), "line 3"),
            (good.trim_end()[..good.len() - 3].to_owned(), "line 3"),
            (good.replacen("signature: ", "signature=", 1), "line 3"),
            (format!("{good}more"), "line 4"),
            ("x".repeat(5000), "too long"),
        ] {
            let fault = ImageSignature::parse(&text).unwrap_err();
            assert_eq!(fault.code(), 16, "{text}");
            assert!(fault.to_string().contains(says), "{text}: {fault}");
        }
    }

    fn key_file() -> String {
        distos_types::key_file_text(secret(1).key())
    }

    #[test]
    fn only_the_first_boot_of_a_directory_takes_a_signer_unasked() {
        let (ours, theirs) = (secret(1).key(), secret(2).key());
        let new = Trust { pinned: None, booted: false };
        let lost = Trust { pinned: None, booted: true };
        let pinned = |booted| Trust { pinned: Some(ours), booted };
        assert_eq!(new.admit(ours, None), Ok(Pin::First));
        assert_eq!(new.admit_unsigned(), Ok(Pin::Stays));
        assert_eq!(lost.admit_unsigned(), Ok(Pin::Stays));
        assert_eq!(lost.admit(ours, None).unwrap_err().code(), 22);
        for booted in [false, true] {
            assert_eq!(pinned(booted).admit(ours, None), Ok(Pin::Stays));
            assert_eq!(pinned(booted).admit(theirs, None).unwrap_err().code(), 22);
            assert_eq!(pinned(booted).admit_unsigned().unwrap_err().code(), 22);
        }
    }

    #[test]
    fn an_operator_changes_the_signer_by_its_name_and_only_to_whom_the_image_is_by() {
        let (ours, theirs) = (secret(1).key(), secret(2).key());
        for pinned in [None, Some(ours)] {
            let trust = Trust { pinned, booted: true };
            assert_eq!(trust.admit(theirs, Some(theirs)), Ok(Pin::Named));
            assert_eq!(trust.admit(ours, Some(theirs)).unwrap_err().code(), 22);
            assert_eq!(trust.admit(theirs, Some(ours)).unwrap_err().code(), 22);
        }
        let trust = Trust { pinned: Some(ours), booted: true };
        assert_eq!(trust.admit(ours, Some(ours)), Ok(Pin::Stays));
    }
}
