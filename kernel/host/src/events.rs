//! What the kernel tells whoever started it.

use std::io::Write;

use distos_rpc::boot::Protection;
use serde::Serialize;

/// One JSON object a line on its standard output.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub(crate) enum Event<'a> {
    /// A vat serves.
    Vat { name: &'a str, pid: i32, protections: &'a [Protection] },
    /// A vat ended and is being started again.
    Restart { name: &'a str, why: &'a str },
    /// Every vat of the image serves.
    Ready { node: String, epoch: u32 },
    /// The node cannot go on.
    Failed { why: String },
    /// The node has stopped in order.
    Stopped,
}

/// Tells it. Nobody may be listening any more, which is no reason to stop.
pub(crate) fn emit(event: &Event<'_>) {
    if let Ok(line) = serde_json::to_string(event) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}
