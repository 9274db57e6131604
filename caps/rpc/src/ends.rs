//! Those who wait to hear that a capability has ended. A revocation is one store in the table, which tells nobody
//! by itself: whoever runs something elsewhere in a capability's name has to be told (`specs/revocation`).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use distos_abi::{ByteRange, Fault, Rights, TenantId};
use tokio::sync::{Notify, oneshot};

use crate::facet::{Facet, WeakFacet};

/// How often it is looked: that long after a revocation that did not come this way somebody is told.
const LOOK: Duration = Duration::from_millis(50);
/// Between two looks, also if there are revocations without end.
const REST: Duration = Duration::from_millis(5);
/// How many may wait at one vat, and for capabilities of one tenant.
const MOST: usize = 65_536;
const MOST_OF_ONE: usize = 4096;
/// The longest that somebody waits before it is told that the capability lives.
const LONGEST: Duration = Duration::from_secs(10);
const EMPTY: ByteRange = ByteRange { start: 0, end: 0 };

/// What somebody waits for the end of, and how it is told.
type Waiting = (WeakFacet, oneshot::Sender<Fault>);

/// A vat's. Nobody who waits keeps anything alive.
#[derive(Default)]
pub(crate) struct Ends {
    waiting: RefCell<BTreeMap<TenantId, Vec<Waiting>>>,
    looking: Cell<bool>,
    look: Notify,
}

/// Alive and in time.
fn holds(facet: &Facet) -> Result<(), Fault> {
    facet.permits(Rights::NONE, EMPTY)
}

impl Ends {
    /// Resolves after `wait` if the capability lives then, and with how it ended as soon as it has.
    /// [`Fault::Unavailable`] if too many wait.
    pub(crate) async fn watch(self: &Rc<Ends>, facet: &Facet, wait: Duration) -> Result<(), Fault> {
        holds(facet)?;
        let (tell, told) = oneshot::channel();
        {
            let mut waiting = self.waiting.borrow_mut();
            let all: usize = waiting.values().map(Vec::len).sum();
            let own = waiting.entry(facet.tenant()).or_default();
            if all >= MOST || own.len() >= MOST_OF_ONE {
                return Err(Fault::unavailable(1000, "too many wait for the ends of capabilities"));
            }
            own.push((facet.downgrade(), tell));
        }
        if !self.looking.replace(true) {
            tokio::task::spawn_local(self.clone().look());
        }
        match tokio::time::timeout(wait.min(LONGEST), told).await {
            Ok(Ok(fault)) => Err(fault),
            // Whoever looks lives as long as the vat.
            Ok(Err(_)) | Err(_) => holds(facet),
        }
    }

    /// A capability was revoked by way of this vat.
    pub(crate) fn revoked(&self) {
        self.look.notify_one();
    }

    /// Tells those whose capability has ended, for as long as somebody waits.
    async fn look(self: Rc<Ends>) {
        loop {
            // Either way it is looked at all of them.
            let _ = tokio::time::timeout(LOOK, self.look.notified()).await;
            self.tell();
            if self.waiting.borrow().is_empty() {
                self.looking.set(false);
                return;
            }
            tokio::time::sleep(REST).await;
        }
    }

    fn tell(&self) {
        let mut waiting = self.waiting.borrow_mut();
        for own in waiting.values_mut() {
            for (facet, tell) in std::mem::take(own) {
                match facet.upgrade().map(|facet| holds(&facet)) {
                    // Nobody wants to be told, or there is nobody any more who could.
                    _ if tell.is_closed() => {}
                    None => {}
                    Some(Ok(())) => own.push((facet, tell)),
                    Some(Err(fault)) => drop(tell.send(fault)),
                }
            }
        }
        waiting.retain(|_, own| !own.is_empty());
    }
}
