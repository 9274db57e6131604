//! The kinds of devices and logs that are appraised, and what their claims are called in policies.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use cedar_policy::{
    Entity, EntityId, EntityTypeName, EntityUid, RestrictedExpression, Schema, SchemaFragment,
    Validator,
};
use distos_abi::Fault;
use distos_evidence::findings::{Claim, Findings, Outcome};
use distos_evidence::{enrolment, nvidia, pki, quote, snp};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::tier::{Facet, Tier, Vector};

/// What policies are validated against, and which claims they are shown.
const SCHEMA: &str = include_str!("appraisal.cedarschema");
/// The types of entities that are no kind of device.
pub(crate) const VERIFIER: &str = "Verifier";
pub(crate) const NODE: &str = "Node";
pub(crate) const ACTION: &str = "Action";
/// Names of checks, in policies.
pub(crate) const PASSED: &str = "passed";
pub(crate) const UNCHECKED: &str = "unchecked";
/// How many values of one claim policies are shown. Nobody can say of more that they are as they should be.
pub(crate) const MAX_TEXTS: usize = 4096;
/// What AR4SI calls a contraindicated instance, configuration, and so on.
const CONTRAINDICATED: i8 = 96;
/// What it calls an unsafe configuration, or unrecognised files.
const WARNING: i8 = 32;

/// A kind of device, or of log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A TPM's quote.
    Tpm,
    /// The log of a measured boot.
    #[serde(rename = "eventlog")]
    EventLog,
    /// The log of what Linux has measured since.
    Ima,
    /// A GPU's report.
    NvidiaGpu,
    /// A switch's report.
    NvidiaSwitch,
    /// What the GPUs and switches of one machine are to each other.
    NvidiaMachine,
    /// A report of AMD's SEV-SNP.
    Snp,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 7] = [
        Kind::Tpm,
        Kind::EventLog,
        Kind::Ima,
        Kind::NvidiaGpu,
        Kind::NvidiaSwitch,
        Kind::NvidiaMachine,
        Kind::Snp,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Tpm => "tpm",
            Kind::EventLog => "eventlog",
            Kind::Ima => "ima",
            Kind::NvidiaGpu => "nvidia-gpu",
            Kind::NvidiaSwitch => "nvidia-switch",
            Kind::NvidiaMachine => "nvidia-machine",
            Kind::Snp => "snp",
        }
    }

    /// The kind of that name.
    pub fn of(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Its name in policies.
    pub(crate) fn entity(self) -> &'static str {
        match self {
            Kind::Tpm => "Tpm",
            Kind::EventLog => "EventLog",
            Kind::Ima => "Ima",
            Kind::NvidiaGpu => "NvidiaGpu",
            Kind::NvidiaSwitch => "NvidiaSwitch",
            Kind::NvidiaMachine => "NvidiaMachine",
            Kind::Snp => "Snp",
        }
    }

    /// What its evidence speaks of, with what AR4SI calls it when it is as it should be. Where a policy warns, it warns
    /// of the first.
    fn facets(self) -> &'static [(Facet, i8)] {
        match self {
            // Not of hardware: a policy may accept a TPM that is none.
            Kind::Tpm => &[(Facet::Configuration, 2), (Facet::InstanceIdentity, 2)],
            Kind::EventLog => &[(Facet::Configuration, 2), (Facet::Executables, 3)],
            Kind::Ima => &[(Facet::FileSystem, 2), (Facet::Executables, 2)],
            Kind::NvidiaMachine => &[(Facet::Configuration, 2)],
            Kind::NvidiaGpu | Kind::NvidiaSwitch | Kind::Snp => {
                &[(Facet::Configuration, 2), (Facet::Hardware, 2)]
            }
        }
    }

    /// What a tier says of which facets, where these checks were not made. It follows from the tier, so it is never better and
    /// never worse. Of a facet that rests on a check that was not made nothing good is claimed, whoever has put up with it.
    pub(crate) fn vector(self, tier: Tier, unchecked: &BTreeSet<String>) -> Vector {
        let facets = self.facets().iter();
        match tier {
            Tier::Affirming => {
                facets.copied().filter(|(facet, _)| self.may_affirm(*facet, unchecked)).collect()
            }
            Tier::Warning => facets.take(1).map(|(facet, _)| (*facet, WARNING)).collect(),
            Tier::None => Vector::new(),
            Tier::Contraindicated => facets.map(|(facet, _)| (*facet, CONTRAINDICATED)).collect(),
        }
    }

    /// Whether something good may be claimed of a facet, where these checks were not made.
    pub(crate) fn may_affirm(self, facet: Facet, unchecked: &BTreeSet<String>) -> bool {
        !unchecked.iter().any(|check| self.bears_on(check).contains(&facet))
    }

    /// The facets of which nothing can be claimed where the check of that name was not made. What shows who made a device, and
    /// which one it is, says nothing of how it is configured, and the other way round; on any other check everything rests.
    fn bears_on(self, check: &str) -> &'static [Facet] {
        match (self, check) {
            // Whose key has signed shows nothing but this chain. Of a TPM it shows itself when it is enrolled.
            (Kind::NvidiaGpu | Kind::NvidiaSwitch | Kind::Snp, pki::CHAIN) => &ALL_FACETS,
            (
                _,
                pki::CHAIN
                | pki::REVOCATION
                | enrolment::ENDORSEMENT
                | quote::KEY
                | nvidia::FIRMWARE_ID
                | nvidia::DEVICE_ID
                | snp::CHIP,
            ) => &[Facet::InstanceIdentity, Facet::Hardware],
            (_, quote::DIGEST | nvidia::GOLDEN_VALUES | nvidia::machine::TOPOLOGY) => {
                &[Facet::Configuration]
            }
            _ => &ALL_FACETS,
        }
    }

    /// What evidence of this kind does not show, in words, for whoever reads a result.
    pub fn limits(self) -> &'static [&'static str] {
        const RELAY: &str = "A device's report does not show in which machine the device is: it can be relayed until devices and hosts authenticate each other (TDISP).";
        match self {
            Kind::Tpm => &[
                "A quote shows what registers held when it was made, and not what was never measured into them.",
            ],
            Kind::EventLog => &[
                "A log shows what was measured at boot: that something was read, and not that it ran.",
            ],
            Kind::Ima => &[
                "A list shows which files were measured before they were used, and not what programs do with what they are given.",
            ],
            Kind::NvidiaGpu => &[
                RELAY,
                "Confidential mode and developer tools are the driver's word: the report does not say so.",
            ],
            Kind::NvidiaSwitch | Kind::NvidiaMachine => &[RELAY],
            Kind::Snp => &[
                "A report shows what a virtual machine was started with, and not what it has run since.",
            ],
        }
    }
}

/// Every facet.
const ALL_FACETS: [Facet; 8] = [
    Facet::InstanceIdentity,
    Facet::Configuration,
    Facet::Executables,
    Facet::FileSystem,
    Facet::Hardware,
    Facet::RuntimeOpaque,
    Facet::StorageOpaque,
    Facet::SourcedData,
];

/// What a claim is, to policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Bool,
    Number,
    Text,
    Texts,
}

impl Type {
    fn of(attribute: &Value) -> Option<Type> {
        let word = |of: &Value| match of["name"].as_str() {
            Some("Bool") => Some(Type::Bool),
            Some("Long") => Some(Type::Number),
            Some("String") => Some(Type::Text),
            _ => None,
        };
        match attribute["type"].as_str() {
            Some("Set") if word(&attribute["element"]) == Some(Type::Text) => Some(Type::Texts),
            Some("EntityOrCommon") => word(attribute),
            _ => None,
        }
    }

    fn of_claim(claim: &Claim) -> Type {
        match claim {
            Claim::Bool(_) => Type::Bool,
            Claim::Number(_) => Type::Number,
            Claim::Text(_) => Type::Text,
            Claim::Texts(_) => Type::Texts,
        }
    }
}

/// The schema, read once.
pub(crate) struct Language {
    pub(crate) schema: Schema,
    pub(crate) validator: Validator,
    /// The claims of each kind, by their names in policies.
    claims: BTreeMap<Kind, BTreeMap<String, Type>>,
    /// The types of entities, by their names: Cedar parses them anew each time.
    types: BTreeMap<&'static str, EntityTypeName>,
}

/// What policies are written in.
pub(crate) static LANGUAGE: LazyLock<Language> =
    LazyLock::new(|| Language::read(SCHEMA).expect("the schema is this crate's own, and tested"));

impl Language {
    fn read(source: &str) -> Result<Language, String> {
        let (fragment, _) =
            SchemaFragment::from_cedarschema_str(source).map_err(|error| error.to_string())?;
        let json = fragment.clone().to_json_value().map_err(|error| error.to_string())?;
        let mut claims = BTreeMap::new();
        for kind in Kind::ALL {
            let entity = &json[""]["entityTypes"][kind.entity()]["shape"]["attributes"];
            let entity = entity.as_object().ok_or_else(|| format!("no {}", kind.entity()))?;
            let mut of_kind = BTreeMap::new();
            for (name, attribute) in entity {
                let found = Type::of(attribute).ok_or_else(|| format!("{name}: {attribute}"))?;
                let required = attribute["required"].as_bool().unwrap_or(true);
                // What is there always is made here, and is no claim.
                if required != matches!(name.as_str(), PASSED | UNCHECKED) {
                    return Err(format!("{name}: a claim may be absent, and what is no claim not"));
                }
                if !required {
                    of_kind.insert(name.clone(), found);
                }
            }
            claims.insert(kind, of_kind);
        }
        let types = Kind::ALL.map(Kind::entity).into_iter().chain([VERIFIER, NODE, ACTION]);
        let types = types.map(|name| match name.parse::<EntityTypeName>() {
            Ok(parsed) => Ok((name, parsed)),
            Err(error) => Err(format!("{name}: {error}")),
        });
        let types = types.collect::<Result<_, String>>()?;
        let schema =
            Schema::from_schema_fragments([fragment]).map_err(|error| error.to_string())?;
        let validator = Validator::new(schema.clone());
        Ok(Language { schema, validator, claims, types })
    }
}

/// Why something cannot be shown to policies.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unshown {
    /// A claim has more values than anybody would look at.
    Many(&'static str),
    /// What verified the evidence and what reads policies do not mean the same by a claim.
    Type(Fault),
}

/// What is shown to policies of one device.
pub(crate) struct Shown {
    pub(crate) uid: EntityUid,
    pub(crate) kind: Kind,
    attributes: Vec<(String, RestrictedExpression)>,
}

impl Shown {
    /// The claims of a device of that name that the schema knows.
    pub(crate) fn of(name: &str, kind: Kind, findings: &Findings) -> Result<Shown, Unshown> {
        let known = &LANGUAGE.claims[&kind];
        let mut attributes = Vec::with_capacity(findings.claims.len() + 2);
        for (claim, value) in &findings.claims {
            let attribute = claim.replace('-', "_");
            let Some(wanted) = known.get(&attribute) else { continue };
            let found = Type::of_claim(value);
            if found != *wanted {
                let what = format!("the claim {claim} of {kind:?} is a {found:?}");
                return Err(Unshown::Type(Fault::internal(format!("{what} and no {wanted:?}"))));
            }
            let value = match value {
                Claim::Bool(value) => RestrictedExpression::new_bool(*value),
                Claim::Number(value) => RestrictedExpression::new_long(*value),
                Claim::Text(value) => RestrictedExpression::new_string(value.clone()),
                Claim::Texts(values) if values.len() > MAX_TEXTS => {
                    return Err(Unshown::Many(claim));
                }
                Claim::Texts(values) => texts(values.iter().map(String::as_str)),
            };
            attributes.push((attribute, value));
        }
        Ok(Shown { uid: uid(kind.entity(), name), kind, attributes })
    }

    /// As an entity, with these checks that passed and were not made.
    pub(crate) fn entity(
        &self,
        passed: &BTreeSet<&'static str>,
        unchecked: &BTreeSet<&'static str>,
    ) -> Result<Entity, Fault> {
        let checks = [(PASSED, passed), (UNCHECKED, unchecked)];
        let checks = checks.map(|(name, checks)| (name.to_owned(), texts(checks.iter().copied())));
        let attributes = self.attributes.iter().cloned().chain(checks).collect();
        let entity = Entity::new(self.uid.clone(), attributes, Default::default());
        entity.map_err(Fault::internal)
    }
}

/// A set of strings, in policies.
pub(crate) fn texts<'a>(values: impl Iterator<Item = &'a str>) -> RestrictedExpression {
    let values = values.map(|value| RestrictedExpression::new_string(value.to_owned()));
    RestrictedExpression::new_set(values)
}

/// An entity's name. Its type is a word of this file.
pub(crate) fn uid(of: &'static str, name: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(LANGUAGE.types[of].clone(), EntityId::new(name))
}

/// The names of the checks that ended so, each time that they were made.
pub(crate) fn checks(findings: &Findings, outcome: Outcome) -> BTreeSet<&'static str> {
    let names = findings.checks.iter().map(|check| check.name);
    names.filter(|name| findings.outcome(name) == outcome).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tier::tier_of;

    /// What evidence is known to claim. A claim that is not in the schema is hidden from policies, and nobody would
    /// notice until one asks for it.
    #[test]
    fn the_schema_knows_the_claims_that_evidence_makes() {
        use Type::{Bool, Number, Text, Texts};
        let nvidia: &[(&str, Type)] = &[
            ("arch", Text),
            ("driver-version", Text),
            ("vbios-version", Text),
            ("confidential-mode", Bool),
            ("developer-tools", Bool),
            ("fwid", Text),
            ("device-id", Text),
            ("golden-values-matched", Number),
            ("golden-values-failed", Number),
            ("protected-pcie", Bool),
            ("nvdec0", Bool),
            ("mode", Text),
            ("locked", Bool),
        ];
        let known: [(Kind, &[(&str, Type)]); 7] = [
            (
                Kind::Tpm,
                &[
                    ("tpm", Text),
                    ("tpm-manufacturer", Text),
                    ("tpm-model", Text),
                    ("tpm-version", Text),
                    ("firmware-version", Text),
                    ("reset-count", Number),
                    ("restart-count", Number),
                    ("pcr-bank", Text),
                    ("pcrs", Texts),
                ],
            ),
            (
                Kind::EventLog,
                &[
                    ("bank", Text),
                    ("secure-boot", Bool),
                    ("exit-boot-services", Bool),
                    ("uefi-debug", Bool),
                    ("dma-protection-disabled", Bool),
                    ("firmware-error", Bool),
                    ("secure-boot-pk", Text),
                    ("secure-boot-kek", Text),
                    ("secure-boot-db", Text),
                    ("secure-boot-dbx", Text),
                    ("shim-settings", Texts),
                    ("boot-variables", Texts),
                    ("boot-files", Texts),
                    ("firmware-version", Text),
                    ("boot-authorities", Texts),
                    ("boot-loaders", Texts),
                    ("kernel-digests", Texts),
                    ("kernel-command-lines", Texts),
                ],
            ),
            (
                Kind::Ima,
                &[
                    ("bank", Text),
                    ("ima-entries", Number),
                    ("ima-violations", Number),
                    ("ima-unknown-count", Number),
                    ("ima-unknown-files", Texts),
                ],
            ),
            (Kind::NvidiaGpu, nvidia),
            (Kind::NvidiaSwitch, nvidia),
            (Kind::NvidiaMachine, &[("gpus", Number), ("switches", Number)]),
            (
                Kind::Snp,
                &[
                    ("version", Number),
                    ("guest-svn", Number),
                    ("vmpl", Number),
                    ("debug-allowed", Bool),
                    ("migration-allowed", Bool),
                    ("smt-allowed", Bool),
                    ("single-socket", Bool),
                    ("smt-enabled", Bool),
                    ("tsme-enabled", Bool),
                    ("ecc-enabled", Bool),
                    ("rapl-disabled", Bool),
                    ("ciphertext-hidden", Bool),
                    ("alias-check-complete", Bool),
                    ("signing-key", Text),
                    ("measurement", Text),
                    ("chip-id", Text),
                    ("host-data", Text),
                    ("report-data", Text),
                    ("family-id", Text),
                    ("image-id", Text),
                    ("id-key-digest", Text),
                    ("author-key-digest", Text),
                    ("reported-tcb-bootloader", Number),
                    ("reported-tcb-tee", Number),
                    ("reported-tcb-snp", Number),
                    ("reported-tcb-microcode", Number),
                    ("reported-tcb-fmc", Number),
                ],
            ),
        ];
        for (kind, claims) in known {
            for (name, of) in claims {
                let shown = LANGUAGE.claims[&kind].get(&name.replace('-', "_"));
                assert_eq!(shown, Some(of), "{name} of {kind:?}");
            }
        }
    }

    #[test]
    fn every_kind_has_a_name_a_count_and_an_entity() {
        for kind in Kind::ALL {
            assert_eq!(Kind::of(kind.name()), Some(kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
            let entity = kind.entity().parse::<EntityTypeName>().unwrap();
            assert!(LANGUAGE.schema.entity_types().any(|known| *known == entity));
            assert!(SCHEMA.contains(&format!("\n    {}: Long,\n", kind.name().replace('-', "_"))));
        }
        assert_eq!(Kind::of("gpu"), None);
    }

    #[test]
    fn a_vector_is_of_its_tier() {
        for kind in Kind::ALL {
            for tier in [Tier::Affirming, Tier::Warning, Tier::Contraindicated] {
                let vector = kind.vector(tier, &BTreeSet::new());
                assert_eq!(Tier::worst(vector.into_values().map(tier_of)), tier, "{kind:?}");
            }
            assert!(kind.vector(Tier::None, &BTreeSet::new()).is_empty());
        }
    }

    /// Whoever relies on a result would take a chip for genuine that nobody has looked up, because a policy has put up with it.
    #[test]
    fn nothing_good_is_claimed_of_what_rests_on_a_check_that_was_not_made() {
        let facets = |kind: Kind, tier, unchecked: &[&str]| {
            let unchecked = unchecked.iter().map(|name| (*name).to_owned()).collect();
            kind.vector(tier, &unchecked).into_keys().collect::<Vec<_>>()
        };
        use Facet::{Configuration, Hardware, InstanceIdentity};
        let affirmed = |kind, unchecked: &[&str]| facets(kind, Tier::Affirming, unchecked);
        assert_eq!(affirmed(Kind::Tpm, &[]), [InstanceIdentity, Configuration]);
        assert_eq!(affirmed(Kind::Tpm, &["certificate chain"]), [Configuration]);
        assert_eq!(affirmed(Kind::Tpm, &["register values"]), [InstanceIdentity]);
        assert_eq!(affirmed(Kind::NvidiaGpu, &["revocation"]), [Configuration]);
        assert_eq!(affirmed(Kind::NvidiaGpu, &["golden values"]), [Hardware]);
        assert_eq!(affirmed(Kind::NvidiaMachine, &["topology"]), []);
        assert_eq!(affirmed(Kind::Snp, &["chip id"]), [Configuration]);
        // Whoever made the key that signed says what it likes of everything.
        for kind in [Kind::NvidiaGpu, Kind::NvidiaSwitch, Kind::Snp] {
            assert_eq!(affirmed(kind, &["certificate chain"]), [], "{kind:?}");
        }
        for kind in Kind::ALL {
            // One that no line speaks of.
            assert_eq!(affirmed(kind, &["nonce"]), [], "{kind:?}");
            assert_eq!(affirmed(kind, &["the moon's phase"]), [], "{kind:?}");
            // What is bad stays so.
            for tier in [Tier::Warning, Tier::Contraindicated] {
                assert_eq!(facets(kind, tier, &["nonce"]), facets(kind, tier, &[]));
            }
        }
    }

    /// Or whoever relies on a result takes a GPU of another machine for this one's.
    #[test]
    fn of_every_kind_is_said_what_its_evidence_does_not_show() {
        for kind in Kind::ALL {
            assert!(!kind.limits().is_empty(), "{kind:?}");
        }
        for kind in [Kind::NvidiaGpu, Kind::NvidiaSwitch, Kind::NvidiaMachine] {
            assert!(kind.limits().iter().any(|limit| limit.contains("TDISP")), "{kind:?}");
        }
    }

    #[test]
    fn a_schema_that_could_not_be_read_claim_by_claim_is_refused() {
        for (from, to) in [
            ("arch?: String", "arch: String"),
            ("arch?: String", "arch?: decimal"),
            ("arch?: String", "arch?: Set<Long>"),
            ("entity Ima {", "entity Imo {"),
        ] {
            assert!(Language::read(&SCHEMA.replacen(from, to, 1)).is_err(), "{to}");
        }
    }
}
