//! The holder's half: what it was lent, and until when it may use it.

use std::collections::BTreeMap;

use crate::home::{Loan, News};
use crate::lines::Lines;

/// Questions that may be open at one time.
const MOST_ASKS: usize = 4096;
/// The longest term that is believed.
const LONGEST_MS: u64 = 60_000;

/// A question to the home. A number is used once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ask(pub u64);

/// A lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    number: u64,
    /// It is good until then, also if the home is not heard again.
    first_ms: u64,
    /// The capability itself expires then.
    ends_ms: u64,
}

impl Leaf {
    /// The number that the capability has for this holder.
    pub fn number(self) -> u64 {
        self.number
    }
}

/// Why something may not be used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The home says that it was revoked.
    Revoked,
    /// Its time is over.
    Expired,
    /// The home was not heard for a term.
    Unheard,
}

/// Why an answer is no lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotLent {
    /// It is late: to be asked again, if it is still wanted.
    Late,
    /// It says what the home cannot know.
    Malformed,
}

/// Somebody who is lent to by one home, over one connection. Times are in milliseconds, of a clock that goes on
/// while the machine sleeps.
#[derive(Default)]
pub struct Holder {
    lines: Lines<()>,
    /// When all is over, if nothing is heard.
    until_ms: u64,
    /// What was asked and not answered, and when.
    renewals: BTreeMap<Ask, u64>,
    loans: BTreeMap<Ask, u64>,
    /// How much has ended, as the home counts: a loan that was given before is not believed.
    as_of: u64,
    last_ask: u64,
    last_term_ms: u64,
    released: Vec<u64>,
}

impl Holder {
    /// Asks for a lease at `now_ms`; `None` if too much is asked already.
    pub fn ask(&mut self, now_ms: u64) -> Option<Ask> {
        Self::open(&mut self.loans, &mut self.last_ask, now_ms)
    }

    /// Asks for another term of all leases.
    pub fn ask_again(&mut self, now_ms: u64) -> Option<Ask> {
        Self::open(&mut self.renewals, &mut self.last_ask, now_ms)
    }

    fn open(asks: &mut BTreeMap<Ask, u64>, last: &mut u64, now_ms: u64) -> Option<Ask> {
        if asks.len() >= MOST_ASKS {
            return None;
        }
        *last += 1;
        asks.insert(Ask(*last), now_ms);
        Some(Ask(*last))
    }

    /// Waits for no answer to this any more.
    pub fn give_up(&mut self, ask: Ask) {
        self.loans.remove(&ask);
        self.renewals.remove(&ask);
    }

    /// The home has lent for `term_ms`, of what itself lasts for `lasts_ms` more.
    ///
    /// # Errors
    /// See [`NotLent`].
    pub fn lent(
        &mut self,
        ask: Ask,
        loan: &Loan,
        term_ms: u64,
        lasts_ms: u64,
    ) -> Result<Leaf, NotLent> {
        let asked_ms = self.loans.remove(&ask).ok_or(NotLent::Late)?;
        // It may be of what is below something of whose end was heard since.
        if loan.as_of < self.as_of {
            return Err(NotLent::Late);
        }
        let line = &loan.line;
        let numbers = line.iter().map(|number| (*number, ())).collect();
        self.lines.add(numbers).map_err(|_| NotLent::Malformed)?;
        self.last_term_ms = term_ms.min(LONGEST_MS);
        Ok(Leaf {
            // Not empty, or it would not have been added.
            number: line.last().copied().unwrap_or_default(),
            first_ms: asked_ms.saturating_add(self.last_term_ms),
            ends_ms: asked_ms.saturating_add(lasts_ms),
        })
    }

    /// The home has given another term to all but what has ended. An answer that comes late lengthens nothing:
    /// a term is counted from when it was asked for, and an answer counts once.
    pub fn renewed(&mut self, ask: Ask, news: &News, term_ms: u64) {
        self.hear(news);
        if let Some(asked_ms) = self.renewals.remove(&ask) {
            self.last_term_ms = term_ms.min(LONGEST_MS);
            self.until_ms = self.until_ms.max(asked_ms.saturating_add(self.last_term_ms));
        }
    }

    /// The home says that these have ended, and all below them. They are not used from then on: what is marked
    /// stays so, whatever is renewed, and loans that were given before are not believed.
    pub fn hear(&mut self, news: &News) {
        for number in &news.ended {
            self.lines.end(*number);
        }
        if !news.ended.is_empty() {
            self.as_of = self.as_of.max(news.as_of);
        }
    }

    /// For how many milliseconds a lease lasts, if nothing is heard.
    ///
    /// # Errors
    /// See [`Lost`].
    pub fn lasts(&self, leaf: Leaf, now_ms: u64) -> Result<u64, Lost> {
        if !self.lines.holds(leaf.number) {
            return Err(Lost::Revoked);
        }
        if now_ms >= leaf.ends_ms {
            return Err(Lost::Expired);
        }
        let until_ms = self.until_ms.max(leaf.first_ms);
        match until_ms.min(leaf.ends_ms).saturating_sub(now_ms) {
            0 => Err(Lost::Unheard),
            left_ms => Ok(left_ms),
        }
    }

    /// Gives a lease back. It must not be used afterwards.
    pub fn release(&mut self, leaf: Leaf) {
        self.lines.remove(leaf.number);
        self.released.push(leaf.number);
    }

    /// The home has lent what is not held here: it is told so.
    pub fn release_unheld(&mut self, line: &[u64]) {
        self.released.extend(line.last());
    }

    /// At most `most` of what was given back and not said to the home yet.
    pub fn take_released(&mut self, most: usize) -> Vec<u64> {
        let from = self.released.len().saturating_sub(most);
        self.released.split_off(from)
    }

    /// Whether there is nothing to ask the home for.
    pub fn is_idle(&self) -> bool {
        self.lines.is_empty() && self.released.is_empty()
    }

    /// How long to wait after a renewal before the next: two may be lost.
    pub fn rest_ms(&self) -> u64 {
        self.last_term_ms / 3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loan(line: &[u64], as_of: u64) -> Loan {
        Loan { line: line.to_vec(), as_of }
    }

    fn news(ended: &[u64], as_of: u64) -> News {
        News { ended: ended.to_vec(), as_of }
    }

    /// Whoever holds a lease without a word of its home stops in time, whatever arrives how late.
    #[test]
    fn a_lease_runs_from_when_it_was_asked_for() {
        let mut holder = Holder::default();
        let ask = holder.ask(1000).unwrap();
        let leaf = holder.lent(ask, &loan(&[1, 2], 0), 5000, u64::MAX).unwrap();
        assert_eq!(holder.lasts(leaf, 5999), Ok(1));
        assert_eq!(holder.lasts(leaf, 6000), Err(Lost::Unheard));
        assert_eq!(
            holder.lent(ask, &loan(&[1, 2], 0), 5000, 9),
            Err(NotLent::Late),
            "it counts once"
        );
        // Asked at 3000, answered much later; the answer to a later question came before.
        let (first, second) = (holder.ask_again(2000).unwrap(), holder.ask_again(3000).unwrap());
        holder.renewed(second, &News::default(), 5000);
        holder.renewed(first, &News::default(), 5000);
        holder.renewed(second, &News::default(), u64::MAX);
        assert_eq!(
            (holder.lasts(leaf, 7999), holder.lasts(leaf, 8000)),
            (Ok(1), Err(Lost::Unheard))
        );
    }

    #[test]
    fn a_lease_ends_with_its_capability_and_says_how() {
        let mut holder = Holder::default();
        let ask = holder.ask(1000).unwrap();
        let leaf = holder.lent(ask, &loan(&[1, 2], 0), 5000, 300).unwrap();
        assert_eq!(
            (holder.lasts(leaf, 1299), holder.lasts(leaf, 1300)),
            (Ok(1), Err(Lost::Expired))
        );
        holder.hear(&news(&[1], 1));
        assert_eq!(holder.lasts(leaf, 1000), Err(Lost::Revoked));
        let renewal = holder.ask_again(1000).unwrap();
        holder.renewed(renewal, &News::default(), 5000);
        assert_eq!(holder.lasts(leaf, 1000), Err(Lost::Revoked), "no renewal reaches it");
        holder.release(leaf);
        assert_eq!((holder.take_released(9), holder.is_idle()), (vec![2], true));
    }

    /// Otherwise a loan that a revocation has overtaken lives on.
    #[test]
    fn a_loan_that_was_given_before_something_ended_is_not_believed_afterwards() {
        let mut holder = Holder::default();
        let asks = [holder.ask(0).unwrap(), holder.ask(0).unwrap(), holder.ask(0).unwrap()];
        holder.hear(&news(&[2], 1));
        assert_eq!(holder.lent(asks[0], &loan(&[1, 2, 3], 0), 5000, 9), Err(NotLent::Late));
        assert!(
            holder.lent(asks[1], &loan(&[1, 4], 1), 5000, 9).is_ok(),
            "this one was given after it"
        );
        let renewal = holder.ask_again(0).unwrap();
        holder.renewed(renewal, &news(&[5], 2), 5000);
        assert_eq!(holder.lent(asks[2], &loan(&[1, 5, 6], 1), 5000, 9), Err(NotLent::Late));
    }
}
