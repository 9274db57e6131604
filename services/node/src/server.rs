//! The node service: the operator's levers as an object whose rights can be told apart,
//! attenuated and delegated like those of any other.

use std::process::ExitCode;
use std::rc::Rc;

use capnp::capability::FromClientHook;
use capnp::private::capability::ClientHook;
use distos_abi::{ByteRange, Fault, ObjectId, Rights};
use distos_rpc::boot::Boot;
use distos_rpc::{Facet, Faceted, Service, Vat, fail, serve_capability};
use distos_schemas::kernel_capnp::control;
use distos_schemas::node_capnp::node;
use distos_types::kind;
use futures::future::LocalBoxFuture;

/// The object has no bytes.
const NO_BYTES: ByteRange = ByteRange { start: 0, end: 0 };
/// The most nodes of the forest in one answer, whatever was asked for.
const MAX_TREE: u32 = 10_000;

/// Runs the node service; blocks for the whole life of the vat.
pub fn run(boot: Boot) -> ExitCode {
    distos_rpc::run(boot, start)
}

async fn start(vat: Vat) -> Result<Rc<dyn Service>, Fault> {
    distos_noise::seal(&vat);
    tokio::task::spawn_local(distos_quic::attend(vat.clone()));
    Ok(Rc::new(NodeService { control: vat.control().await? }))
}

struct NodeService {
    control: control::Client,
}

impl Service for NodeService {
    fn open(self: Rc<Self>, facet: Facet) -> Result<Box<dyn ClientHook>, Fault> {
        if facet.kind() != kind::NODE || facet.object() != ObjectId::ROOT {
            return Err(Fault::not_found("this vat serves the node alone"));
        }
        Ok(NodeServer { facet, control: self.control.clone() }.into_hook())
    }

    fn drain(self: Rc<Self>) -> LocalBoxFuture<'static, ()> {
        // It holds no state and starts nothing.
        Box::pin(std::future::ready(()))
    }
}

struct NodeServer {
    facet: Facet,
    control: control::Client,
}

impl NodeServer {
    fn into_hook(self) -> Box<dyn ClientHook> {
        capnp_rpc::new_client::<node::Client, _>(self).into_client_hook()
    }

    fn check(&self, need: Rights) -> Result<(), capnp::Error> {
        self.facet.check(need).map_err(fail)
    }

    /// Does what changes the node under a guard: after a revocation returned, nothing is sent.
    fn commit<T>(&self, send: impl FnOnce() -> T) -> Result<T, capnp::Error> {
        self.facet.commit(Rights::ADMIN, NO_BYTES, send).map_err(fail)
    }
}

impl Faceted for NodeServer {
    fn facet(&self) -> &Facet {
        &self.facet
    }

    fn with_facet(&self, facet: Facet) -> Box<dyn ClientHook> {
        NodeServer { facet, control: self.control.clone() }.into_hook()
    }
}

serve_capability!(NodeServer);

impl node::Server for NodeServer {
    async fn status(
        self: Rc<Self>,
        _: node::StatusParams,
        mut results: node::StatusResults,
    ) -> Result<(), capnp::Error> {
        self.check(Rights::READ)?;
        let answer = self.control.status_request().send().promise.await?;
        self.facet.reply(&mut results).set_status(answer.get()?.get_status()?)
    }

    async fn add_tenant(
        self: Rc<Self>,
        params: node::AddTenantParams,
        mut results: node::AddTenantResults,
    ) -> Result<(), capnp::Error> {
        self.check(Rights::ADMIN)?;
        let mut request = self.control.add_tenant_request();
        {
            let params = params.get()?;
            let mut asked = request.get();
            asked.set_name(params.get_name()?);
            asked.set_holder(params.get_holder()?);
            asked.set_slot_quota(params.get_slot_quota());
        }
        let answer = self.commit(|| request.send())?.promise.await?;
        self.facet.reply(&mut results).set_id(answer.get()?.get_id());
        Ok(())
    }

    async fn tenants(
        self: Rc<Self>,
        _: node::TenantsParams,
        mut results: node::TenantsResults,
    ) -> Result<(), capnp::Error> {
        self.check(Rights::LIST)?;
        let answer = self.control.tenants_request().send().promise.await?;
        self.facet.reply(&mut results).set_tenants(answer.get()?.get_tenants()?)
    }

    async fn tree(
        self: Rc<Self>,
        params: node::TreeParams,
        mut results: node::TreeResults,
    ) -> Result<(), capnp::Error> {
        self.check(Rights::TREE)?;
        let mut request = self.control.tree_request();
        {
            let params = params.get()?;
            let mut asked = request.get();
            asked.set_tenant(params.get_tenant());
            asked.set_all(params.get_all());
            asked.set_max(params.get_max().min(MAX_TREE));
        }
        let answer = request.send().promise.await?;
        let answer = answer.get()?;
        let mut reply = self.facet.reply(&mut results);
        reply.set_nodes(answer.get_nodes()?)?;
        reply.set_truncated(answer.get_truncated());
        Ok(())
    }

    async fn drain(
        self: Rc<Self>,
        _: node::DrainParams,
        mut results: node::DrainResults,
    ) -> Result<(), capnp::Error> {
        self.check(Rights::ADMIN)?;
        let request = self.control.drain_request();
        self.commit(|| request.send())?.promise.await?;
        self.facet.reply(&mut results);
        Ok(())
    }

    async fn shutdown(
        self: Rc<Self>,
        params: node::ShutdownParams,
        mut results: node::ShutdownResults,
    ) -> Result<(), capnp::Error> {
        self.check(Rights::ADMIN)?;
        let mut request = self.control.shutdown_request();
        request.get().set_now(params.get()?.get_now());
        self.commit(|| request.send())?.promise.await?;
        self.facet.reply(&mut results);
        Ok(())
    }
}
