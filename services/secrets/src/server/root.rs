//! How the root key comes to be there: made, and put together from operators' shares.

use distos_abi::Fault;

use super::Broker;
use crate::barrier::Barrier;
use crate::shamir::Share;

impl Broker {
    /// Takes a share; with the last that is needed, the broker is open.
    pub(super) fn give(&self, share: Share) -> Result<(), Fault> {
        let state = self.state.borrow();
        let facts = state.root().ok_or_else(|| {
            Fault::not_found("there is no root key: make one first (distos secret init)")
        })?;
        if share.id != facts.id || share.threshold != facts.scheme.threshold() {
            return Err(Fault::malformed("this share is of another broker's root key"));
        }
        let mut given = self.given.borrow_mut();
        if self.barrier.borrow().is_some() {
            return Err(Fault::Exists("a root key: the broker is open, and takes no share".into()));
        }
        given.retain(|other| other.number != share.number);
        given.push(share);
        if given.len() < usize::from(facts.scheme.threshold()) {
            return Ok(());
        }
        // Right or wrong, they are not needed any more.
        let given = std::mem::take(&mut *given);
        *self.barrier.borrow_mut() = Some(Barrier::of_shares(facts, &given)?);
        Ok(())
    }
}
