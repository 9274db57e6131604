//! The memory service's index log.

use std::sync::LazyLock;

use distos_abi::{CapId, ObjectId, TenantId};
use distos_memory::Facts;
use distos_memory::log::{PageRecord, Record, SECTOR, encode, file_header, frame, replay};

use super::seed;

fn records() -> Vec<Record> {
    let facts = Facts {
        name: "region-1".into(),
        tenant: TenantId(7),
        bytes: 1 << 20,
        durable: true,
        lineage: vec![CapId(1), CapId(5)],
    };
    let page = |page| PageRecord { page, slot: page + 5, version: 9, hash: [1; 32] };
    vec![
        Record::Counters { object: 1, version: 2 },
        Record::RegionCreated { object: ObjectId(1), facts: facts.clone(), key_slot: Some(1) },
        Record::RegionCreated {
            object: ObjectId(2),
            facts: Facts { durable: false, name: "v".into(), ..facts },
            key_slot: None,
        },
        Record::PagesWritten { object: ObjectId(1), pages: (0..20).map(page).collect() },
        Record::RegionDropped { object: ObjectId(1) },
    ]
}

fn write(payloads: &[Vec<u8>]) -> Vec<u8> {
    let (mut bytes, mut tail) = file_header([3; 16]);
    for payload in payloads {
        let (frame, next) = frame(tail, payload);
        bytes.extend(frame);
        tail = next;
    }
    bytes
}

fn payload(records: &[Record]) -> Vec<u8> {
    let mut out = Vec::new();
    records.iter().for_each(|record| encode(record, &mut out));
    out
}

static LOG: LazyLock<Vec<u8>> =
    LazyLock::new(|| write(&[payload(&records()), payload(&records()[..1]), payload(&records())]));

pub(super) fn seeds() -> Vec<(String, Vec<u8>)> {
    vec![
        seed("log", LOG.clone()),
        seed("empty", write(&[])),
        seed("payload", [&[1][..], &payload(&records())].concat()),
    ]
}

fn read(bytes: &[u8]) -> Option<(Vec<Record>, u64)> {
    let mut found = Vec::new();
    let read = |at: u64, into: &mut [u8]| {
        into.copy_from_slice(&bytes[at as usize..][..into.len()]);
        Ok(())
    };
    let mut each = |record| {
        found.push(record);
        Ok(())
    };
    let tail = replay("dir", bytes.len() as u64, &read, &mut each).ok()?;
    Some((found, tail.offset))
}

/// A damaged log yields what was written up to some frame, or an error: never another record (M2).
/// A whole frame of anything at all yields the records that have these bytes, or an error.
pub(super) fn log(bytes: &[u8]) {
    let whole = read(&LOG).unwrap().0;
    if let Some((found, end)) = read(bytes)
        && bytes.starts_with(&LOG[..SECTOR])
    {
        assert!(whole.starts_with(&found), "a record that nobody wrote: {found:?}");
        assert!(end <= bytes.len() as u64);
    }
    let content = bytes.get(1..).unwrap_or_default();
    if let Some((found, _)) = read(&write(&[content.to_vec()])) {
        let again = payload(&found);
        assert_eq!(again.len(), content.len(), "a record has two encodings: {found:?}");
        assert_eq!(read(&write(&[again])).unwrap().0, found);
    }
}
