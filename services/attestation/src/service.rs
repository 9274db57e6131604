//! The service: whom it watches, when they are asked, and who is told of what comes of it.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use distos_abi::{CapId, Fault, HolderKey, NodeId, TenantId};
use distos_appraisal::{Bound, Ear, MAX_EAR_LIFETIME_S, VerifierId};
use distos_identity::{TokenSecret, Validity};
use distos_rpc::{Service, Vat};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::TRACE;
use crate::collector::{Collector, Log, Logs};
use crate::governing::{Archive, Governing};
use crate::peers::Peers;
use crate::registry::Registry;
use crate::settings::{BOOT, FILES, Settings};
use crate::state::{Now, Standing};
use crate::tpm::{TIMEOUT, TimedFd, Tpm};
use crate::watched::Watched;

const AUDIT_KIND: &str = "attestation";
/// How many may wait for the TPM for something else than evidence.
const MAX_ASIDE: usize = 2;
/// How often it is looked whether evidence has aged.
const LOOK: Duration = Duration::from_millis(100);
/// How many peers' answers are examined at a time.
const MAX_EXAMINED: usize = 4;
/// Of how many peers long lists are read at a time.
const MAX_LONG: usize = 4;

/// Who asked for an attestation, for the audit log.
#[derive(Clone, Copy)]
pub(crate) struct Asker {
    pub(crate) tenant: TenantId,
    pub(crate) cap: CapId,
}

/// The renewing task acts for the node itself, under no capability.
pub(crate) const NOBODY: Asker = Asker { tenant: TenantId::OPERATOR, cap: CapId(0) };

pub(crate) type SharedCollector = Arc<Mutex<Collector<TimedFd>>>;

/// The service.
pub(crate) struct Attestation {
    pub(crate) vat: Vat,
    pub(crate) settings: Settings,
    pub(crate) collector: Option<SharedCollector>,
    pub(crate) archive: Archive,
    pub(crate) governing: RefCell<Arc<Governing>>,
    pub(crate) own: Rc<Watched>,
    /// Which node has shown which device.
    pub(crate) devices: RefCell<Registry>,
    /// The peers that this node verifies.
    pub(crate) peers: Peers,
    /// Held while a peer's answer is examined, and never while one is waited for: whoever is silent holds up nobody.
    pub(crate) examining: tokio::sync::Semaphore,
    /// Held while a peer's list is read that is too long for one answer.
    pub(crate) reading: tokio::sync::Semaphore,
    /// Held while the TPM is used: it does one thing at a time.
    pub(crate) turn: tokio::sync::Mutex<()>,
    /// Who waits for the TPM for something else, or has it.
    aside: Cell<usize>,
    /// Changes whenever this node's standing or epoch does.
    pub(crate) changed: watch::Sender<u64>,
    /// Signs results. It is in memory alone: what it signs is over within minutes.
    pub(crate) result_secret: TokenSecret,
    zero: Instant,
}

impl Attestation {
    /// Takes the TPM's descriptor from the vat, and the first evidence. Without a TPM, or if it
    /// does not answer, the service serves and says so: the node gets no work (A1).
    pub(crate) async fn start(vat: Vat) -> Result<Rc<dyn Service>, Fault> {
        let settings = Settings::of(&vat)?;
        let own = Watched::open(vat.node(), settings.bounds, &settings.data_dir)?;
        let (bound, grace) = (settings.bounds.fresh_ms, settings.bounds.grace_ms);
        tracing::debug!(target: TRACE, at = vat.now_ms(), verifier = %vat.node(), bound, grace, "start");
        let logs = Logs {
            boot: vat.take_device(BOOT).map(Log::from),
            files: vat.take_device(FILES).map(Log::from),
        };
        let collector =
            vat.take_device("tpm").map(|fd| collector(fd, &settings, logs)).transpose()?;
        let archive = Archive::new(&settings.data_dir, settings.given.clone());
        let governing = archive.read()?;
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *seed).map_err(Fault::internal)?;
        distos_noise::seal(&vat);
        tokio::task::spawn_local(distos_quic::attend(vat.clone()));
        let mut devices = Registry::new(own.node);
        devices.hold(own.node, own.kept.borrow().devices());
        let service = Rc::new(Attestation {
            devices: RefCell::new(devices),
            peers: Peers::new(&vat),
            vat,
            settings,
            collector,
            archive,
            governing: RefCell::new(Arc::new(governing)),
            own: Rc::new(own),
            examining: tokio::sync::Semaphore::new(MAX_EXAMINED),
            reading: tokio::sync::Semaphore::new(MAX_LONG),
            turn: tokio::sync::Mutex::new(()),
            aside: Cell::new(0),
            changed: watch::Sender::new(1),
            result_secret: TokenSecret::from_seed(&seed)?,
            zero: Instant::now(),
        });
        if let Err(fault) = service.clone().attest(service.own.clone(), NOBODY).await {
            tracing::warn!(%fault, "no evidence at start");
        }
        tokio::task::spawn_local(service.clone().renew(service.own.clone()));
        tokio::task::spawn_local(service.clone().age());
        service.peers.attend(&service);
        Ok(service)
    }

    pub(crate) fn now(&self) -> Now {
        let mono_ms = u64::try_from(self.zero.elapsed().as_millis()).unwrap_or(u64::MAX);
        Now { unix_ms: self.vat.now_ms(), mono_ms }
    }

    pub(crate) fn is_own(&self, watched: &Watched) -> bool {
        watched.node == self.vat.node()
    }

    /// Takes new evidence of a node before half the freshness bound is over, for as long as it is watched.
    pub(crate) async fn renew(self: Rc<Self>, watched: Rc<Watched>) {
        while !self.vat.draining() && !watched.ended.get() {
            let wait_ms = watched.state.borrow().next_in_ms(self.now());
            if wait_ms == 0 {
                // What failed is in the state and the audit log, and is tried again.
                let _ = self.clone().attest(watched.clone(), NOBODY).await;
            }
            // In short steps: a wall clock that is put back makes evidence due at once.
            let wait_ms = watched.state.borrow().next_in_ms(self.now()).clamp(200, 1_000);
            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        }
    }

    /// Looks whether evidence has aged, and tells whoever acts on it.
    pub(crate) async fn age(self: Rc<Self>) {
        loop {
            tokio::time::sleep(LOOK).await;
            self.show(&self.own);
            for watched in self.peers.all() {
                self.show(&watched);
            }
        }
    }

    /// Tells of a change of a node's standing, or of its epoch.
    pub(crate) fn show(&self, watched: &Watched) {
        let now = self.now();
        let (verdict, epoch) = {
            let state = watched.state.borrow();
            (state.verdict(now), state.epoch())
        };
        let shown = (verdict.standing, epoch);
        let was = watched.shown.replace(shown);
        if was == shown {
            return;
        }
        let (from, to) = (was.0.name(), verdict.standing.name());
        let reason = if verdict.reason.is_empty() { "good" } else { &verdict.reason };
        let whom =
            if self.is_own(watched) { String::new() } else { format!("node/{}: ", watched.node) };
        let detail = format!("{whom}{from} -> {to}, epoch {epoch}: {reason}");
        self.report(NOBODY, detail);
        if self.is_own(watched) {
            self.changed.send_modify(|revision| *revision += 1);
        }
        self.peers.tell(watched.node);
    }

    /// One attestation, in a task of its own: a caller that goes away must not hide its result.
    pub(crate) async fn attest(
        self: Rc<Self>,
        watched: Rc<Watched>,
        asker: Asker,
    ) -> Result<(), Fault> {
        if self.vat.draining() {
            return Err(Fault::unavailable(1_000, "the attestation service is draining"));
        }
        let arrived = watched.begun.get();
        tokio::task::spawn_local(self.in_turn(watched, arrived, asker))
            .await
            .map_err(|_| Fault::internal("an attestation was cut short"))?
    }

    /// Waits for one that is under way. An attestation that began after the caller came serves it as well, so
    /// that many callers cost one quote.
    pub(crate) async fn in_turn(
        self: Rc<Self>,
        watched: Rc<Watched>,
        arrived: u64,
        asker: Asker,
    ) -> Result<(), Fault> {
        let _turn = watched.turn.lock().await;
        if watched.begun.get() > arrived {
            return watched.last.borrow().clone();
        }
        watched.begun.set(arrived + 1);
        let result = self.take_evidence(&watched, asker).await;
        *watched.last.borrow_mut() = result.clone();
        self.show(&watched);
        self.peers.tell(watched.node);
        result
    }

    /// Asks the TPM for something else than a verdict, in turn. What is shown of its registers answers whoever asked,
    /// and says nothing about this node's own freshness. In a task of its own, as an attestation is: a caller that goes
    /// away must not hide what was done.
    pub(crate) async fn aside<T: Send + 'static>(
        self: &Rc<Self>,
        asker: Asker,
        what: String,
        ask: impl FnOnce(&mut Collector<TimedFd>) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        if self.vat.draining() {
            return Err(Fault::unavailable(1_000, "the attestation service is draining"));
        }
        // Evidence is due in time, whoever else asks.
        if self.aside.get() >= MAX_ASIDE {
            return Err(Fault::unavailable(5_000, "the TPM is busy with others"));
        }
        self.aside.set(self.aside.get() + 1);
        let service = self.clone();
        let asked = tokio::task::spawn_local(async move {
            let _turn = service.turn.lock().await;
            let answered = service.with_tpm(ask).await;
            service.aside.set(service.aside.get() - 1);
            let detail = match &answered {
                Ok(_) => what,
                Err(fault) => format!("{what}: {fault}"),
            };
            service.report(asker, detail);
            answered
        });
        asked.await.map_err(|_| Fault::internal("what the TPM was asked was cut short"))?
    }

    pub(crate) async fn with_tpm<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&mut Collector<TimedFd>) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let collector = self.collector.clone().ok_or_else(|| {
            Fault::unavailable(60_000, "the image gives the attestation service no TPM")
        })?;
        tokio::task::spawn_blocking(move || {
            // A panic half way leaves at most a lost TPM, which the collector notices.
            ask(&mut collector.lock().unwrap_or_else(PoisonError::into_inner))
        })
        .await
        .map_err(|_| Fault::internal("the thread that speaks to the TPM ended"))?
    }

    /// What is known of a node that this one verifies.
    pub(crate) fn watched(&self, node: NodeId) -> Result<Rc<Watched>, Fault> {
        if node == self.vat.node() {
            return Ok(self.own.clone());
        }
        self.peers.get(node).ok_or_else(|| {
            Fault::not_found(
                "this node verifies no such node: it is no peer, or this one signs for nobody",
            )
        })
    }

    pub(crate) fn asked_node(&self, bytes: &[u8]) -> Result<Rc<Watched>, Fault> {
        if bytes.is_empty() {
            return Ok(self.own.clone());
        }
        self.watched(NodeId::try_from(bytes)?)
    }

    /// A signed result of the last evidence, while it is fresh.
    pub(crate) fn result(&self, watched: &Watched) -> Result<String, Fault> {
        let now = self.now();
        let (verdict, epoch) = {
            let state = watched.state.borrow();
            (state.verdict(now), state.epoch())
        };
        let (Standing::Fresh, Some(evidence)) = (verdict.standing, verdict.evidence) else {
            let standing = verdict.standing.name();
            return Err(Fault::StaleAttestation(format!("{standing}: {}", verdict.reason)));
        };
        let found = watched.found.borrow();
        let found =
            found.as_ref().ok_or_else(|| Fault::internal("fresh, and nothing was found"))?;
        if !found.opinion.is_by_signed_policy() {
            let why = "the policy by which it was appraised is signed by nobody: sign one, and give it with `distos attest policy`";
            return Err(Fault::unavailable(60_000, why));
        }
        let from_s = now.unix_ms / 1000;
        let until_s = (verdict.fresh_until_ms / 1000).min(from_s + MAX_EAR_LIFETIME_S);
        let verifier =
            VerifierId { developer: "DistOS".into(), build: env!("CARGO_PKG_VERSION").into() };
        let bound = Bound {
            boot: u64::from(evidence.appraised.clock.reset_count),
            epoch,
            nonce_hash: Sha256::digest(evidence.nonce).into(),
            svid_key_hash: Sha256::digest(evidence.session.key.0).into(),
        };
        let collateral = found.digests.clone();
        let validity = Validity { from_s, until_s };
        Ear::of(&found.opinion, verifier, bound, collateral, validity)?.sign(&self.result_secret)
    }

    /// Goes by another policy, or trusts others, from now on; evidence is taken anew by it.
    pub(crate) fn take_effect(self: &Rc<Self>) -> Result<(), Fault> {
        let governing = self.archive.read()?;
        *self.governing.borrow_mut() = Arc::new(governing);
        for watched in self.peers.all().into_iter().chain([self.own.clone()]) {
            let service = self.clone();
            tokio::task::spawn_local(async move { drop(service.attest(watched, NOBODY).await) });
        }
        Ok(())
    }

    pub(crate) fn judgement(&self, node: NodeId) -> Option<Judgement> {
        let watched = self.watched(node).ok()?;
        let state = watched.state.borrow();
        let verdict = state.verdict(self.now());
        Some(Judgement {
            node,
            standing: verdict.standing,
            until_s: verdict.fresh_until_ms / 1000,
            epoch: state.epoch(),
            reason: verdict.reason,
            bound: verdict.evidence.map(|evidence| (evidence.session.key, evidence.session.life)),
        })
    }

    /// Somebody remembers a later epoch of a node: this one goes on from there.
    pub(crate) fn raise(&self, node: NodeId, epoch: u64) {
        let Ok(watched) = self.watched(node) else { return };
        if epoch <= watched.state.borrow().epoch() {
            return;
        }
        watched.state.borrow_mut().raise(epoch);
        let kept = watched.kept.borrow().clone();
        if let Err(fault) = watched.keep(kept) {
            tracing::error!(%fault, %node, "an epoch could not be kept");
        }
        self.show(&watched);
        self.peers.tell(node);
    }

    pub(crate) fn report(&self, asker: Asker, detail: String) {
        self.vat.report(AUDIT_KIND, asker.tenant, asker.cap, detail);
    }
}

/// What this node says of another, for the network service.
pub(crate) struct Judgement {
    pub(crate) node: NodeId,
    pub(crate) standing: Standing,
    pub(crate) until_s: u64,
    pub(crate) epoch: u64,
    pub(crate) reason: String,
    /// To which key of its network service, and to which life of that.
    pub(crate) bound: Option<(HolderKey, [u8; 32])>,
}

fn collector(fd: OwnedFd, settings: &Settings, logs: Logs) -> Result<SharedCollector, Fault> {
    let image_hash = settings.image_hash.ok_or_else(|| {
        Fault::malformed(
            "attestation: setting 'image_hash' is missing: there is nothing to measure",
        )
    })?;
    let fd = TimedFd::new(fd, TIMEOUT)
        .map_err(|error| Fault::internal(format!("the TPM's descriptor: {error}")))?;
    let collector = Collector::new(Tpm::new(fd), image_hash, settings.pcrs, logs);
    Ok(Arc::new(Mutex::new(collector)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::tests::parse;

    #[test]
    fn a_tpm_without_an_image_to_measure_is_not_used() {
        let settings = parse(&[]).unwrap();
        let (fd, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let fault = collector(fd.into(), &settings, Logs::default()).unwrap_err();
        assert!(matches!(&fault, Fault::Malformed(why) if why.contains("image_hash")), "{fault}");
    }
}
