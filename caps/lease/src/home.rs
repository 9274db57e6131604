//! The home's half: what is lent to whom, until when it may be used there, and what has to be told.

use std::collections::{BTreeMap, HashMap, HashSet};

use distos_abi::{SlotRef, TenantId};

use crate::Terms;
use crate::lines::Lines;
use crate::watched::{Cursor, Dead, Watched};

/// Links that one home keeps for all that it lent; each is two hundred bytes or so.
const MOST: usize = 262_144;
/// Those for one tenant's capabilities: no tenant keeps others from lending.
const MOST_OF_ONE: usize = MOST / 2;

/// How often one lessee may lease one capability: more than any has use for.
const MOST_ALIKE: u32 = 4096;

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

/// What a lessee is told of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loan {
    /// The line, the root first, by the numbers that its links have for this lessee.
    pub line: Vec<u64>,
    /// How much had ended for this lessee when it was given.
    pub as_of: u64,
}

/// What a lessee is told of leases that have ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Which links have ended.
    pub ended: Vec<u64>,
    /// How much has ended for this lessee: a loan that is older may be of what is below these.
    pub as_of: u64,
}

/// What has to be heard before something is over: which link, by whom.
pub type Unheard = (Lessee, u64);

/// A link in the table.
#[derive(Clone, Copy)]
struct Place {
    slot: SlotRef,
    parent: Option<SlotRef>,
    /// Of whose capability it became known.
    tenant: TenantId,
}

/// That something has ended, of which a lessee has not said that it knows.
#[derive(Clone, Copy)]
struct Mark {
    /// The how-manieth of the home.
    nth: u64,
    /// What was lent below it is over then. No renewal since reaches it.
    over_ms: u64,
}

/// What is lent to one.
#[derive(Default)]
struct Lent {
    lines: Lines<Place>,
    /// The numbers by which the lessee knows slots: where they are in the table says nothing to it.
    numbers: HashMap<SlotRef, u64>,
    /// How often each link is leased.
    leases: HashMap<u64, u32>,
    last_number: u64,
    /// When all that was lent so far is over, if the lessee hears nothing.
    owed_ms: u64,
    unheard: BTreeMap<u64, Mark>,
    /// What has ended, as it knows.
    heard: HashSet<u64>,
    /// How much has ended for it.
    ends: u64,
    /// How much was marked since it was looked at what is leased below that.
    stale: usize,
    /// The connection is over.
    gone: bool,
}

/// The home of some objects, in one run of its vat. Times are in milliseconds, of a clock that goes on while the
/// machine sleeps.
pub struct Home {
    terms: Terms,
    lent: BTreeMap<Lessee, Lent>,
    links: usize,
    links_of: BTreeMap<TenantId, usize>,
    watched: Watched,
    marks: u64,
    /// What an earlier run lent is over then.
    earlier_ms: u64,
}

impl Home {
    /// A home whose vat starts at `now_ms`. What an earlier run of it lent is not known, and may be out for as long
    /// as any lease.
    pub fn started(terms: Terms, now_ms: u64) -> Home {
        Home {
            terms,
            lent: BTreeMap::new(),
            links: 0,
            links_of: BTreeMap::new(),
            watched: Watched::default(),
            marks: 0,
            earlier_ms: now_ms.saturating_add(terms.bound_ms()),
        }
    }

    /// Somebody wants to be lent to. A number is used for one connection, and never again.
    pub fn arrive(&mut self, lessee: Lessee) {
        self.lent.entry(lessee).or_default();
    }

    /// Whether anything is lent to this one.
    pub fn has(&self, lessee: Lessee) -> bool {
        self.lent.get(&lessee).is_some_and(|lent| !lent.lines.is_empty())
    }

    /// Its connection is over: it is told nothing any more, and what it was lent is over in time.
    pub fn leave(&mut self, lessee: Lessee, now_ms: u64) {
        if let Some(lent) = self.lent.get_mut(&lessee) {
            lent.gone = true;
        }
        self.forget(now_ms);
    }

    /// Lends a capability of this tenant's, by its line of slots, the root's first, which the caller has just seen
    /// alive. The lease runs from when it was asked for.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn lend(
        &mut self,
        lessee: Lessee,
        tenant: TenantId,
        line: &[SlotRef],
        now_ms: u64,
    ) -> Result<Loan, Refused> {
        let lent = self.lent.get_mut(&lessee).filter(|lent| !lent.gone).ok_or(Refused::Unknown)?;
        let of_tenant = self.links_of.get(&tenant).copied().unwrap_or(0);
        if self.links + line.len() > MOST || of_tenant + line.len() > MOST_OF_ONE {
            return Err(Refused::Full);
        }
        let mut last_number = lent.last_number;
        let mut parent = None;
        let mut numbered = Vec::with_capacity(line.len());
        for slot in line {
            let known = lent.numbers.get(slot).copied();
            last_number += u64::from(known.is_none());
            let place = Place { slot: *slot, parent: parent.replace(*slot), tenant };
            numbered.push((known.unwrap_or(last_number), place));
        }
        let leaf = numbered.last().map_or(0, |(number, _)| *number);
        if lent.leases.get(&leaf).is_some_and(|leased| *leased >= MOST_ALIKE) {
            return Err(Refused::Full);
        }
        // The table has each slot below one other, for as long as the slot is what it is.
        lent.lines.add(numbered.clone()).map_err(|_| Refused::Ended)?;
        lent.last_number = last_number;
        for (number, place) in &numbered {
            if lent.numbers.insert(place.slot, *number).is_none() {
                self.watched.add(lessee, place.slot, place.parent);
                self.links += 1;
                *self.links_of.entry(tenant).or_default() += 1;
            }
        }
        *lent.leases.entry(leaf).or_default() += 1;
        if !lent.lines.holds(leaf) {
            self.take_back(lessee, leaf, 1);
            return Err(Refused::Ended);
        }
        lent.owed_ms = lent.owed_ms.max(now_ms.saturating_add(self.terms.bound_ms()));
        let line = numbered.into_iter().map(|(number, _)| number).collect();
        Ok(Loan { line, as_of: lent.ends })
    }

    /// The lessee gives leases back, each as often as it stands here.
    pub fn give_back(&mut self, lessee: Lessee, released: &[u64]) {
        for leaf in released {
            self.take_back(lessee, *leaf, 1);
        }
    }

    /// The lessee asks for another term of all its leases. `alive` is whether a slot itself stands in the table, at
    /// this moment. All but those below what has ended have another term from when it asked.
    ///
    /// # Errors
    /// [`Refused::Unknown`].
    pub fn renew(
        &mut self,
        lessee: Lessee,
        alive: impl Fn(SlotRef) -> bool,
        now_ms: u64,
    ) -> Result<News, Refused> {
        let lent = self.lent.get_mut(&lessee).filter(|lent| !lent.gone).ok_or(Refused::Unknown)?;
        let dead = lent.lines.unmarked().filter(|(_, place)| !alive(place.slot));
        let dead: Vec<u64> = dead.map(|(number, _)| number).collect();
        lent.mark(&dead, &mut self.marks);
        if lent.stale > 0 && lent.unheard.is_empty() {
            self.forget_ended(lessee);
        }
        let lent = self.lent.get_mut(&lessee).ok_or(Refused::Unknown)?;
        if !lent.lines.is_empty() {
            lent.owed_ms = lent.owed_ms.max(now_ms.saturating_add(self.terms.bound_ms()));
        }
        Ok(lent.news(usize::MAX))
    }

    fn take_back(&mut self, lessee: Lessee, leaf: u64, count: u32) {
        let Some(lent) = self.lent.get_mut(&lessee) else { return };
        let Some(leased) = lent.leases.get_mut(&leaf).filter(|leased| **leased >= count) else {
            return;
        };
        *leased -= count;
        if *leased == 0 {
            lent.leases.remove(&leaf);
        }
        for _ in 0..count {
            for (number, place) in lent.lines.remove(leaf) {
                lent.numbers.remove(&place.slot);
                lent.unheard.remove(&number);
                lent.heard.remove(&number);
                self.watched.remove(place.slot, place.parent);
                self.links -= 1;
                one_less(&mut self.links_of, place.tenant);
            }
        }
    }

    /// A slot was revoked. What has to be heard before it is over.
    pub fn ended(&mut self, slot: SlotRef) -> Vec<Unheard> {
        let marks = &mut self.marks;
        let below = self.lent.iter_mut().filter_map(|(lessee, lent)| {
            let number = lent.numbers.get(&slot).copied()?;
            lent.mark(&[number], marks);
            Some((*lessee, lent.unheard_above(number)?))
        });
        below.collect()
    }

    /// How much has ended so far.
    pub fn marks(&self) -> u64 {
        self.marks
    }

    /// What has to be heard of what has ended since there were so many [`marks`](Home::marks).
    pub fn since(&self, marks: u64) -> Vec<Unheard> {
        let all = self.lent.iter().flat_map(|(lessee, lent)| {
            lent.unheard.iter().map(move |(number, mark)| ((*lessee, *number), mark.nth))
        });
        all.filter(|(_, nth)| *nth > marks).map(|(unheard, _)| unheard).collect()
    }

    /// Looks at what others hang from for what has ended.
    pub fn look(&mut self, alive: impl Fn(SlotRef) -> bool) {
        let dead = self.watched.take_inner(alive);
        self.mark(&dead);
    }

    /// Looks at the next `most` of all that is lent; `false` if there is no more, and the next time begins anew.
    pub fn look_on(
        &mut self,
        cursor: &mut Cursor,
        most: usize,
        alive: impl Fn(SlotRef) -> bool,
    ) -> bool {
        let Some(dead) = self.watched.take_next(cursor, most, &alive) else { return false };
        if !dead.is_empty() {
            // They may have been cleared with what they hang from, which is told first and for all.
            self.look(alive);
        }
        self.mark(&dead);
        true
    }

    fn mark(&mut self, dead: &[Dead]) {
        for (slot, lessee) in dead {
            let lent: &mut dyn Iterator<Item = &mut Lent> = match lessee {
                Some(lessee) => &mut self.lent.get_mut(lessee).into_iter(),
                None => &mut self.lent.values_mut(),
            };
            for lent in lent {
                if let Some(number) = lent.numbers.get(slot).copied() {
                    lent.mark(&[number], &mut self.marks);
                }
            }
        }
    }

    /// Everybody who has to be told something.
    pub fn untold(&self) -> Vec<Lessee> {
        let untold = self.lent.iter().filter(|(_, lent)| !lent.gone && !lent.unheard.is_empty());
        untold.map(|(lessee, _)| *lessee).collect()
    }

    /// What to tell a lessee: at most `most` of what has ended, and of which it has not said that it knows.
    pub fn news(&self, lessee: Lessee, most: usize) -> News {
        let lent = self.lent.get(&lessee).filter(|lent| !lent.gone);
        lent.map_or_else(News::default, |lent| lent.news(most))
    }

    /// The lessee says that it takes these, and what is below them, for ended.
    pub fn heard(&mut self, lessee: Lessee, numbers: &[u64]) {
        if let Some(lent) = self.lent.get_mut(&lessee) {
            for number in numbers {
                if lent.unheard.remove(number).is_some() {
                    lent.heard.insert(*number);
                }
            }
            // It may never renew. Not for each: it is looked at all that it has.
            if lent.unheard.is_empty() && 4 * lent.stale > lent.leases.len() {
                self.forget_ended(lessee);
            }
        }
    }

    /// What has ended, as the lessee knows, is not lent any more, whether or not it is given back.
    fn forget_ended(&mut self, lessee: Lessee) {
        let Some(lent) = self.lent.get_mut(&lessee) else { return };
        lent.stale = 0;
        let ended = lent.leases.iter().filter(|(leaf, _)| !lent.lines.holds(**leaf));
        let ended: Vec<(u64, u32)> = ended.map(|(leaf, count)| (*leaf, *count)).collect();
        for (leaf, count) in ended {
            self.take_back(lessee, leaf, count);
        }
    }

    /// Whether this was heard.
    pub fn is_heard(&self, (lessee, number): Unheard) -> bool {
        let lent = self.lent.get(&lessee);
        lent.is_none_or(|lent| !lent.unheard.contains_key(&number))
    }

    /// Which slot it is whose end has to be heard; `None` if nothing is kept of it any more.
    pub fn slot(&self, (lessee, number): Unheard) -> Option<SlotRef> {
        self.lent.get(&lessee)?.lines.of(number).map(|place| place.slot)
    }

    /// When nothing is used any more below any of these, or of what an earlier run lent; `None` if that is so now.
    pub fn over_ms(&self, of: &[Unheard], now_ms: u64) -> Option<u64> {
        let marks = of.iter().filter_map(|(lessee, number)| {
            let lent = self.lent.get(lessee)?;
            lent.unheard.get(number).map(|mark| mark.over_ms)
        });
        marks.chain([self.earlier_ms]).max().filter(|over_ms| *over_ms > now_ms)
    }

    /// Whether nothing is lent, nor kept of what was.
    pub fn is_idle(&self) -> bool {
        self.links == 0
    }

    /// How many slots there are to look at.
    pub fn watched(&self) -> usize {
        self.watched.len()
    }

    /// Forgets those who have gone and whose leases are over.
    pub fn forget(&mut self, now_ms: u64) {
        let over = |lent: &Lent| lent.gone && (lent.lines.is_empty() || lent.owed_ms <= now_ms);
        for (_, lent) in self.lent.extract_if(.., |_, lent| over(lent)) {
            for place in lent.lines.all() {
                self.watched.remove(place.slot, place.parent);
                self.links -= 1;
                one_less(&mut self.links_of, place.tenant);
            }
        }
    }
}

fn one_less(counts: &mut BTreeMap<TenantId, usize>, tenant: TenantId) {
    if let Some(count) = counts.get_mut(&tenant) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&tenant);
        }
    }
}

impl Lent {
    /// Marks what has ended. One number tells what all below it are told by: when a slot that many hang from is
    /// revoked and the kernel clears those meanwhile, they are not told one by one.
    fn mark(&mut self, dead: &[u64], marks: &mut u64) {
        let new: Vec<u64> = dead.iter().copied().filter(|number| self.lines.end(*number)).collect();
        for number in new {
            self.stale += 1;
            // Below what has ended the kernel revokes nothing more: it only makes room.
            if !self.lines.is_below_an_end(number) {
                (*marks, self.ends) = (*marks + 1, self.ends + 1);
                self.unheard.insert(number, Mark { nth: *marks, over_ms: self.owed_ms });
            }
        }
    }

    /// Of what has to be heard so that this link is over; `None` if that was heard.
    fn unheard_above(&self, number: u64) -> Option<u64> {
        let mut found = None;
        for link in self.lines.up(number) {
            if self.heard.contains(&link) {
                return None;
            }
            if self.unheard.contains_key(&link) {
                found = Some(link);
            }
        }
        found
    }

    fn news(&self, most: usize) -> News {
        News { ended: self.unheard.keys().copied().take(most).collect(), as_of: self.ends }
    }
}

#[cfg(test)]
mod tests {
    use distos_abi::Generation;

    use super::*;

    const ONE: Lessee = Lessee(1);
    const RED: TenantId = TenantId(7);

    fn slot(index: u32) -> SlotRef {
        SlotRef { index, generation: Generation(1) }
    }

    fn home() -> Home {
        let mut home = Home::started(Terms { term_ms: 100, skew_ms: 10 }, 0);
        home.arrive(ONE);
        home
    }

    fn lend(home: &mut Home, line: &[u32], now_ms: u64) -> Result<Loan, Refused> {
        let line: Vec<SlotRef> = line.iter().map(|index| slot(*index)).collect();
        home.lend(ONE, RED, &line, now_ms)
    }

    /// What a run before this one lent is out, whatever is known of it.
    #[test]
    fn a_home_that_starts_counts_a_whole_term_of_what_it_may_have_lent() {
        let home = home();
        assert_eq!(home.over_ms(&[], 109), Some(110));
        assert_eq!(home.over_ms(&[], 110), None);
    }

    /// Else a revocation waits for somebody who has nothing any more.
    #[test]
    fn what_was_given_back_is_waited_for_by_nobody_and_leaves_nothing() {
        let mut home = home();
        let first = lend(&mut home, &[1, 2], 200).unwrap();
        assert_eq!(lend(&mut home, &[1, 2], 200), Ok(first.clone()));
        home.give_back(ONE, &[first.line[1], 77, first.line[0]]);
        assert_eq!(home.watched(), 2, "it was lent twice, and its root never");
        home.give_back(ONE, &[first.line[1], first.line[1]]);
        assert_eq!((home.watched(), home.links, home.links_of.len()), (0, 0, 0));
        assert_eq!(home.ended(slot(1)), []);
    }

    /// Else one tenant keeps every other from having anything lent, or the vat's memory is its own.
    #[test]
    fn one_tenant_can_have_half_of_all_links_and_no_more() {
        let mut home = home();
        let mut index = 1;
        while lend(&mut home, &[0, index], 200).is_ok() {
            index += 1;
        }
        assert_eq!(home.links, MOST_OF_ONE - 1);
        assert_eq!(lend(&mut home, &[0, index], 200), Err(Refused::Full));
        // Nor does it count for ever what is the same.
        let own = [slot(0)];
        let alike = (0..=MOST_ALIKE).map(|_| home.lend(ONE, TenantId(9), &own, 200));
        assert_eq!(alike.filter(Result::is_ok).count(), MOST_ALIKE as usize);
        let other = [slot(index + 1)];
        assert!(home.lend(ONE, TenantId(8), &other, 200).is_ok());
    }

    /// Whoever keeps a lease of its own by renewals must not put off what others are told of their revocations.
    #[test]
    fn what_has_ended_is_over_in_its_time_however_often_the_rest_is_renewed() {
        let mut home = home();
        lend(&mut home, &[1, 2], 200).unwrap();
        lend(&mut home, &[1, 3], 200).unwrap();
        let marks = home.marks();
        let unheard = home.ended(slot(2));
        assert_eq!(home.since(marks), unheard);
        assert_eq!(home.over_ms(&unheard, 250), Some(310));
        let alive = |slot: SlotRef| slot.index != 2;
        assert_eq!(home.renew(ONE, alive, 290).unwrap().ended.len(), 1);
        assert_eq!(home.over_ms(&unheard, 309), Some(310));
        assert_eq!(home.over_ms(&unheard, 310), None);
        // It is named until the lessee says that it knows: a renewal must not reach it.
        assert_eq!(home.renew(ONE, alive, 400).unwrap().ended, [unheard[0].1]);
        home.heard(ONE, &[unheard[0].1]);
        assert!(home.is_heard(unheard[0]));
        assert_eq!(home.renew(ONE, alive, 410).unwrap().ended, []);
        assert_eq!(home.watched(), 2, "what was not given back has gone with it");
    }

    #[test]
    fn a_link_below_one_that_was_not_heard_of_is_over_with_that() {
        let mut home = home();
        lend(&mut home, &[1, 2, 3], 200).unwrap();
        lend(&mut home, &[1, 5], 200).unwrap();
        let above = home.ended(slot(2));
        assert_eq!(home.ended(slot(3)), above, "who is told of one has to be told of no other");
        home.heard(ONE, &[above[0].1]);
        assert_eq!(home.ended(slot(3)), []);
        let higher = home.ended(slot(1));
        assert_eq!(higher.len(), 1);
        assert_eq!(home.ended(slot(3)), [], "it knows of one above it");
    }

    #[test]
    fn whatever_has_ended_is_found_by_looking_and_told_by_one_number() {
        let mut home = home();
        for index in 10..30 {
            lend(&mut home, &[1, 2, index], 200).unwrap();
        }
        home.look(|slot| slot.index != 2);
        assert_eq!(home.news(ONE, 100).ended.len(), 1);
        // The kernel clears what is below it, too.
        let (mut cursor, mut looks) = (Cursor::default(), 0);
        while home.look_on(&mut cursor, 6, |slot| slot.index == 1) {
            looks += 1;
        }
        assert_eq!((looks, home.news(ONE, 100).ended.len()), (4, 1));
        // One that nothing hangs from is found by going on only.
        lend(&mut home, &[1, 40], 200).unwrap();
        let alive = |slot: SlotRef| slot.index == 1;
        home.look(alive);
        assert_eq!(home.news(ONE, 100).ended.len(), 1);
        while home.look_on(&mut cursor, 6, alive) {}
        assert_eq!(home.news(ONE, 100).ended.len(), 2);
        assert_eq!(home.news(ONE, 1).ended.len(), 1);
    }

    #[test]
    fn whoever_has_gone_is_counted_until_its_leases_are_over() {
        let mut home = home();
        lend(&mut home, &[1], 200).unwrap();
        home.leave(ONE, 210);
        let unheard = home.ended(slot(1));
        assert_eq!(home.over_ms(&unheard, 250), Some(310));
        assert_eq!((home.untold(), home.news(ONE, 9).ended), (vec![], vec![]));
        assert_eq!(lend(&mut home, &[1], 220), Err(Refused::Unknown));
        // Nothing of it is looked at any more, and it is kept until then.
        home.look_on(&mut Cursor::default(), 9, |_| false);
        assert!(home.watched() == 0 && !home.is_idle());
        home.forget(310);
        assert!(home.is_idle());
        assert_eq!((home.over_ms(&unheard, 310), home.watched(), home.links), (None, 0, 0));
    }
}
