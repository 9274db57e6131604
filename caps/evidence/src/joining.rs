//! Joining a cluster by the TPM that a node has (A1).
//!
//! 1. Whoever invites makes a nonce for one node.
//! 2. The node [presents](Request) what its TPM says: the keys, and a quote that answers [`qualifying`], which names both
//!    nodes, the key that the node is to have in the cluster, its endorsement key and the nonce.
//! 3. Whoever invites [demands](admit) that the endorsement key is the one that it was told of on another way, or that its
//!    certificate leads to a root that it has pinned; that the quote is by an attestation key and answers its nonce; and
//!    that the registers hold what it expects.
//! 4. It [seals](seal) the invitation so that it opens only in the TPM with both keys.
//!
//! Not shown by it: that the endorsement key is a TPM's. Whoever names it (step 3), or has certified it, vouches for that.
//! That the attestation key is in the same TPM shows only by what is sealed being opened. The image's register is extended by the software that
//! is to be judged by it: it says which image was booted only if registers of the firmware and the boot chain, which
//! whoever invites names, say that this software was. Registers that no value is named for are told, and decide nothing.

use std::collections::BTreeMap;

use chacha20poly1305::aead::{Aead as _, Payload};
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305, XNonce};
use distos_abi::{Fault, HolderKey, NodeId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::credential::{
    Credential, EPHEMERAL_BYTES, EndorsementKey, is_ephemeral, make_credential,
};
use crate::enrolment::{Endorsement, Makers};
use crate::evidence::{AttestationKey, Pcrs, Policy, Refusal, appraise};

/// The register that holds the node image's hash. On a PC it is the operating system's (a unified
/// kernel image uses it too; such a machine can't be attested yet).
pub const IMAGE_PCR: u8 = 11;
/// The longest text of a request, in bytes.
pub const MAX_REQUEST_BYTES: usize = 16_384;
/// The longest text of a sealed invitation, in bytes.
pub const MAX_SEALED_BYTES: usize = 1 << 20;
const VERSION: u32 = 1;
const CHALLENGE: &str = "challenge";
const REQUEST: &str = "request to join";
const SEALED: &str = "sealed invitation";
const QUALIFYING: &[u8] = b"distos tpm join 1\0";
const BOX_CONTEXT: &str = "distos 2026-11-27 invitation sealed to a TPM";

/// What a node's quote answers: a nonce of `inviter`'s, for `node`, which is to have `key` in the cluster and whose
/// endorsement key has the name `ek`.
pub fn qualifying(
    inviter: NodeId,
    node: NodeId,
    key: HolderKey,
    ek: &[u8],
    nonce: &[u8; 32],
) -> [u8; 32] {
    // The name's beginning says how long it is, and all else has one length.
    let hash = Sha256::new()
        .chain_update(QUALIFYING)
        .chain_update(inviter.0)
        .chain_update(node.0)
        .chain_update(key.0)
        .chain_update(ek)
        .chain_update(nonce);
    hash.finalize().into()
}

/// What a node is to answer that wants to be invited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// Who makes it.
    pub inviter: NodeId,
    /// For whom.
    pub node: NodeId,
    /// Random, and good once.
    pub nonce: [u8; 32],
}

/// As JSON; all bytes in hexadecimal.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChallengeText {
    distos: String,
    version: u32,
    inviter: String,
    node: String,
    nonce: String,
}

impl Challenge {
    /// Reads a challenge. [`Fault::Malformed`] says what is wrong.
    pub fn parse(text: &str) -> Result<Challenge, Fault> {
        let read: ChallengeText = read(text, CHALLENGE, MAX_REQUEST_BYTES)?;
        Ok(Challenge {
            inviter: NodeId(array(&read.inviter, "who makes it")?),
            node: NodeId(array(&read.node, "the node")?),
            nonce: array(&read.nonce, "the nonce")?,
        })
    }

    /// The challenge as JSON.
    pub fn to_json(&self) -> Result<String, Fault> {
        let text = ChallengeText {
            distos: CHALLENGE.to_owned(),
            version: VERSION,
            inviter: hex::encode(self.inviter.0),
            node: hex::encode(self.node.0),
            nonce: hex::encode(self.nonce),
        };
        serde_json::to_string_pretty(&text).map_err(Fault::internal)
    }
}

/// What a node presents. Nothing in it is believed before [`admit`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The node.
    pub node: NodeId,
    /// The key of its network service.
    pub key: HolderKey,
    /// The nonce that it was given.
    pub nonce: [u8; 32],
    /// `TPMT_PUBLIC` of the endorsement key.
    pub ek: Vec<u8>,
    /// The certificate of the endorsement key (DER), if the TPM has one.
    pub certificate: Option<Vec<u8>>,
    /// `TPMT_PUBLIC` of the attestation key.
    pub ak: Vec<u8>,
    /// `TPMS_ATTEST`.
    pub quote: Vec<u8>,
    /// `TPMT_SIGNATURE`.
    pub signature: Vec<u8>,
    /// The registers.
    pub pcrs: Pcrs,
}

/// As JSON; all bytes in hexadecimal.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestText {
    distos: String,
    version: u32,
    node: String,
    key: String,
    nonce: String,
    ek: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    certificate: Option<String>,
    ak: String,
    quote: String,
    signature: String,
    pcrs: BTreeMap<u8, String>,
}

fn array<const N: usize>(text: &str, what: &str) -> Result<[u8; N], Fault> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes)
        .map_err(|_| Fault::malformed(format!("{what} is not {} hexadecimal digits", 2 * N)))?;
    Ok(bytes)
}

fn bytes(text: &str, what: &str) -> Result<Vec<u8>, Fault> {
    hex::decode(text).map_err(|_| Fault::malformed(format!("{what} is not hexadecimal")))
}

/// What every text of these begins with being.
#[derive(Deserialize)]
struct Head {
    distos: String,
    version: u32,
}

fn read<T: DeserializeOwned>(text: &str, kind: &str, most: usize) -> Result<T, Fault> {
    if text.len() > most {
        return Err(Fault::malformed(format!("a {kind} is not so long")));
    }
    let none = |e| Fault::malformed(format!("this is no {kind}: {e}"));
    // First what it is: a later version may have other fields.
    let head: Head = serde_json::from_str(text).map_err(none)?;
    match head.version {
        _ if head.distos != kind => {
            Err(Fault::malformed(format!("this is a {}, and no {kind}", head.distos)))
        }
        VERSION => serde_json::from_str(text).map_err(none),
        version => {
            let why = format!("a {kind} of version {version}: use the newer program");
            Err(Fault::malformed(why))
        }
    }
}

impl Request {
    /// Reads a request. [`Fault::Malformed`] says what is wrong.
    pub fn parse(text: &str) -> Result<Request, Fault> {
        let read: RequestText = read(text, REQUEST, MAX_REQUEST_BYTES)?;
        let pcrs = read.pcrs.iter().map(|(pcr, value)| Ok((*pcr, array(value, "a register")?)));
        let certificate = read.certificate.map(|text| bytes(&text, "the certificate"));
        Ok(Request {
            node: NodeId(array(&read.node, "the node")?),
            key: HolderKey(array(&read.key, "its key")?),
            nonce: array(&read.nonce, "the nonce")?,
            ek: bytes(&read.ek, "the endorsement key")?,
            certificate: certificate.transpose()?,
            ak: bytes(&read.ak, "the attestation key")?,
            quote: bytes(&read.quote, "the quote")?,
            signature: bytes(&read.signature, "the signature")?,
            pcrs: pcrs.collect::<Result<_, Fault>>()?,
        })
    }

    /// The request as JSON.
    pub fn to_json(&self) -> Result<String, Fault> {
        let text = RequestText {
            distos: REQUEST.to_owned(),
            version: VERSION,
            node: hex::encode(self.node.0),
            key: hex::encode(self.key.0),
            nonce: hex::encode(self.nonce),
            ek: hex::encode(&self.ek),
            certificate: self.certificate.as_ref().map(hex::encode),
            ak: hex::encode(&self.ak),
            quote: hex::encode(&self.quote),
            signature: hex::encode(&self.signature),
            pcrs: self.pcrs.iter().map(|(pcr, value)| (*pcr, hex::encode(value))).collect(),
        };
        serde_json::to_string_pretty(&text).map_err(Fault::internal)
    }
}

/// What whoever invites expects.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Itself.
    pub inviter: NodeId,
    /// For which node it made the nonce.
    pub node: NodeId,
    /// The nonce.
    pub nonce: [u8; 32],
    /// The name of the node's endorsement key, if it was told. Without it, and without makers, nothing is admitted.
    pub ek: Option<Vec<u8>>,
    /// Whose TPMs are taken. If any are named, the endorsement key's certificate is one of theirs.
    pub makers: Makers,
    /// What registers hold. The image's is among them, or nothing is admitted.
    pub references: Pcrs,
    /// Unix seconds.
    pub at_s: u64,
}

/// A node that has shown what was expected of it.
#[derive(Clone, Debug)]
pub struct Admitted {
    /// Its key in the cluster.
    pub key: HolderKey,
    /// Its endorsement key.
    pub ek: EndorsementKey,
    /// What the certificate shows that was demanded; `None` if none was, as somebody has named the key.
    pub endorsement: Option<Endorsement>,
    /// Its attestation key.
    pub ak: AttestationKey,
    /// All registers that were quoted.
    pub pcrs: Pcrs,
}

/// Whether a node has shown what is expected of it.
///
/// # Errors
/// [`Fault::Unauthenticated`]: the first thing that it has not.
pub fn admit(request: &Request, expected: &Expected) -> Result<Admitted, Fault> {
    let refused = |why: String| Fault::Unauthenticated(why);
    if (request.node, request.nonce) != (expected.node, expected.nonce) {
        return Err(refused("this answers no challenge that is open: make another".into()));
    }
    let broken = |what: &str, e| refused(format!("the {what} key is {e}"));
    let ek = EndorsementKey::from_public(&request.ek).map_err(|e| broken("endorsement", e))?;
    let endorsement = endorse(&ek, request, expected)?;
    let ak = AttestationKey::from_public(&request.ak).map_err(|e| broken("attestation", e))?;
    if !expected.references.contains_key(&IMAGE_PCR) {
        return Err(refused(Refusal::NoReferences.to_string()));
    }
    let missing = expected.references.keys().find(|pcr| !request.pcrs.contains_key(pcr));
    if let Some(pcr) = missing {
        let why = format!(
            "PCR {pcr} was not quoted: the joining node's image names the registers that are"
        );
        return Err(refused(why));
    }
    // Those for which no value is expected are only to be what was quoted.
    let mut references = request.pcrs.clone();
    references.extend(&expected.references);
    let answers =
        qualifying(expected.inviter, request.node, request.key, &ek.name(), &request.nonce);
    let Request { quote, signature, pcrs, .. } = request;
    appraise(&Policy::new(references), &ak, &answers, quote, signature, pcrs, None)
        .map_err(|refusal| refused(refusal.to_string()))?;
    Ok(Admitted { key: request.key, ek, endorsement, ak, pcrs: request.pcrs.clone() })
}

/// Whether somebody vouches for an endorsement key, in each way that is expected.
fn endorse(
    ek: &EndorsementKey,
    request: &Request,
    expected: &Expected,
) -> Result<Option<Endorsement>, Fault> {
    let refused = |why: String| Err(Fault::Unauthenticated(why));
    let name = ek.name();
    if expected.ek.as_ref().is_some_and(|told| *told != name) {
        return refused(format!(
            "this is another TPM than was expected: its endorsement key is {}",
            hex::encode(name)
        ));
    }
    match (&request.certificate, expected.makers.is_empty()) {
        (_, true) if expected.ek.is_none() => {
            refused("nobody has said which TPM is expected, or whose".to_owned())
        }
        (_, true) => Ok(None),
        (Some(certificate), false) => {
            expected.makers.demand(certificate, ek, expected.at_s).map(Some)
        }
        (None, false) => refused("this TPM has shown no certificate of its maker".to_owned()),
    }
}

/// Random bytes for one sealed invitation.
pub struct Randomness {
    ephemeral: Zeroizing<[u8; EPHEMERAL_BYTES]>,
    secret: Zeroizing<[u8; 32]>,
}

impl Randomness {
    /// For one credential, and what only the TPM gives back; `None` if the first is no private key ([`is_ephemeral`]),
    /// which one in 2³² is not.
    pub fn new(
        ephemeral: Zeroizing<[u8; EPHEMERAL_BYTES]>,
        secret: Zeroizing<[u8; 32]>,
    ) -> Option<Randomness> {
        is_ephemeral(&ephemeral).then_some(Randomness { ephemeral, secret })
    }
}

/// As JSON; all bytes in hexadecimal.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SealedText {
    distos: String,
    version: u32,
    /// For which node.
    node: String,
    /// The name of the attestation key in whose TPM it opens.
    ak_name: String,
    /// `TPM2B_ID_OBJECT`.
    credential: String,
    /// `TPM2B_ENCRYPTED_SECRET`.
    secret: String,
    /// XChaCha20-Poly1305 under a key made of what the TPM gives back; each such key seals one text.
    sealed: String,
}

/// A text that only the TPM of one node opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// For which node.
    pub node: NodeId,
    /// The name of the attestation key in whose TPM it opens.
    pub ak_name: [u8; 34],
    /// For the TPM.
    pub credential: Credential,
    sealed: Vec<u8>,
}

fn cipher(secret: &[u8; 32]) -> XChaCha20Poly1305 {
    let key = Zeroizing::new(blake3::derive_key(BOX_CONTEXT, secret));
    XChaCha20Poly1305::new((&*key).into())
}

impl Sealed {
    /// Reads one. [`Fault::Malformed`] says what is wrong; whether this machine may open it only its TPM tells.
    pub fn parse(text: &str) -> Result<Sealed, Fault> {
        let read: SealedText = read(text, SEALED, MAX_SEALED_BYTES)?;
        Ok(Sealed {
            node: NodeId(array(&read.node, "the node")?),
            ak_name: array(&read.ak_name, "the attestation key's name")?,
            credential: Credential::parse(
                &bytes(&read.credential, "the credential")?,
                &bytes(&read.secret, "the secret")?,
            )?,
            sealed: bytes(&read.sealed, "what is sealed")?,
        })
    }

    /// Whether a text says that it is one.
    pub fn is_one(text: &str) -> bool {
        serde_json::from_str::<Head>(text).is_ok_and(|head| head.distos == SEALED)
    }

    /// The same as JSON.
    pub fn to_json(&self) -> Result<String, Fault> {
        let text = SealedText {
            distos: SEALED.to_owned(),
            version: VERSION,
            node: hex::encode(self.node.0),
            ak_name: hex::encode(self.ak_name),
            credential: hex::encode(self.credential.blob()),
            secret: hex::encode(self.credential.secret()),
            sealed: hex::encode(&self.sealed),
        };
        serde_json::to_string_pretty(&text).map_err(Fault::internal)
    }

    /// What the seal covers besides the text.
    fn bound(node: NodeId, ak_name: &[u8; 34]) -> Vec<u8> {
        [&node.0[..], ak_name].concat()
    }

    /// Opens it with what the TPM gave back.
    ///
    /// # Errors
    /// [`Fault::Unauthenticated`] if it was changed, or the TPM gave something else.
    pub fn open(&self, secret: &[u8; 32]) -> Result<String, Fault> {
        let aad = Sealed::bound(self.node, &self.ak_name);
        let payload = Payload { msg: &self.sealed, aad: &aad };
        let changed = || Fault::Unauthenticated("this invitation was changed on its way".into());
        // A key is used once, so any nonce will do.
        let opened = cipher(secret).decrypt(&XNonce::default(), payload).map_err(|_| changed())?;
        String::from_utf8(opened).map_err(|_| changed())
    }
}

/// Seals `text` for the TPM of a node that was admitted.
///
/// # Errors
/// [`Fault::Malformed`] if it is too long.
pub fn seal(
    text: &str,
    node: NodeId,
    admitted: &Admitted,
    random: &Randomness,
) -> Result<Sealed, Fault> {
    // In hexadecimal, with what stands beside it.
    if text.len() > MAX_SEALED_BYTES / 2 - 1024 {
        return Err(Fault::malformed("an invitation is not so long"));
    }
    let ak_name = admitted.ak.name();
    let made = make_credential(&admitted.ek, &ak_name, &random.secret, &random.ephemeral);
    // It was looked at before.
    let credential = made.ok_or_else(|| Fault::internal("a random number that is no key"))?;
    let aad = Sealed::bound(node, &ak_name);
    let payload = Payload { msg: text.as_bytes(), aad: &aad };
    let sealed = cipher(&random.secret).encrypt(&XNonce::default(), payload);
    let sealed = sealed.map_err(|_| Fault::internal("an invitation could not be sealed"))?;
    Ok(Sealed { node, ak_name, credential, sealed })
}
