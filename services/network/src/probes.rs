//! Asks whom others reach, and looks at those oneself of whom somebody says that they are not.

use std::rc::Rc;
use std::time::Duration;

use capnp::ErrorKind;
use capnp::capability::FromClientHook as _;
use distos_abi::{Fault, NodeId};
use distos_rpc::fault_of;
use distos_schemas::network_capnp::{heard, member};

use crate::server::NetworkService;
use crate::swim::Messages;

/// Messages to one node that are under way; more than these are lost, as on any network.
const MAX_UNDER_WAY: usize = 8;
/// How long a node may take to answer of which somebody says that it does not; and how often it is asked.
const LOOK_WAIT: Duration = Duration::from_secs(2);
const LOOK_MS: u64 = 5000;
/// It is looked at least so often what is due, and at most.
const REST_MS: std::ops::RangeInclusive<u64> = 100..=1000;

impl NetworkService {
    /// Takes part until the vat ends.
    pub(crate) async fn probe(self: Rc<Self>) {
        loop {
            let rest_ms = self.swim.borrow().next_ms().saturating_sub(self.clock_ms());
            let rest_ms = rest_ms.clamp(*REST_MS.start(), *REST_MS.end());
            tokio::time::sleep(Duration::from_millis(rest_ms)).await;
            // Whoever has no address here cannot be asked, and is not said to be gone for that.
            let nodes = self.state.borrow().askable(self.now_s());
            let messages = self.swim.borrow_mut().look(&nodes, self.clock_ms());
            self.send(messages);
            self.look_at_suspects();
        }
    }

    /// Takes what another node says.
    pub(crate) fn gossiped(self: &Rc<Self>, from: NodeId, message: &[u8]) -> Result<(), Fault> {
        let answers = self.swim.borrow_mut().hear(from, message, self.clock_ms())?;
        self.send(answers);
        Ok(())
    }

    fn send(self: &Rc<Self>, messages: Messages) {
        for (node, message) in messages {
            let mut under_way = self.under_way.borrow_mut();
            let count = under_way.entry(node).or_default();
            if *count >= MAX_UNDER_WAY {
                continue;
            }
            *count += 1;
            let service = self.clone();
            tokio::task::spawn_local(async move {
                let said = service.with_member(node, async |member: member::Client| {
                    let mut request = member.gossip_request();
                    request.get().set_message(&message);
                    request.send().promise.await.map(drop).map_err(|e| fault_of(&e))
                });
                if let Err(fault) = said.await {
                    tracing::debug!(%node, %fault, "it was not asked whether it is there");
                }
                let mut under_way = service.under_way.borrow_mut();
                match under_way.get_mut(&node) {
                    Some(count) if *count > 1 => *count -= 1,
                    _ => drop(under_way.remove(&node)),
                }
            });
        }
    }

    /// Asks those themselves whom others do not reach, as they say: nobody is believed who says so.
    fn look_at_suspects(self: &Rc<Self>) {
        // Who can ask nobody learns nothing about anybody.
        if self.endpoint.borrow().is_none() {
            return;
        }
        let now_ms = self.clock_ms();
        let mut looked = self.looked.borrow_mut();
        looked.retain(|_, at_ms| now_ms.saturating_sub(*at_ms) < LOOK_MS);
        for node in self.swim.borrow().suspects() {
            if looked.contains_key(&node) || !self.alive.borrow().may_doubt(node, now_ms) {
                continue;
            }
            looked.insert(node, now_ms);
            let service = self.clone();
            tokio::task::spawn_local(async move {
                // Also whoever refuses is there.
                let asked = service.with_member(node, async |member: member::Client| {
                    let member: heard::Client = member.cast_to();
                    match member.heard_request().send().promise.await {
                        Err(error) if error.kind == ErrorKind::Disconnected => {
                            Err(fault_of(&error))
                        }
                        _ => Ok(()),
                    }
                });
                if matches!(tokio::time::timeout(LOOK_WAIT, asked).await, Ok(Ok(()))) {
                    return;
                }
                let change = service.alive.borrow_mut().doubt(node, service.clock_ms());
                change.iter().for_each(|change| service.tell_change(change));
            });
        }
    }
}
