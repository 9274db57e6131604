//! Programs that were compiled lately, so that a tenant's next job need not wait for the compiler.
//! Pure. An executor has one tenant's programs only, so nobody learns from the time that a job takes
//! what another has run.

use std::collections::VecDeque;

use crate::program::MAX_MODULE_BYTES;

/// The most programs that are kept.
const MAX_PROGRAMS: usize = 8;
/// The most bytes of their modules together. What was compiled from them takes a few times that.
const MAX_BYTES: usize = MAX_MODULE_BYTES;

/// A module's BLAKE3 hash.
pub(crate) type ModuleHash = [u8; 32];

/// The programs, the one that was used last first.
pub(crate) struct Programs<P> {
    kept: VecDeque<Kept<P>>,
}

struct Kept<P> {
    hash: ModuleHash,
    module_bytes: usize,
    program: P,
}

impl<P: Clone> Programs<P> {
    /// No programs.
    pub(crate) fn new() -> Programs<P> {
        Programs { kept: VecDeque::new() }
    }

    /// The program of a module, if it is kept.
    pub(crate) fn find(&mut self, hash: &ModuleHash) -> Option<P> {
        let at = self.kept.iter().position(|kept| kept.hash == *hash)?;
        let kept = self.kept.remove(at)?;
        let program = kept.program.clone();
        self.kept.push_front(kept);
        Some(program)
    }

    /// Keeps a program, in place of those that were not used for longest.
    pub(crate) fn keep(&mut self, hash: ModuleHash, module_bytes: usize, program: P) {
        self.kept.retain(|kept| kept.hash != hash);
        self.kept.push_front(Kept { hash, module_bytes, program });
        let bytes = |kept: &VecDeque<Kept<P>>| kept.iter().map(|k| k.module_bytes).sum::<usize>();
        while self.kept.len() > MAX_PROGRAMS || bytes(&self.kept) > MAX_BYTES {
            self.kept.pop_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_by_its_module_until_others_have_taken_its_place() {
        let mut programs = Programs::new();
        assert_eq!(programs.find(&[1; 32]), None);
        for n in 1..=MAX_PROGRAMS as u8 {
            programs.keep([n; 32], 10, n);
        }
        assert_eq!(programs.find(&[1; 32]), Some(1), "it is used again and stays");
        programs.keep([99; 32], 10, 99);
        assert_eq!(programs.find(&[2; 32]), None, "the one that was not used for longest goes");
        assert_eq!((programs.find(&[1; 32]), programs.find(&[99; 32])), (Some(1), Some(99)));
    }

    #[test]
    fn large_modules_do_not_fill_an_executors_memory() {
        let mut programs = Programs::new();
        for n in 0..10 {
            programs.keep([n; 32], MAX_BYTES / 3, n);
        }
        assert_eq!(programs.kept.len(), 3);
        programs.keep([7; 32], MAX_BYTES + 1, 7);
        assert_eq!(programs.find(&[7; 32]), None, "what never fits is not kept");
    }
}
