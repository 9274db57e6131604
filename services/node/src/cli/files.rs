//! Files that commands read and write. Output appears whole or not at all: it is written beside
//! its place and renamed into it.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use distos_abi::Fault;
use zeroize::Zeroizing;

/// Permissions of a file that anyone may read.
pub const PUBLIC: u32 = 0o644;
/// Permissions of a file that holds a secret.
pub const SECRET: u32 = 0o600;

/// What an I/O error means for who asked.
pub fn io_fault(path: &Path, error: &io::Error) -> Fault {
    let what = format!("{}: {error}", path.display());
    match error.kind() {
        io::ErrorKind::NotFound => {
            Fault::NotFound(format!("{}: there is no such file", path.display()))
        }
        io::ErrorKind::PermissionDenied => {
            Fault::malformed(format!("{what}: this user may not open it"))
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Fault::unavailable(10_000, format!("{what}: free some space"))
        }
        io::ErrorKind::IsADirectory => {
            Fault::malformed(format!("{} is a directory, not a file", path.display()))
        }
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::NotADirectory => Fault::malformed(what),
        io::ErrorKind::AlreadyExists => Fault::Exists(path.display().to_string()),
        _ => Fault::internal(what),
    }
}

/// Reads a text file of at most `max` bytes; erased from memory when dropped.
pub fn read_text(path: &Path, max: u64) -> Result<Zeroizing<String>, Fault> {
    let mut text = Zeroizing::new(String::new());
    let file = File::open(path).map_err(|e| io_fault(path, &e))?;
    file.take(max + 1).read_to_string(&mut text).map_err(|e| match e.kind() {
        io::ErrorKind::InvalidData => Fault::malformed(format!("{} is not text", path.display())),
        _ => io_fault(path, &e),
    })?;
    if text.len() as u64 > max {
        return Err(Fault::malformed(format!("{} is longer than {max} bytes", path.display())));
    }
    Ok(text)
}

/// Reads a file of at most `max` bytes.
pub fn read_bytes(path: &Path, max: u64) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|e| io_fault(path, &e))?;
    file.take(max + 1).read_to_end(&mut bytes).map_err(|e| io_fault(path, &e))?;
    if bytes.len() as u64 > max {
        return Err(Fault::malformed(format!("{} is longer than {max} bytes", path.display())));
    }
    Ok(bytes)
}

/// Writes a whole file at once, replacing what was there.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Fault> {
    let mut draft = Draft::create(path, mode)?;
    draft.append(bytes)?;
    draft.keep()
}

/// The same, durably: whoever looks after a power cut finds the file, and whole.
pub fn write_durably(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Fault> {
    write(path, bytes, mode)?;
    // The parent of a bare name is an empty path, which is no directory.
    let directory = path.parent().filter(|parent| *parent != Path::new(""));
    let directory = directory.unwrap_or(Path::new("."));
    let durable = File::open(directory).and_then(|directory| directory.sync_all());
    durable.map_err(|e| io_fault(directory, &e))
}

/// A file that is being written beside its place. Dropped without [`Draft::keep`], it leaves
/// nothing. A device such as `/dev/null` is written directly, and stays what it is.
pub struct Draft {
    file: File,
    /// Where the draft stands; `None` for a device, and once it is kept.
    at: Option<PathBuf>,
    place: PathBuf,
}

/// Whether `name` is that of a draft of `place`, made by this process or by one that was killed.
pub fn is_draft_of(place: &Path, name: &OsStr) -> bool {
    let (place, name) = (place.file_name().unwrap_or_default(), name.to_string_lossy());
    let number = name.strip_prefix('.').and_then(|n| n.strip_prefix(&*place.to_string_lossy()));
    number.and_then(|n| n.strip_prefix('.')).is_some_and(|n| n.parse::<u32>().is_ok())
}

/// What stands where an output is to go.
enum Place {
    /// A file or nothing: here.
    File(PathBuf),
    Device,
}

/// A secret follows no link and goes to no device: whoever made those would get it.
fn place_of(place: &Path, mode: u32) -> Result<Place, Fault> {
    let refuse = |why: &str| Err(Fault::malformed(format!("{} {why}", place.display())));
    if place.file_name().is_none() {
        return refuse("does not name a file");
    }
    let found = match fs::symlink_metadata(place) {
        Ok(found) if found.is_file() => return Ok(Place::File(place.to_path_buf())),
        Ok(found) => found,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Ok(Place::File(place.to_path_buf()));
        }
        Err(e) => return Err(io_fault(place, &e)),
    };
    if found.is_dir() {
        return refuse("is a directory: name a file in it");
    }
    if mode != PUBLIC {
        return refuse("is a link or a device: a secret is not written there");
    }
    let target = fs::metadata(place).map_err(|e| io_fault(place, &e))?;
    if target.is_file() {
        return Ok(Place::File(place.canonicalize().map_err(|e| io_fault(place, &e))?));
    }
    if target.file_type().is_char_device() {
        return Ok(Place::Device);
    }
    refuse("is no file: leave the option out and redirect the standard output")
}

impl Draft {
    /// Starts a file that is to stand at `place`.
    pub fn create(place: &Path, mode: u32) -> Result<Draft, Fault> {
        let place = match place_of(place, mode)? {
            Place::File(place) => place,
            Place::Device => {
                let file = OpenOptions::new().write(true).open(place);
                let file = file.map_err(|e| io_fault(place, &e))?;
                return Ok(Draft { file, at: None, place: place.to_path_buf() });
            }
        };
        let name = place.file_name().unwrap_or_default().to_string_lossy();
        let at = place.with_file_name(format!(".{name}.{}", std::process::id()));
        let file =
            OpenOptions::new().write(true).create_new(true).mode(mode).open(&at).map_err(|e| {
                match e.kind() {
                    io::ErrorKind::NotFound => {
                        Fault::NotFound(format!("{}: there is no such directory", place.display()))
                    }
                    _ => io_fault(&place, &e),
                }
            })?;
        Ok(Draft { file, at: Some(at), place })
    }

    /// Adds bytes at the end.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.file.write_all(bytes).map_err(|e| io_fault(&self.place, &e))
    }

    /// Puts the file into its place, durably.
    pub fn keep(mut self) -> Result<(), Fault> {
        let Some(at) = &self.at else { return Ok(()) };
        self.file.sync_all().map_err(|e| io_fault(&self.place, &e))?;
        fs::rename(at, &self.place).map_err(|e| io_fault(&self.place, &e))?;
        self.at = None;
        sync_directory_of(&self.place)
    }
}

/// Makes a file for a secret that is not there yet: it follows no link and replaces nothing.
///
/// # Errors
/// [`Fault::Exists`] if something is there, whatever it is.
pub fn create_new(path: &Path) -> Result<File, Fault> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(SECRET);
    options.open(path).map_err(|e| io_fault(path, &e))
}

/// Makes it durable that a file stands at `place`, as far as its file system knows how to.
pub fn sync_directory_of(place: &Path) -> Result<(), Fault> {
    let dir = place.parent().filter(|dir| !dir.as_os_str().is_empty());
    match File::open(dir.unwrap_or(Path::new("."))).and_then(|dir| dir.sync_all()) {
        Err(e) if !cannot_sync(&e) => Err(io_fault(place, &e)),
        _ => Ok(()),
    }
}

/// A directory that may not be read can't be synced, and some file systems know no sync of one.
fn cannot_sync(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput)
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(at) = &self.at {
            // Nothing is lost if this fails: the draft has a name of its own.
            let _ = fs::remove_file(at);
        }
    }
}

/// What `region put` stores: files one after the other, of lengths that are known beforehand.
pub struct Input {
    parts: Vec<Part>,
    total: u64,
}

struct Part {
    name: PathBuf,
    bytes: u64,
    /// Already open if it has no name any more.
    file: Option<File>,
}

impl Input {
    /// The file at `path`; or every regular file below it if it is a directory, in the byte order
    /// of their paths. That is what `find -H PATH -type f -print0 | LC_ALL=C sort -z` lists, so
    /// that ordinary tools can repeat it; symbolic links below it are not followed.
    pub fn of_path(path: &Path) -> Result<Input, Fault> {
        let kind = fs::metadata(path).map_err(|e| io_fault(path, &e))?;
        if kind.is_dir() {
            let mut files = Vec::new();
            walk(path, &mut files)?;
            files.sort_by(|a, b| {
                a.0.as_os_str().as_encoded_bytes().cmp(b.0.as_os_str().as_encoded_bytes())
            });
            let part = |(name, bytes)| Part { name, bytes, file: None };
            return Input::of_parts(files.into_iter().map(part).collect(), path);
        }
        if kind.is_file() {
            let part = Part { name: path.to_path_buf(), bytes: kind.len(), file: None };
            return Input::of_parts(vec![part], path);
        }
        let mut source = File::open(path).map_err(|e| io_fault(path, &e))?;
        Input::of_stream(&mut source, path)
    }

    /// A stream of unknown length, such as a pipe: kept in a nameless temporary file first.
    pub fn of_stream(source: &mut dyn Read, name: &Path) -> Result<Input, Fault> {
        let at = std::env::temp_dir().join(format!("distos-put-{}", std::process::id()));
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(SECRET);
        let mut spool = options.open(&at).map_err(|e| io_fault(&at, &e))?;
        fs::remove_file(&at).map_err(|e| io_fault(&at, &e))?;
        let bytes = io::copy(source, &mut spool).map_err(|e| io_fault(&at, &e))?;
        io::Seek::rewind(&mut spool).map_err(|e| io_fault(&at, &e))?;
        Input::of_parts(vec![Part { name: name.to_path_buf(), bytes, file: Some(spool) }], name)
    }

    fn of_parts(parts: Vec<Part>, path: &Path) -> Result<Input, Fault> {
        let total = parts.iter().map(|p| p.bytes).sum();
        if total == 0 {
            return Err(Fault::malformed(format!("{} has no content", path.display())));
        }
        Ok(Input { parts, total })
    }

    /// All bytes together; at least 1.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// How many files there are.
    pub fn files(&self) -> usize {
        self.parts.len()
    }

    /// Starts reading.
    pub fn read(self) -> InputReader {
        let mut parts = self.parts;
        parts.reverse();
        InputReader { rest: parts, left: 0 }
    }
}

fn walk(directory: &Path, files: &mut Vec<(PathBuf, u64)>) -> Result<(), Fault> {
    for entry in fs::read_dir(directory).map_err(|e| io_fault(directory, &e))? {
        let path = entry.map_err(|e| io_fault(directory, &e))?.path();
        let kind = fs::symlink_metadata(&path).map_err(|e| io_fault(&path, &e))?;
        if kind.is_dir() {
            walk(&path, files)?;
        } else if kind.is_file() {
            files.push((path, kind.len()));
        }
    }
    Ok(())
}

/// Reads an [`Input`], one open file at a time.
pub struct InputReader {
    /// Last part first; the last of the vector is being read.
    rest: Vec<Part>,
    /// Unread bytes of an open part.
    left: u64,
}

impl InputReader {
    /// Fills `buffer`. A file that became shorter or unreadable meanwhile is a fault: padding it
    /// would store what nobody wrote.
    pub fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Fault> {
        let mut filled = 0;
        while filled < buffer.len() {
            if self.left == 0 {
                self.next_part()?;
                continue;
            }
            let Some(Part { name, file: Some(file), .. }) = self.rest.last_mut() else {
                return Err(Fault::internal("read past the end of the input"));
            };
            let room =
                (buffer.len() - filled).min(usize::try_from(self.left).unwrap_or(usize::MAX));
            match file.read(&mut buffer[filled..filled + room]) {
                Ok(0) => {
                    let what = format!("{} became shorter while it was read", name.display());
                    return Err(Fault::malformed(what));
                }
                Ok(got) => {
                    filled += got;
                    self.left -= got as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(io_fault(name, &e)),
            }
        }
        Ok(())
    }

    /// Opens the first unread part; a part that is open has been read to its end.
    fn next_part(&mut self) -> Result<(), Fault> {
        if self.rest.last().is_some_and(|p| p.bytes == 0) {
            self.rest.pop();
        }
        let part = self
            .rest
            .last_mut()
            .ok_or_else(|| Fault::internal("read past the end of the input"))?;
        if part.file.is_none() {
            part.file = Some(File::open(&part.name).map_err(|e| io_fault(&part.name, &e))?);
        }
        // Zero marks the part as taken, so that the next call goes on to the one after it.
        self.left = std::mem::take(&mut part.bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_directory_is_its_files_in_the_order_of_find_and_sort() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("a")).unwrap();
        for (name, text) in [("a/z", "3"), ("a.txt", "2"), ("Z", "1"), ("a/empty", ""), ("b", "45")]
        {
            fs::write(at(name), text).unwrap();
        }
        std::os::unix::fs::symlink(at("b"), at("link")).unwrap();
        let input = Input::of_path(dir.path()).unwrap();
        assert_eq!((input.total(), input.files()), (5, 5));
        let mut reader = input.read();
        let mut text = [0; 5];
        reader.fill(&mut text[..2]).unwrap();
        reader.fill(&mut text[2..]).unwrap();
        assert_eq!(&text, b"12345");
        assert!(reader.fill(&mut [0]).is_err());
    }

    #[test]
    fn a_file_that_shrinks_is_not_padded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        fs::write(&path, "12345").unwrap();
        let mut reader = Input::of_path(&path).unwrap().read();
        fs::write(&path, "12").unwrap();
        assert!(reader.fill(&mut [0; 5]).unwrap_err().to_string().contains("shorter"));
    }

    #[test]
    fn an_input_that_is_empty_or_absent_is_refused_and_a_stream_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Input::of_path(dir.path()).err().unwrap().code(), 16);
        assert_eq!(Input::of_path(&dir.path().join("no")).err().unwrap().code(), 15);
        let input = Input::of_stream(&mut &b"abc"[..], Path::new("-")).unwrap();
        let mut text = [0; 3];
        input.read().fill(&mut text).unwrap();
        assert_eq!(&text, b"abc");
    }

    #[test]
    fn an_abandoned_draft_leaves_nothing_and_a_secret_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("key");
        drop(Draft::create(&place, SECRET).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        write(&place, b"secret", SECRET).unwrap();
        assert_eq!(fs::metadata(&place).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn output_to_a_device_or_through_a_link_leaves_both_and_a_secret_goes_to_neither() {
        let dir = tempfile::tempdir().unwrap();
        let (device, file) = (dir.path().join("device"), dir.path().join("file"));
        std::os::unix::fs::symlink("/dev/null", &device).unwrap();
        write(&device, b"x", PUBLIC).unwrap();
        assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
        assert!(fs::symlink_metadata(&device).unwrap().is_symlink());
        let link = dir.path().join("link");
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        write(&link, b"new", PUBLIC).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        for place in [&device, &link] {
            assert_eq!(write(place, b"secret", SECRET).unwrap_err().code(), 16);
        }
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_file_of_the_wrong_size_or_kind_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(read_text(&path, 10).unwrap_err().to_string().contains("not text"));
        assert!(read_bytes(&path, 1).unwrap_err().to_string().contains("longer"));
    }
}
