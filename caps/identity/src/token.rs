//! JWT SVIDs: who somebody is, said in a token for those who do not look at certificates, as servers of HTTP.
//!
//! Source: the SPIFFE JWT-SVID standard.
//!
//! A token is as good as a key to whoever sees it, for as long as it holds and at those whom it names. So it
//! holds for minutes, and says for whom it is.

use std::fmt;
use std::str::FromStr;

use distos_abi::Fault;
use distos_types::HolderSecret;
use p256::EncodedPoint;
use p256::ecdsa::{SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::authority::Validity;
use crate::bundle::Bundle;
use crate::compact::{Compact, Flaw, sign_compact};
use crate::id::SpiffeId;
use crate::profile::Home;
use crate::svid::Refusal;

/// The longest that a token may hold, in seconds. One that says more is refused, whoever signed it.
pub const MAX_TOKEN_LIFETIME_S: u64 = 300;
/// The longest token that is looked at, in bytes.
pub const MAX_TOKEN_BYTES: usize = 8192;
/// For how many a token may be, and how long the name of each may be, in bytes.
const MAX_AUDIENCES: usize = 8;
const MAX_AUDIENCE_BYTES: usize = 255;
/// How far clocks may differ, in seconds: from so long ahead a token is taken.
const SKEW_S: u64 = 60;
const TYPE: &str = "JWT";
/// What separates an issuer's key for tokens from everything else that is made of its secret.
const OF_ISSUER: &str = "DistOS 2026-11-27 an issuer's key for JWT SVIDs";
/// Bytes of a secret.
const SECRET_BYTES: usize = 32;
const COORDINATE_BYTES: usize = 32;

/// The public half of a key that signs tokens: a point of P-256, compressed (SEC 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenKey([u8; 33]);

impl TokenKey {
    /// How tokens name the key that signed them.
    pub fn id(&self) -> String {
        let hash = blake3::hash(&self.0);
        hex::encode(&hash.as_bytes()[..16])
    }

    /// The key with these coordinates; `None` if that is no point of P-256.
    pub(crate) fn at(x: &[u8], y: &[u8]) -> Option<TokenKey> {
        let (x, y): ([u8; COORDINATE_BYTES], [u8; COORDINATE_BYTES]) =
            (x.try_into().ok()?, y.try_into().ok()?);
        let point = EncodedPoint::from_affine_coordinates(&x.into(), &y.into(), false);
        Some(TokenKey::of(&VerifyingKey::from_encoded_point(&point).ok()?))
    }

    /// Its coordinates.
    pub(crate) fn coordinates(&self) -> Option<([u8; COORDINATE_BYTES], [u8; COORDINATE_BYTES])> {
        let point = self.verifying()?.to_encoded_point(false);
        Some(((*point.x()?).into(), (*point.y()?).into()))
    }

    fn of(key: &VerifyingKey) -> TokenKey {
        let mut bytes = [0; 33];
        // A public key is never the point at infinity, which alone is shorter.
        bytes.copy_from_slice(key.to_encoded_point(true).as_bytes());
        TokenKey(bytes)
    }

    pub(crate) fn verifying(&self) -> Option<VerifyingKey> {
        VerifyingKey::from_sec1_bytes(&self.0).ok()
    }
}

impl TryFrom<&[u8]> for TokenKey {
    type Error = Fault;

    fn try_from(bytes: &[u8]) -> Result<TokenKey, Fault> {
        let bytes: Result<[u8; 33], _> = bytes.try_into();
        let key = bytes.ok().map(TokenKey).filter(|key| key.verifying().is_some());
        key.ok_or_else(|| {
            Fault::malformed("this is no key for tokens: a point of P-256, compressed")
        })
    }
}

impl AsRef<[u8]> for TokenKey {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for TokenKey {
    type Err = Fault;

    fn from_str(text: &str) -> Result<TokenKey, Fault> {
        let bytes = hex::decode(text).map_err(|_| {
            Fault::malformed(
                "a key for tokens is 66 hexadecimal digits, as `network status` shows it",
            )
        })?;
        TokenKey::try_from(bytes.as_slice())
    }
}

/// A key that signs tokens. Erased when it is dropped; its `Debug` shows nothing of it.
#[derive(Debug)]
pub struct TokenSecret(SigningKey);

impl TokenSecret {
    /// The key of this seed: 32 random bytes, which are the caller's to erase. [`Fault::Internal`] if they are
    /// none, which of 2^32 seeds one is not.
    pub fn from_seed(seed: &[u8; SECRET_BYTES]) -> Result<TokenSecret, Fault> {
        let key = SigningKey::from_slice(seed);
        key.map(TokenSecret).map_err(|_| Fault::internal("this seed is no key of P-256"))
    }

    /// The key for tokens that belongs to an issuer's: made of that one, so there is one secret to keep.
    pub fn of_issuer(issuer: &HolderSecret) -> Result<TokenSecret, Fault> {
        let seed = Zeroizing::new(blake3::derive_key(OF_ISSUER, issuer.seed()));
        TokenSecret::from_seed(&seed)
    }

    /// The public half.
    pub fn key(&self) -> TokenKey {
        TokenKey::of(self.0.verifying_key())
    }

    pub(crate) fn signing(&self) -> &SigningKey {
        &self.0
    }
}

/// Whose tokens a cluster's members take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenAuthority {
    /// The key that signs them.
    pub key: TokenKey,
    /// Where it is: it signs nothing for that node.
    pub home: Home,
}

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Who it is.
    pub id: SpiffeId,
    /// For whom.
    pub audiences: Vec<String>,
    /// When.
    pub validity: Validity,
}

/// Why a token does not say who somebody is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefusal {
    /// It is no token of a cluster's.
    #[error("it is no token of a cluster's: {0}")]
    Form(&'static str),
    /// The cluster's bundle does not name the key that signed it.
    #[error("the cluster's bundle does not name the key that signed it")]
    Authority,
    /// It is for somebody else.
    #[error("it is for somebody else")]
    Audience,
    /// What is wrong with it can be wrong with an X.509 SVID, too.
    #[error(transparent)]
    Identity(#[from] Refusal),
}

impl From<TokenRefusal> for Fault {
    fn from(refusal: TokenRefusal) -> Fault {
        match refusal {
            TokenRefusal::Form(_) => Fault::malformed(refusal.to_string()),
            TokenRefusal::Identity(refusal) => refusal.into(),
            other => Fault::Unauthenticated(other.to_string()),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Claims {
    sub: String,
    aud: Audience,
    exp: u64,
    iat: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

impl Token {
    /// Signs it, with the authority's key.
    ///
    /// [`Fault::Unauthenticated`] if it is of the authority's own node. [`Fault::Malformed`] if it is for
    /// nobody or for too many, or would hold longer than a token may.
    pub fn sign(&self, secret: &TokenSecret, home: Home) -> Result<String, Fault> {
        if !home.may_vouch_for(&self.id.subject) {
            let why = format!("nobody signs for its own node, and {} is of it", self.id);
            return Err(Fault::Unauthenticated(why));
        }
        check_audiences(&self.audiences)?;
        let Validity { from_s, until_s } = self.validity;
        if until_s <= from_s || until_s - from_s > MAX_TOKEN_LIFETIME_S {
            return Err(Fault::malformed(format!(
                "a token holds for 1 to {MAX_TOKEN_LIFETIME_S} s"
            )));
        }
        let claims = Claims {
            sub: self.id.to_string(),
            aud: Audience::Several(self.audiences.clone()),
            exp: until_s,
            iat: from_s,
        };
        sign_compact(&claims, TYPE, secret)
    }

    /// Who shows this token, at time `now_s` in seconds since the Unix epoch, to somebody who goes by the name
    /// `audience`.
    pub fn verify(
        text: &str,
        bundle: &Bundle,
        audience: &str,
        now_s: u64,
    ) -> Result<Token, TokenRefusal> {
        let refuse = TokenRefusal::Form;
        let is_type = |typ: Option<&str>| typ.is_none_or(|typ| typ == TYPE || typ == "JOSE");
        let token = Compact::parse(text, MAX_TOKEN_BYTES, is_type).map_err(refuse)?;
        let authority = bundle.authority(token.key_id()).ok_or(TokenRefusal::Authority)?;
        let claims: Claims = token.claims(&authority.key).map_err(|flaw| match flaw {
            Flaw::Forged => Refusal::Forged.into(),
            Flaw::Claims => refuse("it does not say who, for whom and when"),
        })?;
        let id: SpiffeId = claims.sub.parse().map_err(|_| refuse("its owner is nobody"))?;
        if id.cluster != *bundle.cluster() {
            let (found, wanted) = (id.cluster, bundle.cluster().clone());
            return Err(Refusal::Cluster { found, wanted }.into());
        }
        let validity = Validity { from_s: claims.iat, until_s: claims.exp };
        if now_s.saturating_add(SKEW_S) < validity.from_s {
            return Err(Refusal::NotYet { from_s: validity.from_s }.into());
        }
        if now_s >= validity.until_s {
            return Err(Refusal::Expired { until_s: validity.until_s }.into());
        }
        let lifetime = validity.until_s.saturating_sub(validity.from_s);
        if lifetime > MAX_TOKEN_LIFETIME_S {
            return Err(Refusal::Lasting(lifetime).into());
        }
        let audiences = match claims.aud {
            Audience::One(one) => vec![one],
            Audience::Several(several) => several,
        };
        if !audiences.iter().any(|one| one == audience) {
            return Err(TokenRefusal::Audience);
        }
        if !authority.home.may_vouch_for(&id.subject) {
            return Err(Refusal::OwnNode.into());
        }
        Ok(Token { id, audiences, validity })
    }
}

fn check_audiences(audiences: &[String]) -> Result<(), Fault> {
    let fits = |one: &String| {
        (1..=MAX_AUDIENCE_BYTES).contains(&one.len()) && !one.contains(|c: char| c.is_control())
    };
    if (1..=MAX_AUDIENCES).contains(&audiences.len()) && audiences.iter().all(fits) {
        return Ok(());
    }
    Err(Fault::malformed(format!(
        "a token is for 1 to {MAX_AUDIENCES} audiences of 1 to {MAX_AUDIENCE_BYTES} bytes each"
    )))
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use distos_abi::NodeId;
    use p256::ecdsa::Signature;
    use p256::ecdsa::signature::Signer as _;

    use super::*;
    use crate::authority::{Root, Serial};
    use crate::id::{ClusterName, Subject, TenantName};

    const NOW_S: u64 = 1_800_000_000;
    const HERE: NodeId = NodeId([7; 32]);

    fn secret(seed: u8) -> TokenSecret {
        TokenSecret::from_seed(&[seed; 32]).unwrap()
    }

    fn cluster() -> ClusterName {
        ClusterName::new("demo.example").unwrap()
    }

    fn bundle_of(cluster: ClusterName, authorities: &[TokenAuthority]) -> Bundle {
        let root = HolderSecret::from_seed([1; 32]);
        let validity = Validity { from_s: NOW_S - 10, until_s: NOW_S + 1_000_000 };
        let root = Root::new(cluster, &root).certificate(validity, Serial([3; 16])).unwrap();
        let bundle = Bundle::new(vec![root], 1).unwrap();
        authorities.iter().fold(bundle, |bundle, one| bundle.with_authority(*one).unwrap())
    }

    fn bundle() -> Bundle {
        let authority = TokenAuthority { key: secret(9).key(), home: Home::Node(HERE) };
        bundle_of(cluster(), &[authority])
    }

    fn token(subject: Subject) -> Token {
        Token {
            id: SpiffeId { cluster: cluster(), subject },
            audiences: vec!["https://shop.example".to_owned(), "other".to_owned()],
            validity: Validity { from_s: NOW_S, until_s: NOW_S + 300 },
        }
    }

    fn agent() -> Subject {
        let agent = HolderSecret::from_seed([5; 32]).key();
        Subject::Agent { tenant: TenantName::new("red").unwrap(), agent }
    }

    fn forge(header: &str, claims: &str, by: &TokenSecret) -> String {
        let signed = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
        let signature: Signature = by.0.sign(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.to_bytes()))
    }

    #[test]
    fn whom_it_names_is_known_by_it_at_those_whom_it_names_and_while_it_holds() {
        let (bundle, token) = (bundle(), token(agent()));
        let text = token.sign(&secret(9), Home::Node(HERE)).unwrap();
        for (audience, now_s) in [("other", NOW_S), ("https://shop.example", NOW_S + 299)] {
            assert_eq!(Token::verify(&text, &bundle, audience, now_s), Ok(token.clone()));
        }
        let verify = |audience: &str, now_s| Token::verify(&text, &bundle, audience, now_s);
        assert_eq!(verify("https://shop", NOW_S), Err(TokenRefusal::Audience));
        assert_eq!(
            verify("other", NOW_S + 300),
            Err(Refusal::Expired { until_s: NOW_S + 300 }.into())
        );
        assert_eq!(verify("other", NOW_S - 61), Err(Refusal::NotYet { from_s: NOW_S }.into()));
    }

    #[test]
    fn nobody_else_can_make_one_or_change_it() {
        let (bundle, token) = (bundle(), token(agent()));
        let text = token.sign(&secret(9), Home::Node(HERE)).unwrap();
        let verify = |text: &str| Token::verify(text, &bundle, "other", NOW_S);
        let other = token.sign(&secret(8), Home::Offline).unwrap();
        assert_eq!(verify(&other), Err(TokenRefusal::Authority));
        // Another key that gives itself the name of one that counts.
        let claims = serde_json::json!({
            "sub": token.id.to_string(), "aud": "other", "exp": NOW_S + 9, "iat": NOW_S,
        });
        let claims = claims.to_string();
        let header = format!(r#"{{"alg":"ES256","kid":"{}"}}"#, secret(9).key().id());
        assert!(verify(&forge(&header, &claims, &secret(9))).is_ok());
        assert_eq!(verify(&forge(&header, &claims, &secret(8))), Err(Refusal::Forged.into()));
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            assert!(verify(&changed).is_err(), "byte {at} may be changed");
            assert!(verify(&text[..at]).is_err(), "it may be cut after {at} bytes");
        }
        assert!(verify(&format!("{text}.")).is_err());
        let kid = secret(9).key().id();
        for header in [
            r#"{"alg":"none"}"#.to_owned(),
            format!(r#"{{"alg":"none","kid":"{kid}"}}"#),
            format!(r#"{{"alg":"HS256","kid":"{kid}"}}"#),
            format!(r#"{{"alg":"ES256","kid":"{kid}","crit":["b64"]}}"#),
            format!(r#"{{"alg":"ES256","kid":"{kid}","typ":"dpop+jwt"}}"#),
        ] {
            let refused = verify(&forge(&header, &claims, &secret(9)));
            assert!(matches!(refused, Err(TokenRefusal::Form(_))), "{header}: {refused:?}");
        }
    }

    #[test]
    fn what_holds_too_long_or_speaks_of_others_is_refused_though_its_key_counts() {
        let bundle = bundle();
        let header = format!(r#"{{"alg":"ES256","kid":"{}"}}"#, secret(9).key().id());
        let verify = |sub: String, exp: u64| {
            let claims = serde_json::json!({ "sub": sub, "aud": ["a"], "exp": exp, "iat": NOW_S });
            let text = forge(&header, &claims.to_string(), &secret(9));
            Token::verify(&text, &bundle, "a", NOW_S)
        };
        let own = SpiffeId { cluster: cluster(), subject: agent() }.to_string();
        assert!(verify(own.clone(), NOW_S + 300).is_ok());
        assert_eq!(verify(own.clone(), NOW_S + 301), Err(Refusal::Lasting(301).into()));
        assert_eq!(verify(own.clone(), u64::MAX), Err(Refusal::Lasting(u64::MAX - NOW_S).into()));
        let elsewhere = own.replace("demo.example", "evil.example");
        assert!(matches!(
            verify(elsewhere, NOW_S + 9),
            Err(TokenRefusal::Identity(Refusal::Cluster { .. }))
        ));
        let node = |node| SpiffeId { cluster: cluster(), subject: Subject::Node(node) }.to_string();
        assert_eq!(verify(node(HERE), NOW_S + 9), Err(Refusal::OwnNode.into()));
        assert!(verify(node(NodeId([8; 32])), NOW_S + 9).is_ok());
        assert!(matches!(verify("nobody".to_owned(), NOW_S + 9), Err(TokenRefusal::Form(_))));
    }

    #[test]
    fn an_authority_signs_nothing_that_would_be_refused() {
        let sign = |token: &Token| token.sign(&secret(9), Home::Node(HERE));
        let good = token(agent());
        let held = |lasting| Token {
            validity: Validity { from_s: NOW_S, until_s: NOW_S + lasting },
            ..good.clone()
        };
        let spoken_to = |audiences: Vec<String>| Token { audiences, ..good.clone() };
        assert!(sign(&good).is_ok());
        for bad in [
            held(0),
            held(301),
            spoken_to(Vec::new()),
            spoken_to(vec![String::new()]),
            spoken_to(vec!["a".repeat(256)]),
            spoken_to(vec!["a".to_owned(); 9]),
        ] {
            assert!(matches!(sign(&bad), Err(Fault::Malformed(_))), "{bad:?}");
        }
        assert!(matches!(sign(&token(Subject::Node(HERE))), Err(Fault::Unauthenticated(_))));
    }

    #[test]
    fn a_bundle_carries_its_authorities_and_others_jwks_readers_find_them() {
        let bundle = bundle();
        let read = Bundle::parse(&bundle.to_json()).unwrap();
        assert_eq!(read, bundle);
        let jwks: serde_json::Value = serde_json::from_str(&bundle.to_jwks()).unwrap();
        let key = &jwks["keys"][0];
        assert_eq!(jwks["keys"].as_array().unwrap().len(), 1);
        assert_eq!((&key["kty"], &key["crv"]), (&"EC".into(), &"P-256".into()));
        assert_eq!(key["kid"], secret(9).key().id());
        // The same key at another place replaces it, and it can be taken out.
        let moved = TokenAuthority { key: secret(9).key(), home: Home::Offline };
        let moved_to = bundle.clone().with_authority(moved).unwrap();
        assert_eq!(moved_to.authorities(), [moved]);
        assert_eq!(moved_to.without_authority(secret(9).key()).authorities(), []);
        // Keys of other kinds are others' business, and a broken one of this kind is not.
        let with = |key: serde_json::Value| {
            let mut json: serde_json::Value = serde_json::from_str(&bundle.to_json()).unwrap();
            json["keys"].as_array_mut().unwrap().push(key);
            Bundle::parse(&json.to_string())
        };
        let rsa = serde_json::json!({ "kty": "RSA", "use": "jwt-svid", "n": "AQAB", "e": "AQAB" });
        assert_eq!(with(rsa), Ok(bundle.clone()));
        let broken = serde_json::json!({
            "kty": "EC", "crv": "P-256", "use": "jwt-svid", "x": "AA", "y": "AA",
        });
        assert!(with(broken).is_err());
    }

    #[test]
    fn keys_are_read_as_they_are_written_and_others_are_not() {
        let key = secret(9).key();
        assert_eq!(key.to_string().parse::<TokenKey>().unwrap(), key);
        let (x, y) = key.coordinates().unwrap();
        assert_eq!(TokenKey::at(&x, &y), Some(key));
        assert_eq!(TokenKey::at(&x, &x), None);
        for text in ["", "02", &"0".repeat(66), &"ä".repeat(33), &"f".repeat(66)] {
            assert!(text.parse::<TokenKey>().is_err(), "{text}");
        }
        assert!(TokenSecret::from_seed(&[0; 32]).is_err());
    }
}
