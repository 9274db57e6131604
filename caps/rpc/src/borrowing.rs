//! What was lent to this process over one connection: the holder's half of leases (`specs/revocation`).

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Duration;

use capnp::capability::FromClientHook;
use distos_abi::Fault;
use distos_lease::{Ask, Holder, Leaf, Lost, NotLent};
use distos_schemas::capability_capnp::{capability, door, edge, lessee, lessor};
use tokio::sync::{OnceCell, watch};

use crate::faults::{fail, fault_of};
use crate::lending::{boot_ms, write};

/// How often it is looked whether a lease is over: the runtime's clock stands still while the machine sleeps.
const LOOK: Duration = Duration::from_millis(100);
/// The most that is given back in one message, and heard in one.
const BATCH: usize = 4096;
/// How often a lease is asked for again when an answer is overtaken by the news that something has ended.
const TRIES: usize = 16;

/// Where a connection begins.
#[derive(Clone)]
enum Source {
    Door(door::Client),
    Edge(edge::Client),
}

/// What was lent over one connection. Cheap to clone.
#[derive(Clone)]
pub struct Borrowing {
    shared: Rc<Shared>,
}

struct Shared {
    source: Source,
    holder: Rc<RefCell<Holder>>,
    /// Sent whenever a lease may have ended.
    news: Rc<watch::Sender<()>>,
    lessor: OnceCell<lessor::Client>,
    renewing: Cell<bool>,
}

impl Borrowing {
    /// What is lent by the vat at whose door a connection began.
    pub fn at(door: door::Client) -> Borrowing {
        Borrowing::from(Source::Door(door))
    }

    /// The same at the other end of an edge.
    pub(crate) fn by(edge: edge::Client) -> Borrowing {
        Borrowing::from(Source::Edge(edge))
    }

    fn from(source: Source) -> Borrowing {
        Borrowing {
            shared: Rc::new(Shared {
                source,
                holder: Rc::default(),
                news: Rc::new(watch::Sender::new(())),
                lessor: OnceCell::new(),
                renewing: Cell::new(false),
            }),
        }
    }

    /// Has a capability of this connection lent.
    ///
    /// # Errors
    /// How it has ended; [`Fault::Unavailable`] if too much is lent.
    pub async fn hold<C: FromClientHook + Clone>(&self, cap: &C) -> Result<Held, Fault> {
        let cap: capability::Client = FromClientHook::new(cap.clone().into_client_hook());
        self.shared.lessor().await?;
        for _ in 0..TRIES {
            let asked = self.shared.holder.borrow_mut().ask(boot_ms());
            let ask =
                asked.ok_or_else(|| Fault::unavailable(100, "too many leases are asked for"))?;
            // Taken back if this is dropped while it waits.
            let open = Open { shared: &self.shared, ask };
            let answer = cap.lend_request().send().promise.await.map_err(|e| fault_of(&e))?;
            let (line, term_ms, lasts_ms) = {
                let answer = answer.get().map_err(|e| fault_of(&e))?;
                let line: Vec<u64> = answer.get_line().map_err(|e| fault_of(&e))?.iter().collect();
                (line, answer.get_term_ms(), answer.get_lasts_ms())
            };
            let lent =
                self.shared.holder.borrow_mut().lent(open.ask, &line, term_ms.into(), lasts_ms);
            match lent {
                Ok(leaf) => {
                    let held = Held { shared: self.shared.clone(), leaf };
                    self.shared.start();
                    return Ok(held);
                }
                // It is lent there, and not here.
                Err(NotLent::Late) => {
                    self.shared.holder.borrow_mut().release_unheld(&line);
                }
                Err(NotLent::Malformed) => {
                    return Err(Fault::malformed("the home says what it cannot know of a lease"));
                }
            }
        }
        Err(Fault::unavailable(100, "so much is revoked there that nothing is lent"))
    }
}

/// A question that is taken back with this.
struct Open<'a> {
    shared: &'a Shared,
    ask: Ask,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.shared.holder.borrow_mut().give_up(self.ask);
    }
}

impl Shared {
    /// Says who is to be told, once.
    async fn lessor(&self) -> Result<&lessor::Client, Fault> {
        let arrive = || async {
            let told = Told { holder: self.holder.clone(), news: Rc::downgrade(&self.news) };
            let told: lessee::Client = capnp_rpc::new_client(told);
            let lessor = match &self.source {
                Source::Door(door) => {
                    let mut request = door.lessor_request();
                    request.get().set_lessee(told);
                    let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
                    answer.get().and_then(|answer| answer.get_lessor())
                }
                Source::Edge(edge) => {
                    let mut request = edge.lessor_request();
                    request.get().set_lessee(told);
                    let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
                    answer.get().and_then(|answer| answer.get_lessor())
                }
            };
            lessor.map_err(|e| fault_of(&e))
        };
        self.lessor.get_or_try_init(arrive).await
    }

    /// Renews from now on, for as long as something is held.
    fn start(self: &Rc<Shared>) {
        if !self.renewing.replace(true) {
            tokio::task::spawn_local(renew(Rc::downgrade(self)));
        }
    }

    async fn renew_once(&self) -> Result<(), Fault> {
        let lessor = self.lessor().await?.clone();
        let released = self.holder.borrow_mut().take_released(BATCH);
        let mut request = lessor.renew_request();
        write(&released, |len| request.get().init_released(len));
        let asked = self.holder.borrow_mut().ask_again(boot_ms());
        let ask = asked.ok_or_else(|| Fault::unavailable(100, "too much is asked for"))?;
        let open = Open { shared: self, ask };
        let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
        let answer = answer.get().map_err(|e| fault_of(&e))?;
        let ended: Vec<u64> = answer.get_ended().map_err(|e| fault_of(&e))?.iter().collect();
        self.holder.borrow_mut().renewed(open.ask, &ended, answer.get_term_ms().into());
        self.news.send_replace(());
        Ok(())
    }
}

/// A question each third of a term, whatever became of the one before: an answer that does not come is not waited
/// for.
async fn renew(shared: Weak<Shared>) {
    loop {
        let rest = {
            let Some(shared) = shared.upgrade() else { return };
            if shared.holder.borrow().is_idle() {
                shared.renewing.set(false);
                return;
            }
            let rest = Duration::from_millis(shared.holder.borrow().rest_ms().max(10));
            let asking = tokio::time::timeout(rest, shared.renew_once());
            if let Ok(Err(fault)) = asking.await {
                tracing::debug!(%fault, "leases were not renewed");
            }
            rest
        };
        tokio::time::sleep(rest).await;
    }
}

/// What the home tells of leases.
struct Told {
    holder: Rc<RefCell<Holder>>,
    news: Weak<watch::Sender<()>>,
}

impl lessee::Server for Told {
    async fn ended(
        self: Rc<Self>,
        params: lessee::EndedParams,
        _: lessee::EndedResults,
    ) -> Result<(), capnp::Error> {
        let links = params.get()?.get_links()?;
        if links.len() as usize > BATCH {
            return Err(fail(Fault::malformed("too many links have ended at once")));
        }
        let links: Vec<u64> = links.iter().collect();
        self.holder.borrow_mut().hear(&links);
        if let Some(news) = self.news.upgrade() {
            news.send_replace(());
        }
        Ok(())
    }
}

/// A lease, which is given back when this is dropped.
pub struct Held {
    shared: Rc<Shared>,
    leaf: Leaf,
}

impl Held {
    /// Whether the capability may be used at this moment, without a word to anybody.
    ///
    /// # Errors
    /// Why it may not: [`Fault::Revoked`], [`Fault::Expired`], or [`Fault::Unavailable`] if its home was not heard
    /// for a term.
    pub fn check(&self) -> Result<(), Fault> {
        self.lasts().map(drop)
    }

    fn lasts(&self) -> Result<Duration, Fault> {
        let now_ms = boot_ms();
        let lasts = self.shared.holder.borrow().lasts(self.leaf, now_ms);
        lasts.map(Duration::from_millis).map_err(|lost| match lost {
            Lost::Revoked => Fault::Revoked,
            Lost::Expired => Fault::Expired { at_ms: 0 },
            Lost::Unheard => {
                Fault::unavailable(1000, "the home of what it works on does not answer")
            }
        })
    }

    /// Resolves when it may not be used any more, with why.
    pub async fn lost(&self) -> Fault {
        let mut news = self.shared.news.subscribe();
        loop {
            match self.lasts() {
                Ok(lasts) => {
                    // What it waited for is looked at.
                    let _ = tokio::time::timeout(lasts.min(LOOK), news.changed()).await;
                }
                Err(fault) => return fault,
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared.holder.borrow_mut().release(self.leaf);
    }
}
