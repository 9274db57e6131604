//! The two ways into a vat: its door, at which holders turn sturdy capabilities into live ones,
//! and the edges that the image gave to other vats.

use std::cell::Cell;
use std::io::Cursor;
use std::rc::Rc;
use std::time::{Duration, Instant};

use capnp::capability::FromClientHook;
use capnp_rpc::rpc_twoparty_capnp::Side;
use distos_abi::{CapId, Fault, NodeId, SessionId, TenantId, VatName};
use distos_schemas::capability_capnp::{capability, door, edge};
use distos_types::{Chain, present_message, restore_message, verify_signature};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};

use crate::admission::Stranger;
use crate::facet::{Facet, Origin};
use crate::faults::{fail, fault_of};
use crate::gift;
use crate::seal::{End, HELLO, Reader, Sealed, Writer};
use crate::transport::{self, Cut};
use crate::vat::Vat;

/// How many sturdy capabilities one connection may restore.
const MAX_RESTORES: u32 = 1024;
/// Longest encoded chain; `distos_types` refuses longer ones too.
const MAX_CHAIN_BYTES: usize = 4096;
/// How often it is told that encrypted connections were broken.
const TOLD: Duration = Duration::from_secs(1);

/// What a holder has signed: something fresh, the node, the vat, and the chain.
type Message = fn(&[u8; 32], NodeId, &VatName, &[u8]) -> Vec<u8>;

/// What a connection from a holder starts with.
pub(crate) struct Door {
    pub(crate) vat: Vat,
    pub(crate) session: SessionId,
    /// Whom the handshake has shown, by the path of its SPIFFE id.
    pub(crate) peer: Option<String>,
    /// Whose key is at the other end.
    pub(crate) end: End,
    pub(crate) nonce: Cell<Option<[u8; 32]>>,
    /// What the handshake has given to the two ends of this connection, and to nobody else.
    pub(crate) binding: Option<[u8; 32]>,
    /// How often a capability was presented.
    pub(crate) restores: Rc<Cell<u32>>,
    /// Told of what is restored: a connection on which nothing is does not stay.
    pub(crate) stranger: Rc<Stranger>,
}

impl door::Server for Door {
    async fn challenge(
        self: Rc<Self>,
        _: door::ChallengeParams,
        mut results: door::ChallengeResults,
    ) -> Result<(), capnp::Error> {
        let mut nonce = [0; 32];
        getrandom::fill(&mut nonce).map_err(|e| fail(Fault::internal(e)))?;
        self.nonce.set(Some(nonce));
        let mut reply = results.get();
        reply.set_nonce(&nonce);
        reply.set_vat(self.vat.name().as_str());
        reply.set_node(&self.vat.node().0);
        Ok(())
    }

    async fn restore(
        self: Rc<Self>,
        params: door::RestoreParams,
        mut results: door::RestoreResults,
    ) -> Result<(), capnp::Error> {
        let (chain, signature) = {
            let params = params.get()?;
            shown(params.get_chain()?, params.get_signature()?)?
        };
        let nonce = self.nonce.take().ok_or_else(|| {
            Fault::Unauthenticated("ask for a challenge before each restore".into())
        });
        let (facet, hook) = self.open(&chain, &signature, nonce, restore_message).await?;
        facet.reply(&mut results).set_cap(hook);
        Ok(())
    }

    async fn present(
        self: Rc<Self>,
        params: door::PresentParams,
        mut results: door::PresentResults,
    ) -> Result<(), capnp::Error> {
        let (chain, signature) = {
            let params = params.get()?;
            shown(params.get_chain()?, params.get_signature()?)?
        };
        let binding = self.binding.ok_or_else(|| {
            let why = "no handshake has bound this connection: ask for a challenge, and restore";
            Fault::Unauthenticated(why.into())
        });
        let (facet, hook) = self.open(&chain, &signature, binding, present_message).await?;
        facet.reply(&mut results).set_cap(hook);
        Ok(())
    }

    async fn withdraw(
        self: Rc<Self>,
        params: door::WithdrawParams,
        mut results: door::WithdrawResults,
    ) -> Result<(), capnp::Error> {
        let ticket = params.get()?.get_ticket()?;
        let taken = match self.take_gift(ticket).await {
            Ok(taken) => taken,
            Err(fault) => {
                let who = self.peer.as_deref().unwrap_or("somebody at the socket");
                let detail = format!("withdraw by {who}: {fault}");
                self.vat.report("denial", TenantId::OPERATOR, CapId(0), detail);
                return Err(fail(fault));
            }
        };
        let (facet, object) = taken;
        self.stranger.restore();
        let who = self.peer.as_deref().unwrap_or_default();
        let detail = format!("{who} has taken what was given to it");
        self.vat.report("handoff", facet.tenant(), facet.cap_id(), detail);
        facet.reply(&mut results).set_cap(object);
        Ok(())
    }

    async fn lessor(
        self: Rc<Self>,
        params: door::LessorParams,
        mut results: door::LessorResults,
    ) -> Result<(), capnp::Error> {
        let lessee = params.get()?.get_lessee()?;
        let (lessor, token) = self.vat.lend_to(self.session, lessee)?;
        let mut reply = results.get();
        reply.set_lessor(lessor);
        reply.set_token(token);
        Ok(())
    }
}

impl Door {
    /// Serves whoever is at the other end of these two halves until it goes: in the clear, or encrypted if that is
    /// how it begins.
    pub(crate) async fn welcome<R, W>(self, mut reader: R, writer: W)
    where
        R: AsyncRead + Unpin + 'static,
        W: AsyncWrite + Unpin + 'static,
    {
        let mut first = [0; HELLO.len()];
        if reader.read_exact(&mut first).await.is_err() {
            return;
        }
        if first != HELLO {
            return self.serve(Cursor::new(first).chain(reader), writer).await;
        }
        match self.unseal(Box::new(reader), Box::new(writer)).await {
            Ok(Sealed { holder, reader, writer }) => {
                // A gift is left for whoever has an SVID, and that may be another's, who passes this on.
                self.stranger.sealed.set(true);
                let (end, peer, binding) = (End::Sealed(holder), None, None);
                let door = Door { end, peer, binding, ..self };
                door.serve(reader, writer).await;
            }
            Err(fault) => broken(&self.vat, self.peer.as_deref(), &fault),
        }
    }

    async fn unseal(&self, reader: Reader, writer: Writer) -> Result<Sealed, Fault> {
        let seal = self.vat.seal()?;
        seal.accept(&self.vat, reader, writer).await
    }

    async fn serve<R, W>(self, reader: R, writer: W)
    where
        R: AsyncRead + Unpin + 'static,
        W: AsyncWrite + Unpin + 'static,
    {
        let (vat, stranger) = (self.vat.clone(), self.stranger.clone());
        let is_sealed = matches!(self.end, End::Sealed(_));
        let door: door::Client = capnp_rpc::new_client(self);
        let door = capnp::capability::Client::new(door.into_client_hook());
        let (bounds, checker) = (vat.bounds(), Some(vat.checker().clone()));
        let (side, told) = (Side::Server, Some(stranger));
        let system = transport::system(reader, writer, side, Some(door), bounds, checker, told);
        // Dropped after the system, if this is dropped while it runs.
        let _cut = Cut::of(&system);
        // How a connection ends is its client's affair, unless somebody else has ended it.
        if let (Err(error), true) = (system.await, is_sealed) {
            broken(&vat, None, &fault_of(&error));
        }
    }

    /// Whoever connected is the receiver that its handshake has shown, and nobody else (C4).
    async fn take_gift(&self, ticket: &[u8]) -> Result<(Facet, capability::Client), Fault> {
        // Whoever has shown nothing is counted, too: each refusal goes to the audit log.
        self.ask_once_more()?;
        let none = || Fault::not_found("nothing is left here for whoever has shown no SVID");
        let peer = self.peer.as_deref().ok_or_else(none)?;
        let epoch = self.vat.epoch_of(self.session).filter(|epoch| !epoch.is_over());
        let receiver = gift::receiver_of(peer, epoch.ok_or(Fault::Revoked)?.number())?;
        let _asking = self.stranger.asking();
        gift::withdraw(&self.vat, self.session, receiver.as_str(), ticket).await
    }

    /// Counts what is presented on this connection.
    fn ask_once_more(&self) -> Result<(), Fault> {
        let restores = self.restores.get();
        if restores >= MAX_RESTORES {
            return Err(Fault::unavailable(0, "this connection restored enough: open another"));
        }
        self.restores.set(restores + 1);
        Ok(())
    }

    /// Names the capability that was presented. Whose key it was presented with is not proven.
    fn report_denial(&self, chain: &[u8], fault: &Fault) {
        let claimed = Chain::decode(chain).ok();
        let cap = claimed.as_ref().map_or(CapId(0), |chain| chain.root().cap);
        let holder = claimed.map_or_else(String::new, |chain| format!(" for {}", chain.holder()));
        let detail = format!("restore{holder}: {fault}");
        self.vat.report("denial", TenantId::OPERATOR, cap, detail);
    }

    /// A live capability for a sturdy one that is shown. Each refusal goes to the audit log.
    async fn open(
        &self,
        chain: &[u8],
        signature: &[u8],
        fresh: Result<[u8; 32], Fault>,
        message: Message,
    ) -> Result<(Facet, capability::Client), capnp::Error> {
        let facet = self.redeem(chain, signature, fresh, message).await.map_err(|fault| {
            self.report_denial(chain, &fault);
            fail(fault)
        })?;
        let hook = self.vat.service().and_then(|s| s.open(facet.clone())).map_err(fail)?;
        self.stranger.restore();
        Ok((facet, FromClientHook::new(hook)))
    }

    /// Authenticates the holder (C4), who has signed `message` of what is `fresh` on this connection; then has the
    /// kernel decide about the chain.
    async fn redeem(
        &self,
        bytes: &[u8],
        signature: &[u8],
        fresh: Result<[u8; 32], Fault>,
        message: Message,
    ) -> Result<Facet, Fault> {
        self.ask_once_more()?;
        let fresh = fresh?;
        let chain = Chain::decode(bytes)?;
        if chain.root().node != self.vat.node() || chain.root().vat != *self.vat.name() {
            return Err(Fault::not_found(format!(
                "this capability belongs to vat '{}' of node {}",
                chain.root().vat,
                chain.root().node
            )));
        }
        let message = message(&fresh, self.vat.node(), self.vat.name(), bytes);
        verify_signature(chain.holder(), &message, signature)?;
        let mut request = self.vat.kernel()?.redeem_request();
        request.get().set_chain(bytes);
        request.get().set_session(self.session.0);
        let asking = self.stranger.asking();
        let response = request.send().promise.await.map_err(|e| fault_of(&e))?;
        drop(asking);
        let grant = response.get().and_then(|r| r.get_grant()).map_err(|e| fault_of(&e))?;
        // A chain that decodes has at least its root.
        let origin = chain.links().last().map_or(Origin::Session, |link| Origin::Link(link.hash));
        let facet = Facet::new(&self.vat, self.session, grant, origin)?;
        self.end.admits(chain.holder(), facet.authority().caveats.end_to_end)?;
        Ok(facet)
    }
}

/// A chain and a signature, if the chain is no longer than one can be.
fn shown(chain: &[u8], signature: &[u8]) -> Result<(Vec<u8>, Vec<u8>), capnp::Error> {
    if chain.len() > MAX_CHAIN_BYTES {
        return Err(fail(Fault::malformed("a certificate chain has at most 4096 bytes")));
    }
    Ok((chain.to_vec(), signature.to_vec()))
}

/// Tells the auditors that an encrypted connection was not what its holder has said. Whoever goes away has not attacked
/// anybody, and whoever attacks decides how often that is: once a second it is told, with how often it was.
fn broken(vat: &Vat, by: Option<&str>, fault: &Fault) {
    if matches!(fault, Fault::Unavailable { .. }) {
        tracing::info!(%fault, "an encrypted connection ends");
        return;
    }
    let told = vat.attached::<Told>();
    let before = told.before.get() + 1;
    told.before.set(before);
    if told.at.get().is_some_and(|at| at.elapsed() < TOLD) {
        return;
    }
    told.at.set(Some(Instant::now()));
    told.before.set(0);
    let by = by.map_or_else(String::new, |by| format!(" by {by}"));
    let more = match before {
        1 => String::new(),
        count => format!(" ({} before it, too)", count - 1),
    };
    let detail = format!("an encrypted connection{by}: {fault}{more}");
    vat.report("denial", TenantId::OPERATOR, CapId(0), detail);
}

/// Broken sessions: when one was told last, and how many were not.
#[derive(Default)]
struct Told {
    at: Cell<Option<Instant>>,
    before: Cell<u64>,
}

/// What another vat of this node finds at its end of an edge.
pub(crate) struct EdgeHome {
    pub(crate) vat: Vat,
    pub(crate) session: SessionId,
    pub(crate) peer: String,
    pub(crate) facet: Facet,
}

impl edge::Server for EdgeHome {
    async fn root(
        self: Rc<Self>,
        _: edge::RootParams,
        mut results: edge::RootResults,
    ) -> Result<(), capnp::Error> {
        let hook = self.vat.service().and_then(|s| s.open(self.facet.clone())).map_err(fail)?;
        self.facet.reply(&mut results).set_cap(FromClientHook::new(hook));
        Ok(())
    }

    async fn withdraw(
        self: Rc<Self>,
        params: edge::WithdrawParams,
        mut results: edge::WithdrawResults,
    ) -> Result<(), capnp::Error> {
        let ticket = params.get()?.get_ticket()?;
        let taken = gift::withdraw(&self.vat, self.session, &self.peer, ticket).await;
        let (facet, object) = taken.map_err(fail)?;
        facet.reply(&mut results).set_cap(object);
        Ok(())
    }

    async fn lessor(
        self: Rc<Self>,
        params: edge::LessorParams,
        mut results: edge::LessorResults,
    ) -> Result<(), capnp::Error> {
        let lessee = params.get()?.get_lessee()?;
        let (lessor, token) = self.vat.lend_to(self.session, lessee)?;
        let mut reply = results.get();
        reply.set_lessor(lessor);
        reply.set_token(token);
        Ok(())
    }
}
