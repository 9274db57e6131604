//! Accounts at something of a tenant's: made for one lease, and owed until they are removed.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{Duration, Instant};

use distos_abi::{Fault, ObjectId};
use distos_schemas::secrets_capnp::accounts;
use zeroize::Zeroizing;

use super::{Broker, TICK, random};
use crate::record::{LeaseId, Record};

/// How long what makes accounts may take.
const ACCOUNT_WAIT: Duration = Duration::from_secs(10);
/// Accounts of a secret that are removed in one go.
const REMOVALS: usize = 64;
/// The longest wait before an account that could not be removed is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

impl Broker {
    /// Removes accounts whose leases have ended, until the vat ends.
    ///
    /// Each secret's in a task of its own, so that none waits for what makes another's.
    pub(super) async fn remove_accounts(self: Rc<Self>) {
        let removing = Rc::new(RefCell::new(BTreeSet::new()));
        loop {
            tokio::time::sleep(TICK).await;
            for (object, client) in &*self.accounts.borrow() {
                if !removing.borrow_mut().insert(*object) {
                    continue;
                }
                let (broker, removing) = (self.clone(), removing.clone());
                let (object, client) = (*object, client.clone());
                tokio::task::spawn_local(async move {
                    broker.remove_some(object, &client).await;
                    removing.borrow_mut().remove(&object);
                });
            }
        }
    }

    pub(super) async fn remove_some(&self, object: ObjectId, client: &accounts::Client) {
        let due: Vec<LeaseId> = {
            let (state, later, now) = (self.state.borrow(), self.later.borrow(), Instant::now());
            let is_due = |id: &LeaseId| later.get(&(object, *id)).is_none_or(|l| l.at <= now);
            state.owed_of(object).filter(is_due).take(REMOVALS).collect()
        };
        for id in due {
            if !self.is_attached(object, client) {
                return;
            }
            let mut request = client.remove_request();
            request.get().set_name(account_name(object, id));
            let answer = tokio::time::timeout(ACCOUNT_WAIT, request.send().promise).await;
            match answer.unwrap_or_else(|_| Err(capnp::Error::overloaded("it is silent".into()))) {
                Ok(_) => {
                    self.later.borrow_mut().remove(&(object, id));
                    let settled = Record::Settled { object, id };
                    if self.note(settled).await.is_err() {
                        return;
                    }
                }
                Err(error) if error.kind == capnp::ErrorKind::Disconnected => {
                    self.detach(object, client);
                    return;
                }
                // It is tried again, and does not keep the others waiting.
                Err(_) => {
                    let mut later = self.later.borrow_mut();
                    let failed = later.get(&(object, id)).map_or(0, |later| later.failed);
                    let at = Instant::now() + removal_pause(failed);
                    later.insert((object, id), Later { failed: failed.saturating_add(1), at });
                }
            }
        }
    }

    pub(super) fn is_attached(&self, object: ObjectId, client: &accounts::Client) -> bool {
        let same =
            |known: &accounts::Client| known.client.hook.get_ptr() == client.client.hook.get_ptr();
        self.accounts.borrow().get(&object).is_some_and(same)
    }

    /// Forgets what is not connected any more, unless another has come meanwhile.
    pub(super) fn detach(&self, object: ObjectId, client: &accounts::Client) {
        if self.is_attached(object, client) {
            self.accounts.borrow_mut().remove(&object);
        }
    }

    pub(super) fn attached(&self, object: ObjectId) -> Result<accounts::Client, Fault> {
        self.accounts.borrow().get(&object).cloned().ok_or_else(|| {
            Fault::unavailable(
                1_000,
                "what makes this secret's accounts is not connected: its owner attaches it",
            )
        })
    }

    /// A new account for a lease: its name and password, a line each. If what makes it answers too late, the account is
    /// removed then; it may have been removed before it was made.
    pub(super) async fn account(
        self: &Rc<Self>,
        object: ObjectId,
        id: LeaseId,
    ) -> Result<Zeroizing<Vec<u8>>, Fault> {
        let mut secret = Zeroizing::new([0; 32]);
        random(&mut *secret)?;
        let name = account_name(object, id);
        let mut password = Zeroizing::new([0; 64]);
        hex::encode_to_slice(secret.as_slice(), &mut *password).map_err(Fault::internal)?;
        let client = self.attached(object)?;
        let mut request = client.create_request();
        let mut params = request.get();
        params.set_name(&name);
        params.set_password(std::str::from_utf8(&*password).map_err(Fault::internal)?);
        let mut answer = request.send().promise;
        match tokio::time::timeout(ACCOUNT_WAIT, &mut answer).await {
            Ok(made) => made.map(drop).map_err(|e| no_account(&e))?,
            Err(_) => {
                let broker = self.clone();
                tokio::task::spawn_local(async move {
                    // However that ends, it makes nothing any more.
                    let _ = answer.await;
                    if broker.state.borrow().facts(object).is_ok() {
                        // What cannot be recorded is kept and written later.
                        let _ = broker.note(Record::Owed { object, id }).await;
                    }
                });
                return Err(Fault::unavailable(1_000, "what makes accounts is silent"));
            }
        }
        let mut given = Zeroizing::new(Vec::with_capacity(name.len() + password.len() + 2));
        for part in [name.as_bytes(), b"\n", &*password, b"\n"] {
            given.extend_from_slice(part);
        }
        Ok(given)
    }
}

/// An account that could not be removed.
pub(super) struct Later {
    /// How often.
    failed: u32,
    at: Instant,
}

/// How long to wait before an account is to be removed that could not be so often before.
fn removal_pause(failed: u32) -> Duration {
    TICK.saturating_mul(2_u32.saturating_pow(failed)).min(LONGEST_PAUSE)
}

/// The account of a lease.
fn account_name(object: ObjectId, id: LeaseId) -> String {
    format!("distos-{}-{}", object.0, id.0)
}

/// What whoever makes accounts has failed with is its own affair, and may say too much.
fn no_account(error: &capnp::Error) -> Fault {
    tracing::warn!(%error, "an account could not be made");
    Fault::unavailable(1_000, "the account could not be made: ask the secret's owner")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_that_cannot_be_removed_is_tried_ever_less_often_and_never_given_up() {
        let pauses: Vec<Duration> = (0..40).map(removal_pause).collect();
        assert!(pauses.is_sorted() && pauses[0] == TICK && pauses[3] > pauses[2]);
        assert_eq!((pauses[39], removal_pause(u32::MAX)), (LONGEST_PAUSE, LONGEST_PAUSE));
    }
}
