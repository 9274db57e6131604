//! Who may change which pages now: one writer at a time for each page, in the order in which they came.
//!
//! Writes that a client has not waited for take effect in the order in which it made them, where they meet. So a writer
//! that comes waits not only for those who have its pages, but for those who wait for one of them, too: a page that is
//! free for a moment is not the next comer's.

use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};

use distos_abi::ObjectId;
use tokio::sync::oneshot;

/// A page of a region.
type PageName = (ObjectId, u32);

/// The books of all pages.
#[derive(Default)]
pub(crate) struct Locks(RefCell<Books>);

#[derive(Default)]
struct Books {
    held: HashSet<PageName>,
    /// In the order in which they came.
    waiting: VecDeque<Waiter>,
}

struct Waiter {
    pages: Vec<PageName>,
    turn: oneshot::Sender<()>,
}

impl Books {
    fn is_free(&self, pages: &[PageName]) -> bool {
        pages.iter().all(|page| !self.held.contains(page))
    }

    fn give_back(&mut self, pages: &[PageName]) {
        for page in pages {
            self.held.remove(page);
        }
    }

    /// Gives pages to those whose turn it is.
    fn advance(&mut self) {
        // Of those who go on to wait.
        let mut wanted = HashSet::new();
        for waiter in std::mem::take(&mut self.waiting) {
            if waiter.turn.is_closed() {
                continue;
            }
            let is_first = waiter.pages.iter().all(|page| !wanted.contains(page));
            if is_first && self.is_free(&waiter.pages) {
                self.held.extend(&waiter.pages);
                if waiter.turn.send(()).is_err() {
                    self.give_back(&waiter.pages);
                }
            } else {
                wanted.extend(waiter.pages.iter().copied());
                self.waiting.push_back(waiter);
            }
        }
    }
}

impl Locks {
    /// Waits until nobody else writes any of these pages, nor has waited for one of them for longer, and keeps others from
    /// them. There are as many waiters as calls at one time.
    pub(crate) async fn lock(&self, pages: Vec<PageName>) -> PageLock<'_> {
        let (turn, its_turn) = oneshot::channel();
        {
            let mut books = self.0.borrow_mut();
            books.waiting.push_back(Waiter { pages: pages.clone(), turn });
            books.advance();
        }
        let mut lock = PageLock { locks: self, pages, its_turn, has: false };
        // Never an error: the books keep the other end until its turn comes.
        lock.has = (&mut lock.its_turn).await.is_ok();
        lock
    }
}

/// These pages are its holder's until it is dropped.
pub(crate) struct PageLock<'a> {
    locks: &'a Locks,
    pages: Vec<PageName>,
    its_turn: oneshot::Receiver<()>,
    has: bool,
}

impl Drop for PageLock<'_> {
    fn drop(&mut self) {
        // Whoever gives up waits no longer, and may have been given them without knowing it.
        self.its_turn.close();
        let mut books = self.locks.0.borrow_mut();
        if self.has || self.its_turn.try_recv().is_ok() {
            books.give_back(&self.pages);
        }
        books.advance();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;
    use proptest::prelude::*;

    fn pages(list: &[u32]) -> Vec<PageName> {
        list.iter().map(|page| (ObjectId(1), *page)).collect()
    }

    /// Else writes that a client sent one after the other stand in another order in its region.
    #[test]
    fn whoever_comes_when_a_page_becomes_free_is_behind_those_who_wait_for_it() {
        let locks = Locks::default();
        let first = locks.lock(pages(&[1, 2])).now_or_never().unwrap();
        let mut second = Box::pin(locks.lock(pages(&[2, 3])));
        assert!(second.as_mut().now_or_never().is_none());
        // Its own page is free, and one that it shares with the second is wanted.
        let mut third = Box::pin(locks.lock(pages(&[3])));
        assert!(third.as_mut().now_or_never().is_none());
        let other = locks.lock(pages(&[4])).now_or_never().expect("nobody wants that");
        drop(first);
        let mut late = Box::pin(locks.lock(pages(&[2])));
        assert!(late.as_mut().now_or_never().is_none(), "the second is before it");
        let second = second.now_or_never().expect("its turn");
        assert!(third.as_mut().now_or_never().is_none());
        drop(second);
        assert!(third.now_or_never().is_some() && late.now_or_never().is_some());
        drop(other);
        assert!(locks.0.borrow().held.is_empty());
    }

    #[test]
    fn whoever_gives_up_keeps_nobody_waiting() {
        let locks = Locks::default();
        let first = locks.lock(pages(&[1])).now_or_never().unwrap();
        let mut waits = Box::pin(locks.lock(pages(&[1])));
        let mut given = Box::pin(locks.lock(pages(&[1])));
        assert!(waits.as_mut().now_or_never().is_none() && given.as_mut().now_or_never().is_none());
        drop(waits);
        drop(first);
        // It has the page and was not told yet.
        drop(given);
        assert!(locks.lock(pages(&[1])).now_or_never().is_some());
        assert!(locks.0.borrow().held.is_empty() && locks.0.borrow().waiting.is_empty());
    }

    proptest! {
        #[test]
        fn no_page_has_two_writers_and_those_that_meet_write_in_their_order(
            wants in prop::collection::vec(prop::collection::btree_set(0u32..6, 1..4), 1..12),
            ends in prop::collection::vec(any::<prop::sample::Index>(), 12),
        ) {
            let locks = Locks::default();
            let lists: Vec<Vec<u32>> =
                wants.iter().map(|set| set.iter().copied().collect()).collect();
            let mut waiting: Vec<_> = lists
                .iter()
                .enumerate()
                .map(|(number, list)| (number, Box::pin(locks.lock(pages(list)))))
                .collect();
            let (mut running, mut begun) = (Vec::new(), Vec::new());
            for end in ends {
                waiting = waiting
                    .into_iter()
                    .filter_map(|(number, mut lock)| match lock.as_mut().now_or_never() {
                        Some(lock) => {
                            running.push((number, lock));
                            begun.push(number);
                            None
                        }
                        None => Some((number, lock)),
                    })
                    .collect();
                if running.is_empty() {
                    break;
                }
                let mut all: Vec<u32> =
                    running.iter().flat_map(|(number, _)| lists[*number].clone()).collect();
                let count = all.len();
                all.sort_unstable();
                all.dedup();
                prop_assert_eq!(all.len(), count, "a page with two writers");
                let over = end.index(running.len());
                drop(running.remove(over));
            }
            prop_assert_eq!(begun.len(), lists.len(), "somebody waits for nobody");
            for (place, later) in begun.iter().enumerate() {
                for earlier in &begun[place..] {
                    let meet = wants[*earlier].intersection(&wants[*later]).next().is_some();
                    prop_assert!(earlier >= later || !meet, "{} before {}", later, earlier);
                }
            }
        }
    }
}
