//! Statements: what one member says to another and signs, for what outlives the connection over which it came.
//!
//! A statement names whom it is from and for, and when it was made; that time is its number, too, for whoever
//! makes statements never makes two at one time. [`Heard`] keeps what was heard from whom, so that each has
//! its effect once (N3).

use std::collections::{BTreeMap, BTreeSet};

use distos_abi::{Fault, HolderKey};
use distos_types::{HolderSecret, verify_signature};

use crate::id::Subject;

/// What is signed begins with this, and so means nothing else.
const DOMAIN: &[u8] = b"distos statement 1\0";
/// The longest statement, in bytes.
pub const MAX_STATEMENT_BYTES: usize = 65_536;
/// How far the clocks of two members may differ, in microseconds: five minutes.
pub const DRIFT_US: u64 = 300_000_000;
/// For how long ahead it is put on disk that something may have been heard, in microseconds.
const RESERVE_US: u64 = 10_000_000;
/// From how many members what was heard is remembered.
const MAX_SENDERS: usize = 4096;

/// What somebody says to somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// Who says it.
    pub from: Subject,
    /// To whom.
    pub to: Subject,
    /// When, in microseconds since the Unix epoch; also its number.
    pub at_us: u64,
    /// What.
    pub body: Vec<u8>,
}

impl Statement {
    /// As bytes: the time (8 bytes, big-endian), sender and receiver, each behind its length (2 bytes), and
    /// the body.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.at_us.to_be_bytes().to_vec();
        for name in [self.from.to_string(), self.to.to_string()] {
            // The longest name of a member is a fraction of that.
            bytes.extend_from_slice(&(name.len() as u16).to_be_bytes());
            bytes.extend_from_slice(name.as_bytes());
        }
        bytes.extend_from_slice(&self.body);
        bytes
    }

    /// Reads what `encode` writes. [`Fault::Malformed`] for anything else.
    pub fn decode(bytes: &[u8]) -> Result<Statement, Fault> {
        let broken = || Fault::malformed("this is no statement");
        if bytes.len() > MAX_STATEMENT_BYTES {
            return Err(Fault::malformed("a statement has at most 65536 bytes"));
        }
        let (at, rest) = bytes.split_first_chunk::<8>().ok_or_else(broken)?;
        let name = |rest: &mut &[u8]| -> Result<Subject, Fault> {
            let (len, after) = rest.split_first_chunk::<2>().ok_or_else(broken)?;
            let len = usize::from(u16::from_be_bytes(*len));
            let (name, after) = after.split_at_checked(len).ok_or_else(broken)?;
            *rest = after;
            std::str::from_utf8(name).map_err(|_| broken())?.parse()
        };
        let mut rest = rest;
        let (from, to) = (name(&mut rest)?, name(&mut rest)?);
        Ok(Statement { from, to, at_us: u64::from_be_bytes(*at), body: rest.to_vec() })
    }

    /// The bytes, and a signature over them.
    pub fn sign(&self, secret: &HolderSecret) -> (Vec<u8>, [u8; 64]) {
        let bytes = self.encode();
        let signature = secret.sign(&[DOMAIN, &bytes].concat());
        (bytes, signature)
    }

    /// Reads a statement that `from`, whose key this is, has signed for `to`: nothing of it is looked at before
    /// the signature.
    ///
    /// # Errors
    /// [`Fault::Unauthenticated`] if it is changed, another's, or for somebody else; [`Fault::Malformed`].
    pub fn verify(
        bytes: &[u8],
        signature: &[u8],
        (from, key): (&Subject, HolderKey),
        to: &Subject,
    ) -> Result<Statement, Fault> {
        if bytes.len() > MAX_STATEMENT_BYTES {
            return Err(Fault::malformed("a statement has at most 65536 bytes"));
        }
        verify_signature(key, &[DOMAIN, bytes].concat(), signature)?;
        let statement = Statement::decode(bytes)?;
        if statement.from != *from || statement.to != *to {
            return Err(Fault::Unauthenticated(format!(
                "this statement is from {} for {}",
                statement.from, statement.to
            )));
        }
        Ok(statement)
    }
}

/// Until when each member's statements were heard. Of each, only those that are later count: what overtakes
/// something makes that unheard-of, and has to be said again.
///
/// What is kept on disk is not what was heard last, but a time up to which something may have been: so it is
/// written once in a while, and a restart makes nothing heard twice. The price is that for ten seconds after a
/// restart statements are refused that were not heard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    last_us: BTreeMap<Subject, u64>,
    reserved_us: BTreeMap<Subject, u64>,
    /// Those who were heard since this was restored.
    heard: BTreeSet<Subject>,
    /// The latest time that was seen: a clock that is set back makes nothing new that was heard.
    floor_us: u64,
}

impl Heard {
    /// As it was kept.
    pub fn restore(until_us: BTreeMap<Subject, u64>, floor_us: u64) -> Heard {
        Heard { last_us: until_us.clone(), reserved_us: until_us, heard: BTreeSet::new(), floor_us }
    }

    /// What is to be kept: until when each may have been heard, and the latest time.
    pub fn kept(&self) -> (&BTreeMap<Subject, u64>, u64) {
        (&self.reserved_us, self.floor_us)
    }

    /// Whether a statement from this member, made at `at_us`, may have its effect at `now_us`.
    ///
    /// # Errors
    /// [`Fault::Unauthenticated`] if it was heard before, or if clocks differ by too much;
    /// [`Fault::Unavailable`] if too many members were heard lately.
    pub fn check(&self, from: &Subject, at_us: u64, now_us: u64) -> Result<(), Fault> {
        let now_us = now_us.max(self.floor_us);
        if at_us.abs_diff(now_us) > DRIFT_US {
            return Err(Fault::Unauthenticated(format!(
                "a statement of {from} is from {} seconds {}: clocks may differ by five minutes",
                at_us.abs_diff(now_us) / 1_000_000,
                if at_us > now_us { "ahead" } else { "ago" },
            )));
        }
        match self.last_us.get(from) {
            Some(last_us) if at_us <= *last_us => {
                Err(Fault::Unauthenticated(format!("a statement of {from} was heard before")))
            }
            None if self.last_us.len() >= MAX_SENDERS => {
                Err(Fault::unavailable(60_000, "too many members were heard lately"))
            }
            _ => Ok(()),
        }
    }

    /// Whether something has to be on disk before a statement of this time has its effect: then
    /// [`Heard::reserve`], and write [`Heard::kept`].
    pub fn is_ahead(&self, from: &Subject, at_us: u64) -> bool {
        self.reserved_us.get(from).is_none_or(|reserved_us| at_us > *reserved_us)
    }

    /// Reserves what is ahead, by each member's own clock: of `at_us` for this one, and for the others of what
    /// they have said last, so that it is written once for all who speak. Forgets those of whom nothing can be
    /// repeated any more, because it would be too old.
    pub fn reserve(&mut self, from: &Subject, at_us: u64, now_us: u64) {
        let now_us = now_us.max(self.floor_us);
        self.floor_us = now_us;
        self.reserved_us.insert(from.clone(), at_us.saturating_add(RESERVE_US));
        for (member, until_us) in &mut self.reserved_us {
            let said_us = self.last_us.get(member).filter(|_| self.heard.contains(member));
            if let Some(said_us) = said_us {
                *until_us = (*until_us).max(said_us.saturating_add(RESERVE_US));
            }
        }
        self.reserved_us.retain(|_, until_us| until_us.saturating_add(DRIFT_US) >= now_us);
        self.last_us.retain(|from, _| self.reserved_us.contains_key(from));
        self.heard.retain(|from| self.reserved_us.contains_key(from));
    }

    /// A statement has its effect now.
    pub fn note(&mut self, from: &Subject, at_us: u64) {
        self.last_us.insert(from.clone(), at_us);
        self.heard.insert(from.clone());
    }
}

/// A clock of one who makes statements: it never shows the same time twice, nor an earlier one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ticks(u64);

impl Ticks {
    /// The time of the next statement.
    pub fn next(&mut self, now_us: u64) -> u64 {
        self.0 = now_us.max(self.0.saturating_add(1));
        self.0
    }
}

#[cfg(test)]
mod tests {
    use distos_abi::NodeId;
    use proptest::prelude::*;

    use super::*;

    const NOW_US: u64 = 1_800_000_000_000_000;

    fn node(number: u8) -> Subject {
        Subject::Node(NodeId([number; 32]))
    }

    fn said(at_us: u64) -> Statement {
        Statement { from: node(1), to: node(2), at_us, body: b"here".to_vec() }
    }

    fn takes(heard: &mut Heard, at_us: u64, now_us: u64) -> bool {
        let fine = heard.check(&node(1), at_us, now_us).is_ok();
        if fine {
            if heard.is_ahead(&node(1), at_us) {
                heard.reserve(&node(1), at_us, now_us);
            }
            heard.note(&node(1), at_us);
        }
        fine
    }

    #[test]
    fn a_statement_that_was_changed_or_is_another_s_or_for_somebody_else_is_refused() {
        let (secret, other) = (HolderSecret::from_seed([1; 32]), HolderSecret::from_seed([2; 32]));
        let (bytes, signature) = said(NOW_US).sign(&secret);
        let read = |bytes: &[u8], signature: &[u8], from: &Subject, key, to: &Subject| {
            Statement::verify(bytes, signature, (from, key), to)
        };
        assert_eq!(read(&bytes, &signature, &node(1), secret.key(), &node(2)), Ok(said(NOW_US)));
        assert!(read(&bytes, &signature, &node(1), other.key(), &node(2)).is_err());
        assert!(read(&bytes, &signature, &node(3), secret.key(), &node(2)).is_err());
        assert!(read(&bytes, &signature, &node(1), secret.key(), &node(3)).is_err());
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(read(&changed, &signature, &node(1), secret.key(), &node(2)).is_err(), "{at}");
        }
        // What was signed for another purpose is no statement.
        let request = crate::prove(&node(1), &secret);
        assert!(
            read(node(1).to_string().as_bytes(), &request, &node(1), secret.key(), &node(2))
                .is_err()
        );
    }

    #[test]
    fn each_statement_has_its_effect_once_and_only_while_it_is_new() {
        let mut heard = Heard::default();
        assert!(takes(&mut heard, NOW_US, NOW_US));
        assert!(!takes(&mut heard, NOW_US, NOW_US), "again");
        assert!(!takes(&mut heard, NOW_US - 1, NOW_US), "one that was overtaken");
        assert!(takes(&mut heard, NOW_US + DRIFT_US, NOW_US));
        assert!(!takes(&mut heard, NOW_US + DRIFT_US + 1, NOW_US), "clocks differ by too much");
        let mut heard = Heard::default();
        assert!(!takes(&mut heard, NOW_US - DRIFT_US - 1, NOW_US));
        assert!(takes(&mut heard, NOW_US - DRIFT_US, NOW_US));
    }

    proptest! {
        /// However often the receiver restarts, with no more than what it had put on disk.
        #[test]
        fn nothing_is_heard_twice_across_restarts(
            steps in proptest::collection::vec((0u64..30_000_000, any::<bool>()), 1..60),
        ) {
            let (mut heard, mut disk, mut floor_us) = (Heard::default(), BTreeMap::new(), 0);
            let mut taken = std::collections::BTreeSet::new();
            let mut now_us = NOW_US;
            for (later_us, restarts) in steps {
                if restarts {
                    heard = Heard::restore(disk.clone(), floor_us);
                }
                // One that is new, and one of those before.
                let old_us = NOW_US + later_us % (now_us - NOW_US + 1);
                now_us += later_us;
                for at_us in [now_us, old_us] {
                    if heard.check(&node(1), at_us, now_us).is_ok() {
                        if heard.is_ahead(&node(1), at_us) {
                            heard.reserve(&node(1), at_us, now_us);
                            (disk, floor_us) = (heard.kept().0.clone(), heard.kept().1);
                        }
                        heard.note(&node(1), at_us);
                        prop_assert!(taken.insert(at_us), "{at_us} was heard twice");
                    }
                }
            }
        }

        #[test]
        fn whatever_bytes_arrive_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(read) = Statement::decode(&bytes) {
                prop_assert_eq!(read.encode(), bytes);
            }
        }
    }

    #[test]
    fn what_is_remembered_is_forgotten_once_it_is_too_old_to_be_repeated_and_not_before() {
        let mut heard = Heard::default();
        assert!(takes(&mut heard, NOW_US, NOW_US));
        let later_us = NOW_US + RESERVE_US + DRIFT_US;
        // However often another one is heard meanwhile.
        for at_us in (NOW_US..=later_us).step_by(5_000_000) {
            heard.reserve(&node(2), at_us, at_us);
            heard.note(&node(2), at_us);
        }
        heard.reserve(&node(2), later_us, later_us);
        assert!(heard.kept().0.contains_key(&node(1)));
        heard.reserve(&node(2), later_us + 1, later_us + 1);
        assert!(!heard.kept().0.contains_key(&node(1)));
        assert!(!takes(&mut heard, NOW_US, NOW_US), "the clock was set back");
        let (kept, floor_us) = heard.kept();
        let mut heard = Heard::restore(kept.clone(), floor_us);
        assert!(!takes(&mut heard, NOW_US, NOW_US), "and the node was restarted");
        assert!(!takes(&mut heard, NOW_US, later_us + 1), "it is too old");
        let mut ticks = Ticks::default();
        assert_eq!([5, 5, 3, 9].map(|now_us| ticks.next(now_us)), [5, 6, 7, 9]);
    }
}
