//! Guards: how a vat shows that it is acting on a capability that it found alive, and how the
//! kernel waits for the actions that a revocation overtook. The argument is in the crate's docs.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

use distos_abi::SlotRef;

use crate::map::{ReadMapping, WriteMapping};
use crate::sync::{AtomicU64, fence, yield_now};
use crate::{Ancestry, SIZE_SEALS, TableError, View, memfd, sealed_len};

/// A cell has a cache line of its own, so that threads don't slow each other down.
const CELL_BYTES: usize = 64;
/// The most cells that a guard page may have; bounds what the kernel reads at a revocation.
pub const MAX_CELLS: usize = 1024;

/// A vat's own guard page. Each cell counts: even while it is free, odd while a guard holds it. No
/// value comes twice, so that a cell that was let go and taken again never looks as if it had been
/// held throughout.
pub struct GuardPage {
    words: WriteMapping,
    cells: usize,
}

impl GuardPage {
    /// A guard page of `cells` cells, from 1 to [`MAX_CELLS`] (64 fill one memory page), for the
    /// kernel to watch and to hand to one vat. `InvalidInput` for another number.
    pub fn create(cells: usize) -> io::Result<OwnedFd> {
        if cells == 0 || cells > MAX_CELLS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let fd = memfd("distos-guards", (cells * CELL_BYTES) as u64)?;
        rustix::fs::fcntl_add_seals(&fd, SIZE_SEALS)?;
        Ok(fd)
    }

    /// Maps a vat's page for writing; the descriptor may be closed afterwards.
    pub fn map(fd: impl AsFd) -> Result<GuardPage, TableError> {
        let cells = cells_of(&fd)?;
        let words = WriteMapping::new(fd.as_fd(), cells * CELL_BYTES)?;
        Ok(GuardPage { words, cells })
    }

    /// Runs `act` if the capability and all its ancestors are alive; `None` if one is not. Once
    /// the kernel's `revoke` has returned, `act` has either run to its end or will never run (C2).
    ///
    /// `act` is to be short and must not wait: the kernel kills a vat that holds a guard too long.
    pub fn commit<T>(&self, view: &View, slot: SlotRef, act: impl FnOnce() -> T) -> Option<T> {
        let _guard = self.enter();
        view.alive(slot).then(act)
    }

    /// The same for a capability whose ancestors are known, which is faster.
    pub fn commit_below<T>(
        &self,
        view: &View,
        ancestry: &Ancestry,
        act: impl FnOnce() -> T,
    ) -> Option<T> {
        let _guard = self.enter();
        view.holds(ancestry).then(act)
    }

    /// Takes a guard: whatever [`View::alive`] finds alive from here on, no `revoke` of it
    /// returns before the guard is dropped. Waits for a free cell if all are taken, which needs
    /// as many threads (or nested guards) as there are cells.
    pub fn enter(&self) -> Guard<'_> {
        loop {
            if let Some((cell, held)) = self.take_cell() {
                fence_after_taking();
                return Guard { cell, held, stays_on_thread: PhantomData };
            }
            yield_now();
        }
    }

    fn take_cell(&self) -> Option<(&AtomicU64, u64)> {
        // A read-modify-write, so that whoever acquires this value has also acquired what the
        // cell's previous guard released.
        (0..self.cells).map(|i| self.words.word(i * CELL_BYTES)).find_map(|cell| {
            let free = cell.load(Ordering::Relaxed);
            let held = free.wrapping_add(1);
            let taken = is_held(held)
                && cell.compare_exchange(free, held, Ordering::AcqRel, Ordering::Relaxed).is_ok();
            taken.then_some((cell, held))
        })
    }
}

fn is_held(value: u64) -> bool {
    !value.is_multiple_of(2)
}

/// U2 of the crate's argument.
fn fence_after_taking() {
    // The cell was taken by a locked instruction, across which this architecture moves neither
    // loads nor stores (Intel SDM volume 3, "Memory Ordering"; AMD APM volume 2, 7.4.2): it is the
    // fence, and another one would double what a guard costs. The compiler has to be told. Loom
    // explores the fence that this stands for: that the instruction is one is the manuals' claim,
    // which no checker of the language's memory model can see.
    #[cfg(all(target_arch = "x86_64", not(loom)))]
    std::sync::atomic::compiler_fence(Ordering::SeqCst);
    #[cfg(any(not(target_arch = "x86_64"), loom))]
    fence(Ordering::SeqCst);
}

impl std::fmt::Debug for GuardPage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GuardPage({} cells)", self.cells)
    }
}

/// A guard in force until it is dropped. It stays on its thread, so that it cannot cross an await
/// of a task that moves between threads.
#[derive(Debug)]
#[must_use = "a guard that is dropped at once guards nothing"]
pub struct Guard<'a> {
    cell: &'a AtomicU64,
    /// What stands in the cell.
    held: u64,
    stays_on_thread: PhantomData<*const ()>,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        // Whatever was done under the guard is visible to whoever sees it gone.
        self.cell.store(self.held.wrapping_add(1), Ordering::Release);
    }
}

/// The kernel's read-only view of one vat's guard page. What stands there is up to that vat: a
/// cell is held if its value is odd, and is otherwise only ever compared for equality.
pub struct GuardWatch {
    words: ReadMapping,
    cells: usize,
}

/// The guards that were in force at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot(Vec<(usize, u64)>);

impl Snapshot {
    /// Whether no guard is left to wait for.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl GuardWatch {
    /// Maps a page that [`GuardPage::create`] made; the descriptor may be closed afterwards.
    pub fn map(fd: impl AsFd) -> Result<GuardWatch, TableError> {
        let cells = cells_of(&fd)?;
        Ok(GuardWatch { words: ReadMapping::new(fd.as_fd(), cells * CELL_BYTES)?, cells })
    }

    /// The guards in force. Called after [`crate::Table::kill`] by the same thread, it contains
    /// every guard under which the killed capability may have been found alive and that has not ended.
    pub fn snapshot(&self) -> Snapshot {
        fence(Ordering::SeqCst);
        let held = (0..self.cells).map(|i| (i, self.load(i))).filter(|(_, value)| is_held(*value));
        Snapshot(held.collect())
    }

    /// Whether every guard of the snapshot has ended; forgets those that have. Never waits.
    pub fn quiescent_since(&self, snapshot: &mut Snapshot) -> bool {
        snapshot.0.retain(|(i, value)| *i < self.cells && self.load(*i) == *value);
        snapshot.is_empty()
    }

    fn load(&self, cell: usize) -> u64 {
        self.words.load_acquire(cell * CELL_BYTES)
    }
}

impl std::fmt::Debug for GuardWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GuardWatch({} cells)", self.cells)
    }
}

fn cells_of(fd: impl AsFd) -> Result<usize, TableError> {
    let len = sealed_len(fd, SIZE_SEALS)?;
    let cells = len / CELL_BYTES;
    if cells == 0 || cells > MAX_CELLS || !len.is_multiple_of(CELL_BYTES) {
        return Err(TableError::Malformed("its size is not that of a guard page"));
    }
    Ok(cells)
}
