//! Runs a program under strace and reads back, in order, every system call that touches its
//! directory. Fails on a call whose effect on a crash [`crate::disk`] does not model, rather than
//! pass over it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Calls that strace records. Those behind the bar are recorded so that a store that begins to use
/// one fails here.
const TRACED: &str = "openat,open,creat,close,dup,dup2,dup3,fcntl,lseek,write,pwrite64,writev,\
    pwritev,pwritev2,ftruncate,fallocate,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,\
    fsync,fdatasync,sync_file_range,\
    truncate,rmdir,link,linkat,symlink,symlinkat,mmap,sync,syncfs,sendfile,copy_file_range,splice,\
    io_uring_setup,io_setup";
/// Longer than any one write.
const MAX_STRING: &str = "4194304";

/// What a call does to the recorded directory. Paths are relative to it; the directory is "".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A file was opened: as which descriptor, and whether it is made or emptied by that.
    Open {
        /// Relative path.
        path: String,
        /// The new descriptor.
        fd: u32,
        /// Makes the file if it is not there.
        create: bool,
        /// Empties it if it is.
        truncate: bool,
    },
    /// A descriptor is free.
    Close(u32),
    /// Bytes at an offset; `None` is the descriptor's position.
    Write {
        /// Into which file.
        fd: u32,
        /// Where.
        offset: Option<u64>,
        /// What.
        bytes: Vec<u8>,
    },
    /// The file's length is set.
    Truncate {
        /// Which file.
        fd: u32,
        /// Its new length.
        len: u64,
    },
    /// Room is taken; the file reads as zeros there and is at least this long.
    Allocate {
        /// Which file.
        fd: u32,
        /// End of the room.
        end: u64,
    },
    /// A range reads as zeros.
    Punch {
        /// Which file.
        fd: u32,
        /// From here on.
        offset: u64,
        /// So many bytes.
        len: u64,
    },
    /// A new directory.
    MakeDir(String),
    /// A name moves, replacing what had the new one.
    Rename(String, String),
    /// A name goes.
    Remove(String),
    /// Waits until the file, or the directory's names, are durable.
    Sync(u32),
    /// A line that the program printed: what it asked for, or was told.
    Say(String),
}

/// A call, from the line of the record on which it began to that on which it returned.
#[derive(Clone, Debug)]
pub struct Call {
    /// When it began.
    pub start: usize,
    /// When it returned without an error; `None` if it never did.
    pub end: Option<usize>,
    /// What it does.
    pub action: Action,
}

/// Runs `program` with `args` under strace, which writes its record to `record`.
///
/// # Errors
/// Why it did not run to its good end.
pub fn record(program: &Path, args: &[&str], record: &Path) -> Result<(), String> {
    let output = Command::new("strace")
        .args(["-f", "-y", "-xx", "-qq", "-s", MAX_STRING, "-e", "signal=none", "-e"])
        .arg(format!("trace={}", TRACED.replace(' ', "")))
        .arg("-o")
        .arg(record)
        .arg("--")
        .arg(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| {
            format!(
                "strace does not start ({e}): run .ci/setup, which installs what the tests need"
            )
        })?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "strace {} {args:?}: {}\n{}",
        program.display(),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    ))
}

/// The calls of a record that concern `root`, in the order in which they began.
///
/// # Errors
/// What in the record is not understood.
pub fn read(record: &Path, root: &Path) -> Result<Vec<Call>, String> {
    let text = std::fs::read_to_string(record).map_err(|e| format!("{}: {e}", record.display()))?;
    let mut reader = Reader { root: root.to_owned(), open: BTreeMap::new(), calls: Vec::new() };
    let mut unfinished: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
    for (at, line) in text.lines().enumerate() {
        let (thread, rest) = line.split_once(' ').ok_or_else(|| format!("line {at}: {line}"))?;
        let rest = rest.trim_start();
        // Of a thread that is gone as it enters a call strace says no more than that.
        if ["+++", "---", "???("].iter().any(|other| rest.starts_with(other)) {
            continue;
        }
        let begun = [" <unfinished ...>", " <detached ...>"];
        let read = if let Some(begun) = begun.iter().find_map(|end| rest.strip_suffix(end)) {
            unfinished.insert(thread, (at, begun));
            Ok(())
        } else if rest.starts_with("<... ") {
            let (_, ending) = rest.split_once(" resumed>").ok_or("a call resumes strangely")?;
            match unfinished.remove(thread) {
                Some((start, begun)) => reader.line(start, at, &format!("{begun}{ending}")),
                // The end of what a thread has entered that was gone: it has no name, no arguments and no result.
                None if has_no_result(ending) => Ok(()),
                None => Err(format!("a call resumes and never began: {rest}")),
            }
        } else {
            reader.line(at, at, rest)
        };
        read.map_err(|why| format!("line {} of {}: {why}", at + 1, record.display()))?;
    }
    for (start, begun) in unfinished.into_values() {
        reader.line(start, text.len(), &format!("{begun}) = ?"))?;
    }
    reader.calls.sort_by_key(|call| call.start);
    Ok(reader.calls)
}

/// Whether strace says that a call did not return.
fn has_no_result(ending: &str) -> bool {
    ending.rsplit_once(" = ").is_some_and(|(_, result)| result.starts_with('?'))
}

struct Reader {
    root: PathBuf,
    /// Open descriptors of files below the root.
    open: BTreeMap<u32, String>,
    calls: Vec<Call>,
}

impl Reader {
    fn line(&mut self, start: usize, end: usize, line: &str) -> Result<(), String> {
        let (name, rest) = line.split_once('(').ok_or("no call")?;
        let (arguments, result) = rest.rsplit_once(" = ").ok_or("no result")?;
        let arguments = arguments.trim_end();
        let arguments = arguments.strip_suffix(')').ok_or("no end of arguments")?;
        let arguments = split(arguments);
        if result.starts_with('-') {
            // A call on names that failed did nothing; of others nobody knows.
            let harmless = ["openat", "rename", "unlink", "mkdir"].contains(&name);
            return if harmless || !arguments.iter().any(|a| self.names_root(a)) {
                Ok(())
            } else {
                Err(format!("{name} failed: {result}"))
            };
        }
        let Some(action) = self.action(name, &arguments, result)? else { return Ok(()) };
        // What had not returned when the program ended may have happened.
        let end = (!result.starts_with('?')).then_some(end);
        self.calls.push(Call { start, end, action });
        Ok(())
    }

    fn action(
        &mut self,
        name: &str,
        args: &[&str],
        result: &str,
    ) -> Result<Option<Action>, String> {
        let arg = |n: usize| args.get(n).copied().ok_or_else(|| format!("{name}: argument {n}"));
        let done = number(result);
        Ok(match name {
            "openat" => {
                let Some(path) = self.path(arg(1)?)? else { return Ok(None) };
                let (flags, Ok(fd)) = (arg(2)?, done) else { return Ok(None) };
                let fd = fd as u32;
                if flags.contains("O_APPEND") {
                    return Err("O_APPEND is not modelled".into());
                }
                self.open.insert(fd, path.clone());
                let (create, truncate) = (flags.contains("O_CREAT"), flags.contains("O_TRUNC"));
                Some(Action::Open { path, fd, create, truncate })
            }
            "close" => {
                let fd = number(arg(0)?)? as u32;
                self.open.remove(&fd).map(|_| Action::Close(fd))
            }
            "write" | "pwrite64" => {
                let offset = if name == "write" { None } else { Some(number(arg(3)?)?) };
                if number(arg(0)?)? == 1 {
                    let line = String::from_utf8(quoted(arg(1)?)?).map_err(|e| e.to_string())?;
                    return Ok(Some(Action::Say(line.trim_end().to_owned())));
                }
                let Some(fd) = self.fd(arg(0)?)? else { return Ok(None) };
                let mut bytes = quoted(arg(1)?)?;
                bytes.truncate(done.map_or(usize::MAX, |written| written as usize));
                Some(Action::Write { fd, offset, bytes })
            }
            "ftruncate" => {
                let Some(fd) = self.fd(arg(0)?)? else { return Ok(None) };
                Some(Action::Truncate { fd, len: number(arg(1)?)? })
            }
            "fallocate" => {
                let Some(fd) = self.fd(arg(0)?)? else { return Ok(None) };
                let (offset, len) = (number(arg(2)?)?, number(arg(3)?)?);
                match arg(1)? {
                    "0" => Some(Action::Allocate { fd, end: offset + len }),
                    "FALLOC_FL_KEEP_SIZE|FALLOC_FL_PUNCH_HOLE" => {
                        Some(Action::Punch { fd, offset, len })
                    }
                    other => return Err(format!("fallocate {other} is not modelled")),
                }
            }
            "rename" => match (self.path(arg(0)?)?, self.path(arg(1)?)?) {
                (Some(from), Some(to)) => Some(Action::Rename(from, to)),
                (None, None) => None,
                _ => return Err("a rename across the directory's border".into()),
            },
            "unlink" => self.path(arg(0)?)?.map(Action::Remove),
            "mkdir" => self.path(arg(0)?)?.map(Action::MakeDir),
            // Its promise is too weak to count on: no disk cache is flushed, no length written.
            "sync_file_range" | "lseek" => None,
            "fsync" | "fdatasync" => self.fd(arg(0)?)?.map(Action::Sync),
            "sync" | "syncfs" | "io_uring_setup" | "io_setup" => {
                return Err(format!("{name} is not modelled"));
            }
            "mmap" if !arg(3)?.contains("MAP_SHARED") || !arg(2)?.contains("PROT_WRITE") => None,
            _ => {
                let touches = args.iter().any(|a| self.names_root(a));
                if touches && (name != "fcntl" || arg(1)?.starts_with("F_DUPFD")) {
                    return Err(format!("{name} is not modelled"));
                }
                None
            }
        })
    }

    /// The descriptor, if it is one of a file below the root.
    fn fd(&self, argument: &str) -> Result<Option<u32>, String> {
        let fd = number(argument)? as u32;
        match (self.open.contains_key(&fd), self.names_root(argument)) {
            (true, _) => Ok(Some(fd)),
            (false, false) => Ok(None),
            (false, true) => Err(format!("descriptor {fd} was never seen to be opened")),
        }
    }

    /// Whether strace says that the descriptor or path is below the root.
    fn names_root(&self, argument: &str) -> bool {
        let bytes = argument
            .split_once('<')
            .and_then(|(_, path)| unescape(path.split('>').next()?).ok())
            .or_else(|| quoted(argument).ok());
        let path = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
        path.is_some_and(|path| Path::new(&path).starts_with(&self.root))
    }

    fn path(&self, argument: &str) -> Result<Option<String>, String> {
        let path = String::from_utf8(quoted(argument)?).map_err(|e| e.to_string())?;
        let below = Path::new(&path).strip_prefix(&self.root).ok();
        Ok(below.map(|path| path.to_string_lossy().into_owned()))
    }
}

/// Arguments, which strace parts by commas; its strings, all escaped, hold none.
fn split(arguments: &str) -> Vec<&str> {
    arguments.split(", ").collect()
}

/// The number at the start of an argument or result.
fn number(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    text[..digits].parse().map_err(|_| format!("no number: {}", &text[..text.len().min(80)]))
}

fn quoted(argument: &str) -> Result<Vec<u8>, String> {
    let inner = argument.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    unescape(inner.ok_or("a string that strace has cut")?)
}

fn unescape(text: &str) -> Result<Vec<u8>, String> {
    let bytes = text.as_bytes();
    let digit = |b: u8| char::from(b).to_digit(16).map(|d| d as u8).ok_or("no hex digit");
    let pairs = bytes.chunks(4).map(|c| match c {
        [b'\\', b'x', high, low] => Ok(digit(*high)? << 4 | digit(*low)?),
        _ => Err("a string is not in hex"),
    });
    pairs.collect::<Result<_, _>>().map_err(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(lines: &str) -> Result<Vec<Action>, String> {
        let dir = tempfile::tempdir().unwrap();
        let record = dir.path().join("record");
        // Strings in the record are in hex, as strace writes them.
        let mut text = String::new();
        for (at, part) in lines.split('`').enumerate() {
            if at % 2 == 0 {
                text += part;
            } else {
                text.extend(part.bytes().map(|byte| format!("\\x{byte:02x}")));
            }
        }
        std::fs::write(&record, text).unwrap();
        Ok(read(&record, Path::new("/d"))?.into_iter().map(|call| call.action).collect())
    }

    #[test]
    fn calls_of_two_threads_are_read_in_the_order_in_which_they_began() {
        let found = calls(
            "7 openat(AT_FDCWD<`/`>, \"`/d/a`\", O_WRONLY|O_CREAT|O_TRUNC|O_CLOEXEC, 0600) = 3<`/d/a`>\n\
             7 pwrite64(3<`/d/a`>, \"`xyz`\", 3, 9 <unfinished ...>\n\
             8 openat(AT_FDCWD<`/`>, \"`/etc/x`\", O_RDONLY) = 4<`/etc/x`>\n\
             8 write(1<`pipe`>, \"`done\n`\", 5) = 5\n\
             7 <... pwrite64 resumed>) = 2\n\
             7 fdatasync(3<`/d/a`>) = 0\n\
             7 +++ exited with 0 +++\n",
        );
        let open = Action::Open { path: "a".into(), fd: 3, create: true, truncate: true };
        let write = Action::Write { fd: 3, offset: Some(9), bytes: b"xy".to_vec() };
        assert_eq!(found.unwrap(), [open, write, Action::Say("done".into()), Action::Sync(3)]);
    }

    /// Or a run fails in which a thread is gone as it enters a call, which its end alone tells then.
    #[test]
    fn the_end_of_a_call_that_nobody_began_is_nothing_if_it_did_not_return_and_an_error_if_it_did()
    {
        let gone = "8 ???( <unfinished ...>\n8 <... ??? resumed>) = ?\n8 +++ exited with 0 +++\n";
        assert_eq!(calls(gone), Ok(vec![]));
        let why = calls("8 <... write resumed>) = 5\n").unwrap_err();
        assert!(why.contains("<... write resumed>"), "{why}");
    }

    #[test]
    fn a_call_that_is_not_modelled_is_an_error_and_not_passed_over() {
        let open = "7 openat(AT_FDCWD<`/`>, \"`/d/a`\", O_RDWR, 0600) = 3<`/d/a`>\n";
        for call in [
            "7 mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_SHARED, 3<`/d/a`>, 0) = 0x7f0000000000\n",
            "7 sync() = 0\n",
            "7 link(\"`/d/a`\", \"`/d/b`\") = 0\n",
            "7 pwrite64(4<`/d/b`>, \"`x`\", 1, 0) = 1\n",
            "7 fdatasync(3<`/d/a`>) = -1 EIO (Input/output error)\n",
            "7 write(3<`/d/a`>, \"`x`\"..., 9) = 9\n",
        ] {
            let found = calls(&format!("{open}{call}"));
            assert!(found.is_err(), "{call} was read as {found:?}");
        }
        assert_eq!(calls(open).unwrap().len(), 1);
    }
}
