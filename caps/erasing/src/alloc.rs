//! The allocator. All that is unsafe in this crate is here.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, Ordering};

/// The system's allocator, which erases what is given back once it was told to.
pub struct Erasing(AtomicBool);

impl Erasing {
    /// One that does not erase yet.
    pub const fn new() -> Erasing {
        Erasing(AtomicBool::new(false))
    }

    /// From now on everything that is given back is erased, also what was allocated before.
    pub fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn erases(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Default for Erasing {
    fn default() -> Erasing {
        Erasing::new()
    }
}

// SAFETY: Every block comes from `System` and goes back to it with the layout that it was allocated with. In between nothing
// but its own bytes is written, and only when whoever had it has given it up.
unsafe impl GlobalAlloc for Erasing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: The caller keeps to the contract of this method, which is that of `System`'s.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: As above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if self.erases() {
            // SAFETY: The block is `layout.size()` bytes long, and nobody else uses it any more.
            unsafe { block.write_bytes(0, layout.size()) };
            // To the compiler somebody looks at the bytes here, so they are written although they are freed next.
            std::hint::black_box(block);
        }
        // SAFETY: As above.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if !self.erases() {
            // SAFETY: As above.
            return unsafe { System.realloc(block, layout, new_size) };
        }
        // The system would free the old block itself, or give back its end, and erase neither.
        // SAFETY: The caller has seen to it that `new_size`, rounded up to the alignment, is no more than `isize::MAX`.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        // SAFETY: `new_size` is not 0, says the contract of this method.
        let new_block = unsafe { System.alloc(new_layout) };
        if !new_block.is_null() {
            let kept = layout.size().min(new_size);
            // SAFETY: Both are at least as long as `kept`, and the new one is nobody else's.
            unsafe { new_block.copy_from_nonoverlapping(block, kept) };
            // SAFETY: The caller has given the old one up.
            unsafe { self.dealloc(block, layout) };
        }
        new_block
    }
}
