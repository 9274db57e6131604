//! Pages and keys as they stand on disk: sealed pages, key slots. Pure functions over bytes.
//!
//! A page is XChaCha20-Poly1305 under its region's key. The nonce is random, 24 bytes, so that no
//! counter has to survive a crash. Region, page and version are authenticated with it: a page that
//! is moved, or an old version put back in place of a newer one, does not open (M2).

use std::convert::Infallible;
use std::sync::{Arc, LazyLock};

use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{KeyInit, Tag, XChaCha20Poly1305, XNonce};
use distos_types::{SECRET_BYTES, SecretPage};
use zeroize::Zeroizing;

use crate::state::PAGE_BYTES;

/// A region's secret key. It stands here masked, because regions are many and a process may lock
/// little memory: the mask is in a page that is locked, so that nothing which may reach swap or a
/// core file tells the key. Unmasked it is on the stack, while a page is sealed or opened.
pub(crate) struct RegionKey {
    region: u64,
    masked: [u8; SECRET_BYTES],
    mask: Arc<Mask>,
}

/// From which every region's mask is derived; made anew at each start.
pub(crate) struct Mask(SecretPage);

impl Mask {
    /// Lets `random` write it where it stays.
    pub(crate) fn new<E>(
        random: impl FnOnce(&mut [u8; SECRET_BYTES]) -> Result<(), E>,
    ) -> Result<Mask, E> {
        SecretPage::fill(random).map(Mask)
    }

    /// A region's own mask: its number, which is never used again, under a keyed hash.
    fn apply(&self, region: u64, key: &mut [u8; SECRET_BYTES]) {
        let hash = blake3::keyed_hash(self.0.expose(), &region.to_le_bytes());
        key.iter_mut().zip(hash.as_bytes()).for_each(|(key, mask)| *key ^= mask);
    }
}

impl RegionKey {
    /// A new region's key. What `random` writes is the masked key: the key itself is random too,
    /// and needs to stand nowhere for that.
    pub(crate) fn new<E>(
        mask: &Arc<Mask>,
        region: u64,
        random: impl FnOnce(&mut [u8; SECRET_BYTES]) -> Result<(), E>,
    ) -> Result<RegionKey, E> {
        let mut masked = [0; SECRET_BYTES];
        random(&mut masked)?;
        Ok(RegionKey { region, masked, mask: mask.clone() })
    }

    pub(crate) fn unmask(&self) -> Zeroizing<[u8; SECRET_BYTES]> {
        let mut key = Zeroizing::new(self.masked);
        self.mask.apply(self.region, &mut key);
        key
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new((&*self.unmask()).into())
    }
}
/// BLAKE3 of a page's plain text.
pub type PageHash = [u8; 32];

/// Bytes of a page.
pub(crate) const PAGE: usize = PAGE_BYTES as usize;
/// Bytes before the cipher text: magic, region, page, version, nonce, eight reserved.
pub(crate) const HEADER: usize = 64;
const TAG: usize = 16;
const NONCE: usize = 24;
const NONCE_AT: usize = 32;
/// Bytes of a sealed page.
pub(crate) const SEALED: usize = HEADER + PAGE + TAG;
/// Distance between the slots of the extent file. A multiple of 4 KiB, so that no two slots share
/// a block and writing one can never tear its neighbour.
pub(crate) const STRIDE: u64 = 68 * 1024;
const PAGE_MAGIC: [u8; 8] = *b"DMXPAGE1";

/// Bytes of a key slot: one sector, so that writing one never tears its neighbour.
pub(crate) const KEY_SLOT: usize = 512;
const KEY_MAGIC: [u8; 8] = *b"DMXKEY_1";

/// Hash of a page of zeros, which is what a page is until it is written.
pub(crate) static ZERO_PAGE: LazyLock<PageHash> =
    LazyLock::new(|| *blake3::hash(&[0; PAGE]).as_bytes());

/// Which version of which page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) region: u64,
    pub(crate) page: u32,
    pub(crate) version: u64,
}

impl Address {
    /// The header without its nonce; authenticated as it stands.
    fn header(self) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(&PAGE_MAGIC);
        header[8..16].copy_from_slice(&self.region.to_le_bytes());
        header[16..24].copy_from_slice(&u64::from(self.page).to_le_bytes());
        header[24..32].copy_from_slice(&self.version.to_le_bytes());
        header
    }
}

/// Seals the plain text that stands at `HEADER..HEADER + PAGE` of `buffer`, which has [`SEALED`]
/// bytes, in place, and returns the plain text's hash.
pub(crate) fn seal(
    key: &RegionKey,
    address: Address,
    nonce: [u8; NONCE],
    buffer: &mut [u8],
) -> PageHash {
    assert_eq!(buffer.len(), SEALED, "a sealed page has one size");
    let associated = address.header();
    let hash = *blake3::hash(&buffer[HEADER..HEADER + PAGE]).as_bytes();
    let tag = key
        .cipher()
        .encrypt_inout_detached(
            &XNonce::from(nonce),
            &associated,
            (&mut buffer[HEADER..HEADER + PAGE]).into(),
        )
        .expect("a page is far below the cipher's limit");
    buffer[..HEADER].copy_from_slice(&associated);
    buffer[NONCE_AT..NONCE_AT + NONCE].copy_from_slice(&nonce);
    buffer[HEADER + PAGE..].copy_from_slice(&tag);
    hash
}

/// Opens a sealed page in place and returns its plain text, but only if every check holds: it is
/// the version of the page that the index names, its tag is right, and its hash is `expected` (M2).
pub(crate) fn open<'a>(
    key: &RegionKey,
    address: Address,
    expected: &PageHash,
    buffer: &'a mut [u8],
) -> Option<&'a [u8]> {
    if buffer.len() != SEALED {
        return None;
    }
    let associated = address.header();
    let nonce: [u8; NONCE] = buffer[NONCE_AT..NONCE_AT + NONCE].try_into().ok()?;
    let mut header = associated;
    header[NONCE_AT..NONCE_AT + NONCE].copy_from_slice(&nonce);
    if buffer[..HEADER] != header {
        return None;
    }
    let tag = Tag::try_from(&buffer[HEADER + PAGE..]).ok()?;
    let text = &mut buffer[HEADER..HEADER + PAGE];
    key.cipher()
        .decrypt_inout_detached(&XNonce::from(nonce), &associated, (&mut *text).into(), &tag)
        .ok()?;
    (blake3::hash(text) == *expected).then_some(&*text)
}

/// A key slot that holds the region's key.
pub(crate) fn key_slot(key: &RegionKey) -> Zeroizing<Vec<u8>> {
    let mut slot = Zeroizing::new(vec![0; KEY_SLOT]);
    slot[..8].copy_from_slice(&KEY_MAGIC);
    slot[8..16].copy_from_slice(&key.region.to_le_bytes());
    slot[16..48].copy_from_slice(&key.unmask()[..]);
    let check = blake3::hash(&slot[..48]);
    slot[48..80].copy_from_slice(check.as_bytes());
    slot
}

/// The key of `region`, if the slot holds it undamaged.
pub(crate) fn key_of(mask: &Arc<Mask>, region: u64, slot: &[u8]) -> Option<RegionKey> {
    let whole = slot.len() == KEY_SLOT
        && slot[..8] == KEY_MAGIC
        && slot[8..16] == region.to_le_bytes()
        && blake3::hash(&slot[..48]) == <[u8; 32]>::try_from(&slot[48..80]).ok()?;
    let copy = |masked: &mut [u8; SECRET_BYTES]| {
        masked.copy_from_slice(&slot[16..48]);
        mask.apply(region, masked);
        Ok::<(), Infallible>(())
    };
    whole.then(|| RegionKey::new(mask, region, copy).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: Address = Address { region: 7, page: 3, version: 9 };

    fn mask(byte: u8) -> Arc<Mask> {
        let filled = Mask::new(|mask| {
            mask.fill(byte);
            Ok::<(), ()>(())
        });
        Arc::new(filled.unwrap())
    }

    /// A key that is `byte` 32 times, as a slot gives it.
    fn key(region: u64, byte: u8) -> RegionKey {
        let mask = mask(1);
        let masked = |masked: &mut [u8; SECRET_BYTES]| {
            masked.fill(byte);
            mask.apply(region, masked);
            Ok::<(), ()>(())
        };
        RegionKey::new(&mask, region, masked).unwrap()
    }

    fn unmasked(mask: &Arc<Mask>, region: u64, slot: &[u8]) -> Option<[u8; SECRET_BYTES]> {
        key_of(mask, region, slot).map(|key| *key.unmask())
    }

    fn sealed(key: &RegionKey) -> (Vec<u8>, PageHash) {
        let mut buffer = vec![0x5a; SEALED];
        let hash = seal(key, ADDRESS, [1; NONCE], &mut buffer);
        (buffer, hash)
    }

    #[test]
    fn a_page_opens_only_as_the_page_and_version_that_it_is() {
        let (key, other) = (key(7, 4), key(7, 5));
        let (buffer, hash) = sealed(&key);
        assert_eq!(open(&key, ADDRESS, &hash, &mut buffer.clone()), Some(&[0x5a; PAGE][..]));
        for wrong in [
            Address { region: 8, ..ADDRESS },
            Address { page: 4, ..ADDRESS },
            Address { version: 8, ..ADDRESS },
        ] {
            assert_eq!(open(&key, wrong, &hash, &mut buffer.clone()), None);
        }
        assert_eq!(open(&other, ADDRESS, &hash, &mut buffer.clone()), None);
        assert_eq!(open(&key, ADDRESS, &[0; 32], &mut buffer.clone()), None);
    }

    #[test]
    fn a_flipped_byte_anywhere_in_a_stored_page_is_never_served() {
        let key = key(7, 4);
        let (buffer, hash) = sealed(&key);
        let ends = (0..HEADER + 40).chain(SEALED - 60..SEALED);
        for at in ends.chain((0..SEALED).step_by(4099)) {
            let mut damaged = buffer.clone();
            damaged[at] ^= 0x10;
            assert_eq!(open(&key, ADDRESS, &hash, &mut damaged), None, "byte {at}");
        }
    }

    #[test]
    fn a_stored_page_shows_nothing_of_its_text() {
        let (buffer, _) = sealed(&key(7, 4));
        assert!(!buffer.windows(8).any(|w| w == [0x5a; 8]));
    }

    #[test]
    fn a_key_slot_gives_its_key_to_its_own_region_only_and_not_if_damaged() {
        let (slot, mask) = (key_slot(&key(5, 9)), mask(2));
        assert_eq!(unmasked(&mask, 5, &slot), Some([9; 32]));
        assert_eq!(unmasked(&mask, 6, &slot), None);
        for at in 0..80 {
            let mut damaged = slot.clone();
            damaged[at] ^= 1;
            assert_eq!(unmasked(&mask, 5, &damaged), None, "byte {at}");
        }
        assert_eq!(unmasked(&mask, 0, &[0; KEY_SLOT]), None);
    }

    #[test]
    fn a_key_in_ordinary_memory_tells_nothing_without_the_locked_page() {
        let mut seen = std::collections::BTreeSet::new();
        for (mask, region) in [(mask(1), 5), (mask(1), 6), (mask(2), 5)] {
            let key = key_of(&mask, region, &key_slot(&key(region, 9))).unwrap();
            assert_eq!(*key.unmask(), [9; 32]);
            assert!(key.masked.iter().filter(|byte| **byte == 9).count() < 8, "{:?}", key.masked);
            assert!(seen.insert(key.masked), "one key, masked alike for two regions or starts");
        }
    }
}
