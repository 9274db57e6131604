//! What DistOS is measured beside.

pub mod bare;
pub mod grpc;
pub mod redis;
pub mod runc;
pub mod tls;

use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

/// A peer's process, ended with this value.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until somebody listens at a socket.
pub fn until_listening(socket: &Path, process: &mut Process) -> Result<(), std::io::Error> {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        if std::os::unix::net::UnixStream::connect(socket).is_ok() {
            return Ok(());
        }
        if let Some(status) = process.0.try_wait()? {
            return Err(std::io::Error::other(format!("a peer ended at its start: {status}")));
        }
        if Instant::now() > end {
            return Err(std::io::Error::other(format!("nobody listens at {}", socket.display())));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
