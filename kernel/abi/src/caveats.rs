//! Caveats: the conditions under which a capability's rights hold. They only grow along a
//! derivation (C1): [`Caveats::meet`] is the one way to combine them.

use crate::{Fault, Rights};

/// A half-open range of bytes of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteRange {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl ByteRange {
    /// The whole object, however long it is.
    pub const WHOLE: ByteRange = ByteRange { start: 0, end: u64::MAX };

    /// `len` bytes from `start`; `None` if that would pass the end of the address space.
    pub fn at(start: u64, len: u64) -> Option<ByteRange> {
        start.checked_add(len).map(|end| ByteRange { start, end })
    }

    /// How many bytes it covers.
    pub fn len(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether it covers nothing.
    pub fn is_empty(self) -> bool {
        self.end <= self.start
    }

    /// Whether every byte of `inner` is in it.
    pub fn contains(self, inner: ByteRange) -> bool {
        inner.is_empty() || (self.start <= inner.start && inner.end <= self.end)
    }

    /// The bytes in both; empty if there are none.
    pub fn meet(self, other: ByteRange) -> ByteRange {
        let start = self.start.max(other.start);
        ByteRange { start, end: self.end.min(other.end).max(start) }
    }
}

/// The conditions on a capability. `u64::MAX`, `u32::MAX` and `false` mean that a condition is absent, so
/// that narrowing is a minimum, or an "or", everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Caveats {
    /// The capability ends at this instant, in milliseconds since the Unix epoch.
    pub expires_ms: u64,
    /// The bytes of the object that it reaches.
    pub range: ByteRange,
    /// How many bytes may be held through this capability and its descendants together.
    pub quota_bytes: u64,
    /// How many tasks may be queued or running through it and its descendants together.
    pub quota_tasks: u32,
    /// How many calls a second it and its descendants may make together.
    pub rate_per_s: u32,
    /// Whether it is restored only over a connection that is encrypted from its holder to its home,
    /// whatever passes it on.
    pub end_to_end: bool,
}

impl Caveats {
    /// No condition at all.
    pub const NONE: Caveats = Caveats {
        expires_ms: u64::MAX,
        range: ByteRange::WHOLE,
        quota_bytes: u64::MAX,
        quota_tasks: u32::MAX,
        rate_per_s: u32::MAX,
        end_to_end: false,
    };

    /// The conditions of both: the result is no weaker than either.
    pub fn meet(self, other: Caveats) -> Caveats {
        Caveats {
            expires_ms: self.expires_ms.min(other.expires_ms),
            range: self.range.meet(other.range),
            quota_bytes: self.quota_bytes.min(other.quota_bytes),
            quota_tasks: self.quota_tasks.min(other.quota_tasks),
            rate_per_s: self.rate_per_s.min(other.rate_per_s),
            end_to_end: self.end_to_end | other.end_to_end,
        }
    }
}

impl Default for Caveats {
    fn default() -> Self {
        Caveats::NONE
    }
}

/// What a capability allows: rights under caveats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Authority {
    /// What may be done.
    pub rights: Rights,
    /// Under which conditions.
    pub caveats: Caveats,
}

impl Authority {
    /// Everything, unconditionally: what the home vat itself has over its object.
    pub const FULL: Authority = Authority { rights: Rights::ALL, caveats: Caveats::NONE };

    /// The authority that a child gets when it asks for `wanted` (C1). Caveats are combined;
    /// a right that the parent lacks is refused by name rather than dropped in silence, so that a
    /// holder learns at once what it did not get.
    pub fn narrow(self, wanted: Authority) -> Result<Authority, Fault> {
        let missing = wanted.rights.minus(self.rights);
        if missing != Rights::NONE {
            return Err(Fault::denied(missing));
        }
        Ok(Authority { rights: wanted.rights, caveats: self.caveats.meet(wanted.caveats) })
    }

    /// Whether this authority is no more than `other` in every respect.
    pub fn is_within(self, other: Authority) -> bool {
        other.rights.contains(self.rights) && other.caveats.meet(self.caveats) == self.caveats
    }

    /// Whether the rights `need` hold at `now_ms` over `range`.
    pub fn permits(self, need: Rights, range: ByteRange, now_ms: u64) -> Result<(), Fault> {
        if now_ms >= self.caveats.expires_ms {
            return Err(Fault::Expired { at_ms: self.caveats.expires_ms });
        }
        let missing = need.minus(self.rights);
        if missing != Rights::NONE {
            return Err(Fault::denied(missing));
        }
        if !self.caveats.range.contains(range) {
            return Err(Fault::Denied { missing: need, range: Some(range) });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_never_exceeds_its_parent() {
        let parent = Authority {
            rights: Rights::READ,
            caveats: Caveats {
                range: ByteRange { start: 10, end: 20 },
                expires_ms: 100,
                ..Caveats::NONE
            },
        };
        let wanted = Authority {
            rights: Rights::READ,
            caveats: Caveats { range: ByteRange { start: 0, end: 15 }, ..Caveats::NONE },
        };
        let child = parent.narrow(wanted).unwrap();
        assert!(child.is_within(parent));
        assert_eq!(child.caveats.range, ByteRange { start: 10, end: 15 });
        assert_eq!(child.caveats.expires_ms, 100);
        let wanted = Authority { rights: Rights::READ.join(Rights::WRITE), ..wanted };
        assert_eq!(parent.narrow(wanted), Err(Fault::denied(Rights::WRITE)));
    }

    #[test]
    fn disjoint_ranges_leave_nothing() {
        let met = ByteRange { start: 0, end: 5 }.meet(ByteRange { start: 9, end: 12 });
        assert!(met.is_empty());
        assert!(!met.contains(ByteRange { start: 9, end: 10 }));
        assert!(!met.contains(ByteRange { start: 0, end: 1 }));
    }

    #[test]
    fn a_refusal_names_what_is_missing() {
        let page = Authority {
            rights: Rights::READ,
            caveats: Caveats { range: ByteRange { start: 0, end: 64 }, ..Caveats::NONE },
        };
        let all = ByteRange { start: 0, end: 64 };
        assert_eq!(page.permits(Rights::READ, all, 0), Ok(()));
        assert_eq!(page.permits(Rights::WRITE, all, 0), Err(Fault::denied(Rights::WRITE)));
        let other = ByteRange { start: 64, end: 65 };
        let fault = page.permits(Rights::READ, other, 0).unwrap_err();
        assert_eq!(fault, Fault::Denied { missing: Rights::READ, range: Some(other) });
    }
}
