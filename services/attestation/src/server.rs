//! The attestation interface over RPC, and the task that renews evidence.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use capnp::capability::FromClientHook;
use capnp::private::capability::ClientHook;
use distos_abi::{CapId, Fault, HolderKey, NodeId, ObjectId, Rights, TenantId, VatName};
use distos_delivery::RecipientKey;
use distos_evidence::evidence::{Appraised, Continuity, PcrSet};
use distos_evidence::joining::{MAX_SEALED_BYTES, Sealed};
use distos_rpc::{Facet, Faceted, Service, Vat, fail, serve_capability};
use distos_schemas::attestation_capnp::{attestation, verdict};
use distos_types::kind;
use futures::future::LocalBoxFuture;

use crate::TRACE;
use crate::attester::{Attester, Outcome};
use crate::sealing::{self, Blob};
use crate::state::{Now, State, Unasked, Verdict};
use crate::tpm::{TIMEOUT, TimedFd, Tpm};

const DEFAULT_FRESHNESS_MS: u64 = 300_000;
/// The firmware's registers on a PC, and by [`crate::attester`] the image's.
const DEFAULT_PCRS: &str = "0-7";
const AUDIT_KIND: &str = "attestation";
/// How many may wait for the TPM for something else than evidence.
const MAX_ASIDE: usize = 2;

/// What the image sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    hardware: bool,
    freshness_ms: u64,
    /// The node image's, to be measured; there is none without a TPM.
    image_hash: Option<[u8; 32]>,
    pcrs: PcrSet,
    data_dir: PathBuf,
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
        let freshness_ms = match param("freshness_ms") {
            None => DEFAULT_FRESHNESS_MS,
            Some(text) => {
                text.parse().map_err(|_| wrong("freshness_ms", "is no number of milliseconds"))?
            }
        };
        let image_hash = match param("image_hash") {
            None => None,
            Some(text) => {
                let mut hash = [0u8; 32];
                hex::decode_to_slice(text, &mut hash)
                    .map_err(|_| wrong("image_hash", "is not 64 hexadecimal digits"))?;
                Some(hash)
            }
        };
        let pcrs = PcrSet::parse(param("pcrs").unwrap_or(DEFAULT_PCRS))?;
        let data_dir =
            data_dir.ok_or_else(|| Fault::malformed("attestation: its vat needs 'data = true'"))?;
        Ok(Settings { hardware, freshness_ms, image_hash, pcrs, data_dir })
    }

    fn label(&self, present: bool) -> &'static str {
        match (present, self.hardware) {
            (false, _) => "no TPM",
            (true, true) => "hardware TPM /dev/tpmrm0",
            (true, false) => "software TPM (swtpm): proves the protocol, not the machine",
        }
    }
}

/// Who asked for an attestation, for the audit log.
#[derive(Clone, Copy)]
struct Asker {
    tenant: TenantId,
    cap: CapId,
}

/// The renewing task acts for the node itself, under no capability.
const NOBODY: Asker = Asker { tenant: TenantId::OPERATOR, cap: CapId(0) };

type SharedAttester = Arc<Mutex<Attester<TimedFd>>>;

/// The service.
pub(crate) struct Attestation {
    vat: Vat,
    settings: Settings,
    attester: Option<SharedAttester>,
    state: RefCell<State>,
    ak_name: Cell<Option<[u8; 34]>>,
    /// Held during an attestation: the TPM does one thing at a time.
    turn: tokio::sync::Mutex<()>,
    /// Who waits for the TPM for something else, or has it.
    aside: Cell<usize>,
    /// How many attestations have begun.
    begun: Cell<u64>,
    /// What the last one came to.
    last: RefCell<Result<(), Fault>>,
    zero: Instant,
}

impl Attestation {
    /// Takes the TPM's descriptor from the vat, and the first evidence. Without a TPM, or if it
    /// does not answer, the service serves and says so: the node gets no work (A1).
    pub(crate) async fn start(vat: Vat) -> Result<Rc<dyn Service>, Fault> {
        let settings = Settings::of(&vat)?;
        let state = State::new(vat.node(), settings.freshness_ms).ok_or_else(|| {
            Fault::malformed("attestation: setting 'freshness_ms' is not from 1000 to 86400000")
        })?;
        let bound = settings.freshness_ms;
        tracing::debug!(target: TRACE, at = vat.now_ms(), bound, "start");
        let attester = vat.take_device("tpm").map(|fd| attester(fd, &settings)).transpose()?;
        distos_noise::seal(&vat);
        tokio::task::spawn_local(distos_quic::attend(vat.clone()));
        let service = Rc::new(Attestation {
            vat,
            settings,
            attester,
            state: RefCell::new(state),
            ak_name: Cell::new(None),
            turn: tokio::sync::Mutex::new(()),
            aside: Cell::new(0),
            begun: Cell::new(0),
            last: RefCell::new(Ok(())),
            zero: Instant::now(),
        });
        if let Err(fault) = service.clone().attest(NOBODY).await {
            tracing::warn!(%fault, "no evidence at start");
        }
        tokio::task::spawn_local(service.clone().renew());
        Ok(service)
    }

    fn now(&self) -> Now {
        let mono_ms = u64::try_from(self.zero.elapsed().as_millis()).unwrap_or(u64::MAX);
        Now { unix_ms: self.vat.now_ms(), mono_ms }
    }

    /// Takes new evidence at half the freshness bound, for as long as the service lives.
    async fn renew(self: Rc<Self>) {
        while !self.vat.draining() {
            let wait_ms = self.state.borrow().next_in_ms(self.now());
            if wait_ms == 0 {
                // What failed is in the state and the audit log, and is tried again.
                let _ = self.clone().attest(NOBODY).await;
            }
            // In short steps: a wall clock that is put back makes evidence due at once.
            let wait_ms = self.state.borrow().next_in_ms(self.now()).clamp(200, 1_000);
            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        }
    }

    /// One attestation, in a task of its own: a caller that goes away must not hide its result.
    async fn attest(self: Rc<Self>, asker: Asker) -> Result<(), Fault> {
        if self.vat.draining() {
            return Err(Fault::unavailable(1_000, "the attestation service is draining"));
        }
        let arrived = self.begun.get();
        tokio::task::spawn_local(self.in_turn(arrived, asker))
            .await
            .map_err(|_| Fault::internal("an attestation was cut short"))?
    }

    /// Waits for the TPM. An attestation that began after the caller came serves it as well, so
    /// that many callers cost one quote.
    async fn in_turn(self: Rc<Self>, arrived: u64, asker: Asker) -> Result<(), Fault> {
        let _turn = self.turn.lock().await;
        if self.begun.get() > arrived {
            return self.last.borrow().clone();
        }
        self.begun.set(arrived + 1);
        let result = self.take_evidence(asker).await;
        *self.last.borrow_mut() = result.clone();
        result
    }

    async fn take_evidence(&self, asker: Asker) -> Result<(), Fault> {
        let mut random = [0u8; 32];
        getrandom::fill(&mut random).map_err(Fault::internal)?;
        let opened = self.now();
        let challenge = self.state.borrow_mut().challenge(random, opened);
        let nonce = Nonce(&challenge);
        tracing::debug!(target: TRACE, at = opened.unix_ms, %nonce, "challenge");
        match self.ask_tpm(challenge, opened.unix_ms).await {
            Ok(outcome) => self.take_outcome(&challenge, outcome, asker),
            Err(fault) => {
                // The renewing task tries every few seconds: one event for one cause.
                let is_new = self.state.borrow_mut().no_answer(fault.to_string());
                tracing::debug!(target: TRACE, at = self.now().unix_ms, "no_answer");
                if is_new || asker.cap != NOBODY.cap {
                    self.report(asker, format!("no evidence: {fault}"));
                }
                Err(fault)
            }
        }
    }

    async fn ask_tpm(&self, challenge: [u8; 32], now_ms: u64) -> Result<Outcome, Fault> {
        self.with_tpm(move |attester| attester.attest(&challenge, now_ms)).await
    }

    /// Asks the TPM for something else than a verdict, in turn. What is shown of its registers answers whoever asked,
    /// and says nothing about this node's own freshness. In a task of its own, as an attestation is: a caller that goes
    /// away must not hide what was done.
    async fn aside<T: Send + 'static>(
        self: &Rc<Self>,
        asker: Asker,
        what: String,
        ask: impl FnOnce(&mut Attester<TimedFd>) -> Result<T, Fault> + Send + 'static,
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
        ask: impl FnOnce(&mut Attester<TimedFd>) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let attester = self.attester.clone().ok_or_else(|| {
            Fault::unavailable(60_000, "the image gives the attestation service no TPM")
        })?;
        tokio::task::spawn_blocking(move || {
            // A panic half way leaves at most a lost TPM, which the attester notices.
            ask(&mut attester.lock().unwrap_or_else(PoisonError::into_inner))
        })
        .await
        .map_err(|_| Fault::internal("the thread that speaks to the TPM ended"))?
    }

    fn take_outcome(
        &self,
        challenge: &[u8; 32],
        outcome: Outcome,
        asker: Asker,
    ) -> Result<(), Fault> {
        let now = self.now();
        let detail = describe(&outcome, self.settings.label(true));
        let result = outcome.result.map_err(|refusal| refusal.to_string());
        if result.is_ok() {
            self.ak_name.set(Some(outcome.ak_name));
        }
        let resets = result.as_ref().ok().map(|(appraised, _)| appraised.clock.reset_count);
        let (at, nonce, good) = (now.unix_ms, Nonce(challenge), resets.is_some());
        match self.state.borrow_mut().answer(challenge, result, now) {
            Ok(()) => {
                tracing::debug!(target: TRACE, at, %nonce, good, resets, "verdict");
                self.report(asker, detail);
                Ok(())
            }
            Err(unasked) => {
                // What answers no open challenge changes nothing.
                if unasked == Unasked::TooOld {
                    tracing::debug!(target: TRACE, at, %nonce, "too_old");
                }
                self.report(asker, format!("refused: {unasked}"));
                Err(Fault::unavailable(1_000, unasked.to_string()))
            }
        }
    }

    fn report(&self, asker: Asker, detail: String) {
        self.vat.report(AUDIT_KIND, asker.tenant, asker.cap, detail);
    }

    fn write_verdict(&self, mut builder: verdict::Builder<'_>) {
        let now = self.now();
        let verdict = self.state.borrow().verdict(now);
        let present = self.attester.is_some();
        fill(builder.reborrow(), &verdict);
        builder.set_tpm(self.settings.label(present));
        builder.set_hardware(present && self.settings.hardware);
        if let Some(name) = self.ak_name.get() {
            builder.set_ak_name(&name);
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

fn attester(fd: OwnedFd, settings: &Settings) -> Result<SharedAttester, Fault> {
    let image_hash = settings.image_hash.ok_or_else(|| {
        Fault::malformed(
            "attestation: setting 'image_hash' is missing: there is nothing to measure",
        )
    })?;
    let fd = TimedFd::new(fd, TIMEOUT)
        .map_err(|error| Fault::internal(format!("the TPM's descriptor: {error}")))?;
    let attester = Attester::new(Tpm::new(fd), &settings.data_dir, image_hash, settings.pcrs);
    Ok(Arc::new(Mutex::new(attester)))
}

/// One line for the audit log.
fn describe(outcome: &Outcome, label: &str) -> String {
    let ak = hex::encode(outcome.ak_name);
    let enrolled = if outcome.enrolled_now { "; enrolled on first use" } else { "" };
    match &outcome.result {
        Ok((Appraised { clock, pcr_digest, continuity, .. }, micros)) => {
            let boot = match continuity {
                Continuity::First => "first evidence",
                Continuity::SameBoot => "same boot",
                Continuity::NewBoot => "new boot, appraised in full",
            };
            format!(
                "good: PCR digest {}; {boot}; resets {}; restarts {}; quote took {micros} us; key {ak}{enrolled}; {label}",
                hex::encode(pcr_digest),
                clock.reset_count,
                clock.restart_count,
            )
        }
        Err(refusal) => format!("refused: {refusal}; key {ak}; {label}"),
    }
}

fn fill(mut builder: verdict::Builder<'_>, verdict: &Verdict) {
    builder.set_fresh_until_ms(verdict.fresh_until_ms);
    builder.set_good(verdict.good);
    builder.set_reason(verdict.reason.as_str());
    builder.set_taken_ms(verdict.taken_ms);
    if let Some((appraised, quote_micros)) = &verdict.evidence {
        builder.set_pcr_digest(&appraised.pcr_digest);
        builder.set_reset_count(appraised.clock.reset_count);
        builder.set_restart_count(appraised.clock.restart_count);
        builder.set_quote_micros(*quote_micros);
        let numbers: Vec<u8> = appraised.pcrs.iter().collect();
        // At most 24 registers.
        let len = u32::try_from(numbers.len()).unwrap_or_default();
        let mut pcrs = builder.reborrow().init_pcrs(len);
        for (index, pcr) in (0..len).zip(numbers) {
            pcrs.set(index, pcr);
        }
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
        self.service.write_verdict(self.facet.reply(&mut results).init_verdict());
        Ok(())
    }

    async fn attest(
        self: Rc<Self>,
        _: attestation::AttestParams,
        mut results: attestation::AttestResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::ATTEST).map_err(fail)?;
        self.service.clone().attest(self.asker()).await.map_err(fail)?;
        self.service.write_verdict(self.facet.reply(&mut results).init_verdict());
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
            self.service.aside(self.asker(), "told who the TPM is".into(), move |attester| {
                attester.identity(now_ms)
            });
        let (ek, ak) = asked.await.map_err(fail)?;
        let mut reply = self.facet.reply(&mut results);
        reply.set_ek(&ek.public);
        reply.set_ak(&ak);
        reply.set_ek_certificate(ek.certificate.as_deref().unwrap_or_default());
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
        let asked = self.service.aside(self.asker(), what, move |attester| {
            attester.present(node, key, inviter, nonce, now_ms)?.to_json()
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
            self.service.aside(self.asker(), "opened an invitation".into(), move |attester| {
                attester.open(&sealed)
            });
        let plain = asked.await.map_err(fail)?;
        self.facet.reply(&mut results).set_plain(plain);
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
            move |attester| {
                let secret = sealing::new_secret()?;
                let blob = attester.seal(&vat, &secret, now_ms)?;
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
        let asked = self.service.aside(self.asker(), what, move |attester| {
            let secret = attester.unseal(&vat, &blob, now_ms)?;
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
        let fault = attester(fd.into(), &settings).unwrap_err();
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
