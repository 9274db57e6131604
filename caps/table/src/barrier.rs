//! A barrier of which one side pays everything: uses of capabilities are many and revocations few.
//!
//! The user's half is an order to the compiler and no instruction. The kernel's half, `membarrier`
//! (membarrier(2), `MEMBARRIER_CMD_GLOBAL_EXPEDITED`, Linux 4.16), has every processor that runs a
//! thread of a process which takes part pass a full fence before it returns; a thread that does not
//! run passed one when it was stopped. Of a user's half and a kernel's half, one thus comes first,
//! as of two `fence(SeqCst)`. User-space RCU and hazard pointers are built on the same.
//!
//! Loom explores the two fences that this stands for; that `membarrier` makes them is Linux's
//! claim, which no checker of the language's memory model can see.

use std::io;
use std::sync::atomic::Ordering;
#[cfg(not(loom))]
use std::sync::atomic::compiler_fence;

#[cfg(not(loom))]
use rustix::thread::{MembarrierCommand, MembarrierQuery, membarrier, membarrier_query};

/// Shows that the kernel's half was passed (R2 of the crate's argument).
#[derive(Debug)]
pub struct Barrier(());

impl Barrier {
    /// Passes the kernel's half: what this thread stored before is seen by whatever a vat loads
    /// after its own half, or the vat's store before that half is seen by what this thread loads
    /// from here on. Takes microseconds, so pass it once for all that was killed.
    ///
    /// # Errors
    /// Linux refuses, which [`crate::Table::create`] has ruled out but for a lack of memory. Then
    /// nothing that a revocation promises holds: whoever revokes must not go on.
    pub fn pass() -> io::Result<Barrier> {
        #[cfg(not(loom))]
        {
            compiler_fence(Ordering::SeqCst);
            membarrier(MembarrierCommand::GlobalExpedited)?;
            compiler_fence(Ordering::SeqCst);
        }
        #[cfg(loom)]
        crate::sync::fence(Ordering::SeqCst);
        Ok(Barrier(()))
    }
}

/// The user's half (U2 of the crate's argument).
#[inline]
pub(crate) fn light() {
    #[cfg(not(loom))]
    compiler_fence(Ordering::SeqCst);
    #[cfg(loom)]
    crate::sync::fence(Ordering::SeqCst);
}

/// Has this process take part in barriers, for as long as it runs.
///
/// # Errors
/// `Unsupported` on a Linux without them; what else Linux says.
pub(crate) fn take_part() -> io::Result<()> {
    #[cfg(not(loom))]
    {
        is_supported()?;
        membarrier(MembarrierCommand::RegisterGlobalExpedited)?;
    }
    Ok(())
}

/// # Errors
/// `Unsupported` if barriers cannot be passed on this machine.
pub(crate) fn is_supported() -> io::Result<()> {
    #[cfg(not(loom))]
    {
        let needed = MembarrierQuery::GLOBAL_EXPEDITED | MembarrierQuery::REGISTER_GLOBAL_EXPEDITED;
        if !membarrier_query().contains(needed) {
            let what = "this Linux has no membarrier for all processes (4.16 or later has it, \
                        unless a sandbox around DistOS forbids it)";
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        }
    }
    Ok(())
}
