//! Holders' keys: Ed25519 pairs, their files, and what a holder signs to prove possession (C4).

use std::convert::Infallible;
use std::fmt::Write as _;

use distos_abi::{Fault, HolderKey, NodeId, VatName};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use zeroize::{Zeroize, Zeroizing};

use crate::secret::{SECRET_BYTES, SecretPage};

const RESTORE_DOMAIN: &[u8] = b"distos-restore-v1";
const PRESENT_DOMAIN: &[u8] = b"distos-present-v1";
const CHANNEL_DOMAIN: &[u8] = b"distos-channel-v1";
const KEY_FILE: &str = "distos holder key v";
const SECRET_FILE: &str = "distos holder secret v";
const FILE_VERSION: u32 = 1;
const SECRET_WARNING: &str = " — keep private";
/// A key file is two short lines; anything longer is another file.
const MAX_FILE_BYTES: usize = 1024;

/// The private half of a holder's (or kernel's) key. Its seed stays in a [`SecretPage`]; the rest
/// of the private key is derived for each signature, on the stack, and erased when that is made.
/// Never shown by `Debug`.
pub struct HolderSecret {
    seed: SecretPage,
    key: HolderKey,
}

impl HolderSecret {
    /// The key pair of a seed, which `fill` writes where it stays: 32 random bytes, or those of an
    /// earlier seed. An error of `fill` is passed on.
    pub fn fill<E>(fill: impl FnOnce(&mut [u8; SECRET_BYTES]) -> Result<(), E>) -> Result<Self, E> {
        let seed = SecretPage::fill(fill)?;
        let key = HolderKey(SigningKey::from_bytes(seed.expose()).verifying_key().to_bytes());
        Ok(HolderSecret { seed, key })
    }

    /// The key pair of a seed. A copy of the seed that the caller keeps is the caller's to erase:
    /// [`HolderSecret::fill`] needs none.
    pub fn from_seed(mut seed: [u8; SECRET_BYTES]) -> Self {
        let Ok(secret) = HolderSecret::fill::<Infallible>(|place| {
            place.copy_from_slice(&seed);
            seed.zeroize();
            Ok(())
        });
        secret
    }

    /// The seed, for the file that keeps it.
    pub fn seed(&self) -> &[u8; SECRET_BYTES] {
        self.seed.expose()
    }

    /// The public half.
    pub fn key(&self) -> HolderKey {
        self.key
    }

    /// Why the seed's page is not protected; `None` if it is.
    pub fn exposure(&self) -> Option<&str> {
        self.seed.exposure()
    }

    /// The Ed25519 signature over `msg`.
    pub fn sign(&self, msg: &[u8]) -> [u8; 64] {
        SigningKey::from_bytes(self.seed.expose()).sign(msg).to_bytes()
    }

    /// The content of a secret key file.
    pub fn to_file_text(&self) -> Zeroizing<String> {
        // Long enough from the start: a string that grows leaves its old bytes behind.
        let mut text = Zeroizing::new(String::with_capacity(MAX_FILE_BYTES));
        let _ = writeln!(text, "{SECRET_FILE}{FILE_VERSION}{SECRET_WARNING}");
        for byte in self.seed.expose() {
            let _ = write!(text, "{byte:02x}");
        }
        text.push('\n');
        text
    }

    /// Reads [`HolderSecret::to_file_text`]. [`Fault::Malformed`] says which line is wrong,
    /// without repeating any of it.
    pub fn from_file_text(text: &str) -> Result<Self, Fault> {
        if text.starts_with(KEY_FILE) {
            return Err(Fault::malformed(
                "this is a public key file: the secret key file is needed here",
            ));
        }
        HolderSecret::fill(|seed| read_key_file(text, SECRET_FILE, "secret key", seed))
    }
}

impl std::fmt::Debug for HolderSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HolderSecret(of {:?})", self.key())
    }
}

/// The content of a public key file, which a holder gives to whoever delegates to it.
pub fn key_file_text(key: HolderKey) -> String {
    format!("{KEY_FILE}{FILE_VERSION}\n{key}\n")
}

/// Reads [`key_file_text`]. [`Fault::Malformed`] says which line is wrong, and warns of a secret
/// key file in its place.
pub fn parse_key_file(text: &str) -> Result<HolderKey, Fault> {
    if text.starts_with(SECRET_FILE) {
        return Err(Fault::malformed(
            "this is a secret key file: give away the public key file only",
        ));
    }
    let mut key = [0; 32];
    read_key_file(text, KEY_FILE, "key", &mut key)?;
    usable_key(HolderKey(key))
        .map(|_| HolderKey(key))
        .ok_or_else(|| Fault::malformed("line 2: this is no Ed25519 public key"))
}

fn read_key_file(text: &str, header: &str, what: &str, out: &mut [u8; 32]) -> Result<(), Fault> {
    let not_one = || Fault::malformed(format!("line 1: this is no DistOS {what} file"));
    if text.len() > MAX_FILE_BYTES {
        return Err(not_one());
    }
    let mut lines = text.lines();
    let version = lines.next().and_then(|line| line.strip_prefix(header)).ok_or_else(not_one)?;
    check_version(version.split(' ').next().unwrap_or_default(), FILE_VERSION, what)?;
    let digits = lines.next().unwrap_or_default().trim_end();
    hex::decode_to_slice(digits, out).map_err(|_| {
        Fault::malformed("line 2: the key is 64 hexadecimal digits: copy the file again")
    })?;
    match lines.find(|line| !line.trim().is_empty()) {
        Some(_) => Err(Fault::malformed("line 3: nothing may follow the key")),
        None => Ok(()),
    }
}

/// Refuses a file's version unless it is `known`, and says what to do about a newer one.
/// [`Fault::Malformed`] speaks of line 1, where every text file of DistOS has its version.
pub fn check_version(found: &str, known: u32, what: &str) -> Result<(), Fault> {
    match found.parse::<u32>() {
        Ok(version) if version == known => Ok(()),
        Ok(version) if version > known => Err(Fault::malformed(format!(
            "line 1: this {what} file is of version {version}, made by a newer DistOS; this one \
             reads version {known}: install the newer one"
        ))),
        _ => Err(Fault::malformed(format!("line 1: this is no DistOS {what} file"))),
    }
}

/// What a holder signs to redeem a chain at a vat: the vat's challenge, which vat of which node
/// it is meant for, and the BLAKE3 hash of the encoded chain. Good nowhere else and only once.
pub fn restore_message(nonce: &[u8; 32], node: NodeId, vat: &VatName, chain: &[u8]) -> Vec<u8> {
    let hash = blake3::hash(chain);
    [RESTORE_DOMAIN, nonce, &node.0, vat.as_str().as_bytes(), hash.as_bytes()].concat()
}

/// What a holder signs instead where a handshake has bound the connection's two ends to each other: a secret that they
/// alone have (RFC 5705) stands for the challenge. Good on that connection alone, at that vat, for that chain.
pub fn present_message(binding: &[u8; 32], node: NodeId, vat: &VatName, chain: &[u8]) -> Vec<u8> {
    let hash = blake3::hash(chain);
    [PRESENT_DOMAIN, binding, &node.0, vat.as_str().as_bytes(), hash.as_bytes()].concat()
}

/// How long the public key of a vat's encrypted channels is (X25519, RFC 7748).
pub const CHANNEL_KEY_BYTES: usize = 32;

/// What a node signs so that holders know a vat by a key for channels that are encrypted to it, whatever passes
/// them on: its own name, until when it says so (Unix milliseconds), the key and the vat's name.
pub fn channel_message(
    node: NodeId,
    vat: &VatName,
    key: &[u8; CHANNEL_KEY_BYTES],
    until_ms: u64,
) -> Vec<u8> {
    let until = until_ms.to_le_bytes();
    [CHANNEL_DOMAIN, &node.0, &until, key, vat.as_str().as_bytes()].concat()
}

/// Checks an Ed25519 signature, strictly: only one encoding of a signature is accepted, and no
/// key of small order. [`Fault::Unauthenticated`] otherwise.
pub fn verify_signature(key: HolderKey, msg: &[u8], sig: &[u8]) -> Result<(), Fault> {
    let refuse = |why: &str| Fault::Unauthenticated(format!("{why} (key {key})"));
    let signature =
        Signature::from_slice(sig).map_err(|_| refuse("a signature is not 64 bytes long"))?;
    let key = usable_key(key).ok_or_else(|| refuse("not an Ed25519 public key"))?;
    key.verify_strict(msg, &signature).map_err(|_| refuse("a signature is not by its claimed key"))
}

/// Whether this is a public key that proves anything: a point of the curve, and none of small order,
/// for which anybody could sign.
pub fn is_usable(key: HolderKey) -> bool {
    usable_key(key).is_some()
}

fn usable_key(key: HolderKey) -> Option<VerifyingKey> {
    VerifyingKey::from_bytes(&key.0).ok().filter(|key| !key.is_weak())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret() -> HolderSecret {
        HolderSecret::from_seed([7; 32])
    }

    #[test]
    fn a_holder_finds_its_key_again_in_its_files() {
        let again = HolderSecret::from_file_text(&secret().to_file_text()).unwrap();
        assert_eq!(again.key(), secret().key());
        assert_eq!(parse_key_file(&key_file_text(secret().key())), Ok(secret().key()));
        let windows = key_file_text(secret().key()).replace('\n', "\r\n");
        assert_eq!(parse_key_file(&windows), Ok(secret().key()));
    }

    #[test]
    fn a_secret_never_shows_in_logs_or_in_faults() {
        let hex = hex::encode([7; 32]);
        assert!(!format!("{:?}", secret()).contains(&hex[..8]));
        let damaged = secret().to_file_text().replace("0707", "07x7");
        let fault = HolderSecret::from_file_text(&damaged).unwrap_err();
        assert!(!fault.to_wire().contains("0707"), "{fault}");
    }

    #[test]
    fn a_holder_is_told_when_it_is_about_to_give_away_its_secret() {
        let fault = parse_key_file(&secret().to_file_text()).unwrap_err();
        assert!(fault.to_wire().contains("public key file only"), "{fault}");
        let fault = HolderSecret::from_file_text(&key_file_text(secret().key())).unwrap_err();
        assert!(fault.to_wire().contains("secret key file is needed"), "{fault}");
    }

    #[test]
    fn broken_key_files_are_refused_with_the_line() {
        let good = key_file_text(secret().key());
        let newer = good.replace("v1", "v2");
        let mut weak = String::from("distos holder key v1\n01");
        weak.push_str(&"00".repeat(31));
        for (text, says) in [
            ("", "line 1"),
            ("GIF89a", "line 1"),
            (newer.as_str(), "install the newer one"),
            (&good[..40], "line 2"),
            (&format!("{good}more"), "line 3"),
            (&weak, "line 2"),
            (&"x".repeat(5000), "line 1"),
        ] {
            let fault = parse_key_file(text).unwrap_err();
            assert!(fault.to_wire().contains(says), "{text}: {fault}");
        }
    }

    #[test]
    fn a_proof_for_one_vat_or_nonce_is_no_proof_for_another() {
        let node = NodeId([1; 32]);
        let vat = VatName::new("memory").unwrap();
        let message = restore_message(&[9; 32], node, &vat, b"chain");
        let proof = secret().sign(&message);
        assert_eq!(verify_signature(secret().key(), &message, &proof), Ok(()));
        let other_vat = VatName::new("audit").unwrap();
        for other in [
            restore_message(&[8; 32], node, &vat, b"chain"),
            restore_message(&[9; 32], NodeId([2; 32]), &vat, b"chain"),
            restore_message(&[9; 32], node, &other_vat, b"chain"),
            restore_message(&[9; 32], node, &vat, b"other"),
            // What somebody on the way passes off as a challenge is no binding.
            present_message(&[9; 32], node, &vat, b"chain"),
        ] {
            assert!(verify_signature(secret().key(), &other, &proof).is_err());
        }
        assert!(verify_signature(secret().key(), &message, &proof[..63]).is_err());
        assert!(verify_signature(HolderKey([0; 32]), &message, &proof).is_err());
    }
}
