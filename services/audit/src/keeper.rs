//! Keeps the log up to date: pulls the outbox, appends, acknowledges.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use distos_abi::Fault;
use distos_rpc::fault_of;
use distos_schemas::kernel_capnp::outbox;
use tokio::sync::watch;

use crate::TRACE;
use crate::intake;
use crate::store::Store;

/// Records asked for at a time.
const PULL: u32 = 256;
/// Pause after a failure, in milliseconds.
const RETRY_MS: u64 = 1_000;

/// The store, shared with the blocking threads that work on it.
pub(crate) type SharedStore = Arc<Mutex<Store>>;

/// How far the log is.
#[derive(Clone, Debug, Default)]
struct Progress {
    /// Newest journal record in the log.
    last_seq: u64,
    /// How many pulls have begun.
    begun: u64,
    /// The newest pull that brought everything that there was.
    caught_up: u64,
    /// Why the log cannot go on at present.
    failure: Option<String>,
}

/// The loop that moves records from the outbox into the log, as others see it.
pub(crate) struct Keeper {
    store: SharedStore,
    progress: watch::Sender<Progress>,
}

impl Keeper {
    /// A keeper for a store that was just opened.
    pub(crate) fn new(store: Store) -> Keeper {
        let last_seq = store.last_seq();
        let (progress, _) = watch::channel(Progress { last_seq, ..Progress::default() });
        Keeper { store: Arc::new(Mutex::new(store)), progress }
    }

    /// Runs `work` on the store on a thread that may block.
    pub(crate) async fn with_store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&SharedStore) -> T + Send + 'static,
    ) -> Result<T, Fault> {
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || work(&store)).await.map_err(Fault::internal)
    }

    /// Resolves when the journal's records up to `up_to` are in the log; for 0, when all that the
    /// journal has at this moment are.
    pub(crate) async fn flushed(&self, up_to: u64) -> Result<(), Fault> {
        let mut changes = self.progress.subscribe();
        let begun = changes.borrow().begun;
        // A pull that began before this call may miss a record that was journaled before it.
        let done = move |p: &Progress| match up_to {
            0 => p.caught_up > begun,
            _ => p.last_seq >= up_to,
        };
        let outcome = changes
            .wait_for(|p| done(p) || p.failure.is_some() || p.caught_up > begun)
            .await
            .map_err(|_| Fault::unavailable(RETRY_MS, "the audit service is stopping"))?;
        match &outcome.failure {
            _ if done(&outcome) => Ok(()),
            Some(why) => {
                Err(Fault::unavailable(RETRY_MS, format!("the log cannot be written: {why}")))
            }
            None => Err(Fault::not_found(format!("the journal has no record {up_to}"))),
        }
    }

    /// Pulls from the outbox that `connect` finds, for ever. A failure stops the acknowledgements
    /// and is tried again.
    pub(crate) async fn keep(
        &self,
        connect: impl AsyncFn() -> Result<outbox::Client, Fault>,
        now_ms: impl Fn() -> u64,
    ) {
        let mut link = None;
        loop {
            let round = async {
                if link.is_none() {
                    link = Some(Link { outbox: connect().await?, acked: 0 });
                }
                let link = link.as_mut().expect("it was made if there was none");
                self.round(link, &now_ms).await
            };
            let failure = round.await.err().map(|fault| match fault {
                // The time to wait is told by who tells of this.
                Fault::Unavailable { why, .. } => why,
                other => other.to_string(),
            });
            let failed = failure.is_some();
            let mut is_new = false;
            self.progress.send_modify(|p| {
                is_new = failed && p.failure.is_none();
                p.failure = failure;
            });
            if is_new {
                tracing::error!(why = ?self.progress.borrow().failure, "the audit log cannot go on");
            }
            if failed {
                link = None;
                tokio::time::sleep(Duration::from_millis(RETRY_MS)).await;
            }
        }
    }

    /// Acknowledges what is durable, pulls once and appends what came.
    async fn round(&self, link: &mut Link, now_ms: &impl Fn() -> u64) -> Result<(), Fault> {
        let last = self.progress.borrow().last_seq;
        if last > link.acked {
            self.on_disk(|store| {
                store.settle()?;
                tracing::debug!(target: TRACE, size = store.checkpoint().size, "settle");
                Ok(())
            })
            .await?;
            tracing::debug!(target: TRACE, up_to = last, "ack");
            let mut request = link.outbox.ack_request();
            request.get().set_up_to(last);
            request.send().promise.await.map_err(|e| fault_of(&e))?;
            link.acked = last;
        }

        self.progress.send_modify(|p| p.begun += 1);
        let mut request = link.outbox.pull_request();
        request.get().set_after(last);
        request.get().set_max(PULL);
        let response = request.send().promise.await.map_err(|e| fault_of(&e))?;
        let records = response.get().and_then(|r| r.get_records()).map_err(|e| fault_of(&e))?;
        let caught_up = records.len() < PULL;
        let now_ms = now_ms();
        let batch = intake::take(last, records, PULL, now_ms).map_err(|e| fault_of(&e))?;
        if !batch.is_empty() {
            self.on_disk(move |store| store.append(&batch, now_ms)).await?;
        }
        let last_seq = self.with_store(|s| lock(s).last_seq()).await?;
        self.progress.send_modify(|p| {
            p.last_seq = last_seq;
            p.caught_up = if caught_up { p.begun } else { p.caught_up };
        });
        Ok(())
    }

    async fn on_disk(
        &self,
        work: impl FnOnce(&mut Store) -> io::Result<()> + Send + 'static,
    ) -> Result<(), Fault> {
        self.with_store(|store| work(&mut lock(store)))
            .await?
            .map_err(|e| Fault::unavailable(RETRY_MS, disk_failure(&e)))
    }
}

fn disk_failure(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "the disk is full: free some space on it".to_owned()
        }
        _ => error.to_string(),
    }
}

struct Link {
    outbox: outbox::Client,
    acked: u64,
}

/// Locks the store. An append changes the store in memory only after the disk has the batch, so
/// that a panic in between leaves nothing half done.
pub(crate) fn lock(store: &SharedStore) -> std::sync::MutexGuard<'_, Store> {
    store.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};
    use std::path::{Path, PathBuf};
    use std::rc::Rc;

    use distos_rpc::fail;

    use crate::store::verify_dir;

    /// Stands in for the kernel's side of the outbox.
    struct Journal {
        newest: Cell<u64>,
        acked: Cell<u64>,
        /// Each acknowledgement fails before it is heard.
        is_deaf: Cell<bool>,
        log: PathBuf,
        early: RefCell<Vec<u64>>,
    }

    struct Server(Rc<Journal>);

    impl outbox::Server for Server {
        async fn pull(
            self: Rc<Self>,
            params: outbox::PullParams,
            mut results: outbox::PullResults,
        ) -> Result<(), capnp::Error> {
            let after = params.get()?.get_after();
            let newest = self.0.newest.get();
            if newest <= after {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let count = newest.saturating_sub(after).min(u64::from(params.get()?.get_max()));
            let mut records = results.get().init_records(count as u32);
            for n in 0..count {
                let mut record = records.reborrow().get(n as u32);
                record.set_seq(after + 1 + n);
                record.set_kind("mint");
            }
            Ok(())
        }

        async fn ack(
            self: Rc<Self>,
            params: outbox::AckParams,
            _: outbox::AckResults,
        ) -> Result<(), capnp::Error> {
            if self.0.is_deaf.get() {
                return Err(fail(Fault::unavailable(1, "the connection was lost")));
            }
            let up_to = params.get()?.get_up_to();
            // What is acknowledged is signed and on disk: each entry is one record here.
            let signed = verify_dir(&self.0.log, None).checkpoint.map_or(0, |c| c.size);
            if signed < up_to {
                self.0.early.borrow_mut().push(up_to);
            }
            self.0.acked.set(up_to);
            Ok(())
        }
    }

    fn journal(log: &Path, newest: u64) -> Rc<Journal> {
        Rc::new(Journal {
            newest: Cell::new(newest),
            acked: Cell::new(0),
            is_deaf: Cell::new(false),
            log: log.to_owned(),
            early: RefCell::default(),
        })
    }

    fn start(journal: &Rc<Journal>) -> Rc<Keeper> {
        let store = Store::open(
            &journal.log,
            |seed| {
                seed.fill(7);
                Ok(())
            },
            1,
            4_000,
        )
        .unwrap();
        let keeper = Rc::new(Keeper::new(store));
        let (kept, journal) = (keeper.clone(), journal.clone());
        tokio::task::spawn_local(async move {
            kept.keep(async || Ok(capnp_rpc::new_client(Server(journal.clone()))), || 1).await;
        });
        keeper
    }

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, test);
    }

    async fn until(done: impl Fn() -> bool) {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn entries(log: &Path) -> u64 {
        verify_dir(log, None).checkpoint.unwrap().size
    }

    #[test]
    fn the_kernel_is_told_that_a_record_is_safe_only_when_it_is() {
        let dir = tempfile::tempdir().unwrap();
        run(async {
            let journal = journal(dir.path(), 600);
            let keeper = start(&journal);
            keeper.flushed(0).await.unwrap();
            assert_eq!(entries(dir.path()), 600, "flush waits for all that there was");
            for _ in 0..5 {
                journal.newest.set(journal.newest.get() + 3);
                keeper.flushed(0).await.unwrap();
                assert_eq!(entries(dir.path()), journal.newest.get());
            }
            keeper.flushed(615).await.unwrap();
            assert_eq!(keeper.flushed(616).await.unwrap_err().code(), 15);
            until(|| journal.acked.get() == 615).await;
            assert!(journal.early.borrow().is_empty());
        });
    }

    #[test]
    fn a_lost_acknowledgement_leaves_each_record_in_the_log_once() {
        let dir = tempfile::tempdir().unwrap();
        run(async {
            let journal = journal(dir.path(), 10);
            journal.is_deaf.set(true);
            let keeper = start(&journal);
            keeper.flushed(10).await.unwrap();
            until(|| keeper.progress.borrow().failure.is_some()).await;
        });
        // Everything of the first process is gone, and the kernel sends all of it again.
        run(async {
            let journal = journal(dir.path(), 12);
            start(&journal).flushed(0).await.unwrap();
            until(|| journal.acked.get() == 12).await;
        });
        assert_eq!(entries(dir.path()), 12);
    }

    #[test]
    fn a_full_disk_holds_back_acknowledgements_and_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        run(async {
            let journal = journal(dir.path(), 4);
            let keeper = start(&journal);
            keeper.flushed(0).await.unwrap();
            until(|| journal.acked.get() == 4).await;
            let block = dir.path().join("head.new");
            std::fs::create_dir(&block).unwrap();
            journal.newest.set(9);
            let fault = keeper.flushed(0).await.unwrap_err();
            assert_eq!(fault.code(), 17, "{fault}");
            assert_eq!((journal.acked.get(), entries(dir.path())), (4, 4));
            std::fs::remove_dir(&block).unwrap();
            until(|| journal.acked.get() == 9).await;
            assert_eq!(entries(dir.path()), 9);
            keeper.flushed(0).await.unwrap();
        });
    }
}
