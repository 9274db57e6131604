//! Checks the TLA+ specifications of `specs/`, and ties them to the code: what TLC finds in the
//! models, whether it refuses their mutants, and whether `distos-core` does in every state what
//! the model says.
#![forbid(unsafe_code)]

pub mod checks;
pub mod compare;
pub mod faults;
pub mod replay;
pub mod second;
pub mod sections;
pub mod tlc;
pub mod trace;
pub mod value;
pub mod world;

use std::path::PathBuf;

/// The repository.
///
/// # Panics
/// The crate does not stand in it.
pub fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("tests/specs is two folders below the root").to_owned()
}
