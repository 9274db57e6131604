//! What stands between the disk and the secrets: a root key, under which each secret's own key is encrypted, under
//! which each of its versions is. All of it XChaCha20-Poly1305 with random nonces of 24 bytes, so that no counter has to
//! survive a crash; what a cipher text is of is authenticated with it, so that none can stand in another's place, and under
//! another name or other terms none opens.
//!
//! Of all these keys only the root key stands in memory, in a page of its own, while the broker is open. A secret's key is
//! on the stack while it is used.

use chacha20poly1305::aead::{Aead as _, Payload};
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305, XNonce};
use distos_abi::{Fault, ObjectId, TenantId};
use distos_types::{SECRET_BYTES, SecretPage};
use zeroize::Zeroizing;

use crate::shamir::{self, ID_BYTES, Scheme, Share};

const NONCE_BYTES: usize = 24;
/// How much longer a cipher text is than its plain text.
pub const SEALED_OVERHEAD: usize = NONCE_BYTES + 16;
/// Bytes of a secret's key as it is kept.
pub const WRAPPED_KEY_BYTES: usize = SECRET_BYTES + SEALED_OVERHEAD;

const ROOT: &[u8] = b"distos-secrets-root-v1";
const BOUND: &[u8] = b"distos-secrets-bound-v1";
const KEY: &[u8] = b"distos-secrets-key-v1";
const VALUE: &[u8] = b"distos-secrets-value-v1";

/// Fills bytes that nobody can guess and that were never used before.
pub type Random<'a> = &'a mut dyn FnMut(&mut [u8]) -> Result<(), Fault>;

/// What is known of a root key while it is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootFacts {
    /// Names it.
    pub id: [u8; ID_BYTES],
    /// How it was split; `None` if the TPM alone opens it.
    pub scheme: Option<Scheme>,
    /// Nothing, encrypted under it: only the right key opens this.
    pub check: [u8; SEALED_OVERHEAD],
}

/// A root key as one TPM opens it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// What the TPM unseals, which gives a key.
    pub blob: Vec<u8>,
    /// The root key, encrypted under that.
    pub root: WrappedKey,
}

/// A root key.
pub struct Barrier {
    root: SecretPage,
}

/// A secret's key, encrypted under the root key of the broker that keeps it.
pub type WrappedKey = [u8; WRAPPED_KEY_BYTES];

/// Whose a cipher text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The tenant.
    pub tenant: TenantId,
    /// The secret.
    pub object: ObjectId,
    /// BLAKE3 of what is fixed about the secret.
    pub terms: [u8; 32],
}

impl Owner {
    fn bytes(self) -> [u8; 44] {
        let mut out = [0; 44];
        out[..4].copy_from_slice(&self.tenant.0.to_le_bytes());
        out[4..12].copy_from_slice(&self.object.0.to_le_bytes());
        out[12..].copy_from_slice(&self.terms);
        out
    }
}

impl Barrier {
    /// A new root key, what is to be kept of it, and its shares, if it is to have any.
    pub fn new(
        scheme: Option<Scheme>,
        random: Random<'_>,
    ) -> Result<(Barrier, RootFacts, Vec<Share>), Fault> {
        let root = SecretPage::fill(|key| random(key))?;
        let mut id = [0; ID_BYTES];
        random(&mut id)?;
        let check = encrypt(root.expose(), &[ROOT, &id], b"", random)?;
        let check = check.try_into().map_err(|_| Fault::internal("nothing has one length"))?;
        let shares = match scheme {
            Some(scheme) => shamir::split(&root, id, scheme, random)?,
            None => Vec::new(),
        };
        Ok((Barrier { root }, RootFacts { id, scheme, check }, shares))
    }

    /// The root key of which these are shares. [`Fault::Unauthenticated`] if it is another.
    pub fn of_shares(facts: &RootFacts, shares: &[Share]) -> Result<Barrier, Fault> {
        let root = shamir::combine(shares)?;
        decrypt(root.expose(), &[ROOT, &facts.id], &facts.check).ok_or_else(|| {
            Fault::Unauthenticated(
                "together these shares are not the root key: one of them was forged. Give them all again".into(),
            )
        })?;
        Ok(Barrier { root })
    }

    /// The root key, encrypted under a key that a TPM keeps and that was never used before.
    pub fn bind(
        &self,
        facts: &RootFacts,
        key: &[u8; SECRET_BYTES],
        random: Random<'_>,
    ) -> Result<WrappedKey, Fault> {
        let wrapped = encrypt(key, &[BOUND, &facts.id], self.root.expose(), random)?;
        wrapped.try_into().map_err(|_| Fault::internal("a key has one length"))
    }

    /// The root key that was encrypted under this key. [`Fault::Corrupt`] if it was not, or is another.
    pub fn of_bound(
        facts: &RootFacts,
        root: &WrappedKey,
        key: &[u8; SECRET_BYTES],
    ) -> Result<Barrier, Fault> {
        let corrupt = || Fault::Corrupt("the root key was changed on disk".into());
        let plain = decrypt(key, &[BOUND, &facts.id], root).ok_or_else(corrupt)?;
        let root = SecretPage::fill(|place| {
            place.copy_from_slice(plain.get(..SECRET_BYTES).ok_or_else(corrupt)?);
            Ok::<(), Fault>(())
        })?;
        decrypt(root.expose(), &[ROOT, &facts.id], &facts.check).ok_or_else(corrupt)?;
        Ok(Barrier { root })
    }

    /// A new key for a secret.
    pub fn new_key(&self, owner: Owner, random: Random<'_>) -> Result<WrappedKey, Fault> {
        let mut key = Zeroizing::new([0; SECRET_BYTES]);
        random(&mut *key)?;
        let wrapped = encrypt(self.root.expose(), &[KEY, &owner.bytes()], &*key, random)?;
        wrapped.try_into().map_err(|_| Fault::internal("a key has one length"))
    }

    /// A version of a secret, as it is kept.
    pub fn seal(
        &self,
        owner: Owner,
        key: &WrappedKey,
        version: u32,
        plain: &[u8],
        random: Random<'_>,
    ) -> Result<Vec<u8>, Fault> {
        let key = self.unwrap(owner, key)?;
        encrypt(&key, &[VALUE, &owner.bytes(), &version.to_le_bytes()], plain, random)
    }

    /// The plain text of a version. [`Fault::Corrupt`] if it is another's, or was changed.
    pub fn open(
        &self,
        owner: Owner,
        key: &WrappedKey,
        version: u32,
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Fault> {
        let key = self.unwrap(owner, key)?;
        decrypt(&key, &[VALUE, &owner.bytes(), &version.to_le_bytes()], sealed).ok_or_else(|| {
            Fault::Corrupt(format!(
                "version {version} of secret {} was changed on disk",
                owner.object
            ))
        })
    }

    fn unwrap(
        &self,
        owner: Owner,
        key: &WrappedKey,
    ) -> Result<Zeroizing<[u8; SECRET_BYTES]>, Fault> {
        let corrupt =
            || Fault::Corrupt(format!("the key of secret {} was changed on disk", owner.object));
        let plain = decrypt(self.root.expose(), &[KEY, &owner.bytes()], key).ok_or_else(corrupt)?;
        let mut key = Zeroizing::new([0; SECRET_BYTES]);
        key.copy_from_slice(plain.get(..SECRET_BYTES).ok_or_else(corrupt)?);
        Ok(key)
    }
}

impl std::fmt::Debug for Barrier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Barrier(…)")
    }
}

fn encrypt(
    key: &[u8; SECRET_BYTES],
    context: &[&[u8]],
    plain: &[u8],
    random: Random<'_>,
) -> Result<Vec<u8>, Fault> {
    let mut nonce = [0; NONCE_BYTES];
    random(&mut nonce)?;
    let payload = Payload { msg: plain, aad: &context.concat() };
    let text = XChaCha20Poly1305::new(key.into()).encrypt(&XNonce::from(nonce), payload);
    Ok([&nonce[..], &text.map_err(Fault::internal)?].concat())
}

fn decrypt(
    key: &[u8; SECRET_BYTES],
    context: &[&[u8]],
    sealed: &[u8],
) -> Option<Zeroizing<Vec<u8>>> {
    let (nonce, text) = sealed.split_first_chunk::<NONCE_BYTES>()?;
    let payload = Payload { msg: text, aad: &context.concat() };
    let plain = XChaCha20Poly1305::new(key.into()).decrypt(&XNonce::from(*nonce), payload);
    plain.ok().map(Zeroizing::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Different bytes each time, the same in each run.
    fn random(seed: u8) -> impl FnMut(&mut [u8]) -> Result<(), Fault> {
        let mut n = 0u64;
        move |out| {
            n += 1;
            blake3::Hasher::new().update(&[seed]).update(&n.to_le_bytes()).finalize_xof().fill(out);
            Ok(())
        }
    }

    fn owner(tenant: u32, object: u64) -> Owner {
        Owner { tenant: TenantId(tenant), object: ObjectId(object), terms: [4; 32] }
    }

    fn scheme() -> Option<Scheme> {
        Some(Scheme::new(2, 3).unwrap())
    }

    #[test]
    fn a_value_opens_as_the_version_and_secret_that_it_is_and_as_no_other() {
        let random = &mut random(1);
        let (barrier, ..) = Barrier::new(scheme(), random).unwrap();
        let key = barrier.new_key(owner(1, 7), random).unwrap();
        let other = barrier.new_key(owner(1, 8), random).unwrap();
        let sealed = barrier.seal(owner(1, 7), &key, 3, b"hunter2", random).unwrap();
        assert_eq!(*barrier.open(owner(1, 7), &key, 3, &sealed).unwrap(), b"hunter2");
        assert!(!sealed.windows(7).any(|w| w == b"hunter2"));
        for (owner, key, version) in [
            (owner(2, 7), &key, 3),
            (owner(1, 8), &key, 3),
            (owner(1, 8), &other, 3),
            (owner(1, 7), &other, 3),
            (owner(1, 7), &key, 2),
            (Owner { terms: [5; 32], ..owner(1, 7) }, &key, 3),
        ] {
            let fault = barrier.open(owner, key, version, &sealed).unwrap_err();
            assert!(matches!(fault, Fault::Corrupt(_)), "{fault}");
        }
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(barrier.open(owner(1, 7), &key, 3, &changed).is_err(), "byte {at}");
        }
    }

    #[test]
    fn what_is_kept_opens_with_the_shares_of_its_own_root_key_and_no_others() {
        let random = &mut random(2);
        let (barrier, facts, shares) = Barrier::new(scheme(), random).unwrap();
        let key = barrier.new_key(owner(1, 7), random).unwrap();
        let sealed = barrier.seal(owner(1, 7), &key, 1, b"hunter2", random).unwrap();
        drop(barrier);
        let again = Barrier::of_shares(&facts, &shares[1..]).unwrap();
        assert_eq!(*again.open(owner(1, 7), &key, 1, &sealed).unwrap(), b"hunter2");
        let (stranger, _, others) = Barrier::new(scheme(), random).unwrap();
        assert!(stranger.open(owner(1, 7), &key, 1, &sealed).is_err());
        let fault = Barrier::of_shares(&facts, &others[1..]).unwrap_err();
        assert!(matches!(fault, Fault::Unauthenticated(_)), "{fault}");
        assert!(Barrier::of_shares(&facts, &shares[..1]).is_err(), "one is too few");
    }

    #[test]
    fn what_a_tpm_opens_is_the_root_key_that_was_bound_and_no_other() {
        let random = &mut random(3);
        let (barrier, facts, shares) = Barrier::new(None, random).unwrap();
        assert!(shares.is_empty());
        let key = barrier.new_key(owner(1, 7), random).unwrap();
        let sealed = barrier.seal(owner(1, 7), &key, 1, b"hunter2", random).unwrap();
        let bound = barrier.bind(&facts, &[5; SECRET_BYTES], random).unwrap();
        let again = Barrier::of_bound(&facts, &bound, &[5; SECRET_BYTES]).unwrap();
        assert_eq!(*again.open(owner(1, 7), &key, 1, &sealed).unwrap(), b"hunter2");
        let (stranger, other, _) = Barrier::new(None, random).unwrap();
        let others = stranger.bind(&other, &[5; SECRET_BYTES], random).unwrap();
        let renamed = RootFacts { id: facts.id, ..other.clone() };
        for (facts, root, key) in [
            (&facts, &bound, [6; SECRET_BYTES]),
            (&other, &bound, [5; SECRET_BYTES]),
            (&facts, &others, [5; SECRET_BYTES]),
            (&renamed, &bound, [5; SECRET_BYTES]),
        ] {
            let fault = Barrier::of_bound(facts, root, &key).unwrap_err();
            assert!(matches!(fault, Fault::Corrupt(_)), "{fault}");
        }
    }
}
