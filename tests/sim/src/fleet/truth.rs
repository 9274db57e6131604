//! What is true of a run, whoever knows it: for the checks.

use std::collections::{HashMap, HashSet};
use std::fmt;

use distos_abi::{Authority, CapId};
use distos_identity::DRIFT_US;
use distos_lease::Terms;

/// A promise that was broken.
#[derive(Clone, Debug)]
pub struct Violation {
    /// When, in simulated microseconds.
    pub at_us: u64,
    /// Which, and how.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after {:.6} s: {}", self.at_us as f64 / 1e6, self.what)
    }
}

struct Ended {
    /// By the home's clock.
    began_ms: u64,
    returned: bool,
}

#[derive(Default)]
pub(super) struct Truth {
    ended: HashMap<(usize, CapId), Ended>,
    tickets: HashSet<[u8; 32]>,
    /// Whose statement of which time had its effect at whom.
    heard: HashSet<(usize, usize, u64)>,
    /// What was said, by whom to whom and when.
    said: HashMap<(usize, usize, u64), Vec<u8>>,
}

impl Truth {
    pub(super) fn revoked(&mut self, home: usize, cap: CapId, began_ms: u64) {
        self.ended.insert((home, cap), Ended { began_ms, returned: false });
    }

    pub(super) fn returned(&mut self, home: usize, cap: CapId) {
        if let Some(ended) = self.ended.get_mut(&(home, cap)) {
            ended.returned = true;
        }
    }

    /// Somebody uses a capability of this lineage; `home_ms` is its home's clock (C2).
    pub(super) fn used(&self, home: usize, lineage: &[CapId], home_ms: u64) -> Result<(), String> {
        for cap in lineage {
            let Some(ended) = self.ended.get(&(home, *cap)) else { continue };
            if ended.returned {
                return Err(format!("C2: used after the revocation of {cap} at {home} returned"));
            }
            let since_ms = home_ms - ended.began_ms;
            if since_ms > Terms::USUAL.bound_ms() {
                return Err(format!("C2: used {since_ms} ms after {cap} at {home} was revoked"));
            }
        }
        Ok(())
    }

    /// Somebody was given what allows this, below what allows those (C1).
    pub(super) fn granted(authority: Authority, above: &[Authority]) -> Result<(), String> {
        for one in above {
            let rights = one.rights.contains(authority.rights);
            let time = authority.caveats.expires_ms <= one.caveats.expires_ms;
            if !rights || !time {
                return Err(format!("C1: {authority:?} hangs from {one:?}"));
            }
        }
        Ok(())
    }

    pub(super) fn withdrawn(&mut self, ticket: [u8; 32]) -> Result<(), String> {
        match self.tickets.insert(ticket) {
            true => Ok(()),
            false => Err("N3: a ticket worked twice".to_owned()),
        }
    }

    pub(super) fn said(&mut self, (from, to): (usize, usize), at_us: u64, body: &[u8]) {
        self.said.insert((from, to, at_us), body.to_vec());
    }

    /// A statement has its effect; by the receiver's clock, and the latest time that this showed.
    pub(super) fn heard(
        &mut self,
        (from, to): (usize, usize),
        at_us: u64,
        body: &[u8],
        (now_us, latest_us): (u64, u64),
    ) -> Result<(), String> {
        if self.said.get(&(from, to, at_us)).is_none_or(|said| said != body) {
            return Err(format!("N3: {to} took for a statement of {from} what that never said"));
        }
        if at_us + DRIFT_US < now_us || at_us > latest_us + DRIFT_US {
            return Err(format!("N3: {to} took a statement of {from} that is too old or too new"));
        }
        match self.heard.insert((from, to, at_us)) {
            true => Ok(()),
            false => Err(format!("N3: {to} took a statement of {from} twice")),
        }
    }
}
