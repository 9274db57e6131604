//! A task's private directory: its secrets as files that can be read, in memory, for this task alone.
//!
//! A program finds them as it finds any file, by a directory that is open from its start (a *preopen* of WASI preview 1)
//! and is called [`DIRECTORY`]. It is no file system: nothing is on any disk or in any page cache, and there is nothing
//! to make, change or remove. The bytes are in locked pages that are erased with the last of their owners.
//!
//! Of the calls of WASI those are answered here that can be about this directory or a file of it, and everything else goes to
//! the library as before. The library knows three handles, the standard streams, and opens no other as it has no
//! directory; those from [`FIRST`] on are known here alone. So what nobody answers here fails with `badf`.

use std::sync::Arc;

use distos_types::SecretBytes;
use wasmtime::{AsContextMut as _, Caller, Extern, Linker};
use wasmtime_wasi::p1::types::Errno;
use wasmtime_wasi::p1::wasi_snapshot_preview1::{self as library, WasiSnapshotPreview1 as _};
use wiggle::GuestMemory;

use crate::sandbox::Cell;

/// What the directory is called.
pub const DIRECTORY: &str = "/secrets";

/// The handle of the directory, behind those of the streams.
const FIRST: u32 = 3;
/// Handles that are open at the same time.
const MAX_OPEN: usize = 64;
/// Buffers of one call that are looked at.
const MAX_BUFFERS: u32 = 1024;
/// The longest path that is looked at. No file has a longer name.
const MAX_PATH_BYTES: u32 = 256;

const MODULE: &str = "wasi_snapshot_preview1";

// Numbers of WASI preview 1 (wasi_snapshot_preview1.witx).
const FILETYPE_DIRECTORY: u8 = 3;
const FILETYPE_REGULAR: u8 = 4;
const OFLAGS_CREATE: u32 = 1;
const OFLAGS_DIRECTORY: u32 = 2;
const OFLAGS_EXCLUSIVE: u32 = 4;
const OFLAGS_TRUNCATE: u32 = 8;
/// Reading, seeking, telling, opening below, listing, and what is known of a file.
const RIGHT_READ: u64 = 1 << 1;
const RIGHT_SEEK: u64 = 1 << 2;
const RIGHT_TELL: u64 = 1 << 5;
const RIGHT_WRITE: u64 = 1 << 6;
const RIGHT_PATH_OPEN: u64 = 1 << 13;
const RIGHT_READDIR: u64 = 1 << 14;
const RIGHT_PATH_FILESTAT: u64 = 1 << 18;
const RIGHT_FILESTAT: u64 = 1 << 21;
const OF_FILES: u64 = RIGHT_READ | RIGHT_SEEK | RIGHT_TELL | RIGHT_FILESTAT;
const OF_DIRECTORY: u64 = RIGHT_PATH_OPEN | RIGHT_READDIR | RIGHT_PATH_FILESTAT | RIGHT_FILESTAT;

/// A file of a private directory.
#[derive(Debug)]
pub struct Secret {
    /// What it is called: no `/` in it, and neither `.` nor `..`.
    pub file: String,
    /// What is in it.
    pub value: SecretBytes,
}

/// What a program has open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Handle {
    Directory,
    File { number: usize, at: u64 },
}

/// The directory of one task, and what is open of it.
pub(crate) struct Private {
    files: Arc<[Secret]>,
    /// By their numbers, from [`FIRST`] on.
    open: Vec<Option<Handle>>,
}

impl Private {
    /// With these files. Without any there is no directory.
    pub(crate) fn new(files: Arc<[Secret]>) -> Private {
        let open = if files.is_empty() { Vec::new() } else { vec![Some(Handle::Directory)] };
        Private { files, open }
    }

    fn handle(&self, fd: u32) -> Option<Handle> {
        self.open.get(index(fd)?).copied().flatten()
    }

    fn directory(&self, fd: u32) -> Result<(), Errno> {
        match self.handle(fd) {
            Some(Handle::Directory) => Ok(()),
            Some(Handle::File { .. }) => Err(Errno::Notdir),
            None => Err(Errno::Badf),
        }
    }

    fn file(&self, fd: u32) -> Result<(&[u8], u64), Errno> {
        match self.handle(fd) {
            Some(Handle::File { number, at }) => Ok((self.files[number].value.expose(), at)),
            Some(Handle::Directory) => Err(Errno::Isdir),
            None => Err(Errno::Badf),
        }
    }

    fn move_to(&mut self, fd: u32, to: u64) {
        let handle = index(fd).and_then(|index| self.open.get_mut(index));
        if let Some(Some(Handle::File { at, .. })) = handle {
            *at = to;
        }
    }

    /// What a path below the directory leads to.
    fn find(&self, path: &[u8]) -> Result<Handle, Errno> {
        let path = std::str::from_utf8(path).map_err(|_| Errno::Ilseq)?;
        if path.is_empty() {
            return Err(Errno::Noent);
        }
        if path.starts_with('/') {
            return Err(Errno::Perm);
        }
        let mut parts = path.split('/').skip_while(|part| part.is_empty() || *part == ".");
        let Some(name) = parts.next() else { return Ok(Handle::Directory) };
        if name == ".." {
            return Err(Errno::Perm);
        }
        let number = self.files.iter().position(|secret| secret.file == name);
        let number = number.ok_or(Errno::Noent)?;
        // Also nothing, or itself, is not to be found below a file.
        match parts.next() {
            None => Ok(Handle::File { number, at: 0 }),
            Some(_) => Err(Errno::Notdir),
        }
    }

    fn open(&mut self, path: &[u8], flags: u32, rights: u64) -> Result<u32, Errno> {
        let found = match self.find(path) {
            Err(Errno::Noent) if flags & OFLAGS_CREATE != 0 => return Err(Errno::Rofs),
            found => found?,
        };
        if flags & (OFLAGS_CREATE | OFLAGS_EXCLUSIVE) == OFLAGS_CREATE | OFLAGS_EXCLUSIVE {
            return Err(Errno::Exist);
        }
        match found {
            Handle::File { .. } if flags & OFLAGS_DIRECTORY != 0 => return Err(Errno::Notdir),
            _ if flags & OFLAGS_TRUNCATE != 0 || rights & RIGHT_WRITE != 0 => {
                return Err(Errno::Rofs);
            }
            _ => {}
        }
        let free = self.open.iter().position(Option::is_none).unwrap_or(self.open.len());
        if free >= MAX_OPEN {
            return Err(Errno::Mfile);
        }
        match self.open.get_mut(free) {
            Some(place) => *place = Some(found),
            None => self.open.push(Some(found)),
        }
        u32::try_from(free).map(|free| FIRST + free).map_err(|_| Errno::Mfile)
    }

    fn close(&mut self, fd: u32) {
        if let Some(place) = index(fd).and_then(|index| self.open.get_mut(index)) {
            *place = None;
        }
    }

    fn seek(&mut self, fd: u32, by: i64, whence: u32) -> Result<u64, Errno> {
        let (bytes, at) = self.file(fd)?;
        let from = match whence {
            0 => 0,
            1 => at,
            2 => bytes.len() as u64,
            _ => return Err(Errno::Inval),
        };
        let to = from.checked_add_signed(by).ok_or(Errno::Inval)?;
        self.move_to(fd, to);
        Ok(to)
    }

    /// `filestat`: a device, a number, its type, one name, its length, and no times.
    fn filestat(&self, of: Handle) -> [u8; 64] {
        let (number, kind, len) = match of {
            Handle::Directory => (1, FILETYPE_DIRECTORY, 0),
            Handle::File { number, .. } => {
                (inode(number), FILETYPE_REGULAR, self.files[number].value.expose().len() as u64)
            }
        };
        let mut stat = [0; 64];
        stat[8..16].copy_from_slice(&u64::to_le_bytes(number));
        stat[16] = kind;
        stat[24..32].copy_from_slice(&1u64.to_le_bytes());
        stat[32..40].copy_from_slice(&len.to_le_bytes());
        stat
    }

    /// Names from `cookie` on, as many as `room` has place for; the last one may be cut, which tells that there are more.
    fn list(&self, cookie: u64, room: usize) -> Vec<u8> {
        let skip = usize::try_from(cookie).unwrap_or(usize::MAX);
        let mut out = Vec::new();
        for (number, secret) in self.files.iter().enumerate().skip(skip) {
            if out.len() >= room {
                break;
            }
            let name = secret.file.as_bytes();
            out.extend((number as u64 + 1).to_le_bytes());
            out.extend(inode(number).to_le_bytes());
            out.extend((name.len() as u32).to_le_bytes());
            out.extend([FILETYPE_REGULAR, 0, 0, 0]);
            out.extend(name);
        }
        out.truncate(room);
        out
    }
}

fn index(fd: u32) -> Option<usize> {
    usize::try_from(fd.checked_sub(FIRST)?).ok()
}

fn inode(number: usize) -> u64 {
    number as u64 + 2
}

/// `fdstat`: what a handle is, and what may be done with it.
fn fdstat(of: Handle) -> [u8; 24] {
    let (kind, own, below) = match of {
        // Writing may be asked for below, and is refused then for the right reason.
        Handle::Directory => {
            (FILETYPE_DIRECTORY, OF_DIRECTORY, OF_DIRECTORY | OF_FILES | RIGHT_WRITE)
        }
        Handle::File { .. } => (FILETYPE_REGULAR, OF_FILES, 0),
    };
    let mut stat = [0; 24];
    stat[0] = kind;
    stat[8..16].copy_from_slice(&own.to_le_bytes());
    stat[16..24].copy_from_slice(&below.to_le_bytes());
    stat
}

/// A program's memory.
struct Memory<'a>(&'a mut [u8]);

impl Memory<'_> {
    fn at(&self, at: u32, len: u32) -> Result<&[u8], Errno> {
        let at = at as usize;
        at.checked_add(len as usize).and_then(|end| self.0.get(at..end)).ok_or(Errno::Fault)
    }

    fn write(&mut self, at: u32, bytes: &[u8]) -> Result<(), Errno> {
        let at = at as usize;
        let place = at.checked_add(bytes.len()).and_then(|end| self.0.get_mut(at..end));
        place.ok_or(Errno::Fault)?.copy_from_slice(bytes);
        Ok(())
    }

    fn number(&self, at: u32) -> Result<u32, Errno> {
        let bytes = self.at(at, 4)?.first_chunk().ok_or(Errno::Fault)?;
        Ok(u32::from_le_bytes(*bytes))
    }

    fn path(&self, at: u32, len: u32) -> Result<&[u8], Errno> {
        if len > MAX_PATH_BYTES {
            return Err(Errno::Nametoolong);
        }
        self.at(at, len)
    }

    /// Copies `bytes` from `from` on into these buffers, and says how many fitted.
    fn scatter(
        &mut self,
        (buffers, count): (u32, u32),
        bytes: &[u8],
        from: u64,
    ) -> Result<u32, Errno> {
        if count > MAX_BUFFERS {
            return Err(Errno::Inval);
        }
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        let mut rest = bytes.get(from..).unwrap_or_default();
        let mut read = 0;
        for buffer in 0..count {
            let entry = buffers.checked_add(8 * buffer).ok_or(Errno::Fault)?;
            let (at, len) = (self.number(entry)?, self.number(entry.saturating_add(4))?);
            let (now, later) = rest.split_at(rest.len().min(len as usize));
            self.write(at, now)?;
            (rest, read) = (later, read + now.len() as u32);
        }
        Ok(read)
    }
}

/// What a call returns: its number, and 0 if it went well.
fn code(done: Result<(), Errno>) -> i32 {
    done.err().map_or(0, |errno| errno as i32)
}

/// The memory of a program that calls, and what is the task's. Every command exports its memory.
fn parts<'a>(caller: &'a mut Caller<'_, Cell>) -> wasmtime::Result<(&'a mut [u8], &'a mut Cell)> {
    let Some(Extern::Memory(memory)) = caller.get_export("memory") else {
        return Err(wasmtime::Error::msg("a command without a memory"));
    };
    Ok(memory.data_and_store_mut(caller))
}

/// Defines a call that is answered here if `$fd` is a handle of the private directory, and else by the library.
macro_rules! answer {
    ($linker:ident, $name:ident($fd:ident $(, $arg:ident)*) $(.$wait:ident)?, $own:expr) => {
        $linker.func_wrap_async(
            MODULE,
            stringify!($name),
            |mut caller: Caller<'_, Cell>, ($fd, $($arg,)*)| {
                Box::new(async move {
                    let fuel = caller.as_context_mut().hostcall_fuel();
                    let (memory, cell) = match parts(&mut caller) {
                        Ok(parts) => parts,
                        Err(error) => return Err::<i32, wasmtime::Error>(error),
                    };
                    let handle = i32::cast_unsigned($fd);
                    if cell.private.handle(handle).is_some() {
                        let mut memory = Memory(memory);
                        let done = $own(&mut cell.private, &mut memory, handle, $($arg),*);
                        return Ok(code(done));
                    }
                    cell.wasi.set_hostcall_fuel(fuel);
                    let mut memory = GuestMemory::Unshared(memory);
                    library::$name(&mut cell.wasi, &mut memory, $fd $(, $arg)*) $(.$wait)?
                })
            },
        )?
    };
}

/// Puts what is answered here in the place of the library's calls.
pub(crate) fn shadow(linker: &mut Linker<Cell>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    answer!(linker, fd_prestat_get(fd, to), prestat);
    answer!(linker, fd_prestat_dir_name(fd, to, len), prestat_name);
    answer!(
        linker,
        path_open(fd, follow, path, len, flags, rights, inherited, fdflags, to).await,
        path_open
    );
    answer!(linker, path_filestat_get(fd, follow, path, len, to).await, path_filestat);
    answer!(linker, fd_readdir(fd, to, room, cookie, used).await, read_directory);
    answer!(linker, fd_read(fd, buffers, count, told).await, read);
    answer!(linker, fd_pread(fd, buffers, count, from, told).await, read_at);
    answer!(linker, fd_seek(fd, by, whence, to).await, seek);
    answer!(linker, fd_tell(fd, to), tell);
    answer!(linker, fd_fdstat_get(fd, to).await, handle_stat);
    answer!(linker, fd_filestat_get(fd, to).await, file_stat);
    answer!(linker, fd_close(fd).await, close);
    linker.allow_shadowing(false);
    Ok(())
}

// The calls, each with the parameters that WASI gives it: pointers, lengths and flags as the 32 bits that they are.

type Done = Result<(), Errno>;

/// A directory, and how long its name is.
fn prestat(private: &mut Private, memory: &mut Memory<'_>, fd: u32, to: i32) -> Done {
    // Those that the program has opened itself have no name; nor does the library tell one.
    if fd != FIRST {
        return Err(Errno::Badf);
    }
    private.directory(fd)?;
    let len = DIRECTORY.len() as u32;
    memory.write(to.cast_unsigned(), &[[0; 4], len.to_le_bytes()].concat())
}

fn prestat_name(
    private: &mut Private,
    memory: &mut Memory<'_>,
    fd: u32,
    to: i32,
    len: i32,
) -> Done {
    private.directory(fd)?;
    if (len.cast_unsigned() as usize) < DIRECTORY.len() {
        return Err(Errno::Nametoolong);
    }
    memory.write(to.cast_unsigned(), DIRECTORY.as_bytes())
}

#[expect(clippy::too_many_arguments, reason = "as WASI has it")]
fn path_open(
    private: &mut Private,
    memory: &mut Memory<'_>,
    fd: u32,
    _follow: i32,
    path: i32,
    len: i32,
    flags: i32,
    rights: i64,
    _inherited: i64,
    _fdflags: i32,
    to: i32,
) -> Done {
    private.directory(fd)?;
    let path = memory.path(path.cast_unsigned(), len.cast_unsigned())?;
    let opened = private.open(path, flags.cast_unsigned(), rights.cast_unsigned())?;
    let told = memory.write(to.cast_unsigned(), &opened.to_le_bytes());
    if told.is_err() {
        private.close(opened);
    }
    told
}

fn path_filestat(
    private: &mut Private,
    memory: &mut Memory<'_>,
    fd: u32,
    _follow: i32,
    path: i32,
    len: i32,
    to: i32,
) -> Done {
    private.directory(fd)?;
    let found = private.find(memory.path(path.cast_unsigned(), len.cast_unsigned())?)?;
    memory.write(to.cast_unsigned(), &private.filestat(found))
}

fn read_directory(
    private: &mut Private,
    memory: &mut Memory<'_>,
    fd: u32,
    to: i32,
    room: i32,
    cookie: i64,
    used: i32,
) -> Done {
    private.directory(fd)?;
    let list = private.list(cookie.cast_unsigned(), room.cast_unsigned() as usize);
    memory.write(to.cast_unsigned(), &list)?;
    memory.write(used.cast_unsigned(), &(list.len() as u32).to_le_bytes())
}

fn read(
    private: &mut Private,
    memory: &mut Memory<'_>,
    fd: u32,
    buffers: i32,
    count: i32,
    read: i32,
) -> Done {
    let (bytes, at) = private.file(fd)?;
    let copied = memory.scatter((buffers.cast_unsigned(), count.cast_unsigned()), bytes, at)?;
    memory.write(read.cast_unsigned(), &copied.to_le_bytes())?;
    private.move_to(fd, at.saturating_add(copied.into()));
    Ok(())
}

fn read_at(
    private: &mut Private,
    memory: &mut Memory<'_>,
    fd: u32,
    buffers: i32,
    count: i32,
    from: i64,
    read: i32,
) -> Done {
    let (bytes, _) = private.file(fd)?;
    let from = from.cast_unsigned();
    let copied = memory.scatter((buffers.cast_unsigned(), count.cast_unsigned()), bytes, from)?;
    memory.write(read.cast_unsigned(), &copied.to_le_bytes())
}

fn seek(
    private: &mut Private,
    memory: &mut Memory<'_>,
    fd: u32,
    by: i64,
    whence: i32,
    to: i32,
) -> Done {
    let at = private.seek(fd, by, whence.cast_unsigned())?;
    memory.write(to.cast_unsigned(), &at.to_le_bytes())
}

fn tell(private: &mut Private, memory: &mut Memory<'_>, fd: u32, to: i32) -> Done {
    let (_, at) = private.file(fd)?;
    memory.write(to.cast_unsigned(), &at.to_le_bytes())
}

fn handle_stat(private: &mut Private, memory: &mut Memory<'_>, fd: u32, to: i32) -> Done {
    let handle = private.handle(fd).ok_or(Errno::Badf)?;
    memory.write(to.cast_unsigned(), &fdstat(handle))
}

fn file_stat(private: &mut Private, memory: &mut Memory<'_>, fd: u32, to: i32) -> Done {
    let handle = private.handle(fd).ok_or(Errno::Badf)?;
    memory.write(to.cast_unsigned(), &private.filestat(handle))
}

fn close(private: &mut Private, _: &mut Memory<'_>, fd: u32) -> Done {
    private.close(fd);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn private(files: &[(&str, &str)]) -> Private {
        let secret = |(file, value): &(&str, &str)| {
            let Ok(bytes) = SecretBytes::fill::<Infallible>(value.len(), |place| {
                place.copy_from_slice(value.as_bytes());
                Ok(())
            });
            Secret { file: (*file).to_owned(), value: bytes }
        };
        Private::new(files.iter().map(secret).collect())
    }

    #[test]
    fn nothing_is_found_but_the_tasks_own_files_however_the_path_is_written() {
        let mut own = private(&[("db", "hunter2"), ("key", "x")]);
        let file = |number| Ok(Handle::File { number, at: 0 });
        for (path, found) in [
            ("db", file(0)),
            ("./db", file(0)),
            ("key", file(1)),
            (".", Ok(Handle::Directory)),
            ("./", Ok(Handle::Directory)),
            ("", Err(Errno::Noent)),
            ("other", Err(Errno::Noent)),
            ("db/", Err(Errno::Notdir)),
            ("db/x", Err(Errno::Notdir)),
            ("db/.", Err(Errno::Notdir)),
            ("./db/./", Err(Errno::Notdir)),
            ("..", Err(Errno::Perm)),
            ("./../etc/passwd", Err(Errno::Perm)),
            ("/etc/passwd", Err(Errno::Perm)),
        ] {
            assert_eq!(own.find(path.as_bytes()), found, "{path}");
        }
        assert_eq!(own.find(&[0xff]), Err(Errno::Ilseq));
        assert_eq!(private(&[]).handle(FIRST), None, "without secrets there is no directory");
        assert_eq!(own.open(b"new", OFLAGS_CREATE, RIGHT_READ), Err(Errno::Rofs));
        assert_eq!(own.open(b"db", OFLAGS_TRUNCATE, RIGHT_READ), Err(Errno::Rofs));
        assert_eq!(own.open(b"db", 0, RIGHT_READ | RIGHT_WRITE), Err(Errno::Rofs));
        assert_eq!(own.open(b"db", OFLAGS_DIRECTORY, RIGHT_READ), Err(Errno::Notdir));
        assert_eq!(
            own.open(b"db", OFLAGS_CREATE | OFLAGS_EXCLUSIVE, RIGHT_READ),
            Err(Errno::Exist)
        );
    }

    #[test]
    fn a_program_that_opens_without_end_is_refused_and_gets_a_handle_back_that_it_closed() {
        let mut own = private(&[("db", "hunter2")]);
        let opened: Vec<u32> = std::iter::from_fn(|| own.open(b"db", 0, RIGHT_READ).ok()).collect();
        assert_eq!(opened.len(), MAX_OPEN - 1, "one is the directory");
        assert_eq!(own.open(b"db", 0, RIGHT_READ), Err(Errno::Mfile));
        own.close(opened[5]);
        assert_eq!(own.file(opened[5]), Err(Errno::Badf));
        assert_eq!(own.open(b".", 0, RIGHT_READ), Ok(opened[5]));
        for wild in [0, 2, FIRST + 1000, u32::MAX] {
            assert_eq!(own.handle(wild), None);
            own.close(wild);
        }
    }

    #[test]
    fn a_seek_beyond_any_file_is_refused_or_reads_nothing() {
        let mut own = private(&[("db", "hunter2")]);
        let fd = own.open(b"db", 0, RIGHT_READ).unwrap();
        assert_eq!(own.seek(fd, -2, 2), Ok(5));
        assert_eq!(own.seek(fd, -6, 1), Err(Errno::Inval));
        assert_eq!(own.seek(fd, 0, 3), Err(Errno::Inval));
        assert_eq!(own.seek(fd, i64::MAX, 0), Ok(i64::MAX.cast_unsigned()));
        assert_eq!(own.seek(FIRST, 0, 0), Err(Errno::Isdir));
        let mut memory = vec![0; 64];
        // One buffer of 8 bytes at 16.
        memory[0] = 16;
        memory[4] = 8;
        let at = i64::MAX.cast_unsigned();
        assert_eq!(Memory(&mut memory).scatter((0, 1), b"hunter2", at), Ok(0));
        assert_eq!(Memory(&mut memory).scatter((0, 1), b"hunter2", 0), Ok(7));
        assert_eq!(memory[16..24], *b"hunter2\0");
    }

    #[test]
    fn pointers_out_of_a_programs_memory_are_faults_of_its_own() {
        let mut memory = vec![0xff; 64];
        let mut memory = Memory(&mut memory);
        for (buffers, count) in [(0, 1), (60, 1), (64, 1), (u32::MAX, 2)] {
            assert_eq!(memory.scatter((buffers, count), b"x", 0), Err(Errno::Fault), "{buffers}");
        }
        assert_eq!(memory.scatter((0, u32::MAX), b"x", 0), Err(Errno::Inval));
        assert_eq!(memory.write(61, &[0; 4]), Err(Errno::Fault));
        assert_eq!(memory.write(u32::MAX, &[0; 4]), Err(Errno::Fault));
        assert_eq!(memory.path(0, u32::MAX), Err(Errno::Nametoolong));
        assert_eq!(memory.path(u32::MAX, 4), Err(Errno::Fault));
    }

    #[test]
    fn a_listing_goes_on_where_it_was_cut() {
        let own = private(&[("db", "hunter2"), ("key", "x")]);
        let all = own.list(0, 1000);
        assert_eq!(all.len(), 2 * 24 + 2 + 3);
        assert_eq!(own.list(1, 1000), all[26..]);
        assert_eq!(own.list(0, 30), all[..30]);
        assert_eq!(own.list(2, 1000), [0u8; 0]);
        assert_eq!(own.list(u64::MAX, 1000), [0u8; 0]);
    }
}
