//! The engine of `make test`: mutates the corpus, runs the target, and makes a failing input
//! smaller. Everything follows from a seed, which a failure names.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

use crate::Target;

/// An input that runs longer has hung: it is saved and the process ends.
const HANG: Duration = Duration::from_secs(60);
/// An input after which the process has needed this much more memory than before is a finding.
const MEMORY_BYTES: u64 = 1 << 30;
/// How often memory is looked at, in inputs.
const MEMORY_EVERY: u64 = 64;
/// How long a failing input is made smaller.
const SHRINK: Duration = Duration::from_secs(10);
/// Panics that are kept of one run.
const MAX_PANICS: usize = 8;

static PANICS: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());
/// A panic on any thread belongs to the input that runs, so only one runs.
static RUNNING: Mutex<()> = Mutex::new(());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Remembers every panic of this process, also those that an event loop or a thread swallows.
fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            // Failures of the tests themselves are shown as always.
            if RUNNING.try_lock().is_ok() {
                return before(info);
            }
            let mut panics = lock(&PANICS);
            if panics.len() < MAX_PANICS {
                let text = info.to_string().replace('\n', " ");
                panics.push_back(text);
            }
        }));
    });
}

/// Runs a target on one input. The error says what went wrong.
pub fn run_once(target: &Target, input: &[u8]) -> Result<(), String> {
    watch_panics();
    let _one = lock(&RUNNING);
    lock(&PANICS).clear();
    let caught = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let panics: Vec<String> = lock(&PANICS).drain(..).collect();
    if caught.is_ok() && panics.is_empty() { Ok(()) } else { Err(panics.join("; ")) }
}

/// An input that breaks something.
#[derive(Debug)]
pub struct Failure {
    target: &'static str,
    what: String,
    seed: u64,
    runs: u64,
    saved: PathBuf,
    bytes: usize,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure { target, what, seed, runs, saved, bytes } = self;
        write!(
            f,
            "{target}: {what}\n  input {runs} of seed {seed}, {bytes} bytes, is in {}\n  copy it to \
             tests/fuzz/findings/{target}/, where every test run replays it, and mend what it breaks",
            saved.display()
        )
    }
}

impl std::error::Error for Failure {}

/// A seed nobody chose.
pub fn any_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(1, |now| now.as_nanos() as u64)
}

/// Runs a target on mutations of `corpus` for `time`; returns how many inputs it ran.
///
/// # Errors
/// The first [`Failure`], whose input was made smaller and saved.
pub fn fuzz(
    target: &'static Target,
    corpus: &[Vec<u8>],
    time: Duration,
    seed: u64,
) -> Result<u64, Failure> {
    let watchdog = Watchdog::start(target.name);
    let mut rng = Rng(seed);
    let before = peak_memory();
    let started = Instant::now();
    let mut runs = 0;
    while started.elapsed() < time {
        let input = mutate(&mut rng, corpus, target.max_bytes);
        watchdog.begin(&input);
        runs += 1;
        let failed = |what: String, input: Vec<u8>| {
            let saved = save(target.name, &input);
            Err(Failure { target: target.name, what, seed, runs, saved, bytes: input.len() })
        };
        if let Err(what) = run_once(target, &input) {
            let small = shrink(target, input, &watchdog);
            return failed(what, small);
        }
        let more = peak_memory().saturating_sub(before);
        if runs.is_multiple_of(MEMORY_EVERY) && more > MEMORY_BYTES {
            return failed(format!("the process needed {more} bytes more of memory"), input);
        }
    }
    watchdog.end();
    Ok(runs)
}

/// Where a failing input is kept: outside the repository's files.
fn save(target: &str, input: &[u8]) -> PathBuf {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/fuzz");
    let folder = root.join(target);
    let path = folder.join(&blake3::hash(input).to_hex()[..16]);
    std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&path, input)).unwrap();
    path.canonicalize().unwrap()
}

/// The most memory that this process has had so far, in bytes.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).and_then(|n| n.parse().ok());
    kib.map_or(0, |kib: u64| kib * 1024)
}

/// Ends the process when an input hangs, after it was saved.
struct Watchdog(Arc<Mutex<Running>>);

/// Since when which input runs.
type Running = Option<(Instant, Vec<u8>)>;

impl Watchdog {
    fn start(target: &'static str) -> Watchdog {
        let running: Arc<Mutex<Running>> = Arc::default();
        let seen = Arc::downgrade(&running);
        std::thread::spawn(move || {
            while let Some(running) = seen.upgrade() {
                if let Some((since, input)) = &*lock(&running)
                    && since.elapsed() > HANG
                {
                    let saved = save(target, input);
                    eprintln!("{target}: hangs on {}", saved.display());
                    std::process::abort();
                }
                drop(running);
                std::thread::sleep(Duration::from_millis(500));
            }
        });
        Watchdog(running)
    }

    fn begin(&self, input: &[u8]) {
        *lock(&self.0) = Some((Instant::now(), input.to_vec()));
    }

    fn end(&self) {
        *lock(&self.0) = None;
    }
}

/// Cuts pieces out of an input for as long as it goes on failing.
fn shrink(target: &Target, mut input: Vec<u8>, watchdog: &Watchdog) -> Vec<u8> {
    let started = Instant::now();
    let mut piece = input.len() / 2;
    while piece > 0 {
        let mut at = 0;
        while at < input.len() && started.elapsed() < SHRINK {
            let mut shorter = input.clone();
            shorter.drain(at..(at + piece).min(input.len()));
            watchdog.begin(&shorter);
            match run_once(target, &shorter) {
                Err(_) => input = shorter,
                Ok(()) => at += piece,
            }
        }
        piece /= 2;
    }
    watchdog.end();
    input
}

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`; 0 if that is 0.
    fn below(&mut self, bound: usize) -> usize {
        self.next().checked_rem(bound as u64).unwrap_or(0) as usize
    }

    /// A place and a length within `len`; short pieces are likelier.
    fn piece(&mut self, len: usize) -> std::ops::Range<usize> {
        let start = self.below(len + 1);
        let longest = match self.below(4) {
            0 => len - start,
            1 => (len - start).min(64),
            _ => (len - start).min(8),
        };
        start..start + self.below(longest + 1)
    }
}

/// Numbers at which code decides differently.
const EDGES: [u64; 16] = [
    0,
    1,
    2,
    7,
    8,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];

/// One member of the corpus, changed once or several times.
fn mutate(rng: &mut Rng, corpus: &[Vec<u8>], max_bytes: usize) -> Vec<u8> {
    let mut bytes = match rng.below(50) {
        0 => (0..rng.below(300)).map(|_| rng.next() as u8).collect(),
        _ => corpus[rng.below(corpus.len())].clone(),
    };
    for _ in 0..1 << rng.below(5) {
        change(rng, &mut bytes, corpus);
    }
    bytes.truncate(max_bytes);
    bytes
}

fn change(rng: &mut Rng, bytes: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    let at = rng.below(bytes.len());
    match rng.below(12) {
        0 | 1 if !bytes.is_empty() => bytes[at] ^= 1 << rng.below(8),
        2 if !bytes.is_empty() => bytes[at] = rng.next() as u8,
        3 if !bytes.is_empty() => bytes[at] = bytes[at].wrapping_add([1, 0xff][rng.below(2)]),
        4 | 5 => {
            let number = EDGES[rng.below(EDGES.len())].wrapping_add(rng.below(3) as u64);
            let number = number.wrapping_sub(1);
            let width = [1, 2, 4, 8][rng.below(4)];
            let (little, big) = (number.to_le_bytes(), number.to_be_bytes());
            let number = if rng.below(2) == 0 { &little[..width] } else { &big[8 - width..] };
            let end = (at + width).min(bytes.len());
            bytes[at..end].copy_from_slice(&number[..end - at]);
        }
        6 => drop(bytes.drain(rng.piece(bytes.len()))),
        7 => {
            let copied = bytes[rng.piece(bytes.len())].to_vec();
            drop(bytes.splice(at..at, copied));
        }
        8 => {
            let random: Vec<u8> = (0..rng.below(16)).map(|_| rng.next() as u8).collect();
            drop(bytes.splice(at..at, random));
        }
        9 => {
            let other = &corpus[rng.below(corpus.len())];
            let copied = other[rng.piece(other.len())].to_vec();
            let over = rng.piece(bytes.len());
            drop(bytes.splice(over, copied));
        }
        10 => {
            let other = &corpus[rng.below(corpus.len())];
            let from = rng.below(other.len() + 1);
            bytes.truncate(at);
            bytes.extend(&other[from..]);
        }
        _ => bytes.truncate(at),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaks_on_a_z(bytes: &[u8]) {
        assert!(!bytes.contains(&b'z'), "a z");
    }

    fn breaks_in_a_thread(bytes: &[u8]) {
        let bad = bytes.contains(&b'z');
        let _ = std::thread::spawn(move || assert!(!bad, "unseen")).join();
    }

    const BROKEN: Target =
        Target { name: "self-test", run: breaks_on_a_z, seeds: Vec::new, max_bytes: 100 };

    #[test]
    fn a_bug_is_found_made_small_and_saved() {
        static TARGET: Target = BROKEN;
        let corpus = [b"yyyyyyyy".to_vec(), vec![b'x'; 90]];
        let failure = fuzz(&TARGET, &corpus, Duration::from_secs(60), 1).unwrap_err();
        assert_eq!(std::fs::read(&failure.saved).unwrap(), b"z", "{failure}");
        std::fs::remove_file(&failure.saved).unwrap();
    }

    #[test]
    fn a_panic_that_a_thread_swallows_is_seen() {
        let target = Target { run: breaks_in_a_thread, ..BROKEN };
        assert_eq!(run_once(&target, b"a"), Ok(()));
        assert!(run_once(&target, b"z").unwrap_err().contains("unseen"));
    }

    #[test]
    fn the_same_seed_gives_the_same_inputs() {
        let corpus = [b"one".to_vec(), b"another".to_vec()];
        let inputs = |seed| {
            let mut rng = Rng(seed);
            (0..100).map(|_| mutate(&mut rng, &corpus, 50)).collect::<Vec<_>>()
        };
        assert_eq!(inputs(3), inputs(3));
        assert_ne!(inputs(3), inputs(4));
    }
}
