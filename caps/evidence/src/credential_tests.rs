use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rsa::{KeySize, OaepPrivateDecryptingKey, PrivateDecryptingKey};

use super::*;

const EPHEMERAL: [u8; EPHEMERAL_BYTES] = [1; EPHEMERAL_BYTES];

/// `TPMT_PUBLIC` of a key on a curve, made from `seed`.
fn public(template: Template, seed: u8) -> Vec<u8> {
    let (curve, len) = template.curve().unwrap();
    let secret = PrivateKey::from_private_key(curve, &vec![seed; len]).unwrap();
    let point = secret.compute_public_key().unwrap();
    let (x, y) = point.as_ref()[1..].split_at(len);
    Writer::default().bytes(&template.shape()).sized(x).sized(y).done()
}

/// An RSA key, and its `TPMT_PUBLIC`.
fn rsa() -> (PrivateDecryptingKey, Vec<u8>) {
    let key = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
    let spki: PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
    // The modulus stands before the exponent, which has three bytes.
    let spki = spki.as_ref();
    let modulus = &spki[spki.len() - 5 - RSA_BYTES..spki.len() - 5];
    (key, Writer::default().bytes(&Template::Rsa2048.shape()).sized(modulus).done())
}

/// `TPMT_PUBLIC` of one key of each kind.
fn each() -> [Vec<u8>; 3] {
    [public(Template::P256, 3), public(Template::P384, 3), rsa().1]
}

fn ek(public: &[u8]) -> EndorsementKey {
    EndorsementKey::from_public(public).unwrap()
}

/// An endorsement key, whoever has it.
pub(crate) fn p256_key() -> EndorsementKey {
    ek(&public(Template::P256, 3))
}

fn made(ek: &EndorsementKey) -> Credential {
    make_credential(ek, &[1; 34], &[1; 32], &Zeroizing::new(EPHEMERAL)).unwrap()
}

#[test]
fn a_key_of_another_shape_or_on_no_curve_is_no_endorsement_key() {
    for (good, template) in each().into_iter().zip(Template::ALL) {
        let key = ek(&good);
        assert_eq!((key.public(), key.template()), (&good[..], template));
        assert!(is_name_long(key.name().len()));
        assert!(EndorsementKey::from_public(&template.public()).is_err(), "no key");
        // Every bit of a modulus but the first and the last may be another's.
        let fixed =
            if template.curve().is_some() { good.len() } else { template.shape().len() + 2 };
        for at in (0..fixed).chain([good.len() - 1]) {
            let mut other = good.clone();
            other[at] ^= 1;
            assert!(EndorsementKey::from_public(&other).is_err(), "{template:?} {at}");
        }
        let longer = [&good[..], &[0]].concat();
        assert!(EndorsementKey::from_public(&longer).is_err());
        for len in 0..good.len() {
            assert!(EndorsementKey::from_public(&good[..len]).is_err(), "{template:?} {len}");
        }
    }
    assert!(!is_name_long(33) && !is_name_long(0));
}

/// Or no TPM would take a session for the key's.
#[test]
fn the_policies_follow_from_their_branches() {
    const POLICY_OR: u32 = 0x171;
    const POLICY_SECRET: u32 = 0x151;
    const ENDORSEMENT: u32 = 0x4000_000b;
    let secret = |hash: Hash| {
        let zeros = vec![0; hash.bytes()];
        let parts = [&zeros[..], &POLICY_SECRET.to_be_bytes(), &ENDORSEMENT.to_be_bytes()];
        hash.of(&[&hash.of(&parts)])
    };
    assert_eq!(secret(Hash::Sha256)[..], LOW_POLICY);
    let [first, second] = &HIGH_BRANCHES;
    assert_eq!(secret(Hash::Sha384)[..], first[..]);
    let either = Hash::Sha384.of(&[&[0; 48], &POLICY_OR.to_be_bytes(), first, second]);
    assert_eq!(either[..], HIGH_POLICY);
}

/// AES-128 in CFB mode, NIST SP 800-38A, F.3.13, with its vector as the first block of ours: what CFB gives for a text
/// of zeros is what it starts the next block with. AES-256: F.3.17.
#[test]
fn the_cipher_is_aes_in_cfb_mode() {
    for (key, wanted) in [
        ("2b7e151628aed2a6abf7158809cf4f3c", "3b3fd92eb72dad20333449f8e83cfb4ac8a64537a0b3"),
        (
            "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4",
            "dc7e84bfda79164b7ecd8486985d386039ffed143b28",
        ),
    ] {
        let key = hex::decode(key).unwrap();
        // The stream of the first block is AES of zeros; then what is encrypted there is the vector.
        let mut zeros = [0; 16];
        cfb(&key, &mut zeros);
        let vector: Vec<u8> = (0..16).collect();
        let first: Vec<u8> = zeros.iter().zip(&vector).map(|(a, b)| a ^ b).collect();
        let text = hex::decode("6bc1bee22e409f96e93d7e117393172aae2d8a571e03").unwrap();
        let mut all = [first, text].concat();
        cfb(&key, &mut all);
        assert_eq!(all[..16], vector);
        assert_eq!(hex::encode(&all[16..]), wanted);
    }
}

/// Or whoever changes a file on its way sends commands of their own to somebody's TPM behind it.
#[test]
fn nothing_is_a_credential_that_is_longer_shorter_or_otherwise_made() {
    let all = each().map(|public| made(&ek(&public)));
    let longer = |bytes: &[u8]| [bytes, &[0]].concat();
    let inner = |bytes: &[u8], more: u16| {
        let mut bytes = longer(bytes);
        let len = u16::from_be_bytes([bytes[0], bytes[1]]) + more;
        bytes[..2].copy_from_slice(&len.to_be_bytes());
        bytes
    };
    for one in &all {
        assert_eq!(Credential::parse(one.blob(), one.secret()).as_ref(), Ok(one));
        let (blob, secret) = (one.blob().to_vec(), one.secret().to_vec());
        for (blob, secret) in [
            (longer(&blob), secret.clone()),
            (inner(&blob, 1), secret.clone()),
            (blob.clone(), longer(&secret)),
            (blob.clone(), inner(&secret, 1)),
            (blob[..blob.len() - 1].to_vec(), secret.clone()),
            (blob.clone(), secret[..secret.len() - 1].to_vec()),
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
        let lengths: &[usize] = match one.template().curve() {
            Some((_, len)) => &[0, 1, 2, 3, 4 + len, 5 + len],
            None => &[0, 1],
        };
        for at in lengths {
            let mut changed = secret.clone();
            changed[*at] ^= 1;
            assert!(Credential::parse(&blob, &changed).is_err(), "{at}");
        }
    }
    // The one's secret beside the other's MAC.
    let [p256, p384, rsa] = &all;
    assert!(Credential::parse(p256.blob(), p384.secret()).is_err());
    assert!(Credential::parse(p384.blob(), rsa.secret()).is_err());
}

#[test]
fn a_credential_is_another_for_each_key_secret_and_ephemeral() {
    for (template, lens) in
        [(Template::P256, (2 + 34 + 34, 2 + 68)), (Template::P384, (2 + 50 + 34, 2 + 100))]
    {
        let (one, other) = (ek(&public(template, 3)), ek(&public(template, 4)));
        let made = |ek: &EndorsementKey, name: u8, secret: u8, own: u8| {
            let own = Zeroizing::new([own; EPHEMERAL_BYTES]);
            make_credential(ek, &[name; 34], &[secret; 32], &own).unwrap()
        };
        let first = made(&one, 1, 1, 1);
        assert_eq!((first.blob.len(), first.secret.len()), lens);
        assert_eq!(first, made(&one, 1, 1, 1));
        for another in
            [made(&other, 1, 1, 1), made(&one, 2, 1, 1), made(&one, 1, 2, 1), made(&one, 1, 1, 2)]
        {
            assert_ne!(first.blob, another.blob);
        }
        for none in [[0; EPHEMERAL_BYTES], [0xff; EPHEMERAL_BYTES]] {
            assert!(!is_ephemeral(&none));
            assert_eq!(make_credential(&one, &[1; 34], &[1; 32], &Zeroizing::new(none)), None);
        }
    }
    assert!(is_ephemeral(&EPHEMERAL));
}

/// The seed goes to the TPM as its key alone reads it: with the label and the hash that the library's specification
/// demands. What follows from the seed is the same as for a point.
#[test]
fn the_seed_for_an_rsa_key_is_padded_as_a_tpm_demands() {
    let (key, public) = rsa();
    let credential = made(&ek(&public));
    assert_eq!((credential.blob.len(), credential.secret.len()), (2 + 34 + 34, 2 + RSA_BYTES));
    let key = OaepPrivateDecryptingKey::new(key).unwrap();
    let open = |label: &[u8]| {
        let mut seed = [0; RSA_BYTES];
        let sealed = &credential.secret[2..];
        let opened = key.decrypt(&OAEP_SHA256_MGF1SHA256, sealed, &mut seed, Some(label));
        opened.map(|seed| seed.to_vec()).ok()
    };
    assert_eq!(open(b"IDENTITY\0").as_deref(), Some(&EPHEMERAL[..32]));
    assert_eq!(open(b"IDENTITY"), None);
    let again = made(&ek(&public));
    assert_eq!(again.blob, credential.blob);
    assert_ne!(again.secret, credential.secret, "the padding is random");
}
