//! Where client and servers run: the client on one processor and every server on another, if this
//! machine has two, so that ours and the peer's calls go the same way. Left to itself, Linux puts
//! one server on the client's processor and the other not, and waking a processor that sleeps takes
//! longer than most calls.

use std::fs;
use std::sync::LazyLock;

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::figures::Failure;

/// The servers' processor. Asked before this thread moves: the standard library counts where the
/// caller may run.
pub static SERVERS: LazyLock<usize> =
    LazyLock::new(|| usize::from(std::thread::available_parallelism().is_ok_and(|n| n.get() > 1)));

/// The calling thread, and all that it starts, stays on one processor until this is dropped.
pub struct Stay(CpuSet);

impl Stay {
    /// On the clients' processor. Start servers before.
    pub fn with_clients() -> Result<Stay, Failure> {
        Stay::on(0)
    }

    /// On the servers' processor.
    pub fn with_servers() -> Result<Stay, Failure> {
        Stay::on(*SERVERS)
    }

    fn on(processor: usize) -> Result<Stay, Failure> {
        LazyLock::force(&SERVERS);
        let anywhere = sched_getaffinity(None)?;
        sched_setaffinity(None, &only(processor))?;
        Ok(Stay(anywhere))
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        // It was there before.
        let _ = sched_setaffinity(None, &self.0);
    }
}

/// Moves a server with all its threads to the servers' processor.
pub fn serve(process: u32) -> Result<(), Failure> {
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let thread = thread?.file_name().to_string_lossy().parse().ok().and_then(Pid::from_raw);
        sched_setaffinity(thread, &only(*SERVERS))?;
    }
    Ok(())
}

fn only(processor: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(processor);
    set
}
