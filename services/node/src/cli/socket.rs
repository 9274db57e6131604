//! Sockets that commands make for other programs.

use std::fs;
use std::path::{Path, PathBuf};

use distos_abi::Fault;
use tokio::net::UnixListener;

use super::files;

/// A socket's file, removed with this.
pub(super) struct Place(PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        // Whoever removed it before has done the same.
        let _ = fs::remove_file(&self.0);
    }
}

/// The path in `unix:PATH`.
pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    match text.strip_prefix("unix:") {
        Some(path) if !path.is_empty() => Ok(path.into()),
        _ => Err("only Unix sockets: unix:PATH".into()),
    }
}

/// A socket that only this user can connect to: whoever does is who this user is.
pub(super) fn listen(path: &Path) -> Result<(UnixListener, Place), Fault> {
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(path);
    rustix::process::umask(before);
    let listener = bound.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => Fault::Exists(format!(
            "{}: if no other command of DistOS serves it, remove it",
            path.display()
        )),
        _ => files::io_fault(path, &error),
    })?;
    Ok((listener, Place(path.to_owned())))
}
