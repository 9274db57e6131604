//! What this process has freed, as Linux sees its memory.
#![allow(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]
#![forbid(unsafe_code)]

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use distos_erasing::Erasing;

#[global_allocator]
static MEMORY: Erasing = Erasing::new();

/// Computed, so that what looks for it holds no copy of it.
fn byte_at(at: usize) -> u8 {
    std::hint::black_box((at as u8).wrapping_mul(37) ^ 0xa5)
}

const LONG: usize = 3000;

/// How often what is looked for stands in memory at these addresses.
fn found_near(address: usize) -> bool {
    let memory = File::open("/proc/self/mem").unwrap();
    // The allocator keeps notes of its own in the first bytes of what is free.
    let mut bytes = [0; 1000];
    memory.read_exact_at(&mut bytes, (address + 1000) as u64).unwrap();
    bytes.iter().enumerate().all(|(at, byte)| *byte == byte_at(at + 1000))
}

fn filled() -> Vec<u8> {
    (0..LONG).map(byte_at).collect()
}

/// One test: whoever else allocates could write over what is looked for.
#[test]
fn what_is_freed_or_outgrown_is_erased_once_that_was_asked_for() {
    let freed = filled();
    let address = freed.as_ptr().addr();
    drop(freed);
    assert!(found_near(address), "without erasing it stands there: this test can see it");
    MEMORY.begin();
    let freed = filled();
    let address = freed.as_ptr().addr();
    drop(freed);
    assert!(!found_near(address));
    let mut grown = filled();
    let address = grown.as_ptr().addr();
    grown.reserve_exact(1 << 20);
    assert!(grown.as_ptr().addr() == address || !found_near(address));
    assert!(grown.iter().enumerate().all(|(at, byte)| *byte == byte_at(at)), "it is all there");
    let mut shrunk = filled();
    shrunk.truncate(10);
    let address = shrunk.as_ptr().addr();
    shrunk.shrink_to_fit();
    assert!(!found_near(address));
    assert_eq!(shrunk, (0..10).map(byte_at).collect::<Vec<u8>>());
}
