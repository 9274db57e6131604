//! The broker: what each capability allows, what is recorded before it takes effect, and what goes out sealed.
//!
//! [`accounts`], [`custody`], [`evidence`], [`parcels`] and [`root`] are what it does, [`tenants`] and [`one`] how it is asked.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use capnp::private::capability::ClientHook;
use distos_abi::{ByteRange, CapId, Fault, ObjectId, Rights, TenantId};
use distos_rpc::boot::Boot;
use distos_rpc::{Facet, Service, Vat, fail};
use distos_schemas::secrets_capnp::accounts as accounts_capnp;
use distos_types::kind::{SECRET, SECRETS};
use futures::future::LocalBoxFuture;
use tokio::sync::Notify;

use self::accounts::Later;
use self::one::SecretServer;
use self::parcels::Own;
use self::root::Asked;
use self::tenants::SecretsServer;
use crate::barrier::Barrier;
use crate::record::{LeaseId, Payloads, Record};
use crate::shamir::Share;
use crate::state::{Clock, Limits, State};
use crate::store::{Committer, Log, StoreError, Written};

mod accounts;
mod custody;
mod evidence;
mod one;
mod parcels;
mod root;
mod tenants;

const ATTESTATION_EDGE: &str = "attestation";
const NO_BYTES: ByteRange = ByteRange { start: 0, end: 0 };
/// How often leases that have ended are cleared away, and what could not be written is tried again.
const TICK: Duration = Duration::from_secs(1);
/// Leases that are looked at each time.
const SWEEP: usize = 8192;
/// A log that is longer than this, in bytes, is rewritten when it has doubled since.
const COMPACT_BYTES: u64 = 32 << 20;
/// How far behind what was written of the time may be when something changes, and while leases only run, in milliseconds.
const FLOOR_STEP_MS: u64 = 1_000;
const FLOOR_IDLE_MS: u64 = 60_000;
/// How often the log is rewritten at most because a secret was dropped.
const SHRED_PAUSE: Duration = Duration::from_secs(60);
/// Changes that are carried out while none can be recorded. They wait in memory, and what comes after them is refused:
/// nothing is given out meanwhile anyway.
const MOST_UNWRITTEN: u64 = 4096;
/// How soon whoever comes while nothing can be recorded may ask again, in milliseconds.
const FAILING_RETRY_MS: u64 = 2_000;

/// Runs the secret broker; blocks for the whole life of the vat. Setting `leases` (default 65536): how many leases a
/// tenant may have.
pub fn run(boot: Boot) -> ExitCode {
    distos_rpc::run(boot, start)
}

/// Opens the log and brings it and the kernel to agree on which secrets there are.
///
/// # Errors
/// The image gives it no directory, or its log is damaged or made by a newer version.
pub async fn start(vat: Vat) -> Result<Rc<dyn Service>, Fault> {
    let dir = vat.data_dir().map(ToOwned::to_owned).ok_or_else(|| {
        Fault::malformed("the image gives the secret broker no directory: data = true")
    })?;
    let mut limits = Limits::default();
    if let Some(text) = vat.param("leases") {
        let leases =
            text.parse().map_err(|_| Fault::malformed(format!("leases: '{text}' is no number")))?;
        limits = limits.with_leases(leases);
    }
    let (id, now_ms) = (random_bytes()?, vat.now_ms());
    let opened = tokio::task::spawn_blocking(move || Log::open(&dir, limits, id, now_ms));
    let (state, log) = opened.await.map_err(Fault::internal)??;
    let clock = Cell::new(Clock::new(state.floor_ms()));
    let log_bytes = log.bytes();
    let committer = Committer::start(log).map_err(Fault::internal)?;
    reconcile(&vat, &state).await?;
    let asked = if state.is_closed() { Asked::closed() } else { Asked::default() };
    distos_noise::seal(&vat);
    tokio::task::spawn_local(distos_quic::attend(vat.clone()));
    let broker = Rc::new(Broker {
        vat,
        state: RefCell::new(state),
        clock,
        begun: Instant::now(),
        committer,
        barrier: RefCell::default(),
        given: RefCell::default(),
        asked: RefCell::new(asked),
        contradicted: RefCell::default(),
        own: RefCell::default(),
        accounts: RefCell::default(),
        later: RefCell::default(),
        failing: RefCell::default(),
        unwritten: Cell::new(0),
        batch: Cell::new(0),
        compact_at: Cell::new(COMPACT_BYTES.max(2 * log_bytes)),
        shred: Cell::new(false),
        ended: Notify::new(),
    });
    let gifts = broker.state.borrow().ends_of_gifts();
    if !gifts.is_empty() {
        // They have ended. What cannot be recorded is kept and written later.
        let _ = broker.note_all(gifts).await;
    }
    tokio::task::spawn_local(broker.clone().keep());
    tokio::task::spawn_local(broker.clone().remove_accounts());
    tokio::task::spawn_local(broker.clone().watch_evidence());
    tokio::task::spawn_local(broker.clone().open_by_tpm());
    Ok(broker)
}

/// A capability without a secret is revoked. A secret without a capability is kept: what was acknowledged may only end by
/// being dropped, and its tenant reaches it by name.
async fn reconcile(vat: &Vat, state: &State) -> Result<(), Fault> {
    for (kind, object, _) in vat.objects().await? {
        if kind == SECRET && state.facts(object).is_err() {
            vat.revoke_object(SECRET, object).await?;
        }
    }
    Ok(())
}

fn random_bytes<const N: usize>() -> Result<[u8; N], Fault> {
    let mut bytes = [0; N];
    random(&mut bytes)?;
    Ok(bytes)
}

fn random(bytes: &mut [u8]) -> Result<(), Fault> {
    getrandom::fill(bytes).map_err(|e| Fault::internal(format!("no randomness: {e}")))
}

struct Broker {
    vat: Vat,
    state: RefCell<State>,
    clock: Cell<Clock>,
    /// Since when that runs.
    begun: Instant,
    committer: Committer,
    /// There while the broker is open.
    barrier: RefCell<Option<Barrier>>,
    /// Shares of those that are needed.
    given: RefCell<Vec<Share>>,
    /// What became of asking the TPM for the root key.
    asked: RefCell<Asked>,
    /// Why this node's evidence is not good, if it contradicts what is demanded.
    contradicted: RefCell<Option<String>>,
    /// The newest, and the one before, to which somebody may still be sealing.
    own: RefCell<Vec<Rc<Own>>>,
    /// Where accounts are made, for the secrets of which somebody who is connected has said so.
    accounts: RefCell<BTreeMap<ObjectId, accounts_capnp::Client>>,
    /// Accounts that could not be removed, and when that is tried again. None but of those that are still to be.
    later: RefCell<BTreeMap<(ObjectId, LeaseId), Later>>,
    /// Why what was done last is not on the disk.
    failing: RefCell<Option<StoreError>>,
    /// Changes since then.
    unwritten: Cell<u64>,
    /// The last batch of the log of which it is known how it ended.
    batch: Cell<u64>,
    compact_at: Cell<u64>,
    /// Whether keys of secrets that were dropped since stand in the log.
    shred: Cell<bool>,
    /// Told whenever leases end, for whoever watches one.
    ended: Notify,
}

impl Broker {
    /// The time by which leases end, in milliseconds since the Unix epoch. It never goes back.
    fn now_ms(&self) -> u64 {
        let run_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut clock = self.clock.get();
        let now_ms = clock.now_ms(self.vat.now_ms(), run_ms);
        self.clock.set(clock);
        now_ms
    }

    fn usable(&self) -> Result<(), Fault> {
        match &*self.failing.borrow() {
            None => Ok(()),
            Some(error) => Err(Fault::unavailable(
                FAILING_RETRY_MS,
                format!("nothing is given out while nothing can be recorded: {error}"),
            )),
        }
    }

    /// Uses the root key.
    fn opened<T>(&self, with: impl FnOnce(&Barrier) -> Result<T, Fault>) -> Result<T, Fault> {
        self.usable()?;
        match &*self.barrier.borrow() {
            Some(barrier) => with(barrier),
            None => Err(Fault::unavailable(
                0,
                "the secret broker is sealed: its operators open it (distos secret unseal; distos secret status says why)",
            )),
        }
    }

    /// Carries records out, under a guard of `facet`'s, and makes them durable. What comes before `act` has decided them.
    /// They take effect at once, and count once this returns; on an error nothing is given out until they are durable.
    async fn change<T>(
        &self,
        facet: &Facet,
        need: Rights,
        decide: impl FnOnce(&State) -> Result<(Vec<Record>, T), Fault>,
    ) -> Result<(T, u64), Fault> {
        if let Err(failing) = self.usable() {
            if self.unwritten.get() >= MOST_UNWRITTEN {
                return Err(failing);
            }
            self.unwritten.set(self.unwritten.get() + 1);
        }
        let now_ms = self.now_ms();
        let committed = facet.commit(need, NO_BYTES, || {
            let mut state = self.state.borrow_mut();
            let (mut records, result) = decide(&state)?;
            // So that no restart has it earlier than when this was decided.
            if now_ms >= state.floor_ms().saturating_add(FLOOR_STEP_MS) {
                records.insert(0, Record::Time(now_ms));
            }
            let payloads: Payloads = records.iter().cloned().collect();
            let mut ended = 0;
            for record in records {
                ended += state.apply(record).map_err(Fault::internal)?;
            }
            Ok::<_, Fault>((result, ended, self.committer.append(payloads)))
        });
        let (result, ended, answer) = committed??;
        self.tell_ended(ended);
        self.settle(answer.await)?;
        Ok((result, ended))
    }

    fn tell_ended(&self, leases: u64) {
        if leases > 0 {
            self.ended.notify_waiters();
        }
    }

    /// Notes how a request to the log ended; its length in bytes.
    fn settle<E>(&self, answer: Result<Written, E>) -> Result<u64, Fault> {
        let gone = |_| {
            let result = Err(StoreError::Broken("its thread is gone".into()));
            Written { batch: u64::MAX, result }
        };
        let Written { batch, result } = answer.unwrap_or_else(gone);
        // Of an earlier batch somebody may hear later.
        if batch >= self.batch.get() {
            self.batch.set(batch);
            *self.failing.borrow_mut() = result.as_ref().err().cloned();
            if result.is_ok() {
                self.unwritten.set(0);
            }
        }
        result.map_err(Fault::from)
    }

    /// Clears away what has ended, tries again what could not be written, and rewrites the log, until the vat ends.
    async fn keep(self: Rc<Self>) {
        let mut rewritten = self.begun;
        loop {
            tokio::time::sleep(TICK).await;
            let now_ms = self.now_ms();
            let was_failing = self.failing.borrow().is_some();
            let time = {
                let mut state = self.state.borrow_mut();
                let idle = state.counts().1 == 0;
                let cleared = state.sweep(SWEEP, now_ms) > 0;
                let step_ms = if cleared { FLOOR_STEP_MS } else { FLOOR_IDLE_MS };
                let due = now_ms >= state.floor_ms().saturating_add(step_ms);
                let time = (due && !idle && !was_failing).then_some(Record::Time(now_ms));
                if let Some(Record::Time(now_ms)) = time {
                    state.reached(now_ms);
                }
                time
            };
            let answer = self.committer.append(time.into_iter().collect()).await;
            let Ok(bytes) = self.settle(answer) else { continue };
            if was_failing {
                tracing::warn!("what could not be recorded is recorded");
            }
            let shred = self.shred.get() && rewritten.elapsed() >= SHRED_PAUSE;
            if shred || bytes > self.compact_at.get() {
                rewritten = Instant::now();
                self.compact(bytes, now_ms).await;
            }
        }
    }

    /// Carries out, and makes durable, what nobody has asked for.
    async fn note(&self, record: Record) -> Result<(), Fault> {
        self.note_all(vec![record]).await.map(drop)
    }

    /// Likewise, all in one step; how many leases ended with it.
    async fn note_all(&self, records: Vec<Record>) -> Result<u64, Fault> {
        let payloads = records.iter().cloned().collect();
        let mut ended = 0;
        for record in records {
            ended += self.state.borrow_mut().apply(record).map_err(Fault::internal)?;
        }
        self.tell_ended(ended);
        self.settle(self.committer.append(payloads).await).map(|_| ended)
    }

    /// Rewrites a log of so many bytes. If that fails the old one is there, with all that is in it.
    async fn compact(&self, bytes: u64, now_ms: u64) {
        let Ok(id) = random_bytes() else { return };
        self.shred.set(false);
        let snapshot = self.state.borrow().snapshot(now_ms).collect();
        let written = self.committer.compact(id, snapshot).await.map(|written| written.result);
        let bytes = match written {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the log could not be rewritten");
                self.shred.set(true);
                bytes
            }
            Err(_) => return,
        };
        self.compact_at.set(COMPACT_BYTES.max(2 * bytes));
    }

    fn report(&self, tenant: TenantId, cap: CapId, detail: String) {
        self.vat.report("secret", tenant, cap, detail);
    }

    /// Ends leases. They end first; if that cannot be recorded, nothing is given out until it is (L2).
    async fn end(&self, facet: &Facet, need: Rights, record: Record) -> Result<u64, Fault> {
        let ((), ended) = self.change(facet, need, |_| Ok((vec![record], ()))).await?;
        Ok(ended)
    }
}

/// Runs a change to its end even if its caller goes away in between.
async fn to_its_end<T: 'static>(
    change: impl Future<Output = Result<T, Fault>> + 'static,
) -> Result<T, capnp::Error> {
    tokio::task::spawn_local(change)
        .await
        .map_err(Fault::internal)
        .and_then(|done| done)
        .map_err(fail)
}

impl Service for Broker {
    fn open(self: Rc<Self>, facet: Facet) -> Result<Box<dyn ClientHook>, Fault> {
        match (facet.kind(), facet.object()) {
            (SECRETS, ObjectId::ROOT) => Ok(SecretsServer { broker: self, facet }.hook()),
            (SECRET, object) => {
                self.state.borrow().facts(object)?;
                Ok(SecretServer { broker: self, facet }.hook())
            }
            _ => Err(Fault::not_found("the secret broker has no such object")),
        }
    }

    /// What was acknowledged is durable already.
    fn drain(self: Rc<Self>) -> LocalBoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}
