//! `Secret` over RPC: one secret.

use std::rc::Rc;
use std::time::Duration;

use capnp::capability::FromClientHook;
use capnp::private::capability::ClientHook;
use distos_abi::{Fault, Rights};
use distos_delivery::Content;
use distos_rpc::{Facet, Faceted, fail, serve_capability};
use distos_schemas::secrets_capnp::{self, secret, secret_info};

use super::{Broker, NO_BYTES, to_its_end};
use crate::record::{Holder, LeaseId, Record, SecretKind};
use crate::state::{LONGEST_MS, Summary};

/// For how long `watch` waits.
const WATCH: Duration = Duration::from_secs(10);

pub(super) fn describe(summary: &Summary, mut info: secret_info::Builder<'_>) {
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
pub(super) struct SecretServer {
    pub(super) broker: Rc<Broker>,
    pub(super) facet: Facet,
}

/// Nobody comes back for what was drawn by a gift once that is given up, or its connection has ended: it is taken once, and no
/// chain restores it. So its leases end with it.
impl Drop for SecretServer {
    fn drop(&mut self) {
        let (tenant, cap) = (self.facet.tenant(), self.facet.cap_id());
        let is_gift = self.facet.holder().is_none() && cap == self.facet.lasting_cap();
        if !is_gift || !self.broker.state.borrow().is_lessee(tenant, cap) {
            return;
        }
        let broker = self.broker.clone();
        tokio::task::spawn_local(async move {
            // What cannot be recorded is kept and written later.
            if let Ok(leases) = broker.note_all(vec![Record::EndedCap(tenant, cap)]).await {
                broker.report(
                    tenant,
                    cap,
                    format!("{leases} leases ended with what they were drawn by"),
                );
            }
        });
    }
}

impl SecretServer {
    pub(super) fn hook(self) -> Box<dyn ClientHook> {
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
            let to = self.broker.reader_key(&self.facet, params.get_to()?).map_err(fail)?;
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

    async fn watch(
        self: Rc<Self>,
        params: secret::WatchParams,
        mut results: secret::WatchResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::READ).map_err(fail)?;
        let id = LeaseId(params.get()?.get_lease());
        let enough = tokio::time::sleep(WATCH);
        tokio::pin!(enough);
        let until_ms = loop {
            // Before it is looked at, so that no end comes in between.
            let ended = self.broker.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            self.check_lease(id).map_err(fail)?;
            let until_ms = self.broker.state.borrow().until_ms(id).unwrap_or_default();
            let left_ms = until_ms.saturating_sub(self.broker.now_ms());
            tokio::select! {
                () = &mut enough => break until_ms,
                () = ended => {}
                () = tokio::time::sleep(Duration::from_millis(left_ms)) => {}
            }
        };
        self.facet.reply(&mut results).set_until_ms(until_ms);
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
