//! The kernel's journal: grants, delegations and revocations of a forest, recorded in the order
//! that `Kernel::apply` keeps, and trimmed as the audit service takes them.

use std::collections::BTreeMap;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use distos_abi::{
    Authority, CapId, Fault, HolderKey, Kind, LinkHash, ObjectId, SessionId, TenantId, VatName,
};
use distos_core::{Command, Forest, LinkClaim, Order, Outcome, Record};
use distos_host::journal::{Frame, JournalHandle, codec};
use tokio::runtime::Runtime;

use crate::disk::Pending;
use crate::explore::{Ledger, Workload};
use crate::{Random, say};

/// Little more than the longest record, so that segments fill up.
const SEGMENT_BYTES: u64 = 20 * 1024;
const SLOTS: u32 = 1 << 12;
const SESSION: SessionId = SessionId(1);
const KIND: Kind = Kind(1);

/// The kernel's journal.
#[derive(Debug)]
pub struct Journal;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn vat() -> VatName {
    VatName::new("memory").expect("a name")
}

/// As the kernel does at its start.
fn replay(frames: &[Frame]) -> Result<Forest, String> {
    let decode = |frame: &Frame| {
        let record = codec::decode(&frame.payload).map_err(|e| e.to_string())?;
        Ok((frame.time_ms, record))
    };
    let records = frames.iter().map(decode).collect::<Result<Vec<_>, String>>()?;
    replay_records(&records)
}

fn replay_records(records: &[(u64, Record)]) -> Result<Forest, String> {
    let last = records.iter().filter_map(|(_, record)| record.epoch()).max().unwrap_or(0);
    let mut forest = Forest::new(last + 1, SLOTS);
    for (time_ms, record) in records {
        forest.replay(*time_ms, record).map_err(|e| e.to_string())?;
    }
    Ok(forest)
}

fn claim(hash: LinkHash) -> LinkClaim {
    let holder = HolderKey(*blake3::hash(&hash.0).as_bytes());
    LinkClaim { hash, holder, issuer: HolderKey([3; 32]), authority: Authority::FULL }
}

type Wait = Pin<Box<dyn Future<Output = Result<(), Fault>>>>;

/// The kernel, as far as it concerns the journal.
struct Kernel {
    journal: JournalHandle,
    forest: Forest,
    random: Random,
    runtime: Runtime,
    now_ms: u64,
    /// Waits for records, and what to say when they are durable.
    waits: Vec<(u64, Wait, Vec<String>)>,
    /// Chains that were redeemed: root and links.
    chains: Vec<(CapId, Vec<LinkHash>)>,
}

impl Kernel {
    fn apply(&mut self, command: Command, promises: Vec<String>) -> Option<Outcome> {
        self.now_ms += 1;
        let applied = self.forest.apply(command, self.now_ms).ok()?;
        let durable = applied.order != Order::Lazy;
        let mut last = None;
        for record in &applied.records {
            let (seq, bytes) = (self.journal.status().last_seq + 1, codec::encode(record));
            say(format_args!("record {seq} {} {}", self.now_ms, hex::encode(&bytes)));
            last = Some((seq, self.journal.submit(bytes, self.now_ms, durable)));
        }
        if let (Some((seq, wait)), true) = (last, durable) {
            self.waits.push((seq, Box::pin(wait), promises));
        }
        Some(applied.outcome)
    }

    fn settle(&mut self) {
        for (seq, wait, promises) in std::mem::take(&mut self.waits) {
            self.runtime.block_on(wait).expect("the journal is written");
            say(format_args!("durable {seq}"));
            promises.iter().for_each(|promise| say(format_args!("{promise}")));
        }
    }

    fn any(&mut self) -> Option<CapId> {
        let (all, _) = self.forest.tree(None, 1 << 12);
        let at = self.random.below(all.len().max(1) as u64) as usize;
        all.get(at).map(|view| view.cap)
    }

    fn step(&mut self) {
        let some = self.any().and_then(|cap| Some((cap, self.forest.slot_of(cap)?)));
        let number = self.random.next();
        match (self.random.below(12), some) {
            (0, _) => {
                let name = format!("t{:x}", number >> 32);
                let holder = HolderKey(*blake3::hash(&number.to_le_bytes()).as_bytes());
                self.apply(Command::AddTenant { name, holder, slot_quota: 512 }, vec![]);
            }
            (1, _) | (_, None) => {
                let (authority, tenant) = (Authority::FULL, TenantId::OPERATOR);
                let holder = HolderKey([2; 32]);
                let root = Command::MintRoot { vat: vat(), kind: KIND, authority, holder, tenant };
                self.apply(root, vec![]);
            }
            (2 | 3, Some((_, parent))) => {
                let (object, authority) = (ObjectId(1 + (number >> 1)), Authority::FULL);
                let (parent, session, kind) = (Some(parent), None, Kind(2));
                let vat = vat();
                self.apply(Command::Mint { vat, parent, kind, object, authority, session }, vec![]);
            }
            (4 | 5, Some((root, _))) => {
                let mut chain = (root, vec![]);
                if !self.chains.is_empty() && number.is_multiple_of(2) {
                    chain = self.chains[number as usize / 2 % self.chains.len()].clone();
                }
                chain.1.push(LinkHash(*blake3::hash(&number.to_le_bytes()).as_bytes()));
                let links = chain.1.iter().map(|hash| claim(*hash)).collect();
                let redeem =
                    Command::Redeem { vat: vat(), root_cap: chain.0, links, session: SESSION };
                if self.apply(redeem, vec![]).is_some() {
                    self.chains.push(chain);
                }
            }
            (6, Some((_, parent))) => {
                let (vat, wanted, session) = (vat(), Authority::FULL, SESSION);
                self.apply(Command::Derive { vat, parent, wanted, session }, vec![]);
            }
            (7, Some((cap, slot))) => {
                self.apply(Command::Revoke { vat: vat(), slot }, vec![format!("dead {cap}")]);
            }
            (8, _) if !self.chains.is_empty() => {
                let at = number as usize % self.chains.len();
                let (root, links) = self.chains[at].clone();
                let (Some(under), Some(link)) = (self.forest.slot_of(root), links.last()) else {
                    return;
                };
                let refused = format!("refused {root} {}", hex::encode(links.as_flattened_links()));
                let (vat, link, expires_ms) = (vat(), *link, u64::MAX);
                self.apply(Command::RevokeLink { vat, under, link, expires_ms }, vec![refused]);
            }
            (9, Some((root, under))) => {
                // A link that nobody has redeemed.
                let link = LinkHash(*blake3::hash(&number.to_le_bytes()).as_bytes());
                let refused = format!("refused {root} {}", hex::encode(link.0));
                let (vat, expires_ms) = (vat(), u64::MAX);
                self.apply(Command::RevokeLink { vat, under, link, expires_ms }, vec![refused]);
            }
            (_, some) => {
                let (kind, tenant) = ("denial".to_owned(), TenantId::OPERATOR);
                let detail = hex::encode(self.random.bytes(100));
                let cap = some.map_or(CapId(0), |(cap, _)| cap);
                self.apply(Command::Report { vat: vat(), kind, tenant, cap, detail }, vec![]);
            }
        }
    }

    /// The audit service has taken all that is durable but the last few.
    fn trim(&mut self) {
        self.settle();
        self.runtime.block_on(self.journal.sync()).expect("the journal is written");
        let last = self.journal.status().last_seq;
        say(format_args!("durable {last}"));
        let taken = last - self.random.below(4).min(last);
        say(format_args!("trim {taken}"));
        let snapshot = || self.forest.snapshot().iter().map(codec::encode).collect();
        self.journal.acknowledge(taken, self.now_ms, snapshot);
        if self.random.below(2) == 0 {
            // Nothing follows for a while, which would take the snapshot along to the disk.
            std::thread::sleep(Duration::from_millis(40));
        }
    }
}

trait Flattened {
    fn as_flattened_links(&self) -> Vec<u8>;
}

impl Flattened for Vec<LinkHash> {
    fn as_flattened_links(&self) -> Vec<u8> {
        self.iter().flat_map(|link| link.0).collect()
    }
}

impl Workload for Journal {
    const NAME: &'static str = "journal";
    type Ledger = Recorded;

    fn work(dir: &Path, seed: u64, is_first: bool) {
        let opened = JournalHandle::open_sized(&dir.join("journal"), SEGMENT_BYTES);
        let (journal, frames) = opened.expect("the journal opens");
        let forest = replay(&frames).expect("the journal replays");
        say(format_args!("opened {}", journal.status().last_seq));
        let now_ms = forest.time_floor_ms() + 1;
        let mut kernel = Kernel {
            journal,
            forest,
            random: Random::new(seed),
            runtime: runtime(),
            now_ms,
            waits: vec![],
            chains: vec![],
        };
        kernel.apply(Command::Boot { image_hash: [7; 32] }, vec![]);
        kernel.settle();
        let steps = if is_first { 130 } else { 16 };
        for step in 1..=steps {
            kernel.step();
            // Several records share one sync.
            if kernel.random.below(3) > 0 {
                kernel.settle();
            }
            if step % 12 == 0 {
                kernel.trim();
            }
        }
        kernel.settle();
    }

    fn frames(pending: &Pending) -> Vec<usize> {
        let bytes = pending.bytes().unwrap_or_default();
        let starts = bytes.windows(4).enumerate().filter(|(_, window)| *window == b"JRNL");
        starts.map(|(at, _)| at).filter(|at| *at > 0).collect()
    }
}

/// What the journal was given and has acknowledged.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    /// Records that it was given: time and bytes, by sequence number.
    records: BTreeMap<u64, (u64, Vec<u8>)>,
    durable: u64,
    trimmed: u64,
    dead: Vec<CapId>,
    refused: Vec<(CapId, Vec<LinkHash>)>,
}

impl Ledger for Recorded {
    fn hear(&mut self, line: &str) {
        let mut words = line.split(' ');
        let verb = words.next().unwrap_or_default();
        let mut word = || words.next().expect("a workload's line is whole");
        match verb {
            "record" => {
                let (seq, time) =
                    (word().parse().expect("a number"), word().parse().expect("a number"));
                self.records.insert(seq, (time, hex::decode(word()).expect("hex")));
            }
            "durable" => self.durable = self.durable.max(word().parse().expect("a number")),
            // What the kernel has found it acts upon, and hands to the audit service: all of it is
            // acknowledged, and what was not found is gone for good.
            "opened" => {
                self.durable = word().parse().expect("a number");
                self.records.split_off(&(self.durable + 1));
            }
            "trim" => self.trimmed = word().parse().expect("a number"),
            "dead" => self.dead.push(CapId(word().parse().expect("a number"))),
            "refused" => {
                let root = CapId(word().parse().expect("a number"));
                let links = hex::decode(word()).expect("hex");
                let links =
                    links.chunks(32).map(|link| LinkHash(link.try_into().expect("32 bytes")));
                self.refused.push((root, links.collect()));
            }
            other => panic!("{other}: no workload says that"),
        }
    }

    fn check(&self, dir: &Path) -> Result<(), String> {
        let dir = dir.join("journal");
        let open = || JournalHandle::open_sized(&dir, SEGMENT_BYTES);
        let refused = |e: Fault| format!("the journal does not open after a crash: {e}");
        let (journal, frames) = open().map_err(refused)?;
        let last = journal.status().last_seq;
        if last < self.durable {
            return Err(format!(
                "record {} was acknowledged and is lost: {last} is the last",
                self.durable
            ));
        }
        let mut forest = replay(&frames).map_err(|e| format!("it does not replay: {e}"))?;
        self.check_forest(&mut forest, last)?;
        self.check_outbox(&journal, last)?;
        // It goes on from there.
        let bytes = codec::encode(&Record::Boot { epoch: forest.epoch(), image_hash: [9; 32] });
        runtime()
            .block_on(journal.submit(bytes.clone(), forest.time_floor_ms(), true))
            .map_err(|e| e.to_string())?;
        drop(journal);
        let (journal, frames) = open().map_err(|e| format!("the next start: {}", refused(e)))?;
        let found =
            frames.last().is_some_and(|frame| frame.seq == last + 1 && frame.payload == bytes);
        if !found || journal.status().last_seq != last + 1 {
            return Err("a record that was acknowledged after the recovery is lost".into());
        }
        Ok(())
    }
}

impl Recorded {
    /// The forest is what the first `last` records make, and what was revoked is dead in it.
    fn check_forest(&self, forest: &mut Forest, last: u64) -> Result<(), String> {
        let mut records = Vec::new();
        for seq in 1..=last {
            let (time, bytes) =
                self.records.get(&seq).ok_or_else(|| format!("nobody wrote record {seq}"))?;
            records.push((*time, codec::decode(bytes).map_err(|e| e.to_string())?));
        }
        let expected = replay_records(&records)?;
        // The first record is the floor, which a snapshot may have raised.
        if expected.snapshot()[1..] != forest.snapshot()[1..] || expected.epoch() != forest.epoch()
        {
            return Err(format!("the forest is not what {last} records make"));
        }
        if forest.time_floor_ms() < expected.time_floor_ms() {
            return Err("time went back".into());
        }
        for cap in &self.dead {
            if forest.slot_of(*cap).is_some() {
                return Err(format!("capability {cap} was revoked and lives (C2)"));
            }
        }
        for (root, links) in &self.refused {
            let links = links.iter().map(|hash| claim(*hash)).collect();
            let redeem = Command::Redeem { vat: vat(), root_cap: *root, links, session: SESSION };
            let now_ms = forest.time_floor_ms();
            match forest.apply(redeem, now_ms) {
                Err(Fault::Revoked) => {}
                other => return Err(format!("a revoked link of {root} is not refused: {other:?}")),
            }
        }
        Ok(())
    }

    /// What the audit service has not taken waits for it, unchanged.
    fn check_outbox(&self, journal: &JournalHandle, last: u64) -> Result<(), String> {
        let waiting = journal.read_from(0, usize::MAX);
        let mut next = self.trimmed + 1;
        for frame in &waiting {
            let given = self.records.get(&frame.seq);
            if given != Some(&(frame.time_ms, frame.payload.clone())) {
                return Err(format!(
                    "the outbox has another record {} than was written",
                    frame.seq
                ));
            }
            next += u64::from(frame.seq == next);
        }
        if next <= last {
            return Err(format!("the audit service never gets record {next} (L1)"));
        }
        Ok(())
    }
}
