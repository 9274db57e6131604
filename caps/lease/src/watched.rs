//! The slots of all that one home has lent, in the table's order, to be looked at until they are dead.

use std::collections::BTreeMap;
use std::ops::Bound;

use distos_abi::SlotRef;

use crate::home::Lessee;

/// What is looked at: no more than so many slots, whoever they are lent to.
#[derive(Default)]
pub(crate) struct Watched {
    slots: BTreeMap<SlotRef, Known>,
    /// Those that others hang from, and how many: they are few, and much ends with them.
    inner: BTreeMap<SlotRef, u32>,
}

/// How many lessees know a slot, and which, if it was never more than one: a session's slot is known to its own
/// connection only.
#[derive(Clone, Copy)]
struct Known {
    count: u32,
    only: Option<Lessee>,
}

/// A slot that is dead, and who knows it if that is one.
pub(crate) type Dead = (SlotRef, Option<Lessee>);

/// How far a look has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor(Option<SlotRef>);

impl Watched {
    pub(crate) fn add(&mut self, lessee: Lessee, slot: SlotRef, parent: Option<SlotRef>) {
        let known = self.slots.entry(slot).or_insert(Known { count: 0, only: Some(lessee) });
        known.count += 1;
        known.only = known.only.filter(|only| *only == lessee);
        if let Some(parent) = parent {
            *self.inner.entry(parent).or_default() += 1;
        }
    }

    /// One that was dead is not there any more.
    pub(crate) fn remove(&mut self, slot: SlotRef, parent: Option<SlotRef>) {
        if let Some(known) = self.slots.get_mut(&slot) {
            known.count -= 1;
            if known.count == 0 {
                self.slots.remove(&slot);
            }
        }
        if let Some((parent, count)) = parent.and_then(|p| Some((p, self.inner.get_mut(&p)?))) {
            *count -= 1;
            if *count == 0 {
                self.inner.remove(&parent);
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Takes out those that others hang from and that are dead.
    pub(crate) fn take_inner(&mut self, alive: impl Fn(SlotRef) -> bool) -> Vec<Dead> {
        let dead = self.inner.keys().copied().filter(|slot| !alive(*slot)).collect();
        self.take(dead)
    }

    /// Takes out the dead among the next `most`; `None` if the cursor is at the end, where it begins anew.
    pub(crate) fn take_next(
        &mut self,
        cursor: &mut Cursor,
        most: usize,
        alive: impl Fn(SlotRef) -> bool,
    ) -> Option<Vec<Dead>> {
        let from = cursor.0.map_or(Bound::Unbounded, Bound::Excluded);
        let (mut dead, mut last) = (Vec::new(), None);
        for slot in self.slots.range((from, Bound::Unbounded)).map(|(slot, _)| *slot).take(most) {
            last = Some(slot);
            if !alive(slot) {
                dead.push(slot);
            }
        }
        *cursor = Cursor(last);
        last.map(|_| self.take(dead))
    }

    /// No slot lives again with the same generation.
    fn take(&mut self, dead: Vec<SlotRef>) -> Vec<Dead> {
        let taken = dead.into_iter().map(|slot| {
            self.inner.remove(&slot);
            (slot, self.slots.remove(&slot).and_then(|known| known.only))
        });
        taken.collect()
    }
}
