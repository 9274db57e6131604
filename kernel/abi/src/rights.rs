//! Rights: what may be done with an object, as a set.

use core::fmt;

use crate::Fault;

/// A set of rights. One list serves every kind of object, so that a fault can name the right that
/// is missing without knowing the kind.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rights(pub u64);

/// Every right: its bit, its name on the command line and in faults.
const NAMES: [(Rights, &str); 12] = [
    (Rights::READ, "read"),
    (Rights::WRITE, "write"),
    (Rights::CREATE, "create"),
    (Rights::DROP, "drop"),
    (Rights::LIST, "list"),
    (Rights::RUN, "run"),
    (Rights::CANCEL, "cancel"),
    (Rights::ATTEST, "attest"),
    (Rights::LEASE, "lease"),
    (Rights::SPAWN, "spawn"),
    (Rights::ADMIN, "admin"),
    (Rights::TREE, "tree"),
];

impl Rights {
    /// No right at all.
    pub const NONE: Rights = Rights(0);
    /// Read an object's content or state.
    pub const READ: Rights = Rights(1 << 0);
    /// Change an object's content.
    pub const WRITE: Rights = Rights(1 << 1);
    /// Make new objects.
    pub const CREATE: Rights = Rights(1 << 2);
    /// End an object and erase it.
    pub const DROP: Rights = Rights(1 << 3);
    /// Learn which objects of one's own exist.
    pub const LIST: Rights = Rights(1 << 4);
    /// Run programs.
    pub const RUN: Rights = Rights(1 << 5);
    /// Stop what runs.
    pub const CANCEL: Rights = Rights(1 << 6);
    /// Ask for fresh evidence.
    pub const ATTEST: Rights = Rights(1 << 7);
    /// Hold a device for a time.
    pub const LEASE: Rights = Rights(1 << 8);
    /// Start vats from a template.
    pub const SPAWN: Rights = Rights(1 << 9);
    /// Change the node: tenants, draining, shutting down.
    pub const ADMIN: Rights = Rights(1 << 10);
    /// See the derivation forest.
    pub const TREE: Rights = Rights(1 << 11);
    /// Every right that has a name.
    pub const ALL: Rights = Rights((1 << 12) - 1);

    /// Whether every right of `other` is in this set.
    pub fn contains(self, other: Rights) -> bool {
        self.0 & other.0 == other.0
    }

    /// The rights of `self` that are not in `other`.
    pub fn minus(self, other: Rights) -> Rights {
        Rights(self.0 & !other.0)
    }

    /// The rights in both sets.
    pub fn meet(self, other: Rights) -> Rights {
        Rights(self.0 & other.0)
    }

    /// The rights in either set.
    pub const fn join(self, other: Rights) -> Rights {
        Rights(self.0 | other.0)
    }

    /// Parses a list such as `read,write`. [`Fault::Malformed`] names the word it does not know.
    pub fn parse(text: &str) -> Result<Rights, Fault> {
        text.split([',', '+']).map(str::trim).filter(|w| !w.is_empty()).try_fold(
            Rights::NONE,
            |set, word| {
                let (right, _) = NAMES.iter().find(|(_, name)| *name == word).ok_or_else(|| {
                    let known: Vec<&str> = NAMES.iter().map(|(_, name)| *name).collect();
                    Fault::malformed(format!("no right is called '{word}': {}", known.join(", ")))
                })?;
                Ok(set.join(*right))
            },
        )
    }
}

impl Rights {
    /// Reads what `Display` writes, also `none` and rights without a name: a caller may have asked
    /// for a right that this version does not know, and is told so by its number.
    pub(crate) fn from_shown(text: &str) -> Option<Rights> {
        text.split('+').filter(|word| !matches!(*word, "" | "none")).try_fold(
            Rights::NONE,
            |set, word| {
                let right = match word.strip_prefix("0x") {
                    Some(digits) => Rights(u64::from_str_radix(digits, 16).ok()?),
                    None => NAMES.iter().find(|(_, name)| *name == word)?.0,
                };
                Some(set.join(right))
            },
        )
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = NAMES
            .iter()
            .filter(|(right, _)| self.contains(*right))
            .map(|(_, name)| *name)
            .collect();
        match (names.is_empty(), self.minus(Rights::ALL)) {
            (true, Rights::NONE) => f.write_str("none"),
            (_, Rights::NONE) => f.write_str(&names.join("+")),
            (_, unnamed) => write!(f, "{}+{:#x}", names.join("+"), unnamed.0),
        }
    }
}

impl fmt::Debug for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rights({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_named_right_survives_its_text() {
        assert_eq!(Rights::parse(&Rights::ALL.to_string()).unwrap(), Rights::ALL);
        assert_eq!(Rights::parse("read, write").unwrap(), Rights::READ.join(Rights::WRITE));
        assert!(Rights::parse("raed").unwrap_err().to_string().contains("raed"));
        assert_eq!(NAMES.iter().fold(Rights::NONE, |all, (r, _)| all.join(*r)), Rights::ALL);
    }
}
