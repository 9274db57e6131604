//! The index log: what its records say and how they stand in the file. Pure functions over bytes.
//!
//! The file is one of [`distos_rpc::log`]; a frame's payload is records.

use distos_abi::{CapId, ObjectId, TenantId};
use distos_rpc::log::{Format, Reader, Unread};

use crate::error::StoreError;
use crate::sealed::PageHash;
use crate::state::{Facts, MAX_NAME_BYTES};

pub use distos_rpc::log::{MAX_PAYLOAD, SECTOR, Tail};

/// The newest format that this program reads, and the one that it writes.
pub const FORMAT: u32 = 1;
const LOG: Format = Format { file: *b"distos mem index", frame: *b"DMXF", version: FORMAT };

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

fn record(from: &mut Reader<'_>) -> Option<Record> {
    Some(match from.u8()? {
        1 => Record::Counters { object: from.u64()?, version: from.u64()? },
        2 => created(from)?,
        3 => {
            let object = ObjectId(from.u64()?);
            let count = from.u16()?;
            let pages = (0..count).map(|_| page(from)).collect::<Option<_>>()?;
            Record::PagesWritten { object, pages }
        }
        4 => Record::RegionDropped { object: ObjectId(from.u64()?) },
        _ => return None,
    })
}

fn created(from: &mut Reader<'_>) -> Option<Record> {
    let object = ObjectId(from.u64()?);
    let tenant = TenantId(from.u32()?);
    let bytes = from.u64()?;
    let durable = from.u8()? != 0;
    let key_slot = Some(from.u32()?).filter(|slot| *slot != u32::MAX);
    let len = usize::from(from.u8()?);
    let name = from.text(len).filter(|_| len <= MAX_NAME_BYTES)?;
    let count = from.u8()?;
    let lineage = (0..count).map(|_| from.u64().map(CapId)).collect::<Option<_>>()?;
    let facts = Facts { name, tenant, bytes, durable, lineage };
    Some(Record::RegionCreated { object, facts, key_slot })
}

fn page(from: &mut Reader<'_>) -> Option<PageRecord> {
    Some(PageRecord {
        page: from.u32()?,
        slot: from.u32()?,
        version: from.u64()?,
        hash: from.bytes()?,
    })
}

/// The records of a frame; `None` if they are not what this program writes.
fn decode(payload: &[u8]) -> Option<Vec<Record>> {
    let mut reader = Reader(payload);
    let mut records = Vec::new();
    while !reader.0.is_empty() {
        records.push(record(&mut reader)?);
    }
    Some(records)
}

/// A new log's header sector. `id` is random: frames of one log never continue another.
pub fn file_header(id: [u8; 16]) -> (Vec<u8>, Tail) {
    LOG.header(id)
}

/// A frame that continues `tail`, and the tail after it. At most [`MAX_PAYLOAD`] bytes.
pub fn frame(tail: Tail, payload: &[u8]) -> (Vec<u8>, Tail) {
    LOG.frame(tail, payload)
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
    let mut frame = |payload: &[u8]| {
        let records = decode(payload).ok_or_else(|| "unknown record".to_owned())?;
        records.into_iter().try_for_each(&mut *each)
    };
    LOG.replay(len, read, &mut frame).map_err(|unread| match unread {
        Unread::Read(error) => error,
        Unread::Damaged { offset, why } => {
            StoreError::Corrupt(format!("index.log is damaged at byte {offset}: {why}"))
        }
        Unread::Newer(found) => StoreError::Newer { dir: dir.to_owned(), found, known: FORMAT },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Of BLAKE3.
    const HASH: usize = 32;

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
