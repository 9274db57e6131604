//! What the node may claim about itself, and until when. Pure: time and randomness are arguments.
//!
//! Integrity (the last evidence matched) and freshness (it is young enough) are told apart (A2):
//! a TPM that is silent lets freshness run out, evidence that does not match ends both at once.

use distos_abi::NodeId;
use distos_evidence::evidence::Appraised;
use sha2::{Digest, Sha256};

/// A challenge that is not answered by then is void.
pub(crate) const CHALLENGE_MS: u64 = 30_000;
/// How soon a silent TPM is asked again.
const RETRY_MS: u64 = 5_000;
/// The freshness bounds that make sense: below, the TPM would do nothing else; above, it proves little.
const BOUND_MS: std::ops::RangeInclusive<u64> = 1_000..=86_400_000;

/// A moment on two clocks. The wall clock is what others compare with; the monotonic one shows
/// when the wall clock was moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Now {
    /// Milliseconds since the Unix epoch.
    pub(crate) unix_ms: u64,
    /// Milliseconds of a clock that never goes back; its zero means nothing.
    pub(crate) mono_ms: u64,
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
pub(crate) enum Unasked {
    /// No such challenge is open: it was answered already, or replaced.
    #[error("no such challenge is open")]
    NotOpen,
    /// It came too late, or the wall clock was put back meanwhile.
    #[error("the challenge is older than {CHALLENGE_MS} ms, or the wall clock was put back")]
    TooOld,
}

#[derive(Clone, Debug)]
struct Good {
    appraised: Appraised,
    quote_micros: u64,
    taken: Now,
}

#[derive(Clone, Debug)]
enum Integrity {
    /// Nothing was appraised yet.
    Unknown,
    Matched(Good),
    Refused(String),
}

/// What holders are told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Unix milliseconds; 0 if there is no good and fresh evidence.
    pub(crate) fresh_until_ms: u64,
    /// Whether the last evidence matched.
    pub(crate) good: bool,
    /// Why not good, not fresh, or not renewed.
    pub(crate) reason: String,
    /// Unix milliseconds of the last good evidence; 0 if none.
    pub(crate) taken_ms: u64,
    /// What the last good evidence said.
    pub(crate) evidence: Option<(Appraised, u64)>,
}

/// The state machine.
#[derive(Debug)]
pub(crate) struct State {
    node: NodeId,
    bound_ms: u64,
    open: Option<([u8; 32], Now)>,
    integrity: Integrity,
    silence: Option<String>,
    /// When evidence was last asked for.
    tried: Option<Now>,
}

impl State {
    /// `bound_ms` is how long evidence counts as fresh; `None` if it is under a second or over a
    /// day.
    pub(crate) fn new(node: NodeId, bound_ms: u64) -> Option<State> {
        BOUND_MS.contains(&bound_ms).then_some(State {
            node,
            bound_ms,
            open: None,
            integrity: Integrity::Unknown,
            silence: None,
            tried: None,
        })
    }

    /// Opens a challenge made of 32 random bytes, and bound to this node, so that another node's
    /// answer to the same bytes is no answer. One is open at a time.
    pub(crate) fn challenge(&mut self, random: [u8; 32], now: Now) -> [u8; 32] {
        let qualifying = Sha256::new()
            .chain_update(b"distos tpm quote 1\0")
            .chain_update(self.node.0)
            .chain_update(random)
            .finalize()
            .into();
        self.open = Some((qualifying, now));
        self.tried = Some(now);
        qualifying
    }

    /// Takes the answer to the open challenge: each is answered once. `verdict` is what
    /// appraisal said. Evidence counts as taken when its challenge was opened.
    pub(crate) fn answer(
        &mut self,
        qualifying: &[u8; 32],
        verdict: Result<(Appraised, u64), String>,
        now: Now,
    ) -> Result<(), Unasked> {
        let (_, opened) =
            self.open.take_if(|(open, _)| open == qualifying).ok_or(Unasked::NotOpen)?;
        self.silence = None;
        match verdict {
            // Bad evidence counts however late it is.
            Err(reason) => self.integrity = Integrity::Refused(reason),
            Ok((appraised, quote_micros)) => {
                if now.since(opened).is_none_or(|age_ms| age_ms > CHALLENGE_MS) {
                    return Err(Unasked::TooOld);
                }
                self.integrity =
                    Integrity::Matched(Good { appraised, quote_micros, taken: opened });
            }
        }
        Ok(())
    }

    /// No evidence came, and why. What is known of integrity stays; freshness runs on. Returns
    /// whether this cause is a new one.
    pub(crate) fn no_answer(&mut self, why: String) -> bool {
        self.open = None;
        let is_new = self.silence.as_ref() != Some(&why);
        self.silence = Some(why);
        is_new
    }

    /// What may be claimed now.
    pub(crate) fn verdict(&self, now: Now) -> Verdict {
        let silence = || self.silence.clone().unwrap_or_default();
        match &self.integrity {
            Integrity::Unknown => Verdict {
                reason: self.silence.clone().unwrap_or_else(|| "no evidence was taken yet".into()),
                ..Verdict::default()
            },
            Integrity::Refused(reason) => Verdict { reason: reason.clone(), ..Verdict::default() },
            Integrity::Matched(good) => {
                let known = Verdict {
                    good: true,
                    taken_ms: good.taken.unix_ms,
                    evidence: Some((good.appraised, good.quote_micros)),
                    ..Verdict::default()
                };
                match self.left_ms(good, now) {
                    Ok(left_ms) => Verdict {
                        fresh_until_ms: now.unix_ms.saturating_add(left_ms),
                        reason: silence(),
                        ..known
                    },
                    Err(why) => {
                        let silence = silence();
                        let joint = if silence.is_empty() { "" } else { ": " };
                        Verdict { reason: format!("{why}{joint}{silence}"), ..known }
                    }
                }
            }
        }
    }

    /// When to take evidence next, in milliseconds from now: at half the bound, so that one lost
    /// attempt does not make the node stale.
    pub(crate) fn next_in_ms(&self, now: Now) -> u64 {
        let half = self.bound_ms / 2;
        // A clock that was put back hides how long ago that was.
        let tried_ms = self.tried.and_then(|tried| now.since(tried)).unwrap_or(u64::MAX);
        match &self.integrity {
            _ if self.silence.is_some() => RETRY_MS.min(half).saturating_sub(tried_ms),
            Integrity::Unknown => 0,
            // It won't mend itself soon, and every attempt is an audit record.
            Integrity::Refused(_) => half.saturating_sub(tried_ms),
            Integrity::Matched(good) => {
                now.since(good.taken).map_or(0, |age_ms| half.saturating_sub(age_ms))
            }
        }
    }

    fn left_ms(&self, good: &Good, now: Now) -> Result<u64, String> {
        let age_ms =
            now.since(good.taken).ok_or("the wall clock was put back before the evidence")?;
        let left_ms = self.bound_ms.saturating_sub(age_ms);
        if left_ms == 0 {
            return Err(format!(
                "the evidence is {age_ms} ms old, the bound is {} ms",
                self.bound_ms
            ));
        }
        Ok(left_ms)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use distos_evidence::evidence::{ClockInfo, Continuity, PcrSet};

    fn at(ms: u64) -> Now {
        Now { unix_ms: 1_000_000 + ms, mono_ms: 50 + ms }
    }

    fn good() -> Result<(Appraised, u64), String> {
        let clock = ClockInfo { clock_ms: 1, reset_count: 1, restart_count: 0, safe: true };
        let pcrs = PcrSet::default().with(0);
        Ok((Appraised { clock, pcr_digest: [7; 32], pcrs, continuity: Continuity::First }, 850))
    }

    fn attested(taken: u64) -> State {
        let mut state = State::new(NodeId([1; 32]), 300_000).unwrap();
        let challenge = state.challenge([9; 32], at(taken));
        state.answer(&challenge, good(), at(taken + 10)).unwrap();
        state
    }

    #[test]
    fn nothing_is_claimed_before_the_first_evidence() {
        let state = State::new(NodeId([1; 32]), 300_000).unwrap();
        let verdict = state.verdict(at(0));
        assert_eq!((verdict.good, verdict.fresh_until_ms), (false, 0));
        assert_eq!(state.next_in_ms(at(0)), 0);
    }

    #[test]
    fn evidence_is_as_old_as_its_challenge() {
        let verdict = attested(5).verdict(at(20));
        assert!(verdict.good);
        assert_eq!(verdict.fresh_until_ms, at(5).unix_ms + 300_000);
    }

    #[test]
    fn stale_evidence_stays_good_but_is_not_fresh() {
        let verdict = attested(0).verdict(at(300_000));
        assert_eq!((verdict.good, verdict.fresh_until_ms), (true, 0));
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
        let mut state = State::new(NodeId([1; 32]), 300_000).unwrap();
        let challenge = state.challenge([9; 32], at(0));
        state.answer(&challenge, good(), at(1)).unwrap();
        assert_eq!(state.answer(&challenge, good(), at(2)), Err(Unasked::NotOpen));
    }

    #[test]
    fn a_replaced_or_foreign_challenge_is_not_answered() {
        let mut state = State::new(NodeId([1; 32]), 300_000).unwrap();
        let old = state.challenge([9; 32], at(0));
        let new = state.challenge([8; 32], at(1));
        assert_eq!(state.answer(&old, good(), at(2)), Err(Unasked::NotOpen));
        state.answer(&new, good(), at(3)).unwrap();
        let other = State::new(NodeId([2; 32]), 300_000).unwrap().challenge([8; 32], at(1));
        assert_ne!(other, new, "the same bytes on another node are another challenge");
    }

    #[test]
    fn an_answer_after_thirty_seconds_is_void() {
        let mut state = State::new(NodeId([1; 32]), 300_000).unwrap();
        for late in [
            at(CHALLENGE_MS + 1),
            Now { unix_ms: at(0).unix_ms, mono_ms: at(CHALLENGE_MS + 1).mono_ms },
            Now { unix_ms: at(0).unix_ms - 1, mono_ms: at(1).mono_ms },
        ] {
            let challenge = state.challenge([9; 32], at(0));
            assert_eq!(state.answer(&challenge, good(), late), Err(Unasked::TooOld));
            assert!(!state.verdict(late).good);
        }
    }

    #[test]
    fn bad_evidence_ends_integrity_and_freshness_at_once() {
        let mut state = attested(0);
        let challenge = state.challenge([3; 32], at(100));
        state.answer(&challenge, Err("PCR 0".into()), at(90_000)).unwrap();
        let verdict = state.verdict(at(90_000));
        assert_eq!((verdict.good, verdict.fresh_until_ms), (false, 0));
        assert_eq!(verdict.reason, "PCR 0");
        assert_eq!(state.next_in_ms(at(150_099)), 1);
        assert_eq!(state.next_in_ms(at(150_100)), 0, "it is asked again");
    }

    #[test]
    fn a_silent_tpm_leaves_integrity_and_lets_freshness_run_out() {
        let mut state = attested(0);
        state.challenge([3; 32], at(100));
        assert!(state.no_answer("dead".into()));
        assert!(!state.no_answer("dead".into()), "one cause is one event");
        let verdict = state.verdict(at(100));
        assert!(verdict.good && verdict.fresh_until_ms > 0);
        assert_eq!(verdict.reason, "dead");
        assert_eq!(state.next_in_ms(at(100)), RETRY_MS);
        assert_eq!(state.next_in_ms(at(100 + RETRY_MS)), 0, "it is asked again");
        assert_eq!(state.verdict(at(400_000)).fresh_until_ms, 0);
    }

    #[test]
    fn evidence_is_renewed_at_half_the_bound() {
        assert_eq!(attested(0).next_in_ms(at(10)), 149_990);
        assert_eq!(attested(0).next_in_ms(at(200_000)), 0);
    }

    #[test]
    fn a_bound_that_makes_no_sense_is_refused() {
        assert!(State::new(NodeId([1; 32]), 999).is_none());
        assert!(State::new(NodeId([1; 32]), 86_400_001).is_none());
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
        }
    }
}
