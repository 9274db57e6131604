//! How far one node's evidence reaches, and until when. Pure: time and randomness are arguments.
//!
//! ```text
//!          evidence is good                       ages
//! expired ------------------> fresh ------> stale ------> expired
//!    \                          |             |              |
//!     `----------- evidence contradicts what is demanded -----'---> failed, and a new epoch begins
//! ```
//!
//! Integrity (the last evidence matched) and freshness (it is young enough) are told apart (A2): a node that is
//! silent, or whose evidence cannot be held against anything because that is missing, ages; evidence that contradicts what
//! is demanded ends integrity and freshness at once (A3). Evidence that was asked for later, and is good, mends that.

use std::convert::Infallible;

use distos_abi::NodeId;
use sha2::{Digest, Sha256};

/// A challenge that is not answered by then is void.
pub const CHALLENGE_MS: u64 = 30_000;
/// How soon a silent TPM is asked again.
const RETRY_MS: u64 = 5_000;
/// The freshness bounds that make sense: below, the TPM would do nothing else; above, it proves little.
const BOUND_MS: std::ops::RangeInclusive<u64> = 1_000..=86_400_000;

/// How long evidence counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// As fresh, in milliseconds: 1 s to a day.
    pub fresh_ms: u64,
    /// As stale, after that: for so long collateral may be missing, or a TPM silent, before what waits is ended. A day at most.
    pub grace_ms: u64,
}

/// A moment on two clocks. The wall clock is what others compare with; the monotonic one shows
/// when the wall clock was moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds since the Unix epoch.
    pub unix_ms: u64,
    /// Milliseconds of a clock that never goes back; its zero means nothing.
    pub mono_ms: u64,
}

impl Now {
    /// The time since `then`, by the clock that says more. `None` if the wall clock is behind
    /// `then`: then nothing may be concluded from it.
    fn since(self, then: Now) -> Option<u64> {
        let unix = self.unix_ms.checked_sub(then.unix_ms)?;
        Some(unix.max(self.mono_ms.checked_sub(then.mono_ms)?))
    }
}

/// Why an answer is not taken, whatever it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unasked {
    /// No such challenge is open: it was answered already, or replaced.
    #[error("no such challenge is open")]
    NotOpen,
    /// It came too late, or the wall clock was put back meanwhile.
    #[error("the challenge is older than {CHALLENGE_MS} ms, or the wall clock was put back")]
    TooOld,
}

/// What appraisal says of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judged<T> {
    /// It is as it should be.
    Good(T),
    /// Something that would show it is missing: nothing contradicts what is demanded.
    Absent(String),
    /// It contradicts what is demanded.
    Bad(String),
}

impl Judged<Infallible> {
    /// The same of an answer that may say something: this one is not good.
    pub fn of<T>(self) -> Judged<T> {
        match self {
            Judged::Absent(why) => Judged::Absent(why),
            Judged::Bad(why) => Judged::Bad(why),
        }
    }
}

/// How far a node's evidence reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Good, and young enough.
    Fresh,
    /// Good, and too old for anything new.
    Stale,
    /// Too old for anything, or there never was any.
    Expired,
    /// The last evidence contradicts what is demanded.
    Failed,
}

impl Standing {
    /// Its name, as in the schema.
    pub fn name(self) -> &'static str {
        match self {
            Standing::Fresh => "fresh",
            Standing::Stale => "stale",
            Standing::Expired => "expired",
            Standing::Failed => "failed",
        }
    }
}

#[derive(Clone, Debug)]
struct Good<T> {
    evidence: T,
    taken: Now,
}

#[derive(Clone, Debug)]
enum Integrity<T> {
    /// Nothing was appraised yet.
    Unknown,
    Matched(Good<T>),
    Refused(String),
}

/// What holders are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict<T> {
    /// How far it reaches.
    pub standing: Standing,
    /// Unix milliseconds; 0 if there is no good and fresh evidence.
    pub fresh_until_ms: u64,
    /// Unix milliseconds until when it is fresh or stale; 0 if it is neither.
    pub expires_ms: u64,
    /// Why not fresh, or not renewed; empty if neither.
    pub reason: String,
    /// Unix milliseconds of the last good evidence; 0 if none, or if it was contradicted since.
    pub taken_ms: u64,
    /// What the last good evidence said.
    pub evidence: Option<T>,
}

/// The state machine of one node's evidence, which has `T` to say.
#[derive(Clone, Debug)]
pub struct State<T> {
    node: NodeId,
    bounds: Bounds,
    open: Option<([u8; 32], Now)>,
    integrity: Integrity<T>,
    silence: Option<String>,
    /// When evidence was last asked for.
    tried: Option<Now>,
    /// How long before half of the bound is over the next is asked for, so that not all nodes ask in the same moment.
    early_ms: u64,
    epoch: u64,
}

impl<T: Clone> State<T> {
    /// Of `node`, whose evidence had turned bad `epoch` times before. `None` if bounds make no sense.
    pub fn new(node: NodeId, bounds: Bounds, epoch: u64) -> Option<State<T>> {
        let makes_sense = BOUND_MS.contains(&bounds.fresh_ms) && bounds.grace_ms <= *BOUND_MS.end();
        makes_sense.then_some(State {
            node,
            bounds,
            open: None,
            integrity: Integrity::Unknown,
            silence: None,
            tried: None,
            early_ms: 0,
            epoch,
        })
    }

    /// How often the node's evidence has turned bad.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Somebody remembers a later epoch than this one does.
    pub fn raise(&mut self, epoch: u64) {
        self.epoch = self.epoch.max(epoch);
    }

    /// Opens a challenge made of 32 random bytes, and bound to this node, so that another node's
    /// answer to the same bytes is no answer. One is open at a time.
    pub fn challenge(&mut self, random: [u8; 32], now: Now) -> [u8; 32] {
        let nonce = Sha256::new()
            .chain_update(b"distos tpm quote 1\0")
            .chain_update(self.node.0)
            .chain_update(random)
            .finalize()
            .into();
        self.open = Some((nonce, now));
        self.tried = Some(now);
        // Whoever sees the nonce may know when the next is asked for.
        self.early_ms = self.bounds.fresh_ms / 8 * u64::from(random[0]) / 255;
        nonce
    }

    /// Takes the answer to the open challenge: each is answered once. `judged` is what
    /// appraisal said. Evidence counts as taken when its challenge was opened.
    pub fn answer(&mut self, nonce: &[u8; 32], judged: Judged<T>, now: Now) -> Result<(), Unasked> {
        let (_, opened) = self.open.take_if(|(open, _)| open == nonce).ok_or(Unasked::NotOpen)?;
        match judged {
            // Bad evidence counts however late it is.
            Judged::Bad(reason) => {
                self.silence = None;
                self.integrity = Integrity::Refused(reason);
                self.epoch = self.epoch.saturating_add(1);
            }
            Judged::Absent(reason) => self.silence = Some(reason),
            Judged::Good(evidence) => {
                if now.since(opened).is_none_or(|age_ms| age_ms > CHALLENGE_MS) {
                    return Err(Unasked::TooOld);
                }
                self.silence = None;
                self.integrity = Integrity::Matched(Good { evidence, taken: opened });
            }
        }
        Ok(())
    }

    /// No evidence came, and why. What is known of integrity stays; freshness runs on. Returns
    /// whether this cause is a new one.
    pub fn no_answer(&mut self, why: String) -> bool {
        self.open = None;
        let is_new = self.silence.as_ref() != Some(&why);
        self.silence = Some(why);
        is_new
    }

    /// What is known of it was of a TPM that is taken no more.
    pub fn forget(&mut self) {
        self.open = None;
        self.integrity = Integrity::Unknown;
        self.silence = None;
        self.tried = None;
    }

    /// What may be claimed now.
    pub fn verdict(&self, now: Now) -> Verdict<T> {
        let silence = self.silence.clone().unwrap_or_default();
        let nothing = |standing, reason| Verdict {
            standing,
            fresh_until_ms: 0,
            expires_ms: 0,
            reason,
            taken_ms: 0,
            evidence: None,
        };
        match &self.integrity {
            Integrity::Unknown if silence.is_empty() => {
                nothing(Standing::Expired, "no evidence was taken yet".to_owned())
            }
            Integrity::Unknown => nothing(Standing::Expired, silence),
            Integrity::Refused(reason) => nothing(Standing::Failed, reason.clone()),
            Integrity::Matched(good) => {
                let known = Verdict {
                    taken_ms: good.taken.unix_ms,
                    evidence: Some(good.evidence.clone()),
                    ..nothing(Standing::Expired, String::new())
                };
                let joint = if silence.is_empty() { "" } else { ": " };
                let all_ms = self.bounds.fresh_ms + self.bounds.grace_ms;
                let Some(age_ms) = now.since(good.taken) else {
                    // Of two clocks the one that was not put back says how much is left of the grace.
                    let why = "the wall clock was put back before the evidence";
                    let age_ms = now.mono_ms.saturating_sub(good.taken.mono_ms);
                    let left_ms = all_ms.saturating_sub(age_ms);
                    return Verdict {
                        standing: if left_ms == 0 { Standing::Expired } else { Standing::Stale },
                        expires_ms: if left_ms == 0 {
                            0
                        } else {
                            now.unix_ms.saturating_add(left_ms)
                        },
                        reason: format!("{why}{joint}{silence}"),
                        ..known
                    };
                };
                let until = |ms: u64| now.unix_ms.saturating_add(ms.saturating_sub(age_ms));
                let why = || {
                    let bound_ms = self.bounds.fresh_ms;
                    format!(
                        "the evidence is {age_ms} ms old, the bound is {bound_ms} ms{joint}{silence}"
                    )
                };
                if age_ms < self.bounds.fresh_ms {
                    Verdict {
                        standing: Standing::Fresh,
                        fresh_until_ms: until(self.bounds.fresh_ms),
                        expires_ms: until(all_ms),
                        reason: silence,
                        ..known
                    }
                } else if age_ms < all_ms {
                    Verdict {
                        standing: Standing::Stale,
                        expires_ms: until(all_ms),
                        reason: why(),
                        ..known
                    }
                } else {
                    Verdict { reason: why(), ..known }
                }
            }
        }
    }

    /// When to take evidence next, in milliseconds from now: before half the bound is over, so that one lost
    /// attempt does not make the node stale.
    pub fn next_in_ms(&self, now: Now) -> u64 {
        let due_ms = self.bounds.fresh_ms / 2 - self.early_ms;
        // A clock that was put back hides how long ago that was.
        let tried_ms = self.tried.and_then(|tried| now.since(tried)).unwrap_or(u64::MAX);
        match &self.integrity {
            _ if self.silence.is_some() => RETRY_MS.min(due_ms).saturating_sub(tried_ms),
            Integrity::Unknown => 0,
            // It won't mend itself soon, and every attempt is an audit record.
            Integrity::Refused(_) => due_ms.saturating_sub(tried_ms),
            Integrity::Matched(good) => {
                now.since(good.taken).map_or(0, |age_ms| due_ms.saturating_sub(age_ms))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds { fresh_ms: 300_000, grace_ms: 100_000 };

    fn at(ms: u64) -> Now {
        Now { unix_ms: 1_000_000 + ms, mono_ms: 50 + ms }
    }

    fn good() -> Judged<u8> {
        Judged::Good(7)
    }

    fn state() -> State<u8> {
        State::new(NodeId([1; 32]), BOUNDS, 0).unwrap()
    }

    fn attested(taken: u64) -> State<u8> {
        let mut state = self::state();
        let challenge = state.challenge([9; 32], at(taken));
        state.answer(&challenge, good(), at(taken + 10)).unwrap();
        state
    }

    #[test]
    fn nothing_is_claimed_before_the_first_evidence() {
        let state = self::state();
        let verdict = state.verdict(at(0));
        assert_eq!((verdict.standing, verdict.fresh_until_ms), (Standing::Expired, 0));
        assert_eq!(state.next_in_ms(at(0)), 0);
    }

    #[test]
    fn evidence_is_as_old_as_its_challenge() {
        let verdict = attested(5).verdict(at(20));
        assert_eq!(verdict.standing, Standing::Fresh);
        assert_eq!(verdict.fresh_until_ms, at(5).unix_ms + 300_000);
    }

    #[test]
    fn stale_evidence_stays_good_but_is_not_fresh() {
        let verdict = attested(0).verdict(at(300_000));
        assert_eq!((verdict.standing, verdict.fresh_until_ms), (Standing::Stale, 0));
        assert!(verdict.reason.contains("old"), "{}", verdict.reason);
    }

    #[test]
    fn a_wall_clock_put_back_does_not_prolong_evidence() {
        let state = attested(0);
        // Behind the evidence: nothing is fresh.
        let before = Now { unix_ms: at(0).unix_ms - 1, mono_ms: at(1_000).mono_ms };
        assert_eq!(state.verdict(before).fresh_until_ms, 0);
        assert_eq!(state.next_in_ms(before), 0, "and new evidence is due at once");
        // Back, but not behind it: what is left follows the clock that never goes back.
        let back = Now { unix_ms: at(1_000).unix_ms, mono_ms: at(290_000).mono_ms };
        assert_eq!(state.verdict(back).fresh_until_ms, back.unix_ms + 10_000);
        let over = Now { unix_ms: at(1_000).unix_ms, mono_ms: at(300_000).mono_ms };
        assert_eq!(state.verdict(over).fresh_until_ms, 0);
    }

    #[test]
    fn a_challenge_is_answered_once() {
        let mut state = self::state();
        let challenge = state.challenge([9; 32], at(0));
        state.answer(&challenge, good(), at(1)).unwrap();
        assert_eq!(state.answer(&challenge, good(), at(2)), Err(Unasked::NotOpen));
    }

    #[test]
    fn a_replaced_or_foreign_challenge_is_not_answered() {
        let mut state = self::state();
        let old = state.challenge([9; 32], at(0));
        let new = state.challenge([8; 32], at(1));
        assert_eq!(state.answer(&old, good(), at(2)), Err(Unasked::NotOpen));
        state.answer(&new, good(), at(3)).unwrap();
        let other = State::<u8>::new(NodeId([2; 32]), BOUNDS, 0).unwrap().challenge([8; 32], at(1));
        assert_ne!(other, new, "the same bytes on another node are another challenge");
    }

    #[test]
    fn an_answer_after_thirty_seconds_is_void() {
        let mut state = self::state();
        for late in [
            at(CHALLENGE_MS + 1),
            Now { unix_ms: at(0).unix_ms, mono_ms: at(CHALLENGE_MS + 1).mono_ms },
            Now { unix_ms: at(0).unix_ms - 1, mono_ms: at(1).mono_ms },
        ] {
            let challenge = state.challenge([9; 32], at(0));
            assert_eq!(state.answer(&challenge, good(), late), Err(Unasked::TooOld));
            assert_eq!(state.verdict(late).standing, Standing::Expired);
        }
    }

    #[test]
    fn bad_evidence_ends_integrity_and_freshness_at_once() {
        let mut state = attested(0);
        let challenge = state.challenge([3; 32], at(100));
        state.answer(&challenge, Judged::Bad("PCR 0".into()), at(90_000)).unwrap();
        let verdict = state.verdict(at(90_000));
        assert_eq!((verdict.standing, verdict.fresh_until_ms), (Standing::Failed, 0));
        assert_eq!(verdict.reason, "PCR 0");
        assert_eq!(state.next_in_ms(at(150_100 - 442)), 1);
        assert_eq!(state.next_in_ms(at(150_100)), 0, "it is asked again");
    }

    #[test]
    fn a_silent_tpm_leaves_integrity_and_lets_freshness_run_out() {
        let mut state = attested(0);
        state.challenge([3; 32], at(100));
        assert!(state.no_answer("dead".into()));
        assert!(!state.no_answer("dead".into()), "one cause is one event");
        let verdict = state.verdict(at(100));
        assert_eq!(verdict.standing, Standing::Fresh);
        assert_eq!(verdict.reason, "dead");
        assert_eq!(state.next_in_ms(at(100)), RETRY_MS);
        assert_eq!(state.next_in_ms(at(100 + RETRY_MS)), 0, "it is asked again");
        assert_eq!(state.verdict(at(400_000)).fresh_until_ms, 0);
    }

    #[test]
    fn evidence_is_renewed_at_half_the_bound() {
        for (random, early_ms) in [(0, 0), (9, 1_323), (255, 37_500)] {
            let mut state = self::state();
            let challenge = state.challenge([random; 32], at(0));
            state.answer(&challenge, good(), at(10)).unwrap();
            assert_eq!(state.next_in_ms(at(10)), 149_990 - early_ms);
        }
        assert_eq!(attested(0).next_in_ms(at(200_000)), 0);
    }

    #[test]
    fn evidence_ages_from_fresh_by_stale_to_expired() {
        let state = attested(0);
        for (ms, standing, left_ms) in [
            (299_999, Standing::Fresh, 100_001),
            (300_000, Standing::Stale, 100_000),
            (399_999, Standing::Stale, 1),
            (400_000, Standing::Expired, 0),
        ] {
            let verdict = state.verdict(at(ms));
            assert_eq!(verdict.standing, standing, "{ms}");
            let left = verdict.expires_ms.saturating_sub(at(ms).unix_ms);
            assert_eq!(left, left_ms, "{ms}");
        }
    }

    /// Collateral that is missing, or a check for which there is nothing to check against, is not tampering.
    #[test]
    fn what_cannot_be_checked_ages_and_does_not_fail() {
        let mut state = attested(0);
        let challenge = state.challenge([3; 32], at(100));
        state.answer(&challenge, Judged::Absent("no list".into()), at(200)).unwrap();
        let verdict = state.verdict(at(200));
        assert_eq!((verdict.standing, verdict.reason.as_str()), (Standing::Fresh, "no list"));
        assert_eq!(state.verdict(at(300_000)).standing, Standing::Stale);
        assert_eq!(state.verdict(at(400_000)).standing, Standing::Expired);
        assert_eq!(state.epoch(), 0);
        assert_eq!(state.next_in_ms(at(200)), RETRY_MS - 100, "it is tried again soon");
        // Where nothing was ever good, nothing ages.
        let mut new = self::state();
        let challenge = new.challenge([3; 32], at(0));
        new.answer(&challenge, Judged::Absent("no policy".into()), at(1)).unwrap();
        let verdict = new.verdict(at(1));
        assert_eq!((verdict.standing, verdict.reason.as_str()), (Standing::Expired, "no policy"));
    }

    #[test]
    fn each_time_that_evidence_turns_bad_an_epoch_begins_and_later_good_evidence_mends_it() {
        let mut state = attested(0);
        for epoch in 1..=2 {
            let challenge = state.challenge([3; 32], at(epoch));
            state.answer(&challenge, Judged::Bad("PCR 0".into()), at(epoch)).unwrap();
            assert_eq!((state.verdict(at(9)).standing, state.epoch()), (Standing::Failed, epoch));
        }
        // A silence later does not make it better, nor does what was asked for before.
        state.no_answer("dead".into());
        assert_eq!(state.verdict(at(10)).standing, Standing::Failed);
        let challenge = state.challenge([4; 32], at(20));
        state.answer(&challenge, good(), at(21)).unwrap();
        assert_eq!((state.verdict(at(21)).standing, state.epoch()), (Standing::Fresh, 2));
        assert_eq!(State::<u8>::new(NodeId([1; 32]), BOUNDS, 7).unwrap().epoch(), 7);
    }

    #[test]
    fn a_bound_that_makes_no_sense_is_refused() {
        let of = |fresh_ms, grace_ms| {
            State::<u8>::new(NodeId([1; 32]), Bounds { fresh_ms, grace_ms }, 0)
        };
        assert!(of(999, 0).is_none() && of(86_400_001, 0).is_none());
        assert!(of(1_000, 86_400_001).is_none() && of(1_000, 0).is_some());
    }

    proptest! {
        #[test]
        fn no_pair_of_clocks_prolongs_evidence(unix: u64, mono: u64) {
            let now = Now { unix_ms: unix, mono_ms: mono };
            let verdict = attested(0).verdict(now);
            if verdict.fresh_until_ms != 0 {
                prop_assert!(verdict.fresh_until_ms <= at(300_000).unix_ms);
                prop_assert!(mono - at(0).mono_ms < 300_000);
                prop_assert!(verdict.fresh_until_ms - unix <= 300_000);
            }
            prop_assert!(mono < at(0).mono_ms + 400_000 || verdict.standing == Standing::Expired);
        }
    }
}
