//! Attestation results: what was found of a node, signed, for minutes.
//!
//! Sources: draft-ietf-rats-ear-04, as a JWT (its claims and their names in JSON, and its profile);
//! draft-ietf-rats-ar4si for the tiers and the vector; RFC 9782 for the token's type. Signed with ES256 alone.
//!
//! ```text
//! eat_profile                  tag:ietf.org,2026:rats/ear#04
//! iat, exp                     seconds; exp is at most 300 s after iat
//! ear_verifier_id              { developer, build }
//! ear_status                   of the whole: the worst of all submodules, and none if the node was not admitted
//! submods                      by name, each
//!   ear_status                 its tier
//!   ear_trustworthiness_vector what that says of which facet; absent if nothing
//!   ear_appraisal_policy_ids   NAME@VERSION/ID of the policies that determined it; absent if none did
//!   ear_verifier_claims
//!     distos_kind, distos_reason  its kind, and why it has this tier
//!     distos_unchecked            names of checks for which there was nothing to check against; absent if there is none
//!     distos_accepted             what a policy accepted by name, "software-tpm"; absent if nothing
//!     distos_limits               what evidence of this kind does not show, in words
//! distos_node                  the node, in hexadecimal
//! distos_boot, distos_epoch    its boot, and its attestation epoch: numbers
//! distos_nonce_hash            of the nonce that the evidence is fresh by, in hexadecimal
//! distos_svid_key_hash         of the key that the evidence is bound to, in hexadecimal
//! distos_policy                { name, version, sha256 } of the policy file; absent if there was none
//! distos_collateral            SHA-256 of the collateral that was used, in hexadecimal, each
//! distos_reason                why the node was admitted, or not
//! ```
//!
//! AR4SI makes no difference between "nothing can be concluded" and no claim: a facet that rests on a check that was not made
//! is left out of the vector. If nothing is left that way, the tier is none, although a policy has affirmed it.
//!
//! Claims that begin with `distos_` are ours. Whoever reads a result passes over claims that it does not know.
//!
//! What it does not do: a result names no audience, and whoever has it can show it. It says what was found, and is no
//! key to anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;

use distos_abi::{Fault, NodeId};
use distos_identity::{Compact, Flaw, TokenKey, TokenSecret, Validity, sign_compact};
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::decision::{Appraisal, Appraised, MAX_REASON_BYTES, MAX_SUBMODS};
use crate::kind::Kind;
use crate::policy::{Edition, is_name};
use crate::tier::{Facet, Tier, Vector, tier_of};

/// The profile of draft-ietf-rats-ear-04.
pub const PROFILE: &str = "tag:ietf.org,2026:rats/ear#04";
/// The longest that a result may hold, in seconds. One that says more is refused, whoever signed it.
pub const MAX_EAR_LIFETIME_S: u64 = 300;
/// The longest result that is looked at, in bytes: more than all that a result may say takes.
pub const MAX_EAR_BYTES: usize = 384 << 10;
/// The type of the token (RFC 9782): no token of another type is taken for a result, nor a result for one.
const TYPE: &str = "eat+jwt";
/// How far clocks may differ, in seconds: from so long ahead a result is taken.
const SKEW_S: u64 = 60;
/// How many policies a result names of one submodule, and how long each name is at most, in bytes.
const MAX_POLICY_IDS: usize = 8;
const MAX_POLICY_ID_BYTES: usize = 160;
const MAX_COLLATERAL: usize = 128;
/// How many limits a result names of one submodule.
const MAX_LIMITS: usize = 2;
/// How many checks, or accepted things, a result names of one submodule, and how long each name is at most, in bytes.
const MAX_NAMES: usize = 16;
const MAX_NAME_BYTES: usize = 32;
/// The longest other text in a result, in bytes.
const MAX_TEXT_BYTES: usize = 200;

/// Which verifier it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifierId {
    /// Who made it.
    pub developer: String,
    /// Which build.
    pub build: String,
}

/// What a result is bound to: whoever relies on one compares these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// The node's boot.
    pub boot: u64,
    /// The node's attestation epoch.
    pub epoch: u64,
    /// A hash of the nonce that the evidence is fresh by.
    pub nonce_hash: [u8; 32],
    /// A hash of the key that the evidence is bound to.
    pub svid_key_hash: [u8; 32],
}

/// What a result says of one submodule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submod {
    kind: Kind,
    status: Tier,
    reason: String,
    policies: Vec<String>,
    unchecked: BTreeSet<String>,
    accepted: BTreeSet<String>,
    limits: Vec<String>,
}

impl Submod {
    fn of(kind: Kind, appraisal: &Appraisal, policies: Vec<String>) -> Submod {
        let names = |names: &BTreeSet<&str>| names.iter().map(|name| (*name).to_owned()).collect();
        let unchecked = names(appraisal.unchecked());
        let (mut status, mut reason) = (appraisal.tier(), appraisal.reason().to_owned());
        if status == Tier::Affirming && kind.vector(status, &unchecked).is_empty() {
            status = Tier::None;
            reason =
                "permitted, and nothing good is known of it: see what was not checked".to_owned();
        }
        Submod {
            kind,
            status,
            reason,
            policies,
            unchecked,
            accepted: names(appraisal.accepted()),
            limits: kind.limits().iter().map(|limit| (*limit).to_owned()).collect(),
        }
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// How far it may be trusted.
    pub fn status(&self) -> Tier {
        self.status
    }

    /// Why, in one line.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// The policies that determined it, `NAME@VERSION/ID`: the first eight.
    pub fn policies(&self) -> &[String] {
        &self.policies
    }

    /// The names of the checks for which there was nothing to check against, and with which a policy has put up, if it is
    /// affirming or warning.
    pub fn unchecked(&self) -> &BTreeSet<String> {
        &self.unchecked
    }

    /// What a policy has accepted by name: `software-tpm`.
    pub fn accepted(&self) -> &BTreeSet<String> {
        &self.accepted
    }

    /// What evidence of this kind does not show.
    pub fn limits(&self) -> &[String] {
        &self.limits
    }
}

/// An attestation result. Its status is computed from what was appraised, and never said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ear {
    validity: Validity,
    verifier: VerifierId,
    node: NodeId,
    bound: Bound,
    policy: Option<Edition>,
    collateral: Vec<[u8; 32]>,
    status: Tier,
    reason: String,
    submods: BTreeMap<String, Submod>,
}

/// Why a result says nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is no result.
    #[error("it is no attestation result: {0}")]
    Form(&'static str),
    /// It is signed by nobody whose results count.
    #[error("it is signed by nobody whose results count")]
    Signer,
    /// It was changed, or somebody else signed it.
    #[error("its signature is not by the key that it names")]
    Forged,
    /// It holds later.
    #[error("it holds from {from_s} s on")]
    NotYet {
        /// From when, in seconds since the Unix epoch.
        from_s: u64,
    },
    /// It is over.
    #[error("it held until {until_s} s")]
    Expired {
        /// Until when, in seconds since the Unix epoch.
        until_s: u64,
    },
    /// It would hold longer than a result may.
    #[error("it holds for {0} s, and a result for {MAX_EAR_LIFETIME_S} s at most")]
    Lasting(u64),
    /// It says better things of something than of its parts.
    #[error("it says better things of {0} than of what that is made of")]
    Better(String),
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Fault {
        match refusal {
            Refusal::Form(_) => Fault::malformed(refusal.to_string()),
            Refusal::Expired { until_s } => Fault::Expired { at_ms: until_s.saturating_mul(1000) },
            other => Fault::Unauthenticated(other.to_string()),
        }
    }
}

impl Ear {
    /// The result of an appraisal. `collateral` are the SHA-256 of what the evidence was verified against.
    ///
    /// [`Fault::Unauthenticated`] if nobody has signed the policies. [`Fault::Malformed`] if it would hold longer than
    /// a result may, or says more than fits.
    pub fn of(
        appraised: &Appraised,
        verifier: VerifierId,
        bound: Bound,
        collateral: Vec<[u8; 32]>,
        validity: Validity,
    ) -> Result<Ear, Fault> {
        let policy = appraised.policy().cloned();
        if policy.is_some() && !appraised.is_by_signed_policy() {
            let why = "no result is made by policies that nobody has signed";
            return Err(Fault::Unauthenticated(why.to_owned()));
        }
        let named = |id: &String| policy.as_ref().map(|policy| format!("{policy}/{id}"));
        let submods = appraised.submods().iter().map(|(name, (kind, appraisal))| {
            let policies = appraisal.policies().iter().filter_map(named).take(MAX_POLICY_IDS);
            let submod = Submod::of(*kind, appraisal, policies.collect());
            (name.clone(), submod)
        });
        let submods: BTreeMap<String, Submod> = submods.collect();
        let tiers = submods.values().map(Submod::status);
        let ear = Ear {
            validity,
            verifier,
            node: appraised.node(),
            bound,
            collateral,
            status: Tier::worst(tiers.chain([appraised.tier()])),
            reason: appraised.admission().reason().to_owned(),
            submods,
            policy,
        };
        ear.check().map_err(|refusal| Fault::malformed(refusal.to_string()))?;
        Ok(ear)
    }

    /// How far the node may be trusted.
    pub fn status(&self) -> Tier {
        self.status
    }

    /// What is said of the submodule of that name: [`Tier::None`] if there is none.
    pub fn status_of(&self, submod: &str) -> Tier {
        self.submods.get(submod).map_or(Tier::None, Submod::status)
    }

    /// The submodules.
    pub fn submods(&self) -> &BTreeMap<String, Submod> {
        &self.submods
    }

    /// Why the node was admitted, or not.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Of which node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// What it is bound to.
    pub fn bound(&self) -> &Bound {
        &self.bound
    }

    /// When it holds.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// Which verifier it was, in its own words.
    pub fn verifier(&self) -> &VerifierId {
        &self.verifier
    }

    /// By which policies; `None` if there were none.
    pub fn policy(&self) -> Option<&Edition> {
        self.policy.as_ref()
    }

    /// SHA-256 of the collateral that was used.
    pub fn collateral(&self) -> &[[u8; 32]] {
        &self.collateral
    }

    /// Signs it. [`Fault::Internal`] if it would be longer than [`MAX_EAR_BYTES`], which it cannot be.
    pub fn sign(&self, secret: &TokenSecret) -> Result<String, Fault> {
        let text = sign_compact(&Claims::from(self), TYPE, secret)?;
        match text.len() <= MAX_EAR_BYTES {
            true => Ok(text),
            false => Err(Fault::internal("a result is longer than a result may be")),
        }
    }

    /// What a token says that one of these keys has signed, and which key, at `now_s` in seconds since the Unix epoch.
    ///
    /// Refused although it is signed: what holds longer than a result may, and what says better things of the whole
    /// than of a part. A part that is not there is [`Tier::None`]: ask for it with [`Ear::status_of`].
    pub fn verify(
        text: &str,
        trusted: &[TokenKey],
        now_s: u64,
    ) -> Result<(Ear, TokenKey), Refusal> {
        let is_type = |typ: Option<&str>| typ == Some(TYPE);
        let token = Compact::parse(text, MAX_EAR_BYTES, is_type).map_err(Refusal::Form)?;
        let key = trusted.iter().find(|key| key.id() == token.key_id());
        let key = key.ok_or(Refusal::Signer)?;
        let claims: Claims = token.claims(key).map_err(|flaw| match flaw {
            Flaw::Forged => Refusal::Forged,
            Flaw::Claims => Refusal::Form("it does not claim what a result does"),
        })?;
        let ear = claims.read()?;
        if now_s.saturating_add(SKEW_S) < ear.validity.from_s {
            return Err(Refusal::NotYet { from_s: ear.validity.from_s });
        }
        if now_s >= ear.validity.until_s {
            return Err(Refusal::Expired { until_s: ear.validity.until_s });
        }
        Ok((ear, *key))
    }

    /// What must hold of every result, wherever it comes from.
    fn check(&self) -> Result<(), Refusal> {
        let Validity { from_s, until_s } = self.validity;
        let lasts = until_s.saturating_sub(from_s);
        if lasts > MAX_EAR_LIFETIME_S {
            return Err(Refusal::Lasting(lasts));
        }
        let fits =
            |text: &str, max: usize| text.len() <= max && !text.chars().any(char::is_control);
        let short = |text: &String| fits(text, MAX_TEXT_BYTES);
        let named = |names: &BTreeSet<String>| {
            names.len() <= MAX_NAMES && names.iter().all(|name| is_check(name))
        };
        let submod_fits = |(name, submod): (&String, &Submod)| {
            is_name(name)
                && named(&submod.unchecked)
                && named(&submod.accepted)
                && submod.limits.len() <= MAX_LIMITS
                && submod.limits.iter().all(short)
                && fits(&submod.reason, MAX_REASON_BYTES)
                && submod.policies.len() <= MAX_POLICY_IDS
                && submod.policies.iter().all(|id| fits(id, MAX_POLICY_ID_BYTES))
        };
        let good = [
            (lasts > 0, "it never holds"),
            (short(&self.verifier.developer) && short(&self.verifier.build), "its verifier"),
            (self.policy.as_ref().is_none_or(|policy| is_name(&policy.name)), "its policy"),
            (self.collateral.len() <= MAX_COLLATERAL, "its collateral"),
            (fits(&self.reason, MAX_REASON_BYTES), "its reason"),
            (self.submods.len() <= MAX_SUBMODS, "its submodules are too many"),
            (self.submods.iter().all(submod_fits), "a submodule"),
        ];
        if let Some((_, what)) = good.into_iter().find(|(is_good, _)| !is_good) {
            return Err(Refusal::Form(what));
        }
        let worst = Tier::worst(self.submods.values().map(Submod::status));
        match self.status < worst {
            true => Err(Refusal::Better("the node".to_owned())),
            false => Ok(()),
        }
    }
}

/// A result as a token has it.
#[derive(Serialize, Deserialize)]
struct Claims {
    eat_profile: String,
    iat: u64,
    exp: u64,
    ear_verifier_id: VerifierId,
    /// Absent is none.
    #[serde(default = "none")]
    ear_status: Tier,
    #[serde(default, deserialize_with = "unique")]
    submods: BTreeMap<String, SubmodClaims>,
    distos_node: Hex,
    distos_boot: u64,
    distos_epoch: u64,
    distos_nonce_hash: Hex,
    distos_svid_key_hash: Hex,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    distos_policy: Option<PolicyClaims>,
    #[serde(default)]
    distos_collateral: Vec<Hex>,
    #[serde(default)]
    distos_reason: String,
}

#[derive(Serialize, Deserialize)]
struct SubmodClaims {
    #[serde(default = "none")]
    ear_status: Tier,
    #[serde(default, deserialize_with = "unique", skip_serializing_if = "Vector::is_empty")]
    ear_trustworthiness_vector: Vector,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ear_appraisal_policy_ids: Vec<String>,
    ear_verifier_claims: VerifierClaims,
}

#[derive(Serialize, Deserialize)]
struct VerifierClaims {
    distos_kind: Kind,
    #[serde(default)]
    distos_reason: String,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    distos_unchecked: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    distos_accepted: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    distos_limits: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct PolicyClaims {
    name: String,
    version: u64,
    sha256: Hex,
}

/// 32 bytes in hexadecimal.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
struct Hex([u8; 32]);

impl From<Hex> for String {
    fn from(hex: Hex) -> String {
        hex::encode(hex.0)
    }
}

impl TryFrom<String> for Hex {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Hex, &'static str> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(&text, &mut bytes).map_err(|_| "not 64 hexadecimal digits")?;
        // One way to write it.
        match hex::encode(bytes) == text {
            true => Ok(Hex(bytes)),
            false => Err("not in lower case"),
        }
    }
}

/// Whether this is the name of a check, or of something that a policy accepts.
fn is_check(name: &str) -> bool {
    let fits = |c: u8| c.is_ascii_alphanumeric() || [b' ', b'-'].contains(&c);
    (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(fits)
}

fn none() -> Tier {
    Tier::None
}

/// A map in which nothing stands twice: two readers would take one or the other.
fn unique<'de, D, K, V>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
where
    D: Deserializer<'de>,
    K: Deserialize<'de> + Ord,
    V: Deserialize<'de>,
{
    struct Unique<K, V>(PhantomData<(K, V)>);

    impl<'de, K: Deserialize<'de> + Ord, V: Deserialize<'de>> Visitor<'de> for Unique<K, V> {
        type Value = BTreeMap<K, V>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
            let mut map = BTreeMap::new();
            while let Some((key, value)) = access.next_entry()? {
                if map.insert(key, value).is_some() {
                    return Err(A::Error::custom("something stands there twice"));
                }
            }
            Ok(map)
        }
    }

    deserializer.deserialize_map(Unique(PhantomData))
}

impl From<&Ear> for Claims {
    fn from(ear: &Ear) -> Claims {
        let submods = ear.submods.iter().map(|(name, submod)| {
            let claims = SubmodClaims {
                ear_status: submod.status,
                ear_trustworthiness_vector: submod.kind.vector(submod.status, &submod.unchecked),
                ear_appraisal_policy_ids: submod.policies.clone(),
                ear_verifier_claims: VerifierClaims {
                    distos_kind: submod.kind,
                    distos_reason: submod.reason.clone(),
                    distos_unchecked: submod.unchecked.clone(),
                    distos_accepted: submod.accepted.clone(),
                    distos_limits: submod.limits.clone(),
                },
            };
            (name.clone(), claims)
        });
        Claims {
            eat_profile: PROFILE.to_owned(),
            iat: ear.validity.from_s,
            exp: ear.validity.until_s,
            ear_verifier_id: ear.verifier.clone(),
            ear_status: ear.status,
            submods: submods.collect(),
            distos_node: Hex(ear.node.0),
            distos_boot: ear.bound.boot,
            distos_epoch: ear.bound.epoch,
            distos_nonce_hash: Hex(ear.bound.nonce_hash),
            distos_svid_key_hash: Hex(ear.bound.svid_key_hash),
            distos_policy: ear.policy.as_ref().map(|policy| PolicyClaims {
                name: policy.name.clone(),
                version: policy.version,
                sha256: Hex(policy.digest),
            }),
            distos_collateral: ear.collateral.iter().copied().map(Hex).collect(),
            distos_reason: ear.reason.clone(),
        }
    }
}

impl Claims {
    fn read(self) -> Result<Ear, Refusal> {
        if self.eat_profile != PROFILE {
            return Err(Refusal::Form("it has another profile"));
        }
        let mut submods = BTreeMap::new();
        for (name, claims) in self.submods {
            submods.insert(name.clone(), claims.read(name)?);
        }
        let ear = Ear {
            validity: Validity { from_s: self.iat, until_s: self.exp },
            verifier: self.ear_verifier_id,
            node: NodeId(self.distos_node.0),
            bound: Bound {
                boot: self.distos_boot,
                epoch: self.distos_epoch,
                nonce_hash: self.distos_nonce_hash.0,
                svid_key_hash: self.distos_svid_key_hash.0,
            },
            policy: self.distos_policy.map(|policy| Edition {
                name: policy.name,
                version: policy.version,
                digest: policy.sha256.0,
            }),
            collateral: self.distos_collateral.into_iter().map(|hex| hex.0).collect(),
            status: self.ear_status,
            reason: self.distos_reason,
            submods,
        };
        ear.check()?;
        Ok(ear)
    }
}

impl SubmodClaims {
    fn read(self, name: String) -> Result<Submod, Refusal> {
        let VerifierClaims {
            distos_kind: kind,
            distos_reason: reason,
            distos_unchecked: unchecked,
            distos_accepted: accepted,
            distos_limits: limits,
        } = self.ear_verifier_claims;
        let claimed = || self.ear_trustworthiness_vector.iter();
        // A facet of which nothing is claimed takes nothing away; a status of which no facet speaks says nothing.
        let tiers = claimed().map(|(_, claim)| tier_of(*claim));
        let worst = Tier::worst(tiers.filter(|tier| *tier != Tier::None));
        // What was not checked is nothing to affirm by, whatever the vector says.
        let affirms = |facet: &Facet, claim: &i8| {
            tier_of(*claim) == Tier::Affirming && !kind.may_affirm(*facet, &unchecked)
        };
        let is_empty = self.ear_status == Tier::Affirming
            && kind.vector(Tier::Affirming, &unchecked).is_empty();
        if self.ear_status < worst || is_empty || claimed().any(|(f, claim)| affirms(f, claim)) {
            return Err(Refusal::Better(name));
        }
        Ok(Submod {
            kind,
            status: self.ear_status,
            reason,
            policies: self.ear_appraisal_policy_ids,
            unchecked,
            accepted,
            limits,
        })
    }
}

#[cfg(test)]
#[path = "result_tests.rs"]
mod tests;
