//! What a vat has lent, and to whom: the home's half of leases (`specs/revocation`) over connections.
//!
//! A revocation is one store in the table, which tells nobody by itself. One that comes by way of this vat is told
//! at once; for all others the table is looked at.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use distos_abi::{Fault, Rights, SessionId, SlotRef, VatName};
use distos_lease::{Cursor, Home, Lessee, Loan, Refused, Terms, Unheard};
use distos_schemas::capability_capnp::{capability, lessee, lessor};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::Notify;

use crate::epoch::Epoch;
use crate::facet::Facet;
use crate::faults::fail;
use crate::vat::{Vat, WeakVat};

/// How often the table is looked at: that long after a revocation that did not come this way somebody is told.
const LOOK: Duration = Duration::from_millis(50);
/// What is looked at in one go, so that calls do not wait for it.
const SOME: usize = 4096;
/// Told to one lessee in one message.
const BATCH: usize = 4096;
/// How long whoever revokes waits for those who are told.
const WAIT: Duration = Duration::from_millis(250);
/// Between two renewals of one lessee: each looks at all that it was lent.
const RENEWALS_MS: u64 = 100;

/// Where both halves of leases tell their steps, as `specs/revocation` reads them.
///
/// Each is told with the time that the step went by, before anybody else can know of it. All processes of a machine
/// have the same clock, so by these times what was said stands before what was heard.
pub(crate) const TRACE: &str = "distos::trace::revocation";

/// Nanoseconds since this machine was booted, also while it slept.
pub(crate) fn boot_ns() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    let (seconds, nanos) = (time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs());
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

/// The same in milliseconds, as leases count.
pub(crate) fn boot_ms() -> u64 {
    millis(boot_ns())
}

pub(crate) fn millis(ns: u64) -> u64 {
    ns / 1_000_000
}

/// By what a trace knows a connection on both of its sides. The token itself is told to nobody else.
pub(crate) fn link_of(token: u64) -> String {
    name_of('l', "distos 2026-11 connection in a trace", &token.to_le_bytes())
}

/// By what a trace knows something that is otherwise known by a secret, which nobody can tell from this.
pub(crate) fn name_of(first: char, context: &'static str, secret: &[u8]) -> String {
    let hash = blake3::derive_key(context, secret);
    // A letter first: it is a name, also where all the digits are decimal.
    format!("{first}{}", hex::encode(&hash[..8]))
}

/// In a trace: one after the other, with commas between.
pub(crate) struct Listed<I>(pub(crate) I);

impl<T: fmt::Display, I: IntoIterator<Item = T> + Clone> fmt::Display for Listed<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, one) in self.0.clone().into_iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{one}")?;
        }
        Ok(())
    }
}

/// A vat's.
pub(crate) struct Lending {
    /// What a trace calls the vat: without the tenant of a template's instance.
    vat: String,
    home: RefCell<Home>,
    told: RefCell<BTreeMap<Lessee, Rc<Told>>>,
    looking: Cell<bool>,
    /// Somebody has said that it knows, or has gone.
    heard: Notify,
}

/// How a lessee is told.
struct Told {
    lessee: lessee::Client,
    /// By which it knows what was lent over its own connection.
    token: u64,
    link: String,
    /// In which epoch of its node it has come, if that is another: in the next it is lent nothing, and renewed nothing.
    epoch: Option<Epoch>,
    /// It is being told.
    busy: Cell<bool>,
    /// Somebody has waited for it in vain: it is not waited for again until it answers.
    silent: Cell<bool>,
    /// When it was renewed last, or will be.
    renewed_ms: Cell<u64>,
}

fn of(session: SessionId) -> Lessee {
    Lessee(session.0)
}

impl Lending {
    /// At the start of a vat.
    pub(crate) fn started(vat: &VatName) -> Lending {
        let vat = vat.as_str().split('/').take(1).collect::<String>();
        let at = boot_ns();
        tracing::debug!(target: TRACE, at, %vat, "started");
        Lending {
            vat,
            home: RefCell::new(Home::started(Terms::USUAL, millis(at))),
            told: RefCell::default(),
            looking: Cell::new(false),
            heard: Notify::new(),
        }
    }

    /// Whoever is at the other end of this session's connection wants to be lent to. One who gave up waiting for the
    /// answer may ask again.
    pub(crate) fn arrive(
        &self,
        vat: &Vat,
        session: SessionId,
        lessee: lessee::Client,
    ) -> Result<(lessor::Client, u64), Fault> {
        if self.home.borrow().has(of(session)) {
            return Err(Fault::denied(Rights::NONE));
        }
        // One who does not answer is asked no more by way of another.
        if self.told.borrow().get(&of(session)).is_some_and(|told| told.busy.get()) {
            return Err(Fault::unavailable(1000, "who was to be told before has not answered"));
        }
        let mut token = [0; 8];
        getrandom::fill(&mut token).map_err(Fault::internal)?;
        let token = u64::from_le_bytes(token);
        let (busy, silent, renewed_ms) = (Cell::new(false), Cell::new(false), Cell::new(0));
        let (link, epoch) = (link_of(token), vat.epoch_of(session));
        let told = Rc::new(Told { lessee, token, link, epoch, busy, silent, renewed_ms });
        self.told.borrow_mut().insert(of(session), told);
        self.home.borrow_mut().arrive(of(session));
        // Weak: the connection, which holds this, must not keep the vat.
        let (vat, lessee) = (vat.downgrade(), of(session));
        Ok((capnp_rpc::new_client(Lessor { vat, lessee, token }), token))
    }

    /// A session is over.
    pub(crate) fn leave(&self, session: SessionId) {
        if self.told.borrow_mut().remove(&of(session)).is_some() {
            self.home.borrow_mut().leave(of(session), boot_ms());
            self.heard.notify_waiters();
        }
    }

    /// Lends what `facet`, which is alive, speaks of, over its own connection; with that connection's token.
    fn lend(self: &Rc<Lending>, facet: &Facet, line: &[SlotRef]) -> Result<(Loan, u64), Fault> {
        let nobody = || Fault::denied(Rights::NONE);
        let session = of(facet.session());
        let told = self.told.borrow().get(&session).cloned().ok_or_else(nobody)?;
        let at = boot_ns();
        let lent = self.home.borrow_mut().lend(session, facet.tenant(), line, millis(at));
        let loan = lent.map_err(|refused| match refused {
            Refused::Unknown => nobody(),
            Refused::Ended => Fault::Revoked,
            Refused::Full => Fault::unavailable(1000, "too much is lent"),
        })?;
        tracing::debug!(
            target: TRACE,
            at,
            vat = %self.vat,
            link = %told.link,
            line = %Listed(&loan.line),
            slots = %Listed(line),
            "grant"
        );
        if !self.looking.replace(true) {
            tokio::task::spawn_local(self.clone().look(facet.vat().clone()));
        }
        Ok((loan, told.token))
    }

    /// Tells those who were lent something below `slot`, which was revoked, and waits for a moment until they know.
    /// Within how many milliseconds all is over. The kernel was asked for it after `began`, see [`boot_ns`].
    pub(crate) async fn ended(self: &Rc<Lending>, slot: SlotRef, began: u64) -> u64 {
        let at = boot_ns();
        let unheard = self.home.borrow_mut().ended(slot);
        let (vat, slots) = (&self.vat, slot);
        tracing::debug!(target: TRACE, at, %vat, began, %slots, "revoke");
        self.spread(&unheard, began).await
    }

    /// How much has ended so far, for [`Lending::some_ended`].
    pub(crate) fn marks(&self) -> u64 {
        self.home.borrow().marks()
    }

    /// The same as [`Lending::ended`], when it is not known which slot it was, for all that has ended since there
    /// were so many marks.
    pub(crate) async fn some_ended(self: &Rc<Lending>, vat: &Vat, marks: u64, began: u64) -> u64 {
        let at = boot_ns();
        let alive = |slot| vat.checker().view.stands(slot);
        // What much hangs from is soon found, and told before everything else is looked at.
        self.home.borrow_mut().look(alive);
        self.tell();
        let mut cursor = Cursor::default();
        while self.home.borrow_mut().look_on(&mut cursor, SOME, alive) {
            tokio::task::yield_now().await;
        }
        let unheard = self.home.borrow().since(marks);
        let slots = || -> BTreeSet<SlotRef> {
            let home = self.home.borrow();
            unheard.iter().filter_map(|one| home.slot(*one)).collect()
        };
        let vat = &self.vat;
        tracing::debug!(target: TRACE, at, %vat, began, slots = %Listed(&slots()), "revoke");
        self.spread(&unheard, began).await
    }

    async fn spread(self: &Rc<Lending>, unheard: &[Unheard], began: u64) -> u64 {
        self.tell();
        let all_heard = async {
            loop {
                let heard = self.heard.notified();
                if unheard.iter().all(|one| !self.is_waited_for(*one)) {
                    return;
                }
                heard.await;
            }
        };
        if tokio::time::timeout(WAIT, all_heard).await.is_err() {
            let told = self.told.borrow();
            for (lessee, _) in unheard.iter().filter(|one| self.is_waited_for(**one)) {
                if let Some(told) = told.get(lessee) {
                    told.silent.set(true);
                }
            }
        }
        let at = boot_ns();
        let now_ms = millis(at);
        let over_ms = self.home.borrow().over_ms(unheard, now_ms);
        let left = over_ms.map_or(0, |over_ms| over_ms.saturating_sub(now_ms));
        tracing::debug!(target: TRACE, at, vat = %self.vat, began, left, "return");
        left
    }

    fn is_waited_for(&self, unheard: Unheard) -> bool {
        let told = self.told.borrow();
        told.get(&unheard.0).is_some_and(|told| !told.silent.get())
            && !self.home.borrow().is_heard(unheard)
    }

    /// Begins to tell everybody what they do not know.
    fn tell(self: &Rc<Lending>) {
        let untold = self.home.borrow().untold();
        for lessee in untold {
            let told = self.told.borrow().get(&lessee).cloned();
            if let Some(told) = told.filter(|told| !told.busy.replace(true)) {
                tokio::task::spawn_local(self.clone().tell_one(lessee, told));
            }
        }
    }

    /// One message at a time: what ends meanwhile goes with the next.
    async fn tell_one(self: Rc<Lending>, lessee: Lessee, told: Rc<Told>) {
        loop {
            let news = self.home.borrow().news(lessee, BATCH);
            if news.ended.is_empty() {
                break;
            }
            let mut request = told.lessee.ended_request();
            write(&news.ended, |len| request.get().init_links(len));
            request.get().set_as_of(news.as_of);
            let (vat, link, ended) = (&self.vat, &told.link, Listed(&news.ended));
            tracing::debug!(target: TRACE, at = boot_ns(), %vat, %link, %ended, "tell");
            if request.send().promise.await.is_err() {
                // It is told again at the next look, or with its next renewal.
                break;
            }
            told.silent.set(false);
            tracing::debug!(target: TRACE, at = boot_ns(), %vat, %link, %ended, "hear_ack");
            self.home.borrow_mut().heard(lessee, &news.ended);
            self.heard.notify_waiters();
        }
        told.busy.set(false);
        self.heard.notify_waiters();
    }

    /// Looks for what has ended, all of it each [`LOOK`], for as long as anything is kept of what was lent.
    async fn look(self: Rc<Lending>, vat: Vat) {
        let alive = |slot| vat.checker().view.stands(slot);
        let mut cursor = Cursor::default();
        loop {
            let parts = self.home.borrow().watched() / SOME + 1;
            tokio::time::sleep(LOOK / u32::try_from(parts).unwrap_or(u32::MAX)).await;
            {
                let mut home = self.home.borrow_mut();
                if !home.look_on(&mut cursor, SOME, alive) {
                    // It begins anew, with what much hangs from.
                    home.forget(boot_ms());
                    home.look(alive);
                    home.look_on(&mut cursor, SOME, alive);
                }
            }
            self.tell();
            // What has ended is kept until everybody has heard of it, or has gone for long enough.
            if self.home.borrow().is_idle() {
                self.looking.set(false);
                return;
            }
        }
    }
}

/// Writes numbers.
pub(crate) fn write<'a>(
    numbers: &[u64],
    init: impl FnOnce(u32) -> capnp::primitive_list::Builder<'a, u64>,
) {
    let mut list = init(u32::try_from(numbers.len()).unwrap_or(u32::MAX));
    for (index, number) in (0..).zip(numbers) {
        list.set(index, *number);
    }
}

/// Milliseconds on the wire.
pub(crate) fn short(millis: u64) -> u32 {
    u32::try_from(millis).unwrap_or(u32::MAX)
}

/// Answers `lend`.
pub(crate) fn lend(
    facet: &Facet,
    results: &mut capability::LendResults,
) -> Result<(), capnp::Error> {
    let line = facet.line().map_err(fail)?;
    let vat = facet.vat();
    let (loan, token) = vat.lending().lend(facet, &line).map_err(fail)?;
    let expires_ms = facet.authority().caveats.expires_ms;
    let mut reply = facet.reply(results);
    write(&loan.line, |len| reply.reborrow().init_line(len));
    reply.set_as_of(loan.as_of);
    reply.set_token(token);
    reply.set_term_ms(short(Terms::USUAL.term_ms));
    reply.set_lasts_ms(match expires_ms {
        u64::MAX => u64::MAX,
        at_ms => at_ms.saturating_sub(vat.now_ms()),
    });
    Ok(())
}

/// What whoever is lent to over one connection renews its leases by.
struct Lessor {
    vat: WeakVat,
    lessee: Lessee,
    token: u64,
}

impl lessor::Server for Lessor {
    async fn renew(
        self: Rc<Self>,
        params: lessor::RenewParams,
        mut results: lessor::RenewResults,
    ) -> Result<(), capnp::Error> {
        let vat = self.vat.upgrade();
        let vat = vat.ok_or_else(|| fail(Fault::unavailable(0, "the vat has ended")))?;
        let released: Vec<u64> = params.get()?.get_released()?.iter().collect();
        drop(params);
        let lending = vat.lending();
        let told = lending.told.borrow().get(&self.lessee).cloned();
        let told = told.filter(|told| told.token == self.token);
        let told = told.ok_or_else(|| fail(Fault::denied(Rights::NONE)))?;
        let (vat_name, link) = (&lending.vat, &told.link);
        if !released.is_empty() {
            let released = Listed(&released);
            tracing::debug!(target: TRACE, at = boot_ns(), vat = %vat_name, %link, %released, "given_back");
        }
        lending.home.borrow_mut().give_back(self.lessee, &released);
        lending.heard.notify_waiters();
        // Each in its turn: what waits is no older than what was asked before it.
        let now_ms = boot_ms();
        let turn_ms = now_ms.max(told.renewed_ms.get().saturating_add(RENEWALS_MS));
        told.renewed_ms.set(turn_ms);
        tokio::time::sleep(Duration::from_millis(turn_ms - now_ms)).await;
        let alive = |slot| vat.checker().view.stands(slot);
        let at = boot_ns();
        let is_over = told.epoch.as_ref().is_some_and(Epoch::is_over);
        let renewed = match is_over {
            true => Err(Refused::Ended),
            false => lending.home.borrow_mut().renew(self.lessee, alive, millis(at)),
        };
        let refuse = |fault: Fault| {
            tracing::debug!(target: TRACE, at, vat = %vat_name, %link, "renewal_refused");
            fail(fault)
        };
        let news = renewed.map_err(|_| refuse(Fault::denied(Rights::NONE)))?;
        if news.ended.len() > BATCH {
            lending.tell();
            return Err(refuse(Fault::unavailable(100, "much has ended: it is told first")));
        }
        let ended = Listed(&news.ended);
        tracing::debug!(target: TRACE, at, vat = %vat_name, %link, %ended, "renewal");
        let mut reply = results.get();
        write(&news.ended, |len| reply.reborrow().init_ended(len));
        reply.set_as_of(news.as_of);
        reply.set_term_ms(short(Terms::USUAL.term_ms));
        Ok(())
    }
}
