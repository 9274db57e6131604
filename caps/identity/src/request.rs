//! Asking for an SVID: whoever asks shows that it has the key.

use distos_abi::{Fault, HolderKey};
use distos_types::{HolderSecret, verify_signature};

use crate::id::Subject;

/// What is signed begins with this, and so means nothing else.
const DOMAIN: &[u8] = b"distos svid request 1\0";

fn message(subject: &Subject) -> Vec<u8> {
    [DOMAIN, subject.to_string().as_bytes()].concat()
}

/// A signature by which `secret` asks to be `subject`.
pub fn prove(subject: &Subject, secret: &HolderSecret) -> [u8; 64] {
    secret.sign(&message(subject))
}

/// Whether `key` asks to be `subject`: [`Fault::Unauthenticated`] if not.
pub fn verify_proof(subject: &Subject, key: HolderKey, proof: &[u8]) -> Result<(), Fault> {
    verify_signature(key, &message(subject), proof)
}

#[cfg(test)]
mod tests {
    use distos_abi::NodeId;

    use super::*;

    #[test]
    fn a_key_can_be_asked_for_by_whoever_has_it_and_for_one_subject() {
        let secret = HolderSecret::from_seed([1; 32]);
        let (one, other) = (Subject::Node(NodeId([1; 32])), Subject::Node(NodeId([2; 32])));
        let proof = prove(&one, &secret);
        assert!(verify_proof(&one, secret.key(), &proof).is_ok());
        assert!(verify_proof(&other, secret.key(), &proof).is_err());
        assert!(verify_proof(&one, HolderSecret::from_seed([2; 32]).key(), &proof).is_err());
        assert!(verify_proof(&one, secret.key(), &[]).is_err());
    }
}
