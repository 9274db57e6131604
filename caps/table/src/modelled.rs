//! What stands in for the machine when loom explores this crate: a file's words are the checker's
//! atomics, and a fence can be left out, to see whether anybody would notice. Only built with
//! `--cfg loom`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::panic::Location;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use loom::sync::atomic::AtomicU64;

loom::lazy_static! {
    /// The words of each file that was mapped in this execution, by inode.
    static ref FILES: Mutex<HashMap<u64, Arc<[AtomicU64]>>> = Mutex::new(HashMap::new());
    /// Every SeqCst fence counts here first. Loom switches threads at accesses only: so which of two
    /// fences comes first is an order of its own to explore, and not that of the accesses before them.
    static ref FENCES: AtomicU64 = AtomicU64::new(0);
}

/// The `count` words of a file, zero until they are written; the same ones for every mapping of it.
pub(crate) fn words(fd: BorrowedFd<'_>, count: usize) -> io::Result<Arc<[AtomicU64]>> {
    let inode = rustix::fs::fstat(fd)?.st_ino;
    let mut files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
    let words =
        files.entry(inode).or_insert_with(|| (0..count).map(|_| AtomicU64::new(0)).collect());
    assert_eq!(words.len(), count, "a file is mapped as a whole");
    Ok(words.clone())
}

std::thread_local! {
    /// Loom's threads all run on the thread of the test that started it.
    static LEFT_OUT: RefCell<Vec<(&'static str, u32)>> = const { RefCell::new(Vec::new()) };
}

/// From here on, the calling test leaves out the fence at `line` of a file of this crate whose path
/// ends in `file`.
pub fn leave_out_fence(file: &'static str, line: u32) {
    LEFT_OUT.with_borrow_mut(|left_out| left_out.push((file, line)));
}

/// Loom's fence, unless it is left out.
#[track_caller]
pub(crate) fn fence(order: Ordering) {
    let at = Location::caller();
    let is_left_out = LEFT_OUT.with_borrow(|left_out| {
        left_out.iter().any(|(file, line)| at.file().ends_with(file) && at.line() == *line)
    });
    if !is_left_out {
        if order == Ordering::SeqCst {
            FENCES.fetch_add(1, Ordering::Relaxed);
        }
        loom::sync::atomic::fence(order);
    }
}
