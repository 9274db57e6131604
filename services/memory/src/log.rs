//! The index log: what its records say and how they stand in the file. Pure functions over bytes.
//!
//! The file is a header sector and then frames. A frame is what one `fdatasync` made durable:
//! header, records, padding and a BLAKE3 hash, in whole sectors, chained to the frame before it.
//! The next frame is written only after the sync, so at most the last frame can be torn, and a torn
//! frame lacks whole sectors: it ends early, or a sector of it, none of which is ever all zeros when
//! whole, is zeros. Such a frame was never acknowledged and is cut. Any other mismatch is damage to
//! acknowledged data and is an error, never a guess.

use distos_abi::{CapId, ObjectId, TenantId};

use crate::error::StoreError;
use crate::sealed::PageHash;
use crate::state::{Facts, MAX_NAME_BYTES};

/// The newest format that this program reads, and the one that it writes.
pub const FORMAT: u32 = 1;
/// What a disk writes whole or not at all, in bytes.
pub const SECTOR: usize = 512;
/// The most bytes of records in one frame.
pub const MAX_PAYLOAD: usize = 1 << 20;

const FILE_MAGIC: [u8; 16] = *b"distos mem index";
const FRAME_MAGIC: [u8; 4] = *b"DMXF";
const HEADER: usize = 56;
const HASH: usize = 32;

/// A change of the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Numbers that were given out, so that a compacted log does not forget them.
    Counters {
        /// The last object number.
        object: u64,
        /// The last page version.
        version: u64,
    },
    /// A region was made. It counts only if the kernel knows a capability to it.
    RegionCreated {
        /// Its number.
        object: ObjectId,
        /// What is fixed about it.
        facts: Facts,
        /// Where its key is; `None` if it is volatile.
        key_slot: Option<u32>,
    },
    /// Pages were replaced. Their content is durable.
    PagesWritten {
        /// The region.
        object: ObjectId,
        /// The pages.
        pages: Vec<PageRecord>,
    },
    /// A region is gone and its key destroyed.
    RegionDropped {
        /// Its number.
        object: ObjectId,
    },
}

/// Where one page's newest version is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRecord {
    /// The page within its region.
    pub page: u32,
    /// The slot of the extent file.
    pub slot: u32,
    /// Its version.
    pub version: u64,
    /// BLAKE3 of its plain text (M2).
    pub hash: PageHash,
}

/// Appends a record's bytes to `out`.
pub fn encode(record: &Record, out: &mut Vec<u8>) {
    match record {
        Record::Counters { object, version } => {
            out.push(1);
            out.extend(object.to_le_bytes());
            out.extend(version.to_le_bytes());
        }
        Record::RegionCreated { object, facts, key_slot } => {
            out.push(2);
            out.extend(object.0.to_le_bytes());
            out.extend(facts.tenant.0.to_le_bytes());
            out.extend(facts.bytes.to_le_bytes());
            out.push(u8::from(facts.durable));
            out.extend(key_slot.unwrap_or(u32::MAX).to_le_bytes());
            out.push(facts.name.len() as u8);
            out.extend(facts.name.as_bytes());
            out.push(facts.lineage.len() as u8);
            facts.lineage.iter().for_each(|cap| out.extend(cap.0.to_le_bytes()));
        }
        Record::PagesWritten { object, pages } => {
            out.push(3);
            out.extend(object.0.to_le_bytes());
            out.extend((pages.len() as u16).to_le_bytes());
            for page in pages {
                out.extend(page.page.to_le_bytes());
                out.extend(page.slot.to_le_bytes());
                out.extend(page.version.to_le_bytes());
                out.extend(page.hash);
            }
        }
        Record::RegionDropped { object } => {
            out.push(4);
            out.extend(object.0.to_le_bytes());
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.bytes::<1>().map(|[b]| b)
    }

    fn u16(&mut self) -> Option<u16> {
        self.bytes().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn text(&mut self, len: usize) -> Option<String> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        String::from_utf8(head.to_vec()).ok()
    }

    fn record(&mut self) -> Option<Record> {
        Some(match self.u8()? {
            1 => Record::Counters { object: self.u64()?, version: self.u64()? },
            2 => self.created()?,
            3 => {
                let object = ObjectId(self.u64()?);
                let count = self.u16()?;
                let pages = (0..count).map(|_| self.page()).collect::<Option<_>>()?;
                Record::PagesWritten { object, pages }
            }
            4 => Record::RegionDropped { object: ObjectId(self.u64()?) },
            _ => return None,
        })
    }

    fn created(&mut self) -> Option<Record> {
        let object = ObjectId(self.u64()?);
        let tenant = TenantId(self.u32()?);
        let bytes = self.u64()?;
        let durable = self.u8()? != 0;
        let key_slot = Some(self.u32()?).filter(|slot| *slot != u32::MAX);
        let len = usize::from(self.u8()?);
        let name = self.text(len).filter(|_| len <= MAX_NAME_BYTES)?;
        let count = self.u8()?;
        let lineage = (0..count).map(|_| self.u64().map(CapId)).collect::<Option<_>>()?;
        let facts = Facts { name, tenant, bytes, durable, lineage };
        Some(Record::RegionCreated { object, facts, key_slot })
    }

    fn page(&mut self) -> Option<PageRecord> {
        Some(PageRecord {
            page: self.u32()?,
            slot: self.u32()?,
            version: self.u64()?,
            hash: self.bytes()?,
        })
    }
}

/// The records of a frame; `None` if they are not what this program writes.
fn decode(payload: &[u8]) -> Option<Vec<Record>> {
    let mut reader = Reader(payload);
    let mut records = Vec::new();
    while !reader.0.is_empty() {
        records.push(reader.record()?);
    }
    Some(records)
}

/// The end of a log: what the next frame continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    /// Where the next frame goes.
    pub offset: u64,
    /// Its number.
    pub sequence: u64,
    /// Hash of the frame before it.
    pub chain: [u8; HASH],
}

/// A new log's header sector. `id` is random: frames of one log never continue another.
pub fn file_header(id: [u8; 16]) -> (Vec<u8>, Tail) {
    let mut sector = vec![0; SECTOR];
    sector[..16].copy_from_slice(&FILE_MAGIC);
    sector[16..20].copy_from_slice(&FORMAT.to_le_bytes());
    sector[20..36].copy_from_slice(&id);
    let chain = *blake3::hash(&sector[..SECTOR - HASH]).as_bytes();
    sector[SECTOR - HASH..].copy_from_slice(&chain);
    (sector, Tail { offset: SECTOR as u64, sequence: 0, chain })
}

fn frame_bytes(payload: usize) -> usize {
    (HEADER + payload + HASH).next_multiple_of(SECTOR)
}

/// A frame that continues `tail`, and the tail after it. At most [`MAX_PAYLOAD`] bytes.
pub fn frame(tail: Tail, payload: &[u8]) -> (Vec<u8>, Tail) {
    let mut bytes = Vec::with_capacity(frame_bytes(payload.len()));
    bytes.extend(FRAME_MAGIC);
    bytes.extend((payload.len() as u32).to_le_bytes());
    bytes.extend(tail.sequence.to_le_bytes());
    bytes.extend(tail.chain);
    let check = blake3::hash(&bytes);
    bytes.extend(&check.as_bytes()[..8]);
    bytes.extend(payload);
    bytes.resize(frame_bytes(payload.len()) - HASH, 0);
    let chain = *blake3::hash(&bytes).as_bytes();
    bytes.extend(chain);
    let offset = tail.offset + bytes.len() as u64;
    (bytes, Tail { offset, sequence: tail.sequence + 1, chain })
}

/// A frame header that is whole: payload length, sequence, chain.
fn frame_header(sector: &[u8]) -> Option<(usize, u64, [u8; HASH])> {
    let whole = sector[..4] == FRAME_MAGIC
        && blake3::hash(&sector[..HEADER - 8]).as_bytes()[..8] == sector[HEADER - 8..HEADER];
    let mut reader = Reader(&sector[4..HEADER]);
    let header = (reader.u32()? as usize, reader.u64()?, reader.bytes()?);
    (whole && header.0 <= MAX_PAYLOAD).then_some(header)
}

/// Reads bytes of a log at an offset; the range is within its length.
pub type ReadAt<'a> = &'a dyn Fn(u64, &mut [u8]) -> Result<(), StoreError>;

/// Reads a whole log of `len` bytes, giving each record to `each`, which says what is wrong with one
/// that makes no sense. Returns where the log ends; bytes beyond that are a torn frame, to be cut.
pub fn replay(
    dir: &str,
    len: u64,
    read: ReadAt<'_>,
    each: &mut dyn FnMut(Record) -> Result<(), String>,
) -> Result<Tail, StoreError> {
    let mut tail = open_header(dir, len, read)?;
    while tail.offset < len {
        let Some((payload, next)) = next_frame(len, read, tail)? else { break };
        let damage = |why: String| damaged(tail.offset, &why);
        for record in decode(&payload).ok_or_else(|| damage("unknown record".into()))? {
            each(record).map_err(damage)?;
        }
        tail = next;
    }
    Ok(tail)
}

fn damaged(offset: u64, why: &str) -> StoreError {
    StoreError::Corrupt(format!("index.log is damaged at byte {offset}: {why}"))
}

fn open_header(dir: &str, len: u64, read: ReadAt<'_>) -> Result<Tail, StoreError> {
    if len < SECTOR as u64 {
        return Err(damaged(0, "it ends within its header"));
    }
    let mut sector = vec![0; SECTOR];
    read(0, &mut sector)?;
    let mut reader = Reader(&sector[16..]);
    let found = reader.u32().unwrap_or(0);
    if sector[..16] != FILE_MAGIC {
        return Err(damaged(0, "it does not begin like an index"));
    }
    if blake3::hash(&sector[..SECTOR - HASH]) != sector[SECTOR - HASH..] {
        return Err(damaged(0, "its header is not what was written"));
    }
    if found > FORMAT {
        return Err(StoreError::Newer { dir: dir.to_owned(), found, known: FORMAT });
    }
    let id = reader.bytes().unwrap_or_default();
    Ok(file_header(id).1)
}

/// The frame at `tail`; `None` if it is torn.
fn next_frame(
    len: u64,
    read: ReadAt<'_>,
    tail: Tail,
) -> Result<Option<(Vec<u8>, Tail)>, StoreError> {
    let rest = len - tail.offset;
    if rest < SECTOR as u64 {
        return Ok(None);
    }
    let mut bytes = vec![0; SECTOR];
    read(tail.offset, &mut bytes)?;
    if bytes.iter().all(|b| *b == 0) {
        return torn(len, read, tail.offset + SECTOR as u64, tail.offset);
    }
    let (payload, sequence, chain) = frame_header(&bytes)
        .ok_or_else(|| damaged(tail.offset, "a frame's header does not match its checksum"))?;
    if (sequence, chain) != (tail.sequence, tail.chain) {
        return Err(damaged(tail.offset, "a frame does not continue the one before it"));
    }
    let total = frame_bytes(payload);
    if rest < total as u64 {
        return Ok(None);
    }
    bytes.resize(total, 0);
    read(tail.offset, &mut bytes)?;
    let (body, hash) = bytes.split_at(total - HASH);
    if blake3::hash(body) != *hash {
        return if bytes.chunks(SECTOR).any(|sector| sector.iter().all(|b| *b == 0)) {
            torn(len, read, tail.offset + total as u64, tail.offset)
        } else {
            Err(damaged(tail.offset, "a frame does not match its checksum"))
        };
    }
    let chain = hash.try_into().expect("split at its length");
    let next = Tail { offset: tail.offset + total as u64, sequence: sequence + 1, chain };
    Ok(Some((bytes[HEADER..HEADER + payload].to_vec(), next)))
}

/// A frame that lacks sectors is torn if no frame follows it; otherwise it was durable once.
fn torn<T>(len: u64, read: ReadAt<'_>, mut from: u64, at: u64) -> Result<Option<T>, StoreError> {
    let mut sector = vec![0; SECTOR];
    while from + SECTOR as u64 <= len {
        read(from, &mut sector)?;
        if frame_header(&sector).is_some() {
            return Err(damaged(at, "a frame is missing, later ones are there"));
        }
        from += SECTOR as u64;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn records(n: u64) -> Vec<Record> {
        vec![
            Record::Counters { object: n, version: n },
            Record::RegionCreated {
                object: ObjectId(n),
                facts: Facts {
                    name: format!("region-{n}"),
                    tenant: TenantId(7),
                    bytes: n << 20,
                    durable: !n.is_multiple_of(2),
                    lineage: vec![CapId(1), CapId(n)],
                },
                key_slot: (n % 2 == 1).then_some(n as u32),
            },
            Record::PagesWritten {
                object: ObjectId(n),
                pages: (0..20)
                    .map(|p| PageRecord {
                        page: p,
                        slot: p + 5,
                        version: n,
                        hash: [n as u8 | 1; 32],
                    })
                    .collect(),
            },
            Record::RegionDropped { object: ObjectId(n) },
        ]
    }

    fn log(frames: u64) -> (Vec<u8>, Vec<u64>) {
        let (mut bytes, mut tail) = file_header([3; 16]);
        let mut ends = vec![tail.offset];
        for n in 1..=frames {
            let mut payload = Vec::new();
            records(n).iter().for_each(|r| encode(r, &mut payload));
            let (frame, next) = frame(tail, &payload);
            bytes.extend(frame);
            tail = next;
            ends.push(tail.offset);
        }
        (bytes, ends)
    }

    fn read(bytes: &[u8]) -> Result<(Vec<Record>, u64), StoreError> {
        let mut found = Vec::new();
        let read = |at: u64, into: &mut [u8]| {
            into.copy_from_slice(&bytes[at as usize..][..into.len()]);
            Ok(())
        };
        let tail = replay("dir", bytes.len() as u64, &read, &mut |r| {
            found.push(r);
            Ok(())
        })?;
        Ok((found, tail.offset))
    }

    #[test]
    fn every_record_comes_back_as_it_was_written() {
        let (bytes, ends) = log(3);
        let expected: Vec<Record> = (1..=3).flat_map(records).collect();
        assert_eq!(read(&bytes), Ok((expected, ends[3])));
    }

    #[test]
    fn a_log_cut_anywhere_loses_only_the_frame_that_was_cut() {
        let (bytes, ends) = log(3);
        for cut in (SECTOR..bytes.len()).step_by(37) {
            let (found, end) = read(&bytes[..cut]).unwrap();
            let whole = ends.iter().rposition(|e| *e <= cut as u64).unwrap();
            assert_eq!((found.len(), end), (4 * whole, ends[whole]), "cut at {cut}");
        }
        assert!(read(&bytes[..100]).is_err());
    }

    #[test]
    fn a_flipped_byte_anywhere_in_the_log_is_an_error_and_never_a_silent_loss() {
        let (bytes, _) = log(3);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x04;
            assert!(matches!(read(&damaged), Err(StoreError::Corrupt(_))), "byte {at}");
        }
    }

    #[test]
    fn a_missing_frame_before_others_is_an_error() {
        let (bytes, ends) = log(3);
        let mut hole = bytes.clone();
        hole[ends[1] as usize..ends[2] as usize].fill(0);
        assert!(matches!(read(&hole), Err(StoreError::Corrupt(_))));
        let mut gone = bytes.clone();
        gone.drain(ends[1] as usize..ends[2] as usize);
        assert!(matches!(read(&gone), Err(StoreError::Corrupt(_))));
    }

    #[test]
    fn a_log_of_a_newer_version_is_named_as_such() {
        let (mut bytes, _) = log(1);
        bytes[16] = FORMAT as u8 + 1;
        let check = blake3::hash(&bytes[..SECTOR - HASH]);
        bytes[SECTOR - HASH..SECTOR].copy_from_slice(check.as_bytes());
        let error = read(&bytes).unwrap_err();
        assert_eq!(
            error,
            StoreError::Newer { dir: "dir".into(), found: FORMAT + 1, known: FORMAT }
        );
    }

    proptest! {
        #[test]
        fn a_last_frame_with_any_sectors_missing_is_cut(mask in any::<u64>()) {
            let (bytes, ends) = log(2);
            let mut torn = bytes.clone();
            let sectors = (ends[2] - ends[1]) as usize / SECTOR;
            let last = &mut torn[ends[1] as usize..];
            let mut whole = true;
            for (n, sector) in last.chunks_mut(SECTOR).enumerate().take(sectors) {
                if mask >> (n % 64) & 1 == 1 {
                    sector.fill(0);
                    whole = false;
                }
            }
            let frames = if whole { 2 } else { 1 };
            prop_assert_eq!(read(&torn).map(|(_, end)| end), Ok(ends[frames]));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let _ = read(&bytes);
            let _ = decode(&bytes);
        }
    }
}
