//! The system calls that a vat may make, by [`Profile`]. Everything else fails with `EPERM`; a
//! call by another processor architecture's convention kills the process.

use std::collections::BTreeMap;

use distos_abi::Fault;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule,
};

use crate::plan::Profile;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Memory, threads, time, and files and sockets that are open already.
#[rustfmt::skip]
const ALWAYS: &[i64] = &[
    libc::SYS_accept4, libc::SYS_brk, libc::SYS_clock_getres, libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep, libc::SYS_close, libc::SYS_close_range, libc::SYS_dup,
    libc::SYS_dup3, libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2, libc::SYS_eventfd2, libc::SYS_exit, libc::SYS_exit_group,
    libc::SYS_fadvise64, libc::SYS_fallocate, libc::SYS_fchmod, libc::SYS_fcntl,
    libc::SYS_fdatasync, libc::SYS_flock, libc::SYS_fstat, libc::SYS_fstatfs, libc::SYS_fsync,
    libc::SYS_ftruncate, libc::SYS_futex, libc::SYS_get_robust_list, libc::SYS_getcpu,
    libc::SYS_getegid, libc::SYS_geteuid, libc::SYS_getgid, libc::SYS_getpeername,
    libc::SYS_getpid, libc::SYS_getppid, libc::SYS_getrandom, libc::SYS_getrusage,
    libc::SYS_getsockname, libc::SYS_getsockopt, libc::SYS_gettid, libc::SYS_gettimeofday,
    libc::SYS_getuid, libc::SYS_listen, libc::SYS_lseek, libc::SYS_madvise, libc::SYS_mincore,
    libc::SYS_mlock, libc::SYS_mlock2, libc::SYS_mremap, libc::SYS_msync, libc::SYS_munlock,
    libc::SYS_munmap, libc::SYS_nanosleep, libc::SYS_pipe2, libc::SYS_ppoll, libc::SYS_pread64,
    libc::SYS_preadv, libc::SYS_pwrite64, libc::SYS_pwritev, libc::SYS_read, libc::SYS_readv,
    libc::SYS_recvfrom, libc::SYS_recvmmsg, libc::SYS_recvmsg, libc::SYS_restart_syscall,
    libc::SYS_rseq, libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity, libc::SYS_sched_yield, libc::SYS_sendmsg, libc::SYS_sendto,
    libc::SYS_set_robust_list, libc::SYS_setsockopt, libc::SYS_shutdown, libc::SYS_sigaltstack,
    libc::SYS_sync_file_range, libc::SYS_sysinfo, libc::SYS_uname, libc::SYS_write,
    libc::SYS_writev, libc::SYS_memfd_create, libc::SYS_copy_file_range,
    // By path: Landlock and the empty root decide which.
    libc::SYS_faccessat, libc::SYS_faccessat2, libc::SYS_getcwd, libc::SYS_getdents64,
    libc::SYS_mkdirat, libc::SYS_newfstatat, libc::SYS_openat, libc::SYS_readlinkat,
    libc::SYS_renameat, libc::SYS_renameat2, libc::SYS_statfs, libc::SYS_statx, libc::SYS_unlinkat,
    // `refuse_clone3` answers it before this list can.
    libc::SYS_clone3,
];

/// The older calls that glibc still makes where they exist.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const LEGACY: &[i64] = &[
    libc::SYS_access, libc::SYS_dup2, libc::SYS_epoll_wait, libc::SYS_getdents, libc::SYS_lstat,
    libc::SYS_mkdir, libc::SYS_open, libc::SYS_poll, libc::SYS_readlink, libc::SYS_rename,
    libc::SYS_rmdir, libc::SYS_select, libc::SYS_stat, libc::SYS_time, libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const LEGACY: &[i64] = &[];

/// `ioctl` requests that tokio and the standard library make.
const IOCTLS: [u64; 4] = [libc::FIONBIO, libc::FIOCLEX, libc::FIONREAD, libc::TCGETS];

/// `prctl` requests that only look, or name a thread or a mapping.
const PRCTLS: [i32; 5] = [
    libc::PR_SET_NAME,
    libc::PR_SET_VMA,
    libc::PR_GET_DUMPABLE,
    libc::PR_GET_NO_NEW_PRIVS,
    libc::PR_GET_SECCOMP,
];

/// Taking part in the kernel's barriers. Passing one interrupts every processor, and others wait.
const BARRIERS: [i32; 2] =
    [libc::MEMBARRIER_CMD_QUERY, libc::MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED];

/// Whoever compiles programs also has its own threads see them (on Arm).
const FRESH_CODE: [i32; 2] = [
    libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE,
    libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE,
];

/// What no foreign program behind a device needs.
#[rustfmt::skip]
const FOREIGN_DENIED: &[i64] = &[
    libc::SYS_socket, libc::SYS_connect, libc::SYS_bind, libc::SYS_listen, libc::SYS_ptrace,
    libc::SYS_process_vm_readv, libc::SYS_process_vm_writev, libc::SYS_bpf, libc::SYS_keyctl,
    libc::SYS_add_key, libc::SYS_request_key, libc::SYS_mount, libc::SYS_umount2,
    libc::SYS_pivot_root, libc::SYS_chroot, libc::SYS_unshare, libc::SYS_setns,
    libc::SYS_open_tree, libc::SYS_move_mount, libc::SYS_fsopen, libc::SYS_fsmount,
    libc::SYS_perf_event_open, libc::SYS_userfaultfd, libc::SYS_init_module,
    libc::SYS_finit_module, libc::SYS_kexec_load, libc::SYS_io_uring_setup,
    libc::SYS_open_by_handle_at, libc::SYS_pidfd_getfd, libc::SYS_mknodat,
];

/// Installs the filters of `profile` in this thread and all that it will start.
///
/// # Errors
/// [`Fault::Internal`] if this machine has no seccomp filters.
pub(crate) fn install(profile: Profile) -> Result<(), Fault> {
    let programs = refuse_clone3().and_then(|clone3| Ok([clone3, allowed(profile)?]));
    for program in programs.map_err(Fault::internal)? {
        seccompiler::apply_filter(&program).map_err(Fault::internal)?;
    }
    Ok(())
}

/// The filter for a program that is confined from outside.
pub(crate) fn foreign() -> Result<BpfProgram, BackendError> {
    let rules = FOREIGN_DENIED.iter().map(|call| (*call, Vec::new())).collect();
    compile(rules, SeccompAction::Allow, SeccompAction::Errno(libc::EPERM as u32))
}

/// A filter cannot read `clone3`'s flags, which are in memory. Told that it does not exist, the C
/// library makes its threads with `clone`.
fn refuse_clone3() -> Result<BpfProgram, BackendError> {
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    compile(rules, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))
}

fn allowed(profile: Profile) -> Result<BpfProgram, BackendError> {
    let mut rules: Rules = ALWAYS.iter().chain(LEGACY).map(|call| (*call, Vec::new())).collect();
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(libc::SYS_clone, one(0, SeccompCmpOp::MaskedEq(thread), thread)?);
    // tokio's signal driver and in-process pairs; a datagram socket could be sent elsewhere.
    let unix = condition(0, SeccompCmpOp::Eq, libc::AF_UNIX as u64)?;
    let stream = condition(1, SeccompCmpOp::MaskedEq(0xf), libc::SOCK_STREAM as u64)?;
    rules.insert(libc::SYS_socketpair, vec![SeccompRule::new(vec![unix, stream])?]);
    rules.insert(libc::SYS_prctl, any_of(0, PRCTLS.map(|p| p as u64))?);
    // Looking at one's own limits, not changing them. 64 bits: the pointer to new ones is null.
    let own = condition(0, SeccompCmpOp::Eq, 0)?;
    let null = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
    rules.insert(libc::SYS_prlimit64, vec![SeccompRule::new(vec![own, null])?]);
    // `abort` signals one of this process's own threads.
    let me = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, one(0, SeccompCmpOp::Eq, me)?);
    let executable = profile != Profile::Service;
    let fresh_code = if executable { &FRESH_CODE[..] } else { &[] };
    let barriers = BARRIERS.iter().chain(fresh_code).map(|command| *command as u64);
    rules.insert(libc::SYS_membarrier, any_of(0, barriers)?);
    if profile == Profile::Jit {
        // A thread that runs a tenant's program stands back behind the vat's others: PRIO_PROCESS, of
        // nobody but the caller.
        let itself = vec![condition(0, SeccompCmpOp::Eq, 0)?, condition(1, SeccompCmpOp::Eq, 0)?];
        rules.insert(libc::SYS_setpriority, vec![SeccompRule::new(itself)?]);
    }
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        let writable = one(2, SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64), 0)?;
        rules.insert(call, if executable { Vec::new() } else { writable });
    }
    let ioctls = any_of(1, IOCTLS)?;
    rules.insert(libc::SYS_ioctl, if profile == Profile::Gpu { Vec::new() } else { ioctls });
    compile(rules, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow)
}

fn compile(
    rules: Rules,
    otherwise: SeccompAction,
    listed: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    SeccompFilter::new(rules, otherwise, listed, std::env::consts::ARCH.try_into()?)?.try_into()
}

fn condition(index: u8, op: SeccompCmpOp, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, op, value)
}

fn one(index: u8, op: SeccompCmpOp, value: u64) -> Result<Vec<SeccompRule>, BackendError> {
    Ok(vec![SeccompRule::new(vec![condition(index, op, value)?])?])
}

fn any_of(
    index: u8,
    values: impl IntoIterator<Item = u64>,
) -> Result<Vec<SeccompRule>, BackendError> {
    let rule = |value| SeccompRule::new(vec![condition(index, SeccompCmpOp::Eq, value)?]);
    values.into_iter().map(rule).collect()
}
