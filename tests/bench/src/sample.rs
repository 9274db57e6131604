//! Sampling: pairs taken in turn, so that what else the machine does falls on both alike, and the
//! interval in which the ratio of their percentiles lies.

use std::time::Instant;

/// Resamples from which an interval is taken.
const RESAMPLES: usize = 1000;

/// Times of ours and of the peer, taken in turn, in nanoseconds.
#[derive(Clone, Debug, Default)]
pub struct Pairs {
    /// Ours.
    pub ours: Vec<u64>,
    /// The peer's, in the same order.
    pub peer: Vec<u64>,
}

impl Pairs {
    /// Takes `count` pairs. Which of the two goes first changes with each pair: whoever follows
    /// finds the caches as the other left them.
    pub fn take<E>(
        count: usize,
        mut ours: impl FnMut() -> Result<(), E>,
        mut peer: impl FnMut() -> Result<(), E>,
    ) -> Result<Pairs, E> {
        let mut pairs = Pairs::default();
        for number in 0..count {
            if number % 2 == 0 {
                pairs.ours.push(timed(&mut ours)?);
                pairs.peer.push(timed(&mut peer)?);
            } else {
                pairs.peer.push(timed(&mut peer)?);
                pairs.ours.push(timed(&mut ours)?);
            }
        }
        Ok(pairs)
    }

    /// The same for work that waits.
    pub async fn take_async<E>(
        count: usize,
        mut ours: impl AsyncFnMut() -> Result<(), E>,
        mut peer: impl AsyncFnMut() -> Result<(), E>,
    ) -> Result<Pairs, E> {
        let mut pairs = Pairs::default();
        for number in 0..count {
            if number % 2 == 0 {
                pairs.ours.push(timed_async(&mut ours).await?);
                pairs.peer.push(timed_async(&mut peer).await?);
            } else {
                pairs.peer.push(timed_async(&mut peer).await?);
                pairs.ours.push(timed_async(&mut ours).await?);
            }
        }
        Ok(pairs)
    }

    /// Ours and the peer's median.
    pub fn medians(&self) -> (f64, f64) {
        (quantile(&mut self.ours.clone(), 0.5), quantile(&mut self.peer.clone(), 0.5))
    }

    /// Where the ratio of the medians lies, 95 times of 100: a percentile bootstrap over pairs.
    pub fn interval(&self) -> (f64, f64) {
        let mut random = Random(0x5eed);
        let count = self.ours.len();
        let (mut ours, mut peer) = (vec![0; count], vec![0; count]);
        let mut ratios: Vec<f64> = (0..RESAMPLES)
            .map(|_| {
                for at in 0..count {
                    let pick = random.below(count);
                    (ours[at], peer[at]) = (self.ours[pick], self.peer[pick]);
                }
                quantile(&mut ours, 0.5) / quantile(&mut peer, 0.5)
            })
            .collect();
        ratios.sort_by(f64::total_cmp);
        (ratios[RESAMPLES / 40], ratios[RESAMPLES - 1 - RESAMPLES / 40])
    }
}

fn timed<E>(work: &mut impl FnMut() -> Result<(), E>) -> Result<u64, E> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed().as_nanos() as u64)
}

async fn timed_async<E>(work: &mut impl AsyncFnMut() -> Result<(), E>) -> Result<u64, E> {
    let started = Instant::now();
    work().await?;
    Ok(started.elapsed().as_nanos() as u64)
}

/// The `share` quantile. Reorders the samples.
///
/// # Panics
/// There is no sample.
pub fn quantile(samples: &mut [u64], share: f64) -> f64 {
    assert!(!samples.is_empty(), "a quantile needs samples");
    let at = ((samples.len() - 1) as f64 * share).round() as usize;
    *samples.select_nth_unstable(at).1 as f64
}

/// A generator whose runs repeat: SplitMix64.
#[derive(Clone, Copy, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        ((u128::from(self.number()) * limit as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_holds_the_true_ratio_and_tells_a_real_difference_from_noise() {
        let mut random = Random(1);
        let mut noisy = |base: u64| base + random.below(200) as u64;
        let equal = Pairs {
            ours: (0..2000).map(|_| noisy(1000)).collect(),
            peer: (0..2000).map(|_| noisy(1000)).collect(),
        };
        let (low, high) = equal.interval();
        assert!(low <= 1.0 && 1.0 <= high && high - low < 0.05, "{low} {high}");
        let slower = Pairs { ours: equal.ours.iter().map(|t| t + 200).collect(), ..equal };
        let (low, high) = slower.interval();
        assert!(1.15 < low && high < 1.22, "{low} {high}");
    }

    #[test]
    fn pairs_are_taken_in_turn() {
        let order = std::cell::RefCell::new(String::new());
        let note = |who: &str| -> Result<(), ()> {
            order.borrow_mut().push_str(who);
            Ok(())
        };
        let pairs = Pairs::take(3, || note("a"), || note("b")).unwrap();
        assert_eq!(*order.borrow(), "abbaab");
        assert_eq!((pairs.ours.len(), pairs.peer.len()), (3, 3));
    }

    #[test]
    fn quantiles_are_samples() {
        assert_eq!(quantile(&mut [5, 1, 3], 0.5), 3.0);
        assert_eq!(quantile(&mut (1..=101).collect::<Vec<_>>(), 0.99), 100.0);
    }
}
