//! What no giver, no receiver and no home may have done, made of what they did.

use super::{effect, event, kind, trace};
use crate::trace::{Forged, Trace};
use crate::value::Value;

/// Of a handoff that came to its end before the giver's capability was revoked, when all calls had been answered and the
/// giver lived: what cannot have been, the last step of each being the one that is wrong; and what can.
///
/// # Errors
/// It was no such handoff.
pub fn forged(events: &[Value]) -> Result<(Forged, Forged), String> {
    let run = Edited(events);
    let settled = run.first("settle")?;
    let asked = run.first("withdraw")?;
    let granted = run.first("granted")?;
    let withdrawn = run.first("withdrawn")?;
    let direct = run.first("go_direct")?;
    let proxied = run.first("proxied")?;
    let revoked = run.first("revoke")?;
    let next = run.next_call(revoked);
    let call = |n: i64| event("call", &[("n", n)]);
    let t = |kind: &str| event(kind, &[("t", 1)]);
    let only = |kind: &str| event(kind, &[]);
    let refused = effect("proxied", events[proxied].at("n").int(), false);
    let after = |took| -> Trace {
        let more = [call(next), effect("direct", next, took)];
        trace(&[&events[..=revoked], &more].concat())
    };
    let wrong = vec![
        ("the ticket works again", run.then(granted, t("granted"))),
        ("it goes direct before it was flushed", run.then(withdrawn, only("go_direct"))),
        ("the giver lets go before it is told", run.then(withdrawn, only("release"))),
        ("a call after the revocation", after(true)),
        ("a call that nobody made", run.then(direct, call(99))),
        ("the giver gives what it has not", run.then(settled, t("offer"))),
        ("the home gives before anybody asks", run.instead(asked, t("granted"))),
        ("the home says that all has come before it has", run.then(withdrawn, t("flushed"))),
        ("it calls while it has to wait", run.then(withdrawn, call(run.next_call(withdrawn)))),
        ("a call takes effect twice", run.then(proxied, events[proxied].clone())),
        ("a call is refused before the revocation", run.instead(proxied, refused)),
        ("the giver passes on what nobody sent", run.then(settled, event("forward", &[("n", 1)]))),
        ("the home ends what goes on", run.then(direct, only("giver_session_ends"))),
    ];
    let fine = vec![
        ("a call after the revocation is refused", after(false)),
        ("the giver dies", run.then(direct, only("giver_dies"))),
    ];
    Ok((wrong, fine))
}

struct Edited<'r>(&'r [Value]);

impl Edited<'_> {
    fn first(&self, wanted: &str) -> Result<usize, String> {
        let place = self.0.iter().position(|event| kind(event) == wanted);
        place.ok_or_else(|| format!("nowhere in this run: {wanted}"))
    }

    /// The number of the next call behind this event.
    fn next_call(&self, behind: usize) -> i64 {
        let made = self.0[..=behind].iter().filter(|event| kind(event) == "call").count();
        i64::try_from(made).unwrap_or(i64::MAX - 1) + 1
    }

    /// The events up to this one, and another one.
    fn then(&self, last: usize, more: Value) -> Trace {
        trace(&[&self.0[..=last], &[more]].concat())
    }

    /// The events before this one, and another one.
    fn instead(&self, of: usize, other: Value) -> Trace {
        trace(&[&self.0[..of], &[other]].concat())
    }
}
