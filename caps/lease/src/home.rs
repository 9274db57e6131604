//! The home's half: what is lent to whom, until when it may be used there, and what has to be told.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use distos_abi::{SlotRef, TenantId};

use crate::Terms;
use crate::lines::Lines;

/// Links that one home keeps for all that it lent; each is a hundred bytes or so.
const MOST: usize = 262_144;
/// Leases on one tenant's capabilities.
const MOST_OF_ONE: u32 = 131_072;

/// Somebody who holds leases, over one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lessee(pub u64);

/// Why nothing was lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// This lessee has not come, or has gone.
    Unknown,
    /// One of the line has ended.
    Ended,
    /// Too much is lent already, altogether or of one tenant's.
    Full,
}

/// What is lent to one.
#[derive(Default)]
struct Lent {
    lines: Lines<SlotRef>,
    /// The numbers by which the lessee knows slots: where they are in the table says nothing to it.
    numbers: HashMap<SlotRef, u64>,
    /// Whose each leased capability is, and how often it is leased.
    leases: HashMap<u64, (TenantId, u32)>,
    last_number: u64,
    /// When all that was lent so far is over, if the lessee hears nothing.
    owed_ms: u64,
    /// What has ended, and the lessee has not said that it knows.
    unheard: BTreeSet<u64>,
    /// The connection is over.
    gone: bool,
}

/// The home of some objects, in one run of its vat. Times are in milliseconds, of a clock that goes on while the
/// machine sleeps.
pub struct Home {
    terms: Terms,
    lent: BTreeMap<Lessee, Lent>,
    leases: BTreeMap<TenantId, u32>,
    /// What an earlier run lent is over then.
    earlier_ms: u64,
}

impl Home {
    /// The first home of some objects: nothing was ever lent.
    pub fn new(terms: Terms) -> Home {
        Home { terms, lent: BTreeMap::new(), leases: BTreeMap::new(), earlier_ms: 0 }
    }

    /// A home whose vat starts again at `now_ms`. What was lent before is not known any more, and may be out for as
    /// long as any lease.
    pub fn again(terms: Terms, now_ms: u64) -> Home {
        Home { earlier_ms: now_ms.saturating_add(terms.bound_ms()), ..Home::new(terms) }
    }

    /// How long leases last.
    pub fn terms(&self) -> Terms {
        self.terms
    }

    /// Somebody wants to be lent to. A number is used for one connection, and never again.
    pub fn arrive(&mut self, lessee: Lessee) {
        self.lent.entry(lessee).or_default();
    }

    /// Its connection is over: it is told nothing any more, and what it was lent is over in time.
    pub fn leave(&mut self, lessee: Lessee, now_ms: u64) {
        if let Some(lent) = self.lent.get_mut(&lessee) {
            lent.gone = true;
        }
        self.forget(now_ms);
    }

    /// Lends a capability of this tenant's, by its line of slots, the root's first, which the caller has just seen
    /// alive. The numbers are what the lessee is told, in the same order. The lease runs from when it was asked for.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn lend(
        &mut self,
        lessee: Lessee,
        tenant: TenantId,
        line: &[SlotRef],
        now_ms: u64,
    ) -> Result<Vec<u64>, Refused> {
        self.forget(now_ms);
        let links: usize = self.lent.values().map(|lent| lent.lines.len()).sum();
        let lent = self.lent.get_mut(&lessee).filter(|lent| !lent.gone).ok_or(Refused::Unknown)?;
        let leases = self.leases.entry(tenant).or_default();
        if links.saturating_add(line.len()) > MOST || *leases >= MOST_OF_ONE {
            return Err(Refused::Full);
        }
        let mut last_number = lent.last_number;
        let numbered: Vec<(u64, SlotRef)> = line
            .iter()
            .map(|slot| {
                let known = lent.numbers.get(slot).copied();
                let new = || {
                    last_number += 1;
                    last_number
                };
                (known.unwrap_or_else(new), *slot)
            })
            .collect();
        // The table has each slot below one other, for as long as the slot is what it is.
        lent.lines.add(numbered.clone()).map_err(|_| Refused::Ended)?;
        lent.last_number = last_number;
        let leaf = numbered.last().map_or(0, |(number, _)| *number);
        lent.numbers.extend(numbered.iter().map(|(number, slot)| (*slot, *number)));
        lent.leases.entry(leaf).or_insert((tenant, 0)).1 += 1;
        *leases += 1;
        if !lent.lines.holds(leaf) {
            self.take_back(lessee, &[leaf]);
            return Err(Refused::Ended);
        }
        lent.owed_ms = lent.owed_ms.max(now_ms.saturating_add(self.terms.bound_ms()));
        Ok(numbered.into_iter().map(|(number, _)| number).collect())
    }

    /// The lessee gives leases back, each as often as it stands here, and asks for another term of the others.
    /// `alive` is whether a slot itself stands in the table, at this moment. What the lessee is told is which have
    /// ended, of which it has not said that it knows; all others have another term from when it asked.
    ///
    /// # Errors
    /// [`Refused::Unknown`].
    pub fn renew(
        &mut self,
        lessee: Lessee,
        released: &[u64],
        alive: impl Fn(SlotRef) -> bool,
        now_ms: u64,
    ) -> Result<Vec<u64>, Refused> {
        self.take_back(lessee, released);
        let lent = self.lent.get_mut(&lessee).filter(|lent| !lent.gone).ok_or(Refused::Unknown)?;
        lent.look(alive);
        if !lent.lines.is_empty() {
            lent.owed_ms = lent.owed_ms.max(now_ms.saturating_add(self.terms.bound_ms()));
        }
        Ok(lent.unheard.iter().copied().collect())
    }

    fn take_back(&mut self, lessee: Lessee, released: &[u64]) {
        let Some(lent) = self.lent.get_mut(&lessee) else { return };
        for leaf in released {
            let Some((tenant, count)) = lent.leases.get_mut(leaf) else { continue };
            *count -= 1;
            if let Some(leases) = self.leases.get_mut(tenant) {
                *leases = leases.saturating_sub(1);
            }
            if *count == 0 {
                lent.leases.remove(leaf);
            }
            for (number, slot) in lent.lines.remove(*leaf) {
                lent.numbers.remove(&slot);
                lent.unheard.remove(&number);
            }
        }
        self.leases.retain(|_, leases| *leases > 0);
    }

    /// A slot was revoked. Who was lent something below it, and may not have said yet that it knows.
    pub fn ended(&mut self, slot: SlotRef) -> Vec<Lessee> {
        let below = self.lent.iter_mut().filter_map(|(lessee, lent)| {
            let number = lent.numbers.get(&slot).copied()?;
            lent.mark(&[number]);
            Some(*lessee)
        });
        below.collect()
    }

    /// Looks at everything that is lent for what has ended otherwise. Who has not said yet that it knows.
    pub fn look(&mut self, alive: impl Fn(SlotRef) -> bool) -> Vec<Lessee> {
        for lent in self.lent.values_mut() {
            lent.look(&alive);
        }
        let untold = self.lent.iter().filter(|(_, lent)| !lent.unheard.is_empty());
        untold.map(|(lessee, _)| *lessee).collect()
    }

    /// What to tell a lessee: at most `most` of what has ended, and of which it has not said that it knows.
    pub fn unheard(&self, lessee: Lessee, most: usize) -> Vec<u64> {
        let lent = self.lent.get(&lessee).filter(|lent| !lent.gone);
        lent.map_or_else(Vec::new, |lent| lent.unheard.iter().take(most).copied().collect())
    }

    /// The lessee says that it uses nothing of these, or of what is below them, any more.
    pub fn heard(&mut self, lessee: Lessee, numbers: &[u64]) {
        let Some(lent) = self.lent.get_mut(&lessee) else { return };
        for number in numbers {
            lent.unheard.remove(number);
        }
        // What it has ended with them is not lent any more, whether or not it is given back.
        let over: Vec<(u64, u32)> = lent
            .leases
            .iter()
            .filter(|(leaf, _)| lent.unheard.is_empty() && !lent.lines.holds(**leaf))
            .map(|(leaf, (_, count))| (*leaf, *count))
            .collect();
        for (leaf, count) in over {
            for _ in 0..count {
                self.take_back(lessee, &[leaf]);
            }
        }
    }

    /// When nothing that has ended is used any more by one of these, or by whom an earlier run lent to; `None` if
    /// that is so now.
    pub fn over_ms(&self, of: &[Lessee], now_ms: u64) -> Option<u64> {
        let lent = of.iter().filter_map(|lessee| self.lent.get(lessee));
        let owed = lent.filter(|lent| !lent.unheard.is_empty()).map(|lent| lent.owed_ms);
        owed.chain([self.earlier_ms]).max().filter(|over_ms| *over_ms > now_ms)
    }

    /// Whether anything is lent that has to be looked at.
    pub fn is_idle(&self) -> bool {
        self.lent.values().all(|lent| lent.lines.is_empty())
    }

    /// Forgets those whose leases are over and who have gone.
    pub fn forget(&mut self, now_ms: u64) {
        let over = |lent: &Lent| lent.gone && (lent.lines.is_empty() || lent.owed_ms <= now_ms);
        let gone: Vec<Lent> =
            self.lent.extract_if(.., |_, lent| over(lent)).map(|(_, lent)| lent).collect();
        for (tenant, count) in gone.iter().flat_map(|lent| lent.leases.values()) {
            if let Some(leases) = self.leases.get_mut(tenant) {
                *leases = leases.saturating_sub(*count);
            }
        }
        self.leases.retain(|_, leases| *leases > 0);
    }
}

impl Lent {
    /// Marks what has ended.
    fn look(&mut self, alive: impl Fn(SlotRef) -> bool) {
        let dead: Vec<u64> = self
            .lines
            .unmarked()
            .filter(|(_, slot)| !alive(**slot))
            .map(|(number, _)| number)
            .collect();
        self.mark(&dead);
    }

    /// One number tells what all below it are told by: when a slot that many hang from is revoked and the kernel
    /// clears those meanwhile, they are not told one by one.
    fn mark(&mut self, dead: &[u64]) {
        let new: Vec<u64> = dead.iter().copied().filter(|number| self.lines.end(*number)).collect();
        let highest = new.into_iter().filter(|number| !self.lines.is_below_an_end(*number));
        self.unheard.extend(highest);
    }
}
