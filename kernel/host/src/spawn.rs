//! Stage 1 of a sandbox, in the kernel: a new process in namespaces of its own, with the
//! descriptors that it was given and nothing else (C3). A vat then confines itself further
//! ([`crate::sandbox`]); a foreign program, which knows nothing of DistOS, is confined before its
//! first instruction.
//!
//! A started process dies with the **thread** that started it (`PR_SET_PDEATHSIG`), so the kernel
//! starts processes from its main thread.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use distos_rpc::boot::{MANIFEST_FD, Manifest};
use futures::future::LocalBoxFuture;
use rustix::fs::{AtFlags, MemfdFlags, Mode, OFlags, SealFlags};
use rustix::process::{Pid, Resource, Signal, WaitId, WaitIdOptions};
use rustix::thread::{CapabilitySet, Gid, Uid, UnshareFlags};
use serde::{Deserialize, Serialize};

use crate::plan::{ForeignPlan, Profile, VatLimits};
use crate::sandbox;
use crate::start::make_dir;
use crate::sys::{self, Confine, Exec, Skipped, Started};

/// The program of a builtin vat: this very binary, even if its file was replaced meanwhile.
pub const SELF_PROGRAM: &str = "/proc/self/exe";

/// Vats get uids and gids from this number on: far above people's and distributions' ranges.
const FIRST_UID: u32 = 0x4445_0000;

/// The uid and gid of the `index`-th process that this kernel starts.
pub fn vat_uid(index: u16) -> u32 {
    FIRST_UID + u32::from(index)
}

/// A vat to start.
#[derive(Debug)]
pub struct SpawnSpec {
    /// The executable; [`SELF_PROGRAM`] for a builtin.
    pub program: PathBuf,
    /// Arguments, the program's name first: `["distos", "vat"]`.
    pub args: Vec<String>,
    /// The manifest. Descriptor numbers in it are filled in here, and `data_dir` becomes the
    /// directory's name inside the sandbox.
    pub manifest: Manifest,
    /// The descriptors that the manifest names.
    pub fds: VatFds,
    /// uid and gid, unlike any other process's ([`vat_uid`]).
    pub uid: u32,
    /// Which system calls it may make.
    pub profile: Profile,
    /// Its resource limits.
    pub limits: VatLimits,
}

/// What a vat holds when it starts.
#[derive(Debug)]
pub struct VatFds {
    /// Stream socket to the kernel.
    pub kernel: OwnedFd,
    /// Sequenced-packet socket for new edges.
    pub control: OwnedFd,
    /// The capability table, read-only.
    pub table: OwnedFd,
    /// The vat's guard page, writable.
    pub guard: OwnedFd,
    /// A listening socket.
    pub listen: Option<OwnedFd>,
    /// Ends of edges, in the order of the manifest's `edges`.
    pub edges: Vec<OwnedFd>,
    /// Devices by name.
    pub devices: BTreeMap<String, OwnedFd>,
    /// Where its standard output and error go; the kernel's standard error if `None`.
    pub log: Option<OwnedFd>,
}

impl VatFds {
    /// Gives every descriptor but the log a number above [`MANIFEST_FD`] and writes it into the
    /// manifest.
    ///
    /// # Errors
    /// The manifest names more or fewer edges than there are descriptors.
    pub fn place(self, manifest: &mut Manifest) -> io::Result<Vec<(OwnedFd, RawFd)>> {
        if manifest.edges.len() != self.edges.len() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "edges and descriptors differ",
            ));
        }
        let mut placed = Vec::new();
        let mut place = |fd: OwnedFd| {
            let number = MANIFEST_FD + 1 + placed.len() as RawFd;
            placed.push((fd, number));
            number
        };
        manifest.kernel_fd = place(self.kernel);
        manifest.control_fd = place(self.control);
        manifest.table_fd = place(self.table);
        manifest.guard_fd = place(self.guard);
        manifest.listen_fd = self.listen.map(&mut place);
        for (edge, fd) in manifest.edges.iter_mut().zip(self.edges) {
            edge.fd = place(fd);
        }
        manifest.devices = self.devices.into_iter().map(|(name, fd)| (name, place(fd))).collect();
        Ok(placed)
    }
}

/// What stage 1 tells stage 2, as JSON in the sealed memfd at [`MANIFEST_FD`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Handover {
    pub(crate) manifest: Manifest,
    pub(crate) profile: Profile,
    pub(crate) limits: VatLimits,
    /// `None` where the kernel may not hand out uids.
    pub(crate) uid: Option<u32>,
    /// The kernel's own namespaces, so that the vat can see that its own are others.
    pub(crate) kernel_namespaces: BTreeMap<String, String>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// A running vat, as its supervisor sees it.
pub trait Run {
    /// Its process's id in this PID namespace.
    fn pid(&self) -> i32;

    /// Ends it at once; nothing happens if it has ended.
    fn kill(&self);

    /// Resolves when it has ended, also for several tasks and also afterwards.
    fn wait(&self) -> LocalBoxFuture<'_, io::Result<Exit>>;
}

/// A running process. Dropping it kills and reaps it.
#[derive(Debug)]
pub struct Running {
    pid: Pid,
    pidfd: OwnedFd,
    exit: OnceLock<Exit>,
    skipped: Vec<Skipped>,
}

const NAMESPACES: &[(UnshareFlags, &str)] = &[
    (UnshareFlags::NEWNET, "net namespace"),
    (UnshareFlags::NEWIPC, "ipc namespace"),
    (UnshareFlags::NEWUTS, "uts namespace"),
    (UnshareFlags::NEWNS, "mnt namespace"),
    (UnshareFlags::NEWCGROUP, "cgroup namespace"),
];

/// Starts a vat. It returns once the vat's program runs; what the sandbox turned out to enforce
/// comes from the vat itself.
///
/// # Errors
/// The program cannot be executed, or its directory cannot be prepared. A namespace or a limit
/// that this machine refuses is no error: see [`Running::skipped`].
pub fn spawn_vat(spec: SpawnSpec) -> io::Result<Running> {
    let SpawnSpec { program, args, mut manifest, fds, uid, profile, limits } = spec;
    let uid = mapped_uid(uid);
    if let Some(dir) = &manifest.data_dir {
        own_directory(dir, uid)?;
    }
    let mut placed = standard_streams(fds.log.as_ref())?;
    placed.extend(fds.place(&mut manifest)?);
    let kernel_namespaces = sandbox::namespaces();
    let handover = Handover { manifest, profile, limits, uid, kernel_namespaces };
    let handover = serde_json::to_vec(&handover)?;
    if handover.len() as u64 > sandbox::MAX_HANDOVER_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the manifest is over 64 KiB"));
    }
    placed.push((sealed_memfd(&handover)?, MANIFEST_FD));

    let exec = Exec {
        program: c_string(program.as_os_str().as_bytes())?,
        args: args.iter().map(|a| c_string(a.as_bytes())).collect::<io::Result<_>>()?,
        fds: placed,
        clone_flags: user_namespace_unless_root(),
        unshare: NAMESPACES,
        limits: resource_limits(&limits),
        directory: c"/".to_owned(),
        confine: None,
    };
    sys::start(exec).map(Running::new)
}

/// Starts a foreign program confined from outside: namespaces, uid, no_new_privs, limits, Landlock
/// (read and execute the system's libraries, read and write its own directory) and a filter
/// against the system calls that no such program needs. In its arguments `{fd}` becomes the number
/// of `fd` and `{data}` its working directory, which is `data_dir`.
///
/// # Errors
/// As [`spawn_vat`].
pub fn spawn_foreign(
    plan: &ForeignPlan,
    data_dir: &Path,
    fd: OwnedFd,
    uid: u32,
) -> io::Result<Running> {
    let uid = mapped_uid(uid);
    own_directory(data_dir, uid)?;
    // What it has to say is for whoever looks into its directory, not for the operator's screen.
    let log = fs::File::create(data_dir.join("output.log"))?;
    let mut fds = standard_streams(Some(&log.into()))?;
    fds.push((fd, MANIFEST_FD));
    let number = MANIFEST_FD.to_string();
    let name = plan.path.file_name().unwrap_or(plan.path.as_os_str());
    let args = plan.args.iter().map(|a| a.replace("{fd}", &number).replace("{data}", "."));
    let args = args.map(|a| c_string(a.as_bytes()));
    let mut limits = resource_limits(&plan.limits);
    if uid.is_some() {
        // Counted by uid, so it may only be lowered where the uid is the program's own.
        limits.push((Resource::Nproc, plan.limits.threads));
    }
    let exec = Exec {
        program: c_string(plan.path.as_os_str().as_bytes())?,
        args: [c_string(name.as_bytes())].into_iter().chain(args).collect::<io::Result<_>>()?,
        fds,
        clone_flags: user_namespace_unless_root(),
        unshare: NAMESPACES,
        limits,
        directory: c_string(data_dir.as_os_str().as_bytes())?,
        confine: Some(Confine {
            uid,
            landlock: sandbox::foreign_ruleset(data_dir, &plan.path).map_err(io::Error::other)?,
            filter: sandbox::foreign_filter().map_err(io::Error::other)?,
        }),
    };
    sys::start(exec).map(Running::new)
}

impl Running {
    pub(crate) fn new(started: Started) -> Running {
        let Started { pid, pidfd, skipped, .. } = started;
        Running { pid, pidfd, exit: OnceLock::new(), skipped }
    }

    /// The process's id in this PID namespace.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_pid()
    }

    /// What this machine did not permit at start: a step and why. Empty if everything held.
    pub fn skipped(&self) -> Vec<(String, String)> {
        self.skipped.iter().map(|s| (s.step.to_owned(), s.error.to_string())).collect()
    }

    /// Sends SIGKILL; nothing happens if the process has ended.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Sends SIGTERM; nothing happens if the process has ended.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    fn signal(&self, signal: Signal) {
        // The descriptor names this very process, so the one possible error is that it has ended.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, signal);
    }

    /// How the process ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        self.exit.get().copied().or_else(|| self.collect(WaitIdOptions::NOHANG).ok().flatten())
    }

    /// Waits until the process has ended; may be called by several tasks and again afterwards.
    ///
    /// # Errors
    /// The descriptor cannot be watched.
    pub async fn wait(&self) -> io::Result<Exit> {
        // A pidfd, because a SIGCHLD can be missed.
        let watched = sys::watch(self.pidfd.try_clone()?)?;
        loop {
            if let Some(exit) = self.exit() {
                return Ok(exit);
            }
            watched.readable().await?.clear_ready();
        }
    }

    fn collect(&self, options: WaitIdOptions) -> io::Result<Option<Exit>> {
        let id = WaitId::PidFd(self.pidfd.as_fd());
        let Some(status) = rustix::process::waitid(id, WaitIdOptions::EXITED | options)? else {
            return Ok(None);
        };
        let code = status.exit_status().map(Exit::Code);
        let exit = code.or(status.terminating_signal().map(Exit::Signal)).unwrap_or(Exit::Code(-1));
        Ok(Some(*self.exit.get_or_init(|| exit)))
    }
}

impl Run for Running {
    fn pid(&self) -> i32 {
        Running::pid(self)
    }

    fn kill(&self) {
        Running::kill(self);
    }

    fn wait(&self) -> LocalBoxFuture<'_, io::Result<Exit>> {
        Box::pin(Running::wait(self))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.exit().is_none() {
            self.kill();
            // An error means that it was reaped elsewhere: either way it is gone.
            let _ = self.collect(WaitIdOptions::empty());
        }
    }
}

/// A memfd with these bytes that nobody can change any more.
pub(crate) fn sealed_memfd(bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = fs::File::from(rustix::fs::memfd_create("manifest", flags)?);
    file.write_all(bytes)?;
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

pub(crate) fn c_string(bytes: &[u8]) -> io::Result<CString> {
    Ok(CString::new(bytes)?)
}

/// Standard input from nowhere; output and error to `log` or to this process's standard error.
fn standard_streams(log: Option<&OwnedFd>) -> io::Result<Vec<(OwnedFd, RawFd)>> {
    let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let log = match log {
        Some(log) => log.try_clone()?,
        None => write_only(io::stderr())?,
    };
    Ok(vec![(null, 0), (log.try_clone()?, 1), (log, 2)])
}

/// A terminal is opened again for writing alone, so that no vat can read what the operator types;
/// where that is refused (another user's terminal), output goes nowhere.
fn write_only(stream: io::Stderr) -> io::Result<OwnedFd> {
    if stream.is_terminal() {
        let flags = OFlags::WRONLY | OFlags::NOCTTY | OFlags::CLOEXEC;
        let path = format!("/proc/self/fd/{}", stream.as_fd().as_raw_fd());
        let open = |path: &str| rustix::fs::open(path, flags, Mode::empty());
        return Ok(open(&path).or_else(|_| open("/dev/null"))?);
    }
    stream.as_fd().try_clone_to_owned()
}

/// Only in a user namespace of its own may somebody who is not root leave the other namespaces.
fn user_namespace_unless_root() -> Vec<libc::c_int> {
    if rustix::process::geteuid().is_root() { vec![0] } else { vec![libc::CLONE_NEWUSER, 0] }
}

/// `RLIMIT_DATA` rather than `RLIMIT_AS`: a WASM engine reserves far more than it uses.
fn resource_limits(limits: &VatLimits) -> Vec<(Resource, u64)> {
    vec![
        (Resource::Core, 0),
        (Resource::Nofile, limits.open_files),
        (Resource::Data, limits.memory_bytes),
        (Resource::Memlock, locked_bytes()),
    ]
}

/// Pages that a vat may lock: it has few keys, and locked memory is taken from everybody.
const LOCKED_PAGES: u64 = 16;

/// The bytes of memory that a vat may lock.
pub(crate) fn locked_bytes() -> u64 {
    LOCKED_PAGES * rustix::param::page_size() as u64
}

/// `uid`, if this process may hand it and its files out: in a user namespace that knows it, with
/// the capabilities that it takes.
fn mapped_uid(uid: u32) -> Option<u32> {
    let needed = CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::CHOWN;
    let held = rustix::thread::capabilities(None).is_ok_and(|c| c.effective.contains(needed));
    let maps = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    (held && covers(&maps, uid)).then_some(uid)
}

/// Whether one of the lines `inside outside count` covers `uid`.
fn covers(maps: &str, uid: u32) -> bool {
    maps.lines().any(|line| {
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        matches!(numbers[..], [first, _, count] if (first..first + count).contains(&u64::from(uid)))
    })
}

/// Makes `dir` with mode 0700, and it and everything in it the property of `uid`: an image may
/// number its vats differently than the last one did.
fn own_directory(dir: &Path, uid: Option<u32>) -> io::Result<()> {
    make_dir(dir, 0o700)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    let Some(uid) = uid else { return Ok(()) };
    if fs::symlink_metadata(dir)?.uid() != uid {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(dir, flags, Mode::empty())?;
        own_tree(&fd, uid, 0)?;
    }
    Ok(())
}

/// Deeper directories than this are no vat's own work.
const MAX_TREE_DEPTH: usize = 16;

/// Children before parents, so that an interrupted change of owner is taken up again; by
/// descriptors and without following links, because a vat chose the names.
fn own_tree(dir: &OwnedFd, uid: u32, depth: usize) -> io::Result<()> {
    if depth > MAX_TREE_DEPTH {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "data directory is too deep"));
    }
    let (owner, group) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(uid)));
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if entry.file_type().is_dir() {
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            own_tree(&rustix::fs::openat(dir, name, flags, Mode::empty())?, uid, depth + 1)?;
        } else {
            rustix::fs::chownat(dir, name, owner, group, AtFlags::SYMLINK_NOFOLLOW)?;
        }
    }
    rustix::fs::fchown(dir, owner, group)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vat_gets_a_uid_only_where_the_user_namespace_has_it() {
        assert!(covers("         0          0 4294967295\n", vat_uid(7)));
        assert!(!covers("0 1000 1\n", vat_uid(0)));
        assert!(covers("0 1000 1\n1 100000 65536\n", 65536));
        assert!(!covers("nonsense", 0));
    }

    #[test]
    fn a_data_directory_is_closed_to_other_vats() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("a/b");
        fs::create_dir_all(&data).unwrap();
        fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
        own_directory(&data, None).unwrap();
        assert_eq!(fs::metadata(&data).unwrap().mode() & 0o777, 0o700);
    }
}
