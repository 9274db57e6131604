//! The trace of the kernel's forest: a node's journal as `specs/capability/Trace.tla` reads it.
//!
//! The audit log holds the same records, as text for people. The journal has all that the model
//! needs to know of them: which connection a capability ends with, and each of its caveats.
//!
//! What it does not do: a journal whose beginning was trimmed is no trace, because what the
//! first of its records hang from is not in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use distos_abi::{Authority, CapId, Generation, HolderKey, LinkHash, Rights};
use distos_core::{Holder, Life, NodeRecord, Reason, Record};
use distos_host::journal::segment::{self, Chain};
use distos_host::journal::{FrameKind, codec};

use super::{Trace, count, number_of};
use crate::value::Value;

/// The folder in `specs/` of the model.
pub const SPEC: &str = "capability";

/// A record of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its sequence number.
    pub seq: u64,
    /// When it was written, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// What it says.
    pub record: Record,
}

/// Reads all of a node's journal, and changes nothing. What is being written at this moment may be
/// left out.
///
/// # Errors
/// It cannot be read, is damaged, or was trimmed.
pub fn journal(node: &Path) -> Result<Vec<Entry>, String> {
    let dir = node.join("kernel/journal");
    let told = |path: &Path, why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    let files = fs::read_dir(&dir).map_err(|e| told(&dir, &e))?;
    let mut files: Vec<PathBuf> = files.filter_map(|file| Some(file.ok()?.path())).collect();
    files.retain(|path| {
        path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"segment-"))
    });
    files.sort();
    let (mut entries, mut chain) = (Vec::new(), Chain::START);
    for path in &files {
        let bytes = fs::read(path).map_err(|e| told(path, &e))?;
        let read = segment::recover(&bytes, Some(chain));
        let read = read.map_err(|damage| told(path, &format!("{damage:?}")))?;
        chain = read.chain;
        for frame in read.frames.iter().filter(|frame| frame.kind == FrameKind::Record) {
            let record = codec::decode(&frame.payload).map_err(|e| told(path, &e))?;
            entries.push(Entry { seq: frame.seq, time_ms: frame.time_ms, record });
        }
    }
    match entries.first() {
        Some(Entry { seq: 1, .. }) => Ok(entries),
        _ => Err(told(&dir, &"the journal does not begin with its first record")),
    }
}

/// The records that change the forest, as events. The others are counted.
pub fn trace(entries: &[Entry]) -> Trace {
    let mut names = Names::of(entries);
    let (mut events, mut skipped) = (Vec::new(), BTreeMap::new());
    for entry in entries {
        match names.event(entry) {
            Ok(event) => events.push(event),
            Err(what) => *skipped.entry(what).or_default() += 1,
        }
    }
    Trace { events, skipped, definitions: Vec::new() }
}

/// What a trace calls things: numbers keep their order, everything else only its identity.
struct Names {
    numbers: Vec<u64>,
    caps: Vec<CapId>,
    links: BTreeMap<LinkHash, i64>,
    keys: BTreeMap<HolderKey, i64>,
    /// The node's own key: every chain begins with a link that the node has signed.
    node: Option<HolderKey>,
}

impl Names {
    fn of(entries: &[Entry]) -> Names {
        let (mut numbers, mut caps) = (BTreeSet::new(), BTreeSet::new());
        for Entry { time_ms, record, .. } in entries {
            numbers.insert(*time_ms);
            match record {
                Record::Node(node) => {
                    numbers.extend(limits(node.authority));
                    caps.extend(node.lineage.iter().chain(&node.parent).copied());
                    caps.insert(node.cap);
                }
                Record::Revoke(revoke) => {
                    caps.extend(revoke.lineage.iter().copied());
                    caps.insert(revoke.cap);
                }
                Record::Tombstone { under, expires_ms, .. } => {
                    numbers.insert(*expires_ms);
                    caps.insert(*under);
                }
                _ => {}
            }
        }
        Names {
            numbers: numbers.into_iter().collect(),
            caps: caps.into_iter().collect(),
            links: BTreeMap::new(),
            keys: BTreeMap::new(),
            node: entries.iter().find_map(|entry| match &entry.record {
                Record::Node(node) => node.issuer,
                _ => None,
            }),
        }
    }

    /// `Err` names what is no event.
    fn event(&mut self, Entry { time_ms, record, .. }: &Entry) -> Result<Value, &'static str> {
        let time = self.rank(*time_ms);
        let event = |name, fields: Vec<(&str, Value)>| {
            let all = [("event", Value::text(name)), ("time", time)].into_iter().chain(fields);
            Ok(Value::Record(all.map(|(name, value)| (name.to_owned(), value)).collect()))
        };
        match record {
            Record::Boot { epoch, .. } => {
                event("boot", vec![("epoch", Value::from(i64::from(*epoch)))])
            }
            Record::Node(node) => event("node", self.node(node)),
            Record::Revoke(revoke) => {
                let reason = match revoke.reason {
                    Reason::Asked => "asked",
                    Reason::Link => "link",
                    Reason::Object => "object",
                    Reason::Expired => "expired",
                };
                let fields = vec![
                    ("cap", self.cap(revoke.cap)),
                    ("lineage", self.lineage(&revoke.lineage)),
                    ("below", count(revoke.descendants)),
                    ("reason", Value::text(reason)),
                ];
                event("revoke", fields)
            }
            Record::Tombstone { under, link, expires_ms } => {
                let fields = vec![
                    ("under", self.cap(*under)),
                    ("link", self.link(Some(*link))),
                    ("until", self.rank(*expires_ms)),
                ];
                event("tombstone", fields)
            }
            Record::SessionEnded { vat, session, ended } => {
                let life = Value::Text(format!("{vat} {session}"));
                event("session", vec![("life", life), ("ended", count(*ended))])
            }
            Record::VatDied { vat, ended } => {
                event("vat", vec![("vat", Value::text(vat.as_str())), ("ended", count(*ended))])
            }
            Record::Tenant(_) => Err("tenants"),
            Record::Event { .. } => Err("reports"),
            Record::Floor { .. } => Err("floors"),
        }
    }

    fn node(&mut self, node: &NodeRecord) -> Vec<(&'static str, Value)> {
        let vat = Value::text(node.vat.as_str());
        let life = match node.life {
            Life::Durable => "durable".to_owned(),
            Life::Edge => "edge".to_owned(),
            Life::Parent => "parent".to_owned(),
            // A vat's name has no blank in it, so that no session is called like another life.
            Life::Session(session) => format!("{} {session}", node.vat),
        };
        let holder = match &node.holder {
            Holder::Key(key) => vec![Value::text("key"), self.key(key)],
            Holder::Vat(vat) => vec![Value::text("vat"), Value::text(vat.as_str())],
        };
        let issuer = node.issuer.map_or_else(|| Value::text("none"), |issuer| self.key(&issuer));
        let object = Value::Text(format!("{}/{}", node.kind.0, node.object.0));
        vec![
            ("cap", self.cap(node.cap)),
            ("epoch", Value::from(i64::from(Generation(node.cap.0).epoch()))),
            ("parent", node.parent.map_or(Value::from(0), |parent| self.cap(parent))),
            ("life", Value::Text(life)),
            ("object", Value::Seq(vec![vat, object])),
            ("holder", Value::Seq(holder)),
            ("issuer", issuer),
            ("link", self.link(node.link)),
            ("authority", self.authority(node.authority)),
            ("lineage", self.lineage(&node.lineage)),
        ]
    }

    fn authority(&self, authority: Authority) -> Value {
        let [exp, from, to, bytes, tasks, rate] = limits(authority).map(|number| self.rank(number));
        let bits = (0..u64::BITS).map(|bit| Rights(1 << bit));
        let rights = bits.filter(|right| authority.rights.contains(*right));
        let mut allowed: Vec<Value> = rights.map(|right| Value::Text(right.to_string())).collect();
        // What is not bound to it may come by any way: of this, too, a child has no more.
        if !authority.caveats.end_to_end {
            allowed.push(Value::text("any way"));
        }
        Value::record([
            ("rights", Value::Set(allowed.into_iter().collect())),
            ("exp", exp),
            ("range", Value::record([("from", from), ("to", to)])),
            ("bytes", bytes),
            ("tasks", tasks),
            ("rate", rate),
        ])
    }

    fn rank(&self, number: u64) -> Value {
        place(&self.numbers, &number)
    }

    fn cap(&self, cap: CapId) -> Value {
        place(&self.caps, &cap)
    }

    fn lineage(&self, lineage: &[CapId]) -> Value {
        Value::Seq(lineage.iter().map(|cap| self.cap(*cap)).collect())
    }

    fn link(&mut self, link: Option<LinkHash>) -> Value {
        let number = link.map_or(0, |link| number_of(&mut self.links, link));
        Value::Seq(vec![Value::from(0), Value::from(number)])
    }

    fn key(&mut self, key: &HolderKey) -> Value {
        match self.node {
            Some(node) if node == *key => Value::text("node"),
            _ => Value::Text(number_of(&mut self.keys, *key).to_string()),
        }
    }
}

/// All numbers of an authority. They compare each with its like only, and one order holds for all.
fn limits(authority: Authority) -> [u64; 6] {
    let caveats = authority.caveats;
    [
        caveats.expires_ms,
        caveats.range.start,
        caveats.range.end,
        caveats.quota_bytes,
        u64::from(caveats.quota_tasks),
        u64::from(caveats.rate_per_s),
    ]
}

/// A number's rank, from 1.
fn place<T: Ord>(all: &[T], one: &T) -> Value {
    count(all.partition_point(|other| other <= one) as u64)
}
