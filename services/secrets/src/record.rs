//! What the broker writes down: its records, and how they stand in the log ([`distos_rpc::log`]). Values stand there
//! encrypted, names and holders do not.

use distos_abi::{CapId, HolderKey, NodeId, ObjectId, TenantId};
use distos_rpc::log::{Format, MAX_PAYLOAD, Reader};

use crate::barrier::{Binding, Owner, RootFacts, SEALED_OVERHEAD, WrappedKey};
use crate::shamir::Scheme;

/// The longest name, in bytes.
pub const MAX_NAME_BYTES: usize = 64;
/// The longest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 64 * 1024;

/// The longest blob that a TPM opens, in bytes.
pub const MAX_BLOB_BYTES: usize = 2048;

/// The broker's log.
pub const LOG: Format = Format { file: *b"distos secrets 1", frame: *b"DSXF", version: 1 };

/// A lease's number. None is used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeaseId(pub u64);

/// What a reading of a secret gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretKind {
    /// The value that was put.
    Fixed,
    /// A new Ed25519 key pair.
    Ed25519,
    /// A new key pair, and a certificate for it that ends with the lease.
    X509,
    /// A new account at something else, which goes with the lease.
    Account,
}

impl SecretKind {
    const ALL: [SecretKind; 4] =
        [SecretKind::Fixed, SecretKind::Ed25519, SecretKind::X509, SecretKind::Account];

    fn code(self) -> u8 {
        self as u8
    }

    fn of_code(code: u8) -> Option<SecretKind> {
        SecretKind::ALL.get(usize::from(code)).copied()
    }
}

/// What is fixed about a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its name, which is its tenant's own.
    pub name: String,
    /// Whose it is.
    pub tenant: TenantId,
    /// What a reading gives.
    pub kind: SecretKind,
    /// Whether it is given out only to holders on this node, while that has good and fresh evidence.
    pub attested: bool,
    /// For how long a lease runs at most, in milliseconds.
    pub lease_ms: u64,
    /// The key of its versions.
    pub key: WrappedKey,
}

impl Facts {
    /// What is encrypted of the secret `object` goes by all of these.
    pub fn owner(&self, object: ObjectId) -> Owner {
        let mut terms = blake3::Hasher::new();
        terms.update(&[self.kind.code(), self.attested.into()]);
        terms.update(&self.lease_ms.to_le_bytes());
        terms.update(self.name.as_bytes());
        Owner { tenant: self.tenant, object, terms: *terms.finalize().as_bytes() }
    }
}

/// Who holds leases. The same whenever its capability is restored again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// The tenant whose secrets it reads.
    pub tenant: TenantId,
    /// By which capability.
    pub cap: CapId,
    /// With which key.
    pub key: HolderKey,
}

impl Holder {
    /// In the place of a holder's key, if its capability was taken as a gift: the key of nobody who could sign.
    pub const NO_KEY: HolderKey = HolderKey([0; 32]);
}

/// A lease as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewLease {
    /// Its number.
    pub id: LeaseId,
    /// On which secret…
    pub object: ObjectId,
    /// …and version.
    pub version: u32,
    /// Who holds it.
    pub holder: Holder,
    /// The node that the holder is on; `None` if it is on none that is known.
    pub node: Option<NodeId>,
    /// Until when, in milliseconds since the Unix epoch.
    pub until_ms: u64,
}

/// What was heard of evidence about a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// How often it has turned bad, as the attestation service counts.
    pub epoch: u64,
    /// Whether there was some that held.
    pub held: bool,
}

/// A change of what the broker keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// There is a root key.
    Root(RootFacts),
    /// A TPM opens it.
    Bound(Binding),
    /// Numbers that were given out, so that a compacted log does not forget them.
    Counters {
        /// The next secret's.
        object: u64,
        /// The next lease's.
        lease: u64,
    },
    /// A secret was made.
    Put {
        /// Its number.
        object: ObjectId,
        /// What is fixed about it.
        facts: Facts,
    },
    /// It has a new version, which is the newest.
    Version {
        /// The secret.
        object: ObjectId,
        /// The version's number, from 1.
        number: u32,
        /// Until when the one before can be read at most, in milliseconds since the Unix epoch.
        previous_until_ms: u64,
        /// When the last lease on this one ends by itself, in the same milliseconds; 0 while there was none.
        leased_until_ms: u64,
        /// The value, encrypted under the secret's key.
        sealed: Vec<u8>,
    },
    /// A secret is gone. Its key stands in the log until that is rewritten.
    Dropped(ObjectId),
    /// A lease was made.
    Leased(NewLease),
    /// It runs for longer, or less.
    Renewed {
        /// Which.
        id: LeaseId,
        /// Until when, in milliseconds since the Unix epoch.
        until_ms: u64,
    },
    /// It has ended.
    Ended(LeaseId),
    /// All leases on a secret have.
    EndedSecret(ObjectId),
    /// All leases have that a tenant's holders have by this capability.
    EndedCap(TenantId, CapId),
    /// All leases of holders on this node have, and of holders of whom no node is known; from then on holders on it get
    /// none.
    EndedNode(NodeId),
    /// Holders on this node get leases again.
    AdmittedNode(NodeId),
    /// Whether an operator has sealed the broker, which a restart does not undo.
    Closed(bool),
    /// What was heard last of the evidence about the broker's node.
    Evidence(Heard),
    /// It was this late, in milliseconds since the Unix epoch: it is never earlier again.
    Time(u64),
    /// A lease on a secret of accounts has ended, and its account is still to be removed.
    Owed {
        /// The secret.
        object: ObjectId,
        /// The lease.
        id: LeaseId,
    },
    /// The account of a lease that has ended is gone.
    Settled {
        /// The secret.
        object: ObjectId,
        /// The lease.
        id: LeaseId,
    },
}

impl Record {
    /// Appends its bytes to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Record::Root(facts) => {
                out.push(1);
                out.extend(facts.id);
                let scheme = facts.scheme.map(|s| [s.threshold(), s.shares()]);
                out.extend(scheme.unwrap_or_default());
                out.extend(facts.check);
            }
            Record::Counters { object, lease } => {
                out.push(2);
                out.extend(object.to_le_bytes());
                out.extend(lease.to_le_bytes());
            }
            Record::Put { object, facts } => {
                out.push(3);
                out.extend(object.0.to_le_bytes());
                out.extend(facts.tenant.0.to_le_bytes());
                out.push(facts.kind.code() | u8::from(facts.attested) << 7);
                out.extend(facts.lease_ms.to_le_bytes());
                out.extend(facts.key);
                out.push(facts.name.len() as u8);
                out.extend(facts.name.as_bytes());
            }
            Record::Version { object, number, previous_until_ms, leased_until_ms, sealed } => {
                out.push(4);
                out.extend(object.0.to_le_bytes());
                out.extend(number.to_le_bytes());
                out.extend(previous_until_ms.to_le_bytes());
                out.extend(leased_until_ms.to_le_bytes());
                out.extend((sealed.len() as u32).to_le_bytes());
                out.extend(sealed);
            }
            Record::Dropped(object) => {
                out.push(5);
                out.extend(object.0.to_le_bytes());
            }
            Record::Leased(lease) => {
                out.push(6);
                out.extend(lease.id.0.to_le_bytes());
                out.extend(lease.object.0.to_le_bytes());
                out.extend(lease.version.to_le_bytes());
                out.extend(lease.holder.tenant.0.to_le_bytes());
                out.extend(lease.holder.cap.0.to_le_bytes());
                out.extend(lease.holder.key.0);
                out.extend(lease.until_ms.to_le_bytes());
                out.push(u8::from(lease.node.is_some()));
                out.extend(lease.node.iter().flat_map(|node| node.0));
            }
            Record::Renewed { id, until_ms } => {
                out.push(7);
                out.extend(id.0.to_le_bytes());
                out.extend(until_ms.to_le_bytes());
            }
            Record::Ended(id) => {
                out.push(8);
                out.extend(id.0.to_le_bytes());
            }
            Record::EndedSecret(object) => {
                out.push(9);
                out.extend(object.0.to_le_bytes());
            }
            Record::EndedCap(tenant, cap) => {
                out.push(10);
                out.extend(tenant.0.to_le_bytes());
                out.extend(cap.0.to_le_bytes());
            }
            Record::EndedNode(node) => {
                out.push(11);
                out.extend(node.0);
            }
            Record::Owed { object, id } => {
                out.push(12);
                out.extend(object.0.to_le_bytes());
                out.extend(id.0.to_le_bytes());
            }
            Record::Settled { object, id } => {
                out.push(13);
                out.extend(object.0.to_le_bytes());
                out.extend(id.0.to_le_bytes());
            }
            Record::AdmittedNode(node) => {
                out.push(14);
                out.extend(node.0);
            }
            Record::Time(now_ms) => {
                out.push(15);
                out.extend(now_ms.to_le_bytes());
            }
            Record::Bound(bound) => {
                out.push(16);
                out.extend((bound.blob.len() as u16).to_le_bytes());
                out.extend(&bound.blob);
                out.extend(bound.root);
            }
            Record::Closed(closed) => out.extend([17, u8::from(*closed)]),
            Record::Evidence(heard) => {
                out.extend([18, u8::from(heard.held)]);
                out.extend(heard.epoch.to_le_bytes());
            }
        }
    }

    fn decode(from: &mut Reader<'_>) -> Option<Record> {
        Some(match from.u8()? {
            1 => {
                let id = from.bytes()?;
                let scheme = match (from.u8()?, from.u8()?) {
                    (0, 0) => None,
                    (threshold, shares) => Some(Scheme::new(threshold, shares).ok()?),
                };
                Record::Root(RootFacts { id, scheme, check: from.bytes()? })
            }
            2 => Record::Counters { object: from.u64()?, lease: from.u64()? },
            3 => put(from)?,
            4 => {
                let object = ObjectId(from.u64()?);
                let (number, previous_until_ms) = (from.u32()?, from.u64()?);
                let leased_until_ms = from.u64()?;
                let len = from.u32()? as usize;
                if len > MAX_VALUE_BYTES + SEALED_OVERHEAD {
                    return None;
                }
                let sealed = from.slice(len)?.to_vec();
                Record::Version { object, number, previous_until_ms, leased_until_ms, sealed }
            }
            5 => Record::Dropped(ObjectId(from.u64()?)),
            6 => {
                let (id, object, version) =
                    (LeaseId(from.u64()?), ObjectId(from.u64()?), from.u32()?);
                let (tenant, cap) = (TenantId(from.u32()?), CapId(from.u64()?));
                let holder = Holder { tenant, cap, key: HolderKey(from.bytes()?) };
                let until_ms = from.u64()?;
                let node = match from.u8()? {
                    0 => None,
                    1 => Some(NodeId(from.bytes()?)),
                    _ => return None,
                };
                Record::Leased(NewLease { id, object, version, holder, node, until_ms })
            }
            7 => Record::Renewed { id: LeaseId(from.u64()?), until_ms: from.u64()? },
            8 => Record::Ended(LeaseId(from.u64()?)),
            9 => Record::EndedSecret(ObjectId(from.u64()?)),
            10 => Record::EndedCap(TenantId(from.u32()?), CapId(from.u64()?)),
            11 => Record::EndedNode(NodeId(from.bytes()?)),
            12 => Record::Owed { object: ObjectId(from.u64()?), id: LeaseId(from.u64()?) },
            13 => Record::Settled { object: ObjectId(from.u64()?), id: LeaseId(from.u64()?) },
            14 => Record::AdmittedNode(NodeId(from.bytes()?)),
            15 => Record::Time(from.u64()?),
            16 => {
                let len = usize::from(from.u16()?);
                if len > MAX_BLOB_BYTES {
                    return None;
                }
                let blob = from.slice(len)?.to_vec();
                Record::Bound(Binding { blob, root: from.bytes()? })
            }
            17 => Record::Closed(flag(from)?),
            18 => {
                let held = flag(from)?;
                Record::Evidence(Heard { epoch: from.u64()?, held })
            }
            _ => return None,
        })
    }
}

fn flag(from: &mut Reader<'_>) -> Option<bool> {
    match from.u8()? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

fn put(from: &mut Reader<'_>) -> Option<Record> {
    let (object, tenant) = (ObjectId(from.u64()?), TenantId(from.u32()?));
    let word = from.u8()?;
    let (kind, attested) = (SecretKind::of_code(word & 0x7f)?, word >> 7 == 1);
    let (lease_ms, key) = (from.u64()?, from.bytes()?);
    let len = usize::from(from.u8()?);
    let name = from.text(len).filter(|_| len <= MAX_NAME_BYTES)?;
    Some(Record::Put { object, facts: Facts { name, tenant, kind, attested, lease_ms, key } })
}

/// The records of a frame; `None` if they are not what this program writes.
pub fn decode(payload: &[u8]) -> Option<Vec<Record>> {
    let mut reader = Reader(payload);
    let mut records = Vec::new();
    while !reader.0.is_empty() {
        records.push(Record::decode(&mut reader)?);
    }
    Some(records)
}

/// Encoded records on their way into the log, cut into what one frame may hold.
#[derive(Debug, Default)]
pub struct Payloads(Vec<Vec<u8>>);

impl Payloads {
    /// Adds one behind the others.
    pub fn push(&mut self, record: &Record) {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        match self.0.last_mut() {
            Some(last) if last.len() + bytes.len() <= MAX_PAYLOAD => last.extend(bytes),
            _ => self.0.push(bytes),
        }
    }

    /// Adds others behind these.
    pub fn append(&mut self, others: Payloads) {
        for bytes in others.0 {
            match self.0.last_mut() {
                Some(last) if last.len() + bytes.len() <= MAX_PAYLOAD => last.extend(bytes),
                _ => self.0.push(bytes),
            }
        }
    }

    /// What was cut already.
    pub fn of_frames(frames: impl Iterator<Item = Vec<u8>>) -> Payloads {
        Payloads(frames.collect())
    }

    /// All together, in bytes.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|payload| payload.len() as u64).sum()
    }

    /// Each no longer than a frame may be.
    pub fn into_frames(self) -> Vec<Vec<u8>> {
        self.0
    }
}

impl FromIterator<Record> for Payloads {
    fn from_iter<I: IntoIterator<Item = Record>>(records: I) -> Payloads {
        let mut payloads = Payloads::default();
        records.into_iter().for_each(|record| payloads.push(&record));
        payloads
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::barrier::WRAPPED_KEY_BYTES;
    use proptest::prelude::*;

    fn all() -> Vec<Record> {
        let holder = Holder { tenant: TenantId(3), cap: CapId(4), key: HolderKey([5; 32]) };
        let lease = NewLease {
            id: LeaseId(1),
            object: ObjectId(2),
            version: 3,
            holder,
            node: Some(NodeId([6; 32])),
            until_ms: 7,
        };
        let facts = |kind, attested| Facts {
            name: "db/password".into(),
            tenant: TenantId(3),
            kind,
            attested,
            lease_ms: 60_000,
            key: [8; WRAPPED_KEY_BYTES],
        };
        let mut all = vec![
            Record::Root(RootFacts {
                id: [1; 16],
                scheme: Some(Scheme::new(3, 5).unwrap()),
                check: [2; SEALED_OVERHEAD],
            }),
            Record::Root(RootFacts { id: [1; 16], scheme: None, check: [2; SEALED_OVERHEAD] }),
            Record::Bound(Binding { blob: vec![3; 300], root: [4; WRAPPED_KEY_BYTES] }),
            Record::Counters { object: 9, lease: 10 },
            Record::Version {
                object: ObjectId(2),
                number: 3,
                previous_until_ms: 4,
                leased_until_ms: 5,
                sealed: vec![9; 100],
            },
            Record::Dropped(ObjectId(2)),
            Record::Leased(lease),
            Record::Leased(NewLease { node: None, ..lease }),
            Record::Renewed { id: LeaseId(1), until_ms: 8 },
            Record::Ended(LeaseId(1)),
            Record::EndedSecret(ObjectId(2)),
            Record::EndedCap(TenantId(3), CapId(4)),
            Record::EndedNode(NodeId([6; 32])),
            Record::AdmittedNode(NodeId([6; 32])),
            Record::Time(11),
            Record::Closed(true),
            Record::Closed(false),
            Record::Evidence(Heard { epoch: 12, held: true }),
            Record::Owed { object: ObjectId(2), id: LeaseId(1) },
            Record::Settled { object: ObjectId(2), id: LeaseId(1) },
        ];
        for kind in SecretKind::ALL {
            for attested in [false, true] {
                all.push(Record::Put { object: ObjectId(2), facts: facts(kind, attested) });
            }
        }
        all
    }

    #[test]
    fn every_record_comes_back_as_it_was_written() {
        let payloads: Payloads = all().into_iter().collect();
        let frames = payloads.into_frames();
        assert_eq!(frames.len(), 1);
        assert_eq!(decode(&frames[0]), Some(all()));
    }

    #[test]
    fn what_is_encrypted_opens_under_no_other_terms_than_those_that_it_was_put_with() {
        let facts = Facts {
            name: "db".into(),
            tenant: TenantId(3),
            kind: SecretKind::Fixed,
            attested: true,
            lease_ms: 60_000,
            key: [8; WRAPPED_KEY_BYTES],
        };
        let owner = facts.owner(ObjectId(1));
        for other in [
            Facts { name: "dc".into(), ..facts.clone() },
            Facts { tenant: TenantId(4), ..facts.clone() },
            Facts { kind: SecretKind::X509, ..facts.clone() },
            Facts { attested: false, ..facts.clone() },
            Facts { lease_ms: 60_001, ..facts.clone() },
        ] {
            assert_ne!(other.owner(ObjectId(1)), owner, "{other:?}");
        }
        assert_ne!(facts.owner(ObjectId(2)), owner);
    }

    #[test]
    fn many_records_are_cut_into_frames_that_may_be_written() {
        let big = Record::Version {
            object: ObjectId(2),
            number: 3,
            previous_until_ms: 4,
            leased_until_ms: 5,
            sealed: vec![9; MAX_VALUE_BYTES],
        };
        let mut payloads: Payloads = std::iter::repeat_n(big.clone(), 40).collect();
        payloads.append(std::iter::repeat_n(big, 40).collect());
        let frames = payloads.into_frames();
        assert!(frames.iter().all(|frame| frame.len() <= MAX_PAYLOAD));
        assert_eq!(frames.iter().filter_map(|frame| decode(frame)).flatten().count(), 80);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_have_one_encoding(
            bytes in prop::collection::vec(any::<u8>(), 0..400), first in 0u8..20,
        ) {
            let bytes = [&[first][..], &bytes].concat();
            if let Some(records) = decode(&bytes) {
                let mut again = Vec::new();
                records.iter().for_each(|record| record.encode(&mut again));
                prop_assert_eq!(again, bytes);
            }
        }
    }
}
