//! How a node is asked for its evidence, and what is made of what it answers.

use std::convert::Infallible;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use distos_abi::{Fault, NodeId};
use distos_evidence::credential::EPHEMERAL_BYTES;
use distos_evidence::devices::{self, DEVICES_PCR, Elsewhere, Holder, Numbers};
use distos_evidence::evidence::{Attest, Continuity};
use distos_evidence::ima::MAX_PART_BYTES;
use distos_evidence::live::{Bundle, Gpu, Identity, MAX_ANSWER_BYTES, Question, Session, Wanted};
use distos_evidence::nvidia::MAX_DEVICES;
use distos_rpc::{Vat, fault_of};
use distos_schemas::gpu_capnp::{gpu_evidence, gpus};
use tokio::sync::{Semaphore, SemaphorePermit};
use zeroize::Zeroizing;

use crate::TRACE;
use crate::collector::Collector;
use crate::governing::Governing;
use crate::service::{Asker, Attestation, NOBODY};
use crate::settings::GPUS;
use crate::state::{CHALLENGE_MS, Judged, Standing, Unasked};
use crate::tpm::TimedFd;
use crate::verifier::{Answer, Evidence, Examined, Kept, Law};
use crate::watched::{Found, Watched};

/// How many parts of the kernel's list are asked for at most before it is verified.
const MAX_PARTS: usize = 256;
/// How often evidence is asked for whose list of files goes on growing meanwhile.
const MAX_TRIES: usize = 8;
/// How often evidence is examined whose devices others show or give up meanwhile.
const MAX_LOOKS: usize = 4;
/// How long GPUs may take.
const GPU_WAIT: Duration = Duration::from_secs(15);

impl Attestation {
    /// Challenges a node, and takes what it answers.
    pub(crate) async fn take_evidence(&self, watched: &Watched, asker: Asker) -> Result<(), Fault> {
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
        // Several may have shown one TPM at a time: nothing is waited for from here until its keys are kept.
        let answered = match answered {
            Answered::Examined(examined, governing) => {
                let is_good = matches!(examined.judged, Judged::Good(_));
                match self.other_of_its_tpm(watched.node, &examined.kept).filter(|_| is_good) {
                    Some(judged) => Answered::Refused(judged),
                    None => Answered::Examined(examined, governing),
                }
            }
            refused => refused,
        };
        let (judged, kept, found) = match answered {
            Answered::Refused(judged) => (judged.of(), None, None),
            Answered::Examined(examined, governing) => {
                let Examined { judged, devices, opinion, kept, .. } = *examined;
                let (edition, digests) = (governing.edition(), governing.digests());
                // Keys are known from the first good evidence on, and by no other. What is not good takes nothing, and may give
                // devices up.
                let kept = if matches!(judged, Judged::Good(_)) {
                    kept
                } else {
                    let mut known = watched.kept.borrow().clone();
                    known.set_devices(known.devices() & kept.devices());
                    known
                };
                let kept = Some(kept);
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
            self.keep(watched, kept);
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

    /// Remembers this of a node, on disk as well, with the devices that are no other's. Of whom the own node takes one, that is
    /// remembered too.
    pub(crate) fn keep(&self, watched: &Watched, mut kept: Kept) {
        let node = watched.node;
        let losers = self.devices.borrow_mut().hold(node, kept.devices());
        kept.set_devices(self.devices.borrow().held(node));
        if let Err(fault) = watched.keep(kept) {
            // What ends acts first; that it does not survive a restart is for the operator to know.
            tracing::error!(%fault, %node, "what is known of a node could not be kept");
        }
        for loser in losers {
            let left = self.devices.borrow().held(loser);
            let done = self.watched(loser).and_then(|watched| watched.keep_devices(left));
            if let Err(fault) = done {
                tracing::error!(%fault, node = %loser, "whose a device is could not be kept");
            }
        }
    }

    /// What it is to a node if another one is known by the same TPM: whoever has one machine must not vouch with it for several
    /// nodes.
    fn other_of_its_tpm(&self, node: NodeId, kept: &Kept) -> Option<Judged<Infallible>> {
        let others = self.peers.all().into_iter().chain([self.own.clone()]);
        let mut others = others.filter(|other| other.node != node);
        let other = others.find(|other| other.kept.borrow().is_same_tpm(kept))?;
        Some(Judged::Absent(format!(
            "its TPM is that of node/{}: put one of the two out, or enrol that one with another TPM",
            other.node
        )))
    }

    /// Asks a node, over whatever is between: the answer, and the session that it is bound to.
    async fn ask(&self, node: NodeId, question: Question) -> Result<(Vec<u8>, Session), Fault> {
        if node == self.vat.node() {
            let session = Session::own(node);
            let answer = self.answer(question, session).await?;
            return Ok((answer, session));
        }
        self.peers.ask(&self.vat, node, &question.to_bytes()).await
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
            let gpus = tokio::time::timeout(GPU_WAIT, asked).await.unwrap_or_else(late)?;
            // The first time in a boot that all of them have shown which they are, the TPM holds on to that.
            let is_first = bundle.pcrs.get(&DEVICES_PCR) == Some(&[0; 32]);
            if let Some(numbers) = devices::named(&gpus).filter(|_| is_first) {
                let _turn = self.turn.lock().await;
                let again = move |collector: &mut Collector<TimedFd>| {
                    collector.measure_devices(&numbers)?;
                    collector.evidence(wanted, session, now_ms)
                };
                bundle = self.with_tpm(again).await?;
            } else if let Some(held) = bundle.pcrs.get(&DEVICES_PCR)
                && devices::named(&gpus).is_some_and(|numbers| *held != devices::measured(&numbers))
            {
                tracing::warn!(
                    "PCR {DEVICES_PCR} does not hold what this machine's devices give: there were others in this boot, or something else measures into it"
                );
            }
            // If the list has grown meanwhile, this is asked again.
            bundle.gpus = Some(gpus).filter(|_| !bundle.more);
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
        let mut parts = Parts::default();
        for _ in 0..MAX_TRIES {
            let have = parts.list.as_ref().map_or(0, Vec::len);
            let wanted = Wanted {
                nonce: *nonce,
                pcrs: self.settings.asked(),
                listed: listed.saturating_add(have as u64),
            };
            let (answer, session) = self.ask(watched.node, Question::Evidence(wanted)).await?;
            let bundle = Bundle::parse(&answer)?;
            if !parts.go_on(session) {
                continue;
            }
            if listed > 0 && !is_boot_of(&kept, &bundle) {
                // The kernel's list begins anew with each boot.
                (listed, parts) = (0, Parts::default());
                continue;
            }
            let have_now = match &bundle.list {
                Some(part) => add_part(parts.list.get_or_insert_default(), part)?,
                None => 0,
            };
            if !bundle.more {
                let shown = Shown { session, nonce: *nonce, bundle, list: parts.list };
                return self.examine(watched, kept, governing, shown).await;
            }
            // What is long comes without the TPM's doing, and the rest with the next quote.
            let list = parts.list.get_or_insert_default();
            let _reading = self.place_in(&self.reading, watched).await;
            let read = self.read_on(session, listed, have_now, list);
            // What comes later than that answers no challenge any more.
            let late =
                |_| Err(Fault::unavailable(5_000, "the list of measured files comes too slowly"));
            tokio::time::timeout(Duration::from_millis(CHALLENGE_MS), read)
                .await
                .unwrap_or_else(late)?;
        }
        Err(Fault::unavailable(60_000, "the list of measured files does not end"))
    }

    /// A place among those for peers. This node's own evidence waits for nobody's.
    async fn place_in<'a>(
        &self,
        places: &'a Semaphore,
        watched: &Watched,
    ) -> Option<SemaphorePermit<'a>> {
        // They are there as long as the service.
        if self.is_own(watched) { None } else { places.acquire().await.ok() }
    }

    /// Reads on in the kernel's list of a node, as far as it goes now, while it is the same boot's.
    async fn read_on(
        &self,
        session: Session,
        listed: u64,
        mut have: usize,
        list: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        for _ in 0..MAX_PARTS {
            let from = listed.saturating_add(have as u64);
            let (part, of) = self.ask(session.node, Question::Measured(from)).await?;
            if of != session {
                return Err(Fault::unavailable(1_000, "the node was started anew meanwhile"));
            }
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
        let _examining = self.place_in(&self.examining, watched).await;
        let own = self.is_own(watched).then_some(self.settings.hardware);
        let (pcrs, at_s) = (self.settings.asked(), self.vat.now_ms() / 1000);
        let (kept, shown) = (Arc::new(kept), Arc::new(shown));
        let mut elsewhere = Elsewhere::new();
        for _ in 0..MAX_LOOKS {
            let (kept, shown, governing) = (kept.clone(), shown.clone(), governing.clone());
            let others = elsewhere.clone();
            // A long list takes longer than this thread may be held up.
            let examined = tokio::task::spawn_blocking(move || {
                let law = Law { elsewhere: Some(&others), ..governing.law(at_s) };
                let Shown { session, nonce, bundle, list } = &*shown;
                let (session, nonce, list) = (*session, *nonce, list.as_deref());
                let examined =
                    kept.examine(Answer { session, nonce, pcrs, bundle, list }, own, law);
                examined.map(|examined| (examined, governing))
            });
            let (examined, governing) =
                examined.await.map_err(|_| Fault::internal("an examination ended early"))??;
            // Whose devices they are is looked up when it is known which they are; from here on nothing is waited for until
            // they are held.
            let others = self.elsewhere(watched.node, &examined.shown);
            if others == elsewhere {
                return Ok(Answered::Examined(Box::new(examined), governing));
            }
            elsewhere = others;
        }
        Err(Fault::unavailable(
            1_000,
            "others show its devices, or give them up, while it is examined",
        ))
    }

    /// Which of these devices another node has shown before, and whether that one's evidence is fresh.
    fn elsewhere(&self, node: NodeId, numbers: &Numbers) -> Elsewhere {
        let now = self.now();
        let is_fresh = |node| {
            let standing = |watched: Rc<Watched>| watched.state.borrow().verdict(now).standing;
            self.watched(node).is_ok_and(|watched| standing(watched) == Standing::Fresh)
        };
        let holders = self.devices.borrow().elsewhere(node, numbers);
        let holder = |(number, node)| (number, Holder { node, is_fresh: is_fresh(node) });
        holders.into_iter().map(holder).collect()
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
        if let Some(judged) = self.other_of_its_tpm(node, kept) {
            return Ok(Err(judged));
        }
        self.report(NOBODY, format!("node/{node} shows: {}", kept.named()));
        Ok(Ok(()))
    }
}

/// What a node has shown, with the whole of its list.
struct Shown {
    session: Session,
    nonce: [u8; 32],
    bundle: Bundle,
    list: Option<Vec<u8>>,
}

/// The kernel's list of measured files, as it comes in parts.
#[derive(Default)]
struct Parts {
    /// Who has shown the last one.
    of: Option<Session>,
    list: Option<Vec<u8>>,
}

impl Parts {
    /// Whether what comes in this session goes on where the last part ended. Parts of the lists of two boots are no list, and
    /// no evidence against anybody: what came in another is forgotten, and is asked for anew.
    fn go_on(&mut self, session: Session) -> bool {
        let is_other = self.of.replace(session).is_some_and(|of| of != session);
        !(is_other && self.list.take().is_some())
    }
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

/// What a challenge is called in the trace: enough of it to tell it from every other.
struct Nonce<'a>(&'a [u8; 32]);

impl fmt::Display for Nonce<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0[..8]))
    }
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

#[cfg(test)]
mod tests {
    use distos_abi::HolderKey;

    use super::*;

    /// Or a node that is rebooted while its list is read has failed, by evidence that it never gave.
    #[test]
    fn parts_of_the_lists_of_two_boots_are_not_put_together() {
        let (verifier, node) = (NodeId([1; 32]), NodeId([2; 32]));
        let one = Session { verifier, node, key: HolderKey([3; 32]), life: [4; 32] };
        let mut parts = Parts::default();
        assert!(parts.go_on(one) && parts.go_on(one), "nothing has come yet");
        parts.list = Some(vec![5]);
        assert!(parts.go_on(one));
        assert_eq!(parts.list, Some(vec![5]));
        for other in [Session { life: [6; 32], ..one }, Session { key: HolderKey([7; 32]), ..one }]
        {
            parts.list = Some(vec![5]);
            assert!(!parts.go_on(other), "it begins where another ended");
            assert_eq!(parts.list, None);
            assert!(parts.go_on(other), "from the beginning");
        }
    }
}
