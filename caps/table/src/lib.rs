//! The capability table and the guard pages: how every vat of a node learns, without a message,
//! that a capability is dead, and how the kernel learns that nobody is still acting on it.
//!
//! The kernel is the table's only writer ([`Table`]); vats map the same memory read-only
//! ([`View`]) and walk from a slot to its root. Revoking is one store, whatever the number of
//! descendants. This crate knows neither rights nor objects, and decides nothing: which slots
//! live, and when one may be used again, is the kernel's business.
//!
//! # Promise C2, and why a barrier keeps it
//!
//! When `revoke` returns, no use of the capability or of a descendant takes effect: not even one
//! that had already begun. Each side writes, passes its half of a barrier, and only then reads what
//! the other wrote:
//!
//! | revoker (kernel) | user (a thread of a vat, [`Seat::commit`]) |
//! |---|---|
//! | R1 store generation := 0 | U1 take a guard in the seat's cell: even → odd (release) |
//! | R2 [`Barrier::pass`] | U2 the other half, which is free |
//! | R3 read all guard cells | U3 read the generations up to the root |
//! | R4 wait until each cell seen in R3 changed | U4 if all matched: act |
//! | R5 reply | U5 let the guard cell go: odd → even (release) |
//!
//! Of the two halves, one comes first (`barrier.rs`). If it is R2, then U3 reads R1's zero (or a later
//! generation, which differs too, as none is ever reused), and the user does not act. If U2 comes
//! first, then R3 reads U1's value or a later one of that cell. If it is U1's, R4 waits for U5; if it is
//! later, U5 has happened. Either way the load that saw the change acquires what U5 released: only
//! the seat's thread writes its cell, and taking a later guard in it releases as well. The action
//! has then happened before the reply. So whatever acted, acted before R5. A guard within a guard
//! changes nothing in the cell and lasts no longer than the outer one.
//!
//! R4 ends, because a guard covers one synchronous check and action and never an await, and a
//! guard that begins after R3 isn't waited for. A vat that does not let go within the kernel's
//! bound is killed. A vat that forges its guard page lets only its own objects be used after their
//! revocation, or gets itself killed: the page carries nothing about anybody else's.
//!
//! U3 may follow parents from slot to slot ([`View::alive`]) or read the slots of an [`Ancestry`] that
//! was followed earlier ([`View::holds`]): what a slot's parent is does not change while its
//! generation stands, so both read the same words.
//!
//! The argument is about one machine's coherent memory; nothing here orders disk or network.
//! `tests/loom.rs` explores it on this crate's own source, with a `fence(SeqCst)` for each half of
//! the barrier, and shows which counterexample there is without a fence or with its steps in
//! another order.
#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod barrier;
mod guard;
mod map;
#[cfg(loom)]
pub mod modelled;
mod table;

/// Where atomics and fences come from: the machine, or loom, which explores what the rest
/// of this crate does with them (`tests/loom.rs`).
mod sync {
    #[cfg(not(loom))]
    pub(crate) use std::sync::atomic::{AtomicU64, fence};

    #[cfg(loom)]
    pub(crate) use loom::sync::atomic::AtomicU64;

    #[cfg(loom)]
    pub(crate) use crate::modelled::fence;
}

pub use barrier::Barrier;
pub use guard::{Guard, GuardPage, GuardWatch, MAX_CELLS, Seat, Snapshot};
pub use table::{Ancestry, Table, View};

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FallocateFlags, MemfdFlags, Mode, SealFlags};

/// Why a descriptor can't be used as a table or as a guard page.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The operating system refused.
    #[error("shared memory: {0}")]
    Io(#[from] io::Error),
    /// The file lacks a seal without which its other holders could change it under this process.
    #[error("not sealed: the descriptor is no table or guard page that the kernel made")]
    Unsealed,
    /// The content or the size is not that of a table or guard page; says what is wrong.
    #[error("malformed: {0}")]
    Malformed(&'static str),
}

/// The seals that keep a file's size for ever, so that no access to a mapping of it can fault.
const SIZE_SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// A new memfd of `len` zero bytes, all of them allocated, so that a machine without memory fails
/// here and not at a later store.
fn memfd(name: &str, len: u64) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    // Whoever is handed a descriptor that only reads does not get another through `/proc`.
    rustix::fs::fchmod(&fd, Mode::RUSR)?;
    rustix::fs::ftruncate(&fd, len)?;
    rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, len)?;
    Ok(fd)
}

/// The size of a memfd that has at least `seals`.
fn sealed_len(fd: impl AsFd, seals: SealFlags) -> Result<usize, TableError> {
    // A descriptor of another type has no seals at all, which the system reports as an error.
    let found = rustix::fs::fcntl_get_seals(&fd).map_err(|_| TableError::Unsealed)?;
    if !found.contains(seals) {
        return Err(TableError::Unsealed);
    }
    let stat = rustix::fs::fstat(&fd).map_err(io::Error::from)?;
    usize::try_from(stat.st_size).map_err(|_| TableError::Malformed("its size"))
}
