//! The files of the store, and the few operations that it needs of them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustix::fs::FallocateFlags;

/// A file of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    /// Sealed pages.
    Extents,
    /// Region keys.
    Keys,
    /// The index log.
    Log,
    /// The log's successor, while it is being written.
    NewLog,
}

impl Name {
    fn file(self) -> &'static str {
        match self {
            Name::Extents => "extents.dat",
            Name::Keys => "keys.bin",
            Name::Log => "index.log",
            Name::NewLog => "index.log.new",
        }
    }
}

/// What the store asks of its directory. Every method blocks; all may be called from any thread.
/// The crash tests stand a disk that loses what was not synced behind the same operations.
pub(crate) trait Disk: Send + Sync + 'static {
    /// What to call the directory in errors.
    fn name(&self) -> String;
    /// Length in bytes; `None` if there is no such file.
    fn len(&self, file: Name) -> io::Result<Option<u64>>;
    /// Fills `into` from `offset`; an error if the file ends before.
    fn read(&self, file: Name, offset: u64, into: &mut [u8]) -> io::Result<()>;
    /// Writes at `offset`, extending the file as needed.
    fn write(&self, file: Name, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Returns when all that was written to the file survives a crash.
    fn sync(&self, file: Name) -> io::Result<()>;
    /// Returns when files that were made or replaced are found after a crash.
    fn sync_names(&self) -> io::Result<()>;
    /// Cuts or extends the file.
    fn set_len(&self, file: Name, len: u64) -> io::Result<()>;
    /// Makes the range read as zeros, and gives its blocks back where the file system can.
    fn punch(&self, file: Name, offset: u64, len: u64) -> io::Result<()>;
    /// Puts the new log, which is synced, in the log's place: afterwards a crash finds it there.
    fn replace_log(&self) -> io::Result<()>;
}

/// A directory of the file system.
pub(crate) struct Directory {
    path: PathBuf,
    /// In the order of [`Name`]; opened when first needed.
    files: RwLock<[Option<Arc<File>>; 4]>,
}

impl Directory {
    /// The directory at `path`, which exists.
    pub(crate) fn new(path: &Path) -> Directory {
        Directory { path: path.to_owned(), files: RwLock::new([const { None }; 4]) }
    }

    fn open(&self, name: Name) -> io::Result<Arc<File>> {
        let slot = name as usize;
        if let Some(file) = &self.files.read().unwrap_or_else(PoisonError::into_inner)[slot] {
            return Ok(file.clone());
        }
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &files[slot] {
            return Ok(file.clone());
        }
        let path = self.path.join(name.file());
        let existed = path.try_exists()?;
        let file = Arc::new(
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path)?,
        );
        if !existed {
            self.sync_names()?;
        }
        files[slot] = Some(file.clone());
        Ok(file)
    }
}

/// Zeros are written in pieces of this many bytes where holes can't be punched.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

impl Disk for Directory {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn len(&self, file: Name) -> io::Result<Option<u64>> {
        match std::fs::metadata(self.path.join(file.file())) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read(&self, file: Name, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.open(file)?.read_exact_at(into, offset)
    }

    fn write(&self, file: Name, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.open(file)?.write_all_at(bytes, offset)
    }

    fn sync(&self, file: Name) -> io::Result<()> {
        self.open(file)?.sync_data()
    }

    fn sync_names(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    fn set_len(&self, file: Name, len: u64) -> io::Result<()> {
        self.open(file)?.set_len(len)
    }

    fn punch(&self, file: Name, offset: u64, len: u64) -> io::Result<()> {
        let handle = self.open(file)?;
        let end = offset.saturating_add(len).min(handle.metadata()?.len());
        if end <= offset {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if rustix::fs::fallocate(&*handle, flags, offset, end - offset).is_ok() {
            return Ok(());
        }
        let mut next = offset;
        while next < end {
            let piece = (end - next).min(ZEROS.len() as u64);
            handle.write_all_at(&ZEROS[..piece as usize], next)?;
            next += piece;
        }
        Ok(())
    }

    fn replace_log(&self) -> io::Result<()> {
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        std::fs::rename(self.path.join(Name::NewLog.file()), self.path.join(Name::Log.file()))?;
        files[Name::Log as usize] = files[Name::NewLog as usize].take();
        drop(files);
        self.sync_names()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_punched_range_reads_as_zeros_and_its_neighbours_stay() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Directory::new(dir.path());
        assert_eq!(disk.len(Name::Extents).unwrap(), None);
        disk.write(Name::Extents, 0, &[7; 30_000]).unwrap();
        disk.punch(Name::Extents, 5_000, 10_000).unwrap();
        disk.punch(Name::Extents, 29_000, 1 << 40).unwrap();
        let mut back = vec![1; 30_000];
        disk.read(Name::Extents, 0, &mut back).unwrap();
        let expected = |at| if (5_000..15_000).contains(&at) || at >= 29_000 { 0 } else { 7 };
        assert!(back.iter().enumerate().all(|(at, b)| *b == expected(at)));
        assert_eq!(disk.len(Name::Extents).unwrap(), Some(30_000));
    }

    #[test]
    fn the_log_is_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Directory::new(dir.path());
        disk.write(Name::Log, 0, b"old").unwrap();
        disk.write(Name::NewLog, 0, b"newer").unwrap();
        disk.replace_log().unwrap();
        assert_eq!(disk.len(Name::NewLog).unwrap(), None);
        disk.write(Name::Log, 5, b"!").unwrap();
        assert_eq!(std::fs::read(dir.path().join("index.log")).unwrap(), b"newer!");
    }
}
