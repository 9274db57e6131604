//! Memory that is erased when it is given back, in processes through which secrets pass.
//!
//! What we write ourselves erases its own buffers. Messages, the library for HPKE and whatever grows a vector free copies that
//! nobody erases; where [`Erasing`] is the process's allocator and was told to [begin](Erasing::begin), these are erased as
//! well, whoever made them. Before that it is the system's own, and costs one load for each deallocation.
//!
//! # What it does not do
//!
//! - It does not erase what is still in use, nor what is on stacks and in registers.
//! - It knows nothing of memory that did not come from it: pages that are mapped, and what C libraries allocate.
//! - It does not keep memory from being swapped or dumped: pages for secrets do (`distos_types::SecretBytes`).
#![deny(unsafe_code)]

mod alloc;

pub use alloc::Erasing;
