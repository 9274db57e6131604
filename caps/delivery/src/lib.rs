//! Parcels: bytes that are sealed to whoever has one key, for one purpose, so that nobody who passes them on can read
//! them, change them or use them for something else.
//!
//! A parcel is HPKE in its base mode (RFC 9180), with DHKEM(X25519, HKDF-SHA256), HKDF-SHA256 and ChaCha20-Poly1305,
//! in one shot: the encapsulated key (32 bytes), then the cipher text. What it is for ([`Purpose`]) is HPKE's `info`;
//! there is no additional data. A [`Recipient`]'s key is made for one exchange or one life of a vat and is written
//! nowhere: whoever gets a holder's lasting key later opens no parcel that was recorded.
//!
//! # What it does not do
//!
//! - It does not say who sealed a parcel: anybody can to a public key. Who receives one over an authenticated
//!   connection knows that from there.
//! - A recipient's key proves nothing either. A holder signs the one that it asks to be answered with
//!   ([`request_message`]); a vat's node signs the vat's (a card of `distos_noise`).
//! - It is not post-quantum: whoever records a parcel may open it with a quantum computer, unless the connection below
//!   agreed on its keys with ML-KEM.
//! - The library works on copies of what is sealed and opened, in buffers that it frees without erasing them. Whoever handles
//!   many secrets has an allocator that does (`distos_erasing`).
//! - The same parcel opens twice. What must happen once is its user's to see to.
//!
//! Randomness is the library's own (aws-lc), everything else is a function of its arguments.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

use std::fmt;

use distos_abi::{Fault, HolderKey, NodeId, ObjectId, VatName};
use distos_types::SecretPage;
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_CHACHA20_POLY1305 as SUITE;
use rustls::crypto::hpke::{EncapsulatedSecret, Hpke as _, HpkePrivateKey, HpkePublicKey};
use zeroize::Zeroizing;

/// How long a recipient's public key is (X25519, RFC 7748).
pub const KEY_BYTES: usize = 32;
/// How much longer a parcel is than what is in it: the encapsulated key and a tag.
pub const OVERHEAD_BYTES: usize = KEY_BYTES + 16;

const PARCEL_DOMAIN: &[u8] = b"distos-parcel-v1";
const REQUEST_DOMAIN: &[u8] = b"distos-parcel-request-v1";

/// The public half of a recipient's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecipientKey(pub [u8; KEY_BYTES]);

impl RecipientKey {
    /// Reads one. [`Fault::Malformed`] if it has another length.
    pub fn from_slice(bytes: &[u8]) -> Result<RecipientKey, Fault> {
        let bytes = bytes.try_into().map_err(|_| {
            Fault::malformed(format!(
                "a recipient's key has {KEY_BYTES} bytes, not {}",
                bytes.len()
            ))
        })?;
        Ok(RecipientKey(bytes))
    }
}

/// Whoever can open parcels. The private half stays in a page of its own. Never shown by `Debug`.
pub struct Recipient {
    secret: SecretPage,
    key: RecipientKey,
}

impl Recipient {
    /// With a new key. [`Fault::Internal`] if there is no randomness.
    pub fn new() -> Result<Recipient, Fault> {
        let (public, private) = SUITE.generate_key_pair().map_err(Fault::internal)?;
        let key = RecipientKey::from_slice(&public.0)?;
        let secret = SecretPage::fill(|place| {
            let bytes = private.secret_bytes();
            if bytes.len() != place.len() {
                return Err(Fault::internal("an X25519 key has one length"));
            }
            place.copy_from_slice(bytes);
            Ok(())
        })?;
        Ok(Recipient { secret, key })
    }

    /// To whom parcels are to be sealed.
    pub fn key(&self) -> RecipientKey {
        self.key
    }

    /// What is in a parcel. [`Fault::Unauthenticated`] if it is for another key or purpose, or was changed.
    pub fn open(&self, purpose: &Purpose<'_>, parcel: &[u8]) -> Result<Zeroizing<Vec<u8>>, Fault> {
        let (encapsulated, text) = parcel
            .split_at_checked(KEY_BYTES)
            .ok_or_else(|| Fault::malformed("a parcel ends within its key"))?;
        let encapsulated = EncapsulatedSecret(encapsulated.to_vec());
        // Erased when it is dropped.
        let private = HpkePrivateKey::from(self.secret.expose().to_vec());
        let opened = SUITE.open(&encapsulated, &purpose.bytes(), &[], text, &private);
        opened.map(Zeroizing::new).map_err(|_| {
            Fault::Unauthenticated(
                "a parcel was sealed to another key or for another purpose, or was changed".into(),
            )
        })
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recipient(of {:?})", self.key)
    }
}

/// Seals `plain` to whoever has the private half of `key`. [`Fault::Malformed`] if nobody can have it.
pub fn seal(key: RecipientKey, purpose: &Purpose<'_>, plain: &[u8]) -> Result<Vec<u8>, Fault> {
    let sealed = SUITE.seal(&purpose.bytes(), &[], plain, &HpkePublicKey(key.0.to_vec()));
    let (EncapsulatedSecret(mut parcel), text) =
        sealed.map_err(|_| Fault::malformed("a recipient's key is no X25519 public key"))?;
    parcel.extend(text);
    Ok(parcel)
}

/// What a holder signs so that whoever passes its call on cannot have the answer sealed to a key of its own: at which vat
/// of which node, for which object, and the key.
pub fn request_message(
    node: NodeId,
    vat: &VatName,
    object: ObjectId,
    key: RecipientKey,
) -> Vec<u8> {
    let object = object.0.to_le_bytes();
    [REQUEST_DOMAIN, &node.0, &object, &key.0, vat.as_str().as_bytes()].concat()
}

/// What a parcel is for: it opens for nothing else.
#[derive(Clone, Debug)]
pub struct Purpose<'a> {
    /// Between which node…
    pub node: NodeId,
    /// …and vat of it…
    pub vat: &'a VatName,
    /// …and which holder it goes.
    pub holder: HolderKey,
    /// What is in it.
    pub content: Content<'a>,
}

/// What is in a parcel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// A version of a secret, to a holder that has a lease on it.
    Reading {
        /// The secret.
        name: &'a str,
        /// Which version.
        version: u32,
        /// The lease under which it is given out.
        lease: u64,
    },
    /// A new secret's value, from whoever puts it.
    NewValue {
        /// The secret.
        name: &'a str,
        /// Whether it is to be given out on evidence only.
        attested: bool,
        /// For how long leases on it run at most, in milliseconds, as it is asked for.
        lease_ms: u64,
    },
    /// A secret's next value, from whoever rotates it.
    NextValue {
        /// The secret.
        object: ObjectId,
        /// Which version that becomes.
        version: u32,
        /// For how long the version before can be read at most, in milliseconds.
        overlap_ms: u64,
    },
    /// A share of a root key, to the operator that makes them.
    NewShare {
        /// Which one.
        number: u8,
    },
    /// A share of a root key, from an operator that opens with it.
    Share,
    /// A secret that a TPM keeps sealed, to the vat that had it sealed.
    Sealed,
}

impl<'a> Purpose<'a> {
    /// Of what goes from one vat to another, `vat`, of the same node. An edge has no holder's key: zero bytes stand in
    /// its place, which are the key of nobody who could sign.
    pub fn of_vat(node: NodeId, vat: &'a VatName, content: Content<'a>) -> Purpose<'a> {
        Purpose { node, vat, holder: HolderKey([0; 32]), content }
    }

    /// Each field has a length that is fixed or stands before it, so that no two purposes have the same bytes.
    fn bytes(&self) -> Vec<u8> {
        let mut out = [PARCEL_DOMAIN, &self.node.0, &self.holder.0].concat();
        push_text(&mut out, self.vat.as_str());
        match self.content {
            Content::Reading { name, version, lease } => {
                out.push(1);
                push_text(&mut out, name);
                out.extend(version.to_le_bytes());
                out.extend(lease.to_le_bytes());
            }
            Content::NewValue { name, attested, lease_ms } => {
                out.push(2);
                push_text(&mut out, name);
                out.push(attested.into());
                out.extend(lease_ms.to_le_bytes());
            }
            Content::NextValue { object, version, overlap_ms } => {
                out.push(5);
                out.extend(object.0.to_le_bytes());
                out.extend(version.to_le_bytes());
                out.extend(overlap_ms.to_le_bytes());
            }
            Content::NewShare { number } => out.extend([3, number]),
            Content::Share => out.push(4),
            Content::Sealed => out.push(6),
        }
        out
    }
}

fn push_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn purpose<'a>(vat: &'a VatName, content: Content<'a>) -> Purpose<'a> {
        Purpose { node: NodeId([1; 32]), vat, holder: HolderKey([2; 32]), content }
    }

    #[test]
    fn a_parcel_opens_for_its_key_and_its_purpose_alone() {
        let vat = VatName::new("secrets").unwrap();
        let other_vat = VatName::new("memory").unwrap();
        let (receiver, thief) = (Recipient::new().unwrap(), Recipient::new().unwrap());
        let reading = Content::Reading { name: "db", version: 3, lease: 7 };
        let right = purpose(&vat, reading);
        let parcel = seal(receiver.key(), &right, b"hunter2").unwrap();
        assert_eq!(parcel.len(), b"hunter2".len() + OVERHEAD_BYTES);
        assert_eq!(*receiver.open(&right, &parcel).unwrap(), b"hunter2");
        assert!(thief.open(&right, &parcel).is_err());
        let mut wrong = vec![
            purpose(&other_vat, reading),
            Purpose { node: NodeId([9; 32]), ..right.clone() },
            Purpose { holder: HolderKey([9; 32]), ..right.clone() },
        ];
        for content in [
            Content::Reading { name: "dc", version: 3, lease: 7 },
            Content::Reading { name: "db", version: 4, lease: 7 },
            Content::Reading { name: "db", version: 3, lease: 8 },
            Content::NewValue { name: "db", attested: true, lease_ms: 9 },
            Content::NewShare { number: 1 },
            Content::Share,
            Content::Sealed,
        ] {
            wrong.push(purpose(&vat, content));
        }
        for other in wrong {
            let fault = receiver.open(&other, &parcel).unwrap_err();
            assert!(matches!(fault, Fault::Unauthenticated(_)), "{other:?}: {fault}");
        }
    }

    #[test]
    fn whoever_passes_a_value_on_cannot_have_it_kept_otherwise_or_again_as_a_later_version() {
        let vat = VatName::new("secrets").unwrap();
        let receiver = Recipient::new().unwrap();
        let put = Content::NewValue { name: "db", attested: true, lease_ms: 9 };
        let (object, version, overlap_ms) = (ObjectId(1), 2, 3);
        let rotation = Content::NextValue { object, version, overlap_ms };
        let others = [
            put,
            Content::NewValue { name: "db", attested: false, lease_ms: 9 },
            Content::NewValue { name: "db", attested: true, lease_ms: 10 },
            Content::NewValue { name: "dc", attested: true, lease_ms: 9 },
            rotation,
            Content::NextValue { object: ObjectId(2), version, overlap_ms },
            Content::NextValue { object, version: 3, overlap_ms },
            Content::NextValue { object, version, overlap_ms: 4 },
        ];
        for right in [put, rotation] {
            let parcel = seal(receiver.key(), &purpose(&vat, right), b"hunter2").unwrap();
            for other in others {
                let opened = receiver.open(&purpose(&vat, other), &parcel);
                assert_eq!(opened.is_ok(), other == right, "{right:?} as {other:?}");
            }
        }
    }

    #[test]
    fn a_parcel_that_was_changed_or_cut_anywhere_does_not_open() {
        let vat = VatName::new("secrets").unwrap();
        let purpose = purpose(&vat, Content::Share);
        let receiver = Recipient::new().unwrap();
        let parcel = seal(receiver.key(), &purpose, b"hunter2").unwrap();
        for at in 0..parcel.len() {
            let mut changed = parcel.clone();
            changed[at] ^= 1;
            // X25519 ignores the top bit of a public key; HPKE does not: it is in the key's derivation.
            assert!(receiver.open(&purpose, &changed).is_err(), "byte {at}");
            assert!(receiver.open(&purpose, &parcel[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_key_for_which_anybody_could_open_is_refused() {
        let vat = VatName::new("secrets").unwrap();
        let sealed = seal(RecipientKey([0; 32]), &purpose(&vat, Content::Share), b"hunter2");
        assert!(matches!(sealed, Err(Fault::Malformed(_))));
    }

    #[test]
    fn a_recipient_shows_no_secret() {
        let receiver = Recipient::new().unwrap();
        let shown = format!("{receiver:?}");
        let secret = format!("{:?}", receiver.secret.expose());
        assert!(!shown.contains(&secret[1..20]), "{shown}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn whatever_is_sealed_comes_back(plain in prop::collection::vec(any::<u8>(), 0..2000)) {
            let vat = VatName::new("secrets").unwrap();
            let purpose = purpose(&vat, Content::Share);
            let receiver = Recipient::new().unwrap();
            let parcel = seal(receiver.key(), &purpose, &plain).unwrap();
            prop_assert!(plain.len() < 8 || !parcel.windows(8).any(|w| w == &plain[..8]));
            prop_assert_eq!(&*receiver.open(&purpose, &parcel).unwrap(), &plain);
        }
    }
}
