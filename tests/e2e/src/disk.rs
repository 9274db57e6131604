//! A small disk that a test can fill.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// Enough for the journal's two segments and some data.
const DISK: &str = "size=40m,mode=0711";

/// A small disk; unmounted when dropped.
pub struct Disk {
    /// Where it is mounted.
    pub at: PathBuf,
}

impl Disk {
    /// `None` if this machine does not permit mounting.
    ///
    /// # Panics
    /// There is something at this place already.
    pub fn mount(at: &Path) -> Option<Disk> {
        fs::create_dir(at).expect("a directory");
        let data = std::ffi::CString::new(DISK).expect("no NUL");
        match mount("tmpfs", at, "tmpfs", MountFlags::empty(), Some(data.as_c_str())) {
            Ok(()) => Some(Disk { at: at.to_path_buf() }),
            Err(error) => {
                eprintln!("not checked: mounting a small disk is not permitted here ({error})");
                None
            }
        }
    }

    /// Takes all the space that is left.
    ///
    /// # Panics
    /// Nothing can be written there at all.
    pub fn fill(&self) {
        let mut filler = File::create(self.filler()).expect("a file");
        for size in [1 << 16, 1 << 12, 1] {
            while filler.write_all(&vec![1; size]).is_ok() {}
        }
    }

    /// Gives the space back that [`Disk::fill`] took.
    ///
    /// # Panics
    /// It took none.
    pub fn free(&self) {
        fs::remove_file(self.filler()).expect("it is there");
    }

    /// The file that takes the space.
    pub fn filler(&self) -> PathBuf {
        self.at.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Detached even while a node that a failed test left still uses it.
        let _ = unmount(&self.at, UnmountFlags::DETACH);
    }
}
