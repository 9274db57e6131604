//! Identifiers. Each is a newtype, so that a slot's index is never taken for a tenant's number.

use core::fmt;

use crate::Fault;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// What type of object a capability speaks of. The kernel treats it as an opaque number; the
    /// list of kinds is in `distos_types::kind`.
    Kind(u16)
);
number!(
    /// An object within its home vat. Zero is the vat's root object of that kind.
    ObjectId(u64)
);
number!(
    /// A tenant of this node. Zero is the operator (and the node's own services).
    TenantId(u32)
);
number!(
    /// A connection to a vat, chosen by that vat and meaningful only to it. Capabilities that
    /// were derived inside a session die with it.
    SessionId(u64)
);
number!(
    /// The lasting identity of a capability in the derivation forest. A slot is where a
    /// capability lives while the kernel runs; its `CapId` survives restarts and is what audit
    /// records and meters are keyed by. Never reused.
    CapId(u64)
);

impl ObjectId {
    /// The root object of a kind: what an image grants.
    pub const ROOT: ObjectId = ObjectId(0);
}

impl TenantId {
    /// The operator, to whom boot-time capabilities are charged.
    pub const OPERATOR: TenantId = TenantId(0);
}

/// A slot's generation: the epoch of the boot in the upper 24 bits, a counter in the lower 40.
/// Never reused, because the epoch rises at each boot and the counter within it. Zero is dead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

impl Generation {
    /// No capability has this generation.
    pub const DEAD: Generation = Generation(0);
    const COUNTER_BITS: u32 = 40;

    /// The generation of the `counter`-th capability (from 1) of boot number `epoch` (from 1).
    /// `None` once either part is exhausted: the kernel then refuses to mint.
    pub fn new(epoch: u32, counter: u64) -> Option<Generation> {
        let fits =
            epoch != 0 && epoch < 1 << 24 && counter != 0 && counter >> Self::COUNTER_BITS == 0;
        fits.then(|| Generation((u64::from(epoch) << Self::COUNTER_BITS) | counter))
    }

    /// The boot that this generation belongs to.
    pub fn epoch(self) -> u32 {
        (self.0 >> Self::COUNTER_BITS) as u32
    }
}

/// A capability's place in the table, together with the generation it had when it was handed out.
/// If the slot's generation differs, this reference is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotRef {
    /// Index into the table.
    pub index: u32,
    /// The generation that the slot must still have.
    pub generation: Generation,
}

impl fmt::Display for SlotRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{:x}", self.index, self.generation.0)
    }
}

macro_rules! bytes32 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({}…)"), &self.to_string()[..12])
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = Fault;

            fn try_from(bytes: &[u8]) -> Result<Self, Fault> {
                bytes
                    .try_into()
                    .map(Self)
                    .map_err(|_| Fault::malformed(concat!(stringify!($name), " is not 32 bytes")))
            }
        }
    };
}

bytes32!(
    /// A holder: the Ed25519 public key whose private half proves possession (C4).
    HolderKey
);
bytes32!(
    /// A node: the Ed25519 public key of its kernel.
    NodeId
);
bytes32!(
    /// The BLAKE3 hash of a certificate link, which names it in the forest.
    LinkHash
);

/// The name of a vat on its node, such as `memory` or `executor/red`: 1 to 32 bytes of lower-case
/// letters, digits, `-` and at most one `/`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VatName(String);

impl VatName {
    /// Longest name, in bytes.
    pub const MAX_BYTES: usize = 32;

    /// Parses a name; [`Fault::Malformed`] if it breaks the rule above.
    pub fn new(name: &str) -> Result<VatName, Fault> {
        let parts: Vec<&str> = name.split('/').collect();
        let part_fits = |p: &&str| {
            !p.is_empty()
                && p.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        if name.len() <= Self::MAX_BYTES && parts.len() <= 2 && parts.iter().all(part_fits) {
            Ok(VatName(name.to_owned()))
        } else {
            Err(Fault::malformed(
                "a vat's name is 1 to 32 of a-z, 0-9 and '-', with at most one '/'",
            ))
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VatName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for VatName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VatName({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_of_a_later_boot_never_meet_those_of_an_earlier_one() {
        let last = Generation::new(1, (1 << 40) - 1).unwrap();
        let next = Generation::new(2, 1).unwrap();
        assert!(last < next);
        assert_eq!(next.epoch(), 2);
        assert_eq!(Generation::new(1, 1 << 40), None);
        assert_eq!(Generation::new(1 << 24, 1), None);
        assert_eq!(Generation::new(0, 1), None);
    }

    #[test]
    fn a_vat_name_cannot_leave_its_directory() {
        assert!(VatName::new("executor/red").is_ok());
        for bad in ["", "..", "a/b/c", "/a", "a/", "A", "a b", &"x".repeat(33)] {
            assert!(VatName::new(bad).is_err(), "{bad:?}");
        }
    }
}
