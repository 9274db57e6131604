//! Revocations on their way: what somebody signs who ends a capability whose home it does not reach.
//!
//! A revocation proves by itself that whoever signed it may end what it names: it carries the chain up to the link that
//! ends, and whoever made that link, or holds it, has signed it. So it may be handed to anybody and carried by anybody until it comes to the capability's
//! home. Revoking twice is revoking once: it does no harm that it is heard again (N3).

use distos_abi::{Fault, LinkHash, NodeId, VatName};

use crate::HolderSecret;
use crate::chain::Chain;
use crate::key::verify_signature;

/// The longest revocation with its signature, in bytes.
pub const MAX_REVOCATION_BYTES: usize = 2560;
/// For how long a revocation is carried after it was made, in milliseconds: thirty days.
pub const REVOCATION_LASTS_MS: u64 = 30 * 24 * 3600 * 1000;
/// How far ahead of a clock a revocation may have been made, in milliseconds: five minutes.
const DRIFT_MS: u64 = 300_000;
/// What is signed begins with this, and so means nothing else.
const DOMAIN: &[u8] = b"distos revocation 1\0";
const HASH_CONTEXT: &str = "distos revocation v1";
const SIGNATURE_BYTES: usize = 64;

/// Who signs that a link has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signer {
    /// Whoever made it, who passed something on by it.
    Issuer,
    /// Whoever holds it, and gives it up.
    Holder,
}

/// That the last link of a chain has ended, as one has signed it who may say so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// Up to the link that ends.
    chain: Chain,
    signer: Signer,
    /// What ends.
    link: LinkHash,
    /// Until when it holds by itself, in Unix milliseconds.
    expires_ms: u64,
    /// When this was made, in Unix milliseconds.
    made_ms: u64,
    /// As it travels and is kept.
    bytes: Vec<u8>,
    hash: [u8; 32],
}

impl Revocation {
    /// Ends a link of `chain`: the last one of those that `secret` has signed, or, if it has signed none, the last one
    /// of all, which it holds.
    ///
    /// # Errors
    /// [`Fault::Unauthenticated`] if `secret` neither signed a link of the chain nor holds it.
    pub fn sign(chain: &Chain, secret: &HolderSecret, now_ms: u64) -> Result<Revocation, Fault> {
        let links = chain.links();
        let signed = (1..links.len()).rev().find(|n| links[n - 1].holder == secret.key());
        let (signer, chain) = match signed {
            Some(at) => (Signer::Issuer, chain.prefix(at + 1)),
            None if chain.holder() == secret.key() => (Signer::Holder, chain.clone()),
            None => {
                let key = secret.key();
                let why = format!("key {key} signed no link of this capability");
                return Err(Fault::Unauthenticated(why));
            }
        };
        let mut bytes = now_ms.to_le_bytes().to_vec();
        bytes.push(u8::from(signer == Signer::Holder));
        bytes.extend(chain.encode());
        bytes.extend(secret.sign(&[DOMAIN, &bytes].concat()));
        Revocation::decode(&bytes)
    }

    /// Reads what [`Revocation::bytes`] writes: when it was made (8 bytes, little-endian), who signs it (1: 0 for the
    /// issuer, 1 for the holder), the chain up to the link that ends, and the signature (64). [`Fault::Malformed`] for
    /// anything else. Whether it is signed is for [`Revocation::verify`] to say.
    pub fn decode(bytes: &[u8]) -> Result<Revocation, Fault> {
        let broken = || Fault::malformed("this is no revocation");
        if bytes.len() > MAX_REVOCATION_BYTES {
            return Err(broken());
        }
        let (said, _) = bytes.split_last_chunk::<SIGNATURE_BYTES>().ok_or_else(broken)?;
        let (made, rest) = said.split_first_chunk::<8>().ok_or_else(broken)?;
        let (signer, chain) = match rest.split_first() {
            Some((0, chain)) => (Signer::Issuer, chain),
            Some((1, chain)) => (Signer::Holder, chain),
            _ => return Err(broken()),
        };
        let chain = Chain::decode(chain)?;
        // A chain has at least its root, which its node's kernel has signed, and which only its holder ends.
        let links = chain.links();
        let last = links.last().filter(|_| links.len() > 1 || signer == Signer::Holder);
        let last = last.ok_or_else(broken)?;
        Ok(Revocation {
            signer,
            link: last.hash,
            expires_ms: last.authority.caveats.expires_ms,
            made_ms: u64::from_le_bytes(*made),
            hash: blake3::derive_key(HASH_CONTEXT, bytes),
            bytes: bytes.to_vec(),
            chain,
        })
    }

    /// Whether whoever signed it may end what it names, as far as somebody can tell who is not the capability's home.
    ///
    /// # Errors
    /// [`Fault::Unauthenticated`] if a signature is wrong, or it was made later than now; [`Fault::Denied`] if the chain
    /// is none; [`Fault::Expired`] if what it ends has, or nobody carries it any more.
    pub fn verify(&self, now_ms: u64) -> Result<(), Fault> {
        if self.is_early(now_ms) {
            let why = "this revocation was made later than now: clocks may differ by five minutes";
            return Err(Fault::Unauthenticated(why.into()));
        }
        if now_ms >= self.until_ms() {
            return Err(Fault::Expired { at_ms: self.until_ms() });
        }
        let Some((said, signature)) = self.bytes.split_last_chunk::<SIGNATURE_BYTES>() else {
            return Err(Fault::malformed("this is no revocation"));
        };
        verify_signature(self.by().holder(), &[DOMAIN, said].concat(), signature)?;
        // A node is named by the key with which its kernel signs.
        self.chain.verify(|_| Some(self.chain.root().node), now_ms)
    }

    /// Whether it says that it was made later than now, so that a clock is wrong, its maker's or this one.
    pub fn is_early(&self, now_ms: u64) -> bool {
        self.made_ms > now_ms.saturating_add(DRIFT_MS)
    }

    /// Whether it is not from now: whoever leaves it somewhere says now that it ends.
    pub fn is_old(&self, now_ms: u64) -> bool {
        self.made_ms.saturating_add(DRIFT_MS) < now_ms
    }

    /// Whether nobody carries it any more, whatever clock they go by.
    pub fn is_over(&self, now_ms: u64) -> bool {
        self.until_ms().saturating_add(DRIFT_MS) <= now_ms
    }

    /// Until when it is carried, in Unix milliseconds.
    pub fn until_ms(&self) -> u64 {
        self.made_ms.saturating_add(REVOCATION_LASTS_MS).min(self.expires_ms)
    }

    /// The node where it is to have its effect.
    pub fn home(&self) -> NodeId {
        self.chain.root().node
    }

    /// The vat there.
    pub fn vat(&self) -> &VatName {
        &self.chain.root().vat
    }

    /// Who signs it.
    pub fn signer(&self) -> Signer {
        self.signer
    }

    /// What whoever signed it holds.
    pub fn by(&self) -> Chain {
        match self.signer {
            Signer::Issuer => self.chain.prefix(self.chain.links().len() - 1),
            Signer::Holder => self.chain.clone(),
        }
    }

    /// What it ends.
    pub fn link(&self) -> LinkHash {
        self.link
    }

    /// Until when the link holds by itself, in Unix milliseconds.
    pub fn expires_ms(&self) -> u64 {
        self.expires_ms
    }

    /// When it was made, in Unix milliseconds.
    pub fn made_ms(&self) -> u64 {
        self.made_ms
    }

    /// As it travels and is kept.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// BLAKE3 of its bytes, in key derivation mode.
    pub fn hash(&self) -> &[u8; 32] {
        &self.hash
    }
}

#[cfg(test)]
mod tests {
    use distos_abi::{Authority, CapId, Caveats, Kind, ObjectId, Rights, VatName};
    use proptest::prelude::*;

    use super::*;
    use crate::Root;

    const NOW_MS: u64 = 1_800_000_000_000;

    fn secret(seed: u8) -> HolderSecret {
        HolderSecret::from_seed([seed; 32])
    }

    /// From holder 1 to holder 2 to holder 3; the node is number 9.
    fn chain() -> Chain {
        let root = Root {
            node: NodeId(secret(9).key().0),
            key_epoch: 1,
            vat: VatName::new("memory").unwrap(),
            kind: Kind(1),
            object: ObjectId(7),
            cap: CapId(1),
            holder: secret(1).key(),
            authority: Authority::FULL,
            nonce: [0; 16],
        };
        let caveats = Caveats { expires_ms: NOW_MS + 1000, ..Caveats::NONE };
        let weak = Authority { rights: Rights::READ, caveats };
        let chain = Chain::issue(root, &secret(9));
        let chain = chain.delegate(&secret(1), secret(2).key(), Authority::FULL, [1; 16]).unwrap();
        chain.delegate(&secret(2), secret(3).key(), weak, [2; 16]).unwrap()
    }

    fn is_unauthenticated(outcome: Result<(), Fault>) -> bool {
        matches!(outcome, Err(Fault::Unauthenticated(_)))
    }

    #[test]
    fn whoever_signed_a_link_ends_that_and_its_holder_its_own() {
        let links = chain().links();
        for (seed, link, held) in [(1, 1, 1), (2, 2, 2), (3, 2, 3)] {
            let revocation = Revocation::sign(&chain(), &secret(seed), NOW_MS).unwrap();
            assert_eq!(revocation.link(), links[link].hash, "{seed}");
            assert_eq!(revocation.by(), chain().prefix(held), "{seed}");
            assert_eq!(revocation.verify(NOW_MS), Ok(()), "{seed}");
            assert_eq!(revocation.home(), NodeId(secret(9).key().0));
            assert_eq!(revocation.expires_ms(), links[link].authority.caveats.expires_ms);
        }
        let alone = Revocation::sign(&chain().prefix(1), &secret(1), NOW_MS).unwrap();
        assert_eq!((alone.link(), alone.signer()), (links[0].hash, Signer::Holder));
        assert!(is_unauthenticated(Revocation::sign(&chain(), &secret(4), NOW_MS).map(drop)));
    }

    /// Or anybody could end what is another's.
    #[test]
    fn one_that_somebody_else_signed_or_changed_is_refused() {
        let good = Revocation::sign(&chain(), &secret(2), NOW_MS).unwrap();
        for at in 0..good.bytes().len() {
            let mut bytes = good.bytes().to_vec();
            bytes[at] ^= 1;
            let read = Revocation::decode(&bytes).and_then(|read| read.verify(NOW_MS));
            assert!(read.is_err(), "{at}");
        }
        // Somebody who holds another capability there, or another link of this one, in the name of whoever may.
        for (seed, signer) in [(3, 0), (1, 0), (2, 1), (4, 0), (4, 1)] {
            let mut bytes = NOW_MS.to_le_bytes().to_vec();
            bytes.push(signer);
            bytes.extend(chain().encode());
            bytes.extend(secret(seed).sign(&[DOMAIN, &bytes].concat()));
            let other = Revocation::decode(&bytes).unwrap();
            assert!(is_unauthenticated(other.verify(NOW_MS)), "{seed} {signer}");
        }
        // A root is its kernel's to have signed, and nobody signs as its issuer.
        let mut bytes = NOW_MS.to_le_bytes().to_vec();
        bytes.push(0);
        bytes.extend(chain().prefix(1).encode());
        bytes.extend(secret(9).sign(&[DOMAIN, &bytes].concat()));
        assert!(Revocation::decode(&bytes).is_err());
        // A chain that a kernel has not signed, by one who may say what it likes of it.
        let mut root = chain().root().clone();
        root.holder = secret(4).key();
        let forged = Chain::issue(root, &secret(4));
        let forged = Revocation::sign(&forged, &secret(4), NOW_MS).unwrap();
        assert!(is_unauthenticated(forged.verify(NOW_MS)));
    }

    #[test]
    fn it_is_carried_until_what_it_ends_has_and_for_thirty_days_at_most() {
        let brief = Revocation::sign(&chain(), &secret(2), NOW_MS).unwrap();
        assert_eq!(brief.until_ms(), NOW_MS + 1000);
        assert_eq!(brief.verify(NOW_MS + 1000), Err(Fault::Expired { at_ms: NOW_MS + 1000 }));
        let long = Revocation::sign(&chain().prefix(2), &secret(1), NOW_MS).unwrap();
        assert_eq!(long.until_ms(), NOW_MS + REVOCATION_LASTS_MS);
        assert_eq!(long.verify(NOW_MS - DRIFT_MS), Ok(()));
        assert!(is_unauthenticated(long.verify(NOW_MS - DRIFT_MS - 1)));
        assert!(long.is_early(NOW_MS - DRIFT_MS - 1) && !long.is_early(NOW_MS - DRIFT_MS));
        assert!(long.is_old(NOW_MS + DRIFT_MS + 1) && !long.is_old(NOW_MS + DRIFT_MS));
        let over_ms = long.until_ms() + DRIFT_MS;
        assert!(long.is_over(over_ms) && !long.is_over(over_ms - 1));
    }

    proptest! {
        #[test]
        fn whatever_bytes_arrive_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(read) = Revocation::decode(&bytes) {
                prop_assert_eq!(read.bytes(), &bytes[..]);
            }
        }
    }
}
