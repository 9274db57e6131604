//! The stores, what is done to them, and what they are held to.

pub mod audit;
pub mod journal;
pub mod memory;
