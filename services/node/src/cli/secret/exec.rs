//! `secret exec`: a program that gets secrets in descriptors, under leases that last as long as it runs.
//!
//! A secret is in a sealed file in memory (`memfd_create(2)`), which the program inherits and is told of by its path
//! `/proc/self/fd/N`. It is on no disk, in no argument and in no environment. What the program does with it is its own
//! affair; memory of such a file may be swapped.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use clap::Args;
use distos_abi::Fault;
use futures::future::select_all;
use rustix::fs::{MemfdFlags, Mode, SealFlags};
use rustix::io::FdFlags;
use rustix::process::{Pid, PidfdFlags, Signal};

use super::{Given, Which, given, released, renewed};
use crate::cli::holder::now_ms;
use crate::cli::{
    Context, Report, Stop, complain, files, interrupted, interruptible, settled, text, undo,
};

/// The shortest time between two attempts to renew a lease.
const SHORTEST_PAUSE: Duration = Duration::from_millis(250);
/// The longest time between two attempts while the broker cannot be asked.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

/// Arguments of `secret exec`.
#[derive(Args)]
pub struct ExecArgs {
    /// The secrets' names
    #[arg(required_unless_present = "cap", value_name = "NAME")]
    names: Vec<String>,
    /// Also the secret to which the capability in this file is; again for more
    #[arg(long, value_name = "FILE")]
    cap: Vec<PathBuf>,
    /// For how long a lease runs before it is renewed [default: as long as it may]
    #[arg(long = "for", value_parser = text::parse_span_ms, value_name = "TIME")]
    lasting: Option<u64>,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

impl ExecArgs {
    fn wanted(&self) -> impl Iterator<Item = Which> + '_ {
        let named = self.names.iter().map(|name| Which {
            name: Some(name.clone()),
            cap: None,
            entry: None,
        });
        let lent =
            self.cap.iter().map(|cap| Which { name: None, cap: Some(cap.clone()), entry: None });
        named.chain(lent)
    }
}

/// A secret that a program has.
struct Held {
    which: Which,
    name: String,
    lease: u64,
    until_ms: u64,
    file: File,
}

/// What a program has, for as long as it runs.
#[derive(Default)]
struct All(Vec<Held>);

/// Runs the program, and ends as it does.
pub(super) async fn command(context: &Context, args: ExecArgs) -> Result<Report, Stop> {
    let mut all = All::default();
    let ended = run(context, &args, &mut all).await;
    for held in &all.0 {
        // One that has ended needs no end, and one that cannot be ended runs out.
        undo(released(context, &held.which, held.lease)).await;
    }
    match ended? {
        0 => Ok(Report::nothing()),
        code => Err(Stop::Verdict { report: Report::nothing(), code }),
    }
}

async fn run(context: &Context, args: &ExecArgs, all: &mut All) -> Result<u8, Stop> {
    let lasting_ms = args.lasting.unwrap_or(0);
    for which in args.wanted() {
        let mut file = empty_file().map_err(Fault::internal)?;
        let Given { name, lease, until_ms, value, .. } =
            settled(given(context, &which, 0, lasting_ms)).await?;
        let filled = fill(&mut file, &value);
        // Before anything else fails: there is a lease to give back.
        all.0.push(Held { which, name, lease, until_ms, file });
        filled.map_err(Fault::internal)?;
    }
    let Some((program, words)) = args.program.split_first() else {
        return Err(Fault::malformed("name the program").into());
    };
    let places: Vec<(&str, String)> = all
        .0
        .iter()
        .map(|held| (held.name.as_str(), format!("/proc/self/fd/{}", held.file.as_raw_fd())))
        .collect();
    let words = told(words, &places)?;
    let mut command = Command::new(program);
    command.args(words);
    // Whoever interrupted this before wants no program.
    interruptible(async { Ok(()) }).await?;
    for held in &all.0 {
        rustix::io::fcntl_setfd(&held.file, FdFlags::empty()).map_err(Fault::internal)?;
    }
    let spawned = command.spawn().map(|child| Child(Some(child)));
    for held in &all.0 {
        rustix::io::fcntl_setfd(&held.file, FdFlags::CLOEXEC).map_err(Fault::internal)?;
    }
    let child = spawned.map_err(|e| files::io_fault(program.as_ref(), &e))?;
    // It is not waited for yet, so that this is of no other process.
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| Fault::internal("a process has a number"))?;
    let process = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(Fault::internal)?;
    let waited = tokio::task::spawn_blocking(move || child.wait());
    tokio::pin!(waited);
    let lost = tokio::select! {
        status = &mut waited => return code(status),
        // Whoever asks this command to end means the program.
        asked = interrupted() => { asked?; None }
        lost = first_lost(context, &all.0, lasting_ms) => Some(lost),
    };
    if let Some((name, fault)) = &lost {
        complain(&format!("distos: {name}: {fault}: the program is asked to end"));
    }
    end(&process);
    let code = code(waited.await)?;
    match lost {
        Some((_, fault)) => Err(fault.into()),
        None => Ok(code),
    }
}

/// A program that was started. Until somebody waits for it, it ends with this: what it was given would not be given back.
struct Child(Option<std::process::Child>);

impl Child {
    fn id(&self) -> Option<u32> {
        self.0.as_ref().map(std::process::Child::id)
    }

    fn wait(mut self) -> std::io::Result<ExitStatus> {
        self.0.take().ok_or(std::io::ErrorKind::NotFound)?.wait()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // One that has ended cannot be killed.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Asks a process to end. One that has ended needs no asking.
fn end(process: &OwnedFd) {
    let _ = rustix::process::pidfd_send_signal(process, Signal::TERM);
}

/// As shells tell it: its own code, or 128 and the signal that ended it.
fn code(waited: Result<std::io::Result<ExitStatus>, tokio::task::JoinError>) -> Result<u8, Stop> {
    let status = waited.map_err(Fault::internal)?.map_err(Fault::internal)?;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
}

/// A file in memory that only its owner can open.
fn empty_file() -> std::io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(rustix::fs::memfd_create("secret", flags)?);
    rustix::fs::fchmod(&file, Mode::RUSR)?;
    Ok(file)
}

/// Writes a value that nobody can change any more.
fn fill(file: &mut File, value: &[u8]) -> std::io::Result<()> {
    file.write_all(value)?;
    // Whoever reads the descriptor itself begins at the beginning.
    file.rewind()?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    Ok(rustix::fs::fcntl_add_seals(&*file, seals)?)
}

/// The program's arguments, with the path of each secret in the place of its name in braces.
fn told(words: &[OsString], places: &[(&str, String)]) -> Result<Vec<OsString>, Fault> {
    let mut named = vec![false; places.len()];
    let mut told = Vec::with_capacity(words.len());
    for word in words {
        let Some(text) = word.to_str() else {
            told.push(word.clone());
            continue;
        };
        let mut text = text.to_owned();
        for ((name, path), named) in places.iter().zip(&mut named) {
            let placeholder = format!("{{{name}}}");
            *named |= text.contains(&placeholder);
            text = text.replace(&placeholder, path);
        }
        told.push(text.into());
    }
    match places.iter().zip(named).find(|(_, named)| !named) {
        Some(((name, _), _)) => Err(Fault::malformed(format!(
            "the program is not told where {name} is: write {{{name}}} among its arguments"
        ))),
        None => Ok(told),
    }
}

/// Renews all leases until one cannot be kept: of which secret, and why.
async fn first_lost(context: &Context, all: &[Held], lasting_ms: u64) -> (String, Fault) {
    let keeping = all.iter().map(|held| {
        Box::pin(async move { (held.name.clone(), kept(context, held, lasting_ms).await) })
    });
    // There is one at least: the command's arguments demand it.
    select_all(keeping).await.0
}

/// How long a revocation may go unnoticed.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Renews a lease for as long as that goes, and says why it does not.
async fn kept(context: &Context, held: &Held, lasting_ms: u64) -> Fault {
    let mut until_ms = held.until_ms;
    loop {
        let left_ms = until_ms.saturating_sub(now_ms());
        if left_ms == 0 {
            return Fault::Expired { at_ms: until_ms };
        }
        // Soon: that it was revoked shows when it is asked for.
        let pause = Duration::from_millis(left_ms / 2).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        tokio::time::sleep(pause).await;
        match renewed(context, &held.which, held.lease, lasting_ms).await {
            Ok(later_ms) => until_ms = later_ms,
            // A certificate ends when it says, and is not renewed: but asked for, in case it was revoked.
            Err(Fault::Malformed(_)) if now_ms() < until_ms => {}
            // The broker is away, sealed or started again: what it knows of the lease is durable.
            Err(Fault::Unavailable { .. }) if now_ms() < until_ms => {
                tokio::time::sleep(RETRY_PAUSE.min(Duration::from_millis(left_ms / 8))).await;
            }
            Err(fault) => return fault,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::os::unix::fs::PermissionsExt as _;

    fn words(all: &[&str]) -> Vec<OsString> {
        all.iter().map(OsString::from).collect()
    }

    #[test]
    fn a_program_is_told_where_each_of_its_secrets_is_and_nothing_else_is_changed() {
        let places =
            [("db/password", "/proc/self/fd/7".to_owned()), ("key", "/proc/self/fd/9".to_owned())];
        let given = words(&["--db={db/password}", "{key}", "{key}", "{other}", "plain"]);
        let expected =
            ["--db=/proc/self/fd/7", "/proc/self/fd/9", "/proc/self/fd/9", "{other}", "plain"];
        assert_eq!(told(&given, &places).unwrap(), words(&expected));
        let fault = told(&words(&["{key}"]), &places).unwrap_err();
        assert!(fault.to_string().contains("{db/password}"), "{fault}");
    }

    #[test]
    fn a_program_that_nobody_waits_for_does_not_go_on() {
        let spawned = Command::new("sleep").arg("1000").spawn().unwrap();
        let child = Child(Some(spawned));
        let place = format!("/proc/{}", child.id().unwrap());
        assert!(std::path::Path::new(&place).exists());
        drop(child);
        assert!(!std::path::Path::new(&place).exists());
    }

    #[test]
    fn what_a_program_is_given_cannot_be_changed_and_is_read_from_its_beginning() {
        let mut file = empty_file().unwrap();
        fill(&mut file, b"hunter2").unwrap();
        let mut read = String::new();
        file.read_to_string(&mut read).unwrap();
        assert_eq!(read, "hunter2");
        assert!(file.write_all(b"x").is_err() && file.set_len(0).is_err());
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o400);
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        assert_eq!(std::fs::read(path).unwrap(), b"hunter2");
    }
}
