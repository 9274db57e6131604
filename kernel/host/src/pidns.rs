//! Starts the kernel itself as init of a PID namespace, so that kernel death is node death: when
//! pid 1 ends, Linux kills every vat.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

use distos_rpc::boot::MANIFEST_FD;

use crate::spawn::{Running, SELF_PROGRAM, c_string, sealed_memfd};
use crate::sys::{self, Exec};

/// The largest plan that a kernel reads.
const MAX_PLAN_BYTES: u64 = 4 << 20;

/// A kernel process to start.
#[derive(Debug)]
pub struct KernelSpec {
    /// Arguments, the program's name first: `["distos", "kernel"]`.
    pub args: Vec<String>,
    /// The plan as JSON; the kernel reads it with [`inherited_plan`].
    pub plan: Vec<u8>,
    /// Further descriptors, which the kernel finds at 4, 5, … ([`inherited`]).
    pub fds: Vec<OwnedFd>,
}

/// Whether Linux itself ties the vats' lives to the kernel's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Isolation {
    /// The kernel is init of a PID namespace. Otherwise each vat's parent-death signal has to do.
    pub pid_namespace: bool,
    /// What was done, or why it could not be.
    pub detail: String,
}

/// Starts this binary again as the kernel: as pid 1 of a new PID namespace with a `/proc` of its
/// own, in a new user namespace if the caller is not root, or as a plain child where neither is
/// permitted. It ends with the calling thread, and inherits standard output and error.
///
/// # Errors
/// The binary cannot be executed.
pub fn run_in_new_pid_namespace(spec: KernelSpec) -> io::Result<(Running, Isolation)> {
    const PID: libc::c_int = libc::CLONE_NEWPID | libc::CLONE_NEWNS;
    let root = rustix::process::geteuid().is_root();
    let wanted = if root { PID } else { PID | libc::CLONE_NEWUSER };
    let mut fds = vec![
        (io::stdin().as_fd().try_clone_to_owned()?, 0),
        (io::stdout().as_fd().try_clone_to_owned()?, 1),
        (io::stderr().as_fd().try_clone_to_owned()?, 2),
        (sealed_memfd(&spec.plan)?, MANIFEST_FD),
    ];
    fds.extend(spec.fds.into_iter().zip(MANIFEST_FD + 1..));
    let started = sys::start(Exec {
        program: c_string(SELF_PROGRAM.as_bytes())?,
        args: spec.args.iter().map(|a| c_string(a.as_bytes())).collect::<io::Result<_>>()?,
        fds,
        clone_flags: vec![wanted, 0],
        unshare: &[],
        limits: Vec::new(),
        directory: c".".to_owned(),
        confine: None,
    })?;
    let pid_namespace = started.clone_flags != 0;
    let skipped: Vec<String> =
        started.skipped.iter().map(|s| format!("; no {}: {}", s.step, s.error)).collect();
    let found = match (pid_namespace, root) {
        (true, true) => "pid 1 of a new PID namespace",
        (true, false) => "pid 1 of a new PID namespace, in a new user namespace",
        (false, _) => "a plain child: no PID namespace is permitted here",
    };
    let detail = format!("{found}{}", skipped.concat());
    Ok((Running::new(started), Isolation { pid_namespace, detail }))
}

/// In the kernel process: the plan that its starter wrote.
///
/// # Errors
/// This process was not started as a kernel, or the plan is longer than 4 MiB.
pub fn inherited_plan() -> io::Result<Vec<u8>> {
    read_bounded(inherited(MANIFEST_FD)?, MAX_PLAN_BYTES)
}

/// Takes over a descriptor that this process inherited under a number it was told; each number
/// once, before anything else is opened.
///
/// # Errors
/// `EBADF` if nothing is open there.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    sys::inherited(number)
}

pub(crate) fn read_bounded(fd: OwnedFd, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::from(fd).take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "longer than permitted"));
    }
    Ok(bytes)
}
