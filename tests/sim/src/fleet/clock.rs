//! A node's clocks: one that goes on by itself and never back, a little fast or slow, and one that shows the time of
//! day and may be set.

use crate::random::Random;

/// When the runs begin, in milliseconds since the Unix epoch.
const BEGIN_MS: u64 = 1_800_000_000_000;
/// How far a clock that is set may be off: more than statements bear.
const OFF_MS: u64 = 400_000;

#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    /// How much faster than real it goes, in millionths.
    ppm: i64,
    first_us: u64,
    off_ms: i64,
}

impl Clock {
    /// Two differ by at most one part in fifty-five: the skew of leases is one in fifty.
    pub(super) fn new(random: &mut Random) -> Clock {
        let ppm = random.below(18_001) as i64 - 9_000;
        Clock { ppm, first_us: random.below(1 << 40), off_ms: random.below(2_000) as i64 - 1_000 }
    }

    fn us(&self, now_us: u64) -> u64 {
        let gained = i128::from(now_us) * i128::from(self.ppm) / 1_000_000;
        self.first_us + u64::try_from(i128::from(now_us) + gained).unwrap_or(0)
    }

    /// Milliseconds since this machine was booted.
    pub(super) fn boot_ms(&self, now_us: u64) -> u64 {
        self.us(now_us) / 1000
    }

    /// Milliseconds since the Unix epoch, as this machine has it.
    pub(super) fn wall_ms(&self, now_us: u64) -> u64 {
        (BEGIN_MS + now_us / 1000).saturating_add_signed(self.off_ms)
    }

    /// It is set, rightly or wrongly.
    pub(super) fn jump(&mut self, random: &mut Random) {
        self.off_ms = match random.below(2) {
            0 => random.below(2_000) as i64 - 1_000,
            _ => random.below(2 * OFF_MS) as i64 - OFF_MS as i64,
        };
    }
}
