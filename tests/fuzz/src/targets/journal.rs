//! The kernel's journal: records, and the segments that hold them.

use std::sync::LazyLock;

use distos_abi::{
    Authority, CapId, HolderKey, Kind, LinkHash, ObjectId, SessionId, TenantId, VatName,
};
use distos_core::{Forest, Holder, Life, NodeRecord, Reason, Record, RevokeRecord, TenantRecord};
use distos_host::journal::codec;
use distos_host::journal::segment::{self, Chain, Frame, FrameKind, Key, recover};

use super::seed;

fn records() -> Vec<(&'static str, Record)> {
    let vat = VatName::new("executor/red").unwrap();
    let lineage = vec![CapId(1), CapId(7)];
    let node = |cap, parent: Option<u64>, holder, link, life, lineage| {
        Record::Node(Box::new(NodeRecord {
            cap: CapId(cap),
            parent: parent.map(CapId),
            vat: vat.clone(),
            kind: Kind(2),
            object: ObjectId(3),
            authority: Authority::FULL,
            tenant: TenantId(1),
            holder,
            link,
            issuer: link.map(|_| HolderKey([5; 32])),
            life,
            lineage,
        }))
    };
    let key = || Holder::Key(HolderKey([2; 32]));
    let tenant = TenantRecord {
        id: TenantId(1),
        name: "red".into(),
        holder: HolderKey([2; 32]),
        slot_quota: 64,
    };
    let revoke = RevokeRecord {
        cap: CapId(7),
        vat: vat.clone(),
        tenant: TenantId(1),
        holder: key(),
        lineage: lineage.clone(),
        descendants: 12,
        reason: Reason::Link,
    };
    vec![
        ("boot", Record::Boot { epoch: 3, image_hash: [1; 32] }),
        ("floor", Record::Floor { epoch: 3, time_ms: 9 }),
        ("tenant", Record::Tenant(tenant)),
        ("root", node(1, None, key(), None, Life::Durable, vec![CapId(1)])),
        ("node", node(7, Some(1), key(), Some(LinkHash([3; 32])), Life::Durable, lineage.clone())),
        (
            "session",
            node(
                8,
                Some(7),
                Holder::Vat(vat.clone()),
                None,
                Life::Session(SessionId(8)),
                lineage.clone(),
            ),
        ),
        (
            "tombstone",
            Record::Tombstone { under: CapId(1), link: LinkHash([9; 32]), expires_ms: 77 },
        ),
        ("ended", Record::SessionEnded { vat: vat.clone(), session: SessionId(8), ended: 2 }),
        ("died", Record::VatDied { vat: vat.clone(), ended: 2 }),
        ("revoke", Record::Revoke(Box::new(revoke))),
        (
            "event",
            Record::Event {
                vat: vat.clone(),
                kind: "denial".into(),
                tenant: TenantId(2),
                cap: CapId(7),
                holder: Some(key()),
                lineage,
                detail: "region 3: denied".into(),
            },
        ),
    ]
}

pub(super) fn record_seeds() -> Vec<(String, Vec<u8>)> {
    records().iter().map(|(name, record)| seed(name, codec::encode(record))).collect()
}

/// A record has one encoding.
pub(super) fn record(bytes: &[u8]) {
    if let Ok(record) = codec::decode(bytes) {
        assert_eq!(codec::encode(&record), bytes, "{record:?}");
    }
}

const KEY: Key = [9; 32];

/// A segment of all records, each durable before the next was written.
static SEGMENT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let payloads: Vec<Vec<u8>> =
        records().iter().map(|(_, record)| codec::encode(record)).collect();
    let mut bytes = write(&payloads);
    bytes.resize(bytes.len() + 200, 0);
    bytes
});

fn write(payloads: &[Vec<u8>]) -> Vec<u8> {
    let (mut bytes, mut chain) = (segment::header(&KEY).to_vec(), Chain::START);
    for (payload, seq) in payloads.iter().zip(1..) {
        let frame = Frame { kind: FrameKind::Record, seq, time_ms: seq, payload: payload.clone() };
        segment::append(&mut bytes, &KEY, &mut chain, seq - 1, &frame);
    }
    bytes
}

pub(super) fn segment_seeds() -> Vec<(String, Vec<u8>)> {
    vec![seed("segment", SEGMENT.clone()), seed("empty", segment::header(&KEY))]
}

/// Damage never yields a record that was not written, and never hides one that a later one says
/// was durable (L2); and no records that stand in a whole segment make the kernel panic at boot.
pub(super) fn segment(bytes: &[u8]) {
    let whole = recover(&SEGMENT, Some(Chain::START)).unwrap().frames;
    if let Ok(read) = recover(bytes, Some(Chain::START)) {
        assert_eq!(segment::key_of(bytes), Ok(KEY), "a key that nobody wrote");
        assert!(whole.starts_with(&read.frames), "a record that nobody wrote");
        assert!(read.end <= bytes.len());
    }
    let _ = recover(bytes, None);
    replay(bytes);
}

/// Boots from a whole segment of whatever payloads the bytes give: cut where they hold the
/// frames' magic, so that pieces of the corpus' segments become records.
fn replay(bytes: &[u8]) {
    let magic = &SEGMENT[segment::SEGMENT_HEADER_BYTES..][..4];
    let header = segment::frame_bytes(0) - 32;
    let starts = bytes.windows(4).enumerate().filter(|(_, window)| *window == magic);
    let mut starts: Vec<usize> = starts.map(|(at, _)| at).collect();
    starts.push(bytes.len());
    let payloads: Vec<Vec<u8>> = starts
        .windows(2)
        .filter_map(|pair| bytes.get(pair[0] + header..pair[1].checked_sub(32)?))
        .filter(|payload| payload.len() <= segment::MAX_PAYLOAD_BYTES)
        .map(<[u8]>::to_vec)
        .collect();
    let read = recover(&write(&payloads), Some(Chain::START)).unwrap();
    assert_eq!(
        read.frames.iter().map(|frame| &frame.payload).collect::<Vec<_>>(),
        payloads.iter().collect::<Vec<_>>()
    );
    let mut forest = Forest::new(4, 1 << 10);
    for frame in &read.frames {
        if let Ok(record) = codec::decode(&frame.payload)
            && forest.replay(frame.time_ms, &record).is_err()
        {
            return;
        }
    }
}
