//! The kernel's decisions put into effect: what the core decided becomes stores in the capability
//! table and records in the journal, in the order that L2 demands, and a revocation waits for
//! quiescence (C2).
//!
//! It does not start processes ([`crate::vats`]) and knows no interface ([`crate::server`]).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use distos_abi::{Fault, HolderKey, Meter, NodeId, SlotRef, TenantId, VatName};
use distos_core::{Applied, Command, Forest, Order, Outcome, TableOp};
use distos_table::{Barrier, GuardWatch, Snapshot, Table};
use distos_types::HolderSecret;
use futures::future::LocalBoxFuture;
use tokio::sync::Notify;

use crate::events::{Event, emit};
use crate::journal::{JournalHandle, codec};

/// A vat that has not reached quiescence after this long is killed (fail closed). A guard covers
/// one synchronous step that no tenant's input can prolong.
const QUIESCENCE: Duration = Duration::from_millis(250);
/// How long a killed vat may take to be gone before the node fences itself.
const DEATH: Duration = Duration::from_secs(10);
/// Increases of authority that one tenant, or one key that restores capabilities, may make in a
/// second: a fraction of what the audit service keeps up with.
const INCREASES_PER_S: u32 = 1000;
/// The same for restoring while the journal is full.
const RESERVED_PER_S: u32 = 4;
/// Capabilities whose time is over that are ended at a time.
const SWEEP_BATCH: u32 = 1024;
/// Dead slots taken back at a time: some hundredths of a millisecond, for which others wait.
const RECLAIM_BATCH: u32 = 32;
/// Batches between two barriers, each of which interrupts every processor.
const RECLAIM_BATCHES: usize = 32;

/// The guards of one running vat, and the way to end it.
pub(crate) struct Watched {
    pub(crate) name: VatName,
    pub(crate) guards: GuardWatch,
    pub(crate) kill: Box<dyn Fn()>,
}

/// The trusted state of a node.
pub(crate) struct Kernel {
    pub(crate) forest: RefCell<Forest>,
    pub(crate) journal: JournalHandle,
    pub(crate) secret: HolderSecret,
    pub(crate) draining: Cell<bool>,
    pub(crate) appended: Notify,
    /// The node is going down in order: the outbox gives nothing more.
    pub(crate) closing: Cell<bool>,
    /// The auditor has made everything durable that it was given.
    pub(crate) audited: Notify,
    table: Table,
    watched: RefCell<Vec<Rc<Watched>>>,
    /// Capabilities that the forest has and the table does not show yet, because their records
    /// are not durable.
    unpublished: RefCell<BTreeSet<SlotRef>>,
    published: Notify,
    paces: RefCell<Paces>,
}

/// What a revocation took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Revoked {
    pub(crate) micros: u64,
    pub(crate) descendants: u64,
}

/// The time, in milliseconds since the Unix epoch.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

impl Kernel {
    pub(crate) fn new(
        forest: Forest,
        table: Table,
        journal: JournalHandle,
        secret: HolderSecret,
    ) -> Kernel {
        let kernel = Kernel {
            forest: RefCell::new(forest),
            journal,
            secret,
            draining: Cell::new(false),
            appended: Notify::new(),
            closing: Cell::new(false),
            audited: Notify::new(),
            table,
            watched: RefCell::default(),
            unpublished: RefCell::default(),
            published: Notify::new(),
            paces: RefCell::default(),
        };
        let replayed = kernel.forest.borrow().table_after_replay();
        kernel.store(&replayed);
        kernel
    }

    /// The node's name: the public half of the key that signs its root certificates.
    pub(crate) fn node(&self) -> NodeId {
        NodeId(self.secret.key().0)
    }

    /// Carries out a command. An increase of authority shows nowhere before its record is durable;
    /// a decrease takes effect first, and is durable and quiescent when this returns.
    ///
    /// What is decided here at once is finished in a task of its own: a caller that gives up, as
    /// one does whose client hangs up, must not leave a command half done.
    pub(crate) async fn apply(self: &Rc<Self>, command: Command) -> Result<Outcome, Fault> {
        self.admit(&command)?;
        let ends = matches!(command, Command::Revoke { .. } | Command::RevokeLink { .. });
        let decided = self.forest.borrow_mut().apply(command, now_ms());
        if ends && decided == Err(Fault::Revoked) {
            // Somebody else ended it. Whoever asks for its end is told of it only when it is so: no
            // use is under way any more (C2), and a crash does not bring it back.
            self.quiesce(self.guards()).await;
            self.journal.sync().await.map_err(|e| -> Fault { fence(&e) })?;
        }
        let applied = decided?;
        let Applied { outcome, table, order, .. } = &applied;
        let outcome = outcome.clone();
        if *order == Order::Lazy && !self.waits_for_parent(table) {
            self.record_later(&applied);
            self.publish_live(table)?;
            return Ok(outcome);
        }
        let kernel = self.clone();
        let finish: LocalBoxFuture<'static, Result<(), Fault>> = match order {
            Order::RecordFirst => {
                let slots: Vec<SlotRef> = table.iter().filter_map(published).collect();
                self.unpublished.borrow_mut().extend(&slots);
                let recorded = self.record(&applied, true);
                Box::pin(async move {
                    let recorded = recorded.await;
                    // A parent's record is durable before its child's, but who waits for it may
                    // hear of that later. Until the parent shows, the child would look revoked.
                    kernel.until_published(&applied.table).await;
                    let shown = recorded.and_then(|()| kernel.publish_live(&applied.table));
                    kernel.unpublished.borrow_mut().retain(|slot| !slots.contains(slot));
                    kernel.published.notify_waiters();
                    shown
                })
            }
            Order::TableFirst => {
                self.store(table);
                let recorded = self.record(&applied, true);
                // Taken after the stores: whoever starts later sees them.
                let guards = self.guards();
                Box::pin(async move {
                    kernel.quiesce(guards).await;
                    recorded.await?;
                    if !applied.records.is_empty() {
                        return Ok(());
                    }
                    // What somebody else has ended already may still be on its way to the disk.
                    kernel.journal.sync().await.map_err(|e| -> Fault { fence(&e) })
                })
            }
            Order::Lazy => {
                self.record_later(&applied);
                Box::pin(async move {
                    kernel.until_published(&applied.table).await;
                    kernel.publish_live(&applied.table)
                })
            }
        };
        tokio::task::spawn_local(finish).await.map_err(Fault::internal)??;
        Ok(outcome)
    }

    /// Carries out a revocation and times it.
    pub(crate) async fn revoke(self: &Rc<Self>, command: Command) -> Result<Revoked, Fault> {
        let started = Instant::now();
        let outcome = self.apply(command).await?;
        let descendants = match outcome {
            Outcome::Revoked { descendants } => descendants,
            _ => 0,
        };
        Ok(Revoked { micros: started.elapsed().as_micros() as u64, descendants })
    }

    /// Carries out a decrease that nobody waits for: a session or a vat that is gone.
    pub(crate) fn drop_at_once(&self, command: Command) {
        match self.forest.borrow_mut().apply(command, now_ms()) {
            Ok(applied) => {
                self.store(&applied.table);
                self.record_later(&applied);
            }
            Err(fault) => tracing::debug!(%fault, "nothing to end"),
        }
    }

    /// Waits for parents whose own records are still on their way to the disk.
    async fn until_published(&self, ops: &[TableOp]) {
        loop {
            let changed = self.published.notified();
            if !self.waits_for_parent(ops) {
                return;
            }
            changed.await;
        }
    }

    /// Whether one of `ops` hangs from a capability that does not show yet and that is not itself
    /// among them.
    fn waits_for_parent(&self, ops: &[TableOp]) -> bool {
        let unpublished = self.unpublished.borrow();
        let own = |slot: &SlotRef| ops.iter().filter_map(published).any(|op| op == *slot);
        ops.iter().any(|op| match op {
            TableOp::Publish { parent: Some(parent), .. } => {
                unpublished.contains(parent) && !own(parent)
            }
            _ => false,
        })
    }

    /// Whether an increase may be recorded now: the journal has room, and its tenant keeps to the
    /// pace that leaves room for the others. When the journal is full, sturdy capabilities can
    /// still be restored, slowly: a holder that can't get in can't revoke.
    fn admit(&self, command: &Command) -> Result<(), Fault> {
        let Some(payer) = self.payer(command) else { return Ok(()) };
        let has_room = self.journal.has_room_for_increase();
        let may_restore =
            || matches!(command, Command::Redeem { .. }) && self.journal.has_reserve();
        if !(has_room || may_restore()) {
            return Err(Fault::unavailable(
                1000,
                "the journal is full: free space in the node's directory, or let the audit service catch up",
            ));
        }
        let per_s = if has_room { INCREASES_PER_S } else { RESERVED_PER_S };
        self.paces.borrow_mut().admit(payer, per_s, now_ms() / 1000)
    }

    /// Who an increase is counted against; `None` if the command is none, or the node's own.
    fn payer(&self, command: &Command) -> Option<Payer> {
        let tenant_of = |slot: &SlotRef| {
            let tenant = self.forest.borrow().tenant_of(*slot)?;
            (tenant != TenantId::OPERATOR).then_some(Payer::Tenant(tenant))
        };
        match command {
            Command::Mint { parent: Some(slot), .. }
            | Command::Derive { parent: slot, .. }
            | Command::Deposit { parent: slot, .. } => tenant_of(slot),
            Command::Redeem { links, .. } => links.last().map(|link| Payer::Key(link.holder)),
            _ => None,
        }
    }

    /// Puts an event into the journal.
    pub(crate) fn report(&self, command: Command) -> Result<(), Fault> {
        if !self.journal.has_room_for_increase() {
            return Err(Fault::unavailable(1000, "the journal is full"));
        }
        let applied = self.forest.borrow_mut().apply(command, now_ms())?;
        self.record_later(&applied);
        Ok(())
    }

    pub(crate) fn watch(&self, watched: Rc<Watched>) {
        self.watched.borrow_mut().push(watched);
    }

    pub(crate) fn unwatch(&self, watched: &Rc<Watched>) {
        self.watched.borrow_mut().retain(|other| !Rc::ptr_eq(other, watched));
    }

    /// Ends what has expired and takes back dead slots, in bounded batches, for ever.
    pub(crate) async fn housekeep(self: Rc<Self>) {
        loop {
            let sweep = Command::Sweep { max: SWEEP_BATCH };
            if let Err(fault) = self.apply(sweep).await {
                tracing::warn!(%fault, "expired capabilities could not be swept");
            }
            while self.reclaim().await {
                tokio::task::yield_now().await;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Takes back some batches; whether more remain. Whoever calls meanwhile waits for one batch, and
    /// all of them together wait for one barrier.
    async fn reclaim(&self) -> bool {
        let (mut last, mut remain) = (None, true);
        for _ in 0..RECLAIM_BATCHES {
            let taken =
                self.forest.borrow_mut().apply(Command::Reclaim { max: RECLAIM_BATCH }, now_ms());
            let Ok(Applied { outcome: Outcome::Reclaimed { count, token, more }, table, .. }) =
                taken
            else {
                break;
            };
            if count > 0 {
                self.store(&table);
                last = Some(token);
            }
            remain = more;
            if !more {
                break;
            }
            tokio::task::yield_now().await;
        }
        let Some(token) = last else { return false };
        self.quiesce(self.guards()).await;
        // Reclaiming changes no authority, so it is not recorded and cannot fail here. This releases
        // the batches before the last one too.
        let _ = self.forest.borrow_mut().apply(Command::Release { token }, now_ms());
        remain
    }

    fn store(&self, ops: &[TableOp]) {
        for op in ops {
            match *op {
                TableOp::Publish { slot, parent, tenant } => {
                    self.table.publish(slot, parent, tenant)
                }
                TableOp::Kill { slot } => {
                    self.table.kill(slot);
                }
            }
        }
    }

    /// Publishes what is still alive: a revocation may have come while the record was written, and
    /// its kill found an empty slot.
    fn publish_live(&self, ops: &[TableOp]) -> Result<(), Fault> {
        for op in ops {
            match *op {
                TableOp::Publish { slot, .. } if self.forest.borrow().grant(slot).is_none() => {
                    return Err(Fault::Revoked);
                }
                _ => self.store(std::slice::from_ref(op)),
            }
        }
        Ok(())
    }

    /// Journals the records, in the core's order; the future resolves when they are durable.
    fn record(
        &self,
        applied: &Applied,
        durable: bool,
    ) -> impl Future<Output = Result<(), Fault>> + use<> {
        let time_ms = now_ms();
        let mut last = None;
        for record in &applied.records {
            last = Some(self.journal.submit(codec::encode(record), time_ms, durable));
        }
        self.appended.notify_waiters();
        async move {
            match last {
                Some(written) => written.await.map_err(|e| -> Fault { fence(&e) }),
                None => Ok(()),
            }
        }
    }

    fn record_later(&self, applied: &Applied) {
        // The handle keeps the records and their order; only the wait is dropped.
        drop(self.record(applied, false));
    }

    fn guards(&self) -> Vec<(Rc<Watched>, Snapshot)> {
        let watched = self.watched.borrow();
        if watched.is_empty() {
            return Vec::new();
        }
        let barrier = Barrier::pass().unwrap_or_else(|e| fence(&e));
        watched
            .iter()
            .map(|vat| (vat.clone(), vat.guards.snapshot(&barrier)))
            .filter(|(_, snapshot)| !snapshot.is_empty())
            .collect()
    }

    /// Waits until every guard of the snapshots is gone. Never blocks the kernel's loop.
    async fn quiesce(&self, mut waiting: Vec<(Rc<Watched>, Snapshot)>) {
        let started = Instant::now();
        loop {
            waiting.retain_mut(|(vat, snapshot)| !vat.guards.quiescent_since(snapshot));
            if waiting.is_empty() {
                return;
            }
            if started.elapsed() > QUIESCENCE {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        for (vat, _) in &waiting {
            tracing::error!(vat = %vat.name, "no quiescence after 250 ms: the vat is killed");
            (vat.kill)();
        }
        // Dead is quiescent too, but only once it is dead.
        let started = Instant::now();
        while waiting.iter().any(|(vat, _)| self.is_watched(vat)) {
            if started.elapsed() > DEATH {
                fence(&"a vat that was killed does not end");
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn is_watched(&self, vat: &Rc<Watched>) -> bool {
        self.watched.borrow().iter().any(|other| Rc::ptr_eq(other, vat))
    }
}

fn published(op: &TableOp) -> Option<SlotRef> {
    match op {
        TableOp::Publish { slot, .. } => Some(*slot),
        TableOp::Kill { .. } => None,
    }
}

/// Who uses up the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Payer {
    Tenant(TenantId),
    Key(HolderKey),
}

/// How many increases each payer made in the current second.
#[derive(Default)]
struct Paces {
    second: u64,
    counts: BTreeMap<Payer, u32>,
}

impl Paces {
    fn admit(&mut self, payer: Payer, per_s: u32, second: u64) -> Result<(), Fault> {
        if self.second != second {
            *self = Paces { second, counts: BTreeMap::new() };
        }
        let count = self.counts.entry(payer).or_default();
        *count += 1;
        let (limit, wanted) = (u64::from(per_s), u64::from(*count));
        if *count > per_s {
            return Err(Fault::OverQuota { meter: Meter::Rate, limit, wanted });
        }
        Ok(())
    }
}

/// The kernel can no longer keep its promises (L2, C2): the node ends rather than go on. As the
/// kernel is init of its services, they end with it.
fn fence(error: &dyn std::fmt::Display) -> ! {
    tracing::error!(%error, "this node fences itself");
    emit(&Event::Failed { why: format!("this node fences itself: {error}") });
    std::process::exit(i32::from(Fault::Internal(String::new()).code()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use distos_abi::{Authority, Kind};
    use distos_table::View;

    /// Runs a test with a kernel of its own and a vat's view of its table. The test is a task among
    /// the kernel's, as callers are: nobody else runs between two of its awaits.
    fn with_kernel<F: Future<Output = ()> + 'static>(test: impl FnOnce(Rc<Kernel>, View) -> F) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let ended = tokio::task::LocalSet::new().block_on(&runtime, async {
            let (journal, _) = JournalHandle::open(dir.path()).unwrap();
            let (table, fd) = Table::create(256).unwrap();
            let view = View::map(&fd).unwrap();
            let secret = HolderSecret::from_seed([1; 32]);
            let kernel = Rc::new(Kernel::new(Forest::new(1, 256), table, journal, secret));
            tokio::task::spawn_local(test(kernel, view)).await
        });
        ended.unwrap();
    }

    fn memory() -> VatName {
        VatName::new("memory").unwrap()
    }

    /// A root of this kind for the operator.
    fn root(kind: u16) -> Command {
        let (vat, kind, authority) = (memory(), Kind(kind), Authority::FULL);
        let (holder, tenant) = (HolderKey([2; 32]), TenantId::OPERATOR);
        Command::MintRoot { vat, kind, authority, holder, tenant }
    }

    /// The slot of that root.
    fn slot_of_root(kernel: &Kernel, kind: u16) -> SlotRef {
        let roots = kernel.forest.borrow().roots_of(TenantId::OPERATOR);
        roots.iter().find(|grant| grant.facts.kind == Kind(kind)).unwrap().slot
    }

    /// A client that hangs up while its capability is being made must not keep the next one from it.
    #[test]
    fn a_caller_that_gives_up_leaves_nothing_half_made() {
        with_kernel(async |kernel, view| {
            let mut given_up = Box::pin(kernel.apply(root(1)));
            assert!(futures::poll!(given_up.as_mut()).is_pending(), "it waits for the disk");
            drop(given_up);
            let (vat, parent, wanted) = (memory(), slot_of_root(&kernel, 1), Authority::FULL);
            let session = distos_abi::SessionId(1);
            let derive = kernel.apply(Command::Derive { vat, parent, wanted, session });
            let derived = tokio::time::timeout(Duration::from_secs(10), derive).await.unwrap();
            let Outcome::Granted(derived) = derived.unwrap() else { panic!("no grant") };
            assert!(view.alive(derived.slot), "the parent is in the table, and so the child lives");
        });
    }

    /// Else whoever is granted something below a capability that is just being made is told now and
    /// then, on a busy machine, that it was revoked.
    #[test]
    fn what_hangs_from_a_capability_that_is_being_made_is_alive_when_it_is_granted() {
        with_kernel(async |kernel, view| {
            for round in 1..=20 {
                let mut made = Box::pin(kernel.apply(root(round)));
                assert!(futures::poll!(made.as_mut()).is_pending(), "it waits for the disk");
                // Its task begins to wait, so that it is woken from the journal's thread.
                tokio::task::yield_now().await;
                let (vat, authority) = (memory(), Authority::FULL);
                let (kind, object) = (Kind(1000), distos_abi::ObjectId(1));
                let (parent, session) = (Some(slot_of_root(&kernel, round)), None);
                let mint = Command::Mint { vat, parent, kind, object, authority, session };
                let mut minted = Box::pin(kernel.apply(mint));
                assert!(futures::poll!(minted.as_mut()).is_pending(), "it waits for the disk");
                // As where others have the processor: both records are durable when this goes on.
                std::thread::sleep(Duration::from_millis(20));
                let Outcome::Granted(minted) = minted.await.unwrap() else { panic!("no grant") };
                assert!(view.alive(minted.slot), "round {round}: it was granted and is dead");
                made.await.unwrap();
            }
        });
    }

    /// Else the second of two sessions that end the same capability believes that nothing has an
    /// effect any more while a use of it still goes on.
    #[test]
    fn who_revokes_what_is_dead_already_waits_for_the_uses_that_had_begun() {
        with_kernel(async |kernel, _| {
            kernel.apply(root(1)).await.unwrap();
            let (vat, slot) = (memory(), slot_of_root(&kernel, 1));
            let page = distos_table::GuardPage::create(1).unwrap();
            let guards = GuardWatch::map(&page).unwrap();
            let kill = Box::new(|| ());
            kernel.watch(Rc::new(Watched { name: vat.clone(), guards, kill }));
            let seat = distos_table::GuardPage::map(&page).unwrap().seat().unwrap();

            let under_way = seat.enter();
            let revoke = Command::Revoke { vat, slot };
            let mut first = Box::pin(kernel.apply(revoke.clone()));
            assert!(futures::poll!(first.as_mut()).is_pending());
            let mut second = Box::pin(kernel.apply(revoke));
            for _ in 0..20 {
                let told = futures::poll!(second.as_mut());
                assert!(told.is_pending(), "{told:?} while a use is under way");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            drop(under_way);
            first.await.unwrap();
            assert_eq!(second.await, Err(Fault::Revoked));
        });
    }

    /// Else a power failure brings back what the second of two was told is revoked.
    #[test]
    fn who_revokes_what_is_being_revoked_waits_for_the_same_record() {
        with_kernel(async |kernel, _| {
            kernel.apply(root(1)).await.unwrap();
            let under = slot_of_root(&kernel, 1);
            for number in 0..20 {
                let link = distos_abi::LinkHash([number; 32]);
                let revoke =
                    Command::RevokeLink { vat: memory(), under, link, expires_ms: u64::MAX };
                let mut first = Box::pin(kernel.apply(revoke.clone()));
                assert!(futures::poll!(first.as_mut()).is_pending(), "it waits for the disk");
                kernel.apply(revoke).await.unwrap();
                let durable = kernel.journal.read_from(0, 100).len();
                assert_eq!(durable, usize::from(number) + 2, "the link is not revoked on the disk");
                first.await.unwrap();
            }
        });
    }

    #[test]
    fn one_tenant_cannot_fill_the_journal_for_the_others() {
        let mut paces = Paces::default();
        let (red, blue) = (Payer::Tenant(TenantId(1)), Payer::Key(HolderKey([2; 32])));
        assert!((0..10).all(|_| paces.admit(red, 10, 7).is_ok()));
        assert_eq!(paces.admit(red, 10, 7).unwrap_err().code(), 13);
        assert!(paces.admit(blue, 10, 7).is_ok());
        assert!(paces.admit(red, 10, 8).is_ok());
    }
}
