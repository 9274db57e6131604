//! Certificate chains of devices, up to roots that are pinned (RFC 5280, section 6), and what of them was revoked: by lists, or
//! by what responders have said ([`ocsp`](crate::ocsp)).
//!
//! The makers of TPMs, GPUs and processors certify their devices in ways that libraries for the web refuse: validity to
//! the year 9999, critical extensions of their own, RSA-PSS. So paths are built here, of few certificates and from few
//! candidates. Parsing and signatures are libraries'. Neither lists nor responses are fetched.

pub(crate) mod certificate;

use x509_cert::der::asn1::ObjectIdentifier;

pub use certificate::{
    COMMON_NAME, Certificate, Crl, MAX_CERTIFICATE_BYTES, MAX_CERTIFICATES, MAX_CRL_BYTES, Refusal,
};
pub(crate) use certificate::{P256, P384, RSA_KEY};

use crate::findings::Findings;
use crate::ocsp::{Response, Word};

/// Of the check of a certificate chain.
pub const CHAIN: &str = "certificate chain";
/// Of the check that none of its certificates is revoked.
pub const REVOCATION: &str = "revocation";
/// How many certificates a path may have, root and leaf counted.
const MAX_PATH: usize = 8;
/// How many signatures are checked to find a path.
const MAX_SIGNATURES: usize = 32;

/// What certificates are held against.
#[derive(Clone, Copy, Debug)]
pub struct Anchors<'a> {
    /// Certificates that are trusted because somebody said so. They too have to hold at the time, and be understood.
    pub roots: &'a [Certificate],
    /// Certificates that may stand between: not trusted.
    pub others: &'a [Certificate],
    /// Lists of what was revoked: not trusted either, each is signed.
    pub crls: &'a [Crl],
    /// What responders have said of single certificates: signed as well.
    pub responses: &'a [Response],
    /// Unix seconds.
    pub at_s: u64,
}

impl Anchors<'_> {
    /// Whether a current list or response says that `one` is not revoked, which `issuer` has issued.
    fn asked(&self, one: &Certificate, issuer: &Certificate) -> Result<bool, Refusal> {
        let lists: Vec<&Crl> =
            self.crls.iter().filter(|crl| crl.is_by(issuer, self.at_s)).collect();
        let says = |response: &Response| response.says(one, issuer, &lists, self.at_s);
        let words: Vec<Word> = self.responses.iter().filter_map(says).collect();
        // What was taken back once stays so, however old the list or the response is.
        if lists.iter().any(|list| list.lists(one)) || words.contains(&Word::Revoked) {
            let serial = one.serial().to_string();
            return Err(Refusal::Revoked { subject: one.subject(), serial });
        }
        Ok(words.contains(&Word::Good) || lists.iter().any(|list| list.is_current(self.at_s)))
    }
}

/// A path that holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// The certificates from the leaf to the root.
    pub certificates: Vec<Certificate>,
    /// Unix seconds at which the first of them runs out.
    pub until_s: u64,
    /// The subjects of those below the root of which neither a current list of their issuer nor a current response says
    /// that they are not revoked: of them nothing is known. Whoever may sign no lists, as a device that certifies its own
    /// firmware, takes nothing back: what it has issued is not among them, unless it names a responder.
    pub unanswered: Vec<String>,
}

impl Path {
    /// Finds a path from `leaf` to a root, by way of `chain` and the anchors' other certificates, and checks it.
    /// `purpose` is what the leaf must be for, if it says what it is for.
    ///
    /// # Errors
    /// [`Refusal`], for the path that came furthest.
    pub fn find(
        leaf: &Certificate,
        chain: &[Certificate],
        anchors: Anchors<'_>,
        purpose: Option<ObjectIdentifier>,
    ) -> Result<Path, Refusal> {
        leaf.check_purpose(purpose)?;
        let mut search = Search { chain, anchors, signatures_left: MAX_SIGNATURES };
        let mut path = vec![leaf];
        search.extend(&mut path)?;
        let mut unanswered = Vec::new();
        for (one, issuer) in path.iter().zip(path.iter().skip(1)) {
            let is_answered = anchors.asked(one, issuer)?;
            let takes_back = issuer.may_sign_lists() || one.names_responder();
            if takes_back && !is_answered {
                unanswered.push(one.subject());
            }
        }
        let until_s = path.iter().map(|one| one.not_after_s()).min().unwrap_or(0);
        let certificates = path.into_iter().cloned().collect();
        Ok(Path { certificates, until_s, unanswered })
    }

    /// Finds a path from the first of `chain`, and notes what was found.
    pub fn note(
        chain: &[Certificate],
        anchors: Anchors<'_>,
        purpose: Option<ObjectIdentifier>,
        findings: &mut Findings,
    ) -> Option<Path> {
        if anchors.roots.is_empty() {
            findings.not_checked(CHAIN, "no root of this maker is pinned");
            return None;
        }
        let empty = Refusal::Malformed { what: "the chain", why: "it is empty".to_owned() };
        let path = chain
            .split_first()
            .ok_or(empty)
            .and_then(|(leaf, rest)| Path::find(leaf, rest, anchors, purpose));
        let path =
            findings.check(CHAIN, path, |path| format!("up to {}", path.root().subject()))?;
        if path.is_revocation_known() {
            findings.passed(REVOCATION, "no issuer has taken a certificate back");
        } else {
            let of = path.unanswered.join("', '");
            findings.not_checked(
                REVOCATION,
                format!("no current list, nor a responder's answer, was given for '{of}'"),
            );
        }
        Some(path)
    }

    /// Whether it is known of each below the root that it is not revoked.
    pub fn is_revocation_known(&self) -> bool {
        self.unanswered.is_empty()
    }

    /// The root that it ends in.
    pub fn root(&self) -> &Certificate {
        self.certificates.last().expect("a path has a leaf")
    }
}

struct Search<'a> {
    chain: &'a [Certificate],
    anchors: Anchors<'a>,
    signatures_left: usize,
}

impl<'a> Search<'a> {
    /// Depth first: several issuers may have one name, as those that were certified anew.
    fn extend(&mut self, path: &mut Vec<&'a Certificate>) -> Result<(), Refusal> {
        let last = *path.last().expect("a path has a leaf");
        last.check_extensions()?;
        last.check_time(self.anchors.at_s)?;
        let is_root = |one: &Certificate| self.anchors.roots.iter().any(|root| root == one);
        if is_root(last) {
            return Ok(());
        }
        let Anchors { roots, others, .. } = self.anchors;
        let mut refusal = Refusal::NoIssuer(last.subject());
        if path.len() == MAX_PATH {
            return Err(refusal);
        }
        for issuer in roots.iter().chain(self.chain).chain(others) {
            if issuer.name() != last.issuer() || path.contains(&issuer) {
                continue;
            }
            if self.signatures_left == 0 {
                return Err(refusal);
            }
            self.signatures_left -= 1;
            if !last.is_signed_by(issuer) {
                refusal = Refusal::Signature(last.subject());
                continue;
            }
            // Whether a root may issue is not for it to say: it is pinned for that.
            let allowed =
                if is_root(issuer) { Ok(()) } else { issuer.check_may_issue(path.len() - 1) };
            path.push(issuer);
            match allowed.and_then(|()| self.extend(path)) {
                Ok(()) => return Ok(()),
                Err(why) => refusal = why,
            }
            path.pop();
        }
        Err(refusal)
    }
}

#[cfg(test)]
#[path = "pki_tests.rs"]
pub(crate) mod tests;
