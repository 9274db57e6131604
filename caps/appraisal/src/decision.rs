//! What policies say of a node's devices.

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy::{
    AuthorizationError, Authorizer, Context, Decision, Entities, Entity, EntityUid, PolicyId,
    Request, RestrictedExpression,
};
use distos_abi::{Fault, NodeId};
use distos_evidence::findings::{Claim, Findings, Outcome};

use crate::kind::{ACTION, Kind, MAX_TEXTS, NODE, Shown, Unshown, VERIFIER, checks, texts, uid};
use crate::policy::{Action, Edition, Policies, SOFTWARE_TPM, is_name};
use crate::tier::Tier;

/// How many submodules a node may have.
pub const MAX_SUBMODS: usize = 64;
/// The longest reason, in bytes.
pub(crate) const MAX_REASON_BYTES: usize = 200;
/// What a TPM's evidence says of it.
const TPM: &str = "tpm";
const HARDWARE: &str = "hardware";

/// What is appraised: one device of a node, or one log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its kind.
    pub kind: Kind,
    /// What verifying its evidence has found.
    pub findings: Findings,
}

/// What policies say of one device, or of the node as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appraisal {
    tier: Tier,
    reason: String,
    policies: BTreeSet<String>,
    unchecked: BTreeSet<&'static str>,
    accepted: BTreeSet<&'static str>,
}

impl Appraisal {
    /// How far it may be trusted.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// Why, in one line of at most 200 bytes. Names of checks, policies and claims: nothing that evidence could have
    /// chosen.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// The names of the policies that determined it; empty if none was asked, or none applied.
    pub fn policies(&self) -> &BTreeSet<String> {
        &self.policies
    }

    /// The names of the checks for which there was nothing to check against. Of a device that is permitted, the policies
    /// have put up with each of them.
    pub fn unchecked(&self) -> &BTreeSet<&'static str> {
        &self.unchecked
    }

    /// What the policies have accepted by name: `software-tpm`, where it rests on a TPM that is not known to be hardware.
    pub fn accepted(&self) -> &BTreeSet<&'static str> {
        &self.accepted
    }

    fn new(tier: Tier, reason: impl Into<String>) -> Appraisal {
        let mut reason = reason.into();
        while reason.len() > MAX_REASON_BYTES {
            reason.pop();
        }
        let (unchecked, accepted) = (BTreeSet::new(), BTreeSet::new());
        Appraisal { tier, reason, policies: BTreeSet::new(), unchecked, accepted }
    }

    fn by(tier: Tier, reason: impl Into<String>, answer: &Answer) -> Appraisal {
        let policies = answer.determining.iter().map(ToString::to_string).collect();
        let accepted = answer.accepted.clone();
        Appraisal { policies, accepted, ..Appraisal::new(tier, reason) }
    }
}

/// What policies say of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appraised {
    node: NodeId,
    policy: Option<Edition>,
    signed: bool,
    submods: BTreeMap<String, (Kind, Appraisal)>,
    admission: Appraisal,
}

impl Appraised {
    /// Of which node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// By which policies; `None` if there were none.
    pub fn policy(&self) -> Option<&Edition> {
        self.policy.as_ref()
    }

    /// Whether somebody has signed them.
    pub fn is_by_signed_policy(&self) -> bool {
        self.signed
    }

    /// Of each device, by the name of its submodule.
    pub fn submods(&self) -> &BTreeMap<String, (Kind, Appraisal)> {
        &self.submods
    }

    /// Whether the node has shown all that it has to show: affirming, or none.
    pub fn admission(&self) -> &Appraisal {
        &self.admission
    }

    /// How far the node may be trusted: as far as the worst of its devices, and not at all if it is not admitted.
    pub fn tier(&self) -> Tier {
        let devices = self.submods.values().map(|(_, appraisal)| appraisal.tier);
        Tier::worst(devices.chain([self.admission.tier]))
    }
}

/// Asks the policies about each device of a node, and about the node. `verifier` is who asks.
///
/// [`Fault::Malformed`] if there are more than [`MAX_SUBMODS`] devices, or the name of one is not 1 to 64 lower-case
/// letters, digits and "-". [`Fault::Internal`] if a claim is of another type than policies know it as.
pub fn appraise(
    policies: Option<&Policies>,
    verifier: NodeId,
    node: NodeId,
    devices: &BTreeMap<String, Device>,
) -> Result<Appraised, Fault> {
    if devices.len() > MAX_SUBMODS {
        return Err(Fault::malformed(format!("a node has at most {MAX_SUBMODS} submodules")));
    }
    if let Some(name) = devices.keys().find(|name| !is_name(name)) {
        return Err(Fault::malformed(format!("{name:?} is no name of a submodule")));
    }
    let desk = policies.map(|policies| Desk::new(policies, verifier));
    let mut submods = BTreeMap::new();
    for (name, device) in devices {
        let mut appraisal = of_device(desk.as_ref(), name, device)?;
        appraisal.unchecked = checks(&device.findings, Outcome::NotChecked);
        submods.insert(name.clone(), (device.kind, appraisal));
    }
    let admission = of_node(desk.as_ref(), node, &submods)?;
    Ok(Appraised {
        node,
        policy: policies.map(|policies| policies.edition().clone()),
        signed: policies.is_some_and(|policies| policies.signer().is_some()),
        submods,
        admission,
    })
}

fn of_device(desk: Option<&Desk<'_>>, name: &str, device: &Device) -> Result<Appraisal, Fault> {
    let Device { kind, findings } = device;
    // Before any policy: this is evidence that contradicts itself or its trust anchors.
    let failed = checks(findings, Outcome::Failed);
    if !failed.is_empty() {
        let reason = format!("failed: {}", listed(&failed));
        return Ok(Appraisal::new(Tier::Contraindicated, reason));
    }
    if findings.checks.is_empty() {
        return Ok(Appraisal::new(Tier::None, "nothing was checked"));
    }
    let Some(desk) = desk else {
        return Ok(Appraisal::new(Tier::None, "there is no policy"));
    };
    if !desk.policies.speak_of(*kind) {
        let reason = format!("no policy permits anything of kind {}", kind.name());
        return Ok(Appraisal::new(Tier::None, reason));
    }
    let shown = match Shown::of(name, *kind, findings) {
        Ok(shown) => shown,
        Err(Unshown::Type(fault)) => return Err(fault),
        Err(Unshown::Many(claim)) => {
            let reason = format!("more than {MAX_TEXTS} values of {claim}");
            return Ok(Appraisal::new(Tier::Contraindicated, reason));
        }
    };
    let (passed, unchecked) = (findings.all_passed(), checks(findings, Outcome::NotChecked));
    let case = Case { shown: &shown, passed: &passed, unchecked: &unchecked, findings };
    let affirmed = desk.judge(Action::Affirm, &case)?;
    if let Ok(answer) = affirmed {
        return Ok(Appraisal::by(Tier::Affirming, "permitted", &answer));
    }
    let warned = desk.judge(Action::Warn, &case)?;
    if let Ok(answer) = warned {
        return Ok(Appraisal::by(Tier::Warning, "permitted with a warning", &answer));
    }
    let refused = [affirmed, warned].into_iter().filter_map(Result::err);
    let worst = refused.max_by_key(|refused| refused.rank);
    let worst = worst.expect("both were refused");
    if worst.rank == Rank::Error || unchecked.is_empty() {
        return Ok(worst.into());
    }
    // Would it do, if what could not be checked had passed? Then nothing contradicts what is asked for: it is absent.
    let all = passed.union(&unchecked).copied().collect();
    let case = Case { passed: &all, unchecked: &BTreeSet::new(), ..case };
    let would_do = [Action::Affirm, Action::Warn]
        .map(|action| desk.judge(action, &case))
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?
        .iter()
        .any(Result::is_ok);
    match would_do {
        true => Ok(Appraisal::new(Tier::None, format!("not checked: {}", listed(&unchecked)))),
        false => Ok(worst.into()),
    }
}

/// A node that no policy admits has not shown what it has to show. Nothing gets better by this.
fn of_node(
    desk: Option<&Desk<'_>>,
    node: NodeId,
    submods: &BTreeMap<String, (Kind, Appraisal)>,
) -> Result<Appraisal, Fault> {
    let Some(desk) = desk else {
        return Ok(Appraisal::new(Tier::None, "there is no policy"));
    };
    let of_tier = |tier| {
        let all = submods.iter().filter(move |(_, (_, appraisal))| appraisal.tier == tier);
        texts(all.map(|(name, _)| name.as_str()))
    };
    let mut attributes = std::collections::HashMap::from([
        ("submods".to_owned(), texts(submods.keys().map(String::as_str))),
        ("affirming".to_owned(), of_tier(Tier::Affirming)),
        ("warning".to_owned(), of_tier(Tier::Warning)),
    ]);
    for kind in Kind::ALL {
        let count = submods.values().filter(|(of, _)| *of == kind).count() as i64;
        let name = kind.name().replace('-', "_");
        attributes.insert(name, RestrictedExpression::new_long(count));
    }
    let uid = uid(NODE, &node.to_string());
    let entity = Entity::new(uid.clone(), attributes, Default::default());
    let answer = desk.ask(Action::Admit, &uid, entity.map_err(Fault::internal)?)?;
    if !answer.errors.is_empty() {
        return Ok(Refused::error(&answer).into());
    }
    Ok(match answer.permitted {
        true => Appraisal::by(Tier::Affirming, "admitted", &answer),
        false => Appraisal::by(Tier::None, "no policy admits a node that shows no more", &answer),
    })
}

/// Who asks policies.
struct Desk<'a> {
    policies: &'a Policies,
    verifier: EntityUid,
    authorizer: Authorizer,
}

/// What policies answer.
struct Answer {
    permitted: bool,
    determining: BTreeSet<PolicyId>,
    /// The policies that could not be evaluated. Cedar passes over them, and so over what they forbid.
    errors: BTreeSet<PolicyId>,
    /// What those that permit it have accepted by name, and had to.
    accepted: BTreeSet<&'static str>,
}

/// A device, as it is put to policies.
#[derive(Clone, Copy)]
struct Case<'a> {
    shown: &'a Shown,
    passed: &'a BTreeSet<&'static str>,
    unchecked: &'a BTreeSet<&'static str>,
    findings: &'a Findings,
}

/// Why a device is not permitted, the graver ones last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Unpermitted,
    Unchecked,
    Software,
    /// What else policies would have said is not known.
    Error,
    /// That one forbids it is known, whatever the others would have said.
    Forbidden,
}

struct Refused {
    rank: Rank,
    appraisal: Appraisal,
}

impl Refused {
    fn error(answer: &Answer) -> Refused {
        let reason = format!("not to be evaluated: {}", listed(&answer.errors));
        Refused { rank: Rank::Error, appraisal: Appraisal::new(Tier::None, reason) }
    }
}

impl From<Refused> for Appraisal {
    fn from(refused: Refused) -> Appraisal {
        refused.appraisal
    }
}

impl<'a> Desk<'a> {
    fn new(policies: &'a Policies, verifier: NodeId) -> Desk<'a> {
        let verifier = uid(VERIFIER, &verifier.to_string());
        Desk { policies, verifier, authorizer: Authorizer::new() }
    }

    fn ask(&self, action: Action, resource: &EntityUid, entity: Entity) -> Result<Answer, Fault> {
        let request = Request::new(
            self.verifier.clone(),
            uid(ACTION, action.name()),
            resource.clone(),
            Context::empty(),
            None,
        );
        let request = request.map_err(Fault::internal)?;
        let entities = Entities::from_entities([entity], None).map_err(Fault::internal)?;
        let response = self.authorizer.is_authorized(&request, &self.policies.set, &entities);
        let diagnostics = response.diagnostics();
        let errors = diagnostics.errors().map(|error| match error {
            AuthorizationError::PolicyEvaluationError(error) => error.policy_id(),
        });
        Ok(Answer {
            permitted: response.decision() == Decision::Allow,
            determining: diagnostics.reason().cloned().collect(),
            errors: errors.cloned().collect(),
            accepted: BTreeSet::new(),
        })
    }

    /// Whether policies permit this of a device, and may: what they put up with is what each of them says.
    fn judge(&self, action: Action, case: &Case<'_>) -> Result<Result<Answer, Refused>, Fault> {
        let entity = case.shown.entity(case.passed, case.unchecked)?;
        let mut answer = self.ask(action, &case.shown.uid, entity)?;
        let refused = |rank, tier, reason: String| {
            let appraisal = Appraisal::by(tier, reason, &answer);
            Ok(Err(Refused { rank, appraisal }))
        };
        if !answer.permitted && !answer.determining.is_empty() {
            let reason = format!("forbidden by {}", listed(&answer.determining));
            return refused(Rank::Forbidden, Tier::Contraindicated, reason);
        }
        if !answer.errors.is_empty() {
            return Ok(Err(Refused::error(&answer)));
        }
        if !answer.permitted {
            let reason = "no policy permits it".to_owned();
            return refused(Rank::Unpermitted, Tier::Contraindicated, reason);
        }
        for id in &answer.determining {
            let terms = self.policies.terms(id);
            if !terms.software_tpm && is_software_tpm(case) {
                let reason = format!("a TPM not known to be hardware, which {id} does not accept");
                return refused(Rank::Software, Tier::Contraindicated, reason);
            }
            let missing = case.unchecked.iter().find(|name| !terms.unchecked.contains(**name));
            if let Some(name) = missing {
                let reason = format!("not checked: {name}, which {id} does not put up with");
                return refused(Rank::Unchecked, Tier::None, reason);
            }
        }
        if is_software_tpm(case) {
            answer.accepted.insert(SOFTWARE_TPM);
        }
        Ok(Ok(answer))
    }
}

/// Whether it is a TPM, or rests on one, that is not known to be hardware.
fn is_software_tpm(case: &Case<'_>) -> bool {
    let claim = case.findings.claims.get(TPM);
    let is_hardware = claim == Some(&Claim::Text(HARDWARE.to_owned()));
    let is_tpm = case.shown.kind == Kind::Tpm || claim.is_some();
    is_tpm && !is_hardware
}

fn listed(names: &BTreeSet<impl ToString>) -> String {
    names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[path = "decision_tests.rs"]
mod tests;
