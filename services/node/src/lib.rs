//! The composition root: images, the node's control service and the `distos` binary. It alone
//! names every service.
//!
//! The node service holds the kernel's control power and nothing else. It hands none of it on:
//! each method checks the right that it needs, and what the kernel answers is copied.
#![forbid(unsafe_code)]

pub mod cli;
pub mod image;
pub mod operator;
pub mod paths;
pub mod server;
pub mod signature;
pub mod vat;
