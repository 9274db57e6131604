//! Gifts: capabilities that wait at their home for one receiver, who takes them there, over a connection
//! of its own (`specs/handoff`).

use std::rc::Rc;

use capnp::capability::FromClientHook;
use distos_abi::{Fault, NodeId, SessionId, VatName};
use distos_schemas::capability_capnp;

use crate::borrowing::Held;
use crate::epoch::Epochs;
use crate::facet::{Facet, Origin};
use crate::faults::fault_of;
use crate::lending::{boot_ns, name_of};
use crate::reach::Open;
use crate::vat::Vat;

/// The longest ticket that is looked at.
const MAX_TICKET_BYTES: usize = 256;

/// Where homes tell the steps of handoffs, as `specs/handoff` reads them: what came over which session, and what came
/// of it.
///
/// Each is told with the time at which it came or, if it is an answer, before anybody can know of it. All processes of
/// a machine have the same clock, so by these times what was said stands before what was heard.
pub(crate) const TRACE: &str = "distos::trace::handoff";

/// A capability that waits for its receiver, and where: [`capability_capnp::gift`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gift {
    /// What the home knows it by.
    pub ticket: Vec<u8>,
    /// The home's node; `None`: the receiver's own.
    pub node: Option<NodeId>,
    /// The home.
    pub vat: VatName,
}

impl Gift {
    /// Reads one. The outer error is Cap'n Proto's own, of bytes that are no message.
    ///
    /// # Errors
    /// [`Fault::Malformed`] says which field is wrong.
    pub fn read(gift: capability_capnp::gift::Reader<'_>) -> capnp::Result<Result<Gift, Fault>> {
        let (ticket, node, vat) = (gift.get_ticket()?, gift.get_node()?, gift.get_vat()?.to_str()?);
        let read = || {
            if !(1..=MAX_TICKET_BYTES).contains(&ticket.len()) {
                let why = format!("a ticket has 1 to {MAX_TICKET_BYTES} bytes");
                return Err(Fault::malformed(why));
            }
            let node = if node.is_empty() { None } else { Some(NodeId::try_from(node)?) };
            Ok(Gift { ticket: ticket.to_vec(), node, vat: VatName::new(vat)? })
        };
        Ok(read())
    }

    /// Writes it.
    pub fn write(&self, mut gift: capability_capnp::gift::Builder<'_>) {
        gift.set_ticket(&self.ticket);
        if let Some(node) = &self.node {
            gift.set_node(&node.0);
        }
        gift.set_vat(self.vat.as_str());
    }

    /// By what traces know it on all sides. Nobody can take it by that.
    pub fn traced(&self) -> String {
        traced(&self.ticket)
    }
}

/// The same of a gift of which no more than the ticket is known.
pub(crate) fn traced(ticket: &[u8]) -> String {
    name_of('t', "distos 2026-11 ticket in a trace", ticket)
}

/// The receiver as the kernel knows it. A vat of this node has its name. Whoever comes over the network has
/// a name of this form only: the kernel knows of no network, and that it is this one who connects is the
/// home's to see. It stands for the whole of `peer`: to make another one with the same name takes 2^128 tries.
/// No vat of a node is called so, for no image may name a template `peer`.
///
/// What was left for somebody in one attestation epoch is for nobody in the next: from the second on its number is part of
/// the name.
pub(crate) fn receiver_of(peer: &str, epoch: u64) -> Result<VatName, Fault> {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    // No path has a sign that is no letter, digit or slash at its end.
    let named = if epoch == 0 { peer.to_owned() } else { format!("{peer}#{epoch}") };
    let hash = blake3::derive_key("distos 2026-11 receiver of a gift", named.as_bytes());
    let bits = hash.iter().take(16).fold(0u128, |bits, byte| bits << 8 | u128::from(*byte));
    let letter = |index: u32| char::from(LETTERS[(bits >> (5 * index) & 31) as usize]);
    VatName::new(&format!("{REMOTE}/{}", (0..26).map(letter).collect::<String>()))
}

/// The template that no image has.
pub const REMOTE: &str = "peer";

/// The receiver that a giver names: a vat of this node, or the path of somebody's SPIFFE id, as whoever has it is now.
pub(crate) fn receiver(named: &str, epochs: &Epochs) -> Result<VatName, Fault> {
    let parts: Vec<&str> = named.splitn(4, '/').collect();
    let [kind, of, what, who] = parts[..] else { return VatName::new(named) };
    let digit = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
    let is_somebody = match (kind, what) {
        ("node", "service") => {
            of.len() == 64 && of.as_bytes().iter().all(digit) && VatName::new(who).is_ok()
        }
        // As `did:key` has a key.
        ("tenant", "agent") => {
            VatName::new(of).is_ok()
                && who.starts_with('z')
                && who.bytes().all(|byte| byte.is_ascii_alphanumeric())
        }
        _ => false,
    };
    if !is_somebody {
        return Err(Fault::malformed(
            "a receiver is a vat of this node, node/N/service/S or tenant/T/agent/A",
        ));
    }
    receiver_of(named, epochs.of(named).number())
}

/// Has the kernel hand over a gift to `receiver`, whom the connection of this session has shown; the facet
/// and the object behind it.
pub(crate) async fn withdraw<T: FromClientHook>(
    vat: &Vat,
    session: SessionId,
    receiver: &str,
    ticket: &[u8],
) -> Result<(Facet, T), Fault> {
    let mut request = vat.kernel()?.withdraw_request();
    let mut params = request.get();
    params.set_ticket(ticket);
    params.set_receiver(receiver);
    params.set_session(session.0);
    let response = request.send().promise.await.map_err(|e| fault_of(&e))?;
    let grant = response.get().and_then(|r| r.get_grant()).map_err(|e| fault_of(&e))?;
    let facet = Facet::new(vat, session, grant, Origin::Session)?;
    tracing::debug!(
        target: TRACE,
        at = boot_ns(),
        session = session.0,
        ticket = %traced(ticket),
        "granted"
    );
    let hook = vat.service()?.open(facet.clone())?;
    Ok((facet, FromClientHook::new(hook)))
}

/// A capability of another vat's, held by a lease, and the connection over which it was reached, if that ends
/// with it.
pub struct Received<C> {
    /// The capability.
    pub client: C,
    /// Until when it may be used without asking its home.
    pub lease: Held,
    open: Option<Rc<dyn Open>>,
}

impl<C> Received<C> {
    /// The connection to its home, if that is on another node.
    pub fn far(&self) -> Option<Rc<dyn Open>> {
        self.open.clone()
    }
}

impl Vat {
    /// Takes a gift that was left for this vat: over its edge to the home on its own node, or by
    /// connecting to one of another node; and has it lent.
    ///
    /// # Errors
    /// [`Fault::NotFound`] if none is left for it there; [`Fault::Unavailable`] or
    /// [`Fault::Unauthenticated`] if the home is not reached.
    pub async fn receive<C: FromClientHook + Clone>(
        &self,
        gift: &Gift,
    ) -> Result<Received<C>, Fault> {
        let taken = |response: capnp::Result<capability_capnp::capability::Client>| {
            response.map(|cap| cap.cast_to()).map_err(|e| fault_of(&e))
        };
        let Some(node) = gift.node.filter(|node| *node != self.node()) else {
            let (edge, borrowing) = self.edge_to(&gift.vat).await?;
            let mut request = edge.withdraw_request();
            request.get().set_ticket(&gift.ticket);
            let response = request.send().promise.await.map_err(|e| fault_of(&e))?;
            let client = taken(response.get().and_then(|r| r.get_cap()))?;
            let lease = borrowing.hold(&client).await?;
            return Ok(Received { client, lease, open: None });
        };
        let far = self.reach(node, &gift.vat).await?;
        let mut request = far.door.withdraw_request();
        request.get().set_ticket(&gift.ticket);
        let response = request.send().promise.await;
        let response = response.map_err(|e| far.open.ended().unwrap_or_else(|| fault_of(&e)))?;
        let client = taken(response.get().and_then(|r| r.get_cap()))?;
        let lease = far.borrowing.hold(&client).await?;
        Ok(Received { client, lease, open: Some(far.open) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It must not change: a giver and a home may be of different versions.
    const KNOWN: &str = "peer/hmndsaz46z6uc2zagy4lxsis2f";

    #[test]
    fn whoever_comes_over_the_network_has_one_name_that_no_vat_of_the_node_has() {
        let node = |digit: &str| format!("node/{}/service/executor/red", digit.repeat(64));
        let epochs = Epochs::default();
        let receiver = |named: &str| receiver(named, &epochs);
        let (one, other) = (receiver(&node("1")).unwrap(), receiver(&node("2")).unwrap());
        assert_eq!(one.as_str().len(), "peer/".len() + 26);
        assert_ne!(one, other);
        assert_eq!(one, receiver_of(&node("1"), 0).unwrap());
        assert_eq!(receiver("executor/red").unwrap().as_str(), "executor/red");
        assert!(receiver("").is_err() && receiver("Executor").is_err());
        // 26 letters of five bits hold all of the 128.
        let known = receiver_of("tenant/red/agent/z6Mk", 0).unwrap();
        assert_eq!(known.as_str(), KNOWN);
        // Whoever misspells is told, and not the receiver.
        let upper = node("1").replace("1", "A");
        for wrong in [&upper[..], "node/1/service/x", "tenant/red/agnt/zx", "tenant/red/agent/a/b"]
        {
            assert!(matches!(receiver(wrong), Err(Fault::Malformed(_))), "{wrong}");
        }
        assert!(receiver("tenant/red/agent/z6Mk").is_ok());
        epochs.raise(&format!("node/{}", "1".repeat(64)), 1);
        assert_ne!(receiver(&node("1")).unwrap(), one, "what was left before is nobody's");
        assert_eq!(receiver(&node("1")), receiver_of(&node("1"), 1));
        assert_eq!(receiver(&node("2")).unwrap(), other);
    }
}
