//! Which regions there are, whose they are, and where their pages are: decisions only, no I/O.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use distos_abi::{ByteRange, CapId, Fault, ObjectId, TenantId};
use zeroize::Zeroizing;

use crate::log::{PageRecord, Record};
use crate::sealed::{PageHash, ZERO_PAGE};

/// Bytes of a page.
pub(crate) const PAGE_BYTES: u64 = 65_536;
/// The most that one read or write moves, in bytes.
pub(crate) const MAX_CALL_BYTES: u64 = 1_048_576;
/// The longest region, in bytes.
pub(crate) const MAX_REGION_BYTES: u64 = 1 << 40;
/// The longest name of a region, in bytes.
pub(crate) const MAX_NAME_BYTES: usize = 64;
/// How many regions one tenant may have.
pub(crate) const MAX_REGIONS_PER_TENANT: usize = 4_096;

/// Checks a region's name: 1 to 64 of `a-z A-Z 0-9 . _ -`.
pub(crate) fn checked_name(name: &str) -> Result<&str, Fault> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(fits) {
        Ok(name)
    } else {
        Err(Fault::malformed("a region's name is 1 to 64 of a-z, A-Z, 0-9, '.', '_' and '-'"))
    }
}

/// Checks a region's length: 1 to 2^40 bytes.
pub(crate) fn checked_bytes(bytes: u64) -> Result<u64, Fault> {
    if (1..=MAX_REGION_BYTES).contains(&bytes) {
        Ok(bytes)
    } else {
        Err(Fault::malformed(format!("a region has 1 to {MAX_REGION_BYTES} bytes, not {bytes}")))
    }
}

/// The range that a call of `len` bytes from `offset` touches in a region of `bytes` bytes.
pub(crate) fn checked_range(bytes: u64, offset: u64, len: u64) -> Result<ByteRange, Fault> {
    if len > MAX_CALL_BYTES {
        return Err(Fault::malformed(format!(
            "a call moves at most {MAX_CALL_BYTES} bytes, not {len}"
        )));
    }
    ByteRange::at(offset, len).filter(|range| range.end <= bytes).ok_or_else(|| {
        Fault::malformed(format!("{len} bytes from {offset} pass the region's end at {bytes}"))
    })
}

/// How many pages a region of `bytes` bytes has.
pub(crate) fn page_count(bytes: u64) -> u64 {
    bytes.div_ceil(PAGE_BYTES)
}

/// The part of a call that falls into one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// The page.
    pub(crate) page: u32,
    /// First byte within the page.
    pub(crate) start: usize,
    /// Bytes.
    pub(crate) len: usize,
    /// Where these bytes stand in the call's data.
    pub(crate) at: usize,
}

impl Span {
    /// Whether it covers the whole page.
    pub(crate) fn is_whole(self) -> bool {
        self.len as u64 == PAGE_BYTES
    }
}

/// Cuts a range, already checked, into its pages.
pub(crate) fn spans(range: ByteRange) -> Vec<Span> {
    let mut spans = Vec::new();
    let mut next = range.start;
    while next < range.end {
        let page = next / PAGE_BYTES;
        let end = range.end.min((page + 1) * PAGE_BYTES);
        spans.push(Span {
            page: u32::try_from(page).expect("2^40 bytes have 2^24 pages"),
            start: (next % PAGE_BYTES) as usize,
            len: (end - next) as usize,
            at: (next - range.start) as usize,
        });
        next = end;
    }
    spans
}

/// Numbered places in a file: which are free, and where the file ends.
#[derive(Debug, Default)]
pub(crate) struct Places {
    free: BTreeSet<u32>,
    end: u32,
}

impl Places {
    /// The places of a file in which exactly `used` are taken; the first that is named twice is
    /// the error.
    pub(crate) fn with_used(used: impl Iterator<Item = u32>) -> Result<Places, u32> {
        let mut taken = BTreeSet::new();
        for place in used {
            if !taken.insert(place) {
                return Err(place);
            }
        }
        let end = taken.last().map_or(0, |last| last + 1);
        let free = (0..end).filter(|place| !taken.contains(place)).collect();
        Ok(Places { free, end })
    }

    /// Takes the first free place; `None` if every number is taken.
    pub(crate) fn take(&mut self) -> Option<u32> {
        if let Some(place) = self.free.pop_first() {
            return Some(place);
        }
        let place = self.end;
        self.end = place.checked_add(1)?;
        Some(place)
    }

    fn release(&mut self, place: u32) {
        let fresh = self.free.insert(place);
        debug_assert!(fresh && place < self.end, "a place is released once");
    }

    /// Whether a place is in use.
    pub(crate) fn is_used(&self, place: u32) -> bool {
        place < self.end && !self.free.contains(&place)
    }

    /// The free places, as ranges from first to one past the last.
    pub(crate) fn free_ranges(&self) -> Vec<(u32, u32)> {
        let mut free = ranges(self.free.iter().copied());
        free.push((self.end, u32::MAX));
        free
    }
}

/// Ascending numbers as half-open ranges.
pub(crate) fn ranges(numbers: impl Iterator<Item = u32>) -> Vec<(u32, u32)> {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, end)) if *end == number => *end += 1,
            _ => ranges.push((number, number + 1)),
        }
    }
    ranges
}

/// A place that is in use. Whoever holds a clone pins it; the last one to let go frees it, so that
/// a place is never reused under a reader or before the index record that replaced it is durable.
#[derive(Debug)]
pub(crate) struct Slot {
    number: u32,
    places: Rc<RefCell<Places>>,
}

impl Slot {
    /// Takes a free place.
    pub(crate) fn take(places: &Rc<RefCell<Places>>) -> Option<Rc<Slot>> {
        let number = places.borrow_mut().take()?;
        Some(Slot::used(number, places))
    }

    /// A place that [`Places::with_used`] counted as taken.
    pub(crate) fn used(number: u32, places: &Rc<RefCell<Places>>) -> Rc<Slot> {
        Rc::new(Slot { number, places: places.clone() })
    }

    /// Its number.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.places.borrow_mut().release(self.number);
    }
}

/// The plain text of a page of a volatile region; erased when it is freed (M1).
pub(crate) type Plain = Arc<Zeroizing<Vec<u8>>>;

/// Where a page's content is.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// Sealed, in the extent file.
    Disk(Rc<Slot>),
    /// In memory: the region is volatile.
    Ram(Plain),
}

/// A published page.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    /// Where it is.
    pub(crate) place: Place,
    /// Its version, unique among all pages ever published.
    pub(crate) version: u64,
    /// BLAKE3 of its plain text.
    pub(crate) hash: PageHash,
}

/// What is fixed about a region when it is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Unique among its tenant's.
    pub name: String,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its length.
    pub bytes: u64,
    /// Whether it survives a restart.
    pub durable: bool,
    /// The capabilities whose meters its bytes were charged to, root first.
    pub lineage: Vec<CapId>,
}

/// Where a region is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Recorded, but no capability to it exists yet; nobody can see it.
    Prepared,
    /// In use.
    Active,
    /// Being erased; nobody can see it, its name is still taken.
    Dropping,
}

/// A region.
#[derive(Debug)]
pub(crate) struct Region {
    /// What is fixed about it.
    pub(crate) facts: Facts,
    /// Place of its key; `None` if it is volatile.
    pub(crate) key_slot: Option<Rc<Slot>>,
    /// Pages that were written. All others are zeros.
    pub(crate) pages: BTreeMap<u32, Page>,
    /// Where it is in its life.
    pub(crate) phase: Phase,
    /// Why its content can't be served, if so.
    pub(crate) lost: Option<&'static str>,
    /// Rises with every publication.
    pub(crate) changes: u64,
}

impl Region {
    /// The hash of a page, written or not.
    pub(crate) fn page_hash(&self, page: u32) -> PageHash {
        self.pages.get(&page).map_or(*ZERO_PAGE, |p| p.hash)
    }

    /// [`Fault::Corrupt`] if its content was lost: never served as zeros.
    pub(crate) fn check_present(&self) -> Result<(), Fault> {
        self.lost.map_or(Ok(()), |why| Err(Fault::Corrupt(why.to_owned())))
    }
}

/// All regions of the vat.
#[derive(Debug, Default)]
pub(crate) struct Index {
    regions: BTreeMap<ObjectId, Region>,
    names: BTreeMap<(TenantId, String), ObjectId>,
    last_object: u64,
    last_version: u64,
}

impl Index {
    /// An index that continues the numbers of an earlier run, which are never used again.
    pub(crate) fn continuing(last_object: u64, last_version: u64) -> Index {
        Index { last_object, last_version, ..Index::default() }
    }

    /// Whether `tenant` may have one more region, called `name`.
    pub(crate) fn check_new(&self, tenant: TenantId, name: &str) -> Result<(), Fault> {
        if self.names.contains_key(&(tenant, name.to_owned())) {
            return Err(Fault::Exists(format!("a region is called '{name}'")));
        }
        if self.names_of(tenant).count() >= MAX_REGIONS_PER_TENANT {
            return Err(Fault::LimitExceeded(format!(
                "a tenant has at most {MAX_REGIONS_PER_TENANT} regions: drop some"
            )));
        }
        Ok(())
    }

    /// Adds a region that nobody can see yet, under the next object number.
    pub(crate) fn prepare(
        &mut self,
        facts: Facts,
        key_slot: Option<Rc<Slot>>,
    ) -> Result<ObjectId, Fault> {
        self.check_new(facts.tenant, &facts.name)?;
        let object = ObjectId(self.last_object + 1);
        let region = Region {
            facts,
            key_slot,
            pages: BTreeMap::new(),
            phase: Phase::Prepared,
            lost: None,
            changes: 0,
        };
        self.restore(object, region)
            .map_err(|()| Fault::internal("a fresh region's name or number is taken"))?;
        Ok(object)
    }

    /// Adds a region as a log recorded it; an error if its number or name is taken.
    pub(crate) fn restore(&mut self, object: ObjectId, region: Region) -> Result<(), ()> {
        let name = (region.facts.tenant, region.facts.name.clone());
        if self.regions.contains_key(&object) || self.names.contains_key(&name) {
            return Err(());
        }
        self.last_object = self.last_object.max(object.0);
        self.names.insert(name, object);
        self.regions.insert(object, region);
        Ok(())
    }

    /// Lets the region be seen.
    pub(crate) fn activate(&mut self, object: ObjectId) {
        if let Some(region) = self.regions.get_mut(&object).filter(|r| r.phase == Phase::Prepared) {
            region.phase = Phase::Active;
        }
    }

    /// Hides the region from everybody, for erasing; `None` if there is none or that has begun.
    pub(crate) fn begin_drop(&mut self, object: ObjectId) -> Option<&Region> {
        let region = self.regions.get_mut(&object).filter(|r| r.phase != Phase::Dropping)?;
        region.phase = Phase::Dropping;
        Some(region)
    }

    /// Forgets the region. Its content goes to the caller, who decides when its places are free.
    pub(crate) fn remove(&mut self, object: ObjectId) -> Option<Region> {
        let region = self.regions.remove(&object)?;
        self.names.remove(&(region.facts.tenant, region.facts.name.clone()));
        Some(region)
    }

    /// A region that can be seen.
    pub(crate) fn active(&self, object: ObjectId) -> Result<&Region, Fault> {
        self.regions
            .get(&object)
            .filter(|region| region.phase == Phase::Active)
            .ok_or_else(|| Fault::not_found("no such region"))
    }

    /// A region of `tenant` by its name. Somebody else's is *not found*, like one that never was.
    pub(crate) fn by_name(&self, tenant: TenantId, name: &str) -> Result<ObjectId, Fault> {
        let missing = || Fault::not_found(format!("no region is called '{name}'"));
        let object = self.names.get(&(tenant, name.to_owned())).ok_or_else(missing)?;
        self.active(*object).map(|_| *object).map_err(|_| missing())
    }

    /// The regions of `tenant` that can be seen, by name.
    pub(crate) fn of_tenant(&self, tenant: TenantId) -> impl Iterator<Item = (ObjectId, &Region)> {
        self.names_of(tenant).filter_map(|(_, object)| Some((*object, self.active(*object).ok()?)))
    }

    fn names_of(&self, tenant: TenantId) -> impl Iterator<Item = (&(TenantId, String), &ObjectId)> {
        self.names.range((tenant, String::new())..).take_while(move |((t, _), _)| *t == tenant)
    }

    /// A region in whatever phase.
    pub(crate) fn any(&self, object: ObjectId) -> Option<&Region> {
        self.regions.get(&object)
    }

    /// Every region, in whatever phase.
    pub(crate) fn all(&self) -> impl Iterator<Item = (ObjectId, &Region)> {
        self.regions.iter().map(|(object, region)| (*object, region))
    }

    /// Bytes of all volatile regions together, which all might come to stand in memory.
    pub(crate) fn volatile_bytes(&self) -> u64 {
        self.regions.values().filter(|r| !r.facts.durable).map(|r| r.facts.bytes).sum()
    }

    /// Numbers for `count` page versions; the first is returned.
    pub(crate) fn next_versions(&mut self, count: u64) -> u64 {
        let first = self.last_version + 1;
        self.last_version += count;
        first
    }

    /// Makes pages what readers see. Returns what they replace; `None` if the region is gone.
    pub(crate) fn publish(
        &mut self,
        object: ObjectId,
        pages: impl Iterator<Item = (u32, Page)>,
    ) -> Option<Vec<Page>> {
        let region = self.regions.get_mut(&object).filter(|r| r.phase == Phase::Active)?;
        region.changes += 1;
        Some(pages.filter_map(|(number, page)| region.pages.insert(number, page)).collect())
    }

    /// The records from which an index like this one can be restored.
    pub(crate) fn snapshot(&self) -> Vec<Record> {
        let mut records =
            vec![Record::Counters { object: self.last_object, version: self.last_version }];
        for (object, region) in &self.regions {
            records.push(created(*object, region));
            let pages: Vec<PageRecord> = page_records(&region.pages);
            records.extend(
                pages
                    .chunks(PAGES_PER_RECORD)
                    .map(|pages| Record::PagesWritten { object: *object, pages: pages.to_vec() }),
            );
        }
        records
    }
}

const PAGES_PER_RECORD: usize = 1_024;

/// The record of a region's making.
pub(crate) fn created(object: ObjectId, region: &Region) -> Record {
    Record::RegionCreated {
        object,
        facts: region.facts.clone(),
        key_slot: region.key_slot.as_ref().map(|slot| slot.number()),
    }
}

/// The records of those pages that are on disk.
pub(crate) fn page_records<'a>(
    pages: impl IntoIterator<Item = (&'a u32, &'a Page)>,
) -> Vec<PageRecord> {
    pages
        .into_iter()
        .filter_map(|(number, page)| match &page.place {
            Place::Disk(slot) => Some(PageRecord {
                page: *number,
                slot: slot.number(),
                version: page.version,
                hash: page.hash,
            }),
            Place::Ram(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RED: TenantId = TenantId(1);
    const BLUE: TenantId = TenantId(2);

    fn facts(tenant: TenantId, name: &str) -> Facts {
        Facts { name: name.to_owned(), tenant, bytes: 10, durable: true, lineage: vec![CapId(3)] }
    }

    fn active(index: &mut Index, tenant: TenantId, name: &str) -> ObjectId {
        let object = index.prepare(facts(tenant, name), None).unwrap();
        index.activate(object);
        object
    }

    #[test]
    fn a_name_is_one_tenants_own() {
        let mut index = Index::default();
        let red = active(&mut index, RED, "text");
        assert_eq!(index.by_name(RED, "text"), Ok(red));
        assert!(matches!(index.by_name(BLUE, "text"), Err(Fault::NotFound(_))));
        let blue = active(&mut index, BLUE, "text");
        assert_ne!(red, blue);
        assert!(matches!(index.prepare(facts(RED, "text"), None), Err(Fault::Exists(_))));
        assert_eq!(index.of_tenant(BLUE).map(|(o, _)| o).collect::<Vec<_>>(), [blue]);
    }

    #[test]
    fn a_region_is_seen_only_between_activation_and_drop_and_its_number_is_never_reused() {
        let mut index = Index::default();
        let object = index.prepare(facts(RED, "a"), None).unwrap();
        assert!(index.active(object).is_err() && index.by_name(RED, "a").is_err());
        index.activate(object);
        assert!(index.active(object).is_ok());
        assert!(index.begin_drop(object).is_some());
        assert!(index.begin_drop(object).is_none(), "a second drop finds nothing");
        index.activate(object);
        assert!(index.active(object).is_err(), "a dropping region never comes back");
        assert!(matches!(index.check_new(RED, "a"), Err(Fault::Exists(_))));
        assert!(index.publish(object, std::iter::empty()).is_none());
        index.remove(object);
        assert!(index.check_new(RED, "a").is_ok());
        assert!(active(&mut index, RED, "a") > object);
    }

    #[test]
    fn a_tenant_cannot_fill_the_table_for_others() {
        let mut index = Index::default();
        for n in 0..MAX_REGIONS_PER_TENANT {
            active(&mut index, RED, &format!("r{n}"));
        }
        assert!(matches!(index.check_new(RED, "more"), Err(Fault::LimitExceeded(_))));
        assert!(index.check_new(BLUE, "more").is_ok());
    }

    #[test]
    fn names_and_lengths_outside_the_contract_are_refused() {
        for bad in ["", "a/b", "a b", "ä", "\0", &"x".repeat(65)] {
            assert!(checked_name(bad).is_err(), "{bad:?}");
        }
        assert!(checked_name("A-z_0.9").is_ok());
        assert!(checked_bytes(0).is_err() && checked_bytes(MAX_REGION_BYTES + 1).is_err());
        assert!(checked_range(10, 5, 6).is_err());
        assert!(checked_range(u64::MAX, u64::MAX, 1).is_err());
        assert!(checked_range(u64::MAX, 0, MAX_CALL_BYTES + 1).is_err());
        assert_eq!(checked_range(10, 5, 5), Ok(ByteRange { start: 5, end: 10 }));
    }

    proptest! {
        #[test]
        fn spans_cover_every_byte_of_a_call_once_and_in_order(
            start in 0..MAX_REGION_BYTES - MAX_CALL_BYTES, len in 0..=MAX_CALL_BYTES
        ) {
            let mut next = start;
            for span in spans(ByteRange { start, end: start + len }) {
                prop_assert_eq!(u64::from(span.page) * PAGE_BYTES + span.start as u64, next);
                prop_assert_eq!(span.at as u64, next - start);
                prop_assert!(span.len > 0 && (span.start + span.len) as u64 <= PAGE_BYTES);
                next += span.len as u64;
            }
            prop_assert_eq!(next, start + len);
        }

        #[test]
        fn a_place_in_use_is_never_given_out_again(steps in prop::collection::vec(any::<(bool, u8)>(), 0..200)) {
            let places = Rc::new(RefCell::new(Places::with_used([2, 5].into_iter()).unwrap()));
            let mut held = vec![Slot::used(2, &places), Slot::used(5, &places)];
            for (take, which) in steps {
                if take || held.is_empty() {
                    let slot = Slot::take(&places).unwrap();
                    prop_assert!(held.iter().all(|h| h.number() != slot.number()));
                    held.push(slot);
                } else {
                    held.swap_remove(usize::from(which) % held.len());
                }
            }
            let used: BTreeSet<u32> = held.iter().map(|h| h.number()).collect();
            let end = places.borrow().end;
            let free: BTreeSet<u32> = (0..end).filter(|p| !places.borrow().is_used(*p)).collect();
            let ranges = places.borrow().free_ranges();
            prop_assert!(free.iter().all(|p| ranges.iter().any(|(a, b)| (a..b).contains(&p))));
            prop_assert!(used.iter().all(|p| !ranges.iter().any(|(a, b)| (a..b).contains(&p))));
            prop_assert!(used.is_disjoint(&free));
            prop_assert_eq!(used.len() + free.len(), end as usize);
        }
    }
}
