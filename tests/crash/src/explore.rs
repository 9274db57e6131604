//! Walks a record, cuts it at every moment, makes what a crash then may leave, and lets the store
//! recover from it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use crate::Random;
use crate::disk::{Disk, Part, Pending, SECTOR, Tree};
use crate::trace::{self, Action, Call};

/// What a store was asked for and what it acknowledged: all that a recovered store is held to.
pub trait Ledger: Clone + Default {
    /// Takes in what the recorded program said.
    fn hear(&mut self, line: &str);
    /// Recovers the store in `dir` with its production code, and compares.
    ///
    /// # Errors
    /// Which promise is broken.
    fn check(&self, dir: &Path) -> Result<(), String>;
}

/// A store and what is done to it.
pub trait Workload {
    /// What it is called.
    const NAME: &'static str;
    /// What it is held to.
    type Ledger: Ledger;
    /// Opens the store in `dir`, makes random changes, and says each on standard output: before it
    /// asks for it, and when it is acknowledged. Later lives are shorter.
    fn work(dir: &Path, seed: u64, is_first: bool);
    /// Where frames begin within a write's bytes.
    fn frames(pending: &Pending) -> Vec<usize>;
}

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Which changes are made, and which of the uncountable crashes are tried.
    pub seed: u64,
    /// How many moments of the first life are followed by a second.
    pub second_lives: usize,
    /// Random mixtures at each moment.
    pub mixtures: usize,
}

/// How much was done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count {
    /// Moments at which a record was cut.
    pub cuts: usize,
    /// Crashes that were made.
    pub crashes: usize,
    /// Of these, how many left something that no other had left: these were recovered.
    pub states: usize,
    /// Processes that were killed, or that started on what a crash left.
    pub second_lives: usize,
}

/// A promise that was broken.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Which, by what.
    pub why: String,
    /// The disk that the crash left.
    pub tree: Tree,
    /// What had been said until then.
    pub said: Vec<String>,
}

/// Runs workloads and recovers what crashes leave of them.
pub struct Explorer {
    program: PathBuf,
    scratch: tempfile::TempDir,
    seen: HashSet<[u8; 32]>,
    /// What was done.
    pub count: Count,
}

/// A record and what came before it.
pub struct Life<L> {
    disk: Disk,
    ledger: L,
    said: Vec<String>,
    calls: Vec<Call>,
}

/// One moment of a life.
struct Moment<'a, L> {
    disk: &'a Disk,
    ledger: &'a L,
    said: &'a [String],
    /// A write has just begun, and may be torn.
    is_write: bool,
}

impl<L> Life<L> {
    /// The same life on a disk that ignores these syncs; the argument is the path that is synced,
    /// its digits replaced by `N`.
    pub fn without_syncs(&mut self, ignored: &dyn Fn(&str) -> bool) {
        let mut open = BTreeMap::new();
        self.calls.retain(|call| {
            match &call.action {
                Action::Open { path, fd, .. } => drop(open.insert(*fd, pattern(path))),
                Action::Rename(from, to) => rename(&mut open, from, to),
                Action::Sync(fd) => return !open.get(fd).is_some_and(|path| ignored(path)),
                _ => {}
            }
            true
        });
    }

    /// The same life on a disk that ignores what is synced before the store says that it is open.
    pub fn without_syncs_at_start(&mut self) {
        let opened =
            |call: &Call| matches!(&call.action, Action::Say(line) if line.starts_with("opened"));
        let at = self.calls.iter().position(opened).unwrap_or(self.calls.len());
        let mut index = 0;
        self.calls.retain(|call| {
            index += 1;
            index > at || !matches!(call.action, Action::Sync(_))
        });
    }

    /// What is synced in this life: paths with digits replaced by `N`.
    pub fn synced(&self) -> Vec<String> {
        let mut open = BTreeMap::new();
        let mut synced = BTreeSet::new();
        for call in &self.calls {
            match &call.action {
                Action::Open { path, fd, .. } => drop(open.insert(*fd, pattern(path))),
                Action::Rename(from, to) => rename(&mut open, from, to),
                Action::Sync(fd) => synced.extend(open.get(fd).cloned()),
                _ => {}
            }
        }
        synced.into_iter().collect()
    }
}

fn rename(open: &mut BTreeMap<u32, String>, from: &str, to: &str) {
    let moved = open.values_mut().filter(|path| **path == pattern(from));
    moved.for_each(|path| *path = pattern(to));
}

fn pattern(path: &str) -> String {
    let mut pattern = String::new();
    for c in path.chars().map(|c| if c.is_ascii_digit() { 'N' } else { c }) {
        if !(c == 'N' && pattern.ends_with('N')) {
            pattern.push(c);
        }
    }
    pattern
}

impl Explorer {
    /// An explorer that records `program`, which is this crate's.
    ///
    /// # Errors
    /// Why there is no scratch directory.
    pub fn new(program: &str) -> Result<Explorer, String> {
        // Memory if there is some: what the recorded syncs cost is of no interest here.
        let mut scratch = tempfile::Builder::new();
        scratch.prefix("distos-crash.");
        let scratch = scratch.tempdir_in("/dev/shm").or_else(|_| scratch.tempdir());
        let scratch = scratch.map_err(|e| format!("no scratch directory: {e}"))?;
        let program = program.into();
        Ok(Explorer { program, scratch, seen: HashSet::new(), count: Count::default() })
    }

    /// Records the first life of a store.
    ///
    /// # Errors
    /// Why it could not be recorded.
    pub fn first_life<W: Workload>(&self, seed: u64) -> Result<Life<W::Ledger>, String> {
        self.live::<W>(Disk::empty(), &Tree::new(), (W::Ledger::default(), vec![]), seed, true)
    }

    fn live<W: Workload>(
        &self,
        mut disk: Disk,
        start: &Tree,
        (ledger, said): (W::Ledger, Vec<String>),
        seed: u64,
        is_first: bool,
    ) -> Result<Life<W::Ledger>, String> {
        let (dir, record) = (self.scratch.path().join("live"), self.scratch.path().join("record"));
        lay_out(&dir, start)?;
        let (path, number) = (dir.to_string_lossy(), seed.to_string());
        let life = if is_first { "first" } else { "later" };
        trace::record(&self.program, &["work", W::NAME, &path, &number, life], &record)?;
        disk.next_life();
        Ok(Life { disk, ledger, said, calls: trace::read(&record, &dir)? })
    }

    /// Cuts a life at every moment and recovers everything that a crash may leave there. Returns
    /// the first failure.
    pub fn explore<W: Workload>(
        &mut self,
        life: &Life<W::Ledger>,
        effort: Effort,
    ) -> Option<Failure> {
        let mut random = Random::new(effort.seed);
        let mut failure = None;
        walk(life, &mut |moment| {
            if failure.is_none() {
                failure = self.crash_all::<W>(moment, &mut random, effort.mixtures);
            }
        });
        failure
    }

    /// Lets a second process live on at some moments of a life and cuts that life too: on what a
    /// killed process leaves, of which nothing more is durable than before; and on what a power
    /// failure leaves. `change` may change the second life before it is cut. Returns the first
    /// failure.
    ///
    /// # Errors
    /// Why a second life could not be recorded.
    pub fn explore_second<W: Workload>(
        &mut self,
        life: &Life<W::Ledger>,
        effort: Effort,
        change: &dyn Fn(&mut Life<W::Ledger>),
    ) -> Result<Option<Failure>, String> {
        let mut random = Random::new(effort.seed);
        let moments = unsynced_moments(life);
        for n in 0..effort.second_lives {
            let chosen = moments[random.below(moments.len() as u64) as usize];
            let (mut at, mut found) = (0, None);
            walk(life, &mut |moment| {
                if at == chosen {
                    let said = moment.said.to_vec();
                    found = Some((moment.disk.clone(), moment.ledger.clone(), said));
                }
                at += 1;
            });
            let (disk, ledger, said) = found.expect("the moments were counted");
            let is_kill = n % 2 == 0;
            let parts: Vec<Part> = if is_kill {
                disk.pending().iter().map(|_| Part::All).collect()
            } else {
                mixture(disk.pending(), &mut random)
            };
            let tree = disk.crash(&|at| parts[at].clone());
            let base = if is_kill { disk } else { Disk::holding(&tree) };
            let seed = effort.seed.wrapping_add(1 + n as u64);
            let mut second = self.live::<W>(base, &tree, (ledger, said), seed, false)?;
            change(&mut second);
            self.count.second_lives += 1;
            let failure = self.explore::<W>(&second, Effort { seed, ..effort });
            if failure.is_some() {
                return Ok(failure);
            }
        }
        Ok(None)
    }

    fn crash_all<W: Workload>(
        &mut self,
        moment: &Moment<'_, W::Ledger>,
        random: &mut Random,
        mixtures: usize,
    ) -> Option<Failure> {
        self.count.cuts += 1;
        let pending = moment.disk.pending();
        for parts in crashes::<W>(pending, moment.is_write, random, mixtures) {
            self.count.crashes += 1;
            let tree = moment.disk.crash(&|at| parts[at].clone());
            if !self.seen.insert(digest(&tree, moment.said.len())) {
                continue;
            }
            self.count.states += 1;
            if let Err(why) = self.recover(moment.ledger, &tree) {
                let why = format!(
                    "{why}\n  after line {} of what was said; of {} calls that were not synced the disk had: {parts:?}",
                    moment.said.len(),
                    pending.len()
                );
                return Some(Failure { why, tree, said: moment.said.to_vec() });
            }
        }
        None
    }

    /// Recovers the store from `tree` and holds it to the ledger.
    ///
    /// # Errors
    /// Which promise is broken.
    pub fn recover<L: Ledger>(&self, ledger: &L, tree: &Tree) -> Result<(), String> {
        let dir = self.scratch.path().join("crashed");
        lay_out(&dir, tree)?;
        catch_unwind(AssertUnwindSafe(|| ledger.check(&dir)))
            .unwrap_or_else(|_| Err("recovery panicked".into()))
    }
}

/// At which moments something is not durable.
fn unsynced_moments<L: Ledger>(life: &Life<L>) -> Vec<usize> {
    let (mut at, mut moments) = (0, Vec::new());
    walk(life, &mut |moment| {
        moments.extend((!moment.disk.pending().is_empty()).then_some(at));
        at += 1;
    });
    moments
}

/// Visits every moment at which a crash may leave something else than before, or has to leave more.
fn walk<L: Ledger>(life: &Life<L>, visit: &mut dyn FnMut(&Moment<'_, L>)) {
    let (mut disk, mut ledger, mut said) =
        (life.disk.clone(), life.ledger.clone(), life.said.clone());
    let mut events: Vec<(usize, bool, usize)> = Vec::new();
    for (index, call) in life.calls.iter().enumerate() {
        events.push((call.start, false, index));
        events.extend(call.end.map(|end| (end, true, index)));
    }
    events.sort_unstable();
    let mut begun: Vec<Vec<usize>> = vec![Vec::new(); life.calls.len()];
    for (_, is_end, index) in events {
        let call = &life.calls[index];
        let mut is_write = false;
        let changed = if is_end {
            disk.end(call, &begun[index])
        } else {
            begun[index] = disk.begin(call);
            is_write = matches!(call.action, Action::Write { .. });
            if let Action::Say(line) = &call.action {
                ledger.hear(line);
                said.push(line.clone());
            }
            matches!(
                call.action,
                Action::Write { .. }
                    | Action::Truncate { .. }
                    | Action::Allocate { .. }
                    | Action::Punch { .. }
                    | Action::Say(_)
            )
        };
        if changed {
            visit(&Moment { disk: &disk, ledger: &ledger, said: &said, is_write });
        }
    }
}

/// The most calls, newest first, that are lost or kept one by one.
const MAX_SINGLE: usize = 12;

/// What of each pending change the disk may have.
fn crashes<W: Workload>(
    pending: &[Pending],
    is_write: bool,
    random: &mut Random,
    mixtures: usize,
) -> Vec<Vec<Part>> {
    let all = |part: Part| vec![part; pending.len()];
    let mut crashes = vec![all(Part::Nothing)];
    let Some(last) = pending.len().checked_sub(1) else { return crashes };
    crashes.push(all(Part::All));
    for at in last.saturating_sub(MAX_SINGLE - 1)..last + 1 {
        for (others, one) in [(Part::Nothing, Part::All), (Part::All, Part::Nothing)] {
            crashes.push(all(others));
            crashes.last_mut().expect("it was pushed")[at] = one;
        }
    }
    if let (true, Some(bytes)) = (is_write, pending[last].bytes()) {
        let sectors = bytes.len().div_ceil(SECTOR) + 1;
        // Of a page its ends and some of its sectors; of others every one.
        let is_long = sectors > 64;
        let step = if is_long { sectors / 6 } else { 1 };
        let misaligned = pending[last].offset() as usize % SECTOR;
        let mut tears = vec![Part::Length];
        tears.extend(
            (1..sectors)
                .step_by(step)
                .map(|n| Part::First((n * SECTOR - misaligned).min(bytes.len()))),
        );
        tears.extend((0..sectors).step_by(step).map(Part::Without));
        tears.push(Part::Without(sectors - 2));
        for frame in W::frames(&pending[last]) {
            tears.extend([Part::First(frame), Part::First(frame + 1)]);
        }
        for others in if is_long { vec![Part::All] } else { vec![Part::All, Part::Nothing] } {
            for tear in &tears {
                crashes.push(all(others.clone()));
                crashes.last_mut().expect("it was pushed")[last] = tear.clone();
            }
        }
    }
    crashes.extend((0..mixtures).map(|_| mixture(pending, random)));
    crashes
}

/// A random part of each change.
fn mixture(pending: &[Pending], random: &mut Random) -> Vec<Part> {
    let parts = pending.iter().map(|change| match random.below(4) {
        0 => Part::Nothing,
        1 if change.bytes().is_some() => Part::Sectors(random.next()),
        2 if change.bytes().is_some() => Part::Length,
        _ => Part::All,
    });
    parts.collect()
}

fn digest(tree: &Tree, said: usize) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&said.to_le_bytes());
    for (path, content) in tree {
        hasher.update(&path.len().to_le_bytes());
        hasher.update(path.as_bytes());
        if let Some(bytes) = content {
            hasher.update(&(bytes.len() + 1).to_le_bytes());
            hasher.update(bytes);
        }
    }
    *hasher.finalize().as_bytes()
}

/// Makes `dir` anew with what `tree` holds.
///
/// # Errors
/// Why it could not be made.
pub fn lay_out(dir: &Path, tree: &Tree) -> Result<(), String> {
    let make = || -> std::io::Result<()> {
        if dir.exists() {
            std::fs::remove_dir_all(dir)?;
        }
        std::fs::create_dir_all(dir)?;
        for (path, content) in tree {
            match content {
                Some(bytes) => std::fs::write(dir.join(path), &**bytes)?,
                None => std::fs::create_dir(dir.join(path))?,
            }
        }
        Ok(())
    };
    make().map_err(|e| format!("{}: {e}", dir.display()))
}

/// What a directory holds.
///
/// # Errors
/// Why it could not be read.
pub fn tree(dir: &Path) -> Result<Tree, String> {
    fn add(dir: &Path, prefix: &str, into: &mut Tree) -> std::io::Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.file_type()?.is_dir() {
                into.insert(path.clone(), None);
                add(&entry.path(), &format!("{path}/"), into)?;
            } else {
                into.insert(path, Some(std::fs::read(entry.path())?.into()));
            }
        }
        Ok(())
    }
    let mut found = Tree::new();
    add(dir, "", &mut found).map_err(|e| format!("{}: {e}", dir.display()))?;
    Ok(found)
}

impl Failure {
    /// Keeps the disk and what was said in a new directory, for whoever mends it.
    ///
    /// # Errors
    /// Why it could not be kept.
    pub fn keep(&self) -> Result<PathBuf, String> {
        let kept = tempfile::Builder::new().prefix("distos-crash-failed.").tempdir();
        let kept = kept.map_err(|e| format!("nothing was kept: {e}"))?.keep();
        lay_out(&kept.join("disk"), &self.tree)?;
        let said: String = self.said.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(kept.join("said"), said).map_err(|e| e.to_string())?;
        Ok(kept)
    }
}
