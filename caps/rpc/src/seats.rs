//! A bounded number of places, of which nobody can have all.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// Places, and who has them.
pub struct Seats<K> {
    most: usize,
    most_of_one: usize,
    taken: Mutex<HashMap<K, usize>>,
}

/// One place; given back when it is dropped.
pub struct Seat<K: Hash + Eq> {
    seats: Arc<Seats<K>>,
    who: K,
}

impl<K: Hash + Eq + Clone> Seats<K> {
    /// `most` places, of which one may have `most_of_one`.
    pub fn new(most: usize, most_of_one: usize) -> Arc<Seats<K>> {
        Arc::new(Seats { most, most_of_one, taken: Mutex::default() })
    }

    fn with<T>(&self, look: impl FnOnce(&mut HashMap<K, usize>) -> T) -> T {
        // Nothing in here panics half-way.
        look(&mut self.taken.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A place for `who`; `None` if there are no more for it.
    pub fn take(self: &Arc<Seats<K>>, who: K) -> Option<Seat<K>> {
        let taken = self.with(|taken| {
            let own = taken.get(&who).copied().unwrap_or(0);
            let room = own < self.most_of_one && taken.values().sum::<usize>() < self.most;
            if room {
                taken.insert(who.clone(), own + 1);
            }
            room
        });
        taken.then(|| Seat { seats: self.clone(), who })
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        self.with(|taken| taken.values().sum())
    }
}

impl<K: Hash + Eq> Drop for Seat<K> {
    fn drop(&mut self) {
        let mut taken = self.seats.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = taken.get_mut(&self.who) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_cannot_keep_all_others_out() {
        let seats = Seats::new(256, 192);
        let mut of_one: Vec<_> = std::iter::from_fn(|| seats.take(1000)).collect();
        assert_eq!(of_one.len(), 192);
        let others: Vec<_> = std::iter::from_fn(|| seats.take(0)).collect();
        assert_eq!((others.len(), seats.taken()), (64, 256));
        assert!(seats.take(1001).is_none());
        of_one.pop();
        assert!(seats.take(0).is_some(), "a place that was given back is free");
        drop((of_one, others));
        assert!(seats.taken.lock().unwrap().is_empty());
    }
}
