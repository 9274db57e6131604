//! The journal: an append-only file of checksummed, chained records with group commit, which is
//! also the audit outbox (L2).
//!
//! One thread owns the files. Whoever submits a record gets its sequence number's place in the
//! order at once and may wait until it is durable; records that are waited for together share one
//! `fdatasync`. The next segment is set aside before it is needed, so that decreases of authority
//! can still be recorded when the disk is full. After a failed write or sync nothing can be
//! promised any more, and every later wait fails.

pub mod codec;
pub mod segment;

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use distos_abi::Fault;
use rustix::fs::FallocateFlags;
use segment::{Chain, Damage, Key, MAX_PAYLOAD_BYTES, SEGMENT_HEADER_BYTES};
pub use segment::{Frame, FrameKind};
use tokio::sync::oneshot;

use crate::start::make_dir;

/// Size of a segment: what is set aside at a time.
const SEGMENT_BYTES: u64 = 8 << 20;
/// Records that the audit service has not taken: beyond it, increases are refused.
const MAX_WAITING_BYTES: usize = 32 << 20;
/// How long a record that nobody waits for may stay in memory.
const LAG: Duration = Duration::from_millis(20);
/// Records written before one sync.
const MAX_BATCH: usize = 4096;
/// The segment that is set aside.
const SPARE: &str = "spare";

/// Where the journal stands, for `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalStatus {
    /// Newest sequence number handed out.
    pub last_seq: u64,
    /// Newest that the audit service has taken.
    pub acked_seq: u64,
    /// Bytes of segments on disk.
    pub bytes: u64,
}

/// The journal's handle in the kernel's loop.
pub struct JournalHandle {
    shared: Arc<Shared>,
    commands: Sender<Command>,
    segment_bytes: u64,
    last_seq: AtomicU64,
    acked_seq: AtomicU64,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct Shared {
    /// Durable records that the audit service has not taken, and their bytes.
    waiting: Mutex<(VecDeque<Frame>, usize)>,
    /// The closed segments, oldest first.
    segments: Mutex<VecDeque<Closed>>,
    has_spare: AtomicBool,
    failed: AtomicBool,
    bytes: AtomicU64,
    /// How much of the current segment is used.
    end: AtomicU64,
    /// Whether a snapshot is being written: another one would say the same.
    compacting: AtomicBool,
}

/// A segment that is full.
#[derive(Clone, Copy)]
struct Closed {
    /// Its last record.
    end: u64,
    /// It holds a part of the newest snapshot, so the state cannot be rebuilt without it.
    needed: bool,
}

enum Command {
    Append {
        frame: Frame,
        durable: Option<oneshot::Sender<Result<(), Fault>>>,
    },
    /// Start a new segment with this snapshot and remove the closed ones before it that end at or
    /// before `acked`.
    Compact {
        snapshot: Vec<Vec<u8>>,
        time_ms: u64,
        acked: u64,
    },
    Sync {
        done: oneshot::Sender<Result<(), Fault>>,
    },
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while it was held leaves plain data behind: there is no invariant to lose.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl JournalHandle {
    /// Opens the journal in `dir`, which only the kernel may use, and returns the frames from
    /// which the state is rebuilt: those of the newest complete snapshot and all records after
    /// it. A torn tail is cut off.
    ///
    /// # Errors
    /// [`Fault::Corrupt`] names the file and offset of anything durable that is not as it was
    /// written; [`Fault::Unavailable`] if the disk is full.
    pub fn open(dir: &Path) -> Result<(JournalHandle, Vec<Frame>), Fault> {
        JournalHandle::open_sized(dir, SEGMENT_BYTES)
    }

    /// [`JournalHandle::open`] with segments of another size, at least that of the longest frame:
    /// in small ones, rotation and trimming are a matter of a few records.
    ///
    /// # Errors
    /// Those of [`JournalHandle::open`].
    pub fn open_sized(
        dir: &Path,
        segment_bytes: u64,
    ) -> Result<(JournalHandle, Vec<Frame>), Fault> {
        make_dir(dir, 0o700).map_err(|e| failed(dir, &e))?;
        let Opened { files, frames, ends } = Files::open(dir, segment_bytes)?;
        let last_seq = files.chain.seq;
        let records: VecDeque<Frame> =
            frames.iter().filter(|frame| frame.kind == FrameKind::Record).cloned().collect();
        let waiting_bytes = records.iter().map(|frame| frame.payload.len()).sum();
        let shared = Arc::new(Shared {
            waiting: Mutex::new((records, waiting_bytes)),
            segments: Mutex::new(ends),
            has_spare: AtomicBool::new(true),
            failed: AtomicBool::new(false),
            bytes: AtomicU64::new(files.bytes),
            end: AtomicU64::new(files.end),
            compacting: AtomicBool::new(false),
        });
        let (commands, received) = channel();
        let writer = Writer { files, shared: shared.clone(), written: Vec::new() };
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || writer.run(&received))
            .map_err(Fault::internal)?;
        let handle = JournalHandle {
            shared,
            commands,
            segment_bytes,
            last_seq: AtomicU64::new(last_seq),
            acked_seq: AtomicU64::new(0),
            thread: Some(thread),
        };
        Ok((handle, since_snapshot(frames)))
    }

    /// Appends a record. Submitting fixes its place in the order; the future resolves when it is
    /// durable. Without `durable` it becomes so within some 20 ms, and the future resolves at
    /// once.
    pub fn submit(
        &self,
        payload: Vec<u8>,
        time_ms: u64,
        durable: bool,
    ) -> impl Future<Output = Result<(), Fault>> + use<> {
        debug_assert!(payload.len() <= MAX_PAYLOAD_BYTES);
        let seq = self.last_seq.fetch_add(1, Ordering::Relaxed) + 1;
        let frame = Frame { kind: FrameKind::Record, seq, time_ms, payload };
        let (done, wait) = oneshot::channel();
        let durable_done = durable.then_some(done);
        let sent = self.commands.send(Command::Append { frame, durable: durable_done });
        let failed = sent.is_err() || self.shared.failed.load(Ordering::Acquire);
        async move {
            if failed {
                return Err(Fault::internal("the journal can no longer be written"));
            }
            if !durable {
                return Ok(());
            }
            wait.await.unwrap_or_else(|_| Err(Fault::internal("the journal's writer ended")))
        }
    }

    /// Whether an increase of authority may be recorded: there is a segment in reserve, and the
    /// audit service keeps up. Decreases need not ask.
    pub fn has_room_for_increase(&self) -> bool {
        self.shared.has_spare.load(Ordering::Acquire)
            && !self.shared.failed.load(Ordering::Acquire)
            && lock(&self.shared.waiting).1 < MAX_WAITING_BYTES
    }

    /// Whether there is room for what a holder needs in order to revoke: beyond the room for
    /// increases, at least half of the segment in use.
    pub fn has_reserve(&self) -> bool {
        let room = self.shared.has_spare.load(Ordering::Acquire)
            || self.shared.end.load(Ordering::Acquire) < self.segment_bytes / 2;
        room && !self.shared.failed.load(Ordering::Acquire)
            && lock(&self.shared.waiting).1 < 2 * MAX_WAITING_BYTES
    }

    /// Durable records after `after`, oldest first, at most `max` of them.
    pub fn read_from(&self, after: u64, max: usize) -> Vec<Frame> {
        let waiting = lock(&self.shared.waiting);
        let start = waiting.0.partition_point(|frame| frame.seq <= after);
        waiting.0.range(start..).take(max).cloned().collect()
    }

    /// Forgets records that the audit log holds durably. When a closed segment holds nothing
    /// else, the state is written anew from `snapshot` and the segment removed.
    pub fn acknowledge(&self, up_to: u64, time_ms: u64, snapshot: impl FnOnce() -> Vec<Vec<u8>>) {
        let up_to = up_to.min(self.last_seq.load(Ordering::Relaxed));
        if up_to <= self.acked_seq.fetch_max(up_to, Ordering::Relaxed) {
            return;
        }
        {
            let mut waiting = lock(&self.shared.waiting);
            while waiting.0.front().is_some_and(|frame| frame.seq <= up_to) {
                let bytes = waiting.0.pop_front().map_or(0, |frame| frame.payload.len());
                waiting.1 -= bytes;
            }
        }
        let oldest = lock(&self.shared.segments).front().copied();
        let taken = oldest.is_some_and(|closed| closed.end <= up_to && !closed.needed);
        if taken && !self.shared.compacting.swap(true, Ordering::AcqRel) {
            // A failure to send shows at the next wait.
            let _ = self.commands.send(Command::Compact {
                snapshot: snapshot(),
                time_ms,
                acked: up_to,
            });
        }
    }

    /// Resolves when everything submitted so far is durable.
    pub async fn sync(&self) -> Result<(), Fault> {
        let (done, wait) = oneshot::channel();
        let ended = || Fault::internal("the journal's writer ended");
        self.commands.send(Command::Sync { done }).map_err(|_| ended())?;
        wait.await.unwrap_or_else(|_| Err(ended()))
    }

    /// Where it stands.
    pub fn status(&self) -> JournalStatus {
        JournalStatus {
            last_seq: self.last_seq.load(Ordering::Relaxed),
            acked_seq: self.acked_seq.load(Ordering::Relaxed),
            bytes: self.shared.bytes.load(Ordering::Relaxed),
        }
    }
}

impl Drop for JournalHandle {
    fn drop(&mut self) {
        // The writer ends, after a last sync, when nobody can send to it any more.
        let (closed, _) = channel();
        self.commands = closed;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The newest complete snapshot and what follows it.
fn since_snapshot(frames: Vec<Frame>) -> Vec<Frame> {
    let end = frames.iter().rposition(|frame| frame.kind == FrameKind::SnapshotEnd);
    let start = end.map_or(0, |end| {
        let before = frames[..end].iter().rposition(|frame| frame.kind != FrameKind::Snapshot);
        before.map_or(0, |before| before + 1)
    });
    // Parts of a snapshot that was never finished say nothing.
    let kept = |(index, frame): &(usize, Frame)| {
        *index >= start && (frame.kind == FrameKind::Record || end.is_some_and(|end| *index <= end))
    };
    frames.into_iter().enumerate().filter(kept).map(|(_, frame)| frame).collect()
}

/// The files, owned by the writer's thread.
struct Files {
    dir: PathBuf,
    current: File,
    key: Key,
    /// Where the next frame goes in the current segment.
    end: u64,
    number: u64,
    chain: Chain,
    /// How far the chain is durable.
    synced: Chain,
    /// Bytes of a segment.
    segment_bytes: u64,
    bytes: u64,
    /// Numbers of the closed segments, oldest first.
    closed: VecDeque<u64>,
}

struct Opened {
    files: Files,
    frames: Vec<Frame>,
    /// The last record of each closed segment.
    ends: VecDeque<Closed>,
}

fn failed(path: &Path, error: &io::Error) -> Fault {
    if error.kind() == io::ErrorKind::StorageFull {
        return Fault::unavailable(
            5000,
            format!("{}: the disk is full: free some space", path.display()),
        );
    }
    Fault::internal(format!("{}: {error}", path.display()))
}

fn segment_name(number: u64) -> String {
    format!("segment-{number:016}")
}

impl Files {
    fn open(dir: &Path, segment_bytes: u64) -> Result<Opened, Fault> {
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(|e| failed(dir, &e))? {
            let name = entry.map_err(|e| failed(dir, &e))?.file_name();
            let number =
                name.to_str().and_then(|name| name.strip_prefix("segment-")?.parse::<u64>().ok());
            numbers.extend(number);
        }
        numbers.sort_unstable();
        make_spare(dir, segment_bytes).map_err(|e| failed(dir, &e))?;
        if numbers.is_empty() {
            adopt_spare(dir, 1).map_err(|e| failed(dir, &e))?;
            make_spare(dir, segment_bytes).map_err(|e| failed(dir, &e))?;
            numbers.push(1);
        }
        let mut chain = (numbers[0] == 1).then_some(Chain::START);
        let (mut frames, mut ends, mut end) = (Vec::new(), VecDeque::new(), 0);
        for (index, number) in numbers.iter().enumerate() {
            let path = dir.join(segment_name(*number));
            let bytes = std::fs::read(&path).map_err(|e| failed(&path, &e))?;
            let read = segment::recover(&bytes, chain).map_err(|damage| damaged(&path, &damage))?;
            let last = index + 1 == numbers.len();
            if read.torn {
                if !last {
                    return Err(damaged(&path, &Damage::Frame(read.end)));
                }
                tracing::warn!(file = %path.display(), offset = read.end, "an unfinished write is cut off");
                erase_tail(&path, read.end as u64, segment_bytes).map_err(|e| failed(&path, &e))?;
            }
            chain = Some(read.chain);
            end = read.end as u64;
            frames.extend(read.frames);
            if !last {
                ends.push_back(Closed { end: read.chain.seq, needed: false });
            }
        }
        let chain = chain.unwrap_or(Chain::START);
        let number = numbers.pop().unwrap_or(1);
        let path = dir.join(segment_name(number));
        let (current, key) = open_segment(&path).map_err(|e| failed(&path, &e))?;
        let bytes = (numbers.len() as u64 + 2) * segment_bytes;
        let files = Files {
            dir: dir.to_owned(),
            current,
            key,
            end,
            number,
            chain,
            synced: chain,
            segment_bytes,
            bytes,
            closed: numbers.into(),
        };
        Ok(Opened { files, frames, ends })
    }

    /// Moves on to the segment in reserve.
    fn rotate(&mut self) -> io::Result<()> {
        self.current.sync_data()?;
        adopt_spare(&self.dir, self.number + 1)?;
        self.closed.push_back(self.number);
        self.number += 1;
        (self.current, self.key) = open_segment(&self.dir.join(segment_name(self.number)))?;
        self.end = SEGMENT_HEADER_BYTES as u64;
        Ok(())
    }

    /// Sets a segment aside, if none is. `Ok(false)`: there is no room for one.
    fn refill(&mut self) -> io::Result<bool> {
        match make_spare(&self.dir, self.segment_bytes) {
            Ok(()) => {
                self.bytes = (self.closed.len() as u64 + 2) * self.segment_bytes;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::StorageFull => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn remove_oldest(&mut self) -> io::Result<()> {
        if let Some(number) = self.closed.pop_front() {
            std::fs::remove_file(self.dir.join(segment_name(number)))?;
            File::open(&self.dir)?.sync_all()?;
        }
        Ok(())
    }
}

fn damaged(path: &Path, damage: &Damage) -> Fault {
    let path = path.display();
    Fault::Corrupt(match damage {
        Damage::Header => format!("{path} is no journal segment"),
        Damage::Newer(version) => {
            format!("{path} was written by a newer DistOS (layout {version}): start that version")
        }
        Damage::Frame(offset) => format!(
            "{path}: the record at byte {offset} is not what was written: restore the file from a copy"
        ),
    })
}

/// Opens a segment for writing, with its key. What a process that was killed wrote to it is read at
/// the next start whether it was synced or not: from here on it is durable.
fn open_segment(path: &Path) -> io::Result<(File, Key)> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut header = [0; SEGMENT_HEADER_BYTES];
    file.read_exact_at(&mut header, 0)?;
    file.sync_data()?;
    let key = segment::key_of(&header).map_err(|_| io::Error::other("not a journal segment"))?;
    Ok((file, key))
}

/// Makes sure that a segment of full size is set aside, durably.
fn make_spare(dir: &Path, segment_bytes: u64) -> io::Result<()> {
    let path = dir.join(SPARE);
    if path.metadata().is_ok_and(|meta| meta.len() == segment_bytes) {
        return Ok(());
    }
    let new = dir.join("spare.new");
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(|e| io::Error::other(e.to_string()))?;
    let made = set_aside(&file, segment_bytes)
        .and_then(|()| file.write_all_at(&segment::header(&key), 0))
        .and_then(|()| file.sync_all());
    if let Err(error) = made {
        let _ = std::fs::remove_file(&new);
        return Err(error);
    }
    std::fs::rename(&new, &path)?;
    File::open(dir)?.sync_all()
}

/// Takes the room of a whole segment, so that writing into it cannot fail for lack of it.
fn set_aside(file: &File, segment_bytes: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, segment_bytes) {
        Err(rustix::io::Errno::OPNOTSUPP) => fill_with_zeros(file, 0, segment_bytes),
        other => Ok(other?),
    }
}

fn fill_with_zeros(file: &File, from: u64, end: u64) -> io::Result<()> {
    let zeros = vec![0; 1 << 16];
    let mut at = from;
    while at < end {
        let len = (end - at).min(zeros.len() as u64);
        file.write_all_at(&zeros[..len as usize], at)?;
        at += len;
    }
    Ok(())
}

fn adopt_spare(dir: &Path, number: u64) -> io::Result<()> {
    std::fs::rename(dir.join(SPARE), dir.join(segment_name(number)))?;
    File::open(dir)?.sync_all()
}

/// Zeroes what follows `end`, durably, so that no old bytes can be taken for a frame later.
fn erase_tail(path: &Path, end: u64, segment_bytes: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    fill_with_zeros(&file, end, segment_bytes)?;
    file.sync_all()
}

/// The thread that writes.
struct Writer {
    files: Files,
    shared: Arc<Shared>,
    /// Written and not yet synced.
    written: Vec<Frame>,
}

type Waiter = oneshot::Sender<Result<(), Fault>>;

impl Writer {
    fn run(mut self, commands: &Receiver<Command>) {
        loop {
            let first = if self.written.is_empty() {
                commands.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                commands.recv_timeout(LAG)
            };
            let ended = matches!(first, Err(RecvTimeoutError::Disconnected));
            let mut waiters = Vec::new();
            let outcome = match first {
                Ok(first) => self.batch(first, commands, &mut waiters),
                Err(_) => self.sync().and_then(|()| self.retry_reserve()),
            };
            let outcome = match outcome {
                Ok(()) if waiters.is_empty() => Ok(()),
                Ok(()) => self.sync(),
                Err(error) => Err(error),
            };
            let outcome = outcome.map_err(|e| failed(&self.files.dir, &e));
            if outcome.is_err() {
                self.shared.failed.store(true, Ordering::Release);
            }
            for waiter in waiters {
                // Nobody may be waiting any more, which is their affair.
                let _ = waiter.send(outcome.clone());
            }
            if outcome.is_err() || ended {
                return;
            }
        }
    }

    fn batch(
        &mut self,
        first: Command,
        commands: &Receiver<Command>,
        waiters: &mut Vec<Waiter>,
    ) -> io::Result<()> {
        let mut next = Some(first);
        let mut buffer = Vec::new();
        let mut taken = 0;
        while let Some(command) = next {
            match command {
                Command::Append { frame, durable } => {
                    waiters.extend(durable);
                    self.put(&mut buffer, frame)?;
                }
                Command::Sync { done } => waiters.push(done),
                Command::Compact { snapshot, time_ms, acked } => {
                    self.flush(&mut buffer)?;
                    let compacted = self.compact(snapshot, time_ms, acked);
                    self.shared.compacting.store(false, Ordering::Release);
                    compacted?;
                }
            }
            taken += 1;
            next = if taken < MAX_BATCH { commands.try_recv().ok() } else { None };
        }
        self.flush(&mut buffer)
    }

    /// Adds a frame to the buffer, moving on to the next segment first if it does not fit.
    fn put(&mut self, buffer: &mut Vec<u8>, frame: Frame) -> io::Result<()> {
        let len = segment::frame_bytes(frame.payload.len()) as u64;
        if self.files.end + buffer.len() as u64 + len > self.files.segment_bytes {
            self.flush(buffer)?;
            let last = self.files.chain.seq;
            self.files.rotate()?;
            self.refill()?;
            let needed = self.shared.compacting.load(Ordering::Acquire);
            lock(&self.shared.segments).push_back(Closed { end: last, needed });
        }
        let synced = self.files.synced.seq;
        let Files { key, chain, .. } = &mut self.files;
        segment::append(buffer, key, chain, synced, &frame);
        if frame.kind == FrameKind::Record {
            self.written.push(frame);
        }
        Ok(())
    }

    fn flush(&mut self, buffer: &mut Vec<u8>) -> io::Result<()> {
        self.files.current.write_all_at(buffer, self.files.end)?;
        self.files.end += buffer.len() as u64;
        self.shared.end.store(self.files.end, Ordering::Release);
        buffer.clear();
        Ok(())
    }

    /// Makes what was written durable, and shows it to the audit service.
    fn sync(&mut self) -> io::Result<()> {
        // A snapshot repeats sequence numbers, but not hashes.
        if self.files.synced == self.files.chain {
            return Ok(());
        }
        self.files.current.sync_data()?;
        self.files.synced = self.files.chain;
        let mut waiting = lock(&self.shared.waiting);
        for frame in self.written.drain(..) {
            waiting.1 += frame.payload.len();
            waiting.0.push_back(frame);
        }
        Ok(())
    }

    fn compact(&mut self, snapshot: Vec<Vec<u8>>, time_ms: u64, acked: u64) -> io::Result<()> {
        let mut buffer = Vec::new();
        let (seq, count) = (self.files.chain.seq, snapshot.len());
        let bytes: usize = snapshot.iter().map(|part| segment::frame_bytes(part.len())).sum();
        if !self.has_room_for(bytes as u64) {
            // The disk is full: what room is left is for decreases.
            return self.refill();
        }
        // Segments that are closed from here on hold parts of the snapshot.
        let before = self.files.closed.len();
        for (index, payload) in snapshot.into_iter().enumerate() {
            let kind =
                if index + 1 == count { FrameKind::SnapshotEnd } else { FrameKind::Snapshot };
            self.put(&mut buffer, Frame { kind, seq, time_ms, payload })?;
        }
        self.flush(&mut buffer)?;
        self.sync()?;
        // What an older snapshot needed is not needed any more.
        lock(&self.shared.segments).iter_mut().take(before).for_each(|old| old.needed = false);
        for _ in 0..before {
            let oldest = lock(&self.shared.segments).front().copied();
            if oldest.is_none_or(|closed| closed.end > acked) {
                break;
            }
            self.files.remove_oldest()?;
            lock(&self.shared.segments).pop_front();
        }
        self.refill()
    }

    /// Whether so many bytes fit without touching the last segment in reserve.
    fn has_room_for(&self, bytes: u64) -> bool {
        if self.files.end + bytes <= self.files.segment_bytes {
            return true;
        }
        let size = self.files.segment_bytes;
        let needed = (bytes / (size / 2) + 2) * size;
        let free =
            rustix::fs::statvfs(&self.files.dir).map_or(0, |stat| stat.f_bavail * stat.f_frsize);
        self.shared.has_spare.load(Ordering::Acquire) && free > needed
    }

    /// Tries again to set a segment aside, once there may be room for it.
    fn retry_reserve(&mut self) -> io::Result<()> {
        if self.shared.has_spare.load(Ordering::Acquire) { Ok(()) } else { self.refill() }
    }

    fn refill(&mut self) -> io::Result<()> {
        let has_spare = self.files.refill()?;
        self.shared.has_spare.store(has_spare, Ordering::Release);
        self.shared.bytes.store(self.files.bytes, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    fn payload(number: u64) -> Vec<u8> {
        [&number.to_le_bytes()[..], &[7; 3000]].concat()
    }

    fn write(journal: &JournalHandle, count: u64) {
        runtime().block_on(async {
            let all: Vec<_> = (0..count).map(|n| journal.submit(payload(n), n, true)).collect();
            for written in all {
                written.await.unwrap();
            }
        });
    }

    #[test]
    fn an_acknowledged_record_is_there_after_the_process_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, frames) = JournalHandle::open(dir.path()).unwrap();
        assert!(frames.is_empty());
        write(&journal, 5000);
        // Not closed in order: nothing that was acknowledged may depend on that.
        std::mem::forget(journal);
        let (_, frames) = JournalHandle::open(dir.path()).unwrap();
        assert_eq!(frames.len(), 5000);
        assert!(frames.iter().zip(0..).all(|(f, n)| f.payload == payload(n) && f.seq == n + 1));
    }

    #[test]
    fn the_auditor_sees_every_durable_record_once_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = JournalHandle::open(dir.path()).unwrap();
        write(&journal, 10);
        let seqs = |frames: Vec<Frame>| frames.into_iter().map(|f| f.seq).collect::<Vec<_>>();
        assert_eq!(seqs(journal.read_from(0, 4)), [1, 2, 3, 4]);
        assert_eq!(seqs(journal.read_from(4, 100)), [5, 6, 7, 8, 9, 10]);
        journal.acknowledge(7, 0, Vec::new);
        assert_eq!(seqs(journal.read_from(0, 100)), [8, 9, 10]);
        assert_eq!(journal.status().acked_seq, 7);
    }

    #[test]
    fn trimming_keeps_the_state_and_what_the_auditor_has_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = JournalHandle::open(dir.path()).unwrap();
        write(&journal, 6000);
        let full = journal.status().bytes;
        assert!(full >= 4 * SEGMENT_BYTES);
        journal.acknowledge(5500, 1, || vec![vec![1], vec![2]]);
        runtime().block_on(journal.sync()).unwrap();
        assert!(journal.status().bytes < full, "closed segments are removed");
        runtime().block_on(journal.submit(vec![3], 2, true)).unwrap();
        drop(journal);
        let (journal, frames) = JournalHandle::open(dir.path()).unwrap();
        let payloads: Vec<_> = frames.iter().map(|f| f.payload.clone()).collect();
        assert_eq!(payloads, [vec![1], vec![2], vec![3]]);
        let waiting = journal.read_from(5500, 10_000);
        assert_eq!(waiting.first().map(|f| f.seq), Some(5501));
        assert_eq!(waiting.last().map(|f| f.seq), Some(6001));
    }

    /// Else a power failure takes the snapshot after the segments that it replaces were removed:
    /// tenants lose what they were granted, and what was revoked may be redeemed again.
    #[test]
    fn a_snapshot_is_durable_before_the_segments_that_it_replaces_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = JournalHandle::open_sized(dir.path(), 20_000).unwrap();
        write(&journal, 10);
        let shared = journal.shared.clone();
        drop(journal);
        let Opened { files, .. } = Files::open(dir.path(), 20_000).unwrap();
        let mut writer = Writer { files, shared, written: Vec::new() };
        // The audit service has everything, and nothing else is being written.
        writer.compact(vec![vec![1], vec![2]], 1, 10).unwrap();
        assert!(writer.files.synced == writer.files.chain, "the snapshot is not on the disk");
    }

    #[test]
    fn an_unfinished_snapshot_says_nothing() {
        let frame = |kind, seq| Frame { kind, seq, time_ms: 0, payload: vec![] };
        let (record, part, end) = (FrameKind::Record, FrameKind::Snapshot, FrameKind::SnapshotEnd);
        let kinds =
            |frames: Vec<Frame>| since_snapshot(frames).iter().map(|f| f.kind).collect::<Vec<_>>();
        assert_eq!(
            kinds(vec![frame(record, 1), frame(part, 1), frame(record, 2)]),
            [record, record]
        );
        let whole =
            vec![frame(record, 1), frame(part, 1), frame(end, 1), frame(record, 2), frame(part, 2)];
        assert_eq!(kinds(whole), [part, end, record]);
    }

    #[test]
    fn damage_in_the_middle_is_named_and_a_torn_tail_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = JournalHandle::open(dir.path()).unwrap();
        runtime().block_on(async {
            for number in 0..3 {
                journal.submit(vec![number; 100], 0, true).await.unwrap();
            }
        });
        drop(journal);
        let path = dir.path().join(segment_name(1));
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        // Inverted and not overwritten: the byte is of a hash, which may have any value.
        let damage = |frame: usize| {
            let at = (SEGMENT_HEADER_BYTES + frame * segment::frame_bytes(100) + 40) as u64;
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[!byte[0]], at).unwrap();
        };
        damage(2);
        let (journal, frames) = JournalHandle::open(dir.path()).unwrap();
        assert_eq!(frames.len(), 2, "the last record may be an unfinished write");
        drop(journal);
        damage(0);
        let fault = JournalHandle::open(dir.path()).err().unwrap();
        assert!(fault.to_string().contains("byte 64"), "{fault}");
    }
}
