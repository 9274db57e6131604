//! Shared memory: the only `unsafe` code of this crate. It maps a memfd and hands out its words
//! as atomics, bounds-checked; what the words mean is decided elsewhere.
//!
//! Another process may write the same memory at any moment, so no plain reference into a mapping
//! ever exists: each access is an atomic one of a whole aligned word.
#![allow(unsafe_code)]

#[cfg(not(loom))]
use std::ffi::c_void;
use std::io;
use std::ops::Deref;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;

#[cfg(not(loom))]
use rustix::mm::MapFlags;
use rustix::mm::ProtFlags;

use crate::sync::{AtomicU64, fence};

/// Bytes in the unit of access.
pub(crate) const WORD: usize = size_of::<u64>();

/// One mapping, unmapped when dropped.
struct Mapping {
    base: NonNull<AtomicU64>,
    len: usize,
    /// Under loom a word is an object of the checker's, and these are what `base` points to.
    #[cfg(loom)]
    _words: Arc<[AtomicU64]>,
}

// SAFETY: a mapping belongs to the process, not to a thread, and it is only ever reached through
// atomic accesses, so it may be moved to another thread.
unsafe impl Send for Mapping {}
// SAFETY: as above: each access through a shared reference is atomic.
unsafe impl Sync for Mapping {}

impl Mapping {
    #[cfg(not(loom))]
    fn new(fd: BorrowedFd<'_>, len: usize, prot: ProtFlags) -> io::Result<Mapping> {
        // SAFETY: the address is chosen by the operating system, so no memory in use is replaced.
        let base =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, fd, 0) }?;
        let base = NonNull::new(base.cast::<AtomicU64>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapping { base, len })
    }

    #[cfg(loom)]
    fn new(fd: BorrowedFd<'_>, len: usize, _: ProtFlags) -> io::Result<Mapping> {
        let words = crate::modelled::words(fd, len / WORD)?;
        let base = NonNull::from(&*words).cast::<AtomicU64>();
        Ok(Mapping { base, len, _words: words })
    }

    #[inline]
    fn words(&self) -> usize {
        self.len / WORD
    }

    /// The word at `offset` bytes, which is a multiple of [`WORD`] within the mapping.
    #[inline]
    fn word(&self, offset: usize) -> NonNull<AtomicU64> {
        // One comparison, as every check of a capability passes here several times.
        if !offset.is_multiple_of(WORD) || offset / WORD >= self.words() {
            outside(offset, self.len);
        }
        // SAFETY: the word is within the mapping, which is one allocation that lives as long as
        // `self`.
        unsafe { self.base.add(offset / WORD) }
    }
}

/// Apart from its caller, so that what it prints need not stand in memory on the way to a word.
#[cold]
fn outside(offset: usize, len: usize) -> ! {
    panic!("word {offset} is not in a mapping of {len} bytes")
}

#[cfg(not(loom))]
impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `base` and `len` are what mmap returned and got. Every reference into the mapping
        // borrows from `self`, which ends here, and a `Word` keeps the mapping from ending. Failure
        // would leave it mapped: harmless.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast::<c_void>(), self.len) };
    }
}

/// Memory that this process may only read, and that others may be writing.
pub(crate) struct ReadMapping(Mapping);

impl ReadMapping {
    /// Maps the first `len` bytes of a file that is sealed against shrinking.
    pub(crate) fn new(fd: BorrowedFd<'_>, len: usize) -> io::Result<ReadMapping> {
        Mapping::new(fd, len, ProtFlags::READ).map(ReadMapping)
    }

    /// The word at `offset` bytes, without ordering. Panics if it is outside the mapping.
    pub(crate) fn load_relaxed(&self, offset: usize) -> u64 {
        // SAFETY: the word is mapped, aligned and only ever accessed atomically. A relaxed load of
        // at most 8 bytes is what std::sync::atomic documents as sound on read-only memory.
        unsafe { self.0.word(offset).as_ref() }.load(Ordering::Relaxed)
    }

    /// The word at `offset` bytes; what was written before a release store of it is seen by
    /// whatever follows. A fence does the ordering because only relaxed loads are sound on
    /// read-only memory. Panics if the word is outside the mapping.
    pub(crate) fn load_acquire(&self, offset: usize) -> u64 {
        let word = self.load_relaxed(offset);
        fence(Ordering::Acquire);
        word
    }
}

/// Words that are compared together, and so many stand in an [`Expected`] itself: most capabilities
/// have few ancestors, and one that was not used lately is then found with one miss of the cache
/// less.
const NEAR: usize = 4;

/// Offsets, in words, and contents.
type Block = [(usize, u64); NEAR];

/// What certain words of a mapping are expected to be. Where they stand was checked once, so that
/// comparing them takes no more than reading them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    /// Fewer words than a block takes are filled up with the first of them.
    near: Block,
    rest: Box<[Block]>,
    /// In words: every offset is below it.
    within: usize,
}

impl Expected {
    /// Takes offsets in bytes; there is at least one. Panics if one is outside the mapping.
    pub(crate) fn new(mapping: &ReadMapping, words: &[(usize, u64)]) -> Expected {
        let block = |words: &[(usize, u64)]| {
            let mut block = [(0, 0); NEAR];
            for (at, place) in block.iter_mut().enumerate() {
                let (offset, content) = words[if at < words.len() { at } else { 0 }];
                mapping.0.word(offset);
                *place = (offset / WORD, content);
            }
            block
        };
        let (near, rest) = words.split_at(words.len().min(NEAR));
        let rest = rest.chunks(NEAR).map(block).collect();
        Expected { near: block(near), rest, within: mapping.0.words() }
    }
}

impl ReadMapping {
    /// Whether every word is as expected. What was written before release stores of them is seen
    /// by whatever follows. Panics if the expectation is of a larger mapping.
    #[inline]
    pub(crate) fn has(&self, expected: &Expected) -> bool {
        if expected.within > self.0.words() {
            outside(expected.within * WORD, self.0.len);
        }
        let differs = |block: &Block| {
            block.iter().fold(0, |differs, (at, content)| {
                // SAFETY: `at` is below `within` by construction, and `within` is no larger than
                // this mapping, as was just checked; the word is mapped, aligned and only ever
                // accessed atomically, and the load is one that is sound on read-only memory
                // (`load_relaxed`).
                let word = unsafe { self.0.base.add(*at).as_ref() };
                differs | (word.load(Ordering::Relaxed) ^ content)
            })
        };
        let all = expected.rest.iter().fold(differs(&expected.near), |all, b| all | differs(b));
        fence(Ordering::Acquire);
        all == 0
    }
}

/// Memory that this process may read and write, and that others may be reading or writing.
pub(crate) struct WriteMapping(Mapping);

impl WriteMapping {
    /// Maps the first `len` bytes of a file.
    pub(crate) fn new(fd: BorrowedFd<'_>, len: usize) -> io::Result<WriteMapping> {
        Mapping::new(fd, len, ProtFlags::READ | ProtFlags::WRITE).map(WriteMapping)
    }

    /// The word at `offset` bytes. Panics if it is outside the mapping.
    #[inline]
    pub(crate) fn word(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: the word is mapped for writing, aligned, only ever accessed atomically, and
        // stays mapped as long as the returned reference borrows `self`.
        unsafe { self.0.word(offset).as_ref() }
    }
}

/// One word of a mapping, which stays mapped for as long as this is there.
pub(crate) struct Word {
    word: NonNull<AtomicU64>,
    _mapping: Arc<WriteMapping>,
}

// SAFETY: as for the mapping itself.
unsafe impl Send for Word {}

impl Word {
    /// The word at `offset` bytes. Panics if it is outside the mapping.
    pub(crate) fn of(mapping: &Arc<WriteMapping>, offset: usize) -> Word {
        Word { word: mapping.0.word(offset), _mapping: mapping.clone() }
    }
}

impl Deref for Word {
    type Target = AtomicU64;

    #[inline]
    fn deref(&self) -> &AtomicU64 {
        // SAFETY: the word is mapped for writing, aligned, only ever accessed atomically, and
        // stays mapped as long as `_mapping`.
        unsafe { self.word.as_ref() }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::os::fd::AsFd;

    use rustix::io::Errno;
    use rustix::mm::MprotectFlags;

    use super::*;
    use crate::Table;

    #[test]
    fn a_vat_cannot_turn_its_reading_mapping_into_a_writing_one() {
        let (_table, fd) = Table::create(8).unwrap();
        let mapping = ReadMapping::new(fd.as_fd(), 4096).unwrap();
        // SAFETY: changes the protection of a mapping that is only accessed atomically; more
        // access than the mapping's type uses does no harm.
        let changed = unsafe {
            let base = mapping.0.base.as_ptr().cast::<c_void>();
            rustix::mm::mprotect(base, 4096, MprotectFlags::READ | MprotectFlags::WRITE)
        };
        assert_eq!(changed, Err(Errno::ACCESS));
    }

    #[test]
    fn a_word_outside_the_mapping_is_never_accessed() {
        let (_table, fd) = Table::create(8).unwrap();
        let mapping = ReadMapping::new(fd.as_fd(), 4096).unwrap();
        assert_eq!(mapping.load_acquire(4088), 0);
        for offset in [4089, 4096, 3, usize::MAX - 7] {
            let load = std::panic::AssertUnwindSafe(|| mapping.load_relaxed(offset));
            assert!(std::panic::catch_unwind(load).is_err(), "{offset}");
        }
    }
}
