//! What verifying evidence has found: each check with its outcome, and what the evidence says, as claims.
//!
//! Findings judge nothing. Whether a device that says so may be trusted is for a policy, which sees the claims and the
//! names of the checks that passed. But a check that failed is evidence that contradicts itself or its trust anchors:
//! no policy can mend that.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It holds.
    Passed,
    /// There was nothing to check it against: no trust anchor, no reference value, no nonce. Absent, and so never good.
    NotChecked,
    /// It does not hold.
    Failed,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outcome::Passed => "passed",
            Outcome::NotChecked => "not checked",
            Outcome::Failed => "FAILED",
        })
    }
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Its name: a few lower-case words, the same for every run, by which policies ask for it.
    pub name: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// What was found, for people; why, unless it passed.
    pub detail: String,
}

/// What evidence says of one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Claim {
    /// Whether something is so.
    Bool(bool),
    /// A number.
    Number(i64),
    /// A word, or bytes in hexadecimal.
    Text(String),
    /// Several of these, without order.
    Texts(BTreeSet<String>),
}

impl From<bool> for Claim {
    fn from(value: bool) -> Claim {
        Claim::Bool(value)
    }
}

impl From<u32> for Claim {
    fn from(value: u32) -> Claim {
        Claim::Number(value.into())
    }
}

impl From<&str> for Claim {
    fn from(value: &str) -> Claim {
        Claim::Text(value.to_owned())
    }
}

impl From<String> for Claim {
    fn from(value: String) -> Claim {
        Claim::Text(value)
    }
}

impl From<BTreeSet<String>> for Claim {
    fn from(values: BTreeSet<String>) -> Claim {
        Claim::Texts(values)
    }
}

/// Claims by name. What is not there is not known, and never counts as what a policy would like it to be.
pub type Claims = BTreeMap<&'static str, Claim>;

/// What was found of one device, or of one log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// The checks in the order in which they were made. After one that failed there may be fewer than there would be.
    pub checks: Vec<Check>,
    /// What the evidence says. Worth as much as the checks that passed.
    pub claims: Claims,
}

impl Findings {
    /// Notes a check that holds.
    pub fn passed(&mut self, name: &'static str, detail: impl Into<String>) {
        self.note(name, Outcome::Passed, detail.into());
    }

    /// Notes a check that does not hold.
    pub fn failed(&mut self, name: &'static str, why: impl fmt::Display) {
        self.note(name, Outcome::Failed, why.to_string());
    }

    /// Notes that there was nothing to check it against.
    pub fn not_checked(&mut self, name: &'static str, why: impl Into<String>) {
        self.note(name, Outcome::NotChecked, why.into());
    }

    /// Notes a check by its result, and returns what it gave.
    pub fn check<T>(
        &mut self,
        name: &'static str,
        result: Result<T, impl fmt::Display>,
        detail: impl FnOnce(&T) -> String,
    ) -> Option<T> {
        match result {
            Ok(value) => {
                let detail = detail(&value);
                self.passed(name, detail);
                Some(value)
            }
            Err(why) => {
                self.failed(name, why);
                None
            }
        }
    }

    /// Adds a claim.
    pub fn claim(&mut self, name: &'static str, value: impl Into<Claim>) {
        self.claims.insert(name, value.into());
    }

    /// The worst outcome of all checks; [`Outcome::NotChecked`] if there is none.
    pub fn worst(&self) -> Outcome {
        self.checks.iter().map(|check| check.outcome).max().unwrap_or(Outcome::NotChecked)
    }

    /// How the check of that name ended; the worst, if there are several, and [`Outcome::NotChecked`] if there is none.
    pub fn outcome(&self, name: &str) -> Outcome {
        let of_name = self.checks.iter().filter(|check| check.name == name);
        of_name.map(|check| check.outcome).max().unwrap_or(Outcome::NotChecked)
    }

    /// The names of the checks that passed, each time that they were made.
    pub fn all_passed(&self) -> BTreeSet<&'static str> {
        let names = self.checks.iter().map(|check| check.name);
        names.filter(|name| self.outcome(name) == Outcome::Passed).collect()
    }

    fn note(&mut self, name: &'static str, outcome: Outcome, detail: String) {
        self.checks.push(Check { name, outcome, detail });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_checks_are_not_good_ones() {
        let none = Findings::default();
        assert_eq!(none.worst(), Outcome::NotChecked);
        assert_eq!(none.outcome("signature"), Outcome::NotChecked);
        assert!(none.all_passed().is_empty());
    }

    #[test]
    fn a_check_that_failed_once_did_not_pass() {
        let mut findings = Findings::default();
        findings.passed("golden value", "1");
        findings.failed("golden value", "2");
        findings.passed("golden value", "3");
        findings.passed("signature", "");
        findings.not_checked("nonce", "none was given");
        assert_eq!(findings.outcome("golden value"), Outcome::Failed);
        assert_eq!(findings.all_passed(), BTreeSet::from(["signature"]));
        assert_eq!(findings.worst(), Outcome::Failed);
    }
}
