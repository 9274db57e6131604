//! Fuzzing: one thin target for every decoder that bytes from outside reach.
//!
//! A target is a function of bytes that panics when a promise about those bytes is broken: that
//! what is refused is refused with a fault, that what is accepted has one encoding, that nothing is
//! granted to whoever did not prove possession of a key. Two engines run the same targets:
//! [`driver`], which mutates the corpus and needs nothing but stable Rust (`make test`), and
//! libFuzzer, which also learns from coverage (`make fuzz`).
//!
//! `corpus/TARGET/` holds seeds, which the real encoders wrote (`cargo run -p distos-fuzz --bin
//! seeds`); `findings/TARGET/` holds every input that once broke something, and is replayed by
//! every test run.
//!
//! What it does not do: it tries no two processes at a time, and no file system or network that
//! misbehaves; `tests/e2e` does.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    reason = "a target stops at the first thing that is not as it should be"
)]

pub mod driver;
mod input;
pub mod rpc;
mod targets;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use input::Input;
pub use targets::TARGETS;

/// One target.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and that of its folders.
    pub name: &'static str,
    /// Takes any bytes; panics if something is wrong.
    pub run: fn(&[u8]),
    /// What the corpus begins with, by file name.
    pub seeds: fn() -> Vec<(String, Vec<u8>)>,
    /// The longest input that is tried.
    pub max_bytes: usize,
}

/// How long each target runs where nobody says otherwise.
const DEFAULT_TIME: Duration = Duration::from_secs(8);
/// By how much others come first.
const NICE: i32 = 5;

/// The target of this name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// This crate's folder of that name, for one target.
pub fn folder(kind: &str, target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(kind).join(target)
}

/// Every file of a target's folder, in the order of their names.
pub fn files(kind: &str, target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let Ok(entries) = std::fs::read_dir(folder(kind, target)) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// Runs a target on its findings and its corpus, and then on mutations of them for as long as
/// `DISTOS_FUZZ_S` says (8 seconds). `DISTOS_FUZZ_SEED` repeats an earlier run.
pub fn check(name: &str) {
    // It takes whatever time it is given; tests beside it wait for something. Where this is not allowed nothing is lost.
    let _ = rustix::process::nice(NICE);
    let target = target(name).unwrap_or_else(|| panic!("there is no target '{name}'"));
    let seconds = std::env::var("DISTOS_FUZZ_S").ok().map(|text| {
        let seconds = text.parse().unwrap_or_else(|_| panic!("DISTOS_FUZZ_S: '{text}'"));
        Duration::from_secs(seconds)
    });
    let seed = std::env::var("DISTOS_FUZZ_SEED").ok().map_or_else(driver::any_seed, |text| {
        text.parse().unwrap_or_else(|_| panic!("DISTOS_FUZZ_SEED: '{text}'"))
    });
    let mut corpus: Vec<Vec<u8>> = Vec::new();
    for kind in ["findings", "corpus"] {
        for (path, bytes) in files(kind, name) {
            if let Err(what) = driver::run_once(target, &bytes) {
                panic!("{name} fails on {}: {what}", path.display());
            }
            corpus.push(bytes);
        }
    }
    assert!(!corpus.is_empty(), "{name} has no corpus: run `cargo run -p distos-fuzz --bin seeds`");
    match driver::fuzz(target, &corpus, seconds.unwrap_or(DEFAULT_TIME), seed) {
        Ok(runs) => eprintln!("{name}: {runs} inputs, seed {seed}"),
        Err(failure) => panic!("{failure}"),
    }
}
