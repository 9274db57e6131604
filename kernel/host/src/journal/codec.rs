//! Journal records as bytes: little-endian, versioned, exact. A record that decodes encodes to
//! the same bytes again; every length is checked before memory is set aside for it.

use distos_abi::{CapId, HolderKey, Kind, LinkHash, ObjectId, SessionId, TenantId, VatName};
use distos_core::{Holder, Life, NodeRecord, Reason, Record, RevokeRecord, TenantRecord};
use distos_types::{authority_bytes, authority_from};

const VERSION: u8 = 1;
/// Longest text field, in bytes.
const MAX_TEXT_BYTES: usize = 1024;

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Bytes are missing.
    #[error("the record is cut short")]
    Short,
    /// Bytes are left over.
    #[error("bytes follow the record")]
    Long,
    /// A field has a value that no record has.
    #[error("{0} is not valid")]
    Invalid(&'static str),
    /// The record is of a later version of DistOS.
    #[error("the record was written by a newer DistOS")]
    Newer,
}

/// The bytes of a record.
pub fn encode(record: &Record) -> Vec<u8> {
    let mut out = Writer(vec![VERSION]);
    match record {
        Record::Boot { epoch, image_hash } => {
            out.u8(0);
            out.u32(*epoch);
            out.0.extend(image_hash);
        }
        Record::Floor { epoch, time_ms } => {
            out.u8(1);
            out.u32(*epoch);
            out.u64(*time_ms);
        }
        Record::Tenant(tenant) => {
            out.u8(2);
            out.u32(tenant.id.0);
            out.text(&tenant.name);
            out.0.extend(tenant.holder.0);
            out.u32(tenant.slot_quota);
        }
        Record::Node(node) => {
            out.u8(3);
            out.node(node);
        }
        Record::Revoke(revoked) => {
            out.u8(4);
            out.u64(revoked.cap.0);
            out.text(revoked.vat.as_str());
            out.u32(revoked.tenant.0);
            out.holder(&revoked.holder);
            out.lineage(&revoked.lineage);
            out.u64(revoked.descendants);
            out.u8(match revoked.reason {
                Reason::Asked => 0,
                Reason::Link => 1,
                Reason::Object => 2,
                Reason::Expired => 3,
            });
        }
        Record::Tombstone { under, link, expires_ms } => {
            out.u8(5);
            out.u64(under.0);
            out.0.extend(link.0);
            out.u64(*expires_ms);
        }
        Record::SessionEnded { vat, session, ended } => {
            out.u8(6);
            out.text(vat.as_str());
            out.u64(session.0);
            out.u64(*ended);
        }
        Record::VatDied { vat, ended } => {
            out.u8(7);
            out.text(vat.as_str());
            out.u64(*ended);
        }
        Record::Event { vat, kind, tenant, cap, holder, lineage, detail } => {
            out.u8(8);
            out.text(vat.as_str());
            out.text(kind);
            out.u32(tenant.0);
            out.u64(cap.0);
            out.u8(u8::from(holder.is_some()));
            if let Some(holder) = holder {
                out.holder(holder);
            }
            out.lineage(lineage);
            out.text(detail);
        }
    }
    out.0
}

/// The record that these bytes are, all of them.
///
/// # Errors
/// [`CodecError`] if they are none.
pub fn decode(bytes: &[u8]) -> Result<Record, CodecError> {
    let mut input = Reader(bytes);
    match input.u8()? {
        VERSION => {}
        version if version > VERSION => return Err(CodecError::Newer),
        _ => return Err(CodecError::Invalid("version")),
    }
    let record = match input.u8()? {
        0 => Record::Boot { epoch: input.u32()?, image_hash: input.array()? },
        1 => Record::Floor { epoch: input.u32()?, time_ms: input.u64()? },
        2 => Record::Tenant(TenantRecord {
            id: TenantId(input.u32()?),
            name: input.text()?,
            holder: HolderKey(input.array()?),
            slot_quota: input.u32()?,
        }),
        3 => Record::Node(Box::new(input.node()?)),
        4 => Record::Revoke(Box::new(RevokeRecord {
            cap: CapId(input.u64()?),
            vat: input.vat()?,
            tenant: TenantId(input.u32()?),
            holder: input.holder()?,
            lineage: input.lineage()?,
            descendants: input.u64()?,
            reason: match input.u8()? {
                0 => Reason::Asked,
                1 => Reason::Link,
                2 => Reason::Object,
                3 => Reason::Expired,
                _ => return Err(CodecError::Invalid("reason")),
            },
        })),
        5 => Record::Tombstone {
            under: CapId(input.u64()?),
            link: LinkHash(input.array()?),
            expires_ms: input.u64()?,
        },
        6 => Record::SessionEnded {
            vat: input.vat()?,
            session: SessionId(input.u64()?),
            ended: input.u64()?,
        },
        7 => Record::VatDied { vat: input.vat()?, ended: input.u64()? },
        8 => Record::Event {
            vat: input.vat()?,
            kind: input.text()?,
            tenant: TenantId(input.u32()?),
            cap: CapId(input.u64()?),
            holder: match input.u8()? {
                0 => None,
                1 => Some(input.holder()?),
                _ => return Err(CodecError::Invalid("optional field")),
            },
            lineage: input.lineage()?,
            detail: input.text()?,
        },
        _ => return Err(CodecError::Invalid("record type")),
    };
    if input.0.is_empty() { Ok(record) } else { Err(CodecError::Long) }
}

struct Writer(Vec<u8>);

impl Writer {
    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    /// Text is cut to what a reader accepts; the core bounds it well below.
    fn text(&mut self, text: &str) {
        let mut len = text.len().min(MAX_TEXT_BYTES);
        while !text.is_char_boundary(len) {
            len -= 1;
        }
        self.0.extend((len as u16).to_le_bytes());
        self.0.extend(&text.as_bytes()[..len]);
    }

    fn lineage(&mut self, lineage: &[CapId]) {
        self.u8(lineage.len() as u8);
        lineage.iter().for_each(|cap| self.u64(cap.0));
    }

    fn holder(&mut self, holder: &Holder) {
        match holder {
            Holder::Key(key) => {
                self.u8(0);
                self.0.extend(key.0);
            }
            Holder::Vat(vat) => {
                self.u8(1);
                self.text(vat.as_str());
            }
        }
    }

    fn node(&mut self, node: &NodeRecord) {
        self.u64(node.cap.0);
        self.u64(node.parent.map_or(0, |parent| parent.0));
        self.text(node.vat.as_str());
        self.0.extend(node.kind.0.to_le_bytes());
        self.u64(node.object.0);
        self.0.extend(authority_bytes(node.authority));
        self.u32(node.tenant.0);
        self.holder(&node.holder);
        self.optional(node.link.map(|link| link.0));
        self.optional(node.issuer.map(|issuer| issuer.0));
        match node.life {
            Life::Durable => self.u8(0),
            Life::Session(session) => {
                self.u8(1);
                self.u64(session.0);
            }
            Life::Edge => self.u8(2),
            Life::Parent => self.u8(3),
        }
        self.lineage(&node.lineage);
    }

    fn optional(&mut self, bytes: Option<[u8; 32]>) {
        self.u8(u8::from(bytes.is_some()));
        self.0.extend(bytes.iter().flatten());
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let (head, tail) = self.0.split_first_chunk().ok_or(CodecError::Short)?;
        self.0 = tail;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, CodecError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, CodecError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, CodecError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, CodecError> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<String, CodecError> {
        let len = usize::from(self.u16()?);
        if len > MAX_TEXT_BYTES {
            return Err(CodecError::Invalid("text length"));
        }
        let (text, rest) = self.0.split_at_checked(len).ok_or(CodecError::Short)?;
        self.0 = rest;
        let text = std::str::from_utf8(text).map_err(|_| CodecError::Invalid("text"))?;
        Ok(text.to_owned())
    }

    fn vat(&mut self) -> Result<VatName, CodecError> {
        VatName::new(&self.text()?).map_err(|_| CodecError::Invalid("vat name"))
    }

    fn lineage(&mut self) -> Result<Vec<CapId>, CodecError> {
        let len = self.u8()?;
        (0..len).map(|_| self.u64().map(CapId)).collect()
    }

    fn holder(&mut self) -> Result<Holder, CodecError> {
        match self.u8()? {
            0 => Ok(Holder::Key(HolderKey(self.array()?))),
            1 => Ok(Holder::Vat(self.vat()?)),
            _ => Err(CodecError::Invalid("holder")),
        }
    }

    fn optional(&mut self) -> Result<Option<[u8; 32]>, CodecError> {
        match self.u8()? {
            0 => Ok(None),
            1 => self.array().map(Some),
            _ => Err(CodecError::Invalid("optional field")),
        }
    }

    fn node(&mut self) -> Result<NodeRecord, CodecError> {
        Ok(NodeRecord {
            cap: CapId(self.u64()?),
            parent: Some(self.u64()?).filter(|parent| *parent != 0).map(CapId),
            vat: self.vat()?,
            kind: Kind(self.u16()?),
            object: ObjectId(self.u64()?),
            authority: authority_from(&self.array()?),
            tenant: TenantId(self.u32()?),
            holder: self.holder()?,
            link: self.optional()?.map(LinkHash),
            issuer: self.optional()?.map(HolderKey),
            life: match self.u8()? {
                0 => Life::Durable,
                1 => Life::Session(SessionId(self.u64()?)),
                2 => Life::Edge,
                3 => Life::Parent,
                _ => return Err(CodecError::Invalid("life")),
            },
            lineage: self.lineage()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use distos_abi::{Authority, Caveats};
    use proptest::prelude::*;

    /// A record that some DistOS has written stops no boot.
    #[test]
    fn a_byte_range_that_ends_before_it_starts_is_read_as_it_was_written() {
        let Record::Node(mut node) = samples().remove(3) else { panic!() };
        node.authority.caveats.range = distos_abi::ByteRange { start: 10, end: 5 };
        let record = Record::Node(node);
        assert_eq!(decode(&encode(&record)), Ok(record));
    }

    fn samples() -> Vec<Record> {
        let vat = VatName::new("executor/red").unwrap();
        let lineage = vec![CapId(1), CapId(7)];
        let node = |holder, link, life| {
            Record::Node(Box::new(NodeRecord {
                cap: CapId(7),
                parent: Some(CapId(1)),
                vat: vat.clone(),
                kind: Kind(2),
                object: ObjectId(3),
                authority: Authority {
                    caveats: Caveats { end_to_end: true, ..Caveats::NONE },
                    ..Authority::FULL
                },
                tenant: TenantId(4),
                holder,
                link,
                issuer: link.map(|_| HolderKey([5; 32])),
                life,
                lineage: lineage.clone(),
            }))
        };
        vec![
            Record::Boot { epoch: 3, image_hash: [1; 32] },
            Record::Floor { epoch: 3, time_ms: 9 },
            Record::Tenant(TenantRecord {
                id: TenantId(1),
                name: "red".into(),
                holder: HolderKey([2; 32]),
                slot_quota: 64,
            }),
            node(Holder::Key(HolderKey([2; 32])), Some(LinkHash([3; 32])), Life::Durable),
            node(Holder::Vat(vat.clone()), None, Life::Session(SessionId(8))),
            node(Holder::Vat(vat.clone()), None, Life::Edge),
            Record::Revoke(Box::new(RevokeRecord {
                cap: CapId(7),
                vat: vat.clone(),
                tenant: TenantId(1),
                holder: Holder::Key(HolderKey([2; 32])),
                lineage: lineage.clone(),
                descendants: 12,
                reason: Reason::Link,
            })),
            Record::Tombstone { under: CapId(1), link: LinkHash([9; 32]), expires_ms: 77 },
            Record::SessionEnded { vat: vat.clone(), session: SessionId(1), ended: 2 },
            Record::VatDied { vat: vat.clone(), ended: 2 },
            Record::Event {
                vat,
                kind: "denial".into(),
                tenant: TenantId(2),
                cap: CapId(7),
                holder: Some(Holder::Key(HolderKey([4; 32]))),
                lineage,
                detail: "region 3: denied".into(),
            },
        ]
    }

    #[test]
    fn every_record_survives_a_restart_and_no_cut_one_does() {
        for record in samples() {
            let bytes = encode(&record);
            assert_eq!(decode(&bytes).as_ref(), Ok(&record));
            for len in 0..bytes.len() {
                assert!(decode(&bytes[..len]).is_err(), "{record:?} cut to {len}");
            }
            assert_eq!(decode(&[bytes.as_slice(), &[0]].concat()), Err(CodecError::Long));
        }
    }

    #[test]
    fn a_newer_records_version_is_named() {
        assert_eq!(decode(&[VERSION + 1, 0]), Err(CodecError::Newer));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_never_have_two_readings(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            kind in 0u8..10,
        ) {
            let bytes = [&[VERSION, kind], bytes.as_slice()].concat();
            if let Ok(record) = decode(&bytes) {
                prop_assert_eq!(encode(&record), bytes);
            }
        }
    }
}
