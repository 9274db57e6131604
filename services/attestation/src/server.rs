//! The attestation interface over RPC, and the tasks that have evidence renewed.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use capnp::capability::FromClientHook;
use capnp::private::capability::ClientHook;
use distos_abi::{ByteRange, CapId, Fault, HolderKey, NodeId, ObjectId, Rights, TenantId, VatName};
use distos_appraisal::{Bound, Ear, MAX_EAR_LIFETIME_S, VerifierId};
use distos_delivery::RecipientKey;
use distos_evidence::credential::{EPHEMERAL_BYTES, is_name_long};
use distos_evidence::evidence::{Attest, Continuity, PcrSet};
use distos_evidence::ima::{IMA_PCR, MAX_PART_BYTES};
use distos_evidence::joining::{IMAGE_PCR, MAX_SEALED_BYTES, Sealed};
use distos_evidence::live::{Bundle, Gpu, Identity, MAX_ANSWER_BYTES, Question, Session, Wanted};
use distos_evidence::nvidia::MAX_DEVICES;
use distos_identity::{TokenSecret, Validity};
use distos_rpc::{Facet, Faceted, Service, Vat, fail, fault_of, serve_capability};
use distos_schemas::attestation_capnp::{Standing as StandingWord, attestation, verdict};
use distos_schemas::gpu_capnp::{gpu_evidence, gpus};
use distos_types::kind;
use futures::future::LocalBoxFuture;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::TRACE;
use crate::collector::{Collector, Log, Logs};
use crate::governing::{Archive, Given, Governing};
use crate::peers::Peers;
use crate::sealing::{self, Blob};
use crate::state::{Bounds, Judged, Now, Standing, Unasked};
use crate::tpm::{TIMEOUT, TimedFd, Tpm};
use crate::verifier::{Answer, Evidence, Examined, Kept, LIMITS};
use crate::watched::{Found, Watched};

const DEFAULT_FRESHNESS_MS: u64 = 300_000;
/// The firmware's registers on a PC; the image's is always added, and the kernel's if its list is there.
const DEFAULT_PCRS: &str = "0-7";
const AUDIT_KIND: &str = "attestation";
/// How many may wait for the TPM for something else than evidence.
const MAX_ASIDE: usize = 2;
/// Verdicts in one answer.
const MAX_LISTED: usize = 2048;
/// The object has no bytes.
const NO_BYTES: ByteRange = ByteRange { start: 0, end: 0 };
/// How often it is looked whether evidence has aged.
const LOOK: Duration = Duration::from_millis(100);
/// How long whoever waits for a change waits at most.
const WATCH: Duration = Duration::from_secs(10);
/// How many parts of the kernel's list are asked for at most before it is verified.
const MAX_PARTS: usize = 256;
/// How often evidence is asked for whose list of files goes on growing meanwhile.
const MAX_TRIES: usize = 8;
/// How many peers are asked at a time.
const MAX_ASKED: usize = 16;
/// How long GPUs may take.
const GPU_WAIT: Duration = Duration::from_secs(15);

/// What the image sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    hardware: bool,
    pub(crate) bounds: Bounds,
    /// The node image's, to be measured; there is none without a TPM.
    image_hash: Option<[u8; 32]>,
    pcrs: PcrSet,
    pub(crate) data_dir: PathBuf,
    given: Given,
}

impl Settings {
    /// Reads the settings; [`Fault::Malformed`] names the one that is missing or wrong.
    pub(crate) fn of(vat: &Vat) -> Result<Settings, Fault> {
        let data_dir = vat.data_dir().map(PathBuf::from);
        Settings::parse(|key| vat.param(key), data_dir)
    }

    fn parse<'a>(
        param: impl Fn(&str) -> Option<&'a str>,
        data_dir: Option<PathBuf>,
    ) -> Result<Settings, Fault> {
        let wrong = |key: &str, what: &str| {
            Fault::malformed(format!("attestation: setting '{key}' {what}"))
        };
        let hardware = match param("tpm") {
            Some("hardware") => true,
            // Without a label the weaker claim is made.
            Some("software") | None => false,
            Some(_) => return Err(wrong("tpm", "is neither 'hardware' nor 'software'")),
        };
        let ms = |key: &str, default: u64| match param(key) {
            None => Ok(default),
            Some(text) => text.parse().map_err(|_| wrong(key, "is no number of milliseconds")),
        };
        let fresh_ms = ms("freshness_ms", DEFAULT_FRESHNESS_MS)?;
        let bounds = Bounds { fresh_ms, grace_ms: ms("grace_ms", fresh_ms)? };
        let image_hash = match param("image_hash") {
            None => None,
            Some(text) => {
                let mut hash = [0u8; 32];
                hex::decode_to_slice(text, &mut hash)
                    .map_err(|_| wrong("image_hash", "is not 64 hexadecimal digits"))?;
                Some(hash)
            }
        };
        let pcrs = PcrSet::parse(param("pcrs").unwrap_or(DEFAULT_PCRS))?.with(IMAGE_PCR);
        // Its value is what the kernel's list is held against.
        let pcrs = if param(FILES).is_some() { pcrs.with(IMA_PCR) } else { pcrs };
        let data_dir =
            data_dir.ok_or_else(|| Fault::malformed("attestation: its vat needs 'data = true'"))?;
        let text = |key: &str| param(key).unwrap_or_default().to_owned();
        let signers = text("policy_signers");
        let signers = signers.split_whitespace().map(|key| {
            let key = hex::decode(key).ok().and_then(|key| HolderKey::try_from(&key[..]).ok());
            key.ok_or_else(|| {
                wrong("policy_signers", "has a word that is no key: 64 hexadecimal digits")
            })
        });
        let signers = signers.collect::<Result<_, _>>()?;
        let given = Given { policy: text("policy"), signature: text("policy_signature"), signers };
        Ok(Settings { hardware, bounds, image_hash, pcrs, data_dir, given })
    }

    fn label(&self, present: bool) -> &'static str {
        match (present, self.hardware) {
            (false, _) => "no TPM",
            (true, true) => "hardware TPM /dev/tpmrm0",
            (true, false) => "software TPM (swtpm): proves the protocol, not the machine",
        }
    }
}

/// The devices by which the image gives the service the logs of the boot and of the kernel's measured files.
const BOOT: &str = "boot-log";
const FILES: &str = "measured-files";

/// The setting that names the edge to the service of the machine's GPUs; without it they are not asked.
const GPUS: &str = "gpus";

/// Who asked for an attestation, for the audit log.
#[derive(Clone, Copy)]
struct Asker {
    tenant: TenantId,
    cap: CapId,
}

/// The renewing task acts for the node itself, under no capability.
const NOBODY: Asker = Asker { tenant: TenantId::OPERATOR, cap: CapId(0) };

type SharedCollector = Arc<Mutex<Collector<TimedFd>>>;

/// The service.
pub(crate) struct Attestation {
    pub(crate) vat: Vat,
    pub(crate) settings: Settings,
    collector: Option<SharedCollector>,
    archive: Archive,
    governing: RefCell<Arc<Governing>>,
    own: Rc<Watched>,
    /// The peers that this node verifies.
    pub(crate) peers: Peers,
    /// Held while a peer is asked.
    asking: tokio::sync::Semaphore,
    /// Held while the TPM is used: it does one thing at a time.
    turn: tokio::sync::Mutex<()>,
    /// Who waits for the TPM for something else, or has it.
    aside: Cell<usize>,
    /// Changes whenever this node's standing or epoch does.
    changed: watch::Sender<u64>,
    /// Signs results. It is in memory alone: what it signs is over within minutes.
    result_secret: TokenSecret,
    zero: Instant,
}

impl Attestation {
    /// Takes the TPM's descriptor from the vat, and the first evidence. Without a TPM, or if it
    /// does not answer, the service serves and says so: the node gets no work (A1).
    pub(crate) async fn start(vat: Vat) -> Result<Rc<dyn Service>, Fault> {
        let settings = Settings::of(&vat)?;
        let own = Watched::open(vat.node(), settings.bounds, &settings.data_dir)?;
        let bound = settings.bounds.fresh_ms;
        tracing::debug!(target: TRACE, at = vat.now_ms(), bound, "start");
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
        let service = Rc::new(Attestation {
            peers: Peers::new(&vat),
            vat,
            settings,
            collector,
            archive,
            governing: RefCell::new(Arc::new(governing)),
            own: Rc::new(own),
            asking: tokio::sync::Semaphore::new(MAX_ASKED),
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

    fn is_own(&self, watched: &Watched) -> bool {
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
    async fn age(self: Rc<Self>) {
        loop {
            tokio::time::sleep(LOOK).await;
            self.show(&self.own);
            for watched in self.peers.all() {
                self.show(&watched);
            }
        }
    }

    /// Tells of a change of a node's standing, or of its epoch.
    fn show(&self, watched: &Watched) {
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
    async fn attest(self: Rc<Self>, watched: Rc<Watched>, asker: Asker) -> Result<(), Fault> {
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
    async fn in_turn(
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
        // Its own evidence does not wait for anybody's.
        let _asking = match self.is_own(&watched) {
            true => None,
            false => self.asking.acquire().await.ok(),
        };
        let result = self.take_evidence(&watched, asker).await;
        *watched.last.borrow_mut() = result.clone();
        self.show(&watched);
        self.peers.tell(watched.node);
        result
    }

    async fn take_evidence(&self, watched: &Watched, asker: Asker) -> Result<(), Fault> {
        let mut random = [0u8; 32];
        getrandom::fill(&mut random).map_err(Fault::internal)?;
        let opened = self.now();
        let challenge = watched.state.borrow_mut().challenge(random, opened);
        let nonce = Nonce(&challenge);
        let is_own = self.is_own(watched);
        let node = watched.node;
        tracing::debug!(target: TRACE, at = opened.unix_ms, %node, %nonce, "challenge");
        let answered = match self.evidence_of(watched, &challenge).await {
            Ok(answered) => answered,
            Err(fault) => {
                // It is tried every few seconds: one event for one cause.
                let is_new = watched.state.borrow_mut().no_answer(fault.to_string());
                tracing::debug!(target: TRACE, at = self.now().unix_ms, %node, "no_answer");
                if is_own && (is_new || asker.cap != NOBODY.cap) {
                    self.report(asker, format!("no evidence: {fault}"));
                }
                return Err(fault);
            }
        };
        self.take_answer(watched, &challenge, answered, asker)
    }

    fn take_answer(
        &self,
        watched: &Watched,
        challenge: &[u8; 32],
        answered: Answered,
        asker: Asker,
    ) -> Result<(), Fault> {
        let now = self.now();
        if watched.ended.get() {
            return Err(Fault::not_found("the node is no peer any more"));
        }
        let (judged, kept, found) = match answered {
            Answered::Refused(judged) => (judged.of(), None, None),
            Answered::Examined(examined, governing) => {
                let Examined { judged, devices, opinion, kept } = *examined;
                let (edition, digests) = (governing.edition(), governing.digests());
                // Keys are known from the first good evidence on, and by no other.
                let kept = matches!(judged, Judged::Good(_)).then_some(kept);
                (judged, kept, Some(Found { devices, opinion, edition, digests }))
            }
        };
        let detail = describe(&judged, self.settings.label(true));
        let resets = match &judged {
            Judged::Good(evidence) => Some(evidence.appraised.clock.reset_count),
            _ => None,
        };
        let (at, nonce, good) = (now.unix_ms, Nonce(challenge), resets.is_some());
        let (node, is_absent) = (watched.node, matches!(judged, Judged::Absent(_)));
        let is_own = self.is_own(watched);
        let taken = watched.state.borrow_mut().answer(challenge, judged, now);
        // What is remembered is what the state knows, also of an epoch that began: the file follows it.
        if taken.is_ok() {
            *watched.found.borrow_mut() = found;
            let kept = kept.unwrap_or_else(|| watched.kept.borrow().clone());
            if let Err(fault) = watched.keep(kept) {
                // What ends acts first; that it does not survive a restart is for the operator to know.
                tracing::error!(%fault, %node, "what is known of a node could not be kept");
            }
        }
        match taken {
            Ok(()) if is_absent => {
                tracing::debug!(target: TRACE, at, %node, "no_answer");
                if is_own {
                    self.report(asker, detail);
                }
                Ok(())
            }
            Ok(()) => {
                let epoch = watched.state.borrow().epoch();
                tracing::debug!(target: TRACE, at, %node, %nonce, good, epoch, resets, "verdict");
                if is_own {
                    self.report(asker, detail);
                }
                Ok(())
            }
            Err(unasked) => {
                // What answers no open challenge changes nothing.
                if unasked == Unasked::TooOld {
                    tracing::debug!(target: TRACE, at, %node, %nonce, "too_old");
                }
                self.report(asker, format!("refused: {unasked}"));
                Err(Fault::unavailable(1_000, unasked.to_string()))
            }
        }
    }

    /// Asks a node, over whatever is between: the answer, and the session that it is bound to.
    async fn ask(&self, node: NodeId, question: Question) -> Result<(Vec<u8>, Session), Fault> {
        if node == self.vat.node() {
            let session = Session::own(node);
            let answer = self.answer(question, session).await?;
            return Ok((answer, session));
        }
        let (answer, key) = self.peers.ask(&self.vat, node, &question.to_bytes()).await?;
        Ok((answer, Session { verifier: self.vat.node(), node, key }))
    }

    /// Has this node's machine answer, in turn.
    pub(crate) async fn answer(
        &self,
        question: Question,
        session: Session,
    ) -> Result<Vec<u8>, Fault> {
        let now_ms = self.vat.now_ms();
        let Question::Evidence(wanted) = question else {
            let _turn = self.turn.lock().await;
            return self
                .with_tpm(move |collector| collector.answer(&question, session, now_ms))
                .await;
        };
        let mut bundle = {
            let _turn = self.turn.lock().await;
            self.with_tpm(move |collector| collector.evidence(wanted, session, now_ms)).await?
        };
        // Once, with the last part of the list.
        if let Some(edge) = self.vat.param(GPUS).filter(|_| !bundle.more) {
            let asked = gpus(&self.vat, edge, session, &wanted.nonce);
            let late = |_| Err(Fault::unavailable(5_000, "the GPUs do not answer"));
            bundle.gpus = Some(tokio::time::timeout(GPU_WAIT, asked).await.unwrap_or_else(late)?);
        }
        let answer = bundle.to_bytes();
        if answer.len() > MAX_ANSWER_BYTES {
            return Err(Fault::unavailable(
                60_000,
                "this node has more to show than fits an answer",
            ));
        }
        Ok(answer)
    }

    /// Has a node show its keys if it is not known, and its evidence examined.
    async fn evidence_of(&self, watched: &Watched, nonce: &[u8; 32]) -> Result<Answered, Fault> {
        let mut kept = watched.kept.borrow().clone();
        if !kept.is_enrolled()
            && let Err(judged) = self.enrol(watched.node, &mut kept).await?
        {
            return Ok(Answered::Refused(judged));
        }
        let governing = self.governing.borrow().clone();
        let mut listed = kept.listed(governing.law(0).known);
        let mut list: Option<Vec<u8>> = None;
        for _ in 0..MAX_TRIES {
            let have = list.as_ref().map_or(0, Vec::len);
            let wanted = Wanted {
                nonce: *nonce,
                pcrs: self.settings.pcrs,
                listed: listed.saturating_add(have as u64),
            };
            let (answer, session) = self.ask(watched.node, Question::Evidence(wanted)).await?;
            let bundle = Bundle::parse(&answer)?;
            if listed > 0 && !is_boot_of(&kept, &bundle) {
                // The kernel's list begins anew with each boot.
                (listed, list) = (0, None);
                continue;
            }
            let have_now = match &bundle.list {
                Some(part) => add_part(list.get_or_insert_default(), part)?,
                None => 0,
            };
            if !bundle.more {
                let shown = Shown { session, nonce: *nonce, bundle, list };
                return self.examine(watched, kept, governing, shown).await;
            }
            // What is long comes without the TPM's doing, and the rest with the next quote.
            let list = list.get_or_insert_default();
            self.read_on(watched.node, listed, have_now, list).await?;
        }
        Err(Fault::unavailable(60_000, "the list of measured files does not end"))
    }

    /// Reads on in the kernel's list of a node, as far as it goes now.
    async fn read_on(
        &self,
        node: NodeId,
        listed: u64,
        mut have: usize,
        list: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        for _ in 0..MAX_PARTS {
            let from = listed.saturating_add(have as u64);
            let (part, _) = self.ask(node, Question::Measured(from)).await?;
            if part.is_empty() {
                return Ok(());
            }
            have = add_part(list, &part)?;
        }
        Err(Fault::unavailable(60_000, "the list of measured files does not end"))
    }

    async fn examine(
        &self,
        watched: &Watched,
        kept: Kept,
        governing: Arc<Governing>,
        shown: Shown,
    ) -> Result<Answered, Fault> {
        let own = self.is_own(watched).then_some(self.settings.hardware);
        let (pcrs, at_s) = (self.settings.pcrs, self.vat.now_ms() / 1000);
        // A long list takes longer than this thread may be held up.
        let examined = tokio::task::spawn_blocking(move || {
            let law = governing.law(at_s);
            let Shown { session, nonce, bundle, list } = &shown;
            let (session, nonce, list) = (*session, *nonce, list.as_deref());
            let examined = kept.examine(Answer { session, nonce, pcrs, bundle, list }, own, law);
            examined.map(|examined| Answered::Examined(Box::new(examined), governing))
        });
        examined.await.map_err(|_| Fault::internal("an examination ended early"))?
    }

    /// Has a node show that its keys are in one TPM, which is in `kept` then.
    async fn enrol(
        &self,
        node: NodeId,
        kept: &mut Kept,
    ) -> Result<Result<(), Judged<Infallible>>, Fault> {
        let (answer, _) = self.ask(node, Question::Identity).await?;
        let identity = Identity::parse(&answer)?;
        let mut secret = Zeroizing::new([0; 32]);
        let mut ephemeral = Zeroizing::new([0; EPHEMERAL_BYTES]);
        getrandom::fill(&mut *secret).map_err(Fault::internal)?;
        getrandom::fill(&mut *ephemeral).map_err(Fault::internal)?;
        let (enrolling, credential) = match kept.begin(identity, secret, &ephemeral) {
            Ok(begun) => begun,
            Err(judged) => return Ok(Err(judged)),
        };
        let (answer, session) = self.ask(node, Question::Activate(credential)).await?;
        if let Err(judged) = kept.enrol(&enrolling, session, &answer) {
            return Ok(Err(judged));
        }
        // Whoever has one machine must not vouch with it for several nodes.
        let ek = kept.endorsement();
        let others = self.peers.all().into_iter().chain([self.own.clone()]);
        let mut others = others.filter(|other| other.node != node);
        if let Some(other) = others.find(|other| other.kept.borrow().endorsement() == ek) {
            let why = format!("its TPM is that of node/{}", other.node);
            return Ok(Err(Judged::Absent(why)));
        }
        self.report(NOBODY, format!("node/{node} shows: {}", kept.named()));
        Ok(Ok(()))
    }

    /// Asks the TPM for something else than a verdict, in turn. What is shown of its registers answers whoever asked,
    /// and says nothing about this node's own freshness. In a task of its own, as an attestation is: a caller that goes
    /// away must not hide what was done.
    async fn aside<T: Send + 'static>(
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

    async fn with_tpm<T: Send + 'static>(
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
    fn watched(&self, node: NodeId) -> Result<Rc<Watched>, Fault> {
        if node == self.vat.node() {
            return Ok(self.own.clone());
        }
        self.peers.get(node).ok_or_else(|| {
            Fault::not_found(
                "this node verifies no such node: it is no peer, or this one signs for nobody",
            )
        })
    }

    fn asked_node(&self, bytes: &[u8]) -> Result<Rc<Watched>, Fault> {
        if bytes.is_empty() {
            return Ok(self.own.clone());
        }
        self.watched(NodeId::try_from(bytes)?)
    }

    /// A signed result of the last evidence, while it is fresh.
    fn result(&self, watched: &Watched) -> Result<String, Fault> {
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
        let limits = LIMITS.map(str::to_owned).to_vec();
        let collateral = found.digests.clone();
        let validity = Validity { from_s, until_s };
        Ear::of(&found.opinion, verifier, bound, collateral, limits, validity)?
            .sign(&self.result_secret)
    }

    /// Goes by another policy, or trusts others, from now on; evidence is taken anew by it.
    fn take_effect(self: &Rc<Self>) -> Result<(), Fault> {
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

    fn report(&self, asker: Asker, detail: String) {
        self.vat.report(AUDIT_KIND, asker.tenant, asker.cap, detail);
    }

    fn write_verdict(&self, watched: &Watched, mut builder: verdict::Builder<'_>) {
        let now = self.now();
        let state = watched.state.borrow();
        let verdict = state.verdict(now);
        builder.set_node(&watched.node.0);
        builder.set_standing(word_of(verdict.standing));
        builder.set_epoch(state.epoch());
        builder.set_fresh_until_ms(verdict.fresh_until_ms);
        builder.set_expires_ms(verdict.expires_ms);
        builder.set_good(verdict.taken_ms != 0);
        builder.set_reason(verdict.reason.as_str());
        builder.set_taken_ms(verdict.taken_ms);
        // Of what was found, that by which it was; else what would be gone by.
        let found = watched.found.borrow();
        let edition = match &*found {
            Some(found) => found.edition.clone(),
            None => self.governing.borrow().edition(),
        };
        builder.set_policy(edition.unwrap_or_default().as_str());
        if self.is_own(watched) {
            let present = self.collector.is_some();
            builder.set_tpm(self.settings.label(present));
            builder.set_hardware(present && self.settings.hardware);
        }
        if let Some(evidence) = &verdict.evidence {
            let appraised = &evidence.appraised;
            builder.set_pcr_digest(&appraised.pcr_digest);
            builder.set_reset_count(appraised.clock.reset_count);
            builder.set_restart_count(appraised.clock.restart_count);
            builder.set_quote_micros(evidence.quote_micros);
            builder.set_ak_name(&evidence.ak_name);
            let numbers: Vec<u8> = appraised.pcrs.iter().collect();
            // At most 24 registers.
            let len = u32::try_from(numbers.len()).unwrap_or_default();
            let mut pcrs = builder.reborrow().init_pcrs(len);
            for (index, pcr) in (0..len).zip(numbers) {
                pcrs.set(index, pcr);
            }
        }
        if let Some(found) = &*found {
            write_found(found, builder);
        }
    }
}

/// What this node says of another, for the network service.
pub(crate) struct Judgement {
    pub(crate) node: NodeId,
    pub(crate) standing: Standing,
    pub(crate) until_s: u64,
    pub(crate) epoch: u64,
    pub(crate) reason: String,
}

/// What a node has shown, with the whole of its list.
struct Shown {
    session: Session,
    nonce: [u8; 32],
    bundle: Bundle,
    list: Option<Vec<u8>>,
}

/// What came of asking a node.
enum Answered {
    /// It is not known by its keys, and why not.
    Refused(Judged<Infallible>),
    Examined(Box<Examined>, Arc<Governing>),
}

/// Whether a quote, which nobody has verified yet, is of the boot of which the list is known.
fn is_boot_of(kept: &Kept, bundle: &Bundle) -> bool {
    let resets = Attest::parse(&bundle.quote).ok().map(|attest| attest.clock.reset_count);
    kept.listed_in() == resets
}

/// Puts a part of the kernel's list behind what came before it; how long that is then.
fn add_part(list: &mut Vec<u8>, part: &[u8]) -> Result<usize, Fault> {
    if list.len() + part.len() > MAX_PART_BYTES {
        let why =
            format!("the list of measured files has more than {MAX_PART_BYTES} bytes at once");
        return Err(Fault::unavailable(60_000, why));
    }
    list.extend(part);
    Ok(list.len())
}

/// A standing, as the schema has it.
pub(crate) fn word_of(standing: Standing) -> StandingWord {
    match standing {
        Standing::Fresh => StandingWord::Fresh,
        Standing::Stale => StandingWord::Stale,
        Standing::Expired => StandingWord::Expired,
        Standing::Failed => StandingWord::Failed,
    }
}

fn write_found(found: &Found, mut builder: verdict::Builder<'_>) {
    builder.set_tier(found.opinion.tier().name());
    // At most 64, and as many checks of each.
    let mut submods = builder.init_submods(found.devices.len() as u32);
    for (index, (name, device)) in (0..).zip(&found.devices) {
        let mut to = submods.reborrow().get(index);
        to.set_name(name.as_str());
        to.set_kind(device.kind.name());
        if let Some((_, opinion)) = found.opinion.submods().get(name) {
            to.set_tier(opinion.tier().name());
            to.set_reason(opinion.reason());
        }
        let checks = &device.findings.checks;
        let mut list = to.init_checks(checks.len() as u32);
        for (index, check) in (0..).zip(checks) {
            let mut to = list.reborrow().get(index);
            to.set_name(check.name);
            to.set_outcome(check.outcome.to_string().as_str());
            to.set_why(check.detail.as_str());
        }
    }
}

/// What a challenge is called in the trace: enough of it to tell it from every other.
struct Nonce<'a>(&'a [u8; 32]);

impl fmt::Display for Nonce<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0[..8]))
    }
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

/// What this machine's GPUs answer, each to a nonce of its own.
async fn gpus(
    vat: &Vat,
    edge: &str,
    session: Session,
    nonce: &[u8; 32],
) -> Result<Vec<Gpu>, Fault> {
    let service: gpus::Client = vat.root(edge).await?;
    let listed = service.list_request().send().promise.await.map_err(|e| fault_of(&e))?;
    let count = listed.get().and_then(|one| Ok(one.get_gpus()?.len())).map_err(|e| fault_of(&e))?;
    if count as usize > MAX_DEVICES {
        return Err(Fault::malformed(format!("a node has {MAX_DEVICES} GPUs at most")));
    }
    let mut request = service.evidence_request();
    let mut nonces = request.get().init_nonces(count);
    for number in 0..count {
        nonces.set(number, &session.device_nonce(nonce, number));
    }
    let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
    let read = || -> capnp::Result<Vec<Gpu>> {
        let text =
            |text: capnp::text::Reader<'_>| String::from_utf8_lossy(text.as_bytes()).into_owned();
        let one = |gpu: gpu_evidence::Reader<'_>| {
            Ok(Gpu {
                arch: text(gpu.get_arch()?),
                chain: String::from_utf8_lossy(gpu.get_chain()?).into_owned(),
                report: hex::encode(gpu.get_report()?),
                mode: text(gpu.get_mode()?),
                fault: text(gpu.get_fault()?),
            })
        };
        answer.get()?.get_gpus()?.iter().map(one).collect()
    };
    read().map_err(|e| fault_of(&e))
}

/// One line for the audit log.
fn describe(judged: &Judged<Evidence>, label: &str) -> String {
    match judged {
        Judged::Good(Evidence { appraised, quote_micros, ak_name, .. }) => {
            let boot = match appraised.continuity {
                Continuity::First => "first evidence",
                Continuity::SameBoot => "same boot",
                Continuity::NewBoot => "new boot, appraised in full",
            };
            let clock = appraised.clock;
            format!(
                "good: PCR digest {}; {boot}; resets {}; restarts {}; quote took {quote_micros} us; key {}; {label}",
                hex::encode(appraised.pcr_digest),
                clock.reset_count,
                clock.restart_count,
                hex::encode(ak_name),
            )
        }
        Judged::Absent(why) => format!("not shown: {why}; {label}"),
        Judged::Bad(why) => format!("refused: {why}; {label}"),
    }
}

impl Service for Attestation {
    fn open(self: Rc<Self>, facet: Facet) -> Result<Box<dyn ClientHook>, Fault> {
        if (facet.kind(), facet.object()) != (kind::ATTESTATION, ObjectId::ROOT) {
            return Err(Fault::not_found("the attestation service has one object only"));
        }
        Ok(hook(self, facet))
    }

    fn drain(self: Rc<Self>) -> LocalBoxFuture<'static, ()> {
        // No new attestation begins while draining; the running one holds the turn.
        Box::pin(async move { drop(self.turn.lock().await) })
    }
}

fn hook(service: Rc<Attestation>, facet: Facet) -> Box<dyn ClientHook> {
    let client: attestation::Client = capnp_rpc::new_client(AttestationServer { service, facet });
    client.into_client_hook()
}

/// The root object behind one capability.
struct AttestationServer {
    service: Rc<Attestation>,
    facet: Facet,
}

impl AttestationServer {
    fn asker(&self) -> Asker {
        Asker { tenant: self.facet.tenant(), cap: self.facet.cap_id() }
    }

    /// The vat of this node that calls over its own edge. Nobody else has anything sealed.
    fn vat(&self) -> Result<VatName, Fault> {
        let edge = self.facet.edge().and_then(|name| VatName::new(name).ok());
        edge.ok_or_else(|| self.facet.refused(Fault::denied(Rights::CREATE)))
    }
}

impl Faceted for AttestationServer {
    fn facet(&self) -> &Facet {
        &self.facet
    }

    fn with_facet(&self, facet: Facet) -> Box<dyn ClientHook> {
        hook(self.service.clone(), facet)
    }
}

serve_capability!(AttestationServer);

impl attestation::Server for AttestationServer {
    async fn status(
        self: Rc<Self>,
        _: attestation::StatusParams,
        mut results: attestation::StatusResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::READ).map_err(fail)?;
        self.service
            .write_verdict(&self.service.own, self.facet.reply(&mut results).init_verdict());
        Ok(())
    }

    async fn attest(
        self: Rc<Self>,
        _: attestation::AttestParams,
        mut results: attestation::AttestResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::ATTEST).map_err(fail)?;
        let own = self.service.own.clone();
        self.service.clone().attest(own.clone(), self.asker()).await.map_err(fail)?;
        self.service.write_verdict(&own, self.facet.reply(&mut results).init_verdict());
        Ok(())
    }

    async fn identity(
        self: Rc<Self>,
        _: attestation::IdentityParams,
        mut results: attestation::IdentityResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::ATTEST).map_err(fail)?;
        let now_ms = self.service.vat.now_ms();
        let asked =
            self.service.aside(self.asker(), "told who the TPM is".into(), move |collector| {
                collector.identity(now_ms)
            });
        let Identity { ek, certificate, ak } = asked.await.map_err(fail)?;
        let mut reply = self.facet.reply(&mut results);
        reply.set_ek(&ek);
        reply.set_ak(&ak);
        reply.set_ek_certificate(certificate.as_deref().unwrap_or_default());
        Ok(())
    }

    async fn present(
        self: Rc<Self>,
        params: attestation::PresentParams,
        mut results: attestation::PresentResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::ADMIN).map_err(fail)?;
        let (inviter, key, nonce) = {
            let params = params.get()?;
            let inviter = NodeId::try_from(params.get_inviter()?).map_err(fail)?;
            let key = HolderKey::try_from(params.get_key()?).map_err(fail)?;
            let nonce: [u8; 32] = params
                .get_nonce()?
                .try_into()
                .map_err(|_| fail(Fault::malformed("a nonce has 32 bytes")))?;
            (inviter, key, nonce)
        };
        let (node, now_ms) = (self.service.vat.node(), self.service.vat.now_ms());
        let what = format!("presented key {key} to node/{inviter}");
        let asked = self.service.aside(self.asker(), what, move |collector| {
            collector.present(node, key, inviter, nonce, now_ms)?.to_json()
        });
        let request = asked.await.map_err(fail)?;
        self.facet.reply(&mut results).set_request(request);
        Ok(())
    }

    async fn open(
        self: Rc<Self>,
        params: attestation::OpenParams,
        mut results: attestation::OpenResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::ADMIN).map_err(fail)?;
        let text = params.get()?.get_sealed()?;
        if text.len() > MAX_SEALED_BYTES {
            return Err(fail(Fault::malformed("an invitation is not so long")));
        }
        let sealed = Sealed::parse(text.to_str()?).map_err(fail)?;
        let asked =
            self.service.aside(self.asker(), "opened an invitation".into(), move |collector| {
                collector.open(&sealed)
            });
        let plain = asked.await.map_err(fail)?;
        self.facet.reply(&mut results).set_plain(plain);
        Ok(())
    }

    async fn watch(
        self: Rc<Self>,
        params: attestation::WatchParams,
        mut results: attestation::WatchResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::READ).map_err(fail)?;
        let seen = params.get()?.get_seen();
        let mut changed = self.service.changed.subscribe();
        // The sender lives as long as this service.
        let _ = tokio::time::timeout(WATCH, changed.wait_for(|revision| *revision != seen)).await;
        let revision = *changed.borrow();
        let mut reply = self.facet.reply(&mut results);
        reply.set_revision(revision);
        self.service.write_verdict(&self.service.own, reply.init_verdict());
        Ok(())
    }

    async fn verdicts(
        self: Rc<Self>,
        _: attestation::VerdictsParams,
        mut results: attestation::VerdictsResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::LIST).map_err(fail)?;
        let mut all = vec![self.service.own.clone()];
        all.extend(self.service.peers.all());
        all.truncate(MAX_LISTED);
        let mut list = self.facet.reply(&mut results).init_verdicts(all.len() as u32);
        for (index, watched) in (0..).zip(&all) {
            self.service.write_verdict(watched, list.reborrow().get(index));
        }
        Ok(())
    }

    async fn result(
        self: Rc<Self>,
        params: attestation::ResultParams,
        mut results: attestation::ResultResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::READ).map_err(fail)?;
        let watched = self.service.asked_node(params.get()?.get_node()?).map_err(fail)?;
        let result = self.service.result(&watched).map_err(fail)?;
        let mut reply = self.facet.reply(&mut results);
        reply.set_result(result.as_str());
        reply.set_key(self.service.result_secret.key().as_ref());
        Ok(())
    }

    async fn govern(
        self: Rc<Self>,
        params: attestation::GovernParams,
        mut results: attestation::GovernResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::ADMIN).map_err(fail)?;
        let params = params.get()?;
        let (policy, signature) = (params.get_policy()?, params.get_signature()?.to_str()?);
        let done = self
            .facet
            .commit(Rights::ADMIN, NO_BYTES, || self.service.archive.govern(policy, signature));
        done.and_then(|done| done).map_err(fail)?;
        self.service.take_effect().map_err(fail)?;
        let edition = self.service.governing.borrow().edition().unwrap_or_default();
        self.service.report(self.asker(), format!("goes by the policy {edition}"));
        self.facet.reply(&mut results);
        Ok(())
    }

    async fn anchor(
        self: Rc<Self>,
        params: attestation::AnchorParams,
        mut results: attestation::AnchorResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::ADMIN).map_err(fail)?;
        let mut files = BTreeMap::new();
        for file in params.get()?.get_files()? {
            let name = file.get_name()?.to_str()?.to_owned();
            if files.insert(name, file.get_bytes()?.to_vec()).is_some() {
                return Err(fail(Fault::malformed("two files of one name")));
            }
        }
        let done =
            self.facet.commit(Rights::ADMIN, NO_BYTES, || self.service.archive.anchor(&files));
        done.and_then(|done| done).map_err(fail)?;
        self.service.take_effect().map_err(fail)?;
        self.service.report(self.asker(), format!("trusts {} files", files.len()));
        self.facet.reply(&mut results);
        Ok(())
    }

    async fn enrol(
        self: Rc<Self>,
        params: attestation::EnrolParams,
        mut results: attestation::EnrolResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::ADMIN).map_err(fail)?;
        let params = params.get()?;
        let watched = self.service.asked_node(params.get_node()?).map_err(fail)?;
        let ek = params.get_ek()?;
        if !ek.is_empty() && !is_name_long(ek.len()) {
            return Err(fail(Fault::malformed(
                "the name of an endorsement key has 34 bytes, or 50",
            )));
        }
        let ek = (!ek.is_empty()).then(|| ek.to_vec());
        // Not while it is asked: an answer of the TPM before would count as one of this.
        let turn = watched.turn.lock().await;
        let done = self.facet.commit(Rights::ADMIN, NO_BYTES, || {
            let mut kept = watched.kept.borrow().clone();
            kept.expect(ek.as_deref());
            watched.state.borrow_mut().forget();
            *watched.found.borrow_mut() = None;
            watched.keep(kept)
        });
        drop(turn);
        done.and_then(|done| done).map_err(fail)?;
        let which = ek.map_or("whichever comes next".to_owned(), hex::encode);
        let node = watched.node;
        self.service.report(self.asker(), format!("node/{node}: takes the TPM {which}"));
        self.service.show(&watched);
        self.service.clone().attest(watched, self.asker()).await.map_err(fail)?;
        self.facet.reply(&mut results);
        Ok(())
    }

    async fn seal(
        self: Rc<Self>,
        params: attestation::SealParams,
        mut results: attestation::SealResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::CREATE).map_err(fail)?;
        let vat = self.vat().map_err(fail)?;
        let to = RecipientKey::from_slice(params.get()?.get_to()?).map_err(fail)?;
        let (node, now_ms) = (self.service.vat.node(), self.service.vat.now_ms());
        let asked = self.service.aside(
            self.asker(),
            format!("sealed a secret of {vat}"),
            move |collector| {
                let secret = sealing::new_secret()?;
                let blob = collector.seal(&vat, &secret, now_ms)?;
                Ok((blob, sealing::parcel(node, &vat, to, &secret)?))
            },
        );
        let (blob, parcel) = asked.await.map_err(fail)?;
        let mut reply = self.facet.reply(&mut results);
        reply.set_blob(&blob);
        reply.set_parcel(&parcel);
        Ok(())
    }

    async fn unseal(
        self: Rc<Self>,
        params: attestation::UnsealParams,
        mut results: attestation::UnsealResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::CREATE).map_err(fail)?;
        let vat = self.vat().map_err(fail)?;
        let (blob, to) = {
            let params = params.get()?;
            let blob = Blob::parse(params.get_blob()?).map_err(|broken| fail(broken.into()))?;
            (blob, RecipientKey::from_slice(params.get_to()?).map_err(fail)?)
        };
        let (node, now_ms) = (self.service.vat.node(), self.service.vat.now_ms());
        let what = format!("unsealed a secret of {vat}");
        let asked = self.service.aside(self.asker(), what, move |collector| {
            let secret = collector.unseal(&vat, &blob, now_ms)?;
            sealing::parcel(node, &vat, to, &secret)
        });
        let parcel = asked.await.map_err(fail)?;
        self.facet.reply(&mut results).set_parcel(&parcel);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(params: &[(&'static str, &'static str)]) -> Result<Settings, Fault> {
        let params = params.to_vec();
        let param =
            move |key: &str| params.iter().find(|(k, _)| *k == key).map(|(_, value)| *value);
        Settings::parse(param, Some("/data".into()))
    }

    const HASH: &str = "aabbccddeeff00112233445566778899aabbccddeeff00112233445566778899";

    #[test]
    fn a_wrong_setting_is_named() {
        for (params, key) in [
            (vec![("image_hash", "aa")], "image_hash"),
            (vec![("image_hash", HASH), ("tpm", "real")], "tpm"),
            (vec![("image_hash", HASH), ("freshness_ms", "5s")], "freshness_ms"),
            (vec![("image_hash", HASH), ("pcrs", "99")], "99"),
        ] {
            let fault = parse(&params).unwrap_err();
            assert!(matches!(&fault, Fault::Malformed(why) if why.contains(key)), "{fault}");
        }
    }

    #[test]
    fn a_tpm_without_an_image_to_measure_is_not_used() {
        let settings = parse(&[]).unwrap();
        let (fd, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let fault = collector(fd.into(), &settings, Logs::default()).unwrap_err();
        assert!(matches!(&fault, Fault::Malformed(why) if why.contains("image_hash")), "{fault}");
    }

    #[test]
    fn a_tpm_without_a_label_counts_as_software() {
        let settings = parse(&[("image_hash", HASH)]).unwrap();
        assert!(settings.label(true).starts_with("software"));
        assert_eq!(settings.label(false), "no TPM");
        let hardware = parse(&[("image_hash", HASH), ("tpm", "hardware")]).unwrap();
        assert!(hardware.label(true).starts_with("hardware"));
    }
}
