//! Secrets over RPC: what each capability allows, what is recorded before it takes effect, and what goes out sealed.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::rc::Rc;
use std::str::FromStr as _;
use std::time::{Duration, Instant};

use capnp::capability::FromClientHook;
use capnp::private::capability::ClientHook;
use distos_abi::{
    Authority, ByteRange, CapId, Caveats, Fault, HolderKey, NodeId, ObjectId, Rights, TenantId,
};
use distos_delivery::{Content, Purpose, Recipient, RecipientKey, request_message, seal};
use distos_identity::Subject;
use distos_noise::{CARD_BYTES, Card, StaticPublic};
use distos_rpc::boot::Boot;
use distos_rpc::{Facet, Faceted, Service, Vat, Whence, fail, fault_of, serve_capability};
use distos_schemas::attestation_capnp::attestation;
use distos_schemas::secrets_capnp::{self, accounts, recipient, secret, secret_info, secrets};
use distos_types::kind::{SECRET, SECRETS};
use distos_types::verify_signature;
use futures::future::LocalBoxFuture;
use zeroize::Zeroizing;

use crate::barrier::{Barrier, SEALED_OVERHEAD, WRAPPED_KEY_BYTES};
use crate::material;
use crate::record::{Facts, Holder, LeaseId, NewLease, Payloads, Record, SecretKind};
use crate::shamir::{Scheme, Share};
use crate::state::{
    Clock, LONGEST_MS, Limits, State, Summary, checked_lease_ms, checked_name, checked_value,
};
use crate::store::{Committer, Log, StoreError, Written};

/// What the maker of a secret may do with it.
const MAKER: Rights = Rights::READ.join(Rights::WRITE).join(Rights::DROP);
const NO_BYTES: ByteRange = ByteRange { start: 0, end: 0 };
const ATTESTATION_EDGE: &str = "attestation";
/// How long the attestation service may take to say what it has decided: it has decided before.
const EVIDENCE_WAIT: Duration = Duration::from_secs(2);
/// How often leases that have ended are cleared away, and what could not be written is tried again.
const TICK: Duration = Duration::from_secs(1);
/// Leases that are looked at each time.
const SWEEP: usize = 8192;
/// And with every new lease, so that whoever makes many clears away as many.
const SWEEP_BY_LEASE: usize = 16;
/// A log that is longer than this, in bytes, is rewritten when it has doubled since.
const COMPACT_BYTES: u64 = 32 << 20;
/// How far behind what was written of the time may be when something changes, and while leases only run, in milliseconds.
const FLOOR_STEP_MS: u64 = 1_000;
const FLOOR_IDLE_MS: u64 = 60_000;
/// How often the log is rewritten at most because a secret was dropped.
const SHRED_PAUSE: Duration = Duration::from_secs(60);
/// How long what makes accounts may take.
const ACCOUNT_WAIT: Duration = Duration::from_secs(10);
/// Accounts of a secret that are removed in one go.
const REMOVALS: usize = 64;
/// The longest wait before an account that could not be removed is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
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
        own: RefCell::default(),
        accounts: RefCell::default(),
        later: RefCell::default(),
        failing: RefCell::default(),
        unwritten: Cell::new(0),
        batch: Cell::new(0),
        compact_at: Cell::new(COMPACT_BYTES.max(2 * log_bytes)),
        shred: Cell::new(false),
    });
    tokio::task::spawn_local(broker.clone().keep());
    tokio::task::spawn_local(broker.clone().remove_accounts());
    tokio::task::spawn_local(broker.clone().watch_evidence());
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

/// To whom parcels to the broker are sealed, and what its node says of that.
struct Own {
    recipient: Recipient,
    card: [u8; CARD_BYTES],
    renew_ms: u64,
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
    /// The newest, and the one before, to which somebody may still be sealing.
    own: RefCell<Vec<Rc<Own>>>,
    /// Where accounts are made, for the secrets of which somebody who is connected has said so.
    accounts: RefCell<BTreeMap<ObjectId, accounts::Client>>,
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
                "the secret broker is sealed: its operators open it (distos secret unseal)",
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
        self.settle(answer.await)?;
        Ok((result, ended))
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

    /// Removes accounts whose leases have ended, until the vat ends.
    ///
    /// Each secret's in a task of its own, so that none waits for what makes another's.
    async fn remove_accounts(self: Rc<Self>) {
        let removing = Rc::new(RefCell::new(BTreeSet::new()));
        loop {
            tokio::time::sleep(TICK).await;
            for (object, client) in &*self.accounts.borrow() {
                if !removing.borrow_mut().insert(*object) {
                    continue;
                }
                let (broker, removing) = (self.clone(), removing.clone());
                let (object, client) = (*object, client.clone());
                tokio::task::spawn_local(async move {
                    broker.remove_some(object, &client).await;
                    removing.borrow_mut().remove(&object);
                });
            }
        }
    }

    async fn remove_some(&self, object: ObjectId, client: &accounts::Client) {
        let due: Vec<LeaseId> = {
            let (state, later, now) = (self.state.borrow(), self.later.borrow(), Instant::now());
            let is_due = |id: &LeaseId| later.get(&(object, *id)).is_none_or(|l| l.at <= now);
            state.owed_of(object).filter(is_due).take(REMOVALS).collect()
        };
        for id in due {
            if !self.is_attached(object, client) {
                return;
            }
            let mut request = client.remove_request();
            request.get().set_name(account_name(object, id));
            let answer = tokio::time::timeout(ACCOUNT_WAIT, request.send().promise).await;
            match answer.unwrap_or_else(|_| Err(capnp::Error::overloaded("it is silent".into()))) {
                Ok(_) => {
                    self.later.borrow_mut().remove(&(object, id));
                    let settled = Record::Settled { object, id };
                    if self.note(settled).await.is_err() {
                        return;
                    }
                }
                Err(error) if error.kind == capnp::ErrorKind::Disconnected => {
                    self.detach(object, client);
                    return;
                }
                // It is tried again, and does not keep the others waiting.
                Err(_) => {
                    let mut later = self.later.borrow_mut();
                    let failed = later.get(&(object, id)).map_or(0, |later| later.failed);
                    let at = Instant::now() + removal_pause(failed);
                    later.insert((object, id), Later { failed: failed.saturating_add(1), at });
                }
            }
        }
    }

    fn is_attached(&self, object: ObjectId, client: &accounts::Client) -> bool {
        let same =
            |known: &accounts::Client| known.client.hook.get_ptr() == client.client.hook.get_ptr();
        self.accounts.borrow().get(&object).is_some_and(same)
    }

    /// Forgets what is not connected any more, unless another has come meanwhile.
    fn detach(&self, object: ObjectId, client: &accounts::Client) {
        if self.is_attached(object, client) {
            self.accounts.borrow_mut().remove(&object);
        }
    }

    fn attached(&self, object: ObjectId) -> Result<accounts::Client, Fault> {
        self.accounts.borrow().get(&object).cloned().ok_or_else(|| {
            Fault::unavailable(
                1_000,
                "what makes this secret's accounts is not connected: its owner attaches it",
            )
        })
    }

    /// A new account for a lease: its name and password, a line each. If what makes it answers too late, the account is
    /// removed then; it may have been removed before it was made.
    async fn account(
        self: &Rc<Self>,
        object: ObjectId,
        id: LeaseId,
    ) -> Result<Zeroizing<Vec<u8>>, Fault> {
        let mut secret = Zeroizing::new([0; 32]);
        random(&mut *secret)?;
        let name = account_name(object, id);
        let mut password = Zeroizing::new([0; 64]);
        hex::encode_to_slice(secret.as_slice(), &mut *password).map_err(Fault::internal)?;
        let client = self.attached(object)?;
        let mut request = client.create_request();
        let mut params = request.get();
        params.set_name(&name);
        params.set_password(std::str::from_utf8(&*password).map_err(Fault::internal)?);
        let mut answer = request.send().promise;
        match tokio::time::timeout(ACCOUNT_WAIT, &mut answer).await {
            Ok(made) => made.map(drop).map_err(|e| no_account(&e))?,
            Err(_) => {
                let broker = self.clone();
                tokio::task::spawn_local(async move {
                    // However that ends, it makes nothing any more.
                    let _ = answer.await;
                    if broker.state.borrow().facts(object).is_ok() {
                        // What cannot be recorded is kept and written later.
                        let _ = broker.note(Record::Owed { object, id }).await;
                    }
                });
                return Err(Fault::unavailable(1_000, "what makes accounts is silent"));
            }
        }
        let mut given = Zeroizing::new(Vec::with_capacity(name.len() + password.len() + 2));
        for part in [name.as_bytes(), b"\n", &*password, b"\n"] {
            given.extend_from_slice(part);
        }
        Ok(given)
    }

    /// Carries out, and makes durable, what nobody has asked for.
    async fn note(&self, record: Record) -> Result<(), Fault> {
        let payloads = [record.clone()].into_iter().collect();
        self.state.borrow_mut().apply(record).map_err(Fault::internal)?;
        self.settle(self.committer.append(payloads).await).map(drop)
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

    /// The key that a holder asks to be answered with, if the holder of `facet` has signed it.
    fn recipient(
        &self,
        facet: &Facet,
        to: recipient::Reader<'_>,
    ) -> Result<(HolderKey, RecipientKey), Fault> {
        let holder = keyed(facet)?;
        let read = || -> capnp::Result<_> { Ok((to.get_key()?, to.get_signature()?)) };
        let (key, signature) = read().map_err(|e| fault_of(&e))?;
        let key = RecipientKey::from_slice(key)?;
        let message = request_message(self.vat.node(), self.vat.name(), facet.object(), key);
        verify_signature(holder, &message, signature)
            .map_err(|fault| facet.refused(fault))
            .map(|()| (holder, key))
    }

    fn purpose<'a>(&'a self, holder: HolderKey, content: Content<'a>) -> Purpose<'a> {
        Purpose { node: self.vat.node(), vat: self.vat.name(), holder, content }
    }

    /// What is in a parcel from the holder of `facet`.
    fn unwrap(
        &self,
        facet: &Facet,
        content: Content<'_>,
        parcel: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Fault> {
        let purpose = self.purpose(keyed(facet)?, content);
        let own = self.own.borrow();
        let opened = own.iter().rev().find_map(|own| own.recipient.open(&purpose, parcel).ok());
        let none = || {
            Fault::Unauthenticated(
                "a parcel is sealed to no key of the secret broker's, or for something else: ask for its card"
                    .into(),
            )
        };
        opened.ok_or_else(none)
    }

    /// The card of the key to which parcels are sealed, made anew when half of its time is over.
    async fn card(&self) -> Result<[u8; CARD_BYTES], Fault> {
        let now_ms = self.vat.now_ms();
        let newest = self.own.borrow().last().cloned();
        if let Some(own) = newest.filter(|own| now_ms < own.renew_ms) {
            return Ok(own.card);
        }
        let recipient = Recipient::new()?;
        let key = StaticPublic(recipient.key().0);
        let certified = self.vat.certify(&key.0).await?;
        // Somebody else may have made another meanwhile: only two are kept, and this one nobody knows.
        let newest = self.own.borrow().last().cloned();
        if let Some(own) = newest.filter(|own| now_ms < own.renew_ms) {
            return Ok(own.card);
        }
        let (until_ms, signature) = (certified.until_ms, certified.signature);
        let card = Card { until_ms, key, signature }.encode();
        let renew_ms = now_ms.saturating_add(until_ms.saturating_sub(now_ms) / 2);
        let mut own = self.own.borrow_mut();
        own.push(Rc::new(Own { recipient, card, renew_ms }));
        let before = own.len().saturating_sub(2);
        own.drain(..before);
        Ok(card)
    }

    /// What the attestation service says of this node: whether its evidence is good, until when, and why.
    async fn verdict(&self) -> Result<(bool, u64, String), Fault> {
        let service: attestation::Client = self.vat.root(ATTESTATION_EDGE).await?;
        let answer = service.status_request().send().promise.await.map_err(|e| fault_of(&e))?;
        let read = || -> capnp::Result<_> {
            let verdict = answer.get()?.get_verdict()?;
            let reason = String::from_utf8_lossy(verdict.get_reason()?.as_bytes()).into_owned();
            Ok((verdict.get_good(), verdict.get_fresh_until_ms(), reason))
        };
        read().map_err(|e| fault_of(&e))
    }

    /// Ends leases on secrets that are given out on evidence only when that turns bad, until the vat ends. While nothing
    /// is said of it, they end with what was said last.
    async fn watch_evidence(self: Rc<Self>) {
        let mut was_bad = false;
        loop {
            tokio::time::sleep(TICK).await;
            let leased = self.state.borrow().attested_leased();
            if leased.is_empty() {
                was_bad = false;
                continue;
            }
            let Ok(Ok((good, _, reason))) =
                tokio::time::timeout(EVIDENCE_WAIT, self.verdict()).await
            else {
                continue;
            };
            // Once: while it is bad, what is leased has ended and is not cleared away.
            if !good && !was_bad {
                for (object, tenant) in leased {
                    // It may have been dropped meanwhile. What cannot be recorded is kept and written later.
                    if self.state.borrow().facts(object).is_ok() {
                        let _ = self.note(Record::EndedSecret(object)).await;
                        let detail = format!("all leases on secret {object} ended: {reason}");
                        self.report(tenant, CapId(0), detail);
                    }
                }
            }
            was_bad = !good;
        }
    }

    /// Until when this node's evidence is good, for a secret that is given out on evidence only.
    async fn evidence(&self, facet: &Facet) -> Result<u64, Fault> {
        if facet.whence() != Whence::Here {
            return Err(Fault::StaleAttestation(
                "this secret is given out only to holders on the broker's own node: of others it has no evidence".into(),
            ));
        }
        let stale = |why: String| Fault::StaleAttestation(format!("no good evidence: {why}"));
        match tokio::time::timeout(EVIDENCE_WAIT, self.verdict()).await {
            Ok(Ok((true, until_ms, _))) if until_ms > self.now_ms() => Ok(until_ms),
            Ok(Ok((true, ..))) => Err(stale("it is too old".into())),
            Ok(Ok((false, _, reason))) => Err(stale(reason)),
            Ok(Err(fault)) => Err(stale(fault.to_string())),
            Err(_) => Err(stale("the attestation service is silent".into())),
        }
    }

    /// Until when a lease may run at most, for what it is on.
    async fn most_ms(&self, facet: &Facet) -> Result<u64, Fault> {
        let attested = self.state.borrow().facts(facet.object())?.attested;
        let expires_ms = facet.authority().caveats.expires_ms;
        match attested {
            true => Ok(self.evidence(facet).await?.min(expires_ms)),
            false => Ok(expires_ms),
        }
    }

    /// Who reads by `facet`, and on which node that is, as far as is known.
    fn reader(&self, facet: &Facet) -> Result<(Holder, Option<NodeId>), Fault> {
        let key = keyed(facet)?;
        let node = match facet.whence() {
            Whence::Here => Some(self.vat.node()),
            Whence::Shown(path) => Subject::from_str(&path).ok().and_then(|s| s.node()),
            Whence::Anywhere => None,
        };
        Ok((Holder { tenant: facet.tenant(), cap: facet.lasting_cap(), key }, node))
    }

    /// The first version of a new secret, or the next of one: what is to be encrypted.
    fn value(
        &self,
        facet: &Facet,
        (kind, name): (SecretKind, &str),
        content: Content<'_>,
        parcel: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Fault> {
        if kind != SecretKind::Fixed && !parcel.is_empty() {
            return Err(Fault::malformed("only a fixed secret has a value that is put"));
        }
        match kind {
            SecretKind::Fixed => {
                let value = self.unwrap(facet, content, parcel)?;
                checked_value(&value)?;
                Ok(value)
            }
            SecretKind::Ed25519 | SecretKind::Account => Ok(Zeroizing::default()),
            SecretKind::X509 => material::authority(name, self.now_ms(), &mut random),
        }
    }

    /// Makes a secret: durable, then a capability to it.
    async fn put(
        &self,
        facet: &Facet,
        new: NewSecret,
        value: &[u8],
    ) -> Result<(Facet, Vec<u8>), Fault> {
        let NewSecret { name, kind, attested, lease_ms, accounts } = new;
        let ((object, name), _) = self
            .change(facet, Rights::CREATE, |state| {
                let (tenant, object) = (facet.tenant(), state.next_object());
                let (own_name, key) = (name.clone(), [0; WRAPPED_KEY_BYTES]);
                let mut facts = Facts { name: own_name, tenant, kind, attested, lease_ms, key };
                let owner = facts.owner(object);
                state.check_new(tenant, &name, (value.len() + SEALED_OVERHEAD) as u64)?;
                let (key, sealed) = self.opened(|barrier| {
                    let key = barrier.new_key(owner, &mut random)?;
                    let sealed = barrier.seal(owner, &key, 1, value, &mut random)?;
                    Ok((key, sealed))
                })?;
                facts.key = key;
                let (number, previous_until_ms, leased_until_ms) = (1, 0, 0);
                let version =
                    Record::Version { object, number, previous_until_ms, leased_until_ms, sealed };
                Ok((vec![Record::Put { object, facts }, version], (object, name)))
            })
            .await?;
        if let Some(accounts) = accounts {
            self.accounts.borrow_mut().insert(object, accounts);
        }
        let made = self.hand_out(facet, object).await;
        match &made {
            Ok((minted, _)) => {
                self.report(facet.tenant(), minted.cap_id(), format!("'{name}' put"));
            }
            Err(fault) => self.take_back(object, fault).await,
        }
        made
    }

    async fn hand_out(&self, facet: &Facet, object: ObjectId) -> Result<(Facet, Vec<u8>), Fault> {
        let minted = facet.mint(SECRET, object, below(facet, MAKER)).await?;
        let chain = minted.persist(minted.authority()).await?;
        Ok((minted, chain))
    }

    /// Undoes a making that failed. Nobody was told of it.
    async fn take_back(&self, object: ObjectId, why: &Fault) {
        tracing::warn!(%object, %why, "a secret could not be made");
        let ended = self.vat.revoke_object(SECRET, object).await;
        // Not there any more only if it was dropped by name meanwhile.
        let dropped = self.note(Record::Dropped(object)).await;
        self.shred.set(true);
        self.accounts.borrow_mut().remove(&object);
        if let Err(fault) = ended.map(drop).and(dropped) {
            tracing::warn!(%object, %fault, "a capability to it may be left until the next start");
        }
    }

    /// Makes version `next`.
    async fn rotate(
        &self,
        facet: &Facet,
        next: u32,
        value: &[u8],
        overlap_ms: u64,
    ) -> Result<u32, Fault> {
        let object = facet.object();
        let now_ms = self.now_ms();
        let ((number, name), _) = self
            .change(facet, Rights::WRITE, |state| {
                let bytes = (value.len() + SEALED_OVERHEAD) as u64;
                let number = state.check_version(object, bytes, now_ms)?;
                if number != next {
                    return Err(Fault::unavailable(0, "this secret was rotated meanwhile"));
                }
                let facts = state.facts(object)?;
                let owner = facts.owner(object);
                let sealed = self.opened(|barrier| {
                    barrier.seal(owner, &facts.key, number, value, &mut random)
                })?;
                let previous_until_ms = now_ms.saturating_add(overlap_ms);
                let record = Record::Version {
                    object,
                    number,
                    previous_until_ms,
                    leased_until_ms: 0,
                    sealed,
                };
                Ok((vec![record], (number, facts.name.clone())))
            })
            .await?;
        self.state.borrow_mut().retire(object, now_ms);
        self.report(
            facet.tenant(),
            facet.cap_id(),
            format!("'{name}' rotated to version {number}"),
        );
        Ok(number)
    }

    /// Leases a version and gives it out: the lease is durable first.
    async fn get(
        self: &Rc<Self>,
        facet: &Facet,
        (holder, to): (HolderKey, RecipientKey),
        version: u32,
        ttl_ms: u64,
    ) -> Result<(NewLease, Vec<u8>), Fault> {
        let object = facet.object();
        let most_ms = self.most_ms(facet).await?;
        if self.state.borrow().facts(object)?.kind == SecretKind::Account {
            self.attached(object)?;
        }
        let who = self.reader(facet)?;
        let now_ms = self.now_ms();
        self.state.borrow_mut().sweep(SWEEP_BY_LEASE, now_ms);
        let (lease, _) = self
            .change(facet, Rights::READ, |state| {
                self.opened(|_| Ok(()))?;
                let lease = state.lease(object, version, who, (ttl_ms, most_ms), now_ms)?;
                Ok((vec![Record::Leased(lease)], lease))
            })
            .await?;
        let given = self.give_out(facet, (holder, to), &lease).await;
        if given.is_err() {
            // Nobody has heard of it, and what it was made for is to go.
            self.note(Record::Ended(lease.id)).await?;
        }
        Ok((lease, given?))
    }

    /// What is read under a lease that is durable.
    async fn give_out(
        self: &Rc<Self>,
        facet: &Facet,
        (holder, to): (HolderKey, RecipientKey),
        lease: &NewLease,
    ) -> Result<Vec<u8>, Fault> {
        let object = lease.object;
        let (kind, attested) = {
            let state = self.state.borrow();
            let facts = state.facts(object)?;
            (facts.kind, facts.attested)
        };
        let account = match kind {
            SecretKind::Account => Some(self.account(object, lease.id).await?),
            SecretKind::Fixed | SecretKind::Ed25519 | SecretKind::X509 => None,
        };
        // All of this may have ended meanwhile, and then nothing leaves.
        if attested {
            self.evidence(facet).await?;
        }
        self.check_new(lease)?;
        let now_ms = self.now_ms();
        let state = self.state.borrow();
        let reading = state.reading(object, lease.version, now_ms)?;
        let value = self.opened(|barrier| {
            barrier.open(reading.owner, &reading.facts.key, reading.version, reading.sealed)
        })?;
        let name = &reading.facts.name;
        let given = match (reading.facts.kind, account) {
            (_, Some(account)) => account,
            (SecretKind::Fixed | SecretKind::Account, None) => value,
            (SecretKind::Ed25519, None) => bytes_of(&material::key_pair(&mut random)?),
            (SecretKind::X509, None) => {
                let until_ms = lease.until_ms;
                bytes_of(&material::credential(name, &value, now_ms, until_ms, &mut random)?)
            }
        };
        let content = Content::Reading { name, version: lease.version, lease: lease.id.0 };
        let parcel = seal(to, &self.purpose(holder, content), &given)?;
        let detail = format!("'{name}' version {} read, lease {}", lease.version, lease.id.0);
        self.report(facet.tenant(), facet.cap_id(), detail);
        Ok(parcel)
    }

    /// Whether a lease that was just made still holds. [`Fault::Expired`] if its time was that short.
    fn check_new(&self, lease: &NewLease) -> Result<(), Fault> {
        let now_ms = self.now_ms();
        if now_ms >= lease.until_ms {
            return Err(Fault::Expired { at_ms: lease.until_ms });
        }
        self.state.borrow().check_lease(lease.object, lease.id, &lease.holder, now_ms)
    }

    /// Ends leases. They end first; if that cannot be recorded, nothing is given out until it is (L2).
    async fn end(&self, facet: &Facet, need: Rights, record: Record) -> Result<u64, Fault> {
        let ((), ended) = self.change(facet, need, |_| Ok((vec![record], ()))).await?;
        Ok(ended)
    }

    async fn drop_secret(&self, facet: &Facet) -> Result<(), Fault> {
        let object = facet.object();
        let name = self.state.borrow().facts(object)?.name.clone();
        let dropped = self.change(facet, Rights::DROP, |state| {
            state.check_drop(object)?;
            Ok((vec![Record::Dropped(object)], ()))
        });
        let ((), ended) = dropped.await?;
        self.shred.set(true);
        self.accounts.borrow_mut().remove(&object);
        let detail = format!("'{name}' dropped, with {ended} leases");
        self.report(facet.tenant(), facet.cap_id(), detail);
        self.vat.revoke_object(SECRET, object).await.map(drop)
    }

    /// Takes a share; with the last that is needed, the broker is open.
    fn give(&self, share: Share) -> Result<(), Fault> {
        let state = self.state.borrow();
        let facts = state.root().ok_or_else(|| {
            Fault::not_found("there is no root key: make one first (distos secret init)")
        })?;
        if share.id != facts.id || share.threshold != facts.scheme.threshold() {
            return Err(Fault::malformed("this share is of another broker's root key"));
        }
        let mut given = self.given.borrow_mut();
        if self.barrier.borrow().is_some() {
            return Err(Fault::Exists("a root key: the broker is open, and takes no share".into()));
        }
        given.retain(|other| other.number != share.number);
        given.push(share);
        if given.len() < usize::from(facts.scheme.threshold()) {
            return Ok(());
        }
        // Right or wrong, they are not needed any more.
        let given = std::mem::take(&mut *given);
        *self.barrier.borrow_mut() = Some(Barrier::of_shares(facts, &given)?);
        Ok(())
    }
}

/// An account that could not be removed.
struct Later {
    /// How often.
    failed: u32,
    at: Instant,
}

/// How long to wait before an account is to be removed that could not be so often before.
fn removal_pause(failed: u32) -> Duration {
    TICK.saturating_mul(2_u32.saturating_pow(failed)).min(LONGEST_PAUSE)
}

/// What somebody wants to keep.
struct NewSecret {
    name: String,
    kind: SecretKind,
    attested: bool,
    lease_ms: u64,
    accounts: Option<accounts::Client>,
}

/// The account of a lease.
fn account_name(object: ObjectId, id: LeaseId) -> String {
    format!("distos-{}-{}", object.0, id.0)
}

/// What whoever makes accounts has failed with is its own affair, and may say too much.
fn no_account(error: &capnp::Error) -> Fault {
    tracing::warn!(%error, "an account could not be made");
    Fault::unavailable(1_000, "the account could not be made: ask the secret's owner")
}

fn bytes_of(text: &Zeroizing<String>) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(text.as_bytes().to_vec())
}

/// The key of a facet's holder. A vat's edge has none, and nothing can be sealed to it.
fn keyed(facet: &Facet) -> Result<HolderKey, Fault> {
    facet.holder().ok_or_else(|| facet.refused(Fault::denied(Rights::READ)))
}

/// `rights` over a whole secret, for no longer than `facet` lasts.
fn below(facet: &Facet, rights: Rights) -> Authority {
    let Caveats { expires_ms, end_to_end, .. } = facet.authority().caveats;
    Authority { rights, caveats: Caveats { expires_ms, end_to_end, ..Caveats::NONE } }
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

fn name_of(text: capnp::Result<capnp::text::Reader<'_>>) -> Result<String, Fault> {
    let text = text.map_err(|_| Fault::malformed("the name cannot be read"))?;
    let text = text.to_str().map_err(|_| Fault::malformed("the name is not UTF-8"))?;
    checked_name(text).map(str::to_owned)
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

/// A tenant's place to keep secrets.
struct SecretsServer {
    broker: Rc<Broker>,
    facet: Facet,
}

impl SecretsServer {
    fn hook(self) -> Box<dyn ClientHook> {
        capnp_rpc::new_client::<secrets::Client, _>(self).into_client_hook()
    }

    fn status(&self, mut to: secrets_capnp::broker_status::Builder<'_>) {
        let broker = &self.broker;
        let state = broker.state.borrow();
        if let Some(root) = state.root() {
            to.set_initialised(true);
            to.set_threshold(root.scheme.threshold());
            to.set_shares(root.scheme.shares());
        }
        to.set_sealed(broker.barrier.borrow().is_none());
        to.set_given(broker.given.borrow().len() as u8);
        let (secrets, leases) = state.counts();
        to.set_secrets(secrets as u64);
        to.set_leases(leases as u64);
        if let Some(error) = &*broker.failing.borrow() {
            to.set_failing(error.to_string());
        }
    }
}

impl Faceted for SecretsServer {
    fn facet(&self) -> &Facet {
        &self.facet
    }

    fn with_facet(&self, facet: Facet) -> Box<dyn ClientHook> {
        SecretsServer { broker: self.broker.clone(), facet }.hook()
    }
}

serve_capability!(SecretsServer);

impl secrets::Server for SecretsServer {
    async fn status(
        self: Rc<Self>,
        _: secrets::StatusParams,
        mut results: secrets::StatusResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::ADMIN).map_err(fail)?;
        SecretsServer::status(&self, self.facet.reply(&mut results).init_status());
        Ok(())
    }

    async fn card(
        self: Rc<Self>,
        _: secrets::CardParams,
        mut results: secrets::CardResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::NONE).map_err(fail)?;
        let card = self.broker.card().await.map_err(fail)?;
        self.facet.reply(&mut results).set_card(&card);
        Ok(())
    }

    async fn init(
        self: Rc<Self>,
        params: secrets::InitParams,
        mut results: secrets::InitResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::ADMIN).map_err(fail)?;
        let (scheme, (holder, to)) = {
            let params = params.get()?;
            let scheme = Scheme::new(params.get_threshold(), params.get_shares()).map_err(fail)?;
            (scheme, self.broker.recipient(&self.facet, params.get_to()?).map_err(fail)?)
        };
        let this = self.clone();
        let parcels = to_its_end(async move {
            let broker = &this.broker;
            broker.usable()?;
            let (barrier, facts, shares) = Barrier::new(scheme, &mut random)?;
            let id = facts.id;
            let parcel = |share: &Share| {
                let content = Content::NewShare { number: share.number };
                seal(to, &broker.purpose(holder, content), &share.encode())
            };
            let parcels = shares.iter().map(parcel).collect::<Result<Vec<_>, Fault>>()?;
            broker
                .change(&this.facet, Rights::ADMIN, |state| match state.is_used() {
                    false => {
                        // The key that was is worth nothing from here on, however this ends: nothing is
                        // encrypted under it any more.
                        *broker.barrier.borrow_mut() = None;
                        broker.given.borrow_mut().clear();
                        Ok((vec![Record::Root(facts)], ()))
                    }
                    true => Err(Fault::Exists("a root key that secrets are under".into())),
                })
                .await?;
            if broker.state.borrow().root().is_none_or(|root| root.id != id) {
                let why = "another root key was made meanwhile, and these shares are worth nothing";
                return Err(Fault::unavailable(0, why));
            }
            *broker.barrier.borrow_mut() = Some(barrier);
            let (of, made) = (scheme.threshold(), scheme.shares());
            let detail = format!("root key made, any {of} of {made} shares open it");
            broker.report(TenantId::OPERATOR, this.facet.cap_id(), detail);
            Ok(parcels)
        })
        .await?;
        let mut list = self.facet.reply(&mut results).init_parcels(parcels.len() as u32);
        for (at, parcel) in parcels.iter().enumerate() {
            list.set(at as u32, parcel);
        }
        Ok(())
    }

    async fn unseal(
        self: Rc<Self>,
        params: secrets::UnsealParams,
        mut results: secrets::UnsealResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::ADMIN).map_err(fail)?;
        let broker = &self.broker;
        let plain = broker.unwrap(&self.facet, Content::Share, params.get()?.get_share()?);
        let share = plain.and_then(|plain| Share::decode(&plain)).map_err(fail)?;
        let number = share.number;
        let given = self.facet.commit(Rights::ADMIN, NO_BYTES, || broker.give(share));
        let given = given.and_then(|given| given);
        let detail = match &given {
            Ok(()) if broker.barrier.borrow().is_some() => format!("share {number} given: open"),
            Ok(()) => format!("share {number} given"),
            Err(fault) => format!("share {number} refused: {fault}"),
        };
        broker.report(TenantId::OPERATOR, self.facet.cap_id(), detail);
        given.map_err(fail)?;
        SecretsServer::status(&self, self.facet.reply(&mut results).init_status());
        Ok(())
    }

    async fn seal(
        self: Rc<Self>,
        _: secrets::SealParams,
        mut results: secrets::SealResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::ADMIN).map_err(fail)?;
        let close = || {
            *self.broker.barrier.borrow_mut() = None;
            self.broker.given.borrow_mut().clear();
        };
        self.facet.commit(Rights::ADMIN, NO_BYTES, close).map_err(fail)?;
        self.broker.report(TenantId::OPERATOR, self.facet.cap_id(), "sealed".into());
        self.facet.reply(&mut results);
        Ok(())
    }

    async fn put(
        self: Rc<Self>,
        params: secrets::PutParams,
        mut results: secrets::PutResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::CREATE).map_err(fail)?;
        let broker = &self.broker;
        broker.opened(|_| Ok(())).map_err(fail)?;
        if broker.vat.draining() {
            return Err(fail(Fault::unavailable(1_000, "this node is draining")));
        }
        keyed(&self.facet).map_err(fail)?;
        let (new, value) = {
            let params = params.get()?;
            let name = name_of(params.get_name()).map_err(fail)?;
            let kind = match params.get_kind()? {
                secrets_capnp::SecretKind::Fixed => SecretKind::Fixed,
                secrets_capnp::SecretKind::Ed25519 => SecretKind::Ed25519,
                secrets_capnp::SecretKind::X509 => SecretKind::X509,
                secrets_capnp::SecretKind::Account => SecretKind::Account,
            };
            if params.has_accounts() != (kind == SecretKind::Account) {
                let what = "accounts are for secrets of this kind, and needed for them";
                return Err(fail(Fault::malformed(what)));
            }
            let accounts = params.has_accounts().then(|| params.get_accounts()).transpose()?;
            let lease_ms = checked_lease_ms(params.get_lease_ms()).map_err(fail)?;
            let attested = params.get_attested();
            let content =
                Content::NewValue { name: &name, attested, lease_ms: params.get_lease_ms() };
            let value = broker.value(&self.facet, (kind, &name), content, params.get_value()?);
            (NewSecret { name, kind, attested, lease_ms, accounts }, value.map_err(fail)?)
        };
        let this = self.clone();
        let put = async move { this.broker.put(&this.facet, new, &value).await };
        let (minted, chain) = to_its_end(put).await?;
        let mut reply = self.facet.reply(&mut results);
        let server = SecretServer { broker: self.broker.clone(), facet: minted };
        reply.set_secret(FromClientHook::new(server.hook()));
        reply.set_chain(&chain);
        Ok(())
    }

    async fn open(
        self: Rc<Self>,
        params: secrets::OpenParams,
        mut results: secrets::OpenResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::LIST).map_err(fail)?;
        let name = name_of(params.get()?.get_name()).map_err(fail)?;
        let object = self.broker.state.borrow().by_name(self.facet.tenant(), &name);
        let object = object.map_err(|fault| fail(self.facet.refused(fault)))?;
        let rights = self.facet.authority().rights.meet(MAKER);
        if rights == Rights::NONE {
            return Err(fail(self.facet.refused(Fault::denied(Rights::READ))));
        }
        let facet = self.facet.reach(SECRET, object, below(&self.facet, rights)).await;
        let facet = facet.map_err(fail)?;
        let server = SecretServer { broker: self.broker.clone(), facet };
        self.facet.reply(&mut results).set_secret(FromClientHook::new(server.hook()));
        Ok(())
    }

    async fn list(
        self: Rc<Self>,
        _: secrets::ListParams,
        mut results: secrets::ListResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::LIST).map_err(fail)?;
        let now_ms = self.broker.now_ms();
        let found = self.broker.state.borrow().list(self.facet.tenant(), now_ms);
        let mut list = self.facet.reply(&mut results).init_secrets(found.len() as u32);
        for (at, summary) in found.iter().enumerate() {
            describe(summary, list.reborrow().get(at as u32));
        }
        Ok(())
    }

    async fn end_node(
        self: Rc<Self>,
        params: secrets::EndNodeParams,
        mut results: secrets::EndNodeResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::ADMIN).map_err(fail)?;
        let node = node_of(params.get()?.get_node()?).map_err(fail)?;
        let (this, begun) = (self.clone(), Instant::now());
        let end = async move {
            this.broker.end(&this.facet, Rights::ADMIN, Record::EndedNode(node)).await
        };
        let ended = to_its_end(end).await?;
        let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let detail = format!("all {ended} leases on node {node} ended");
        self.broker.report(TenantId::OPERATOR, self.facet.cap_id(), detail);
        let mut reply = self.facet.reply(&mut results);
        reply.set_leases(ended);
        reply.set_micros(micros);
        Ok(())
    }

    async fn admit_node(
        self: Rc<Self>,
        params: secrets::AdmitNodeParams,
        mut results: secrets::AdmitNodeResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::ADMIN).map_err(fail)?;
        let node = node_of(params.get()?.get_node()?).map_err(fail)?;
        let this = self.clone();
        let admit = async move {
            this.broker.end(&this.facet, Rights::ADMIN, Record::AdmittedNode(node)).await
        };
        to_its_end(admit).await?;
        let detail = format!("holders on node {node} get leases again");
        self.broker.report(TenantId::OPERATOR, self.facet.cap_id(), detail);
        self.facet.reply(&mut results);
        Ok(())
    }

    async fn end_cap(
        self: Rc<Self>,
        params: secrets::EndCapParams,
        mut results: secrets::EndCapResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::DROP).map_err(fail)?;
        let cap = CapId(params.get()?.get_cap_id());
        let record = Record::EndedCap(self.facet.tenant(), cap);
        let this = self.clone();
        let end = async move { this.broker.end(&this.facet, Rights::DROP, record).await };
        let ended = to_its_end(end).await?;
        let detail = format!("all {ended} leases by capability {} ended", cap.0);
        self.broker.report(self.facet.tenant(), self.facet.cap_id(), detail);
        self.facet.reply(&mut results).set_leases(ended);
        Ok(())
    }
}

fn node_of(bytes: &[u8]) -> Result<NodeId, Fault> {
    let wrong = || Fault::malformed(format!("a node's id has 32 bytes, not {}", bytes.len()));
    bytes.try_into().map(NodeId).map_err(|_| wrong())
}

fn describe(summary: &Summary, mut info: secret_info::Builder<'_>) {
    info.set_name(&summary.name);
    info.set_kind(match summary.kind {
        SecretKind::Fixed => secrets_capnp::SecretKind::Fixed,
        SecretKind::Ed25519 => secrets_capnp::SecretKind::Ed25519,
        SecretKind::X509 => secrets_capnp::SecretKind::X509,
        SecretKind::Account => secrets_capnp::SecretKind::Account,
    });
    info.set_attested(summary.attested);
    info.set_object(summary.object.0);
    info.set_version(summary.version);
    info.set_overlapping(summary.overlapping);
    info.set_leases(summary.leases);
    info.set_lease_ms(summary.lease_ms);
}

/// One secret.
struct SecretServer {
    broker: Rc<Broker>,
    facet: Facet,
}

impl SecretServer {
    fn hook(self) -> Box<dyn ClientHook> {
        capnp_rpc::new_client::<secret::Client, _>(self).into_client_hook()
    }

    /// Whether a lease is the caller's own.
    fn check_lease(&self, id: LeaseId) -> Result<Holder, Fault> {
        let (holder, _) = self.broker.reader(&self.facet)?;
        let now_ms = self.broker.now_ms();
        self.broker.state.borrow().check_lease(self.facet.object(), id, &holder, now_ms)?;
        Ok(holder)
    }
}

impl Faceted for SecretServer {
    fn facet(&self) -> &Facet {
        &self.facet
    }

    fn with_facet(&self, facet: Facet) -> Box<dyn ClientHook> {
        SecretServer { broker: self.broker.clone(), facet }.hook()
    }
}

serve_capability!(SecretServer);

impl secret::Server for SecretServer {
    async fn get(
        self: Rc<Self>,
        params: secret::GetParams,
        mut results: secret::GetResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::READ).map_err(fail)?;
        let (to, version, ttl_ms) = {
            let params = params.get()?;
            let to = self.broker.recipient(&self.facet, params.get_to()?).map_err(fail)?;
            (to, params.get_version(), params.get_ttl_ms())
        };
        let this = self.clone();
        let get = async move { this.broker.get(&this.facet, to, version, ttl_ms).await };
        let (lease, parcel) = to_its_end(get).await?;
        // Nothing is between this and the reply.
        if let Err(fault) = self.broker.check_new(&lease) {
            // Nobody hears of it. What cannot be recorded is kept and written later.
            let _ = self.broker.note(Record::Ended(lease.id)).await;
            return Err(fail(fault));
        }
        let mut reply = self.facet.reply(&mut results);
        reply.set_parcel(&parcel);
        reply.set_version(lease.version);
        reply.set_lease(lease.id.0);
        reply.set_until_ms(lease.until_ms);
        Ok(())
    }

    async fn renew(
        self: Rc<Self>,
        params: secret::RenewParams,
        mut results: secret::RenewResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::READ).map_err(fail)?;
        let (id, ttl_ms) = params.get().map(|p| (LeaseId(p.get_lease()), p.get_ttl_ms()))?;
        let holder = self.check_lease(id).map_err(fail)?;
        let this = self.clone();
        let renew = async move {
            let broker = &this.broker;
            let most_ms = broker.most_ms(&this.facet).await?;
            let (object, now_ms) = (this.facet.object(), broker.now_ms());
            let (_, node) = broker.reader(&this.facet)?;
            let renewed = broker.change(&this.facet, Rights::READ, |state| {
                broker.opened(|_| Ok(()))?;
                state.check_node(node)?;
                if state.facts(object)?.kind == SecretKind::X509 {
                    let why =
                        "a certificate ends with its lease, and is not made longer: read again";
                    return Err(Fault::malformed(why));
                }
                let until_ms = state.renewal(object, id, &holder, (ttl_ms, most_ms), now_ms)?;
                Ok((vec![Record::Renewed { id, until_ms }], until_ms))
            });
            let (until_ms, _) = renewed.await?;
            // Ended meanwhile: then this must not say that it runs.
            let now_ms = broker.now_ms();
            broker.state.borrow().check_lease(object, id, &holder, now_ms)?;
            Ok(until_ms)
        };
        let until_ms = to_its_end(renew).await?;
        self.facet.reply(&mut results).set_until_ms(until_ms);
        Ok(())
    }

    async fn release(
        self: Rc<Self>,
        params: secret::ReleaseParams,
        mut results: secret::ReleaseResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::READ).map_err(fail)?;
        let id = LeaseId(params.get()?.get_lease());
        self.check_lease(id).map_err(fail)?;
        let this = self.clone();
        let end =
            async move { this.broker.end(&this.facet, Rights::READ, Record::Ended(id)).await };
        to_its_end(end).await?;
        let detail = format!("lease {} released", id.0);
        self.broker.report(self.facet.tenant(), self.facet.cap_id(), detail);
        self.facet.reply(&mut results);
        Ok(())
    }

    async fn rotate(
        self: Rc<Self>,
        params: secret::RotateParams,
        mut results: secret::RotateResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::WRITE).map_err(fail)?;
        let broker = &self.broker;
        broker.opened(|_| Ok(())).map_err(fail)?;
        let params = params.get()?;
        let overlap_ms = params.get_overlap_ms();
        if overlap_ms > LONGEST_MS {
            return Err(fail(Fault::malformed("versions overlap for 30 days at most")));
        }
        let facts = broker.state.borrow().facts(self.facet.object()).cloned().map_err(fail)?;
        if [SecretKind::Ed25519, SecretKind::Account].contains(&facts.kind) {
            return Err(fail(Fault::malformed("each reading makes its own: nothing is rotated")));
        }
        let kind = (facts.kind, facts.name.as_str());
        let (object, now_ms) = (self.facet.object(), broker.now_ms());
        let next = broker.state.borrow().check_version(object, 0, now_ms).map_err(fail)?;
        let content = Content::NextValue { object, version: next, overlap_ms };
        let value = broker.value(&self.facet, kind, content, params.get_value()?).map_err(fail)?;
        let this = self.clone();
        let rotate = async move { this.broker.rotate(&this.facet, next, &value, overlap_ms).await };
        let number = to_its_end(rotate).await?;
        self.facet.reply(&mut results).set_version(number);
        Ok(())
    }

    async fn end_leases(
        self: Rc<Self>,
        _: secret::EndLeasesParams,
        mut results: secret::EndLeasesResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::DROP).map_err(fail)?;
        let object = self.facet.object();
        let name = self.broker.state.borrow().facts(object).map(|facts| facts.name.clone());
        let name = name.map_err(fail)?;
        let record = Record::EndedSecret(object);
        let this = self.clone();
        let end = async move { this.broker.end(&this.facet, Rights::DROP, record).await };
        let ended = to_its_end(end).await?;
        let detail = format!("all {ended} leases on '{name}' ended");
        self.broker.report(self.facet.tenant(), self.facet.cap_id(), detail);
        self.facet.reply(&mut results).set_leases(ended);
        Ok(())
    }

    async fn drop(
        self: Rc<Self>,
        _: secret::DropParams,
        _: secret::DropResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::DROP).map_err(fail)?;
        let this = self.clone();
        // The capability is dead after this, so the empty reply is not made in its name.
        to_its_end(async move { this.broker.drop_secret(&this.facet).await }).await
    }

    async fn attach(
        self: Rc<Self>,
        params: secret::AttachParams,
        mut results: secret::AttachResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::WRITE).map_err(fail)?;
        let accounts = params.get()?.get_accounts()?;
        let object = self.facet.object();
        let attach = || {
            let facts = self.broker.state.borrow().facts(object).cloned()?;
            if facts.kind != SecretKind::Account {
                return Err(Fault::malformed("this secret makes no accounts"));
            }
            self.broker.accounts.borrow_mut().insert(object, accounts);
            Ok(facts.name)
        };
        let attached = self.facet.commit(Rights::WRITE, NO_BYTES, attach);
        let name = attached.and_then(|attached| attached).map_err(fail)?;
        let detail = format!("'{name}': where accounts are made was attached");
        self.broker.report(self.facet.tenant(), self.facet.cap_id(), detail);
        self.facet.reply(&mut results);
        Ok(())
    }

    async fn info(
        self: Rc<Self>,
        _: secret::InfoParams,
        mut results: secret::InfoResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::READ).map_err(fail)?;
        let now_ms = self.broker.now_ms();
        let summary = self.broker.state.borrow().summary(self.facet.object(), now_ms);
        let summary = summary.map_err(fail)?;
        describe(&summary, self.facet.reply(&mut results).init_info());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_that_cannot_be_removed_is_tried_ever_less_often_and_never_given_up() {
        let pauses: Vec<Duration> = (0..40).map(removal_pause).collect();
        assert!(pauses.is_sorted() && pauses[0] == TICK && pauses[3] > pauses[2]);
        assert_eq!((pauses[39], removal_pause(u32::MAX)), (LONGEST_PAUSE, LONGEST_PAUSE));
    }
}
