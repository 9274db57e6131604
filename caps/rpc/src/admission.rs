//! How much of a vat's time strangers get.
//!
//! A stranger is a connection on which nothing was restored yet: nobody vouches for it, and no
//! quota counts what it does. Strangers of one party (a Linux user, or a peer over the network) take
//! turns, one at a time, and have together a fixed share of the vat's processor time; whoever has had
//! it waits, and holders go on.
//! A connection that turns out to be a holder's gets back what it took. What this does not divide is
//! time among holders; that is up to quotas.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::{Add, Sub};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore, SemaphorePermit};

use crate::budget::{Budget, Rate, thread_time};
use crate::quiet::Quiet;

/// Strangers of one user that are served at one time; the others wait.
const MAX_STRANGERS_OF_A_USER: usize = 8;
/// How long a connection may last on which nothing was restored.
const RESTORE_WAIT: Duration = Duration::from_secs(30);
/// The same while others of its user wait to be served, and how much work it may make then.
const SEAT: Duration = Duration::from_secs(2);
const MOST_WORK: Duration = Duration::from_millis(10);
/// Turns that follow each other as they are wanted: twice what restoring a capability takes.
/// Whoever wants more has one at a time with pauses in between, which count as silence: a message that
/// comes byte by byte is no work that is waited for.
const PROMPT_TURNS: u32 = 16;
const PAUSE: Duration = Duration::from_millis(100);
/// Turns in which so few bytes came, and left a message unfinished, are followed by pauses: the first
/// few by none, as the network may cut a message anywhere, and then each by one twice as long as the
/// last. A turn costs a vat that has nothing else to do a hundred times what a byte costs its sender.
const FEW_BYTES: usize = 512;
const PROMPT_DRIPS: u32 = 1;
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// What is read of a stranger in one turn: a few dozen calls, in two parts at most, of which the
/// second finds out that there is no more.
const TURN_BYTES: usize = 4 << 10;
const TURN_READS: u32 = 2;
/// How often it is looked whether others wait.
const LOOK: Duration = Duration::from_millis(500);
/// Users whose books are kept; beyond it those who are not connected are forgotten.
const MAX_USERS: usize = 1024;

/// One user's strangers have one part in so many of the vat's time, unless the image says otherwise.
pub(crate) const STRANGERS_PART: u32 = 32;
/// What they may have saved up: what four connections need, from the first byte to a restored
/// capability.
const STRANGERS_MOST: Duration = Duration::from_millis(1);

/// Who stands behind a connection on which nothing was restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Party {
    /// A Linux user of this machine.
    User(u32),
    /// Somebody whom a connection over the network has authenticated: the BLAKE3 hash of its name.
    Peer([u8; 32]),
}

/// What is known of a connection on which nothing was restored.
#[derive(Default)]
pub(crate) struct Stranger {
    /// Whether something was: it is a holder's.
    pub(crate) restored: Cell<bool>,
    /// What is said on it is encrypted end to end: whoever is at its other end passes it on.
    pub(crate) sealed: Cell<bool>,
    /// Its connection is over.
    pub(crate) gone: Cell<bool>,
    /// Told when something was restored.
    shown: Notify,
    /// Answers that it waits for: presenting a capability may take the kernel a while.
    asks: Cell<u32>,
    /// What has been read in this turn.
    reads: Cell<u32>,
    bytes: Cell<usize>,
    /// Whether a message was read to its end in this turn, and whether one has been begun and not ended.
    ended: Cell<bool>,
    amid: Cell<bool>,
}

impl Stranger {
    /// Something was restored on it.
    pub(crate) fn restore(&self) {
        self.restored.set(true);
        self.shown.notify_waiters();
    }

    /// Resolves once something was restored on it.
    pub(crate) async fn until_restored(&self) {
        loop {
            let shown = self.shown.notified();
            if self.restored.get() {
                return;
            }
            shown.await;
        }
    }

    /// Counts one more answer that it waits for, until this is dropped: also if it gives the call up.
    pub(crate) fn asking(&self) -> Counted<'_, u32> {
        Counted::new(&self.asks)
    }

    pub(crate) fn begin_turn(&self) {
        self.reads.set(0);
        self.bytes.set(0);
        self.ended.set(false);
    }

    /// How many bytes may still be read in this turn.
    pub(crate) fn may_read(&self) -> usize {
        if self.reads.get() >= TURN_READS { 0 } else { TURN_BYTES - self.bytes.get() }
    }

    /// That so much was read, whether a message ended there, and whether one is unfinished.
    pub(crate) fn has_read(&self, bytes: usize, ended: bool, amid: bool) {
        self.reads.set(self.reads.get() + 1);
        self.bytes.set((self.bytes.get() + bytes).min(TURN_BYTES));
        self.ended.set(self.ended.get() || ended);
        self.amid.set(amid);
    }

    /// Whether this turn was for next to nothing: a message that comes byte by byte.
    fn dripped(&self) -> bool {
        (1..FEW_BYTES).contains(&self.bytes.get()) && self.amid.get() && !self.ended.get()
    }
}

/// Strangers of one party.
struct User {
    /// Those that are served.
    served: Semaphore,
    /// Those that wait to be served, and those that have made room for them since.
    waiting: Cell<usize>,
    leaving: Cell<usize>,
    /// One's turn at a time, in the order of asking.
    turn: Semaphore,
    budget: RefCell<Budget>,
}

/// The books of all strangers.
pub(crate) struct Admission {
    start: Instant,
    rate: Rate,
    users: RefCell<HashMap<Party, Rc<User>>>,
}

impl Admission {
    pub(crate) fn new(part: u32) -> Admission {
        let rate = Rate { part, most: STRANGERS_MOST };
        Admission { start: Instant::now(), rate, users: RefCell::default() }
    }

    /// Time since these books were opened.
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// A place for one more connection of `user`. Its `socket` is silenced whenever it is not its
    /// turn.
    pub(crate) fn place(self: &Rc<Self>, user: Party, socket: Option<Quiet>) -> Place {
        Place { admission: self.clone(), user: self.user(user), socket }
    }

    fn user(&self, user: Party) -> Rc<User> {
        let mut users = self.users.borrow_mut();
        let now = self.now();
        if users.len() >= MAX_USERS && !users.contains_key(&user) {
            let connected = |user: &Rc<User>| Rc::strong_count(user) > 1;
            users.retain(|_, user| {
                connected(user) || !user.budget.borrow_mut().until_full(now).is_zero()
            });
            if users.len() >= MAX_USERS {
                users.retain(|_, user| connected(user));
            }
        }
        let new = || User {
            served: Semaphore::new(MAX_STRANGERS_OF_A_USER),
            waiting: Cell::new(0),
            leaving: Cell::new(0),
            turn: Semaphore::new(1),
            budget: RefCell::new(Budget::full(self.rate, now)),
        };
        users.entry(user).or_insert_with(|| Rc::new(new())).clone()
    }
}

/// A connection's place among its user's.
pub(crate) struct Place {
    admission: Rc<Admission>,
    user: Rc<User>,
    socket: Option<Quiet>,
}

impl Place {
    /// Drives what `start` makes to its end: as a stranger, in turns that its user's share pays
    /// for, until it has restored something. `None` if it has to go: it restored nothing in
    /// time, or not soon enough for those who wait. Time does not count while it waits for its turn, or
    /// for an answer to what it asks.
    pub(crate) async fn drive<F: Future>(
        &self,
        stranger: &Stranger,
        start: impl FnOnce() -> F,
    ) -> Option<F::Output> {
        let Stranger { restored, asks, .. } = stranger;
        let seat = self.seat().await;
        let turn = self.turn().await;
        let begun = thread_time();
        let mut system = Some(Box::pin(start()));
        let (mut paid, mut silent) = (Duration::ZERO, Duration::ZERO);
        let mut turn = Some((turn, begun));
        let (mut turns, mut drips) = (0, 0);
        loop {
            let mut output = None;
            stranger.begin_turn();
            if let (Some((turn, begun)), Some(running)) = (turn.take(), &mut system) {
                if let Poll::Ready(ended) = poll_once(running.as_mut()).await {
                    output = Some(ended);
                    // Taking it apart is part of the work.
                    system = None;
                }
                paid += self.pay(begun);
                drop(turn);
            }
            if restored.get() {
                // It was no stranger.
                self.user.budget.borrow_mut().refund(paid);
                drop(seat);
                self.settle()?;
                return match system {
                    Some(running) => Some(running.await),
                    None => output,
                };
            }
            if output.is_some() {
                return output;
            }
            if paid >= MOST_WORK && asks.get() == 0 && self.makes_room() {
                return None;
            }
            drips = if stranger.dripped() { drips + 1 } else { 0 };
            silent += self.woken(silent, asks).await?;
            turns += 1;
            if let Some(socket) = &self.socket {
                socket.hush();
            }
            let pause = if asks.get() == 0 { pause(turns, drips) } else { Duration::ZERO };
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
                silent += pause;
                if self.is_late(silent) {
                    return None;
                }
            }
            let own = self.turn().await;
            turn = Some((own, thread_time()));
            self.hear()?;
        }
    }

    /// `None` if the socket cannot be listened to, which only its end mends.
    fn hear(&self) -> Option<()> {
        let Some(socket) = &self.socket else { return Some(()) };
        socket.hear().inspect_err(|error| tracing::warn!(%error, "a connection is lost")).ok()
    }

    fn settle(&self) -> Option<()> {
        let Some(socket) = &self.socket else { return Some(()) };
        socket.settle().inspect_err(|error| tracing::warn!(%error, "a connection is lost")).ok()
    }

    /// Whether it has to go after so long a silence; if so it makes room.
    fn is_late(&self, silent: Duration) -> bool {
        silent >= RESTORE_WAIT || silent >= SEAT && self.makes_room()
    }

    /// Waits to be served.
    async fn seat(&self) -> Option<SemaphorePermit<'_>> {
        let waits = Counted::new(&self.user.waiting);
        // An error would mean that the semaphore was closed, which nobody does.
        let seat = self.user.served.acquire().await.ok();
        drop(waits);
        self.user.leaving.set(self.user.leaving.get().saturating_sub(1));
        seat
    }

    /// Whether somebody waits for whom nobody else makes room; whoever asks does, then.
    fn makes_room(&self) -> bool {
        let wanted = self.user.waiting.get() > self.user.leaving.get();
        if wanted {
            self.user.leaving.set(self.user.leaving.get() + 1);
        }
        wanted
    }

    /// Resolves when this task is woken by whatever it polled before, with the time until then;
    /// `None` once it has to go.
    async fn woken(&self, silent: Duration, asks: &Cell<u32>) -> Option<Duration> {
        let begun = Instant::now();
        let mut waited = false;
        let mut woken = pin!(std::future::poll_fn(|_| {
            if std::mem::replace(&mut waited, true) { Poll::Ready(()) } else { Poll::Pending }
        }));
        loop {
            let mut timer = pin!(tokio::time::sleep(SEAT.saturating_sub(silent).max(LOOK)));
            let timed_out = std::future::poll_fn(|cx| {
                if timer.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(true);
                }
                woken.as_mut().poll(cx).map(|()| false)
            });
            if !timed_out.await {
                return Some(if asks.get() > 0 { Duration::ZERO } else { begun.elapsed() });
            }
            if asks.get() > 0 {
                continue;
            }
            // Asked last: who says that it makes room has to.
            if self.is_late(silent + begun.elapsed()) {
                return None;
            }
        }
    }

    /// Waits until nobody else of this user's has the turn, and until the last ones are paid for.
    async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        let turn = self.user.turn.acquire().await.ok();
        loop {
            let debt = self.user.budget.borrow_mut().debt(self.admission.now());
            if debt.is_zero() {
                return turn;
            }
            tokio::time::sleep(debt).await;
        }
    }

    fn pay(&self, begun: Duration) -> Duration {
        let took = thread_time().saturating_sub(begun);
        self.user.budget.borrow_mut().spend(self.admission.now(), took);
        took
    }
}

/// Before a stranger's next turn, after so many, of which the last `drips` were for next to nothing.
fn pause(turns: u32, drips: u32) -> Duration {
    let dripping = match drips.checked_sub(PROMPT_DRIPS + 1) {
        None => Duration::ZERO,
        Some(again) => PAUSE.saturating_mul(1 << again.min(16)).min(LONGEST_PAUSE),
    };
    if turns > PROMPT_TURNS { dripping.max(PAUSE) } else { dripping }
}

/// Polls a future once, for the waker of the task that waits for it.
async fn poll_once<F: Future>(mut future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

/// One of those that are counted, while it lives.
pub(crate) struct Counted<'a, T: Copy + From<u8> + Sub<Output = T>>(&'a Cell<T>);

impl<T: Copy + From<u8> + Add<Output = T> + Sub<Output = T>> Counted<'_, T> {
    fn new(count: &Cell<T>) -> Counted<'_, T> {
        count.set(count.get() + T::from(1));
        Counted(count)
    }
}

impl<T: Copy + From<u8> + Sub<Output = T>> Drop for Counted<'_, T> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - T::from(1));
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn books_of_users_who_are_gone_do_not_pile_up() {
        let admission = Rc::new(Admission::new(STRANGERS_PART));
        let stays = admission.place(Party::User(u32::MAX), None);
        for user in 0..2 * MAX_USERS as u32 {
            drop(admission.place(Party::User(user), None));
        }
        assert!(admission.users.borrow().len() <= MAX_USERS);
        assert!(admission.users.borrow().contains_key(&Party::User(u32::MAX)));
        drop(stays);
    }

    /// Work that goes on for ever, `WORK` at a time.
    async fn busy(done: &Cell<usize>) {
        loop {
            let begun = thread_time();
            while thread_time() - begun < MS / 4 {}
            done.set(done.get() + 1);
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn strangers_who_keep_a_vat_busy_leave_it_to_holders() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let admission = Rc::new(Admission::new(STRANGERS_PART));
            let (done, stranger) = (Cell::new(0), Stranger::default());
            let places: Vec<_> = (0..8).map(|_| admission.place(Party::User(1000), None)).collect();
            let flood = places.iter().map(|place| place.drive(&stranger, || busy(&done)));
            let begun = Instant::now();
            let end = tokio::time::sleep(200 * MS);
            tokio::select! {
                _ = futures::future::join_all(flood) => {}
                () = end => {}
            }
            let most = (begun.elapsed() / STRANGERS_PART + STRANGERS_MOST).as_micros() / 250 + 2;
            assert!((1..=most as usize).contains(&done.get()), "{} turns", done.get());
        });
    }

    #[test]
    fn a_message_that_comes_byte_by_byte_takes_few_turns() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let admission = Rc::new(Admission::new(STRANGERS_PART));
            let turns_of = async |bytes: usize, ended: bool| {
                let (stranger, turns) = (Stranger::default(), Cell::new(0));
                let place = admission.place(Party::User(1000), None);
                let work = || async {
                    loop {
                        stranger.has_read(bytes, ended, true);
                        turns.set(turns.get() + 1);
                        tokio::time::sleep(MS).await;
                    }
                };
                let work = place.drive::<_>(&stranger, work);
                let _: Result<Option<()>, _> = tokio::time::timeout(500 * MS, work).await;
                turns.get()
            };
            assert!(turns_of(1, false).await <= 5, "byte by byte");
            let others = [turns_of(1, true).await, turns_of(FEW_BYTES, false).await];
            assert!(others.iter().all(|turns| *turns > PROMPT_TURNS as usize), "{others:?}");
        });
    }

    #[test]
    fn whoever_gives_up_what_it_asked_for_waits_for_nothing() {
        let stranger = Stranger::default();
        let one = stranger.asking();
        let other = stranger.asking();
        assert_eq!(stranger.asks.get(), 2);
        // A call that its caller gives up is dropped where it stands.
        drop(one);
        drop(other);
        assert_eq!(stranger.asks.get(), 0);
    }

    #[test]
    fn who_restored_something_is_no_longer_held_back() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let admission = Rc::new(Admission::new(STRANGERS_PART));
            let stranger = Stranger::default();
            let place = admission.place(Party::User(1000), None);
            place.user.budget.borrow_mut().spend(admission.now(), STRANGERS_MOST * 2);
            let turns = Cell::new(0);
            let work = || async {
                stranger.restored.set(true);
                for _ in 0..100 {
                    turns.set(turns.get() + 1);
                    place.user.budget.borrow_mut().spend(admission.now(), STRANGERS_MOST);
                    tokio::task::yield_now().await;
                }
            };
            place.drive(&stranger, work).await;
            assert_eq!(turns.get(), 100);
        });
    }

    #[test]
    fn holders_who_connect_without_end_do_not_use_up_their_users_share() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let admission = Rc::new(Admission::new(STRANGERS_PART));
            let begun = Instant::now();
            for _ in 0..100 {
                let stranger = Stranger::default();
                let place = admission.place(Party::User(1000), None);
                let work = || async {
                    let begun = thread_time();
                    while thread_time() - begun < MS / 4 {}
                    tokio::task::yield_now().await;
                    stranger.restored.set(true);
                };
                place.drive(&stranger, work).await;
            }
            // As strangers, for 25 ms of work they would have waited for some 700.
            assert!(begun.elapsed() < 400 * MS, "{:?}", begun.elapsed());
        });
    }

    #[test]
    fn strangers_who_say_nothing_make_room_for_those_who_wait() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let admission = Rc::new(Admission::new(STRANGERS_PART));
            let stranger = Stranger::default();
            let places: Vec<_> = (0..MAX_STRANGERS_OF_A_USER)
                .map(|_| admission.place(Party::User(1000), None))
                .collect();
            let silent = places.iter().map(|place| place.drive(&stranger, std::future::pending));
            let mut silent: futures::stream::FuturesUnordered<_> = silent.collect();
            let alone = tokio::time::timeout(SEAT + SEAT / 4, silent.next()).await;
            assert!(alone.is_err(), "nobody waits, so nobody has to go");
            let next = admission.place(Party::User(1000), None);
            let spoken = next.drive(&stranger, || async { "a word" });
            let (gone, spoken) = futures::join!(silent.next(), spoken);
            assert_eq!((gone, spoken), (Some(None::<()>), Some("a word")));
            let others = tokio::time::timeout(SEAT, silent.next()).await;
            assert!(others.is_err(), "one made room, and one was enough");
        });
    }
}
