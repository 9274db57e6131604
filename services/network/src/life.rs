//! What tells a network service that answered for its machine from one that was started since.
//!
//! The key of its SVID outlives a reboot: it lies on the disk, and whatever boots next can read it. So evidence is bound to
//! more than that key. Each time that it is started the service draws a secret, which it keeps in memory alone. To each verifier
//! it says a hash of what it makes of that secret for this one; evidence is bound to the hash; and whoever asks that verifier to
//! sign something shows what was hashed. What boots next cannot, and has to answer for itself first (A2).

use distos_abi::{Fault, HolderKey, NodeId};
use distos_types::SecretBytes;
use zeroize::Zeroizing;

/// What a life's token is derived for: a verifier, by its number.
const TOKEN: &str = "DistOS 2026-11-28 what a network service shows one verifier while it lives";
/// What stands for it where anybody may read it.
const MARK: &str = "DistOS 2026-11-28 what evidence is bound to of a network service's life";

const TOKEN_BYTES: usize = 32;

/// The mark of a life: public.
pub(crate) type Mark = [u8; 32];

/// To whom evidence is bound: a node's network service, over a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bound {
    /// The key of its SVID, as the handshake has shown.
    pub(crate) key: HolderKey,
    /// Which of its lives.
    pub(crate) life: Mark,
}

/// The time from one start of this service to its end.
pub(crate) struct Life(SecretBytes);

impl Life {
    /// A new one.
    ///
    /// # Errors
    /// [`Fault::Internal`] if the system gives no random numbers.
    pub(crate) fn begin() -> Result<Life, Fault> {
        let secret = SecretBytes::fill(TOKEN_BYTES, getrandom::fill);
        secret.map(Life).map_err(Fault::internal)
    }

    /// What this verifier is shown over an encrypted connection, and nobody else.
    pub(crate) fn token(&self, verifier: NodeId) -> Zeroizing<[u8; TOKEN_BYTES]> {
        let own = Zeroizing::new(blake3::derive_key(TOKEN, self.0.expose()));
        Zeroizing::new(*blake3::keyed_hash(&own, &verifier.0).as_bytes())
    }

    /// What stands for it, for this verifier.
    pub(crate) fn mark(&self, verifier: NodeId) -> Mark {
        mark(&*self.token(verifier))
    }
}

/// The mark of the life that has shown this token.
///
/// # Errors
/// [`Fault::Malformed`] if it is none.
pub(crate) fn mark_of(token: &[u8]) -> Result<Mark, Fault> {
    match token.len() {
        TOKEN_BYTES => Ok(mark(token)),
        _ => Err(Fault::malformed("a network service shows a token of 32 bytes")),
    }
}

fn mark(token: &[u8]) -> Mark {
    blake3::derive_key(MARK, token)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Or one verifier could come to another in the node's place with what it was shown, or a key on the disk would do.
    #[test]
    fn a_token_is_for_one_verifier_and_one_life() {
        let (one, other) = (Life::begin().unwrap(), Life::begin().unwrap());
        let (near, far) = (NodeId([1; 32]), NodeId([2; 32]));
        assert_eq!(mark_of(&*one.token(near)), Ok(one.mark(near)));
        assert!(mark_of(&[]).is_err() && mark_of(&[7; 33]).is_err());
        assert_ne!(*one.token(near), *one.token(far));
        assert_ne!(*one.token(near), *other.token(near));
        assert_ne!(one.mark(near), *one.token(near), "the mark says nothing of the token");
    }
}
