//! Crashes of the stores, each at every moment of a recorded run.
//!
//! A small program (`distos-crash work`) uses a store's production code and says on standard output
//! what it asks for and what it is told. It runs under strace, so that the real system calls are
//! recorded in order, data and syncs included ([`trace`]). Cut at any moment, the record says what
//! a crash may leave ([`disk`]): what was synced, and any part of what was not. Each such disk is
//! laid out in a directory and given to the store to recover ([`explore`]), which is then held to
//! what the program had been told ([`workload`]): whatever was acknowledged is there, whatever was
//! revoked or dropped is not, and nothing is there that nobody asked for.
//!
//! A process that is killed loses nothing that Linux has, so that killing can't show a missing
//! sync. This does.
#![forbid(unsafe_code)]

pub mod disk;
pub mod explore;
pub mod trace;
pub mod workload;

/// Numbers that a seed determines (SplitMix64, Steele et al. 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next one.
    #[expect(clippy::should_implement_trait, reason = "it has no end")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// One below `bound`, which is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// So many bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).take(len).collect()
    }
}

/// What a workload says. One call of `write`, so that strace has it whole.
pub fn say(line: std::fmt::Arguments<'_>) {
    let line = format!("{line}\n");
    let written = rustix::io::write(rustix::stdio::stdout(), line.as_bytes());
    assert_eq!(written, Ok(line.len()), "what is said is heard whole");
}
