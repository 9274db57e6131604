//! The attestation interface over RPC.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use capnp::capability::FromClientHook;
use capnp::private::capability::ClientHook;
use distos_abi::{ByteRange, Fault, HolderKey, NodeId, ObjectId, Rights, VatName};
use distos_delivery::RecipientKey;
use distos_evidence::credential::is_name_long;
use distos_evidence::joining::{MAX_SEALED_BYTES, Sealed};
use distos_evidence::live::Identity;
use distos_rpc::{Facet, Faceted, Service, fail, serve_capability};
use distos_schemas::attestation_capnp::{Standing as StandingWord, attestation, verdict};
use distos_types::kind;
use futures::future::LocalBoxFuture;

use crate::sealing::{self, Blob};
use crate::service::{Asker, Attestation};
use crate::state::Standing;
use crate::watched::{Found, Watched};

/// Verdicts in one answer.
const MAX_LISTED: usize = 2048;
/// The object has no bytes.
const NO_BYTES: ByteRange = ByteRange { start: 0, end: 0 };
/// How long whoever waits for a change waits at most.
const WATCH: Duration = Duration::from_secs(10);

impl Attestation {
    fn write_verdict(&self, watched: &Watched, mut builder: verdict::Builder<'_>) {
        let now = self.now();
        let state = watched.state.borrow();
        let verdict = state.verdict(now);
        builder.set_node(&watched.node.0);
        builder.set_standing(word_of(verdict.standing));
        builder.set_epoch(state.epoch());
        builder.set_ek(&watched.kept.borrow().endorsement().unwrap_or_default());
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
            self.service.devices.borrow_mut().release(watched.node);
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
            let blob = Blob::parse(params.get_blob()?).map_err(fail)?;
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
