//! How the root key comes to be there: made, put together from operators' shares, or opened by the TPM of this node.
//!
//! The TPM keeps no root key but a key that the root key is encrypted under; the attestation service makes it, has the TPM
//! seal it, and hands it over in parcels. So the root key never leaves this process, and is in no message.

use std::rc::Rc;
use std::time::Duration;

use distos_abi::{CapId, Fault, HolderKey, Rights, TenantId};
use distos_delivery::{Content, Purpose, Recipient, RecipientKey, seal};
use distos_rpc::{Facet, fault_of};
use distos_schemas::attestation_capnp::attestation;
use distos_types::SECRET_BYTES;
use zeroize::Zeroizing;

use super::{ATTESTATION_EDGE, Broker, NO_BYTES, random};
use crate::barrier::{Barrier, Binding};
use crate::record::{MAX_BLOB_BYTES, Record};
use crate::shamir::{Scheme, Share};
use crate::state::State;

/// How long the TPM may take: it is asked for several things, others may be before us, and slow ones need a second each.
const TPM_WAIT: Duration = Duration::from_secs(30);
/// How soon it is asked again when it could not be asked, at first and at the latest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What became of asking the TPM for the root key.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// Why it did not open the broker, or empty.
    pub(super) why: String,
    /// Whether an operator sealed the broker, which the TPM is not to undo by itself.
    closed: bool,
}

impl Asked {
    /// While the broker is as an operator has sealed it.
    pub(super) fn closed() -> Asked {
        Asked { why: "an operator sealed it".into(), closed: true }
    }
}

/// A key that the TPM keeps, and the blob by which it gives it back.
struct Kept {
    blob: Vec<u8>,
    key: Zeroizing<[u8; SECRET_BYTES]>,
}

impl Broker {
    /// Makes the root key, and returns its shares, each in a parcel. The broker is open afterwards.
    pub(super) async fn init(
        &self,
        facet: &Facet,
        (scheme, by_tpm): (Option<Scheme>, bool),
        (holder, to): (HolderKey, RecipientKey),
    ) -> Result<Vec<Vec<u8>>, Fault> {
        self.usable()?;
        let kept = match by_tpm {
            true => Some(self.kept_by_tpm().await?),
            false => None,
        };
        let (barrier, facts, shares) = Barrier::new(scheme, &mut random)?;
        let id = facts.id;
        let parcel = |share: &Share| {
            let content = Content::NewShare { number: share.number };
            seal(to, &self.purpose(holder, content), &share.encode())
        };
        let parcels = shares.iter().map(parcel).collect::<Result<Vec<_>, Fault>>()?;
        let bound = match kept {
            Some(Kept { blob, key }) => {
                Some(Binding { blob, root: barrier.bind(&facts, &key, &mut random)? })
            }
            None => None,
        };
        self.change(facet, Rights::ADMIN, |state| match state.is_used() {
            false => {
                // The key that was is worth nothing from here on, however this ends: nothing is
                // encrypted under it any more.
                *self.barrier.borrow_mut() = None;
                self.given.borrow_mut().clear();
                let root = std::iter::once(Record::Root(facts));
                Ok((root.chain(bound.map(Record::Bound)).collect(), ()))
            }
            true => Err(Fault::Exists("a root key that secrets are under".into())),
        })
        .await?;
        if self.state.borrow().root().is_none_or(|root| root.id != id) {
            let why = "another root key was made meanwhile, and these shares are worth nothing";
            return Err(Fault::unavailable(0, why));
        }
        self.open_with(barrier);
        self.note_opened().await?;
        let by = if by_tpm { "the TPM opens it" } else { "no TPM opens it" };
        let detail = match scheme {
            Some(scheme) => {
                let (of, made) = (scheme.threshold(), scheme.shares());
                format!("root key made, any {of} of {made} shares open it; {by}")
            }
            None => format!("root key made, without shares; {by}"),
        };
        self.report(TenantId::OPERATOR, facet.cap_id(), detail);
        Ok(parcels)
    }

    /// Has the TPM open the root key that there is from now on, as its registers are now.
    pub(super) async fn bind(&self, facet: &Facet) -> Result<(), Fault> {
        self.opened(|_| Ok(()))?;
        let Kept { blob, key } = self.kept_by_tpm().await?;
        self.change(facet, Rights::ADMIN, |state| {
            let facts = state.root().ok_or_else(|| Fault::not_found("a root key"))?;
            let root = self.opened(|barrier| barrier.bind(facts, &key, &mut random))?;
            Ok((vec![Record::Bound(Binding { blob, root })], ()))
        })
        .await?;
        self.asked.borrow_mut().why.clear();
        self.report(TenantId::OPERATOR, facet.cap_id(), "root key sealed to the TPM".into());
        Ok(())
    }

    /// Takes a share; with the last that is needed, the broker is open.
    pub(super) fn give(&self, share: Share) -> Result<(), Fault> {
        let state = self.state.borrow();
        let facts = state.root().ok_or_else(no_root)?;
        let Some(scheme) = facts.scheme else {
            return Err(Fault::malformed("this broker's root key has no shares"));
        };
        if share.id != facts.id || share.threshold != scheme.threshold() {
            return Err(Fault::malformed("this share is of another broker's root key"));
        }
        let mut given = self.given.borrow_mut();
        if self.barrier.borrow().is_some() {
            return Err(Fault::Exists("a root key: the broker is open, and takes no share".into()));
        }
        given.retain(|other| other.number != share.number);
        given.push(share);
        if given.len() < usize::from(scheme.threshold()) {
            return Ok(());
        }
        // Right or wrong, they are not needed any more.
        let given = std::mem::take(&mut *given);
        let barrier = Barrier::of_shares(facts, &given)?;
        self.open_with(barrier);
        Ok(())
    }

    fn open_with(&self, barrier: Barrier) {
        *self.barrier.borrow_mut() = Some(barrier);
        self.asked.borrow_mut().closed = false;
    }

    /// Notes, durably, that an operator has opened what one had sealed.
    pub(super) async fn note_opened(&self) -> Result<(), Fault> {
        // Whoever has sealed it again meanwhile has said so later.
        let is_news = self.state.borrow().is_closed() && self.barrier.borrow().is_some();
        if is_news { self.note(Record::Closed(false)).await } else { Ok(()) }
    }

    /// Forgets the root key, and shares that were given; durably, so that no restart has the TPM undo it. If that cannot be
    /// recorded, they are forgotten all the same.
    pub(super) async fn close(&self, facet: &Facet) -> Result<(), Fault> {
        let forget = || {
            *self.barrier.borrow_mut() = None;
            self.given.borrow_mut().clear();
            *self.asked.borrow_mut() = Asked::closed();
        };
        facet.commit(Rights::ADMIN, NO_BYTES, forget)?;
        let closed = |_: &State| Ok((vec![Record::Closed(true)], ()));
        self.change(facet, Rights::ADMIN, closed).await.map(drop)
    }

    /// Opens a broker that was just started by the TPM, if one was to. What it refuses is not asked for again; when it
    /// could not be asked, that is tried again.
    pub(super) async fn open_by_tpm(self: Rc<Self>) {
        let mut pause = FIRST_PAUSE;
        while self.state.borrow().bound().is_some()
            && self.barrier.borrow().is_none()
            && !self.asked.borrow().closed
        {
            match self.ask_tpm(None).await {
                Ok(()) => return,
                Err(Fault::Unavailable { .. }) => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Err(_) => return,
            }
        }
    }

    /// Opens the broker by the TPM, and says so in the audit log. `by` is of the operator who wants that, if one does, and
    /// may have sealed it before.
    pub(super) async fn ask_tpm(&self, by: Option<&Facet>) -> Result<(), Fault> {
        let opened = self.try_tpm(by).await;
        let detail = match &opened {
            Ok(()) => "the TPM opened the root key: open".to_owned(),
            Err(fault) => format!("the TPM does not open the root key: {fault}"),
        };
        let why = opened.as_ref().err().map(ToString::to_string).unwrap_or_default();
        let is_new = self.asked.borrow().why != why;
        // One that an operator closed meanwhile stays so, and says so.
        if !self.asked.borrow().closed {
            self.asked.borrow_mut().why = why;
        }
        if is_new || opened.is_ok() {
            if opened.is_err() {
                tracing::warn!(%detail, "the broker stays sealed");
            }
            self.report(TenantId::OPERATOR, by.map_or(CapId(0), Facet::cap_id), detail);
        }
        opened?;
        self.note_opened().await
    }

    async fn try_tpm(&self, by: Option<&Facet>) -> Result<(), Fault> {
        let (facts, bound) = {
            let state = self.state.borrow();
            let facts = state.root().ok_or_else(no_root)?.clone();
            let none = || Fault::not_found("this broker's root key is sealed to no TPM");
            (facts, state.bound().ok_or_else(none)?.clone())
        };
        if self.barrier.borrow().is_some() {
            return Err(Fault::Exists("a root key: the broker is open".into()));
        }
        let recipient = Recipient::new()?;
        let client: attestation::Client = self.vat.root(ATTESTATION_EDGE).await?;
        let mut request = client.unseal_request();
        request.get().set_blob(&bound.blob);
        request.get().set_to(&recipient.key().0);
        let answer = in_time(request.send().promise).await?;
        let read = || answer.get()?.get_parcel();
        let key = self.key_of(&recipient, read().map_err(|e| fault_of(&e))?)?;
        let barrier = Barrier::of_bound(&facts, &bound.root, &key)?;
        // Another may have been made, or an operator may have been here, meanwhile.
        let same = self.state.borrow().root().is_some_and(|root| root.id == facts.id);
        if !same || (self.asked.borrow().closed && by.is_none()) {
            return Err(Fault::unavailable(0, "the broker was sealed meanwhile"));
        }
        let open = || {
            self.given.borrow_mut().clear();
            self.open_with(barrier);
        };
        match by {
            Some(facet) => facet.commit(Rights::ADMIN, NO_BYTES, open),
            None => {
                open();
                Ok(())
            }
        }
    }

    /// A new key that the TPM keeps from now on.
    async fn kept_by_tpm(&self) -> Result<Kept, Fault> {
        let recipient = Recipient::new()?;
        let client: attestation::Client = self.vat.root(ATTESTATION_EDGE).await?;
        let mut request = client.seal_request();
        request.get().set_to(&recipient.key().0);
        let answer = in_time(request.send().promise).await?;
        let read = || -> capnp::Result<_> {
            let answer = answer.get()?;
            Ok((answer.get_blob()?.to_vec(), answer.get_parcel()?))
        };
        let (blob, parcel) = read().map_err(|e| fault_of(&e))?;
        if blob.len() > MAX_BLOB_BYTES {
            return Err(Fault::internal("what the TPM sealed is longer than any blob"));
        }
        let key = self.key_of(&recipient, parcel)?;
        Ok(Kept { blob, key })
    }

    fn key_of(
        &self,
        recipient: &Recipient,
        parcel: &[u8],
    ) -> Result<Zeroizing<[u8; SECRET_BYTES]>, Fault> {
        let purpose = Purpose::of_vat(self.vat.node(), self.vat.name(), Content::Sealed);
        let plain = recipient.open(&purpose, parcel)?;
        let mut key = Zeroizing::new([0; SECRET_BYTES]);
        if plain.len() != key.len() {
            return Err(Fault::internal("a key that the TPM keeps has one length"));
        }
        key.copy_from_slice(&plain);
        Ok(key)
    }
}

fn no_root() -> Fault {
    Fault::not_found("there is no root key: make one first (distos secret init)")
}

async fn in_time<T>(answer: impl Future<Output = capnp::Result<T>>) -> Result<T, Fault> {
    match tokio::time::timeout(TPM_WAIT, answer).await {
        Ok(answer) => answer.map_err(|e| fault_of(&e)),
        Err(_) => Err(Fault::unavailable(1_000, "the TPM is silent")),
    }
}
