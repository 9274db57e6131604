//! The text of sealed pages that were read lately, so that reading one again takes neither the disk
//! nor the cipher. It is checked against its hash at each read all the same (M2), and erased when
//! it leaves (M1).

use std::num::NonZeroUsize;

use distos_abi::ObjectId;
use lru::LruCache;

use crate::state::Plain;

/// Pages kept: 16 MiB.
const PAGES: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// The least recently used page makes room for a new one.
pub(crate) struct Recent(LruCache<(ObjectId, u32), (u64, Plain)>);

impl Default for Recent {
    fn default() -> Recent {
        Recent(LruCache::new(PAGES))
    }
}

impl Recent {
    /// The text of this version of a page.
    pub(crate) fn get(&mut self, object: ObjectId, page: u32, version: u64) -> Option<Plain> {
        let (kept, plain) = self.0.get(&(object, page))?;
        (*kept == version).then(|| plain.clone())
    }

    /// Keeps the text of a page, unless a later version of it is kept.
    pub(crate) fn keep(&mut self, object: ObjectId, page: u32, version: u64, plain: Plain) {
        let kept = self.0.peek(&(object, page)).map(|(version, _)| *version);
        if kept.is_none_or(|kept| kept < version) {
            self.0.put((object, page), (version, plain));
        }
    }

    /// Lets go of all of a region's text.
    pub(crate) fn forget(&mut self, object: ObjectId) {
        let of_it = |at: &&(ObjectId, u32)| at.0 == object;
        let gone: Vec<_> = self.0.iter().map(|(at, _)| at).filter(of_it).copied().collect();
        for at in gone {
            self.0.pop(&at);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn text(byte: u8) -> Plain {
        Arc::new(vec![byte; 4].into())
    }

    #[test]
    fn an_old_version_is_neither_served_nor_kept() {
        let mut recent = Recent::default();
        let region = ObjectId(1);
        recent.keep(region, 0, 7, text(7));
        assert_eq!(recent.get(region, 0, 7), Some(text(7)));
        assert_eq!(recent.get(region, 0, 8), None, "the page was written since");
        recent.keep(region, 0, 6, text(6));
        assert_eq!(recent.get(region, 0, 6), None, "a slow reader brings what was replaced");
        assert_eq!(recent.get(region, 0, 7), Some(text(7)));
    }

    #[test]
    fn the_text_of_a_dropped_region_is_held_by_nobody() {
        let mut recent = Recent::default();
        let (one, other) = (text(1), text(2));
        recent.keep(ObjectId(1), 0, 1, one.clone());
        recent.keep(ObjectId(1), 9, 2, one.clone());
        recent.keep(ObjectId(2), 0, 3, other.clone());
        recent.forget(ObjectId(1));
        assert_eq!((Arc::strong_count(&one), Arc::strong_count(&other)), (1, 2));
    }

    #[test]
    fn a_tenant_that_reads_much_keeps_no_more_than_the_bound() {
        let mut recent = Recent::default();
        let all: Vec<_> = (0..300).map(|_| text(0)).collect();
        for (page, plain) in (0..).zip(&all) {
            recent.keep(ObjectId(1), page, 1, plain.clone());
        }
        let held = all.iter().filter(|plain| Arc::strong_count(plain) > 1).count();
        assert_eq!(held, PAGES.get());
    }
}
