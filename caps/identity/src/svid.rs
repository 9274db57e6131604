//! Checks of an X.509 SVID: whether these certificates say who somebody is.
//!
//! The path from a root to the end is `rustls-webpki`'s to check (RFC 5280); this adds what SPIFFE and
//! DistOS ask beyond that. A chain is always two certificates: the root certifies issuers only, and
//! issuers nobody but ends.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

use distos_abi::{Fault, HolderKey, NodeId};
use lru::LruCache;
use rustls_pki_types::{
    AlgorithmIdentifier, CertificateDer, InvalidSignature, SignatureVerificationAlgorithm,
    UnixTime, alg_id,
};
use time::OffsetDateTime;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use crate::bundle::Bundle;
use crate::id::{ClusterName, SpiffeId};
use crate::profile::{self, Home};

/// The longest that an SVID may hold, in seconds. One that says more is refused, whoever signed it.
pub const MAX_SVID_LIFETIME_S: u64 = 24 * 3600;

/// Whom a certificate has to fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// Whoever connects.
    Client,
    /// Whoever is connected to.
    Server,
}

/// Who somebody is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its id.
    pub id: SpiffeId,
    /// The key that proves it.
    pub key: HolderKey,
    /// The issuer that vouched for it.
    pub issuer: HolderKey,
    /// Where that issuer runs.
    pub home: Home,
    /// Since when, in seconds since the Unix epoch.
    pub from_s: u64,
    /// Until when: afterwards it is nobody. Never later than its issuer's and its root's own
    /// certificates.
    pub until_s: u64,
}

/// Why certificates do not say who somebody is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// An SVID is two certificates.
    #[error("an SVID is the certificate of its owner and that of its issuer, and not {0}")]
    Length(usize),
    /// A certificate is not one of a cluster's.
    #[error("the certificate of {whose} is not one: {why}")]
    Certificate {
        /// Whose it should be.
        whose: &'static str,
        /// What is wrong.
        why: &'static str,
    },
    /// It is of another cluster.
    #[error("it is of the cluster {found}, and not of {wanted}")]
    Cluster {
        /// The one that it is of.
        found: ClusterName,
        /// The one whose bundle it was checked against.
        wanted: ClusterName,
    },
    /// No root of the cluster stands behind it.
    #[error("no root of the cluster stands behind it")]
    Unknown,
    /// A signature is not by whom it names.
    #[error("a signature is not by whom it names")]
    Forged,
    /// Its time has not come.
    #[error("it holds from {}", date(*.from_s))]
    NotYet {
        /// When it begins.
        from_s: u64,
    },
    /// Its time is over.
    #[error("it held until {}: renew it", date(*.until_s))]
    Expired {
        /// When it ended.
        until_s: u64,
    },
    /// It holds longer than an SVID may.
    #[error("it holds for {0} s, which is longer than any SVID may")]
    Lasting(u64),
    /// It is not for this side of a connection.
    #[error("it is not for {0:?}s")]
    Usage(Usage),
    /// The cluster's list of peers does not name it.
    #[error("the list of trusted peers does not name it")]
    Stranger,
    /// It was signed before its node was invited.
    #[error("it is from before its node was invited, on {}: renew it", date(*.since_s))]
    Former {
        /// When that was.
        since_s: u64,
    },
    /// Its issuer runs on a node that is not in the list.
    #[error("its issuer is on node/{0}, which the list of trusted peers does not name")]
    Vouched(NodeId),
    /// It is somebody else than was asked for.
    #[error("it is {0}, and somebody else was asked for")]
    Another(Box<SpiffeId>),
    /// Keys may have been agreed on in a way that the cluster does not allow any more.
    #[error("its handshake began before the cluster required ML-KEM: connect again")]
    KeyExchange,
    /// The issuer runs on the node that it vouches for.
    #[error("its issuer runs on the node that it speaks of")]
    OwnNode,
}

/// Seconds since the Unix epoch, for people.
fn date(s: u64) -> String {
    let date = i64::try_from(s).ok().and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok());
    let Some(date) = date else { return format!("{s} s after 1970") };
    let (hour, minute, second) = date.to_hms();
    format!("{} {hour:02}:{minute:02}:{second:02} UTC", date.date())
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Fault {
        match refusal {
            Refusal::Expired { until_s } => Fault::Expired { at_ms: until_s.saturating_mul(1000) },
            Refusal::Length(_) | Refusal::Certificate { .. } => {
                Fault::malformed(refusal.to_string())
            }
            other => Fault::Unauthenticated(other.to_string()),
        }
    }
}

impl Identity {
    /// Who presents these certificates (DER: its own, then its issuer's) at time `now_s`, in seconds
    /// since the Unix epoch. That it also has the key is for a handshake to show.
    pub fn verify<T: AsRef<[u8]>>(
        chain: &[T],
        bundle: &Bundle,
        now_s: u64,
        usage: Usage,
    ) -> Result<Identity, Refusal> {
        Identity::verify_once(chain, bundle, now_s, usage, &Checked::new(NonZeroUsize::MIN))
    }

    /// The same for whoever sees the same certificates again and again: of signatures that were good before, `checked`
    /// knows it. Everything else is looked at each time.
    pub fn verify_once<T: AsRef<[u8]>>(
        chain: &[T],
        bundle: &Bundle,
        now_s: u64,
        usage: Usage,
        checked: &Checked,
    ) -> Result<Identity, Refusal> {
        let [own, by] = chain else { return Err(Refusal::Length(chain.len())) };
        let (own, by) = (own.as_ref(), by.as_ref());
        let wrong = |whose| move |why| Refusal::Certificate { whose, why };
        let leaf = profile::leaf(own).map_err(wrong("its owner"))?;
        let issuer = profile::issuer(by).map_err(wrong("its issuer"))?;
        for found in [&leaf.id.cluster, &issuer.cluster] {
            if found != bundle.cluster() {
                let (found, wanted) = (found.clone(), bundle.cluster().clone());
                return Err(Refusal::Cluster { found, wanted });
            }
        }
        for facts in [&leaf.facts, &issuer.facts] {
            if now_s < facts.from_s {
                return Err(Refusal::NotYet { from_s: facts.from_s });
            }
            if now_s > facts.until_s {
                return Err(Refusal::Expired { until_s: facts.until_s });
            }
        }
        let root_until_s = path((own, by), bundle, now_s, usage, checked)?;
        let lifetime = leaf.facts.until_s - leaf.facts.from_s;
        if lifetime > MAX_SVID_LIFETIME_S {
            return Err(Refusal::Lasting(lifetime));
        }
        if !issuer.home.may_vouch_for(&leaf.id.subject) {
            return Err(Refusal::OwnNode);
        }
        Ok(Identity {
            id: leaf.id,
            key: leaf.facts.key,
            issuer: issuer.facts.key,
            home: issuer.home,
            from_s: leaf.facts.from_s,
            until_s: leaf.facts.until_s.min(issuer.facts.until_s).min(root_until_s),
        })
    }
}

/// Until when the root holds that stands behind them.
fn path(
    (own, by): (&[u8], &[u8]),
    bundle: &Bundle,
    now_s: u64,
    usage: Usage,
    checked: &Checked,
) -> Result<u64, Refusal> {
    let roots: Vec<(CertificateDer<'_>, u64)> =
        bundle.roots_at(now_s).map(|(der, until_s)| (der.into(), until_s)).collect();
    // Roots were read when the bundle was, so each is one.
    let (anchors, ends): (Vec<_>, Vec<u64>) = roots
        .iter()
        .filter_map(|(root, until_s)| Some((anchor_from_trusted_cert(root).ok()?, *until_s)))
        .unzip();
    let own = CertificateDer::from(own);
    let by = [CertificateDer::from(by)];
    let refuse = |error| refusal(error, usage);
    let own = EndEntityCert::try_from(&own).map_err(refuse)?;
    let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now_s));
    let eku = match usage {
        Usage::Client => KeyUsage::client_auth(),
        Usage::Server => KeyUsage::server_auth(),
    };
    let path =
        own.verify_for_usage(&[checked], &anchors, &by, time, eku, None, None).map_err(refuse)?;
    // A root that signed an end itself has a path without the issuer.
    if path.intermediate_certificates().count() != 1 {
        return Err(Refusal::Unknown);
    }
    // A root may have several certificates.
    let behind = anchors.iter().zip(ends).filter(|(anchor, _)| *anchor == path.anchor());
    behind.map(|(_, until_s)| until_s).max().ok_or(Refusal::Unknown)
}

fn refusal(error: webpki::Error, usage: Usage) -> Refusal {
    use webpki::Error;
    match error {
        Error::InvalidSignatureForPublicKey => Refusal::Forged,
        Error::UnknownIssuer => Refusal::Unknown,
        Error::RequiredEkuNotFoundContext(_) => Refusal::Usage(usage),
        _ => Refusal::Certificate { whose: "its owner or issuer", why: "it breaks RFC 5280" },
    }
}

/// Signatures of certificates that were good: a signature that is good stays so, whatever becomes of whom it is by.
/// They are known by the BLAKE3 hash of key, signature and what is signed.
pub struct Checked(Mutex<LruCache<[u8; 32], ()>>);

impl Checked {
    /// Knows so many at most, those that were asked for last.
    pub fn new(most: NonZeroUsize) -> Checked {
        Checked(Mutex::new(LruCache::new(most)))
    }

    fn known(&self) -> MutexGuard<'_, LruCache<[u8; 32], ()>> {
        // Nothing in here panics half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checked({})", self.known().len())
    }
}

/// Ed25519 as capabilities' signatures are checked: one encoding of a signature, no weak keys.
impl SignatureVerificationAlgorithm for Checked {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let key = HolderKey::try_from(public_key).map_err(|_| InvalidSignature)?;
        // What is signed comes last: the others have one length each, or are no signature.
        let all = blake3::Hasher::new_derive_key("distos 2026-11 a certificate's signature")
            .update(&key.0)
            .update(&signature.len().to_le_bytes())
            .update(signature)
            .update(message)
            .finalize();
        if self.known().get(all.as_bytes()).is_some() {
            return Ok(());
        }
        distos_types::verify_signature(key, message, signature).map_err(|_| InvalidSignature)?;
        self.known().put(*all.as_bytes(), ());
        Ok(())
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ED25519
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ED25519
    }
}
