//! Detached signatures: a text file that stands beside a file, and says who signed it.
//!
//! ```text
//! distos KIND signature v1
//! signer: 64 HEXADECIMAL DIGITS
//! signature: 128 HEXADECIMAL DIGITS
//! ```
//!
//! `KIND` is what the signed file is to whoever reads it: `image`, `policy`. The signature is Ed25519, by an
//! ordinary key pair of DistOS, over `"distos-KIND-v1" ‖ length of the file (8 bytes, little endian) ‖ BLAKE3 of the
//! file`. So one over a policy is never one over an image, nor over anything else that the same key signs.
//!
//! What it does not do: it covers a file's bytes and nothing that they name, and says nothing about whose signature
//! counts.

use distos_abi::{Fault, HolderKey};
use distos_types::{HolderSecret, check_version, verify_signature};

const VERSION: u32 = 1;
const SIGNER: &str = "signer: ";
const SIGNATURE: &str = "signature: ";
/// The longest signature file that is read, in bytes.
pub const MAX_SIGNATURE_BYTES: usize = 1024;

/// Somebody's signature over a file. Unchecked until [`DetachedSignature::verify`] says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetachedSignature {
    kind: &'static str,
    signer: HolderKey,
    signature: [u8; 64],
}

impl DetachedSignature {
    /// Signs the bytes of a file of this kind: a word in lower case.
    pub fn sign(kind: &'static str, file: &[u8], by: &HolderSecret) -> DetachedSignature {
        DetachedSignature { kind, signer: by.key(), signature: by.sign(&message(kind, file)) }
    }

    /// The signature file's text.
    pub fn to_text(&self) -> String {
        let (header, signature) = (header(self.kind), hex::encode(self.signature));
        format!("{header}{VERSION}\n{SIGNER}{}\n{SIGNATURE}{signature}\n", self.signer)
    }

    /// Reads [`DetachedSignature::to_text`] of a signature over a file of this kind. [`Fault::Malformed`] says which
    /// line is wrong and what to do. Checks no signature.
    pub fn parse(kind: &'static str, text: &str) -> Result<DetachedSignature, Fault> {
        let bad = |line: u32, what: String| {
            Fault::malformed(format!("line {line}: {what}: sign the {kind} again"))
        };
        if text.len() > MAX_SIGNATURE_BYTES {
            return Err(bad(1, format!("the file is too long for a signature over the {kind}")));
        }
        let mut lines = text.lines();
        let header = header(kind);
        let version =
            lines.next().and_then(|line| line.strip_prefix(&header)).ok_or_else(|| {
                let starts = format!("a signature file starts with \"{header}{VERSION}\"");
                bad(1, format!("this is no signature over the {kind}, and {starts}"))
            })?;
        check_version(version, VERSION, &format!("{kind} signature"))?;
        let (mut signer, mut signature) = ([0; 32], [0; 64]);
        let wanted = [(SIGNER, &mut signer[..]), (SIGNATURE, &mut signature[..])];
        for (number, (key, out)) in (2..).zip(wanted) {
            let found = lines.next().and_then(|line| line.strip_prefix(key));
            let read = found.and_then(|hex| hex::decode_to_slice(hex.trim_end(), &mut *out).ok());
            read.ok_or_else(|| {
                let digits = out.len() * 2;
                bad(number, format!("expected \"{key}\" and {digits} hexadecimal digits"))
            })?;
        }
        if lines.any(|line| !line.trim().is_empty()) {
            return Err(bad(4, "nothing may follow the signature".to_owned()));
        }
        Ok(DetachedSignature { kind, signer: HolderKey(signer), signature })
    }

    /// The key that signed exactly these bytes; [`Fault::Unauthenticated`] if it did not.
    pub fn verify(&self, file: &[u8]) -> Result<HolderKey, Fault> {
        let message = message(self.kind, file);
        verify_signature(self.signer, &message, &self.signature).map(|()| self.signer)
    }
}

fn header(kind: &str) -> String {
    format!("distos {kind} signature v")
}

fn message(kind: &str, file: &[u8]) -> Vec<u8> {
    let domain = format!("distos-{kind}-v1");
    let length = (file.len() as u64).to_le_bytes();
    [domain.as_bytes(), &length, blake3::hash(file).as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &[u8] = b"image = { name = \"x\" }\n";

    fn secret(seed: u8) -> HolderSecret {
        HolderSecret::from_seed([seed; 32])
    }

    fn signed() -> DetachedSignature {
        DetachedSignature::sign("image", FILE, &secret(1))
    }

    fn parse(text: &str) -> Result<DetachedSignature, Fault> {
        DetachedSignature::parse("image", text)
    }

    #[test]
    fn a_signature_is_read_back_and_names_who_signed() {
        let read = parse(&signed().to_text()).unwrap();
        assert_eq!(read.verify(FILE), Ok(secret(1).key()));
        let windows = signed().to_text().replace('\n', "\r\n");
        assert_eq!(parse(&windows), Ok(signed()));
    }

    /// The layout is public: other tools make and check signatures from its description alone.
    #[test]
    fn what_is_signed_is_what_the_documentation_says() {
        for (kind, domain) in [("image", "distos-image-v1"), ("policy", "distos-policy-v1")] {
            let mut message = domain.as_bytes().to_vec();
            message.extend(23u64.to_le_bytes());
            message.extend(blake3::hash(FILE).as_bytes());
            let signed = DetachedSignature::sign(kind, FILE, &secret(1));
            assert_eq!(signed.signature, secret(1).sign(&message));
            assert!(signed.to_text().starts_with(&format!("distos {kind} signature v1\nsigner: ")));
        }
    }

    #[test]
    fn no_changed_byte_of_file_or_signature_passes() {
        for at in 0..FILE.len() {
            let mut changed = FILE.to_vec();
            changed[at] ^= 1;
            assert_eq!(signed().verify(&changed).unwrap_err().code(), 22, "byte {at}");
        }
        assert!(signed().verify(&[FILE, b"\n"].concat()).is_err());
        assert!(signed().verify(&FILE[1..]).is_err());
        let text = signed().to_text();
        for at in 0..text.trim_end().len() {
            let mut changed = text.clone().into_bytes();
            changed[at] ^= 1;
            let Ok(changed) = String::from_utf8(changed) else { continue };
            let passes = parse(&changed).and_then(|s| s.verify(FILE));
            assert!(passes.is_err(), "byte {at}: {changed}");
        }
    }

    #[test]
    fn a_signature_for_something_else_is_none_over_this() {
        let by = secret(1);
        let hash = *blake3::hash(FILE).as_bytes();
        for other in [FILE, &hash, &[b"distos-link-v1".as_slice(), &hash].concat()] {
            let signature = DetachedSignature { signature: by.sign(other), ..signed() };
            assert!(signature.verify(FILE).is_err());
        }
        let stolen = DetachedSignature { signer: secret(2).key(), ..signed() };
        assert!(stolen.verify(FILE).is_err());
        // The same file, signed as what it is not.
        let policy = DetachedSignature::sign("policy", FILE, &by);
        assert!(parse(&policy.to_text()).is_err());
        let renamed = policy.to_text().replace("policy", "image");
        assert!(parse(&renamed).unwrap().verify(FILE).is_err());
    }

    #[test]
    fn broken_signature_files_are_refused_with_the_line() {
        let good = signed().to_text();
        let cut = |lines: usize| good.lines().take(lines).collect::<Vec<_>>().join("\n");
        for (text, says) in [
            (String::new(), "line 1"),
            (distos_types::key_file_text(secret(1).key()), "line 1: this is no signature"),
            (good.replace("v1", "v2"), "install the newer one"),
            (cut(1), "line 2"),
            (good.replacen("signer: ", "signer: 00", 1), "line 2"),
            (cut(2), "line 3"),
            (good.trim_end()[..good.len() - 3].to_owned(), "line 3"),
            (good.replacen("signature: ", "signature=", 1), "line 3"),
            (format!("{good}more"), "line 4"),
            ("x".repeat(5000), "too long"),
        ] {
            let fault = parse(&text).unwrap_err();
            assert_eq!(fault.code(), 16, "{text}");
            assert!(fault.to_string().contains(says), "{text}: {fault}");
        }
    }
}
