//! The trace of leases and revocations between nodes, as `specs/revocation/Trace.tla` reads it.

use super::Trace;
use crate::value::Value;

/// The folder in `specs/` of the model.
pub const SPEC: &str = "revocation";

/// One event: its kind, with the names of capabilities or nodes.
pub fn event(kind: &str, names: &[(&str, &str)]) -> Value {
    let named = names.iter().map(|(field, name)| ((*field).to_owned(), Value::text(name)));
    Value::Record([("event".to_owned(), Value::text(kind))].into_iter().chain(named).collect())
}

/// One of the steps of the `s`-th question for a capability.
pub fn question(kind: &str, c: &str, s: i64) -> Value {
    let Value::Record(mut fields) = event(kind, &[("c", c)]) else { return Value::from(s) };
    fields.insert("s".to_owned(), Value::from(s));
    Value::Record(fields)
}

/// They are what the model reads.
pub fn trace(events: &[Value]) -> Trace {
    Trace::of(events.to_vec())
}
