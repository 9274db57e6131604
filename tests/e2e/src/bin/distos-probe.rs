//! A service that was taken over: it starts as any service does, and then tries what nobody handed
//! it. It says on standard error, as one line of JSON, what its sandbox reported and what was
//! permitted all the same, and then serves nothing until its kernel ends.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::{Error, ErrorKind};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::rc::Rc;

use distos_abi::Fault;
use distos_rpc::boot::{Boot, Protection};
use distos_rpc::{Facet, Service, Vat, fault_of};
use futures::future::LocalBoxFuture;
use nix::sched::CloneFlags;
use nix::unistd::Pid;
use rustix::fs::{CWD, FallocateFlags, FileType, Mode};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use serde_json::json;

fn main() -> ExitCode {
    let boot = match distos_host::sandbox::enter() {
        Ok(boot) => boot,
        Err(fault) => {
            eprintln!("distos-probe: {fault} (a kernel starts it, in the place of a service)");
            return ExitCode::FAILURE;
        }
    };
    let permitted = attempts(&boot);
    let loose = |p: &&Protection| !p.enforced;
    let report = json!({
        "vat": boot.manifest.vat,
        "loose": boot.protections.iter().filter(loose).map(|p| p.name.as_str()).collect::<Vec<_>>(),
        "tried": permitted.len(),
        "permitted": permitted.iter().filter(|(_, tried)| tried.is_err()).collect::<BTreeMap<_, _>>(),
    });
    eprintln!("PROBE {report}");
    distos_rpc::run(boot, start)
}

/// Of each attempt, whether it was refused as it should be; what happened instead otherwise.
type Refused = Result<(), String>;

fn attempts(boot: &Boot) -> BTreeMap<&'static str, Refused> {
    let setting = |name: &str| boot.manifest.params.get(name).cloned().unwrap_or_default();
    let data = boot.manifest.data_dir.as_deref().unwrap_or(Path::new("."));
    let table = &boot.fds[&boot.manifest.table_fd];
    let parent = rustix::process::getppid().unwrap_or(rustix::process::Pid::INIT);
    let more = Rlimit { current: Some(1 << 30), maximum: Some(1 << 30) };
    let mut tried = BTreeMap::new();
    // Files: not there, or not permitted.
    for (what, path) in [
        ("read a file of the system", "/etc/passwd"),
        ("read the shadow passwords", "/etc/shadow"),
        ("read the kernel's memory", "/proc/1/mem"),
        ("read the parent's environment", "/proc/1/environ"),
        ("read a block device", "/dev/vda"),
    ] {
        tried.insert(what, hidden(File::open(path)));
    }
    tried.insert("list the root directory's files", hidden(fs::read_dir("/etc")));
    let scratch = std::env::temp_dir();
    tried.insert("write into /tmp", hidden(made(&scratch)));
    tried.insert("write beside its directory", hidden(made(&data.join(".."))));
    tried.insert("list another service's directory", hidden(fs::read_dir(setting("other"))));
    let key = Path::new(&setting("other")).join("../../kernel/kernel.key");
    tried.insert("read the kernel's key", hidden(File::open(key)));
    let device = rustix::fs::makedev(1, 3);
    let node =
        rustix::fs::mknodat(CWD, data.join("n"), FileType::CharacterDevice, Mode::RWXU, device);
    tried.insert("make a device node", hidden(node.map_err(Error::from)));
    // The capability table.
    let forged = rustix::io::pwrite(table, &[0xff; 64], 0);
    tried.insert("write to the capability table", unchanged(forged));
    tried.insert("truncate the capability table", unchanged(rustix::fs::ftruncate(table, 0)));
    let punched = rustix::fs::fallocate(
        table,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        0,
        4096,
    );
    tried.insert("punch a hole into the capability table", unchanged(punched));
    tried.insert("open the capability table for writing", hidden(reopen(table)));
    // Processes and the network: the call itself is not permitted.
    let tcp = TcpStream::connect("127.0.0.1:9");
    tried.insert("connect to an address", forbidden(tcp));
    tried.insert("send to an address", forbidden(UdpSocket::bind("127.0.0.1:0")));
    tried.insert("connect to another service", forbidden(UnixStream::connect(setting("socket"))));
    let (family, kind) = (AddressFamily::UNIX, SocketType::DGRAM);
    let pair = rustix::net::socketpair(family, kind, SocketFlags::CLOEXEC, None);
    tried.insert("make a datagram socket", forbidden(pair.map_err(Error::from)));
    tried.insert("start a program", forbidden(Command::new("/bin/true").spawn()));
    let trace = nix::sys::ptrace::attach(Pid::from_raw(parent.as_raw_pid()));
    tried.insert("trace its parent", forbidden(trace.map_err(Error::from)));
    tried.insert("read its parent's memory", forbidden(peek(parent)));
    let signal = rustix::process::kill_process(parent, rustix::process::Signal::CONT);
    tried.insert("signal its parent", forbidden(signal.map_err(Error::from)));
    // Its own confinement.
    let dumps = rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable);
    tried.insert("permit dumps of its memory", forbidden(dumps.map_err(Error::from)));
    let limit = rustix::process::setrlimit(Resource::Core, more);
    tried.insert("raise its limits", forbidden(limit.map_err(Error::from)));
    let root = nix::unistd::setuid(nix::unistd::Uid::from_raw(0));
    tried.insert("become root", forbidden(root.map_err(Error::from)));
    let unshared = nix::sched::unshare(CloneFlags::CLONE_NEWUSER);
    tried.insert("get a user namespace", forbidden(unshared.map_err(Error::from)));
    let mounted =
        rustix::mount::mount("none", data, "tmpfs", rustix::mount::MountFlags::empty(), None);
    tried.insert("mount a file system", forbidden(mounted.map_err(Error::from)));
    tried
}

/// Refused as what is not there or not permitted.
fn hidden<T>(tried: Result<T, Error>) -> Refused {
    match tried {
        Err(e) if e.kind() == ErrorKind::NotFound || no(&e) => Ok(()),
        other => Err(describe(other)),
    }
}

/// Refused as not permitted: any other error is one of a call that was carried out.
fn forbidden<T>(tried: Result<T, Error>) -> Refused {
    match tried {
        Err(e) if no(&e) => Ok(()),
        other => Err(describe(other)),
    }
}

/// Refused by the descriptor, by its seals or by the filter.
fn unchanged<T>(tried: Result<T, rustix::io::Errno>) -> Refused {
    use rustix::io::Errno;
    match tried {
        Err(Errno::BADF | Errno::PERM | Errno::INVAL | Errno::ACCESS) => Ok(()),
        other => Err(describe(other)),
    }
}

fn no(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem)
}

fn describe<T, E: Display>(tried: Result<T, E>) -> String {
    tried.map_or_else(|e| format!("carried out: {e}"), |_| "permitted".to_owned())
}

/// Leaves nothing behind where it is permitted after all.
fn made(directory: &Path) -> Result<(), Error> {
    let path = directory.join(format!("distos-probe.{}", std::process::id()));
    File::create(&path)?;
    fs::remove_file(&path)
}

fn reopen(table: &OwnedFd) -> Result<File, Error> {
    let path = format!("/proc/self/fd/{}", table.as_raw_fd());
    OpenOptions::new().read(true).write(true).open(path)
}

fn peek(parent: rustix::process::Pid) -> Result<(), Error> {
    let remote = [nix::sys::uio::RemoteIoVec { base: 4096, len: 8 }];
    let mut bytes = [0; 8];
    let mut local = [std::io::IoSliceMut::new(&mut bytes)];
    let pid = Pid::from_raw(parent.as_raw_pid());
    nix::sys::uio::process_vm_readv(pid, &mut local, &remote)?;
    Ok(())
}

/// A probe in the scheduler's place has the templates started, so that they are probed too.
async fn start(vat: Vat) -> Result<Rc<dyn Service>, Fault> {
    if let Some(template) = vat.param("start").map(str::to_owned) {
        let spawner = vat.spawner().await?;
        tokio::task::spawn_local(async move {
            let mut request = spawner.start_request();
            request.get().set_template(&template);
            if let Err(error) = request.send().promise.await {
                eprintln!("distos-probe: {template}: {}", fault_of(&error));
            }
        });
    }
    Ok(Rc::new(Nothing))
}

struct Nothing;

impl Service for Nothing {
    fn open(
        self: Rc<Self>,
        _: Facet,
    ) -> Result<Box<dyn capnp::private::capability::ClientHook>, Fault> {
        Err(Fault::not_found("it serves nothing"))
    }

    fn drain(self: Rc<Self>) -> LocalBoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}
