//! What becomes of a secret's bytes, as Linux sees this process's memory.
#![allow(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]
#![forbid(unsafe_code)]

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use distos_types::{HolderSecret, SecretPages, verify_signature};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use zeroize::Zeroize;

/// Tests of one process look at one memory.
static ALONE: Mutex<()> = Mutex::new(());

/// Byte `at` of the seed. Computed, so that what looks for the seed holds no copy of it.
fn seed_byte(at: usize) -> u8 {
    std::hint::black_box((at as u8).wrapping_mul(37) ^ 0xa5)
}

fn secret() -> HolderSecret {
    let fill = |seed: &mut [u8; 32]| {
        seed.iter_mut().enumerate().for_each(|(at, byte)| *byte = seed_byte(at));
        Ok::<(), ()>(())
    };
    HolderSecret::fill(fill).unwrap()
}

/// A mapping of this process: its addresses, whether it can be written, and Linux's flags.
struct Mapping {
    addresses: Range<usize>,
    writable: bool,
    flags: Vec<String>,
}

fn mappings() -> Vec<Mapping> {
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut found: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        let (first, rest) = line.split_once(' ').unwrap_or((line, ""));
        if let Some((from, to)) = first.split_once('-') {
            let number = |text: &str| usize::from_str_radix(text, 16).unwrap();
            let addresses = number(from)..number(to);
            found.push(Mapping { addresses, writable: rest.starts_with("rw"), flags: Vec::new() });
        } else if first == "VmFlags:" {
            let flags = rest.split_whitespace().map(str::to_owned).collect();
            found.last_mut().unwrap().flags = flags;
        }
    }
    found
}

fn mapping_at(address: usize) -> Option<Mapping> {
    mappings().into_iter().find(|mapping| mapping.addresses.contains(&address))
}

fn is_protected(mapping: &Mapping) -> bool {
    ["lo", "dd", "dc"].iter().all(|flag| mapping.flags.iter().any(|f| f == flag))
}

/// Where the seed stands in memory that can be written, but for this thread's own stack: there
/// stand copies of what was just computed.
fn places_of_the_seed() -> Vec<usize> {
    let mut buffer = vec![0; 64 << 10];
    let stack = (&raw const buffer).addr();
    let memory = File::open("/proc/self/mem").unwrap();
    let mut found = Vec::new();
    for mapping in mappings() {
        if !mapping.writable || mapping.addresses.contains(&stack) {
            continue;
        }
        let mut next = mapping.addresses.start;
        while next < mapping.addresses.end {
            let len = buffer.len().min(mapping.addresses.end - next);
            let got = memory.read_at(&mut buffer[..len], next as u64).unwrap_or(0);
            let is_seed = |bytes: &[u8]| bytes.iter().enumerate().all(|(i, b)| *b == seed_byte(i));
            let hits = buffer[..got].windows(32).enumerate().filter(|(_, bytes)| is_seed(bytes));
            found.extend(hits.map(|(at, _)| next + at));
            // The buffer is memory too, and must not be found.
            buffer.fill(0);
            // A seed may stand across the end of a piece.
            next += if next + len < mapping.addresses.end { len - 31 } else { len };
        }
    }
    found
}

#[test]
fn a_secret_is_kept_from_swap_core_files_and_children_and_nothing_is_left_of_it() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(SecretPages::now(), SecretPages::default());
    let secret = secret();
    assert_eq!(secret.exposure(), None, "this machine locks no memory: see ulimit -l");
    let place = secret.seed().as_ptr().addr();
    let mapping = mapping_at(place).unwrap();
    assert!(is_protected(&mapping), "{:?}", mapping.flags);
    assert_eq!(SecretPages::now().held, 1);

    let signature = secret.sign(b"message");
    assert_eq!(verify_signature(secret.key(), b"message", &signature), Ok(()));
    assert_eq!(places_of_the_seed(), [place], "the one place of the seed");
    let mut copy = Box::new(*secret.seed());
    let with_copy = places_of_the_seed();
    assert!(with_copy.contains(&copy.as_ptr().addr()), "a copy would be found");
    copy.zeroize();

    drop(secret);
    assert_eq!(places_of_the_seed(), [0; 0], "nothing is left");
    assert!(mapping_at(place).is_none_or(|mapping| !is_protected(&mapping)), "given back");
    assert_eq!(SecretPages::now().held, 0);
}

#[test]
fn a_secret_that_could_not_be_written_is_an_error_and_holds_no_page() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let failed = HolderSecret::fill(|_| Err("no randomness"));
    assert_eq!(failed.err(), Some("no randomness"));
    assert_eq!(SecretPages::now().held, 0);
}

const WITHOUT_LOCKS: &str = "DISTOS_TEST_WITHOUT_LOCKS";

#[test]
fn a_process_that_may_lock_no_memory_knows_that_its_secrets_are_exposed() {
    if std::env::var_os(WITHOUT_LOCKS).is_some() {
        return without_locks();
    }
    let name = "a_process_that_may_lock_no_memory_knows_that_its_secrets_are_exposed";
    let mut child = Command::new(std::env::current_exe().unwrap());
    let output = child.args(["--exact", name, "--nocapture"]).env(WITHOUT_LOCKS, "1").output();
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("1 passed"), "{said}");
}

/// The test's other half, in a process of its own: limits are a process's.
fn without_locks() {
    setrlimit(Resource::Memlock, Rlimit { current: Some(0), maximum: Some(0) }).unwrap();
    let none = CapabilitySet::empty();
    // Root may lock whatever the limit says.
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
        .unwrap();
    let secret = secret();
    let why = secret.exposure().unwrap();
    assert!(why.starts_with("not locked: "), "{why}");
    assert_eq!(SecretPages::now(), SecretPages { held: 1, exposed: 1, why: Some(why.to_owned()) });
    assert_eq!(SecretPages::trial(), Err(why.to_owned()));
    // It serves all the same.
    let signature = secret.sign(b"message");
    assert_eq!(verify_signature(secret.key(), b"message", &signature), Ok(()));
    drop(secret);
    assert_eq!(SecretPages::now().exposed, 0);
}
