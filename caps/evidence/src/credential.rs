//! A secret for one key in one TPM (TPM 2.0 Library, Part 1, 24; Part 3, `TPM2_MakeCredential`), made in software.
//!
//! Whoever makes it needs the public half of the TPM's endorsement key, and the name of the key that is to be in the same
//! TPM. The TPM gives the secret back only if that key is loaded in it. So it proves to whoever made it, by what is done
//! with the secret, that both keys are in one TPM; and if the endorsement key is known to be a TPM's, that it is one.
//!
//! For an RSA endorsement key the padding is random by itself: the library that pads draws it, as this crate draws none.
//! What the secret is encrypted with is an argument for every key.

use aes::cipher::KeyInit as _;
use aes::{Aes128, Aes256};
use aws_lc_rs::agreement::{self, ParsedPublicKey, PrivateKey, UnparsedPublicKey, agree};
use aws_lc_rs::rsa::{
    OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey, PublicKeyComponents,
};
use hmac::Hmac;
use sha2::{Sha256, Sha384};
use zeroize::Zeroizing;

use crate::evidence::{ALG_ECC, ALG_NULL, ALG_SHA256, CURVE_P256};
use crate::wire::{Broken, Reader, Writer};

const ALG_RSA: u16 = 0x0001;
const ALG_AES: u16 = 0x0006;
const ALG_SHA384: u16 = 0x000c;
const ALG_CFB: u16 = 0x0043;
const CURVE_P384: u16 = 0x0004;
const RSA_BITS: u16 = 2048;
const RSA_BYTES: usize = RSA_BITS as usize / 8;
/// The exponent for which a TPM's zero stands: 65537.
const RSA_EXPONENT: [u8; 3] = [1, 0, 1];
/// fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy, restricted, decrypt.
const LOW_ATTRIBUTES: u32 = 0x0003_00b2;
/// The same, and userWithAuth. Its password is not used, though it is empty: a TPM that is then cut off counts one try
/// at guessing it (Part 1, 19.8).
const HIGH_ATTRIBUTES: u32 = 0x0003_00f2;
/// `PolicyA` of SHA-256: `PolicySecret` of the endorsement hierarchy (TCG EK Credential Profile, B.6).
const LOW_POLICY: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24,
    0xfd, 0x52, 0xd7, 0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
];
/// `PolicyB` of SHA-384: that, or a policy that is stored in an NV index (`PolicyAuthorizeNV`).
const HIGH_POLICY: [u8; 48] = [
    0xb2, 0x6e, 0x7d, 0x28, 0xd1, 0x1a, 0x50, 0xbc, 0x53, 0xd8, 0x82, 0xbc, 0xf5, 0xfd, 0x3a, 0x1a,
    0x07, 0x41, 0x48, 0xbb, 0x35, 0xd3, 0xb4, 0xe4, 0xcb, 0x1c, 0x0a, 0xd9, 0xbd, 0xe4, 0x19, 0xca,
    0xcb, 0x47, 0xba, 0x09, 0x69, 0x96, 0x46, 0x15, 0x0f, 0x9f, 0xc0, 0x00, 0xf3, 0xf8, 0x0e, 0x12,
];
/// `PolicyA` and `PolicyC` of SHA-384, of which [`HIGH_POLICY`] is made.
const HIGH_BRANCHES: [[u8; 48]; 2] = [
    [
        0x8b, 0xbf, 0x22, 0x66, 0x53, 0x7c, 0x17, 0x1c, 0xb5, 0x6e, 0x40, 0x3c, 0x4d, 0xc1, 0xd4,
        0xb6, 0x4f, 0x43, 0x26, 0x11, 0xdc, 0x38, 0x6e, 0x6f, 0x53, 0x20, 0x50, 0xc3, 0x27, 0x8c,
        0x93, 0x0e, 0x14, 0x3e, 0x8b, 0xb1, 0x13, 0x38, 0x24, 0xcc, 0xb4, 0x31, 0x05, 0x38, 0x71,
        0xc6, 0xdb, 0x53,
    ],
    [
        0xd6, 0x03, 0x2c, 0xe6, 0x1f, 0x2f, 0xb3, 0xc2, 0x40, 0xeb, 0x3c, 0xf6, 0xa3, 0x32, 0x37,
        0xef, 0x2b, 0x6a, 0x16, 0xf4, 0x29, 0x3c, 0x22, 0xb4, 0x55, 0xe2, 0x61, 0xcf, 0xfd, 0x21,
        0x7a, 0xd5, 0xb4, 0x94, 0x7c, 0x2d, 0x73, 0xe6, 0x30, 0x05, 0xee, 0xd2, 0xdc, 0x2b, 0x35,
        0x93, 0xd1, 0x65,
    ],
];
/// What is kept in a credential, in bytes.
const SECRET_BYTES: usize = 32;
/// The random bytes that a credential takes at most.
pub const EPHEMERAL_BYTES: usize = 48;
/// What a secret is encrypted for (Part 1, B.10.4 and C.6.4).
const IDENTITY: &[u8] = b"IDENTITY\0";

/// From what an endorsement key is made (TCG EK Credential Profile for TPM 2.0, B.3 and B.4). Equal templates and the
/// same seed in the TPM give the same key for the life of the TPM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Template {
    /// L-2: P-256, SHA-256 and AES-128. Every PC's TPM makes it.
    P256,
    /// H-3: P-384, SHA-384 and AES-256.
    P384,
    /// L-1: RSA with 2048 bits, SHA-256 and AES-128. Every PC's TPM makes it, some in many seconds.
    Rsa2048,
}

impl Template {
    /// Those that are taken, the one first that a TPM is soonest done with.
    pub const ALL: [Template; 3] = [Template::P256, Template::P384, Template::Rsa2048];

    /// The NV index at which a TPM's maker leaves the key's certificate (TCG EK Credential Profile, 2.2.1.4 and 2.2.1.5).
    pub fn certificate_index(self) -> u32 {
        match self {
            Template::Rsa2048 => 0x01c0_0002,
            Template::P256 => 0x01c0_000a,
            Template::P384 => 0x01c0_0016,
        }
    }

    /// `TPM_ALG_ID` of the hash of the key's name and policy.
    pub fn hash_algorithm(self) -> u16 {
        match self.hash() {
            Hash::Sha256 => ALG_SHA256,
            Hash::Sha384 => ALG_SHA384,
        }
    }

    /// Of what the key's policy wants one (`TPM2_PolicyOR`), of which the endorsement hierarchy's authorization
    /// (`TPM2_PolicySecret`) is the first; none if that is the policy itself.
    pub fn policy_branches(self) -> &'static [[u8; 48]] {
        match self {
            Template::P256 | Template::Rsa2048 => &[],
            Template::P384 => &HIGH_BRANCHES,
        }
    }

    /// `TPMT_PUBLIC` from which a TPM makes the key. The unique field is part of what the key follows from.
    pub fn public(self) -> Vec<u8> {
        let shape = Writer::default().bytes(&self.shape());
        match self {
            Template::P256 => shape.sized(&[0; 32]).sized(&[0; 32]).done(),
            Template::P384 => shape.sized(&[]).sized(&[]).done(),
            Template::Rsa2048 => shape.sized(&[0; RSA_BYTES]).done(),
        }
    }

    /// `TPMT_PUBLIC` up to its unique field.
    fn shape(self) -> Vec<u8> {
        let start = |kind: u16, attributes: u32, policy: &[u8]| {
            let key_bits = 8 * self.aes_bytes() as u16;
            let start = Writer::default()
                .u16(kind)
                .u16(self.hash_algorithm())
                .u32(attributes)
                .sized(policy);
            start.u16(ALG_AES).u16(key_bits).u16(ALG_CFB).u16(ALG_NULL)
        };
        match self {
            Template::P256 => {
                start(ALG_ECC, LOW_ATTRIBUTES, &LOW_POLICY).u16(CURVE_P256).u16(ALG_NULL)
            }
            Template::P384 => {
                start(ALG_ECC, HIGH_ATTRIBUTES, &HIGH_POLICY).u16(CURVE_P384).u16(ALG_NULL)
            }
            Template::Rsa2048 => start(ALG_RSA, LOW_ATTRIBUTES, &LOW_POLICY).u16(RSA_BITS).u32(0),
        }
        .done()
    }

    fn hash(self) -> Hash {
        match self {
            Template::P256 | Template::Rsa2048 => Hash::Sha256,
            Template::P384 => Hash::Sha384,
        }
    }

    fn aes_bytes(self) -> usize {
        match self {
            Template::P256 | Template::Rsa2048 => 16,
            Template::P384 => 32,
        }
    }

    /// Of an elliptic curve, and how many bytes its numbers have.
    fn curve(self) -> Option<(&'static agreement::Algorithm, usize)> {
        match self {
            Template::P256 => Some((&agreement::ECDH_P256, 32)),
            Template::P384 => Some((&agreement::ECDH_P384, 48)),
            Template::Rsa2048 => None,
        }
    }
}

/// An endorsement key's public part, of a shape that DistOS accepts: those of the [`Template`]s.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndorsementKey {
    template: Template,
    public: Vec<u8>,
    /// A point that is not compressed (SEC 1), or a modulus.
    key: Vec<u8>,
}

impl EndorsementKey {
    /// From a `TPMT_PUBLIC` structure, whose every field is checked.
    ///
    /// # Errors
    /// [`Broken`] names the field that is not as a template has it, or that the point is on no curve.
    pub fn from_public(public: &[u8]) -> Result<EndorsementKey, Broken> {
        let what = "the key's type, attributes and policy";
        let (template, unique) = Template::ALL
            .into_iter()
            .find_map(|template| Some((template, public.strip_prefix(&template.shape()[..])?)))
            .ok_or(Broken(what))?;
        let mut r = Reader::new(unique);
        let key = match template.curve() {
            Some((curve, len)) => {
                let field = "the key's point";
                let point = point(r.sized(field)?, r.sized(field)?, len).ok_or(Broken(field))?;
                ParsedPublicKey::try_from(UnparsedPublicKey::new(curve, &point))
                    .map_err(|_| Broken(field))?;
                point
            }
            None => {
                let field = "the key's modulus";
                let modulus = r.sized(field)?;
                let is_whole = modulus.len() == RSA_BYTES && modulus[0] & 0x80 != 0;
                if !is_whole || modulus[RSA_BYTES - 1] & 1 == 0 {
                    return Err(Broken(field));
                }
                encrypting(modulus).ok_or(Broken(field))?;
                modulus.to_vec()
            }
        };
        r.end("the end of the key")?;
        Ok(EndorsementKey { template, public: public.to_vec(), key })
    }

    /// From what it is made.
    pub fn template(&self) -> Template {
        self.template
    }

    /// The `TPMT_PUBLIC` structure.
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// The key alone: a point that is not compressed (SEC 1), or a modulus of 256 bytes, whose exponent is 65537.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// The key's TPM name, by which whoever has the machine in hand tells others which one it is: two bytes for the
    /// hash algorithm, and the hash, so that its beginning says how long it is.
    pub fn name(&self) -> Vec<u8> {
        let hash = self.template.hash();
        let algorithm = self.template.hash_algorithm();
        Writer::default().u16(algorithm).bytes(&hash.of(&[&self.public])).done()
    }
}

/// Whether bytes have the length of an endorsement key's [name](EndorsementKey::name).
pub fn is_name_long(bytes: usize) -> bool {
    Template::ALL.iter().any(|template| bytes == 2 + template.hash().bytes())
}

/// A point that is not compressed, if its coordinates have their full length.
fn point(x: &[u8], y: &[u8], len: usize) -> Option<Vec<u8>> {
    (x.len() == len && y.len() == len).then(|| [&[4], x, y].concat())
}

fn encrypting(modulus: &[u8]) -> Option<OaepPublicEncryptingKey> {
    let components = PublicKeyComponents { n: modulus, e: &RSA_EXPONENT[..] };
    let key: PublicEncryptingKey = components.try_into().ok()?;
    OaepPublicEncryptingKey::new(key).ok()
}

/// A secret that only one TPM gives back. Of exactly the form that [`make_credential`] makes: it goes into a command to
/// a TPM, and whatever is longer might be more than that command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    template: Template,
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
            Ok::<_, Broken>(inner)
        };
        let field = "the credential's secret";
        let inner = whole(secret, field)?;
        let template = Template::ALL
            .into_iter()
            .find(|template| is_secret_of(*template, inner))
            .ok_or(Broken(field))?;
        let field = "the credential";
        let mut r = Reader::new(whole(blob, field)?);
        let is_mac = r.sized(field)?.len() == template.hash().bytes();
        if !is_mac || r.rest().len() != 2 + SECRET_BYTES {
            return Err(Broken(field));
        }
        Ok(Credential { template, blob: blob.to_vec(), secret: secret.to_vec() })
    }

    /// For what kind of endorsement key it is made.
    pub fn template(&self) -> Template {
        self.template
    }

    /// `TPM2B_ID_OBJECT`: a MAC, and a secret that is encrypted.
    pub fn blob(&self) -> &[u8] {
        &self.blob
    }

    /// `TPM2B_ENCRYPTED_SECRET`: a point, or a seed that is encrypted with RSA.
    pub fn secret(&self) -> &[u8] {
        &self.secret
    }
}

/// Whether what is in a `TPM2B_ENCRYPTED_SECRET` has the form of one for such a key.
fn is_secret_of(template: Template, inner: &[u8]) -> bool {
    let Some((_, len)) = template.curve() else { return inner.len() == RSA_BYTES };
    let mut r = Reader::new(inner);
    let mut is_number = || r.sized("").is_ok_and(|number| number.len() == len);
    is_number() && is_number() && r.is_empty()
}

/// Whether random bytes are a private key on every curve, so that a credential can be made with them for any key: one in
/// 2³² is not.
pub fn is_ephemeral(random: &[u8; EPHEMERAL_BYTES]) -> bool {
    let curves = Template::ALL.into_iter().filter_map(Template::curve);
    curves
        .into_iter()
        .all(|(curve, len)| PrivateKey::from_private_key(curve, &random[..len]).is_ok())
}

/// Makes `secret` one that only the TPM of `ek` gives back, and only while a key with the name `ak_name` is loaded there.
/// `ephemeral` is random and used for nothing else; `None` if it is no private key ([`is_ephemeral`]).
pub fn make_credential(
    ek: &EndorsementKey,
    ak_name: &[u8; 34],
    secret: &[u8; SECRET_BYTES],
    ephemeral: &Zeroizing<[u8; EPHEMERAL_BYTES]>,
) -> Option<Credential> {
    let hash = ek.template.hash();
    let (seed, for_tpm) = match ek.template.curve() {
        Some((curve, len)) => agreed(&ek.key, curve, hash, &ephemeral[..len])?,
        None => wrapped(&ek.key, hash, &ephemeral[..])?,
    };
    let mut encrypted = Zeroizing::new(Writer::default().sized(secret).done());
    let aes_key = kdf_a(hash, &seed, b"STORAGE\0", ak_name, ek.template.aes_bytes());
    cfb(&aes_key, &mut encrypted);
    let mac_key = kdf_a(hash, &seed, b"INTEGRITY\0", &[], hash.bytes());
    let integrity = hash.mac(&mac_key, &[&encrypted, ak_name]);
    let body = Writer::default().sized(&integrity).bytes(&encrypted).done();
    let made = Credential {
        template: ek.template,
        blob: Writer::default().sized(&body).done(),
        secret: Writer::default().sized(&for_tpm).done(),
    };
    debug_assert_eq!(Credential::parse(&made.blob, &made.secret).as_ref(), Ok(&made));
    Some(made)
}

/// A seed that both sides agree on, and the point with which the TPM does (Part 1, C.6.4).
fn agreed(
    ek: &[u8],
    curve: &'static agreement::Algorithm,
    hash: Hash,
    ephemeral: &[u8],
) -> Option<(Zeroizing<Vec<u8>>, Vec<u8>)> {
    let own = PrivateKey::from_private_key(curve, ephemeral).ok()?;
    let own_point = own.compute_public_key().ok()?;
    let len = ephemeral.len();
    let coordinates =
        |point: &[u8]| Some((point.get(1..=len)?.to_vec(), point.get(1 + len..)?.to_vec()));
    let ((own_x, own_y), (ek_x, _)) = (coordinates(own_point.as_ref())?, coordinates(ek)?);
    let seed = agree(&own, UnparsedPublicKey::new(curve, ek), (), |shared| {
        // KDFe (Part 1, 11.4.10.3), one block.
        Ok(hash.of(&[&1u32.to_be_bytes(), shared, IDENTITY, &own_x, &ek_x]))
    });
    Some((seed.ok()?, Writer::default().sized(&own_x).sized(&own_y).done()))
}

/// The seed, and the same for the TPM alone (Part 1, B.10.4).
fn wrapped(ek: &[u8], hash: Hash, random: &[u8]) -> Option<(Zeroizing<Vec<u8>>, Vec<u8>)> {
    let seed = Zeroizing::new(random.get(..hash.bytes())?.to_vec());
    let mut sealed = vec![0; RSA_BYTES];
    let key = encrypting(ek)?;
    let len = key.encrypt(&OAEP_SHA256_MGF1SHA256, &seed, &mut sealed, Some(IDENTITY)).ok()?.len();
    (len == RSA_BYTES).then_some((seed, sealed))
}

/// The hash algorithm of a key's name, and of all that is derived for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hash {
    Sha256,
    Sha384,
}

impl Hash {
    fn bytes(self) -> usize {
        match self {
            Hash::Sha256 => 32,
            Hash::Sha384 => 48,
        }
    }

    fn of(self, parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
        fn of<D: sha2::Digest>(parts: &[&[u8]]) -> Vec<u8> {
            parts.iter().fold(D::new(), |hash, part| hash.chain_update(part)).finalize().to_vec()
        }
        Zeroizing::new(match self {
            Hash::Sha256 => of::<Sha256>(parts),
            Hash::Sha384 => of::<Sha384>(parts),
        })
    }

    fn mac(self, key: &[u8], parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
        fn of<M: hmac::Mac + hmac::digest::KeyInit>(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
            let mut mac = <M as hmac::Mac>::new_from_slice(key).expect("any key will do");
            parts.iter().for_each(|part| mac.update(part));
            mac.finalize().into_bytes().to_vec()
        }
        Zeroizing::new(match self {
            Hash::Sha256 => of::<Hmac<Sha256>>(key, parts),
            Hash::Sha384 => of::<Hmac<Sha384>>(key, parts),
        })
    }
}

/// KDFa (Part 1, 11.4.10.2), one block of `bytes`.
fn kdf_a(
    hash: Hash,
    seed: &[u8],
    label: &[u8],
    context: &[u8],
    bytes: usize,
) -> Zeroizing<Vec<u8>> {
    let bits = u32::try_from(8 * bytes).expect("a key is short");
    let parts = [&1u32.to_be_bytes()[..], label, context, &bits.to_be_bytes()];
    let mut block = hash.mac(seed, &parts);
    block.truncate(bytes);
    block
}

/// AES in CFB mode with an empty vector, in place. A key is used for one text.
fn cfb(key: &[u8], text: &mut [u8]) {
    match key.len() {
        16 => cfb_with(&Aes128::new_from_slice(key).expect("a key of 128 bits"), text),
        _ => cfb_with(&Aes256::new_from_slice(key).expect("a key of 256 bits"), text),
    }
}

fn cfb_with<C>(cipher: &C, text: &mut [u8])
where
    C: aes::cipher::BlockCipherEncrypt
        + aes::cipher::BlockSizeUser<BlockSize = aes::cipher::consts::U16>,
{
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
#[path = "credential_tests.rs"]
pub(crate) mod tests;
