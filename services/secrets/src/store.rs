//! The broker's log on disk, and the one thread that writes it. Everything that waits when a batch begins shares its
//! `fdatasync`. Blocking, but for [`Committer`].
//!
//! A record that could not be written stays, and is tried again before the next: the log never skips what the state has
//! already done. After a failed `fdatasync` nobody knows what is on disk, and nothing is acknowledged any more until the
//! broker is started again.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};

use distos_abi::Fault;
use distos_rpc::log::{Tail, Unread};
use tokio::sync::oneshot;

use crate::record::{LOG, Payloads, decode};
use crate::state::{Limits, State};

const FILE: &str = "secrets.log";
const NEW_FILE: &str = "secrets.log.new";
/// The most requests that one batch takes.
const MAX_BATCH: usize = 256;
/// How long a caller waits before it tries again on a full disk, in milliseconds.
const FULL_RETRY_MS: u64 = 5_000;

/// A failure of the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No space is left. Nothing was lost.
    #[error("the disk is full: free space in {0} and retry")]
    Full(String),
    /// Another I/O error.
    #[error("cannot {what}: {error}")]
    Io {
        /// What was attempted.
        what: String,
        /// What the operating system said.
        error: String,
    },
    /// What is there is not what was acknowledged.
    #[error("secrets.log is damaged at byte {offset}: {why}: restore it from a backup")]
    Damaged {
        /// Where.
        offset: u64,
        /// What is wrong there.
        why: String,
    },
    /// A newer version of this program wrote it.
    #[error("secrets.log has format {0}, which this program does not know: use the newer version")]
    Newer(u32),
    /// It can no longer be written safely. A restart recovers everything that was acknowledged.
    #[error("secrets.log cannot be written any more ({0}): restart the secret broker")]
    Broken(String),
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Fault {
        match error {
            StoreError::Full(_) | StoreError::Broken(_) => {
                Fault::unavailable(FULL_RETRY_MS, error.to_string())
            }
            StoreError::Damaged { .. } => Fault::Corrupt(error.to_string()),
            StoreError::Io { .. } | StoreError::Newer(_) => Fault::internal(error),
        }
    }
}

/// The log, open for writing.
#[derive(Debug)]
pub struct Log {
    dir: PathBuf,
    file: File,
    tail: Tail,
    /// What is not in it yet.
    pending: Payloads,
    /// Whether a failed write may have left bytes beyond the tail.
    cut_needed: bool,
    broken: Option<String>,
}

impl Log {
    /// Opens the log in `dir` and applies what it says to a new state, or makes one with the random `id`. Cuts a torn
    /// end, refuses what is damaged elsewhere, and rewrites a log most of which is of the past.
    pub fn open(
        dir: &Path,
        limits: Limits,
        id: [u8; 16],
        now_ms: u64,
    ) -> Result<(State, Log), StoreError> {
        let path = dir.join(FILE);
        if !path.try_exists().map_err(|e| failed(dir, "find the log", &e))? {
            let (file, tail) = create(dir, id, Payloads::default())?;
            return Ok((State::new(limits), Log::of(dir, file, tail)));
        }
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).open(&path);
        let file = file.map_err(|e| failed(dir, "open the log", &e))?;
        let len = file.metadata().map_err(|e| failed(dir, "open the log", &e))?.len();
        let mut state = State::new(limits);
        let read = |offset, into: &mut [u8]| {
            file.read_exact_at(into, offset).map_err(|e| failed(dir, "read the log", &e))
        };
        let mut apply = |payload: &[u8]| {
            let records = decode(payload).ok_or_else(|| "an unknown record".to_owned())?;
            records.into_iter().try_for_each(|record| state.apply(record).map(drop))
        };
        let tail = LOG.replay(len, &read, &mut apply).map_err(|unread| match unread {
            Unread::Read(error) => error,
            Unread::Damaged { offset, why } => StoreError::Damaged { offset, why },
            Unread::Newer(version) => StoreError::Newer(version),
        })?;
        let mut log = Log::of(dir, file, tail);
        if tail.offset < len {
            log.cut_needed = true;
            log.cut()?;
        }
        let snapshot: Payloads = state.snapshot(now_ms).collect();
        if snapshot.bytes() < len / 2 {
            log.compact(id, snapshot)?;
        }
        Ok((state, log))
    }

    fn of(dir: &Path, file: File, tail: Tail) -> Log {
        let (dir, pending) = (dir.to_owned(), Payloads::default());
        Log { dir, file, tail, pending, cut_needed: false, broken: None }
    }

    /// Its length, in bytes.
    pub fn bytes(&self) -> u64 {
        self.tail.offset
    }

    /// Makes records durable, after those that could not be before.
    pub fn append(&mut self, records: Payloads) -> Result<(), StoreError> {
        self.pending.append(records);
        self.check_whole()?;
        let mut frames = std::mem::take(&mut self.pending).into_frames().into_iter();
        while let Some(payload) = frames.next() {
            if let Err(error) = self.write(&payload) {
                self.pending = Payloads::of_frames([payload].into_iter().chain(frames));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Replaces the log, which then goes by the random `id`, by one that holds `snapshot`. That includes what is pending.
    pub fn compact(&mut self, id: [u8; 16], snapshot: Payloads) -> Result<(), StoreError> {
        self.check_whole()?;
        let (file, tail) = create(&self.dir, id, snapshot).inspect_err(|error| {
            // Which of the two the next start finds is not known.
            if let StoreError::Broken(why) = error {
                self.broken = Some(why.clone());
            }
        })?;
        (self.file, self.tail, self.cut_needed) = (file, tail, false);
        self.pending = Payloads::default();
        Ok(())
    }

    fn check_whole(&self) -> Result<(), StoreError> {
        self.broken.clone().map_or(Ok(()), |why| Err(StoreError::Broken(why)))
    }

    fn cut(&mut self) -> Result<(), StoreError> {
        if self.cut_needed {
            let cut = self.file.set_len(self.tail.offset);
            cut.map_err(|e| failed(&self.dir, "cut the log", &e))?;
            self.cut_needed = false;
        }
        Ok(())
    }

    fn write(&mut self, payload: &[u8]) -> Result<(), StoreError> {
        self.cut()?;
        let (frame, next) = LOG.frame(self.tail, payload);
        if let Err(error) = self.file.write_all_at(&frame, self.tail.offset) {
            self.cut_needed = true;
            return Err(failed(&self.dir, "write the log", &error));
        }
        self.file.sync_data().map_err(|error| {
            let why = format!("fdatasync failed: {error}");
            self.broken = Some(why.clone());
            StoreError::Broken(why)
        })?;
        self.tail = next;
        Ok(())
    }
}

/// A new log in place of what is there, durable.
fn create(dir: &Path, id: [u8; 16], records: Payloads) -> Result<(File, Tail), StoreError> {
    let path = dir.join(NEW_FILE);
    let write = || -> io::Result<(File, Tail)> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let file = options.open(&path)?;
        let (header, mut tail) = LOG.header(id);
        file.write_all_at(&header, 0)?;
        for payload in records.into_frames() {
            let (frame, next) = LOG.frame(tail, &payload);
            file.write_all_at(&frame, tail.offset)?;
            tail = next;
        }
        file.sync_data()?;
        Ok((file, tail))
    };
    let written = write().map_err(|e| failed(dir, "write a new log", &e))?;
    let place = || {
        fs::rename(&path, dir.join(FILE))?;
        File::open(dir)?.sync_all()
    };
    place().map_err(|e| StoreError::Broken(format!("the log could not be replaced: {e}")))?;
    Ok(written)
}

fn failed(dir: &Path, what: &str, error: &io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            StoreError::Full(dir.display().to_string())
        }
        _ => StoreError::Io { what: what.to_owned(), error: error.to_string() },
    }
}

/// How a request ended.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    /// Rises with every batch. A success settles every record of every batch up to its own.
    pub(crate) batch: u64,
    /// The length of the log in bytes, or why its records are not durable. They are still to be written.
    pub(crate) result: Result<u64, StoreError>,
}

/// The answer to a request, when it comes.
pub(crate) type Answer = oneshot::Receiver<Written>;

struct Request {
    records: Payloads,
    /// If `records` replace the log: the id of the new one.
    compact: Option<[u8; 16]>,
    reply: oneshot::Sender<Written>,
}

/// The sending end of the thread that writes.
pub(crate) struct Committer {
    requests: Sender<Request>,
}

impl Committer {
    /// Starts the thread.
    pub(crate) fn start(mut log: Log) -> io::Result<Committer> {
        let (requests, queue) = channel();
        std::thread::Builder::new().name("commit".into()).spawn(move || serve(&mut log, &queue))?;
        Ok(Committer { requests })
    }

    /// Queues records, in the order of calls. None asks for what could not be written to be tried again.
    pub(crate) fn append(&self, records: Payloads) -> Answer {
        self.send(records, None)
    }

    /// Queues a new log that says what all records say that were queued before.
    pub(crate) fn compact(&self, id: [u8; 16], snapshot: Payloads) -> Answer {
        self.send(snapshot, Some(id))
    }

    fn send(&self, records: Payloads, compact: Option<[u8; 16]>) -> Answer {
        let (reply, answer) = oneshot::channel();
        // A thread that is gone drops the reply, and the answer says so.
        let _ = self.requests.send(Request { records, compact, reply });
        answer
    }
}

fn serve(log: &mut Log, queue: &Receiver<Request>) {
    let (mut held, mut batch) = (None, 0);
    while let Some(first) = held.take().or_else(|| queue.recv().ok()) {
        batch += 1;
        let (mut replies, mut records) = (vec![first.reply], first.records);
        let result = match first.compact {
            Some(id) => log.compact(id, records),
            None => {
                while replies.len() < MAX_BATCH {
                    match queue.try_recv() {
                        Ok(next) if next.compact.is_none() => {
                            records.append(next.records);
                            replies.push(next.reply);
                        }
                        Ok(next) => {
                            held = Some(next);
                            break;
                        }
                        Err(_) => break,
                    }
                }
                log.append(records)
            }
        };
        let written = Written { batch, result: result.map(|()| log.bytes()) };
        for reply in replies {
            // A caller that went away needs no answer.
            let _ = reply.send(written.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Record;
    use crate::state::tests as worlds;

    const ID: [u8; 16] = [1; 16];

    fn open(dir: &Path) -> Result<(State, Log), StoreError> {
        Log::open(dir, Limits::default(), ID, worlds::NOW)
    }

    fn write(dir: &Path, records: &[Record]) {
        let (mut state, mut log) = open(dir).unwrap();
        for record in records {
            state.apply(record.clone()).unwrap();
            log.append([record.clone()].into_iter().collect()).unwrap();
        }
    }

    fn described(state: &State) -> Vec<Record> {
        state.snapshot(worlds::NOW).collect()
    }

    #[test]
    fn what_was_acknowledged_is_there_after_a_crash_at_any_byte_of_what_follows() {
        let records = worlds::life();
        for count in 1..records.len() {
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), &records[..count]);
            let kept = open(dir.path()).unwrap();
            let (kept, path) = (described(&kept.0), dir.path().join(FILE));
            let whole = fs::read(&path).unwrap();
            write(dir.path(), &records[count..=count]);
            let longer = fs::read(&path).unwrap();
            if longer.len() <= whole.len() {
                continue;
            }
            for cut in (whole.len()..longer.len()).step_by(97) {
                fs::write(&path, &longer[..cut]).unwrap();
                assert_eq!(described(&open(dir.path()).unwrap().0), kept, "{count}, cut at {cut}");
            }
        }
    }

    #[test]
    fn a_flipped_bit_in_what_was_acknowledged_is_told_and_never_guessed() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &worlds::life());
        let path = dir.path().join(FILE);
        let whole = fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by(61) {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x40;
            fs::write(&path, &flipped).unwrap();
            let error = open(dir.path()).map(drop).unwrap_err();
            assert!(matches!(error, StoreError::Damaged { .. }), "byte {at}: {error}");
        }
    }

    #[test]
    fn a_log_of_what_is_past_is_rewritten_and_says_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let mut records = worlds::life();
        for _ in 0..200 {
            records.push(Record::EndedNode(worlds::NODE));
        }
        write(dir.path(), &records);
        let before = fs::metadata(dir.path().join(FILE)).unwrap().len();
        let (state, log) = open(dir.path()).unwrap();
        assert!(log.bytes() < before / 2, "{} of {before}", log.bytes());
        assert_eq!(described(&open(dir.path()).unwrap().0), described(&state));
        assert!(!dir.path().join(NEW_FILE).exists());
    }

    #[test]
    fn a_rewrite_that_was_cut_short_leaves_the_log_that_there_was() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &worlds::life());
        let kept = described(&open(dir.path()).unwrap().0);
        fs::write(dir.path().join(NEW_FILE), b"half").unwrap();
        assert_eq!(described(&open(dir.path()).unwrap().0), kept);
    }

    #[test]
    fn what_could_not_be_written_is_written_first_when_it_can_be() {
        let dir = tempfile::tempdir().unwrap();
        let records = worlds::life();
        write(dir.path(), &records[..3]);
        let (mut state, mut log) = open(dir.path()).unwrap();
        let right = std::mem::replace(
            &mut log.file,
            // No one writes to what was opened to be read.
            File::open(dir.path().join(FILE)).unwrap(),
        );
        state.apply(records[3].clone()).unwrap();
        assert!(log.append([records[3].clone()].into_iter().collect()).is_err());
        log.file = right;
        state.apply(records[4].clone()).unwrap();
        log.append([records[4].clone()].into_iter().collect()).unwrap();
        drop(log);
        assert_eq!(described(&open(dir.path()).unwrap().0), described(&state));
    }

    #[test]
    fn requests_that_wait_share_a_batch_and_each_is_answered() {
        let dir = tempfile::tempdir().unwrap();
        let (_, log) = open(dir.path()).unwrap();
        let committer = Committer::start(log).unwrap();
        let records = worlds::life();
        let answers: Vec<Answer> = records
            .iter()
            .map(|record| committer.append([record.clone()].into_iter().collect()))
            .collect();
        for answer in answers {
            assert!(answer.blocking_recv().unwrap().result.unwrap() > 0);
        }
        let mut expected = State::new(Limits::default());
        records.into_iter().for_each(|record| assert!(expected.apply(record).is_ok()));
        assert_eq!(described(&open(dir.path()).unwrap().0), described(&expected));
    }
}
