//! Every `unsafe` block of this crate: starting a process between `clone` and `execve`, and taking
//! over inherited descriptors. Nothing here decides what a process may do; callers fill in
//! [`Exec`] and this module carries it out.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::process::{Pid, Resource, Rlimit, Signal, set_parent_process_death_signal};
use rustix::thread::{CapabilitySet, Gid, Uid, UnshareFlags};
use seccompiler::BpfProgram;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process to start. Everything is prepared before the clone, because the child of a threaded
/// process may only make plain system calls: no allocation, no lock.
pub(crate) struct Exec {
    /// The executable.
    pub(crate) program: CString,
    /// Arguments, the program's name first. The environment is empty.
    pub(crate) args: Vec<CString>,
    /// Descriptors and their numbers in the child; all others are closed by the exec.
    pub(crate) fds: Vec<(OwnedFd, RawFd)>,
    /// Sets of `CLONE_NEW*` flags to try in turn, the best first; the last should be 0. With
    /// `CLONE_NEWPID` comes a `/proc` that shows the new namespace.
    pub(crate) clone_flags: Vec<libc::c_int>,
    /// Namespaces that the child leaves one by one, as far as it is permitted.
    pub(crate) unshare: &'static [(UnshareFlags, &'static str)],
    /// Soft and hard limits.
    pub(crate) limits: Vec<(Resource, u64)>,
    /// Working directory.
    pub(crate) directory: CString,
    /// What is done to a program that cannot confine itself.
    pub(crate) confine: Option<Confine>,
}

/// Confinement of a program that knows nothing of DistOS.
pub(crate) struct Confine {
    /// Its own uid and gid, if the kernel may give it one.
    pub(crate) uid: Option<u32>,
    /// A Landlock ruleset.
    pub(crate) landlock: Option<OwnedFd>,
    /// System calls that it may not make.
    pub(crate) filter: BpfProgram,
}

/// A step that was not permitted, and without which the process runs all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Skipped {
    pub(crate) step: &'static str,
    pub(crate) error: Errno,
}

/// A started process.
pub(crate) struct Started {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
    /// The `CLONE_NEW*` flags that were granted.
    pub(crate) clone_flags: libc::c_int,
    pub(crate) skipped: Vec<Skipped>,
}

/// What the child could not do. The child sends a step's number in this list and the error.
const STEPS: [&str; 13] = [
    "execute",
    "place descriptors",
    "enter directory",
    "session",
    "end with parent",
    "map user",
    "mount /proc",
    "close descriptors",
    "rlimits",
    "own uid",
    "no_new_privs",
    "landlock",
    "seccomp",
];
const EXECUTE: usize = 0;
const PLACE: usize = 1;
const DIRECTORY: usize = 2;
/// Steps from this number on are `Exec::unshare`'s.
const UNSHARE: usize = 64;
const REPORT_BYTES: usize = 8;
/// More reports than steps never come; a reader stops here.
const MAX_REPORT_BYTES: u64 = 64 * REPORT_BYTES as u64;

/// Starts the process and waits until it has executed its program or failed to.
pub(crate) fn start(mut exec: Exec) -> io::Result<Started> {
    let floor = exec.fds.iter().map(|(_, number)| number + 1).max().unwrap_or(0).max(16);
    for (fd, _) in &mut exec.fds {
        *fd = rustix::io::fcntl_dupfd_cloexec(&*fd, floor)?;
    }
    let (reader, mut writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    writer = rustix::io::fcntl_dupfd_cloexec(&writer, floor)?;
    let map = UserMap::of_this_process();
    let argv = pointers(&exec.args);
    let envp = [ptr::null()];

    let mut error = Errno::INVAL;
    for flags in exec.clone_flags.iter().copied() {
        match clone_process(flags) {
            Ok(None) => {
                let image = Image { program: &exec.program, argv: &argv, envp: &envp };
                child(&exec, image, flags, &map, &reader, &writer, floor)
            }
            Ok(Some((pid, pidfd))) => {
                drop(writer);
                let skipped = read_reports(reader, exec.unshare).inspect_err(|_| reap(&pidfd))?;
                return Ok(Started { pid, pidfd, clone_flags: flags, skipped });
            }
            Err(e) => error = e,
        }
    }
    Err(error.into())
}

/// Takes over a descriptor that this process inherited under a number it was told.
///
/// # Errors
/// `EBADF` if nothing is open there. The caller takes each number once, before anything else could
/// own it.
pub(crate) fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number < 3 {
        return Err(Errno::BADF.into());
    }
    // SAFETY: the borrow ends with this statement and F_GETFD changes nothing; on a closed number
    // it fails with EBADF.
    rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) })?;
    // SAFETY: the number is open, and by this function's contract it was inherited and nobody in
    // this process owns it yet.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    Ok(fd)
}

/// Watches a descriptor for being readable; within a tokio runtime.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, is owned by the `AsyncFd` for as long as that lives, and names
    // the same descriptor throughout.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// Makes a process of this program, as `fork` does. `None` in the child.
fn clone_process(flags: libc::c_int) -> Result<Option<(Pid, OwnedFd)>, Errno> {
    let mut pidfd: RawFd = -1;
    let flags = libc::c_long::from(flags | libc::CLONE_PIDFD | libc::SIGCHLD);
    // SAFETY: without CLONE_VM the child runs on a copy of this memory, so nothing is shared but
    // descriptors; `pidfd` outlives the call. The child goes straight to `child`, which makes only
    // system calls and never returns.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, &raw mut pidfd, 0, 0) };
    match pid {
        0 => Ok(None),
        1.. => {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::INVAL)?;
            // SAFETY: the call succeeded, so it stored a new descriptor that nobody else owns.
            Ok(Some((pid, unsafe { OwnedFd::from_raw_fd(pidfd) })))
        }
        _ => Err(last_errno()),
    }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
}

fn reap(pidfd: &OwnedFd) {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    // The child has exited or is about to: its report said so.
    let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
}

/// Reads what the child reported until its program runs (the pipe then closes by itself).
fn read_reports(
    reader: OwnedFd,
    unshare: &'static [(UnshareFlags, &'static str)],
) -> io::Result<Vec<Skipped>> {
    let mut bytes = Vec::new();
    File::from(reader).take(MAX_REPORT_BYTES).read_to_end(&mut bytes)?;
    let mut skipped = Vec::new();
    for report in bytes.chunks_exact(REPORT_BYTES) {
        let (step, error) = report.split_at(4);
        let number = |b: &[u8]| b.try_into().map(i32::from_ne_bytes).unwrap_or(-1);
        let index = usize::try_from(number(step)).unwrap_or(usize::MAX);
        let error = Errno::from_raw_os_error(number(error));
        let name = STEPS.get(index).copied();
        let name =
            name.or_else(|| index.checked_sub(UNSHARE).and_then(|i| Some(unshare.get(i)?.1)));
        let step = name.unwrap_or("unknown step");
        if index <= DIRECTORY {
            let error = io::Error::from(error);
            return Err(io::Error::new(error.kind(), format!("cannot {step}: {error}")));
        }
        skipped.push(Skipped { step, error });
    }
    Ok(skipped)
}

/// The lines that make this process's user the root of a new user namespace.
struct UserMap {
    uid: String,
    gid: String,
}

impl UserMap {
    fn of_this_process() -> UserMap {
        let line = |id: u32| format!("0 {id} 1\n");
        UserMap {
            uid: line(rustix::process::geteuid().as_raw()),
            gid: line(rustix::process::getegid().as_raw()),
        }
    }

    fn install(&self) -> Result<(), Errno> {
        let put = |path: &CStr, text: &str| {
            let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
            rustix::io::write(&file, text.as_bytes()).map(drop)
        };
        put(c"/proc/self/uid_map", &self.uid)?;
        put(c"/proc/self/setgroups", "deny")?;
        put(c"/proc/self/gid_map", &self.gid)
    }
}

#[derive(Clone, Copy)]
struct Image<'a> {
    program: &'a CStr,
    argv: &'a [*const libc::c_char],
    envp: &'a [*const libc::c_char],
}

/// The child, from the clone to the exec. Only system calls on prepared memory.
fn child(
    exec: &Exec,
    image: Image<'_>,
    flags: libc::c_int,
    map: &UserMap,
    reader: &OwnedFd,
    writer: &OwnedFd,
    floor: RawFd,
) -> ! {
    // SAFETY: closes this process's copy of a descriptor; the `OwnedFd` belongs to the parent's
    // memory image and is never dropped here, because this function never returns.
    unsafe { libc::close(reader.as_raw_fd()) };
    let (step, error) = prepare(exec, flags, map, writer, floor).map_or_else(
        |failed| failed,
        |()| {
            // SAFETY: the strings and both null-terminated arrays outlive the call.
            unsafe {
                libc::execve(image.program.as_ptr(), image.argv.as_ptr(), image.envp.as_ptr())
            };
            (EXECUTE, last_errno())
        },
    );
    report(writer, step, error);
    // SAFETY: ends the process at once, without running anything of the parent's image.
    unsafe { libc::_exit(127) }
}

fn report(writer: &OwnedFd, step: usize, error: Errno) {
    let mut message = [0; REPORT_BYTES];
    message[..4].copy_from_slice(&(step as i32).to_ne_bytes());
    message[4..].copy_from_slice(&error.raw_os_error().to_ne_bytes());
    // If the parent is gone there is nobody to tell.
    let _ = rustix::io::write(writer, &message);
}

fn prepare(
    exec: &Exec,
    flags: libc::c_int,
    map: &UserMap,
    writer: &OwnedFd,
    floor: RawFd,
) -> Result<(), (usize, Errno)> {
    let soft = |step: usize, done: Result<(), Errno>| {
        if let Err(error) = done {
            report(writer, step, error);
        }
    };
    reset_signals();
    soft(3, rustix::process::setsid().map(drop));
    if flags & libc::CLONE_NEWUSER != 0 {
        soft(5, map.install());
    }
    soft(4, end_with_parent(writer));
    for (i, (flags, _)) in exec.unshare.iter().enumerate() {
        // SAFETY: CLONE_FILES is never among the flags, so no descriptor table is unshared.
        soft(UNSHARE + i, unsafe { rustix::thread::unshare_unsafe(*flags) });
    }
    if flags & libc::CLONE_NEWPID != 0 {
        soft(6, mount_proc());
    }
    for (fd, number) in &exec.fds {
        // SAFETY: `start` moved every source and the report pipe to `floor` or above, and every
        // target is below it, so this replaces nothing that is still needed. The target has no
        // owner in this process.
        if unsafe { libc::dup2(fd.as_raw_fd(), *number) } < 0 {
            return Err((PLACE, last_errno()));
        }
    }
    soft(7, close_others(exec, floor));
    rustix::process::chdir(exec.directory.as_c_str()).map_err(|e| (DIRECTORY, e))?;
    for (resource, value) in &exec.limits {
        soft(8, limit(*resource, *value));
    }
    if let Some(confine) = &exec.confine {
        if let Some(uid) = confine.uid {
            soft(9, become_user(uid).and_then(|()| end_with_parent(writer)));
        }
        soft(10, rustix::thread::set_no_new_privs(true));
        if let Some(ruleset) = &confine.landlock {
            soft(11, restrict(ruleset));
        }
        soft(12, seccompiler::apply_filter(&confine.filter).map_err(|_| last_errno()));
    }
    Ok(())
}

/// Nothing of the parent's signal handling reaches the program.
fn reset_signals() {
    // SAFETY: `empty` is a valid set once sigemptyset filled it in, both calls are
    // async-signal-safe, and no Rust code of the parent runs in this process afterwards.
    unsafe {
        let mut empty: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut empty);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const empty, ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

/// The kernel sends SIGKILL when the parent's thread ends. If that has happened already, the
/// report pipe has no reader any more.
fn end_with_parent(writer: &OwnedFd) -> Result<(), Errno> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let mut pipe = [PollFd::new(writer, PollFlags::empty())];
    poll(&mut pipe, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    if pipe[0].revents().contains(PollFlags::ERR) {
        // SAFETY: as in `child`.
        unsafe { libc::_exit(127) }
    }
    Ok(())
}

fn mount_proc() -> Result<(), Errno> {
    use rustix::mount::{mount, mount_change};
    mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(c"proc", c"/proc", c"proc", flags, None)
}

/// Closes at the exec what nobody placed. Descriptors of this program are close-on-exec anyway;
/// this covers what a library forgot and what the parent itself inherited.
fn close_others(exec: &Exec, floor: RawFd) -> Result<(), Errno> {
    for number in 3..floor {
        if !exec.fds.iter().any(|(_, placed)| *placed == number) {
            close_range(number, number)?;
        }
    }
    close_range(floor, RawFd::MAX)
}

fn close_range(first: RawFd, last: RawFd) -> Result<(), Errno> {
    // SAFETY: sets the close-on-exec flag and closes nothing.
    let done =
        unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC) };
    if done == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Lowers both limits to `value`, or to the hard limit if that is lower already.
pub(crate) fn limit(resource: Resource, value: u64) -> Result<(), Errno> {
    let hard = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
    let value = Some(value.min(hard));
    rustix::process::setrlimit(resource, Rlimit { current: value, maximum: value })
}

/// Asks for turns of `time` on a processor for this thread, and for all that it starts: shorter ones
/// that come the sooner (sched(7), `sched_runtime` of a normal thread, since Linux 6.12). An older
/// Linux takes the call and does as it always did.
pub(crate) fn take_turns_of(time: Duration) -> Result<(), Errno> {
    // SAFETY: plain numbers, of which every bit pattern is one.
    let mut attr: libc::sched_attr = unsafe { std::mem::zeroed() };
    attr.size = size_of::<libc::sched_attr>() as u32;
    attr.sched_nice = rustix::process::getpriority_process(None)?;
    attr.sched_runtime = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    // SAFETY: the call reads the structure, whose size is in it, and keeps no address.
    let set = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) };
    if set == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Gives up root for a uid and gid of one's own, and with it every capability, now and in any
/// later exec.
pub(crate) fn become_user(id: u32) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    // Each capability that this machine does not know fails; what is left is read back later.
    for bit in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        let _ = rustix::thread::remove_capability_from_bounding_set(one);
    }
    rustix::thread::set_thread_res_uid(uid, uid, uid)
}

fn restrict(ruleset: &OwnedFd) -> Result<(), Errno> {
    // SAFETY: the descriptor is open and the call reads no memory of this process.
    let done = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) };
    if done == 0 { Ok(()) } else { Err(last_errno()) }
}
