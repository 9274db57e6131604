//! Sessions that keep a parameter from whoever listens between this service and the TPM (TPM 2.0 Library, Part 1, 11.4.10, 17.6
//! and 21): on the bus of a discrete TPM, say.
//!
//! Both sides agree on a salt by ECDH with a key that never leaves the TPM. From it follow a key by which each command
//! and answer is authenticated, and one for each parameter that is encrypted: AES-128 in CFB mode. Only the first parameter of
//! a command or answer can be, and only if it is a sized buffer.
//!
//! # What it does not show
//!
//! - That the key is the TPM's is the caller's to know. Whoever stands in between, and not only listens, could name its own.
//! - Everything else passes in the clear: commands, handles, what is public, and how long what is encrypted is.

use std::io::{Read, Write};

use aes::Aes128;
use aes::cipher::{BlockCipherEncrypt as _, KeyInit as _};
use aws_lc_rs::agreement::{ECDH_P256, PrivateKey, UnparsedPublicKey, agree};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use distos_evidence::evidence::ALG_SHA256;
use distos_evidence::wire::{Broken, Reader, Writer};
use hmac::{Hmac, Mac as _};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::tpm::{CC_START_AUTH_SESSION, Command, HANDLE_NULL, Tpm, TpmError};

const ALG_AES: u16 = 0x0006;
const ALG_CFB: u16 = 0x0043;
const AES_BITS: u16 = 128;
const AES_BYTES: usize = 16;
/// As long as the hash: a nonce may not be longer (Part 3, 11.1).
const NONCE_BYTES: usize = 32;
const HASH_BYTES: usize = 32;
/// The session ends with the command; the first parameter of the command, or of its answer, is encrypted (Part 2, 8.4).
const DECRYPT: u8 = 0x20;
const ENCRYPT: u8 = 0x40;

/// What a session authorizes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An empty password.
    Hmac = 0x00,
    /// A policy.
    Policy = 0x01,
}

/// A key of the TPM's by which it takes a salt: P-256, loaded there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SaltKey<'a> {
    pub(crate) handle: u32,
    /// Its coordinates.
    pub(crate) point: (&'a [u8; HASH_BYTES], &'a [u8; HASH_BYTES]),
}

/// A session of which the TPM and this process alone know the key. It ends with the first command that it protects.
pub(crate) struct Session {
    pub(crate) handle: u32,
    key: Zeroizing<[u8; HASH_BYTES]>,
    nonce_tpm: Vec<u8>,
}

/// A command that a session protects, and what is needed for its answer.
pub(crate) struct Protected {
    command: Command,
    code: u32,
    session: Session,
    nonce: [u8; NONCE_BYTES],
    attributes: u8,
}

/// TPM name of an object: the hash algorithm's number, and the hash of its public part (Part 1, 16).
pub(crate) fn name(public: &[u8]) -> Vec<u8> {
    Writer::default().u16(ALG_SHA256).bytes(&Sha256::digest(public)).done()
}

impl<T: Read + Write> Tpm<T> {
    /// Begins a session. It must be [taken note of](Tpm::used) when it was used.
    pub(crate) fn start_salted(
        &mut self,
        kind: Kind,
        by: SaltKey<'_>,
    ) -> Result<Session, TpmError> {
        let (salt, point) = salted(by, &ephemeral()?)?;
        let nonce = random()?;
        let parameters = Writer::default()
            .u32(by.handle)
            .u32(HANDLE_NULL)
            .sized(&nonce)
            .sized(&point)
            .u8(kind as u8)
            .u16(ALG_AES)
            .u16(AES_BITS)
            .u16(ALG_CFB)
            .u16(ALG_SHA256);
        let response = self.call(&Command::plain(CC_START_AUTH_SESSION, parameters))?;
        let handle = self.made(&response)?;
        let mut r = Reader::new(&response);
        let _handle = r.u32("sessionHandle")?;
        let nonce_tpm = r.sized("nonceTPM")?.to_vec();
        let key = kdf_a(&*salt, b"ATH\0", &[&nonce_tpm, &nonce]);
        Ok(Session { handle, key, nonce_tpm })
    }

    /// Has the TPM carry a command out whose answer begins with a parameter that is encrypted, and gives that back.
    pub(crate) fn call_for_secret(
        &mut self,
        protected: Protected,
    ) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        let response = self.call(&protected.command)?;
        let parameters = protected.authenticated(&response)?;
        let field = "the encrypted parameter";
        let mut plain = Zeroizing::new(Reader::new(parameters).sized(field)?.to_vec());
        let nonce_tpm = protected.answered(&response)?.nonce_tpm;
        cfb(&protected.session.key, &[nonce_tpm, &protected.nonce], Way::Decrypt, &mut plain);
        Ok(plain)
    }

    /// Has the TPM carry out a command that has a secret in it; the parameters of the answer.
    pub(crate) fn call_with_secret(&mut self, protected: Protected) -> Result<Vec<u8>, TpmError> {
        let response = self.call(&protected.command)?;
        Ok(protected.authenticated(&response)?.to_vec())
    }
}

impl Session {
    /// A command on an object with this name, whose first parameter is `secret`; `rest` are the others.
    pub(crate) fn sending(
        self,
        code: u32,
        (handle, name): (u32, &[u8]),
        mut secret: Zeroizing<Vec<u8>>,
        rest: &[u8],
    ) -> Result<Protected, TpmError> {
        let nonce = random()?;
        cfb(&self.key, &[&nonce, &self.nonce_tpm], Way::Encrypt, &mut secret);
        let parameters = Writer::default().sized(&secret).bytes(rest).done();
        Ok(self.protect(code, (handle, name), &parameters, nonce, DECRYPT))
    }

    /// A command on an object with this name, without parameters, whose answer begins with a secret.
    pub(crate) fn fetching(self, code: u32, object: (u32, &[u8])) -> Result<Protected, TpmError> {
        let nonce = random()?;
        Ok(self.protect(code, object, &[], nonce, ENCRYPT))
    }

    fn protect(
        self,
        code: u32,
        (handle, name): (u32, &[u8]),
        parameters: &[u8],
        nonce: [u8; NONCE_BYTES],
        attributes: u8,
    ) -> Protected {
        let hash: [u8; HASH_BYTES] = Sha256::new()
            .chain_update(code.to_be_bytes())
            .chain_update(name)
            .chain_update(parameters)
            .finalize()
            .into();
        let mac = mac(&*self.key, &[&hash, &nonce, &self.nonce_tpm, &[attributes]]);
        let authorization =
            Writer::default().u32(self.handle).sized(&nonce).u8(attributes).sized(&*mac).done();
        let command = Command::in_session(code, handle, authorization, parameters);
        Protected { command, code, session: self, nonce, attributes }
    }
}

/// The parts of an answer in a session.
struct Answered<'a> {
    parameters: &'a [u8],
    nonce_tpm: &'a [u8],
    attributes: u8,
    mac: &'a [u8],
}

impl Protected {
    fn answered<'a>(&self, response: &'a [u8]) -> Result<Answered<'a>, Broken> {
        let mut r = Reader::new(response);
        let field = "the answer's parameters";
        let len = usize::try_from(r.u32(field)?).map_err(|_| Broken(field))?;
        let parameters = r.bytes(len, field)?;
        let nonce_tpm = r.sized("nonceTPM")?;
        let attributes = r.u8("sessionAttributes")?;
        let mac = r.sized("the answer's HMAC")?;
        r.end("the end of the answer")?;
        Ok(Answered { parameters, nonce_tpm, attributes, mac })
    }

    /// The parameters of an answer that is the TPM's own: nobody else has the session's key.
    fn authenticated<'a>(&self, response: &'a [u8]) -> Result<&'a [u8], Broken> {
        let Answered { parameters, nonce_tpm, attributes, mac: told } = self.answered(response)?;
        let hash: [u8; HASH_BYTES] = Sha256::new()
            .chain_update(0u32.to_be_bytes())
            .chain_update(self.code.to_be_bytes())
            .chain_update(parameters)
            .finalize()
            .into();
        let own = mac(&*self.session.key, &[&hash, nonce_tpm, &self.nonce, &[attributes]]);
        let is_own = verify_slices_are_equal(&*own, told).is_ok() && attributes == self.attributes;
        if is_own {
            Ok(parameters)
        } else {
            Err(Broken("the answer's HMAC: it was changed on its way"))
        }
    }
}

/// A salt, and the point with which the TPM comes to the same (Part 1, C.6.3).
type Salted = (Zeroizing<[u8; HASH_BYTES]>, Vec<u8>);

fn salted(by: SaltKey<'_>, own: &PrivateKey) -> Result<Salted, TpmError> {
    let own_point = own.compute_public_key().map_err(|_| Broken("a point of our own"))?;
    let (own_x, own_y) = own_point
        .as_ref()
        .get(1..)
        .and_then(|point| point.split_at_checked(HASH_BYTES))
        .ok_or(Broken("a point of our own"))?;
    let (x, y) = by.point;
    let key = [&[4][..], x, y].concat();
    // KDFe (Part 1, 11.4.10.3), one block.
    let salt =
        agree(own, UnparsedPublicKey::new(&ECDH_P256, key), Broken("the key's point"), |z| {
            let hash = Sha256::new().chain_update(1u32.to_be_bytes()).chain_update(z);
            let hash = hash.chain_update(b"SECRET\0").chain_update(own_x).chain_update(x);
            Ok(Zeroizing::new(hash.finalize().into()))
        })?;
    Ok((salt, Writer::default().sized(own_x).sized(own_y).done()))
}

fn ephemeral() -> Result<PrivateKey, TpmError> {
    PrivateKey::generate(&ECDH_P256).map_err(|_| no_randomness())
}

fn random() -> Result<[u8; NONCE_BYTES], TpmError> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(|_| no_randomness())?;
    Ok(nonce)
}

fn no_randomness() -> TpmError {
    std::io::Error::other("no randomness").into()
}

fn mac(key: &[u8], parts: &[&[u8]]) -> Zeroizing<[u8; HASH_BYTES]> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any key will do");
    parts.iter().for_each(|part| mac.update(part));
    Zeroizing::new(mac.finalize().into_bytes().into())
}

/// KDFa (Part 1, 11.4.10.2), one block of 256 bits.
fn kdf_a(key: &[u8], label: &[u8], context: &[&[u8]; 2]) -> Zeroizing<[u8; HASH_BYTES]> {
    let bits = 256u32.to_be_bytes();
    mac(key, &[&1u32.to_be_bytes(), label, context[0], context[1], &bits])
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Encrypt,
    Decrypt,
}

/// Encrypts a parameter in place, or decrypts one: AES-128 in CFB mode, with a key and a vector that follow from the session's
/// key and both nonces, the newer first (Part 1, 21.3).
fn cfb(key: &[u8; HASH_BYTES], nonces: &[&[u8]; 2], way: Way, text: &mut [u8]) {
    let derived = kdf_a(key, b"CFB\0", nonces);
    let cipher = Aes128::new_from_slice(&derived[..AES_BYTES]).expect("a key of 128 bits");
    let mut vector: Zeroizing<[u8; AES_BYTES]> = Zeroizing::new([0; AES_BYTES]);
    vector.copy_from_slice(&derived[AES_BYTES..]);
    for block in text.chunks_mut(AES_BYTES) {
        let mut stream = (*vector).into();
        cipher.encrypt_block(&mut stream);
        for (at, byte) in block.iter_mut().enumerate() {
            let before = *byte;
            *byte ^= stream[at];
            vector[at] = if way == Way::Encrypt { *byte } else { before };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_comes_back_as_it_was_and_is_another_text_under_other_nonces() {
        let key = [7; HASH_BYTES];
        let text: Vec<u8> = (0..75).collect();
        let mut one = text.clone();
        cfb(&key, &[&[1; 32], &[2; 32]], Way::Encrypt, &mut one);
        let mut other = text.clone();
        cfb(&key, &[&[2; 32], &[1; 32]], Way::Encrypt, &mut other);
        assert!(one != text && one != other);
        cfb(&key, &[&[1; 32], &[2; 32]], Way::Decrypt, &mut one);
        assert_eq!(one, text);
    }

    #[test]
    fn an_answer_that_is_cut_or_changed_is_refused_and_no_panic() {
        let session =
            Session { handle: 1, key: Zeroizing::new([7; HASH_BYTES]), nonce_tpm: vec![1; 32] };
        let protected = session.fetching(0x15e, (2, &[3; 34])).unwrap();
        let parameters = Writer::default().sized(&[9; 40]).done();
        let hash = Sha256::new()
            .chain_update(0u32.to_be_bytes())
            .chain_update(0x15eu32.to_be_bytes())
            .chain_update(&parameters)
            .finalize();
        let own = mac(&[7; HASH_BYTES], &[&hash, &[5; 32], &protected.nonce, &[ENCRYPT]]);
        let answer = Writer::default()
            .u32(parameters.len() as u32)
            .bytes(&parameters)
            .sized(&[5; 32])
            .u8(ENCRYPT)
            .sized(&*own)
            .done();
        assert_eq!(protected.authenticated(&answer), Ok(&parameters[..]));
        for at in 0..answer.len() {
            let mut changed = answer.clone();
            changed[at] ^= 1;
            assert!(protected.authenticated(&changed).is_err(), "byte {at}");
            assert!(protected.authenticated(&answer[..at]).is_err(), "cut at {at}");
        }
    }
}
