//! What one has to know in order to check a cluster's SVIDs: its root certificates, and the keys that sign tokens.
//!
//! Source: the SPIFFE Trust Domain and Bundle standard, section 4: a JSON web key set.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use distos_abi::{Fault, HolderKey};
use serde::{Deserialize, Serialize};

use crate::id::ClusterName;
use crate::profile::{self, Home, RootFacts};
use crate::token::{TokenAuthority, TokenKey};

/// The longest bundle that is read, in bytes.
pub const MAX_BUNDLE_BYTES: usize = 64 * 1024;
/// Roots of one cluster: one, and those that follow it or that it follows.
const MAX_ROOTS: usize = 8;
/// Keys that sign tokens.
const MAX_AUTHORITIES: usize = 128;
/// What a key is for.
const X509_USE: &str = "x509-svid";
const JWT_USE: &str = "jwt-svid";
const JWT_KEY: (&str, Option<&str>) = ("EC", Some("P-256"));

/// A cluster's roots, and whose tokens its members take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    cluster: ClusterName,
    sequence: u64,
    roots: Vec<(Vec<u8>, RootFacts)>,
    authorities: Vec<TokenAuthority>,
}

#[derive(Serialize, Deserialize)]
struct KeySet {
    keys: Vec<Jwk>,
    #[serde(rename = "spiffe_sequence", default)]
    sequence: u64,
}

#[derive(Serialize, Deserialize)]
struct Jwk {
    kty: String,
    #[serde(rename = "use", default)]
    usage: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    crv: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    x: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    y: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    x5c: Option<Vec<String>>,
    /// Of a key that signs tokens: where it is, if on a node. Not of the standard: others do not look at it.
    #[serde(rename = "distos_home", skip_serializing_if = "Option::is_none")]
    home: Option<String>,
}

impl Bundle {
    /// The bundle of these root certificates, DER, in its `sequence`-th version.
    /// [`Fault::Malformed`] if they are not roots of one cluster.
    pub fn new(roots: Vec<Vec<u8>>, sequence: u64) -> Result<Bundle, Fault> {
        if !(1..=MAX_ROOTS).contains(&roots.len()) {
            return Err(Fault::malformed(format!("a bundle has 1 to {MAX_ROOTS} roots")));
        }
        let mut read = Vec::new();
        for der in roots {
            let facts = profile::root(&der)
                .map_err(|why| Fault::malformed(format!("a root in the bundle: {why}")))?;
            read.push((der, facts));
        }
        let cluster = read[0].1.cluster.clone();
        if read.iter().any(|(_, facts)| facts.cluster != cluster) {
            return Err(Fault::malformed("the bundle's roots are of several clusters"));
        }
        Ok(Bundle { cluster, sequence, roots: read, authorities: Vec::new() })
    }

    /// Reads a bundle's JSON. Keys for other uses are left out, as the standard has it.
    pub fn parse(text: &str) -> Result<Bundle, Fault> {
        if text.len() > MAX_BUNDLE_BYTES {
            return Err(Fault::malformed("a bundle is not so long"));
        }
        let set: KeySet = serde_json::from_str(text).map_err(|e| {
            Fault::malformed(format!("this is no SPIFFE bundle: line {}: {e}", e.line()))
        })?;
        let mut roots = Vec::new();
        for key in set.keys.iter().filter(|key| key.usage == X509_USE) {
            let der = match key.x5c.as_deref() {
                Some([one]) => STANDARD.decode(one).ok(),
                _ => None,
            };
            roots.push(der.ok_or_else(|| {
                Fault::malformed("a key in the bundle has not one certificate in x5c")
            })?);
        }
        let authority = |key: &Jwk| {
            token_authority(key).ok_or_else(|| {
                Fault::malformed("a key for tokens in the bundle is no point of P-256")
            })
        };
        // Others are left out, likewise: section 4.2.1.
        let is_ours = |key: &&Jwk| (key.kty.as_str(), key.crv.as_deref()) == JWT_KEY;
        let tokens = set.keys.iter().filter(|key| key.usage == JWT_USE).filter(is_ours);
        tokens
            .map(authority)
            .try_fold(Bundle::new(roots, set.sequence)?, |bundle, one| bundle.with_authority(one?))
    }

    /// The same, with one more whose tokens are taken; or with another home for its key.
    pub fn with_authority(mut self, authority: TokenAuthority) -> Result<Bundle, Fault> {
        self.authorities.retain(|one| one.key != authority.key);
        if self.authorities.len() >= MAX_AUTHORITIES {
            let why = format!("a bundle has {MAX_AUTHORITIES} keys for tokens at most");
            return Err(Fault::malformed(why));
        }
        self.authorities.push(authority);
        Ok(self)
    }

    /// The same, without whoever signs tokens with this key.
    #[must_use]
    pub fn without_authority(mut self, key: TokenKey) -> Bundle {
        self.authorities.retain(|one| one.key != key);
        self
    }

    /// The same, in its `sequence`-th version.
    #[must_use]
    pub fn numbered(self, sequence: u64) -> Bundle {
        Bundle { sequence, ..self }
    }

    /// Whose tokens are taken.
    pub fn authorities(&self) -> &[TokenAuthority] {
        &self.authorities
    }

    /// The one whose key has this name.
    pub(crate) fn authority(&self, id: &str) -> Option<&TokenAuthority> {
        self.authorities.iter().find(|one| one.key.id() == id)
    }

    /// The keys for tokens alone, as other programs want them: a JSON web key set.
    pub fn to_jwks(&self) -> String {
        json(self.authorities.iter().filter_map(token_jwk).collect(), self.sequence)
    }

    /// The bundle as JSON.
    pub fn to_json(&self) -> String {
        let key = |(der, facts): &(Vec<u8>, RootFacts)| Jwk {
            kty: "OKP".into(),
            usage: X509_USE.into(),
            crv: Some("Ed25519".into()),
            x: Some(URL_SAFE_NO_PAD.encode(facts.facts.key.0)),
            y: None,
            kid: None,
            x5c: Some(vec![STANDARD.encode(der)]),
            home: None,
        };
        let tokens = self.authorities.iter().filter_map(token_jwk);
        json(self.roots.iter().map(key).chain(tokens).collect(), self.sequence)
    }

    /// The cluster.
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// Which version of the cluster's bundle this is: a later one has a greater number.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The roots' keys.
    pub fn keys(&self) -> impl Iterator<Item = HolderKey> {
        self.roots.iter().map(|(_, facts)| facts.facts.key)
    }

    /// The keys of those that hold at this time.
    pub fn keys_at(&self, now_s: u64) -> impl Iterator<Item = HolderKey> {
        let held = self.roots.iter().filter(move |(_, facts)| holds(facts, now_s));
        held.map(|(_, facts)| facts.facts.key)
    }

    /// The certificates of the roots, DER.
    pub fn roots(&self) -> impl Iterator<Item = &[u8]> {
        self.roots.iter().map(|(der, _)| der.as_slice())
    }

    /// Those that hold at this time, and until when.
    pub(crate) fn roots_at(&self, now_s: u64) -> impl Iterator<Item = (&[u8], u64)> {
        let held = self.roots.iter().filter(move |(_, facts)| holds(facts, now_s));
        held.map(|(der, facts)| (der.as_slice(), facts.facts.until_s))
    }
}

fn json(keys: Vec<Jwk>, sequence: u64) -> String {
    // Strings and numbers have a form in JSON.
    let text = serde_json::to_string_pretty(&KeySet { keys, sequence }).unwrap_or_default();
    text + "\n"
}

/// Every key that is kept is a point with two coordinates.
fn token_jwk(authority: &TokenAuthority) -> Option<Jwk> {
    let (x, y) = authority.key.coordinates()?;
    Some(Jwk {
        kty: JWT_KEY.0.into(),
        usage: JWT_USE.into(),
        crv: JWT_KEY.1.map(str::to_owned),
        x: Some(URL_SAFE_NO_PAD.encode(x)),
        y: Some(URL_SAFE_NO_PAD.encode(y)),
        kid: Some(authority.key.id()),
        x5c: None,
        home: Some(authority.home.to_string()).filter(|_| authority.home != Home::Offline),
    })
}

/// Its name follows from the key, whatever the bundle calls it.
fn token_authority(key: &Jwk) -> Option<TokenAuthority> {
    let number = |text: &Option<String>| URL_SAFE_NO_PAD.decode(text.as_deref()?).ok();
    let point = TokenKey::at(&number(&key.x)?, &number(&key.y)?)?;
    let home = key.home.as_deref().map_or(Some(Home::Offline), |home| home.parse().ok())?;
    Some(TokenAuthority { key: point, home })
}

fn holds(root: &RootFacts, now_s: u64) -> bool {
    (root.facts.from_s..=root.facts.until_s).contains(&now_s)
}
