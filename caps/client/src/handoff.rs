//! Handing a capability over to somebody else, so that it works without whoever gave it (`specs/handoff`).
//!
//! The giver leaves a gift for the receiver at the object's home ([`give`]) and sends it the [`Gift`], beside a
//! reference if the receiver is to go on at once: calls on that reference go through the giver. The receiver
//! withdraws at the home ([`Connection::withdraw`](crate::Connection::withdraw), or `Vat::receive`
//! in a service), and changes over ([`change_over`]).

use capnp::capability::FromClientHook;
use distos_abi::{Authority, Fault, NodeId, VatName};
use distos_rpc::Gift;
use distos_schemas::capability_capnp::capability;

use crate::{fault_of, write_caveats};

/// Where an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    /// Its node; `None`: the receiver's own.
    pub node: Option<NodeId>,
    /// Its vat.
    pub vat: VatName,
}

/// Leaves a weaker capability at its home for `receiver`: a vat of that node by its name, or whoever has this
/// path in its SPIFFE id. It waits for half a minute.
///
/// # Errors
/// [`Fault::Denied`] if `given` has no such authority to give; [`Fault::Malformed`] if nobody can be called so.
pub async fn give<C: FromClientHook + Clone>(
    given: &C,
    receiver: &str,
    wanted: Authority,
    home: Home,
) -> Result<Gift, Fault> {
    let given: capability::Client = FromClientHook::new(given.clone().into_client_hook());
    let mut request = given.gift_request();
    request.get().set_receiver(receiver);
    request.get().set_rights(wanted.rights.0);
    write_caveats(wanted.caveats, request.get().init_caveats());
    let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
    let ticket = answer.get().and_then(|answer| answer.get_ticket()).map_err(|e| fault_of(&e))?;
    Ok(Gift { ticket: ticket.to_vec(), node: home.node, vat: home.vat })
}

/// Changes over from a reference that goes through the giver to one of the same object that does not. When it
/// resolves, every call that was made on `proxied` before has arrived at the home, so that what is called on
/// the result comes after it; or the giver is gone, and those that were not answered are lost or may still
/// arrive. Nobody may call `proxied` meanwhile. Dropping it lets go of the giver.
pub async fn change_over<C: FromClientHook>(proxied: C, direct: C) -> C {
    let proxied: capability::Client = FromClientHook::new(proxied.into_client_hook());
    // Any call that the home answers will do, and any answer: calls on one reference arrive in order.
    let _ = proxied.describe_request().send().promise.await;
    direct
}
