//! Regions: made, written in whole pages and parts of pages, several at a time, and dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use distos_abi::{ByteRange, Fault, ObjectId, TenantId};
use distos_memory::{Facts, Limits, Store};

use crate::disk::Pending;
use crate::explore::{Ledger, Workload};
use crate::{Random, say};

const PAGE: u64 = 65_536;
/// The index is compacted a few times in a run.
const LIMITS: Limits = Limits { volatile_bytes: 1 << 20, compact_bytes: 6_144 };

/// Regions of pages.
#[derive(Debug)]
pub struct Memory;

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    tokio::task::LocalSet::new().block_on(&runtime.expect("a runtime"), work)
}

fn page(number: u32) -> ByteRange {
    ByteRange { start: u64::from(number) * PAGE, end: u64::from(number + 1) * PAGE }
}

async fn write(store: &Rc<Store>, object: u64, offset: u64, data: Vec<u8>) -> Result<(), Fault> {
    let gate = |act: &mut dyn FnMut()| {
        act();
        Ok(())
    };
    store.write(ObjectId(object), offset, data, gate).await
}

/// What a write of this number writes.
fn content(tag: u64, len: usize) -> Vec<u8> {
    Random::new(tag).bytes(len)
}

struct Work {
    store: Rc<Store>,
    random: Random,
    /// Regions and how many pages they have.
    regions: Vec<(u64, u32)>,
    dir: std::path::PathBuf,
}

impl Work {
    /// Takes up what an earlier process left, and says all of it.
    async fn take_up(&mut self) {
        for found in self.store.found() {
            let (object, name) = (found.object.0, &found.facts.name);
            let pages = (found.facts.bytes / PAGE) as u32;
            self.store.activate(found.object);
            say(format_args!("present {object} {name}"));
            let mut seen = Vec::new();
            for number in 0..pages {
                match self.store.read(found.object, page(number)).await {
                    Ok(bytes) => seen.push(blake3::hash(&bytes)),
                    Err(_) => break,
                }
            }
            if seen.len() < pages as usize {
                // Its key was destroyed and its drop not yet recorded.
                self.drop_region(object).await;
                continue;
            }
            for (number, hash) in seen.iter().enumerate() {
                say(format_args!("saw {object} {number} {hash}"));
            }
            self.regions.push((object, pages));
        }
        say(format_args!("opened"));
    }

    async fn create(&mut self) {
        let (pages, number) = (1 + self.random.below(3) as u32, self.random.next());
        let name = format!("r{number:x}");
        say(format_args!("creating {name} {pages}"));
        let bytes = u64::from(pages) * PAGE;
        let (tenant, lineage) = (TenantId(1), vec![]);
        let facts = Facts { name: name.clone(), tenant, bytes, durable: true, lineage };
        let object = self.store.create(facts).await.expect("a region is made");
        self.store.activate(object);
        say(format_args!("created {} {name}", object.0));
        self.regions.push((object.0, pages));
        self.tell_key(object.0);
    }

    /// Which bytes must be nowhere once the region is dropped.
    fn tell_key(&self, object: u64) {
        let keys = std::fs::read(self.dir.join("keys.bin")).expect("the keys are there");
        let slot = keys.chunks(512).find(|slot| slot[8..16] == object.to_le_bytes());
        let slot = slot.expect("a durable region has a key");
        say(format_args!("key {object} {}", hex::encode(&slot[16..48])));
    }

    async fn write_some(&mut self) {
        let mut jobs = Vec::new();
        let mut busy = BTreeSet::new();
        for _ in 0..=self.random.below(3) {
            let (object, pages) =
                self.regions[self.random.below(self.regions.len() as u64) as usize];
            if !busy.insert(object) {
                continue;
            }
            let first = self.random.below(u64::from(pages)) * PAGE;
            let left = u64::from(pages) * PAGE - first;
            let (offset, len) = match self.random.below(4) {
                0 => (first, PAGE),
                1 => (first, left.min(2 * PAGE)),
                2 => (first + 100, left.min(PAGE) / 2),
                _ => (first + PAGE / 2, (left - PAGE / 2).min(PAGE)),
            };
            let tag = self.random.next();
            say(format_args!("writing {object} {offset} {len} {tag}"));
            let (store, data) = (self.store.clone(), content(tag, len as usize));
            jobs.push(tokio::task::spawn_local(async move {
                write(&store, object, offset, data).await.expect("a write is done");
                say(format_args!("wrote {object} {tag}"));
            }));
        }
        for job in jobs {
            job.await.expect("a write ends");
        }
    }

    async fn drop_region(&mut self, object: u64) {
        say(format_args!("dropping {object}"));
        self.store.erase(ObjectId(object)).await.expect("a region is dropped");
        say(format_args!("dropped {object}"));
    }
}

impl Workload for Memory {
    const NAME: &'static str = "memory";
    type Ledger = Stored;

    fn work(dir: &Path, seed: u64, is_first: bool) {
        run(async {
            let store = Store::open_directory(dir, LIMITS).expect("the store opens");
            let (random, regions) = (Random::new(seed), vec![]);
            let mut work = Work { store, random, regions, dir: dir.to_owned() };
            work.take_up().await;
            for _ in 0..if is_first { 30 } else { 6 } {
                match work.random.below(8) {
                    0 | 1 if work.regions.len() < 3 => work.create().await,
                    2 if work.regions.len() > 1 => {
                        let at = work.random.below(work.regions.len() as u64) as usize;
                        let (object, _) = work.regions.swap_remove(at);
                        work.drop_region(object).await;
                    }
                    _ if work.regions.is_empty() => work.create().await,
                    _ => work.write_some().await,
                }
            }
            // Lets the threads end what nobody waits for, such as a compaction.
            tokio::time::sleep(Duration::from_millis(100)).await;
        });
    }

    fn frames(pending: &Pending) -> Vec<usize> {
        let bytes = pending.bytes().unwrap_or_default();
        bytes
            .chunks(512)
            .enumerate()
            .filter(|(_, s)| s.starts_with(b"DMXF"))
            .map(|(n, _)| n * 512)
            .collect()
    }
}

/// What a page has been asked to be, oldest first; the first was acknowledged.
type Versions = Vec<(u64, Rc<Vec<u8>>)>;

#[derive(Clone, Debug)]
struct Region {
    name: String,
    pages: Vec<Versions>,
    dropping: bool,
    present: bool,
}

/// What the store was asked for and has acknowledged.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    creating: BTreeMap<String, u32>,
    regions: BTreeMap<u64, Region>,
    keys: BTreeMap<u64, Vec<u8>>,
    dropped: BTreeSet<u64>,
    wrong: Option<String>,
}

impl Stored {
    fn add(&mut self, object: u64, name: &str) {
        let Some(pages) = self.creating.remove(name) else {
            self.wrong = Some(format!("a region {name} that nobody made"));
            return;
        };
        let zeros = Rc::new(vec![0; PAGE as usize]);
        let pages = vec![vec![(0, zeros)]; pages as usize];
        let region = Region { name: name.to_owned(), pages, dropping: false, present: true };
        self.regions.insert(object, region);
    }

    fn write(&mut self, object: u64, offset: u64, len: u64, tag: u64) {
        let data = content(tag, len as usize);
        let region = self.regions.get_mut(&object).expect("it was made first");
        for number in offset / PAGE..(offset + len).div_ceil(PAGE) {
            let (start, end) = (offset.max(number * PAGE), (offset + len).min((number + 1) * PAGE));
            let versions = &mut region.pages[number as usize];
            let mut bytes = (*versions.last().expect("a page always is something").1).clone();
            bytes[(start - number * PAGE) as usize..(end - number * PAGE) as usize]
                .copy_from_slice(&data[(start - offset) as usize..(end - offset) as usize]);
            versions.push((tag, Rc::new(bytes)));
        }
    }
}

impl Ledger for Stored {
    fn hear(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let n = |at: usize| words[at].parse::<u64>().expect("a number");
        match words[0] {
            "creating" => drop(self.creating.insert(words[1].to_owned(), n(2) as u32)),
            "created" => self.add(n(1), words[2]),
            "key" => drop(self.keys.insert(n(1), hex::decode(words[2]).expect("hex"))),
            "writing" => self.write(n(1), n(2), n(3), n(4)),
            "wrote" => {
                let tag = n(2);
                for versions in &mut self.regions.get_mut(&n(1)).expect("it was made").pages {
                    let at = versions.iter().position(|(of, _)| *of == tag);
                    versions.drain(..at.unwrap_or(0));
                }
            }
            "dropping" => self.regions.get_mut(&n(1)).expect("it was made").dropping = true,
            "dropped" => {
                self.regions.remove(&n(1));
                self.dropped.insert(n(1));
            }
            // A later life finds a region, and shows its pages to whoever reads them.
            "present" => match self.regions.get_mut(&n(1)) {
                Some(region) => region.present = true,
                None => self.add(n(1), words[2]),
            },
            "saw" => {
                let region = self.regions.get_mut(&n(1)).expect("it is present");
                let versions = &mut region.pages[n(2) as usize];
                versions.retain(|(_, bytes)| blake3::hash(bytes).to_string() == words[3]);
                versions.drain(..versions.len().saturating_sub(1));
                if versions.is_empty() {
                    self.wrong = Some(format!("page {} of region {} was never that", n(2), n(1)));
                    versions.push((0, Rc::default()));
                }
            }
            "opened" => {
                // What it has not found was never made or was being dropped: a check of the disk
                // that it found has said so.
                self.regions.retain(|_, region| region.present);
                self.regions.values_mut().for_each(|region| region.present = false);
                self.creating.clear();
            }
            other => panic!("{other}: no workload says that"),
        }
    }

    fn check(&self, dir: &Path) -> Result<(), String> {
        if let Some(wrong) = &self.wrong {
            return Err(wrong.clone());
        }
        self.check_keys(dir)?;
        run(async {
            let store = Store::open_directory(dir, LIMITS);
            let store = store.map_err(|e| format!("the store does not open after a crash: {e}"))?;
            self.check_regions(&store).await?;
            self.go_on(&store, dir).await
        })
    }
}

impl Stored {
    /// A dropped region's key is nowhere, not even before the store has recovered (M1).
    fn check_keys(&self, dir: &Path) -> Result<(), String> {
        let keys = std::fs::read(dir.join("keys.bin")).unwrap_or_default();
        let present: BTreeSet<&[u8]> =
            keys.chunks(512).filter_map(|slot| slot.get(16..48)).collect();
        let gone = self.keys.iter().filter(|(object, _)| self.dropped.contains(object));
        for (object, key) in gone {
            if present.contains(&key[..]) {
                return Err(format!("region {object} was dropped, its key is on the disk (M1)"));
            }
        }
        Ok(())
    }

    async fn check_regions(&self, store: &Rc<Store>) -> Result<(), String> {
        let mut found = BTreeSet::new();
        for summary in store.found() {
            let (object, facts) = (summary.object, summary.facts);
            store.activate(object);
            found.insert(object.0);
            if self.dropped.contains(&object.0) {
                return Err(format!("region {object} was dropped and is back"));
            }
            let Some(region) = self.regions.get(&object.0) else {
                if self.creating.contains_key(&facts.name) {
                    continue;
                }
                return Err(format!("region {object} '{}' was never made", facts.name));
            };
            if region.name != facts.name || region.pages.len() as u64 * PAGE != facts.bytes {
                return Err(format!("region {object} is another one than was made"));
            }
            for (number, versions) in region.pages.iter().enumerate() {
                match store.read(object, page(number as u32)).await {
                    Ok(bytes) if versions.iter().any(|(_, known)| **known == bytes) => {}
                    Ok(_) => {
                        return Err(format!(
                            "page {number} of region {object} is none of the {} that it may be (M3)",
                            versions.len()
                        ));
                    }
                    // Its key goes first.
                    Err(Fault::Corrupt(_)) if region.dropping => {}
                    Err(e) => return Err(format!("page {number} of region {object}: {e}")),
                }
            }
        }
        match self
            .regions
            .iter()
            .find(|(object, region)| !region.dropping && !found.contains(object))
        {
            Some((object, region)) => {
                Err(format!("region {object} '{}' is lost (M3)", region.name))
            }
            None => Ok(()),
        }
    }

    /// What was being dropped can be dropped, and a region can be made and written.
    async fn go_on(&self, store: &Rc<Store>, dir: &Path) -> Result<(), String> {
        let wrong = |what: &str, e: Fault| format!("{what} after the recovery: {e}");
        for summary in store.found() {
            if self.regions.get(&summary.object.0).is_none_or(|region| region.dropping) {
                store.erase(summary.object).await.map_err(|e| wrong("dropping", e))?;
            }
        }
        let (tenant, lineage) = (TenantId(2), vec![]);
        let facts = Facts { name: "more".into(), tenant, bytes: PAGE, durable: true, lineage };
        let object = store.create(facts).await.map_err(|e| wrong("making a region", e))?;
        store.activate(object);
        let data = content(7, PAGE as usize);
        write(store, object.0, 0, data.clone()).await.map_err(|e| wrong("writing", e))?;
        let again = Store::open_directory(dir, LIMITS).map_err(|e| wrong("the next start", e))?;
        again.activate(object);
        let read = again.read(object, page(0)).await.map_err(|e| wrong("reading", e))?;
        if read == data {
            Ok(())
        } else {
            Err("what was written after the recovery is lost".into())
        }
    }
}
