//! The audit log's files, as an auditor's own machine reads them.

use std::path::Path;
use std::sync::LazyLock;

use distos_audit::{Checkpoint, entry_hash, verify_dir};
use distos_schemas::kernel_capnp::record;
use distos_types::HolderSecret;

use super::seed;

const HEADER: usize = 116;
const SEGMENT: &str = "log-00000000000000000000.seg";

fn secret() -> HolderSecret {
    HolderSecret::from_seed([3; 32])
}

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    *blake3::hash(&parts.concat()).as_bytes()
}

fn checkpoint(size: u64, head: [u8; 32]) -> Checkpoint {
    let signed =
        [b"distos-checkpoint-v1".as_slice(), &size.to_le_bytes(), &9u64.to_le_bytes(), &head]
            .concat();
    Checkpoint { size, head, time_ms: 9, key: secret().key(), signature: secret().sign(&signed) }
}

fn checkpoint_bytes(checkpoint: &Checkpoint) -> Vec<u8> {
    let Checkpoint { size, head, time_ms, key, signature } = checkpoint;
    [&size.to_le_bytes()[..], &time_ms.to_le_bytes(), head, &key.0, signature].concat()
}

fn frame(out: &mut Vec<u8>, kind: u8, hash: [u8; 32], body: &[u8]) {
    out.extend((body.len() as u32).to_le_bytes());
    out.push(kind);
    out.extend(hash);
    out.extend(body);
}

/// A segment of these bodies, as the documentation of the format says, and its checkpoint.
fn log(bodies: &[Vec<u8>]) -> (Vec<u8>, Checkpoint) {
    let mut chain = hash(&[b"distos-audit-genesis-v1", &secret().key().0]);
    let mut bytes =
        [&b"DISTOSAL"[..], &1u32.to_le_bytes(), &secret().key().0, &0u64.to_le_bytes(), &chain]
            .concat();
    bytes.extend(hash(&[&bytes]));
    for (body, index) in bodies.iter().zip(0..) {
        chain = entry_hash(&chain, index, body);
        frame(&mut bytes, 1, chain, body);
    }
    let checkpoint = checkpoint(bodies.len() as u64, chain);
    let body = checkpoint_bytes(&checkpoint);
    let check = hash(&[b"distos-audit-checkpoint-v1", &chain, &body]);
    frame(&mut bytes, 2, check, &body);
    (bytes, checkpoint)
}

fn head(checkpoint: &Checkpoint) -> Vec<u8> {
    let mut bytes = [&b"DISTOSAH"[..], &1u32.to_le_bytes(), &checkpoint_bytes(checkpoint)].concat();
    bytes.extend(hash(&[&bytes]));
    bytes
}

fn body(seq: u64) -> Vec<u8> {
    let mut message = capnp::message::Builder::new_default();
    let mut record = message.init_root::<record::Builder<'_>>();
    record.set_seq(seq);
    record.set_time_ms(seq);
    record.set_kind("mint");
    record.set_vat("memory");
    record.set_detail("region 4");
    let words = capnp::serialize::write_message_to_words(&message);
    words[8..].to_vec()
}

static LOG: LazyLock<(Vec<u8>, Checkpoint)> = LazyLock::new(|| log(&[body(1), body(2), body(3)]));

pub(super) fn seeds() -> Vec<(String, Vec<u8>)> {
    vec![seed("log", LOG.0.clone()), seed("empty", log(&[]).0)]
}

thread_local! {
    static DIR: tempfile::TempDir = tempfile::tempdir().unwrap();
}

fn verify(segment: &[u8], head: &[u8], outside: Option<Checkpoint>) -> bool {
    DIR.with(|dir| {
        let write =
            |name: &str, bytes: &[u8]| std::fs::write(Path::join(dir.path(), name), bytes).unwrap();
        write(SEGMENT, segment);
        write("head", head);
        let found = verify_dir(dir.path(), outside);
        assert!(found.damage.is_some() != found.checkpoint.is_some());
        if let Some(damage) = &found.damage {
            assert!(!damage.reason.is_empty() && !damage.file.is_empty());
        }
        found.damage.is_none()
    })
}

/// Whoever kept a checkpoint finds any change (L1): beside it, only what was signed verifies. A log
/// whose hashes are right but whose entries are anything at all is read without a panic.
pub(super) fn log_target(bytes: &[u8]) {
    let kept = LOG.1;
    if verify(bytes, &head(&kept), Some(kept)) {
        assert_eq!(bytes, LOG.0, "a changed log verifies");
    }
    // The same bytes as the head file: nobody but the key's holder can sign one.
    let of_head = bytes.get(..188).unwrap_or(bytes);
    if verify(&LOG.0, of_head, Some(kept)) {
        assert_eq!(of_head, head(&kept), "a changed head verifies");
    }
    let bodies: Vec<Vec<u8>> = bodies(bytes);
    let (segment, checkpoint) = log(&bodies);
    verify(&segment, &head(&checkpoint), None);
}

/// The bodies that stand between what look like frames' headers.
fn bodies(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = bytes.get(HEADER..).unwrap_or_default();
    let mut bodies = Vec::new();
    while let Some((header, body)) = rest.split_at_checked(37) {
        let len = u32::from_le_bytes(header[..4].try_into().unwrap()) as usize;
        let (body, behind) = body.split_at(len.min(body.len()).max(1).min(body.len()));
        if !body.is_empty() {
            bodies.push(body.to_vec());
        }
        rest = behind;
    }
    bodies
}
