//! What no home and no holder may have done, made of what they did.

use super::{NS, Names, TERM_MS, ask, at, kind, link, listed, with};
use crate::trace::{Forged, Trace};
use crate::value::Value;

/// Of a run in which a revocation was heard by whom it concerned, and another by some only, so that it returned with
/// time left: what cannot have been, the last step of each being the one that is wrong; and what can.
///
/// # Errors
/// There was no such thing in the run; or what it is made of cannot be put into the model's terms.
pub fn forged(names: &Names, events: &[Value]) -> Result<(Forged, Forged), String> {
    let run = Edited { names, events };
    let is = |wanted: &'static str| move |event: &Value| kind(event) == wanted;
    let taken = run.first("a loan that is taken", is("take"))?;
    let asked = run.first("a question", is("ask"))?;
    let lent = run.first("a loan", is("grant"))?;
    let used = run.first("a use", is("use"))?;
    let renewed = run.first("a renewal", is("renewed"))?;
    let (told, x) = run.told()?;
    let before = run.last_use(told, |cap| names.is_below(cap, &x))?;
    let revoked = run.first("a revocation", |event| names_one(event, names, "revoke"))?;
    let ended = listed(&events[revoked], "slots");
    let is_ended = |event: &Value| {
        kind(event) == "grant"
            && listed(event, "slots").iter().any(|slot| ended.iter().any(|x| slot == x))
    };
    let granted = events[..revoked].iter().rposition(is_ended).ok_or("a loan of what ends")?;
    let Late { place: returned, over, last, x: above } = run.late()?;
    let left = events[returned].at("left").int();
    let too_early = over - 1000 * NS;

    let told_of = |place: usize| {
        let (told, key) = (&events[place], run.key_of(place, &x));
        let told =
            Value::record([("at", told.at("at").clone()), ("link", told.at("link").clone())]);
        with(told, "ended", Value::text(&key))
    };
    let heard = |kind: &str, place: usize| with(told_of(place), "event", Value::text(kind));
    let mut idle = with(events[used].clone(), "event", Value::text("idle"));
    idle = with(idle, "at", at(&events[used]) + 1);
    let untaken = with(events[taken].clone(), "event", Value::text("use"));
    let first_key = listed(&events[lent], "line").first().cloned().unwrap_or_default();
    let unasked = with(events[lent].clone(), "at", at(&events[asked]));
    let unfounded = Value::record([
        ("event", Value::text("hear")),
        ("at", Value::from(at(&events[taken]) + 1)),
        ("link", Value::text(&link(&events[taken]))),
        ("ended", Value::text(&first_key)),
    ]);
    let again = |place: usize| with(events[place].clone(), "at", at(&events[place]) + 1);
    let behind = |place: usize, of: usize| with(events[of].clone(), "at", at(&events[place]) + 1);
    let wrong = vec![
        ("it is used before it is lent", run.then(&events[..taken], untaken)?),
        ("it is lent before it was asked for", run.then(&events[..asked], unasked)?),
        ("an answer counts twice", run.then(&events[..=taken], again(taken))?),
        ("a renewal counts twice", run.then(&events[..=renewed], again(renewed))?),
        ("a lease is over before its time", run.then(&events[..=used], idle)?),
        ("somebody hears of what has not ended", run.then(&events[..=taken], unfounded)?),
        ("a lease lasts for more than a term", run.used_after(renewed, TERM_MS)?),
        ("it is used by whoever was told", run.then(&events[..=told], behind(told, before))?),
        ("nobody has heard it", run.then(&events[..told], heard("hear_ack", told))?),
        (
            "it is lent though it was revoked",
            run.then(&events[..=revoked], behind(revoked, granted))?,
        ),
        ("it returns though nobody has said that it knows", run.unheard()?),
        ("it returns a second too early", {
            let mut short = run.until(too_early);
            short[returned] = with(short[returned].clone(), "left", left - 1000);
            run.cut(&short, |event| kind(event) == "return" && event.at("x").str() == above)?
        }),
        ("it is used when that is over which was left", {
            let late = with(events[last].clone(), "at", over + 1);
            run.then(&run.until(over), late)?
        }),
    ];
    let told_idle = with(behind(told, before), "event", Value::text("idle"));
    let in_time = with(events[before].clone(), "at", at(&events[told]) - 1);
    let fine = vec![
        ("a lease lasts until its term is over", run.used_after(renewed, TERM_MS - 1)?),
        ("whoever was told stops", run.then(&events[..=told], told_idle)?),
        ("it is used before it was told", run.then(&events[..told], in_time)?),
    ];
    Ok((wrong, fine))
}

/// Whether this is a revocation of something that is lent.
fn names_one(event: &Value, names: &Names, wanted: &str) -> bool {
    kind(event) == wanted
        && listed(event, "slots").iter().any(|slot| names.lineage.contains_key(slot))
}

/// A revocation that returned with time left, because somebody was silent.
struct Late {
    /// Where it returns.
    place: usize,
    /// When that is over.
    over: i64,
    /// Where somebody uses what hangs from it for the last time before, and has not heard of it when it is over.
    last: usize,
    /// What was revoked.
    x: String,
}

struct Edited<'r> {
    names: &'r Names,
    events: &'r [Value],
}

impl Edited<'_> {
    fn first(&self, what: &str, found: impl Fn(&Value) -> bool) -> Result<usize, String> {
        let place = self.events.iter().position(found);
        place.ok_or_else(|| format!("nowhere in this run: {what}"))
    }

    fn until(&self, end: i64) -> Vec<Value> {
        self.events.iter().filter(|event| at(event) <= end).cloned().collect()
    }

    /// These events and one more, up to the first of the model's steps that stands for that one.
    fn then(&self, events: &[Value], more: Value) -> Result<Trace, String> {
        let known = self.names.trace(events)?.len();
        let trace = self.names.trace(&[events, &[more]].concat())?;
        let passed = trace.events()[known..].iter().take_while(|event| kind(event) == "elapse");
        let len = known + passed.count() + 1;
        Ok(trace.first(len))
    }

    /// These events, up to the first of the model's steps that is like this.
    fn cut(&self, events: &[Value], last: impl Fn(&Value) -> bool) -> Result<Trace, String> {
        let trace = self.names.trace(events)?;
        let place = trace.events().iter().position(last);
        let place = place.ok_or("nowhere in the trace: the last step")?;
        Ok(trace.first(place + 1))
    }

    /// A use of what this renewal is of, so many milliseconds after that was asked for, when nothing was heard since.
    fn used_after(&self, renewed: usize, ms: i64) -> Result<Trace, String> {
        let of = &self.events[renewed];
        let is_it = |event: &Value| kind(event) == "ask_again" && ask(event) == ask(of);
        let asked = self.first("its question", is_it)?;
        let is_used = |event: &Value| kind(event) == "use" && link(event) == link(of);
        let used = self.events[..asked].iter().rfind(|event| is_used(event));
        let used = used.ok_or("nowhere in this run: a use before a renewal")?;
        let then = with(used.clone(), "at", (at(&self.events[asked]) / NS + ms) * NS);
        self.then(&self.events[..=renewed], then)
    }

    /// The last use before this place of something like that.
    fn last_use(&self, before: usize, of: impl Fn(&str) -> bool) -> Result<usize, String> {
        let found = self.events[..before].iter().rposition(|event| {
            kind(event) == "use" && self.names.cap_of(event).is_ok_and(|cap| of(&cap))
        });
        found.ok_or_else(|| "nowhere in this run: a use of what ends".to_owned())
    }

    /// Where somebody hears for the first time that something has ended which it uses; and what.
    fn told(&self) -> Result<(usize, String), String> {
        for (place, event) in self.events.iter().enumerate() {
            if !matches!(kind(event), "hear" | "renewed") {
                continue;
            }
            for x in self.names.caps_of(event, "ended")? {
                let is_its = |cap: &str| {
                    self.names.is_below(cap, &x) && self.names.lent.get(cap) == Some(&link(event))
                };
                if self.last_use(place, is_its).is_ok() {
                    return Ok((place, x));
                }
            }
        }
        Err("nowhere in this run: somebody who hears of an end".to_owned())
    }

    /// What `x` is called by whom the event at `place` speaks to.
    fn key_of(&self, place: usize, x: &str) -> String {
        let to = link(&self.events[place]);
        let mut caps = self.names.caps.iter();
        let found = caps.find(|((link, _), cap)| *link == to && *cap == x);
        found.map_or_else(String::new, |((_, key), _)| key.clone())
    }

    /// The first return of a revocation that somebody had to hear of, though nobody has said that it has.
    fn unheard(&self) -> Result<Trace, String> {
        let is_prompt = |event: &&Value| {
            let revoke = self.revoke_of(event).map(|place| &self.events[place]);
            kind(event) == "return"
                && event.at("left").int() == 0
                && revoke.is_some_and(|revoke| names_one(revoke, self.names, "revoke"))
        };
        let place = self.events.iter().position(|event| is_prompt(&event));
        let place = place.ok_or("nowhere in this run: a revocation that is over at once")?;
        let told = self.events[..=place].iter();
        let told = told.filter(|event| !matches!(kind(event), "hear_ack" | "given_back"));
        let told: Vec<Value> = told.cloned().collect();
        self.cut(&told, |event| kind(event) == "return")
    }

    /// Where what returns here has begun.
    fn revoke_of(&self, returned: &Value) -> Option<usize> {
        let began = super::field(returned, "began")?;
        self.events.iter().position(|e| kind(e) == "revoke" && e.at("began") == began)
    }

    fn late(&self) -> Result<Late, String> {
        for (place, event) in self.events.iter().enumerate() {
            let Some(revoke) = self.revoke_of(event).filter(|_| kind(event) == "return") else {
                continue;
            };
            let left = event.at("left").int();
            if left <= 1000 {
                continue;
            }
            let over = (at(event) / NS + left) * NS;
            for x in listed(&self.events[revoke], "slots") {
                let has_heard = |link: &str| {
                    let told = self.events.iter().filter(|e| at(e) <= over);
                    let mut told = told.filter(|e| matches!(kind(e), "hear" | "renewed"));
                    told.any(|e| {
                        let ended = self.names.caps_of(e, "ended").unwrap_or_default();
                        super::link(e) == link && ended.contains(&x)
                    })
                };
                let is_its = |cap: &str| {
                    let link = self.names.lent.get(cap);
                    self.names.is_below(cap, &x) && link.is_some_and(|link| !has_heard(link))
                };
                if let Ok(last) = self.last_use(place, is_its) {
                    return Ok(Late { place, over, last, x });
                }
            }
        }
        Err("nowhere in this run: somebody who is silent while a revocation returns".to_owned())
    }
}
