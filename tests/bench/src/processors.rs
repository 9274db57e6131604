//! Where client and servers run: the client on one processor and every server on another, if this
//! machine has two, so that ours and the peer's calls go the same way. Left to itself, Linux puts
//! one server on the client's processor and the other not, and waking a processor that sleeps takes
//! longer than most calls.

use std::fs;
use std::sync::LazyLock;

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::figures::Failure;

/// Asked before this thread moves: the standard library counts where the caller may run.
static SERVERS: LazyLock<usize> =
    LazyLock::new(|| usize::from(std::thread::available_parallelism().is_ok_and(|n| n.get() > 1)));

/// The calling thread stays on the client's processor until this is dropped.
pub struct Client(CpuSet);

impl Client {
    /// Moves the calling thread. What it starts inherits where it may run: start servers before.
    pub fn stay() -> Result<Client, Failure> {
        let anywhere = sched_getaffinity(None)?;
        LazyLock::force(&SERVERS);
        sched_setaffinity(None, &only(0))?;
        Ok(Client(anywhere))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // It was there before.
        let _ = sched_setaffinity(None, &self.0);
    }
}

/// The calling thread, and all that it starts, stays on the servers' processor until this is dropped:
/// the client's is free for somebody whose work is not to take time from theirs.
pub struct Apart(CpuSet);

impl Apart {
    /// Moves the calling thread.
    pub fn stay() -> Result<Apart, Failure> {
        let anywhere = sched_getaffinity(None)?;
        sched_setaffinity(None, &only(*SERVERS))?;
        Ok(Apart(anywhere))
    }

    /// The processor that is free; `None` if there is only one.
    pub fn other(&self) -> Option<usize> {
        (*SERVERS > 0).then_some(0)
    }
}

impl Drop for Apart {
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
