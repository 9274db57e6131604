//! What follows for the work on this node from how far its evidence reaches (A2, A3). Pure: time is an argument.
//!
//! ```text
//!            expired, and jobs are there        the time is over, or nothing runs any more
//! undrained -----------------------------> draining --------------------------------> drained
//!     ^                                       |                                          |
//!     `--------------- fresh -----------------'------------------- fresh ----------------'
//! ```
//!
//! While it is fresh or stale nothing ends; what is placed goes by the evidence itself ([`crate::policy`]). Once it is
//! expired what waits ends, and what runs is drained: it has a bounded time to end by itself, and then ends as everything
//! does at once when evidence fails. Whoever stops the service that says how far evidence reaches gains nothing: what it
//! said last says when that is over.

use std::fmt;

/// How long what runs may take to end by itself, in milliseconds, unless the image says otherwise.
pub const DRAIN_MS: u64 = 60_000;
/// How long the attestation service may take to say that there is newer evidence than what it spoke of last.
const SILENCE_MS: u64 = 2_000;
/// The longest that an image may give it: a day.
pub const MAX_DRAIN_MS: u64 = 86_400_000;

/// How far this node's evidence reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Good, and young enough.
    Fresh,
    /// Good, and too old for anything new.
    Stale,
    /// Too old for anything, or there never was any.
    Expired,
    /// It contradicts what is demanded.
    Failed,
}

/// What the attestation service says of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// How far its evidence reaches.
    pub standing: Standing,
    /// How often it has turned bad.
    pub epoch: u64,
    /// For how many milliseconds it is fresh or stale, if nothing newer comes.
    pub left_ms: u64,
}

/// What is on this node that rests on its evidence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Jobs that have not ended.
    pub jobs: usize,
    /// Executors.
    pub executors: usize,
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} jobs and {} executors", self.jobs, self.executors)
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The evidence that was heard of is over: the attestation service is to be asked whether there is newer.
    AskAgain,
    /// Everything on this node ends at once: its evidence has failed.
    Fence,
    /// What waits ends, and what runs has until then, on the clock that the decision was made by.
    BeginDrain {
        /// In milliseconds.
        until_ms: u64,
    },
    /// What runs may go on: there is fresh evidence.
    CallOffDrain,
    /// What is left ends at once.
    EndDrain,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drain {
    Undrained,
    Draining { until_ms: u64 },
    Drained,
}

/// What is known of this node's standing. Times are those of one clock that never goes back, in milliseconds.
#[derive(Clone, Debug)]
pub struct Watch {
    drain_ms: u64,
    last: Option<Heard>,
    /// When the evidence that was last heard of is expired.
    expires_ms: Option<u64>,
    /// Whether it was asked since then whether there is newer.
    is_asked: bool,
    drain: Drain,
}

impl Watch {
    /// Nothing has been heard. What runs gets `drain_ms` to end by itself.
    pub fn new(drain_ms: u64) -> Watch {
        Watch { drain_ms, last: None, expires_ms: None, is_asked: false, drain: Drain::Undrained }
    }

    /// Whether this node's evidence was last said to have failed.
    pub fn has_failed(&self) -> bool {
        self.last.is_some_and(|last| last.standing == Standing::Failed)
    }

    /// How often this node's evidence has turned bad, as was heard last.
    pub fn epoch(&self) -> u64 {
        self.last.map_or(0, |last| last.epoch)
    }

    /// Until when what runs may end by itself, if it has to.
    pub fn draining_until_ms(&self) -> Option<u64> {
        match self.drain {
            Drain::Draining { until_ms } => Some(until_ms),
            Drain::Undrained | Drain::Drained => None,
        }
    }

    /// The attestation service has said this.
    pub fn heard(&mut self, now_ms: u64, heard: Heard, load: Load) -> Option<Step> {
        let was = self.last.replace(heard);
        self.is_asked = false;
        self.expires_ms = match heard.standing {
            Standing::Fresh | Standing::Stale => Some(now_ms.saturating_add(heard.left_ms)),
            Standing::Expired | Standing::Failed => None,
        };
        if heard.standing == Standing::Failed {
            self.drain = Drain::Drained;
            let is_new =
                was.is_none_or(|was| (was.standing, was.epoch) != (heard.standing, heard.epoch));
            // What could not be ended before is tried again.
            return (is_new || load != Load::default()).then_some(Step::Fence);
        }
        // One that has failed and is good again meanwhile has failed.
        if was.is_some_and(|was| was.epoch < heard.epoch) {
            self.drain = Drain::Undrained;
            return Some(Step::Fence);
        }
        match (heard.standing, self.drain) {
            (Standing::Fresh, drain) => {
                self.drain = Drain::Undrained;
                matches!(drain, Drain::Draining { .. }).then_some(Step::CallOffDrain)
            }
            (_, Drain::Drained) => (load != Load::default()).then_some(Step::EndDrain),
            _ => self.passed(now_ms, load),
        }
    }

    /// Time has passed, or something has ended, and nothing was heard.
    pub fn passed(&mut self, now_ms: u64, load: Load) -> Option<Step> {
        match self.drain {
            Drain::Undrained
                if !self.is_asked && self.expires_ms.is_some_and(|at| at <= now_ms) =>
            {
                self.is_asked = true;
                Some(Step::AskAgain)
            }
            Drain::Undrained if self.is_expired(now_ms) && load.jobs > 0 => {
                let until_ms = now_ms.saturating_add(self.drain_ms);
                self.drain = Drain::Draining { until_ms };
                Some(Step::BeginDrain { until_ms })
            }
            Drain::Draining { until_ms } if until_ms <= now_ms || load.jobs == 0 => {
                self.drain = Drain::Drained;
                Some(Step::EndDrain)
            }
            Drain::Undrained | Drain::Draining { .. } | Drain::Drained => None,
        }
    }

    /// When there is something to decide though nothing is heard and nothing ends.
    pub fn next_ms(&self, now_ms: u64) -> Option<u64> {
        match self.drain {
            Drain::Undrained => {
                let next_ms = if self.is_asked { self.silent_ms() } else { self.expires_ms };
                next_ms.filter(|next_ms| *next_ms > now_ms)
            }
            Drain::Draining { until_ms } => Some(until_ms),
            Drain::Drained => None,
        }
    }

    fn is_expired(&self, now_ms: u64) -> bool {
        let is_said = self.last.is_some_and(|last| last.standing == Standing::Expired);
        is_said || self.silent_ms().is_some_and(|silent_ms| silent_ms <= now_ms)
    }

    /// From when on evidence counts as expired though nobody says so.
    fn silent_ms(&self) -> Option<u64> {
        self.expires_ms.map(|expires_ms| expires_ms.saturating_add(SILENCE_MS))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOTHING: Load = Load { jobs: 0, executors: 0 };
    const WORK: Load = Load { jobs: 2, executors: 1 };
    /// Its tenant runs nothing.
    const IDLE: Load = Load { jobs: 0, executors: 1 };

    fn heard(standing: Standing, epoch: u64) -> Heard {
        Heard { standing, epoch, left_ms: 1_000 }
    }

    fn watch() -> Watch {
        let mut watch = Watch::new(100);
        assert_eq!(watch.heard(0, heard(Standing::Fresh, 3), WORK), None);
        watch
    }

    #[test]
    fn what_runs_when_evidence_expires_may_end_by_itself_and_is_ended_when_that_takes_too_long() {
        let mut watch = watch();
        assert_eq!(watch.heard(10, heard(Standing::Stale, 3), WORK), None);
        let begun = watch.heard(20, heard(Standing::Expired, 3), WORK);
        assert_eq!(begun, Some(Step::BeginDrain { until_ms: 120 }));
        // To hear the same again gives no more time.
        assert_eq!(watch.heard(90, heard(Standing::Expired, 3), WORK), None);
        assert_eq!((watch.draining_until_ms(), watch.next_ms(90)), (Some(120), Some(120)));
        assert_eq!(watch.passed(119, WORK), None);
        assert_eq!(watch.passed(120, WORK), Some(Step::EndDrain));
        assert_eq!((watch.draining_until_ms(), watch.passed(121, WORK)), (None, None));
        // An executor that could not be stopped is stopped later.
        assert_eq!(watch.heard(130, heard(Standing::Expired, 3), IDLE), Some(Step::EndDrain));
        assert_eq!(watch.heard(140, heard(Standing::Expired, 3), NOTHING), None);
        // The next time it is drained anew.
        assert_eq!(watch.heard(150, heard(Standing::Fresh, 3), NOTHING), None);
        let begun = watch.heard(200, heard(Standing::Expired, 3), WORK);
        assert_eq!(begun, Some(Step::BeginDrain { until_ms: 300 }));
    }

    #[test]
    fn a_drain_is_over_when_nothing_runs_any_more() {
        let mut watch = watch();
        watch.heard(20, heard(Standing::Expired, 3), WORK);
        assert_eq!(watch.passed(30, IDLE), Some(Step::EndDrain));
    }

    #[test]
    fn only_fresh_evidence_calls_a_drain_off() {
        let mut watch = watch();
        watch.heard(20, heard(Standing::Expired, 3), WORK);
        // The wall clock was put back: that makes nothing younger.
        assert_eq!(watch.heard(30, heard(Standing::Stale, 3), WORK), None);
        assert_eq!(watch.draining_until_ms(), Some(120));
        assert_eq!(watch.heard(119, heard(Standing::Fresh, 3), WORK), Some(Step::CallOffDrain));
        assert_eq!(watch.passed(500, WORK), None);
    }

    /// Or work would go on for as long as somebody keeps the attestation service from speaking.
    #[test]
    fn evidence_expires_also_when_nobody_says_so() {
        let mut watch = watch();
        assert_eq!(watch.next_ms(0), Some(1_000));
        assert_eq!(watch.passed(999, WORK), None);
        // It is renewed without a word as long as nothing changes.
        assert_eq!(watch.passed(1_000, WORK), Some(Step::AskAgain));
        assert_eq!((watch.passed(1_001, WORK), watch.next_ms(1_001)), (None, Some(3_000)));
        assert_eq!(watch.heard(1_002, heard(Standing::Fresh, 3), WORK), None);
        assert_eq!((watch.passed(2_001, WORK), watch.next_ms(2_001)), (None, Some(2_002)));
        assert_eq!(watch.passed(2_002, WORK), Some(Step::AskAgain));
        assert_eq!(watch.passed(4_002, WORK), Some(Step::BeginDrain { until_ms: 4_102 }));
        // With nothing to drain, nothing is to be decided, again and again.
        let mut watch = Watch::new(100);
        watch.heard(0, heard(Standing::Fresh, 3), NOTHING);
        assert_eq!(watch.passed(1_000, NOTHING), Some(Step::AskAgain));
        assert_eq!((watch.passed(3_000, NOTHING), watch.next_ms(3_000)), (None, None));
    }

    /// Its memory of good evidence went with the service that was killed: what runs does not go on for ever.
    #[test]
    fn work_is_drained_where_there_is_no_evidence_any_more() {
        let mut watch = watch();
        let nothing = Heard { left_ms: 0, ..heard(Standing::Expired, 3) };
        assert_eq!(watch.heard(5, nothing, WORK), Some(Step::BeginDrain { until_ms: 105 }));
        // At boot there is nothing to drain.
        let mut watch = Watch::new(100);
        assert_eq!(watch.heard(5, nothing, NOTHING), None);
        assert_eq!(watch.heard(6, nothing, IDLE), None);
    }

    #[test]
    fn evidence_that_fails_ends_everything_at_once_also_in_a_drain_and_also_if_it_is_good_again() {
        let mut watch = watch();
        watch.heard(20, heard(Standing::Expired, 3), WORK);
        let failed = heard(Standing::Failed, 4);
        assert_eq!(watch.heard(30, failed, WORK), Some(Step::Fence));
        assert!(watch.has_failed() && watch.draining_until_ms().is_none());
        assert_eq!(watch.heard(40, failed, NOTHING), None);
        assert_eq!(watch.heard(50, failed, IDLE), Some(Step::Fence));
        assert_eq!(watch.heard(60, heard(Standing::Fresh, 4), NOTHING), None);
        assert!(!watch.has_failed());
        let again = watch.heard(70, heard(Standing::Fresh, 6), WORK);
        assert_eq!(again, Some(Step::Fence), "it failed between two answers");
        assert_eq!(watch.heard(80, heard(Standing::Fresh, 6), WORK), None);
    }

    fn standing() -> impl Strategy<Value = Standing> {
        use Standing::{Expired, Failed, Fresh, Stale};
        prop::sample::select(vec![Fresh, Stale, Expired, Failed])
    }

    proptest! {
        /// Whatever is heard when, nothing runs for longer than `drain_ms` after the last evidence has expired.
        #[test]
        fn no_work_outlives_its_evidence_by_more_than_a_drain(
            said in prop::collection::vec((standing(), 0u64..3_000, 0u64..300, any::<bool>()), 1..60),
        ) {
            let mut watch = Watch::new(100);
            let (mut now_ms, mut epoch) = (0, 0);
            // Since when nothing carries the work, if there is any.
            let (mut load, mut bare_ms) = (WORK, None::<u64>);
            for (standing, wait_ms, left_ms, ends) in said {
                // The shell looks whenever it is time to.
                let until_ms = now_ms + wait_ms;
                while let Some(next_ms) = watch.next_ms(now_ms).filter(|next| *next <= until_ms) {
                    now_ms = now_ms.max(next_ms);
                    if watch.passed(now_ms, load) == Some(Step::EndDrain) {
                        (load, bare_ms) = (NOTHING, None);
                    }
                    if watch.draining_until_ms().is_some() {
                        bare_ms = bare_ms.or(Some(now_ms));
                    }
                    if watch.next_ms(now_ms).is_some_and(|next| next <= now_ms) {
                        break;
                    }
                }
                now_ms = until_ms;
                epoch += u64::from(standing == Standing::Failed);
                let step = watch.heard(now_ms, Heard { standing, epoch, left_ms }, load);
                match (standing, step) {
                    (Standing::Failed, _) => {
                        prop_assert_eq!(step, Some(Step::Fence));
                        (load, bare_ms) = (NOTHING, None);
                    }
                    (_, Some(Step::Fence | Step::EndDrain)) => (load, bare_ms) = (NOTHING, None),
                    (Standing::Fresh, _) => (load, bare_ms) = (WORK, None),
                    (Standing::Expired, _) if load.jobs > 0 => bare_ms = bare_ms.or(Some(now_ms)),
                    _ => {}
                }
                if let (Some(bare_ms), true) = (bare_ms, load.jobs > 0) {
                    prop_assert!(now_ms < bare_ms + 100, "{now_ms} {bare_ms}");
                }
                if ends && watch.draining_until_ms().is_some() {
                    prop_assert_eq!(watch.passed(now_ms, NOTHING), Some(Step::EndDrain));
                    (load, bare_ms) = (NOTHING, None);
                }
            }
        }
    }
}
