//! What a vat has lent, and to whom: the home's half of leases (`specs/revocation`) over connections.
//!
//! A revocation is one store in the table, which tells nobody by itself. One that comes by way of this vat is told
//! at once; for all others the table is looked at.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use distos_abi::{Fault, Rights, SessionId, SlotRef};
use distos_lease::{Home, Lessee, Refused, Terms};
use distos_schemas::capability_capnp::{capability, lessee, lessor};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::Notify;

use crate::facet::Facet;
use crate::faults::fail;
use crate::vat::{Vat, WeakVat};

/// How often the table is looked at: that long after a revocation that did not come this way somebody is told.
const LOOK: Duration = Duration::from_millis(50);
/// Told to one lessee in one message.
const BATCH: usize = 4096;
/// How long whoever revokes waits for those who are told.
const WAIT: Duration = Duration::from_millis(250);

/// Milliseconds since this machine was booted, also while it slept.
pub(crate) fn boot_ms() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    let (seconds, nanos) = (time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs());
    seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000)
}

/// A vat's.
pub(crate) struct Lending {
    home: RefCell<Home>,
    told: RefCell<BTreeMap<Lessee, Rc<Told>>>,
    looking: Cell<bool>,
    /// Somebody has said that it knows, or has gone.
    heard: Notify,
}

/// How a lessee is told.
struct Told {
    lessee: lessee::Client,
    /// It is being told.
    busy: Cell<bool>,
    /// Somebody has waited for it in vain: it is not waited for again until it answers.
    silent: Cell<bool>,
}

impl Lending {
    /// At the start of a vat. One whose directory is empty has never run, and so has lent nothing.
    pub(crate) fn of_vat(data_dir: Option<&Path>) -> Lending {
        let entries = data_dir.and_then(|path| std::fs::read_dir(path).ok());
        let is_first = entries.is_some_and(|mut entries| entries.next().is_none());
        let home = match is_first {
            true => Home::new(Terms::USUAL),
            false => Home::again(Terms::USUAL, boot_ms()),
        };
        Lending {
            home: RefCell::new(home),
            told: RefCell::default(),
            looking: Cell::new(false),
            heard: Notify::new(),
        }
    }
}

fn of(session: SessionId) -> Lessee {
    Lessee(session.0)
}

impl Lending {
    /// Whoever is at the other end of this session's connection wants to be lent to.
    pub(crate) fn arrive(
        self: &Rc<Lending>,
        vat: &Vat,
        session: SessionId,
        lessee: lessee::Client,
    ) -> Result<lessor::Client, Fault> {
        let mut told = self.told.borrow_mut();
        if told.contains_key(&of(session)) {
            return Err(Fault::denied(Rights::NONE));
        }
        told.insert(
            of(session),
            Rc::new(Told { lessee, busy: Cell::new(false), silent: Cell::new(false) }),
        );
        self.home.borrow_mut().arrive(of(session));
        // Weak: the connection, which holds this, must not keep the vat.
        let lessor = Lessor { vat: vat.downgrade(), lessee: of(session) };
        Ok(capnp_rpc::new_client(lessor))
    }

    /// A session is over.
    pub(crate) fn leave(&self, session: SessionId) {
        if self.told.borrow_mut().remove(&of(session)).is_some() {
            self.home.borrow_mut().leave(of(session), boot_ms());
            self.heard.notify_waiters();
        }
    }

    /// Lends what `facet`, which is alive, speaks of, over its own connection.
    fn lend(self: &Rc<Lending>, facet: &Facet, line: &[SlotRef]) -> Result<Vec<u64>, Fault> {
        let lent =
            self.home.borrow_mut().lend(of(facet.session()), facet.tenant(), line, boot_ms());
        let line = lent.map_err(|refused| match refused {
            Refused::Unknown => Fault::denied(Rights::NONE),
            Refused::Ended => Fault::Revoked,
            Refused::Full => Fault::unavailable(1000, "too much is lent"),
        })?;
        if !self.looking.replace(true) {
            tokio::task::spawn_local(self.clone().look(facet.vat().clone()));
        }
        Ok(line)
    }

    /// Tells those who were lent something below `slot`, which was revoked, and waits for a moment until they know.
    /// Within how many milliseconds all is over.
    pub(crate) async fn ended(self: &Rc<Lending>, slot: SlotRef) -> u64 {
        let lessees = self.home.borrow_mut().ended(slot);
        self.spread(&lessees).await
    }

    /// The same, when it is not known which slot it was.
    pub(crate) async fn some_ended(self: &Rc<Lending>, vat: &Vat) -> u64 {
        let lessees = self.home.borrow_mut().look(|slot| vat.checker().view.stands(slot));
        self.spread(&lessees).await
    }

    async fn spread(self: &Rc<Lending>, lessees: &[Lessee]) -> u64 {
        self.tell(lessees);
        let over = || {
            let now_ms = boot_ms();
            let over_ms = self.home.borrow().over_ms(lessees, now_ms);
            over_ms.map_or(0, |over_ms| over_ms.saturating_sub(now_ms))
        };
        let all_heard = async {
            loop {
                let heard = self.heard.notified();
                if self.is_heard(lessees) {
                    return;
                }
                heard.await;
            }
        };
        if tokio::time::timeout(WAIT, all_heard).await.is_err() {
            for lessee in lessees.iter().filter(|lessee| !self.is_heard(&[**lessee])) {
                if let Some(told) = self.told.borrow().get(lessee) {
                    told.silent.set(true);
                }
            }
        }
        over()
    }

    fn is_heard(&self, lessees: &[Lessee]) -> bool {
        let (home, told) = (self.home.borrow(), self.told.borrow());
        lessees.iter().all(|lessee| {
            let silent = told.get(lessee).is_none_or(|told| told.silent.get());
            silent || home.unheard(*lessee, 1).is_empty()
        })
    }

    /// Begins to tell these what they do not know.
    fn tell(self: &Rc<Lending>, lessees: &[Lessee]) {
        for lessee in lessees {
            let told = self.told.borrow().get(lessee).cloned();
            if let Some(told) = told.filter(|told| !told.busy.replace(true)) {
                tokio::task::spawn_local(self.clone().tell_one(*lessee, told));
            }
        }
    }

    /// One message at a time: what ends meanwhile goes with the next.
    async fn tell_one(self: Rc<Lending>, lessee: Lessee, told: Rc<Told>) {
        loop {
            let links = self.home.borrow().unheard(lessee, BATCH);
            if links.is_empty() {
                break;
            }
            let mut request = told.lessee.ended_request();
            write(&links, |len| request.get().init_links(len));
            if request.send().promise.await.is_err() {
                // It is told with its next renewal, if there is one.
                break;
            }
            told.silent.set(false);
            self.home.borrow_mut().heard(lessee, &links);
        }
        told.busy.set(false);
        self.heard.notify_waiters();
    }

    /// Looks for what has ended, for as long as something is lent.
    async fn look(self: Rc<Lending>, vat: Vat) {
        loop {
            tokio::time::sleep(LOOK).await;
            let lessees = {
                let mut home = self.home.borrow_mut();
                home.forget(boot_ms());
                home.look(|slot| vat.checker().view.stands(slot))
            };
            self.tell(&lessees);
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
    let line = vat.lending().lend(facet, &line).map_err(fail)?;
    let expires_ms = facet.authority().caveats.expires_ms;
    let mut reply = facet.reply(results);
    write(&line, |len| reply.reborrow().init_line(len));
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
        let ended = vat.lending().home.borrow_mut().renew(
            self.lessee,
            &released,
            |slot| vat.checker().view.stands(slot),
            boot_ms(),
        );
        let mut ended = ended.map_err(|_| fail(Fault::denied(Rights::NONE)))?;
        // The rest is pushed before anything is answered: a term must not reach what has ended.
        if ended.len() > BATCH {
            vat.lending().tell(&[self.lessee]);
            return Err(fail(Fault::unavailable(100, "much has ended: it is told first")));
        }
        let mut reply = results.get();
        ended.truncate(BATCH);
        write(&ended, |len| reply.reborrow().init_ended(len));
        reply.set_term_ms(short(Terms::USUAL.term_ms));
        Ok(())
    }
}
