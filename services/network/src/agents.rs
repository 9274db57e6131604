//! A tenant's agents: whoever holds this object may be one, with the key with which it is held.

use std::rc::Rc;

use capnp::capability::FromClientHook as _;
use capnp::private::capability::ClientHook;
use distos_abi::{Authority, Caveats, Fault, HolderKey, ObjectId, Rights};
use distos_identity::{MAX_TOKEN_LIFETIME_S, Validity};
use distos_membership::Mark;
use distos_rpc::{Facet, Faceted, fail, serve_capability};
use distos_schemas::network_capnp::agents;
use distos_types::{Revocation, kind};

use crate::server::{NO_BYTES, NetworkService, serial, write_chain};
use crate::state::validity;

/// What the operator gets, for the tenant.
const ALL: Rights = Rights::READ.join(Rights::CREATE);
/// More than a token may name.
const MAX_AUDIENCES: u32 = 64;

#[derive(Clone)]
pub(crate) struct AgentsServer {
    pub(crate) facet: Facet,
    pub(crate) service: Rc<NetworkService>,
}

impl AgentsServer {
    /// A capability to a tenant's agents below the operator's, and the same as bytes.
    pub(crate) async fn mint(
        service: Rc<NetworkService>,
        by: &Facet,
        object: ObjectId,
    ) -> Result<(AgentsServer, Vec<u8>), Fault> {
        let expires_ms = by.authority().caveats.expires_ms;
        let caveats = Caveats { expires_ms, ..Caveats::NONE };
        let facet = by.mint(kind::AGENTS, object, Authority { rights: ALL, caveats }).await?;
        let chain = facet.persist(facet.authority()).await?;
        Ok((AgentsServer { facet, service }, chain))
    }

    pub(crate) fn into_hook(self) -> Box<dyn ClientHook> {
        capnp_rpc::new_client::<agents::Client, _>(self).into_client_hook()
    }

    /// The agent: whoever has the key with which this was restored, as that has shown (C4).
    fn agent(&self) -> Result<HolderKey, Fault> {
        self.facet.holder().ok_or_else(|| {
            Fault::Unauthenticated("an agent is known by the key with which it holds this".into())
        })
    }

    /// Nothing that is signed holds for longer than the capability to it. An SVID holds to the end of its last second.
    fn bounded(&self, validity: Validity, last_s: u64) -> Validity {
        let expires_s = self.facet.authority().caveats.expires_ms / 1000;
        Validity { until_s: validity.until_s.min(expires_s.saturating_sub(last_s)), ..validity }
    }

    /// Counts what is signed for agents of this tenant: it takes time from all that this service does.
    fn once_more(&self) -> Result<(), Fault> {
        let mut asked = self.service.agents_asked.borrow_mut();
        if asked.may(self.facet.object(), self.service.now_s()) {
            return Ok(());
        }
        Err(Fault::unavailable(10_000, "this tenant's agents have had enough signed for now"))
    }

    fn report(&self, detail: String) {
        let (tenant, cap) = (self.facet.tenant(), self.facet.cap_id());
        self.service.vat.report("network", tenant, cap, detail);
    }
}

impl Faceted for AgentsServer {
    fn facet(&self) -> &Facet {
        &self.facet
    }

    fn with_facet(&self, facet: Facet) -> Box<dyn ClientHook> {
        AgentsServer { facet, service: self.service.clone() }.into_hook()
    }
}

serve_capability!(AgentsServer);

impl agents::Server for AgentsServer {
    async fn sign(
        self: Rc<Self>,
        _: agents::SignParams,
        mut results: agents::SignResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::READ).map_err(fail)?;
        let (service, key) = (&self.service, self.agent().map_err(fail)?);
        let (now_s, serial) = (service.now_s(), serial().map_err(fail)?);
        let validity = self.bounded(validity(now_s, service.lifetime_s), 1);
        self.once_more().map_err(fail)?;
        let object = self.facet.object();
        let signed = self.facet.commit(Rights::READ, NO_BYTES, || {
            let secret = &service.issuer_secret;
            service.state.borrow().sign_agent(secret, object, key, validity, serial)
        });
        let (id, chain) = signed.and_then(|signed| signed).map_err(fail)?;
        self.report(format!("signed {id}"));
        let bundle = service.state.borrow().bundle().map_err(fail)?.to_json();
        let mut reply = self.facet.reply(&mut results);
        reply.set_id(id.to_string());
        reply.set_bundle(bundle);
        write_chain(&chain, reply.init_chain(chain.len() as u32));
        Ok(())
    }

    async fn token(
        self: Rc<Self>,
        params: agents::TokenParams,
        mut results: agents::TokenResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::CREATE).map_err(fail)?;
        let audiences = params.get()?.get_audiences()?;
        if audiences.len() > MAX_AUDIENCES {
            return Err(fail(Fault::malformed("a token is not for so many")));
        }
        let audiences: Result<Vec<String>, capnp::Error> =
            audiences.iter().map(|one| Ok(one?.to_str()?.to_owned())).collect();
        let audiences = audiences?;
        let (service, key) = (&self.service, self.agent().map_err(fail)?);
        let from_s = service.now_s();
        let until_s = from_s.saturating_add(MAX_TOKEN_LIFETIME_S);
        let validity = self.bounded(Validity { from_s, until_s }, 0);
        self.once_more().map_err(fail)?;
        let object = self.facet.object();
        let signed = self.facet.commit(Rights::CREATE, NO_BYTES, || {
            let secret = &service.issuer_secret;
            service.state.borrow().sign_token(secret, object, key, audiences, validity)
        });
        let (token, text) = signed.and_then(|signed| signed).map_err(fail)?;
        self.report(format!("signed a token of {}", token.id));
        let mut reply = self.facet.reply(&mut results);
        reply.set_id(token.id.to_string());
        reply.set_token(text);
        reply.set_until_s(token.validity.until_s);
        Ok(())
    }

    async fn carry(
        self: Rc<Self>,
        params: agents::CarryParams,
        mut results: agents::CarryResults,
    ) -> Result<(), capnp::Error> {
        self.facet.check(Rights::READ).map_err(fail)?;
        self.once_more().map_err(fail)?;
        let revocation = Revocation::decode(params.get()?.get_revocation()?).map_err(fail)?;
        let (service, mark) = (&self.service, Mark::of(&revocation));
        let may = service.may_leave(self.facet.object(), mark);
        may.map_err(fail)?;
        let install = |next| self.facet.commit(Rights::READ, NO_BYTES, || service.install(next));
        let ended = service.carry(revocation, install).await.map_err(fail)?;
        self.facet.reply(&mut results).set_ended(ended);
        Ok(())
    }
}
