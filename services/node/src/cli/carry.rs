//! `cap revoke --through`: a revocation that is signed here and left with a node that carries it to the capability's
//! home.

use std::path::Path;

use distos_abi::{Fault, Rights};
use distos_identity::Peer;
use distos_schemas::network_capnp::{agents, network};
use distos_types::{CapEntry, HolderSecret, Revocation, kind};
use serde_json::{Value, json};

use super::holder::{Holder, call, now_ms, read};

/// A node with which revocations are left.
pub(super) struct Carrier {
    holder: Holder,
    through: Through,
}

/// What it is asked by.
enum Through {
    Network(network::Client),
    Agents(agents::Client),
}

impl Carrier {
    /// The node of a file's capability to its network service, or to a tenant's agents there.
    ///
    /// # Errors
    /// [`Fault::NotFound`] if there is none in the file; what its node says.
    pub(super) async fn open(path: &Path) -> Result<Carrier, Fault> {
        let holder = Holder::load(path, None)?;
        let of_kind = |kind, need: Rights| {
            let mut of_kind =
                holder.file.entries.iter().filter(|one| one.chain.root().kind == kind);
            // One that can only see is no letterbox.
            let may = |one: &&CapEntry| one.chain.authority().rights.contains(need);
            let found = of_kind.find(may);
            found.map(|one| one.name.clone())
        };
        let through = match (
            of_kind(kind::NETWORK, Rights::WRITE),
            of_kind(kind::AGENTS, Rights::READ),
        ) {
            (Some(name), _) => Through::Network(holder.root(&name).await?),
            (None, Some(name)) => Through::Agents(holder.root(&name).await?),
            (None, None) => {
                return Err(Fault::not_found(format!(
                    "{} holds no capability to a node's network service or to a tenant's agents",
                    path.display()
                )));
            }
        };
        Ok(Carrier { holder, through })
    }

    /// Signs the end of what `secret` may end of a capability, and leaves it there; what came of it.
    pub(super) async fn leave(
        &self,
        entry: &CapEntry,
        secret: &HolderSecret,
    ) -> Result<(String, Value), Fault> {
        let revocation = Revocation::sign(&entry.chain, secret, now_ms())?;
        let ended = match &self.through {
            Through::Network(network) => {
                let mut request = network.carry_request();
                request.get().set_revocation(revocation.bytes());
                let answer = call(request).await?;
                read(|| Ok(answer.get()?.get_ended()))?
            }
            Through::Agents(agents) => {
                let mut request = agents.carry_request();
                request.get().set_revocation(revocation.bytes());
                let answer = call(request).await?;
                read(|| Ok(answer.get()?.get_ended()))?
            }
        };
        let (home, by) = (Peer::Node(revocation.home()), Peer::Node(self.holder.file.node));
        let text = match ended {
            true => format!(
                "[{}] revoked at its home, {home}, which {by} has told; what runs elsewhere by a lease ends within 5.1 s",
                entry.name
            ),
            false => format!(
                "[{}] left with {by}: its home, {home}, has not said that it has ended there; run this again to ask",
                entry.name
            ),
        };
        let json = json!({
            "entry": entry.name, "ended": ended, "home": home.to_string(), "through": by.to_string(),
        });
        Ok((text, json))
    }
}
