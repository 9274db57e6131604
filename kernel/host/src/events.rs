//! What the kernel tells whoever started it.

use std::io::Write;

use distos_rpc::boot::Protection;
use serde::Serialize;

/// Something that happened to the node as a whole.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event<'a> {
    /// The kernel has its key.
    Kernel {
        /// Its process.
        pid: u32,
        /// What protects its memory.
        protections: &'a [Protection],
    },
    /// What the operator is given at this boot; comes before any vat.
    Operator {
        /// The text of the operator's capability file.
        file: String,
    },
    /// A vat serves.
    Vat {
        /// Its name.
        name: &'a str,
        /// Its process.
        pid: i32,
        /// What its sandbox was seen to enforce.
        protections: &'a [Protection],
    },
    /// A vat ended and is being started again.
    Restart {
        /// Its name.
        name: &'a str,
        /// How it ended.
        why: &'a str,
    },
    /// Every vat of the image serves.
    Ready {
        /// The node's public key.
        node: String,
        /// The boot's number.
        epoch: u32,
    },
    /// The node cannot go on.
    Failed {
        /// What to tell the operator.
        why: String,
    },
    /// The node has stopped in order.
    Stopped,
}

/// Tells it as one JSON object a line on standard output. Nobody may be listening any more, which
/// is no reason to stop.
pub(crate) fn emit(event: &Event<'_>) {
    if let Ok(line) = serde_json::to_string(event) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}
