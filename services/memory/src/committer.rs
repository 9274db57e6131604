//! The one thread that writes the index log: group commit. Everything that waits when a batch
//! begins shares the batch's two `fdatasync`s, pages first, so that a record never names a page
//! that could be lost (M3).

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use tokio::sync::oneshot;

use crate::disk::{Disk, Name};
use crate::error::StoreError;
use crate::log::{self, MAX_PAYLOAD, Record, Tail};

/// The most requests that one batch takes.
const MAX_BATCH: usize = 256;

/// What became of a request.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Rises with every batch. A success settles every record of every batch up to its own.
    pub(crate) batch: u64,
    /// Bytes of the log after it, or why the records are not durable. They are then still queued,
    /// and the next batch tries again, so that the log never skips what readers have seen.
    pub(crate) result: Result<u64, StoreError>,
}

/// The answer to a request, when it comes.
pub(crate) type Answer = oneshot::Receiver<Outcome>;

struct Request {
    records: Vec<Record>,
    /// Whether `records` replace the whole log rather than extend it.
    compact: bool,
    reply: oneshot::Sender<Outcome>,
}

/// The sending end.
pub(crate) struct Committer {
    requests: Sender<Request>,
}

impl Committer {
    /// Starts the thread. `tail` is the end of the log on `disk`.
    pub(crate) fn start(disk: Arc<dyn Disk>, tail: Tail) -> std::io::Result<Committer> {
        let (requests, queue) = channel();
        let mut log =
            Log { disk, tail, pending: Vec::new(), batch: 0, broken: None, cut_needed: false };
        std::thread::Builder::new().name("commit".into()).spawn(move || log.serve(&queue))?;
        Ok(Committer { requests })
    }

    /// Queues records, in the order of calls. The pages that they name have been written.
    pub(crate) fn append(&self, records: Vec<Record>) -> Answer {
        self.send(records, false)
    }

    /// Queues a new log that says what all records queued before say.
    pub(crate) fn compact(&self, snapshot: Vec<Record>) -> Answer {
        self.send(snapshot, true)
    }

    fn send(&self, records: Vec<Record>, compact: bool) -> Answer {
        let (reply, answer) = oneshot::channel();
        // A thread that is gone drops the reply, and the answer says so.
        let _ = self.requests.send(Request { records, compact, reply });
        answer
    }
}

struct Log {
    disk: Arc<dyn Disk>,
    tail: Tail,
    /// Records that are not in the log yet, oldest first.
    pending: Vec<Record>,
    batch: u64,
    /// After a failed sync nobody knows what is on disk: nothing is acknowledged any more.
    broken: Option<String>,
    /// Whether a failed append may have left bytes beyond the tail.
    cut_needed: bool,
}

impl Log {
    fn serve(&mut self, queue: &Receiver<Request>) {
        let mut held = None;
        while let Some(first) = held.take().or_else(|| queue.recv().ok()) {
            let mut replies = Vec::new();
            self.batch += 1;
            let result = if first.compact {
                replies.push(first.reply);
                self.compact(&first.records)
            } else {
                let mut next = Some(first);
                while let Some(request) = next.take() {
                    self.pending.extend(request.records);
                    replies.push(request.reply);
                    if replies.len() < MAX_BATCH {
                        next = queue.try_recv().ok();
                    }
                    if next.as_ref().is_some_and(|request| request.compact) {
                        held = next.take();
                    }
                }
                self.flush()
            };
            for reply in replies {
                let outcome = Outcome {
                    batch: self.batch,
                    result: result.clone().map(|()| self.tail.offset),
                };
                // A caller that went away needs no answer.
                let _ = reply.send(outcome);
            }
        }
    }

    fn check_whole(&self) -> Result<(), StoreError> {
        self.broken.clone().map_or(Ok(()), |why| Err(StoreError::Broken(why)))
    }

    fn io(&self, what: &str, error: &std::io::Error) -> StoreError {
        StoreError::io(&self.disk.name(), what, error)
    }

    fn sync(&mut self, file: Name) -> Result<(), StoreError> {
        self.disk.sync(file).map_err(|error| {
            let why = format!("fdatasync failed: {error}");
            self.broken = Some(why.clone());
            StoreError::Broken(why)
        })
    }

    /// Makes every pending record durable, after the pages that they name.
    fn flush(&mut self) -> Result<(), StoreError> {
        self.check_whole()?;
        if self.pending.iter().any(|r| matches!(r, Record::PagesWritten { .. })) {
            self.sync(Name::Extents)?;
        }
        while !self.pending.is_empty() {
            let (payload, count) = payload(&self.pending);
            self.append(&payload)?;
            self.pending.drain(..count);
        }
        Ok(())
    }

    fn append(&mut self, payload: &[u8]) -> Result<(), StoreError> {
        if self.cut_needed {
            self.disk
                .set_len(Name::Log, self.tail.offset)
                .map_err(|e| self.io("cut the index", &e))?;
            self.cut_needed = false;
        }
        let (frame, next) = log::frame(self.tail, payload);
        if let Err(error) = self.disk.write(Name::Log, self.tail.offset, &frame) {
            self.cut_needed = true;
            return Err(self.io("write the index", &error));
        }
        self.sync(Name::Log)?;
        self.tail = next;
        Ok(())
    }

    /// Replaces the log by one that holds `snapshot`, which includes what is pending.
    fn compact(&mut self, snapshot: &[Record]) -> Result<(), StoreError> {
        self.check_whole()?;
        self.sync(Name::Extents)?;
        let tail = write_new_log(&*self.disk, snapshot)?;
        self.disk.replace_log().map_err(|error| {
            self.broken = Some(format!("the index could not be replaced: {error}"));
            self.io("replace the index", &error)
        })?;
        self.tail = tail;
        self.cut_needed = false;
        self.pending.clear();
        Ok(())
    }
}

/// Writes and syncs a new log beside the old one.
pub(crate) fn write_new_log(disk: &dyn Disk, records: &[Record]) -> Result<Tail, StoreError> {
    let failed = |error: std::io::Error| StoreError::io(&disk.name(), "write a new index", &error);
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|error| StoreError::Io {
        what: "get random bytes".into(),
        error: error.to_string(),
    })?;
    disk.set_len(Name::NewLog, 0).map_err(failed)?;
    let (header, mut tail) = log::file_header(id);
    disk.write(Name::NewLog, 0, &header).map_err(failed)?;
    let mut rest = records;
    while !rest.is_empty() {
        let (payload, count) = payload(rest);
        let (frame, next) = log::frame(tail, &payload);
        disk.write(Name::NewLog, tail.offset, &frame).map_err(failed)?;
        tail = next;
        rest = &rest[count..];
    }
    disk.sync(Name::NewLog).map_err(failed)?;
    Ok(tail)
}

/// As many of the records, at least one, as fit into a frame, and how many they are.
fn payload(records: &[Record]) -> (Vec<u8>, usize) {
    let mut bytes = Vec::new();
    for (count, record) in records.iter().enumerate() {
        let before = bytes.len();
        log::encode(record, &mut bytes);
        if bytes.len() > MAX_PAYLOAD {
            bytes.truncate(before);
            return (bytes, count);
        }
    }
    (bytes, records.len())
}
