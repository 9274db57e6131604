//! Those who wait to hear that a capability has ended. A revocation is one store in the table, which tells nobody
//! by itself: whoever runs something elsewhere in a capability's name has to be told (`specs/revocation`).

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use distos_abi::{ByteRange, Fault, Rights};
use tokio::sync::{Notify, oneshot};

use crate::facet::{Facet, WeakFacet};

/// How often it is looked: that long after a revocation that did not come this way somebody is told.
const LOOK: Duration = Duration::from_millis(50);
/// How many may wait at one vat.
const MOST: usize = 65_536;
/// The longest that somebody waits before it is told that the capability lives.
const LONGEST: Duration = Duration::from_secs(10);
const EMPTY: ByteRange = ByteRange { start: 0, end: 0 };

/// A vat's. Nobody who waits keeps anything alive.
#[derive(Default)]
pub(crate) struct Ends {
    waiting: RefCell<Vec<(WeakFacet, oneshot::Sender<Fault>)>>,
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
        if self.waiting.borrow().len() >= MOST {
            return Err(Fault::unavailable(1000, "too many wait for the ends of capabilities"));
        }
        let (tell, told) = oneshot::channel();
        self.waiting.borrow_mut().push((facet.downgrade(), tell));
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
            let mut waiting = self.waiting.take();
            let mut over = Vec::new();
            waiting.retain_mut(|(facet, tell)| {
                let Some(facet) = facet.upgrade() else { return false };
                if tell.is_closed() {
                    return false;
                }
                let Err(fault) = holds(&facet) else { return true };
                over.push((std::mem::replace(tell, oneshot::channel().0), fault));
                false
            });
            for (tell, fault) in over {
                let _ = tell.send(fault);
            }
            self.waiting.borrow_mut().append(&mut waiting);
            if self.waiting.borrow().is_empty() {
                self.looking.set(false);
                return;
            }
        }
    }
}
