//! A command under watch: which processes it starts, how it takes a signal, and that nothing of it
//! is left when it has ended.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::{Output, Process, descendants, kill, signal};

/// How often a running command is looked at.
const LOOK: Duration = Duration::from_millis(3);
/// How long what a command started may outlive it.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// A command that runs. It is killed when this is dropped.
pub struct Watched {
    child: Child,
    out: File,
    err: File,
    seen: Vec<Process>,
}

impl Watched {
    /// Starts it, with no standard input.
    pub fn spawn(command: Command) -> Watched {
        Watched::spawn_reading(command, Stdio::null())
    }

    /// Starts it with this standard input.
    pub fn spawn_reading(mut command: Command, stdin: Stdio) -> Watched {
        let file = || tempfile::tempfile().expect("a temporary file");
        let (out, err) = (file(), file());
        let copy = |file: &File| file.try_clone().expect("a second descriptor");
        command.stdin(stdin).stdout(copy(&out)).stderr(copy(&err));
        let child = command.spawn().expect("the command can be started");
        Watched { child, out, err, seen: Vec::new() }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub fn text(&self) -> String {
        text(&self.out)
    }

    /// What it has complained of so far.
    pub fn complaints(&self) -> String {
        text(&self.err)
    }

    /// Sends it a signal.
    pub fn signal(&self, what: Signal) {
        signal(self.pid(), what);
    }

    /// Lets it run for this long, or until it ends; whether it still runs.
    pub fn run_for(&mut self, span: Duration) -> bool {
        self.until(span).is_none()
    }

    /// Waits for its end and for that of everything that it started.
    ///
    /// # Panics
    /// It takes longer than `timeout`, or leaves a process; all are killed then.
    pub fn finish(mut self, timeout: Duration) -> Output {
        let status = self.until(timeout);
        let end = Instant::now() + END_TIMEOUT;
        while status.is_some() && Instant::now() < end && self.seen.iter().any(Process::runs) {
            std::thread::sleep(LOOK);
        }
        let left: Vec<_> = self.seen.iter().filter(|p| p.runs()).cloned().collect();
        left.iter().for_each(|p| kill(p.pid));
        let stderr = text(&self.err);
        let Some(status) = status else {
            // The kill above has ended it.
            let _ = self.child.wait();
            panic!("it does not end within {timeout:?}; it said: {stderr}");
        };
        assert!(left.is_empty(), "these are left: {left:?}\n{stderr}");
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        Output { code, stdout: self.text().into_bytes(), stderr }
    }

    fn until(&mut self, span: Duration) -> Option<std::process::ExitStatus> {
        let end = Instant::now() + span;
        loop {
            for process in descendants(self.pid()) {
                if !self.seen.iter().any(|p| p.same_as(&process)) {
                    self.seen.push(process);
                }
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            if Instant::now() >= end {
                return None;
            }
            std::thread::sleep(LOOK);
        }
    }
}

impl Drop for Watched {
    /// A test that ends before its command does ends that too.
    fn drop(&mut self) {
        // Neither does anything to a command that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What stands in a file that a running command may still write: its position is not touched.
fn text(file: &File) -> String {
    let len = file.metadata().expect("an open file").len();
    let mut bytes = vec![0; usize::try_from(len).expect("a short text")];
    file.read_exact_at(&mut bytes, 0).expect("a file can be read");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Runs a command to its end, and checks that nothing of it is left.
///
/// # Panics
/// It takes longer than `timeout`, or leaves a process.
pub fn alone(command: Command, timeout: Duration) -> Output {
    Watched::spawn(command).finish(timeout)
}
