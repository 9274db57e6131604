//! Takes connections from a vat's socket, on a thread of its own: whoever connects without end keeps
//! this thread busy, for a share of its time, and not the one that serves holders.
//!
//! It knows how many connections there are and whose, and nothing of what they say.

use std::io;
use std::io::{PipeReader, PipeWriter};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::sockopt::PeerCredentials;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use tokio::sync::mpsc;

use crate::budget::{Budget, Rate, thread_time};
use crate::seats::{Seat, Seats};

/// Connections from holders at one time.
const MAX_CONNECTIONS: usize = 256;
/// Those of one user of this machine, so that nobody can keep all others out.
const MAX_CONNECTIONS_OF_A_USER: usize = 192;
/// Of turning connections away: one, and then none for some ten times as long. Short pauses, because
/// whoever else connects meanwhile waits for one or two of them.
const REFUSALS: Rate = Rate { part: 12, most: Duration::from_micros(10) };
/// The longest that nobody is let in. Some refusals are dear, such as those that wake a sleeping
/// processor for the client; they are not paid for in full.
const LONGEST_PAUSE: Duration = Duration::from_micros(200);
/// Connections that may wait for their turn, and while others are turned away (one): whoever comes
/// next then waits behind few.
const BACKLOG: i32 = 128;
const SHORT_BACKLOG: i32 = 0;
/// How long after the last refusal the queue is short.
const CALM: Duration = Duration::from_secs(1);
/// How often the log says that connections are refused.
const REFUSALS_TOLD: Duration = Duration::from_secs(10);
/// How long to wait after a fault of the system, such as too many open files.
const FAULT_WAIT: Duration = Duration::from_millis(100);

/// A connection for which there is a place.
pub(crate) struct Arrival {
    pub(crate) socket: OwnedFd,
    /// The Linux user whose program made it.
    pub(crate) user: u32,
    pub(crate) seat: Seat<u32>,
}

/// The thread goes on while this lives.
pub(crate) struct Doorkeeper {
    /// What it has taken. No more wait here than there are seats.
    pub(crate) arrivals: mpsc::UnboundedReceiver<Arrival>,
    _stay: PipeWriter,
}

impl Doorkeeper {
    /// Begins to take connections. `listener` must not block.
    pub(crate) fn start(listener: OwnedFd) -> io::Result<Doorkeeper> {
        let (stop, stay) = io::pipe()?;
        let (sender, arrivals) = mpsc::unbounded_channel();
        let work = move || take(&listener, &stop, &sender);
        thread::Builder::new().name("door".to_owned()).spawn(work)?;
        Ok(Doorkeeper { arrivals, _stay: stay })
    }
}

fn take(listener: &OwnedFd, stop: &PipeReader, arrivals: &mpsc::UnboundedSender<Arrival>) {
    let seats = Seats::new(MAX_CONNECTIONS, MAX_CONNECTIONS_OF_A_USER);
    let start = Instant::now();
    let mut refusals = Budget::full(REFUSALS, Duration::ZERO);
    let mut refused = Refused::default();
    let mut queue = Queue { listener, short_since: None };
    loop {
        let begun = thread_time();
        match accept(listener) {
            Ok((socket, user)) => match seats.take(user) {
                Some(seat) => {
                    if arrivals.send(Arrival { socket, user, seat }).is_err() {
                        return;
                    }
                }
                None => {
                    // It tells the client at once.
                    drop(socket);
                    refused.note(Instant::now());
                    queue.shorten(Instant::now());
                    refusals.spend(start.elapsed(), thread_time().saturating_sub(begun));
                    if !refusals.debt(start.elapsed()).is_zero() {
                        let pause = refusals.until_full(start.elapsed());
                        thread::sleep(pause.min(LONGEST_PAUSE));
                    }
                }
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if wait(listener, stop, queue.calms_in(Instant::now())) {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                thread::sleep(FAULT_WAIT);
            }
        }
    }
}

/// How many connections may wait.
struct Queue<'a> {
    listener: &'a OwnedFd,
    short_since: Option<Instant>,
}

impl Queue<'_> {
    fn shorten(&mut self, now: Instant) {
        if self.short_since.replace(now).is_none() {
            self.set(SHORT_BACKLOG);
        }
    }

    /// Lets the queue be long again if it is time, else says when it is; `None` if it is long.
    fn calms_in(&mut self, now: Instant) -> Option<Duration> {
        let left = CALM.saturating_sub(now.duration_since(self.short_since?));
        if left.is_zero() {
            self.short_since = None;
            self.set(BACKLOG);
            return None;
        }
        Some(left)
    }

    fn set(&self, backlog: i32) {
        // A socket that listens may be told another length (listen(2)).
        if let Err(error) = rustix::net::listen(self.listener, backlog) {
            tracing::warn!(%error, "the queue of connections keeps its length");
        }
    }
}

/// Waits for a connection, or for `at_most`; `true` if there is to be no other.
fn wait(listener: &OwnedFd, stop: &PipeReader, at_most: Option<Duration>) -> bool {
    let at_most = at_most.and_then(|time| Timespec::try_from(time).ok());
    let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
    match poll(&mut fds, at_most.as_ref()) {
        Err(Errno::INTR) => false,
        Err(error) => {
            tracing::warn!(%error, "cannot wait for connections");
            thread::sleep(FAULT_WAIT);
            false
        }
        Ok(_) => !fds[1].revents().is_empty(),
    }
}

/// It stays a mere descriptor until its turn comes: whatever arrives there wakes nobody.
fn accept(listener: &OwnedFd) -> io::Result<(OwnedFd, u32)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::accept_with(listener, flags)?;
    // rustix takes the number of the process, which is 0 in another PID namespace, for a fault.
    let peer = nix::sys::socket::getsockopt(&socket, PeerCredentials)?;
    Ok((socket, peer.uid()))
}

/// Connections that were refused and not yet told: a log must not grow by a line for each.
#[derive(Default)]
struct Refused {
    count: u64,
    told: Option<Instant>,
}

impl Refused {
    fn note(&mut self, now: Instant) {
        self.count += 1;
        if self.told.is_none_or(|told| now.duration_since(told) >= REFUSALS_TOLD) {
            tracing::warn!(count = self.count, "connections are refused: too many are open");
            *self = Refused { count: 0, told: Some(now) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn door() -> (tempfile::TempDir, std::path::PathBuf, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("door.sock");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        (dir, path, listener.into())
    }

    #[test]
    fn who_connects_beyond_the_bound_is_told_at_once_and_others_wait_for_nobody() {
        let (_dir, path, listener) = door();
        let mut keeper = Doorkeeper::start(listener).unwrap();
        let own = rustix::process::getuid().as_raw();
        let mut clients: Vec<UnixStream> = Vec::new();
        let mut arrived = Vec::new();
        for _ in 0..MAX_CONNECTIONS_OF_A_USER {
            clients.push(UnixStream::connect(&path).unwrap());
            arrived.push(keeper.arrivals.blocking_recv().unwrap());
        }
        assert!(arrived.iter().all(|arrival| arrival.user == own));
        let mut refused = UnixStream::connect(&path).unwrap();
        assert_eq!(refused.read(&mut [0]).unwrap(), 0, "it is closed");
        arrived.pop();
        let _again = UnixStream::connect(&path).unwrap();
        assert!(keeper.arrivals.blocking_recv().is_some());
    }

    #[test]
    fn the_thread_ends_with_the_vat_and_nobody_can_connect_then() {
        let (_dir, path, listener) = door();
        let Doorkeeper { mut arrivals, _stay } = Doorkeeper::start(listener).unwrap();
        drop(_stay);
        assert!(arrivals.blocking_recv().is_none());
        assert!(UnixStream::connect(&path).is_err());
    }
}
