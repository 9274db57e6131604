//! The audit log: batches of entries, each signed, made durable and then acknowledged to the
//! kernel, as the audit service's keeper does.

use std::path::Path;

use distos_abi::HolderKey;
use distos_audit::{ChainHash, Checkpoint, Incoming, Store, entry_hash, verify_dir};
use distos_schemas::kernel_capnp::record;

use crate::disk::Pending;
use crate::explore::{Ledger, Workload};
use crate::{Random, say};

/// Small enough for a log of a few batches to have several segments.
const SEGMENT_BYTES: u64 = 2_000;

/// The audit log.
#[derive(Debug)]
pub struct Audit;

fn open(dir: &Path, seed: u8) -> Result<Store, String> {
    Store::open(
        dir,
        |place| {
            place.fill(seed);
            Ok(())
        },
        1,
        SEGMENT_BYTES,
    )
    .map_err(|e| e.to_string())
}

fn entry(seq: u64, detail: &str) -> Incoming {
    let mut message = capnp::message::Builder::new_default();
    let mut record = message.init_root::<record::Builder<'_>>();
    record.set_seq(seq);
    record.set_kind("mint");
    record.set_detail(detail);
    let mut canonical = capnp::message::Builder::new_default();
    let record = record.into_reader();
    canonical.set_root_canonical::<record::Owned>(record).expect("a record has a canonical form");
    (seq, canonical.get_segments_for_output().concat())
}

impl Workload for Audit {
    const NAME: &'static str = "audit";
    type Ledger = Logged;

    fn work(dir: &Path, seed: u64, is_first: bool) {
        let mut random = Random::new(seed);
        let mut store = open(dir, seed as u8).expect("the log opens");
        let checkpoint = store.checkpoint();
        say(format_args!("opened {} {}", checkpoint.size, hex::encode(checkpoint.head)));
        for batch in 0..if is_first { 24 } else { 5 } {
            let mut entries = Vec::new();
            for n in 0..=random.below(4) {
                let detail = hex::encode(random.bytes(1 + n as usize * 40));
                // Entries of the service's own, about what is missing, have no number.
                let seq = if random.below(6) == 0 { 0 } else { store.last_seq() + 1 + n };
                entries.push(entry(seq, &detail));
            }
            for (_, body) in &entries {
                say(format_args!("adding {}", hex::encode(body)));
            }
            store.append(&entries, 1_000 + batch).expect("the log is written");
            store.settle().expect("the log is written");
            let Checkpoint { size, head, time_ms, key, signature } = store.checkpoint();
            let (head, key, signature) =
                (hex::encode(head), hex::encode(key.0), hex::encode(signature));
            say(format_args!("added {size} {time_ms} {head} {key} {signature}"));
        }
    }

    fn frames(pending: &Pending) -> Vec<usize> {
        let bytes = pending.bytes().unwrap_or_default();
        let is_header = bytes.starts_with(b"DISTOSAL");
        let (mut at, mut frames) = (if is_header { 116 } else { 0 }, Vec::new());
        // Length of the body, kind, hash, body.
        while let Some(len) = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>()) {
            frames.push(at);
            at = at.saturating_add(37 + u32::from_le_bytes(*len) as usize);
        }
        frames
    }
}

/// What the log was given and has acknowledged.
#[derive(Clone, Debug, Default)]
pub struct Logged {
    /// The chain hash after each entry that it was given; before the first `opened` unknown.
    heads: Vec<ChainHash>,
    acknowledged: u64,
    /// The last one that somebody may have kept elsewhere.
    checkpoint: Option<Checkpoint>,
    wrong: Option<String>,
}

fn array<const N: usize>(word: &str) -> [u8; N] {
    hex::decode(word).expect("hex").try_into().expect("as many bytes as that")
}

impl Ledger for Logged {
    fn hear(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["opened", size, head] => {
                let (size, head) = (size.parse().expect("a number"), array(head));
                if self.heads.is_empty() {
                    self.heads.push(head);
                }
                if self.heads.get(size as usize) != Some(&head) {
                    self.wrong = Some(format!("it opened on {size} other entries than were added"));
                }
                // The keeper acknowledges to the kernel whatever it finds.
                self.acknowledged = size;
                self.heads.truncate(size as usize + 1);
            }
            ["adding", body] => {
                let previous = self.heads.last().expect("it was opened first");
                let index = self.heads.len() as u64 - 1;
                let body = hex::decode(body).expect("hex");
                self.heads.push(entry_hash(previous, index, &body));
            }
            ["added", size, time, head, key, signature] => {
                let (size, time_ms) =
                    (size.parse().expect("a number"), time.parse().expect("a number"));
                let (head, key) = (array(head), HolderKey(array(key)));
                self.acknowledged = size;
                self.checkpoint =
                    Some(Checkpoint { size, head, time_ms, key, signature: array(signature) });
            }
            _ => panic!("{line}: no workload says that"),
        }
    }

    fn check(&self, dir: &Path) -> Result<(), String> {
        if let Some(wrong) = &self.wrong {
            return Err(wrong.clone());
        }
        let mut store =
            open(dir, 99).map_err(|e| format!("the log does not open after a crash: {e}"))?;
        let found = store.checkpoint();
        if found.size < self.acknowledged {
            let (found, acknowledged) = (found.size, self.acknowledged);
            return Err(format!(
                "{acknowledged} entries were acknowledged, {found} are there (L1)"
            ));
        }
        let is_known = self.heads.is_empty() && found.size == 0;
        if !is_known && self.heads.get(found.size as usize) != Some(&found.head) {
            return Err(format!("the {} entries are not those that were added", found.size));
        }
        self.verify(dir, found)?;
        // It goes on from there.
        store.append(&[entry(store.last_seq() + 1, "more")], 9_000).map_err(|e| e.to_string())?;
        store.settle().map_err(|e| e.to_string())?;
        if store.checkpoint().size != found.size + 1 {
            return Err("an entry that was added after the recovery is not there".into());
        }
        self.verify(dir, store.checkpoint())
    }
}

impl Logged {
    /// It verifies, also for whoever kept the last checkpoint that was given out.
    fn verify(&self, dir: &Path, newest: Checkpoint) -> Result<(), String> {
        let verified = verify_dir(dir, self.checkpoint);
        match verified.damage {
            None if verified.checkpoint == Some(newest) => Ok(()),
            None => Err("another checkpoint verifies than the newest".into()),
            Some(damage) => Err(format!("the recovered log does not verify: {damage}")),
        }
    }
}
