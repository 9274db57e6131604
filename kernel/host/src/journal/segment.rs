//! The bytes of a journal segment, and what can be recovered from them. No I/O.
//!
//! ```text
//! segment  magic 8 | version u32 | reserved u32 | key 32 | check 16 | then frames, then zeros
//! frame    magic u32 | len u32 | kind u8 | seq u64 | time_ms u64 | synced u64
//!          | prev 32 | payload len | hash 32
//! ```
//!
//! `hash` is BLAKE3 over the rest of the frame under the segment's key, a random number that nobody
//! outside the kernel can read: text that a vat reports can't be made to look like a frame. `prev` is the hash of the frame before, across
//! segments. `synced` is the newest sequence number that was durable when the frame was written.
//! It is what tells a torn tail from damage: a crash may leave any part of what was not yet
//! synced, in any order, so a bad frame is damage only if a later frame says that it was durable.

/// First bytes of every segment.
const SEGMENT_MAGIC: [u8; 8] = *b"DISTOSJ\n";
/// Layout that this version writes.
const VERSION: u32 = 1;
/// Where frames start.
pub const SEGMENT_HEADER_BYTES: usize = 64;
const FRAME_MAGIC: u32 = 0x4c4e_524a;
const FRAME_HEADER_BYTES: usize = 4 + 4 + 1 + 8 + 8 + 8 + 32;
const HASH_BYTES: usize = 32;
/// Longest payload of one frame.
pub const MAX_PAYLOAD_BYTES: usize = 16 * 1024;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// A record, which raises the sequence number by one.
    Record,
    /// Part of a snapshot, which repeats the sequence number of the record before it.
    Snapshot,
    /// The last part of a snapshot: from here on it is complete.
    SnapshotEnd,
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it holds.
    pub kind: FrameKind,
    /// Sequence number, from 1, without gaps.
    pub seq: u64,
    /// When it was written, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// The record.
    pub payload: Vec<u8>,
}

/// Where the chain of frames stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Sequence number of the last frame; 0 before the first.
    pub seq: u64,
    /// Hash of the last frame.
    pub hash: [u8; HASH_BYTES],
}

impl Chain {
    /// Before the first frame of a journal.
    pub const START: Chain = Chain { seq: 0, hash: [0; HASH_BYTES] };
}

/// What a segment's bytes hold.
#[derive(Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Every whole frame that continues the one before it.
    pub frames: Vec<Frame>,
    /// Where the next frame goes.
    pub end: usize,
    /// After the last frame.
    pub chain: Chain,
    /// Whether bytes of an unfinished write follow.
    pub torn: bool,
}

/// Why a segment cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Not a segment at all.
    Header,
    /// Of a later version of DistOS.
    Newer(u32),
    /// A frame that was durable is not what was written; the offset within the segment.
    Frame(usize),
}

/// The key of a segment's frames.
pub type Key = [u8; 32];

/// The header of a new segment.
pub fn header(key: &Key) -> [u8; SEGMENT_HEADER_BYTES] {
    let mut out = [0; SEGMENT_HEADER_BYTES];
    out[..8].copy_from_slice(&SEGMENT_MAGIC);
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out[16..48].copy_from_slice(key);
    let check = blake3::hash(&out[..48]);
    out[48..].copy_from_slice(&check.as_bytes()[..16]);
    out
}

/// The key that a segment's header holds.
///
/// # Errors
/// [`Damage`] if it is no header of this version.
pub fn key_of(bytes: &[u8]) -> Result<Key, Damage> {
    if bytes.get(..8) != Some(&SEGMENT_MAGIC[..]) {
        return Err(Damage::Header);
    }
    match u32::from_le_bytes(array(bytes, 8).ok_or(Damage::Header)?) {
        VERSION => {}
        version if version > VERSION => return Err(Damage::Newer(version)),
        _ => return Err(Damage::Header),
    }
    let key = array(bytes, 16).ok_or(Damage::Header)?;
    // Without its key, every frame would look like an unfinished write.
    if bytes.get(..SEGMENT_HEADER_BYTES) != Some(&header(&key)[..]) {
        return Err(Damage::Header);
    }
    Ok(key)
}

/// How long a frame with this payload is.
pub fn frame_bytes(payload: usize) -> usize {
    FRAME_HEADER_BYTES + payload + HASH_BYTES
}

/// Appends a frame to `out` and moves the chain on.
pub fn append(out: &mut Vec<u8>, key: &Key, chain: &mut Chain, synced: u64, frame: &Frame) {
    let start = out.len();
    out.extend(FRAME_MAGIC.to_le_bytes());
    out.extend((frame.payload.len() as u32).to_le_bytes());
    out.push(match frame.kind {
        FrameKind::Record => 0,
        FrameKind::Snapshot => 1,
        FrameKind::SnapshotEnd => 2,
    });
    out.extend(frame.seq.to_le_bytes());
    out.extend(frame.time_ms.to_le_bytes());
    out.extend(synced.to_le_bytes());
    out.extend(chain.hash);
    out.extend(&frame.payload);
    let hash = *blake3::keyed_hash(key, &out[start..]).as_bytes();
    out.extend(hash);
    *chain = Chain { seq: frame.seq, hash };
}

/// A frame that is whole in itself.
struct Whole {
    frame: Frame,
    synced: u64,
    prev: [u8; HASH_BYTES],
    hash: [u8; HASH_BYTES],
    bytes: usize,
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn read(key: &Key, bytes: &[u8]) -> Option<Whole> {
    if u32::from_le_bytes(array(bytes, 0)?) != FRAME_MAGIC {
        return None;
    }
    let len = u32::from_le_bytes(array(bytes, 4)?) as usize;
    if len > MAX_PAYLOAD_BYTES {
        return None;
    }
    let kind = match bytes.get(8)? {
        0 => FrameKind::Record,
        1 => FrameKind::Snapshot,
        2 => FrameKind::SnapshotEnd,
        _ => return None,
    };
    let body = bytes.get(..FRAME_HEADER_BYTES + len)?;
    let hash: [u8; HASH_BYTES] = array(bytes, body.len())?;
    if *blake3::keyed_hash(key, body).as_bytes() != hash {
        return None;
    }
    let frame = Frame {
        kind,
        seq: u64::from_le_bytes(array(bytes, 9)?),
        time_ms: u64::from_le_bytes(array(bytes, 17)?),
        payload: body[FRAME_HEADER_BYTES..].to_vec(),
    };
    let synced = u64::from_le_bytes(array(bytes, 25)?);
    Some(Whole { frame, synced, prev: array(bytes, 33)?, hash, bytes: frame_bytes(len) })
}

impl Whole {
    fn follows(&self, chain: &Chain) -> bool {
        let seq = match self.frame.kind {
            FrameKind::Record => chain.seq + 1,
            FrameKind::Snapshot | FrameKind::SnapshotEnd => chain.seq,
        };
        self.prev == chain.hash && self.frame.seq == seq
    }
}

/// Reads a segment that follows `chain`; `None` for the oldest one, whose predecessors were
/// trimmed.
///
/// # Errors
/// [`Damage`] if something that was durable is not as it was written.
pub fn recover(bytes: &[u8], chain: Option<Chain>) -> Result<Recovered, Damage> {
    let key = key_of(bytes)?;
    let mut frames = Vec::new();
    let mut end = SEGMENT_HEADER_BYTES;
    let mut chain = chain;
    while let Some(whole) = read(&key, &bytes[end..]) {
        if chain.is_some_and(|chain| !whole.follows(&chain)) {
            break;
        }
        chain = Some(Chain { seq: whole.frame.seq, hash: whole.hash });
        end += whole.bytes;
        frames.push(whole.frame);
    }
    let chain = chain.unwrap_or(Chain::START);
    let rest = &bytes[end..];
    let torn = rest.iter().any(|byte| *byte != 0);
    if torn && was_durable(&key, rest, chain.seq) {
        return Err(Damage::Frame(end));
    }
    Ok(Recovered { frames, end, chain, torn })
}

/// Whether a whole frame in `rest` says that something after `seq` had been durable.
fn was_durable(key: &Key, rest: &[u8], seq: u64) -> bool {
    let magic = FRAME_MAGIC.to_le_bytes();
    let starts = rest.windows(4).enumerate().filter(|(_, window)| *window == magic);
    starts.filter_map(|(at, _)| read(key, &rest[at..])).any(|whole| whole.synced > seq)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = [9; 32];

    /// Three frames, the first two durable before the third was written; where each starts.
    fn segment() -> (Vec<u8>, Vec<usize>) {
        let mut bytes = header(&KEY).to_vec();
        let mut chain = Chain::START;
        let mut starts = Vec::new();
        for (seq, synced) in [(1, 0), (2, 1), (3, 2)] {
            starts.push(bytes.len());
            let payload = format!("record {seq}").into_bytes();
            let frame = Frame { kind: FrameKind::Record, seq, time_ms: seq, payload };
            append(&mut bytes, &KEY, &mut chain, synced, &frame);
        }
        starts.push(bytes.len());
        bytes.resize(bytes.len() + 200, 0);
        (bytes, starts)
    }

    #[test]
    fn what_was_written_is_read() {
        let (bytes, starts) = segment();
        let read = recover(&bytes, Some(Chain::START)).unwrap();
        assert_eq!(read.frames.iter().map(|f| f.seq).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(!read.torn);
        assert_eq!(read.end, starts[3]);
    }

    #[test]
    fn a_flipped_byte_never_yields_a_wrong_record_and_never_hides_a_durable_one() {
        let (bytes, starts) = segment();
        let whole = recover(&bytes, Some(Chain::START)).unwrap().frames;
        for at in 0..starts[3] {
            let mut bad = bytes.clone();
            bad[at] ^= 0x40;
            match recover(&bad, Some(Chain::START)) {
                Ok(read) => {
                    assert!(at >= starts[2], "byte {at} of a durable frame was dropped in silence");
                    assert_eq!(read.frames, whole[..2]);
                    assert!(read.torn);
                }
                Err(_) => assert!(at < starts[2], "byte {at} of an unfinished write is no damage"),
            }
        }
    }

    #[test]
    fn any_cut_leaves_whole_records_in_order() {
        let (bytes, starts) = segment();
        let whole = recover(&bytes, Some(Chain::START)).unwrap().frames;
        for len in SEGMENT_HEADER_BYTES..starts[3] {
            let mut cut = bytes.clone();
            cut[len..].fill(0);
            let read = recover(&cut, Some(Chain::START)).unwrap();
            let kept = starts[1..].iter().filter(|start| **start <= len).count();
            assert_eq!(read.frames, whole[..kept], "cut at {len}");
        }
    }

    #[test]
    fn a_frame_of_another_journal_does_not_join_the_chain() {
        let (bytes, _) = segment();
        let other = Chain { seq: 0, hash: [7; 32] };
        assert_eq!(recover(&bytes, Some(other)), Err(Damage::Frame(SEGMENT_HEADER_BYTES)));
    }

    #[test]
    fn a_report_that_looks_like_a_frame_is_not_taken_for_one() {
        let (mut bytes, starts) = segment();
        // The third frame is torn, and what it held says that a hundred records were durable.
        let forged = Frame { kind: FrameKind::Record, seq: 100, time_ms: 0, payload: vec![] };
        let mut text = Vec::new();
        append(&mut text, &[0; 32], &mut Chain { seq: 99, hash: [0; 32] }, 100, &forged);
        bytes[starts[2]..starts[2] + text.len()].copy_from_slice(&text);
        let read = recover(&bytes, Some(Chain::START)).unwrap();
        assert!(read.torn);
        assert_eq!(read.frames.len(), 2);
    }

    #[test]
    fn a_newer_layout_is_named() {
        let (mut bytes, _) = segment();
        bytes[8] = 2;
        assert_eq!(recover(&bytes, None), Err(Damage::Newer(2)));
        assert_eq!(recover(&bytes[..4], None), Err(Damage::Header));
    }
}
