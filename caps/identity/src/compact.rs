//! Signed JSON in the compact form of JOSE (RFC 7515), with ES256 (RFC 7518 section 3.4), which is the one algorithm
//! here. Signatures are deterministic (RFC 6979).
//!
//! What it does not do: it knows no claims, and not whose key counts for what.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use distos_abi::Fault;
use p256::ecdsa::Signature;
use p256::ecdsa::signature::{Signer as _, Verifier as _};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::token::{TokenKey, TokenSecret};

const ALGORITHM: &str = "ES256";

#[derive(Serialize, Deserialize)]
struct Header {
    alg: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    typ: Option<String>,
    #[serde(default)]
    kid: String,
    /// What a reader must understand; there is nothing that this one does beyond the standard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crit: Option<serde_json::Value>,
}

/// A token taken apart. Nothing that it claims is seen before a key is known to have signed it.
pub struct Compact<'a> {
    key_id: String,
    signed: &'a str,
    claims: &'a str,
    signature: Signature,
}

/// Why a key vouches for nothing that a token claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// The key did not sign it.
    Forged,
    /// The key did, and it does not claim what was asked for.
    Claims,
}

/// Signs claims as a token of type `typ`. [`Fault::Internal`] if they are no JSON.
pub fn sign_compact(
    claims: &impl Serialize,
    typ: &str,
    secret: &TokenSecret,
) -> Result<String, Fault> {
    let header = Header {
        alg: ALGORITHM.to_owned(),
        typ: Some(typ.to_owned()),
        kid: secret.key().id(),
        crit: None,
    };
    let mut text = part(&header)?;
    text.push('.');
    text.push_str(&part(claims)?);
    let signature: Signature = secret.signing().sign(text.as_bytes());
    text.push('.');
    text.push_str(&URL_SAFE_NO_PAD.encode(signature.to_bytes()));
    Ok(text)
}

impl<'a> Compact<'a> {
    /// Takes a token apart; says why not if it is none, is longer than that, is signed with another algorithm, has
    /// something that a reader must understand, or is of a type that `is_type` does not take.
    pub fn parse(
        text: &'a str,
        max_bytes: usize,
        is_type: impl FnOnce(Option<&str>) -> bool,
    ) -> Result<Compact<'a>, &'static str> {
        if text.len() > max_bytes {
            return Err("it is too long");
        }
        let (signed, signature) = text.rsplit_once('.').ok_or("it has not three parts")?;
        let (header, claims) = signed.split_once('.').ok_or("it has not three parts")?;
        let header: Header = read(header).ok_or("its header is not one")?;
        if header.alg != ALGORITHM || header.crit.is_some() {
            return Err("it is not signed as tokens of a cluster are (ES256)");
        }
        if !is_type(header.typ.as_deref()) {
            return Err("it is of another type");
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).ok();
        let signature = signature.and_then(|bytes| Signature::from_slice(&bytes).ok());
        let signature = signature.ok_or("its signature is not one")?;
        Ok(Compact { key_id: header.kid, signed, claims, signature })
    }

    /// The name of the key that it says signed it, as [`TokenKey::id`] gives it. A hint, and no more.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// What it claims, if this key signed it.
    pub fn claims<T: DeserializeOwned>(&self, key: &TokenKey) -> Result<T, Flaw> {
        let key = key.verifying().ok_or(Flaw::Forged)?;
        key.verify(self.signed.as_bytes(), &self.signature).map_err(|_| Flaw::Forged)?;
        read(self.claims).ok_or(Flaw::Claims)
    }
}

fn part(value: &impl Serialize) -> Result<String, Fault> {
    let json = serde_json::to_vec(value).map_err(Fault::internal)?;
    Ok(URL_SAFE_NO_PAD.encode(json))
}

fn read<T: DeserializeOwned>(part: &str) -> Option<T> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}
