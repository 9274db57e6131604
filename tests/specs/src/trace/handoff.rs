//! The trace of a handoff between nodes, as `specs/handoff/Trace.tla` reads it.

use super::Trace;
use crate::value::Value;

/// The folder in `specs/` of the model.
pub const SPEC: &str = "handoff";

/// One event: its kind, with the number of a call or ticket.
pub fn event(kind: &str, numbers: &[(&str, i64)]) -> Value {
    let named = numbers.iter().map(|(name, n)| ((*name).to_owned(), Value::from(*n)));
    Value::Record([("event".to_owned(), Value::text(kind))].into_iter().chain(named).collect())
}

/// What a call came to at the home: by which way it came, and whether it took effect.
pub fn effect(way: &str, n: i64, took: bool) -> Value {
    let Value::Record(mut fields) = event(way, &[("n", n)]) else { return Value::Bool(took) };
    fields.insert("took".to_owned(), Value::Bool(took));
    Value::Record(fields)
}

/// They are what the model reads.
pub fn trace(events: &[Value]) -> Trace {
    Trace::of(events.to_vec())
}
