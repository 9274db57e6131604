//! Real processes: what a sandboxed vat can still do, and who dies with whom. This binary has its
//! own `main`, because it is also the program that is started in the sandbox: a vat enters it
//! before any thread exists, and the usual test harness has threads.

#![allow(clippy::print_stdout, reason = "this is the test harness, whose output is its report")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use distos_host::pidns::{KernelSpec, inherited, inherited_plan, run_in_new_pid_namespace};
use distos_host::plan::{ForeignPlan, Profile, VatLimits};
use distos_host::sandbox;
use distos_host::spawn::{
    Exit, Running, SELF_PROGRAM, SpawnSpec, VatFds, spawn_foreign, spawn_vat, vat_uid,
};
use distos_rpc::boot::{EdgeEnd, Manifest, Protection};
use distos_types::HolderSecret;

const TESTS: &[(&str, fn())] = &[
    ("a_vat_can_do_its_work_and_nothing_else", a_vat_can_do_its_work_and_nothing_else),
    (
        "compiled_code_runs_only_where_the_profile_says_so",
        compiled_code_runs_only_where_the_profile_says_so,
    ),
    (
        "libraries_stay_visible_to_a_gpu_vat_and_secrets_do_not",
        libraries_stay_visible_to_a_gpu_vat_and_secrets_do_not,
    ),
    (
        "a_missing_program_is_an_error_and_leaves_no_process",
        a_missing_program_is_an_error_and_leaves_no_process,
    ),
    (
        "a_killed_vat_is_noticed_and_a_dropped_one_is_killed",
        a_killed_vat_is_noticed_and_a_dropped_one_is_killed,
    ),
    ("a_software_tpm_works_in_its_sandbox", a_software_tpm_works_in_its_sandbox),
    ("the_kernels_death_takes_its_vats_along", the_kernels_death_takes_its_vats_along),
    // The last one: it lowers this process's own limit, for good.
    ("a_vat_that_may_lock_no_memory_says_so", a_vat_that_may_lock_no_memory_says_so),
];

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.get(..2).map(|a| [a[0].as_str(), a[1].as_str()]) {
        Some(["distos", "vat"]) => return probe(),
        Some(["distos", "kernel"]) => return kernel(),
        _ => {}
    }
    if args.iter().any(|a| a == "--list") {
        if !args.iter().any(|a| a == "--ignored") {
            TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
        }
        return;
    }
    let filters: Vec<&String> = args[1..].iter().filter(|a| !a.starts_with('-')).collect();
    for (name, test) in TESTS {
        if filters.is_empty() || filters.iter().any(|f| name.contains(f.as_str())) {
            test();
            println!("{name}: ok");
        }
    }
}

// ---- the vat ---------------------------------------------------------------------------------

type Findings = BTreeMap<String, String>;

fn outcome<T, E: std::fmt::Display>(result: Result<T, E>) -> String {
    result.map_or_else(|e| format!("refused: {e}"), |_| "permitted".to_owned())
}

/// Tries everything and tells the test over the kernel's socket what happened.
fn probe() {
    let mut boot = sandbox::enter().expect("sandbox");
    let mut kernel = UnixStream::from(boot.fds.remove(&boot.manifest.kernel_fd).expect("kernel"));
    let data = boot.manifest.data_dir.clone().expect("data");
    if boot.manifest.params.contains_key("sleep") {
        kernel.write_all(b"ready").expect("report");
        loop {
            std::thread::park();
        }
    }
    let mut found: Findings = boot
        .protections
        .iter()
        .map(|p| (format!("protection {}", p.name), format!("{}: {}", p.enforced, p.detail)))
        .collect();
    let mut note = |name: &str, what: String| found.insert(name.to_owned(), what);
    note("descriptors", open_descriptors());
    note("passwd", outcome(fs::File::open("/etc/passwd")));
    note("shadow", outcome(fs::File::open("/etc/shadow")));
    note("library", outcome(fs::File::open("/etc/ld.so.cache")));
    note("other vat", outcome(fs::read_dir(Path::new(&boot.manifest.params["other"]))));
    note("outside", outcome(fs::File::create("/distos-probe")));
    note("tmp", outcome(fs::File::create("/tmp/distos-probe")));
    note("above", outcome(fs::File::create(data.join("../distos-probe"))));
    note("inside", outcome(own_files(&data)));
    note("old file", outcome(fs::OpenOptions::new().append(true).open(data.join("old/file"))));
    note("device node", outcome(make_device(&data)));
    note("socket", outcome(std::net::UdpSocket::bind("127.0.0.1:0")));
    note("unix socket", outcome(UnixStream::connect(&boot.manifest.params["socket"])));
    note("exec", outcome(std::process::Command::new("/bin/true").spawn()));
    note("signal", outcome(rustix::process::kill_process(parent(), rustix::process::Signal::CONT)));
    note(
        "signal self",
        outcome(rustix::process::kill_process(
            rustix::process::getpid(),
            rustix::process::Signal::CONT,
        )),
    );
    // SAFETY: PTRACE_TRACEME takes no pointers.
    note("ptrace", errno(unsafe { libc::ptrace(libc::PTRACE_TRACEME) }));
    // SAFETY: unshare changes no memory.
    note("user namespace", errno(unsafe { libc::unshare(libc::CLONE_NEWUSER) }.into()));
    // SAFETY: a raw clone without CLONE_VM; the child, if there is one, leaves at once.
    note("fork", unsafe {
        let pid = libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0);
        if pid == 0 {
            libc::_exit(0);
        }
        errno(pid)
    });
    note("executable memory", outcome(executable_memory()));
    note("thread", outcome(std::thread::spawn(|| 7).join().map_err(|_| "panicked")));
    note("tokio", outcome(tokio_works()));
    note("uid", rustix::process::getuid().as_raw().to_string());
    note("environment", std::env::vars_os().count().to_string());
    let secret = HolderSecret::from_seed([7; 32]);
    note("secret", secret.exposure().unwrap_or("protected").to_owned());
    let keys = Protection::keys_locked();
    note("keys", format!("{}: {}", keys.enforced, keys.detail));
    note("edge", boot.manifest.edges[0].fd.to_string());
    note(
        "limits",
        outcome(rustix::process::setrlimit(
            rustix::process::Resource::Nofile,
            rustix::process::Rlimit { current: Some(8), maximum: Some(8) },
        )),
    );
    kernel.write_all(&serde_json::to_vec(&found).expect("json")).expect("report");
}

fn parent() -> rustix::process::Pid {
    rustix::process::getppid().unwrap_or(rustix::process::Pid::INIT)
}

fn errno(result: libc::c_long) -> String {
    if result < 0 {
        format!("refused: {}", std::io::Error::last_os_error())
    } else {
        "permitted".to_owned()
    }
}

fn own_files(data: &Path) -> std::io::Result<()> {
    fs::create_dir_all(data.join("a/b"))?;
    let mut file = fs::File::create(data.join("a/new"))?;
    file.write_all(b"bytes")?;
    file.set_len(3)?;
    file.sync_all()?;
    file.sync_data()?;
    fs::rename(data.join("a/new"), data.join("a/b/file"))?;
    assert_eq!(fs::read(data.join("a/b/file"))?, b"byt");
    assert_eq!(fs::read_dir(data.join("a"))?.count(), 1);
    assert!(fs::metadata(data.join("a/b/file"))?.is_file());
    fs::remove_file(data.join("a/b/file"))?;
    fs::remove_dir_all(data.join("a"))
}

fn make_device(data: &Path) -> rustix::io::Result<()> {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    mknodat(
        CWD,
        data.join("null"),
        FileType::CharacterDevice,
        Mode::RWXU,
        rustix::fs::makedev(1, 3),
    )
}

fn executable_memory() -> rustix::io::Result<()> {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
    let code = ProtFlags::READ | ProtFlags::EXEC;
    // SAFETY: a fresh anonymous mapping, which nothing reads or runs.
    unsafe { mmap_anonymous(std::ptr::null_mut(), 4096, code, MapFlags::PRIVATE) }.map(drop)
}

fn tokio_works() -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let (one, other) = tokio::net::UnixStream::pair()?;
        one.writable().await?;
        one.try_write(b"x")?;
        other.readable().await?;
        assert_eq!(tokio::task::spawn_blocking(|| 5).await?, 5);
        Ok(())
    })
}

fn open_descriptors() -> String {
    let open = |number: &i32| {
        // SAFETY: the borrow ends here, and F_GETFD on a closed number fails harmlessly.
        rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(*number) }).is_ok()
    };
    (0..1024).filter(open).map(|n| n.to_string()).collect::<Vec<_>>().join(" ")
}

// ---- the kernel ------------------------------------------------------------------------------

/// A kernel that starts one vat, hands it the descriptor 5 and then waits for ever.
fn kernel() {
    let dir = PathBuf::from(String::from_utf8(inherited_plan().expect("plan")).expect("text"));
    let mut report = UnixStream::from(inherited(4).expect("report"));
    let lifeline = inherited(5).expect("lifeline");
    let (vat, mut socket) = start(&dir, Profile::Service, true, Some(lifeline));
    read_ready(&mut socket);
    let processes = fs::read_dir("/proc").expect("proc").flatten();
    let processes = processes.filter(|e| e.file_name().to_string_lossy().parse::<i32>().is_ok());
    let line = format!("{} {}", std::process::id(), processes.count());
    report.write_all(line.as_bytes()).expect("report");
    let _ = report.read(&mut [0]);
    drop(vat);
}

// ---- the tests -------------------------------------------------------------------------------

const LIMITS: VatLimits = VatLimits { memory_bytes: 256 << 20, open_files: 64, threads: 32 };

fn pair() -> (OwnedFd, OwnedFd) {
    let (one, other) = UnixStream::pair().expect("pair");
    (one.into(), other.into())
}

fn start(
    dir: &Path,
    profile: Profile,
    sleep: bool,
    device: Option<OwnedFd>,
) -> (Running, UnixStream) {
    let data = dir.join("vats/probe");
    let other = dir.join("vats/other");
    fs::create_dir_all(data.join("old")).expect("data");
    fs::create_dir_all(&other).expect("other");
    fs::write(data.join("old/file"), "from an earlier boot").expect("old file");
    let (ours, kernel) = pair();
    let mut params = BTreeMap::from([
        ("other".to_owned(), other.display().to_string()),
        ("socket".to_owned(), dir.join("listening.sock").display().to_string()),
    ]);
    if sleep {
        params.insert("sleep".to_owned(), String::new());
    }
    let manifest = Manifest {
        vat: "probe".to_owned(),
        program: "probe".to_owned(),
        node: "00".repeat(32),
        tenant: 0,
        params,
        serves: Vec::new(),
        data_dir: Some(data),
        kernel_fd: -1,
        control_fd: -1,
        table_fd: -1,
        guard_fd: -1,
        listen_fd: None,
        edges: vec![EdgeEnd { name: "x".into(), peer: "y".into(), fd: -1, grant: None }],
        devices: BTreeMap::new(),
    };
    let fds = VatFds {
        kernel,
        control: pair().0,
        table: pair().0,
        guard: pair().0,
        listen: None,
        edges: vec![pair().0],
        devices: BTreeMap::from([("tpm".to_owned(), device.unwrap_or_else(|| pair().0))]),
        log: None,
    };
    let args = vec!["distos".to_owned(), "vat".to_owned()];
    let program = PathBuf::from(SELF_PROGRAM);
    let spec = SpawnSpec { program, args, manifest, fds, uid: vat_uid(3), profile, limits: LIMITS };
    (spawn_vat(spec).expect("spawn"), ours.into())
}

fn read_ready(socket: &mut UnixStream) {
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    let mut ready = [0; 5];
    socket.read_exact(&mut ready).expect("the vat is ready");
}

fn wait(running: &Running) -> Exit {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("tokio");
    let waited = async { tokio::time::timeout(Duration::from_secs(20), running.wait()).await };
    runtime.block_on(waited).expect("ends in time").expect("wait")
}

/// What the vat found, and whether this machine permitted every namespace.
fn findings(profile: Profile) -> (Findings, bool) {
    let dir = tempfile::tempdir().expect("dir");
    let _listening = UnixListener::bind(dir.path().join("listening.sock")).expect("bind");
    // Left open for the vat by mistake, as a careless library would.
    let careless = fs::File::open("/etc/passwd").expect("passwd");
    rustix::io::fcntl_setfd(&careless, rustix::io::FdFlags::empty()).expect("flags");
    let (vat, mut socket) = start(dir.path(), profile, false, None);
    let mut report = Vec::new();
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    socket.read_to_end(&mut report).expect("report");
    assert_eq!(wait(&vat), Exit::Code(0), "{:?}", vat.skipped());
    assert!(careless.as_raw_fd() > 2);
    let found: Findings = serde_json::from_slice(&report).expect("findings");
    found.iter().for_each(|(name, what)| println!("{name:24} {what}"));
    println!("skipped: {:?}", vat.skipped());
    (found, vat.skipped().is_empty())
}

fn assert_refused(found: &Findings, names: &[&str]) {
    for name in names {
        assert!(found[*name].starts_with("refused"), "{name}: {}", found[*name]);
    }
}

fn assert_permitted(found: &Findings, names: &[&str]) {
    for name in names {
        assert_eq!(found[*name], "permitted", "{name}");
    }
}

fn a_vat_can_do_its_work_and_nothing_else() {
    let (found, whole) = findings(Profile::Service);
    assert_permitted(&found, &["inside", "old file", "thread", "tokio"]);
    assert_refused(
        &found,
        &["passwd", "shadow", "library", "other vat", "outside", "tmp", "above"],
    );
    assert_refused(&found, &["device node", "socket", "unix socket", "exec", "fork", "ptrace"]);
    assert_refused(&found, &["executable memory", "user namespace", "signal", "limits"]);
    assert_eq!(found["environment"], "0");
    // Standard streams, kernel, control, table, guard, edge, tpm: the manifest's own is closed.
    assert_eq!(found["descriptors"], "0 1 2 4 5 6 7 8 9");
    assert_eq!(found["edge"], "8");
    if rustix::process::getuid().is_root() {
        assert_eq!(found["uid"], vat_uid(3).to_string());
        assert!(found["protection own uid"].starts_with("true"));
    }
    // A container may withhold namespaces; then that has to be said.
    assert_eq!(found["protection namespaces"].starts_with("true"), whole);
    for name in ["no_new_privs", "seccomp", "landlock", "capabilities", "no core dumps", "rlimits"]
    {
        let what = &found[&format!("protection {name}")];
        assert!(what.starts_with("true"), "{name}: {what}");
    }
    let without_key = format!("true: {}", Protection::NO_KEYS);
    assert_eq!(found["protection keys locked"], without_key, "see ulimit -l");
    assert_eq!(found["secret"], "protected", "a key inside the sandbox");
    assert_eq!(found["keys"], "true: 1 in pages of their own");
}

/// A node must not pass over in silence that its keys can reach swap.
fn a_vat_that_may_lock_no_memory_says_so() {
    let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(rustix::process::Resource::Memlock, none).expect("limit");
    let (found, _) = findings(Profile::Service);
    for name in ["protection keys locked", "keys"] {
        let said = &found[name];
        assert!(said.starts_with("false: ") && said.contains("not locked: "), "{name}: {said}");
    }
    assert!(found["secret"].starts_with("not locked: "), "{}", found["secret"]);
    assert!(found["protection rlimits"].starts_with("true"), "lower is as good");
}

fn compiled_code_runs_only_where_the_profile_says_so() {
    let (found, _) = findings(Profile::Jit);
    assert_permitted(&found, &["executable memory", "inside", "tokio"]);
    assert_refused(&found, &["passwd", "socket", "exec", "fork", "library"]);
}

fn libraries_stay_visible_to_a_gpu_vat_and_secrets_do_not() {
    let (found, _) = findings(Profile::Gpu);
    assert_permitted(&found, &["executable memory", "inside", "library", "old file"]);
    assert_refused(&found, &["passwd", "shadow", "socket", "exec", "fork", "tmp", "other vat"]);
}

fn a_missing_program_is_an_error_and_leaves_no_process() {
    let dir = tempfile::tempdir().expect("dir");
    let plan = foreign("/no/such/program", &[]);
    let error = spawn_foreign(&plan, &dir.path().join("d"), pair().0, vat_uid(4)).expect_err("no");
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
    let children = rustix::process::waitpid(None, rustix::process::WaitOptions::NOHANG);
    assert!(matches!(children, Err(rustix::io::Errno::CHILD)), "{children:?}");
}

fn a_killed_vat_is_noticed_and_a_dropped_one_is_killed() {
    let dir = tempfile::tempdir().expect("dir");
    let (vat, mut socket) = start(dir.path(), Profile::Service, true, None);
    read_ready(&mut socket);
    assert_eq!(vat.exit(), None);
    vat.kill();
    assert_eq!(wait(&vat), Exit::Signal(libc::SIGKILL));
    assert_eq!(wait(&vat), Exit::Signal(libc::SIGKILL));
    let (vat, mut socket) = start(dir.path(), Profile::Service, true, None);
    read_ready(&mut socket);
    drop(vat);
    assert_eq!(socket.read(&mut [0]).expect("end"), 0);
}

fn foreign(path: &str, args: &[&str]) -> ForeignPlan {
    ForeignPlan {
        name: "swtpm".to_owned(),
        path: path.into(),
        args: args.iter().map(|a| (*a).to_owned()).collect(),
        limits: VatLimits { memory_bytes: 64 << 20, open_files: 32, threads: 8 },
    }
}

fn a_software_tpm_works_in_its_sandbox() {
    const SWTPM: &str = "/usr/bin/swtpm";
    if !Path::new(SWTPM).exists() {
        println!("not tested: {SWTPM} is not installed");
        return;
    }
    let dir = tempfile::tempdir().expect("dir");
    let data = dir.path().join("tpm");
    let args = [
        "socket",
        "--tpm2",
        "--tpmstate",
        "dir={data},mode=0600",
        "--fd",
        "{fd}",
        "--flags",
        "not-need-init,startup-clear",
    ];
    let (ours, theirs) = pair();
    let tpm = spawn_foreign(&foreign(SWTPM, &args), &data, theirs, vat_uid(5)).expect("spawn");
    let mut socket = UnixStream::from(ours);
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    // TPM2_GetRandom of 16 bytes.
    socket.write_all(&[0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 16]).expect("command");
    let mut answer = [0; 28];
    socket.read_exact(&mut answer).expect("answer");
    assert_eq!(answer[6..10], [0, 0, 0, 0], "return code");
    let status = fs::read_to_string(format!("/proc/{}/status", tpm.pid())).expect("status");
    let line =
        |key: &str| status.lines().find(|l| l.starts_with(key)).unwrap_or_default().to_owned();
    println!("{:?} {} {}", tpm.skipped(), line("Uid"), line("Seccomp_filters"));
    assert!(line("NoNewPrivs:").ends_with('1'));
    assert!(line("Seccomp:").ends_with('2'));
    if rustix::process::getuid().is_root() {
        assert!(line("Uid:").contains(&vat_uid(5).to_string()));
        assert!(line("CapEff:").ends_with("0000000000000000"));
        let skipped = tpm.skipped();
        let expected = skipped.iter().all(|(step, _)| step.ends_with("namespace"));
        assert!(expected, "{skipped:?}");
    }
    drop(socket);
    assert_eq!(wait(&tpm), Exit::Code(0));
    assert!(data.join("tpm2-00.permall").exists());
}

fn the_kernels_death_takes_its_vats_along() {
    let dir = tempfile::tempdir().expect("dir");
    let (ours, theirs) = pair();
    let (lifeline, held_by_vat) = pair();
    let args = vec!["distos".to_owned(), "kernel".to_owned()];
    let plan = dir.path().display().to_string().into_bytes();
    let spec = KernelSpec { args, plan, fds: vec![theirs, held_by_vat] };
    let (kernel, isolation) = run_in_new_pid_namespace(spec).expect("kernel");
    println!("{isolation:?}");
    let mut socket = UnixStream::from(ours);
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    let mut line = [0; 64];
    let got = socket.read(&mut line).expect("report");
    let line = String::from_utf8_lossy(&line[..got]).into_owned();
    if isolation.pid_namespace {
        assert_eq!(line, "1 2", "the kernel is pid 1 and sees itself and its vat");
    }
    let mut lifeline = UnixStream::from(lifeline);
    lifeline.set_nonblocking(true).expect("nonblocking");
    let alive = lifeline.read(&mut [0]).expect_err("the vat lives");
    assert_eq!(alive.kind(), std::io::ErrorKind::WouldBlock);
    kernel.kill();
    assert_eq!(wait(&kernel), Exit::Signal(libc::SIGKILL));
    lifeline.set_nonblocking(false).expect("blocking");
    lifeline.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
    assert_eq!(lifeline.read(&mut [0]).expect("the vat ended"), 0);
}
