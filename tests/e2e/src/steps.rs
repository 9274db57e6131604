//! What a test and its own programs do, written as services write their steps into a node's log, so that both can be
//! put into one order: all processes of a machine have the same clock.

use rustix::time::{ClockId, clock_gettime};

/// One step of the model of this name in `specs/`, which is about to be taken if others see it, and was taken just now
/// if it was seen; with its `fields`, as `NAME=VALUE` with blanks between.
pub fn step(model: &str, kind: &str, fields: &str) -> String {
    let time = clock_gettime(ClockId::Boottime);
    let at = i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec);
    format!("DEBUG distos::trace::{model}: {kind} at={at} {fields}")
}
