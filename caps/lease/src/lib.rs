//! Leases: for how long somebody may go on in a capability's name without asking its home at each use
//! (`specs/revocation`). For programs that run and pages that are mapped, on the home's node or another.
//!
//! Two state machines, one at each end of a connection: [`Home`] lends and counts what is out, [`Holder`] uses
//! what it was lent. Neither has a clock, and neither sends: time, and what was heard, are arguments, and what is
//! to be said is returned. They do not decide what a capability allows, only whether it still may be used.
//!
//! **How it stays small.** What is lent is not single capabilities but their *lines*: a capability and what it
//! was derived from, up to its root. The holder keeps the lines as the home's table has them, so a revocation is
//! one number told to each holder, whatever hangs below it, and one question each third of a term keeps all leases
//! of a connection.
//!
//! **Bound.** What was lent has its last use at the latest *Term* + *Skew* after its revocation began, whether or
//! not anything is heard: a lease runs for *Term* from when its holder **asked**, and the home answers only for
//! what lives then. *Skew* is by how much the holder's clock may run slower than the home's in that time. Both
//! clocks must go on while their machines sleep.
#![forbid(unsafe_code)]

mod holder;
mod home;
mod lines;
mod watched;

pub use holder::{Ask, Holder, Leaf, Lost, NotLent};
pub use home::{Home, Lessee, Loan, News, Refused, Unheard};
pub use watched::Cursor;

/// How long leases last, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// From when the holder asked.
    pub term_ms: u64,
    /// What the home's clock may gain on a holder's in that time.
    pub skew_ms: u64,
}

impl Terms {
    /// What nodes use. Clocks that differ by one part in fifty keep it; quartz differs by one in ten thousand.
    pub const USUAL: Terms = Terms { term_ms: 5000, skew_ms: 100 };

    /// Within this time of its revocation, by the home's clock, nothing is used any more.
    pub const fn bound_ms(self) -> u64 {
        self.term_ms.saturating_add(self.skew_ms)
    }
}
