//! What was lent to this process over one connection: the holder's half of leases (`specs/revocation`).

use std::cell::{self, Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use capnp::capability::FromClientHook;
use distos_abi::Fault;
use distos_lease::{Ask, Holder, Leaf, Loan, Lost, News, NotLent};
use distos_schemas::capability_capnp::{capability, door, edge, lessee, lessor};
use futures::future::LocalBoxFuture;
use tokio::sync::{OnceCell, watch};

use crate::faults::{fail, fault_of};
use crate::lending::{Listed, TRACE, boot_ns, link_of, millis, write};
use crate::transport::Driven;

/// How often it is looked whether a lease is over: the runtime's clock stands still while the machine sleeps.
const LOOK: Duration = Duration::from_millis(100);
/// The most that is given back in one message, and heard in one.
const BATCH: usize = 4096;
/// The longest line: no capability is deeper.
const LINE: u32 = distos_abi::MAX_DEPTH as u32;
/// How often a lease is asked for again when an answer is overtaken by the news that something has ended.
const TRIES: usize = 16;
/// Renewals that may be under way at one time. None is given up: one that comes late is good for what is left.
const RENEWALS: usize = 4;
/// How long the home may take to say that it lends.
const ARRIVE_WAIT: Duration = Duration::from_secs(15);
/// The shortest time between two.
const LEAST: Duration = Duration::from_millis(200);

/// A way to a door beside the calls of a connection, on which nothing but leases is spoken of.
pub type Beside = Rc<dyn Fn() -> LocalBoxFuture<'static, Result<(door::Client, Driven), Fault>>>;

/// Where a connection begins.
#[derive(Clone)]
enum Source {
    Door(door::Client),
    Edge(edge::Client),
    Beside(Beside),
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
    lessor: OnceCell<Known>,
    /// What a trace calls the connection, once it is known who lends.
    link: Rc<cell::OnceCell<String>>,
    renewing: Cell<bool>,
    /// Renewals under way.
    asked: Cell<usize>,
}

/// Who lends, and how it is known that something was lent over this connection and not over another.
struct Known {
    lessor: lessor::Client,
    token: u64,
    /// What that is said over, if it is not what calls are made over.
    _beside: Option<Driven>,
}

impl Borrowing {
    /// What is lent by the vat at whose door a connection began.
    pub fn at(door: door::Client) -> Borrowing {
        Borrowing::from(Source::Door(door))
    }

    /// The same where leases have a way of their own, which is opened when the first is asked for.
    pub fn beside(way: Beside) -> Borrowing {
        Borrowing::from(Source::Beside(way))
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
                link: Rc::default(),
                renewing: Cell::new(false),
                asked: Cell::new(0),
            }),
        }
    }

    /// Has a capability of this connection lent.
    ///
    /// # Errors
    /// How it has ended; [`Fault::Malformed`] if it came over another connection; [`Fault::Unavailable`] if too
    /// much is lent.
    pub async fn hold<C: FromClientHook + Clone>(&self, cap: &C) -> Result<Held, Fault> {
        let cap: capability::Client = FromClientHook::new(cap.clone().into_client_hook());
        let shared = self.shared.clone();
        // To its end, also if nobody waits for it any more: what was lent is given back then.
        let held = tokio::task::spawn_local(async move { shared.hold(&cap).await });
        held.await.unwrap_or_else(|_| Err(Fault::unavailable(0, "this thread ends")))
    }
}

/// A question that is taken back with this.
struct Open<'a> {
    holder: &'a RefCell<Holder>,
    ask: Ask,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.holder.borrow_mut().give_up(self.ask);
    }
}

impl Shared {
    async fn hold(self: Rc<Shared>, cap: &capability::Client) -> Result<Held, Fault> {
        let token = self.known().await?.token;
        let link = self.link();
        for _ in 0..TRIES {
            let at = boot_ns();
            let asked = self.holder.borrow_mut().ask(millis(at));
            let ask =
                asked.ok_or_else(|| Fault::unavailable(100, "too many leases are asked for"))?;
            tracing::debug!(target: TRACE, at, %link, ask = ask.0, "ask");
            let _open = Open { holder: &self.holder, ask };
            let answer = cap.lend_request().send().promise.await.map_err(|e| fault_of(&e))?;
            let read = || {
                let answer = answer.get()?;
                let line = answer.get_line()?;
                let line: Vec<u64> = line.iter().take(LINE as usize + 1).collect();
                let loan = Loan { line, as_of: answer.get_as_of() };
                Ok((loan, answer.get_term_ms(), answer.get_lasts_ms(), answer.get_token()))
            };
            let (loan, term_ms, lasts_ms, over) = read().map_err(|e| fault_of(&e))?;
            if over != token {
                return Err(Fault::malformed("the capability came over another connection"));
            }
            let lent = self.holder.borrow_mut().lent(ask, &loan, term_ms.into(), lasts_ms);
            let (at, ask, key) = (boot_ns(), ask.0, loan.line.last());
            match lent {
                Ok(_) => tracing::debug!(target: TRACE, at, %link, ask, key, "take"),
                Err(_) => tracing::debug!(target: TRACE, at, %link, ask, key, "miss"),
            }
            if lent.is_err() {
                // It is lent there, and not here.
                self.holder.borrow_mut().release_unheld(&loan.line);
            }
            self.start();
            match lent {
                Ok(leaf) => {
                    let expires_ms = unix_ms().saturating_add(lasts_ms);
                    return Ok(Held { shared: self.clone(), leaf, expires_ms });
                }
                Err(NotLent::Late) => {}
                Err(NotLent::Malformed) => {
                    return Err(Fault::malformed("the home says what it cannot know of a lease"));
                }
            }
        }
        Err(Fault::unavailable(100, "so much is revoked there that nothing is lent"))
    }

    /// Says who is to be told, once.
    async fn known(&self) -> Result<&Known, Fault> {
        let arrive = || async {
            let (holder, link) = (self.holder.clone(), self.link.clone());
            let told = Told { holder, link, news: Rc::downgrade(&self.news) };
            let told: lessee::Client = capnp_rpc::new_client(told);
            let (door, driven) = match &self.source {
                Source::Door(door) => (door.clone(), None),
                Source::Beside(way) => {
                    let (door, driven) = way().await?;
                    (door, Some(driven))
                }
                Source::Edge(edge) => {
                    let mut request = edge.lessor_request();
                    request.get().set_lessee(told);
                    let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
                    let answer = answer.get().map_err(|e| fault_of(&e))?;
                    let lessor = answer.get_lessor().map_err(|e| fault_of(&e))?;
                    return Ok((lessor, answer.get_token(), None));
                }
            };
            let mut request = door.lessor_request();
            request.get().set_lessee(told);
            let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
            let answer = answer.get().map_err(|e| fault_of(&e))?;
            let lessor = answer.get_lessor().map_err(|e| fault_of(&e))?;
            Ok((lessor, answer.get_token(), driven))
        };
        let known = || async {
            let silent = |_| Err(Fault::unavailable(1000, "the home says nothing of leases"));
            let arrived = tokio::time::timeout(ARRIVE_WAIT, arrive()).await;
            let (lessor, token, driven) = arrived.unwrap_or_else(silent)?;
            self.link.get_or_init(|| link_of(token));
            Ok(Known { lessor, token, _beside: driven })
        };
        self.lessor.get_or_try_init(known).await
    }

    fn link(&self) -> &str {
        self.link.get().map_or("", String::as_str)
    }

    /// Renews from now on, for as long as something is held.
    fn start(self: &Rc<Shared>) {
        if !self.renewing.replace(true) {
            tokio::task::spawn_local(renew(Rc::downgrade(self)));
        }
    }

    async fn renew_once(&self) -> Result<(), Fault> {
        let lessor = self.known().await?.lessor.clone();
        let link = self.link();
        let released = self.holder.borrow_mut().take_released(BATCH);
        let mut request = lessor.renew_request();
        write(&released, |len| request.get().init_released(len));
        let at = boot_ns();
        let asked = self.holder.borrow_mut().ask_again(millis(at));
        let ask = asked.ok_or_else(|| Fault::unavailable(100, "too much is asked for"))?;
        tracing::debug!(target: TRACE, at, %link, ask = ask.0, "ask_again");
        let _open = Open { holder: &self.holder, ask };
        let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
        let answer = answer.get().map_err(|e| fault_of(&e))?;
        let ended = answer.get_ended().map_err(|e| fault_of(&e))?;
        let news = News { ended: ended.iter().take(BATCH).collect(), as_of: answer.get_as_of() };
        let ended = Listed(&news.ended);
        tracing::debug!(target: TRACE, at = boot_ns(), %link, ask = ask.0, %ended, "renewed");
        self.holder.borrow_mut().renewed(ask, &news, answer.get_term_ms().into());
        self.news.send_replace(());
        Ok(())
    }
}

/// A question each third of a term, whatever has become of those before.
async fn renew(shared: Weak<Shared>) {
    loop {
        let rest = {
            let Some(shared) = shared.upgrade() else { return };
            if shared.holder.borrow().is_idle() {
                shared.renewing.set(false);
                return;
            }
            Duration::from_millis(shared.holder.borrow().rest_ms()).max(LEAST)
        };
        tokio::time::sleep(rest).await;
        let Some(shared) = shared.upgrade() else { return };
        if shared.asked.get() < RENEWALS {
            shared.asked.set(shared.asked.get() + 1);
            tokio::task::spawn_local(async move {
                if let Err(fault) = shared.renew_once().await {
                    tracing::debug!(%fault, "leases were not renewed");
                }
                shared.asked.set(shared.asked.get() - 1);
            });
        }
    }
}

/// What the home tells of leases.
struct Told {
    holder: Rc<RefCell<Holder>>,
    link: Rc<cell::OnceCell<String>>,
    news: Weak<watch::Sender<()>>,
}

impl lessee::Server for Told {
    async fn ended(
        self: Rc<Self>,
        params: lessee::EndedParams,
        _: lessee::EndedResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let links = params.get_links()?;
        if links.len() as usize > BATCH {
            return Err(fail(Fault::malformed("too many links have ended at once")));
        }
        let news = News { ended: links.iter().collect(), as_of: params.get_as_of() };
        let link = self.link.get().map_or("", String::as_str);
        tracing::debug!(target: TRACE, at = boot_ns(), %link, ended = %Listed(&news.ended), "hear");
        self.holder.borrow_mut().hear(&news);
        if let Some(told) = self.news.upgrade() {
            told.send_replace(());
        }
        Ok(())
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}

/// A lease, which is given back when this is dropped.
pub struct Held {
    shared: Rc<Shared>,
    leaf: Leaf,
    expires_ms: u64,
}

impl Held {
    /// Whether a use of the capability may begin at this moment, without a word to anybody.
    ///
    /// # Errors
    /// Why it may not: [`Fault::Revoked`], [`Fault::Expired`], or [`Fault::Unavailable`] if its home was not heard
    /// for a term.
    pub fn check(&self) -> Result<(), Fault> {
        self.lasts().map(drop)
    }

    fn lasts(&self) -> Result<Duration, Fault> {
        let at = boot_ns();
        let lasts = self.shared.holder.borrow().lasts(self.leaf, millis(at));
        let (link, key) = (self.shared.link(), self.leaf.number());
        match lasts {
            Ok(_) => tracing::debug!(target: TRACE, at, %link, key, "use"),
            Err(Lost::Expired) => tracing::debug!(target: TRACE, at, %link, key, "expired"),
            Err(_) => tracing::debug!(target: TRACE, at, %link, key, "idle"),
        }
        lasts.map(Duration::from_millis).map_err(|lost| match lost {
            Lost::Revoked => Fault::Revoked,
            Lost::Expired => Fault::Expired { at_ms: self.expires_ms },
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
        let (link, key) = (self.shared.link(), self.leaf.number());
        tracing::debug!(target: TRACE, at = boot_ns(), %link, key, "release");
        self.shared.holder.borrow_mut().release(self.leaf);
    }
}
