//! Faults: what went wrong, who is at fault, and what to do. The codes here are the codes
//! everywhere: in RPC exceptions, exit codes, audit records and metrics.

use core::fmt;

use crate::{ByteRange, Rights};

/// What a quota counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Meter {
    /// Bytes held in regions.
    Bytes,
    /// Tasks queued or running.
    Tasks,
    /// Capability slots.
    Slots,
    /// Calls a second.
    Rate,
    /// Calls in flight on one connection.
    Calls,
}

impl Meter {
    const NAMES: [(Meter, &'static str); 5] = [
        (Meter::Bytes, "bytes"),
        (Meter::Tasks, "tasks"),
        (Meter::Slots, "slots"),
        (Meter::Rate, "rate"),
        (Meter::Calls, "calls"),
    ];

    fn name(self) -> &'static str {
        Meter::NAMES.iter().find(|(m, _)| *m == self).map_or("?", |(_, name)| name)
    }
}

/// Every way in which DistOS refuses or fails, the same in RPC, on the command line and in the
/// audit log.
///
/// Over RPC a fault travels as a Cap'n Proto exception whose reason is [`Fault::to_wire`]; a
/// client in any language can read the code and the fields from that line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The holder lacks a right, or its capability does not reach these bytes.
    Denied {
        /// The rights that would have been needed.
        missing: Rights,
        /// The bytes for which they would have been needed; `None` if for the whole object.
        range: Option<ByteRange>,
    },
    /// The capability, or one it was derived from, was revoked.
    Revoked,
    /// The capability's time is over.
    Expired {
        /// When it ended, in milliseconds since the Unix epoch.
        at_ms: u64,
    },
    /// A quota or rate limit is reached.
    OverQuota {
        /// What is counted.
        meter: Meter,
        /// The limit.
        limit: u64,
        /// What this request would have brought the count to.
        wanted: u64,
    },
    /// The node's evidence is older than the freshness bound, or was refused (A2, S1).
    StaleAttestation(String),
    /// There is no such object, or the holder may not know whether there is one.
    NotFound(String),
    /// The request, file or message is broken; says where.
    Malformed(String),
    /// Not now: the service is starting, draining, full or was restarted.
    Unavailable {
        /// When to try again, in milliseconds.
        retry_after_ms: u64,
        /// Why, and what to do.
        why: String,
    },
    /// A derivation would be deeper than [`crate::MAX_DEPTH`].
    TooDeep,
    /// It exists already.
    Exists(String),
    /// A program went past its fuel, time, memory or output limit (S2); says which.
    LimitExceeded(String),
    /// A program ended by itself with an error; says which.
    ProgramFailed(String),
    /// A holder did not prove possession of its key, or a signature is wrong (C4).
    Unauthenticated(String),
    /// Data is gone or does not match its checksum (M2, M3); it is never served as zeros.
    Corrupt(String),
    /// Something on this node failed that no caller can mend: an I/O error, a broken invariant.
    Internal(String),
}

/// Free text in a fault is cut to this many bytes on the wire.
const MAX_TEXT_BYTES: usize = 512;
const WIRE_PREFIX: &str = "distos:";

impl Fault {
    /// A missing right over the whole object.
    pub fn denied(missing: Rights) -> Fault {
        Fault::Denied { missing, range: None }
    }

    /// A broken request; `what` says where.
    pub fn malformed(what: impl Into<String>) -> Fault {
        Fault::Malformed(what.into())
    }

    /// Something absent.
    pub fn not_found(what: impl Into<String>) -> Fault {
        Fault::NotFound(what.into())
    }

    /// A failure of this node's own.
    pub fn internal(what: impl fmt::Display) -> Fault {
        Fault::Internal(what.to_string())
    }

    /// A passing failure with the time to wait.
    pub fn unavailable(retry_after_ms: u64, why: impl Into<String>) -> Fault {
        Fault::Unavailable { retry_after_ms, why: why.into() }
    }

    /// The stable code: the process's exit code on the command line, 10 to 24.
    pub fn code(&self) -> u8 {
        match self {
            Fault::Denied { .. } => 10,
            Fault::Revoked => 11,
            Fault::Expired { .. } => 12,
            Fault::OverQuota { .. } => 13,
            Fault::StaleAttestation(_) => 14,
            Fault::NotFound(_) => 15,
            Fault::Malformed(_) => 16,
            Fault::Unavailable { .. } => 17,
            Fault::TooDeep => 18,
            Fault::Exists(_) => 19,
            Fault::LimitExceeded(_) => 20,
            Fault::ProgramFailed(_) => 21,
            Fault::Unauthenticated(_) => 22,
            Fault::Corrupt(_) => 23,
            Fault::Internal(_) => 24,
        }
    }

    /// The stable name of the code.
    pub fn name(&self) -> &'static str {
        match self {
            Fault::Denied { .. } => "denied",
            Fault::Revoked => "revoked",
            Fault::Expired { .. } => "expired",
            Fault::OverQuota { .. } => "over-quota",
            Fault::StaleAttestation(_) => "stale-attestation",
            Fault::NotFound(_) => "not-found",
            Fault::Malformed(_) => "malformed",
            Fault::Unavailable { .. } => "unavailable",
            Fault::TooDeep => "too-deep",
            Fault::Exists(_) => "exists",
            Fault::LimitExceeded(_) => "limit-exceeded",
            Fault::ProgramFailed(_) => "program-failed",
            Fault::Unauthenticated(_) => "unauthenticated",
            Fault::Corrupt(_) => "corrupt",
            Fault::Internal(_) => "internal",
        }
    }

    /// One line: `distos:NAME;key=value;…: text`. The text is for people; the rest is stable.
    pub fn to_wire(&self) -> String {
        let fields = match self {
            Fault::Denied { missing, range: None } => format!(";missing={missing}"),
            Fault::Denied { missing, range: Some(r) } => {
                format!(";missing={missing};start={};end={}", r.start, r.end)
            }
            Fault::Expired { at_ms } => format!(";at={at_ms}"),
            Fault::OverQuota { meter, limit, wanted } => {
                format!(";meter={};limit={limit};wanted={wanted}", meter.name())
            }
            Fault::Unavailable { retry_after_ms, .. } => format!(";retry={retry_after_ms}"),
            _ => String::new(),
        };
        let text = match self.text() {
            Some(text) => printable(text),
            None => self.to_string(),
        };
        format!("{WIRE_PREFIX}{}{fields}: {text}", self.name())
    }

    /// Reads [`Fault::to_wire`]'s line wherever it stands in an exception's text. `None` if the
    /// text is no fault of ours: the caller decides what a foreign error means. The free text is
    /// cut and made printable here too: whoever sends the line need not have used
    /// [`Fault::to_wire`], and people read it on their terminals.
    pub fn from_wire(reason: &str) -> Option<Fault> {
        let at = reason.find(WIRE_PREFIX)? + WIRE_PREFIX.len();
        let (head, text) = reason[at..].split_once(": ")?;
        let mut words = head.split(';');
        let name = words.next()?;
        let fields: Vec<(&str, &str)> = words.filter_map(|w| w.split_once('=')).collect();
        let field = |key: &str| fields.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
        let number = |key: &str| field(key).and_then(|v| v.parse::<u64>().ok());
        let text = printable(text);
        Some(match name {
            "denied" => Fault::Denied {
                missing: Rights::from_shown(field("missing")?)?,
                range: number("start")
                    .zip(number("end"))
                    .map(|(start, end)| ByteRange { start, end }),
            },
            "revoked" => Fault::Revoked,
            "expired" => Fault::Expired { at_ms: number("at")? },
            "over-quota" => Fault::OverQuota {
                meter: Meter::NAMES.iter().find(|(_, n)| Some(*n) == field("meter"))?.0,
                limit: number("limit")?,
                wanted: number("wanted")?,
            },
            "stale-attestation" => Fault::StaleAttestation(text),
            "not-found" => Fault::NotFound(text),
            "malformed" => Fault::Malformed(text),
            "unavailable" => Fault::Unavailable { retry_after_ms: number("retry")?, why: text },
            "too-deep" => Fault::TooDeep,
            "exists" => Fault::Exists(text),
            "limit-exceeded" => Fault::LimitExceeded(text),
            "program-failed" => Fault::ProgramFailed(text),
            "unauthenticated" => Fault::Unauthenticated(text),
            "corrupt" => Fault::Corrupt(text),
            "internal" => Fault::Internal(text),
            _ => return None,
        })
    }

    fn text(&self) -> Option<&str> {
        match self {
            Fault::StaleAttestation(t)
            | Fault::NotFound(t)
            | Fault::Malformed(t)
            | Fault::Exists(t)
            | Fault::LimitExceeded(t)
            | Fault::ProgramFailed(t)
            | Fault::Unauthenticated(t)
            | Fault::Corrupt(t)
            | Fault::Internal(t)
            | Fault::Unavailable { why: t, .. } => Some(t),
            _ => None,
        }
    }
}

/// At most [`MAX_TEXT_BYTES`] of a text, without control characters.
fn printable(text: &str) -> String {
    let mut cut = text.len().min(MAX_TEXT_BYTES);
    while !text.is_char_boundary(cut) {
        cut -= 1;
    }
    text[..cut].chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Denied { missing, range: None } => {
                write!(f, "denied: this capability lacks the right to {missing}")
            }
            Fault::Denied { missing, range: Some(r) } => {
                write!(
                    f,
                    "denied: this capability lacks the right to {missing} bytes {}..{}",
                    r.start, r.end
                )
            }
            Fault::Revoked => f.write_str("revoked: ask whoever delegated it for a new capability"),
            Fault::Expired { at_ms } => write!(f, "expired: it ended {at_ms} ms after 1970"),
            Fault::OverQuota { meter, limit, wanted } => {
                write!(f, "over quota: {} would reach {wanted}, the limit is {limit}", meter.name())
            }
            Fault::StaleAttestation(t) => write!(f, "stale attestation: {t}"),
            Fault::NotFound(t) => write!(f, "not found: {t}"),
            Fault::Malformed(t) => write!(f, "malformed: {t}"),
            Fault::Unavailable { retry_after_ms: 0, why } => write!(f, "unavailable: {why}"),
            Fault::Unavailable { retry_after_ms, why } => {
                write!(f, "unavailable: {why} (try again in {retry_after_ms} ms)")
            }
            Fault::TooDeep => {
                write!(f, "too deep: a derivation has at most {} steps", crate::MAX_DEPTH)
            }
            Fault::Exists(t) => write!(f, "exists already: {t}"),
            Fault::LimitExceeded(t) => write!(f, "limit exceeded: {t}"),
            Fault::ProgramFailed(t) => write!(f, "the program failed: {t}"),
            Fault::Unauthenticated(t) => write!(f, "not authenticated: {t}"),
            Fault::Corrupt(t) => write!(f, "corrupt: {t}"),
            Fault::Internal(t) => write!(f, "internal: {t}"),
        }
    }
}

impl core::error::Error for Fault {}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Fault> {
        let text = || "why; k=v: really".to_owned();
        vec![
            Fault::denied(Rights::WRITE),
            Fault::Denied { missing: Rights::READ, range: Some(ByteRange { start: 1, end: 2 }) },
            Fault::denied(Rights::NONE),
            Fault::denied(Rights::READ.join(Rights(1 << 40))),
            Fault::denied(Rights(1 << 40)),
            Fault::Revoked,
            Fault::Expired { at_ms: 9 },
            Fault::OverQuota { meter: Meter::Tasks, limit: 4, wanted: 5 },
            Fault::StaleAttestation(text()),
            Fault::NotFound(text()),
            Fault::Malformed(text()),
            Fault::Unavailable { retry_after_ms: 100, why: text() },
            Fault::TooDeep,
            Fault::Exists(text()),
            Fault::LimitExceeded(text()),
            Fault::ProgramFailed(text()),
            Fault::Unauthenticated(text()),
            Fault::Corrupt(text()),
            Fault::Internal(text()),
        ]
    }

    #[test]
    fn a_caller_can_tell_every_fault_from_every_other_across_the_wire() {
        for fault in all() {
            let reason = format!("remote exception: {}", fault.to_wire());
            assert_eq!(Fault::from_wire(&reason), Some(fault));
        }
    }

    #[test]
    fn text_on_the_wire_is_bounded_and_printable() {
        let long = Fault::Internal(format!("a\nb{}", "é".repeat(4000)));
        let wire = long.to_wire();
        assert!(wire.len() < 600);
        assert!(!wire.contains('\n'));
        let hostile = format!("distos:not-found: \u{1b}[2J{}", "x".repeat(4000));
        let Some(Fault::NotFound(text)) = Fault::from_wire(&hostile) else { panic!("no fault") };
        assert!(text.len() <= MAX_TEXT_BYTES && !text.contains(char::is_control), "{text:?}");
        assert_eq!(Fault::from_wire("some other error"), None);
        assert_eq!(Fault::from_wire("distos:denied;missing=fly: x"), None);
    }
}
