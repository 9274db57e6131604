//! The store against a disk that loses what was not synced, and against damage.

use std::io;
use std::sync::{Condvar, Mutex};

use proptest::prelude::*;
use tokio::task::LocalSet;

use super::*;
use crate::disk::Directory;
use crate::log::SECTOR;
use crate::sealed::{PAGE, SEALED};
use distos_abi::CapId;

const RED: TenantId = TenantId(1);
const SMALL: Limits = Limits { volatile_bytes: 1 << 20, compact_bytes: 4_096 };

/// What was asked of a disk.
#[derive(Clone, Debug)]
enum Op {
    Write(Name, u64, Vec<u8>),
    Sync(Name),
    SetLen(Name, u64),
    Punch(Name, u64, u64),
    Replace,
    SyncNames,
}

type Files = [Option<Vec<u8>>; 4];

/// A disk in memory that remembers every operation, and can be full.
#[derive(Default)]
struct Recorder(Mutex<History>, Condvar);

#[derive(Default)]
struct History {
    start: Files,
    files: Files,
    ops: Vec<Op>,
    full: Option<Name>,
    /// Syncs of the log wait until it is let go.
    log_held: bool,
}

impl Recorder {
    fn of(files: Files) -> Arc<Recorder> {
        let recorded = History { start: files.clone(), files, ..History::default() };
        Arc::new(Recorder(Mutex::new(recorded), Condvar::new()))
    }

    fn count(&self) -> usize {
        self.0.lock().unwrap().ops.len()
    }

    fn set_full(&self, file: Option<Name>) {
        self.0.lock().unwrap().full = file;
    }

    fn hold_log(&self, held: bool) {
        self.0.lock().unwrap().log_held = held;
        self.1.notify_all();
    }

    fn writes(&self, file: Name) -> usize {
        let history = self.0.lock().unwrap();
        history.ops.iter().filter(|op| matches!(op, Op::Write(f, ..) if *f == file)).count()
    }

    fn files(&self) -> Files {
        self.0.lock().unwrap().files.clone()
    }

    fn apply(&self, op: Op) {
        let mut recorded = self.0.lock().unwrap();
        apply(&mut recorded.files, &op, &mut |_| true);
        recorded.ops.push(op);
    }

    /// What a crash after `ops` operations leaves: all that was synced, and any sectors of what
    /// was not.
    fn crash(&self, ops: usize, seed: u64) -> Files {
        let recorded = self.0.lock().unwrap();
        let mut files = recorded.start.clone();
        let mut waiting: Vec<&Op> = Vec::new();
        for op in &recorded.ops[..ops] {
            waiting.push(op);
            match op {
                Op::Sync(file) => waiting.retain(|op| {
                    let synced = file_of(op) == *file;
                    if synced {
                        apply(&mut files, op, &mut |_| true);
                    }
                    !synced
                }),
                Op::Replace => {
                    waiting.retain(|op| file_of(op) != Name::Log);
                    apply(&mut files, op, &mut |_| true);
                }
                _ => {}
            }
        }
        let mut random = seed;
        let mut survives = |_| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            random >> 62 != 0 && seed != 0
        };
        waiting.iter().for_each(|op| apply(&mut files, op, &mut survives));
        files
    }
}

fn file_of(op: &Op) -> Name {
    match op {
        Op::Write(file, ..) | Op::Sync(file) | Op::SetLen(file, _) | Op::Punch(file, ..) => *file,
        Op::Replace | Op::SyncNames => Name::Log,
    }
}

/// Applies those sectors of an operation that `survives` lets through.
fn apply(files: &mut Files, op: &Op, survives: &mut dyn FnMut(usize) -> bool) {
    let mut put = |file: Name, offset: u64, bytes: &[u8]| {
        let content = files[file as usize].get_or_insert_default();
        let mut at = offset as usize;
        let end = at + bytes.len();
        while at < end {
            let next = end.min((at / SECTOR + 1) * SECTOR);
            if survives(at) {
                content.resize(content.len().max(next), 0);
                content[at..next]
                    .copy_from_slice(&bytes[at - offset as usize..next - offset as usize]);
            }
            at = next;
        }
    };
    match op {
        Op::Write(file, offset, bytes) => put(*file, *offset, bytes),
        Op::Punch(file, offset, len) => put(*file, *offset, &vec![0; *len as usize]),
        Op::SetLen(file, len) => {
            let content = files[*file as usize].get_or_insert_default();
            if survives(0) {
                content.resize(*len as usize, 0);
            }
        }
        Op::Replace => files[Name::Log as usize] = files[Name::NewLog as usize].take(),
        Op::Sync(_) | Op::SyncNames => {}
    }
}

impl Disk for Recorder {
    fn name(&self) -> String {
        "memory".into()
    }

    fn len(&self, file: Name) -> io::Result<Option<u64>> {
        Ok(self.0.lock().unwrap().files[file as usize].as_ref().map(|f| f.len() as u64))
    }

    fn read(&self, file: Name, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let recorded = self.0.lock().unwrap();
        let content = recorded.files[file as usize].as_deref().unwrap_or_default();
        let from = content.get(offset as usize..).and_then(|rest| rest.get(..into.len()));
        into.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write(&self, file: Name, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.0.lock().unwrap().full == Some(file) {
            // A full disk may take a part.
            let part = bytes.len() / 2;
            self.apply(Op::Write(file, offset, bytes[..part].to_vec()));
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.apply(Op::Write(file, offset, bytes.to_vec()));
        Ok(())
    }

    fn sync(&self, file: Name) -> io::Result<()> {
        if file == Name::Log {
            let history = self.0.lock().unwrap();
            drop(self.1.wait_while(history, |history| history.log_held).unwrap());
        }
        self.apply(Op::Sync(file));
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        self.apply(Op::SyncNames);
        Ok(())
    }

    fn set_len(&self, file: Name, len: u64) -> io::Result<()> {
        self.apply(Op::SetLen(file, len));
        Ok(())
    }

    fn punch(&self, file: Name, offset: u64, len: u64) -> io::Result<()> {
        let end = self.len(file)?.unwrap_or(0).min(offset.saturating_add(len));
        if offset < end {
            self.apply(Op::Punch(file, offset, end - offset));
        }
        Ok(())
    }

    fn replace_log(&self) -> io::Result<()> {
        self.apply(Op::Replace);
        Ok(())
    }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, work)
}

fn open(disk: Arc<dyn Disk>) -> Rc<Store> {
    let store = Store::open(disk, SMALL).unwrap();
    store.found().iter().for_each(|region| store.activate(region.object));
    store
}

fn facts(name: &str, bytes: u64, durable: bool) -> Facts {
    Facts { name: name.into(), tenant: RED, bytes, durable, lineage: vec![CapId(1)] }
}

async fn create(store: &Rc<Store>, name: &str, bytes: u64) -> ObjectId {
    let object = store.create(facts(name, bytes, true)).await.unwrap();
    store.activate(object);
    object
}

fn allow(publish: &mut dyn FnMut()) -> Result<(), Fault> {
    publish();
    Ok(())
}

async fn put(store: &Rc<Store>, object: ObjectId, at: u64, data: &[u8]) -> Result<(), Fault> {
    store.write(object, at, data.to_vec(), allow).await
}

async fn content(store: &Rc<Store>, object: ObjectId) -> Result<Vec<u8>, Fault> {
    let bytes = store.summary(object)?.facts.bytes;
    store.read(object, ByteRange { start: 0, end: bytes }).await
}

const BYTES: u64 = 2 * 65_536 + 1_000;

#[derive(Clone, Debug)]
enum Step {
    Write {
        region: usize,
        at: u64,
        len: u64,
        fill: u8,
    },
    Remake {
        region: usize,
    },
    /// Whole pages one after the other at the same place, each begun before the one before it is
    /// acknowledged.
    Burst {
        region: usize,
        page: u64,
        fills: [u8; 3],
    },
}

fn step() -> impl Strategy<Value = Step> {
    let write = (0..2_usize, 0..BYTES, 1..BYTES, 1..255_u8).prop_map(|(region, at, len, fill)| {
        Step::Write { region, at, len: len.min(BYTES - at), fill }
    });
    let remake = (0..2_usize).prop_map(|region| Step::Remake { region });
    let burst = (0..2_usize, 0..2_u64, prop::array::uniform3(1..255_u8))
        .prop_map(|(region, page, fills)| Step::Burst { region, page, fills });
    prop_oneof![6 => write, 1 => remake, 3 => burst]
}

/// What the two names hold; `None` while there is no region of that name.
type Model = [Option<Vec<u8>>; 2];

/// How many disk operations there were when a step began and when it was acknowledged, and what
/// was true before it, within it, and after it.
struct Acknowledged {
    from: usize,
    until: usize,
    states: Vec<Model>,
}

const NAMES: [&str; 2] = ["a", "b"];

async fn perform(disk: &Recorder, store: &Rc<Store>, steps: &[Step]) -> Vec<Acknowledged> {
    let mut done = Vec::new();
    let mut model: Model = [None, None];
    let mut objects = [None; 2];
    let mut note = |from: usize, model: &mut Model, region: usize, states: Vec<Option<Vec<u8>>>| {
        let mut all = vec![model.clone()];
        for state in states {
            model[region] = state;
            all.push(model.clone());
        }
        done.push(Acknowledged { from, until: disk.count(), states: all });
    };
    for region in 0..2 {
        let from = disk.count();
        objects[region] = Some(create(store, NAMES[region], BYTES).await);
        note(from, &mut model, region, vec![Some(vec![0; BYTES as usize])]);
    }
    for step in steps {
        let from = disk.count();
        match *step {
            Step::Write { region, at, len, fill } => {
                let object = objects[region].unwrap();
                put(store, object, at, &vec![fill; len as usize]).await.unwrap();
                let mut after = model[region].clone().unwrap();
                after[at as usize..(at + len) as usize].fill(fill);
                note(from, &mut model, region, vec![Some(after)]);
            }
            Step::Burst { region, page, fills } => {
                let (object, at) = (objects[region].unwrap(), page as usize * PAGE);
                let writes = fills.map(|fill| {
                    let write = store.write(object, at as u64, vec![fill; PAGE], allow);
                    Box::pin(write)
                });
                for write in futures::future::join_all(writes).await {
                    write.unwrap();
                }
                let states = fills.map(|fill| {
                    let mut after = model[region].clone().unwrap();
                    after[at..at + PAGE].fill(fill);
                    Some(after)
                });
                note(from, &mut model, region, states.to_vec());
            }
            Step::Remake { region } => {
                store.erase(objects[region].unwrap()).await.unwrap();
                note(from, &mut model, region, vec![None]);
                let from = disk.count();
                objects[region] = Some(create(store, NAMES[region], BYTES).await);
                note(from, &mut model, region, vec![Some(vec![0; BYTES as usize])]);
            }
        }
    }
    done
}

async fn check_after_crash(files: Files, ops: usize, done: &[Acknowledged]) {
    let store = open(Recorder::of(files));
    let running = done.iter().find(|step| step.from < ops && ops < step.until);
    let settled = done.iter().rev().find(|step| step.until <= ops);
    let empty = [[None, None]];
    let states: &[Model] = match (running, settled) {
        (Some(step), _) => &step.states,
        (None, Some(step)) => &step.states[step.states.len() - 1..],
        (None, None) => &empty,
    };
    for region in 0..2 {
        let found = match store.by_name(RED, NAMES[region]) {
            Ok(object) => content(&store, object).await.map(Some),
            Err(_) => Ok(None),
        };
        let possible: Vec<&Vec<u8>> = states.iter().filter_map(|s| s[region].as_ref()).collect();
        let may_be_gone = possible.len() < states.len();
        match found {
            Ok(None) => assert!(may_be_gone, "an acknowledged region is gone"),
            Ok(Some(found)) => {
                for (page, bytes) in found.chunks(PAGE).enumerate() {
                    let at = page * PAGE..page * PAGE + bytes.len();
                    let known = possible.iter().any(|content| *bytes == content[at.clone()]);
                    assert!(known, "page {page} is neither old nor new");
                }
            }
            // While it is being made or dropped, it may lack its key.
            Err(fault) => assert!(may_be_gone && fault.name() == "corrupt", "{fault}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// M3: whoever got an acknowledgement finds the data after a crash at any point, whichever
    /// unsynced sectors survive; a page is old or new.
    #[test]
    fn a_crash_at_any_point_loses_nothing_acknowledged_and_tears_no_page(
        steps in prop::collection::vec(step(), 1..25),
        crashes in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 12),
    ) {
        run(async {
            let disk = Recorder::of(Files::default());
            let store = open(disk.clone());
            let done = perform(&disk, &store, &steps).await;
            for (at, seed) in &crashes {
                let ops = at.index(disk.count() + 1);
                check_after_crash(disk.crash(ops, *seed), ops, &done).await;
            }
            let ops = disk.count();
            check_after_crash(disk.crash(ops, 0), done.last().unwrap().until, &done).await;
        });
    }
}

#[test]
fn a_replaced_page_is_kept_until_its_successor_is_durable_and_no_reader_needs_it() {
    run(async {
        let disk = Recorder::of(Files::default());
        let store = open(disk.clone());
        let object = create(&store, "a", BYTES).await;
        put(&store, object, 0, &[1; PAGE]).await.unwrap();
        let before = disk.writes(Name::Extents);
        disk.hold_log(true);
        let writes = [2, 3, 4].map(|fill| {
            let store = store.clone();
            tokio::task::spawn_local(async move { put(&store, object, 0, &[fill; PAGE]).await })
        });
        while disk.writes(Name::Extents) < before + 3 {
            tokio::task::yield_now().await;
        }
        // The worst crash: the pages reached the disk and their records did not.
        let mut files = disk.crash(disk.count(), 0);
        files[Name::Extents as usize] = disk.files()[Name::Extents as usize].take();
        let crashed = open(Recorder::of(files));
        assert_eq!(content(&crashed, object).await.unwrap()[..PAGE], [1; PAGE]);
        let read = store.read(object, ByteRange { start: 0, end: 1 }).await.unwrap();
        assert!((2..=4).contains(&read[0]), "readers see what was published");
        disk.hold_log(false);
        for write in writes {
            write.await.unwrap().unwrap();
        }
        let (_, pins) = store.read_job(object, ByteRange { start: 0, end: 1 }).unwrap();
        put(&store, object, 0, &[5; PAGE]).await.unwrap();
        let pinned = slot_of(pins[0].place.clone()).unwrap().number();
        assert!(store.extents.borrow().is_used(pinned));
        drop(pins);
        assert!(!store.extents.borrow().is_used(pinned));
        assert_eq!(content(&store, object).await.unwrap()[..PAGE], [5; PAGE]);
    });
}

/// Else a power failure takes back what readers saw after a killed service was started again, and
/// what was written after that cannot be told from damage.
#[test]
fn what_a_killed_service_left_is_durable_before_it_is_used() {
    let disk = Recorder::of(Files::default());
    run(async {
        let store = open(disk.clone());
        let region = create(&store, "a", 100).await;
        put(&store, region, 0, b"red").await.unwrap();
    });
    let restarted = Recorder::of(disk.files());
    run(async {
        let store = open(restarted.clone());
        let ops = restarted.0.lock().unwrap().ops.clone();
        assert!(ops.iter().any(|op| matches!(op, Op::Sync(Name::Log))), "{ops:?}");
        assert!(ops.iter().any(|op| matches!(op, Op::SyncNames)), "{ops:?}");
        drop(store);
    });
}

#[test]
fn writers_to_one_page_do_not_undo_each_other() {
    run(async {
        let disk = Recorder::of(Files::default());
        let store = open(disk.clone());
        let object = create(&store, "a", 65_536 * 2).await;
        let writes = (0..64_u64).map(|n| {
            let store = store.clone();
            tokio::task::spawn_local(async move {
                put(&store, object, n * 2_000, &[n as u8 + 1; 2_000]).await
            })
        });
        for write in writes.collect::<Vec<_>>() {
            write.await.unwrap().unwrap();
        }
        let expected: Vec<u8> = (0..64 * 2_000).map(|at| (at / 2_000) as u8 + 1).collect();
        assert_eq!(content(&store, object).await.unwrap()[..expected.len()], expected);
        drop(store);
        let again = open(Recorder::of(disk.crash(disk.count(), 0)));
        assert_eq!(content(&again, object).await.unwrap()[..expected.len()], expected);
    });
}

#[test]
fn a_write_that_was_revoked_before_its_commit_has_no_effect_and_keeps_no_space() {
    run(async {
        let store = open(Recorder::of(Files::default()));
        let object = create(&store, "a", BYTES).await;
        put(&store, object, 0, b"before").await.unwrap();
        let used = store.extents.borrow().free_ranges();
        let refused = store.write(object, 0, vec![9; 70_000], |_| Err(Fault::Revoked)).await;
        assert_eq!(refused, Err(Fault::Revoked));
        assert_eq!(&content(&store, object).await.unwrap()[..7], b"before\0");
        let free = |ranges: Vec<(u32, u32)>| ranges.iter().map(|(a, b)| b - a).sum::<u32>();
        assert_eq!(free(store.extents.borrow().free_ranges()), free(used));
    });
}

#[test]
fn a_caller_that_goes_away_leaves_no_lock_and_no_half_written_slot() {
    run(async {
        let store = open(Recorder::of(Files::default()));
        let object = create(&store, "a", BYTES).await;
        for fill in 1..20 {
            let mut write = Box::pin(store.write(object, 0, vec![fill; 1_000], allow));
            tokio::select! { biased; _ = &mut write => {}, () = tokio::task::yield_now() => {} }
        }
        put(&store, object, 0, &[77; 1_000]).await.unwrap();
        assert_eq!(content(&store, object).await.unwrap()[..1_000], [77; 1_000]);
    });
}

#[test]
fn a_full_disk_is_said_so_and_loses_nothing() {
    run(async {
        let disk = Recorder::of(Files::default());
        let store = open(disk.clone());
        let object = create(&store, "a", BYTES).await;
        put(&store, object, 0, &[1; 1_000]).await.unwrap();
        for file in [Name::Extents, Name::Log, Name::Keys] {
            disk.set_full(Some(file));
            let failed = match file {
                Name::Keys => store.create(facts("b", 1, true)).await.map(drop),
                _ => put(&store, object, 70_000, &[2; 100]).await,
            };
            assert!(matches!(failed, Err(Fault::Unavailable { .. })), "{file:?}: {failed:?}");
            disk.set_full(None);
            put(&store, object, 0, &[file as u8 + 10; 1_000]).await.unwrap();
            let again = open(Recorder::of(disk.crash(disk.count(), 0)));
            let found = content(&again, object).await.unwrap();
            assert_eq!(found, content(&store, object).await.unwrap());
            assert_eq!(found[..1_000], [file as u8 + 10; 1_000]);
        }
        create(&store, "c", BYTES).await;
    });
}

#[test]
fn a_damaged_file_gives_an_error_and_never_other_bytes() {
    run(async {
        let disk = Recorder::of(Files::default());
        let store = open(disk.clone());
        let object = create(&store, "a", BYTES).await;
        let expected: Vec<u8> = (0..BYTES).map(|n| (n % 251) as u8).collect();
        put(&store, object, 0, &expected).await.unwrap();
        drop(store);
        let files = disk.crash(disk.count(), 0);
        for file in [Name::Extents, Name::Log, Name::Keys] {
            let len = files[file as usize].as_ref().unwrap().len();
            for at in (0..len).step_by(if file == Name::Extents { 977 } else { 13 }) {
                let mut damaged = files.clone();
                damaged[file as usize].as_mut().unwrap()[at] ^= 0x40;
                let Ok(store) = Store::open(Recorder::of(damaged), SMALL) else { continue };
                assert_ne!(file, Name::Log, "byte {at} of the log");
                store.activate(object);
                match content(&store, object).await {
                    Ok(found) => assert_eq!(found, expected, "byte {at} of {file:?}"),
                    Err(fault) => assert_eq!(fault.name(), "corrupt"),
                }
            }
        }
        let mut lost = files.clone();
        lost[Name::Log as usize] = None;
        assert!(matches!(Store::open(Recorder::of(lost), SMALL), Err(StoreError::Corrupt(_))));
        let mut cut = files;
        cut[Name::Extents as usize].as_mut().unwrap().truncate(100_000);
        let fault = content(&open(Recorder::of(cut)), object).await.unwrap_err();
        assert_eq!(fault.name(), "corrupt");
    });
}

#[test]
fn no_file_ever_shows_a_tenants_text_and_a_dropped_regions_key_is_gone() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let store = open(Arc::new(Directory::new(dir.path())));
        let object = create(&store, "secret", BYTES).await;
        let other = create(&store, "other", BYTES).await;
        let marker = b"the plain text of a tenant";
        put(&store, object, 65_530, marker).await.unwrap();
        put(&store, other, 0, marker).await.unwrap();
        let files = || std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path());
        let shows = |needle: &[u8]| {
            files().any(|f| std::fs::read(f).unwrap().windows(needle.len()).any(|w| w == needle))
        };
        assert!(!shows(&marker[..10]));
        let key = store.keys.borrow()[&object].unmask();
        assert!(shows(&key[..]), "the key is where it is looked for");
        let slots = disk_slots(store.index.borrow().active(object).unwrap());
        store.erase(object).await.unwrap();
        assert!(!shows(&key[..]), "M1: not after free");
        let extents = std::fs::read(dir.path().join("extents.dat")).unwrap();
        for slot in slots {
            let at = slot as usize * STRIDE as usize;
            assert!(extents[at..extents.len().min(at + SEALED)].iter().all(|b| *b == 0));
        }
        assert!(!shows(&marker[..10]));
        assert_eq!(&content(&store, other).await.unwrap()[..marker.len()], marker);
        assert!(matches!(content(&store, object).await, Err(Fault::NotFound(_))));
    });
}

#[test]
fn a_volatile_region_is_never_served_as_zeros_after_a_restart() {
    run(async {
        let disk = Recorder::of(Files::default());
        let store = open(disk.clone());
        let object = store.create(facts("v", BYTES, false)).await.unwrap();
        store.activate(object);
        put(&store, object, 65_000, b"in memory only").await.unwrap();
        assert_eq!(&content(&store, object).await.unwrap()[65_000..65_014], b"in memory only");
        assert!(matches!(
            store.create(facts("w", 1 << 20, false)).await,
            Err(Fault::Unavailable { .. })
        ));
        drop(store);
        let again = open(Recorder::of(disk.files()));
        assert_eq!(content(&again, object).await, Err(Fault::Corrupt(LOST_VOLATILE.into())));
        assert!(put(&again, object, 0, b"x").await.is_err());
        assert!(again.root(object).await.is_err());
        again.erase(object).await.unwrap();
    });
}

#[test]
fn a_log_that_is_rewritten_over_and_over_stays_short_and_says_the_same() {
    run(async {
        let disk = Recorder::of(Files::default());
        let store = open(disk.clone());
        let object = create(&store, "a", BYTES).await;
        let gone = create(&store, "gone", BYTES).await;
        store.erase(gone).await.unwrap();
        for n in 0..200_u64 {
            put(
                &store,
                object,
                n * 600 % BYTES,
                &[n as u8; 300][..300.min((BYTES - n * 600 % BYTES) as usize)],
            )
            .await
            .unwrap();
        }
        store.quiet().await;
        let log = disk.len(Name::Log).unwrap().unwrap();
        assert!(log < 20_000, "{log} bytes");
        assert!(disk.len(Name::Extents).unwrap().unwrap() < 12 * STRIDE, "slots are reused");
        let expected = content(&store, object).await.unwrap();
        let root = store.root(object).await.unwrap();
        drop(store);
        let again = open(Recorder::of(disk.crash(disk.count(), 0)));
        assert_eq!(content(&again, object).await.unwrap(), expected);
        assert_eq!(again.root(object).await.unwrap(), root);
        assert!(create(&again, "gone", 1).await > gone, "numbers are never used again");
    });
}

#[test]
fn a_root_is_the_hash_of_the_pages_hashes_in_order() {
    run(async {
        let store = open(Recorder::of(Files::default()));
        let object = create(&store, "a", BYTES).await;
        put(&store, object, 65_536, &[5; PAGE]).await.unwrap();
        let mut hasher = blake3::Hasher::new();
        for page in [[0; PAGE], [5; PAGE], [0; PAGE]] {
            hasher.update(blake3::hash(&page).as_bytes());
        }
        assert_eq!(store.root(object).await.unwrap(), *hasher.finalize().as_bytes());
        put(&store, object, 0, &[1]).await.unwrap();
        assert_ne!(store.root(object).await.unwrap(), *hasher.finalize().as_bytes());
        assert_eq!(store.summary(object).unwrap().written_pages, 2);
    });
}
