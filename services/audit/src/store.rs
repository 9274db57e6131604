//! The log on disk: one writer that appends signed batches, readers that check what they read,
//! recovery at start, and verification. Blocking; the caller decides on which thread.
//!
//! A batch is durable in this order: its entries and their checkpoint reach the segment, then the
//! head file names that checkpoint, and only then does [`Store::append`] return, so that nothing
//! is acknowledged to the kernel that could be lost (L2). What stands behind the last checkpoint
//! after a crash was acknowledged to nobody and is cut off.
//!
//! What this cannot see: whoever can write the directory can put back an older copy of all of it.
//! Only a checkpoint that was kept elsewhere shows that ([`verify_dir`]'s second argument).

use std::convert::Infallible;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use distos_types::{HolderSecret, SECRET_BYTES};
use zeroize::Zeroizing;

use crate::TRACE;
use crate::format::{self, Bad, ChainHash, Checkpoint, SEGMENT_HEADER, SegmentHeader};
use crate::walk::{Damage, Place, Walk, bad_reason, fill};

const HEAD: &str = "head";
const KEY: &str = "key";
const KEY_BYTES: usize = 64;
/// A batch goes to a new segment once the present one is this long.
pub(crate) const SEGMENT_BYTES: u64 = 16 * 1024 * 1024;
/// Readers can start at one entry in this many.
const MARK_EVERY: u64 = 256;
const READ_BUFFER: usize = 128 * 1024;

/// What verification found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verification {
    /// The signed checkpoint over everything that was verified; `None` if something is wrong.
    pub checkpoint: Option<Checkpoint>,
    /// The first thing that is wrong, if anything is.
    pub damage: Option<Damage>,
}

impl From<Result<Checkpoint, Damage>> for Verification {
    fn from(result: Result<Checkpoint, Damage>) -> Verification {
        match result {
            Ok(checkpoint) => Verification { checkpoint: Some(checkpoint), damage: None },
            Err(damage) => Verification { checkpoint: None, damage: Some(damage) },
        }
    }
}

/// Verifies a stored log that no service is writing, from its first to its last byte: every
/// header, frame, chain hash and signature (L1). Needs no secret. With a checkpoint from
/// `outside`, also finds that the whole log was replaced or rolled back; without one, it trusts
/// the key that the log itself names. Reads with bounded memory.
pub fn verify_dir(dir: &Path, outside: Option<Checkpoint>) -> Verification {
    verify_offline(dir, outside).into()
}

fn verify_offline(dir: &Path, outside: Option<Checkpoint>) -> Result<Checkpoint, Damage> {
    let head = match read_head(dir)? {
        HeadFile::Present(head) => head,
        HeadFile::Newer(version) => {
            return Err(file_damage(HEAD, 0, bad_reason(&Bad::Newer(version))));
        }
        HeadFile::Absent => return Err(file_damage(HEAD, 0, "there is no head file".into())),
    };
    if let Some(secret) = read_key(dir)? {
        check_key(&secret, &head)?;
    }
    let mut walk = Walk::new(head, 0);
    if let Some(outside) = outside {
        let reason = match outside.verify() {
            Ok(()) if outside.key == head.key => None,
            Ok(()) => Some("the log is signed by another key than the outside checkpoint"),
            Err(_) => Some("the outside checkpoint's own signature is wrong"),
        };
        if let Some(reason) = reason {
            return Err(file_damage(HEAD, 0, reason.into()));
        }
        walk.expect(outside);
    }
    walk_segments(dir, &mut walk, &segments(dir)?, |_, _| true).map_err(|(damage, _)| damage)?;
    walk.finish()
}

/// Why a log could not be opened for writing.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is not what was signed. It can still be read and verified; nothing is added to it.
    #[error("the stored log is damaged: {0}")]
    Damaged(Damage),
    /// It is intact and newer than this code.
    #[error(
        "the audit log was written by a newer version of DistOS (format {0}): run that version"
    )]
    Newer(u32),
    /// It could not be read or made.
    #[error("the audit log's directory: {0}")]
    Io(#[from] io::Error),
}

impl From<Damage> for OpenError {
    fn from(damage: Damage) -> OpenError {
        OpenError::Damaged(damage)
    }
}

/// An entry as it is stored.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) index: u64,
    pub(crate) body: Vec<u8>,
    pub(crate) hash: ChainHash,
}

/// A record on its way into the log: its journal sequence number (0 for the service's own) and
/// its body.
pub type Incoming = (u64, Vec<u8>);

/// The log, open for writing.
pub struct Store {
    dir: PathBuf,
    secret: HolderSecret,
    segment_bytes: u64,
    /// What the head file says.
    checkpoint: Checkpoint,
    /// The place behind the last checkpoint's frame.
    end: Place,
    /// Places at which a reader can start: behind each header, and one in [`MARK_EVERY`] entries.
    marks: Vec<Place>,
    /// The last segment; `None` before the first batch.
    file: Option<File>,
    /// A batch failed: bytes behind `end` may have to be cut before the next.
    dirty: bool,
}

impl Store {
    /// Opens the log in `dir`, or makes one with a key whose seed `seed` writes. Cuts a torn tail, and refuses
    /// a log that is damaged elsewhere. A batch goes to a new segment once the present one has
    /// `segment_bytes`.
    ///
    /// # Errors
    /// [`OpenError`] says what is wrong, and whose affair it is.
    pub fn open(
        dir: &Path,
        seed: impl FnOnce(&mut [u8; SECRET_BYTES]) -> io::Result<()>,
        now_ms: u64,
        segment_bytes: u64,
    ) -> Result<Store, OpenError> {
        let head = match read_head(dir)? {
            HeadFile::Present(head) => Some(head),
            HeadFile::Absent => None,
            HeadFile::Newer(version) => return Err(OpenError::Newer(version)),
        };
        let firsts = segments(dir)?;
        let (secret, head) = match (read_key(dir)?, head) {
            // The key is written last: without it, a first start was interrupted.
            (None, head) if firsts.is_empty() && head.is_none_or(|h| h.size == 0) => {
                create(dir, seed, now_ms)?
            }
            (None, _) => return Err(file_damage(KEY, 0, "the log's key is gone".into()).into()),
            (Some(_), None) => {
                return Err(file_damage(HEAD, 0, "there is no head file".into()).into());
            }
            (Some(secret), Some(head)) => {
                check_key(&secret, &head)?;
                (secret, head)
            }
        };
        Store::recover(dir, secret, head, &firsts, segment_bytes)
    }

    fn recover(
        dir: &Path,
        secret: HolderSecret,
        head: Checkpoint,
        firsts: &[u64],
        segment_bytes: u64,
    ) -> Result<Store, OpenError> {
        let mut walk = Walk::new(head, head.size);
        let mut marks = Vec::new();
        let walked = walk_segments(dir, &mut walk, firsts, |behind, _| {
            mark(&mut marks, behind);
            true
        });
        let tail = match walked {
            // In front of other segments, or of a kind that no crash leaves.
            Err((damage, last)) if !damage.torn || !last => return Err(damage.into()),
            Err((damage, _)) => Some(damage),
            Ok(()) => None,
        };
        let signed = walk.signed();
        let has_head = signed.map_or(head.size == 0, |(c, _)| c == head || c.size > head.size);
        if !has_head {
            // Something that was signed and acknowledged is not there.
            return Err(lost(&walk, tail).into());
        }
        let (checkpoint, end) = signed.unwrap_or_else(|| (head, Walk::new(head, 0).place()));
        let file = cut_tail(dir, &end, firsts)?;
        sync_dir(dir)?;
        if checkpoint != head {
            // The node stopped between a segment and its head file.
            write_head(dir, checkpoint)?;
        }
        marks.extend_from_slice(walk.starts());
        marks.sort_unstable_by_key(|m: &Place| (m.segment, m.offset));
        marks.retain(|m| (m.segment, m.offset) <= (end.segment, end.offset));
        let store = Store {
            dir: dir.into(),
            secret,
            segment_bytes,
            checkpoint,
            end,
            marks,
            file,
            dirty: false,
        };
        store.settle()?;
        let size = store.checkpoint.size;
        tracing::debug!(target: TRACE, size, last_seq = store.end.seq, "open");
        Ok(store)
    }

    /// Adds a batch and signs it. When this returns, the batch survives a crash and the head file
    /// names it. On an error nothing was added, and the same batch can be tried again.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn append(&mut self, batch: &[Incoming], now_ms: u64) -> io::Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let result = self.try_append(batch, now_ms);
        self.dirty = result.is_err();
        if let (Err(_), Some(file)) = (&result, &self.file) {
            // Gives the space back at once; the next try cuts again if this fails.
            let _ = file.set_len(self.end.offset);
        }
        if result.is_err() {
            tracing::debug!(target: TRACE, size = self.checkpoint.size, "failed");
        }
        result
    }

    fn try_append(&mut self, batch: &[Incoming], now_ms: u64) -> io::Result<()> {
        tracing::debug!(
            target: TRACE,
            first = batch.iter().map(|(seq, _)| *seq).find(|seq| *seq > 0),
            last = batch.iter().map(|(seq, _)| *seq).max(),
            size = self.end.index + batch.len() as u64,
            "append"
        );
        let mut at = self.end;
        let mut bytes = Vec::new();
        let mut marks = Vec::new();
        let rotated = match &self.file {
            Some(_) if at.offset < self.segment_bytes => None,
            _ => {
                let previous = at.chain;
                at = Place { segment: at.index, offset: 0, ..at };
                let header = SegmentHeader { key: self.secret.key(), first: at.index, previous };
                bytes.extend_from_slice(&header.encode());
                Some(new_segment(&self.dir.join(format::segment_name(at.segment)))?)
            }
        };
        let start = at.offset;
        for (seq, body) in batch {
            at.chain = format::push_entry(&mut bytes, &at.chain, at.index, body);
            at.index += 1;
            at.seq = at.seq.max(*seq);
            at.offset = start + bytes.len() as u64;
            mark(&mut marks, at);
        }
        let checkpoint = Checkpoint::sign(&self.secret, at.index, at.chain, now_ms);
        format::push_checkpoint(&mut bytes, checkpoint);
        at.offset = start + bytes.len() as u64;

        let file = rotated.as_ref().or(self.file.as_ref()).expect("a segment is open or was made");
        if self.dirty {
            file.set_len(start)?;
        }
        file.write_all_at(&bytes, start)?;
        file.sync_data()?;
        if rotated.is_some() {
            sync_dir(&self.dir)?;
        }
        tracing::debug!(target: TRACE, size = checkpoint.size, "synced");
        write_head(&self.dir, checkpoint)?;
        tracing::debug!(target: TRACE, size = checkpoint.size, "head");
        // The head file names the batch: it is in the log. That the rename itself is durable is
        // what `settle` waits for.
        if rotated.is_some() {
            self.file = rotated;
            self.marks.push(Place {
                offset: SEGMENT_HEADER as u64,
                segment: at.segment,
                ..self.end
            });
        }
        self.marks.extend(marks);
        self.end = at;
        self.checkpoint = checkpoint;
        Ok(())
    }

    /// Makes the head file's new name durable. Records are acknowledged after this.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn settle(&self) -> io::Result<()> {
        sync_dir(&self.dir)
    }

    /// The newest checkpoint.
    pub fn checkpoint(&self) -> Checkpoint {
        self.checkpoint
    }

    /// The statement of a checkpoint that was just verified, signed at `now_ms`.
    pub(crate) fn sign_again(&self, verified: Checkpoint, now_ms: u64) -> Checkpoint {
        Checkpoint::sign(&self.secret, verified.size, verified.head, now_ms)
    }

    /// The newest journal sequence number in the log.
    pub fn last_seq(&self) -> u64 {
        self.end.seq
    }

    /// What a reader of entries from `from` on needs to know.
    pub(crate) fn range(&self, from: u64, max_entries: u64, max_bytes: usize) -> Range {
        let to = self.checkpoint.size.min(from.saturating_add(max_entries));
        let nearest = self.marks.partition_point(|m| m.index <= from);
        let mut starts = nearest.checked_sub(1).map_or_else(Vec::new, |at| vec![self.marks[at]]);
        let headers = self.marks.iter().skip(nearest);
        starts.extend(headers.take_while(|m| m.index < to).filter(|m| is_start(m)));
        Range { dir: self.dir.clone(), head: self.checkpoint, starts, from, to, max_bytes }
    }

    /// Whether the directory holds this log and nothing more: its head, its key and the end of its
    /// last segment. What lies before that end is [`verify_until`]'s to check.
    pub(crate) fn check_ends(&self) -> Result<(), Damage> {
        let dir = &self.dir;
        if !matches!(read_head(dir)?, HeadFile::Present(head) if head == self.checkpoint) {
            return Err(file_damage(
                HEAD,
                self.end.index,
                "it does not name the last entry".into(),
            ));
        }
        match read_key(dir)? {
            Some(secret) => check_key(&secret, &self.checkpoint)?,
            None => return Err(file_damage(KEY, 0, "the log's key is gone".into())),
        }
        let Some(file) = &self.file else {
            return Ok(());
        };
        let name = format::segment_name(self.end.segment);
        let len =
            |e: io::Error| file_damage(&name, self.end.index, format!("it cannot be read: {e}"));
        let on_disk = fs::metadata(dir.join(&name)).map_err(len)?.len();
        let known = file.metadata().map_err(len)?.len();
        let extra = segments(dir)?.into_iter().any(|first| first > self.end.segment);
        if !self.dirty && (extra || on_disk != self.end.offset || known != self.end.offset) {
            let damage =
                file_damage(&name, self.end.index, "bytes that were never signed follow".into());
            return Err(Damage { offset: self.end.offset, ..damage });
        }
        Ok(())
    }
}

/// Verifies the log up to `head` while a [`Store`] may be appending behind it.
pub(crate) fn verify_until(dir: &Path, head: Checkpoint) -> Result<(), Damage> {
    let mut walk = Walk::new(head, 0);
    walk.until(head);
    walk_segments(dir, &mut walk, &segments(dir)?, |_, _| true).map_err(|(damage, _)| damage)?;
    walk.finish().map(|_| ())
}

/// A stretch of committed entries, readable while the store goes on appending.
pub(crate) struct Range {
    dir: PathBuf,
    head: Checkpoint,
    starts: Vec<Place>,
    from: u64,
    to: u64,
    max_bytes: usize,
}

impl Range {
    /// Reads the entries and checks them against the chain (M2). At least one, if there is one,
    /// and then as many as `max_bytes` allows.
    pub(crate) fn read(&self) -> Result<Vec<Stored>, Damage> {
        let mut found = Vec::new();
        let mut bytes = 0;
        for start in &self.starts {
            let mut walk = Walk::resume(self.head, *start);
            let name = format::segment_name(start.segment);
            let open = || -> io::Result<_> {
                let mut file = File::open(self.dir.join(&name))?;
                file.seek(SeekFrom::Start(start.offset))?;
                Ok(BufReader::with_capacity(READ_BUFFER, file))
            };
            let reader = open().map_err(|e| walk.damage(format!("it cannot be read: {e}")))?;
            let mut full = start.index >= self.to;
            if !full {
                walk.frames(reader, |behind, body| {
                    let index = behind.index - 1;
                    bytes += if index >= self.from { body.len() } else { 0 };
                    full = index >= self.to || (bytes > self.max_bytes && !found.is_empty());
                    if !full && index >= self.from {
                        found.push(Stored { index, body: body.to_vec(), hash: behind.chain });
                    }
                    full |= behind.index >= self.to;
                    !full
                })?;
            }
            if full {
                break;
            }
        }
        Ok(found)
    }
}

fn is_start(place: &Place) -> bool {
    place.offset == SEGMENT_HEADER as u64
}

fn mark(marks: &mut Vec<Place>, behind: Place) {
    if behind.index.is_multiple_of(MARK_EVERY) {
        marks.push(behind);
    }
}

/// What to say about a log that lacks entries that its head file names.
fn lost(walk: &Walk, found: Option<Damage>) -> Damage {
    found.or_else(|| walk.finish().err()).unwrap_or_else(|| {
        walk.damage("the checkpoint in the log is not the one in the head file".into())
    })
}

/// Walks all segments in order. With an error comes whether it is in the last segment.
fn walk_segments(
    dir: &Path,
    walk: &mut Walk,
    firsts: &[u64],
    mut visit: impl FnMut(Place, &[u8]) -> bool,
) -> Result<(), (Damage, bool)> {
    for (n, first) in firsts.iter().enumerate() {
        if walk.is_over() {
            break;
        }
        let last = n + 1 == firsts.len();
        let name = format::segment_name(*first);
        let file = File::open(dir.join(&name))
            .map_err(|e| (file_damage(&name, *first, format!("it cannot be read: {e}")), last))?;
        let reader = BufReader::with_capacity(READ_BUFFER, file);
        walk.segment(*first, reader, &mut visit).map_err(|damage| (damage, last))?;
    }
    Ok(())
}

/// The first indices of all segments, in order.
fn segments(dir: &Path) -> Result<Vec<u64>, Damage> {
    let unreadable = |e: io::Error| file_damage(".", 0, format!("it cannot be read: {e}"));
    let mut firsts = Vec::new();
    for entry in fs::read_dir(dir).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name().to_string_lossy().into_owned();
        match format::parse_segment_name(&name) {
            Some(first) => firsts.push(first),
            None if name.starts_with("log-") => {
                return Err(file_damage(&name, 0, "this is no name of a segment".into()));
            }
            None => {}
        }
    }
    firsts.sort_unstable();
    Ok(firsts)
}

fn file_damage(file: &str, index: u64, reason: String) -> Damage {
    Damage { index, file: file.into(), offset: 0, reason, torn: false }
}

enum HeadFile {
    Present(Checkpoint),
    Absent,
    Newer(u32),
}

fn read_head(dir: &Path) -> Result<HeadFile, Damage> {
    let Some(bytes) = read_small(dir, HEAD, format::HEAD_BYTES)? else {
        return Ok(HeadFile::Absent);
    };
    match format::decode_head(&bytes) {
        Ok(head) => Ok(HeadFile::Present(head)),
        Err(Bad::Newer(version)) => Ok(HeadFile::Newer(version)),
        Err(bad) => Err(file_damage(HEAD, 0, bad_reason(&bad))),
    }
}

fn read_key(dir: &Path) -> Result<Option<HolderSecret>, Damage> {
    let Some(bytes) = read_small(dir, KEY, KEY_BYTES)? else {
        return Ok(None);
    };
    let bytes = Zeroizing::new(bytes);
    let damaged = || file_damage(KEY, 0, "the key is damaged".into());
    let (seed, public) = bytes.split_first_chunk::<SECRET_BYTES>().ok_or_else(damaged)?;
    let Ok(secret) = HolderSecret::fill::<Infallible>(|place| {
        place.copy_from_slice(seed);
        Ok(())
    });
    if secret.key().0.as_slice() == public { Ok(Some(secret)) } else { Err(damaged()) }
}

fn check_key(secret: &HolderSecret, head: &Checkpoint) -> Result<(), Damage> {
    if secret.key() == head.key {
        Ok(())
    } else {
        Err(file_damage(HEAD, 0, "it is signed by another key than this log's".into()))
    }
}

/// A whole small file, read no further than one byte past the length that it should have.
fn read_small(dir: &Path, name: &str, len: usize) -> Result<Option<Vec<u8>>, Damage> {
    let unreadable = |e: io::Error| file_damage(name, 0, format!("it cannot be read: {e}"));
    let mut file = match File::open(dir.join(name)) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(unreadable(e)),
    };
    let mut bytes = vec![0; len + 1];
    let filled = fill(&mut file, &mut bytes).map_err(unreadable)?;
    bytes.truncate(filled);
    Ok(Some(bytes))
}

/// A new log: a head that names no entry, then the key.
fn create(
    dir: &Path,
    seed: impl FnOnce(&mut [u8; SECRET_BYTES]) -> io::Result<()>,
    now_ms: u64,
) -> io::Result<(HolderSecret, Checkpoint)> {
    let secret = HolderSecret::fill(seed)?;
    let head = Checkpoint::sign(&secret, 0, format::genesis(secret.key()), now_ms);
    write_head(dir, head)?;
    sync_dir(dir)?;
    let bytes = Zeroizing::new([secret.seed().as_slice(), &secret.key().0].concat());
    replace(dir, KEY, &bytes)?;
    sync_dir(dir)?;
    Ok((secret, head))
}

fn write_head(dir: &Path, checkpoint: Checkpoint) -> io::Result<()> {
    replace(dir, HEAD, &format::encode_head(checkpoint))
}

/// Replaces a small file in one step. Only the service itself may read it.
fn replace(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!("{name}.new"));
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    fs::rename(&temporary, dir.join(name))
}

fn new_segment(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Removes what stands behind `end` and opens the last segment. What a process that was killed
/// wrote there was read whether it was synced or not: it is durable when this returns, so that the
/// head file never names what could be lost.
fn cut_tail(dir: &Path, end: &Place, firsts: &[u64]) -> io::Result<Option<File>> {
    let has_entries = end.offset > 0;
    for first in firsts.iter().filter(|first| !has_entries || **first > end.segment) {
        fs::remove_file(dir.join(format::segment_name(*first)))?;
    }
    if !has_entries {
        return Ok(None);
    }
    let path = dir.join(format::segment_name(end.segment));
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    if file.metadata()?.len() != end.offset {
        file.set_len(end.offset)?;
    }
    file.sync_all()?;
    Ok(Some(file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::FRAME_HEADER;
    use crate::record;
    use proptest::prelude::*;
    use tempfile::TempDir;

    /// Small enough for a log of a few batches to have several segments.
    const TINY_SEGMENT: u64 = 700;

    fn seed(seed: &mut [u8; SECRET_BYTES]) -> io::Result<()> {
        seed.fill(7);
        Ok(())
    }

    fn open(dir: &Path) -> Result<Store, OpenError> {
        Store::open(dir, seed, 1, TINY_SEGMENT)
    }

    fn incoming(seq: u64) -> Incoming {
        let mut message = capnp::message::Builder::new_default();
        let mut record = message.init_root::<distos_schemas::kernel_capnp::record::Builder<'_>>();
        record.set_seq(seq);
        record.set_kind("mint");
        record.set_detail(format!("region {seq}"));
        (seq, record::body_of(record.into_reader()).unwrap())
    }

    /// Batches of two records each.
    fn grow(store: &mut Store, batches: u64) {
        for _ in 0..batches {
            let next = store.last_seq() + 1;
            store.append(&[incoming(next), incoming(next + 1)], 1_000 + next).unwrap();
            store.settle().unwrap();
        }
    }

    fn log_of(batches: u64) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        grow(&mut open(dir.path()).unwrap(), batches);
        dir
    }

    fn seqs(store: &Store) -> Vec<u64> {
        let all = store.range(0, u64::MAX, usize::MAX).read().unwrap();
        all.iter().map(|e| record::Body::new(&e.body).seq().unwrap()).collect()
    }

    fn files(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn copy(from: &Path) -> TempDir {
        let to = tempfile::tempdir().unwrap();
        for name in files(from) {
            fs::copy(from.join(&name), to.path().join(&name)).unwrap();
        }
        to
    }

    /// Where frames (and the header) start in a segment.
    fn frame_starts(bytes: &[u8]) -> Vec<u64> {
        let (mut starts, mut at) = (vec![0], SEGMENT_HEADER);
        while at < bytes.len() {
            starts.push(at as u64);
            let len = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
            at += FRAME_HEADER + len;
        }
        starts
    }

    #[test]
    fn an_auditor_reads_every_record_once_and_in_order_after_a_restart() {
        let dir = log_of(5);
        let mut store = open(dir.path()).unwrap();
        assert_eq!(seqs(&store), (1..=10).collect::<Vec<_>>());
        grow(&mut store, 2);
        assert_eq!(seqs(&store), (1..=14).collect::<Vec<_>>());
        assert!(files(dir.path()).len() > 4, "several segments");
        let verified = verify_dir(dir.path(), None);
        assert_eq!(verified.damage, None);
        assert_eq!(verified.checkpoint.unwrap().size, 14);
        verify_until(dir.path(), store.checkpoint()).unwrap();
        store.check_ends().unwrap();
    }

    #[test]
    fn nobody_but_the_service_may_read_its_key() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = log_of(1);
        for name in files(dir.path()) {
            let mode = fs::metadata(dir.path().join(&name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn a_flipped_byte_anywhere_in_the_stored_log_is_found_and_located() {
        let dir = log_of(4);
        let store = open(dir.path()).unwrap();
        for name in files(dir.path()) {
            let path = dir.path().join(&name);
            let good = fs::read(&path).unwrap();
            let starts = if name.starts_with("log-") { frame_starts(&good) } else { vec![0] };
            for at in 0..good.len() {
                let mut bad = good.clone();
                bad[at] ^= if at % 2 == 0 { 0x01 } else { 0x80 };
                fs::write(&path, &bad).unwrap();
                let damage = verify_dir(dir.path(), None).damage;
                let damage = damage.unwrap_or_else(|| panic!("{name} byte {at} was not found"));
                let start = *starts.iter().rev().find(|start| **start <= at as u64).unwrap();
                assert_eq!(
                    (damage.file.as_str(), damage.offset),
                    (name.as_str(), start),
                    "byte {at}: {damage}"
                );
                // The running service finds it too.
                let live =
                    verify_until(dir.path(), store.checkpoint()).and_then(|()| store.check_ends());
                assert_eq!(live.unwrap_err().file, name, "byte {at}");
                // A restarted service adds nothing to such a log.
                assert!(matches!(open(dir.path()), Err(OpenError::Damaged(_))), "{name} byte {at}");
            }
            fs::write(&path, &good).unwrap();
        }
        assert_eq!(verify_dir(dir.path(), None).damage, None);
    }

    #[test]
    fn a_missing_byte_file_or_segment_is_found() {
        let dir = log_of(4);
        for name in files(dir.path()) {
            let path = dir.path().join(&name);
            let good = fs::read(&path).unwrap();
            for len in (0..good.len()).step_by(13).chain([good.len() - 1]) {
                fs::write(&path, &good[..len]).unwrap();
                assert!(verify_dir(dir.path(), None).damage.is_some(), "{name} cut to {len}");
                assert!(
                    matches!(open(dir.path()), Err(OpenError::Damaged(_))),
                    "{name} cut to {len}"
                );
                assert_eq!(fs::read(&path).unwrap(), good[..len], "a refused log is left as it is");
            }
            fs::remove_file(&path).unwrap();
            assert!(matches!(open(dir.path()), Err(OpenError::Damaged(_))), "{name} removed");
            // Offline, the key is not needed; everything else is.
            assert_eq!(
                verify_dir(dir.path(), None).damage.is_none(),
                name == KEY,
                "{name} removed"
            );
            fs::write(&path, &good).unwrap();
        }
    }

    #[test]
    fn bytes_that_were_never_signed_are_found() {
        let dir = log_of(2);
        let store = open(dir.path()).unwrap();
        let last = dir.path().join(files(dir.path()).last().unwrap());
        let mut file = OpenOptions::new().append(true).open(last).unwrap();
        file.write_all(&[0; 3]).unwrap();
        assert!(verify_dir(dir.path(), None).damage.is_some());
        assert!(store.check_ends().is_err());
    }

    #[test]
    fn a_crash_in_the_middle_of_a_batch_loses_nothing_that_was_acknowledged() {
        for batches in 1..5 {
            let before = log_of(batches);
            let acknowledged = open(before.path()).unwrap().last_seq();
            let after = copy(before.path());
            grow(&mut open(after.path()).unwrap(), 1);
            let name = files(after.path()).pop().unwrap();
            let full = fs::read(after.path().join(&name)).unwrap();
            let start = fs::read(before.path().join(&name)).map_or(0, |old| old.len());
            for len in
                (start..full.len()).step_by(23).chain([start + 1, full.len() - 1, full.len()])
            {
                // Blocks that were allocated and never written read as zeros.
                for zeros in [0, 40] {
                    let crashed = copy(before.path());
                    let mut torn = full[..len].to_vec();
                    torn.resize(len + zeros, 0);
                    fs::write(crashed.path().join(&name), &torn).unwrap();
                    let mut store = open(crashed.path()).unwrap();
                    let kept = store.last_seq();
                    assert_eq!(
                        kept,
                        if len == full.len() { acknowledged + 2 } else { acknowledged }
                    );
                    assert_eq!(verify_dir(crashed.path(), None).damage, None);
                    grow(&mut store, 1);
                    assert_eq!(seqs(&store), (1..=kept + 2).collect::<Vec<_>>());
                    assert_eq!(verify_dir(crashed.path(), None).damage, None);
                }
            }
        }
    }

    #[test]
    fn a_full_disk_loses_nothing_and_doubles_nothing() {
        let dir = log_of(1);
        let mut store = open(dir.path()).unwrap();
        for round in 1..8 {
            let next = store.last_seq() + 1;
            let batch = [incoming(next), incoming(next + 1)];
            // Neither a new segment nor a new head file can be made.
            let is_rotation = store.end.offset >= TINY_SEGMENT;
            let segment = dir.path().join(format::segment_name(store.checkpoint().size));
            let head = dir.path().join("head.new");
            for block in [(is_rotation, segment), (true, head.clone())].iter().filter(|b| b.0) {
                fs::create_dir(&block.1).unwrap();
                assert!(store.append(&batch, 5).is_err(), "round {round}");
                assert_eq!(store.last_seq(), next - 1);
                fs::remove_dir(&block.1).unwrap();
            }
            // First more, then less: the retry does not leave the tail of what failed.
            fs::create_dir(&head).unwrap();
            assert!(store.append(&[incoming(90), incoming(91), incoming(92)], 5).is_err());
            fs::remove_dir(&head).unwrap();
            assert!(
                open(copy(dir.path()).path()).is_ok(),
                "a crash in the middle of it is survived"
            );
            store.append(&batch, 6).unwrap();
            assert_eq!(verify_dir(dir.path(), None).damage, None, "round {round}");
            store.check_ends().unwrap();
        }
        let last = store.last_seq();
        assert_eq!(seqs(&store), (1..=last).collect::<Vec<_>>());
        assert_eq!(seqs(&open(dir.path()).unwrap()), (1..=last).collect::<Vec<_>>());
    }

    #[test]
    fn a_rolled_back_log_is_found_by_whoever_kept_a_checkpoint() {
        let dir = log_of(2);
        let old = copy(dir.path());
        grow(&mut open(dir.path()).unwrap(), 2);
        let kept = verify_dir(dir.path(), None).checkpoint.unwrap();
        assert_eq!(verify_dir(dir.path(), Some(kept)).damage, None);
        assert_eq!(verify_dir(old.path(), None).damage, None, "by itself it looks intact");
        assert!(verify_dir(old.path(), Some(kept)).damage.unwrap().reason.contains("lost"));

        // A fork: the same key, the same length, another history.
        let mut fork = open(old.path()).unwrap();
        fork.append(&[incoming(77), incoming(78)], 1).unwrap();
        fork.append(&[incoming(79), incoming(80)], 1).unwrap();
        let damage = verify_dir(old.path(), Some(kept)).damage.unwrap();
        assert!(damage.reason.contains("forked"), "{damage}");
        grow(&mut fork, 1);
        assert!(verify_dir(old.path(), Some(kept)).damage.is_some());

        // Another log altogether, and a checkpoint that nobody signed.
        let other = tempfile::tempdir().unwrap();
        grow(
            &mut Store::open(
                other.path(),
                |seed| {
                    seed.fill(8);
                    Ok(())
                },
                1,
                TINY_SEGMENT,
            )
            .unwrap(),
            2,
        );
        assert!(
            verify_dir(other.path(), Some(kept)).damage.unwrap().reason.contains("another key")
        );
        let forged = Checkpoint { size: kept.size + 1, ..kept };
        assert!(verify_dir(dir.path(), Some(forged)).damage.unwrap().reason.contains("signature"));
    }

    #[test]
    fn a_head_file_that_was_put_back_alone_is_found_and_mended() {
        let dir = log_of(1);
        let old = fs::read(dir.path().join(HEAD)).unwrap();
        grow(&mut open(dir.path()).unwrap(), 1);
        fs::write(dir.path().join(HEAD), old).unwrap();
        assert_eq!(verify_dir(dir.path(), None).damage.unwrap().file, HEAD);
        assert_eq!(open(dir.path()).unwrap().last_seq(), 4);
        assert_eq!(verify_dir(dir.path(), None).damage, None);
    }

    #[test]
    fn a_record_that_is_in_the_log_twice_is_found() {
        let dir = log_of(1);
        open(dir.path()).unwrap().append(&[incoming(2)], 1).unwrap();
        let damage = verify_dir(dir.path(), None).damage.unwrap();
        assert_eq!((damage.index, damage.reason.contains("twice")), (2, true), "{damage}");
    }

    #[test]
    fn a_first_start_that_was_interrupted_starts_again() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).unwrap();
        fs::remove_file(dir.path().join(KEY)).unwrap();
        grow(
            &mut Store::open(
                dir.path(),
                |seed| {
                    seed.fill(9);
                    Ok(())
                },
                1,
                TINY_SEGMENT,
            )
            .unwrap(),
            1,
        );
        assert_eq!(verify_dir(dir.path(), None).damage, None);
        fs::remove_file(dir.path().join(KEY)).unwrap();
        assert!(matches!(open(dir.path()), Err(OpenError::Damaged(_))), "not with entries in it");
    }

    #[test]
    fn a_newer_log_is_refused_as_newer_and_left_alone() {
        let dir = log_of(1);
        let path = dir.path().join(HEAD);
        let mut head = fs::read(&path).unwrap();
        head[8] = 2;
        let sum = blake3::hash(&head[..head.len() - 32]);
        let at = head.len() - 32;
        head[at..].copy_from_slice(sum.as_bytes());
        fs::write(&path, &head).unwrap();
        let error = open(dir.path()).err().unwrap();
        assert!(matches!(error, OpenError::Newer(2)));
        assert!(error.to_string().contains("newer version"));
        assert!(verify_dir(dir.path(), None).damage.unwrap().reason.contains("newer"));
    }

    #[test]
    fn a_reader_is_never_shown_a_changed_entry() {
        let dir = log_of(1);
        let store = open(dir.path()).unwrap();
        let path = dir.path().join(format::segment_name(0));
        let mut bytes = fs::read(&path).unwrap();
        bytes[SEGMENT_HEADER + FRAME_HEADER + 20] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(store.range(0, 2, usize::MAX).read().is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn a_reader_gets_exactly_the_entries_that_it_asked_for(
            sizes in proptest::collection::vec(1u64..300, 1..6),
            asks in proptest::collection::vec((0u64..1500, 0u64..700), 1..20),
            segment in 1_000u64..60_000,
            reopen: bool,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut store = Store::open(dir.path(), seed, 1, segment).unwrap();
            for size in sizes {
                let next = store.last_seq() + 1;
                let batch: Vec<Incoming> = (next..next + size).map(incoming).collect();
                store.append(&batch, 1).unwrap();
            }
            let size = store.checkpoint().size;
            if reopen {
                store = Store::open(dir.path(), seed, 1, segment).unwrap();
            }
            for (from, max) in asks {
                let found = store.range(from, max, usize::MAX).read().unwrap();
                let got: Vec<u64> = found.iter().map(|e| e.index).collect();
                let wanted: Vec<u64> = (from..size.min(from + max).max(from)).collect();
                prop_assert_eq!(got, wanted);
            }
            let some = store.range(0, size, 500).read().unwrap();
            prop_assert!(!some.is_empty() && some.iter().map(|e| e.body.len()).sum::<usize>() < 700);
        }
    }
}
