//! The trace of the audit service's log, as `specs/audit/Trace.tla` reads it.

use super::{Kind, Trace, recorded};
use crate::value::Value;

/// The folder in `specs/` of the model.
pub const SPEC: &str = "audit";

const KINDS: &[Kind] = &[
    ("open", &["size", "last_seq"]),
    ("append", &["first", "last", "size"]),
    ("synced", &["size"]),
    ("head", &["size"]),
    ("failed", &["size"]),
    ("settle", &["size"]),
    ("ack", &["up_to"]),
    ("checkpoint", &["size"]),
];

/// What the audit service wrote into the node's log.
///
/// # Errors
/// An event is of no known kind or lacks a field.
pub fn events(log: &str) -> Result<Vec<Value>, String> {
    recorded(log, SPEC, KINDS)
}

/// They are what the model reads.
pub fn trace(events: &[Value]) -> Trace {
    Trace::of(events.to_vec())
}
