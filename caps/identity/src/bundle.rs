//! What one has to know in order to check a cluster's SVIDs: its root certificates.
//!
//! Source: the SPIFFE Trust Domain and Bundle standard, section 4: a JSON web key set.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use distos_abi::{Fault, HolderKey};
use serde::{Deserialize, Serialize};

use crate::id::ClusterName;
use crate::profile::{self, RootFacts};

/// The longest bundle that is read, in bytes.
pub const MAX_BUNDLE_BYTES: usize = 64 * 1024;
/// Roots of one cluster: one, and those that follow it or that it follows.
const MAX_ROOTS: usize = 8;
/// What a key is for.
const X509_USE: &str = "x509-svid";

/// A cluster's roots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    cluster: ClusterName,
    sequence: u64,
    roots: Vec<(Vec<u8>, RootFacts)>,
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
    x5c: Option<Vec<String>>,
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
        Ok(Bundle { cluster, sequence, roots: read })
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
        Bundle::new(roots, set.sequence)
    }

    /// The bundle as JSON.
    pub fn to_json(&self) -> String {
        let key = |(der, facts): &(Vec<u8>, RootFacts)| Jwk {
            kty: "OKP".into(),
            usage: X509_USE.into(),
            crv: Some("Ed25519".into()),
            x: Some(URL_SAFE_NO_PAD.encode(facts.facts.key.0)),
            x5c: Some(vec![STANDARD.encode(der)]),
        };
        let set = KeySet { keys: self.roots.iter().map(key).collect(), sequence: self.sequence };
        // Strings and numbers have a form in JSON.
        let text = serde_json::to_string_pretty(&set).unwrap_or_default();
        text + "\n"
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

fn holds(root: &RootFacts, now_s: u64) -> bool {
    (root.facts.from_s..=root.facts.until_s).contains(&now_s)
}
