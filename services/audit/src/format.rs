//! The bytes of the stored log: what a segment, a frame, a checkpoint and the head file look like.
//! Pure: no file, no clock, no randomness.
//!
//! ```text
//! log-<first index, 20 digits>.seg   header (116 bytes), then frames
//! head                               the newest checkpoint (188 bytes), replaced at each batch
//! key                                Ed25519 seed ‖ public key (64 bytes, mode 0600)
//!
//! header      magic "DISTOSAL" ‖ version u32 ‖ key 32 ‖ first index u64 ‖ chain hash before it 32 ‖ BLAKE3 of these 32
//! frame       length u32 ‖ kind u8 ‖ hash 32 ‖ body
//! head        magic "DISTOSAH" ‖ version u32 ‖ checkpoint 144 ‖ BLAKE3 of these 32
//! checkpoint  size u64 ‖ time u64 (Unix ms) ‖ chain hash 32 ‖ key 32 ‖ Ed25519 signature 64
//! ```
//!
//! Numbers are little endian. The body of an entry (kind 1) is its `Record` as canonical Cap'n
//! Proto, one segment without a segment table, so that any Cap'n Proto library can read it. Its
//! hash is the chain: BLAKE3("distos-audit-entry-v1" ‖ previous hash ‖ index ‖ body). Before the
//! first entry the chain stands at BLAKE3("distos-audit-genesis-v1" ‖ key). The body of a
//! checkpoint frame (kind 2) is a checkpoint, and its hash is
//! BLAKE3("distos-audit-checkpoint-v1" ‖ chain hash ‖ body). The header's layout is the same in
//! every version, so that a newer log is told from a damaged one.

use distos_abi::{Fault, HolderKey};
use distos_types::{HolderSecret, verify_signature};

/// The newest layout that this code reads and the one that it writes.
pub(crate) const VERSION: u32 = 1;
/// Longest body of an entry, in bytes.
pub(crate) const MAX_BODY: usize = 64 * 1024;
pub(crate) const SEGMENT_HEADER: usize = 116;
pub(crate) const FRAME_HEADER: usize = 37;
pub(crate) const HEAD_BYTES: usize = 188;
const CHECKPOINT_BYTES: usize = 144;
const SEGMENT_MAGIC: &[u8; 8] = b"DISTOSAL";
const HEAD_MAGIC: &[u8; 8] = b"DISTOSAH";

/// A BLAKE3 hash on the chain.
pub type ChainHash = [u8; 32];

/// A signed statement that the log had exactly `size` entries whose last chain hash is `head`
/// (L1). Whoever keeps one outside the node can later detect any change to those entries.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// How many entries the log had.
    pub size: u64,
    /// The chain hash of the last of them.
    pub head: ChainHash,
    /// When it was signed, in milliseconds since the Unix epoch, by the node's own clock.
    pub time_ms: u64,
    /// The audit service's key.
    pub key: HolderKey,
    /// Ed25519 by `key` over "distos-checkpoint-v1" ‖ size ‖ time ‖ head.
    pub signature: [u8; 64],
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Checkpoint({} entries, {})", self.size, hex::encode(&self.head[..6]))
    }
}

impl Checkpoint {
    /// Signs a statement about a log of `size` entries that ends in `head`.
    pub(crate) fn sign(
        secret: &HolderSecret,
        size: u64,
        head: ChainHash,
        time_ms: u64,
    ) -> Checkpoint {
        let signature = secret.sign(&signed_bytes(size, time_ms, &head));
        Checkpoint { size, head, time_ms, key: secret.key(), signature }
    }

    /// Whether `key` really signed it; [`Fault::Unauthenticated`] if not. Says nothing about
    /// whether `key` is the right one: compare it with the key that you know.
    pub fn verify(&self) -> Result<(), Fault> {
        verify_signature(
            self.key,
            &signed_bytes(self.size, self.time_ms, &self.head),
            &self.signature,
        )
    }

    fn to_bytes(self) -> [u8; CHECKPOINT_BYTES] {
        let mut out = [0; CHECKPOINT_BYTES];
        out[..8].copy_from_slice(&self.size.to_le_bytes());
        out[8..16].copy_from_slice(&self.time_ms.to_le_bytes());
        out[16..48].copy_from_slice(&self.head);
        out[48..80].copy_from_slice(&self.key.0);
        out[80..].copy_from_slice(&self.signature);
        out
    }

    fn from_bytes(bytes: &[u8; CHECKPOINT_BYTES]) -> Checkpoint {
        Checkpoint {
            size: u64::from_le_bytes(part(bytes, 0)),
            time_ms: u64::from_le_bytes(part(bytes, 8)),
            head: part(bytes, 16),
            key: HolderKey(part(bytes, 48)),
            signature: part(bytes, 80),
        }
    }
}

fn signed_bytes(size: u64, time_ms: u64, head: &ChainHash) -> Vec<u8> {
    [b"distos-checkpoint-v1".as_slice(), &size.to_le_bytes(), &time_ms.to_le_bytes(), head].concat()
}

/// `N` bytes of a buffer whose length its type or its caller has fixed.
fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the slice has N bytes")
}

fn hash(label: &str, parts: &[&[u8]]) -> ChainHash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(label.as_bytes());
    for part in parts {
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

/// Where the chain of the log that `key` signs begins.
pub(crate) fn genesis(key: HolderKey) -> ChainHash {
    hash("distos-audit-genesis-v1", &[&key.0])
}

/// The chain hash of entry `index`. A foreign auditor computes it from an entry's canonical record
/// and its predecessor's hash.
pub fn entry_hash(previous: &ChainHash, index: u64, body: &[u8]) -> ChainHash {
    hash("distos-audit-entry-v1", &[previous, &index.to_le_bytes(), body])
}

/// Why some bytes are not what they should be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Bad {
    /// Damaged, or not ours.
    Damaged(&'static str),
    /// Intact, and written by a version that this code does not know.
    Newer(u32),
}

/// What a segment's header says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) key: HolderKey,
    pub(crate) first: u64,
    pub(crate) previous: ChainHash,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER] {
        let mut out = [0; SEGMENT_HEADER];
        out[..8].copy_from_slice(SEGMENT_MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..44].copy_from_slice(&self.key.0);
        out[44..52].copy_from_slice(&self.first.to_le_bytes());
        out[52..84].copy_from_slice(&self.previous);
        let sum = blake3::hash(&out[..84]);
        out[84..].copy_from_slice(sum.as_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8; SEGMENT_HEADER]) -> Result<SegmentHeader, Bad> {
        check_sealed(bytes, SEGMENT_MAGIC)?;
        Ok(SegmentHeader {
            key: HolderKey(part(bytes, 12)),
            first: u64::from_le_bytes(part(bytes, 44)),
            previous: part(bytes, 52),
        })
    }
}

/// Magic, version and trailing checksum of a header.
fn check_sealed(bytes: &[u8], magic: &[u8; 8]) -> Result<(), Bad> {
    let (content, sum) = bytes.split_at(bytes.len() - 32);
    if blake3::hash(content).as_bytes() != sum {
        return Err(Bad::Damaged("the header's checksum is wrong"));
    }
    if &content[..8] != magic {
        return Err(Bad::Damaged("this is no file of an audit log"));
    }
    match u32::from_le_bytes(part(content, 8)) {
        VERSION => Ok(()),
        version => Err(Bad::Newer(version)),
    }
}

pub(crate) fn encode_head(checkpoint: Checkpoint) -> [u8; HEAD_BYTES] {
    let mut out = [0; HEAD_BYTES];
    out[..8].copy_from_slice(HEAD_MAGIC);
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out[12..156].copy_from_slice(&checkpoint.to_bytes());
    let sum = blake3::hash(&out[..156]);
    out[156..].copy_from_slice(sum.as_bytes());
    out
}

pub(crate) fn decode_head(bytes: &[u8]) -> Result<Checkpoint, Bad> {
    let bytes: &[u8; HEAD_BYTES] =
        bytes.try_into().map_err(|_| Bad::Damaged("the head file has the wrong length"))?;
    check_sealed(bytes, HEAD_MAGIC)?;
    let checkpoint = Checkpoint::from_bytes(&part(bytes, 12));
    checkpoint.verify().map_err(|_| Bad::Damaged("the head's signature is wrong"))?;
    Ok(checkpoint)
}

/// The fixed part of a frame.
pub(crate) struct FrameHeader {
    pub(crate) kind: FrameKind,
    pub(crate) len: usize,
    pub(crate) hash: ChainHash,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameKind {
    Entry,
    Checkpoint,
}

impl FrameHeader {
    /// Bounds the length before anybody allocates by it.
    pub(crate) fn decode(bytes: &[u8; FRAME_HEADER]) -> Result<FrameHeader, Bad> {
        let len = u32::from_le_bytes(part(bytes, 0)) as usize;
        let kind = match bytes[4] {
            1 if (1..=MAX_BODY).contains(&len) => FrameKind::Entry,
            2 if len == CHECKPOINT_BYTES => FrameKind::Checkpoint,
            _ => return Err(Bad::Damaged("the frame's length or kind is wrong")),
        };
        Ok(FrameHeader { kind, len, hash: part(bytes, 5) })
    }
}

fn push_frame(out: &mut Vec<u8>, kind: u8, hash: &ChainHash, body: &[u8]) {
    let len = u32::try_from(body.len()).expect("bodies are at most MAX_BODY");
    out.extend_from_slice(&len.to_le_bytes());
    out.push(kind);
    out.extend_from_slice(hash);
    out.extend_from_slice(body);
}

/// Appends an entry's frame and returns its chain hash.
pub(crate) fn push_entry(
    out: &mut Vec<u8>,
    previous: &ChainHash,
    index: u64,
    body: &[u8],
) -> ChainHash {
    assert!((1..=MAX_BODY).contains(&body.len()), "the recorder bounds every body");
    let hash = entry_hash(previous, index, body);
    push_frame(out, 1, &hash, body);
    hash
}

pub(crate) fn push_checkpoint(out: &mut Vec<u8>, checkpoint: Checkpoint) {
    let body = checkpoint.to_bytes();
    push_frame(out, 2, &checkpoint_hash(&checkpoint.head, &body), &body);
}

fn checkpoint_hash(head: &ChainHash, body: &[u8]) -> ChainHash {
    hash("distos-audit-checkpoint-v1", &[head, body])
}

/// The checkpoint in a frame's body, if its checksum holds at this point of the chain. Its
/// signature is the caller's to check.
pub(crate) fn checkpoint_in(
    frame: &FrameHeader,
    head: &ChainHash,
    body: &[u8],
) -> Result<Checkpoint, Bad> {
    let bytes: &[u8; CHECKPOINT_BYTES] =
        body.try_into().map_err(|_| Bad::Damaged("the checkpoint has the wrong length"))?;
    if checkpoint_hash(head, bytes) != frame.hash {
        return Err(Bad::Damaged("the checkpoint's checksum is wrong"));
    }
    Ok(Checkpoint::from_bytes(bytes))
}

/// The name of the segment that starts with entry `first`.
pub(crate) fn segment_name(first: u64) -> String {
    format!("log-{first:020}.seg")
}

/// The first entry of the segment of this name; `None` if it is no segment's name.
pub(crate) fn parse_segment_name(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("log-")?.strip_suffix(".seg")?;
    digits.parse().ok().filter(|first| segment_name(*first) == name)
}
