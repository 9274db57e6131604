//! A secret for one key in one TPM (TPM 2.0 Library, Part 1, 24; Part 3, `TPM2_MakeCredential`), made in software.
//!
//! Whoever makes it needs the public half of the TPM's endorsement key, and the name of the key that is to be in the same
//! TPM. The TPM gives the secret back only if that key is loaded in it. So it proves to whoever made it, by what is done
//! with the secret, that both keys are in one TPM; and if the endorsement key is known to be a TPM's, that it is one.

use aes::Aes128;
use aes::cipher::{BlockCipherEncrypt as _, KeyInit as _};
use hmac::{Hmac, Mac as _};
use p256::elliptic_curve::point::AffineCoordinates as _;
use p256::elliptic_curve::sec1::ToEncodedPoint as _;
use p256::{NonZeroScalar, ProjectivePoint, PublicKey, SecretKey};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::evidence::{ALG_ECC, ALG_NULL, ALG_SHA256, CURVE_P256, name_of, point_of};
use crate::wire::{Broken, Reader, Writer};

const ALG_AES: u16 = 0x0006;
const ALG_CFB: u16 = 0x0043;
/// fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy, restricted, decrypt.
const EK_ATTRIBUTES: u32 = 0x0003_00b2;
/// `PolicySecret` of the endorsement hierarchy, as all endorsement keys of templates L-1 and L-2 have it.
const EK_POLICY: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24,
    0xfd, 0x52, 0xd7, 0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
];
/// `TPM2B` of a number of P-256, or of a SHA-256 digest.
const SIZED_BYTES: u16 = 34;

/// An endorsement key's public part, of the one shape that DistOS accepts: the P-256 storage key that every PC's TPM makes
/// from template L-2 (TCG EK Credential Profile for TPM 2.0, B.3.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndorsementKey {
    public: Vec<u8>,
    key: PublicKey,
}

impl EndorsementKey {
    /// From a `TPMT_PUBLIC` structure, whose every field is checked.
    ///
    /// # Errors
    /// [`Broken`] names the field that is not as the template has it, or that the point is on no curve.
    pub fn from_public(public: &[u8]) -> Result<EndorsementKey, Broken> {
        let point = point_of(public, &shape(), "the key's type, attributes and policy")?;
        let key = PublicKey::from_sec1_bytes(&point).map_err(|_| Broken("the key's point"))?;
        Ok(EndorsementKey { public: public.to_vec(), key })
    }

    /// The `TPMT_PUBLIC` structure.
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// The key's TPM name, by which whoever has the machine in hand tells others which one it is.
    pub fn name(&self) -> [u8; 34] {
        name_of(Sha256::digest(&self.public).into())
    }
}

/// What an endorsement key is made from: `TPMT_PUBLIC` of template L-2.
pub fn endorsement_template() -> Vec<u8> {
    // The unique field is part of what the key follows from.
    Writer::default().bytes(&shape()).sized(&[0; 32]).sized(&[0; 32]).done()
}

/// `TPMT_PUBLIC` up to its point.
fn shape() -> Vec<u8> {
    Writer::default()
        .u16(ALG_ECC)
        .u16(ALG_SHA256)
        .u32(EK_ATTRIBUTES)
        .sized(&EK_POLICY)
        .u16(ALG_AES)
        .u16(128)
        .u16(ALG_CFB)
        .u16(ALG_NULL)
        .u16(CURVE_P256)
        .u16(ALG_NULL)
        .done()
}

/// A secret that only one TPM gives back. Of exactly the form that [`make_credential`] makes: it goes into a command to
/// a TPM, and whatever is longer might be more than that command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    blob: Vec<u8>,
    secret: Vec<u8>,
}

impl Credential {
    /// From a `TPM2B_ID_OBJECT` and a `TPM2B_ENCRYPTED_SECRET`.
    ///
    /// # Errors
    /// [`Broken`] names what is of another form.
    pub fn parse(blob: &[u8], secret: &[u8]) -> Result<Credential, Broken> {
        let whole = |bytes, field| {
            let mut outer = Reader::new(bytes);
            let inner = outer.sized(field)?;
            outer.end(field)?;
            Ok::<_, Broken>(Reader::new(inner))
        };
        let field = "the credential";
        let mut r = whole(blob, field)?;
        if r.sized(field)?.len() != 32 || r.rest().len() != usize::from(SIZED_BYTES) {
            return Err(Broken(field));
        }
        let field = "the credential's secret";
        let mut r = whole(secret, field)?;
        for _ in 0..2 {
            if r.sized(field)?.len() != 32 {
                return Err(Broken(field));
            }
        }
        r.end(field)?;
        Ok(Credential { blob: blob.to_vec(), secret: secret.to_vec() })
    }

    /// `TPM2B_ID_OBJECT`: a MAC, and a secret that is encrypted.
    pub fn blob(&self) -> &[u8] {
        &self.blob
    }

    /// `TPM2B_ENCRYPTED_SECRET`: a point of P-256.
    pub fn secret(&self) -> &[u8] {
        &self.secret
    }
}

/// Makes `secret` one that only the TPM of `ek` gives back, and only while a key with the name `ak_name` is loaded there.
/// `ephemeral` is random and used for nothing else; `None` if it is no private key, which one in 2³² is not.
pub fn make_credential(
    ek: &EndorsementKey,
    ak_name: &[u8; 34],
    secret: &[u8; 32],
    ephemeral: &Zeroizing<[u8; 32]>,
) -> Option<Credential> {
    let own = SecretKey::from_slice(&ephemeral[..]).ok()?;
    let own_point = own.public_key().to_encoded_point(false);
    let ek_point = ek.key.to_encoded_point(false);
    let shared = shared(ek, &own.to_nonzero_scalar());
    let seed = kdf_e(&shared, own_point.x()?, ek_point.x()?);
    let mut encrypted = Zeroizing::new(Writer::default().sized(secret).done());
    cfb(&kdf_a(&seed, b"STORAGE\0", ak_name, 128), &mut encrypted);
    let key = kdf_a(&seed, b"INTEGRITY\0", &[], 256);
    let integrity = hmac(&key[..], &[&encrypted, ak_name]);
    let body = Writer::default().sized(&integrity).bytes(&encrypted).done();
    let point = Writer::default().sized(own_point.x()?).sized(own_point.y()?).done();
    debug_assert_eq!(point.len(), 2 * usize::from(SIZED_BYTES));
    Some(Credential {
        blob: Writer::default().sized(&body).done(),
        secret: Writer::default().sized(&point).done(),
    })
}

/// The x coordinate of what both sides agree on.
fn shared(ek: &EndorsementKey, own: &NonZeroScalar) -> Zeroizing<[u8; 32]> {
    let point = ProjectivePoint::from(*ek.key.as_affine()) * **own;
    Zeroizing::new(point.to_affine().x().into())
}

/// KDFe (Part 1, 11.4.10.3) with SHA-256, one block, for `IDENTITY`.
fn kdf_e(shared: &[u8; 32], own_x: &[u8], ek_x: &[u8]) -> Zeroizing<[u8; 32]> {
    let hash = Sha256::new()
        .chain_update(1u32.to_be_bytes())
        .chain_update(shared)
        .chain_update(b"IDENTITY\0")
        .chain_update(own_x)
        .chain_update(ek_x);
    Zeroizing::new(hash.finalize().into())
}

/// KDFa (Part 1, 11.4.10.2) with HMAC-SHA-256, one block of `bits`.
fn kdf_a(seed: &[u8; 32], label: &[u8], context: &[u8], bits: u32) -> Zeroizing<Vec<u8>> {
    let parts = [&1u32.to_be_bytes()[..], label, context, &bits.to_be_bytes()];
    let mut block = Zeroizing::new(hmac(seed, &parts).to_vec());
    block.truncate((bits / 8) as usize);
    block
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = <Hmac<Sha256> as hmac::Mac>::new_from_slice(key).expect("any key will do");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

/// AES-128 in CFB mode with an empty vector, in place. A key is used for one text.
fn cfb(key: &[u8], text: &mut [u8]) {
    let cipher = Aes128::new_from_slice(key).expect("a key of 128 bits");
    let mut vector = [0; 16];
    for block in text.chunks_mut(vector.len()) {
        let mut stream = vector.into();
        cipher.encrypt_block(&mut stream);
        for (at, byte) in block.iter_mut().enumerate() {
            *byte ^= stream[at];
            vector[at] = *byte;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn public(seed: u8) -> Vec<u8> {
        let secret = SecretKey::from_slice(&[seed; 32]).unwrap();
        let point = secret.public_key().to_encoded_point(false);
        let (x, y) = (point.x().unwrap(), point.y().unwrap());
        Writer::default().bytes(&shape()).sized(x).sized(y).done()
    }

    #[test]
    fn a_key_of_another_shape_or_on_no_curve_is_no_endorsement_key() {
        let good = public(3);
        assert_eq!(EndorsementKey::from_public(&good).unwrap().public(), good);
        assert!(EndorsementKey::from_public(&endorsement_template()).is_err(), "no point");
        assert_eq!(endorsement_template().len(), good.len());
        for at in 0..good.len() {
            let mut other = good.clone();
            other[at] ^= 1;
            assert!(EndorsementKey::from_public(&other).is_err(), "{at}");
        }
        let longer = [&good[..], &[0]].concat();
        assert!(EndorsementKey::from_public(&longer).is_err());
        assert!(EndorsementKey::from_public(&good[..good.len() - 1]).is_err());
    }

    /// AES-128 in CFB mode, NIST SP 800-38A, F.3.13, with its vector as the first block of ours: what CFB gives for a text
    /// of zeros is what it starts the next block with.
    #[test]
    fn the_cipher_is_aes_in_cfb_mode() {
        let key = hex::decode("2b7e151628aed2a6abf7158809cf4f3c").unwrap();
        // The stream of the first block is AES of zeros; then what is encrypted there is the vector.
        let mut zeros = [0; 16];
        cfb(&key, &mut zeros);
        let vector: Vec<u8> = (0..16).collect();
        let first: Vec<u8> = zeros.iter().zip(&vector).map(|(a, b)| a ^ b).collect();
        let text = hex::decode("6bc1bee22e409f96e93d7e117393172aae2d8a571e03").unwrap();
        let mut all = [first, text].concat();
        cfb(&key, &mut all);
        assert_eq!(all[..16], vector);
        assert_eq!(hex::encode(&all[16..]), "3b3fd92eb72dad20333449f8e83cfb4ac8a64537a0b3");
    }

    /// Or whoever changes a file on its way sends commands of their own to somebody's TPM behind it.
    #[test]
    fn nothing_is_a_credential_that_is_longer_shorter_or_otherwise_made() {
        let ek = EndorsementKey::from_public(&public(3)).unwrap();
        let made = make_credential(&ek, &[1; 34], &[1; 32], &Zeroizing::new([1; 32])).unwrap();
        assert_eq!(Credential::parse(made.blob(), made.secret()), Ok(made.clone()));
        let (blob, secret) = (made.blob().to_vec(), made.secret().to_vec());
        let longer = |bytes: &[u8]| [bytes, &[0]].concat();
        let inner = |bytes: &[u8], more: u8| {
            let mut bytes = longer(bytes);
            bytes[1] += more;
            bytes
        };
        for (blob, secret) in [
            (longer(&blob), secret.clone()),
            (inner(&blob, 1), secret.clone()),
            (blob.clone(), longer(&secret)),
            (blob.clone(), inner(&secret, 1)),
            (blob[..69].to_vec(), secret.clone()),
            (blob.clone(), secret[..69].to_vec()),
            (Vec::new(), secret.clone()),
            (blob.clone(), Vec::new()),
            (vec![0, 0], vec![0, 0]),
            (vec![0xff; 70], vec![0xff; 70]),
        ] {
            assert!(Credential::parse(&blob, &secret).is_err(), "{blob:?} {secret:?}");
        }
        // The lengths within.
        for at in [0, 1, 2, 3] {
            let mut changed = blob.clone();
            changed[at] ^= 1;
            assert!(Credential::parse(&changed, &secret).is_err(), "{at}");
        }
        for at in [0, 1, 2, 3, 36, 37] {
            let mut changed = secret.clone();
            changed[at] ^= 1;
            assert!(Credential::parse(&blob, &changed).is_err(), "{at}");
        }
    }

    #[test]
    fn a_credential_is_another_for_each_key_secret_and_ephemeral() {
        let (ek, other) =
            [3, 4].map(|seed| EndorsementKey::from_public(&public(seed)).unwrap()).into();
        let made = |ek: &EndorsementKey, name: u8, secret: u8, own: u8| {
            make_credential(ek, &[name; 34], &[secret; 32], &Zeroizing::new([own; 32])).unwrap()
        };
        let first = made(&ek, 1, 1, 1);
        assert_eq!((first.blob.len(), first.secret.len()), (2 + 34 + 34, 2 + 68));
        assert_eq!(first, made(&ek, 1, 1, 1));
        for another in
            [made(&other, 1, 1, 1), made(&ek, 2, 1, 1), made(&ek, 1, 2, 1), made(&ek, 1, 1, 2)]
        {
            assert_ne!(first.blob, another.blob);
        }
        assert_eq!(make_credential(&ek, &[1; 34], &[1; 32], &Zeroizing::new([0; 32])), None);
        assert_eq!(make_credential(&ek, &[1; 34], &[1; 32], &Zeroizing::new([0xff; 32])), None);
    }
}
