//! The table's layout, its one writer and its read-only views.
//!
//! A header page, then the generation of every slot, then the parent of every slot: 24 bytes per
//! capability, all words little-endian on the machines that DistOS runs on and in the machine's
//! order in any case, as the file never leaves it:
//!
//! | word | content |
//! |---|---|
//! | of the first part | generation; 0 is dead |
//! | first of two of the second part | generation of the parent |
//! | second of two | index of the parent (low half; all ones: a root), tenant (high half) |
//!
//! Generations stand by themselves because a check of a capability whose ancestors are known reads
//! nothing else: a million of them take 8 MB, which caches hold.

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use distos_abi::{Generation, MAX_DEPTH, SlotRef, TenantId};
use rustix::fs::SealFlags;

use crate::barrier;
use crate::map::{Expected, ReadMapping, WORD, WriteMapping};
use crate::sync::fence;
use crate::{SIZE_SEALS, TableError, memfd, sealed_len};

/// A page; under loom, which pays for every word, what is used of it.
const HEADER_BYTES: usize = if cfg!(loom) { 3 * WORD } else { 4096 };
const SLOT_BYTES: usize = 3 * WORD;

const MAGIC: u64 = u64::from_le_bytes(*b"distosCT");
const VERSION: u64 = 2;
const MAGIC_AT: usize = 0;
const VERSION_AT: usize = WORD;
const CAPACITY_AT: usize = 2 * WORD;

/// The parent index of a slot that has no parent.
const NO_PARENT: u32 = u32::MAX;

/// What a table lets nobody do: resize it, seal it further, write it other than through the
/// mapping that its maker already has.
const TABLE_SEALS: SealFlags = SIZE_SEALS.union(SealFlags::FUTURE_WRITE);

/// Where the generation of slot `index` is, in bytes from the start of the table.
fn generation_at(index: u32) -> usize {
    HEADER_BYTES + index as usize * WORD
}

/// Where the parent's generation and the packed word of slot `index` are, in a table of
/// `capacity` slots.
fn parent_at(index: u32, capacity: u32) -> (usize, usize) {
    let parent = HEADER_BYTES + capacity as usize * WORD + index as usize * 2 * WORD;
    (parent, parent + WORD)
}

/// Parent index and tenant in one word, so that both are read at once.
fn pack(parent: u32, tenant: TenantId) -> u64 {
    u64::from(parent) | u64::from(tenant.0) << 32
}

fn parent_of(packed: u64) -> u32 {
    packed as u32
}

/// The writing end of a table. There is one per table, it can't be cloned, and only one thread at
/// a time can use it, so that a slot's words never have two writers.
pub struct Table {
    words: WriteMapping,
    capacity: u32,
    one_thread: PhantomData<Cell<()>>,
}

impl Table {
    /// A table of `capacity` dead slots, and the descriptor to hand to vats: whoever holds it can
    /// map it read-only with [`View::map`], but can neither write nor resize it.
    /// `InvalidInput` if `capacity` is 0 or `u32::MAX`; `Unsupported` if this machine cannot pass a
    /// [`crate::Barrier`].
    pub fn create(capacity: u32) -> io::Result<(Table, OwnedFd)> {
        barrier::is_supported()?;
        if capacity == 0 || capacity == NO_PARENT {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let len = HEADER_BYTES + capacity as usize * SLOT_BYTES;
        let fd = memfd("distos-table", len as u64)?;
        let words = WriteMapping::new(fd.as_fd(), len)?;
        words.word(MAGIC_AT).store(MAGIC, Ordering::Relaxed);
        words.word(VERSION_AT).store(VERSION, Ordering::Relaxed);
        words.word(CAPACITY_AT).store(u64::from(capacity), Ordering::Relaxed);
        rustix::fs::fcntl_add_seals(&fd, TABLE_SEALS)?;
        Ok((Table { words, capacity, one_thread: PhantomData }, fd))
    }

    /// How many slots there are.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Brings a dead slot to life as a child of `parent` (`None`: a root). It is alive to readers
    /// only once everything about it is written.
    ///
    /// Panics if the slot is outside the table, is alive, or if the generation is
    /// [`Generation::DEAD`]: the forest that drives the table hands out free slots only.
    pub fn publish(&self, slot: SlotRef, parent: Option<SlotRef>, tenant: TenantId) {
        self.assert_inside(slot);
        assert!(slot.generation != Generation::DEAD, "a live slot has a generation");
        let (parent_generation, packed) = parent_at(slot.index, self.capacity);
        let (parent_index, parent_gen) = match parent {
            Some(parent) => {
                self.assert_inside(parent);
                (parent.index, parent.generation)
            }
            None => (NO_PARENT, Generation::DEAD),
        };
        let generation = self.words.word(generation_at(slot.index));
        assert!(generation.load(Ordering::Relaxed) == 0, "slot {slot} is taken");
        // Readers that see one of the next two stores must not find the slot's previous
        // generation afterwards: this fence orders the zero before them (see View::step).
        fence(Ordering::Release);
        self.words.word(parent_generation).store(parent_gen.0, Ordering::Relaxed);
        self.words.word(packed).store(pack(parent_index, tenant), Ordering::Relaxed);
        generation.store(slot.generation.0, Ordering::Release);
    }

    /// Ends the capability and, as every walk passes through it, all its descendants. Returns
    /// whether it was alive; a slot that was used again meanwhile is left alone.
    ///
    /// This is R1 of the crate's argument: what goes on is known after a [`crate::Barrier`]. Panics
    /// if the slot is outside the table.
    pub fn kill(&self, slot: SlotRef) -> bool {
        self.assert_inside(slot);
        let generation = self.words.word(generation_at(slot.index));
        let alive = slot.generation != Generation::DEAD
            && generation.load(Ordering::Relaxed) == slot.generation.0;
        if alive {
            generation.store(0, Ordering::Release);
        }
        alive
    }

    fn assert_inside(&self, slot: SlotRef) {
        assert!(slot.index < self.capacity, "slot {slot} is outside a table of {}", self.capacity);
    }
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Table({} slots)", self.capacity)
    }
}

/// A read-only view of a table. Clones share one mapping.
#[derive(Clone)]
pub struct View(Arc<Shared>);

struct Shared {
    words: ReadMapping,
    capacity: u32,
}

/// A capability's slot and those of all its ancestors, the root's last. A slot's parent does not
/// change while its generation stands, and no generation ever stands again: so the capability is
/// alive exactly while each of these slots has the generation that it had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ancestry(Expected);

/// What one step of a walk finds.
enum Step {
    Dead,
    Root,
    Parent(SlotRef),
}

impl View {
    /// Maps the table that a descriptor speaks of; the descriptor may be closed afterwards.
    /// Nothing in the file is believed that its size and seals don't bear out.
    pub fn map(fd: impl AsFd) -> Result<View, TableError> {
        let len = sealed_len(&fd, TABLE_SEALS)?;
        let slots = len
            .checked_sub(HEADER_BYTES)
            .ok_or(TableError::Malformed("shorter than its header"))?;
        let capacity = u32::try_from(slots / SLOT_BYTES)
            .ok()
            .filter(|c| *c != 0 && *c != NO_PARENT && slots.is_multiple_of(SLOT_BYTES))
            .ok_or(TableError::Malformed("its size is not that of a table"))?;
        let words = ReadMapping::new(fd.as_fd(), len)?;
        if words.load_relaxed(MAGIC_AT) != MAGIC {
            return Err(TableError::Malformed("not a capability table"));
        }
        if words.load_relaxed(VERSION_AT) != VERSION {
            return Err(TableError::Malformed("a table of another version of DistOS"));
        }
        if words.load_relaxed(CAPACITY_AT) != u64::from(capacity) {
            return Err(TableError::Malformed("its header contradicts its size"));
        }
        Ok(View(Arc::new(Shared { words, capacity })))
    }

    /// Whether the capability and all that it was derived from are alive: a few loads for each of
    /// at most [`MAX_DEPTH`] slots. False for a slot that is not in the table.
    ///
    /// By itself the answer may be out of date at once; [`crate::Seat::commit`] makes it hold
    /// for as long as an action takes.
    pub fn alive(&self, slot: SlotRef) -> bool {
        let mut at = slot;
        for _ in 0..MAX_DEPTH {
            match self.step(at) {
                Step::Dead => return false,
                Step::Root => return true,
                Step::Parent(parent) => at = parent,
            }
        }
        // Deeper than any derivation that may live, or a cycle: nothing that the kernel made.
        false
    }

    /// Whether the slot itself was not revoked, or used again; what it was derived from may have been.
    pub fn stands(&self, slot: SlotRef) -> bool {
        slot.index < self.0.capacity
            && slot.generation != Generation::DEAD
            && self.0.words.load_acquire(generation_at(slot.index)) == slot.generation.0
    }

    /// The slots from a live capability to its root, for [`View::holds`]; `None` if one of them is
    /// dead.
    pub fn ancestry(&self, slot: SlotRef) -> Option<Ancestry> {
        let mut generations = Vec::new();
        let mut at = slot;
        while generations.len() < MAX_DEPTH {
            // A slot outside the table is dead, so its generation is not looked for.
            let step = self.step(at);
            if let Step::Dead = step {
                return None;
            }
            generations.push((generation_at(at.index), at.generation.0));
            match step {
                Step::Parent(parent) => at = parent,
                _ => return Some(Ancestry(Expected::new(&self.0.words, &generations))),
            }
        }
        None
    }

    /// Whether the capability and all that it was derived from are alive: one load for each, none
    /// of which waits for another. Panics if `ancestry` is of a larger table.
    #[inline]
    pub fn holds(&self, ancestry: &Ancestry) -> bool {
        self.0.words.has(&ancestry.0)
    }

    /// What the capability was derived from; `None` if it is a root, or its own slot is dead.
    pub fn parent(&self, slot: SlotRef) -> Option<SlotRef> {
        match self.step(slot) {
            Step::Parent(parent) => Some(parent),
            Step::Dead | Step::Root => None,
        }
    }

    /// The tenant to which the slot is charged; `None` if the slot itself is not alive.
    pub fn tenant(&self, slot: SlotRef) -> Option<TenantId> {
        self.read(slot).map(|(_, packed)| TenantId((packed >> 32) as u32))
    }

    /// How many slots there are.
    pub fn capacity(&self) -> u32 {
        self.0.capacity
    }

    fn step(&self, slot: SlotRef) -> Step {
        match self.read(slot) {
            None => Step::Dead,
            Some((_, packed)) if parent_of(packed) == NO_PARENT => Step::Root,
            Some((generation, packed)) => Step::Parent(SlotRef {
                index: parent_of(packed),
                generation: Generation(generation),
            }),
        }
    }

    /// The parent's generation and the packed word of a slot that is alive with this generation.
    ///
    /// The first load acquires what `publish` released, so the words are at least as new as the
    /// generation. They may be newer: the slot may be used again while this runs. Whoever wrote
    /// them had stored zero first and fenced, so the second load of the generation, after the
    /// acquire fence, then differs. As no generation is ever reused, equality both before and
    /// after means that the words belong to this generation.
    fn read(&self, slot: SlotRef) -> Option<(u64, u64)> {
        if slot.index >= self.0.capacity || slot.generation == Generation::DEAD {
            return None;
        }
        let words = &self.0.words;
        let generation = generation_at(slot.index);
        let (parent_generation, packed) = parent_at(slot.index, self.0.capacity);
        if words.load_acquire(generation) != slot.generation.0 {
            return None;
        }
        let parent_generation = words.load_relaxed(parent_generation);
        let packed = words.load_acquire(packed);
        (words.load_acquire(generation) == slot.generation.0).then_some((parent_generation, packed))
    }
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "View({} slots)", self.0.capacity)
    }
}
