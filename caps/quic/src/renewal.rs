//! A newer SVID, shown on a connection that is open: so that it goes on when the older one ends.
//!
//! It is bound to the connection and to the side that shows it, by a secret that only the two ends have
//! (RFC 5705, RFC 8446 section 7.5), and signed with the newer SVID's own key: what is shown on one
//! connection is worth nothing on another.

use distos_abi::HolderKey;
use distos_types::HolderSecret;
use quinn::{Connection, Side};

/// The longest message: two certificates of 2 KiB with their lengths, and a signature.
pub const MAX_BYTES: usize = 2 * (2 + 2048) + SIGNATURE_BYTES;
const SIGNATURE_BYTES: usize = 64;
const DOMAIN: &[u8] = b"distos-svid-renewal-v1";
const LABEL: &[u8] = b"EXPORTER-distos-svid-renewal";

/// What both ends of a connection know and nobody else, for what `shown_by` shows.
pub(crate) fn binding(connection: &Connection, shown_by: Side) -> Option<[u8; 32]> {
    let context: &[u8] = match shown_by {
        Side::Client => b"client",
        Side::Server => b"server",
    };
    let mut secret = [0; 32];
    connection.export_keying_material(&mut secret, LABEL, context).ok()?;
    Some(secret)
}

/// The message that shows `chain`.
pub fn encode(chain: &[Vec<u8>], binding: &[u8; 32], secret: &HolderSecret) -> Vec<u8> {
    let mut message = Vec::new();
    for certificate in chain {
        // A certificate that were longer would not be read by anybody.
        let length = u16::try_from(certificate.len()).unwrap_or(u16::MAX);
        message.extend(length.to_le_bytes());
        message.extend(certificate);
    }
    let signature = secret.sign(&signed(&message, binding));
    message.extend(signature);
    message
}

/// A message that was taken apart.
pub struct Shown {
    /// The newer SVID, DER: nobody has looked at it.
    pub chain: Vec<Vec<u8>>,
    bytes: Vec<u8>,
    signature: [u8; SIGNATURE_BYTES],
}

/// Takes a message apart; `None` if it is none.
pub fn decode(message: &[u8]) -> Option<Shown> {
    let (bytes, signature) = message.split_last_chunk::<SIGNATURE_BYTES>()?;
    let (mut rest, mut chain) = (bytes, Vec::new());
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let (certificate, after) = after.split_at_checked(u16::from_le_bytes(*length).into())?;
        chain.push(certificate.to_vec());
        rest = after;
    }
    let shown = Shown { chain, bytes: bytes.to_vec(), signature: *signature };
    rest.is_empty().then_some(shown)
}

impl Shown {
    /// Whether whoever has `key` showed it, on the connection with this binding.
    pub fn is_by(&self, key: HolderKey, binding: &[u8; 32]) -> bool {
        let signed = signed(&self.bytes, binding);
        distos_types::verify_signature(key, &signed, &self.signature).is_ok()
    }
}

fn signed(message: &[u8], binding: &[u8; 32]) -> Vec<u8> {
    [DOMAIN, binding, blake3::hash(message).as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_shown_is_read_and_nothing_else() {
        let secret = HolderSecret::from_seed([3; 32]);
        let chain = vec![vec![1; 700], vec![2; 800]];
        let message = encode(&chain, &[7; 32], &secret);
        let shown = decode(&message).unwrap();
        assert_eq!(shown.chain, chain);
        assert!(shown.is_by(secret.key(), &[7; 32]));
        assert!(!shown.is_by(secret.key(), &[8; 32]), "another connection");
        assert!(!shown.is_by(HolderSecret::from_seed([4; 32]).key(), &[7; 32]));
        for at in 0..message.len() {
            let mut changed = message.clone();
            changed[at] ^= 1;
            let taken = decode(&changed).is_some_and(|shown| shown.is_by(secret.key(), &[7; 32]));
            assert!(!taken, "byte {at}");
            assert!(decode(&message[..at]).is_none_or(|cut| !cut.is_by(secret.key(), &[7; 32])));
        }
    }
}
