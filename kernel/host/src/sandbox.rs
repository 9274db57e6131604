//! Stage 2 of a sandbox, in the vat itself before it does anything else: an empty root directory,
//! its own uid, no capabilities, Landlock, a system call filter that denies by default (C3). Then
//! it looks at what really holds; a step that this machine refuses is reported, not hidden, and
//! `status` shows it.
//!
//! It does not limit how much of its permitted calls a vat makes; that is up to quotas.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use distos_abi::Fault;
use distos_rpc::boot::{Boot, MANIFEST_FD, Manifest, Protection};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::process::{DumpableBehavior, Resource, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::filter;
pub(crate) use crate::filter::foreign as foreign_filter;
use crate::pidns::read_bounded;
use crate::plan::{Profile, VatLimits};
use crate::spawn::{self, Handover};
use crate::sys;

/// The largest manifest that a vat reads.
pub(crate) const MAX_HANDOVER_BYTES: u64 = 64 << 10;
/// Landlock as far as this version knows it; an older kernel enforces what it can.
const LANDLOCK_ABI: ABI = ABI::V7;
/// Where the empty root is put together: a directory that every Linux has and no vat needs.
const STAGE: &str = "/proc";
/// The data directory's name under the empty root.
const DATA: &str = "/data";
/// How far a vat that runs tenants' programs stands back behind the services (nice(2)).
const PROGRAMS_NICE: i32 = 19;
const BACK_WAIT: Duration = Duration::from_millis(60);
const NAMESPACES: [&str; 5] = ["net", "ipc", "uts", "mnt", "cgroup"];

/// Confines this process for good and says what was seen to hold. To be called once, by the only
/// thread, before anything else is opened.
///
/// # Errors
/// [`Fault::Malformed`] if there is no manifest at [`MANIFEST_FD`]; [`Fault::Internal`] if the
/// process has threads already, which would stay outside.
pub fn enter() -> Result<Boot, Fault> {
    let broken = |e: &dyn std::fmt::Display| Fault::malformed(format!("manifest: {e}"));
    let fd = sys::inherited(MANIFEST_FD).map_err(|e| broken(&e))?;
    let bytes = read_bounded(fd, MAX_HANDOVER_BYTES).map_err(|e| broken(&e))?;
    let handover: Handover = serde_json::from_slice(&bytes).map_err(|e| broken(&e))?;
    if fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() > 1) {
        return Err(Fault::internal("the sandbox has to be entered before any thread starts"));
    }
    let fds = take_descriptors(&handover.manifest)?;
    let Handover { mut manifest, profile, limits, uid, kernel_namespaces } = handover;

    if profile == Profile::Jit {
        stand_back();
    }
    let mut found = Vec::new();
    let others = other_namespaces(&kernel_namespaces);
    let rooted = if profile == Profile::Gpu {
        Err("the vendor's libraries and device nodes stay visible".to_owned())
    } else if others.contains(&"mnt") {
        empty_root(manifest.data_dir.as_deref()).map_err(|e| format!("no empty root: {e}"))
    } else {
        Err("no mount namespace".to_owned())
    };
    found.push(namespaces_protection(&others, &rooted, profile));
    if let Some(dir) = &mut manifest.data_dir {
        *dir = enter_directory(dir, rooted.is_ok(), uid.is_some())
            .map_err(|e| Fault::internal(format!("{}: {e}", dir.display())))?;
    }
    let ruleset = vat_ruleset(manifest.data_dir.as_deref(), profile);
    found.push(change_user(uid, &limits));
    found.push(drop_capabilities());
    found.push(check_limits(&limits, uid.is_some()));
    found.push(forbid_dumps());
    found.push(Protection::keys_locked());
    found.push(forbid_privileges());
    let restricted = ruleset.and_then(RulesetCreated::restrict_self);
    let filtered = filter::install(profile);
    found.push(landlock_protection(restricted));
    found.push(seccomp_protection(filtered));
    Ok(Boot { manifest, protections: found, fds })
}

/// A tenant's program takes what time no service needs. Every vat has a session of its own, and Linux
/// divides time among sessions first (sched(7), autogroup); where it does not, there is no such file,
/// and what the vat does to its own threads has to do. Linux takes one such change in a tenth of a
/// second from whoever is not root.
fn stand_back() {
    for _ in 0..8 {
        match fs::write("/proc/self/autogroup", PROGRAMS_NICE.to_string()) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => thread::sleep(BACK_WAIT),
            _ => return,
        }
    }
}

fn take_descriptors(manifest: &Manifest) -> Result<BTreeMap<i32, OwnedFd>, Fault> {
    let fixed = [manifest.kernel_fd, manifest.control_fd, manifest.table_fd, manifest.guard_fd];
    let edges = manifest.edges.iter().map(|edge| edge.fd);
    let numbers = fixed.into_iter().chain(manifest.listen_fd).chain(edges);
    let numbers: BTreeSet<i32> = numbers.chain(manifest.devices.values().copied()).collect();
    let take = |number| match sys::inherited(number) {
        Ok(fd) => Ok((number, fd)),
        Err(e) => Err(Fault::malformed(format!("manifest: descriptor {number}: {e}"))),
    };
    numbers.into_iter().map(take).collect()
}

fn protection(name: &str, found: Result<String, String>) -> Protection {
    let enforced = found.is_ok();
    Protection { name: name.to_owned(), enforced, detail: found.unwrap_or_else(|why| why) }
}

/// This process's namespaces, by name.
pub(crate) fn namespaces() -> BTreeMap<String, String> {
    let link = |name: &str| fs::read_link(format!("/proc/self/ns/{name}"));
    NAMESPACES
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), link(name).ok()?.display().to_string())))
        .collect()
}

/// The namespaces in which this process is apart from the kernel.
fn other_namespaces(kernel: &BTreeMap<String, String>) -> Vec<&'static str> {
    let own = namespaces();
    let apart = |name: &&str| match (own.get(*name), kernel.get(*name)) {
        (Some(own), Some(kernel)) => own != kernel,
        _ => false,
    };
    NAMESPACES.into_iter().filter(apart).collect()
}

fn namespaces_protection(
    others: &[&str],
    rooted: &Result<(), String>,
    profile: Profile,
) -> Protection {
    let missing: Vec<&str> = NAMESPACES.into_iter().filter(|n| !others.contains(n)).collect();
    let root = rooted.as_ref().map_or_else(Clone::clone, |()| "empty root".to_owned());
    let own = if others.is_empty() { "none".to_owned() } else { others.join(", ") };
    let detail = format!("own: {own}; {root}");
    if !missing.is_empty() {
        return protection("namespaces", Err(format!("{detail}; shared: {}", missing.join(", "))));
    }
    let enforced = rooted.is_ok() || profile == Profile::Gpu;
    protection("namespaces", if enforced { Ok(detail) } else { Err(detail) })
}

/// Puts an empty, read-only directory in the place of `/`, with the data directory in it.
fn empty_root(data: Option<&Path>) -> io::Result<()> {
    use rustix::mount::{mount, mount_bind, mount_change, mount_remount, unmount};
    let strict = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    mount("tmpfs", STAGE, "tmpfs", strict, Some(c"mode=0755,size=64k,nr_inodes=8"))?;
    if let Some(data) = data {
        let place = format!("{STAGE}{DATA}");
        fs::create_dir(&place)?;
        mount_bind(data, &place)?;
        // Inside a user namespace flags of the original mount may be locked. Nothing depends on
        // these: the filter refuses every exec.
        let _ = mount_remount(&place, MountFlags::BIND | strict, c"");
    }
    mount_remount(STAGE, MountFlags::BIND | MountFlags::RDONLY | strict, c"")?;
    rustix::process::chdir(STAGE)?;
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir("/")?)
}

/// Makes the data directory the working directory and returns the path by which the vat reaches
/// it. Under a new uid the directories above it may be closed, but `.` needs none of them.
fn enter_directory(dir: &Path, rooted: bool, new_uid: bool) -> io::Result<PathBuf> {
    let dir = if rooted { Path::new(DATA) } else { dir };
    rustix::process::chdir(dir)?;
    Ok(if new_uid && !rooted { PathBuf::from(".") } else { dir.to_owned() })
}

fn base_ruleset() -> Result<RulesetCreated, RulesetError> {
    Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK_ABI))?
        .handle_access(AccessNet::from_all(LANDLOCK_ABI))?
        .scope(Scope::from_all(LANDLOCK_ABI))?
        .create()
}

fn own_files() -> BitFlags<AccessFs> {
    AccessFs::ReadFile
        | AccessFs::ReadDir
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::Refer
}

fn vat_ruleset(data: Option<&Path>, profile: Profile) -> Result<RulesetCreated, RulesetError> {
    let rules = base_ruleset()?.add_rules(path_beneath_rules(data, own_files()))?;
    if profile != Profile::Gpu {
        return Ok(rules);
    }
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    rules
        .add_rules(path_beneath_rules(LIBRARIES, read | AccessFs::Execute))?
        .add_rules(path_beneath_rules(["/proc", "/sys"], read))?
        .add_rules(path_beneath_rules(nvidia_nodes(), device))
}

const LIBRARIES: [&str; 6] =
    ["/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/ld.so.preload"];

fn nvidia_nodes() -> Vec<PathBuf> {
    let nodes = fs::read_dir("/dev").into_iter().flatten().flatten();
    nodes
        .filter(|node| node.file_name().as_encoded_bytes().starts_with(b"nvidia"))
        .map(|node| node.path())
        .collect()
}

/// What a foreign program may reach: the system's programs and libraries, and its own directory.
/// `None` where Linux has no Landlock.
pub(crate) fn foreign_ruleset(
    data: &Path,
    program: &Path,
) -> Result<Option<OwnedFd>, RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let rules = base_ruleset()?
        .add_rules(path_beneath_rules(LIBRARIES, read | AccessFs::Execute))?
        .add_rules(path_beneath_rules([program], read | AccessFs::Execute))?
        .add_rules(path_beneath_rules(["/dev/null", "/dev/urandom"], AccessFs::ReadFile))?
        .add_rules(path_beneath_rules([data], own_files()))?;
    Ok(rules.into())
}

fn change_user(uid: Option<u32>, limits: &VatLimits) -> Protection {
    let Some(uid) = uid else {
        let detail = "has the kernel's uid, and the kernel may not give out others";
        return protection("own uid", Err(detail.to_owned()));
    };
    // Threads are counted by uid; a vat has its uid for itself. Whether the limit holds is read
    // back with the others.
    let _ = sys::limit(Resource::Nproc, limits.threads);
    let changed = sys::become_user(uid);
    // Changing the uid forgot the signal by which the kernel's death ends this process.
    let tied = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let seen = (rustix::process::getuid().as_raw(), rustix::process::geteuid().as_raw());
    protection(
        "own uid",
        match changed.and(tied) {
            Ok(()) if seen == (uid, uid) => Ok(format!("uid {uid}")),
            Ok(()) => Err(format!("uids are {seen:?}")),
            Err(e) => Err(format!("uid {uid}: {e}")),
        },
    )
}

fn drop_capabilities() -> Protection {
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    let dropped = rustix::thread::set_capabilities(None, sets);
    let seen = rustix::thread::capabilities(None);
    protection(
        "capabilities",
        match (dropped, seen) {
            (Ok(()), Ok(seen)) if seen == sets => Ok("none".to_owned()),
            (Ok(()), Ok(seen)) => Err(format!("{:?} are left", seen.permitted)),
            (Err(e), _) | (_, Err(e)) => Err(e.to_string()),
        },
    )
}

fn check_limits(limits: &VatLimits, own_uid: bool) -> Protection {
    let mut wanted = vec![
        (Resource::Core, 0, "core"),
        (Resource::Nofile, limits.open_files, "files"),
        (Resource::Data, limits.memory_bytes, "memory"),
        (Resource::Memlock, spawn::locked_bytes(), "locked"),
    ];
    if own_uid {
        wanted.push((Resource::Nproc, limits.threads, "threads"));
    }
    let holds =
        |resource, limit| rustix::process::getrlimit(resource).maximum.is_some_and(|m| m <= limit);
    let (held, loose): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|(r, l, _)| holds(*r, *l));
    let text = |list: Vec<(Resource, u64, &str)>| {
        list.iter().map(|(_, limit, name)| format!("{name} {limit}")).collect::<Vec<_>>().join(", ")
    };
    let threads = if own_uid { "" } else { "; threads are not limited" };
    protection(
        "rlimits",
        if loose.is_empty() {
            Ok(format!("{}{threads}", text(held)))
        } else {
            Err(format!("not in force: {}{threads}", text(loose)))
        },
    )
}

/// Keeps this process's memory out of core files and away from debuggers.
pub(crate) fn forbid_dumps() -> Protection {
    let set = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let seen = rustix::process::dumpable_behavior();
    protection(
        "no core dumps",
        match (set, seen) {
            (Ok(()), Ok(DumpableBehavior::NotDumpable)) => {
                Ok("not dumpable, no debugger".to_owned())
            }
            (Ok(()), Ok(other)) => Err(format!("{other:?}")),
            (Err(e), _) | (_, Err(e)) => Err(e.to_string()),
        },
    )
}

fn forbid_privileges() -> Protection {
    let set = rustix::thread::set_no_new_privs(true);
    protection(
        "no_new_privs",
        match (set, rustix::thread::no_new_privs()) {
            (Ok(()), Ok(true)) => Ok("set".to_owned()),
            (Ok(()), Ok(false)) => Err("not set".to_owned()),
            (Err(e), _) | (_, Err(e)) => Err(e.to_string()),
        },
    )
}

/// Landlock counts as enforced if listing `/`, which every uid may do, is refused for that reason.
fn landlock_protection(
    restricted: Result<landlock::RestrictionStatus, RulesetError>,
) -> Protection {
    let listed = fs::read_dir("/").map(drop).map_err(|e| e.kind());
    let status = match restricted {
        Ok(status) => status.ruleset,
        Err(e) => return protection("landlock", Err(e.to_string())),
    };
    protection(
        "landlock",
        match (status, listed) {
            (RulesetStatus::NotEnforced, _) => Err("this Linux has no Landlock".to_owned()),
            (_, Ok(())) => Err("the root directory could still be listed".to_owned()),
            (RulesetStatus::FullyEnforced, Err(_)) => {
                Ok("files, TCP, signals, abstract sockets".to_owned())
            }
            (_, Err(_)) => Ok("files; this Linux knows a part of the rest".to_owned()),
        },
    )
}

/// The filter counts as enforced if it is installed and a new socket is refused.
fn seccomp_protection(installed: Result<(), Fault>) -> Protection {
    use rustix::net::{AddressFamily, SocketType, socket};
    let tried = socket(AddressFamily::INET, SocketType::STREAM, None);
    protection(
        "seccomp",
        match (installed, tried) {
            (Err(fault), _) => Err(fault.to_string()),
            (Ok(()), Err(rustix::io::Errno::PERM)) => {
                Ok("denies by default; socket() refused".to_owned())
            }
            (Ok(()), Err(e)) => Err(format!("socket() failed with {e}, not by the filter")),
            (Ok(()), Ok(_)) => Err("socket() was still permitted".to_owned()),
        },
    )
}
