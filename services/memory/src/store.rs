//! Regions on disk and in memory: what is written when, and what a crash leaves.
//!
//! **Writes.** A write seals its pages into fresh slots of the extent file, then publishes them in
//! the index under the caller's commit check (C2), and queues the index record in the same breath;
//! the committer makes pages and record durable, in this order, before the write is acknowledged
//! (M3). A slot that was replaced is free once the record is durable and no reader uses it. So a
//! crash leaves each page old or new.
//!
//! **Erasing.** The key's slot is overwritten with zeros and synced first; then the region's slots
//! are punched out of the extent file; then the record is made durable; then the slots are free
//! (M1). What an SSD keeps of an overwritten sector is out of our sight: encrypt the device below if
//! that matters.
//!
//! **Threads.** The index lives on the RPC thread. Two threads seal and open pages, one commits.
//! At most [`MAX_CALLS`] reads and writes are under way, which bounds memory.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use distos_abi::{ByteRange, Fault, ObjectId, TenantId};
use tokio::sync::{Semaphore, SemaphorePermit};
use zeroize::Zeroizing;

use crate::committer::{Answer, Committer, write_new_log};
use crate::disk::{Directory, Disk, Name};
use crate::error::StoreError;
use crate::jobs::{
    LOST_KEY, Piece, ReadJob, ReadNow, Sealers, Source, WriteJob, WritePart, Written, random,
};
use crate::locks::Locks;
use crate::log::{self, PageRecord, Record};
use crate::recent::Recent;
use crate::sealed::{self, Address, KEY_SLOT, Mask, RegionKey, STRIDE};
use crate::state::{
    self, Facts, Index, Page, Phase, Place, Places, Region, Slot, Span, checked_range,
};

/// Reads and writes under way at one time; others wait.
pub(crate) const MAX_CALLS: usize = 16;
/// So many reads are done on the RPC thread in each [`BRIEF_TIME`], which is a fraction of it: whoever
/// asks for a few bytes of a page has all of it hashed.
const BRIEF_READS: u32 = 4;
const BRIEF_TIME: Duration = Duration::from_micros(250);

const LOST_VOLATILE: &str = "the region was volatile and its content was lost in a restart";

/// Bounds of a store.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of all volatile regions together, which all might come to stand in memory.
    pub volatile_bytes: u64,
    /// The log is compacted when it has this many bytes and twice what the last time left.
    pub compact_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { volatile_bytes: 256 << 20, compact_bytes: 8 << 20 }
    }
}

/// What a caller may know about a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Its number.
    pub object: ObjectId,
    /// What is fixed about it.
    pub facts: Facts,
    /// How many of its pages are not the zeros that they began as.
    pub written_pages: u64,
}

/// All regions of the vat.
pub struct Store {
    disk: Arc<dyn Disk>,
    index: RefCell<Index>,
    keys: RefCell<BTreeMap<ObjectId, Arc<RegionKey>>>,
    mask: Arc<Mask>,
    extents: Rc<RefCell<Places>>,
    key_slots: Rc<RefCell<Places>>,
    sealers: Sealers,
    committer: Committer,
    calls: Semaphore,
    locks: Locks,
    /// What failed batches replaced: the log on disk still names it. By batch.
    unsettled: RefCell<Vec<(u64, Retired)>>,
    degraded: Cell<bool>,
    compacting: Cell<bool>,
    compact_at: Cell<u64>,
    limits: Limits,
    roots: RefCell<BTreeMap<ObjectId, (u64, [u8; 32])>>,
    recent: RefCell<Recent>,
    brief: Cell<Brief>,
}

/// Reads that were done on the RPC thread lately.
#[derive(Clone, Copy, Debug, Default)]
struct Brief {
    since: Option<Instant>,
    reads: u32,
}

impl Brief {
    /// With one more at `now`; `None` if that would be too many.
    fn and_one_more(self, now: Instant) -> Option<Brief> {
        match self.since {
            Some(since) if now.saturating_duration_since(since) < BRIEF_TIME => {
                let reads = self.reads + 1;
                (reads <= BRIEF_READS).then_some(Brief { since: Some(since), reads })
            }
            _ => Some(Brief { since: Some(now), reads: 1 }),
        }
    }
}

/// Pins on slots that readers no longer see and the log may still name.
type Retired = Vec<Rc<Slot>>;

impl Store {
    /// Opens the store in the directory `dir`, which exists, or makes one if it is empty. Cuts a
    /// torn tail of the index.
    ///
    /// # Errors
    /// [`Fault::Corrupt`] names what is not as it was written and no crash explains.
    pub fn open_directory(dir: &std::path::Path, limits: Limits) -> Result<Rc<Store>, Fault> {
        Ok(Store::open(Arc::new(Directory::new(dir)), limits)?)
    }

    /// Opens the store in `disk`'s directory, or makes one in an empty directory. Cuts
    /// a torn tail of the log; any other damage of the index is an error.
    pub(crate) fn open(disk: Arc<dyn Disk>, limits: Limits) -> Result<Rc<Store>, StoreError> {
        let io = |what: &str, error: &std::io::Error| StoreError::io(&disk.name(), what, error);
        let log_bytes = match disk.len(Name::Log).map_err(|e| io("look at the index", &e))? {
            Some(len) => len,
            None => first_log(&*disk)?,
        };
        let read = |offset: u64, into: &mut [u8]| {
            disk.read(Name::Log, offset, into).map_err(|e| io("read the index", &e))
        };
        let mut replayed = Replayed::default();
        let tail = log::replay(&disk.name(), log_bytes, &read, &mut |r| replayed.apply(r))?;
        if tail.offset < log_bytes {
            tracing::info!(bytes = log_bytes - tail.offset, "a torn tail of the index is cut");
            disk.set_len(Name::Log, tail.offset).map_err(|e| io("cut the index", &e))?;
        }
        // What a process that was killed wrote is read here whether it was synced or not. It is
        // shown to readers and written after, so it is durable from here on.
        disk.sync(Name::Log)
            .and_then(|()| disk.sync_names())
            .map_err(|e| io("make the index durable", &e))?;
        let extents = places(replayed.pages().map(|page| page.slot), "slot")?;
        let key_slots = places(replayed.key_slots(), "key slot")?;
        erase_orphan_keys(&*disk, &key_slots.borrow())?;
        // What a crash left there belongs to nobody any more.
        for (from, end) in extents.borrow().free_ranges() {
            punch(&*disk, from, end)?;
        }
        let mask = Arc::new(Mask::new(|mask| random(mask))?);
        let (index, keys) = replayed.restore(&*disk, &mask, &extents, &key_slots)?;
        let thread = |error: std::io::Error| io("start a thread", &error);
        Ok(Rc::new(Store {
            sealers: Sealers::start().map_err(thread)?,
            committer: Committer::start(disk.clone(), tail).map_err(thread)?,
            disk,
            index: RefCell::new(index),
            keys: RefCell::new(keys),
            mask,
            extents,
            key_slots,
            calls: Semaphore::new(MAX_CALLS),
            locks: Locks::default(),
            unsettled: RefCell::default(),
            degraded: Cell::new(false),
            compacting: Cell::new(false),
            compact_at: Cell::new(limits.compact_bytes.max(2 * tail.offset)),
            limits,
            roots: RefCell::default(),
            recent: RefCell::default(),
            brief: Cell::default(),
        }))
    }

    /// Makes a region that nobody can see until it is activated. Durable when it returns.
    ///
    /// # Errors
    /// The fault that its maker is told.
    pub async fn create(self: &Rc<Self>, facts: Facts) -> Result<ObjectId, Fault> {
        let this = self.clone();
        unbroken(async move { this.create_whole(facts).await }).await
    }

    async fn create_whole(self: &Rc<Self>, facts: Facts) -> Result<ObjectId, Fault> {
        self.recover().await?;
        let object = self.prepare(facts)?;
        let recorded = self.record_new(object).await;
        if recorded.is_err() {
            // The caller learns of the first failure. What could not be erased is, at the next
            // start: no capability to it exists.
            let _ = self.erase_whole(object).await;
        }
        recorded.map(|()| object)
    }

    fn prepare(&self, facts: Facts) -> Result<ObjectId, Fault> {
        let mut index = self.index.borrow_mut();
        if !facts.durable
            && index.volatile_bytes().saturating_add(facts.bytes) > self.limits.volatile_bytes
        {
            return Err(Fault::unavailable(
                5_000,
                format!(
                    "volatile regions have at most {} bytes together on this node: drop some, or make it durable",
                    self.limits.volatile_bytes
                ),
            ));
        }
        index.check_new(facts.tenant, &facts.name)?;
        let durable = facts.durable;
        let key_slot = durable.then(|| take(&self.key_slots)).transpose()?;
        let object = index.prepare(facts, key_slot)?;
        if durable {
            let key = RegionKey::new(&self.mask, object.0, |key| random(key))?;
            self.keys.borrow_mut().insert(object, Arc::new(key));
        }
        Ok(object)
    }

    async fn record_new(self: &Rc<Self>, object: ObjectId) -> Result<(), Fault> {
        let key = self.keys.borrow().get(&object).cloned();
        let slot = self.with_any(object, |r| r.key_slot.as_ref().map(|s| s.number()))?;
        if let (Some(key), Some(slot)) = (key, slot) {
            self.write_key(slot, Some(key)).await?;
        }
        let record = self.with_any(object, |region| state::created(object, region))?;
        let answer = self.committer.append(vec![record]);
        self.settle(answer, Vec::new()).await
    }

    /// Writes a key to its slot, or zeros over the one that stands there.
    async fn write_key(&self, slot: u32, key: Option<Arc<RegionKey>>) -> Result<(), Fault> {
        let disk = self.disk.clone();
        self.sealers
            .run(move || {
                let zeros = || Zeroizing::new(vec![0; KEY_SLOT]);
                let write = |bytes: Zeroizing<Vec<u8>>| {
                    disk.write(Name::Keys, u64::from(slot) * KEY_SLOT as u64, &bytes)
                };
                // The bytes are erased before the wait for the disk.
                write(key.as_deref().map_or_else(zeros, sealed::key_slot))
                    .and_then(|()| disk.sync(Name::Keys))
                    .map_err(|error| StoreError::io(&disk.name(), "write a region's key", &error))
            })
            .await?
            .map_err(Fault::from)
    }

    /// Lets a created region be seen.
    pub fn activate(&self, object: ObjectId) {
        self.index.borrow_mut().activate(object);
    }

    /// Erases a region: key, content, record. The caller has ended every capability to it.
    /// Returns what was fixed about it, so that its bytes can be given back.
    ///
    /// # Errors
    /// The fault that its holder is told; what was not erased is, at the next start.
    pub async fn erase(self: &Rc<Self>, object: ObjectId) -> Result<Facts, Fault> {
        let this = self.clone();
        unbroken(async move { this.erase_whole(object).await }).await
    }

    async fn erase_whole(self: &Rc<Self>, object: ObjectId) -> Result<Facts, Fault> {
        let (key_slot, slots) = {
            let mut index = self.index.borrow_mut();
            let region =
                index.begin_drop(object).ok_or_else(|| Fault::not_found("no such region"))?;
            (region.key_slot.as_ref().map(|s| s.number()), disk_slots(region))
        };
        self.keys.borrow_mut().remove(&object);
        self.roots.borrow_mut().remove(&object);
        self.recent.borrow_mut().forget(object);
        if let Some(slot) = key_slot {
            self.write_key(slot, None).await?;
        }
        self.punch_all(slots).await?;
        let (region, answer) = {
            let mut index = self.index.borrow_mut();
            let region = index.remove(object).ok_or_else(|| Fault::internal("dropped twice"))?;
            (region, self.committer.append(vec![Record::RegionDropped { object }]))
        };
        let pins = region.pages.into_values().filter_map(|page| slot_of(page.place));
        let pins = pins.chain(region.key_slot).collect();
        self.settle(answer, pins).await?;
        Ok(region.facts)
    }

    async fn punch_all(&self, mut slots: Vec<u32>) -> Result<(), Fault> {
        slots.sort_unstable();
        let disk = self.disk.clone();
        let punched = self.sealers.run(move || {
            state::ranges(slots.into_iter()).into_iter().try_for_each(|(a, b)| punch(&*disk, a, b))
        });
        Ok(punched.await??)
    }

    /// The bytes of a range of a region. Every page is checked against its hash (M2).
    ///
    /// # Errors
    /// The fault that the reader is told.
    pub async fn read(&self, object: ObjectId, range: ByteRange) -> Result<Vec<u8>, Fault> {
        let _call = self.call().await?;
        let (job, _pins) = self.read_job(object, range)?;
        let read = self.sealers.run(move || job.execute()).await??;
        let is_active = self.index.borrow().active(object).is_ok();
        for (page, version, plain) in read.opened.into_iter().filter(|_| is_active) {
            self.recent.borrow_mut().keep(object, page, version, plain);
        }
        Ok(read.data)
    }

    /// The same page by page, each with its hash.
    ///
    /// # Errors
    /// The fault that the reader is told.
    pub(crate) async fn pieces(
        &self,
        object: ObjectId,
        range: ByteRange,
    ) -> Result<Vec<Piece>, Fault> {
        let _call = self.call().await?;
        let (job, _pins) = self.read_job(object, range)?;
        if job.is_at_hand() {
            return job.pieces();
        }
        self.sealers.run(move || job.pieces()).await?
    }

    /// The same for a read that is done sooner than another thread is woken for it, and that waits
    /// for no disk; `None` for any other, and for more of them than leave everybody else a turn.
    /// `now` is the time.
    ///
    /// # Errors
    /// The fault that the reader is told.
    pub fn read_now(
        &self,
        object: ObjectId,
        range: ByteRange,
        now: Instant,
    ) -> Result<Option<ReadNow>, Fault> {
        let (job, _) = self.read_job(object, range)?;
        let brief = self.brief.get().and_one_more(now).filter(|_| job.is_brief());
        Ok(brief.map(|brief| {
            self.brief.set(brief);
            ReadNow(job)
        }))
    }

    /// One moment's pages of a range, pinned, so that what is read is what was published then.
    fn read_job(&self, object: ObjectId, range: ByteRange) -> Result<(ReadJob, Vec<Page>), Fault> {
        let index = self.index.borrow();
        let region = index.active(object)?;
        checked_range(region.facts.bytes, range.start, range.len())?;
        region.check_present()?;
        let spans = state::spans(range);
        let pins = spans.iter().filter_map(|s| region.pages.get(&s.page).cloned()).collect();
        let parts = spans
            .iter()
            .map(|span| {
                let page = region.pages.get(&span.page);
                (*span, Source::of(object, span.page, page, &mut self.recent.borrow_mut()))
            })
            .collect();
        let key = self.keys.borrow().get(&object).cloned();
        let len = range.len() as usize;
        Ok((ReadJob { disk: self.disk.clone(), key, parts, len }, pins))
    }

    /// Writes `data` at `offset`. Once the pages stand in fresh slots, `gate` is called with the
    /// act of publishing them, and calls it if the caller is still allowed to (C2); if it does not,
    /// nothing has happened. Returns when the write is durable, unless the region is volatile (M3).
    /// Goes on to its end even if the caller stops waiting.
    ///
    /// # Errors
    /// The fault that the writer is told.
    pub async fn write(
        self: &Rc<Self>,
        object: ObjectId,
        offset: u64,
        data: Vec<u8>,
        gate: impl FnOnce(&mut dyn FnMut()) -> Result<(), Fault> + 'static,
    ) -> Result<(), Fault> {
        let this = self.clone();
        unbroken(async move { this.write_whole(object, offset, data, gate).await }).await
    }

    async fn write_whole(
        self: &Rc<Self>,
        object: ObjectId,
        offset: u64,
        data: Vec<u8>,
        gate: impl FnOnce(&mut dyn FnMut()) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let _call = self.call().await?;
        self.recover().await?;
        let bytes = self.index.borrow().active(object)?.facts.bytes;
        let range = checked_range(bytes, offset, data.len() as u64)?;
        let spans = state::spans(range);
        let pages = spans.iter().map(|span| (object, span.page)).collect();
        let locked = self.locks.lock(pages).await;
        let (job, fresh, pins) = self.write_job(object, &spans, data)?;
        let written = self.sealers.run(move || job.execute()).await??;
        drop(pins);
        let (mut fresh, mut published) = (Some(fresh), None);
        gate(&mut || published = fresh.take().map(|fresh| self.publish(object, fresh, &written)))?;
        drop(locked);
        let published =
            published.ok_or_else(|| Fault::internal("a write was allowed and not published"))?;
        match published? {
            (Some(answer), retired) => self.settle(answer, retired).await,
            (None, _) => Ok(()),
        }
    }

    /// A call's share of memory.
    async fn call(&self) -> Result<SemaphorePermit<'_>, Fault> {
        self.calls.acquire().await.map_err(|_| Fault::unavailable(1_000, "the store is closed"))
    }

    /// What a sealer needs to write the pages; the fresh slots; and pins on what it reads.
    fn write_job(
        &self,
        object: ObjectId,
        spans: &[Span],
        data: Vec<u8>,
    ) -> Result<(WriteJob, Fresh, Vec<Page>), Fault> {
        let mut index = self.index.borrow_mut();
        let first = index.next_versions(spans.len() as u64);
        let region = index.active(object)?;
        region.check_present()?;
        let key = self.keys.borrow().get(&object).cloned();
        let mut fresh = Vec::with_capacity(spans.len());
        let mut parts = Vec::with_capacity(spans.len());
        let mut pins = Vec::new();
        for (span, version) in spans.iter().zip(first..) {
            let slot = region.facts.durable.then(|| take(&self.extents)).transpose()?;
            let old = region.pages.get(&span.page);
            parts.push(WritePart {
                span: *span,
                old: Source::of(
                    object,
                    span.page,
                    old.filter(|_| !span.is_whole()),
                    &mut self.recent.borrow_mut(),
                ),
                address: Address { region: object.0, page: span.page, version },
                slot: slot.as_ref().map(|s| s.number()),
            });
            pins.extend(old.cloned());
            fresh.push((span.page, version, slot));
        }
        Ok((WriteJob { disk: self.disk.clone(), key, parts, data }, fresh, pins))
    }

    /// Makes written pages what readers see, and queues their record: one synchronous step, so that
    /// the log has publications in the order in which readers saw them.
    fn publish(&self, object: ObjectId, fresh: Fresh, written: &[Written]) -> Published {
        let pages = fresh.into_iter().zip(written).map(|((page, version, slot), written)| {
            let place = match (slot, &written.plain) {
                (Some(slot), _) => Place::Disk(slot),
                (None, Some(plain)) => Place::Ram(plain.clone()),
                (None, None) => unreachable!("a page was written to a slot or kept in memory"),
            };
            (page, Page { place, version, hash: written.hash })
        });
        let pages: Vec<(u32, Page)> = pages.collect();
        let records = state::page_records(pages.iter().map(|(number, page)| (number, page)));
        let replaced = self
            .index
            .borrow_mut()
            .publish(object, pages.into_iter())
            .ok_or_else(|| Fault::not_found("no such region"))?;
        let retired = replaced.into_iter().filter_map(|page| slot_of(page.place)).collect();
        let answer = (!records.is_empty())
            .then(|| self.committer.append(vec![Record::PagesWritten { object, pages: records }]));
        Ok((answer, retired))
    }

    /// Waits until records are durable; only then lets go of what they retired.
    async fn settle(self: &Rc<Self>, answer: Answer, retired: Retired) -> Result<(), Fault> {
        let Ok(outcome) = answer.await else {
            self.unsettled.borrow_mut().push((u64::MAX, retired));
            return Err(Fault::internal("the committing thread is gone"));
        };
        match outcome.result {
            Ok(log_bytes) => {
                self.degraded.set(false);
                self.unsettled.borrow_mut().retain(|(batch, _)| *batch > outcome.batch);
                self.compact_if_long(log_bytes);
                Ok(())
            }
            Err(error) => {
                self.degraded.set(true);
                self.unsettled.borrow_mut().push((outcome.batch, retired));
                Err(error.into())
            }
        }
    }

    /// After a failed commit: tries again what is queued before anything new is taken on.
    async fn recover(self: &Rc<Self>) -> Result<(), Fault> {
        if !self.degraded.get() {
            return Ok(());
        }
        self.settle(self.committer.append(Vec::new()), Vec::new()).await
    }

    fn compact_if_long(self: &Rc<Self>, log_bytes: u64) {
        if log_bytes < self.compact_at.get() || self.compacting.replace(true) {
            return;
        }
        // All that was published has been queued before this snapshot: it misses nothing.
        let answer = self.committer.compact(self.index.borrow().snapshot());
        let this = self.clone();
        tokio::task::spawn_local(async move {
            let left = match answer.await.map(|outcome| outcome.result) {
                Ok(Ok(bytes)) => bytes,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the index could not be compacted");
                    log_bytes
                }
                Err(_) => log_bytes,
            };
            this.compact_at.set(this.limits.compact_bytes.max(2 * left));
            this.compacting.set(false);
        });
    }

    /// What is fixed about a region and how many of its pages were written.
    pub(crate) fn summary(&self, object: ObjectId) -> Result<Summary, Fault> {
        self.index.borrow().active(object).map(|region| summary(object, region))
    }

    /// The regions of a tenant, by name.
    pub(crate) fn list(&self, tenant: TenantId) -> Vec<Summary> {
        self.index.borrow().of_tenant(tenant).map(|(object, r)| summary(object, r)).collect()
    }

    /// A region of a tenant by its name.
    pub(crate) fn by_name(&self, tenant: TenantId, name: &str) -> Result<ObjectId, Fault> {
        self.index.borrow().by_name(tenant, name)
    }

    /// Whether a tenant could make a region of this name.
    pub(crate) fn check_new(&self, tenant: TenantId, name: &str) -> Result<(), Fault> {
        self.index.borrow().check_new(tenant, name)
    }

    /// Every region that was found at start.
    pub fn found(&self) -> Vec<Summary> {
        self.index.borrow().all().map(|(object, region)| summary(object, region)).collect()
    }

    /// BLAKE3 over the hashes of all pages in order, as one moment had them.
    /// [`Fault::Unavailable`] if the region is written all the time.
    pub(crate) async fn root(&self, object: ObjectId) -> Result<[u8; 32], Fault> {
        for _ in 0..ROOT_TRIES {
            if let Some(root) = self.try_root(object).await? {
                return Ok(root);
            }
        }
        Err(Fault::unavailable(100, "the region is being written: ask again when that is done"))
    }

    async fn try_root(&self, object: ObjectId) -> Result<Option<[u8; 32]>, Fault> {
        let (changes, pages) = {
            let index = self.index.borrow();
            let region = index.active(object)?;
            region.check_present()?;
            (region.changes, state::page_count(region.facts.bytes) as u32)
        };
        if let Some((at, root)) = self.roots.borrow().get(&object)
            && *at == changes
        {
            return Ok(Some(*root));
        }
        let mut hasher = blake3::Hasher::new();
        let mut next = 0;
        while next < pages {
            let end = pages.min(next + ROOT_STEP);
            {
                let index = self.index.borrow();
                let region = index.active(object)?;
                if region.changes != changes {
                    return Ok(None);
                }
                (next..end).for_each(|page| {
                    hasher.update(&region.page_hash(page));
                });
            }
            next = end;
            tokio::task::yield_now().await;
        }
        let root = *hasher.finalize().as_bytes();
        self.roots.borrow_mut().insert(object, (changes, root));
        Ok(Some(root))
    }

    /// Resolves when what runs has ended and everything acknowledged is durable.
    pub(crate) async fn quiet(self: &Rc<Self>) {
        let _all = self.calls.acquire_many(MAX_CALLS as u32).await;
        if let Err(fault) = self.settle(self.committer.append(Vec::new()), Vec::new()).await {
            tracing::warn!(%fault, "what was not acknowledged could not be made durable");
        }
    }

    fn with_any<T>(&self, object: ObjectId, f: impl FnOnce(&Region) -> T) -> Result<T, Fault> {
        let index = self.index.borrow();
        index
            .any(object)
            .map(f)
            .ok_or_else(|| Fault::internal("a region is gone before it was made"))
    }
}

/// Pages hashed into a root before others get a turn.
const ROOT_STEP: u32 = 16_384;
const ROOT_TRIES: usize = 4;

/// Page, version, and slot if the region is durable.
type Fresh = Vec<(u32, u64, Option<Rc<Slot>>)>;
/// The committer's answer if there is something to commit, and what readers no longer see.
type Published = Result<(Option<Answer>, Retired), Fault>;

/// Runs a change to its end even if its caller is gone: a slot must not be freed while a thread
/// still writes to it, nor a region be left half made.
async fn unbroken<T: 'static>(
    change: impl Future<Output = Result<T, Fault>> + 'static,
) -> Result<T, Fault> {
    tokio::task::spawn_local(change).await.map_err(Fault::internal)?
}

fn summary(object: ObjectId, region: &Region) -> Summary {
    Summary { object, facts: region.facts.clone(), written_pages: region.pages.len() as u64 }
}

fn slot_of(place: Place) -> Option<Rc<Slot>> {
    match place {
        Place::Disk(slot) => Some(slot),
        Place::Ram(_) => None,
    }
}

fn disk_slots(region: &Region) -> Vec<u32> {
    let slot = |page: &Page| slot_of(page.place.clone()).map(|slot| slot.number());
    region.pages.values().filter_map(slot).collect()
}

fn take(places: &Rc<RefCell<Places>>) -> Result<Rc<Slot>, Fault> {
    Slot::take(places).ok_or_else(|| Fault::unavailable(5_000, "every slot is taken: drop regions"))
}

fn punch(disk: &dyn Disk, from: u32, end: u32) -> Result<(), StoreError> {
    disk.punch(Name::Extents, u64::from(from) * STRIDE, u64::from(end - from) * STRIDE)
        .map_err(|error| StoreError::io(&disk.name(), "erase freed pages", &error))
}

/// Makes the log of a new store, and refuses a directory that lost the log of an old one.
fn first_log(disk: &dyn Disk) -> Result<u64, StoreError> {
    for file in [Name::Extents, Name::Keys] {
        let len = disk.len(file).map_err(|e| StoreError::io(&disk.name(), "look at files", &e))?;
        if len.unwrap_or(0) > 0 {
            return Err(StoreError::Corrupt(format!(
                "index.log is missing from {}, but there are pages: restore it from a backup",
                disk.name()
            )));
        }
    }
    let tail = write_new_log(disk, &[])?;
    disk.replace_log().map_err(|e| StoreError::io(&disk.name(), "make the index", &e))?;
    Ok(tail.offset)
}

fn places(used: impl Iterator<Item = u32>, what: &str) -> Result<Rc<RefCell<Places>>, StoreError> {
    let twice = |n| StoreError::Corrupt(format!("index.log is damaged: {what} {n} is used twice"));
    Ok(Rc::new(RefCell::new(Places::with_used(used).map_err(twice)?)))
}

/// A key that no region of the log owns belongs to a region that was dropped, or never recorded.
fn erase_orphan_keys(disk: &dyn Disk, used: &Places) -> Result<(), StoreError> {
    let io = |error: std::io::Error| StoreError::io(&disk.name(), "erase unused keys", &error);
    let slots = disk.len(Name::Keys).map_err(io)?.unwrap_or(0).div_ceil(KEY_SLOT as u64);
    let mut erased = false;
    for slot in (0..slots).filter(|slot| !u32::try_from(*slot).is_ok_and(|s| used.is_used(s))) {
        disk.write(Name::Keys, slot * KEY_SLOT as u64, &[0; KEY_SLOT]).map_err(io)?;
        erased = true;
    }
    if erased { disk.sync(Name::Keys).map_err(io) } else { Ok(()) }
}

/// A region of a log: what is fixed about it, the place of its key, its pages.
type Recorded = (Facts, Option<u32>, BTreeMap<u32, PageRecord>);

/// What a log says, while it is being read.
#[derive(Default)]
struct Replayed {
    regions: BTreeMap<ObjectId, Recorded>,
    last_object: u64,
    last_version: u64,
}

impl Replayed {
    fn apply(&mut self, record: Record) -> Result<(), String> {
        match record {
            Record::Counters { object, version } => {
                self.last_object = self.last_object.max(object);
                self.last_version = self.last_version.max(version);
            }
            Record::RegionCreated { object, facts, key_slot } => {
                self.last_object = self.last_object.max(object.0);
                let known = self.regions.entry(object);
                let known = known.or_insert_with(|| (facts.clone(), key_slot, BTreeMap::new()));
                // A snapshot may know a region before its own record is queued.
                if (&known.0, known.1) != (&facts, key_slot) {
                    return Err(format!("region {object} is made twice"));
                }
            }
            Record::PagesWritten { object, pages } => {
                let known = self.regions.get_mut(&object);
                let known = known.ok_or_else(|| format!("pages of no region, {object}"))?;
                for page in pages {
                    self.last_version = self.last_version.max(page.version);
                    known.2.insert(page.page, page);
                }
            }
            // A compacted log may have forgotten the region before its drop was recorded.
            Record::RegionDropped { object } => drop(self.regions.remove(&object)),
        }
        Ok(())
    }

    fn pages(&self) -> impl Iterator<Item = &PageRecord> {
        self.regions.values().flat_map(|(_, _, pages)| pages.values())
    }

    fn key_slots(&self) -> impl Iterator<Item = u32> {
        self.regions.values().filter_map(|(_, key_slot, _)| *key_slot)
    }

    fn restore(
        self,
        disk: &dyn Disk,
        mask: &Arc<Mask>,
        extents: &Rc<RefCell<Places>>,
        key_slots: &Rc<RefCell<Places>>,
    ) -> Result<(Index, BTreeMap<ObjectId, Arc<RegionKey>>), StoreError> {
        let mut index = Index::continuing(self.last_object, self.last_version);
        let mut keys = BTreeMap::new();
        for (object, (facts, key_slot, pages)) in self.regions {
            let key = key_slot.and_then(|slot| stored_key(disk, mask, object, slot));
            let lost = match (facts.durable, &key) {
                (false, _) => Some(LOST_VOLATILE),
                (true, None) => Some(LOST_KEY),
                (true, Some(_)) => None,
            };
            keys.extend(key.map(|key| (object, Arc::new(key))));
            let pages = pages.into_iter().map(|(number, page)| {
                let place = Place::Disk(Slot::used(page.slot, extents));
                (number, Page { place, version: page.version, hash: page.hash })
            });
            let region = Region {
                facts,
                key_slot: key_slot.map(|slot| Slot::used(slot, key_slots)),
                pages: pages.collect(),
                phase: Phase::Prepared,
                lost,
                changes: 0,
            };
            index.restore(object, region).map_err(|()| {
                StoreError::Corrupt(format!(
                    "index.log is damaged: region {object}'s name is taken"
                ))
            })?;
        }
        Ok((index, keys))
    }
}

fn stored_key(disk: &dyn Disk, mask: &Arc<Mask>, object: ObjectId, slot: u32) -> Option<RegionKey> {
    let mut bytes = Zeroizing::new(vec![0; KEY_SLOT]);
    disk.read(Name::Keys, u64::from(slot) * KEY_SLOT as u64, &mut bytes).ok()?;
    sealed::key_of(mask, object.0, &bytes)
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
