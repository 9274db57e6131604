//! `Secrets` over RPC: a tenant's place to keep secrets, and what operators do with the broker.

use std::rc::Rc;
use std::time::Instant;

use capnp::capability::FromClientHook;
use capnp::private::capability::ClientHook;
use distos_abi::{CapId, Fault, NodeId, Rights, TenantId};
use distos_delivery::Content;
use distos_rpc::{Facet, Faceted, fail, serve_capability};
use distos_schemas::secrets_capnp::{self, secrets};
use distos_types::kind::SECRET;

use super::custody::{MAKER, NewSecret, below};
use super::one::{SecretServer, describe};
use super::parcels::keyed;
use super::{Broker, NO_BYTES, to_its_end};
use crate::record::{Record, SecretKind};
use crate::shamir::{Scheme, Share};
use crate::state::{checked_lease_ms, checked_name};

/// A tenant's place to keep secrets.
pub(super) struct SecretsServer {
    pub(super) broker: Rc<Broker>,
    pub(super) facet: Facet,
}

impl SecretsServer {
    pub(super) fn hook(self) -> Box<dyn ClientHook> {
        capnp_rpc::new_client::<secrets::Client, _>(self).into_client_hook()
    }

    fn status(&self, mut to: secrets_capnp::broker_status::Builder<'_>) {
        let broker = &self.broker;
        let state = broker.state.borrow();
        if let Some(root) = state.root() {
            to.set_initialised(true);
            if let Some(scheme) = root.scheme {
                to.set_threshold(scheme.threshold());
                to.set_shares(scheme.shares());
            }
        }
        to.set_tpm(state.bound().is_some());
        if broker.barrier.borrow().is_none() {
            to.set_why(broker.asked.borrow().why.as_str());
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
        let (how, to) = {
            let params = params.get()?;
            let by_tpm = params.get_tpm();
            let scheme = match (params.get_threshold(), params.get_shares()) {
                (0, 0) if by_tpm => None,
                (threshold, shares) => Some(Scheme::new(threshold, shares).map_err(fail)?),
            };
            let to = self.broker.recipient(&self.facet, params.get_to()?).map_err(fail)?;
            ((scheme, by_tpm), to)
        };
        let this = self.clone();
        let init = async move { this.broker.init(&this.facet, how, to).await };
        let parcels = to_its_end(init).await?;
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
        let parcel = params.get()?.get_share()?;
        if parcel.is_empty() {
            let this = self.clone();
            to_its_end(async move { this.broker.ask_tpm(Some(&this.facet)).await }).await?;
            SecretsServer::status(&self, self.facet.reply(&mut results).init_status());
            return Ok(());
        }
        let plain = broker.unwrap(&self.facet, Content::Share, parcel);
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
        let this = self.clone();
        to_its_end(async move { this.broker.note_opened().await }).await?;
        SecretsServer::status(&self, self.facet.reply(&mut results).init_status());
        Ok(())
    }

    async fn seal(
        self: Rc<Self>,
        _: secrets::SealParams,
        mut results: secrets::SealResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::ADMIN).map_err(fail)?;
        let this = self.clone();
        to_its_end(async move { this.broker.close(&this.facet).await }).await?;
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
        keyed(&self.facet).map_err(fail)?;
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

    async fn bind(
        self: Rc<Self>,
        _: secrets::BindParams,
        mut results: secrets::BindResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::ADMIN).map_err(fail)?;
        let this = self.clone();
        to_its_end(async move { this.broker.bind(&this.facet).await }).await?;
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

fn name_of(text: capnp::Result<capnp::text::Reader<'_>>) -> Result<String, Fault> {
    let text = text.map_err(|_| Fault::malformed("the name cannot be read"))?;
    let text = text.to_str().map_err(|_| Fault::malformed("the name is not UTF-8"))?;
    checked_name(text).map(str::to_owned)
}
