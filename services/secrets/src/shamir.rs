//! Splitting a key among several people, so that any few of them have it and fewer know nothing (A. Shamir, "How to
//! share a secret", 1979), byte by byte over the field of 256 elements that AES uses (FIPS 197, section 4).
//!
//! A share's number is public; what stands for the key in it is secret. Nothing here branches or indexes by a secret:
//! multiplication is by masks. Whether shares make the key that they were split from is not known here: a wrong one gives a
//! wrong key.

use std::fmt;

use distos_abi::Fault;
use distos_types::{SECRET_BYTES, SecretPage};
use zeroize::{Zeroize, Zeroizing};

/// The most shares that a key is split into.
pub const MAX_SHARES: u8 = 32;
/// Bytes of a share as it is written down.
pub const SHARE_BYTES: usize = 1 + ID_BYTES + 2 + SECRET_BYTES + CHECK_BYTES;
/// Bytes of what names a key.
pub const ID_BYTES: usize = 16;

const VERSION: u8 = 1;
const CHECK_BYTES: usize = 4;

/// How many shares there are, and how many of them make the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheme {
    threshold: u8,
    shares: u8,
}

impl Scheme {
    /// `threshold` of `shares`. [`Fault::Malformed`] unless that is 2 ≤ threshold ≤ shares ≤ [`MAX_SHARES`], or 1 of 1.
    pub fn new(threshold: u8, shares: u8) -> Result<Scheme, Fault> {
        let is_split = threshold >= 2 && threshold <= shares && shares <= MAX_SHARES;
        if is_split || (threshold, shares) == (1, 1) {
            return Ok(Scheme { threshold, shares });
        }
        Err(Fault::malformed(format!(
            "{threshold} of {shares} shares: the threshold is at least 2 and at most the number of shares, of which \
             there are at most {MAX_SHARES}; or 1 of 1"
        )))
    }

    /// How many make the key.
    pub fn threshold(self) -> u8 {
        self.threshold
    }

    /// How many there are.
    pub fn shares(self) -> u8 {
        self.shares
    }
}

/// A share of a key. Erased when dropped, never shown by `Debug`.
pub struct Share {
    /// Which key's.
    pub id: [u8; ID_BYTES],
    /// How many make the key.
    pub threshold: u8,
    /// Which one, from 1.
    pub number: u8,
    /// In one place, however often the share moves: what moves leaves its old bytes behind.
    bytes: Box<[u8; SECRET_BYTES]>,
}

impl Share {
    /// As it is given to an operator: version, id, threshold, number, the share, and four bytes of BLAKE3 over these,
    /// which find a slip of the pen.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut out = Zeroizing::new(Vec::with_capacity(SHARE_BYTES));
        out.push(VERSION);
        out.extend(self.id);
        out.extend([self.threshold, self.number]);
        out.extend(&self.bytes[..]);
        let check = blake3::hash(&out);
        out.extend(&check.as_bytes()[..CHECK_BYTES]);
        out
    }

    /// Reads [`Share::encode`]. [`Fault::Malformed`] says what is wrong, and repeats none of it.
    pub fn decode(bytes: &[u8]) -> Result<Share, Fault> {
        if bytes.len() != SHARE_BYTES {
            return Err(Fault::malformed(format!(
                "a share has {SHARE_BYTES} bytes, not {}: copy it again, whole",
                bytes.len()
            )));
        }
        let (body, check) = bytes.split_at(SHARE_BYTES - CHECK_BYTES);
        if blake3::hash(body).as_bytes()[..CHECK_BYTES] != *check {
            return Err(Fault::malformed("a share does not match its checksum: copy it again"));
        }
        if body[0] != VERSION {
            return Err(Fault::malformed("a share of a newer DistOS: use that one"));
        }
        let (id, rest) = body[1..].split_at(ID_BYTES);
        let (threshold, number) = (rest[0], rest[1]);
        if !(1..=MAX_SHARES).contains(&number) {
            return Err(Fault::malformed("a share has a number that none has"));
        }
        let mut share = Share { id: [0; ID_BYTES], threshold, number, bytes: Box::default() };
        share.id.copy_from_slice(id);
        share.bytes.copy_from_slice(&rest[2..]);
        Ok(share)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Share({} of {}, …)", self.number, hex::encode(self.id))
    }
}

/// Splits `key`. `random` fills bytes that nobody can guess; its error is passed on.
pub fn split<E>(
    key: &SecretPage,
    id: [u8; ID_BYTES],
    scheme: Scheme,
    mut random: impl FnMut(&mut [u8]) -> Result<(), E>,
) -> Result<Vec<Share>, E> {
    // A polynomial for each byte of the key, which is its value at zero: coefficients of each degree from 1 on. A
    // coefficient may be zero, also the highest: all polynomials are equally likely, or fewer shares would tell something.
    let degree = usize::from(scheme.threshold - 1);
    let mut coefficients = Zeroizing::new(vec![0u8; degree * SECRET_BYTES]);
    random(&mut coefficients)?;
    let shares = (1..=scheme.shares).map(|number| {
        let mut bytes = Box::new([0; SECRET_BYTES]);
        for (at, byte) in bytes.iter_mut().enumerate() {
            // Horner's rule, from the highest degree down.
            let above = (0..degree).rev().map(|d| coefficients[d * SECRET_BYTES + at]);
            let sum = above.fold(0, |sum, coefficient| mul(sum, number) ^ coefficient);
            *byte = mul(sum, number) ^ key.expose()[at];
        }
        Share { id, threshold: scheme.threshold, number, bytes }
    });
    Ok(shares.collect())
}

/// The key of which these are shares, if they are enough and of one key. Their numbers differ.
///
/// [`Fault::Malformed`] if two have the same number, or there are none.
pub fn combine(shares: &[Share]) -> Result<SecretPage, Fault> {
    let numbers: Vec<u8> = shares.iter().map(|share| share.number).collect();
    let repeated = numbers.iter().enumerate().any(|(at, n)| numbers[..at].contains(n));
    if shares.is_empty() || repeated {
        return Err(Fault::malformed("shares of different numbers are needed"));
    }
    SecretPage::fill(|key| {
        key.fill(0);
        for share in shares {
            let weight = weight(share.number, &numbers);
            key.iter_mut().zip(&*share.bytes).for_each(|(key, byte)| *key ^= mul(*byte, weight));
        }
        Ok(())
    })
}

/// Lagrange's coefficient at zero of the share `number` among `numbers`, all of them public and none zero.
fn weight(number: u8, numbers: &[u8]) -> u8 {
    let others = numbers.iter().filter(|other| **other != number);
    others.fold(1, |product, other| mul(product, mul(*other, inverse(*other ^ number))))
}

/// The product in the field, in the same time whatever the factors are.
fn mul(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    for _ in 0..8 {
        product ^= a & mask(b & 1);
        let carried = mask(a >> 7);
        a = (a << 1) ^ (0x1b & carried);
        b >>= 1;
    }
    product
}

/// All ones for 1, zero for 0.
fn mask(bit: u8) -> u8 {
    0u8.wrapping_sub(bit)
}

/// The inverse of what is not zero: its 254th power.
fn inverse(a: u8) -> u8 {
    let (mut power, mut square) = (1, a);
    for _ in 0..7 {
        square = mul(square, square);
        power = mul(power, square);
    }
    power
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::convert::Infallible;

    const ID: [u8; ID_BYTES] = [5; ID_BYTES];

    fn key(bytes: [u8; SECRET_BYTES]) -> SecretPage {
        let Ok(key) = SecretPage::fill::<Infallible>(|place| {
            *place = bytes;
            Ok(())
        });
        key
    }

    /// Not random, but different in each byte.
    fn stream(seed: u64) -> impl FnMut(&mut [u8]) -> Result<(), Infallible> {
        move |out| {
            blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(out);
            Ok(())
        }
    }

    fn made(bytes: [u8; SECRET_BYTES], threshold: u8, shares: u8) -> Vec<Share> {
        let Ok(made) = split(&key(bytes), ID, Scheme::new(threshold, shares).unwrap(), stream(1));
        made
    }

    #[test]
    fn the_field_is_that_of_aes() {
        // FIPS 197, section 4.2.
        assert_eq!(mul(0x57, 0x83), 0xc1);
        assert_eq!(mul(0x57, 0x13), 0xfe);
        for a in 1..=255 {
            assert_eq!(mul(a, inverse(a)), 1, "{a}");
            assert_eq!((mul(a, 1), mul(a, 0)), (a, 0));
        }
        for (a, b, c) in [(3, 9, 200), (255, 254, 77), (128, 128, 1)] {
            assert_eq!(mul(a, mul(b, c)), mul(mul(a, b), c));
            assert_eq!(mul(a, b ^ c), mul(a, b) ^ mul(a, c));
        }
    }

    #[test]
    fn any_few_of_the_operators_have_the_key() {
        let all = made([0xab; 32], 3, 5);
        for a in 0..5 {
            for b in (0..5).filter(|b| *b != a) {
                for c in (0..5).filter(|c| *c != a && *c != b) {
                    let some = [a, b, c].map(|n| Share::decode(&all[n].encode()).unwrap());
                    assert_eq!(combine(&some).unwrap().expose(), &[0xab; 32]);
                }
            }
        }
        assert_eq!(combine(&all).unwrap().expose(), &[0xab; 32], "and more than enough");
    }

    /// For each byte of the key there is one polynomial of the degree that gives the shares that a thief has: the shares
    /// fit every key equally.
    #[test]
    fn one_operator_too_few_knows_nothing_of_the_key() {
        let thief = &made([0xab; 32], 2, 2)[0];
        let mut fits = std::collections::BTreeSet::new();
        for byte in 0..=255u8 {
            // The share that would make the key with `byte` in front, if the thief found it.
            let other = |y: u8| Share { id: ID, threshold: 2, number: 2, bytes: Box::new([y; 32]) };
            let mine = Share::decode(&thief.encode()).unwrap();
            fits.insert(combine(&[mine, other(byte)]).unwrap().expose()[0]);
        }
        assert_eq!(fits.len(), 256);
        assert_ne!(combine(std::slice::from_ref(thief)).unwrap().expose(), &[0xab; 32]);
    }

    #[test]
    fn a_mistyped_share_is_told_and_none_of_it_shown() {
        let share = &made([7; 32], 2, 3)[0];
        let bytes = share.encode();
        for at in 0..bytes.len() {
            let mut wrong = bytes.clone();
            wrong[at] ^= 1;
            let fault = Share::decode(&wrong).unwrap_err();
            assert!(fault.to_string().contains("checksum"), "{fault}");
            assert!(Share::decode(&bytes[..at]).is_err());
        }
        assert!(!format!("{share:?}").contains(&hex::encode(&share.bytes[..2])), "{share:?}");
    }

    #[test]
    fn a_share_given_twice_is_one_share() {
        let share = || made([7; 32], 2, 3).swap_remove(0);
        assert!(combine(&[share(), share()]).is_err());
        assert!(combine(&[]).is_err());
    }

    #[test]
    fn schemes_that_protect_nothing_by_mistake_are_refused() {
        for (threshold, shares) in [(0, 0), (0, 3), (1, 3), (4, 3), (2, 33), (2, 1)] {
            assert!(Scheme::new(threshold, shares).is_err(), "{threshold} of {shares}");
        }
        assert!(Scheme::new(1, 1).is_ok(), "for a node of one operator's own");
    }

    proptest! {
        #[test]
        fn whatever_is_split_is_put_together_again(
            bytes: [u8; 32], threshold in 2u8..8, more in 0u8..5, skip in 0usize..5, seed: u64,
        ) {
            let scheme = Scheme::new(threshold, threshold + more).unwrap();
            let Ok(mut shares) = split(&key(bytes), ID, scheme, stream(seed));
            let skip = skip.min(usize::from(more));
            let some = shares.split_off(skip);
            let some = &some[..usize::from(threshold)];
            let whole = combine(some).unwrap();
            prop_assert_eq!(whole.expose(), &bytes);
            let fewer = combine(&some[1..]).unwrap();
            prop_assert_ne!(fewer.expose(), &bytes);
        }
    }
}
