//! Guards: how a vat shows that it is acting on a capability that it found alive, and how the
//! kernel waits for the actions that a revocation overtook. The argument is in the crate's docs.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use distos_abi::SlotRef;

use crate::barrier::{self, Barrier};
use crate::map::{ReadMapping, Word, WriteMapping};
use crate::{Ancestry, SIZE_SEALS, TableError, View, memfd, sealed_len};

/// A cell has a cache line of its own, so that threads don't slow each other down.
const CELL_BYTES: usize = 64;
/// The most cells that a guard page may have; bounds what the kernel reads at a revocation.
pub const MAX_CELLS: usize = 1024;

/// A vat's own guard page. Each cell counts: even while it is free, odd while a guard holds it. No
/// value comes twice, so that a cell that was let go and taken again never looks as if it had been
/// held throughout.
///
/// A vat maps its page once: two mappings would give the same cells to two threads.
pub struct GuardPage {
    words: Arc<WriteMapping>,
    cells: usize,
    /// Cells that have been given to a seat.
    seated: AtomicUsize,
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

    /// Maps a vat's page for writing, and has this process take part in the kernel's barriers; the
    /// descriptor may be closed afterwards.
    pub fn map(fd: impl AsFd) -> Result<GuardPage, TableError> {
        let cells = cells_of(&fd)?;
        let words = WriteMapping::new(fd.as_fd(), cells * CELL_BYTES)?;
        barrier::take_part()?;
        Ok(GuardPage { words: Arc::new(words), cells, seated: AtomicUsize::new(0) })
    }

    /// A seat for one thread, with a cell of its own for as long as the page is mapped; `None` if
    /// all cells have been given away.
    pub fn seat(&self) -> Option<Seat> {
        let cell = self.seated.fetch_add(1, Ordering::Relaxed);
        if cell >= self.cells {
            self.seated.store(self.cells, Ordering::Relaxed);
            return None;
        }
        let cell = Word::of(&self.words, cell * CELL_BYTES);
        let found = cell.load(Ordering::Relaxed);
        cell.store(found.wrapping_add(u64::from(is_held(found))), Ordering::Release);
        Some(Seat { cell, further: Cell::new(0) })
    }
}

impl std::fmt::Debug for GuardPage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GuardPage({} cells)", self.cells)
    }
}

/// Where one thread of a vat takes its guards. Nobody else writes its cell, so taking one is a
/// store, and no locked instruction.
pub struct Seat {
    cell: Word,
    /// Guards in force beside the one that the cell tells of, one within another.
    further: Cell<u32>,
}

impl Seat {
    /// Runs `act` if the capability and all its ancestors are alive; `None` if one is not. Once
    /// the kernel's `revoke` has returned, `act` has either run to its end or will never run (C2).
    ///
    /// `act` is to be short and must not wait: the kernel kills a vat that holds a guard too long.
    #[inline]
    pub fn commit<T>(&self, view: &View, slot: SlotRef, act: impl FnOnce() -> T) -> Option<T> {
        let _guard = self.enter();
        view.alive(slot).then(act)
    }

    /// The same for a capability whose ancestors are known, which is faster.
    #[inline]
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
    /// returns before the guard is dropped.
    #[inline]
    pub fn enter(&self) -> Guard<'_> {
        let found = self.cell.load(Ordering::Relaxed);
        if is_held(found) {
            return self.enter_within(found);
        }
        let held = found.wrapping_add(1);
        // Released, because a kernel that sees this guard in place of the one before it has to see
        // what was done under that one.
        self.cell.store(held, Ordering::Release);
        barrier::light();
        Guard { seat: self, held }
    }

    #[cold]
    #[inline(never)]
    fn enter_within(&self, held: u64) -> Guard<'_> {
        self.further.set(self.further.get() + 1);
        Guard { seat: self, held }
    }

    #[cold]
    #[inline(never)]
    fn leave_within(&self) {
        self.further.set(self.further.get() - 1);
    }
}

impl std::fmt::Debug for Seat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Seat(held: {})", is_held(self.cell.load(Ordering::Relaxed)))
    }
}

/// A guard in force until it is dropped. It stays on its thread, as its seat does, so that it
/// cannot cross an await of a task that moves between threads.
#[derive(Debug)]
#[must_use = "a guard that is dropped at once guards nothing"]
pub struct Guard<'a> {
    seat: &'a Seat,
    /// What stands in the cell, until the last of the guards that are in force together ends.
    held: u64,
}

impl Drop for Guard<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.seat.further.get() != 0 {
            return self.seat.leave_within();
        }
        // Whatever was done under the guard is visible to whoever sees it gone.
        self.seat.cell.store(self.held.wrapping_add(1), Ordering::Release);
    }
}

#[inline]
fn is_held(value: u64) -> bool {
    !value.is_multiple_of(2)
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

    /// The guards in force. Of a capability that was killed before the barrier, it contains every
    /// guard under which it may have been found alive and that has not ended.
    pub fn snapshot(&self, _after: &Barrier) -> Snapshot {
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
