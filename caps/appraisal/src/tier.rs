//! How far something may be trusted, in the words of AR4SI.
//!
//! Source: draft-ietf-rats-ar4si, section 2.3: the tiers and their numbers, and the eight claims of a trustworthiness
//! vector.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A tier, the better ones first: of several things the worst, which is the greatest, is that of all of them.
///
/// AR4SI gives no order between *none* and *warning*. Here none is worse: whoever is content with a warning knows
/// what of, and of none nothing is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// It is as a policy wants it.
    Affirming,
    /// It is as a policy puts up with it.
    Warning,
    /// Nothing is said of it: it was not shown, or could not be checked, or no policy speaks of it.
    None,
    /// It is not as it should be.
    Contraindicated,
}

impl Tier {
    /// Its name in results.
    pub fn name(self) -> &'static str {
        match self {
            Tier::Affirming => "affirming",
            Tier::Warning => "warning",
            Tier::None => "none",
            Tier::Contraindicated => "contraindicated",
        }
    }

    /// The worst of several; [`Tier::None`] of nothing.
    pub fn worst(tiers: impl IntoIterator<Item = Tier>) -> Tier {
        tiers.into_iter().max().unwrap_or(Tier::None)
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a claim of a trustworthiness vector is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Facet {
    /// Which attester it is.
    InstanceIdentity,
    /// How it is configured.
    Configuration,
    /// What was loaded, at boot and since.
    Executables,
    /// Which files it has.
    FileSystem,
    /// Whether it is the hardware that it says.
    Hardware,
    /// Whether its memory is kept from others.
    RuntimeOpaque,
    /// Whether what it stores is.
    StorageOpaque,
    /// Whether what it works on comes from trusted sources.
    SourcedData,
}

/// A trustworthiness vector: what is claimed of which facet. Nothing is claimed of those that are not there.
pub type Vector = BTreeMap<Facet, i8>;

/// The tier of one claim of a vector. Here *none* is no claim.
pub(crate) fn tier_of(claim: i8) -> Tier {
    match claim {
        -1..=1 => Tier::None,
        2..=31 | -32..=-2 => Tier::Affirming,
        32..=95 | -96..=-33 => Tier::Warning,
        96..=i8::MAX | i8::MIN..=-97 => Tier::Contraindicated,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_as_good_as_its_worst_link_and_nothing_is_not_good() {
        assert_eq!(Tier::worst([]), Tier::None);
        assert_eq!(Tier::worst([Tier::Affirming, Tier::Warning]), Tier::Warning);
        assert_eq!(Tier::worst([Tier::None, Tier::Warning]), Tier::None);
        assert_eq!(Tier::worst([Tier::Contraindicated, Tier::None]), Tier::Contraindicated);
    }

    /// The tables of AR4SI: numbers that are new in a later draft fall into the tier that it gives them.
    #[test]
    fn numbers_are_in_the_tiers_of_the_standard() {
        let tiers = [
            (0, Tier::None),
            (-1, Tier::None),
            (1, Tier::None),
            (2, Tier::Affirming),
            (-32, Tier::Affirming),
            (31, Tier::Affirming),
            (32, Tier::Warning),
            (-96, Tier::Warning),
            (95, Tier::Warning),
            (96, Tier::Contraindicated),
            (99, Tier::Contraindicated),
            (-128, Tier::Contraindicated),
        ];
        for (claim, tier) in tiers {
            assert_eq!(tier_of(claim), tier, "{claim}");
        }
    }

    #[test]
    fn tiers_and_facets_have_the_names_of_the_standard() {
        for tier in [Tier::Affirming, Tier::Warning, Tier::None, Tier::Contraindicated] {
            assert_eq!(serde_json::to_value(tier).unwrap(), tier.name());
        }
        let vector = Vector::from([(Facet::InstanceIdentity, 2), (Facet::FileSystem, 32)]);
        let json = serde_json::json!({ "instance-identity": 2, "file-system": 32 });
        assert_eq!(serde_json::to_value(&vector).unwrap(), json);
        assert_eq!(serde_json::from_value::<Vector>(json).unwrap(), vector);
    }
}
