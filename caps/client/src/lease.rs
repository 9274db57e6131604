//! Leases: for how long somebody may go on in a capability's name without a word of its home
//! (`specs/revocation`). For whatever cannot ask at each use: a program that runs, a page that is mapped.
//!
//! **Bound.** What is held by a lease ends at the latest *Term* + *Skew* after a revocation began, whether or
//! not anything of it is heard: a lease runs for *Term* from when its holder **asked**, the home answers
//! only while the capability lives, and *Skew* is by how much the holder's clock may run slower than the
//! home's in that time. When the home is heard, it ends as soon as its answer is there.

use std::time::Duration;

use capnp::capability::FromClientHook;
use distos_abi::Fault;
use distos_schemas::capability_capnp::capability;

use crate::fault_of;

/// A lease, by a clock that goes on while the machine sleeps. Times are in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    term_ms: u64,
    until_ms: u64,
}

impl Lease {
    /// A lease of so long on what was asked for at `asked_ms`, and then given: it was alive after that.
    pub fn given(term: Duration, asked_ms: u64) -> Lease {
        let term_ms = u64::try_from(term.as_millis()).unwrap_or(u64::MAX);
        Lease { term_ms, until_ms: asked_ms.saturating_add(term_ms) }
    }

    /// The home has answered, to what was asked at `asked_ms`, that the capability lives. An answer that comes
    /// late lengthens nothing: it is counted from when it was asked for.
    pub fn renew(&mut self, asked_ms: u64) {
        self.until_ms = self.until_ms.max(asked_ms.saturating_add(self.term_ms));
    }

    /// How long it still lasts; `None` if it is over.
    pub fn lasts(&self, now_ms: u64) -> Option<Duration> {
        let left_ms = self.until_ms.saturating_sub(now_ms);
        (left_ms > 0).then(|| Duration::from_millis(left_ms))
    }

    /// How long the home is to wait before it says that the capability lives, if nothing else is to be said:
    /// two answers may be lost.
    pub fn wait(&self) -> Duration {
        Duration::from_millis(self.term_ms / 3)
    }
}

/// How often it is looked whether a lease is over: the runtime's clock stands still while the machine sleeps.
const LOOK: Duration = Duration::from_millis(100);

/// Resolves with what `work` does; `None` if the lease is over before.
async fn within<T>(
    lease: Lease,
    now_ms: &impl Fn() -> u64,
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut work = std::pin::pin!(work);
    while let Some(lasts) = lease.lasts(now_ms()) {
        if let Ok(done) = tokio::time::timeout(lasts.min(LOOK), &mut work).await {
            return Some(done);
        }
    }
    None
}

/// Resolves when `cap` has ended, as soon as its home says so, or else `term` after it was last asked whether it
/// lives and said so; with how, or [`Fault::Unavailable`] if that is not known. It was asked for at `asked_ms`, and
/// given. `now_ms` is a clock that never goes back and does not stop while the machine sleeps.
pub async fn lost<C: FromClientHook>(
    cap: C,
    term: Duration,
    asked_ms: u64,
    now_ms: impl Fn() -> u64,
) -> Fault {
    let cap: capability::Client = FromClientHook::new(cap.into_client_hook());
    let mut lease = Lease::given(term, asked_ms);
    let over = || Fault::unavailable(1000, "the home of what it works on does not answer");
    loop {
        let asked_ms = now_ms();
        let mut request = cap.watch_request();
        request.get().set_wait_ms(u32::try_from(lease.wait().as_millis()).unwrap_or(u32::MAX));
        match within(lease, &now_ms, request.send().promise).await {
            Some(Ok(_)) => lease.renew(asked_ms),
            Some(Err(error)) => match fault_of(&error) {
                // It may answer again. Not asked without pause.
                Fault::Unavailable { .. } => {
                    let rest = tokio::time::sleep(lease.wait());
                    if within(lease, &now_ms, rest).await.is_none() {
                        return over();
                    }
                }
                fault => return fault,
            },
            None => return over(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERM: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn a_lease_that_ended_while_the_machine_slept_is_over_when_it_wakes() {
        let (now_ms, begun) = (std::cell::Cell::new(1000), std::time::Instant::now());
        let clock = || now_ms.get();
        let lease = Lease::given(Duration::from_secs(3600), 1000);
        let asleep = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            now_ms.set(1000 + 3_600_000);
            std::future::pending::<()>().await;
        };
        assert_eq!(within(lease, &clock, asleep).await, None);
        assert!(begun.elapsed() < Duration::from_secs(60));
        assert_eq!(within(Lease::given(TERM, clock()), &clock, async { 7 }).await, Some(7));
    }

    /// Whoever holds a lease without a word of its home stops in time, whatever arrives how late.
    #[test]
    fn a_lease_runs_from_when_it_was_asked_for() {
        let mut lease = Lease::given(TERM, 1000);
        assert_eq!(lease.lasts(1000), Some(TERM));
        assert_eq!(lease.lasts(5999), Some(Duration::from_millis(1)));
        assert_eq!(lease.lasts(6000), None);
        // Asked at 3000, answered much later.
        lease.renew(3000);
        assert_eq!(lease.lasts(7999), Some(Duration::from_millis(1)));
        assert_eq!(lease.lasts(8000), None);
        // An answer to an earlier question, which overtook nothing.
        lease.renew(2000);
        assert_eq!(lease.lasts(7999), Some(Duration::from_millis(1)));
        lease.renew(u64::MAX);
        assert!(lease.lasts(u64::MAX - 1).is_some());
    }
}
