//! What a placement rests on (S1): a policy decision and fresh evidence. Both are plain data that
//! arrive as arguments. What no rule allows is refused.

use distos_abi::{Fault, TenantId};

/// What one task may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// WASM instructions, roughly.
    pub fuel: u64,
    /// Linear memory.
    pub memory_bytes: u64,
    /// stdout; at most one page.
    pub output_bytes: u32,
    /// Time.
    pub wall_ms: u32,
}

impl Limits {
    /// What a task gets where its job names no limit.
    pub const DEFAULT: Limits = Limits {
        fuel: 50_000_000_000,
        memory_bytes: 64 << 20,
        output_bytes: 65_536,
        wall_ms: 60_000,
    };
    /// What this node gives to no task more of.
    pub const CAPS: Limits = Limits {
        fuel: 10_000_000_000_000,
        memory_bytes: 256 << 20,
        output_bytes: 65_536,
        wall_ms: 600_000,
    };

    /// Fills in the defaults for zeros and cuts the rest to `caps`.
    pub fn settle(self, caps: Limits) -> Limits {
        let or = |asked: u64, default: u64, cap: u64| match asked {
            0 => default.min(cap),
            asked => asked.min(cap),
        };
        let small = |asked: u32, default: u32, cap: u32| {
            or(u64::from(asked), u64::from(default), u64::from(cap)) as u32
        };
        let default = Limits::DEFAULT;
        Limits {
            fuel: or(self.fuel, default.fuel, caps.fuel),
            memory_bytes: or(self.memory_bytes, default.memory_bytes, caps.memory_bytes),
            output_bytes: small(self.output_bytes, default.output_bytes, caps.output_bytes),
            wall_ms: small(self.wall_ms, default.wall_ms, caps.wall_ms),
        }
    }

    /// Whether nothing in it is more than in `caps`.
    pub fn is_within(self, caps: Limits) -> bool {
        self.settle(caps) == self
    }
}

/// What this node allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The node takes no new work.
    pub draining: bool,
    /// Whether it is part of the cluster that it belongs to.
    pub contact: Contact,
    /// The most that a task may use.
    pub caps: Limits,
}

/// A question to the policy: may this tenant's task run here?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Whose task.
    pub tenant: TenantId,
    /// What it may use.
    pub limits: Limits,
}

/// The name of the rule that allowed a placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule(pub &'static str);

impl Policy {
    /// The one rule that permits; everything else is refused. Work that was admitted before the
    /// node began to drain may end, so draining is asked about at admission only
    /// ([`Policy::admit`]).
    pub fn decide(&self, request: Request) -> Result<Rule, Fault> {
        if request.tenant == TenantId::OPERATOR {
            return Err(Fault::not_found("the operator has no executor: run programs as a tenant"));
        }
        if !request.limits.is_within(self.caps) {
            return Err(Fault::malformed("limits beyond what this node gives to one task"));
        }
        Ok(Rule("tenant-within-node-caps"))
    }

    /// The decision for new work.
    pub fn admit(&self, request: Request) -> Result<Rule, Fault> {
        if self.draining {
            return Err(Fault::unavailable(5000, "the node is draining and takes no new jobs"));
        }
        self.contact.check()?;
        self.decide(request)
    }
}

/// Of how many of those who vote on its cluster's nodes this node hears. A node that is cut off from most of
/// them cannot know whether they have put it out, or a tenant, so it places nothing new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contact {
    /// There is nobody to be cut off from: the image names no cluster, or the cluster does not vote.
    Alone,
    /// So many of so many, of whom there is at least one.
    Voters {
        /// Those that are heard.
        heard: u32,
        /// All of them.
        of: u32,
    },
    /// Whoever would know does not answer.
    Unknown,
}

impl Contact {
    /// Whether this node hears more than half of them.
    pub fn check(self) -> Result<(), Fault> {
        let why = match self {
            Contact::Alone => return Ok(()),
            Contact::Voters { heard, of } if u64::from(heard) * 2 > u64::from(of) => return Ok(()),
            Contact::Voters { heard, of } => format!(
                "this node hears {heard} of the {of} nodes that vote in its cluster, and takes nothing new \
                 while that is not more than half: see `distos peers list`"
            ),
            Contact::Unknown => {
                "the network service does not say whether this node is cut off from its cluster"
                    .to_owned()
            }
        };
        Err(Fault::unavailable(5000, why))
    }
}

/// What the attestation service says about this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// The last evidence matched what was expected (integrity).
    pub good: bool,
    /// Until when it counts as fresh, in Unix milliseconds; 0 if it no longer does.
    pub fresh_until_ms: u64,
    /// Why it is not good, or not fresh.
    pub reason: String,
    /// Whether it contradicts what is demanded, and not only is missing or old.
    pub failed: bool,
}

impl Evidence {
    /// No evidence at all, and why.
    pub fn none(reason: impl Into<String>) -> Evidence {
        Evidence { good: false, fresh_until_ms: 0, reason: reason.into(), failed: false }
    }

    /// Whether asking for newer evidence may help: it is missing or old, and nothing contradicts it.
    pub fn is_stale(&self, now_ms: u64) -> bool {
        !self.failed && self.check(now_ms).is_err()
    }

    /// Good and fresh (A1, A2); integrity and freshness are told apart in the fault.
    pub fn check(&self, now_ms: u64) -> Result<(), Fault> {
        if !self.good {
            let reason = if self.reason.is_empty() { "no good evidence" } else { &self.reason };
            return Err(Fault::StaleAttestation(reason.to_owned()));
        }
        if now_ms >= self.fresh_until_ms {
            let why = match (self.fresh_until_ms, self.reason.as_str()) {
                (0, "") => "the evidence ran out".to_owned(),
                (0, reason) => reason.to_owned(),
                (until, _) => format!("the evidence ran out {} ms ago", now_ms - until),
            };
            return Err(Fault::StaleAttestation(why));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_gets_the_defaults_and_never_more_than_the_caps() {
        let none = Limits { fuel: 0, memory_bytes: 0, output_bytes: 0, wall_ms: 0 };
        assert_eq!(none.settle(Limits::CAPS), Limits::DEFAULT);
        let all = Limits {
            fuel: u64::MAX,
            memory_bytes: u64::MAX,
            output_bytes: u32::MAX,
            wall_ms: u32::MAX,
        };
        assert_eq!(all.settle(Limits::CAPS), Limits::CAPS);
        assert!(!all.is_within(Limits::CAPS));
        assert!(Limits::DEFAULT.is_within(Limits::CAPS));
    }

    #[test]
    fn what_no_rule_allows_is_refused() {
        let policy = Policy { draining: false, contact: Contact::Alone, caps: Limits::CAPS };
        let request = Request { tenant: TenantId(3), limits: Limits::DEFAULT };
        assert_eq!(policy.admit(request), Ok(Rule("tenant-within-node-caps")));
        assert!(policy.admit(Request { tenant: TenantId::OPERATOR, ..request }).is_err());
        let greedy = Limits { memory_bytes: u64::MAX, ..Limits::DEFAULT };
        assert!(policy.admit(Request { limits: greedy, ..request }).is_err());
        let draining = Policy { draining: true, ..policy };
        assert_eq!(draining.admit(request).unwrap_err().name(), "unavailable");
        assert!(draining.decide(request).is_ok());
    }

    #[test]
    fn a_node_that_hears_half_of_the_voters_or_fewer_takes_nothing_new() {
        let voters = |heard, of| Contact::Voters { heard, of };
        for contact in [Contact::Alone, voters(1, 1), voters(2, 3), voters(3, 4), voters(32, 32)] {
            assert_eq!(contact.check(), Ok(()), "{contact:?}");
        }
        for contact in [Contact::Unknown, voters(0, 1), voters(1, 2), voters(1, 3), voters(2, 4)] {
            assert!(matches!(contact.check(), Err(Fault::Unavailable { .. })), "{contact:?}");
            let policy = Policy { draining: false, contact, caps: Limits::CAPS };
            let asked = Request { tenant: TenantId(1), limits: Limits::DEFAULT };
            assert!(policy.admit(asked).is_err(), "{contact:?}");
        }
    }

    #[test]
    fn evidence_counts_only_while_good_and_fresh() {
        let good =
            Evidence { good: true, fresh_until_ms: 100, reason: String::new(), failed: false };
        assert_eq!(good.check(99), Ok(()));
        let late = good.check(100).unwrap_err();
        assert!(matches!(&late, Fault::StaleAttestation(t) if t.contains("ran out")), "{late}");
        let bad = Evidence { good: false, reason: "PCR 7 differs".into(), ..good };
        assert_eq!(bad.check(0), Err(Fault::StaleAttestation("PCR 7 differs".into())));
        assert!(Evidence::none("").check(0).is_err());
        let old =
            Evidence { good: true, fresh_until_ms: 0, reason: "9 ms old".into(), failed: false };
        assert_eq!(old.check(9), Err(Fault::StaleAttestation("9 ms old".into())));
    }

    /// Asking a machine that was tampered with for more of its evidence would only cost its TPM's time.
    #[test]
    fn new_evidence_is_asked_for_where_there_is_none_and_not_where_it_is_bad() {
        assert!(Evidence::none("no evidence yet").is_stale(0));
        let fresh = Evidence { good: true, fresh_until_ms: 100, ..Evidence::default() };
        assert!(!fresh.is_stale(99) && fresh.is_stale(100));
        assert!(!Evidence { failed: true, ..Evidence::none("PCR 4") }.is_stale(0));
    }
}
